package ingest

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"ocspd/pki"
)

// x509 refuses some of what we accept, and says so by these words. It is no error of ours.
var x509Stricter = []string{
	"unsupported crl version", // version 1
	"reasonCode",              // OCSP-CRL-17: one that is not valid is revoked without a reason
	"authority key identifier",
	"malformed OID",       // arcs that do not fit an int
	"malformed extension", // the same
}

// FuzzReadCRL signs whatever tbsCertList it is given with the CA's key, so that all that stands behind the signature is reached.
// What is accepted must be what x509 reads from the same octets, and the same when it is replayed.
func FuzzReadCRL(f *testing.F) {
	ca := ed25519CA(f)
	for _, tbs := range ca.drafts() {
		f.Add(tbs)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, tbs := range ca.drafts() { // a start in every direction
		for range 20 {
			root, _, _ := parseNode(tbs)
			mutate(r, root)
			f.Add(root.der())
		}
	}
	f.Fuzz(func(t *testing.T, tbs []byte) { likeX509(t, ca, tbs) })
}

// likeX509 gives "" if the CRL is taken, and then wants it to be what x509 reads; otherwise why it is refused.
func likeX509(t *testing.T, ca *testCA, tbs []byte) (refused string) {
	t.Helper()
	crl := ca.sign(tbs)
	got := new(pki.Snapshot)
	o := judged
	o.MaxAge = 1000 * time.Hour
	if err := readCRL(bytes.NewReader(crl), int64(len(crl)), ca.issuer, o, got); err != nil {
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("error of more than one line: %q", err)
		}
		return err.Error()
	}
	if first, second := entriesOf(t, got), entriesOf(t, got); !slices.Equal(first, second) {
		t.Error("the entries differ when they are replayed")
	}
	want, err := x509.ParseRevocationList(crl)
	if err != nil {
		if !slices.ContainsFunc(x509Stricter, func(s string) bool { return strings.Contains(err.Error(), s) }) {
			t.Errorf("accepted what x509 refuses: %v\n%x", err, tbs)
		}
		return ""
	}
	if err := want.CheckSignatureFrom(ca.issuer.Certificate); err != nil {
		t.Error(err)
	}
	if err := sameContent(got, want); err != nil {
		t.Errorf("%v\n%x", err, tbs)
	}
	return ""
}

// FuzzReadCRLOutside gives whole files, as a stranger would: none but a true CRL of the CA is accepted.
func FuzzReadCRLOutside(f *testing.F) {
	ca := ed25519CA(f)
	crl := ca.sign(ca.newDraft().tbs())
	f.Add(crl)
	f.Add([]byte("-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"))
	f.Add([]byte("<html>"))
	dir, digest := f.TempDir(), sha256.Sum256(crl)
	f.Fuzz(func(t *testing.T, file []byte) {
		s, err := NewSpool(dir, bytes.NewReader(file), int64(len(file)))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		snap, err := ReadCRL(s, ca.issuer, judged)
		if err == nil && snap.Digest != digest {
			t.Errorf("accepted a CRL that the CA never signed: %x", file)
		}
		if _, err := Inspect(s); err == nil {
			return
		}
		if _, err := IssuerOf(s, []*pki.Issuer{ca.issuer}); err == nil {
			t.Error("an issuer of a file in which Inspect finds no CRL")
		}
	})
}

// FuzzReadIndex holds what is accepted against a naive reading of the same rows.
func FuzzReadIndex(f *testing.F) {
	f.Add([]byte(realIndex))
	f.Add([]byte("# a note\nR\t301231235959Z\t260101000000Z,keyTime,20260101000000Z\t-01\tunknown\t/CN=a\\\tb\r\n"))
	f.Add([]byte("V\t301231235959Z\t\tabc"))
	f.Fuzz(func(t *testing.T, file []byte) { likeRows(t, file) })
}

// likeRows reports whether the index is taken, and then wants it to be what its rows say.
func likeRows(t *testing.T, file []byte) bool {
	t.Helper()
	got := new(pki.Snapshot)
	if err := readIndex(bytes.NewReader(file), int64(len(file)), got); err != nil {
		if strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "line ") {
			t.Errorf("error that names no line, or of more than one: %q", err)
		}
		return false
	}
	rows := strings.Split(string(file), "\n")
	if rows[len(rows)-1] != "" {
		t.Fatal("accepted an index whose last line does not end")
	}
	rows = slices.DeleteFunc(rows[:len(rows)-1], func(r string) bool { return strings.HasPrefix(r, "#") })
	entries := entriesOf(t, got)
	if len(entries) != len(rows) {
		t.Fatalf("%d entries of %d rows", len(entries), len(rows))
	}
	for i, r := range rows {
		if err := sameRow(entries[i], strings.Split(r, "\t")); err != nil {
			t.Errorf("row %q: %v", r, err)
		}
	}
	return true
}

// sameRow compares an entry with the first four fields of its row, read with the standard library.
func sameRow(e pki.Entry, fields []string) error {
	want, ok := new(big.Int).SetString(fields[3], 16)
	if !ok || e.Serial.Big().Cmp(want) != 0 {
		return fmt.Errorf("serial %v", e.Serial)
	}
	if fields[0] == "V" || fields[0] == "E" {
		if e.Status != (pki.Status{State: pki.Good}) {
			return fmt.Errorf("status %+v", e.Status)
		}
		return nil
	}
	parts := strings.Split(fields[2], ",")
	form := "060102150405Z"
	if len(parts[0]) == 15 {
		form = "20060102150405Z"
	}
	at, err := time.Parse(form, parts[0])
	if err != nil {
		return err
	}
	if form[0] == '0' && at.Year() >= 2050 {
		at = at.AddDate(-100, 0, 0)
	}
	if e.Status.State != pki.Revoked || e.Status.RevokedAt.Unix() != at.Unix() || !e.Status.Reason.Valid() {
		return fmt.Errorf("status %+v", e.Status)
	}
	if len(parts) == 1 && e.Status.Reason != pki.Unspecified {
		return fmt.Errorf("status %+v of a row without reason", e.Status)
	}
	return nil
}
