package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ocspd/pki"
	"ocspd/responder"
)

type checkOptions struct {
	issuers, certs, serials []string
	conformance             bool
	profile                 string
	timeout, slow           time.Duration
}

func newCheckResponderCmd(a *app) *cobra.Command {
	var o checkOptions
	c := &cobra.Command{
		Use: "responder URL --issuer CA [--issuer CA2 …] [--cert FILE …] [--serial SERIAL …]", Short: "A responder, any one, as its clients see it",
		Long: `Ask a responder as its clients do: by GET and POST, with and without a nonce, by SHA-1 and SHA-256, about the certificates named, about a
serial that was never issued, and with malformed input; and judge every answer: signature, delegation, times, headers. With
--conformance every rule that can be tried from outside is tried and listed by its ID; some of these requests are hostile, and a
responder may stop on them. Only the URL is contacted and no redirect is followed. Exit 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, argv []string) error { return a.checkResponder(c.Context(), argv[0], &o) },
	}
	f := c.Flags()
	f.StringArrayVar(&o.issuers, "issuer", nil, "file of a CA's certificate; may be given several times")
	f.StringArrayVar(&o.certs, "cert", nil, "file of a certificate to ask about, of one of these CAs; may be given several times")
	f.StringArrayVar(&o.serials, "serial", nil, "serial number to ask about, of each CA; may be given several times")
	f.BoolVar(&o.conformance, "conformance", false, "try every rule that shows from outside and list them by ID")
	f.StringVar(&o.profile, "profile", "private", "judge by the rules of private or webpki")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "how long to wait for each answer")
	f.DurationVar(&o.slow, "slow", 2*time.Second, "an answer that takes longer is a WARNING")
	return asPlugin(a, "OCSP", a.withOutput(c))
}

// A checkedIssuer is a CA with the certificates of it that are asked about.
type checkedIssuer struct {
	*pki.Issuer
	subjects []subject
	random   subject // was never issued, in all likelihood
}

// A survey asks one responder many questions.
type survey struct {
	client  *ocspClient
	webpki  bool
	issuers []*checkedIssuer
	slowest time.Duration
	left    time.Duration // the shortest time until a nextUpdate
	answers int           // that were verified
}

func (o *checkOptions) survey(address string) (*survey, error) {
	switch {
	case len(o.issuers) == 0:
		return nil, usagef("check responder: --issuer is missing: the certificate of a CA that it answers for")
	case o.profile != "private" && o.profile != "webpki":
		return nil, usagef("check responder: --profile %s; private and webpki are known", o.profile)
	case o.timeout <= 0 || o.slow <= 0:
		return nil, usagef("check responder: --timeout and --slow must be longer than nothing")
	}
	s := &survey{webpki: o.profile == "webpki", left: -1}
	var err error
	if s.client, err = newOCSPClient(address, o.timeout); err != nil {
		return nil, usagef("check responder: %w", err)
	}
	for _, path := range o.issuers {
		issuer, err := readIssuer(path)
		if err != nil {
			return nil, err
		}
		s.issuers = append(s.issuers, &checkedIssuer{Issuer: issuer, random: randomSubject()})
	}
	for _, path := range o.certs {
		if err := s.addCertificate(path); err != nil {
			return nil, err
		}
	}
	for _, text := range o.serials {
		serial, err := pki.ParseSerial(text)
		if err != nil {
			return nil, usagef("check responder: --serial: %w", err)
		}
		for _, i := range s.issuers {
			i.subjects = append(i.subjects, subject{serial: serial, name: serial.String()})
		}
	}
	return s, nil
}

// addCertificate finds the CA that issued it.
func (s *survey) addCertificate(path string) error {
	if _, err := os.Stat(path); err != nil {
		return err
	}
	var reasons []error
	for _, i := range s.issuers {
		one, err := readSubject(path, i.Issuer)
		if err == nil {
			i.subjects = append(i.subjects, one)
			return nil
		}
		reasons = append(reasons, err)
	}
	return fmt.Errorf("--cert: %w", errors.Join(reasons...))
}

// randomSubject is a serial of 20 octets that nobody issued.
func randomSubject() subject {
	b := make([]byte, pki.MaxSerial)
	rand.Read(b)
	b[0] = b[0]&0x3f | 0x40
	serial, err := pki.SerialFromDER(b)
	if err != nil {
		panic(err) // 20 octets that begin with 0x40 to 0x7f are a serial
	}
	return subject{serial: serial, name: "a random serial"}
}

func (a *app) checkResponder(ctx context.Context, address string, o *checkOptions) error {
	s, err := o.survey(address)
	if err != nil {
		return err
	}
	if o.conformance {
		return a.conformance(ctx, s)
	}
	p := &plugin{service: "OCSP"}
	s.monitor(ctx, p)
	if s.slowest > o.slow {
		p.add(pluginWarning, "the slowest answer took %.3f s", s.slowest.Seconds())
	}
	p.measure("time", round(s.slowest), "s", o.slow.Seconds(), o.timeout.Seconds())
	p.measure("answers", float64(s.answers), "")
	if s.left >= 0 {
		p.measure("left", s.left.Truncate(time.Second).Seconds(), "s")
	}
	return p.print(a)
}

func round(d time.Duration) float64 { return d.Round(100 * time.Microsecond).Seconds() }

// monitor asks what a client asks. It ends with the first question that brings no HTTP answer at all, so that a responder that
// hangs is reported within one timeout.
func (s *survey) monitor(ctx context.Context, p *plugin) {
	var names []string
	for _, i := range s.issuers {
		names = append(names, i.Name)
		if !s.monitorIssuer(ctx, p, i) {
			return
		}
	}
	s.monitorMalformed(ctx, p)
	p.fine = append(p.fine, fmt.Sprintf("%s: %d answers verified, the slowest in %.3f s", strings.Join(names, ", "), s.answers, s.slowest.Seconds()))
}

func (s *survey) monitorIssuer(ctx context.Context, p *plugin, i *checkedIssuer) bool {
	before := s.answers
	first := append(slices.Clone(i.subjects), i.random)[0]
	var list []inquiry
	for _, get := range []bool{false, true} {
		for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
			list = append(list, inquiry{issuer: i.Issuer, subject: first, get: get, hash: hash})
		}
	}
	list = append(list, inquiry{issuer: i.Issuer, subject: first, hash: crypto.SHA1, nonce: newNonce()})
	for n, one := range i.subjects {
		if n > 0 {
			list = append(list, inquiry{issuer: i.Issuer, subject: one, hash: crypto.SHA1}, inquiry{issuer: i.Issuer, subject: one, get: true, hash: crypto.SHA1})
		}
	}
	if len(i.subjects) > 0 {
		list = append(list, inquiry{issuer: i.Issuer, subject: i.random, hash: crypto.SHA1})
	}
	said := map[string]string{}
	for n := range list {
		if !s.monitorOne(ctx, p, i, &list[n], said) {
			return false
		}
	}
	if s.answers == before && p.state() != pluginCritical {
		p.add(pluginUnknown, "%s: it is unauthorized to answer about a serial that nobody issued, so nothing could be verified; name a certificate with --cert", i.Name)
	}
	return true
}

func (q *inquiry) String() string { return q.issuer.Name + ": " + q.how() }

// how names a question but for its issuer.
func (q *inquiry) how() string {
	method, nonce := "POST", ""
	if q.get {
		method = "GET"
	}
	if q.nonce != nil {
		nonce = ", nonce"
	}
	return fmt.Sprintf("%s by %s, %s%s", q.name, method, q.hash, nonce)
}

// measured asks and keeps the measures.
func (s *survey) measured(ctx context.Context, q *inquiry) (*answered, error) {
	a, err := s.client.ask(ctx, q, s.webpki)
	if err != nil {
		return nil, err
	}
	s.slowest = max(s.slowest, a.took)
	if a.Verified() {
		s.answers++
		if next := a.single.NextUpdate; !next.IsZero() {
			if left := next.Sub(a.received); s.left < 0 || left < s.left {
				s.left = left
			}
		}
	}
	return a, nil
}

// monitorOne asks one question; said is what was answered about each certificate, and
// what was found. It is false where no HTTP answer came.
func (s *survey) monitorOne(ctx context.Context, p *plugin, i *checkedIssuer, q *inquiry, said map[string]string) bool {
	a, err := s.measured(ctx, q)
	if err != nil {
		p.add(pluginCritical, "%s: %v", q, err)
		return false
	}
	isRandom := q.serial == i.random.serial
	switch why := a.refusal(); {
	case why != "" && isRandom && a.Response != nil && a.Response.Status == int(responder.Unauthorized): // all that may be said of it
	case why != "":
		p.add(pluginCritical, "%s: %s", q, why)
		return true
	}
	if isRandom && s.webpki && a.status() == "good" {
		p.add(pluginCritical, "%s: %s: good, although nobody issued it (OCSP-UNK-01)", i.Name, q.name)
	}
	if before, ok := said[q.name]; ok && before != a.status() {
		p.add(pluginCritical, "%s: %s, and %s when asked otherwise", q, a.status(), before)
	}
	said[q.name] = a.status()
	for _, f := range a.Findings { // each once for an issuer, whatever numbers are in it
		if said[f.Name] == "" {
			p.add(pluginWarning, "%s: %s (%s)", i.Name, f.Text, f.Rule)
			said[f.Name] = f.Rule
		}
	}
	return true
}

// notARequest is well-formed DER and no OCSPRequest.
var notARequest = []byte{0x30, 0x03, 0x02, 0x01, 0x00}

// monitorMalformed sends what is no request, and sees that the responder is still there.
func (s *survey) monitorMalformed(ctx context.Context, p *plugin) {
	r, err := s.client.post(ctx, notARequest)
	if err != nil {
		p.add(pluginWarning, "malformed input: %v", err)
	} else {
		x := responder.Exchange{Issuer: s.issuers[0].Issuer, Received: r.received, HTTPStatus: r.status, Header: r.header, Body: r.body}
		a := answered{httpReply: r, Judgement: x.Judge(s.webpki)}
		switch {
		case a.Response != nil && a.Response.Status == 0:
			p.add(pluginCritical, "malformed input: it answers with a success (OCSP-REQ-11)")
		case a.Response == nil || a.Response.Status != int(responder.MalformedRequest):
			p.add(pluginWarning, "malformed input: %s instead of malformedRequest (OCSP-REQ-05)", a.status())
		}
	}
	i := s.issuers[0]
	first := append(slices.Clone(i.subjects), i.random)[0]
	if _, err := s.client.ask(ctx, &inquiry{issuer: i.Issuer, subject: first, hash: crypto.SHA1}, s.webpki); err != nil {
		p.add(pluginCritical, "malformed input stopped it: %v (OCSP-REQ-19)", err)
	}
}
