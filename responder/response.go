package responder

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"ocspd/pki"
)

// errorResponse is an OCSPResponse without responseBytes (RFC 6960 section 4.2.1).
func errorResponse(s ResponseStatus) []byte { return []byte{0x30, 0x03, 0x0a, 0x01, byte(s)} }

// signatureAlgorithm is fixed by the key: one strong hash each, never SHA-1, whatever a client prefers (RFC 6960 section 5.1.1). The encodings are
// those that the public root programs demand byte for byte.
type signatureAlgorithm struct {
	hash crypto.Hash // 0: the message itself is signed
	x509 x509.SignatureAlgorithm
	der  []byte // AlgorithmIdentifier
	opts crypto.SignerOpts
}

var (
	rsaSHA256   = &signatureAlgorithm{crypto.SHA256, x509.SHA256WithRSA, []byte{0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00}, crypto.SHA256}
	ecdsaSHA256 = &signatureAlgorithm{crypto.SHA256, x509.ECDSAWithSHA256, []byte{0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02}, crypto.SHA256}
	ecdsaSHA384 = &signatureAlgorithm{crypto.SHA384, x509.ECDSAWithSHA384, []byte{0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03}, crypto.SHA384}
	ecdsaSHA512 = &signatureAlgorithm{crypto.SHA512, x509.ECDSAWithSHA512, []byte{0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04}, crypto.SHA512}
	pureEd25519 = &signatureAlgorithm{0, x509.PureEd25519, []byte{0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70}, crypto.Hash(0)}
	pssSHA256   = &signatureAlgorithm{crypto.SHA256, x509.SHA256WithRSAPSS, []byte{
		0x30, 0x41, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a, 0x30, 0x34, 0xa0, 0x0f, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65,
		0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0xa1, 0x1c, 0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, 0x30, 0x0d, 0x06, 0x09, 0x60,
		0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0xa2, 0x03, 0x02, 0x01, 0x20},
		&rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256}}
)

func algorithmFor(public crypto.PublicKey, pss bool) (*signatureAlgorithm, error) {
	if _, isRSA := public.(*rsa.PublicKey); pss && !isRSA {
		return nil, fmt.Errorf("padding PSS is for RSA, and the key is of type %T", public)
	}
	switch k := public.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return nil, fmt.Errorf("an RSA key of %d bits; at least 2048 are needed", k.N.BitLen())
		}
		if pss {
			return pssSHA256, nil
		}
		return rsaSHA256, nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return ecdsaSHA256, nil
		case elliptic.P384():
			return ecdsaSHA384, nil
		case elliptic.P521():
			return ecdsaSHA512, nil
		}
		return nil, errors.New("an ECDSA key on another curve than P-256, P-384 and P-521")
	case ed25519.PublicKey:
		return pureEd25519, nil
	}
	return nil, fmt.Errorf("a key of type %T; RSA, ECDSA and Ed25519 are known", public)
}

// single is a SingleResponse in the making.
type single struct {
	form   Form
	serial pki.Serial
	Verdict
	crl *pki.Source // to be named by CrlID, or nil
}

// responseData writes ResponseData (RFC 6960 section 4.2.1) in DER, so without any default. Its extensions are never critical.
func responseData(issuer *writtenIssuer, responderID []byte, producedAt time.Time, singles []single, nonce []byte) ([]byte, error) {
	extended := false
	b := cryptobyte.NewBuilder(make([]byte, 0, 256+160*len(singles)))
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(responderID)
		b.AddASN1GeneralizedTime(producedAt)
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for i := range singles {
				extended = extended || singles[i].Extended
				singles[i].add(b, issuer)
			}
		})
		if nonce == nil && !extended {
			return
		}
		b.AddASN1(contextConstructed(1), func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				if nonce != nil {
					addExtension(b, oidNonce, func(b *cryptobyte.Builder) { b.AddASN1OctetString(nonce) })
				}
				if extended {
					addExtension(b, oidExtendedRevoke, func(b *cryptobyte.Builder) { b.AddASN1NULL() })
				}
			})
		})
	})
	return b.Bytes()
}

// responderID is ResponderID (RFC 6960 section 4.2.1): byKey, the SHA-1 of the signer's key whatever else is used, or byName.
func responderID(signer *pki.Issuer, byName bool) []byte {
	var b cryptobyte.Builder
	if byName {
		b.AddASN1(contextConstructed(1), func(b *cryptobyte.Builder) { b.AddBytes(signer.Certificate.RawSubject) })
	} else {
		b.AddASN1(contextConstructed(2), func(b *cryptobyte.Builder) { b.AddASN1OctetString(signer.KeyHash(crypto.SHA1)) })
	}
	return b.BytesOrPanic()
}

func addExtension(b *cryptobyte.Builder, oid []byte, value func(*cryptobyte.Builder)) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(oid) })
		b.AddASN1(asn1.OCTET_STRING, value)
	})
}

func (s *single) add(b *cryptobyte.Builder, issuer *writtenIssuer) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		issuer.addCertID(b, s.form, s.serial)
		s.addStatus(b)
		b.AddASN1GeneralizedTime(s.ThisUpdate)
		b.AddASN1(contextConstructed(0), func(b *cryptobyte.Builder) { b.AddASN1GeneralizedTime(s.NextUpdate) })
		// What was never issued has no extension (RFC 6960 section 2.2): no CRL governs it, and it has no such date.
		invalid := !s.Extended && s.Status.State == pki.Revoked && !s.Status.InvalidityDate.IsZero()
		if !invalid && s.crl == nil {
			return
		}
		b.AddASN1(contextConstructed(1), func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				if s.crl != nil {
					addExtension(b, oidCrlID, func(b *cryptobyte.Builder) { addCrlID(b, s.crl) })
				}
				if invalid {
					addExtension(b, oidInvalidityDate, func(b *cryptobyte.Builder) { b.AddASN1GeneralizedTime(s.Status.InvalidityDate.UTC()) })
				}
			})
		})
	})
}

// addCrlID writes CrlID (RFC 6960 section 4.4.2): which CRL the status was taken from.
func addCrlID(b *cryptobyte.Builder, crl *pki.Source) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		if strings.HasPrefix(crl.Name, "http://") || strings.HasPrefix(crl.Name, "https://") {
			b.AddASN1(contextConstructed(0), func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.IA5String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(crl.Name)) })
			})
		}
		if number, ok := new(big.Int).SetString(crl.Number, 16); ok {
			b.AddASN1(contextConstructed(1), func(b *cryptobyte.Builder) { b.AddASN1BigInt(number) })
		}
		b.AddASN1(contextConstructed(2), func(b *cryptobyte.Builder) { b.AddASN1GeneralizedTime(crl.ThisUpdate.UTC()) })
	})
}

func (s *single) addStatus(b *cryptobyte.Builder) {
	switch s.Status.State {
	case pki.Good:
		b.AddASN1(asn1.Tag(0).ContextSpecific(), func(*cryptobyte.Builder) {})
	case pki.Revoked:
		b.AddASN1(contextConstructed(1), func(b *cryptobyte.Builder) {
			b.AddASN1GeneralizedTime(s.Status.RevokedAt.UTC())
			if s.Status.Reason != pki.Unspecified && s.Status.Reason.Valid() {
				b.AddASN1(contextConstructed(0), func(b *cryptobyte.Builder) { b.AddASN1Enum(int64(s.Status.Reason)) })
			}
		})
	default:
		b.AddASN1(asn1.Tag(2).ContextSpecific(), func(*cryptobyte.Builder) {})
	}
}

// sign signs ResponseData and wraps it into an OCSPResponse. The signature is verified with the key in the certificate, so that no fault of the
// token, and no key that was swapped under its label, lets a wrong answer out.
func sign(tbs []byte, key crypto.Signer, alg *signatureAlgorithm, verifier *x509.Certificate, include *x509.Certificate) ([]byte, error) {
	message := tbs
	if alg.hash != 0 {
		h := alg.hash.New()
		h.Write(tbs)
		message = h.Sum(nil)
	}
	signature, err := key.Sign(rand.Reader, message, alg.opts)
	if err != nil {
		return nil, err
	}
	if err := verifier.CheckSignature(alg.x509, tbs, signature); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrSignature, err)
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(signature)+128+certSize(include)))
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // OCSPResponse
		b.AddASN1Enum(int64(Successful))
		b.AddASN1(contextConstructed(0), func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // ResponseBytes
				b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(oidBasic) })
				b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) {
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // BasicOCSPResponse
						b.AddBytes(tbs)
						b.AddBytes(alg.der)
						b.AddASN1BitString(signature)
						if include != nil {
							b.AddASN1(contextConstructed(0), func(b *cryptobyte.Builder) {
								b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(include.Raw) })
							})
						}
					})
				})
			})
		})
	})
	return b.Bytes()
}

func certSize(c *x509.Certificate) int {
	if c == nil {
		return 0
	}
	return len(c.Raw)
}
