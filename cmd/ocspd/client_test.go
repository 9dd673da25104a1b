package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ocspd/pki"
	"ocspd/responder"
)

// A clientKit is two CAs, class1 with RSA and class3 with ECDSA signers, answered for by a signer and a front of ours with keys in
// software, and the files that a client needs.
type clientKit struct {
	t      *testing.T
	dir    string
	front  http.Handler
	server *httptest.Server
	cas    map[string]*kitCA
}

type kitCA struct {
	issuer *pki.Issuer
	key    crypto.Signer
	auth   *responder.Authority
}

// Serials: 0x1001 is good, 0x1002 revoked, 0x1003 revoked with no reason, everything else unknown.
func kitLookup(s pki.Serial) (pki.Record, bool) {
	revoked := func(reason pki.Reason) (pki.Record, bool) {
		return pki.Record{Status: pki.Status{State: pki.Revoked, Reason: reason, RevokedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}}, true
	}
	switch s.Big().Int64() {
	case 0x1001:
		return pki.Record{Status: pki.Status{State: pki.Good}}, true
	case 0x1002:
		return revoked(pki.KeyCompromise)
	case 0x1003:
		return revoked(pki.Unspecified)
	}
	return pki.Record{}, false
}

func newClientKit(t *testing.T, policy responder.Policy) *clientKit {
	t.Helper()
	k := &clientKit{t: t, dir: t.TempDir(), cas: map[string]*kitCA{}}
	signer := responder.NewSigner(time.Now, func(time.Time) error { return nil }, func(_ string, err error) { t.Error(err) })
	var authorities []*responder.Authority
	var issuers []responder.FrontIssuer
	for _, name := range []string{"class1", "class3"} {
		c := k.newCA(name, policy)
		authorities = append(authorities, c.auth)
		issuers = append(issuers, responder.FrontIssuer{Issuer: c.issuer})
	}
	signer.Use(authorities)
	front := responder.NewFront(func(_ context.Context, q *responder.Question) (responder.Answer, error) { return signer.Answer(q), nil }, time.Now, 100)
	if err := front.Use(issuers); err != nil {
		t.Fatal(err)
	}
	k.front = front.Handler(1<<16, 1<<14)
	k.server = httptest.NewServer(k.front)
	t.Cleanup(k.server.Close)
	for _, name := range []string{"class1", "class3"} {
		k.leaf(name, name+"-good", 0x1001)
		k.leaf(name, name+"-revoked", 0x1002)
		k.leaf(name, name+"-unspecified", 0x1003)
		k.leaf(name, name+"-unknown", 0x9999)
	}
	return k
}

func (k *clientKit) newCA(name string, policy responder.Policy) *kitCA {
	k.t.Helper()
	now := time.Now()
	key := mustKey[crypto.Signer](k.t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.AddDate(0, -1, 0), NotAfter: now.AddDate(5, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte("key of " + name)}
	cert := k.issue(template, template, key.Public(), key)
	issuer, err := pki.NewIssuer(name, cert)
	if err != nil {
		k.t.Fatal(err)
	}
	signerKey := mustKey[crypto.Signer](k.t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	if name == "class1" {
		signerKey = mustKey[crypto.Signer](k.t)(rsa.GenerateKey(rand.Reader, 2048))
	}
	signerTemplate := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "OCSP signer of " + name},
		NotBefore: now.AddDate(0, 0, -1), NotAfter: now.AddDate(0, 0, 40), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}, ExtraExtensions: []pkix.Extension{{Id: oidNoCheck, Value: derNull}}}
	c := &kitCA{issuer: issuer, key: key}
	c.auth = &responder.Authority{Issuer: issuer, Signer: k.issue(signerTemplate, cert, signerKey.Public(), key), Key: signerKey, Policy: policy}
	if err := c.auth.Prepare(); err != nil {
		k.t.Fatal(err)
	}
	c.auth.SetView(&responder.View{Number: 1, Complete: true, Lookup: kitLookup, Sources: []pki.Source{
		{Name: "index.txt", Kind: pki.Index, ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(5 * 24 * time.Hour)}}})
	k.cas[name] = c
	k.file(name+".pem", cert.Raw)
	return c
}

// mustKey makes a crypto.Signer of what a generator gives.
func mustKey[T any](t *testing.T) func(key any, err error) T {
	return func(key any, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return key.(T)
	}
}

func (k *clientKit) issue(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	k.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		k.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		k.t.Fatal(err)
	}
	return c
}

// leaf writes a certificate that names the kit's responder.
func (k *clientKit) leaf(ca, file string, serial int64) {
	c := k.cas[ca]
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: file}, NotBefore: time.Now().AddDate(0, 0, -9), NotAfter: time.Now().AddDate(1, 0, 0),
		OCSPServer: []string{"ldap://example.org", k.server.URL}}
	k.file(file+".pem", k.issue(template, c.issuer.Certificate, c.key.Public(), c.key).Raw)
}

func (k *clientKit) file(name string, der []byte) string {
	path := filepath.Join(k.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		k.t.Fatal(err)
	}
	return path
}

func (k *clientKit) path(name string) string { return filepath.Join(k.dir, name+".pem") }

// run gives a verb in which `class1` and the like stand for files, and URL for the responder's address.
func (k *clientKit) run(line string) (code int, stdout, stderr string) {
	k.t.Helper()
	argv := strings.Fields(line)
	for n, a := range argv {
		if a == "URL" {
			argv[n] = k.server.URL
		} else if _, err := os.Stat(k.path(a)); err == nil {
			argv[n] = k.path(a)
		}
	}
	var out, errs bytes.Buffer
	code = run(argv, &out, &errs)
	return code, out.String(), errs.String()
}

var private = responder.Policy{Unissued: responder.UnissuedUnknown, Validity: 24 * time.Hour}

func TestQuery(t *testing.T) {
	k := newClientKit(t, private)
	for _, c := range []struct {
		line string
		code int
		want []string // in stdout, or in stderr where the code is not 0
	}{
		{"query class1-good --issuer class1", 0, []string{"status       good", "nonce        echoed", "POST http://127.0.0.1", "SHA256-RSA, verified", "delegated: issued by class1 itself for OCSP signing, nocheck",
			"verdict      verified", "Cache-Control: no-store", "ms to connect"}},
		{"query class1-revoked --issuer class1", 0, []string{"status       revoked since 2026-01-02T03:04:05Z, keyCompromise"}},
		{"query class3-unspecified --issuer class3 --get", 0, []string{"status       revoked since 2026-01-02T03:04:05Z, unspecified", "GET http", "Etag: ", "nonce        not sent", "ECDSA-SHA256, verified"}},
		{"query class3-unknown --issuer class3 --get --nonce --sha256", 0, []string{"status       unknown", "nonce        echoed"}},
		{"query class3-good --issuer class3 --no-nonce --lint", 0, []string{"nonce        not sent", "status       good"}},
		{"query 0x1002 --issuer class3 --url URL", 0, []string{"status       revoked", "certificate  1002 of class3"}},
		{"query dec:4097 --issuer class3 --url URL", 0, []string{"status       good"}},
		{"query class1-good --issuer class1 --url http://127.0.0.1:1", 1, []string{"query: http://127.0.0.1:1: ", "connection refused"}},
		{"query class1-good --issuer class3", 1, []string{"class1-good.pem: issued by \"CN=class1\", not by issuer class3"}},
		{"query class1-good --issuer class3-good", 1, []string{"--issuer", "not the certificate of a CA"}},
		{"query class1-good --issuer nothing", 1, []string{"--issuer", "no such file"}},
		{"query class1-good", 2, []string{"--issuer is missing"}},
		{"query", 2, []string{"called with 0 arguments; it is: ocspd query CERT|SERIAL --issuer CA"}},
		{"query class1-good --issuer class1 --get --post", 2, []string{"none of the others can be"}},
		{"query class1-good --issuer class1 --nonce --no-nonce", 2, []string{"none of the others can be"}},
		{"query 1001 --issuer class1 --url URL", 2, []string{"hex or decimal"}},
		{"query nothing.pem --issuer class1 --url URL", 2, []string{"no such file"}},
		{"query 0x1001 --issuer class1", 2, []string{"--url is missing"}},
		{"query class1 --issuer class1", 2, []string{"--url is missing: the certificate names no responder"}},
		{"query class1-good --issuer class1 --url ocsp.example.org", 2, []string{"no address of a responder"}},
		{"query class1-good --issuer class1 --url ftp://example.org", 2, []string{"no address of a responder"}},
		{"query class1-good --issuer class1 --profile public", 2, []string{"private and webpki are known"}},
		{"query class1-good --issuer class1 --timeout 0s", 2, []string{"--timeout"}},
		{"query class1-good --issuer class1 -o yaml", 2, []string{"only json"}},
	} {
		code, stdout, stderr := k.run(c.line)
		text := stdout
		if c.code != 0 {
			text = stderr
		}
		if code != c.code {
			t.Errorf("%s: exit %d\n%s%s", c.line, code, stdout, stderr)
		}
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in\n%s", c.line, want, text)
			}
		}
		if strings.Contains(c.line, "--lint") && strings.Contains(text, "OCSP-") {
			t.Errorf("%s: our own answer has findings:\n%s", c.line, text)
		}
	}
}

// The JSON is for machines: its names do not change.
func TestQueryJSON(t *testing.T) {
	k := newClientKit(t, private)
	out := filepath.Join(k.dir, "answer.der")
	code, stdout, stderr := k.run("query class1-revoked --issuer class1 -o json --get --out " + out)
	if code != 0 || !strings.HasPrefix(stdout, "{\n  \"v\": 1,") {
		t.Fatalf("exit %d: %s%s", code, stdout, stderr)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{"method": "GET", "issuer": "class1", "serial": "1002", "hash": "SHA-1", "answer": "successful", "status": "revoked", "reason": "keyCompromise",
		"revoked_at": "2026-01-02T03:04:05Z", "nonce": "not sent", "verified": true, "signature_algorithm": "SHA256-RSA"} {
		if got[name] != want {
			t.Errorf("%s: %v, want %v", name, got[name], want)
		}
	}
	signer := got["signer"].(map[string]any)
	if signer["delegated"] != true || signer["nocheck"] != true || len(got["findings"].([]any)) != 0 || got["http"].(map[string]any)["status"] != 200.0 {
		t.Errorf("%s", stdout)
	}
	der, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	// openssl reads what was written, and verifies it.
	said, err := exec.Command("openssl", "ocsp", "-respin", out, "-issuer", k.path("class1"), "-cert", k.path("class1-revoked"), "-CAfile", k.path("class1")).CombinedOutput()
	if err != nil || !strings.Contains(string(said), "Response verify OK") || !strings.Contains(string(said), ": revoked") {
		t.Errorf("%d octets: %v\n%s", len(der), err, said)
	}
}

// through serves the kit's answers, changed on their way.
func (k *clientKit) through(change func(w http.ResponseWriter, r *http.Request, body []byte, ours func(method string, body []byte) *httptest.ResponseRecorder)) {
	k.t.Helper()
	k.server.Close()
	k.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		change(w, r, body, func(method string, body []byte) *httptest.ResponseRecorder {
			again := r.Clone(r.Context())
			again.Method, again.Body, again.ContentLength = method, io.NopCloser(bytes.NewReader(body)), int64(len(body))
			rec := httptest.NewRecorder()
			k.front.ServeHTTP(rec, again)
			return rec
		})
	}))
	k.t.Cleanup(k.server.Close)
}

// give passes a recorded answer on.
func give(w http.ResponseWriter, rec *httptest.ResponseRecorder, change func(*httptest.ResponseRecorder)) {
	if change != nil {
		change(rec)
	}
	for name, v := range rec.Header() {
		w.Header()[name] = v
	}
	w.WriteHeader(rec.Code)
	w.Write(rec.Body.Bytes())
}

// What a client must not believe: exit 1, with the rule.
func TestQueryRefuses(t *testing.T) {
	k := newClientKit(t, private)
	var elsewhere atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	var first []byte
	for _, c := range []struct {
		name   string
		change func(w http.ResponseWriter, rec *httptest.ResponseRecorder)
		want   string
	}{
		{"a redirect is not followed", func(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
			w.Header().Set("Location", other.URL)
			w.WriteHeader(http.StatusTemporaryRedirect)
		}, "OCSP-REQ-18"},
		{"tryLater", func(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
			w.Header().Set("Content-Type", "application/ocsp-response")
			w.Write(unhex("30030a0103"))
		}, "the responder answers tryLater"},
		{"a page", func(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
			w.Header().Set("Content-Type", "text/html")
			w.Write([]byte("<html>"))
		}, "OCSP-REQ-07"},
		{"a bit flipped", func(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
			give(w, rec, func(rec *httptest.ResponseRecorder) { rec.Body.Bytes()[100] ^= 1 })
		}, "OCSP-"},
		{"an answer of before", func(w http.ResponseWriter, rec *httptest.ResponseRecorder) { // OCSP-NON-01
			if first == nil {
				first = bytes.Clone(rec.Body.Bytes())
			}
			rec.Body = bytes.NewBuffer(first)
			rec.Header().Set("Content-Length", fmt.Sprint(len(first)))
			give(w, rec, nil)
		}, "OCSP-NON-01"},
		{"too much", func(w http.ResponseWriter, rec *httptest.ResponseRecorder) { w.Write(make([]byte, maxAnswer+1)) }, "larger than"},
		{"control characters", func(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
			w.Header().Set("Content-Type", "a\x9b2J")
			w.Write([]byte("x"))
		}, "OCSP-REQ-07"},
		{"silence", nil, "no answer within "},
	} {
		k.through(func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if c.change == nil {
				<-r.Context().Done()
				return
			}
			c.change(w, ours(r.Method, body))
		})
		if c.name == "an answer of before" {
			k.run("query class1-good --issuer class1 --url URL")
		}
		limit := "20s"
		if c.change == nil {
			limit = "300ms"
		}
		code, stdout, stderr := k.run("query class1-good --issuer class1 --url URL --timeout " + limit)
		if code != 1 || !strings.Contains(stderr, c.want) || strings.Contains(stdout, "verdict      verified") {
			t.Errorf("%s: exit %d\n%s%s", c.name, code, stdout, stderr)
		}
		if strings.ContainsAny(stdout, "\x1b\u009b") {
			t.Errorf("%s: control characters reach the terminal: %q", c.name, stdout)
		}
	}
	if elsewhere.Load() != 0 {
		t.Error("a redirect was followed")
	}
}

const everyCert = " --cert class1-good --cert class1-revoked --cert class1-unspecified --cert class3-good --cert class3-revoked"

// The check finds nothing wrong with ours, in either profile.
func TestCheckResponderOurs(t *testing.T) {
	webpki := responder.Policy{Unissued: responder.UnissuedUnknown, Validity: 4 * 24 * time.Hour, WebPKI: true}
	for profile, policy := range map[string]responder.Policy{"private": private, "webpki": webpki} {
		k := newClientKit(t, policy)
		line := "check responder URL --issuer class1 --issuer class3 --profile " + profile
		for _, certs := range []string{"", everyCert} {
			code, stdout, stderr := k.run(line + certs)
			if code != 0 || !strings.HasPrefix(stdout, "OCSP OK - class1, class3: ") || strings.Count(stdout, "\n") != 1 || !strings.Contains(stdout, " | time=0.") || stderr != "" {
				t.Errorf("%s: exit %d\n%s%s", line+certs, code, stdout, stderr)
			}
		}
		code, stdout, _ := k.run(line + everyCert + " --conformance")
		if code != 0 || !strings.Contains(stdout, ": OK: ") || strings.Contains(stdout, "FAIL") || strings.Contains(stdout, "warning  ") {
			t.Errorf("%s --conformance: exit %d\n%s", line, code, stdout)
		}
		var r conformanceResult
		_, stdout, _ = k.run(line + everyCert + " --conformance -o json")
		if err := json.Unmarshal([]byte(stdout), &r); err != nil || r.V != 1 || r.State != "OK" || len(r.Rules) != len(surveyRules) || r.Passed < 88 || r.NA > 12 {
			t.Errorf("%v: %+v", err, r)
		}
	}
}

// Rules of the catalogue have one row each, in order within their section.
func TestConformanceRows(t *testing.T) {
	seen := map[string]bool{}
	for n, r := range surveyRules {
		if seen[r.id] {
			t.Errorf("%s twice", r.id)
		}
		seen[r.id] = true
		if !slices.Contains([]string{"MUST", "SHOULD", "MAY"}, r.level) || r.text == "" {
			t.Errorf("%+v", r)
		}
		if n > 0 && r.id[:8] == surveyRules[n-1].id[:8] && r.id < surveyRules[n-1].id {
			t.Errorf("%s after %s", r.id, surveyRules[n-1].id)
		}
	}
}

// Each trial of the conformance table is shown to fail on a responder with the fault that it looks for.
func TestConformanceFinds(t *testing.T) {
	malformed := func(rec *httptest.ResponseRecorder) bool { return bytes.Equal(rec.Body.Bytes(), unhex("30030a0101")) }
	refuse := func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/ocsp-response")
		w.Header().Set("Cache-Control", "no-store")
		w.Write(unhex("30030a0101"))
	}
	k := newClientKit(t, private)
	c1 := k.cas["class1"].issuer
	serial, err := pki.ParseSerial("0x1001")
	if err != nil {
		t.Fatal(err)
	}
	target := responder.Target{Issuer: c1, Serial: serial, Hash: crypto.SHA1}
	plain := responder.NewRequest(nil, target.CertID())
	type handler = func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder)
	for _, c := range []struct {
		name   string
		rules  string // those that must fail, or warn
		change handler
	}{
		{"answers what is malformed", "REQ-05 REQ-11 REQ-12 REQ-13 REQ-15 CID-06 CID-07 MUL-04 NON-03 NON-09 PSA-02", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if rec := ours(r.Method, body); malformed(rec) {
				give(w, ours(http.MethodPost, plain), nil)
			} else {
				give(w, rec, nil)
			}
		}},
		{"answers for every CA", "CID-03 CID-08 STA-02", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			rec := ours(r.Method, body)
			if bytes.Equal(rec.Body.Bytes(), unhex("30030a0106")) {
				rec = ours(http.MethodPost, plain)
			}
			give(w, rec, nil)
		}},
		{"takes only plain requests", "REQ-14 REQ-15 REQ-17 RSG-01 NON-01 NON-04 NON-05 NON-08 NON-09 PSA-05 MUL-01 MUL-05", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if r.Method == http.MethodPost && len(body) > len(plain)+8 {
				refuse(w)
			} else {
				give(w, ours(r.Method, body), nil)
			}
		}},
		{"takes only SHA-1", "CID-01 CID-04", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if bytes.Contains(body, derSHA256) {
				w.Header().Set("Content-Type", "application/ocsp-response")
				w.Write(unhex("30030a0106"))
			} else {
				give(w, ours(r.Method, body), nil)
			}
		}},
		{"takes only small serials", "CID-05", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if bytes.Contains(body, []byte{2, 20, 0x7f}) {
				w.WriteHeader(500)
			} else {
				give(w, ours(r.Method, body), nil)
			}
		}},
		{"redirects a GET", "REQ-02 REQ-18", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if strings.Contains(r.RequestURI, "//") {
				http.Redirect(w, r, "/cleaned", http.StatusMovedPermanently)
			} else {
				give(w, ours(r.Method, body), nil)
			}
		}},
		{"takes + for a space", "REQ-03", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if strings.Contains(r.RequestURI, "+") {
				refuse(w)
			} else {
				give(w, ours(r.Method, body), nil)
			}
		}},
		{"a strict GET", "REQ-04", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if r.Method == http.MethodGet && (strings.HasPrefix(r.RequestURI, "//") || strings.Contains(r.RequestURI, "%0A")) {
				refuse(w)
			} else {
				give(w, ours(r.Method, body), nil)
			}
		}},
		{"HTTP 400 for errors", "REQ-06", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			rec := ours(r.Method, body)
			if malformed(rec) {
				rec.Code = http.StatusBadRequest
			}
			give(w, rec, nil)
		}},
		{"compresses", "REQ-07", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			give(w, ours(r.Method, body), func(rec *httptest.ResponseRecorder) {
				if r.Header.Get("Accept-Encoding") == "gzip" {
					rec.Header().Set("Content-Encoding", "gzip")
				}
			})
		}},
		{"wants a Content-Type", "REQ-08", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if r.Method == http.MethodPost && r.Header.Get("Content-Type") != "application/ocsp-request" {
				w.WriteHeader(http.StatusUnsupportedMediaType)
			} else {
				give(w, ours(r.Method, body), nil)
			}
		}},
		{"takes every method", "REQ-09", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if r.Method != http.MethodPost && r.Method != http.MethodGet {
				w.WriteHeader(http.StatusOK)
			} else {
				give(w, ours(r.Method, body), nil)
			}
		}},
		{"a success for what is too long", "REQ-10", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if len(body) > 1<<19 || bytes.Equal(body, unhex("3083030d3b")) {
				give(w, ours(http.MethodPost, plain), nil)
			} else {
				give(w, ours(r.Method, body), nil)
			}
		}},
		{"one answer for two CAs", "MUL-03", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if bytes.Contains(body, c1.NameHash(crypto.SHA1)) && bytes.Contains(body, k.cas["class3"].issuer.NameHash(crypto.SHA1)) {
				give(w, ours(http.MethodPost, plain), nil)
			} else {
				give(w, ours(r.Method, body), nil)
			}
		}},
		{"not malformed but unknown", "STA-01", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if rec := ours(r.Method, body); bytes.Contains(rec.Body.Bytes(), []byte{0x82, 0, 0x18, 15}) {
				refuse(w)
			} else {
				give(w, rec, nil)
			}
		}},
		{"stumbles over raw nonces", "NON-02", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if bytes.Contains(body, append(unhex("0410"), bytes.Repeat([]byte{0xa5}, 16)...)) {
				w.WriteHeader(500)
			} else {
				give(w, ours(r.Method, body), nil)
			}
		}},
		{"never 304", "CCH-06", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			r.Header.Del("If-None-Match")
			give(w, ours(r.Method, body), nil)
		}},
		{"another answer for some", "CCH-08", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if r.UserAgent() == "another" {
				refuse(w)
			} else {
				give(w, ours(r.Method, body), nil)
			}
		}},
		{"HTTP/1.1 alone", "INT-08", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if r.ProtoMinor == 0 {
				w.WriteHeader(http.StatusUpgradeRequired)
			} else {
				give(w, ours(r.Method, body), nil)
			}
		}},
		{"what is cached may carry a nonce", "NON-07 NON-06", func() handler {
			var kept *httptest.ResponseRecorder
			return func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
				rec := ours(r.Method, body)
				if r.Method == http.MethodPost && bytes.Contains(body, derNonce) {
					kept = rec
				} else if r.Method == http.MethodGet && kept != nil && bytes.Contains(kept.Body.Bytes(), derNonce) {
					rec, kept = kept, nil
				}
				give(w, rec, nil)
			}
		}()},
	} {
		t.Run(c.name, func(t *testing.T) {
			k.t = t
			k.through(c.change)
			code, stdout, stderr := k.run("check responder URL --issuer class1 --issuer class3 --conformance -o json --cert class1-good --cert class1-revoked --cert class3-good --timeout 5s")
			var r conformanceResult
			if err := json.Unmarshal([]byte(stdout), &r); err != nil {
				t.Fatalf("exit %d: %v: %s%s", code, err, stdout, stderr)
			}
			if code != r.Exit || code == 0 {
				t.Errorf("exit %d, and the result says %d", code, r.Exit)
			}
			for _, id := range strings.Fields(c.rules) {
				n := slices.IndexFunc(r.Rules, func(x ruleResult) bool { return x.ID == "OCSP-"+id })
				if n < 0 || r.Rules[n].Result != resultFail && r.Rules[n].Result != resultWarn {
					t.Errorf("%s is not found broken: %+v", id, r.Rules[max(n, 0)])
				}
			}
		})
	}
}

// OCSP-UNK-01: good for what nobody issued is a fault in the public profile, and noted in the private one.
func TestConformanceUnissuedGood(t *testing.T) {
	k := newClientKit(t, responder.Policy{Unissued: responder.UnissuedGood, Validity: 24 * time.Hour})
	if code, stdout, _ := k.run("check responder URL --issuer class1 --conformance"); code != 0 || !strings.Contains(stdout, "it says good; in the private profile") {
		t.Errorf("private: exit %d\n%s", code, stdout)
	}
	if code, stdout, _ := k.run("check responder URL --issuer class1 --conformance --profile webpki"); code != 2 || !strings.Contains(stdout, "OCSP-UNK-01  MUST    FAIL") {
		t.Errorf("webpki: exit %d\n%s", code, stdout)
	}
	if code, stdout, _ := k.run("check responder URL --issuer class1 --profile webpki"); code != 2 || !strings.Contains(stdout, "OCSP-UNK-01") {
		t.Errorf("webpki: exit %d\n%s", code, stdout)
	}
	// What is unauthorized shows nothing, unless there is a certificate to ask about.
	k = newClientKit(t, responder.Policy{Unissued: responder.UnissuedUnauthorized, Validity: 24 * time.Hour})
	if code, stdout, _ := k.run("check responder URL --issuer class1"); code != 3 || !strings.HasPrefix(stdout, "OCSP UNKNOWN - class1: ") || !strings.Contains(stdout, "--cert") {
		t.Errorf("unauthorized: exit %d\n%s", code, stdout)
	}
	if code, stdout, _ := k.run("check responder URL --issuer class1 --conformance"); code != 3 || !strings.HasPrefix(stdout, "OCSP UNKNOWN - class1: ") {
		t.Errorf("unauthorized: exit %d\n%s", code, stdout)
	}
	for _, line := range []string{"check responder URL --issuer class1 --cert class1-good", "check responder URL --issuer class1 --cert class1-good --conformance"} {
		if code, stdout, _ := k.run(line); code != 0 {
			t.Errorf("%s: exit %d\n%s", line, code, stdout)
		}
	}
	// OCSP-XRV-01: extended revoke, complete.
	k = newClientKit(t, responder.Policy{Unissued: responder.UnissuedRevoked, Validity: 24 * time.Hour})
	if code, stdout, _ := k.run("check responder URL --issuer class1 --conformance"); code != 0 || !strings.Contains(stdout, "OCSP-XRV-01  MUST    pass") {
		t.Errorf("extended revoke: exit %d\n%s", code, stdout)
	}
}

// The plugin's states for what goes wrong on the way.
func TestCheckResponderFaults(t *testing.T) {
	k := newClientKit(t, private)
	flip := false
	for _, c := range []struct {
		name   string
		code   int
		want   string
		change func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder)
	}{
		{"slow", 1, "the slowest answer took", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if bytes.Contains(body, derNonce) {
				time.Sleep(600 * time.Millisecond)
			}
			give(w, ours(r.Method, body), nil)
		}},
		{"no GET", 2, "by GET, SHA-1: HTTP status 405", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if r.Method == http.MethodGet {
				w.WriteHeader(http.StatusMethodNotAllowed)
			} else {
				give(w, ours(r.Method, body), nil)
			}
		}},
		{"no cache headers", 1, "OCSP-CCH-02", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			give(w, ours(r.Method, body), func(rec *httptest.ResponseRecorder) { rec.Header().Del("Cache-Control") })
		}},
		{"two truths", 2, "when asked otherwise", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			rec := ours(r.Method, body)
			if r.Method == http.MethodPost && bytes.Contains(body, []byte{2, 2, 0x10, 1}) && bytes.Contains(body, derSHA256) {
				rec = k.recordFor(0x1001, pki.Status{State: pki.Revoked, RevokedAt: time.Now()}, body)
			}
			give(w, rec, nil)
		}},
		{"malformed taken", 2, "it answers with a success (OCSP-REQ-11)", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if bytes.Equal(body, notARequest) {
				target := responder.Target{Issuer: k.cas["class1"].issuer, Serial: mustSerial(t, "0x1001"), Hash: crypto.SHA1}
				body = responder.NewRequest(nil, target.CertID())
			}
			give(w, ours(r.Method, body), nil)
		}},
		{"malformed is 400", 1, "instead of malformedRequest (OCSP-REQ-05)", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			rec := ours(r.Method, body)
			if rec.Body.Len() == 5 {
				rec.Code = http.StatusBadRequest
			}
			give(w, rec, nil)
		}},
		{"dies of malformed input", 2, "malformed input stopped it", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			if flip = flip || bytes.Equal(body, notARequest); flip {
				panic(http.ErrAbortHandler)
			}
			give(w, ours(r.Method, body), nil)
		}},
		{"tryLater", 2, "the responder answers tryLater", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			w.Header().Set("Content-Type", "application/ocsp-response")
			w.Write(unhex("30030a0103"))
		}},
		{"silence", 2, "no answer within 1s", func(w http.ResponseWriter, r *http.Request, body []byte, ours func(string, []byte) *httptest.ResponseRecorder) {
			<-r.Context().Done()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k.t = t
			k.through(c.change)
			limits := map[string]string{"slow": " --timeout 20s --slow 500ms", "silence": " --timeout 1s"}[c.name]
			if limits == "" {
				limits = " --timeout 20s --slow 20s"
			}
			began := time.Now()
			code, stdout, _ := k.run("check responder URL --issuer class1 --cert class1-good" + limits)
			if code != c.code || !strings.Contains(stdout, c.want) || strings.Count(stdout, "\n") != 1 {
				t.Errorf("exit %d, want %d with %q:\n%s", code, c.code, c.want, stdout)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func mustSerial(t *testing.T, s string) pki.Serial {
	t.Helper()
	n, err := pki.ParseSerial(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// recordFor is what class1 would answer if the serial had another status.
func (k *clientKit) recordFor(serial int64, status pki.Status, request []byte) *httptest.ResponseRecorder {
	c := k.cas["class1"]
	old := c.auth.View()
	changed := *old
	changed.Lookup = func(s pki.Serial) (pki.Record, bool) {
		if s.Big().Int64() == serial {
			return pki.Record{Status: status}, true
		}
		return old.Lookup(s)
	}
	c.auth.SetView(&changed)
	defer c.auth.SetView(old)
	signer := responder.NewSigner(time.Now, func(time.Time) error { return nil }, func(string, error) {})
	signer.Use([]*responder.Authority{c.auth})
	front := responder.NewFront(func(_ context.Context, q *responder.Question) (responder.Answer, error) { return signer.Answer(q), nil }, time.Now, 9)
	if err := front.Use([]responder.FrontIssuer{{Issuer: c.issuer}}); err != nil {
		k.t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	front.Handler(1<<16, 1<<14).ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(request)))
	return rec
}

func TestCheckResponderUsage(t *testing.T) {
	k := newClientKit(t, private)
	for line, want := range map[string]string{
		"check":               "a verb is missing",
		"check nothing":       "unknown verb",
		"check responder":     "called with 0 arguments; it is: ocspd check responder URL --issuer CA",
		"check responder URL": "--issuer is missing",
		"check responder URL --issuer class1 --nothing":          "unknown flag",
		"check responder URL --issuer class1 --timeout soon":     "invalid argument",
		"check responder URL --issuer class1 --timeout 0s":       "--timeout",
		"check responder URL --issuer class1 --serial 1001":      "hex or decimal",
		"check responder URL --issuer class1 --profile public":   "private and webpki",
		"check responder example.org --issuer class1":            "no address of a responder",
		"check responder URL --issuer nothing.pem":               "OCSP UNKNOWN - --issuer open nothing.pem",
		"check responder URL --issuer class1 --cert class3-good": "OCSP UNKNOWN - --cert: ",
		"check responder URL --issuer class1 --cert nothing.pem": "OCSP UNKNOWN - stat nothing.pem",
		"check responder URL --issuer class1 -o yaml":            "only json",
		"check crl one":                    "called with 1 arguments; it is: ocspd check crl",
		"check crl -c /nothing/ocspd.toml": "CRL UNKNOWN - ",
		"check all -o yaml":                "only json",
		"check responder URL --issuer class1-good --cert class1-good ": "not the certificate of a CA",
	} {
		code, stdout, stderr := k.run(line)
		if code != 3 || !strings.Contains(stdout+stderr, want) {
			t.Errorf("%s: exit %d, want 3 with %q\n%s%s", line, code, want, stdout, stderr)
		}
	}
}

// opensslResponder runs `openssl ocsp -port` with an index in which a row is expired. It ends by itself or with the test.
type opensslResponder struct {
	t       *testing.T
	dir     string
	address string
	cmd     *exec.Cmd
	exited  chan struct{}
}

func newOpenSSLResponder(t *testing.T) *opensslResponder {
	t.Helper()
	o := &opensslResponder{t: t, dir: t.TempDir()}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(o.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) {
		t.Helper()
		c := exec.Command("openssl", args...)
		c.Dir = o.dir
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, out)
		}
	}
	write("ext", "keyUsage=critical,digitalSignature\nextendedKeyUsage=OCSPSigning\nnoCheck=ignored\nauthorityKeyIdentifier=keyid\n")
	write("index.txt", "V\t401231235959Z\t\t1001\tunknown\t/CN=good\nR\t401231235959Z\t250101000000Z,keyCompromise\t1002\tunknown\t/CN=revoked\nE\t240101000000Z\t\t1003\tunknown\t/CN=expired\n")
	run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=CA", "-keyout", "ca.key", "-out", "ca.pem", "-days", "30", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
	run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=S", "-keyout", "s.key", "-out", "s.csr")
	run("x509", "-req", "-in", "s.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", "256", "-days", "20", "-extfile", "ext", "-out", "s.pem")
	return o
}

// start starts it on a free port, and waits until that is bound. Trying by a connection would do harm: openssl serves one at a time.
func (o *opensslResponder) start() {
	o.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		o.t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	o.address = "http://127.0.0.1:" + port
	o.cmd = exec.Command("openssl", "ocsp", "-port", port, "-index", "index.txt", "-CA", "ca.pem", "-rsigner", "s.pem", "-rkey", "s.key", "-ndays", "1")
	o.cmd.Dir = o.dir
	if err := o.cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	o.exited = make(chan struct{})
	cmd, exited := o.cmd, o.exited
	go func() {
		defer close(exited)
		cmd.Wait()
	}()
	o.t.Cleanup(o.stop)
	client, err := newOCSPClient(o.address, time.Second)
	if err != nil {
		o.t.Fatal(err)
	}
	issuer, err := readIssuer(filepath.Join(o.dir, "ca.pem"))
	if err != nil {
		o.t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		q := &inquiry{issuer: issuer, subject: subject{serial: mustSerial(o.t, "0x1001")}, hash: crypto.SHA1}
		if a, err := client.ask(context.Background(), q, false); err == nil && a.Verified() {
			return
		}
		if time.Now().After(deadline) {
			o.t.Fatal("openssl ocsp does not answer")
		}
	}
}

func (o *opensslResponder) stop() {
	o.cmd.Process.Kill()
	<-o.exited
}

func (o *opensslResponder) run(line string) (int, string) {
	var out, errs bytes.Buffer
	argv := strings.Fields(line)
	for n, a := range argv {
		switch a {
		case "URL":
			argv[n] = o.address
		case "CA":
			argv[n] = filepath.Join(o.dir, "ca.pem")
		}
	}
	code := run(argv, &out, &errs)
	return code, out.String() + errs.String()
}

// The known faults of `openssl ocsp -port`: for an expired row it gives a success without an answer (OCSP-MUL-01), and junk stops it
// (OCSP-REQ-19). What it does well is not blamed.
func TestCheckResponderOpenSSL(t *testing.T) {
	o := newOpenSSLResponder(t)
	o.start()
	if code, said := o.run("query 0x1001 --issuer CA --url URL"); code != 0 || !strings.Contains(said, "status       good") || !strings.Contains(said, "name CN=S") {
		t.Errorf("good: exit %d\n%s", code, said)
	}
	if code, said := o.run("query 0x1002 --issuer CA --url URL --get --sha256"); code != 0 || !strings.Contains(said, "status       revoked since 2025-01-01T00:00:00Z, keyCompromise") {
		t.Errorf("revoked: exit %d\n%s", code, said)
	}
	if code, said := o.run("query 0x1003 --issuer CA --url URL"); code != 1 || !strings.Contains(said, "a success without an answer") || !strings.Contains(said, "OCSP-MUL-01") {
		t.Errorf("expired: exit %d\n%s", code, said)
	}
	code, said := o.run("check responder URL --issuer CA --serial 0x1001 --serial 0x1003")
	if code != 2 || !strings.HasPrefix(said, "OCSP CRITICAL - ca: 1003 by POST, SHA-1: a success without an answer") || !strings.Contains(said, "malformed input stopped it") {
		t.Errorf("exit %d\n%s", code, said)
	}
	select {
	case <-o.exited:
	case <-time.After(10 * time.Second):
		t.Error("openssl goes on after malformed input; this test, and the words of the check, are then out of date")
	}
	o.stop()
	o.start()
	code, said = o.run("check responder URL --issuer CA --serial 0x1001 --serial 0x1002 --serial 0x1003 --conformance -o json --timeout 5s")
	var r conformanceResult
	if err := json.Unmarshal([]byte(said), &r); err != nil || code != 2 {
		t.Fatalf("exit %d: %v\n%s", code, err, said)
	}
	for id, want := range map[string]string{
		"OCSP-MUL-01": resultFail, "OCSP-REQ-19": resultFail, "OCSP-NON-08": resultFail, "OCSP-STA-02": resultFail, "OCSP-RID-05": resultWarn, "OCSP-CCH-02": resultWarn,
		"OCSP-REQ-01": resultPass, "OCSP-REQ-02": resultPass, "OCSP-CID-04": resultPass, "OCSP-DEL-02": resultPass, "OCSP-RSP-03": resultPass, "OCSP-RSP-05": resultPass,
		"OCSP-NON-01": resultPass, "OCSP-TIM-03": resultPass, "OCSP-UNK-01": resultPass, "OCSP-REV-03": resultPass, "OCSP-MUL-03": resultNA,
	} {
		n := slices.IndexFunc(r.Rules, func(x ruleResult) bool { return x.ID == id })
		if n < 0 || r.Rules[n].Result != want {
			t.Errorf("%s: %+v, want %s", id, r.Rules[max(n, 0)], want)
		}
	}
}

func at(d time.Duration) *time.Time {
	t := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC).Add(d)
	return &t
}

// healthy is a status with nothing wrong, as of at(0).
func healthy() *statusResult {
	return &statusResult{V: 1, Verdict: verdictServing, Alarms: []alarm{}, Tokens: []tokenReport{{Name: "main", Label: "ocsp", State: "ok"}},
		Issuers: []issuerStatus{{Name: "class1", Generation: 7, Signed: 7, NotAfter: at(900 * time.Hour), Sources: []sourceStatus{
			{Source: "class1.crl", Kind: "crl", Number: "11", ThisUpdate: at(-time.Hour), NextUpdate: at(time.Hour)},
			{Source: "index.txt", Kind: "index", ThisUpdate: at(-time.Hour), NextUpdate: at(2 * time.Hour)}}}}}
}

func TestCheckStatus(t *testing.T) {
	crl, token, signer, all := checkSources, checkTokens, checkSigners, checkAll
	raise := func(name, issuer, text string) func(*statusResult) {
		return func(s *statusResult) { s.Alarms = append(s.Alarms, alarm{Name: name, Issuer: issuer, Text: text}) }
	}
	for _, c := range []struct {
		check  func(*statusResult, time.Time) *plugin
		change func(*statusResult)
		want   string
	}{
		{crl, nil, "CRL OK - class1: CRL 11 until 2026-11-02T13:00:00Z; class1: index until 2026-11-02T14:00:00Z | class1_crl=3600s class1_index=7200s"},
		{crl, raise(alarmSourceAging, "class1", "half of its time is over without a newer one | ask"), "CRL WARNING - class1: half of its time is over without a newer one / ask | class1_crl"},
		{crl, raise(alarmSourceStale, "class1", "class1.crl has ended"), "CRL CRITICAL - class1.crl has ended | "},
		{crl, raise(alarmSourceRefused, "class3", "a\nb"), "CRL WARNING - class3: a b | "},
		{crl, raise(alarmTokenDown, "main", "gone"), "CRL OK - "},
		{crl, raise(alarmRoleDown, "keeper", "keeper does not run"), "CRL CRITICAL - keeper does not run"},
		{crl, raise(alarmRoleDown, "signer", "signer does not run"), "CRL OK - "},
		{crl, func(s *statusResult) { s.Issuers[0].Sources[0].NextUpdate = nil }, "CRL CRITICAL - class1: crl class1.crl has delivered nothing yet | class1_index=7200s"},
		{crl, func(s *statusResult) { s.Issuers[0].Sources[0].NextUpdate = at(0) }, "CRL CRITICAL - class1: crl class1.crl ended in 0s | class1_crl=0s"},
		{crl, func(s *statusResult) { s.Issuers[0].Sources = nil }, "CRL CRITICAL - class1: no source has delivered"},
		{crl, func(s *statusResult) { s.Issuers[0].Sources[1].Kind = "crl" }, "CRL OK - class1: CRL 11 until 2026-11-02T13:00:00Z; class1: crl until 2026-11-02T14:00:00Z | class1_crl=3600s class1_crl2=7200s"},
		{crl, func(s *statusResult) { s.Issuers = nil }, "CRL UNKNOWN - no issuer is known"},
		{crl, func(s *statusResult) {
			for n := range 6 {
				raise(alarmVanished, "class1", fmt.Sprint("vanished ", n))(s)
			}
			raise(alarmSourceStale, "class1", "stale")(s)
		}, "CRL CRITICAL - class1: stale; class1: vanished 0; class1: vanished 1; class1: vanished 2; and 3 more | "},
		{token, nil, "TOKEN OK - main (ocsp) signs | tokens=1"},
		{token, func(s *statusResult) { s.Tokens[0].State = "lost" }, "TOKEN CRITICAL - main: lost | tokens=0"},
		{token, raise(alarmTokenDown, "main", "no answer"), "TOKEN CRITICAL - main: no answer | tokens=1"},
		{token, func(s *statusResult) { s.Tokens = nil }, "TOKEN UNKNOWN - signer has not reported a token | tokens=0"},
		{token, raise(alarmRoleDown, "signer", "signer is not connected to keeper"), "TOKEN CRITICAL - signer is not connected to keeper"},
		{signer, nil, "SIGNER OK - class1: until 2026-12-10T00:00:00Z | class1_not_after=3240000s"},
		{signer, raise(alarmSignerExpiring, "class1", "the certificate ends soon"), "SIGNER WARNING - class1: the certificate ends soon | "},
		{signer, raise(alarmClockBack, "", "the clock went back"), "SIGNER CRITICAL - the clock went back | "},
		{signer, func(s *statusResult) { s.Issuers[0].NotAfter = at(-time.Second) }, "SIGNER CRITICAL - class1: the signer's certificate ended 1s ago | class1_not_after=-1s"},
		{signer, func(s *statusResult) { s.Issuers[0].Signed = 6 }, "SIGNER WARNING - class1: signer answers by generation 6, and 7 is in force"},
		{signer, func(s *statusResult) { s.Issuers[0].Signed = 0 }, "SIGNER CRITICAL - class1: signer answers by no generation"},
		{signer, raise(alarmSourceStale, "class1", "stale"), "SIGNER OK - "},
		{all, nil, "OCSPD OK - serving 1 issuers | class1_crl=3600s class1_index=7200s tokens=1 class1_not_after=3240000s alarms=0"},
		{all, raise(alarmSourceWarning, "class1", "odd"), "OCSPD WARNING - class1: odd | "},
		{all, raise(alarmSourceStale, "class1", "stale"), "OCSPD CRITICAL - class1: stale | "},
		{all, func(s *statusResult) { s.Verdict = verdictNotServing }, "OCSPD CRITICAL - not serving | "},
		{all, func(s *statusResult) { s.Verdict = verdictDegraded }, "OCSPD CRITICAL - degraded | "},
	} {
		s := healthy()
		if c.change != nil {
			c.change(s)
		}
		if got := c.check(s, *at(0)).line(); !strings.HasPrefix(got, c.want) || strings.ContainsAny(got, "\n") {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

// With no keeper there is nobody to ask: that is CRITICAL, and the JSON says the same.
func TestCheckWithoutKeeper(t *testing.T) {
	config, _, _ := auditFixture(t)
	for verb, want := range map[string]int{"crl": 2, "token": 2, "signer": 2, "all": 2} {
		var out, errs bytes.Buffer
		code := run([]string{"check", verb, "-c", config}, &out, &errs)
		if code != want || !strings.Contains(out.String(), " CRITICAL - ") || !strings.Contains(out.String(), "keeper does not run") || errs.Len() > 0 {
			t.Errorf("%s: exit %d\n%s%s", verb, code, out.String(), errs.String())
		}
		var r pluginResult
		out.Reset()
		code = run([]string{"check", verb, "-c", config, "-o", "json"}, &out, &errs)
		if err := json.Unmarshal(out.Bytes(), &r); err != nil || code != 2 || r.V != 1 || r.State != "CRITICAL" || r.Exit != 2 || len(r.Problems) == 0 || r.Problems[0].Name != "CRITICAL" {
			t.Errorf("%s: exit %d, %v: %s", verb, code, err, out.String())
		}
	}
}

// States are ordered by what is known to be wrong.
func TestPluginWorst(t *testing.T) {
	p := &plugin{service: "X"}
	for _, c := range []struct{ add, want pluginState }{{pluginUnknown, pluginUnknown}, {pluginWarning, pluginWarning}, {pluginUnknown, pluginWarning}, {pluginCritical, pluginCritical}, {pluginWarning, pluginCritical}} {
		p.add(c.add, "%d", len(p.problems))
		if p.state() != c.want {
			t.Errorf("after %s: %s, want %s", c.add, p.state(), c.want)
		}
	}
	var e *exitError
	if err := p.print(&app{stdout: io.Discard}); !errors.As(err, &e) || e.code != 2 || e.err != nil {
		t.Errorf("%v", err)
	}
	p = &plugin{service: "X", fine: []string{"fine"}}
	p.measure("a b='c'", 1.5, "s", 2, 10)
	if got := p.line(); got != "X OK - fine | 'a b__c_'=1.5s;2;10;0" {
		t.Error(got)
	}
}

// A client sends to the address given, below its path, and names nobody else.
func TestClientAddress(t *testing.T) {
	var asked []string
	k := newClientKit(t, private)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.RequestURI)
		k.front.ServeHTTP(w, r)
	}))
	defer server.Close()
	for _, base := range []string{server.URL, server.URL + "/", server.URL + "/ocsp/", server.URL + "/ocsp"} {
		if code, out, errs := k.run("query class1-good --issuer class1 --get --url " + base); code != 0 {
			t.Errorf("%s: exit %d\n%s%s", base, code, out, errs)
		}
	}
	for n, want := range []string{"GET /ME", "GET /ME", "GET /ocsp/ME", "GET /ocsp/ME"} {
		if !strings.HasPrefix(asked[n], want) {
			t.Errorf("%s, want %s…", asked[n], want)
		}
		if _, err := url.PathUnescape(asked[n]); err != nil || strings.ContainsAny(strings.TrimPrefix(strings.TrimPrefix(asked[n], "GET /ocsp/"), "GET /"), "+/=") {
			t.Errorf("%s: not encoded", asked[n])
		}
	}
}
