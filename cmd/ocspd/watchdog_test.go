package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ocspd/responder"
)

// listenNotify stands for systemd: it returns what the process tells it.
func listenNotify(t *testing.T) chan string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	heard := make(chan string, 1000)
	go func() {
		b := make([]byte, 1000)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			heard <- string(b[:n])
		}
	}()
	return heard
}

// systemd hears of a role while its work comes to a good end, and only then: not when it fails, and not when it hangs.
func TestWatchdogIsEarned(t *testing.T) {
	heard := listenNotify(t)
	t.Setenv("WATCHDOG_USEC", "60000")
	t.Setenv("WATCHDOG_PID", "")
	var broken atomic.Bool
	var hangs atomic.Bool
	ctx, cancel := context.WithCancel(t.Context())
	r := &role{log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	ended := make(chan struct{})
	released := make(chan struct{})
	failing, hanging := make(chan struct{}), make(chan struct{})
	var once sync.Once
	go func() {
		defer close(ended)
		r.watchdog(ctx, func(context.Context) error {
			if hangs.Load() {
				once.Do(func() { close(hanging) })
				<-released
			}
			if broken.Load() {
				select {
				case failing <- struct{}{}:
				default: // nobody waits for it, or not yet
				}
				return errors.New("broken")
			}
			return nil
		})
	}()
	expect := func(when string, wanted bool) {
		t.Helper()
		for len(heard) > 0 {
			<-heard
		}
		limit := 400 * time.Millisecond
		if wanted {
			limit = 20 * time.Second
		}
		select {
		case s := <-heard:
			if !wanted || s != "WATCHDOG=1" {
				t.Errorf("%s: systemd heard %q", when, s)
			}
		case <-time.After(limit):
			if wanted {
				t.Errorf("%s: systemd heard nothing", when)
			}
		}
	}
	expect("at work", true)
	broken.Store(true)
	<-failing                          // the rounds that began before are over
	time.Sleep(100 * time.Millisecond) // and what they said was heard
	expect("broken", false)
	broken.Store(false)
	expect("at work again", true)
	hangs.Store(true)
	<-hanging
	time.Sleep(100 * time.Millisecond)
	expect("hanging", false)
	close(released)
	cancel()
	<-ended
}

func TestNoWatchdogWithoutSystemd(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "")
	(&role{}).watchdog(t.Context(), func(context.Context) error { t.Error("work without a reason"); return nil }) // returns
}

func TestFrontAsksItself(t *testing.T) {
	never := func(context.Context, *responder.Question) (responder.Answer, error) {
		t.Error("signer was asked")
		return responder.Answer{}, errors.New("no")
	}
	front := responder.NewFront(never, time.Now, 10)
	if err := front.Use(nil); err != nil {
		t.Fatal(err)
	}
	if err := asksItself(front.Handler(1<<15, 1<<13))(t.Context()); err != nil {
		t.Error(err)
	}
	for name, h := range map[string]http.HandlerFunc{
		"nothing":         func(http.ResponseWriter, *http.Request) {},
		"another answer":  func(w http.ResponseWriter, r *http.Request) { w.Write([]byte{0x30, 3, 0x0a, 1, 3}) },
		"another status":  func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503); w.Write(unauthorized) },
		"a page":          func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>") },
		"an echo":         func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) },
		"one octet extra": func(w http.ResponseWriter, r *http.Request) { w.Write(append([]byte{}, append(unauthorized, 0)...)) },
	} {
		if err := asksItself(h)(t.Context()); err == nil {
			t.Errorf("%s: front takes it for the answer", name)
		}
	}
}

func TestSignerHearsItsToken(t *testing.T) {
	s := &signerRole{}
	if err := s.hearsToken(t.Context()); err == nil {
		t.Error("a token that was never heard is no error")
	}
	s.pulse.beat()
	if err := s.hearsToken(t.Context()); err != nil {
		t.Error(err)
	}
	old := time.Now().Add(-3*healthInterval - time.Second)
	s.pulse.at.Store(&old)
	if err := s.hearsToken(t.Context()); err == nil || !strings.Contains(err.Error(), "31s ago") {
		t.Errorf("a token that fell silent: %v", err)
	}
}
