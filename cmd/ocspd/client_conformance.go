package main

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"

	"ocspd/pki"
	"ocspd/responder"
)

// A surveyRule is a rule of the catalogue that can be tried from outside.
type surveyRule struct {
	id    string
	level string // MUST, SHOULD, MAY
	text  string
	na    string // why it was not tried, where nothing else says so
}

const (
	needRevoked = "no revoked certificate was asked about; name one with --cert"
	needUnknown = "no answer said unknown"
	needDirect  = "the CA does not sign itself"
	needExt     = "no such extension was met"
	onlyWebPKI  = "a rule of --profile webpki"
	holdWebPKI  = "a rule of --profile webpki, about revoked certificates"
)

// surveyRules in the order of the catalogue.
var surveyRules = []surveyRule{
	{"OCSP-REQ-01", "MUST", "POST", ""},
	{"OCSP-REQ-02", "MUST", "GET, with // in the base64, raw and encoded; no redirect", ""},
	{"OCSP-REQ-03", "MUST", "GET: + and = raw and encoded", ""},
	{"OCSP-REQ-04", "SHOULD", "GET: an extra slash, line breaks, no padding", ""},
	{"OCSP-REQ-05", "MUST", "GET: what cannot be decoded is malformedRequest", ""},
	{"OCSP-REQ-06", "SHOULD", "HTTP 200 for OCSP errors too", ""},
	{"OCSP-REQ-07", "MUST", "exact media type, Content-Length, no content-coding", ""},
	{"OCSP-REQ-08", "SHOULD", "any Content-Type of a request, or none", ""},
	{"OCSP-REQ-09", "MUST", "405 with Allow for other methods; HEAD is GET without its body", ""},
	{"OCSP-REQ-10", "MUST", "bounded input", ""},
	{"OCSP-REQ-11", "MUST", "nothing left over in a request, strict DER", ""},
	{"OCSP-REQ-12", "MUST", "version v1 only", ""},
	{"OCSP-REQ-13", "MUST", "an empty requestList is malformed", ""},
	{"OCSP-REQ-14", "MUST", "requestorName may be any GeneralName", ""},
	{"OCSP-REQ-15", "MUST", "unknown extensions: ignored, and refused where critical", ""},
	{"OCSP-REQ-17", "SHOULD", "acceptableResponses", ""},
	{"OCSP-REQ-18", "MUST", "no redirect, no HSTS", ""},
	{"OCSP-REQ-19", "MUST", "no input stops it", ""},
	{"OCSP-CID-01", "MUST", "CertIDs by SHA-1 and SHA-256", ""},
	{"OCSP-CID-03", "MUST", "name hash and key hash are matched together", ""},
	{"OCSP-CID-04", "MUST", "the CertID comes back as it was sent", ""},
	{"OCSP-CID-05", "MUST", "serials of up to 20 octets, leading zero octets kept", ""},
	{"OCSP-CID-06", "SHOULD", "zero and negative serials; one that is not minimal is malformed", ""},
	{"OCSP-CID-07", "MUST", "hashes of the wrong length are malformed", ""},
	{"OCSP-CID-08", "MUST", "a hash that nobody supports is an error, not a crash", ""},
	{"OCSP-MUL-01", "MUST", "an answer for each certificate asked about", ""},
	{"OCSP-MUL-02", "SHOULD", "and for no other", ""},
	{"OCSP-MUL-03", "MUST", "never two CAs under one signature", "needs two --issuer"},
	{"OCSP-MUL-04", "MUST", "a bounded number of certificates", ""},
	{"OCSP-MUL-05", "SHOULD", "the same certificate twice: the same answer twice", ""},
	{"OCSP-NON-01", "MUST", "the nonce comes back, as an OCTET STRING in the extension's value", ""},
	{"OCSP-NON-02", "SHOULD", "a nonce without its OCTET STRING does no harm", ""},
	{"OCSP-NON-03", "MUST", "a nonce of 0 or more than 128 octets is malformed", ""},
	{"OCSP-NON-04", "MUST", "nonces of 16 to 32 octets come back", ""},
	{"OCSP-NON-05", "MAY", "other lengths up to 128 are answered", ""},
	{"OCSP-NON-06", "MUST", "no nonce unasked", ""},
	{"OCSP-NON-07", "MUST", "an answer with a nonce is never kept", ""},
	{"OCSP-NON-08", "MUST", "the nonce of an answer is not critical", ""},
	{"OCSP-NON-09", "MUST", "two nonces are malformed; one for a single certificate is ignored", ""},
	{"OCSP-RSG-01", "MAY", "a signed request is answered", ""},
	{"OCSP-RSP-01", "MUST", "errors are 5 octets", "no error was met"},
	{"OCSP-RSP-02", "MUST", "a success is a BasicOCSPResponse", ""},
	{"OCSP-RSP-03", "MUST", "DER, no defaults written, nothing empty", ""},
	{"OCSP-RSP-04", "MUST", "encoding of the status", ""},
	{"OCSP-RSP-05", "MUST", "the signature and how its algorithm is written", ""},
	{"OCSP-RSP-06", "MUST", "ECDSA signatures in DER", "the key is not ECDSA"},
	{"OCSP-RSP-07", "MUST", "no SHA-1 signature", ""},
	{"OCSP-RSP-09", "SHOULD", "the signer's certificate and no other", ""},
	{"OCSP-EXT-01", "MUST", "no critical extension", needExt},
	{"OCSP-EXT-02", "MUST", "no reasonCode in singleExtensions", needExt},
	{"OCSP-EXT-03", "SHOULD", "no needless response extension", needExt},
	{"OCSP-RID-01", "MUST", "the ResponderID's KeyHash is a SHA-1", "the ResponderID is a name (OCSP-RID-05)"},
	{"OCSP-RID-02", "MUST", "encoding of the ResponderID", ""},
	{"OCSP-RID-03", "MUST", "the ResponderID names who signed", ""},
	{"OCSP-RID-04", "MUST", "a signer's name is not the CA's", ""},
	{"OCSP-RID-05", "MAY", "ResponderID by name, for old clients only", ""},
	{"OCSP-DEL-01", "MUST", "signer: OCSPSigning", ""},
	{"OCSP-DEL-02", "MUST", "signer: issued by this CA with this key", ""},
	{"OCSP-DEL-03", "MUST", "signer: nocheck", ""},
	{"OCSP-DEL-04", "MUST", "signer: keyUsage digitalSignature alone, critical", ""},
	{"OCSP-DEL-05", "MUST", "signer: extensions that it must not have", ""},
	{"OCSP-DEL-06", "SHOULD", "signer: no certificatePolicies", ""},
	{"OCSP-DEL-07", "MUST", "signer: within its validity, of this CA's key identifier", ""},
	{"OCSP-DEL-09", "MUST", "signer: its certificate is in the answer", ""},
	{"OCSP-DEL-11", "SHOULD", "signer: short-lived", ""},
	{"OCSP-DEL-12", "MUST", "the CA's own key signs only with digitalSignature", needDirect},
	{"OCSP-KEY-22", "MUST", "the strength of the signer's key", ""},
	{"OCSP-STA-01", "MUST", "an unknown issuer or serial is not malformed", ""},
	{"OCSP-STA-02", "MUST", "an unknown issuer is unauthorized", ""},
	{"OCSP-STA-05", "SHOULD", "errors are not kept by caches", "no error was met"},
	{"OCSP-STA-07", "MUST", "no status that does not exist", ""},
	{"OCSP-TIM-01", "MUST", "times are YYYYMMDDHHMMSSZ", ""},
	{"OCSP-TIM-03", "MUST", "thisUpdate, producedAt, now: in this order", ""},
	{"OCSP-TIM-04", "MUST", "nextUpdate is there", ""},
	{"OCSP-TIM-05", "MUST", "nextUpdate is not after the end of a certificate", ""},
	{"OCSP-TIM-06", "MUST", "8 hours to 7 days", onlyWebPKI},
	{"OCSP-TIM-09", "SHOULD", "produced within the validity of the certificate", "no certificate file was given"},
	{"OCSP-TIM-12", "MUST", "nextUpdate has not passed", ""},
	{"OCSP-UNK-01", "MUST", "what nobody issued is not good", ""},
	{"OCSP-UNK-05", "MUST", "unknown is kept for minutes at most", needUnknown},
	{"OCSP-REV-01", "MUST", "revoked has its time", needRevoked},
	{"OCSP-REV-02", "SHOULD", "unspecified is not written", needRevoked},
	{"OCSP-REV-03", "MUST", "reasons that exist", needRevoked},
	{"OCSP-REV-05", "MUST", "no certificateHold", holdWebPKI},
	{"OCSP-REV-06", "MAY", "the form of invalidityDate", needExt},
	{"OCSP-XRV-01", "MUST", "revoked for what nobody issued is complete", "nothing was revoked since 1970"},
	{"OCSP-XRV-02", "MAY", "extended-revoke stands in responseExtensions", needExt},
	{"OCSP-XRV-04", "MUST", "no extended-revoke", onlyWebPKI},
	{"OCSP-PSA-02", "MUST", "a malformed list of preferred algorithms is malformed", ""},
	{"OCSP-PSA-05", "MUST", "no weak signature, even where it is preferred", ""},
	{"OCSP-CCH-01", "MUST", "answers to GET may be kept", ""},
	{"OCSP-CCH-02", "SHOULD", "max-age ends before nextUpdate; public, no-transform, must-revalidate", ""},
	{"OCSP-CCH-03", "SHOULD", "Expires, Last-Modified, Date", ""},
	{"OCSP-CCH-04", "MUST", "dates end in GMT", "no date was sent"},
	{"OCSP-CCH-05", "SHOULD", "ETag is the SHA-256 of the answer", ""},
	{"OCSP-CCH-06", "SHOULD", "304 for what has not changed", ""},
	{"OCSP-CCH-07", "SHOULD", "no promises to caches in answers to POST", ""},
	{"OCSP-CCH-08", "MUST", "no Vary, no cookie; the same answer to every User-Agent", ""},
	{"OCSP-INT-06", "MUST", "Go's golang.org/x/crypto/ocsp takes the answer", ""},
	{"OCSP-INT-08", "MUST", "less than 16 kB; HTTP/1.0", ""},
}

// The results, from good to bad.
const (
	resultPass = "pass"
	resultNA   = "not applicable"
	resultWarn = "warning" // a SHOULD or a MAY is not kept
	resultFail = "FAIL"
)

// A ruleResult is a row of the table.
type ruleResult struct {
	ID     string `json:"id"`
	Level  string `json:"level"`
	Rule   string `json:"rule"`
	Result string `json:"result"`
	Seen   string `json:"seen"`
}

// conformanceResult is the table as JSON.
type conformanceResult struct {
	V         int          `json:"v"`
	Responder string       `json:"responder"`
	Profile   string       `json:"profile"`
	State     string       `json:"state"`
	Exit      int          `json:"exit"`
	Passed    int          `json:"passed"`
	Warnings  int          `json:"warnings"`
	Failed    int          `json:"failed"`
	NA        int          `json:"not_applicable"`
	Rules     []ruleResult `json:"rules"`
}

// A trial is a survey that fills the table.
type trial struct {
	*survey
	issuer *checkedIssuer // whose certificates are asked about
	known  *subject       // of which the responder gives a verified answer
	passes map[string]int
	seen   map[string][]string // what broke a rule
	notes  map[string]string   // what was seen where a rule is kept, or why it does not apply
	told   map[string]bool     // findings, by issuer: each is told once
	dead   string              // why nothing more is tried
}

func (t *trial) pass(id string) { t.passes["OCSP-"+id]++ }

// fail notes what was seen; a rule that failed once has failed.
func (t *trial) fail(id, format string, args ...any) {
	t.failed("OCSP-"+id, fmt.Sprintf(format, args...))
}

func (t *trial) failed(id, text string) {
	if t.issuer != nil {
		text = t.issuer.Name + ": " + text
	}
	if len(t.seen[id]) < 3 && !slices.Contains(t.seen[id], text) {
		t.seen[id] = append(t.seen[id], text)
	}
}

func (t *trial) note(id, text string) { t.notes["OCSP-"+id] = text }

// verdict passes or fails; what a responder does that has stopped is no verdict.
func (t *trial) verdict(id string, ok bool, format string, args ...any) {
	stopped := slices.ContainsFunc(args, func(a any) bool {
		s, isSaid := a.(said)
		err, isErr := a.(error)
		return isSaid && s.err == errStopped || isErr && err == errStopped
	})
	if stopped {
		return
	}
	if ok {
		t.pass(id)
	} else {
		t.fail(id, format, args...)
	}
}

// take adds what a judgement says of every rule it looked at.
func (t *trial) take(j *responder.Judgement, what string) {
	broken := map[string]bool{}
	for _, f := range j.Findings {
		broken[f.Rule] = true
		if once := t.issuer.Name + " " + f.Name; !t.told[once] {
			t.told[once] = true
			t.failed(f.Rule, what+": "+f.Text)
		}
	}
	for _, id := range j.Tried {
		if !broken[id] {
			t.passes[id]++
		}
	}
}

func (a *app) conformance(ctx context.Context, s *survey) error {
	t := &trial{survey: s, passes: map[string]int{}, seen: map[string][]string{}, notes: map[string]string{}, told: map[string]bool{}}
	if err := t.run(ctx); err != nil {
		return err
	}
	r := t.result()
	var err error
	if a.json() {
		err = a.printJSON(r)
	} else {
		err = r.print(a)
	}
	if err == nil && r.Exit != 0 {
		err = &exitError{code: r.Exit}
	}
	return err
}

func (t *trial) run(ctx context.Context) error {
	var hostile *checkedIssuer
	for _, i := range t.issuers {
		t.issuer, t.known = i, nil
		if err := t.plain(ctx); err != nil {
			return err
		}
		if t.known == nil {
			continue
		}
		if hostile == nil {
			hostile = i
		}
		t.requests(ctx)
		t.gets(ctx)
		t.nonces(ctx)
		t.headers(ctx)
	}
	if hostile == nil {
		t.issuer = nil
		t.dead = "nothing was verified"
		return nil
	}
	t.several(ctx)
	t.issuer, t.known = hostile, nil
	t.plainKnown(ctx)
	t.hostile(ctx)
	return nil
}

func (t *trial) result() *conformanceResult {
	r := &conformanceResult{V: 1, Responder: t.client.base.String(), Profile: "private"}
	if t.webpki {
		r.Profile = "webpki"
	}
	for _, rule := range surveyRules {
		row := ruleResult{rule.id, rule.level, rule.text, resultNA, rule.na}
		note := t.notes[rule.id]
		switch seen := t.seen[rule.id]; {
		case len(seen) > 0:
			row.Result, row.Seen = resultFail, strings.Join(seen, "; ")
			if rule.level != "MUST" {
				row.Result = resultWarn
			}
		case t.passes[rule.id] > 0:
			row.Result, row.Seen = resultPass, fmt.Sprintf("trials: %d", t.passes[rule.id])
			if note != "" {
				row.Seen += "; " + note
			}
		case note != "":
			row.Seen = note
		case t.dead != "" && rule.na == "":
			row.Seen = "not tried: " + t.dead
		}
		row.Seen = oneLine(row.Seen, 600)
		switch row.Result {
		case resultPass:
			r.Passed++
		case resultWarn:
			r.Warnings++
		case resultFail:
			r.Failed++
		default:
			r.NA++
		}
		r.Rules = append(r.Rules, row)
	}
	state := pluginOK
	switch {
	case r.Failed > 0:
		state = pluginCritical
	case r.Warnings > 0:
		state = pluginWarning
	case r.Passed == 0:
		state = pluginUnknown
	}
	r.State, r.Exit = state.String(), int(state)
	return r
}

func (r *conformanceResult) print(a *app) error {
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tLEVEL\tRESULT\tRULE\tSEEN")
	for _, x := range r.Rules {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", x.ID, x.Level, x.Result, x.Rule, x.Seen)
	}
	w.Flush()
	_, err := fmt.Fprintf(a.stdout, "%s: %s: %d kept, %d warnings, %d failed, %d not applicable (profile %s)\n",
		r.Responder, r.State, r.Passed, r.Warnings, r.Failed, r.NA, r.Profile)
	return err
}

// -- asking

// said is what came back to one request of a trial.
type said struct {
	*answered
	err error
}

// status is the OCSP response status, or -1 where there is none.
func (s said) status() int {
	if s.err != nil || s.Response == nil {
		return -1
	}
	return s.Response.Status
}

func (s said) String() string {
	if s.err != nil {
		return s.err.Error()
	}
	return s.answered.status()
}

// errStopped stands for every answer after the responder stopped answering: no rule is judged by it.
var errStopped = errors.New("the responder stopped answering")

// send sends anything. Where nothing comes back, it is seen whether the responder is still there.
func (t *trial) send(ctx context.Context, what, method string, u *url.URL, header http.Header, body []byte) (*httpReply, error) {
	if t.dead != "" {
		return nil, errStopped
	}
	r, err := t.client.do(ctx, method, u, header, bytes.NewReader(body))
	if err != nil {
		t.alive(ctx, what)
	}
	return r, err
}

// judge holds a reply against the rules, as the answer to these CertIDs of the trial's issuer. After anything but a success
// it is seen whether the responder is still there.
func (t *trial) judge(ctx context.Context, r *httpReply, err error, get bool, nonce []byte, what string, ids ...[]byte) said {
	s := t.assess(r, err, get, nonce, ids...)
	if err != nil {
		return s
	}
	if accepted := len(ids) == 0 && s.status() == 0; !accepted && !httpFault(r.status, what) {
		t.take(s.Judgement, what)
	}
	if s.status() != 0 {
		t.alive(ctx, what)
	}
	return s
}

// assess is judge without consequences.
func (t *trial) assess(r *httpReply, err error, get bool, nonce []byte, ids ...[]byte) said {
	if err != nil {
		return said{err: err}
	}
	x := &responder.Exchange{Issuer: t.issuer.Issuer, CertIDs: ids, Nonce: nonce, Get: get, Received: r.received, HTTPStatus: r.status, Header: r.header, Body: r.body}
	if t.known != nil && len(ids) == 1 && bytes.Equal(ids[0], t.id(t.known.serial)) {
		x.Certificate = t.known.certificate
	}
	a := &answered{httpReply: r, Judgement: x.Judge(t.webpki)}
	if a.Response != nil && len(ids) > 0 {
		a.single = a.Response.Single(ids[0])
	}
	return said{answered: a}
}

// unreadable is a trial that HTTP itself cannot read.
const unreadable = "GET: bad percent-encoding"

// httpFault reports whether a reply is HTTP's own and no concern of OCSP's rules: too large, too long, unreadable.
func httpFault(status int, what string) bool {
	return status == http.StatusRequestEntityTooLarge || status == http.StatusRequestURITooLong || status == http.StatusBadRequest && what == unreadable
}

func (t *trial) id(serial pki.Serial) []byte {
	return (&responder.Target{Issuer: t.issuer.Issuer, Serial: serial, Hash: crypto.SHA1}).CertID()
}

func (t *trial) knownID() []byte { return t.id(t.known.serial) }

// post sends octets as a request. get has its path as it will be sent.
func (t *trial) post(ctx context.Context, what string, request []byte, ids ...[]byte) said {
	return t.postNonce(ctx, what, request, nil, ids...)
}

func (t *trial) postNonce(ctx context.Context, what string, request, nonce []byte, ids ...[]byte) said {
	r, err := t.send(ctx, what, http.MethodPost, t.client.base, http.Header{"Content-Type": {"application/ocsp-request"}}, request)
	return t.judge(ctx, r, err, false, nonce, what, ids...)
}

func (t *trial) get(ctx context.Context, what, path string, ids ...[]byte) said {
	return t.getWith(ctx, what, path, nil, ids...)
}

func (t *trial) getWith(ctx context.Context, what, path string, header http.Header, ids ...[]byte) said {
	r, err := t.send(ctx, what, http.MethodGet, responder.GetURL(t.client.base, path), header, nil)
	return t.judge(ctx, r, err, true, nil, what, ids...)
}

// wantAnswer wants a verified answer.
func (t *trial) wantAnswer(id, what string, s said) {
	if s.err != nil {
		t.verdict(id, false, "%s: %v", what, s.err)
		return
	}
	why := s.refusal()
	t.verdict(id, why == "", "%s: %s", what, why)
}

// wantSame wants what the same question brought when it was asked plainly: a random serial may well be unauthorized.
func (t *trial) wantSame(id, what string, s, plain said) {
	t.verdict(id, s.String() == plain.String(), "%s: %s, and %s when asked plainly", what, s, plain)
}

// wantError wants an OCSP error. An HTTP status of 4xx is one, too, for this rule; that it should be 200 is another rule.
func (t *trial) wantError(id, what string, s said, wanted ...responder.ResponseStatus) {
	refused := s.err == nil && s.Response == nil && s.httpReply.status >= 400 && s.httpReply.status < 500
	ok := refused || slices.ContainsFunc(wanted, func(w responder.ResponseStatus) bool { return s.status() == int(w) })
	var names []string
	for _, w := range wanted {
		names = append(names, w.String())
	}
	t.verdict(id, ok, "%s: %s instead of %s", what, s, strings.Join(names, " or "))
}

// wantHarmless wants anything but a success that does not verify, or nothing.
func (t *trial) wantHarmless(id, what string, s said) {
	if s.err == nil && s.status() == 0 {
		t.wantAnswer(id, what, s)
		return
	}
	t.verdict(id, s.status() > 0, "%s: %s", what, s)
}

// -- the trials, harmless ones first

// plain asks about every certificate in the plain ways, and finds one that is answered.
func (t *trial) plain(ctx context.Context) error {
	t.plainKnown(ctx)
	for _, one := range append(slices.Clone(t.issuer.subjects), t.issuer.random) {
		for _, q := range []inquiry{{hash: crypto.SHA1}, {hash: crypto.SHA256}, {hash: crypto.SHA1, get: true}, {hash: crypto.SHA256, get: true}, {hash: crypto.SHA384}, {hash: crypto.SHA512}} {
			q.issuer, q.subject = t.issuer.Issuer, one
			a, err := t.measured(ctx, &q)
			if err != nil {
				t.fail("REQ-01", "%s: %v", q.how(), err)
				t.known = nil
				return nil
			}
			t.take(a.Judgement, q.how())
			t.plainOne(&q, a)
		}
	}
	if t.known == nil && len(t.issuer.subjects) == 0 {
		return fmt.Errorf("%s: nothing can be verified: about a serial that nobody issued there is no verified answer; name a certificate with --cert", t.issuer.Name)
	}
	if t.known == nil {
		t.fail("REQ-01", "no verified answer about any certificate that was named")
	}
	return nil
}

func (t *trial) plainOne(q *inquiry, a *answered) {
	random := q.serial == t.issuer.random.serial
	why := a.refusal()
	allowed := random && a.Response != nil && a.Response.Status == int(responder.Unauthorized)
	t.verdict("STA-01", a.Response == nil || a.Response.Status != int(responder.MalformedRequest), "%s: malformedRequest", q.how())
	rule := "REQ-01"
	switch {
	case q.get:
		rule = "REQ-02"
	case q.hash == crypto.SHA384 || q.hash == crypto.SHA512: // a SHOULD, and so only noted
		if why == "" {
			t.pass("CID-01")
		} else if !allowed {
			t.note("CID-01", q.hash.String()+": "+a.status())
		}
		return
	case q.hash == crypto.SHA256:
		rule = "CID-01"
	}
	if a.Response == nil || !allowed && a.Response.Status != 0 {
		t.fail(rule, "%s: %s", q.how(), a.status())
	} else if !allowed {
		t.pass(rule)
	}
	if random && a.status() == "good" && !t.webpki {
		t.note("UNK-01", "it says good; in the private profile a responder that knows CRLs alone may (OCSP-UNK-02)")
	} else if random {
		t.verdict("UNK-01", a.status() != "good", "%s: good", q.how())
	}
	if q.get && q.hash == crypto.SHA1 && why == "" {
		_, err := ocsp.ParseResponse(a.body, t.issuer.Certificate)
		t.verdict("INT-06", err == nil, "%s: %v", q.how(), err)
	}
}

// plainKnown finds the first certificate that is answered by POST.
func (t *trial) plainKnown(ctx context.Context) {
	for _, one := range append(slices.Clone(t.issuer.subjects), t.issuer.random) {
		if a, err := t.measured(ctx, &inquiry{issuer: t.issuer.Issuer, subject: one, hash: crypto.SHA1}); err == nil && a.refusal() == "" {
			t.known = &one
			return
		}
	}
}

// der writes an element.
func der(tag byte, parts ...[]byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(asn1.Tag(tag), func(b *cryptobyte.Builder) {
		for _, p := range parts {
			b.AddBytes(p)
		}
	})
	return b.BytesOrPanic()
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err) // a constant of this file
	}
	return b
}

// Parts of requests, in DER.
var (
	derNonce     = unhex("06092b0601050507300102")
	derTypes     = unhex("06092b0601050507300104")
	derPreferred = unhex("06092b0601050507300108")
	derOther     = unhex("06032a0304") // 1.2.3.4
	derBasic     = unhex("06092b0601050507300101")
	derTrue      = unhex("0101ff")
	derNull      = unhex("0500")
	derSHA1      = unhex("06052b0e03021a")
	derSHA256    = unhex("0609608648016503040201")
	derMD5       = unhex("06082a864886f70d0205")
)

func derExtension(oid []byte, value []byte) []byte { return der(0x30, oid, der(4, value)) }

func derCritical(oid []byte, value []byte) []byte { return der(0x30, oid, derTrue, der(4, value)) }

// list is a requestList; withExtensions a request for one CertID with request extensions.
func list(ids ...[]byte) []byte {
	var l [][]byte
	for _, id := range ids {
		l = append(l, der(0x30, id))
	}
	return der(0x30, l...)
}

func withExtensions(id []byte, extensions ...[]byte) []byte {
	return der(0x30, der(0x30, list(id), der(0xa2, der(0x30, extensions...))))
}

// requests are well-formed requests that must be answered as the plain one is.
func (t *trial) requests(ctx context.Context) {
	id := t.knownID()
	tbs := func(parts ...[]byte) []byte { return der(0x30, der(0x30, parts...)) }
	directory := der(0xa4, der(0x30, der(0x31, der(0x30, unhex("0603550403"), der(0x0c, []byte("example"))))))
	for _, c := range []struct {
		rule, what string
		request    []byte
	}{
		{"REQ-12", "version v1 written", tbs(unhex("a003020100"), list(id))},
		{"REQ-14", "requestorName directoryName", tbs(der(0xa1, directory), list(id))},
		{"REQ-14", "requestorName rfc822Name", tbs(der(0xa1, der(0x81, []byte("a@example.org"))), list(id))},
		{"REQ-14", "requestorName dNSName", tbs(der(0xa1, der(0x82, []byte("example.org"))), list(id))},
		{"REQ-15", "an unknown extension, not critical", withExtensions(id, derExtension(derOther, derNull))},
		{"REQ-17", "acceptableResponses basic", withExtensions(id, derExtension(derTypes, der(0x30, derBasic)))},
		{"NON-09", "a nonce for the single certificate", tbs(der(0x30, der(0x30, id, der(0xa0, der(0x30, derExtension(derNonce, der(4, make([]byte, 16))))))))},
		{"RSG-01", "a signature of garbage", der(0x30, der(0x30, list(id)), der(0xa0, der(0x30, der(0x30, unhex("06092a864886f70d01010b"), derNull), der(3, []byte{0, 1, 2, 3}))))},
		{"PSA-05", "SHA-1 preferred", withExtensions(id, derExtension(derPreferred, der(0x30, der(0x30, der(0x30, unhex("06092a864886f70d010105"), derNull)))))},
	} {
		t.wantAnswer(c.rule, c.what, t.post(ctx, c.what, c.request, id))
	}
	t.contentTypes(ctx, id)
	t.serials(ctx)
	t.multiple(ctx, id)
	t.otherForm(ctx, id)
}

func (t *trial) contentTypes(ctx context.Context, id []byte) {
	for _, kind := range []string{"Application/OCSP-Request; charset=binary", "", "application/octet-stream"} {
		header := http.Header{}
		if kind != "" {
			header.Set("Content-Type", kind)
		}
		what := fmt.Sprintf("Content-Type %q", kind)
		r, err := t.send(ctx, what, http.MethodPost, t.client.base, header, responder.NewRequest(nil, id))
		t.wantAnswer("REQ-08", what, t.judge(ctx, r, err, false, nil, what, id))
	}
}

func (t *trial) serials(ctx context.Context) {
	for _, c := range []struct{ rule, what, content string }{
		{"CID-05", "a serial with a leading zero octet", "00fe" + hex.EncodeToString(t.issuer.random.serial.Bytes()[:8])},
		{"CID-05", "a serial of 20 octets", "7f" + hex.EncodeToString(t.issuer.random.serial.Bytes()[:19])},
		{"CID-06", "serial 0", "00"},
		{"CID-06", "a negative serial", "fb"},
	} {
		serial, err := pki.SerialFromDER(unhex(c.content))
		if err != nil {
			panic(err) // they are serials
		}
		id := t.id(serial)
		s := t.post(ctx, c.what, responder.NewRequest(nil, id), id)
		t.wantHarmless(c.rule, c.what, s)
		t.verdict("STA-01", s.status() != int(responder.MalformedRequest) || c.rule == "CID-06", "%s: malformedRequest", c.what)
	}
}

func (t *trial) multiple(ctx context.Context, id []byte) {
	ids := [][]byte{t.id(t.issuer.random.serial), id}
	for _, one := range t.issuer.subjects {
		if other := t.id(one.serial); !bytes.Equal(other, id) {
			ids = append(ids, other)
		}
	}
	what := fmt.Sprintf("%d certificates in one request", len(ids))
	s := t.post(ctx, what, responder.NewRequest(nil, ids...), ids...)
	if s.status() == int(responder.Unauthorized) {
		t.note("MUL-01", "it is unauthorized to answer about a serial that nobody issued")
	} else {
		t.wantAnswer("MUL-01", what, s)
	}
	what = "the same certificate twice"
	s = t.post(ctx, what, responder.NewRequest(nil, id, id), id, id)
	if t.wantAnswer("MUL-05", what, s); s.status() == 0 && len(s.Response.Singles) == 2 {
		a, b := s.Response.Singles[0], s.Response.Singles[1]
		t.verdict("MUL-05", a.State == b.State && a.ThisUpdate.Equal(b.ThisUpdate) && a.NextUpdate.Equal(b.NextUpdate), "%s: two different answers", what)
	}
}

// otherForm: the hash algorithm without its parameters. The lint compares what comes back (OCSP-CID-04).
func (t *trial) otherForm(ctx context.Context, id []byte) {
	target := responder.Target{Issuer: t.issuer.Issuer, Serial: t.known.serial, Hash: crypto.SHA256}
	full := target.CertID()
	bare := bytes.Replace(full, der(0x30, derSHA256, derNull), der(0x30, derSHA256), 1)
	bare[1] -= 2 // the length: 2 octets fewer
	what := "a CertID whose hash has no parameters"
	t.wantAnswer("CID-04", what, t.post(ctx, what, responder.NewRequest(nil, bare), bare))
}

// gets are GETs that must be answered as the same question by POST is.
func (t *trial) gets(ctx context.Context) {
	id, special := t.specialRequest()
	b64 := base64.StdEncoding.EncodeToString(special)
	plain := t.post(ctx, "POST", special, id)
	for _, c := range []struct{ rule, what, path string }{
		{"REQ-02", "GET with // raw", b64},
		{"REQ-02", "GET with // encoded", responder.GetPath(special)},
		{"REQ-03", "GET with + encoded, / raw", strings.ReplaceAll(b64, "+", "%2B")},
		{"REQ-03", "GET with = encoded, + raw", strings.ReplaceAll(b64, "=", "%3D")},
	} {
		t.wantSame(c.rule, c.what, t.get(ctx, c.what, c.path, id), plain)
	}
}

// wrapped breaks base64 into lines.
func wrapped(b64 string) string {
	var b strings.Builder
	for len(b64) > 64 {
		b.WriteString(b64[:64] + "%0A")
		b64 = b64[64:]
	}
	return b.String() + b64
}

// specialRequest is one whose base64 holds `//`, `+` and `=`: about a serial that is chosen for it.
func (t *trial) specialRequest() (id, request []byte) {
	for {
		n := randomSubject().serial.Bytes()
		for i := 4; i < 16; i++ {
			n[i] = []byte{0xff, 0xfb, 0xef, 0xbe}[n[i]&3]
		}
		for _, size := range []int{20, 19, 18} {
			serial, err := pki.SerialFromDER(n[:size])
			if err != nil {
				panic(err)
			}
			id = t.id(serial)
			request = responder.NewRequest(nil, id)
			if b := base64.StdEncoding.EncodeToString(request); strings.Contains(b, "//") && strings.Contains(b, "+") && strings.HasSuffix(b, "=") {
				return id, request
			}
		}
	}
}

// nonces of every kind that must be answered.
func (t *trial) nonces(ctx context.Context) {
	id := t.knownID()
	ask := func(what string, nonce []byte, extension []byte) said {
		return t.postNonce(ctx, what, withExtensions(id, extension), nonce, id)
	}
	first := newNonce()
	s := ask("a nonce of 32 octets", first, derExtension(derNonce, der(4, first)))
	t.wantAnswer("NON-01", "a nonce", s)
	if s.status() == 0 && s.Response.Nonce == nil {
		for _, id := range []string{"NON-01", "NON-04", "NON-07", "NON-08"} {
			delete(t.passes, "OCSP-"+id)
			t.note(id, "it answers without the nonce (OCSP-NON-10)")
		}
	} else {
		for _, n := range []int{16, 20, 31, 32} {
			nonce := newNonce()[:n]
			what := fmt.Sprintf("a nonce of %d octets", n)
			s := ask(what, nonce, derExtension(derNonce, der(4, nonce)))
			t.verdict("NON-04", s.status() == 0 && bytes.Equal(s.Response.Nonce, nonce), "%s: %s, and it did not come back", what, s)
		}
		nonce := newNonce()
		s := ask("a critical nonce", nonce, derCritical(derNonce, der(4, nonce)))
		t.wantAnswer("NON-08", "a critical nonce", s)
		plain := t.get(ctx, "GET after a nonce", responder.GetPath(responder.NewRequest(nil, id)), id)
		t.verdict("NON-07", plain.status() != 0 || plain.Response.Nonce == nil, "an answer with a nonce was given to who sent none: %s", plain)
	}
	for _, n := range []int{9, 64, 128} {
		nonce := bytes.Repeat([]byte{0xa5}, n)
		what := fmt.Sprintf("a nonce of %d octets", n)
		t.wantAnswer("NON-05", what, ask(what, nonce, derExtension(derNonce, der(4, nonce))))
	}
	raw := bytes.Repeat([]byte{0xa5}, 16)
	// Such a nonce may come back as it was: the form of what comes back is not judged.
	what := "a nonce without its OCTET STRING"
	r, err := t.send(ctx, what, http.MethodPost, t.client.base, http.Header{"Content-Type": {"application/ocsp-request"}}, withExtensions(id, derExtension(derNonce, raw)))
	t.wantHarmless("NON-02", what, t.assess(r, err, false, raw, id))
}

// headers: conditional requests, User-Agent, Accept-Encoding, HTTP/1.0.
func (t *trial) headers(ctx context.Context) {
	id := t.knownID()
	path := responder.GetPath(responder.NewRequest(nil, id))
	first, err := t.send(ctx, "GET", http.MethodGet, responder.GetURL(t.client.base, path), nil, nil)
	if err != nil {
		t.verdict("REQ-02", false, "GET: %v", err)
		return
	}
	t.conditional(ctx, path, first)
	t.wantAnswer("REQ-07", "Accept-Encoding: gzip", t.getWith(ctx, "Accept-Encoding: gzip", path, http.Header{"Accept-Encoding": {"gzip"}}, id))
	t.wantAnswer("CCH-08", "another User-Agent", t.getWith(ctx, "another User-Agent", path, http.Header{"User-Agent": {"another"}}, id))
	t.oldHTTP(ctx, path, id)
}

// conditional: RFC 9110 section 13.
func (t *trial) conditional(ctx context.Context, path string, first *httpReply) {
	etag := first.header.Get("Etag")
	if etag == "" {
		t.fail("CCH-06", "there is no ETag")
		return
	}
	modified := first.header.Get("Last-Modified")
	for _, c := range []struct {
		header http.Header
		status int
	}{
		{http.Header{"If-None-Match": {etag}}, http.StatusNotModified},
		{http.Header{"If-None-Match": {`"x", ` + etag}}, http.StatusNotModified},
		{http.Header{"If-None-Match": {"W/" + etag}}, http.StatusNotModified},
		{http.Header{"If-None-Match": {"*"}}, http.StatusNotModified},
		{http.Header{"If-None-Match": {`"x"`}}, http.StatusOK},
		{http.Header{"If-None-Match": {`"x"`}, "If-Modified-Since": {modified}}, http.StatusOK},
	} {
		what := fmt.Sprintf("If-None-Match %s", c.header.Get("If-None-Match"))
		r, err := t.send(ctx, what, http.MethodGet, responder.GetURL(t.client.base, path), c.header, nil)
		if err != nil {
			t.verdict("CCH-06", false, "%s: %v", what, err)
			continue
		}
		bare := len(r.body) == 0 && r.header.Get("Etag") != "" && r.header.Get("Cache-Control") != ""
		t.verdict("CCH-06", r.status == c.status && (c.status == http.StatusOK || bare), "%s: %s", what, httpText(r))
	}
}

func httpText(r *httpReply) string {
	return fmt.Sprintf("HTTP %d with %d octets, ETag %q, Content-Length %q", r.status, len(r.body), r.header.Get("Etag"), r.header.Get("Content-Length"))
}

// several: certificates of two CAs in one request cannot have one signer (RFC 6960 section 4.2.2.2).
func (t *trial) several(ctx context.Context) {
	if len(t.issuers) < 2 {
		return
	}
	t.issuer, t.known = t.issuers[1], nil
	second := t.id(append(slices.Clone(t.issuer.subjects), t.issuer.random)[0].serial)
	t.issuer = t.issuers[0]
	first := t.id(append(slices.Clone(t.issuer.subjects), t.issuer.random)[0].serial)
	what := "certificates of two CAs"
	t.plainKnown(ctx)
	r, err := t.send(ctx, what, http.MethodPost, t.client.base, http.Header{"Content-Type": {"application/ocsp-request"}}, responder.NewRequest(nil, first, second))
	s := t.assess(r, err, false, nil, first, second)
	if s.status() == 0 { // the second may be unknown to the first's signer, and nothing else
		one := s.Response.Single(second)
		t.verdict("MUL-03", one != nil && one.State == pki.Unknown, "%s: one signature answers for both", what)
		return
	}
	t.verdict("MUL-03", s.status() > 0, "%s: %s", what, s)
}

// hostile are requests that are to be refused. After each the responder must still be there.
func (t *trial) hostile(ctx context.Context) {
	if t.known == nil {
		return
	}
	id, malformed := t.knownID(), []responder.ResponseStatus{responder.MalformedRequest}
	plain := responder.NewRequest(nil, id)
	single := der(0x30, id)
	tbs := func(parts ...[]byte) []byte { return der(0x30, der(0x30, parts...)) }
	nonce := func(n int) []byte { return derExtension(derNonce, der(4, bytes.Repeat([]byte{0xa5}, n))) }
	certID := func(algorithm []byte, n int) []byte { // of a CA that nobody has
		return der(0x30, der(0x30, algorithm, derNull), der(4, make([]byte, n)), der(4, make([]byte, n)), unhex("020101"))
	}
	keyHash, nameHash := t.issuer.KeyHash(crypto.SHA1), t.issuer.NameHash(crypto.SHA1)
	other := bytes.Repeat([]byte{0x5a}, 20)
	many := make([][]byte, 1000)
	for n := range many {
		many[n] = id
	}
	for _, c := range []struct {
		rule, what string
		request    []byte
		wanted     []responder.ResponseStatus
	}{
		{"STA-02", "a CA that nobody has", responder.NewRequest(nil, certID(derSHA1, 20)), []responder.ResponseStatus{responder.Unauthorized}},
		{"CID-03", "another key hash", responder.NewRequest(nil, bytes.Replace(id, keyHash, other, 1)), []responder.ResponseStatus{responder.Unauthorized}},
		{"CID-03", "another name hash", responder.NewRequest(nil, bytes.Replace(id, nameHash, other, 1)), []responder.ResponseStatus{responder.Unauthorized}},
		{"CID-08", "a CertID by MD5", responder.NewRequest(nil, certID(derMD5, 16)), []responder.ResponseStatus{responder.Unauthorized, responder.MalformedRequest}},
		{"CID-07", "SHA-256 with hashes of 20 octets", responder.NewRequest(nil, certID(derSHA256, 20)), malformed},
		{"CID-06", "a serial that is not minimal", responder.NewRequest(nil, der(0x30, der(0x30, derSHA1, derNull), der(4, nameHash), der(4, keyHash), unhex("02020001"))), malformed},
		{"REQ-11", "an octet after the request", append(bytes.Clone(plain), 0), malformed},
		{"REQ-11", "an element too many in OCSPRequest", der(0x30, der(0x30, list(id)), unhex("020100")), malformed},
		{"REQ-11", "an element too many in TBSRequest", tbs(list(id), unhex("a5020500")), malformed},
		{"REQ-11", "an element too many in Request", tbs(der(0x30, der(0x30, id, derNull))), malformed},
		{"REQ-11", "an indefinite length", append(append(unhex("3080"), der(0x30, list(id))...), 0, 0), malformed},
		{"REQ-12", "version v2", tbs(unhex("a003020101"), list(id)), malformed},
		{"REQ-13", "an empty requestList", unhex("300430023000"), malformed},
		{"REQ-15", "an unknown critical extension", withExtensions(id, derCritical(derOther, derNull)), []responder.ResponseStatus{responder.MalformedRequest, responder.Unauthorized}},
		{"REQ-15", "an unknown critical extension for the single certificate", tbs(der(0x30, der(0x30, id, der(0xa0, der(0x30, derCritical(derOther, derNull)))))), []responder.ResponseStatus{responder.MalformedRequest, responder.Unauthorized}},
		{"NON-03", "a nonce of 0 octets", withExtensions(id, nonce(0)), malformed},
		{"NON-03", "a nonce of 129 octets", withExtensions(id, nonce(129)), malformed},
		{"NON-09", "two nonces", withExtensions(id, nonce(16), nonce(16)), malformed},
		{"PSA-02", "a malformed list of preferred algorithms", withExtensions(id, derExtension(derPreferred, unhex("300430020101"))), malformed},
		{"MUL-04", "1000 certificates in one request", der(0x30, der(0x30, list(many...))), malformed},
		{"REQ-10", "a length far beyond what follows", unhex("3083030d3b"), malformed},
		{"REQ-10", "a body of 1 MiB", append(unhex("3084000ffffa"), make([]byte, 1<<20-6)...), malformed},
		{"REQ-11", "no request but DER", notARequest, malformed},
		{"REQ-11", "no DER", []byte("hello, world"), malformed},
		{"REQ-11", "a request cut by one octet", plain[:len(plain)-1], malformed},
		{"REQ-11", "nothing", nil, malformed},
		{"REQ-11", "a TBSRequest alone", single, malformed},
	} {
		s := t.post(ctx, c.what, c.request)
		switch hungUp := s.err != nil && s.err != errStopped && t.dead == ""; {
		case hungUp && (c.rule == "REQ-10" || c.rule == "MUL-04"): // which bounds it as well
			t.pass(c.rule)
		case c.rule == "CID-03" && s.status() == 0: // a signed unknown says nothing wrong
			says := func(one responder.SingleResponse) bool { return one.State != pki.Unknown }
			t.verdict(c.rule, !slices.ContainsFunc(s.Response.Singles, says), "%s: it answers all the same", c.what)
		default:
			t.wantError(c.rule, c.what, s, c.wanted...)
		}
		if s.status() > 0 {
			t.pass("REQ-06")
		}
	}
	t.hostileGets(ctx, plain)
	t.methods(ctx)
}

func (t *trial) hostileGets(ctx context.Context, plain []byte) {
	b64 := base64.StdEncoding.EncodeToString(plain)
	for _, c := range []struct{ what, path string }{
		{"GET: an extra slash", "/" + responder.GetPath(plain)}, {"GET: line breaks", wrapped(b64)}, {"GET: no padding", strings.TrimRight(b64, "=")},
	} {
		t.wantAnswer("REQ-04", c.what, t.get(ctx, c.what, c.path, t.knownID()))
	}
	zeros := base64.StdEncoding.EncodeToString(make([]byte, 1536))
	for _, c := range []struct{ rule, what, path string }{
		{"REQ-05", "GET: == first", "==MFQ"},
		{"REQ-05", "GET: zeros", zeros},
		{"REQ-05", "GET: a request cut by one octet", responder.GetPath(plain[:len(plain)-1])},
		{"REQ-05", unreadable, "%ZZ"},
		{"REQ-10", "GET: a path of 64 KiB", strings.Repeat("A", 1<<16)},
	} {
		s := t.get(ctx, c.what, c.path)
		if hungUp := s.err != nil && s.err != errStopped && t.dead == ""; hungUp && c.rule == "REQ-10" {
			t.pass(c.rule)
		} else {
			t.wantError(c.rule, c.what, s, responder.MalformedRequest)
		}
	}
}

// methods other than those of OCSP, and HEAD.
func (t *trial) methods(ctx context.Context) {
	t.head(ctx)
	for _, method := range []string{http.MethodPut, http.MethodDelete, http.MethodOptions} {
		r, err := t.send(ctx, method, method, t.client.base, nil, nil)
		if err != nil {
			t.verdict("REQ-09", false, "%s: %v", method, err)
			continue
		}
		t.verdict("REQ-09", r.status == http.StatusMethodNotAllowed && r.header.Get("Allow") != "", "%s: HTTP %d, Allow %q", method, r.status, r.header.Get("Allow"))
		t.alive(ctx, method)
	}
}

// head compares the headers of HEAD with those of a GET before it and one after it: between them an answer may have been renewed.
func (t *trial) head(ctx context.Context) {
	u := responder.GetURL(t.client.base, responder.GetPath(responder.NewRequest(nil, t.knownID())))
	var replies [3]*httpReply
	for n, method := range []string{http.MethodGet, http.MethodHead, http.MethodGet} {
		var err error
		if replies[n], err = t.send(ctx, method, method, u, nil, nil); err != nil {
			t.verdict("REQ-09", false, "%s: %v", method, err)
			return
		}
		t.alive(ctx, method)
	}
	before, head, after := replies[0], replies[1], replies[2]
	same := func(get *httpReply) bool {
		return head.header.Get("Content-Length") == get.header.Get("Content-Length") && head.header.Get("Etag") == get.header.Get("Etag")
	}
	renewed := !bytes.Equal(before.body, after.body) // every GET is signed anew: there is nothing to compare with
	t.verdict("REQ-09", head.status == before.status && len(head.body) == 0 && (same(before) || same(after) || renewed), "HEAD: %s", httpText(head))
}

// alive asks a plain question. A responder that somebody starts again gets a moment; that it stopped stays a fault.
func (t *trial) alive(ctx context.Context, what string) bool {
	if t.dead != "" || t.known == nil {
		return false
	}
	q := &inquiry{issuer: t.issuer.Issuer, subject: *t.known, hash: crypto.SHA1}
	var err error
	for n := range 4 {
		if n > 0 {
			select {
			case <-ctx.Done():
				return false
			case <-time.After(500 * time.Millisecond):
			}
		}
		var a *answered
		if a, err = t.measured(ctx, q); err == nil && a.refusal() == "" {
			t.verdict("REQ-19", n == 0, "%s stopped it for a moment", what)
			return true
		} else if err == nil {
			err = fmt.Errorf("%s", a.refusal())
		}
	}
	t.fail("REQ-19", "%s stopped it: %v", what, err)
	t.dead = "it stopped answering after " + what
	return false
}

// oldHTTP asks as an HTTP/1.0 client does.
func (t *trial) oldHTTP(ctx context.Context, path string, id []byte) {
	if t.client.base.Scheme != "http" || t.dead != "" {
		return
	}
	r, err := t.client.http10(ctx, responder.GetURL(t.client.base, path).RequestURI())
	t.wantAnswer("INT-08", "HTTP/1.0", t.judge(ctx, r, err, true, nil, "HTTP/1.0", id))
}
