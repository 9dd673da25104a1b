package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ocspd/audit"
	"ocspd/generation"
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
	state   atomic.Pointer[signerState]
	signer  *responder.Signer
	mark    *highwater
	journal *journal
	pulse   pulse
	socket  net.Listener
	heads   atomic.Pointer[headSigner] // nil without a key for them
	fatal   chan error                 // the first one ends the role
	loading sync.Mutex                 // held while a state is built and put in force
	using   sync.RWMutex               // held for reading while a question is answered, so that whoever has held it since knows that no answer is under way by what was before
}

// signerState is what a configuration comes to; reload replaces it as a whole.
type signerState struct {
	cfg     *config
	tokens  map[string]*hsm.Token
	issuers []*signedIssuer
}

type signedIssuer struct {
	config    *issuerConfig
	authority *responder.Authority
	usable    bool

	attributes hsm.Attributes // of the key, as first read; tendKeys's own

	mu         sync.Mutex
	generation *generation.Generation
	wanted     uint64 // what keeper said is in force; less is not answered by
	told       string // what was last recorded of generations
}

func runSigner(ctx context.Context, r *role) error {
	s, err := openSigner(r)
	if err != nil {
		return err
	}
	recorded := make(chan struct{})
	var recording sync.WaitGroup
	recording.Go(func() { s.journal.run(recorded) })
	defer s.closeTokens() // the last head of the log is signed before
	err = s.run(ctx)
	close(recorded)
	recording.Wait()
	stop := audit.Record{Event: "signer.stop", Outcome: outcomeOK}
	if err != nil {
		stop.Outcome, stop.Details = "failed", reason(err)
	}
	return errors.Join(roleError(err), s.journal.close(&stop))
}

// openSigner opens what signer writes: its folder, with highwater and log, and the socket. No token is touched before, and no other signer touches this one's.
func openSigner(r *role) (s *signerRole, err error) {
	s = &signerRole{role: r, fatal: make(chan error, 1)}
	r.signHead = s.signKeeperHead
	s.state.Store(&signerState{cfg: r.cfg, tokens: map[string]*hsm.Token{}})
	if err := os.MkdirAll(r.cfg.signerDir(), 0o700); err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	if s.journal, err = openJournal(r.cfg, r.log, r.alarms); err != nil {
		return nil, err
	}
	s.mark = s.journal.mark
	if err := s.journal.begin(); err != nil {
		return nil, errors.Join(err, s.journal.close(nil))
	}
	if s.socket, err = r.listenUnix(socketSigner, r.cfg.signerSocket()); err != nil {
		return nil, errors.Join(err, s.journal.close(nil))
	}
	s.signer = responder.NewSigner(time.Now, s.mark.admit, s.signatureFailed)
	return s, nil
}

// run logs in and answers until ctx ends, or something does that only a new process mends.
func (s *signerRole) run(ctx context.Context) (err error) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer s.socket.Close()
	wg.Go(func() { s.takeAccepts(ctx) })
	state := s.state.Load()
	down, err := s.openTokens(state)
	if err != nil && restarted() {
		err = s.awaitTokens(ctx, state, down, err)
	}
	if err != nil || ctx.Err() != nil {
		return err
	}
	if err := s.loadIssuers(state, !restarted()); err != nil {
		return err
	}
	if err := s.useAuditKey(state, !restarted()); err != nil {
		return err
	}
	s.use(state)
	if err := s.seal(); err != nil { // loadIssuers has made the module sign
		return err
	}
	s.journal.note(audit.Record{Event: "hardening.report", Outcome: outcomeOK, Details: hardeningDetails(s.measures)})
	allow := allowUsers(userFront)
	wg.Go(func() {
		peer := func(c net.Conn) error { _, err := allow(c); return err }
		if err := responder.ServeLink(ctx, s.socket, signerConns, peer, s.answer); err != nil {
			s.fail(fmt.Errorf("signer socket: %w", err))
		}
	})
	wg.Go(func() { s.subscribe(ctx, responder.RoleSigner, s.apply, s.fillReport) })
	wg.Go(func() { s.watch(ctx) })
	wg.Go(func() { s.recheckMemory(ctx) })
	wg.Go(func() { s.tendKeys(ctx) })
	s.ready()
	wg.Go(func() { s.watchdog(ctx, s.hearsToken) })
	select {
	case <-ctx.Done():
	case err = <-s.fatal:
	}
	return err
}

// answer signs no answer that could not be recorded.
func (s *signerRole) answer(q *responder.Question) responder.Answer {
	if err := s.journal.reserve(); err != nil {
		return responder.Answer{Status: responder.TryLater}
	}
	s.using.RLock()
	a := s.signer.Answer(q)
	s.using.RUnlock()
	s.journal.answered(&a)
	return a
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

// fail ends the role. It reports whether it was the first to do so.
func (s *signerRole) fail(err error) bool {
	select {
	case s.fatal <- err:
		return true
	default:
		return false
	}
}

func (s *signerRole) tokenOf(issuer string) string {
	if i := s.state.Load().cfg.issuer(issuer); i != nil {
		return i.Token
	}
	return ""
}

// reason is an error as a detail of a record.
func reason(err error) []audit.Detail {
	return []audit.Detail{{Name: "reason", Value: oneLine(err.Error(), 1000)}}
}

// openTokens opens those that are not open yet. It names the one that it could not open.
func (s *signerRole) openTokens(state *signerState) (down string, err error) {
	for _, name := range state.cfg.tokensInUse() {
		if state.tokens[name] != nil {
			continue
		}
		t, err := openToken(state.cfg, state.cfg.token(name), s.log)
		if err != nil {
			s.journal.loginFailed(name, err)
			return name, err
		}
		state.tokens[name] = t
		info := t.Info()
		s.log.Info("logged in to the token", "token", name, "label", info.Label, "serial", info.Serial)
		s.journal.note(audit.Record{Event: "token.login", Subject: name, Outcome: outcomeOK,
			Details: []audit.Detail{{Name: "label", Value: info.Label}, {Name: "serial", Value: info.Serial}}})
	}
	return "", nil
}

// awaitTokens is the life of a signer that was started again while its token is away: keeper hears why nothing is signed, and the token is looked for
// until it is back. It returns an error where waiting does not help: a refused PIN is not tried again, and a module that hangs needs a new process.
func (s *signerRole) awaitTokens(ctx context.Context, state *signerState, down string, err error) error {
	telling, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.watchdog(telling, s.hearsToken) })
	wg.Go(func() {
		s.subscribe(telling, responder.RoleSigner, func(responder.Change) error { return errTokenDown }, func(r *roleReport) {
			r.Signer = &signerReport{}
			for _, t := range s.cfg.Tokens {
				r.Signer.Tokens = append(r.Signer.Tokens, tokenReport{Name: t.Name, State: "not open"})
			}
		})
	})
	for err != nil && !errors.Is(err, hsm.ErrPIN) && !errors.Is(err, hsm.ErrTokenLost) {
		s.alarms.raise(alarmTokenDown, down, err.Error())
		s.tell("READY=1\nSTATUS=waits for token " + down) // to wait is what it is here for
		s.pulse.beat()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryInterval):
		}
		was := down
		if down, err = s.openTokens(state); down != was {
			s.alarms.clear(alarmTokenDown, was)
		}
	}
	return err
}

var errTokenDown = errors.New("the token is down")

func (s *signerRole) closeTokens() {
	for _, t := range s.state.Load().tokens {
		t.Close()
	}
}

// loadIssuers is strict at the first start and at a reload, when whoever made the mistake is watching. Started again, signer serves the issuers that it
// can: one issuer's broken certificate must not silence the others.
func (s *signerRole) loadIssuers(state *signerState, strict bool) error {
	var errs []error
	for _, c := range state.cfg.Issuers {
		i := &signedIssuer{config: c}
		a, warnings, err := loadAuthority(c, state.tokens[c.Token], time.Now())
		for _, w := range warnings {
			s.log.Warn("issuer has a finding", "issuer", c.Name, "finding", w)
		}
		switch {
		case errors.Is(err, hsm.ErrTokenLost):
			return err
		case err != nil && strict:
			errs = append(errs, err)
			continue
		case err != nil:
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
		state.issuers = append(state.issuers, i)
	}
	return errors.Join(errs...)
}

// use answers by a state from now on. The log knows a key before its first answer, and that its time is over after its last.
func (s *signerRole) use(state *signerState) {
	var authorities []*responder.Authority
	for _, i := range state.issuers {
		s.loadGeneration(i)
		authorities = append(authorities, i.authority)
	}
	before := s.mark.epochs()
	now := state.epochs(before)
	s.journal.activate(before, now)
	s.journal.flush() // an error is an alarm, and nothing is signed before what was noted is written
	s.using.Lock()
	s.signer.Use(authorities)
	s.state.Store(state)
	s.using.Unlock()
	s.journal.flush() // the last answers of keys that were before
	s.journal.retire(before, now)
	if err := s.mark.setEpochs(now); err != nil {
		s.log.Error("which keys are in use cannot be written down", "error", err)
	}
}

// epochs are the keys of the state's issuers. One that cannot be used is in the time that it was in.
func (s *signerState) epochs(before map[string]keyEpoch) map[string]keyEpoch {
	now := map[string]keyEpoch{}
	for _, i := range s.issuers {
		name := i.config.Name
		if !i.usable {
			if was, ok := before[name]; ok {
				now[name] = was
			}
			continue
		}
		c := i.authority.Certificate()
		now[name] = keyEpoch{Key: fmt.Sprintf("%x", sha256.Sum256(c.RawSubjectPublicKeyInfo)), Certificate: fmt.Sprintf("%x", sha256.Sum256(c.Raw)),
			Label: i.authority.Key.(*hsm.Key).Label, Token: s.tokens[i.config.Token].Info().Serial}
	}
	return now
}

// reload builds everything that the configuration now names, and only then answers by it; an error leaves all as it was. Tokens that stay keep
// their login.
func (s *signerRole) reload() error {
	old := s.state.Load()
	cfg, err := s.rereadConfig(old.cfg)
	if err != nil {
		return err
	}
	state := &signerState{cfg: cfg, tokens: map[string]*hsm.Token{}}
	for name, t := range old.tokens {
		if now := cfg.token(name); now != nil && reflect.DeepEqual(now, old.cfg.token(name)) {
			state.tokens[name] = t
		}
	}
	_, err = s.openTokens(state)
	if err == nil {
		err = s.loadIssuers(state, true)
	}
	if err == nil {
		err = s.useAuditKey(state, true)
	}
	if err != nil {
		closeOthers(state.tokens, old.tokens)
		return err
	}
	for _, i := range state.issuers {
		if before := old.issuer(i.authority.Issuer.ID); before != nil && before.config.Name == i.config.Name {
			before.mu.Lock()
			i.generation, i.wanted, i.told = before.generation, before.wanted, before.told
			before.mu.Unlock()
		}
	}
	for _, i := range old.issuers {
		for _, name := range []string{alarmSignerUnusable, alarmSignatureFailed, alarmGenerationRefused, alarmSignerExpiring, alarmKeyChanged} {
			s.alarms.clear(name, i.config.Name) // raised again where it still holds
		}
	}
	s.use(state)
	closeOthers(old.tokens, state.tokens)
	s.log.Info("configuration reloaded", "issuers", len(state.issuers))
	return nil
}

// reloadRecorded is reload with a record of what came of it.
func (s *signerRole) reloadRecorded() error {
	file := s.state.Load().cfg.File
	err := s.reload()
	r := audit.Record{Event: "config.reload", Subject: file, Outcome: outcomeOK, Details: configDetails(file)}
	if err != nil {
		r.Outcome, r.Details = outcomeRefused, append(r.Details, reason(err)...)
	}
	s.journal.note(r)
	return err
}

// closeOthers closes the tokens that are not among those kept. Signatures under way are finished first.
func closeOthers(tokens, kept map[string]*hsm.Token) {
	for name, t := range tokens {
		if kept[name] != t {
			t.Close()
		}
	}
}

// loadGeneration takes the generation in force. Where it cannot be had, or is not what keeper said, nothing is answered for the issuer: the one
// in memory may miss a revocation.
func (s *signerRole) loadGeneration(i *signedIssuer) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	name := i.config.Name
	var g *generation.Generation
	var err error
	gently(func() { g, err = generation.Load(s.cfg.generations(), name, i.authority.Issuer.ID, i.generation) })
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
		s.recordGeneration(i, audit.Record{Event: "generation.refuse", Outcome: outcomeRefused, Details: reason(err)})
		return err
	}
	s.alarms.clear(alarmGenerationRefused, name)
	i.generation = g
	m := g.Meta()
	s.recordGeneration(i, audit.Record{Event: "generation.accept", Outcome: outcomeOK, Details: generationDetails(m)})
	i.authority.SetView(&responder.View{Number: m.Number, Complete: m.Complete, Gap: m.Gap, Sources: m.Sources, Lookup: g.Lookup})
	return nil
}

// recordGeneration records what became of a generation, once.
func (s *signerRole) recordGeneration(i *signedIssuer, r audit.Record) {
	if told := fmt.Sprint(r.Event, r.Details); i.told != told {
		i.told, r.Subject = told, i.config.Name
		s.journal.note(r)
	}
}

// generationDetails say what statuses were taken from. Together with a batch of answers, which names its generation, they are the source of each answer.
func generationDetails(m generation.Meta) []audit.Detail {
	const most = 20
	d := []audit.Detail{{Name: "generation", Value: fmt.Sprint(m.Number)}}
	for n, source := range m.Sources {
		if n == most {
			d = append(d, audit.Detail{Name: "more", Value: fmt.Sprint(len(m.Sources) - most)})
			break
		}
		text := fmt.Sprintf("%s of %s", cut(source.Name, 500), source.ThisUpdate.UTC().Format(time.RFC3339))
		if source.Number != "" {
			text = fmt.Sprintf("%s, number %s", text, source.Number)
		}
		d = append(d, audit.Detail{Name: fmt.Sprintf("source %d", n+1), Value: text})
	}
	return d
}

// recheckMemory hashes what is answered from once an hour: memory rots, too. What is not as it was loaded is not answered from any more, and
// read again.
func (s *signerRole) recheckMemory(ctx context.Context) {
	hour := time.NewTicker(time.Hour)
	defer hour.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hour.C:
		}
		for _, i := range s.state.Load().issuers {
			i.mu.Lock()
			g := i.generation
			i.mu.Unlock()
			if g == nil {
				continue
			}
			err := g.Recheck()
			if err == nil {
				continue
			}
			s.log.Error("generation in memory is damaged and read again", "issuer", i.config.Name, "error", err)
			i.mu.Lock()
			if i.generation != nil && i.generation.SharesRecords(g) {
				i.generation = nil
				i.authority.SetView(nil)
			}
			i.mu.Unlock()
			if err := s.loadGeneration(i); err != nil {
				s.log.Error("generation cannot be read again", "issuer", i.config.Name, "error", err)
			}
		}
	}
}

// apply loads what keeper has put in force.
func (s *signerRole) apply(c responder.Change) error {
	if c.Reload {
		s.loading.Lock()
		defer s.loading.Unlock()
		return s.reloadRecorded()
	}
	i := s.state.Load().issuer(c.Issuer)
	if i == nil {
		return nil
	}
	i.mu.Lock()
	i.wanted = c.To
	i.mu.Unlock()
	return s.loadGeneration(i)
}

func (s *signerState) issuer(id pki.IssuerID) *signedIssuer {
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
		if s.fail(fmt.Errorf("issuer %s: %w", issuer, err)) {
			s.journal.note(audit.Record{Event: "token.lost", Subject: s.tokenOf(issuer), Outcome: "failed", Details: reason(err)})
		}
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
	before := time.Now()
	for n := 0; ; n++ {
		now := time.Now()
		s.journal.clockStep(before, now, now.Sub(before))
		before = now
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
	for _, i := range s.state.Load().issuers {
		if i.authority.View() == nil {
			s.loadGeneration(i)
		}
	}
}

func (s *signerRole) checkHealth(ctx context.Context) {
	now := time.Now()
	clockRight := s.mark.clockRight(now)
	if !slices.ContainsFunc(s.state.Load().issuers, func(i *signedIssuer) bool { return i.usable }) {
		s.pulse.beat() // there is no key to ask for a signature
	}
	s.alarms.when(!clockRight, alarmClockBack, "", "the clock stands before the last signature; set it right, or, if it is right now, 'ocspd accept clock'")
	for _, i := range s.state.Load().issuers {
		if !i.usable {
			continue
		}
		name, key := i.config.Name, i.authority.Key.(*hsm.Key)
		err := s.proveHealth(ctx, i, key)
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
	if heads := s.heads.Load(); heads != nil {
		report.AuditKey = heads.public
	}
	state := s.state.Load()
	for _, t := range state.cfg.Tokens {
		if open := state.tokens[t.Name]; open != nil {
			state := "ok"
			select {
			case <-open.Lost():
				state = "lost"
			default:
			}
			report.Tokens = append(report.Tokens, tokenReport{t.Name, open.Info().Label, state})
		}
	}
	for _, i := range state.issuers {
		ir := issuerReport{Name: i.config.Name, NotAfter: i.authority.Policy.NotAfter.UTC()}
		if v := i.authority.View(); v != nil {
			ir.Generation, ir.Complete = v.Number, v.Complete
		}
		report.Issuers = append(report.Issuers, ir)
	}
	r.Signer = report
}
