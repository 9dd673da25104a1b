package db

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ocspd/pki"
)

// said is what one source says of one serial.
type said struct {
	status  pki.Status
	carried bool
}

// model is contract.md, "Several sources" and "CRL over CRL", in maps.
type model struct {
	crl, index           map[uint64]said // nil: not installed
	hand                 map[uint64]pki.Status
	crlClear, indexClear map[uint64]bool
	number, read         int // of the CRL; times that the index was read
}

// complete is what a complete source leaves of what was there.
func complete(old map[uint64]said, cleared map[uint64]bool, now map[uint64]said) map[uint64]said {
	next := maps.Clone(now)
	for n, s := range old {
		if _, listed := next[n]; listed || !s.status.Permanent() || s.carried && cleared[n] {
			continue
		}
		next[n] = said{s.status, true}
	}
	clear(cleared)
	return next
}

func (m *model) heard(of map[uint64]said, cleared map[uint64]bool, n uint64) (said, bool) {
	s, ok := of[n]
	if ok && s.carried && cleared[n] {
		return said{}, false
	}
	return s, ok
}

// status is what is to be answered; the zero Status where there is nothing.
func (m *model) status(n uint64) pki.Status {
	crl, ok := m.heard(m.crl, m.crlClear, n)
	if ok {
		return crl.status
	}
	if h, ok := m.hand[n]; ok {
		return h
	}
	index, _ := m.heard(m.index, m.indexClear, n)
	return index.status
}

const modelSerials = 7

// Any order of imports, deltas, revocations by hand, kills and restarts: what the next generation would say is what
// the model says, for every serial. So no revocation goes while its source does not take it back (OCSP-UNK-07).
func TestLikeTheModel(t *testing.T) {
	// A check takes a real database through thirty changes; a long trial says -rapid.checks itself.
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		f.Value.Set("20")
	}
	outer := t
	statuses := []pki.Status{
		{State: pki.Revoked, RevokedAt: day(1)}, {State: pki.Revoked, Reason: pki.KeyCompromise, RevokedAt: day(2)},
		{State: pki.Revoked, Reason: pki.CertificateHold, RevokedAt: day(3)},
	}
	rapid.Check(t, func(t *rapid.T) {
		h := newHouse(outer)
		defer func() { h.Store.Close() }()
		m := &model{hand: map[uint64]pki.Status{}, crlClear: map[uint64]bool{}, indexClear: map[uint64]bool{}}
		content := func(choices []pki.Status) (map[uint64]said, []pki.Entry) {
			now := map[uint64]said{}
			var entries []pki.Entry
			for n := range uint64(modelSerials) {
				if k := rapid.IntRange(-2, len(choices)-1).Draw(t, fmt.Sprint("serial ", n)); k >= 0 {
					now[n] = said{status: choices[k]}
					entries = append(entries, pki.Entry{Serial: serial(n), Status: choices[k]})
				}
			}
			return now, entries
		}
		which := rapid.Uint64Range(0, modelSerials-1)
		t.Repeat(map[string]func(*rapid.T){
			"crl": func(t *rapid.T) {
				now, entries := content(statuses)
				m.number++
				h.must(crl(m.number, entries...))
				m.crl = complete(m.crl, m.crlClear, now)
			},
			"delta": func(t *rapid.T) {
				if m.crl == nil {
					t.Skip("nothing to build on")
				}
				now, entries := content(append(statuses, pki.Status{State: pki.Revoked, Reason: pki.RemoveFromCRL, RevokedAt: day(1)}))
				base := m.number
				m.number++
				h.must(delta(base, m.number, entries...))
				for n, s := range m.crl {
					if s.carried && m.crlClear[n] {
						delete(m.crl, n)
					}
				}
				clear(m.crlClear)
				for n, s := range now {
					old, there := m.crl[n]
					switch {
					case s.status.Reason != pki.RemoveFromCRL:
						m.crl[n] = s
					case there && old.status.Reason == pki.CertificateHold:
						delete(m.crl, n)
					}
				}
			},
			"index": func(t *rapid.T) {
				now, entries := content(append(statuses, pki.Status{State: pki.Good}))
				m.read++ // another digest each time
				s := index(entries...)
				s.Digest[0], s.Digest[1] = byte(m.read), byte(m.read>>8)
				refused := false
				for n, s := range now {
					was, _ := m.heard(m.index, m.indexClear, n)
					refused = refused || s.status.State == pki.Good && was.status.Permanent()
				}
				if _, err := h.install(s, false); refused != errors.Is(err, ErrRefused) || !refused && err != nil {
					t.Fatalf("refused should be %v: %v", refused, err)
				}
				if !refused {
					m.index = complete(m.index, m.indexClear, now)
				}
			},
			"revoke": func(t *rapid.T) {
				n, s := which.Draw(t, "serial"), rapid.SampledFrom(statuses).Draw(t, "status")
				old, there := m.hand[n]
				err := h.revoke(n, s.Reason, s.RevokedAt)
				switch {
				case there && old == s:
					check(outer, err, ErrUnchanged, "")
				case there && old.Permanent() && !s.Permanent():
					check(outer, err, ErrRefused, "cannot become a hold")
				default:
					check(outer, err, nil, "")
					m.hand[n] = s
				}
			},
			"unrevoke": func(t *rapid.T) {
				n, mistake := which.Draw(t, "serial"), rapid.SampledFrom([]string{"", "a mistake"}).Draw(t, "mistake")
				err := h.unrevoke(n, mistake)
				confirmed, carried := false, false
				for _, l := range []struct{ of, cleared any }{{m.crl, m.crlClear}, {m.index, m.indexClear}} {
					s, ok := m.heard(l.of.(map[uint64]said), l.cleared.(map[uint64]bool), n)
					confirmed = confirmed || ok && s.status.State == pki.Revoked && !s.carried
					carried = carried || ok && s.carried
				}
				byHand, there := m.hand[n]
				switch {
				case confirmed, (carried || there && byHand.Permanent()) && mistake == "":
					check(outer, err, ErrRefused, "")
				case !carried && !there:
					check(outer, err, ErrUnchanged, "")
				default:
					check(outer, err, nil, "")
					delete(m.hand, n)
					if s, ok := m.crl[n]; ok && s.carried {
						m.crlClear[n] = true
					}
					if s, ok := m.index[n]; ok && s.carried {
						m.indexClear[n] = true
					}
				}
			},
			"killed": func(t *rapid.T) {
				if _, err := h.Stage(outer.Context(), h.id, h.origin(true), crl(1000), noBase); err != nil {
					t.Fatal(err)
				}
				old := h.Store
				h.reopen()
				old.Close()
			},
			"collect": func(t *rapid.T) {
				if err := h.Collect(outer.Context()); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				got := map[uint64]pki.Status{}
				if _, err := h.Touch(outer.Context(), h.id, "", day(100), time.Time{}, time.Time{}, func(v View) (Published, error) {
					_, err := h.Merged(outer.Context(), h.id, nil, func(p *pki.Packed) error {
						for n := range uint64(modelSerials) {
							if p.Serial() == serial(n) {
								got[n] = p.Status()
							}
						}
						return nil
					})
					for _, r := range v.Rulings {
						for n := range uint64(modelSerials) {
							if r.Serial == serial(n) {
								got[n] = r.Record.Status
							}
						}
					}
					if err != nil {
						return Published{}, err
					}
					return h.publish(v)
				}); err != nil {
					t.Fatal(err)
				}
				for n := range uint64(modelSerials) {
					if want := m.status(n); got[n] != want {
						t.Fatalf("serial %d is %+v, not %+v", n, got[n], want)
					}
				}
			},
		})
	})
}
