package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"ocspd/audit"
	"ocspd/hsm"
	"ocspd/responder"
)

// What keeper records beyond the data: its starts and their configuration, alarms, whom it refused, and what `key` and `token` verbs do.

// recordStart records with which program and which configuration keeper runs from now on, and what they were before where that is another.
func (k *keeper) recordStart(ctx context.Context) error {
	k.configured = configDetails(k.cfg.File)
	now := append([]audit.Detail{{Name: "version", Value: version()}}, k.configured...)
	var before []audit.Detail
	const tail = 2000 // records; an older start is compared by whoever reads the log
	size := k.audit.Head().Size
	for r, err := range k.audit.Records(size - min(size, tail)) {
		if err != nil {
			return err
		}
		switch {
		case r.Event == "keeper.start":
			before = r.Details
		case r.Event == "config.reload" && r.Outcome == outcomeOK && len(before) > 0:
			before = append([]audit.Detail{before[0]}, r.Details...)
		}
	}
	return k.record(ctx, audit.Record{Event: "keeper.start", Subject: k.cfg.File, Outcome: outcomeOK, Details: changes(before, now)})
}

// changes are facts as they are now, with what they were where that was something else.
func changes(before, now []audit.Detail) []audit.Detail {
	old := audit.Record{Details: before}
	all := slices.Clone(now)
	for _, d := range now {
		if was := old.Detail(d.Name); was != "" && was != d.Value {
			all = append(all, audit.Detail{Name: "old " + d.Name, Value: was})
		}
	}
	return all
}

// recordAlarms records which alarms of keeper and signer began and ended since it was called last; told is kept by the caller. One that lasts less than
// the second between is in the program's log alone. Front's are not recorded, since strangers could fill the log with them, nor are those of the log itself.
func (k *keeper) recordAlarms(ctx context.Context, told map[alarmKey]bool) {
	if ctx.Err() != nil {
		return // what is raised by then is about the stopping
	}
	ctx = context.WithoutCancel(ctx)
	stand := map[alarmKey]bool{}
	list := k.alarms.list()
	if signer := k.reports.get(responder.RoleSigner); signer != nil {
		list = append(list, signer.Alarms...)
	}
	for _, a := range list {
		if a.Name != alarmAuditLog && a.Name != alarmDiskFull {
			stand[alarmKey{a.Name, a.Issuer}] = true
		}
	}
	write := func(event string, a alarmKey) bool {
		return k.record(ctx, audit.Record{Event: event, Subject: a.issuer, Outcome: outcomeOK, Details: []audit.Detail{{Name: "alarm", Value: a.name}}}) == nil
	}
	byName := func(a, b alarmKey) int { return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.issuer, b.issuer)) }
	for _, a := range slices.SortedFunc(maps.Keys(stand), byName) {
		if !told[a] && write("alarm.raise", a) {
			told[a] = true
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(told), byName) {
		if !stand[a] && write("alarm.clear", a) {
			delete(told, a)
		}
	}
}

// refusals remembers whom keeper refused, so that one user makes one record a minute.
type refusals struct {
	mu   sync.Mutex
	last map[uint32]time.Time
}

func (r *refusals) due(uid uint32, now time.Time) bool {
	const most = 100
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.last, func(_ uint32, at time.Time) bool { return now.Sub(at) >= time.Minute })
	if _, known := r.last[uid]; known || len(r.last) == most {
		return false
	}
	if r.last == nil {
		r.last = map[uint32]time.Time{}
	}
	r.last[uid] = now
	return true
}

// recordRefused is OCSP-AUD-10: who tried to give orders and may not.
func (k *keeper) recordRefused(ctx context.Context, p peer, path string) {
	if k.refused.due(p.uid, time.Now()) {
		k.record(ctx, audit.Record{Event: "control.refuse", Actor: p.name(), Subject: oneLine(path, 200), Outcome: outcomeRefused,
			Details: []audit.Detail{{Name: "uid", Value: fmt.Sprint(p.uid)}, {Name: "pid", Value: fmt.Sprint(p.pid)}}})
	}
}

// keyEvent is what a verb that works on keys and tokens tells keeper's log.
type keyEvent struct {
	Event   string         `json:"event"`
	Subject string         `json:"subject"` // the key, or the token
	Outcome string         `json:"outcome"`
	Details []audit.Detail `json:"details"`
}

// keyEvents are those that keeper takes from its control socket: no verb can write any other record.
var keyEvents = regexp.MustCompile(`^(key\.(generate|install|destroy)|token\.retry|custody\.report)$`)

// keyOutcomes: what is done to a key is begun before it is done, so that where no end is recorded it may have been done.
var keyOutcomes = []string{"begun", outcomeOK, outcomeRefused, "failed"}

// handleRecord records what was done to a key, or is about to be.
func (k *keeper) handleRecord(r *http.Request) (any, error) {
	var e keyEvent
	d := json.NewDecoder(io.LimitReader(r.Body, audit.MaxRecord))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	if !keyEvents.MatchString(e.Event) || !slices.Contains(keyOutcomes, e.Outcome) {
		return nil, fmt.Errorf("record: %s %s is no event of a key", e.Event, e.Outcome)
	}
	return struct{}{}, k.record(r.Context(), audit.Record{Event: e.Event, Subject: e.Subject, Outcome: e.Outcome, Details: e.Details})
}

// recorder writes what a verb does to a key into keeper's log. It is a process of its own, since the verb becomes signer's user, who may not write there: it
// reaches keeper as whoever called the verb, or becomes keeper's user where no keeper runs.
type recorder struct {
	event keyEvent
	begun bool
	child *exec.Cmd // nil: nothing is recorded
	in    io.WriteCloser
	out   *bufio.Reader
}

// newRecorder begins to record what a verb does; end must be called. Where there is no log yet it says so, and records nothing: keys are made before
// the first start.
func (a *app) newRecorder(cfg *config, event, subject string) (*recorder, error) {
	r := &recorder{event: keyEvent{Event: event, Subject: subject}}
	_, logErr := os.Stat(cfg.keeperLog())
	_, runErr := os.Stat(cfg.keeperSocket())
	if errors.Is(logErr, os.ErrNotExist) && runErr != nil {
		a.talk("%s: not recorded: there is no audit log yet; keeper begins it at its first start", event)
		return r, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := exec.Command(self, "--config", cfg.File, "key", "record")
	c.Stderr = a.stderr
	out, err := c.StdoutPipe()
	if err == nil {
		r.in, err = c.StdinPipe()
	}
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: cannot be recorded: %w", event, err)
	}
	r.child, r.out = c, bufio.NewReader(out)
	return r, nil
}

// begin records that something is about to be done. When that fails it must not be done.
func (r *recorder) begin() error {
	if err := r.write("begun"); err != nil {
		return fmt.Errorf("%w; nothing was done", err)
	}
	r.begun = true
	return nil
}

// end records what came of it and ends the recording. It gives back err, joined by what kept it from being recorded.
func (r *recorder) end(err error) error {
	outcome := outcomeOK
	if err != nil {
		if outcome = outcomeRefused; r.begun {
			outcome = "failed"
		}
		r.know("reason", oneLine(err.Error(), 1000))
	}
	if recordErr := r.write(outcome); recordErr != nil {
		err = errors.Join(err, recordErr)
	}
	if r.child != nil {
		r.in.Close()
		r.child.Wait() // how it ended, its answers have told
	}
	return err
}

// know adds what has come to light.
func (r *recorder) know(name, value string) {
	r.event.Details = append(r.event.Details, audit.Detail{Name: name, Value: value})
}

// withRecordedToken is withNamedToken for a verb that changes keys: what it does, and what comes of it, is recorded.
func (a *app) withRecordedToken(name, event, subject string, f func(*recorder, *tokenConfig, *hsm.Token) error) error {
	cfg, err := a.loadTokens()
	if err != nil {
		return err
	}
	t, err := tokenNamed(cfg, name)
	if err != nil {
		return err
	}
	r, err := a.newRecorder(cfg, event, subject)
	if err != nil {
		return err
	}
	r.know("token", t.Name)
	return r.end(a.withToken(cfg, t, func(h *hsm.Token) error { return f(r, t, h) }))
}

func (r *recorder) write(outcome string) error {
	if r.child == nil {
		return nil
	}
	r.event.Outcome = outcome
	err := json.NewEncoder(r.in).Encode(r.event)
	if err == nil {
		var answer string
		if answer, err = r.out.ReadString('\n'); err == nil && answer != "ok\n" {
			err = errors.New(strings.TrimSpace(answer))
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %s: could not be recorded: %w", r.event.Event, outcome, err)
	}
	return nil
}

// keyRecordCmd is the other end of a recorder: an event a line, an answer a line.
func keyRecordCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "record", Hidden: true, Args: args(cobra.NoArgs), Short: "Write what other verbs do to keys into keeper's log",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := a.loadTokens()
			if err != nil {
				return err
			}
			events := bufio.NewScanner(os.Stdin)
			for events.Scan() {
				answer := "ok"
				if err := a.recordEvent(c.Context(), cfg, events.Text()); err != nil {
					answer = oneLine(err.Error(), 2000)
				}
				fmt.Fprintln(a.stdout, answer)
			}
			return events.Err()
		},
	}
}

func (a *app) recordEvent(ctx context.Context, cfg *config, event string) error {
	c, err := a.control(ctx, cfg)
	if err != nil {
		return err
	}
	defer c.close()
	var out struct{}
	return c.call(ctx, http.MethodPost, "/record", nil, strings.NewReader(event), &out)
}
