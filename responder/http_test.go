package responder

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"ocspd/pki"
)

// OCSP-TIM-01: the whole suite runs where local time is not UTC.
func TestMain(m *testing.M) {
	time.Local = time.FixedZone("Asia/Tokyo", 9*3600)
	os.Exit(m.Run())
}

type httpAnswer struct {
	*http.Response
	body []byte
}

// exchangeRaw sends octets over TCP and reads n answers to requests of a method.
func (k *kit) exchangeRaw(addr, method string, n int, octets ...[]byte) []httpAnswer {
	k.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		k.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(bytes.Join(octets, nil)); err != nil {
		k.Fatal(err)
	}
	var answers []httpAnswer
	r := bufio.NewReader(c)
	for range n {
		a, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			k.Fatalf("answer %d to %.80q: %v", len(answers), octets[0], err)
		}
		body, err := io.ReadAll(a.Body)
		if err != nil {
			k.Fatal(err)
		}
		answers = append(answers, httpAnswer{a, body})
	}
	return answers
}

// send sends one request as written.
func (k *kit) send(addr, line string, headers string, body []byte) httpAnswer {
	k.Helper()
	method, _, _ := strings.Cut(line, " ")
	return k.exchangeRaw(addr, method, 1, []byte(line+" HTTP/1.1\r\nHost: x\r\n"+headers+"\r\n"), body)[0]
}

func (k *kit) get(addr, path, headers string) httpAnswer {
	k.Helper()
	return k.send(addr, "GET "+path, headers, nil)
}

func (k *kit) post(addr, path, headers string, body []byte) httpAnswer {
	k.Helper()
	return k.send(addr, "POST "+path, headers+"Content-Length: "+strconv.Itoa(len(body))+"\r\n", body)
}

// isOCSP wants HTTP 200 with an OCSP answer in the exact form (OCSP-REQ-06, OCSP-REQ-07); want is "good", or the error.
func (k *kit) isOCSP(what string, a httpAnswer, want string) {
	k.Helper()
	if a.StatusCode != 200 || a.Header.Get("Content-Type") != "application/ocsp-response" || a.Header.Get("Content-Length") != strconv.Itoa(len(a.body)) ||
		a.Header.Get("Content-Encoding") != "" || a.Header.Get("Vary") != "" || a.Header.Get("Set-Cookie") != "" || // OCSP-CCH-08
		a.Header.Get("Strict-Transport-Security") != "" || a.Header.Get("Date") == "" { // OCSP-REQ-18, OCSP-CCH-03
		k.Errorf("%s: %s %v", what, a.Status, a.Header)
	}
	got := ""
	if len(a.body) == 5 {
		got = ResponseStatus(a.body[4]).String()
	} else if len(a.body) > 5 {
		got = k.lint(a.body).singles[0].state()
	}
	if got != want {
		k.Errorf("%s: %s, want %s", what, got, want)
	}
}

func b64(der []byte) string { return base64.StdEncoding.EncodeToString(der) }

// requestHolding is a request about an unknown certificate whose base64 holds some text, and padding.
func requestHolding(t testing.TB, text string, tail ...byte) (der []byte, encoded string) {
	for n := range 16 {
		der = requests(certID(ca1, crypto.SHA1, append(bytes.Repeat([]byte{1}, 1+n), tail...)))
		if encoded = b64(der); strings.Contains(encoded, text) && strings.HasSuffix(encoded, "=") {
			return der, encoded
		}
	}
	t.Fatalf("no request holds %q", text)
	return nil, ""
}

// OCSP-REQ-01, OCSP-REQ-08: POST on any path, with any Content-Type.
func TestREQ01Post(t *testing.T) {
	k := newKit(t, private)
	addr := k.server().Listener.Addr().String()
	for _, path := range []string{"/", "/ocsp", "/ocsp/", "/a/b/c/d/e/f", "//", "/?x", "http://example.org/ocsp"} {
		k.isOCSP("POST "+path, k.post(addr, path, "Content-Type: application/ocsp-request\r\n", req("G")), "good")
	}
	for _, ct := range []string{"", "Content-Type: Application/OCSP-Request; charset=binary\r\n", "Content-Type: text/plain\r\n", "Content-Type: ;;;\r\n"} {
		k.isOCSP(ct, k.post(addr, "/", ct, req("G")), "good")
	}
	k.isOCSP("nothing", k.post(addr, "/", "", nil), "malformedRequest")
}

// OCSP-REQ-02, OCSP-REQ-03, OCSP-REQ-04: all ways to write a request into a path give one and the same answer, and no redirect. What only
// leniency reads is counted.
func TestREQ02GetForms(t *testing.T) {
	k := newKit(t, private)
	addr := k.server().Listener.Addr().String()
	slashes, slashed := requestHolding(t, "//", 0xff, 0xff, 0xff)
	pluses, plussed := requestHolding(t, "+", 0xfb, 0xef, 0xbe, 1)
	want := func(der []byte) []byte { return k.respond(der) }
	lines := ""
	for rest := slashed; rest != ""; {
		n := min(64, len(rest))
		lines, rest = lines+rest[:n]+"%0A", rest[n:]
	}
	for _, c := range []struct {
		name, path string
		der        []byte
		defect     bool
	}{
		{"as it is", "/" + slashed, slashes, false},
		{"escaped slashes", "/" + strings.ReplaceAll(slashed, "/", "%2F"), slashes, false},
		{"escaped slashes, lower case", "/" + strings.ReplaceAll(slashed, "/", "%2f"), slashes, false},
		{"a base path", "/ocsp/" + slashed, slashes, false},
		{"a base path of four", "/a/b/c/d/" + strings.ReplaceAll(slashed, "/", "%2F"), slashes, false},
		{"a plus", "/" + plussed, pluses, false},
		{"an escaped plus", "/" + strings.ReplaceAll(plussed, "+", "%2B"), pluses, false},
		{"escaped padding", "/" + strings.ReplaceAll(plussed, "=", "%3D"), pluses, false},
		{"OCSP-INT-05 escaped as Java does", "/" + url.QueryEscape(slashed), slashes, false},
		{"the absolute form", "http://example.org:2560/" + slashed, slashes, false},
		{"the absolute form, a base path", "http://example.org/ocsp/" + slashed, slashes, false},
		{"a query after it", "/" + slashed + "?x=/y", slashes, false},
		{"OCSP-INT-05 a slash too many", "//" + slashed, slashes, true},
		{"a slash too many after a base path", "/ocsp//" + slashed, slashes, true},
		{"a plus that became a space", "/" + strings.ReplaceAll(plussed, "+", "%20"), pluses, true},
		{"line feeds", "/" + lines, slashes, true},
		{"carriage returns, too", "/" + strings.ReplaceAll(lines, "%0A", "%0D%0A"), slashes, true},
		{"no padding", "/" + strings.TrimRight(slashed, "="), slashes, true},
	} {
		before := k.front.Counts().Defects.Load()
		a := k.get(addr, c.path, "")
		k.isOCSP(c.name, a, "unknown")
		if !bytes.Equal(a.body, want(c.der)) {
			t.Errorf("%s: another answer than by POST", c.name)
		}
		if defect := k.front.Counts().Defects.Load() != before; defect != c.defect {
			t.Errorf("%s: counted as a defect: %v", c.name, defect)
		}
	}
	if k.asked.Load() != 2 {
		t.Errorf("the signer was asked %d times for 2 certificates", k.asked.Load())
	}
}

// OCSP-REQ-05: what cannot be decoded is malformedRequest, and exactly `/` is for people.
func TestREQ05Undecodable(t *testing.T) {
	k := newKit(t, private)
	addr := k.server().Listener.Addr().String()
	text := b64(req("G"))
	for _, path := range []string{
		"//", "/?x", "/?", "///", "/ocsp", "/ocsp/", "/favicon.ico", "*", "/==" + text, "/" + text + "===", "/" + text[:8] + "=" + text[8:],
		"/" + url.PathEscape(url.QueryEscape(strings.Replace(text, "M", "+", 1))), // decoded twice, it would be another
		"/" + b64(make([]byte, 2048)), "/" + b64(req("G")[:len(req("G"))-1]), "/" + b64(append(req("G"), 0)), "/%00", "/" + strings.Repeat("/", 3000),
		"http://example.org", "/a/b/c/d/e/" + text, "/-_" + text,
	} {
		k.isOCSP(fmt.Sprintf("%.60s", path), k.get(addr, path, ""), "malformedRequest")
	}
	for _, method := range []string{"GET", "HEAD"} {
		for _, path := range []string{"/", "http://example.org/"} {
			a := k.send(addr, method+" "+path, "", nil)
			if a.StatusCode != 200 || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") || a.Header.Get("Content-Length") != strconv.Itoa(len(page)) ||
				(method == "GET") != bytes.Equal(a.body, page) {
				t.Errorf("%s %s: %s %v", method, path, a.Status, a.Header)
			}
		}
	}
	// What HTTP itself cannot read is HTTP's business.
	if a := k.get(addr, "/%ZZ"+text, ""); a.StatusCode != 400 {
		t.Errorf("%%ZZ: %s", a.Status)
	}
}

// OCSP-REQ-06, OCSP-RSP-01, OCSP-STA-05: errors are HTTP 200, five octets, and not to be stored.
func TestREQ06Errors(t *testing.T) {
	k := newKit(t, Policy{Unissued: UnissuedUnauthorized, Validity: day})
	addr := k.server().Listener.Addr().String()
	broken := good
	broken.Source = 77
	k.auth[ca1b].SetView(view(1, ledger{serial("G"): broken, serial("P"): broken}))
	k.auth[ca1].SetView(view(1, nil))
	ofTwin := func(name string) []byte { return requests(certID(ca1b, crypto.SHA256, serials[name])) }
	for _, c := range []struct {
		want    string
		request []byte
		prepare func()
	}{
		{"malformedRequest", []byte("garbage"), nil},
		{"internalError", ofTwin("G"), nil},
		{"unauthorized", req("U"), nil},
		{"tryLater", req("P"), func() { k.auth[ca1].SetView(nil) }},
	} {
		if c.prepare != nil {
			c.prepare()
		}
		for _, a := range []httpAnswer{k.post(addr, "/", "", c.request), k.get(addr, "/"+url.PathEscape(b64(c.request)), "")} {
			k.isOCSP(c.want, a, c.want)
			h := a.Header
			if h.Get("Cache-Control") != "no-store" || h.Get("Etag") != "" || h.Get("Expires") != "" || h.Get("Last-Modified") != "" {
				t.Errorf("%s: %v", c.want, h)
			}
			if (h.Get("Retry-After") != "") != (c.want == "tryLater") { // OCSP-STA-06
				t.Errorf("%s: Retry-After %q", c.want, h.Get("Retry-After"))
			}
		}
	}
}

// OCSP-REQ-07: the answer is sent as it is, whatever a client would also take.
func TestREQ07Encoding(t *testing.T) {
	k := newKit(t, private)
	addr := k.server().Listener.Addr().String()
	accept := "Accept-Encoding: gzip, br\r\nAccept: text/html\r\nAccept-Charset: utf-8\r\n"
	k.isOCSP("POST", k.post(addr, "/", accept, req("G")), "good")
	k.isOCSP("GET", k.get(addr, "/"+b64(req("G")), accept), "good")
}

// OCSP-REQ-09.
func TestREQ09Methods(t *testing.T) {
	k := newKit(t, private)
	addr := k.server().Listener.Addr().String()
	path := "/" + b64(req("G"))
	for _, method := range []string{"PUT", "OPTIONS", "DELETE", "TRACE", "PATCH", "get", "PROPFIND"} {
		if a := k.send(addr, method+" "+path, "Content-Length: 0\r\n", nil); a.StatusCode != 405 || a.Header.Get("Allow") != "GET, HEAD, POST" {
			t.Errorf("%s: %s %v", method, a.Status, a.Header)
		}
	}
	for _, path := range []string{path, "/" + b64(reqNonce("G", octets(16))), "/" + b64(req("G"))[1:]} {
		get, head := k.get(addr, path, ""), k.send(addr, "HEAD "+path, "", nil)
		get.Header.Del("Date")
		head.Header.Del("Date")
		if strings.Contains(get.Header.Get("Cache-Control"), "no-store") { // two answers with a nonce differ in length by their signatures
			get.Header.Del("Content-Length")
			head.Header.Del("Content-Length")
		}
		if len(head.body) != 0 || head.StatusCode != 200 || fmt.Sprint(get.Header) != fmt.Sprint(head.Header) {
			t.Errorf("HEAD: %s %v, %d octets\nGET: %v", head.Status, head.Header, len(head.body), get.Header)
		}
	}
}

// OCSP-REQ-10: limits, enforced before anything is allocated, and an ASN.1 length that is not believed.
func TestREQ10Limits(t *testing.T) {
	k := newKit(t, private)
	addr := k.server().Listener.Addr().String()
	big := make([]byte, maxTestBody+1)
	chunked := func(b []byte) []byte {
		return bytes.Join([][]byte{[]byte(fmt.Sprintf("%x\r\n", len(b))), b, []byte("\r\n0\r\n\r\n")}, nil)
	}
	send := func(headers string, body []byte) httpAnswer { return k.send(addr, "POST /", headers, body) }
	for name, a := range map[string]httpAnswer{
		"announced, never sent": send("Content-Length: 100000000000\r\n", nil),
		"announced and sent":    k.post(addr, "/", "", big),
		"chunked":               send("Transfer-Encoding: chunked\r\n", chunked(big)),
		"asked for first":       send("Content-Length: 200000\r\nExpect: 100-continue\r\n", nil),
	} {
		if a.StatusCode != 413 || !a.Close {
			t.Errorf("%s: %s, close %v", name, a.Status, a.Close)
		}
	}
	k.isOCSP("largest", k.post(addr, "/", "", big[1:]), "malformedRequest")
	k.isOCSP("chunked", send("Transfer-Encoding: chunked\r\n", chunked(req("G"))), "good")
	k.isOCSP("a length that never comes", k.post(addr, "/", "", append([]byte{0x30, 0x83, 0x03, 0x0d, 0x3b}, make([]byte, 995)...)), "malformedRequest")

	long := "/" + strings.Repeat("A", maxTestPath)
	if a := k.get(addr, long, ""); a.StatusCode != 414 || !a.Close {
		t.Errorf("long path: %s", a.Status)
	}
	k.isOCSP("longest path", k.get(addr, long[:maxTestPath], ""), "malformedRequest")

	// A body that ends early.
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
	c.(*net.TCPConn).CloseWrite()
	if a, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || a.StatusCode != 400 {
		t.Errorf("a body that ends early: %v %v", a, err)
	}
	if k.asked.Load() != 1 {
		t.Errorf("the signer was asked %d times", k.asked.Load())
	}
}

// OCSP-REQ-18, OCSP-INT-08: the same on every listener; HTTP/1.0, kept-alive and pipelined requests, with POST and GET the same octets.
func TestREQ18Transports(t *testing.T) {
	k := newKit(t, private)
	addrs := []string{k.server().Listener.Addr().String(), k.server().Listener.Addr().String()}
	der := req("G")
	want := k.respond(der)
	if len(want) > 16<<10 { // OCSP-INT-08
		t.Errorf("%d octets", len(want))
	}
	get, post := "GET /"+b64(der)+" HTTP/1.1\r\nHost: x\r\n\r\n", fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(der), der)
	for _, addr := range addrs {
		answers := k.exchangeRaw(addr, "GET", 6, []byte(get+post+get+post+post+get))
		answers = append(answers, k.exchangeRaw(addr, "GET", 1, []byte("GET /"+b64(der)+" HTTP/1.0\r\n\r\n"))...)
		answers = append(answers, k.exchangeRaw(addr, "POST", 1, []byte(fmt.Sprintf("POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s", len(der), der)))...)
		for i, a := range answers {
			k.isOCSP(fmt.Sprint("answer ", i), a, "good")
			if !bytes.Equal(a.body, want) {
				t.Errorf("answer %d differs", i)
			}
		}
	}
}

var controlForm = regexp.MustCompile(`^max-age=(\d+), public, no-transform, must-revalidate$`)

// OCSP-CCH-01 to -05, -07, OCSP-NON-07, OCSP-UNK-05: what HTTP caches are told of each kind of answer, at each moment of its life.
func TestCacheHeaders(t *testing.T) {
	for _, validity := range []time.Duration{time.Minute, 10 * time.Hour, day, 30 * time.Hour} {
		k := newKit(t, Policy{Unissued: UnissuedUnknown, Validity: validity})
		addr := k.server().Listener.Addr().String()
		for _, name := range []string{"G", "R", "U"} {
			k.set(0)
			first := k.get(addr, "/"+b64(req(name)), "")
			r := k.lint(first.body)
			k.down.Store(true) // the very same answer, to its end
			next := must(time.Parse("20060102150405Z", r.singles[0].nextUpdate))
			this := must(time.Parse("20060102150405Z", r.singles[0].thisUpdate))
			for at := time.Duration(0); start.Add(at).Before(next); at += next.Sub(start) / 16 {
				k.set(at)
				a := k.get(addr, "/"+b64(req(name)), "")
				h := a.Header
				if !bytes.Equal(a.body, first.body) {
					t.Fatal("another answer")
				}
				m := controlForm.FindStringSubmatch(h.Get("Cache-Control")) // OCSP-CCH-01, OCSP-CCH-02
				if m == nil || h.Get("Pragma") != "" {
					t.Fatalf("%v", h)
				}
				age := time.Duration(must(strconv.Atoi(m[1]))) * time.Second
				if fresh := k.now().Add(age); !fresh.Before(next) || fresh.Before(this) ||
					age > 0 && fresh.Sub(start) > next.Sub(start)/2 { // no cache holds it when a newer one is due
					t.Errorf("%s %s at %s: fresh until %s, nextUpdate %s", validity, name, at, fresh.Sub(start), next.Sub(start))
				}
				if at == 0 && age < min(validity/4, time.Minute) {
					t.Errorf("%s: a new answer is fresh for %s only", validity, age)
				}
				expires := next
				if name == "U" { // OCSP-UNK-05
					expires = k.now().Add(age)
					if age > 60*time.Second {
						t.Errorf("unknown for %s", age)
					}
				}
				sum := sha256.Sum256(a.body)
				for header, want := range map[string]string{ // OCSP-CCH-03, OCSP-CCH-04, OCSP-CCH-05
					"Expires": expires.Format("Mon, 02 Jan 2006 15:04:05") + " GMT", "Last-Modified": this.Format("Mon, 02 Jan 2006 15:04:05") + " GMT",
					"Etag": `"` + hex.EncodeToString(sum[:]) + `"`,
				} {
					if h.Get(header) != want {
						t.Errorf("%s: %s, want %s", header, h.Get(header), want)
					}
				}
			}
			k.down.Store(false)
		}
		k.set(0)
		// OCSP-CCH-07: POST promises nothing. OCSP-NON-07: a nonce forbids storing, by either method.
		if h := k.post(addr, "/", "", req("G")).Header; h.Get("Cache-Control")+h.Get("Expires")+h.Get("Etag") != "" {
			t.Errorf("POST: %v", h)
		}
		nonced := reqNonce("G", octets(16))
		for _, a := range []httpAnswer{k.post(addr, "/", "", nonced), k.get(addr, "/"+b64(nonced), "")} {
			if h := a.Header; h.Get("Cache-Control") != "no-store" || h.Get("Etag")+h.Get("Expires")+h.Get("Last-Modified") != "" {
				t.Errorf("with a nonce: %v", h)
			}
		}
	}
}

// OCSP-CCH-06: preconditions.
func TestCCH06Conditions(t *testing.T) {
	k := newKit(t, private)
	addr := k.server().Listener.Addr().String()
	path := "/" + b64(req("G"))
	full := k.get(addr, path, "")
	tag, modified := full.Header.Get("Etag"), full.Header.Get("Last-Modified")
	stamp := func(d time.Duration) string { return must(http.ParseTime(modified)).Add(d).Format(http.TimeFormat) }
	for _, c := range []struct {
		name, headers string
		want          int
	}{
		{"the tag", "If-None-Match: " + tag, 304},
		{"weak", "If-None-Match: W/" + tag, 304},
		{"any", "If-None-Match: *", 304},
		{"in a list", `If-None-Match: "x", ` + tag, 304},
		{"in two headers", "If-None-Match: \"x\"\r\nIf-None-Match: " + tag, 304},
		{"another tag", `If-None-Match: "x"`, 200},
		{"without its quotes", "If-None-Match: " + strings.Trim(tag, `"`), 200},
		{"another tag, and the date", "If-None-Match: \"x\"\r\nIf-Modified-Since: " + modified, 200},
		{"the date", "If-Modified-Since: " + modified, 304},
		{"a later date", "If-Modified-Since: " + stamp(time.Hour), 304},
		{"an earlier date", "If-Modified-Since: " + stamp(-time.Second), 200},
		{"no date", "If-Modified-Since: yesterday", 200},
		{"none", "X: y", 200},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			a := k.send(addr, method+" "+path, c.headers+"\r\n", nil)
			if a.StatusCode != c.want {
				t.Errorf("%s %s: %s", method, c.name, a.Status)
			}
			if a.StatusCode != 304 {
				continue
			}
			for _, h := range []string{"Etag", "Cache-Control", "Expires", "Date", "Last-Modified"} {
				if a.Header.Get(h) == "" || !strings.Contains(c.name, "date") && h != "Date" && a.Header.Get(h) != full.Header.Get(h) {
					t.Errorf("%s %s: %s is %q", method, c.name, h, a.Header.Get(h))
				}
			}
			if len(a.body) != 0 || a.Header.Get("Content-Type") != "" {
				t.Errorf("%s %s: a 304 with a body: %v", method, c.name, a.Header)
			}
		}
	}
	if a := k.post(addr, "/", "If-None-Match: "+tag+"\r\n", req("G")); a.StatusCode != 200 {
		t.Errorf("POST: %s", a.Status)
	}
}

// Invariant 5, against OCSP-CCH-06: all answers made from one CRL have one Last-Modified. A client that names it may hold any of them, and one that has
// ended must not be confirmed, nor any be confirmed for longer than it holds.
func TestCCH06DateNeverStretches(t *testing.T) {
	k := newKit(t, Policy{Unissued: UnissuedUnknown, Validity: 10 * time.Hour})
	k.auth[ca1].SetView(func() *View {
		v := view(1, nil)
		v.Sources = v.Sources[:1]
		v.Sources[0].ThisUpdate = start
		v.Lookup = goodFromCRL
		return v
	}())
	addr := k.server().Listener.Addr().String()
	path := "/" + b64(req("G"))
	type copy struct{ next time.Time }
	var copies []copy
	confirmed, refused := 0, 0
	for at := time.Duration(0); at < 30*time.Hour; at += 20 * time.Minute {
		k.set(at)
		full := k.get(addr, path, "")
		k.settle()
		r := k.lint(full.body)
		copies = append(copies, copy{must(time.Parse("20060102150405Z", r.singles[0].nextUpdate))})
		a := k.get(addr, path, "If-Modified-Since: "+full.Header.Get("Last-Modified")+"\r\n")
		if a.StatusCode != 304 {
			refused++
			continue
		}
		confirmed++
		m := controlForm.FindStringSubmatch(a.Header.Get("Cache-Control"))
		fresh := k.now().Add(time.Duration(must(strconv.Atoi(m[1]))) * time.Second)
		expires := must(http.ParseTime(a.Header.Get("Expires")))
		for _, c := range copies {
			if fresh.After(c.next) || expires.After(c.next) {
				t.Fatalf("at %s a copy that ends at %s is confirmed until %s, %s", at, c.next.Sub(start), fresh.Sub(start), expires.Sub(start))
			}
		}
	}
	if confirmed == 0 || refused == 0 {
		t.Errorf("%d confirmed, %d refused", confirmed, refused)
	}
}

func goodFromCRL(pki.Serial) (pki.Record, bool) {
	return pki.Record{Status: pki.Status{State: pki.Good}}, true
}

// settle waits for the renewals that are under way.
func (k *kit) settle() {
	for len(k.front.renewing) > 0 {
		time.Sleep(time.Millisecond)
	}
}
