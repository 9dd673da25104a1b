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
//	change: issuer 32 | from 8 | to 8 | what 1 (0 these serials, 1 all, 2 reload, 3 try) | count 4 | count × (serial length 1, serial 20)
//	hello:  role 1                      first message of a subscriber
//	ack:    issuer 32 | to 8 | ok 1 | reason, at most 1000 octets     for each change, in the order of its issuer's
//	report: what the role tells of itself; opaque here
//	head:   earlier 8 | size 8 | root 32 | count 1 | count × hash 32     to signer alone: sign this head of keeper's log
//	signed: size 8 | what 1 (0 failed, 1 signed, 2 prove from, 3 refused) | earlier 8 | the signature, or a reason of at most 1000 octets     for each head
const (
	feedChange = 1
	feedHello  = 2
	feedAck    = 3
	feedReport = 4
	feedHead   = 5
	feedSigned = 6

	maxReport = 64 << 10
	maxProof  = 128 // hashes; a log of 2^63 records needs 64
	maxReason = 1000
	maxFeed   = 1 << 20

	writeTime  = 5 * time.Second  // for one message, which a socket's buffer nearly always takes at once
	silentTime = 15 * time.Second // a subscriber that reports nothing for so long is gone: it should every second
)

// MaxChanged is the largest number of serials in a Change; whoever has more says All.
const MaxChanged = 10_000

// A Change says that an issuer's generation went from From to To. From is 0 when the state is told to a new subscriber. With Reload set it is about no
// issuer: the configuration is to be read again, and To only tells one such change from another. With Try set besides, whatever it comes to is to be thrown
// away: front, which hears last of a reload, says whether it could take it.
type Change struct {
	Reload   bool
	Try      bool // with Reload
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
	case c.Try:
		return 3
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
	if !s.CopyBytes(c.Issuer[:]) || !s.ReadUint64(&c.From) || !s.ReadUint64(&c.To) || !s.ReadUint8(&what) || what > 3 ||
		!s.ReadUint32(&count) || count > MaxChanged || len(s) != int(count)*(1+pki.MaxSerial) {
		return errFrame
	}
	c.All, c.Reload, c.Try, c.Serials = what == 1, what >= 2, what == 3, make([]pki.Serial, 0, count)
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

// A HeadRequest asks signer for its signature under a head of keeper's log: its size, its root, and the proof (RFC 6962 section 2.1.2) that it
// continues the log as it was at an earlier size.
type HeadRequest struct {
	Earlier, Size uint64
	Root          [32]byte
	Proof         [][32]byte
}

// A HeadReply is a signature, or a reason why there is none: it could not be made now, or is Refused. Where signer last signed a head of another size
// than the proof begins at, Earlier is that size, and there is neither.
type HeadReply struct {
	Signature []byte
	Earlier   uint64
	Refused   bool
	Reason    string
}

func (h *HeadRequest) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, h.Earlier)
	b = binary.BigEndian.AppendUint64(b, h.Size)
	b = append(append(b, h.Root[:]...), byte(len(h.Proof)))
	for _, p := range h.Proof {
		b = append(b, p[:]...)
	}
	return b
}

func (h *HeadRequest) read(s cryptobyte.String) error {
	var count uint8
	if !s.ReadUint64(&h.Earlier) || !s.ReadUint64(&h.Size) || !s.CopyBytes(h.Root[:]) || !s.ReadUint8(&count) || count > maxProof ||
		len(s) != int(count)*len(h.Root) {
		return errFrame
	}
	h.Proof = make([][32]byte, count)
	for i := range h.Proof {
		s.CopyBytes(h.Proof[i][:])
	}
	return nil
}

// What a reply is.
const (
	headFailed  = 0
	headSigned  = 1
	headProve   = 2
	headRefused = 3
)

func (r *HeadReply) append(b []byte, size uint64) []byte {
	what, rest := byte(headFailed), []byte(r.Reason[:min(len(r.Reason), maxReason)])
	switch {
	case r.Refused:
		what = headRefused
	case len(r.Signature) > 0:
		what, rest = headSigned, r.Signature
	case r.Earlier > 0:
		what, rest = headProve, nil
	}
	b = append(binary.BigEndian.AppendUint64(b, size), what)
	return append(binary.BigEndian.AppendUint64(b, r.Earlier), rest...)
}

func (r *HeadReply) read(s cryptobyte.String) (size uint64, err error) {
	var what uint8
	if !s.ReadUint64(&size) || !s.ReadUint8(&what) || !s.ReadUint64(&r.Earlier) || len(s) > maxReason {
		return 0, errFrame
	}
	switch {
	case what == headFailed || what == headRefused:
		r.Refused = what == headRefused
		r.Reason = strings.ToValidUTF8(string(s), "?")
	case what == headSigned && len(s) > 0:
		r.Signature = s
	case what != headProve || len(s) > 0:
		return 0, errFrame
	}
	return size, nil
}

// Errors of a Delivery, and of Feed.Sign.
var (
	ErrAbsent  = errors.New("is not connected")
	ErrRefused = errors.New("refused the change")
)

// A Delivery says which roles confirmed a change; nil is a confirmation.
type Delivery struct{ Signer, Front error }

// Feed tells subscribers of changes. All methods are safe for concurrent use.
type Feed struct {
	report func(role Role, pid int, body []byte) // body nil: the subscriber is gone

	publishing sync.RWMutex                 // of a reload, which is told alone, the writing side
	mu         sync.Mutex                   // never held while anything is written
	order      map[pki.IssuerID]*sync.Mutex // one change of an issuer at a time: all subscribers hear of its changes in one order
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
	awaited map[pki.IssuerID]awaited // the acks that are waited for
	head    uint64                   // size of the head whose signature is waited for
	signed  chan HeadReply           // takes the reply; nil when none is waited for
}

// awaited is an ack of the change of an issuer to a generation.
type awaited struct {
	to    uint64
	acked chan error // takes what came of it
}

type ack struct {
	issuer pki.IssuerID
	to     uint64
	err    error // ErrRefused, with the subscriber's reason
}

// NewFeed makes a feed; report is called with what subscribers tell of themselves, from their goroutines.
func NewFeed(report func(role Role, pid int, body []byte)) *Feed {
	return &Feed{report: report, order: map[pki.IssuerID]*sync.Mutex{}, latest: map[pki.IssuerID]uint64{}, subs: map[*subscriber]bool{}}
}

// Serve takes subscribers on l until ctx ends. allow refuses a peer in the role that it says to have, or names its process.
func (f *Feed) Serve(ctx context.Context, l net.Listener, allow func(c net.Conn, role Role) (pid int, err error)) error {
	const most, ofOne = 16, 12 // a front that was taken over and holds all that it can get must not keep signer from hearing what was revoked
	return serveConns(ctx, l, most, ofOne, func(c net.Conn) error {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		kind, payload, err := readFeed(c, 16)
		if err != nil || kind != feedHello || len(payload) != 1 || Role(payload[0]) != RoleFront && Role(payload[0]) != RoleSigner {
			return errFrame
		}
		pid, err := allow(c, Role(payload[0]))
		if err != nil {
			return err
		}
		s := &subscriber{conn: c, role: Role(payload[0]), pid: pid, gone: make(chan struct{}), awaited: map[pki.IssuerID]awaited{}}
		defer close(s.gone)
		defer f.remove(s)
		// What it acknowledges must be read while it is told, or both sides would wait for the other to read.
		var telling sync.WaitGroup
		defer telling.Wait()
		defer c.Close()
		tell := f.add(s)
		telling.Go(func() {
			if tell() != nil {
				c.Close()
			}
		})
		return f.listen(s)
	})
}

// add takes a new subscriber, who is then to be told where everything stands. A change that is published meanwhile waits for that, so that none
// falls between.
func (f *Feed) add(s *subscriber) (tell func() error) {
	s.writing.Lock()
	f.mu.Lock()
	f.subs[s] = true
	latest := maps.Clone(f.latest)
	f.mu.Unlock()
	return func() error {
		defer s.writing.Unlock()
		for issuer, to := range latest {
			c := Change{Issuer: issuer, To: to, All: true}
			if err := writeFeed(s.conn, feedChange, c.append(nil)); err != nil {
				return err
			}
		}
		return nil
	}
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
		case feedSigned:
			var r HeadReply
			size, err := r.read(payload)
			if err != nil || s.role != RoleSigner {
				return errFrame
			}
			s.replied(size, r)
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

// Publish tells signer first, so that it answers by the new generation, and then front, which drops what changed. A reload is tried by front before, and one
// that either refuses is told to nobody else. It waits
// for each until ctx ends, and for front, which is quick, a second when signer has used that time up. Whoever is not there is told when it comes.
func (f *Feed) Publish(ctx context.Context, c Change) Delivery {
	defer f.turn(c)()
	if len(c.Serials) > MaxChanged {
		c.All, c.Serials = true, nil
	}
	f.mu.Lock()
	if !c.Reload {
		f.latest[c.Issuer] = c.To
	}
	subs := slices.Collect(maps.Keys(f.subs))
	f.mu.Unlock()
	if c.Reload {
		try := c
		try.Try = true
		if err := tellAll(ctx, subs, RoleFront, try); errors.Is(err, ErrRefused) {
			return Delivery{Signer: ErrAbsent, Front: err}
		}
	}
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

// turn waits until a change may be told: one of an issuer whose generation takes a subscriber long does not keep those of others.
func (f *Feed) turn(c Change) (done func()) {
	if c.Reload {
		f.publishing.Lock()
		return f.publishing.Unlock
	}
	f.publishing.RLock()
	f.mu.Lock()
	order := f.order[c.Issuer]
	if order == nil {
		order = new(sync.Mutex)
		f.order[c.Issuer] = order
	}
	f.mu.Unlock()
	order.Lock()
	return func() { order.Unlock(); f.publishing.RUnlock() }
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
	s.awaited[c.Issuer] = awaited{c.To, acked}
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
	if w, ok := s.awaited[a.issuer]; ok && a.to == w.to {
		w.acked <- a.err
		delete(s.awaited, a.issuer)
	}
}

// Sign has signer sign a head, and waits for its reply until ctx ends. An error says that there is none: ErrAbsent, or that of ctx. One request is under
// way at a time.
func (f *Feed) Sign(ctx context.Context, h HeadRequest) (HeadReply, error) {
	f.mu.Lock()
	var signer *subscriber
	for s := range f.subs {
		if s.role == RoleSigner {
			signer = s
		}
	}
	f.mu.Unlock()
	if signer == nil {
		return HeadReply{}, ErrAbsent
	}
	return signer.sign(ctx, h)
}

func (s *subscriber) sign(ctx context.Context, h HeadRequest) (HeadReply, error) {
	reply := make(chan HeadReply, 1)
	s.mu.Lock()
	s.head, s.signed = h.Size, reply
	s.mu.Unlock()
	s.writing.Lock()
	err := writeFeed(s.conn, feedHead, h.append(nil))
	s.writing.Unlock()
	if err != nil {
		s.conn.Close()
		return HeadReply{}, ErrAbsent
	}
	select {
	case r := <-reply:
		return r, nil
	case <-s.gone:
		return HeadReply{}, ErrAbsent
	case <-ctx.Done():
		return HeadReply{}, fmt.Errorf("did not answer: %w", ctx.Err())
	}
}

// replied passes on the reply that sign waits for; one that comes late is of no interest.
func (s *subscriber) replied(size uint64, r HeadReply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.signed != nil && size == s.head {
		s.signed <- r
		s.signed = nil
	}
}

// A Subscriber is what a role does with a feed.
type Subscriber struct {
	Role   Role
	Apply  func(Change) error          // is called for each change, of an issuer in order, of several at once; its error tells keeper that the change was not taken
	Report func() []byte               // is sent once a second, at most 64 KiB
	Sign   func(HeadRequest) HeadReply // is called for each head of keeper's log, one at a time; nil: being asked is an error
}

// Subscribe follows a feed until ctx ends and connects again whenever it breaks.
func Subscribe(ctx context.Context, dial func(context.Context) (net.Conn, error), s Subscriber) {
	for ctx.Err() == nil {
		if c, err := dial(ctx); err == nil {
			s.follow(ctx, c)
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (s Subscriber) follow(ctx context.Context, c net.Conn) {
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
	if write(feedHello, []byte{byte(s.Role)}) != nil {
		return
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for write(feedReport, s.Report()) == nil {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
		c.Close()
	}()
	under := &changes{last: map[pki.IssuerID]chan struct{}{}, room: make(chan struct{}, maxChanges)}
	defer under.wg.Wait()
	signing := make(chan struct{}, 1) // holds a token while a head is being signed, which a slow token must not make changes wait for
	for {
		kind, payload, err := readFeed(c, maxFeed)
		if err != nil {
			return
		}
		switch {
		case kind == feedChange:
			err = s.change(payload, write, under)
		case kind == feedHead && s.Sign != nil:
			err = s.head(payload, write, signing, &wg)
		default:
			err = errFrame
		}
		if err != nil {
			return
		}
	}
}

const (
	maxChanges = 16   // that a subscriber takes at once
	maxIssuers = 1024 // of which it knows a last change
)

// changes are those under way. A big generation of one issuer does not keep a revocation of another waiting.
type changes struct {
	wg   sync.WaitGroup
	room chan struct{}
	last map[pki.IssuerID]chan struct{} // closed when the issuer's last change was taken
}

func (s Subscriber) change(payload cryptobyte.String, write func(byte, []byte) error, under *changes) error {
	var change Change
	if err := change.read(payload); err != nil {
		return err
	}
	if change.Reload || len(under.last) >= maxIssuers {
		under.wg.Wait()
		clear(under.last)
	}
	if change.Reload {
		return s.take(change, write)
	}
	under.room <- struct{}{}
	before, done := under.last[change.Issuer], make(chan struct{})
	under.last[change.Issuer] = done
	under.wg.Go(func() {
		defer func() { close(done); <-under.room }()
		if before != nil {
			<-before
		}
		s.take(change, write) // a connection that is broken ends the reading, too
	})
	return nil
}

func (s Subscriber) take(change Change, write func(byte, []byte) error) error {
	a := binary.BigEndian.AppendUint64(change.Issuer[:len(change.Issuer):len(change.Issuer)], change.To)
	if err := s.Apply(change); err != nil {
		a = append(append(a, 0), err.Error()[:min(len(err.Error()), maxReason)]...)
	} else {
		a = append(a, 1)
	}
	return write(feedAck, a)
}

func (s Subscriber) head(payload cryptobyte.String, write func(byte, []byte) error, signing chan struct{}, wg *sync.WaitGroup) error {
	var h HeadRequest
	if err := h.read(payload); err != nil {
		return err
	}
	select {
	case signing <- struct{}{}:
	default:
		busy := HeadReply{Reason: "another head is being signed"}
		return write(feedSigned, busy.append(nil, h.Size))
	}
	wg.Go(func() {
		r := s.Sign(h)
		<-signing                                // first: whoever has the reply may ask again at once
		write(feedSigned, r.append(nil, h.Size)) // a connection that is broken ends the reading, too
	})
	return nil
}
