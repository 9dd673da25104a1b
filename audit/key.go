package audit

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

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

// ParsePublicKey reads a key.pub.
func ParsePublicKey(text string) (note.Verifier, error) {
	v, err := note.NewVerifier(strings.TrimSpace(text))
	if err != nil {
		return nil, fmt.Errorf("audit log's public key: %w", err)
	}
	return v, nil
}
