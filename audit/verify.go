package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// maxFaults bounds a Report: a log that lost everything has as many faults as entries.
const maxFaults = 100

// Report is what Verify found.
type Report struct {
	Head    Head    // signed by the key; zero when no such head could be read
	Proven  []Range // the entries that are what the head signed, in order
	Faults  []Fault // at most 100
	Omitted int     // faults beyond these
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

// Verify checks the whole log in dir against its head, and the head against the key and, if there is one, the signed note of an earlier
// head that was kept elsewhere. It needs nothing but the files, which may be a copy or the log of a running process. The error is about
// reading; what is wrong with the log is in the report.
func Verify(dir string, v note.Verifier, witness []byte) (*Report, error) {
	r := &Report{}
	head, err := ReadHead(dir, v)
	if errors.Is(err, fs.ErrNotExist) {
		r.fault(nil, "the head, checkpoint, is missing: nothing of this log is proven")
		return r, nil
	}
	var noNote *note.UnverifiedNoteError
	if errors.As(err, &noNote) {
		r.fault(nil, "the head is not signed by the key %s: another log stands here, or the key is the wrong one; nothing of it is proven", v.Name())
		return r, nil
	}
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return nil, err
	}
	if err != nil {
		r.fault(nil, "%v: nothing of this log is proven", err)
		return r, nil
	}
	r.Head = head
	if witness != nil {
		if err := Consistent(dir, v, head, witness); err != nil {
			r.fault(nil, "%v", err)
		}
	}
	if r.rebuild(dir) {
		return r, nil
	}
	hashes := tlog.TileHashReader(head.tree(), tileReader{dir})
	for first := uint64(0); first < head.Size; first += tileWidth {
		r.verifyTile(dir, hashes, first)
	}
	return r, nil
}

// rebuild makes the whole tree anew from the entries. If its root is the signed one, every entry is proven, and what is left
// to compare are the hash tiles. Otherwise it reports nothing.
func (r *Report) rebuild(dir string) bool {
	var e edge
	var tiles []string
	rebuilt := *r
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
	record, err := decode(entry)
	if err != nil {
		r.fault(&Range{n, n}, "was recorded, but is no record: %v", err)
	} else if record.Sequence != n {
		r.fault(&Range{n, n}, "was recorded with the sequence number %d", record.Sequence)
	}
	r.proven(n)
}

// entryTile is the tile of entries that begins with entry first, as far as it goes in a tree of that size.
func entryTile(first, size uint64) tlog.Tile {
	return tlog.Tile{H: tileHeight, L: entryLevel, N: int64(first) / tileWidth, W: int(min(tileWidth, size-first))}
}

// verifyTile compares the entries of one tile with their hashes, which tlog proves to be in the signed tree.
func (r *Report) verifyTile(dir string, proven tlog.HashReader, first uint64) {
	t := entryTile(first, r.Head.Size)
	all := &Range{first, first + uint64(t.W) - 1}
	indexes := make([]int64, t.W)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, int64(first)+int64(i))
	}
	hashes, err := proven.ReadHashes(indexes)
	if err != nil {
		r.fault(all, "the hash tiles above them are missing or changed (%v)", err)
		return
	}
	entries, err := readEntries(dir, t)
	for i, entry := range entries {
		n := first + uint64(i)
		if h := tlog.RecordHash(entry); h != hashes[i] {
			r.fault(&Range{n, n}, "is not what was recorded%s", moved(h, hashes, first))
			continue
		}
		r.record(n, entry)
	}
	if err != nil {
		r.fault(&Range{first + uint64(len(entries)), all.Last}, "%s: %v", tilePath(t), err)
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
func Consistent(dir string, v note.Verifier, head Head, earlier []byte) error {
	old, err := ParseHead(earlier, v)
	if err != nil {
		return fmt.Errorf("the head kept elsewhere: %w", err)
	}
	if old.Size > head.Size {
		return fmt.Errorf("the log was cut: it has %d entries, and had %d when the head kept elsewhere was taken", head.Size, old.Size)
	}
	root, err := tlog.TreeHash(int64(old.Size), tlog.TileHashReader(head.tree(), tileReader{dir}))
	if err != nil {
		return fmt.Errorf("whether the log continues the head kept elsewhere cannot be told: %w", err)
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

// Export copies the log in dir, as its head has it now, into the folder to, which must not exist, and checks the copy.
func Export(dir, to string, v note.Verifier) (*Report, error) {
	head, err := ReadHead(dir, v)
	if err != nil {
		return nil, err
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
	public, err := os.ReadFile(filepath.Join(dir, "key.pub"))
	if err == nil {
		err = put(filepath.Join(to, "key.pub"), public, 0o640)
	}
	if err == nil {
		err = put(filepath.Join(to, "checkpoint"), head.Note, 0o640)
	}
	if err != nil {
		return nil, fmt.Errorf("audit export: %w", err)
	}
	return Verify(to, v, nil)
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
