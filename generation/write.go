package generation

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"ocspd/pki"
)

// fileMode lets the group of the directory read: signer runs as another user than keeper.
const fileMode = 0o640

// WriteBase writes the records that walk yields, which must come in strict order of their serials, as the base
// NAME.NUMBER.base. When it returns without error, the file is durable. A number must be greater than that of every
// generation in force before, so that no file that somebody needs is replaced. One base of an issuer may be
// written at a time.
func WriteBase(dir, name string, number uint64, issuer pki.IssuerID, walk func(yield func(*pki.Packed) error) error) (pki.File, error) {
	ref := pki.File{Name: baseName(name, number)}
	var last pki.Packed
	sum, err := writeAside(dir, name, ref.Name, func(w io.Writer) error {
		if _, err := w.Write(baseStart(issuer)); err != nil {
			return err
		}
		return walk(func(p *pki.Packed) error {
			if err := p.Check(); err != nil {
				return fmt.Errorf("record of %s: %w", p.Serial(), err)
			}
			if last.Compare(p) >= 0 {
				return fmt.Errorf("record of %s is out of order", p.Serial())
			}
			last = *p
			ref.Count++
			_, err := w.Write(p[:])
			return err
		})
	})
	ref.SHA256 = sum
	return ref, err
}

// Write writes the generation NAME.NUMBER.gen over a base that was written before. rulings must be in strict order
// of their serials. When it returns without error, the file is durable; Point puts it in force.
func Write(dir string, m Meta, rulings []pki.Ruling, base pki.File) (pki.File, error) {
	ref := pki.File{Name: genName(m.Name, m.Number), Count: int64(len(rulings))}
	fail := func(err error) (pki.File, error) {
		return pki.File{}, fmt.Errorf("generation %s: %w", ref.Name, err)
	}
	if _, ok := numberIn(base.Name, m.Name, ".base"); !ok {
		return fail(fmt.Errorf("%q is no base of %s", base.Name, m.Name))
	}
	f, err := openBase(dir, base) // not its digest: that is the reader's to check
	if err != nil {
		return fail(err)
	}
	f.Close()
	line, err := json.Marshal(header{
		Issuer: hex.EncodeToString(m.Issuer[:]), Name: m.Name, Number: m.Number, Created: m.Created.UTC(),
		Complete: m.Complete, Gap: m.Gap, Sources: m.Sources, Rulings: len(rulings),
		Base: fileRef{Name: base.Name, SHA256: hex.EncodeToString(base.SHA256[:]), Count: base.Count},
	})
	if err != nil {
		return fail(err)
	}
	var b bytes.Buffer
	b.WriteString(genMagic)
	b.Write(append(line, '\n'))
	var packed []byte
	for _, r := range rulings {
		p := pki.Pack(r.Serial, r.Record.Status, r.Record.Source)
		packed = append(packed, p[:]...)
		var at int64
		if !r.Record.At.IsZero() {
			at = r.Record.At.Unix()
		}
		packed = binary.BigEndian.AppendUint64(packed, uint64(at))
	}
	if _, err := parseRulings(packed, len(m.Sources)); err != nil {
		return fail(err)
	}
	b.Write(packed)
	if b.Len() > maxGeneration {
		return fail(fmt.Errorf("%d rulings by hand are more than a generation takes", len(rulings)))
	}
	ref.SHA256, err = writeAside(dir, m.Name, ref.Name, func(w io.Writer) error {
		_, err := b.WriteTo(w)
		return err
	})
	return ref, err
}

// Point puts a generation in force: when it returns without error, every Load finds it, after a power loss too.
// Until then every Load finds the one before.
func Point(dir, name string, gen pki.File) error {
	if _, ok := numberIn(gen.Name, name, ".gen"); !ok {
		return fmt.Errorf("generation %s: is no generation of %s", gen.Name, name)
	}
	_, err := writeAside(dir, name, pointerName(name), func(w io.Writer) error {
		_, err := w.Write(pointer(gen))
		return err
	})
	return err
}

// Pointed is the generation that NAME.current names, without a look at its content; fs.ErrNotExist where there is none.
func Pointed(dir, name string) (pki.File, error) {
	ref, _, err := readPointer(dir, name)
	return ref, err
}

// Collect removes what neither the generation in force needs nor the one before it, which a reader may just be
// opening. Files with greater numbers are left: they are being made.
func Collect(dir, name string) error { return collect(dir, name, false) }

// Clean is Collect at start, when nothing is being made: what a crash left unfinished goes too.
func Clean(dir, name string) error { return collect(dir, name, true) }

func collect(dir, name string, idle bool) error {
	ref, current, err := readPointer(dir, name)
	if err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	g, err := readGen(dir, ref)
	if err != nil {
		return fmt.Errorf("collect: nothing removed: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	base, _ := numberIn(g.base.Name, name, ".base")
	var before uint64 // the generation before, and what it needs
	for _, e := range entries {
		if n, ok := numberIn(e.Name(), name, ".gen"); ok && n < current && n > before {
			before = n
		}
	}
	keep := map[string]bool{ref.Name: true, g.base.Name: true}
	if before > 0 {
		keep[genName(name, before)] = true
		keep[baseOf(dir, genName(name, before))] = true
	}
	for _, e := range entries {
		file := e.Name()
		n, gen := numberIn(file, name, ".gen")
		m, isBase := numberIn(file, name, ".base")
		unfinished := idle && strings.HasPrefix(file, "."+name+".") && strings.HasSuffix(file, asideSuffix)
		if keep[file] || !gen && !isBase && !unfinished || !idle && (gen && n > current || isBase && m > base) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("collect: %w", err)
		}
	}
	return nil
}

// baseOf is the base that a .gen file of unknown digest names: good enough to keep a file, not to answer from it.
func baseOf(dir, gen string) string {
	b, err := readBounded(filepath.Join(dir, gen), maxGeneration)
	if err != nil {
		return ""
	}
	g, err := readGen(dir, pki.File{Name: gen, SHA256: sha256.Sum256(b)})
	if err != nil {
		return ""
	}
	return g.base.Name
}

const asideSuffix = ".aside"

// writeAside writes a file under another name, makes it durable, renames it and makes the name durable. On an error
// no part of it stands under its name.
func writeAside(dir, name, file string, write func(io.Writer) error) (sum [sha256.Size]byte, err error) {
	aside := filepath.Join(dir, "."+name+filepath.Ext(file)+asideSuffix)
	defer func() {
		if err != nil {
			os.Remove(aside)
			err = fmt.Errorf("generation %s: write: %w", file, err)
		}
	}()
	f, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	w := bufio.NewWriterSize(io.MultiWriter(&steadyWriter{f: f}, h), 256<<10)
	if err := write(w); err != nil {
		return sum, err
	}
	if err := w.Flush(); err != nil {
		return sum, err
	}
	if err := f.Sync(); err != nil {
		return sum, err
	}
	if err := f.Close(); err != nil {
		return sum, err
	}
	if err := os.Rename(aside, filepath.Join(dir, file)); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, syncDir(dir)
}

// steadyWriter has the disk begin with what was written, so that the sync at the end of a large file does not hold up everybody else's.
type steadyWriter struct {
	f         *os.File
	at, begun int64
}

const steadyPart = 1 << 20 // octets: the kernel is in one such call for a fraction of a millisecond

func (w *steadyWriter) Write(b []byte) (int, error) {
	n, err := w.f.Write(b)
	w.at += int64(n)
	if w.at-w.begun >= steadyPart {
		const begin = 2 // SYNC_FILE_RANGE_WRITE; only a hint, so its error is of no interest
		syscall.SyncFileRange(int(w.f.Fd()), w.begun, w.at-w.begun, begin)
		w.begun = w.at
	}
	return n, err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
