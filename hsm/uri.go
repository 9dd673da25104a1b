package hsm

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	pkcs11uri "github.com/stefanberger/go-pkcs11uri"
)

// URI is a PKCS#11 URI (RFC 7512) as far as it may name a token or a key of ours. A field that the URI does not have
// is empty and matches everything.
type URI struct {
	Token, Serial, Manufacturer, Model string // of the token
	Object                             string // CKA_LABEL
	ID                                 []byte // CKA_ID
	Module                             string // module-path, absolute
}

var (
	uriPath  = []string{"token", "serial", "manufacturer", "model", "object", "id", "type"}
	uriQuery = []string{"module-path"}
)

// ParseURI refuses what could be misunderstood: an attribute that it does not know, one given twice, a slot number
// (they change), a PIN, a type other than private.
func ParseURI(s string) (URI, error) {
	var u URI
	if strings.Contains(s, "pin-value") || strings.Contains(s, "pin-source") {
		return u, errors.New("a PKCS#11 URI must not hold a PIN; name its file in the token's pin setting") // do not repeat it
	}
	p := pkcs11uri.New()
	if err := p.Parse(s); err != nil {
		return u, fmt.Errorf("PKCS#11 URI %q: %w", s, err)
	}
	path, query, _ := strings.Cut(strings.TrimPrefix(s, "pkcs11:"), "?")
	for _, part := range []struct {
		text, separator string
		known           []string
	}{{path, ";", uriPath}, {query, "&", uriQuery}} {
		for attribute := range strings.SplitSeq(part.text, part.separator) {
			name, value, _ := strings.Cut(attribute, "=")
			switch {
			case attribute == "":
			case strings.HasPrefix(name, "slot-"):
				return u, fmt.Errorf("PKCS#11 URI %q: slots are renumbered; name the token by token= or serial=", s)
			case !slices.Contains(part.known, name):
				return u, fmt.Errorf("PKCS#11 URI %q: attribute %q is not known here; known are %s", s, name, strings.Join(part.known, ", "))
			case value == "":
				return u, fmt.Errorf("PKCS#11 URI %q: attribute %q is empty", s, name)
			}
		}
	}
	get := func(name string) string { v, _ := p.GetPathAttribute(name, false); return v }
	u = URI{Token: get("token"), Serial: get("serial"), Manufacturer: get("manufacturer"), Model: get("model"), Object: get("object")}
	if id := get("id"); id != "" {
		u.ID = []byte(id)
	}
	if t := get("type"); t != "" && t != "private" {
		return u, fmt.Errorf("PKCS#11 URI %q: type %q; a key that signs has type=private", s, t)
	}
	u.Module, _ = p.GetQueryAttribute("module-path", false)
	if u.Module != "" && !filepath.IsAbs(u.Module) {
		return u, fmt.Errorf("PKCS#11 URI %q: module-path must be absolute", s)
	}
	return u, nil
}

// KeyURI names a private key by its label, as the configuration does.
func KeyURI(label string) string {
	p := pkcs11uri.New()
	p.SetPathAttributeUnencoded("object", []byte(label))
	s, err := p.Format()
	if err != nil {
		panic(err) // only attributes that are not set here have a form to keep to
	}
	return s
}

// Matches reports whether the token is one that u names.
func (u URI) Matches(t TokenInfo) bool {
	for _, p := range [][2]string{{u.Token, t.Label}, {u.Serial, t.Serial}, {u.Manufacturer, t.Manufacturer}, {u.Model, t.Model}} {
		if p[0] != "" && p[0] != p[1] {
			return false
		}
	}
	return true
}
