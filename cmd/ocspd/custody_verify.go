package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"text/tabwriter"

	"ocspd/audit"
	"ocspd/hsm"
	"ocspd/pki"
)

// maxCustody bounds a report, in octets.
const maxCustody = 64 << 20

// parseCustody reads the JSON of a report: all of its fields, and no others.
func parseCustody(document []byte) (*custodyReport, error) {
	var r custodyReport
	dec := json.NewDecoder(bytes.NewReader(document))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF || r.V != 1 {
		return nil, errors.New("is not one custody report of version 1")
	}
	for _, i := range r.Data.Issuers {
		if i.CA == nil && i.Problem == "" {
			return nil, fmt.Errorf("issuer %q has no certificate", i.Name)
		}
	}
	return &r, nil
}

// What stands around the JSON in a page.
var (
	custodyOpen  = []byte(`<script type="application/json" id="custody">` + "\n")
	custodyClose = []byte("</script>\n")
)

// custodyDocument finds the JSON in a file. A page has it once.
func custodyDocument(file []byte) (document []byte, page bool, err error) {
	if bytes.HasPrefix(bytes.TrimLeft(file, " \r\n\t"), []byte("{")) {
		return file, false, nil
	}
	_, rest, ok := bytes.Cut(file, custodyOpen)
	document, _, closed := bytes.Cut(rest, custodyClose)
	if !ok || !closed || bytes.Contains(rest, custodyOpen) {
		return nil, true, errors.New("is neither a custody report as JSON nor a page with one in it")
	}
	return document, true, nil
}

type custodyCheck struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`
}

func (a *app) custodyVerify(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("custody verify: %w", err)
	}
	defer f.Close()
	file, err := io.ReadAll(io.LimitReader(f, maxCustody+1))
	if err == nil && len(file) > maxCustody {
		err = errors.New("is larger than any report")
	}
	var document []byte
	var page bool
	if err == nil {
		document, page, err = custodyDocument(file)
	}
	if err != nil {
		return fmt.Errorf("custody verify %s: %w", path, err)
	}
	r, err := parseCustody(document)
	if err != nil {
		return fmt.Errorf("custody verify %s: cannot be read, so nothing of it is shown: %w; it was changed, or another version of ocspd wrote it", path, err)
	}
	v := &custodyVerification{r: r, document: document}
	v.all()
	if page {
		v.page(file)
	}
	wrong := 0
	for _, c := range v.checks {
		if !c.OK {
			wrong++
		}
	}
	if err := a.printCustodyChecks(v, wrong == 0); err != nil {
		return err
	}
	if wrong > 0 {
		return fmt.Errorf("custody verify %s: %d of %d checks failed; do not rely on what it says", path, wrong, len(v.checks))
	}
	a.talk("what this cannot show: that the PKCS#11 module told the truth, and that the CA certificates are the right ones: compare their SHA-256 with your own copies")
	return nil
}

func (a *app) printCustodyChecks(v *custodyVerification, ok bool) error {
	d := &v.r.Data
	if a.json() {
		return a.printJSON(struct {
			V       int            `json:"v"`
			OK      bool           `json:"ok"`
			Version string         `json:"version"`
			ID      string         `json:"id"`
			Verdict custodyVerdict `json:"verdict"`
			Checks  []custodyCheck `json:"checks"`
		}{1, ok, d.Version, d.ID, d.Verdict, v.checks})
	}
	fmt.Fprintf(a.stdout, "report %s of %s, written by ocspd %s\n", quoted(d.ID, ""), rfc3339(d.Time), quoted(d.Version, ""))
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, c := range v.checks {
		word := "ok"
		if !c.OK {
			word = "FAILED"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", word, c.Name, quoted(c.Text, ""))
	}
	if err := w.Flush(); err != nil || !ok {
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "verdict: %s\n", d.Verdict.Text)
	return err
}

// custodyVerification goes the way of the report again, from its facts.
type custodyVerification struct {
	r        *custodyReport
	document []byte
	checks   []custodyCheck
}

func (v *custodyVerification) check(name string, ok bool, good, bad string) {
	if !ok {
		good = bad
	}
	v.checks = append(v.checks, custodyCheck{name, ok, good})
}

// otherwise explains what differs where another version wrote the report.
func (v *custodyVerification) otherwise(bad string) string {
	if w := v.r.Data.Version; w != version() {
		bad += fmt.Sprintf("; it may be that version %s, which wrote it, does this in another way than this one, %s: verify with that", w, version())
	}
	return bad
}

func (v *custodyVerification) all() {
	d := &v.r.Data
	line, err := custodyLine(d)
	same := err == nil && bytes.Contains(v.document, append(append([]byte("\n"), line...), '\n'))
	v.check("data", same && hexSHA256(line) == v.r.Digest, "SHA-256 "+v.r.Digest, v.otherwise("the facts or their digest were changed"))

	again := *d
	again.judge()
	v.check("verdict", again.Verdict == d.Verdict && reflect.DeepEqual(again.Findings, d.Findings) && reflect.DeepEqual(again.Gaps, d.Gaps),
		"findings, gaps and verdict are what follows from the facts", v.otherwise("findings, gaps or verdict are not what follows from the facts"))
	v.check("commands", reflect.DeepEqual(v.r.commands(), v.r.Commands), "are what follows from the facts", v.otherwise("are not what follows from the facts"))
	for i := range d.Issuers {
		v.issuer(&d.Issuers[i])
	}
	v.proofs()
	for _, l := range d.Logs {
		if l.Head != "" {
			err := l.verifyHead()
			v.check("log of the "+l.Role, err == nil, fmt.Sprintf("its head of %d records is signed", l.Size), fmt.Sprint(err))
		}
	}
	whole, err := v.r.json()
	v.check("spelling", err == nil && bytes.Equal(whole, v.document), "octet for octet as it is written", v.otherwise("something was added, left out or written in another way"))
}

func (v *custodyVerification) issuer(i *custodyIssuer) {
	name := "issuer " + i.Name
	if i.Problem != "" {
		v.check(name, i.CA == nil || i.Signer == nil, "as the report says: "+i.Problem, "it has certificates and says that they could not be read")
		return
	}
	for _, c := range append([]custodyCert{*i.CA, *i.signs()}, i.Rolled...) {
		cert, err := pki.ParseCertificate([]byte(c.PEM))
		if err != nil || *describeCert(cert) != c {
			v.check(name, false, "", "a certificate is not what the report says of it")
			return
		}
	}
	if i.chained() {
		v.check(name, true, fmt.Sprintf("the certificate of the signer was issued by the CA with SHA-256 %s", i.CA.SHA256), "")
	} else {
		v.check(name, i.Signer == nil, "the CA signs itself: SHA-256 "+i.CA.SHA256, "the certificate of the signer was not issued by the CA in the report")
	}
}

// chained reports whether the CA's key signed the certificate of the signer.
func (i *custodyIssuer) chained() bool {
	if i.CA == nil || i.Signer == nil {
		return false
	}
	ca, err1 := pki.ParseCertificate([]byte(i.CA.PEM))
	signer, err2 := pki.ParseCertificate([]byte(i.Signer.PEM))
	return err1 == nil && err2 == nil && bytes.Equal(signer.RawIssuer, ca.RawSubject) &&
		ca.CheckSignature(signer.SignatureAlgorithm, signer.RawTBSCertificate, signer.Signature) == nil
}

// proofs wants one of every key that signs answers, over a challenge that names this data, with the key that is in the certificate.
func (v *custodyVerification) proofs() {
	d := &v.r.Data
	left := len(v.r.Proofs)
	for n := range d.Keys {
		k := &d.Keys[n]
		if k.Problem != "" || len(k.Issuers) == 0 {
			continue
		}
		err := errors.New("there is no proof of possession")
		if i := len(v.r.Proofs) - left; left > 0 {
			left--
			err = v.r.Proofs[i].verify(d, v.r.Digest, k)
		}
		v.check(k.name(), err == nil, "signed the challenge that names this data", fmt.Sprint(err))
	}
	if len(v.r.Proofs) == 0 {
		v.check("proofs", false, "", "no key signed for this report, so that nothing shows whether it was changed")
	} else if left > 0 {
		v.check("proofs", false, "", "there are more than keys")
	}
	for i := range d.Issuers {
		c := &d.Issuers[i]
		if k := d.keyOf(c); k != nil && k.Problem == "" && c.Problem == "" {
			v.check("certificate of "+c.Name, k.SPKI == c.signs().SPKI, "is that of "+k.name(), "is not that of "+k.name()+", as the report finds too")
		}
	}
}

func (p custodyProof) verify(d *custodyData, digest string, k *custodyKey) error {
	block, _ := pem.Decode([]byte(k.Public))
	if block == nil || hexSHA256(block.Bytes) != k.SPKI || p.Key != k.SPKI {
		return errors.New("the proof is of another key")
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("its public key: %w", err)
	}
	if p.Challenge != custodyChallenge(d, digest, k.SPKI, nonceOf(p.Challenge)) {
		return errors.New("the challenge that it signed is for another report, or for other data")
	}
	h := hsm.HashFor(public)
	if !verifySignature(public, h, hashed(h, p.Challenge), decodeBase64(p.Signature)) {
		return errors.New("its signature does not verify")
	}
	return nil
}

func verifySignature(public crypto.PublicKey, h crypto.Hash, input, signature []byte) bool {
	switch p := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(p, h, input, signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, input, signature)
	case ed25519.PublicKey:
		return ed25519.Verify(p, input, signature)
	}
	return false
}

func (l *custodyLog) verifyHead() error {
	keys, err := l.verifiers()
	if err != nil {
		return err
	}
	head, err := audit.ParseHead([]byte(l.Head), keys...)
	if err == nil && head.Size != l.Size {
		err = fmt.Errorf("its head is of %d records, and the report says %d", head.Size, l.Size)
	}
	return err
}

// page compares what people read with what the data says.
func (v *custodyVerification) page(file []byte) {
	again, err := v.r.html()
	v.check("page", err == nil && bytes.Equal(again, file), "what it shows is what its data says", v.otherwise("what it shows is not what its data says"))
}
