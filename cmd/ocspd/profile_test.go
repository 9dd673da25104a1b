package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a profile promises must be within reach of the sources that are configured, or the configuration is refused with the reason.
func TestProfiles(t *testing.T) {
	crl, index := "[[issuer.a.source]]\ncrl = \"a.crl\"\n", "[[issuer.a.source]]\nindex = \"index.txt\"\n"
	for _, c := range []struct{ rule, issuer, sources, want string }{
		{"OCSP-UNK-02", `profile = "webpki"`, crl, "a CRL"},
		{"OCSP-UNK-02", `unissued = "good"` + "\n" + `profile = "webpki"`, crl + index, "must be unknown or unauthorized"},
		{"OCSP-UNK-02", ``, crl, "unissued"},
		{"OCSP-UNK-08", `unissued = "perhaps"`, index, "unknown, unauthorized, revoked, good"},
		{"OCSP-XRV-04", `unissued = "revoked"` + "\n" + `profile = "webpki"`, crl + index, "must be unknown or unauthorized"},
		{"OCSP-TIM-06", `profile = "webpki"` + "\n" + `validity = "8d"`, crl + index, "validity"},
		{"OCSP-TIM-06", `profile = "webpki"` + "\n" + `validity = "7h"`, crl + index, "validity"},
		{"sound: webpki with an index", `profile = "webpki"`, crl + index, ""},
		{"sound: a CRL alone that says so", `unissued = "good"`, crl, ""},
	} {
		file := filepath.Join(t.TempDir(), "ocspd.toml")
		text := "[token.main]\nuri = \"pkcs11:token=t?module-path=/m.so\"\npin = \"file:pin\"\n[issuer.a]\ncertificate = \"a.pem\"\nkey = \"pkcs11:object=k\"\n" +
			c.issuer + "\n" + c.sources
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := readConfig(file)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.rule, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %q is not refused for %q: %v", c.rule, c.issuer, c.want, err)
		}
	}
}
