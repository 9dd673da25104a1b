package responder

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"strings"
	"testing"

	"golang.org/x/crypto/ocsp"

	"ocspd/pki"
)

// answerOf is a success for one fixture by an authority of its own.
func answerOf(t *testing.T, a *Authority, name string) []byte {
	t.Helper()
	if err := a.Prepare(); err != nil {
		t.Fatal(err)
	}
	a.SetView(view(1, nil))
	k := newKit(t, private)
	k.signer.Use([]*Authority{a})
	q := &Question{Issuer: a.Issuer.ID, Items: []Item{{Form(1), serial(name)}}}
	answer, err := k.ask(context.Background(), q)
	if err != nil || answer.Status != Successful {
		t.Fatalf("%v, %v", answer.Status, err)
	}
	return answer.DER
}

// OCSP-RID-05: byName is the subject of the signer's certificate, byte for byte, explicitly tagged (OCSP-RID-02).
func TestRID05ByName(t *testing.T) {
	der := answerOf(t, &Authority{Issuer: ca1.issuer, Signer: ca1.signer, Key: ca1.signerKey, Policy: private, ByName: true}, "R")
	r, err := ocsp.ParseResponse(der, ca1.issuer.Certificate)
	if err != nil || r.Status != ocsp.Revoked || !bytes.Equal(r.RawResponderName, ca1.signer.RawSubject) || r.ResponderKeyHash != nil {
		t.Errorf("%v, %+v", err, r)
	}
	if !bytes.Contains(der, tlv(0xa1, ca1.signer.RawSubject)) {
		t.Errorf("the name is not in [1]: %x", der)
	}
}

// OCSP-RID-04: by name, a signer that is called like its CA would never be looked at.
func TestRID04NameOfTheCA(t *testing.T) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "CA 1", Organization: []string{"Example"}},
		NotBefore: start, NotAfter: start.AddDate(1, 0, 0), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}}
	twin := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, ca1.issuer.Certificate, key.Public(), ca1.key))))
	if !bytes.Equal(twin.RawSubject, ca1.issuer.Certificate.RawSubject) {
		t.Fatal("the twin has another name")
	}
	err := (&Authority{Issuer: ca1.issuer, Signer: twin, Key: key, Policy: private, ByName: true}).Prepare()
	if err == nil || !strings.Contains(err.Error(), "OCSP-RID-04") {
		t.Error(err)
	}
	if err := (&Authority{Issuer: ca1.issuer, Signer: twin, Key: key, Policy: private}).Prepare(); err != nil {
		t.Errorf("by key there is no such trap: %v", err)
	}
}

// OCSP-EXT-04: CrlID names number and time of the CRL that says revoked, and its URL where it came from one; never in an answer for what was not issued
// (OCSP-EXT-06), nor where an index or a hand decides.
func TestEXT04CrlID(t *testing.T) {
	policy := private
	policy.Unissued = UnissuedRevoked
	a := &Authority{Issuer: ca1.issuer, Signer: ca1.signer, Key: ca1.signerKey, Policy: policy, CrlID: true}
	const crlID = "06092b0601050507300103"
	der := answerOf(t, a, "R")
	single := must(parseResponse(der)).singles[0]
	if len(single.extensions) != 1 || single.extensions[0].oid != crlID || single.extensions[0].critical {
		t.Fatalf("extensions %+v", single.extensions)
	}
	number := must(hex.DecodeString("01ff"))
	crl := pki.Source{Name: "http://crl.example.org/a.crl", Kind: pki.CRL, Number: "1ff", ThisUpdate: start.Add(-1), NextUpdate: start.AddDate(0, 0, 7)}
	a.SetView(&View{Number: 2, Complete: true, Sources: []pki.Source{crl}, Lookup: func(s pki.Serial) (pki.Record, bool) {
		return revoked(pki.KeyCompromise), s == serial("R")
	}})
	k := newKit(t, private)
	k.signer.Use([]*Authority{a})
	for name, want := range map[string][]byte{
		"R": seq(tlv(0xa0, tlv(0x16, []byte(crl.Name))), tlv(0xa1, tlv(2, number)), tlv(0xa2, tlv(0x18, []byte(start.Add(-1).Format("20060102150405Z"))))),
		"U": nil,
	} {
		answer := k.signer.Answer(&Question{Issuer: ca1.issuer.ID, Items: []Item{{Form(1), serial(name)}}})
		r := must(parseResponse(answer.DER))
		if has := bytes.Contains(answer.DER, must(hex.DecodeString(crlID))); has != (want != nil) || want != nil && !bytes.Contains(answer.DER, want) {
			t.Errorf("%s: %+v", name, r.singles[0].extensions)
		}
	}
}

// OCSP-RSP-05: PSS has the exact encoding that the root programs demand, and its signature verifies.
func TestRSP05PSS(t *testing.T) {
	key := must(rsa.GenerateKey(rand.Reader, 2048))
	signer := *ca1
	signer.delegate(key, start.AddDate(1, 0, 0))
	der := answerOf(t, &Authority{Issuer: ca1.issuer, Signer: signer.signer, Key: key, Policy: private, PSS: true}, "G")
	r := must(parseResponse(der))
	const want = "304106092a864886f70d01010a3034a00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d06096086480165030402010500a203020120"
	if got := hex.EncodeToString(r.algorithm); got != want {
		t.Errorf("algorithm %s", got)
	}
	h := crypto.SHA256.New()
	h.Write(r.tbs)
	if err := rsa.VerifyPSS(&key.PublicKey, crypto.SHA256, h.Sum(nil), r.signature, &rsa.PSSOptions{SaltLength: 32}); err != nil {
		t.Error(err)
	}
	if _, err := algorithmFor(ca1.signerKey.Public(), true); err == nil {
		t.Error("PSS with an ECDSA key")
	}
}
