package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ocspd/audit"
	"ocspd/responder"
)

// headHouse is a log of keeper's beside a signer that signs its heads.
type headHouse struct {
	t      *testing.T
	signer *headSigner
	log    *audit.Log
	told   []audit.Record
}

func newHeadHouse(t *testing.T) *headHouse {
	h := &headHouse{t: t}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if h.signer, err = newHeadSigner(t.TempDir(), key, func(r audit.Record) { h.told = append(h.told, r) }); err != nil {
		t.Fatal(err)
	}
	h.log = h.open(filepath.Join(t.TempDir(), "log"))
	return h
}

func (h *headHouse) open(dir string) *audit.Log {
	h.t.Helper()
	l, err := audit.OpenLocal(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Close() })
	return l
}

func grow(t *testing.T, l *audit.Log, subjects ...string) {
	t.Helper()
	for _, s := range subjects {
		if _, err := l.Append(context.Background(), audit.Record{Event: "test.event", Actor: "test", Subject: s, Outcome: "ok"}); err != nil {
			t.Fatal(err)
		}
	}
}

// request asks for the head of a log as it is now, with a proof from an earlier size.
func request(t *testing.T, l *audit.Log, earlier uint64) responder.HeadRequest {
	t.Helper()
	head := l.Head()
	r := responder.HeadRequest{Earlier: earlier, Size: head.Size, Root: head.Root}
	proof, err := l.Proof(earlier, head)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range proof {
		r.Proof = append(r.Proof, p)
	}
	return r
}

func (h *headHouse) signs(what string, r responder.HeadRequest) {
	h.t.Helper()
	reply := h.signer.sign(r)
	head, err := audit.Head{Size: r.Size, Root: r.Root}.WithSignature(h.signer.public, reply.Signature)
	if err != nil || head.Size != r.Size {
		h.t.Errorf("%s: %+v, %v", what, reply, err)
	}
}

func (h *headHouse) refuses(what string, r responder.HeadRequest, why string) {
	h.t.Helper()
	before, told := h.last(), len(h.told)
	reply := h.signer.sign(r)
	if len(reply.Signature) > 0 || !reply.Refused || !strings.Contains(reply.Reason, why) {
		h.t.Errorf("%s: %+v, want %q", what, reply, why)
	}
	if h.last() != before || len(h.told) != told+1 || h.told[told].Outcome != outcomeRefused {
		h.t.Errorf("%s: the last head is %s, was %s; told %v", what, h.last(), before, h.told[told:])
	}
}

func (h *headHouse) last() string {
	b, err := os.ReadFile(filepath.Join(h.signer.dir, keeperHead))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.t.Fatal(err)
	}
	return string(b)
}

// Signer signs the head of a log that continues the last one, and of no other (OCSP-AUD-03).
func TestAUD03HeadSigner(t *testing.T) {
	h := newHeadHouse(t)
	dir := filepath.Join(t.TempDir(), "fork")
	grow(t, h.log, "a", "b", "c")
	h.signs("the first", request(t, h.log, 0))
	if want := string(audit.Head{Origin: keeperOrigin, Size: 3, Root: h.log.Head().Root}.Text()); h.last() != want || len(h.told) != 1 {
		t.Errorf("the last head is %q, want %q; told %v", h.last(), want, h.told)
	}
	h.signs("the same again", request(t, h.log, 0))
	grow(t, h.log, "d", "e", "f", "g")
	h.signs("a later one", request(t, h.log, 3))
	grow(t, h.log, "h")

	if reply := h.signer.sign(request(t, h.log, 3)); reply.Earlier != 7 || reply.Refused || reply.Signature != nil {
		t.Errorf("a proof from another size: %+v", reply)
	}
	bad := request(t, h.log, 7)
	bad.Proof[0][0] ^= 1
	h.refuses("a bad proof", bad, "rewritten or replaced")
	bad = request(t, h.log, 7)
	bad.Proof = nil
	h.refuses("no proof", bad, "rewritten or replaced")
	bad = request(t, h.log, 7)
	bad.Size = 1 << 63
	h.refuses("no size", bad, "rewritten or replaced")
	h.refuses("size 0", responder.HeadRequest{}, "was cut or replaced")

	fork := h.open(dir)
	grow(t, fork, "a", "b", "c", "d", "e", "f")
	h.refuses("a log that was cut", request(t, fork, 3), "has 6 records, and had 7")
	grow(t, fork, "x")
	h.refuses("another one of that size", request(t, fork, 3), "rewritten or replaced")
	grow(t, fork, "y", "z")
	h.refuses("another one that is longer", request(t, fork, 7), "'ocspd accept log --note TEXT'")
	h.signs("the right one after all that", request(t, h.log, 7))

	if err := os.WriteFile(filepath.Join(h.signer.dir, keeperHead), []byte("ocspd/keeper\n8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.refuses("when the last head is damaged", request(t, h.log, 8), "is damaged")
	for range 2 {
		if err := forgetKeeperHead(h.signer.dir); err != nil {
			t.Fatal(err)
		}
	}
	h.signs("what an admin has accepted", request(t, fork, 0))
	h.refuses("the one before that", request(t, h.log, 8), "was cut or replaced")
}

// The last head is durable before the signature exists: where it cannot be written, nothing is signed.
func TestHeadIsWrittenFirst(t *testing.T) {
	h := newHeadHouse(t)
	grow(t, h.log, "a")
	if err := os.RemoveAll(h.signer.dir); err != nil {
		t.Fatal(err)
	}
	if reply := h.signer.sign(request(t, h.log, 0)); reply.Signature != nil || !strings.Contains(reply.Reason, "cannot be written down") {
		t.Errorf("%+v", reply)
	}
}

// keeperOf is as much of a keeper as signs heads, with a signer that answers as the test says.
func keeperOf(t *testing.T, h *headHouse, sign func(responder.HeadRequest) responder.HeadReply) *keeper {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	k := &keeper{role: &role{name: "keeper", cfg: &config{}, log: quiet, alarms: newAlarmSet(quiet), since: time.Now()}, audit: h.log}
	k.feed = responder.NewFeed(k.reports.take)
	socket := filepath.Join(t.TempDir(), "feed.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{}, 3)
	go func() { k.feed.Serve(ctx, l, allowSubscribers()); served <- struct{}{} }()
	go func() {
		responder.Subscribe(ctx, dialUnix(socket), responder.Subscriber{Role: responder.RoleSigner, Sign: sign,
			Apply: func(responder.Change) error { return nil },
			Report: func() []byte {
				return fmt.Appendf(nil, `{"since":"2026-01-01T00:00:00Z","alarms":[],"signer":{"audit_key":%q,"signatures":0,"tokens":[],"issuers":[]}}`, h.signer.public)
			}})
		served <- struct{}{}
	}()
	go func() { k.signHeads(ctx); served <- struct{}{} }()
	t.Cleanup(func() {
		cancel()
		for range cap(served) {
			<-served
		}
	})
	return k
}

func awaitSigned(t *testing.T, l *audit.Log) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := l.AwaitSigned(ctx); err != nil {
		t.Fatalf("%v: %d of %d records are signed", err, l.Signed().Size, l.Head().Size)
	}
}

// Keeper has every record signed, and goes on from a head that signer signed when nobody was there to take the signature.
func TestSignHeads(t *testing.T) {
	h := newHeadHouse(t)
	grow(t, h.log, "a", "b")
	h.signer.sign(request(t, h.log, 0)) // its reply is lost
	grow(t, h.log, "c")
	keeperOf(t, h, h.signer.sign)
	awaitSigned(t, h.log)
	for i := range 50 {
		grow(t, h.log, fmt.Sprint(i))
		if i%10 == 0 {
			awaitSigned(t, h.log)
		}
	}
	awaitSigned(t, h.log)
	if h.log.Signed().Size != 53 {
		t.Errorf("%d records are signed", h.log.Signed().Size)
	}
}

// A refusal is an alarm and one record, however long it lasts; when an admin has accepted the log, it is signed, and the alarm ends.
func TestRefusedHead(t *testing.T) {
	h := newHeadHouse(t)
	other := h.open(filepath.Join(t.TempDir(), "other"))
	grow(t, other, "a", "b", "c", "d")
	h.signs("another log", request(t, other, 0))
	grow(t, h.log, "a")
	k := keeperOf(t, h, h.signer.sign)
	until := func(what string, done func() bool) {
		t.Helper()
		for begun := time.Now(); !done(); time.Sleep(10 * time.Millisecond) {
			if time.Since(begun) > 30*time.Second {
				t.Fatal(what)
			}
		}
	}
	until("no alarm", func() bool { return len(k.alarms.list()) == 1 })
	if a := k.alarms.list()[0]; a.Name != alarmLogHead || !strings.Contains(a.Text, "was cut or replaced") {
		t.Errorf("%+v", a)
	}
	grow(t, h.log, "b")
	time.Sleep(1500 * time.Millisecond)
	refusals := 0
	for r, err := range h.log.Records(0) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Event == eventHead && r.Outcome == outcomeRefused {
			refusals++
		}
	}
	if refusals != 1 || h.log.Signed().Size != 0 {
		t.Errorf("%d records of a refusal, %d records signed", refusals, h.log.Signed().Size)
	}
	if err := forgetKeeperHead(h.signer.dir); err != nil {
		t.Fatal(err)
	}
	awaitSigned(t, h.log)
	until("the alarm stays", func() bool { return len(k.alarms.list()) == 0 })
}

// A signature that is none of the key's is not put in place.
func TestForgedSignature(t *testing.T) {
	h := newHeadHouse(t)
	grow(t, h.log, "a")
	asked := make(chan struct{}, 100)
	keeperOf(t, h, func(responder.HeadRequest) responder.HeadReply {
		asked <- struct{}{}
		return responder.HeadReply{Signature: make([]byte, ed25519.SignatureSize)}
	})
	<-asked
	<-asked
	if h.log.Signed().Note != nil {
		t.Errorf("checkpoint is %s", h.log.Signed().Note)
	}
}

// OCSP-AUD-10: who may not give orders is recorded, once a minute.
func TestAUD10Refusals(t *testing.T) {
	var r refusals
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		uid   uint32
		after time.Duration
		due   bool
	}{{1000, 0, true}, {1000, time.Second, false}, {1001, 2 * time.Second, true}, {1000, 59 * time.Second, false}, {1000, time.Minute, true}} {
		if got := r.due(c.uid, at.Add(c.after)); got != c.due {
			t.Errorf("user %d after %v: %v", c.uid, c.after, got)
		}
	}
	for uid := range uint32(1000) {
		r.due(uid, at.Add(time.Minute))
	}
	if len(r.last) > 100 {
		t.Errorf("%d users are remembered", len(r.last))
	}
}

// What was before is told where it was something else.
func TestChanges(t *testing.T) {
	before := []audit.Detail{{Name: "version", Value: "1"}, {Name: "sha256", Value: "a"}, {Name: "old sha256", Value: "z"}}
	got := changes(before, []audit.Detail{{Name: "version", Value: "1"}, {Name: "sha256", Value: "b"}, {Name: "issuers.d", Value: "c"}})
	want := []audit.Detail{{Name: "version", Value: "1"}, {Name: "sha256", Value: "b"}, {Name: "issuers.d", Value: "c"}, {Name: "old sha256", Value: "a"}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
}
