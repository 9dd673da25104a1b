// Package ingest turns what a CA publishes, a CRL (RFC 5280) or an OpenSSL index.txt, into a pki.Snapshot, and
// fetches it first where that is wanted.
//
// It guarantees: of a CRL nothing but the outer three elements is read before the signature over the very octets of
// tbsCertList verifies; a Snapshot is returned only after every entry was read and found good, so one bad entry
// refuses the whole; memory does not grow with the number of entries; what Entries gives later comes from the same
// octets that were checked, whoever changes the place they were read from. Nothing here has a clock or a database:
// the caller says what time it is, and compares with what is in force.
package ingest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
)

// Errors on which a caller branches.
var (
	ErrExpired    = errors.New("the CRL has expired")                       // past nextUpdate
	ErrIncomplete = errors.New("the index is still being written")          // its last line does not end; read it again soon
	ErrChanging   = errors.New("the file was changed while it was read")    // read it again soon
	ErrTooLarge   = errors.New("larger than max_size of its source allows") // nothing of it was used
)

// SpoolPrefix begins the name of a spool file for the instant before it is unlinked. A crash in that instant leaves
// the file behind: whoever owns the directory may delete such files at its start.
const SpoolPrefix = "spool-"

// Spool holds the octets of one source in an unlinked file of our own. Close gives the space back; a Snapshot made
// from the Spool can be replayed until then.
type Spool struct {
	dir    string
	file   *spoolFile
	size   int64
	digest [sha256.Size]byte
}

// NewSpool copies r, of at most max octets, to a new file in dir. More than max is ErrTooLarge.
func NewSpool(dir string, r io.Reader, max int64) (*Spool, error) {
	f, err := os.CreateTemp(dir, SpoolPrefix)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	s := &Spool{dir: dir, file: &spoolFile{File: f}}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("spool: %w", err)
	}
	h := sha256.New()
	buf := make([]byte, windowSize)
	// The struct hides ReadFrom, which would bring a buffer of its own.
	s.size, err = io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, h)}, io.LimitReader(r, max+1), buf)
	if err == nil && s.size > max {
		err = fmt.Errorf("more than %d octets: %w; raise max_size if the CA really publishes so much", max, ErrTooLarge)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	h.Sum(s.digest[:0])
	return s, nil
}

// Watch has read told of every octet that is read from then on, a window at a time.
func (s *Spool) Watch(read func(octets int)) { s.file.read = read }

// Size is the number of octets.
func (s *Spool) Size() int64 { return s.size }

// Digest is the SHA-256 of the octets. For a CRL in PEM it is that of the PEM until ReadCRL, Inspect or IssuerOf has
// turned the spool into DER.
func (s *Spool) Digest() [sha256.Size]byte { return s.digest }

// Close gives the file back.
func (s *Spool) Close() error { return s.file.Close() }

// clip keeps short what a message quotes.
func clip(b []byte) []byte { return b[:min(len(b), 80)] }
