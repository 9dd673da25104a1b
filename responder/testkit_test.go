package responder

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"

	"ocspd/pki"
)

// start is when every test begins; the clock is injected.
var start = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

// A ca is a CA of conformance.md section 0.2 with its delegated signer.
type ca struct {
	issuer    *pki.Issuer
	key       crypto.Signer
	signer    *x509.Certificate
	signerKey crypto.Signer
}

// The CAs: ca1b has ca1's name and another key.
var ca1, ca1b, ca2 = newCA("ca1", "CA 1"), newCA("ca1b", "CA 1"), newCA("ca2", "CA 2")

var lastSerial atomic.Int64

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newCA(name, subject string) *ca {
	// The same in every process, so that a request found by fuzzing means the same the next time.
	scalar := sha256.Sum256([]byte(name))
	key := must(ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar[:]))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(lastSerial.Add(1)), Subject: pkix.Name{CommonName: subject, Organization: []string{"Example"}},
		NotBefore: start.AddDate(-1, 0, 0), NotAfter: start.AddDate(10, 0, 0), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		// Not the SHA-1 of the key (RFC 7093 section 2), so that a responder which copies it is found out.
		SubjectKeyId: bytes.Repeat([]byte{byte(lastSerial.Load())}, 20),
	}
	cert := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))))
	c := &ca{issuer: must(pki.NewIssuer(name, cert)), key: key}
	c.delegate(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), start.AddDate(1, 0, 0))
	return c
}

// delegate gives the CA a new signer certificate for key.
func (c *ca) delegate(key crypto.Signer, notAfter time.Time) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(lastSerial.Add(1)), Subject: pkix.Name{CommonName: "OCSP signer of " + c.issuer.Name},
		NotBefore: start.AddDate(0, -1, 0), NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: []byte{5, 0}}},
		SubjectKeyId:    []byte("not the hash of key!"),
	}
	c.signer = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, c.issuer.Certificate, key.Public(), c.key))))
	c.signerKey = key
}

// authority answers for the CA by its delegated signer.
func (c *ca) authority(p Policy) *Authority {
	a := &Authority{Issuer: c.issuer, Signer: c.signer, Key: c.signerKey, Policy: p}
	if err := a.Prepare(); err != nil {
		panic(err)
	}
	return a
}

// serials of conformance.md section 0.2: the content octets of their INTEGERs.
var serials = map[string][]byte{
	"G": {0x10, 0x01}, "R": {0x10, 0x02}, "RU": {0x10, 0x03}, "H": {0x10, 0x04}, "X": {0x10, 0x05}, "P": {0x10, 0x06},
	"U": {0x66, 0x66}, "L": append([]byte{0x7f}, bytes.Repeat([]byte{0xfe}, 19)...), "M": {0x00, 0x80}, "Z": {0x00}, "N": {0xfb},
}

func serial(name string) pki.Serial { return must(pki.SerialFromDER(serials[name])) }

func serialOf(n int) pki.Serial { return must(pki.SerialFromBig(big.NewInt(int64(n)))) }

var (
	good      = pki.Record{Status: pki.Status{State: pki.Good}, Source: 1}
	revokedAt = time.Date(2026, 10, 20, 8, 30, 0, 0, time.UTC)
)

func revoked(r pki.Reason) pki.Record {
	return pki.Record{Status: pki.Status{State: pki.Revoked, Reason: r, RevokedAt: revokedAt}, Source: 0}
}

type ledger map[pki.Serial]pki.Record

// fixtures are the statuses of section 0.2. U, Z and N are not among them.
func fixtures() ledger {
	l := ledger{}
	for name, r := range map[string]pki.Record{
		"G": good, "X": good, "P": good, "L": good, "M": good,
		"R": revoked(pki.KeyCompromise), "RU": revoked(pki.Unspecified), "H": revoked(pki.CertificateHold),
	} {
		l[serial(name)] = r
	}
	return l
}

// sources are a CRL, source 0, and an index, source 1.
func sources() []pki.Source {
	return []pki.Source{
		{Name: "class1.crl", Kind: pki.CRL, Number: "11", ThisUpdate: start.Add(-3 * time.Hour), NextUpdate: start.Add(7 * 24 * time.Hour)},
		{Name: "index.txt", Kind: pki.Index, ThisUpdate: start.Add(-10 * time.Minute), NextUpdate: start.Add(36 * time.Hour)},
	}
}

// view is a generation of the fixtures, changed as wanted.
func view(number uint64, changes ledger) *View {
	l := fixtures()
	for s, r := range changes {
		l[s] = r
	}
	return &View{Number: number, Complete: true, Sources: sources(), Lookup: func(s pki.Serial) (pki.Record, bool) {
		r, ok := l[s]
		return r, ok
	}}
}

type clock struct{ nanos atomic.Int64 }

func (c *clock) now() time.Time               { return start.Add(time.Duration(c.nanos.Load())) }
func (c *clock) add(d time.Duration)          { c.nanos.Add(int64(d)) }
func (c *clock) set(d time.Duration)          { c.nanos.Store(int64(d)) }
func (c *clock) elapsed() time.Duration       { return time.Duration(c.nanos.Load()) }
func (c *clock) stamp(d time.Duration) string { return start.Add(d).Format("20060102150405Z") }

// reporter is a testing.T or a rapid.T.
type reporter interface {
	Helper()
	Error(...any)
	Errorf(string, ...any)
	Fatal(...any)
	Fatalf(string, ...any)
	Cleanup(func())
}

// A kit is a signer behind a front, joined by the link's messages but without a socket.
type kit struct {
	reporter
	clock
	signer *Signer
	front  *Front
	auth   map[*ca]*Authority
	down   atomic.Bool // the signer cannot be reached
	refuse atomic.Bool // admit forbids signatures
	asked  atomic.Int64
}

var private = Policy{Unissued: UnissuedUnknown, Validity: 24 * time.Hour}

// newKit serves ca1 and ca1b, not ca2, at generation 1.
func newKit(t reporter, p Policy) *kit {
	k := &kit{reporter: t, auth: map[*ca]*Authority{}}
	admit := func(time.Time) error {
		if k.refuse.Load() {
			return errors.New("forbidden by the test")
		}
		return nil
	}
	k.signer = NewSigner(k.now, admit, func(string, error) {})
	k.front = NewFront(k.ask, k.now, 100)
	var all []*Authority
	var issuers []FrontIssuer
	for _, c := range []*ca{ca1, ca1b} {
		a := c.authority(p)
		a.SetView(view(1, nil))
		k.auth[c] = a
		all = append(all, a)
		issuers = append(issuers, FrontIssuer{Issuer: c.issuer})
	}
	k.signer.Use(all)
	if err := k.front.Use(issuers); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*ca{ca1, ca1b} {
		k.front.Apply(Change{Issuer: c.issuer.ID, To: 1, All: true})
	}
	return k
}

func (k *kit) ask(ctx context.Context, q *Question) (a Answer, err error) {
	k.asked.Add(1)
	if k.down.Load() {
		return a, errors.New("no signer")
	}
	var sent Question
	if err := sent.read(q.append(nil)[2:]); err != nil {
		return a, err
	}
	answer := k.signer.Answer(&sent)
	return a, a.read(answer.append(nil)[4:])
}

// change puts a generation in force, signer first.
func (k *kit) change(c *ca, from, to uint64, changes ledger) {
	k.auth[c].SetView(view(to, changes))
	change := Change{Issuer: c.issuer.ID, From: from, To: to}
	for s := range changes {
		change.Serials = append(change.Serials, s)
	}
	k.front.Apply(change)
}

func (k *kit) server() *httptest.Server {
	s := httptest.NewServer(k.front.Handler(maxTestBody, maxTestPath))
	k.Cleanup(s.Close)
	return s
}

const maxTestBody, maxTestPath = 8192, 4096

func (k *kit) respond(request []byte) []byte {
	return k.front.Respond(context.Background(), request).DER
}

// ok wants a successful answer, holds it against every rule that all answers keep, and takes it apart.
func (k *kit) ok(request []byte) *response {
	k.Helper()
	return k.lint(k.respond(request))
}

// is wants an answer that is exactly this error (OCSP-RSP-01).
func (k *kit) is(status ResponseStatus, request []byte) {
	k.Helper()
	if got, want := k.respond(request), []byte{0x30, 0x03, 0x0a, 0x01, byte(status)}; !bytes.Equal(got, want) {
		k.Errorf("request %x:\n got %x\nwant %x, %s", request, got, want, status)
	}
}

// status is what the answer says of its only certificate: good, revoked, unknown, or the error it is.
func (k *kit) status(request []byte) string {
	k.Helper()
	der := k.respond(request)
	if len(der) == 5 {
		return ResponseStatus(der[4]).String()
	}
	return k.lint(der).singles[0].state()
}

// -- requests, written octet by octet and by no code of ours

func tlv(tag byte, parts ...[]byte) []byte {
	content := bytes.Join(parts, nil)
	n := len(content)
	switch {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, content...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, content...)
	case n < 0x10000:
		return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, content...)
	}
	return append([]byte{tag, 0x83, byte(n >> 16), byte(n >> 8), byte(n)}, content...)
}

func seq(parts ...[]byte) []byte { return tlv(0x30, parts...) }

func unhex(s string) []byte { return must(hex.DecodeString(strings.ReplaceAll(s, " ", ""))) }

var hashOIDs = map[crypto.Hash][]byte{
	crypto.SHA1: unhex("06052b0e03021a"), crypto.SHA256: unhex("0609608648016503040201"),
	crypto.SHA384: unhex("0609608648016503040202"), crypto.SHA512: unhex("0609608648016503040203"),
}

var null = []byte{5, 0}

// certIDWith has everything as given; hashes are taken of the certificate by crypto alone.
func certIDWith(algorithm []byte, h crypto.Hash, name, key *ca, serial []byte) []byte {
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	must(asn1.Unmarshal(key.issuer.Certificate.RawSubjectPublicKeyInfo, &spki))
	return seq(algorithm, tlv(4, digest(h, name.issuer.Certificate.RawSubject)), tlv(4, digest(h, spki.Key.Bytes)), tlv(2, serial))
}

func digest(h crypto.Hash, b []byte) []byte {
	w := h.New()
	w.Write(b)
	return w.Sum(nil)
}

func certID(c *ca, h crypto.Hash, serial []byte) []byte {
	return certIDWith(seq(hashOIDs[h]), h, c, c, serial)
}

// requests is an OCSPRequest for several CertIDs; requestOf has its TBSRequest as given.
func requests(ids ...[]byte) []byte { return requestOf(requestList(ids...)) }

func requestList(ids ...[]byte) []byte {
	list := make([][]byte, len(ids))
	for i, id := range ids {
		list[i] = seq(id)
	}
	return seq(list...)
}

func requestOf(tbs ...[]byte) []byte { return seq(seq(tbs...)) }

// req is req(x) of section 0.2, about a certificate of ca1.
func req(name string) []byte { return requests(certID(ca1, crypto.SHA256, serials[name])) }

// reqExt is req(G) with request extensions.
func reqExt(name string, extensions ...[]byte) []byte {
	return requestOf(requestList(certID(ca1, crypto.SHA256, serials[name])), tlv(0xa2, seq(extensions...)))
}

func extension(oid string, critical bool, value []byte) []byte {
	if critical {
		return seq(unhex(oid), []byte{1, 1, 0xff}, tlv(4, value))
	}
	return seq(unhex(oid), tlv(4, value))
}

const (
	nonceOID     = "06092b0601050507300102"
	typesOID     = "06092b0601050507300104"
	locatorOID   = "06092b0601050507300107"
	preferOID    = "06092b0601050507300108"
	unknownOID   = "06032a0304"
	basicTypeOID = "06092b0601050507300101"
)

// reqNonce is req(x) with a nonce of n octets.
func reqNonce(name string, nonce []byte) []byte {
	return reqExt(name, extension(nonceOID, false, tlv(4, nonce)))
}

// -- responses, taken apart by no code of ours

type response struct {
	der        []byte
	tbs        []byte
	keyHash    []byte
	producedAt string
	singles    []singleResponse
	extensions []ext
	algorithm  []byte
	signature  []byte
	certs      [][]byte
}

type singleResponse struct {
	certID, status         []byte
	thisUpdate, nextUpdate string
	extensions             []ext
}

type ext struct {
	raw      []byte
	oid      string // hex, with its tag
	critical bool
	value    []byte
}

func (s *singleResponse) state() string {
	switch s.status[0] {
	case 0x80:
		return "good"
	case 0xa1:
		return "revoked"
	case 0x82:
		return "unknown"
	}
	return fmt.Sprintf("%x", s.status)
}

func (r *response) extension(oid string) *ext {
	for i := range r.extensions {
		if r.extensions[i].oid == oid {
			return &r.extensions[i]
		}
	}
	return nil
}

var errForm = errors.New("not a basic OCSP response in DER")

const constructed0, constructed1, constructed2 = cbasn1.Tag(0xa0), cbasn1.Tag(0xa1), cbasn1.Tag(0xa2)

func parseResponse(der []byte) (*response, error) {
	r := &response{der: der}
	s := cryptobyte.String(der)
	var outer, wrapped, bytesSeq, oid, octets, basic, tbs, body, key, list, sig, certs cryptobyte.String
	var status int
	if !s.ReadASN1(&outer, cbasn1.SEQUENCE) || !s.Empty() || !outer.ReadASN1Enum(&status) || status != 0 ||
		!outer.ReadASN1(&wrapped, constructed0) || !outer.Empty() || !wrapped.ReadASN1(&bytesSeq, cbasn1.SEQUENCE) || !wrapped.Empty() ||
		!bytesSeq.ReadASN1Element(&oid, cbasn1.OBJECT_IDENTIFIER) || hex.EncodeToString(oid) != basicTypeOID ||
		!bytesSeq.ReadASN1(&octets, cbasn1.OCTET_STRING) || !bytesSeq.Empty() {
		return nil, fmt.Errorf("OCSPResponse: %w", errForm)
	}
	if err := checkDER(octets); err != nil {
		return nil, err
	}
	var alg cryptobyte.String
	if !octets.ReadASN1(&basic, cbasn1.SEQUENCE) || !octets.Empty() || !basic.ReadASN1Element(&tbs, cbasn1.SEQUENCE) ||
		!basic.ReadASN1Element(&alg, cbasn1.SEQUENCE) || !basic.ReadASN1(&sig, cbasn1.BIT_STRING) || len(sig) < 2 || sig[0] != 0 {
		return nil, fmt.Errorf("BasicOCSPResponse: %w", errForm)
	}
	r.tbs, r.algorithm, r.signature = tbs, alg, sig[1:]
	var present bool
	if !basic.ReadOptionalASN1(&certs, &present, constructed0) || !basic.Empty() {
		return nil, fmt.Errorf("certs: %w", errForm)
	}
	if present {
		if !certs.ReadASN1(&list, cbasn1.SEQUENCE) || !certs.Empty() || list.Empty() {
			return nil, fmt.Errorf("certs: %w", errForm)
		}
		for !list.Empty() {
			var cert cryptobyte.String
			if !list.ReadASN1Element(&cert, cbasn1.SEQUENCE) {
				return nil, fmt.Errorf("certs: %w", errForm)
			}
			r.certs = append(r.certs, cert)
		}
	}
	var hash, produced, singles, extensions cryptobyte.String
	// A version or a byName ResponderID is not found here, nor DEFAULTs in what follows (OCSP-RSP-03, OCSP-RID-02).
	if !tbs.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1(&key, constructed2) ||
		!key.ReadASN1(&hash, cbasn1.OCTET_STRING) || !key.Empty() ||
		!body.ReadASN1(&produced, cbasn1.GeneralizedTime) || !body.ReadASN1(&singles, cbasn1.SEQUENCE) ||
		!body.ReadOptionalASN1(&extensions, &present, constructed1) || !body.Empty() {
		return nil, fmt.Errorf("ResponseData: %w", errForm)
	}
	r.keyHash, r.producedAt = hash, string(produced)
	var err error
	if present {
		if r.extensions, err = parseExtensions(extensions); err != nil {
			return nil, err
		}
	}
	for !singles.Empty() {
		one, err := parseSingle(&singles)
		if err != nil {
			return nil, err
		}
		r.singles = append(r.singles, one)
	}
	return r, nil
}

func parseSingle(list *cryptobyte.String) (one singleResponse, err error) {
	var s, id, status, this, wrapped, next, extensions cryptobyte.String
	var tag cbasn1.Tag
	var present bool
	if !list.ReadASN1(&s, cbasn1.SEQUENCE) || !s.ReadASN1Element(&id, cbasn1.SEQUENCE) || !s.ReadAnyASN1Element(&status, &tag) ||
		!s.ReadASN1(&this, cbasn1.GeneralizedTime) || !s.ReadASN1(&wrapped, constructed0) ||
		!wrapped.ReadASN1(&next, cbasn1.GeneralizedTime) || !wrapped.Empty() ||
		!s.ReadOptionalASN1(&extensions, &present, constructed1) || !s.Empty() {
		return one, fmt.Errorf("SingleResponse: %w", errForm)
	}
	one = singleResponse{certID: id, status: status, thisUpdate: string(this), nextUpdate: string(next)}
	if present {
		one.extensions, err = parseExtensions(extensions)
	}
	return one, err
}

func parseExtensions(s cryptobyte.String) (l []ext, err error) {
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() || list.Empty() {
		return nil, fmt.Errorf("Extensions: %w", errForm)
	}
	for !list.Empty() {
		var raw, one, oid, value cryptobyte.String
		e := ext{}
		if !list.ReadASN1Element(&raw, cbasn1.SEQUENCE) {
			return nil, fmt.Errorf("Extension: %w", errForm)
		}
		e.raw = raw
		if !raw.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1Element(&oid, cbasn1.OBJECT_IDENTIFIER) {
			return nil, fmt.Errorf("Extension: %w", errForm)
		}
		if one.PeekASN1Tag(cbasn1.BOOLEAN) {
			if !one.ReadASN1Boolean(&e.critical) || !e.critical {
				return nil, fmt.Errorf("Extension with critical FALSE: %w", errForm)
			}
		}
		if !one.ReadASN1(&value, cbasn1.OCTET_STRING) || !one.Empty() {
			return nil, fmt.Errorf("Extension: %w", errForm)
		}
		e.oid, e.value = hex.EncodeToString(oid), value
		l = append(l, e)
	}
	return l, nil
}

// checkDER encodes again what it reads and wants the same octets (OCSP-RSP-03).
func checkDER(b []byte) error {
	again, err := reencode(b)
	if err == nil && !bytes.Equal(again, b) {
		err = errors.New("encoding it again gives other octets")
	}
	return err
}

var generalizedTime = regexp.MustCompile(`^\d{14}Z$`)

func reencode(b []byte) (out []byte, err error) {
	for len(b) > 0 {
		var v asn1.RawValue // reads lengths that are not DER, unlike cryptobyte
		if b, err = asn1.Unmarshal(b, &v); err != nil {
			return nil, err
		}
		content := v.Bytes
		if v.IsCompound {
			if content, err = reencode(v.Bytes); err != nil {
				return nil, err
			}
		}
		switch universal := v.Class == 0; {
		case universal && v.Tag == asn1.TagGeneralizedTime && !generalizedTime.Match(content):
			return nil, fmt.Errorf("time %q", content)
		case universal && v.Tag == asn1.TagBoolean && !bytes.Equal(content, []byte{0xff}):
			return nil, fmt.Errorf("BOOLEAN %x", content)
		case universal && (v.Tag == asn1.TagInteger || v.Tag == asn1.TagEnum):
			if _, err := pki.SerialFromDER(content); err != nil && !errors.Is(err, pki.ErrSerialLength) {
				return nil, fmt.Errorf("INTEGER %x", content)
			}
		case universal && v.Tag == asn1.TagNull && len(content) > 0:
			return nil, errors.New("NULL with content")
		}
		out = append(out, tlv(v.FullBytes[0], content)...)
	}
	return out, nil
}

// lint holds a successful answer against the rules that every answer keeps, whatever was asked. They are those of the strictest clients, too:
// Chromium (OCSP-INT-03), Firefox (OCSP-INT-04) and Go (OCSP-INT-06).
func (k *kit) lint(der []byte) *response {
	k.Helper()
	r, err := parseResponse(der)
	if err != nil {
		k.Fatalf("%v: %x", err, der)
	}
	if err := checkDER(der); err != nil { // OCSP-RSP-03
		k.Errorf("%v: %x", err, der)
	}
	c := k.authorOf(r)
	now := k.now()
	produced, err := time.Parse("20060102150405Z", r.producedAt)
	if err != nil || produced.After(now) { // OCSP-TIM-01, OCSP-TIM-03
		k.Errorf("producedAt %s at %s", r.producedAt, now)
	}
	for _, s := range r.singles {
		this, err1 := time.Parse("20060102150405Z", s.thisUpdate)
		next, err2 := time.Parse("20060102150405Z", s.nextUpdate)
		if err1 != nil || err2 != nil || this.After(produced) || !next.After(now) { // OCSP-TIM-03, OCSP-TIM-04, OCSP-TIM-12
			k.Errorf("thisUpdate %s, producedAt %s, nextUpdate %s at %s", s.thisUpdate, r.producedAt, s.nextUpdate, now)
		}
		if next.After(c.signer.NotAfter) || next.After(c.issuer.Certificate.NotAfter) { // OCSP-TIM-05
			k.Errorf("nextUpdate %s is after the end of a certificate", s.nextUpdate)
		}
		for _, e := range s.extensions {
			if e.critical || e.oid == "0603551d15" { // OCSP-EXT-01, OCSP-EXT-02
				k.Errorf("singleExtensions holds %x", e.raw)
			}
		}
	}
	for _, e := range r.extensions {
		if e.critical { // OCSP-EXT-01, OCSP-NON-08
			k.Errorf("a critical response extension: %x", e.raw)
		}
	}
	if len(r.singles) == 1 { // OCSP-INT-06: both functions, the second finds its CertID by serial
		parsed, err := ocsp.ParseResponse(der, c.issuer.Certificate)
		if err != nil {
			k.Fatalf("x/crypto/ocsp: %v", err)
		}
		if _, err := ocsp.ParseResponseForCert(der, &x509.Certificate{SerialNumber: parsed.SerialNumber}, c.issuer.Certificate); err != nil {
			k.Fatalf("x/crypto/ocsp: %v", err)
		}
	}
	return r
}

// wireAlgorithms are the only encodings of an AlgorithmIdentifier that may sign an answer (OCSP-RSP-05, OCSP-RSP-07).
var wireAlgorithms = map[string]x509.SignatureAlgorithm{
	"300d06092a864886f70d01010b0500": x509.SHA256WithRSA,
	"300a06082a8648ce3d040302":       x509.ECDSAWithSHA256,
	"300a06082a8648ce3d040303":       x509.ECDSAWithSHA384,
	"300a06082a8648ce3d040304":       x509.ECDSAWithSHA512,
	"300506032b6570":                 x509.PureEd25519,
}

// authorOf finds the CA whose signer signed, and verifies it all: ResponderID, certificate and signature.
func (k *kit) authorOf(r *response) *ca {
	k.Helper()
	for c := range k.auth {
		id := sha1.Sum(must(pki.PublicKeyBits(c.signer)))
		if !bytes.Equal(id[:], r.keyHash) { // OCSP-RID-01, OCSP-RID-03
			continue
		}
		if len(r.certs) != 1 || !bytes.Equal(r.certs[0], c.signer.Raw) { // OCSP-RSP-09, OCSP-DEL-09
			k.Fatalf("%d certificates in the answer, or another", len(r.certs))
		}
		if err := c.signer.CheckSignature(wireAlgorithms[hex.EncodeToString(r.algorithm)], r.tbs, r.signature); err != nil {
			k.Fatalf("algorithm %x: %v", r.algorithm, err)
		}
		return c
	}
	k.Fatalf("no signer has the key hash %x", r.keyHash)
	return nil
}

// parallel runs f in n goroutines and waits for them.
func parallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// startClock is a clock that stands.
func startClock() time.Time { return start }
