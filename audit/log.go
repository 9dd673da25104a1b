// Package audit keeps an append-only log that cannot be changed unnoticed: a Merkle tree (RFC 6962) of records, whose head is
// signed. It guarantees:
//
//   - what Append acknowledged is on disk, and survives a crash and power loss;
//   - after a crash at any moment the log opens with every acknowledged record, and perhaps ones never acknowledged;
//   - a full disk refuses records and harms none;
//   - Verify finds every edit, deletion, reordering and cut against the signed head, says which entries it concerns and which are
//     still proven. A whole log taken back to one of its own earlier heads shows only against a head kept elsewhere;
//   - another key takes over only with a record of that, and the log says which entries were signed under which key.
//
// The folder has the layout of C2SP tlog-tiles (https://c2sp.org/tlog-tiles), so that tools of others can read it:
// checkpoint, tile/<level>/…, tile/entries/…, and the public key in key.pub (those before it in key.pub.1, key.pub.2, …).
//
// The key is either at hand, and every write ends with a signed head, or it is elsewhere, in a token that may be away (OpenLocal). Then
// records are durable under a local head, in the file FOLDER.head, and checkpoint follows as soon as somebody signs it. Nobody signs the local
// head: whoever can write it could read any key that lay beside it, too, and what it is there for, accidents, its root finds. That it is gone, its place tells.
package audit

import (
	"context"
	"encoding/base64"
	"encoding/binary"
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
	ErrInUse   = errors.New("another process has the audit log open; stop that one first")
	ErrDamaged = errors.New("the audit log is damaged; find out what with 'ocspd audit verify', keep a copy as evidence, then restore it")
	ErrBroken  = errors.New("the audit log must be opened again: it is not known whether its last head is durable")
)

// Head is a size of the log and the root of the tree of that size.
type Head struct {
	Origin string
	Size   uint64
	Root   tlog.Hash
	Note   []byte // the signed note (https://c2sp.org/tlog-checkpoint); nil where nobody has signed it
	Key    string // that signed it: name and key ID, as its public key begins
}

func (h Head) tree() tlog.Tree { return tlog.Tree{N: int64(h.Size), Hash: h.Root} }

// Text is what is signed of a head.
func (h Head) Text() []byte { return fmt.Appendf(nil, "%s\n%d\n%s\n", h.Origin, h.Size, h.Root) }

// WithSignature is the head in the name of a key, given in the form of key.pub, with a signature by it, which is checked.
func (h Head) WithSignature(public string, signature []byte) (Head, error) {
	v, err := ParsePublicKey(public)
	if err != nil {
		return Head{}, err
	}
	h.Origin = v.Name()
	b := append(binary.BigEndian.AppendUint32(nil, v.KeyHash()), signature...)
	return ParseHead(fmt.Appendf(h.Text(), "\n— %s %s\n", v.Name(), base64.StdEncoding.EncodeToString(b)), v)
}

// ParseHead checks the signature of a signed note, which must be of one of the keys, and reads it.
func ParseHead(text []byte, keys ...note.Verifier) (Head, error) {
	n, err := note.Open(text, keyRing(keys))
	if err != nil {
		return Head{}, fmt.Errorf("head of the audit log: %w", err)
	}
	h, err := ParseText([]byte(n.Text))
	if err == nil && h.Origin != n.Sigs[0].Name {
		err = fmt.Errorf("is not one of the log %s", n.Sigs[0].Name)
	}
	if err != nil {
		return Head{}, fmt.Errorf("head of the audit log: %w", err)
	}
	h.Note, h.Key = text, keyID(n.Sigs[0].Name, n.Sigs[0].Hash)
	return h, nil
}

// ParseText reads what Text gives: three lines. Nobody vouches for it.
func ParseText(text []byte) (h Head, err error) {
	lines := strings.Split(string(text), "\n")
	if len(lines) != 4 || lines[3] != "" {
		return Head{}, errors.New("is not origin, size and root on a line each")
	}
	h.Origin = lines[0]
	h.Size, h.Root, err = parseTree(lines[1:3])
	return h, err
}

// parseTree reads size and root.
func parseTree(lines []string) (uint64, tlog.Hash, error) {
	size, err := strconv.ParseInt(lines[0], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[0] {
		return 0, tlog.Hash{}, fmt.Errorf("size %q is no number", lines[0])
	}
	root, err := tlog.ParseHash(lines[1])
	if err != nil {
		return 0, tlog.Hash{}, fmt.Errorf("root %q is no hash", lines[1])
	}
	return uint64(size), root, nil
}

// ReadHead reads the head of the log in dir and checks its signature, which must be of one of the keys.
func ReadHead(dir string, keys ...note.Verifier) (Head, error) {
	text, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		return Head{}, fmt.Errorf("audit log: %w", err)
	}
	h, err := ParseHead(text, keys...)
	if err != nil {
		return Head{}, fmt.Errorf("audit log %s: %w", dir, err)
	}
	return h, nil
}

// localFile is where the head of a log stands until somebody signs it. It is there beside every log: one that needs no local head says so in it, and so what
// was durable under a file that is missing is missed.
func localFile(dir string) string { return filepath.Clean(dir) + ".head" }

// noLocal is in localFile while every write ends with a signed head.
const noLocal = "checkpoint\n"

func (h Head) localText() []byte { return fmt.Appendf(nil, "%d\n%s\n", h.Size, h.Root) }

// ReadLocal reads the head that nobody has signed yet; fs.ErrNotExist where the key is at hand, or the folder is a copy.
func ReadLocal(dir string) (h Head, err error) {
	text, err := os.ReadFile(localFile(dir))
	if string(text) == noLocal {
		err = &fs.PathError{Op: "read", Path: localFile(dir), Err: fs.ErrNotExist}
	}
	if err != nil {
		return Head{}, fmt.Errorf("audit log: %w", err)
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) != 3 || lines[2] != "" {
		return Head{}, fmt.Errorf("audit log: %s: is no head", localFile(dir))
	}
	if h.Size, h.Root, err = parseTree(lines); err != nil {
		return Head{}, fmt.Errorf("audit log: %s: %w", localFile(dir), err)
	}
	return h, nil
}

// Log is a log open for writing. Its methods may be called from any goroutine.
type Log struct {
	dir    string
	signer note.Signer // nil: the key is elsewhere
	public string      // of signer
	log    *slog.Logger
	lock   *os.File
	put    func(path string, data []byte, mode fs.FileMode) error
	grown  chan struct{} // holds a token when there are records that nobody has signed

	mu      sync.Mutex // guards next, head, signed, settled and full
	next    *batch     // what the next write will hold
	head    Head
	signed  Head          // what checkpoint holds; zero before the first
	settled chan struct{} // closed when signed has changed
	full    []tlog.Tile   // full tiles whose partial ones the signed head may still need
	writing chan struct{} // holds a token while nobody writes; who has it owns edge and broken
	edge    edge
	broken  error

	placing sync.Mutex // one signed head after the other; guards the rest
	keys    []string   // that have signed heads; the last is in key.pub
	current string     // that is to sign the next one, by the last record of a change; "" before the first
}

// batch is what one write makes durable together.
type batch struct {
	records []*Record // nil where the caller gave up
	taken   bool
	done    chan struct{} // closed when err is set
	err     error
}

// Open opens the log in dir for writing, or begins one. The head is signed by signer, whose public key, in the form of key.pub,
// is public. Where another key has signed so far, the first record is that of the change. What a crash left behind beyond the last head was never
// acknowledged and is removed.
func Open(dir string, signer note.Signer, public string, log *slog.Logger) (*Log, error) {
	return start(&Log{dir: dir, signer: signer, public: strings.TrimSpace(public), log: log})
}

// OpenLocal is Open for a log whose key is elsewhere: a record is durable under the local head, and Grown says when there is something to sign.
func OpenLocal(dir string, log *slog.Logger) (*Log, error) { return start(&Log{dir: dir, log: log}) }

func start(l *Log) (_ *Log, err error) {
	if l.signer != nil {
		if _, err := ParsePublicKey(l.public); err != nil {
			return nil, err
		}
	}
	if err := makeFolder(l.dir); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	if l.lock, err = os.Open(l.dir); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	l.put, l.writing, l.grown, l.settled = put, make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
	if err := l.open(); err != nil {
		l.lock.Close()
		return nil, fmt.Errorf("audit log %s: %w", l.dir, err)
	}
	l.writing <- struct{}{}
	return l, nil
}

func (l *Log) open() error {
	if err := unix.Flock(int(l.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return ErrInUse
	} else if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	begun, err := l.readHeads()
	if err != nil {
		return err
	}
	if begun {
		if err := l.readTree(); errors.Is(err, fs.ErrPermission) {
			return err
		} else if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if text, err := Unaccounted(l.dir, l.head); err != nil {
			return err
		} else if text != "" {
			return fmt.Errorf("%w: %s", ErrDamaged, text)
		}
		if err := l.tidy(); err != nil {
			return err
		}
	} else if _, err := os.Stat(filepath.Join(l.dir, "tile")); err == nil { // no place to begin anew
		return fmt.Errorf("%w: its head is missing", ErrDamaged)
	}
	if l.current, err = l.currentKey(); err != nil {
		return err
	}
	if l.signer != nil {
		return l.takeOver(begun)
	}
	if !begun {
		if l.head, err = l.newHead(l.edge); err != nil {
			return err
		}
	}
	l.mark()
	return put(localFile(l.dir), l.head.localText(), 0o640)
}

// readHeads finds the signed head and the one in force, which is the longer one of it and the local head. It reports whether there is any.
func (l *Log) readHeads() (bool, error) {
	verifiers, err := ReadKeys(l.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if l.keys, err = publicKeys(l.dir); err != nil {
		return false, err
	}
	text, err := os.ReadFile(filepath.Join(l.dir, "checkpoint"))
	isSigned := err == nil
	switch {
	case isSigned && len(l.keys) == 0:
		return false, fmt.Errorf("%w: key.pub is missing", ErrDamaged)
	case isSigned:
		if l.signed, err = ParseHead(text, verifiers...); err != nil {
			return false, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	l.head = l.signed
	local, err := ReadLocal(l.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return isSigned, nil
	case errors.Is(err, fs.ErrPermission):
		return false, err
	case err != nil:
		return false, fmt.Errorf("%w: %w", ErrDamaged, err)
	case !isSigned || local.Size > l.signed.Size:
		l.head = local
	}
	return true, nil
}

// readTree checks what there is against the head in force, and that the signed head is part of it.
func (l *Log) readTree() (err error) {
	if l.edge, err = readEdge(l.dir, l.head.tree()); err != nil || l.head.Size == l.signed.Size {
		return err
	}
	root, err := l.rootAt(l.signed.Size)
	if err == nil && l.signed.Size > 0 && root != l.signed.Root {
		err = errors.New("its records do not continue those under the signed head")
	}
	return err
}

// rootAt is the root that the log had when it had so many records.
func (l *Log) rootAt(size uint64) (tlog.Hash, error) {
	head := l.Head()
	if size == head.Size {
		return head.Root, nil
	}
	return tlog.TreeHash(int64(size), tlog.TileHashReader(head.tree(), tileReader{l.dir}))
}

// takeOver makes everything stand under the key at hand.
func (l *Log) takeOver(begun bool) error {
	if r := l.changeTo(l.public); r != nil {
		if err := l.commit([]*Record{r}); err != nil {
			return err
		}
	} else if !begun || l.signed.Size < l.head.Size || l.signed.Note == nil {
		head, err := l.newHead(l.edge)
		if err == nil {
			err = l.place(head, l.public)
		}
		if err != nil {
			return err
		}
		l.head = head
	}
	l.current = l.public
	if on, err := os.ReadFile(localFile(l.dir)); err == nil && string(on) == noLocal {
		return nil
	}
	return put(localFile(l.dir), []byte(noLocal), 0o640)
}

// Unaccounted says which file of the log in dir goes beyond its signed head, head, where the file of the local head is missing: it may have entries that were
// acknowledged. "" means that there is none. Beside a copy there is no such file, and what was being written while it was made may be in it.
func Unaccounted(dir string, head Head) (string, error) {
	if _, err := os.Lstat(localFile(dir)); !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	found := ""
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if t, err := parseTilePath(name); err == nil && !head.covers(t) {
			found = fmt.Sprintf("%s is missing, and %s goes beyond the %d entries under the signed head: entries may have been cut off; put the missing file back, or, to go on without them, "+
				"write the word checkpoint into it", localFile(dir), name, head.Size)
			return fs.SkipAll
		}
		return nil
	})
	return found, err
}

// tidy removes files that the head does not cover: they were being written when a process ended. It also removes partial tiles that nobody needs any
// more.
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
		switch {
		case err == nil && !l.head.covers(t):
		case err == nil && t.W < tileWidth && l.signed.covers(tlog.Tile{L: t.L, N: t.N, W: tileWidth}):
			return os.Remove(path)
		case err != nil && strings.HasSuffix(name, ".new"):
		default:
			return nil // part of the log, or not ours
		}
		l.log.Info("audit log: removed what was being written when a process ended", "file", name)
		return os.Remove(path)
	})
}

// covers reports whether a tile is part of the tree.
func (h Head) covers(t tlog.Tile) bool {
	return t.N*tileWidth+int64(t.W) <= int64(h.Size)>>max(0, t.L*tileHeight)
}

// Close ends the log. A write under way is finished first.
func (l *Log) Close() error {
	<-l.writing
	l.broken = fs.ErrClosed
	l.writing <- struct{}{}
	return l.lock.Close()
}

// Head is the head as it is now, signed or not.
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

// AppendAll adds records that become durable together or not at all, in this order, and sets their sequence numbers.
func (l *Log) AppendAll(records []*Record) error {
	for _, r := range records {
		if r.Time.IsZero() {
			r.Time = time.Now()
		}
		r.Sequence = 1<<63 - 1
		if _, err := r.encode(); err != nil {
			return fmt.Errorf("audit log: %w", err)
		}
	}
	b, _ := l.join(records...)
	select {
	case <-l.writing:
		l.write(b)
		l.writing <- struct{}{}
	case <-b.done:
	}
	if b.err != nil {
		return fmt.Errorf("audit log: append %d records: %w", len(records), b.err)
	}
	return nil
}

// join puts records into the next batch. It gives the place of the first.
func (l *Log) join(records ...*Record) (*batch, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next == nil {
		l.next = &batch{done: make(chan struct{})}
	}
	l.next.records = append(l.next.records, records...)
	return l.next, len(l.next.records) - len(records)
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
	for _, t := range written {
		if t.W == tileWidth {
			l.full = append(l.full, t)
		}
	}
	l.mu.Unlock()
	l.dropPartial()
	l.mark()
	return nil
}

// mark makes Grown speak where there are records that nobody has signed.
func (l *Log) mark() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.signed.Size < l.head.Size {
		select {
		case l.grown <- struct{}{}:
		default:
		}
	}
}

// grow adds records to the right end of the tree and gives the head that results, signed where the key is at hand.
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
	return l.newHead(*e)
}

func (l *Log) newHead(e edge) (Head, error) {
	root, err := e.root()
	if err != nil {
		return Head{}, err
	}
	h := Head{Size: e.size, Root: root}
	if l.signer == nil {
		return h, nil
	}
	return signHead(h, l.signer, l.public)
}

func (l *Log) path(t tlog.Tile) string { return filepath.Join(l.dir, tilePath(t)) }

// putHead is the moment at which records begin to exist. If it fails, which of the two heads is there after a power loss is
// open; writing on could then make a second history.
func (l *Log) putHead(h Head) error {
	file, before := localFile(l.dir), l.head.localText()
	var err error
	if l.signer == nil {
		err = l.put(file, h.localText(), 0o640)
	} else {
		file, before = filepath.Join(l.dir, "checkpoint"), l.signed.Note
		err = l.place(h, l.public)
	}
	if err != nil {
		if on, readErr := os.ReadFile(file); readErr != nil || string(on) != string(before) {
			l.broken = fmt.Errorf("%w: %w", ErrBroken, err)
			return l.broken
		}
	}
	return err
}

// dropPartial removes the partial tiles that full ones replace, as C2SP tlog-tiles allows, once the signed head needs them no more. One that stays
// does no harm.
func (l *Log) dropPartial() {
	l.mu.Lock()
	var drop, keep []tlog.Tile
	for _, t := range l.full {
		if l.signed.covers(t) {
			drop = append(drop, t)
		} else {
			keep = append(keep, t)
		}
	}
	l.full = keep
	l.mu.Unlock()
	for _, t := range drop {
		if err := os.RemoveAll(l.path(t) + ".p"); err != nil {
			l.log.Warn("audit log: partial tiles stay", "tile", tilePath(t), "error", err)
		}
	}
}
