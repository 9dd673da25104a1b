package main

import (
	_ "embed"
	"fmt"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
)

// exampleConfig documents every key: unit, default, and what an attacker gains by changing it.
//
//go:embed config_example.toml
var exampleConfig string

func newConfigCmd(a *app) *cobra.Command {
	check := &cobra.Command{
		Use: "check", Short: "Judge the text of the configuration; nothing that it names is opened", Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			c, err := a.load()
			if c != nil {
				for _, w := range c.Warnings {
					a.talk("%s", w)
				}
			}
			if err != nil {
				return err
			}
			a.printFact("ok", "%s: ok", a.configFile)
			return nil
		},
	}
	show := &cobra.Command{
		Use: "show", Short: "Print the configuration with every default filled in and every path absolute", Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(c.effective())
			}
			text, err := toml.Marshal(c.effective())
			if err != nil {
				return fmt.Errorf("config show: %w", err)
			}
			_, err = a.stdout.Write(text)
			return err
		},
	}
	example := &cobra.Command{
		Use: "example", Short: "Print a configuration with every key explained", Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprint(a.stdout, exampleConfig)
			return err
		},
	}
	return group("config", "Check, show and explain the configuration", a.withOutput(check), a.withOutput(show), example)
}

// effective is a configuration as its file could have been written: read back, it gives the same one.
type effective struct {
	V         int                        `toml:"-" json:"v"`
	State     string                     `toml:"state" json:"state"`
	Run       string                     `toml:"run" json:"run"`
	Listen    effectiveListen            `toml:"listen" json:"listen"`
	Token     map[string]effectiveToken  `toml:"token" json:"token"`
	Issuer    map[string]effectiveIssuer `toml:"issuer" json:"issuer"`
	Limits    effectiveLimits            `toml:"limits" json:"limits"`
	Hardening effectiveHardening         `toml:"hardening" json:"hardening"`
	Audit     effectiveAudit             `toml:"audit" json:"audit"`
}

type effectiveListen struct {
	OCSP  []string `toml:"ocsp" json:"ocsp"`
	HTTP  []string `toml:"http" json:"http"`
	Admin string   `toml:"admin" json:"admin"`
}

type effectiveToken struct {
	URI         string   `toml:"uri" json:"uri"`
	PIN         string   `toml:"pin" json:"pin"`
	InitArgs    string   `toml:"init_args" json:"init_args"`
	Environment []string `toml:"environment" json:"environment"`
	Paths       []string `toml:"paths" json:"paths"`
	MaxSessions int      `toml:"max_sessions" json:"max_sessions"`
	Assurance   string   `toml:"assurance" json:"assurance"`
	Firmware    string   `toml:"firmware" json:"firmware"`
	Ceremony    string   `toml:"ceremony" json:"ceremony"`
	Copies      string   `toml:"copies" json:"copies"`
}

type effectiveIssuer struct {
	Certificate string            `toml:"certificate" json:"certificate"`
	Signer      string            `toml:"signer" json:"signer"`
	Key         string            `toml:"key" json:"key"`
	Token       string            `toml:"-" json:"token"` // follows from key
	Profile     string            `toml:"profile" json:"profile"`
	Unissued    string            `toml:"unissued" json:"unissued"`
	Validity    string            `toml:"validity" json:"validity"`
	Nonce       string            `toml:"nonce" json:"nonce"`
	ResponderID string            `toml:"responder_id" json:"responder_id"`
	CrlID       string            `toml:"crl_id" json:"crl_id"`
	Padding     string            `toml:"padding" json:"padding"`
	Accept      []string          `toml:"accept" json:"accept"`
	Source      []effectiveSource `toml:"source,omitempty" json:"source"`
}

type effectiveSource struct {
	CRL     string `toml:"crl,omitempty" json:"crl,omitempty"`
	Index   string `toml:"index,omitempty" json:"index,omitempty"`
	Delta   string `toml:"delta,omitempty" json:"delta,omitempty"`
	Refresh string `toml:"refresh" json:"refresh"`
	MaxSize string `toml:"max_size" json:"max_size"`
}

type effectiveLimits struct {
	Body        string `toml:"body" json:"body"`
	Path        string `toml:"path" json:"path"`
	Requests    int    `toml:"requests" json:"requests"`
	Connections int    `toml:"connections" json:"connections"`
	Waiting     int    `toml:"waiting" json:"waiting"`
}

type effectiveHardening struct {
	Require []string `toml:"require" json:"require"`
	Seccomp string   `toml:"seccomp" json:"seccomp"`
	Module  []string `toml:"module" json:"module"`
}

type effectiveAudit struct {
	Key     string   `toml:"key" json:"key"`
	Accept  []string `toml:"accept" json:"accept"`
	Answers string   `toml:"answers" json:"answers"`
}

func (c *config) effective() effective {
	e := effective{
		V: 1, State: c.State, Run: c.Run,
		Listen: effectiveListen{filled(c.Listen.OCSP), filled(c.Listen.HTTP), c.Listen.Admin},
		Token:  map[string]effectiveToken{}, Issuer: map[string]effectiveIssuer{},
		Limits: effectiveLimits{formatSize(int64(c.Limits.Body)), formatSize(int64(c.Limits.Path)), c.Limits.Requests,
			c.Limits.Connections, c.Limits.Waiting},
		Hardening: effectiveHardening{filled(c.Hardening.Require), c.Hardening.Seccomp, filled(c.Hardening.Module)},
		Audit:     effectiveAudit{c.AuditKey, filled(c.AuditAccept), formatSize(c.AuditAnswers)},
	}
	for _, t := range c.Tokens {
		e.Token[t.Name] = effectiveToken{t.URI, t.PIN, t.InitArgs, filled(t.Environment), filled(t.Paths), t.MaxSessions, t.Assurance, t.Firmware, t.Ceremony, t.Copies}
	}
	for _, i := range c.Issuers {
		sources := []effectiveSource{}
		for _, s := range i.Sources {
			sources = append(sources, effectiveSource{s.CRL, s.Index, s.Delta, formatDuration(s.Refresh), formatSize(s.MaxSize)})
		}
		e.Issuer[i.Name] = effectiveIssuer{i.Certificate, i.Signer, i.Key, i.Token, i.Profile, i.Unissued,
			formatDuration(i.Validity), i.Nonce, i.ResponderID, i.CrlID, i.Padding, filled(i.Accept), sources}
	}
	return e
}

// filled makes sure that an empty list is written as one.
func filled(list []string) []string { return append([]string{}, list...) }
