package ingest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"ocspd/pki"
)

// CRLInfo is what a CRL says of itself. Nothing of it was verified: anybody could have written it.
type CRLInfo struct {
	Version            int
	Issuer             string // RFC 2253 form, quoted where it holds what a terminal could take amiss
	SignatureAlgorithm string
	ThisUpdate         time.Time
	NextUpdate         time.Time // zero when there is none
	Number             string    // hex; "" when there is none
	BaseNumber         string    // hex; "" for a complete CRL
	AuthorityKeyID     string    // hex; "" when there is none
	Scope              Scope
	Freshest           []string
	Extensions         []string // OIDs, critical ones with " critical" after them
	Entries            int64
	Size               int64 // octets of the DER
	Digest             [sha256.Size]byte
	Warnings           []string
	Problems           []string // what would refuse it whoever had signed it and whatever the time
}

// Inspect shows what the CRL in s, DER or PEM, says of itself, and verifies nothing. An error is a file in which no CRL can be
// made out; what is wrong in the CRL otherwise is in Problems.
func Inspect(s *Spool) (*CRLInfo, error) {
	if err := s.toDER(); err != nil {
		return nil, err
	}
	out, err := readOutline(s.file, s.size)
	if err != nil {
		return nil, err
	}
	h, err := readHead(s.file, out)
	if err != nil {
		return nil, err
	}
	i := &CRLInfo{Version: h.version, Issuer: nameString(h.issuer), ThisUpdate: h.thisUpdate, NextUpdate: h.nextUpdate, Size: s.size, Digest: s.digest}
	warn := func(format string, args ...any) { i.Warnings = append(i.Warnings, fmt.Sprintf(format, args...)) }
	problem := func(err error) {
		if err != nil {
			i.Problems = append(i.Problems, err.Error())
		}
	}
	alg, err := parseAlgorithm(out.algorithm)
	problem(err)
	i.SignatureAlgorithm = alg.name
	if err != nil {
		i.SignatureAlgorithm = "not accepted"
	}
	if !bytes.Equal(h.algorithm, out.algorithm) {
		problem(errors.New("the signature algorithm inside the signed part differs from the one outside"))
	}
	for _, e := range h.extensions {
		text := oidString(e.oid)
		if e.critical {
			text += " critical"
		}
		i.Extensions = append(i.Extensions, text)
	}
	m, err := h.interpret(warn)
	problem(err)
	i.Number, i.BaseNumber, i.Freshest, i.AuthorityKeyID = m.number, m.baseNumber, m.freshest, hex.EncodeToString(m.keyID)
	i.Scope, _ = parseScope(m.scope) // refused by interpret where it is not valid
	var odd oddities
	err = readEntries(s.file, h.entries, h.entriesEnd, m.baseNumber != "", &odd, func(pki.Entry) error { i.Entries++; return nil })
	problem(err)
	odd.warn(warn)
	return i, nil
}

// IssuerOf finds the one of the issuers whose key signed the CRL in s, DER or PEM. The signature decides; only among
// issuers that share a key do the name and the key identifier that the CRL gives.
func IssuerOf(s *Spool, issuers []*pki.Issuer) (*pki.Issuer, error) {
	if err := s.toDER(); err != nil {
		return nil, err
	}
	out, err := readOutline(s.file, s.size)
	if err != nil {
		return nil, err
	}
	alg, err := parseAlgorithm(out.algorithm)
	if err != nil {
		return nil, err
	}
	message, err := alg.message(s.file, out.tbs, out.tbsEnd)
	if err != nil {
		return nil, err
	}
	var signers []*pki.Issuer
	for _, i := range issuers {
		if alg.verify(i.Certificate.PublicKey, message, out.signature) {
			signers = append(signers, i)
		}
	}
	if len(signers) == 0 {
		return nil, errors.New("no configured issuer has the key that signed the CRL, or the CRL was changed; `crl inspect` shows whose it claims to be")
	}
	h, err := readHead(s.file, out)
	if err != nil {
		return nil, err
	}
	m, err := h.interpret(func(string, ...any) {})
	if err != nil {
		return nil, err
	}
	var found []*pki.Issuer
	for _, i := range signers {
		nameFits := sameName(h.issuer, i.Certificate.RawSubject)
		keyFits := len(m.keyID) == 0 || len(i.Certificate.SubjectKeyId) == 0 || bytes.Equal(m.keyID, i.Certificate.SubjectKeyId)
		if nameFits && keyFits {
			found = append(found, i)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, fmt.Errorf("the CRL is signed with the key of issuer %s, but by its name [%s] or key identifier (%x) it is another's; get the CRL again from the CA",
			signers[0].Name, nameString(h.issuer), clip(m.keyID))
	}
	return nil, fmt.Errorf("issuers %s and %s have the same name and key, so the CRL could be either's; name one with --issuer", found[0].Name, found[1].Name)
}
