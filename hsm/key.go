package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Constants of PKCS#11 3.x that miekg/pkcs11 does not have.
const (
	ckkECEdwards           = 0x40
	ckmECEdwardsKeyPairGen = 0x1055
	ckmEdDSA               = 0x1057
)

// Key is a private key in a token. It signs as a crypto.Signer; it holds a handle and a public key, nothing secret.
type Key struct {
	Label string
	ID    []byte

	t      *Token
	handle pkcs11.ObjectHandle
	kind   uint // CKK_
	public crypto.PublicKey
	usable error // why it cannot sign for us; nil when it can
}

// String names the key as a person can find it again.
func (k *Key) String() string { return fmt.Sprintf("%q (id %s)", k.Label, hex.EncodeToString(k.ID)) }

// Public is the public key as the token gives it: *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey. PKCS#11 does
// not enforce that it belongs to the private key; Prove does. nil when Usable says why.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Usable says why the key cannot sign for us, or nil.
func (k *Key) Usable() error { return k.usable }

// Algorithm is the key's, or "" where it is none of ours.
func (k *Key) Algorithm() Algorithm { return algorithmOf(k.public) }

func algorithmOf(public crypto.PublicKey) Algorithm {
	switch p := public.(type) {
	case *rsa.PublicKey:
		return Algorithm(fmt.Sprintf("rsa%d", p.N.BitLen()))
	case *ecdsa.PublicKey:
		for a, s := range algorithms {
			if s.curve == p.Curve {
				return a
			}
		}
	case ed25519.PublicKey:
		return Ed25519
	}
	return ""
}

// Find gives the one private key that a PKCS#11 URI names by object= (label), id=, or both.
func (t *Token) Find(uri string) (*Key, error) {
	u, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	if u.Object == "" && u.ID == nil {
		return nil, fmt.Errorf("key URI %q names no key; add object=LABEL or id=ID", uri)
	}
	if !u.Matches(t.info) {
		return nil, fmt.Errorf("key URI %q names another token than %s, %s", uri, t.cfg.Name, t.info)
	}
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)}
	if u.Object != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, u.Object))
	}
	if u.ID != nil {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, u.ID))
	}
	keys, err := t.keys("find "+uri, template, 2)
	if err != nil {
		return nil, err
	}
	switch len(keys) {
	case 1:
		return keys[0], keys[0].usable
	case 0:
		all, err := t.Keys()
		if err != nil {
			return nil, err
		}
		there := "it holds no private key"
		if len(all) > 0 {
			there = "it holds " + names(all)
		}
		return nil, fmt.Errorf("token %s: no private key matches %q; %s", t.cfg.Name, uri, there)
	}
	return nil, fmt.Errorf("token %s: %q matches more than one private key: %s; name one by object= and id=, or destroy the other",
		t.cfg.Name, uri, names(keys))
}

// Keys gives every private key that the token shows, those too that cannot sign for us.
func (t *Token) Keys() ([]*Key, error) {
	return t.keys("list keys", []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)}, maxObjects)
}

// maxObjects is how many objects of one kind are looked at; a token with more is no token of ours.
const maxObjects = 1024

func (t *Token) keys(operation string, template []*pkcs11.Attribute, limit int) ([]*Key, error) {
	return with(context.Background(), t, use{operation: operation}, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) ([]*Key, error) {
		o := objects{c, s}
		handles, err := o.find(template, limit)
		if err != nil {
			return nil, err
		}
		var keys []*Key
		for _, h := range handles {
			k, err := t.readKey(o, h)
			if err != nil {
				return nil, err
			}
			keys = append(keys, k)
		}
		return keys, nil
	})
}

// objects are those that a session sees.
type objects struct {
	c *pkcs11.Ctx
	s pkcs11.SessionHandle
}

// find gives at most limit handles. A token may give fewer at a time than it was asked for.
func (o objects) find(template []*pkcs11.Attribute, limit int) ([]pkcs11.ObjectHandle, error) {
	if err := o.c.FindObjectsInit(o.s, template); err != nil {
		return nil, fmt.Errorf("C_FindObjectsInit: %w", err)
	}
	var all []pkcs11.ObjectHandle
	for len(all) < limit {
		some, _, err := o.c.FindObjects(o.s, limit-len(all))
		if err != nil {
			return nil, fmt.Errorf("C_FindObjects: %w", err)
		}
		if len(some) == 0 {
			break
		}
		all = append(all, some...)
	}
	if err := o.c.FindObjectsFinal(o.s); err != nil {
		return nil, fmt.Errorf("C_FindObjectsFinal: %w", err)
	}
	return all, nil
}

// errNoAttribute: the token does not know the attribute, or the object does not have it.
var errNoAttribute = errors.New("not supported by the token")

// errWithheld: the token has it and does not show it.
var errWithheld = errors.New("withheld by the token")

// get reads one attribute: asked for together, one that the token does not know fails them all.
func (o objects) get(h pkcs11.ObjectHandle, attribute uint) ([]byte, error) {
	a, err := o.c.GetAttributeValue(o.s, h, []*pkcs11.Attribute{{Type: attribute}})
	switch {
	case isCode(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID):
		return nil, errNoAttribute
	case isCode(err, pkcs11.CKR_ATTRIBUTE_SENSITIVE):
		return nil, errWithheld
	case err != nil:
		return nil, fmt.Errorf("C_GetAttributeValue: %w", err)
	case len(a) != 1 || a[0].Value == nil:
		return nil, errNoAttribute
	}
	return a[0].Value, nil
}

// optional is get, where an attribute that is not there is an empty one.
func (o objects) optional(h pkcs11.ObjectHandle, attribute uint) ([]byte, error) {
	v, err := o.get(h, attribute)
	if errors.Is(err, errNoAttribute) || errors.Is(err, errWithheld) {
		return nil, nil
	}
	return v, err
}

// readable reports whether the token still tells of an object what every object has.
func (o objects) readable(h pkcs11.ObjectHandle) bool {
	_, err := o.get(h, pkcs11.CKA_CLASS)
	return err == nil
}

// ulong reads a CK_ULONG.
func ulong(b []byte) (uint, bool) {
	if len(b) != 8 {
		return 0, false
	}
	return uint(binary.NativeEndian.Uint64(b)), true
}

func (t *Token) readKey(o objects, h pkcs11.ObjectHandle) (*Key, error) {
	label, err := o.optional(h, pkcs11.CKA_LABEL)
	if err != nil {
		return nil, err
	}
	id, err := o.optional(h, pkcs11.CKA_ID)
	if err != nil {
		return nil, err
	}
	kind, err := o.get(h, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return nil, fmt.Errorf("key type of %q: %w", label, err)
	}
	k := &Key{Label: string(label), ID: id, t: t, handle: h}
	k.kind, _ = ulong(kind)
	if k.public, err = o.publicKey(k); err != nil {
		if faultOf(err) != faultCall || isModule(err) {
			return nil, err
		}
		k.usable = fmt.Errorf("token %s: key %s: %w", t.cfg.Name, k, err)
	} else if err := checkPublic(k.public); err != nil {
		k.usable = fmt.Errorf("token %s: key %s: %w (OCSP-KEY-22)", t.cfg.Name, k, err)
	} else if always, err := o.optional(h, pkcs11.CKA_ALWAYS_AUTHENTICATE); err != nil {
		return nil, err
	} else if len(always) == 1 && always[0] != 0 { // signing would be answered by CKR_USER_NOT_LOGGED_IN, a new process would not help
		k.usable = fmt.Errorf("token %s: key %s: CKA_ALWAYS_AUTHENTICATE is true, expected false: the token wants the PIN again for every signature; "+
			"make a key without that ('ocspd key generate') (OCSP-KEY-09)", t.cfg.Name, k)
	}
	return k, nil
}

// isModule reports whether err came out of the module.
func isModule(err error) bool {
	var code pkcs11.Error
	return errors.As(err, &code)
}

// publicKey finds the public half: in CKA_PUBLIC_KEY_INFO, in what an RSA private key shows, in the public key object
// of the same CKA_ID or label, in a certificate of the same.
func (o objects) publicKey(k *Key) (crypto.PublicKey, error) {
	if k.kind != pkcs11.CKK_RSA && k.kind != pkcs11.CKK_EC && k.kind != ckkECEdwards {
		return nil, fmt.Errorf("key type %#x is none that can sign here (RSA, EC, Ed25519)", k.kind)
	}
	spki, err := o.optional(k.handle, pkcs11.CKA_PUBLIC_KEY_INFO)
	if err != nil {
		return nil, err
	}
	if len(spki) > 0 {
		if p, err := x509.ParsePKIXPublicKey(spki); err == nil {
			return p, nil
		}
	}
	if k.kind == pkcs11.CKK_RSA {
		if p, err := o.rsaKey(k.handle); p != nil || err != nil {
			return p, err
		}
	}
	for _, class := range []uint{pkcs11.CKO_PUBLIC_KEY, pkcs11.CKO_CERTIFICATE} {
		p, err := o.publicObject(k, class)
		if p != nil || err != nil {
			return p, err
		}
	}
	return nil, errors.New("the token shows no public key for it, in no attribute, public key object or certificate of the same id or label")
}

// publicObject reads the public key out of the objects of a class that go with the key. All of them must agree.
func (o objects) publicObject(k *Key, class uint) (crypto.PublicKey, error) {
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class)}
	switch {
	case len(k.ID) > 0:
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, k.ID))
	case k.Label != "":
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, k.Label))
	default:
		return nil, nil
	}
	handles, err := o.find(template, maxObjects)
	if err != nil {
		return nil, err
	}
	var found crypto.PublicKey
	for _, h := range handles {
		p, err := o.readPublic(k.kind, class, h)
		if err != nil {
			return nil, err
		}
		if p == nil {
			continue
		}
		if found != nil && !equal(found, p) {
			return nil, errors.New("two public keys of its id differ; destroy the one that is not its own")
		}
		found = p
	}
	return found, nil
}

// readPublic gives nil for an object of another kind of key.
func (o objects) readPublic(kind, class uint, h pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	if class == pkcs11.CKO_CERTIFICATE {
		der, err := o.optional(h, pkcs11.CKA_VALUE)
		if err != nil || len(der) == 0 {
			return nil, err
		}
		if c, err := x509.ParseCertificate(der); err == nil {
			return c.PublicKey, nil
		}
		return nil, nil
	}
	b, err := o.optional(h, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return nil, err
	}
	if got, ok := ulong(b); !ok || got != kind {
		return nil, nil
	}
	if kind == pkcs11.CKK_RSA {
		return o.rsaKey(h)
	}
	params, err := o.optional(h, pkcs11.CKA_EC_PARAMS)
	if err != nil {
		return nil, err
	}
	point, err := o.optional(h, pkcs11.CKA_EC_POINT)
	if err != nil {
		return nil, err
	}
	if kind == ckkECEdwards {
		return edKey(params, point)
	}
	return ecKey(params, point)
}

func (o objects) rsaKey(h pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	n, err := o.optional(h, pkcs11.CKA_MODULUS)
	if err != nil {
		return nil, err
	}
	e, err := o.optional(h, pkcs11.CKA_PUBLIC_EXPONENT)
	if err != nil || len(n) == 0 || len(e) == 0 {
		return nil, err
	}
	exponent := new(big.Int).SetBytes(e)
	if exponent.BitLen() > 31 {
		return nil, errors.New("RSA public exponent over 31 bits")
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(exponent.Int64())}, nil
}

// Curve parameters as CKA_EC_PARAMS has them: the DER of the curve's OID, for Ed25519 of its name too (PKCS#11 3.0).
var (
	oidP256     = []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}
	oidP384     = []byte{6, 5, 0x2b, 0x81, 4, 0, 0x22}
	oidP521     = []byte{6, 5, 0x2b, 0x81, 4, 0, 0x23}
	oidEd25519  = []byte{6, 3, 0x2b, 0x65, 0x70}
	nameEd25519 = append([]byte{0x13, 12}, "edwards25519"...)
)

func ecKey(params, point []byte) (crypto.PublicKey, error) {
	for _, s := range algorithms {
		if s.curve == nil || !bytes.Equal(s.params, params) {
			continue
		}
		p, err := ecdsa.ParseUncompressedPublicKey(s.curve, octets(point))
		if err != nil {
			return nil, fmt.Errorf("its public point: %w", err)
		}
		return p, nil
	}
	return nil, fmt.Errorf("curve %x is none of P-256, P-384, P-521", params)
}

func edKey(params, point []byte) (crypto.PublicKey, error) {
	if !bytes.Equal(params, oidEd25519) && !bytes.Equal(params, nameEd25519) {
		return nil, fmt.Errorf("the Edwards curve %x is not Ed25519", params)
	}
	p := octets(point)
	if len(p) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("its public Ed25519 point has %d octets", len(p))
	}
	return ed25519.PublicKey(p), nil
}

// octets unwraps the OCTET STRING around a point, which some modules leave out.
func octets(point []byte) []byte {
	var inner []byte
	if rest, err := asn1.Unmarshal(point, &inner); err == nil && len(rest) == 0 {
		return inner
	}
	return point
}

// checkPublic: OCSP-KEY-22. Points were checked to be on their curve when they were read.
func checkPublic(public crypto.PublicKey) error {
	switch p := public.(type) {
	case *rsa.PublicKey:
		switch bits := p.N.BitLen(); {
		case bits < 2048 || bits > 16384 || bits%8 != 0:
			return fmt.Errorf("RSA modulus of %d bits; 2048 or more, a multiple of 8, are needed", bits)
		case p.E < 65537 || p.E%2 == 0:
			return fmt.Errorf("RSA public exponent %d; use 65537", p.E)
		}
		return checkModulus(p.N)
	case *ecdsa.PublicKey:
		switch p.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return fmt.Errorf("curve %s is none of P-256, P-384, P-521", p.Params().Name)
	case ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("a public key of type %T cannot be used here", public)
}

// checkModulus finds moduli that bad generators make and that anybody can factor: with a small factor; with two factors close to each other
// (100 steps of Fermat's method, as Baseline Requirements 6.1.6 has it); and those of CVE-2017-15361 (ROCA), whose factors are powers of
// 65537 modulo every small prime. By chance the last holds for less than one modulus of 10^20.
func checkModulus(n *big.Int) error {
	powers := true
	for _, p := range smallPrimes {
		r := new(big.Int).Mod(n, new(big.Int).SetUint64(p)).Uint64()
		if r == 0 {
			return fmt.Errorf("RSA modulus with the factor %d; the token's generator is broken", p)
		}
		if p <= 701 && powers { // up to there for every key of 2048 bits or more
			x := 65537 % p
			for x != 1 && x != r {
				x = x * 65537 % p
			}
			powers = x == r
		}
	}
	if powers {
		return errors.New("RSA modulus of the form that CVE-2017-15361 (ROCA) factors; make another key, on a token with newer firmware")
	}
	one := big.NewInt(1)
	a := new(big.Int).Sqrt(n)
	square := new(big.Int).Mul(a, a) // of the difference, if there is one
	square.Sub(square, n)
	for range 100 {
		if square.Sign() >= 0 && isSquare(square) {
			return errors.New("RSA modulus of two primes close to each other; the token's generator is broken")
		}
		square.Add(square, new(big.Int).Lsh(a, 1)).Add(square, one)
		a.Add(a, one)
	}
	return nil
}

// smallPrimes are those below 752.
var smallPrimes = func() (l []uint64) {
	for p := uint64(2); p < 752; p++ {
		if !slices.ContainsFunc(l, func(q uint64) bool { return p%q == 0 }) {
			l = append(l, p)
		}
	}
	return l
}()

func isSquare(n *big.Int) bool {
	const endings = 0x202021202030213 // bit i is set where a square can be i modulo 64
	if n.Sign() > 0 && endings>>(n.Bits()[0]&63)&1 == 0 {
		return false
	}
	root := new(big.Int).Sqrt(n)
	return root.Mul(root, root).Cmp(n) == 0
}

func equal(a, b crypto.PublicKey) bool {
	e, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && e.Equal(b)
}

// Sign implements crypto.Signer, with the token's deadline. The first argument is not used: the token has its own
// source. RSA: PKCS #1 v1.5, or PSS where opts is *rsa.PSSOptions, with a salt as long as the hash. ECDSA: the
// signature is DER. Ed25519: digest is the message itself and opts.HashFunc() is 0. Hashes are SHA-256, -384, -512.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

// SignContext is Sign with a limit to the wait for a session. A call under way is not cancelled by it.
func (k *Key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if k.usable != nil {
		return nil, k.usable
	}
	mechanism, input, err := k.prepare(digest, opts)
	if err != nil {
		return nil, fmt.Errorf("token %s: sign with %s: %w", k.t.cfg.Name, k, err)
	}
	return with(ctx, k.t, use{operation: "sign"}, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) ([]byte, error) {
		raw, err := k.sign(c, s, mechanism, input)
		if err != nil {
			return nil, err
		}
		return k.finish(raw)
	})
}

func (k *Key) sign(c *pkcs11.Ctx, s pkcs11.SessionHandle, mechanism []*pkcs11.Mechanism, input []byte) ([]byte, error) {
	if err := c.SignInit(s, mechanism, k.handle); isCode(err, pkcs11.CKR_MECHANISM_INVALID) {
		return nil, fmt.Errorf("C_SignInit: %w: with this key the token does not sign by %s; use a key of another type, such as p256", err, mechanismName(mechanism[0].Mechanism))
	} else if err != nil {
		return nil, fmt.Errorf("C_SignInit: %w", err)
	}
	raw, err := c.Sign(s, input)
	if err != nil {
		return nil, fmt.Errorf("C_Sign: %w", err)
	}
	return raw, nil
}

// digestInfo is the DER before the hash in PKCS #1 v1.5 (RFC 8017 section 9.2 note 1).
var digestInfo = map[crypto.Hash][]byte{
	crypto.SHA256: {0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20},
	crypto.SHA384: {0x30, 0x41, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2, 5, 0, 4, 0x30},
	crypto.SHA512: {0x30, 0x51, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3, 5, 0, 4, 0x40},
}

var pssParams = map[crypto.Hash][2]uint{
	crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
	crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
	crypto.SHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
}

// maxMessage bounds what Ed25519 signs in one piece, in octets; an answer is far smaller.
const maxMessage = 1 << 20

// prepare checks what is to be signed and gives it the form that the mechanism takes. Tokens sign what they are given,
// of any length, so this is where a wrong digest ends.
func (k *Key) prepare(digest []byte, opts crypto.SignerOpts) ([]*pkcs11.Mechanism, []byte, error) {
	h := opts.HashFunc()
	if _, ed := k.public.(ed25519.PublicKey); ed {
		if o, ok := opts.(*ed25519.Options); h != 0 || ok && o.Context != "" {
			return nil, nil, errors.New("with Ed25519 the message itself is signed, without hash or context")
		}
		if len(digest) == 0 || len(digest) > maxMessage {
			return nil, nil, fmt.Errorf("a message of %d octets", len(digest))
		}
		return []*pkcs11.Mechanism{pkcs11.NewMechanism(ckmEdDSA, nil)}, digest, nil
	}
	prefix := digestInfo[h]
	if prefix == nil {
		return nil, nil, fmt.Errorf("hash %v; use SHA-256, SHA-384 or SHA-512", h)
	}
	if len(digest) != h.Size() {
		return nil, nil, fmt.Errorf("a digest of %d octets for %v", len(digest), h)
	}
	switch p := k.public.(type) {
	case *ecdsa.PublicKey:
		// The leftmost bits count (FIPS 186-5 section 6.4.1); modules differ in whether they cut off the rest.
		return []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}, digest[:min(len(digest), orderSize(p))], nil
	case *rsa.PublicKey:
		pss, ok := opts.(*rsa.PSSOptions)
		if !ok {
			return []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil)}, append(prefix[:len(prefix):len(prefix)], digest...), nil
		}
		if pss.SaltLength != rsa.PSSSaltLengthEqualsHash && pss.SaltLength != h.Size() {
			return nil, nil, fmt.Errorf("RSA-PSS with salt length %d; it must be that of the hash", pss.SaltLength)
		}
		params := pkcs11.NewPSSParams(pssParams[h][0], pssParams[h][1], uint(h.Size()))
		return []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_PSS, params)}, digest, nil
	}
	return nil, nil, fmt.Errorf("public key of type %T", k.public)
}

// orderSize is the size of r and of s in octets.
func orderSize(p *ecdsa.PublicKey) int { return (p.Params().N.BitLen() + 7) / 8 }

// errShape: the module reported success and gave no signature. Like an error, it ends the session.
var errShape = errors.New("what the module returned is no signature")

// finish brings a signature from PKCS#11's form into that of certificates and checks its shape. Whether it is true is
// for who releases it to check, against the certificate.
func (k *Key) finish(raw []byte) ([]byte, error) {
	switch p := k.public.(type) {
	case *ecdsa.PublicKey:
		n := orderSize(p)
		if len(raw) != 2*n {
			return nil, fmt.Errorf("%w: %d octets instead of %d", errShape, len(raw), 2*n)
		}
		r, s := new(big.Int).SetBytes(raw[:n]), new(big.Int).SetBytes(raw[n:])
		if order := p.Params().N; r.Sign() == 0 || s.Sign() == 0 || r.Cmp(order) >= 0 || s.Cmp(order) >= 0 {
			return nil, fmt.Errorf("%w: r or s is out of range", errShape)
		}
		var b cryptobyte.Builder
		b.AddASN1(cryptobyteasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1BigInt(r)
			b.AddASN1BigInt(s)
		})
		return b.Bytes()
	case *rsa.PublicKey:
		if len(raw) != p.Size() {
			return nil, fmt.Errorf("%w: %d octets instead of %d", errShape, len(raw), p.Size())
		}
	case ed25519.PublicKey:
		if len(raw) != ed25519.SignatureSize {
			return nil, fmt.Errorf("%w: %d octets instead of %d", errShape, len(raw), ed25519.SignatureSize)
		}
	}
	return raw, nil
}

// ErrOtherKey: the private key is not the other half of the public key.
var ErrOtherKey = errors.New("the private key is not the other half of this public key")

// Prove signs a fresh challenge in the token and verifies it against public: that the private key is the other half of
// it is shown by that alone, not by label or CKA_ID (OCSP-DEL-08). It is the token's health check too (OCSP-KEY-20). The
// challenge starts with a text, so that it can never be read as ResponseData. Errors: ErrOtherKey and those of signing.
func (k *Key) Prove(ctx context.Context, public crypto.PublicKey) error {
	if k.usable == nil && algorithmOf(public) != k.Algorithm() {
		return fmt.Errorf("token %s: key %s: %w", k.t.cfg.Name, k, ErrOtherKey)
	}
	challenge := make([]byte, 32)
	rand.Read(challenge)
	message := append([]byte("ocspd proof of possession\n"), challenge...)
	h := HashFor(public)
	input := message
	if h != 0 {
		w := h.New()
		w.Write(message)
		input = w.Sum(nil)
	}
	signature, err := k.SignContext(ctx, input, h)
	if err != nil {
		return err
	}
	if !verify(public, h, input, signature) {
		return fmt.Errorf("token %s: key %s: %w: its signature does not verify", k.t.cfg.Name, k, ErrOtherKey)
	}
	return nil
}

// HashFor is the hash that goes with a public key: bound to the curve (OCSP-RSP-05), SHA-256 for RSA, 0 for Ed25519.
func HashFor(public crypto.PublicKey) crypto.Hash {
	switch p := public.(type) {
	case ed25519.PublicKey:
		return 0
	case *ecdsa.PublicKey:
		switch p.Curve {
		case elliptic.P384():
			return crypto.SHA384
		case elliptic.P521():
			return crypto.SHA512
		}
	}
	return crypto.SHA256
}

func verify(public crypto.PublicKey, h crypto.Hash, input, signature []byte) bool {
	switch p := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(p, h, input, signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, input, signature)
	case ed25519.PublicKey:
		return ed25519.Verify(p, input, signature)
	}
	return false
}

// Bench signs as fast as the module does, in so many sessions at once, for about d. It returns how many signatures were
// made and how long that took: the rate to measure everything else against.
func (k *Key) Bench(ctx context.Context, sessions int, d time.Duration) (int, time.Duration, error) {
	h := HashFor(k.public)
	input := []byte("ocspd bench\n")
	if h != 0 {
		input = make([]byte, h.Size())
	}
	mechanism, input, err := k.prepare(input, h)
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	var total atomic.Int64
	errs := make(chan error)
	for range sessions {
		go func() {
			_, err := with(ctx, k.t, use{operation: "bench", deadline: d + k.t.cfg.Deadline}, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) (struct{}, error) {
				for time.Since(start) < d && ctx.Err() == nil {
					if _, err := k.sign(c, s, mechanism, input); err != nil {
						return struct{}{}, err
					}
					total.Add(1)
				}
				return struct{}{}, nil
			})
			errs <- err
		}()
	}
	for range sessions {
		err = errors.Join(err, <-errs)
	}
	return int(total.Load()), time.Since(start), err
}
