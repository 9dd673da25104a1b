package pki

import (
	"strings"
	"testing"
)

// What a person typed comes back in the error, since a script that reads a list of serials prints nothing else.
func TestParseSerialErrors(t *testing.T) {
	for s, want := range map[string]string{
		"":                               "not hex",
		"zz":                             "not hex",
		"0x":                             "not hex",
		"1234":                           "0x1234 or dec:1234",
		"dec:":                           "not decimal",
		"dec:-5":                         "not decimal",
		"dec:" + strings.Repeat("9", 50): "1 to 20 octets",
		"dec:" + strings.Repeat("9", 99): "1 to 20 octets",
		"0x" + strings.Repeat("ff", 20):  "1 to 20 octets", // which needs a 21st
	} {
		if _, err := ParseSerial(s); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "serial ") || !strings.Contains(err.Error(), s) {
			t.Errorf("%q: %v, want the serial and %q", s, err, want)
		}
	}
}
