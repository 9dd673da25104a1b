package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ocspd/pki"
	"ocspd/responder"
)

// An inquiry is what query and check ask a responder.
type inquiry struct {
	issuer *pki.Issuer
	subject
	get   bool
	hash  crypto.Hash
	nonce []byte // nil without one
}

// A subject is a certificate asked about.
type subject struct {
	serial      pki.Serial
	certificate *x509.Certificate // nil where only the serial is known
	name        string            // for people
}

// answered is an inquiry with what came back.
type answered struct {
	*httpReply
	*responder.Judgement
	single *responder.SingleResponse // of the certificate asked about; nil without one
}

// ask asks and judges. An error means that no HTTP answer came.
func (c *ocspClient) ask(ctx context.Context, q *inquiry, webpki bool) (*answered, error) {
	target := responder.Target{Issuer: q.issuer, Serial: q.serial, Hash: q.hash}
	id := target.CertID()
	request := responder.NewRequest(q.nonce, id)
	var r *httpReply
	var err error
	if q.get {
		r, err = c.do(ctx, http.MethodGet, responder.GetURL(c.base, responder.GetPath(request)), nil, nil)
	} else {
		r, err = c.post(ctx, request)
	}
	if err != nil {
		return nil, err
	}
	x := &responder.Exchange{Issuer: q.issuer, CertIDs: [][]byte{id}, Nonce: q.nonce, Certificate: q.certificate, Get: q.get,
		Received: r.received, HTTPStatus: r.status, Header: r.header, Body: r.body}
	a := &answered{httpReply: r, Judgement: x.Judge(webpki)}
	if a.Response != nil {
		a.single = a.Response.Single(id)
	}
	return a, nil
}

// status is what was said: the certificate's, or the error, or that there is nothing.
func (a *answered) status() string {
	switch {
	case a.Response == nil:
		return fmt.Sprintf("HTTP %d and no OCSP answer", a.httpReply.status)
	case a.Response.Status != 0:
		return a.Response.StatusText()
	case a.single == nil && len(a.Response.Singles) > 0:
		return "a success"
	case a.single == nil:
		return "a success without an answer"
	}
	return a.single.State.String()
}

// refusal is why the answer cannot be believed, or "".
func (a *answered) refusal() string {
	for _, f := range a.Findings {
		if f.Error {
			return fmt.Sprintf("%s (%s)", f.Text, f.Rule)
		}
	}
	switch {
	case a.Response != nil && a.Response.Status != 0:
		return "the responder answers " + a.Response.StatusText()
	case !a.Verified():
		return "no signature was verified"
	}
	return ""
}

// newNonce is of the length that RFC 9654 section 2.1 recommends.
func newNonce() []byte {
	b := make([]byte, 32)
	rand.Read(b)
	return b
}

// readIssuer takes a CA's certificate; the file's name is its name here.
func readIssuer(path string) (*pki.Issuer, error) {
	cert, err := readCertificate(path)
	if err != nil {
		return nil, fmt.Errorf("--issuer %w", err)
	}
	if cert.Version == 3 && !cert.IsCA {
		return nil, fmt.Errorf("--issuer %s: not the certificate of a CA; give the one that issued the certificates asked about", path)
	}
	return pki.NewIssuer(strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)), cert)
}

// readSubject takes the file of a certificate, which must be the issuer's, or a serial.
func readSubject(arg string, issuer *pki.Issuer) (subject, error) {
	cert, err := readCertificate(arg)
	if errors.Is(err, os.ErrNotExist) {
		serial, err := pki.ParseSerial(arg)
		if err != nil {
			return subject{}, usagef("%s: no such file; and as a serial number: %w", arg, err)
		}
		return subject{serial: serial, name: serial.String()}, nil
	}
	if err != nil {
		return subject{}, err
	}
	if err := issuedBy(cert, issuer); err != nil {
		return subject{}, fmt.Errorf("%s: %w", arg, err)
	}
	serial, err := pki.SerialFromBig(cert.SerialNumber)
	return subject{serial, cert, filepath.Base(arg)}, err
}

type queryOptions struct {
	issuer, url, out          string
	get, post, nonce, noNonce bool
	sha256, lint              bool
	profile                   string
	timeout                   time.Duration
}

func newQueryCmd(a *app) *cobra.Command {
	var o queryOptions
	c := &cobra.Command{
		Use: "query CERT|SERIAL --issuer CA", Short: "Ask an OCSP responder for a certificate's status, and verify the answer",
		Long: `Ask an OCSP responder, any one, for the status of a certificate and judge the answer: its signature, who may sign, its times.
Exit 0 when an answer was verified, whatever status it gives; 1 when none was; 2 for a wrong call. Without --url the address in the
certificate is asked. No redirect is followed and no other address is contacted.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, argv []string) error { return a.query(c.Context(), argv[0], &o) },
	}
	f := c.Flags()
	f.StringVar(&o.issuer, "issuer", "", "file of the certificate of the CA that issued it")
	f.StringVar(&o.url, "url", "", "address of the responder, instead of the one in the certificate")
	f.BoolVar(&o.get, "get", false, "ask by GET")
	f.BoolVar(&o.post, "post", false, "ask by POST (the default)")
	f.BoolVar(&o.nonce, "nonce", false, "send a nonce (the default with POST)")
	f.BoolVar(&o.noNonce, "no-nonce", false, "send no nonce (the default with GET)")
	f.BoolVar(&o.sha256, "sha256", false, "name the certificate by SHA-256 instead of SHA-1")
	f.BoolVar(&o.lint, "lint", false, "list every rule that the answer breaks, by ID")
	f.StringVar(&o.profile, "profile", "private", "judge by the rules of private or webpki")
	f.StringVar(&o.out, "out", "", "write the answer to this file, in DER")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "how long to wait for the answer")
	c.MarkFlagsMutuallyExclusive("get", "post")
	c.MarkFlagsMutuallyExclusive("nonce", "no-nonce")
	return a.withOutput(exclusiveIsUsage(c))
}

// exclusiveIsUsage makes flags that exclude each other a usage error; cobra would report them after Args and before RunE, as any error.
func exclusiveIsUsage(c *cobra.Command) *cobra.Command {
	check := c.Args
	c.Args = func(c *cobra.Command, argv []string) error {
		if err := c.ValidateFlagGroups(); err != nil {
			return usagef("%s: %v", c.CommandPath(), err)
		}
		return check(c, argv)
	}
	return c
}

func (o *queryOptions) check() error {
	switch {
	case o.issuer == "":
		return usagef("query: --issuer is missing: the certificate of the CA that issued the one asked about")
	case o.profile != "private" && o.profile != "webpki":
		return usagef("query: --profile %s; private and webpki are known", o.profile)
	case o.timeout <= 0:
		return usagef("query: --timeout %s; it must be longer than nothing", o.timeout)
	}
	return nil
}

func (a *app) query(ctx context.Context, arg string, o *queryOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	issuer, err := readIssuer(o.issuer)
	if err != nil {
		return fmt.Errorf("query: %w", err)
	}
	q := &inquiry{issuer: issuer, get: o.get, hash: crypto.SHA1}
	if q.subject, err = readSubject(arg, issuer); err != nil {
		return fmt.Errorf("query: %w", err)
	}
	if o.sha256 {
		q.hash = crypto.SHA256
	}
	if o.nonce || !o.get && !o.noNonce {
		q.nonce = newNonce()
	}
	address, err := responderOf(q.certificate, o.url)
	if err != nil {
		return err
	}
	client, err := newOCSPClient(address, o.timeout)
	if err != nil {
		return usagef("query: %w", err)
	}
	answer, err := client.ask(ctx, q, o.profile == "webpki")
	if err != nil {
		return fmt.Errorf("query: %s: %w", address, err)
	}
	if o.out != "" {
		if err := os.WriteFile(o.out, answer.body, 0o644); err != nil {
			return fmt.Errorf("query: --out: %w", err)
		}
	}
	r := newQueryResult(address, q, answer, o.lint)
	if a.json() {
		err = a.printJSON(r)
	} else {
		err = r.print(a)
	}
	if err == nil && !r.Verified {
		err = fmt.Errorf("query: no verified answer: %s", answer.refusal())
	}
	return err
}

// responderOf is the address given, or the certificate's own (RFC 6960 section 3.1).
func responderOf(c *x509.Certificate, given string) (string, error) {
	switch {
	case given != "":
		return given, nil
	case c == nil:
		return "", usagef("query: --url is missing: a serial number does not say which responder to ask")
	case len(c.OCSPServer) == 0:
		return "", usagef("query: --url is missing: the certificate names no responder")
	}
	for _, u := range c.OCSPServer {
		if strings.HasPrefix(u, "http://") {
			return u, nil
		}
	}
	return c.OCSPServer[0], nil
}

// queryResult is what query prints.
type queryResult struct {
	V          int          `json:"v"`
	URL        string       `json:"url"`
	Method     string       `json:"method"`
	Issuer     string       `json:"issuer"`
	Serial     string       `json:"serial"`
	Hash       string       `json:"hash"`
	Answer     string       `json:"answer"` // the OCSP response status, or "" where none came
	Status     string       `json:"status"` // good, revoked, unknown, or "" without an answer
	Reason     string       `json:"reason"`
	RevokedAt  *time.Time   `json:"revoked_at"`
	ThisUpdate *time.Time   `json:"this_update"`
	NextUpdate *time.Time   `json:"next_update"`
	ProducedAt *time.Time   `json:"produced_at"`
	Responder  string       `json:"responder_id"` // "key HEX" or "name CN=…"
	Signer     *querySigner `json:"signer"`       // null where no signature was verified
	Algorithm  string       `json:"signature_algorithm"`
	Nonce      string       `json:"nonce"` // not sent, echoed, not echoed, wrong
	Verified   bool         `json:"verified"`
	HTTP       queryHTTP    `json:"http"`
	Findings   []finding    `json:"findings"` // those a client refuses the answer for; with --lint all
	more       int          // findings that are not shown
	refused    string       // why it is not verified
}

type querySigner struct {
	Subject   string    `json:"subject"`
	Serial    string    `json:"serial"`
	NotAfter  time.Time `json:"not_after"`
	Delegated bool      `json:"delegated"` // by the issuer, which signed the certificate itself
	NoCheck   bool      `json:"nocheck"`
}

type queryHTTP struct {
	Status    int               `json:"status"`
	Protocol  string            `json:"protocol"`
	Headers   map[string]string `json:"headers"`
	Octets    int               `json:"octets"`
	Connected float64           `json:"connected_seconds"`
	Seconds   float64           `json:"seconds"`
}

// finding is a pki.Finding in JSON.
type finding struct {
	Rule  string `json:"rule"`
	Name  string `json:"name"`
	Error bool   `json:"error"`
	Text  string `json:"text"`
}

// headersThatMatter are those that decide how an answer is read and kept.
var headersThatMatter = []string{"Content-Type", "Content-Length", "Content-Encoding", "Cache-Control", "Pragma", "Expires", "Last-Modified",
	"Date", "Age", "Etag", "Location", "Retry-After", "Server", "Via", "X-Cache", "Strict-Transport-Security"}

func newQueryResult(address string, q *inquiry, a *answered, all bool) *queryResult {
	r := &queryResult{V: 1, URL: address, Method: "POST", Issuer: q.issuer.Name, Serial: q.serial.String(), Hash: q.hash.String(),
		Algorithm: a.Algorithm, Verified: a.Verified(), Findings: []finding{}, Nonce: nonceFate(q, a), refused: a.refusal(),
		HTTP: queryHTTP{a.httpReply.status, a.proto, map[string]string{}, len(a.body), a.connected.Seconds(), a.took.Seconds()}}
	if q.get {
		r.Method = "GET"
	}
	for _, h := range headersThatMatter {
		if v := a.header.Values(h); len(v) > 0 {
			r.HTTP.Headers[h] = strings.Join(v, ", ")
		}
	}
	for _, f := range a.Findings {
		if all || f.Error {
			r.Findings = append(r.Findings, finding(f))
		} else {
			r.more++
		}
	}
	if a.Response == nil {
		return r
	}
	r.Answer = a.Response.StatusText()
	if a.Response.Status != 0 {
		return r
	}
	r.ProducedAt, r.Responder = timeOrNil(a.Response.ProducedAt), responderID(a.Response)
	if c := a.Signer; c != nil {
		noCheck := slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidNoCheck) })
		r.Signer = &querySigner{c.Subject.String(), c.SerialNumber.Text(16), c.NotAfter.UTC(), a.Delegated, noCheck}
	}
	if s := a.single; s != nil {
		r.Status, r.ThisUpdate, r.NextUpdate = s.State.String(), timeOrNil(s.ThisUpdate), timeOrNil(s.NextUpdate)
		if s.State == pki.Revoked {
			r.RevokedAt, r.Reason = timeOrNil(s.RevokedAt), pki.Reason(s.Reason).String()
		}
	}
	return r
}

var oidNoCheck = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}

func nonceFate(q *inquiry, a *answered) string {
	switch {
	case q.nonce == nil:
		return "not sent"
	case a.Response == nil || a.Response.Nonce == nil:
		return "not echoed"
	case string(a.Response.Nonce) == string(q.nonce):
		return "echoed"
	}
	return "wrong"
}

func responderID(r *responder.Response) string {
	if r.ResponderName == nil {
		return "key " + hex.EncodeToString(r.ResponderKey)
	}
	var name pkix.RDNSequence
	if _, err := asn1.Unmarshal(r.ResponderName, &name); err != nil {
		return "name that cannot be read"
	}
	return "name " + name.String()
}

func (r *queryResult) print(a *app) error {
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, oneLine(fmt.Sprintf(format, args...), 2000))
	}
	moment := func(name string, t *time.Time) {
		if t != nil {
			row(name, "%s  (%s)", t.Format(time.RFC3339), fromNow(time.Until(*t)))
		}
	}
	row("certificate", "%s of %s", r.Serial, r.Issuer)
	switch {
	case r.Status == "" && r.Answer != "":
		row("status", "none: the responder answers %s", r.Answer)
	case r.Status == "":
		row("status", "none: no OCSP answer")
	case r.RevokedAt != nil:
		row("status", "revoked since %s, %s", r.RevokedAt.Format(time.RFC3339), r.Reason)
	default:
		row("status", "%s", r.Status)
	}
	moment("this update", r.ThisUpdate)
	moment("next update", r.NextUpdate)
	moment("produced at", r.ProducedAt)
	if r.Responder != "" {
		row("responder", "%s", r.Responder)
	}
	if s := r.Signer; s != nil {
		by := "the CA itself"
		if s.Delegated {
			by = "delegated: issued by " + r.Issuer + " itself for OCSP signing"
			if s.NoCheck {
				by += ", nocheck"
			}
		}
		row("signer", "%s, serial %s, until %s; %s", s.Subject, s.Serial, s.NotAfter.Format(time.RFC3339), by)
		row("signature", "%s, verified", r.Algorithm)
	} else if r.Algorithm != "" {
		row("signature", "%s, NOT verified", r.Algorithm)
	}
	row("nonce", "%s", r.Nonce)
	row("http", "%s %s: %d, %s, %d octets", r.Method, r.URL, r.HTTP.Status, r.HTTP.Protocol, r.HTTP.Octets)
	for _, h := range headersThatMatter {
		if v, ok := r.HTTP.Headers[h]; ok {
			row("", "%s: %s", h, v)
		}
	}
	row("time", "%.1f ms, of which %.1f ms to connect", 1000*r.HTTP.Seconds, 1000*r.HTTP.Connected)
	for _, f := range r.Findings {
		weight := "warning"
		if f.Error {
			weight = "error"
		}
		row(weight, "%s %s: %s", f.Rule, f.Name, f.Text)
	}
	if r.more > 0 {
		row("", "%d rules are broken that clients endure; --lint lists them", r.more)
	}
	if r.Verified {
		row("verdict", "verified")
	} else {
		row("verdict", "NOT verified: %s", r.refused)
	}
	return w.Flush()
}

// fromNow says how far away a moment is.
func fromNow(d time.Duration) string {
	if d < 0 {
		return (-d).Round(time.Second).String() + " ago"
	}
	return "in " + d.Round(time.Second).String()
}
