// Package generation holds one imported state of one issuer as files that a reader can trust whole or not at all.
//
// A generation N of the issuer NAME is NAME.N.gen: what vouches for it, the rulings made by hand, and the name and
// digest of a base, NAME.M.base: the issuer's records, of fixed size, in the order of their serials. NAME.current
// holds the name and digest of the generation in force and is the only file that is ever replaced.
//
// What is guaranteed: a Generation exists in memory only if every octet of its files is the one that was written
// for this issuer, under this name, in this generation; anything else is an error that names the file. The digests
// find accidents; whoever may write the directory may also write a false generation.
package generation

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ocspd/pki"
)

// Meta is what a generation says of itself.
type Meta struct {
	Issuer   pki.IssuerID
	Name     string // of the issuer in the configuration
	Number   uint64 // 1, 2, 3 … per issuer
	Created  time.Time
	Sources  []pki.Source // what the records' source indices mean
	Complete bool         // every source that the issuer needs has delivered; when false, nothing may be answered
	Gap      string       // of what certificates no CRL among the sources speaks; then nothing but revoked may be answered
}

// Generation is one state of one issuer in memory. It never changes and may be searched from any goroutine.
type Generation struct {
	meta    Meta
	base    pki.File
	records []byte       // base.Count records in strict order
	named   int          // sources that the records need
	every   []pki.Packed // each stride-th of them, so close together that most of a search stays in the processor's cache
	rulings []pki.Ruling
}

// The first octets of the two kinds of file; the number is that of the format.
const (
	genMagic  = "ocspd generation 1\n"
	baseMagic = "ocspd base 1\x00\x00\x00\x00"
)

const (
	baseHeader    = len(baseMagic) + len(pki.IssuerID{})
	rulingSize    = pki.PackedSize + 8 // a record and when the command was given
	stride        = 16
	chunkRecords  = 4096      // read, hashed and checked at a time: 160 KiB
	maxGeneration = 256 << 20 // octets of a .gen file: over five million rulings
	maxPointer    = 1024      // octets of a pointer file
	bigPages      = 4 << 20   // octets of a base from which pages of 2 MiB are asked for
	bigBase       = 64 << 20  // octets of a base before which garbage is collected
)

// header is the JSON line of a .gen file.
type header struct {
	Issuer   string
	Name     string
	Number   uint64
	Created  time.Time
	Complete bool
	Gap      string
	Sources  []pki.Source
	Base     fileRef
	Rulings  int
}

type fileRef struct {
	Name   string
	SHA256 string
	Count  int64
}

// Meta is what the generation says of itself.
func (g *Generation) Meta() Meta { return g.meta }

// Len is the number of records of the base.
func (g *Generation) Len() int64 { return g.base.Count }

// Lookup is what the generation says of s, and whether it says anything. It allocates nothing.
func (g *Generation) Lookup(s pki.Serial) (pki.Record, bool) {
	if i, ok := slices.BinarySearchFunc(g.rulings, s, compareRuling); ok {
		r := g.rulings[i].Record
		return r, r.Status.State != pki.Unknown
	}
	key := pki.Pack(s, pki.Status{}, 0)
	low, high := 0, len(g.every)
	for low < high {
		mid := int(uint(low+high) >> 1)
		if g.every[mid].Compare(&key) <= 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	low, high = max(low-1, 0)*stride, min(low*stride, len(g.records)/pki.PackedSize)
	for low < high {
		mid := int(uint(low+high) >> 1)
		p := record(g.records, mid)
		switch c := p.Compare(&key); {
		case c == 0:
			return p.Record(), true
		case c < 0:
			low = mid + 1
		default:
			high = mid
		}
	}
	return pki.Record{}, false
}

// index picks the records that a search begins with.
func index(records []byte) []pki.Packed {
	every := make([]pki.Packed, 0, len(records)/(stride*pki.PackedSize)+1)
	for i := 0; i < len(records); i += stride * pki.PackedSize {
		every = append(every, pki.Packed(records[i:i+pki.PackedSize]))
	}
	return every
}

func compareRuling(r pki.Ruling, s pki.Serial) int { return r.Serial.Compare(s) }

func record(b []byte, i int) *pki.Packed { return (*pki.Packed)(b[i*pki.PackedSize:]) }

// Recheck hashes the records in memory again: memory can go bad too. An error means that the Generation must not be
// asked any more.
func (g *Generation) Recheck() error {
	h := sha256.New()
	h.Write(baseStart(g.meta.Issuer))
	h.Write(g.records)
	if sum := h.Sum(nil); !bytes.Equal(sum, g.base.SHA256[:]) {
		return fmt.Errorf("generation %s: its records in memory have SHA-256 %x, not %x; start the signer again and have the memory tested",
			genName(g.meta.Name, g.meta.Number), sum, g.base.SHA256)
	}
	return nil
}

// SharesRecords reports whether g and h are made of the same records in memory.
func (g *Generation) SharesRecords(h *Generation) bool { return g.base == h.base }

// Load reads the generation in force of the issuer called name. Records that previous already holds are not read
// again. On any error there is no Generation, and previous stays as good as it was.
func Load(dir, name string, issuer pki.IssuerID, previous *Generation) (*Generation, error) {
	g, err := loadHead(dir, name, issuer)
	if err != nil {
		return nil, err
	}
	if previous != nil && previous.meta.Issuer == issuer && previous.base == g.base {
		g.records, g.every, g.named = previous.records, previous.every, previous.named
		if err := g.checkSources(); err != nil {
			return nil, err
		}
		return g, nil
	}
	f, err := openBase(dir, g.base)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := g.base.Count * pki.PackedSize
	if size > bigBase {
		runtime.GC() // what the base before the previous one took must be free before this one takes as much
	}
	g.records = make([]byte, size)
	if size > bigPages {
		unix.Madvise(g.records, unix.MADV_HUGEPAGE) // a hint: filling millions of small pages takes longer than reading what goes there
	}
	if err := g.readBase(f, g.records, nil); err != nil {
		return nil, err
	}
	g.every = index(g.records)
	return g, nil
}

// LookupFile is Lookup on the files, in little memory and at the cost of reading them whole: what it returns comes
// out of octets that had the right digest.
func LookupFile(dir, name string, issuer pki.IssuerID, s pki.Serial) (Meta, pki.Record, bool, error) {
	g, err := loadHead(dir, name, issuer)
	if err != nil {
		return Meta{}, pki.Record{}, false, err
	}
	f, err := openBase(dir, g.base)
	if err != nil {
		return Meta{}, pki.Record{}, false, err
	}
	defer f.Close()
	key := pki.Pack(s, pki.Status{}, 0)
	err = g.readBase(f, nil, func(chunk []byte) {
		n := len(chunk) / pki.PackedSize
		i := sort.Search(n, func(i int) bool { return record(chunk, i).Compare(&key) >= 0 })
		if i < n && record(chunk, i).Compare(&key) == 0 {
			p := *record(chunk, i)
			g.records, g.every = p[:], []pki.Packed{p} // the one record that matters
		}
	})
	if err != nil {
		return Meta{}, pki.Record{}, false, err
	}
	r, ok := g.Lookup(s)
	return g.meta, r, ok, nil
}

// loadHead reads the pointer and the .gen file that it names.
func loadHead(dir, name string, issuer pki.IssuerID) (*Generation, error) {
	ref, number, err := readPointer(dir, name)
	if err != nil {
		return nil, err
	}
	g, err := readGen(dir, ref)
	if err != nil {
		return nil, err
	}
	switch {
	case g.meta.Issuer != issuer:
		return nil, fmt.Errorf("generation %s: is of the issuer certificate with SHA-256 %x, not %x; have keeper write it again", ref.Name, g.meta.Issuer, issuer)
	case g.meta.Name != name || g.meta.Number != number:
		return nil, fmt.Errorf("generation %s: says of itself that it is %s; have keeper write it again", ref.Name, genName(g.meta.Name, g.meta.Number))
	}
	return g, nil
}

// readPointer reads NAME.current, in the one form that Point writes.
func readPointer(dir, name string) (pki.File, uint64, error) {
	file := pointerName(name)
	b, err := readBounded(filepath.Join(dir, file), maxPointer)
	if err != nil {
		return pki.File{}, 0, fmt.Errorf("generation %s: %w", file, err)
	}
	var ref pki.File
	target, digest, _ := strings.Cut(strings.TrimSuffix(string(b), "\n"), " ")
	sum, err := hex.DecodeString(digest)
	number, ok := numberIn(target, name, ".gen")
	if err != nil || len(sum) != len(ref.SHA256) || !ok {
		return pki.File{}, 0, fmt.Errorf("generation %s: names no generation of %s; start keeper again, which writes it anew", file, name)
	}
	ref.Name = target
	copy(ref.SHA256[:], sum)
	if !bytes.Equal(b, pointer(ref)) {
		return pki.File{}, 0, fmt.Errorf("generation %s: is not as keeper writes it; start keeper again, which writes it anew", file)
	}
	return ref, number, nil
}

func pointer(ref pki.File) []byte { return fmt.Appendf(nil, "%s %x\n", ref.Name, ref.SHA256) }

// readGen reads a .gen file and believes nothing in it before its digest.
func readGen(dir string, ref pki.File) (*Generation, error) {
	fail := func(format string, a ...any) (*Generation, error) {
		return nil, fmt.Errorf("generation %s: %w", ref.Name, fmt.Errorf(format, a...))
	}
	b, err := readBounded(filepath.Join(dir, ref.Name), maxGeneration)
	if err != nil {
		return fail("%w", err)
	}
	if sum := sha256.Sum256(b); sum != ref.SHA256 {
		return fail("has SHA-256 %x, not %x as its pointer says; the disk or a copy damaged it", sum, ref.SHA256)
	}
	rest, ok := bytes.CutPrefix(b, []byte(genMagic))
	line, rulings, ok2 := bytes.Cut(rest, []byte("\n"))
	if !ok || !ok2 {
		return fail("is of no format that this ocspd knows; install the same version of ocspd for signer and keeper")
	}
	var h header
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&h); err != nil {
		return fail("%w", err)
	}
	g := &Generation{meta: Meta{Name: h.Name, Number: h.Number, Created: h.Created, Sources: h.Sources, Complete: h.Complete, Gap: h.Gap}}
	if err := decodeHex(g.meta.Issuer[:], h.Issuer); err != nil {
		return fail("issuer: %w", err)
	}
	g.base = pki.File{Name: h.Base.Name, Count: h.Base.Count}
	if err := decodeHex(g.base.SHA256[:], h.Base.SHA256); err != nil {
		return fail("base: %w", err)
	}
	if _, ok := numberIn(g.base.Name, h.Name, ".base"); !ok || g.base.Count < 0 {
		return fail("names %q, which is no base of %s", g.base.Name, h.Name)
	}
	if h.Rulings < 0 || len(rulings)%rulingSize != 0 || len(rulings)/rulingSize != h.Rulings {
		return fail("holds %d octets of rulings where %d rulings of %d belong", len(rulings), h.Rulings, rulingSize)
	}
	if g.rulings, err = parseRulings(rulings, len(h.Sources)); err != nil {
		return fail("%w", err)
	}
	return g, nil
}

func decodeHex(to []byte, s string) error {
	b, err := hex.DecodeString(s)
	if err == nil && len(b) != len(to) {
		err = fmt.Errorf("%d octets where %d belong", len(b), len(to))
	}
	copy(to, b)
	return err
}

func parseRulings(b []byte, sources int) ([]pki.Ruling, error) {
	rulings := make([]pki.Ruling, 0, len(b)/rulingSize)
	for ; len(b) > 0; b = b[rulingSize:] {
		p := (*pki.Packed)(b)
		r := pki.Ruling{Serial: p.Serial(), Record: p.Record()}
		if at := int64(binary.BigEndian.Uint64(b[pki.PackedSize:])); at != 0 {
			r.Record.At = time.Unix(at, 0).UTC()
		}
		if err := checkRuling(r, p, sources); err != nil {
			return nil, err
		}
		if n := len(rulings); n > 0 && rulings[n-1].Serial.Compare(r.Serial) >= 0 {
			return nil, fmt.Errorf("ruling on %s is out of order", r.Serial)
		}
		rulings = append(rulings, r)
	}
	return rulings, nil
}

func checkRuling(r pki.Ruling, p *pki.Packed, sources int) error {
	if r.Record.Status.State == pki.Unknown {
		if r.Serial.IsZero() || *p != pki.Pack(r.Serial, pki.Status{}, 0) {
			return errors.New("a ruling that there is no record says something else too")
		}
		return nil
	}
	if err := p.Check(); err != nil {
		return fmt.Errorf("ruling on %s: %w", r.Serial, err)
	}
	if byHand := r.Record.Source == pki.HandSource; byHand == r.Record.At.IsZero() || !byHand && int(r.Record.Source) >= sources {
		return fmt.Errorf("ruling on %s: from source %d, which the generation does not name", r.Serial, r.Record.Source)
	}
	return nil
}

func openBase(dir string, ref pki.File) (*os.File, error) {
	f, err := os.Open(filepath.Join(dir, ref.Name))
	if err != nil {
		return nil, fmt.Errorf("generation %s: %w", ref.Name, err)
	}
	st, err := f.Stat()
	if want := int64(baseHeader) + ref.Count*pki.PackedSize; err == nil && st.Size() != want {
		err = fmt.Errorf("holds %d octets, not %d; the disk or a copy damaged it", st.Size(), want)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("generation %s: %w", ref.Name, err)
	}
	return f, nil
}

// readBase reads and checks the whole base. The records go to into, which holds them exactly, or, when it is nil,
// through a small buffer, of which each sees every part once.
func (g *Generation) readBase(f io.Reader, into []byte, each func([]byte)) error {
	fail := func(format string, a ...any) error {
		return fmt.Errorf("generation %s: %w", g.base.Name, fmt.Errorf(format, a...))
	}
	start := make([]byte, baseHeader)
	if _, err := io.ReadFull(f, start); err != nil {
		return fail("%w", err)
	}
	h := sha256.New()
	h.Write(start)
	var small []byte
	if into == nil {
		small = make([]byte, chunkRecords*pki.PackedSize)
	}
	var last pki.Packed
	var wrong error
	for left := g.base.Count; left > 0; {
		n := int(min(left, chunkRecords)) * pki.PackedSize
		chunk := small
		if into != nil {
			chunk, into = into[:n], into[n:]
		}
		chunk = chunk[:n]
		if _, err := io.ReadFull(f, chunk); err != nil {
			return fail("%w", err)
		}
		h.Write(chunk)
		if wrong == nil {
			wrong = g.checkRecords(chunk, &last)
		}
		if each != nil {
			each(chunk)
		}
		left -= int64(n / pki.PackedSize)
	}
	switch sum := h.Sum(nil); {
	case !bytes.Equal(sum, g.base.SHA256[:]):
		return fail("has SHA-256 %x, not %x as %s says; the disk or a copy damaged it", sum, g.base.SHA256, genName(g.meta.Name, g.meta.Number))
	case !bytes.Equal(start, baseStart(g.meta.Issuer)):
		return fail("is no base of this issuer in a format that this ocspd knows; install the same version of ocspd for signer and keeper")
	case wrong != nil:
		return fail("%w", wrong)
	}
	return g.checkSources()
}

// checkRecords takes a run of records that follow last.
func (g *Generation) checkRecords(b []byte, last *pki.Packed) error {
	for ; len(b) > 0; b = b[pki.PackedSize:] {
		p := (*pki.Packed)(b)
		if err := p.Check(); err != nil {
			return fmt.Errorf("record of %s: %w", p.Serial(), err)
		}
		if last.Compare(p) >= 0 {
			return fmt.Errorf("record of %s is out of order", p.Serial())
		}
		g.named = max(g.named, int(p.Source())+1)
		*last = *p
	}
	return nil
}

// checkSources reports a record whose source the generation does not name.
func (g *Generation) checkSources() error {
	if g.named <= len(g.meta.Sources) {
		return nil
	}
	return fmt.Errorf("generation %s: its base %s has records from source %d, which it does not name; have keeper write it again",
		genName(g.meta.Name, g.meta.Number), g.base.Name, g.named-1)
}

func readBounded(file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("is longer than %d octets", limit)
	}
	return b, err
}

func baseStart(issuer pki.IssuerID) []byte { return append([]byte(baseMagic), issuer[:]...) }

func pointerName(name string) string            { return name + ".current" }
func genName(name string, number uint64) string { return fmt.Sprintf("%s.%d.gen", name, number) }
func baseName(name string, number uint64) string {
	return fmt.Sprintf("%s.%d.base", name, number)
}

// numberIn is N of the file NAME.N.EXT.
func numberIn(file, name, ext string) (uint64, bool) {
	s, ok := strings.CutPrefix(file, name+".")
	s, ok2 := strings.CutSuffix(s, ext)
	n, err := strconv.ParseUint(s, 10, 64)
	return n, ok && ok2 && err == nil && strconv.FormatUint(n, 10) == s
}
