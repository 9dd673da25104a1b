package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ocspd/hsm"
	"ocspd/pki"
	"ocspd/responder"
)

// setEnvironment gives a token's module the variables that it is configured with; it must come before the module is loaded.
func (t *tokenConfig) setEnvironment() {
	for _, v := range t.Environment {
		name, value, _ := strings.Cut(v, "=")
		os.Setenv(name, value)
	}
}

// openToken logs in to a token of the configuration: the one place where a PIN is used.
func openToken(cfg *config, t *tokenConfig, log *slog.Logger) (*hsm.Token, error) {
	t.setEnvironment()
	return hsm.Open(hsm.Config{
		Name: t.Name, URI: t.URI, InitArgs: t.InitArgs, MaxSessions: t.MaxSessions, Log: log,
		PIN:    t.readPIN,
		Marker: cfg.pinMarker(t.Name),
	})
}

// pinMarker is the file that a refused PIN leaves; while it is there, no login of ours is tried.
func (c *config) pinMarker(token string) string {
	return filepath.Join(c.signerDir(), "pin-refused."+token)
}

// loadAuthority reads the certificates of an issuer, finds its key and judges all three; the key is proven by signing.
// The warnings are what the profile lets pass; an error is what makes the issuer unusable. A certificate that is not
// yet or no longer valid is neither: answers are refused then, by the clock, for as long as that is so.
func loadAuthority(i *issuerConfig, token *hsm.Token, now time.Time) (a *responder.Authority, warnings []string, err error) {
	a = &responder.Authority{ByName: i.ResponderID == "name", CrlID: i.CrlID == "include", PSS: i.Padding == "pss", Policy: i.policy()}
	if a.Issuer, err = loadIssuer(i); err != nil {
		return nil, nil, err
	}
	if i.Signer != "" {
		if a.Signer, err = loadSignerCertificate(i); err != nil {
			return nil, nil, err
		}
	}
	findings := certificateFindings(i, a, now)
	key, err := token.Find(i.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("issuer %s: %w", i.Name, err)
	}
	keyed, err := keyFindings(i, key, now)
	if err != nil {
		return nil, nil, err
	}
	var refused []string
	for n, f := range append(findings, keyed...) {
		text := f.String()
		if n < len(findings) {
			text = fmt.Sprintf("certificate %s: %s (%s)", signerFile(i), f.Text, f.Rule)
			if f.Error && i.Signer != "" {
				text += "; have the CA issue another ('ocspd key csr', then 'ocspd key install')"
			}
		}
		if f.Error {
			refused = append(refused, text)
		} else {
			warnings = append(warnings, text)
		}
	}
	if len(refused) > 0 {
		return nil, warnings, fmt.Errorf("issuer %s: %s", i.Name, strings.Join(refused, "; "))
	}
	a.Key = key
	if err := a.Prepare(); err != nil {
		if errors.Is(err, responder.ErrSignature) {
			return nil, warnings, fmt.Errorf("issuer %s: the certificate %s is not that of %s; install the certificate that was issued for this key, or name its key in the configuration (OCSP-DEL-08)",
				i.Name, signerFile(i), key)
		}
		return nil, warnings, err
	}
	attributes, err := key.Attributes()
	if err != nil {
		return nil, warnings, fmt.Errorf("issuer %s: %w", i.Name, err)
	}
	if end := attributes.End(); !end.IsZero() && end.Before(a.Policy.NotAfter) {
		a.Policy.NotAfter = end // no answer holds longer than the key is to be used (OCSP-KEY-16)
	}
	return a, warnings, nil
}

// policy is that of the configuration; when its answers end at the latest, only the certificates say.
func (i *issuerConfig) policy() responder.Policy {
	return responder.Policy{Unissued: responder.Unissued(i.Unissued), Validity: i.Validity, WebPKI: i.Profile == "webpki"}
}

func signerFile(i *issuerConfig) string {
	if i.Signer == "" {
		return i.Certificate
	}
	return i.Signer
}

func loadSignerCertificate(i *issuerConfig) (*x509.Certificate, error) {
	b, err := os.ReadFile(i.Signer)
	if err != nil {
		return nil, fmt.Errorf("issuer %s: the signer's certificate: %w; 'ocspd key csr' makes the request for the CA, 'ocspd key install' puts its certificate there", i.Name, err)
	}
	cert, err := pki.ParseCertificate(b)
	if err != nil {
		return nil, fmt.Errorf("issuer %s: the signer's certificate %s: %w", i.Name, i.Signer, err)
	}
	return cert, nil
}

// certificateFindings judges the certificates as of a moment within the signer's life.
func certificateFindings(i *issuerConfig, a *responder.Authority, now time.Time) []pki.Finding {
	if a.Signer != nil {
		return pki.CheckDelegate(a.Signer, a.Issuer, within(now, a.Signer), i.Profile == "webpki")
	}
	findings := pki.CheckDirect(a.Issuer, within(now, a.Issuer.Certificate))
	for n := range findings {
		if slices.Contains(i.Accept, findings[n].Name) {
			findings[n].Error = false
		}
	}
	return findings
}

func within(now time.Time, c *x509.Certificate) time.Time {
	switch {
	case now.Before(c.NotBefore):
		return c.NotBefore
	case now.After(c.NotAfter):
		return c.NotAfter
	}
	return now
}

// keyFindings are what the token says of the key; those that `accept` names are warnings.
func keyFindings(i *issuerConfig, key *hsm.Key, now time.Time) ([]pki.Finding, error) {
	attributes, err := key.Attributes()
	if err != nil {
		return nil, fmt.Errorf("issuer %s: %w", i.Name, err)
	}
	var l []pki.Finding
	for _, f := range attributes.Findings(now) {
		accepted := slices.Contains(i.Accept, f.Name)
		text := fmt.Sprintf("key %s: %s is %s, expected %s", key, f.Attribute, f.Found, f.Expected)
		if accepted {
			text += "; accepted by the configuration"
		}
		l = append(l, pki.Finding{Rule: f.Rule, Name: f.Name, Error: f.Must && !accepted, Text: text})
	}
	return l, nil
}
