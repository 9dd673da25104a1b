package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ocspd/audit"
	"ocspd/db"
	"ocspd/pki"
)

// kept is a keeper in this process over CAs of a test's own: what it would answer is asked by lookup, which decides as signer does.
type kept struct {
	t   testing.TB
	dir string
	cas map[string]*keptCA
	k   *keeper
	c   *client
}

type keptCA struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// newKept makes the CAs one and two; each has the sources given as TOML, in which DIR stands for the directory of the test.
func newKept(t testing.TB, accept string, sources ...string) *kept {
	t.Helper()
	w := &kept{t: t, dir: t.TempDir(), cas: map[string]*keptCA{}}
	text := "state = \"state\"\nrun = \"run\"\n[token.main]\nuri = \"pkcs11:token=t?module-path=/usr/lib/softhsm/libsofthsm2.so\"\npin = \"file:pin\"\n"
	for _, name := range []string{"one", "two"} {
		w.cas[name] = newKeptCA(t, name)
		w.write(name+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.cas[name].cert.Raw}))
		text += fmt.Sprintf("[issuer.%s]\ncertificate = \"%s.pem\"\nkey = \"pkcs11:object=%s\"\nunissued = \"good\"\naccept = [%s]\n", name, name, name, accept)
		for _, s := range sources {
			text += "[[issuer." + name + ".source]]\n" + strings.NewReplacer("DIR", w.dir, "NAME", name).Replace(s) + "\n"
		}
	}
	w.write("ocspd.toml", []byte(text))
	w.open()
	t.Cleanup(func() {
		if w.k != nil {
			w.k.close()
		}
	})
	return w
}

func newKeptCA(t testing.TB, name string) *keptCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}, &x509.Certificate{Subject: pkix.Name{CommonName: name}}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &keptCA{key, cert}
}

func (w *kept) open() {
	w.t.Helper()
	cfg, err := readConfig(filepath.Join(w.dir, "ocspd.toml"))
	if err != nil {
		w.t.Fatal(err)
	}
	k, err := openKeeper(context.Background(), cfg, w.log(), lockPatience)
	if err != nil {
		w.t.Fatal(err)
	}
	w.use(k)
}

func (w *kept) log() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (w *kept) use(k *keeper) {
	w.k = k
	w.c = &client{http: &http.Client{Transport: handlerTransport{withActor(k.controlHandler(), "tester")}}, close: func() {}}
}

func (w *kept) reopen() {
	w.t.Helper()
	w.k.close()
	w.open()
}

func (w *kept) write(name string, b []byte) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// crlSpec is a CRL; base makes it a delta, idp is the value of its issuingDistributionPoint.
type crlSpec struct {
	number, base int64
	idp          []byte
	freshest     []string      // where deltas are, in an extension that says so
	this, next   time.Duration // from now; thisUpdate an hour ago and a day of life, if left out
	revoked      map[int64]pki.Reason
}

func (w *kept) crl(name string, ca string, c crlSpec) {
	w.t.Helper()
	w.write(name, w.makeCRL(ca, c))
}

func (w *kept) makeCRL(ca string, c crlSpec) []byte {
	w.t.Helper()
	if c.this == 0 {
		c.this = -time.Hour + time.Duration(c.number)*time.Minute
	}
	if c.next == 0 {
		c.next = 24 * time.Hour
	}
	now := time.Now().Truncate(time.Second)
	l := &x509.RevocationList{Number: big.NewInt(c.number), ThisUpdate: now.Add(c.this), NextUpdate: now.Add(c.next)}
	for serial, reason := range c.revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: now.Add(-2 * time.Hour), ReasonCode: int(reason)})
	}
	if c.idp != nil {
		l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: c.idp})
	}
	if c.freshest != nil {
		var points [][]byte
		for _, u := range c.freshest {
			points = append(points, element(0x30, element(0xa0, element(0xa0, element(0x86, []byte(u))))))
		}
		l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 46}, Value: element(0x30, points...)})
	}
	if c.base != 0 {
		value, err := asn1.Marshal(big.NewInt(c.base))
		if err != nil {
			w.t.Fatal(err)
		}
		l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: value})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, w.cas[ca].cert, w.cas[ca].key)
	if err != nil {
		w.t.Fatal(err)
	}
	return der
}

// The values of an issuingDistributionPoint.
var (
	usersOnly       = []byte{0x30, 3, 0x81, 1, 0xff}
	authoritiesOnly = []byte{0x30, 3, 0x82, 1, 0xff}
	attributesOnly  = []byte{0x30, 3, 0x85, 1, 0xff}
	indirect        = []byte{0x30, 3, 0x84, 1, 0xff}
	compromisesOnly = []byte{0x30, 4, 0x83, 2, 5, 0x60}       // keyCompromise, cACompromise
	otherReasons    = []byte{0x30, 5, 0x83, 3, 7, 0x1f, 0x80} // all from affiliationChanged on
	notQuiteOthers  = []byte{0x30, 4, 0x83, 2, 0, 0x1f}       // without aACompromise
	shard1, shard2  = shardAt("http://example.org/1"), shardAt("http://example.org/2")
)

func shardAt(location string) []byte {
	b := append([]byte{0x86, byte(len(location))}, location...)
	for _, tag := range []byte{0xa0, 0xa0, 0x30} {
		b = append([]byte{tag, byte(len(b))}, b...)
	}
	return b
}

func (w *kept) fetch() (fetchResult, string) {
	w.t.Helper()
	var out fetchResult
	if err := w.c.call(context.Background(), "POST", "/crl/fetch", nil, nil, &out); err != nil {
		w.t.Fatal(err)
	}
	var texts []string
	for _, s := range out.Sources {
		texts = append(texts, s.Result+": "+s.Text)
	}
	return out, strings.Join(texts, "\n")
}

func (w *kept) imported(der []byte, force string) (*changeResult, error) {
	var out changeResult
	err := w.c.call(context.Background(), "POST", "/crl/import", url.Values{"name": {"x"}, "force": {force}}, bytes.NewReader(der), &out)
	return &out, err
}

// answers says what would be answered for serials of issuer one: "good", "revoked", or an OCSP error.
func (w *kept) answers(serials ...int64) string {
	w.t.Helper()
	var all []string
	for _, n := range serials {
		serial, err := pki.SerialFromBig(big.NewInt(n))
		if err != nil {
			w.t.Fatal(err)
		}
		var l lookupResult
		if err := w.c.call(context.Background(), "GET", "/lookup", url.Values{"issuer": {"one"}, "serial": {hexSerial(serial)}}, nil, &l); err != nil {
			w.t.Fatal(err)
		}
		if l.Answer != "successful" {
			l.Status = l.Answer
		}
		all = append(all, l.Status)
	}
	return strings.Join(all, " ")
}

func (w *kept) want(want string, serials ...int64) {
	w.t.Helper()
	if got := w.answers(serials...); got != want {
		w.t.Errorf("serials %v: %s, want %s", serials, got, want)
	}
}

func (w *kept) alarm(name string) string {
	for _, a := range w.k.alarms.list() {
		if a.Name == name && strings.HasPrefix(a.Issuer, "one") {
			return a.Text
		}
	}
	return ""
}

const keyCompromise = pki.KeyCompromise

// OCSP-CRL-07: what no CRL in force covers is undetermined, whatever `unissued` says; what any of them revokes is revoked.
func TestCRL07Parts(t *testing.T) {
	users := crlSpec{number: 1, idp: usersOnly, revoked: map[int64]pki.Reason{10: keyCompromise}}
	authorities := crlSpec{number: 1, idp: authoritiesOnly, revoked: map[int64]pki.Reason{20: pki.Superseded}}
	part := func(idp []byte, serial int64) crlSpec {
		return crlSpec{number: 1, idp: idp, revoked: map[int64]pki.Reason{serial: keyCompromise}}
	}
	for _, c := range []struct {
		name   string
		accept string
		a, b   crlSpec // b is not there with number 0
		want   string  // of serials 10 (revoked on a), 20 (revoked on b), 30
	}{
		{"users only", "", users, crlSpec{}, "revoked tryLater tryLater"},
		{"authorities only", "", part(authoritiesOnly, 10), crlSpec{}, "revoked tryLater tryLater"},
		{"users and authorities", "", users, authorities, "revoked revoked good"},
		{"some reasons", "", part(compromisesOnly, 10), crlSpec{}, "revoked tryLater tryLater"},
		{"all reasons but one", "", part(compromisesOnly, 10), part(notQuiteOthers, 20), "revoked revoked tryLater"},
		{"all reasons", "", part(compromisesOnly, 10), part(otherReasons, 20), "revoked revoked good"},
		{"one shard of two", "", part(shard1, 10), crlSpec{}, "revoked tryLater tryLater"},
		{"two shards of nobody knows how many", "", part(shard1, 10), part(shard2, 20), "revoked revoked tryLater"},
		{"two shards, which the admin says are all", `"crl-distribution-points"`, part(shard1, 10), part(shard2, 20), "revoked revoked good"},
		{"one of them", `"crl-distribution-points"`, part(shard1, 10), crlSpec{}, "revoked tryLater tryLater"},
		{"that word makes no users-only CRL complete", `"crl-distribution-points"`, part(usersOnly, 10), part(shard2, 20), "revoked revoked good"},
		{"nor two of them", `"crl-distribution-points"`, part(usersOnly, 10), part(usersOnly, 20), "revoked revoked tryLater"},
		{"a part beside a complete CRL", "", users, crlSpec{number: 1, revoked: map[int64]pki.Reason{20: keyCompromise}}, "revoked revoked good"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newKept(t, c.accept, `crl = "DIR/NAME-a.crl"`, `crl = "DIR/NAME-b.crl"`)
			w.crl("one-a.crl", "one", c.a)
			if c.b.number != 0 {
				w.crl("one-b.crl", "one", c.b)
			}
			w.fetch()
			w.want(c.want, 10, 20, 30)
			w.k.since = time.Now().Add(-time.Minute)
			w.k.checkSources(context.Background(), time.Now())
			if got, want := w.alarm(alarmCoverage) != "", strings.HasSuffix(c.want, "tryLater"); got != want {
				t.Errorf("alarm stands: %v, want %v", got, want)
			}
			w.reopen()
			w.want(c.want, 10, 20, 30)
		})
	}
}

// OCSP-CRL-07 (d), OCSP-CRL-08: CRLs of attribute certificates and indirect ones are refused.
func TestCRL07Refused(t *testing.T) {
	w := newKept(t, "", `crl = "DIR/NAME.crl"`)
	for _, idp := range [][]byte{attributesOnly, indirect, {0x30, 0}} {
		w.crl("one.crl", "one", crlSpec{number: 1, idp: idp})
		if _, text := w.fetch(); !strings.HasPrefix(text, "failed: ") {
			t.Errorf("%x: %s", idp, text)
		}
	}
	w.want("tryLater", 10)
}

// OCSP-CRL-07: a location that covered one part and now gives another is refused, but for a person's word; what was revoked stays.
func TestCRL07PartChanges(t *testing.T) {
	w := newKept(t, `"crl-distribution-points"`, `crl = "DIR/NAME.crl"`)
	w.crl("one.crl", "one", crlSpec{number: 1, idp: shard1, revoked: map[int64]pki.Reason{10: keyCompromise}})
	w.fetch()
	w.want("revoked good", 10, 30)
	other := crlSpec{number: 2, idp: shard2}
	w.crl("one.crl", "one", other)
	if _, text := w.fetch(); !strings.Contains(text, "another part") {
		t.Error(text)
	}
	der := w.makeCRL("one", crlSpec{number: 3, idp: shard2})
	if _, err := w.imported(der, ""); err == nil || !strings.Contains(err.Error(), "no configured source") {
		t.Errorf("a part of no source: %v", err)
	}
	w.want("revoked good", 10, 30)
	// Handed in, a newer CRL of the part that the source has.
	if _, err := w.imported(w.makeCRL("one", crlSpec{number: 4, idp: shard1, revoked: map[int64]pki.Reason{10: keyCompromise, 11: keyCompromise}}), ""); err != nil {
		t.Error(err)
	}
	w.want("revoked revoked good", 10, 11, 30)
}

// A CRL that has run out is let go at a start when the others cover everything without it: a CA went from one complete CRL to parts.
func TestRunOutGoes(t *testing.T) {
	w := newKept(t, "", `crl = "DIR/NAME-a.crl"`, `crl = "DIR/NAME-b.crl"`)
	const life = 5 * time.Second // in which the next lines are done, on a busy machine too
	begun := time.Now()
	w.crl("one-a.crl", "one", crlSpec{number: 1, next: life})
	w.fetch()
	w.want("good", 30)
	w.crl("one-a.crl", "one", crlSpec{number: 2, idp: usersOnly})
	w.fetch()
	time.Sleep(time.Until(begun.Add(life + time.Second/10)))
	w.reopen()
	w.want("tryLater", 30) // the parts do not cover all yet, and the complete one stays
	w.crl("one-b.crl", "one", crlSpec{number: 2, idp: authoritiesOnly, revoked: map[int64]pki.Reason{20: keyCompromise}})
	w.fetch()
	w.reopen()
	w.want("revoked good", 20, 30)
}

// OCSP-CRL-10, OCSP-CRL-11, OCSP-CRL-12: delta CRLs, from a place of their own.
func TestCRL10Delta(t *testing.T) {
	w := newKept(t, "", "crl = \"DIR/NAME.crl\"\ndelta = \"DIR/NAME-delta.crl\"")
	step := func(want string, fails bool) {
		t.Helper()
		out, text := w.fetch()
		failed := false
		for _, s := range out.Sources {
			failed = failed || s.Issuer == "one" && s.Result == "failed"
		}
		if failed != fails {
			t.Errorf("failed: %v\n%s", failed, text)
		}
		w.want(want, 10, 11, 12, 13)
	}
	hold := pki.CertificateHold
	w.crl("one-delta.crl", "one", crlSpec{number: 11, base: 10})
	w.crl("one.crl", "one", crlSpec{number: 11, base: 10}) // a delta where the complete CRL belongs
	step("tryLater tryLater tryLater tryLater", true)

	w.crl("one.crl", "one", crlSpec{number: 10, revoked: map[int64]pki.Reason{10: keyCompromise, 11: hold, 12: hold}})
	w.crl("one-delta.crl", "one", crlSpec{number: 11, base: 10, revoked: map[int64]pki.Reason{
		10: pki.RemoveFromCRL, 11: pki.RemoveFromCRL, 12: pki.Superseded, 13: keyCompromise}})
	step("revoked good revoked revoked", false)
	if !strings.Contains(w.alarm(alarmSourceWarning), "to be removed by a delta") {
		t.Errorf("no alarm on the removal of a permanent revocation: %v", w.k.alarms.list())
	}
	step("revoked good revoked revoked", false) // the base is older than what the delta made, and passed over

	w.crl("one-delta.crl", "one", crlSpec{number: 14, base: 13})
	step("revoked good revoked revoked", true) // base newer than what is installed
	w.crl("one-delta.crl", "one", crlSpec{number: 12, base: 10, idp: usersOnly, revoked: map[int64]pki.Reason{11: keyCompromise}})
	step("revoked good revoked revoked", true) // of another part

	// The next complete CRL; what was revoked for good and is not on it stays revoked.
	w.crl("one.crl", "one", crlSpec{number: 13, revoked: map[int64]pki.Reason{10: keyCompromise, 13: keyCompromise}})
	w.crl("one-delta.crl", "one", crlSpec{number: 14, base: 13, revoked: map[int64]pki.Reason{11: keyCompromise}})
	step("revoked revoked revoked revoked", false)
	w.reopen()
	w.want("revoked revoked revoked revoked good", 10, 11, 12, 13, 14)
}

// OCSP-CRL-10, OCSP-CRL-11, OCSP-CRL-12: delta CRLs that a complete CRL points to (Freshest CRL, RFC 5280 section 5.2.6), over HTTP. The second place stands in for
// the first. A source on this machine sends nobody to the network.
func TestCRL10Freshest(t *testing.T) {
	var mu sync.Mutex
	files, asked := map[string][]byte{}, map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked[r.URL.Path]++
		if b := files[r.URL.Path]; b != nil {
			tag := fmt.Sprintf("\"%x\"", sha256.Sum256(b))
			w.Header().Set("ETag", tag)
			if r.Header.Get("If-None-Match") == tag {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			w.Write(b)
			return
		}
		http.NotFound(w, r)
	}))
	defer server.Close()
	w := newKept(t, "", fmt.Sprintf("crl = %q", server.URL+"/NAME.crl"))
	publish := func(name string, c crlSpec) {
		mu.Lock()
		defer mu.Unlock()
		files[name] = w.makeCRL("one", c)
	}
	requests := func(name string) int {
		mu.Lock()
		defer mu.Unlock()
		return asked[name]
	}
	step := func(want string, fails bool) {
		t.Helper()
		out, text := w.fetch()
		for _, s := range out.Sources {
			if s.Issuer == "one" && (s.Result == "failed") != fails {
				t.Errorf("failed: %v, want %v\n%s", s.Result == "failed", fails, text)
			}
		}
		w.want(want, 10, 11, 12, 13)
	}
	places := []string{server.URL + "/gone.crl", server.URL + "/delta.crl"}
	hold := pki.CertificateHold
	publish("/one.crl", crlSpec{number: 10, freshest: places, revoked: map[int64]pki.Reason{10: keyCompromise, 11: hold, 12: hold}})
	publish("/delta.crl", crlSpec{number: 11, base: 10, revoked: map[int64]pki.Reason{
		10: pki.RemoveFromCRL, 11: pki.RemoveFromCRL, 12: pki.Superseded, 13: keyCompromise}})
	step("revoked good revoked revoked", false)
	if !strings.Contains(w.alarm(alarmSourceWarning), "to be removed by a delta") {
		t.Errorf("no alarm on the removal of a permanent revocation: %v", w.k.alarms.list())
	}
	step("revoked good revoked revoked", false) // nothing new: both answer 304

	// The next delta of the same base; then one whose base is not there yet; then that base.
	publish("/delta.crl", crlSpec{number: 12, base: 10, revoked: map[int64]pki.Reason{11: keyCompromise, 12: pki.Superseded, 13: keyCompromise}})
	step("revoked revoked revoked revoked", false)
	publish("/delta.crl", crlSpec{number: 14, base: 13})
	step("revoked revoked revoked revoked", true)
	publish("/one.crl", crlSpec{number: 13, freshest: places, revoked: map[int64]pki.Reason{10: keyCompromise, 11: keyCompromise, 12: pki.Superseded, 13: keyCompromise}})
	step("revoked revoked revoked revoked", false)

	// A keeper that starts does not know where the deltas are, and asks for the complete CRL whole to learn it.
	w.reopen()
	publish("/delta.crl", crlSpec{number: 15, base: 13, revoked: map[int64]pki.Reason{14: keyCompromise}})
	step("revoked revoked revoked revoked", false)
	w.want("revoked", 14)

	// Another CA's delta, and none at all: alarms, and what is in force stays.
	mu.Lock()
	files["/delta.crl"] = w.makeCRL("two", crlSpec{number: 16, base: 13})
	mu.Unlock()
	step("revoked revoked revoked revoked", true)
	mu.Lock()
	delete(files, "/delta.crl")
	mu.Unlock()
	step("revoked revoked revoked revoked", true)
	if w.alarm(alarmSourceRefused) == "" {
		t.Errorf("alarms: %v", w.k.alarms.list())
	}

	// A complete CRL that names deltas no more ends that.
	publish("/one.crl", crlSpec{number: 17, revoked: map[int64]pki.Reason{10: keyCompromise, 11: keyCompromise, 12: pki.Superseded, 13: keyCompromise}})
	before := requests("/delta.crl")
	step("revoked revoked revoked revoked", false)
	if got := requests("/delta.crl"); got != before {
		t.Errorf("%d requests for a delta that nothing names", got-before)
	}
	if w.alarm(alarmSourceRefused) != "" {
		t.Errorf("alarms: %v", w.k.alarms.list())
	}

	// The same CRL on this machine.
	local := newKept(t, "", `crl = "DIR/NAME.crl"`)
	local.crl("one.crl", "one", crlSpec{number: 1, freshest: places})
	local.fetch()
	local.want("good", 30)
	if got := requests("/delta.crl"); got != before {
		t.Errorf("%d requests on behalf of a file", got-before)
	}
}

// OCSP-CRL-04: going back needs a person's word, which is on record, and un-revokes nothing.
func TestCRL04Override(t *testing.T) {
	w := newKept(t, "", `crl = "DIR/NAME.crl"`)
	newer := w.makeCRL("one", crlSpec{number: 10, revoked: map[int64]pki.Reason{10: keyCompromise, 11: pki.CertificateHold}})
	older := w.makeCRL("one", crlSpec{number: 9, revoked: map[int64]pki.Reason{12: keyCompromise}})
	if _, err := w.imported(newer, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := w.imported(older, ""); err == nil || !strings.Contains(err.Error(), "older") {
		t.Errorf("an older CRL: %v", err)
	}
	w.want("revoked revoked good", 10, 11, 12)
	r, err := w.imported(older, "the CA lost number 10")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(r.Warnings, "\n"), "imported by override: the CA lost number 10") {
		t.Errorf("warnings: %q", r.Warnings)
	}
	w.want("revoked good revoked", 10, 11, 12) // the hold is released, the permanent one stays
	if w.alarm(alarmVanished) == "" || w.alarm(alarmSourceWarning) == "" {
		t.Errorf("alarms: %v", w.k.alarms.list())
	}
	var last audit.Record
	for rec, err := range w.k.audit.Records(0) {
		if err != nil {
			t.Fatal(err)
		}
		if rec.Event == "crl.import" {
			last = rec
		}
	}
	if last.Actor != "tester" || !strings.Contains(fmt.Sprint(last.Details), "{override the CA lost number 10}") {
		t.Errorf("record: %+v", last)
	}
	if _, err := w.imported(newer, ""); err != nil {
		t.Errorf("the newer one again: %v", err)
	}
	w.want("revoked revoked revoked", 10, 11, 12)
	// No override makes a CRL good that is not: another CA's, or one that has run out.
	for _, der := range [][]byte{older[:len(older)-1], w.makeCRL("one", crlSpec{number: 20, this: -2 * time.Hour, next: -time.Hour})} {
		if _, err := w.imported(der, "please"); err == nil {
			t.Error("taken by override")
		}
	}
}

// OCSP-CRL-22: a directory that CAs publish into. The newest file counts, what is not this issuer's is passed over.
func TestCRL22Directory(t *testing.T) {
	w := newKept(t, "", `crl = "DIR/spool"`)
	publish := func(name string, age time.Duration, der []byte) {
		t.Helper()
		w.write("spool/"+name, der)
		at := time.Now().Add(-age)
		if err := os.Chtimes(filepath.Join(w.dir, "spool", name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(w.dir, "spool"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, text := w.fetch(); !strings.Contains(text, "holds no CRL") {
		t.Error(text)
	}
	publish("a.crl", 9*time.Hour, w.makeCRL("one", crlSpec{number: 1}))
	publish("b.crl", 8*time.Hour, w.makeCRL("one", crlSpec{number: 2, revoked: map[int64]pki.Reason{10: keyCompromise}}))
	publish("two.crl", 7*time.Hour, w.makeCRL("two", crlSpec{number: 3, revoked: map[int64]pki.Reason{11: keyCompromise}}))
	publish("delta.crl", 6*time.Hour, w.makeCRL("one", crlSpec{number: 3, base: 2, revoked: map[int64]pki.Reason{12: keyCompromise}}))
	publish(".c.crl", 5*time.Hour, []byte("being written"))
	publish("README", 5*time.Hour, []byte("read me"))
	if _, text := w.fetch(); strings.Contains(text, "failed") {
		t.Error(text)
	}
	w.want("revoked good good", 10, 11, 12)
	if _, text := w.fetch(); strings.Contains(text, "failed") || !strings.Contains(text, "unchanged") {
		t.Error(text)
	}
	// A broken file is an alarm, and the good one before it goes on; an older number that came later changes nothing.
	publish("d.crl", 4*time.Hour, w.makeCRL("one", crlSpec{number: 4})[1:])
	if _, text := w.fetch(); !strings.Contains(text, "d.crl") || w.alarm(alarmSourceRefused) == "" {
		t.Errorf("%s\n%v", text, w.k.alarms.list())
	}
	w.want("revoked good", 10, 30)
	publish("d.crl", 4*time.Hour, w.makeCRL("one", crlSpec{number: 4, revoked: map[int64]pki.Reason{10: keyCompromise, 11: keyCompromise}}))
	publish("late.crl", 3*time.Hour, w.makeCRL("one", crlSpec{number: 1}))
	if _, text := w.fetch(); strings.Contains(text, "failed") {
		t.Error(text)
	}
	w.want("revoked revoked", 10, 11)
	left, err := os.ReadDir(filepath.Join(w.dir, "spool"))
	if err != nil || len(left) != 8 {
		t.Errorf("%d files are left, %v", len(left), err)
	}
}

// A source that the configuration names no more takes its revocations with it: that is an alarm, and on record, unless another source has them.
func TestRemovedSource(t *testing.T) {
	w := newKept(t, "", `crl = "DIR/NAME-a.crl"`, `crl = "DIR/NAME-b.crl"`)
	w.crl("one-a.crl", "one", crlSpec{number: 1, idp: usersOnly, revoked: map[int64]pki.Reason{10: keyCompromise, 11: keyCompromise, 12: pki.CertificateHold}})
	w.crl("one-b.crl", "one", crlSpec{number: 1, idp: authoritiesOnly, revoked: map[int64]pki.Reason{11: keyCompromise}})
	w.fetch()
	w.want("revoked revoked", 10, 11)
	config, err := os.ReadFile(filepath.Join(w.dir, "ocspd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("ocspd.toml", bytes.ReplaceAll(config, []byte("-a.crl"), []byte("-moved.crl")))
	w.reopen()
	w.want("tryLater revoked", 10, 11)
	if !strings.Contains(w.alarm(alarmVanished), "1 permanent revocations went out of force") {
		t.Errorf("alarms: %v", w.k.alarms.list())
	}
	w.reopen()
	if w.alarm(alarmVanished) != "" {
		t.Error("raised again, and nothing went")
	}
}

// What keeper by itself finds refused of a file that was written this moment is an alarm only when it is so at the next reading, too; of an older file, at once.
func TestJustWritten(t *testing.T) {
	w := newKept(t, "", `crl = "DIR/NAME.crl"`)
	i, err := w.k.issuer("one")
	if err != nil {
		t.Fatal(err)
	}
	read := func(refused, alarm bool) {
		t.Helper()
		if _, err := w.k.fetch(context.Background(), i, i.sources[0], true); (err != nil) != refused {
			t.Errorf("refused: %v, want %v", err, refused)
		}
		if got := w.alarm(alarmSourceRefused) != ""; got != alarm {
			t.Errorf("alarm: %v, want %v", got, alarm)
		}
	}
	whole := w.makeCRL("one", crlSpec{number: 1})
	w.write("one.crl", whole[:len(whole)/2])
	read(true, false)
	w.write("one.crl", whole)
	read(false, false)
	w.write("one.crl", whole[:len(whole)/2])
	read(true, false)
	read(true, true)
	w.write("one.crl", whole)
	read(false, false)
	old := time.Now().Add(-time.Minute)
	w.write("one.crl", whole[1:])
	if err := os.Chtimes(filepath.Join(w.dir, "one.crl"), old, old); err != nil {
		t.Fatal(err)
	}
	read(true, true)
}

// unwanted is told apart by key, and a source of a part by its location.
func TestUnwanted(t *testing.T) {
	i := &keptIssuer{config: &issuerConfig{}, standing: &standing{}, sources: []*source{
		{sourceConfig: sourceConfig{CRL: "/a"}}, {sourceConfig: sourceConfig{Index: "/i"}}}}
	now := time.Now()
	for key, want := range map[string]bool{db.CRLLineage: false, db.PartLineage("/a"): false, db.PartLineage("/b"): true, db.IndexLineage("/i"): false, db.IndexLineage("/a"): true} {
		l := db.Lineage{Key: key, Kind: pki.CRL, NextUpdate: now.Add(time.Hour)}
		if got := i.unwanted([]db.Lineage{l}, &l, now) != ""; got != want {
			t.Errorf("%s: %v, want %v", key, got, want)
		}
	}
}

// A generation whose files rot is found by `db check` and by the schedule, and written anew from the database; a damaged head at the start already.
func TestMend(t *testing.T) {
	w := newKept(t, "", `crl = "DIR/NAME.crl"`)
	w.crl("one.crl", "one", crlSpec{number: 1, revoked: map[int64]pki.Reason{10: keyCompromise, 11: keyCompromise}})
	w.fetch()
	i, err := w.k.issuer("one")
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	rot := func(pattern string) {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(w.dir, "state/gen", pattern))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)-3] ^= 4
			if err := os.WriteFile(f, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	checked := func() (out dbResult) {
		t.Helper()
		if err := w.c.call(ctx, "GET", "/db/check", nil, nil, &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := checked(); len(out.Problems) > 0 {
		t.Error(out)
	}
	rot("one.*.base")
	if out := checked(); len(out.Problems) != 1 || !strings.Contains(out.Problems[0], ".base") {
		t.Error(out)
	}
	w.k.mend(ctx, i)
	if out := checked(); len(out.Problems) > 0 {
		t.Error(out)
	}
	w.want("revoked revoked good", 10, 11, 12)
	rot("one.*.gen")
	w.reopen()
	w.want("revoked revoked good", 10, 11, 12)
	if err := os.WriteFile(filepath.Join(w.dir, "state/gen/one.current"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.reopen()
	w.want("revoked revoked good", 10, 11, 12)

	// Where the database itself has lost rows, what was made of it before goes on answering, and nothing is made of it any more.
	execSQL(t, filepath.Join(w.dir, "state/keeper/ocspd.db"), "DELETE FROM hand; UPDATE lineage SET next_update = next_update + 1")
	w.k.mend(ctx, w.k.issuers()[0])
	if a := fmt.Sprint(w.k.alarms.list()); !strings.Contains(a, alarmDatabase) || !strings.Contains(a, "not as they were written") {
		t.Error(a)
	}
	if err := w.byHand(0x1234); err == nil || !strings.Contains(err.Error(), "restore a backup") {
		t.Error(err)
	}
	if out := checked(); len(out.Problems) != 1 {
		t.Error(out)
	}
	w.want("revoked revoked good", 10, 11, 12)

	// A database that knows nothing, beside a generation in force, is not begun with.
	w.k.close()
	w.k = nil
	for _, f := range []string{"", "-wal", "-shm"} {
		os.Remove(filepath.Join(w.dir, "state/keeper/ocspd.db"+f))
	}
	cfg, err := readConfig(filepath.Join(w.dir, "ocspd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if k, err := openKeeper(ctx, cfg, w.log(), lockPatience); err == nil || !strings.Contains(err.Error(), "restore a backup") {
		t.Error(err)
		k.close()
	}
}

func execSQL(t *testing.T, file, statements string) {
	t.Helper()
	if out, err := exec.Command("sqlite3", file, statements).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
}

// The reserve goes when the disk is full, once, and comes back when there is room.
func TestReserve(t *testing.T) {
	w := newKept(t, "", `crl = "DIR/NAME.crl"`)
	file := w.k.ballastFile()
	if info, err := os.Stat(file); err != nil || info.Size() != ballastSize {
		t.Fatal(info, err)
	}
	full := fmt.Errorf("write: %w", syscall.ENOSPC)
	if !isFull(full) || isFull(os.ErrNotExist) {
		t.Error("what full is")
	}
	if !w.k.giveReserve(full) || w.k.giveReserve(full) {
		t.Error("the reserve is given once")
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the file is still there")
	}
	w.k.ballast.tried = time.Time{}
	if !w.k.keepReserve() || len(w.k.alarms.list()) > 0 {
		t.Error(w.k.alarms.list())
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}
