package ingest

import (
	"fmt"
	"io"
	"time"

	"golang.org/x/crypto/cryptobyte/asn1"
)

const (
	windowSize = 256 << 10 // octets of a file in memory at a time
	maxElement = 64 << 10  // octets of the largest element read whole: an entry, the issuer's name, the CRL extensions
)

// malformed is what is wrong at an octet of the file.
func malformed(at int64, format string, args ...any) error {
	return fmt.Errorf("octet %d: %s; get the CRL again from the CA", at, fmt.Sprintf(format, args...))
}

// walker reads the elements of a constructed DER element one after another, through a window of the file.
type walker struct {
	src    io.ReaderAt
	end    int64  // in the file: where the constructed element ends
	next   int64  // in the file: what follows the window
	unread []byte // of the window
	window []byte
}

// newWalker walks the octets from start up to end. size is that of the window, for a walk known to be short.
func newWalker(src io.ReaderAt, start, end int64, size int) *walker {
	return &walker{src: src, end: end, next: start, window: make([]byte, size)}
}

// offset is the place in the file of what is read next.
func (w *walker) offset() int64 { return w.next - int64(len(w.unread)) }

func (w *walker) done() bool { return w.offset() >= w.end }

// skip goes n octets ahead without reading them.
func (w *walker) skip(n int64) {
	if n <= int64(len(w.unread)) {
		w.unread = w.unread[n:]
		return
	}
	w.next, w.unread = w.offset()+n, nil
}

// fill brings n octets into the window, or what is left up to the end.
func (w *walker) fill(n int) error {
	if len(w.unread) >= n || w.next >= w.end {
		return nil
	}
	kept := copy(w.window, w.unread)
	room := w.window[kept:min(int64(len(w.window)), int64(kept)+w.end-w.next)]
	if read, err := w.src.ReadAt(room, w.next); read < len(room) {
		return fmt.Errorf("spool: %d octets at %d of which %d came: %w", len(room), w.next, read, err)
	}
	w.next += int64(len(room))
	w.unread = w.window[:kept+len(room)]
	return nil
}

// header reads the tag and the length of the next element, which must be what DER wants (X.690 section 10.1: definite
// and in the fewest octets) and fit into the constructed element. It returns how many octets tag and length took.
func (w *walker) header(tag asn1.Tag, name string) (octets int, length int64, err error) {
	at := w.offset()
	if err := w.fill(6); err != nil {
		return 0, 0, err
	}
	b := w.unread
	if len(b) == 0 {
		return 0, 0, malformed(at, "%s is missing", name)
	}
	if b[0] != byte(tag) {
		return 0, 0, malformed(at, "tag 0x%02x where %s (0x%02x) belongs", b[0], name, byte(tag))
	}
	octets, length = lengthOf(b)
	if octets == 0 {
		return 0, 0, malformed(at, "length of %s is not valid DER", name)
	}
	if left := w.end - at - int64(octets); length > left {
		return 0, 0, malformed(at, "%s claims %d octets where %d are left", name, length, max(left, 0))
	}
	return octets, length, nil
}

// lengthOf reads the length after a tag of one octet. It returns how many octets tag and length took, 0 for a length that is
// indefinite, not minimal, cut off, or of more than four octets.
func lengthOf(b []byte) (octets int, length int64) {
	if len(b) < 2 {
		return 0, 0
	}
	if b[1] < 0x80 {
		return 2, int64(b[1])
	}
	n := int(b[1] & 0x7f)
	if n == 0 || n > 4 || len(b) < 2+n || b[2] == 0 {
		return 0, 0
	}
	for _, o := range b[2 : 2+n] {
		length = length<<8 | int64(o)
	}
	if length < 0x80 {
		return 0, 0
	}
	return 2 + n, length
}

// enter reads tag and length of a constructed element and gives its end in the file; the walk goes on with what is in it.
func (w *walker) enter(tag asn1.Tag, name string) (end int64, err error) {
	octets, length, err := w.header(tag, name)
	if err != nil {
		return 0, err
	}
	w.skip(int64(octets))
	return w.offset() + length, nil
}

// element reads the next element whole, and says where in raw its content begins. raw holds until the next call.
func (w *walker) element(tag asn1.Tag, name string) (raw []byte, content int, err error) {
	octets, length, err := w.header(tag, name)
	if err != nil {
		return nil, 0, err
	}
	if length > maxElement {
		return nil, 0, malformed(w.offset(), "%s of %d octets; at most %d are read", name, length, maxElement)
	}
	n := octets + int(length)
	if err := w.fill(n); err != nil {
		return nil, 0, err
	}
	raw = w.unread[:n]
	w.unread = w.unread[n:]
	return raw, octets, nil
}

// peek reports whether an element with the tag comes next.
func (w *walker) peek(tag asn1.Tag) (bool, error) {
	if err := w.fill(1); err != nil {
		return false, err
	}
	return len(w.unread) > 0 && w.unread[0] == byte(tag), nil
}

// take splits an element with the tag off the front of b, which is in memory whole.
func take(b []byte, tag asn1.Tag) (content, rest []byte, ok bool) {
	if len(b) < 2 || b[0] != byte(tag) {
		return nil, nil, false
	}
	octets, length := 2, int(b[1])
	if length >= 0x80 {
		o, l := lengthOf(b)
		if o == 0 {
			return nil, nil, false
		}
		octets, length = o, int(l)
	}
	if length > len(b)-octets {
		return nil, nil, false
	}
	return b[octets : octets+length], b[octets+length:], true
}

// parseTime reads the content of a UTCTime or GeneralizedTime in the one form that RFC 5280 section 4.1.2.5 allows each:
// seconds there, no fraction, Z. Years before 1950, which UTCTime cannot say, are refused.
func parseTime(tag asn1.Tag, b []byte) (time.Time, bool) {
	switch {
	case tag == asn1.UTCTime && len(b) == 13:
		yy, ok := digits2(b)
		if ok && yy >= 50 {
			return parseClock(1900+yy, b[2:])
		}
		if ok {
			return parseClock(2000+yy, b[2:])
		}
	case tag == asn1.GeneralizedTime && len(b) == 15:
		cc, ok := digits2(b)
		yy, ok2 := digits2(b[2:])
		if year := 100*cc + yy; ok && ok2 && year >= 1950 {
			return parseClock(year, b[4:])
		}
	}
	return time.Time{}, false
}

// parseClock reads MMDDHHMMSSZ, 11 octets.
func parseClock(year int, b []byte) (time.Time, bool) {
	month, ok1 := digits2(b)
	day, ok2 := digits2(b[2:])
	hour, ok3 := digits2(b[4:])
	minute, ok4 := digits2(b[6:])
	second, ok5 := digits2(b[8:])
	if !(ok1 && ok2 && ok3 && ok4 && ok5) || b[10] != 'Z' ||
		month < 1 || month > 12 || day < 1 || day > daysIn(month, year) || hour > 23 || minute > 59 || second > 59 {
		return time.Time{}, false
	}
	return time.Date(year, time.Month(month), day, hour, minute, second, 0, time.UTC), true
}

func digits2(b []byte) (int, bool) {
	d1, d0 := b[0]-'0', b[1]-'0'
	return int(d1)*10 + int(d0), d1 <= 9 && d0 <= 9
}

func daysIn(month, year int) int {
	switch month {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 31
}
