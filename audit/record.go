package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"
)

// MaxRecord is the largest record in octets, encoded. Until a tile of 256 records is full, each of its sizes is kept as a file of
// its own, so that this bounds what a tile can cost: half a gigabyte at the very worst, some megabytes in practice.
const MaxRecord = 16 << 10

// Record is one event. Encoded it is one line of JSON, with its fields in this order, in one possible spelling.
type Record struct {
	Sequence uint64    // counts from 0, without gaps; Append sets it
	Time     time.Time // UTC, to the microsecond; Append fills in the current time when it is zero
	Event    string    // what happened, a dotted constant such as "crl.import"
	Actor    string    // who did it: a user of the machine, a role, a source
	Subject  string    // to what: an issuer, a key, a file; may be empty
	Outcome  string    // one word: "ok", "refused", "failed", …
	Details  []Detail  // anything else, in an order of its own; names are unique
}

// Detail is a named fact of a record.
type Detail struct{ Name, Value string }

// Detail gives the value of the detail of that name, or "".
func (r Record) Detail(name string) string {
	for _, d := range r.Details {
		if d.Name == name {
			return d.Value
		}
	}
	return ""
}

var (
	eventForm   = regexp.MustCompile(`^[a-z0-9]+(\.[a-z0-9-]+)+$`)
	outcomeForm = regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`)
)

// jsonRecord is the spelling of a Record.
type jsonRecord struct {
	Sequence *uint64   `json:"seq"`
	Time     time.Time `json:"time"`
	Event    string    `json:"event"`
	Actor    string    `json:"actor"`
	Subject  string    `json:"subject"`
	Outcome  string    `json:"outcome"`
	Details  details   `json:"details"`
}

// details is a JSON object that keeps its order.
type details []Detail

func (d details) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, x := range d {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := appendJSON(&b, x.Name); err != nil {
			return nil, err
		}
		b.WriteByte(':')
		if err := appendJSON(&b, x.Value); err != nil {
			return nil, err
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func (d *details) UnmarshalJSON(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return errors.New("details are no object")
	}
	for dec.More() {
		name, err := dec.Token() // the decoder lets only strings pass here
		if err != nil {
			return err
		}
		var value string
		if err := dec.Decode(&value); err != nil {
			return err
		}
		*d = append(*d, Detail{name.(string), value})
	}
	return nil
}

// appendJSON writes v without the escapes for HTML, and without the encoder's newline.
func appendJSON(b *bytes.Buffer, v any) error {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1)
	return nil
}

// MarshalJSON gives the line that stands in the log, so that what is printed is what was signed.
func (r Record) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	err := appendJSON(&b, jsonRecord{&r.Sequence, r.Time.UTC().Truncate(time.Microsecond), r.Event, r.Actor, r.Subject, r.Outcome, r.Details})
	return b.Bytes(), err
}

// encode judges a record and gives its line.
func (r Record) encode() ([]byte, error) {
	seen := map[string]bool{}
	for _, d := range r.Details {
		if d.Name == "" || seen[d.Name] {
			return nil, fmt.Errorf("record %s: detail %q is there twice or has no name", r.Event, d.Name)
		}
		seen[d.Name] = true
	}
	if !eventForm.MatchString(r.Event) || !outcomeForm.MatchString(r.Outcome) || r.Actor == "" {
		return nil, fmt.Errorf("record %q, outcome %q, actor %q: needs a dotted event, a word for the outcome, and an actor", r.Event, r.Outcome, r.Actor)
	}
	b, err := r.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", r.Event, err)
	}
	if len(b) > MaxRecord {
		return nil, fmt.Errorf("record %s: %d octets are more than the %d that a record may have", r.Event, len(b), MaxRecord)
	}
	return b, nil
}

// decode reads a line that encode wrote, and nothing else: unknown or missing fields, another order or spelling are errors.
func decode(line []byte) (Record, error) {
	var j jsonRecord
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&j); err != nil {
		return Record{}, err
	}
	if _, err := dec.Token(); err != io.EOF || j.Sequence == nil {
		return Record{}, errors.New("is not one record")
	}
	r := Record{*j.Sequence, j.Time, j.Event, j.Actor, j.Subject, j.Outcome, j.Details}
	if again, err := r.encode(); err != nil {
		return Record{}, err
	} else if !bytes.Equal(again, line) {
		return Record{}, errors.New("is a record in another spelling")
	}
	return r, nil
}
