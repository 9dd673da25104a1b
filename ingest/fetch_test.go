package ingest

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var roomy = Limits{Size: 1 << 20, Time: 10 * time.Second}

// contents reads and closes a spool.
func contents(t testing.TB, s *Spool) string {
	t.Helper()
	defer s.Close()
	b, err := io.ReadAll(io.NewSectionReader(s.file, 0, s.size))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func wantError(t testing.TB, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v; want one line with %q", err, w)
		}
	}
}

// OCSP-CRL-22: a conditional GET as HTTP wants it, and nothing sent that nobody needs.
func TestCRL22FetchURL(t *testing.T) {
	var seen *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r
		w.Header().Set("Content-Type", "text/html") // as some servers have it
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("ETag", `"one"`)
		w.Header().Set("Last-Modified", "Mon, 01 Jun 2026 10:00:00 GMT")
		if r.Header.Get("If-None-Match") == `"one"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		io.WriteString(w, "octets")
	}))
	defer server.Close()
	dir := t.TempDir()
	f := NewFetcher(dir)
	got, err := f.Fetch(t.Context(), server.URL+"/a.crl", Validators{}, roomy)
	if err != nil {
		t.Fatal(err)
	}
	v := Validators{ETag: `"one"`, LastModified: "Mon, 01 Jun 2026 10:00:00 GMT"}
	if s := contents(t, got.Spool); s != "octets" || got.Validators != v || got.NotModified || got.From != server.URL+"/a.crl" {
		t.Errorf("%q, %+v", s, got)
	}
	want := http.Header{"User-Agent": {"ocspd"}, "Accept": {"application/pkix-crl, */*;q=0.5"}, "Connection": {"close"}}
	if d := cmp.Diff(want, seen.Header); d != "" || seen.Method != http.MethodGet {
		t.Errorf("%s %s", seen.Method, d)
	}
	got, err = f.Fetch(t.Context(), server.URL+"/a.crl", v, roomy)
	if err != nil || !got.NotModified || got.Spool != nil || got.Validators != v {
		t.Errorf("%+v, error %v; want not modified", got, err)
	}
	if seen.Header.Get("If-Modified-Since") != v.LastModified || seen.Header.Get("Cookie") != "" {
		t.Errorf("header %v", seen.Header)
	}
	if left := openFiles(t, dir); len(left) != 0 {
		t.Errorf("files %v are left in the spool directory", left)
	}
}

// OCSP-CRL-22: every way in which a server can be no use.
func TestCRL22FetchRefusals(t *testing.T) {
	hang := make(chan struct{})
	mux := http.NewServeMux()
	status := func(path string, code int) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
	}
	status("/404", 404)
	status("/500", 500)
	status("/204", 204)
	status("/206", 206)
	status("/304", 304) // without having been asked
	mux.HandleFunc("/long-etag", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", `"`+strings.Repeat("x", maxValidator)+`"`)
	})
	mux.HandleFunc("/announced", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1001)) })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 1000)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/exact", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1000)) })
	mux.HandleFunc("/silent", func(http.ResponseWriter, *http.Request) { <-hang })
	mux.HandleFunc("/drip", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			w.Write([]byte{1})
			w.(http.Flusher).Flush()
			time.Sleep(20 * time.Millisecond)
		}
	})
	mux.HandleFunc("/broken", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.Write([]byte("short"))
	})
	to := func(path, target string) { mux.Handle(path, http.RedirectHandler(target, http.StatusFound)) }
	to("/r1", "/exact")
	to("/r2", "/r1")
	to("/r3", "/r2")
	to("/r4", "/r3")
	to("/file", "file:///etc/passwd")
	to("/ftp", "ftp://example.org/a.crl")
	server := httptest.NewServer(mux)
	defer server.Close()
	defer close(hang)
	secure := httptest.NewUnstartedServer(http.RedirectHandler(server.URL+"/exact", http.StatusFound))
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // it complains of the handshake that is to fail
	secure.StartTLS()
	defer secure.Close()

	dir := t.TempDir()
	f := NewFetcher(dir)
	limits := Limits{Size: 1000, Time: 10 * time.Second}
	for path, words := range map[string]string{
		"/404": "status 404 Not Found", "/500": "status 500", "/204": "status 204", "/206": "status 206", "/304": "status 304",
		"/announced": "1001 octets announced", "/endless": "more than 1000 octets", "/broken": "broke before the answer was whole",
		"/r4": "more than 3 redirects", "/file": `redirected to scheme "file"`, "/ftp": `redirected to scheme "ftp"`,
	} {
		_, err := f.Fetch(t.Context(), server.URL+path, Validators{}, limits)
		wantError(t, err, "fetch "+server.URL+path+": ", words)
		if (path == "/announced" || path == "/endless") && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%v is not ErrTooLarge", err)
		}
	}
	for _, path := range []string{"/exact", "/r3"} {
		got, err := f.Fetch(t.Context(), server.URL+path, Validators{}, limits)
		if err != nil || got.Spool.Size() != 1000 || got.From != server.URL+"/exact" {
			t.Fatalf("%s: %+v, %v", path, got, err)
		}
		got.Spool.Close()
	}
	got, err := f.Fetch(t.Context(), server.URL+"/long-etag", Validators{}, limits)
	if err != nil || got.Validators.ETag != "" {
		t.Fatalf("%+v, %v; want no ETag", got, err)
	}
	got.Spool.Close()
	short := Limits{Size: 1000, Time: 200 * time.Millisecond}
	for _, path := range []string{"/silent", "/drip"} {
		start := time.Now()
		_, err := f.Fetch(t.Context(), server.URL+path, Validators{}, short)
		wantError(t, err, "not done within 200ms")
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("%s took %v", path, d)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the keeper stops"))
	_, err = f.Fetch(ctx, server.URL+"/silent", Validators{}, limits)
	wantError(t, err, "the keeper stops")

	_, err = f.Fetch(t.Context(), secure.URL, Validators{}, limits)
	wantError(t, err, "certificate") // of an unknown CA
	f.client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: secure.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
	_, err = f.Fetch(t.Context(), secure.URL, Validators{}, limits)
	wantError(t, err, "redirected from https to http")

	for location, words := range map[string]string{
		"ftp://example.org/a": "neither an http or https URL nor an absolute path", "a.crl": "neither an http", "http://": "neither", "file:///a": "neither", "": "neither",
		"http://user:secret@127.0.0.1:1/a": "refused",
	} {
		_, err := f.Fetch(t.Context(), location, Validators{}, limits)
		wantError(t, err, words)
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%v tells the password", err)
		}
	}
	for _, l := range []Limits{{}, {Size: 1}, {Time: time.Second}} {
		_, err := f.Fetch(t.Context(), server.URL+"/exact", Validators{}, l)
		wantError(t, err, "a limit of size or time is missing")
	}
	if left := openFiles(t, dir); len(left) != 0 {
		t.Errorf("files %v are left in the spool directory", left)
	}
}

// The proxy of the environment is asked. net/http reads the environment once in a process, so this takes one of its own.
func TestFetchProxy(t *testing.T) {
	if os.Getenv("HTTP_PROXY") == "" {
		var asked string
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked = r.URL.String()
			io.WriteString(w, "by proxy")
		}))
		defer proxy.Close()
		c := exec.Command(os.Args[0], "-test.run=^TestFetchProxy$")
		c.Env = []string{"HTTP_PROXY=" + proxy.URL, "TMPDIR=" + t.TempDir()}
		if out, err := c.CombinedOutput(); err != nil || asked != "http://crl.example.org/a.crl" {
			t.Errorf("proxy was asked for %q, error %v\n%s", asked, err, out)
		}
		return
	}
	got, err := NewFetcher(t.TempDir()).Fetch(t.Context(), "http://crl.example.org/a.crl", Validators{}, roomy)
	if err != nil {
		t.Fatal(err)
	}
	if s := contents(t, got.Spool); s != "by proxy" {
		t.Errorf("%q", s)
	}
}

// age waits until the last change of a file is no longer racy.
func age(t testing.TB, name string) {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	c := info.Sys().(*syscall.Stat_t).Ctim
	time.Sleep(time.Until(time.Unix(c.Unix()).Add(racy + 10*time.Millisecond)))
}

// OCSP-CRL-22 for paths: what is unchanged is not read, what is no regular file never blocks.
func TestCRL22FetchPath(t *testing.T) {
	dir, spoolDir := t.TempDir(), t.TempDir()
	f := NewFetcher(spoolDir)
	name := writeFile(t, []byte("first"), dir, "a.crl")
	fetch := func(previous Validators) *Fetched {
		t.Helper()
		got, err := f.Fetch(t.Context(), name, previous, roomy)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	got := fetch(Validators{})
	if s := contents(t, got.Spool); s != "first" || got.NotModified || got.From != name {
		t.Errorf("%q, %+v", s, got)
	}
	if got.Validators != (Validators{}) {
		t.Error("a file changed just now got validators; the next change could fall into the same tick of the clock")
	}
	age(t, name)
	got = fetch(got.Validators)
	if s := contents(t, got.Spool); s != "first" {
		t.Errorf("%q", s)
	}
	v := got.Validators
	if got = fetch(v); !got.NotModified || got.Spool != nil || got.Validators != v {
		t.Errorf("%+v; want not modified", got)
	}
	// Same size and time, in place: only the inode's own time tells.
	info, _ := os.Stat(name)
	writeFile(t, []byte("other"), dir, "a.crl")
	if err := os.Chtimes(name, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if s := contents(t, fetch(v).Spool); s != "other" {
		t.Errorf("%q; want the changed file", s)
	}
	// A symbolic link is followed, as CAs publish so.
	link := filepath.Join(dir, "link")
	if err := os.Symlink("a.crl", link); err != nil {
		t.Fatal(err)
	}
	if got, err := f.Fetch(t.Context(), link, Validators{}, roomy); err != nil {
		t.Error(err)
	} else {
		got.Spool.Close()
	}

	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, words := range map[string]string{fifo: "not a regular file", dir: "not a regular file", "/dev/zero": "not a regular file", dir + "/absent": "no such file"} {
		start := time.Now()
		_, err := f.Fetch(t.Context(), path, Validators{}, roomy)
		wantError(t, err, "fetch "+path+": ", words)
		if strings.Count(err.Error(), path) != 1 {
			t.Errorf("%v names the path more than once", err)
		}
		if time.Since(start) > 20*time.Second {
			t.Errorf("%s blocked", path)
		}
	}
	_, err := f.Fetch(t.Context(), name, Validators{}, Limits{Size: 4, Time: time.Second})
	wantError(t, err, "5 octets")
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v is not ErrTooLarge", err)
	}
	if left := openFiles(t, spoolDir); len(left) != 0 {
		t.Errorf("files %v are left in the spool directory", left)
	}
}

// A file that grows or changes while it is copied is not taken.
func TestFetchChanging(t *testing.T) {
	dir := t.TempDir()
	name := writeFile(t, make([]byte, 8<<20), dir, "a.crl")
	file, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := byte(0); ; i++ {
			select {
			case <-stop:
				return
			default:
				file.WriteAt([]byte{i}, 0)
				file.Sync()
			}
		}
	}()
	f := NewFetcher(dir)
	limits := Limits{Size: 16 << 20, Time: time.Second}
	for range 100 {
		got, err := f.Fetch(t.Context(), name, Validators{}, limits)
		if err == nil {
			got.Spool.Close()
			continue // between two ticks of the clock
		}
		if !errors.Is(err, ErrChanging) {
			t.Error(err)
		}
		close(stop)
		<-done
		return
	}
	t.Error("100 copies of a file that changes all the time, and none noticed")
	close(stop)
	<-done
}

// What was spooled stays as it was, whatever becomes of the file: a CRL is checked and replayed from the same octets.
func TestSpoolIsOurs(t *testing.T) {
	ca := ed25519CA(t)
	name := writeFile(t, ca.sign(ca.newDraft().tbs()), t.TempDir(), "a.crl")
	got, err := NewFetcher(t.TempDir()).Fetch(t.Context(), name, Validators{}, roomy)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Spool.Close()
	snap, err := ReadCRL(got.Spool, ca.issuer, judged)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, make([]byte, 1000), name)
	if n := len(entriesOf(t, snap)); n != 2 {
		t.Errorf("%d entries", n)
	}
}
