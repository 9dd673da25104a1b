package ingest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// maxEd25519 bounds a CRL signed with Ed25519, in octets. Its verification (RFC 8032 section 5.1.7) needs the message
// in memory whole; the other algorithms need its hash alone.
const maxEd25519 = 64 << 20

// algorithm is a signature algorithm that we accept.
type algorithm struct {
	name string
	oid  string      // content octets of the OBJECT IDENTIFIER
	key  string      // "RSA", "ECDSA", "Ed25519"
	hash crypto.Hash // 0 for Ed25519
	salt int         // RSASSA-PSS only: octets of the salt, at least 1
}

const (
	oidRSAPSS = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a"
	oidMGF1   = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08"
)

var algorithms = []algorithm{
	{name: "SHA256-RSA", oid: "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", key: "RSA", hash: crypto.SHA256},
	{name: "SHA384-RSA", oid: "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c", key: "RSA", hash: crypto.SHA384},
	{name: "SHA512-RSA", oid: "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d", key: "RSA", hash: crypto.SHA512},
	{name: "ECDSA-SHA256", oid: "\x2a\x86\x48\xce\x3d\x04\x03\x02", key: "ECDSA", hash: crypto.SHA256},
	{name: "ECDSA-SHA384", oid: "\x2a\x86\x48\xce\x3d\x04\x03\x03", key: "ECDSA", hash: crypto.SHA384},
	{name: "ECDSA-SHA512", oid: "\x2a\x86\x48\xce\x3d\x04\x03\x04", key: "ECDSA", hash: crypto.SHA512},
	{name: "Ed25519", oid: "\x2b\x65\x70", key: "Ed25519"},
}

// broken are the algorithms whose hash can be collided: a CRL signed so could be somebody else's.
var broken = map[string]string{
	"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x02": "MD2 with RSA",
	"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04": "MD5 with RSA",
	"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05": "SHA-1 with RSA",
	"\x2b\x0e\x03\x02\x1d":                 "SHA-1 with RSA",
	"\x2a\x86\x48\xce\x3d\x04\x01":         "SHA-1 with ECDSA",
	"\x2a\x86\x48\xce\x38\x04\x03":         "SHA-1 with DSA",
}

var hashes = map[string]crypto.Hash{
	"\x60\x86\x48\x01\x65\x03\x04\x02\x01": crypto.SHA256,
	"\x60\x86\x48\x01\x65\x03\x04\x02\x02": crypto.SHA384,
	"\x60\x86\x48\x01\x65\x03\x04\x02\x03": crypto.SHA512,
}

func errBroken(name string) error {
	return fmt.Errorf("it is signed by %s, which is never accepted; ask the CA to sign with SHA-256", name)
}

// parseAlgorithm reads an AlgorithmIdentifier, parameters included.
func parseAlgorithm(der []byte) (algorithm, error) {
	oid, params, ok := algorithmIdentifier(der)
	if !ok {
		return algorithm{}, errors.New("signatureAlgorithm is not valid DER")
	}
	if name, ok := broken[string(oid)]; ok {
		return algorithm{}, errBroken(name)
	}
	if string(oid) == oidRSAPSS {
		return parsePSS(params)
	}
	for _, a := range algorithms {
		if a.oid != string(oid) {
			continue
		}
		// RFC 4055 section 5: NULL, and absent must be accepted. RFC 5758 section 3.2, RFC 8410 section 3: absent.
		if len(params) == 0 || a.key == "RSA" && bytes.Equal(params, []byte{5, 0}) {
			return a, nil
		}
		return algorithm{}, fmt.Errorf("signatureAlgorithm %s has parameters that do not belong there", a.name)
	}
	return algorithm{}, fmt.Errorf("signature algorithm %s is not supported; RSA, ECDSA and Ed25519 with SHA-256, SHA-384 or SHA-512 are", oidString(oid))
}

// algorithmIdentifier splits SEQUENCE { OBJECT IDENTIFIER, parameters ANY OPTIONAL }, which must be all of der.
func algorithmIdentifier(der cryptobyte.String) (oid, params cryptobyte.String, ok bool) {
	var seq cryptobyte.String
	var tag asn1.Tag
	ok = der.ReadASN1(&seq, asn1.SEQUENCE) && der.Empty() && seq.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) &&
		(seq.Empty() || seq.ReadAnyASN1Element(&params, &tag)) && seq.Empty()
	return oid, params, ok
}

// parsePSS reads RSASSA-PSS-params (RFC 4055 section 3.1). What is left out there means SHA-1.
func parsePSS(params cryptobyte.String) (algorithm, error) {
	bad := errors.New("signatureAlgorithm RSASSA-PSS has parameters that are not valid")
	var seq, hashAlg, mgfAlg, saltInt cryptobyte.String
	var hasHash, hasMGF, hasSalt bool
	context := func(n uint8) asn1.Tag { return asn1.Tag(n).ContextSpecific().Constructed() }
	if !params.ReadASN1(&seq, asn1.SEQUENCE) || !params.Empty() ||
		!seq.ReadOptionalASN1(&hashAlg, &hasHash, context(0)) || !seq.ReadOptionalASN1(&mgfAlg, &hasMGF, context(1)) ||
		!seq.ReadOptionalASN1(&saltInt, &hasSalt, context(2)) || !seq.Empty() {
		return algorithm{}, bad // trailerField may only be its default, which DER leaves out
	}
	if !hasHash || !hasMGF {
		return algorithm{}, errBroken("RSASSA-PSS with SHA-1")
	}
	hash, err := parseHash(hashAlg)
	if err != nil {
		return algorithm{}, err
	}
	oid, mgfParams, ok := algorithmIdentifier(mgfAlg)
	if !ok || string(oid) != oidMGF1 {
		return algorithm{}, bad
	}
	mgfHash, err := parseHash(mgfParams)
	if err != nil {
		return algorithm{}, err
	}
	if mgfHash != hash {
		return algorithm{}, fmt.Errorf("signatureAlgorithm RSASSA-PSS mixes %v with %v for its mask; only one hash is supported", hash, mgfHash)
	}
	salt := 20
	if hasSalt && (!saltInt.ReadASN1Integer(&salt) || !saltInt.Empty()) {
		return algorithm{}, bad
	}
	if salt < 1 || salt > 2048 {
		return algorithm{}, fmt.Errorf("signatureAlgorithm RSASSA-PSS with a salt of %d octets is not supported; ask the CA for one as long as the hash", salt)
	}
	return algorithm{name: "RSASSA-PSS-SHA" + fmt.Sprint(8*hash.Size()), key: "RSA", hash: hash, salt: salt}, nil
}

func parseHash(der cryptobyte.String) (crypto.Hash, error) {
	oid, params, ok := algorithmIdentifier(der)
	if !ok || len(params) != 0 && !bytes.Equal(params, []byte{5, 0}) {
		return 0, errors.New("signatureAlgorithm RSASSA-PSS names its hash in a way that is not valid")
	}
	if string(oid) == "\x2b\x0e\x03\x02\x1a" {
		return 0, errBroken("RSASSA-PSS with SHA-1")
	}
	h, ok := hashes[string(oid)]
	if !ok {
		return 0, fmt.Errorf("signatureAlgorithm RSASSA-PSS with hash %s is not supported; SHA-256, SHA-384 and SHA-512 are", oidString(oid))
	}
	return h, nil
}

// spoolFile remembers the hash of a part of it: who looks for the issuer of a CRL first and then reads it, reads the octets for that once.
type spoolFile struct {
	*os.File
	read       func(octets int) // nil where nobody watches
	hash       crypto.Hash
	start, end int64
	sum        []byte
}

// ReadAt reads, and tells who watches.
func (f *spoolFile) ReadAt(b []byte, at int64) (int, error) {
	n, err := f.File.ReadAt(b, at)
	if f.read != nil {
		f.read(n)
	}
	return n, err
}

// message gives what verify needs of the octets from start to end: their hash, or for Ed25519 themselves.
func (a algorithm) message(src io.ReaderAt, start, end int64) ([]byte, error) {
	f, spooled := src.(*spoolFile)
	if spooled && a.hash != 0 && f.hash == a.hash && f.start == start && f.end == end {
		return f.sum, nil
	}
	r := io.NewSectionReader(src, start, end-start)
	if a.hash == 0 {
		if r.Size() > maxEd25519 {
			return nil, fmt.Errorf("a CRL of %d octets signed with Ed25519, which must be held in memory whole; at most %d are read", r.Size(), maxEd25519)
		}
		return io.ReadAll(r)
	}
	h := a.hash.New()
	if n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{r}, make([]byte, windowSize)); err != nil {
		return nil, err
	} else if n != end-start {
		return nil, io.ErrUnexpectedEOF
	}
	sum := h.Sum(nil)
	if spooled {
		f.hash, f.start, f.end, f.sum = a.hash, start, end, sum
	}
	return sum, nil
}

// verify checks the signature over what message gave.
func (a algorithm) verify(public crypto.PublicKey, message, signature []byte) bool {
	switch key := public.(type) {
	case *rsa.PublicKey:
		if a.key != "RSA" {
			return false
		}
		if a.salt != 0 {
			return rsa.VerifyPSS(key, a.hash, message, signature, &rsa.PSSOptions{SaltLength: a.salt}) == nil
		}
		return rsa.VerifyPKCS1v15(key, a.hash, message, signature) == nil
	case *ecdsa.PublicKey:
		return a.key == "ECDSA" && ecdsa.VerifyASN1(key, message, signature)
	case ed25519.PublicKey:
		return a.key == "Ed25519" && len(key) == ed25519.PublicKeySize && ed25519.Verify(key, message, signature)
	}
	return false
}
