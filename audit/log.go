// Package audit keeps an append-only log that cannot be changed unnoticed: a Merkle tree (RFC 6962) of records, whose head is
// signed at every change. It guarantees:
//
//   - what Append acknowledged is on disk, and survives a crash and power loss;
//   - after a crash at any moment the log opens with every acknowledged record, and perhaps ones never acknowledged;
//   - a full disk refuses records and harms none;
//   - Verify finds every edit, deletion, reordering and cut against the signed head, says which entries it concerns and which are
//     still proven. A whole log taken back to one of its own earlier heads shows only against a head kept elsewhere.
//
// The folder has the layout of C2SP tlog-tiles (https://c2sp.org/tlog-tiles), so that tools of others can read it:
// checkpoint, tile/<level>/…, tile/entries/…, and the public key in key.pub.
package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// Errors of this package that callers branch on.
var (
	ErrInUse   = errors.New("another process has the audit log open")
	ErrDamaged = errors.New("the audit log is damaged; find out what with 'ocspd audit verify', keep a copy as evidence, then restore it")
	ErrBroken  = errors.New("the audit log must be opened again: it is not known whether its last head is durable")
)

// Head is a size of the log and the root of the tree of that size, signed.
type Head struct {
	Origin string
	Size   uint64
	Root   tlog.Hash
	Note   []byte // the signed note (https://c2sp.org/tlog-checkpoint)
}

func (h Head) tree() tlog.Tree { return tlog.Tree{N: int64(h.Size), Hash: h.Root} }

// ParseHead checks the signature of a signed note and reads it.
func ParseHead(text []byte, v note.Verifier) (Head, error) {
	n, err := note.Open(text, note.VerifierList(v))
	if err != nil {
		return Head{}, fmt.Errorf("head of the audit log: %w", err)
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) < 4 || lines[0] != v.Name() {
		return Head{}, fmt.Errorf("head of the audit log: is not one of the log %s", v.Name())
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return Head{}, fmt.Errorf("head of the audit log: size %q is no number", lines[1])
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return Head{}, fmt.Errorf("head of the audit log: root %q is no hash", lines[2])
	}
	return Head{lines[0], uint64(size), root, text}, nil
}

// ReadHead reads the head of the log in dir and checks its signature.
func ReadHead(dir string, v note.Verifier) (Head, error) {
	text, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		return Head{}, fmt.Errorf("audit log: %w", err)
	}
	h, err := ParseHead(text, v)
	if err != nil {
		return Head{}, fmt.Errorf("audit log %s: %w", dir, err)
	}
	return h, nil
}

// Log is a log open for writing. Its methods may be called from any goroutine.
type Log struct {
	dir    string
	signer note.Signer
	log    *slog.Logger
	lock   *os.File
	put    func(path string, data []byte, mode fs.FileMode) error

	mu      sync.Mutex // guards next and head
	next    *batch     // what the next write will hold
	head    Head
	writing chan struct{} // holds a token while nobody writes; who has it owns edge and broken
	edge    edge
	broken  error
}

// batch is what one write makes durable together.
type batch struct {
	records []*Record // nil where the caller gave up
	taken   bool
	done    chan struct{} // closed when err is set
	err     error
}

// Open opens the log in dir for writing, or begins one. The head is signed by signer, whose public key, in the form of key.pub,
// is public. What a crash left behind beyond the last head was never acknowledged and is removed.
func Open(dir string, signer note.Signer, public string, log *slog.Logger) (*Log, error) {
	v, err := ParsePublicKey(public)
	if err != nil {
		return nil, err
	}
	if err := makeFolder(dir); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	l := &Log{dir: dir, signer: signer, log: log, lock: lock, put: put, writing: make(chan struct{}, 1)}
	if err := l.open(v, public); err != nil {
		lock.Close()
		return nil, fmt.Errorf("audit log %s: %w", dir, err)
	}
	l.writing <- struct{}{}
	return l, nil
}

func (l *Log) open(v note.Verifier, public string) error {
	if err := unix.Flock(int(l.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return ErrInUse
	} else if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	stored, err := os.ReadFile(filepath.Join(l.dir, "key.pub"))
	if errors.Is(err, fs.ErrNotExist) {
		return l.begin(public)
	}
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(stored)) != strings.TrimSpace(public) {
		return errors.New("key.pub is another key than the one that signs now; bring the key back, or move the log away, as evidence, to begin a new one")
	}
	text, err := os.ReadFile(filepath.Join(l.dir, "checkpoint"))
	if errors.Is(err, fs.ErrNotExist) {
		return l.begin(public)
	}
	if err != nil {
		return err
	}
	if l.head, err = ParseHead(text, v); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if l.edge, err = readEdge(l.dir, l.head.tree()); errors.Is(err, fs.ErrPermission) {
		return err
	} else if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return l.tidy()
}

// begin starts a log in an empty folder. Tiles without a head are a log whose head is gone, and no place to begin anew.
func (l *Log) begin(public string) error {
	if _, err := os.Stat(filepath.Join(l.dir, "tile")); err == nil {
		return fmt.Errorf("%w: key.pub or checkpoint is missing", ErrDamaged)
	}
	if err := put(filepath.Join(l.dir, "key.pub"), []byte(strings.TrimSpace(public)+"\n"), 0o640); err != nil {
		return err
	}
	head, err := l.sign(edge{})
	if err != nil {
		return err
	}
	l.head = head
	return put(filepath.Join(l.dir, "checkpoint"), head.Note, 0o640)
}

// tidy removes files that the head does not cover: they were being written when a process ended.
func (l *Log) tidy() error {
	return filepath.WalkDir(l.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(l.dir, path)
		if err != nil {
			return err
		}
		t, err := parseTilePath(name)
		covered := int64(l.head.Size) >> max(0, t.L*tileHeight)
		switch {
		case name == "checkpoint" || name == "key.pub":
			return nil
		case err == nil && t.N*tileWidth+int64(t.W) <= covered:
			return nil
		case err != nil && !strings.HasSuffix(name, ".new"):
			return nil // not ours
		}
		l.log.Info("audit log: removed what was being written when a process ended", "file", name)
		return os.Remove(path)
	})
}

// Close ends the log. A write under way is finished first.
func (l *Log) Close() error {
	<-l.writing
	l.broken = fs.ErrClosed
	l.writing <- struct{}{}
	return l.lock.Close()
}

// Head is the head as it is now.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Records gives the records from a sequence number on, as far as the log goes now.
func (l *Log) Records(from uint64) iter.Seq2[Record, error] {
	return Records(l.dir, from, l.Head().Size)
}

// Append adds a record and returns its sequence number when it is durable. With an error nothing was recorded, except that
// after ErrBroken it is not known. Records that come at the same time become durable together. When ctx ends before the
// writing of the record begins, it is not written.
func (l *Log) Append(ctx context.Context, r Record) (uint64, error) {
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	r.Sequence = 1<<63 - 1 // no real one is longer
	if _, err := r.encode(); err != nil {
		return 0, fmt.Errorf("audit log: %w", err)
	}
	b, i := l.join(&r)
	select {
	case <-l.writing:
		l.write(b)
		l.writing <- struct{}{}
	case <-b.done:
	case <-ctx.Done():
		if l.leave(b, i) {
			return 0, fmt.Errorf("audit log: append %s: %w", r.Event, ctx.Err())
		}
		<-b.done
	}
	if b.err != nil {
		return 0, fmt.Errorf("audit log: append %s: %w", r.Event, b.err)
	}
	return r.Sequence, nil
}

// join puts a record into the next batch.
func (l *Log) join(r *Record) (*batch, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next == nil {
		l.next = &batch{done: make(chan struct{})}
	}
	l.next.records = append(l.next.records, r)
	return l.next, len(l.next.records) - 1
}

// leave takes a record out again, unless it is being written.
func (l *Log) leave(b *batch, i int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !b.taken {
		b.records[i] = nil
	}
	return !b.taken
}

// write writes a batch, if nobody has yet.
func (l *Log) write(b *batch) {
	l.mu.Lock()
	mine := !b.taken
	if mine {
		b.taken, l.next = true, nil
	}
	l.mu.Unlock()
	if mine {
		b.err = l.commit(b.records)
		close(b.done)
	}
}

// commit makes records durable: first the tiles, then the head that covers them. Before that the files are there for nobody, so
// that a failure leaves the log as it was.
func (l *Log) commit(records []*Record) error {
	if l.broken != nil {
		return l.broken
	}
	grown := l.edge.clone()
	var written []tlog.Tile
	putTile := func(t tlog.Tile, data []byte) error {
		written = append(written, t)
		return l.put(l.path(t), data, 0o640)
	}
	head, err := l.grow(&grown, records, putTile)
	if err == nil && head.Size > l.edge.size {
		err = l.putHead(head)
	}
	if err != nil {
		for _, t := range written { // none of them is part of the log as it was: see edge.partial
			if l.broken == nil {
				os.Remove(l.path(t)) // one that stays is in nobody's way
			}
		}
		return err
	}
	l.edge = grown
	l.mu.Lock()
	l.head = head
	l.mu.Unlock()
	for _, t := range written {
		if t.W == tileWidth {
			l.dropPartial(t)
		}
	}
	return nil
}

// grow adds records to the right end of the tree and signs the head that results.
func (l *Log) grow(e *edge, records []*Record, putTile func(tlog.Tile, []byte) error) (Head, error) {
	for _, r := range records {
		if r == nil {
			continue
		}
		r.Sequence = e.size
		entry, err := r.encode()
		if err == nil {
			err = e.add(entry, putTile)
		}
		if err != nil {
			return Head{}, err
		}
	}
	if err := e.partial(l.edge.size, putTile); err != nil {
		return Head{}, err
	}
	return l.sign(*e)
}

func (l *Log) path(t tlog.Tile) string { return filepath.Join(l.dir, tilePath(t)) }

// putHead is the moment at which records begin to exist. If it fails, which of the two heads is there after a power loss is
// open; writing on could then sign a second history.
func (l *Log) putHead(h Head) error {
	if err := l.put(filepath.Join(l.dir, "checkpoint"), h.Note, 0o640); err != nil {
		if on, readErr := os.ReadFile(filepath.Join(l.dir, "checkpoint")); readErr != nil || string(on) != string(l.head.Note) {
			l.broken = fmt.Errorf("%w: %w", ErrBroken, err)
			return l.broken
		}
		return err
	}
	return nil
}

func (l *Log) sign(e edge) (Head, error) {
	root, err := e.root()
	if err != nil {
		return Head{}, err
	}
	text := fmt.Sprintf("%s\n%d\n%s\n", l.signer.Name(), e.size, root)
	signed, err := note.Sign(&note.Note{Text: text}, l.signer)
	if err != nil {
		return Head{}, fmt.Errorf("sign the head: %w", err)
	}
	return Head{l.signer.Name(), e.size, root, signed}, nil
}

// dropPartial removes the partial tiles that a full one replaces, as C2SP tlog-tiles allows. One that stays does no harm.
func (l *Log) dropPartial(t tlog.Tile) {
	if err := os.RemoveAll(l.path(t) + ".p"); err != nil {
		l.log.Warn("audit log: partial tiles stay", "tile", tilePath(t), "error", err)
	}
}
