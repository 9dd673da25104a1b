package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ocspd/pki"
	"ocspd/responder"
)

// Names of the listeners that systemd or `ocspd serve` passes on: to front, and to keeper. systemd passes the sockets between the roles, too.
const (
	listenerOCSP  = "ocsp"
	listenerHTTP  = "http"
	listenerAdmin = "admin"
	socketSigner  = "signer"
	socketKeeper  = "keeper"
	socketFeed    = "feed"
)

const linkConns = 8 // signatures under way at once: more than a token's sessions gain nothing

// runFront is the role that strangers talk to. It holds no key, no PIN and no revocation data.
func runFront(ctx context.Context, r *role) error {
	issuers, err := frontIssuers(r.cfg)
	if err != nil {
		return err
	}
	link := responder.NewLink(dialUnix(r.cfg.signerSocket()), linkConns, r.cfg.Limits.Waiting)
	front := responder.NewFront(link.Ask, time.Now, r.cfg.Limits.Requests)
	if err := front.Use(issuers); err != nil {
		return err
	}
	listeners, err := r.frontListeners()
	if err != nil {
		return err
	}
	if err := r.seal(); err != nil {
		return err
	}
	gate := &gate{max: int64(r.cfg.Limits.Connections)}
	handler := front.Handler(r.cfg.Limits.Body, r.cfg.Limits.Path)
	var wg sync.WaitGroup
	ended := make(chan error, 1)
	wg.Go(func() { ended <- serveClients(ctx, listeners, handler, gate, r.log) })
	apply := func(c responder.Change) error {
		if c.Reload {
			return r.reloadFront(front, c.Try)
		}
		return front.Apply(c)
	}
	wg.Go(func() { r.subscribe(ctx, responder.RoleFront, apply, fillFrontReport(front, gate)) })
	r.ready()
	wg.Go(func() { r.watchdog(ctx, asksItself(handler)) })
	if err := <-ended; err != nil {
		return err
	}
	wg.Wait()
	return nil
}

// drainTime is how long connections have to end by themselves when front stops. Who comes meanwhile waits, at the socket that systemd or `ocspd serve` holds.
const drainTime = 400 * time.Millisecond

// serveClients answers on all listeners until ctx ends or one fails. When ctx ends, whoever was let in gets an answer: net/http drops a request that it reads
// after Shutdown began, so before that, each connection is told by its next answer that it ends.
func serveClients(ctx context.Context, listeners []net.Listener, h http.Handler, g *gate, log *slog.Logger) (err error) {
	var ending atomic.Bool
	server := newHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ending.Load() {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	}), log)
	failed := make(chan error, len(listeners))
	var serving sync.WaitGroup
	for _, l := range listeners {
		serving.Go(func() { failed <- fmt.Errorf("listener %s: %w", l.Addr(), server.Serve(&gatedListener{l, g})) })
	}
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	ending.Store(true)
	for _, l := range listeners {
		l.Close()
	}
	serving.Wait() // then all that were let in are counted
	for until := time.Now().Add(drainTime); g.open.Load() > 0 && time.Now().Before(until); {
		time.Sleep(5 * time.Millisecond)
	}
	stopping, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if server.Shutdown(stopping) != nil {
		server.Close()
	}
	return err
}

func frontIssuers(cfg *config) ([]responder.FrontIssuer, error) {
	var l []responder.FrontIssuer
	for _, i := range cfg.Issuers {
		issuer, err := loadIssuer(i)
		if err != nil {
			return nil, err
		}
		l = append(l, responder.FrontIssuer{Issuer: issuer, IgnoreNonce: i.Nonce == "ignore"})
	}
	return l, nil
}

// reloadFront takes the issuers of the configuration as it is now, or only says whether it could.
func (r *role) reloadFront(front *responder.Front, try bool) error {
	cfg, err := r.rereadConfig(r.cfg)
	if err != nil {
		return err
	}
	issuers, err := frontIssuers(cfg)
	if err != nil {
		return err
	}
	if try {
		return front.Try(issuers)
	}
	return front.Use(issuers)
}

// loadIssuer reads the CA's certificate.
func loadIssuer(i *issuerConfig) (*pki.Issuer, error) {
	b, err := os.ReadFile(i.Certificate)
	if err != nil {
		return nil, fmt.Errorf("issuer %s: its certificate: %w", i.Name, err)
	}
	cert, err := pki.ParseCertificate(b)
	if err != nil {
		return nil, fmt.Errorf("issuer %s: certificate %s: %w", i.Name, i.Certificate, err)
	}
	return pki.NewIssuer(i.Name, cert)
}

// frontListeners takes over what systemd or the supervisor holds, or else listens itself.
func (r *role) frontListeners() ([]net.Listener, error) {
	configured := slices.Concat(r.cfg.Listen.OCSP, r.cfg.Listen.HTTP)
	if passed := slices.Concat(r.passed[listenerOCSP], r.passed[listenerHTTP]); len(passed) > 0 {
		r.compareListeners(configured, listenerOCSP, listenerHTTP)
		return passed, nil
	}
	var l []net.Listener
	for _, address := range configured {
		one, err := listenTCP(address)
		if err != nil {
			return nil, err
		}
		l = append(l, one)
	}
	return l, nil
}

// compareListeners raises an alarm where the configuration names an address that none of the sockets has which systemd holds: those are what is
// served. What systemd holds beyond the configuration (port 80, once its socket unit is enabled) needs no word there.
func (r *role) compareListeners(configured []string, names ...string) {
	var held []string
	for _, name := range names {
		for _, l := range r.passed[name] {
			held = append(held, l.Addr().String())
		}
	}
	var missing []string
	for _, address := range configured {
		if !slices.Contains(held, address) {
			missing = append(missing, address)
		}
	}
	r.alarms.when(len(held) > 0 && len(missing) > 0 && !supervised(), alarmListen, r.name, fmt.Sprintf("[listen] names %s, but systemd holds %s, and that is what is served; "+
		"'systemctl list-sockets' shows the units: enable or edit one and restart the role, or change [listen]", strings.Join(missing, ", "), strings.Join(held, ", ")))
}

// listenTCP uses tcp4 or tcp6, so that 0.0.0.0 and [::] can both be had on one port.
func listenTCP(address string) (net.Listener, error) {
	network := "tcp4"
	if host, _, err := net.SplitHostPort(address); err == nil {
		if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
			network = "tcp6"
		}
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w; stop what uses it ('ss -ltnp' names it) or change [listen]", address, errors.Unwrap(err))
	}
	return l, nil
}

// newHTTPServer sets every limit that strangers could reach for.
func newHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	s := &http.Server{
		Handler:                      h,
		DisableGeneralOptionsHandler: true, // OPTIONS * is 405 like the others
		ReadHeaderTimeout:            10 * time.Second,
		ReadTimeout:                  15 * time.Second,
		WriteTimeout:                 20 * time.Second,
		IdleTimeout:                  60 * time.Second,
		MaxHeaderBytes:               256 << 10, // so that a URL which is too long still gets its 414
		ErrorLog:                     slog.NewLogLogger(quiet{log.Handler()}, slog.LevelDebug),
	}
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(true)
	return s
}

// quiet keeps what net/http says of clients, with their addresses, out of the log.
type quiet struct{ slog.Handler }

func (quiet) Enabled(context.Context, slog.Level) bool { return false }

// gate counts the connections of all listeners.
type gate struct {
	max     int64
	open    atomic.Int64
	refused atomic.Uint64
}

// gatedListener answers 503 when connections are used up, instead of letting clients wait without a word.
type gatedListener struct {
	net.Listener
	gate *gate
}

const unavailable = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 5\r\n\r\n"

func (l *gatedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.gate.open.Add(1) <= l.gate.max {
			return &gatedConn{Conn: c, gate: l.gate}, nil
		}
		l.gate.open.Add(-1)
		l.gate.refused.Add(1)
		// A new connection's send buffer has room for this, so the loop does not wait.
		c.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
		c.Write([]byte(unavailable))
		c.Close()
	}
}

type gatedConn struct {
	net.Conn
	gate   *gate
	closed atomic.Bool
}

func (c *gatedConn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.gate.open.Add(-1)
	}
	return c.Conn.Close()
}

// Labels of the metrics.
var (
	responseStatuses = []responder.ResponseStatus{responder.Successful, responder.MalformedRequest, responder.InternalError,
		responder.TryLater, responder.Unauthorized}
	hashNames = []string{"sha1", "sha256", "sha384", "sha512", "other"} // in the order of Counts.Hash
)

func fillFrontReport(f *responder.Front, g *gate) func(*roleReport) {
	return func(r *roleReport) {
		c := f.Counts()
		report := &frontReport{
			Responses: map[string]uint64{}, Hashes: map[string]uint64{},
			Hits: c.Hits.Load(), Asked: c.Asked.Load(), Busy: c.Busy.Load(), Unreachable: c.Unreachable.Load(),
			Nonces: c.Nonces.Load(), Defects: c.Defects.Load(), Kept: uint64(f.Kept()), Refused: g.refused.Load(),
			Unissued: c.Unissued.Load(), Panics: c.Panics.Load(),
		}
		for _, s := range responseStatuses {
			report.Responses[s.String()] = c.Requests[s].Load()
		}
		for i := range c.Hash {
			report.Hashes[hashNames[i]] = c.Hash[i].Load()
		}
		report.Hashes[hashNames[len(c.Hash)]] = c.UnknownHash.Load()
		r.Front = report
	}
}
