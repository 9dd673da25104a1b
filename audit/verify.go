package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// maxFaults bounds a Report: a log that lost everything has as many faults as entries.
const maxFaults = 100

// Report is what Verify found.
type Report struct {
	Head     Head     // signed by one of the keys; zero when no such head could be read
	Proven   []Range  // the entries that are what the head signed, in order
	Unsigned *Range   // the entries after them that only the local head covers, which nobody has signed yet; nil when there are none
	Keys     []Signed // which key's heads the entries came under, in order
	Witness  bool     // among the heads kept elsewhere there was one of this log
	Faults   []Fault  // at most 100
	Omitted  int      // faults beyond these

	changes []Record // of the key
}

// Signed says that entries came under the heads of a key: its name and key ID, as the public key begins.
type Signed struct {
	Key     string
	Entries Range
}

// Range is the entries from First to Last.
type Range struct{ First, Last uint64 }

// Fault is something wrong with the log.
type Fault struct {
	Entries *Range // that it concerns; nil when it is about the log as a whole
	Text    string
}

func (f Fault) String() string {
	switch {
	case f.Entries == nil:
		return f.Text
	case f.Entries.First == f.Entries.Last:
		return fmt.Sprintf("entry %d: %s", f.Entries.First, f.Text)
	}
	return fmt.Sprintf("entries %d to %d: %s", f.Entries.First, f.Entries.Last, f.Text)
}

// OK reports whether nothing is wrong.
func (r *Report) OK() bool { return len(r.Faults) == 0 }

func (r *Report) fault(entries *Range, format string, args ...any) {
	if len(r.Faults) == maxFaults {
		r.Omitted++
		return
	}
	r.Faults = append(r.Faults, Fault{entries, fmt.Sprintf(format, args...)})
}

func (r *Report) proven(entry uint64) {
	if n := len(r.Proven); n > 0 && r.Proven[n-1].Last+1 == entry {
		r.Proven[n-1].Last = entry
		return
	}
	r.Proven = append(r.Proven, Range{entry, entry})
}

// Verify checks the whole log in dir against its head, and the head against the keys, one of which must have signed it. Of the signed notes in witness, earlier
// heads that were kept elsewhere, the one of this log is compared, if there is any. Verify needs nothing but the files, which may be a copy or the
// log of a running process. The error is about reading; what is wrong with the log is in the report.
func Verify(dir string, witness []byte, keys ...note.Verifier) (*Report, error) {
	r := &Report{}
	head, err := ReadHead(dir, keys...)
	var pathErr *fs.PathError
	var noNote *note.UnverifiedNoteError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.fault(nil, "the head, checkpoint, is missing: nothing of this log is proven")
	case errors.As(err, &noNote):
		r.fault(nil, "the head is not signed by the key %s%s: another log stands here, or its key was changed, or the key is the wrong one; nothing of it is proven",
			keyNames(keys), signedBy(noNote))
	case errors.As(err, &pathErr):
		return nil, err
	case err != nil:
		r.fault(nil, "%v: nothing of this log is proven", err)
	}
	if err == nil {
		r.Head = head
		r.compare(dir, witness, keys)
		r.verifySigned(dir)
		r.verifyChanges(dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, nil // what the local head covers says nothing beside a head that is not this log's
	}
	return r, r.verifyLocal(dir)
}

func (r *Report) verifySigned(dir string) {
	if r.rebuild(dir) {
		return
	}
	hashes := tlog.TileHashReader(r.Head.tree(), tileReader{dir})
	for first := uint64(0); first < r.Head.Size; first += tileWidth {
		r.verifyTile(dir, hashes, Range{first, min(first+tileWidth, r.Head.Size) - 1}, r.record)
	}
}

// keyNames are the names of keys, for a message.
func keyNames(keys []note.Verifier) string {
	var names []string
	for _, v := range keys {
		if !slices.Contains(names, v.Name()) {
			names = append(names, v.Name())
		}
	}
	return strings.Join(names, ", ")
}

func signedBy(n *note.UnverifiedNoteError) string {
	for _, s := range n.Note.UnverifiedSigs {
		return fmt.Sprintf(", but by %s", keyID(s.Name, s.Hash))
	}
	return ""
}

// compare finds the head of this log among those kept elsewhere.
func (r *Report) compare(dir string, witness []byte, keys []note.Verifier) {
	for _, text := range SplitNotes(witness) {
		if origin, _, _ := strings.Cut(string(text), "\n"); origin != r.Head.Origin {
			continue
		}
		r.Witness = true
		if err := Consistent(dir, r.Head, text, keys...); err != nil {
			r.fault(nil, "%v", err)
		}
	}
}

// SplitNotes takes signed notes apart that stand one after the other: each ends with its signatures.
func SplitNotes(text []byte) [][]byte {
	var notes [][]byte
	var n []byte
	signed := false
	for line := range bytes.Lines(text) {
		signature := bytes.HasPrefix(line, []byte("— "))
		if signed && !signature {
			notes, n = append(notes, n), nil
		}
		if len(n) > 0 || len(bytes.TrimSpace(line)) > 0 {
			n = append(n, line...)
		}
		signed = signature
	}
	if len(n) > 0 {
		notes = append(notes, n)
	}
	return notes
}

// verifyChanges says which entries came under the heads of which key, by the records of changes, and checks these: each goes on from the key before, and
// holds a head of this log.
func (r *Report) verifyChanges(dir string) {
	next := uint64(0) // the first entry that no range has yet
	under := func(key string, size uint64) {
		switch n := len(r.Keys); {
		case size <= next:
			return
		case n > 0 && r.Keys[n-1].Key == key:
			r.Keys[n-1].Entries.Last = size - 1
		default:
			r.Keys = append(r.Keys, Signed{key, Range{next, size - 1}})
		}
		next = size
	}
	var keys []note.Verifier
	current := ""
	for _, c := range r.changes {
		at := &Range{c.Sequence, c.Sequence}
		old, err := ParsePublicKey(c.Detail("old"))
		if err != nil {
			r.fault(at, "names no key that signed before: %v", err)
			continue
		}
		keys = append(keys, old)
		if current != "" && current != c.Detail("old") {
			r.fault(at, "goes on from another key than the one that was to sign")
		}
		current = c.Detail("new")
		if c.Detail("head") == "" {
			continue
		}
		head, err := ParseHead([]byte(c.Detail("head")), keys...)
		if err == nil && head.Size > c.Sequence {
			err = errors.New("it is of a longer log")
		}
		if err == nil {
			err = Consistent(dir, r.Head, head.Note, keys...)
		}
		if err != nil {
			r.fault(at, "the last head under the key before: %v", err)
			continue
		}
		under(head.Key, head.Size)
	}
	if v, err := ParsePublicKey(current); current != "" && (err != nil || keyID(v.Name(), v.KeyHash()) != r.Head.Key) {
		r.fault(nil, "the head is signed by %s, which is not the key that the log's last record of a change names", r.Head.Key)
	}
	under(r.Head.Key, r.Head.Size)
}

// verifyLocal looks at what is beyond the signed head of a log that is not a copy.
func (r *Report) verifyLocal(dir string) error {
	local, err := ReadLocal(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return err
	} else if err != nil {
		r.fault(nil, "%v", err)
		return nil
	}
	if local.Size <= r.Head.Size {
		if local.Size < r.Head.Size || local.Root != r.Head.Root {
			r.fault(nil, "%s is not the head of this log", localFile(dir))
		}
		return nil
	}
	r.Unsigned = &Range{r.Head.Size, local.Size - 1}
	hashes := tlog.TileHashReader(local.tree(), tileReader{dir})
	if root, err := tlog.TreeHash(int64(r.Head.Size), hashes); err != nil || len(r.Head.Note) > 0 && root != r.Head.Root {
		r.fault(r.Unsigned, "nobody has signed them yet, and they do not continue what is signed")
		return nil
	}
	for first := r.Head.Size / tileWidth * tileWidth; first < local.Size; first += tileWidth {
		r.verifyTile(dir, hashes, Range{max(first, r.Head.Size), min(first+tileWidth, local.Size) - 1}, r.wellFormed)
	}
	return nil
}

// rebuild makes the whole tree anew from the entries. If its root is the signed one, every entry is proven, and what is left
// to compare are the hash tiles. Otherwise it reports nothing.
func (r *Report) rebuild(dir string) bool {
	var e edge
	var tiles []string
	rebuilt := *r
	rebuilt.Faults, rebuilt.Proven, rebuilt.changes = slices.Clone(r.Faults), nil, nil
	compare := func(t tlog.Tile, data []byte) error {
		if b, err := readTile(dir, t); err != nil || !bytes.Equal(b, data) {
			tiles = append(tiles, tilePath(t))
		}
		return nil
	}
	for first := uint64(0); first < r.Head.Size; first += tileWidth {
		entries, err := readEntries(dir, entryTile(first, r.Head.Size))
		if err != nil {
			return false
		}
		for _, entry := range entries {
			rebuilt.record(e.size, entry)
			if err := e.add(entry, compare); err != nil {
				return false
			}
		}
	}
	if err := e.partial(0, compare); err != nil {
		return false
	}
	if root, err := e.root(); err != nil || root != r.Head.Root {
		return false
	}
	for _, t := range tiles {
		rebuilt.fault(nil, "%s is missing or changed; the entries below it are unharmed", t)
	}
	*r = rebuilt
	return true
}

// record counts an entry as proven and looks at what it holds.
func (r *Report) record(n uint64, entry []byte) {
	r.wellFormed(n, entry)
	if record, err := decode(entry); err == nil && record.Event == EventKey {
		r.changes = append(r.changes, record)
	}
	r.proven(n)
}

func (r *Report) wellFormed(n uint64, entry []byte) {
	record, err := decode(entry)
	if err != nil {
		r.fault(&Range{n, n}, "was recorded, but is no record: %v", err)
	} else if record.Sequence != n {
		r.fault(&Range{n, n}, "was recorded with the sequence number %d", record.Sequence)
	}
}

// entryTile is the tile of entries that begins with entry first, as far as it goes in a tree of that size.
func entryTile(first, size uint64) tlog.Tile {
	return tlog.Tile{H: tileHeight, L: entryLevel, N: int64(first) / tileWidth, W: int(min(tileWidth, size-first))}
}

// verifyTile compares entries of one tile with their hashes, which tlog proves to be in the tree, and hands on those that are right.
func (r *Report) verifyTile(dir string, proven tlog.HashReader, of Range, right func(uint64, []byte)) {
	first := of.First / tileWidth * tileWidth
	t := entryTile(first, of.Last+1)
	indexes := make([]int64, t.W)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, int64(first)+int64(i))
	}
	hashes, err := proven.ReadHashes(indexes)
	if err != nil {
		r.fault(&of, "the hash tiles above them are missing or changed (%v)", err)
		return
	}
	entries, err := readEntries(dir, t)
	for i, entry := range entries {
		n := first + uint64(i)
		if n < of.First {
			continue
		}
		if h := tlog.RecordHash(entry); h != hashes[i] {
			r.fault(&Range{n, n}, "is not what was recorded%s", moved(h, hashes, first))
			continue
		}
		right(n, entry)
	}
	if err != nil {
		r.fault(&Range{max(first+uint64(len(entries)), of.First), of.Last}, "%s: %v", tilePath(t), err)
	}
}

// moved says where an entry belongs that stands in a wrong place.
func moved(h tlog.Hash, hashes []tlog.Hash, first uint64) string {
	for i, other := range hashes {
		if h == other {
			return fmt.Sprintf("; entry %d stands in its place", first+uint64(i))
		}
	}
	return ""
}

// readEntries reads the entries of a tile; with an error, those before the place where it breaks off.
func readEntries(dir string, t tlog.Tile) ([][]byte, error) {
	b, err := readTile(dir, t)
	if err == nil {
		return splitEntries(b), nil
	}
	for short := t; errors.Is(err, errShort) && short.W > 1; {
		short.W--
		raw, readErr := os.ReadFile(filepath.Join(dir, tilePath(t)))
		if readErr != nil {
			break
		}
		if part, narrowErr := narrow(short, raw); narrowErr == nil {
			return splitEntries(part), err
		}
	}
	return nil, err
}

// Consistent checks that the log of head begins with the log that an earlier head, a signed note, describes.
func Consistent(dir string, head Head, earlier []byte, keys ...note.Verifier) error {
	old, err := ParseHead(earlier, keys...)
	if err != nil {
		return fmt.Errorf("the head kept elsewhere: %w", err)
	}
	if old.Size > head.Size {
		return fmt.Errorf("the log was cut: it has %d entries, and had %d when the head kept elsewhere was taken", head.Size, old.Size)
	}
	root := head.Root
	if old.Size < head.Size {
		if root, err = tlog.TreeHash(int64(old.Size), tlog.TileHashReader(head.tree(), tileReader{dir})); err != nil {
			return fmt.Errorf("whether the log continues the head kept elsewhere cannot be told: %w", err)
		}
	}
	if root != old.Root {
		return fmt.Errorf("the log was rewritten: its first %d entries are not those of the head kept elsewhere", old.Size)
	}
	return nil
}

// Records gives the records from one sequence number to before another, as they stand in the log. It proves nothing: that is
// Verify's work. The first error ends it.
func Records(dir string, from, to uint64) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for first := from / tileWidth * tileWidth; first < to; first += tileWidth {
			t := entryTile(first, to)
			entries, err := readEntries(dir, t)
			for i, entry := range entries {
				n := first + uint64(i)
				if n < from {
					continue
				}
				r, err := decode(entry)
				if err != nil {
					yield(Record{}, fmt.Errorf("audit log %s: entry %d: %w", dir, n, err))
					return
				}
				if !yield(r, nil) {
					return
				}
			}
			if err != nil {
				yield(Record{}, fmt.Errorf("audit log %s: %s: %w", dir, tilePath(t), err))
				return
			}
		}
	}
}

// Export copies the log in dir, as its signed head has it now, into the folder to, which must not exist, and checks the copy.
func Export(dir, to string, keys ...note.Verifier) (*Report, error) {
	head, err := ReadHead(dir, keys...)
	if err != nil {
		return nil, err
	}
	public, err := publicKeys(dir)
	if err != nil {
		return nil, fmt.Errorf("audit export: %w", err)
	}
	if err := os.Mkdir(to, 0o750); err != nil {
		return nil, fmt.Errorf("audit export: %w", err)
	}
	for _, t := range tilesOf(int64(head.Size)) {
		b, err := readTile(dir, t)
		if err == nil {
			err = put(filepath.Join(to, tilePath(t)), b, 0o640)
		}
		if err != nil {
			return nil, fmt.Errorf("audit export: %s: %w", tilePath(t), err)
		}
	}
	for n, key := range public {
		name := "key.pub"
		if n < len(public)-1 {
			name = fmt.Sprintf("key.pub.%d", n+1)
		}
		if err := put(filepath.Join(to, name), []byte(key+"\n"), 0o640); err != nil {
			return nil, fmt.Errorf("audit export: %w", err)
		}
	}
	if err := put(filepath.Join(to, "checkpoint"), head.Note, 0o640); err != nil {
		return nil, fmt.Errorf("audit export: %w", err)
	}
	return Verify(to, nil, keys...)
}

// tilesOf lists the tiles of a tree, hashes and entries.
func tilesOf(size int64) []tlog.Tile {
	list := tlog.NewTiles(tileHeight, 0, size)
	for _, t := range list {
		if t.L == 0 {
			list = append(list, tlog.Tile{H: tileHeight, L: entryLevel, N: t.N, W: t.W})
		}
	}
	return list
}
