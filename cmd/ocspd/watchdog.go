package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"ocspd/hsm"
	"ocspd/responder"
	"ocspd/systemd"
)

// A role hangs where nobody sees it: a lock, a library, a disk. systemd kills a unit with WatchdogSec= that has not been heard for so long, and starts it
// again; so a role lets itself be heard only when a piece of its real work was just done.

// watchdog does work every third of the unit's WatchdogSec, and tells systemd each time that it came to a good end, until ctx ends. work that hangs is what
// systemd is to notice: nothing here runs beside it. A unit without WatchdogSec makes it return at once.
func (r *role) watchdog(ctx context.Context, work func(context.Context) error) {
	interval, err := systemd.Watchdog()
	if err != nil {
		r.log.Warn("nothing watches over this role: what systemd says of its watchdog cannot be read", "error", err)
	}
	if interval <= 0 {
		return
	}
	tick := time.NewTicker(interval / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		limit, cancel := context.WithTimeout(ctx, interval/3)
		err := work(limit)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			r.log.Error("the role does not do its work; systemd will start it again", "error", err)
		default:
			r.tell("WATCHDOG=1")
		}
	}
}

// foreignCertID is the CertID of a certificate whose issuer is nobody's: SHA-1, hashes of zeros, serial 1.
var foreignCertID = bytes.Join([][]byte{
	{0x30, 58}, {0x30, 9, 6, 5, 0x2b, 0x0e, 3, 2, 0x1a, 5, 0}, {4, 20}, make([]byte, 20), {4, 20}, make([]byte, 20), {2, 1, 1},
}, nil)

// unauthorized is the OCSPResponse of RFC 6960 section 4.2.1 that refuses, responseStatus 6.
var unauthorized = []byte{0x30, 3, 0x0a, 1, byte(responder.Unauthorized)}

// asksItself is front's piece of work: a well-formed question goes through the handler as a client's does, and the one right answer comes back. It is about an
// issuer that nobody has, so that neither signer nor the cache stands behind the answer: front is well when they are not.
func asksItself(h http.Handler) func(context.Context) error {
	question := responder.NewRequest(nil, foreignCertID)
	return func(ctx context.Context) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "/", bytes.NewReader(question))
		if err != nil {
			return err
		}
		w := &memoryResponse{code: http.StatusOK, header: http.Header{}}
		h.ServeHTTP(w, r)
		if w.code != http.StatusOK || !bytes.Equal(w.body.Bytes(), unauthorized) {
			return fmt.Errorf("a question to ourselves got HTTP status %d and %x in place of %x", w.code, w.body.Bytes(), unauthorized)
		}
		return nil
	}
}

// pulse is when the token last answered signer: by a signature, or by saying why not. A token that is known to be away is waited for, and that counts, too.
type pulse struct{ at atomic.Pointer[time.Time] }

func (p *pulse) beat() {
	now := time.Now()
	p.at.Store(&now)
}

// hearsToken is signer's piece of work, which is done in checkHealth and awaitTokens: it is over when the token was last heard within three rounds of those.
func (s *signerRole) hearsToken(context.Context) error {
	at := s.pulse.at.Load()
	if at == nil {
		return errors.New("the token was never heard")
	}
	if since := time.Since(*at); since > 3*healthInterval {
		return fmt.Errorf("the token was last heard %s ago", since.Round(time.Second))
	}
	return nil
}

// proveHealth makes a signature with a key and verifies it. However that ends, the token was heard, unless it took its whole deadline.
func (s *signerRole) proveHealth(ctx context.Context, i *signedIssuer, key *hsm.Key) error {
	begun := time.Now()
	limit, cancel := context.WithTimeout(ctx, healthInterval)
	defer cancel()
	err := key.Prove(limit, i.authority.Certificate().PublicKey)
	if err == nil || time.Since(begun) < hsm.DefaultDeadline {
		s.pulse.beat()
	}
	return err
}

// readsDatabase is keeper's piece of work.
func (k *keeper) readsDatabase(ctx context.Context) error {
	_, err := k.store.Issuers(ctx)
	return err
}
