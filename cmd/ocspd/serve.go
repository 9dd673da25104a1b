package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"ocspd/systemd"
)

// envSupervised is set for children of `ocspd serve`: "first" at their first start, "again" after they were ready once.
const envSupervised = systemd.Supervised

const (
	stopTime     = 4 * time.Second // then a child that does not stop is killed
	firstPause   = 100 * time.Millisecond
	longestPause = 5 * time.Second
	steadyAfter  = 10 * time.Second // a role that ran so long starts again without a pause
)

func newServeCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "serve", Short: "Run front, signer and keeper as supervised children of one user", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return serve(ctx, cfg, a.stderr)
		},
	}
}

// supervisor runs the three roles. It holds the listeners, so that connections wait while front is started again.
type supervisor struct {
	cfg       *config
	log       *slog.Logger
	stderr    io.Writer
	binary    string
	listeners map[string]map[string][]net.Listener // by role, by name
}

func serve(ctx context.Context, cfg *config, stderr io.Writer) error {
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	s := &supervisor{cfg: cfg, log: newLogger(stderr, "serve"), stderr: stderr, binary: binary}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.listen(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, name := range []string{"keeper", "signer", "front"} {
		wg.Go(func() {
			if err := s.keepUp(ctx, name); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	s.log.Info("stopped")
	return nil
}

// lock keeps a second `serve` off the same run directory, whose sockets it would take away.
func (s *supervisor) lock() (unlock func(), err error) {
	if err := os.MkdirAll(s.cfg.Run, 0o755); err != nil {
		return nil, fmt.Errorf("serve: run directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(s.cfg.Run, "serve.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("serve: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("serve: another 'ocspd serve' runs with run = %q; stop it first", s.cfg.Run)
	}
	return func() { f.Close() }, nil
}

func (s *supervisor) listen() error {
	s.listeners = map[string]map[string][]net.Listener{"front": {}, "keeper": {}, "signer": {}}
	add := func(role, name string, addresses ...string) error {
		for _, address := range addresses {
			l, err := listenTCP(address)
			if err != nil {
				return fmt.Errorf("serve: %w", err)
			}
			s.listeners[role][name] = append(s.listeners[role][name], l)
			s.log.Info("listens", "on", l.Addr().String(), "as", name)
		}
		return nil
	}
	if err := add("front", listenerOCSP, s.cfg.Listen.OCSP...); err != nil {
		return err
	}
	if err := add("front", listenerHTTP, s.cfg.Listen.HTTP...); err != nil {
		return err
	}
	if s.cfg.Listen.Admin == "" {
		return nil
	}
	return add("keeper", listenerAdmin, s.cfg.Listen.Admin)
}

// keepUp runs a role and starts it again when it ends, until ctx ends. It gives up, with the role's exit code, on a role that fails without
// ever having been ready, since that is a mistake in what was configured, and on a refused PIN at the start; later, a refused PIN leaves the
// others serving without this role, for trying once more could lock the token.
func (s *supervisor) keepUp(ctx context.Context, name string) error {
	generation, pause := "first", firstPause
	for {
		started := time.Now()
		wasReady, err := s.runOnce(ctx, name, generation)
		if ctx.Err() != nil {
			return nil
		}
		code := exitCode(err)
		switch {
		case code == exitPIN && generation == "first" && !wasReady, code != exitTokenLost && code > 0 && generation == "first" && !wasReady:
			return &exitError{code: code, err: fmt.Errorf("serve: %s did not start; its message stands above", name)}
		case code == exitPIN:
			s.log.Error("role is not started again, since the token refused its PIN", "child", name, "next", "set the PIN right, then 'ocspd token retry NAME' and start ocspd again")
			<-ctx.Done()
			return nil
		}
		if wasReady {
			generation = "again"
		}
		if time.Since(started) > steadyAfter {
			pause = firstPause
		}
		s.log.Warn("role ended; it is started again", "child", name, "error", err, "pause", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, longestPause)
		if code == exitTokenLost { // it may be back at any moment
			pause = min(pause, retryInterval)
		}
	}
}

func exitCode(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	if err != nil {
		return exitFailed
	}
	return 0
}

// runOnce runs a role until it ends, or until ctx does; then the role is asked to stop, and killed if it does not. The child's standard input is
// a socket to us: it says there that it is ready, and ends when we do, however we end.
func (s *supervisor) runOnce(ctx context.Context, name, generation string) (ready bool, err error) {
	lifeline, childEnd, err := socketPair()
	if err != nil {
		return false, err
	}
	defer lifeline.Close()
	cmd := exec.Command(s.binary, name, "--config", s.cfg.File)
	cmd.Env = append(os.Environ(), envSupervised+"="+generation)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = childEnd, s.stderr, s.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C reaches us alone; we stop the children in order
	closeFiles, err := systemd.PassListeners(cmd, s.listeners[name])
	if err == nil {
		err = cmd.Start()
		closeFiles()
	}
	childEnd.Close()
	if err != nil {
		return false, fmt.Errorf("start %s: %w", name, err)
	}
	readied := make(chan bool, 1)
	go func() { // ends when the child does, who holds the only other end
		n, _ := lifeline.Read(make([]byte, 1))
		readied <- n == 1
	}()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err = <-done:
		case <-time.After(stopTime):
			s.log.Warn("role did not stop and is killed", "child", name)
			cmd.Process.Kill()
			err = <-done
		}
	}
	return <-readied, err
}

func socketPair() (ours, theirs *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "lifeline"), os.NewFile(uintptr(fds[1]), "lifeline"), nil
}
