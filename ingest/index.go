package ingest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	der "golang.org/x/crypto/cryptobyte/asn1"

	"ocspd/pki"
)

// maxLine bounds a line of an index, in octets.
const maxLine = 64 << 10

// ReadIndex reads the database of openssl ca, index.txt. Rows V and E give good, since they prove that the serial was
// issued; rows R give revoked. A row that is not exactly as openssl writes it refuses the whole file and is named by its line.
// ErrIncomplete is a last line without an end: somebody is still writing.
//
// As openssl does, lines that begin with # are passed over, a tab after a backslash belongs to its field, and reasons
// may be of either case. A carriage return at the end of a line falls into the name, which is not looked at.
//
// The entries come in the order of the file, duplicates included: finding them would take memory for every serial.
// openssl writes none; whoever stores them lets revoked win over good, the earliest date among those revoked, and
// warns. ThisUpdate and NextUpdate are zero. The Snapshot can be replayed until s is closed.
func ReadIndex(s *Spool) (*pki.Snapshot, error) {
	snap := &pki.Snapshot{Kind: pki.Index, Digest: s.digest, Size: s.size}
	if err := readIndex(s.file, s.size, snap); err != nil {
		return nil, err
	}
	return snap, nil
}

func readIndex(src io.ReaderAt, size int64, snap *pki.Snapshot) error {
	warn := func(format string, args ...any) { snap.Warnings = append(snap.Warnings, fmt.Sprintf(format, args...)) }
	var odd oddities
	err := readRows(src, size, &odd, func(pki.Entry) error { snap.Count++; return nil })
	if err != nil {
		return err
	}
	if snap.Count == 0 {
		warn("the index has no rows: the CA has issued nothing, or this is the wrong file")
	}
	if o := odd[oddRemoval]; o.count > 0 {
		warn("%d rows with reason removeFromCRL; taken as revoked without a reason; the first is serial %s", o.count, o.first)
	}
	snap.Entries = func(yield func(pki.Entry) error) error { return readRows(src, size, new(oddities), yield) }
	return nil
}

func readRows(src io.ReaderAt, size int64, odd *oddities, yield func(pki.Entry) error) error {
	lines := bufio.NewReaderSize(io.NewSectionReader(src, 0, size), max(maxLine, windowSize))
	left := size
	for n := 1; ; n++ {
		line, err := lines.ReadSlice('\n')
		left -= int64(len(line))
		switch {
		case errors.Is(err, io.EOF) && left > 0:
			return fmt.Errorf("spool: %d octets of %d are missing: %w", left, size, io.ErrUnexpectedEOF)
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil
		case errors.Is(err, io.EOF):
			return fmt.Errorf("line %d: it has no end: %w; the index is read again shortly", n, ErrIncomplete)
		case errors.Is(err, bufio.ErrBufferFull) || err == nil && len(line) > maxLine:
			return fmt.Errorf("line %d: longer than %d octets; repair the index", n, maxLine)
		case err != nil:
			return fmt.Errorf("line %d: %w", n, err)
		}
		line = line[:len(line)-1]
		if len(line) > 0 && line[0] == '#' {
			continue
		}
		e, err := parseRow(line, odd)
		if err != nil {
			return fmt.Errorf("line %d: %w; repair the index", n, err)
		}
		if err := yield(e); err != nil {
			return err
		}
	}
}

// parseRow reads the six fields of a row: status, expiry, revocation, serial, file name and subject.
func parseRow(line []byte, odd *oddities) (e pki.Entry, err error) {
	if bytes.IndexByte(line, 0) >= 0 {
		return e, errors.New("a zero octet")
	}
	var fields [6][]byte
	n := 0
	for rest, more := line, true; more; n++ {
		var field []byte
		field, rest, more = cutField(rest)
		if n < len(fields) {
			fields[n] = field
		}
	}
	if n != len(fields) && looksLikeHTML(line) {
		return e, errors.New("this looks like an HTML page, not an index")
	}
	if n != len(fields) {
		return e, fmt.Errorf("%d fields between tabs where 6 belong", n)
	}
	status, expiry, revocation, serial := fields[0], fields[1], fields[2], fields[3]
	if e.Serial, err = parseIndexSerial(serial); err != nil {
		return e, err
	}
	if _, ok := parseIndexTime(expiry); !ok {
		return e, fmt.Errorf("expiry %q is no time as YYMMDDHHMMSSZ or YYYYMMDDHHMMSSZ", clip(expiry))
	}
	switch string(status) {
	case "V", "E":
		if len(revocation) != 0 {
			return e, fmt.Errorf("status %s with revocation %q; only status R has one", status, clip(revocation))
		}
		e.Status.State = pki.Good
		return e, nil
	case "R":
		e.Status, err = parseRevocation(revocation)
		if err == nil && e.Status.Reason == pki.RemoveFromCRL {
			e.Status.Reason = pki.Unspecified
			odd.note(oddRemoval, e.Serial)
		}
		return e, err
	}
	return e, fmt.Errorf("status %q where V, R or E belongs", clip(status))
}

// cutField splits at the first tab that no backslash precedes, as openssl does.
func cutField(b []byte) (field, rest []byte, more bool) {
	for from := 0; ; {
		i := bytes.IndexByte(b[from:], '\t')
		if i < 0 {
			return b, nil, false
		}
		if i += from; i == 0 || b[i-1] != '\\' {
			return b[:i], b[i+1:], true
		}
		from = i + 1
	}
}

func parseIndexTime[T string | []byte](s T) (time.Time, bool) {
	tag := der.UTCTime
	if len(s) == len("YYYYMMDDHHMMSSZ") {
		tag = der.GeneralizedTime
	}
	return parseTime(tag, []byte(s))
}

// openssl's words for the reasons, in lower case; it reads them in any case. The last two it does not know itself.
var indexReasons = map[string]pki.Reason{
	"unspecified": pki.Unspecified, "keycompromise": pki.KeyCompromise, "cacompromise": pki.CACompromise,
	"affiliationchanged": pki.AffiliationChanged, "superseded": pki.Superseded,
	"cessationofoperation": pki.CessationOfOperation, "certificatehold": pki.CertificateHold,
	"removefromcrl": pki.RemoveFromCRL, "privilegewithdrawn": pki.PrivilegeWithdrawn, "aacompromise": pki.AACompromise,
}

// parseRevocation reads DATE[,REASON[,ARGUMENT]]. With an argument come openssl's holdInstruction,OID; keyTime,TIME; CAkeyTime,TIME.
func parseRevocation(b []byte) (s pki.Status, err error) {
	date, reason, hasReason := strings.Cut(string(b), ",")
	s.State = pki.Revoked
	var ok bool
	if s.RevokedAt, ok = parseIndexTime(date); !ok {
		return s, fmt.Errorf("revocation date %q is no time as YYMMDDHHMMSSZ or YYYYMMDDHHMMSSZ", clip([]byte(date)))
	}
	if !hasReason {
		return s, nil
	}
	word, argument, hasArgument := strings.Cut(reason, ",")
	switch strings.ToLower(word) {
	case "holdinstruction":
		s.Reason = pki.CertificateHold
		if argument == "" {
			return s, errors.New("holdInstruction without the instruction's name")
		}
		return s, nil
	case "keytime":
		s.Reason = pki.KeyCompromise
	case "cakeytime":
		s.Reason = pki.CACompromise
	default:
		if s.Reason, ok = indexReasons[strings.ToLower(word)]; !ok {
			return s, fmt.Errorf("reason %q is not known", clip([]byte(word)))
		}
		if hasArgument {
			return s, fmt.Errorf("reason %s with something after it: %q", word, clip([]byte(argument)))
		}
		return s, nil
	}
	if s.InvalidityDate, ok = parseTime(der.GeneralizedTime, []byte(argument)); !ok {
		return s, fmt.Errorf("%s with %q, which is no time as YYYYMMDDHHMMSSZ", word, clip([]byte(argument)))
	}
	return s, nil
}

// parseIndexSerial reads hex digits of either case, of an odd number too, after a minus sign where the serial is negative.
func parseIndexSerial(b []byte) (pki.Serial, error) {
	digits, negative := bytes.CutPrefix(b, []byte("-"))
	if len(digits) == 0 {
		return pki.Serial{}, fmt.Errorf("serial %q has no hex digits", clip(b))
	}
	digits = bytes.TrimLeft(digits, "0")
	var octets [pki.MaxSerial + 1]byte // the first is that of the sign
	if (len(digits)+1)/2 > pki.MaxSerial {
		return pki.Serial{}, fmt.Errorf("serial %q: %w", clip(b), pki.ErrSerialLength)
	}
	for i := range digits {
		d, ok := hexDigit(digits[len(digits)-1-i])
		if !ok {
			return pki.Serial{}, fmt.Errorf("serial %q is not hex", clip(b))
		}
		octets[len(octets)-1-i/2] |= d << (4 * (i % 2))
	}
	if negative {
		carry := true // two's complement
		for i := len(octets) - 1; i >= 0; i-- {
			octets[i] = ^octets[i]
			if carry {
				octets[i]++
				carry = octets[i] == 0
			}
		}
	}
	sign := octets[:]
	for len(sign) > 1 && (sign[0] == 0 && sign[1] < 0x80 || sign[0] == 0xff && sign[1] >= 0x80) {
		sign = sign[1:]
	}
	s, err := pki.SerialFromDER(sign)
	if err != nil {
		return s, fmt.Errorf("serial %q: %w", clip(b), err)
	}
	return s, nil
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
