package db

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ocspd/pki"
)

var day0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func day(n int) time.Time { return day0.AddDate(0, 0, n) }

// house is a database with one issuer and what its publishers saw.
type house struct {
	*Store
	t    *testing.T
	path string
	id   pki.IssuerID
	last View
	leaf int64
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{t: t, path: filepath.Join(t.TempDir(), "ocspd.db"), id: sha256.Sum256([]byte("class1"))}
	h.reopen()
	if err := h.Register(t.Context(), h.id, "class1"); err != nil {
		t.Fatal(err)
	}
	return h
}

// reopen is what a restart does; before it, kill -9 is nothing but not calling Close.
func (h *house) reopen() {
	h.t.Helper()
	s, err := Open(h.t.Context(), h.path, slog.New(slog.DiscardHandler))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { s.Close() })
	h.Store = s
}

func (h *house) publish(v View) (Published, error) {
	h.last = v
	h.leaf++
	if v.Base.Name == "" {
		v.Base = pki.File{Name: fmt.Sprintf("class1.%d.base", v.Number)}
	}
	return Published{Base: v.Base, Gen: pki.File{Name: fmt.Sprintf("class1.%d.gen", v.Number)}, Leaf: h.leaf}, nil
}

func serial(n uint64) pki.Serial {
	return serialOf(binary.BigEndian.AppendUint64([]byte{1}, n)) // nine octets, in numeric order
}

func serialOf(b []byte) pki.Serial {
	s, err := pki.SerialFromDER(b)
	if err != nil {
		panic(err)
	}
	return s
}

func revoked(n uint64, r pki.Reason, at time.Time) pki.Entry {
	return pki.Entry{Serial: serial(n), Status: pki.Status{State: pki.Revoked, Reason: r, RevokedAt: at}}
}

func good(n uint64) pki.Entry {
	return pki.Entry{Serial: serial(n), Status: pki.Status{State: pki.Good}}
}

func snapshot(kind pki.SourceKind, entries ...pki.Entry) *pki.Snapshot {
	return &pki.Snapshot{Kind: kind, Count: int64(len(entries)), Digest: sha256.Sum256(fmt.Append(nil, entries)), Entries: func(yield func(pki.Entry) error) error {
		for _, e := range entries {
			if err := yield(e); err != nil {
				return err
			}
		}
		return nil
	}}
}

// crl is number n of the day n.
func crl(n int, entries ...pki.Entry) *pki.Snapshot {
	s := snapshot(pki.CRL, entries...)
	s.Number, s.ThisUpdate, s.NextUpdate = fmt.Sprintf("%x", n), day(n), day(n+7)
	s.Digest = sha256.Sum256(fmt.Append(nil, n, entries))
	return s
}

func delta(base, n int, entries ...pki.Entry) *pki.Snapshot {
	s := crl(n, entries...)
	s.BaseNumber = fmt.Sprintf("%x", base)
	s.Digest = sha256.Sum256(fmt.Append(nil, "delta", n, entries))
	return s
}

func index(entries ...pki.Entry) *pki.Snapshot { return snapshot(pki.Index, entries...) }

func (h *house) origin(override bool) Origin {
	return Origin{Location: "source", At: day(100), Validity: 24 * time.Hour, Override: override}
}

// install is the life of a source, as keeper leads it. The base that is written on the way must be what Merged yields afterwards.
func (h *house) install(s *pki.Snapshot, override bool) (Report, error) {
	h.t.Helper()
	var base []pki.Packed
	st, err := h.Stage(h.t.Context(), h.id, h.origin(override), s, func(_ uint64, walk func(func(*pki.Packed) error) error) error {
		return walk(func(p *pki.Packed) error { base = append(base, *p); return nil })
	})
	if err != nil {
		return Report{}, err
	}
	if _, err := h.Flip(h.t.Context(), st, h.publish); err != nil {
		h.t.Fatal(err)
	}
	var merged []pki.Packed
	if _, err := h.Merged(h.t.Context(), h.id, nil, func(p *pki.Packed) error { merged = append(merged, *p); return nil }); err != nil {
		h.t.Fatal(err)
	}
	if !slices.Equal(base, merged) {
		h.t.Errorf("a base of %d records was written where Merged yields %d others", len(base), len(merged))
	}
	return st.Report, nil
}

// noBase is for tests that look at the database alone.
func noBase(_ uint64, walk func(func(*pki.Packed) error) error) error {
	return walk(func(*pki.Packed) error { return nil })
}

func (h *house) must(s *pki.Snapshot) Report {
	h.t.Helper()
	r, err := h.install(s, false)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// status is what a generation made now would say of a serial: the base, and the rulings over it.
func (h *house) status(n uint64) pki.Record {
	h.t.Helper()
	var r pki.Record
	if _, err := h.Merged(h.t.Context(), h.id, nil, func(p *pki.Packed) error {
		if p.Serial() == serial(n) {
			r = p.Record()
		}
		return nil
	}); err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.Touch(h.t.Context(), h.id, "", day(100), time.Time{}, time.Time{}, h.publish); err != nil {
		h.t.Fatal(err)
	}
	for _, ruling := range h.last.Rulings {
		if ruling.Serial == serial(n) {
			r = ruling.Record
		}
	}
	return r
}

func (h *house) want(n uint64, state pki.State, reason pki.Reason) {
	h.t.Helper()
	if got := h.status(n).Status; got.State != state || got.Reason != reason {
		h.t.Errorf("serial %d is %s (%s), not %s (%s)", n, got.State, got.Reason, state, reason)
	}
}

func TestGuards(t *testing.T) {
	r1 := revoked(1, pki.KeyCompromise, day(0))
	big := crl(10, r1)
	big.Number = "7" + strings.Repeat("f", 39) // 2^159-1
	bigger := crl(11, r1)
	bigger.Number = "7" + strings.Repeat("f", 38) + "e"
	early := crl(11, r1)
	early.ThisUpdate = day(9)
	bare, bareLater, bareOther := crl(10, r1), crl(11, r1), crl(10, r1, revoked(2, 0, day(0)))
	bare.Number, bareLater.Number, bareOther.Number = "", "", ""
	scoped := crl(11, r1)
	scoped.Scope = "3000"
	otherScoped := crl(10, r1)
	otherScoped.Scope = "3001"
	remove := crl(11, revoked(1, pki.RemoveFromCRL, day(0)))
	miscounted := crl(11, r1)
	miscounted.Count = 2
	unsaid := pki.Entry{Serial: serial(1), Status: pki.Status{State: pki.Unknown}}
	for _, c := range []struct {
		name      string
		have      *pki.Snapshot
		then      *pki.Snapshot
		want      error
		text      string
		forceable bool
	}{
		{"CRL-04 lower number", crl(10, r1), crl(9, r1), ErrOlder, "number 0x9 is older than 0xa installed; fetch the newest CRL from the CA", true},
		{"CRL-04 same number, other content", crl(10, r1), crl(10), ErrRefused, "number 0xa is installed with other content", true},
		{"CRL-04 higher number, earlier thisUpdate", crl(10, r1), early, ErrOlder, "thisUpdate 2026-03-10T12:00:00Z is older than 2026-03-11T12:00:00Z installed", true},
		{"same CRL", crl(10, r1), crl(10, r1), ErrUnchanged, "unchanged", false},
		{"next CRL", crl(10, r1), crl(11, r1), nil, "", true},
		{"CRL-05 twenty octets", big, bigger, ErrOlder, "is older than 0x7fff", true},
		{"no numbers, same", bare, bare, ErrUnchanged, "", false},
		{"no numbers, later", bare, bareLater, nil, "", true},
		{"no numbers, same time", bare, bareOther, ErrRefused, "thisUpdate 2026-03-11T12:00:00Z is installed with other content", true},
		{"CRL-07 another scope", otherScoped, scoped, ErrRefused, "covers another part", true},
		{"CRL-10 delta with nothing installed", nil, delta(10, 12, r1), ErrRefused, "no complete CRL is installed", false},
		{"CRL-10 base newer than installed", crl(9, r1), delta(10, 12), ErrRefused, "newer than 0x9 installed", false},
		{"CRL-10 base as installed", crl(10, r1), delta(10, 12), nil, "", true},
		{"CRL-10 base older than installed", crl(11, r1), delta(10, 12), nil, "", true},
		{"CRL-10 delta no newer", crl(12, r1), delta(10, 12), ErrOlder, "brings nothing", false},
		{"CRL-11 removeFromCRL in a complete CRL", crl(10, r1), remove, ErrRefused, "removeFromCRL", false},
		{"IDX-04 revoked becomes valid", index(r1), index(good(1)), ErrRefused, "1 serials that were revoked are good in it (such as 010000000000000001)", true},
		{"IDX-04 hold becomes valid", index(revoked(1, pki.CertificateHold, day(0))), index(good(1)), nil, "", true},
		{"index unchanged", index(r1), index(r1), ErrUnchanged, "", false},
		{"count", crl(10, r1), miscounted, errAny, "1 entries were read where 2 were counted", false},
		{"no status", index(r1), index(unsaid), ErrRefused, "state 0", false},
		{"good on a CRL", crl(10), crl(11, good(1)), ErrRefused, "good on a CRL", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHouse(t)
			if c.have != nil {
				h.must(c.have)
			}
			before := h.last
			_, err := h.install(c.then, false)
			if c.want == nil && err != nil || c.want != nil && err == nil || c.want != nil && c.want != errAny && !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if err != nil {
				if !strings.Contains(err.Error(), c.text) {
					t.Errorf("error %q lacks %q", err, c.text)
				}
				if diff := cmp.Diff(before, h.last, cmp.AllowUnexported(pki.Serial{})); diff != "" {
					t.Errorf("refused, yet published: %s", diff)
				}
				if ls, _ := h.Lineages(t.Context(), h.id); c.have != nil && ls[0].Digest != c.have.Digest {
					t.Error("refused, yet installed")
				}
			}
			if _, err := h.install(c.then, true); err == nil && c.want != nil && !c.forceable {
				t.Error("override did what nothing may")
			} else if err != nil && c.want != nil && c.forceable {
				t.Errorf("override: %v", err)
			}
		})
	}
}

var errAny = errors.New("any")

// OCSP-CRL-12, OCSP-REV-07: what may undo or change a revocation, and what may not.
func TestCRLOverCRL(t *testing.T) {
	h := newHouse(t)
	h.must(crl(1, revoked(1, pki.KeyCompromise, day(0)), revoked(2, pki.CertificateHold, day(0)), revoked(3, pki.CertificateHold, day(0)), revoked(4, 0, day(0))))
	r := h.must(crl(2, revoked(3, pki.Superseded, day(-1)), revoked(4, pki.KeyCompromise, day(-2)), revoked(5, 0, day(1))))
	want := Report{Before: 4, After: 4, Added: 1, Changed: 2, Released: 1, Vanished: 1, Carried: 1,
		Sample: []pki.Serial{serial(1)}, Serials: []pki.Serial{serial(1), serial(2), serial(3), serial(4), serial(5)}}
	if diff := cmp.Diff(want, r, cmp.AllowUnexported(pki.Serial{})); diff != "" {
		t.Error(diff)
	}
	h.want(1, pki.Revoked, pki.KeyCompromise)
	h.want(2, pki.Unknown, 0)
	h.want(3, pki.Revoked, pki.Superseded)
	h.want(4, pki.Revoked, pki.KeyCompromise)
	events, err := h.History(t.Context(), h.id, serial(4))
	if err != nil {
		t.Fatal(err)
	}
	if len(events) != 1 || events[0].From != revoked(4, 0, day(0)).Status || events[0].To != revoked(4, pki.KeyCompromise, day(-2)).Status ||
		events[0].Generation != 2 || events[0].Number != "2" {
		t.Errorf("history of 4: %+v", events)
	}
	// It stays with the next ones too, without a new alarm, until a CRL names it again.
	if r := h.must(crl(3, revoked(3, pki.Superseded, day(-1)))); r.Vanished != 2 || r.Carried != 3 {
		t.Errorf("vanished %d, carried %d", r.Vanished, r.Carried)
	}
	if r := h.must(crl(4, revoked(1, pki.KeyCompromise, day(0)))); r.Vanished != 1 || r.Carried != 3 {
		t.Errorf("vanished %d, carried %d", r.Vanished, r.Carried)
	}
	h.want(5, pki.Revoked, 0)
}

// OCSP-CRL-11: removeFromCRL ends holds and nothing else.
func TestDelta(t *testing.T) {
	h := newHouse(t)
	h.must(crl(10, revoked(1, pki.CertificateHold, day(0)), revoked(2, pki.KeyCompromise, day(0)), revoked(3, 0, day(0)), revoked(6, pki.CertificateHold, day(0))))
	r := h.must(delta(10, 12, revoked(1, pki.RemoveFromCRL, day(0)), revoked(2, pki.RemoveFromCRL, day(0)), revoked(9, pki.RemoveFromCRL, day(0)),
		revoked(4, 0, day(11)), revoked(6, pki.KeyCompromise, day(11))))
	if r.Released != 1 || r.Unremoved != 1 || r.Added != 1 || r.Changed != 1 || r.Vanished != 0 || r.Shrunk {
		t.Errorf("report %+v", r)
	}
	h.want(1, pki.Unknown, 0)
	h.want(2, pki.Revoked, pki.KeyCompromise)
	h.want(3, pki.Revoked, 0)
	h.want(4, pki.Revoked, 0)
	h.want(6, pki.Revoked, pki.KeyCompromise)
	ls, err := h.Lineages(t.Context(), h.id)
	if err != nil || ls[0].Number != "c" || !ls[0].ThisUpdate.Equal(day(12)) || !ls[0].NextUpdate.Equal(day(19)) {
		t.Errorf("lineage %+v, %v", ls, err)
	}
	// The complete CRL that is issued with a delta has its number.
	h.must(crl(12, revoked(2, pki.KeyCompromise, day(0)), revoked(3, 0, day(0)), revoked(4, 0, day(11)), revoked(6, pki.KeyCompromise, day(11))))
}

// OCSP-CRL-18: revoked wins over good, then the earliest date, then a permanent reason.
func TestDuplicates(t *testing.T) {
	entries := []pki.Entry{
		good(1), revoked(1, 0, day(5)),
		revoked(2, pki.Superseded, day(3)), revoked(2, pki.KeyCompromise, day(2)),
		revoked(3, pki.CertificateHold, day(2)), revoked(3, pki.KeyCompromise, day(2)), revoked(3, pki.CertificateHold, day(2)),
	}
	for range 20 {
		rand.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
		h := newHouse(t)
		if r := h.must(index(entries...)); r.Duplicates != 4 || r.After != 3 {
			t.Fatalf("duplicates %d of %d", r.Duplicates, r.After)
		}
		h.want(1, pki.Revoked, 0)
		h.want(2, pki.Revoked, pki.KeyCompromise)
		h.want(3, pki.Revoked, pki.KeyCompromise)
		h.Close()
	}
}

// OCSP-CRL-21: an empty CRL is a CRL; a shrink is an alarm and no reason to stop.
func TestEmptyAndShrunk(t *testing.T) {
	h := newHouse(t)
	if r := h.must(crl(1)); !r.First || r.After != 0 {
		t.Errorf("report %+v", r)
	}
	h.want(1, pki.Unknown, 0)
	h.must(crl(2, revoked(1, 0, day(0)), revoked(2, 0, day(0)), revoked(3, pki.CertificateHold, day(0))))
	if r := h.must(crl(3)); !r.Shrunk || r.Vanished != 2 || r.Released != 1 || len(r.Warnings()) != 2 {
		t.Errorf("report %+v", r)
	}
	h.want(1, pki.Revoked, 0)
}

func TestSeveralSources(t *testing.T) {
	h := newHouse(t)
	h.must(crl(10, revoked(1, pki.KeyCompromise, day(1)), revoked(2, 0, day(5)), revoked(4, 0, day(1)), revoked(7, 0, day(1))))
	h.must(index(good(1), revoked(2, pki.Superseded, day(3)), revoked(3, 0, day(2)), good(5), revoked(6, 0, day(20)), revoked(7, 0, day(1))))
	h.want(1, pki.Revoked, pki.KeyCompromise) // revoked wins
	h.want(2, pki.Revoked, 0)                 // the CRL's word before the index's
	h.want(3, pki.Revoked, 0)
	h.want(4, pki.Revoked, 0)
	h.want(5, pki.Good, 0)
	if r := h.status(5); r.Source != 1 {
		t.Errorf("governed by source %d", r.Source)
	}
	// 1: good in the index; 3: the CRL should have it; 4: the index has never heard of it. 6 is newer than the CRL.
	d, err := h.Disagreements(t.Context(), h.id)
	if err != nil {
		t.Fatal(err)
	}
	want := Tally{Records: 7, Disagreements: 3, Sample: []pki.Serial{serial(1), serial(3), serial(4)}}
	if diff := cmp.Diff(want, d, cmp.AllowUnexported(pki.Serial{})); diff != "" {
		t.Error(diff)
	}
	st, err := h.StageRemoval(t.Context(), h.id, IndexLineage("source"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Flip(t.Context(), st, h.publish); err != nil {
		t.Fatal(err)
	}
	h.want(5, pki.Unknown, 0)
	h.want(1, pki.Revoked, pki.KeyCompromise)
	if _, err := h.StageRemoval(t.Context(), h.id, IndexLineage("source")); !errors.Is(err, ErrUnchanged) {
		t.Errorf("removed twice: %v", err)
	}
}

func TestTouch(t *testing.T) {
	h := newHouse(t)
	h.must(index(good(1)))
	if s := h.last.Sources()[0]; !s.ThisUpdate.Equal(day(100)) || !s.NextUpdate.Equal(day(101)) {
		t.Errorf("source %+v", s)
	}
	if _, err := h.Touch(t.Context(), h.id, IndexLineage("source"), day(102), day(102), day(103), h.publish); err != nil {
		t.Fatal(err)
	}
	if s := h.last.Sources()[0]; !s.ThisUpdate.Equal(day(102)) || !s.NextUpdate.Equal(day(103)) || h.last.Number != 2 {
		t.Errorf("generation %d, source %+v", h.last.Number, s)
	}
	h.must(crl(1))
	if _, err := h.Touch(t.Context(), h.id, CRLLineage, day(102), day(102), day(103), h.publish); err == nil {
		t.Error("a CRL's times were moved")
	}
}

func (h *house) revoke(n uint64, reason pki.Reason, date time.Time) error {
	_, err := h.Revoke(h.t.Context(), h.id, HandEntry{Serial: serial(n), Reason: reason, RevokedAt: date, At: day(50), Actor: "admin"}, h.publish)
	return err
}

func (h *house) unrevoke(n uint64, mistake string) error {
	_, err := h.Unrevoke(h.t.Context(), h.id, Unrevocation{Serial: serial(n), Mistake: mistake, At: day(60), Actor: "admin"}, h.publish)
	return err
}

func check(t *testing.T, err, want error, text string) {
	t.Helper()
	if !errors.Is(err, want) || want == nil && err != nil {
		t.Errorf("got %v, want %v", err, want)
	}
	if err != nil && !strings.Contains(err.Error(), text) {
		t.Errorf("error %q lacks %q", err, text)
	}
}

func TestHand(t *testing.T) {
	h := newHouse(t)
	h.must(crl(1, revoked(1, pki.Superseded, day(0)), revoked(2, pki.CertificateHold, day(0))))

	check(t, h.revoke(5, pki.KeyCompromise, time.Time{}), nil, "")
	h.want(5, pki.Revoked, pki.KeyCompromise)
	if r := h.status(5); r.Source != pki.HandSource || !r.At.Equal(day(50)) || !r.Status.RevokedAt.Equal(day(50)) {
		t.Errorf("record %+v", r)
	}
	check(t, h.revoke(5, pki.KeyCompromise, time.Time{}), ErrUnchanged, "")
	check(t, h.revoke(5, pki.KeyCompromise, day(50)), ErrUnchanged, "")
	check(t, h.revoke(5, pki.CertificateHold, time.Time{}), ErrRefused, "cannot become a hold")
	check(t, h.revoke(5, pki.Superseded, day(40)), nil, "") // OCSP-REV-07
	if r := h.status(5); !r.Status.RevokedAt.Equal(day(40)) {
		t.Errorf("record %+v", r)
	}
	if err := h.revoke(5, pki.RemoveFromCRL, time.Time{}); err == nil {
		t.Error("revoked for removeFromCRL")
	}

	// A CRL that names the serial overrides date and reason; the entry outlives later CRLs.
	h.must(crl(2, revoked(1, pki.Superseded, day(0)), revoked(5, pki.CertificateHold, day(1))))
	h.want(5, pki.Revoked, pki.CertificateHold)
	check(t, h.unrevoke(5, "never was"), ErrRefused, "is revoked by crl source")
	h.must(crl(3, revoked(1, pki.Superseded, day(0))))
	h.want(5, pki.Revoked, pki.Superseded)

	check(t, h.unrevoke(5, ""), ErrRefused, "--mistake NOTE")
	check(t, h.unrevoke(5, "wrong card"), nil, "")
	h.want(5, pki.Unknown, 0)
	check(t, h.unrevoke(5, "wrong card"), ErrUnchanged, "")
	check(t, h.unrevoke(1, ""), ErrRefused, "only the CA can undo that")

	check(t, h.revoke(6, pki.CertificateHold, time.Time{}), nil, "")
	check(t, h.revoke(6, pki.KeyCompromise, time.Time{}), nil, "") // the hold becomes final
	check(t, h.unrevoke(6, ""), ErrRefused, "--mistake NOTE")
	check(t, h.revoke(7, pki.CertificateHold, time.Time{}), nil, "")
	check(t, h.unrevoke(7, ""), nil, "")
	h.want(7, pki.Unknown, 0)

	events, err := h.History(t.Context(), h.id, serial(5))
	if err != nil {
		t.Fatal(err)
	}
	var notes []string
	for _, e := range events {
		notes = append(notes, fmt.Sprintf("%s %s/%s>%s/%s %s", e.Kind, e.From.State, e.From.Reason, e.To.State, e.To.Reason, e.Note))
	}
	want := []string{
		"hand unknown/unspecified>revoked/keyCompromise ", "hand revoked/keyCompromise>revoked/superseded ",
		"crl unknown/unspecified>revoked/certificateHold ", "crl revoked/certificateHold>unknown/unspecified ",
		"hand revoked/superseded>unknown/unspecified wrong card",
	}
	if diff := cmp.Diff(want, notes); diff != "" {
		t.Error(diff)
	}
}

// What a source no longer says is undone by name, once, and not for ever.
func TestUnrevokeCarried(t *testing.T) {
	h := newHouse(t)
	h.must(index(good(1), good(2)))
	h.must(crl(1, revoked(1, pki.KeyCompromise, day(0)), revoked(2, 0, day(0))))
	h.must(crl(2, revoked(2, 0, day(0))))
	h.want(1, pki.Revoked, pki.KeyCompromise)
	check(t, h.unrevoke(1, ""), ErrRefused, "--mistake NOTE")
	check(t, h.unrevoke(1, "CA confirmed by phone"), nil, "")
	h.want(1, pki.Good, 0) // the index says so
	check(t, h.unrevoke(1, "again"), ErrUnchanged, "")
	h.must(delta(2, 3))
	h.want(1, pki.Good, 0)
	h.must(crl(4, revoked(2, 0, day(0))))
	h.want(1, pki.Good, 0)
	if len(h.last.Rulings) != 0 {
		t.Errorf("still ruled: %+v", h.last.Rulings)
	}
	h.must(crl(5, revoked(1, pki.KeyCompromise, day(4)), revoked(2, 0, day(0))))
	h.must(crl(6, revoked(2, 0, day(0))))
	h.want(1, pki.Revoked, pki.KeyCompromise)
}

// OCSP-CRL-19: a process that ends at any point before the flip leaves what was; after it, what was acknowledged.
func TestKilledAtAnyPoint(t *testing.T) {
	h := newHouse(t)
	h.must(crl(1, revoked(1, 0, day(0))))
	check(t, h.revoke(9, 0, time.Time{}), nil, "")
	many := make([]pki.Entry, 30_000)
	for n := range many {
		many[n] = revoked(uint64(n+1), 0, day(1))
	}
	st, err := h.Stage(t.Context(), h.id, h.origin(false), crl(2, many...), noBase)
	if err != nil {
		t.Fatal(err)
	}
	killed := errors.New("killed")
	if _, err := h.Flip(t.Context(), st, func(v View) (Published, error) { return Published{}, killed }); !errors.Is(err, killed) {
		t.Fatal(err)
	}
	h.reopen() // the other one is still open, as if it had been killed with its locks gone
	h.want(1, pki.Revoked, 0)
	h.want(30_000, pki.Unknown, 0)
	h.want(9, pki.Revoked, 0)
	if err := h.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	count := func(q string) (n int) {
		if err := h.r.QueryRow(q).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(`SELECT count(*) FROM block`); n != 1 {
		t.Errorf("%d blocks stay", n)
	}
	if n := count(`SELECT count(*) FROM import`) + count(`SELECT count(*) FROM history WHERE import IS NOT NULL`); n != 1 {
		t.Errorf("%d rows stay of what was aborted", n-1)
	}
	h.must(crl(2, many...))
	h.Store.Close()
	h.reopen()
	h.want(30_000, pki.Revoked, 0)
	if problems, err := h.Check(t.Context()); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
	is, err := h.Issuers(t.Context())
	if err != nil || is[0].Leaf < 1 || is[0].Gen.Name != fmt.Sprintf("class1.%d.gen", is[0].Number) {
		t.Errorf("%+v %v", is, err)
	}
}

// Any order, any number of runs, serials that differ in their first octets or only in their last: what comes out is what a map would say. The
// write-ahead log stays small meanwhile.
func TestStageSorts(t *testing.T) {
	const n = 2*runRecords + 12_345
	for name, nth := range map[string]func(uint64) pki.Serial{
		"last":  serial,
		"first": func(k uint64) pki.Serial { return serialOf(binary.BigEndian.AppendUint64(nil, k<<40|1<<62)) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			order := rand.Perm(n)
			s := crl(1)
			s.Count = int64(n)
			entry := func(k int) pki.Entry {
				e := revoked(0, pki.Reason(k%6), day(k%50))
				e.Serial = nth(uint64(k))
				return e
			}
			s.Entries = func(yield func(pki.Entry) error) error {
				for _, k := range order {
					if err := yield(entry(k)); err != nil {
						return err
					}
				}
				return nil
			}
			h.must(s)
			k := 0
			tally, err := h.Merged(t.Context(), h.id, nil, func(p *pki.Packed) error {
				if e := entry(k); *p != pki.Pack(e.Serial, e.Status, 0) {
					return fmt.Errorf("record %d is %x", k, *p)
				}
				k++
				return nil
			})
			if err != nil || k != n || tally.Records != int64(n) {
				t.Fatal(k, err)
			}
			left, err := os.ReadDir(filepath.Dir(h.path))
			if err != nil || slices.ContainsFunc(left, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), ".") }) {
				t.Errorf("left aside: %v %v", left, err)
			}
			// It never shrinks by itself: this is the most that it was.
			all, _ := os.Stat(h.path)
			if log, err := os.Stat(h.path + "-wal"); err != nil || log.Size() > all.Size()*9/10 || log.Size() > (restartAfter+2)*writeBlocks*20_000 {
				t.Errorf("the write-ahead log came to %d octets, the database to %d, %v", log.Size(), all.Size(), err)
			}
		})
	}
}

// A serial of an import is unknown only where the block that covers it says so; damage is an error.
func TestDamageIsNeverNoRow(t *testing.T) {
	entries := make([]pki.Entry, 1000)
	for n := range entries {
		entries[n] = revoked(uint64(2*n), 0, day(0))
	}
	for name, harm := range map[string]string{
		"a bit of a serial": `UPDATE block SET records = cast(substr(records, 1, 8) || x'ff' || substr(records, 10) AS BLOB) WHERE id = 3`,
		"a block gone":      `DELETE FROM block WHERE id = 3`,
		"the first gone":    `DELETE FROM block WHERE id = 1`,
		"the last gone":     `DELETE FROM block WHERE id = (SELECT max(id) FROM block)`,
		"its range":         `UPDATE block SET hi = x'0100000000000000ff' WHERE id = 3`,
		"cut short":         `UPDATE block SET records = substr(records, 1, 400) WHERE id = 3`,
		"another import's":  `UPDATE import SET id = 77`,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.must(crl(1, entries...))
			if _, err := h.w.Exec(`PRAGMA foreign_keys = 0`); err != nil {
				t.Fatal(err)
			}
			if _, err := h.w.Exec(harm); err != nil {
				t.Fatal(err)
			}
			if name == "another import's" {
				if _, err := h.w.Exec(`UPDATE lineage SET import = 77; UPDATE block SET import = 77`); err != nil {
					t.Fatal(err)
				}
			}
			ls, err := h.Lineages(t.Context(), h.id)
			if err != nil {
				t.Fatal(err)
			}
			var failed int
			for n := range uint64(2000) {
				p, err := h.find(t.Context(), ls[0].Import, serial(n))
				switch {
				case errors.Is(err, ErrDamaged):
					failed++
				case err != nil:
					t.Fatal(err)
				case (p != nil) != (n%2 == 0):
					t.Fatalf("serial %d: %v", n, p)
				}
			}
			if failed == 0 {
				t.Error("the damage was not noticed serial by serial")
			}
			if _, err := h.Merged(t.Context(), h.id, nil, func(*pki.Packed) error { return nil }); !errors.Is(err, ErrDamaged) {
				t.Errorf("Merged: %v", err)
			}
			if problems, err := h.Check(t.Context()); err != nil || len(problems) == 0 {
				t.Errorf("Check: %v %v", problems, err)
			}
		})
	}
}

// Random flips in the file itself: every status is right or an error, before and after SQLite sees the page.
func TestFlippedFile(t *testing.T) {
	h := newHouse(t)
	entries := make([]pki.Entry, 2000)
	for n := range entries {
		entries[n] = revoked(uint64(2*n), 0, day(0))
	}
	h.must(crl(1, entries...))
	h.Store.Close()
	whole, err := os.ReadFile(h.path)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	wrong, refused := 0, 0
	for range 300 {
		b := slices.Clone(whole)
		b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		path := filepath.Join(t.TempDir(), "flipped.db")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		wrong += func() int {
			s, err := Open(t.Context(), path, slog.New(slog.DiscardHandler))
			if err != nil {
				refused++
				return 0
			}
			defer s.Close()
			next := uint64(0)
			tally, err := s.Merged(t.Context(), h.id, nil, func(p *pki.Packed) error {
				if want := pki.Pack(serial(next), entries[0].Status, 0); *p != want {
					t.Errorf("record %d is %x", next/2, *p)
				}
				next += 2
				return nil
			})
			ls, err2 := s.Lineages(t.Context(), h.id)
			switch {
			case err != nil || err2 != nil:
				refused++
			case len(ls) == 0: // shown as no source at all, which no issuer is answered from
				refused++
			case tally.Records != int64(len(entries)):
				return 1
			}
			return 0
		}()
	}
	if wrong > 0 || refused == 0 {
		t.Errorf("%d wrong, %d refused", wrong, refused)
	}
}

// While a large import is staged, a revocation of another issuer waits for one short transaction at most.
func TestOthersDoNotWait(t *testing.T) {
	h := newHouse(t)
	other := pki.IssuerID(sha256.Sum256([]byte("class3")))
	if err := h.Register(t.Context(), other, "class3"); err != nil {
		t.Fatal(err)
	}
	const n = 300_000
	s := crl(1)
	s.Count = n
	s.Entries = func(yield func(pki.Entry) error) error {
		for k := range uint64(n) {
			if err := yield(revoked(k, 0, day(0))); err != nil {
				return err
			}
		}
		return nil
	}
	var staged sync.WaitGroup
	started, done := make(chan struct{}), make(chan struct{})
	var once sync.Once
	staged.Go(func() {
		defer close(done)
		st, err := h.Stage(t.Context(), h.id, h.origin(false), s, func(_ uint64, walk func(func(*pki.Packed) error) error) error {
			return walk(func(*pki.Packed) error { once.Do(func() { close(started) }); return nil })
		})
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := h.Flip(t.Context(), st, h.publish); err != nil {
			t.Error(err)
		}
	})
	<-started
	meanwhile := 0
	for k := uint64(0); ; k++ {
		select {
		case <-done:
			staged.Wait()
			if meanwhile < 5 {
				t.Errorf("only %d revocations came through meanwhile", meanwhile)
			}
			return
		default:
		}
		began := time.Now()
		_, err := h.Revoke(t.Context(), other, HandEntry{Serial: serial(k), At: day(1)}, func(v View) (Published, error) {
			return Published{Base: pki.File{Name: "class3.1.base"}, Gen: pki.File{Name: "class3.1.gen"}}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited > time.Second {
			t.Errorf("waited %v", waited)
		}
		meanwhile++
	}
}

// A hand revocation during an import of its own issuer is in the generation that the import's flip makes.
func TestRevokeWhileStaged(t *testing.T) {
	h := newHouse(t)
	st, err := h.Stage(t.Context(), h.id, h.origin(false), crl(1, revoked(1, 0, day(0))), noBase)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := h.Stage(ctx, h.id, h.origin(false), crl(2), noBase); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second import did not wait: %v", err)
	}
	check(t, h.revoke(7, 0, time.Time{}), nil, "")
	if _, err := h.Flip(t.Context(), st, h.publish); err != nil {
		t.Fatal(err)
	}
	if h.last.Number != 2 || len(h.last.Rulings) != 1 || st.Number != 1 {
		t.Errorf("%+v", h.last)
	}
	if _, err := h.Flip(t.Context(), st, h.publish); err == nil {
		t.Error("flipped twice")
	}
	h.Abort(st) // does nothing
	h.want(1, pki.Revoked, 0)
	h.want(7, pki.Revoked, 0)
}

func TestSchema(t *testing.T) {
	h := newHouse(t)
	h.must(crl(1, revoked(1, 0, day(0))))
	if st, err := os.Stat(h.path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v %v", st.Mode(), err)
	}
	for _, d := range []*sql.DB{h.w, h.r} {
		for _, p := range []pragma{{"page_size", "16384"}, {"journal_mode", "wal"}, {"synchronous", "2"}, {"trusted_schema", "0"}, {"cell_size_check", "1"}, {"mmap_size", "0"}, {"foreign_keys", "1"}} {
			var got string
			if err := d.QueryRow("PRAGMA " + p.name).Scan(&got); err != nil || got != p.value {
				t.Errorf("%s is %s %v", p.name, got, err)
			}
		}
	}
	h.Store.Close()
	log := slog.New(slog.DiscardHandler)

	// Forward, after a copy; never back.
	second := append(slices.Clone(migrations), `CREATE TABLE later (x INTEGER) STRICT`)
	s, err := open(t.Context(), h.path, log, second)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := CheckFile(t.Context(), h.path+".schema-3"); err != nil {
		t.Error(err)
	}
	_, err = Open(t.Context(), h.path, log)
	check(t, err, ErrNewer, "schema 4 is newer than this ocspd knows (3); install the newer ocspd or restore a backup")
	check(t, CheckFile(t.Context(), h.path), ErrNewer, "")

	// A migration that fails leaves the schema that was.
	if _, err := open(t.Context(), h.path, log, append(second, `CREATE TABLE more (x INTEGER) STRICT; CREATE TABLE later (x)`)); err == nil {
		t.Error("a failed migration was taken")
	}
	if s, err := open(t.Context(), h.path, log, second); err != nil {
		t.Error(err)
	} else {
		s.Close()
	}

	other := filepath.Join(t.TempDir(), "other.db")
	if out, err := exec.Command("sqlite3", other, "CREATE TABLE t (x)").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	_, err = Open(t.Context(), other, log)
	check(t, err, errNotOurs, "another program's database")
	if err := os.WriteFile(other, []byte("no database at all, and long enough to be read as one"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), other, log)
	check(t, err, ErrDamaged, "restore a backup")
}

// What is in force besides blocks is missed when a row of it is gone, or says something else: nothing is answered or published without it.
func TestDamagedState(t *testing.T) {
	for _, damage := range []string{
		`DELETE FROM hand`,
		`DELETE FROM hand WHERE serial = (SELECT max(serial) FROM hand)`,
		`UPDATE hand SET serial = x'0102' WHERE serial = (SELECT max(serial) FROM hand)`,
		`UPDATE hand SET issuer = 2`,
		`UPDATE hand SET revoked_at = revoked_at + 1`,
		`DELETE FROM lineage`,
		`UPDATE lineage SET import = 1`,
		`UPDATE lineage SET next_update = next_update + 1`,
		`UPDATE import SET count = count - 1 WHERE state = 'current'`,
		`UPDATE import SET number = '1' WHERE state = 'current'`,
		`INSERT INTO cleared VALUES (1, (SELECT max(serial) FROM hand), 'crl')`,
		`UPDATE issuer SET state = zeroblob(32)`,
	} {
		t.Run(damage, func(t *testing.T) {
			h := newHouse(t)
			h.must(crl(1, revoked(1, 1, day(0))))
			h.must(crl(2, revoked(1, 1, day(0)), revoked(2, 1, day(0))))
			revoke := func(n uint64) error {
				_, err := h.Revoke(t.Context(), h.id, HandEntry{Serial: serial(n), At: day(2), Actor: "a"}, h.publish)
				return err
			}
			for n := range uint64(3) {
				if err := revoke(10 + n); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := h.w.Exec(`PRAGMA foreign_keys = 0`); err != nil {
				t.Fatal(err)
			}
			if r, err := h.w.Exec(damage); err != nil {
				t.Fatal(err)
			} else if n, _ := r.RowsAffected(); n == 0 {
				t.Fatal("nothing is damaged")
			}
			last := h.last.Number
			check(t, revoke(20), ErrDamaged, "restore a backup")
			_, err := h.Explain(t.Context(), h.id, serial(11))
			check(t, err, ErrDamaged, "issuer class1")
			if st, err := h.Stage(t.Context(), h.id, h.origin(false), crl(3, revoked(1, 1, day(0))), noBase); err == nil {
				_, err = h.Flip(t.Context(), st, h.publish)
				check(t, err, ErrDamaged, "restore a backup")
				h.Abort(st)
			}
			if problems, err := h.Check(t.Context()); err != nil || len(problems) == 0 {
				t.Errorf("db check finds nothing: %v", err)
			}
			if h.last.Number != last {
				t.Errorf("generation %d was published", h.last.Number)
			}
		})
	}
}

// A database of schema 2 has no digest of what is in force, and has one from its next change on.
func TestSchema2(t *testing.T) {
	h := newHouse(t)
	h.must(crl(1, revoked(1, 1, day(0))))
	h.Store.Close()
	if out, err := exec.Command("sqlite3", h.path, "ALTER TABLE issuer DROP COLUMN state; PRAGMA user_version = 2").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	h.reopen()
	if err := CheckFile(t.Context(), h.path+".schema-2"); err != nil {
		t.Error(err)
	}
	has := func(want int) {
		if i, err := h.issuer(t.Context(), h.id); err != nil || len(i.state) != want {
			t.Errorf("a digest of %d octets, not %d, %v", len(i.state), want, err)
		}
	}
	has(0)
	h.must(crl(2, revoked(1, 1, day(0)), revoked(2, 1, day(0))))
	has(sha256.Size)
	h.want(1, pki.Revoked, 1)
	h.want(2, pki.Revoked, 1)
}

// A database that was made with smaller pages is used as it is, and becomes no other by it.
func TestSmallPages(t *testing.T) {
	h := &house{t: t, path: filepath.Join(t.TempDir(), "ocspd.db"), id: sha256.Sum256([]byte("class1"))}
	if out, err := exec.Command("sqlite3", h.path, "PRAGMA page_size = 4096; PRAGMA journal_mode = wal; VACUUM").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	h.reopen()
	if err := h.Register(t.Context(), h.id, "class1"); err != nil {
		t.Fatal(err)
	}
	var entries []pki.Entry
	for k := range uint64(3 * blockRecords) {
		entries = append(entries, revoked(k, 1, day(0)))
	}
	h.must(crl(1, entries...))
	h.reopen()
	h.want(2*blockRecords, pki.Revoked, 1)
	var size string
	if err := h.w.QueryRow("PRAGMA page_size").Scan(&size); err != nil || size != "4096" {
		t.Errorf("pages of %s octets, %v", size, err)
	}
	if problems, err := h.Check(t.Context()); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}

func TestBackupAndRestore(t *testing.T) {
	h := newHouse(t)
	h.must(crl(1, revoked(1, 0, day(0))))
	dir := t.TempDir()
	file := filepath.Join(dir, "backup.db")
	if err := h.Backup(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v %v", st.Mode(), err)
	}
	if err := h.Backup(t.Context(), file); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("got %v", err)
	}
	h.must(crl(2, revoked(1, 0, day(0)), revoked(2, 0, day(0))))
	h.Store.Close()

	bad := filepath.Join(dir, "bad.db")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(b), string(serial(1).Bytes()))
	b[at+3] ^= 1
	if err := os.WriteFile(bad, b, 0o600); err != nil {
		t.Fatal(err)
	}
	check(t, Restore(t.Context(), bad, h.path), ErrDamaged, "restore")
	if err := Restore(t.Context(), file, h.path); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	is, err := h.Issuers(t.Context())
	if err != nil || is[0].Gen.Name != "" || is[0].Base.Name != "" {
		t.Errorf("%+v %v", is, err)
	}
	if err := h.Raise(t.Context(), h.id, 41); err != nil {
		t.Fatal(err)
	}
	h.want(1, pki.Revoked, 0)
	h.want(2, pki.Unknown, 0)
	if h.last.Number != 43 {
		t.Errorf("generation %d", h.last.Number)
	}
}

func TestFeeds(t *testing.T) {
	h := newHouse(t)
	f := Feed{Location: "http://crl.example.org/a.crl", Kind: pki.CRL, Attempt: day(2), Success: day(1), ETag: `"x"`, LastModified: "y",
		File: "1 2 3", Digest: sha256.Sum256(nil), Error: "refused", RefusedSince: day(2)}
	for range 2 {
		if err := h.SetFeed(t.Context(), h.id, f); err != nil {
			t.Fatal(err)
		}
		got, err := h.Feeds(t.Context(), h.id)
		if diff := cmp.Diff([]Feed{f}, got); diff != "" || err != nil {
			t.Error(diff, err)
		}
		f = Feed{Location: f.Location, Kind: pki.CRL, Attempt: day(3)}
	}
	err := h.SetFeed(t.Context(), pki.IssuerID{}, f)
	check(t, err, ErrNoIssuer, "no such issuer")
}

func TestExplain(t *testing.T) {
	h := newHouse(t)
	h.must(crl(1, revoked(1, pki.KeyCompromise, day(0))))
	h.must(index(good(1), good(2)))
	check(t, h.revoke(2, 0, day(3)), nil, "")
	check(t, h.revoke(1, 0, day(3)), nil, "")
	for n, want := range map[uint64][]string{1: {"revoked true", "good false", "revoked false"}, 2: {"unknown false", "good false", "revoked true"}, 3: {"unknown false", "unknown false"}} {
		all, err := h.Explain(t.Context(), h.id, serial(n))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range all {
			got = append(got, fmt.Sprint(e.Status.State, " ", e.Governs))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(n, diff)
		}
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	unlock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Lock(dir)
	if want := fmt.Sprintf("process %d has it", os.Getpid()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v", err)
	}
	unlock()
	if unlock, err = Lock(dir); err != nil {
		t.Fatal(err)
	}
	unlock()
}

// A full database says so, changes nothing, and works again when there is room.
func TestFull(t *testing.T) {
	h := newHouse(t)
	h.must(crl(1, revoked(1, 0, day(0))))
	if _, err := h.w.Exec(`PRAGMA max_page_count = 40`); err != nil { // SQLITE_FULL, as a full disk gives it
		t.Fatal(err)
	}
	many := make([]pki.Entry, 20_000)
	for n := range many {
		many[n] = revoked(uint64(n+1), 0, day(1))
	}
	_, err := h.install(crl(2, many...), false)
	check(t, err, ErrFull, "the disk is full; nothing was changed, free some space and try again")
	h.want(1, pki.Revoked, 0)
	h.want(2, pki.Unknown, 0)
	if _, err := h.w.Exec(`PRAGMA max_page_count = 4000000`); err != nil {
		t.Fatal(err)
	}
	if err := h.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.must(crl(2, many...))
	h.want(2, pki.Revoked, 0)
}

// What is written aside does not wait for the disk, and whatever comes after it on the one writing connection does.
func TestChangeAside(t *testing.T) {
	h := newHouse(t)
	synchronous := func(q interface {
		QueryRowContext(context.Context, string, ...any) *sql.Row
	}) (n int) {
		t.Helper()
		if err := q.QueryRowContext(t.Context(), `PRAGMA synchronous`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, want := range []error{nil, errors.New("refused by f")} {
		err := h.changeAside(t.Context(), func(tx *sql.Tx) error {
			if got := synchronous(tx); got != 1 {
				t.Errorf("synchronous is %d aside", got)
			}
			return want
		})
		if !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
		if got := synchronous(h.w); got != 2 {
			t.Errorf("synchronous is %d afterwards", got)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	h.changeAside(cancelled, func(*sql.Tx) error { cancel(); return cancelled.Err() })
	if got := synchronous(h.w); got != 2 {
		t.Errorf("synchronous is %d after a change that was cancelled", got)
	}
}
