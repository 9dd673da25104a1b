package responder

import (
	"bytes"
	"crypto"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"ocspd/pki"
)

const day = 24 * time.Hour

// decideAt is a decision over the sources given, of which the first governs a revocation and the last a good status.
func decideAt(now time.Duration, p Policy, name string, s ...pki.Source) Verdict {
	v := view(7, nil)
	lookup := v.Lookup
	v.Sources = s
	v.Lookup = func(serial pki.Serial) (pki.Record, bool) {
		r, ok := lookup(serial)
		if r.Source == 1 {
			r.Source = uint8(len(s) - 1)
		}
		return r, ok
	}
	return p.Decide(v, serial(name), start.Add(now))
}

func source(this, next time.Duration) pki.Source {
	return pki.Source{Name: "s", Kind: pki.CRL, ThisUpdate: start.Add(this), NextUpdate: start.Add(next)}
}

// OCSP-TIM-02, OCSP-TIM-03, OCSP-TIM-05, OCSP-TIM-06: where thisUpdate and nextUpdate come from. Each bound is the smallest in turn.
func TestTIM05Times(t *testing.T) {
	policy := func(webPKI bool, validity, notAfter time.Duration) Policy {
		return Policy{Unissued: UnissuedUnknown, Validity: validity, WebPKI: webPKI, NotAfter: start.Add(notAfter)}
	}
	for _, c := range []struct {
		name       string
		now        time.Duration
		policy     Policy
		of         string
		sources    []pki.Source
		this, next time.Duration
	}{
		{"OCSP-TIM-02 three days into a CRL", 3 * day, policy(false, day, 99*day), "G", []pki.Source{source(0, 7*day)}, 0, 4 * day},
		{"bound by the CRL", 6 * day, policy(false, 2*day, 99*day), "G", []pki.Source{source(0, 7*day)}, 0, 7 * day},
		{"bound by the signer's certificate", day, policy(false, 5*day, 3*day), "G", []pki.Source{source(0, 7*day)}, 0, 3 * day},
		{"bound by thisUpdate + validity", 3 * day, policy(true, 4*day, 99*day), "G", []pki.Source{source(0, 7*day)}, 0, 4*day - time.Second},
		{"OCSP-TIM-06 a second less than seven days", time.Hour, policy(true, 7*day, 99*day), "G", []pki.Source{source(0, 30*day)}, 0, 604_799 * time.Second},
		{"good needs all sources", day, policy(false, 9*day, 99*day), "G", []pki.Source{source(time.Hour, 7*day), source(0, 3*day), source(2*time.Hour, 5*day)}, 0, 3 * day},
		{"unknown needs all sources", day, policy(false, 9*day, 99*day), "U", []pki.Source{source(time.Hour, 7*day), source(0, 3*day)}, 0, 3 * day},
		{"revoked needs the one that says so", day, policy(false, 9*day, 99*day), "R", []pki.Source{source(time.Hour, 7*day), source(0, 3*day)}, time.Hour, 7 * day},
		{"OCSP-TIM-03 a source ahead of our clock", 0, policy(false, day, 99*day), "G", []pki.Source{source(time.Hour, 7*day)}, 0, day},
		{"OCSP-TIM-03 and in webpki", 0, policy(true, day, 99*day), "G", []pki.Source{source(time.Hour, 7*day)}, 0, day - time.Second},
	} {
		v := decideAt(c.now, c.policy, c.of, c.sources...)
		if v.Refusal != Successful || !v.ThisUpdate.Equal(start.Add(c.this)) || !v.NextUpdate.Equal(start.Add(c.next)) {
			t.Errorf("%s: %s from %s to %s", c.name, v.Refusal, v.ThisUpdate.Sub(start), v.NextUpdate.Sub(start))
		}
	}
	// An issuer answers nothing once any of its sources has ended, not even what another one says.
	for now, want := range map[time.Duration]ResponseStatus{day - time.Second: Successful, day: TryLater} {
		if v := decideAt(now, policy(false, day, 99*day), "R", source(0, 7*day), source(0, day)); v.Refusal != want {
			t.Errorf("%s: %s", now, v.Refusal)
		}
	}
}

// OCSP-TIM-02 for entries by hand: the later of the command and the sources, in UTC and whole seconds whatever the entry says.
func TestTIM02ByHand(t *testing.T) {
	k := newKit(t, private)
	r := revoked(pki.KeyCompromise)
	r.Source = pki.HandSource
	for _, c := range []struct {
		at   time.Duration
		want string
	}{
		{-time.Hour - 500*time.Millisecond, k.stamp(-time.Hour - time.Second)},
		{-100 * day, k.stamp(-3 * time.Hour)}, // the older of the two sources
	} {
		r.At = start.Add(c.at).In(time.FixedZone("JST", 9*3600))
		v := view(1, ledger{serial("G"): r})
		k.auth[ca1].SetView(v)
		got := k.ok(requests(idsOf("G", "G")...)).singles[0]
		if got.state() != "revoked" || got.thisUpdate != c.want {
			t.Errorf("entered at %s: %s from %s, want %s", c.at, got.state(), got.thisUpdate, c.want)
		}
	}
}

// OCSP-STA-04 and invariant 1: what cannot be right becomes an error, never good.
func TestSTA04NeverGood(t *testing.T) {
	record := func(r pki.Record) *View { return view(1, ledger{serial("G"): r}) }
	stale := view(1, nil)
	stale.Sources[0].NextUpdate = start
	incomplete := view(1, nil)
	incomplete.Complete = false
	sourceless := view(1, nil)
	sourceless.Sources = nil
	noTime := revoked(pki.KeyCompromise)
	noTime.Status.RevokedAt = time.Time{}
	notOurs := good
	notOurs.Source = 2
	for name, c := range map[string]struct {
		view *View
		want string
	}{
		"no generation":                        {nil, "tryLater"},
		"a source that did not deliver":        {incomplete, "tryLater"},
		"no source":                            {sourceless, "tryLater"},
		"one source ends this very second":     {stale, "tryLater"},
		"a state that is none":                 {record(pki.Record{Status: pki.Status{State: 9}, Source: 1}), "internalError"},
		"a state that is none, by hand":        {record(pki.Record{Status: pki.Status{State: 9}, Source: pki.HandSource}), "internalError"},
		"a record that says unknown":           {record(pki.Record{Source: 1}), "internalError"},
		"revoked at no time":                   {record(noTime), "internalError"},
		"a source that the view does not have": {record(notOurs), "internalError"},
		"good":                                 {view(1, nil), "good"},
	} {
		k := newKit(t, private)
		k.auth[ca1].SetView(c.view)
		if got := k.status(req("G")); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	// The same, by accident: whatever a record holds, good is only said of a good record.
	k := newKit(t, private)
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		r := pki.Record{Status: pki.Status{State: pki.State(random.IntN(5)), Reason: pki.Reason(random.IntN(256))}, Source: uint8(random.IntN(256))}
		if random.IntN(2) == 0 {
			r.Status.RevokedAt = time.Unix(random.Int64N(1<<40), 0)
		}
		v := (&Policy{Unissued: UnissuedUnknown, Validity: day, NotAfter: start.Add(day)}).Decide(record(r), serial("G"), k.now())
		if v.Refusal == Successful && (v.Status.State != r.Status.State || v.Status.State == pki.Unknown || v.Status.State > pki.Revoked) {
			t.Fatalf("%+v became %+v", r, v)
		}
	}
}

// OCSP-UNK-01, OCSP-UNK-06, OCSP-UNK-08, OCSP-XRV-01: what is said of a serial that no source names, by policy; an expired certificate is answered like another.
func TestUNK08Unissued(t *testing.T) {
	for policy, want := range map[Unissued]string{
		UnissuedUnknown: "unknown", UnissuedUnauthorized: "unauthorized", UnissuedRevoked: "revoked", UnissuedGood: "good", "": "unknown", "nonsense": "unknown",
	} {
		k := newKit(t, Policy{Unissued: policy, Validity: day})
		for _, s := range [][]byte{serials["U"], serials["Z"], serials["N"], append([]byte("crt.sh"), octets(14)...)} {
			if got := k.status(requests(certID(ca1, crypto.SHA256, s))); got != want {
				t.Errorf("unissued = %q: %x is %s, want %s", policy, s, got, want)
			}
		}
		for name, want := range map[string]string{"G": "good", "X": "good", "P": "good", "R": "revoked"} {
			if got := k.status(req(name)); got != want {
				t.Errorf("unissued = %q: %s is %s", policy, name, got)
			}
		}
	}
}

// OCSP-XRV-01, OCSP-EXT-06: all that goes with saying revoked of what was never issued, and OCSP-XRV-03: it ends when it is issued.
func TestXRV01(t *testing.T) {
	k := newKit(t, Policy{Unissued: UnissuedRevoked, Validity: day})
	extended := unhex("300f06092b060105050730010904020500")
	r := k.ok(req("U"))
	if len(r.extensions) != 1 || !bytes.Equal(r.extensions[0].raw, extended) {
		t.Errorf("response extensions %+v", r.extensions)
	}
	if want := unhex("a116180f31393730303130313030303030305aa0030a0106"); !bytes.Equal(r.singles[0].status, want) || r.singles[0].extensions != nil {
		t.Errorf("status %x, extensions %+v", r.singles[0].status, r.singles[0].extensions)
	}
	nonced := k.ok(reqNonce("U", octets(16)))
	if len(nonced.extensions) != 2 || !bytes.Equal(nonced.extensions[1].raw, extended) {
		t.Errorf("with a nonce: %+v", nonced.extensions)
	}
	if r := k.front.Respond(t.Context(), req("U")); !r.Unknown { // OCSP-UNK-05 holds for it, too
		t.Error("would be kept for long by HTTP caches")
	}
	for _, name := range []string{"G", "R"} { // not where it does not apply
		if r := k.ok(req(name)); len(r.extensions) != 0 {
			t.Errorf("%s: %+v", name, r.extensions)
		}
	}
	k.change(ca1, 1, 2, ledger{serial("U"): good})
	if got := k.status(req("U")); got != "good" {
		t.Errorf("issued by now: %s", got)
	}
}

// OCSP-UNK-03, OCSP-XRV-03, OCSP-TIM-11, OCSP-REV-07: a change is seen by the next question, kept or with a nonce, each way.
func TestTIM11Change(t *testing.T) {
	k := newKit(t, private)
	later := revoked(pki.KeyCompromise)
	later.Status.RevokedAt = revokedAt.Add(-day)
	steps := []struct {
		name string
		to   pki.Record
		want string
	}{
		{"U", good, "8000"},
		{"U", revoked(pki.Unspecified), "a111180f32303236313032303038333030305a"},
		{"U", later, "a116180f32303236313031393038333030305aa0030a0101"}, // back-dated, and with a reason
		{"H", good, "8000"}, // a hold that is released
	}
	for i, s := range steps {
		k.ok(req(s.name))
		k.change(ca1, uint64(i+1), uint64(i+2), ledger{serial(s.name): s.to})
		for _, request := range [][]byte{req(s.name), reqNonce(s.name, octets(16))} {
			if r := k.ok(request); !bytes.Equal(r.singles[0].status, unhex(s.want)) {
				t.Errorf("step %d: %x, want %s", i, r.singles[0].status, s.want)
			}
		}
	}
}

// OCSP-REV-03: reasons that are none in an answer never stand in one.
func TestREV03Reasons(t *testing.T) {
	for reason := range 256 {
		k := newKit(t, private)
		k.auth[ca1].SetView(view(1, ledger{serial("G"): revoked(pki.Reason(reason))}))
		r := k.ok(req("G"))
		parsed := must(ocsp.ParseResponse(r.der, nil))
		want := reason
		if reason > 10 || reason == 7 || reason == 8 {
			want = 0
		}
		if parsed.Status != ocsp.Revoked || parsed.RevocationReason != want || (len(r.singles[0].status) > 19) != (want != 0) {
			t.Errorf("reason %d: %x", reason, r.singles[0].status)
		}
	}
}

// OCSP-REV-06: the invalidity date, where one is known.
func TestREV06InvalidityDate(t *testing.T) {
	k := newKit(t, private)
	record := revoked(pki.KeyCompromise)
	record.Status.InvalidityDate = revokedAt.Add(-day).In(time.FixedZone("JST", 9*3600))
	record.Status.RevokedAt = revokedAt.In(time.FixedZone("JST", 9*3600))
	k.auth[ca1].SetView(view(1, ledger{serial("G"): record}))
	s := k.ok(req("G")).singles[0]
	if len(s.extensions) != 1 || s.extensions[0].oid != "0603551d18" || !bytes.Equal(s.extensions[0].value, tlv(0x18, []byte("20261019083000Z"))) {
		t.Errorf("%+v", s.extensions)
	}
	if !bytes.Contains(s.status, []byte("20261020083000Z")) { // OCSP-REV-01, OCSP-TIM-01
		t.Errorf("status %x", s.status)
	}
}

// OCSP-TIM-05, OCSP-DEL-10: certificates end what is answered, and a signer is not used before its time.
func TestTIM05Certificates(t *testing.T) {
	k := newKit(t, private)
	c := newCA("tim05", "CA TIM05")
	k.roll(c, c.signerKey)
	v := view(1, nil)
	for i := range v.Sources {
		v.Sources[i].NextUpdate = start.AddDate(20, 0, 0)
	}
	k.auth[c].SetView(v)
	request := requests(certID(c, crypto.SHA256, serials["G"]))
	for _, step := range []struct {
		at   time.Time
		want string
	}{
		{c.signer.NotBefore.Add(-time.Second), "tryLater"},
		{start, "good"},
		{c.signer.NotAfter.Add(-time.Hour), "good"},
		{c.signer.NotAfter, "tryLater"},
	} {
		for i := range v.Sources { // a source that is always fresh
			v.Sources[i].ThisUpdate = step.at.Add(-time.Hour)
		}
		k.set(step.at.Sub(start))
		if got := k.status(request); got != step.want { // that no answer holds longer is in lint
			t.Errorf("%s: %s, want %s", step.at, got, step.want)
		}
	}
}

// OCSP-TIM-10: a clock guard that refuses stops signing, and what is kept goes on. The guard sees every signature's time, in order.
func TestTIM10ClockGuard(t *testing.T) {
	k := newKit(t, private)
	kept := k.respond(req("G"))
	k.refuse.Store(true)
	k.is(TryLater, req("P"))
	k.is(TryLater, reqNonce("G", octets(16)))
	if !bytes.Equal(k.respond(req("G")), kept) {
		t.Error("what was kept is not given")
	}
	var last time.Time
	var ticks atomic.Int64
	now := func() time.Time {
		n := ticks.Add(1)
		if n%5 == 0 {
			time.Sleep(time.Millisecond) // long enough to be overtaken by whoever reads the clock next
		}
		return start.Add(time.Duration(n) * 300 * time.Millisecond)
	}
	s := NewSigner(now, func(at time.Time) error {
		if at.Before(last) || at.Nanosecond() != 0 {
			t.Errorf("asked about %s after %s", at, last)
		}
		last = at
		return nil
	}, func(string, error) {})
	s.Use([]*Authority{k.auth[ca1]})
	parallel(4, func(int) {
		for range 50 {
			s.Answer(&Question{Issuer: ca1.issuer.ID, Items: []Item{{Form(1), serial("G")}}})
		}
	})
	if s.Signed() != 200 {
		t.Errorf("%d of 200 were signed", s.Signed())
	}
}

// OCSP-STA-03: an issuer without an authority, or one whose authority could not be prepared.
func TestSTA03Unprepared(t *testing.T) {
	s := NewSigner(startClock, func(time.Time) error { return nil }, func(string, error) {})
	q := &Question{Issuer: ca1.issuer.ID, Items: []Item{{Form(1), serial("G")}}}
	if a := s.Answer(q); a.Status != Unauthorized {
		t.Errorf("no authority: %s", a.Status)
	}
	s.Use([]*Authority{{Issuer: ca1.issuer}})
	if a := s.Answer(q); a.Status != TryLater {
		t.Errorf("not prepared: %s", a.Status)
	}
}
