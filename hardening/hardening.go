// Package hardening is what a process of ours gives up, and a report of what the kernel says it gave up. Every measure is read
// back from the kernel before it counts as taken. It guarantees, for a process that calls NoDump, that neither a core file
// nor another process of the same user shows its memory, where the PIN has been.
package hardening

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// NoDump sets the limit of core files to 0 for good, and makes the process undumpable (PR_SET_DUMPABLE in prctl(2)): no core,
// even by a handler that ignores the limit, no ptrace, and /proc/PID/mem for root alone. Both hold for all threads. A later
// execve undoes the second, so call it after NoNewPrivileges.
func NoDump() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("hardening: limit of core files: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("hardening: dumpable: %w", err)
	}
	s, err := Report()
	if err != nil {
		return err
	}
	if s.CoreLimit != 0 || s.Dumpable {
		return fmt.Errorf("hardening: the kernel still allows dumps: core limit %d, dumpable %t", s.CoreLimit, s.Dumpable)
	}
	return nil
}

// NoNewPrivileges makes sure that no execve gives this process or its children more privileges (PR_SET_NO_NEW_PRIVS in prctl(2)).
// The kernel keeps that by thread, and a thread cannot set it for another. So, where it is not in force yet, the process executes
// itself anew, with the same PID, arguments, environment and inherited files, from a thread that has it: call it first of all.
func NoNewPrivileges() error {
	s, err := Report()
	if err != nil || s.NoNewPrivileges {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("hardening: no new privileges: %w", err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("hardening: no new privileges: %w", err)
	}
	return fmt.Errorf("hardening: no new privileges: execute %s anew: %w", self, unix.Exec(self, os.Args, os.Environ()))
}

// State is what the kernel says of this process: of its threads, the weakest.
type State struct {
	NoNewPrivileges bool   // in all threads
	Dumpable        bool   // core files and ptrace are allowed
	CoreLimit       uint64 // octets, of the hard limit
	Seccomp         string // "off", "strict" or "filter"
	Capabilities    uint64 // effective or permitted in any thread, by capability number (capabilities(7))
	Bounding        uint64 // that an execve could still give
}

// Report asks the kernel.
func Report() (State, error) {
	s := State{NoNewPrivileges: true}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return State{}, fmt.Errorf("hardening report: limit of core files: %w", err)
	}
	s.CoreLimit = limit.Max
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return State{}, fmt.Errorf("hardening report: dumpable: %w", err)
	}
	s.Dumpable = dumpable != 0
	threads, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(threads) == 0 {
		return State{}, errors.New("hardening report: /proc cannot be read")
	}
	weakest := uint64(2)
	for _, file := range threads {
		t, err := threadStatus(file)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread ended meanwhile
		}
		if err != nil {
			return State{}, fmt.Errorf("hardening report: %w", err)
		}
		s.NoNewPrivileges = s.NoNewPrivileges && t["NoNewPrivs"] == 1
		weakest = min(weakest, t["Seccomp"])
		s.Capabilities |= t["CapEff"] | t["CapPrm"]
		s.Bounding |= t["CapBnd"]
	}
	s.Seccomp = []string{"off", "strict", "filter"}[weakest]
	return s, nil
}

// threadStatus reads the numbers that Report needs from a thread's status file (proc(5)). One that is missing is an error: a
// measure must not look taken because the kernel is silent.
func threadStatus(file string) (map[string]uint64, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	bases := map[string]int{"NoNewPrivs": 10, "Seccomp": 10, "CapEff": 16, "CapPrm": 16, "CapBnd": 16}
	found := map[string]uint64{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if base, ok := bases[name]; ok {
			n, err := strconv.ParseUint(strings.TrimSpace(value), base, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", file, name, err)
			}
			found[name] = n
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(found) != len(bases) {
		return nil, fmt.Errorf("%s: does not say all of NoNewPrivs, Seccomp, CapEff, CapPrm, CapBnd", file)
	}
	return found, nil
}
