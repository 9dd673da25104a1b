package responder

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"ocspd/pki"
)

func writeFile(t testing.TB, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// openssl runs it and gives what it says; ok is whether it exited with 0.
func openssl(t testing.TB, args ...string) (said string, ok bool) {
	t.Helper()
	out, err := exec.Command("openssl", args...).CombinedOutput()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatal(err)
	}
	return string(out), err == nil
}

// leaf is a certificate of c with a serial of section 0.2 that fits.
func (c *ca) leaf(name string) *x509.Certificate {
	template := &x509.Certificate{SerialNumber: serial(name).Big(), NotBefore: start.AddDate(0, -1, 0), NotAfter: start.AddDate(1, 0, 0)}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, c.issuer.Certificate, c.key.Public(), c.key))))
}

// OCSP-INT-01, OCSP-CID-02: openssl asks, and verifies what it gets. The kit's clock stands at start, and so does openssl's.
func TestINT01OpenSSL(t *testing.T) {
	k := newKit(t, private)
	url := k.server().URL
	dir := t.TempDir()
	file := func(name string, c *x509.Certificate) string {
		return writeFile(t, filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	issuer, twin := file("ca.pem", ca1.issuer.Certificate), file("twin.pem", ca1b.issuer.Certificate)
	g, r, m := file("g.pem", ca1.leaf("G")), file("r.pem", ca1.leaf("R")), file("m.pem", ca1.leaf("M"))
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"one", []string{"-issuer", issuer, "-cert", g}, []string{g + ": good"}},
		{"no nonce", []string{"-issuer", issuer, "-no_nonce", "-cert", r}, []string{r + ": revoked", "Reason: keyCompromise", "Revocation Time: Oct 20 08:30:00 2026 GMT"}},
		{"SHA-256", []string{"-issuer", issuer, "-sha256", "-cert", m}, []string{m + ": good"}},
		{"two, each in its way", []string{"-issuer", issuer, "-sha256", "-cert", g, "-sha512", "-cert", r}, []string{g + ": good", r + ": revoked"}},
		{"serials", []string{"-issuer", issuer, "-serial", "0x1001", "-serial", "0x6666"}, []string{"0x1001: good", "0x6666: unknown"}},
		{"another CA of the name", []string{"-issuer", twin, "-serial", "0x1001"}, []string{"0x1001: good"}},
		{"signed by the client", []string{"-issuer", issuer, "-cert", g, "-signer", g, "-signkey", key(t, dir)}, []string{g + ": good"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ca := issuer
			if c.args[1] == twin {
				ca = twin
			}
			said, ok := openssl(t, append([]string{"ocsp", "-url", url, "-CAfile", ca, "-attime", startSeconds, "-validity_period", "999999999"}, c.args...)...)
			if !ok || !strings.Contains(said, "Response verify OK") || strings.Contains(said, "WARNING: no nonce") {
				t.Errorf("%v: %s", ok, said)
			}
			for _, want := range c.want {
				if !strings.Contains(said, want) {
					t.Errorf("no %q in: %s", want, said)
				}
			}
		})
	}
	// Every element, as openssl's own reader sees it, within BasicOCSPResponse as well.
	der := writeFile(t, filepath.Join(dir, "resp.der"), k.respond(reqNonce("R", octets(32))))
	said, ok := openssl(t, "ocsp", "-respin", der, "-resp_text", "-noverify")
	for _, want := range []string{"Version: 1 (0x0)", "Cert Status: revoked", "Revocation Reason: keyCompromise (0x1)", "Produced At: Nov  2 12:00:00 2026 GMT", "OCSP Nonce: \n", "0420A5A5A5"} {
		if !ok || !strings.Contains(said, want) {
			t.Errorf("no %q in: %s", want, said)
		}
	}
}

// startSeconds is start as openssl takes it.
var startSeconds = strconv.FormatInt(start.Unix(), 10)

// key is ca1's own, which its leaves use, too.
func key(t testing.TB, dir string) string {
	der := must(x509.MarshalPKCS8PrivateKey(ca1.key))
	return writeFile(t, filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// OCSP-INT-02: an answer that was touched anywhere verifies for no client; as it was, it does.
func TestINT02Mutations(t *testing.T) {
	k := newKit(t, private)
	sound := k.ok(req("G"))
	dir := t.TempDir()
	pemFile := func(name string, c *x509.Certificate) string {
		return writeFile(t, filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	issuer, twin := pemFile("ca.pem", ca1.issuer.Certificate), pemFile("twin.pem", ca1b.issuer.Certificate)
	verify := func(der []byte, ca string) bool {
		respin := writeFile(t, filepath.Join(dir, "resp.der"), der)
		said, ok := openssl(t, "ocsp", "-respin", respin, "-CAfile", ca, "-no_nonce", "-issuer", ca, "-sha256", "-serial", "0x1001",
			"-attime", startSeconds, "-validity_period", "999999999")
		return ok && strings.Contains(said, "Response verify OK") && strings.Contains(said, "0x1001: good")
	}
	if !verify(sound.der, issuer) {
		t.Fatal("openssl does not verify the answer as it is")
	}
	if verify(sound.der, twin) {
		t.Error("verifies for the CA of the same name")
	}
	at := func(part []byte, offset int) []byte {
		der := bytes.Clone(sound.der)
		i := bytes.Index(der, part)
		if i < 0 || len(part) == 0 {
			t.Fatalf("%x is not in it", part)
		}
		der[i+offset] ^= 0x01
		return der
	}
	ids := sound.singles[0].certID
	for name, der := range map[string][]byte{
		"signature": at(sound.signature, len(sound.signature)-1), "responder ID": at(sound.keyHash, 3), "name hash": at(ids, 20), "key hash": at(ids, 60),
		"status": at(append(sound.singles[0].status, 0x18), 0), "producedAt": at([]byte(sound.producedAt), 3), "nextUpdate": at([]byte(sound.singles[0].nextUpdate), 13),
		"key in the certificate":  at(ca1.signer.RawSubjectPublicKeyInfo, len(ca1.signer.RawSubjectPublicKeyInfo)-1),
		"certificate's signature": at(ca1.signer.Signature, len(ca1.signer.Signature)-1), "algorithm": at(append(sound.algorithm, 3), len(sound.algorithm)-1),
	} {
		if verify(der, issuer) {
			t.Errorf("%s: openssl verifies", name)
		}
		if r, err := ocsp.ParseResponseForCert(der, &x509.Certificate{SerialNumber: big.NewInt(0x1001)}, ca1.issuer.Certificate); err == nil {
			t.Errorf("%s: x/crypto/ocsp verifies %v", name, r.Status)
		}
	}
}

// OCSP-INT-06 for each CertID hash, in the fields that a client goes by.
func TestINT06Go(t *testing.T) {
	k := newKit(t, private)
	for h := range hashOIDs {
		for name, want := range map[string]int{"G": ocsp.Good, "R": ocsp.Revoked, "U": ocsp.Unknown} {
			der := k.respond(requests(certID(ca1, h, serials[name])))
			r, err := ocsp.ParseResponseForCert(der, &x509.Certificate{SerialNumber: serial(name).Big()}, ca1.issuer.Certificate)
			if err != nil || r.Status != want || r.IssuerHash != h || !r.ProducedAt.Equal(start) || !bytes.Equal(r.ResponderKeyHash, digest(crypto.SHA1, must(pki.PublicKeyBits(ca1.signer)))) ||
				name == "R" && (!r.RevokedAt.Equal(revokedAt) || r.RevocationReason != ocsp.KeyCompromise) {
				t.Errorf("%v %s: %v %+v", h, name, err, r)
			}
			if r.ThisUpdate.After(r.ProducedAt) || r.NextUpdate.Sub(start) > 7*day || r.NextUpdate.Before(start.Add(time.Hour)) { // OCSP-INT-03, OCSP-INT-04, OCSP-INT-07
				t.Errorf("%v %s: %s to %s", h, name, r.ThisUpdate, r.NextUpdate)
			}
		}
	}
	// And as Go's own client writes it.
	der := must(ocsp.CreateRequest(ca1.leaf("G"), ca1.issuer.Certificate, nil))
	if got := k.status(der); got != "good" {
		t.Error(got)
	}
}
