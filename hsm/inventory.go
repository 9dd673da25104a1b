package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"
)

// Object is what the token shows of one of its objects. No value of a private or secret key, and no content of a data object, is ever
// asked for.
type Object struct {
	Class    string   `json:"class"` // private key, public key, secret key, certificate, data, or CKO_ in hex
	Label    string   `json:"label"`
	ID       string   `json:"id"`                  // CKA_ID in hex
	UniqueID string   `json:"unique_id,omitempty"` // CKA_UNIQUE_ID, of tokens of PKCS#11 3.x
	Type     string   `json:"type"`                // p256, rsa2048, AES 256 bits, X.509, or CKK_ in hex
	SPKI     string   `json:"spki_sha256,omitempty"`
	Detail   string   `json:"detail,omitempty"` // of a certificate: whose, until when
	True     []string `json:"true"`             // those of objectFlags that are CK_TRUE
	Problem  string   `json:"problem,omitempty"`

	handle pkcs11.ObjectHandle
}

// Classes of Object.
const (
	ClassPrivate     = "private key"
	ClassPublic      = "public key"
	ClassSecret      = "secret key"
	ClassCertificate = "certificate"
)

var classes = map[uint]string{
	pkcs11.CKO_PRIVATE_KEY: ClassPrivate, pkcs11.CKO_PUBLIC_KEY: ClassPublic, pkcs11.CKO_SECRET_KEY: ClassSecret,
	pkcs11.CKO_CERTIFICATE: ClassCertificate, pkcs11.CKO_DATA: "data", pkcs11.CKO_DOMAIN_PARAMETERS: "domain parameters",
}

// objectFlags say what an object can be used for, and how it is kept.
var objectFlags = []struct {
	attribute uint
	name      string
}{
	{pkcs11.CKA_PRIVATE, "CKA_PRIVATE"}, {pkcs11.CKA_SENSITIVE, "CKA_SENSITIVE"}, {pkcs11.CKA_EXTRACTABLE, "CKA_EXTRACTABLE"},
	{pkcs11.CKA_LOCAL, "CKA_LOCAL"}, {pkcs11.CKA_MODIFIABLE, "CKA_MODIFIABLE"}, {pkcs11.CKA_TRUSTED, "CKA_TRUSTED"},
	{pkcs11.CKA_SIGN, "CKA_SIGN"}, {pkcs11.CKA_VERIFY, "CKA_VERIFY"}, {pkcs11.CKA_ENCRYPT, "CKA_ENCRYPT"}, {pkcs11.CKA_DECRYPT, "CKA_DECRYPT"},
	{pkcs11.CKA_WRAP, "CKA_WRAP"}, {pkcs11.CKA_UNWRAP, "CKA_UNWRAP"}, {pkcs11.CKA_DERIVE, "CKA_DERIVE"},
}

var secretTypes = map[uint]string{pkcs11.CKK_AES: "AES", pkcs11.CKK_DES3: "3DES", pkcs11.CKK_GENERIC_SECRET: "generic secret"}

// Objects lists everything that the token shows: without a login, what anybody may see. With cut there were more than 1024 objects, and
// the rest is not in the list.
func (t *Token) Objects() (list []Object, cut bool, err error) {
	list, err = with(context.Background(), t, use{operation: "list objects", deadline: generateDeadline}, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) ([]Object, error) {
		o := objects{c, s}
		handles, err := o.find(nil, maxObjects+1)
		if err != nil {
			return nil, err
		}
		cut = len(handles) > maxObjects
		list := []Object{}
		for _, h := range handles[:min(len(handles), maxObjects)] {
			x, err := t.describe(o, h)
			if err != nil {
				return nil, err
			}
			list = append(list, x)
		}
		return list, nil
	})
	return list, cut, err
}

// Names reports whether the object is the key.
func (k *Key) Names(o Object) bool { return o.Class == ClassPrivate && o.handle == k.handle }

func (t *Token) describe(o objects, h pkcs11.ObjectHandle) (x Object, err error) {
	x = Object{handle: h, True: []string{}}
	text := func(attribute uint) []byte {
		var b []byte
		if err == nil {
			b, err = o.optional(h, attribute)
		}
		return b
	}
	number := func(attribute uint) (uint, string) {
		n, ok := ulong(text(attribute))
		if !ok {
			return 0, "unreadable"
		}
		return n, fmt.Sprintf("%#x", n)
	}
	class, name := number(pkcs11.CKA_CLASS)
	if x.Class = classes[class]; x.Class == "" || name == "unreadable" {
		x.Class = name
	}
	x.Label, x.ID = legible(text(pkcs11.CKA_LABEL)), hex.EncodeToString(text(pkcs11.CKA_ID))
	x.UniqueID = legible(text(ckaUniqueID))
	for _, f := range objectFlags {
		if b := text(f.attribute); len(b) == 1 && b[0] != 0 {
			x.True = append(x.True, f.name)
		}
	}
	if err != nil {
		return x, err
	}
	switch x.Class {
	case ClassPrivate:
		k, err := t.readKey(o, h)
		if err != nil {
			return x, err
		}
		x.describeKey(k.kind, k.public)
		if k.usable != nil {
			x.Problem = legible([]byte(k.usable.Error()))
		}
	case ClassPublic:
		kind, _ := number(pkcs11.CKA_KEY_TYPE)
		public, e := o.readPublic(kind, pkcs11.CKO_PUBLIC_KEY, h)
		if e != nil && isModule(e) {
			return x, e
		} else if e != nil {
			x.Problem = legible([]byte(e.Error()))
		}
		x.describeKey(kind, public)
	case ClassSecret:
		kind, _ := number(pkcs11.CKA_KEY_TYPE)
		if x.Type = secretTypes[kind]; x.Type == "" {
			x.Type = fmt.Sprintf("%#x", kind)
		}
		if n, ok := ulong(text(pkcs11.CKA_VALUE_LEN)); ok {
			x.Type += fmt.Sprintf(" %d bits", 8*n)
		}
	case ClassCertificate:
		x.describeCertificate(text(pkcs11.CKA_VALUE)) // of a certificate this is public
	}
	return x, err
}

func (x *Object) describeKey(kind uint, public crypto.PublicKey) {
	if x.Type = string(algorithmOf(public)); x.Type == "" {
		x.Type = fmt.Sprintf("%#x", kind)
	}
	if der, err := x509.MarshalPKIXPublicKey(public); err == nil {
		sum := sha256.Sum256(der)
		x.SPKI = hex.EncodeToString(sum[:])
	}
}

func (x *Object) describeCertificate(der []byte) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		x.Type, x.Problem = "certificate", "cannot be read as X.509"
		return
	}
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	x.Type, x.SPKI = "X.509", hex.EncodeToString(sum[:])
	x.Detail = legible([]byte(fmt.Sprintf("%s, until %s", c.Subject, c.NotAfter.UTC().Format(time.DateOnly))))
}

// legible makes a text out of whatever a module gives, of bounded length.
func legible(b []byte) string {
	s := bytes.ToValidUTF8(b[:min(len(b), 256)], []byte("?"))
	return string(bytes.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s))
}

// UnmarshalJSON reads an attribute out of a report, so that it can be judged again. What is expected comes from here, never from the report.
func (a *Attribute) UnmarshalJSON(b []byte) error {
	type plain Attribute
	var p plain
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return err
	}
	for i := range inventory {
		s := &inventory[i]
		if s.name == p.Name && s.expected == p.Expected && s.rule == p.Rule {
			*a = Attribute(p)
			a.spec = s
			return nil
		}
	}
	return fmt.Errorf("attribute %q, expected %q by %q: not one that this version reads", p.Name, p.Expected, p.Rule)
}
