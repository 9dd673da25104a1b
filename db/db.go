// Package db is keeper's store: which sources an issuer has, what each last said of every serial, what was revoked by
// hand, what changed when, and which generation is in force. Every SQL statement of the project is here.
//
// What is guaranteed:
//   - A change is there whole or not at all. What an import brings is written aside under an import's number, in
//     short transactions, and comes into force by one small transaction (Flip) that also names its generation.
//   - When a function that changes something returns without error, the change survives a power loss.
//   - A lookup proves what it says. The statuses of an import lie in blocks, each of which covers a range of serials
//     that ends where the next begins, under a SHA-256; a serial is unknown only if the block that covers it was
//     found, was whole and does not list it. Anything else is an error, never "no row".
//   - A permanent revocation that a source said once stays, until Unrevoke undoes it by name.
//
// Blocks rather than a row for each serial: a million statuses are written and read an order of magnitude faster,
// a flipped bit in a serial cannot hide, and memory stays flat. The package reads no clock; callers say what time it is.
package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/mattn/go-sqlite3"

	"ocspd/pki"
)

// Errors that callers branch on. The text that comes with them is complete.
var (
	ErrUnchanged = errors.New("unchanged")         // the source says what is installed already
	ErrOlder     = errors.New("older")             // the source is older than what is installed; also an ErrRefused
	ErrRefused   = errors.New("refused")           // a rule forbids the change; nothing was changed
	ErrFull      = errors.New("the disk is full")  // nothing was changed
	ErrNewer     = errors.New("schema is newer")   // of a newer ocspd
	ErrNoIssuer  = errors.New("no such issuer")    // not registered
	ErrDamaged   = errors.New("database damaged")  // what was read is not what was written
	errNotOurs   = errors.New("another program's") // application_id
)

// refusal is an error whose text is its own and whose kind a caller can branch on.
type refusal struct {
	text  string
	kinds []error
}

func (r *refusal) Error() string   { return r.text }
func (r *refusal) Unwrap() []error { return r.kinds }

func refusef(format string, a ...any) error {
	return &refusal{fmt.Sprintf(format, a...), []error{ErrRefused}}
}

const (
	applicationID = 0x6f637370 // "ocsp"
	minSQLite     = 3051003    // below it, a reset of the WAL can lose a commit
	readers       = 4
	pageSize      = "16384" // octets, of a database that is made now: what is read and written is blocks of records, and each page costs four system calls
)

//go:embed schema1.sql
var schema1 string

//go:embed schema2.sql
var schema2 string

//go:embed schema3.sql
var schema3 string

// migrations bring a database from the schema of their index to the next. They are only ever added to.
var migrations = []string{schema1, schema2, schema3}

// Store is an open database. It is safe for use from any goroutine; of an issuer, one import is staged at a time
// and a second waits.
type Store struct {
	// Background, if it is set before the first import, runs work that no other writer waits for, and that may take long.
	Background func(func())

	path string
	w    *sql.DB // one connection: writers queue here, first come, first served
	r    *sql.DB
	log  *slog.Logger

	mu     sync.Mutex
	queues map[pki.IssuerID]*queue
}

// queue orders what changes an issuer. Each channel has room for the one who is at it.
type queue struct {
	staging chan struct{} // held from Stage to Flip or Abort
	flip    chan struct{} // held while a generation is made and put in force
	known   known         // under flip
}

// Open opens or makes the database. Imports that a crash left unfinished are out of force at once; Collect frees
// their space. The caller holds Lock.
func Open(ctx context.Context, path string, log *slog.Logger) (*Store, error) {
	return open(ctx, path, log, migrations)
}

func open(ctx context.Context, path string, log *slog.Logger, migrations []string) (_ *Store, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	s := &Store{path: path, log: log, queues: map[pki.IssuerID]*queue{}}
	defer func() {
		if err != nil {
			s.Close()
			err = fmt.Errorf("database %s: %w", path, explain(err))
		}
	}()
	if text, number, _ := sqlite3.Version(); number < minSQLite {
		return nil, fmt.Errorf("this ocspd was built with SQLite %s, which can lose a commit; build it with 3.51.3 or newer", text)
	}
	if err := createFile(path); err != nil {
		return nil, err
	}
	s.w = connect(path, writer)
	s.w.SetMaxOpenConns(1)
	if err := s.migrate(ctx, migrations); err != nil {
		return nil, err
	}
	s.r = connect(path, reader)
	s.r.SetMaxOpenConns(readers)
	s.r.SetMaxIdleConns(readers)
	return s, s.change(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE import SET state = 'aborted' WHERE state = 'staged'`)
		return err
	})
}

// Close ends the use of the database. Nothing that was acknowledged depends on it.
func (s *Store) Close() error {
	var errs []error
	for _, d := range []*sql.DB{s.r, s.w} {
		if d != nil {
			errs = append(errs, d.Close())
		}
	}
	return errors.Join(errs...)
}

// createFile makes the file readable by its owner alone before SQLite sees it; SQLite's other files copy its mode.
func createFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// pragma is set on every connection and read back, since SQLite is silent about one that it does not take.
type pragma struct{ name, value string }

var (
	common = []pragma{
		{"busy_timeout", "10000"}, {"trusted_schema", "0"}, {"cell_size_check", "1"}, {"mmap_size", "0"},
		{"foreign_keys", "1"}, {"synchronous", "2"}, {"cache_size", "-4096"},
	}
	writer = append([]pragma{{"page_size", pageSize}, {"journal_mode", "wal"}, {"journal_size_limit", "67108864"}, autoCheckpoint}, common...)
	// autoCheckpoint is how many pages the write-ahead log may have before a commit brings them into the database.
	autoCheckpoint = pragma{"wal_autocheckpoint", "250"}

	reader = append([]pragma{{"query_only", "1"}}, common...)
)

// connector opens connections on which every pragma holds; set by a statement, it would hold on one of them.
type connector struct {
	driver *sqlite3.SQLiteDriver
	dsn    string
}

func (c *connector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.dsn) }
func (c *connector) Driver() driver.Driver                        { return c.driver }

func connect(path string, pragmas []pragma) *sql.DB {
	dsn := (&url.URL{Scheme: "file", Path: path, RawQuery: "_txlock=immediate"}).String()
	return sql.OpenDB(&connector{dsn: dsn, driver: &sqlite3.SQLiteDriver{ConnectHook: func(c *sqlite3.SQLiteConn) error {
		for _, p := range pragmas {
			if err := setPragma(c, p); err != nil {
				return err
			}
		}
		return nil
	}}})
}

func setPragma(c *sqlite3.SQLiteConn, p pragma) error {
	if _, err := c.Exec("PRAGMA "+p.name+" = "+p.value, nil); err != nil {
		return fmt.Errorf("pragma %s: %w", p.name, err)
	}
	rows, err := c.Query("PRAGMA "+p.name, nil)
	if err != nil {
		return fmt.Errorf("pragma %s: %w", p.name, err)
	}
	defer rows.Close()
	got := make([]driver.Value, 1)
	if err := rows.Next(got); err != nil && (err != io.EOF || p.name != "mmap_size") {
		return fmt.Errorf("pragma %s: %w", p.name, err)
	} else if err == nil && fmt.Sprint(got[0]) != p.value && p.name != "page_size" { // which stays as the database was made
		return fmt.Errorf("pragma %s is %v where %s was asked for", p.name, got[0], p.value)
	}
	return nil
}

// migrate makes the schema or brings it forward, each step in a transaction of its own, after a checked copy.
func (s *Store) migrate(ctx context.Context, migrations []string) error {
	have, err := s.schema(ctx, s.w)
	if err != nil {
		return err
	}
	switch known := len(migrations); {
	case have > known:
		return newer(have, known)
	case have == known:
		return nil
	case have > 0:
		keep := fmt.Sprintf("%s.schema-%d", s.path, have)
		if _, err := os.Lstat(keep); errors.Is(err, os.ErrNotExist) {
			if err := s.Backup(ctx, keep); err != nil {
				return fmt.Errorf("schema %d stays, for want of a copy: %w", have, err)
			}
		}
		s.log.Info("database schema is brought forward", "from", have, "to", known, "copy", keep)
	}
	for ; have < len(migrations); have++ {
		err := s.change(ctx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, fmt.Sprintf("%s;PRAGMA application_id = %d;PRAGMA user_version = %d", migrations[have], applicationID, have+1))
			return err
		})
		if err != nil {
			return fmt.Errorf("schema %d: %w", have+1, err)
		}
	}
	return nil
}

func newer(have, known int) error {
	return &refusal{fmt.Sprintf("schema %d is newer than this ocspd knows (%d); install the newer ocspd or restore a backup", have, known), []error{ErrNewer}}
}

// schema is the number of the schema that a database has; 0 for an empty one.
func (s *Store) schema(ctx context.Context, d *sql.DB) (version int, err error) {
	var id, tables int64
	for q, to := range map[string]any{
		"PRAGMA application_id": &id, "PRAGMA user_version": &version, "SELECT count(*) FROM sqlite_schema": &tables,
	} {
		if err := d.QueryRowContext(ctx, q).Scan(to); err != nil {
			return 0, err
		}
	}
	if id != applicationID && (id != 0 || version != 0 || tables != 0) {
		return 0, fmt.Errorf("is %w database (application_id %#x); name another file", errNotOurs, id)
	}
	return version, nil
}

// change runs one short transaction on the writer.
func (s *Store) change(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.w.BeginTx(ctx, nil)
	if err != nil {
		return explain(err)
	}
	if err := f(tx); err != nil {
		tx.Rollback()
		return explain(err)
	}
	return explain(tx.Commit())
}

// changeAside is change for what is not in force yet. It does not wait for the disk: the write-ahead log is one file, and the transaction that
// puts it in force makes all of it durable before it returns; a checkpoint in between makes durable first what it copies. That is the caller's
// to do, by checkpoint, once others who want to write had their turn.
func (s *Store) changeAside(ctx context.Context, f func(*sql.Tx) error) error {
	conn, err := s.w.Conn(ctx)
	if err != nil {
		return explain(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, `PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0`); err != nil {
		return explain(err)
	}
	defer func() { // whoever is next on this connection counts on it; one on which it cannot be set is not used again
		err := conn.Raw(func(c any) error {
			for _, p := range []pragma{{"synchronous", "2"}, autoCheckpoint} {
				if err := setPragma(c.(*sqlite3.SQLiteConn), p); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			s.log.Error("a connection to the database is given up", "error", err)
			conn.Raw(func(any) error { return driver.ErrBadConn })
		}
	}()
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return explain(err)
	}
	if err := f(tx); err != nil {
		tx.Rollback()
		return explain(err)
	}
	return explain(tx.Commit())
}

// checkpoint brings what is in the write-ahead log into the database, while others go on to read and to write. What cannot be brought there
// now, since somebody reads what was before, comes with the next.
func (s *Store) checkpoint(ctx context.Context) (err error) {
	run := s.Background
	if run == nil {
		run = func(f func()) { f() }
	}
	run(func() { _, err = s.r.ExecContext(ctx, `PRAGMA wal_checkpoint(PASSIVE)`) })
	return explain(err)
}

// explain gives the errors that have a remedy their words.
func explain(err error) error {
	var e sqlite3.Error
	switch {
	case err == nil || errors.Is(err, ErrFull) || errors.Is(err, ErrDamaged):
		return err
	case errors.As(err, &e) && e.Code == sqlite3.ErrFull, errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w; nothing was changed, free some space and try again: %w", ErrFull, err)
	case errors.As(err, &e) && (e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB):
		return fmt.Errorf("%w; stop keeper and restore a backup: %w", ErrDamaged, err)
	}
	return err
}

func (s *Store) queue(id pki.IssuerID) *queue {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[id]
	if q == nil {
		q = &queue{staging: make(chan struct{}, 1), flip: make(chan struct{}, 1)}
		s.queues[id] = q
	}
	return q
}

func enter(ctx context.Context, place chan struct{}) error {
	select {
	case place <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Lock takes the state for this process alone; the error names the process that has it. It ends with unlock or with
// the process.
func Lock(dir string) (unlock func(), err error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		pid := make([]byte, 16)
		n, _ := f.ReadAt(pid, 0)
		return nil, fmt.Errorf("lock %s: process %s has it; stop that process or let it do the work", path, string(pid[:n]))
	}
	pid := strconv.Itoa(os.Getpid())
	if _, err = f.WriteAt([]byte(pid), 0); err == nil {
		err = f.Truncate(int64(len(pid)))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, explain(err))
	}
	return func() { f.Close() }, nil
}
