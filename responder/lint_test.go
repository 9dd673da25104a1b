package responder

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ocspd/pki"
)

// An answerKit is an answer in its pieces, each the DER of its element, and how HTTP brought it: a sound answer, `good`, to be
// damaged before it is signed.
type answerKit struct {
	exchange Exchange
	ca       *ca

	status      []byte // the whole OCSPResponse, where it is not successful
	version     []byte
	responder   []byte
	producedAt  []byte
	certID      []byte
	certStatus  []byte
	thisUpdate  []byte
	nextUpdate  []byte // with its tag [0]
	singleTail  []byte
	singles     []byte // all SingleResponses, in place of the one above
	respExt     []byte
	dataTail    []byte
	algorithm   []byte
	signature   []byte // in place of the one that is made
	certs       []byte
	basicTail   []byte
	basicAfter  []byte
	kind        []byte
	kindTail    []byte
	outerTail   []byte
	after       []byte
	signer      crypto.Signer
	hash        crypto.Hash
	afterSigned func(*answerKit)
}

func gtime(t time.Time) []byte { return tlv(0x18, []byte(t.Format("20060102150405Z"))) }

func newAnswerKit(get bool, nonce []byte) *answerKit {
	c := ca1
	id := certID(c, crypto.SHA256, serials["G"])
	keyHash := sha1.Sum(must(pki.PublicKeyBits(c.signer)))
	a := &answerKit{
		ca: c, responder: tlv(0xa2, tlv(4, keyHash[:])), producedAt: gtime(start), certID: id, certStatus: []byte{0x80, 0},
		thisUpdate: gtime(start.Add(-time.Hour)), nextUpdate: tlv(0xa0, gtime(start.Add(24*time.Hour))),
		algorithm: unhex("300a06082a8648ce3d040302"), certs: tlv(0xa0, seq(c.signer.Raw)), kind: unhex(basicTypeOID), signer: c.signerKey, hash: crypto.SHA256,
	}
	a.exchange = Exchange{Issuer: c.issuer, CertIDs: [][]byte{id}, Nonce: nonce, Get: get, Received: start.Add(time.Minute), HTTPStatus: 200,
		Header: http.Header{"Content-Type": {"application/ocsp-response"}, "Date": {start.Add(time.Minute).Format(http.TimeFormat)}}}
	if nonce != nil {
		a.respExt = tlv(0xa1, seq(extension(nonceOID, false, tlv(4, nonce))))
		a.exchange.Header.Set("Cache-Control", "no-store")
	} else if get {
		for name, v := range map[string]string{
			"Cache-Control": "max-age=3600, public, no-transform, must-revalidate", "Expires": start.Add(24 * time.Hour).Format(http.TimeFormat),
			"Last-Modified": start.Add(-time.Hour).Format(http.TimeFormat)} {
			a.exchange.Header.Set(name, v)
		}
	}
	return a
}

func (a *answerKit) basic() []byte {
	singles := a.singles
	if singles == nil {
		singles = seq(seq(a.certID, a.certStatus, a.thisUpdate, a.nextUpdate, a.singleTail))
	}
	tbs := seq(a.version, a.responder, a.producedAt, singles, a.respExt, a.dataTail)
	signature := a.signature
	if signature == nil {
		signature = tlv(3, []byte{0}, must(a.signer.Sign(rand.Reader, digest(a.hash, tbs), a.hash)))
	}
	return append(seq(tbs, a.algorithm, signature, a.certs, a.basicTail), a.basicAfter...)
}

func (a *answerKit) der() []byte {
	if a.status != nil {
		return a.status
	}
	return append(seq([]byte{10, 1, 0}, tlv(0xa0, seq(a.kind, tlv(4, a.basic()), a.kindTail)), a.outerTail), a.after...)
}

func (a *answerKit) judge(webpki bool) *Judgement {
	if a.exchange.Body == nil {
		a.exchange.Body = a.der()
	}
	h := a.exchange.Header
	if h.Get("Content-Length") == "" {
		h.Set("Content-Length", fmt.Sprint(len(a.exchange.Body)))
	}
	if a.exchange.Get && h.Get("ETag") == "" && a.exchange.Nonce == nil {
		d := sha256.Sum256(a.exchange.Body)
		h.Set("ETag", `"`+hex.EncodeToString(d[:])+`"`)
	}
	if a.afterSigned != nil {
		a.afterSigned(a)
	}
	return a.exchange.Judge(webpki)
}

// The sound answers, in every shape, have nothing to be said against them.
func TestLintSound(t *testing.T) {
	revoked := tlv(0xa1, gtime(start.Add(-48*time.Hour)), tlv(0xa0, []byte{10, 1, 1}))
	for name, make := range map[string]func() *answerKit{
		"GET": func() *answerKit { return newAnswerKit(true, nil) }, "POST": func() *answerKit { return newAnswerKit(false, nil) },
		"nonce": func() *answerKit { return newAnswerKit(false, octets(32)) }, "GET with a nonce": func() *answerKit { return newAnswerKit(true, octets(16)) },
	} {
		for _, webpki := range []bool{false, true} {
			j := make().judge(webpki)
			// OCSP-DEL-11: the signer of the kit lives for more than a year.
			j.Findings = slices.DeleteFunc(j.Findings, func(f pki.Finding) bool {
				return f.Name == "signer-long-lived" || f.Name == "signer-without-authoritykeyid"
			})
			if !j.Verified() || len(j.Findings) != 0 || !j.Delegated || j.Signer == nil || !j.Signer.Equal(ca1.signer) || j.Response.Singles[0].State != pki.Good {
				t.Errorf("%s, webpki %v: %+v", name, webpki, j.Findings)
			}
			if !slices.Contains(j.Tried, "OCSP-RSP-03") || !slices.Contains(j.Tried, "OCSP-DEL-02") || slices.Contains(j.Tried, "OCSP-CCH-02") != (name == "GET") {
				t.Errorf("%s: tried %v", name, j.Tried)
			}
		}
	}
	a := newAnswerKit(true, nil)
	a.certStatus = revoked
	if j := a.judge(false); !j.Verified() || j.Response.Singles[0].State != pki.Revoked || j.Response.Singles[0].Reason != 1 || !j.Response.Singles[0].RevokedAt.Equal(start.Add(-48*time.Hour)) {
		t.Errorf("revoked: %+v", j)
	}
	a = newAnswerKit(true, nil)
	a.certStatus = []byte{0x82, 0}
	a.exchange.Header.Set("Cache-Control", "no-store")
	if j := a.judge(false); !j.Verified() || j.Response.Singles[0].State != pki.Unknown || !slices.Contains(j.Tried, "OCSP-UNK-05") {
		t.Errorf("unknown: %+v", j)
	}
	a = newAnswerKit(false, nil) // OCSP-DEL-12: the CA itself
	keyHash := sha1.Sum(must(pki.PublicKeyBits(ca1.issuer.Certificate)))
	a.responder, a.signer, a.certs = tlv(0xa2, tlv(4, keyHash[:])), ca1.key, nil
	if j := a.judge(true); !j.Verified() || j.Delegated || len(j.Findings) != 0 {
		t.Errorf("direct: %+v", j)
	}
}

// delegateOf gives a certificate of ca1 for its signer's key, changed.
func delegateOf(c *ca, key crypto.PublicKey, change func(*x509.Certificate)) []byte {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: "another signer"}, NotBefore: start.AddDate(0, -1, 0), NotAfter: start.AddDate(0, 1, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		ExtraExtensions: []pkix.Extension{{Id: []int{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: null}},
	}
	if change != nil {
		change(template)
	}
	return must(x509.CreateCertificate(rand.Reader, template, c.issuer.Certificate, key, c.key))
}

// Each rule of the lint fires on an answer that breaks it: what is named is among the findings, with its weight. Every name in
// the source must be here.
func TestLintFires(t *testing.T) {
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))
	rsaCert := delegateOf(ca1, rsaKey.Public(), nil)
	nonce := octets(32)
	header := func(name, v string) func(*answerKit) {
		return func(a *answerKit) { a.exchange.Header.Set(name, v) }
	}
	status := func(b ...byte) func(*answerKit) { return func(a *answerKit) { a.certStatus = b } }
	revokedFor := func(reason byte) []byte {
		return tlv(0xa1, gtime(start.Add(-48*time.Hour)), tlv(0xa0, []byte{10, 1, reason}))
	}
	singleExt := func(e ...[]byte) func(*answerKit) {
		return func(a *answerKit) { a.singleTail = tlv(0xa1, seq(e...)) }
	}
	respExt := func(e ...[]byte) func(*answerKit) {
		return func(a *answerKit) { a.respExt = tlv(0xa1, seq(e...)) }
	}
	with := func(cert []byte) func(*answerKit) { // signed by the signer's key with another certificate
		return func(a *answerKit) { a.certs = tlv(0xa0, seq(cert)) }
	}
	const (
		post = 1 << iota
		withNonce
		webpki
		grave
	)
	never := tlv(0x18, []byte("19700101000000Z"))
	reasonOID, invalidityOID, extendedOID := "0603551d15", "0603551d18", "06092b0601050507300109"
	seen := map[string]bool{}
	for _, c := range []struct {
		rule, name string
		flags      int
		change     func(*answerKit)
	}{
		{"REQ-18", "redirect", grave, func(a *answerKit) { a.exchange.HTTPStatus = 307; header("Location", "http://example.org/x")(a) }},
		{"REQ-18", "hsts", 0, header("Strict-Transport-Security", "max-age=1")},
		{"REQ-06", "http-status", grave, func(a *answerKit) { a.exchange.HTTPStatus = 500 }},
		{"REQ-07", "content-type", grave, header("Content-Type", "text/html")},
		{"REQ-07", "content-type-parameter", 0, header("Content-Type", "application/ocsp-response; charset=utf-8")},
		{"REQ-07", "content-encoding", grave, header("Content-Encoding", "gzip")},
		{"REQ-07", "content-length", 0, header("Content-Length", "1")},
		{"RSP-02", "not-a-response", grave, func(a *answerKit) { a.exchange.Body = []byte("<html>") }},
		{"RSP-02", "not-a-response", grave, func(a *answerKit) { a.exchange.Body = []byte{} }},
		{"RSP-03", "trailing-data", grave, func(a *answerKit) { a.after = []byte{0} }},
		{"STA-07", "no-such-status", 0, func(a *answerKit) { a.status = unhex("30030a0104") }},
		{"RSP-01", "error-with-more", 0, func(a *answerKit) { a.status = unhex("30050a01060500") }},
		{"STA-05", "error-cacheable", 0, func(a *answerKit) { a.status = unhex("30030a0106") }},
		{"RSP-02", "without-response", grave, func(a *answerKit) { a.status = unhex("30030a0100") }},
		{"RSP-02", "not-basic", grave, func(a *answerKit) { a.kind = unhex("06092b0601050507300102") }},
		{"RSP-03", "unreadable", grave, func(a *answerKit) { a.basicAfter = nil; a.certs = unhex("a0803080") }},
		{"RSP-03", "unreadable", grave, func(a *answerKit) { a.producedAt = nil; a.responder = nil }},
		{"RSP-03", "extra-elements", grave, func(a *answerKit) { a.outerTail = []byte{5, 0} }},
		{"RSP-03", "extra-elements", grave, func(a *answerKit) { a.kindTail = []byte{5, 0} }},
		{"RSP-03", "trailing-data", grave, func(a *answerKit) { a.basicAfter = []byte{5, 0} }},
		{"RSP-03", "extra-elements", grave, func(a *answerKit) { a.basicTail = []byte{5, 0} }},
		{"RSP-03", "extra-elements", grave, func(a *answerKit) { a.dataTail = []byte{5, 0} }},
		{"RSP-03", "extra-elements", grave, func(a *answerKit) { a.singleTail = []byte{5, 0} }},
		{"RSP-03", "extra-elements", grave, func(a *answerKit) { a.nextUpdate = tlv(0xa0, gtime(start.Add(24*time.Hour)), null) }},
		{"RSP-03", "empty-certs", 0, func(a *answerKit) { a.certs = unhex("a0023000") }},
		{"RSP-09", "certificate-unreadable", 0, with(unhex("3000"))},
		{"RSP-03", "version-written", 0, func(a *answerKit) { a.version = unhex("a003020100") }},
		{"RSP-03", "version-other", grave, func(a *answerKit) { a.version = unhex("a003020101") }},
		{"RSP-03", "empty-extensions", 0, func(a *answerKit) { a.respExt = unhex("a1023000") }},
		{"RSP-03", "critical-false", 0, func(a *answerKit) {
			a.respExt = tlv(0xa1, seq(seq(unhex(unknownOID), []byte{1, 1, 0}, tlv(4, null))))
		}},
		{"RSP-03", "not-der", grave, respExt(seq(unhex(unknownOID), []byte{1, 1, 1}, tlv(4, null)))},
		{"RSP-03", "not-der", grave, func(a *answerKit) {
			a.certID = bytes.Replace(a.certID, []byte{2, 2, 0x10, 1}, []byte{2, 3, 0, 0x10, 1}, 1)
			a.certID[1]++
		}},
		{"RSP-04", "status-form", grave, status(0x80, 2, 5, 0)},
		{"RSP-04", "status-form", grave, status(0xa0, 2, 5, 0)},
		{"RSP-05", "signature-form", grave, func(a *answerKit) { a.signature = tlv(3, []byte{1, 2}) }},
		{"RSP-05", "signature-wrong", grave, func(a *answerKit) {
			a.signature = tlv(3, []byte{0}, must(a.signer.Sign(rand.Reader, digest(crypto.SHA256, []byte("another")), crypto.SHA256)))
		}},
		{"RSP-05", "algorithm-form", 0, func(a *answerKit) { a.algorithm = unhex("300c06082a8648ce3d0403020500") }},
		{"RSP-05", "algorithm-unknown", grave, func(a *answerKit) { a.algorithm = unhex("300706052b24030201") }},
		{"RSP-05", "hash-of-other-curve", 0, func(a *answerKit) { a.hash, a.algorithm = crypto.SHA384, unhex("300a06082a8648ce3d040303") }},
		{"RSP-06", "ecdsa-form", grave, func(a *answerKit) { a.signature = tlv(3, []byte{0}, octets(64)) }},
		{"RSP-07", "weak-hash", grave, func(a *answerKit) { a.hash, a.algorithm = crypto.SHA1, unhex("300906072a8648ce3d0401") }},
		{"RSP-07", "weak-hash", grave, func(a *answerKit) {
			keyHash := sha1.Sum(must(pki.PublicKeyBits(must(x509.ParseCertificate(rsaCert)))))
			a.signer, a.hash, a.algorithm, a.certs, a.responder = rsaKey, crypto.SHA1, unhex("300d06092a864886f70d0101050500"), tlv(0xa0, seq(rsaCert)), tlv(0xa2, tlv(4, keyHash[:]))
		}},
		{"RSP-09", "certs-too-many", 0, func(a *answerKit) { a.certs = tlv(0xa0, seq(a.ca.issuer.Certificate.Raw, a.ca.signer.Raw)) }},
		{"RSP-09", "certs-needless", 0, func(a *answerKit) {
			keyHash := sha1.Sum(must(pki.PublicKeyBits(ca1.issuer.Certificate)))
			a.responder, a.signer = tlv(0xa2, tlv(4, keyHash[:])), ca1.key
		}},
		{"EXT-01", "critical-extension", grave, singleExt(extension(unknownOID, true, null))},
		{"EXT-02", "reason-extension", 0, singleExt(extension(reasonOID, false, []byte{10, 1, 1}))},
		{"EXT-03", "needless-extension", 0, respExt(extension(unknownOID, false, null))},
		{"NON-01", "nonce-form", withNonce, respExt(extension(nonceOID, false, nonce))},
		{"NON-01", "nonce-other", withNonce | grave, respExt(extension(nonceOID, false, tlv(4, octets(31))))},
		{"NON-01", "nonce-misplaced", withNonce, singleExt(extension(nonceOID, false, tlv(4, nonce)))},
		{"NON-06", "nonce-unasked", 0, respExt(extension(nonceOID, false, tlv(4, nonce)))},
		{"NON-07", "nonce-cacheable", withNonce, header("Cache-Control", "max-age=60")},
		{"NON-07", "nonce-cacheable", withNonce, func(a *answerKit) {
			a.exchange.Header.Del("Cache-Control")
			a.exchange.Header.Set("ETag", `"x"`)
		}},
		{"NON-08", "nonce-critical", withNonce, respExt(extension(nonceOID, true, tlv(4, nonce)))},
		{"NON-09", "nonce-twice", withNonce | grave, respExt(extension(nonceOID, false, tlv(4, nonce)), extension(nonceOID, false, tlv(4, nonce)))},
		{"RID-01", "responder-key-length", grave, func(a *answerKit) { a.responder = tlv(0xa2, tlv(4, octets(32))) }},
		{"RID-02", "responder-key-form", grave, func(a *answerKit) { a.responder = tlv(0xa2, octets(20)) }},
		{"RID-02", "responder-name-form", grave, func(a *answerKit) { a.responder = tlv(0xa1, octets(20)) }},
		{"RID-02", "responder-form", grave, func(a *answerKit) { a.responder = tlv(0x82, octets(20)) }},
		{"RID-03", "responder-other", grave, func(a *answerKit) { a.responder = tlv(0xa2, tlv(4, octets(20))) }},
		{"RID-04", "responder-name-of-ca", grave, func(a *answerKit) {
			a.certs = tlv(0xa0, seq(delegateOf(ca1, ca1.signerKey.Public(), func(c *x509.Certificate) { c.RawSubject = ca1.issuer.Certificate.RawSubject })))
			a.responder = tlv(0xa1, ca1.issuer.Certificate.RawSubject)
		}},
		{"RID-05", "responder-by-name", 0, func(a *answerKit) { a.responder = tlv(0xa1, a.ca.signer.RawSubject) }},
		{"DEL-09", "signer-not-included", grave, func(a *answerKit) { a.certs = nil }},
		{"DEL-01", "signer-without-ocspsigning", grave, with(delegateOf(ca1, ca1.signerKey.Public(), func(c *x509.Certificate) { c.ExtKeyUsage = nil }))},
		{"DEL-02", "signer-of-other-key", grave, with(delegateOf(ca1b, ca1.signerKey.Public(), nil))},
		{"DEL-02", "signer-of-other-issuer", grave, with(delegateOf(ca2, ca1.signerKey.Public(), nil))},
		{"DEL-03", "signer-without-nocheck", 0, with(delegateOf(ca1, ca1.signerKey.Public(), func(c *x509.Certificate) { c.ExtraExtensions = nil }))},
		{"DEL-03", "signer-without-nocheck", webpki | grave, with(delegateOf(ca1, ca1.signerKey.Public(), func(c *x509.Certificate) { c.ExtraExtensions = nil }))},
		{"DEL-07", "signer-expired", grave, with(delegateOf(ca1, ca1.signerKey.Public(), func(c *x509.Certificate) { c.NotAfter = start }))},
		{"MUL-01", "no-answer", grave, func(a *answerKit) { a.singles = seq() }},
		{"MUL-01", "no-answer", grave, func(a *answerKit) { a.certID = certID(ca1, crypto.SHA256, serials["R"]) }},
		{"MUL-02", "not-asked", 0, func(a *answerKit) {
			one := seq(a.certID, a.certStatus, a.thisUpdate, a.nextUpdate)
			a.singles = seq(one, seq(certID(ca1, crypto.SHA256, serials["R"]), a.certStatus, a.thisUpdate, a.nextUpdate))
		}},
		{"CID-04", "certid-rewritten", 0, func(a *answerKit) {
			a.certID = certIDWith(seq(hashOIDs[crypto.SHA256], null), crypto.SHA256, ca1, ca1, serials["G"])
		}},
		{"TIM-01", "time-form", grave, func(a *answerKit) { a.producedAt = tlv(0x18, []byte("20261102120000.5Z")) }},
		{"TIM-01", "time-form", grave, func(a *answerKit) { a.thisUpdate = tlv(0x17, []byte("261102110000Z")) }},
		{"TIM-01", "time-form", grave, func(a *answerKit) { a.thisUpdate = tlv(0x18, []byte("20261102130000+0100")) }},
		{"TIM-03", "produced-in-future", 0, func(a *answerKit) { a.producedAt = gtime(start.Add(2 * time.Minute)) }},
		{"TIM-03", "this-update-after-produced", 0, func(a *answerKit) { a.thisUpdate = gtime(start.Add(time.Second)) }},
		{"TIM-03", "this-update-ahead", 0, func(a *answerKit) { a.thisUpdate = gtime(start.Add(61 * time.Second)) }},
		{"TIM-03", "this-update-in-future", grave, func(a *answerKit) { a.thisUpdate = gtime(start.Add(time.Hour)) }},
		{"TIM-04", "no-next-update", 0, func(a *answerKit) { a.nextUpdate = nil }},
		{"TIM-04", "no-next-update-old", grave, func(a *answerKit) { a.nextUpdate, a.thisUpdate = nil, gtime(start.Add(-25*time.Hour)) }},
		{"TIM-04", "next-before-this", grave, func(a *answerKit) { a.nextUpdate = tlv(0xa0, gtime(start.Add(-2*time.Hour))) }},
		{"TIM-05", "outlives-certificate", 0, func(a *answerKit) { a.nextUpdate = tlv(0xa0, gtime(a.ca.signer.NotAfter.Add(time.Second))) }},
		{"TIM-06", "interval", webpki, func(a *answerKit) { a.nextUpdate = tlv(0xa0, gtime(start.Add(-time.Hour).Add(7*24*time.Hour))) }},
		{"TIM-06", "interval", webpki, func(a *answerKit) { a.nextUpdate = tlv(0xa0, gtime(start.Add(6*time.Hour))) }},
		{"TIM-09", "produced-outside-validity", 0, func(a *answerKit) {
			a.exchange.Certificate = &x509.Certificate{NotBefore: start.AddDate(-1, 0, 0), NotAfter: start.Add(-time.Second)}
		}},
		{"TIM-12", "stale", grave, func(a *answerKit) { a.nextUpdate = tlv(0xa0, gtime(start.Add(time.Minute))) }},
		{"REV-01", "no-revocation-time", grave, status(tlv(0xa1, tlv(0x18, []byte("soon")))...)},
		{"REV-02", "reason-unspecified", 0, status(revokedFor(0)...)},
		{"REV-03", "reason-invalid", grave, status(revokedFor(7)...)},
		{"REV-03", "reason-invalid", grave, status(revokedFor(8)...)},
		{"REV-03", "reason-invalid", grave, status(revokedFor(11)...)},
		{"REV-05", "hold", webpki, status(revokedFor(6)...)},
		{"REV-06", "invalidity-form", 0, singleExt(extension(invalidityOID, false, tlv(0x18, []byte("yesterday"))))},
		{"XRV-01", "extended-revoke-incomplete", 0, status(tlv(0xa1, never, tlv(0xa0, []byte{10, 1, 6}))...)},
		{"XRV-01", "extended-revoke-incomplete", 0, func(a *answerKit) {
			respExt(extension(extendedOID, false, null))(a)
			status(tlv(0xa1, never)...)(a)
		}},
		{"XRV-02", "extended-revoke-misplaced", 0, singleExt(extension(extendedOID, false, null))},
		{"XRV-04", "extended-revoke", webpki, respExt(extension(extendedOID, false, null))},
		{"INT-08", "too-large", 0, singleExt(extension(unknownOID, false, tlv(4, octets(16<<10))))},
		{"CCH-01", "not-cacheable", 0, header("Cache-Control", "no-store")},
		{"CCH-01", "not-cacheable", 0, header("Pragma", "no-cache")},
		{"CCH-02", "no-max-age", 0, header("Cache-Control", "public, no-transform, must-revalidate")},
		{"CCH-02", "max-age-too-long", 0, header("Cache-Control", "max-age=86400, public, no-transform, must-revalidate")},
		{"CCH-02", "no-public", 0, header("Cache-Control", "max-age=1, no-transform, must-revalidate")},
		{"CCH-02", "no-no-transform", 0, header("Cache-Control", "max-age=1, public, must-revalidate")},
		{"CCH-02", "no-must-revalidate", 0, header("Cache-Control", "max-age=1, public, no-transform")},
		{"CCH-03", "expires", 0, header("Expires", start.Format(http.TimeFormat))},
		{"CCH-03", "last-modified", 0, header("Last-Modified", start.Format(http.TimeFormat))},
		{"CCH-03", "no-date", 0, func(a *answerKit) { a.exchange.Header.Del("Date") }},
		{"CCH-04", "date-form", 0, header("Expires", start.Add(24*time.Hour).Format(time.RFC1123))},
		{"CCH-04", "date-form", 0, header("Date", "0")},
		{"CCH-05", "etag", 0, header("ETag", `W/"1"`)},
		{"CCH-07", "post-public", post, header("Cache-Control", "max-age=9, public")},
		{"CCH-08", "vary", 0, header("Vary", "User-Agent")},
		{"CCH-08", "vary", 0, header("Set-Cookie", "a=b")},
		{"UNK-05", "unknown-kept-long", 0, status(0x82, 0)},
		{"RSP-03", "unreadable", grave, status(tlv(0xa1, gtime(start), tlv(0xa0, []byte{2, 1, 1}))...)},
	} {
		seen[c.rule+" "+c.name] = true
		t.Run("OCSP-"+c.rule+" "+c.name, func(t *testing.T) {
			var n []byte
			if c.flags&withNonce != 0 {
				n = nonce
			}
			a := newAnswerKit(c.flags&(post|withNonce) == 0, n)
			c.change(a)
			j := a.judge(c.flags&webpki != 0)
			i := slices.IndexFunc(j.Findings, func(f pki.Finding) bool {
				return f.Rule == "OCSP-"+c.rule && f.Name == c.name && f.Error == (c.flags&grave != 0)
			})
			if i < 0 {
				t.Fatalf("not found in %+v", j.Findings)
			}
			if c.flags&grave != 0 && j.Verified() {
				t.Error("verified all the same")
			}
			if !slices.Contains(j.Tried, "OCSP-"+c.rule) {
				t.Errorf("tried %v", j.Tried)
			}
			for _, f := range j.Findings {
				if f.Text == "" || strings.Contains(f.Text, "%!") {
					t.Errorf("text %q", f.Text)
				}
			}
		})
	}
	for _, file := range []string{"client.go", "lint.go"} {
		for _, m := range regexp.MustCompile(`"([A-Z]{3}-\d\d)", "([a-z-]+)"[,+]`).FindAllStringSubmatch(string(must(os.ReadFile(file))), -1) {
			if name := m[1] + " " + m[2]; !seen[name] && name != "CCH-02 no-" {
				t.Errorf("%s: %s is not shown to fire", file, name)
			}
		}
	}
}

// Findings of one answer do not hide behind each other, and bytes of any kind are only judged.
func TestLintSurvives(t *testing.T) {
	sound := newAnswerKit(true, nil)
	sound.judge(false)
	der := sound.exchange.Body
	for i := range der {
		for _, flip := range []byte{1, 0x20, 0x80, 0xff} {
			b := bytes.Clone(der)
			b[i] ^= flip
			x := sound.exchange
			x.Body = b
			if j := x.Judge(true); j.Verified() && i < len(der)-len(ca1.signer.Raw) {
				t.Fatalf("octet %d flipped by %x: verified", i, flip)
			}
		}
		x := sound.exchange
		x.Body = der[:i]
		if x.Judge(false).Verified() {
			t.Fatalf("cut at %d: verified", i)
		}
	}
}

func FuzzJudge(f *testing.F) {
	a := newAnswerKit(true, octets(16))
	a.judge(false)
	f.Add(a.exchange.Body)
	f.Add(unhex("30030a0106"))
	f.Fuzz(func(t *testing.T, body []byte) {
		x := a.exchange
		x.Body = body
		if j := x.Judge(false); j.Verified() && !bytes.Contains(body, j.Response.tbs) {
			t.Errorf("verified %x", body)
		}
	})
}

// OCSP-REQ-02, OCSP-REQ-03: the requests are read alike by our decoder, and GETs arrive as they were written.
func TestClientRequests(t *testing.T) {
	target := Target{Issuer: ca1.issuer, Serial: serial("M"), Hash: crypto.SHA256}
	want := requestOf(requestList(certIDWith(seq(hashOIDs[crypto.SHA256], null), crypto.SHA256, ca1, ca1, serials["M"])), tlv(0xa2, seq(extension(nonceOID, false, tlv(4, octets(20))))))
	if got := NewRequest(octets(20), target.CertID()); !bytes.Equal(got, want) {
		t.Errorf("%x\nwant %x", got, want)
	}
	for base, want := range map[string]string{
		"http://example.org": "/M%2FA", "http://example.org/": "/M%2FA", "http://example.org/ocsp/?x": "/ocsp/M%2FA", "http://example.org/a%20b": "/a%20b/M%2FA",
	} {
		if got := GetURL(must(url.Parse(base)), "M%2FA").RequestURI(); got != want {
			t.Errorf("%s: %s, want %s", base, got, want)
		}
	}
	for _, path := range []string{"/M//A+=", "M//A+=", "%ZZ"} {
		if got := GetURL(must(url.Parse("http://example.org")), path).RequestURI(); got != "/"+path {
			t.Errorf("%s became %s", path, got)
		}
	}
	if got := GetPath([]byte{0xfb, 0xff, 0xfe, 0}); got != "%2B%2F%2F%2BAA%3D%3D" {
		t.Error(got)
	}
}
