package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// world is a token, two CAs and a configuration. Both CAs have CRLs alone; what is not on them is good.
type world struct {
	bin, dir, state string
	cas             map[string]*authority
	serve           *exec.Cmd
	ended           chan struct{}
	url, admin      string
	env             []string
	cleanup         []func()
	revocations     int // by hand, so far
}

type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	skid []byte
}

const module = "/usr/lib/softhsm/libsofthsm2.so"

var issuers = []string{"class1", "class3"}

func newWorld(bin, dir string) (*world, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	w := &world{bin: bin, dir: dir, state: filepath.Join(dir, "state"), cas: map[string]*authority{}}
	conf := filepath.Join(dir, "softhsm2.conf")
	w.env = append(os.Environ(), "SOFTHSM2_CONF="+conf)
	if err := os.MkdirAll(filepath.Join(dir, "tokens"), 0o700); err != nil {
		return nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	w.url, w.admin = "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
	text := fmt.Sprintf("state = %q\nrun = %q\n[listen]\nocsp = [\"127.0.0.1:%s\"]\nadmin = \"127.0.0.1:%s\"\n[token.main]\n"+
		"uri = \"pkcs11:token=trial?module-path=%s\"\npin = \"file:pin\"\nenvironment = [\"SOFTHSM2_CONF=%s\"]\n",
		w.state, filepath.Join(dir, "run"), ports[0], ports[1], module, conf)
	files := map[string]string{"softhsm2.conf": "directories.tokendir = " + dir + "/tokens\nobjectstore.backend = file\nlog.level = ERROR\n", "pin": "1234-trial"}
	for _, name := range issuers {
		a, err := newAuthority(name)
		if err != nil {
			return nil, err
		}
		w.cas[name] = a
		files[name+".pem"] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
		text += fmt.Sprintf("[issuer.%s]\ncertificate = \"%s.pem\"\nsigner = \"%s-ocsp.pem\"\nkey = \"pkcs11:object=%s\"\nunissued = \"good\"\n"+
			"[[issuer.%s.source]]\ncrl = \"%s.crl\"\nrefresh = \"1d\"\nmax_size = \"4GiB\"\n", name, name, name, name, name, name)
	}
	files["ocspd.toml"] = text
	for name, content := range files {
		if err := os.WriteFile(w.path(name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	if _, err := w.run("softhsm2-util", "--init-token", "--free", "--label", "trial", "--pin", "1234-trial", "--so-pin", "so-trial"); err != nil {
		return nil, err
	}
	for _, name := range issuers {
		if err := w.makeSigner(name); err != nil {
			return nil, err
		}
		if err := w.publish(name, name+".crl", 1, nil); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func newAuthority(name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}, &x509.Certificate{Subject: pkix.Name{CommonName: name}}, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{key, cert, cert.SubjectKeyId}, nil
}

func (w *world) makeSigner(name string) error {
	if _, err := w.ocspd("key", "generate", name, "--type", "p256"); err != nil {
		return err
	}
	csr, err := w.ocspd("key", "csr", name, "--subject", "/CN="+name+" OCSP signer")
	if err != nil {
		return err
	}
	block, _ := pem.Decode([]byte(csr))
	if block == nil {
		return fmt.Errorf("key csr wrote no PEM: %s", csr)
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return err
	}
	a := w.cas[name]
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: request.Subject, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(0, 6, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}, BasicConstraintsValid: true,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: []byte{5, 0}}},
	}, a.cert, request.PublicKey, a.key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(w.path(name+".issued.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return err
	}
	_, err = w.ocspd("key", "install", w.path(name+".issued.pem"), "--issuer", name)
	return err
}

func freePorts(n int) (ports []string, err error) {
	for range n {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	return ports, nil
}

func (w *world) run(name string, argv ...string) (string, error) {
	c := exec.Command(name, argv...)
	c.Env, c.Dir = w.env, w.dir
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(argv, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// ocspd runs a verb.
func (w *world) ocspd(argv ...string) (string, error) {
	return w.run(w.bin, append([]string{"-c", w.path("ocspd.toml")}, argv...)...)
}

// start serves, and waits until it does.
func (w *world) start() error {
	log, err := os.OpenFile(w.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c := exec.Command(w.bin, "serve", "-c", w.path("ocspd.toml"))
	c.Env, c.Dir, c.Stdout, c.Stderr = w.env, w.dir, log, log
	if err := c.Start(); err != nil {
		return err
	}
	w.serve, w.ended = c, make(chan struct{})
	go func(ended chan struct{}) { c.Wait(); close(ended) }(w.ended)
	return until(time.Minute, func() error {
		select {
		case <-w.ended:
			return final{fmt.Errorf("serve ended: %v; see %s", c.ProcessState, w.path("log"))}
		default:
		}
		s, err := w.status()
		if err == nil && s.Verdict != "serving" {
			err = fmt.Errorf("%s: %v", s.Verdict, s.Alarms)
		}
		return err
	})
}

func (w *world) stop() {
	if w.serve == nil {
		return
	}
	w.serve.Process.Signal(syscall.SIGTERM)
	select {
	case <-w.ended:
	case <-time.After(10 * time.Second):
		w.serve.Process.Kill()
		<-w.ended
	}
	w.serve = nil
}

func (w *world) end() {
	w.stop()
	for i := len(w.cleanup) - 1; i >= 0; i-- {
		w.cleanup[i]()
	}
}

type status struct {
	Verdict string
	Alarms  []struct{ Name, Issuer, Text string }
	Roles   []struct {
		Role string
		PID  int
	}
}

func (w *world) status() (*status, error) {
	b, err := get(w.admin + "/status.json")
	if err != nil {
		return nil, err
	}
	s := &status{}
	return s, json.Unmarshal(b, s)
}

// role is the process of a role.
func (w *world) role(name string) (int, error) {
	s, err := w.status()
	if err != nil {
		return 0, err
	}
	for _, r := range s.Roles {
		if r.Role == name {
			return r.PID, nil
		}
	}
	return 0, fmt.Errorf("no process of role %s", name)
}

// memory is a figure of /proc/PID/status in MiB; VmHWM is the peak.
func memory(pid int, name string) (float64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), name+":"); ok {
			n, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return n / 1024, err
		}
	}
	return 0, fmt.Errorf("no %s of process %d", name, pid)
}

// processorTime is what a process has used, in user mode and in the kernel.
func processorTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const user, system, perTick = 11, 12, 10 * time.Millisecond // proc_pid_stat(5), from the state on; USER_HZ is 100 wherever Go runs
	var ticks int
	for _, f := range []int{user, system} {
		n, err := strconv.Atoi(fields[f])
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * perTick, nil
}

// resetPeak begins VmHWM anew.
func resetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// final is an error that waiting does not mend.
type final struct{ error }

func until(limit time.Duration, f func() error) error {
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil || errors.As(err, new(final)) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("still after %v: %w", limit, err)
		}
	}
}
