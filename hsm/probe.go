package hsm

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

// Probe is a use of a key that the token must refuse, and what it answered.
type Probe struct {
	Call    string `json:"call"`  // C_…
	Tried   string `json:"tried"` // what was asked for
	Rule    string `json:"rule"`
	Outcome string `json:"outcome"`        // Refused, Allowed, Unclear, NotTried
	Code    string `json:"code,omitempty"` // CKR_…; "" where nothing was called
	Why     string `json:"why,omitempty"`  // it was not tried, or is unclear
}

// Outcomes of a Probe.
const (
	Refused  = "refused"
	Allowed  = "allowed"
	Unclear  = "unclear"   // refused for another reason than the one that was looked for
	NotTried = "not tried" // there is no such use of this kind of key, or the key says itself that it is permitted
)

// Finding is what an allowed probe comes to; nil for the others.
func (p Probe) Finding() *Finding {
	if p.Outcome != Allowed {
		return nil
	}
	return &Finding{Name: "key-probe-" + strings.ToLower(strings.TrimPrefix(p.Call, "C_")), Rule: p.Rule, Attribute: p.Call + ": " + p.Tried,
		Found: "the token did it", Expected: "the token refuses", Must: p.Rule == "OCSP-KEY-04"}
}

// probe is one attempt. It runs in a session of its own, which is closed afterwards, and with it whatever the attempt began.
type probe struct {
	Probe
	refusals []pkcs11.Error // that answer the question
	begun    []pkcs11.Error // that say that the token set to work
	try      func(o objects) error
}

// Probes tries what the key must not do (OCSP-KEY-04, OCSP-KEY-05, OCSP-KEY-07), attributes being words only. Nothing that lasts is touched, whatever the token
// answers: operations are begun and never carried out; what an unwrapping or a derivation would make is a session object of a value made
// up here, destroyed at once; the change asked for gives the key the label that it has, and is asked for only where the token says that
// the key cannot be changed; the copy asked for contradicts itself, so that there is none even where copying is permitted. The error is
// ErrTokenLost or one of the session; a refusal is none.
func (k *Key) Probes(a Attributes) ([]Probe, error) {
	if k.usable != nil {
		return nil, k.usable
	}
	var list []Probe
	for _, p := range append(k.useProbes(), k.keepProbes(a)...) {
		if p.try == nil {
			p.Outcome = NotTried
		} else if err := p.run(k.t); err != nil {
			return nil, err
		}
		list = append(list, p.Probe)
	}
	return list, nil
}

func (p *probe) run(t *Token) error {
	answer, err := with(context.Background(), t, use{operation: "probe " + p.Call, write: true}, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) (error, error) {
		err := p.try(objects{c, s})
		if faultOf(err) == faultToken {
			return nil, err
		}
		return err, nil
	})
	if err != nil {
		return err
	}
	var code pkcs11.Error
	switch {
	case answer == nil:
		p.Outcome, p.Code = Allowed, "CKR_OK"
	case !errors.As(answer, &code):
		return answer
	default:
		p.Code = codeName(code)
		switch {
		case slices.Contains(p.begun, code):
			p.Outcome = Allowed
		case slices.Contains(p.refusals, code):
			p.Outcome = Refused
		default:
			p.Outcome, p.Why = Unclear, "the token gives another reason than that the key may not"
		}
	}
	return nil
}

// codeName is the CKR_ name of a code, or its number.
func codeName(e pkcs11.Error) string {
	if e == pkcs11.CKR_ACTION_PROHIBITED { // miekg/pkcs11 has no name for it
		return "CKR_ACTION_PROHIBITED"
	}
	if _, name, ok := strings.Cut(e.Error(), "CKR_"); ok { // pkcs11: 0x68: CKR_KEY_FUNCTION_NOT_PERMITTED
		return "CKR_" + name
	}
	return fmt.Sprintf("%#x", uint(e))
}

var (
	notPermitted = []pkcs11.Error{pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_FUNCTION_NOT_SUPPORTED, pkcs11.CKR_MECHANISM_INVALID,
		pkcs11.CKR_ACTION_PROHIBITED}
	prohibited = []pkcs11.Error{pkcs11.CKR_ACTION_PROHIBITED, pkcs11.CKR_FUNCTION_NOT_SUPPORTED}
)

func mechanism(m uint, params any) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(m, params)}
}

// sessionSecret is what a key would be that an unwrapping or derivation makes: gone with the session.
func sessionSecret(size int) []*pkcs11.Attribute {
	set := pkcs11.NewAttribute
	return []*pkcs11.Attribute{set(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), set(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		set(pkcs11.CKA_TOKEN, false), set(pkcs11.CKA_PRIVATE, true), set(pkcs11.CKA_SENSITIVE, true), set(pkcs11.CKA_EXTRACTABLE, false),
		set(pkcs11.CKA_LABEL, "ocspd probe"), set(pkcs11.CKA_VALUE_LEN, size)}
}

// destroyed passes on what the token said, and leaves nothing of what it made.
func destroyed(o objects, h pkcs11.ObjectHandle, err error) error {
	if err == nil {
		err = o.c.DestroyObject(o.s, h)
	}
	return err
}

// useProbes: KEY-04 and KEY-05, by kind of key.
func (k *Key) useProbes() []probe {
	decrypt := probe{Probe: Probe{Call: "C_DecryptInit", Tried: "begin to decrypt", Rule: "OCSP-KEY-04"}, refusals: notPermitted}
	unwrap := probe{Probe: Probe{Call: "C_UnwrapKey", Tried: "unwrap a key that was made up here", Rule: "OCSP-KEY-04"}, refusals: notPermitted,
		begun: []pkcs11.Error{pkcs11.CKR_WRAPPED_KEY_INVALID, pkcs11.CKR_WRAPPED_KEY_LEN_RANGE, pkcs11.CKR_ENCRYPTED_DATA_INVALID}}
	derive := probe{Probe: Probe{Call: "C_DeriveKey", Tried: "derive a secret with a public key that was made up here", Rule: "OCSP-KEY-04"}, refusals: notPermitted}
	recovery := probe{Probe: Probe{Call: "C_SignRecoverInit", Tried: "begin to sign with recovery", Rule: "OCSP-KEY-04"}, refusals: notPermitted}
	other := probe{Probe: Probe{Call: "C_SignInit", Rule: "OCSP-KEY-05"}, refusals: append([]pkcs11.Error{pkcs11.CKR_KEY_TYPE_INCONSISTENT}, notPermitted...)}
	otherMechanism := func(m uint, name string) {
		other.Tried = "begin to sign by " + name + ", which is not used here"
		other.try = func(o objects) error { return o.c.SignInit(o.s, mechanism(m, nil), k.handle) }
	}
	switch p := k.public.(type) {
	case *rsa.PublicKey:
		decrypt.try = func(o objects) error { return o.c.DecryptInit(o.s, mechanism(pkcs11.CKM_RSA_PKCS, nil), k.handle) }
		unwrap.try = func(o objects) error {
			secret := make([]byte, 16)
			rand.Read(secret)
			//lint:ignore SA1019 this is the form that every token with an RSA key unwraps; nothing secret is in it
			wrapped, err := rsa.EncryptPKCS1v15(rand.Reader, p, secret)
			if err != nil {
				return err
			}
			h, err := o.c.UnwrapKey(o.s, mechanism(pkcs11.CKM_RSA_PKCS, nil), k.handle, wrapped, sessionSecret(len(secret))[:7]) // the length follows from what is unwrapped
			return destroyed(o, h, err)
		}
		recovery.try = func(o objects) error { return o.c.SignRecoverInit(o.s, mechanism(pkcs11.CKM_RSA_PKCS, nil), k.handle) }
		otherMechanism(pkcs11.CKM_RSA_X_509, "CKM_RSA_X_509")
		derive.Why = "PKCS#11 has no derivation with an RSA key"
	case *ecdsa.PublicKey:
		derive.try = func(o objects) error {
			peer, err := peerPoint(p)
			if err != nil {
				return err
			}
			h, err := o.c.DeriveKey(o.s, mechanism(pkcs11.CKM_ECDH1_DERIVE, pkcs11.NewECDH1DeriveParams(pkcs11.CKD_NULL, nil, peer)), k.handle, sessionSecret(orderSize(p)))
			return destroyed(o, h, err)
		}
		otherMechanism(pkcs11.CKM_ECDSA_SHA1, "CKM_ECDSA_SHA1")
		decrypt.Why, unwrap.Why, recovery.Why = "PKCS#11 has no decryption with an EC key", "PKCS#11 has no plain unwrapping with an EC key", "PKCS#11 has no recovery with an EC key"
	case ed25519.PublicKey:
		otherMechanism(pkcs11.CKM_ECDSA, "CKM_ECDSA")
		const none = "PKCS#11 has no such use of an Ed25519 key"
		decrypt.Why, unwrap.Why, derive.Why, recovery.Why = none, none, none, none
	}
	return []probe{decrypt, unwrap, derive, recovery, other}
}

// peerPoint is a fresh public key on the curve of p.
func peerPoint(p *ecdsa.PublicKey) ([]byte, error) {
	own, err := p.ECDH()
	if err != nil {
		return nil, err
	}
	var peer *ecdh.PrivateKey
	if peer, err = own.Curve().GenerateKey(rand.Reader); err != nil {
		return nil, err
	}
	return peer.PublicKey().Bytes(), nil
}

// keepProbes: KEY-07. A key that says itself that it can be changed or copied is a finding already, and is left alone.
func (k *Key) keepProbes(a Attributes) []probe {
	says := map[string]string{}
	for _, x := range a {
		says[x.Name] = x.Found
	}
	change := probe{Probe: Probe{Call: "C_SetAttributeValue", Tried: "give the key the label that it has", Rule: "OCSP-KEY-07"},
		refusals: append([]pkcs11.Error{pkcs11.CKR_ATTRIBUTE_READ_ONLY}, prohibited...)}
	if says["CKA_MODIFIABLE"] == "false" {
		change.try = func(o objects) error {
			return o.c.SetAttributeValue(o.s, k.handle, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, k.Label)})
		}
	} else {
		change.Why = "CKA_MODIFIABLE: " + says["CKA_MODIFIABLE"]
	}
	duplicate := probe{Probe: Probe{Call: "C_CopyObject", Tried: "copy the key, in a way that can make no copy", Rule: "OCSP-KEY-07"}, refusals: prohibited}
	if says["CKA_COPYABLE"] == "false" {
		duplicate.try = func(o objects) error {
			h, err := o.c.CopyObject(o.s, k.handle, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
				pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA)})
			return destroyed(o, h, err)
		}
	} else {
		duplicate.Why = "CKA_COPYABLE: " + says["CKA_COPYABLE"]
	}
	return []probe{change, duplicate}
}
