package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ocspd/hsm"
	"ocspd/responder"
)

const testPIN = "2468-secret"

// tokenHouse is a configuration with a SoftHSM token and a CA made by openssl.
type tokenHouse struct {
	t   testing.TB
	dir string
}

func newTokenHouse(t testing.TB) *tokenHouse {
	t.Helper()
	h := &tokenHouse{t, t.TempDir()}
	h.write("softhsm2.conf", fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", h.dir))
	t.Setenv("SOFTHSM2_CONF", h.path("softhsm2.conf"))
	h.exec("", "softhsm2-util", "--init-token", "--free", "--label", "ocsp", "--pin", testPIN, "--so-pin", "so-"+testPIN)
	h.write("pin", testPIN+"\n")
	h.exec("", "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=class1",
		"-keyout", "class1.key", "-out", "class1.pem", "-days", "30", "-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature")
	h.write("ext", "keyUsage=critical,digitalSignature\nextendedKeyUsage=OCSPSigning\nnoCheck=yes\nauthorityKeyIdentifier=keyid\n")
	h.write("index.txt", "")
	h.write("ocspd.toml", `state = "state"
run = "run"

[token.main]
uri = "pkcs11:token=ocsp?module-path=/usr/lib/softhsm/libsofthsm2.so"
pin = "file:pin"

[issuer.class1]
certificate = "class1.pem"
signer = "class1-ocsp.pem"
key = "pkcs11:object=class1-ocsp"
unissued = "unknown"

[[issuer.class1.source]]
index = "index.txt"
`)
	return h
}

func (h *tokenHouse) path(name string) string { return filepath.Join(h.dir, name) }

func (h *tokenHouse) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(h.path(name), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *tokenHouse) read(name string) string {
	h.t.Helper()
	b, err := os.ReadFile(h.path(name))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(b)
}

func (h *tokenHouse) exec(stdin, name string, args ...string) string {
	h.t.Helper()
	c := exec.Command(name, args...)
	c.Dir, c.Stdin = h.dir, strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// ocspd runs a verb and insists on its exit code and on words in what it says. It returns standard output.
func (h *tokenHouse) ocspd(code int, words string, args ...string) string {
	h.t.Helper()
	var stdout, stderr bytes.Buffer
	got := run(append([]string{"-c", h.path("ocspd.toml")}, args...), &stdout, &stderr)
	said := stdout.String() + stderr.String()
	if got != code {
		h.t.Fatalf("ocspd %v: exit %d, want %d\n%s", args, got, code, said)
	}
	for w := range strings.SplitSeq(words, "|") {
		if !strings.Contains(said, w) {
			h.t.Errorf("ocspd %v does not say %q:\n%s", args, w, said)
		}
	}
	if strings.Contains(said, testPIN) {
		h.t.Errorf("ocspd %v shows the PIN:\n%s", args, said)
	}
	return stdout.String()
}

func (h *tokenHouse) json(out string, v any) {
	h.t.Helper()
	if !strings.HasPrefix(out, "{\n  \"v\": 1,") {
		h.t.Errorf("\"v\": 1 is not first:\n%s", out)
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		h.t.Errorf("%v:\n%s", err, out)
	}
}

// certify has the CA certify a request.
func (h *tokenHouse) certify(csr, out string, options ...string) {
	h.t.Helper()
	h.write("request.pem", csr)
	args := []string{"x509", "-req", "-in", "request.pem", "-CA", "class1.pem", "-CAkey", "class1.key", "-CAcreateserial", "-days", "20", "-extfile", "ext", "-out", out}
	h.exec("", "openssl", append(args, options...)...)
}

func TestKeyLifeCycle(t *testing.T) {
	h := newTokenHouse(t)
	h.ocspd(1, "class1|no private key matches|it holds no private key", "token", "check")
	var made struct {
		Fingerprint string `json:"spki_sha256"`
		Type, URI   string
		Findings    []any
	}
	h.json(h.ocspd(0, "", "key", "generate", "class1-ocsp", "--type", "p256", "-o", "json"), &made)
	if made.Type != "p256" || made.URI != "pkcs11:object=class1-ocsp" || len(made.Findings) != 0 {
		t.Errorf("%+v", made)
	}
	h.ocspd(1, `label "class1-ocsp" is there already`, "key", "generate", "class1-ocsp", "--type", "p384")
	h.ocspd(0, "class1-ocsp|p256|"+made.Fingerprint+"|none", "key", "list")
	h.ocspd(0, "CKA_NEVER_EXTRACTABLE|no findings|OCSP-KEY-10", "key", "show", "class1-ocsp")
	var shown struct {
		Attributes []struct{ Name, Found, Expected, Rule string }
		Findings   []any
	}
	h.json(h.ocspd(0, "", "key", "show", "class1-ocsp", "-o", "json"), &shown)
	if len(shown.Attributes) < 20 || shown.Attributes[0].Name != "CKA_LABEL" {
		t.Errorf("%+v", shown)
	}
	var list struct{ Keys []struct{ Label string } }
	h.json(h.ocspd(0, "", "key", "list", "-o", "json"), &list)
	if len(list.Keys) != 1 || list.Keys[0].Label != "class1-ocsp" {
		t.Errorf("%+v", list)
	}

	csr := h.ocspd(0, "BEGIN CERTIFICATE REQUEST", "key", "csr", "class1-ocsp", "--subject", "/C=AT/O=Example/CN=class1 ocsp")
	got := h.exec(csr, "openssl", "req", "-verify", "-noout", "-subject", "-nameopt", "compat", "-text")
	for _, w := range []string{"verify OK", "/C=AT/O=Example/CN=class1 ocsp", "OCSP Signing", "OCSP No Check", "Digital Signature"} {
		if !strings.Contains(got, w) {
			t.Errorf("the request has no %q:\n%s", w, got)
		}
	}
	// What openssl takes the fingerprint of is what we do.
	h.write("public.pem", h.exec(csr, "openssl", "req", "-noout", "-pubkey"))
	h.exec("", "openssl", "pkey", "-pubin", "-in", "public.pem", "-outform", "DER", "-out", "public.der")
	if sum := h.exec("", "openssl", "dgst", "-sha256", "-r", "public.der"); !strings.HasPrefix(sum, made.Fingerprint) {
		t.Errorf("fingerprint %s, openssl %s", made.Fingerprint, sum)
	}

	h.certify(csr, "new.pem")
	h.ocspd(0, "nothing was written", "key", "install", h.path("new.pem"), "--issuer", "class1", "--dry-run")
	if _, err := os.Stat(h.path("class1-ocsp.pem")); err == nil {
		t.Error("--dry-run wrote the certificate")
	}
	h.ocspd(0, "installed in|ocspd reload", "key", "install", h.path("new.pem"), "--issuer", "class1")
	first := h.read("class1-ocsp.pem")
	if h.exec(first, "openssl", "x509", "-noout", "-serial") != h.exec(h.read("new.pem"), "openssl", "x509", "-noout", "-serial") {
		t.Error("another certificate was installed")
	}
	h.ocspd(0, "unchanged", "key", "install", h.path("new.pem"), "--issuer", "class1")
	h.certify(csr, "newer.pem", "-days", "25")
	h.ocspd(0, "installed in|kept as", "key", "install", h.path("newer.pem"), "--issuer", "class1")
	kept, err := filepath.Glob(h.path("class1-ocsp.pem.old-*"))
	if err != nil || len(kept) != 1 || h.read(filepath.Base(kept[0])) != first {
		t.Errorf("kept %v, %v", kept, err)
	}
	h.certify(csr, "other.pem") // ends on the day of the first one
	h.ocspd(0, "valid longer", "key", "install", h.path("other.pem"), "--issuer", "class1")
	h.ocspd(0, "installed", "key", "install", h.path("newer.pem"), "--issuer", "class1")
	if kept, _ = filepath.Glob(h.path("class1-ocsp.pem.old-*")); len(kept) != 3 {
		t.Errorf("kept %v", kept)
	}
	h.ocspd(0, "ok: signed and verified|class1", "token", "check", "main")

	h.ocspd(0, "", "key", "generate", "spare", "--type", "ed25519", "--id", "0a0b")
	h.ocspd(2, "no way back", "key", "destroy", "spare")
	h.ocspd(2, "nothing was destroyed", "key", "destroy", "spare", "--yes", made.Fingerprint)
	h.ocspd(1, "issuer class1 signs with", "key", "destroy", "class1-ocsp", "--yes", made.Fingerprint)
	h.json(h.ocspd(0, "", "key", "show", "spare", "-o", "json"), &made)
	h.ocspd(0, "is destroyed", "key", "destroy", "spare", "--yes", made.Fingerprint)
	h.ocspd(1, `holds "class1-ocsp"`, "key", "show", "spare")
}

// Each refused in one clear line, with nothing changed. OCSP-DEL-01, OCSP-DEL-02, OCSP-DEL-08, OCSP-KEY-03.
func TestKeyInstallRefuses(t *testing.T) {
	h := newTokenHouse(t)
	h.ocspd(0, "", "key", "generate", "class1-ocsp", "--type", "p256")
	h.ocspd(0, "", "key", "generate", "stranger", "--type", "p256")
	csr := h.ocspd(0, "", "key", "csr", "class1-ocsp")
	strangers := h.ocspd(0, "", "key", "csr", "stranger")
	h.write("class1-ocsp.pem", "what was there")

	h.certify(strangers, "stranger.pem")
	h.ocspd(1, "another key|OCSP-DEL-08|pkcs11:object=class1-ocsp", "key", "install", h.path("stranger.pem"), "--issuer", "class1")
	h.write("none", "keyUsage=critical,digitalSignature\n")
	h.certify(csr, "noeku.pem", "-extfile", "none")
	h.ocspd(1, "OCSPSigning|OCSP-DEL-01|nothing was changed", "key", "install", h.path("noeku.pem"), "--issuer", "class1")
	h.exec("", "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=class1", "-keyout", "twin.key", "-out", "twin.pem")
	h.certify(csr, "twin-signed.pem", "-CA", "twin.pem", "-CAkey", "twin.key")
	h.ocspd(1, "another key of the same name|OCSP-DEL-02", "key", "install", h.path("twin-signed.pem"), "--issuer", "class1")
	h.write("text.pem", "no certificate")
	h.ocspd(1, "text.pem", "key", "install", h.path("text.pem"), "--issuer", "class1")
	h.ocspd(1, "absent.pem", "key", "install", h.path("absent.pem"), "--issuer", "class1")
	h.ocspd(1, "issuer class9 is not in the configuration", "key", "install", h.path("noeku.pem"), "--issuer", "class9")
	h.ocspd(2, "--issuer is missing", "key", "install", h.path("noeku.pem"))

	// The key itself: extractable, under the label that the configuration names.
	h.certify(csr, "good.pem")
	h.write("ocspd.toml", strings.Replace(h.read("ocspd.toml"), "object=class1-ocsp", "object=loose", 1))
	h.exec("", "pkcs11-tool", "--module", "/usr/lib/softhsm/libsofthsm2.so", "--token-label", "ocsp", "--login", "--pin", testPIN,
		"--keypairgen", "--key-type", "EC:secp256r1", "--extractable", "--label", "loose", "--id", "05")
	loose := h.ocspd(0, "key-extractable", "key", "csr", "loose")
	h.certify(loose, "loose.pem")
	h.ocspd(1, "key-extractable|OCSP-KEY-03|nothing was changed", "key", "install", h.path("loose.pem"), "--issuer", "class1")
	h.ocspd(1, "must not be used as it is|key-extractable (OCSP-KEY-03): CKA_EXTRACTABLE is true, expected false", "token", "check")
	h.ocspd(0, "refused: key-extractable", "key", "show", "loose")
	if h.read("class1-ocsp.pem") != "what was there" {
		t.Error("a refused certificate was installed")
	}
}

func TestTokenVerbs(t *testing.T) {
	h := newTokenHouse(t)
	h.exec("", "softhsm2-util", "--init-token", "--free", "--label", "other", "--pin", testPIN, "--so-pin", testPIN)
	h.ocspd(0, "main|ocsp|SoftHSM v2|not configured|other", "token", "list")
	var list struct {
		Tokens []struct{ Name, State, Label, Serial string }
	}
	h.json(h.ocspd(0, "", "token", "list", "-o", "json"), &list)
	if len(list.Tokens) != 2 || list.Tokens[0].Name != "main" || list.Tokens[0].State != "ok" || list.Tokens[1].Label != "other" {
		t.Errorf("%+v", list)
	}
	h.ocspd(0, "CKF_LOGIN_REQUIRED|SoftHSM project|own word", "token", "info")
	var info struct{ Name, Label, Serial string }
	h.json(h.ocspd(0, "", "token", "info", "main", "-o", "json"), &info)
	if info.Label != "ocsp" || info.Serial == "" {
		t.Errorf("%+v", info)
	}
	h.ocspd(1, "no key on the token", "token", "bench")
	whole := h.read("ocspd.toml")
	tokensOnly := whole[:strings.Index(whole, "[issuer")] + "[issuer.broken]\n"
	h.write("ocspd.toml", tokensOnly)
	h.ocspd(0, "not whole yet|logged in|no key on it yet", "token", "check")
	h.write("ocspd.toml", whole)
	h.ocspd(0, "", "key", "generate", "one", "--type", "p256")
	h.ocspd(0, "SIGNATURES/S", "token", "bench", "--time", "30ms")
	h.ocspd(0, "", "key", "generate", "two", "--type", "p256")
	h.ocspd(2, "several keys", "token", "bench", "--time", "30ms")
	var bench struct{ Rates []struct{ Sessions int } }
	h.json(h.ocspd(0, "", "token", "bench", "--time", "30ms", "--key", "two", "-o", "json"), &bench)
	if len(bench.Rates) != 4 {
		t.Errorf("%+v", bench)
	}
	h.ocspd(1, "class1-ocsp|no private key matches|it holds|\"one\"", "token", "check")
	h.ocspd(1, "token nowhere is not in the configuration", "token", "info", "nowhere")
	h.ocspd(2, "--type is missing", "key", "generate", "x")
	h.ocspd(2, "use one of", "key", "generate", "x", "--type", "dsa")
	h.ocspd(2, "in hex", "key", "generate", "x", "--type", "p256", "--id", "xyz")
	h.ocspd(2, "only json", "key", "list", "-o", "yaml")
	h.ocspd(2, "unknown verb", "token", "explode")

	// Before there is an issuer: the tokens alone are enough.
	h.write("ocspd.toml", tokensOnly)
	h.ocspd(0, "not whole yet|\"one\"|\"two\"", "token", "check")

	h.write("ocspd.toml", strings.Replace(whole, "token=ocsp", "token=absent", 1))
	h.ocspd(0, "not found", "token", "list")
	h.ocspd(1, "no such token", "token", "check")
	h.write("ocspd.toml", strings.Replace(whole, "libsofthsm2.so", "absent.so", 1))
	h.ocspd(0, "no such file", "token", "list")
	h.ocspd(1, "absent.so|no such file", "key", "list")
}

// OCSP-KEY-18: one attempt, until a person says so.
func TestWrongPIN(t *testing.T) {
	h := newTokenHouse(t)
	h.ocspd(0, "unchanged", "token", "retry", "main")
	h.write("pin", "wrong\n")
	h.ocspd(1, "PIN refused|CKR_PIN_INCORRECT|ocspd token retry main", "token", "check")
	h.write("pin", testPIN)
	for _, verb := range [][]string{{"token", "check"}, {"key", "list"}, {"key", "generate", "x", "--type", "p256"}, {"token", "bench"}} {
		h.ocspd(1, "PIN refused earlier|ocspd token retry main", verb...)
	}
	h.ocspd(0, "PIN refused", "token", "list")
	h.ocspd(0, "SoftHSM", "token", "info")
	h.ocspd(0, "tries the PIN again, once", "token", "retry", "main")
	h.ocspd(0, "", "key", "list")
}

// OCSP-KEY-19: what was destroyed, that it is gone by a look afterwards, and where else it may still be.
func TestKEY19Destroyed(t *testing.T) {
	h := newTokenHouse(t)
	var made struct {
		Fingerprint string `json:"spki_sha256"`
	}
	h.json(h.ocspd(0, "", "key", "generate", "gone", "--type", "p256", "-o", "json"), &made)
	h.ocspd(0, "", "key", "generate", "stays", "--type", "p256")
	h.ocspd(0, made.Fingerprint+"|no private key of its label and id is left|copies of this token's keys, by the configuration: not stated|OCSP-KEY-19",
		"key", "destroy", "gone", "--yes", made.Fingerprint)
	left := h.exec("", "pkcs11-tool", "--module", softHSM, "--token-label", "ocsp", "--login", "--pin", testPIN, "--list-objects")
	if strings.Contains(left, "gone") || strings.Count(left, "stays") != 2 {
		t.Errorf("left on the token:\n%s", left)
	}
	h.write("ocspd.toml", strings.Replace(h.read("ocspd.toml"), "pin = ", "copies = \"wrapped, in the safe of the other site\"\npin = ", 1))
	h.json(h.ocspd(0, "", "key", "show", "stays", "-o", "json"), &made)
	h.ocspd(0, "wrapped, in the safe of the other site; the key is gone for good when it is destroyed there too", "key", "destroy", "stays", "--yes", made.Fingerprint)
}

// OCSP-KEY-20: somebody changes how the token keeps a key that is in use: an alarm, which says what.
func TestKEY20AttributeDrift(t *testing.T) {
	h := newTokenHouse(t)
	tool := func(options ...string) {
		h.exec("", "pkcs11-tool", append([]string{"--module", softHSM, "--token-label", "ocsp", "--login", "--pin", testPIN}, options...)...)
	}
	tool("--keypairgen", "--key-type", "EC:secp256r1", "--label", "class1-ocsp", "--id", "05") // others leave a key modifiable
	token, err := hsm.Open(hsm.Config{Name: "main", URI: "pkcs11:token=ocsp?module-path=" + softHSM, MaxSessions: 2,
		PIN: func() ([]byte, error) { return []byte(testPIN), nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer token.Close()
	key, err := token.Find("pkcs11:object=class1-ocsp")
	if err != nil {
		t.Fatal(err)
	}
	s := &signerRole{role: &role{alarms: newAlarmSet(slog.New(slog.NewTextHandler(t.Output(), nil)))}}
	s.state.Store(&signerState{issuers: []*signedIssuer{{config: &issuerConfig{Name: "class1"}, usable: true, authority: &responder.Authority{Key: key}}}})
	raised := func() string {
		for _, a := range s.alarms.list() {
			if a.Name == alarmKeyChanged && a.Issuer == "class1" {
				return a.Text
			}
		}
		return ""
	}
	s.checkAttributes(false) // as it was when it was taken
	s.checkAttributes(true)
	if text := raised(); text != "" {
		t.Errorf("nothing has changed: %s", text)
	}
	tool("--set-id", "06", "--type", "privkey", "--label", "class1-ocsp")
	s.checkAttributes(false)
	if text := raised(); text != "" {
		t.Errorf("it was not to compare: %s", text)
	}
	s.checkAttributes(true)
	if text := raised(); !strings.Contains(text, "CKA_ID was 05 and is 06") || !strings.Contains(text, "OCSP-KEY-20") {
		t.Errorf("after the change: %q", text)
	}
	tool("--set-id", "05", "--type", "privkey", "--label", "class1-ocsp")
	s.checkAttributes(true)
	if text := raised(); text != "" {
		t.Errorf("it is as it was: %s", text)
	}
}

func TestReadPIN(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		content string
		mode    os.FileMode
		want    string
		err     string
	}{
		{"1234\n", 0o600, "1234", ""},
		{"1234", 0o400, "1234", ""},
		{"12 34\r\n", 0o640, "12 34", ""},
		{" 1234 \n", 0o600, " 1234 ", ""},
		{"1234\n", 0o644, "", "chmod"},
		{"1234\n", 0o660, "", "chmod"},
		{"1234\n", 0o601, "", "chmod"},
		{"", 0o600, "", "is empty"},
		{"\n", 0o600, "", "is empty"},
		{"1234\n\n", 0o600, "", "more than one line"},
		{"1234\n5678\n", 0o600, "", "more than one line"},
		{strings.Repeat("1", maxPIN+1), 0o600, "", "larger than"},
	} {
		path := filepath.Join(dir, "pin")
		os.Remove(path)
		if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		t.Setenv("CREDENTIALS_DIRECTORY", dir)
		for _, source := range []string{"file:" + path, "credential:pin"} {
			got, err := (&tokenConfig{PIN: source}).readPIN()
			if string(got) != c.want || (err == nil) != (c.err == "") || err != nil && (!strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "1234")) {
				t.Errorf("%s %q %o: %q, %v", source, c.content, c.mode, got, err)
			}
		}
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	for source, word := range map[string]string{
		"file:" + dir + "/absent": "no such file", "file:" + dir: "not a regular file", "file:" + fifo: "not a regular file",
		"credential:pin": "systemd unit", "1234": "must say",
	} {
		if _, err := (&tokenConfig{PIN: source}).readPIN(); err == nil || !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), "1234") {
			t.Errorf("%s: %v", source, err)
		}
	}
}

// A sealed PIN goes from systemd-creds to the login by a pipe, in this process or in one that it starts; it can be read once. test/users.sh has the real
// systemd-creds and the change of the user.
func TestUnseal(t *testing.T) {
	const pinFD = "OCSPD_TEST_PIN" // says that this is the process that was started
	token := &tokenConfig{Name: "main", PIN: "credential:pin"}
	if os.Getenv(pinFD) != "" {
		token.unseal()
		pin, err := token.readPIN()
		fmt.Printf("passed %d octets, %v\n", len(pin), err)
		return
	}
	dir := t.TempDir()
	program := func(text string) {
		if err := os.WriteFile(filepath.Join(dir, "systemd-creds"), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	sealed, plain := filepath.Join(dir, "sealed"), filepath.Join(dir, "plain")
	defer func(s, p []string) { sealedStores, plainStores = s, p }(sealedStores, plainStores)
	sealedStores, plainStores = []string{filepath.Join(dir, "none"), sealed}, []string{plain}
	for _, d := range []string{sealed, plain} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	unsealed := func() *tokenConfig {
		t.Helper()
		f, err := unsealCredential("pin")
		return &tokenConfig{Name: "main", PIN: "credential:pin", Unsealed: f, UnsealErr: err}
	}

	if _, err := unsealed().readPIN(); err == nil || !strings.Contains(err.Error(), "systemd-creds encrypt --name=pin - "+filepath.Join(dir, "none", "ocspd.pin")) {
		t.Errorf("no credential: %v", err)
	}
	in := filepath.Join(plain, "ocspd.pin")
	if err := os.WriteFile(in, []byte("4321\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if pin, err := unsealed().readPIN(); err != nil || string(pin) != "4321" {
		t.Errorf("a credential that is not sealed: %q, %v", pin, err)
	}
	if err := os.WriteFile(filepath.Join(sealed, "ocspd.pin"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	program(`[ "$*" = "decrypt --name=pin ` + sealed + `/ocspd.pin -" ] && [ -p /dev/stdout ] && echo 1234`)
	one := unsealed()
	if pin, err := one.readPIN(); err != nil || string(pin) != "1234" {
		t.Errorf("a sealed credential: %q, %v", pin, err)
	}
	if _, err := one.readPIN(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read a second time: %v", err)
	}
	c := exec.Command(os.Args[0], "-test.run=^TestUnseal$")
	c.Env = append(os.Environ(), pinFD+"=1")
	other := &tokenConfig{Name: "other", PIN: "file:/none"}
	if err := passPINs(c, other, unsealed()); err != nil {
		t.Fatal(err)
	}
	if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "passed 4 octets, <nil>") || strings.Contains(strings.Join(c.Env, " "), "1234") {
		t.Errorf("passed on: %v: %s", err, out)
	}
	program("echo sealed elsewhere >&2; exit 1")
	bad := unsealed()
	if _, err := bad.readPIN(); err == nil || !strings.Contains(err.Error(), "sealed elsewhere") || !strings.Contains(err.Error(), "seal it anew") {
		t.Errorf("cannot be unsealed: %v", err)
	}
	if err := passPINs(exec.Command("true"), bad); err == nil || !strings.Contains(err.Error(), "token main: PIN: ") {
		t.Errorf("cannot be unsealed, nor passed on: %v", err)
	}
}

// openssl writes the same DER for the same text.
func TestParseSubject(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	if out, err := exec.Command("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, s := range []string{"/CN=a", "/C=AT/ST=Wien/L=Wien/O=Ex \\/ ample/OU=x/CN=käse", "/DC=org/DC=example/CN=o\\+c", "/CN=a=b/emailAddress=a@example.org/serialNumber=12-3", `/CN=a\\b`} {
		der, err := exec.Command("openssl", "req", "-new", "-key", key, "-utf8", "-subj", s, "-outform", "DER").Output()
		if err != nil {
			t.Fatal(err)
		}
		request, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseSubject(s)
		if err != nil || !bytes.Equal(got, request.RawSubject) {
			t.Errorf("%s: %x, %v; openssl %x", s, got, err, request.RawSubject)
		}
	}
	for s, word := range map[string]string{
		"": "slash", "CN=a": "slash", "/": "no =", "/CN=": "characters", "/X=a": "not known", "/C=at": "capital", "/C=AUT": "characters", "/CN=a/b": "no =",
		"/CN=" + strings.Repeat("x", 65): "characters", "/CN=a\nb": "characters", "/DC=ä": "cannot have", "/serialNumber=a_b": "cannot have", "/CN=\xff": "UTF-8",
	} {
		if der, err := parseSubject(s); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: %x, %v, want %q", s, der, err, word)
		}
	}
}
