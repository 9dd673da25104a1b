package responder

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"

	"golang.org/x/crypto/ocsp"

	"ocspd/pki"
)

// seeds are requests of every kind that we read, and some that we refuse.
func seeds() [][]byte {
	all := [][]byte{
		req("G"), req("L"), req("N"), reqNonce("G", octets(16)), requests(idsOf("U", "G", "R")...), nil, {0x30, 0x80, 0, 0}, seq(seq(seq())),
		reqExt("G", extension(typesOID, true, seq(unhex(basicTypeOID)))), reqExt("G", extension(unknownOID, true, null)),
		reqExt("G", extension(preferOID, false, seq(seq(seq(unhex("06082a8648ce3d040302")))))),
		requestOf(tlv(0xa0, []byte{2, 1, 0}), tlv(0xa1, tlv(0x82, []byte("example.org"))), requestList(idsOf("G")...)),
		seq(seq(requestList(idsOf("G")...)), tlv(0xa0, seq(seq(unhex("06082a8648ce3d040302")), tlv(3, octets(70))))),
	}
	for h, oid := range hashOIDs {
		all = append(all, requests(certIDWith(seq(oid, null), h, ca1, ca1, serials["M"])))
	}
	return all
}

// OCSP-REQ-19. x/crypto/ocsp is the oracle: what it takes for one unsigned request, in strict DER, says the same to us. What we take has one reading: its
// CertIDs, written out again from what we read, are in it octet for octet.
func FuzzRequest(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s)
	}
	issuer := writeIssuer(ca1.issuer)
	f.Fuzz(func(t *testing.T, der []byte) {
		var r Request
		err := r.Read(der, 10)
		if err != nil {
			if plain, perr := ocsp.ParseRequest(der); perr == nil {
				// It is more lenient. But the request that it says it read is one that we read.
				again, merr := plain.Marshal()
				if merr == nil && bytes.Equal(again, der) && sound(plain) {
					t.Fatalf("refused: %x", der)
				}
			}
			return
		}
		if len(r.CertIDs) < 1 || len(r.CertIDs) > 10 || len(r.Nonce) > MaxNonce || r.Nonce != nil && len(r.Nonce) == 0 {
			t.Fatalf("%d CertIDs, nonce %x", len(r.CertIDs), r.Nonce)
		}
		table := must(newIssuerTable([]*pki.Issuer{ca1.issuer}))
		for i := range r.CertIDs {
			id := &r.CertIDs[i]
			if _, ok := table.find(id); !ok {
				continue
			}
			if written := certIDBytes(issuer, id); !bytes.Contains(der, written) {
				t.Fatalf("CertID %x is not in %x", written, der)
			}
		}
		// Where both read it, they agree. It refuses much that we read, and looks at the first Request alone.
		plain, err := ocsp.ParseRequest(der)
		if err != nil {
			return
		}
		id := &r.CertIDs[0]
		if !id.known || id.form.Hash() != plain.HashAlgorithm || !bytes.Equal(id.nameHash, plain.IssuerNameHash) ||
			!bytes.Equal(id.keyHash, plain.IssuerKeyHash) || id.serial.Big().Cmp(plain.SerialNumber) != 0 {
			t.Fatalf("%+v and %+v", id, plain)
		}
	})
}

// sound holds for what the oracle lets pass and we do not: hashes of a wrong length, serials that are too long.
func sound(r *ocsp.Request) bool {
	_, err := pki.SerialFromBig(r.SerialNumber)
	return err == nil && len(r.IssuerNameHash) == r.HashAlgorithm.Size() && len(r.IssuerKeyHash) == r.HashAlgorithm.Size()
}

func certIDBytes(issuer *writtenIssuer, id *CertID) []byte {
	algorithm := seq(hashOIDs[id.form.Hash()])
	if id.form&formNull != 0 {
		algorithm = seq(hashOIDs[id.form.Hash()], null)
	}
	return seq(algorithm, tlv(4, issuer.NameHash(id.form.Hash())), tlv(4, issuer.KeyHash(id.form.Hash())), tlv(2, id.serial.Bytes()))
}

// The whole of it: every request gets an answer in one of the five forms, and a successful one is sound and answers what was asked.
func FuzzRespond(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s)
	}
	k := newKit(f, private)
	f.Fuzz(func(t *testing.T, der []byte) {
		reply := k.front.Respond(t.Context(), der)
		if k.front.Counts().Panics.Load() != 0 {
			t.Fatal("panicked")
		}
		if reply.Status != Successful {
			if !bytes.Equal(reply.DER, errorResponse(reply.Status)) {
				t.Fatalf("%s: %x", reply.Status, reply.DER)
			}
			return
		}
		r, err := parseResponse(reply.DER)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range r.singles {
			if !bytes.Contains(der, s.certID) {
				t.Fatalf("%x is answered with %x", der, s.certID)
			}
		}
	})
}

// A GET never ends in a panic or in anything but an OCSP answer, and what its path holds is answered as by POST.
func FuzzGETPath(f *testing.F) {
	for _, s := range seeds() {
		f.Add("/" + b64(s))
		f.Add("/ocsp//" + b64(s))
	}
	for _, s := range []string{"/", "//", "/%", "/%2", "/%zz", "/====", "*", "http://x", "http://x/?", "/a/b/c/d/e/f", "/%0D%0A%20+%2B%3D"} {
		f.Add(s)
	}
	k := newKit(f, Policy{Unissued: UnissuedUnauthorized, Validity: day}) // what is answered is kept: two answers are alike
	h := k.front.Handler(maxTestBody, maxTestPath)
	f.Fuzz(func(t *testing.T, uri string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.RequestURI = uri
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		switch {
		case k.front.Counts().Panics.Load() != 0:
			t.Fatal("panicked")
		case len(uri) > maxTestPath:
			if w.Code != http.StatusRequestURITooLong {
				t.Fatal(w.Code)
			}
			return
		case w.Code != 200:
			t.Fatal(w.Code)
		case target(r) == "/":
			return
		}
		path := bytes.TrimPrefix(bytes.SplitN([]byte(target(r)), []byte("?"), 2)[0], []byte("/"))
		der, _ := payload(string(path))
		var req Request
		if req.Read(der, 1) == nil && req.Nonce != nil {
			return // never two alike
		}
		post := httptest.NewRecorder()
		h.ServeHTTP(post, httptest.NewRequest("POST", "/", bytes.NewReader(der)))
		if !bytes.Equal(post.Body.Bytes(), w.Body.Bytes()) && len(req.CertIDs) < 2 {
			t.Fatalf("GET %q: %x\nPOST: %x", uri, w.Body, post.Body)
		}
	})
}

// Junk on the link or the feed is refused without a panic, and whatever is taken has one form.
func FuzzLinkFrame(f *testing.F) {
	q := &Question{Issuer: ca1.issuer.ID, Nonce: octets(16), Items: []Item{{Form(1), serial("G")}, {formNull, serial("N")}}}
	a := anyAnswer(q)
	refused := Answer{Status: TryLater, Generation: 3}
	c := Change{Issuer: ca1.issuer.ID, From: 1, To: 2, Serials: []pki.Serial{serial("L")}}
	for _, s := range [][]byte{nil, q.append(nil)[2:], a.append(nil)[4:], refused.append(nil)[4:], c.append(nil), make([]byte, 60)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		var q Question
		if q.read(frame) == nil && !bytes.Equal(q.append(nil)[2:], frame) {
			t.Fatalf("question %+v from %x", q, frame)
		}
		var a Answer
		if a.read(frame) == nil && !bytes.Equal(a.append(nil)[4:], frame) {
			t.Fatalf("answer %+v from %x", a, frame)
		}
		var c Change
		if c.read(frame) == nil && !bytes.Equal(c.append(nil), frame) {
			t.Fatalf("change %+v from %x", c, frame)
		}
	})
}
