package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	maxRedirects = 3
	maxValidator = 1 << 10 // octets of an ETag or Last-Modified that are worth keeping
)

// Validators tell an unchanged source from a changed one without reading it. They belong to the location they came
// from, and to what was read then: keep them only once that is in force, or a refused source is never read again.
type Validators struct {
	ETag         string `json:"etag,omitempty"`          // of an http or https URL
	LastModified string `json:"last_modified,omitempty"` // of the same
	File         string `json:"file,omitempty"`          // of a path: device, inode, size, times of content and of inode
}

// Limits bound one fetch.
type Limits struct {
	Size int64         // octets; more is ErrTooLarge
	Time time.Duration // of a URL: from the first packet to the last octet

	// Arriving, if it is not nil, gives what is read in the place of r, which has size octets, or -1 where that is not known: for whoever counts them.
	Arriving func(r io.Reader, size int64) io.Reader
}

func (l Limits) arriving(r io.Reader, size int64) io.Reader {
	if l.Arriving == nil {
		return r
	}
	return l.Arriving(r, size)
}

// Fetched is what Fetch brought. The caller closes the Spool, which is nil when nothing has changed.
type Fetched struct {
	Spool       *Spool
	Validators  Validators
	NotModified bool
	From        string // the URL that answered in the end, after redirects, without a password; or the path
}

// Fetcher reads sources to spool files in one directory. It tries once: when to try again is the caller's to decide.
type Fetcher struct {
	dir    string
	client *http.Client
}

// NewFetcher spools to dir. Proxies come from the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY), certificates of TLS servers
// are checked against the system's, though it is the CRL's own signature that counts.
func NewFetcher(dir string) *Fetcher {
	return &Fetcher{dir: dir, client: &http.Client{
		CheckRedirect: checkRedirect,
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout:    30 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
			DisableCompression:     true, // so that the size limit is that of what crosses the wire, too
			DisableKeepAlives:      true, // a source is fetched every few minutes at most
		},
	}}
}

// DialBy makes dial, instead of this process, connect to where sources are. It comes before the first Fetch.
func (f *Fetcher) DialBy(dial func(ctx context.Context, network, address string) (net.Conn, error)) {
	f.client.Transport.(*http.Transport).DialContext = dial
}

func checkRedirect(r *http.Request, via []*http.Request) error {
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("more than %d redirects", maxRedirects)
	case r.URL.Scheme != "http" && r.URL.Scheme != "https":
		return fmt.Errorf("redirected to scheme %q; only http and https are followed", r.URL.Scheme)
	case r.URL.Scheme == "http" && via[len(via)-1].URL.Scheme == "https":
		return errors.New("redirected from https to http")
	}
	return nil
}

// Fetch reads location, an http or https URL or an absolute path, unless it is as it was when previous was given.
// What it reads is whole but not judged: give the Spool to ReadCRL or ReadIndex.
func (f *Fetcher) Fetch(ctx context.Context, location string, previous Validators, limits Limits) (*Fetched, error) {
	if limits.Size <= 0 || limits.Time <= 0 {
		return nil, fmt.Errorf("fetch %s: a limit of size or time is missing", redact(location))
	}
	fetch := f.fetchURL
	switch {
	case filepath.IsAbs(location):
		fetch = f.fetchPath
	case !isHTTP(location):
		return nil, fmt.Errorf("fetch %q: neither an http or https URL nor an absolute path", redact(location))
	}
	got, err := fetch(ctx, location, previous, limits)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", redact(location), err)
	}
	return got, nil
}

func isHTTP(location string) bool {
	u, err := url.Parse(location)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

// redact takes a password out of a URL.
func redact(location string) string {
	if u, err := url.Parse(location); err == nil && u.User != nil {
		return u.Redacted()
	}
	return location
}

func (f *Fetcher) fetchURL(ctx context.Context, location string, previous Validators, limits Limits) (*Fetched, error) {
	late := fmt.Errorf("not done within %v; check the network, or whether the server is overloaded", limits.Time)
	ctx, cancel := context.WithTimeoutCause(ctx, limits.Time, late)
	defer cancel()
	got, err := f.get(ctx, location, previous, limits)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return nil, cause
	}
	var wrapped *url.Error // its text repeats the URL
	if errors.As(err, &wrapped) {
		return nil, wrapped.Err
	}
	return got, err
}

func (f *Fetcher) get(ctx context.Context, location string, previous Validators, limits Limits) (*Fetched, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", "ocspd")
	r.Header.Set("Accept", "application/pkix-crl, */*;q=0.5")
	if previous.ETag != "" {
		r.Header.Set("If-None-Match", previous.ETag)
	}
	if previous.LastModified != "" {
		r.Header.Set("If-Modified-Since", previous.LastModified)
	}
	a, err := f.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	got := &Fetched{From: a.Request.URL.Redacted()}
	switch {
	case a.StatusCode == http.StatusNotModified && previous.ETag+previous.LastModified != "":
		got.NotModified, got.Validators = true, previous
		return got, nil
	case a.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("status %d %s from %s; check the URL, or ask who runs the server", a.StatusCode, http.StatusText(a.StatusCode), got.From)
	case a.ContentLength > limits.Size:
		return nil, fmt.Errorf("%d octets announced: %w; at most %d are allowed", a.ContentLength, ErrTooLarge, limits.Size)
	}
	got.Spool, err = NewSpool(f.dir, limits.arriving(a.Body, a.ContentLength), limits.Size)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, errors.New("the connection broke before the answer was whole")
	} else if err != nil {
		return nil, err
	}
	got.Validators = Validators{ETag: validator(a.Header, "ETag"), LastModified: validator(a.Header, "Last-Modified")}
	return got, nil
}

func validator(h http.Header, name string) string {
	if v := h.Get(name); len(v) <= maxValidator {
		return v
	}
	return ""
}

// fetchPath copies a regular file; a pipe or a device could block for ever or never end. A file that changes under the copy is
// ErrChanging: whoever publishes there should write aside and rename.
func (f *Fetcher) fetchPath(_ context.Context, path string, previous Validators, limits Limits) (*Fetched, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, bare(err)
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file but %s; name the file itself", info.Mode().Type())
	}
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, bare(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, bare(err)
	}
	if !info.Mode().IsRegular() { // replaced since
		return nil, fmt.Errorf("not a regular file but %s; name the file itself", info.Mode().Type())
	}
	got := &Fetched{From: path, Validators: Validators{File: identity(info)}}
	if got.Validators.File == previous.File {
		got.NotModified = true
		return got, nil
	}
	if info.Size() > limits.Size {
		return nil, fmt.Errorf("%d octets: %w; at most %d are allowed", info.Size(), ErrTooLarge, limits.Size)
	}
	if got.Spool, err = NewSpool(f.dir, limits.arriving(file, info.Size()), limits.Size); err != nil {
		return nil, err
	}
	after, err := file.Stat()
	if err == nil && (identity(after) != got.Validators.File || got.Spool.size != after.Size()) {
		err = ErrChanging
	}
	if err != nil {
		got.Spool.Close()
		return nil, bare(err)
	}
	if s := info.Sys().(*syscall.Stat_t); time.Since(time.Unix(s.Ctim.Unix())) < racy {
		got.Validators = Validators{}
	}
	return got, nil
}

// racy is how old a change must be for the times of a file to tell it from the next one: those of a file system tick slowly.
// A file changed more lately is read again the next time.
const racy = 2 * time.Second

// bare is the error without operation and path, which Fetch names itself.
func bare(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// identity tells one content of a file from another. The time of the inode is in it because the other can be set at will.
func identity(info os.FileInfo) string {
	s := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d:%d:%d.%09d:%d.%09d", s.Dev, s.Ino, s.Size, s.Mtim.Sec, s.Mtim.Nsec, s.Ctim.Sec, s.Ctim.Nsec)
}
