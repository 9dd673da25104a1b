package ingest

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"ocspd/pki"
)

// x509 refuses some of what we accept, and says so by these words. It is no error of ours.
var x509Stricter = []string{
	"unsupported crl version", // version 1
	"invalid reasonCode",      // OCSP-CRL-17: revoked without a reason
	"authority key identifier",
	"malformed OID",       // arcs that do not fit an int
	"malformed extension", // the same
}

// FuzzReadCRL signs whatever tbsCertList it is given with the CA's key, so that all that stands behind the signature is reached.
// What is accepted must be what x509 reads from the same octets, and the same when it is replayed.
func FuzzReadCRL(f *testing.F) {
	ca := ed25519CA(f)
	add := func(change func(*draft)) {
		d := ca.newDraft()
		change(&d)
		f.Add(d.tbs())
	}
	add(func(*draft) {})
	add(func(d *draft) { d.version, d.exts, d.entries = nil, nil, tlv(0x30, entry([]byte{1}, revokedOn)) })
	add(func(d *draft) { d.entries = nil })
	add(func(d *draft) { d.next = general(time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC)) })
	add(func(d *draft) { d.exts = ca.extensions(number(12), ext(27, true, integer(10))) })
	add(func(d *draft) {
		point := tlv(0xa0, tlv(0xa0, tlv(0x86, []byte("http://crl.example.org/1"))))
		d.exts = ca.extensions(number(12), ext(28, true, tlv(0x30, point, tlv(0x83, []byte{6, 0x40}))), ext(46, false, tlv(0x30, tlv(0x30, point))))
	})
	add(func(d *draft) {
		d.entries = tlv(0x30, entry([]byte{1}, general(now), reason(8), unknownExt(false)), entry([]byte{2}, revokedOn, ext(24, false, general(now))))
	})
	f.Fuzz(func(t *testing.T, tbs []byte) {
		crl := ca.sign(tbs)
		got := new(pki.Snapshot)
		o := judged
		o.MaxAge = 1000 * time.Hour
		if err := readCRL(bytes.NewReader(crl), int64(len(crl)), ca.issuer, o, got); err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of more than one line: %q", err)
			}
			return
		}
		if first, second := entriesOf(t, got), entriesOf(t, got); !slices.Equal(first, second) {
			t.Error("the entries differ when they are replayed")
		}
		want, err := x509.ParseRevocationList(crl)
		if err != nil {
			if !slices.ContainsFunc(x509Stricter, func(s string) bool { return strings.Contains(err.Error(), s) }) {
				t.Fatalf("accepted what x509 refuses: %v", err)
			}
			return
		}
		if err := want.CheckSignatureFrom(ca.issuer.Certificate); err != nil {
			t.Fatal(err)
		}
		if err := sameContent(got, want); err != nil {
			t.Fatal(err)
		}
	})
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
	f.Fuzz(func(t *testing.T, file []byte) {
		got := new(pki.Snapshot)
		if err := readIndex(bytes.NewReader(file), int64(len(file)), got); err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of more than one line: %q", err)
			}
			return
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
			fields := strings.Split(r, "\t")
			if err := sameRow(entries[i], fields); err != nil {
				t.Errorf("row %q: %v", r, err)
			}
		}
	})
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
