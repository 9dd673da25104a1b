package hsm

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

func (s *shim) forget() { os.Remove(s.log) }

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
			cfg.Deadline = 500 * time.Millisecond
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

// unhang undoes what stuck calls left, once n of them have come back: a test has no new process.
func (s *shim) unhang(n int) {
	s.t.Helper()
	for start := time.Now(); s.calls("over") < n; time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > 30*time.Second {
			s.t.Fatalf("of %d calls that hung %d came back", n, s.calls("over"))
		}
	}
	modules.Lock()
	defer modules.Unlock()
	m := modules.byPath[s.module]
	m.hung = false
	m.ctx.Finalize()
}

// OCSP-KEY-21: every call that signing makes, every class of answer.
func TestKEY21FaultsWhileSigning(t *testing.T) {
	s := newShim(t)
	setup := reopen(t, config(t, s.module))
	generate(t, setup, "key", "p256")
	setup.Close()
	session := []string{"0xB3", "0xB0", "0x90", "0x91", "0x5", "0x6", "0x2", "0x31"}
	token := []string{"0x30", "0x32", "0xE0", "0xE1", "0x101", "0x190", "0x60", "0x82", "0x3"}
	call := []string{"0x70", "0x21", "0x63", "0x68"}
	for _, function := range []string{"C_SignInit", "C_Sign"} {
		for class, codes := range map[string][]string{"session": session, "token": token, "call": call} {
			for _, code := range codes {
				t.Run(function+" "+code+" "+class, func(t *testing.T) {
					s.rules()
					tok := reopen(t, config(t, s.module))
					k, err := tok.Find("pkcs11:object=key")
					if err != nil {
						t.Fatal(err)
					}
					if err := sign(k); err != nil {
						t.Fatal(err)
					}
					s.forget()
					s.rules(function + " " + code + " 0 1")
					err = sign(k)
					opened, closed := s.calls("C_OpenSession"), s.calls("C_CloseSession")
					s.rules()
					after := sign(k)
					switch class {
					case "session": // met without anyone noticing
						if err != nil || after != nil {
							t.Errorf("once: %v; after: %v", err, after)
						}
						if opened != 2 || closed != 1 { // its own, and the one instead
							t.Errorf("%d sessions opened, %d closed", opened, closed)
						}
					case "token":
						if !errors.Is(err, ErrTokenLost) || !errors.Is(after, ErrTokenLost) {
							t.Errorf("once: %v; after: %v", err, after)
						}
						select {
						case <-tok.Lost():
						default:
							t.Error("nobody is told")
						}
					case "call":
						if err == nil || errors.Is(err, ErrTokenLost) || after != nil {
							t.Errorf("once: %v; after: %v", err, after)
						}
						if closed != 1 { // a failed C_Sign leaves its session in CKR_OPERATION_ACTIVE
							t.Errorf("%d sessions closed", closed)
						}
					}
					if n := s.calls("C_Login"); n != 0 {
						t.Errorf("%d logins", n)
					}
					tok.Close()
				})
			}
		}
	}
}

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

// OCSP-KEY-21: faults in what is not signing: finding, reading, generating, destroying.
func TestKEY21FaultsElsewhere(t *testing.T) {
	s := newShim(t)
	for _, c := range []struct {
		function string
		do       func(*Token, *Key) error
		again    bool // reading is tried again; writing never
	}{
		{"C_FindObjectsInit", func(t *Token, k *Key) error { _, err := t.Find("pkcs11:object=key"); return err }, true},
		{"C_FindObjects", func(t *Token, k *Key) error { _, err := t.Find("pkcs11:object=key"); return err }, true},
		{"C_FindObjectsFinal", func(t *Token, k *Key) error { _, err := t.Keys(); return err }, true},
		{"C_GetAttributeValue", func(t *Token, k *Key) error { _, err := t.Keys(); return err }, true},
		{"C_GenerateKeyPair", func(t *Token, k *Key) error { _, err := t.Generate("new", nil, "p256"); return err }, false},
		{"C_DestroyObject", func(t *Token, k *Key) error { return t.Destroy(k) }, false},
		{"C_OpenSession", func(t *Token, k *Key) error { return t.Destroy(k) }, false},
	} {
		for _, code := range []string{"0xB3", "0x5", "0x32"} {
			t.Run(c.function+" "+code, func(t *testing.T) {
				s.rules()
				tok := reopen(t, config(t, s.module))
				defer tok.Close()
				k, err := tok.Find("pkcs11:object=key")
				if err != nil {
					k = generate(t, tok, "key", "p256")
				}
				s.forget()
				s.rules(c.function + " " + code + " 0 1")
				err = c.do(tok, k)
				s.rules()
				if gone := code == "0x32"; gone {
					if !errors.Is(err, ErrTokenLost) {
						t.Errorf("%v", err)
					}
				} else if c.again != (err == nil) {
					t.Errorf("%v", err)
				} else if err != nil && s.calls(c.function) != 1 {
					t.Errorf("tried %d times", s.calls(c.function))
				}
			})
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
	stuck := func() int { tok.mu.Lock(); defer tok.mu.Unlock(); return tok.stuck }

	// One call hangs: its caller waits no longer than the deadline, the others sign on, and it is forgiven.
	s.rules("C_Sign hang 0 1")
	start := time.Now()
	err := sign(k)
	if took := time.Since(start); err == nil || errors.Is(err, ErrTokenLost) || took > 2*cfg.Deadline {
		t.Fatalf("after %s: %v", took, err)
	}
	if stuck() != 1 {
		t.Errorf("%d stuck", stuck())
	}
	s.rules("C_Sign hang 1000000") // still held, and no other is
	if err := sign(k); err != nil {
		t.Errorf("beside a stuck session: %v", err)
	}
	s.rules()
	for i := 0; stuck() != 0; i++ {
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
	if time.Since(closing) > 3*cfg.Deadline {
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
