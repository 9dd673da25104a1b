// Package systemd is our end of what systemd offers a service: readiness, watchdog, listeners that it opened. It
// guarantees that a process which systemd did not start behaves as if nothing had been offered. `ocspd serve` passes listeners
// to its children in the same way, by PassListeners.
package systemd

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
)

// Supervised is the environment variable by which `ocspd serve` tells a child that it is one. Such a child takes listeners without
// LISTEN_PID, which nobody can set before the child exists.
const Supervised = "OCSPD_SUPERVISED"

// Notify tells systemd a state, such as "READY=1" (sd_notify(3)). Without systemd it does nothing.
func Notify(state string) error {
	_, err := daemon.SdNotify(false, state)
	return err
}

// Watchdog is the time within which systemd wants to hear "WATCHDOG=1" again and again, or 0 when it does not.
func Watchdog() (time.Duration, error) { return daemon.SdWatchdogEnabled(false) }

// Listeners takes over the listening sockets that systemd or `ocspd serve` passed, by name, each name's in their order. It can be
// called once; children of ours do not see them. A socket without a name is called LISTEN_FD_n.
func Listeners() (map[string][]net.Listener, error) {
	if os.Getenv(Supervised) != "" && os.Getenv("LISTEN_PID") == "" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	listeners := map[string][]net.Listener{}
	var failed error
	for _, f := range activation.Files(true) {
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("socket %s that was passed to us is not one to listen on: %w", f.Name(), err))
			continue
		}
		listeners[f.Name()] = append(listeners[f.Name()], l)
	}
	if failed == nil {
		return listeners, nil
	}
	for _, list := range listeners {
		for _, l := range list {
			l.Close()
		}
	}
	return nil, failed
}

// PassListeners makes a command inherit listeners, which Listeners takes there; Supervised must be set in its environment.
// The command must have no ExtraFiles yet. Its environment is ours if it has none. When the command was started, closeFiles ends
// our copies of the sockets; the listeners themselves stay open.
func PassListeners(cmd *exec.Cmd, listeners map[string][]net.Listener) (closeFiles func(), err error) {
	if len(cmd.ExtraFiles) > 0 {
		return nil, errors.New("pass listeners: the command has ExtraFiles already, and listeners must come first")
	}
	closeFiles = func() {
		for _, f := range cmd.ExtraFiles {
			f.Close()
		}
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(listeners)) {
		for _, l := range listeners[name] {
			f, err := l.(interface{ File() (*os.File, error) }).File()
			if err != nil {
				closeFiles()
				return nil, fmt.Errorf("pass listener %s: %w", name, err)
			}
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
			names = append(names, name)
		}
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = slices.DeleteFunc(slices.Clone(cmd.Env), func(e string) bool { return strings.HasPrefix(e, "LISTEN_") })
	if len(names) > 0 {
		cmd.Env = append(cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	return closeFiles, nil
}
