package ingest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"ocspd/pki"
)

// agrees compares what we read with what x509 reads.
func agrees(t *testing.T, got *pki.Snapshot, crl []byte, ca *x509.Certificate) {
	t.Helper()
	want, err := x509.ParseRevocationList(crl)
	if err != nil {
		t.Fatalf("x509 refuses what was accepted: %v", err)
	}
	if err := want.CheckSignatureFrom(ca); err != nil {
		t.Errorf("x509 does not verify what was accepted: %v", err)
	}
	if err := sameContent(got, want); err != nil {
		t.Error(err)
	}
}

// sameContent holds a Snapshot against x509's reading of the same octets.
func sameContent(got *pki.Snapshot, want *x509.RevocationList) error {
	number := ""
	if want.Number != nil {
		number = want.Number.Text(16)
	}
	if got.Number != number || !got.ThisUpdate.Equal(want.ThisUpdate) || !want.NextUpdate.IsZero() && !got.NextUpdate.Equal(want.NextUpdate) {
		return fmt.Errorf("number %q, times %v, %v; x509 reads %q, %v, %v", got.Number, got.ThisUpdate, got.NextUpdate, number, want.ThisUpdate, want.NextUpdate)
	}
	if got.Count != int64(len(want.RevokedCertificateEntries)) {
		return fmt.Errorf("%d entries; x509 reads %d", got.Count, len(want.RevokedCertificateEntries))
	}
	i := 0
	return got.Entries(func(e pki.Entry) error {
		w := want.RevokedCertificateEntries[i]
		i++
		reason := pki.Reason(w.ReasonCode)
		odd := slices.ContainsFunc(w.Extensions, func(x pkix.Extension) bool { // x509 reads a reason with something after it; here it is none
			return x.Id.String() == "2.5.29.21" && (len(x.Value) != 3 || x.Value[0] != 10 || x.Value[1] != 1)
		})
		if odd || w.ReasonCode > 10 || w.ReasonCode < 0 || !reason.Valid() && (reason != pki.RemoveFromCRL || got.BaseNumber == "") {
			reason = pki.Unspecified
		}
		if e.Serial.Big().Cmp(w.SerialNumber) != 0 || !e.Status.RevokedAt.Equal(w.RevocationTime) || e.Status.Reason != reason || e.Status.State != pki.Revoked {
			return fmt.Errorf("entry %d is %v %+v; x509 reads %x %v reason %d", i, e.Serial, e.Status, w.SerialNumber, w.RevocationTime, w.ReasonCode)
		}
		return nil
	})
}

func testKeys(t testing.TB) map[string]crypto.Signer {
	t.Helper()
	keys := map[string]crypto.Signer{"Ed25519": ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, 32))}
	var err error
	if keys["RSA"], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		if keys[c.Params().Name], err = ecdsa.GenerateKey(c, rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	return keys
}

// OCSP-CRL-01: every algorithm that x509 can sign with; the oracle agrees; the key of another CA refuses it.
func TestCRL01EveryAlgorithm(t *testing.T) {
	keys := testKeys(t)
	for _, c := range []struct {
		key string
		alg x509.SignatureAlgorithm
	}{
		{"RSA", x509.SHA256WithRSA}, {"RSA", x509.SHA384WithRSA}, {"RSA", x509.SHA512WithRSA},
		{"RSA", x509.SHA256WithRSAPSS}, {"RSA", x509.SHA384WithRSAPSS}, {"RSA", x509.SHA512WithRSAPSS},
		{"P-256", x509.ECDSAWithSHA256}, {"P-256", x509.ECDSAWithSHA384}, {"P-256", x509.ECDSAWithSHA512},
		{"P-384", x509.ECDSAWithSHA384}, {"P-521", x509.ECDSAWithSHA512}, {"Ed25519", x509.PureEd25519},
	} {
		t.Run(c.key+" "+c.alg.String(), func(t *testing.T) {
			ca := newTestCA(t, "CA1", keys[c.key], nil)
			crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
				SignatureAlgorithm: c.alg, Number: big.NewInt(77), ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour),
				RevokedCertificateEntries: []x509.RevocationListEntry{
					{SerialNumber: big.NewInt(1), RevocationTime: now.Add(-time.Minute)},
					{SerialNumber: new(big.Int).Lsh(big.NewInt(1), 150), RevocationTime: now.Add(-time.Hour), ReasonCode: 1},
					{SerialNumber: big.NewInt(0x80), RevocationTime: time.Date(2050, 1, 2, 3, 4, 5, 0, time.UTC), ReasonCode: 6},
				},
			}, ca.issuer.Certificate, ca.key)
			if err != nil {
				t.Fatal(err)
			}
			got := mustRead(t, ca, crl, judged)
			if len(got.Warnings) != 0 {
				t.Errorf("warnings %q; want none", got.Warnings)
			}
			agrees(t, got, crl, ca.issuer.Certificate)
			for name, key := range keys {
				if name == c.key {
					continue
				}
				mustRefuse(t, newTestCA(t, "CA1", key, nil), crl, judged, "does not verify with the key of issuer")
			}
			crl[bytes.Index(crl, []byte("CA1"))] ^= 1
			mustRefuse(t, ca, crl, judged, "does not verify with the key of issuer")
		})
	}
}

// A CA whose certificate holds its key for RSASSA-PSS alone, which x509 does not read, gets a clear end.
func TestKeyForPSSAlone(t *testing.T) {
	dir := opensslCA(t, "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048")
	openssl(t, dir, "ca", "-config", "ca.cnf", "-gencrl", "-out", "crl.pem")
	ca := issuerOf(t, "CA", readFile(t, dir, "ca.pem"), nil)
	mustRefuse(t, ca, readFile(t, dir, "crl.pem"), Options{Now: time.Now()}, "of a kind that is not supported")
}

// A CRL signed with Ed25519 is bounded, since it must be in memory.
func TestEd25519Bound(t *testing.T) {
	a := algorithms[6]
	if _, err := a.message(bytes.NewReader(nil), 0, maxEd25519+1); err == nil || !strings.Contains(err.Error(), "held in memory whole") {
		t.Errorf("error %v", err)
	}
}

const opensslConfig = `
[ca]
default_ca = ca1
[ca1]
database = index.txt
serial = serial
crlnumber = crlnumber
new_certs_dir = .
certificate = ca.pem
private_key = ca.key
default_md = sha256
default_crl_days = 7
default_days = 300
policy = any
crl_extensions = ext
[v1]
database = index.txt
certificate = ca.pem
private_key = ca.key
default_md = sha256
default_crl_days = 7
[idp]
database = index.txt
crlnumber = crlnumber
certificate = ca.pem
private_key = ca.key
default_md = sha256
default_crl_days = 7
crl_extensions = idp_ext
[any]
commonName = supplied
[ext]
authorityKeyIdentifier = keyid:always
[idp_ext]
authorityKeyIdentifier = keyid:always, issuer:always
issuingDistributionPoint = critical, @idp_section
[idp_section]
fullname = URI:http://crl.example.org/1.crl
onlyuser = TRUE
onlysomereasons = keyCompromise, CACompromise
[req]
distinguished_name = dn
[dn]
[ca_ext]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
`

// opensslCA makes a CA by openssl with certificates of every status, and returns its directory. genpkey says which key.
func opensslCA(t testing.TB, genpkey ...string) string {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, []byte(opensslConfig), dir, "ca.cnf")
	writeFile(t, nil, dir, "index.txt")
	writeFile(t, []byte("0A\n"), dir, "serial")
	writeFile(t, []byte("FE\n"), dir, "crlnumber")
	openssl(t, dir, append([]string{"genpkey", "-out", "ca.key"}, genpkey...)...)
	openssl(t, dir, "req", "-x509", "-config", "ca.cnf", "-extensions", "ca_ext", "-key", "ca.key", "-subj", "/O=Example/CN=openssl CA", "-days", "4000", "-out", "ca.pem")
	openssl(t, dir, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "leaf.key")
	return dir
}

func opensslIssue(t testing.TB, dir, name string, args ...string) {
	t.Helper()
	openssl(t, dir, "req", "-new", "-config", "ca.cnf", "-key", "leaf.key", "-subj", "/CN="+name, "-out", name+".csr")
	openssl(t, dir, append([]string{"ca", "-batch", "-notext", "-config", "ca.cnf", "-in", name + ".csr", "-out", name + ".pem"}, args...)...)
}

// CRLs as openssl makes them, with every kind of key and of revocation; the oracle agrees.
func TestOpenSSLCRLs(t *testing.T) {
	for name, c := range map[string]struct{ genpkey, gencrl []string }{
		"RSA":            {[]string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}, nil},
		"RSA-SHA512":     {[]string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}, []string{"-md", "sha512"}},
		"RSA-PSS":        {[]string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}, []string{"-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:-1"}},
		"RSA-PSS-salt20": {[]string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}, []string{"-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:20"}},
		"RSA-PSS-max":    {[]string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}, []string{"-sigopt", "rsa_padding_mode:pss"}},
		"P-256":          {[]string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"}, nil},
		"P-384":          {[]string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"}, []string{"-md", "sha384"}},
		"P-521":          {[]string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"}, []string{"-md", "sha512"}},
		"Ed25519":        {[]string{"-algorithm", "ED25519"}, []string{"-md", "null"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := opensslCA(t, c.genpkey...)
			config := opensslConfig
			if name == "Ed25519" {
				config = strings.ReplaceAll(config, "default_md = sha256", "default_md = default")
				c.gencrl = nil
			}
			writeFile(t, []byte(config), dir, "ca.cnf")
			writeFile(t, []byte(realIndex), dir, "index.txt")
			openssl(t, dir, append([]string{"ca", "-config", "ca.cnf", "-gencrl", "-out", "crl.pem"}, c.gencrl...)...)
			ca := issuerOf(t, "CA", readFile(t, dir, "ca.pem"), nil)
			text := readFile(t, dir, "crl.pem")
			o := Options{Now: time.Now(), Skew: time.Minute}
			got := mustRead(t, ca, text, o)
			block, _ := pem.Decode(text)
			want, err := x509.ParseRevocationList(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if err := sameContent(got, want); err != nil {
				t.Error(err)
			}
			// x509 verifies no salt of another length than the hash.
			if err := want.CheckSignatureFrom(ca.issuer.Certificate); err != nil && name != "RSA-PSS-max" && name != "RSA-PSS-salt20" {
				t.Error(err)
			}
			if got.Number != "fe" || got.Count != 9 {
				t.Errorf("number %s, %d entries; want fe, 9", got.Number, got.Count)
			}

			// The index that the CRL was made of says the same (OCSP-IDX-02, OCSP-CRL-24).
			statuses := map[pki.Serial]pki.Status{}
			index, err := ReadIndex(spool(t, readFile(t, dir, "index.txt")))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entriesOf(t, index) {
				if e.Status.State == pki.Revoked {
					statuses[e.Serial] = e.Status
				}
			}
			for _, e := range entriesOf(t, got) {
				if statuses[e.Serial] != e.Status {
					t.Errorf("serial %v: CRL says %+v, index %+v", e.Serial, e.Status, statuses[e.Serial])
				}
				delete(statuses, e.Serial)
			}
			if len(statuses) != 0 {
				t.Errorf("the index has revocations that the CRL lacks: %v", statuses)
			}
			if i, err := IssuerOf(spool(t, text), []*pki.Issuer{ed25519CA(t).issuer, ca.issuer}); err != nil || i != ca.issuer {
				t.Errorf("issuer %v, error %v", i, err)
			}
		})
	}
}

// Other forms that openssl writes: version 1, an issuing distribution point, a SHA-1 signature, DER with text.
func TestOpenSSLForms(t *testing.T) {
	dir := opensslCA(t, "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
	writeFile(t, []byte(realIndex), dir, "index.txt")
	ca := issuerOf(t, "CA", readFile(t, dir, "ca.pem"), nil)
	o := Options{Now: time.Now(), Skew: time.Minute}

	openssl(t, dir, "ca", "-config", "ca.cnf", "-name", "v1", "-gencrl", "-out", "v1.pem")
	// Reasons make openssl write version 2 even so, then without a number.
	v1 := mustRead(t, ca, readFile(t, dir, "v1.pem"), o)
	wantWarning(t, v1, "no number")

	openssl(t, dir, "ca", "-config", "ca.cnf", "-name", "idp", "-gencrl", "-out", "idp.pem")
	s, err := ParseScope(mustRead(t, ca, readFile(t, dir, "idp.pem"), o).Scope)
	if err != nil || !s.OnlyUserCerts || s.OnlySomeReasons != 1<<1|1<<2 || len(s.URLs) != 1 || s.URLs[0] != "http://crl.example.org/1.crl" {
		t.Errorf("scope %+v, error %v", s, err)
	}

	openssl(t, dir, "ca", "-config", "ca.cnf", "-gencrl", "-md", "sha1", "-out", "sha1.pem")
	mustRefuse(t, ca, readFile(t, dir, "sha1.pem"), o, "SHA-1 with RSA, which is never accepted")

	openssl(t, dir, "ca", "-config", "ca.cnf", "-gencrl", "-out", "crl.pem")
	openssl(t, dir, "crl", "-in", "crl.pem", "-outform", "DER", "-out", "crl.der")
	openssl(t, dir, "crl", "-in", "crl.pem", "-text", "-out", "text.pem")
	der := mustRead(t, ca, readFile(t, dir, "crl.der"), o)
	if text := mustRead(t, ca, readFile(t, dir, "text.pem"), o); text.Digest != der.Digest {
		t.Error("text and PEM gave another CRL than DER")
	}
	info, err := Inspect(spool(t, readFile(t, dir, "text.pem")))
	if err != nil || info.Issuer != "CN=openssl CA,O=Example" || info.Entries != 9 || len(info.Problems) != 0 {
		t.Errorf("%+v, error %v", info, err)
	}

	// The delta's base number and the like: openssl cannot write them into CRLs by this name, the builder's tests have them.
	writeFile(t, nil, dir, "index.txt")
	openssl(t, dir, "ca", "-config", "ca.cnf", "-name", "v1", "-gencrl", "-out", "empty.pem")
	wantWarning(t, mustRead(t, ca, readFile(t, dir, "empty.pem"), o), "version 1")
}
