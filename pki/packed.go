package pki

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// PackedSize is the number of octets of a Packed.
const PackedSize = 40

// packedKey is how many of them order it: the serial padded with zeros, then its length.
const packedKey = MaxSerial + 1

// Packed is a serial with its status in the fixed form in which both are stored: 20 octets of serial padded with
// zeros, its length, state, reason, source, date of revocation and invalidity date (seconds since 1970, big-endian).
// It has one form for one content, and it sorts as Serial.Compare does.
type Packed [PackedSize]byte

// noTime stands for a time that does not apply; 0 is 1970, which a CRL may well say.
const noTime = math.MinInt64

// Pack puts a status in its stored form. source is Record.Source; a store that knows the source otherwise may
// keep a mark of its own there.
func Pack(s Serial, st Status, source uint8) Packed {
	var p Packed
	copy(p[:], s.octets[:s.n])
	p[20], p[21], p[22], p[23] = s.n, uint8(st.State), uint8(st.Reason), source
	putTime(p[24:], st.RevokedAt)
	putTime(p[32:], st.InvalidityDate)
	return p
}

// Serial is the serial in p.
func (p *Packed) Serial() Serial {
	s := Serial{n: min(p[20], MaxSerial)}
	copy(s.octets[:], p[:s.n])
	return s
}

// State is the state in p, without the rest.
func (p *Packed) State() State { return State(p[21]) }

// Status is the status in p.
func (p *Packed) Status() Status {
	return Status{State(p[21]), Reason(p[22]), getTime(p[24:]), getTime(p[32:])}
}

// Record is the status and the source in p.
func (p *Packed) Record() Record { return Record{Status: p.Status(), Source: p[23]} }

// Source is what Pack was given as source.
func (p *Packed) Source() uint8 { return p[23] }

// SetSource replaces it.
func (p *Packed) SetSource(source uint8) { p[23] = source }

// Compare orders by serial alone, as Serial.Compare does.
func (p *Packed) Compare(q *Packed) int { return bytes.Compare(p[:packedKey], q[:packedKey]) }

// SameStatus reports whether p and q say the same of a serial, whatever their source.
func (p *Packed) SameStatus(q *Packed) bool {
	return p[21] == q[21] && p[22] == q[22] && bytes.Equal(p[24:], q[24:])
}

// Check reports what keeps p from being the stored form of a status that an answer may be made of.
func (p *Packed) Check() error {
	n := int(p[20])
	if n < 1 || n > MaxSerial {
		return ErrSerialLength
	}
	if n > 1 && (p[0] == 0 && p[1] < 0x80 || p[0] == 0xff && p[1] >= 0x80) {
		return ErrSerialForm
	}
	for _, b := range p[n:MaxSerial] {
		if b != 0 {
			return errors.New("serial is followed by other octets")
		}
	}
	revoked, invalidity := int64(binary.BigEndian.Uint64(p[24:])), int64(binary.BigEndian.Uint64(p[32:]))
	switch State(p[21]) {
	case Good:
		if p[22] != 0 || revoked != noTime || invalidity != noTime {
			return errors.New("good, yet with a reason or a date of revocation")
		}
	case Revoked:
		if !Reason(p[22]).Valid() {
			return fmt.Errorf("revoked for %s", Reason(p[22]))
		}
		if !encodable(revoked) || invalidity != noTime && !encodable(invalidity) {
			return errors.New("revoked at no time that an answer could carry")
		}
	default:
		return fmt.Errorf("state %d", p[21])
	}
	return nil
}

// encodable holds for the years 0 to 9999, which GeneralizedTime can write.
func encodable(seconds int64) bool { return seconds >= -62167219200 && seconds <= 253402300799 }

func putTime(b []byte, t time.Time) {
	seconds := int64(noTime)
	if !t.IsZero() {
		seconds = t.Unix()
	}
	binary.BigEndian.PutUint64(b, uint64(seconds))
}

func getTime(b []byte) time.Time {
	seconds := int64(binary.BigEndian.Uint64(b))
	if seconds == noTime {
		return time.Time{}
	}
	return time.Unix(seconds, 0).UTC()
}

// Ruling is what holds for one serial whatever the sorted records of a generation say of it. A State of Unknown
// rules that there is no record.
type Ruling struct {
	Serial Serial
	Record Record
}

// File names a file by its content: whoever opens it under its name checks the digest.
type File struct {
	Name   string // without a directory
	SHA256 [32]byte
	Count  int64 // records in it
}
