package hsm

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/pkcs11"
)

// Attribute is one of a private key, as the module reports it.
type Attribute struct {
	Name     string `json:"name"`               // CKA_…
	Found    string `json:"found"`              // true, false, hex, a date; NotSupported or Withheld
	Expected string `json:"expected,omitempty"` // "" where it is only recorded
	Rule     string `json:"rule"`               // of conformance.md

	spec *attributeSpec
}

// What stands in Attribute.Found where there is no value. Neither means false.
const (
	NotSupported = "not supported by the token"
	Withheld     = "withheld by the token"
)

// Finding is an attribute that is not what a signing key of an OCSP responder must or should have.
type Finding struct {
	Name      string `json:"name"` // as in the issuer's `accept`
	Rule      string `json:"rule"`
	Attribute string `json:"attribute"`
	Found     string `json:"found"`
	Expected  string `json:"expected"`
	Must      bool   `json:"must"` // the key is refused, unless its finding is accepted by name
}

func (f Finding) String() string {
	return fmt.Sprintf("%s (%s): %s is %s, expected %s", f.Name, f.Rule, f.Attribute, f.Found, f.Expected)
}

type attributeSpec struct {
	attribute uint
	name      string
	kind      byte // b: CK_BBOOL, m: mechanism, M: mechanisms, d: CK_DATE, x: octets, s: text
	expected  string
	finding   string
	rule      string
	level     level
}

// level of a finding.
type level byte

const (
	recorded level = iota
	should         // a finding that refuses nothing
	usage          // the key may do what it should not: refused. A token that does not know the attribute has no such use
	custody        // refused; a token that cannot say is refused too (OCSP-KEY-03)
)

// Attributes of PKCS#11 3.x that miekg/pkcs11 does not have.
const (
	ckaUniqueID    = 0x4
	ckaDecapsulate = 0x634
)

// inventory is every attribute that says how a key is kept and what it can be used for; none of them is secret.
var inventory = []attributeSpec{
	{pkcs11.CKA_LABEL, "CKA_LABEL", 's', "", "", "OCSP-KEY-15", recorded},
	{pkcs11.CKA_ID, "CKA_ID", 'x', "", "", "OCSP-KEY-15", recorded},
	{ckaUniqueID, "CKA_UNIQUE_ID", 's', "", "", "OCSP-KEY-15", recorded},
	{pkcs11.CKA_TOKEN, "CKA_TOKEN", 'b', "true", "key-not-on-token", "OCSP-KEY-06", custody},
	{pkcs11.CKA_PRIVATE, "CKA_PRIVATE", 'b', "true", "key-not-private", "OCSP-KEY-06", custody},
	{pkcs11.CKA_SENSITIVE, "CKA_SENSITIVE", 'b', "true", "key-not-sensitive", "OCSP-KEY-03", custody},
	{pkcs11.CKA_ALWAYS_SENSITIVE, "CKA_ALWAYS_SENSITIVE", 'b', "true", "key-not-always-sensitive", "OCSP-KEY-03", custody},
	{pkcs11.CKA_EXTRACTABLE, "CKA_EXTRACTABLE", 'b', "false", "key-extractable", "OCSP-KEY-03", custody},
	{pkcs11.CKA_NEVER_EXTRACTABLE, "CKA_NEVER_EXTRACTABLE", 'b', "true", "key-not-never-extractable", "OCSP-KEY-03", custody},
	{pkcs11.CKA_LOCAL, "CKA_LOCAL", 'b', "true", "key-not-local", "OCSP-KEY-02", custody},
	{pkcs11.CKA_KEY_GEN_MECHANISM, "CKA_KEY_GEN_MECHANISM", 'm', "a key pair generation mechanism", "key-generation-unknown", "OCSP-KEY-02", should},
	{pkcs11.CKA_SIGN, "CKA_SIGN", 'b', "true", "key-cannot-sign", "OCSP-KEY-04", custody},
	{pkcs11.CKA_SIGN_RECOVER, "CKA_SIGN_RECOVER", 'b', "false", "key-can-sign-recover", "OCSP-KEY-04", usage},
	{pkcs11.CKA_DECRYPT, "CKA_DECRYPT", 'b', "false", "key-can-decrypt", "OCSP-KEY-04", usage},
	{pkcs11.CKA_UNWRAP, "CKA_UNWRAP", 'b', "false", "key-can-unwrap", "OCSP-KEY-04", usage},
	{pkcs11.CKA_DERIVE, "CKA_DERIVE", 'b', "false", "key-can-derive", "OCSP-KEY-04", usage},
	{ckaDecapsulate, "CKA_DECAPSULATE", 'b', "false", "key-can-decapsulate", "OCSP-KEY-04", usage},
	{pkcs11.CKA_ALLOWED_MECHANISMS, "CKA_ALLOWED_MECHANISMS", 'M', "", "", "OCSP-KEY-05", recorded},
	{pkcs11.CKA_MODIFIABLE, "CKA_MODIFIABLE", 'b', "false", "key-modifiable", "OCSP-KEY-07", should},
	{pkcs11.CKA_COPYABLE, "CKA_COPYABLE", 'b', "false", "key-copyable", "OCSP-KEY-07", should},
	{pkcs11.CKA_DESTROYABLE, "CKA_DESTROYABLE", 'b', "", "", "OCSP-KEY-07", recorded},
	{pkcs11.CKA_WRAP_WITH_TRUSTED, "CKA_WRAP_WITH_TRUSTED", 'b', "", "", "OCSP-KEY-08", recorded},
	{pkcs11.CKA_ALWAYS_AUTHENTICATE, "CKA_ALWAYS_AUTHENTICATE", 'b', "false", "key-always-authenticate", "OCSP-KEY-09", usage},
	{pkcs11.CKA_START_DATE, "CKA_START_DATE", 'd', "", "key-before-start-date", "OCSP-KEY-16", usage},
	{pkcs11.CKA_END_DATE, "CKA_END_DATE", 'd', "", "key-past-end-date", "OCSP-KEY-16", usage},
}

// Attributes are those of one key, in a fixed order.
type Attributes []Attribute

// Attributes asks the token how the key is kept and what it may be used for.
func (k *Key) Attributes() (Attributes, error) {
	return with(context.Background(), k.t, use{operation: "attributes of " + k.Label}, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) (Attributes, error) {
		var list Attributes
		o := objects{c, s}
		for i := range inventory {
			spec := &inventory[i]
			a := Attribute{Name: spec.name, Expected: spec.expected, Rule: spec.rule, spec: spec}
			v, err := o.get(k.handle, spec.attribute)
			switch {
			case err == nil:
				a.Found = spec.text(v)
			case errors.Is(err, errNoAttribute):
				a.Found = NotSupported
			case errors.Is(err, errWithheld):
				a.Found = Withheld
			case isCode(err, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED), // SoftHSM, of a date in a private object
				isCode(err, pkcs11.CKR_DEVICE_ERROR) && spec.level == recorded && o.readable(k.handle): // p11-kit's client, of a list
				a.Found = "unreadable: " + err.Error()
			default:
				return nil, err
			}
			list = append(list, a)
		}
		return list, nil
	})
}

var generators = map[uint]string{
	pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN:  "CKM_RSA_PKCS_KEY_PAIR_GEN",
	pkcs11.CKM_RSA_X9_31_KEY_PAIR_GEN: "CKM_RSA_X9_31_KEY_PAIR_GEN",
	pkcs11.CKM_EC_KEY_PAIR_GEN:        "CKM_EC_KEY_PAIR_GEN",
	ckmECEdwardsKeyPairGen:            "CKM_EC_EDWARDS_KEY_PAIR_GEN",
}

// text shows a value that a module may have made up: of any length and content.
func (s *attributeSpec) text(v []byte) string {
	odd := func() string { return "unreadable: " + hex.EncodeToString(v[:min(len(v), 32)]) }
	switch s.kind {
	case 'b':
		if len(v) != 1 {
			return odd()
		}
		return fmt.Sprint(v[0] != 0)
	case 'm':
		n, ok := ulong(v)
		switch {
		case !ok:
			return odd()
		case n == pkcs11.CK_UNAVAILABLE_INFORMATION:
			return "none: the key was not generated here"
		case generators[n] != "":
			return generators[n]
		}
		return fmt.Sprintf("%#x", n)
	case 'M':
		if len(v)%8 != 0 {
			return odd()
		}
		list := []string{}
		for ; len(v) > 0; v = v[8:] {
			n, _ := ulong(v[:8])
			list = append(list, mechanismName(n))
		}
		if len(list) == 0 {
			return "any"
		}
		return strings.Join(list, ", ")
	case 'd':
		if len(v) == 0 {
			return "none"
		}
		t, err := time.Parse("20060102", string(v))
		if err != nil {
			return odd()
		}
		return t.Format(time.DateOnly)
	case 's':
		return fmt.Sprintf("%q", v)
	}
	return hex.EncodeToString(v)
}

func mechanismName(n uint) string {
	switch n {
	case pkcs11.CKM_RSA_PKCS:
		return "CKM_RSA_PKCS"
	case pkcs11.CKM_RSA_PKCS_PSS:
		return "CKM_RSA_PKCS_PSS"
	case pkcs11.CKM_ECDSA:
		return "CKM_ECDSA"
	case ckmEdDSA:
		return "CKM_EDDSA"
	}
	return fmt.Sprintf("%#x", n)
}

// Findings are the attributes that are not as expected at the time given.
func (a Attributes) Findings(now time.Time) []Finding {
	var list []Finding
	for _, x := range a {
		expected, ok := x.Expected, x.asExpected()
		if x.spec.kind == 'd' {
			expected, ok = x.dateHolds(now)
		}
		if ok {
			continue
		}
		missing := x.Found == NotSupported || x.Found == Withheld
		if missing && x.spec.level != custody && x.spec.level != should {
			continue
		}
		list = append(list, Finding{Name: x.spec.finding, Rule: x.Rule, Attribute: x.Name, Found: x.Found, Expected: expected,
			Must: x.spec.level == usage || x.spec.level == custody})
	}
	return list
}

func (x Attribute) asExpected() bool {
	switch {
	case x.Expected == "":
		return true
	case x.spec.kind == 'm':
		for _, name := range generators {
			if name == x.Found {
				return true
			}
		}
		return false
	}
	return x.Found == x.Expected
}

// dateHolds: PKCS#11 only records the dates of a key, so we hold to them (OCSP-KEY-16). Both days belong to the period.
func (x Attribute) dateHolds(now time.Time) (string, bool) {
	if slices.Contains([]string{"none", NotSupported, Withheld}, x.Found) {
		return "", true
	}
	today := now.UTC().Format(time.DateOnly)
	_, err := time.Parse(time.DateOnly, x.Found)
	if x.spec.attribute == pkcs11.CKA_START_DATE {
		return "not after " + today, err == nil && x.Found <= today
	}
	return "not before " + today, err == nil && x.Found >= today
}

// Changes names what is not as it was: an attribute that drifts says that somebody, or the token itself, has changed how the key is kept (OCSP-KEY-20).
func (a Attributes) Changes(before Attributes) []string {
	was := map[string]string{}
	for _, x := range before {
		was[x.Name] = x.Found
	}
	var list []string
	for _, x := range a {
		if was[x.Name] != x.Found {
			list = append(list, fmt.Sprintf("%s was %s and is %s", x.Name, was[x.Name], x.Found))
		}
	}
	return list
}

// End is the end of the last day on which the key may sign, by its CKA_END_DATE; the zero time where it has none.
func (a Attributes) End() time.Time {
	for _, x := range a {
		if x.spec.attribute == pkcs11.CKA_END_DATE {
			if t, err := time.Parse(time.DateOnly, x.Found); err == nil {
				return t.AddDate(0, 0, 1).Add(-time.Second)
			}
		}
	}
	return time.Time{}
}
