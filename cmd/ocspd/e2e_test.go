package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"crypto/rand"
	"crypto/x509"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"
)

// shared is a folder for what several tests build. It is gone when they are over.
var shared string

func TestMain(m *testing.M) {
	os.Setenv("GORACE", strings.TrimSpace("atexit_sleep_ms=1 "+os.Getenv("GORACE"))) // a process with the race detector waits a second before it ends, if not told otherwise
	var err error
	if shared, err = os.MkdirTemp("", "ocspd-shared"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(shared)
	os.Exit(code)
}

// TestScripts drives the binary as it is built for users, through the scripts of testdata/script. Clients are openssl and curl; the loops that
// ask every few milliseconds judge answers by x/crypto/ocsp. Beyond testscript's own commands, scripts know:
//
//	ocspd VERB…                 run the binary with this script's configuration: exit 0, or exactly 1 after "!"
//	exit CODE ocspd VERB…       the same with an exit code of its own
//	serve [VERDICT]             start `ocspd serve` and wait until it is "serving", or what VERDICT says
//	halt [SIGNAL]               stop it and see that no process is left
//	answer [-get] [-to URL] STATUS ISSUER CERT [OPENSSL OPTION…]
//	                            one question by openssl; STATUS is good, revoked, unknown, or an OCSP error
//	ask NAME post|get ISSUER CERT, asked [-after D] [-retry] NAME STATUS…
//	                            ask again and again in the background; stop that, and see that the answers were these, in this order
//	kill9 ROLE, back ROLE       kill a role; wait until it is back, at most as long as the contract lets it take
//	crl FILE ISSUER NUMBER [KEY=VALUE…]
//	                            have a CA issue a CRL
//	delegate ISSUER CSR FILE    have a CA certify a request for a signer
//	gone FILE                   there is no such file
//	smalldisk FOLDER SIZE       make a folder a disk of its own; as root alone
//	verdict VERDICT             wait until status says so
//	alarm NAME [PLACE]          wait until an alarm stands, or after "!" until it has ended
//	eventually D COMMAND…       repeat one of these until it succeeds
//	proc ROLE maps|fds|environ|cmdline
//	                            what the kernel knows of a role's process
//	json PATH [VALUE]           look into the JSON on standard output; "!" insists that there is nothing
//
// Variables: URL, URL6, HTTP and ADMIN of the responder that serves; SHIM, a PKCS#11 module that spoils calls (hsm/testdata/shim.c); AWAY, for how many
// seconds a token is taken away (5, or what OCSPD_AWAY says).
func TestScripts(t *testing.T) {
	tmp, err := os.MkdirTemp("", "ocspd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			os.RemoveAll(tmp)
		}
	})
	if err := os.Chmod(tmp, 0o755); err != nil { // one script becomes another user
		t.Fatal(err)
	}
	bin := buildBinary(t, filepath.Join(tmp, "bin"))
	w := newWorld(t, filepath.Join(tmp, "world"), bin)
	shim := filepath.Join(tmp, "bin", "shim.so")
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-O1", "-o", shim, "../../hsm/testdata/shim.c", "-ldl", "-lpthread").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	commands := map[string]func(*testscript.TestScript, bool, []string){}
	for name, f := range siteCommands { // testscript's own would win, so that none may bear the name of one, such as stop
		commands[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			if err := f(siteOf(ts), ts, neg, args); err != nil {
				ts.Fatalf("%s: %v", name, err)
			}
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:         "testdata/script",
		WorkdirRoot: tmp,
		Cmds:        commands,
		Setup: func(e *testscript.Env) error {
			s, err := newSite(w, e)
			if err != nil {
				return err
			}
			e.Defer(func() { s.end(t, e.T()) })
			e.Setenv("SHIM", shim)
			e.Setenv("AWAY", cmp.Or(os.Getenv("OCSPD_AWAY"), "5"))
			return nil
		},
		Condition: func(c string) (bool, error) {
			switch c {
			case "root":
				return os.Geteuid() == 0, nil
			case "ipv6":
				return haveIPv6(), nil
			}
			return false, fmt.Errorf("no condition %q", c)
		},
		RequireUniqueNames: true,
	})
}

// buildBinary makes what users run, with the race detector when we have it.
func buildBinary(t *testing.T, dir string) string {
	t.Helper()
	argv := []string{"build", "-buildvcs=false", "-o", filepath.Join(dir, "ocspd")}
	if raced() {
		argv = append(argv, "-race")
	}
	if out, err := exec.Command("go", append(argv, ".")...).CombinedOutput(); err != nil {
		t.Fatalf("go %v: %v\n%s", argv, err, out)
	}
	return filepath.Join(dir, "ocspd")
}

func raced() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "-race" && s.Value == "true" })
}

// A site is the copy of the world that one script has.
type site struct {
	*world
	dir      string
	env      []string
	serve    *exec.Cmd
	ended    chan struct{} // closed when serve has ended
	killed   map[string]killedRole
	loops    map[string]*asking
	returned time.Time // of the last ocspd verb
	disks    []string  // that were mounted
}

type killedRole struct {
	pid int
	at  time.Time
}

type siteKey struct{}

func siteOf(ts *testscript.TestScript) *site { return ts.Value(siteKey{}).(*site) }

func newSite(w *world, e *testscript.Env) (*site, error) {
	s := &site{world: w, dir: e.WorkDir, killed: map[string]killedRole{}, loops: map[string]*asking{}}
	e.Values[siteKey{}] = s
	own := map[string]bool{} // what the script brings itself
	for _, name := range []string{"issuers.d", "ocspd.toml"} {
		_, err := os.Stat(s.path(name))
		own[name] = err == nil
	}
	for _, name := range []string{"pki", "tokens", "issuers.d", "pin"} {
		if own[name] {
			continue
		}
		if out, err := exec.Command("cp", "-a", w.path(name), s.path(name)).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%w: %s", err, out)
		}
	}
	if !own["issuers.d"] {
		for _, name := range []string{"class5", "class7"} { // of one script only
			os.Remove(s.path("issuers.d/" + name + ".toml"))
		}
	}
	w.settle(s.dir)
	head := configHead(s.dir)
	if own["ocspd.toml"] { // more of it
		more, err := os.ReadFile(s.path("ocspd.toml"))
		if err != nil {
			return nil, err
		}
		head += string(more)
	}
	if err := os.WriteFile(s.path("ocspd.toml"), []byte(head), 0o644); err != nil {
		return nil, err
	}
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return nil, err
	}
	s.env = []string{"PATH=" + filepath.Dir(w.bin) + ":" + os.Getenv("PATH"), "HOME=" + s.dir, "TMPDIR=" + s.path(".tmp"), "GORACE=atexit_sleep_ms=1"}
	for _, kv := range s.env {
		k, v, _ := strings.Cut(kv, "=")
		e.Setenv(k, v)
	}
	return s, nil
}

func (s *site) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(s.dir, name)
}

// end leaves no process, however the script ended.
func (s *site) end(t *testing.T, script testscript.T) {
	for _, l := range s.loops {
		l.end()
	}
	if s.serve != nil {
		s.serve.Process.Kill()
		<-s.ended
	}
	for _, pid := range s.processes() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, dir := range s.disks {
		syscall.Unmount(dir, syscall.MNT_DETACH)
	}
	log, _ := os.ReadFile(s.path("log"))
	script.Log("log of ocspd serve:\n" + string(log))
	for _, word := range []string{"DATA RACE", "panic:", "goroutine 1 ["} {
		if bytes.Contains(log, []byte(word)) {
			t.Errorf("%s: %s in the log:\n%s", s.dir, word, log)
		}
	}
	if bytes.Contains(log, []byte(testPIN)) {
		t.Errorf("%s: the PIN is in the log:\n%s", s.dir, log)
	}
}

// processes are those of this site: the binary's, with this configuration.
func (s *site) processes() []int {
	var pids []int
	for pid, argv := range allProcesses() {
		if len(argv) > 1 && argv[0] == s.bin && slices.Contains(argv, s.path("ocspd.toml")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func allProcesses() map[int][]string {
	all := map[int][]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		b, err := os.ReadFile(d + "/cmdline")
		pid, _ := strconv.Atoi(filepath.Base(d))
		if err == nil && len(b) > 0 {
			all[pid] = strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
		}
	}
	return all
}

// role finds the process of a role: a child of our serve.
func (s *site) role(name string) (int, error) {
	if s.serve == nil {
		return 0, errors.New("nothing serves")
	}
	for pid, argv := range allProcesses() {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(rest) // state, parent, …
		if len(argv) > 1 && argv[0] == s.bin && argv[1] == name && len(f) > 1 && f[0] != "Z" && f[1] == strconv.Itoa(s.serve.Process.Pid) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process of role %s", name)
}

var siteCommands map[string]func(s *site, ts *testscript.TestScript, neg bool, args []string) error

func init() {
	siteCommands = map[string]func(s *site, ts *testscript.TestScript, neg bool, args []string) error{
		"ocspd": func(s *site, ts *testscript.TestScript, neg bool, args []string) error {
			want := 0
			if neg {
				want = exitFailed
			}
			return s.verb(ts, want, args)
		},
		"exit": func(s *site, ts *testscript.TestScript, _ bool, args []string) error {
			want, err := strconv.Atoi(args[0])
			if err != nil || args[1] != "ocspd" {
				return errors.New("exit CODE ocspd VERB…")
			}
			return s.verb(ts, want, args[2:])
		},
		"serve": (*site).cmdServe, "halt": (*site).cmdHalt, "answer": (*site).cmdAnswer, "crl": (*site).cmdCRL, "kill9": (*site).cmdKill,
		"back": (*site).cmdBack, "alarm": (*site).cmdAlarm, "eventually": (*site).cmdEventually, "proc": (*site).cmdProc, "json": (*site).cmdJSON,
		"gone": (*site).cmdGone, "delegate": (*site).cmdDelegate, "smalldisk": (*site).cmdSmallDisk, "verdict": (*site).cmdVerdict, "ask": (*site).cmdAsk, "asked": (*site).cmdAsked,
	}
}

// verb runs the binary and insists on its exit code.
func (s *site) verb(ts *testscript.TestScript, want int, args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, s.bin, append([]string{"-c", s.path("ocspd.toml")}, args...)...)
	c.Dir, c.Env, c.Stdout, c.Stderr = s.dir, s.env, ts.Stdout(), ts.Stderr()
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 2 * stopLimit
	err := c.Run()
	s.returned = time.Now()
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%v: had to be stopped after a minute", args)
	}
	if code != want {
		return fmt.Errorf("%v: exit %d, want %d", args, code, want)
	}
	return nil
}

var listens = regexp.MustCompile(`msg=listens role=serve on=(\S+) as=(\S+)`)

func (s *site) cmdServe(ts *testscript.TestScript, _ bool, args []string) error {
	if s.serve != nil {
		return errors.New("something serves already")
	}
	want := verdictServing
	if len(args) > 0 {
		want = args[0]
	}
	log, err := os.OpenFile(s.path("log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	begin, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	c := exec.Command(s.bin, "serve", "-c", s.path("ocspd.toml"))
	c.Dir, c.Env, c.Stdout, c.Stderr = s.dir, s.env, log, log
	if err := c.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { c.Wait(); close(ended) }()
	s.serve, s.ended = c, ended
	return patience(time.Minute, func() error {
		select {
		case <-ended:
			s.serve = nil
			return final{fmt.Errorf("ended: %v", c.ProcessState)}
		default:
		}
		said, err := io.ReadAll(io.NewSectionReader(log, begin, 1<<20))
		if err != nil {
			return err
		}
		for _, m := range listens.FindAllStringSubmatch(string(said), -1) {
			variable := map[string]string{"ocsp": "URL", "http": "HTTP", "admin": "ADMIN"}[m[2]]
			if strings.HasPrefix(m[1], "[") {
				variable += "6"
			}
			ts.Setenv(variable, "http://"+m[1])
			_, port, _ := net.SplitHostPort(m[1])
			ts.Setenv(variable+"_PORT", port)
		}
		st, err := s.status(ts)
		if err == nil && (st.Verdict != want || len(st.Roles) < 3) {
			err = fmt.Errorf("%s: %+v", st.Verdict, st.Alarms)
		}
		return err
	})
}

// final is an error that waiting does not mend.
type final struct{ error }

// patience calls f until it succeeds, or time is up.
func patience(limit time.Duration, f func() error) error {
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		err := f()
		if err == nil || errors.As(err, new(final)) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("still after %v: %w", limit, err)
		}
	}
}

// status asks the admin listener.
func (s *site) status(ts *testscript.TestScript) (*statusResult, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get(ts.Getenv("ADMIN") + "/status.json")
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	st := &statusResult{}
	return st, json.NewDecoder(r.Body).Decode(st)
}

// stopLimit is what the contract lets an orderly stop take.
const stopLimit = 5 * time.Second

func (s *site) cmdHalt(ts *testscript.TestScript, _ bool, args []string) error {
	if s.serve == nil {
		return errors.New("nothing serves")
	}
	signal, orderly := syscall.SIGTERM, true
	switch strings.Join(args, " ") {
	case "", "TERM":
	case "INT":
		signal = syscall.SIGINT
	case "KILL":
		signal, orderly = syscall.SIGKILL, false
	default:
		return fmt.Errorf("halt %v", args)
	}
	began := time.Now()
	s.serve.Process.Signal(signal)
	select {
	case <-s.ended:
	case <-time.After(stopLimit):
		return fmt.Errorf("serve still runs %v after SIG%v", stopLimit, args)
	}
	c := s.serve
	s.serve = nil
	if orderly && c.ProcessState.ExitCode() != 0 {
		return fmt.Errorf("serve ended with %v", c.ProcessState)
	}
	limit := stopLimit - time.Since(began)
	if orderly {
		limit = 0 // they end before serve does
	}
	return patience(limit, func() error {
		if left := s.processes(); len(left) > 0 {
			return fmt.Errorf("processes %v are left", left)
		}
		return nil
	})
}

// statusLine is what openssl calls an error of the responder.
var responderErrors = map[string]string{"malformedRequest": "malformedrequest (1)", "internalError": "internalerror (2)", "tryLater": "trylater (3)", "unauthorized": "unauthorized (6)"}

func (s *site) cmdAnswer(ts *testscript.TestScript, _ bool, args []string) error {
	get := false
	to := ts.Getenv("URL")
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		switch {
		case args[0] == "-get":
			get, args = true, args[1:]
		case args[0] == "-to" && len(args) > 1:
			to, args = args[1], args[2:]
		default:
			return fmt.Errorf("option %s", args[0])
		}
	}
	if len(args) < 3 {
		return errors.New("answer [-get] [-to URL] STATUS ISSUER CERT [OPTION…]")
	}
	want, issuer, cert, options := args[0], "pki/"+args[1]+".pem", "pki/"+args[2]+".pem", args[3:]
	subject := []string{"-cert", cert}
	if _, err := os.Stat(s.path(cert)); err != nil {
		subject, cert = []string{"-serial", args[2]}, args[2]
	}
	argv := append(append([]string{"ocsp", "-issuer", issuer}, options...), subject...)
	verify := append(slices.Clone(argv), "-CAfile", "pki/bundle.pem")
	nonce := !get && !slices.Contains(options, "-no_nonce")
	switch {
	case get:
		response, err := s.get(argv, to)
		if err != nil {
			return err
		}
		if err := os.WriteFile(s.path("response.der"), response, 0o644); err != nil {
			return err
		}
		verify = append(verify, "-respin", "response.der")
	case !slices.Contains(options, "-host"):
		verify = append(verify, "-url", to)
	}
	out, err := s.openssl(verify...)
	fmt.Fprint(ts.Stdout(), out)
	if text, isError := responderErrors[want]; isError {
		if !strings.Contains(out, "Responder Error: "+text) {
			return fmt.Errorf("want %s:\n%s", want, out)
		}
		return nil
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w:\n%s", err, out)
	case !strings.Contains(out, "Response verify OK"):
		return fmt.Errorf("openssl does not verify the answer:\n%s", out)
	case !strings.Contains(out, cert+": "+want+"\n"):
		return fmt.Errorf("want %s:\n%s", want, out)
	case nonce && strings.Contains(out, "WARNING: no nonce"):
		return fmt.Errorf("no nonce:\n%s", out)
	}
	return nil
}

func (s *site) openssl(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, "openssl", argv...)
	c.Dir = s.dir
	var stdout, stderr bytes.Buffer // not one: openssl's lines would fall into each other
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	return stdout.String() + stderr.String(), err
}

// get has openssl make a question and sends it as a GET request, which openssl cannot.
func (s *site) get(argv []string, to string) ([]byte, error) {
	if out, err := s.openssl(append(slices.Clone(argv), "-no_nonce", "-reqout", "request.der")...); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	der, err := os.ReadFile(s.path("request.der"))
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return fetch(client.Get(to + "/" + url.PathEscape(base64.StdEncoding.EncodeToString(der))))
}

func fetch(r *http.Response, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && (r.StatusCode != http.StatusOK || r.Header.Get("Content-Type") != "application/ocsp-response") {
		err = fmt.Errorf("%s, %s", r.Status, r.Header.Get("Content-Type"))
	}
	return b, err
}

func (s *site) cmdCRL(ts *testscript.TestScript, _ bool, args []string) error {
	if len(args) < 3 {
		return errors.New("crl FILE ISSUER NUMBER [KEY=VALUE…]")
	}
	o := crlOptions{ca: args[1], next: 7 * 24 * time.Hour}
	number, err := strconv.ParseInt(args[2], 10, 64)
	o.number = number
	for _, a := range args[3:] {
		k, v, _ := strings.Cut(a, "=")
		var e error
		switch k {
		case "this":
			o.this, e = time.ParseDuration(v)
		case "next":
			o.next, e = time.ParseDuration(v)
		case "revoked":
			o.revoked = append(o.revoked, v)
		case "signer":
			o.signer = v
		case "critical":
			o.critical = v
		case "pem":
			o.pem, e = strconv.ParseBool(v)
		case "cut":
			o.cut, e = strconv.Atoi(v)
		default:
			e = fmt.Errorf("%q", a)
		}
		err = errors.Join(err, e)
	}
	if err != nil {
		return err
	}
	der, err := s.crl(o)
	if err != nil {
		return err
	}
	// As a CA should: written aside, and renamed.
	if err := os.WriteFile(s.path(args[0]+".new"), der, 0o644); err != nil {
		return err
	}
	return os.Rename(s.path(args[0]+".new"), s.path(args[0]))
}

func (s *site) cmdKill(ts *testscript.TestScript, _ bool, args []string) error {
	pid, err := s.role(args[0])
	if err != nil {
		return err
	}
	s.killed[args[0]] = killedRole{pid, time.Now()}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// backLimit is what the contract lets a role take to be back; the race detector makes a start several times slower.
func backLimit() time.Duration {
	if raced() {
		return 10 * time.Second
	}
	return 3 * time.Second
}

// cmdBack waits until a killed role works again, seen from outside: another process, and what only that role does.
func (s *site) cmdBack(ts *testscript.TestScript, _ bool, args []string) error {
	killed, ok := s.killed[args[0]]
	if !ok {
		return errors.New("it was not killed")
	}
	err := patience(time.Until(killed.at.Add(backLimit())), func() error {
		st, err := s.status(ts)
		if err != nil {
			return err
		}
		for _, r := range st.Roles {
			if r.Role == args[0] && r.PID != killed.pid {
				_, err := s.question("class1", "class1-good", true).put(http.DefaultClient, ts.Getenv("URL"), "post")
				return err
			}
		}
		return fmt.Errorf("not among %+v", st.Roles)
	})
	ts.Logf("back after %v", time.Since(killed.at).Round(time.Millisecond))
	return err
}

// cmdSmallDisk makes a folder a disk of its own, so small that it can be filled. It takes root.
func (s *site) cmdSmallDisk(ts *testscript.TestScript, _ bool, args []string) error {
	if len(args) != 2 {
		return errors.New("smalldisk FOLDER SIZE")
	}
	dir := s.path(args[0])
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := syscall.Mount("none", dir, "tmpfs", 0, "mode=0700,size="+args[1]); err != nil {
		return err
	}
	s.disks = append(s.disks, dir)
	return nil
}

// cmdDelegate has a CA answer a request for a signer's certificate.
func (s *site) cmdDelegate(ts *testscript.TestScript, _ bool, args []string) error {
	if len(args) != 3 {
		return errors.New("delegate ISSUER CSR FILE")
	}
	der := s.delegate(args[0], ts.ReadFile(args[1]))
	return os.WriteFile(s.path(args[2]), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

func (s *site) cmdGone(ts *testscript.TestScript, neg bool, args []string) error {
	if _, err := os.Lstat(s.path(args[0])); (err != nil) == neg {
		return fmt.Errorf("%s: %v", args[0], err)
	}
	return nil
}

func (s *site) cmdVerdict(ts *testscript.TestScript, _ bool, args []string) error {
	return patience(20*time.Second, func() error {
		st, err := s.status(ts)
		if err == nil && st.Verdict != args[0] {
			err = fmt.Errorf("%s: %+v", st.Verdict, st.Alarms)
		}
		return err
	})
}

func (s *site) cmdAlarm(ts *testscript.TestScript, neg bool, args []string) error {
	return patience(20*time.Second, func() error {
		st, err := s.status(ts)
		if err != nil {
			return err
		}
		for _, a := range st.Alarms {
			if a.Name == args[0] && (len(args) == 1 || a.Issuer == args[1]) {
				if neg {
					return fmt.Errorf("it stands: %s", a.Text)
				}
				fmt.Fprintln(ts.Stdout(), a.Text)
				return nil
			}
		}
		if neg {
			return nil
		}
		return fmt.Errorf("it is not among %+v", st.Alarms)
	})
}

func (s *site) cmdEventually(ts *testscript.TestScript, neg bool, args []string) error {
	limit, err := time.ParseDuration(args[0])
	f := siteCommands[args[1]]
	if err != nil || f == nil {
		return errors.New("eventually DURATION COMMAND…")
	}
	if raced() { // as backLimit
		limit *= 3
	}
	return patience(limit, func() error { return f(s, ts, neg, args[2:]) })
}

// cmdProc prints what the kernel knows of a role's process, sockets by what they are.
func (s *site) cmdProc(ts *testscript.TestScript, _ bool, args []string) error {
	pid := 0
	var err error
	if args[0] == "serve" {
		pid = s.serve.Process.Pid
	} else if pid, err = s.role(args[0]); err != nil {
		return err
	}
	dir := fmt.Sprintf("/proc/%d", pid)
	if args[1] != "fds" {
		b, err := os.ReadFile(filepath.Join(dir, args[1]))
		ts.Stdout().Write(bytes.ReplaceAll(b, []byte{0}, []byte("\n")))
		return err
	}
	sockets := map[string]string{}
	for _, kind := range []string{"tcp", "tcp6", "udp", "udp6", "unix"} {
		b, err := os.ReadFile(filepath.Join(dir, "net", kind))
		if err != nil {
			continue // no such family here
		}
		column := 9
		if kind == "unix" {
			column = 6
		}
		for _, line := range strings.Split(string(b), "\n")[1:] {
			if f := strings.Fields(line); len(f) > column {
				name := kind
				if kind == "unix" {
					name += " " + strings.Join(f[column+1:], "")
				}
				sockets[fmt.Sprintf("socket:[%s]", f[column])] = name
			}
		}
	}
	fds, err := os.ReadDir(dir + "/fd")
	for _, fd := range fds {
		target, _ := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
		if kind := sockets[target]; kind != "" {
			target += " " + kind
		}
		fmt.Fprintln(ts.Stdout(), target)
	}
	return err
}

// cmdJSON follows a path: names, numbers, and name=value for the element of a list that has it.
func (s *site) cmdJSON(ts *testscript.TestScript, neg bool, args []string) error {
	text := ts.ReadFile("stdout")
	if !regexp.MustCompile(`^\{\s*"v":\s*1,`).MatchString(text) {
		return fmt.Errorf("\"v\": 1 is not first:\n%s", text)
	}
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return err
	}
	fmt.Fprint(ts.Stdout(), text) // for the next one
	found := true
	for step := range strings.SplitSeq(args[0], "/") {
		switch x := v.(type) {
		case map[string]any:
			v, found = x[step]
		case []any:
			key, value, _ := strings.Cut(step, "=")
			if n, err := strconv.Atoi(step); err == nil && n < len(x) {
				v = x[n]
				break
			}
			n := slices.IndexFunc(x, func(e any) bool { m, _ := e.(map[string]any); return fmt.Sprint(m[key]) == value && value != "" })
			if found = n >= 0; found {
				v = x[n]
			}
		default:
			found = false
		}
		if !found {
			break
		}
	}
	switch {
	case neg && found:
		return fmt.Errorf("there is %v", v)
	case neg:
		return nil
	case !found:
		return fmt.Errorf("%s is not there:\n%s", args[0], text)
	case len(args) > 1 && fmt.Sprint(v) != args[1]:
		return fmt.Errorf("%s is %v, want %s:\n%s", args[0], v, args[1], text)
	}
	return nil
}

// question is one about one certificate, as clients make it.
type question struct {
	der, nonce []byte
	serial     *big.Int
	issuer     *x509.Certificate
}

func (s *site) question(issuer, leaf string, nonce bool) *question {
	q := &question{serial: s.serial(leaf), issuer: s.cas[issuer].cert}
	plain, err := ocsp.CreateRequest(&x509.Certificate{SerialNumber: q.serial}, q.issuer, nil)
	if err != nil {
		panic(err) // a certificate of the world's
	}
	q.der = plain
	if !nonce {
		return q
	}
	q.nonce = make([]byte, 16)
	rand.Read(q.nonce)
	var outer, tbs, list cryptobyte.String
	in := cryptobyte.String(plain)
	if !in.ReadASN1(&outer, asn1.SEQUENCE) || !outer.ReadASN1(&tbs, asn1.SEQUENCE) || !tbs.ReadASN1Element(&list, asn1.SEQUENCE) {
		panic("x/crypto/ocsp makes other requests than it used to")
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(list)
			b.AddASN1(asn1.Tag(2).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier([]int{1, 3, 6, 1, 5, 5, 7, 48, 1, 2})
						b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(q.nonce) })
					})
				})
			})
		})
	})
	q.der = b.BytesOrPanic()
	return q
}

// put asks, and judges the answer. It returns the status that was answered.
func (q *question) put(client *http.Client, to, how string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, "POST", to, bytes.NewReader(q.der))
	if how == "get" {
		request, err = http.NewRequestWithContext(ctx, "GET", to+"/"+url.PathEscape(base64.StdEncoding.EncodeToString(q.der)), nil)
	}
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/ocsp-request")
	body, err := fetch(client.Do(request))
	if err != nil {
		return "", err
	}
	r, err := ocsp.ParseResponseForCert(body, &x509.Certificate{SerialNumber: q.serial}, q.issuer)
	switch {
	case err != nil:
		return "", err
	case !bytes.Contains(body, q.nonce):
		return "", errors.New("another nonce")
	}
	return []string{"good", "revoked", "unknown"}[r.Status], nil
}

// asking asks the same thing again and again, each time on a new connection.
type asking struct {
	stop context.CancelFunc
	done sync.WaitGroup
	put  atomic.Int64 // questions
	all  []asked      // when done
}

// await waits until at least so many questions were put.
func (a *asking) await(n int64) error {
	return patience(20*time.Second, func() error {
		if put := a.put.Load(); put < n {
			return fmt.Errorf("only %d questions were put", put)
		}
		return nil
	})
}

type asked struct {
	at     time.Time // of the question
	status string
	err    error
}

const askEvery = 40 * time.Millisecond

func (s *site) cmdAsk(ts *testscript.TestScript, _ bool, args []string) error {
	if len(args) != 4 || args[1] != "post" && args[1] != "get" {
		return errors.New("ask NAME post|get ISSUER CERT")
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &asking{stop: cancel}
	s.loops[args[0]] = l
	to := ts.Getenv("URL")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	l.done.Go(func() {
		tick := time.NewTicker(askEvery)
		defer tick.Stop()
		for {
			a := asked{at: time.Now()}
			a.status, a.err = s.question(args[2], args[3], args[1] == "post").put(client, to, args[1])
			l.all = append(l.all, a)
			l.put.Add(1)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return l.await(3) // so that what the script does next happens in the middle
}

func (a *asking) end() []asked {
	a.stop()
	a.done.Wait()
	return a.all
}

// cmdAsked: with -after, questions put so long after the last ocspd verb returned were all answered by the last status; with -retry, a connection that
// broke in the middle is no failure if the next question was answered, but one that was refused is.
func (s *site) cmdAsked(ts *testscript.TestScript, _ bool, args []string) error {
	after, retry := time.Duration(-1), false
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		var err error
		switch {
		case args[0] == "-retry":
			retry, args = true, args[1:]
		case args[0] == "-after" && len(args) > 1:
			after, err = time.ParseDuration(args[1])
			args = args[2:]
		default:
			err = fmt.Errorf("option %s", args[0])
		}
		if err != nil {
			return err
		}
	}
	l := s.loops[args[0]]
	if l == nil {
		return fmt.Errorf("nobody asks %s", args[0])
	}
	if err := l.await(5); err != nil {
		return err
	}
	all := l.end()
	delete(s.loops, args[0])
	var got []string
	broken := false
	for _, a := range all {
		if a.err != nil {
			if broken || !retry || errors.Is(a.err, syscall.ECONNREFUSED) || !brokenOff(a.err) {
				return fmt.Errorf("of %d questions, the one at %s: %w", len(all), a.at.Format("15:04:05.000"), a.err)
			}
			broken = true
			continue
		}
		broken = false
		if len(got) == 0 || got[len(got)-1] != a.status {
			got = append(got, a.status)
		}
		if after >= 0 && a.at.After(s.returned.Add(after)) && a.status != args[len(args)-1] {
			return fmt.Errorf("%s is answered %v after the verb returned", a.status, a.at.Sub(s.returned))
		}
	}
	ts.Logf("%d questions", len(all))
	if !slices.Equal(got, args[1:]) {
		return fmt.Errorf("of %d answers the statuses were %v, want %v", len(all), got, args[1:])
	}
	return nil
}

// brokenOff: the connection was made, and ended before the answer did.
func brokenOff(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
