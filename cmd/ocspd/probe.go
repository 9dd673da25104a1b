//go:build probe

package main

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ocspd/hardening"
	"ocspd/pki"
	"ocspd/responder"
)

// This file is in no build for users. It makes a process that is hardened as a role is and then does what whoever has taken over the role would:
//
//	ocspd probe ROLE CONFIG OFF ATTEMPT ARGUMENT
//
// OFF names the walls that are left out: "confine", "seal", both or "none". Exit 0: the attempt succeeded; 3: it was refused, and standard error says how.
func init() {
	if len(os.Args) != 7 || os.Args[1] != "probe" {
		return
	}
	err := probe(os.Args[2], os.Args[3], os.Args[4], os.Args[5], os.Args[6])
	switch {
	case err == nil:
		os.Exit(0)
	case errors.Is(err, os.ErrPermission):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	fmt.Fprintln(os.Stderr, "probe:", err)
	os.Exit(1)
}

func probe(name, file, off, attempt, argument string) error {
	runtime.LockOSThread()
	cfg, err := readConfig(file)
	if err != nil {
		return err
	}
	w := newWalls(cfg, name)
	if !strings.Contains(off, "confine") {
		if w, err = confine(cfg, name); err != nil {
			return err
		}
	} else if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil { // without which there is no filter
		return err
	}
	if !strings.Contains(off, "seal") {
		if _, err := hardening.Seal(w.policy); err != nil {
			return err
		}
	}
	try, ok := attempts[attempt]
	if !ok {
		return fmt.Errorf("no attempt %q", attempt)
	}
	if attempt == "exploit" {
		return exploit(cfg, argument)
	}
	return try(argument)
}

// attempts succeed with nil.
var attempts = map[string]func(string) error{
	"exploit": nil,
	"read": func(path string) error {
		_, err := os.ReadFile(path)
		return err
	},
	"write": func(path string) error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return f.Close()
	},
	"create": func(path string) error { return os.WriteFile(path, nil, 0o600) },
	"list": func(path string) error {
		_, err := os.ReadDir(path)
		return err
	},
	"socket": func(string) error { return closing(unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)) },
	"mptcp":  func(string) error { return closing(unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)) },
	"packet": func(string) error { return closing(unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)) },
	"connect": func(port string) error {
		n, err := strconv.Atoi(port)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrInet4{Port: n, Addr: [4]byte{127, 0, 0, 1}})
	},
	"listen": func(string) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		return unix.Listen(fd, 1)
	},
	"shell": func(string) error { return unix.Exec("/bin/sh", []string{"sh", "-c", "exit 0"}, nil) },
	"fork": func(string) error {
		p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
		if err != nil {
			return err
		}
		_, err = p.Wait()
		return err
	},
	"ptrace": func(pid string) error {
		n, err := strconv.Atoi(pid)
		if err != nil {
			return err
		}
		if err := unix.PtraceAttach(n); err != nil {
			return err
		}
		var status unix.WaitStatus
		unix.Wait4(n, &status, 0, nil)
		return unix.PtraceDetach(n)
	},
	"signal": func(pid string) error {
		n, err := strconv.Atoi(pid)
		if err != nil {
			return err
		}
		return unix.Kill(n, unix.SIGCONT)
	},
	"signal by a file": func(pid string) error {
		n, err := strconv.Atoi(pid)
		if err != nil {
			return err
		}
		_, err = unix.FcntlInt(0, unix.F_SETOWN, n)
		return err
	},
	"mount": func(dir string) error {
		if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
			return err
		}
		return unix.Unmount(dir, 0)
	},
	"bpf": func(string) error {
		attr := struct{ kind, key, value, entries, flags uint32 }{2, 4, 4, 1, 0} // an array with one entry
		return call(unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	},
	"io_uring": func(string) error {
		var params [120]byte
		return call(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	},
	"keyctl": func(string) error {
		_, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_PROCESS_KEYRING, true)
		return err
	},
	"unshare": func(string) error { return unix.Unshare(unix.CLONE_NEWUTS) },
	"write and execute": func(string) error {
		_, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		return err
	},
	"make dumpable":  func(string) error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) },
	"anonymous file": func(string) error { return closing(unix.MemfdCreate("probe", 0)) },
}

func closing(fd int, err error) error {
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func call(number, a, b, c uintptr) error {
	if _, _, errno := unix.Syscall(number, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

// exploit is a front that has been taken over: it says to signer and keeper whatever it likes. What it gets from signer it prints, a line
// for each answer: issuer, serial, whether with a nonce, the OCSPResponse in base64. orders is a serial that it tries to have revoked.
func exploit(cfg *config, orders string) error {
	if err := forgeFeed(cfg); err != nil {
		return err
	}
	if err := giveOrders(cfg, orders); err != nil {
		return err
	}
	if err := forgeQuestions(cfg); err != nil {
		return err
	}
	return askEverything(cfg)
}

func frame(kind byte, payload []byte) []byte {
	return append(append(binary.BigEndian.AppendUint32(nil, uint32(1+len(payload))), kind), payload...)
}

// goneAfter sends octets and reports whether the other side hangs up without an answer.
func goneAfter(c net.Conn, octets []byte) bool {
	c.SetDeadline(time.Now().Add(5 * time.Second))
	c.Write(octets)
	n, err := io.Copy(io.Discard, c)
	return n == 0 && (err == nil || errors.Is(err, unix.ECONNRESET))
}

// forgeFeed publishes changes, comes as signer, and sends what has no form. It stays known as front: the first connection is held.
func forgeFeed(cfg *config) error {
	dial := func() net.Conn {
		c, err := dialUnix(cfg.feedSocket())(context.Background())
		if err != nil {
			fmt.Fprintln(os.Stderr, "feed:", err)
			os.Exit(1)
		}
		return c
	}
	front := dial()
	front.Write(frame(2, []byte("f")))
	front.Write(frame(4, []byte(`{"since":"2026-01-01T00:00:00Z","alarms":[],"hardening":[]}`)))
	time.Sleep(300 * time.Millisecond) // until keeper knows the process
	forged := make([]byte, 32+8+8+1+4)
	binary.BigEndian.PutUint64(forged[40:], 1000)
	forged[48] = 1
	for name, octets := range map[string][]byte{
		"change before hello": frame(1, forged), "no role": frame(2, []byte("k")), "too long": {0xff, 0xff, 0xff, 0xff, 1},
		"empty": {0, 0, 0, 0}, "signer": frame(2, []byte("s")),
	} {
		if !goneAfter(dial(), octets) {
			return fmt.Errorf("feed: %s: keeper talks on", name)
		}
	}
	c := dial()
	c.Write(frame(2, []byte("f")))
	c.Write(frame(1, forged)) // as if it were keeper
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, c); err != nil {
		return fmt.Errorf("feed: a change that front publishes: keeper talks on: %w", err)
	}
	return nil
}

// giveOrders calls keeper's control interface.
func giveOrders(cfg *config, serial string) error {
	c := keeperClient(cfg)
	defer c.close()
	for _, path := range []string{"/revoke?issuer=class1&serial=" + serial, "/reload", "/crl/fetch", "/db/backup"} {
		r, err := c.http.Post("http://keeper"+path, "", nil)
		if err != nil {
			return err
		}
		b, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if r.StatusCode == http.StatusOK || !strings.Contains(string(b), "may not give orders here") {
			return fmt.Errorf("keeper takes an order from front: POST %s: %s: %s", path, r.Status, b)
		}
	}
	return nil
}

// forgeQuestions sends what is no question: nothing may be answered.
func forgeQuestions(cfg *config) error {
	issuer, err := loadIssuer(cfg.Issuers[0])
	if err != nil {
		return err
	}
	question := func(version byte, nonce []byte, count byte, items ...byte) []byte {
		b := append([]byte{version}, issuer.ID[:]...)
		b = append(append(b, byte(len(nonce))), nonce...)
		b = append(append(b, count), items...)
		return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
	}
	item := append([]byte{0, 1, 5}, make([]byte, 19)...)
	form, serial := slices.Clone(item), slices.Clone(item)
	form[0], serial[1] = 250, 21
	for name, octets := range map[string][]byte{
		"random": []byte("GET / HTTP/1.1\r\nHost: signer\r\n\r\n" + strings.Repeat("x", 70000)), "version": question(9, nil, 1, item...), "no item": question(1, nil, 0),
		"fewer items than it says": question(1, nil, 9, item...), "nonce too long": question(1, make([]byte, 200), 1, item...),
		"form": question(1, nil, 1, form...), "serial": question(1, nil, 1, serial...), "too long": {0xff, 0xff, 1},
		"an answer": append([]byte{0, 0, 0, 34, 0, 0}, make([]byte, 32)...),
	} {
		c, err := dialUnix(cfg.signerSocket())(context.Background())
		if err != nil {
			return err
		}
		if !goneAfter(c, octets) {
			return fmt.Errorf("signer: %s: it is answered", name)
		}
		c.Close()
	}
	return nil
}

// askEverything puts well-formed questions, many at once: also of issuers that there are not, and with a nonce that looks like what is signed.
func askEverything(cfg *config) error {
	var out sync.Mutex
	var wg sync.WaitGroup
	link := responder.NewLink(dialUnix(cfg.signerSocket()), signerConns/2, 1<<16) // the real front has some of the connections
	failed := make(chan error, 1)
	ask := func(name string, id pki.IssuerID, serial pki.Serial, nonce []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		a, err := link.Ask(ctx, &responder.Question{Issuer: id, Nonce: nonce, Items: []responder.Item{{Serial: serial}}})
		if err != nil {
			select {
			case failed <- err:
			default:
			}
			return
		}
		out.Lock()
		defer out.Unlock()
		fmt.Printf("%s %s %t %s %s\n", name, serial, len(nonce) > 0, a.Status, base64.StdEncoding.EncodeToString(a.DER))
	}
	begun, asked := time.Now(), 0
	for round := range 100 {
		for _, i := range cfg.Issuers {
			issuer, err := loadIssuer(i)
			if err != nil {
				return err
			}
			for _, hex := range []string{"1a01", "1a02", "1a03", "3c01", "80c3000102030405060708090a0b0c02", "3c03", "1aff"} {
				serial, err := pki.ParseSerial(hex)
				if err != nil {
					return err
				}
				var nonce []byte
				if round%2 == 1 { // the beginning of a ResponseData: version, responderID byKey, producedAt
					nonce = []byte{0x30, 0x81, 0xa2, 0xa1, 0x16, 0x04, 0x14, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 0x18, 0x0f, '2', '0', byte(round)}
				}
				asked++
				wg.Go(func() { ask(i.Name, issuer.ID, serial, nonce) })
			}
		}
	}
	one, err := pki.ParseSerial("0a")
	if err != nil {
		return err
	}
	wg.Go(func() { ask("nobody", pki.IssuerID{1, 2, 3}, one, nil) })
	wg.Wait()
	select {
	case err := <-failed:
		return err
	default:
	}
	fmt.Fprintf(os.Stderr, "%d questions in %s\n", asked, time.Since(begun).Round(time.Millisecond))
	return nil
}
