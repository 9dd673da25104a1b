package ingest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ocspd/pki"
)

var cmpSerial = cmp.Comparer(func(a, b pki.Serial) bool { return a == b })

func TestReadCRL(t *testing.T) {
	ca := ed25519CA(t)
	crl := ca.sign(ca.newDraft().tbs())
	s := spool(t, crl)
	got, err := ReadCRL(s, ca.issuer, judged)
	if err != nil {
		t.Fatal(err)
	}
	want := &pki.Snapshot{Kind: pki.CRL, Digest: s.Digest(), Size: int64(len(crl)), Number: "a", Count: 2,
		ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(24 * time.Hour)}
	list := []pki.Entry{
		{Serial: serial(t, "17"), Status: pki.Status{State: pki.Revoked, RevokedAt: now.Add(-24 * time.Hour)}},
		{Serial: serial(t, "80"), Status: pki.Status{State: pki.Revoked, RevokedAt: now.Add(-24 * time.Hour), Reason: pki.KeyCompromise}},
	}
	for range 2 { // the second time from the start again
		if d := cmp.Diff(list, entriesOf(t, got), cmpSerial); d != "" {
			t.Error(d)
		}
	}
	stop := errors.New("stop")
	if err := got.Entries(func(pki.Entry) error { return stop }); err != stop {
		t.Errorf("Entries returned %v where yield's own error belongs", err)
	}
	got.Entries = nil
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	s.Close()
	if _, err := ReadCRL(s, ca.issuer, judged); err == nil {
		t.Error("a closed spool was read")
	}
}

// OCSP-CRL-01: whichever bit of a CRL is flipped, it is refused.
func TestCRL01BitFlips(t *testing.T) {
	ca := ed25519CA(t)
	d := ca.newDraft()
	d.exts = ca.extensions(number(10), ext(28, true, tlv(0x30, tlv(0x81, []byte{0xff}))), unknownExt(false))
	crl := ca.sign(d.tbs())
	for i := range crl {
		for bit := range 8 {
			bad := bytes.Clone(crl)
			bad[i] ^= 1 << bit
			if err := readCRL(bytes.NewReader(bad), int64(len(bad)), ca.issuer, judged, new(pki.Snapshot)); err == nil {
				t.Errorf("octet %d, bit %d flipped: accepted", i, bit)
			}
		}
	}
	for n := range crl {
		if err := readCRL(bytes.NewReader(crl[:n]), int64(n), ca.issuer, judged, new(pki.Snapshot)); err == nil {
			t.Errorf("cut off after %d octets: accepted", n)
		}
	}
}

// OCSP-CRL-01: the algorithm inside must be the one outside, and fit the key.
func TestCRL01Algorithms(t *testing.T) {
	ca := ed25519CA(t)
	d := ca.newDraft()
	d.inner = tlv(0x30, tlv(0x06, []byte(algorithms[0].oid)), []byte{5, 0})
	mustRefuse(t, ca, ca.sign(d.tbs()), judged, "inside the signed part differs")

	other := newTestCA(t, "CA1", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32)), nil)
	mustRefuse(t, ca, other.sign(other.newDraft().tbs()), judged, "does not verify with the key of issuer CA1")

	outer := func(alg []byte) []byte {
		d := ca.newDraft()
		d.inner = alg
		return tlv(0x30, d.tbs(), alg, tlv(0x03, []byte{0}, make([]byte, 64)))
	}
	oid := func(s string) []byte { return tlv(0x06, []byte(s)) }
	sha1 := tlv(0x30, oid("\x2b\x0e\x03\x02\x1a"), []byte{5, 0})
	sha256 := tlv(0x30, oid("\x60\x86\x48\x01\x65\x03\x04\x02\x01"), []byte{5, 0})
	sha512 := tlv(0x30, oid("\x60\x86\x48\x01\x65\x03\x04\x02\x03"), []byte{5, 0})
	pss := func(parts ...[]byte) []byte { return outer(tlv(0x30, oid(oidRSAPSS), tlv(0x30, parts...))) }
	mgf := func(hash []byte) []byte { return tlv(0xa1, tlv(0x30, oid(oidMGF1), hash)) }
	for name, c := range map[string]struct {
		crl   []byte
		words string
	}{
		"rsa-md5":        {outer(tlv(0x30, oid("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04"), []byte{5, 0})), "MD5 with RSA, which is never accepted"},
		"rsa-sha1":       {outer(tlv(0x30, oid("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05"), []byte{5, 0})), "SHA-1 with RSA, which is never accepted; ask the CA to sign with SHA-256"},
		"ecdsa-sha1":     {outer(tlv(0x30, oid("\x2a\x86\x48\xce\x3d\x04\x01"))), "SHA-1 with ECDSA"},
		"dsa-sha1":       {outer(tlv(0x30, oid("\x2a\x86\x48\xce\x38\x04\x03"))), "SHA-1 with DSA"},
		"unknown":        {outer(tlv(0x30, oid("\x2a\x03\x04"))), "1.2.3.4 is not supported"},
		"parameters":     {outer(tlv(0x30, oid("\x2b\x65\x70"), []byte{5, 0})), "parameters that do not belong"},
		"ecdsa-null":     {outer(tlv(0x30, oid(algorithms[3].oid), []byte{5, 0})), "parameters that do not belong"},
		"rsa-parameters": {outer(tlv(0x30, oid(algorithms[0].oid), []byte{4, 0})), "parameters that do not belong"},
		"two-parameters": {outer(tlv(0x30, oid(algorithms[0].oid), []byte{5, 0, 5, 0})), "not valid DER"},
		"other-key":      {outer(tlv(0x30, oid(algorithms[0].oid), []byte{5, 0})), "does not verify"},
		"pss-default":    {pss(), "RSASSA-PSS with SHA-1"},
		"pss-sha1":       {pss(tlv(0xa0, sha1), mgf(sha1)), "RSASSA-PSS with SHA-1"},
		"pss-mask-sha1":  {pss(tlv(0xa0, sha256), mgf(sha1)), "RSASSA-PSS with SHA-1"},
		"pss-mixed":      {pss(tlv(0xa0, sha256), mgf(sha512)), "mixes SHA-256 with SHA-512"},
		"pss-salt-0":     {pss(tlv(0xa0, sha256), mgf(sha256), tlv(0xa2, integer(0))), "salt of 0 octets"},
		"pss-trailer":    {pss(tlv(0xa0, sha256), mgf(sha256), tlv(0xa2, integer(32)), tlv(0xa3, integer(2))), "parameters that are not valid"},
		"pss-absent":     {outer(tlv(0x30, oid(oidRSAPSS))), "parameters that are not valid"},
	} {
		t.Run(name, func(t *testing.T) { mustRefuse(t, ca, c.crl, judged, c.words) })
	}
}

// OCSP-CRL-01: before the signature verifies nothing is read but the three elements. What is in tbsCertList, here no DER at
// all, comes to light only when the signature over it is right.
func TestCRL01ReadsNothingUnverified(t *testing.T) {
	ca := ed25519CA(t)
	tbs := tlv(0x30, []byte("this is no TBSCertList at all, and nobody may notice before the signature is found wrong"))
	crl := tlv(0x30, tbs, ed25519Alg, tlv(0x03, make([]byte, 65)))
	mustRefuse(t, ca, crl, judged, "does not verify")
	mustRefuse(t, ca, ca.sign(tbs), judged, "where signature (0x30) belongs")
}

// OCSP-CRL-02 (RFC 10007).
func TestCRL02KeyUsage(t *testing.T) {
	key := ed25519CA(t).key
	without := newTestCA(t, "CAnoKU", key, func(c *x509.Certificate) { c.KeyUsage = 0 })
	crl := without.sign(without.newDraft().tbs())
	mustRefuse(t, without, crl, judged, `accept = ["ca-without-keyusage"]`)
	o := judged
	o.AcceptNoKeyUsage = true
	wantWarning(t, mustRead(t, without, crl, o), "has no keyUsage")

	for name, usage := range map[string]x509.KeyUsage{"certSign only": x509.KeyUsageCertSign, "digitalSignature": x509.KeyUsageDigitalSignature} {
		t.Run(name, func(t *testing.T) {
			ca := newTestCA(t, "CA", key, func(c *x509.Certificate) { c.KeyUsage = usage })
			mustRefuse(t, ca, ca.sign(ca.newDraft().tbs()), o, "cRLSign")
		})
	}

	dir := t.TempDir()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), dir, "key")
	openssl(t, dir, "req", "-new", "-key", "key", "-subj", "/CN=CAv1", "-out", "csr")
	openssl(t, dir, "x509", "-req", "-in", "csr", "-signkey", "key", "-days", "4000", "-out", "v1.pem")
	v1 := issuerOf(t, "CAv1", readFile(t, dir, "v1.pem"), key)
	if v1.issuer.Certificate.Version != 1 {
		t.Fatalf("a certificate of version %d was made", v1.issuer.Certificate.Version)
	}
	d := v1.newDraft()
	d.exts = v1.extensions(number(10), ext(35, false, tlv(0x30, tlv(0x80, []byte{1}))))
	wantWarning(t, mustRead(t, v1, v1.sign(d.tbs()), judged), "no subjectKeyIdentifier")
}

// OCSP-CRL-03.
func TestCRL03Issuer(t *testing.T) {
	ca := ed25519CA(t)
	d := ca.newDraft()
	d.name = newTestCA(t, "CA2", ca.key, nil).issuer.Certificate.RawSubject
	mustRefuse(t, ca, ca.sign(d.tbs()), judged, "issued by [CN=CA2], not by [CN=CA1]")

	d = ca.newDraft()
	d.exts = tlv(0xa0, tlv(0x30, ext(35, false, tlv(0x30, tlv(0x80, []byte{1, 2, 3})))))
	mustRefuse(t, ca, ca.sign(d.tbs()), judged, "authorityKeyIdentifier 010203 is not the CA's")
	d.exts = tlv(0xa0, tlv(0x30, number(10)))
	wantWarning(t, mustRead(t, ca, ca.sign(d.tbs()), judged), "no authorityKeyIdentifier")
	d.exts = tlv(0xa0, tlv(0x30, number(10), ext(35, false, tlv(0x30, tlv(0xa1, tlv(0x82, []byte("x"))), tlv(0x82, []byte{1})))))
	wantWarning(t, mustRead(t, ca, ca.sign(d.tbs()), judged), "no authorityKeyIdentifier with a key identifier")
	for _, bad := range []string{"", "0500", "3000ff", "30028000", "3003820101"} {
		b, _ := hex.DecodeString(bad)
		d.exts = tlv(0xa0, tlv(0x30, number(10), ext(35, false, b)))
		mustRefuse(t, ca, ca.sign(d.tbs()), judged, "authorityKeyIdentifier is not valid DER")
	}
}

// OCSP-CRL-03: names are compared by what they mean (RFC 5280 section 7.1).
func TestCRL03Names(t *testing.T) {
	attr := func(kind byte, tag byte, value string) []byte {
		return tlv(0x30, tlv(0x06, []byte{0x55, 4, kind}), tlv(tag, []byte(value)))
	}
	rdn := func(attrs ...[]byte) []byte { return tlv(0x31, attrs...) }
	name := func(rdns ...[]byte) []byte { return tlv(0x30, rdns...) }
	const printable, utf8, bits = 0x13, 0x0c, 0x04
	a := name(rdn(attr(10, printable, "Example  Org")), rdn(attr(3, printable, "CA 1"), attr(11, utf8, "x")))
	for _, c := range []struct {
		b    []byte
		same bool
	}{
		{a, true},
		{name(rdn(attr(10, utf8, " example org ")), rdn(attr(3, utf8, "ca 1"), attr(11, utf8, "X"))), true},
		{name(rdn(attr(10, printable, "Example  Org")), rdn(attr(11, printable, "x"), attr(3, printable, "CA 1"))), true},
		{name(rdn(attr(10, printable, "ExampleOrg")), rdn(attr(3, printable, "CA 1"), attr(11, utf8, "x"))), false},
		{name(rdn(attr(10, printable, "Example Org")), rdn(attr(3, printable, "CA 1"))), false},
		{name(rdn(attr(3, printable, "CA 1"), attr(11, utf8, "x")), rdn(attr(10, printable, "Example Org"))), false},
		{name(rdn(attr(10, printable, "Example Org")), rdn(attr(3, printable, "CA 1"), attr(3, printable, "CA 1"))), false},
		{name(rdn(attr(10, printable, "Example Org"))), false},
		{name(rdn(attr(10, printable, "Example Org")), rdn(attr(3, bits, "CA 1"), attr(11, utf8, "x"))), false},
		{name(), false},
		{append(bytes.Clone(a), 0), false},
		{nil, false},
	} {
		if sameName(a, c.b) != c.same || sameName(c.b, a) != c.same {
			t.Errorf("%x and %x: the same %v", a, c.b, !c.same)
		}
	}
	ca := ed25519CA(t)
	d := ca.newDraft()
	d.name = name(rdn(attr(3, utf8, "ca1")))
	crl := ca.sign(d.tbs())
	wantWarning(t, mustRead(t, ca, crl, judged), "in other octets")
	if i, err := IssuerOf(spool(t, crl), []*pki.Issuer{ca.issuer}); err != nil || i != ca.issuer {
		t.Errorf("issuer %v, error %v", i, err)
	}
}

// OCSP-CRL-03: the key, not the name, tells the issuer.
func TestCRL03IssuerOf(t *testing.T) {
	ca1 := ed25519CA(t)
	ca1b := newTestCA(t, "CA1", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32)), nil)
	ca2 := newTestCA(t, "CA2", ca1.key, nil) // the key of CA1
	ca3 := newTestCA(t, "CA3", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, 32)), nil)
	all := []*pki.Issuer{ca1b.issuer, ca2.issuer, ca1.issuer}
	for _, ca := range []*testCA{ca1, ca1b, ca2} {
		got, err := IssuerOf(spool(t, ca.sign(ca.newDraft().tbs())), all)
		if err != nil || got != ca.issuer {
			t.Errorf("issuer %v, error %v; want %s with its own key", got, err, ca.issuer.Name)
		}
	}
	d := ca1.newDraft()
	d.exts = tlv(0xa0, tlv(0x30, ext(35, false, tlv(0x30, tlv(0x80, []byte{1})))))
	for words, c := range map[string]struct {
		crl     []byte
		issuers []*pki.Issuer
	}{
		"no configured issuer":   {ca3.sign(ca3.newDraft().tbs()), all},
		"is another's":           {ca1.sign(d.tbs()), all},
		"name one with --issuer": {ca1.sign(ca1.newDraft().tbs()), []*pki.Issuer{ca1.issuer, ed25519CA(t).issuer}},
		"where CertificateList":  {[]byte{0x30}, nil},
	} {
		if i, err := IssuerOf(spool(t, c.crl), c.issuers); err == nil || !strings.Contains(err.Error(), words) && words != "where CertificateList" {
			t.Errorf("issuer %v, error %v; want an error with %q", i, err, words)
		}
	}
}

// OCSP-CRL-05, and OCSP-CRL-04 in so far as the number comes out exactly.
func TestCRL05Number(t *testing.T) {
	ca := ed25519CA(t)
	largest := append([]byte{0x7f}, bytes.Repeat([]byte{0xff}, 19)...) // 2^159-1
	read := func(n ...byte) []byte {
		d := ca.newDraft()
		d.exts = ca.extensions(number(n...))
		return ca.sign(d.tbs())
	}
	for want, n := range map[string][]byte{"0": {0}, "80": {0, 0x80}, "1": {1}, "7f" + strings.Repeat("ff", 19): largest, "100": {1, 0}} {
		if got := mustRead(t, ca, read(n...), judged).Number; got != want {
			t.Errorf("number %q; want %q", got, want)
		}
	}
	mustRefuse(t, ca, read(append([]byte{0}, bytes.Repeat([]byte{0xff}, 20)...)...), judged, "21 octets")
	mustRefuse(t, ca, read(0xff), judged, "is negative")
	mustRefuse(t, ca, read(0, 1), judged, "not minimal")
	mustRefuse(t, ca, read(), judged, "0 octets")
	d := ca.newDraft()
	d.exts = ca.extensions(ext(20, false, []byte{4, 1, 1}))
	mustRefuse(t, ca, ca.sign(d.tbs()), judged, "is not an INTEGER")
	d.exts = ca.extensions(unknownExt(false))
	got := mustRead(t, ca, ca.sign(d.tbs()), judged)
	wantWarning(t, got, "has no number")
	if got.Number != "" {
		t.Errorf("number %q of a CRL without one", got.Number)
	}
}

// OCSP-CRL-06.
func TestCRL06CriticalExtensions(t *testing.T) {
	ca := ed25519CA(t)
	with := func(crlExt, entryExt []byte) []byte {
		d := ca.newDraft()
		d.exts = ca.extensions(number(10), crlExt)
		d.entries = tlv(0x30, entry([]byte{1}, revokedOn), entry([]byte{2}, revokedOn, entryExt))
		return ca.sign(d.tbs())
	}
	mustRead(t, ca, with(unknownExt(false), unknownExt(false)), judged)
	mustRefuse(t, ca, with(unknownExt(true), unknownExt(false)), judged, "critical extension 1.2.3.4 is not known")
	mustRefuse(t, ca, with(unknownExt(false), unknownExt(true)), judged, "entry of serial 02: critical extension 1.2.3.4 is not known")
	mustRead(t, ca, with(ext(18, false, tlv(0x30)), ext(23, false, tlv(0x06, []byte{0x2a, 3}))), judged)
	mustRefuse(t, ca, with(ext(18, true, tlv(0x30)), reason(1)), judged, "critical extension 2.5.29.18")
	mustRefuse(t, ca, with(unknownExt(false), ext(23, true, tlv(0x06, []byte{0x2a, 3}))), judged, "critical extension 2.5.29.23")
	// The known ones may be critical.
	mustRead(t, ca, with(unknownExt(false), ext(21, true, tlv(0x0a, []byte{1}))), judged)
}

// OCSP-CRL-07, 08 and 09: the scope comes out; what is not supported or not valid is refused.
func TestCRL07Scope(t *testing.T) {
	ca := ed25519CA(t)
	with := func(critical bool, idp []byte) []byte {
		d := ca.newDraft()
		d.exts = ca.extensions(number(10), ext(28, critical, idp))
		return ca.sign(d.tbs())
	}
	yes := []byte{0xff}
	point := tlv(0xa0, tlv(0xa0, tlv(0x86, []byte("http://crl.example.org/1.crl"))))
	for name, c := range map[string]struct {
		idp  []byte
		want Scope
	}{
		"user":     {tlv(0x30, tlv(0x81, yes)), Scope{OnlyUserCerts: true}},
		"ca":       {tlv(0x30, tlv(0x82, yes)), Scope{OnlyCACerts: true}},
		"reasons":  {tlv(0x30, tlv(0x83, []byte{6, 0x40})), Scope{OnlySomeReasons: 1 << 1}},
		"reasons9": {tlv(0x30, tlv(0x83, []byte{7, 0x40, 0x80})), Scope{OnlySomeReasons: 1<<1 | 1<<8}},
		"shard":    {tlv(0x30, point), Scope{DistributionPoint: point[2:], URLs: []string{"http://crl.example.org/1.crl"}}},
		"relative": {tlv(0x30, tlv(0xa0, tlv(0xa1, tlv(0x30, tlv(0x06, []byte{0x55, 4, 3}), tlv(0x0c, []byte("x")))))), Scope{}},
		"all":      {tlv(0x30, point, tlv(0x82, yes), tlv(0x83, []byte{6, 0x40})), Scope{DistributionPoint: point[2:], URLs: []string{"http://crl.example.org/1.crl"}, OnlyCACerts: true, OnlySomeReasons: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			got := mustRead(t, ca, with(true, c.idp), judged)
			if got.Scope != hex.EncodeToString(c.idp) {
				t.Errorf("scope %s; want %x", got.Scope, c.idp)
			}
			s, err := ParseScope(got.Scope)
			if err != nil {
				t.Fatal(err)
			}
			if name == "relative" {
				c.want.DistributionPoint = c.idp[4:]
			}
			if d := cmp.Diff(c.want, s); d != "" {
				t.Error(d)
			}
		})
	}
	wantWarning(t, mustRead(t, ca, with(false, tlv(0x30, tlv(0x81, yes))), judged), "issuingDistributionPoint is not critical")
	mustRefuse(t, ca, with(true, tlv(0x30, tlv(0x85, yes))), judged, "attribute certificates") // CRL-07 (d)
	mustRefuse(t, ca, with(true, tlv(0x30, tlv(0x84, yes))), judged, "indirect")               // OCSP-CRL-08
	mustRefuse(t, ca, with(false, tlv(0x30, tlv(0x84, yes))), judged, "indirect")              // critical or not
	for name, idp := range map[string][]byte{
		"empty":               tlv(0x30), // OCSP-CRL-09
		"two":                 tlv(0x30, tlv(0x81, yes), tlv(0x82, yes)),
		"two with attributes": tlv(0x30, tlv(0x81, yes), tlv(0x85, yes)),
		"FALSE":               tlv(0x30, tlv(0x81, []byte{0})),
		"TRUE as 1":           tlv(0x30, tlv(0x81, []byte{1})),
		"order":               tlv(0x30, tlv(0x82, yes), tlv(0x81, yes)),
		"twice":               tlv(0x30, tlv(0x81, yes), tlv(0x81, yes)),
		"unknown tag":         tlv(0x30, tlv(0x86, yes)),
		"trailing":            append(tlv(0x30, tlv(0x81, yes)), 5, 0),
		"no reasons":          tlv(0x30, tlv(0x83, []byte{0})),
		"reasons of zero":     tlv(0x30, tlv(0x83, []byte{0, 0})),
		"reasons not minimal": tlv(0x30, tlv(0x83, []byte{0, 0x40})),
		"empty point":         tlv(0x30, tlv(0xa0)),
		"no names":            tlv(0x30, tlv(0xa0, tlv(0xa0))),
		"two names":           tlv(0x30, tlv(0xa0, tlv(0xa0, tlv(0x86, []byte("a"))), tlv(0xa0, tlv(0x86, []byte("b"))))),
		"no GeneralName":      tlv(0x30, tlv(0xa0, tlv(0xa0, tlv(0x04, []byte("a"))))),
		"not a SEQUENCE":      {5, 0},
	} {
		t.Run(name, func(t *testing.T) {
			mustRefuse(t, ca, with(true, idp), judged, "issuingDistributionPoint is not valid")
		})
	}
}

// OCSP-CRL-08.
func TestCRL08CertificateIssuer(t *testing.T) {
	ca := ed25519CA(t)
	d := ca.newDraft()
	for _, critical := range []bool{true, false} {
		d.entries = tlv(0x30, entry([]byte{1}, revokedOn, ext(29, critical, tlv(0x30))))
		mustRefuse(t, ca, ca.sign(d.tbs()), judged, "indirect")
	}
}

// OCSP-CRL-10: a delta says so, so that nobody takes it for a complete CRL.
func TestCRL10Delta(t *testing.T) {
	ca := ed25519CA(t)
	with := func(exts ...[]byte) []byte {
		d := ca.newDraft()
		d.exts = ca.extensions(exts...)
		return ca.sign(d.tbs())
	}
	delta := func(critical bool, base ...byte) []byte { return ext(27, critical, integer(base...)) }
	got := mustRead(t, ca, with(number(12), delta(true, 10)), judged)
	if got.Number != "c" || got.BaseNumber != "a" {
		t.Errorf("number %q on %q; want c on a", got.Number, got.BaseNumber)
	}
	if got := mustRead(t, ca, with(number(1, 0), delta(true, 0)), judged); got.BaseNumber != "0" {
		t.Errorf("base %q; want 0", got.BaseNumber)
	}
	mustRead(t, ca, with(number(12), delta(true, 12)), judged) // nothing new since the complete one: some CAs issue both at once
	wantWarning(t, mustRead(t, ca, with(number(12), delta(false, 10)), judged), "deltaCRLIndicator is not critical")
	mustRefuse(t, ca, with(number(9), delta(true, 10)), judged, "number 9, below a")
	mustRefuse(t, ca, with(number(0, 0x80), delta(true, 1, 0)), judged, "number 80, below 100")
	mustRefuse(t, ca, with(delta(true, 10)), judged, "has no number")
	mustRefuse(t, ca, with(number(12), ext(27, true, []byte{5, 0})), judged, "deltaCRLIndicator is not an INTEGER")
}

// The place of a delta that the CA itself names (RFC 5280 section 5.2.6).
func TestFreshestCRL(t *testing.T) {
	ca := ed25519CA(t)
	point := func(urls ...string) []byte {
		var names []byte
		for _, u := range urls {
			names = append(names, tlv(0x86, []byte(u))...)
		}
		return tlv(0x30, tlv(0xa0, tlv(0xa0, names)))
	}
	with := func(critical bool, value []byte) []byte {
		d := ca.newDraft()
		d.exts = ca.extensions(number(10), ext(46, critical, value))
		return ca.sign(d.tbs())
	}
	got := mustRead(t, ca, with(false, tlv(0x30, point("http://crl.example.org/d", "/etc/passwd", "ldap://example.org/x"), point("https://crl.example.org/e"))), judged)
	if d := cmp.Diff([]string{"http://crl.example.org/d", "https://crl.example.org/e"}, got.Freshest); d != "" {
		t.Error(d)
	}
	wantWarning(t, mustRead(t, ca, with(false, []byte{5, 0}), judged), "freshestCRL is not valid DER")
	mustRefuse(t, ca, with(true, []byte{5, 0}), judged, "freshestCRL is critical and not valid")
}

// OCSP-CRL-11 and OCSP-CRL-17, OCSP-REV-03: no reason drops an entry.
func TestCRL11RemoveAndCRL17Reasons(t *testing.T) {
	ca := ed25519CA(t)
	with := func(delta bool, exts ...[]byte) []byte {
		d := ca.newDraft()
		if delta {
			d.exts = ca.extensions(number(12), ext(27, true, integer(10)))
		}
		d.entries = tlv(0x30, entry([]byte{5}, revokedOn, exts...))
		return ca.sign(d.tbs())
	}
	enum := func(b ...byte) []byte { return ext(21, false, tlv(0x0a, b)) }
	for name, c := range map[string]struct {
		crl     []byte
		want    pki.Reason
		warning string
	}{
		"0":                  {with(false, reason(0)), pki.Unspecified, ""},
		"1":                  {with(false, reason(1)), pki.KeyCompromise, ""},
		"6":                  {with(false, reason(6)), pki.CertificateHold, ""},
		"10":                 {with(false, reason(10)), pki.AACompromise, ""},
		"critical":           {with(false, ext(21, true, tlv(0x0a, []byte{4}))), pki.Superseded, ""},
		"7":                  {with(false, reason(7)), 0, "a reason that does not exist"},
		"11":                 {with(false, reason(11)), 0, "a reason that does not exist"},
		"255":                {with(false, reason(255)), 0, "a reason that does not exist"},
		"two octets":         {with(false, enum(0, 1)), 0, "a reason that does not exist"},
		"no octet":           {with(false, enum()), 0, "a reason that does not exist"},
		"INTEGER":            {with(false, ext(21, false, integer(1))), 0, "a reason that does not exist"},
		"empty":              {with(false, ext(21, false, nil)), 0, "a reason that does not exist"},
		"trailing":           {with(false, ext(21, false, []byte{10, 1, 1, 0})), 0, "a reason that does not exist"},
		"7 in a delta":       {with(true, reason(7)), 0, "a reason that does not exist"},
		"remove":             {with(false, reason(8)), 0, "1 entries with removeFromCRL, which belongs in delta CRLs only"},
		"remove in a delta":  {with(true, reason(8)), pki.RemoveFromCRL, ""},
		"remove with others": {with(true, unknownExt(false), reason(8)), pki.RemoveFromCRL, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := mustRead(t, ca, c.crl, judged)
			e := entriesOf(t, s)[0]
			if e.Status.State != pki.Revoked || e.Status.Reason != c.want || e.Serial != serial(t, "05") {
				t.Errorf("entry %+v; want revoked with reason %v", e, c.want)
			}
			if c.warning != "" {
				wantWarning(t, s, c.warning)
				wantWarning(t, s, "serial 05")
			} else if len(s.Warnings) != 0 {
				t.Errorf("warnings %q; want none", s.Warnings)
			}
		})
	}
}

// OCSP-REV-06: invalidityDate. What cannot be read does not drop the entry.
func TestInvalidityDate(t *testing.T) {
	ca := ed25519CA(t)
	when := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		value []byte
		want  time.Time
	}{
		{general(when), when}, {utc(when), time.Time{}}, {append(general(when), 0), time.Time{}}, {tlv(0x18, []byte("20260102030405.5Z")), time.Time{}},
	} {
		d := ca.newDraft()
		d.entries = tlv(0x30, entry([]byte{5}, revokedOn, reason(1), ext(24, false, c.value)))
		s := mustRead(t, ca, ca.sign(d.tbs()), judged)
		e := entriesOf(t, s)[0]
		if !e.Status.InvalidityDate.Equal(c.want) || e.Status.Reason != pki.KeyCompromise || e.Status.State != pki.Revoked {
			t.Errorf("%x: entry %+v; want invalidity date %v", c.value, e, c.want)
		}
		if c.want.IsZero() {
			wantWarning(t, s, "invalidityDate")
		}
	}
}

// OCSP-CRL-13, OCSP-CRL-14, OCSP-CRL-15: times that have passed, are missing, or lie ahead.
func TestCRL13To15Times(t *testing.T) {
	ca := ed25519CA(t)
	with := func(this, next []byte) []byte {
		d := ca.newDraft()
		d.this, d.next = this, next
		return ca.sign(d.tbs())
	}
	at := func(d time.Duration) []byte { return utc(now.Add(d)) }
	err := mustRefuse(t, ca, with(at(-2*time.Hour), at(-time.Second)), judged, "its nextUpdate was 2026-06-01T11:59:59Z") // 13
	if !errors.Is(err, ErrExpired) {
		t.Errorf("%v is not ErrExpired", err)
	}
	mustRead(t, ca, with(at(-time.Hour), at(0)), judged)

	mustRefuse(t, ca, with(at(-time.Hour), nil), judged, "no nextUpdate") // 14
	o := judged
	o.MaxAge = 2 * time.Hour
	s := mustRead(t, ca, with(at(-time.Hour), nil), o)
	wantWarning(t, s, "no nextUpdate")
	if !s.NextUpdate.Equal(now.Add(time.Hour)) {
		t.Errorf("nextUpdate %v; want thisUpdate and 2h", s.NextUpdate)
	}
	if err := mustRefuse(t, ca, with(at(-3*time.Hour), nil), o, "expired"); !errors.Is(err, ErrExpired) {
		t.Errorf("%v is not ErrExpired", err)
	}
	if s := mustRead(t, ca, with(at(-time.Hour), at(time.Minute)), o); !s.NextUpdate.Equal(now.Add(time.Minute)) {
		t.Errorf("MaxAge changed the nextUpdate of a CRL that has one to %v", s.NextUpdate)
	}

	mustRefuse(t, ca, with(at(time.Hour), at(2*time.Hour)), judged, "lies after now") // 15
	mustRefuse(t, ca, with(at(5*time.Minute+time.Second), at(2*time.Hour)), judged, "lies after now")
	mustRead(t, ca, with(at(5*time.Minute), at(2*time.Hour)), judged)
	mustRefuse(t, ca, with(at(-time.Hour), at(-time.Hour)), judged, "is not after thisUpdate")
	if err := mustRefuse(t, ca, with(at(-time.Hour), at(-2*time.Hour)), judged, "is not after thisUpdate"); errors.Is(err, ErrExpired) {
		t.Error("a CRL that never was valid is said to have expired")
	}
}

// OCSP-CRL-16, OCSP-REV-01: both forms of time, in the CRL and in entries.
func TestCRL16TimeForms(t *testing.T) {
	ca := ed25519CA(t)
	for text, want := range map[string]string{
		"\x17491231235959Z": "2049-12-31T23:59:59Z", "\x17500101000000Z": "1950-01-01T00:00:00Z", "\x17000229120000Z": "2000-02-29T12:00:00Z",
		"\x1820500101000000Z": "2050-01-01T00:00:00Z", "\x1899991231235959Z": "9999-12-31T23:59:59Z", "\x1820200229000000Z": "2020-02-29T00:00:00Z",
		"\x172601010000Z": "", "\x17260101000000": "", "\x17260101000000+0000": "", "\x17261301000000Z": "", "\x17260001000000Z": "", "\x17260230000000Z": "",
		"\x17250229000000Z": "", "\x17260101240000Z": "", "\x17260101006000Z": "", "\x17260101000060Z": "", "\x17 60101000000Z": "", "\x17+60101000000Z": "",
		"\x1820260101000000.1Z": "", "\x18202601010000Z": "", "\x1820260101000000": "", "\x1821000229000000Z": "", "\x1800000101000000Z": "", "\x18260101000000Z": "",
		"\x1720260101000000Z": "", "\x17": "", "\x18": "", "\x17260101000000z": "", "\x17260431000000Z": "",
	} {
		date := tlv(text[0], []byte(text[1:]))
		d := ca.newDraft()
		d.entries = tlv(0x30, entry([]byte{1}, date))
		crl := ca.sign(d.tbs())
		if want == "" {
			mustRefuse(t, ca, crl, judged, "is not a time")
		} else if got := stamp(entriesOf(t, mustRead(t, ca, crl, judged))[0].Status.RevokedAt); got != want {
			t.Errorf("%q: revoked at %s; want %s", text, got, want)
		}
		d = ca.newDraft()
		d.next = date
		err := readCRL(bytes.NewReader(ca.sign(d.tbs())), int64(len(ca.sign(d.tbs()))), ca.issuer, judged, new(pki.Snapshot))
		if want == "" && (err == nil || !strings.Contains(err.Error(), "is not a time")) {
			t.Errorf("%q as nextUpdate: error %v", text, err)
		}
		if want > stamp(now) && err != nil {
			t.Errorf("%q as nextUpdate: %v", text, err)
		}
	}
	d := ca.newDraft()
	d.this, d.next = general(now.Add(-time.Hour)), general(now.Add(time.Hour))
	d.entries = tlv(0x30, entry([]byte{1}, general(now)))
	s := mustRead(t, ca, ca.sign(d.tbs()), judged)
	if !s.ThisUpdate.Equal(now.Add(-time.Hour)) || !s.NextUpdate.Equal(now.Add(time.Hour)) {
		t.Errorf("times %v, %v", s.ThisUpdate, s.NextUpdate)
	}
	wantWarning(t, s, "a time before 2050 is written as GeneralizedTime")
	wantWarning(t, s, "1 entries with a revocationDate before 2050")
}

// OCSP-CRL-18: duplicates reach the store, which decides.
func TestCRL18Duplicates(t *testing.T) {
	ca := ed25519CA(t)
	d := ca.newDraft()
	d.entries = tlv(0x30, entry([]byte{1}, utc(now), reason(1)), entry([]byte{1}, utc(now.Add(-time.Hour)), reason(4)))
	if n := len(entriesOf(t, mustRead(t, ca, ca.sign(d.tbs()), judged))); n != 2 {
		t.Errorf("%d entries; want both", n)
	}
}

// OCSP-CRL-21.
func TestCRL21Empty(t *testing.T) {
	ca := ed25519CA(t)
	d := ca.newDraft()
	d.entries = nil
	s := mustRead(t, ca, ca.sign(d.tbs()), judged)
	if len(entriesOf(t, s)) != 0 || len(s.Warnings) != 0 {
		t.Errorf("%d entries, warnings %q; want none", s.Count, s.Warnings)
	}
	d.entries = tlv(0x30)
	s = mustRead(t, ca, ca.sign(d.tbs()), judged)
	if len(entriesOf(t, s)) != 0 {
		t.Errorf("%d entries; want none", s.Count)
	}
	wantWarning(t, s, "there but empty")
}

// A CRL of version 1 has no extensions at all (openssl ca without crl_extensions makes them).
func TestVersions(t *testing.T) {
	ca := ed25519CA(t)
	d := ca.newDraft()
	d.version = nil
	mustRefuse(t, ca, ca.sign(d.tbs()), judged, "crlExtensions in a CRL of version 1")
	d.exts = nil
	s := mustRead(t, ca, ca.sign(d.tbs()), judged)
	wantWarning(t, s, "version 1")
	wantWarning(t, s, "no number")
	for _, v := range [][]byte{integer(0), integer(2), integer(0, 1), integer(), {2, 0x81, 1, 1}} {
		d := ca.newDraft()
		d.version = v
		mustRefuse(t, ca, ca.sign(d.tbs()), judged, "version")
	}
}

// Strict DER: everything has one encoding, and nothing stands where nothing belongs.
func TestStrictDER(t *testing.T) {
	ca := ed25519CA(t)
	good := ca.newDraft()
	tbs := good.tbs()
	sig := ca.sign(tbs)
	sig = sig[len(sig)-64:]
	outer := func(parts ...[]byte) []byte { return tlv(0x30, parts...) }
	bits := tlv(0x03, []byte{0}, sig)
	change := func(f func(*draft)) []byte {
		d := ca.newDraft()
		f(&d)
		return ca.sign(d.tbs())
	}
	one := func(content ...[]byte) []byte {
		return change(func(d *draft) { d.entries = tlv(0x30, tlv(0x30, content...)) })
	}
	long := func(b []byte) []byte { return append([]byte{b[0], 0x82, 0, b[1]}, b[2:]...) } // a length with a leading zero
	boolFalse := tlv(0x30, tlv(0x06, []byte{0x2a, 3, 4}), []byte{1, 1, 0}, tlv(0x04))
	for name, crl := range map[string][]byte{
		"octet after":            append(ca.sign(tbs), 0),
		"fourth element":         outer(tbs, ed25519Alg, bits, []byte{5, 0}),
		"no signature":           outer(tbs, ed25519Alg),
		"no algorithm":           outer(tbs),
		"nothing":                outer(),
		"unused bits":            outer(tbs, ed25519Alg, tlv(0x03, []byte{1}, sig)),
		"empty signature":        outer(tbs, ed25519Alg, tlv(0x03)),
		"signature of no octets": outer(tbs, ed25519Alg, tlv(0x03, []byte{0})),
		"signature as OCTET":     outer(tbs, ed25519Alg, tlv(0x04, []byte{0}, sig)),
		"indefinite":             append(append([]byte{0x30, 0x80}, outer(tbs, ed25519Alg, bits)[4:]...), 0, 0),
		"length not minimal":     append([]byte{0x30, 0x83, 0}, ca.sign(tbs)[2:]...),
		"length of five octets":  append([]byte{0x30, 0x85, 0, 0}, ca.sign(tbs)[2:]...),
		"tbs longer than all":    {0x30, 4, 0x30, 0x7f, 5, 0},
		"one octet":              {0x30},
		"tag only":               {0x30, 0x82},
		"after extensions":       change(func(d *draft) { d.tail = []byte{5, 0} }),
		"extensions twice":       change(func(d *draft) { d.tail = d.exts }),
		"two Extensions":         change(func(d *draft) { d.exts = tlv(0xa0, tlv(0x30, number(1)), tlv(0x30, number(1))) }),
		"empty extensions":       change(func(d *draft) { d.exts = tlv(0xa0, tlv(0x30)) }),
		"empty [0]":              change(func(d *draft) { d.exts = tlv(0xa0) }),
		"[1]":                    change(func(d *draft) { d.exts[0] = 0xa1 }),
		"number twice":           change(func(d *draft) { d.exts = ca.extensions(number(1), number(1)) }),
		"critical FALSE":         change(func(d *draft) { d.exts = ca.extensions(boolFalse) }),
		"extension with a tail": change(func(d *draft) {
			d.exts = ca.extensions(tlv(0x30, tlv(0x06, []byte{0x2a, 3, 4}), tlv(0x04), []byte{5, 0}))
		}),
		"OID not minimal":         change(func(d *draft) { d.exts = ca.extensions(tlv(0x30, tlv(0x06, []byte{0x2a, 0x80, 4}), tlv(0x04))) }),
		"OID cut off":             change(func(d *draft) { d.exts = ca.extensions(tlv(0x30, tlv(0x06, []byte{0x2a, 0x84}), tlv(0x04))) }),
		"OID empty":               change(func(d *draft) { d.exts = ca.extensions(tlv(0x30, tlv(0x06), tlv(0x04))) }),
		"no issuer":               change(func(d *draft) { d.name = nil }),
		"no thisUpdate":           change(func(d *draft) { d.this, d.next = nil, nil }),
		"three times":             change(func(d *draft) { d.next = append(d.next, d.next...) }),
		"entries twice":           change(func(d *draft) { d.entries = append(d.entries, d.entries...) }),
		"extensions first":        change(func(d *draft) { d.entries, d.exts = d.exts, d.entries }),
		"entry no SEQUENCE":       change(func(d *draft) { d.entries = tlv(0x30, tlv(0x31, integer(1), revokedOn)) }),
		"entry cut off":           change(func(d *draft) { d.entries = tlv(0x30, []byte{0x30}) }),
		"entry too long":          change(func(d *draft) { d.entries = tlv(0x30, []byte{0x30, 0x7f, 2, 1, 1}) }),
		"entry empty":             one(),
		"entry without date":      one(integer(1)),
		"entry with a tail":       one(integer(1), revokedOn, tlv(0x30, reason(1)), []byte{5, 0}),
		"entry with NULL":         one(integer(1), revokedOn, []byte{5, 0}),
		"entry: extensions empty": one(integer(1), revokedOn, tlv(0x30)),
		"entry: reason twice":     one(integer(1), revokedOn, tlv(0x30, reason(1), reason(1))),
		"entry: critical FALSE":   one(integer(1), revokedOn, tlv(0x30, boolFalse)),
		"entry: long length":      one(long(integer(1)), revokedOn),
		"serial not minimal":      one(integer(0, 1), revokedOn),
		"serial negative, longer": one(integer(0xff, 0x80), revokedOn),
		"serial empty":            one(integer(), revokedOn),
		"serial of 21 octets":     one(integer(append([]byte{0, 0x80}, make([]byte, 19)...)...), revokedOn),
		"serial no INTEGER":       one(tlv(0x04, []byte{1}), revokedOn),
		"entry too large":         one(integer(1), revokedOn, tlv(0x30, tlv(0x30, tlv(0x06, []byte{0x2a, 3, 4}), tlv(0x04, make([]byte, maxElement))))),
		"extensions too large": change(func(d *draft) {
			d.exts = ca.extensions(tlv(0x30, tlv(0x06, []byte{0x2a, 3, 4}), tlv(0x04, make([]byte, maxElement))))
		}),
		"more than 64 extensions": change(func(d *draft) { d.exts = ca.extensions(manyExtensions(65)) }),
	} {
		t.Run(name, func(t *testing.T) { mustRefuse(t, ca, crl, judged, "; get the CRL again from the CA") })
	}
	// What is allowed: the bounds themselves.
	mustRead(t, ca, change(func(d *draft) { d.exts = ca.extensions(manyExtensions(60)) }), judged)
	s := mustRead(t, ca, one(integer(append([]byte{0x80}, make([]byte, 19)...)...), revokedOn, tlv(0x30, tlv(0x30, tlv(0x06, []byte{0x2a, 3, 4}), tlv(0x04, make([]byte, maxElement-100))))), judged)
	if want := new(big.Int).Neg(new(big.Int).Lsh(big.NewInt(1), 159)); entriesOf(t, s)[0].Serial.Big().Cmp(want) != 0 {
		t.Errorf("serial %v; want %v", entriesOf(t, s)[0].Serial.Big(), want)
	}
	// The offset leads to the place.
	bad := change(func(d *draft) { d.entries = tlv(0x30, entry([]byte{1}, revokedOn), tlv(0x31, []byte("here"))) })
	mustRefuse(t, ca, bad, judged, fmt.Sprintf("octet %d: tag 0x31", bytes.Index(bad, []byte("\x31\x04here"))))
}

func manyExtensions(n int) []byte {
	var all []byte
	for i := range n {
		all = append(all, tlv(0x30, tlv(0x06, []byte{0x2a, 3, byte(i)}), tlv(0x04))...)
	}
	return all
}

// Entries of every length lie across the borders of the window.
func TestWindow(t *testing.T) {
	ca := ed25519CA(t)
	var list bytes.Buffer
	var want []int
	for i := 0; list.Len() < 3*windowSize; i++ {
		n := i * 7919 % 60000
		want = append(want, n)
		list.Write(entry([]byte{byte(i>>8)&0x3f | 0x40, byte(i)}, revokedOn, tlv(0x30, tlv(0x06, []byte{0x2a, 3, 4}), tlv(0x04, make([]byte, n)))))
	}
	d := ca.newDraft()
	d.entries = tlv(0x30, list.Bytes())
	got := entriesOf(t, mustRead(t, ca, ca.sign(d.tbs()), judged))
	if len(got) != len(want) {
		t.Fatalf("%d entries; want %d", len(got), len(want))
	}
	for i, e := range got {
		if e.Serial.Big().Int64() != int64(0x4000|i) {
			t.Fatalf("entry %d has serial %v", i, e.Serial)
		}
	}
}

// OCSP-CRL-20: memory does not depend on the number of entries, in DER or PEM.
func TestCRL20Memory(t *testing.T) {
	// Piece by piece, since Ed25519, with which the other tests sign, has a bound and holds the CRL.
	allocated := func(n int) uint64 {
		var list bytes.Buffer
		for i := range n {
			list.Write(entry([]byte{1, byte(i >> 16), byte(i >> 8), byte(i)}, revokedOn, reason(byte(i%6)+1)))
		}
		s := spool(t, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: tlv(0x30, list.Bytes())}))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := s.toDER(); err != nil {
			t.Fatal(err)
		}
		w := newWalker(s.file, 0, s.size, windowSize)
		end, err := w.enter(0x30, "list")
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		err = readEntries(s.file, w.offset(), end, false, new(oddities), func(pki.Entry) error { count++; return nil })
		if err != nil || count != n {
			t.Fatalf("%d entries, error %v", count, err)
		}
		if m, err := algorithms[0].message(s.file, 0, s.size); err != nil || len(m) != 32 {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	small, large := allocated(10_000), allocated(100_000)
	if large > small+64<<10 || small > 4<<20 {
		t.Errorf("%d octets of memory for 10,000 entries, %d for 100,000", small, large)
	}
}

// OCSP-CRL-22: DER or PEM, and a page with status 200 refused for what it is.
func TestCRL22Forms(t *testing.T) {
	ca := ed25519CA(t)
	der := ca.sign(ca.newDraft().tbs())
	block := string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	want := mustRead(t, ca, der, judged)
	for name, text := range map[string]string{
		"plain":             block,
		"CRLF":              strings.ReplaceAll(block, "\n", "\r\n"),
		"no last newline":   strings.TrimSuffix(block, "\n"),
		"text around":       "Certificate Revocation List (CRL):\n    Version 2 (0x1)\n" + block + "\nthat is all\n",
		"indented, unequal": "  " + strings.ReplaceAll(block, "\n", " \n\n  "),
	} {
		t.Run(name, func(t *testing.T) {
			s := spool(t, []byte(text))
			got, err := ReadCRL(s, ca.issuer, judged)
			if err != nil {
				t.Fatal(err)
			}
			if got.Digest != want.Digest || got.Size != want.Size || s.Digest() != want.Digest || s.Size() != want.Size {
				t.Error("digest and size are not those of the DER")
			}
			if !slices.Equal(entriesOf(t, got), entriesOf(t, want)) {
				t.Error("other entries than from DER")
			}
		})
	}
	body := strings.Split(strings.TrimSpace(block), "\n")
	for name, c := range map[string]struct{ text, words string }{
		"empty":                {"", "the file is empty"},
		"HTML":                 {"<!DOCTYPE html>\n<html><body>Please log in</body></html>", "looks like an HTML page"},
		"HTML later":           {"\xef\xbb\xbf\r\n  <html>", "looks like an HTML page"},
		"text":                 {"Not found\n", "neither DER nor PEM"},
		"one line":             {strings.Repeat("x", maxElement+1), "neither DER nor PEM"},
		"certificate":          {"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", `line 1: a block "CERTIFICATE"`},
		"two":                  {block + block, "a second PEM block"},
		"two kinds":            {block + "-----BEGIN CERTIFICATE-----\n", "a second PEM block"},
		"no end":               {strings.Join(body[:len(body)-1], "\n"), "ends before the line"},
		"other end":            {strings.Replace(block, "END X509", "END X510", 1), "another line where -----END X509 CRL----- belongs"},
		"header":               {strings.Replace(block, "-----\n", "-----\nProc-Type: 4,ENCRYPTED\n\n", 1), "illegal base64"},
		"not base64":           {strings.Replace(block, "A", "*", 1), "illegal base64"},
		"more after =":         {body[0] + "\nMAA=\nMAAA\n" + body[len(body)-1] + "\n", "goes on after its end"},
		"more after = in line": {body[0] + "\nMAA=MAAA\n" + body[len(body)-1] + "\n", "illegal base64"},
		"line too long":        {body[0] + "\n" + strings.Repeat("M", maxElement+1) + "\n" + body[len(body)-1], "a line of more than"},
		"empty block":          {body[0] + "\n" + body[len(body)-1] + "\n", "CertificateList is missing"},
	} {
		t.Run(name, func(t *testing.T) { mustRefuse(t, ca, []byte(c.text), judged, c.words) })
	}
}

// flaky fails its reads after some.
type flaky struct {
	io.ReaderAt
	left int
}

var errDisk = errors.New("the disk is broken")

func (f *flaky) ReadAt(b []byte, at int64) (int, error) {
	if f.left--; f.left < 0 {
		return 0, errDisk
	}
	return f.ReaderAt.ReadAt(b, at)
}

// DESIGN invariant 1: whichever read fails, the whole fails; nothing half read is taken for all there is.
func TestEveryReadFails(t *testing.T) {
	ca := ed25519CA(t)
	var list bytes.Buffer
	for i := range 20_000 {
		list.Write(entry([]byte{1, byte(i >> 8), byte(i)}, revokedOn))
	}
	d := ca.newDraft()
	d.entries = tlv(0x30, list.Bytes())
	crl := ca.sign(d.tbs())
	index := strings.Repeat(realIndex, 1000)
	for name, read := range map[string]func(io.ReaderAt, *pki.Snapshot) error{
		"CRL":   func(r io.ReaderAt, s *pki.Snapshot) error { return readCRL(r, int64(len(crl)), ca.issuer, judged, s) },
		"index": func(r io.ReaderAt, s *pki.Snapshot) error { return readIndex(r, int64(len(index)), s) },
	} {
		content := map[string][]byte{"CRL": crl, "index": []byte(index)}[name]
		for n := 0; ; n++ {
			var got pki.Snapshot
			err := read(&flaky{bytes.NewReader(content), n}, &got)
			if err == nil {
				if n < 3 {
					t.Errorf("%s: whole after %d reads", name, n)
				}
				// A replay that fails says so too.
				broken := &flaky{bytes.NewReader(content), n + 1}
				if err := read(broken, &got); err != nil {
					t.Fatal(err)
				}
				if err := got.Entries(func(pki.Entry) error { return nil }); !errors.Is(err, errDisk) {
					t.Errorf("%s: replay: error %v; want that of the disk", name, err)
				}
				break
			}
			if !errors.Is(err, errDisk) || got.Entries != nil {
				t.Errorf("%s: read %d failed: error %v; want that of the disk", name, n, err)
			}
		}
		// A file that became shorter than it was.
		if err := read(bytes.NewReader(content[:len(content)/2]), new(pki.Snapshot)); err == nil {
			t.Errorf("%s: half of it was taken for all", name)
		}
	}
}

func TestForPeople(t *testing.T) {
	all := Scope{OnlyUserCerts: true, OnlyCACerts: true, OnlyAttributeCert: true, Indirect: true, OnlySomeReasons: 2, DistributionPoint: []byte{0}, URLs: []string{"http://crl.example.org/1\n"}}
	want := `certificates of users only, certificates of CAs only, attribute certificates only, indirect: certificates of other issuers too, some reasons only (ReasonFlags 0x2), distribution point "http://crl.example.org/1\n"`
	if all.String() != want {
		t.Error(all)
	}
	if s, err := ParseScope(""); err != nil || s.String() != "everything that the issuer issued" {
		t.Errorf("%v, %v", s, err)
	}
	for _, bad := range []string{"3", "3000", "xx"} {
		if _, err := ParseScope(bad); err == nil {
			t.Errorf("scope %q was read", bad)
		}
	}
	if s := nameString([]byte{0x30, 1}); s != "a name that cannot be read" {
		t.Error(s)
	}
	long := tlv(0x30, tlv(0x31, tlv(0x30, tlv(0x06, []byte{0x55, 4, 3}), tlv(0x0c, []byte(strings.Repeat("ä", 5000))))))
	if s := nameString(long); len(s) > maxNameString+3 || !strings.HasPrefix(s, "CN=ää") {
		t.Error(s)
	}
}

// A full spool directory or a closed file is an error of its own, not a verdict about the CRL.
func TestSpool(t *testing.T) {
	dir := t.TempDir()
	if _, err := NewSpool(dir, strings.NewReader("12345"), 4); !errors.Is(err, ErrTooLarge) {
		t.Errorf("error %v; want ErrTooLarge", err)
	}
	s, err := NewSpool(dir, strings.NewReader("12345"), 5)
	if err != nil || s.Size() != 5 {
		t.Errorf("size %d, error %v", s.Size(), err)
	}
	defer s.Close()
	if left := openFiles(t, dir); len(left) != 0 {
		t.Errorf("files %v are left in the spool directory", left)
	}
	if _, err := NewSpool(dir+"/absent", strings.NewReader("1"), 5); err == nil {
		t.Error("a spool in a directory that is not there")
	}
	broken := errors.New("broken")
	if _, err := NewSpool(dir, &failing{err: broken}, 5); !errors.Is(err, broken) {
		t.Errorf("error %v; want the reader's own", err)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

func TestInspect(t *testing.T) {
	ca := ed25519CA(t)
	stranger := newTestCA(t, "evil\nCA", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, 32)), nil)
	d := stranger.newDraft()
	d.exts = stranger.extensions(number(10), ext(28, true, tlv(0x30, tlv(0x81, []byte{0xff}))))
	crl := stranger.sign(d.tbs())
	crl[len(crl)-1] ^= 1 // not even signed
	got, err := Inspect(spool(t, crl))
	if err != nil {
		t.Fatal(err)
	}
	want := &CRLInfo{Version: 2, Issuer: `"CN=evil\nCA"`, SignatureAlgorithm: "Ed25519", ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(24 * time.Hour),
		Number: "a", AuthorityKeyID: hex.EncodeToString(stranger.issuer.Certificate.SubjectKeyId), Scope: Scope{OnlyUserCerts: true},
		Extensions: []string{"2.5.29.35", "2.5.29.20", "2.5.29.28 critical"}, Entries: 2, Size: int64(len(crl)), Digest: got.Digest}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	// What would be refused is shown all the same.
	d = ca.newDraft()
	d.exts = ca.extensions(number(10), unknownExt(true))
	d.entries = tlv(0x30, entry([]byte{1}, revokedOn, reason(7)), entry([]byte{2}, revokedOn, unknownExt(true)))
	got, err = Inspect(spool(t, ca.sign(d.tbs())))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Problems) != 2 || len(got.Warnings) != 1 || got.Entries != 1 || got.Number != "a" {
		t.Errorf("%+v; want two problems, one warning and the rest", got)
	}
	if _, err := Inspect(spool(t, []byte("<html>"))); err == nil {
		t.Error("an HTML page was inspected")
	}
}

func TestOIDString(t *testing.T) {
	b, err := asn1.Marshal(asn1.ObjectIdentifier{2, 5, 29, 20})
	if err != nil {
		t.Fatal(err)
	}
	if got := oidString(b[2:]); got != "2.5.29.20" {
		t.Errorf("%s; want 2.5.29.20", got)
	}
	if got := oidString([]byte{0x80}); got != "80" {
		t.Errorf("%s; want the octets in hex", got)
	}
}
