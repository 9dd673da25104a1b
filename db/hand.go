package db

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"ocspd/pki"
)

// HandEntry is a revocation made by `revoke`.
type HandEntry struct {
	Serial     pki.Serial
	Reason     pki.Reason
	RevokedAt  time.Time // zero in Revoke: At, and for an entry that is there already, its own
	Invalidity time.Time // zero: none
	At         time.Time // when the command was given
	Actor      string    // who gave it
}

func (e *HandEntry) status() pki.Status {
	return pki.Status{State: pki.Revoked, Reason: e.Reason, RevokedAt: e.RevokedAt, InvalidityDate: e.Invalidity}
}

func (e *HandEntry) record() pki.Record {
	return pki.Record{Status: e.status(), Source: pki.HandSource, At: e.At}
}

// Hand are an issuer's revocations by hand in force.
func (s *Store) Hand(ctx context.Context, id pki.IssuerID) ([]HandEntry, error) {
	i, err := s.issuer(ctx, id)
	if err != nil {
		return nil, err
	}
	return s.hand(ctx, i.row)
}

func (s *Store) hand(ctx context.Context, issuer int64) ([]HandEntry, error) {
	rows, err := s.r.QueryContext(ctx,
		`SELECT serial, reason, revoked_at, invalidity, at, actor FROM hand WHERE issuer = ? ORDER BY serial`, issuer)
	if err != nil {
		return nil, explain(err)
	}
	defer rows.Close()
	var all []HandEntry
	for rows.Next() {
		var e HandEntry
		var revoked, invalidity, at sql.NullInt64
		if e.Serial, err = scanSerial(rows, &e.Reason, &revoked, &invalidity, &at, &e.Actor); err != nil {
			return nil, err
		}
		e.RevokedAt, e.Invalidity, e.At = fromSeconds(revoked), fromSeconds(invalidity), fromSeconds(at)
		all = append(all, e)
	}
	return all, explain(rows.Err())
}

// Revoke revokes by hand, in one transaction with the generation that says so. ErrUnchanged: it is revoked like that
// already. Another date or reason replaces what is there, but for a permanent revocation that would become a hold.
func (s *Store) Revoke(ctx context.Context, id pki.IssuerID, e HandEntry, publish Publish) (View, error) {
	e.At = e.At.UTC().Truncate(time.Second)
	e.RevokedAt, e.Invalidity = e.RevokedAt.UTC().Truncate(time.Second), e.Invalidity.UTC().Truncate(time.Second)
	var before pki.Status
	return s.publish(ctx, id, e.At, publish,
		func(i *Issuer, st *state) error {
			old, there := st.hand[e.Serial]
			if there {
				before = old.status()
			}
			if e.RevokedAt.IsZero() {
				if e.RevokedAt = e.At; there {
					e.RevokedAt = old.RevokedAt
				}
			}
			p := pki.Pack(e.Serial, e.status(), 0)
			switch err := p.Check(); {
			case err != nil:
				return fmt.Errorf("serial %s: %w", e.Serial, err)
			case there && before == e.status():
				return ErrUnchanged
			case there && before.Permanent() && e.Reason == pki.CertificateHold:
				return refusef("serial %s is revoked for good (%s) since %s and cannot become a hold", e.Serial, old.Reason, utc(old.RevokedAt))
			}
			st.hand[e.Serial] = e
			return nil
		},
		func(tx *sql.Tx, i *Issuer, number uint64) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO hand (issuer, serial, reason, revoked_at, invalidity, at, actor)
				VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (issuer, serial) DO UPDATE
				SET reason = ?3, revoked_at = ?4, invalidity = ?5, at = ?6, actor = ?7`,
				i.row, e.Serial.Bytes(), e.Reason, e.RevokedAt.Unix(), seconds(e.Invalidity), e.At.Unix(), e.Actor)
			if err != nil {
				return err
			}
			c := changeRow{serial: e.Serial, from: before, to: e.status()}
			_, err = tx.ExecContext(ctx, insertHistory, c.row(i.row, nil, number, e.At.Unix(), e.Actor, "")...)
			return err
		})
}

// Unrevocation is the order to undo a revocation.
type Unrevocation struct {
	Serial  pki.Serial
	Mistake string // why; without it only a hold made by hand is undone
	At      time.Time
	Actor   string
}

// Unrevoke undoes a hold made by hand or, as a mistake, what no source in force confirms: a revocation by hand, or one that
// a source once said and no longer says. ErrUnchanged: it is not revoked.
func (s *Store) Unrevoke(ctx context.Context, id pki.IssuerID, u Unrevocation, publish Publish) (View, error) {
	var before pki.Status
	var cleared []string
	return s.publish(ctx, id, u.At, publish,
		func(i *Issuer, st *state) error {
			say, err := s.evidence(ctx, st, u.Serial)
			if err != nil {
				return err
			}
			entry, byHand := st.hand[u.Serial]
			for n, p := range say {
				l := &st.lineages[n]
				switch {
				case p == nil || p.State() != pki.Revoked:
				case p.Source() == carriedMark:
					before, cleared = p.Status(), append(cleared, l.Key)
				default:
					return refusef("serial %s is revoked by %s %s (%s, since %s); only the CA can undo that, in its next %s",
						u.Serial, l.Kind, l.Location, p.Status().Reason, utc(p.Status().RevokedAt), l.Kind)
				}
			}
			if byHand {
				before = entry.status()
			}
			switch {
			case !byHand && len(cleared) == 0:
				return ErrUnchanged
			case u.Mistake == "" && len(cleared) > 0:
				return refusef("serial %s was revoked for good by a source that no longer lists it; if that was a mistake, say so with --mistake NOTE", u.Serial)
			case u.Mistake == "" && before.Permanent():
				return refusef("serial %s is revoked for good (%s, since %s); if that was a mistake, say so with --mistake NOTE", u.Serial, before.Reason, utc(before.RevokedAt))
			}
			delete(st.hand, u.Serial)
			for _, key := range cleared {
				st.clear(u.Serial, key)
			}
			return nil
		},
		func(tx *sql.Tx, i *Issuer, number uint64) error {
			if _, err := tx.ExecContext(ctx, `DELETE FROM hand WHERE issuer = ? AND serial = ?`, i.row, u.Serial.Bytes()); err != nil {
				return err
			}
			for _, key := range cleared {
				if _, err := tx.ExecContext(ctx, `INSERT INTO cleared (issuer, serial, lineage) VALUES (?, ?, ?)`,
					i.row, u.Serial.Bytes(), key); err != nil {
					return err
				}
			}
			c := changeRow{serial: u.Serial, from: before}
			_, err := tx.ExecContext(ctx, insertHistory, c.row(i.row, nil, number, u.At.Unix(), u.Actor, u.Mistake)...)
			return err
		})
}

// Evidence is what one source says of a serial.
type Evidence struct {
	Lineage *Lineage   // nil: by hand
	Hand    *HandEntry // nil: a lineage
	Status  pki.Status // Unknown: it says nothing
	Carried bool       // the source said so once and no longer lists it
	Governs bool       // it decides the answer
}

// Explain is what every source in force says of a serial, all as of one moment.
func (s *Store) Explain(ctx context.Context, id pki.IssuerID, serial pki.Serial) (all []Evidence, err error) {
	err = s.atRest(ctx, id, func(st *state) error {
		say, err := s.evidence(ctx, st, serial)
		if err != nil {
			return err
		}
		g := governing(st.lineages, say)
		entry, byHand := st.hand[serial]
		hand := byHand && (g < 0 || st.lineages[g].Kind != pki.CRL)
		for n := range st.lineages {
			e := Evidence{Lineage: &st.lineages[n], Governs: n == g && !hand}
			if p := say[n]; p != nil {
				e.Status, e.Carried = p.Status(), p.Source() == carriedMark
			}
			all = append(all, e)
		}
		if byHand {
			all = append(all, Evidence{Hand: &entry, Status: entry.status(), Governs: hand})
		}
		return nil
	})
	return all, err
}

// Event is a change of what a source, or a hand, says of a serial.
type Event struct {
	Generation uint64
	At         time.Time
	From, To   pki.Status
	Kind       pki.SourceKind
	Location   string // of the source; "" by hand
	Number     string // of a CRL
	Carried    bool   // the source no longer lists it, and it stays revoked
	Actor      string
	Note       string
}

// History is what changed for a serial, oldest first. What a source said when it was first imported is no change.
func (s *Store) History(ctx context.Context, id pki.IssuerID, serial pki.Serial) ([]Event, error) {
	i, err := s.issuer(ctx, id)
	if err != nil {
		return nil, err
	}
	rows, err := s.r.QueryContext(ctx, `SELECT coalesce(h.generation, i.generation) AS g, h.at,
		h.from_state, h.from_reason, h.from_revoked_at, h.from_invalidity,
		h.to_state, h.to_reason, h.to_revoked_at, h.to_invalidity,
		coalesce(i.kind, ?), coalesce(i.location, ''), coalesce(i.number, ''), h.carried, h.actor, h.note
		FROM history h LEFT JOIN import i ON i.id = h.import
		WHERE h.issuer = ? AND h.serial = ? AND g IS NOT NULL ORDER BY g, h.id`, pki.Hand, i.row, serial.Bytes())
	if err != nil {
		return nil, explain(err)
	}
	defer rows.Close()
	all, err := s.changesOf(ctx, i.row, serial)
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		var e Event
		var at, fromAt, fromInvalid, toAt, toInvalid sql.NullInt64
		if err := rows.Scan(&e.Generation, &at, &e.From.State, &e.From.Reason, &fromAt, &fromInvalid,
			&e.To.State, &e.To.Reason, &toAt, &toInvalid, &e.Kind, &e.Location, &e.Number, &e.Carried, &e.Actor, &e.Note); err != nil {
			return nil, explain(err)
		}
		e.At = fromSeconds(at)
		e.From.RevokedAt, e.From.InvalidityDate = fromSeconds(fromAt), fromSeconds(fromInvalid)
		e.To.RevokedAt, e.To.InvalidityDate = fromSeconds(toAt), fromSeconds(toInvalid)
		all = append(all, e)
	}
	slices.SortStableFunc(all, func(a, b Event) int { return cmp.Compare(a.Generation, b.Generation) })
	return all, explain(rows.Err())
}

// changesOf are the changes that imports brought.
func (s *Store) changesOf(ctx context.Context, issuer int64, serial pki.Serial) ([]Event, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT c.lo, x'' AS hi, c.records, c.sha256, i.id, i.generation, i.at, i.kind, i.location, i.number
		FROM import i JOIN change c ON c.id = (SELECT id FROM change WHERE import = i.id AND lo <= ?2 ORDER BY lo DESC LIMIT 1)
		WHERE i.issuer = ?1 AND i.generation IS NOT NULL ORDER BY i.generation, i.id`, issuer, serial.Bytes())
	if err != nil {
		return nil, explain(err)
	}
	defer rows.Close()
	var all []Event
	for rows.Next() {
		var e Event
		var at sql.NullInt64
		var b block
		if err := b.scan(rows, &b.imp, &e.Generation, &at, &e.Kind, &e.Location, &e.Number); err != nil {
			return nil, explain(err)
		}
		if c, ok := b.change(serial); ok {
			e.At, e.From, e.To, e.Carried = fromSeconds(at), c.from, c.to, c.carried
			all = append(all, e)
		}
	}
	return all, explain(rows.Err())
}
