package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// The checks are monitoring plugins: one line on stdout, with performance data, and an exit code of 0 to 3.

type pluginState int

// The states, which are the exit codes.
const (
	pluginOK pluginState = iota
	pluginWarning
	pluginCritical
	pluginUnknown
)

func (s pluginState) String() string { return [...]string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}[s] }

// worse orders states: what is known to be wrong before what is not known.
func (s pluginState) worse(t pluginState) bool {
	order := [...]int{pluginOK: 0, pluginUnknown: 1, pluginWarning: 2, pluginCritical: 3}
	return order[s] > order[t]
}

// A plugin collects what one check found.
type plugin struct {
	service  string
	problems []problem
	fine     []string // what is said when nothing is wrong
	metrics  []metric
}

type problem struct {
	State pluginState `json:"-"`
	Name  string      `json:"state"`
	Text  string      `json:"text"`
}

// A metric is written as the Monitoring Plugins' guidelines say: label=value[unit];warn;crit;min.
type metric struct {
	Label string  `json:"label"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Warn  float64 `json:"warn,omitempty"`
	Crit  float64 `json:"crit,omitempty"`
}

func (p *plugin) add(s pluginState, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for _, old := range p.problems {
		if old.Text == text && old.State == s {
			return
		}
	}
	p.problems = append(p.problems, problem{s, s.String(), text})
}

func (p *plugin) measure(label string, value float64, unit string, bounds ...float64) {
	m := metric{Label: label, Value: value, Unit: unit}
	if len(bounds) == 2 {
		m.Warn, m.Crit = bounds[0], bounds[1]
	}
	p.metrics = append(p.metrics, m)
}

func (p *plugin) state() pluginState {
	worst := pluginOK
	for _, x := range p.problems {
		if x.State.worse(worst) {
			worst = x.State
		}
	}
	return worst
}

// text names the worst problems first, and not too many: the line must fit on a pager.
func (p *plugin) text() string {
	const most = 4
	var l []string
	for _, s := range []pluginState{pluginCritical, pluginWarning, pluginUnknown} {
		for _, x := range p.problems {
			if x.State == s {
				l = append(l, x.Text)
			}
		}
	}
	if len(l) == 0 {
		return strings.Join(p.fine, "; ")
	}
	if more := len(l) - most; more > 0 {
		l = append(l[:most], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(l, "; ")
}

func (p *plugin) line() string {
	clean := func(s string) string { return strings.ReplaceAll(oneLine(s, 2000), "|", "/") }
	line := fmt.Sprintf("%s %s - %s", p.service, p.state(), clean(p.text()))
	var perf []string
	for _, m := range p.metrics {
		label := strings.Map(func(c rune) rune {
			if c == '\'' || c == '=' {
				return '_'
			}
			return c
		}, clean(m.Label))
		if strings.ContainsAny(label, " /") {
			label = "'" + label + "'"
		}
		number := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
		one := label + "=" + number(m.Value) + m.Unit
		if m.Crit != 0 {
			one += ";" + number(m.Warn) + ";" + number(m.Crit) + ";0"
		}
		perf = append(perf, one)
	}
	if len(perf) > 0 {
		line += " | " + strings.Join(perf, " ")
	}
	return line
}

// pluginResult is the check as JSON.
type pluginResult struct {
	V        int       `json:"v"`
	Service  string    `json:"service"`
	State    string    `json:"state"`
	Exit     int       `json:"exit"`
	Text     string    `json:"text"`
	Problems []problem `json:"problems"`
	Metrics  []metric  `json:"metrics"`
}

// print writes the result and gives the error that makes the exit code.
func (p *plugin) print(a *app) error {
	var err error
	if a.json() {
		r := &pluginResult{1, p.service, p.state().String(), int(p.state()), p.text(), p.problems, p.metrics}
		if r.Problems == nil {
			r.Problems = []problem{}
		}
		if r.Metrics == nil {
			r.Metrics = []metric{}
		}
		err = a.printJSON(r)
	} else {
		_, err = fmt.Fprintln(a.stdout, p.line())
	}
	if err == nil && p.state() != pluginOK {
		err = &exitError{code: int(p.state())}
	}
	return err
}

func newCheckCmd(a *app) *cobra.Command {
	internal := func(use, service, short string, judge func(*statusResult, time.Time) *plugin) *cobra.Command {
		return asPlugin(a, service, a.withOutput(&cobra.Command{
			Use: use, Short: short, Args: args(cobra.NoArgs),
			RunE: func(c *cobra.Command, _ []string) error {
				cfg, err := a.load()
				if err != nil {
					return err
				}
				s, err := askStatus(c.Context(), cfg)
				if err != nil {
					return err
				}
				return judge(s, time.Now()).print(a)
			},
		}))
	}
	c := group("check", "Monitoring plugins: one line, exit 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN",
		newCheckResponderCmd(a),
		internal("crl", "CRL", "The sources: whether what is in force is current", checkSources),
		internal("token", "TOKEN", "The tokens: whether they sign", checkTokens),
		internal("signer", "SIGNER", "The signers: their certificates, and whether they answer by what is in force", checkSigners),
		internal("all", "OCSPD", "Everything that status knows", checkAll),
	)
	return asPlugin(a, "CHECK", c)
}

// asPlugin gives a verb the exit code of a plugin that knows nothing, where it would fail or was called wrongly. What else fails is the
// plugin's one line.
func asPlugin(a *app, service string, c *cobra.Command) *cobra.Command {
	unknown := func(err error) error {
		var e *exitError
		switch {
		case err == nil, errors.As(err, &e) && e.err == nil:
			return err
		case e != nil && e.code == exitUsage:
			return &exitError{int(pluginUnknown), err}
		}
		p := &plugin{service: service}
		p.add(pluginUnknown, "%v", err)
		return p.print(a)
	}
	check, run := c.Args, c.RunE
	c.Args = func(c *cobra.Command, argv []string) error { return unknown(check(c, argv)) }
	c.RunE = func(c *cobra.Command, argv []string) error { return unknown(run(c, argv)) }
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &exitError{int(pluginUnknown), fmt.Errorf("%s: %w; see '%s --help'", c.CommandPath(), err, c.CommandPath())}
	})
	return c
}

// alarms adds those of some names, and that a role is down.
func (p *plugin) alarms(s *statusResult, role string, names ...string) {
	for _, x := range s.Alarms {
		about := x.Name == alarmRoleDown && x.Issuer == role
		for _, n := range names {
			about = about || x.Name == n
		}
		if about {
			p.alarm(x)
		}
	}
}

func (p *plugin) alarm(x alarm) {
	state := pluginWarning
	if grave(x.Name) {
		state = pluginCritical
	}
	text := x.Text
	if x.Issuer != "" && !strings.HasPrefix(text, x.Issuer) {
		text = x.Issuer + ": " + text
	}
	p.add(state, "%s", text)
}

func checkSources(s *statusResult, now time.Time) *plugin {
	p := &plugin{service: "CRL"}
	p.alarms(s, "keeper", alarmSourceStale, alarmSourceAging, alarmSourceRefused, alarmSourceWarning, alarmVanished, alarmDisagree, alarmDatabase)
	several := map[string]int{}
	for _, i := range s.Issuers {
		if len(i.Sources) == 0 {
			p.add(pluginCritical, "%s: no source has delivered", i.Name)
		}
		for _, x := range i.Sources {
			label := i.Name + "_" + x.Kind
			if several[label]++; several[label] > 1 {
				label += strconv.Itoa(several[label])
			}
			switch {
			case x.NextUpdate == nil:
				p.add(pluginCritical, "%s: %s %s has delivered nothing yet", i.Name, x.Kind, x.Source)
				continue
			case !now.Before(*x.NextUpdate):
				p.add(pluginCritical, "%s: %s %s ended %s", i.Name, x.Kind, x.Source, fromNow(x.NextUpdate.Sub(now)))
			case x.Number != "":
				p.fine = append(p.fine, fmt.Sprintf("%s: CRL %s until %s", i.Name, x.Number, x.NextUpdate.Format(time.RFC3339)))
			default:
				p.fine = append(p.fine, fmt.Sprintf("%s: %s until %s", i.Name, x.Kind, x.NextUpdate.Format(time.RFC3339)))
			}
			p.measure(label, x.NextUpdate.Sub(now).Truncate(time.Second).Seconds(), "s")
		}
	}
	p.nothing(len(s.Issuers) == 0, "no issuer is known")
	return p
}

// nothing is for a check that found neither a fault nor anything to look at.
func (p *plugin) nothing(empty bool, text string) {
	if empty && len(p.problems) == 0 {
		p.add(pluginUnknown, "%s", text)
	}
}

func checkTokens(s *statusResult, _ time.Time) *plugin {
	p := &plugin{service: "TOKEN"}
	p.alarms(s, "signer", alarmTokenDown)
	p.alarms(s, "keeper")
	working := 0
	for _, t := range s.Tokens {
		if t.State != "ok" {
			p.add(pluginCritical, "%s: %s", t.Name, t.State)
			continue
		}
		working++
		p.fine = append(p.fine, fmt.Sprintf("%s (%s) signs", t.Name, t.Label))
	}
	p.measure("tokens", float64(working), "")
	p.nothing(len(s.Tokens) == 0, "signer has not reported a token")
	return p
}

func checkSigners(s *statusResult, now time.Time) *plugin {
	p := &plugin{service: "SIGNER"}
	p.alarms(s, "signer", alarmSignerUnusable, alarmSignerExpiring, alarmSignatureFailed, alarmKeyChanged, alarmGenerationRefused, alarmClockBack)
	p.alarms(s, "keeper")
	for _, i := range s.Issuers {
		switch {
		case i.Signed == 0 || i.NotAfter == nil:
			p.add(pluginCritical, "%s: signer answers by no generation", i.Name)
			continue
		case !now.Before(*i.NotAfter):
			p.add(pluginCritical, "%s: the signer's certificate ended %s", i.Name, fromNow(i.NotAfter.Sub(now)))
		case i.Signed < i.Generation:
			p.add(pluginWarning, "%s: signer answers by generation %d, and %d is in force", i.Name, i.Signed, i.Generation)
		default:
			p.fine = append(p.fine, fmt.Sprintf("%s: until %s", i.Name, i.NotAfter.Format(time.RFC3339)))
		}
		p.measure(i.Name+"_not_after", i.NotAfter.Sub(now).Truncate(time.Second).Seconds(), "s")
	}
	p.nothing(len(s.Issuers) == 0, "no issuer is known")
	return p
}

func checkAll(s *statusResult, now time.Time) *plugin {
	p := &plugin{service: "OCSPD"}
	if s.Verdict != verdictServing {
		p.add(pluginCritical, "%s", s.Verdict)
	}
	for _, x := range s.Alarms {
		p.alarm(x)
	}
	for _, one := range []*plugin{checkSources(s, now), checkTokens(s, now), checkSigners(s, now)} {
		for _, x := range one.problems {
			p.add(x.State, "%s", x.Text)
		}
		p.metrics = append(p.metrics, one.metrics...)
	}
	p.measure("alarms", float64(len(s.Alarms)), "")
	p.fine = append(p.fine, fmt.Sprintf("serving %d issuers", len(s.Issuers)))
	return p
}
