package responder

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"ocspd/pki"
)

// A Judgement is what a careful client thinks of an answer. A finding with Error is one that such a client refuses the answer for;
// the others break a rule and are endured.
type Judgement struct {
	Response  *Response         // nil where there is none
	Signer    *x509.Certificate // whose signature verified, and who may sign; nil otherwise
	Delegated bool              // the signer is not the CA itself
	Algorithm string            // of the signature
	Findings  []pki.Finding
	Tried     []string // rules that had something to say about this answer, kept or not, sorted
}

// Verified reports whether the answer is a status that may be believed: whole, current, for the certificates asked about, signed by the
// CA or by who has its leave.
func (j *Judgement) Verified() bool {
	return j.Signer != nil && !slices.ContainsFunc(j.Findings, func(f pki.Finding) bool { return f.Error })
}

// linter collects findings, and which rules were looked at.
type linter struct {
	findings []pki.Finding
	tried    map[string]bool
}

// want is for a rule whose breach clients endure; refuse for one whose breach makes a careful client refuse the answer.
func (l *linter) want(ok bool, rule, name, format string, args ...any) bool {
	return l.rule(ok, false, rule, name, format, args)
}

func (l *linter) refuse(ok bool, rule, name, format string, args ...any) bool {
	return l.rule(ok, true, rule, name, format, args)
}

func (l *linter) rule(ok, grave bool, rule, name, format string, args []any) bool {
	rule = "OCSP-" + rule
	l.tried[rule] = true
	if !ok {
		l.findings = append(l.findings, pki.Finding{Rule: rule, Name: name, Error: grave, Text: fmt.Sprintf(format, args...)})
	}
	return ok
}

// looked notes rules that were looked at elsewhere than in want and refuse.
func (l *linter) looked(rules ...string) {
	for _, r := range rules {
		l.tried["OCSP-"+r] = true
	}
}

// clockSkew is how far a responder's clock may be ahead of ours before its answers are refused.
const clockSkew = time.Minute

// Judge reads the answer and holds it against the catalogue of rules as far as one answer shows them. webpki adds those of the public
// root programs.
func (x *Exchange) Judge(webpki bool) *Judgement {
	l := &linter{tried: map[string]bool{}}
	j := &Judgement{}
	if l.transport(x) {
		j.Response = l.response(x.Body)
	}
	if r := j.Response; r != nil && r.Status == 0 {
		l.asked(x, r)
		l.signer(x, j, webpki)
		l.times(x, j, webpki)
		l.meaning(x, r, webpki)
		l.size(x)
	}
	if j.Response != nil {
		l.caching(x, j.Response)
	}
	j.Findings, j.Tried = l.findings, slices.Sorted(maps.Keys(l.tried))
	return j
}

// transport: what HTTP says before anything is read.
func (l *linter) transport(x *Exchange) bool {
	redirected := x.HTTPStatus >= 300 && x.HTTPStatus < 400 && x.Header.Get("Location") != ""
	l.refuse(!redirected, "REQ-18", "redirect", "HTTP %d leads to %q; it was not followed", x.HTTPStatus, x.Header.Get("Location"))
	l.want(x.Header.Get("Strict-Transport-Security") == "", "REQ-18", "hsts", "it demands HTTPS from now on (Strict-Transport-Security); checking its certificate would need an answer first")
	if !l.refuse(x.HTTPStatus == http.StatusOK, "REQ-06", "http-status", "HTTP status %d; clients read an answer from 200 alone", x.HTTPStatus) {
		return false
	}
	kind, parameters, _ := strings.Cut(x.Header.Get("Content-Type"), ";")
	l.refuse(strings.EqualFold(strings.TrimSpace(kind), "application/ocsp-response"), "REQ-07", "content-type", "Content-Type is %q, not application/ocsp-response", x.Header.Get("Content-Type"))
	l.want(strings.TrimSpace(parameters) == "", "REQ-07", "content-type-parameter", "Content-Type has parameters: %q", x.Header.Get("Content-Type"))
	encoding := x.Header.Get("Content-Encoding")
	l.refuse(encoding == "" || strings.EqualFold(encoding, "identity"), "REQ-07", "content-encoding", "Content-Encoding is %q; clients do not undo it", encoding)
	l.want(x.Header.Get("Content-Length") == strconv.Itoa(len(x.Body)), "REQ-07", "content-length", "Content-Length is %q, and the body has %d octets", x.Header.Get("Content-Length"), len(x.Body))
	return true
}

// asked: one SingleResponse for each CertID, as it was written, and no more; the nonce as it was sent.
func (l *linter) asked(x *Exchange, r *Response) {
	distinct := map[string]bool{}
	for _, id := range x.CertIDs {
		distinct[string(id)] = true
		one := r.Single(id)
		if !l.refuse(one != nil, "MUL-01", "no-answer", "a success without an answer: none of its %d SingleResponses is for the certificate asked about", len(r.Singles)) {
			continue
		}
		l.want(bytes.Equal(one.CertID, id), "CID-04", "certid-rewritten", "the CertID came back as %x and was sent as %x", one.CertID, id)
	}
	extra := 0
	for i := range r.Singles {
		if !slices.ContainsFunc(x.CertIDs, func(id []byte) bool { return sameCertificate(id, r.Singles[i].CertID) }) {
			extra++
		}
	}
	l.want(extra == 0 && len(r.Singles) <= len(x.CertIDs), "MUL-02", "not-asked", "%d SingleResponses for %d certificates asked about, %d of them for others",
		len(r.Singles), len(x.CertIDs), extra)
	if x.Nonce == nil {
		l.want(r.Nonce == nil, "NON-06", "nonce-unasked", "it has a nonce, and none was sent")
	} else if r.Nonce != nil {
		l.refuse(bytes.Equal(r.Nonce, x.Nonce), "NON-01", "nonce-other", "the nonce came back as %x and was sent as %x: the answer is another's, or old", r.Nonce, x.Nonce)
	}
	for _, e := range r.extensions {
		l.want(e.oid.Equal(extNonce) || e.oid.Equal(extExtendedRevoke), "EXT-03", "needless-extension", "extension %s makes the answer larger for nothing", e.oid)
	}
}

// A signatureForm is how an AlgorithmIdentifier is written where it signs an answer (OCSP-RSP-05).
type signatureForm struct {
	der   string // hex
	oid   string // its beginning: identifier without parameters
	x509  x509.SignatureAlgorithm
	curve elliptic.Curve
}

// signatureForms that may be met. The three of PSS are those of the Mozilla root store policy, section 5.1.1.
var signatureForms = []signatureForm{
	{"300d06092a864886f70d01010b0500", "06092a864886f70d01010b", x509.SHA256WithRSA, nil},
	{"300d06092a864886f70d01010c0500", "06092a864886f70d01010c", x509.SHA384WithRSA, nil},
	{"300d06092a864886f70d01010d0500", "06092a864886f70d01010d", x509.SHA512WithRSA, nil},
	{"300a06082a8648ce3d040302", "06082a8648ce3d040302", x509.ECDSAWithSHA256, elliptic.P256()},
	{"300a06082a8648ce3d040303", "06082a8648ce3d040303", x509.ECDSAWithSHA384, elliptic.P384()},
	{"300a06082a8648ce3d040304", "06082a8648ce3d040304", x509.ECDSAWithSHA512, elliptic.P521()},
	{"300506032b6570", "06032b6570", x509.PureEd25519, nil},
	{pssParameters("01", "20"), "", x509.SHA256WithRSAPSS, nil},
	{pssParameters("02", "30"), "", x509.SHA384WithRSAPSS, nil},
	{pssParameters("03", "40"), "", x509.SHA512WithRSAPSS, nil},
	{"300d06092a864886f70d0101050500", "06092a864886f70d010105", x509.SHA1WithRSA, nil},
	{"300906072a8648ce3d0401", "06072a8648ce3d0401", x509.ECDSAWithSHA1, nil},
	{"300d06092a864886f70d0101040500", "06092a864886f70d010104", x509.MD5WithRSA, nil},
}

func pssParameters(hash, salt string) string {
	alg := "300d06096086480165030402" + hash + "0500"
	return "304106092a864886f70d01010a3034a00f" + alg + "a11c301a06092a864886f70d010108" + alg + "a2030201" + salt
}

// signatureForm finds what signed. It may be written otherwise than it should be.
func (l *linter) signatureForm(r *Response) *signatureForm {
	der := hex.EncodeToString(r.algorithm)
	for i := range signatureForms {
		a := &signatureForms[i]
		exact := der == a.der
		if !exact && (a.oid == "" || !strings.HasPrefix(der[min(4, len(der)):], a.oid)) {
			continue
		}
		l.want(exact, "RSP-05", "algorithm-form", "signatureAlgorithm is %s; %s is right", der, a.der)
		weak := a.x509 == x509.SHA1WithRSA || a.x509 == x509.ECDSAWithSHA1 || a.x509 == x509.MD5WithRSA
		l.refuse(!weak, "RSP-07", "weak-hash", "it is signed with %s, which clients no longer believe", a.x509)
		return a
	}
	l.refuse(false, "RSP-05", "algorithm-unknown", "signatureAlgorithm is %s, which is none that may sign an answer", der)
	return nil
}

// signer finds out who signed, whether the signature is theirs, and whether they may answer for the issuer (RFC 6960 section 4.2.2.2).
func (l *linter) signer(x *Exchange, j *Judgement, webpki bool) {
	r := j.Response
	if r.signature == nil {
		return
	}
	form := l.signatureForm(r)
	if form == nil {
		return
	}
	j.Algorithm = form.x509.String()
	candidate, direct := l.candidate(x, r)
	if candidate == nil {
		return
	}
	if k, ok := candidate.PublicKey.(*ecdsa.PublicKey); ok {
		l.ecdsa(r, form, k)
	}
	if !l.refuse(candidate.CheckSignature(form.x509, r.tbs, r.signature) == nil, "RSP-05", "signature-wrong", "the signature does not verify with the key of %q", candidate.Subject) {
		return
	}
	var findings []pki.Finding
	if direct {
		findings = l.direct(x, r)
	} else {
		findings = l.delegated(x, r, candidate, webpki)
	}
	entitled := true
	for _, f := range findings {
		entitled = entitled && !f.Error
		f.Text = fmt.Sprintf("the certificate of %q: %s", candidate.Subject, f.Text)
		l.tried[f.Rule] = true
		l.findings = append(l.findings, f)
	}
	if entitled {
		j.Signer, j.Delegated = candidate, !direct
	}
}

// direct: the CA itself signed. Clients do not look at its keyUsage, so what is found there does not make them refuse the answer.
func (l *linter) direct(x *Exchange, r *Response) []pki.Finding {
	l.looked("DEL-12", "KEY-22")
	l.want(len(r.Certificates) == 0, "RSP-09", "certs-needless", "the CA itself signed, and the answer carries %d certificates", len(r.Certificates))
	findings := pki.CheckDirect(x.Issuer, x.Received)
	for i := range findings {
		findings[i].Error = findings[i].Error && findings[i].Rule != "OCSP-DEL-12"
	}
	return findings
}

func (l *linter) delegated(x *Exchange, r *Response, signer *x509.Certificate, webpki bool) []pki.Finding {
	l.looked("DEL-01", "DEL-02", "DEL-03", "DEL-04", "DEL-05", "DEL-06", "DEL-07", "DEL-09", "DEL-11", "KEY-22")
	first := r.Certificates[0].Equal(signer)
	l.want(first && len(r.Certificates) == 1, "RSP-09", "certs-too-many", "the answer carries %d certificates, the signer's first: %t; the signer's alone is right", len(r.Certificates), first)
	l.refuse(r.ResponderName == nil || !bytes.Equal(r.ResponderName, x.Issuer.Certificate.RawSubject), "RID-04", "responder-name-of-ca",
		"the ResponderID is the CA's own name, so some clients verify with the CA's key and never look at the signer")
	return pki.CheckDelegate(signer, x.Issuer, x.Received, webpki)
}

// candidate is whom the ResponderID names: the CA, or one of the certificates in the answer.
func (l *linter) candidate(x *Exchange, r *Response) (c *x509.Certificate, direct bool) {
	l.want(r.ResponderName == nil, "RID-05", "responder-by-name", "the ResponderID is a name; new responders give the hash of their key (RFC 9919 section 3.2.2)")
	named := func(c *x509.Certificate) bool {
		if r.ResponderName != nil {
			return bytes.Equal(r.ResponderName, c.RawSubject)
		}
		i, err := pki.NewIssuer("", c)
		return err == nil && bytes.Equal(r.ResponderKey, i.KeyHash(crypto.SHA1))
	}
	ca := x.Issuer.Certificate
	l.looked("RID-03")
	if r.ResponderName == nil && named(ca) {
		return ca, true
	}
	for _, c := range r.Certificates {
		if named(c) && !c.Equal(ca) {
			return c, false
		}
	}
	if named(ca) {
		return ca, true
	}
	if len(r.Certificates) == 0 {
		l.refuse(false, "DEL-09", "signer-not-included", "the CA did not sign it itself, and the signer's certificate is not in the answer")
		return nil, false
	}
	l.refuse(false, "RID-03", "responder-other", "the ResponderID names neither the CA nor one of the %d certificates in the answer", len(r.Certificates))
	return nil, false
}

// ecdsa: the hash goes with the curve, and the signature is SEQUENCE { r, s } of minimal positive INTEGERs.
func (l *linter) ecdsa(r *Response, a *signatureForm, k *ecdsa.PublicKey) {
	l.want(a.curve == nil || a.curve == k.Curve, "RSP-05", "hash-of-other-curve", "%s with a key on %s", a.x509, k.Params().Name)
	s := cryptobyte.String(r.signature)
	var list, first, second cryptobyte.String
	positive := func(n cryptobyte.String) bool {
		return len(n) > 0 && n[0] < 0x80 && (n[0] != 0 || len(n) > 1 && n[1] >= 0x80)
	}
	l.refuse(s.ReadASN1(&list, asn1.SEQUENCE) && s.Empty() && list.ReadASN1(&first, asn1.INTEGER) && list.ReadASN1(&second, asn1.INTEGER) && list.Empty() &&
		positive(first) && positive(second), "RSP-06", "ecdsa-form", "the ECDSA signature %s is not SEQUENCE { r, s } in DER", begin(r.signature))
}

// times: RFC 6960 sections 2.4 and 4.2.2.1.
func (l *linter) times(x *Exchange, j *Judgement, webpki bool) {
	r, now := j.Response, x.Received
	l.want(!r.ProducedAt.After(now), "TIM-03", "produced-in-future", "producedAt is %s after our clock's time", r.ProducedAt.Sub(now).Round(time.Second))
	if c := x.Certificate; c != nil && !r.ProducedAt.IsZero() {
		l.want(!r.ProducedAt.Before(c.NotBefore) && !r.ProducedAt.After(c.NotAfter), "TIM-09", "produced-outside-validity",
			"producedAt is outside the validity of the certificate asked about; Chromium refuses that")
	}
	for i := range r.Singles {
		one := &r.Singles[i]
		this, next := one.ThisUpdate, one.NextUpdate
		if this.IsZero() {
			continue
		}
		l.want(r.ProducedAt.IsZero() || !this.After(r.ProducedAt), "TIM-03", "this-update-after-produced", "thisUpdate is %s after producedAt", this.Sub(r.ProducedAt))
		if l.refuse(!this.After(now.Add(clockSkew)), "TIM-03", "this-update-in-future", "thisUpdate is %s ahead of our clock", this.Sub(now).Round(time.Second)) {
			l.want(!this.After(now), "TIM-03", "this-update-ahead", "thisUpdate is %s ahead of our clock; Chromium refuses that", this.Sub(now).Round(time.Second))
		}
		if next.IsZero() {
			l.refuse(now.Sub(this) < 24*time.Hour, "TIM-04", "no-next-update-old", "there is no nextUpdate, and thisUpdate is %s old", now.Sub(this).Round(time.Second))
			continue
		}
		l.refuse(now.Before(next), "TIM-12", "stale", "nextUpdate passed %s ago", now.Sub(next).Round(time.Second))
		l.refuse(!next.Before(this), "TIM-04", "next-before-this", "nextUpdate is before thisUpdate")
		end := x.Issuer.Certificate.NotAfter
		if j.Signer != nil && j.Signer.NotAfter.Before(end) {
			end = j.Signer.NotAfter
		}
		l.want(!next.After(end), "TIM-05", "outlives-certificate", "nextUpdate %s is after the end %s of the CA's or the signer's certificate", next.Format(time.RFC3339), end.UTC().Format(time.RFC3339))
		if webpki {
			span := next.Sub(this) + time.Second // the interval includes its last second (TLS Baseline Requirements 4.9.9)
			l.want(span >= 8*time.Hour && span <= 7*24*time.Hour, "TIM-06", "interval", "it holds for %s; 8 h to 7 days are allowed", span)
		}
	}
}

// meaning: revocations, extended revocations, extensions of a SingleResponse.
func (l *linter) meaning(x *Exchange, r *Response, webpki bool) {
	extended := slices.ContainsFunc(r.extensions, func(e responseExtension) bool { return e.oid.Equal(extExtendedRevoke) })
	if webpki {
		l.want(!extended, "XRV-04", "extended-revoke", "it uses the extended definition of revoked, which the public profile forbids")
	}
	for i := range r.Singles {
		one := &r.Singles[i]
		for _, e := range one.extensions {
			l.want(!e.oid.Equal(extReasonCode), "EXT-02", "reason-extension", "singleExtensions repeats the reasonCode of the CRL")
			l.want(!e.oid.Equal(extNonce), "NON-01", "nonce-misplaced", "singleExtensions holds a nonce")
			l.want(!e.oid.Equal(extExtendedRevoke), "XRV-02", "extended-revoke-misplaced", "singleExtensions holds extended-revoke")
			if e.oid.Equal(extInvalidityDate) {
				s := e.value
				l.want(!l.time(&s, "invalidityDate").IsZero() && s.Empty(), "REV-06", "invalidity-form", "invalidityDate holds %x", []byte(e.value))
			}
		}
		if one.State != pki.Revoked {
			continue
		}
		l.refuse(!one.RevokedAt.IsZero(), "REV-01", "no-revocation-time", "it is revoked at no time that can be read")
		if one.RevokedAt.Equal(never) {
			l.want(extended && one.Reason == int(pki.CertificateHold) && len(one.extensions) == 0, "XRV-01", "extended-revoke-incomplete",
				"revoked since 1970 means never issued; it takes reason certificateHold, the extension extended-revoke, and no singleExtensions")
		} else if webpki {
			l.want(one.Reason != int(pki.CertificateHold), "REV-05", "hold", "the reason certificateHold is forbidden in the public profile")
		}
	}
}

func (l *linter) size(x *Exchange) {
	l.want(len(x.Body) < 16<<10, "INT-08", "too-large", "the answer has %d octets; servers that staple take less than 16 kB", len(x.Body))
}

// directives are the words of a Cache-Control header in lower case, with their values.
func directives(h http.Header) map[string]string {
	m := map[string]string{}
	for _, d := range strings.Split(strings.Join(h.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(d), "=")
		if name != "" {
			m[strings.ToLower(name)] = strings.Trim(value, `"`)
		}
	}
	return m
}

// caching holds the headers against RFC 9919 section 7.2 and RFC 9110.
func (l *linter) caching(x *Exchange, r *Response) {
	h, control := x.Header, directives(x.Header)
	_, noStore := control["no-store"]
	_, noCache := control["no-cache"]
	for _, name := range []string{"Date", "Expires", "Last-Modified"} {
		if v := h.Get(name); v != "" && !(name == "Expires" && v == "0") {
			_, err := time.Parse(http.TimeFormat, v)
			l.want(err == nil, "CCH-04", "date-form", "%s is %q; a date in HTTP looks like %s", name, v, http.TimeFormat)
		}
	}
	l.want(h.Get("Set-Cookie") == "" && h.Get("Vary") == "", "CCH-08", "vary", "it sets a cookie or varies (Vary: %q)", h.Get("Vary"))
	if r.Status != 0 {
		l.want(noStore || noCache, "STA-05", "error-cacheable", "an error may be kept by caches; Cache-Control: no-store is right")
		return
	}
	if r.Nonce != nil {
		_, maxAge := control["max-age"]
		l.want(noStore || !maxAge && h.Get("Expires") == "" && h.Get("ETag") == "" && h.Get("Last-Modified") == "", "NON-07", "nonce-cacheable",
			"an answer with a nonce is for one client alone, and its headers let caches keep it (Cache-Control: %q)", h.Get("Cache-Control"))
		return
	}
	if !x.Get {
		_, public := control["public"]
		l.want(!public, "CCH-07", "post-public", "an answer to POST promises to be fit for shared caches")
		return
	}
	l.cachedGet(x, r, control, noStore || noCache)
}

func (l *linter) cachedGet(x *Exchange, r *Response, control map[string]string, uncacheable bool) {
	h := x.Header
	unknown := false
	var this, next time.Time
	for i := range r.Singles {
		one := &r.Singles[i]
		unknown = unknown || one.State == pki.Unknown || one.RevokedAt.Equal(never)
		if this.IsZero() || one.ThisUpdate.Before(this) {
			this = one.ThisUpdate
		}
		if next.IsZero() || one.NextUpdate.Before(next) {
			next = one.NextUpdate
		}
	}
	if unknown && uncacheable {
		l.looked("UNK-05")
		return
	}
	l.want(!uncacheable && !strings.EqualFold(h.Get("Pragma"), "no-cache"), "CCH-01", "not-cacheable", "it forbids caching (Cache-Control: %q, Pragma: %q)", h.Get("Cache-Control"), h.Get("Pragma"))
	text, present := control["max-age"]
	age, err := strconv.Atoi(text)
	if l.want(present && err == nil && age >= 0, "CCH-02", "no-max-age", "there is no max-age (Cache-Control: %q)", h.Get("Cache-Control")) && !next.IsZero() {
		l.want(x.Received.Add(time.Duration(age)*time.Second).Before(next), "CCH-02", "max-age-too-long", "max-age=%d outlives nextUpdate, %s away", age, next.Sub(x.Received).Round(time.Second))
	}
	for _, word := range []string{"public", "no-transform", "must-revalidate"} {
		_, there := control[word]
		l.want(there, "CCH-02", "no-"+word, "Cache-Control lacks %s", word)
	}
	expires, err := http.ParseTime(h.Get("Expires"))
	if unknown {
		kept := time.Duration(age) * time.Second
		if !present && err == nil {
			kept = expires.Sub(x.Received)
		}
		l.want(kept <= 5*time.Minute, "UNK-05", "unknown-kept-long", "that a certificate is unknown may be kept for %s; it may be issued any moment, and 5 minutes are enough", kept)
	}
	l.want(err == nil && (expires.Equal(next) || unknown && expires.Before(next)), "CCH-03", "expires", "Expires is %q and nextUpdate %s", h.Get("Expires"), next.Format(http.TimeFormat))
	modified, err := http.ParseTime(h.Get("Last-Modified"))
	l.want(err == nil && modified.Equal(this), "CCH-03", "last-modified", "Last-Modified is %q and thisUpdate %s", h.Get("Last-Modified"), this.Format(http.TimeFormat))
	l.want(h.Get("Date") != "", "CCH-03", "no-date", "there is no Date")
	digest := sha256.Sum256(x.Body)
	l.want(strings.EqualFold(h.Get("ETag"), `"`+hex.EncodeToString(digest[:])+`"`), "CCH-05", "etag", "ETag is %q; the SHA-256 of the answer in hex, quoted, is right", h.Get("ETag"))
}
