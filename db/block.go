package db

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"ocspd/pki"
)

const (
	blockRecords = 404 // with its row's other columns they fill a page of pageSize octets and no second one
	readBlocks   = 64  // read in one statement: 1 MiB; no read transaction is held between two
	writeBlocks  = 128 // written in one transaction: 51,712 records, 2 MiB
	restartAfter = 8   // such transactions the write-ahead log begins anew, which it can when all of it is in the database
)

// carriedMark is what a record of a block has in place of a source: the source no longer lists it.
const carriedMark = 1

// beforeMark is what a record of the history has there: it was so before.
const beforeMark = 2

// block is a range of an import's records as it is stored.
type block struct {
	imp     int64
	lo, hi  []byte
	records []byte
}

func (b *block) sum() [sha256.Size]byte {
	h := sha256.New()
	var n [8]byte
	for _, v := range []uint64{uint64(b.imp), uint64(len(b.lo)), uint64(len(b.hi))} {
		binary.BigEndian.PutUint64(n[:], v)
		h.Write(n[:])
	}
	h.Write(b.lo)
	h.Write(b.hi)
	h.Write(b.records)
	return [sha256.Size]byte(h.Sum(nil))
}

// scan takes a row of lo, hi, records, sha256 and more, and believes nothing in it before its digest.
func (b *block) scan(row interface{ Scan(...any) error }, more ...any) error {
	var sum []byte
	if err := row.Scan(append([]any{&b.lo, &b.hi, &b.records, &sum}, more...)...); err != nil {
		return err
	}
	if want := b.sum(); string(sum) != string(want[:]) || len(b.records)%pki.PackedSize != 0 {
		return damaged("import %d: the block from serial %x on is not as it was written", b.imp, b.lo)
	}
	return nil
}

func damaged(format string, a ...any) error {
	return fmt.Errorf("%w: %s; stop keeper and restore a backup", ErrDamaged, fmt.Sprintf(format, a...))
}

// find is what an import says of a serial; nil means that it says nothing, which is proven.
func (s *Store) find(ctx context.Context, imp int64, serial pki.Serial) (*pki.Packed, error) {
	b := block{imp: imp}
	octets := serial.Bytes()
	err := b.scan(s.r.QueryRowContext(ctx,
		`SELECT lo, hi, records, sha256 FROM block WHERE import = ? AND lo <= ? ORDER BY lo DESC LIMIT 1`, imp, octets))
	if err == sql.ErrNoRows {
		return nil, damaged("import %d: no block covers serial %s", imp, serial)
	}
	if err != nil {
		return nil, explain(err)
	}
	if string(octets) < string(b.lo) || len(b.hi) > 0 && string(octets) >= string(b.hi) {
		return nil, damaged("import %d: no block covers serial %s", imp, serial)
	}
	key := pki.Pack(serial, pki.Status{}, 0)
	n := len(b.records) / pki.PackedSize
	at := func(i int) *pki.Packed { return (*pki.Packed)(b.records[i*pki.PackedSize:]) }
	if i := sort.Search(n, func(i int) bool { return at(i).Compare(&key) >= 0 }); i < n && at(i).Compare(&key) == 0 {
		p := *at(i)
		return &p, nil
	}
	return nil, nil
}

// walker reads an import's records in order. Import 0 is the one that has none.
type walker struct {
	s       *Store
	imp     int64
	want    int64 // records that the import has
	n       int64
	blocks  []block
	records []byte
	lo      []byte       // where the next block begins; nil after the last
	ahead   chan reading // what is being read while blocks are used
}

type reading struct {
	blocks []block
	lo     []byte
	err    error
}

func (s *Store) walk(imp, count int64) *walker {
	w := &walker{s: s, imp: imp, want: count, lo: []byte{}}
	if imp == 0 {
		w.lo = nil
	}
	return w
}

// next is nil at the end, which it reaches only with every block seen and whole.
func (w *walker) next(ctx context.Context) (*pki.Packed, error) {
	for len(w.records) == 0 {
		if len(w.blocks) == 0 {
			if w.lo == nil {
				if w.n != w.want {
					return nil, damaged("import %d: holds %d records, not %d", w.imp, w.n, w.want)
				}
				return nil, nil
			}
			if err := w.fill(ctx); err != nil {
				return nil, err
			}
		}
		w.records, w.blocks = w.blocks[0].records, w.blocks[1:]
	}
	p := (*pki.Packed)(w.records)
	w.records = w.records[pki.PackedSize:]
	w.n++
	return p, nil
}

// fill takes what was read ahead, and has the next blocks read. That ends by itself, also where nobody takes it.
func (w *walker) fill(ctx context.Context) error {
	var got reading
	if w.ahead != nil {
		got = <-w.ahead
	} else {
		got.blocks, got.lo, got.err = w.s.readBlocks(ctx, w.imp, w.lo)
	}
	w.blocks, w.lo, w.ahead = got.blocks, got.lo, nil
	if got.err == nil && got.lo != nil {
		ahead := make(chan reading, 1)
		w.ahead = ahead
		go func() {
			var next reading
			next.blocks, next.lo, next.err = w.s.readBlocks(ctx, w.imp, got.lo)
			ahead <- next
		}()
	}
	return got.err
}

// readBlocks reads some blocks from lo on, whole and without a gap, and says where the next begins: nil after the last.
func (s *Store) readBlocks(ctx context.Context, imp int64, lo []byte) (blocks []block, next []byte, err error) {
	rows, err := s.r.QueryContext(ctx,
		`SELECT lo, hi, records, sha256 FROM block WHERE import = ? AND lo >= ? ORDER BY lo LIMIT ?`, imp, lo, readBlocks)
	if err != nil {
		return nil, nil, explain(err)
	}
	defer rows.Close()
	next = lo
	for rows.Next() {
		b := block{imp: imp}
		if err := b.scan(rows); err != nil {
			return nil, nil, explain(err)
		}
		if next == nil || string(b.lo) != string(next) {
			return nil, nil, damaged("import %d: a block begins at serial %x where one at %x belongs", imp, b.lo, next)
		}
		next = b.hi
		if len(b.hi) == 0 {
			next = nil
		}
		blocks = append(blocks, b)
	}
	if err := rows.Err(); err != nil {
		return nil, nil, explain(err)
	}
	if len(blocks) == 0 {
		return nil, nil, damaged("import %d: the block from serial %x on is missing", imp, lo)
	}
	return blocks, next, nil
}

// stager writes an import's blocks and what it changes, in short transactions between which other writers come to
// their turn. Records come in order.
type stager struct {
	s       *Store
	imp     int64
	open    block
	blocks  []block
	changed block      // open: what was, where anything was, and what is
	changes []block    // full
	writing chan error // the result of what is being written; nil if nothing is
	written []block    // what is being written, or was
	flushes int
	free    [][]byte // room for records that are written
	n       int64
	carried int64
	merged  *merger // takes each record too
}

// changeRow is a row of history in the making.
type changeRow struct {
	serial   pki.Serial
	from, to pki.Status
	carried  bool
}

// begin opens a block in the room of one that was written, where there is one: what an import writes is many times what keeper needs otherwise.
func (w *stager) begin(lo []byte) block {
	b := block{imp: w.imp, lo: lo}
	if n := len(w.free); n > 0 {
		b.records, w.free = w.free[n-1], w.free[:n-1]
	} else {
		b.records = make([]byte, 0, blockRecords*pki.PackedSize)
	}
	return b
}

func (w *stager) add(ctx context.Context, p *pki.Packed) error {
	if len(w.open.records) == blockRecords*pki.PackedSize {
		if err := w.cut(ctx, p.Serial().Bytes()); err != nil {
			return err
		}
	}
	w.open.records = append(w.open.records, p[:]...)
	w.n++
	if p.Source() == carriedMark {
		w.carried++
	}
	return w.merged.put(ctx, p)
}

// cut ends the open block where the next begins.
func (w *stager) cut(ctx context.Context, hi []byte) error {
	w.open.hi = hi
	w.blocks = append(w.blocks, w.open)
	w.open = w.begin(hi)
	if len(w.blocks) < writeBlocks {
		return nil
	}
	return w.flush(ctx)
}

// note adds a change to the history.
func (w *stager) note(ctx context.Context, c *changeRow) error {
	if len(w.changed.records) > (blockRecords-2)*pki.PackedSize {
		w.changes, w.changed = append(w.changes, w.changed), block{}
		if len(w.changes) >= writeBlocks {
			if err := w.flush(ctx); err != nil {
				return err
			}
		}
	}
	if w.changed.records == nil {
		w.changed = w.begin(c.serial.Bytes())
	}
	var mark uint8
	if c.carried {
		mark = carriedMark
	}
	if c.from.State != pki.Unknown {
		p := pki.Pack(c.serial, c.from, beforeMark)
		w.changed.records = append(w.changed.records, p[:]...)
	}
	p := pki.Pack(c.serial, c.to, mark)
	w.changed.records = append(w.changed.records, p[:]...)
	return nil
}

// finish writes what is left and says how much there is.
func (w *stager) finish(ctx context.Context) error {
	if err := w.cut(ctx, []byte{}); err != nil {
		return err
	}
	if len(w.changed.records) > 0 {
		w.changes = append(w.changes, w.changed)
	}
	if err := w.flush(ctx); err != nil {
		return err
	}
	if err := w.wait(); err != nil {
		return err
	}
	if err := w.s.checkpoint(ctx); err != nil { // or the next transaction would have to do it
		return err
	}
	return w.s.change(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE import SET count = ?, carried = ? WHERE id = ?`, w.n, w.carried, w.imp)
		return err
	})
}

// flush has the full blocks written, while more are made, and what was written before brought into the database beside that. Its error is that of
// the flush before.
func (w *stager) flush(ctx context.Context) error {
	if err := w.wait(); err != nil {
		return err
	}
	blocks, changes := w.blocks, w.changes
	w.blocks, w.changes, w.written = nil, nil, slices.Concat(blocks, changes)
	w.flushes++
	restart := w.flushes%restartAfter == 0
	w.writing = make(chan error, 1)
	go func() {
		beside := make(chan error, 1)
		go func() { beside <- w.s.checkpoint(ctx) }()
		err := w.s.writeBlocks(ctx, blocks, changes)
		err = cmp.Or(err, <-beside)
		if err == nil && restart {
			err = w.s.checkpoint(ctx)
		}
		w.writing <- err
	}()
	return nil
}

// wait ends when nothing is being written any more.
func (w *stager) wait() error {
	if w.writing == nil {
		return nil
	}
	err := <-w.writing
	for _, b := range w.written {
		w.free = append(w.free, b.records[:0])
	}
	w.writing, w.written = nil, nil
	return err
}

func (s *Store) writeBlocks(ctx context.Context, blocks, changes []block) error {
	sums, changeSums := make([][sha256.Size]byte, len(blocks)), make([][sha256.Size]byte, len(changes)) // before the writer is taken
	for i := range blocks {
		sums[i] = blocks[i].sum()
	}
	for i := range changes {
		changeSums[i] = changes[i].sum()
	}
	return s.changeAside(ctx, func(tx *sql.Tx) error {
		ctx := context.WithoutCancel(ctx) // a statement that can be ended costs a goroutine, and these few take milliseconds
		insert, err := tx.PrepareContext(ctx, `INSERT INTO block (import, lo, hi, records, sha256) VALUES (?, ?, ?, ?, ?)`)
		if err != nil {
			return err
		}
		defer insert.Close()
		for i, b := range blocks {
			if _, err := insert.ExecContext(ctx, b.imp, b.lo, b.hi, b.records, sums[i][:]); err != nil {
				return err
			}
		}
		insertChange, err := tx.PrepareContext(ctx, `INSERT INTO change (import, lo, records, sha256) VALUES (?, ?, ?, ?)`)
		if err != nil {
			return err
		}
		defer insertChange.Close()
		for i, b := range changes {
			if _, err := insertChange.ExecContext(ctx, b.imp, b.lo, b.records, changeSums[i][:]); err != nil {
				return err
			}
		}
		return nil
	})
}

// change finds what a block of changes has on a serial.
func (b *block) change(serial pki.Serial) (c changeRow, found bool) {
	key := pki.Pack(serial, pki.Status{}, 0)
	for records := b.records; len(records) > 0; records = records[pki.PackedSize:] {
		p := (*pki.Packed)(records)
		if p.Compare(&key) != 0 {
			continue
		}
		if found = true; p.Source() == beforeMark {
			c.from = p.Status()
		} else {
			c.to, c.carried = p.Status(), p.Source() == carriedMark
		}
	}
	return c, found
}

const insertHistory = `INSERT INTO history (issuer, serial, import, generation, at,
	from_state, from_reason, from_revoked_at, from_invalidity,
	to_state, to_reason, to_revoked_at, to_invalidity, carried, actor, note)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`

// row has the columns of insertHistory.
func (c *changeRow) row(issuer int64, imp, generation any, at int64, actor, note string) []any {
	return []any{
		issuer, c.serial.Bytes(), imp, generation, at,
		c.from.State, c.from.Reason, seconds(c.from.RevokedAt), seconds(c.from.InvalidityDate),
		c.to.State, c.to.Reason, seconds(c.to.RevokedAt), seconds(c.to.InvalidityDate), c.carried, actor, note,
	}
}
