// Package pki holds the values that the other packages share: an Issuer, a Serial, a Status, the Source that
// vouches for it, and the Snapshot that a CRL or an index.txt becomes. It needs the standard library alone, and
// every value in it is immutable once made, so all of it may be read from any goroutine.
package pki

import (
	"crypto"
	_ "crypto/sha1" // CertIDs of nearly all clients; never a signature
	"crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// IssuerID names an issuer where its name in the configuration could differ between roles: the SHA-256 of its
// certificate.
type IssuerID [sha256.Size]byte

// Issuer is a CA whose certificates we answer for.
type Issuer struct {
	Name        string // its name in the configuration
	Certificate *x509.Certificate
	ID          IssuerID
	publicKey   []byte
}

// NewIssuer takes the CA certificate as it will be compared with: name and key are used byte for byte.
func NewIssuer(name string, cert *x509.Certificate) (*Issuer, error) {
	key, err := PublicKeyBits(cert)
	if err != nil {
		return nil, fmt.Errorf("issuer %s: %w", name, err)
	}
	return &Issuer{Name: name, Certificate: cert, ID: sha256.Sum256(cert.Raw), publicKey: key}, nil
}

// NameHash is the issuerNameHash of a CertID (RFC 6960 section 4.1.1): over the DER of the CA's subject as it stands.
func (i *Issuer) NameHash(h crypto.Hash) []byte { return sum(h, i.Certificate.RawSubject) }

// KeyHash is the issuerKeyHash of a CertID (RFC 6960 section 4.1.1), and with SHA-1 the KeyHash of a ResponderID (section 4.2.1):
// over the content of subjectPublicKey without its unused-bits octet.
func (i *Issuer) KeyHash(h crypto.Hash) []byte { return sum(h, i.publicKey) }

func sum(h crypto.Hash, b []byte) []byte {
	w := h.New()
	w.Write(b)
	return w.Sum(nil)
}

// PublicKeyBits is the content of a certificate's subjectPublicKey BIT STRING, without the unused-bits octet.
func PublicKeyBits(cert *x509.Certificate) ([]byte, error) {
	var spki struct {
		Algorithm asn1.RawValue
		PublicKey asn1.BitString
	}
	rest, err := asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &spki)
	if err != nil || len(rest) != 0 {
		return nil, errors.New("subjectPublicKeyInfo cannot be read")
	}
	return spki.PublicKey.Bytes, nil
}

// ParseCertificate reads one certificate, PEM or DER. A PEM file may hold text around it, but only one certificate.
func ParseCertificate(b []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(b)
	if block == nil {
		return x509.ParseCertificate(b)
	}
	if block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("a PEM block %q where a CERTIFICATE belongs", block.Type)
	}
	if second, _ := pem.Decode(rest); second != nil {
		return nil, errors.New("more than one PEM block; give the one certificate alone")
	}
	return x509.ParseCertificate(block.Bytes)
}

// State of a certificate. The zero value is Unknown, never Good.
type State uint8

// The states of RFC 6960 section 2.2.
const (
	Unknown State = iota
	Good
	Revoked
)

func (s State) String() string {
	switch s {
	case Good:
		return "good"
	case Revoked:
		return "revoked"
	}
	return "unknown"
}

// Reason is a CRLReason (RFC 5280 section 5.3.1). Unspecified, 0, is never encoded: it means that there is none.
type Reason uint8

// The reasons. 7 does not exist; RemoveFromCRL stands in delta CRLs only and never in an answer.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	CACompromise         Reason = 2
	AffiliationChanged   Reason = 3
	Superseded           Reason = 4
	CessationOfOperation Reason = 5
	CertificateHold      Reason = 6
	RemoveFromCRL        Reason = 8
	PrivilegeWithdrawn   Reason = 9
	AACompromise         Reason = 10
)

var reasonNames = map[Reason]string{
	Unspecified: "unspecified", KeyCompromise: "keyCompromise", CACompromise: "cACompromise",
	AffiliationChanged: "affiliationChanged", Superseded: "superseded", CessationOfOperation: "cessationOfOperation",
	CertificateHold: "certificateHold", RemoveFromCRL: "removeFromCRL", PrivilegeWithdrawn: "privilegeWithdrawn",
	AACompromise: "aACompromise",
}

func (r Reason) String() string {
	if n, ok := reasonNames[r]; ok {
		return n
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Valid reports whether r may stand in an answer or, unspecified, be left out of it.
func (r Reason) Valid() bool { return r <= AACompromise && r != 7 && r != RemoveFromCRL }

// ParseReason takes the names of RFC 5280, in their own spelling.
func ParseReason(s string) (Reason, error) {
	for r, n := range reasonNames {
		if n == s && r.Valid() {
			return r, nil
		}
	}
	return 0, fmt.Errorf("reason %q: use one of unspecified, keyCompromise, cACompromise, affiliationChanged, superseded, cessationOfOperation, certificateHold, privilegeWithdrawn, aACompromise", s)
}

// Status of one certificate. Times are UTC in whole seconds; they are zero where they do not apply.
type Status struct {
	State          State
	Reason         Reason    // of a revocation
	RevokedAt      time.Time // of a revocation
	InvalidityDate time.Time // RFC 5280 section 5.3.2, where the source gives it
}

// Permanent reports whether the status is a revocation that only `unrevoke --mistake` may undo.
func (s Status) Permanent() bool { return s.State == Revoked && s.Reason != CertificateHold }

// Entry is what one source says of one serial.
type Entry struct {
	Serial Serial
	Status Status
}

// SourceKind says what a source is able to prove.
type SourceKind uint8

// The kinds of source.
const (
	CRL   SourceKind = 1 // proves revocation; its silence proves no issuance
	Index SourceKind = 2 // OpenSSL index.txt: proves issuance too
	Hand  SourceKind = 3 // `revoke`
)

func (k SourceKind) String() string {
	switch k {
	case CRL:
		return "crl"
	case Index:
		return "index"
	case Hand:
		return "hand"
	}
	return "no source"
}

// Source is a piece of evidence in force, as it stands in a generation: what vouches for the statuses and how long.
type Source struct {
	Name       string // location as configured, or "import" for what was handed in
	Kind       SourceKind
	Number     string    // of a CRL: its number in hex; empty where there is none
	ThisUpdate time.Time // CRL: its thisUpdate; index: the last successful read
	NextUpdate time.Time // no answer that needs this source may claim to hold longer
}

// Record is the status of a serial in a generation, all sources taken together.
type Record struct {
	Status Status
	Source uint8     // index of the governing Source; HandSource for an entry by hand
	At     time.Time // of an entry by hand: when the command was given
}

// HandSource stands in Record.Source for entries by hand, which are not in the list of sources.
const HandSource = 255

// Snapshot is a CRL or an index.txt that was read whole and found good: its signature, its issuer and every entry.
type Snapshot struct {
	Kind       SourceKind
	Digest     [sha256.Size]byte // of the file's bytes (of a CRL: of its DER)
	Size       int64             // octets of the same
	Number     string            // CRL number, hex without leading zero digits; "" when there is none
	BaseNumber string            // of a delta CRL: the number it builds on; "" for a complete CRL
	ThisUpdate time.Time         // of a CRL
	NextUpdate time.Time         // of a CRL
	Scope      string            // hex of the DER of a CRL's issuingDistributionPoint; "" means everything the issuer issued
	Freshest   []string          // http and https URLs of delta CRLs that a complete CRL names (RFC 5280 section 5.2.6)
	Count      int64             // entries
	Warnings   []string          // what was odd but does not make it unusable, one line each

	// Entries gives every entry in the file's own order, and may be called again. An error of its own is an I/O
	// error; whatever yield returns ends the walk and is returned.
	Entries func(yield func(Entry) error) error
}
