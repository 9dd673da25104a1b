package main

import (
	"crypto"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ocspd/audit"
	"ocspd/hsm"
	"ocspd/pki"
	"ocspd/responder"
)

// journalKit is a signer with a journal and keys in memory.
type journalKit struct {
	t    *testing.T
	cfg  *config
	cas  *clientKit
	role *signerRole
	done chan struct{}
	wg   sync.WaitGroup
}

func newJournalKit(t *testing.T) *journalKit {
	t.Helper()
	k := &journalKit{t: t, cfg: &config{State: t.TempDir(), File: "none", AuditAnswers: 8 << 20},
		cas: newClientKit(t, responder.Policy{Unissued: responder.UnissuedUnknown, Validity: time.Hour})}
	if err := os.MkdirAll(k.cfg.signerDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	k.open()
	t.Cleanup(func() { k.role.journal.audit.Close() })
	return k
}

// open starts what openSigner does, without its goroutine.
func (k *journalKit) open() {
	k.t.Helper()
	log := slog.New(slog.DiscardHandler)
	alarms := newAlarmSet(log)
	j, err := openJournal(k.cfg, log, alarms)
	if err == nil {
		err = j.begin()
	}
	if err != nil {
		k.t.Fatal(err)
	}
	k.role = &signerRole{role: &role{cfg: k.cfg, log: log, alarms: alarms}, journal: j, mark: j.mark}
	k.role.signer = responder.NewSigner(time.Now, j.mark.admit, func(string, error) {})
	k.role.signer.Use([]*responder.Authority{k.cas.cas["class1"].auth, k.cas.cas["class3"].auth})
}

func (k *journalKit) start() {
	k.done = make(chan struct{})
	k.wg.Go(func() { k.role.journal.run(k.done) })
}

func (k *journalKit) stop() {
	k.t.Helper()
	close(k.done)
	k.wg.Wait()
	if err := k.role.journal.close(&audit.Record{Event: "signer.stop", Outcome: outcomeOK}); err != nil {
		k.t.Error(err)
	}
}

// crash leaves everything as a killed process would.
func (k *journalKit) crash() {
	k.t.Helper()
	if k.done != nil {
		close(k.done)
		k.wg.Wait()
		k.done = nil
	}
	if err := errors.Join(k.role.journal.audit.Close(), k.role.journal.answers.Close()); err != nil {
		k.t.Fatal(err)
	}
}

func (k *journalKit) ask(issuer string) responder.Answer {
	serial, err := pki.SerialFromHex("1001")
	if err != nil {
		k.t.Fatal(err)
	}
	return k.role.answer(&responder.Question{Issuer: k.cas.cas[issuer].issuer.ID, Items: []responder.Item{{Serial: serial}}})
}

func (k *journalKit) verify() (audit.Accounts, []audit.Record) {
	k.t.Helper()
	keys, err := audit.ReadKeys(k.cfg.signerLog())
	if err != nil {
		k.t.Fatal(err)
	}
	report, err := audit.Verify(k.cfg.signerLog(), nil, keys...)
	if err != nil || !report.OK() {
		k.t.Fatalf("log: %v, %v", err, report.Faults)
	}
	a, faults, err := audit.VerifyAnswers(k.cfg.signerLog(), k.cfg.answersDir(), report.Head)
	if err != nil || len(faults) > 0 {
		k.t.Fatalf("answers: %v, %v", err, faults)
	}
	var records []audit.Record
	for r, err := range audit.Records(k.cfg.signerLog(), 0, report.Head.Size) {
		if err != nil {
			k.t.Fatal(err)
		}
		records = append(records, r)
	}
	return a, records
}

func (k *journalKit) prove(der []byte) error {
	k.t.Helper()
	keys, err := audit.ReadKeys(k.cfg.signerLog())
	if err != nil {
		k.t.Fatal(err)
	}
	_, err = audit.ProveAnswer(k.cfg.signerLog(), k.cfg.answersDir(), sha256.Sum256(der), keys...)
	return err
}

// unreliable fails every seventh signature.
type unreliable struct {
	crypto.Signer
	n atomic.Int64
}

func (u *unreliable) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if u.n.Add(1)%7 == 0 {
		return nil, errors.New("no")
	}
	return u.Signer.Sign(r, digest, opts)
}

// OCSP-KEY-17, OCSP-AUD-01: of many questions at once, every answer is in the log once, under a number of its own, and nothing else is; log and highwater agree.
func TestKEY17LogAndHighwaterAgree(t *testing.T) {
	k := newJournalKit(t)
	for _, c := range k.cas.cas {
		c.auth.Key = &unreliable{Signer: c.auth.Key}
	}
	k.start()
	var mu sync.Mutex
	answers := map[string][][]byte{}
	var asking sync.WaitGroup
	for n := range 8 {
		asking.Go(func() {
			issuer := []string{"class1", "class3"}[n%2]
			for range 200 {
				if a := k.ask(issuer); len(a.DER) > 0 {
					mu.Lock()
					answers[issuer] = append(answers[issuer], a.DER)
					mu.Unlock()
				} else if a.Status != responder.TryLater {
					t.Errorf("status %v", a.Status)
				}
			}
		})
	}
	asking.Wait()
	k.stop()
	a, records := k.verify()
	signed := uint64(len(answers["class1"]) + len(answers["class3"]))
	if signed < 1300 || signed > 1500 {
		t.Fatalf("%d of 1600 were signed; every seventh was to fail", signed)
	}
	if a.Last != signed || a.Missing != 0 {
		t.Errorf("%d were signed; the log has %+v", signed, a)
	}
	for _, key := range a.Keys {
		if n := uint64(len(answers[key.Issuer])); key.Answers != n {
			t.Errorf("%s: %d in the log, %d signed", key.Issuer, key.Answers, n)
		}
	}
	reserved, recorded, _ := k.role.mark.signatures()
	if reserved != signed || recorded != signed {
		t.Errorf("highwater: %d reserved, %d recorded, want %d", reserved, recorded, signed)
	}
	for _, list := range answers {
		for n := 0; n < len(list); n += 100 {
			if err := k.prove(list[n]); err != nil {
				t.Error(err)
			}
		}
	}
	if last := records[len(records)-1]; last.Event != "signer.stop" {
		t.Errorf("the last record is %s", last.Event)
	}
	k.open()
	k.start()
	k.stop()
	if again, records := k.verify(); again.Last != a.Last || again.Missing != 0 || len(k.role.alarms.list()) > 0 {
		t.Errorf("after an orderly start: %+v, %v, %v", again, k.role.alarms.list(), records[len(records)-2])
	}
}

// OCSP-KEY-17: whatever moment a crash comes at, the numbers go on without hole or overlap, at most signatureReserve are missing, and no alarm is raised.
func TestKEY17Crash(t *testing.T) {
	k := newJournalKit(t)
	proven := 0
	for round := range 6 {
		k.start()
		var answers [][]byte
		for range 50 + 150*round {
			a := k.ask("class3")
			if len(a.DER) == 0 {
				t.Fatalf("status %v", a.Status)
			}
			answers = append(answers, a.DER)
		}
		k.role.journal.mu.Lock()
		before := k.role.journal.last
		k.role.journal.mu.Unlock()
		k.crash()
		k.open()
		if l := k.role.alarms.list(); len(l) > 0 {
			t.Errorf("round %d: %+v", round, l)
		}
		if err := k.role.journal.flush(); err != nil {
			t.Fatal(err)
		}
		a, records := k.verify()
		var gap audit.Range
		for _, r := range records {
			if n, ok := r.Numbers(); ok && r.Event == audit.EventGap {
				gap = n
			}
		}
		if missing := gap.Last - gap.First + 1; missing > signatureReserve || gap.Last != a.Last || gap.First < before {
			t.Errorf("round %d: gap %+v of %d, last %d, recorded before %d", round, gap, missing, a.Last, before)
		}
		for n := 0; n < len(answers); n += 20 {
			switch err := k.prove(answers[n]); {
			case err == nil:
				proven++
			case !errors.Is(err, audit.ErrNotRecorded) && !errors.Is(err, audit.ErrGap):
				t.Error(err)
			}
		}
		k.crash()
		k.open()
	}
	if proven < 30 {
		t.Errorf("only %d answers were proven", proven)
	}
}

// OCSP-KEY-17: when log or highwater was put back, or records were taken away, an alarm says so, and the log has it for good.
func TestKEY17Mismatch(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*highwaterFile)
		want   string
	}{
		"highwater put back": {func(f *highwaterFile) { f.Signatures, f.Recorded, f.Keys = 0, 0, nil }, "highwater was replaced"},
		"log put back":       {func(f *highwaterFile) { f.Signatures, f.Recorded = 30, 30 }, "the log was cut or replaced"},
		"count by key":       {func(f *highwaterFile) { f.Recorded = 0 }, "by key"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newJournalKit(t)
			k.start()
			for range 10 {
				k.ask("class1")
			}
			k.stop()
			file := filepath.Join(k.cfg.signerDir(), "highwater")
			b, err := os.ReadFile(file)
			var f highwaterFile
			if err == nil {
				err = json.Unmarshal(b, &f)
			}
			if err != nil {
				t.Fatal(err)
			}
			c.change(&f)
			if b, err = json.Marshal(f); err == nil {
				err = os.WriteFile(file, b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			k.open()
			l := k.role.alarms.list()
			if len(l) != 1 || l[0].Name != alarmSignatures || !strings.Contains(l[0].Text, c.want) {
				t.Fatalf("alarms %+v, want %q", l, c.want)
			}
			k.start()
			if a := k.ask("class1"); len(a.DER) == 0 {
				t.Errorf("status %v", a.Status)
			}
			k.stop()
			mismatches := 0
			keys, err := audit.ReadKeys(k.cfg.signerLog())
			if err != nil {
				t.Fatal(err)
			}
			head, err := audit.ReadHead(k.cfg.signerLog(), keys...)
			if err != nil {
				t.Fatal(err)
			}
			for r, err := range audit.Records(k.cfg.signerLog(), 0, head.Size) {
				if err != nil {
					t.Fatal(err)
				}
				if r.Event == "signatures.mismatch" {
					mismatches++
				}
			}
			if mismatches != 1 {
				t.Errorf("%d records of it", mismatches)
			}
			k.open()
			if l := k.role.alarms.list(); len(l) > 0 {
				t.Errorf("at the next start: %+v", l)
			}
		})
	}
}

// OCSP-AUD-07: no more answers are signed than the log is allowed to lack; and while it cannot be written, none at all.
func TestAUD07NoRoomNoAnswer(t *testing.T) {
	k := newJournalKit(t)
	if err := k.role.journal.flush(); err != nil {
		t.Fatal(err)
	}
	for n := range signatureReserve {
		if a := k.ask("class3"); len(a.DER) == 0 {
			t.Fatalf("answer %d: status %v", n, a.Status)
		}
	}
	begun := time.Now()
	if a := k.ask("class3"); a.Status != responder.TryLater || time.Since(begun) < roomPatience {
		t.Errorf("one more than may be missing: status %v after %v", a.Status, time.Since(begun))
	}
	block := filepath.Join(k.cfg.signerLog(), "checkpoint.new")
	if err := os.Mkdir(block, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := k.role.journal.flush(); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("flush: %v", err)
	}
	if l := k.role.alarms.list(); len(l) != 1 || l[0].Name != alarmAuditLog {
		t.Errorf("alarms: %+v", l)
	}
	begun = time.Now()
	if a := k.ask("class3"); a.Status != responder.TryLater || time.Since(begun) > roomPatience/2 {
		t.Errorf("with a log that cannot be written: status %v after %v", a.Status, time.Since(begun))
	}
	for range eventsWaiting + 7 {
		k.role.journal.note(audit.Record{Event: "clock.step", Outcome: outcomeOK})
	}
	if err := os.Remove(block); err != nil {
		t.Fatal(err)
	}
	k.start()
	for end := time.Now().Add(10 * time.Second); len(k.role.alarms.list()) > 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	}
	if a := k.ask("class3"); len(a.DER) == 0 {
		t.Errorf("with room again: status %v", a.Status)
	}
	k.stop()
	a, records := k.verify()
	if a.Last != signatureReserve+1 || a.Missing != 0 {
		t.Errorf("accounts %+v", a)
	}
	counts := map[string]int{}
	for _, r := range records {
		counts[r.Event]++
		if r.Event == "audit.lost" && r.Detail("events") == "" {
			t.Error("audit.lost does not say how many")
		}
	}
	if counts["audit.resume"] != 1 || counts["audit.lost"] != 1 || counts["clock.step"] != eventsWaiting {
		t.Errorf("records: %v", counts)
	}
}

// An answer that is not proven: the reason is told where one can be.
func TestProveSaysWhy(t *testing.T) {
	k := newJournalKit(t)
	j := k.role.journal
	if err := j.flush(); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	auth := k.cas.cas["class3"].auth
	for n := range 5 * 8 {
		batch := make([]signedAnswer, audit.SegmentSize/sha256.Size/8)
		for i := range batch {
			batch[i] = signedAnswer{hash: sha256.Sum256(fmt.Appendf(nil, "%d %d", n, i)), by: auth, generation: 1}
		}
		j.waiting = batch
		if err := j.flush(); err != nil {
			t.Fatal(err)
		}
	}
	after := time.Now()
	keys, err := audit.ReadKeys(k.cfg.signerLog())
	if err != nil {
		t.Fatal(err)
	}
	s := &signerRecords{k.cfg.signerLog(), k.cfg.answersDir(), keys}
	for name, c := range map[string]struct {
		err  error
		at   time.Time
		now  time.Time
		want string
	}{
		"dropped":   {audit.ErrNotRecorded, before, after.Add(time.Hour), "it may be older than what is kept"},
		"young":     {audit.ErrNotRecorded, after, after.Add(time.Second), "try again in a second"},
		"not yet":   {audit.ErrNotYet, after, after, "try again in a second"},
		"elsewhere": {audit.ErrNotRecorded, after.Add(time.Minute), after.Add(time.Hour), "made elsewhere, or changed"},
	} {
		if got := s.why(c.err, c.at, c.now); !errors.Is(got, c.err) || !strings.Contains(got.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, got, c.want)
		}
	}
	a, _ := k.verify()
	if a.Kept.First < 2 || a.Kept.Last != a.Last {
		t.Errorf("accounts %+v", a)
	}
}

// OCSP-AUD-05: a clock that is set is recorded, either way, and one that is slewed is not.
func TestAUD05ClockStep(t *testing.T) {
	k := newJournalKit(t)
	j := k.role.journal
	now := time.Now()
	for _, c := range []struct {
		wall, passed time.Duration
		want         string
	}{{time.Second, time.Second, ""}, {5 * time.Second, time.Second, ""}, {-2 * time.Second, time.Second, ""},
		{time.Hour + time.Second, time.Second, "1h0m0s"}, {time.Second - time.Hour, time.Second, "-1h0m0s"}} {
		j.events = nil
		j.clockStep(now, now.Add(c.wall), c.passed)
		got := ""
		if len(j.events) > 0 {
			got = j.events[0].Detail("step")
		}
		if got != c.want {
			t.Errorf("the wall clock went %v in %v: step %q, want %q", c.wall, c.passed, got, c.want)
		}
	}
}

// OCSP-AUD-05: a token that is lost is recorded once, however many signatures fail by it.
func TestAUD05TokenLost(t *testing.T) {
	k := newJournalKit(t)
	k.cfg.Issuers = []*issuerConfig{{Name: "class3", Token: "main"}}
	k.role.fatal = make(chan error, 1)
	k.role.state.Store(&signerState{cfg: k.cfg})
	for range 3 {
		k.role.signatureFailed("class3", fmt.Errorf("sign: %w", hsm.ErrTokenLost))
	}
	k.start()
	k.stop()
	_, records := k.verify()
	lost := 0
	for _, r := range records {
		if r.Event == "token.lost" && r.Subject == "main" && r.Outcome == "failed" {
			lost++
		}
	}
	if err := <-k.role.fatal; lost != 1 || !errors.Is(err, hsm.ErrTokenLost) {
		t.Errorf("%d records, role ends with %v", lost, err)
	}
}

// What highwater could not write down, it does not go by.
func TestHighwaterNotWritten(t *testing.T) {
	dir := t.TempDir()
	h, err := openHighwater(filepath.Join(dir, "highwater"))
	if err != nil {
		t.Fatal(err)
	}
	var id pki.IssuerID
	if err := h.generation(id, 7); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(time.Hour)
	if err := h.admit(at); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := h.generation(id, 8); err == nil {
			t.Error("a generation that is not written down is accepted")
		}
		if _, err := h.acceptGeneration(id, 3); err == nil {
			t.Error("an older generation is accepted")
		}
		if err := h.generation(id, 3); !errors.Is(err, errOldGeneration) {
			t.Errorf("an older generation: %v", err)
		}
		if _, err := h.acceptClock(time.Now()); err == nil || h.clockRight(time.Now()) {
			t.Errorf("an older clock: %v", err)
		}
	}
}

func TestReadOrder(t *testing.T) {
	good := `{"v":1,"id":"X","what":"generation","issuer":"class1","note":"a backup","actor":"root"}`
	if o, err := readOrder([]byte(good)); err != nil || o.Issuer != "class1" {
		t.Errorf("%+v, %v", o, err)
	}
	for _, bad := range []string{
		``, `{}`, good + good, good[:len(good)-1], strings.Replace(good, `"v":1`, `"v":2`, 1), strings.Replace(good, `"v":1`, `"v":1,"w":2`, 1),
		strings.Replace(good, "class1", "../x", 1), strings.Replace(good, `"class1"`, `""`, 1), strings.Replace(good, "generation", "clock", 1),
		strings.Replace(good, "generation", "answer", 1), strings.Replace(good, "a backup", "", 1), strings.Replace(good, "a backup", `a\nbackup`, 1),
		strings.Replace(good, "a backup", strings.Repeat("x", maxNote+1), 1), strings.Replace(good, `"root"`, `""`, 1), strings.Replace(good, `"X"`, `""`, 1),
	} {
		if o, err := readOrder([]byte(bad)); err == nil {
			t.Errorf("%s is taken for %+v", bad, o)
		}
	}
}

// What the log costs: signatures by SoftHSM with and without it, in turns, so that both meet the same machine. bench/log.sh prints the ratio.
func BenchmarkSignerLog(b *testing.B) {
	h := newTokenHouse(b)
	dir, state := h.dir, filepath.Join(h.dir, "state", "signer")
	if err := os.MkdirAll(state, 0o700); err != nil {
		b.Fatal(err)
	}
	h.ocspd(0, "", "key", "generate", "class1-ocsp", "--type", "p256")
	h.certify(h.ocspd(0, "", "key", "csr", "class1-ocsp"), "class1-ocsp.pem")
	cfg, err := readConfig(filepath.Join(dir, "ocspd.toml"))
	if err != nil {
		b.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	token, err := openToken(cfg, cfg.Tokens[0], log)
	if err != nil {
		b.Fatal(err)
	}
	defer token.Close()
	auth, _, err := loadAuthority(cfg.Issuers[0], token, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	if _, ok := auth.Key.(*hsm.Key); !ok {
		b.Fatal("the key is not in the token")
	}
	auth.SetView(&responder.View{Number: 1, Complete: true, Lookup: func(pki.Serial) (pki.Record, bool) { return pki.Record{Status: pki.Status{State: pki.Good}}, true },
		Sources: []pki.Source{{Name: "index.txt", Kind: pki.Index, ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}}})
	j, err := openJournal(cfg, log, newAlarmSet(log))
	if err != nil {
		b.Fatal(err)
	}
	s := &signerRole{role: &role{cfg: cfg, log: log}, journal: j, mark: j.mark}
	s.signer = responder.NewSigner(time.Now, j.mark.admit, func(_ string, err error) { b.Error(err) })
	s.signer.Use([]*responder.Authority{auth})
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { j.run(done) })
	const turn = time.Second
	type cost struct{ answers, wall, cpu float64 }
	measure := func(answer func(*responder.Question) responder.Answer) (c cost) {
		var n atomic.Int64
		var asking sync.WaitGroup
		begun, cpu := time.Now(), processorTime(b)
		for range linkConns {
			asking.Go(func() {
				for i := uint64(0); time.Since(begun) < turn; i++ {
					serial, err := pki.SerialFromHex(fmt.Sprintf("%016x", 1<<40+i))
					if err != nil {
						b.Error(err)
						return
					}
					nonce := fmt.Appendf(nil, "%016x", i)
					a := answer(&responder.Question{Issuer: auth.Issuer.ID, Nonce: nonce, Items: []responder.Item{{Serial: serial}}})
					if len(a.DER) > 0 {
						n.Add(1)
					} else if a.Status != responder.TryLater { // a disk that takes too long to be told of 1,000 answers, as one that others use
						b.Errorf("status %v", a.Status)
						return
					}
				}
			})
		}
		asking.Wait()
		return cost{float64(n.Load()), time.Since(begun).Seconds(), processorTime(b) - cpu}
	}
	var with, without cost
	sum := func(total *cost, c cost) { total.answers += c.answers; total.wall += c.wall; total.cpu += c.cpu }
	for b.Loop() {
		sum(&without, measure(s.signer.Answer))
		sum(&with, measure(s.answer))
	}
	close(done)
	wg.Wait()
	if err := j.close(nil); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(without.answers/without.wall, "bare/s")
	b.ReportMetric(with.answers/with.wall, "logged/s")
	b.ReportMetric(with.answers/with.wall/(without.answers/without.wall), "ratio")
	b.ReportMetric(with.cpu/with.answers/(without.cpu/without.answers), "cpu-ratio")
}

// processorTime is what this process has used, in seconds.
func processorTime(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}
