package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"ocspd/generation"
	"ocspd/hardening"
	"ocspd/hsm"
	"ocspd/pki"
	"ocspd/responder"
)

const (
	signerConns    = 64 // connections of front, which keeps linkConns of them
	healthInterval = 10 * time.Second
	retryInterval  = 2 * time.Second
	expiryWarning  = 14 * 24 * time.Hour
)

// signerRole holds the token. It takes questions of a fixed form, looks the status up in generation files that it has checked, and signs.
type signerRole struct {
	*role
	tokens  map[string]*hsm.Token
	issuers []*signedIssuer
	signer  *responder.Signer
	mark    *highwater
	fatal   chan error // the first one ends the role
}

type signedIssuer struct {
	config    *issuerConfig
	authority *responder.Authority
	usable    bool

	mu         sync.Mutex
	generation *generation.Generation
	wanted     uint64 // what keeper said is in force; less is not answered by
}

func runSigner(ctx context.Context, r *role) error {
	if err := hardening.NoDump(); err != nil {
		return err
	}
	s := &signerRole{role: r, tokens: map[string]*hsm.Token{}, fatal: make(chan error, 1)}
	if err := os.MkdirAll(r.cfg.signerDir(), 0o700); err != nil {
		return fmt.Errorf("signer: %w", err)
	}
	var err error
	if s.mark, err = openHighwater(filepath.Join(r.cfg.signerDir(), "highwater")); err != nil {
		return err
	}
	s.signer = responder.NewSigner(time.Now, s.mark.admit, s.signatureFailed)
	defer s.closeTokens()
	if err := s.openTokens(); err != nil {
		return roleError(err)
	}
	if err := s.loadIssuers(); err != nil {
		return roleError(err)
	}
	for _, i := range s.issuers {
		s.loadGeneration(i)
	}
	l, err := listenUnix(r.cfg.signerSocket())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	allow := allowUsers(userFront)
	wg.Go(func() {
		peer := func(c net.Conn) error { _, err := allow(c); return err }
		if err := responder.ServeLink(ctx, l, signerConns, peer, s.signer.Answer); err != nil {
			s.fail(fmt.Errorf("signer socket: %w", err))
		}
	})
	wg.Go(func() { s.subscribe(ctx, responder.RoleSigner, s.apply, s.fillReport) })
	wg.Go(func() { s.watch(ctx) })
	s.ready()
	select {
	case <-ctx.Done():
	case err = <-s.fatal:
	}
	cancel()
	wg.Wait()
	return errors.Join(roleError(err), s.mark.sync())
}

// roleError gives what ends a role its exit code.
func roleError(err error) error {
	switch {
	case errors.Is(err, hsm.ErrPIN):
		return &exitError{exitPIN, err}
	case errors.Is(err, hsm.ErrTokenLost):
		return &exitError{exitTokenLost, err}
	}
	return err
}

func (s *signerRole) fail(err error) {
	select {
	case s.fatal <- err:
	default:
	}
}

func (s *signerRole) openTokens() error {
	for _, i := range s.cfg.Issuers {
		if s.tokens[i.Token] != nil {
			continue
		}
		t, err := openToken(s.cfg, s.cfg.token(i.Token), s.log)
		if err != nil {
			return fmt.Errorf("token %s: %w", i.Token, err)
		}
		s.tokens[i.Token] = t
		info := t.Info()
		s.log.Info("logged in to the token", "token", i.Token, "label", info.Label, "serial", info.Serial)
	}
	return nil
}

func (s *signerRole) closeTokens() {
	for _, t := range s.tokens {
		t.Close()
	}
}

// loadIssuers is strict at the first start, when whoever made the mistake is watching. Started again, it serves the issuers that it can: one
// issuer's broken certificate must not silence the others.
func (s *signerRole) loadIssuers() error {
	var authorities []*responder.Authority
	var errs []error
	for _, c := range s.cfg.Issuers {
		i := &signedIssuer{config: c}
		a, warnings, err := loadAuthority(c, s.tokens[c.Token], time.Now())
		for _, w := range warnings {
			s.log.Warn("issuer has a finding", "issuer", c.Name, "finding", w)
		}
		switch {
		case errors.Is(err, hsm.ErrTokenLost):
			return err
		case err != nil:
			errs = append(errs, err)
			s.alarms.raise(alarmSignerUnusable, c.Name, err.Error())
			issuer, err := loadIssuer(c)
			if err != nil {
				return err
			}
			a = &responder.Authority{Issuer: issuer} // not prepared: every answer is tryLater
		default:
			i.usable = true
		}
		i.authority = a
		s.issuers = append(s.issuers, i)
		authorities = append(authorities, a)
	}
	if len(errs) > 0 && !restarted() {
		return errors.Join(errs...)
	}
	s.signer.Use(authorities)
	return nil
}

// loadGeneration takes the generation in force. Where it cannot be had, or is not what keeper said, nothing is answered for the issuer: the one
// in memory may miss a revocation.
func (s *signerRole) loadGeneration(i *signedIssuer) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	name := i.config.Name
	g, err := generation.Load(s.cfg.generations(), name, i.authority.Issuer.ID, i.generation)
	if errors.Is(err, fs.ErrNotExist) && i.wanted == 0 {
		return nil // nothing was imported yet
	}
	if err == nil {
		err = s.mark.generation(i.authority.Issuer.ID, g.Meta().Number)
	}
	if err == nil && g.Meta().Number < i.wanted {
		err = fmt.Errorf("generation %d is in force, but its file is not there yet (%d is)", i.wanted, g.Meta().Number)
	}
	if err != nil {
		s.alarms.raise(alarmGenerationRefused, name, err.Error())
		i.authority.SetView(nil)
		return err
	}
	s.alarms.clear(alarmGenerationRefused, name)
	i.generation = g
	m := g.Meta()
	i.authority.SetView(&responder.View{Number: m.Number, Complete: m.Complete, Sources: m.Sources, Lookup: g.Lookup})
	return nil
}

// apply loads what keeper has put in force.
func (s *signerRole) apply(c responder.Change) error {
	i := s.issuer(c.Issuer)
	if i == nil {
		return nil
	}
	i.mu.Lock()
	i.wanted = c.To
	i.mu.Unlock()
	return s.loadGeneration(i)
}

func (s *signerRole) issuer(id pki.IssuerID) *signedIssuer {
	for _, i := range s.issuers {
		if i.authority.Issuer.ID == id {
			return i
		}
	}
	return nil
}

// signatureFailed is told of every signature that did not come about.
func (s *signerRole) signatureFailed(issuer string, err error) {
	switch {
	case errors.Is(err, hsm.ErrTokenLost):
		s.fail(fmt.Errorf("issuer %s: %w", issuer, err))
	case errors.Is(err, errClockBack):
		s.alarms.raise(alarmClockBack, "", err.Error())
	default:
		s.alarms.raise(alarmSignatureFailed, issuer, err.Error())
	}
}

// watch makes the checks that no question makes: that the token still signs, that generations which were refused have come right, how long certificates last.
func (s *signerRole) watch(ctx context.Context) {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for n := 0; ; n++ {
		if n%int(retryInterval/time.Second) == 0 {
			s.retryGenerations()
		}
		if n%int(healthInterval/time.Second) == 0 {
			s.checkHealth(ctx)
		}
		if err := s.mark.sync(); err != nil {
			s.log.Error("highwater cannot be written", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-second.C:
		}
	}
}

func (s *signerRole) retryGenerations() {
	for _, i := range s.issuers {
		if i.authority.View() == nil {
			s.loadGeneration(i)
		}
	}
}

func (s *signerRole) checkHealth(ctx context.Context) {
	now := time.Now()
	clockRight := s.mark.clockRight(now)
	s.alarms.when(!clockRight, alarmClockBack, "", "the clock stands before the last signature; set it right")
	for _, i := range s.issuers {
		if !i.usable {
			continue
		}
		name, key := i.config.Name, i.authority.Key.(*hsm.Key)
		limit, cancel := context.WithTimeout(ctx, healthInterval)
		err := key.Prove(limit, i.authority.Certificate().PublicKey)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.signatureFailed(name, err)
		default:
			s.alarms.clear(alarmSignatureFailed, name)
		}
		end := i.authority.Policy.NotAfter
		s.alarms.when(end.Sub(now) < max(expiryWarning, 2*i.config.Validity), alarmSignerExpiring, name, expiryText(i, now, end))
	}
}

func expiryText(i *signedIssuer, now, end time.Time) string {
	if now.After(end) {
		return fmt.Sprintf("ended %s: nothing is answered for this issuer; install a new certificate ('ocspd key csr', 'ocspd key install')", end.UTC().Format(time.RFC3339))
	}
	return fmt.Sprintf("%s ends %s, and no answer holds longer; install a new certificate ('ocspd key csr', 'ocspd key install')",
		signerFile(i.config), end.UTC().Format(time.RFC3339))
}

func (s *signerRole) fillReport(r *roleReport) {
	report := &signerReport{Signatures: s.signer.Signed()}
	for _, t := range s.cfg.Tokens {
		if open := s.tokens[t.Name]; open != nil {
			state := "ok"
			select {
			case <-open.Lost():
				state = "lost"
			default:
			}
			report.Tokens = append(report.Tokens, tokenReport{t.Name, open.Info().Label, state})
		}
	}
	for _, i := range s.issuers {
		ir := issuerReport{Name: i.config.Name, NotAfter: i.authority.Policy.NotAfter.UTC()}
		if v := i.authority.View(); v != nil {
			ir.Generation = v.Number
		}
		report.Issuers = append(report.Issuers, ir)
	}
	r.Signer = report
}
