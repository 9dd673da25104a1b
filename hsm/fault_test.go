package hsm

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

// shim is the module of testdata/shim.c, which forwards to SoftHSM and spoils calls.
type shim struct {
	t            *testing.T
	module       string
	control, log string

	mu    sync.Mutex
	hangs int // that impatient knows of, of those in the log
}

var buildShim = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "shim.so")
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", path, "testdata/shim.c", "-ldl", "-lpthread").CombinedOutput(); err != nil {
		return "", fmt.Errorf("gcc: %w: %s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := buildShim(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func newShim(t *testing.T) *shim {
	t.Helper()
	newTokens(t, "ocsp")
	module, err := buildShim()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &shim{t: t, module: module, control: filepath.Join(dir, "control"), log: filepath.Join(dir, "log")}
	t.Setenv("SHIM_MODULE", softHSM)
	t.Setenv("SHIM_CONTROL", s.control)
	t.Setenv("SHIM_LOG", s.log)
	return s
}

// rules replaces the rules; none lets everything pass.
func (s *shim) rules(lines ...string) {
	s.t.Helper()
	tmp := s.control + ".new"
	if err := os.WriteFile(tmp, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(tmp, s.control); err != nil {
		s.t.Fatal(err)
	}
}

// calls counts the calls of a function, or of all, since forget.
func (s *shim) calls(names ...string) int {
	s.t.Helper()
	b, err := os.ReadFile(s.log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		for _, name := range names {
			if strings.TrimSpace(line) == name {
				n++
			}
		}
	}
	return n
}

func (s *shim) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	os.Remove(s.log)
	s.hangs = 0
}

func sign(k *Key) error {
	_, err := k.Sign(nil, make([]byte, 32), crypto.SHA256)
	return err
}

// KEY-18, invariant 3: one C_Login, whatever is tried; the refusal outlives the process, and only a person ends it.
func TestKEY18WrongPIN(t *testing.T) {
	s := newShim(t)
	marker := filepath.Join(t.TempDir(), "signer", "pin-refused.main")
	cfg := config(t, s.module)
	cfg.Marker = marker
	wrong := testPIN + "x"
	cfg.PIN = func() ([]byte, error) { return []byte(wrong), nil }
	for range 10 { // "ten starts", each with a fresh reading of the PIN
		_, err := Open(cfg)
		wantError(t, err, "token main", "PIN refused", "ocspd token retry main")
		if !errors.Is(err, ErrPIN) {
			t.Errorf("%v is not ErrPIN", err)
		}
		if strings.Contains(err.Error(), wrong) {
			t.Errorf("%v shows the PIN", err)
		}
	}
	wrong = testPIN // right by now, and still not tried
	if _, err := Open(cfg); !errors.Is(err, ErrPIN) {
		t.Errorf("with the marker: %v", err)
	}
	if n := s.calls("C_Login"); n != 1 {
		t.Errorf("C_Login was called %d times", n)
	}
	b, err := os.ReadFile(marker)
	if err != nil || !strings.Contains(string(b), "CKR_PIN_INCORRECT") || strings.Contains(string(b), testPIN) {
		t.Errorf("marker %q, %v", b, err)
	}
	public, err := OpenPublic(cfg)
	if err != nil {
		t.Errorf("looking at the token needs no login: %v", err)
	} else {
		public.Close()
	}
	if err := os.Remove(marker); err != nil {
		t.Fatal(err)
	}
	reopen(t, cfg)
	if n := s.calls("C_Login"); n != 2 {
		t.Errorf("C_Login was called %d times", n)
	}
}

// What C_Login may answer, and what the token may say before it (KEY-18).
func TestKEY18LoginAnswers(t *testing.T) {
	s := newShim(t)
	s.impatient()
	for _, c := range []struct {
		rule   string
		class  error // ErrPIN, ErrTokenLost or nil for neither
		logins int
		marker bool
	}{
		{"C_Login 0xA0", ErrPIN, 1, true},  // CKR_PIN_INCORRECT
		{"C_Login 0xA1", ErrPIN, 1, true},  // CKR_PIN_INVALID
		{"C_Login 0xA2", ErrPIN, 1, true},  // CKR_PIN_LEN_RANGE
		{"C_Login 0xA3", ErrPIN, 1, true},  // CKR_PIN_EXPIRED
		{"C_Login 0xA4", ErrPIN, 1, true},  // CKR_PIN_LOCKED
		{"C_Login 0x102", ErrPIN, 1, true}, // CKR_USER_PIN_NOT_INITIALIZED
		{"C_Login 0x5", ErrPIN, 1, true},   // CKR_GENERAL_ERROR: may hide a refusal
		{"C_Login 0x6", ErrPIN, 1, true},   // CKR_FUNCTION_FAILED: the same
		{"C_Login 0x30", ErrTokenLost, 1, false},
		{"C_Login 0x32", ErrTokenLost, 1, false},
		{"C_Login 0x100", nil, 1, false}, // CKR_USER_ALREADY_LOGGED_IN: the PIN was not looked at
		{"C_Login hang", ErrTokenLost, 1, false},
		{"C_GetTokenInfo flags=0x20000", ErrPIN, 0, false}, // CKF_USER_PIN_FINAL_TRY
		{"C_GetTokenInfo flags=0x40000", ErrPIN, 0, false}, // CKF_USER_PIN_LOCKED
		{"C_GetTokenInfo flags=0x80000", ErrPIN, 0, false}, // CKF_USER_PIN_TO_BE_CHANGED
		{"C_OpenSession 0x30", ErrTokenLost, 0, false},
		{"C_OpenSession 0xB1", ErrTokenLost, 0, false}, // CKR_SESSION_COUNT, with none of ours open
		{"C_Initialize 0x5", nil, 0, false},
		{"C_GetSlotList 0x30", ErrTokenLost, 0, false},
	} {
		t.Run(c.rule, func(t *testing.T) {
			s.forget()
			s.rules(c.rule)
			cfg := config(t, s.module)
			cfg.Marker = filepath.Join(t.TempDir(), "marker")
			token, err := Open(cfg)
			s.rules()
			if err == nil {
				token.Close()
				t.Fatal("opened")
			}
			for _, class := range []error{ErrPIN, ErrTokenLost} {
				if errors.Is(err, class) != (class == c.class) {
					t.Errorf("%v: is %v: %v", err, class, errors.Is(err, class))
				}
			}
			if n := s.calls("C_Login"); n != c.logins {
				t.Errorf("C_Login was called %d times", n)
			}
			if _, err := os.Stat(cfg.Marker); (err == nil) != c.marker {
				t.Errorf("marker: %v", err)
			}
			if strings.HasSuffix(c.rule, "hang") { // the process is done with this module: only a new one may have it
				_, err := Open(cfg)
				if !errors.Is(err, ErrTokenLost) || s.calls("C_Login") != 1 {
					t.Errorf("after a hang: %v", err)
				}
				s.unhang(1)
			}
		})
	}
}

// impatient lets the deadline of a call come when the call hangs, and only then: no test waits for it, and none is mistaken on a machine that is slow. It
// returns what gives the deadlines that came.
func (s *shim) impatient() (came func() []time.Duration) {
	type deadline struct {
		limit time.Duration
		over  chan time.Time
	}
	var waiting []deadline // the last one is that of the call under way
	var all []time.Duration
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-time.After(2 * time.Millisecond):
			}
			s.mu.Lock()
			if n := s.calls("hangs"); n > s.hangs {
				s.hangs = n
				last := waiting[len(waiting)-1]
				all = append(all, last.limit)
				close(last.over)
				waiting = nil
			}
			s.mu.Unlock()
		}
	}()
	was := after
	after = func(limit time.Duration) <-chan time.Time {
		s.mu.Lock()
		defer s.mu.Unlock()
		waiting = append(waiting, deadline{limit, make(chan time.Time)})
		return waiting[len(waiting)-1].over
	}
	s.t.Cleanup(func() {
		after = was
		close(done)
		<-ended
	})
	return func() []time.Duration {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.Clone(all)
	}
}

// over waits until n calls that hung have come back.
func (s *shim) over(n int) {
	s.t.Helper()
	for start := time.Now(); s.calls("over") < n; time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > 30*time.Second {
			s.t.Fatalf("of %d calls that hung %d came back", n, s.calls("over"))
		}
	}
}

// unhang undoes what stuck calls left, once n of them have come back and nobody is in the module any more: a test has no new process.
func (s *shim) unhang(n int) {
	s.t.Helper()
	s.over(n)
	stacks := make([]byte, 1<<20)
	for start := time.Now(); bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("hsm.await[")); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 30*time.Second {
			s.t.Fatal("what follows a call that came back does not end")
		}
	}
	modules.Lock()
	defer modules.Unlock()
	m := modules.byPath[s.module]
	m.hung = false
	m.ctx.Finalize()
}

// calls is every function of PKCS#11 that this package calls, by what a fault of it means. TestKEY21Matrix finds what is missing here, and what is
// too much.
var calls = map[string]string{
	"C_Initialize": "load",
	"C_GetInfo":    "look", "C_GetSlotList": "look", "C_GetTokenInfo": "look", "C_GetSlotInfo": "look",
	"C_Login":       "login",
	"C_OpenSession": "use", "C_SignInit": "use", "C_Sign": "use", "C_FindObjectsInit": "use", "C_FindObjects": "use", "C_FindObjectsFinal": "use",
	"C_GetAttributeValue": "read",
	"C_GenerateKeyPair":   "write", "C_DestroyObject": "write",
	"C_DecryptInit": "probe", "C_UnwrapKey": "probe", "C_DeriveKey": "probe", "C_SignRecoverInit": "probe", "C_SetAttributeValue": "probe", "C_CopyObject": "probe",
	"C_CloseSession": "end", "C_CloseAllSessions": "end", "C_Finalize": "end",
}

// callsInSource are the functions of PKCS#11 that the source names.
func callsInSource(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	methods := reflect.TypeFor[*pkcs11.Ctx]()
	found := map[string]bool{"C_Login": true} // by a wrapper of our own
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if s, ok := call.Fun.(*ast.SelectorExpr); ok {
					on := ""
					switch x := s.X.(type) {
					case *ast.Ident:
						on = x.Name
					case *ast.SelectorExpr:
						on = x.Sel.Name
					}
					if _, is := methods.MethodByName(s.Sel.Name); is && (on == "c" || on == "ctx") {
						found["C_"+s.Sel.Name] = true
					}
				}
			}
			return true
		})
	}
	return found
}

// codes are those of every class, with what they mean at the login.
var codes = []struct {
	code, class, login string
}{
	{"0xB3", "session", "lost"}, {"0xB0", "session", "lost"}, {"0x90", "session", "lost"}, // SESSION_HANDLE_INVALID, SESSION_CLOSED, OPERATION_ACTIVE
	{"0x91", "session", "PIN"}, {"0x5", "session", "PIN"}, {"0x6", "session", "PIN"}, // OPERATION_NOT_INITIALIZED, GENERAL_ERROR, FUNCTION_FAILED
	{"0x2", "session", "lost"}, {"0x31", "session", "lost"}, {"0x201", "session", "PIN"}, // HOST_MEMORY, DEVICE_MEMORY, TOKEN_RESOURCE_EXCEEDED
	{"0x80000000", "session", "PIN"}, {"0x80000133", "session", "PIN"}, {"0xFFFFFFFF", "session", "PIN"}, // vendors'
	{"0x30", "token", "lost"}, {"0x32", "token", "lost"}, // DEVICE_ERROR, DEVICE_REMOVED
	{"0xE0", "token", "lost"}, {"0xE1", "token", "lost"}, // TOKEN_NOT_PRESENT, TOKEN_NOT_RECOGNIZED
	{"0x190", "token", "lost"}, {"0x3", "token", "PIN"}, // CRYPTOKI_NOT_INITIALIZED, SLOT_ID_INVALID
	{"0x101", "token", "PIN"}, {"0x60", "token", "PIN"}, {"0x82", "token", "PIN"}, // USER_NOT_LOGGED_IN, KEY_HANDLE_INVALID, OBJECT_HANDLE_INVALID
	{"0xA0", "PIN", "PIN"}, {"0xA3", "PIN", "PIN"}, {"0xA4", "PIN", "PIN"}, // PIN_INCORRECT, PIN_EXPIRED, PIN_LOCKED
	{"0x70", "call", "PIN"}, {"0x63", "call", "PIN"}, {"0x68", "call", "PIN"}, // MECHANISM_INVALID, KEY_TYPE_INCONSISTENT, KEY_FUNCTION_NOT_PERMITTED
	{"0x21", "call", "PIN"}, {"0x12", "call", "PIN"}, {"0x11", "call", "PIN"}, // DATA_LEN_RANGE, ATTRIBUTE_TYPE_INVALID, ATTRIBUTE_SENSITIVE
	{"0x100", "call", "failed"}, // USER_ALREADY_LOGGED_IN: the PIN was not looked at
}

// stages are what is done with a token. A stage that starts or ends has no open one.
var stages = []struct {
	name string
	do   func(*Token, *Key) error
}{
	{"start", nil},
	{"sign", func(_ *Token, k *Key) error { return k.Prove(context.Background(), k.Public()) }},
	{"find", func(t *Token, _ *Key) error { _, err := t.Find("pkcs11:object=key"); return err }},
	{"list", func(t *Token, _ *Key) error { _, err := t.Keys(); return err }},
	{"attributes", func(_ *Token, k *Key) error { _, err := k.Attributes(); return err }},
	{"probe", func(t *Token, k *Key) error {
		for _, uri := range []string{"pkcs11:object=key", "pkcs11:object=rsa"} {
			k, err := t.Find(uri)
			if err != nil {
				return err
			}
			a, err := k.Attributes()
			if err != nil {
				return err
			}
			if _, err := k.Probes(a); err != nil {
				return err
			}
		}
		return nil
	}},
	{"generate", func(t *Token, _ *Key) error { _, err := t.Generate("new", nil, "p256"); return err }},
	{"destroy", func(t *Token, _ *Key) error {
		k, err := t.Find("pkcs11:object=goes")
		if err == nil {
			err = t.Destroy(k)
		}
		return err
	}},
	{"end", nil},
}

// wanted is the class of outcome of one fault: healed (nobody notices), failed (returned, and the next operation is well), soft (one of these), lost, PIN.
func wanted(stage, function, code, class, login string) string {
	kind := calls[function]
	if stage == "probe" && function == "C_SignInit" {
		kind = "probe"
	}
	switch {
	case kind == "end":
		return "healed"
	case kind == "probe" && class != "token":
		return "healed" // an answer
	case stage == "probe" && kind == "read" && (class == "session" || class == "call"):
		return "soft"
	case kind == "login":
		return login
	case class == "PIN" && kind != "load":
		return "PIN"
	case kind == "load":
		return "failed"
	case kind == "look" && function == "C_GetTokenInfo" && (code == "0xE0" || code == "0xE1" || code == "0x3"):
		return "failed" // taken out since it was listed
	case stage == "start" && class != "call" && (kind == "look" || function == "C_OpenSession"):
		return "lost"
	case stage == "attributes" && kind == "read" && (code == "0x5" || code == "0x6" || code == "0x30"):
		return "healed" // "unreadable"
	case kind == "read" && class == "call":
		return "soft" // an attribute that is not there
	case function == "C_GenerateKeyPair" && (code == "0x5" || code == "0x6" || code == "0x12"):
		return "healed" // with fewer attributes
	case class == "token":
		return "lost"
	case kind == "write" || class == "call":
		return "failed"
	case stage == "generate" || stage == "destroy" || stage == "probe":
		return "soft" // some of it is reading, which is tried again
	}
	return "healed"
}

// OCSP-KEY-21: every call that we make, every class of answer; then the fault clears. Never more than one login a start.
func TestKEY21Matrix(t *testing.T) {
	s := newShim(t)
	cfg := config(t, s.module)
	cfg.Marker = filepath.Join(t.TempDir(), "marker")
	cfg.Log = nil
	var tok *Token
	var key *Key
	open := func() error {
		var err error
		if tok, err = Open(cfg); err != nil {
			return err
		}
		if key, err = tok.Find("pkcs11:object=key"); err != nil {
			tok.Close()
		}
		return err
	}
	if err := open(); err == nil {
		t.Fatal("there is a key")
	}
	setup := reopen(t, cfg)
	generate(t, setup, "key", "p256")
	generate(t, setup, "rsa", "rsa2048")
	setup.Close()
	run := func(name string, do func(*Token, *Key) error) error {
		switch name {
		case "start":
			return open()
		case "end":
			tok.Close()
			return nil
		}
		return do(tok, key)
	}
	prepare := func(name string) {
		t.Helper()
		s.rules()
		closed := tok == nil || tok.lostCause() != nil
		if name == "start" && !closed {
			tok.Close()
		} else if name != "start" && closed {
			if err := open(); err != nil {
				t.Fatal(err)
			}
		}
		if name == "destroy" || name == "generate" {
			raw(t, tok, removeAll("goes", "new"))
		}
		if name == "destroy" {
			generate(t, tok, "goes", "p256")
		}
		s.forget()
	}
	seen := map[string]bool{}
	for _, stage := range stages {
		prepare(stage.name)
		if err := run(stage.name, stage.do); err != nil {
			t.Fatal(err)
		}
		for _, function := range s.called() {
			seen[function] = true
			if calls[function] == "" {
				t.Errorf("%s calls %s, and nobody has said what its faults mean", stage.name, function)
				continue
			}
			for _, c := range codes {
				want := wanted(stage.name, function, c.code, c.class, c.login)
				t.Run(strings.Join([]string{stage.name, function, c.code, want}, " "), func(t *testing.T) {
					if function == "C_OpenSession" && tok.lostCause() == nil {
						tok.Close() // its sessions are open
					}
					prepare(stage.name)
					s.rules(function + " " + c.code + " 0 1")
					err := run(stage.name, stage.do)
					s.rules()
					logins, tried := s.calls("C_Login"), s.calls(function)
					got := "failed"
					switch {
					case err == nil:
						got = "healed"
					case errors.Is(err, ErrPIN):
						got = "PIN"
					case errors.Is(err, ErrTokenLost):
						got = "lost"
					}
					if got != want && !(want == "soft" && (got == "healed" || got == "failed")) {
						t.Fatalf("%s: %v", got, err)
					}
					if calls[function] == "write" && want == "failed" && tried != 1 {
						t.Errorf("tried %d times", tried)
					}
					if most := map[bool]int{true: 1}[stage.name == "start"]; logins > most {
						t.Errorf("%d logins", logins)
					}
					_, noMarker := os.Stat(cfg.Marker)
					if marked := noMarker == nil; marked != (want == "PIN") {
						t.Errorf("marker: %v", marked)
					}
					os.Remove(cfg.Marker)
					// The fault is over.
					ended := stage.name == "start" && err != nil || stage.name == "end"
					if lost := !ended && (want == "lost" || want == "PIN"); lost {
						select {
						case <-tok.Lost():
						default:
							t.Error("nobody is told")
						}
						if err := sign(key); !errors.Is(err, ErrTokenLost) || errors.Is(err, ErrPIN) != (want == "PIN") {
							t.Errorf("afterwards: %v", err)
						}
						tok.Close()
						ended = true
					}
					if ended {
						s.forget()
						if err := open(); err != nil {
							t.Fatalf("opened again: %v", err)
						}
						if n := s.calls("C_Login"); n != 1 {
							t.Errorf("%d logins", n)
						}
					}
					if err := key.Prove(context.Background(), key.Public()); err != nil {
						t.Errorf("afterwards: %v", err)
					}
				})
			}
		}
	}
	for function := range calls {
		if !seen[function] {
			t.Errorf("%s is said to be called, and is not", function)
		}
	}
	for function := range callsInSource(t) {
		if !seen[function] {
			t.Errorf("the source calls %s, and no stage comes by it", function)
		}
	}
	tok.Close()
}

// removeAll destroys every object of these labels.
func removeAll(labels ...string) func(*pkcs11.Ctx, pkcs11.SessionHandle) (struct{}, error) {
	return func(c *pkcs11.Ctx, session pkcs11.SessionHandle) (struct{}, error) {
		for _, l := range labels {
			all, err := objects{c, session}.find([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, l)}, maxObjects)
			if err != nil {
				return struct{}{}, err
			}
			for _, h := range all {
				if err := c.DestroyObject(session, h); err != nil {
					return struct{}{}, err
				}
			}
		}
		return struct{}{}, nil
	}
}

// called gives the functions that were called since forget, in order.
func (s *shim) called() []string {
	s.t.Helper()
	b, err := os.ReadFile(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		if name := strings.TrimSpace(line); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// OCSP-KEY-21: every call that we make, and no answer: the caller waits no longer than the deadline. Once a module has hung at a start or an end,
// no other Token uses it in this process; what hung in between is forgiven when it comes back.
func TestKEY21Hangs(t *testing.T) {
	defer func(g time.Duration) { generateDeadline = g }(generateDeadline)
	s := newShim(t)
	came := s.impatient()
	cfg := config(t, s.module)
	cfg.Log = nil
	const limit = 3 * time.Second
	setup := reopen(t, cfg)
	generate(t, setup, "key", "p256")
	generate(t, setup, "rsa", "rsa2048")
	setup.Close()
	for _, stage := range stages {
		var functions []string
		for n := -1; n < len(functions); n++ {
			s.rules()
			var tok *Token
			var key *Key
			var err error
			if stage.name != "start" {
				tok = reopen(t, cfg)
				if key, err = tok.Find("pkcs11:object=key"); err != nil {
					t.Fatal(err)
				}
			}
			if stage.name == "destroy" || stage.name == "generate" {
				raw(t, tok, removeAll("goes", "new"))
			}
			if stage.name == "destroy" {
				generate(t, tok, "goes", "p256")
			}
			run := func(deadline time.Duration) error {
				switch stage.name {
				case "start":
					cfg := cfg
					cfg.Deadline = deadline
					tok, err = Open(cfg)
					return err
				case "end":
					tok.cfg.Deadline = deadline
					tok.Close()
					return nil
				}
				tok.cfg.Deadline, generateDeadline = deadline, deadline
				return stage.do(tok, key)
			}
			s.forget()
			if n < 0 { // what it calls
				if err := run(DefaultDeadline); err != nil {
					t.Fatal(err)
				}
				functions = s.called()
			} else if f := functions[n]; calls[f] != "end" || stage.name == "end" {
				s.rules(f + " hang 0 1")
				before := len(came())
				err := run(limit)
				if stage.name == "start" && !errors.Is(err, ErrTokenLost) || stage.name != "start" && stage.name != "end" && (err == nil || errors.Is(err, ErrTokenLost)) {
					t.Errorf("%s, %s: %v", stage.name, f, err)
				}
				want := []time.Duration{limit}
				if stage.name == "start" {
					want[0] *= startFactor
				}
				if got := came()[before:]; !slices.Equal(got, want) {
					t.Errorf("%s, %s: waited until %v, want %v", stage.name, f, got, want)
				}
				if stage.name == "start" || stage.name == "end" {
					if _, err := Open(cfg); !errors.Is(err, ErrTokenLost) || !strings.Contains(err.Error(), "hangs") {
						t.Errorf("%s, %s: another Token gets the module: %v", stage.name, f, err)
					}
					s.rules()
					s.unhang(1)
					continue
				}
				s.rules()
				tok.cfg.Deadline, generateDeadline = DefaultDeadline, time.Minute
				for tok.stuckCalls() > 0 {
					time.Sleep(time.Millisecond)
				}
				if err := key.Prove(context.Background(), key.Public()); err != nil {
					t.Errorf("%s, %s, when it had come back: %v", stage.name, f, err)
				}
			}
			tok.Close()
		}
	}
}

func (t *Token) stuckCalls() int { t.mu.Lock(); defer t.mu.Unlock(); return t.stuck }

// OCSP-KEY-21: a session that cannot be had again and again is a token that is gone.
func TestKEY21FaultsThatStay(t *testing.T) {
	s := newShim(t)
	tok := reopen(t, config(t, s.module))
	k := generate(t, tok, "key", "p256")
	s.rules("C_SignInit 0x5")
	for i := range maxFaults {
		err := sign(k)
		if lost := errors.Is(err, ErrTokenLost); err == nil || lost != (i == maxFaults-1) {
			t.Errorf("%d: %v", i+1, err)
		}
	}
	tok.Close()

	s.rules()
	tok = reopen(t, config(t, s.module))
	if k, _ = tok.Find("pkcs11:object=key"); k == nil {
		t.Fatal("no key")
	}
	for range 3 * maxFaults { // with a success between them they do not add up
		s.rules("C_SignInit 0x5")
		if err := sign(k); err == nil || errors.Is(err, ErrTokenLost) {
			t.Fatalf("%v", err)
		}
		s.rules()
		if err := sign(k); err != nil {
			t.Fatal(err)
		}
	}
}

// A signature that the module cut short is no signature.
func TestShortSignature(t *testing.T) {
	s := newShim(t)
	tok := reopen(t, config(t, s.module))
	keys := []*Key{generate(t, tok, "a", "p256"), generate(t, tok, "b", "rsa2048"), generate(t, tok, "c", Ed25519)}
	s.rules("C_Sign short")
	for _, k := range keys {
		h := HashFor(k.Public())
		_, err := k.Sign(nil, make([]byte, 32), h)
		if !errors.Is(err, errShape) {
			t.Errorf("%s: %v", k, err)
		}
	}
	s.rules()
	for _, k := range keys {
		if err := k.Prove(context.Background(), k.Public()); err != nil {
			t.Error(err)
		}
	}
}

func TestHang(t *testing.T) {
	s := newShim(t)
	cfg := config(t, s.module)
	cfg.Deadline = time.Second
	tok := reopen(t, cfg)
	k := generate(t, tok, "key", "p256")

	// One call hangs: its caller waits no longer than the deadline, the others sign on, and it is forgiven.
	s.rules("C_Sign hang 0 1")
	start := time.Now()
	err := sign(k)
	if took := time.Since(start); err == nil || errors.Is(err, ErrTokenLost) || took > 10*cfg.Deadline {
		t.Fatalf("after %s: %v", took, err)
	}
	if tok.stuckCalls() != 1 {
		t.Errorf("%d stuck", tok.stuckCalls())
	}
	s.rules("C_Sign hang 1000000") // still held, and no other is
	if err := sign(k); err != nil {
		t.Errorf("beside a stuck session: %v", err)
	}
	s.rules()
	for i := 0; tok.stuckCalls() != 0; i++ {
		if i > 2000 {
			t.Fatal("the call came back and still counts as stuck")
		}
		time.Sleep(10 * time.Millisecond)
	}
	for range 8 { // more than there are permits
		if err := sign(k); err != nil {
			t.Fatal(err)
		}
	}

	// All hang: lost, and nobody waits any more.
	s.rules("C_Sign hang")
	var wg sync.WaitGroup
	for range maxStuck {
		wg.Go(func() { sign(k) })
	}
	wg.Wait()
	start = time.Now()
	if err := sign(k); !errors.Is(err, ErrTokenLost) || time.Since(start) > cfg.Deadline {
		t.Errorf("after %s: %v", time.Since(start), err)
	}
	closing := time.Now()
	tok.Close()
	if time.Since(closing) > 10*cfg.Deadline {
		t.Errorf("closing took %s", time.Since(closing))
	}
	s.rules()
	s.unhang(1 + maxStuck)
}

// A caller's own limit ends its wait for a session.
func TestContext(t *testing.T) {
	s := newShim(t)
	cfg := config(t, s.module)
	cfg.MaxSessions, cfg.Deadline = 1, 20*time.Second
	tok := reopen(t, cfg)
	k := generate(t, tok, "key", "p256")
	s.rules("C_Sign hang 0 1")
	done := make(chan error)
	go func() { done <- sign(k) }()
	for s.calls("C_Sign") < 3 { // two of the proof, and the one that hangs
		time.Sleep(5 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := k.SignContext(ctx, make([]byte, 32), crypto.SHA256)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 10*time.Second {
		t.Errorf("after %s: %v", time.Since(start), err)
	}
	s.rules()
	if err := <-done; err != nil {
		t.Errorf("the call that was only slow: %v", err)
	}
}

// The token's own limits bind: announced in CK_TOKEN_INFO, or found out by CKR_SESSION_COUNT.
func TestSessionLimits(t *testing.T) {
	s := newShim(t)
	for _, c := range []struct {
		rule string
		want int
	}{
		{"C_GetTokenInfo sessions=3", 2}, {"C_GetTokenInfo sessions=1", 1}, {"C_GetTokenInfo sessions=100", 4},
		{"C_GetTokenInfo sessions=0", 4}, {"C_GetTokenInfo sessions=18446744073709551615", 4},
	} {
		s.rules(c.rule)
		tok := reopen(t, config(t, s.module))
		if tok.Sessions() != c.want {
			t.Errorf("%s: %d", c.rule, tok.Sessions())
		}
		s.rules()
		if k, err := tok.Find("pkcs11:object=key"); err == nil {
			if err := sign(k); err != nil {
				t.Errorf("%s: %v", c.rule, err)
			}
		} else if c.want > 1 {
			generate(t, tok, "key", "p256")
		}
		tok.Close()
	}
	tok := reopen(t, config(t, s.module))
	k, err := tok.Find("pkcs11:object=key") // one session is open now
	if err != nil {
		t.Fatal(err)
	}
	s.rules("C_OpenSession 0xB1")
	for range 10 {
		if err := sign(k); err != nil {
			t.Error(err)
		}
	}
	if tok.Sessions() != 1 {
		t.Errorf("%d sessions", tok.Sessions())
	}
}

// Slots are found by what is in them.
func TestRenumberedSlots(t *testing.T) {
	s := newShim(t)
	tok := reopen(t, config(t, s.module))
	generate(t, tok, "key", "p256")
	tok.Close()
	s.rules("* renumber=1234567")
	tok = reopen(t, config(t, s.module))
	k, err := tok.Find("pkcs11:object=key")
	if err != nil {
		t.Fatal(err)
	}
	if err := sign(k); err != nil {
		t.Error(err)
	}
	// Renumbered while it is open: the sessions that there are go on; a new one is of another slot, and the token is looked for again.
	s.rules("* renumber=7")
	if err := sign(k); err != nil && !errors.Is(err, ErrTokenLost) {
		t.Error(err)
	}
	for range tok.Sessions() {
		if err = sign(k); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrTokenLost) {
		t.Errorf("in a slot that is gone: %v", err)
	}
	tok.Close()
	if k, err = reopen(t, config(t, s.module)).Find("pkcs11:object=key"); err != nil {
		t.Fatal(err)
	}
	if err := sign(k); err != nil {
		t.Error(err)
	}
}

// A token that does not know an attribute gets the template without it, and without it alone; one that does not know
// an attribute of custody gets no key from us.
func TestUnknownAttributes(t *testing.T) {
	s := newShim(t)
	tok := reopen(t, config(t, s.module))
	for i, c := range []struct {
		unknown []uint
		ok      bool
	}{
		{[]uint{pkcs11.CKA_COPYABLE}, true},
		{[]uint{pkcs11.CKA_ALLOWED_MECHANISMS, pkcs11.CKA_COPYABLE}, true},
		{[]uint{pkcs11.CKA_DERIVE}, true},
		{[]uint{pkcs11.CKA_EXTRACTABLE}, false},
		{[]uint{pkcs11.CKA_DECRYPT}, false},
	} {
		var rules []string
		for _, a := range c.unknown {
			rules = append(rules, fmt.Sprintf("C_GenerateKeyPair deny=%d", a))
		}
		s.rules(rules...)
		label := fmt.Sprintf("key-%d", i)
		k, err := tok.Generate(label, nil, "p256")
		s.rules()
		if (err == nil) != c.ok {
			t.Errorf("without %#x: %v", c.unknown, err)
		}
		if err != nil {
			continue
		}
		// OCSP-KEY-03: what a token cannot say is not "ok".
		s.rules(fmt.Sprintf("C_GetAttributeValue deny=%d", pkcs11.CKA_NEVER_EXTRACTABLE), fmt.Sprintf("C_GetAttributeValue deny=%d", ckaDecapsulate))
		list, err := k.Attributes()
		s.rules()
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, f := range list.Findings(time.Now()) {
			found = found || f.Name == "key-not-never-extractable" && f.Found == NotSupported && f.Must
		}
		if !found {
			t.Errorf("a token that cannot say CKA_NEVER_EXTRACTABLE passes: %v", list.Findings(time.Now()))
		}
	}
}

// A module that only says that something went wrong may have no room for an attribute (NSS, tpm2-pkcs11), and may have made the key all the same: it
// is asked for one with fewer attributes, but never for a second key.
func TestVagueFailure(t *testing.T) {
	s := newShim(t)
	tok := reopen(t, config(t, s.module))
	for i, c := range []struct {
		unknown []uint
		without string // is not as expected
		ok      bool
	}{
		{[]uint{pkcs11.CKA_COPYABLE}, "CKA_COPYABLE", true},
		{[]uint{pkcs11.CKA_ALLOWED_MECHANISMS, pkcs11.CKA_COPYABLE}, "CKA_COPYABLE", true},
		{[]uint{pkcs11.CKA_VERIFY}, "", true},
		{[]uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_VERIFY}, "", true},
		{[]uint{pkcs11.CKA_EXTRACTABLE}, "", false},
		{[]uint{pkcs11.CKA_DECRYPT}, "", false},
	} {
		for _, code := range []string{"0x5", "0x6"} {
			var rules []string
			for _, a := range c.unknown {
				rules = append(rules, fmt.Sprintf("C_GenerateKeyPair deny=%d:%s", a, code))
			}
			s.rules(rules...)
			k, err := tok.Generate(fmt.Sprintf("key-%d-%s", i, code), nil, "p256")
			s.rules()
			if (err == nil) != c.ok {
				t.Errorf("without %#x: %v", c.unknown, err)
			}
			if err != nil {
				continue
			}
			list, err := k.Attributes()
			if err != nil {
				t.Fatal(err)
			}
			var found []string
			for _, f := range list.Findings(time.Now()) {
				found = append(found, f.Attribute)
			}
			if strings.Join(found, " ") != c.without {
				t.Errorf("without %#x: %v", c.unknown, found)
			}
		}
	}
	s.forget()
	s.rules("C_GenerateKeyPair then=0x5 0 1")
	_, err := tok.Generate("made all the same", nil, "p256")
	s.rules()
	if err == nil || s.calls("C_GenerateKeyPair") != 1 {
		t.Errorf("%v, asked %d times", err, s.calls("C_GenerateKeyPair"))
	}
	if _, err := tok.Find("pkcs11:object=made%20all%20the%20same"); err != nil {
		t.Errorf("it is there, once: %v", err)
	}
}

// OCSP-KEY-03: each attribute in turn that a token does not know, does not show, or fails on: what it must say and does not is a finding, and
// what it may lack is none.
func TestKEY03UnknownAttributes(t *testing.T) {
	s := newShim(t)
	tok := reopen(t, config(t, s.module))
	k := generate(t, tok, "key", "p256")
	for i, spec := range inventory {
		s.rules(fmt.Sprintf("C_GetAttributeValue deny=%d", spec.attribute))
		list, err := k.Attributes()
		s.rules()
		if err != nil {
			t.Fatal(err)
		}
		if list[i].Found != NotSupported {
			t.Errorf("%s is %s", spec.name, list[i].Found)
		}
		found := list.Findings(time.Now())
		if want := spec.level == custody || spec.level == should; want != (len(found) == 1) {
			t.Errorf("%s: %v", spec.name, found)
		} else if want && (found[0].Name != spec.finding || found[0].Must != (spec.level == custody)) {
			t.Errorf("%s: %v, must %v", spec.name, found[0], found[0].Must)
		}
		// It fails on this one alone: whatever it would have said is not taken for good.
		for code, lost := range map[string]bool{"0x5": false, "0x30": spec.level != recorded} {
			s.rules(fmt.Sprintf("C_GetAttributeValue deny=%d:%s", spec.attribute, code))
			list, err = k.Attributes()
			s.rules()
			switch {
			case !lost:
				if err != nil || !strings.HasPrefix(list[i].Found, "unreadable: ") {
					t.Errorf("%s, %s: %v", spec.name, code, err)
				} else if found := list.Findings(time.Now()); spec.level != recorded && len(found) != 1 {
					t.Errorf("%s, %s: %v", spec.name, code, found)
				}
			case !errors.Is(err, ErrTokenLost):
				t.Errorf("%s, %s: %v", spec.name, code, err)
			default:
				tok.Close()
				tok = reopen(t, config(t, s.module))
				if k, err = tok.Find("pkcs11:object=key"); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// Invariant 3 and the promise of the package comment, by the calls that arrive at the module.
func TestWhatIsCalled(t *testing.T) {
	s := newShim(t)
	tok := reopen(t, config(t, s.module))
	generate(t, tok, "key", "p256")
	generate(t, tok, "rsa", "rsa2048")
	k, err := tok.Find("pkcs11:object=key")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Attributes(); err != nil {
		t.Fatal(err)
	}
	for range tok.Sessions() {
		if err := sign(k); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.calls("C_WrapKey", "C_UnwrapKey", "C_CopyObject", "C_CreateObject", "C_DeriveKey", "C_SetAttributeValue", "C_Decrypt"); n != 0 {
		t.Errorf("%d calls that copy or change keys", n)
	}
	if n := s.calls("C_Login"); n != 1 {
		t.Errorf("%d logins", n)
	}
	s.forget()
	for range 100 {
		if err := sign(k); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(s.log)
	if err != nil {
		t.Fatal(err)
	}
	if n := s.calls("C_SignInit", "C_Sign"); n != strings.Count(string(b), "\n") || s.calls("C_SignInit") != 100 {
		t.Errorf("signing calls more than it needs: %d of %d", n, strings.Count(string(b), "\n"))
	}
}
