package responder

import (
	"bytes"
	"crypto"
	"testing"

	"ocspd/pki"
)

// idsOf are CertIDs of ca1.
func idsOf(names ...string) (ids [][]byte) {
	for _, n := range names {
		ids = append(ids, certID(ca1, crypto.SHA256, serials[n]))
	}
	return ids
}

// OCSP-MUL-01, OCSP-MUL-02: an answer for each, in order, and for no other.
func TestMUL01(t *testing.T) {
	k := newKit(t, private)
	ids := idsOf("U", "G", "R")
	ids[1] = certID(ca1, crypto.SHA1, serials["G"]) // one may be written in another way than the next
	r := k.ok(requests(ids...))
	if len(r.singles) != 3 {
		t.Fatalf("%d answers for 3 questions", len(r.singles))
	}
	for i, want := range []string{"unknown", "good", "revoked"} {
		if !bytes.Equal(r.singles[i].certID, ids[i]) || r.singles[i].state() != want {
			t.Errorf("answer %d: %s for %x", i, r.singles[i].state(), r.singles[i].certID)
		}
	}
}

// OCSP-MUL-03, and one more than OCSP-MUL-04 allows.
func TestMUL03Mixed(t *testing.T) {
	k := newKit(t, private)
	mine := idsOf("G")[0]
	for name, other := range map[string][]byte{
		"another CA that is served":     certID(ca1b, crypto.SHA256, serials["G"]),
		"a CA that is not served":       certID(ca2, crypto.SHA256, serials["G"]),
		"a hash algorithm that is none": seq(seq(unhex(unknownOID)), tlv(4, nil), tlv(4, nil), tlv(2, serials["G"])),
	} {
		t.Run(name, func(t *testing.T) {
			k.is(Unauthorized, requests(mine, other))
			k.is(Unauthorized, requests(other, mine))
		})
	}
	if k.asked.Load() != 0 {
		t.Error("the signer was asked")
	}
}

// OCSP-MUL-04.
func TestMUL04Cap(t *testing.T) {
	k := newKit(t, private)
	ids := make([][]byte, 101)
	for i := range ids {
		ids[i] = idsOf("G")[0]
	}
	if r := k.ok(requests(ids[:100]...)); len(r.singles) != 100 {
		t.Errorf("%d answers for 100 questions", len(r.singles))
	}
	k.is(MalformedRequest, requests(ids...))

	// A limit beyond what a question holds is cut down to it.
	wide := NewFront(k.ask, k.now, 10_000)
	if err := wide.Use([]FrontIssuer{{Issuer: ca1.issuer}}); err != nil {
		t.Fatal(err)
	}
	most := make([][]byte, MaxItems+1)
	for i := range most {
		most[i] = ids[0]
	}
	if r := wide.Respond(t.Context(), requests(most[1:]...)); r.Status != Successful || len(k.lint(r.DER).singles) != MaxItems {
		t.Errorf("%d certificates: %s", MaxItems, r.Status)
	}
	if r := wide.Respond(t.Context(), requests(most...)); r.Status != MalformedRequest {
		t.Errorf("%d certificates: %s", len(most), r.Status)
	}
}

// OCSP-MUL-05: one generation and one moment decide all certificates of an answer, while generations come and go.
func TestMUL05OneTruth(t *testing.T) {
	k := newKit(t, private)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := uint64(2); ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			r := good
			if n%2 == 0 {
				r = revoked(pki.KeyCompromise)
			}
			k.change(ca1, n-1, n, ledger{serial("G"): r, serial("P"): r})
		}
	}()
	request := requests(idsOf("G", "P", "G")...)
	for range 500 {
		der := k.respond(request)
		if len(der) == 5 { // twice overtaken: TryLater
			continue
		}
		r := k.lint(der)
		for _, s := range r.singles[1:] {
			if !bytes.Equal(s.status, r.singles[0].status) || s.thisUpdate != r.singles[0].thisUpdate {
				t.Fatalf("two truths under one signature: %x", r.der)
			}
		}
	}
	close(stop)
	<-done
}

func octets(n int) []byte { return bytes.Repeat([]byte{0xa5}, n) }

// OCSP-NON-01 to -05, -08, -09.
func TestNonce(t *testing.T) {
	k := newKit(t, private)
	echo := func(nonce []byte) []byte { return extension(nonceOID, false, tlv(4, nonce)) }
	known := unhex("302f06092b0601050507300102042204200102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20")
	single := requestOf(seq(seq(idsOf("G")[0], tlv(0xa0, seq(echo(octets(16)))))))
	for _, c := range []struct {
		name    string
		request []byte
		want    []byte // the extension in the answer; nil for none
		bad     bool
	}{
		{name: "OCSP-NON-01 the example of RFC 9654", request: reqExt("G", known), want: known},
		{name: "OCSP-NON-02 raw octets", request: reqExt("G", extension(nonceOID, false, octets(16)))},
		{name: "OCSP-NON-03 empty", request: reqNonce("G", nil), bad: true},
		{name: "OCSP-NON-03 no value", request: reqExt("G", extension(nonceOID, false, nil)), bad: true},
		{name: "OCSP-NON-03 129", request: reqNonce("G", octets(129)), bad: true},
		{name: "OCSP-NON-03 129 raw octets", request: reqExt("G", extension(nonceOID, false, octets(129))), bad: true},
		{name: "OCSP-NON-03 128", request: reqNonce("G", octets(128)), want: echo(octets(128))},
		{name: "OCSP-NON-04 16", request: reqNonce("G", octets(16)), want: echo(octets(16))},
		{name: "OCSP-NON-04 20", request: reqNonce("G", octets(20)), want: echo(octets(20))},
		{name: "OCSP-NON-04 31", request: reqNonce("G", octets(31)), want: echo(octets(31))},
		{name: "OCSP-NON-04 32", request: reqNonce("G", octets(32)), want: echo(octets(32))},
		{name: "OCSP-NON-05 1", request: reqNonce("G", octets(1)), want: echo(octets(1))},
		{name: "OCSP-NON-05 9", request: reqNonce("G", []byte("123456789")), want: echo([]byte("123456789"))},
		{name: "OCSP-NON-05 64", request: reqNonce("G", octets(64)), want: echo(octets(64))},
		{name: "OCSP-NON-08 critical", request: reqExt("G", extension(nonceOID, true, tlv(4, octets(16)))), want: echo(octets(16))},
		{name: "OCSP-NON-09 twice", request: reqExt("G", echo(octets(16)), echo(octets(16))), bad: true},
		{name: "OCSP-NON-09 raw, then proper", request: reqExt("G", extension(nonceOID, false, octets(16)), echo(octets(16))), bad: true},
		{name: "OCSP-NON-09 proper, then raw", request: reqExt("G", echo(octets(16)), extension(nonceOID, false, octets(16))), bad: true},
		{name: "OCSP-NON-09 raw twice", request: reqExt("G", extension(nonceOID, false, octets(16)), extension(nonceOID, false, octets(16))), bad: true},
		{name: "OCSP-NON-09 in a Request", request: single},
		{name: "OCSP-NON-06 none", request: req("G")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.bad {
				k.is(MalformedRequest, c.request)
				return
			}
			got := k.ok(c.request).extension(nonceOID)
			if (got == nil) != (c.want == nil) || got != nil && !bytes.Equal(got.raw, c.want) {
				t.Errorf("nonce in the answer: %+v, want %x", got, c.want)
			}
		})
	}
}

// OCSP-NON-07: answers with a nonce are neither kept nor given from what is kept. (The headers: TestCacheHeaders.)
func TestNON07NeverKept(t *testing.T) {
	k := newKit(t, private)
	plain := k.respond(req("G"))
	for i := range 5 {
		nonce := octets(16)
		nonce[0] = byte(i)
		r := k.ok(reqNonce("G", nonce))
		if e := r.extension(nonceOID); e == nil || !bytes.Equal(e.value, tlv(4, nonce)) {
			t.Fatalf("nonce %d was not echoed: %+v", i, e)
		}
		if got := k.respond(req("G")); !bytes.Equal(got, plain) {
			t.Fatal("what is kept was replaced by an answer with a nonce")
		}
	}
	if got := k.asked.Load(); got != 6 {
		t.Errorf("the signer was asked %d times, want 6", got)
	}
	// Nor is it kept where nothing was.
	k.ok(reqNonce("P", octets(16)))
	if k.ok(req("P")).extension(nonceOID) != nil {
		t.Error("a kept answer has a nonce")
	}
	// Nor are answers for several certificates.
	k.ok(requests(idsOf("X", "L")...))
	if got := k.front.Kept(); got != 2 {
		t.Errorf("%d answers are kept, want those for G and P", got)
	}
}

// OCSP-NON-10: an issuer that ignores nonces answers without, from what is kept.
func TestNON10Ignored(t *testing.T) {
	k := newKit(t, private)
	if err := k.front.Use([]FrontIssuer{{Issuer: ca1.issuer, IgnoreNonce: true}}); err != nil {
		t.Fatal(err)
	}
	first := k.respond(reqNonce("G", octets(16)))
	second := k.ok(reqNonce("G", octets(20)))
	if !bytes.Equal(first, second.der) || second.extension(nonceOID) != nil || k.asked.Load() != 1 {
		t.Errorf("asked %d times, extensions %+v", k.asked.Load(), second.extensions)
	}
	k.is(MalformedRequest, reqNonce("G", octets(129))) // OCSP-NON-03 holds all the same
}
