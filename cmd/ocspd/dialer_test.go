package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// startDialer stands for ocspd-dialer.socket: each connection has a dialer of its own.
func startDialer(t *testing.T, cfg *config, serve func(*net.UnixConn)) {
	t.Helper()
	l, err := net.Listen("unix", cfg.dialerSocket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c.(*net.UnixConn))
			}()
		}
	}()
}

func echoServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(c).ReadString('\n')
			fmt.Fprintf(c, "from %s: %s", c.RemoteAddr(), line)
			c.Close()
		}
	}()
	return l.Addr().String()
}

// What keeper gets from the dialer is the connection itself, and without a dialer it connects by itself.
func TestDialer(t *testing.T) {
	address := echoServer(t)
	ask := func(dial func(context.Context, string, string) (net.Conn, error)) {
		t.Helper()
		c, err := dial(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintln(c, "hello")
		if got, _ := bufio.NewReader(c).ReadString('\n'); got != fmt.Sprintf("from %s: hello\n", c.LocalAddr()) {
			t.Errorf("answered %q", got)
		}
		if c.RemoteAddr().String() != address {
			t.Errorf("connected to %s", c.RemoteAddr())
		}
	}
	alone := &config{Run: t.TempDir()}
	ask(dialFor(alone))

	cfg := &config{Run: t.TempDir()}
	var used atomic.Int32
	startDialer(t, cfg, func(c *net.UnixConn) { used.Add(1); serveDial(t.Context(), c) })
	ask(dialFor(cfg))
	if used.Load() != 1 {
		t.Error("the dialer was not asked")
	}
	// Descriptors do not pile up.
	before := descriptors(t)
	for range 50 {
		ask(dialFor(cfg))
	}
	if after := descriptors(t); after > before+10 {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := dialFor(cfg)(t.Context(), "tcp", l.Addr().String()); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("nobody there: %v", err)
	}
	for _, bad := range []string{"example.org:80\n127.0.0.1:1", strings.Repeat("x", maxAddress) + ":80"} {
		if _, err := dialFor(cfg)(t.Context(), "tcp", bad); err == nil || !strings.Contains(err.Error(), "is no address") {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// Whatever a dialer does wrong is an error, and no descriptor is left.
func TestDialerThatMisbehaves(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd := int(file.Fd())
	for name, serve := range map[string]func(*net.UnixConn){
		"ends":         func(*net.UnixConn) {},
		"says nothing": func(c *net.UnixConn) { time.Sleep(time.Second) },
		"empty line":   func(c *net.UnixConn) { c.Write([]byte("\n")) },
		"noise":        func(c *net.UnixConn) { c.Write([]byte(strings.Repeat("\x1b[2J", 1000))) },
		"a file":       func(c *net.UnixConn) { c.WriteMsgUnix([]byte("\n"), syscall.UnixRights(fd), nil) },
	} {
		cfg := &config{Run: t.TempDir()}
		startDialer(t, cfg, serve)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		c, err := dialFor(cfg)(ctx, "tcp", "127.0.0.1:1")
		cancel()
		if err == nil {
			c.Close()
			t.Errorf("%s: it gave a connection", name)
		} else if strings.ContainsRune(err.Error(), '\x1b') {
			t.Errorf("%s: %q", name, err)
		}
	}
}
