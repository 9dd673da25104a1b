package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// One server after the other takes over a socket that somebody else holds, as front does when it is started again, while clients come without a pause: some with
// a connection for each question, some with one for many. Each question is answered.
func TestServeClientsLosesNothing(t *testing.T) {
	held, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	const text = "answer"
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for n := range 8 {
		clients.Go(func() {
			c := &http.Client{Transport: &http.Transport{DisableKeepAlives: n%2 == 0}, Timeout: 30 * time.Second}
			defer c.CloseIdleConnections()
			for ctx.Err() == nil {
				r, err := c.Post("http://"+held.Addr().String(), "text/plain", nil)
				if err != nil {
					t.Errorf("client %d: %v", n, err)
					return
				}
				b, err := io.ReadAll(r.Body)
				r.Body.Close()
				if err != nil || string(b) != text {
					t.Errorf("client %d: %q, %v", n, b, err)
					return
				}
			}
		})
	}
	for range 20 {
		f, err := held.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		life, end := context.WithTimeout(t.Context(), 50*time.Millisecond)
		err = serveClients(life, []net.Listener{l}, h, &gate{max: 1000}, slog.New(slog.DiscardHandler))
		end()
		if err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	f, err := held.(*net.TCPListener).File() // for those whose question waits still
	if err != nil {
		t.Fatal(err)
	}
	last, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	life, end := context.WithCancel(t.Context())
	var server sync.WaitGroup
	server.Go(func() { serveClients(life, []net.Listener{last}, h, &gate{max: 1000}, slog.New(slog.DiscardHandler)) })
	clients.Wait()
	end()
	server.Wait()
}
