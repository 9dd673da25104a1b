package responder

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"ocspd/pki"
)

var issuerA, issuerB = pki.IssuerID{0xa}, pki.IssuerID{0xb}

// A book writes down what happens, in order.
type book struct {
	mu    sync.Mutex
	lines []string
}

func (b *book) note(format string, args ...any) {
	b.mu.Lock()
	b.lines = append(b.lines, fmt.Sprintf(format, args...))
	b.mu.Unlock()
}

func (b *book) all() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.lines)
}

// patience is how long a test waits for what must happen, on a busy machine too.
const patience = 30 * time.Second

// await waits until the book holds a line, and says where it stands.
func (b *book) await(t testing.TB, line string) int {
	t.Helper()
	for limit := time.Now().Add(patience); time.Now().Before(limit); time.Sleep(time.Millisecond) {
		if i := slices.Index(b.all(), line); i >= 0 {
			return i
		}
	}
	t.Fatalf("%q does not happen; what does: %q", line, b.all())
	return 0
}

// feedKit is a feed that is served, with everything written down.
type feedKit struct {
	*Feed
	book
	t    testing.TB
	sign func(HeadRequest) HeadReply // of subscribers that come from now on
	dial func(context.Context) (net.Conn, error)
	stop func()
}

func newFeedKit(t testing.TB) *feedKit {
	k := &feedKit{t: t}
	path, dial := socket(t)
	k.dial = dial
	k.Feed = NewFeed(func(role Role, pid int, body []byte) {
		if body == nil {
			k.note("%s %d is gone", role, pid)
		} else {
			k.note("%s %d reports %s", role, pid, body)
		}
	})
	k.stop = serve(t, path, func(ctx context.Context, l net.Listener) error {
		return k.Serve(ctx, l, func(net.Conn, Role) (int, error) { return 42, nil })
	})
	return k
}

// subscribe follows the feed until the function that it returns is called.
func (k *feedKit) subscribe(role Role, name string, apply func(Change) error) (leave func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Subscribe(ctx, k.dial, Subscriber{Role: role, Apply: func(c Change) error {
			err := apply(c)
			k.note("%s %x %d-%d all=%v %d", name, c.Issuer[0], c.From, c.To, c.All, len(c.Serials))
			return err
		}, Report: func() []byte { return []byte(name) }, Sign: k.sign})
	}()
	leave = func() { cancel(); <-ended }
	k.t.Cleanup(leave)
	return leave
}

func takes(Change) error { return nil }

func (k *feedKit) publish(c Change) Delivery {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return k.Publish(ctx, c)
}

func (k *feedKit) want(what string, got, want Delivery) {
	k.t.Helper()
	if !errors.Is(got.Signer, want.Signer) || !errors.Is(got.Front, want.Front) || (got.Signer == nil) != (want.Signer == nil) || (got.Front == nil) != (want.Front == nil) {
		k.t.Errorf("%s: %+v, want %+v", what, got, want)
	}
}

// Signer is told before front; both are asked to confirm; whoever comes is told where everything stands; who is away is said to be.
func TestFeedOrder(t *testing.T) {
	k := newFeedKit(t)
	k.State(issuerA, 3)
	k.State(issuerB, 8)
	k.want("nobody there", k.publish(Change{Issuer: issuerA, From: 3, To: 4}), Delivery{ErrAbsent, ErrAbsent})
	k.subscribe(RoleFront, "front", takes)
	k.await(t, "front 42 reports front")
	k.await(t, "front a 0-4 all=true 0")
	k.await(t, "front b 0-8 all=true 0")
	k.want("front alone", k.publish(Change{Issuer: issuerA, From: 4, To: 5, Serials: []pki.Serial{serial("G"), serial("N")}}), Delivery{ErrAbsent, nil})
	k.await(t, "front a 4-5 all=false 2")
	leave := k.subscribe(RoleSigner, "signer", func(Change) error { time.Sleep(20 * time.Millisecond); return nil })
	k.await(t, "signer b 0-8 all=true 0")
	k.await(t, "signer a 0-5 all=true 0")
	k.want("both", k.publish(Change{Issuer: issuerA, From: 5, To: 6, All: true}), Delivery{})
	if s, f := k.await(t, "signer a 5-6 all=true 0"), k.await(t, "front a 5-6 all=true 0"); s > f {
		t.Error("front was told before signer had confirmed")
	}
	leave()
	k.await(t, "signer 42 is gone")
	k.want("signer left", k.publish(Change{Issuer: issuerA, From: 6, To: 7}), Delivery{ErrAbsent, nil})
	many := Change{Issuer: issuerB, From: 8, To: 9, Serials: make([]pki.Serial, MaxChanged+1)}
	k.want("too many to name", k.publish(many), Delivery{ErrAbsent, nil})
	k.await(t, "front b 8-9 all=true 0")
	k.stop() // although subscribers are there
}

// A change that is refused is not confirmed; front is told all the same, so that it does not go on giving the old status.
func TestFeedRefused(t *testing.T) {
	k := newFeedKit(t)
	k.subscribe(RoleSigner, "signer", func(c Change) error {
		if c.To == 2 {
			return errors.New("older than what was answered by")
		}
		return nil
	})
	k.subscribe(RoleFront, "front", takes)
	k.await(t, "signer 42 reports signer")
	k.await(t, "front 42 reports front")
	k.want("refused", k.publish(Change{Issuer: issuerA, From: 1, To: 2}), Delivery{ErrRefused, nil})
	k.want("taken", k.publish(Change{Issuer: issuerA, From: 2, To: 3}), Delivery{})
}

// A generation of one issuer that takes signer long does not keep another's change waiting; those of one issuer stay in order, and a reload is told alone.
func TestFeedIssuersApart(t *testing.T) {
	k := newFeedKit(t)
	slow, release := make(chan struct{}), make(chan struct{})
	k.subscribe(RoleSigner, "signer", func(c Change) error {
		if c.Issuer == issuerA && c.To == 2 {
			close(slow)
			<-release
		}
		return nil
	})
	k.subscribe(RoleFront, "front", takes)
	k.await(t, "signer 42 reports signer")
	k.await(t, "front 42 reports front")
	var wg sync.WaitGroup
	wg.Go(func() { k.want("the slow one", k.publish(Change{Issuer: issuerA, From: 1, To: 2}), Delivery{}) })
	<-slow
	wg.Go(func() {
		k.want("the next of its issuer", k.publish(Change{Issuer: issuerA, From: 2, To: 3}), Delivery{})
	})
	k.want("another issuer's", k.publish(Change{Issuer: issuerB, From: 1, To: 2}), Delivery{})
	wg.Go(func() { k.want("a reload", k.publish(Change{Reload: true, To: 1}), Delivery{}) })
	close(release)
	wg.Wait()
	b, second, third := k.await(t, "signer b 1-2 all=false 0"), k.await(t, "signer a 1-2 all=false 0"), k.await(t, "signer a 2-3 all=false 0")
	if b > second || second > third {
		t.Errorf("signer took the other issuer's change as number %d, the slow one as %d and the next as %d", b, second, third)
	}
}

// A signer that is slow uses up the time that there is, front is told all the same, and the late confirmation is not taken for the next one's.
func TestFeedSlowSigner(t *testing.T) {
	k := newFeedKit(t)
	first, release := true, make(chan struct{})
	k.subscribe(RoleSigner, "signer", func(Change) error {
		if first {
			first = false
			<-release
			return nil
		}
		return errors.New("no")
	})
	k.subscribe(RoleFront, "front", takes)
	k.await(t, "signer 42 reports signer")
	k.await(t, "front 42 reports front")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	k.want("slow", k.Publish(ctx, Change{Issuer: issuerA, From: 1, To: 2}), Delivery{context.DeadlineExceeded, nil})
	go func() { time.Sleep(20 * time.Millisecond); close(release) }()
	k.want("the next", k.publish(Change{Issuer: issuerA, From: 2, To: 3}), Delivery{ErrRefused, nil})
}

// A subscriber that does not read what it is told keeps nobody else waiting, neither when it comes nor later.
func TestFeedHangingSubscriber(t *testing.T) {
	k := newFeedKit(t)
	for n := range 5000 { // more than a socket's buffer takes
		k.State(pki.IssuerID{byte(n >> 8), byte(n), 1}, 1)
	}
	hung := must(k.dial(t.Context()))
	defer hung.Close()
	if err := writeFeed(hung, feedHello, []byte{byte(RoleSigner)}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	begun := time.Now()
	k.State(issuerA, 1)
	k.subscribe(RoleFront, "front", takes)
	k.await(t, "front a 0-1 all=true 0")
	if took := time.Since(begun); took > writeTime-time.Second {
		t.Errorf("another subscriber waited %s", took)
	}
	// The hanging one is given up when its time is over; front is told.
	k.want("with one that hangs", k.publish(Change{Issuer: issuerA, From: 1, To: 2}), Delivery{ErrAbsent, nil})
}

// Subscribers come and go while changes are published: each that stays gets all of them in order, or the state after what it missed.
func TestFeedComingAndGoing(t *testing.T) {
	k := newFeedKit(t)
	var at [3]uint64
	follower := func(i int) func(Change) error {
		return func(c Change) error {
			if c.Issuer != issuerA {
				return nil
			}
			if c.From != 0 && c.From != at[i] || c.To < at[i] {
				t.Errorf("follower %d stood at %d and is told %d-%d", i, at[i], c.From, c.To)
			}
			at[i] = c.To
			return nil
		}
	}
	k.State(issuerA, 1)
	for n := range 500 { // so that it takes some time to tell a newcomer
		k.State(pki.IssuerID{0xc, byte(n >> 8), byte(n)}, 1)
	}
	k.subscribe(RoleFront, "stays", follower(0))
	k.await(t, "stays a 0-1 all=true 0")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := 1; i < 3; i++ {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				leave := k.subscribe(RoleSigner, "comes", follower(i))
				time.Sleep(5 * time.Millisecond)
				leave()
			}
		})
	}
	const last = 300
	for n := uint64(2); n <= last; n++ {
		time.Sleep(time.Millisecond)
		k.publish(Change{Issuer: issuerA, From: n - 1, To: n, Serials: []pki.Serial{serialOf(int(n))}})
	}
	close(stop)
	wg.Wait()
	k.await(t, fmt.Sprintf("stays a %d-%d all=false 1", last-1, last))
}

// Keeper comes back: subscribers connect again by themselves and are told where everything stands.
func TestFeedKeeperRestarts(t *testing.T) {
	path, dial := socket(t)
	k := &feedKit{t: t, dial: dial}
	k.subscribe(RoleFront, "front", takes)
	for n := uint64(1); n <= 3; n++ {
		k.Feed = NewFeed(func(Role, int, []byte) {})
		k.State(issuerA, n)
		stop := serve(t, path, func(ctx context.Context, l net.Listener) error {
			return k.Serve(ctx, l, func(net.Conn, Role) (int, error) { return 1, nil })
		})
		k.await(t, fmt.Sprintf("front a 0-%d all=true 0", n))
		stop()
	}
}

// The form of changes, and what departs from it.
func TestFeedForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Change{From: rapid.Uint64().Draw(t, "from"), To: rapid.Uint64().Draw(t, "to"), All: rapid.Bool().Draw(t, "all")}
		for range rapid.IntRange(0, 20).Draw(t, "count") {
			c.Serials = append(c.Serials, serialOf(int(rapid.Int64().Draw(t, "serial"))))
		}
		var back Change
		if err := back.read(c.append(nil)); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c, back, cmpopts.EquateEmpty(), cmp.AllowUnexported(pki.Serial{})); d != "" {
			t.Fatal(d)
		}
	})
	sound := (&Change{Issuer: issuerA, From: 1, To: 2, Serials: []pki.Serial{serial("G")}}).append(nil)
	at := func(i int, b byte) []byte { f := bytes.Clone(sound); f[i] = b; return f }
	for name, frame := range map[string][]byte{
		"empty": {}, "cut": sound[:len(sound)-1], "too long": append(bytes.Clone(sound), 0), "what is 4": at(48, 4), "more serials than there are": at(52, 2),
		"more serials than may be": at(50, 0xff), "no serial": at(53, 0), "a serial of 21 octets": at(53, 21), "octets after the serial": at(len(sound)-1, 1),
	} {
		if err := new(Change).read(frame); !errors.Is(err, errFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	most := Change{Serials: slices.Repeat([]pki.Serial{serial("L")}, MaxChanged)}
	if frame := most.append(nil); len(frame) > maxFeed || most.read(frame) != nil {
		t.Error("the largest change does not fit")
	}
}

// The form of what subscribers send: anything else ends the connection, and keeper goes on.
func TestFeedRefusesForms(t *testing.T) {
	k := newFeedKit(t)
	hello := []byte{0, 0, 0, 2, feedHello, 'f'}
	for name, octets := range map[string][]byte{
		"no hello":           {0, 0, 0, 2, feedReport, 'f'},
		"no role":            {0, 0, 0, 2, feedHello, 'x'},
		"a long hello":       {0, 0, 0, 200, feedHello},
		"an empty message":   append(bytes.Clone(hello), 0, 0, 0, 0),
		"a huge message":     append(bytes.Clone(hello), 0xff, 0xff, 0xff, 0xff),
		"an unknown type":    append(bytes.Clone(hello), 0, 0, 0, 1, 9),
		"a second hello":     append(bytes.Clone(hello), hello...),
		"an ack that is cut": append(bytes.Clone(hello), 0, 0, 0, 2, feedAck, 1),
		"an ack that says 2": append(append(bytes.Clone(hello), 0, 0, 0, 42, feedAck), append(make([]byte, 40), 2)...),
	} {
		c := must(k.dial(t.Context()))
		c.SetDeadline(time.Now().Add(4 * time.Second)) // less than a subscriber has for its hello
		c.Write(octets)
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
	}
	// Acks that nobody waits for are of no consequence, however many.
	c := must(k.dial(t.Context()))
	defer c.Close()
	c.Write(hello)
	for n := range 5000 {
		if err := writeFeed(c, feedAck, append(binary.BigEndian.AppendUint64(make([]byte, 32), uint64(n)), 1)); err != nil {
			t.Fatalf("ack %d: %v", n, err)
		}
	}
	if err := writeFeed(c, feedReport, []byte("still there")); err != nil {
		t.Fatal(err)
	}
	k.await(t, "front 42 reports still there")
}

// Signer is asked for signatures, and front never is; a request and each kind of reply come over as they are.
func TestFeedSign(t *testing.T) {
	k := newFeedKit(t)
	request := HeadRequest{Earlier: 7, Size: 9, Root: [32]byte{1}, Proof: [][32]byte{{2}, {3}}}
	sign := func() (HeadReply, error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return k.Sign(ctx, request)
	}
	k.sign = func(HeadRequest) HeadReply {
		t.Error("front is asked")
		return HeadReply{Signature: []byte("front's")}
	}
	k.subscribe(RoleFront, "front", takes)
	k.await(t, "front 42 reports front")
	if r, err := sign(); !errors.Is(err, ErrAbsent) {
		t.Errorf("without signer: %+v, %v", r, err)
	}
	var reply atomic.Pointer[HeadReply] // nil: signer takes its time, until release
	release := make(chan struct{})
	k.sign = func(h HeadRequest) HeadReply {
		if d := cmp.Diff(request, h); d != "" {
			t.Error(d)
		}
		r := reply.Load()
		if r == nil {
			<-release
			return HeadReply{}
		}
		return *r
	}
	leave := k.subscribe(RoleSigner, "signer", takes)
	k.await(t, "signer 42 reports signer")
	for _, want := range []HeadReply{
		{Signature: []byte("signature")}, {Earlier: 8}, {Refused: true, Reason: "cut"}, {Reason: "token is down"},
		{Refused: true, Reason: string(bytes.Repeat([]byte("x"), maxReason))},
	} {
		reply.Store(&want)
		if r, err := sign(); err != nil || cmp.Diff(want, r) != "" {
			t.Errorf("%+v, %v, want %+v", r, err, want)
		}
	}

	// A signature that takes its time keeps no change from being applied, and no second head is signed meanwhile.
	reply.Store(nil)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := k.Sign(ctx, request); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a signature that takes too long: %v", err)
	}
	k.want("meanwhile", k.publish(Change{Issuer: issuerA, From: 1, To: 2}), Delivery{})
	if r, err := sign(); err != nil || r.Reason != "another head is being signed" {
		t.Errorf("a second one: %+v, %v", r, err)
	}
	close(release)
	leave()
	if _, err := sign(); !errors.Is(err, ErrAbsent) {
		t.Errorf("when signer has left: %v", err)
	}
}

// Whoever sends what is no reply, or a reply in front's name, is cut off.
func TestFeedSignRefuses(t *testing.T) {
	good := HeadReply{Signature: []byte("s")}
	for name, c := range map[string]struct {
		role    Role
		payload []byte
	}{
		"from front":     {RoleFront, good.append(nil, 9)},
		"short":          {RoleSigner, make([]byte, 16)},
		"no signature":   {RoleSigner, (&HeadReply{}).append(nil, 9)[:8+1+8]},
		"another kind":   {RoleSigner, append(binary.BigEndian.AppendUint64(nil, 9), 4, 0, 0, 0, 0, 0, 0, 0, 0)},
		"too long":       {RoleSigner, append(good.append(nil, 9), make([]byte, maxReason)...)},
		"prove and more": {RoleSigner, append((&HeadReply{Earlier: 3}).append(nil, 9), 1)},
	} {
		if name == "no signature" {
			c.payload[8] = headSigned
		}
		k := newFeedKit(t)
		conn, err := k.dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(writeFeed(conn, feedHello, []byte{byte(c.role)}), writeFeed(conn, feedSigned, c.payload)); err != nil {
			t.Fatal(err)
		}
		k.await(t, c.role.String()+" 42 is gone")
		conn.Close()
	}
	// And a subscriber takes no request that is none, nor one that it did not ask for.
	request := HeadRequest{Size: 1, Proof: make([][32]byte, maxProof)}
	for name, c := range map[string]struct {
		sign    func(HeadRequest) HeadReply
		payload []byte
	}{
		"front":          {nil, request.append(nil)},
		"too many":       {func(HeadRequest) HeadReply { return good }, append(request.append(nil)[:48], byte(maxProof+1))},
		"a hash is lost": {func(HeadRequest) HeadReply { return good }, request.append(nil)[:100]},
	} {
		ours, theirs := net.Pipe()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			Subscriber{Role: RoleFront, Apply: takes, Report: func() []byte { return nil }, Sign: c.sign}.follow(context.Background(), theirs)
		}()
		go func() {
			for {
				if _, _, err := readFeed(ours, maxFeed); err != nil {
					return
				}
			}
		}()
		writeFeed(ours, feedHead, c.payload)
		select {
		case <-ended:
		case <-time.After(patience):
			t.Errorf("%s: the connection goes on", name)
		}
		ours.Close()
	}
}
