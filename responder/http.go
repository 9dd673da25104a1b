package responder

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

//go:embed page.html
var page []byte // for people who open the responder's address in a browser

const (
	allowed = "GET, HEAD, POST"
	// maxPrefix bounds the path segments that may stand before the request in a GET.
	maxPrefix = 4
)

var mediaTypes = []string{"application/ocsp-response"}

// headers are those of a cacheable answer, made once: values of an http.Header that nobody changes.
type headers struct {
	length, etag, lastModified, expires []string
	control                             atomic.Pointer[cacheControl] // the last that was sent
}

type cacheControl struct {
	age   int // seconds
	value []string
}

func newHeaders(a *Answer) *headers {
	digest := sha256.Sum256(a.DER)
	return &headers{
		length:       []string{strconv.Itoa(len(a.DER))},
		etag:         []string{`"` + hex.EncodeToString(digest[:]) + `"`},
		lastModified: []string{a.ThisUpdate.Format(http.TimeFormat)},
		expires:      []string{a.NextUpdate.Format(http.TimeFormat)},
	}
}

// maxAge is made anew once a second at most.
func (h *headers) maxAge(age int) []string {
	c := h.control.Load()
	if c == nil || c.age != age {
		c = &cacheControl{age, []string{"max-age=" + strconv.Itoa(age) + ", public, no-transform, must-revalidate"}}
		h.control.Store(c)
	}
	return c.value
}

// Handler is the HTTP binding of RFC 6960 appendix A. It is no ServeMux, which would redirect a path that holds `//`. Every
// OCSP answer, an error too, has HTTP status 200, since clients read none from another. maxBody and maxPath are in octets.
func (f *Front) Handler(maxBody, maxPath int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost:
			f.post(w, r, maxBody)
		case http.MethodGet, http.MethodHead:
			f.get(w, r, maxPath)
		default:
			w.Header().Set("Allow", allowed)
			w.WriteHeader(http.StatusMethodNotAllowed)
		}
	})
}

func (f *Front) post(w http.ResponseWriter, r *http.Request, maxBody int) {
	if r.ContentLength > int64(maxBody) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	body, err := readBody(w, r, maxBody)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	case err != nil: // the client went away, or was too slow
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	reply := f.Respond(r.Context(), body)
	if !reply.Cacheable {
		uncacheable(w.Header(), &reply)
	}
	send(w, &reply)
}

// readBody allocates no more than what was announced or, when nothing was, what has arrived.
func readBody(w http.ResponseWriter, r *http.Request, max int) ([]byte, error) {
	if r.ContentLength >= 0 {
		body := make([]byte, r.ContentLength)
		_, err := io.ReadFull(r.Body, body)
		return body, err
	}
	return io.ReadAll(http.MaxBytesReader(w, r.Body, int64(max)))
}

func (f *Front) get(w http.ResponseWriter, r *http.Request, maxPath int) {
	if len(r.RequestURI) > maxPath {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusRequestURITooLong)
		return
	}
	path := target(r)
	if path == "/" {
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Length", strconv.Itoa(len(page)))
		h.Set("Cache-Control", "max-age=3600")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		h.Set("X-Content-Type-Options", "nosniff")
		w.Write(page)
		return
	}
	path, _, _ = strings.Cut(path, "?")
	der, exact := payload(strings.TrimPrefix(path, "/"))
	if der != nil && !exact {
		f.counts.Defects.Add(1)
	}
	reply := f.Respond(r.Context(), der)
	if !reply.Cacheable {
		uncacheable(w.Header(), &reply)
		send(w, &reply)
		return
	}
	now := f.now()
	until, modified := reply.modifiedSince(r, now)
	reply.cacheable(w.Header(), now, until)
	if modified {
		send(w, &reply)
	} else {
		w.WriteHeader(http.StatusNotModified)
	}
}

// send leaves it to net/http that a HEAD has no body.
func send(w http.ResponseWriter, reply *Reply) {
	h := w.Header()
	h["Content-Type"] = mediaTypes
	if reply.Cacheable {
		h["Content-Length"] = reply.headers.length
	} else {
		h.Set("Content-Length", strconv.Itoa(len(reply.DER)))
	}
	w.Write(reply.DER)
}

func uncacheable(h http.Header, reply *Reply) {
	h.Set("Cache-Control", "no-store")
	if reply.Status == TryLater {
		h.Set("Retry-After", "10")
	}
}

// cacheable sets the headers of RFC 9919 section 7.2. max-age is counted at the moment of sending, to when a newer answer will be asked for, which
// is always before nextUpdate, and soon where a certificate is unknown. until is nextUpdate, or sooner where the client's copy may end sooner.
func (reply *Reply) cacheable(h http.Header, now, until time.Time) {
	fresh := reply.Refresh
	if until.Before(fresh) {
		fresh = until
	}
	age := int(fresh.Sub(now) / time.Second)
	if reply.Unknown {
		until = now.Add(time.Duration(max(age, 0)) * time.Second)
	}
	h["Cache-Control"] = reply.headers.maxAge(max(age, 0))
	h["Etag"] = reply.headers.etag
	h["Last-Modified"] = reply.headers.lastModified
	if until.Equal(reply.NextUpdate) {
		h["Expires"] = reply.headers.expires
	} else {
		h.Set("Expires", until.UTC().Format(http.TimeFormat))
	}
}

// modifiedSince judges the preconditions of RFC 9110 section 13: If-None-Match first, and If-Modified-Since only without it. A date names no
// representation: all answers of one thisUpdate have it, and the client's may be as old as thisUpdate itself. So it is confirmed while
// even that one holds, and only until its end: a copy past its nextUpdate must never be given new life.
func (reply *Reply) modifiedSince(r *http.Request, now time.Time) (until time.Time, modified bool) {
	if tags := r.Header.Values("If-None-Match"); len(tags) > 0 {
		for _, tag := range strings.Split(strings.Join(tags, ","), ",") {
			tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
			if tag == "*" || tag == reply.headers.etag[0] {
				return reply.NextUpdate, false
			}
		}
		return reply.NextUpdate, true
	}
	date := r.Header.Get("If-Modified-Since")
	if date == "" {
		return reply.NextUpdate, true
	}
	since, err := http.ParseTime(date)
	oldest := reply.ThisUpdate.Add(reply.NextUpdate.Sub(reply.ProducedAt))
	if err != nil || reply.ThisUpdate.After(since) || !now.Before(oldest) {
		return reply.NextUpdate, true
	}
	return oldest, false
}

// target is the request target from its path on, as the client wrote it: cleaning the path or decoding it twice would damage the base64 in it.
func target(r *http.Request) string {
	if strings.HasPrefix(r.RequestURI, "/") {
		return r.RequestURI
	}
	_, rest, _ := strings.Cut(r.RequestURI, "://") // the absolute form, as proxies send it
	if n := strings.IndexAny(rest, "/?"); n >= 0 {
		return rest[n:]
	}
	return ""
}

// payload finds the request in the path of a GET: all of it, or what follows a base path of a few segments. base64 holds `/`, so where
// the request begins is only known by reading it. exact is false where leniency was needed. Nil means that there is none.
func payload(path string) (der []byte, exact bool) {
	clean := true
	for range maxPrefix + 1 {
		if der, exact = decode(path); der != nil {
			return der, exact && clean
		}
		segment, rest, more := strings.Cut(path, "/")
		if !more {
			return nil, false
		}
		path, clean = rest, clean && segment != ""
	}
	return nil, false
}

// decode takes base64 that was percent-encoded once. It forgives what clients get wrong: line breaks, a space that was a `+`, missing padding.
func decode(s string) (der []byte, exact bool) {
	b := make([]byte, 0, len(s))
	exact = true
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			if i+2 >= len(s) {
				return nil, false
			}
			high, low := hexDigit(s[i+1]), hexDigit(s[i+2])
			if high < 0 || low < 0 {
				return nil, false
			}
			c = byte(high<<4 | low)
			i += 2
		}
		switch c {
		case '\r', '\n':
			exact = false
			continue
		case ' ':
			exact = false
			c = '+'
		}
		b = append(b, c)
	}
	if len(b)%4 != 0 {
		exact = false
	}
	trimmed := bytes.TrimRight(b, "=")
	if len(b)-len(trimmed) > 2 {
		return nil, false
	}
	der = make([]byte, base64.RawStdEncoding.DecodedLen(len(trimmed)))
	if _, err := base64.RawStdEncoding.Decode(der, trimmed); err != nil || !isSequence(der) {
		return nil, false
	}
	return der, exact
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}

// isSequence tells a request from a path segment that happens to be base64: it is one whole SEQUENCE.
func isSequence(der []byte) bool {
	s := cryptobyte.String(der)
	return s.SkipASN1(asn1.SEQUENCE) && s.Empty()
}
