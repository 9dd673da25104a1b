package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"ocspd/audit"
	"ocspd/db"
	"ocspd/pki"
	"ocspd/responder"
)

// This file is the life of a revocation by hand.

// issuerAndSerial reads what every request about a certificate names.
func (k *keeper) issuerAndSerial(r *http.Request) (*keptIssuer, pki.Serial, error) {
	i, err := k.issuer(r.URL.Query().Get("issuer"))
	if err != nil {
		return nil, pki.Serial{}, err
	}
	b, err := hex.DecodeString(r.URL.Query().Get("serial"))
	if err != nil {
		return nil, pki.Serial{}, errors.New("serial: not hex")
	}
	serial, err := pki.SerialFromDER(b)
	return i, serial, err
}

func (k *keeper) handleRevoke(r *http.Request) (any, error) {
	i, serial, err := k.issuerAndSerial(r)
	if err != nil {
		return nil, fmt.Errorf("revoke: %w", err)
	}
	e := db.HandEntry{Serial: serial, At: time.Now(), Actor: actorOf(r.Context())}
	q := r.URL.Query()
	if s := q.Get("reason"); s != "" {
		e.Reason, err = pki.ParseReason(s)
	}
	readTime := func(name string, into *time.Time) {
		if s := q.Get(name); s != "" && err == nil {
			*into, err = pastTime(name, s, e.At)
		}
	}
	readTime("date", &e.RevokedAt)
	readTime("invalidity", &e.Invalidity)
	if err != nil {
		return nil, fmt.Errorf("revoke %s %s: %w", i.config.Name, serial, err)
	}
	event := audit.Record{Event: "hand.revoke", Details: []audit.Detail{
		{Name: "serial", Value: serial.String()}, {Name: "reason", Value: e.Reason.String()}}}
	return k.byHand(r.Context(), i, serial, "revoked", event, func(publish db.Publish) (db.View, error) {
		return k.store.Revoke(r.Context(), i.issuer.ID, e, publish)
	})
}

// pastTime reads a time at which something happened to a certificate. The zero time, which means that none was given, is none.
func pastTime(name, s string, now time.Time) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	switch {
	case err != nil:
		return t, err
	case t.After(now):
		return t, fmt.Errorf("--%s %s lies in the future", name, s)
	case t.Before(time.Unix(0, 0)):
		return t, fmt.Errorf("--%s %s lies before 1970, when there were no certificates", name, s)
	}
	return t, nil
}

func (k *keeper) handleUnrevoke(r *http.Request) (any, error) {
	i, serial, err := k.issuerAndSerial(r)
	if err != nil {
		return nil, fmt.Errorf("unrevoke: %w", err)
	}
	u := db.Unrevocation{Serial: serial, Mistake: r.URL.Query().Get("mistake"), At: time.Now(), Actor: actorOf(r.Context())}
	event := audit.Record{Event: "hand.unrevoke", Details: []audit.Detail{
		{Name: "serial", Value: serial.String()}, {Name: "mistake", Value: cut(u.Mistake, 1000)}}}
	return k.byHand(r.Context(), i, serial, "unrevoked", event, func(publish db.Publish) (db.View, error) {
		return k.store.Unrevoke(r.Context(), i.issuer.ID, u, publish)
	})
}

// byHand makes one change of one serial. It returns once the change is durable, whether or not front could be told: then with a warning.
func (k *keeper) byHand(ctx context.Context, i *keptIssuer, serial pki.Serial, what string, event audit.Record,
	do func(db.Publish) (db.View, error)) (*changeResult, error) {
	name := i.config.Name
	ctx = context.WithoutCancel(ctx) // a verb that is interrupted leaves the change whole
	event.Subject = name
	change := responder.Change{Serials: []pki.Serial{serial}}
	view, delivery, err := k.putInForce(ctx, i, event, pki.File{}, change, do)
	if isFull(err) && k.giveReserve(err) {
		view, delivery, err = k.putInForce(ctx, i, event, pki.File{}, change, do)
	}
	res := &changeResult{V: 1, Result: what, Issuer: name, Serial: serial.String(), Generation: view.Number}
	switch {
	case errors.Is(err, db.ErrUnchanged):
		res.Result, res.Generation = "unchanged", i.inForce()
		res.Text = fmt.Sprintf("%s %s: unchanged", name, serial)
		return res, nil
	case err != nil:
		if isFull(err) {
			err = fmt.Errorf("the disk is full, and nothing was changed; free some space below %s and try again: %w", k.cfg.State, err)
		}
		event.Outcome = outcomeRefused
		event.Details = append(event.Details, audit.Detail{Name: "cause", Value: cut(err.Error(), 1000)})
		k.record(ctx, event)
		return nil, fmt.Errorf("%s %s %s: %w", strings.TrimPrefix(event.Event, "hand."), name, serial, err)
	}
	res.Text = fmt.Sprintf("%s %s: %s; in force as generation %d", name, serial, what, view.Number)
	if delivery.Front != nil {
		res.Warnings = append(res.Warnings, fmt.Sprintf("the change is durable, but front %v: an earlier answer may still be given until its nextUpdate; see that front and keeper run", delivery.Front))
	}
	switch {
	case errors.Is(delivery.Signer, responder.ErrRefused):
		res.Warnings = append(res.Warnings, fmt.Sprintf("the change is durable, but signer %v: new answers are tryLater until it has the change", delivery.Signer))
	case delivery.Signer != nil:
		res.Warnings = append(res.Warnings, fmt.Sprintf("the change is durable, but signer %v: until it is, it answers by the generation before; see that signer and keeper run", delivery.Signer))
	}
	return res, nil
}
