package main

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ocspd/ingest"
	"ocspd/pki"
)

// changeResult is what a verb that changes data says.
type changeResult struct {
	V          int      `json:"v"`
	Result     string   `json:"result"` // "installed", "revoked", "unrevoked" or "unchanged"
	Issuer     string   `json:"issuer"`
	Serial     string   `json:"serial,omitempty"`
	Generation uint64   `json:"generation"`
	Text       string   `json:"text"`
	Warnings   []string `json:"warnings,omitempty"`
}

func (a *app) printChange(r *changeResult) error {
	for _, w := range r.Warnings {
		a.talk("warning: %s", w)
	}
	if a.json() {
		return a.printJSON(r)
	}
	fmt.Fprintln(a.stdout, r.Text)
	return nil
}

func newCRLCmd(a *app) *cobra.Command {
	var issuer, force string
	imp := &cobra.Command{
		Use: "import FILE", Short: "Check a CRL and put it in force", Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			return a.importFile(c, "/crl/import", issuer, force, files[0])
		},
	}
	forceFlag(imp, &force)
	imp.Flags().StringVar(&issuer, "issuer", "", "issuer in the configuration; without it the CRL's signature decides")
	fetch := &cobra.Command{
		Use: "fetch [ISSUER]", Short: "Read the sources now", Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			var out fetchResult
			if err := a.controlled(c.Context(), http.MethodPost, "/crl/fetch", named(names), nil, &out); err != nil {
				return err
			}
			return a.printFetch(&out)
		},
	}
	status := &cobra.Command{
		Use: "status", Short: "What each source last gave, and how long it holds", Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			var out sourcesResult
			if err := a.controlled(c.Context(), http.MethodGet, "/crl/status", nil, nil, &out); err != nil {
				return err
			}
			return a.printSources(&out)
		},
	}
	inspect := &cobra.Command{
		Use: "inspect FILE", Short: "Show what a CRL says of itself; verifies nothing", Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, files []string) error { return a.inspectCRL(files[0]) },
	}
	return group("crl", "Certificate revocation lists",
		a.withOutput(imp), a.withOutput(fetch), a.withOutput(status), a.withOutput(inspect))
}

func newIndexCmd(a *app) *cobra.Command {
	var issuer, force string
	imp := &cobra.Command{
		Use: "import --issuer NAME FILE", Short: "Check an OpenSSL index.txt and put it in force", Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			if issuer == "" {
				return usagef("index import: --issuer is needed, since an index.txt does not say whose it is")
			}
			return a.importFile(c, "/index/import", issuer, force, files[0])
		},
	}
	forceFlag(imp, &force)
	imp.Flags().StringVar(&issuer, "issuer", "", "issuer in the configuration")
	return group("index", "OpenSSL index.txt files", a.withOutput(imp))
}

func named(names []string) url.Values {
	if len(names) == 0 {
		return nil
	}
	return url.Values{"issuer": {names[0]}}
}

func forceFlag(c *cobra.Command, force *string) {
	c.Flags().StringVar(force, "force", "", "take it although it is older, of the same number or of another part, or un-revokes (index); with a note why")
}

// importFile hands a file to keeper, which may not be able to open it itself.
func (a *app) importFile(c *cobra.Command, path, issuer, force, file string) error {
	if c.Flags().Changed("force") && strings.TrimSpace(force) == "" {
		return usagef("%s: --force needs a note that says why; it is kept in the log", strings.TrimPrefix(c.CommandPath(), "ocspd "))
	}
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("%s: %w", c.CommandPath(), err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("%s %s: not a regular file", c.CommandPath(), file)
	}
	giveWay(0) // a hundred megabytes are no reason for answers to wait; where that cannot be, they do
	var out changeResult
	query := url.Values{"issuer": {issuer}, "name": {filepath.Base(file)}, "force": {force}}
	if err := a.controlled(c.Context(), http.MethodPost, path, query, f, &out); err != nil {
		return err
	}
	return a.printChange(&out)
}

// crlNumber is the number of a CRL for people: in hex, and saying so, as openssl does.
func crlNumber(hex string) string {
	if hex == "" {
		return ""
	}
	return "0x" + hex
}

// inspectResult is what a CRL says of itself.
type inspectResult struct {
	V            int        `json:"v"`
	Issuer       string     `json:"issuer"`
	Number       string     `json:"number"`      // hex
	BaseNumber   string     `json:"base_number"` // of a delta CRL, hex
	ThisUpdate   *time.Time `json:"this_update"`
	NextUpdate   *time.Time `json:"next_update"`
	Entries      int64      `json:"entries"`
	Size         int64      `json:"size"` // octets of the DER
	SHA256       string     `json:"sha256"`
	Signature    string     `json:"signature"`
	AuthorityKey string     `json:"authority_key"`
	Scope        string     `json:"scope"`
	Extensions   []string   `json:"extensions"`
	Warnings     []string   `json:"warnings"`
	Problems     []string   `json:"problems"` // what would refuse it, whoever had signed it
}

func (a *app) inspectCRL(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("crl inspect: %w", err)
	}
	defer f.Close()
	const most = 4 << 30
	spool, err := ingest.NewSpool(os.TempDir(), f, most)
	if err != nil {
		return fmt.Errorf("crl inspect %s: %w", file, err)
	}
	defer spool.Close()
	info, err := ingest.Inspect(spool)
	if err != nil {
		return fmt.Errorf("crl inspect %s: %w", file, err)
	}
	if a.json() {
		return a.printJSON(inspectResult{V: 1, Issuer: info.Issuer, Number: info.Number, BaseNumber: info.BaseNumber,
			ThisUpdate: timeOrNil(info.ThisUpdate), NextUpdate: timeOrNil(info.NextUpdate), Entries: info.Entries, Size: info.Size,
			SHA256: hex.EncodeToString(info.Digest[:]), Signature: info.SignatureAlgorithm, AuthorityKey: info.AuthorityKeyID,
			Scope: info.Scope.String(), Extensions: filled(info.Extensions), Warnings: filled(info.Warnings), Problems: filled(info.Problems)})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(w, "%s\t%v\n", name, value) }
	row("issuer", info.Issuer)
	row("number", crlNumber(info.Number))
	if info.BaseNumber != "" {
		row("delta on", crlNumber(info.BaseNumber))
	}
	row("this update", info.ThisUpdate.Format(time.RFC3339))
	row("next update", info.NextUpdate.Format(time.RFC3339))
	row("entries", info.Entries)
	row("octets", info.Size)
	row("signature", info.SignatureAlgorithm)
	row("authority key", info.AuthorityKeyID)
	row("scope", info.Scope)
	for _, x := range info.Extensions {
		row("extension", x)
	}
	for _, x := range info.Warnings {
		row("warning", x)
	}
	for _, x := range info.Problems {
		row("problem", x)
	}
	w.Flush()
	a.talk("nothing was verified: this is what the file says of itself")
	return nil
}

// serialArgument takes a serial as a person writes it, or the file of a certificate, which must be the issuer's.
func serialArgument(cfg *config, issuer, arg string) (pki.Serial, error) {
	b, err := os.ReadFile(arg)
	if errors.Is(err, os.ErrNotExist) {
		serial, err := pki.ParseSerial(arg)
		if errors.Is(err, pki.ErrSerialAmbiguous) {
			return serial, &exitError{exitUsage, err}
		}
		if err != nil && strings.ContainsAny(arg, "./") {
			return serial, usagef("%s: no such file, and no serial number", arg)
		}
		if err != nil {
			return serial, &exitError{exitUsage, err}
		}
		return serial, nil
	}
	if err != nil {
		return pki.Serial{}, err
	}
	cert, err := pki.ParseCertificate(b)
	if err != nil {
		return pki.Serial{}, fmt.Errorf("%s: not a certificate: %w", arg, err)
	}
	i := cfg.issuer(issuer)
	if i == nil {
		return pki.Serial{}, noSuchIssuer(cfg, issuer)
	}
	ca, err := loadIssuer(i)
	if err != nil {
		return pki.Serial{}, err
	}
	if err := issuedBy(cert, ca); err != nil {
		return pki.Serial{}, fmt.Errorf("%s: %w", arg, err)
	}
	return pki.SerialFromBig(cert.SerialNumber)
}

func issuedBy(cert *x509.Certificate, ca *pki.Issuer) error {
	if string(cert.RawIssuer) != string(ca.Certificate.RawSubject) {
		return fmt.Errorf("issued by %q, not by issuer %s (%q)", cert.Issuer, ca.Name, ca.Certificate.Subject)
	}
	if err := ca.Certificate.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil {
		return fmt.Errorf("names issuer %s, but was not signed by its key: %w", ca.Name, err)
	}
	return nil
}

func noSuchIssuer(cfg *config, name string) error {
	var names []string
	for _, i := range cfg.Issuers {
		names = append(names, i.Name)
	}
	return fmt.Errorf("issuer %s: not in the configuration; it has %s", name, strings.Join(names, ", "))
}

// serialVerb makes a verb on ISSUER and SERIAL|CERT.
func (a *app) serialVerb(use, short string, do func(c *cobra.Command, cfg *config, issuer string, serial pki.Serial) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " ISSUER SERIAL|CERT", Short: short, Args: args(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, argv []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			if cfg.issuer(argv[0]) == nil {
				return fmt.Errorf("%s: %w", use, noSuchIssuer(cfg, argv[0]))
			}
			serial, err := serialArgument(cfg, argv[0], argv[1])
			if err != nil {
				return fmt.Errorf("%s: %w", use, err)
			}
			return do(c, cfg, argv[0], serial)
		},
	}
}

func newRevokeCmd(a *app) *cobra.Command {
	var reason, date, invalidity string
	c := a.serialVerb("revoke", "Revoke a certificate by hand", func(c *cobra.Command, cfg *config, issuer string, serial pki.Serial) error {
		query := url.Values{"issuer": {issuer}, "serial": {hexSerial(serial)}}
		for name, value := range map[string]string{"reason": reason, "date": date, "invalidity": invalidity} {
			if value != "" {
				query.Set(name, value)
			}
		}
		if reason != "" {
			if _, err := pki.ParseReason(reason); err != nil {
				return &exitError{exitUsage, fmt.Errorf("revoke: %w", err)}
			}
		}
		for name, value := range map[string]string{"date": date, "invalidity": invalidity} {
			if _, err := time.Parse(time.RFC3339, value); value != "" && err != nil {
				return usagef("revoke: --%s %s: not a time as RFC 3339 writes it, like 2026-01-31T12:00:00Z", name, value)
			}
		}
		var out changeResult
		if err := a.controlled(c.Context(), http.MethodPost, "/revoke", query, nil, &out); err != nil {
			return err
		}
		return a.printChange(&out)
	})
	c.Flags().StringVar(&reason, "reason", "", "reason as RFC 5280 names it, like keyCompromise")
	c.Flags().StringVar(&date, "date", "", "time of the revocation (RFC 3339); now, if left out")
	c.Flags().StringVar(&invalidity, "invalidity", "", "time since when the key may have been misused (RFC 3339)")
	return a.withOutput(c)
}

func newUnrevokeCmd(a *app) *cobra.Command {
	var mistake string
	c := a.serialVerb("unrevoke", "Undo a hold, or a mistake", func(c *cobra.Command, cfg *config, issuer string, serial pki.Serial) error {
		query := url.Values{"issuer": {issuer}, "serial": {hexSerial(serial)}}
		if c.Flags().Changed("mistake") {
			if strings.TrimSpace(mistake) == "" {
				return usagef("unrevoke: --mistake needs a note that says what happened; it is kept in the log")
			}
			query.Set("mistake", mistake)
		}
		var out changeResult
		if err := a.controlled(c.Context(), http.MethodPost, "/unrevoke", query, nil, &out); err != nil {
			return err
		}
		return a.printChange(&out)
	})
	c.Flags().StringVar(&mistake, "mistake", "", "undo a permanent revocation that no source confirms, with a note why")
	return a.withOutput(c)
}

// hexSerial is a serial in the one form that keeper takes: the content octets of the INTEGER, so that a sign survives.
func hexSerial(s pki.Serial) string { return fmt.Sprintf("%x", s.Bytes()) }

func newLookupCmd(a *app) *cobra.Command {
	var explain, history bool
	c := a.serialVerb("lookup", "Show a certificate's status, as it would be answered", func(c *cobra.Command, cfg *config, issuer string, serial pki.Serial) error {
		query := url.Values{"issuer": {issuer}, "serial": {hexSerial(serial)}}
		if explain {
			query.Set("explain", "1")
		}
		if history {
			query.Set("history", "1")
		}
		var out lookupResult
		if err := a.controlled(c.Context(), http.MethodGet, "/lookup", query, nil, &out); err != nil {
			return err
		}
		return a.printLookup(&out)
	})
	c.Flags().BoolVar(&explain, "explain", false, "which source, generation, times and key decide; signs nothing")
	c.Flags().BoolVar(&history, "history", false, "every change of the status that is on record")
	return a.withOutput(c)
}
