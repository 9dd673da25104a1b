package db

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"ocspd/pki"
)

// Issuer is what the database knows of an issuer: the generation in force and what put it there.
type Issuer struct {
	ID     pki.IssuerID
	Name   string
	Number uint64   // of the generation in force; 0 before the first
	Gen    pki.File // its file
	Base   pki.File // the base that the file refers to
	Leaf   int64    // of the audit log, that names the change; -1 before the first
	Since  time.Time

	row   int64
	state []byte // of what is in force, as state.sum gives it; empty before the first change
}

// View is a generation about to be: all that its file has to say.
type View struct {
	Issuer   pki.IssuerID
	Name     string
	Number   uint64
	Base     pki.File  // to refer to; with no Name, one has to be written from Merged
	Lineages []Lineage // in the order of the records' source index
	Rulings  []pki.Ruling
}

// Sources are the lineages as they stand in a generation.
func (v *View) Sources() []pki.Source {
	var s []pki.Source
	for _, l := range v.Lineages {
		s = append(s, l.Source())
	}
	return s
}

// Published is what a Publish has made durable.
type Published struct {
	Base, Gen pki.File
	Leaf      int64
}

// Publish makes a generation durable, before it comes into force: it appends the change to the audit log and writes
// the file. No other change of the issuer happens meanwhile. Its error ends the change, and nothing was changed.
type Publish func(View) (Published, error)

// Register makes an issuer known, or known under another name, whose files have to be written anew. Here and wherever an issuer is looked for, the
// index is not asked: were it damaged, all that is known of the issuer would seem not to be there.
func (s *Store) Register(ctx context.Context, id pki.IssuerID, name string) error {
	err := s.change(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO issuer (certificate, name)
			SELECT ?1, ?2 WHERE NOT EXISTS (SELECT 1 FROM issuer NOT INDEXED WHERE certificate = ?1)`, id[:], name)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE issuer NOT INDEXED SET name = ?2, base_file = NULL, base_sha256 = NULL, base_count = NULL
			WHERE certificate = ?1 AND name <> ?2`, id[:], name)
		return err
	})
	if err != nil {
		return fmt.Errorf("register issuer %s: %w", name, err)
	}
	return nil
}

const selectIssuer = `SELECT id, certificate, name, generation, gen_file, gen_sha256, gen_count,
	base_file, base_sha256, base_count, leaf, since, state FROM issuer`

func scanIssuer(row interface{ Scan(...any) error }) (*Issuer, error) {
	var i Issuer
	var certificate, genSum, baseSum []byte
	var gen, base sql.NullString
	var genCount, baseCount, leaf, since sql.NullInt64
	err := row.Scan(&i.row, &certificate, &i.Name, &i.Number, &gen, &genSum, &genCount, &base, &baseSum, &baseCount, &leaf, &since, &i.state)
	if err != nil {
		return nil, err
	}
	copy(i.ID[:], certificate)
	i.Gen, i.Base = file(gen.String, genSum, genCount.Int64), file(base.String, baseSum, baseCount.Int64)
	i.Leaf = -1
	if leaf.Valid {
		i.Leaf = leaf.Int64
	}
	i.Since = fromSeconds(since)
	return &i, nil
}

func file(name string, sum []byte, count int64) pki.File {
	f := pki.File{Name: name, Count: count}
	copy(f.SHA256[:], sum)
	return f
}

func (s *Store) issuer(ctx context.Context, id pki.IssuerID) (*Issuer, error) {
	i, err := scanIssuer(s.r.QueryRowContext(ctx, selectIssuer+` NOT INDEXED WHERE certificate = ?`, id[:]))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("issuer certificate with SHA-256 %x: %w in the database", id, ErrNoIssuer)
	}
	return i, explain(err)
}

// Issuers are all issuers ever registered, by name.
func (s *Store) Issuers(ctx context.Context) ([]Issuer, error) {
	rows, err := s.r.QueryContext(ctx, selectIssuer+` ORDER BY name`)
	if err != nil {
		return nil, explain(err)
	}
	defer rows.Close()
	var all []Issuer
	for rows.Next() {
		i, err := scanIssuer(rows)
		if err != nil {
			return nil, explain(err)
		}
		all = append(all, *i)
	}
	return all, explain(rows.Err())
}

const selectLineage = `SELECT l.key, i.kind, i.location, i.number, i.delta, l.this_update, l.next_update, i.digest, i.size,
	i.scope, i.id, i.at, i.count, i.carried, i.generation
	FROM lineage l JOIN import i ON i.id = l.import WHERE l.issuer = ?`

func (s *Store) lineages(ctx context.Context, issuer int64) ([]Lineage, error) {
	rows, err := s.r.QueryContext(ctx, selectLineage+` ORDER BY l.key`, issuer)
	if err != nil {
		return nil, explain(err)
	}
	defer rows.Close()
	var all []Lineage
	for rows.Next() {
		var l Lineage
		var digest []byte
		var this, next, at sql.NullInt64
		if err := rows.Scan(&l.Key, &l.Kind, &l.Location, &l.Number, &l.Delta, &this, &next, &digest, &l.Size,
			&l.Scope, &l.Import, &at, &l.Count, &l.Carried, &l.Generation); err != nil {
			return nil, explain(err)
		}
		copy(l.Digest[:], digest)
		l.ThisUpdate, l.NextUpdate, l.Imported = fromSeconds(this), fromSeconds(next), fromSeconds(at)
		all = append(all, l)
	}
	return all, explain(rows.Err())
}

// lineage is nil where the issuer has none of that key.
func (s *Store) lineage(ctx context.Context, issuer int64, key string) (*Lineage, error) {
	all, err := s.lineages(ctx, issuer)
	return find(all, key), err
}

func find(all []Lineage, key string) *Lineage {
	if i := slices.IndexFunc(all, func(l Lineage) bool { return l.Key == key }); i >= 0 {
		return &all[i]
	}
	return nil
}

// Lineages are the readings of the issuer's sources that are in force.
func (s *Store) Lineages(ctx context.Context, id pki.IssuerID) ([]Lineage, error) {
	i, err := s.issuer(ctx, id)
	if err != nil {
		return nil, err
	}
	return s.lineages(ctx, i.row)
}

// with is the list after st.
func with(all []Lineage, st *Staged) []Lineage {
	all = slices.DeleteFunc(slices.Clone(all), func(l Lineage) bool { return l.Key == st.Lineage.Key })
	if !st.removal {
		all = append(all, st.Lineage)
	}
	slices.SortFunc(all, func(a, b Lineage) int {
		switch {
		case a.Key < b.Key:
			return -1
		case a.Key > b.Key:
			return 1
		}
		return 0
	})
	return all
}

// Tally is what Merged saw.
type Tally struct {
	Records       int64
	Disagreements int64 // serials on which a CRL and an index that must know of it say different things
	Sample        []pki.Serial
}

// Merged yields the issuer's records in order, all lineages taken together, each with the index of the source that
// governs it: revoked by a CRL, revoked by an index, good. st, which may be nil, is a removal that is taken for what is installed.
// Revocations by hand are not among them. It is called with an import staged or from within a Publish.
func (s *Store) Merged(ctx context.Context, id pki.IssuerID, st *Staged, yield func(*pki.Packed) error) (Tally, error) {
	i, err := s.issuer(ctx, id)
	if err != nil {
		return Tally{}, err
	}
	ls, err := s.lineages(ctx, i.row)
	if err != nil {
		return Tally{}, err
	}
	if st != nil {
		ls = with(ls, st)
	}
	m, err := s.merge(ctx, ls, "", yield)
	if err == nil {
		err = m.finish(ctx)
	}
	return m.tally, err
}

// merger takes the records of several lineages together, in the order of serials.
type merger struct {
	lineages []Lineage
	walkers  []*walker     // nil for the lineage whose records come by put
	heads    []*pki.Packed // the next record of each; nil where there is none
	say      []*pki.Packed // of one serial
	own      int
	yield    func(*pki.Packed) error
	tally    Tally
}

// merge begins with the lineages as they are stored, but for own, if it is not "": its records are to come by put.
func (s *Store) merge(ctx context.Context, ls []Lineage, own string, yield func(*pki.Packed) error) (*merger, error) {
	m := &merger{lineages: ls, walkers: make([]*walker, len(ls)), heads: make([]*pki.Packed, len(ls)), say: make([]*pki.Packed, len(ls)), yield: yield}
	if len(ls) >= pki.HandSource {
		return m, fmt.Errorf("more than %d sources of an issuer", pki.HandSource-1)
	}
	for n, l := range ls {
		if l.Key == own {
			m.own = n
			continue
		}
		m.walkers[n] = s.walk(l.Import, l.Count)
		if err := m.advance(ctx, n); err != nil {
			return m, err
		}
	}
	return m, nil
}

func (m *merger) advance(ctx context.Context, n int) (err error) {
	m.heads[n] = nil
	if m.walkers[n] != nil {
		m.heads[n], err = m.walkers[n].next(ctx)
	}
	return err
}

// put takes the next record of the lineage that is being made.
func (m *merger) put(ctx context.Context, p *pki.Packed) error {
	for m.heads[m.own] = p; m.heads[m.own] != nil; {
		if _, err := m.step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// finish yields what is left.
func (m *merger) finish(ctx context.Context) error {
	for {
		if more, err := m.step(ctx); !more || err != nil {
			return err
		}
	}
}

// step yields the least of the serials that come next; false if there is none.
func (m *merger) step(ctx context.Context) (bool, error) {
	var least *pki.Packed
	for _, h := range m.heads {
		if h != nil && (least == nil || h.Compare(least) < 0) {
			least = h
		}
	}
	if least == nil {
		return false, nil
	}
	for n, h := range m.heads {
		m.say[n] = nil
		if h == nil || h != least && h.Compare(least) != 0 {
			continue
		}
		m.say[n] = h
		if err := m.advance(ctx, n); err != nil {
			return false, err
		}
	}
	m.tally.Records++
	if disagree(m.lineages, m.say) {
		if m.tally.Disagreements++; len(m.tally.Sample) < sampled {
			m.tally.Sample = append(m.tally.Sample, least.Serial())
		}
	}
	g := governing(m.lineages, m.say)
	p := *m.say[g]
	p.SetSource(uint8(g))
	return true, m.yield(&p)
}

// governing is which of the sources, of which those with a record say something, decides; -1 if none does.
func governing(ls []Lineage, say []*pki.Packed) int {
	best := -1
	rank := func(n int) int {
		switch {
		case say[n].State() != pki.Revoked:
			return 2
		case ls[n].Kind != pki.CRL:
			return 1
		}
		return 0
	}
	for n, p := range say {
		if p == nil {
			continue
		}
		if best < 0 || rank(n) < rank(best) ||
			rank(n) == rank(best) && p.Status().RevokedAt.Before(say[best].Status().RevokedAt) {
			best = n
		}
	}
	return best
}

// disagree holds when a CRL and an index contradict each other: the CRL revokes what no index has as revoked, or an index
// revoked before the CRL was made what it does not list.
func disagree(ls []Lineage, say []*pki.Packed) bool {
	var crls, indexes, byCRL, byIndex, carried int
	for n, l := range ls {
		revoked := say[n] != nil && say[n].State() == pki.Revoked
		switch l.Kind {
		case pki.CRL:
			crls++
			if revoked {
				byCRL++
			}
			if revoked && say[n].Source() == carriedMark {
				carried++
			}
		case pki.Index:
			indexes++
			if revoked {
				byIndex++
			}
		}
	}
	if crls == 0 || indexes == 0 {
		return false
	}
	if byCRL > carried && byIndex == 0 {
		return true
	}
	if byCRL > carried || byIndex == 0 {
		return false
	}
	for n, l := range ls { // no CRL lists it, an index revokes it: was it time that a CRL did?
		if l.Kind != pki.CRL {
			continue
		}
		for m, p := range say {
			if ls[m].Kind == pki.Index && p != nil && p.State() == pki.Revoked && p.Status().RevokedAt.Before(ls[n].ThisUpdate) {
				return true
			}
		}
	}
	return false
}

// Disagreements compares all sources of an issuer that are in force. It waits for an import in progress.
func (s *Store) Disagreements(ctx context.Context, id pki.IssuerID) (Tally, error) {
	q := s.queue(id)
	if err := enter(ctx, q.staging); err != nil {
		return Tally{}, err
	}
	defer func() { <-q.staging }()
	return s.Merged(ctx, id, nil, func(*pki.Packed) error { return nil })
}

// state is what an issuer's generation is made of, in memory, so that a change can be seen before it is made.
type state struct {
	lineages []Lineage
	hand     map[pki.Serial]HandEntry
	cleared  map[pki.Serial]map[string]bool // by lineage
	known    known
}

// known is what find said, by import. An import never changes, so it stays true; it saves a thousand reads where a
// thousand revocations by hand are in force.
type known map[int64]map[pki.Serial]*pki.Packed

// of keeps what is known of the imports in force.
func (k known) of(ls []Lineage) known {
	kept := known{}
	for _, l := range ls {
		if kept[l.Import] = k[l.Import]; kept[l.Import] == nil {
			kept[l.Import] = map[pki.Serial]*pki.Packed{}
		}
	}
	return kept
}

// state reads what is in force for an issuer. Rows have no digest of their own, so all of them together have one: a page that lost some is no
// revocation undone.
func (s *Store) state(ctx context.Context, i *Issuer) (*state, error) {
	st := &state{hand: map[pki.Serial]HandEntry{}, cleared: map[pki.Serial]map[string]bool{}}
	var err error
	if st.lineages, err = s.lineages(ctx, i.row); err != nil {
		return nil, err
	}
	entries, err := s.hand(ctx, i.row)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		st.hand[e.Serial] = e
	}
	rows, err := s.r.QueryContext(ctx, `SELECT serial, lineage FROM cleared WHERE issuer = ?`, i.row)
	if err != nil {
		return nil, explain(err)
	}
	defer rows.Close()
	for rows.Next() {
		var key string
		serial, err := scanSerial(rows, &key)
		if err != nil {
			return nil, err
		}
		st.clear(serial, key)
	}
	if err := rows.Err(); err != nil {
		return nil, explain(err)
	}
	if sum := st.sum(i.ID); i.state == nil || len(i.state) > 0 && string(i.state) != string(sum[:]) {
		return nil, damaged("issuer %s: sources or revocations by hand are not as they were written", i.Name)
	}
	return st, nil
}

// atRest runs f on what is in force for an issuer, while nothing else comes into force.
func (s *Store) atRest(ctx context.Context, id pki.IssuerID, f func(*state) error) error {
	q := s.queue(id)
	if err := enter(ctx, q.flip); err != nil {
		return err
	}
	defer func() { <-q.flip }()
	i, err := s.issuer(ctx, id)
	if err != nil {
		return err
	}
	st, err := s.state(ctx, i)
	if err != nil {
		return err
	}
	return f(st)
}

// sum is the SHA-256 of the state. Times count in seconds, as they are stored.
func (st *state) sum(id pki.IssuerID) (sum [sha256.Size]byte) {
	h := sha256.New()
	fmt.Fprintf(h, "%x\n", id)
	for _, l := range st.lineages {
		fmt.Fprintf(h, "lineage %q %d %q %q %t %d %d %x %d %q %d %d %d %d %d\n", l.Key, l.Kind, l.Location, l.Number, l.Delta,
			l.ThisUpdate.Unix(), l.NextUpdate.Unix(), l.Digest, l.Size, l.Scope, l.Import, l.Imported.Unix(), l.Count, l.Carried, l.Generation)
	}
	for _, serial := range slices.SortedFunc(maps.Keys(st.hand), pki.Serial.Compare) {
		e := st.hand[serial]
		fmt.Fprintf(h, "hand %x %d %d %d %d %q\n", serial.Bytes(), e.Reason, e.RevokedAt.Unix(), e.Invalidity.Unix(), e.At.Unix(), e.Actor)
	}
	for _, serial := range slices.SortedFunc(maps.Keys(st.cleared), pki.Serial.Compare) {
		fmt.Fprintf(h, "cleared %x %q\n", serial.Bytes(), slices.Sorted(maps.Keys(st.cleared[serial])))
	}
	h.Sum(sum[:0])
	return sum
}

func (st *state) clear(serial pki.Serial, lineage string) {
	if st.cleared[serial] == nil {
		st.cleared[serial] = map[string]bool{}
	}
	st.cleared[serial][lineage] = true
}

// evidence is what each lineage says of a serial; what was cleared by name is not heard.
func (s *Store) evidence(ctx context.Context, st *state, serial pki.Serial) ([]*pki.Packed, error) {
	say := make([]*pki.Packed, len(st.lineages))
	for n, l := range st.lineages {
		p, ok := st.known[l.Import][serial]
		if !ok {
			var err error
			if p, err = s.find(ctx, l.Import, serial); err != nil {
				return nil, err
			}
			if st.known[l.Import] != nil {
				st.known[l.Import][serial] = p
			}
		}
		if p != nil && p.Source() == carriedMark && st.cleared[serial][l.Key] {
			p = nil
		}
		say[n] = p
	}
	return say, nil
}

// rulings are the serials of which the base does not have the last word.
func (s *Store) rulings(ctx context.Context, st *state) ([]pki.Ruling, error) {
	var serials []pki.Serial
	for serial := range st.hand {
		serials = append(serials, serial)
	}
	for serial := range st.cleared {
		if _, ok := st.hand[serial]; !ok {
			serials = append(serials, serial)
		}
	}
	slices.SortFunc(serials, pki.Serial.Compare)
	var rulings []pki.Ruling
	for _, serial := range serials {
		say, err := s.evidence(ctx, st, serial)
		if err != nil {
			return nil, err
		}
		g := governing(st.lineages, say)
		crl := g >= 0 && st.lineages[g].Kind == pki.CRL // which names it, so it overrides date and reason
		entry, byHand := st.hand[serial]
		switch {
		case byHand && !crl:
			rulings = append(rulings, pki.Ruling{Serial: serial, Record: entry.record()})
		case st.cleared[serial] == nil: // the base says it
		case g < 0:
			rulings = append(rulings, pki.Ruling{Serial: serial})
		default:
			p := *say[g]
			p.SetSource(uint8(g))
			rulings = append(rulings, pki.Ruling{Serial: serial, Record: p.Record()})
		}
	}
	return rulings, nil
}

// publish is the one way to a new generation: edit changes the state in memory or says why not, publish makes it
// durable aside, and apply, in the one transaction, writes what was edited.
func (s *Store) publish(ctx context.Context, id pki.IssuerID, at time.Time, publish Publish,
	edit func(*Issuer, *state) error, apply func(*sql.Tx, *Issuer, uint64) error) (View, error) {
	q := s.queue(id)
	if err := enter(ctx, q.flip); err != nil {
		return View{}, err
	}
	defer func() { <-q.flip }()
	i, err := s.issuer(ctx, id)
	if err != nil {
		return View{}, err
	}
	st, err := s.state(ctx, i)
	if err != nil {
		return View{}, err
	}
	if err := edit(i, st); err != nil {
		return View{}, err
	}
	q.known = q.known.of(st.lineages)
	st.known = q.known
	v := View{Issuer: id, Name: i.Name, Number: i.Number + 1, Base: i.Base, Lineages: st.lineages}
	if v.Rulings, err = s.rulings(ctx, st); err != nil {
		return View{}, err
	}
	p, err := publish(v)
	if err != nil {
		return View{}, err
	}
	if p.Gen.Name == "" || p.Base.Name == "" {
		return View{}, fmt.Errorf("issuer %s: generation %d was published without a file", i.Name, v.Number)
	}
	v.Base = p.Base
	sum := st.sum(id)
	return v, s.change(ctx, func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx, `UPDATE issuer SET generation = ?, gen_file = ?, gen_sha256 = ?, gen_count = ?,
			base_file = ?, base_sha256 = ?, base_count = ?, leaf = ?, since = ?, state = ? WHERE id = ? AND generation = ?`,
			v.Number, p.Gen.Name, p.Gen.SHA256[:], p.Gen.Count, p.Base.Name, p.Base.SHA256[:], p.Base.Count,
			p.Leaf, at.Unix(), sum[:], i.row, i.Number)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n != 1 {
			return fmt.Errorf("issuer %s: generation %d is no longer in force: %w", i.Name, i.Number, err)
		}
		return apply(tx, i, v.Number)
	})
}

// Flip puts a staged import in force, whatever its size, by one small transaction. Its base was written before;
// View.Base is empty. After an error the import is still staged.
func (s *Store) Flip(ctx context.Context, st *Staged, publish Publish) (View, error) {
	v, err := s.publish(ctx, st.Issuer, st.Lineage.Imported, publish,
		func(i *Issuer, state *state) error {
			i.Base = pki.File{}
			st.Lineage.Generation = i.Number + 1
			state.lineages = with(state.lineages, st)
			for _, serial := range st.cleared {
				delete(state.cleared[serial], st.Lineage.Key)
				if len(state.cleared[serial]) == 0 {
					delete(state.cleared, serial)
				}
			}
			return nil
		},
		func(tx *sql.Tx, i *Issuer, number uint64) error {
			return st.apply(ctx, tx, number)
		})
	if err == nil {
		st.release()
	}
	return v, err
}

func (st *Staged) apply(ctx context.Context, tx *sql.Tx, number uint64) error {
	l := &st.Lineage
	_, err := tx.ExecContext(ctx, `UPDATE import SET state = 'superseded'
		WHERE id = (SELECT import FROM lineage WHERE issuer = ? AND key = ?)`, st.issuer, l.Key)
	if err != nil {
		return err
	}
	if st.removal {
		_, err := tx.ExecContext(ctx, `DELETE FROM lineage WHERE issuer = ? AND key = ?`, st.issuer, l.Key)
		return err
	}
	r, err := tx.ExecContext(ctx, `UPDATE import SET state = 'current', generation = ? WHERE id = ? AND state = 'staged'`, number, l.Import)
	if err != nil {
		return err
	}
	if n, err := r.RowsAffected(); err != nil || n != 1 {
		return fmt.Errorf("import %d is not staged any more: %w", l.Import, err)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO lineage (issuer, key, import, this_update, next_update) VALUES (?1, ?2, ?3, ?4, ?5)
		ON CONFLICT (issuer, key) DO UPDATE SET import = ?3, this_update = ?4, next_update = ?5`,
		st.issuer, l.Key, l.Import, l.ThisUpdate.Unix(), l.NextUpdate.Unix()); err != nil {
		return err
	}
	for _, serial := range st.cleared {
		if _, err := tx.ExecContext(ctx, `DELETE FROM cleared WHERE issuer = ? AND serial = ? AND lineage = ?`,
			st.issuer, serial.Bytes(), l.Key); err != nil {
			return err
		}
	}
	return nil
}

// Touch makes a generation of the same statuses: an index was read again and is unchanged, so its times move; or, with
// no key, something else that a generation says has changed.
func (s *Store) Touch(ctx context.Context, id pki.IssuerID, key string, at, this, next time.Time, publish Publish) (View, error) {
	if key == "" { // it may have to write a base, and of an issuer one is written at a time
		q := s.queue(id)
		if err := enter(ctx, q.staging); err != nil {
			return View{}, err
		}
		defer func() { <-q.staging }()
	}
	return s.publish(ctx, id, at, publish,
		func(i *Issuer, st *state) error {
			if key == "" {
				return nil
			}
			n := slices.IndexFunc(st.lineages, func(l Lineage) bool { return l.Key == key })
			if n < 0 {
				return fmt.Errorf("issuer %s: no source %s is installed", i.Name, key)
			}
			if l := &st.lineages[n]; l.Kind == pki.CRL {
				return fmt.Errorf("issuer %s: the times of a CRL are its own", i.Name)
			}
			st.lineages[n].ThisUpdate, st.lineages[n].NextUpdate = this.UTC(), next.UTC()
			return nil
		},
		func(tx *sql.Tx, i *Issuer, _ uint64) error {
			_, err := tx.ExecContext(ctx, `UPDATE lineage SET this_update = ?, next_update = ? WHERE issuer = ? AND key = ?`,
				this.Unix(), next.Unix(), i.row, key)
			return err
		})
}

// Renew makes a generation of the same statuses whose base is written anew, the one in force being damaged. It waits for an import in progress.
func (s *Store) Renew(ctx context.Context, id pki.IssuerID, at time.Time, publish Publish) (View, error) {
	q := s.queue(id)
	if err := enter(ctx, q.staging); err != nil {
		return View{}, err
	}
	defer func() { <-q.staging }()
	return s.publish(ctx, id, at, publish,
		func(i *Issuer, _ *state) error { i.Base = pki.File{}; return nil },
		func(*sql.Tx, *Issuer, uint64) error { return nil })
}

// seconds is how a time is stored; NULL where it does not apply.
func seconds(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.Unix()
}

func fromSeconds(n sql.NullInt64) time.Time {
	if !n.Valid {
		return time.Time{}
	}
	return time.Unix(n.Int64, 0).UTC()
}

// scanSerial takes a row that begins with a serial.
func scanSerial(rows *sql.Rows, rest ...any) (pki.Serial, error) {
	var octets []byte
	if err := rows.Scan(append([]any{&octets}, rest...)...); err != nil {
		return pki.Serial{}, explain(err)
	}
	serial, err := pki.SerialFromDER(octets)
	if err != nil {
		return serial, damaged("serial %x: %v", octets, err)
	}
	return serial, nil
}
