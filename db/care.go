package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"ocspd/pki"
)

// Feed is how the last reads of a configured location went. It decides nothing that is answered.
type Feed struct {
	Location     string
	Kind         pki.SourceKind
	Attempt      time.Time // the last
	Success      time.Time // the last
	ETag         string
	LastModified string
	File         string    // of a path: which file it was, in the form of its reader
	Digest       [32]byte  // of what was last read, refused or not
	Error        string    // of the last attempt; "" after a success
	RefusedSince time.Time // zero unless the last content was refused
}

// SetFeed records a read.
func (s *Store) SetFeed(ctx context.Context, id pki.IssuerID, f Feed) error {
	i, err := s.issuer(ctx, id)
	if err != nil {
		return err
	}
	return s.change(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT OR REPLACE INTO feed
			(issuer, location, kind, attempt, success, etag, last_modified, file, digest, error, refused_since)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, i.row, f.Location, f.Kind, seconds(f.Attempt), seconds(f.Success),
			f.ETag, f.LastModified, f.File, f.Digest[:], f.Error, seconds(f.RefusedSince))
		return err
	})
}

// Feeds are the locations of which a read was recorded.
func (s *Store) Feeds(ctx context.Context, id pki.IssuerID) ([]Feed, error) {
	i, err := s.issuer(ctx, id)
	if err != nil {
		return nil, err
	}
	rows, err := s.r.QueryContext(ctx, `SELECT location, kind, attempt, success, etag, last_modified, file, digest, error, refused_since
		FROM feed WHERE issuer = ? ORDER BY location`, i.row)
	if err != nil {
		return nil, explain(err)
	}
	defer rows.Close()
	var all []Feed
	for rows.Next() {
		var f Feed
		var digest []byte
		var attempt, success, refused sql.NullInt64
		if err := rows.Scan(&f.Location, &f.Kind, &attempt, &success, &f.ETag, &f.LastModified, &f.File, &digest, &f.Error, &refused); err != nil {
			return nil, explain(err)
		}
		copy(f.Digest[:], digest)
		f.Attempt, f.Success, f.RefusedSince = fromSeconds(attempt), fromSeconds(success), fromSeconds(refused)
		all = append(all, f)
	}
	return all, explain(rows.Err())
}

// collectBlocks is how many are deleted in one transaction.
const collectBlocks = 500

// Collect frees what imports out of force have left: their blocks, and of aborted ones all. It works in short
// transactions, may be ended by ctx and goes on where it was.
func (s *Store) Collect(ctx context.Context) error {
	for {
		var id int64
		var state string
		err := s.r.QueryRowContext(ctx, `SELECT id, state FROM import WHERE state IN ('superseded', 'aborted') ORDER BY id LIMIT 1`).Scan(&id, &state)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err == nil {
			err = s.collect(ctx, id, state == "aborted")
		}
		if err != nil {
			return fmt.Errorf("collect: %w", explain(err))
		}
	}
}

func (s *Store) collect(ctx context.Context, imp int64, aborted bool) error {
	steps := []string{`DELETE FROM block WHERE id IN (SELECT id FROM block WHERE import = ?1 LIMIT ?2)`}
	last := `UPDATE import SET state = 'collected' WHERE id = ?1`
	if aborted {
		steps = append(steps, `DELETE FROM change WHERE id IN (SELECT id FROM change WHERE import = ?1 LIMIT ?2)`,
			`DELETE FROM history WHERE id IN (SELECT id FROM history WHERE import = ?1 LIMIT ?2)`)
		last = `DELETE FROM import WHERE id = ?1`
	}
	for _, step := range steps {
		for n := int64(1); n > 0; {
			err := s.change(ctx, func(tx *sql.Tx) error {
				r, err := tx.ExecContext(ctx, step, imp, collectBlocks)
				if err == nil {
					n, err = r.RowsAffected()
				}
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return s.change(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, last, imp)
		return err
	})
}

type stepsKey struct{}

// WithSteps has what takes long tell which step it begins, of how many records, 0 where that is not known, and count them.
func WithSteps(ctx context.Context, begin func(step string, records int64) (count func(records int))) context.Context {
	return context.WithValue(ctx, stepsKey{}, begin)
}

func beginStep(ctx context.Context, step string, records int64) (count func(int)) {
	if begin, ok := ctx.Value(stepsKey{}).(func(string, int64) func(int)); ok {
		return begin(step, records)
	}
	return func(int) {}
}

// Check reads the whole database: SQLite's own checks, then every block in force. What is wrong comes as one line each; an
// error means that it could not be found out.
func (s *Store) Check(ctx context.Context) (problems []string, err error) {
	problems, err = s.checkSQLite(ctx)
	if err != nil || len(problems) > 0 {
		return problems, err
	}
	issuers, err := s.Issuers(ctx)
	if err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	if problems, err = s.checkChanges(ctx); err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	var records int64 // for who watches: what is wrong here is found below
	s.r.QueryRowContext(ctx, `SELECT coalesce(sum(count), 0) FROM import WHERE state = 'current'`).Scan(&records)
	count := beginStep(ctx, "checking records", records)
	for _, i := range issuers {
		err := s.checkIssuer(ctx, &i, count)
		if err != nil && !errors.Is(err, ErrDamaged) {
			return nil, fmt.Errorf("check: %w", err)
		}
		if err != nil {
			problems = append(problems, fmt.Sprintf("issuer %s: %v", i.Name, err))
		}
	}
	return problems, nil
}

func (s *Store) checkSQLite(ctx context.Context) (problems []string, err error) {
	beginStep(ctx, "checking pages", 0)
	for _, q := range []string{
		`PRAGMA integrity_check`,
		`SELECT "table" || ' row ' || coalesce(rowid, '') || ' refers to nothing in ' || parent FROM pragma_foreign_key_check`,
	} {
		lines, err := s.lines(ctx, q)
		switch {
		case errors.Is(err, ErrDamaged):
			problems = append(problems, err.Error())
		case err != nil:
			return nil, fmt.Errorf("check: %w", err)
		}
		for _, l := range lines {
			if l != "ok" {
				problems = append(problems, l)
			}
		}
	}
	return problems, nil
}

func (s *Store) lines(ctx context.Context, query string) ([]string, error) {
	rows, err := s.r.QueryContext(ctx, query)
	if err != nil {
		return nil, explain(err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var l string
		if err := rows.Scan(&l); err != nil {
			return nil, explain(err)
		}
		all = append(all, l)
	}
	return all, explain(rows.Err())
}

// checkChanges reads the blocks of the history.
func (s *Store) checkChanges(ctx context.Context) (problems []string, err error) {
	rows, err := s.r.QueryContext(ctx, `SELECT lo, x'' AS hi, records, sha256, import FROM change`)
	if err != nil {
		return nil, explain(err)
	}
	defer rows.Close()
	for rows.Next() {
		var b block
		switch err := b.scan(rows, &b.imp); {
		case errors.Is(err, ErrDamaged):
			problems = append(problems, fmt.Sprintf("history: %v", err))
		case err != nil:
			return nil, explain(err)
		}
	}
	return problems, explain(rows.Err())
}

func (s *Store) checkIssuer(ctx context.Context, i *Issuer, count func(records int)) error {
	q := s.queue(i.ID)
	if err := enter(ctx, q.staging); err != nil {
		return err
	}
	defer func() { <-q.staging }()
	var ls []Lineage
	if err := s.atRest(ctx, i.ID, func(st *state) error { ls = st.lineages; return nil }); err != nil {
		return err
	}
	for _, l := range ls {
		var state string
		if err := s.r.QueryRowContext(ctx, `SELECT state FROM import WHERE id = ?`, l.Import).Scan(&state); err != nil {
			return explain(err)
		}
		if state != "current" {
			return damaged("%s rests on import %d, which is %s", l.Key, l.Import, state)
		}
		w, counted := s.walk(l.Import, l.Count), int64(0)
		for p, err := w.next(ctx); p != nil || err != nil; p, err = w.next(ctx) {
			if err != nil {
				return err
			}
			if len(w.records) == 0 { // of a block
				count(int(w.n - counted))
				counted = w.n
			}
		}
	}
	return nil
}

// CheckInForce tells whether what is in force for an issuer, blocks aside, is as it was written: ErrDamaged where it is not.
func (s *Store) CheckInForce(ctx context.Context, id pki.IssuerID) error {
	return s.atRest(ctx, id, func(*state) error { return nil })
}

// Backup writes a copy of the database as of one moment, while work goes on. It counts, under its name, only once it
// was opened and checked.
func (s *Store) Backup(ctx context.Context, file string) error {
	if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("backup %s: exists already; name another file", file)
	}
	aside, err := emptyAside(file)
	if err == nil {
		defer os.Remove(aside)
		err = s.copyTo(ctx, aside)
	}
	if err == nil {
		err = putInPlace(aside, file)
	}
	if err != nil {
		return fmt.Errorf("backup %s: %w", file, explain(err))
	}
	return nil
}

func (s *Store) copyTo(ctx context.Context, aside string) error {
	d := connect(s.path, common)
	defer d.Close()
	beginStep(ctx, "copying", 0)
	if _, err := d.ExecContext(ctx, `VACUUM INTO ?`, aside); err != nil {
		return err
	}
	return CheckFile(ctx, aside)
}

// emptyAside makes a file of mode 0600 beside the one that is to be.
func emptyAside(file string) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if err != nil {
		return "", err
	}
	return f.Name(), f.Close()
}

// putInPlace makes a finished file durable under its name.
func putInPlace(aside, file string) error {
	f, err := os.OpenFile(aside, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(aside, file); err != nil {
		return err
	}
	return syncDir(filepath.Dir(file))
}

// CheckFile opens a copy of a database, of this schema or an older one, and checks all of it.
func CheckFile(ctx context.Context, file string) error {
	path, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return err
	}
	s := &Store{path: path, r: connect(path, reader), queues: map[pki.IssuerID]*queue{}}
	defer s.Close()
	have, err := s.schema(ctx, s.r)
	switch {
	case err != nil:
		return fmt.Errorf("database %s: %w", file, explain(err))
	case have == 0:
		return fmt.Errorf("database %s: is empty", file)
	case have > len(migrations):
		return fmt.Errorf("database %s: %w", file, newer(have, len(migrations)))
	}
	check := s.checkSQLite
	if have == len(migrations) {
		check = s.Check
	}
	problems, err := check(ctx)
	if err == nil && len(problems) > 0 {
		err = fmt.Errorf("%w: %s", ErrDamaged, problems[0])
	}
	if err != nil {
		return fmt.Errorf("database %s: %w", file, err)
	}
	return nil
}

// Restore puts a backup in the place of the database at path, which nobody has open; the caller holds Lock. The generation
// files of the backup may be gone and newer ones may have been answered from: Issuers show no files, and before
// anything is published each issuer's number is to be raised (Raise) over all that were in force.
func Restore(ctx context.Context, backup, path string) error {
	fail := func(err error) error { return fmt.Errorf("restore %s: %w", backup, explain(err)) }
	if err := CheckFile(ctx, backup); err != nil {
		return fail(err)
	}
	aside, err := emptyAside(path)
	if err != nil {
		return fail(err)
	}
	defer os.Remove(aside)
	source := &Store{path: backup}
	if source.path, err = filepath.Abs(backup); err != nil {
		return fail(err)
	}
	if err := source.copyTo(ctx, aside); err != nil {
		return fail(err)
	}
	copied := connect(aside, common)
	_, err = copied.ExecContext(ctx, `UPDATE issuer SET gen_file = NULL, gen_sha256 = NULL, base_file = NULL, base_sha256 = NULL`)
	if err := errors.Join(err, copied.Close()); err != nil {
		return fail(err)
	}
	// A write-ahead log left beside the database would be taken for the new one's. What it holds goes into the
	// old database first, where that can still be read, so that a crash in between leaves it whole.
	if _, err := os.Stat(path); err == nil {
		old := connect(path, common)
		old.ExecContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`)
		old.Close()
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fail(err)
		}
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fail(err)
	}
	if err := putInPlace(aside, path); err != nil {
		return fail(err)
	}
	return nil
}

// Raise lets the issuer's next generation have a number greater than number.
func (s *Store) Raise(ctx context.Context, id pki.IssuerID, number uint64) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE issuer NOT INDEXED SET generation = ?1 WHERE certificate = ?2 AND generation < ?1`, number, id[:])
		return err
	})
}
