package ingest

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ocspd/pki"
)

// now is when the tests take place.
var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

var judged = Options{Now: now, Skew: 5 * time.Minute}

// tlv is one DER element.
func tlv(tag byte, parts ...[]byte) []byte {
	content := bytes.Join(parts, nil)
	b := []byte{tag}
	switch n := len(content); {
	case n < 0x80:
		b = append(b, byte(n))
	case n < 0x100:
		b = append(b, 0x81, byte(n))
	case n < 0x10000:
		b = append(b, 0x82, byte(n>>8), byte(n))
	case n < 0x1000000:
		b = append(b, 0x83, byte(n>>16), byte(n>>8), byte(n))
	default:
		b = append(b, 0x84, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return append(b, content...)
}

func utc(t time.Time) []byte     { return tlv(0x17, []byte(t.UTC().Format("060102150405Z"))) }
func general(t time.Time) []byte { return tlv(0x18, []byte(t.UTC().Format("20060102150405Z"))) }
func integer(b ...byte) []byte   { return tlv(0x02, b) }

// ext is one extension with the OID 2.5.29.arc.
func ext(arc byte, critical bool, value []byte) []byte {
	flag := []byte{}
	if critical {
		flag = []byte{1, 1, 0xff}
	}
	return tlv(0x30, tlv(0x06, []byte{0x55, 0x1d, arc}), flag, tlv(0x04, value))
}

func number(b ...byte) []byte { return ext(20, false, integer(b...)) }
func reason(r byte) []byte    { return ext(21, false, tlv(0x0a, []byte{r})) }

// unknownExt has an OID that nobody knows: 1.2.3.4.
func unknownExt(critical bool) []byte {
	flag := []byte{}
	if critical {
		flag = []byte{1, 1, 0xff}
	}
	return tlv(0x30, tlv(0x06, []byte{0x2a, 3, 4}), flag, tlv(0x04, []byte{5, 0}))
}

// entry is one element of revokedCertificates.
func entry(serial []byte, date []byte, exts ...[]byte) []byte {
	if len(exts) > 0 {
		return tlv(0x30, integer(serial...), date, tlv(0x30, exts...))
	}
	return tlv(0x30, integer(serial...), date)
}

// draft is a TBSCertList in pieces, so that each can be wrong. A nil piece is left out.
type draft struct {
	version, inner, name, this, next, entries, exts, tail []byte
}

var (
	ed25519Alg = tlv(0x30, tlv(0x06, []byte{0x2b, 0x65, 0x70}))
	revokedOn  = utc(now.Add(-24 * time.Hour))
)

// newDraft is a CRL that has nothing wrong: number 10, two entries.
func (ca *testCA) newDraft() draft {
	return draft{
		version: integer(1), inner: ed25519Alg, name: ca.issuer.Certificate.RawSubject,
		this: utc(now.Add(-time.Hour)), next: utc(now.Add(24 * time.Hour)),
		entries: tlv(0x30, entry([]byte{0x17}, revokedOn), entry([]byte{0x00, 0x80}, revokedOn, reason(1))),
		exts:    ca.extensions(number(10)),
	}
}

// extensions are the CA's key identifier, if it has one, and those given, as crlExtensions.
func (ca *testCA) extensions(exts ...[]byte) []byte {
	if id := ca.issuer.Certificate.SubjectKeyId; len(id) > 0 {
		exts = append([][]byte{ext(35, false, tlv(0x30, tlv(0x80, id)))}, exts...)
	}
	return tlv(0xa0, tlv(0x30, exts...))
}

func (d draft) tbs() []byte {
	return tlv(0x30, d.version, d.inner, d.name, d.this, d.next, d.entries, d.exts, d.tail)
}

// sign makes a CRL of a tbsCertList with the CA's Ed25519 key.
func (ca *testCA) sign(tbs []byte) []byte {
	sig, err := ca.key.Sign(rand.Reader, tbs, crypto.Hash(0))
	if err != nil {
		panic(err)
	}
	return tlv(0x30, tbs, ed25519Alg, tlv(0x03, []byte{0}, sig))
}

type testCA struct {
	issuer *pki.Issuer
	key    crypto.Signer
}

// newTestCA makes a CA; change may spoil its template.
func newTestCA(t testing.TB, name string, key crypto.Signer, change func(*x509.Certificate)) *testCA {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(9, 0, 0),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return issuerOf(t, name, der, key)
}

func issuerOf(t testing.TB, name string, cert []byte, key crypto.Signer) *testCA {
	t.Helper()
	c, err := pki.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	i, err := pki.NewIssuer(name, c)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{issuer: i, key: key}
}

// ed25519CA is the CA of most tests. Its key is fixed, so that a fuzz corpus keeps its meaning.
func ed25519CA(t testing.TB) *testCA {
	return newTestCA(t, "CA1", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)), nil)
}

func spool(t testing.TB, b []byte) *Spool {
	t.Helper()
	s, err := NewSpool(t.TempDir(), bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func entriesOf(t testing.TB, s *pki.Snapshot) []pki.Entry {
	t.Helper()
	var all []pki.Entry
	if err := s.Entries(func(e pki.Entry) error { all = append(all, e); return nil }); err != nil {
		t.Fatal(err)
	}
	if int64(len(all)) != s.Count {
		t.Fatalf("%d entries where Count is %d", len(all), s.Count)
	}
	return all
}

func mustRead(t testing.TB, ca *testCA, crl []byte, o Options) *pki.Snapshot {
	t.Helper()
	s, err := ReadCRL(spool(t, crl), ca.issuer, o)
	if err != nil {
		t.Fatalf("refused: %v", err)
	}
	return s
}

// mustRefuse wants an error of one line with the words in it.
func mustRefuse(t testing.TB, ca *testCA, crl []byte, o Options, words string) error {
	t.Helper()
	_, err := ReadCRL(spool(t, crl), ca.issuer, o)
	if err == nil {
		t.Fatalf("accepted; want an error with %q", words)
	}
	if !strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "\n") {
		t.Fatalf("error %q; want one line with %q", err, words)
	}
	return err
}

func wantWarning(t testing.TB, s *pki.Snapshot, words string) {
	t.Helper()
	for _, w := range s.Warnings {
		if strings.Contains(w, words) {
			return
		}
	}
	t.Errorf("warnings %q; want one with %q", s.Warnings, words)
}

func serial(t testing.TB, hex string) pki.Serial {
	t.Helper()
	s, err := pki.SerialFromHex(hex)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// openssl runs in dir.
func openssl(t testing.TB, dir string, args ...string) []byte {
	t.Helper()
	c := exec.Command("openssl", args...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func readFile(t testing.TB, parts ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, b []byte, parts ...string) string {
	t.Helper()
	name := filepath.Join(parts...)
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// openFiles are the names in a directory.
func openFiles(t testing.TB, dir string) []string {
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
