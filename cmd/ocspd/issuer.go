package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ocspd/hardening"
	"ocspd/hsm"
	"ocspd/ingest"
	"ocspd/pki"
)

type issuerInfo struct {
	V           int          `json:"v,omitempty"`
	Name        string       `json:"name"`
	Subject     string       `json:"subject"`
	Certificate string       `json:"certificate"`
	SHA256      string       `json:"sha256"`
	NotAfter    time.Time    `json:"not_after"`
	Signer      *signerInfo  `json:"signer"` // null where the CA's own key signs
	Key         string       `json:"key"`
	Token       string       `json:"token"`
	Profile     string       `json:"profile"`
	Unissued    string       `json:"unissued"`
	Validity    string       `json:"validity"`
	Nonce       string       `json:"nonce"`
	Accept      []string     `json:"accept"`
	Sources     []sourceInfo `json:"sources"`
}

type signerInfo struct {
	Certificate string    `json:"certificate"`
	Subject     string    `json:"subject"`
	SHA256      string    `json:"sha256"`
	NotAfter    time.Time `json:"not_after"`
}

type sourceInfo struct {
	Kind     string `json:"kind"`
	Location string `json:"location"`
	Delta    string `json:"delta,omitempty"`
	Refresh  string `json:"refresh"`
	MaxSize  int64  `json:"max_size"`
}

func describeIssuer(c *issuerConfig) (*issuerInfo, error) {
	ca, err := loadIssuer(c)
	if err != nil {
		return nil, err
	}
	i := &issuerInfo{Name: c.Name, Subject: ca.Certificate.Subject.String(), Certificate: c.Certificate, SHA256: hex.EncodeToString(ca.ID[:]),
		NotAfter: ca.Certificate.NotAfter.UTC(), Key: c.Key, Token: c.Token, Profile: c.Profile, Unissued: c.Unissued,
		Validity: c.Validity.String(), Nonce: c.Nonce, Accept: append([]string{}, c.Accept...), Sources: []sourceInfo{}}
	for _, s := range c.Sources {
		kind := "crl"
		if s.Index != "" {
			kind = "index"
		}
		i.Sources = append(i.Sources, sourceInfo{kind, s.location(), s.Delta, s.Refresh.String(), s.MaxSize})
	}
	if c.Signer == "" {
		return i, nil
	}
	cert, err := loadSignerCertificate(c)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(cert.Raw)
	i.Signer = &signerInfo{c.Signer, cert.Subject.String(), hex.EncodeToString(sum[:]), cert.NotAfter.UTC()}
	return i, nil
}

func newIssuerCmd(a *app) *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "The issuers that are answered for", Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error { return a.listIssuers() },
	}
	show := &cobra.Command{
		Use: "show NAME", Short: "One issuer: certificates, key, sources", Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, names []string) error { return a.showIssuer(names[0]) },
	}
	check := &cobra.Command{
		Use: "check [NAME]", Short: "Open and judge everything that the configuration names for an issuer", Args: args(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, names []string) error { return a.checkIssuers(names) },
	}
	return group("issuer", "CAs whose certificates are answered for", a.withOutput(list), a.withOutput(show), a.withOutput(check))
}

func (a *app) listIssuers() error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	var infos []*issuerInfo
	for _, c := range cfg.Issuers {
		i, err := describeIssuer(c)
		if err != nil {
			return err
		}
		infos = append(infos, i)
	}
	if a.json() {
		return a.printJSON(struct {
			V       int           `json:"v"`
			Issuers []*issuerInfo `json:"issuers"`
		}{1, infos})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSUBJECT\tKEY\tSIGNER UNTIL\tSOURCES")
	for _, i := range infos {
		until := "the CA's key signs"
		if i.Signer != nil {
			until = i.Signer.NotAfter.Format(time.RFC3339)
		}
		var sources []string
		for _, s := range i.Sources {
			sources = append(sources, s.Kind)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", i.Name, i.Subject, i.Key, until, strings.Join(sources, ", "))
	}
	return w.Flush()
}

func (a *app) showIssuer(name string) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	c := cfg.issuer(name)
	if c == nil {
		return fmt.Errorf("issuer show: %w", noSuchIssuer(cfg, name))
	}
	i, err := describeIssuer(c)
	if err != nil {
		return err
	}
	i.V = 1
	if a.json() {
		return a.printJSON(i)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(w, "%s\t%v\n", name, value) }
	row("name", i.Name)
	row("subject", i.Subject)
	row("certificate", i.Certificate)
	row("sha256", i.SHA256)
	row("until", i.NotAfter.Format(time.RFC3339))
	if i.Signer != nil {
		row("signer", i.Signer.Subject)
		row("signer certificate", i.Signer.Certificate)
		row("signer sha256", i.Signer.SHA256)
		row("signer until", i.Signer.NotAfter.Format(time.RFC3339))
	} else {
		row("signer", "the CA's own key")
	}
	row("key", i.Key+" in token "+i.Token)
	row("profile", i.Profile)
	row("unissued", i.Unissued)
	row("validity", i.Validity)
	row("nonce", i.Nonce)
	if len(i.Accept) > 0 {
		row("accepted findings", strings.Join(i.Accept, ", "))
	}
	for _, s := range i.Sources {
		row("source", fmt.Sprintf("%s %s every %s", s.Kind, s.Location, s.Refresh))
	}
	return w.Flush()
}

type issuerCheck struct {
	Name     string   `json:"name"`
	OK       bool     `json:"ok"`
	Errors   []string `json:"errors"`
	Warnings []string `json:"warnings"`
}

// checkIssuers opens certificates, token and key, proves that they belong together, and reads each source that is a file.
func (a *app) checkIssuers(names []string) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	which := cfg.Issuers
	if len(names) > 0 {
		c := cfg.issuer(names[0])
		if c == nil {
			return fmt.Errorf("issuer check: %w", noSuchIssuer(cfg, names[0]))
		}
		which = []*issuerConfig{c}
	}
	var login []*tokenConfig
	for _, c := range which {
		login = append(login, cfg.token(c.Token))
	}
	if err := errors.Join(hardening.NoDump(), becomeSigner(cfg, login...)); err != nil {
		return err
	}
	tokens := map[string]*hsm.Token{}
	defer func() {
		for _, t := range tokens {
			t.Close()
		}
	}()
	var checks []issuerCheck
	bad := 0
	for _, c := range which {
		if tokens[c.Token] == nil {
			t, err := openToken(cfg, cfg.token(c.Token), newLogger(a.stderr, "check"))
			if err != nil {
				return fmt.Errorf("issuer check: %w", err)
			}
			tokens[c.Token] = t
		}
		check := checkIssuer(c, tokens[c.Token])
		if !check.OK {
			bad++
		}
		checks = append(checks, check)
	}
	if err := a.printChecks(checks); err != nil || bad == 0 {
		return err
	}
	return fmt.Errorf("issuer check: %d of %d issuers cannot be answered for", bad, len(checks))
}

func checkIssuer(c *issuerConfig, token *hsm.Token) issuerCheck {
	check := issuerCheck{Name: c.Name, Errors: []string{}}
	now := time.Now()
	authority, warnings, err := loadAuthority(c, token, now)
	check.Warnings = append([]string{}, warnings...)
	if err != nil {
		check.Errors = append(check.Errors, err.Error())
	} else if end := authority.Policy.NotAfter; now.After(end) {
		check.Errors = append(check.Errors, fmt.Sprintf("%s ended %s; install a new certificate", signerFile(c), end.UTC().Format(time.RFC3339)))
	} else if now.Before(authority.Certificate().NotBefore) {
		check.Errors = append(check.Errors, fmt.Sprintf("%s is not valid yet", signerFile(c)))
	} else if end.Sub(now) < expiryWarning {
		check.Warnings = append(check.Warnings, fmt.Sprintf("%s ends %s", signerFile(c), end.UTC().Format(time.RFC3339)))
	}
	issuer, err := loadIssuer(c)
	if err == nil {
		for _, s := range c.Sources {
			if err := checkSource(issuer, c, s); err != nil {
				check.Errors = append(check.Errors, err.Error())
			}
		}
	}
	check.OK = len(check.Errors) == 0
	return check
}

// checkSource judges a source that is a file as keeper would; those behind a URL are keeper's to fetch.
func checkSource(issuer *pki.Issuer, c *issuerConfig, s sourceConfig) error {
	if !strings.HasPrefix(s.location(), "/") {
		return nil
	}
	fetched, err := ingest.NewFetcher(os.TempDir()).Fetch(context.Background(), s.location(), ingest.Validators{}, ingest.Limits{Size: s.MaxSize, Time: fetchTime})
	if err != nil {
		return err
	}
	defer fetched.Spool.Close()
	if _, err := (&keptIssuer{config: c, issuer: issuer}).read(s.Index != "", fetched.Spool); err != nil {
		return fmt.Errorf("%s: %w", s.location(), err)
	}
	return nil
}

func (a *app) printChecks(checks []issuerCheck) error {
	if a.json() {
		return a.printJSON(struct {
			V       int           `json:"v"`
			Issuers []issuerCheck `json:"issuers"`
		}{1, checks})
	}
	for _, c := range checks {
		word := "ok"
		if !c.OK {
			word = "cannot be answered for"
		}
		fmt.Fprintf(a.stdout, "%s: %s\n", c.Name, word)
		for _, e := range c.Errors {
			fmt.Fprintf(a.stdout, "  error: %s\n", e)
		}
		for _, w := range c.Warnings {
			fmt.Fprintf(a.stdout, "  warning: %s\n", w)
		}
	}
	return nil
}
