package audit

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// A ledger is a log of answers as signer keeps it.
type ledger struct {
	t       *testing.T
	dir     string // of the log
	hashes  string // folder
	log     *Log
	answers *Answers
	key     note.Verifier
	last    uint64
	total   map[string]uint64
}

func newLedger(t *testing.T, quota int64) *ledger {
	signer, public, v := testKey(t)
	l := &ledger{t: t, dir: t.TempDir(), hashes: filepath.Join(t.TempDir(), "answers"), key: v, total: map[string]uint64{}}
	l.log = open(t, l.dir, signer, public)
	var err error
	if l.answers, err = OpenAnswers(l.hashes, quota); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.answers.Close() })
	return l
}

func answerHash(n uint64) [sha256.Size]byte {
	return sha256.Sum256(binary.BigEndian.AppendUint64([]byte("answer "), n))
}

// answer records a batch of n answers, whose hashes are those of their numbers.
func (l *ledger) answer(issuer string, n uint64) {
	l.t.Helper()
	var hashes [][sha256.Size]byte
	for i := range n {
		hashes = append(hashes, answerHash(l.last+1+i))
	}
	l.prepare()
	if err := l.answers.Write(l.last+1, hashes); err != nil {
		l.t.Fatal(err)
	}
	l.total[issuer] += n
	b := Batch{First: l.last + 1, Last: l.last + n, Root: AnswersRoot(hashes), Issuer: issuer, Key: "0123456789abcdef", Generation: 7, Total: l.total[issuer]}
	l.append(b.Record("signer"))
	l.last += n
}

func (l *ledger) prepare() {
	l.t.Helper()
	if err := l.answers.Prepare(l.last+1, func(r Range) error { l.append(DropRecord("signer", r)); return nil }); err != nil {
		l.t.Fatal(err)
	}
}

func (l *ledger) append(r Record) {
	l.t.Helper()
	if _, err := l.log.Append(context.Background(), r); err != nil {
		l.t.Fatal(err)
	}
}

func (l *ledger) gap(n uint64) {
	l.append(GapRecord("signer", Range{l.last + 1, l.last + n}, "a crash"))
	l.last += n
}

func (l *ledger) prove(n uint64) (*AnswerProof, error) {
	return ProveAnswer(l.dir, l.hashes, answerHash(n), l.key)
}

func (l *ledger) verify() (Accounts, []Fault) {
	l.t.Helper()
	a, faults, err := VerifyAnswers(l.dir, l.hashes, l.log.Head())
	if err != nil {
		l.t.Fatal(err)
	}
	return a, faults
}

// OCSP-AUD-01: every answer of every batch is proven, whatever else is in the log, and what was never signed is not.
func TestAUD01EveryAnswerIsProven(t *testing.T) {
	l := newLedger(t, 1<<30)
	issuers := []string{"class1", "class3"}
	for n := range uint64(13) {
		l.append(event(int(n)))
		l.answer(issuers[n%2], 1+n*n%23)
		if n%9 == 4 {
			l.gap(1 + n)
		}
	}
	proven := 0
	for n := uint64(1); n <= l.last; n++ {
		p, err := l.prove(n)
		if errors.Is(err, ErrNotRecorded) {
			continue // in a gap, where nothing was written
		}
		if err != nil {
			t.Fatalf("answer %d: %v", n, err)
		}
		if p.Number != n || p.Hash != answerHash(n) {
			t.Errorf("answer %d is proven as %d", n, p.Number)
		}
		proven++
	}
	a, faults := l.verify()
	if len(faults) > 0 {
		t.Errorf("faults: %v", faults)
	}
	var sum uint64
	for _, k := range a.Keys {
		sum += k.Answers
		if k.Answers != l.total[k.Issuer] {
			t.Errorf("%s: %d answers, want %d", k.Issuer, k.Answers, l.total[k.Issuer])
		}
	}
	if uint64(proven) != sum || a.Last != l.last || sum+a.Missing != l.last || a.Kept != (Range{1, l.last}) {
		t.Errorf("proven %d, accounts %+v, last %d", proven, a, l.last)
	}
	if _, err := l.prove(l.last + 1); !errors.Is(err, ErrNotRecorded) {
		t.Errorf("an answer that nobody signed: %v", err)
	}
	// Written and not recorded: not yet, and after a crash never.
	if err := l.answers.Write(l.last+1, [][sha256.Size]byte{answerHash(l.last + 1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.prove(l.last + 1); !errors.Is(err, ErrNotYet) {
		t.Errorf("a hash without a record: %v", err)
	}
	l.gap(5)
	if _, err := l.prove(l.last - 4); !errors.Is(err, ErrGap) {
		t.Errorf("a hash in a gap: %v", err)
	}
}

// The proof holds up before whoever has the public key and golang.org/x/mod alone; nothing in it can be changed.
func TestAnswerProofAlone(t *testing.T) {
	l := newLedger(t, 1<<30)
	l.answer("class1", 3)
	fill(t, l.log, 290) // more than a tile
	for range 9 {
		l.answer("class1", 7)
	}
	p, err := l.prove(30)
	if err != nil {
		t.Fatal(err)
	}
	check := func(p *AnswerProof) error {
		n, err := note.Open(p.Head.Note, note.VerifierList(l.key))
		if err != nil {
			return err
		}
		var origin, root string
		var size int64
		if _, err := fmt.Sscanf(n.Text, "%s\n%d\n%s\n", &origin, &size, &root); err != nil {
			return err
		}
		logRoot, err := tlog.ParseHash(root)
		if err != nil {
			return err
		}
		if err := tlog.CheckRecord(p.InLog, size, logRoot, int64(p.Record.Sequence), tlog.RecordHash(p.Line)); err != nil {
			return err
		}
		r, err := decode(p.Line)
		if err != nil {
			return err
		}
		b, err := ParseBatch(r)
		if err != nil {
			return err
		}
		return tlog.CheckRecord(p.InBatch, int64(b.Last-b.First+1), b.Root, int64(p.Number-b.First), tlog.RecordHash(p.Hash[:]))
	}
	if err := check(p); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*AnswerProof){
		"another answer": func(p *AnswerProof) { p.Hash[0] ^= 1 },
		"another place":  func(p *AnswerProof) { p.Number++ },
		"another record": func(p *AnswerProof) { p.Line = []byte(strings.Replace(string(p.Line), "class1", "class3", 1)) },
		"another path":   func(p *AnswerProof) { p.InLog = append(tlog.RecordProof{{1}}, p.InLog[1:]...) },
		"another batch":  func(p *AnswerProof) { p.InBatch = append(tlog.RecordProof{{1}}, p.InBatch[1:]...) },
		"another head": func(p *AnswerProof) {
			p.Head.Note = []byte(strings.Replace(string(p.Head.Note), "\n300\n", "\n301\n", 1))
		},
	} {
		q := *p
		if change(&q); check(&q) == nil {
			t.Errorf("%s: still proven", name)
		}
	}
}

// What is kept is bounded: a flood drops the oldest hashes, says so, and never more than must be. It takes no record with it.
func TestAUD08AnswersQuota(t *testing.T) {
	const quota = 3 * SegmentSize
	l := newLedger(t, quota)
	for l.last < 5*segmentAnswers {
		l.answer("class1", segmentAnswers/16)
		var size int64
		files, _ := filepath.Glob(filepath.Join(l.hashes, "*"))
		for _, f := range files {
			info, err := os.Stat(f)
			if err != nil {
				t.Fatal(err)
			}
			size += info.Size()
		}
		if size > quota {
			t.Fatalf("%d octets are kept, more than %d", size, quota)
		}
	}
	a, faults := l.verify()
	if len(faults) > 0 {
		t.Errorf("faults: %v", faults)
	}
	if a.Kept.Last != l.last || l.last-a.Kept.First < segmentAnswers || a.Last != l.last {
		t.Errorf("accounts: %+v", a)
	}
	oldest, err := OldestKept(l.hashes)
	if err != nil || oldest > a.Kept.First || a.Kept.First-oldest > segmentAnswers/16 {
		t.Errorf("oldest %d, kept %+v, %v", oldest, a.Kept, err)
	}
	if _, err := l.prove(oldest - 1); !errors.Is(err, ErrNotRecorded) {
		t.Errorf("an answer that was dropped: %v", err)
	}
	if r := verify(t, l.dir, l.key, nil); !r.OK() || !slices.Equal(r.Proven, []Range{{0, l.log.Head().Size - 1}}) {
		t.Errorf("%v, proven %v", r.Faults, r.Proven)
	}
	recorded, dropped := uint64(1), uint64(1) // the next number
	for r := range values(l.log.Records(0)) {
		switch n, _ := r.Numbers(); {
		case r.Event == EventBatch && n.First == recorded:
			recorded = n.Last + 1
		case r.Event == EventDrop && n.First == dropped:
			dropped = n.Last + 1
		default:
			t.Errorf("entry %d: %+v", r.Sequence, r)
		}
	}
	if recorded != l.last+1 || dropped != oldest {
		t.Errorf("batches are recorded before %d, drops before %d; want %d, %d", recorded, dropped, l.last+1, oldest)
	}
	for _, n := range []uint64{a.Kept.First, l.last} {
		if _, err := l.prove(n); err != nil {
			t.Errorf("answer %d: %v", n, err)
		}
	}
	// A drop that cannot be recorded does not happen.
	before, _ := filepath.Glob(filepath.Join(l.hashes, "*"))
	full := errors.New("full")
	if err := l.answers.Prepare(l.last+segmentAnswers, func(Range) error { return full }); !errors.Is(err, full) {
		t.Errorf("a drop that cannot be recorded: %v", err)
	}
	if after, _ := filepath.Glob(filepath.Join(l.hashes, "*")); !cmp.Equal(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
}

// Segments take their room on the disk ahead of need.
func TestAnswersPreallocated(t *testing.T) {
	l := newLedger(t, 1<<30)
	l.last = segmentAnswers/2 - 2
	l.prepare()
	if there, _ := segments(l.hashes); len(there) != 1 {
		t.Errorf("before half is used: segments %v", there)
	}
	l.last++
	l.prepare()
	there, _ := segments(l.hashes)
	if len(there) != 2 {
		t.Errorf("when half is used: segments %v", there)
	}
	for _, n := range there {
		if got := allocated(t, filepath.Join(l.hashes, segmentName(n))); got < SegmentSize {
			t.Errorf("segment %d has %d octets on the disk, want %d", n, got, SegmentSize)
		}
	}
}

// What anyone does to the hashes or the records shows.
func TestVerifyAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(l *ledger)
		want string
	}{
		"hash changed": {func(l *ledger) { l.poke(20) }, "entry 1: the hashes of answers 11 to 20 are not those that were recorded"},
		"hashes gone": {func(l *ledger) { os.Remove(filepath.Join(l.hashes, segmentName(0))) },
			"entry 0: the hashes of answers 1 to 10 are missing, and no record says that they were dropped"},
		"number skipped": {func(l *ledger) { l.last += 5; l.answer("class1", 1) }, "entry 3: answers 36 to 36 follow number 30"},
		"number again":   {func(l *ledger) { l.last -= 5; l.answer("class1", 5) }, "entry 3: answers 26 to 30 follow number 30"},
		"total wrong": {func(l *ledger) { l.total["class1"]--; l.answer("class1", 1) },
			"entry 3: says that key 0123456789abcdef of issuer class1 has signed 30 answers, and the log has 31"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLedger(t, 1<<30)
			for range 3 {
				l.answer("class1", 10)
			}
			c.do(l)
			_, faults := l.verify()
			if len(faults) == 0 || faults[0].String() != c.want {
				t.Errorf("faults %v, want %s", faults, c.want)
			}
		})
	}
}

func (l *ledger) poke(n uint64) {
	f, err := os.OpenFile(filepath.Join(l.hashes, segmentName(0)), os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt([]byte{0x55}, int64(n)*sha256.Size)
		f.Close()
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// The root is that of RFC 6962 section 2.1, by its own words.
func TestAnswersRoot(t *testing.T) {
	var root func(d [][sha256.Size]byte) [sha256.Size]byte
	root = func(d [][sha256.Size]byte) [sha256.Size]byte {
		if len(d) == 1 {
			return sha256.Sum256(append([]byte{0}, d[0][:]...))
		}
		k := 1
		for 2*k < len(d) {
			k *= 2
		}
		left, right := root(d[:k]), root(d[k:])
		return sha256.Sum256(append(append([]byte{1}, left[:]...), right[:]...))
	}
	for n := 1; n <= 33; n++ {
		hashes := make([][sha256.Size]byte, n)
		for i := range hashes {
			rand.Read(hashes[i][:])
		}
		if got, want := AnswersRoot(hashes), root(hashes); got != tlog.Hash(want) {
			t.Errorf("%d hashes: root %v, want %x", n, got, want)
		}
	}
}

// Whoever asks for an old answer is told where the log stands at its time.
func TestRecordedAfter(t *testing.T) {
	l := newLedger(t, 1<<30)
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for n := range 10 {
		l.last++
		r := GapRecord("signer", Range{l.last, l.last}, "x")
		r.Time = at.Add(time.Duration(n) * time.Minute)
		l.append(r)
	}
	for _, c := range []struct {
		after time.Duration
		want  uint64
	}{{-time.Hour, 0}, {0, 0}, {time.Second, 1}, {9 * time.Minute, 9}} {
		if r, err := RecordedAfter(l.dir, l.log.Head(), at.Add(c.after)); err != nil || r.Sequence != c.want {
			t.Errorf("after %v: entry %d, %v; want %d", c.after, r.Sequence, err, c.want)
		}
	}
	if _, err := RecordedAfter(l.dir, l.log.Head(), at.Add(time.Hour)); !errors.Is(err, ErrNotRecorded) {
		t.Errorf("after all: %v", err)
	}
	if n, err := LastNumber(l.dir, l.log.Head().Size); n != 10 || err != nil {
		t.Errorf("last number %d, %v", n, err)
	}
}

// Records of one AppendAll come together, in order.
func TestAppendAll(t *testing.T) {
	signer, public, _ := testKey(t)
	l := open(t, t.TempDir(), signer, public)
	a, b := event(1), event(2)
	if err := l.AppendAll([]*Record{&a, &b}); err != nil || a.Sequence != 0 || b.Sequence != 1 || l.Head().Size != 2 {
		t.Errorf("entries %d and %d of %d: %v", a.Sequence, b.Sequence, l.Head().Size, err)
	}
	bad := Record{Event: "no dot"}
	if err := l.AppendAll([]*Record{&a, &bad}); err == nil || l.Head().Size != 2 {
		t.Errorf("with a bad record: %v, %d entries", err, l.Head().Size)
	}
}

func allocated(t *testing.T, file string) int64 {
	t.Helper()
	var s syscall.Stat_t
	if err := syscall.Stat(file, &s); err != nil {
		t.Fatal(err)
	}
	return s.Blocks * 512
}
