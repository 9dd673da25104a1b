package responder

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"ocspd/pki"
)

// The feed carries what changed from keeper to signer and front, over a unix socket to which they connect, and reports of
// theirs back. Each message has its length (4 octets) and a type (1) before it; the form is fixed, and whatever departs from it ends the connection.
//
//	change: issuer 32 | from 8 | to 8 | what 1 (0 these serials, 1 all, 2 reload) | count 4 | count × (serial length 1, serial 20)
//	hello:  role 1                      first message of a subscriber
//	ack:    issuer 32 | to 8 | ok 1 | reason, at most 1000 octets     for each change, in order
//	report: what the role tells of itself; opaque here
const (
	feedChange = 1
	feedHello  = 2
	feedAck    = 3
	feedReport = 4

	maxReport = 64 << 10
	maxReason = 1000
	maxFeed   = 1 << 20

	writeTime  = 5 * time.Second  // for one message, which a socket's buffer nearly always takes at once
	silentTime = 15 * time.Second // a subscriber that reports nothing for so long is gone: it should every second
)

// MaxChanged is the largest number of serials in a Change; whoever has more says All.
const MaxChanged = 10_000

// A Change says that an issuer's generation went from From to To. From is 0 when the state is told to a new subscriber. With Reload set it is about no
// issuer: the configuration is to be read again, and To only tells one such change from another.
type Change struct {
	Reload   bool
	Issuer   pki.IssuerID
	From, To uint64
	All      bool         // every status may have changed
	Serials  []pki.Serial // these have, unless All
}

// Role of a subscriber.
type Role byte

// The roles that subscribe.
const (
	RoleFront  Role = 'f'
	RoleSigner Role = 's'
)

func (r Role) String() string {
	switch r {
	case RoleFront:
		return "front"
	case RoleSigner:
		return "signer"
	}
	return "no role"
}

func (c *Change) append(b []byte) []byte {
	b = append(b, c.Issuer[:]...)
	b = binary.BigEndian.AppendUint64(b, c.From)
	b = binary.BigEndian.AppendUint64(b, c.To)
	b = append(b, c.what())
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.Serials)))
	for i := range c.Serials {
		b = appendSerial(b, &c.Serials[i])
	}
	return b
}

func (c *Change) what() byte {
	switch {
	case c.Reload:
		return 2
	case c.All:
		return 1
	}
	return 0
}

func (c *Change) read(s cryptobyte.String) error {
	var what uint8
	var count uint32
	if !s.CopyBytes(c.Issuer[:]) || !s.ReadUint64(&c.From) || !s.ReadUint64(&c.To) || !s.ReadUint8(&what) || what > 2 ||
		!s.ReadUint32(&count) || count > MaxChanged || len(s) != int(count)*(1+pki.MaxSerial) {
		return errFrame
	}
	c.All, c.Reload, c.Serials = what == 1, what == 2, make([]pki.Serial, 0, count)
	for ; count > 0; count-- {
		serial, ok := readSerial(s[:1+pki.MaxSerial])
		if !ok {
			return errFrame
		}
		c.Serials = append(c.Serials, serial)
		s = s[1+pki.MaxSerial:]
	}
	return nil
}

func writeFeed(c net.Conn, kind byte, payload []byte) error {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 5+len(payload)), uint32(1+len(payload)))
	b = append(append(b, kind), payload...)
	c.SetWriteDeadline(time.Now().Add(writeTime))
	_, err := c.Write(b)
	return err
}

func readFeed(c net.Conn, max uint32) (kind byte, payload cryptobyte.String, err error) {
	var length [4]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n < 1 || n > max {
		return 0, nil, errFrame
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		return 0, nil, err
	}
	return b[0], b[1:], nil
}

// Errors of a Delivery.
var (
	ErrAbsent  = errors.New("is not connected")
	ErrRefused = errors.New("refused the change")
)

// A Delivery says which roles confirmed a change; nil is a confirmation.
type Delivery struct{ Signer, Front error }

// Feed tells subscribers of changes. All methods are safe for concurrent use.
type Feed struct {
	report func(role Role, pid int, body []byte) // body nil: the subscriber is gone

	publishing sync.Mutex // one change at a time: all subscribers hear of changes in one order
	mu         sync.Mutex // never held while anything is written
	latest     map[pki.IssuerID]uint64
	subs       map[*subscriber]bool
}

type subscriber struct {
	conn    net.Conn
	role    Role
	pid     int
	gone    chan struct{}
	writing sync.Mutex // held while messages are written, so that they stay whole and in order

	mu      sync.Mutex
	awaited Change     // whose ack is waited for
	acked   chan error // takes what came of it; nil when no ack is waited for
}

type ack struct {
	issuer pki.IssuerID
	to     uint64
	err    error // ErrRefused, with the subscriber's reason
}

// NewFeed makes a feed; report is called with what subscribers tell of themselves, from their goroutines.
func NewFeed(report func(role Role, pid int, body []byte)) *Feed {
	return &Feed{report: report, latest: map[pki.IssuerID]uint64{}, subs: map[*subscriber]bool{}}
}

// Serve takes subscribers on l until ctx ends. allow refuses a peer or names its process.
func (f *Feed) Serve(ctx context.Context, l net.Listener, allow func(net.Conn) (pid int, err error)) error {
	const most = 16
	return serveConns(ctx, l, most, func(c net.Conn) error {
		pid, err := allow(c)
		if err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		kind, payload, err := readFeed(c, 16)
		if err != nil || kind != feedHello || len(payload) != 1 || Role(payload[0]) != RoleFront && Role(payload[0]) != RoleSigner {
			return errFrame
		}
		s := &subscriber{conn: c, role: Role(payload[0]), pid: pid, gone: make(chan struct{})}
		defer close(s.gone)
		defer f.remove(s)
		// What it acknowledges must be read while it is told, or both sides would wait for the other to read.
		var telling sync.WaitGroup
		defer telling.Wait()
		defer c.Close()
		telling.Go(func() {
			if f.add(s) != nil {
				c.Close()
			}
		})
		return f.listen(s)
	})
}

// add tells a new subscriber where everything stands. A change that is published meanwhile waits for that, so that none falls between.
func (f *Feed) add(s *subscriber) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	f.mu.Lock()
	f.subs[s] = true
	latest := maps.Clone(f.latest)
	f.mu.Unlock()
	for issuer, to := range latest {
		c := Change{Issuer: issuer, To: to, All: true}
		if err := writeFeed(s.conn, feedChange, c.append(nil)); err != nil {
			return err
		}
	}
	return nil
}

func (f *Feed) remove(s *subscriber) {
	f.mu.Lock()
	delete(f.subs, s)
	f.mu.Unlock()
	f.report(s.role, s.pid, nil)
}

func (f *Feed) listen(s *subscriber) error {
	for {
		s.conn.SetReadDeadline(time.Now().Add(silentTime))
		kind, payload, err := readFeed(s.conn, maxReport+1)
		if err != nil {
			return err
		}
		switch kind {
		case feedReport:
			f.report(s.role, s.pid, payload)
		case feedAck:
			var a ack
			var ok uint8
			if !payload.CopyBytes(a.issuer[:]) || !payload.ReadUint64(&a.to) || !payload.ReadUint8(&ok) || ok > 1 || len(payload) > maxReason {
				return errFrame
			}
			if ok == 0 {
				a.err = fmt.Errorf("%w: %s", ErrRefused, strings.ToValidUTF8(string(payload), "?"))
			}
			s.confirm(a)
		default:
			return errFrame
		}
	}
}

// State sets where an issuer stands without telling anybody: for the start, before Serve.
func (f *Feed) State(issuer pki.IssuerID, generation uint64) {
	f.mu.Lock()
	f.latest[issuer] = generation
	f.mu.Unlock()
}

// Publish tells signer first, so that it answers by the new generation, and then front, which drops what changed. A reload that signer refuses is not
// told to front. It waits
// for each until ctx ends, and for front, which is quick, a second when signer has used that time up. Whoever is not there is told when it comes.
func (f *Feed) Publish(ctx context.Context, c Change) Delivery {
	f.publishing.Lock()
	defer f.publishing.Unlock()
	if len(c.Serials) > MaxChanged {
		c.All, c.Serials = true, nil
	}
	f.mu.Lock()
	if !c.Reload {
		f.latest[c.Issuer] = c.To
	}
	subs := slices.Collect(maps.Keys(f.subs))
	f.mu.Unlock()
	d := Delivery{Signer: tellAll(ctx, subs, RoleSigner, c)}
	if c.Reload && errors.Is(d.Signer, ErrRefused) {
		d.Front = ErrRefused // it keeps the configuration that signer keeps
		return d
	}
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
	}
	d.Front = tellAll(ctx, subs, RoleFront, c)
	return d
}

// tellAll tells all subscribers of a role at once, so that one that hangs does not keep the others from hearing.
func tellAll(ctx context.Context, subs []*subscriber, role Role, c Change) error {
	results := make(chan error, len(subs))
	told := 0
	for _, s := range subs {
		if s.role == role {
			told++
			go func() { results <- s.tell(ctx, c) }()
		}
	}
	if told == 0 {
		return ErrAbsent
	}
	var err error
	for range told {
		if e := <-results; e != nil {
			err = e
		}
	}
	return err
}

func (s *subscriber) tell(ctx context.Context, c Change) error {
	acked := make(chan error, 1)
	s.mu.Lock()
	s.awaited, s.acked = c, acked
	s.mu.Unlock()
	s.writing.Lock()
	err := writeFeed(s.conn, feedChange, c.append(nil))
	s.writing.Unlock()
	if err != nil {
		s.conn.Close() // it comes back and is told where everything stands
		return ErrAbsent
	}
	select {
	case err := <-acked:
		return err
	case <-s.gone:
		return ErrAbsent
	case <-ctx.Done():
		return fmt.Errorf("did not confirm: %w", ctx.Err())
	}
}

// confirm passes on the ack that tell waits for. Others are of no interest: they come late, or answer what add told.
func (s *subscriber) confirm(a ack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.acked != nil && a.issuer == s.awaited.Issuer && a.to == s.awaited.To {
		s.acked <- a.err
		s.acked = nil
	}
}

// Subscribe follows a feed until ctx ends and connects again whenever it breaks. apply is called for each change, in order, and its error
// tells keeper that the change was not taken. report is sent once a second, at most 64 KiB.
func Subscribe(ctx context.Context, dial func(context.Context) (net.Conn, error), role Role, apply func(Change) error, report func() []byte) {
	for ctx.Err() == nil {
		if c, err := dial(ctx); err == nil {
			follow(ctx, c, role, apply, report)
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func follow(ctx context.Context, c net.Conn, role Role, apply func(Change) error, report func() []byte) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer c.Close()
	var writing sync.Mutex
	write := func(kind byte, payload []byte) error {
		writing.Lock()
		defer writing.Unlock()
		return writeFeed(c, kind, payload)
	}
	if write(feedHello, []byte{byte(role)}) != nil {
		return
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for write(feedReport, report()) == nil {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
		c.Close()
	}()
	for {
		kind, payload, err := readFeed(c, maxFeed)
		var change Change
		if err != nil || kind != feedChange || change.read(payload) != nil {
			return
		}
		a := binary.BigEndian.AppendUint64(change.Issuer[:len(change.Issuer):len(change.Issuer)], change.To)
		if err := apply(change); err != nil {
			a = append(append(a, 0), err.Error()[:min(len(err.Error()), maxReason)]...)
		} else {
			a = append(a, 1)
		}
		if write(feedAck, a) != nil {
			return
		}
	}
}
