package responder

import (
	"bytes"
	encoding "encoding/asn1"
	"errors"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// MaxNonce is the largest nonce in octets (RFC 9654 section 2.1).
const MaxNonce = 128

// errMalformed is the one error of the decoder: what exactly was wrong is nobody's business but a debugger's.
var errMalformed = errors.New("malformed OCSP request")

// Object identifiers below id-pkix-ocsp, 1.3.6.1.5.5.7.48.1, as content octets.
var (
	oidBasic          = []byte{0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01}
	oidNonce          = []byte{0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x02}
	oidCrlID          = []byte{0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x03}
	oidResponseTypes  = []byte{0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x04}
	oidPreferredAlgs  = []byte{0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x08}
	oidExtendedRevoke = []byte{0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x09}
	oidInvalidityDate = []byte{0x55, 0x1d, 0x18}
)

// contextConstructed is the tag of an EXPLICIT [n].
func contextConstructed(n asn1.Tag) asn1.Tag { return n.ContextSpecific().Constructed() }

// maxPreferredAlgorithms bounds the list of RFC 6960 section 4.4.7, which nobody needs to be long.
const maxPreferredAlgorithms = 64

// Request is an OCSPRequest (RFC 6960 section 4.1.1) as far as an answer depends on it. Its slices are parts of
// the bytes it was read from.
type Request struct {
	CertIDs []CertID // in the client's order, at least one
	Nonce   []byte   // the nonce's value, 1 to MaxNonce octets; nil without one

	sawNonce bool // of whatever form
}

// Read decodes one request, strictly: DER, nothing left over anywhere, and no critical extension that we do not
// act on. It accepts at most max CertIDs. Two things that are not DER are let pass, since clients do write them: an explicit version
// v1 and an explicit `critical FALSE`. A signature and a requestorName are read and ignored (RFC 9919 section 3.1.2).
func (r *Request) Read(der []byte, max int) error {
	*r = Request{CertIDs: r.CertIDs[:0]}
	s := cryptobyte.String(der)
	var request, tbs, list, v cryptobyte.String
	var present bool
	if !readASN1(&s, &request, asn1.SEQUENCE) || !s.Empty() ||
		!readASN1(&request, &tbs, asn1.SEQUENCE) ||
		!readVersion(&tbs) ||
		!readOptionalASN1(&tbs, &v, &present, contextConstructed(1)) || present && !isGeneralName(v) ||
		!readASN1(&tbs, &list, asn1.SEQUENCE) || list.Empty() {
		return errMalformed
	}
	for !list.Empty() {
		if len(r.CertIDs) == max || !r.readSingle(&list) {
			return errMalformed
		}
	}
	if !readOptionalASN1(&tbs, &v, &present, contextConstructed(2)) ||
		present && !eachExtension(v, r.requestExtension) || !tbs.Empty() {
		return errMalformed
	}
	if !readOptionalASN1(&request, &v, &present, contextConstructed(0)) || present && !isSignature(v) || !request.Empty() {
		return errMalformed
	}
	return nil
}

func readVersion(tbs *cryptobyte.String) bool {
	var v, n cryptobyte.String
	var present bool
	if !readOptionalASN1(tbs, &v, &present, contextConstructed(0)) {
		return false
	}
	return !present || v.ReadASN1(&n, asn1.INTEGER) && v.Empty() && len(n) == 1 && n[0] == 0
}

// isGeneralName looks at the outer form only: nothing depends on a name that nobody signed.
func isGeneralName(s cryptobyte.String) bool {
	var v cryptobyte.String
	var tag asn1.Tag
	return s.ReadAnyASN1(&v, &tag) && s.Empty() && tag&0xc0 == 0x80 && tag&0x1f <= 8
}

func (r *Request) readSingle(list *cryptobyte.String) bool {
	var single, v cryptobyte.String
	var present bool
	var id CertID
	if !readASN1(list, &single, asn1.SEQUENCE) || !id.read(&single) ||
		!readOptionalASN1(&single, &v, &present, contextConstructed(0)) ||
		present && !eachExtension(v, singleExtension) || !single.Empty() {
		return false
	}
	if r.CertIDs == nil {
		r.CertIDs = make([]CertID, 0, 1) // nearly every request has only one
	}
	r.CertIDs = append(r.CertIDs, id)
	return true
}

// eachExtension walks Extensions (RFC 5280 section 4.1), which hold at least one.
func eachExtension(s cryptobyte.String, f func(oid []byte, critical bool, value cryptobyte.String) bool) bool {
	var list cryptobyte.String
	if !readASN1(&s, &list, asn1.SEQUENCE) || !s.Empty() || list.Empty() {
		return false
	}
	for !list.Empty() {
		var ext, oid, value cryptobyte.String
		critical := false
		if !readASN1(&list, &ext, asn1.SEQUENCE) || !readOID(&ext, &oid) ||
			ext.PeekASN1Tag(asn1.BOOLEAN) && !ext.ReadASN1Boolean(&critical) ||
			!readASN1(&ext, &value, asn1.OCTET_STRING) || !ext.Empty() || !f(oid, critical, value) {
			return false
		}
	}
	return true
}

func (r *Request) requestExtension(oid []byte, critical bool, value cryptobyte.String) bool {
	switch {
	case bytes.Equal(oid, oidNonce):
		return r.readNonce(value)
	case bytes.Equal(oid, oidResponseTypes):
		return isListOf(value, len(value), func(s *cryptobyte.String) bool { return readOID(s, new(cryptobyte.String)) })
	case bytes.Equal(oid, oidPreferredAlgs):
		return isListOf(value, maxPreferredAlgorithms, skipPreferredAlgorithm)
	}
	return !critical
}

// singleExtension: of the two that RFC 6960 knows here, a service locator would have us call a stranger's address, and a
// nonce belongs elsewhere; both are ignored, and refused where the client insists.
func singleExtension(_ []byte, critical bool, _ cryptobyte.String) bool { return !critical }

// readNonce takes the nonce of RFC 9654: an OCTET STRING within the extension's own. Raw octets, which old clients
// sent, are no nonce to us: their answer carries none.
func (r *Request) readNonce(value cryptobyte.String) bool {
	if r.sawNonce || len(value) == 0 {
		return false
	}
	r.sawNonce = true
	var nonce cryptobyte.String
	if s := value; !readASN1(&s, &nonce, asn1.OCTET_STRING) || !s.Empty() {
		return len(value) <= MaxNonce
	}
	if len(nonce) == 0 || len(nonce) > MaxNonce {
		return false
	}
	r.Nonce = nonce
	return true
}

func isListOf(s cryptobyte.String, max int, skip func(*cryptobyte.String) bool) bool {
	var list cryptobyte.String
	if !readASN1(&s, &list, asn1.SEQUENCE) || !s.Empty() {
		return false
	}
	for n := 0; !list.Empty(); n++ {
		if n == max || !skip(&list) {
			return false
		}
	}
	return true
}

// skipPreferredAlgorithm: PreferredSignatureAlgorithm ::= SEQUENCE { sigIdentifier, pubKeyAlgIdentifier OPTIONAL }. Each issuer has one
// key, so there is nothing to choose.
func skipPreferredAlgorithm(s *cryptobyte.String) bool {
	var alg cryptobyte.String
	return readASN1(s, &alg, asn1.SEQUENCE) && skipAlgorithm(&alg) && (alg.Empty() || skipAlgorithm(&alg) && alg.Empty())
}

func skipAlgorithm(s *cryptobyte.String) bool {
	var alg, oid, params cryptobyte.String
	var tag asn1.Tag
	return readASN1(s, &alg, asn1.SEQUENCE) && readOID(&alg, &oid) &&
		(alg.Empty() || alg.ReadAnyASN1(&params, &tag) && alg.Empty())
}

// readASN1 is ReadASN1, quick for what nearly every element is: one of fewer than 128 octets.
func readASN1(s, out *cryptobyte.String, tag asn1.Tag) bool {
	if b := *s; len(b) >= 2 && b[0] == byte(tag) {
		if end := 2 + int(b[1]); end <= len(b) && end < 2+128 {
			*out, *s = b[2:end], b[end:]
			return true
		}
	}
	return s.ReadASN1(out, tag)
}

// readOptionalASN1 is ReadOptionalASN1, quick where there is nothing.
func readOptionalASN1(s, out *cryptobyte.String, present *bool, tag asn1.Tag) bool {
	if *present = len(*s) > 0 && (*s)[0] == byte(tag); !*present {
		return true
	}
	return readASN1(s, out, tag)
}

// readOID reads the content octets of an OBJECT IDENTIFIER: sub-identifiers, each minimal and ended (X.690 section 8.19.2).
func readOID(s, oid *cryptobyte.String) bool {
	if !readASN1(s, oid, asn1.OBJECT_IDENTIFIER) || len(*oid) == 0 {
		return false
	}
	begins := true
	for _, b := range *oid {
		if begins && b == 0x80 {
			return false
		}
		begins = b < 0x80
	}
	return begins
}

// isSignature: Signature ::= SEQUENCE { signatureAlgorithm, signature BIT STRING, certs [0] EXPLICIT SEQUENCE OF Certificate OPTIONAL }
func isSignature(s cryptobyte.String) bool {
	var sig, certs, list cryptobyte.String
	var bits encoding.BitString
	var present bool
	if !readASN1(&s, &sig, asn1.SEQUENCE) || !s.Empty() || !skipAlgorithm(&sig) ||
		!sig.ReadASN1BitString(&bits) ||
		!readOptionalASN1(&sig, &certs, &present, contextConstructed(0)) || !sig.Empty() {
		return false
	}
	if !present {
		return true
	}
	if !readASN1(&certs, &list, asn1.SEQUENCE) || !certs.Empty() {
		return false
	}
	for !list.Empty() {
		if !list.SkipASN1(asn1.SEQUENCE) {
			return false
		}
	}
	return true
}
