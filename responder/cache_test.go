package responder

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"ocspd/pki"
)

// OCSP-TIM-08: what is kept is given as it is.
func TestTIM08Kept(t *testing.T) {
	k := newKit(t, private)
	first := k.respond(req("G"))
	k.add(time.Hour)
	if !bytes.Equal(k.respond(req("G")), first) || k.asked.Load() != 1 {
		t.Error("the same question an hour later has another answer")
	}
}

// Each way to write one and the same CertID has an answer of its own, and never another's.
func TestKeptByForm(t *testing.T) {
	k := newKit(t, private)
	var all [][]byte
	for _, c := range []*ca{ca1, ca1b} {
		for h, oid := range hashOIDs {
			for _, algorithm := range [][]byte{seq(oid), seq(oid, null)} {
				all = append(all, certIDWith(algorithm, h, c, c, serials["G"]))
			}
		}
	}
	for range 2 {
		for _, id := range all {
			if r := k.ok(requests(id)); !bytes.Equal(r.singles[0].certID, id) {
				t.Errorf("asked about %x, told of %x", id, r.singles[0].certID)
			}
		}
	}
	if k.asked.Load() != int64(len(all)) {
		t.Errorf("the signer was asked %d times for %d CertIDs", k.asked.Load(), len(all))
	}
}

// OCSP-TIM-12: an answer is given until the second before its nextUpdate, and not in it.
func TestTIM12Ended(t *testing.T) {
	k := newKit(t, private)
	kept := k.respond(req("G"))
	k.down.Store(true)
	for _, at := range []time.Duration{0, time.Hour, day - time.Second} {
		k.set(at)
		if !bytes.Equal(k.respond(req("G")), kept) {
			t.Errorf("not given after %s", at)
		}
	}
	for _, at := range []time.Duration{day, day + time.Second, 30 * day} {
		k.set(at)
		k.is(TryLater, req("G"))
	}
	// Nor is an answer that begins only later, since the clock was ahead when it was made (OCSP-TIM-03).
	k.set(-4 * time.Hour)
	k.is(TryLater, req("G"))
}

// OCSP-TIM-07: asked once an hour for two weeks, with evidence that is renewed all the time, what is given always has enough of its life before it.
func TestTIM07Refresh(t *testing.T) {
	for _, c := range []struct {
		validity time.Duration
		webPKI   bool
		left     time.Duration
	}{
		{8 * time.Hour, true, 4*time.Hour - time.Second}, {10 * time.Hour, false, 5 * time.Hour}, {16 * time.Hour, true, 8*time.Hour - time.Second},
		{day, false, 12 * time.Hour}, {7 * day, true, 8 * time.Hour}, {14 * day, true, 10 * day},
	} {
		k := newKit(t, Policy{Unissued: UnissuedUnknown, Validity: c.validity, WebPKI: c.webPKI})
		for hour := range 14 * 24 {
			k.set(time.Duration(hour) * time.Hour)
			v := view(1, nil)
			for i := range v.Sources {
				v.Sources[i].ThisUpdate, v.Sources[i].NextUpdate = k.now(), k.now().Add(30*day)
			}
			k.auth[ca1].SetView(v)
			s := k.ok(req("G")).singles[0]
			k.settle()
			left := must(time.Parse("20060102150405Z", s.nextUpdate)).Sub(k.now())
			age := k.now().Sub(must(time.Parse("20060102150405Z", s.thisUpdate)))
			if left < c.left || age > 4*day {
				t.Fatalf("validity %s, hour %d: %s old, %s left", c.validity, hour, age, left)
			}
		}
		if asked := k.asked.Load(); asked > int64(14*day/min(c.validity/4, 3*day))+1 {
			t.Errorf("validity %s: the signer was asked %d times", c.validity, asked)
		}
	}
}

// OCSP-TIM-07 to the minute: when a newer answer must be there, and that it is asked for when three quarters of the time to that are over.
func TestTIM07Due(t *testing.T) {
	for _, c := range []struct{ this, next, due time.Duration }{ // from producedAt
		{0, 10 * time.Hour, 5 * time.Hour},
		{0, 24 * time.Hour, 12 * time.Hour},
		{0, 12 * day, 4 * day},
		{-3 * day, 4 * day, day},
		{-5 * day, 4 * day, 2 * day},                    // older than 4 days already
		{-7 * day, 12 * time.Hour, 4 * time.Hour},       // 8 h before the end of 7.5 days
		{-7 * day, 6 * time.Hour, 3 * time.Hour},        // less than 8 h before it
		{-2 * time.Hour, 12 * time.Hour, 6 * time.Hour}, // 14 h in all: half is enough
		{-4 * time.Hour, 12 * time.Hour, 4 * time.Hour}, // 16 h
	} {
		r := newReply(&Answer{ProducedAt: start, ThisUpdate: start.Add(c.this), NextUpdate: start.Add(c.next)}, true)
		if r.due.Sub(start) != c.due || r.Refresh.Sub(start) != c.due/4*3 {
			t.Errorf("%+v: due after %s, asked for after %s", c, r.due.Sub(start), r.Refresh.Sub(start))
		}
	}
}

// A newer answer is asked for while the old one is given, by one request of many, and not again at once when it fails.
func TestRenewal(t *testing.T) {
	k := newKit(t, private)
	old := k.respond(req("G"))
	k.set(9*time.Hour - time.Second)
	k.respond(req("G"))
	k.settle()
	if k.asked.Load() != 1 {
		t.Error("renewed before its time")
	}
	k.add(2 * time.Second)
	k.down.Store(true)
	asked := func() int64 {
		before := k.asked.Load()
		parallel(8, func(int) {
			for range 100 {
				if !bytes.Equal(k.respond(req("G")), old) {
					t.Error("another answer")
				}
			}
		})
		k.settle()
		return k.asked.Load() - before
	}
	if n := asked(); n != 1 {
		t.Errorf("the signer was asked %d times", n)
	}
	k.add(renewPause - time.Millisecond)
	if n := asked(); n != 0 {
		t.Errorf("asked again too soon, %d times", n)
	}
	k.add(time.Millisecond)
	if n := asked(); n != 1 {
		t.Errorf("asked again %d times", n)
	}
	k.down.Store(false)
	k.add(renewPause)
	for range renewals { // as many are under way as may be: not now, but as soon as one has ended
		k.front.renewing <- struct{}{}
	}
	before := k.asked.Load()
	k.respond(req("G"))
	if k.asked.Load() != before {
		t.Error("one renewal too many")
	}
	for range renewals {
		<-k.front.renewing
	}
	k.respond(req("G"))
	k.settle()
	if got := k.respond(req("G")); bytes.Equal(got, old) {
		t.Error("not renewed when the signer was back")
	}
}

// An answer that nobody asked for until half of its life was over gives a newer one a moment to come, and is given when it does not come.
func TestRenewalWhenDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, private)
		var delay time.Duration
		straight := k.front.ask
		k.front.ask = func(ctx context.Context, q *Question) (Answer, error) {
			select {
			case <-time.After(delay):
				return straight(ctx, q)
			case <-ctx.Done():
				return Answer{}, ctx.Err()
			}
		}
		for _, c := range []struct {
			at, delay, took time.Duration
			renewed         bool
		}{
			{11 * time.Hour, renewWait / 2, 0, false},
			{12 * time.Hour, renewWait / 2, renewWait / 2, true},
			{12 * time.Hour, 2 * renewWait, renewWait, false},
			{12 * time.Hour, time.Hour, renewWait, false},
		} {
			k.set(0)
			k.front.Apply(Change{Issuer: ca1.issuer.ID, From: 1, To: 1, All: true})
			delay = 0
			old := k.respond(req("G"))
			k.set(c.at)
			delay = c.delay
			begun := time.Now()
			got := k.respond(req("G"))
			if took := time.Since(begun); took != c.took || bytes.Equal(got, old) == c.renewed {
				t.Errorf("%+v: took %s, renewed: %v", c, took, !bytes.Equal(got, old))
			}
			time.Sleep(askTime) // no renewal outlives the time that the signer has
			if len(k.front.renewing) != 0 {
				t.Errorf("%+v: still being renewed", c)
			}
			synctest.Wait()
		}
	})
}

// Invariant 6: while more questions than the signer can answer are asked without end, a kept answer is renewed all the same.
func TestRenewalInFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, private)
		signer := func(_ int, c net.Conn) {
			for {
				q, err := readQuestion(c)
				if err != nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
				a := k.signer.Answer(q)
				c.Write(a.append(nil))
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		dial := pipes(signer)
		link := NewLink(func(dialing context.Context) (net.Conn, error) {
			c, err := dial(dialing)
			context.AfterFunc(ctx, func() { c.Close() })
			return c, err
		}, 2, 10)
		k.front.ask = link.Ask
		old := k.respond(req("G"))
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for ctx.Err() == nil {
					k.front.Respond(ctx, reqNonce("P", octets(16)))
					time.Sleep(5 * time.Millisecond) // those that are turned away come again
				}
			})
		}
		time.Sleep(time.Second)
		k.set(10 * time.Hour)
		if !bytes.Equal(k.respond(req("G")), old) {
			t.Error("not the kept answer")
		}
		time.Sleep(time.Second)
		if bytes.Equal(k.respond(req("G")), old) {
			t.Error("not renewed")
		}
		if k.front.Counts().Busy.Load() == 0 {
			t.Error("there was no flood")
		}
		cancel()
		wg.Wait()
		time.Sleep(askTime) // for the signer's goroutines
	})
}

// OCSP-CRL-23. A change drops what it names, at once and with the signer away; the rest is given on.
func TestChangeWithoutSigner(t *testing.T) {
	k := newKit(t, private)
	for _, name := range []string{"G", "P", "U"} {
		k.ok(req(name))
	}
	other := requests(certID(ca1b, crypto.SHA256, serials["G"]))
	k.ok(other)
	k.down.Store(true)
	k.change(ca1, 1, 2, ledger{serial("G"): revoked(pki.KeyCompromise), serial("U"): good})
	k.is(TryLater, req("G"))
	k.is(TryLater, req("U"))
	for _, r := range [][]byte{req("P"), other} {
		if got := k.status(r); got != "good" {
			t.Errorf("what did not change is %s", got)
		}
	}
	k.down.Store(false)
	if g, u := k.status(req("G")), k.status(req("U")); g != "revoked" || u != "good" {
		t.Errorf("then G is %s and U is %s", g, u)
	}
}

// A gap in the sequence, or a change of everything, drops the issuer and no other; the state told again drops nothing.
func TestGapDropsIssuer(t *testing.T) {
	for name, c := range map[string]struct {
		change  Change
		dropped bool
	}{
		"next":               {Change{From: 1, To: 2}, false},
		"told again":         {Change{From: 0, To: 1, All: true}, false},
		"missed one":         {Change{From: 2, To: 3}, true},
		"missed some":        {Change{From: 0, To: 3, All: true}, true},
		"everything changed": {Change{From: 1, To: 2, All: true}, true},
		"went back":          {Change{From: 0, To: 0, All: true}, true},
	} {
		k := newKit(t, private)
		other := requests(certID(ca1b, crypto.SHA256, serials["G"]))
		k.ok(req("G"))
		k.ok(other)
		k.down.Store(true)
		c.change.Issuer = ca1.issuer.ID
		k.front.Apply(c.change)
		if got := k.status(req("G")); (got == "tryLater") != c.dropped {
			t.Errorf("%s: %s", name, got)
		}
		if got := k.status(other); got != "good" {
			t.Errorf("%s: the other issuer's is %s", name, got)
		}
	}
}

// An answer by an older generation than front knows of is not given, let alone kept: the signer missed a change. One by a newer is given, not kept.
func TestOlderGenerationRefused(t *testing.T) {
	k := newKit(t, private)
	k.front.Apply(Change{Issuer: ca1.issuer.ID, From: 1, To: 2})
	k.is(TryLater, req("G"))
	k.is(TryLater, reqNonce("G", octets(16)))
	k.auth[ca1].SetView(view(3, nil))
	k.ok(req("G"))
	k.ok(req("G"))
	if k.front.Kept() != 0 {
		t.Error("kept before the change was told")
	}
	k.front.Apply(Change{Issuer: ca1.issuer.ID, From: 2, To: 3})
	k.ok(req("G"))
	k.down.Store(true)
	k.ok(req("G"))
}

// Without keeper, the signer's generation is believed; one that is newer than what is kept drops that, since nobody says what changed.
func TestAdoptedGeneration(t *testing.T) {
	k := newKit(t, private)
	k.front = NewFront(k.ask, k.now, 100)
	if err := k.front.Use([]FrontIssuer{{Issuer: ca1.issuer}}); err != nil {
		t.Fatal(err)
	}
	k.auth[ca1].SetView(view(5, nil))
	k.ok(req("G"))
	k.auth[ca1].SetView(view(6, ledger{serial("G"): revoked(pki.KeyCompromise)})) // the signer was restarted, say
	if got := k.status(req("G")); got != "good" {
		t.Errorf("G is %s", got) // nothing told front
	}
	k.ok(req("P"))
	if got := k.status(req("G")); got != "revoked" {
		t.Errorf("then G is %s", got)
	}
	k.auth[ca1].SetView(view(4, nil))
	k.is(TryLater, req("X"))
}

// Issuers that are used anew have nothing kept and the generation that was known; one that is no longer used is not answered for.
func TestUse(t *testing.T) {
	k := newKit(t, private)
	k.change(ca1, 1, 2, nil)
	k.ok(req("G"))
	if err := k.front.Use([]FrontIssuer{{Issuer: ca1.issuer}}); err != nil {
		t.Fatal(err)
	}
	k.is(Unauthorized, requests(certID(ca1b, crypto.SHA256, serials["G"])))
	k.front.Apply(Change{Issuer: ca1b.issuer.ID, From: 1, To: 2, All: true}) // is ignored
	k.auth[ca1].SetView(view(1, nil))
	k.is(TryLater, req("G"))
	if err := k.front.Use([]FrontIssuer{{Issuer: ca1.issuer}, {Issuer: must(pki.NewIssuer("again", ca1.issuer.Certificate))}}); err == nil {
		t.Error("two issuers of one name and key were taken")
	}
	k.auth[ca1].SetView(view(2, nil))
	k.ok(req("G"))
}

// A change that is applied while issuers are put in use anew is not lost between the two.
func TestUseWhileApplied(t *testing.T) {
	k := newKit(t, private)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				k.front.Use([]FrontIssuer{{Issuer: ca1.issuer}})
			}
		}
	})
	for n := uint64(2); n < 3000; n++ {
		k.front.Apply(Change{Issuer: ca1.issuer.ID, From: n - 1, To: n})
		time.Sleep(20 * time.Microsecond)
		if got := k.front.state.Load().byID[ca1.issuer.ID].newest.Load(); got != n {
			t.Errorf("generation %d was applied, and %d is known", n, got)
			break
		}
	}
	close(stop)
	wg.Wait()
}

// A status that goes from one cache to the other is found there: what was dropped does not hide it.
func TestBetweenCaches(t *testing.T) {
	k := newKit(t, private)
	of := map[bool]string{true: "U", false: "G"}
	k.ok(req("G"))
	k.ok(req("U"))
	v := view(2, ledger{serial("U"): good})
	lookup := v.Lookup
	v.Lookup = func(s pki.Serial) (pki.Record, bool) {
		if s == serial("G") {
			return pki.Record{}, false
		}
		return lookup(s)
	}
	k.auth[ca1].SetView(v)
	k.front.Apply(Change{Issuer: ca1.issuer.ID, From: 1, To: 2, All: true})
	for unknown, name := range of {
		before := k.asked.Load()
		for range 3 {
			if r := k.ok(req(name)); (r.singles[0].state() == "good") != unknown {
				t.Errorf("%s is %s", name, r.singles[0].state())
			}
		}
		if asked := k.asked.Load() - before; asked != 1 {
			t.Errorf("%s: the signer was asked %d times", name, asked)
		}
	}
	if k.front.Kept() != 2 {
		t.Errorf("%d answers are kept", k.front.Kept())
	}
}

// A flood of random serials does not push out what is asked for all the time, whatever is said of such serials.
func TestFloodEvictsNothing(t *testing.T) {
	for _, p := range []Unissued{UnissuedUnknown, UnissuedRevoked} {
		k := newKit(t, Policy{Unissued: p, Validity: day})
		const many = 200
		l := ledger{}
		for n := range many {
			l[serialOf(n+1)] = good
		}
		k.auth[ca1].SetView(view(1, l))
		request := func(n int) []byte { return requests(certID(ca1, crypto.SHA1, serialOf(n+1).Bytes())) }
		for n := range many {
			k.ok(request(n))
		}
		answer := k.signer.Answer(&Question{Issuer: ca1.issuer.ID, Items: []Item{{Form(1), serial("U")}}})
		k.front.ask = func(context.Context, *Question) (Answer, error) { return answer, nil } // saves the signing
		flood := 10 * unknownCacheBytes / (len(answer.DER) + 512)
		for n := range flood {
			k.respond(request(1_000_000 + n))
		}
		k.front.ask = func(context.Context, *Question) (Answer, error) { return Answer{}, errors.New("down") }
		for n := range many {
			if got := k.status(request(n)); got != "good" {
				t.Fatalf("unissued = %s, after %d others, certificate %d: %s", p, flood, n, got)
			}
		}
		time.Sleep(50 * time.Millisecond) // the cache trims itself a little later
		if kept := k.front.Kept(); kept > many+2*unknownCacheBytes/(len(answer.DER)+512) {
			t.Errorf("%d answers are kept", kept)
		}
	}
}

// OCSP-TIM-11 under load: once a change was applied, no question that is asked later has the old status, kept or signed.
func TestRevocationUnderLoad(t *testing.T) {
	k := newKit(t, private)
	// Each generation revokes one more certificate.
	const last = 200
	var generation atomic.Int64 // that Apply has returned for
	generation.Store(1)
	of := func(n int) *View {
		return &View{Number: uint64(n), Complete: true, Sources: sources(), Lookup: func(s pki.Serial) (pki.Record, bool) {
			if s.Big().Int64() <= int64(n) {
				return revoked(pki.KeyCompromise), true
			}
			return good, true
		}}
	}
	k.auth[ca1].SetView(of(1))
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := w; generation.Load() < last; i++ {
				before := generation.Load()
				n := before + int64(i%4) // revoked, or about to be
				id := certID(ca1, crypto.SHA1, serialOf(int(n)).Bytes())
				r := requests(id)
				if i%5 == 0 {
					r = requests(id, id)
				}
				der := k.respond(r)
				if len(der) == 5 {
					continue
				}
				for _, s := range must(parseResponse(der)).singles {
					if n <= before && s.state() != "revoked" {
						t.Errorf("%d was revoked before it was asked for: %s", n, s.state())
					}
					if n > generation.Load()+1 && s.state() != "good" {
						t.Errorf("%d is not revoked yet: %s", n, s.state())
					}
				}
			}
		})
	}
	for n := 2; n <= last; n++ {
		k.auth[ca1].SetView(of(n))
		time.Sleep(time.Millisecond)
		if n%10 == 0 { // a reload at the same time
			wg.Go(func() { k.front.Use([]FrontIssuer{{Issuer: ca1.issuer}, {Issuer: ca1b.issuer}}) })
		}
		k.front.Apply(Change{Issuer: ca1.issuer.ID, From: uint64(n - 1), To: uint64(n), Serials: []pki.Serial{serialOf(n)}})
		generation.Store(int64(n))
	}
	wg.Wait()
}

// The same as a property: whatever happens in whatever order, an answer is the truth or TryLater, and a nonce comes back as it was.
func TestNeverWrong(t *testing.T) {
	names := []string{"G", "R", "U", "P"}
	forms := []crypto.Hash{crypto.SHA1, crypto.SHA256}
	records := map[string]*pki.Record{"good": &good, "unknown": nil}
	r := revoked(pki.Superseded)
	records["revoked"] = &r
	rapid.Check(t, func(t *rapid.T) {
		k := newKit(t, private)
		truth := map[string]string{"G": "good", "R": "revoked", "U": "unknown", "P": "good"}
		number := uint64(1)
		put := func() {
			v := &View{Number: number, Complete: true, Sources: sources()}
			l := map[pki.Serial]*pki.Record{}
			for name, state := range truth {
				l[serial(name)] = records[state]
			}
			v.Lookup = func(s pki.Serial) (pki.Record, bool) {
				if l[s] == nil {
					return pki.Record{}, false
				}
				return *l[s], true
			}
			k.auth[ca1].SetView(v)
		}
		put()
		t.Repeat(map[string]func(*rapid.T){
			"ask": func(t *rapid.T) {
				name := rapid.SampledFrom(names).Draw(t, "name")
				id := certID(ca1, rapid.SampledFrom(forms).Draw(t, "hash"), serials[name])
				request := requests(id)
				var nonce []byte
				if rapid.Bool().Draw(t, "nonce") {
					nonce = rapid.SliceOfN(rapid.Byte(), 1, 128).Draw(t, "value")
					request = requestOf(requestList(id), tlv(0xa2, seq(extension(nonceOID, false, tlv(4, nonce)))))
				}
				der := k.respond(request)
				k.settle()
				if len(der) == 5 {
					if !k.down.Load() && k.elapsed() < 36*time.Hour || der[4] != byte(TryLater) {
						t.Fatalf("error %d", der[4])
					}
					return
				}
				a := k.lint(der)
				if a.singles[0].state() != truth[name] || !bytes.Equal(a.singles[0].certID, id) {
					t.Fatalf("%s is %s, not %s", name, truth[name], a.singles[0].state())
				}
				if e := a.extension(nonceOID); (e != nil) != (nonce != nil) || e != nil && !bytes.Equal(e.value, tlv(4, nonce)) {
					t.Fatalf("nonce %x: %+v", nonce, e)
				}
			},
			"change": func(t *rapid.T) {
				name := rapid.SampledFrom(names).Draw(t, "name")
				truth[name] = rapid.SampledFrom([]string{"good", "revoked", "unknown"}).Draw(t, "state")
				number++
				put()
				c := Change{Issuer: ca1.issuer.ID, From: number - 1, To: number, Serials: []pki.Serial{serial(name)}}
				switch rapid.IntRange(0, 5).Draw(t, "told how") {
				case 0: // a message is lost, the next one tells
					truth["P"] = rapid.SampledFrom([]string{"good", "revoked", "unknown"}).Draw(t, "P")
					number++
					put()
					c.From, c.To, c.Serials = number-1, number, []pki.Serial{serial("P")}
				case 1:
					c.All, c.Serials = true, nil
				case 2: // the connection to keeper was lost and made again
					c = Change{Issuer: ca1.issuer.ID, To: number, All: true}
				}
				k.front.Apply(c)
			},
			"time": func(t *rapid.T) {
				k.add(time.Duration(rapid.IntRange(0, 6*3600).Draw(t, "seconds")) * time.Second)
			},
			"signer": func(t *rapid.T) { k.down.Store(rapid.Bool().Draw(t, "down")) },
			"reload": func(t *rapid.T) { k.front.Use([]FrontIssuer{{Issuer: ca1.issuer}, {Issuer: ca1b.issuer}}) },
		})
	})
}

// OCSP-STA-06: many who ask the same are one question, and all have its answer.
func TestOneFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, private)
		straight := k.front.ask
		k.front.ask = func(ctx context.Context, q *Question) (Answer, error) {
			select {
			case <-time.After(100 * time.Millisecond):
				return straight(ctx, q)
			case <-ctx.Done():
				return Answer{}, ctx.Err()
			}
		}
		answers := make([][]byte, 100)
		gone, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel) // the first one's client goes away
		parallel(len(answers), func(i int) { answers[i] = k.front.Respond(gone, req("G")).DER })
		for _, a := range answers {
			if !bytes.Equal(a, answers[0]) || len(a) == 5 {
				t.Fatalf("%x", a)
			}
		}
		if k.asked.Load() != 1 {
			t.Errorf("the signer was asked %d times", k.asked.Load())
		}
	})
}

// Whoever asks after a change does not board a flight that left before it.
func TestFlightsEndWithChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, private)
		straight := k.front.ask
		k.front.ask = func(ctx context.Context, q *Question) (Answer, error) {
			a, err := straight(ctx, q) // decided before the change, and delivered after it
			time.Sleep(100 * time.Millisecond)
			return a, err
		}
		var wg sync.WaitGroup
		ask := func(want string) {
			wg.Go(func() {
				if got := k.status(req("G")); got != want {
					t.Errorf("%s, want %s", got, want)
				}
			})
		}
		ask("revoked") // the answer came after the change, so it was asked for again
		synctest.Wait()
		k.change(ca1, 1, 2, ledger{serial("G"): revoked(pki.KeyCompromise)})
		ask("revoked")
		wg.Wait()
		ask("revoked")
		wg.Wait()
	})
	// Nor one that has landed and whose answer is just being handed out.
	k := newKit(t, private)
	i, key := k.front.state.Load().byID[ca1.issuer.ID], cacheKey{issuer: ca1.issuer.ID, serial: serial("G")}
	flights := map[string]bool{k.front.flightName(i, key): true}
	for n, c := range []Change{{From: 1, To: 2}, {From: 2, To: 2, All: true}, {From: 0, To: 9, All: true}} {
		c.Issuer = ca1.issuer.ID
		k.front.Apply(c)
		name := k.front.flightName(i, key)
		if flights[name] {
			t.Errorf("change %d leaves flight %q open", n, name)
		}
		flights[name] = true
	}
}

// Counts of the whole, as operators see them.
func TestCounts(t *testing.T) {
	k := newKit(t, private)
	for range 3 {
		k.respond(req("G"))
	}
	k.respond(req("U"))
	k.respond(reqNonce("G", octets(16)))
	k.respond(nil)
	k.down.Store(true)
	k.respond(req("P"))
	k.front.ask = func(context.Context, *Question) (Answer, error) { return Answer{}, fmt.Errorf("link: %w", ErrBusy) }
	k.respond(req("P"))
	c := k.front.Counts()
	for name, got := range map[string][2]uint64{
		"successful": {c.Requests[Successful].Load(), 5}, "malformed": {c.Requests[MalformedRequest].Load(), 1}, "tryLater": {c.Requests[TryLater].Load(), 2},
		"hits": {c.Hits.Load(), 2}, "asked": {c.Asked.Load(), 5}, "busy": {c.Busy.Load(), 1}, "unreachable": {c.Unreachable.Load(), 1}, "nonces": {c.Nonces.Load(), 1},
		"unissued": {c.Unissued.Load(), 1}, // OCSP-UNK-04
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %d, want %d", name, got[0], got[1])
		}
	}
}
