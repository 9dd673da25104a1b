package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"ocspd/hardening"
	"ocspd/hsm"
	"ocspd/responder"
	"ocspd/systemd"
)

// role is what front, signer and keeper have in common.
type role struct {
	name   string
	cfg    *config
	log    *slog.Logger
	alarms *alarmSet
	since  time.Time
	passed map[string][]net.Listener // by systemd or `ocspd serve`, by name

	wasReady atomic.Bool
	walls    *walls              // nil in a verb
	measures []hardening.Measure // set by seal, before anything else asks for them

	signHead func(responder.HeadRequest) responder.HeadReply // signer's alone: signs a head of keeper's log
}

// newRoleCmd makes the verb that runs a role until SIGTERM, SIGINT or, under `ocspd serve`, the end of the supervisor.
func newRoleCmd(a *app, name, short string, run func(context.Context, *role) error) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: short, Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := &role{name: name, log: newLogger(a.stderr, name), since: time.Now().UTC().Truncate(time.Second)}
			err := r.live(cmd.Context(), a, run)
			if err == nil || r.wasReady.Load() || os.Getenv("NOTIFY_SOCKET") == "" || errors.Is(err, hsm.ErrPIN) {
				return err
			}
			code := complain(a.stderr, err)
			time.Sleep(failedPause)
			return &exitError{code: code}
		},
	}
}

// failedPause is how long a role that systemd started, and that failed before it was ready, waits before it ends: it would fail again, and so several times a
// second. The units' RestartSec is for roles that worked, which are to be back at once; pauses that grow are known to systemd since version 254 only.
const failedPause = 2 * time.Second

// live is the life of a role's process.
func (r *role) live(ctx context.Context, a *app, run func(context.Context, *role) error) (err error) {
	if r.cfg, err = a.load(); err != nil {
		return err
	}
	if r.walls, err = confine(r.cfg, r.name); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx = withLifeline(ctx)
	r.alarms = newAlarmSet(r.log)
	if r.passed, err = systemd.Listeners(); err != nil {
		return err
	}
	if err := os.MkdirAll(r.cfg.Run, 0o755); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	r.log.Info("role starts", "pid", os.Getpid())
	if err = run(ctx, r); err == nil {
		r.log.Info("role stops")
	}
	return err
}

func newLogger(w io.Writer, name string) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, nil)).With("role", name)
}

// supervised reports whether `ocspd serve` is our parent. It holds one end of our standard input, so that we end with it, however it ends.
func supervised() bool { return os.Getenv(envSupervised) != "" }

// restarted reports whether the supervisor has started this role before. Under systemd every start counts as that: it may be a boot, with nobody to
// watch, so that what is wrong is told by alarms, and what can be served is.
func restarted() bool { return os.Getenv(envSupervised) == "again" || os.Getenv("NOTIFY_SOCKET") != "" }

func withLifeline(ctx context.Context) context.Context {
	if !supervised() {
		return ctx
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() { // ends with the process at the latest: reading standard input cannot be stopped otherwise
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return ctx
}

// ready tells whoever started us: the supervisor on the socket that is our standard input, or systemd.
func (r *role) ready() {
	r.log.Info("role is ready")
	r.wasReady.Store(true)
	if supervised() {
		os.Stdin.Write([]byte{1})
		return
	}
	r.tell("READY=1\nSTATUS=")
}

// tell lets systemd know a state of the role.
func (r *role) tell(state string) {
	if err := systemd.Notify(state); err != nil {
		r.log.Warn("systemd was not told", "error", err)
	}
}

// roleReport is what front and signer tell keeper once a second, for `status` and the metrics.
type roleReport struct {
	Since     time.Time           `json:"since"`
	Alarms    []alarm             `json:"alarms"`
	Hardening []hardening.Measure `json:"hardening"`
	Front     *frontReport        `json:"front,omitempty"`
	Signer    *signerReport       `json:"signer,omitempty"`
}

type frontReport struct {
	Responses   map[string]uint64 `json:"responses"` // by response status
	Hits        uint64            `json:"hits"`
	Asked       uint64            `json:"asked"`
	Busy        uint64            `json:"busy"`
	Unreachable uint64            `json:"unreachable"`
	Hashes      map[string]uint64 `json:"hashes"` // CertIDs by hash algorithm
	Nonces      uint64            `json:"nonces"`
	Defects     uint64            `json:"defects"`
	Kept        uint64            `json:"kept"`
	Refused     uint64            `json:"refused"`  // connections, for want of room
	Unissued    uint64            `json:"unissued"` // answers for a serial that no source names
	Panics      uint64            `json:"panics"`
}

type signerReport struct {
	AuditKey   string         `json:"audit_key,omitempty"` // that signs heads of keeper's log, in the form of key.pub
	Signatures uint64         `json:"signatures"`
	Tokens     []tokenReport  `json:"tokens"`
	Issuers    []issuerReport `json:"issuers"`
}

type tokenReport struct {
	Name  string `json:"name"`
	Label string `json:"label"`
	State string `json:"state"` // "ok" or what is wrong
}

type issuerReport struct {
	Name       string    `json:"name"`
	Generation uint64    `json:"generation"`
	Complete   bool      `json:"complete"` // of that generation
	NotAfter   time.Time `json:"signer_not_after"`
}

func (r *role) report(fill func(*roleReport)) func() []byte {
	return func() []byte {
		report := roleReport{Since: r.since, Alarms: r.alarms.list(), Hardening: r.measures}
		fill(&report)
		b, err := json.Marshal(report)
		if err != nil {
			panic(err) // a type of ours that JSON cannot write
		}
		return b
	}
}

// readReport is strict, since whoever took over front could write it: known alarms only, and texts cut.
func readReport(b []byte) (*roleReport, error) {
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	var r roleReport
	if err := d.Decode(&r); err != nil {
		return nil, err
	}
	kept := r.Alarms[:0]
	for _, a := range r.Alarms {
		for _, known := range knownAlarms {
			if a.Name == known && len(kept) < 1000 {
				a.Issuer, a.Text = oneLine(a.Issuer, 200), oneLine(a.Text, 1000)
				kept = append(kept, a)
			}
		}
	}
	r.Alarms = kept
	r.Hardening = r.Hardening[:min(len(r.Hardening), 50)]
	for n := range r.Hardening {
		m := &r.Hardening[n]
		m.Name, m.State, m.Detail = oneLine(m.Name, 50), oneLine(m.State, 50), oneLine(m.Detail, 1000)
	}
	return &r, nil
}

// oneLine makes a text of a role's report safe to log and to print.
func oneLine(s string, max int) string {
	return cut(strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, s), max)
}

// subscribe follows keeper's feed until ctx ends.
func (r *role) subscribe(ctx context.Context, as responder.Role, apply func(responder.Change) error, fill func(*roleReport)) {
	responder.Subscribe(ctx, dialUnix(r.cfg.feedSocket()), responder.Subscriber{Role: as, Apply: apply, Report: r.report(fill), Sign: r.signHead})
}
