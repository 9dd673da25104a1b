package responder

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"testing"

	"ocspd/pki"
)

// what a request is answered with: "ok", or the error.
type requestCase struct {
	name    string
	request []byte
	want    string
}

func (k *kit) run(cases []requestCase) {
	k.Helper()
	for _, c := range cases {
		got := k.status(c.request)
		if got == "good" {
			got = "ok"
		}
		if got != c.want {
			k.Errorf("%s: got %s, want %s\n%x", c.name, got, c.want, c.request)
		}
	}
}

var g256 = certID(ca1, crypto.SHA256, serials["G"])

// Syntax: OCSP-REQ-11 to -17, OCSP-RSG-01, OCSP-PSA-02, OCSP-STA-01.
func TestRequestSyntax(t *testing.T) {
	list := requestList(g256)
	whole := req("G")
	name := seq(tlv(0x31, seq(unhex("0603550403"), tlv(0x0c, []byte("someone")))))
	algorithm := seq(unhex("06082a8648ce3d040302"))
	signature := func(parts ...[]byte) []byte { return tlv(0xa0, seq(parts...)) }
	bits := tlv(3, []byte{0}, bytes.Repeat([]byte{0x5a}, 70))
	signed := func(parts ...[]byte) []byte { return seq(seq(tlv(0xa1, tlv(0xa4, name)), list), signature(parts...)) }
	manyPreferred := bytes.Repeat(seq(algorithm), 10_000)
	single := func(extensions ...[]byte) []byte { return requestOf(seq(seq(g256, tlv(0xa0, seq(extensions...))))) }
	newKit(t, private).run([]requestCase{
		{"OCSP-REQ-01 plain", whole, "ok"},
		{"OCSP-REQ-05 empty", nil, "malformedRequest"},
		{"OCSP-REQ-05 cut", whole[:len(whole)-1], "malformedRequest"},
		{"OCSP-REQ-05 zeros", make([]byte, 2048), "malformedRequest"},
		{"OCSP-REQ-10 a length that never comes", append([]byte{0x30, 0x83, 0x03, 0x0d, 0x3b}, make([]byte, 1000)...), "malformedRequest"},
		{"OCSP-REQ-11 a zero after it", append(bytes.Clone(whole), 0), "malformedRequest"},
		{"OCSP-REQ-11 a third element of OCSPRequest", seq(seq(list), signature(algorithm, bits), []byte{2, 1, 0}), "malformedRequest"},
		{"OCSP-REQ-11 a second element of OCSPRequest", seq(seq(list), []byte{2, 1, 0}), "malformedRequest"},
		{"OCSP-REQ-11 an unknown [5] in TBSRequest", requestOf(list, tlv(0xa5, null)), "malformedRequest"},
		{"OCSP-REQ-11 an element after the CertID's serial", requests(seq(seq(hashOIDs[crypto.SHA1]), tlv(4, make([]byte, 20)), tlv(4, make([]byte, 20)), []byte{2, 1, 1}, null)), "malformedRequest"},
		{"OCSP-REQ-11 an element after a Request's extensions", requestOf(seq(seq(g256, null))), "malformedRequest"},
		{"OCSP-REQ-11 indefinite length", append(append([]byte{0x30, 0x80}, whole[2:]...), 0, 0), "malformedRequest"},
		{"OCSP-REQ-11 length not minimal", append([]byte{0x30, 0x81}, whole[1:]...), "malformedRequest"},
		{"OCSP-REQ-11 object identifier not minimal", reqExt("G", extension("06032a8004", false, null)), "malformedRequest"},
		{"OCSP-REQ-11 object identifier cut", reqExt("G", extension("06032a0384", false, null)), "malformedRequest"},
		{"OCSP-REQ-12 explicit v1", requestOf(tlv(0xa0, []byte{2, 1, 0}), list), "ok"},
		{"OCSP-REQ-12 v2", requestOf(tlv(0xa0, []byte{2, 1, 1}), list), "malformedRequest"},
		{"OCSP-REQ-12 a version of two octets", requestOf(tlv(0xa0, []byte{2, 2, 0, 0}), list), "malformedRequest"},
		{"OCSP-REQ-13 empty list", seq(seq(seq())), "malformedRequest"},
		{"OCSP-REQ-14 directoryName", requestOf(tlv(0xa1, tlv(0xa4, name)), list), "ok"},
		{"OCSP-REQ-14 rfc822Name", requestOf(tlv(0xa1, tlv(0x81, []byte("a@example.org"))), list), "ok"},
		{"OCSP-REQ-14 dNSName", requestOf(tlv(0xa1, tlv(0x82, []byte("example.org"))), list), "ok"},
		{"OCSP-REQ-14 no GeneralName", requestOf(tlv(0xa1, null), list), "malformedRequest"},
		{"OCSP-REQ-14 two names", requestOf(tlv(0xa1, tlv(0x82, nil), tlv(0x82, nil)), list), "malformedRequest"},
		{"OCSP-REQ-15 unknown extension", reqExt("G", extension(unknownOID, false, null)), "ok"},
		{"OCSP-REQ-15 unknown critical extension", reqExt("G", extension(unknownOID, true, null)), "malformedRequest"},
		{"OCSP-REQ-15 unknown extension of a Request", single(extension(unknownOID, false, null)), "ok"},
		{"OCSP-REQ-15 unknown critical extension of a Request", single(extension(unknownOID, true, null)), "malformedRequest"},
		{"OCSP-REQ-15 explicit critical FALSE", reqExt("G", seq(unhex(unknownOID), []byte{1, 1, 0}, tlv(4, null))), "ok"},
		{"OCSP-REQ-15 critical neither", reqExt("G", seq(unhex(unknownOID), []byte{1, 1, 1}, tlv(4, null))), "malformedRequest"},
		{"OCSP-REQ-15 no extension in Extensions", reqExt("G"), "malformedRequest"},
		{"OCSP-REQ-16 service locator", single(extension(locatorOID, false, seq(name, seq(seq(unhex("06082b06010505073001"), tlv(0x86, []byte("http://127.0.0.1:1/"))))))), "ok"},
		{"OCSP-REQ-17 basic", reqExt("G", extension(typesOID, false, seq(unhex(basicTypeOID)))), "ok"},
		{"OCSP-REQ-17 another type alone: basic is given", reqExt("G", extension(typesOID, false, seq(unhex(unknownOID)))), "ok"},
		{"OCSP-REQ-17 not a list", reqExt("G", extension(typesOID, false, unhex(basicTypeOID))), "malformedRequest"},
		{"OCSP-RSG-01 garbage signature", signed(algorithm, bits), "ok"},
		{"OCSP-RSG-01 with certificates", signed(algorithm, bits, tlv(0xa0, seq(ca2.issuer.Certificate.Raw))), "ok"},
		{"OCSP-RSG-01 certificates that are none", signed(algorithm, bits, tlv(0xa0, seq(null))), "malformedRequest"},
		{"OCSP-RSG-01 no BIT STRING", signed(algorithm, null), "malformedRequest"},
		{"OCSP-RSG-01 unused bits that are used", signed(algorithm, []byte{3, 2, 7, 0xff}), "malformedRequest"},
		{"OCSP-RSG-01 more after it", signed(algorithm, bits, null), "malformedRequest"},
		{"OCSP-PSA-02 preferences", reqExt("G", extension(preferOID, false, seq(seq(algorithm, seq(unhex("06052b81040022"))), seq(algorithm)))), "ok"},
		{"OCSP-PSA-02 malformed", reqExt("G", extension(preferOID, false, seq(algorithm, null))), "malformedRequest"},
		{"OCSP-PSA-02 ten thousand", reqExt("G", extension(preferOID, false, seq(manyPreferred))), "malformedRequest"},
		{"OCSP-STA-01 an unknown serial is no syntax error", req("U"), "unknown"},
	})
}

// OCSP-PSA-05, OCSP-RSP-07: whatever a client prefers, SHA-1 does not sign.
func TestPSA05WeakPreference(t *testing.T) {
	sha1WithRSA := seq(unhex("06092a864886f70d010105"), null)
	r := newKit(t, private).ok(reqExt("G", extension(preferOID, false, seq(seq(sha1WithRSA)))))
	if want := unhex("300a06082a8648ce3d040302"); !bytes.Equal(r.algorithm, want) {
		t.Errorf("signed with %x", r.algorithm)
	}
}

// OCSP-CID-01, OCSP-CID-04: each hash algorithm, with NULL parameters and without, is answered and comes back as it was.
func TestCID04Echo(t *testing.T) {
	k := newKit(t, private)
	for h, oid := range hashOIDs {
		for _, algorithm := range [][]byte{seq(oid), seq(oid, null)} {
			for _, name := range []string{"G", "L", "M", "Z", "N"} {
				id := certIDWith(algorithm, h, ca1, ca1, serials[name])
				for range 2 { // from the signer, and from the cache
					if r := k.ok(requests(id)); !bytes.Equal(r.singles[0].certID, id) {
						t.Errorf("%v %s:\n sent %x\n  got %x", h, name, id, r.singles[0].certID)
					}
				}
			}
		}
	}
}

func TestCertID(t *testing.T) {
	sha := func(h crypto.Hash) []byte { return seq(hashOIDs[h]) }
	md5 := seq(unhex("06082a864886f70d0205"), null)
	short := seq(sha(crypto.SHA256), tlv(4, make([]byte, 20)), tlv(4, make([]byte, 20)), []byte{2, 1, 1})
	long := make([]byte, 21)
	long[0] = 1
	serialCert := func(s ...byte) []byte { return requests(certID(ca1, crypto.SHA256, s)) }
	k := newKit(t, private)
	spki := ca1.issuer.Certificate.RawSubjectPublicKeyInfo
	k.run([]requestCase{
		{"OCSP-CID-02 key hash of the whole SPKI", requests(seq(sha(crypto.SHA256), tlv(4, digest(crypto.SHA256, ca1.issuer.Certificate.RawSubject)),
			tlv(4, digest(crypto.SHA256, spki)), tlv(2, serials["G"]))), "unauthorized"},
		{"OCSP-CID-03 ca1's name, ca2's key", requests(certIDWith(sha(crypto.SHA256), crypto.SHA256, ca1, ca2, serials["G"])), "unauthorized"},
		{"OCSP-CID-03 ca2's name, ca1's key", requests(certIDWith(sha(crypto.SHA256), crypto.SHA256, ca2, ca1, serials["G"])), "unauthorized"},
		{"OCSP-CID-05 seven bits", serialCert(0x7f), "unknown"},
		{"OCSP-CID-05 M", req("M"), "ok"},
		{"OCSP-CID-05 near M", serialCert(0x80), "unknown"},
		{"OCSP-CID-05 L", req("L"), "ok"},
		{"OCSP-CID-05 near L", serialCert(append(bytes.Clone(serials["L"][:19]), 0xff)...), "unknown"},
		{"OCSP-CID-06 zero", req("Z"), "unknown"},
		{"OCSP-CID-06 negative", req("N"), "unknown"},
		{"OCSP-CID-06 not minimal", serialCert(0, 1), "malformedRequest"},
		{"OCSP-CID-06 no octet", serialCert(), "malformedRequest"},
		{"OCSP-CID-06 21 octets", serialCert(long...), "malformedRequest"},
		{"OCSP-CID-07 SHA-256 with hashes of 20 octets", requests(short), "malformedRequest"},
		{"OCSP-CID-07 parameters that are not NULL", requests(certIDWith(seq(hashOIDs[crypto.SHA1], []byte{2, 1, 0}), crypto.SHA1, ca1, ca1, serials["G"])), "malformedRequest"},
		{"OCSP-CID-08 MD5", requests(seq(md5, tlv(4, make([]byte, 16)), tlv(4, make([]byte, 16)), tlv(2, serials["G"]))), "unauthorized"},
		{"OCSP-CID-08 an unknown algorithm", requests(certIDWith(seq(unhex(unknownOID)), crypto.SHA1, ca1, ca1, serials["G"])), "unauthorized"},
		{"OCSP-STA-02 a CA that is not served", requests(certID(ca2, crypto.SHA1, serials["G"])), "unauthorized"},
	})
}

// OCSP-CID-03: after a roll of the CA's key, the name alone does not tell whose certificate it is.
func TestCID03Rekeyed(t *testing.T) {
	k := newKit(t, private)
	k.change(ca1b, 1, 2, ledger{serial("G"): revoked(pki.Superseded)})
	for c, want := range map[*ca]string{ca1: "good", ca1b: "revoked"} {
		for range 2 {
			r := k.ok(requests(certID(c, crypto.SHA1, serials["G"])))
			if r.singles[0].state() != want || k.authorOf(r) != c {
				t.Errorf("%s: %s, signed for %s", c.issuer.Name, r.singles[0].state(), k.authorOf(r).issuer.Name)
			}
		}
	}
}

// OCSP-CID-09.
func TestCID09Counted(t *testing.T) {
	k := newKit(t, private)
	for i, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		k.respond(requests(certID(ca1, h, serials["G"])))
		if k.front.Counts().Hash[i].Load() != 1 {
			t.Errorf("%v was not counted", h)
		}
	}
	k.respond(requests(certIDWith(seq(unhex(unknownOID)), crypto.SHA1, ca1, ca1, serials["G"])))
	if k.front.Counts().UnknownHash.Load() != 1 {
		t.Error("an unknown hash algorithm was not counted")
	}
}

// OCSP-REQ-19: a panic ends one request, not the process, and is counted.
func TestREQ19Panic(t *testing.T) {
	f := NewFront(func(context.Context, *Question) (Answer, error) { panic("a bug") }, startClock, 10)
	if err := f.Use([]FrontIssuer{{Issuer: ca1.issuer}}); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][]byte{req("G"), reqNonce("G", []byte("123456789"))} {
		if got := f.Respond(t.Context(), r); got.Status != InternalError || !bytes.Equal(got.DER, []byte{0x30, 3, 0x0a, 1, 2}) {
			t.Errorf("%v %x", got.Status, got.DER)
		}
	}
	if f.Counts().Panics.Load() != 2 || f.Counts().Requests[InternalError].Load() != 2 {
		t.Errorf("%d panics counted", f.Counts().Panics.Load())
	}
}

// OCSP-STA-07: no status but the five, and never 4, whatever comes from behind.
func TestSTA07UnknownCodes(t *testing.T) {
	for status := range 256 {
		f := NewFront(func(context.Context, *Question) (Answer, error) {
			if status == 255 {
				return Answer{}, errors.New("unreachable")
			}
			return Answer{Status: ResponseStatus(status), DER: []byte("answer"), NextUpdate: start.AddDate(0, 0, 1)}, nil
		}, startClock, 10)
		if err := f.Use([]FrontIssuer{{Issuer: ca1.issuer}}); err != nil {
			t.Fatal(err)
		}
		want := InternalError
		switch s := ResponseStatus(status); s {
		case Successful, TryLater, Unauthorized:
			want = s
		case 255:
			want = TryLater
		}
		if got := f.Respond(t.Context(), req("G")); got.Status != want {
			t.Errorf("%d became %s", status, got.Status)
		}
	}
}
