package ingest

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"ocspd/pki"
)

// Options say under which circumstances a CRL is judged.
type Options struct {
	Now              time.Time
	Skew             time.Duration // how far after Now thisUpdate may lie, for clocks that differ
	AcceptNoKeyUsage bool          // take the CRL of a v3 CA certificate without keyUsage, against RFC 10007
	MaxAge           time.Duration // a CRL without nextUpdate holds for this long after thisUpdate; 0 refuses it
}

// ReadCRL reads the CRL in s, DER or PEM, complete or delta, and checks it whole against the issuer: what is wrong with
// any part of it refuses all of it. ErrExpired is a CRL past its nextUpdate that was good until then, as far as it was read.
//
// An entry of a delta CRL with removeFromCRL comes as revoked with the reason pki.RemoveFromCRL. The entries come in the order of the
// file, duplicates included: finding them would take memory for every serial. Whoever stores them lets the earliest
// date of a serial win and warns. The Snapshot can be replayed until s is closed.
func ReadCRL(s *Spool, issuer *pki.Issuer, o Options) (*pki.Snapshot, error) {
	if err := s.toDER(); err != nil {
		return nil, err
	}
	snap := &pki.Snapshot{Kind: pki.CRL, Digest: s.digest, Size: s.size}
	if err := readCRL(s.file, s.size, issuer, o, snap); err != nil {
		return nil, err
	}
	return snap, nil
}

// readCRL fills in what the DER in src says.
func readCRL(src io.ReaderAt, size int64, issuer *pki.Issuer, o Options, snap *pki.Snapshot) error {
	warn := func(format string, args ...any) { snap.Warnings = append(snap.Warnings, fmt.Sprintf(format, args...)) }
	if err := checkKeyUsage(issuer.Certificate, o.AcceptNoKeyUsage, warn); err != nil {
		return err
	}
	out, err := readOutline(src, size)
	if err != nil {
		return err
	}
	if err := out.verify(src, issuer); err != nil {
		return err
	}
	// From here on every octet is the issuer's own.
	h, err := readHead(src, out)
	if err != nil {
		return err
	}
	if !bytes.Equal(h.algorithm, out.algorithm) {
		return errors.New("the signature algorithm inside the signed part differs from the one outside; get the CRL again from the CA")
	}
	if !sameName(h.issuer, issuer.Certificate.RawSubject) {
		return fmt.Errorf("the CRL is issued by [%s], not by [%s], though by the same key; give it to the issuer of that name", nameString(h.issuer), nameString(issuer.Certificate.RawSubject))
	}
	if !bytes.Equal(h.issuer, issuer.Certificate.RawSubject) {
		warn("the CRL writes the issuer's name in other octets than the CA certificate does; they mean the same (RFC 5280 section 7.1)")
	}
	ext, err := h.interpret(warn)
	if err != nil {
		return err
	}
	if err := ext.check(issuer.Certificate, warn); err != nil {
		return err
	}
	if h.nextUpdate, err = h.checkTimes(o, warn); err != nil {
		return err
	}
	if h.version == 1 {
		warn("the CRL is of version 1, which cannot carry extensions; have the CA issue version 2 (openssl: crl_extensions)")
	}
	delta := ext.baseNumber != ""
	var odd oddities
	err = readEntries(src, h.entries, h.entriesEnd, delta, &odd, func(pki.Entry) error { snap.Count++; return nil })
	if err != nil {
		return err
	}
	if h.emptyList {
		warn("revokedCertificates is there but empty; RFC 5280 section 5.1.2.6 wants it left out")
	}
	odd.warn(warn)

	snap.Number, snap.BaseNumber = ext.number, ext.baseNumber
	if !delta {
		snap.Freshest = ext.freshest
	}
	snap.Scope = hex.EncodeToString(ext.scope)
	snap.ThisUpdate, snap.NextUpdate = h.thisUpdate, h.nextUpdate
	snap.Entries = func(yield func(pki.Entry) error) error {
		return readEntries(src, h.entries, h.entriesEnd, delta, new(oddities), yield)
	}
	return nil
}

// checkKeyUsage is RFC 5280 section 6.3.3(f) as RFC 10007 has it: a v3 CA certificate must have keyUsage with cRLSign.
func checkKeyUsage(ca *x509.Certificate, acceptNone bool, warn func(string, ...any)) error {
	hasKeyUsage := slices.ContainsFunc(ca.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 15}) })
	switch {
	case ca.Version < 3:
	case hasKeyUsage && ca.KeyUsage&x509.KeyUsageCRLSign == 0:
		return errors.New("the CA certificate's keyUsage does not allow to sign CRLs (cRLSign); get the certificate of the key that signs them")
	case !hasKeyUsage && !acceptNone:
		return errors.New(`the CA certificate has no keyUsage, so its CRLs prove nothing (RFC 10007); if the CA is to be trusted all the same, write accept = ["ca-without-keyusage"] for the issuer`)
	case !hasKeyUsage:
		warn("the CA certificate has no keyUsage; its CRLs are accepted against RFC 10007, as configured")
	}
	return nil
}

// outline is where the three elements of a CertificateList are: all that is read before the signature is verified.
type outline struct {
	tbs, tbsBody, tbsEnd int64 // in the file
	algorithm            []byte
	signature            []byte
}

func readOutline(src io.ReaderAt, size int64) (outline, error) {
	var o outline
	w := newWalker(src, 0, size, 2*maxElement)
	end, err := w.enter(der.SEQUENCE, "CertificateList")
	if err != nil {
		return o, err
	}
	if end != size {
		return o, malformed(end, "%d octets after the end of the CRL", size-end)
	}
	o.tbs = w.offset()
	if o.tbsEnd, err = w.enter(der.SEQUENCE, "tbsCertList"); err != nil {
		return o, err
	}
	o.tbsBody = w.offset()
	w.skip(o.tbsEnd - o.tbsBody)
	raw, _, err := w.element(der.SEQUENCE, "signatureAlgorithm")
	if err != nil {
		return o, err
	}
	o.algorithm = bytes.Clone(raw)
	at := w.offset()
	raw, content, err := w.element(der.BIT_STRING, "signatureValue")
	if err != nil {
		return o, err
	}
	if len(raw) < content+2 || raw[content] != 0 {
		return o, malformed(at, "signatureValue is not a BIT STRING of whole octets")
	}
	o.signature = bytes.Clone(raw[content+1:])
	if !w.done() {
		return o, malformed(w.offset(), "%d octets after signatureValue", size-w.offset())
	}
	return o, nil
}

func (o outline) verify(src io.ReaderAt, issuer *pki.Issuer) error {
	alg, err := parseAlgorithm(o.algorithm)
	if err != nil {
		return err
	}
	if issuer.Certificate.PublicKey == nil {
		return fmt.Errorf("the key of issuer %s is of a kind that is not supported; RSA (rsaEncryption), ECDSA and Ed25519 are", issuer.Name)
	}
	message, err := alg.message(src, o.tbs, o.tbsEnd)
	if err != nil {
		return err
	}
	if !alg.verify(issuer.Certificate.PublicKey, message, o.signature) {
		return fmt.Errorf("the signature (%s) does not verify with the key of issuer %s: the CRL is another CA's, or was changed; get it again from the CA", alg.name, issuer.Name)
	}
	return nil
}

// head is all of a TBSCertList but its entries.
type head struct {
	version                int
	algorithm              []byte // DER of signature
	issuer                 []byte // DER of the Name
	thisUpdate, nextUpdate time.Time
	early                  bool  // a time before 2050 stands as GeneralizedTime
	entries, entriesEnd    int64 // in the file: the content of revokedCertificates
	emptyList              bool  // revokedCertificates is there but empty
	extensions             []extension
}

// readHead reads the structure, in the order of RFC 5280 section 5.1, and passes over the entries.
func readHead(src io.ReaderAt, o outline) (*head, error) {
	h := &head{version: 1}
	w := newWalker(src, o.tbsBody, o.tbsEnd, 2*maxElement)
	if v2, err := w.peek(der.INTEGER); err != nil {
		return nil, err
	} else if v2 {
		at := w.offset()
		raw, _, err := w.element(der.INTEGER, "version")
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(raw, []byte{2, 1, 1}) {
			return nil, malformed(at, "a version other than 2 (INTEGER 1)")
		}
		h.version = 2
	}
	raw, _, err := w.element(der.SEQUENCE, "signature")
	if err != nil {
		return nil, err
	}
	h.algorithm = bytes.Clone(raw)
	if raw, _, err = w.element(der.SEQUENCE, "issuer"); err != nil {
		return nil, err
	}
	h.issuer = bytes.Clone(raw)
	if h.thisUpdate, err = h.readTime(w, "thisUpdate"); err != nil {
		return nil, err
	}
	if has, err := w.peekTime(); err != nil {
		return nil, err
	} else if has {
		if h.nextUpdate, err = h.readTime(w, "nextUpdate"); err != nil {
			return nil, err
		}
	}
	if has, err := w.peek(der.SEQUENCE); err != nil {
		return nil, err
	} else if has {
		if h.entriesEnd, err = w.enter(der.SEQUENCE, "revokedCertificates"); err != nil {
			return nil, err
		}
		h.entries = w.offset()
		h.emptyList = h.entries == h.entriesEnd
		w.skip(h.entriesEnd - h.entries)
	}
	if w.done() {
		return h, nil
	}
	at := w.offset()
	raw, content, err := w.element(der.Tag(0).ContextSpecific().Constructed(), "crlExtensions")
	if err != nil {
		return nil, err
	}
	if !w.done() {
		return nil, malformed(w.offset(), "something after crlExtensions")
	}
	if h.version == 1 {
		return nil, malformed(at, "crlExtensions in a CRL of version 1")
	}
	if h.extensions, err = readExtensions(raw[content:]); err != nil {
		return nil, malformed(at, "crlExtensions: %v", err)
	}
	return h, nil
}

func (w *walker) peekTime() (bool, error) {
	utc, err := w.peek(der.UTCTime)
	if err != nil || utc {
		return utc, err
	}
	return w.peek(der.GeneralizedTime)
}

// readTime reads a Time. RFC 5280 section 5.1.2.4 has the CA write UTCTime through 2049, and us read either.
func (h *head) readTime(w *walker, name string) (time.Time, error) {
	at := w.offset()
	tag := der.UTCTime
	if general, err := w.peek(der.GeneralizedTime); err != nil {
		return time.Time{}, err
	} else if general {
		tag = der.GeneralizedTime
	}
	raw, content, err := w.element(tag, name)
	if err != nil {
		return time.Time{}, err
	}
	t, ok := parseTime(tag, raw[content:])
	if !ok {
		return time.Time{}, malformed(at, "%s %q is not a time as in RFC 5280 section 4.1.2.5", name, clip(raw[content:]))
	}
	h.early = h.early || tag == der.GeneralizedTime && t.Year() < 2050
	return t, nil
}

// readExtensions reads Extensions whole: at least one, none twice. What it returns points into b.
func readExtensions(b cryptobyte.String) ([]extension, error) {
	var seq cryptobyte.String
	if !b.ReadASN1(&seq, der.SEQUENCE) || !b.Empty() {
		return nil, errors.New("not one SEQUENCE")
	}
	if seq.Empty() {
		return nil, errors.New("an empty list")
	}
	var list []extension
	for !seq.Empty() {
		e, ok := readExtension(&seq)
		if !ok {
			return nil, fmt.Errorf("extension %d is not valid DER", len(list)+1)
		}
		if slices.ContainsFunc(list, func(f extension) bool { return bytes.Equal(f.oid, e.oid) }) {
			return nil, fmt.Errorf("extension %s stands there twice", oidString(e.oid))
		}
		if len(list) == maxExtensions {
			return nil, fmt.Errorf("more than %d extensions", maxExtensions)
		}
		list = append(list, e)
	}
	return list, nil
}

const maxExtensions = 64 // in one list

// meaning is what the CRL extensions say.
type meaning struct {
	number, baseNumber string
	keyID              []byte
	scope              []byte // DER of issuingDistributionPoint
	freshest           []string
}

// interpret reads the extensions (RFC 5280 section 5.2). One that is critical and not known here refuses the CRL.
func (h *head) interpret(warn func(string, ...any)) (m meaning, err error) {
	for _, e := range h.extensions {
		switch string(e.oid) {
		case oidCRLNumber:
			if m.number, err = parseNumber(e.value); err != nil {
				return m, fmt.Errorf("the CRL number %w; ask the CA for a correct CRL", err)
			}
		case oidDeltaIndicator:
			if m.baseNumber, err = parseNumber(e.value); err != nil {
				return m, fmt.Errorf("the number of the base CRL in deltaCRLIndicator %w; ask the CA for a correct CRL", err)
			}
			if !e.critical {
				warn("deltaCRLIndicator is not critical; taken as if it were")
			}
		case oidAuthorityKeyID:
			var ok bool
			if m.keyID, ok = parseKeyID(e.value); !ok {
				return m, errors.New("authorityKeyIdentifier is not valid DER; ask the CA for a correct CRL")
			}
		case oidIssuingPoint:
			m.scope = e.value
			if !e.critical {
				warn("issuingDistributionPoint is not critical; taken as if it were")
			}
		case oidFreshestCRL:
			var ok bool
			if m.freshest, ok = parseFreshest(e.value); !ok && e.critical {
				return m, errors.New("freshestCRL is critical and not valid DER; ask the CA for a correct CRL")
			} else if !ok {
				warn("freshestCRL is not valid DER; passed over")
			}
		default:
			if e.critical {
				return m, fmt.Errorf("critical extension %s is not known, so what the CRL means cannot be told (RFC 5280 section 5.2); ask the CA for a CRL without it", oidString(e.oid))
			}
		}
	}
	return m, m.checkScope()
}

// checkScope refuses what is not supported, and what is not valid in itself.
func (m meaning) checkScope() error {
	if m.scope != nil {
		s, ok := parseScope(m.scope)
		switch {
		case !ok:
			return errors.New("issuingDistributionPoint is not valid: empty, contradictory or not DER (RFC 5280 section 5.2.5); ask the CA for a correct CRL")
		case s.Indirect:
			return errors.New("the CRL is indirect (indirectCRL), which is not supported; ask the CA for a CRL of its own certificates")
		case s.OnlyAttributeCert:
			return errors.New("the CRL is about attribute certificates only, which have no OCSP answers; give the CRL of the CA's certificates")
		}
	}
	// Hexadecimal of one length sorts as the numbers do.
	switch n := max(len(m.number), len(m.baseNumber)); {
	case m.baseNumber == "":
	case m.number == "":
		return errors.New("the delta CRL has no number, so its place cannot be told; ask the CA for a correct CRL")
	case fmt.Sprintf("%0*s", n, m.baseNumber) > fmt.Sprintf("%0*s", n, m.number):
		return fmt.Errorf("the delta CRL has number %s, below %s of the CRL it builds on; ask the CA for a correct CRL", m.number, m.baseNumber)
	}
	return nil
}

// check compares with the CA. The signature has proved the key already; a key identifier of another key is a CRL
// whose makers disagree about which key it was.
func (m meaning) check(ca *x509.Certificate, warn func(string, ...any)) error {
	switch {
	case len(m.keyID) == 0:
		warn("the CRL has no authorityKeyIdentifier with a key identifier; only the signature tells its key")
	case len(ca.SubjectKeyId) == 0:
		warn("the CA certificate has no subjectKeyIdentifier to compare with the CRL's authorityKeyIdentifier; only the signature tells its key")
	case !bytes.Equal(m.keyID, ca.SubjectKeyId):
		return fmt.Errorf("authorityKeyIdentifier %x is not the CA's subjectKeyIdentifier %x; give the CRL to the issuer with that key", clip(m.keyID), ca.SubjectKeyId)
	}
	if m.number == "" {
		warn("the CRL has no number; only its times tell old from new")
	}
	return nil
}

// checkTimes gives the time until which the CRL holds.
func (h *head) checkTimes(o Options, warn func(string, ...any)) (time.Time, error) {
	next := h.nextUpdate
	if next.IsZero() && o.MaxAge <= 0 {
		return next, errors.New("the CRL has no nextUpdate, so it would hold for ever; ask the CA for one with nextUpdate")
	}
	if next.IsZero() {
		next = h.thisUpdate.Add(o.MaxAge)
		warn("the CRL has no nextUpdate; it is held to end %v after its thisUpdate, as configured", o.MaxAge)
	}
	if h.early {
		warn("a time before 2050 is written as GeneralizedTime; RFC 5280 section 5.1.2.4 wants UTCTime")
	}
	switch {
	case h.thisUpdate.After(o.Now.Add(o.Skew)):
		return next, fmt.Errorf("thisUpdate %s lies after now, %s; check the clocks here and at the CA", stamp(h.thisUpdate), stamp(o.Now))
	case !next.After(h.thisUpdate):
		return next, fmt.Errorf("nextUpdate %s is not after thisUpdate %s; ask the CA for a correct CRL", stamp(next), stamp(h.thisUpdate))
	case o.Now.After(next):
		return next, fmt.Errorf("%w: its nextUpdate was %s, now is %s; fetch the newest CRL from the CA", ErrExpired, stamp(next), stamp(o.Now))
	}
	return next, nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
