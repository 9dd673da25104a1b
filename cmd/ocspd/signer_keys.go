package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"ocspd/hsm"
)

const attributesInterval = time.Hour

// tendKeys looks after what a state was built from: issuers that could not be used when signer was started again, since the token may only have been slow to
// come back, are tried again; and once an hour the token is asked whether it still keeps the keys as it did (OCSP-KEY-20).
func (s *signerRole) tendKeys(ctx context.Context) {
	tick := time.NewTicker(retryInterval)
	defer tick.Stop()
	compared := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.retryIssuers()
		compare := time.Since(compared) >= attributesInterval
		if compare {
			compared = time.Now()
		}
		s.checkAttributes(compare)
	}
}

// retryIssuers takes an issuer into use that can be used by now.
func (s *signerRole) retryIssuers() {
	s.loading.Lock()
	defer s.loading.Unlock()
	old := s.state.Load()
	state := &signerState{cfg: old.cfg, tokens: old.tokens, issuers: slices.Clone(old.issuers)}
	changed := false
	for n, i := range state.issuers {
		if i.usable {
			continue
		}
		name := i.config.Name
		a, warnings, err := loadAuthority(i.config, state.tokens[i.config.Token], time.Now())
		if errors.Is(err, hsm.ErrTokenLost) {
			s.fail(err)
			return
		} else if err != nil {
			s.alarms.raise(alarmSignerUnusable, name, err.Error())
			continue
		}
		for _, w := range warnings {
			s.log.Warn("issuer has a finding", "issuer", name, "finding", w)
		}
		now := &signedIssuer{config: i.config, authority: a, usable: true}
		i.mu.Lock()
		now.generation, now.wanted = i.generation, i.wanted
		i.mu.Unlock()
		state.issuers[n], changed = now, true
		s.alarms.clear(alarmSignerUnusable, name)
	}
	if changed {
		s.use(state)
	}
}

// checkAttributes reads the attributes of keys that it does not know yet, and of all when it is to compare.
func (s *signerRole) checkAttributes(compare bool) {
	for _, i := range s.state.Load().issuers {
		if !i.usable || i.attributes != nil && !compare {
			continue
		}
		key := i.authority.Key.(*hsm.Key)
		now, err := key.Attributes()
		if err != nil {
			s.signatureFailed(i.config.Name, err)
			continue
		}
		if i.attributes == nil {
			i.attributes = now
		}
		changes := now.Changes(i.attributes)
		s.alarms.when(len(changes) > 0, alarmKeyChanged, i.config.Name, "key "+key.String()+" is not kept as it was when signer took it: "+strings.Join(changes, "; ")+
			"; find out who changed it ('ocspd key show'), or 'ocspd reload' if it is right (OCSP-KEY-20)")
	}
}
