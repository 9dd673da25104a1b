package audit

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"io"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// newKeys are a key of each kind that signs heads.
func newKeys(t testing.TB) map[string]crypto.Signer {
	t.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]crypto.Signer{"Ed25519": ed, "P-256": ec}
}

// liar is a key whose signatures are those of another.
type liar struct {
	public crypto.PublicKey
	signs  crypto.Signer
}

func (l liar) Public() crypto.PublicKey { return l.public }
func (l liar) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return l.signs.Sign(r, digest, opts)
}

func TestNewSigner(t *testing.T) {
	keys, others := newKeys(t), newKeys(t)
	for kind, key := range keys {
		t.Run(kind, func(t *testing.T) {
			signer, public, err := NewSigner("example.org/log", key)
			if err != nil {
				t.Fatal(err)
			}
			v, err := ParsePublicKey(public + "\n")
			if err != nil || v.Name() != "example.org/log" || v.KeyHash() != signer.KeyHash() {
				t.Fatalf("%s: %v", public, err)
			}
			if _, err := note.NewVerifier(public); (err == nil) != (kind == "Ed25519") {
				t.Errorf("golang.org/x/mod reads it: %v", err)
			}
			signed, err := note.Sign(&note.Note{Text: "text\n"}, signer)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := note.Open(signed, note.VerifierList(v)); err != nil {
				t.Errorf("%s%v", signed, err)
			}
			if v.Verify([]byte("other\n"), signed) || v.Verify([]byte("text\n"), nil) {
				t.Error("something else verifies")
			}
			lying, _, err := NewSigner("example.org/log", liar{key.Public(), others[kind]})
			if err != nil {
				t.Fatal(err)
			}
			if s, err := lying.Sign([]byte("text\n")); err == nil || s != nil {
				t.Errorf("a signature of another key is let out: %v", err)
			}
		})
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []crypto.Signer{p384, rsaKey} {
		if _, _, err := NewSigner("example.org/log", key); err == nil || !strings.Contains(err.Error(), "P-256 or Ed25519") {
			t.Errorf("%T: %v", key.Public(), err)
		}
	}
}

// A public key has one spelling; the second key is of the log that the specification's example of ECDSA comes from.
func TestParsePublicKey(t *testing.T) {
	const rekor = "rekor.sigstore.dev+c0d23d6a+AjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNhtmPtrWm3U1eQXBogSMdGvXwBcK5AW5i0hrZLOC96l+smGNM7nwZ4QvFK/4sueRoVj//QP22Ni4Qt9DPfkWLc="
	if v, err := ParsePublicKey(rekor); err != nil || v.Name() != "rekor.sigstore.dev" || v.KeyHash() != 0xc0d23d6a {
		t.Errorf("%v", err)
	}
	for _, bad := range []string{
		"", "example.org/log", "+c0d23d6a+Ag==", strings.Replace(rekor, "c0d23d6a", "c0d23d6b", 1), strings.Replace(rekor, "c0d23d6a", "C0D23D6A", 1),
		strings.Replace(rekor, "rekor", "re kor", 1), strings.Replace(rekor, "+AjBZ", "+AzBZ", 1), rekor + "AAAA", rekor[:len(rekor)-8],
		strings.Replace(rekor, "rekor.sigstore.dev", "", 1),
	} {
		if _, err := ParsePublicKey(bad); err == nil {
			t.Errorf("%q is read as a key", bad)
		}
	}
}
