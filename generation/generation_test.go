package generation

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"ocspd/pki"
)

var (
	class1 = pki.IssuerID(sha256.Sum256([]byte("class1")))
	class3 = pki.IssuerID(sha256.Sum256([]byte("class3")))
	day0   = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

var sources = []pki.Source{
	{Name: "http://crl.example.org/class1.crl", Kind: pki.CRL, Number: "1f", ThisUpdate: day0, NextUpdate: day0.AddDate(0, 0, 7)},
	{Name: "index.txt", Kind: pki.Index, ThisUpdate: day0, NextUpdate: day0.AddDate(0, 0, 1)},
}

func serial(octets ...byte) pki.Serial {
	s, err := pki.SerialFromDER(octets)
	if err != nil {
		panic(err)
	}
	return s
}

func status(state pki.State, reason pki.Reason, source uint8) pki.Record {
	r := pki.Record{Status: pki.Status{State: state, Reason: reason}, Source: source}
	if state == pki.Revoked {
		r.Status.RevokedAt = day0
	}
	if source == pki.HandSource {
		r.At = day0.Add(time.Hour)
	}
	return r
}

// data is a generation's content.
type data struct {
	records map[pki.Serial]pki.Record
	rulings map[pki.Serial]pki.Record
}

// small has what a file may hold: the near misses of OCSP-CID-05, every kind of ruling.
func small() data {
	held := status(pki.Revoked, pki.CertificateHold, 0)
	held.Status.InvalidityDate = day0.AddDate(0, 0, -1)
	return data{
		map[pki.Serial]pki.Record{
			serial(0x7f):       status(pki.Good, 0, 1),
			serial(0x00, 0x80): status(pki.Revoked, pki.KeyCompromise, 0),
			serial(0x80):       held,
			serial(0x01):       status(pki.Revoked, 0, 0),
			serial(0x01, 0x00): status(pki.Good, 0, 1),
			serial(bytes.Repeat([]byte{0x5a}, 20)...): status(pki.Revoked, pki.Superseded, 1),
			serial(0x22): status(pki.Good, 0, 1),
			serial(0x23): status(pki.Revoked, 0, 0),
		},
		map[pki.Serial]pki.Record{
			serial(0x22): status(pki.Revoked, pki.KeyCompromise, pki.HandSource),
			serial(0x23): {}, // nothing holds of it
			serial(0x24): status(pki.Good, 0, 1),
		},
	}
}

func (d data) want(s pki.Serial) (pki.Record, bool) {
	if r, ok := d.rulings[s]; ok {
		return r, r.Status.State != pki.Unknown
	}
	r, ok := d.records[s]
	return r, ok
}

func sorted(m map[pki.Serial]pki.Record) []pki.Serial {
	var all []pki.Serial
	for s := range m {
		all = append(all, s)
	}
	slices.SortFunc(all, pki.Serial.Compare)
	return all
}

func (d data) walk(yield func(*pki.Packed) error) error {
	for _, s := range sorted(d.records) {
		p := pki.Pack(s, d.records[s].Status, d.records[s].Source)
		if err := yield(&p); err != nil {
			return err
		}
	}
	return nil
}

type fatal interface {
	Helper()
	Fatal(...any)
}

// write makes generation number of the issuer and puts it in force.
func (d data) write(t fatal, dir, name string, number uint64, issuer pki.IssuerID) pki.File {
	t.Helper()
	base, err := WriteBase(dir, name, number, issuer, d.walk)
	if err != nil {
		t.Fatal(err)
	}
	d.over(t, dir, name, number, issuer, base)
	return base
}

func (d data) over(t fatal, dir, name string, number uint64, issuer pki.IssuerID, base pki.File) {
	t.Helper()
	var rulings []pki.Ruling
	for _, s := range sorted(d.rulings) {
		rulings = append(rulings, pki.Ruling{Serial: s, Record: d.rulings[s]})
	}
	gen, err := Write(dir, Meta{issuer, name, number, day0, sources, true, "certificates of CAs"}, rulings, base)
	if err != nil {
		t.Fatal(err)
	}
	if err := Point(dir, name, gen); err != nil {
		t.Fatal(err)
	}
}

// probes are serials that are there and serials that are nearly there.
func (d data) probes() []pki.Serial {
	all := append(sorted(d.records), sorted(d.rulings)...)
	return append(all, serial(0), serial(0x02), serial(0xff), serial(0x7f, 0x00), serial(0x01, 0x00, 0x00), serial(bytes.Repeat([]byte{0x5a}, 19)...))
}

func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	d := small()
	base := d.write(t, dir, "class1", 1, class1)
	g, err := Load(dir, "class1", class1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Meta{class1, "class1", 1, day0, sources, true, "certificates of CAs"}, g.Meta()); diff != "" {
		t.Error(diff)
	}
	for _, s := range d.probes() {
		want, found := d.want(s)
		if got, ok := g.Lookup(s); got != want || ok != found {
			t.Errorf("%s: %+v %v, want %+v %v", s, got, ok, want, found)
		}
		meta, got, ok, err := LookupFile(dir, "class1", class1, s)
		if err != nil || got != want || ok != found || meta.Number != 1 {
			t.Errorf("in the file, %s: %+v %v %v, want %+v %v", s, got, ok, err, want, found)
		}
	}
	if got, ok := g.Lookup(pki.Serial{}); ok {
		t.Errorf("no serial: %+v", got)
	}
	if n := testing.AllocsPerRun(100, func() { g.Lookup(serial(0x7f)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}

	// A hand change leaves the base, which is not read again.
	d.rulings[serial(0x7f)] = status(pki.Revoked, 0, pki.HandSource)
	d.over(t, dir, "class1", 2, class1, base)
	if err := os.Truncate(filepath.Join(dir, base.Name), 0); err != nil {
		t.Fatal(err)
	}
	next, err := Load(dir, "class1", class1, g)
	if err != nil {
		t.Fatal(err)
	}
	if r, _ := next.Lookup(serial(0x7f)); r.Status.State != pki.Revoked || &next.records[0] != &g.records[0] {
		t.Errorf("%+v", r)
	}
	if r, _ := g.Lookup(serial(0x7f)); r.Status.State != pki.Good {
		t.Error("the generation before changed")
	}
	if err := next.Recheck(); err != nil {
		t.Error(err)
	}
	next.records[5] ^= 1
	if err := next.Recheck(); err == nil {
		t.Error("a flipped bit in memory went unseen")
	}
}

func TestEmpty(t *testing.T) {
	dir := t.TempDir()
	data{}.write(t, dir, "class1", 1, class1)
	g, err := Load(dir, "class1", class1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := g.Lookup(serial(1)); ok || g.Len() != 0 {
		t.Error("something in nothing")
	}
}

// Any sets of records and rulings: both lookups say what a map says.
func TestLikeAMap(t *testing.T) {
	dir := t.TempDir()
	number := uint64(0)
	serials := rapid.Custom(func(t *rapid.T) pki.Serial {
		b := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0x7f, 0x80, 0xff}), 1, 4).Draw(t, "octets")
		for len(b) > 1 && (b[0] == 0 && b[1] < 0x80 || b[0] == 0xff && b[1] >= 0x80) {
			b = b[1:]
		}
		return serial(b...)
	})
	base := rapid.SampledFrom([]pki.Record{status(pki.Good, 0, 1), status(pki.Revoked, 0, 0), status(pki.Revoked, pki.CertificateHold, 1)})
	hand := rapid.SampledFrom([]pki.Record{{}, status(pki.Good, 0, 0), status(pki.Revoked, pki.KeyCompromise, pki.HandSource)})
	rapid.Check(t, func(t *rapid.T) {
		d := data{rapid.MapOfN(serials, base, 0, 60).Draw(t, "records"), rapid.MapOfN(serials, hand, 0, 10).Draw(t, "rulings")}
		number++
		d.write(t, dir, "class1", number, class1)
		if err := Collect(dir, "class1"); err != nil {
			t.Fatal(err)
		}
		g, err := Load(dir, "class1", class1, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range append(d.probes(), rapid.SliceOfN(serials, 20, 20).Draw(t, "others")...) {
			want, found := d.want(s)
			if got, ok := g.Lookup(s); got != want || ok != found {
				t.Fatalf("%s: %+v %v, want %+v %v", s, got, ok, want, found)
			}
			if _, got, ok, err := LookupFile(dir, "class1", class1, s); got != want || ok != found || err != nil {
				t.Fatalf("in the file, %s: %+v %v %v, want %+v %v", s, got, ok, err, want, found)
			}
		}
	})
}

// Every bit of every file: refused, by both ways to read, by an error that names the file.
func TestEveryFlipIsRefused(t *testing.T) {
	dir := t.TempDir()
	d := small()
	base := d.write(t, dir, "class1", 1, class1)
	refused := func(t *testing.T, file string) {
		t.Helper()
		g, err := Load(dir, "class1", class1, nil)
		if err == nil || g != nil || !strings.Contains(err.Error(), file) {
			t.Fatalf("Load: %v", err)
		}
		if _, _, _, err := LookupFile(dir, "class1", class1, serial(1)); err == nil {
			t.Fatal("LookupFile took it")
		}
	}
	for _, file := range []string{"class1.current", "class1.1.gen", base.Name} {
		path := filepath.Join(dir, file)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		put := func(b []byte) {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for i := range whole {
			for bit := range 8 {
				b := slices.Clone(whole)
				b[i] ^= 1 << bit
				put(b)
				named := file
				if file == "class1.current" {
					named = "class1." // a digit of the name, or of the digest: the file that it then names or does not have
				}
				refused(t, named)
			}
			put(whole[:i])
			refused(t, file)
		}
		put(append(slices.Clone(whole), 0))
		refused(t, file)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		refused(t, file)
		if _, err := Load(dir, "class1", class1, nil); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("no file: %v", err)
		}
		put(whole)
		if _, err := Load(dir, "class1", class1, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Whole files in the wrong place.
func TestSwapped(t *testing.T) {
	d := small()
	for name, c := range map[string]struct {
		swap func(t *testing.T, dir string)
		text string
	}{
		"the pointer of another issuer": {func(t *testing.T, dir string) {
			copyFile(t, dir+"/class3.current", dir+"/class1.current")
		}, "names no generation of class1"},
		"all files of another issuer": {func(t *testing.T, dir string) {
			for _, f := range []string{"2.gen", "2.base"} {
				copyFile(t, dir+"/class3."+f, dir+"/class1."+f)
			}
			b, err := os.ReadFile(dir + "/class3.current")
			if err != nil {
				t.Fatal(err)
			}
			os.WriteFile(dir+"/class1.current", bytes.Replace(b, []byte("class3"), []byte("class1"), 1), 0o600)
		}, "is of the issuer certificate with SHA-256"},
		"a base of another issuer": {func(t *testing.T, dir string) {
			copyFile(t, dir+"/class3.2.base", dir+"/class1.1.base")
		}, "class1.1.base: has SHA-256"},
		"an older generation": {func(t *testing.T, dir string) {
			copyFile(t, dir+"/class1.1.gen", dir+"/class1.3.gen")
		}, "class1.3.gen: has SHA-256"},
		"an older generation under its own digest": {func(t *testing.T, dir string) {
			copyFile(t, dir+"/class1.1.gen", dir+"/class1.3.gen")
			b, err := os.ReadFile(dir + "/class1.1.gen")
			if err != nil {
				t.Fatal(err)
			}
			os.WriteFile(dir+"/class1.current", pointer(pki.File{Name: "class1.3.gen", SHA256: sha256.Sum256(b)}), 0o600)
		}, "says of itself that it is class1.1.gen"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			base := d.write(t, dir, "class1", 1, class1)
			d.write(t, dir, "class3", 2, class3)
			d.over(t, dir, "class1", 3, class1, base)
			good, err := Load(dir, "class1", class1, nil)
			if err != nil {
				t.Fatal(err)
			}
			c.swap(t, dir)
			if _, err := Load(dir, "class1", class1, nil); err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %q", err, c.text)
			}
			if r, _ := good.Lookup(serial(0, 0x80)); r.Status.Reason != pki.KeyCompromise {
				t.Error("what was loaded before changed")
			}
		})
	}
}

// A base under a right digest whose content is wrong all the same: written by another program.
func TestForeignBase(t *testing.T) {
	one, two := pki.Pack(serial(1), status(pki.Revoked, 0, 0).Status, 0), pki.Pack(serial(2), pki.Status{State: pki.Good}, 1)
	far := pki.Pack(serial(3), pki.Status{State: pki.Good}, 2)
	odd := two
	odd[21] = 3
	for name, c := range map[string]struct {
		start   []byte
		records []pki.Packed
		text    string
	}{
		"order":   {baseStart(class1), []pki.Packed{two, one}, "out of order"},
		"twice":   {baseStart(class1), []pki.Packed{one, one}, "out of order"},
		"source":  {baseStart(class1), []pki.Packed{one, far}, "from source 2"},
		"state":   {baseStart(class1), []pki.Packed{one, odd}, "state 3"},
		"issuer":  {baseStart(class3), []pki.Packed{one, two}, "no base of this issuer"},
		"version": {append([]byte("ocspd base 2\x00\x00\x00\x00"), class1[:]...), []pki.Packed{one, two}, "install the same version"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			b := c.start
			for _, p := range c.records {
				b = append(b, p[:]...)
			}
			ref := pki.File{Name: "class1.1.base", SHA256: sha256.Sum256(b), Count: int64(len(c.records))}
			if err := os.WriteFile(filepath.Join(dir, ref.Name), b, 0o600); err != nil {
				t.Fatal(err)
			}
			data{}.over(t, dir, "class1", 1, class1, ref)
			if _, err := Load(dir, "class1", class1, nil); err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %q", err, c.text)
			}
		})
	}
	dir := t.TempDir()
	_, err := WriteBase(dir, "class1", 1, class1, func(yield func(*pki.Packed) error) error {
		return errors.Join(yield(&two), yield(&one))
	})
	if err == nil || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("WriteBase: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestCollect(t *testing.T) {
	dir := t.TempDir()
	d := small()
	names := func() (all []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, e.Name())
		}
		return all
	}
	d.write(t, dir, "class1", 1, class1)
	base := d.write(t, dir, "class1", 2, class1)
	d.over(t, dir, "class1", 3, class1, base)
	if err := Collect(dir, "class1"); err != nil {
		t.Fatal(err)
	}
	want := []string{"class1.2.base", "class1.2.gen", "class1.3.gen", "class1.current"}
	if diff := cmp.Diff(want, names()); diff != "" {
		t.Error(diff)
	}
	// What is being made stays; what belongs to others stays; the base of the generation before stays.
	if _, err := WriteBase(dir, "class1", 4, class1, d.walk); err != nil {
		t.Fatal(err)
	}
	d.write(t, dir, "class1.1", 1, class3)
	for _, f := range []string{"README", ".class1.base.aside", "class1.9.gen"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Collect(dir, "class1"); err != nil {
		t.Fatal(err)
	}
	want = []string{".class1.base.aside", "README", "class1.1.1.base", "class1.1.1.gen", "class1.1.current",
		"class1.2.base", "class1.2.gen", "class1.3.gen", "class1.4.base", "class1.9.gen", "class1.current"}
	if diff := cmp.Diff(want, names()); diff != "" {
		t.Error(diff)
	}
	d.write(t, dir, "class1", 5, class1)
	if err := Clean(dir, "class1"); err != nil {
		t.Fatal(err)
	}
	want = []string{"README", "class1.1.1.base", "class1.1.1.gen", "class1.1.current",
		"class1.2.base", "class1.3.gen", "class1.5.base", "class1.5.gen", "class1.current"}
	if diff := cmp.Diff(want, names()); diff != "" {
		t.Error(diff)
	}
	// With a generation in force that cannot be read, nothing is removed.
	if err := os.WriteFile(filepath.Join(dir, "class1.5.gen"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Clean(dir, "class1"); err == nil {
		t.Error("cleaned up around a damaged generation")
	}
	if diff := cmp.Diff(want, names()); diff != "" {
		t.Error(diff)
	}
}

// big is a base of n random 16-octet serials, made once.
func big(b *testing.B, n int) (string, []pki.Serial) {
	dir := b.TempDir()
	r := rand.New(rand.NewPCG(1, 2))
	packed := make([]pki.Packed, n)
	serials := make([]pki.Serial, n)
	for i := range packed {
		var o [16]byte
		binary.BigEndian.PutUint64(o[:], r.Uint64()>>1|1<<60)
		binary.BigEndian.PutUint64(o[8:], r.Uint64())
		serials[i] = serial(o[:]...)
		packed[i] = pki.Pack(serials[i], status(pki.Revoked, pki.Reason(i%6), 0).Status, 0)
	}
	slices.SortFunc(packed, func(a, b pki.Packed) int { return a.Compare(&b) })
	base, err := WriteBase(dir, "class1", 1, class1, func(yield func(*pki.Packed) error) error {
		for i := range packed {
			if err := yield(&packed[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	data{}.over(b, dir, "class1", 1, class1, base)
	return dir, serials
}

// count is 1,000,000, or what OCSPD_BENCH_RECORDS says.
func count(b *testing.B) int {
	n := 1_000_000
	if s := os.Getenv("OCSPD_BENCH_RECORDS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			b.Fatal(err)
		}
	}
	return n
}

func BenchmarkLookup(b *testing.B) {
	dir, serials := big(b, count(b))
	g, err := Load(dir, "class1", class1, nil)
	if err != nil {
		b.Fatal(err)
	}
	rand.Shuffle(len(serials), func(i, j int) { serials[i], serials[j] = serials[j], serials[i] })
	b.Run("generation", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, ok := g.Lookup(serials[i%len(serials)]); !ok {
				b.Fatal("not found")
			}
		}
	})
	if len(serials) <= 1_000_000 {
		m := make(map[pki.Serial]pki.Record, len(serials))
		for _, s := range serials {
			m[s], _ = g.Lookup(s)
		}
		b.Run("map", func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if _, ok := m[serials[i%len(serials)]]; !ok {
					b.Fatal("not found")
				}
			}
		})
	}
	b.Run("load", func(b *testing.B) {
		b.SetBytes(g.Len() * pki.PackedSize)
		for b.Loop() {
			if _, err := Load(dir, "class1", class1, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("lookupfile", func(b *testing.B) {
		b.SetBytes(g.Len() * pki.PackedSize)
		for b.Loop() {
			if _, _, ok, err := LookupFile(dir, "class1", class1, serials[0]); !ok || err != nil {
				b.Fatal(err)
			}
		}
	})
}
