package main

import (
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"ocspd/audit"
	"ocspd/hsm"
	"ocspd/responder"
)

const (
	recordEvery   = 250 * time.Millisecond // answers are in the log so long after they were signed, and the time that this takes
	recordAt      = 500                    // so many that wait are recorded at once
	roomPatience  = time.Second            // what a question waits for room; front waits 1.5 s
	journalRetry  = time.Second
	reserveSize   = 1 << 20 // octets: more than the records of all answers that can wait
	eventsWaiting = 200     // events kept in memory while the log cannot be written
)

// journal is signer's own log: what it did with its keys, and the hash of every answer that it signed. It guarantees:
//
//   - an answer that left signer is in the log within a second, or a crash came before; then the log says how many at most are missing, and these
//     are never more than signatureReserve;
//   - while the log cannot be written, nothing is signed; what was signed before is recorded first, out of a reserve of the disk;
//   - each number that highwater counts is in the log once, as an answer's or as missing.
type journal struct {
	cfg    *config
	log    *slog.Logger
	alarms *alarmSet
	mark   *highwater
	wake   chan struct{}

	mu       sync.Mutex
	signing  uint64         // questions that have room and no answer yet
	waiting  []signedAnswer // answers that are not in the log
	settling uint64         // answers that are being recorded
	last     uint64         // number that the log settles
	limit    uint64         // number that highwater lets be signed under
	fault    error          // why nothing may be signed; nil when all is well
	since    time.Time      // of fault
	changed  chan struct{}  // closed when any of these has changed
	events   []*audit.Record
	dropped  int  // events that found no room
	unsigned bool // the head is to be signed, and could not be

	writing sync.Mutex // guards the rest: one writes at a time
	audit   *audit.Log
	answers *audit.Answers
	keys    map[string]uint64 // answers in the log by keyAccount
	tried   time.Time         // when the reserve was last looked for
	head    note.Signer       // signs the heads where the log does not; nil where it does, or the key is not there yet
	public  string            // of head
	ended   bool

	login string // the last login that failed; one goroutine logs in
}

// signedAnswer is what is recorded of an answer.
type signedAnswer struct {
	hash       [sha256.Size]byte
	by         *responder.Authority
	generation uint64
}

const shortKeyLength = 32

// shortKey is how batches of answers name a key: 128 bits of the SHA-256 of its SubjectPublicKeyInfo, the whole of which is in key.activate.
func shortKey(a *responder.Authority) string {
	return fmt.Sprintf("%x", sha256.Sum256(a.Certificate().RawSubjectPublicKeyInfo))[:shortKeyLength]
}

func keyAccount(issuer, key string) string { return issuer + " " + key }

// openJournal opens the log, which nobody else has open then, and highwater. The first records say what the run before left behind.
func openJournal(cfg *config, log *slog.Logger, alarms *alarmSet) (*journal, error) {
	j := &journal{cfg: cfg, log: log, alarms: alarms, wake: make(chan struct{}, 1), changed: make(chan struct{})}
	var err error
	if err = j.openLog(); err != nil {
		return nil, err
	}
	if j.mark, err = openHighwater(filepath.Join(cfg.signerDir(), "highwater")); err == nil {
		j.answers, err = audit.OpenAnswers(cfg.answersDir(), cfg.AuditAnswers)
	}
	if err == nil {
		err = j.resume()
	}
	if err != nil {
		return nil, errors.Join(err, j.audit.Close())
	}
	return j, nil
}

// openLog opens the log whether the token is there or not: heads that a key in it is to sign wait for signWith.
func (j *journal) openLog() (err error) {
	if j.cfg.AuditKey != "" {
		j.audit, err = audit.OpenLocal(j.cfg.signerLog(), j.log)
	} else {
		var signer note.Signer
		var public string
		signer, public, err = audit.LoadOrCreateKey(filepath.Join(j.cfg.signerDir(), "audit.key"), signerOrigin)
		if err == nil {
			j.audit, err = audit.Open(j.cfg.signerLog(), signer, public, j.log)
		}
	}
	if err != nil {
		return fmt.Errorf("signer's log: %w", err)
	}
	return nil
}

// signWith has the heads of the log signed by a key in the token from now on.
func (j *journal) signWith(key crypto.Signer) error {
	if j.cfg.AuditKey == "" {
		return nil // a key file signs, and reload does not change that
	}
	signer, public, err := audit.NewSigner(signerOrigin, key)
	if err != nil {
		return err
	}
	j.writing.Lock()
	defer j.writing.Unlock()
	j.head, j.public = signer, public
	return nil
}

// signHead signs the head where that is not done with every write. Records are durable without: a token that is away stops no log.
func (j *journal) signHead() {
	if j.head == nil || j.audit.Signed().Size == j.audit.Head().Size {
		return
	}
	err := j.audit.SignWith(context.Background(), j.head, j.public)
	j.alarms.when(err != nil, alarmLogHead, "signer", fmt.Sprintf("the head of signer's log is not signed: %v", err))
	j.mu.Lock()
	j.unsigned = err != nil
	j.mu.Unlock()
}

// resume brings log and highwater into step (OCSP-KEY-17). The log was written first, and highwater ahead of it: between what highwater knew to be recorded
// and what it reserved, the log may end anywhere. Any other end means that one of the two was replaced.
func (j *journal) resume() error {
	size := j.audit.Head().Size
	last, err := audit.LastNumber(j.cfg.signerLog(), size)
	if err != nil {
		return fmt.Errorf("signer's log: %w", err)
	}
	reserved, recorded, keys := j.mark.signatures()
	var wrong []string
	if last < recorded {
		wrong = append(wrong, fmt.Sprintf("the log ends with answer %d, and ended with %d when highwater was last written: the log was cut or replaced", last, recorded))
	}
	if last > reserved {
		wrong = append(wrong, fmt.Sprintf("the log ends with answer %d, and highwater allowed %d: highwater was replaced", last, reserved))
	}
	for b, err := range audit.Batches(j.cfg.signerLog(), size, recorded+1) {
		if err != nil {
			return fmt.Errorf("signer's log: %w", err)
		}
		account, count := keyAccount(b.Issuer, b.Key), b.Last-b.First+1
		if keys[account]+count != b.Total {
			wrong = append(wrong, fmt.Sprintf("the log has %d answers of issuer %s by key %s, and highwater %d", b.Total, b.Issuer, b.Key, keys[account]+count))
		}
		keys[account] = max(keys[account]+count, b.Total)
	}
	j.keys, j.last = keys, max(last, reserved)
	j.limit = j.last // nothing is signed before the records below are durable
	if len(wrong) > 0 {
		j.alarms.raise(alarmSignatures, "signer", strings.Join(wrong, "; "))
	}
	for _, w := range wrong {
		j.note(audit.Record{Event: "signatures.mismatch", Outcome: "failed", Details: []audit.Detail{{Name: "reason", Value: w}}})
	}
	if last < reserved {
		why := "signer ended without writing them down"
		if size == 0 {
			why = "signed before this log began"
		}
		gap := audit.GapRecord("signer", audit.Range{First: last + 1, Last: reserved}, why)
		j.note(gap)
	}
	return nil
}

// begin records the start of signer, before anything else, and how the run before it ended.
func (j *journal) begin() error {
	before := "none"
	for r, err := range j.audit.Records(max(j.audit.Head().Size, 1) - 1) {
		if err != nil {
			return fmt.Errorf("signer's log: %w", err)
		}
		before = "ended without a last word"
		if r.Event == "signer.stop" {
			before = "stopped"
		}
	}
	start := &audit.Record{Time: time.Now(), Event: "signer.start", Actor: "signer", Outcome: outcomeOK,
		Details: append([]audit.Detail{{Name: "version", Value: version()}, {Name: "before", Value: before}}, configDetails(j.cfg.File)...)}
	j.events = append([]*audit.Record{start}, j.events...)
	return nil
}

// run records what waits, until done is closed.
func (j *journal) run(done <-chan struct{}) {
	tick := time.NewTicker(recordEvery)
	defer tick.Stop()
	for asked := false; ; {
		j.mu.Lock()
		waits := asked || len(j.waiting) > 0 || len(j.events) > 0 || j.fault != nil || j.unsigned
		j.mu.Unlock()
		if waits {
			j.flush() // its error is an alarm by then
		}
		select {
		case <-done:
			return
		case <-j.wake:
			asked = true
		case <-tick.C:
			asked = false
		}
	}
}

// note has an event recorded with the next answers, or by flush.
func (j *journal) note(r audit.Record) {
	r.Time, r.Actor = time.Now(), cmp.Or(r.Actor, "signer")
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.events) >= eventsWaiting {
		j.dropped++
		return
	}
	j.events = append(j.events, &r)
}

// reserve waits for room to record one more answer. After nil, answered must be called.
func (j *journal) reserve() error {
	patience := time.NewTimer(roomPatience)
	defer patience.Stop()
	for {
		j.mu.Lock()
		fault, changed := j.fault, j.changed
		room := fault == nil && j.last+j.settling+uint64(len(j.waiting))+j.signing < j.limit
		if room {
			j.signing++
		}
		j.mu.Unlock()
		switch {
		case fault != nil:
			return fault
		case room:
			return nil
		}
		j.wakeUp()
		select {
		case <-changed:
		case <-patience.C:
			err := fmt.Errorf("%d answers wait to be recorded, as many as may; the disk below %s is too slow for what is asked", signatureReserve, j.cfg.State)
			j.alarms.raise(alarmAuditLog, "signer", err.Error()) // until the next time that all is written
			return err
		}
	}
}

func (j *journal) wakeUp() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// answered takes what came of a question that had room: an answer that was signed, or none.
func (j *journal) answered(a *responder.Answer) {
	var s signedAnswer
	signed := len(a.DER) > 0
	if signed {
		s = signedAnswer{sha256.Sum256(a.DER), a.By, a.Generation}
	}
	j.mu.Lock()
	j.signing--
	if signed {
		j.waiting = append(j.waiting, s)
	}
	many := len(j.waiting) == recordAt
	j.mu.Unlock()
	if many {
		j.wakeUp()
	}
}

// flush makes durable all that was noted and signed before it was called. While it fails, nothing is signed, and everything is kept for the next time.
func (j *journal) flush() error {
	j.writing.Lock()
	defer j.writing.Unlock()
	if j.ended {
		return os.ErrClosed
	}
	j.mu.Lock()
	events, batch := j.events, j.waiting
	j.waiting, j.settling = nil, uint64(len(batch))
	j.mu.Unlock()

	err := j.write(events, batch)
	if isFull(err) && os.Remove(j.reserveFile()) == nil {
		j.log.Warn("the disk is full; the reserve is given up to record what was signed", "file", j.reserveFile())
		err = j.write(events, batch)
	}
	written := err == nil
	limit := uint64(0)
	if written {
		limit, err = j.mark.record(j.last+uint64(len(batch)), j.keys)
	}
	if err == nil {
		err = j.keepReserve()
	}
	j.signHead()
	return j.settle(events, batch, written, limit, err)
}

// settle takes over what came of a flush.
func (j *journal) settle(events []*audit.Record, batch []signedAnswer, written bool, limit uint64, err error) error {
	j.mu.Lock()
	was, since, dropped := j.fault, j.since, j.dropped
	j.settling = 0
	if written {
		j.events = j.events[len(events):]
		j.last += uint64(len(batch))
		j.dropped = 0
	} else {
		j.waiting = append(batch, j.waiting...)
	}
	j.limit = max(j.limit, limit)
	if j.fault = err; was == nil {
		j.since = time.Now()
	}
	close(j.changed)
	j.changed = make(chan struct{})
	j.mu.Unlock()
	j.alarms.when(err != nil, alarmAuditLog, "signer", fmt.Sprintf("%v; nothing is signed until signer's log can be written (answers that are kept are given on); free some space below %s, "+
		"or set right what the message says", err, j.cfg.State))
	if was != nil && err == nil {
		j.note(audit.Record{Event: "audit.resume", Outcome: outcomeOK, Details: []audit.Detail{{Name: "since", Value: since.UTC().Format(time.RFC3339)}}})
	}
	if written && dropped > 0 {
		j.note(audit.Record{Event: "audit.lost", Outcome: "failed", Details: []audit.Detail{{Name: "events", Value: fmt.Sprint(dropped)}}})
	}
	return err
}

// write makes the hashes durable, and then, together, the records of events and of the batches. It may be repeated after an error, with more of both.
func (j *journal) write(events []*audit.Record, batch []signedAnswer) error {
	next := j.last + 1
	room := j.answers.Prepare(next, func(r audit.Range) error {
		drop := audit.DropRecord("signer", r)
		return j.append([]*audit.Record{&drop})
	})
	j.alarms.when(room != nil, alarmDiskFull, "signer", fmt.Sprintf("%v; free some space below %s, or make audit.answers smaller", room, j.cfg.State))
	records, hashes, keys := j.batches(batch)
	if len(hashes) > 0 {
		if err := j.answers.Write(next, hashes); room != nil && err != nil {
			return fmt.Errorf("%v", room) // a segment is more than the reserve could make room for
		} else if err != nil {
			return err
		}
	}
	if err := j.append(append(slices.Clone(events), records...)); err != nil {
		return err
	}
	j.keys = keys
	return nil
}

// batches sorts answers by issuer, key and generation, and numbers them. It gives the record of each batch and the hashes in order.
func (j *journal) batches(answers []signedAnswer) (records []*audit.Record, hashes [][sha256.Size]byte, keys map[string]uint64) {
	keys = maps.Clone(j.keys)
	names := map[*responder.Authority]string{}
	for _, a := range answers {
		if names[a.by] == "" {
			names[a.by] = keyAccount(a.by.Issuer.Name, shortKey(a.by))
		}
	}
	slices.SortStableFunc(answers, func(a, b signedAnswer) int {
		return cmp.Or(cmp.Compare(names[a.by], names[b.by]), cmp.Compare(a.generation, b.generation))
	})
	for _, a := range answers {
		hashes = append(hashes, a.hash)
	}
	for n := 0; n < len(answers); {
		first, account := n, names[answers[n].by]
		for n++; n < len(answers) && names[answers[n].by] == account && answers[n].generation == answers[first].generation; n++ {
		}
		keys[account] += uint64(n - first)
		b := audit.Batch{First: j.last + 1 + uint64(first), Last: j.last + uint64(n), Root: audit.AnswersRoot(hashes[first:n]),
			Issuer: answers[first].by.Issuer.Name, Key: shortKey(answers[first].by), Generation: answers[first].generation, Total: keys[account]}
		r := b.Record("signer")
		records = append(records, &r)
	}
	return records, hashes, keys
}

// append adds records to the log, which it opens again where the log does not know whether its last write was.
func (j *journal) append(records []*audit.Record) error {
	if len(records) == 0 {
		return nil
	}
	size := j.audit.Head().Size
	err := j.audit.AppendAll(records)
	if !errors.Is(err, audit.ErrBroken) && !errors.Is(err, os.ErrClosed) {
		return err
	}
	j.audit.Close()
	if err := j.openLog(); err != nil {
		return err
	}
	if j.audit.Head().Size == size+uint64(len(records)) {
		return nil // it was
	}
	return err
}

func (j *journal) reserveFile() string { return filepath.Join(j.cfg.signerDir(), "reserve") }

// keepReserve says why there is no reserve, after trying to make it.
func (j *journal) keepReserve() error {
	info, err := os.Stat(j.reserveFile())
	if err == nil && info.Size() == reserveSize {
		return nil
	}
	if time.Since(j.tried) < journalRetry {
		return errors.New("the reserve of the disk is used up")
	}
	j.tried = time.Now()
	return makeBallast(j.reserveFile(), reserveSize)
}

// close ends the log in order, with a last record unless that is nil: highwater and log then agree to the number. Nobody signs any more.
func (j *journal) close(last *audit.Record) error {
	err := j.flush()
	if last != nil && err == nil {
		j.note(*last)
		err = j.flush()
	}
	j.writing.Lock()
	defer j.writing.Unlock()
	j.ended = true
	j.mu.Lock()
	settled := len(j.waiting) == 0 && j.signing == 0
	j.mu.Unlock()
	if settled {
		err = errors.Join(err, j.mark.settle())
	}
	return errors.Join(err, j.answers.Close(), j.audit.Close())
}

// loginFailed records why a login came to nothing, once for each reason.
func (j *journal) loginFailed(token string, err error) {
	r := audit.Record{Event: "token.login", Subject: token, Outcome: "failed", Details: reason(err)}
	if errors.Is(err, hsm.ErrPIN) {
		r.Outcome = outcomeRefused
	}
	if told := fmt.Sprint(token, r.Details); j.login != told {
		j.login = told
		j.note(r)
	}
}

// activate and retire record the keys that begin to sign, and those that have signed for the last time.
func (j *journal) activate(before, now map[string]keyEpoch) {
	for _, issuer := range slices.Sorted(maps.Keys(now)) {
		if e := now[issuer]; before[issuer] != e {
			j.note(audit.Record{Event: "key.activate", Subject: issuer, Outcome: outcomeOK, Details: e.details()})
		}
	}
}

func (j *journal) retire(before, now map[string]keyEpoch) {
	for _, issuer := range slices.Sorted(maps.Keys(before)) {
		if e := before[issuer]; now[issuer] != e {
			answers := j.signedBy(keyAccount(issuer, e.Key[:min(len(e.Key), shortKeyLength)]))
			j.note(audit.Record{Event: "key.retire", Subject: issuer, Outcome: outcomeOK,
				Details: append(e.details(), audit.Detail{Name: "answers", Value: fmt.Sprint(answers)})})
		}
	}
}

func (e keyEpoch) details() []audit.Detail {
	return []audit.Detail{{Name: "key", Value: e.Key}, {Name: "certificate", Value: e.Certificate}, {Name: "label", Value: e.Label}, {Name: "token", Value: e.Token}}
}

func (j *journal) signedBy(account string) uint64 {
	j.writing.Lock()
	defer j.writing.Unlock()
	return j.keys[account]
}

const clockTolerance = 5 * time.Second // NTP slews smaller errors away, which no answer shows

// clockStep records that the wall clock, from before to now, did not go with the time that passed by the monotonic one.
func (j *journal) clockStep(before, now time.Time, passed time.Duration) {
	step := now.Round(0).Sub(before.Round(0)) - passed
	if step.Abs() <= clockTolerance {
		return
	}
	j.log.Warn("the clock was set, or the machine slept", "step", step.Round(time.Millisecond))
	j.note(audit.Record{Event: "clock.step", Outcome: outcomeOK, Details: []audit.Detail{{Name: "from", Value: now.Add(-step).UTC().Format(time.RFC3339)},
		{Name: "to", Value: now.UTC().Format(time.RFC3339)}, {Name: "step", Value: step.Round(time.Millisecond).String()}}})
}
