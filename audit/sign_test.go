package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// tokenKey is a key that is not at hand: it signs through what Log offers for that.
func tokenKey(t testing.TB, kind string) (note.Signer, string, note.Verifier) {
	t.Helper()
	signer, public, err := NewSigner("example.org/log", newKeys(t)[kind])
	if err != nil {
		t.Fatal(err)
	}
	v, err := ParsePublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return signer, public, v
}

func openLocal(t testing.TB, dir string) *Log {
	t.Helper()
	l, err := OpenLocal(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func signWith(t testing.TB, l *Log, s note.Signer, public string) {
	t.Helper()
	if err := l.SignWith(context.Background(), s, public); err != nil {
		t.Fatal(err)
	}
}

// copyOwn copies a log with its local head.
func copyOwn(t testing.TB, dir string) string {
	t.Helper()
	to := copyLog(t, dir)
	b, err := os.ReadFile(localFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return to
	}
	if err == nil {
		err = os.WriteFile(localFile(to), b, 0o640)
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// Records are durable before anybody signs them; then a signed head covers them, and a copy of the folder verifies at every moment.
func TestLocalHead(t *testing.T) {
	for _, kind := range []string{"Ed25519", "P-256"} {
		t.Run(kind, func(t *testing.T) {
			signer, public, v := tokenKey(t, kind)
			dir := filepath.Join(t.TempDir(), "log")
			l := openLocal(t, dir)
			add(t, l, 3)
			if got := names(t, dir); !slices.Equal(got, []string{"tile"}) {
				t.Errorf("before a signature there is %v", got)
			}
			r := verify(t, dir, v, nil)
			if r.OK() || r.Unsigned == nil || *r.Unsigned != (Range{0, 2}) {
				t.Errorf("nothing signed: %+v", r)
			}
			signWith(t, l, signer, public)
			wantWhole(t, copyLog(t, dir), v, 3)
			for n := uint64(4); n < 600; n += 97 {
				l = openLocal(t, restart(t, l))
				add(t, l, 1)
				fill(t, l, int(n-l.Head().Size))
				before := verify(t, dir, v, nil)
				if !before.OK() || before.Head.Size+before.Unsigned.Last-before.Unsigned.First+1 != n {
					t.Fatalf("%d entries, of which the last are not signed: %+v", n, before)
				}
				wantWhole(t, copyLog(t, dir), v, before.Head.Size)
				signWith(t, l, signer, public)
				wantWhole(t, dir, v, n)
				wantWhole(t, copyLog(t, dir), v, n)
			}
			if _, err := os.Stat(filepath.Join(dir, "tile/entries/000.p")); !errors.Is(err, fs.ErrNotExist) {
				t.Error("partial tiles outlive the signed full one")
			}
			for i, r := range slices.Collect(values(l.Records(0))) {
				if r.Sequence != uint64(i) {
					t.Fatalf("entry %d has number %d", i, r.Sequence)
				}
			}
		})
	}
}

func values(seq func(func(Record, error) bool)) func(func(Record) bool) {
	return func(yield func(Record) bool) {
		seq(func(r Record, err error) bool { return err == nil && yield(r) })
	}
}

// restart closes a log and gives its folder.
func restart(t testing.TB, l *Log) string {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.dir
}

// Grown speaks once for any number of records, and AwaitSigned returns when they are signed.
func TestGrown(t *testing.T) {
	signer, public, _ := tokenKey(t, "Ed25519")
	l := openLocal(t, filepath.Join(t.TempDir(), "log"))
	add(t, l, 5)
	<-l.Grown()
	select {
	case <-l.Grown():
		t.Error("it speaks twice")
	default:
	}
	short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := l.AwaitSigned(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody signed: %v", err)
	}
	signed := make(chan error)
	go func() { signed <- l.AwaitSigned(context.Background()) }()
	signWith(t, l, signer, public)
	if err := <-signed; err != nil {
		t.Error(err)
	}
}

// Place takes no head but one of this log, by the key that is to sign, and none that is shorter than the signed one.
func TestPlaceJudges(t *testing.T) {
	signer, public, v := tokenKey(t, "P-256")
	dir := filepath.Join(t.TempDir(), "log")
	l := openLocal(t, dir)
	add(t, l, 2)
	signWith(t, l, signer, public)
	old := l.Signed()
	add(t, l, 2)
	signWith(t, l, signer, public)

	other := openLocal(t, filepath.Join(t.TempDir(), "other"))
	fill(t, other, 3)
	fill(t, other, 1)
	r := event(77)
	if _, err := other.Append(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	signWith(t, other, signer, public)
	stranger, strange, _ := tokenKey(t, "P-256")
	byStranger, err := signHead(l.Head(), stranger, strange)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		head   Head
		public string
		want   string
	}{
		"shorter":         {old, public, "it must have 4 to 4"},
		"longer":          {other.Signed(), public, "it must have 4 to 4"},
		"by another key":  {byStranger, strange, "by another key than is to sign it"},
		"not by this key": {byStranger, public, "head of the audit log"},
	} {
		if err := l.Place(c.head, c.public); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	add(t, l, 1)
	if err := l.Place(other.Signed(), public); err == nil || !strings.Contains(err.Error(), "its root is another one") {
		t.Errorf("of another log: %v", err)
	}
	r4 := verify(t, dir, v, nil)
	if !r4.OK() || r4.Head.Size != 4 {
		t.Errorf("%+v", r4)
	}
	if _, err := l.Head().WithSignature(public, []byte("no signature")); err == nil {
		t.Error("no signature is taken for one")
	}
}

// Proof is what x/mod's CheckTree asks for, between any two sizes.
func TestProof(t *testing.T) {
	l := openLocal(t, filepath.Join(t.TempDir(), "log"))
	var heads []Head
	for _, n := range []int{1, 1, 5, 248, 1, 1, 300, 3} {
		fill(t, l, n)
		heads = append(heads, l.Head())
	}
	for i, old := range heads {
		for _, h := range heads[i:] {
			p, err := l.Proof(old.Size, h)
			if err != nil {
				t.Fatal(err)
			}
			if err := tlog.CheckTree(p, int64(h.Size), h.Root, int64(old.Size), old.Root); err != nil {
				t.Errorf("%d to %d: %v", old.Size, h.Size, err)
			}
		}
	}
	if p, err := l.Proof(0, l.Head()); err != nil || len(p) > 0 {
		t.Errorf("from nothing: %v, %v", p, err)
	}
}

// The log goes on under another key, whichever way, and says which entries came under which. A key that was left without signing anything leaves its mark, too.
func TestKeyChange(t *testing.T) {
	soft, softPublic, softV := testKey(t)
	a, aPublic, aV := tokenKey(t, "Ed25519")
	b, bPublic, bV := tokenKey(t, "P-256")
	dir := filepath.Join(t.TempDir(), "log")
	l := open(t, dir, soft, softPublic)
	add(t, l, 3)

	l = openLocal(t, restart(t, l)) // none -> token
	add(t, l, 2)
	r := verify(t, dir, softV, nil)
	if !r.OK() || r.Head.Size != 3 || *r.Unsigned != (Range{3, 4}) {
		t.Fatalf("the token's key is not known yet: %+v", r)
	}
	signWith(t, l, a, aPublic) // entry 5 is the record of it
	add(t, l, 1)
	signWith(t, l, a, aPublic)
	wantWhole(t, dir, aV, 7)
	witness := l.Signed().Note

	if err := l.UseKey(context.Background(), bPublic); err != nil { // A -> B, which is gone before it signs
		t.Fatal(err)
	}
	l = openLocal(t, restart(t, l))
	signWith(t, l, a, aPublic) // B -> A
	wantWhole(t, dir, aV, 9)
	signWith(t, l, b, bPublic)
	wantWhole(t, dir, bV, 10)

	l.Close()
	l = open(t, dir, soft, softPublic) // token -> none
	add(t, l, 1)
	if _, err := ReadLocal(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the local head stays")
	}
	r = verify(t, dir, softV, nil)
	want := []Signed{{id(softV), Range{0, 2}}, {id(aV), Range{3, 8}}, {id(bV), Range{9, 9}}, {id(softV), Range{10, 11}}}
	if !r.OK() || !slices.Equal(r.Keys, want) || r.Head.Size != 12 {
		t.Errorf("%v, under %v; want %v", r.Faults, r.Keys, want)
	}
	var events []string
	for r := range values(l.Records(0)) {
		if r.Event == EventKey {
			events = append(events, fmt.Sprintf("%d %s", r.Sequence, r.Actor))
		}
	}
	if want := []string{"5 log", "7 log", "8 log", "9 log", "10 log"}; !slices.Equal(events, want) {
		t.Errorf("changes are recorded at %v, want %v", events, want)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"checkpoint", "key.pub", "key.pub.1", "key.pub.2", "key.pub.3", "tile"}) {
		t.Errorf("files %v", got)
	}
	keys, err := ReadKeys(dir)
	if err != nil || len(keys) != 4 || id(keys[0]) != id(softV) || id(keys[1]) != id(aV) || id(keys[2]) != id(bV) {
		t.Errorf("keys %v, %v", keys, err)
	}

	// Who has an old key sees whose head it is instead; a head kept from an old key's time is compared with that key.
	r = verify(t, dir, aV, nil)
	if r.OK() || !strings.Contains(r.Faults[0].Text, "not signed by the key example.org/log, but by "+id(softV)) {
		t.Errorf("with an old key: %v", r.Faults)
	}
	r, err = Verify(dir, witness, softV, aV)
	if err != nil || !r.OK() || !r.Witness {
		t.Errorf("with an old head: %+v, %v", r, err)
	}
	to := filepath.Join(t.TempDir(), "export")
	if r, err := Export(dir, to, keys...); err != nil || !r.OK() || !slices.Equal(names(t, to), names(t, dir)) {
		t.Errorf("export: %+v, %v, %v", r, err, names(t, to))
	}
}

func id(v note.Verifier) string { return keyID(v.Name(), v.KeyHash()) }

// A change of the key that the records do not bear out is found.
func TestForgedKeyChange(t *testing.T) {
	a, aPublic, _ := tokenKey(t, "Ed25519")
	_, bPublic, _ := tokenKey(t, "Ed25519")
	c, cPublic, cV := tokenKey(t, "Ed25519")
	other := openLocal(t, filepath.Join(t.TempDir(), "other"))
	add(t, other, 1)
	signWith(t, other, a, aPublic)
	change := func(old, new string, head []byte) Record {
		r := event(0)
		r.Event, r.Details = EventKey, []Detail{{"old", old}, {"new", new}, {"head", string(head)}}
		return r
	}
	for name, x := range map[string]struct {
		changes []Record
		want    string
	}{
		"another head":  {[]Record{change(aPublic, cPublic, other.Signed().Note)}, "the last head under the key before: the log was rewritten"},
		"no head":       {[]Record{change(aPublic, cPublic, []byte("nothing"))}, "the last head under the key before"},
		"another key":   {[]Record{change(aPublic, bPublic, nil)}, "is not the key that the log's last record of a change names"},
		"a gap":         {[]Record{change(aPublic, bPublic, nil), change(aPublic, cPublic, nil)}, "goes on from another key"},
		"no key at all": {[]Record{change("", cPublic, nil)}, "names no key"},
	} {
		dir := filepath.Join(t.TempDir(), "log")
		l := openLocal(t, dir)
		r := event(5)
		if _, err := l.Append(context.Background(), r); err != nil {
			t.Fatal(err)
		}
		for _, r := range x.changes {
			if _, err := l.Append(context.Background(), r); err != nil {
				t.Fatal(err)
			}
		}
		signWith(t, l, c, cPublic)
		r2 := verify(t, dir, cV, nil)
		if r2.OK() || !strings.Contains(fmt.Sprint(r2.Faults), x.want) {
			t.Errorf("%s: %v, want %q", name, r2.Faults, x.want)
		}
	}
}

// A process that ends, or a disk that is full, at any step from the record to the head that a token has signed, with a change of the key on the way: every acknowledged record is
// there, checkpoint and keys fit at every moment, and the log goes on.
func TestCrashAtEveryStepOfASignature(t *testing.T) {
	a, aPublic, aV := tokenKey(t, "Ed25519")
	b, bPublic, bV := tokenKey(t, "P-256")
	for _, before := range []int{0, 250, 502} {
		start := filepath.Join(t.TempDir(), "log")
		l := openLocal(t, start)
		fill(t, l, before)
		signWith(t, l, a, aPublic)
		l.Close()
		for step, crashed := 0, true; crashed; step++ {
			crashed = false
			work := copyOwn(t, start)
			l := openLocal(t, work)
			var copies []string
			n := 0
			real := l.put
			l.put = func(path string, data []byte, mode fs.FileMode) error {
				if n++; n-1 != step {
					return real(path, data, mode)
				}
				crashed = true
				torn := copyOwn(t, work)
				name, err := filepath.Rel(work, path)
				if err != nil {
					t.Fatal(err)
				}
				os.MkdirAll(filepath.Dir(filepath.Join(torn, name)), 0o750)
				target := func(dir string) string {
					if path == localFile(work) {
						return localFile(dir)
					}
					return filepath.Join(dir, name)
				}
				if err := os.WriteFile(target(torn)+".new", data[:len(data)/2], mode); err != nil {
					t.Fatal(err)
				}
				whole := copyOwn(t, work)
				if err := put(target(whole), data, mode); err != nil {
					t.Fatal(err)
				}
				copies = append(copies, torn, whole)
				return &fs.PathError{Op: "write", Path: path, Err: syscall.ENOSPC}
			}
			acknowledged := uint64(before)
			r := event(1)
			if _, err := l.Append(context.Background(), r); err == nil {
				acknowledged++
			} else if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			if err := l.SignWith(context.Background(), b, bPublic); err != nil && !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			l.put = real
			signWith(t, l, b, bPublic) // there is room again
			wantSigned(t, l, aV, bV, acknowledged)
			for _, dir := range copies {
				keys, err := ReadKeys(dir)
				if err != nil {
					t.Fatalf("step %d: %v", step, err)
				}
				if r, err := Verify(copyLog(t, dir), nil, keys...); err != nil || !r.OK() || r.Head.Size < uint64(before) {
					t.Fatalf("step %d: a copy at that moment: %+v, %v", step, r, err)
				}
				l := openLocal(t, dir)
				if l.Head().Size < uint64(before) || len(copies) == 0 {
					t.Fatalf("step %d: %d records", step, l.Head().Size)
				}
				kept := l.Head().Size
				signWith(t, l, b, bPublic)
				wantSigned(t, l, aV, bV, kept)
			}
			if !crashed && step < 8 { // two tiles and the local head for each of two records, the two keys, checkpoint
				t.Errorf("%d records before: %d steps were tried", before, step)
			}
		}
	}
}

// wantSigned fails unless a log is whole under the second of two keys, has at least so many records, and one record of the change.
func wantSigned(t testing.TB, l *Log, first, second note.Verifier, least uint64) {
	t.Helper()
	r := verify(t, l.dir, second, nil)
	changes := 0
	for r := range values(l.Records(0)) {
		if r.Event == EventKey {
			changes++
		}
	}
	if !r.OK() || r.Unsigned != nil || r.Head.Size < least || changes != 1 || r.Keys[len(r.Keys)-1].Key != id(second) {
		t.Fatalf("want %d records or more without fault, one change of the key; have %+v, %d changes", least, r, changes)
	}
	if len(r.Keys) == 2 && r.Keys[0].Key != id(first) {
		t.Fatalf("keys %v", r.Keys)
	}
}

// What local mode relies on is refused when it is damaged, and never written over.
func TestOpenLocalRefusesDamage(t *testing.T) {
	signer, public, _ := tokenKey(t, "Ed25519")
	dir := filepath.Join(t.TempDir(), "log")
	l := openLocal(t, dir)
	fill(t, l, 300)
	signWith(t, l, signer, public)
	fill(t, l, 5)
	l.Close()
	for name, change := range map[string]func(string) error{
		"local head gone":    func(d string) error { return os.Remove(localFile(d)) },
		"local head cut":     func(d string) error { return os.Truncate(localFile(d), 3) },
		"local head forged":  func(d string) error { return os.WriteFile(localFile(d), Head{Size: 304}.localText(), 0o640) },
		"checkpoint changed": func(d string) error { return os.WriteFile(filepath.Join(d, "checkpoint"), []byte("x\n"), 0o640) },
		"key.pub gone":       func(d string) error { return os.Remove(filepath.Join(d, "key.pub")) },
		"signed tile gone":   func(d string) error { return os.RemoveAll(filepath.Join(d, "tile/0/001.p")) },
		"unsigned entry": func(d string) error {
			return os.WriteFile(filepath.Join(d, "tile/entries/001.p/49"), make([]byte, 98), 0o640)
		},
	} {
		bad := copyOwn(t, dir)
		if err := change(bad); err != nil {
			t.Fatal(err)
		}
		if l, err := OpenLocal(bad, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrDamaged) {
			if err == nil {
				l.Close()
			}
			t.Errorf("%s: %v", name, err)
		}
	}
	// An edit beyond the signed head is named, and what is signed stays proven.
	bad := copyOwn(t, dir)
	path := filepath.Join(bad, "tile/entries/001.p/49")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	entries := splitEntries(b)
	copy(entries[46][8:], "9") // seq of entry 302
	if err := os.WriteFile(path, b, 0o640); err != nil {
		t.Fatal(err)
	}
	v, _ := ParsePublicKey(public)
	if r := verify(t, bad, v, nil); r.OK() || !strings.HasPrefix(r.Faults[0].String(), "entry 302: is not what was recorded") ||
		!slices.Equal(r.Proven, []Range{{0, 299}}) {
		t.Errorf("%v, proven %v", r.Faults, r.Proven)
	}
}

// A client of golang.org/x/mod, which knows nothing of this package, reads the files as an outsider would: a checkpoint, tiles and proofs, while the log is ahead of its signed head.
func TestPublicVerifier(t *testing.T) {
	signer, public, _ := tokenKey(t, "Ed25519")
	dir := filepath.Join(t.TempDir(), "log")
	l := openLocal(t, dir)
	var trees []tlog.Tree
	for _, n := range []int{3, 250, 10, 300} {
		fill(t, l, n)
		signWith(t, l, signer, public)
		add(t, l, 20) // not signed yet
		v, err := note.NewVerifier(public)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
		if err != nil {
			t.Fatal(err)
		}
		opened, err := note.Open(text, note.VerifierList(v))
		if err != nil {
			t.Fatal(err)
		}
		var tree tlog.Tree
		var root string
		if _, err := fmt.Sscanf(opened.Text, "example.org/log\n%d\n%s\n", &tree.N, &root); err != nil {
			t.Fatal(err)
		}
		if tree.Hash, err = tlog.ParseHash(root); err != nil {
			t.Fatal(err)
		}
		hashes := tlog.TileHashReader(tree, outsider{dir})
		for i := int64(0); i < tree.N; i += 7 {
			proof, err := tlog.ProveRecord(tree.N, i, hashes)
			if err != nil {
				t.Fatal(err)
			}
			if err := tlog.CheckRecord(proof, tree.N, tree.Hash, i, tlog.RecordHash(outsider{dir}.entry(t, tree.N, i))); err != nil {
				t.Fatalf("entry %d of %d: %v", i, tree.N, err)
			}
		}
		for _, old := range trees {
			proof, err := tlog.ProveTree(tree.N, old.N, hashes)
			if err == nil {
				err = tlog.CheckTree(proof, tree.N, tree.Hash, old.N, old.Hash)
			}
			if err != nil {
				t.Fatalf("%d continues %d: %v", tree.N, old.N, err)
			}
		}
		trees = append(trees, tree)
	}
}

// outsider reads tiles by the paths of C2SP tlog-tiles alone.
type outsider struct{ dir string }

func (o outsider) Height() int                     { return 8 }
func (o outsider) SaveTiles([]tlog.Tile, [][]byte) {}
func (o outsider) number(n int64) string           { return fmt.Sprintf("%03d", n) } // below 1000
func (o outsider) file(kind string, n, w int64) string {
	return filepath.Join(o.dir, "tile", kind, o.number(n)+partial(w))
}

func partial(w int64) string {
	if w == 256 {
		return ""
	}
	return fmt.Sprintf(".p/%d", w)
}

func (o outsider) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var data [][]byte
	for _, t := range tiles {
		b, err := os.ReadFile(o.file(fmt.Sprint(t.L), t.N, int64(t.W)))
		if err != nil {
			return nil, err
		}
		data = append(data, b)
	}
	return data, nil
}

func (o outsider) entry(t testing.TB, size, i int64) []byte {
	t.Helper()
	b, err := os.ReadFile(o.file("entries", i/256, min(256, size-i/256*256)))
	if err != nil {
		t.Fatal(err)
	}
	for range i % 256 {
		b = b[2+int(b[0])<<8+int(b[1]):]
	}
	return b[2 : 2+int(b[0])<<8+int(b[1])]
}

// Of several heads kept in one file, the log's own is compared.
func TestSplitNotes(t *testing.T) {
	one, two := "a\n1\nroot\n\n— a sig\n", "b\n2\nroot\n\n— b sig\n— c sig\n"
	for text, want := range map[string][]string{
		"": nil, "\n\n": nil, one: {one}, one + "\n" + two: {one, two}, two + one: {two, one}, "\n" + one + "\n\n\n" + two + "\n": {one, two}, "rubbish": {"rubbish"},
	} {
		var got []string
		for _, n := range SplitNotes([]byte(text)) {
			got = append(got, string(n))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
