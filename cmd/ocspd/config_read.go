package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"ocspd/hardening"
)

const (
	maxConfigFile = 1 << 20 // octets
	day           = 24 * time.Hour
)

// findings are what `accept` may name: defects of a CA certificate or of a key's attributes that a token or an old CA
// cannot help. Any other finding is never accepted.
var findings = []string{
	"ca-without-keyusage", // a v3 CA certificate without keyUsage, from before RFC 10007
	acceptPartition,       // the distribution points that the sources name are all that the CA has
	"key-not-local",       // CKA_LOCAL is false, or the token cannot say
	"key-not-sensitive", "key-not-always-sensitive", "key-extractable", "key-not-never-extractable",
	"key-not-private", "key-copyable", "key-modifiable", "key-generation-unknown",
	"key-can-decrypt", "key-can-unwrap", "key-can-derive", "key-can-decapsulate", "key-can-sign-recover",
}

// readConfig reads the configuration and the issuers.d beside it, and judges every value, from the text alone: no file
// that it names is opened. What is wrong comes back all at once, as a *configError.
func readConfig(path string) (*config, error) {
	d := &diagnostics{}
	c, root, err := readHead(path, d)
	if err != nil {
		return nil, err
	}
	c.readListen(root.table("listen"))
	c.readLimits(root.table("limits"))
	c.readHardening(root.table("hardening"))
	c.readAudit(root.table("audit"))
	places := map[string]place{}
	c.readIssuers(root, places)
	root.done()

	files, err := issuerFiles(path)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		t, err := readTOML(f, d)
		if err != nil {
			return nil, err
		}
		if t != nil {
			c.readIssuers(t, places)
			t.doneBecause("; a file of issuers.d holds [issuer.NAME] and [[issuer.NAME.source]] only")
		}
	}
	c.Warnings = lines("warning", d.warnings)
	return c, d.err()
}

// readTokens reads what the verbs about tokens and keys need: state, run, the tokens and the audit log. The rest must be TOML, no more:
// keys are made before there is a certificate to configure.
func readTokens(path string) (*config, error) {
	d := &diagnostics{}
	c, root, err := readHead(path, d)
	if err != nil {
		return nil, err
	}
	c.readAudit(root.table("audit")) // what is done to a key goes into the log
	c.Warnings = lines("warning", d.warnings)
	return c, d.err()
}

// readHead reads the main file as far as readTokens needs it. The table it returns is the whole file.
func readHead(path string, d *diagnostics) (*config, *table, error) {
	file, err := filepath.Abs(path)
	if err != nil {
		return nil, nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	root, err := readTOML(path, d)
	if err != nil {
		return nil, nil, err
	}
	if root == nil {
		return nil, nil, d.err()
	}
	c := &config{File: file, State: root.path("state", "/var/lib/ocspd"), Run: root.path("run", "/run/ocspd")}
	for _, key := range []string{"state", "run"} {
		if root.given(key) {
			root.require(key, "the name of a folder")
		}
	}
	if c.State == c.Run && c.State != "" {
		root.errorf("run", "is the same directory as state; what is in run does not survive a restart")
	}
	for _, t := range root.children("token") {
		c.readToken(t)
	}
	return c, root, nil
}

// readTOML reads one file into a tree. A file that is not TOML gives a nil table and a diagnostic.
func readTOML(path string, d *diagnostics) (*table, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("configuration %s: does not exist; name it with --config, or begin with 'ocspd config example'", path)
	} else if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("configuration: %w; each role reads it as a user of its own, and it holds no secret: let all read it ('chmod a+r')", err)
	} else if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigFile+1))
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if len(data) > maxConfigFile {
		return nil, fmt.Errorf("configuration %s: larger than 1 MiB; issuers can be spread over issuers.d", path)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	root := parseTOML(path, data, d)
	if root == nil {
		return nil, nil
	}
	return &table{d: d, node: root, dir: dir}, nil
}

// issuerFiles lists issuers.d/*.toml beside the configuration, sorted, without hidden files.
func issuerFiles(path string) ([]string, error) {
	dir := filepath.Join(filepath.Dir(path), "issuers.d")
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	var files []string
	for _, e := range list {
		if strings.HasSuffix(e.Name(), ".toml") && !strings.HasPrefix(e.Name(), ".") {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, nil
}

func (c *config) readListen(t *table) {
	defer t.done()
	var taken []listener
	c.Listen.OCSP = t.addresses("ocsp", []string{"0.0.0.0:2560", "[::]:2560"}, &taken)
	c.Listen.HTTP = t.addresses("http", nil, &taken)
	if e := t.node.find("ocsp"); e != nil && len(e.value.items) == 0 && len(c.Listen.HTTP) == 0 {
		t.errorf("ocsp", "leaves no address to answer on; name one here or in http")
	}
	c.Listen.Admin = t.text("admin", "127.0.0.1:2561")
	if c.Listen.Admin == "" {
		return
	}
	if a, ok := t.address("admin", t.place("admin"), c.Listen.Admin, &taken); ok && !a.IsLoopback() {
		t.errorf("admin", "%s is no loopback address; the status page has no access control, so that only this machine may reach it", a)
	}
}

func (c *config) readLimits(t *table) {
	defer t.done()
	c.Limits = limitsConfig{
		Body:        int(t.size("body", 32<<10, 1<<10, 64<<10)),
		Path:        int(t.size("path", 8<<10, 1<<10, 64<<10)),
		Requests:    t.number("requests", 100, 1, 255),
		Connections: t.number("connections", 4096, 16, 1<<20),
		Waiting:     t.number("waiting", 1024, 1, 1<<16),
	}
}

func (c *config) readHardening(t *table) {
	defer t.done()
	for _, n := range t.words("require", hardening.Measures) {
		c.Hardening.Require = append(c.Hardening.Require, n.text)
	}
	c.Hardening.Seccomp = t.word("seccomp", "enforce", "enforce", "log")
	for _, n := range t.words("module", profiles) {
		c.Hardening.Module = append(c.Hardening.Module, n.text)
	}
}

func (c *config) readAudit(t *table) {
	defer t.done()
	var attrs map[string]string
	if c.AuditKey, attrs = t.keyURI("key"); attrs != nil {
		c.AuditToken = c.tokenOf(t, attrs)
	}
	for _, n := range t.words("accept", findings) {
		c.AuditAccept = append(c.AuditAccept, n.text)
		t.d.warnf(n.at, "%s: %s is accepted, which weakens what the audit log proves", t.at("accept"), n.text)
	}
	c.AuditAnswers = t.size("answers", 1<<30, 8<<20, 1<<40)
}

func (c *config) readToken(t *table) {
	defer t.done()
	name := t.checkedName()
	t.require("uri", "a pkcs11: URI with module-path, and token or serial")
	t.require("pin", `"file:PATH" or "credential:NAME"`)
	uri, attrs := t.uri("uri", []string{"token", "serial"}, []string{"module-path"})
	if attrs != nil && (attrs["module-path"] == "" || attrs["token"] == "" && attrs["serial"] == "") {
		t.errorf("uri", "needs module-path, the PKCS#11 module's file, and token or serial, which select the token: "+
			`"pkcs11:token=ocsp?module-path=/usr/lib/softhsm/libsofthsm2.so"`)
	}
	for _, other := range c.Tokens {
		if attrs != nil && uri == other.URI {
			t.errorf("uri", "is that of token.%s; two logins to one token would endanger its PIN", other.Name)
		}
	}
	c.Tokens = append(c.Tokens, &tokenConfig{
		Name: name, URI: uri, PIN: t.pin("pin"), InitArgs: t.text("init_args", ""), Environment: c.readEnvironment(t), Paths: t.paths("paths"), MaxSessions: t.number("max_sessions", 4, 1, 64),
		Assurance: t.text("assurance", ""), Firmware: t.text("firmware", ""), Ceremony: t.text("ceremony", ""), Copies: t.text("copies", ""),
	})
}

var environmentName = regexp.MustCompile(`^[A-Z_][A-Z0-9_]*$`)

// readEnvironment takes what a module reads from its environment, such as SoftHSM where its tokens lie. What steers the loader of
// programs is not for a module, and one process has one environment.
func (c *config) readEnvironment(t *table) []string {
	var list []string
	for _, n := range t.strings("environment", nil) {
		name, value, ok := strings.Cut(n.text, "=")
		switch {
		case !ok || !environmentName.MatchString(name):
			t.d.errorf(n.at, "%s: %q is not NAME=value, with NAME in capitals", t.at("environment"), n.text)
			continue
		case strings.HasPrefix(name, "LD_"):
			t.d.errorf(n.at, "%s: %s would change which code is loaded", t.at("environment"), name)
			continue
		}
		for _, other := range c.Tokens {
			for _, theirs := range other.Environment {
				if strings.HasPrefix(theirs, name+"=") && theirs != n.text {
					t.d.errorf(n.at, "%s: token.%s gives %s another value than %q; the modules share one environment", t.at("environment"), other.Name, name, value)
				}
			}
		}
		list = append(list, n.text)
	}
	return list
}

// readIssuers reads the issuers of one file; places remembers where each one was defined.
func (c *config) readIssuers(root *table, places map[string]place) {
	for _, t := range root.children("issuer") {
		name := t.checkedName()
		if first, ok := places[name]; ok {
			t.d.errorf(t.node.at, "%s is already defined, at %v", t.name, first)
			continue
		}
		places[name] = t.node.at
		c.Issuers = append(c.Issuers, c.readIssuer(name, t))
	}
}

func (c *config) readIssuer(name string, t *table) *issuerConfig {
	defer t.done()
	i := &issuerConfig{
		Name:        name,
		Certificate: t.path("certificate", ""),
		Signer:      t.path("signer", ""),
		Profile:     t.word("profile", "private", "private", "webpki"),
		Nonce:       t.word("nonce", "echo", "echo", "ignore"),
		ResponderID: t.word("responder_id", "key", "key", "name"),
		CrlID:       t.word("crl_id", "omit", "omit", "include"),
		Padding:     t.word("padding", "pkcs1", "pkcs1", "pss"),
	}
	t.require("certificate", "the file of the CA's certificate, PEM or DER")
	for _, other := range c.Issuers {
		if i.Certificate != "" && i.Certificate == other.Certificate {
			t.errorf("certificate", "is that of issuer.%s; no question could tell the two apart", other.Name)
		}
	}
	if i.Certificate != "" && i.Certificate == i.Signer {
		t.errorf("signer", "is the CA's own certificate; leave signer out where the CA's key signs")
	}
	var attrs map[string]string
	t.require("key", "the pkcs11: URI of the key that signs")
	if i.Key, attrs = t.keyURI("key"); attrs != nil {
		i.Token = c.tokenOf(t, attrs)
	}
	for _, st := range t.tables("source") {
		s := readSource(st)
		if slices.ContainsFunc(i.Sources, func(e sourceConfig) bool { return e.location() == s.location() && s.location() != "" }) {
			t.d.errorf(st.node.at, "%s: the location is that of an earlier source of this issuer", st.name)
		}
		i.Sources = append(i.Sources, s)
	}
	for _, n := range t.words("accept", findings) {
		i.Accept = append(i.Accept, n.text)
		t.d.warnf(n.at, "%s: %s is accepted, which weakens what an answer of this issuer proves", t.at("accept"), n.text)
	}
	lists := slices.ContainsFunc(i.Sources, func(s sourceConfig) bool { return s.Index != "" })
	i.readUnissued(t, lists)
	if i.Profile != "webpki" {
		i.Validity = t.duration("validity", day, time.Minute, 3650*day)
		return i
	}
	i.Validity = t.duration("validity", 4*day, 8*time.Hour, 7*day)
	if !lists {
		t.errorf("profile", "webpki must prove that a certificate was issued (CA/Browser Forum TLS BR 4.9.10), and a CRL does not say so: add a source with an index")
	}
	if len(i.Accept) > 0 {
		t.errorf("accept", "must be empty with profile webpki")
	}
	return i
}

// readUnissued decides what is said of a serial that no source names. A default is safe only where a list of what was
// issued exists: without one, silence could mean "good" or "never heard of it", and that is the owner's to say.
func (i *issuerConfig) readUnissued(t *table, lists bool) {
	i.Unissued = t.word("unissued", "unknown", "unknown", "unauthorized", "revoked", "good")
	good := i.Unissued == "good"
	switch {
	case i.Profile == "webpki" && (good || i.Unissued == "revoked"):
		t.errorf("unissued", "must be unknown or unauthorized with profile webpki")
	case !t.given("unissued") && !lists && i.Profile != "webpki":
		t.errorf("unissued", `is missing, and no source lists what was issued, so that you must say what a serial means that no CRL names: `+
			`"good" (all that is not revoked, forged serials too, is called good) or "unknown" (nothing is ever called good)`)
	case good && lists:
		t.d.warnf(t.place("unissued"), "%s: good is said of serials, too, that the index does not list", t.at("unissued"))
	}
}

// tokenOf finds the token that a key's URI means: the one that it names, or token.main.
func (c *config) tokenOf(t *table, key map[string]string) string {
	if key["token"] == "" && key["serial"] == "" {
		if c.token("main") == nil {
			t.errorf("key", "is in token.main, which is not configured; define [token.main], or name another with token=LABEL in the URI")
		}
		return "main"
	}
	var found []string
	for _, tok := range c.Tokens {
		attrs, _ := uriAttributes(tok.URI)
		if (key["token"] == "" || key["token"] == attrs["token"]) && (key["serial"] == "" || key["serial"] == attrs["serial"]) {
			found = append(found, tok.Name)
		}
	}
	switch len(found) {
	case 1:
		return found[0]
	case 0:
		t.errorf("key", "names a token by token or serial whose like no [token.NAME] has in its uri")
	default:
		t.errorf("key", "could be in any of the tokens %s; add serial to the URIs", strings.Join(found, ", "))
	}
	return ""
}

// readSource reads one [[issuer.NAME.source]].
func readSource(t *table) sourceConfig {
	defer t.done()
	s := sourceConfig{CRL: t.location("crl"), Delta: t.location("delta"), Index: t.path("index", "")}
	crl, index := t.text("crl", "") != "", t.text("index", "") != ""
	if crl == index {
		t.d.errorf(t.node.at, "%s: needs one of crl and index", t.name)
	}
	if strings.Contains(t.text("index", ""), "://") {
		t.errorf("index", "is a file on this machine: an index is not signed, so that one from the network proves nothing")
	}
	if s.Delta != "" && (index || s.Delta == s.CRL) {
		t.errorf("delta", "is a CRL beside the one that crl names, and goes with no index")
	}
	preset := int64(64 << 20)
	if index {
		preset = 1 << 30
	}
	s.Refresh = t.duration("refresh", 15*time.Minute, 10*time.Second, day)
	s.MaxSize = t.size("max_size", preset, 1<<10, 16<<30)
	return s
}
