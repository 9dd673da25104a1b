package hsm

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/miekg/pkcs11"
)

// Algorithm of a key, as in `key generate --type`.
type Algorithm string

// Ed25519 is the one that signs messages, not digests.
const Ed25519 Algorithm = "ed25519"

type algorithm struct {
	kind       uint   // CKK_
	generate   uint   // CKM_
	sign       []uint // CKM_
	curve      elliptic.Curve
	params     []byte   // of a curve: CKA_EC_PARAMS
	alternates [][]byte // what else CKA_EC_PARAMS may be
	bits       uint     // of RSA
}

var algorithms = map[Algorithm]algorithm{
	"p256":    ec(elliptic.P256(), oidP256),
	"p384":    ec(elliptic.P384(), oidP384),
	"p521":    ec(elliptic.P521(), oidP521),
	"rsa2048": rsaOf(2048),
	"rsa3072": rsaOf(3072),
	"rsa4096": rsaOf(4096),
	Ed25519: {kind: ckkECEdwards, generate: ckmECEdwardsKeyPairGen, sign: []uint{ckmEdDSA}, params: oidEd25519,
		alternates: [][]byte{nameEd25519}},
}

func ec(curve elliptic.Curve, params []byte) algorithm {
	return algorithm{kind: pkcs11.CKK_EC, generate: pkcs11.CKM_EC_KEY_PAIR_GEN, sign: []uint{pkcs11.CKM_ECDSA}, curve: curve, params: params}
}

func rsaOf(bits uint) algorithm {
	return algorithm{kind: pkcs11.CKK_RSA, generate: pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN,
		sign: []uint{pkcs11.CKM_RSA_PKCS, pkcs11.CKM_RSA_PKCS_PSS}, bits: bits}
}

// Algorithms lists the words that Generate takes.
func Algorithms() []string {
	var s []string
	for _, a := range slices.Sorted(maps.Keys(algorithms)) {
		s = append(s, string(a))
	}
	return s
}

// generateDeadline is for making a key: a small token needs minutes for RSA-4096. Tests shorten it.
var generateDeadline = 5 * time.Minute

// Generate makes a key pair in the token that can sign and do nothing else, and proves it by a signature. With no id
// one is made at random. A label or id that a key has already is refused: two keys of one name could not be told apart.
// Attributes that the token does not know are left out, with a warning in the log; Attributes shows what came of it.
func (t *Token) Generate(label string, id []byte, a Algorithm) (*Key, error) {
	s, ok := algorithms[a]
	if !ok {
		return nil, fmt.Errorf("key type %q: use one of %s", a, strings.Join(Algorithms(), ", "))
	}
	if label == "" {
		return nil, errors.New("a key needs a label")
	}
	if len(id) == 0 {
		id = make([]byte, 8)
		rand.Read(id)
	}
	if err := t.free(label, id); err != nil {
		return nil, err
	}
	k, err := with(context.Background(), t, use{operation: "generate " + label, write: true, deadline: generateDeadline},
		func(c *pkcs11.Ctx, session pkcs11.SessionHandle) (*Key, error) {
			h, err := t.generatePair(c, session, label, id, s)
			if err != nil {
				return nil, err
			}
			k, err := t.readKey(objects{c, session}, h)
			if err != nil {
				return nil, fmt.Errorf("the key was made, and cannot be read back: %w; look with 'ocspd key list'", err)
			}
			return k, nil
		})
	if err != nil {
		return nil, err
	}
	err = k.usable
	if err == nil {
		err = k.Prove(context.Background(), k.public)
	}
	if err != nil {
		err = fmt.Errorf("the new key %s is of no use: %w", k, err)
		if e := t.Destroy(k); e != nil {
			return nil, fmt.Errorf("%w; and it is still there: %w; try 'ocspd key destroy %s'", err, e, label)
		}
		return nil, err
	}
	return k, nil
}

// free refuses a label or id that a key object has.
func (t *Token) free(label string, id []byte) error {
	for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY} {
		for _, name := range []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_ID, id)} {
			found, err := with(context.Background(), t, use{operation: "find " + label}, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) (int, error) {
				h, err := objects{c, s}.find([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), name}, 1)
				return len(h), err
			})
			if err != nil {
				return err
			}
			if found > 0 {
				what := fmt.Sprintf("label %q", label)
				if name.Type == pkcs11.CKA_ID {
					what = fmt.Sprintf("id %x", id)
				}
				return fmt.Errorf("token %s: a key with %s is there already; choose another, or destroy that one first", t.cfg.Name, what)
			}
		}
	}
	return nil
}

// dispensable attributes may be left out when the token does not know them, in this order. What the private key may be used
// for and how it is kept is not dispensable.
var dispensable = []struct {
	attribute uint
	name      string
}{
	{pkcs11.CKA_ALLOWED_MECHANISMS, "CKA_ALLOWED_MECHANISMS"},
	{pkcs11.CKA_COPYABLE, "CKA_COPYABLE"},
	{pkcs11.CKA_SIGN_RECOVER, "CKA_SIGN_RECOVER"},
	{pkcs11.CKA_VERIFY_RECOVER, "CKA_VERIFY_RECOVER"},
	{pkcs11.CKA_MODIFIABLE, "CKA_MODIFIABLE"},
	{pkcs11.CKA_DERIVE, "CKA_DERIVE"},
	{pkcs11.CKA_VERIFY, "CKA_VERIFY"}, // of the public half, which everyone has
	{pkcs11.CKA_ENCRYPT, "CKA_ENCRYPT"},
}

// vague is what is left out for a module that only says that something went wrong: NSS has no column for the first two,
// tpm2-pkcs11 1.9 takes the others of the public half for those of the private key.
var vague = [][]uint{{pkcs11.CKA_ALLOWED_MECHANISMS, pkcs11.CKA_COPYABLE}, {pkcs11.CKA_VERIFY, pkcs11.CKA_ENCRYPT}}

func (t *Token) generatePair(c *pkcs11.Ctx, session pkcs11.SessionHandle, label string, id []byte, a algorithm) (pkcs11.ObjectHandle, error) {
	public, private := templates(label, id, a)
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(a.generate, nil)}
	attempt := func(without ...uint) (pkcs11.ObjectHandle, error) {
		_, h, err := c.GenerateKeyPair(session, mechanism, omit(public, without), omit(private, without))
		if err != nil {
			return 0, fmt.Errorf("C_GenerateKeyPair: %w", err)
		}
		return h, nil
	}
	h, err := attempt()
	if isCode(err, pkcs11.CKR_MECHANISM_INVALID) {
		return 0, fmt.Errorf("%w: the token, or what lies between it and us, cannot make keys of this type; use another, such as p256", err)
	}
	for i := 0; i < len(a.alternates) && isCode(err, pkcs11.CKR_CURVE_NOT_SUPPORTED, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID,
		pkcs11.CKR_TEMPLATE_INCONSISTENT, pkcs11.CKR_DOMAIN_PARAMS_INVALID, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED); i++ {
		for _, p := range public {
			if p.Type == pkcs11.CKA_EC_PARAMS {
				p.Value = a.alternates[i]
			}
		}
		h, err = attempt()
	}
	// The token does not say which attribute it does not know.
	var tries [][]uint
	again := []pkcs11.Error{pkcs11.CKR_ATTRIBUTE_TYPE_INVALID}
	switch {
	case isCode(err, again...): // try without each of them, then without more and more
		var more []uint
		for _, d := range dispensable {
			tries = append(tries, []uint{d.attribute})
		}
		for _, d := range dispensable {
			more = append(more, d.attribute)
			tries = append(tries, slices.Clone(more))
		}
	case isCode(err, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED):
		tries, again = vague, []pkcs11.Error{pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED}
	}
	for _, without := range tries {
		if !isCode(err, again...) {
			break
		}
		if left, e := (objects{c, session}).find([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, id)}, 1); e != nil {
			return 0, errors.Join(err, e)
		} else if len(left) > 0 {
			return 0, fmt.Errorf("%w; but a key of its id is there now; look with 'ocspd key list'", err) // not a second one
		}
		if h, err = attempt(without...); err != nil {
			continue
		}
		for _, d := range dispensable {
			if slices.Contains(without, d.attribute) {
				t.cfg.Log.Warn("the token does not know an attribute, so the new key is without it", "token", t.cfg.Name,
					"key", label, "attribute", d.name)
			}
		}
	}
	return h, err
}

func omit(template []*pkcs11.Attribute, without []uint) []*pkcs11.Attribute {
	return slices.DeleteFunc(slices.Clone(template), func(a *pkcs11.Attribute) bool { return slices.Contains(without, a.Type) })
}

// templates name every attribute that could make the key do more than sign: what is left out, a token may set as it
// likes, and many let a key decrypt, unwrap, derive, be copied and be changed.
func templates(label string, id []byte, a algorithm) (public, private []*pkcs11.Attribute) {
	set := pkcs11.NewAttribute
	public = []*pkcs11.Attribute{
		set(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), set(pkcs11.CKA_KEY_TYPE, a.kind),
		set(pkcs11.CKA_TOKEN, true), set(pkcs11.CKA_PRIVATE, false),
		set(pkcs11.CKA_LABEL, label), set(pkcs11.CKA_ID, id),
		set(pkcs11.CKA_VERIFY, true), set(pkcs11.CKA_VERIFY_RECOVER, false), set(pkcs11.CKA_ENCRYPT, false),
		set(pkcs11.CKA_WRAP, false), set(pkcs11.CKA_DERIVE, false),
		set(pkcs11.CKA_MODIFIABLE, false), set(pkcs11.CKA_COPYABLE, false),
	}
	if a.kind == pkcs11.CKK_RSA {
		public = append(public, set(pkcs11.CKA_MODULUS_BITS, a.bits), set(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
	} else {
		public = append(public, set(pkcs11.CKA_EC_PARAMS, a.params))
	}
	var mechanisms []byte
	for _, m := range a.sign {
		mechanisms = binary.NativeEndian.AppendUint64(mechanisms, uint64(m))
	}
	private = []*pkcs11.Attribute{
		set(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), set(pkcs11.CKA_KEY_TYPE, a.kind),
		set(pkcs11.CKA_TOKEN, true), set(pkcs11.CKA_PRIVATE, true), set(pkcs11.CKA_SENSITIVE, true), set(pkcs11.CKA_EXTRACTABLE, false),
		set(pkcs11.CKA_LABEL, label), set(pkcs11.CKA_ID, id),
		set(pkcs11.CKA_SIGN, true), set(pkcs11.CKA_SIGN_RECOVER, false), set(pkcs11.CKA_DECRYPT, false),
		set(pkcs11.CKA_UNWRAP, false), set(pkcs11.CKA_DERIVE, false),
		set(pkcs11.CKA_MODIFIABLE, false), set(pkcs11.CKA_COPYABLE, false),
		set(pkcs11.CKA_ALLOWED_MECHANISMS, mechanisms),
	}
	return public, private
}

// Destroy removes the private key, and the public key objects that are its other half, and makes sure that no private key of
// its id and label is left. There is no way back.
func (t *Token) Destroy(k *Key) error {
	_, err := with(context.Background(), t, use{operation: "destroy " + k.Label, write: true}, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) (struct{}, error) {
		o := objects{c, s}
		named := func(class uint) []*pkcs11.Attribute {
			return []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class),
				pkcs11.NewAttribute(pkcs11.CKA_LABEL, k.Label), pkcs11.NewAttribute(pkcs11.CKA_ID, k.ID)}
		}
		publics, err := o.find(named(pkcs11.CKO_PUBLIC_KEY), maxObjects)
		if err != nil {
			return struct{}{}, err
		}
		var own []pkcs11.ObjectHandle
		for _, h := range publics {
			p, err := o.readPublic(k.kind, pkcs11.CKO_PUBLIC_KEY, h)
			if err != nil && isModule(err) {
				return struct{}{}, err
			}
			if k.public != nil && p != nil && equal(p, k.public) {
				own = append(own, h)
			}
		}
		id, err := o.optional(k.handle, pkcs11.CKA_ID)
		if err != nil {
			return struct{}{}, err
		}
		if !bytes.Equal(id, k.ID) {
			return struct{}{}, errors.New("its handle means another object now; list the keys again")
		}
		if err := c.DestroyObject(s, k.handle); err != nil {
			return struct{}{}, fmt.Errorf("C_DestroyObject: %w", err)
		}
		for _, h := range own {
			if err := c.DestroyObject(s, h); err != nil {
				return struct{}{}, fmt.Errorf("the private key is gone; C_DestroyObject of its public half: %w", err)
			}
		}
		left, err := o.find(named(pkcs11.CKO_PRIVATE_KEY), 1)
		if err != nil {
			return struct{}{}, err
		}
		if len(left) > 0 {
			return struct{}{}, errors.New("the token reports success, but a private key of this label and id is still there")
		}
		return struct{}{}, nil
	})
	return err
}
