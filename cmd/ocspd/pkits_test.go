package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ocspd/db"
	"ocspd/ingest"
	"ocspd/pki"
)

// pkitsTime is when the CRLs of PKITS are judged, most of which hold from 2010 through 2030.
var pkitsTime = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)

// PKITS sections 4.3, 4.4, 4.7, 4.14 and 4.15: each CRL is refused and changes nothing, or is applied exactly. OCSP-CRL-01 to OCSP-CRL-17.
func TestPKITS(t *testing.T) {
	type step struct{ file, refused string }
	good := func(files ...string) (s []step) {
		for _, f := range files {
			s = append(s, step{file: f})
		}
		return s
	}
	for _, c := range []struct {
		ca    string
		steps []step
		want  string // what is revoked in the end
	}{
		{"TrustAnchorRootCertificate", good("TrustAnchorRootCRL"), "68 keyCompromise"},
		{"GoodCACert", good("GoodCACRL"), "0e keyCompromise, 0f keyCompromise"},                                                                             // 4.4.2, 4.4.3
		{"BadCRLSignatureCACert", []step{{"BadCRLSignatureCACRL", "signatureValue"}}, ""},                                                                   // 4.4.4
		{"BadCRLIssuerNameCACert", []step{{"BadCRLIssuerNameCACRL", "issued by"}}, ""},                                                                      // 4.4.5
		{"WrongCRLCACert", []step{{"WrongCRLCACRL", "does not verify"}}, ""},                                                                                // 4.4.6
		{"TwoCRLsCACert", []step{{"TwoCRLsCAGoodCRL", ""}, {"TwoCRLsCABadCRL", "issued by"}}, ""},                                                           // 4.4.7
		{"UnknownCRLEntryExtensionCACert", []step{{"UnknownCRLEntryExtensionCACRL", "critical extension"}}, ""},                                             // 4.4.8
		{"UnknownCRLExtensionCACert", []step{{"UnknownCRLExtensionCACRL", "critical extension"}}, ""},                                                       // 4.4.9, 4.4.10
		{"OldCRLnextUpdateCACert", []step{{"OldCRLnextUpdateCACRL", "expired"}}, ""},                                                                        // 4.4.11
		{"pre2000CRLnextUpdateCACert", []step{{"pre2000CRLnextUpdateCACRL", "expired"}}, ""},                                                                // 4.4.12
		{"GeneralizedTimeCRLnextUpdateCACert", good("GeneralizedTimeCRLnextUpdateCACRL"), ""},                                                               // 4.4.13
		{"NegativeSerialNumberCACert", good("NegativeSerialNumberCACRL"), "-01 keyCompromise"},                                                              // 4.4.14, 4.4.15
		{"LongSerialNumberCACert", good("LongSerialNumberCACRL"), "7f0102030405060708090a0b0c0d0e0f10111213 keyCompromise"},                                 // 4.4.16 to 4.4.18
		{"SeparateCertificateandCRLKeysCertificateSigningCACert", []step{{"SeparateCertificateandCRLKeysCRL", "cRLSign"}}, ""},                              // 4.4.19: another key's
		{"SeparateCertificateandCRLKeysCA2CertificateSigningCACert", []step{{"SeparateCertificateandCRLKeysCA2CRL", "cRLSign"}}, ""},                        // 4.4.21
		{"RolloverfromPrintableStringtoUTF8StringCACert", good("RolloverfromPrintableStringtoUTF8StringCACRL"), ""},                                         // 4.3.10
		{"UTF8StringCaseInsensitiveMatchCACert", good("UTF8StringCaseInsensitiveMatchCACRL"), ""},                                                           // 4.3.11
		{"keyUsageCriticalcRLSignFalseCACert", []step{{"keyUsageCriticalcRLSignFalseCACRL", "cRLSign"}}, ""},                                                // 4.7.4
		{"keyUsageNotCriticalcRLSignFalseCACert", []step{{"keyUsageNotCriticalcRLSignFalseCACRL", "cRLSign"}}, ""},                                          // 4.7.5
		{"distributionPoint1CACert", good("distributionPoint1CACRL"), "02 keyCompromise"},                                                                   // 4.14.1 to 4.14.4
		{"distributionPoint2CACert", good("distributionPoint2CACRL"), "02 keyCompromise"},                                                                   // 4.14.5 to 4.14.9
		{"NoissuingDistributionPointCACert", good("NoissuingDistributionPointCACRL"), ""},                                                                   // 4.14.10
		{"onlyContainsUserCertsCACert", good("onlyContainsUserCertsCACRL"), ""},                                                                             // 4.14.11
		{"onlyContainsCACertsCACert", good("onlyContainsCACertsCACRL"), ""},                                                                                 // 4.14.12, 4.14.13
		{"onlyContainsAttributeCertsCACert", []step{{"onlyContainsAttributeCertsCACRL", "attribute certificates"}}, ""},                                     // 4.14.14
		{"onlySomeReasonsCA1Cert", good("onlySomeReasonsCA1compromiseCRL", "onlySomeReasonsCA1otherreasonsCRL"), "01 keyCompromise, 02 certificateHold"},    // 4.14.15, 4.14.16
		{"onlySomeReasonsCA2Cert", good("onlySomeReasonsCA2CRL1", "onlySomeReasonsCA2CRL2"), ""},                                                            // 4.14.17
		{"onlySomeReasonsCA4Cert", good("onlySomeReasonsCA4compromiseCRL", "onlySomeReasonsCA4otherreasonsCRL"), "02 keyCompromise, 03 affiliationChanged"}, // 4.14.19 to 4.14.21
		{"indirectCRLCA1Cert", []step{{"indirectCRLCA1CRL", "indirect"}}, ""},                                                                               // 4.14.22, 4.14.23
		{"indirectCRLCA3Cert", []step{{"indirectCRLCA3CRL", ""}, {"indirectCRLCA3cRLIssuerCRL", "does not verify"}}, ""},                                    // 4.14.26, 4.14.27
		{"indirectCRLCA5Cert", []step{{"indirectCRLCA5CRL", "indirect"}}, ""},                                                                               // 4.14.28 on
		{"deltaCRLIndicatorNoBaseCACert", []step{{"deltaCRLIndicatorNoBaseCACRL", "no complete CRL is installed"}}, ""},                                     // 4.15.1
		{"deltaCRLCA1Cert", []step{{"deltaCRLCA1deltaCRL", "no complete CRL"}, {"deltaCRLCA1CRL", ""}, {"deltaCRLCA1deltaCRL", ""}, {"deltaCRLCA1CRL", "older"}},
			"02 keyCompromise, 03 keyCompromise, 05 keyCompromise"}, // 4.15.2 to 4.15.7: 04 was on hold, and is released
		{"deltaCRLCA2Cert", good("deltaCRLCA2CRL", "deltaCRLCA2deltaCRL"), "02 keyCompromise"},                                  // 4.15.8, 4.15.9
		{"deltaCRLCA3Cert", []step{{"deltaCRLCA3CRL", "expired"}, {"deltaCRLCA3deltaCRL", "no complete CRL is installed"}}, ""}, // 4.15.10
	} {
		t.Run(c.ca, func(t *testing.T) {
			w := newPKITS(t, c.ca)
			for _, s := range c.steps {
				before := w.revoked()
				err := w.install(s.file)
				switch {
				case s.refused == "" && err != nil:
					t.Fatalf("%s: %v", s.file, err)
				case s.refused != "" && (err == nil || !strings.Contains(err.Error(), s.refused) || strings.Contains(err.Error(), "\n")):
					t.Fatalf("%s: error %v, want %q", s.file, err, s.refused)
				}
				if s.refused != "" && w.revoked() != before {
					t.Errorf("%s was refused and changed %s to %s", s.file, before, w.revoked())
				}
			}
			if _, got, _ := strings.Cut(w.revoked(), ": "); got != c.want {
				t.Errorf("revoked: %s, want %s", got, c.want)
			}
		})
	}
}

// pkits is a keeper with one CA of PKITS.
type pkits struct {
	*kept
	issuer *keptIssuer
}

func newPKITS(t *testing.T, ca string) *pkits {
	w := &kept{t: t, dir: t.TempDir()}
	der, err := os.ReadFile(filepath.Join("testdata/pkits", ca+".crt"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	w.write("ocspd.toml", []byte("state = \"state\"\nrun = \"run\"\n[token.main]\nuri = \"pkcs11:token=t?module-path=/usr/lib/softhsm/libsofthsm2.so\"\npin = \"file:pin\"\n"+
		"[issuer.one]\ncertificate = \"ca.pem\"\nkey = \"pkcs11:object=one\"\nunissued = \"good\"\n"))
	w.open()
	t.Cleanup(func() { w.k.close() })
	i, err := w.k.issuer("one")
	if err != nil {
		t.Fatal(err)
	}
	return &pkits{w, i}
}

// install does what `crl import` does, at the time of PKITS.
func (w *pkits) install(file string) error {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata/pkits", file+".crl"))
	if err != nil {
		w.t.Fatal(err)
	}
	spool, err := ingest.NewSpool(w.dir, bytes.NewReader(b), int64(len(b)))
	if err != nil {
		w.t.Fatal(err)
	}
	defer spool.Close()
	snap, err := ingest.ReadCRL(spool, w.issuer.issuer, ingest.Options{Now: pkitsTime, Skew: clockSkew})
	if err != nil {
		return err
	}
	_, err = w.k.install(context.Background(), w.issuer, db.Origin{Location: file}, snap, "")
	return err
}

// revoked is the generation in force and every serial with its reason.
func (w *pkits) revoked() string {
	w.t.Helper()
	var all []string
	if _, err := w.k.store.Merged(context.Background(), w.issuer.issuer.ID, nil, func(p *pki.Packed) error {
		all = append(all, fmt.Sprintf("%s %s", p.Serial(), p.Status().Reason))
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprintf("%d: %s", w.issuer.inForce(), strings.Join(all, ", "))
}

// draft is a CRL in pieces, so that each can be wrong; a nil piece is left out.
type draft struct {
	version, inner, outer, name, this, next, entries, extensions, tail []byte
	key                                                                *ecdsa.PrivateKey
	spoil                                                              func([]byte) []byte // of the signed CRL
}

func element(tag byte, parts ...[]byte) []byte {
	content := bytes.Join(parts, nil)
	b, err := asn1.Marshal(asn1.RawValue{Tag: 4, Bytes: content}) // which knows how lengths are written
	if err != nil {
		panic(err)
	}
	b[0] = tag
	return b
}

func utcTime(t time.Time) []byte { return element(0x17, []byte(t.UTC().Format("060102150405Z"))) }
func generalTime(t time.Time) []byte {
	return element(0x18, []byte(t.UTC().Format("20060102150405Z")))
}

// extensionOf has the OID 2.5.29.arc, or an unknown one for 0.
func extensionOf(arc byte, critical bool, value ...byte) []byte {
	oid := []byte{6, 3, 0x55, 0x1d, arc}
	if arc == 0 {
		oid = []byte{6, 3, 0x2a, 3, 4}
	}
	if critical {
		return element(0x30, oid, []byte{1, 1, 0xff}, element(4, value))
	}
	return element(0x30, oid, element(4, value))
}

func revokedEntry(serial []byte, at []byte, extensions ...[]byte) []byte {
	parts := [][]byte{element(2, serial), at}
	if len(extensions) > 0 {
		parts = append(parts, element(0x30, extensions...))
	}
	return element(0x30, parts...)
}

var ecdsaSHA256 = []byte{0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02}

// numbered are the extensions of a CRL with the number.
func (w *kept) numbered(ca string, number byte, more ...[]byte) []byte {
	id := w.cas[ca].cert.SubjectKeyId
	all := append([][]byte{extensionOf(35, false, element(0x30, element(0x80, id))...), extensionOf(20, false, 2, 1, number)}, more...)
	return element(0xa0, element(0x30, all...))
}

func (d *draft) der(t testing.TB) []byte {
	t.Helper()
	tbs := element(0x30, d.version, d.inner, d.name, d.this, d.next, d.entries, d.extensions, d.tail)
	sum := sha256.Sum256(tbs)
	signature, err := ecdsa.SignASN1(rand.Reader, d.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	crl := element(0x30, tbs, d.outer, element(3, []byte{0}, signature))
	if d.spoil != nil {
		crl = d.spoil(crl)
	}
	return crl
}

// The cases of PKITS sections 4.4, 4.14 and 4.15, and their like for the other rules, by the verbs: a refusal is one line and changes nothing; what is
// taken is what is answered. `crl inspect` reads each, or says that it is no CRL, and changes nothing either. OCSP-CRL-01 to OCSP-CRL-18, OCSP-CRL-21.
func TestPKITSByVerbs(t *testing.T) {
	w := newKept(t, "")
	w.k.close()
	w.k = nil
	config := filepath.Join(w.dir, "ocspd.toml")
	verb := func(argv ...string) (int, string, string) {
		var out, errs bytes.Buffer
		code := run(append([]string{"-c", config}, argv...), &out, &errs)
		return code, out.String(), errs.String()
	}
	standing := func() (all string) {
		t.Helper()
		for _, serial := range []string{"0x01", "0x02", "0x03", "0x7f", "0x80"} {
			code, out, errs := verb("lookup", "one", serial)
			if code != 0 {
				t.Fatal(errs)
			}
			all += out
		}
		return all
	}
	now := time.Now()
	at := utcTime(now.Add(-48 * time.Hour))
	reason := func(r byte) []byte { return extensionOf(21, false, 10, 1, r) }
	number := byte(10)
	sound := func() *draft {
		return &draft{version: element(2, []byte{1}), inner: ecdsaSHA256, outer: ecdsaSHA256, name: w.cas["one"].cert.RawSubject, key: w.cas["one"].key,
			this: utcTime(now.Add(-time.Hour + time.Duration(number)*time.Second)), next: utcTime(now.Add(24 * time.Hour)),
			entries:    element(0x30, revokedEntry([]byte{1}, at, reason(1))),
			extensions: w.numbered("one", number)}
	}
	put := func(d *draft) (code int, stdout, stderr string) {
		file := filepath.Join(w.dir, "case.crl")
		w.write("case.crl", d.der(t))
		return verb("crl", "import", "--issuer", "one", file)
	}
	if code, _, errs := put(sound()); code != 0 {
		t.Fatal(errs)
	}
	entries := func(more ...[]byte) []byte {
		return element(0x30, append([][]byte{revokedEntry([]byte{1}, at, reason(1))}, more...)...)
	}
	long := append([]byte{0x7f}, bytes.Repeat([]byte{0x11}, 19)...)
	for _, c := range []struct {
		name   string
		change func(*draft)
		want   string // of the error; "" if it is taken
		serial string // where it is taken: asked for
		status string // and its status, in the table that lookup prints
	}{
		{"BadCRLSignature", func(d *draft) { d.spoil = func(b []byte) []byte { b[len(b)-1] ^= 1; return b } }, "does not verify", "", ""},
		{"BadCRLIssuerName", func(d *draft) { d.name = w.cas["two"].cert.RawSubject }, "issued by", "", ""},
		{"WrongCRL", func(d *draft) { d.key, d.name = w.cas["two"].key, w.cas["two"].cert.RawSubject }, "does not verify", "", ""},
		{"another CA's key under this name", func(d *draft) { d.key = w.cas["two"].key }, "does not verify", "", ""},
		{"another key's identifier", func(d *draft) { d.extensions = w.numbered("two", number) }, "authorityKeyIdentifier", "", ""},
		{"UnknownCRLEntryExtension", func(d *draft) { d.entries = entries(revokedEntry([]byte{2}, at, extensionOf(0, true, 5, 0))) }, "critical extension", "", ""},
		{"UnknownCRLExtension", func(d *draft) { d.extensions = w.numbered("one", number, extensionOf(0, true, 5, 0)) }, "critical extension", "", ""},
		{"unknown extensions that are not critical", func(d *draft) {
			d.extensions = w.numbered("one", number, extensionOf(0, false, 5, 0))
			d.entries = entries(revokedEntry([]byte{2}, at, extensionOf(0, false, 5, 0)))
		}, "", "0x02", "revoked"},
		{"OldCRLnextUpdate", func(d *draft) { d.next = utcTime(now.Add(-time.Minute)) }, "expired", "", ""},
		{"pre2000CRLnextUpdate", func(d *draft) {
			d.this, d.next = element(0x17, []byte("980101120100Z")), element(0x17, []byte("990101120100Z"))
		}, "expired", "", ""},
		{"GeneralizedTimeCRLnextUpdate", func(d *draft) { d.next = generalTime(time.Date(2050, 1, 1, 12, 1, 0, 0, time.UTC)) }, "", "0x01", "keyCompromise"},
		{"NegativeSerialNumber", func(d *draft) { d.entries = entries(revokedEntry([]byte{0x80}, at, reason(1))) }, "", "0x80", "good"}, // the CRL has -128
		{"255 and -1", func(d *draft) { d.entries = entries(revokedEntry([]byte{0, 0xff}, at, reason(1))) }, "", "0xff", "revoked"},
		{"LongSerialNumber", func(d *draft) { d.entries = entries(revokedEntry(long, at, reason(1))) }, "", fmt.Sprintf("0x%x", long), "revoked"},
		{"a serial number of 21 octets", func(d *draft) { d.entries = entries(revokedEntry(append(long, 1), at)) }, "20 octets", "", ""},
		{"a serial number that is not minimal", func(d *draft) { d.entries = entries(revokedEntry([]byte{0, 1}, at)) }, "serial", "", ""},
		{"onlyContainsUserCerts", func(d *draft) { d.extensions = w.numbered("one", number, extensionOf(28, true, usersOnly...)) }, "no configured source", "", ""},
		{"onlyContainsCACerts", func(d *draft) { d.extensions = w.numbered("one", number, extensionOf(28, true, authoritiesOnly...)) }, "no configured source", "", ""},
		{"onlyContainsAttributeCerts", func(d *draft) { d.extensions = w.numbered("one", number, extensionOf(28, true, attributesOnly...)) }, "attribute certificates", "", ""},
		{"onlySomeReasons", func(d *draft) { d.extensions = w.numbered("one", number, extensionOf(28, true, compromisesOnly...)) }, "no configured source", "", ""},
		{"IDPwithindirectCRL", func(d *draft) { d.extensions = w.numbered("one", number, extensionOf(28, true, indirect...)) }, "indirect", "", ""},
		{"an empty issuingDistributionPoint", func(d *draft) { d.extensions = w.numbered("one", number, extensionOf(28, true, 0x30, 0)) }, "issuingDistributionPoint", "", ""},
		{"two scopes at once", func(d *draft) {
			d.extensions = w.numbered("one", number, extensionOf(28, true, 0x30, 6, 0x81, 1, 0xff, 0x82, 1, 0xff))
		}, "issuingDistributionPoint", "", ""},
		{"cRLIssuer of an entry", func(d *draft) {
			d.entries = entries(revokedEntry([]byte{2}, at, extensionOf(29, true, element(0x30, element(0xa4, w.cas["two"].cert.RawSubject))...)))
		}, "indirect", "", ""},
		{"deltaCRLIndicatorNoBase", func(d *draft) { d.extensions = w.numbered("one", number, extensionOf(27, true, 2, 1, 100)) }, "below", "", ""},
		{"a delta on a base that is not installed", func(d *draft) { d.extensions = w.numbered("one", 120, extensionOf(27, true, 2, 1, 110)) }, "builds on number", "", ""},
		{"removeFromCRL in a complete CRL", func(d *draft) { d.entries = entries(revokedEntry([]byte{2}, at, reason(8))) }, "", "0x02", "revoked"},
		{"reason 7", func(d *draft) { d.entries = entries(revokedEntry([]byte{2}, at, reason(7))) }, "", "0x02", "unspecified"},
		{"a serial number twice", func(d *draft) {
			d.entries = entries(revokedEntry([]byte{3}, at, reason(6)), revokedEntry([]byte{3}, at, reason(1)))
		}, "", "0x03", "keyCompromise"},
		{"two reasons in one entry", func(d *draft) { d.entries = entries(revokedEntry([]byte{2}, at, reason(1), reason(4))) }, "twice", "", ""},
		{"two numbers", func(d *draft) { d.extensions = w.numbered("one", number, extensionOf(20, false, 2, 1, number)) }, "twice", "", ""},
		{"no nextUpdate", func(d *draft) { d.next = nil }, "no nextUpdate", "", ""},
		{"nextUpdate before thisUpdate", func(d *draft) { d.next = utcTime(now.Add(-2 * time.Hour)) }, "not after thisUpdate", "", ""},
		{"thisUpdate in the future", func(d *draft) { d.this = utcTime(now.Add(time.Hour)) }, "lies after now", "", ""},
		{"a time without seconds", func(d *draft) { d.this = element(0x17, []byte(now.UTC().Format("0601021504Z"))) }, "not a time", "", ""},
		{"a revocationDate with a zone", func(d *draft) {
			d.entries = entries(revokedEntry([]byte{2}, element(0x17, []byte("260101000000+0000"))))
		}, "not a time", "", ""},
		{"version 1", func(d *draft) { d.version, d.extensions = nil, nil }, "", "0x01", "revoked"},
		{"version 1 with extensions", func(d *draft) { d.version = nil }, "version 1", "", ""},
		{"version 3", func(d *draft) { d.version = element(2, []byte{2}) }, "version", "", ""},
		{"the algorithm inside is another", func(d *draft) {
			d.inner = append(bytes.Clone(ecdsaSHA256[:11]), 3)
		}, "differs", "", ""},
		{"something after the extensions", func(d *draft) { d.tail = []byte{5, 0} }, "after crlExtensions", "", ""},
		{"an octet after the end", func(d *draft) { d.spoil = func(b []byte) []byte { return append(b, 0) } }, "after the end", "", ""},
		{"an octet missing", func(d *draft) { d.spoil = func(b []byte) []byte { return b[:len(b)-1] } }, "are left", "", ""},
		{"an indefinite length", func(d *draft) {
			d.spoil = func(b []byte) []byte { b = append(b, 0, 0); b[1] = 0x80; return b }
		}, "length", "", ""},
		{"no entries", func(d *draft) { d.entries = nil }, "", "0x01", "keyCompromise"}, // it stays: nothing is silently un-revoked
		{"an empty list", func(d *draft) { d.entries = element(0x30) }, "", "0x01", "keyCompromise"},
		{"the number before", func(d *draft) { d.extensions = w.numbered("one", 10) }, "older", "", ""},
		{"HTML", func(d *draft) { d.spoil = func([]byte) []byte { return []byte("<html><body>404</body></html>") } }, "HTML", "", ""},
		{"nothing", func(d *draft) { d.spoil = func([]byte) []byte { return nil } }, "empty", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			number++
			before := standing()
			d := sound()
			c.change(d)
			code, out, errs := put(d)
			after := standing()
			if c.want == "" {
				if code != 0 {
					t.Fatalf("refused: %s", errs)
				}
				if _, asked, _ := verb("lookup", "one", c.serial); !strings.Contains(asked, c.status) {
					t.Errorf("serial %s: want %s in\n%s", c.serial, c.status, asked)
				}
			} else {
				if code != 1 || !strings.Contains(errs, c.want) || strings.Count(errs, "\n") != 1 || out != "" {
					t.Errorf("exit %d, %q; want 1 and one line with %q\n%s", code, errs, c.want, out)
				}
				if after != before {
					t.Errorf("refused, and\n%sbecame\n%s", before, after)
				}
			}
			if code, _, errs := verb("crl", "inspect", filepath.Join(w.dir, "case.crl")); code > 1 || code == 1 && errs == "" {
				t.Errorf("inspect: exit %d, %q", code, errs)
			}
			if standing() != after {
				t.Error("inspect changed something")
			}
		})
	}
}
