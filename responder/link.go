package responder

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"ocspd/pki"
)

// The link carries questions from front to signer and answers back, over a unix socket: one question at a time on a
// connection, each message with its length before it. The form is fixed; whatever departs from it ends the connection.
//
//	question: length 2 | version 1 | issuer 32 | nonce length 1, nonce | items 1 | items × (form 1, serial length 1, serial 20)
//	answer:   length 4 | status 1 | flags 1 | generation 8 | producedAt 8 | thisUpdate 8 | nextUpdate 8 | OCSPResponse
const (
	linkVersion  = 1
	itemSize     = 2 + pki.MaxSerial
	maxQuestion  = 1 + 32 + 1 + MaxNonce + 1 + MaxItems*itemSize
	answerHeader = 1 + 1 + 8 + 3*8
	maxAnswer    = 1 << 20
	flagUnknown  = 1
)

var errFrame = errors.New("a message on the link that does not have its form")

func (q *Question) append(b []byte) []byte {
	start := len(b)
	b = append(b, 0, 0, linkVersion)
	b = append(b, q.Issuer[:]...)
	b = append(b, byte(len(q.Nonce)))
	b = append(b, q.Nonce...)
	b = append(b, byte(len(q.Items)))
	for i := range q.Items {
		b = appendSerial(append(b, byte(q.Items[i].Form)), &q.Items[i].Serial)
	}
	binary.BigEndian.PutUint16(b[start:], uint16(len(b)-start-2))
	return b
}

func (q *Question) read(frame []byte) error {
	s := cryptobyte.String(frame)
	var version, count uint8
	var nonce cryptobyte.String
	if !s.ReadUint8(&version) || version != linkVersion || !s.CopyBytes(q.Issuer[:]) ||
		!s.ReadUint8LengthPrefixed(&nonce) || len(nonce) > MaxNonce ||
		!s.ReadUint8(&count) || count == 0 || len(s) != int(count)*itemSize {
		return errFrame
	}
	q.Nonce = nil
	if len(nonce) > 0 {
		q.Nonce = nonce
	}
	q.Items = q.Items[:0]
	for ; count > 0; count-- {
		serial, ok := readSerial(s[1:itemSize])
		item := Item{Form(s[0]), serial}
		if !ok || !item.Form.valid() {
			return errFrame
		}
		q.Items = append(q.Items, item)
		s = s[itemSize:]
	}
	return nil
}

// appendSerial writes a serial in the fixed form of all messages: its length, its octets, and zeros up to 20.
func appendSerial(b []byte, s *pki.Serial) []byte {
	var octets [pki.MaxSerial]byte
	s.Append(octets[:0])
	return append(append(b, byte(s.Len())), octets[:]...)
}

// readSerial reads the 21 octets of appendSerial.
func readSerial(b []byte) (s pki.Serial, ok bool) {
	n := 1 + int(b[0])
	if n > len(b) {
		return s, false
	}
	for _, padding := range b[n:] {
		if padding != 0 {
			return s, false
		}
	}
	s, err := pki.SerialFromDER(b[1:n])
	return s, err == nil
}

func (a *Answer) append(b []byte) []byte {
	flags := byte(0)
	if a.Unknown {
		flags |= flagUnknown
	}
	b = binary.BigEndian.AppendUint32(b, uint32(answerHeader+len(a.DER)))
	b = append(b, byte(a.Status), flags)
	b = binary.BigEndian.AppendUint64(b, a.Generation)
	for _, t := range []time.Time{a.ProducedAt, a.ThisUpdate, a.NextUpdate} {
		b = binary.BigEndian.AppendUint64(b, uint64(t.Unix()))
	}
	return append(b, a.DER...)
}

func (a *Answer) read(frame []byte) error {
	s := cryptobyte.String(frame)
	var status, flags uint8
	var produced, this, next uint64
	if !s.ReadUint8(&status) || !s.ReadUint8(&flags) || flags&^flagUnknown != 0 || !s.ReadUint64(&a.Generation) ||
		!s.ReadUint64(&produced) || !s.ReadUint64(&this) || !s.ReadUint64(&next) {
		return errFrame
	}
	a.Status, a.Unknown, a.DER = ResponseStatus(status), flags&flagUnknown != 0, s
	switch a.Status {
	case Successful:
		if len(a.DER) == 0 {
			return errFrame
		}
	case InternalError, TryLater, Unauthorized:
		if len(a.DER) != 0 {
			return errFrame
		}
	default:
		return errFrame
	}
	a.ProducedAt = time.Unix(int64(produced), 0).UTC()
	a.ThisUpdate = time.Unix(int64(this), 0).UTC()
	a.NextUpdate = time.Unix(int64(next), 0).UTC()
	return nil
}

// ServeLink answers questions on every connection of l, until ctx ends or l fails; it returns when all connections have ended. At most
// conns are open at once; more are closed. allow may refuse a peer.
func ServeLink(ctx context.Context, l net.Listener, conns int, allow func(net.Conn) error, answer func(*Question) Answer) error {
	return serveConns(ctx, l, conns, conns, func(c net.Conn) error {
		if err := allow(c); err != nil {
			return err
		}
		frame := make([]byte, maxQuestion)
		var q Question
		var out []byte
		for {
			var length [2]byte
			if _, err := io.ReadFull(c, length[:]); err != nil {
				return err
			}
			n := int(binary.BigEndian.Uint16(length[:]))
			if n > maxQuestion {
				return errFrame
			}
			if _, err := io.ReadFull(c, frame[:n]); err != nil {
				return err
			}
			if err := q.read(frame[:n]); err != nil {
				return err
			}
			a := answer(&q)
			out = a.append(out[:0])
			if _, err := c.Write(out); err != nil {
				return err
			}
		}
	})
}

// serveConns runs serve for each connection in a goroutine of its own, at most max at once and ofOne with one process, and closes them all when ctx
// ends or l fails.
func serveConns(ctx context.Context, l net.Listener, max, ofOne int, serve func(net.Conn) error) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	slots := slots{free: max, ofOne: ofOne, held: map[int32]int{}}
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		process := processOf(c)
		if !slots.take(process) {
			c.Close()
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer c.Close()
			defer slots.give(process) // first, so that a peer which sees the end may come again at once
			defer context.AfterFunc(ctx, func() { c.Close() })()
			serve(c)
		}()
	}
}

// slots are the connections that there may be.
type slots struct {
	mu    sync.Mutex
	free  int
	ofOne int           // as many may one process hold
	held  map[int32]int // by process
}

func (s *slots) take(process int32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free == 0 || s.held[process] >= s.ofOne {
		return false
	}
	s.free--
	s.held[process]++
	return true
}

func (s *slots) give(process int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	if s.held[process]--; s.held[process] == 0 {
		delete(s.held, process)
	}
}

// processOf is the number of the process that connected, by the kernel's word; 0 where the kernel has none.
func processOf(c net.Conn) (pid int32) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) {
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			pid = cred.Pid
		}
	})
	return pid
}

// ErrBusy means that as many questions wait for a signature as may.
var ErrBusy = errors.New("too many questions wait for a signature")

// Link asks a signer. It keeps a fixed number of connections and makes them again when they break, so that a signer may be replaced under it.
type Link struct {
	dial    func(context.Context) (net.Conn, error)
	idle    chan net.Conn // as many as there are connections; nil where one is to be made
	waiting atomic.Int64
	max     int64
}

// NewLink asks over at most conns connections; at most waiting questions wait for one of them.
func NewLink(dial func(context.Context) (net.Conn, error), conns, waiting int) *Link {
	l := &Link{dial: dial, idle: make(chan net.Conn, conns), max: int64(waiting)}
	for range conns {
		l.idle <- nil
	}
	return l
}

// Ask waits for the answer until ctx ends. A connection that broke is made again and the question repeated, since a question
// changes nothing.
func (l *Link) Ask(ctx context.Context, q *Question) (Answer, error) {
	c, err := l.take(ctx)
	if err != nil {
		return Answer{}, err
	}
	var keep net.Conn
	defer func() { l.idle <- keep }()
	const pause = 50 * time.Millisecond
	for {
		var err error
		kept := c != nil
		if !kept {
			c, err = l.dial(ctx)
		}
		if err == nil {
			var a Answer
			if a, err = exchange(ctx, c, q); err == nil {
				keep = c
				return a, nil
			}
			c.Close()
			c = nil
			if errors.Is(err, errFrame) {
				return Answer{}, fmt.Errorf("signer: %w", err)
			}
			if kept && ctx.Err() == nil {
				continue // the signer may long have been replaced
			}
		}
		select {
		case <-ctx.Done():
			return Answer{}, fmt.Errorf("signer: %w", err)
		case <-time.After(pause):
		}
	}
}

// urgent is the key in the context of a question that is not turned away for those that wait already. Front bounds the number of these itself: they renew
// kept answers, which no flood of other questions may starve until they end.
type urgent struct{}

// take waits for a connection, which may be one that is yet to be made.
func (l *Link) take(ctx context.Context) (net.Conn, error) {
	select {
	case c := <-l.idle:
		return c, nil
	default:
	}
	defer l.waiting.Add(-1)
	if l.waiting.Add(1) > l.max && ctx.Value(urgent{}) == nil {
		return nil, ErrBusy
	}
	select {
	case c := <-l.idle:
		return c, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("signer: %w", ctx.Err())
	}
}

func exchange(ctx context.Context, c net.Conn, q *Question) (a Answer, err error) {
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	var buf [512]byte
	if _, err := c.Write(q.append(buf[:0])); err != nil {
		return a, err
	}
	var length [4]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return a, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n < answerHeader || n > maxAnswer {
		return a, errFrame
	}
	frame := make([]byte, n)
	if _, err := io.ReadFull(c, frame); err != nil {
		return a, err
	}
	return a, a.read(frame)
}
