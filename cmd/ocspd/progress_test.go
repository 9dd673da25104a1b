package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestProgress(t *testing.T) {
	p := newProgress()
	last := 0.0
	see := func(step string, want float64) {
		t.Helper()
		got, share := p.now()
		if got != step || share < want-1e-9 || share > want+1e-9 {
			t.Errorf("%q %f, want %q %f", got, share, step, want)
		}
		if share < last {
			t.Errorf("from %f back to %f", last, share)
		}
		last = share
	}
	see("", 0)
	p.part(0, 2)
	p.begin("reading", 1000) // a tenth of the first half
	see("reading", 0)
	p.add(500)
	see("reading", 0.025)
	p.add(5000) // more than was announced
	see("reading", 0.05)
	p.begin("recording", 10) // four fifths of what is left of it
	see("recording", 0.05)
	p.add(5)
	see("recording", 0.05+0.5*0.36)
	p.begin("putting in force", 0) // though the step before was not counted to its end
	see("putting in force", 0.05+0.36)
	p.part(1, 2)
	p.begin("reading", -1)
	p.add(100)
	see("reading", 0.5)
	p.at("recording", 0.5)
	see("recording", 0.75)
	p.at("reading", 0.1) // never back
	see("reading", 0.75)
	p.at("done", 1)
	see("done", 1)
	p.begin("recording", 10)
	p.add(5)
	see("recording", 1)

	p = nil // nobody watches
	p.part(0, 1)
	p.begin("reading", 1)
	p.add(1)
	p.at("done", 1)
}

func TestBarLine(t *testing.T) {
	for _, c := range []struct {
		share   float64
		columns int
		want    string
	}{
		{0, 50, "recording        [...................]   0 % 1m5s"},
		{0.999, 50, "recording        [##################.]  99 % 1m5s"},
		{1, 50, "recording        [###################] 100 % 1m5s"},
		{0.5, 0, "recording        [" + strings.Repeat("#", 20) + strings.Repeat(".", 20) + "]  50 % 1m5s"},
		{0.5, 300, "recording        [" + strings.Repeat("#", 20) + strings.Repeat(".", 20) + "]  50 % 1m5s"},
		{0.5, 30, "50 %"}, {0.5, 4, "50 "}, {0.5, 1, ""},
	} {
		if got := barLine("recording", c.share, 65400*time.Millisecond, c.columns); got != c.want {
			t.Errorf("%v of %d columns:\n%q, want\n%q", c.share, c.columns, got, c.want)
		}
	}
}

// openTerminal makes a terminal of 60 columns; what is written to it is read from master.
func openTerminal(t *testing.T) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 60}); err != nil {
		t.Fatal(err)
	}
	return master, terminal
}

// listening is a keeper in this process that listens, and a verb runs against it: over the socket.
func listening(t *testing.T, source string) *kept {
	t.Helper()
	w := newKept(t, "", source)
	if err := os.MkdirAll(w.k.cfg.Run, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", w.k.cfg.keeperSocket())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- w.k.serveControl(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return w
}

// verb runs a verb and gives what came to standard output, and to standard error with the time from the start to the first octet.
func (w *kept) verb(stderr, read *os.File, argv ...string) (out, shown string, first time.Duration) {
	w.t.Helper()
	var stdout, seen bytes.Buffer
	ended := make(chan struct{})
	begun := time.Now()
	go func() {
		defer close(ended)
		buf := make([]byte, 4096)
		for {
			n, err := read.Read(buf)
			if n > 0 && seen.Len() == 0 {
				first = time.Since(begun)
			}
			seen.Write(buf[:n])
			if err != nil { // EIO, once nobody has the terminal any more
				return
			}
		}
	}()
	code := run(append([]string{"-c", filepath.Join(w.dir, "ocspd.toml")}, argv...), &stdout, stderr)
	stderr.Close()
	<-ended
	if code != 0 {
		w.t.Fatalf("%v: exit %d: %s %s", argv, code, stdout.String(), seen.String())
	}
	return stdout.String(), seen.String(), first
}

var drawn = regexp.MustCompile(`^([a-z ]*?) *\[(#*)(\.*)\] +(\d+) % (\w+)\x1b\[K$`)

// frames are the steps of a bar that was drawn, and then wiped away; before that it never went back, and was full.
func frames(t *testing.T, shown string) map[string]int {
	t.Helper()
	shown, gone := strings.CutSuffix(shown, "\r\x1b[K")
	if !gone {
		t.Errorf("the bar is not gone in the end: %q", shown)
	}
	steps, last := map[string]int{}, 0
	for _, line := range strings.Split(shown, "\r")[1:] {
		m := drawn.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("%q in %q", line, shown)
		}
		percent, _ := strconv.Atoi(m[4])
		if percent < last || len(line) > 59+len("\x1b[K") || len(m[2]) != percent*(len(m[2])+len(m[3]))/100 {
			t.Errorf("%q after %d %%", line, last)
		}
		last = percent
		steps[m[1]] = max(steps[m[1]], percent)
	}
	if last != 100 {
		t.Errorf("ended at %d %%: %q", last, shown)
	}
	return steps
}

// TestBar: what takes longer than two seconds has a bar on a terminal, here a source that is sent slowly.
func TestBar(t *testing.T) {
	t.Setenv("TERM", "vt100")
	const parts = 15
	var body []byte
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		out.Header().Set("Content-Length", strconv.Itoa(len(body)))
		for n := range parts {
			out.Write(body[n*len(body)/parts : (n+1)*len(body)/parts])
			out.(http.Flusher).Flush()
			time.Sleep(3 * time.Second / parts)
		}
	}))
	defer server.Close()
	w := listening(t, `crl = "`+server.URL+`/NAME.crl"`)
	body = w.makeCRL("one", crlSpec{number: 7})
	master, terminal := openTerminal(t)
	defer master.Close()
	out, shown, first := w.verb(terminal, master, "crl", "fetch", "one")
	if !strings.Contains(out, "number 0x7") {
		t.Error(out)
	}
	if first < 2*time.Second {
		t.Errorf("the bar came after %v", first)
	}
	// Two thirds of a step that is a tenth of all.
	if steps := frames(t, shown); steps["reading"] < 5 || steps["reading"] > 10 {
		t.Errorf("%v in %q", steps, shown)
	}
}

// TestBarOnlyOnTerminal: the bar is for people.
func TestBarOnlyOnTerminal(t *testing.T) {
	patience, every := barPatience, progressEvery
	defer func() { barPatience, progressEvery = patience, every }()
	barPatience, progressEvery = 0, time.Millisecond
	t.Setenv("TERM", "vt100")
	w := listening(t, `index = "DIR/NAME.txt"`)
	number := 0
	index := func() string { // each another
		var b bytes.Buffer
		number++
		for n := range 20_000 {
			fmt.Fprintf(&b, "R\t300101000000Z\t250601120000Z\t%d%08X\tunknown\t/CN=a\n", number, n*7919%20_000)
		}
		w.write("index", b.Bytes())
		return filepath.Join(w.dir, "index")
	}
	imported := "one: index with 20000 entries is in force"
	argv := []string{"index", "import", "--issuer", "one"}

	master, terminal := openTerminal(t)
	defer master.Close()
	out, shown, _ := w.verb(terminal, master, append(argv, index())...)
	steps := frames(t, shown)
	for _, step := range []string{"recording", "putting in force", "done"} { // what comes before them may be over between two looks
		if steps[step] == 0 {
			t.Errorf("step %q was not shown: %v", step, steps)
		}
	}
	if !strings.Contains(out, imported) {
		t.Error(out)
	}
	for _, verb := range [][]string{{"db", "check"}, {"backup", filepath.Join(w.dir, "backup.db")}} {
		master, terminal := openTerminal(t)
		defer master.Close()
		_, shown, _ := w.verb(terminal, master, verb...)
		frames(t, shown)
	}
	silent := func(name string, stderr, read *os.File, more ...string) {
		t.Helper()
		defer read.Close()
		force := []string{"--force", "another index of the same test"}
		out, shown, _ := w.verb(stderr, read, append(append(append(argv, index()), force...), more...)...)
		if !strings.Contains(out, imported) {
			t.Errorf("%s: %s", name, out)
		}
		if strings.ContainsAny(shown, "%[\x1b") { // a warning may be there
			t.Errorf("%s: %q", name, shown)
		}
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	silent("a pipe", write, read)
	master, terminal = openTerminal(t)
	silent("json", terminal, master, "-o", "json")
	for _, dumb := range []string{"dumb", ""} {
		t.Setenv("TERM", dumb)
		master, terminal = openTerminal(t)
		silent("TERM="+dumb, terminal, master)
	}
}

// TestProgressOfWork: each verb that can take long counts to the end, in this process and through the socket alike.
func TestProgressOfWork(t *testing.T) {
	w := newKept(t, "", `crl = "DIR/NAME.crl"`)
	for _, name := range []string{"one", "two"} {
		w.crl(name+".crl", name, crlSpec{number: 1})
	}
	for _, c := range []struct{ method, path string }{{http.MethodPost, "/crl/fetch"}, {http.MethodGet, "/db/check"}, {http.MethodPost, "/db/backup"}} {
		p := newProgress()
		resp, err := w.c.do(withProgress(context.Background(), p), c.method, c.path, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v", c.path, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Errorf("%s: %v", c.path, err)
		}
		resp.Body.Close()
		if step, share := p.now(); step != "done" || share != 1 {
			t.Errorf("%s ended at %q, %f", c.path, step, share)
		}
	}
}
