package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
)

// Finding is something that a certificate or a key should not have, or lacks.
type Finding struct {
	Rule  string // of the catalogue of rules: OCSP-DEL-03
	Name  string // a word for machines: signer-without-nocheck
	Error bool   // it must not be used; otherwise it is a warning
	Text  string // what is wrong, found and expected, and what to do
}

func (f Finding) String() string { return fmt.Sprintf("%s (%s, %s)", f.Text, f.Name, f.Rule) }

var (
	oidNoCheck          = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSAN              = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidNameConstraints  = asn1.ObjectIdentifier{2, 5, 29, 30}
	oidCRLPoints        = asn1.ObjectIdentifier{2, 5, 29, 31}
	oidPolicies         = asn1.ObjectIdentifier{2, 5, 29, 32}
	oidAuthorityKeyID   = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidNoRevAvail       = asn1.ObjectIdentifier{2, 5, 29, 56}
)

// lint collects findings.
type lint struct {
	strict bool // webpki: what it forbids is an error; in the private profile it is a warning
	list   []Finding
}

func (l *lint) err(rule, name, format string, args ...any) {
	l.list = append(l.list, Finding{"OCSP-" + rule, name, true, fmt.Sprintf(format, args...)})
}

func (l *lint) warn(rule, name, format string, args ...any) {
	l.list = append(l.list, Finding{"OCSP-" + rule, name, false, fmt.Sprintf(format, args...)})
}

func (l *lint) profile(rule, name, format string, args ...any) {
	l.list = append(l.list, Finding{"OCSP-" + rule, name, l.strict, fmt.Sprintf(format, args...)})
}

// CheckDelegate judges the certificate of a delegated signer (RFC 6960 section 4.2.2.2) for the issuer that it would answer
// for: rules DEL-01 to DEL-07, DEL-11, DEL-13, and the key's strength. What clients refuse is always an error; what the
// public profile forbids is an error with webpki and a warning without. Whether it goes with the key in the token
// (DEL-08) only a signature shows.
func CheckDelegate(signer *x509.Certificate, issuer *Issuer, now time.Time, webpki bool) []Finding {
	l := &lint{strict: webpki}
	l.purpose(signer)
	l.origin(signer, issuer)
	l.noCheck(signer)
	l.keyUsage(signer)
	l.extensions(signer)
	l.validity("signer", signer, now)
	limit := 400 * 24 * time.Hour
	if webpki {
		limit = 90 * 24 * time.Hour
	}
	if life := signer.NotAfter.Sub(signer.NotBefore); life > limit {
		l.warn("DEL-11", "signer-long-lived", "it lives %d days, and nocheck means that nobody can revoke it; %d days or less are better",
			int(life.Hours()/24), int(limit.Hours()/24))
	}
	l.strength("signer", signer)
	return l.list
}

// CheckDirect judges a CA whose own key signs the answers (DEL-12).
func CheckDirect(issuer *Issuer, now time.Time) []Finding {
	l := &lint{}
	c := issuer.Certificate
	switch {
	case extension(c, oidKeyUsage) == nil:
		l.err("DEL-12", "ca-without-keyusage", "the CA certificate has no keyUsage, so it does not say that its key may sign answers; use a delegated signer, or accept this finding")
	case c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		l.err("DEL-12", "ca-without-digitalsignature", "the CA certificate's keyUsage lacks digitalSignature, so its key must not sign answers; use a delegated signer")
	}
	l.validity("ca", c, now)
	l.strength("ca", c)
	return l.list
}

func (l *lint) purpose(c *x509.Certificate) {
	if !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
		found := "no extended key usage"
		if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 {
			found = "other extended key usages"
		}
		if slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) {
			found = "anyExtendedKeyUsage, which does not count"
		}
		l.err("DEL-01", "signer-without-ocspsigning", "it has %s, not id-kp-OCSPSigning; ask the CA for a certificate with extendedKeyUsage = OCSPSigning", found)
		return
	}
	if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 1 {
		l.profile("DEL-01", "signer-with-other-purpose", "it has other extended key usages beside OCSPSigning")
	}
}

var weakSignatures = []x509.SignatureAlgorithm{x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1}

// origin: issued by this very CA, with this very key, name and key identifier (DEL-02, DEL-07).
func (l *lint) origin(c *x509.Certificate, issuer *Issuer) {
	ca := issuer.Certificate
	if !bytes.Equal(c.RawIssuer, ca.RawSubject) {
		l.err("DEL-02", "signer-of-other-issuer", "it was issued by %q, and the CA is %q; the names must be the same byte for byte", c.Issuer, ca.Subject)
	}
	if slices.Contains(weakSignatures, c.SignatureAlgorithm) { // CheckSignature lets SHA-1 pass
		l.err("RSP-07", "signer-signed-with-weak-hash", "the CA signed it with %s, which clients refuse; ask the CA for SHA-256", c.SignatureAlgorithm)
	} else if ca.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) != nil {
		l.err("DEL-02", "signer-of-other-key", "its signature does not verify under the key of the configured CA certificate: another CA, or another key of the same name, issued it")
	}
	e := extension(c, oidAuthorityKeyID)
	if e == nil {
		l.profile("DEL-07", "signer-without-authoritykeyid", "it has no authorityKeyIdentifier")
		return
	}
	var aki struct {
		KeyID  []byte        `asn1:"optional,tag:0"`
		Issuer asn1.RawValue `asn1:"optional,tag:1"`
		Serial *big.Int      `asn1:"optional,tag:2"`
	}
	rest, err := asn1.Unmarshal(e.Value, &aki)
	switch {
	case err != nil || len(rest) > 0:
		l.err("DEL-07", "signer-authoritykeyid-unreadable", "its authorityKeyIdentifier cannot be read")
	case len(aki.KeyID) > 0 && len(ca.SubjectKeyId) > 0 && !bytes.Equal(aki.KeyID, ca.SubjectKeyId):
		l.err("DEL-07", "signer-of-other-keyid", "its authorityKeyIdentifier is %x, and the CA's subjectKeyIdentifier is %x", aki.KeyID, ca.SubjectKeyId)
	case aki.Serial != nil && aki.Serial.Cmp(ca.SerialNumber) != 0:
		l.err("DEL-07", "signer-of-other-ca-serial", "its authorityKeyIdentifier names the CA certificate with serial %x, and the configured one has %x; configure the certificate that issued it",
			aki.Serial, ca.SerialNumber)
	}
}

func (l *lint) noCheck(c *x509.Certificate) {
	e := extension(c, oidNoCheck)
	switch {
	case e == nil && extension(c, oidNoRevAvail) != nil:
		l.profile("DEL-03", "signer-without-nocheck", "it has noRevAvail but not id-pkix-ocsp-nocheck, and the one does not stand for the other (OCSP-DEL-13)")
	case e == nil:
		l.profile("DEL-03", "signer-without-nocheck", "it lacks id-pkix-ocsp-nocheck, so clients must ask whether the signer itself is revoked; ask the CA for noCheck")
	case e.Critical:
		l.profile("DEL-03", "signer-nocheck-critical", "its id-pkix-ocsp-nocheck is critical; it must not be")
	case !bytes.Equal(e.Value, asn1.NullBytes):
		l.profile("DEL-03", "signer-nocheck-value", "its id-pkix-ocsp-nocheck holds %q instead of NULL (0500)", hex.EncodeToString(e.Value))
	}
}

var keyUsageNames = []string{"digitalSignature", "contentCommitment", "keyEncipherment", "dataEncipherment", "keyAgreement",
	"keyCertSign", "cRLSign", "encipherOnly", "decipherOnly"}

func (l *lint) keyUsage(c *x509.Certificate) {
	e := extension(c, oidKeyUsage)
	if e == nil {
		l.profile("DEL-04", "signer-without-keyusage", "it has no keyUsage; digitalSignature alone, critical, is right")
		return
	}
	var found []string
	for i, name := range keyUsageNames {
		if c.KeyUsage&(1<<i) != 0 {
			found = append(found, name)
		}
	}
	switch {
	case c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		l.err("DEL-04", "signer-without-digitalsignature", "its keyUsage is %s, without digitalSignature: clients refuse its signatures", strings.Join(found, ", "))
	case c.KeyUsage != x509.KeyUsageDigitalSignature:
		l.profile("DEL-04", "signer-keyusage-too-wide", "its keyUsage is %s; digitalSignature alone is right", strings.Join(found, ", "))
	case !e.Critical:
		l.profile("DEL-04", "signer-keyusage-not-critical", "its keyUsage is not critical")
	}
}

// extensions: what must not be there (DEL-05, DEL-06).
func (l *lint) extensions(c *x509.Certificate) {
	for _, x := range []struct {
		oid  asn1.ObjectIdentifier
		name string
	}{{oidCRLPoints, "cRLDistributionPoints"}, {oidSAN, "subjectAltName"}, {oidNameConstraints, "nameConstraints"}} {
		if extension(c, x.oid) != nil {
			l.profile("DEL-05", "signer-with-"+strings.ToLower(x.name), "it has %s, which a signer's certificate must not have", x.name)
		}
	}
	if len(c.OCSPServer) > 0 {
		l.profile("DEL-05", "signer-with-ocsp-url", "it names an OCSP responder (%q): clients that ask it go in circles", c.OCSPServer[0])
	}
	if e := extension(c, oidBasicConstraints); e != nil {
		switch {
		case c.IsCA:
			l.err("DEL-05", "signer-is-ca", "it is a CA certificate; a delegated signer must not be one")
		case !bytes.Equal(e.Value, []byte{0x30, 0}):
			l.profile("DEL-05", "signer-basicconstraints", "its basicConstraints is %x; absent or empty (3000) is right", e.Value)
		}
	}
	if extension(c, oidPolicies) != nil {
		l.warn("DEL-06", "signer-with-policies", "it has certificatePolicies, which it should not have")
	}
	for _, oid := range c.UnhandledCriticalExtensions {
		if !oid.Equal(oidNoCheck) {
			l.err("DEL-07", "signer-unknown-critical-extension", "it has a critical extension %s that clients do not know: they refuse it", oid)
		}
	}
}

func (l *lint) validity(who string, c *x509.Certificate, now time.Time) {
	switch {
	case now.Before(c.NotBefore):
		l.err("DEL-07", who+"-not-yet-valid", "it is valid from %s, and now it is %s; see that the clock is right", c.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case now.After(c.NotAfter):
		l.err("DEL-07", who+"-expired", "it expired on %s; ask the CA for a new one", c.NotAfter.UTC().Format(time.RFC3339))
	}
}

// strength is KEY-22 for the public half.
func (l *lint) strength(who string, c *x509.Certificate) {
	switch p := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if bits := p.N.BitLen(); bits < 2048 || bits%8 != 0 || p.E < 65537 || p.E%2 == 0 {
			l.err("KEY-22", who+"-key-weak", "its RSA key has %d bits and exponent %d; 2048 bits or more, a multiple of 8, and 65537 are right", bits, p.E)
		}
	case *ecdsa.PublicKey:
		if p.Curve != elliptic.P256() && p.Curve != elliptic.P384() && p.Curve != elliptic.P521() {
			l.err("KEY-22", who+"-key-curve", "its key is on curve %s; P-256, P-384 or P-521 are right", p.Params().Name)
		}
	case ed25519.PublicKey:
		if l.strict {
			l.err("KEY-22", who+"-key-ed25519", "its key is Ed25519, which the public profile does not allow; RSA or ECDSA are right")
		}
	default:
		l.err("KEY-22", who+"-key-unknown", "its public key is of a kind (%s) that cannot be used here", c.PublicKeyAlgorithm)
	}
}

// extension gives nil where there is none. x509 refuses a certificate that has one twice.
func extension(c *x509.Certificate, oid asn1.ObjectIdentifier) *pkix.Extension {
	for i := range c.Extensions {
		if c.Extensions[i].Id.Equal(oid) {
			return &c.Extensions[i]
		}
	}
	return nil
}
