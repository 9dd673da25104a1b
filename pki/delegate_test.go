package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var delegateNow = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func mustECKey(t *testing.T, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

type testCA struct {
	*Issuer
	key crypto.Signer
}

func newTestCA(t *testing.T, name string, change func(*x509.Certificate)) testCA {
	t.Helper()
	key := mustECKey(t, elliptic.P256())
	c := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name}, NotBefore: delegateNow.AddDate(-5, 0, 0), NotAfter: delegateNow.AddDate(5, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature, SubjectKeyId: []byte(name + " key"),
	}
	if change != nil {
		change(c)
	}
	issuer, err := NewIssuer(name, parsed(t, c, c, key.Public(), key))
	if err != nil {
		t.Fatal(err)
	}
	return testCA{issuer, key}
}

func parsed(t *testing.T, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var noCheck = pkix.Extension{Id: oidNoCheck, Value: asn1.NullBytes}

func signerTemplate() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(100), Subject: pkix.Name{CommonName: "signer"}, NotBefore: delegateNow.AddDate(0, 0, -1), NotAfter: delegateNow.AddDate(0, 0, 60),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}, ExtraExtensions: []pkix.Extension{noCheck},
	}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// OCSP-DEL-01 to OCSP-DEL-07, OCSP-DEL-11, OCSP-DEL-13, OCSP-KEY-22: every broken variant, in both profiles.
func TestCheckDelegate(t *testing.T) {
	ca := newTestCA(t, "CA1", nil)
	ca1b := newTestCA(t, "CA1", nil) // the same name, another key
	ca1c := newTestCA(t, "CA1", func(c *x509.Certificate) { c.SubjectKeyId = []byte("another id") })
	ca2 := newTestCA(t, "CA2", nil)
	p256 := mustECKey(t, elliptic.P256())
	rsa1024, err := weakRSA()
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	add := func(e ...pkix.Extension) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, e...) }
	}
	only := func(e ...pkix.Extension) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtraExtensions = e }
	}
	type aki struct {
		KeyID  []byte   `asn1:"optional,omitempty,tag:0"`
		Serial *big.Int `asn1:"optional,tag:2"`
	}
	const (
		both    = 'E' // an error in both profiles
		profile = 'P' // an error in webpki, a warning in private
		never   = 'W' // a warning in both
		public  = 'X' // an error in webpki, nothing in private
		warnPub = 'Y' // a warning in webpki, nothing in private
	)
	for _, c := range []struct {
		name    string
		change  func(*x509.Certificate)
		by      *testCA
		key     crypto.PublicKey
		finding string // "" for none
		level   rune
	}{
		{name: "S1"},
		{name: "S1 empty basicConstraints", change: func(c *x509.Certificate) { add(pkix.Extension{Id: oidBasicConstraints, Value: []byte{0x30, 0}})(c) }},
		{name: "S1 P-384", key: mustECKey(t, elliptic.P384()).Public()},
		{name: "OCSP-DEL-01 S1-noEKU", change: func(c *x509.Certificate) { c.ExtKeyUsage = nil }, finding: "signer-without-ocspsigning", level: both},
		{name: "OCSP-DEL-01 S1-anyEKU", change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, finding: "signer-without-ocspsigning", level: both},
		{name: "OCSP-DEL-01 serverAuth", change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, finding: "signer-without-ocspsigning", level: both},
		{name: "OCSP-DEL-01 serverAuth too", change: func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) }, finding: "signer-with-other-purpose", level: profile},
		{name: "OCSP-DEL-02 another CA of the same name", by: &ca1b, finding: "signer-of-other-key", level: both},
		{name: "OCSP-DEL-02 another CA", by: &ca2, finding: "signer-of-other-issuer", level: both},
		{name: "OCSP-DEL-07 AKI of another key", by: &ca1c, finding: "signer-of-other-keyid", level: both},
		{name: "OCSP-DEL-07 AKI with another serial", change: add(pkix.Extension{Id: oidAuthorityKeyID, Value: marshal(t, aki{Serial: big.NewInt(8)})}), finding: "signer-of-other-ca-serial", level: both},
		{name: "OCSP-DEL-07 AKI with the serial", change: add(pkix.Extension{Id: oidAuthorityKeyID, Value: marshal(t, aki{Serial: big.NewInt(7)})})},
		{name: "OCSP-DEL-07 AKI garbage", change: add(pkix.Extension{Id: oidAuthorityKeyID, Value: []byte{0x30, 3, 0x82, 1, 9, 0}}), finding: "", level: 'G'},
		{name: "OCSP-DEL-07 not yet valid", change: func(c *x509.Certificate) { c.NotBefore = delegateNow.Add(time.Second) }, finding: "signer-not-yet-valid", level: both},
		{name: "OCSP-DEL-07 expired", change: func(c *x509.Certificate) { c.NotAfter = delegateNow.Add(-time.Second) }, finding: "signer-expired", level: both},
		{name: "OCSP-DEL-03 no nocheck", change: only(), finding: "signer-without-nocheck", level: profile},
		{name: "OCSP-DEL-03 critical", change: only(pkix.Extension{Id: oidNoCheck, Critical: true, Value: asn1.NullBytes}), finding: "signer-nocheck-critical", level: profile},
		{name: "OCSP-DEL-03 empty value", change: only(pkix.Extension{Id: oidNoCheck}), finding: "signer-nocheck-value", level: profile},
		{name: "OCSP-DEL-03 other value", change: only(pkix.Extension{Id: oidNoCheck, Value: []byte{1, 1, 0xff}}), finding: "signer-nocheck-value", level: profile},
		{name: "OCSP-DEL-13 noRevAvail instead", change: only(pkix.Extension{Id: oidNoRevAvail, Value: asn1.NullBytes}), finding: "signer-without-nocheck", level: profile},
		{name: "OCSP-DEL-04 nonRepudiation too", change: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageContentCommitment }, finding: "signer-keyusage-too-wide", level: profile},
		{name: "OCSP-DEL-04 no digitalSignature", change: func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageContentCommitment }, finding: "signer-without-digitalsignature", level: both},
		{name: "OCSP-DEL-04 no keyUsage", change: func(c *x509.Certificate) { c.KeyUsage = 0 }, finding: "signer-without-keyusage", level: profile},
		{name: "OCSP-DEL-04 not critical", change: func(c *x509.Certificate) {
			c.KeyUsage = 0
			add(pkix.Extension{Id: oidKeyUsage, Value: []byte{3, 2, 7, 0x80}})(c)
		}, finding: "signer-keyusage-not-critical", level: profile},
		{name: "OCSP-DEL-05 CRL points", change: func(c *x509.Certificate) { c.CRLDistributionPoints = []string{"http://example.org/x.crl"} }, finding: "signer-with-crldistributionpoints", level: profile},
		{name: "OCSP-DEL-05 SAN", change: func(c *x509.Certificate) { c.DNSNames = []string{"ocsp.example.org"} }, finding: "signer-with-subjectaltname", level: profile},
		{name: "OCSP-DEL-05 nameConstraints", change: func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.org"} }, finding: "signer-with-nameconstraints", level: profile},
		{name: "OCSP-DEL-05 OCSP loop", change: func(c *x509.Certificate) { c.OCSPServer = []string{"http://ocsp.example.org"} }, finding: "signer-with-ocsp-url", level: profile},
		{name: "OCSP-DEL-05 CA", change: func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, finding: "signer-is-ca", level: both},
		{name: "OCSP-DEL-05 explicit FALSE", change: func(c *x509.Certificate) {
			add(pkix.Extension{Id: oidBasicConstraints, Value: []byte{0x30, 3, 1, 1, 0}})(c)
		}, level: 'G'},
		{name: "OCSP-DEL-06 policies", change: func(c *x509.Certificate) { p, _ := x509.OIDFromInts([]uint64{1, 2, 3}); c.Policies = []x509.OID{p} }, finding: "signer-with-policies", level: never},
		{name: "OCSP-DEL-07 unknown critical extension", change: add(pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: asn1.NullBytes}), finding: "signer-unknown-critical-extension", level: both},
		{name: "OCSP-DEL-11 a year", change: func(c *x509.Certificate) { c.NotAfter = delegateNow.AddDate(1, 0, 0) }, finding: "signer-long-lived", level: warnPub},
		{name: "OCSP-DEL-11 two years", change: func(c *x509.Certificate) { c.NotAfter = delegateNow.AddDate(2, 0, 0) }, finding: "signer-long-lived", level: never},
		{name: "OCSP-KEY-22 RSA 1024", key: rsa1024, finding: "signer-key-weak", level: both},
		{name: "OCSP-KEY-22 P-224", key: mustECKey(t, elliptic.P224()).Public(), finding: "signer-key-curve", level: both},
		{name: "OCSP-KEY-22 Ed25519", key: edKey.Public(), finding: "signer-key-ed25519", level: public},
	} {
		t.Run(c.name, func(t *testing.T) {
			template := signerTemplate()
			if c.change != nil {
				c.change(template)
			}
			by := &ca
			if c.by != nil {
				by = c.by
			}
			var key crypto.PublicKey = p256.Public()
			if c.key != nil {
				key = c.key
			}
			der, err := x509.CreateCertificate(rand.Reader, template, by.Certificate, key, by.key)
			if err != nil {
				t.Fatal(err)
			}
			signer, err := x509.ParseCertificate(der)
			if c.level == 'G' {
				// crypto/x509 refuses it before we do, or it is found.
				if err == nil && len(CheckDelegate(signer, ca.Issuer, delegateNow, true)) == 0 {
					t.Error("passes")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, webpki := range []bool{false, true} {
				got := CheckDelegate(signer, ca.Issuer, delegateNow, webpki)
				if c.finding == "" || !webpki && (c.level == public || c.level == warnPub) {
					if len(got) != 0 {
						t.Errorf("webpki %v: %v", webpki, got)
					}
					continue
				}
				i := slices.IndexFunc(got, func(f Finding) bool { return f.Name == c.finding })
				if i < 0 {
					t.Errorf("webpki %v: %v, want %s", webpki, got, c.finding)
					continue
				}
				want := c.level == both || webpki && (c.level == profile || c.level == public)
				rule, _, _ := strings.Cut(c.name, " ")
				if got[i].Error != want || !strings.HasPrefix(got[i].Rule, "OCSP-") || got[i].Text == "" {
					t.Errorf("webpki %v: %+v, want error %v", webpki, got[i], want)
				}
				if !strings.Contains(got[i].Rule+got[i].Text, rule) {
					t.Errorf("webpki %v: %v does not name %s", webpki, got[i], rule)
				}
			}
		})
	}
}

// weakRSA: crypto/rsa makes none, but a certificate may hold one.
func weakRSA() (crypto.PublicKey, error) {
	p, err := rand.Prime(rand.Reader, 512)
	if err != nil {
		return nil, err
	}
	q, err := rand.Prime(rand.Reader, 512)
	if err != nil {
		return nil, err
	}
	return &rsa.PublicKey{N: p.Mul(p, q), E: 65537}, nil
}

// A certificate made by openssl, as its manual says, is clean in the public profile; the same signed with SHA-1 is not.
func TestCheckDelegateOpenSSL(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	run := func(args ...string) {
		t.Helper()
		c := exec.Command("openssl", args...)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, out)
		}
	}
	read := func(name string) *x509.Certificate {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		c, err := ParseCertificate(b)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	extensions := file("ext", "keyUsage=critical,digitalSignature\nextendedKeyUsage=OCSPSigning\nnoCheck=ignored\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
	withSerial := file("ext2", "keyUsage=critical,digitalSignature\nextendedKeyUsage=OCSPSigning\nnoCheck=ignored\nauthorityKeyIdentifier=keyid,issuer:always\n")
	run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=CA", "-keyout", "ca.key", "-out", "ca.pem", "-days", "30",
		"-addext", "keyUsage=critical,keyCertSign,cRLSign")
	run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=S", "-keyout", "s.key", "-out", "s.csr")
	run("x509", "-req", "-in", "s.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "20", "-extfile", extensions, "-out", "good.pem")
	run("x509", "-req", "-in", "s.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "20", "-extfile", withSerial, "-out", "serial.pem")
	run("x509", "-req", "-in", "s.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "20", "-extfile", extensions, "-sha1", "-out", "sha1.pem")
	issuer, err := NewIssuer("ca", read("ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"good.pem", "serial.pem"} {
		if got := CheckDelegate(read(name), issuer, time.Now(), true); len(got) != 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
	// OCSP-RSP-07
	if got := CheckDelegate(read("sha1.pem"), issuer, time.Now(), false); len(got) != 1 || got[0].Name != "signer-signed-with-weak-hash" || !got[0].Error {
		t.Errorf("SHA-1: %v", got)
	}
}

// OCSP-DEL-12
func TestDEL12CheckDirect(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*x509.Certificate)
		want   string
	}{
		{"digitalSignature", nil, ""},
		{"without", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign }, "ca-without-digitalsignature"},
		{"no keyUsage", func(c *x509.Certificate) { c.KeyUsage = 0 }, "ca-without-keyusage"},
		{"expired", func(c *x509.Certificate) { c.NotAfter = delegateNow.Add(-time.Second) }, "ca-expired"},
	} {
		got := CheckDirect(newTestCA(t, "CA", c.change).Issuer, delegateNow)
		if c.want == "" && len(got) == 0 {
			continue
		}
		if len(got) != 1 || got[0].Name != c.want || !got[0].Error {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
	}
}

// A key of a kind that x509 reads and nobody signs with.
func TestKEY22UnknownKind(t *testing.T) {
	l := &lint{}
	l.strength("signer", &x509.Certificate{PublicKey: "none", PublicKeyAlgorithm: x509.DSA})
	if len(l.list) != 1 || !l.list[0].Error {
		t.Errorf("%v", l.list)
	}
}
