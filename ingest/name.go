package ingest

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// sameName compares two Names as RFC 5280 section 7.1 has it: a CA may go over from PrintableString to UTF8String, and
// neither case nor the amount of white space counts.
func sameName(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	x, okX := parseName(a)
	y, okY := parseName(b)
	return okX && okY && slices.EqualFunc(x, y, func(r, s pkix.RelativeDistinguishedNameSET) bool {
		within := func(r, s pkix.RelativeDistinguishedNameSET) bool {
			return !slices.ContainsFunc(r, func(v pkix.AttributeTypeAndValue) bool {
				return !slices.ContainsFunc(s, func(w pkix.AttributeTypeAndValue) bool { return sameAttribute(v, w) })
			})
		}
		return len(r) == len(s) && within(r, s) && within(s, r) // a SET has no order
	})
}

func sameAttribute(v, w pkix.AttributeTypeAndValue) bool {
	a, okA := v.Value.(string)
	b, okB := w.Value.(string)
	squeeze := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	return v.Type.Equal(w.Type) && okA && okB && strings.EqualFold(squeeze(a), squeeze(b))
}

func parseName(der []byte) (pkix.RDNSequence, bool) {
	var rdn pkix.RDNSequence
	rest, err := asn1.Unmarshal(der, &rdn)
	return rdn, err == nil && len(rest) == 0
}

const maxNameString = 400 // octets of a name in a message

// nameString is a Name for people, who may look at it in a terminal.
func nameString(der []byte) string {
	rdn, ok := parseName(der)
	if !ok {
		return "a name that cannot be read"
	}
	s := rdn.String()
	if len(s) > maxNameString {
		s = strings.ToValidUTF8(s[:maxNameString], "") + "…"
	}
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
