package db

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"ocspd/pki"
)

// maxSerials is how many changed serials a Report lists one by one; with more it says All.
const maxSerials = 10_000

// sampled is how many serials a Report names as examples.
const sampled = 10

// Origin is what a Snapshot does not know of itself.
type Origin struct {
	Location string        // as configured, or "import" for what was handed in
	At       time.Time     // now: of an index, the time of its last successful read
	Validity time.Duration // of an index: how long it holds after At
	Source   string        // the configured source that it stands for, where Location is another: a delta's, or a CRL's that was handed in
	Override bool          // an admin's word against the guards on age, number, scope and regression
}

// lineage is the key of what the source feeds: all complete CRLs of an issuer, and their deltas, feed one, each source of CRLs
// of a part its own, and so each index.
func (o *Origin) lineage(snap *pki.Snapshot) string {
	switch {
	case snap.Kind == pki.Index:
		return IndexLineage(o.Location)
	case snap.Scope != "":
		return PartLineage(cmp.Or(o.Source, o.Location))
	}
	return CRLLineage
}

// CRLLineage is the key of the lineage of an issuer's complete CRLs.
const CRLLineage = "crl"

// PartLineage is the key of the lineage of a source whose CRLs cover a part of what the issuer issued.
func PartLineage(source string) string { return CRLLineage + ":" + source }

// IndexLineage is the key of the lineage of an index.
func IndexLineage(location string) string { return "index:" + location }

// Lineage is the reading of a source that is in force.
type Lineage struct {
	Key        string
	Kind       pki.SourceKind
	Location   string
	Number     string // of a CRL, hex; "" where there is none
	Delta      bool   // a delta CRL brought it up to date
	ThisUpdate time.Time
	NextUpdate time.Time
	Digest     [32]byte
	Size       int64
	Scope      string
	Import     int64
	Imported   time.Time
	Count      int64 // records
	Carried    int64 // of them, permanent revocations that the source no longer lists
	Generation uint64
}

// Source is how the lineage stands in a generation.
func (l *Lineage) Source() pki.Source {
	return pki.Source{Name: l.Location, Kind: l.Kind, Number: l.Number, ThisUpdate: l.ThisUpdate, NextUpdate: l.NextUpdate}
}

// Report says what an import changes in its lineage.
type Report struct {
	First      bool  // nothing was installed before
	Before     int64 // records in force, before and after
	After      int64
	Added      int64
	Changed    int64 // another status: a reason, a date
	Released   int64 // holds that ended
	Removed    int64 // good serials that the source no longer lists
	Vanished   int64 // permanent revocations that it no longer lists and that stay revoked: an alarm
	Carried    int64 // all of those in force, from earlier imports too
	Unremoved  int64 // removeFromCRL of a permanent revocation, not followed: an alarm
	Softened   int64 // permanent revocations that became a hold: a later release would undo them
	Regressed  int64 // revoked, now good, by override
	Duplicates int64 // serials listed more than once; revoked wins, then the earliest date
	Shrunk     bool  // more than half of the entries are gone: an alarm
	Sample     []pki.Serial
	Serials    []pki.Serial // whose answers may change
	All        bool         // too many to list, or the first import: every answer may change
}

// Warnings are the report's alarms and oddities, one line each.
func (r *Report) Warnings() []string {
	var w []string
	add := func(n int64, format string) {
		if n > 0 {
			w = append(w, fmt.Sprintf(format, n))
		}
	}
	add(r.Vanished, "%d permanent revocations are no longer listed and stay revoked (such as "+join(r.Sample)+"); ask the CA, or undo one with unrevoke --mistake")
	add(r.Unremoved, "%d permanent revocations were to be removed by a delta CRL and stay revoked")
	add(r.Softened, "%d permanent revocations became holds")
	add(r.Regressed, "%d revoked serials became good, by override")
	add(r.Duplicates, "%d serials are listed more than once; revoked wins, then the earliest date")
	if r.Shrunk {
		w = append(w, fmt.Sprintf("more than half of %d entries are gone", r.Before))
	}
	return w
}

func join(serials []pki.Serial) string {
	var s []string
	for _, n := range serials {
		s = append(s, n.String())
	}
	return strings.Join(s, ", ")
}

// Staged is an import whose records are written aside. It ends with Flip or Abort; until then no other import of its
// issuer begins.
type Staged struct {
	Issuer  pki.IssuerID
	Name    string // of the issuer
	Number  uint64 // for the file of its base: greater than that of any base in force before
	Lineage Lineage
	Report  Report

	issuer  int64
	cleared []pki.Serial // that the import took into account
	removal bool
	release func()
}

// WriteBase makes a file of the issuer's records, all lineages taken together, as Merged would yield them with the import in force. number is
// Staged.Number. It calls walk once, and fails where that does.
type WriteBase func(number uint64, walk func(yield func(*pki.Packed) error) error) error

// Stage compares a source with what is installed and writes it aside, in memory that does not grow with it, and has its base written in the
// same pass. The rules of CRL over CRL are applied here: ErrUnchanged (nothing to do but Touch), ErrOlder, ErrRefused; after any error
// nothing of it stays in force.
func (s *Store) Stage(ctx context.Context, id pki.IssuerID, from Origin, snap *pki.Snapshot, base WriteBase) (*Staged, error) {
	st, err := s.begin(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := s.stage(ctx, st, from, snap, base); err != nil {
		s.Abort(st)
		return nil, explain(err)
	}
	return st, nil
}

// StageRemoval prepares that a source which is no longer configured goes out of force.
func (s *Store) StageRemoval(ctx context.Context, id pki.IssuerID, key string) (*Staged, error) {
	st, err := s.begin(ctx, id)
	if err != nil {
		return nil, err
	}
	have, err := s.lineage(ctx, st.issuer, key)
	if err == nil && have == nil {
		err = ErrUnchanged
	}
	if err != nil {
		s.Abort(st)
		return nil, err
	}
	st.Lineage, st.removal = *have, true
	st.Report = Report{Before: have.Count, Removed: have.Count, All: true}
	return st, nil
}

func (s *Store) begin(ctx context.Context, id pki.IssuerID) (*Staged, error) {
	q := s.queue(id)
	if err := enter(ctx, q.staging); err != nil {
		return nil, err
	}
	st := &Staged{Issuer: id, release: sync.OnceFunc(func() { <-q.staging })}
	i, err := s.issuer(ctx, id)
	if err != nil {
		st.release()
		return nil, err
	}
	st.issuer, st.Name, st.Number = i.row, i.Name, i.Number+1
	return st, nil
}

// Abort puts a staged import out of the way; after Flip it does nothing. Should the database not take it, the next
// Open does.
func (s *Store) Abort(st *Staged) {
	err := s.change(context.Background(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`UPDATE import SET state = 'aborted' WHERE id = ? AND state = 'staged'`, st.Lineage.Import)
		return err
	})
	if err != nil {
		s.log.Error("a staged import could not be aborted; it stays out of force", "issuer", st.Name, "import", st.Lineage.Import, "error", err)
	}
	st.release()
}

func (s *Store) stage(ctx context.Context, st *Staged, from Origin, snap *pki.Snapshot, base WriteBase) error {
	key := from.lineage(snap)
	lineages, err := s.lineages(ctx, st.issuer)
	if err != nil {
		return err
	}
	have := find(lineages, key)
	if err := admit(have, snap, from.Override); err != nil {
		return err
	}
	sorted := &sorter{dir: filepath.Dir(s.path)}
	defer sorted.close()
	if err := readEntries(ctx, snap, sorted); err != nil {
		return err
	}
	st.Lineage = Lineage{
		Key: key, Kind: snap.Kind, Location: from.Location, Number: snap.Number, Delta: snap.BaseNumber != "",
		ThisUpdate: snap.ThisUpdate.UTC(), NextUpdate: snap.NextUpdate.UTC(), Digest: snap.Digest, Size: snap.Size, Scope: snap.Scope,
		Imported: from.At.UTC(),
	}
	if snap.Kind == pki.Index {
		st.Lineage.ThisUpdate, st.Lineage.NextUpdate = from.At.UTC(), from.At.Add(from.Validity).UTC()
	}
	if err := s.insertImport(ctx, st); err != nil {
		return err
	}
	c := &comparison{
		st: st, delta: st.Lineage.Delta, override: from.Override, cleared: map[pki.Serial]bool{},
		out: &stager{s: s, imp: st.Lineage.Import},
	}
	c.out.open = c.out.begin([]byte{})
	if have != nil {
		c.old = s.walk(have.Import, have.Count)
		st.Report.Before = have.Count
	} else {
		c.old = s.walk(0, 0)
		st.Report.First, st.Report.All = true, true
	}
	if err := s.loadCleared(ctx, st, c.cleared); err != nil {
		return err
	}
	whole := false
	var failed error // without what base says around it
	err = base(st.Number, func(yield func(*pki.Packed) error) error {
		failed = s.record(ctx, c, sorted, with(lineages, st), yield)
		whole = failed == nil
		return failed
	})
	if failed != nil {
		err = failed
	} else if err == nil && !whole {
		err = errors.New("the base was not written")
	}
	if waited := c.out.wait(); err == nil {
		err = waited
	}
	if err != nil {
		return err
	}
	st.Lineage.Count, st.Lineage.Carried = c.out.n, c.out.carried
	r := &st.Report
	r.After, r.Carried = c.out.n, c.out.carried
	r.Shrunk = !c.delta && r.Before > 0 && 2*snap.Count < r.Before
	return nil
}

// record writes the blocks of an import, and yields the records of the base in the same pass.
func (s *Store) record(ctx context.Context, c *comparison, sorted *sorter, ls []Lineage, yield func(*pki.Packed) error) (err error) {
	if c.out.merged, err = s.merge(ctx, ls, c.st.Lineage.Key, yield); err != nil {
		return err
	}
	if err = c.run(ctx, sorted); err != nil {
		return err
	}
	return c.out.merged.finish(ctx)
}

// readEntries takes the entries one by one and refuses what no answer could be made of.
func readEntries(ctx context.Context, snap *pki.Snapshot, to *sorter) error {
	var n int64
	err := snap.Entries(func(e pki.Entry) error {
		if n++; n%4096 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p := pki.Pack(e.Serial, e.Status, 0)
		remove := snap.BaseNumber != "" && e.Status.State == pki.Revoked && e.Status.Reason == pki.RemoveFromCRL && !e.Serial.IsZero()
		if err := p.Check(); err != nil && !remove {
			return refusef("serial %s: %v; ask the CA for a CRL without it", e.Serial, err)
		}
		if snap.Kind == pki.CRL && e.Status.State != pki.Revoked {
			return refusef("serial %s: %s on a CRL", e.Serial, e.Status.State)
		}
		return to.add(p)
	})
	if err == nil && n != snap.Count {
		err = fmt.Errorf("%d entries were read where %d were counted; the file changed meanwhile, import it again", n, snap.Count)
	}
	return err
}

// admit is contract.md, "CRL over CRL": whether a source may follow what is installed.
func admit(have *Lineage, snap *pki.Snapshot, override bool) error {
	if snap.BaseNumber != "" {
		return admitDelta(have, snap)
	}
	switch {
	case have == nil:
		return nil
	case snap.Digest == have.Digest:
		return ErrUnchanged
	case override || snap.Kind == pki.Index:
		return nil
	case snap.Scope != have.Scope:
		return refusef("it covers another part of the issuer's certificates (issuingDistributionPoint) than the CRL that its source gave before; if the CA meant that, 'crl import --force NOTE'")
	}
	numbered := snap.Number != "" && have.Number != ""
	number := compareNumbers(snap.Number, have.Number)
	switch {
	case numbered && number < 0:
		return older("number 0x%s is older than 0x%s installed", snap.Number, have.Number)
	case snap.ThisUpdate.Before(have.ThisUpdate):
		return older("thisUpdate %s is older than %s installed", utc(snap.ThisUpdate), utc(have.ThisUpdate))
	case numbered && number == 0 && !have.Delta:
		return refusef("number 0x%s is installed with other content; the CA must not issue a number twice, ask it for a newer CRL", snap.Number)
	case !numbered && snap.ThisUpdate.Equal(have.ThisUpdate):
		return refusef("thisUpdate %s is installed with other content; ask the CA for a newer CRL", utc(snap.ThisUpdate))
	}
	return nil
}

// admitDelta is RFC 5280 section 5.2.4: a delta fits on a complete CRL no older than its base and older than itself. No override
// makes one fit.
func admitDelta(have *Lineage, snap *pki.Snapshot) error {
	switch {
	case have == nil:
		return refusef("delta CRL number 0x%s builds on number 0x%s, and no complete CRL is installed; import that first", snap.Number, snap.BaseNumber)
	case snap.Digest == have.Digest:
		return ErrUnchanged
	case snap.Scope != have.Scope:
		return refusef("delta CRL number 0x%s covers another part of the issuer's certificates (issuingDistributionPoint) than the CRL installed", snap.Number)
	case snap.Number == "" || have.Number == "":
		return refusef("a delta CRL needs numbers to be fitted by; import a complete CRL with a number")
	case compareNumbers(snap.Number, have.Number) <= 0:
		return older("delta CRL number 0x%s brings nothing over 0x%s installed", snap.Number, have.Number)
	case compareNumbers(snap.BaseNumber, have.Number) > 0:
		return refusef("delta CRL number 0x%s builds on number 0x%s, newer than 0x%s installed; import the newest complete CRL first", snap.Number, snap.BaseNumber, have.Number)
	case snap.ThisUpdate.Before(have.ThisUpdate):
		return older("thisUpdate %s is older than %s installed", utc(snap.ThisUpdate), utc(have.ThisUpdate))
	}
	return nil
}

func older(format string, a ...any) error {
	return &refusal{fmt.Sprintf(format, a...) + "; fetch the newest CRL from the CA", []error{ErrOlder, ErrRefused}}
}

// compareNumbers compares hex numbers without leading zeros.
func compareNumbers(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

func utc(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func (s *Store) insertImport(ctx context.Context, st *Staged) error {
	l := &st.Lineage
	return s.change(ctx, func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx, `INSERT INTO import
			(issuer, lineage, kind, state, location, number, delta, this_update, next_update, digest, size, scope, at)
			VALUES (?, ?, ?, 'staged', ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			st.issuer, l.Key, l.Kind, l.Location, l.Number, l.Delta, l.ThisUpdate.Unix(), l.NextUpdate.Unix(), l.Digest[:], l.Size, l.Scope, l.Imported.Unix())
		if err != nil {
			return err
		}
		l.Import, err = r.LastInsertId()
		return err
	})
}

func (s *Store) loadCleared(ctx context.Context, st *Staged, into map[pki.Serial]bool) error {
	rows, err := s.r.QueryContext(ctx, `SELECT serial FROM cleared WHERE issuer = ? AND lineage = ?`, st.issuer, st.Lineage.Key)
	if err != nil {
		return explain(err)
	}
	defer rows.Close()
	for rows.Next() {
		serial, err := scanSerial(rows)
		if err != nil {
			return err
		}
		into[serial] = true
		st.cleared = append(st.cleared, serial)
	}
	return explain(rows.Err())
}

// comparison runs a source against the import before it, both in the order of serials, and writes the import that
// comes of it.
type comparison struct {
	st       *Staged
	old      *walker
	out      *stager
	delta    bool
	override bool
	cleared  map[pki.Serial]bool

	before *pki.Packed // the old record that comes next
}

func (c *comparison) run(ctx context.Context, sorted *sorter) (err error) {
	if c.before, err = c.old.next(ctx); err != nil {
		return err
	}
	var pending pki.Packed // the last serial, of which more may come
	var any bool
	err = sorted.merge(func(p *pki.Packed) error {
		if any && pending.Compare(p) == 0 {
			c.st.Report.Duplicates++
			pending = prevailing(pending, *p)
			return nil
		}
		if any {
			if err := c.take(ctx, &pending); err != nil {
				return err
			}
		}
		pending, any = *p, true
		return nil
	})
	if err == nil && any {
		err = c.take(ctx, &pending)
	}
	for err == nil && c.before != nil {
		err = c.missing(ctx)
	}
	if err == nil {
		err = c.out.finish(ctx)
	}
	if err != nil {
		return err
	}
	if r := &c.st.Report; r.Regressed > 0 && !c.override {
		return refusef("%d serials that were revoked are good in it (such as %s); correct it, or 'index import --force NOTE'", r.Regressed, join(r.Sample))
	}
	return nil
}

// take is for a serial that the source lists.
func (c *comparison) take(ctx context.Context, p *pki.Packed) error {
	for c.before != nil && c.before.Compare(p) < 0 {
		if err := c.missing(ctx); err != nil {
			return err
		}
	}
	var before *pki.Packed
	if c.before != nil && c.before.Compare(p) == 0 {
		before = c.before
		var err error
		if c.before, err = c.old.next(ctx); err != nil {
			return err
		}
	}
	switch {
	case before != nil && !c.undone(before):
		return c.both(ctx, before, p)
	case removes(p): // what is not there: legal, nothing to do
		return nil
	}
	c.st.Report.Added++
	return c.write(ctx, nil, p)
}

// undone holds for a carried revocation that was undone by name, with a history of its own: it is as if it were not there.
func (c *comparison) undone(p *pki.Packed) bool {
	return p.Source() == carriedMark && c.cleared[p.Serial()]
}

// both is for a serial that was listed before and is again.
func (c *comparison) both(ctx context.Context, before, p *pki.Packed) error {
	r := &c.st.Report
	was, is := before.Status(), p.Status()
	switch {
	case removes(p) && was.Permanent():
		r.Unremoved++
		r.sample(p)
		return c.out.add(ctx, before)
	case removes(p):
		r.Released++
		return c.drop(ctx, before)
	case was.Permanent() && is.State == pki.Good:
		r.Regressed++
		r.sample(p)
	case was.State == pki.Revoked && is.State == pki.Good:
		r.Released++
	case was.Permanent() && !is.Permanent():
		r.Softened++
		fallthrough
	default:
		if !before.SameStatus(p) {
			r.Changed++
		}
	}
	return c.write(ctx, before, p)
}

// missing is for a serial that was listed before and, in a complete source, is not any more.
func (c *comparison) missing(ctx context.Context) error {
	before := c.before
	var err error
	if c.before, err = c.old.next(ctx); err != nil {
		return err
	}
	if c.undone(before) {
		return nil
	}
	if c.delta || before.Source() == carriedMark {
		return c.out.add(ctx, before)
	}
	r := &c.st.Report
	switch st := before.Status(); {
	case st.Permanent():
		r.Vanished++
		r.sample(before)
		kept := *before
		kept.SetSource(carriedMark)
		if err := c.note(ctx, changeRow{before.Serial(), st, st, true}); err != nil {
			return err
		}
		return c.out.add(ctx, &kept)
	case st.State == pki.Revoked:
		r.Released++
	default:
		r.Removed++
	}
	return c.drop(ctx, before)
}

// write puts a record in the import and, where it says something new, in the history.
func (c *comparison) write(ctx context.Context, before, p *pki.Packed) error {
	change := changeRow{serial: p.Serial(), to: p.Status()}
	if before != nil {
		change.from = before.Status()
	}
	if before == nil || !before.SameStatus(p) {
		if err := c.note(ctx, change); err != nil {
			return err
		}
	}
	return c.out.add(ctx, p)
}

func (c *comparison) drop(ctx context.Context, before *pki.Packed) error {
	return c.note(ctx, changeRow{serial: before.Serial(), from: before.Status()})
}

// note records a change; the first import is no change.
func (c *comparison) note(ctx context.Context, change changeRow) error {
	r := &c.st.Report
	if r.First {
		return nil
	}
	if !r.All {
		if len(r.Serials) == maxSerials {
			r.Serials, r.All = nil, true
		} else {
			r.Serials = append(r.Serials, change.serial)
		}
	}
	return c.out.note(ctx, &change)
}

func (r *Report) sample(p *pki.Packed) {
	if len(r.Sample) < sampled {
		r.Sample = append(r.Sample, p.Serial())
	}
}

func removes(p *pki.Packed) bool { return p.Status().Reason == pki.RemoveFromCRL }

// prevailing is which of two entries of one serial counts (OCSP-CRL-18): revoked before good or removed, then the
// earliest date, then a permanent reason before a hold, then the lower reason.
func prevailing(a, b pki.Packed) pki.Packed {
	rank := func(p *pki.Packed) int {
		switch {
		case p.State() != pki.Revoked:
			return 2
		case removes(p):
			return 1
		}
		return 0
	}
	hold := func(s pki.Status) int {
		if s.Reason == pki.CertificateHold {
			return 1
		}
		return 0
	}
	x, y := a.Status(), b.Status()
	order := cmp.Or(
		cmp.Compare(rank(&a), rank(&b)),
		x.RevokedAt.Compare(y.RevokedAt),
		cmp.Compare(hold(x), hold(y)),
		cmp.Compare(x.Reason, y.Reason),
		bytes.Compare(a[:], b[:]),
	)
	if order <= 0 {
		return a
	}
	return b
}
