package ingest

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
)

const pemLabel = "X509 CRL"

var dashes = []byte("-----") // at both ends of the first and the last line of a block

// toDER turns the spool of a CRL in PEM (RFC 7468) into one of its DER, in a second file that takes the place of the
// first; one in DER stays. Text before and after the block is passed over, a second block is refused.
func (s *Spool) toDER() error {
	start := make([]byte, 512)
	n, err := s.file.ReadAt(start, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("spool: %w", err)
	}
	start = start[:n]
	switch {
	case n == 0:
		return errors.New("the file is empty; get the CRL again from the CA")
	case start[0] == 0x30:
		return nil
	case looksLikeHTML(start):
		return errors.New("this looks like an HTML page, not a CRL; check the URL, perhaps a proxy or an error page answered")
	}
	p := &pemReader{lines: bufio.NewReaderSize(io.NewSectionReader(s.file, 0, s.size), maxElement)}
	if err := p.begin(); err != nil {
		return err
	}
	der, err := NewSpool(s.dir, base64.NewDecoder(base64.StdEncoding.Strict(), p), s.size)
	if err == nil {
		err = p.finish()
	}
	if err != nil {
		if der != nil {
			der.Close()
		}
		return fmt.Errorf("PEM, line %d: %w", p.line, err)
	}
	der.file.read = s.file.read
	s.file.Close()
	*s = *der
	return nil
}

func looksLikeHTML(b []byte) bool {
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	return bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("<"))
}

// pemReader reads the base64 text of the one block.
type pemReader struct {
	lines *bufio.Reader
	line  int    // number of the line last read
	text  []byte // of that line, not yet read
	last  bool   // the text ended in padding
	ended bool   // the END line was read
}

// nextLine gives a line without white space around it.
func (p *pemReader) nextLine() ([]byte, error) {
	b, err := p.lines.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, fmt.Errorf("a line of more than %d octets", maxElement)
	}
	if len(b) == 0 {
		return nil, err
	}
	p.line++
	return bytes.TrimSpace(b), nil
}

// label gives LABEL of a line -----WORD LABEL-----.
func label(line []byte, word string) (string, bool) {
	if !bytes.HasPrefix(line, dashes) {
		return "", false
	}
	s, ok := strings.CutPrefix(string(line), "-----"+word+" ")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(s, "-----")
}

func (p *pemReader) begin() error {
	for {
		b, err := p.nextLine()
		if errors.Is(err, io.EOF) {
			return errors.New("neither DER nor PEM: it does not begin with octet 0x30 and has no line -----BEGIN X509 CRL-----; get the CRL again from the CA")
		}
		if err != nil {
			return fmt.Errorf("neither DER nor PEM: %w before any line -----BEGIN X509 CRL-----; get the CRL again from the CA", err)
		}
		if l, ok := label(b, "BEGIN"); ok && l == pemLabel {
			return nil
		} else if ok {
			return fmt.Errorf("PEM, line %d: a block %q where an X509 CRL belongs; give the CRL alone", p.line, l)
		}
	}
}

// Read gives base64 text up to the END line.
func (p *pemReader) Read(b []byte) (int, error) {
	for len(p.text) == 0 {
		if p.ended {
			return 0, io.EOF
		}
		line, err := p.nextLine()
		if errors.Is(err, io.EOF) {
			return 0, errors.New("the file ends before the line -----END X509 CRL-----; get the CRL again from the CA")
		}
		if err != nil {
			return 0, err
		}
		if l, ok := label(line, "END"); ok && l == pemLabel {
			p.ended = true
			continue
		}
		if bytes.HasPrefix(line, dashes) {
			return 0, errors.New("another line where -----END X509 CRL----- belongs; get the CRL again from the CA")
		}
		if p.last && len(line) > 0 { // the decoder would take it for a text of its own
			return 0, errors.New("base64 text goes on after its end; get the CRL again from the CA")
		}
		p.text, p.last = line, bytes.HasSuffix(line, []byte("="))
	}
	n := copy(b, p.text)
	p.text = p.text[n:]
	return n, nil
}

// finish reads what follows the block, whose text was read up to the END line.
func (p *pemReader) finish() error {
	for {
		b, err := p.nextLine()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, ok := label(b, "BEGIN"); ok {
			return errors.New("a second PEM block; give the one CRL alone")
		}
	}
}
