package responder

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"ocspd/pki"
)

func allowAll(net.Conn) error { return nil }

// socket is a place for a unix socket, and dial connects to it.
func socket(t testing.TB) (path string, dial func(context.Context) (net.Conn, error)) {
	path = filepath.Join(t.TempDir(), "s")
	return path, func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", path) }
}

// serve runs a server of connections until stop is called, which waits for its end.
func serve(t testing.TB, path string, run func(context.Context, net.Listener) error) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, l) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("ended with %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Error("does not end")
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

var anyQuestion = &Question{Issuer: pki.IssuerID{1}, Items: []Item{{Form: 1, Serial: serial("G")}}}

func anyAnswer(q *Question) Answer {
	return Answer{Status: Successful, Generation: 7, ProducedAt: start, ThisUpdate: start, NextUpdate: start.Add(day), DER: q.append(nil)}
}

// Every question and answer comes over the link as it was.
func TestLinkForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		serials := rapid.Custom(func(t *rapid.T) pki.Serial {
			for {
				if s, err := pki.SerialFromDER(rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(t, "serial")); err == nil {
					return s
				}
			}
		})
		items := rapid.Custom(func(t *rapid.T) Item {
			return Item{rapid.SampledFrom(allForms).Draw(t, "form"), serials.Draw(t, "of")}
		})
		q := Question{Nonce: rapid.SliceOfN(rapid.Byte(), 0, MaxNonce).Draw(t, "nonce"), Items: rapid.SliceOfN(items, 1, MaxItems).Draw(t, "items")}
		copy(q.Issuer[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "issuer"))
		frame := q.append(nil)
		if int(binary.BigEndian.Uint16(frame)) != len(frame)-2 || len(frame)-2 > maxQuestion {
			t.Fatalf("length %x of %d", frame[:2], len(frame))
		}
		var got Question
		if err := got.read(frame[2:]); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(q, got, cmpopts.EquateEmpty(), cmp.AllowUnexported(pki.Serial{})); d != "" {
			t.Fatal(d)
		}
		moment := func(name string) time.Time { return time.Unix(rapid.Int64Range(-1<<36, 1<<37).Draw(t, name), 0).UTC() }
		a := Answer{Status: rapid.SampledFrom([]ResponseStatus{Successful, InternalError, TryLater, Unauthorized}).Draw(t, "status"),
			Unknown: rapid.Bool().Draw(t, "unknown"), Generation: rapid.Uint64().Draw(t, "generation"),
			ProducedAt: moment("produced"), ThisUpdate: moment("this"), NextUpdate: moment("next")}
		if a.Status == Successful {
			a.DER = rapid.SliceOfN(rapid.Byte(), 1, 4000).Draw(t, "der")
		}
		var back Answer
		if err := back.read(a.append(nil)[4:]); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(a, back, cmpopts.EquateEmpty()); d != "" {
			t.Fatal(d)
		}
	})
}

// What departs from the form in any way is refused.
func TestLinkRefuses(t *testing.T) {
	q := (&Question{Nonce: []byte{9}, Items: []Item{{0, serial("G")}}}).append(nil)[2:]
	at := func(i int, b byte) []byte { f := bytes.Clone(q); f[i] = b; return f }
	const nonce, count, form = 33, 35, 36
	for name, frame := range map[string][]byte{
		"empty": {}, "another version": at(0, 2), "cut": q[:len(q)-1], "too long": append(bytes.Clone(q), 0), "no item": append(bytes.Clone(q[:count]), 0),
		"more items than there are": at(count, 2), "a nonce of 129 octets": append(append(append(bytes.Clone(q[:nonce]), 129), make([]byte, 129)...), q[count:]...),
		"a nonce to the end": at(nonce, 255), "an unknown form": at(form, 4), "an unknown form with NULL": at(form, 0x84), "no serial": at(form+1, 0),
		"a serial of 21 octets": at(form+1, 21), "octets after the serial": at(len(q)-1, 1), "a serial that is not minimal": at(form+2, 0),
	} {
		if err := new(Question).read(frame); !errors.Is(err, errFrame) {
			t.Errorf("question, %s: %v", name, err)
		}
	}
	a := anyAnswer(anyQuestion)
	sound := a.append(nil)[4:]
	at = func(i int, b byte) []byte { f := bytes.Clone(sound); f[i] = b; return f }
	for name, frame := range map[string][]byte{
		"empty": {}, "cut": sound[:answerHeader-1], "successful without an answer": sound[:answerHeader], "an error with an answer": at(0, 3),
		"malformedRequest": append([]byte{1}, sound[1:answerHeader]...), "status 4": append([]byte{4}, sound[1:answerHeader]...),
		"sigRequired": append([]byte{5}, sound[1:answerHeader]...), "an unknown flag": at(1, 2),
	} {
		if err := new(Answer).read(frame); !errors.Is(err, errFrame) {
			t.Errorf("answer, %s: %v", name, err)
		}
	}
}

// The signer is replaced again and again under load: no question is lost, and each gets its own answer.
func TestLinkSignerRestarts(t *testing.T) {
	path, dial := socket(t)
	link := NewLink(dial, 4, 100)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var answered atomic.Int64
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				q := &Question{Nonce: fmt.Appendf(nil, "%d/%d", w, i), Items: anyQuestion.Items}
				limit, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				a, err := link.Ask(limit, q)
				cancel()
				if err != nil || !bytes.Equal(a.DER, q.append(nil)) {
					t.Errorf("question %s: %v %x", q.Nonce, err, a.DER)
					return
				}
				answered.Add(1)
			}
		})
	}
	for range 10 {
		stop := serve(t, path, func(ctx context.Context, l net.Listener) error { return ServeLink(ctx, l, 64, allowAll, anyAnswer) })
		before := answered.Load()
		for limit := time.Now().Add(10 * time.Second); answered.Load() < before+50 && time.Now().Before(limit); {
			time.Sleep(time.Millisecond)
		}
		stop()
		if answered.Load() < before+50 {
			t.Fatal("nothing is answered after a restart")
		}
	}
	stop := serve(t, path, func(ctx context.Context, l net.Listener) error { return ServeLink(ctx, l, 64, allowAll, anyAnswer) })
	cancel()
	wg.Wait()
	stop()
}

// A connection that was kept over a restart is noticed and made anew without a pause.
func TestLinkStaleConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link := NewLink(pipes(func(_ int, c net.Conn) {
			q, _ := readQuestion(c)
			a := anyAnswer(q)
			c.Write(a.append(nil)) // and goes away
		}), 1, 1)
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			begun := time.Now()
			if _, err := link.Ask(ctx, anyQuestion); err != nil || time.Since(begun) != 0 {
				t.Errorf("%v after %s", err, time.Since(begun))
			}
			cancel()
			synctest.Wait()
		}
	})
}

// pipes is a signer that answers on pipes by serve, one call for each connection.
func pipes(serve func(n int, c net.Conn)) func(context.Context) (net.Conn, error) {
	var n atomic.Int64
	return func(context.Context) (net.Conn, error) {
		a, b := net.Pipe()
		go func(n int) {
			defer b.Close()
			serve(n, b)
		}(int(n.Add(1)) - 1)
		return a, nil
	}
}

func readQuestion(c net.Conn) (*Question, error) {
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil, err
	}
	frame := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(c, frame); err != nil {
		return nil, err
	}
	q := new(Question)
	return q, q.read(frame)
}

// A signer that is broken in some way costs the question its time at most, and the link nothing.
func TestLinkBrokenSigner(t *testing.T) {
	for name, c := range map[string]struct {
		first func(net.Conn) // what the first connection does, the question having been read
		want  error          // nil: the question was repeated and answered
		took  time.Duration
	}{
		"goes away":               {func(net.Conn) {}, nil, 50 * time.Millisecond},
		"goes away in the middle": {func(c net.Conn) { a := anyAnswer(anyQuestion); c.Write(a.append(nil)[:20]) }, nil, 50 * time.Millisecond},
		"writes too much":         {func(c net.Conn) { c.Write([]byte{0xff, 0xff, 0xff, 0xff}) }, errFrame, 0},
		"writes too little":       {func(c net.Conn) { c.Write([]byte{0, 0, 0, 1, 0}) }, errFrame, 0},
		"writes nonsense":         {func(c net.Conn) { c.Write(append([]byte{0, 0, 0, 40}, bytes.Repeat([]byte{0xff}, 40)...)) }, errFrame, 0},
		"hangs":                   {func(c net.Conn) { c.Read(make([]byte, 1)) }, context.DeadlineExceeded, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				link := NewLink(pipes(func(n int, conn net.Conn) {
					for {
						q, err := readQuestion(conn)
						if err != nil {
							return
						}
						if n == 0 {
							c.first(conn)
							return
						}
						a := anyAnswer(q)
						conn.Write(a.append(nil))
						if string(q.Nonce) == "last" {
							return
						}
					}
				}), 1, 1)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				begun := time.Now()
				_, err := link.Ask(ctx, anyQuestion)
				took := time.Since(begun)
				switch {
				case c.want == nil && err != nil, c.want == errFrame && !errors.Is(err, errFrame), c.want != nil && err == nil, took != c.took:
					t.Errorf("%v after %s, want %v after %s", err, took, c.want, c.took)
				}
				again, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if a, err := link.Ask(again, &Question{Nonce: []byte("last"), Items: anyQuestion.Items}); err != nil || len(a.DER) == 0 {
					t.Errorf("the next question: %v", err)
				}
			})
		})
	}
}

// No more wait than may, the others are turned away at once; and whoever gave up no longer counts.
func TestLinkBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		link := NewLink(pipes(func(_ int, c net.Conn) {
			for {
				q, err := readQuestion(c)
				if err != nil {
					return
				}
				<-release
				a := anyAnswer(q)
				c.Write(a.append(nil))
				if string(q.Nonce) == "last" {
					return
				}
			}
		}), 2, 3)
		ask := func(ctx context.Context) error { _, err := link.Ask(ctx, anyQuestion); return err }
		results := make(chan error, 10)
		for range 5 { // two are asked, three wait
			go func() { results <- ask(context.Background()) }()
		}
		synctest.Wait()
		for range 3 {
			begun := time.Now()
			if err := ask(t.Context()); !errors.Is(err, ErrBusy) || time.Since(begun) != 0 {
				t.Errorf("one too many: %v", err)
			}
		}
		go func() { results <- ask(context.WithValue(context.Background(), urgent{}, true)) }() // waits all the same
		synctest.Wait()
		for range 6 {
			release <- struct{}{}
		}
		for range 6 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		limit, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go func() { results <- ask(context.Background()) }()
		go func() { results <- ask(context.Background()) }()
		synctest.Wait()
		for range 3 {
			go func() { results <- ask(limit) }()
		}
		for range 3 { // they wait, and give up
			if err := <-results; !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}
		go func() { results <- ask(context.Background()) }()
		synctest.Wait()
		close(release)
		for range 3 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		for range 2 { // ends the signer's goroutines
			if _, err := link.Ask(context.Background(), &Question{Nonce: []byte("last"), Items: anyQuestion.Items}); err != nil {
				t.Error(err)
			}
			synctest.Wait()
		}
	})
}

// The signer's side: peers that are refused, connections that are too many, frames that have not the form; and no goroutine is left behind.
func TestServeLink(t *testing.T) {
	path, dial := socket(t)
	var refuse atomic.Bool
	allow := func(net.Conn) error {
		if refuse.Load() {
			return errors.New("not you")
		}
		return nil
	}
	stop := serve(t, path, func(ctx context.Context, l net.Listener) error { return ServeLink(ctx, l, 2, allow, anyAnswer) })
	open := func() net.Conn {
		c := must(dial(t.Context()))
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(5 * time.Second))
		return c
	}
	closed := func(what string, c net.Conn) {
		t.Helper()
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: read %d octets, %v", what, n, err)
		}
	}
	answers := func(what string, c net.Conn) {
		t.Helper()
		if _, err := exchange(t.Context(), c, anyQuestion); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	refuse.Store(true)
	closed("a peer that is refused", open())
	refuse.Store(false)
	for name, frame := range map[string][]byte{"too long": {0xff, 0xff}, "nonsense": {0, 3, 1, 2, 3}, "empty": {0, 0}} {
		c := open()
		c.Write(frame)
		closed(name, c)
	}
	a, b := open(), open()
	answers("the first", a)
	answers("the second", b)
	closed("one too many", open())
	a.Close()
	for limit := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) { // its place becomes free
		c := open()
		if _, err := exchange(t.Context(), c, anyQuestion); err == nil {
			break
		} else if time.Now().After(limit) {
			t.Fatal(err)
		}
	}
	stop() // although connections are open
	closed("after the end", b)
}

// A listener that fails ends all connections, too.
func TestServeLinkListenerFails(t *testing.T) {
	path, dial := socket(t)
	l := must(net.Listen("unix", path))
	ended := make(chan error)
	go func() { ended <- ServeLink(t.Context(), l, 2, allowAll, anyAnswer) }()
	c := must(dial(t.Context()))
	defer c.Close()
	if _, err := exchange(t.Context(), c, anyQuestion); err != nil {
		t.Fatal(err)
	}
	l.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("waits for a connection that nobody closes")
	}
}
