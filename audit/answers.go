package audit

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// A log of answers has two parts: each answer's hash, in segments beside the log, and a record for each batch of them, which holds the root of
// a tree over the batch's hashes (RFC 6962 section 2.1, as tlog has it). Answers are numbered from 1; hash and number tell each other where they
// are. The hashes are many, and the oldest are dropped when they would take more room than they may; the records stay.
//
// A number is in exactly one record: in that of its batch, or in that of a gap.
const (
	EventBatch = "answers.batch" // a Batch: its hashes were durable before
	EventGap   = "answers.gap"   // first to last: no answer is recorded under these numbers
	EventDrop  = "answers.drop"  // first to last: the hashes are no longer kept
)

const (
	segmentAnswers = 1 << 17 // numbers in a segment
	// SegmentSize is the size of a segment in octets: 4 MiB.
	SegmentSize = segmentAnswers * tlog.HashSize
)

// A Batch is the answers from First to Last: of one issuer, by one key, out of one generation.
type Batch struct {
	First, Last uint64
	Root        tlog.Hash // of the tree over the answers' SHA-256
	Issuer      string
	Key         string // hexadecimal, the beginning of the SHA-256 of the key's SubjectPublicKeyInfo
	Generation  uint64
	Total       uint64    // answers by this key so far, these included
	Recorded    time.Time // when; set by ParseBatch
}

// Record is the batch as it stands in a log.
func (b *Batch) Record(actor string) Record {
	return Record{Event: EventBatch, Actor: actor, Subject: b.Issuer, Outcome: "ok", Details: append(span(b.First, b.Last),
		Detail{"root", b.Root.String()}, Detail{"key", b.Key}, Detail{"generation", strconv.FormatUint(b.Generation, 10)},
		Detail{"total", strconv.FormatUint(b.Total, 10)})}
}

func span(first, last uint64) []Detail {
	return []Detail{{"first", strconv.FormatUint(first, 10)}, {"last", strconv.FormatUint(last, 10)}}
}

// GapRecord says that nothing is recorded under the numbers of r, and why.
func GapRecord(actor string, r Range, reason string) Record {
	return Record{Event: EventGap, Actor: actor, Outcome: "missing", Details: append(span(r.First, r.Last), Detail{"reason", reason})}
}

// DropRecord says that the hashes of r are no longer kept.
func DropRecord(actor string, r Range) Record {
	return Record{Event: EventDrop, Actor: actor, Outcome: "ok", Details: span(r.First, r.Last)}
}

// Numbers are those that a record of this file is about; ok is false for other records, and for one that does not say.
func (r Record) Numbers() (n Range, ok bool) {
	if r.Event != EventBatch && r.Event != EventGap && r.Event != EventDrop {
		return n, false
	}
	var err error
	if n.First, err = strconv.ParseUint(r.Detail("first"), 10, 64); err != nil {
		return n, false
	}
	n.Last, err = strconv.ParseUint(r.Detail("last"), 10, 64)
	return n, err == nil && 0 < n.First && n.First <= n.Last
}

// covers gives the numbers that are settled by a record: as answers, or as a gap.
func (r Record) covers() (n Range, ok bool) {
	if r.Event == EventDrop {
		return n, false
	}
	return r.Numbers()
}

// ParseBatch reads a record that Batch.Record made.
func ParseBatch(r Record) (Batch, error) {
	b := Batch{Issuer: r.Subject, Key: r.Detail("key"), Recorded: r.Time}
	n, ok := r.Numbers()
	b.First, b.Last = n.First, n.Last
	var errs [3]error
	b.Root, errs[0] = tlog.ParseHash(r.Detail("root"))
	b.Generation, errs[1] = strconv.ParseUint(r.Detail("generation"), 10, 64)
	b.Total, errs[2] = strconv.ParseUint(r.Detail("total"), 10, 64)
	if err := errors.Join(errs[:]...); err != nil || !ok || r.Event != EventBatch {
		return Batch{}, fmt.Errorf("entry %d: is no batch of answers", r.Sequence)
	}
	return b, nil
}

// AnswersRoot is the root of the tree over the hashes of a batch.
func AnswersRoot(hashes [][sha256.Size]byte) tlog.Hash {
	root, err := tlog.TreeHash(int64(len(hashes)), storedHashes(hashes))
	if err != nil {
		panic(err) // storedHashes has every hash
	}
	return root
}

// storedHashes is the tree over the hashes, in the order of tlog.
func storedHashes(hashes [][sha256.Size]byte) tlog.HashReader {
	stored := make([]tlog.Hash, 0, 2*len(hashes))
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		list := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			list[i] = stored[x]
		}
		return list, nil
	})
	for n, h := range hashes {
		more, err := tlog.StoredHashes(int64(n), h[:], reader)
		if err != nil {
			panic(err) // the reader has all that came before
		}
		stored = append(stored, more...)
	}
	return reader
}

// Answers keeps the hashes of answers in files of SegmentSize, whose room is taken on the disk ahead of need: what Prepare made room for, Write can
// write when the disk is full. One process writes; its methods are for one goroutine.
type Answers struct {
	dir   string
	quota int64
	file  *os.File // of segment open
	open  uint64
}

// OpenAnswers opens the segments in dir, or begins them. They take quota octets at most, two segments at least.
func OpenAnswers(dir string, quota int64) (*Answers, error) {
	if err := makeFolder(dir); err != nil {
		return nil, fmt.Errorf("answers: %w", err)
	}
	return &Answers{dir: dir, quota: max(quota, 2*SegmentSize)}, nil
}

// Close closes the files.
func (a *Answers) Close() error {
	if a.file == nil {
		return nil
	}
	return a.file.Close()
}

func segmentName(segment uint64) string { return fmt.Sprintf("%06d", segment) }

// segments lists the numbers of the segments in dir, in order.
func segments(dir string) ([]uint64, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("answers: %w", err)
	}
	var numbers []uint64
	for _, e := range list {
		if n, err := strconv.ParseUint(e.Name(), 10, 40); err == nil && segmentName(n) == e.Name() {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

func segmentNumbers(segment uint64) Range {
	return Range{max(1, segment*segmentAnswers), (segment+1)*segmentAnswers - 1}
}

// Prepare makes room for the answers from number next on: for the segment that next is in, and for the one after as soon as half of that is used. Where they
// would take too much room, the oldest go first: dropping is told which numbers, and must have recorded it when it returns; its error keeps them.
func (a *Answers) Prepare(next uint64, dropping func(Range) error) error {
	wanted := []uint64{next / segmentAnswers}
	if next%segmentAnswers >= segmentAnswers/2 {
		wanted = append(wanted, wanted[0]+1)
	}
	for _, w := range wanted {
		there, err := segments(a.dir)
		if err != nil {
			return err
		}
		missing := !slices.Contains(there, w)
		most := int(a.quota / SegmentSize)
		if missing {
			most--
		}
		for len(there) > most && there[0] < wanted[0] {
			if err := dropping(segmentNumbers(there[0])); err != nil {
				return err
			}
			if err := os.Remove(filepath.Join(a.dir, segmentName(there[0]))); err != nil {
				return fmt.Errorf("answers: %w", err)
			}
			there = there[1:]
		}
		if missing {
			if err := allocate(filepath.Join(a.dir, segmentName(w))); err != nil {
				return fmt.Errorf("answers: make room for more: %w", err)
			}
		}
	}
	return nil
}

// allocate makes a segment of zeros whose room is taken, not a file with holes. It has its name when that is durable.
func allocate(path string) error {
	return putBy(path, 0o640, func(f *os.File) error {
		err := unix.Fallocate(int(f.Fd()), 0, 0, SegmentSize)
		if errors.Is(err, unix.EOPNOTSUPP) {
			_, err = f.Write(make([]byte, SegmentSize))
		}
		return err
	})
}

// Write makes the hashes of the answers from number first on durable. After an error all of them are to be written again: what an fsync that failed
// left behind is not known.
func (a *Answers) Write(first uint64, hashes [][sha256.Size]byte) error {
	for len(hashes) > 0 {
		segment, place := first/segmentAnswers, first%segmentAnswers
		n := min(uint64(len(hashes)), segmentAnswers-place)
		if err := a.writeSegment(segment, int64(place)*tlog.HashSize, hashes[:n]); err != nil {
			return fmt.Errorf("answers: %w", err)
		}
		first, hashes = first+n, hashes[n:]
	}
	return nil
}

func (a *Answers) writeSegment(segment uint64, offset int64, hashes [][sha256.Size]byte) error {
	if a.file == nil || a.open != segment {
		f, err := os.OpenFile(filepath.Join(a.dir, segmentName(segment)), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		a.Close()
		a.file, a.open = f, segment
	}
	b := make([]byte, 0, len(hashes)*sha256.Size)
	for i := range hashes {
		b = append(b, hashes[i][:]...)
	}
	if _, err := a.file.WriteAt(b, offset); err != nil {
		return err
	}
	return unix.Fdatasync(int(a.file.Fd()))
}

// readAnswers reads the hashes of a range. fs.ErrNotExist means that some of them are no longer kept.
func readAnswers(dir string, r Range) ([][sha256.Size]byte, error) {
	if r.Last-r.First >= maxBatch {
		return nil, fmt.Errorf("answers %d to %d: more than a batch ever has", r.First, r.Last)
	}
	hashes := make([][sha256.Size]byte, 0, r.Last-r.First+1)
	for n := r.First; n <= r.Last; {
		segment, place := n/segmentAnswers, n%segmentAnswers
		count := min(r.Last-n+1, segmentAnswers-place)
		b := make([]byte, count*sha256.Size)
		f, err := os.Open(filepath.Join(dir, segmentName(segment)))
		if err == nil {
			_, err = f.ReadAt(b, int64(place)*sha256.Size)
			f.Close()
		}
		if err == io.EOF {
			err = errShort
		}
		if err != nil {
			return nil, fmt.Errorf("answers, segment %s: %w", segmentName(segment), err)
		}
		for ; len(b) > 0; b = b[sha256.Size:] {
			hashes = append(hashes, [sha256.Size]byte(b))
		}
		n += count
	}
	return hashes, nil
}

// maxBatch bounds what a damaged record makes us read.
const maxBatch = 1 << 20

// findAnswer gives the numbers under which a hash is kept, the youngest first: the same answer, to the octet, may have been signed twice.
func findAnswer(dir string, hash [sha256.Size]byte) iter.Seq2[uint64, error] {
	return func(yield func(uint64, error) bool) {
		list, err := segments(dir)
		if err != nil {
			yield(0, err)
			return
		}
		for _, segment := range slices.Backward(list) {
			b, err := os.ReadFile(filepath.Join(dir, segmentName(segment)))
			if errors.Is(err, fs.ErrNotExist) {
				continue // dropped since
			}
			if err != nil {
				yield(0, fmt.Errorf("answers: %w", err))
				return
			}
			var found []uint64
			for at := 0; ; at++ { // forwards, which is fast
				next := bytes.Index(b[at:], hash[:])
				if next < 0 {
					break
				}
				if at += next; at%sha256.Size == 0 {
					found = append(found, segment*segmentAnswers+uint64(at/sha256.Size))
				}
			}
			for _, number := range slices.Backward(found) {
				if !yield(number, nil) {
					return
				}
			}
		}
	}
}

// Errors of ProveAnswer that callers branch on.
var (
	ErrNotRecorded = errors.New("no such answer is in the log")
	ErrNotYet      = errors.New("the hash of the answer is kept, and its record is not written yet")
	ErrGap         = errors.New("the hash of the answer is kept, but a crash came before its record")
)

// AnswerProof proves that an answer is in the log of whoever signed the head: it needs nothing but the key of the head.
type AnswerProof struct {
	Hash    [sha256.Size]byte // of the whole OCSPResponse, as it goes over the wire
	Number  uint64
	Batch   Batch
	InBatch tlog.RecordProof // from Hash to Batch.Root; the answer is at Number - Batch.First among Batch.Last - Batch.First + 1
	Line    []byte           // the record of the batch, as it stands in the log
	Record  Record           // the same
	InLog   tlog.RecordProof // from Line to Head.Root; the record is at Record.Sequence among Head.Size
	Head    Head
}

// ProveAnswer proves that an answer with this hash is in the log in logDir, whose hashes of answers are in answersDir. Both may be a copy, or in use.
func ProveAnswer(logDir, answersDir string, hash [sha256.Size]byte, keys ...note.Verifier) (*AnswerProof, error) {
	err := ErrNotRecorded
	for number, findErr := range findAnswer(answersDir, hash) {
		if findErr != nil {
			return nil, findErr
		}
		head, headErr := ReadHead(logDir, keys...) // after the hash was found: what is recorded stays so
		if headErr != nil {
			return nil, headErr
		}
		p, proveErr := proveNumber(logDir, answersDir, head, hash, number)
		if err = proveErr; !errors.Is(err, ErrNotYet) && !errors.Is(err, ErrGap) {
			return p, err
		}
	}
	return nil, err
}

func proveNumber(logDir, answersDir string, head Head, hash [sha256.Size]byte, number uint64) (*AnswerProof, error) {
	r, err := recordOfNumber(logDir, head.Size, number)
	if err != nil {
		return nil, err
	}
	p := &AnswerProof{Hash: hash, Number: number, Record: r, Head: head}
	if p.Batch, err = ParseBatch(r); err != nil {
		return nil, fmt.Errorf("audit log %s: %w", logDir, err)
	}
	if p.Line, err = r.MarshalJSON(); err != nil {
		return nil, err
	}
	hashes, err := p.Batch.hashes(answersDir)
	if err != nil {
		return nil, err
	}
	if p.InBatch, err = tlog.ProveRecord(int64(len(hashes)), int64(number-p.Batch.First), storedHashes(hashes)); err != nil {
		return nil, err
	}
	if p.InLog, err = tlog.ProveRecord(int64(head.Size), int64(r.Sequence), tlog.TileHashReader(head.tree(), tileReader{logDir})); err != nil {
		return nil, fmt.Errorf("audit log %s: entry %d: %w", logDir, r.Sequence, err)
	}
	return p, p.Check()
}

// hashes are those of the batch, if they are what was recorded.
func (b *Batch) hashes(answersDir string) ([][sha256.Size]byte, error) {
	hashes, err := readAnswers(answersDir, Range{b.First, b.Last})
	if err == nil && AnswersRoot(hashes) != b.Root {
		err = fmt.Errorf("the hashes of answers %d to %d are not those that were recorded: they were changed since, and nothing of this batch can be proven; keep a copy of %s as evidence",
			b.First, b.Last, answersDir)
	}
	return hashes, err
}

// CheckBatches looks whether the hashes of the batches from a number on, recorded until a time, are what was recorded.
func CheckBatches(logDir, answersDir string, head Head, from uint64, until time.Time) error {
	for b, err := range Batches(logDir, head.Size, from) {
		if err != nil || b.Recorded.After(until) {
			return err
		}
		if _, err := b.hashes(answersDir); err != nil {
			return err
		}
	}
	return nil
}

// Check follows the proof from the answer's hash to the root in the head. That the head is signed is for whoever read it to have checked.
func (p *AnswerProof) Check() error {
	if err := tlog.CheckRecord(p.InBatch, int64(p.Batch.Last-p.Batch.First+1), p.Batch.Root, int64(p.Number-p.Batch.First), tlog.RecordHash(p.Hash[:])); err != nil {
		return fmt.Errorf("answer %d is not in its batch: %w", p.Number, err)
	}
	if err := tlog.CheckRecord(p.InLog, int64(p.Head.Size), p.Head.Root, int64(p.Record.Sequence), tlog.RecordHash(p.Line)); err != nil {
		return fmt.Errorf("entry %d is not in the log of the signed head: %w", p.Record.Sequence, err)
	}
	return nil
}

// RecordedAfter gives the first record of answers, or of a gap, that was written at a time or later; ErrNotRecorded means that there is none.
func RecordedAfter(logDir string, head Head, at time.Time) (Record, error) {
	return search(logDir, head.Size, func(r Record) bool { return !r.Time.Before(at) })
}

// OldestKept is the first number whose hash may still be kept; 0 when none is.
func OldestKept(answersDir string) (uint64, error) {
	list, err := segments(answersDir)
	if err != nil || len(list) == 0 {
		return 0, err
	}
	return segmentNumbers(list[0]).First, nil
}

// recordOfNumber finds the record that settles a number, by halves: numbers grow along the log.
func recordOfNumber(dir string, size, number uint64) (Record, error) {
	r, err := search(dir, size, func(r Record) bool { n, _ := r.covers(); return n.Last >= number })
	if errors.Is(err, ErrNotRecorded) {
		return Record{}, ErrNotYet
	}
	if err != nil {
		return Record{}, err
	}
	if n, _ := r.covers(); r.Event == EventGap || number < n.First {
		return Record{}, fmt.Errorf("%w: see entry %d", ErrGap, r.Sequence)
	}
	return r, nil
}

// search gives the first record of answers or of a gap for which late holds, which must then hold for all that follow.
func search(dir string, size uint64, late func(Record) bool) (Record, error) {
	low, high := uint64(0), size // the entry sought begins at or after low; that at high is late, or the end
	var found *Record
	for low < high {
		middle := low + (high-low)/2
		r, err := settled(dir, middle, high)
		switch {
		case err != nil:
			return Record{}, err
		case r == nil:
			high = middle
		case late(*r):
			found, high = r, middle
		default:
			low = r.Sequence + 1
		}
	}
	if found == nil {
		return Record{}, ErrNotRecorded
	}
	return *found, nil
}

// settled gives the first record of answers or of a gap among those entries, or nil.
func settled(dir string, from, to uint64) (*Record, error) {
	for r, err := range Records(dir, from, to) {
		if err != nil {
			return nil, err
		}
		if _, ok := r.covers(); ok {
			return &r, nil
		}
	}
	return nil, nil
}

// LastNumber is the last number that the log's records settle, or 0 when there is none.
func LastNumber(dir string, size uint64) (uint64, error) {
	for end := size; end > 0; {
		first := (end - 1) / tileWidth * tileWidth
		last := uint64(0)
		for r, err := range Records(dir, first, end) {
			if err != nil {
				return 0, err
			}
			if n, ok := r.covers(); ok {
				last = n.Last
			}
		}
		if last > 0 {
			return last, nil
		}
		end = first
	}
	return 0, nil
}

// Batches gives the batches of a log with the answers from a number on, as they stand there. The first error ends it.
func Batches(dir string, size, from uint64) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		first, err := search(dir, size, func(r Record) bool { n, _ := r.covers(); return n.Last >= from })
		if errors.Is(err, ErrNotRecorded) {
			return
		}
		if err != nil {
			yield(Batch{}, err)
			return
		}
		for r, err := range Records(dir, first.Sequence, size) {
			if err == nil && r.Event != EventBatch {
				continue
			}
			var b Batch
			if err == nil {
				b, err = ParseBatch(r)
			}
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}

// Accounts are what a log says of the answers that were signed.
type Accounts struct {
	Keys    []KeyAccount
	Last    uint64 // the last number
	Missing uint64 // numbers of gaps: so many answers at most were signed and not recorded
	Kept    Range  // the numbers whose hashes are kept and are what was recorded; First is 0 when there are none
}

// KeyAccount is how many answers a key has signed.
type KeyAccount struct {
	Issuer, Key string
	Answers     uint64
}

// VerifyAnswers goes through the records of answers in a log that Verify found whole, and compares them with the hashes that are kept: every number
// is settled once, each key's total is the sum of its batches, and the hashes kept are those of the recorded roots.
func VerifyAnswers(logDir, answersDir string, head Head) (Accounts, []Fault, error) {
	var a Accounts
	report := &Report{}
	totals := map[[2]string]uint64{}
	dropped := uint64(0)
	for r, err := range Records(logDir, 0, head.Size) {
		if err != nil {
			return a, report.Faults, err
		}
		at := &Range{r.Sequence, r.Sequence}
		n, ok := r.Numbers()
		switch {
		case r.Event != EventBatch && r.Event != EventGap && r.Event != EventDrop:
			continue
		case !ok:
			report.fault(at, "does not say which answers it is about")
			continue
		case r.Event == EventDrop:
			dropped = max(dropped, n.Last)
			continue
		case n.First != a.Last+1:
			report.fault(at, "answers %d to %d follow number %d", n.First, n.Last, a.Last)
		}
		a.Last = max(a.Last, n.Last)
		if r.Event == EventGap {
			a.Missing += n.Last - n.First + 1
			continue
		}
		b, err := ParseBatch(r)
		if err != nil {
			report.fault(at, "is no batch of answers")
			continue
		}
		key := [2]string{b.Issuer, b.Key}
		if totals[key] += b.Last - b.First + 1; totals[key] != b.Total {
			report.fault(at, "says that key %s of issuer %s has signed %d answers, and the log has %d", b.Key, b.Issuer, b.Total, totals[key])
			totals[key] = b.Total
		}
	}
	for key, n := range totals {
		a.Keys = append(a.Keys, KeyAccount{key[0], key[1], n})
	}
	slices.SortFunc(a.Keys, func(x, y KeyAccount) int { return cmp.Or(cmp.Compare(x.Issuer, y.Issuer), cmp.Compare(x.Key, y.Key)) })
	err := verifyHashes(logDir, answersDir, head, dropped, report, &a)
	return a, report.Faults, err
}

// verifyHashes compares the hashes from beyond the number dropped on with their batches.
func verifyHashes(logDir, answersDir string, head Head, dropped uint64, report *Report, a *Accounts) error {
	for r, err := range Records(logDir, 0, head.Size) {
		if err != nil {
			return err
		}
		b, err := ParseBatch(r)
		if err != nil || b.First <= dropped {
			continue
		}
		at := &Range{r.Sequence, r.Sequence}
		hashes, err := readAnswers(answersDir, Range{b.First, b.Last})
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, errShort):
			report.fault(at, "the hashes of answers %d to %d are missing, and no record says that they were dropped", b.First, b.Last)
		case err != nil:
			return err
		case AnswersRoot(hashes) != b.Root:
			report.fault(at, "the hashes of answers %d to %d are not those that were recorded", b.First, b.Last)
		case a.Kept.First == 0:
			a.Kept = Range{b.First, b.Last}
		default:
			a.Kept.Last = b.Last
		}
	}
	return nil
}
