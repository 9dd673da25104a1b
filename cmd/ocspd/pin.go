package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxPIN is the largest PIN file, in octets; PKCS#11 modules take 255 at most.
const maxPIN = 1024

// readPIN reads a token's PIN from where the configuration says: "file:/path" or "credential:NAME" of systemd. One
// newline at its end does not belong to it. The caller wipes what it gets; nothing else in the process holds a copy.
func readPIN(source string) ([]byte, error) {
	path, isFile := strings.CutPrefix(source, "file:")
	if !isFile {
		name, ok := strings.CutPrefix(source, "credential:")
		if !ok {
			return nil, errors.New(`PIN: the configuration must say "file:PATH" or "credential:NAME"`)
		}
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return nil, fmt.Errorf("PIN: the credential %s is there only inside a systemd unit that loads it; run this in one: "+
				"systemd-run --pipe --wait --collect -p User=%s -p LoadCredentialEncrypted=%s:/etc/credstore.encrypted/ocspd.%s ocspd …", name, userSigner, name, name)
		}
		path = filepath.Join(dir, name)
	}
	// O_NONBLOCK: a FIFO in its place must not hang us.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("PIN: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("PIN: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("PIN: %s is not a regular file", path)
	case info.Mode().Perm()&0o027 != 0:
		return nil, fmt.Errorf("PIN: %s has mode %04o, so others may read or change it; chmod g-w,o-rwx %s, and change the PIN if someone may have read it",
			path, info.Mode().Perm(), path)
	}
	buf := make([]byte, maxPIN+1)
	n, err := io.ReadFull(f, buf)
	if err == nil {
		clear(buf)
		return nil, fmt.Errorf("PIN: %s is larger than %d octets; it holds the PIN alone", path, maxPIN)
	}
	if err != io.EOF && err != io.ErrUnexpectedEOF {
		clear(buf)
		return nil, fmt.Errorf("PIN: %w", err)
	}
	pin := bytes.TrimSuffix(buf[:n], []byte("\n"))
	pin = bytes.TrimSuffix(pin, []byte("\r"))
	if len(pin) == 0 {
		return nil, fmt.Errorf("PIN: %s is empty", path)
	}
	if bytes.ContainsAny(pin, "\r\n") {
		clear(buf)
		return nil, fmt.Errorf("PIN: %s has more than one line; it holds the PIN alone", path)
	}
	return pin, nil
}
