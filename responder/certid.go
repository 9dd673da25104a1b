package responder

import (
	"bytes"
	"crypto"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"ocspd/pki"
)

// A Form is how a CertID is written, all but its serial: the hash algorithm, and whether the algorithm's parameters
// are NULL or absent. With the issuer and the serial it gives the CertID back byte for byte.
type Form uint8

// formNull is set where the AlgorithmIdentifier of a CertID has NULL parameters.
const formNull Form = 0x80

// hashes are the algorithms of CertIDs that we know; a Form holds an index into it. The order is part of the link's format.
var hashes = [...]struct {
	hash crypto.Hash
	oid  []byte // content octets
}{
	{crypto.SHA1, []byte{0x2b, 0x0e, 0x03, 0x02, 0x1a}},
	{crypto.SHA256, []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01}},
	{crypto.SHA384, []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02}},
	{crypto.SHA512, []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03}},
}

// allForms lists every Form that there is.
var allForms = func() (f []Form) {
	for i := range hashes {
		f = append(f, Form(i), Form(i)|formNull)
	}
	return f
}()

// algorithms is, by Form, the content of its AlgorithmIdentifier.
var algorithms = func() (a [int(formNull) + len(hashes)][]byte) {
	for _, f := range allForms {
		var b cryptobyte.Builder
		b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(hashes[f&^formNull].oid) })
		if f&formNull != 0 {
			b.AddASN1NULL()
		}
		a[f] = b.BytesOrPanic()
	}
	return a
}()

func (f Form) valid() bool { return int(f&^formNull) < len(hashes) }

// Hash is the CertID's hash algorithm.
func (f Form) Hash() crypto.Hash { return hashes[f&^formNull].hash }

// CertID names a certificate as RFC 6960 section 4.1.1 does. The slices are parts of the request that was read.
type CertID struct {
	known    bool // the hash algorithm is one of ours; else only nameHash, keyHash and serial were read
	form     Form
	nameHash []byte
	keyHash  []byte
	serial   pki.Serial
}

func (c *CertID) read(s *cryptobyte.String) bool {
	var id, alg cryptobyte.String
	if !readASN1(s, &id, asn1.SEQUENCE) || !readASN1(&id, &alg, asn1.SEQUENCE) {
		return false
	}
	c.known = false
	for _, f := range allForms {
		if bytes.Equal(alg, algorithms[f]) {
			c.known, c.form = true, f
			break
		}
	}
	if !c.known && !isOtherAlgorithm(alg) {
		return false
	}
	var serial cryptobyte.String
	if !readASN1(&id, (*cryptobyte.String)(&c.nameHash), asn1.OCTET_STRING) ||
		!readASN1(&id, (*cryptobyte.String)(&c.keyHash), asn1.OCTET_STRING) ||
		!readASN1(&id, &serial, asn1.INTEGER) || !id.Empty() {
		return false
	}
	if c.known && (len(c.nameHash) != c.form.Hash().Size() || len(c.keyHash) != c.form.Hash().Size()) {
		return false
	}
	var err error
	c.serial, err = pki.SerialFromDER(serial)
	return err == nil
}

// isOtherAlgorithm holds for the content of an AlgorithmIdentifier that is none of ours. One of ours has NULL parameters or none.
func isOtherAlgorithm(alg cryptobyte.String) bool {
	var oid, params cryptobyte.String
	var tag asn1.Tag
	if !readOID(&alg, &oid) {
		return false
	}
	for i := range hashes {
		if bytes.Equal(oid, hashes[i].oid) {
			return false
		}
	}
	return alg.Empty() || alg.ReadAnyASN1(&params, &tag) && alg.Empty()
}

// writtenIssuer is an issuer with the parts of its CertIDs already encoded, one for each hash algorithm.
type writtenIssuer struct {
	*pki.Issuer
	// prefix is, by Form, the DER of AlgorithmIdentifier, issuerNameHash and issuerKeyHash.
	prefix [int(formNull) + len(hashes)][]byte
}

func writeIssuer(i *pki.Issuer) *writtenIssuer {
	w := &writtenIssuer{Issuer: i}
	for _, f := range allForms {
		var b cryptobyte.Builder
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(algorithms[f]) })
		b.AddASN1OctetString(i.NameHash(f.Hash()))
		b.AddASN1OctetString(i.KeyHash(f.Hash()))
		w.prefix[f] = b.BytesOrPanic()
	}
	return w
}

// addCertID writes a CertID exactly as the client wrote it: strict decoding left the serial and the Form as its only freedom.
func (w *writtenIssuer) addCertID(b *cryptobyte.Builder, f Form, serial pki.Serial) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(w.prefix[f])
		b.AddASN1(asn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(serial.Bytes()) })
	})
}

// issuerTable finds the issuer that a CertID means, by hash algorithm, name hash and key hash together: neither
// hash alone tells a re-keyed CA from its predecessor.
type issuerTable struct {
	issuers []*pki.Issuer
	byHash  map[string]int
}

// hashKey is built in the caller's buffer so that a look-up allocates nothing.
func hashKey(buf []byte, f Form, name, key []byte) []byte {
	return append(append(append(buf, byte(f&^formNull)), name...), key...)
}

func newIssuerTable(issuers []*pki.Issuer) (*issuerTable, error) {
	t := &issuerTable{issuers: issuers, byHash: map[string]int{}}
	for n, i := range issuers {
		for f := range Form(len(hashes)) {
			k := string(hashKey(nil, f, i.NameHash(f.Hash()), i.KeyHash(f.Hash())))
			if other, ok := t.byHash[k]; ok {
				return nil, fmt.Errorf("issuers %s and %s have the same name and key, so that no CertID tells them apart; keep one of them",
					issuers[other].Name, i.Name)
			}
			t.byHash[k] = n
		}
	}
	return t, nil
}

func (t *issuerTable) find(c *CertID) (n int, ok bool) {
	if !c.known {
		return 0, false
	}
	var buf [1 + 2*64]byte
	n, ok = t.byHash[string(hashKey(buf[:0], c.form, c.nameHash, c.keyHash))]
	return n, ok
}
