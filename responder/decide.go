package responder

import (
	"time"

	"ocspd/pki"
)

// ResponseStatus is the OCSPResponseStatus of RFC 6960 section 4.2.1.
type ResponseStatus uint8

// The statuses; 4 does not exist, and sigRequired, 5, is never given: no signature is ever asked for.
const (
	Successful       ResponseStatus = 0
	MalformedRequest ResponseStatus = 1
	InternalError    ResponseStatus = 2
	TryLater         ResponseStatus = 3
	Unauthorized     ResponseStatus = 6
)

func (s ResponseStatus) String() string {
	switch s {
	case Successful:
		return "successful"
	case MalformedRequest:
		return "malformedRequest"
	case InternalError:
		return "internalError"
	case TryLater:
		return "tryLater"
	case Unauthorized:
		return "unauthorized"
	}
	return "unknown status"
}

// Unissued is what is said of a serial that no source names.
type Unissued string

// What may be said of it. Revoked is the extended definition of RFC 6960 section 2.2; good, where the sources are CRLs, means
// "not on the CRL".
const (
	UnissuedUnknown      Unissued = "unknown"
	UnissuedUnauthorized Unissued = "unauthorized"
	UnissuedRevoked      Unissued = "revoked"
	UnissuedGood         Unissued = "good"
)

// Policy is how an issuer wants to be answered for.
type Policy struct {
	Unissued Unissued
	Validity time.Duration // how long an answer holds at most
	WebPKI   bool          // Validity counts from thisUpdate instead of producedAt, both of its ends included
	NotAfter time.Time     // no answer holds longer: the earlier end of the signer's certificate and the CA's
}

// A View is one generation of an issuer's statuses. Lookup must be safe for many goroutines.
type View struct {
	Number   uint64
	Complete bool // every source that the issuer needs has delivered
	// Gap says of what certificates no CRL in force speaks (RFC 5280 section 5.2.5): of them, not being named proves nothing. "" is none.
	Gap     string
	Sources []pki.Source
	Lookup  func(pki.Serial) (pki.Record, bool)
}

// A Verdict is what an answer will say of one serial, and why.
type Verdict struct {
	Refusal    ResponseStatus // Successful, or the error that the whole answer becomes
	Status     pki.Status
	Extended   bool // revoked because it was never issued (RFC 6960 section 2.2)
	ThisUpdate time.Time
	NextUpdate time.Time
	Source     string // the governing source, "hand" or "" where none names the serial
	Why        string // for people

	governing *pki.Source // nil where none names the serial, or a hand does
}

// never is the revocation time of what was never issued (RFC 6960 section 2.2).
var never = time.Unix(0, 0).UTC()

// Decide says what a generation proves of a serial at a moment. It is the only place where a status is chosen. It is never Good by default:
// without a complete generation, or with one whose evidence has run out, it refuses with TryLater.
func (p *Policy) Decide(v *View, serial pki.Serial, now time.Time) Verdict {
	now = now.UTC().Truncate(time.Second)
	if v == nil || !v.Complete || len(v.Sources) == 0 {
		return Verdict{Refusal: TryLater, Why: "not every source of this issuer has delivered"}
	}
	for _, s := range v.Sources {
		if !now.Before(s.NextUpdate) {
			return Verdict{Refusal: TryLater, Source: s.Name, Why: "the source is stale"}
		}
	}
	record, found := v.Lookup(serial)
	verdict := Verdict{Status: record.Status}
	switch {
	case !found:
		verdict.unissued(p.Unissued)
		verdict.bound(v.Sources)
	case record.Status.State != pki.Good && (record.Status.State != pki.Revoked || record.Status.RevokedAt.IsZero()):
		return Verdict{Refusal: InternalError, Why: "the generation holds a status that is none"}
	case record.Source == pki.HandSource:
		verdict.Source, verdict.Why = "hand", "entered by hand"
		verdict.bound(v.Sources)
		if record.At.After(verdict.ThisUpdate) {
			verdict.ThisUpdate = record.At.UTC().Truncate(time.Second)
		}
	case int(record.Source) >= len(v.Sources):
		return Verdict{Refusal: InternalError, Why: "the generation names a source that it does not have"}
	case record.Status.State == pki.Revoked:
		s := v.Sources[record.Source]
		verdict.Source, verdict.Why, verdict.governing = s.Name, "the source names it as revoked", &s
		verdict.bound(v.Sources[record.Source : record.Source+1])
	default:
		verdict.Source, verdict.Why = v.Sources[record.Source].Name, "the source names it as issued, and none as revoked"
		verdict.bound(v.Sources) // good needs them all
	}
	if v.Gap != "" && (verdict.Extended || verdict.Status.State != pki.Revoked) {
		return Verdict{Refusal: TryLater, Source: verdict.Source, Why: "no CRL in force speaks of " + v.Gap}
	}
	if verdict.Refusal != Successful {
		return verdict
	}
	if verdict.ThisUpdate.After(now) { // a source whose clock is ahead of ours, within what import let pass
		verdict.ThisUpdate = now
	}
	if p.WebPKI { // the interval includes its last second (TLS Baseline Requirements 4.9.9)
		verdict.notLater(verdict.ThisUpdate.Add(p.Validity - time.Second))
	} else {
		verdict.notLater(now.Add(p.Validity))
	}
	verdict.notLater(p.NotAfter)
	if !now.Before(verdict.NextUpdate) {
		return Verdict{Refusal: TryLater, Source: verdict.Source, Why: "the certificate of the signer or of the CA has ended, or validity has"}
	}
	return verdict
}

func (v *Verdict) unissued(u Unissued) {
	v.Why = "no source names it; unissued = \"" + string(u) + "\""
	switch u {
	case UnissuedGood:
		v.Status.State = pki.Good
	case UnissuedRevoked:
		v.Extended = true
		v.Status = pki.Status{State: pki.Revoked, Reason: pki.CertificateHold, RevokedAt: never}
	case UnissuedUnauthorized:
		v.Refusal = Unauthorized
	default:
		v.Status.State = pki.Unknown
	}
}

// bound takes the earliest thisUpdate and nextUpdate of the sources that the answer needs.
func (v *Verdict) bound(needed []pki.Source) {
	v.ThisUpdate, v.NextUpdate = needed[0].ThisUpdate, needed[0].NextUpdate
	for _, s := range needed[1:] {
		if s.ThisUpdate.Before(v.ThisUpdate) {
			v.ThisUpdate = s.ThisUpdate
		}
		v.notLater(s.NextUpdate)
	}
	v.ThisUpdate, v.NextUpdate = v.ThisUpdate.UTC().Truncate(time.Second), v.NextUpdate.UTC().Truncate(time.Second)
}

func (v *Verdict) notLater(t time.Time) {
	if t.Before(v.NextUpdate) {
		v.NextUpdate = t.UTC().Truncate(time.Second)
	}
}
