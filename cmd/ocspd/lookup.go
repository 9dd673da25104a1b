package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"text/tabwriter"
	"time"

	"ocspd/db"
	"ocspd/generation"
	"ocspd/pki"
	"ocspd/responder"
)

// lookupResult is a status as it would be answered at this moment.
type lookupResult struct {
	V          int            `json:"v"`
	Issuer     string         `json:"issuer"`
	Serial     string         `json:"serial"`
	Status     string         `json:"status"` // good, revoked, unknown
	Reason     string         `json:"reason"`
	RevokedAt  *time.Time     `json:"revoked_at"`
	ThisUpdate *time.Time     `json:"this_update"`
	NextUpdate *time.Time     `json:"next_update"`
	Source     string         `json:"source"`
	Generation uint64         `json:"generation"`
	Answer     string         `json:"answer"` // successful, or the error that would be answered
	Why        string         `json:"why"`
	Explain    *lookupExplain `json:"explain,omitempty"`
	History    []historyEvent `json:"history,omitempty"`
}

type lookupExplain struct {
	Key      string           `json:"key"`
	Signer   string           `json:"signer"` // certificate file
	NotAfter time.Time        `json:"not_after"`
	Profile  string           `json:"profile"`
	Unissued string           `json:"unissued"`
	Validity string           `json:"validity"`
	Evidence []lookupEvidence `json:"evidence"`
}

type lookupEvidence struct {
	Source     string    `json:"source"`
	Kind       string    `json:"kind"`
	Number     string    `json:"number,omitempty"`
	Says       string    `json:"says"`
	Governs    bool      `json:"governs"`
	ThisUpdate time.Time `json:"this_update"`
	NextUpdate time.Time `json:"next_update,omitzero"` // what was entered by hand has no end of its own
}

type historyEvent struct {
	Generation uint64    `json:"generation"`
	At         time.Time `json:"at"`
	From       string    `json:"from"`
	To         string    `json:"to"`
	Source     string    `json:"source"`
	Actor      string    `json:"actor,omitempty"`
	Note       string    `json:"note,omitempty"`
}

// handleLookup decides as signer does, by the same function and from the same file, but signs nothing.
func (k *keeper) handleLookup(r *http.Request) (any, error) {
	i, serial, err := k.issuerAndSerial(r)
	if err != nil {
		return nil, fmt.Errorf("lookup: %w", err)
	}
	fail := func(err error) error { return fmt.Errorf("lookup %s %s: %w", i.config.Name, serial, err) }
	policy, err := lookupPolicy(i)
	if err != nil {
		return nil, fail(err)
	}
	out := &lookupResult{V: 1, Issuer: i.config.Name, Serial: serial.String()}
	meta, record, found, err := generation.LookupFile(k.cfg.generations(), i.config.Name, i.issuer.ID, serial)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fail(err)
	}
	out.decide(policy, &meta, record, found)
	if r.URL.Query().Get("explain") != "" {
		if out.Explain, err = k.explain(r.Context(), i, serial, policy); err != nil {
			return nil, fail(err)
		}
	}
	if r.URL.Query().Get("history") != "" {
		if out.History, err = k.history(r.Context(), i, serial); err != nil {
			return nil, fail(err)
		}
	}
	return out, nil
}

func lookupPolicy(i *keptIssuer) (*responder.Policy, error) {
	p := i.config.policy()
	p.NotAfter = i.issuer.Certificate.NotAfter
	if i.config.Signer != "" {
		cert, err := loadSignerCertificate(i.config)
		if err != nil {
			return nil, err
		}
		if cert.NotAfter.Before(p.NotAfter) {
			p.NotAfter = cert.NotAfter
		}
	}
	return &p, nil
}

func (l *lookupResult) decide(policy *responder.Policy, meta *generation.Meta, record pki.Record, found bool) {
	view := &responder.View{Number: meta.Number, Complete: meta.Complete, Gap: meta.Gap, Sources: meta.Sources,
		Lookup: func(pki.Serial) (pki.Record, bool) { return record, found }}
	v := policy.Decide(view, pki.Serial{}, time.Now())
	l.Generation, l.Source, l.Answer, l.Why = meta.Number, v.Source, v.Refusal.String(), v.Why
	status := v.Status
	switch {
	case v.Refusal == responder.Successful:
		l.ThisUpdate, l.NextUpdate = &v.ThisUpdate, &v.NextUpdate
	case record.Status.State == pki.Revoked: // all that is told where nothing is answered: a good one may long have been revoked
		status = record.Status
	default:
		status = pki.Status{}
	}
	l.Status = status.State.String()
	if status.State == pki.Revoked {
		at := status.RevokedAt.UTC()
		l.RevokedAt, l.Reason = &at, status.Reason.String()
	}
}

func (k *keeper) explain(ctx context.Context, i *keptIssuer, serial pki.Serial, p *responder.Policy) (*lookupExplain, error) {
	evidence, err := k.store.Explain(ctx, i.issuer.ID, serial)
	if err != nil {
		return nil, err
	}
	e := &lookupExplain{Key: i.config.Key, Signer: signerFile(i.config), NotAfter: p.NotAfter.UTC(), Profile: i.config.Profile,
		Unissued: i.config.Unissued, Validity: i.config.Validity.String(), Evidence: []lookupEvidence{}}
	for _, x := range evidence {
		e.Evidence = append(e.Evidence, evidenceOf(x))
	}
	return e, nil
}

func statusText(s pki.Status) string {
	switch s.State {
	case pki.Revoked:
		return fmt.Sprintf("revoked %s, %s", s.RevokedAt.UTC().Format(time.RFC3339), s.Reason)
	case pki.Good:
		return "good"
	}
	return "nothing"
}

func (k *keeper) history(ctx context.Context, i *keptIssuer, serial pki.Serial) ([]historyEvent, error) {
	events, err := k.store.History(ctx, i.issuer.ID, serial)
	if err != nil {
		return nil, err
	}
	l := []historyEvent{}
	for _, e := range events {
		l = append(l, historyOf(e))
	}
	return l, nil
}

func historyOf(e db.Event) historyEvent {
	h := historyEvent{Generation: e.Generation, At: e.At.UTC(), From: statusText(e.From), To: statusText(e.To), Source: e.Location, Actor: e.Actor, Note: e.Note}
	if e.Kind == pki.Hand || h.Source == "" {
		h.Source = "hand"
	}
	if e.Carried {
		h.Note = "no longer listed; stays revoked"
	}
	return h
}

func (a *app) printLookup(l *lookupResult) error {
	if a.json() {
		return a.printJSON(l)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	at := func(t *time.Time) string {
		if t == nil {
			return ""
		}
		return t.Format(time.RFC3339)
	}
	row("issuer", l.Issuer)
	row("serial", l.Serial)
	row("status", l.Status)
	row("revoked at", at(l.RevokedAt))
	row("reason", l.Reason)
	row("this update", at(l.ThisUpdate))
	row("next update", at(l.NextUpdate))
	row("source", l.Source)
	row("generation", fmt.Sprint(l.Generation))
	if l.Answer != responder.Successful.String() {
		row("answer", l.Answer)
	}
	row("why", l.Why)
	if e := l.Explain; e != nil {
		row("key", e.Key)
		row("signer", e.Signer)
		row("ends", "no answer holds longer than "+e.NotAfter.Format(time.RFC3339))
		row("policy", fmt.Sprintf("profile %s, unissued %s, validity %s", e.Profile, e.Unissued, e.Validity))
		for _, x := range e.Evidence {
			row("evidence", x.String())
		}
	}
	for _, h := range l.History {
		row("history", fmt.Sprintf("%s generation %d: %s -> %s (%s) %s %s", h.At.Format(time.RFC3339), h.Generation, h.From, h.To, h.Source, h.Actor, h.Note))
	}
	return w.Flush()
}

func (e lookupEvidence) String() string {
	s := e.Kind + " " + e.Source
	if e.Number != "" {
		s += " " + crlNumber(e.Number)
	}
	s += ": " + e.Says + " (" + e.ThisUpdate.Format(time.RFC3339)
	if !e.NextUpdate.IsZero() {
		s += " to " + e.NextUpdate.Format(time.RFC3339)
	}
	s += ")"
	if e.Governs {
		s += "  <- decides"
	}
	return s
}

func evidenceOf(x db.Evidence) lookupEvidence {
	e := lookupEvidence{Says: statusText(x.Status), Governs: x.Governs}
	switch {
	case x.Lineage != nil:
		l := x.Lineage
		e.Source, e.Kind, e.Number = l.Location, l.Kind.String(), l.Number
		e.ThisUpdate, e.NextUpdate = l.ThisUpdate.UTC(), l.NextUpdate.UTC()
	case x.Hand != nil:
		e.Source, e.Kind, e.ThisUpdate = "by "+x.Hand.Actor, pki.Hand.String(), x.Hand.At.UTC()
	}
	if x.Carried {
		e.Says += " (no longer listed; stays)"
	}
	return e
}
