package responder

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"ocspd/pki"
)

// OCSP-RSP-01, OCSP-RSP-02 and OCSP-RSP-04: the octets of each kind of answer.
func TestRSP04Status(t *testing.T) {
	k := newKit(t, private)
	for name, want := range map[string]string{"G": "8000", "U": "8200",
		// OCSP-REV-01, OCSP-REV-02: the revocation's own time, and no reason where it is unspecified.
		"RU": "a111180f32303236313032303038333030305a",
		"R":  "a116180f32303236313032303038333030305aa0030a0101",
		"H":  "a116180f32303236313032303038333030305aa0030a0106"} {
		if r := k.ok(req(name)); !bytes.Equal(r.singles[0].status, unhex(want)) {
			t.Errorf("%s: %x, want %s", name, r.singles[0].status, want)
		}
	}
}

// OCSP-RSP-05: the algorithm of each kind of key, to the octet (lint), and a signature that verifies by it. OCSP-RSP-06: the ECDSA
// signature is a SEQUENCE of two minimal, positive INTEGERs.
func TestRSP05Algorithms(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for want, key := range map[string]crypto.Signer{
		"300d06092a864886f70d01010b0500": must(rsa.GenerateKey(rand.Reader, 2048)),
		"300a06082a8648ce3d040302":       must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
		"300a06082a8648ce3d040303":       must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)),
		"300a06082a8648ce3d040304":       must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)),
		"300506032b6570":                 ed,
	} {
		k := newKit(t, private)
		k.roll(newCA("rsp05", "CA RSP05"), key)
		for range 20 {
			r := k.ok(requests(certID(k.only(), crypto.SHA1, serials["G"]), certID(k.only(), crypto.SHA1, serials["G"]))) // two: not kept
			if !bytes.Equal(r.algorithm, unhex(want)) {
				t.Fatalf("%T: %x, want %s", key, r.algorithm, want)
			}
			if _, ok := key.(*ecdsa.PrivateKey); ok {
				var rs struct{ R, S *big.Int }
				rest, err := asn1.Unmarshal(r.signature, &rs)
				if err != nil || len(rest) != 0 || rs.R.Sign() <= 0 || rs.S.Sign() <= 0 || checkDER(r.signature) != nil {
					t.Fatalf("signature %x", r.signature)
				}
			}
		}
	}
}

// roll lets the kit serve c alone, by a signer with key.
func (k *kit) roll(c *ca, key crypto.Signer) {
	k.Helper()
	c.delegate(key, start.AddDate(1, 0, 0))
	a := c.authority(private)
	a.SetView(view(1, nil))
	k.auth = map[*ca]*Authority{c: a}
	k.signer.Use([]*Authority{a})
	if err := k.front.Use([]FrontIssuer{{Issuer: c.issuer}}); err != nil {
		k.Fatal(err)
	}
}

func (k *kit) only() *ca {
	for c := range k.auth {
		return c
	}
	return nil
}

// OCSP-RSP-06: r and s that are short or begin with a set bit are met among thousands, and are minimal like the rest. (That each verifies: sign.)
func TestRSP06ManySignatures(t *testing.T) {
	k := newKit(t, private)
	q := &Question{Issuer: ca1.issuer.ID, Items: []Item{{Form(1), serial("G")}}}
	short, high := 0, 0
	for range 1500 {
		a := k.signer.Answer(q)
		var rs struct{ R, S *big.Int }
		signature := must(parseResponse(a.DER)).signature
		if _, err := asn1.Unmarshal(signature, &rs); err != nil || checkDER(signature) != nil {
			t.Fatalf("signature %x: %v", signature, err)
		}
		for _, n := range []*big.Int{rs.R, rs.S} {
			switch bits := n.BitLen(); {
			case bits == 256:
				high++
			case bits <= 248:
				short++
			}
		}
	}
	if short == 0 || high == 0 {
		t.Errorf("%d short and %d high ones among 3000", short, high)
	}
}

// OCSP-RSP-07: no key that is too weak or of a kind that we do not know, and no hash but those of TestRSP05Algorithms.
func TestRSP07WeakKeys(t *testing.T) {
	for name, c := range map[string]struct {
		key  crypto.PublicKey
		want string
	}{
		"RSA 1024": {&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 65537}, "at least 2048"},
		"P-224":    {&must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)).PublicKey, "another curve"},
		"unknown":  {"no key", "are known"},
	} {
		if _, err := algorithmFor(c.key, false); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// faultyKey is a token with a fault of some kind.
type faultyKey struct {
	crypto.Signer
	fault func(signature []byte) ([]byte, error)
}

func (f *faultyKey) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	s, err := f.Signer.Sign(r, digest, o)
	if err != nil {
		return nil, err
	}
	return f.fault(s)
}

// OCSP-RSP-08, OCSP-STA-03: a wrong signature leaves nobody's hands, whatever made it wrong, and a token that fails is TryLater; both heal by
// themselves. What was kept is given all the time.
func TestRSP08Faults(t *testing.T) {
	k := newKit(t, private)
	c := newCA("rsp08", "CA RSP08")
	key := &faultyKey{c.signerKey, func(s []byte) ([]byte, error) { return s, nil }}
	k.roll(c, key)
	failures := 0
	k.signer.failed = func(issuer string, err error) {
		if issuer == "rsp08" && err != nil {
			failures++
		}
	}
	request := func(name string) []byte { return requests(certID(c, crypto.SHA256, serials[name])) }
	kept := k.respond(request("G"))
	other := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	for name, f := range map[string]struct {
		fault func([]byte) ([]byte, error)
		want  ResponseStatus
	}{
		"a bit flips":         {func(s []byte) ([]byte, error) { s[len(s)-1] ^= 1; return s, nil }, InternalError},
		"empty":               {func([]byte) ([]byte, error) { return nil, nil }, InternalError},
		"another key":         {func([]byte) ([]byte, error) { return other.Sign(rand.Reader, make([]byte, 32), crypto.SHA256) }, InternalError},
		"the token went away": {func([]byte) ([]byte, error) { return nil, errors.New("CKR_DEVICE_REMOVED") }, TryLater},
	} {
		sound := key.fault
		key.fault = f.fault
		before := failures
		k.is(f.want, request("P"))
		k.is(f.want, requests(certID(c, crypto.SHA256, serials["P"]), certID(c, crypto.SHA256, serials["R"])))
		if failures != before+2 {
			t.Errorf("%s: %d failures were told", name, failures-before)
		}
		if !bytes.Equal(k.respond(request("G")), kept) {
			t.Errorf("%s: what was kept is gone", name)
		}
		key.fault = sound
		if got := k.status(requests(certID(c, crypto.SHA256, serials["P"]))); got != "good" {
			t.Errorf("%s: not healed: %s", name, got)
		}
		k.front.Apply(Change{Issuer: c.issuer.ID, From: 1, To: 1, Serials: []pki.Serial{serial("P")}})
	}
	// A key of another certificate is found out before it is used.
	a := &Authority{Issuer: c.issuer, Signer: c.signer, Key: other, Policy: private}
	if err := a.Prepare(); !errors.Is(err, ErrSignature) {
		t.Errorf("Prepare: %v", err)
	}
}

// OCSP-RSP-09, OCSP-DEL-09, OCSP-RID-01 without a delegated signer: the CA signs, no certificate is sent along. (With one: lint.)
func TestRSP09CASigned(t *testing.T) {
	c := newCA("rsp09", "CA RSP09")
	a := &Authority{Issuer: c.issuer, Key: c.key, Policy: private}
	if err := a.Prepare(); err != nil {
		t.Fatal(err)
	}
	a.SetView(view(1, nil))
	s := NewSigner(startClock, func(time.Time) error { return nil }, func(string, error) {})
	s.Use([]*Authority{a})
	answer := s.Answer(&Question{Issuer: c.issuer.ID, Items: []Item{{Form(1), serial("G")}}})
	r, err := parseResponse(answer.DER)
	if err != nil {
		t.Fatal(err)
	}
	if want := digest(crypto.SHA1, must(pki.PublicKeyBits(c.issuer.Certificate))); len(r.certs) != 0 || !bytes.Equal(r.keyHash, want) {
		t.Errorf("%d certificates, key hash %x, want none and %x", len(r.certs), r.keyHash, want)
	}
	if _, err := ocsp.ParseResponse(answer.DER, c.issuer.Certificate); err != nil {
		t.Errorf("x/crypto/ocsp: %v", err)
	}
}

// OCSP-EXT-03: nothing but what was asked for.
func TestEXT03NoExtensions(t *testing.T) {
	k := newKit(t, private)
	for _, name := range []string{"G", "R", "U"} {
		if r := k.ok(req(name)); len(r.extensions) != 0 || len(r.singles[0].extensions) != 0 {
			t.Errorf("%s: %+v %+v", name, r.extensions, r.singles[0].extensions)
		}
	}
}

// OCSP-RID-01, OCSP-RID-02, OCSP-RSP-02: `A2 16 04 14`, the SHA-1 of the signer's key, whatever the CertID hash and the SKI (all of the kit's are something else).
func TestRID01(t *testing.T) {
	k := newKit(t, private)
	for h := range hashOIDs {
		r := k.ok(requests(certID(ca1, h, serials["G"])))
		want := append(unhex("a2160414"), digest(crypto.SHA1, must(pki.PublicKeyBits(ca1.signer)))...)
		if !bytes.Contains(r.tbs[:40], want) {
			t.Errorf("%v: ResponseData begins %x, want %x in it", h, r.tbs[:40], want)
		}
	}
}

// OCSP-RID-03: while the signer is rolled, each answer has the ResponderID, the certificate and the signature of one and the same key (lint).
func TestRID03Roll(t *testing.T) {
	k := newKit(t, private)
	c := newCA("rid03", "CA RID03")
	old, next := c.authority(private), &ca{issuer: c.issuer, key: c.key}
	next.delegate(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), start.AddDate(1, 0, 0))
	rolled := next.authority(private)
	old.SetView(view(1, nil))
	rolled.SetView(view(1, nil))
	k.auth = map[*ca]*Authority{c: old, next: rolled}
	k.signer.Use([]*Authority{old})
	if err := k.front.Use([]FrontIssuer{{Issuer: c.issuer}}); err != nil {
		t.Fatal(err)
	}
	request := requests(certID(c, crypto.SHA256, serials["G"]), certID(c, crypto.SHA256, serials["R"]))
	seen := map[*ca]int{}
	for i := range 200 {
		k.signer.Use([]*Authority{[]*Authority{old, rolled}[i/100]})
		seen[k.authorOf(k.ok(request))]++
	}
	if seen[c] != 100 || seen[next] != 100 {
		t.Errorf("%d by the old and %d by the new signer", seen[c], seen[next])
	}
	// Apart from the roll, front gives what it kept until it is told to use its issuers anew.
	one := requests(certID(c, crypto.SHA256, serials["G"]))
	k.signer.Use([]*Authority{old})
	first := k.ok(one)
	k.signer.Use([]*Authority{rolled})
	if err := k.front.Use([]FrontIssuer{{Issuer: c.issuer}}); err != nil {
		t.Fatal(err)
	}
	if r := k.ok(one); k.authorOf(first) != c || k.authorOf(r) != next {
		t.Error("an answer by the old signer is still kept")
	}
}
