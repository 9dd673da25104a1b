package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ocspd/audit"
	"ocspd/db"
	"ocspd/generation"
	"ocspd/ingest"
	"ocspd/pki"
	"ocspd/responder"
)

// This file is the life of a CRL, and of an index.txt: fetched or handed in, checked, recorded, put in force, told.

const (
	clockSkew   = 5 * time.Minute // how far a CA's clock may be ahead of ours
	fetchTime   = 2 * time.Minute
	handedIn    = "import" // location of what `crl import` and `index import` brought
	handedMax   = 4 << 30  // octets of a file handed in
	publishTime = 15 * time.Second
	firstRetry  = 5 * time.Second
)

// follow reads a source at the start and then as often as it is configured; after a failure sooner, at growing intervals.
func (k *keeper) follow(ctx context.Context, i *keptIssuer, s *source) {
	retry := firstRetry
	for {
		wait := s.Refresh
		if _, err := k.fetch(ctx, i, s, true); err != nil {
			wait = min(retry, s.Refresh)
			retry = min(2*retry, s.Refresh)
		} else {
			retry = firstRetry
		}
		wait -= time.Duration(rand.Int64N(int64(wait)/10 + 1)) // so that several responders do not come at once
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// sourceOutcome is what reading a source came to.
type sourceOutcome struct {
	Issuer string   `json:"issuer"`
	Source string   `json:"source"`
	Result string   `json:"result"` // "installed", "unchanged", "passed over" or "failed"
	Text   string   `json:"text"`
	Warn   []string `json:"warnings,omitempty"`
}

// fetch reads one source, and its delta, and puts in force what is new. An error was logged, recorded and raised as an alarm; what was in force stays. Where
// it is soon read again, a file that somebody may just be writing is no alarm yet.
func (k *keeper) fetch(ctx context.Context, i *keptIssuer, s *source, again bool) (sourceOutcome, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out, err := k.fetchOne(ctx, i, s, s.location(), again)
	if err != nil {
		return out, err
	}
	places, complete := s.deltas(), out
	for _, location := range places {
		var delta sourceOutcome
		if delta, err = k.fetchOne(ctx, i, s, location, again); err != nil {
			out = delta
			continue
		}
		for _, other := range places { // one is enough
			k.alarms.clear(alarmSourceRefused, alarmPlace(i.config.Name, other))
		}
		if out = delta; delta.Result == "unchanged" {
			out = complete
		}
		break
	}
	return out, err
}

// deltas are the places of the source's delta CRL, one of which is enough: the configured one or, of a source that is a URL, those that its
// complete CRL names (Freshest CRL, RFC 5280 section 5.2.6). A source on this machine sends nobody to the network.
func (s *source) deltas() []string {
	if s.Delta != "" {
		return []string{s.Delta}
	}
	return s.freshest
}

// mayNameDeltas: what a CRL says of its deltas is not kept in the database, so that it is read whole once by each process.
func (s *source) mayNameDeltas() bool {
	return s.Delta == "" && (strings.HasPrefix(s.CRL, "http://") || strings.HasPrefix(s.CRL, "https://"))
}

func (k *keeper) fetchOne(ctx context.Context, i *keptIssuer, s *source, location string, again bool) (sourceOutcome, error) {
	name := i.config.Name
	out := sourceOutcome{Issuer: name, Source: location, Result: "failed"}
	feed, err := k.feedOf(ctx, i, location)
	if err != nil {
		k.alarms.raise(alarmDatabase, name, err.Error())
		return out, err
	}
	feed.Attempt = time.Now()
	r, err := k.readSource(ctx, i, s, location, &feed)
	switch {
	case ctx.Err() != nil:
		return out, ctx.Err()
	case errors.Is(err, db.ErrUnchanged):
		out.Result, out.Text, err = "unchanged", "unchanged", nil
	case errors.Is(err, errPassedOver):
		out.Result, out.Text, err = "passed over", err.Error(), nil
	case errors.Is(err, ingest.ErrIncomplete), errors.Is(err, ingest.ErrChanging):
		k.log.Info("source is being written; it is read again", "issuer", name, "source", location)
		feed.Error = err.Error()
	case err != nil:
		feed.Error = err.Error()
		if feed.RefusedSince.IsZero() {
			feed.RefusedSince = feed.Attempt
		}
	default:
		out.Result, out.Text, out.Warn = "installed", r.Text, r.Warnings
	}
	if err == nil {
		feed.Success, feed.Error, feed.RefusedSince = feed.Attempt, "", time.Time{}
	} else {
		out.Text = err.Error()
	}
	if s.spared = again && err != nil && !s.spared && justWritten(location, feed.Attempt); !s.spared {
		k.alarms.when(err != nil, alarmSourceRefused, alarmPlace(name, location), out.Text)
	}
	if dbErr := k.store.SetFeed(ctx, i.issuer.ID, feed); dbErr != nil {
		k.log.Error("the read of a source cannot be recorded", "issuer", name, "source", location, "error", dbErr)
	}
	return out, err
}

// settleTime is how old a file is that nobody is writing any more.
const settleTime = 5 * time.Second

// justWritten reports whether a file may be in the middle of being written, by a CA that does not write aside and rename.
func justWritten(location string, now time.Time) bool {
	info, err := os.Stat(location)
	return err == nil && now.Sub(info.ModTime()) < settleTime
}

// alarmPlace names a source of an issuer in an alarm.
func alarmPlace(issuer, location string) string { return issuer + " " + location }

func (k *keeper) feedOf(ctx context.Context, i *keptIssuer, location string) (db.Feed, error) {
	feeds, err := k.store.Feeds(ctx, i.issuer.ID)
	for _, f := range feeds {
		if f.Location == location {
			return f, err
		}
	}
	return db.Feed{Location: location}, err
}

// errPassedOver: a source that has not changed, and something newer is in force from elsewhere.
var errPassedOver = errors.New("passed over: what is in force is newer, and the source has not changed")

// readSource fetches a location and judges what it holds. Validators are kept only of what was judged good, so that what was
// refused is read again.
func (k *keeper) readSource(ctx context.Context, i *keptIssuer, s *source, location string, feed *db.Feed) (*changeResult, error) {
	feed.Kind = pki.CRL
	if s.Index != "" {
		feed.Kind = pki.Index
	}
	if info, err := os.Stat(location); err == nil && info.IsDir() && s.Index == "" {
		return k.readDirectory(ctx, i, s, location, feed)
	}
	return k.readFile(ctx, i, s, location, location, feed)
}

// readDirectory reads a directory that CAs publish into: of its CRLs, newest first, the first that is the issuer's, of the kind that is wanted,
// good, and not older than what is in force. What others publish there is passed over; what is refused on the way is an alarm all the same.
func (k *keeper) readDirectory(ctx context.Context, i *keptIssuer, s *source, dir string, feed *db.Feed) (*changeResult, error) {
	files, err := ingest.Newest(dir)
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("read %s: it holds no CRL; have the CA publish one there, named *.crl, *.der or *.pem", dir)
	}
	if err != nil {
		k.refuse(ctx, i, dir, [32]byte{}, err)
		return nil, err
	}
	var refused []error
	for _, file := range files {
		r, err := k.readFile(ctx, i, s, dir, file, feed)
		if errors.Is(err, errPassedOver) {
			continue
		}
		if err == nil || errors.Is(err, db.ErrUnchanged) {
			if len(refused) > 0 {
				return r, fmt.Errorf("%w; %s is in force", errors.Join(refused...), filepath.Base(file))
			}
			return r, err
		}
		refused = append(refused, fmt.Errorf("%s: %w", filepath.Base(file), err))
	}
	if len(refused) > 0 {
		return nil, errors.Join(refused...)
	}
	return nil, errPassedOver
}

// passes reports whether a file of a directory is none of this source's business.
func (k *keeper) passes(i *keptIssuer, s *source, dir string, spool *ingest.Spool, snap *pki.Snapshot) bool {
	if snap != nil {
		return (snap.BaseNumber != "") != (dir == s.Delta)
	}
	var others []*pki.Issuer
	for _, o := range k.issuers() {
		if o.issuer.ID != i.issuer.ID {
			others = append(others, o.issuer)
		}
	}
	_, err := ingest.IssuerOf(spool, others)
	return err == nil
}

// readFile reads a location or, of a directory, one of its files.
func (k *keeper) readFile(ctx context.Context, i *keptIssuer, s *source, location, file string, feed *db.Feed) (*changeResult, error) {
	previous := ingest.Validators{ETag: feed.ETag, LastModified: feed.LastModified, File: feed.File}
	if location == s.CRL && !s.read && s.mayNameDeltas() {
		previous = ingest.Validators{}
	}
	fetched, err := k.fetcher.Fetch(ctx, file, previous, ingest.Limits{Size: s.MaxSize, Time: fetchTime, Arriving: progressOf(ctx).arriving})
	if err != nil {
		k.refuse(ctx, i, location, [32]byte{}, err)
		return nil, err
	}
	if fetched.NotModified {
		if s.Index != "" {
			return nil, k.touchIndex(ctx, i, location, feed)
		}
		return nil, db.ErrUnchanged
	}
	defer fetched.Spool.Close()
	before := feed.Digest
	progressOf(ctx).checking(fetched.Spool, s.Index != "")
	snap, err := i.read(s.Index != "", fetched.Spool)
	if errors.Is(err, ingest.ErrIncomplete) || errors.Is(err, ingest.ErrChanging) {
		return nil, err
	}
	if file != location && k.passes(i, s, location, fetched.Spool, snap) {
		return nil, errPassedOver
	}
	feed.Digest = fetched.Spool.Digest()
	if snap != nil {
		feed.Digest = snap.Digest
	}
	var r *changeResult
	if err == nil {
		r, err = k.install(ctx, i, db.Origin{Location: location, Source: s.location()}, snap, "")
	}
	if snap != nil && location == s.CRL && s.mayNameDeltas() {
		for _, place := range s.freshest { // that may be named no more
			k.alarms.clear(alarmSourceRefused, alarmPlace(i.config.Name, place))
		}
		s.read, s.freshest = true, snap.Freshest
	}
	switch {
	case err == nil, errors.Is(err, db.ErrUnchanged):
		feed.ETag, feed.LastModified, feed.File = fetched.Validators.ETag, fetched.Validators.LastModified, fetched.Validators.File
	case errors.Is(err, db.ErrOlder) && (before == feed.Digest || len(s.deltas()) > 0 || file != location):
		// The file that stood here before something newer was handed in, the base that a delta has outrun, or one of many.
		return nil, errPassedOver
	default:
		k.refuse(ctx, i, location, feed.Digest, err)
	}
	if errors.Is(err, db.ErrUnchanged) && s.Index != "" {
		return nil, k.touchIndex(ctx, i, location, feed)
	}
	return r, err
}

// read judges the octets of a source.
func (i *keptIssuer) read(index bool, spool *ingest.Spool) (snap *pki.Snapshot, err error) {
	background(func() {
		if index {
			snap, err = ingest.ReadIndex(spool)
			return
		}
		snap, err = ingest.ReadCRL(spool, i.issuer, ingest.Options{
			Now: time.Now(), Skew: clockSkew, AcceptNoKeyUsage: slices.Contains(i.config.Accept, "ca-without-keyusage"),
		})
	})
	return snap, err
}

// refuse records and logs what was not taken, and what stays.
func (k *keeper) refuse(ctx context.Context, i *keptIssuer, location string, digest [32]byte, why error) {
	if ctx.Err() != nil {
		return
	}
	stays := k.staysInForce(ctx, i)
	k.log.Warn("source refused", "issuer", i.config.Name, "source", location, "reason", why, "stays", stays)
	details := []audit.Detail{{Name: "source", Value: location}, {Name: "reason", Value: cut(why.Error(), 1000)}, {Name: "stays", Value: stays}}
	if digest != [32]byte{} {
		details = append(details, audit.Detail{Name: "sha256", Value: hex.EncodeToString(digest[:])})
	}
	k.record(ctx, audit.Record{Event: "source.read", Subject: i.config.Name, Outcome: outcomeRefused, Details: details})
}

func cut(s string, max int) string {
	if len(s) > max {
		return strings.ToValidUTF8(s[:max], "") + "…"
	}
	return s
}

// staysInForce says what answers are made from meanwhile, and until when.
func (k *keeper) staysInForce(ctx context.Context, i *keptIssuer) string {
	lineages, err := k.store.Lineages(ctx, i.issuer.ID)
	if err != nil || len(lineages) == 0 {
		return "nothing is in force yet: every answer is tryLater"
	}
	ends := lineages[0].NextUpdate
	for _, l := range lineages {
		if l.NextUpdate.Before(ends) {
			ends = l.NextUpdate
		}
	}
	return fmt.Sprintf("generation %d stays in force until %s", i.inForce(), ends.UTC().Format(time.RFC3339))
}

func (i *keptIssuer) inForce() uint64 { return i.number.Load() }

// install puts a snapshot in force that was read and found good. from says where it is from; force, if it is not "", is a person's reason to take it
// against the rules of CRL over CRL. Even so, permanent revocations that a CRL no longer lists stay.
func (k *keeper) install(ctx context.Context, i *keptIssuer, from db.Origin, snap *pki.Snapshot, force string) (*changeResult, error) {
	location := from.Location
	from.At, from.Validity, from.Override = time.Now(), i.config.Validity, force != ""
	counting, holds := countHolds(snap)
	progress := progressOf(ctx)
	progress.begin("sorting", snap.Size)
	var base pki.File
	var staged *db.Staged
	var err error
	background(func() {
		staged, err = k.store.Stage(ctx, i.issuer.ID, from, counting, func(number uint64, walk func(func(*pki.Packed) error) error) (err error) {
			base, err = generation.WriteBase(k.cfg.generations(), i.config.Name, number, i.issuer.ID, progress.recording(snap.Count, walk))
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	progress.begin("putting in force", 0)
	event := audit.Record{Event: snap.Kind.String() + ".import", Subject: i.config.Name, Details: []audit.Detail{
		{Name: "source", Value: location}, {Name: "sha256", Value: hex.EncodeToString(snap.Digest[:])},
		{Name: "number", Value: snap.Number}, {Name: "entries", Value: strconv.FormatInt(snap.Count, 10)}}}
	if force != "" {
		event.Details = append(event.Details, audit.Detail{Name: "override", Value: cut(force, 1000)})
	}
	view, err := k.flip(ctx, i, staged, base, event)
	if err != nil {
		if isFull(err) { // what was written aside must be deleted, which takes room, too
			k.giveReserve(err)
			k.store.Collect(ctx)
		}
		return nil, err
	}
	warnings := append(slices.Clone(snap.Warnings), staged.Report.Warnings()...)
	if *holds > 0 && i.config.Profile == "webpki" {
		warnings = append(warnings, fmt.Sprintf("%d certificates are on hold, which profile webpki forbids; they are answered revoked (OCSP-REV-05)", *holds))
	}
	if force != "" {
		warnings = append(warnings, "imported by override: "+cut(force, 1000))
	}
	k.raiseWarnings(ctx, i, location, &staged.Report, warnings)
	k.collect(ctx)
	r := &changeResult{V: 1, Result: "installed", Issuer: i.config.Name, Generation: view.Number, Warnings: warnings}
	what := "index"
	if snap.Kind == pki.CRL {
		what = "CRL"
		if snap.Number != "" {
			what = "CRL number " + crlNumber(snap.Number)
		}
		if snap.BaseNumber != "" {
			what = "delta " + what
		}
	}
	r.Text = fmt.Sprintf("%s: %s with %d entries is in force as generation %d", i.config.Name, what, snap.Count, view.Number)
	k.log.Info("source installed", "issuer", i.config.Name, "source", location, "number", snap.Number, "entries", snap.Count, "generation", view.Number)
	return r, nil
}

// countHolds gives a snapshot that counts its certificates on hold while it is read.
func countHolds(snap *pki.Snapshot) (counting *pki.Snapshot, holds *int64) {
	holds, copied := new(int64), *snap
	copied.Entries = func(yield func(pki.Entry) error) error {
		*holds = 0
		return snap.Entries(func(e pki.Entry) error {
			if e.Status.State == pki.Revoked && e.Status.Reason == pki.CertificateHold {
				*holds++
			}
			return yield(e)
		})
	}
	return &copied, holds
}

func (k *keeper) raiseWarnings(ctx context.Context, i *keptIssuer, location string, report *db.Report, warnings []string) {
	name := i.config.Name
	place := alarmPlace(name, location)
	k.alarms.when(report.Carried > 0, alarmVanished, place,
		fmt.Sprintf("%d permanent revocations are no longer listed and stay revoked; ask the CA, and undo what was a mistake by 'ocspd unrevoke --mistake'", report.Carried))
	k.alarms.when(len(warnings) > 0, alarmSourceWarning, place, strings.Join(warnings, "; "))
	k.checkDisagreements(ctx, i)
}

func (k *keeper) checkDisagreements(ctx context.Context, i *keptIssuer) {
	if lineages, err := k.store.Lineages(ctx, i.issuer.ID); len(i.sources) < 2 || err == nil && i.gap(lineages) != "" {
		return // there is nothing to compare, or silence of the CRLs says nothing
	}
	tally, err := k.store.Disagreements(ctx, i.issuer.ID)
	if err != nil {
		k.log.Error("sources cannot be compared", "issuer", i.config.Name, "error", err)
		return
	}
	k.alarms.when(tally.Disagreements > 0, alarmDisagree, i.config.Name,
		fmt.Sprintf("the CRL and the index say different things of %d certificates; revoked wins; ask the CA which is right", tally.Disagreements))
}

// flip puts a staged import in force, whose base was written.
func (k *keeper) flip(ctx context.Context, i *keptIssuer, staged *db.Staged, base pki.File, event audit.Record) (db.View, error) {
	defer k.store.Abort(staged) // nothing, once it is in force
	change := responder.Change{All: staged.Report.All || len(staged.Report.Serials) > responder.MaxChanged, Serials: staged.Report.Serials}
	view, _, err := k.putInForce(ctx, i, event, base, change, func(publish db.Publish) (db.View, error) {
		return k.store.Flip(ctx, staged, publish)
	})
	return view, err
}

func (k *keeper) writeBase(ctx context.Context, i *keptIssuer, number uint64, staged *db.Staged) (pki.File, error) {
	return generation.WriteBase(k.cfg.generations(), i.config.Name, number, i.issuer.ID, func(yield func(*pki.Packed) error) error {
		_, err := k.store.Merged(ctx, i.issuer.ID, staged, yield)
		return err
	})
}

// putInForce makes one change of an issuer, in the order that a crash at any moment leaves either the old generation or the new one: the
// record in the audit log, the generation's file, the database, the pointer file; then signer is told, and front. When it returns without error,
// the change is durable.
func (k *keeper) putInForce(ctx context.Context, i *keptIssuer, event audit.Record, base pki.File, change responder.Change,
	do func(db.Publish) (db.View, error)) (db.View, responder.Delivery, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if event.Actor == "" {
		event.Actor = actorOf(ctx)
	}
	event.Outcome = outcomeAccepted
	var gen pki.File
	announced := false
	view, err := do(func(v db.View) (p db.Published, err error) {
		p.Leaf = -1
		if event.Event != "" {
			event.Details = append(event.Details, audit.Detail{Name: "generation", Value: strconv.FormatUint(v.Number, 10)})
			if event.Sequence, err = k.audit.Append(ctx, event); err != nil {
				return p, err
			}
			announced = true
			p.Leaf = int64(event.Sequence)
		}
		if p.Base = v.Base; p.Base.Name == "" {
			if p.Base = base; p.Base.Name == "" {
				if p.Base, err = k.writeBase(ctx, i, v.Number, nil); err != nil {
					return p, err
				}
			}
		}
		gen, err = generation.Write(k.cfg.generations(), generation.Meta{
			Issuer: i.issuer.ID, Name: i.config.Name, Number: v.Number, Created: time.Now().UTC().Truncate(time.Second),
			Sources: v.Sources(), Complete: i.complete(v.Lineages), Gap: i.gap(v.Lineages),
		}, v.Rulings, p.Base)
		p.Gen = gen
		return p, err
	})
	if err != nil {
		if announced {
			k.record(context.WithoutCancel(ctx), aborted(event, cut(err.Error(), 1000)))
		}
		return view, responder.Delivery{}, err
	}
	delivery, err := k.announce(ctx, i, pending{gen, view.Number, change})
	return view, delivery, err
}

// pending is a generation that the database has in force and that is still to be pointed at and told of.
type pending struct {
	gen    pki.File
	number uint64
	change responder.Change
}

// announce points at a generation and tells signer and front. Should the pointer not get written, the disk being full, watch tries on until it
// is; meanwhile the generation before answers. The caller holds i.mu.
func (k *keeper) announce(ctx context.Context, i *keptIssuer, p pending) (responder.Delivery, error) {
	name := i.config.Name
	err := generation.Point(k.cfg.generations(), name, p.gen)
	if isFull(err) && k.giveReserve(err) {
		err = generation.Point(k.cfg.generations(), name, p.gen)
	}
	if err != nil {
		i.pending.Store(&p)
		err = fmt.Errorf("generation %d is recorded, but not in force before its pointer can be written: %w; make room, and keeper goes on by itself", p.number, err)
		k.alarms.raise(alarmDatabase, name, err.Error())
		return responder.Delivery{}, err
	}
	i.pending.Store(nil)
	p.change.Issuer, p.change.From, p.change.To = i.issuer.ID, i.inForce(), p.number
	i.number.Store(p.number)
	telling, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishTime)
	defer cancel()
	delivery := k.feed.Publish(telling, p.change)
	if err := generation.Collect(k.cfg.generations(), name); err != nil {
		k.log.Warn("old generation files cannot be removed", "issuer", name, "error", err)
	}
	return delivery, nil
}

// announcePending tries again what announce could not.
func (k *keeper) announcePending(ctx context.Context, i *keptIssuer) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if p := i.pending.Load(); p != nil {
		k.announce(ctx, i, *p)
	}
}

// touchIndex moves the times of an index that was read again and says what it said: that is how an index stays fresh. Where something else
// is in force, handed in since, the unchanged file vouches for nothing.
func (k *keeper) touchIndex(ctx context.Context, i *keptIssuer, location string, feed *db.Feed) error {
	lineages, err := k.store.Lineages(ctx, i.issuer.ID)
	if err != nil {
		return err
	}
	for _, l := range lineages {
		if l.Key != db.IndexLineage(location) {
			continue
		}
		if l.Digest != feed.Digest {
			return errPassedOver
		}
		now := time.Now().UTC().Truncate(time.Second)
		if now.Sub(l.ThisUpdate) < touchAfter(i.config.Validity) {
			return db.ErrUnchanged
		}
		_, _, err := k.putInForce(ctx, i, audit.Record{}, pki.File{}, responder.Change{}, func(publish db.Publish) (db.View, error) {
			return k.store.Touch(ctx, i.issuer.ID, l.Key, now, now, now.Add(i.config.Validity), publish)
		})
		if err != nil {
			return err
		}
	}
	return db.ErrUnchanged
}

// touchAfter spares a generation for every read: the time moves when a hundredth of the validity is over.
func touchAfter(validity time.Duration) time.Duration { return validity / 100 }

func (k *keeper) handleCRLImport(r *http.Request) (any, error) {
	ctx, name := r.Context(), r.URL.Query().Get("name")
	fail := func(err error) error { return fmt.Errorf("crl import %s: %w", name, err) }
	spool, err := k.receive(r)
	if err != nil {
		return nil, fail(err)
	}
	defer spool.Close()
	progressOf(ctx).checking(spool, false)
	i, err := k.importIssuer(r, spool)
	if err != nil {
		digest := spool.Digest()
		k.record(ctx, audit.Record{Event: "source.read", Outcome: outcomeRefused, Details: []audit.Detail{
			{Name: "source", Value: handedIn}, {Name: "name", Value: cut(name, 1000)}, {Name: "reason", Value: cut(err.Error(), 1000)}, {Name: "sha256", Value: hex.EncodeToString(digest[:])}}})
		return nil, fail(fmt.Errorf("%w; nothing was changed", err))
	}
	if len(i.sources) > 0 && !i.hasCRL() {
		return nil, fail(fmt.Errorf("issuer %s takes its data from an index only; add a [[issuer.%s.source]] with crl = …", i.config.Name, i.config.Name))
	}
	res, err := k.importSpool(ctx, i, false, handedIn, spool, r.URL.Query().Get("force"))
	if err != nil {
		return nil, fail(err)
	}
	return res, nil
}

// receive takes a file that is handed in.
func (k *keeper) receive(r *http.Request) (spool *ingest.Spool, err error) {
	background(func() {
		spool, err = ingest.NewSpool(filepath.Join(k.cfg.keeperDir(), "spool"), progressOf(r.Context()).arriving(r.Body, r.ContentLength), handedMax)
	})
	return spool, err
}

func (k *keeper) importIssuer(r *http.Request, spool *ingest.Spool) (*keptIssuer, error) {
	if name := r.URL.Query().Get("issuer"); name != "" {
		return k.issuer(name)
	}
	var all []*pki.Issuer
	for _, i := range k.issuers() {
		all = append(all, i.issuer)
	}
	var found *pki.Issuer
	var err error
	background(func() { found, err = ingest.IssuerOf(spool, all) })
	if err != nil {
		return nil, err
	}
	return k.issuer(found.Name)
}

func (k *keeper) handleIndexImport(r *http.Request) (any, error) {
	ctx, name := r.Context(), r.URL.Query().Get("name")
	fail := func(err error) error { return fmt.Errorf("index import %s: %w", name, err) }
	i, err := k.issuer(r.URL.Query().Get("issuer"))
	if err != nil {
		return nil, fail(err)
	}
	location, err := i.indexLocation()
	if err != nil {
		return nil, fail(err)
	}
	spool, err := k.receive(r)
	if err != nil {
		return nil, fail(err)
	}
	defer spool.Close()
	progressOf(ctx).checking(spool, true)
	res, err := k.importSpool(ctx, i, true, location, spool, r.URL.Query().Get("force"))
	if err != nil {
		return nil, fail(err)
	}
	return res, nil
}

// indexLocation is the index that a file handed in stands for.
func (i *keptIssuer) indexLocation() (string, error) {
	var locations []string
	for _, s := range i.sources {
		if s.Index != "" {
			locations = append(locations, s.Index)
		}
	}
	switch {
	case len(locations) == 1:
		return locations[0], nil
	case len(i.sources) == 0:
		return handedIn, nil
	case len(locations) == 0:
		return "", fmt.Errorf("issuer %s has no index among its sources; add a [[issuer.%s.source]] with index = …", i.config.Name, i.config.Name)
	}
	return "", fmt.Errorf("issuer %s has %d indexes, and the file could stand for any; put it in place of the one it replaces", i.config.Name, len(locations))
}

// importSpool judges and installs what a person handed in.
func (k *keeper) importSpool(ctx context.Context, i *keptIssuer, index bool, location string, spool *ingest.Spool, force string) (*changeResult, error) {
	from := db.Origin{Location: location}
	snap, err := i.read(index, spool)
	if err == nil && snap.Scope != "" {
		var lineages []db.Lineage
		if lineages, err = k.store.Lineages(ctx, i.issuer.ID); err == nil {
			from.Source, err = i.partSource(snap, lineages)
		}
	}
	var res *changeResult
	if err == nil {
		res, err = k.install(ctx, i, from, snap, force)
	}
	if errors.Is(err, db.ErrUnchanged) && index {
		err = k.touchIndex(ctx, i, location, &db.Feed{Digest: snap.Digest})
	}
	if errors.Is(err, db.ErrUnchanged) {
		return &changeResult{V: 1, Result: "unchanged", Issuer: i.config.Name, Generation: i.inForce(),
			Text: fmt.Sprintf("%s: unchanged: this very %s is in force as generation %d", i.config.Name, snap.Kind, i.inForce())}, nil
	}
	if err != nil {
		k.refuse(ctx, i, location, spool.Digest(), err)
		return nil, fmt.Errorf("%w; %s", err, k.staysInForce(ctx, i))
	}
	return res, nil
}

// fetchResult is what `crl fetch` prints.
type fetchResult struct {
	V       int             `json:"v"`
	Sources []sourceOutcome `json:"sources"`
	Failed  int             `json:"failed"`
}

func (k *keeper) handleFetch(r *http.Request) (any, error) {
	which := k.issuers()
	if name := r.URL.Query().Get("issuer"); name != "" {
		i, err := k.issuer(name)
		if err != nil {
			return nil, fmt.Errorf("crl fetch: %w", err)
		}
		which = []*keptIssuer{i}
	}
	out := fetchResult{V: 1, Sources: []sourceOutcome{}}
	n, of := 0, 0
	for _, i := range which {
		of += len(i.sources)
	}
	for _, i := range which {
		for _, s := range i.sources {
			progressOf(r.Context()).part(n, of)
			n++
			o, err := k.fetch(r.Context(), i, s, false)
			if err != nil {
				out.Failed++
			}
			out.Sources = append(out.Sources, o)
		}
	}
	return out, nil
}
