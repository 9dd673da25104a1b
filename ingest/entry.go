package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"ocspd/pki"
)

// What may be odd in an entry without making the CRL unusable. The certificate is revoked all the same.
const (
	oddReason = iota
	oddRemoval
	oddInvalidity
	oddTime
	oddKinds
)

var oddTexts = [oddKinds]string{
	oddReason:     "a reason that does not exist or is not an ENUMERATED; taken as revoked without a reason",
	oddRemoval:    "removeFromCRL, which belongs in delta CRLs only; taken as revoked without a reason",
	oddInvalidity: "an invalidityDate that is not a time as in RFC 5280; passed over",
	oddTime:       "a revocationDate before 2050 written as GeneralizedTime",
}

// oddities counts what was odd, so that a million odd entries make one warning.
type oddities [oddKinds]struct {
	count int64
	first pki.Serial
}

func (o *oddities) note(kind int, s pki.Serial) {
	if o[kind].count == 0 {
		o[kind].first = s
	}
	o[kind].count++
}

func (o *oddities) warn(warn func(string, ...any)) {
	for kind, odd := range o {
		if odd.count > 0 {
			warn("%d entries with %s; the first is serial %s", odd.count, oddTexts[kind], odd.first)
		}
	}
}

// readEntries gives every entry of revokedCertificates, whose content is at start to end of src.
func readEntries(src io.ReaderAt, start, end int64, delta bool, odd *oddities, yield func(pki.Entry) error) error {
	if start == end {
		return nil
	}
	w := newWalker(src, start, end, windowSize)
	for !w.done() {
		at := w.offset()
		raw, content, err := w.element(der.SEQUENCE, "entry")
		if err != nil {
			return err
		}
		e, err := parseEntry(raw[content:], delta, odd)
		if err != nil && e.Serial.IsZero() {
			return malformed(at, "entry: %v", err)
		} else if err != nil {
			return malformed(at, "entry of serial %s: %v", e.Serial, err)
		}
		if err := yield(e); err != nil {
			return err
		}
	}
	return nil
}

// reasonExtensions is crlEntryExtensions with a reasonCode alone, up to the reason itself: what nearly every entry with extensions has.
var reasonExtensions = []byte{0x30, 0x0c, 0x30, 0x0a, 0x06, 0x03, 0x55, 0x1d, 0x15, 0x04, 0x03, 0x0a, 0x01}

// parseEntry reads the content of an entry: serial, revocationDate, crlEntryExtensions (RFC 5280 section 5.1.2.6).
func parseEntry(b []byte, delta bool, odd *oddities) (e pki.Entry, err error) {
	number, b, ok := take(b, der.INTEGER)
	if !ok {
		return e, errors.New("userCertificate is not an INTEGER")
	}
	if e.Serial, err = pki.SerialFromDER(number); err != nil {
		return e, err
	}
	e.Status.State = pki.Revoked
	tag := der.UTCTime
	if len(b) > 0 && b[0] == byte(der.GeneralizedTime) {
		tag = der.GeneralizedTime
	}
	date, b, ok := take(b, tag)
	if !ok {
		return e, errors.New("revocationDate is not a Time")
	}
	if e.Status.RevokedAt, ok = parseTime(tag, date); !ok {
		return e, fmt.Errorf("revocationDate %q is not a time as in RFC 5280 section 4.1.2.5", clip(date))
	}
	if tag == der.GeneralizedTime && e.Status.RevokedAt.Year() < 2050 {
		odd.note(oddTime, e.Serial)
	}
	if len(b) == len(reasonExtensions)+1 && bytes.HasPrefix(b, reasonExtensions) {
		setReason(&e, b[len(b)-1], delta, odd)
		return e, nil
	}
	if len(b) == 0 {
		return e, nil
	}
	return e, parseEntryExtensions(&e, b, delta, odd)
}

// parseEntryExtensions is RFC 5280 section 5.3. An extension that is critical and not known here refuses the CRL.
func parseEntryExtensions(e *pki.Entry, b []byte, delta bool, odd *oddities) error {
	list, err := readExtensions(b)
	if err != nil {
		return fmt.Errorf("crlEntryExtensions: %w", err)
	}
	for _, x := range list {
		switch string(x.oid) {
		case oidReasonCode:
			reason, rest, ok := take(x.value, der.ENUM)
			if !ok || len(rest) != 0 || len(reason) != 1 {
				odd.note(oddReason, e.Serial)
				continue
			}
			setReason(e, reason[0], delta, odd)
		case oidInvalidityDate:
			var ok bool
			if e.Status.InvalidityDate, ok = parseInvalidity(x.value); !ok {
				odd.note(oddInvalidity, e.Serial)
			}
		case oidCertificateIssuer:
			return errors.New("certificateIssuer: the CRL is indirect, which is not supported")
		default:
			if x.critical {
				return fmt.Errorf("critical extension %s is not known, so what the CRL means cannot be told (RFC 5280 section 5.3)", oidString(x.oid))
			}
		}
	}
	return nil
}

func setReason(e *pki.Entry, code byte, delta bool, odd *oddities) {
	switch r := pki.Reason(code); {
	case r.Valid(), r == pki.RemoveFromCRL && delta:
		e.Status.Reason = r
	case r == pki.RemoveFromCRL:
		odd.note(oddRemoval, e.Serial)
	default:
		odd.note(oddReason, e.Serial)
	}
}

func parseInvalidity(b cryptobyte.String) (t time.Time, ok bool) {
	date, rest, ok := take(b, der.GeneralizedTime)
	if !ok || len(rest) != 0 {
		return t, false
	}
	return parseTime(der.GeneralizedTime, date)
}
