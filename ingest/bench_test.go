package ingest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ocspd/pki"
)

const benchEntries = 1_000_000

// bigCRL is a CRL of benchEntries entries with 16-octet serials and mixed reasons, signed with P-256.
var bigCRL = sync.OnceValues(func() (*testCA, []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	ca := newTestCA(new(testing.B), "CA1", key, nil)
	var list bytes.Buffer
	serial := make([]byte, 16)
	for i := range benchEntries {
		binary.BigEndian.PutUint64(serial, uint64(i)*0x9e3779b97f4a7c15>>1|1<<62)
		binary.BigEndian.PutUint64(serial[8:], uint64(i))
		date := utc(now.Add(-time.Duration(i) * time.Second))
		if r := byte(i % 6); r == 0 {
			list.Write(entry(serial, date))
		} else {
			list.Write(entry(serial, date, reason(r)))
		}
	}
	d := ca.newDraft()
	d.inner = tlv(0x30, tlv(0x06, []byte(algorithms[3].oid)))
	d.entries = tlv(0x30, list.Bytes())
	tbs := d.tbs()
	hash := sha256.Sum256(tbs)
	sig, err := ecdsa.SignASN1(rand.Reader, key, hash[:])
	if err != nil {
		panic(err)
	}
	return ca, tlv(0x30, tbs, d.inner, tlv(0x03, []byte{0}, sig))
})

// BenchmarkReadCRL measures a CRL of 1,000,000 entries: ReadCRL, the replay of its entries, and what x509 takes to
// parse and verify it. peak-MiB is the heap above that before the run.
func BenchmarkReadCRL(b *testing.B) {
	ca, crl := bigCRL()
	s := spool(b, crl)
	run := func(name string, f func() error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(crl)))
			b.ReportAllocs()
			peak := watchHeap()
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(peak(), "peak-MiB")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchEntries, "ns/entry")
		})
	}
	var snap *pki.Snapshot
	run("ReadCRL", func() (err error) {
		snap, err = ReadCRL(s, ca.issuer, judged)
		return err
	})
	run("Entries", func() error { return snap.Entries(func(pki.Entry) error { return nil }) })
	run("x509", func() error {
		l, err := x509.ParseRevocationList(crl)
		if err == nil {
			err = l.CheckSignatureFrom(ca.issuer.Certificate)
		}
		if err == nil && len(l.RevokedCertificateEntries) != benchEntries {
			err = fmt.Errorf("%d entries", len(l.RevokedCertificateEntries))
		}
		return err
	})
}

// watchHeap samples the heap until the function it returns is called, which gives its peak above the start in MiB.
func watchHeap() func() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	start := m.HeapAlloc
	var peak atomic.Uint64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		var m runtime.MemStats
		for {
			runtime.ReadMemStats(&m)
			peak.Store(max(peak.Load(), m.HeapAlloc))
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() float64 {
		close(stop)
		<-done
		return float64(max(peak.Load(), start)-start) / (1 << 20)
	}
}

// BenchmarkReadIndex measures an index of 1,000,000 rows.
func BenchmarkReadIndex(b *testing.B) {
	var rows bytes.Buffer
	for i := range benchEntries {
		if i%10 == 0 {
			fmt.Fprintf(&rows, "R\t271231235959Z\t260101000000Z,keyCompromise\t%032X\tunknown\t/CN=host%d.example.org\n", i+1, i)
		} else {
			fmt.Fprintf(&rows, "V\t271231235959Z\t\t%032X\tunknown\t/CN=host%d.example.org\n", i+1, i)
		}
	}
	s := spool(b, rows.Bytes())
	b.SetBytes(s.size)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadIndex(s); err != nil {
			b.Fatal(err)
		}
	}
}
