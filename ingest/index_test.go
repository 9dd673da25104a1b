package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ocspd/pki"
)

// realIndex has rows as openssl ca 3.0 writes them, of every status and kind of revocation.
const realIndex = "V\t361231235959Z\t\t0A\tunknown\t/CN=good.example.org\n" +
	"E\t250101000000Z\t\t0B\tunknown\t/CN=expired.example.org\n" +
	"R\t361231235959Z\t260101120000Z\t0C\tunknown\t/CN=noreason.example.org\n" +
	"R\t361231235959Z\t260101120001Z,keyCompromise\t0D\tunknown\t/CN=kc.example.org\n" +
	"R\t361231235959Z\t260101120002Z,CACompromise\t0E\tunknown\t/CN=cac.example.org\n" +
	"R\t361231235959Z\t260101120003Z,holdInstruction,holdInstructionReject\t0F\tunknown\t/CN=hold.example.org\n" +
	"R\t361231235959Z\t260101120004Z,keyTime,20260101000000Z\t10\tunknown\t/CN=kt.example.org\n" +
	"R\t361231235959Z\t260101120005Z,CAkeyTime,20251231000000Z\t11\tunknown\t/CN=cakt.example.org\n" +
	"R\t20601231235959Z\t260101120006Z,superseded\t1001\tunknown\t/CN=late.example.org\n" +
	"R\t361231235959Z\t260101120007Z,unspecified\t7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF\tunknown\t/CN=long.example.org\n" +
	"R\t361231235959Z\t260101120008Z,certificateHold\tFF\tunknown\t/CN=sign.example.org\n" +
	"V\t20601231235959Z\t\t1002\tunknown\t/O=a\\\tb/CN=tab.example.org\n"

func readRowsOf(t testing.TB, text string) (*pki.Snapshot, error) {
	t.Helper()
	return ReadIndex(spool(t, []byte(text)))
}

// OCSP-IDX-01, OCSP-IDX-02 and OCSP-IDX-03.
func TestIDX01Rows(t *testing.T) {
	got, err := readRowsOf(t, realIndex)
	if err != nil {
		t.Fatal(err)
	}
	if got.Kind != pki.Index || got.Size != int64(len(realIndex)) || !got.ThisUpdate.IsZero() || !got.NextUpdate.IsZero() || len(got.Warnings) != 0 {
		t.Errorf("snapshot %+v", got)
	}
	at := func(s int) time.Time { return time.Date(2026, 1, 1, 12, 0, s, 0, time.UTC) }
	revoked := func(sec int, r pki.Reason) pki.Status {
		return pki.Status{State: pki.Revoked, Reason: r, RevokedAt: at(sec)}
	}
	good := pki.Status{State: pki.Good}
	kt, ckt := revoked(4, pki.KeyCompromise), revoked(5, pki.CACompromise)
	kt.InvalidityDate = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	ckt.InvalidityDate = time.Date(2025, 12, 31, 0, 0, 0, 0, time.UTC)
	want := []pki.Entry{
		{Serial: serial(t, "0a"), Status: good}, {Serial: serial(t, "0b"), Status: good},
		{Serial: serial(t, "0c"), Status: revoked(0, 0)}, {Serial: serial(t, "0d"), Status: revoked(1, pki.KeyCompromise)},
		{Serial: serial(t, "0e"), Status: revoked(2, pki.CACompromise)}, {Serial: serial(t, "0f"), Status: revoked(3, pki.CertificateHold)},
		{Serial: serial(t, "10"), Status: kt}, {Serial: serial(t, "11"), Status: ckt},
		{Serial: serial(t, "1001"), Status: revoked(6, pki.Superseded)},
		{Serial: serial(t, "7f"+strings.Repeat("ff", 19)), Status: revoked(7, 0)},
		{Serial: serial(t, "ff"), Status: revoked(8, pki.CertificateHold)},
		{Serial: serial(t, "1002"), Status: good},
	}
	for range 2 {
		if d := cmp.Diff(want, entriesOf(t, got), cmpSerial); d != "" {
			t.Error(d)
		}
	}
}

// OCSP-IDX-01 and OCSP-IDX-02: each form of a row, and what refuses it.
func TestIDX02Forms(t *testing.T) {
	row := func(status, expiry, revocation, serial string) string {
		return status + "\t" + expiry + "\t" + revocation + "\t" + serial + "\tunknown\t/CN=x\n"
	}
	r := func(revocation string) string { return row("R", "301231235959Z", revocation, "01") }
	s := func(serial string) string { return row("V", "301231235959Z", "", serial) }
	const day = "260101000000Z"
	for text, want := range map[string]string{
		r(day):                                   "01 revoked unspecified",
		r("20260101000000Z"):                     "01 revoked unspecified",
		r(day + ",KEYCOMPROMISE"):                "01 revoked keyCompromise",
		r(day + ",cACompromise"):                 "01 revoked cACompromise",
		r(day + ",affiliationChanged"):           "01 revoked affiliationChanged",
		r(day + ",cessationOfOperation"):         "01 revoked cessationOfOperation",
		r(day + ",privilegeWithdrawn"):           "01 revoked privilegeWithdrawn",
		r(day + ",AACompromise"):                 "01 revoked aACompromise",
		r(day + ",removeFromCRL"):                "01 revoked unspecified",
		r(day + ",holdInstruction,1.2.840"):      "01 revoked certificateHold",
		r(day + ",keytime,20260101000000Z"):      "01 revoked keyCompromise",
		s("1"):                                   "01 good unspecified",
		s("abc"):                                 "0abc good unspecified",
		s("00"):                                  "00 good unspecified",
		s("-05"):                                 "-05 good unspecified",
		s("-80"):                                 "-80 good unspecified",
		s("-8001"):                               "-8001 good unspecified",
		s("-00"):                                 "00 good unspecified",
		s("80"):                                  "80 good unspecified",
		s("0000" + strings.Repeat("7f", 20)):     strings.Repeat("7f", 20) + " good unspecified",
		"#V\n" + s("1"):                          "01 good unspecified",
		strings.Replace(s("1"), "\n", "\r\n", 1): "01 good unspecified", // Windows
		row("E", "20501231235959Z", "", "01"):    "01 good unspecified",
	} {
		got, err := readRowsOf(t, text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		e := entriesOf(t, got)[0]
		if is := fmt.Sprintf("%v %v %v", e.Serial, e.Status.State, e.Status.Reason); is != want {
			t.Errorf("%q: %s; want %s", text, is, want)
		}
	}
	for text, words := range map[string]string{
		r(""):                                 `revocation date "" is no time`,
		r("260101000000"):                     "is no time",
		r("261301000000Z"):                    "is no time",
		r("2601010000Z"):                      "is no time",
		r(day + ","):                          `reason "" is not known`,
		r(day + ",keyCompromised"):            `reason "keyCompromised" is not known`,
		r(day + ",keyCompromise,"):            "something after it",
		r(day + ",holdInstruction"):           "without the instruction's name",
		r(day + ",keyTime"):                   "keyTime with \"\"",
		r(day + ",keyTime,260101000000Z"):     "keyTime with \"260101000000Z\"",
		r(day + ",CAkeyTime,20261301000000Z"): "CAkeyTime with",
		r(" " + day):                          "is no time",
		s(""):                                 "has no hex digits",
		s("-"):                                "has no hex digits",
		s("0x01"):                             "is not hex", // OCSP-IDX-05
		s("01 "):                              "is not hex",
		s("--1"):                              "is not hex",
		s("80" + strings.Repeat("00", 19)):    "1 to 20 octets",
		s(strings.Repeat("7f", 21)):           "1 to 20 octets",
		row("V", "", "", "01"):                `expiry "" is no time`,
		row("V", "301231235959Z", day, "01"):  "only status R has one",
		row("E", "301231235959Z", day, "01"):  "only status R has one",
		row("S", "301231235959Z", "", "01"):   `status "S" where V, R or E belongs`,
		row("VV", "301231235959Z", "", "01"):  `status "VV" where`,
		row("v", "301231235959Z", "", "01"):   `status "v" where`,
		row("", "301231235959Z", "", "01"):    `status "" where`,
		"\n":                                  "1 fields between tabs where 6 belong",
		"\r\n":                                "1 fields",
		"V\t301231235959Z\t\t01\tunknown\n":   "5 fields",
		"V\t301231235959Z\t\t01\tunknown\t/CN=a\tb\n":   "7 fields",
		"V\t301231235959Z\t\t01\tunknown\\\t/CN=a\n":    "5 fields",
		"V\t301231235959Z\t\t01\tunknown\t/CN=a\x00b\n": "a zero octet",
		"V 301231235959Z  01 unknown /CN=a\n":           "1 fields",
		"<html>\n":                                      "looks like an HTML page",
		"#" + strings.Repeat("x", maxLine) + "\n":       "longer than",
		"#" + strings.Repeat("x", 9*maxLine) + "\n":     "longer than",
	} {
		_, err := readRowsOf(t, realIndex+text)
		if err == nil || !strings.HasPrefix(err.Error(), "line 13: ") || !strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.80q: error %v; want one line about line 13 with %q", text, err, words)
		}
	}
	got, err := readRowsOf(t, r(day+",removeFromCRL"))
	if err != nil {
		t.Fatal(err)
	}
	wantWarning(t, got, "removeFromCRL")
}

// OCSP-IDX-04: a file that somebody is still writing is told from one that is broken, wherever it is cut.
func TestIDX04Incomplete(t *testing.T) {
	for n := range realIndex {
		got := new(pki.Snapshot)
		err := readIndex(strings.NewReader(realIndex[:n]), int64(n), got)
		if n == 0 || realIndex[n-1] == '\n' {
			if err != nil || got.Count != int64(strings.Count(realIndex[:n], "\n")) {
				t.Errorf("whole rows up to %d: error %v", n, err)
			}
		} else if !errors.Is(err, ErrIncomplete) {
			t.Errorf("cut off at %d: error %v; want ErrIncomplete", n, err)
		}
	}
	got, err := readRowsOf(t, "")
	if err != nil || got.Count != 0 || len(entriesOf(t, got)) != 0 {
		t.Fatalf("empty index: %v", err)
	}
	wantWarning(t, got, "the index has no rows")
}

// OCSP-IDX-05: one corrupt row among 1000 refuses the file.
func TestIDX05OneCorruptRow(t *testing.T) {
	rows := make([]string, 1000)
	for i := range rows {
		rows[i] = fmt.Sprintf("R\t361231235959Z\t260101120000Z\t%04X\tunknown\t/CN=%d\n", i+1, i)
	}
	if s, err := readRowsOf(t, strings.Join(rows, "")); err != nil || s.Count != 1000 {
		t.Fatal(err)
	}
	rows[616] = strings.Replace(rows[616], "0269", "0Z69", 1)
	if _, err := readRowsOf(t, strings.Join(rows, "")); err == nil || !strings.HasPrefix(err.Error(), `line 617: serial "0Z69" is not hex`) {
		t.Errorf("error %v; want one that names line 617", err)
	}
}

// What openssl ca itself writes in a life of a CA, and how it spells the reasons that its -crl_* options make.
func TestOpenSSLIndex(t *testing.T) {
	dir := opensslCA(t, "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
	want := []pki.Entry{}
	add := func(state pki.State, r pki.Reason, invalid string) {
		e := pki.Entry{Serial: serial(t, fmt.Sprintf("%x", 0x0a+len(want))), Status: pki.Status{State: state, Reason: r}}
		if invalid != "" {
			e.Status.InvalidityDate, _ = time.Parse("20060102150405Z", invalid)
		}
		want = append(want, e)
	}
	for i, c := range []struct {
		revoke  []string
		reason  pki.Reason
		invalid string
	}{
		{nil, 0, ""},
		{[]string{}, 0, ""},
		{[]string{"-crl_reason", "keyCompromise"}, pki.KeyCompromise, ""},
		{[]string{"-crl_reason", "CACompromise"}, pki.CACompromise, ""},
		{[]string{"-crl_reason", "superseded"}, pki.Superseded, ""},
		{[]string{"-crl_hold", "holdInstructionCallIssuer"}, pki.CertificateHold, ""},
		{[]string{"-crl_compromise", "20260101000000Z"}, pki.KeyCompromise, "20260101000000Z"},
		{[]string{"-crl_CA_compromise", "20250101000000Z"}, pki.CACompromise, "20250101000000Z"},
	} {
		name := fmt.Sprintf("c%d.example.org", i)
		opensslIssue(t, dir, name)
		if c.revoke == nil {
			add(pki.Good, 0, "")
			continue
		}
		openssl(t, dir, append([]string{"ca", "-config", "ca.cnf", "-revoke", name + ".pem"}, c.revoke...)...)
		add(pki.Revoked, c.reason, c.invalid)
	}
	opensslIssue(t, dir, "old.example.org", "-startdate", "200101000000Z", "-enddate", "210101000000Z")
	openssl(t, dir, "ca", "-config", "ca.cnf", "-updatedb")
	add(pki.Good, 0, "")
	opensslIssue(t, dir, "late.example.org", "-enddate", "20551231235959Z")
	add(pki.Good, 0, "")

	text := readFile(t, dir, "index.txt")
	if !bytes.Contains(text, []byte("\nE\t")) || !bytes.Contains(text, []byte("\t20551231235959Z\t\t")) {
		t.Fatalf("openssl wrote another index than this test is about:\n%s", text)
	}
	s, err := ReadIndex(spool(t, text))
	if err != nil {
		t.Fatal(err)
	}
	got := entriesOf(t, s)
	for i := range got {
		if got[i].Status.State == pki.Revoked && time.Since(got[i].Status.RevokedAt).Abs() > time.Hour {
			t.Errorf("entry %d was revoked at %v", i, got[i].Status.RevokedAt)
		}
		got[i].Status.RevokedAt = time.Time{}
	}
	if d := cmp.Diff(want, got, cmpSerial); d != "" {
		t.Error(d)
	}
}

// Every magnitude comes out as math/big reads it.
func TestIndexSerials(t *testing.T) {
	for bits := range 160 {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits))
		for _, d := range []int64{-1, 0, 1} {
			m := new(big.Int).Add(n, big.NewInt(d))
			for _, v := range []*big.Int{m, new(big.Int).Neg(m)} {
				want, wantErr := pki.SerialFromBig(v)
				got, err := parseIndexSerial([]byte(v.Text(16)))
				if got != want || (err == nil) != (wantErr == nil) {
					t.Fatalf("%x: %v, %v; want %v, %v", v, got, err, want, wantErr)
				}
			}
		}
	}
}
