package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"time"
)

// listed is an entry of a CRL; reason 6 is a hold, 0 none.
type listed struct {
	serial []byte // content octets of the INTEGER
	reason byte
}

// bulk is the i-th of many: 16 octets, ascending, with mixed reasons.
func bulk(i int) listed {
	b := make([]byte, 16)
	b[0] = 0x40
	binary.BigEndian.PutUint64(b[1:], uint64(i)*0x9e37)
	sum := sha256.Sum256(b[:9])
	copy(b[9:], sum[:])
	return listed{b, []byte{1, 4, 0, 3, 5, 9}[i%6]}
}

func small(n int) []byte {
	b := big.NewInt(int64(n)).Bytes()
	if len(b) == 0 || b[0] >= 0x80 {
		b = append([]byte{0}, b...)
	}
	return b
}

func tlv(tag byte, content ...[]byte) []byte {
	body := bytes.Join(content, nil)
	return append(header(tag, len(body)), body...)
}

func header(tag byte, n int) []byte {
	if n < 0x80 {
		return []byte{tag, byte(n)}
	}
	l := big.NewInt(int64(n)).Bytes()
	return append([]byte{tag, 0x80 | byte(len(l))}, l...)
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err) // of a value that is ours
	}
	return b
}

var (
	oidReason   = must(asn1.Marshal(asn1.ObjectIdentifier{2, 5, 29, 21}))
	ecdsaSHA256 = must(asn1.Marshal(pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}))
)

func utcTime(t time.Time) []byte { return tlv(0x17, []byte(t.UTC().Format("060102150405Z"))) }

// revokedLongAgo is when every entry of a CRL of ours was revoked.
var revokedLongAgo = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func (l listed) der(to []byte) []byte {
	to = to[:0]
	at := utcTime(revokedLongAgo)
	var ext []byte
	if l.reason != 0 {
		ext = tlv(0x30, tlv(0x30, oidReason, tlv(4, tlv(10, []byte{l.reason}))))
	}
	n := 2 + len(l.serial) + len(at) + len(ext)
	to = append(to, header(0x30, n)...)
	to = append(to, 2, byte(len(l.serial)))
	to = append(to, l.serial...)
	to = append(to, at...)
	return append(to, ext...)
}

// publish writes a CRL of the CA, as a CA should: aside, and renamed. Its thisUpdate grows with its number.
func (w *world) publish(ca, file string, number int, entries []listed) error {
	return w.publishMany(ca, file, number, len(entries), func(i int) listed { return entries[i] })
}

func (w *world) publishMany(ca, file string, number, n int, entry func(int) listed) error {
	a := w.cas[ca]
	var buf []byte
	size := 0
	for i := range n {
		buf = entry(i).der(buf)
		size += len(buf)
	}
	this := time.Now().Add(-time.Hour).Add(time.Duration(number) * time.Second)
	ids := tlv(0x30, tlv(0x80, a.skid))
	extensions := tlv(0xa0, tlv(0x30,
		tlv(0x30, must(asn1.Marshal(asn1.ObjectIdentifier{2, 5, 29, 35})), tlv(4, ids)),
		tlv(0x30, must(asn1.Marshal(asn1.ObjectIdentifier{2, 5, 29, 20})), tlv(4, tlv(2, small(number))))))
	start := bytes.Join([][]byte{{2, 1, 1}, ecdsaSHA256, a.cert.RawSubject, utcTime(this), utcTime(time.Now().AddDate(0, 0, 7))}, nil)
	list := 0
	if n > 0 {
		list = len(header(0x30, size)) + size
	}
	inner := len(start) + list + len(extensions)
	tbs, err := os.Create(w.path(file + ".tbs"))
	if err != nil {
		return err
	}
	defer os.Remove(tbs.Name())
	defer tbs.Close()
	h := sha256.New()
	out := &buffered{w: io.MultiWriter(tbs, h)}
	out.write(header(0x30, inner))
	out.write(start)
	if n > 0 {
		out.write(header(0x30, size))
		for i := range n {
			buf = entry(i).der(buf)
			out.write(buf)
		}
	}
	out.write(extensions)
	if err := out.flush(); err != nil {
		return err
	}
	signature, err := ecdsa.SignASN1(rand.Reader, a.key, h.Sum(nil))
	if err != nil {
		return err
	}
	tail := append(bytes.Clone(ecdsaSHA256), tlv(3, []byte{0}, signature)...)
	whole, err := os.Create(w.path(file + ".new"))
	if err != nil {
		return err
	}
	defer whole.Close()
	if _, err := tbs.Seek(0, io.SeekStart); err != nil {
		return err
	}
	outer := header(0x30, len(header(0x30, inner))+inner+len(tail))
	if _, err := io.Copy(whole, io.MultiReader(bytes.NewReader(outer), tbs, bytes.NewReader(tail))); err != nil {
		return err
	}
	return os.Rename(whole.Name(), w.path(file))
}

type buffered struct {
	w   io.Writer
	b   []byte
	err error
}

func (o *buffered) write(p []byte) {
	if o.b = append(o.b, p...); len(o.b) > 1<<18 {
		o.flush()
	}
}

func (o *buffered) flush() error {
	if o.err == nil {
		_, o.err = o.w.Write(o.b)
	}
	o.b = o.b[:0]
	return o.err
}

// question asks for the status of serials of one CA, with SHA-1 CertIDs as clients do, and a nonce unless it may come from the cache.
func (w *world) question(ca string, nonce bool, serials ...[]byte) []byte {
	a := w.cas[ca]
	name := sha1.Sum(a.cert.RawSubject)
	point, err := a.key.PublicKey.Bytes()
	if err != nil {
		panic(err)
	}
	key := sha1.Sum(point)
	algorithm := tlv(0x30, must(asn1.Marshal(asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26})), []byte{5, 0})
	var requests []byte
	for _, s := range serials {
		requests = append(requests, tlv(0x30, tlv(0x30, algorithm, tlv(4, name[:]), tlv(4, key[:]), tlv(2, s)))...)
	}
	tbs := tlv(0x30, requests)
	if nonce {
		n := make([]byte, 16)
		rand.Read(n)
		tbs = append(tbs, tlv(0xa2, tlv(0x30, tlv(0x30, must(asn1.Marshal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2})), tlv(4, tlv(4, n)))))...)
	}
	return tlv(0x30, tlv(0x30, tbs))
}

type singleResponse struct {
	CertID     asn1.RawValue
	Status     asn1.RawValue
	ThisUpdate time.Time     `asn1:"generalized"`
	NextUpdate asn1.RawValue `asn1:"optional,explicit,tag:0"`
	Extensions asn1.RawValue `asn1:"optional,explicit,tag:1"`
}

type basicResponse struct {
	TBS struct {
		Raw         asn1.RawContent
		ResponderID asn1.RawValue
		ProducedAt  time.Time `asn1:"generalized"`
		Responses   []singleResponse
		Extensions  asn1.RawValue `asn1:"optional,explicit,tag:1"`
	}
	Algorithm    pkix.AlgorithmIdentifier
	Signature    asn1.BitString
	Certificates []asn1.RawValue `asn1:"optional,explicit,tag:0"`
}

var errorStatuses = map[asn1.Enumerated]string{1: "malformedRequest", 2: "internalError", 3: "tryLater", 6: "unauthorized"}

// judge gives the statuses in an answer whose signature verifies by the certificate in it, which the CA issued; or one OCSP error.
func (w *world) judge(ca string, answer []byte) ([]string, error) {
	var outer struct {
		Status asn1.Enumerated
		Bytes  struct {
			Type     asn1.ObjectIdentifier
			Response []byte
		} `asn1:"optional,explicit,tag:0"`
	}
	if rest, err := asn1.Unmarshal(answer, &outer); err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("no OCSP response: %w", err)
	}
	if outer.Status != 0 {
		return []string{errorStatuses[outer.Status]}, nil
	}
	var basic basicResponse
	if _, err := asn1.Unmarshal(outer.Bytes.Response, &basic); err != nil {
		return nil, fmt.Errorf("no BasicOCSPResponse: %w", err)
	}
	if err := w.verify(ca, &basic); err != nil {
		return nil, err
	}
	var all []string
	for _, r := range basic.TBS.Responses {
		switch r.Status.Tag {
		case 0:
			all = append(all, "good")
		case 1:
			all = append(all, "revoked")
		default:
			all = append(all, "unknown")
		}
	}
	return all, nil
}

func (w *world) verify(ca string, basic *basicResponse) error {
	if len(basic.Certificates) != 1 {
		return errors.New("not one certificate in the response")
	}
	signer, err := x509.ParseCertificate(basic.Certificates[0].FullBytes)
	if err != nil {
		return err
	}
	if err := signer.CheckSignatureFrom(w.cas[ca].cert); err != nil {
		return err
	}
	public, ok := signer.PublicKey.(*ecdsa.PublicKey)
	sum := crypto.SHA256.New()
	sum.Write(basic.TBS.Raw)
	if !ok || !ecdsa.VerifyASN1(public, sum.Sum(nil), basic.Signature.RightAlign()) {
		return errors.New("the signature does not verify")
	}
	return nil
}

var client = &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 16}}

func get(url string) ([]byte, error) {
	r, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	return io.ReadAll(r.Body)
}

func (w *world) post(question []byte) ([]byte, error) {
	r, err := client.Post(w.url, "application/ocsp-request", bytes.NewReader(question))
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != 200 {
		err = errors.New(r.Status)
	}
	return b, err
}

// ask gives the statuses of serials, or one OCSP error.
func (w *world) ask(ca string, nonce bool, serials ...[]byte) ([]string, error) {
	b, err := w.post(w.question(ca, nonce, serials...))
	if err != nil {
		return nil, err
	}
	return w.judge(ca, b)
}
