package hsm

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"
)

const (
	softHSM = "/usr/lib/softhsm/libsofthsm2.so"
	testPIN = "0123-secret"
)

// newTokens points SoftHSM at a fresh directory with one token for each label.
func newTokens(t *testing.T, labels ...string) {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	text := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n", dir)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	for _, l := range labels {
		command(t, nil, "softhsm2-util", "--init-token", "--free", "--label", l, "--pin", testPIN, "--so-pin", "so-"+testPIN)
	}
}

func command(t *testing.T, stdin []byte, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	c.Stdin = bytes.NewReader(stdin)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func config(t *testing.T, module string) Config {
	return Config{Name: "main", URI: "pkcs11:token=ocsp?module-path=" + module, MaxSessions: 4,
		PIN: func() ([]byte, error) { return []byte(testPIN), nil }, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

// openToken opens a fresh token of label ocsp.
func openToken(t *testing.T) *Token {
	t.Helper()
	newTokens(t, "ocsp")
	return reopen(t, config(t, softHSM))
}

func reopen(t *testing.T, c Config) *Token {
	t.Helper()
	token, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(token.Close)
	return token
}

func generate(t *testing.T, token *Token, label string, a Algorithm) *Key {
	t.Helper()
	k, err := token.Generate(label, nil, a)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// raw gives a test what the package itself has no use for.
func raw[T any](t *testing.T, token *Token, f func(*pkcs11.Ctx, pkcs11.SessionHandle) (T, error)) T {
	t.Helper()
	v, err := with(context.Background(), token, use{operation: "test", write: true}, f)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one with %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
	if strings.Contains(err.Error(), testPIN) {
		t.Errorf("error %q shows the PIN", err)
	}
}

// opensslVerifies asks openssl, which shares no code with Go or the token's output handling.
func opensslVerifies(t *testing.T, public crypto.PublicKey, message, signature []byte, options ...string) {
	t.Helper()
	dir := t.TempDir()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	key := file("pub.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	args := []string{"pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin", "-in", file("message", message), "-sigfile", file("signature", signature)}
	command(t, nil, "openssl", append(args, options...)...)
}

func digest(h crypto.Hash, message []byte) []byte {
	if h == 0 {
		return message
	}
	w := h.New()
	w.Write(message)
	return w.Sum(nil)
}

func TestEveryAlgorithm(t *testing.T) {
	token := openToken(t)
	message := []byte("to be signed")
	hashNames := map[crypto.Hash]string{crypto.SHA256: "sha256", crypto.SHA384: "sha384", crypto.SHA512: "sha512"}
	for _, a := range Algorithms() {
		t.Run(a, func(t *testing.T) {
			generate(t, token, "key-"+a, Algorithm(a))
			k, err := token.Find("pkcs11:object=key-" + a)
			if err != nil {
				t.Fatal(err)
			}
			if string(k.Algorithm()) != a {
				t.Errorf("algorithm %s", k.Algorithm())
			}
			h := HashFor(k.Public())
			signature, err := k.Sign(nil, digest(h, message), h)
			if err != nil {
				t.Fatal(err)
			}
			if !verify(k.Public(), h, digest(h, message), signature) {
				t.Error("Go does not verify the signature")
			}
			if verify(k.Public(), h, digest(h, append(message, '!')), signature) {
				t.Error("the signature verifies over another message")
			}
			var options []string
			if h != 0 {
				options = []string{"-digest", hashNames[h]}
			}
			opensslVerifies(t, k.Public(), message, signature, options...)
			if err := k.Prove(context.Background(), k.Public()); err != nil {
				t.Error(err)
			}
			if p, ok := k.Public().(*rsa.PublicKey); ok {
				for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
					o := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
					signature, err := k.Sign(nil, digest(h, message), o)
					if err != nil {
						t.Fatal(err)
					}
					if err := rsa.VerifyPSS(p, h, digest(h, message), signature, o); err != nil {
						t.Error(err)
					}
					opensslVerifies(t, p, message, signature, "-digest", hashNames[h], "-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", fmt.Sprintf("rsa_pss_saltlen:%d", h.Size()))
				}
			}
			// A crypto.Signer is what crypto/x509 wants.
			csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(command(t, csr, "openssl", "req", "-inform", "DER", "-verify", "-noout"), "verify OK") {
				t.Error("openssl does not verify the request")
			}
		})
	}
}

// OCSP-RSP-06: DER out of r||s, minimal, for many signatures.
func TestRSP06TenThousandSignatures(t *testing.T) {
	token := openToken(t)
	k := generate(t, token, "key", "p256")
	const workers, each = 4, 2500
	var wg sync.WaitGroup
	var mu sync.Mutex
	kept := map[int][]byte{} // by length, with its message
	messages := map[int][]byte{}
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				message := fmt.Appendf(nil, "%d/%d", w, i)
				d := sha256.Sum256(message)
				s, err := k.Sign(nil, d[:], crypto.SHA256)
				if err != nil {
					t.Error(err)
					return
				}
				if !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), d[:], s) {
					t.Errorf("signature %x does not verify", s)
				}
				mu.Lock()
				if kept[len(s)] == nil {
					kept[len(s)], messages[len(s)] = s, message
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(kept) < 4 {
		t.Errorf("only %d lengths: no short r or s among them", len(kept))
	}
	for n, s := range kept {
		t.Logf("openssl verifies one of %d octets", n)
		opensslVerifies(t, k.Public(), messages[n], s, "-digest", "sha256")
	}
}

// OCSP-RSP-06: the forms that chance brings seldom.
func TestRSP06Form(t *testing.T) {
	k := &Key{public: &ecdsa.PublicKey{Curve: elliptic.P256()}}
	n := elliptic.P256().Params().N
	pair := func(r, s *big.Int) []byte {
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
	one := big.NewInt(1)
	for _, c := range []struct {
		name string
		raw  []byte
		want string // hex, "" for an error
	}{
		{"smallest", pair(one, one), "3006020101020101"},
		{"high bit", pair(big.NewInt(0x80), big.NewInt(0x7f)), "30070202008002017f"},
		{"r is zero", pair(new(big.Int), one), ""},
		{"s is zero", pair(one, new(big.Int)), ""},
		{"r is the order", pair(n, one), ""},
		{"s over the order", pair(one, new(big.Int).Add(n, one)), ""},
		{"short", pair(one, one)[:63], ""},
		{"long", append(pair(one, one), 0), ""},
		{"DER already", []byte{0x30, 6, 2, 1, 1, 2, 1, 1}, ""},
		{"empty", nil, ""},
	} {
		got, err := k.finish(c.raw)
		if (err != nil) != (c.want == "") || fmt.Sprintf("%x", got) != c.want {
			t.Errorf("%s: %x, %v; want %s", c.name, got, err, c.want)
		}
		if err != nil && !errors.Is(err, errShape) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// SoftHSM signs whatever it is given; the package must not pass it on. OCSP-RSP-07: no SHA-1.
func TestSignRefuses(t *testing.T) {
	token := openToken(t)
	p256, rsaKey, ed := generate(t, token, "p256", "p256"), generate(t, token, "rsa", "rsa2048"), generate(t, token, "ed", Ed25519)
	for _, c := range []struct {
		name string
		k    *Key
		n    int
		opts crypto.SignerOpts
	}{
		{"4096 octets of digest", p256, 4096, crypto.SHA256},
		{"digest one short", p256, 31, crypto.SHA256},
		{"SHA-1", p256, 20, crypto.SHA1},
		{"MD5 RSA", rsaKey, 16, crypto.MD5},
		{"SHA-1 RSA", rsaKey, 20, crypto.SHA1},
		{"no hash RSA", rsaKey, 32, crypto.Hash(0)},
		{"no hash ECDSA", p256, 32, crypto.Hash(0)},
		{"PSS with automatic salt", rsaKey, 32, &rsa.PSSOptions{Hash: crypto.SHA256}},
		{"PSS with salt of 20", rsaKey, 32, &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: 20}},
		{"Ed25519 with a hash", ed, 64, crypto.SHA512},
		{"Ed25519 with a context", ed, 64, &ed25519.Options{Context: "x"}},
		{"Ed25519 over nothing", ed, 0, crypto.Hash(0)},
	} {
		if s, err := c.k.Sign(nil, make([]byte, c.n), c.opts); err == nil {
			t.Errorf("%s: signed, %x", c.name, s)
		}
	}
	// A hash longer than the curve's order is cut as FIPS 186-5 says, and verifies.
	d := make([]byte, 64)
	rand.Read(d)
	s, err := p256.Sign(nil, d, crypto.SHA512)
	if err != nil || !ecdsa.VerifyASN1(p256.Public().(*ecdsa.PublicKey), d, s) {
		t.Errorf("SHA-512 with P-256: %v", err)
	}
}

func TestFind(t *testing.T) {
	newTokens(t, "ocsp", "other")
	token := reopen(t, config(t, softHSM))
	k := generate(t, token, "one", "p256")
	if _, err := token.Find("pkcs11:object=absent"); err == nil {
		t.Error("found a key that is not there")
	} else {
		wantError(t, err, "absent", `"one"`)
	}
	byID := fmt.Sprintf("pkcs11:id=%s", percent(k.ID))
	found, err := token.Find(byID)
	if err != nil || found.Label != "one" {
		t.Errorf("by id: %v, %v", found, err)
	}
	if _, err := token.Find("pkcs11:object=two;id=" + percent(k.ID)); err == nil {
		t.Error("label and id of different keys match")
	}
	_, err = token.Find("pkcs11:token=other;object=one")
	wantError(t, err, "another token")
	_, err = token.Find("pkcs11:token=ocsp")
	wantError(t, err, "names no key")

	// A second key of the same label, made by someone else: never a guess.
	_, err = token.Generate("one", nil, "p256")
	wantError(t, err, `label "one"`, "already")
	_, err = token.Generate("three", k.ID, "p256")
	wantError(t, err, "id", "already")
	command(t, nil, "pkcs11-tool", "--module", softHSM, "--token-label", "ocsp", "--login", "--pin", testPIN, "--keypairgen",
		"--key-type", "EC:secp256r1", "--label", "one", "--id", "77")
	_, err = token.Find("pkcs11:object=one")
	wantError(t, err, "more than one", "id 77")
	if found, err := token.Find("pkcs11:object=one;id=%77"); err != nil || !bytes.Equal(found.ID, []byte{0x77}) {
		t.Errorf("label and id: %v, %v", found, err)
	}
	keys, err := token.Keys()
	if err != nil || len(keys) != 2 {
		t.Errorf("keys: %v, %v", keys, err)
	}
}

func percent(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		fmt.Fprintf(&s, "%%%02x", c)
	}
	return s.String()
}

// OCSP-KEY-19: the token is looked at again afterwards.
func TestDestroy(t *testing.T) {
	token := openToken(t)
	generate(t, token, "stays", "p256")
	k := generate(t, token, "goes", "rsa2048")
	if err := token.Destroy(k); err != nil {
		t.Fatal(err)
	}
	keys, err := token.Keys()
	if err != nil || len(keys) != 1 || keys[0].Label != "stays" {
		t.Errorf("left: %v, %v", keys, err)
	}
	left := raw(t, token, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) ([]pkcs11.ObjectHandle, error) {
		return objects{c, s}.find([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, "goes")}, 10)
	})
	if len(left) != 0 {
		t.Errorf("%d objects of its label are left", len(left))
	}
	if err := token.Destroy(k); err == nil {
		t.Error("destroyed twice")
	}
}

func TestOpenRefuses(t *testing.T) {
	newTokens(t, "ocsp", "twin", "twin")
	text := filepath.Join(t.TempDir(), "text.so")
	if err := os.WriteFile(text, bytes.Repeat([]byte("no library\n"), 100), 0o600); err != nil {
		t.Fatal(err)
	}
	noPIN := errors.New("no file")
	for _, c := range []struct {
		name   string
		change func(*Config)
		words  []string
	}{
		{"module missing", func(c *Config) { c.URI = "pkcs11:token=ocsp?module-path=/nowhere/module.so" }, []string{"main", "/nowhere/module.so", "no such file", "installed"}},
		{"module is text", func(c *Config) { c.URI = "pkcs11:token=ocsp?module-path=" + text }, []string{text, "ELF"}},
		{"module is another library", func(c *Config) { c.URI = "pkcs11:token=ocsp?module-path=" + libm(t) }, []string{"C_GetFunctionList"}},
		{"no module", func(c *Config) { c.URI = "pkcs11:token=ocsp" }, []string{"module-path"}},
		{"no token named", func(c *Config) { c.URI = "pkcs11:?module-path=" + softHSM }, []string{"token=LABEL"}},
		{"absent token", func(c *Config) { c.URI = "pkcs11:token=absent?module-path=" + softHSM }, []string{"no such token", `"ocsp"`, `"twin"`}},
		{"two tokens", func(c *Config) { c.URI = "pkcs11:token=twin?module-path=" + softHSM }, []string{"2 tokens match", "serial="}},
		{"wrong serial", func(c *Config) { c.URI = "pkcs11:token=ocsp;serial=1?module-path=" + softHSM }, []string{"no such token"}},
		{"no PIN to read", func(c *Config) { c.PIN = func() ([]byte, error) { return nil, noPIN } }, []string{"no file"}},
		{"empty PIN", func(c *Config) { c.PIN = func() ([]byte, error) { return nil, nil } }, []string{"empty"}},
		{"no PIN", func(c *Config) { c.PIN = nil }, []string{"none is configured"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config(t, softHSM)
			c.change(&cfg)
			token, err := Open(cfg)
			if err == nil {
				token.Close()
			}
			wantError(t, err, c.words...)
			if errors.Is(err, ErrPIN) || errors.Is(err, ErrTokenLost) {
				t.Errorf("%v is of the wrong class", err)
			}
		})
	}
	// None of the refusals kept the module or the token.
	token := reopen(t, config(t, softHSM))
	_, err := Open(config(t, softHSM))
	wantError(t, err, "open in this process already")
	serial := token.Info().Serial
	token.Close()
	cfg := config(t, softHSM)
	cfg.URI = "pkcs11:serial=" + serial + "?module-path=" + softHSM
	if got := reopen(t, cfg).Info().Label; got != "ocsp" {
		t.Errorf("by serial: %q", got)
	}
}

// Two tokens of one module share its one C_Initialize; closing one leaves the other alone.
func TestTwoTokensOfOneModule(t *testing.T) {
	newTokens(t, "ocsp", "other")
	first := reopen(t, config(t, softHSM))
	cfg := config(t, softHSM)
	cfg.Name, cfg.URI = "second", "pkcs11:token=other?module-path="+softHSM
	second := reopen(t, cfg)
	k := generate(t, second, "key", "p256")
	first.Close()
	first.Close() // twice is once
	if err := k.Prove(context.Background(), k.Public()); err != nil {
		t.Error(err)
	}
	if _, err := first.Keys(); err == nil || errors.Is(err, ErrTokenLost) {
		t.Errorf("a closed token: %v", err)
	}
	cfg = config(t, softHSM)
	cfg.InitArgs = "other"
	_, err := Open(cfg)
	wantError(t, err, "different init_args")
	reopen(t, config(t, softHSM))
}

func libm(t *testing.T) string {
	t.Helper()
	path := strings.TrimSpace(command(t, nil, "gcc", "-print-file-name=libm.so.6"))
	if !filepath.IsAbs(path) {
		t.Fatalf("no libm: %s", path)
	}
	return path
}

func TestList(t *testing.T) {
	newTokens(t, "ocsp", "other")
	list, err := List(softHSM, "")
	if err != nil {
		t.Fatal(err)
	}
	var labels []string
	for _, i := range list {
		labels = append(labels, i.Label)
		if i.Serial == "" || i.Model != "SoftHSM v2" || i.HardwareSlot || !slices.Contains(i.Flags, "CKF_LOGIN_REQUIRED") {
			t.Errorf("%+v", i)
		}
	}
	slices.Sort(labels)
	if d := cmp.Diff([]string{"ocsp", "other"}, labels); d != "" {
		t.Error(d)
	}
}

// The PIN that the token was given is wiped where we hold it (OCSP-KEY-18).
func TestKEY18PINWiped(t *testing.T) {
	newTokens(t, "ocsp")
	pin, calls := []byte(testPIN), 0
	cfg := config(t, softHSM)
	cfg.PIN = func() ([]byte, error) { calls++; return pin, nil }
	reopen(t, cfg)
	if calls != 1 || !bytes.Equal(pin, make([]byte, len(testPIN))) {
		t.Errorf("asked for %d times, left as %q", calls, pin)
	}
}

// OCSP-KEY-18: after the login the PIN is nowhere in the memory of the process, the module's included. To show that the search finds what is there,
// the process keeps another text of the same kind.
func TestKEY18PINNotInMemory(t *testing.T) {
	const variable = "HSM_TEST_PIN_FILE"
	if path := os.Getenv(variable); path != "" {
		holdToken(t, path)
		return
	}
	newTokens(t)
	pin, kept := rand.Text(), rand.Text()
	command(t, nil, "softhsm2-util", "--init-token", "--free", "--label", "ocsp", "--pin", pin, "--so-pin", "so-"+testPIN)
	path := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(path, []byte(pin), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".kept", []byte(kept), 0o600); err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0], "-test.run=^TestKEY18PINNotInMemory$")
	child.Env = append(os.Environ(), variable+"="+path)
	child.Stderr = t.Output()
	hold, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer hold.Close()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if n := searchMemory(t, child.Process.Pid, []byte(kept)); n == 0 {
		t.Error("the search does not find what the process keeps")
	}
	if n := searchMemory(t, child.Process.Pid, []byte(pin)); n != 0 {
		t.Errorf("the PIN is in memory %d times", n)
	}
}

// holdToken is the other process: it logs in, signs, and stays until its standard input ends.
func holdToken(t *testing.T, path string) {
	kept, err := os.ReadFile(path + ".kept")
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(t, softHSM)
	cfg.PIN = func() ([]byte, error) {
		b := make([]byte, 26) // of rand.Text
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		_, err = io.ReadFull(f, b)
		return b, err
	}
	token := reopen(t, cfg)
	generate(t, token, "key", "p256")
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(kept)
}

// searchMemory counts how often a text is in the readable memory of a process.
func searchMemory(t *testing.T, pid int, text []byte) (n int) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	read := 0
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || mode[0] != 'r' {
			continue
		}
		const piece = 1 << 20
		b := make([]byte, piece+len(text)-1)
		for ; from < to; from += piece {
			k, _ := mem.ReadAt(b[:min(int64(len(b)), to-from)], from) // what is not there is not readable
			read += k
			n += bytes.Count(b[:k], text)
		}
	}
	if read < 1<<20 {
		t.Fatalf("only %d octets of memory could be read", read)
	}
	return n
}

func TestKEY06InvisibleBeforeLogin(t *testing.T) {
	token := openToken(t)
	generate(t, token, "key", "p256")
	token.Close()
	public, err := OpenPublic(config(t, softHSM))
	if err != nil {
		t.Fatal(err)
	}
	defer public.Close()
	if keys, err := public.Keys(); err != nil || len(keys) != 0 {
		t.Errorf("without a login: %v, %v", keys, err)
	}
}

// OCSP-KEY-02, OCSP-KEY-03, OCSP-KEY-04, OCSP-KEY-07: a generated key has no finding, for every algorithm.
func TestKEY03GeneratedKeyIsClean(t *testing.T) {
	token := openToken(t)
	for _, a := range Algorithms() {
		k := generate(t, token, a, Algorithm(a))
		list, err := k.Attributes()
		if err != nil {
			t.Fatal(err)
		}
		if f := list.Findings(time.Now()); len(f) != 0 {
			t.Errorf("%s: %v", a, f)
		}
		found := map[string]string{}
		for _, x := range list {
			found[x.Name] = x.Found
		}
		if found["CKA_UNIQUE_ID"] != NotSupported || found["CKA_EXTRACTABLE"] != "false" {
			t.Errorf("%s: %v", a, found)
		}
	}
}

// OCSP-KEY-04, OCSP-KEY-05, OCSP-KEY-07: not only said, but so.
func TestKEY04Behaviour(t *testing.T) {
	token := openToken(t)
	k := generate(t, token, "key", "rsa2048")
	for _, c := range []struct {
		name string
		f    func(*pkcs11.Ctx, pkcs11.SessionHandle) error
		want []pkcs11.Error
	}{
		{"decrypt", func(c *pkcs11.Ctx, s pkcs11.SessionHandle) error {
			return c.DecryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil)}, k.handle)
		}, []pkcs11.Error{pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED}},
		{"unwrap", func(c *pkcs11.Ctx, s pkcs11.SessionHandle) error {
			_, err := c.UnwrapKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil)}, k.handle, make([]byte, 256),
				[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES)})
			return err
		}, []pkcs11.Error{pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED}},
		{"change", func(c *pkcs11.Ctx, s pkcs11.SessionHandle) error {
			return c.SetAttributeValue(s, k.handle, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, "renamed")})
		}, []pkcs11.Error{pkcs11.CKR_ACTION_PROHIBITED, pkcs11.CKR_ATTRIBUTE_READ_ONLY}},
		{"copy", func(c *pkcs11.Ctx, s pkcs11.SessionHandle) error {
			_, err := c.CopyObject(s, k.handle, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, "copy")})
			return err
		}, []pkcs11.Error{pkcs11.CKR_ACTION_PROHIBITED}},
		{"read", func(c *pkcs11.Ctx, s pkcs11.SessionHandle) error {
			_, err := c.GetAttributeValue(s, k.handle, []*pkcs11.Attribute{{Type: pkcs11.CKA_PRIVATE_EXPONENT}})
			return err
		}, []pkcs11.Error{pkcs11.CKR_ATTRIBUTE_SENSITIVE}},
		{"other mechanism", func(c *pkcs11.Ctx, s pkcs11.SessionHandle) error {
			return c.SignInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_SHA1_RSA_PKCS, nil)}, k.handle)
		}, []pkcs11.Error{pkcs11.CKR_MECHANISM_INVALID}},
	} {
		_, err := with(context.Background(), token, use{operation: c.name, write: true}, func(x *pkcs11.Ctx, s pkcs11.SessionHandle) (struct{}, error) {
			return struct{}{}, c.f(x, s)
		})
		if !isCode(err, c.want...) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Keys made in other ways are told apart, each by the name that `accept` would take.
func TestKEY03Findings(t *testing.T) {
	token := openToken(t)
	set := pkcs11.NewAttribute
	yes, no := true, false
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := ecKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	made := func(label string, extra ...*pkcs11.Attribute) func(*pkcs11.Ctx, pkcs11.SessionHandle) (struct{}, error) {
		return func(c *pkcs11.Ctx, s pkcs11.SessionHandle) (struct{}, error) {
			public, private := templates(label, []byte(label), algorithms["p256"])
			private = omit(private, typesOf(extra))
			_, _, err := c.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)}, public, append(private, extra...))
			return struct{}{}, err
		}
	}
	for _, c := range []struct {
		label string
		make  func(*pkcs11.Ctx, pkcs11.SessionHandle) (struct{}, error)
		want  []string
	}{
		{"extractable", made("extractable", set(pkcs11.CKA_EXTRACTABLE, yes)), []string{"key-extractable", "key-not-never-extractable"}},
		{"insensitive", made("insensitive", set(pkcs11.CKA_SENSITIVE, no)), []string{"key-not-sensitive", "key-not-always-sensitive"}},
		{"powerful", made("powerful", set(pkcs11.CKA_DECRYPT, yes), set(pkcs11.CKA_UNWRAP, yes), set(pkcs11.CKA_DERIVE, yes), set(pkcs11.CKA_SIGN_RECOVER, yes)),
			[]string{"key-can-sign-recover", "key-can-decrypt", "key-can-unwrap", "key-can-derive"}},
		{"loose", made("loose", set(pkcs11.CKA_MODIFIABLE, yes), set(pkcs11.CKA_COPYABLE, yes)), []string{"key-modifiable", "key-copyable"}},
		{"public", made("public", set(pkcs11.CKA_PRIVATE, no)), []string{"key-not-private"}},
		{"session", made("session", set(pkcs11.CKA_SIGN, no)), []string{"key-cannot-sign"}},
		{"dated", made("dated", set(pkcs11.CKA_END_DATE, []byte("20200101"))), []string{"key-past-end-date"}},
		{"imported", func(c *pkcs11.Ctx, s pkcs11.SessionHandle) (struct{}, error) {
			_, private := templates("imported", []byte("imported"), algorithms["p256"])
			private = append(private, set(pkcs11.CKA_EC_PARAMS, oidP256), set(pkcs11.CKA_VALUE, secret))
			if _, err := c.CreateObject(s, private); err != nil {
				return struct{}{}, err
			}
			public, _ := templates("imported", []byte("imported"), algorithms["p256"])
			raw, _ := ecKey.PublicKey.Bytes()
			_, err := c.CreateObject(s, append(public, set(pkcs11.CKA_EC_POINT, append([]byte{4, 65}, raw...))))
			return struct{}{}, err
		}, []string{"key-not-always-sensitive", "key-not-never-extractable", "key-not-local", "key-generation-unknown"}},
		{"hardened later", func(c *pkcs11.Ctx, s pkcs11.SessionHandle) (struct{}, error) {
			f := made("hardened later", set(pkcs11.CKA_EXTRACTABLE, yes), set(pkcs11.CKA_MODIFIABLE, yes))
			if _, err := f(c, s); err != nil {
				return struct{}{}, err
			}
			h, err := objects{c, s}.find([]*pkcs11.Attribute{set(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), set(pkcs11.CKA_LABEL, "hardened later")}, 1)
			if err != nil {
				return struct{}{}, err
			}
			return struct{}{}, c.SetAttributeValue(s, h[0], []*pkcs11.Attribute{set(pkcs11.CKA_EXTRACTABLE, no)})
		}, []string{"key-not-never-extractable", "key-modifiable"}},
	} {
		t.Run(c.label, func(t *testing.T) {
			raw(t, token, c.make)
			k, err := token.Find("pkcs11:object=" + strings.ReplaceAll(c.label, " ", "%20"))
			if err != nil {
				t.Fatal(err)
			}
			list, err := k.Attributes()
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range list.Findings(time.Now()) {
				got = append(got, f.Name)
				should := f.Name == "key-modifiable" || f.Name == "key-copyable" || f.Name == "key-generation-unknown"
				if f.Must == should {
					t.Errorf("%v: must %v", f, f.Must)
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// OCSP-KEY-16: a token only records the dates. SoftHSM cannot read them back, which is met above; this is for the rest.
func TestKEY16Dates(t *testing.T) {
	now := time.Date(2026, 11, 24, 23, 59, 0, 0, time.UTC)
	for _, c := range []struct {
		attribute uint
		value     string
		want      string
	}{
		{pkcs11.CKA_START_DATE, "", ""}, {pkcs11.CKA_END_DATE, "", ""},
		{pkcs11.CKA_START_DATE, "20261124", ""}, {pkcs11.CKA_END_DATE, "20261124", ""},
		{pkcs11.CKA_START_DATE, "20261125", "key-before-start-date"}, {pkcs11.CKA_END_DATE, "20261123", "key-past-end-date"},
		{pkcs11.CKA_START_DATE, "2026112x", "key-before-start-date"}, {pkcs11.CKA_END_DATE, "99999999", "key-past-end-date"},
	} {
		i := slices.IndexFunc(inventory, func(s attributeSpec) bool { return s.attribute == c.attribute })
		spec := &inventory[i]
		got := ""
		for _, f := range (Attributes{{Name: spec.name, Found: spec.text([]byte(c.value)), spec: spec}}).Findings(now) {
			got += f.Name
		}
		if got != c.want {
			t.Errorf("%s %q: %q, want %q", spec.name, c.value, got, c.want)
		}
	}
	end := slices.IndexFunc(inventory, func(s attributeSpec) bool { return s.attribute == pkcs11.CKA_END_DATE })
	for value, want := range map[string]time.Time{"20261124": time.Date(2026, 11, 24, 23, 59, 59, 0, time.UTC), "": {}, "2026112x": {}} {
		spec := &inventory[end]
		if got := (Attributes{{Name: spec.name, Found: spec.text([]byte(value)), spec: spec}}).End(); !got.Equal(want) {
			t.Errorf("%q ends %s", value, got)
		}
	}
}

func typesOf(list []*pkcs11.Attribute) []uint {
	var s []uint
	for _, a := range list {
		s = append(s, a.Type)
	}
	return s
}

// OCSP-DEL-08: a public key object under the key's id proves nothing; a signature does.
func TestDEL08SwappedPublicKey(t *testing.T) {
	token := openToken(t)
	k := generate(t, token, "victim", "p256")
	stranger := generate(t, token, "stranger", "p256")
	if err := k.Prove(context.Background(), stranger.Public()); !errors.Is(err, ErrOtherKey) || !strings.Contains(err.Error(), "does not verify") {
		t.Errorf("proved with a stranger's key: %v", err)
	}
	other := generate(t, token, "other kind", Ed25519)
	if err := k.Prove(context.Background(), other.Public()); !errors.Is(err, ErrOtherKey) {
		t.Errorf("proved with a key of another kind: %v", err)
	}
	point, _ := stranger.Public().(*ecdsa.PublicKey).Bytes()
	raw(t, token, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) (struct{}, error) {
		public, _ := templates("victim", k.ID, algorithms["p256"])
		_, err := c.CreateObject(s, append(public, pkcs11.NewAttribute(pkcs11.CKA_EC_POINT, append([]byte{4, 65}, point...))))
		return struct{}{}, err
	})
	_, err := token.Find("pkcs11:object=victim")
	wantError(t, err, "two public keys", "differ")
}

// OCSP-KEY-22
func TestKEY22WeakKey(t *testing.T) {
	token := openToken(t)
	command(t, nil, "pkcs11-tool", "--module", softHSM, "--token-label", "ocsp", "--login", "--pin", testPIN, "--keypairgen",
		"--key-type", "rsa:1024", "--label", "weak", "--id", "01")
	command(t, nil, "pkcs11-tool", "--module", softHSM, "--token-label", "ocsp", "--login", "--pin", testPIN, "--keypairgen",
		"--key-type", "EC:secp256k1", "--label", "koblitz", "--id", "02")
	for label, word := range map[string]string{"weak": "1024 bits", "koblitz": "none of P-256"} {
		k, err := token.Find("pkcs11:object=" + label)
		wantError(t, err, label, word)
		if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); err == nil {
			t.Errorf("%s signs", label)
		}
	}
	if keys, err := token.Keys(); err != nil || len(keys) != 2 {
		t.Errorf("the inventory leaves out what it cannot use: %v, %v", keys, err)
	}
}

// OCSP-KEY-22: moduli that anybody can factor, made here; and that good ones pass.
func TestKEY22Moduli(t *testing.T) {
	prime := func(bits int) *big.Int {
		p, err := rand.Prime(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	// A prime k·M + (65537^a mod M), M the product of the first 126 primes: what the flawed library made.
	product := big.NewInt(1)
	for p, n := int64(2), 0; n < 126; p++ {
		if big.NewInt(p).ProbablyPrime(0) {
			product.Mul(product, big.NewInt(p))
			n++
		}
	}
	roca := func() *big.Int {
		for {
			k := new(big.Int).Lsh(big.NewInt(3), 51)
			k.Add(k, new(big.Int).SetBytes([]byte(rand.Text())[:6]))
			p := new(big.Int).Exp(big.NewInt(65537), prime(64), product)
			if p.Add(p, k.Mul(k, product)); p.ProbablyPrime(20) {
				return p
			}
		}
	}
	near := prime(1024)
	next := new(big.Int).Add(near, big.NewInt(2))
	for !next.ProbablyPrime(20) {
		next.Add(next, big.NewInt(2))
	}
	for _, c := range []struct {
		name string
		p, q *big.Int
		word string
	}{
		{"good", prime(1024), prime(1024), ""},
		{"ROCA", roca(), roca(), "ROCA"},
		{"one ROCA prime", roca(), prime(1024), ""}, // not what that attack factors
		{"close primes", near, next, "close"},
		{"the same prime twice", near, near, "close"},
		{"small factor", big.NewInt(751), prime(2039), "factor 751"},
		{"even", big.NewInt(2), prime(2047), "factor 2"},
	} {
		err := checkModulus(new(big.Int).Mul(c.p, c.q))
		if (err == nil) != (c.word == "") || err != nil && !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for _, c := range []struct {
		e    int
		word string
	}{{3, "exponent 3"}, {65536, "exponent 65536"}, {65537, ""}} {
		err := checkPublic(&rsa.PublicKey{N: new(big.Int).Mul(prime(1024), prime(1024)), E: c.e})
		if (err == nil) != (c.word == "") || err != nil && !strings.Contains(err.Error(), c.word) {
			t.Errorf("e = %d: %v", c.e, err)
		}
	}
	odd := &rsa.PublicKey{N: new(big.Int).Mul(prime(1024), prime(1028)), E: 65537}
	if err := checkPublic(odd); err == nil || !strings.Contains(err.Error(), "multiple of 8") {
		t.Errorf("%d bits: %v", odd.N.BitLen(), err)
	}
}

// OCSP-KEY-22: a point must be on its curve, and in the form that PKCS#11 gives.
func TestKEY22Points(t *testing.T) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := k.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ecKey(oidP256, append([]byte{4, 65}, point...)); err != nil || !equal(got, &k.PublicKey) {
		t.Errorf("%v, %v", got, err)
	}
	off := bytes.Clone(point)
	off[64] ^= 1
	for name, b := range map[string][]byte{"off the curve": off, "infinity": {0}, "empty": nil, "short": point[:64], "zero": append([]byte{4}, make([]byte, 64)...)} {
		if got, err := ecKey(oidP256, b); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
	if got, err := ecKey(oidP384, point); err == nil {
		t.Errorf("of another curve: %v", got)
	}
}

// OCSP-KEY-09: a key that wants the PIN for each signature is refused with a reason, and not tried.
func TestKEY09AlwaysAuthenticate(t *testing.T) {
	s := newShim(t)
	token := reopen(t, config(t, s.module))
	public, private := templates("asks", []byte("asks"), algorithms["p256"])
	raw(t, token, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) (struct{}, error) {
		_, _, err := c.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)}, public,
			append(private, pkcs11.NewAttribute(pkcs11.CKA_ALWAYS_AUTHENTICATE, true)))
		return struct{}{}, err
	})
	s.forget()
	k, err := token.Find("pkcs11:object=asks")
	wantError(t, err, "asks", "CKA_ALWAYS_AUTHENTICATE is true, expected false", "OCSP-KEY-09")
	if err := k.Prove(context.Background(), k.Public()); err == nil || errors.Is(err, ErrTokenLost) {
		t.Errorf("%v", err)
	}
	if n := s.calls("C_SignInit", "C_Login"); n != 0 {
		t.Errorf("%d calls that use it", n)
	}
	list, err := k.Attributes()
	if err != nil {
		t.Fatal(err)
	}
	if f := list.Findings(time.Now()); len(f) != 1 || f[0].Name != "key-always-authenticate" || !f[0].Must {
		t.Errorf("%v", f)
	}
}

// OCSP-KEY-20: an attribute that drifts is told, with what it was and is.
func TestKEY20Drift(t *testing.T) {
	token := openToken(t)
	set := pkcs11.NewAttribute
	public, private := templates("key", []byte("key"), algorithms["p256"])
	raw(t, token, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) (struct{}, error) {
		_, _, err := c.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)}, public,
			append(omit(private, []uint{pkcs11.CKA_MODIFIABLE, pkcs11.CKA_DERIVE}), set(pkcs11.CKA_MODIFIABLE, true), set(pkcs11.CKA_DERIVE, false)))
		return struct{}{}, err
	})
	k, err := token.Find("pkcs11:object=key")
	if err != nil {
		t.Fatal(err)
	}
	read := func() Attributes {
		a, err := k.Attributes()
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	before := read()
	if c := read().Changes(before); len(c) != 0 {
		t.Errorf("nothing has changed: %v", c)
	}
	raw(t, token, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) (struct{}, error) {
		return struct{}{}, c.SetAttributeValue(s, k.handle, []*pkcs11.Attribute{set(pkcs11.CKA_DERIVE, true)})
	})
	if d := cmp.Diff([]string{"CKA_DERIVE was false and is true"}, read().Changes(before)); d != "" {
		t.Error(d)
	}
}

// The public key of a key whose public object is gone comes from a certificate of the same id.
func TestPublicKeyFromCertificate(t *testing.T) {
	token := openToken(t)
	k := generate(t, token, "key", "p256")
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	set := pkcs11.NewAttribute
	raw(t, token, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) (struct{}, error) {
		h, err := objects{c, s}.find([]*pkcs11.Attribute{set(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY)}, 2)
		if err != nil {
			return struct{}{}, err
		}
		if err := c.DestroyObject(s, h[0]); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, nil
	})
	_, err = token.Find("pkcs11:object=key")
	wantError(t, err, "no public key")
	raw(t, token, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) (struct{}, error) {
		_, err := c.CreateObject(s, []*pkcs11.Attribute{set(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE), set(pkcs11.CKA_CERTIFICATE_TYPE, pkcs11.CKC_X_509),
			set(pkcs11.CKA_TOKEN, true), set(pkcs11.CKA_PRIVATE, false), set(pkcs11.CKA_ID, k.ID), set(pkcs11.CKA_SUBJECT, []byte{0x30, 0}), set(pkcs11.CKA_VALUE, der)})
		return struct{}{}, err
	})
	found, err := token.Find("pkcs11:object=key")
	if err != nil || !equal(found.Public(), k.Public()) {
		t.Errorf("%v, %v", found, err)
	}
}

func TestConcurrent(t *testing.T) {
	token := openToken(t)
	keys := []*Key{generate(t, token, "a", "p256"), generate(t, token, "b", Ed25519), generate(t, token, "c", "rsa2048")}
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			for range 20 {
				k := keys[i%len(keys)]
				if err := k.Prove(context.Background(), k.Public()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 10 {
			if _, err := token.Keys(); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	if n, _, err := keys[0].Bench(context.Background(), 4, 50*time.Millisecond); err != nil || n == 0 {
		t.Errorf("bench: %d, %v", n, err)
	}
}

func TestParseURI(t *testing.T) {
	for _, c := range []struct {
		uri  string
		want URI
		err  string
	}{
		{uri: "pkcs11:token=ocsp?module-path=/lib/m.so", want: URI{Token: "ocsp", Module: "/lib/m.so"}},
		{uri: "pkcs11:token=a%20b;serial=12", want: URI{Token: "a b", Serial: "12"}},
		{uri: "pkcs11:object=k%3b;id=%01%ff;type=private", want: URI{Object: "k;", ID: []byte{1, 0xff}}},
		{uri: "pkcs11:", want: URI{}},
		{uri: "token=ocsp", err: "prefix"},
		{uri: "pkcs11:slot-id=3", err: "slots are renumbered"},
		{uri: "pkcs11:label=x", err: `"label" is not known`},
		{uri: "pkcs11:token=a;token=b", err: "duplicate"},
		{uri: "pkcs11:token=", err: "empty"},
		{uri: "pkcs11:token", err: "malformed"},
		{uri: "pkcs11:object=a;type=public", err: "type"},
		{uri: "pkcs11:token=a?module-name=x", err: `"module-name" is not known`},
		{uri: "pkcs11:token=a?module-path=m.so", err: "absolute"},
		{uri: "pkcs11:token=%zz", err: "escape"},
		{uri: "pkcs11:token=a?pin-value=" + testPIN, err: "must not hold a PIN"},
	} {
		got, err := ParseURI(c.uri)
		if c.err != "" {
			wantError(t, err, c.err)
			continue
		}
		if err != nil {
			t.Error(err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Error(d)
		}
	}
}

func TestKeyURI(t *testing.T) {
	for _, label := range []string{"class1-ocsp", "a;b=c&d?e%41", "käse 1", "/"} {
		u, err := ParseURI(KeyURI(label))
		if err != nil || u.Object != label {
			t.Errorf("%q: %+v, %v", label, u, err)
		}
	}
}

// BenchmarkSignP256 measures what deadlines, sessions and DER cost, against C_SignInit and C_Sign alone.
func BenchmarkSignP256(b *testing.B) {
	dir := b.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s\n", dir), 0o600)
	b.Setenv("SOFTHSM2_CONF", conf)
	if out, err := exec.Command("softhsm2-util", "--init-token", "--free", "--label", "ocsp", "--pin", testPIN, "--so-pin", testPIN).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	token, err := Open(Config{URI: "pkcs11:token=ocsp?module-path=" + softHSM, MaxSessions: 4, PIN: func() ([]byte, error) { return []byte(testPIN), nil }})
	if err != nil {
		b.Fatal(err)
	}
	defer token.Close()
	k, err := token.Generate("key", nil, "p256")
	if err != nil {
		b.Fatal(err)
	}
	before := cpuTime(b)
	n, d, err := k.Bench(context.Background(), 4, time.Second)
	if err != nil {
		b.Fatal(err)
	}
	rawCPU := float64(cpuTime(b)-before) / float64(n)
	h := make([]byte, 32)
	b.SetParallelism(2)
	b.ResetTimer()
	before = cpuTime(b)
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, err := k.Sign(nil, h, crypto.SHA256); err != nil {
				b.Error(err)
			}
		}
	})
	mine := float64(b.N) / b.Elapsed().Seconds()
	b.ReportMetric(mine, "signatures/s")
	b.ReportMetric(mine/(float64(n)/d.Seconds()), "of-raw")
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N)/rawCPU, "raw-cpu") // steadier beside other load
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
