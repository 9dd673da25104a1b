package audit

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"
)

// testKey is a key in a folder of its own.
func testKey(t testing.TB) (note.Signer, string, note.Verifier) {
	t.Helper()
	signer, public, err := LoadOrCreateKey(filepath.Join(t.TempDir(), "audit.key"), "example.org/log")
	if err != nil {
		t.Fatal(err)
	}
	v, err := ParsePublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return signer, public, v
}

func open(t testing.TB, dir string, signer note.Signer, public string) *Log {
	t.Helper()
	l, err := Open(dir, signer, public, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func event(i int) Record {
	return Record{
		Time: time.Date(2026, 3, 1, 12, 0, i%60, 0, time.UTC), Event: "crl.import", Actor: "uid 0 (root)", Subject: "class1",
		Outcome: "ok", Details: []Detail{{"number", fmt.Sprintf("%x", i)}, {"file", `a <b> & "c"`}},
	}
}

// fill adds n records in one write.
func fill(t testing.TB, l *Log, n int) {
	t.Helper()
	var records []*Record
	for i := range n {
		r := event(i)
		records = append(records, &r)
	}
	if err := l.commit(records); err != nil {
		t.Fatal(err)
	}
}

func add(t testing.TB, l *Log, n int) {
	t.Helper()
	for i := range n {
		if _, err := l.Append(context.Background(), event(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func verify(t testing.TB, dir string, v note.Verifier, witness []byte) *Report {
	t.Helper()
	r, err := Verify(dir, witness, v)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// wantWhole fails unless a log is in order and has n records.
func wantWhole(t testing.TB, dir string, v note.Verifier, n uint64) {
	t.Helper()
	r := verify(t, dir, v, nil)
	if !r.OK() || r.Head.Size != n || n > 0 && !slices.Equal(r.Proven, []Range{{0, n - 1}}) {
		t.Fatalf("want %d entries without fault, have %+v", n, r)
	}
}

func copyLog(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// The tree is recomputed here from the raw files by RFC 6962 section 2.1 as written, with nothing of this package, and the names
// of the files are the example of C2SP tlog-tiles for a tree of 70,000 entries.
func TestLayoutIsC2SPTiles(t *testing.T) {
	signer, public, v := testKey(t)
	dir := t.TempDir()
	l := open(t, dir, signer, public)
	fill(t, l, 69_998)
	add(t, l, 2)

	var hashes [][32]byte
	for n := range 274 {
		name := fmt.Sprintf("tile/entries/%03d", n)
		if n == 273 {
			name += ".p/112"
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for len(b) > 0 {
			size := binary.BigEndian.Uint16(b)
			hashes = append(hashes, sha256.Sum256(append([]byte{0}, b[2:2+size]...)))
			b = b[2+size:]
		}
	}
	if len(hashes) != 70_000 {
		t.Fatalf("%d entries", len(hashes))
	}
	root := merkle(hashes)
	want := fmt.Sprintf("example.org/log\n70000\n%s\n", base64.StdEncoding.EncodeToString(root[:]))
	if text := string(l.Head().Note); !strings.HasPrefix(text, want+"\n— example.org/log ") {
		t.Errorf("checkpoint\n%s\nwants to begin\n%s", text, want)
	}
	for name, size := range map[string]int64{
		"tile/0/272": 8192, "tile/0/273.p/112": 112 * 32, "tile/1/000": 8192, "tile/1/001.p/17": 17 * 32, "tile/2/000.p/1": 32,
	} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() != size {
			t.Errorf("%s: want %d octets: %v", name, size, err)
		}
	}
	first := merkle(hashes[:65536])
	if b, err := os.ReadFile(filepath.Join(dir, "tile/2/000.p/1")); err != nil || string(b) != string(first[:]) {
		t.Errorf("tile/2/000.p/1: %x, %v", b, err)
	}
	wantWhole(t, dir, v, 70_000)

	l.Close()
	l = open(t, dir, signer, public)
	add(t, l, 1)
	wantWhole(t, dir, v, 70_001)
}

func merkle(leaves [][32]byte) [32]byte {
	if len(leaves) == 1 {
		return leaves[0]
	}
	k := 1
	for k*2 < len(leaves) {
		k *= 2
	}
	left, right := merkle(leaves[:k]), merkle(leaves[k:])
	return sha256.Sum256(slices.Concat([]byte{1}, left[:], right[:]))
}

func TestAppendAndRead(t *testing.T) {
	signer, public, v := testKey(t)
	dir := t.TempDir()
	l := open(t, dir, signer, public)
	wantWhole(t, dir, v, 0)
	for i := range 300 {
		n, err := l.Append(context.Background(), event(i))
		if err != nil || n != uint64(i) {
			t.Fatalf("%d: sequence %d, %v", i, n, err)
		}
		if i > 250 && i < 260 {
			wantWhole(t, dir, v, n+1)
		}
	}
	i := 250
	for r, err := range l.Records(250) {
		want := event(i)
		want.Sequence = uint64(i)
		if d := cmp.Diff(want, r); d != "" || err != nil {
			t.Fatalf("%v\n%s", err, d)
		}
		i++
	}
	if i != 300 {
		t.Errorf("records end at %d", i)
	}
	if _, err := os.Stat(filepath.Join(dir, "tile/entries/000.p")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("partial tiles outlive the full one")
	}
	for range l.Records(300) {
		t.Error("a record beyond the end")
	}
}

// 10,000 records from many goroutines: each gets a number of its own, without a gap, and all are there after opening again (OCSP-AUD-02).
func TestConcurrentAppends(t *testing.T) {
	signer, public, v := testKey(t)
	dir := t.TempDir()
	l := open(t, dir, signer, public)
	const writers, each = 100, 100
	numbers := make([][]uint64, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				r := event(i)
				r.Subject = fmt.Sprint(w, " ", i)
				n, err := l.Append(context.Background(), r)
				if err != nil {
					t.Error(err)
					return
				}
				numbers[w] = append(numbers[w], n)
			}
		})
	}
	wg.Wait()
	l.Close()
	wantWhole(t, dir, v, writers*each)
	subjects := map[uint64]string{}
	for r, err := range open(t, dir, signer, public).Records(0) {
		if err != nil {
			t.Fatal(err)
		}
		subjects[r.Sequence] = r.Subject
	}
	for w := range writers {
		for i, n := range numbers[w] {
			if want := fmt.Sprint(w, " ", i); subjects[n] != want {
				t.Fatalf("record %d is of %q, acknowledged to %q", n, subjects[n], want)
			}
		}
	}
}

// OCSP-AUD-03: edit, delete, reorder, tail truncation and replacement are each found, and what is unharmed is said to be so.
func TestAUD03Mutations(t *testing.T) {
	signer, public, v := testKey(t)
	dir := t.TempDir()
	l := open(t, dir, signer, public)
	fill(t, l, 600)
	early := l.Head().Note
	older := copyLog(t, dir)
	fill(t, l, 100)
	l.Close()

	entries := func(dir, name string, change func([][]byte) [][]byte) {
		t.Helper()
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var out []byte
		for _, e := range change(splitEntries(b)) {
			out = binary.BigEndian.AppendUint16(out, uint16(len(e)))
			out = append(out, e...)
		}
		if err := os.WriteFile(path, out, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(t *testing.T, dir, name string) {
		t.Helper()
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	edit := func(list [][]byte) [][]byte {
		list[44] = []byte(strings.Replace(string(list[44]), "root", "toor", 1))
		return list
	}
	for _, c := range []struct {
		name    string
		mutate  func(t *testing.T, dir string)
		witness []byte
		proven  []Range
		fault   string
	}{
		{"edit", func(t *testing.T, dir string) { entries(dir, "tile/entries/001", edit) }, nil,
			[]Range{{0, 299}, {301, 699}}, "entry 300: is not what was recorded"},
		{"edit with its hash", func(t *testing.T, dir string) {
			entries(dir, "tile/entries/001", edit)
			b, _ := os.ReadFile(filepath.Join(dir, "tile/entries/001"))
			h := sha256.Sum256(append([]byte{0}, splitEntries(b)[44]...))
			tile, _ := os.ReadFile(filepath.Join(dir, "tile/0/001"))
			copy(tile[44*32:], h[:])
			if err := os.WriteFile(filepath.Join(dir, "tile/0/001"), tile, 0o640); err != nil {
				t.Fatal(err)
			}
		}, nil, []Range{{0, 255}, {512, 699}}, "entries 256 to 511: the hash tiles above them are missing or changed"},
		{"delete one", func(t *testing.T, dir string) {
			entries(dir, "tile/entries/001", func(l [][]byte) [][]byte { return slices.Delete(l, 254, 255) })
		}, nil, []Range{{0, 509}, {512, 699}}, "entry 510: is not what was recorded; entry 511 stands in its place"},
		{"delete a tile", func(t *testing.T, dir string) { remove(t, dir, "tile/entries/000") }, nil,
			[]Range{{256, 699}}, "entries 0 to 255: tile/entries/000"},
		{"reorder", func(t *testing.T, dir string) {
			entries(dir, "tile/entries/000", func(l [][]byte) [][]byte { l[7], l[8] = l[8], l[7]; return l })
		}, nil, []Range{{0, 6}, {9, 699}}, "entry 7: is not what was recorded; entry 8 stands in its place"},
		{"cut the tail", func(t *testing.T, dir string) {
			entries(dir, "tile/entries/002.p/188", func(l [][]byte) [][]byte { return l[:100] })
		}, nil, []Range{{0, 611}}, "entries 612 to 699: tile/entries/002.p/188: is shorter"},
		{"cut within an entry", func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, "tile/entries/001"), 1000); err != nil {
				t.Fatal(err)
			}
		}, nil, nil, "entries 261 to 511: tile/entries/001: is shorter"},
		{"back to an earlier head", func(t *testing.T, dir string) {
			remove(t, dir, ".")
			if err := os.CopyFS(dir, os.DirFS(older)); err != nil {
				t.Fatal(err)
			}
		}, l.Head().Note, []Range{{0, 599}}, "the log was cut: it has 600 entries, and had 700"},
		{"replace by another history", func(t *testing.T, dir string) {
			remove(t, dir, ".")
			other := open(t, dir, signer, public)
			add(t, other, 1)
			fill(t, other, 799)
			other.Close()
		}, early, []Range{{0, 799}}, "the log was rewritten: its first 600 entries are not those"},
		{"replace by a log of another key", func(t *testing.T, dir string) {
			remove(t, dir, ".")
			s, p, _ := testKey(t)
			other := open(t, dir, s, p)
			fill(t, other, 700)
			other.Close()
		}, nil, nil, "the head is not signed by the key example.org/log"},
		{"edit the head", func(t *testing.T, dir string) {
			text := strings.Replace(string(l.Head().Note), "\n700\n", "\n600\n", 1)
			if err := os.WriteFile(filepath.Join(dir, "checkpoint"), []byte(text), 0o640); err != nil {
				t.Fatal(err)
			}
		}, nil, nil, "invalid signature"},
		{"delete the head", func(t *testing.T, dir string) { remove(t, dir, "checkpoint") }, nil, nil, "the head, checkpoint, is missing"},
		{"harm a hash tile", func(t *testing.T, dir string) { remove(t, dir, "tile/1") }, nil, []Range{{0, 699}},
			"tile/1/000.p/2 is missing or changed; the entries below it are unharmed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := copyLog(t, dir)
			c.mutate(t, bad)
			r := verify(t, bad, v, c.witness)
			if r.OK() || !strings.Contains(r.Faults[0].String(), c.fault) {
				t.Fatalf("faults %v, want %q", r.Faults, c.fault)
			}
			if c.proven != nil && !slices.Equal(r.Proven, c.proven) {
				t.Errorf("proven are %v, want %v", r.Proven, c.proven)
			}
		})
	}
	if r := verify(t, dir, v, early); !r.OK() {
		t.Errorf("an honest log against its own earlier head: %v", r.Faults)
	}
}

// A damaged right end is never written on.
func TestOpenRefusesDamage(t *testing.T) {
	signer, public, _ := testKey(t)
	dir := t.TempDir()
	l := open(t, dir, signer, public)
	fill(t, l, 300)
	l.Close()
	for _, name := range []string{"checkpoint", "key.pub", "tile/entries/001.p/44", "tile/0/001.p/44", "tile/1/000.p/1"} {
		for _, change := range []string{"deleted", "changed"} {
			bad := copyLog(t, dir)
			path := filepath.Join(bad, name)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if change == "deleted" {
				err = os.Remove(path)
			} else {
				b[len(b)/2] ^= 1
				err = os.WriteFile(path, b, 0o640)
			}
			if err != nil {
				t.Fatal(err)
			}
			if l, err := Open(bad, signer, public, slog.New(slog.DiscardHandler)); err == nil {
				l.Close()
				t.Errorf("%s %s: the log opens", name, change)
			} else if !errors.Is(err, ErrDamaged) && name != "key.pub" {
				t.Errorf("%s %s: %v is not ErrDamaged", name, change, err)
			}
		}
	}
}

func TestOneWriter(t *testing.T) {
	signer, public, _ := testKey(t)
	dir := t.TempDir()
	l := open(t, dir, signer, public)
	if _, err := Open(dir, signer, public, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrInUse) {
		t.Errorf("a second writer: %v", err)
	}
	l.Close()
	if _, err := l.Append(context.Background(), event(0)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("append after Close: %v", err)
	}
	open(t, dir, signer, public)
}

// A process that ends at any step of a write, or a disk that is full there, leaves every acknowledged record and a log that
// goes on.
func TestCrashAtEveryStep(t *testing.T) {
	for _, c := range []struct {
		before uint64
		steps  int // files that 20 records write
	}{
		{0, 3},   // two partial tiles and the head
		{250, 6}, // over the end of a tile: two full ones, three partial ones, the head
		{300, 3}, // the partial tile above stays as it is
		{502, 6}, // and grows
	} {
		t.Run(fmt.Sprint(c.before), func(t *testing.T) { crashAtEveryStep(t, c.before, c.steps) })
	}
}

func crashAtEveryStep(t *testing.T, before uint64, wantSteps int) {
	signer, public, v := testKey(t)
	dir := t.TempDir()
	l := open(t, dir, signer, public)
	fill(t, l, int(before))
	l.Close()

	steps := 0
	for step := 0; ; step++ {
		work := copyOwn(t, dir)
		l := open(t, work, signer, public)
		done := 0
		var crashed []string
		real := l.put
		l.put = func(path string, data []byte, mode fs.FileMode) error {
			if done++; done-1 != step {
				return real(path, data, mode)
			}
			// Torn: the file that is written aside is there in part. Whole: it is in place, but the process does not live to see it.
			torn := copyOwn(t, work)
			name, _ := filepath.Rel(work, path)
			os.MkdirAll(filepath.Dir(filepath.Join(torn, name)), 0o750)
			if err := os.WriteFile(filepath.Join(torn, name+".new"), data[:len(data)/2], mode); err != nil {
				t.Fatal(err)
			}
			crashed = append(crashed, torn)
			whole := copyOwn(t, work)
			if err := put(filepath.Join(whole, name), data, mode); err != nil {
				t.Fatal(err)
			}
			crashed = append(crashed, whole)
			return &fs.PathError{Op: "write", Path: path, Err: syscall.ENOSPC}
		}
		var records []*Record
		for i := range 20 {
			r := event(i)
			records = append(records, &r)
		}
		err := l.commit(records)
		if err == nil {
			steps = step
			break
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		// The full disk: nothing was recorded, and when there is room again the log goes on.
		wantWhole(t, work, v, before)
		l.put = real
		add(t, l, 3)
		wantWhole(t, work, v, before+3)
		l.Close()
		for _, dir := range crashed {
			l := open(t, dir, signer, public)
			n := l.Head().Size
			if n != before && n != before+20 {
				t.Fatalf("step %d: %d records", step, n)
			}
			filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if strings.HasSuffix(path, ".new") {
					t.Errorf("step %d: %s stays", step, path)
				}
				return err
			})
			add(t, l, 10)
			wantWhole(t, dir, v, n+10)
			l.Close()
		}
	}
	if steps != wantSteps {
		t.Errorf("%d steps were tried, want %d", steps, wantSteps)
	}
}

// When it is not known whether the head is durable, nothing more is signed until the log is opened again.
func TestUnknownOutcome(t *testing.T) {
	signer, public, v := testKey(t)
	dir := t.TempDir()
	l := open(t, dir, signer, public)
	add(t, l, 1)
	l.put = func(path string, data []byte, mode fs.FileMode) error {
		if err := put(path, data, mode); err != nil || filepath.Base(path) != "checkpoint" {
			return err
		}
		return &fs.PathError{Op: "sync", Path: path, Err: syscall.EIO}
	}
	for range 2 {
		if _, err := l.Append(context.Background(), event(1)); !errors.Is(err, ErrBroken) {
			t.Fatalf("append: %v", err)
		}
	}
	l.Close()
	add(t, open(t, dir, signer, public), 1)
	wantWhole(t, dir, v, 3)
}

// A record whose caller gave up before its writing began is not in the log.
func TestAppendGivesUp(t *testing.T) {
	signer, public, v := testKey(t)
	dir := t.TempDir()
	l := open(t, dir, signer, public)
	<-l.writing // a write that does not end
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error)
	go func() {
		_, err := l.Append(ctx, event(0))
		failed <- err
	}()
	waits := make(chan uint64)
	go func() {
		n, err := l.Append(context.Background(), event(1))
		if err != nil {
			t.Error(err)
		}
		waits <- n
	}()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("append: %v", err)
	}
	l.writing <- struct{}{}
	if n := <-waits; n != 0 {
		t.Errorf("the record that waited has number %d", n)
	}
	wantWhole(t, dir, v, 1)
	if err := l.commit([]*Record{nil, nil}); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, dir, v, 1)
}

func TestExport(t *testing.T) {
	signer, public, v := testKey(t)
	dir := t.TempDir()
	l := open(t, dir, signer, public)
	for _, n := range []uint64{0, 255, 256, 600} {
		fill(t, l, int(n-l.Head().Size))
		to := filepath.Join(t.TempDir(), "export")
		r, err := Export(dir, to, v)
		if err != nil || !r.OK() || r.Head.Size != n {
			t.Fatalf("%d entries: %+v, %v", n, r, err)
		}
		if _, err := Export(dir, to, v); !errors.Is(err, fs.ErrExist) {
			t.Errorf("into a folder that exists: %v", err)
		}
		again := open(t, to, signer, public)
		add(t, again, 1)
		wantWhole(t, to, v, n+1)
	}
	// A head that was read before further records: its partial tiles are found in wider ones.
	head := l.Head()
	fill(t, l, 200)
	for _, err := range Records(dir, 0, head.Size) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := Consistent(dir, l.Head(), head.Note, v); err != nil {
		t.Error(err)
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.key")
	_, public, err := LoadOrCreateKey(path, "example.org/log")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	signer, again, err := LoadOrCreateKey(path, "another name")
	if err != nil || again != public || signer.Name() != "example.org/log" {
		t.Errorf("read back: %q, %v", again, err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadOrCreateKey(path, "x"); err == nil || !strings.Contains(err.Error(), "0640") {
		t.Errorf("a key that others may read: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	os.Chmod(path, 0o600)
	if _, _, err := LoadOrCreateKey(path, "x"); err == nil {
		t.Error("an empty file is a key")
	}
	// Keys whose base64 holds a plus sign too.
	for range 200 {
		signer, public, _ := testKey(t)
		v, err := ParsePublicKey(public)
		if err != nil || v.KeyHash() != signer.KeyHash() {
			t.Fatalf("%q: %v", public, err)
		}
	}
}

// OCSP-AUD-02: what a record holds; anything else, and a record without one of these, is none.
func TestRecordSpelling(t *testing.T) {
	r := event(1)
	r.Details = append(r.Details, Detail{"empty", ""}, Detail{"line\nbreak", "\x00 \u2028 ü"})
	line, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"seq":0,"time":"2026-03-01T12:00:01Z","event":"crl.import","actor":"uid 0 (root)","subject":"class1","outcome":"ok",` +
		`"details":{"number":"1","file":"a <b> & \"c\"","empty":"","line\nbreak":"\u0000 \u2028 ü"}}`
	if string(line) != want {
		t.Errorf("have %s\nwant %s", line, want)
	}
	back, err := decode(line)
	if d := cmp.Diff(r, back); d != "" || err != nil {
		t.Errorf("%v\n%s", err, d)
	}
	for _, bad := range []string{
		"", "{}", "null", want + "\n", want + want, " " + want, strings.Replace(want, `"seq":0`, `"seq":00`, 1),
		strings.Replace(want, `"seq":0,`, ``, 1), strings.Replace(want, `"seq":0`, `"seq":0,"pin":"1"`, 1),
		strings.Replace(want, `"seq":0`, `"seq":0,"seq":0`, 1), strings.Replace(want, `"seq"`, `"Seq"`, 1),
		strings.Replace(want, "12:00:01Z", "13:00:01+01:00", 1), strings.Replace(want, "12:00:01Z", "12:00:01.0000001Z", 1),
		strings.Replace(want, `"empty":""`, `"number":""`, 1), strings.Replace(want, `"empty":""`, `"empty":1`, 1),
		strings.Replace(want, `<b>`, `\u003cb>`, 1), strings.Replace(want, `"ok"`, `"Not ok"`, 1), strings.Replace(want, `crl.import`, `crl`, 1),
		strings.Replace(want, `,"details":{`, `,"details":[`, 1),
	} {
		if r, err := decode([]byte(bad)); err == nil {
			t.Errorf("%s\nis read as %+v", bad, r)
		}
	}
}

func TestAppendJudges(t *testing.T) {
	signer, public, v := testKey(t)
	dir := t.TempDir()
	l := open(t, dir, signer, public)
	for name, change := range map[string]func(*Record){
		"too long":       func(r *Record) { r.Subject = strings.Repeat("x", MaxRecord) },
		"no event":       func(r *Record) { r.Event = "" },
		"no actor":       func(r *Record) { r.Actor = "" },
		"a bad outcome":  func(r *Record) { r.Outcome = "it failed\n" },
		"a detail twice": func(r *Record) { r.Details = append(r.Details, r.Details[0]) },
	} {
		r := event(0)
		change(&r)
		if _, err := l.Append(context.Background(), r); err == nil {
			t.Errorf("%s: appended", name)
		}
	}
	wantWhole(t, dir, v, 0)
}
