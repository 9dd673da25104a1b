package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ocspd/pki"
)

// The world of the scripts, made once and copied for each: CAs, certificates to ask about, CRLs, an index, and a SoftHSM token whose keys
// and signer certificates the binary under test makes and installs itself.

// testCA is a CA; forger has class1's name and another key.
type testCA struct {
	name, subject string
	issuer        string // "" for a root
	rsa           bool
	key           crypto.Signer
	cert          *x509.Certificate
}

var revokedOn = time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)

// testLeaves are the certificates that scripts ask about, with their serials.
var testLeaves = []struct{ ca, name, serial string }{
	{"class1", "class1-good", "1a01"}, {"class1", "class1-revoked", "1a02"}, {"class1", "class1-live", "1a03"}, {"class1", "class1-other", "1a04"},
	{"class3", "class3-good", "3c01"}, {"class3", "class3-revoked", "80c3000102030405060708090a0b0c02"}, {"class3", "class3-live", "3c03"},
	{"forger", "forger-leaf", "1a03"},
}

// A world is the folder that scripts get a copy of.
type world struct {
	t   *testing.T
	dir string
	bin string // the binary under test
	cas map[string]*testCA
}

func newWorld(t *testing.T, dir, bin string) *world {
	w := &world{t: t, dir: dir, bin: bin, cas: map[string]*testCA{}}
	for _, d := range []string{"pki", "tokens"} {
		w.check(os.MkdirAll(w.path(d), 0o755))
	}
	for _, ca := range []*testCA{
		{name: "class1", subject: "class1", rsa: true}, {name: "class3", subject: "class3", issuer: "class1"},
		{name: "class5", subject: "class5"}, {name: "class7", subject: "class7"}, {name: "forger", subject: "class1"},
	} {
		w.makeCA(ca)
	}
	for n, l := range testLeaves {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		w.check(err)
		cert := w.sign(l.ca, &x509.Certificate{SerialNumber: bigHex(l.serial), Subject: name(l.name), NotBefore: revokedOn.AddDate(0, 0, -n-1),
			NotAfter: time.Now().AddDate(1, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature}, &key.PublicKey)
		w.writePEM("pki/"+l.name+".pem", "CERTIFICATE", cert)
	}
	w.makeIndex()
	for _, ca := range []string{"class1", "class3", "class5", "class7"} {
		c := crlOptions{ca: ca, number: 1000, this: -time.Hour, next: 7 * 24 * time.Hour}
		switch ca {
		case "class1":
			c.revoked = []string{"class1-revoked:keyCompromise"}
		case "class3":
			c.revoked = []string{"class3-revoked:superseded"}
		}
		w.writeCRL(w.path("pki/"+ca+".crl"), c)
	}
	w.makeToken()
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) write(name, text string, mode os.FileMode) {
	w.t.Helper()
	w.check(os.WriteFile(w.path(name), []byte(text), mode))
}

func (w *world) writePEM(name, kind string, der []byte) {
	w.t.Helper()
	w.write(name, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})), 0o644)
}

func name(cn string) pkix.Name { return pkix.Name{Organization: []string{"Example"}, CommonName: cn} }

func bigHex(s string) *big.Int {
	n, _ := new(big.Int).SetString(s, 16)
	return n
}

func (w *world) makeCA(ca *testCA) {
	var err error
	if ca.rsa {
		ca.key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		ca.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	w.check(err)
	w.cas[ca.name] = ca
	template := &x509.Certificate{SerialNumber: big.NewInt(int64(0xca00 + len(w.cas))), Subject: name(ca.subject), IsCA: true, BasicConstraintsValid: true,
		NotBefore: revokedOn.AddDate(-1, 0, 0), NotAfter: revokedOn.AddDate(20, 0, 0), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	issuer := ca.issuer
	if issuer == "" {
		issuer, ca.cert = ca.name, template
	}
	der := w.sign(issuer, template, ca.key.Public())
	ca.cert, err = x509.ParseCertificate(der)
	w.check(err)
	w.writePEM("pki/"+ca.name+".pem", "CERTIFICATE", der)
	if ca.name != "forger" { // what clients trust
		f, err := os.OpenFile(w.path("pki/bundle.pem"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		w.check(err)
		w.check(pem.Encode(f, &pem.Block{Type: "CERTIFICATE", Bytes: der}))
		w.check(f.Close())
	}
}

func (w *world) sign(ca string, template *x509.Certificate, public crypto.PublicKey) []byte {
	w.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, w.cas[ca].cert, public, w.cas[ca].key)
	w.check(err)
	return der
}

// makeIndex writes class1's list of what it issued, as openssl ca does. class1-live is not in it as revoked, nor is the serial 1aff at all.
func (w *world) makeIndex() {
	var rows strings.Builder
	for _, l := range testLeaves {
		if l.ca != "class1" {
			continue
		}
		const form = "060102150405Z"
		status, revoked := "V", ""
		if l.name == "class1-revoked" {
			status, revoked = "R", revokedOn.Format(form)+",keyCompromise"
		}
		fmt.Fprintf(&rows, "%s\t%s\t%s\t%s\tunknown\t/O=Example/CN=%s\n", status, time.Now().AddDate(1, 0, 0).UTC().Format(form), revoked, strings.ToUpper(l.serial), l.name)
	}
	fmt.Fprintf(&rows, "V\t%s\t\t%X\tunknown\t/O=Example/CN=class3\n", time.Now().AddDate(1, 0, 0).UTC().Format("060102150405Z"), w.cas["class3"].cert.SerialNumber)
	w.write("pki/class1.index.txt", rows.String(), 0o644)
}

// crlOptions say what a CRL is to be like; the times are relative to now.
type crlOptions struct {
	ca         string
	signer     string // another CA that signs in its place
	number     int64
	this, next time.Duration
	revoked    []string // LEAF:REASON
	critical   string   // OID of a critical extension that nobody knows
	pem        bool
	cut        int // octets left out at the end
}

func (w *world) writeCRL(path string, o crlOptions) {
	w.t.Helper()
	der, err := w.crl(o)
	w.check(err)
	w.check(os.WriteFile(path, der, 0o644))
}

func (w *world) crl(o crlOptions) ([]byte, error) {
	now := time.Now().UTC().Truncate(time.Second)
	list := &x509.RevocationList{Number: big.NewInt(o.number), ThisUpdate: now.Add(o.this), NextUpdate: now.Add(o.next)}
	for _, r := range o.revoked {
		leaf, reason, _ := strings.Cut(r, ":")
		code, err := pki.ParseReason(reason)
		if err != nil {
			return nil, err
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: w.serial(leaf), RevocationTime: revokedOn, ReasonCode: int(code)})
	}
	if o.critical != "" {
		var oid asn1.ObjectIdentifier
		for _, n := range strings.Split(o.critical, ".") {
			arc := 0
			if _, err := fmt.Sscan(n, &arc); err != nil {
				return nil, err
			}
			oid = append(oid, arc)
		}
		list.ExtraExtensions = []pkix.Extension{{Id: oid, Critical: true, Value: asn1.NullBytes}}
	}
	signer := w.cas[o.ca]
	if o.signer != "" {
		signer = w.cas[o.signer]
	}
	if signer == nil {
		return nil, fmt.Errorf("crl: no CA %q or %q", o.ca, o.signer)
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, signer.cert, signer.key)
	if err != nil {
		return nil, err
	}
	if o.pem {
		der = pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	}
	return der[:len(der)-o.cut], nil
}

// serial takes the name of a certificate, or hex.
func (w *world) serial(leaf string) *big.Int {
	for _, l := range testLeaves {
		if l.name == leaf {
			return bigHex(l.serial)
		}
	}
	return bigHex(leaf)
}

// makeToken makes the keys and signer certificates the way an admin does.
func (w *world) makeToken() {
	w.write("pin", testPIN+"\n", 0o600)
	w.settle(w.dir)
	w.run("", "env", "SOFTHSM2_CONF="+w.path("softhsm2.conf"), "softhsm2-util", "--init-token", "--free", "--label", "ocsp", "--pin", testPIN, "--so-pin", "so-"+testPIN)
	w.write("ocspd.toml", configHead(w.dir), 0o644)
	w.check(os.MkdirAll(w.path("issuers.d"), 0o755))
	for _, i := range []struct{ ca, key, kind, rest string }{
		{"class1", "class1-ocsp", "rsa2048", "unissued = \"unknown\"\n[[issuer.class1.source]]\ncrl = \"../pki/class1.crl\"\nrefresh = \"10s\"\n" +
			"[[issuer.class1.source]]\nindex = \"../pki/class1.index.txt\"\nrefresh = \"10s\"\n"},
		{"class3", "class3-ocsp", "p256", "unissued = \"good\"\n[[issuer.class3.source]]\ncrl = \"../pki/class3.crl\"\nrefresh = \"10s\"\n"},
		{"class5", "class3-ocsp", "", "unissued = \"revoked\"\n[[issuer.class5.source]]\ncrl = \"../pki/class5.crl\"\n"},
		{"class7", "class3-ocsp", "", "unissued = \"unauthorized\"\n[[issuer.class7.source]]\ncrl = \"../pki/class7.crl\"\n"},
	} {
		w.write("issuers.d/"+i.ca+".toml", issuerHead(i.ca, i.key)+i.rest, 0o644)
		if i.kind != "" {
			w.run("", w.bin, "-c", w.path("ocspd.toml"), "key", "generate", i.key, "--type", i.kind)
		}
		w.writePEM("pki/new.pem", "CERTIFICATE", w.delegate(i.ca, w.run("", w.bin, "-c", w.path("ocspd.toml"), "key", "csr", i.key)))
		w.run("", w.bin, "-c", w.path("ocspd.toml"), "key", "install", w.path("pki/new.pem"), "--issuer", i.ca)
	}
	// One from the wrong CA for the right key.
	w.writePEM("pki/forged-ocsp.pem", "CERTIFICATE", w.delegate("forger", w.run("", w.bin, "-c", w.path("ocspd.toml"), "key", "csr", "class1-ocsp")))
}

// delegate has a CA certify a request for a signer.
func (w *world) delegate(ca, request string) []byte {
	w.t.Helper()
	block, _ := pem.Decode([]byte(request))
	if block == nil {
		w.t.Fatalf("no request: %s", request)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	w.check(err)
	w.check(csr.CheckSignature())
	id := make([]byte, 16)
	rand.Read(id)
	id[0] &= 0x7f
	return w.sign(ca, &x509.Certificate{SerialNumber: new(big.Int).SetBytes(id), Subject: name(ca + " OCSP signer"), NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().AddDate(0, 2, 0), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: asn1.NullBytes}}}, csr.PublicKey)
}

func (w *world) run(stdin, program string, argv ...string) string {
	w.t.Helper()
	c := exec.Command(program, argv...)
	var stdout, stderr bytes.Buffer
	c.Dir, c.Stdin, c.Stdout, c.Stderr = w.dir, strings.NewReader(stdin), &stdout, &stderr
	if err := c.Run(); err != nil {
		w.t.Fatalf("%s %v: %v\n%s%s", program, argv, err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// settle writes what depends on where a copy lies.
func (w *world) settle(dir string) {
	w.t.Helper()
	text := fmt.Sprintf("directories.tokendir = %s/tokens\nobjectstore.backend = file\nlog.level = ERROR\n", dir)
	w.check(os.WriteFile(filepath.Join(dir, "softhsm2.conf"), []byte(text), 0o644))
}

const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

// configHead is the part of the configuration that all scripts share; the issuers lie in issuers.d. The kernel chooses the ports.
func configHead(dir string) string {
	ipv6 := ""
	if haveIPv6() {
		ipv6 = `, "[::1]:0"`
	}
	return fmt.Sprintf(`state = "state"
run   = "run"

[listen]
ocsp  = ["127.0.0.1:0"%s]
http  = ["127.0.0.1:0"]
admin = "127.0.0.1:0"

[token.main]
uri = "pkcs11:token=ocsp?module-path=%s"
pin = "file:pin"
environment = ["SOFTHSM2_CONF=%s/softhsm2.conf"]
`, ipv6, softHSM, dir)
}

func issuerHead(ca, key string) string {
	return fmt.Sprintf("[issuer.%s]\ncertificate = \"../pki/%s.pem\"\nsigner = \"../pki/%s-ocsp.pem\"\nkey = \"pkcs11:object=%s\"\n", ca, ca, ca, key)
}

func haveIPv6() bool {
	b, err := os.ReadFile("/proc/net/if_inet6")
	return err == nil && bytes.Contains(b, []byte(" lo\n"))
}
