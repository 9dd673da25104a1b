package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ocspd/hsm"
)

// stated is all that the operator can say of a SoftHSM token.
const stated = `assurance = "none"
firmware = "2.6"
ceremony = "test"
copies = "none"
`

// issue gives an issuer of the house a key's certificate, without the checks of `key install`.
func (h *tokenHouse) issue(issuer, label string) {
	h.t.Helper()
	h.certify(h.ocspd(0, "", "key", "csr", label), issuer+"-ocsp.pem")
}

// report makes a report and reads it.
func (h *tokenHouse) report(code int, words string) *custodyReport {
	h.t.Helper()
	if err := os.Chmod(h.dir, 0o700); err != nil { // it is the folder of the token, too
		h.t.Fatal(err)
	}
	out := h.ocspd(code, words, "custody", "report", "-o", "json")
	h.json(out, new(any))
	r, err := parseCustody([]byte(out))
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// pkcs11Tool makes what ocspd would not make.
func (h *tokenHouse) pkcs11Tool(args ...string) {
	h.t.Helper()
	h.exec("", "pkcs11-tool", append([]string{"--module", softHSM, "--token-label", "ocsp", "--login", "--pin", testPIN}, args...)...)
}

func (h *tokenHouse) configure(from, to string) {
	h.t.Helper()
	text := h.read("ocspd.toml")
	if strings.Count(text, from) != 1 {
		h.t.Fatalf("%q is not once in %s", from, text)
	}
	h.write("ocspd.toml", strings.Replace(text, from, to, 1))
}

// A key made and certified as it should be: no finding, and the three forms say the same.
func TestCustodyReport(t *testing.T) {
	h := newTokenHouse(t)
	h.ocspd(0, "", "key", "generate", "class1-ocsp", "--type", "p256")
	h.issue("class1", "class1-ocsp")
	r := h.report(0, "")
	if len(r.Data.Findings) > 0 || r.Data.Verdict.Word != custodyIncomplete || len(r.Proofs) != 1 {
		t.Errorf("%+v, %+v, %d proofs", r.Data.Findings, r.Data.Verdict, len(r.Proofs))
	}
	// OCSP-KEY-01, OCSP-KEY-12, OCSP-KEY-13: what nobody stated is told as missing; a software token is never as it must be.
	var gaps []string
	for _, g := range r.Data.Gaps {
		gaps = append(gaps, g.Rule)
	}
	if d := cmp.Diff([]string{"OCSP-KEY-01", "OCSP-KEY-01", "OCSP-KEY-01", "OCSP-KEY-13", "OCSP-KEY-12", "OCSP-AUD-03", "OCSP-AUD-03"}, gaps); d != "" {
		t.Error(d)
	}
	h.configure("pin = \"file:pin\"\n", "pin = \"file:pin\"\n"+stated)
	if r = h.report(0, ""); len(r.Data.Gaps) != 3 || !strings.Contains(r.Data.Gaps[0].Text, "software token") {
		t.Errorf("%+v", r.Data.Gaps)
	}
	h.ocspd(0, "SOFTWARE TOKEN|Incomplete|CKA_NEVER_EXTRACTABLE|CKR_KEY_FUNCTION_NOT_PERMITTED|self-reported", "custody", "report")
	page := h.path("report.html")
	if out := h.ocspd(0, "Incomplete", "custody", "report", "--out", page); out != "" {
		t.Errorf("with --out, on standard output: %s", out)
	}
	if info, err := os.Stat(page); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	text := h.read("report.html")
	for _, w := range []string{"is a software token", "self-reported", "Self-reported by PKCS#11", "What this report does not show", "no attestation", "custody verify report.html", "<svg", "as expected"} {
		if !strings.Contains(strings.ToLower(text), strings.ToLower(w)) {
			t.Errorf("the page has no %q", w)
		}
	}
	// One file, no script that runs, nothing to fetch.
	if bad := regexp.MustCompile(`(?i)<script(?: [^>]*)?>|\b(src|href|action|onload|onclick)\s*=|url\(|@import`).FindAllString(text, -1); len(bad) != 1 || !strings.Contains(bad[0], `type="application/json"`) {
		t.Errorf("the page has %q", bad)
	}
	h.ocspd(0, "ok|verdict: Incomplete", "custody", "verify", page)
	h.ocspd(2, "html, json or text", "custody", "report", "-o", "pdf")
	h.ocspd(1, "no such file", "custody", "verify", h.path("nothing"))
	h.ocspd(1, "neither a custody report", "custody", "verify", h.path("class1.pem"))
	h.ocspd(1, "ocspd", "custody", "report", "--out", h.path("no/such/folder/report.html"))
}

// What only root may read comes from root's process, everything else from that of the signer's user; together they are one report.
func TestCustodyTwoProcesses(t *testing.T) {
	h := newTokenHouse(t)
	h.ocspd(0, "", "key", "generate", "class1-ocsp", "--type", "p256")
	h.issue("class1", "class1-ocsp")
	cfg, err := readConfig(h.path("ocspd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	facts, err := json.Marshal((&app{}).custodyHost(cfg, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		code  int
		words string
		facts string
	}{{0, "", string(facts)}, {1, "facts of the machine", "{"}, {1, "the configuration changed meanwhile", `{"tokens":[]}`}} {
		h.write("facts", c.facts)
		stdin, err := os.Open(h.path("facts"))
		if err != nil {
			t.Fatal(err)
		}
		defer stdin.Close()
		old := os.Stdin
		os.Stdin = stdin
		out := h.ocspd(c.code, c.words, "custody", "report", "--inner")
		os.Stdin = old
		if c.code == 0 {
			h.write("report.json", out)
			h.ocspd(0, "signed the challenge|octet for octet as it is written", "custody", "verify", h.path("report.json"))
		}
	}
}

// Each way in which a key can be less than it must be is a finding with its rule, what was found and what is right.
func TestKEY15CustodyFindings(t *testing.T) {
	generate := []string{"--keypairgen", "--key-type", "EC:prime256v1", "--label", "class1-ocsp", "--id", "01", "--private", "--sensitive"}
	for _, c := range []struct {
		name string
		make func(h *tokenHouse)
		want []string // name, rule, attribute, found, expected; those that count, in no order
	}{
		{"OCSP-KEY-03 extractable, OCSP-KEY-04 over-powered", func(h *tokenHouse) {
			h.pkcs11Tool(append(generate, "--extractable", "--usage-sign", "--usage-derive")...)
			h.issue("class1", "class1-ocsp")
		}, []string{
			"key-extractable OCSP-KEY-03 CKA_EXTRACTABLE true false", "key-not-never-extractable OCSP-KEY-03 CKA_NEVER_EXTRACTABLE false true",
			"key-can-derive OCSP-KEY-04 CKA_DERIVE true false", "key-can-decrypt OCSP-KEY-04 CKA_DECRYPT true false", "key-can-unwrap OCSP-KEY-04 CKA_UNWRAP true false",
			"key-can-sign-recover OCSP-KEY-04 CKA_SIGN_RECOVER true false",
			"key-probe-derivekey OCSP-KEY-04 C_DeriveKey: derive a secret with a public key that was made up here the token did it the token refuses",
		}},
		{"OCSP-KEY-02 imported", func(h *tokenHouse) {
			h.exec("", "openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "import.pem")
			h.exec("", "softhsm2-util", "--import", "import.pem", "--token", "ocsp", "--label", "class1-ocsp", "--id", "01", "--pin", testPIN)
			h.issue("class1", "class1-ocsp")
		}, []string{
			"key-not-local OCSP-KEY-02 CKA_LOCAL false true", "key-not-always-sensitive OCSP-KEY-03 CKA_ALWAYS_SENSITIVE false true",
			"key-not-never-extractable OCSP-KEY-03 CKA_NEVER_EXTRACTABLE false true", "key-can-sign-recover OCSP-KEY-04 CKA_SIGN_RECOVER true false",
		}},
		{"OCSP-KEY-15 unknown, OCSP-KEY-08 wrapping", func(h *tokenHouse) {
			h.ocspd(0, "", "key", "generate", "class1-ocsp", "--type", "p256", "--id", "01")
			h.issue("class1", "class1-ocsp")
			h.ocspd(0, "", "key", "generate", "stray", "--type", "p256", "--id", "02")
			h.pkcs11Tool("--keygen", "--key-type", "AES:32", "--label", "wrapper", "--id", "03", "--usage-wrap", "--sensitive", "--private")
		}, []string{
			"unknown-key OCSP-KEY-15 purpose none in the configuration every key is one that the configuration names",
			"unknown-key OCSP-KEY-15 purpose none in the configuration every key is one that the configuration names",
		}},
		{"OCSP-KEY-15 duplicate", func(h *tokenHouse) {
			h.pkcs11Tool(append(generate, "--usage-sign")...)
			h.issue("class1", "class1-ocsp")
			h.pkcs11Tool(append(generate, "--usage-sign")...)
		}, []string{
			"duplicate-label OCSP-KEY-15 CKA_LABEL that of another private key unique", "duplicate-id OCSP-KEY-15 CKA_ID that of another private key unique",
			"unknown-key OCSP-KEY-15 purpose none in the configuration every key is one that the configuration names",
			"unknown-key OCSP-KEY-15 purpose none in the configuration every key is one that the configuration names",
			"key-unusable OCSP-KEY-15 use … a key that signs",
		}},
		{"OCSP-KEY-06 visible without a login", func(h *tokenHouse) {
			h.ocspd(0, "", "key", "generate", "class1-ocsp", "--type", "p256", "--id", "01")
			h.issue("class1", "class1-ocsp")
			h.pkcs11Tool("--keygen", "--key-type", "AES:32", "--label", "open", "--id", "07")
		}, []string{
			"visible-without-login OCSP-KEY-06 C_FindObjects without a login shown not shown",
			"unknown-key OCSP-KEY-15 purpose none in the configuration every key is one that the configuration names",
		}},
		{"OCSP-DEL-08 certificate of another key, OCSP-DEL-03 no nocheck", func(h *tokenHouse) {
			h.ocspd(0, "", "key", "generate", "class1-ocsp", "--type", "p256", "--id", "01")
			h.exec("", "openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "other.key", "-subj", "/CN=other", "-out", "other.csr")
			h.certify(h.read("other.csr"), "class1-ocsp.pem")
		}, []string{"certificate-of-another-key OCSP-DEL-08 SPKI SHA-256 … …"}},
		{"OCSP-DEL-02 certificate of another CA", func(h *tokenHouse) {
			h.ocspd(0, "", "key", "generate", "class1-ocsp", "--type", "p256", "--id", "01")
			h.issue("class1", "class1-ocsp")
			h.exec("", "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=class1", "-keyout", "new.key", "-out", "class1.pem",
				"-addext", "keyUsage=critical,keyCertSign")
		}, []string{"signer-of-other-key OCSP-DEL-02 certificate … ", "signer-of-other-keyid OCSP-DEL-07 certificate … "}},
		{"OCSP-KEY-01 firmware", func(h *tokenHouse) {
			h.ocspd(0, "", "key", "generate", "class1-ocsp", "--type", "p256", "--id", "01")
			h.issue("class1", "class1-ocsp")
			h.configure("pin = \"file:pin\"\n", "pin = \"file:pin\"\nfirmware = \"9.1\"\n")
		}, []string{"firmware-differs OCSP-KEY-01 firmware 2.6 9.1"}},
		{"OCSP-KEY-18 modes", func(h *tokenHouse) {
			h.ocspd(0, "", "key", "generate", "class1-ocsp", "--type", "p256", "--id", "01")
			h.issue("class1", "class1-ocsp")
			if err := os.Chmod(h.path("ocspd.toml"), 0o666); err != nil {
				h.t.Fatal(err)
			}
		}, []string{"writable-by-everybody OCSP-KEY-18 … everybody on the machine can change it root and the role's own user"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newTokenHouse(t)
			c.make(h)
			r := h.report(1, "")
			var got []string
			for _, f := range r.Data.Findings {
				if !f.grave() {
					continue
				}
				switch f.Name {
				case "key-unusable":
					f.Found = "…"
				case "certificate-of-another-key":
					f.Found, f.Expected = "…", "…"
				case "signer-of-other-key", "signer-of-other-keyid":
					f.Found = "…"
				case "writable-by-everybody":
					f.Attribute = "…"
				}
				got = append(got, strings.Join([]string{f.Name, f.Rule, f.Attribute, f.Found, f.Expected}, " "))
			}
			slices.Sort(got)
			slices.Sort(c.want)
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
			if r.Data.Verdict.Word != custodyFindings {
				t.Errorf("%+v", r.Data.Verdict)
			}
			if c.name == "OCSP-KEY-15 unknown, OCSP-KEY-08 wrapping" && !slices.ContainsFunc(r.Data.Findings, func(f custodyFinding) bool { return f.Rule == "OCSP-KEY-08" && f.Attribute == "CKA_WRAP" }) {
				t.Errorf("%+v", r.Data.Findings)
			}
		})
	}
}

// What `accept` names is told and does not count; OCSP-KEY-07 is advice.
func TestKEY07CustodyAccepted(t *testing.T) {
	h := newTokenHouse(t)
	h.pkcs11Tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "class1-ocsp", "--id", "01", "--private", "--sensitive", "--usage-sign")
	h.issue("class1", "class1-ocsp")
	h.configure("unissued = ", "accept = [\"key-can-decrypt\", \"key-can-unwrap\", \"key-can-sign-recover\"]\nunissued = ")
	r := h.report(0, "")
	levels := map[string]string{}
	for _, f := range r.Data.Findings {
		levels[f.Name] = f.Level()
	}
	want := map[string]string{"key-can-decrypt": "accepted", "key-can-unwrap": "accepted", "key-can-sign-recover": "accepted", "key-modifiable": "advice", "key-copyable": "advice",
		"wrapping-key": "advice"} // its public half
	if d := cmp.Diff(want, levels); d != "" {
		t.Error(d)
	}
}

// OCSP-KEY-10: a module that says what one hopes for gets no better word than that it says so, and what its keys can do shows.
func TestKEY10CustodyLyingModule(t *testing.T) {
	h := newTokenHouse(t)
	h.exec("", "cc", "-shared", "-fPIC", "-o", "liar.so", absolute(t, "../../hsm/testdata/liar.c"), "-ldl")
	t.Setenv("LIAR_MODULE", softHSM)
	h.ocspd(0, "", "key", "generate", "class1-ocsp", "--type", "p256")
	h.issue("class1", "class1-ocsp")
	h.configure("/usr/lib/softhsm/libsofthsm2.so", h.path("liar.so"))
	h.configure("pin = \"file:pin\"\n", "pin = \"file:pin\"\n"+stated)
	r := h.report(0, "")
	if i := r.Data.Tokens[0].Info; softwareToken(i) != "" || i.Model != "Vault 9000" {
		t.Fatalf("the module does not lie well: %+v", i)
	}
	out := h.ocspd(0, "Self-reported by PKCS#11|There is no cryptographic attestation|It is no attestation", "custody", "report", "-o", "html")
	if regexp.MustCompile(`(?i)\battested\b`).MatchString(out) {
		t.Error("something is called attested")
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	p, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A report that was changed is found, whatever was changed and however well.
func TestCustodyVerifyFindsChanges(t *testing.T) {
	h := newTokenHouse(t)
	h.pkcs11Tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "class1-ocsp", "--id", "01", "--private", "--sensitive", "--usage-sign")
	h.issue("class1", "class1-ocsp")
	other := h.report(1, "")
	h.ocspd(1, "", "custody", "report", "--out", h.path("report.html"))
	h.ocspd(1, "", "custody", "report", "--out", h.path("report.json"))
	page, document := h.read("report.html"), h.read("report.json")
	h.ocspd(0, "", "custody", "verify", h.path("report.html"))
	h.ocspd(0, "", "custody", "verify", h.path("report.json"))

	changed := func(t *testing.T, words, name, text string) {
		t.Helper()
		h.t = t
		h.write(name, text)
		h.ocspd(1, words, "custody", "verify", h.path(name))
	}
	replaced := func(t *testing.T, text, from, to string) string {
		t.Helper()
		if !strings.Contains(text, from) {
			t.Fatalf("there is no %q", from)
		}
		return strings.Replace(text, from, to, 1)
	}
	t.Run("the page's words", func(t *testing.T) {
		changed(t, "FAILED  page", "c.html", replaced(t, page, ">true<", ">false<"))
		changed(t, "FAILED  page", "c.html", replaced(t, page, "<h1>", "<h1>All is well. "))
		changed(t, "FAILED  page", "c.html", replaced(t, page, "</html>", "<script>alert(1)</script></html>"))
	})
	// As the forger would: the digest and all that follows from the data are made anew.
	forge := func(f func(r *custodyReport), after ...func(string) string) string {
		r, err := parseCustody([]byte(document))
		if err != nil {
			t.Fatal(err)
		}
		f(r)
		r.Data.judge()
		line, err := custodyLine(&r.Data)
		if err != nil {
			t.Fatal(err)
		}
		r.Digest = hexSHA256(line)
		r.Commands = r.commands()
		b, err := r.json()
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		for _, f := range after {
			text = f(text)
		}
		return text
	}
	better := func(r *custodyReport) {
		for i := range r.Data.Keys[0].Attributes {
			if a := &r.Data.Keys[0].Attributes[i]; a.Expected == "false" {
				a.Found = "false"
			}
		}
	}
	for _, c := range []struct {
		name, words, text string
	}{
		{"the verdict alone", "FAILED  data|FAILED  verdict", replaced(t, document, `"word":"findings"`, `"word":"kept"`)},
		{"the verdict, with a digest to match", "FAILED  verdict|signed is for another report", func() string {
			r, _ := parseCustody([]byte(document))
			r.Data.Verdict = custodyVerdict{custodyKept, "Every key is kept as it must be."}
			r.Data.Findings = []custodyFinding{}
			line, _ := custodyLine(&r.Data)
			r.Digest = hexSHA256(line)
			r.Commands = r.commands()
			b, _ := r.json()
			return string(b)
		}()},
		{"facts", "the challenge that it signed is for another report, or for other data", forge(better)},
		{"facts and the challenge", "its signature does not verify", forge(func(r *custodyReport) {
			better(r)
			r.Data.judge()
			line, _ := custodyLine(&r.Data)
			p := &r.Proofs[0]
			p.Challenge = custodyChallenge(&r.Data, hexSHA256(line), p.Key, nonceOf(p.Challenge))
		})},
		{"no proof", "no key signed", forge(func(r *custodyReport) { better(r); r.Proofs = []custodyProof{} })},
		{"the proof of another report", "for another report", forge(func(r *custodyReport) { r.Proofs = other.Proofs })},
		{"a key that claims to be missing", "no key signed", forge(func(r *custodyReport) { r.Data.Keys[0].Problem = "away"; r.Proofs = []custodyProof{} })},
		{"a certificate", "a certificate is not what the report says", forge(func(r *custodyReport) { r.Data.Issuers[0].Signer.Serial = "1" })},
		{"a command", "FAILED  commands", replaced(t, document, "openssl dgst -sha256 -r ", "openssl dgst -md5 -r ")},
		{"no certificate of the CA", "has no certificate", forge(func(r *custodyReport) {
			r.Data.Issuers = append(r.Data.Issuers, custodyIssuer{Name: "x", Problem: "y"})
		},
			func(s string) string { return strings.Replace(s, `"problem":"y"`, `"problem":""`, 1) })},
		{"something more", "cannot be read", replaced(t, document, `"v": 1,`, `"v": 1, "approved": true,`)},
		{"something twice", "FAILED  spelling", replaced(t, document, `"v": 1,`, `"v": 1, "digest": "",`)},
		{"the version", "verify with that", replaced(t, document, `"version":"`+version(), `"version":"9`)},
	} {
		t.Run(c.name, func(t *testing.T) { changed(t, c.words, "c.json", c.text) })
	}
	// The same in a page.
	t.Run("a page with other data", func(t *testing.T) {
		r, err := parseCustody([]byte(forge(better)))
		if err != nil {
			t.Fatal(err)
		}
		b, err := r.html()
		if err != nil {
			t.Fatal(err)
		}
		changed(t, "for another report, or for other data", "c.html", string(b))
	})
	h.t = t
	var out struct {
		OK     bool
		Checks []custodyCheck
	}
	h.json(h.ocspd(0, "", "custody", "verify", "-o", "json", h.path("report.html")), &out)
	if !out.OK || len(out.Checks) < 6 {
		t.Errorf("%+v", out)
	}
}

// The verdict follows from the facts, and "kept" only from all of them.
func TestCustodyVerdict(t *testing.T) {
	hardware := hsm.TokenInfo{Model: "Vault", Manufacturer: "Example", HardwareSlot: true, Firmware: "1.2"}
	whole := func() *custodyData {
		return &custodyData{Time: time.Now(), Tokens: []custodyToken{{Name: "main", Info: hardware, Stated: custodyStatement{"cert", "1.2", "record", "none"}}},
			Keys: []custodyKey{{Token: "main", Label: "k", Issuers: []string{"a"}}}}
	}
	for _, c := range []struct {
		name   string
		change func(d *custodyData)
		want   string
	}{
		{"all of it", func(*custodyData) {}, custodyKept},
		{"no word on copies (OCSP-KEY-12)", func(d *custodyData) { d.Tokens[0].Stated.Copies = "" }, custodyIncomplete},
		{"no record of the ceremony (OCSP-KEY-13)", func(d *custodyData) { d.Tokens[0].Stated.Ceremony = "" }, custodyIncomplete},
		{"no certificate (OCSP-KEY-01)", func(d *custodyData) { d.Tokens[0].Stated.Assurance = "" }, custodyIncomplete},
		{"other firmware (OCSP-KEY-01)", func(d *custodyData) { d.Tokens[0].Info.Firmware = "1.3" }, custodyFindings},
		{"software", func(d *custodyData) { d.Tokens[0].Info.Model = "SoftHSM v2" }, custodyIncomplete},
		{"no claim of hardware", func(d *custodyData) { d.Tokens[0].Info.HardwareSlot = false }, custodyIncomplete},
		{"software, webpki", func(d *custodyData) {
			d.Tokens[0].Info.Model = "SoftHSM v2"
			d.Issuers = []custodyIssuer{{Name: "a", Profile: "webpki", Token: "main", Problem: "x"}}
		}, custodyFindings},
		{"no key", func(d *custodyData) { d.Keys = nil }, custodyIncomplete},
		{"more objects", func(d *custodyData) { d.Tokens[0].Cut = true }, custodyIncomplete},
		{"damaged log", func(d *custodyData) { d.Logs = []custodyLog{{Role: "keeper", Faults: []string{"entry 3"}}} }, custodyFindings},
		{"readable PIN", func(d *custodyData) { d.Files = []custodyFile{{What: "PIN", Exposed: true}} }, custodyFindings},
		{"the audit key signs answers (OCSP-AUD-04)", func(d *custodyData) {
			d.Keys[0].SPKI = "aa"
			d.Keys = append(d.Keys, custodyKey{Token: "main", SPKI: "aa"})
		}, custodyFindings},
		{"public key of another (OCSP-DEL-08)", func(d *custodyData) {
			d.Keys[0].SPKI, d.Keys[0].ID = "aa", "01"
			d.Tokens[0].Objects = []custodyObject{{Object: hsm.Object{Class: hsm.ClassPublic, ID: "01", SPKI: "bb"}}}
		}, custodyFindings},
		{"a trusted object (OCSP-KEY-08)", func(d *custodyData) {
			d.Tokens[0].Objects = []custodyObject{{Object: hsm.Object{Class: hsm.ClassCertificate, True: []string{"CKA_TRUSTED"}}}}
		}, custodyKept},
	} {
		d := whole()
		c.change(d)
		d.judge()
		if d.Verdict.Word != c.want {
			t.Errorf("%s: %+v, findings %+v, gaps %+v", c.name, d.Verdict, d.Findings, d.Gaps)
		}
		again, _ := json.Marshal(d)
		var read custodyData
		if err := json.Unmarshal(again, &read); err != nil {
			t.Fatal(err)
		}
		read.judge()
		if !cmp.Equal(d.Findings, read.Findings) || !cmp.Equal(d.Gaps, read.Gaps) {
			t.Errorf("%s: judged again: %+v", c.name, read.Findings)
		}
	}
}

// Every command that the report prints does what it says: pasted into bash, with pkcs11-tool asking for the PIN at a terminal.
func TestCustodyCommands(t *testing.T) {
	h := newTokenHouse(t)
	h.configure("pin = \"file:pin\"\n", fmt.Sprintf("pin = \"file:pin\"\nenvironment = [\"SOFTHSM2_CONF=%s\"]\n", h.path("softhsm2.conf")))
	os.Unsetenv("SOFTHSM2_CONF") // the commands bring it along
	head, _, _ := strings.Cut(h.read("ocspd.toml"), "[issuer.class1]")
	for i, kind := range []string{"p256", "rsa2048", "p384", "p521", "ed25519"} {
		name := fmt.Sprintf("class%d", i+1)
		h.exec("", "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN="+name, "-keyout", "class1.key", "-out", "class1.pem",
			"-addext", "keyUsage=critical,keyCertSign,cRLSign")
		head += fmt.Sprintf("[issuer.%s]\ncertificate = %q\nsigner = %q\nkey = \"pkcs11:object=%s\"\nunissued = \"unknown\"\n[[issuer.%[1]s.source]]\nindex = \"index.txt\"\n",
			name, name+"-ca.pem", name+"-ocsp.pem", name+"%20key")
		h.ocspd(0, "", "key", "generate", name+" key", "--type", kind)
		h.issue(name, name+" key")
		h.exec("", "mv", "class1.pem", name+"-ca.pem")
	}
	h.write("ocspd.toml", head)
	h.report(0, "")
	folder := h.path("auditor")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	h.ocspd(0, "", "custody", "report", "--out", filepath.Join(folder, "custody report.html"))
	document, _, err := custodyDocument([]byte(h.read("auditor/custody report.html")))
	if err != nil {
		t.Fatal(err)
	}
	r, err := parseCustody(document)
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]int{}
	for _, c := range r.Commands {
		out := atTerminal(t, folder, c.Command)
		if !strings.Contains(out, c.Shows) || c.Shows == "" && out != "" {
			t.Errorf("%s\n%s\ndoes not show %q:\n%s", c.Title, c.Command, c.Shows, out)
		}
		shown[c.Shows]++
	}
	// Of every key: refusals, a challenge of the reader's own, and the one of the report.
	if shown["CKR_KEY_FUNCTION_NOT_PERMITTED"] != 4 || shown["Verified OK"] != 5 || shown["Signature Verified Successfully"] != 5 || shown[r.Digest] != 1 {
		t.Errorf("%v", shown)
	}
}

// atTerminal runs a command with a terminal of its own and answers whoever asks for the PIN there.
func atTerminal(t *testing.T, dir, command string) string {
	t.Helper()
	master, terminal := openTerminal(t)
	defer master.Close()
	c := exec.Command("bash", "-c", command)
	c.Dir, c.Stdin, c.Stdout, c.Stderr = dir, terminal, terminal, terminal
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	terminal.Close()
	timer := time.AfterFunc(time.Minute, func() { syscall.Kill(-c.Process.Pid, syscall.SIGKILL) })
	defer timer.Stop()
	var out bytes.Buffer
	buf := make([]byte, 4096)
	for asked := 0; ; {
		n, err := master.Read(buf)
		out.Write(buf[:n])
		if bytes.Count(out.Bytes(), []byte("enter User PIN:")) > asked {
			asked++
			time.Sleep(200 * time.Millisecond) // it empties the terminal's queue after it has asked
			fmt.Fprintln(master, testPIN)
		}
		if err != nil {
			break
		}
	}
	c.Wait()
	return strings.ReplaceAll(out.String(), "\r\n", "\n")
}
