package main

import (
	"os"
	"path/filepath"
	"slices"
	"time"
)

// defaultConfig is where the configuration is looked for unless --config names another file.
const defaultConfig = "/etc/ocspd/ocspd.toml"

// config is a configuration that was read whole and judged: every path in it is absolute, every value in range.
// The fields, their units and defaults are described in `config example` (config_example.toml) and judged in config_read.go.
type config struct {
	File   string // the file it came from, absolute
	State  string // directory
	Run    string // directory
	Listen struct {
		OCSP, HTTP []string // host:port each
		Admin      string   // host:port, or "" for none
	}
	Tokens    []*tokenConfig  // in the order of the file
	Issuers   []*issuerConfig // in the order of the file, then of issuers.d
	Limits    limitsConfig
	Hardening struct {
		Require []string
		Seccomp string   // "enforce" or "log"
		Module  []string // what tokens' modules need beyond files: network, usb, pcscd
	}
	AuditKey     string   // PKCS#11 URI, or ""
	AuditToken   string   // name of the [token.*] that AuditKey is in
	AuditAccept  []string // findings of that key that are accepted
	AuditAnswers int64    // octets that the hashes of answers may take
	Warnings     []string // each "file:line:col: warning: …"
}

type tokenConfig struct {
	Name        string
	URI         string // PKCS#11 URI with token and/or serial, and module-path
	PIN         string // "file:/absolute/path" or "credential:NAME"
	InitArgs    string
	Environment []string // NAME=value, for the module
	Paths       []string // that the module opens, beyond those that its environment names
	MaxSessions int

	Unsealed  *os.File // the PIN, for readPIN to read once, where unseal had to make it ready
	UnsealErr error    // why it could not

	// What only people know of the token, for `custody report`; each may be "".
	Assurance string // certificate of the device
	Firmware  string // version that the certificate is for
	Ceremony  string // where the record of how the keys were made is
	Copies    string // where copies of the keys are, or that there are none
}

type issuerConfig struct {
	Name        string
	Certificate string // file
	Signer      string // file of the delegated certificate; "" when the CA's own key signs
	Key         string // PKCS#11 URI
	Token       string // name of the [token.*] that Key is in
	Profile     string // private, webpki
	Unissued    string // unknown, unauthorized, revoked, good
	Validity    time.Duration
	Nonce       string // echo, ignore
	ResponderID string // key, name
	CrlID       string // omit, include
	Padding     string // pkcs1, pss
	Accept      []string
	Sources     []sourceConfig
}

type sourceConfig struct {
	CRL, Index string // one of the two: a URL (CRL only) or an absolute path
	Delta      string // URL or absolute path, of a CRL only
	Refresh    time.Duration
	MaxSize    int64 // octets
}

// location names the source in statuses, messages and the database.
func (s sourceConfig) location() string {
	if s.Index != "" {
		return s.Index
	}
	return s.CRL
}

// limitsConfig bounds what strangers may make front do.
type limitsConfig struct {
	Body        int // octets of a POST body
	Path        int // octets of a GET path
	Requests    int // certificates asked about in one request
	Connections int // open at once, over all listeners
	Waiting     int // questions that wait for a signature
}

func (c *config) issuer(name string) *issuerConfig {
	for _, i := range c.Issuers {
		if i.Name == name {
			return i
		}
	}
	return nil
}

func (c *config) token(name string) *tokenConfig {
	for _, t := range c.Tokens {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// tokensInUse are those that signer needs: of issuers, and of the audit log.
func (c *config) tokensInUse() []string {
	var names []string
	for _, i := range c.Issuers {
		names = append(names, i.Token)
	}
	if c.AuditKey != "" {
		names = append(names, c.AuditToken)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// The places of contract.md, "Files".
func (c *config) keeperDir() string    { return filepath.Join(c.State, "keeper") }
func (c *config) database() string     { return filepath.Join(c.State, "keeper", "ocspd.db") }
func (c *config) keeperLog() string    { return filepath.Join(c.State, "keeper", "log") }
func (c *config) generations() string  { return filepath.Join(c.State, "gen") }
func (c *config) signerDir() string    { return filepath.Join(c.State, "signer") }
func (c *config) signerLog() string    { return filepath.Join(c.State, "signer", "log") }
func (c *config) answersDir() string   { return filepath.Join(c.State, "signer", "answers") }
func (c *config) signerSocket() string { return filepath.Join(c.Run, "signer.sock") }
func (c *config) keeperSocket() string { return filepath.Join(c.Run, "keeper.sock") }
func (c *config) feedSocket() string   { return filepath.Join(c.Run, "feed.sock") }
func (c *config) dialerSocket() string { return filepath.Join(c.Run, "dialer.sock") }
