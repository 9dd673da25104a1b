package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// maxPIN is the largest PIN file, in octets; PKCS#11 modules take 255 at most.
const maxPIN = 1024

// These are where systemd looks for what a unit of ours names, as this program does: sealed, and as it is (systemd.exec(5)).
var (
	sealedStores = []string{"/etc/credstore.encrypted", "/run/credstore.encrypted"}
	plainStores  = []string{"/etc/credstore", "/run/credstore"}
)

const (
	// unsealTime is what a slow TPM may take.
	unsealTime = time.Minute
	// pinsVar names the tokens whose PINs were passed to this process, unsealed, as files from 3 on.
	pinsVar = "OCSPD_PINS"
)

// unseal makes ready what readPIN reads where that is a credential and no unit has it loaded for us: only root can, so a verb does it as long as it is
// root. The PIN waits in a pipe. It gets into no file, no argument and no variable, and into this process's memory only when the token wants it.
func (t *tokenConfig) unseal() {
	name, ok := strings.CutPrefix(t.PIN, "credential:")
	if !ok || os.Getenv("CREDENTIALS_DIRECTORY") != "" || t.Unsealed != nil || t.UnsealErr != nil {
		return
	}
	if n := slices.Index(strings.Split(os.Getenv(pinsVar), ","), t.Name); n >= 0 {
		syscall.CloseOnExec(3 + n)
		t.Unsealed = os.NewFile(uintptr(3+n), "PIN")
	} else if os.Geteuid() == 0 {
		t.Unsealed, t.UnsealErr = unsealCredential(name)
	}
}

// unsealCredential finds the credential as ocspd-signer.service does, under the name ocspd.NAME.
func unsealCredential(name string) (*os.File, error) {
	for _, dir := range sealedStores {
		path := filepath.Join(dir, "ocspd."+name)
		if _, err := os.Stat(path); err == nil {
			return decryptCredential(name, path)
		}
	}
	for _, dir := range plainStores {
		path := filepath.Join(dir, "ocspd."+name)
		if _, err := os.Stat(path); err == nil {
			return openPIN(path)
		}
	}
	path := filepath.Join(sealedStores[0], "ocspd."+name)
	return nil, fmt.Errorf("PIN: the credential %s is not sealed on this machine: there is no %s; make it: systemd-creds encrypt --name=%s - %s", name, path, name, path)
}

// decryptCredential leaves what systemd-creds prints in a pipe, which takes 64 KiB; a PIN is shorter.
func decryptCredential(name, path string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("PIN: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), unsealTime)
	defer cancel()
	var said bytes.Buffer
	c := exec.CommandContext(ctx, "systemd-creds", "decrypt", "--name="+name, path, "-")
	c.Stdout, c.Stderr, c.WaitDelay = w, &said, time.Second
	if err = c.Run(); ctx.Err() != nil {
		err = ctx.Err()
	}
	w.Close()
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("PIN: %s cannot be unsealed (systemd-creds: %s): %w; it is sealed to one machine and one name: seal it anew, "+
			"systemd-creds encrypt --name=%s - %s", path, oneLine(said.String(), 500), err, name, path)
	}
	return r, nil
}

// passPINs gives a process that is to be started what was unsealed for it. c.Env must be set.
func passPINs(c *exec.Cmd, tokens ...*tokenConfig) error {
	var names []string
	for _, t := range tokens {
		t.unseal()
		if t.UnsealErr != nil {
			return fmt.Errorf("token %s: %w", t.Name, t.UnsealErr)
		}
		if t.Unsealed != nil {
			names, c.ExtraFiles = append(names, t.Name), append(c.ExtraFiles, t.Unsealed)
		}
	}
	c.Env = append(c.Env, pinsVar+"="+strings.Join(names, ","))
	return nil
}

// readPIN reads a token's PIN: what was unsealed, or from where the configuration says, "file:/path" or "credential:NAME" of systemd. One newline
// at its end does not belong to it. The caller wipes what it gets; nothing else in the process holds a copy.
func (t *tokenConfig) readPIN() ([]byte, error) {
	if t.UnsealErr != nil {
		return nil, t.UnsealErr
	}
	path, isFile := strings.CutPrefix(t.PIN, "file:")
	name, isCredential := strings.CutPrefix(t.PIN, "credential:")
	switch dir := os.Getenv("CREDENTIALS_DIRECTORY"); {
	case t.Unsealed != nil:
		defer t.Unsealed.Close()
		return pinFrom(t.Unsealed, "the credential "+name)
	case !isFile && !isCredential:
		return nil, errors.New(`PIN: the configuration must say "file:PATH" or "credential:NAME"`)
	case isCredential && dir == "":
		return nil, fmt.Errorf("PIN: the credential %s is there only for root, and inside a systemd unit that loads it; run this as root", name)
	case isCredential:
		path = filepath.Join(dir, name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("PIN: systemd started this without the credential %s; seal it ('systemd-creds encrypt --name=%s - %s'), see that the unit loads it, and restart ocspd-signer",
				name, name, filepath.Join(sealedStores[0], "ocspd."+name))
		}
	}
	f, err := openPIN(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return pinFrom(f, path)
}

// openPIN opens a file that holds a PIN, and that others may neither read nor change.
func openPIN(path string) (*os.File, error) {
	// O_NONBLOCK: a FIFO in its place must not hang us.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("PIN: %w", err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		err = fmt.Errorf("PIN: %w", err)
	case !info.Mode().IsRegular():
		err = fmt.Errorf("PIN: %s is not a regular file", path)
	case info.Mode().Perm()&0o027 != 0:
		err = fmt.Errorf("PIN: %s has mode %04o, so others may read or change it; chmod g-w,o-rwx %s, and change the PIN if someone may have read it",
			path, info.Mode().Perm(), path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// pinFrom reads a PIN; from names where.
func pinFrom(r io.Reader, from string) ([]byte, error) {
	buf := make([]byte, maxPIN+1)
	n, err := io.ReadFull(r, buf)
	if err == nil {
		clear(buf)
		return nil, fmt.Errorf("PIN: %s is larger than %d octets; it holds the PIN alone", from, maxPIN)
	}
	if err != io.EOF && err != io.ErrUnexpectedEOF {
		clear(buf)
		return nil, fmt.Errorf("PIN: %w", err)
	}
	pin := bytes.TrimSuffix(buf[:n], []byte("\n"))
	pin = bytes.TrimSuffix(pin, []byte("\r"))
	if len(pin) == 0 {
		return nil, fmt.Errorf("PIN: %s is empty", from)
	}
	if bytes.ContainsAny(pin, "\r\n") {
		clear(buf)
		return nil, fmt.Errorf("PIN: %s has more than one line; it holds the PIN alone", from)
	}
	return pin, nil
}
