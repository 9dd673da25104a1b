package responder

import (
	"bytes"
	"crypto"
	"crypto/x509"
	encoding "encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"ocspd/pki"
)

// The client's half of the protocol: it asks any responder, reads what comes back and judges it (lint.go). It shares no code
// with what reads requests and writes answers here, so that neither half hides the other's faults.

// A Target is a certificate that a client asks about. Hash is SHA-1, SHA-256, SHA-384 or SHA-512.
type Target struct {
	Issuer *pki.Issuer
	Serial pki.Serial
	Hash   crypto.Hash
}

var targetHashes = map[crypto.Hash]encoding.ObjectIdentifier{
	crypto.SHA1: {1, 3, 14, 3, 2, 26}, crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1},
	crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2}, crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3},
}

// CertID is the DER of the CertID of RFC 6960 section 4.1.1, with NULL parameters, as nearly all clients write it.
func (t *Target) CertID() []byte {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(targetHashes[t.Hash])
			b.AddASN1NULL()
		})
		b.AddASN1OctetString(t.Issuer.NameHash(t.Hash))
		b.AddASN1OctetString(t.Issuer.KeyHash(t.Hash))
		b.AddASN1(asn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(t.Serial.Bytes()) })
	})
	return b.BytesOrPanic()
}

// NewRequest is the DER of an unsigned OCSPRequest for these CertIDs, in DER, with a nonce unless that is nil.
func NewRequest(nonce []byte, certIDs ...[]byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // OCSPRequest
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // TBSRequest
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // requestList
				for _, id := range certIDs {
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(id) })
				}
			})
			if nonce == nil {
				return
			}
			b.AddASN1(contextConstructed(2), func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(extNonce)
						b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(nonce) })
					})
				})
			})
		})
	})
	return b.BytesOrPanic()
}

// GetPath is a request as it stands in the path of a GET (RFC 6960 appendix A.1), without the slash before it.
func GetPath(request []byte) string {
	return strings.NewReplacer("+", "%2B", "/", "%2F", "=", "%3D").Replace(base64.StdEncoding.EncodeToString(request))
}

// GetURL appends a GET's path to a responder's address, which may end in a slash.
func GetURL(base *url.URL, path string) *url.URL {
	u := *base
	u.RawQuery, u.Fragment = "", ""
	prefix := strings.TrimSuffix(base.EscapedPath(), "/")
	// Opaque is sent as it is: no cleaning and no encoding of a second time.
	u.Opaque = prefix + "/" + path
	if strings.HasPrefix(u.Opaque, "//") { // which net/url would take for a host
		u.Path, u.RawPath, u.Opaque = "/"+path, "/"+path, ""
		if p, err := url.PathUnescape(path); err == nil {
			u.Path = "/" + p
		}
	}
	return &u
}

// An Exchange is one question to a responder and what came back over HTTP.
type Exchange struct {
	Issuer      *pki.Issuer       // of the certificates asked about
	CertIDs     [][]byte          // as asked, in DER
	Nonce       []byte            // as asked; nil without one
	Certificate *x509.Certificate // the one asked about, where it is at hand
	Get         bool              // by GET, else by POST
	Received    time.Time         // when the answer was there, by our clock
	HTTPStatus  int
	Header      http.Header
	Body        []byte
}

// A Response is an OCSPResponse as a client reads it (RFC 6960 section 4.2.1). Its slices are parts of the bytes it was read from.
type Response struct {
	Status        int // of the OCSPResponse; the rest is empty unless it is successful, 0
	ResponderName []byte
	ResponderKey  []byte // one of the two is set
	ProducedAt    time.Time
	Singles       []SingleResponse
	Nonce         []byte // nil without one
	Certificates  []*x509.Certificate

	tbs, algorithm, signature []byte
	extensions                []responseExtension
}

// A SingleResponse is what is said of one certificate. Times that are absent or unreadable are zero.
type SingleResponse struct {
	CertID     []byte
	State      pki.State
	RevokedAt  time.Time
	Reason     int // of a revocation; 0 where none is given
	ThisUpdate time.Time
	NextUpdate time.Time

	extensions []responseExtension
}

type responseExtension struct {
	oid      encoding.ObjectIdentifier
	critical bool
	value    cryptobyte.String
}

// StatusText is the name of an OCSPResponseStatus.
func (r *Response) StatusText() string {
	if r.Status == 5 {
		return "sigRequired"
	}
	if r.Status < 0 || r.Status > 6 {
		return "unknown status"
	}
	return ResponseStatus(r.Status).String()
}

// Single is what the response says of a CertID, or nil: byte for byte, or else with the hash algorithm's parameters written otherwise.
func (r *Response) Single(certID []byte) *SingleResponse {
	for i := range r.Singles {
		if bytes.Equal(r.Singles[i].CertID, certID) {
			return &r.Singles[i]
		}
	}
	for i := range r.Singles {
		if sameCertificate(r.Singles[i].CertID, certID) {
			return &r.Singles[i]
		}
	}
	return nil
}

// sameCertificate compares all of two CertIDs but the parameters of their hash algorithms.
func sameCertificate(a, b []byte) bool {
	read := func(der []byte) (oid, rest []byte, ok bool) {
		s := cryptobyte.String(der)
		var id, alg, o cryptobyte.String
		ok = s.ReadASN1(&id, asn1.SEQUENCE) && id.ReadASN1(&alg, asn1.SEQUENCE) && alg.ReadASN1(&o, asn1.OBJECT_IDENTIFIER)
		return o, id, ok
	}
	oidA, restA, okA := read(a)
	oidB, restB, okB := read(b)
	return okA && okB && bytes.Equal(oidA, oidB) && bytes.Equal(restA, restB)
}

// Extensions of responses, and the type of a basic one.
var (
	typeBasic         = encoding.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
	extNonce          = encoding.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
	extExtendedRevoke = encoding.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 9}
	extReasonCode     = encoding.ObjectIdentifier{2, 5, 29, 21}
	extInvalidityDate = encoding.ObjectIdentifier{2, 5, 29, 24}
)

// broken ends the reading of a response: what follows cannot be told.
func (l *linter) broken(where string) {
	l.refuse(false, "RSP-03", "unreadable", "%s cannot be read as DER", where)
}

// ReadResponse reads an OCSPResponse as far as it can be read; nil means that it is none. It judges nothing: that is Judge's work.
func ReadResponse(der []byte) *Response {
	return (&linter{tried: map[string]bool{}}).response(der)
}

// response reads an OCSPResponse and notes every departure from DER and from RFC 6960. It reads on where that can be done;
// nil means that there is no response.
func (l *linter) response(der []byte) *Response {
	s := cryptobyte.String(der)
	var outer, wrapped, responseBytes, oid, basic cryptobyte.String
	r := &Response{}
	if !l.refuse(s.ReadASN1(&outer, asn1.SEQUENCE) && outer.ReadASN1Enum(&r.Status), "RSP-02", "not-a-response",
		"the body, %d octets that begin %s, is no OCSPResponse in DER", len(der), begin(der)) {
		return nil
	}
	l.refuse(s.Empty(), "RSP-03", "trailing-data", "%d octets follow the OCSPResponse", len(s))
	l.want(r.Status >= 0 && r.Status <= 6 && r.Status != 4, "STA-07", "no-such-status", "the response status is %d, which does not exist", r.Status)
	if r.Status != 0 {
		l.want(len(der) == 5, "RSP-01", "error-with-more", "an error is exactly 5 octets, and this one has %d: %s", len(der), begin(der))
		return r
	}
	if !l.refuse(outer.ReadASN1(&wrapped, contextConstructed(0)) && wrapped.ReadASN1(&responseBytes, asn1.SEQUENCE) &&
		responseBytes.ReadASN1Element(&oid, asn1.OBJECT_IDENTIFIER), "RSP-02", "without-response", "it says successful and has no responseBytes") {
		return r
	}
	var kind encoding.ObjectIdentifier
	_, err := encoding.Unmarshal(oid, &kind)
	if !l.refuse(err == nil && kind.Equal(typeBasic), "RSP-02", "not-basic", "the response is of type %s, not id-pkix-ocsp-basic", kind) {
		return r
	}
	if !responseBytes.ReadASN1(&basic, asn1.OCTET_STRING) {
		l.broken("the OCTET STRING of responseBytes")
		return r
	}
	l.refuse(outer.Empty() && wrapped.Empty() && responseBytes.Empty(), "RSP-03", "extra-elements", "something follows responseBytes")
	l.basic(r, basic)
	return r
}

func (l *linter) basic(r *Response, s cryptobyte.String) {
	var basic, tbs, algorithm, signature, certs cryptobyte.String
	var present bool
	if !s.ReadASN1(&basic, asn1.SEQUENCE) || !basic.ReadASN1Element(&tbs, asn1.SEQUENCE) || !basic.ReadASN1Element(&algorithm, asn1.SEQUENCE) ||
		!basic.ReadASN1(&signature, asn1.BIT_STRING) {
		l.broken("BasicOCSPResponse")
		return
	}
	l.refuse(s.Empty(), "RSP-03", "trailing-data", "%d octets follow the BasicOCSPResponse", len(s))
	l.strictDER("ResponseData", tbs)
	l.strictDER("signatureAlgorithm", algorithm)
	r.tbs, r.algorithm = tbs, algorithm
	if l.refuse(len(signature) > 1 && signature[0] == 0, "RSP-05", "signature-form", "the signature is no BIT STRING of whole octets") {
		r.signature = signature[1:]
	}
	switch {
	case !basic.ReadOptionalASN1(&certs, &present, contextConstructed(0)):
		l.broken("certs")
	case present:
		l.certificates(r, certs)
	}
	l.refuse(basic.Empty(), "RSP-03", "extra-elements", "something follows certs in the BasicOCSPResponse")
	l.data(r, tbs)
}

func (l *linter) certificates(r *Response, s cryptobyte.String) {
	var list cryptobyte.String
	if !s.ReadASN1(&list, asn1.SEQUENCE) || !s.Empty() {
		l.broken("certs")
		return
	}
	l.want(!list.Empty(), "RSP-03", "empty-certs", "certs is there and empty; without certificates it must be left out")
	for !list.Empty() {
		var der cryptobyte.String
		if !list.ReadASN1Element(&der, asn1.SEQUENCE) {
			l.broken("certs")
			return
		}
		c, err := x509.ParseCertificate(der)
		if l.want(err == nil, "RSP-09", "certificate-unreadable", "a certificate in the answer cannot be read: %v", err) {
			r.Certificates = append(r.Certificates, c)
		}
	}
}

func (l *linter) data(r *Response, s cryptobyte.String) {
	var data, singles, extensions cryptobyte.String
	var present bool
	if !s.ReadASN1(&data, asn1.SEQUENCE) || !l.version(&data) || !l.responderID(r, &data) {
		l.broken("the beginning of ResponseData")
		return
	}
	r.ProducedAt = l.time(&data, "producedAt")
	if !data.ReadASN1(&singles, asn1.SEQUENCE) {
		l.broken("responses")
		return
	}
	for !singles.Empty() {
		one, ok := l.single(&singles)
		if !ok {
			l.broken("a SingleResponse")
			return
		}
		r.Singles = append(r.Singles, one)
	}
	if !data.ReadOptionalASN1(&extensions, &present, contextConstructed(1)) {
		l.broken("responseExtensions")
		return
	}
	l.refuse(data.Empty(), "RSP-03", "extra-elements", "something follows responseExtensions")
	if present {
		r.extensions = l.extensions(extensions, "responseExtensions")
	}
	l.nonce(r)
}

// version [0] EXPLICIT INTEGER DEFAULT v1: only v1 exists, so in DER it is never written.
func (l *linter) version(data *cryptobyte.String) bool {
	var v, number cryptobyte.String
	var present bool
	if !data.ReadOptionalASN1(&v, &present, contextConstructed(0)) {
		return false
	}
	if !l.want(!present, "RSP-03", "version-written", "version is written although it is v1, the default") {
		l.refuse(v.ReadASN1(&number, asn1.INTEGER) && v.Empty() && bytes.Equal(number, []byte{0}), "RSP-03", "version-other", "version is not v1")
	}
	return true
}

func (l *linter) responderID(r *Response, data *cryptobyte.String) bool {
	var id, content cryptobyte.String
	var tag asn1.Tag
	if !data.ReadAnyASN1(&id, &tag) {
		return false
	}
	switch tag {
	case contextConstructed(1):
		r.ResponderName = id
		l.refuse(id.ReadASN1(&content, asn1.SEQUENCE) && id.Empty(), "RID-02", "responder-name-form", "byName is not [1] EXPLICIT Name")
	case contextConstructed(2):
		ok := id.ReadASN1(&content, asn1.OCTET_STRING) && id.Empty()
		l.refuse(ok, "RID-02", "responder-key-form", "byKey is not [2] EXPLICIT OCTET STRING")
		l.refuse(len(content) == 20, "RID-01", "responder-key-length", "the KeyHash has %d octets; it is a SHA-1, of 20, whatever else is used", len(content))
		r.ResponderKey = content
	default:
		l.refuse(false, "RID-02", "responder-form", "the ResponderID has tag %#x; [1] and [2] EXPLICIT are known", byte(tag))
		r.ResponderKey = id
	}
	return true
}

func (l *linter) single(list *cryptobyte.String) (one SingleResponse, ok bool) {
	var s, id, status, next, extensions cryptobyte.String
	var tag asn1.Tag
	var present bool
	if !list.ReadASN1(&s, asn1.SEQUENCE) || !s.ReadASN1Element(&id, asn1.SEQUENCE) || !s.ReadAnyASN1(&status, &tag) {
		return one, false
	}
	one.CertID = id
	l.status(&one, tag, status)
	one.ThisUpdate = l.time(&s, "thisUpdate")
	if !s.ReadOptionalASN1(&next, &present, contextConstructed(0)) {
		return one, false
	}
	if l.want(present, "TIM-04", "no-next-update", "nextUpdate is missing: caches and strict clients cannot use the answer") {
		one.NextUpdate = l.time(&next, "nextUpdate")
		l.refuse(next.Empty(), "RSP-03", "extra-elements", "something follows nextUpdate")
	}
	if !s.ReadOptionalASN1(&extensions, &present, contextConstructed(1)) {
		return one, false
	}
	if present {
		one.extensions = l.extensions(extensions, "singleExtensions")
	}
	l.refuse(s.Empty(), "RSP-03", "extra-elements", "something follows singleExtensions")
	return one, true
}

// status: CertStatus ::= CHOICE { good [0] IMPLICIT NULL, revoked [1] IMPLICIT RevokedInfo, unknown [2] IMPLICIT NULL }. What is none of the
// three is unknown.
func (l *linter) status(one *SingleResponse, tag asn1.Tag, s cryptobyte.String) {
	primitive := asn1.Tag(0).ContextSpecific()
	switch tag {
	case primitive, primitive + 2:
		if l.refuse(s.Empty(), "RSP-04", "status-form", "certStatus %#x has content", byte(tag)) && tag == primitive {
			one.State = pki.Good
		}
	case contextConstructed(1):
		one.State = pki.Revoked
		l.revocation(one, s)
	default:
		l.refuse(false, "RSP-04", "status-form", "certStatus has tag %#x; good is 80, revoked a1, unknown 82", byte(tag))
	}
}

func (l *linter) revocation(one *SingleResponse, s cryptobyte.String) {
	var wrapped cryptobyte.String
	var present bool
	one.RevokedAt = l.time(&s, "revocationTime")
	if !s.ReadOptionalASN1(&wrapped, &present, contextConstructed(0)) ||
		present && (!wrapped.ReadASN1Enum(&one.Reason) || !wrapped.Empty()) || !s.Empty() {
		l.broken("RevokedInfo")
		return
	}
	l.want(!present || one.Reason != 0, "REV-02", "reason-unspecified", "the reason unspecified is written; it should be left out")
	l.refuse(one.Reason >= 0 && one.Reason <= 255 && pki.Reason(one.Reason).Valid(), "REV-03", "reason-invalid", "reason %d may not stand in an answer", one.Reason)
}

// extensions reads Extensions and judges what holds of each.
func (l *linter) extensions(s cryptobyte.String, where string) (all []responseExtension) {
	var list cryptobyte.String
	if !s.ReadASN1(&list, asn1.SEQUENCE) || !s.Empty() {
		l.broken(where)
		return nil
	}
	l.want(!list.Empty(), "RSP-03", "empty-extensions", "%s is there and empty; without extensions it must be left out", where)
	for !list.Empty() {
		var one, oid cryptobyte.String
		var e responseExtension
		if !list.ReadASN1(&one, asn1.SEQUENCE) || !one.ReadASN1Element(&oid, asn1.OBJECT_IDENTIFIER) {
			l.broken("an extension in " + where)
			return all
		}
		if _, err := encoding.Unmarshal(oid, &e.oid); err != nil {
			l.broken("an extension's identifier in " + where)
		}
		if one.PeekASN1Tag(asn1.BOOLEAN) {
			var flag cryptobyte.String
			one.ReadASN1(&flag, asn1.BOOLEAN)
			e.critical = !bytes.Equal(flag, []byte{0})
			l.want(e.critical, "RSP-03", "critical-false", "extension %s says critical FALSE, the default", e.oid)
		}
		if !one.ReadASN1(&e.value, asn1.OCTET_STRING) || !one.Empty() {
			l.broken("an extension in " + where)
			return all
		}
		l.refuse(!e.critical, "EXT-01", "critical-extension", "extension %s in %s is critical, and clients do not act on it", e.oid, where)
		all = append(all, e)
	}
	return all
}

// nonce takes the nonce out of its extension: an OCTET STRING within the extension's own (RFC 9654 section 2.1).
func (l *linter) nonce(r *Response) {
	for _, e := range r.extensions {
		if !e.oid.Equal(extNonce) {
			continue
		}
		l.refuse(r.Nonce == nil, "NON-09", "nonce-twice", "the answer has more than one nonce")
		l.want(!e.critical, "NON-08", "nonce-critical", "the nonce is critical")
		var value cryptobyte.String
		if s := e.value; l.want(s.ReadASN1(&value, asn1.OCTET_STRING) && s.Empty(), "NON-01", "nonce-form", "the nonce is not an OCTET STRING within the extension's value") {
			r.Nonce = value
		} else {
			r.Nonce = e.value
		}
	}
}

// time reads a GeneralizedTime, and what old software writes in its place.
func (l *linter) time(s *cryptobyte.String, where string) time.Time {
	var content cryptobyte.String
	var tag asn1.Tag
	if !s.ReadAnyASN1(&content, &tag) {
		l.broken(where)
		return time.Time{}
	}
	text := string(content)
	strict, err := time.Parse("20060102150405Z", text)
	if l.refuse(err == nil && len(text) == 15 && tag == asn1.GeneralizedTime, "TIM-01", "time-form",
		"%s is %q with tag %#x; a GeneralizedTime YYYYMMDDHHMMSSZ belongs there", where, text, byte(tag)) {
		return strict
	}
	for _, layout := range []string{"20060102150405Z0700", "200601021504Z0700", "060102150405Z", "0601021504Z"} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}

// strictDER looks at every element for what cryptobyte lets pass: BOOLEANs that are not FF, INTEGERs that are too long, a NULL with content.
func (l *linter) strictDER(where string, s cryptobyte.String) {
	for !s.Empty() {
		var content cryptobyte.String
		var tag asn1.Tag
		if !s.ReadAnyASN1(&content, &tag) {
			l.broken("something in " + where)
			return
		}
		ok := true
		switch n := len(content); {
		case tag&0x20 != 0:
			l.strictDER(where, content)
		case tag == asn1.BOOLEAN:
			ok = n == 1 && (content[0] == 0xff || content[0] == 0)
		case tag == asn1.INTEGER || tag == asn1.ENUM:
			ok = n == 1 || n > 1 && !(content[0] == 0 && content[1] < 0x80 || content[0] == 0xff && content[1] >= 0x80)
		case tag == asn1.NULL:
			ok = n == 0
		}
		l.refuse(ok, "RSP-03", "not-der", "%s holds %x with tag %#x, which is not DER", where, []byte(content), byte(tag))
	}
}

// begin shows how some bytes begin.
func begin(b []byte) string {
	if len(b) > 16 {
		return hex.EncodeToString(b[:16]) + "…"
	}
	return hex.EncodeToString(b)
}
