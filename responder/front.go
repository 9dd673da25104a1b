// Package responder answers OCSP requests (RFC 6960, RFC 9654, RFC 9919). Its two halves run in two processes: Front turns the bytes of a request into those of an
// answer, from its cache or by a question over the link; Signer looks the status up in the generation in force, builds the answer and has it signed. Feed tells both
// what changed.
//
// It guarantees that an answer is the truth of its generation, within the times of its sources, or one of the errors; that a status which is known to have changed
// is not given again; and that nothing past its nextUpdate is given at all.
package responder

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"

	"ocspd/pki"
)

// A FrontIssuer is an issuer that front passes questions on for.
type FrontIssuer struct {
	*pki.Issuer
	IgnoreNonce bool // answer without the nonce, so that answers can be cached
}

// Front turns the bytes of an OCSPRequest into those of an OCSPResponse: from its cache, or by asking the signer. It holds no key and no data. All
// methods are safe for concurrent use.
//
// What it guarantees: an answer with a nonce, or for several certificates, is never kept; a kept answer is given only for the very CertID
// that it answers, before its nextUpdate, and never once its status is known to have changed.
type Front struct {
	ask      func(context.Context, *Question) (Answer, error)
	now      func() time.Time
	requests int

	state   atomic.Pointer[frontState]
	answers *otter.Cache[cacheKey, *kept] // good and revoked
	unknown *otter.Cache[cacheKey, *kept] // apart, so that random serials do not push out the rest
	flights singleflight.Group
	epochs  atomic.Uint64 // the last epoch given out; none is ever given twice
	counts  Counts

	changing sync.Mutex    // held by Use and Apply, so that no change falls between two states
	renewing chan struct{} // one for each renewal under way
}

type frontState struct {
	table   *issuerTable
	issuers []*frontIssuer
	byID    map[pki.IssuerID]*frontIssuer
}

type frontIssuer struct {
	FrontIssuer
	mu     sync.RWMutex  // held to read while an answer is put away, and to write while a change is applied
	newest atomic.Uint64 // the newest generation that is known
	told   atomic.Bool   // by keeper; else newest is what signer's answers said
	epoch  atomic.Uint64
}

// cacheKey is a CertID: issuer, and what Form and serial say. Strict decoding makes it as exact as the CertID's bytes.
type cacheKey struct {
	issuer pki.IssuerID
	form   Form
	serial pki.Serial
}

// kept is an answer in the cache with what HTTP says of it.
type kept struct {
	reply   Reply
	epoch   uint64       // of the issuer, when it was put away; an older one is no longer good
	attempt atomic.Int64 // when a newer one was last asked for, in nanoseconds since 1970
}

// A Reply is an OCSPResponse and how long an HTTP cache may keep it.
type Reply struct {
	Status     ResponseStatus
	DER        []byte
	Cacheable  bool      // by HTTP caches: successful and without a nonce
	Unknown    bool      // some certificate was never issued, which may change soon
	Refresh    time.Time // when a newer answer will be asked for
	ProducedAt time.Time
	ThisUpdate time.Time
	NextUpdate time.Time
	due        time.Time // by when there must be one
	headers    *headers  // nil unless Cacheable
}

// Counts are what front counts since its start.
type Counts struct {
	Requests    [7]atomic.Uint64 // by ResponseStatus
	Hits        atomic.Uint64    // answered from the cache
	Asked       atomic.Uint64    // questions put to the signer
	Busy        atomic.Uint64    // turned away since too many waited
	Unreachable atomic.Uint64    // the signer did not answer in time
	Hash        [4]atomic.Uint64 // CertIDs by hash algorithm: SHA-1, SHA-256, SHA-384, SHA-512
	UnknownHash atomic.Uint64
	Nonces      atomic.Uint64
	Unissued    atomic.Uint64 // successful answers about a certificate that was never issued, as far as is known
	Panics      atomic.Uint64 // requests that became internalError since our code panicked: each is a bug
	Defects     atomic.Uint64 // GET requests in a form that only leniency reads
}

const (
	answerCacheBytes  = 64 << 20
	unknownCacheBytes = 4 << 20
	askTime           = 1500 * time.Millisecond
	unknownKept       = 60 * time.Second // then a serial may have been issued
	renewPause        = 2 * time.Second  // between two attempts to renew one answer
	renewWait         = 100 * time.Millisecond
	renewals          = 16 // under way at once
)

// NewFront makes a front without issuers. ask is Link.Ask or Signer.Answer; requests bounds the certificates in one request.
func NewFront(ask func(context.Context, *Question) (Answer, error), now func() time.Time, requests int) *Front {
	newCache := func(bytes uint64) *otter.Cache[cacheKey, *kept] {
		return otter.Must(&otter.Options[cacheKey, *kept]{
			MaximumWeight: bytes,
			Weigher:       func(_ cacheKey, k *kept) uint32 { return uint32(len(k.reply.DER) + 512) },
		})
	}
	f := &Front{ask: ask, now: now, requests: min(requests, MaxItems), answers: newCache(answerCacheBytes), unknown: newCache(unknownCacheBytes),
		renewing: make(chan struct{}, renewals)}
	f.state.Store(&frontState{table: &issuerTable{}})
	return f
}

// Counts are updated while they are read.
func (f *Front) Counts() *Counts { return &f.counts }

// Kept is about how many answers the caches hold.
func (f *Front) Kept() int { return f.answers.EstimatedSize() + f.unknown.EstimatedSize() }

// Use passes questions for these issuers on, and for no others, from now on. Nothing that was kept is given any more.
func (f *Front) Use(issuers []FrontIssuer) error {
	f.changing.Lock()
	defer f.changing.Unlock()
	table, err := tableOf(issuers)
	if err != nil {
		return err
	}
	s := &frontState{table: table, byID: map[pki.IssuerID]*frontIssuer{}}
	for _, i := range issuers {
		fi := &frontIssuer{FrontIssuer: i}
		if old := f.state.Load().byID[i.ID]; old != nil {
			fi.newest.Store(old.newest.Load())
			fi.told.Store(old.told.Load())
		}
		f.drop(fi)
		s.issuers = append(s.issuers, fi)
		s.byID[i.ID] = fi
	}
	f.state.Store(s)
	return nil
}

// Try says whether Use would take these issuers.
func (f *Front) Try(issuers []FrontIssuer) error {
	_, err := tableOf(issuers)
	return err
}

func tableOf(issuers []FrontIssuer) (*issuerTable, error) {
	var plain []*pki.Issuer
	for _, i := range issuers {
		plain = append(plain, i.Issuer)
	}
	return newIssuerTable(plain)
}

// drop forgets every answer for an issuer, at once however many there are.
func (f *Front) drop(i *frontIssuer) { i.epoch.Store(f.epochs.Add(1)) }

// Apply takes a change: what it names is dropped first, then the issuer advances. A gap in the sequence drops the issuer.
func (f *Front) Apply(c Change) error {
	f.changing.Lock()
	defer f.changing.Unlock()
	i := f.state.Load().byID[c.Issuer]
	if i == nil {
		return nil // an issuer that this front does not answer for
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case c.From == 0 && c.To == i.newest.Load(): // a new connection, and nothing happened meanwhile
	case c.All || c.From != i.newest.Load():
		f.drop(i)
	default:
		for _, serial := range c.Serials {
			for _, form := range allForms {
				k := cacheKey{c.Issuer, form, serial}
				f.answers.Invalidate(k)
				f.unknown.Invalidate(k)
			}
		}
	}
	i.newest.Store(c.To)
	i.told.Store(true)
	return nil
}

func errorReply(s ResponseStatus) Reply { return Reply{Status: s, DER: errorResponse(s)} }

// survive makes a panic in one request that request's internalError.
func (f *Front) survive(r *Reply) {
	if recover() != nil {
		f.counts.Panics.Add(1)
		*r = errorReply(InternalError)
	}
}

// Respond answers one OCSPRequest. It never fails: what goes wrong becomes one of the error answers.
func (f *Front) Respond(ctx context.Context, request []byte) (r Reply) {
	defer func() {
		f.counts.Requests[r.Status].Add(1)
		if r.Unknown {
			f.counts.Unissued.Add(1)
		}
	}()
	defer f.survive(&r)
	var req Request
	if req.Read(request, f.requests) != nil {
		return errorReply(MalformedRequest)
	}
	issuer, ok := f.issuerOf(&req)
	if !ok {
		return errorReply(Unauthorized)
	}
	if req.Nonce != nil && !issuer.IgnoreNonce {
		f.counts.Nonces.Add(1)
	} else {
		req.Nonce = nil
	}
	if len(req.CertIDs) > 1 || req.Nonce != nil {
		return f.askFor(ctx, issuer, &req)
	}
	return f.keptOrAsked(ctx, issuer, &req)
}

// issuerOf finds the one issuer of all CertIDs. No signer may speak for two (RFC 6960 section 4.2.2.2), so a mixed request has none.
func (f *Front) issuerOf(req *Request) (*frontIssuer, bool) {
	s := f.state.Load()
	which := -1
	for n := range req.CertIDs {
		if c := &req.CertIDs[n]; c.known {
			f.counts.Hash[c.form&^formNull].Add(1)
		} else {
			f.counts.UnknownHash.Add(1)
		}
		i, ok := s.table.find(&req.CertIDs[n])
		if !ok || n > 0 && i != which {
			return nil, false
		}
		which = i
	}
	return s.issuers[which], true
}

func (f *Front) keptOrAsked(ctx context.Context, issuer *frontIssuer, req *Request) Reply {
	k := cacheKey{issuer.ID, req.CertIDs[0].form, req.CertIDs[0].serial}
	now := f.now()
	a, ok := f.lookUp(issuer, k, now)
	if !ok {
		return f.fly(ctx, issuer, k)
	}
	f.counts.Hits.Add(1)
	if now.Before(a.reply.Refresh) || f.renew(issuer, k, a, now) {
		return a.reply
	}
	if a, ok = f.lookUp(issuer, k, f.now()); ok {
		return a.reply
	}
	return f.fly(ctx, issuer, k) // it was dropped in the meantime
}

// lookUp finds an answer that may be given now. One that begins later than now was made while the clock was ahead.
func (f *Front) lookUp(issuer *frontIssuer, k cacheKey, now time.Time) (*kept, bool) {
	a, ok := f.answers.GetIfPresent(k)
	if !ok {
		a, ok = f.unknown.GetIfPresent(k)
	}
	if !ok || a.epoch != issuer.epoch.Load() || !now.Before(a.reply.NextUpdate) || now.Before(a.reply.ThisUpdate) {
		return nil, false
	}
	return a, true
}

// flightKey must not hold what belongs to one client alone.
func (k *cacheKey) flightKey() string {
	b := append([]byte(nil), k.issuer[:]...)
	return string(k.serial.Append(append(b, byte(k.form))))
}

// fly asks once for all who want the same answer. Whoever comes after a change must not board a flight that left before it, so a flight belongs
// to a generation and an epoch.
func (f *Front) fly(ctx context.Context, issuer *frontIssuer, k cacheKey) Reply {
	v, _, _ := f.flights.Do(f.flightName(issuer, k), func() (any, error) {
		// The flight is for all who wait, so the first one's going away must not end it.
		ctx := context.WithoutCancel(ctx)
		q := &Question{Issuer: k.issuer, Items: []Item{{k.form, k.serial}}}
		return f.askSigner(ctx, issuer, q, &k), nil
	})
	return v.(Reply)
}

func (f *Front) flightName(issuer *frontIssuer, k cacheKey) string {
	return fmt.Sprintf("%s %d %d", k.flightKey(), issuer.newest.Load(), issuer.epoch.Load())
}

// renew has a newer answer made while a, which is near its time, is given on. It reports whether a may be given at once: where a is due, since nobody
// asked for it for long, the newer one gets a moment to arrive. An attempt that fails is made again, but not by every request.
func (f *Front) renew(issuer *frontIssuer, k cacheKey, a *kept, now time.Time) bool {
	last := a.attempt.Load()
	if now.UnixNano()-last < int64(renewPause) && now.UnixNano() >= last || !a.attempt.CompareAndSwap(last, now.UnixNano()) {
		return true
	}
	select {
	case f.renewing <- struct{}{}:
	default:
		a.attempt.Store(last)
		return true
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { <-f.renewing }()
		ctx := context.WithValue(context.Background(), urgent{}, true)
		f.askSigner(ctx, issuer, &Question{Issuer: k.issuer, Items: []Item{{k.form, k.serial}}}, &k)
	}()
	if now.Before(a.reply.due) {
		return true
	}
	select {
	case <-done:
	case <-time.After(renewWait):
	}
	return false
}

func (f *Front) askFor(ctx context.Context, issuer *frontIssuer, req *Request) Reply {
	q := &Question{Issuer: issuer.ID, Nonce: req.Nonce, Items: make([]Item, len(req.CertIDs))}
	for n := range req.CertIDs {
		q.Items[n] = Item{req.CertIDs[n].form, req.CertIDs[n].serial}
	}
	return f.askSigner(ctx, issuer, q, nil)
}

// askSigner gets an answer and, where k is not nil, keeps it. An answer by an older generation than the newest that is known is
// not given: the signer may have missed a revocation.
func (f *Front) askSigner(ctx context.Context, issuer *frontIssuer, q *Question, k *cacheKey) (r Reply) {
	defer f.survive(&r)
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	for range 2 {
		f.counts.Asked.Add(1)
		a, err := f.ask(ctx, q)
		if err != nil {
			if errors.Is(err, ErrBusy) {
				f.counts.Busy.Add(1)
			} else {
				f.counts.Unreachable.Add(1)
			}
			return errorReply(TryLater)
		}
		switch a.Status {
		case Successful:
		case InternalError, TryLater, Unauthorized:
			return errorReply(a.Status)
		default:
			return errorReply(InternalError)
		}
		if r, ok := f.take(issuer, &a, q.Nonce == nil, k); ok {
			return r
		}
	}
	return errorReply(TryLater)
}

// adopt believes the signer about the generation as long as keeper was never heard. What changed is then not known.
func (f *Front) adopt(i *frontIssuer, generation uint64) {
	if i.told.Load() || generation <= i.newest.Load() {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.told.Load() && generation > i.newest.Load() {
		f.drop(i)
		i.newest.Store(generation)
	}
}

func (f *Front) take(issuer *frontIssuer, a *Answer, cacheable bool, k *cacheKey) (Reply, bool) {
	f.adopt(issuer, a.Generation)
	issuer.mu.RLock()
	defer issuer.mu.RUnlock()
	if a.Generation < issuer.newest.Load() {
		return Reply{}, false
	}
	r := newReply(a, cacheable)
	if k == nil {
		return r, true
	}
	// A change that the signer knows and we are about to be told of: kept answers that it concerns are still there.
	if a.Generation > issuer.newest.Load() {
		return r, true
	}
	cache, other := f.answers, f.unknown
	if a.Unknown {
		cache, other = other, cache
	}
	other.Invalidate(*k)
	cache.Set(*k, &kept{reply: r, epoch: issuer.epoch.Load()})
	return r, true
}

// newReply: there is to be a newer answer before half of the time from producedAt to nextUpdate is over, 4 days after thisUpdate and, of one that holds
// for 16 h or more, 8 h before nextUpdate (TLS Baseline Requirements 4.9.10), as far as these lie after producedAt. It is asked for when three quarters of that time
// are over.
func newReply(a *Answer, cacheable bool) Reply {
	r := Reply{Status: Successful, DER: a.DER, Cacheable: cacheable, Unknown: a.Unknown,
		ProducedAt: a.ProducedAt, ThisUpdate: a.ThisUpdate, NextUpdate: a.NextUpdate}
	r.due = a.ProducedAt.Add(a.NextUpdate.Sub(a.ProducedAt) / 2)
	before := func(t time.Time) {
		if t.After(a.ProducedAt) && t.Before(r.due) {
			r.due = t
		}
	}
	before(a.ThisUpdate.Add(4 * 24 * time.Hour))
	if a.NextUpdate.Sub(a.ThisUpdate) >= 16*time.Hour {
		before(a.NextUpdate.Add(-8 * time.Hour))
	}
	r.Refresh = a.ProducedAt.Add(r.due.Sub(a.ProducedAt) / 4 * 3)
	if soon := a.ProducedAt.Add(unknownKept); a.Unknown && soon.Before(r.Refresh) {
		r.Refresh = soon
	}
	if !cacheable {
		return r
	}
	r.headers = newHeaders(a)
	return r
}
