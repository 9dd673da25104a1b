package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"strconv"
	"syscall"
	"time"
)

// The control interface is HTTP with JSON on keeper's unix socket. With no keeper running, a verb makes keeper's work in
// its own process, under the state lock, through the same handler: there is one way to do each thing.

// controlError is how the handler reports a failure.
type controlError struct {
	Error string `json:"error"`
	Code  int    `json:"code"` // exit code
}

// client calls the handler, near or far.
type client struct {
	http  *http.Client
	close func()
}

// errNoKeeper: nobody listens on keeper's socket.
var errNoKeeper = errors.New("keeper does not run")

// reachKeeper is a client of the keeper that runs.
func reachKeeper(ctx context.Context, cfg *config) (*client, error) {
	conn, err := dialUnix(cfg.keeperSocket())(ctx)
	switch {
	case err == nil:
		conn.Close()
		return keeperClient(cfg), nil
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("keeper's socket %s: %w; run this as root or as a member of %s", cfg.keeperSocket(), err, groupAdmin)
	}
	return nil, fmt.Errorf("%w (%v)", errNoKeeper, err)
}

// control reaches keeper, or becomes it for one call. A keeper that is just starting has the state before it listens: then the verb waits for its socket.
func (a *app) control(ctx context.Context, cfg *config) (*client, error) {
	// What keeper would log, the verb says itself, in one line.
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	for begun := time.Now(); ; {
		c, err := reachKeeper(ctx, cfg)
		if !errors.Is(err, errNoKeeper) {
			return c, err
		}
		if err := becomeOwner(cfg.keeperDir(), cfg.State); err != nil {
			return nil, err
		}
		k, err := openKeeper(ctx, cfg, log, 100*time.Millisecond)
		if errors.Is(err, errStateLocked) && time.Since(begun) < lockPatience {
			continue
		}
		if err != nil {
			return nil, err
		}
		return &client{http: &http.Client{Transport: handlerTransport{withActor(k.controlHandler(), ownName())}}, close: k.close}, nil
	}
}

// keeperClient speaks to a keeper that runs.
func keeperClient(cfg *config) *client {
	dial := dialUnix(cfg.keeperSocket())
	transport := &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		WriteBufferSize: 256 << 10, // a CRL may be large
	}
	return &client{http: &http.Client{Transport: transport}, close: transport.CloseIdleConnections}
}

// becomeOwner leaves root for the user that owns the first of these folders that is there, so that no file in it becomes root's. Where each role has a user of
// its own, the folder above theirs is root's.
func becomeOwner(dirs ...string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		owner := info.Sys().(*syscall.Stat_t)
		return become(int(owner.Uid), int(owner.Gid))
	}
	return nil // the first use: it becomes ours
}

// call makes one request; the answer's JSON is read into out.
func (c *client) call(ctx context.Context, method, path string, query url.Values, body io.Reader, out any) error {
	resp, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(out)
}

// do makes one request. The caller closes the body of the answer.
func (c *client) do(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "keeper", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if f, ok := body.(*os.File); ok {
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		req.ContentLength = info.Size() // spares it the form in chunks
	}
	p := progressOf(ctx)
	if p != nil {
		req = p.heard(req)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var op *url.Error
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, fmt.Errorf("keeper did not answer: %w; whether the change was made, 'ocspd lookup' tells", err)
	}
	if resp.StatusCode == http.StatusOK {
		p.at("done", 1)
		return resp, nil
	}
	defer resp.Body.Close()
	var e controlError
	if json.NewDecoder(resp.Body).Decode(&e) != nil || e.Error == "" {
		return nil, fmt.Errorf("keeper answered %s", resp.Status)
	}
	return nil, &exitError{e.Code, errors.New(e.Error)}
}

// controlled opens control, makes one call and closes it again, with a bar where that takes long.
func (a *app) controlled(ctx context.Context, method, path string, query url.Values, body io.Reader, out any) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	ctx, stop := a.watch(ctx)
	defer stop()
	c, err := a.control(ctx, cfg)
	if err != nil {
		return err
	}
	defer c.close()
	return c.call(ctx, method, path, query, body, out)
}

// handlerTransport serves requests in this process. A body is read while it is written: a backup can be large.
type handlerTransport struct{ http.Handler }

func (t handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r.Body = http.NoBody
	}
	body, out := io.Pipe()
	w := &pipedResponse{header: http.Header{}, out: out, code: make(chan int, 1)}
	go func() { // ends with the handler, for which the body is read or closed
		t.ServeHTTP(w, r)
		w.WriteHeader(http.StatusOK)
		out.Close()
	}()
	code := <-w.code
	return &http.Response{StatusCode: code, Status: strconv.Itoa(code) + " " + http.StatusText(code), Header: w.header,
		Body: body, Request: r, ProtoMajor: 1, ProtoMinor: 1}, nil
}

type pipedResponse struct {
	header http.Header
	out    *io.PipeWriter
	code   chan int // takes the first
}

func (w *pipedResponse) Header() http.Header { return w.header }

func (w *pipedResponse) WriteHeader(code int) {
	select {
	case w.code <- code:
	default:
	}
}

func (w *pipedResponse) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.out.Write(b)
}

// memoryResponse keeps what a handler answers.
type memoryResponse struct {
	code   int
	header http.Header
	body   bytes.Buffer
}

func (w *memoryResponse) Header() http.Header         { return w.header }
func (w *memoryResponse) WriteHeader(code int)        { w.code = code }
func (w *memoryResponse) Write(b []byte) (int, error) { return w.body.Write(b) }

type actorKey struct{}

func withActor(h http.Handler, actor string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), actorKey{}, actor)))
	})
}

// actorOf is who asked, for the audit log: an account of this machine, or "keeper" for what it does by itself.
func actorOf(ctx context.Context) string {
	if a, ok := ctx.Value(actorKey{}).(string); ok {
		return a
	}
	return "keeper"
}

func ownName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}

// serveControl answers on keeper's socket until ctx ends. Who may connect was decided by the kernel when the socket was opened, and is
// decided again by who the peer is.
func (k *keeper) serveControl(ctx context.Context, l net.Listener) error {
	allowed := allowAdmins()
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p, ok := r.Context().Value(peerKey{}).(peer)
			if !ok || !allowed(p) || k.reports.isRole(p.pid) {
				k.recordRefused(r.Context(), p, r.URL.Path)
				writeControlError(w, fmt.Errorf("user %s may not give orders here; run this as root or as a member of %s", p.name(), groupAdmin))
				return
			}
			withActor(k.controlHandler(), p.name()).ServeHTTP(w, r)
		}),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if p, err := peerOf(c); err == nil {
				return context.WithValue(ctx, peerKey{}, p)
			}
			return ctx
		},
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
	}
	return serveUntil(ctx, server, l)
}

type peerKey struct{}

// serveUntil serves until ctx ends, and then gives what is under way a moment to finish.
func serveUntil(ctx context.Context, s *http.Server, l net.Listener) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		stopping, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if s.Shutdown(stopping) != nil {
			s.Close()
		}
	}()
	err := s.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		<-done
		return nil
	}
	return err
}

func writeControlError(w http.ResponseWriter, err error) {
	code := exitFailed
	var e *exitError
	if errors.As(err, &e) {
		code = e.code
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnprocessableEntity)
	json.NewEncoder(w).Encode(controlError{err.Error(), code})
}

// handle makes a handler of a function that returns what is to be written as JSON.
func handle(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var v any
		var err error
		reported(w, r, func(r *http.Request) { v, err = f(r) })
		if err != nil {
			writeControlError(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	}
}
