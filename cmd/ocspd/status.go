package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ocspd/db"
	"ocspd/hardening"
	"ocspd/responder"
)

// The three verdicts.
const (
	verdictServing    = "serving"
	verdictDegraded   = "degraded"    // something grave, but questions are answered
	verdictNotServing = "not serving" // no question, or none that needs a signature, is answered
)

type statusResult struct {
	V       int            `json:"v"`
	Verdict string         `json:"verdict"`
	Roles   []roleStatus   `json:"roles"`
	Issuers []issuerStatus `json:"issuers"`
	Tokens  []tokenReport  `json:"tokens"`
	Alarms  []alarm        `json:"alarms"`

	Hardening []roleHardening `json:"hardening"`
}

type roleStatus struct {
	Role  string    `json:"role"`
	PID   int       `json:"pid"`
	Since time.Time `json:"since"`
}

// roleHardening is what a role gave up, by its own word.
type roleHardening struct {
	Role     string              `json:"role"`
	Measures []hardening.Measure `json:"measures"`
}

type issuerStatus struct {
	Name       string         `json:"name"`
	Generation uint64         `json:"generation"`        // in force
	Signed     uint64         `json:"signed_generation"` // that signer answers by; 0 when it answers by none
	Complete   bool           `json:"complete"`          // every source has delivered; without that, every answer is tryLater
	NotAfter   *time.Time     `json:"signer_not_after"`
	answered   bool           // signer has a generation that every source has delivered to; that may be one before the one in force
	Unissued   string         `json:"unissued"`
	Profile    string         `json:"profile"`
	Sources    []sourceStatus `json:"sources"`
}

type sourceStatus struct {
	Source     string     `json:"source"`
	Kind       string     `json:"kind"`
	Number     string     `json:"number"`
	Entries    int64      `json:"entries"`
	Carried    int64      `json:"carried"`
	ThisUpdate *time.Time `json:"this_update"`
	NextUpdate *time.Time `json:"next_update"`
	Attempt    *time.Time `json:"last_attempt"`
	Success    *time.Time `json:"last_success"`
	Error      string     `json:"error"`
}

// sourcesResult is what `crl status` prints.
type sourcesResult struct {
	V       int            `json:"v"`
	Issuers []issuerStatus `json:"issuers"`
}

func (k *keeper) status(ctx context.Context) (*statusResult, error) {
	s := &statusResult{V: 1, Roles: []roleStatus{}, Tokens: []tokenReport{}, Alarms: k.alarms.list(), Hardening: []roleHardening{}}
	var err error
	if s.Issuers, err = k.issuerStatuses(ctx); err != nil {
		return nil, err
	}
	front, signer := k.reports.get(responder.RoleFront), k.reports.get(responder.RoleSigner)
	for _, r := range []struct {
		name   string
		report *heardReport
	}{{"front", front}, {"signer", signer}} {
		if r.report != nil {
			s.Roles = append(s.Roles, roleStatus{r.name, r.report.pid, r.report.Since})
			s.Alarms = append(s.Alarms, r.report.Alarms...)
			s.Hardening = append(s.Hardening, roleHardening{r.name, r.report.Hardening})
		}
	}
	s.Roles = append(s.Roles, roleStatus{"keeper", os.Getpid(), k.since})
	s.Hardening = append(s.Hardening, roleHardening{"keeper", k.measures})
	sortAlarms(s.Alarms)
	if signer != nil && signer.Signer != nil {
		s.Tokens = append(s.Tokens, signer.Signer.Tokens...)
		for _, r := range signer.Signer.Issuers {
			for n := range s.Issuers {
				if s.Issuers[n].Name == r.Name {
					s.Issuers[n].Signed, s.Issuers[n].answered = r.Generation, r.Complete
					if !r.NotAfter.IsZero() { // its key can be used
						s.Issuers[n].NotAfter = &r.NotAfter
					}
				}
			}
		}
	}
	s.Verdict = verdict(s.Alarms, s.Issuers, front != nil && signer != nil)
	return s, nil
}

func verdict(alarms []alarm, issuers []issuerStatus, connected bool) string {
	silent := map[string]bool{} // issuers that are not answered for
	isGrave := false
	for _, a := range alarms {
		if !grave(a.Name) {
			continue
		}
		isGrave = true
		silent[a.Issuer] = true
	}
	answering := 0
	for _, i := range issuers {
		if !silent[i.Name] && i.Complete && i.answered {
			answering++
		}
	}
	switch {
	case !connected, answering == 0:
		return verdictNotServing
	case isGrave, answering < len(issuers):
		return verdictDegraded
	}
	return verdictServing
}

func (k *keeper) issuerStatuses(ctx context.Context) ([]issuerStatus, error) {
	l := []issuerStatus{}
	for _, i := range k.issuers() {
		lineages, err := k.store.Lineages(ctx, i.issuer.ID)
		if err != nil {
			return nil, err
		}
		feeds, err := k.store.Feeds(ctx, i.issuer.ID)
		if err != nil {
			return nil, err
		}
		l = append(l, issuerStatus{Name: i.config.Name, Generation: i.inForce(), Complete: i.complete(lineages), Unissued: i.config.Unissued, Profile: i.config.Profile,
			Sources: sourceStatuses(i, lineages, feeds)})
	}
	return l, nil
}

// sourceStatuses has a row for each configured place, and for what was handed in where no place is configured.
func sourceStatuses(i *keptIssuer, lineages []db.Lineage, feeds []db.Feed) []sourceStatus {
	l := []sourceStatus{}
	covered := map[string]bool{}
	for _, s := range i.sources {
		row := sourceStatus{Source: s.location(), Kind: "crl"}
		key := s.lineage(lineages)
		if s.Index != "" {
			row.Kind = "index"
		}
		covered[key] = true
		for _, lin := range lineages {
			if lin.Key == key {
				row.fill(&lin)
			}
		}
		for _, f := range feeds {
			if f.Location == s.location() {
				row.Attempt, row.Success, row.Error = timeOrNil(f.Attempt), timeOrNil(f.Success), f.Error
			}
		}
		l = append(l, row)
	}
	for _, lin := range lineages {
		if !covered[lin.Key] {
			row := sourceStatus{Source: lin.Location, Kind: lin.Kind.String()}
			row.fill(&lin)
			l = append(l, row)
		}
	}
	return l
}

func (row *sourceStatus) fill(l *db.Lineage) {
	row.Number, row.Entries, row.Carried = l.Number, l.Count, l.Carried
	row.ThisUpdate, row.NextUpdate = timeOrNil(l.ThisUpdate), timeOrNil(l.NextUpdate)
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC().Truncate(time.Second)
	return &t
}

func (k *keeper) handleStatus(r *http.Request) (any, error) { return k.status(r.Context()) }

func (k *keeper) handleSources(r *http.Request) (any, error) {
	l, err := k.issuerStatuses(r.Context())
	return &sourcesResult{1, l}, err
}

func newStatusCmd(a *app) *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use: "status", Short: "What serves, what it serves from, and what is wrong", Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			s, err := askStatus(c.Context(), cfg)
			if err != nil {
				return err
			}
			return a.printStatus(s)
		},
	})
}

var statusPatience = 10 * time.Second // with a keeper, which has its status at hand

// askStatus asks the running keeper, and says so where none runs or it hangs: nobody else knows.
func askStatus(ctx context.Context, cfg *config) (*statusResult, error) {
	asking, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	s := &statusResult{}
	c, err := reachKeeper(asking, cfg)
	if err == nil {
		defer c.close()
		err = c.call(asking, http.MethodGet, "/status", nil, nil, s)
	}
	switch {
	case err == nil:
		return s, nil
	case asking.Err() != nil && ctx.Err() == nil:
		return keeperlessStatus(ctx, cfg, fmt.Sprintf("keeper runs but has not answered for %s: is it stopped, or does it wait for its disk? "+
			"Look at its process, and restart ocspd if it stays like that", statusPatience)), nil
	case errors.Is(err, errNoKeeper):
		return keeperlessStatus(ctx, cfg, "keeper does not run: revocation data is not kept up to date; start ocspd"), nil
	}
	return nil, fmt.Errorf("status: %w", err)
}

// keeperlessStatus is what can be seen without keeper, of which it says why: whether the signer's socket answers.
func keeperlessStatus(ctx context.Context, cfg *config, why string) *statusResult {
	now := time.Now().UTC().Truncate(time.Second)
	s := &statusResult{V: 1, Verdict: verdictNotServing, Roles: []roleStatus{}, Issuers: []issuerStatus{}, Tokens: []tokenReport{}, Hardening: []roleHardening{}, Alarms: []alarm{
		{Name: alarmRoleDown, Issuer: "keeper", Since: now, Text: why}}}
	if c, err := dialUnix(cfg.signerSocket())(ctx); err == nil {
		c.Close()
		s.Verdict = verdictDegraded
	}
	return s
}

func (a *app) printStatus(s *statusResult) error {
	if a.json() {
		return a.printJSON(s)
	}
	fmt.Fprintln(a.stdout, s.Verdict)
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	for _, r := range s.Roles {
		fmt.Fprintf(w, "role\t%s\tprocess %d\tsince %s\n", r.Role, r.PID, r.Since.Format(time.RFC3339))
	}
	for _, t := range s.Tokens {
		fmt.Fprintf(w, "token\t%s\t%s\t%s\n", t.Name, t.Label, t.State)
	}
	for _, i := range s.Issuers {
		end := ""
		if i.NotAfter != nil {
			end = "signer until " + i.NotAfter.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "issuer\t%s\tgeneration %d\t%s\n", i.Name, i.Generation, end)
		writeSources(w, i.Sources)
	}
	for _, h := range s.Hardening {
		for _, m := range h.Measures {
			if m.State != hardening.Holds {
				fmt.Fprintf(w, "wall\t%s\t%s\t%s: %s\n", h.Role, m.Name, m.State, m.Detail)
			}
		}
	}
	for _, x := range s.Alarms {
		fmt.Fprintf(w, "alarm\t%s\t%s\tsince %s: %s\n", x.Name, x.Issuer, x.Since.Format(time.RFC3339), x.Text)
	}
	return w.Flush()
}

func writeSources(w *tabwriter.Writer, sources []sourceStatus) {
	for _, s := range sources {
		until := "nothing yet"
		if s.NextUpdate != nil {
			until = fmt.Sprintf("%d entries, %s to %s", s.Entries, s.ThisUpdate.Format(time.RFC3339), s.NextUpdate.Format(time.RFC3339))
			if s.Number != "" {
				until = "number " + crlNumber(s.Number) + ", " + until
			}
		}
		if s.Error != "" {
			until += "; refused: " + s.Error
		}
		fmt.Fprintf(w, "source\t%s\t%s\t%s\n", s.Kind, s.Source, until)
	}
}

func (a *app) printSources(s *sourcesResult) error {
	if a.json() {
		return a.printJSON(s)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	for _, i := range s.Issuers {
		fmt.Fprintf(w, "issuer\t%s\tgeneration %d\t\n", i.Name, i.Generation)
		writeSources(w, i.Sources)
	}
	return w.Flush()
}

func (a *app) printFetch(r *fetchResult) error {
	if a.json() {
		if err := a.printJSON(r); err != nil {
			return err
		}
	} else {
		for _, s := range r.Sources {
			if s.Result == "installed" {
				fmt.Fprintln(a.stdout, s.Text)
			} else {
				fmt.Fprintf(a.stdout, "%s: %s: %s\n", s.Issuer, s.Source, strings.TrimPrefix(s.Text, s.Source+": "))
			}
			for _, w := range s.Warn {
				a.talk("warning: %s", w)
			}
		}
	}
	if r.Failed > 0 {
		return fmt.Errorf("crl fetch: %d of %d sources could not be read or were refused; what was in force stays", r.Failed, len(r.Sources))
	}
	return nil
}
