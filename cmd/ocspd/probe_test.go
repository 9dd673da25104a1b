package main

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ocsp"
)

func init() { siteCommands["exploit"] = (*site).cmdExploit }

// buildProbe makes the binary with probe.go in it, once for all tests, and never with the race detector: what stands against an attempt is the kernel, and
// the walls are to be those of the binary that users have.
var buildProbe = sync.OnceValues(func() (string, error) {
	file := filepath.Join(shared, "ocspd-probe")
	argv := []string{"build", "-buildvcs=false", "-tags", "probe", "-o", file, "."}
	if out, err := exec.Command("go", argv...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %v: %w\n%s", argv, err, out)
	}
	return file, nil
})

// TestWalls has a process that is hardened like each role try what an attacker would, with all walls and with each combination of them taken out: an
// attempt must fail as long as one wall that stands against it is there, and must succeed when none is, or the test would show nothing of the wall.
func TestWalls(t *testing.T) {
	bin, err := buildProbe()
	if err != nil {
		t.Fatal(err)
	}
	site := t.TempDir()
	for _, d := range []string{"etc", "pin", "tokens", "run", "state/keeper", "state/gen", "state/signer", "mnt", "ca"} {
		if err := os.MkdirAll(filepath.Join(site, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(site, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	sourcePort := "1" // no source is there
	write("etc/ocspd.toml", fmt.Sprintf(`state = "../state"
run = "../run"
[listen]
ocsp = ["127.0.0.1:0"]
admin = ""
[token.main]
uri = "pkcs11:token=ocsp?module-path=%s"
pin = "file:../pin/pin"
environment = ["SOFTHSM2_CONF=%s/etc/softhsm2.conf"]
[issuer.class1]
certificate = "class1.pem"
key = "pkcs11:object=class1"
unissued = "good"
[[issuer.class1.source]]
crl = "http://127.0.0.1:%s/class1.crl"
`, softHSM, site, sourcePort))
	write("etc/softhsm2.conf", "directories.tokendir = "+site+"/tokens\n")
	for _, f := range []string{"etc/class1.pem", "etc/secret", "pin/pin", "state/keeper/ocspd.db", "state/signer/highwater", "state/gen/class1.current"} {
		write(f, "2468\n")
	}
	sibling := exec.Command("cat") // until its input ends, which it does however this process ends
	input, err := sibling.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sibling.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { input.Close(); sibling.Wait() }()
	pid := strconv.Itoa(sibling.Process.Pid)

	const confine, seal = "confine", "seal"
	both := []string{confine, seal}
	type row struct {
		attempt, argument string
		walls             []string // each of which stands against it
		killed            bool     // by seal, not merely refused
	}
	everywhere := []row{
		{"read", "/etc/hostname", []string{confine}, false},
		{"read", "state/keeper/ocspd.db", []string{confine}, false},
		{"packet", "", []string{seal, confine}, false},
		{"shell", "", both, true},
		{"fork", "", both, false},
		{"ptrace", pid, both, true},
		{"signal", pid, both, false},
		{"signal by a file", pid, []string{seal}, false},
		{"mount", "mnt", both, true},
		{"unshare", "", both, true},
		{"bpf", "", both, true},
		{"io_uring", "", []string{seal}, true},
		{"keyctl", "", []string{seal}, true},
		{"write and execute", "", []string{seal}, false},
		{"make dumpable", "", []string{seal}, false},
		{"anonymous file", "", []string{seal}, false},
	}
	network := []row{{"socket", "", []string{seal}, false}, {"connect", port, both, false}, {"listen", "", both, false}}
	secret := []row{{"read", "pin/pin", []string{confine}, false}, {"list", "tokens", []string{confine}, false}, {"list", "pin", []string{confine}, false}}
	for role, rows := range map[string][]row{
		"front": append(append(append(network, secret...), everywhere...),
			row{"read", "state/gen/class1.current", []string{confine}, false}, row{"write", "state/keeper/ocspd.db", both, false},
			row{"write", "state/signer/highwater", both, false}, row{"create", "state/gen/forged", both, false}, row{"create", "etc/forged", both, false},
			row{"write", "etc/ocspd.toml", both, false}),
		"signer": append(append(network, everywhere...),
			row{"write", "state/keeper/ocspd.db", []string{confine}, false}, row{"create", "state/keeper/forged", []string{confine}, false},
			row{"create", "state/gen/forged", []string{confine}, false}, row{"write", "state/gen/class1.current", []string{confine}, false}),
		"keeper": append(append(secret, everywhere[2:]...),
			row{"connect", port, []string{confine}, false}, row{"listen", "", both, false}, row{"mptcp", "", []string{seal}, false},
			row{"write", "state/signer/highwater", []string{confine}, false}, row{"create", "state/signer/forged", []string{confine}, false},
			row{"create", "etc/forged", []string{confine}, false}),
	} {
		for _, r := range rows {
			argument := r.argument
			if strings.Contains(argument, "/") && !filepath.IsAbs(argument) || r.attempt == "list" || r.attempt == "mount" {
				argument = filepath.Join(site, argument)
			}
			for _, off := range [][]string{nil, {confine}, {seal}, both} {
				stands := false
				for _, w := range r.walls {
					stands = stands || !strings.Contains(strings.Join(off, "+"), w)
				}
				got := runProbe(bin, role, filepath.Join(site, "etc/ocspd.toml"), off, r.attempt, argument)
				want := "succeeded"
				switch {
				case stands && r.killed && len(off) == 0, stands && r.killed && len(off) == 1 && off[0] == confine:
					want = "killed"
				case stands:
					want = "refused"
				}
				if !strings.HasPrefix(got, want) {
					t.Errorf("%s, without %v: %s %s: %s, want %s", role, off, r.attempt, argument, got, want)
				}
			}
		}
	}

	// Where the PIN lies beside the configuration, it is the file's mode that keeps front out, and that alone.
	pin := filepath.Join(site, "etc/secret")
	for mode, want := range map[os.FileMode]string{0: "refused", 0o644: "succeeded"} {
		if err := os.Chmod(pin, mode); err != nil {
			t.Fatal(err)
		}
		if got := runProbe(bin, "front", filepath.Join(site, "etc/ocspd.toml"), nil, "read", pin); !strings.HasPrefix(got, want) {
			t.Errorf("a file of mode %o in the folder of the configuration: %s, want %s", mode, got, want)
		}
	}
}

// runProbe says how an attempt ended.
func runProbe(bin, role, config string, off []string, attempt, argument string) string {
	without := "none"
	if len(off) > 0 {
		without = strings.Join(off, "+")
	}
	c := exec.Command(bin, "probe", role, config, without, attempt, argument)
	c.Env = append(os.Environ(), "LISTEN_FDNAMES="+listenerOCSP) // as if systemd had passed its listeners
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "succeeded"
	case !errors.As(err, &exit):
		return err.Error()
	case exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGSYS:
		return "killed"
	case exit.ExitCode() == 3:
		return "refused: " + string(bytes.TrimSpace(out))
	}
	return fmt.Sprintf("%v: %s", err, out)
}

// cmdExploit sets a stand-in for a front that was taken over on signer and keeper, and judges every answer that it gets out of signer by another's code.
func (s *site) cmdExploit(ts *testscript.TestScript, _ bool, args []string) error {
	probe, err := buildProbe()
	if err != nil {
		return err
	}
	front, err := s.role("front") // which is set aside: the stand-in is front now
	if err != nil {
		return err
	}
	syscall.Kill(front, syscall.SIGSTOP)
	defer syscall.Kill(front, syscall.SIGCONT)
	c := exec.Command(probe, "probe", "front", s.path("ocspd.toml"), "none", "exploit", "1a01")
	c.Dir, c.Env, c.Stderr = s.dir, s.env, ts.Stderr()
	out, err := c.Output()
	if err != nil {
		return fmt.Errorf("exploit: %w", err)
	}
	truth := map[string]int{
		"class1 1a01": ocsp.Good, "class1 1a02": ocsp.Revoked, "class1 1a03": ocsp.Good, "class1 1aff": ocsp.Unknown, "class1 3c01": ocsp.Unknown, "class1 3c03": ocsp.Unknown,
		"class1 80c3000102030405060708090a0b0c02": ocsp.Unknown, "class3 80c3000102030405060708090a0b0c02": ocsp.Revoked,
		"class3 3c01": ocsp.Good, "class3 3c03": ocsp.Good, "class3 1a01": ocsp.Good, "class3 1a02": ocsp.Good, "class3 1a03": ocsp.Good, "class3 1aff": ocsp.Good,
	}
	judged := map[string]int{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 4 {
			return fmt.Errorf("exploit: %q", line)
		}
		subject := f[0] + " " + f[1]
		want, known := truth[subject]
		if f[3] != "successful" {
			if known {
				return fmt.Errorf("exploit: %s: %s", subject, f[3])
			}
			judged["refused"]++
			continue
		}
		if !known {
			return fmt.Errorf("exploit: %s is answered", subject)
		}
		der, err := base64.StdEncoding.DecodeString(f[4])
		if err != nil {
			return err
		}
		cert := &x509.Certificate{SerialNumber: bigHex(f[1])}
		r, err := ocsp.ParseResponseForCert(der, cert, s.cas[f[0]].cert)
		if err != nil {
			return fmt.Errorf("exploit: %s: %w", subject, err)
		}
		if r.Status != want {
			return fmt.Errorf("exploit: %s: status %d, want %d", subject, r.Status, want)
		}
		judged[subject]++
	}
	for subject := range truth {
		if judged[subject] != 100 {
			return fmt.Errorf("exploit: %s: %d answers of 100", subject, judged[subject])
		}
	}
	if judged["refused"] != 1 {
		return fmt.Errorf("exploit: %d refusals of an issuer that there is not", judged["refused"])
	}
	return nil
}
