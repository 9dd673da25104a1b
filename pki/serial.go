package pki

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// MaxSerial is the largest number of content octets of a serial number (RFC 5280 section 4.1.2.2).
const MaxSerial = 20

// Serial is a certificate serial number: the content octets of its DER INTEGER, sign preserved, 1 to 20 of
// them. It is comparable, and two Serials are equal exactly when the INTEGERs are. The zero value is no serial.
type Serial struct {
	n      uint8
	octets [MaxSerial]byte
}

// Errors of the functions that make a Serial.
var (
	ErrSerialLength    = errors.New("a serial number has 1 to 20 octets")
	ErrSerialForm      = errors.New("serial number is not a minimal DER INTEGER")
	ErrSerialAmbiguous = errors.New("a serial of digits only could be hex or decimal")
	errSerialHex       = errors.New("not hex; write dec: before decimal digits")
)

// SerialFromDER takes the content octets of a DER INTEGER, without tag and length.
func SerialFromDER(content []byte) (Serial, error) {
	var s Serial
	if len(content) == 0 || len(content) > MaxSerial {
		return s, ErrSerialLength
	}
	if len(content) > 1 && (content[0] == 0 && content[1] < 0x80 || content[0] == 0xff && content[1] >= 0x80) {
		return s, ErrSerialForm
	}
	s.n = uint8(copy(s.octets[:], content))
	return s, nil
}

// SerialFromBig is for the serial of a parsed certificate.
func SerialFromBig(n *big.Int) (Serial, error) {
	if n == nil {
		return Serial{}, ErrSerialLength
	}
	if n.Sign() < 0 {
		// Two's complement of the smallest whole number of octets that holds n: that of -n-1, inverted.
		m := new(big.Int).Not(n)
		b := m.Bytes()
		if len(b) == 0 || b[0] >= 0x80 {
			b = append([]byte{0}, b...)
		}
		for i := range b {
			b[i] = ^b[i]
		}
		return SerialFromDER(b)
	}
	b := n.Bytes()
	if len(b) == 0 || b[0] >= 0x80 {
		b = append([]byte{0}, b...)
	}
	return SerialFromDER(b)
}

// SerialFromHex reads the magnitude of a serial that is not negative: hex digits of either case, an odd number of them too, no prefix.
func SerialFromHex(digits string) (Serial, error) {
	if digits == "" {
		return Serial{}, errSerialHex
	}
	if len(digits) > 2*MaxSerial+2 {
		return Serial{}, ErrSerialLength
	}
	if len(digits)%2 == 1 {
		digits = "0" + digits
	}
	b, err := hex.DecodeString(digits)
	if err != nil {
		return Serial{}, errSerialHex
	}
	return SerialFromBig(new(big.Int).SetBytes(b))
}

// ParseSerial reads what a person typed: hex with or without 0x and colons, or dec: and decimal digits. Digits
// alone are ErrSerialAmbiguous, since a decimal reading of a hex serial would name another certificate.
func ParseSerial(s string) (Serial, error) {
	if d, ok := strings.CutPrefix(s, "dec:"); ok {
		if d == "" || strings.Trim(d, "0123456789") != "" {
			return Serial{}, fmt.Errorf("serial %q: not decimal", s)
		}
		if len(d) > 60 {
			return Serial{}, fmt.Errorf("serial %q: %w", s, ErrSerialLength)
		}
		n, _ := new(big.Int).SetString(d, 10)
		serial, err := SerialFromBig(n)
		if err != nil {
			return Serial{}, fmt.Errorf("serial %q: %w", s, err)
		}
		return serial, nil
	}
	h := s
	prefixed := len(h) > 2 && (h[:2] == "0x" || h[:2] == "0X")
	if prefixed {
		h = h[2:]
	}
	colons := strings.Contains(h, ":")
	h = strings.ReplaceAll(h, ":", "")
	if !prefixed && !colons && h != "" && strings.Trim(h, "0123456789") == "" {
		return Serial{}, fmt.Errorf("serial %s: %w; write 0x%s or dec:%s", s, ErrSerialAmbiguous, s, s)
	}
	n, err := SerialFromHex(h)
	if err != nil {
		return Serial{}, fmt.Errorf("serial %q: %w", s, err)
	}
	return n, nil
}

// IsZero reports whether s is the zero value, which is no serial number (the INTEGER 0 is one).
func (s Serial) IsZero() bool { return s.n == 0 }

// Bytes is a copy of the content octets of the DER INTEGER.
func (s Serial) Bytes() []byte { return append([]byte(nil), s.octets[:s.n]...) }

// Append adds the content octets of the DER INTEGER to b.
func (s *Serial) Append(b []byte) []byte { return append(b, s.octets[:s.n]...) }

// Len is the number of content octets.
func (s Serial) Len() int { return int(s.n) }

// Compare orders serials as SQLite orders their octets as BLOBs, which is how generation files are sorted.
func (s Serial) Compare(t Serial) int {
	return bytes.Compare(s.octets[:s.n], t.octets[:t.n])
}

// Big is the value as a number.
func (s Serial) Big() *big.Int {
	n := new(big.Int).SetBytes(s.octets[:s.n])
	if s.n > 0 && s.octets[0] >= 0x80 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*s.n)))
	}
	return n
}

// String is lower-case hex without separators, of whole octets and without the sign octet: 0x80 prints "80".
func (s Serial) String() string {
	n := s.Big()
	sign := ""
	if n.Sign() < 0 {
		sign = "-"
	}
	b := n.Bytes()
	if len(b) == 0 {
		b = []byte{0}
	}
	return sign + hex.EncodeToString(b)
}
