package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"ocspd/audit"
	"ocspd/generation"
	"ocspd/pki"
)

// Signer goes back in nothing by itself: not before its last signature, not to an older generation, not from keeper's log to another one. An admin can say
// that it is right to. The order is a file in signer's folder, which only root and signer's user can write; signer takes it within a second, and where
// none runs, the verb does what signer would. Either way what came of it is in signer's log, with who and why.

const (
	acceptClock      = "clock"
	acceptGeneration = "generation"
	acceptLog        = "log"

	acceptTime = 5 * time.Second // that signer may take
	maxNote    = 1000            // characters
)

// acceptOrder is the file.
type acceptOrder struct {
	V      int    `json:"v"`
	ID     string `json:"id"` // finds the record that answers it
	What   string `json:"what"`
	Issuer string `json:"issuer"` // of a generation
	Note   string `json:"note"`
	Actor  string `json:"actor"`
}

type acceptResult struct {
	V       int    `json:"v"`
	What    string `json:"what"`
	Issuer  string `json:"issuer,omitempty"`
	Outcome string `json:"outcome"`
	Text    string `json:"text"`
	Entry   uint64 `json:"entry"` // of signer's log
}

func (c *config) acceptFile() string { return filepath.Join(c.signerDir(), "accept") }

func newAcceptCmd(a *app) *cobra.Command {
	return group("accept", "Tell signer that what it refuses to go back to is right", acceptCmd(a, acceptClock, acceptClock,
		"Sign by the clock as it is, though the last signature is later"),
		acceptCmd(a, acceptGeneration+" ISSUER", acceptGeneration, "Answer by the generation in force, though a newer one was answered by: a backup was restored"),
		acceptCmd(a, acceptLog, acceptLog, "Sign heads of keeper's log as it is, though it does not continue the one before"))
}

func acceptCmd(a *app, use, what, short string) *cobra.Command {
	var note string
	n := strings.Count(use, " ")
	c := &cobra.Command{
		Use: use, Short: short, Args: args(cobra.ExactArgs(n)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			order := &acceptOrder{V: 1, ID: rand.Text(), What: what, Note: note, Actor: admin()}
			if n > 0 {
				order.Issuer = argv[0]
			}
			if err := order.check(); err != nil {
				return usagef("accept %s: %w", what, err)
			}
			return a.accept(cmd.Context(), order)
		},
	}
	c.Flags().StringVar(&note, "note", "", "why it is right, for signer's log")
	return a.withOutput(c)
}

// admin is who gives the order: the account behind sudo, where there is one.
func admin() string {
	if u := os.Getenv("SUDO_USER"); u != "" && os.Geteuid() == 0 {
		return fmt.Sprintf("%s (%s)", ownName(), u)
	}
	return ownName()
}

func (o *acceptOrder) check() error {
	printable := func(s string) bool {
		return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar })
	}
	switch {
	case o.Note == "":
		return errors.New("--note is missing: why it is right")
	case len([]rune(o.Note)) > maxNote || !printable(o.Note):
		return fmt.Errorf("the note must be one line of %d characters at most", maxNote)
	case o.V != 1 || o.ID == "" || len(o.ID) > 100 || !printable(o.ID) || o.Actor == "" || len(o.Actor) > 200 || !printable(o.Actor):
		return errors.New("the order is not in the form of this version")
	case o.What != acceptClock && o.What != acceptGeneration && o.What != acceptLog:
		return fmt.Errorf("%q cannot be accepted", o.What)
	case (o.Issuer != "") != (o.What == acceptGeneration) || o.Issuer != "" && !nameForm.MatchString(o.Issuer):
		return errors.New("an issuer is named for a generation, and for nothing else")
	}
	return nil
}

// readOrder is strict: what is not an order to the letter is none.
func readOrder(b []byte) (*acceptOrder, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	o := &acceptOrder{}
	if err := d.Decode(o); err != nil {
		return nil, err
	}
	if d.More() {
		return nil, errors.New("more follows the order")
	}
	return o, o.check()
}

// accept gives the order to the signer that runs, or does what it says.
func (a *app) accept(ctx context.Context, o *acceptOrder) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	if o.Issuer != "" && cfg.issuer(o.Issuer) == nil {
		return noSuchIssuer(cfg, o.Issuer)
	}
	if err := becomeSigner(cfg); err != nil {
		return err
	}
	out, err := acceptStopped(cfg, o, slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelError})))
	if errors.Is(err, audit.ErrInUse) {
		out, err = acceptRunning(ctx, cfg, o)
	}
	if err != nil {
		return fmt.Errorf("accept %s: %w", o.What, err)
	}
	if out.Outcome != outcomeOK {
		return fmt.Errorf("accept %s: %s", o.What, out.Text)
	}
	if a.json() {
		return a.printJSON(out)
	}
	fmt.Fprintf(a.stdout, "accepted: %s (entry %d of signer's log)\n", out.Text, out.Entry)
	return nil
}

// acceptStopped takes signer's log, which no signer has then.
func acceptStopped(cfg *config, o *acceptOrder, log *slog.Logger) (*acceptResult, error) {
	if _, err := os.Stat(cfg.signerDir()); err != nil {
		return nil, fmt.Errorf("signer has not run yet: %w", err)
	}
	j, err := openJournal(cfg, log, newAlarmSet(log))
	if err != nil {
		return nil, err
	}
	j.note(accepted(o, func() (string, error) { return takeBack(cfg, j.mark, o) }))
	if err := j.close(nil); err != nil {
		return nil, err
	}
	return findAccepted(cfg, o)
}

// takeBack does what an order says, and says what that was.
func takeBack(cfg *config, mark *highwater, o *acceptOrder) (string, error) {
	switch o.What {
	case acceptClock:
		now := time.Now()
		was, err := mark.acceptClock(now)
		return fmt.Sprintf("it is %s, and the last signature was of %s", now.UTC().Format(time.RFC3339), was.UTC().Format(time.RFC3339)), err
	case acceptGeneration:
		c := cfg.issuer(o.Issuer)
		if c == nil {
			return "", noSuchIssuer(cfg, o.Issuer)
		}
		issuer, err := loadIssuer(c)
		if err != nil {
			return "", err
		}
		return takeBackGeneration(cfg, mark, c.Name, issuer.ID)
	case acceptLog:
		was := "a damaged head"
		last, err := readKeeperHead(cfg.signerDir())
		if errors.Is(err, fs.ErrNotExist) {
			return "", errors.New("no head of keeper's log was signed that it would have to continue")
		}
		if err == nil {
			was = fmt.Sprintf("that of %d entries, root %s", last.Size, last.Root)
		}
		return "the next head of keeper's log need not continue " + was, forgetKeeperHead(cfg.signerDir())
	}
	return "", fmt.Errorf("%q cannot be accepted", o.What)
}

func takeBackGeneration(cfg *config, mark *highwater, name string, id pki.IssuerID) (string, error) {
	m, err := generation.Head(cfg.generations(), name, id)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("issuer %s has no generation", name)
	}
	if err != nil {
		return "", err
	}
	was, err := mark.acceptGeneration(id, m.Number)
	return fmt.Sprintf("issuer %s is answered by generation %d of %s, after %d", name, m.Number, m.Created.UTC().Format(time.RFC3339), was), err
}

// accepted is the record of what came of an order.
func accepted(o *acceptOrder, do func() (string, error)) audit.Record {
	text, err := do()
	r := audit.Record{Event: "accept." + o.What, Actor: o.Actor, Subject: o.Issuer, Outcome: outcomeOK}
	if err != nil {
		r.Outcome, text = outcomeRefused, err.Error()
	}
	r.Details = []audit.Detail{{Name: "note", Value: o.Note}, {Name: "result", Value: oneLine(text, 1000)}, {Name: "order", Value: o.ID}}
	return r
}

// acceptRunning leaves the order to the signer that runs.
func acceptRunning(ctx context.Context, cfg *config, o *acceptOrder) (*acceptResult, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	// Under a name of its own first, so that signer never reads half of it; linked, so that no other order is pushed aside.
	aside := cfg.acceptFile() + "." + o.ID
	if err := os.WriteFile(aside, b, 0o600); err != nil {
		return nil, err
	}
	defer os.Remove(aside)
	if err := os.Link(aside, cfg.acceptFile()); errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("another order, %s, waits for signer; try again, or remove it", cfg.acceptFile())
	} else if err != nil {
		return nil, err
	}
	for end := time.Now().Add(acceptTime); ; {
		if _, err := os.Stat(cfg.acceptFile()); errors.Is(err, fs.ErrNotExist) {
			return findAccepted(cfg, o)
		}
		if time.Now().After(end) {
			os.Remove(cfg.acceptFile())
			return nil, fmt.Errorf("signer did not take the order within %v; see its log", acceptTime)
		}
		select {
		case <-ctx.Done():
			os.Remove(cfg.acceptFile())
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// findAccepted reads what came of an order from signer's log.
func findAccepted(cfg *config, o *acceptOrder) (*acceptResult, error) {
	size, err := logSize(cfg.signerLog())
	if err != nil {
		return nil, err
	}
	const tail = 1000
	for r, err := range audit.Records(cfg.signerLog(), max(size, tail)-tail, size) {
		if err != nil {
			return nil, err
		}
		if r.Detail("order") == o.ID {
			return &acceptResult{1, o.What, o.Issuer, r.Outcome, r.Detail("result"), r.Sequence}, nil
		}
	}
	return nil, errors.New("signer took the order, and has not recorded what came of it; see its log")
}

// logSize is how many records a log of ours has, whether a head over them is signed or not.
func logSize(dir string) (uint64, error) {
	keys, err := audit.ReadKeys(dir)
	var signed audit.Head
	if err == nil {
		signed, err = audit.ReadHead(dir, keys...)
	}
	local, localErr := audit.ReadLocal(dir)
	if err != nil && localErr != nil {
		return 0, cmp.Or(err, localErr)
	}
	return max(signed.Size, local.Size), nil
}

// takeAccepts takes orders until ctx ends.
func (s *signerRole) takeAccepts(ctx context.Context) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.takeAccept(); err != nil {
			s.log.Error("an order to accept was not carried out", "error", err)
		}
	}
}

// takeAccept carries out an order, if there is one. The order goes when what came of it is recorded.
func (s *signerRole) takeAccept() error {
	file := s.cfg.acceptFile()
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var o *acceptOrder
	if err == nil {
		b := make([]byte, 16<<10)
		n, _ := f.Read(b)
		f.Close()
		o, err = readOrder(b[:n])
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", file, err), os.Remove(file))
	}
	s.journal.note(accepted(o, func() (string, error) { return s.takeBack(o) }))
	s.log.Warn("an admin's order was taken", "accept", o.What, "issuer", o.Issuer, "actor", o.Actor, "note", o.Note)
	return errors.Join(s.journal.flush(), os.Remove(file))
}

// takeBack is the function of that name, and lets signer act on it at once.
func (s *signerRole) takeBack(o *acceptOrder) (string, error) {
	text, err := takeBack(s.state.Load().cfg, s.mark, o)
	if err != nil {
		return "", err
	}
	switch o.What {
	case acceptClock:
		s.alarms.clear(alarmClockBack, "")
	case acceptGeneration:
		s.retryGenerations()
	}
	return text, nil
}
