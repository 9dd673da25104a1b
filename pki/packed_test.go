package pki

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A Packed gives back what went in, and sorts as serials do (OCSP-CID-05: near misses are other serials).
func TestPacked(t *testing.T) {
	serials := rapid.Custom(func(t *rapid.T) Serial {
		b := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0x7f, 0x80, 0xff}), 1, MaxSerial).Draw(t, "octets")
		for len(b) > 1 && (b[0] == 0 && b[1] < 0x80 || b[0] == 0xff && b[1] >= 0x80) {
			b = b[1:]
		}
		s, err := SerialFromDER(b)
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
	statuses := rapid.SampledFrom([]Status{
		{State: Good},
		{State: Revoked, RevokedAt: time.Unix(0, 0).UTC()},
		{State: Revoked, Reason: KeyCompromise, RevokedAt: time.Unix(-1, 0).UTC(), InvalidityDate: time.Unix(1<<33, 0).UTC()},
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b, st := serials.Draw(t, "a"), serials.Draw(t, "b"), statuses.Draw(t, "status")
		p, q := Pack(a, st, 7), Pack(b, Status{State: Good}, 0)
		if p.Serial() != a || p.Status() != st || p.Source() != 7 || p.Check() != nil {
			t.Fatalf("%s %+v came back as %s %+v from %d: %v", a, st, p.Serial(), p.Status(), p.Source(), p.Check())
		}
		if p.Compare(&q) != a.Compare(b) {
			t.Fatalf("%s and %s: %d, but serials say %d", a, b, p.Compare(&q), a.Compare(b))
		}
	})
}

func TestPackedCheck(t *testing.T) {
	s, err := SerialFromDER([]byte{0x12})
	if err != nil {
		t.Fatal(err)
	}
	revoked := Status{State: Revoked, RevokedAt: time.Unix(1, 0)}
	for name, harm := range map[string]func(*Packed){
		"no serial":             func(p *Packed) { p[20] = 0 },
		"long serial":           func(p *Packed) { p[20] = 21 },
		"serial not minimal":    func(p *Packed) { p[0], p[1], p[20] = 0, 1, 2 },
		"octets after it":       func(p *Packed) { p[19] = 1 },
		"unknown":               func(p *Packed) { p[21] = 0 },
		"no such state":         func(p *Packed) { p[21] = 3 },
		"good with a date":      func(p *Packed) { p[21] = uint8(Good) },
		"reason 7":              func(p *Packed) { p[22] = 7 },
		"removeFromCRL":         func(p *Packed) { p[22] = uint8(RemoveFromCRL) },
		"revoked at no time":    func(p *Packed) { putTime(p[24:], time.Time{}) },
		"revoked in year 10000": func(p *Packed) { putTime(p[24:], time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)) },
	} {
		p := Pack(s, revoked, 0)
		if err := p.Check(); err != nil {
			t.Fatal(err)
		}
		harm(&p)
		if p.Check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
