package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ocspd/hardening"
)

var updateConfig = flag.Bool("update-config", false, "rewrite testdata/config/*/*.err from what is reported now")

// configFiles lists the configurations of a corpus: the files in it, and the ocspd.toml of folders that have an issuers.d.
func configFiles(t *testing.T, corpus string) []string {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join("testdata/config", corpus, "*.toml"))
	folders, _ := filepath.Glob(filepath.Join("testdata/config", corpus, "*", "ocspd.toml"))
	if len(files) == 0 || len(folders) == 0 {
		t.Fatalf("no configurations in %s", corpus)
	}
	return append(files, folders...)
}

// Every bad configuration is bound to all that is said of it, word by word and in order.
func TestBadConfig(t *testing.T) {
	for _, file := range configFiles(t, "bad") {
		t.Run(strings.TrimPrefix(file, "testdata/config/bad/"), func(t *testing.T) {
			_, err := readConfig(file)
			var positioned *configError
			if !errors.As(err, &positioned) {
				t.Fatalf("got %v, want a *configError", err)
			}
			golden := strings.TrimSuffix(file, ".toml") + ".err"
			if *updateConfig {
				if err := os.WriteFile(golden, []byte(err.Error()+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, readErr := os.ReadFile(golden)
			if readErr != nil {
				t.Fatal(readErr)
			}
			if d := cmp.Diff(string(want), err.Error()+"\n"); d != "" {
				t.Error(d)
			}
			if strings.Contains(err.Error(), "canary") {
				t.Error("a message repeats what could be a PIN")
			}
		})
	}
}

// Every good configuration is accepted, with no other warnings than those beside it, and what `config show` prints of it is
// the same configuration, with nothing left to fill in.
func TestGoodConfig(t *testing.T) {
	for _, file := range configFiles(t, "good") {
		t.Run(strings.TrimPrefix(file, "testdata/config/good/"), func(t *testing.T) {
			c, err := readConfig(file)
			if err != nil {
				t.Fatal(err)
			}
			var want string
			if b, err := os.ReadFile(strings.TrimSuffix(file, ".toml") + ".warn"); err == nil {
				want = strings.TrimSuffix(string(b), "\n")
			}
			if d := cmp.Diff(want, strings.Join(c.Warnings, "\n")); d != "" {
				t.Error(d)
			}
			again := showAndRead(t, file)
			for _, x := range []*config{c, again} {
				x.File, x.Warnings = "", nil
				slices.SortFunc(x.Tokens, func(a, b *tokenConfig) int { return strings.Compare(a.Name, b.Name) })
				slices.SortFunc(x.Issuers, func(a, b *issuerConfig) int { return strings.Compare(a.Name, b.Name) })
			}
			if d := cmp.Diff(c, again); d != "" {
				t.Errorf("config show read back differs:\n%s", d)
			}
		})
	}
}

// showAndRead runs `config show` on a file and reads what it prints.
func showAndRead(t *testing.T, file string) *config {
	t.Helper()
	var out bytes.Buffer
	runConfig(t, &out, "config", "show", "-c", file)
	shown := filepath.Join(t.TempDir(), "shown.toml")
	if err := os.WriteFile(shown, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := readConfig(shown)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.Bytes())
	}
	return c
}

// runConfig runs one of the config verbs, which must succeed, and returns its talk.
func runConfig(t *testing.T, stdout *bytes.Buffer, argv ...string) string {
	t.Helper()
	stderr := new(bytes.Buffer)
	if code := run(argv, stdout, stderr); code != 0 {
		t.Fatalf("ocspd %s: exit %d, %s", strings.Join(argv, " "), code, stderr)
	}
	return stderr.String()
}

func TestConfigCheckSaysWarnings(t *testing.T) {
	var out bytes.Buffer
	talk := runConfig(t, &out, "config", "check", "-c", "testdata/config/good/accept.toml")
	if got, want := out.String(), "testdata/config/good/accept.toml: ok\n"; got != want {
		t.Errorf("stdout %q, want %q", got, want)
	}
	if !strings.Contains(talk, "accept.toml:12:34: warning: issuer.old.accept: key-not-local is accepted") {
		t.Errorf("stderr %q lacks the warning", talk)
	}
}

func TestConfigShowJSON(t *testing.T) {
	var out bytes.Buffer
	runConfig(t, &out, "config", "show", "-o", "json", "-c", "testdata/config/good/contract.toml")
	if !strings.HasPrefix(out.String(), "{\n  \"v\": 1,\n") {
		t.Errorf("v does not come first: %.40q", out.String())
	}
	var got struct {
		Issuer map[string]struct{ Token, Validity string }
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if i := got.Issuer["class1"]; i.Token != "main" || i.Validity != "24h" {
		t.Errorf("issuer class1 is %+v", i)
	}
}

// The example explains every key there is, and is a configuration.
func TestConfigExample(t *testing.T) {
	var out bytes.Buffer
	runConfig(t, &out, "config", "example")
	file := filepath.Join(t.TempDir(), "ocspd.toml")
	if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := readConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) > 0 {
		t.Errorf("the example earns warnings: %q", c.Warnings)
	}
	keys := map[string]bool{}
	for line := range strings.Lines(out.String()) {
		if key, _, ok := strings.Cut(line, " = "); ok && !strings.HasPrefix(line, "#") {
			keys[key] = true
		}
	}
	shown := map[string]bool{}
	for _, key := range leafKeys(reflect.TypeFor[effective]()) {
		shown[key] = true
	}
	if d := cmp.Diff(shown, keys); d != "" {
		t.Errorf("keys of `config show` and of the example:\n%s", d)
	}
	for _, name := range slices.Concat(findings, hardening.Measures, profiles) {
		if !strings.Contains(out.String(), `"`+name+`"`) {
			t.Errorf("the example does not mention %q", name)
		}
	}
	if n := strings.Count(out.String(), "# Attacker: "); n < 27 {
		t.Errorf("%d notes about attackers, which is not one for every key", n)
	}
}

// leafKeys are the names of the keys that hold values.
func leafKeys(t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		below := f.Type
		if below.Kind() == reflect.Map || below.Kind() == reflect.Slice {
			below = below.Elem()
		}
		switch {
		case name == "-":
		case below.Kind() == reflect.Struct:
			keys = append(keys, leafKeys(below)...)
		default:
			keys = append(keys, name)
		}
	}
	return keys
}

// Values in detail, as the contract's own example has them.
func TestContractConfig(t *testing.T) {
	c, err := readConfig("testdata/config/good/contract.toml")
	if err != nil {
		t.Fatal(err)
	}
	here, err := filepath.Abs("testdata/config/good")
	if err != nil {
		t.Fatal(err)
	}
	i := c.issuer("class1")
	want := &issuerConfig{
		Name: "class1", Certificate: filepath.Join(here, "class1.pem"), Signer: filepath.Join(here, "class1-ocsp.pem"),
		Key: "pkcs11:object=class1-ocsp", Token: "main", Profile: "private", Unissued: "unknown", Validity: 24 * time.Hour, Nonce: "echo", ResponderID: "key", CrlID: "omit", Padding: "pkcs1",
		Sources: []sourceConfig{{CRL: "http://crl.example.org/class1.crl", Refresh: 15 * time.Minute, MaxSize: 64 << 20}},
	}
	if d := cmp.Diff(want, i); d != "" {
		t.Error(d)
	}
	if got, want := c.token("main").PIN, "file:/etc/ocspd/pin"; got != want {
		t.Errorf("PIN %q, want %q", got, want)
	}
}

// readTokens judges tokens, state and run, and nothing else.
func TestReadTokens(t *testing.T) {
	c, err := readTokens("testdata/config/bad/issuers.toml")
	if err != nil {
		t.Fatal(err)
	}
	if c.token("main") == nil || len(c.Issuers) != 0 {
		t.Errorf("tokens %v, issuers %v", c.Tokens, c.Issuers)
	}
	if _, err := readTokens("testdata/config/bad/tokens.toml"); err == nil {
		t.Error("bad tokens are accepted")
	}
}

func TestConfigFileErrors(t *testing.T) {
	if _, err := readConfig(filepath.Join(t.TempDir(), "none.toml")); err == nil || !strings.Contains(err.Error(), "config example") {
		t.Errorf("a missing file: %v", err)
	}
	big := filepath.Join(t.TempDir(), "big.toml")
	if err := os.WriteFile(big, bytes.Repeat([]byte("#\n"), maxConfigFile), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readConfig(big); err == nil || !strings.Contains(err.Error(), "larger than 1 MiB") {
		t.Errorf("a big file: %v", err)
	}
}

func TestDurations(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"7d": 7 * day, "1d12h": 36 * time.Hour, "90s": 90 * time.Second, "24h": day, "1h30m": 90 * time.Minute, "0d5s": 5 * time.Second,
	} {
		got, err := parseDuration(s)
		if err != nil || got != want {
			t.Errorf("%s: %v, %v", s, got, err)
		}
		if back, err := parseDuration(formatDuration(got)); err != nil || back != want {
			t.Errorf("%s is shown as %s", s, formatDuration(got))
		}
	}
	for _, s := range []string{"", "d", "7", "-1d", "1d-2h", "1.5d", "99999d", "1d1d", "65535d2562047h"} {
		if got, err := parseDuration(s); err == nil && got > 0 {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func FuzzReadConfig(f *testing.F) {
	for _, corpus := range []string{"good", "bad"} {
		files, _ := filepath.Glob(filepath.Join("testdata/config", corpus, "*.toml"))
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Add([]byte(exampleConfig))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		file := filepath.Join(dir, "f.toml")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readConfig(file); err != nil {
			return
		}
		showAndRead(t, file)
	})
}
