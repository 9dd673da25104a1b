package audit

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unicode"

	"golang.org/x/mod/sumdb/note"
)

// LoadOrCreateKey reads the Ed25519 key in the file path, in the form of golang.org/x/mod/sumdb/note, and makes one the first
// time, of the name given, which the heads of the log then carry. The public key comes in the form for key.pub. The
// file must be readable by its owner alone.
func LoadOrCreateKey(path, name string) (note.Signer, string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		private, _, err := note.GenerateKey(rand.Reader, name)
		if err != nil {
			return nil, "", fmt.Errorf("audit key %s: %w", path, err)
		}
		if err := put(path, []byte(private+"\n"), 0o600); err != nil {
			return nil, "", fmt.Errorf("audit key: %w", err)
		}
		return parseKey(path, private)
	}
	if err != nil {
		return nil, "", fmt.Errorf("audit key: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, "", fmt.Errorf("audit key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, "", fmt.Errorf("audit key %s: mode %#o lets others read it; start a new log with a new key, or, if nobody can have read it, chmod 600", path, info.Mode().Perm())
	}
	return parseKey(path, strings.TrimSuffix(string(text), "\n"))
}

// parseKey reads "PRIVATE+KEY+name+hash+base64 of algorithm and seed".
func parseKey(path, private string) (note.Signer, string, error) {
	s, err := note.NewSigner(private)
	if err != nil {
		return nil, "", fmt.Errorf("audit key %s: %w; restore the file from a backup, or move it and its log away to start anew", path, err)
	}
	// The data may hold a + of its own: it is what follows the fourth one.
	data, err := base64.StdEncoding.DecodeString(strings.SplitN(private, "+", 5)[4])
	if err != nil {
		return nil, "", fmt.Errorf("audit key %s: %w", path, err)
	}
	public, err := note.NewEd25519VerifierKey(s.Name(), ed25519.NewKeyFromSeed(data[1:]).Public().(ed25519.PublicKey))
	return s, public, err
}

// algECDSA is the byte before an ECDSA key in a vkey (https://c2sp.org/signed-note); Ed25519's is golang.org/x/mod's own affair.
const algECDSA = 2

// NewSigner makes the signer of a log's heads out of a key that may be in a token, under the name that the heads then carry: Ed25519, or
// ECDSA on P-256. The public key comes in the form for key.pub. No signature leaves it that the public key does not verify.
func NewSigner(name string, key crypto.Signer) (note.Signer, string, error) {
	public, err := publicKey(name, key.Public())
	if err != nil {
		return nil, "", fmt.Errorf("audit key: %w", err)
	}
	v, err := ParsePublicKey(public)
	return keySigner{v, key}, public, err
}

func publicKey(name string, key crypto.PublicKey) (string, error) {
	switch k := key.(type) {
	case ed25519.PublicKey:
		return note.NewEd25519VerifierKey(name, k)
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return "", fmt.Errorf("is on the curve %s; heads of a log are signed with P-256 or Ed25519", k.Params().Name)
		}
		der, err := x509.MarshalPKIXPublicKey(k)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s+%08x+%s", name, ecdsaHash(der), base64.StdEncoding.EncodeToString(append([]byte{algECDSA}, der...))), nil
	}
	return "", fmt.Errorf("is of type %T; heads of a log are signed with P-256 or Ed25519", key)
}

// keySigner is a note.Signer over a crypto.Signer.
type keySigner struct {
	note.Verifier
	key crypto.Signer
}

func (s keySigner) Sign(msg []byte) ([]byte, error) {
	input, h := msg, crypto.Hash(0)
	if _, ec := s.key.Public().(*ecdsa.PublicKey); ec {
		sum := sha256.Sum256(msg)
		input, h = sum[:], crypto.SHA256
	}
	signature, err := s.key.Sign(rand.Reader, input, h)
	if err == nil && !s.Verify(msg, signature) {
		err = errors.New("audit key: its signature does not verify")
	}
	if err != nil {
		return nil, err
	}
	return signature, nil
}

// ecdsaVerifier is the note.Verifier of an ECDSA key, which golang.org/x/mod does not have.
type ecdsaVerifier struct {
	name string
	hash uint32
	key  *ecdsa.PublicKey
}

func (v *ecdsaVerifier) Name() string    { return v.name }
func (v *ecdsaVerifier) KeyHash() uint32 { return v.hash }
func (v *ecdsaVerifier) Verify(msg, signature []byte) bool {
	sum := sha256.Sum256(msg)
	return ecdsa.VerifyASN1(v.key, sum[:], signature)
}

// ecdsaHash is the key ID of an ECDSA key: of its SubjectPublicKeyInfo alone, without the name.
func ecdsaHash(der []byte) uint32 {
	sum := sha256.Sum256(der)
	return binary.BigEndian.Uint32(sum[:])
}

// ParsePublicKey reads a key.pub: of Ed25519, or of ECDSA on P-256.
func ParsePublicKey(text string) (note.Verifier, error) {
	text = strings.TrimSpace(text)
	if v := parseECDSA(text); v != nil {
		return v, nil
	}
	v, err := note.NewVerifier(text)
	if err != nil {
		return nil, fmt.Errorf("audit log's public key: %w", err)
	}
	return v, nil
}

// parseECDSA reads "name+hash+base64 of algorithm and SubjectPublicKeyInfo", in the one spelling that publicKey writes. Anything else is nil.
func parseECDSA(text string) note.Verifier {
	part := strings.SplitN(text, "+", 3)
	if len(part) != 3 || part[0] == "" || strings.ContainsFunc(part[0], unicode.IsSpace) {
		return nil
	}
	b, err := base64.StdEncoding.DecodeString(part[2])
	if err != nil || len(b) == 0 || b[0] != algECDSA {
		return nil
	}
	key, err := x509.ParsePKIXPublicKey(b[1:])
	if err != nil {
		return nil
	}
	if again, err := publicKey(part[0], key); err != nil || again != text {
		return nil
	}
	return &ecdsaVerifier{part[0], ecdsaHash(b[1:]), key.(*ecdsa.PublicKey)}
}

// keyRing finds keys by name and key ID; one that is there twice is no matter.
type keyRing []note.Verifier

func (r keyRing) Verifier(name string, hash uint32) (note.Verifier, error) {
	for _, v := range r {
		if v.Name() == name && v.KeyHash() == hash {
			return v, nil
		}
	}
	return nil, &note.UnknownVerifierError{Name: name, KeyHash: hash}
}

func keyID(name string, hash uint32) string { return fmt.Sprintf("%s+%08x", name, hash) }

func trimKey(text []byte) string { return strings.TrimSpace(string(text)) }
