package db

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"ocspd/pki"
)

// benchEntry is entry k of n, in an order that is none, with serials of 16 octets.
func benchEntry(n, k uint64) pki.Entry {
	k = (k * 7_368_787) % n // a prime, so every k of n comes once unless it divides n
	r := rand.New(rand.NewPCG(k, 1))
	var b [16]byte
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	b[0] = b[0]&0x7f | 0x40
	s, err := pki.SerialFromDER(b[:])
	if err != nil {
		panic(err)
	}
	return pki.Entry{Serial: s, Status: pki.Status{State: pki.Revoked, Reason: pki.Reason(k % 6), RevokedAt: day0.Add(time.Duration(k) * time.Second)}}
}

func benchCRL(number int, n uint64) *pki.Snapshot {
	s := crl(number)
	s.Count = int64(n)
	s.Digest = sha256.Sum256(fmt.Append(nil, "bench", number))
	s.Entries = func(yield func(pki.Entry) error) error {
		for k := range n {
			if err := yield(benchEntry(n, k)); err != nil {
				return err
			}
		}
		return nil
	}
	return s
}

// benchCount is 1,000,000, or what OCSPD_BENCH_RECORDS says.
func benchCount(b *testing.B) uint64 {
	n := uint64(1_000_000)
	if s := os.Getenv("OCSPD_BENCH_RECORDS"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			b.Fatal(err)
		}
	}
	return n
}

// BenchmarkImport sets an import (staged, merged, flipped) against the sqlite3 shell's .import of the same rows, sorted: the
// first, and the next one over it, of which a thousandth is new.
func BenchmarkImport(b *testing.B) {
	n := benchCount(b)
	for b.Loop() {
		dir := b.TempDir()
		s, err := Open(b.Context(), filepath.Join(dir, "ocspd.db"), slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		id := pki.IssuerID{1}
		if err := s.Register(b.Context(), id, "class1"); err != nil {
			b.Fatal(err)
		}
		generate := time.Now()
		benchCRL(1, n).Entries(func(pki.Entry) error { return nil })
		making := time.Since(generate) // is the benchmark's, not the import's

		csv := filepath.Join(dir, "sorted.csv")
		install := func(snap *pki.Snapshot, out string) (all, flip time.Duration) {
			began := time.Now()
			f, err := os.Create(out)
			if err != nil {
				b.Fatal(err)
			}
			w := bufio.NewWriterSize(f, 1<<18)
			st, err := s.Stage(b.Context(), id, Origin{Location: "x", At: day(1)}, snap, func(_ uint64, walk func(func(*pki.Packed) error) error) error {
				err := walk(func(p *pki.Packed) error {
					_, err := w.Write(p[:])
					return err
				})
				return errors.Join(err, w.Flush(), f.Sync(), f.Close())
			})
			if err != nil {
				b.Fatal(err)
			}
			staged := time.Now()
			if _, err := s.Flip(b.Context(), st, func(v View) (Published, error) {
				return Published{Base: pki.File{Name: "b"}, Gen: pki.File{Name: "g"}}, nil
			}); err != nil {
				b.Fatal(err)
			}
			b.Logf("staged %v, flipped %v", staged.Sub(began)-making, time.Since(staged))
			return time.Since(began) - making, time.Since(staged)
		}
		first, flip := install(benchCRL(1, n), filepath.Join(dir, "1.base"))
		next, _ := install(benchCRL(2, n), filepath.Join(dir, "2.base"))
		began := time.Now()
		if err := s.Collect(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.Logf("collected %v", time.Since(began))
		began = time.Now()
		if err := s.Backup(b.Context(), filepath.Join(dir, "backup")); err != nil {
			b.Fatal(err)
		}
		b.Logf("backed up and checked %v", time.Since(began))
		peak := peakMemory(b)

		f, err := os.Create(csv)
		if err != nil {
			b.Fatal(err)
		}
		w := bufio.NewWriter(f)
		if _, err := s.Merged(b.Context(), id, nil, func(p *pki.Packed) error {
			st := p.Status()
			_, err := fmt.Fprintf(w, "%s,%d,%d,%d,\n", p.Serial(), st.State, st.Reason, st.RevokedAt.Unix())
			return err
		}); err != nil {
			b.Fatal(err)
		}
		w.Flush()
		f.Close()
		s.Close()
		began = time.Now()
		cmd := exec.Command("sqlite3", filepath.Join(dir, "shell.db"),
			"CREATE TABLE entry (serial TEXT PRIMARY KEY, state INTEGER, reason INTEGER, revoked_at INTEGER, invalidity INTEGER) WITHOUT ROWID",
			".mode csv", ".import "+csv+" entry")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatal(err, string(out))
		}
		shell := time.Since(began)
		b.ReportMetric(first.Seconds()/shell.Seconds(), "first/shell")
		b.ReportMetric(next.Seconds()/shell.Seconds(), "next/shell")
		b.ReportMetric(shell.Seconds(), "shell-s")
		b.ReportMetric(float64(flip.Microseconds()), "flip-µs")
		b.ReportMetric(peak, "peak-MiB")
	}
}

func peakMemory(b *testing.B) float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return kib / 1024
}

// BenchmarkRevoke is a revocation by hand with a thousand others in force.
func BenchmarkRevoke(b *testing.B) {
	s, err := Open(b.Context(), filepath.Join(b.TempDir(), "ocspd.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	id := pki.IssuerID{1}
	if err := s.Register(b.Context(), id, "class1"); err != nil {
		b.Fatal(err)
	}
	publish := func(View) (Published, error) {
		return Published{Base: pki.File{Name: "b"}, Gen: pki.File{Name: "g"}}, nil
	}
	st, err := s.Stage(b.Context(), id, Origin{Location: "x", At: day(1)}, benchCRL(1, 100_000), noBase)
	if err == nil {
		_, err = s.Flip(b.Context(), st, publish)
	}
	if err != nil {
		b.Fatal(err)
	}
	revoke := func(n uint64) {
		if _, err := s.Revoke(b.Context(), id, HandEntry{Serial: serial(n), At: day(1)}, publish); err != nil {
			b.Fatal(err)
		}
	}
	for n := range uint64(1000) {
		revoke(n)
	}
	n := uint64(1000)
	for b.Loop() {
		revoke(n)
		if _, err := s.Unrevoke(b.Context(), id, Unrevocation{Serial: serial(n), Mistake: "x", At: day(1)}, publish); err != nil {
			b.Fatal(err)
		}
	}
}
