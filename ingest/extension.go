package ingest

import (
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"ocspd/pki"
)

// Content octets of the OBJECT IDENTIFIERs of the extensions that we process; all are id-ce (2.5.29).
const (
	oidCRLNumber         = "\x55\x1d\x14"
	oidReasonCode        = "\x55\x1d\x15"
	oidInvalidityDate    = "\x55\x1d\x18"
	oidDeltaIndicator    = "\x55\x1d\x1b"
	oidIssuingPoint      = "\x55\x1d\x1c"
	oidCertificateIssuer = "\x55\x1d\x1d"
	oidAuthorityKeyID    = "\x55\x1d\x23"
	oidFreshestCRL       = "\x55\x1d\x2e"
)

// extension is one element of Extensions (RFC 5280 section 4.2).
type extension struct {
	oid      []byte // content octets
	critical bool
	value    []byte // content of the OCTET STRING
}

// readExtension takes one extension off the front of seq. DER leaves out a critical of FALSE.
func readExtension(seq *cryptobyte.String) (e extension, ok bool) {
	var ext, oid, critical, value cryptobyte.String
	var hasCritical bool
	ok = seq.ReadASN1(&ext, der.SEQUENCE) && ext.ReadASN1(&oid, der.OBJECT_IDENTIFIER) && validOID(oid) &&
		ext.ReadOptionalASN1(&critical, &hasCritical, der.BOOLEAN) && (!hasCritical || isTrue(critical)) &&
		ext.ReadASN1(&value, der.OCTET_STRING) && ext.Empty()
	return extension{oid: oid, critical: hasCritical, value: value}, ok
}

func isTrue(b []byte) bool { return len(b) == 1 && b[0] == 0xff }

// validOID reports whether b is arcs in base 128, each in the fewest octets (X.690 section 8.19).
func validOID(b []byte) bool {
	first := true
	for _, o := range b {
		if first && o == 0x80 {
			return false
		}
		first = o < 0x80
	}
	return len(b) > 0 && first
}

// oidString is for people.
func oidString(content []byte) string {
	var oid asn1.ObjectIdentifier
	full := append([]byte{byte(der.OBJECT_IDENTIFIER), byte(len(content))}, content...)
	if _, err := asn1.Unmarshal(full, &oid); err != nil {
		return hex.EncodeToString(clip(content))
	}
	return oid.String()
}

// parseNumber reads a CRLNumber or BaseCRLNumber (RFC 5280 section 5.2.3): not negative, up to 20 octets.
func parseNumber(b cryptobyte.String) (string, error) {
	var n cryptobyte.String
	if !b.ReadASN1(&n, der.INTEGER) || !b.Empty() {
		return "", fmt.Errorf("is not an INTEGER")
	}
	if _, err := pki.SerialFromDER(n); err != nil { // a serial number has the same bounds
		return "", fmt.Errorf("is an INTEGER of %d octets that is too long or not minimal; 1 to 20 octets are allowed", len(n))
	}
	if n[0] >= 0x80 {
		return "", fmt.Errorf("is negative")
	}
	if s := strings.TrimLeft(hex.EncodeToString(n), "0"); s != "" {
		return s, nil
	}
	return "0", nil
}

// parseKeyID reads an AuthorityKeyIdentifier (RFC 5280 section 4.2.1.1) and gives its keyIdentifier, nil when it has none.
func parseKeyID(b cryptobyte.String) (keyID []byte, ok bool) {
	var seq, id, issuer, serial cryptobyte.String
	var hasID, hasIssuer, hasSerial bool
	ok = b.ReadASN1(&seq, der.SEQUENCE) && b.Empty() &&
		seq.ReadOptionalASN1(&id, &hasID, der.Tag(0).ContextSpecific()) &&
		seq.ReadOptionalASN1(&issuer, &hasIssuer, der.Tag(1).ContextSpecific().Constructed()) &&
		seq.ReadOptionalASN1(&serial, &hasSerial, der.Tag(2).ContextSpecific()) && seq.Empty() &&
		hasIssuer == hasSerial && (!hasID || len(id) > 0)
	return id, ok
}

// Scope is what a CRL may speak of: its issuingDistributionPoint (RFC 5280 section 5.2.5). The zero value means
// everything that the issuer issued.
type Scope struct {
	DistributionPoint []byte   // DER of the DistributionPointName, compared byte for byte; nil when there is none
	URLs              []string // the URIs in it
	OnlyUserCerts     bool
	OnlyCACerts       bool
	OnlyAttributeCert bool
	Indirect          bool
	OnlySomeReasons   uint16 // bit 1<<n for bit n of ReasonFlags (RFC 5280 section 4.2.1.13); 0 means all reasons
}

// ParseScope reads pki.Snapshot.Scope.
func ParseScope(scope string) (Scope, error) {
	if scope == "" {
		return Scope{}, nil
	}
	b, err := hex.DecodeString(scope)
	if err != nil {
		return Scope{}, fmt.Errorf("scope is not hex: %w", err)
	}
	s, ok := parseScope(b)
	if !ok {
		return Scope{}, fmt.Errorf("issuingDistributionPoint is not valid")
	}
	return s, nil
}

// parseScope reads an IssuingDistributionPoint strictly: DER leaves out a BOOLEAN that is FALSE, and one that says nothing at
// all or two only* at once is not valid.
func parseScope(b cryptobyte.String) (s Scope, ok bool) {
	var seq, point, reasons cryptobyte.String
	var hasPoint, hasReasons bool
	flag := func(n uint8, to *bool) bool {
		var v cryptobyte.String
		return seq.ReadOptionalASN1(&v, to, der.Tag(n).ContextSpecific()) && (!*to || isTrue(v))
	}
	ok = b.ReadASN1(&seq, der.SEQUENCE) && b.Empty() && !seq.Empty() &&
		seq.ReadOptionalASN1(&point, &hasPoint, der.Tag(0).ContextSpecific().Constructed()) &&
		flag(1, &s.OnlyUserCerts) && flag(2, &s.OnlyCACerts) &&
		seq.ReadOptionalASN1(&reasons, &hasReasons, der.Tag(3).ContextSpecific()) &&
		flag(4, &s.Indirect) && flag(5, &s.OnlyAttributeCert) && seq.Empty()
	if !ok {
		return Scope{}, false
	}
	if hasPoint {
		if s.URLs, ok = parsePointName(point); !ok {
			return Scope{}, false
		}
		s.DistributionPoint = point
	}
	if hasReasons {
		if s.OnlySomeReasons, ok = parseReasonFlags(reasons); !ok {
			return Scope{}, false
		}
	}
	only := 0
	for _, b := range []bool{s.OnlyUserCerts, s.OnlyCACerts, s.OnlyAttributeCert} {
		if b {
			only++
		}
	}
	return s, only <= 1
}

// parsePointName reads a DistributionPointName (RFC 5280 section 4.2.1.13): GeneralNames, or a name relative to the issuer's.
func parsePointName(b cryptobyte.String) (urls []string, ok bool) {
	var names cryptobyte.String
	if b.PeekASN1Tag(der.Tag(1).ContextSpecific().Constructed()) {
		return nil, b.ReadASN1(&names, der.Tag(1).ContextSpecific().Constructed()) && b.Empty() && !names.Empty()
	}
	if !b.ReadASN1(&names, der.Tag(0).ContextSpecific().Constructed()) || !b.Empty() || names.Empty() {
		return nil, false
	}
	for !names.Empty() {
		var name cryptobyte.String
		var tag der.Tag
		if !names.ReadAnyASN1(&name, &tag) || tag&0xc0 != 0x80 || tag&0x1f > 8 {
			return nil, false
		}
		if tag == der.Tag(6).ContextSpecific() {
			urls = append(urls, string(name))
		}
	}
	return urls, true
}

// parseReasonFlags reads the content of a BIT STRING with named bits, which in DER ends with a bit that is set.
func parseReasonFlags(b []byte) (flags uint16, ok bool) {
	if len(b) < 2 || len(b) > 3 || b[0] > 7 || b[len(b)-1]&(1<<b[0]-1) != 0 || b[len(b)-1]&(1<<b[0]) == 0 {
		return 0, false
	}
	for i, o := range b[1:] {
		for bit := range 8 {
			if o&(0x80>>bit) != 0 {
				flags |= 1 << (8*i + bit)
			}
		}
	}
	return flags, true
}

func (s Scope) String() string {
	var parts []string
	if s.OnlyUserCerts {
		parts = append(parts, "certificates of users only")
	}
	if s.OnlyCACerts {
		parts = append(parts, "certificates of CAs only")
	}
	if s.OnlyAttributeCert {
		parts = append(parts, "attribute certificates only")
	}
	if s.Indirect {
		parts = append(parts, "indirect: certificates of other issuers too")
	}
	if s.OnlySomeReasons != 0 {
		parts = append(parts, fmt.Sprintf("some reasons only (ReasonFlags 0x%x)", s.OnlySomeReasons))
	}
	if s.DistributionPoint != nil {
		parts = append(parts, fmt.Sprintf("distribution point %q", strings.Join(s.URLs, " ")))
	}
	if len(parts) == 0 {
		return "everything that the issuer issued"
	}
	return strings.Join(parts, ", ")
}

const maxFreshest = 8 // URLs of delta CRLs that are remembered

// parseFreshest reads a FreshestCRL, which is CRLDistributionPoints (RFC 5280 section 4.2.1.13), and gives the http and https URLs.
func parseFreshest(b cryptobyte.String) (urls []string, ok bool) {
	var points cryptobyte.String
	if !b.ReadASN1(&points, der.SEQUENCE) || !b.Empty() || points.Empty() {
		return nil, false
	}
	for !points.Empty() {
		var point, name, skipped cryptobyte.String
		var hasName, has bool
		if !points.ReadASN1(&point, der.SEQUENCE) ||
			!point.ReadOptionalASN1(&name, &hasName, der.Tag(0).ContextSpecific().Constructed()) ||
			!point.ReadOptionalASN1(&skipped, &has, der.Tag(1).ContextSpecific()) ||
			!point.ReadOptionalASN1(&skipped, &has, der.Tag(2).ContextSpecific().Constructed()) || !point.Empty() {
			return nil, false
		}
		if !hasName {
			continue
		}
		found, ok := parsePointName(name)
		if !ok {
			return nil, false
		}
		for _, u := range found {
			if isHTTP(u) && len(urls) < maxFreshest {
				urls = append(urls, u)
			}
		}
	}
	return urls, true
}
