// Package hardening is what a process of ours gives up, and a report of what the kernel says it gave up. A process calls Confine first of
// all, does what it needs more than its Policy for, and calls Seal before it touches what strangers sent.
//
// It guarantees of a process for which Seal returned: every measure that it reports as holding was read back from the kernel, for every
// thread, or was tried and failed as it must; a measure that Policy.Require names holds. Nothing of it can be undone by the process.
//
//	Confine   no new privileges, capabilities, Landlock (files, TCP ports, signals); then the program executes itself
//	Seal      no core files, no memory that is both written and executed, seccomp; then the report
//
// The order is not free. What Confine does holds for the thread that does it and those it starts, so that the program begins anew from that
// thread: then it holds for all, those of a vendor's library included, and no thread has to be interrupted for it, which such
// libraries may block. Seccomp comes last, for a library loads more while it starts than it may do afterwards; the kernel
// gives the filter to all threads at once.
package hardening

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Policy is what a process keeps. What it does not name is given up.
type Policy struct {
	Role Role // which system calls stay

	// Paths, each with all that is below it. One that does not exist when Confine is called stays closed.
	Read    []string // may be read
	Write   []string // may be read, changed, made and removed
	Sockets []string // unix sockets may be made and removed there
	Devices []string // may be read, written and controlled

	Network bool     // sockets to the network may be made after Seal
	Listen  []uint16 // TCP ports that may be listened on before it
	Connect []uint16 // TCP ports that may be connected to, unless AnyPort
	AnyPort bool
	Netlink bool // sockets to the kernel may be made after Seal

	Capabilities uint64 // that stay, by capability number (capabilities(7)), where the process has them

	LogOnly bool     // seccomp records what is forbidden, and lets it happen
	Require []string // measures without which Seal fails
	Tries   []Try    // what must fail in the end
}

// Measure is something that was given up, or should have been.
type Measure struct {
	Name   string `json:"name"`
	State  string `json:"state"` // Holds, LogOnly or Missing
	Detail string `json:"detail"`
}

// States of a Measure.
const (
	Holds   = "holds"
	LogOnly = "log only"
	Missing = "missing"
)

// Measures are the names that Policy.Require may hold.
var Measures = []string{"seccomp", "landlock", "no-new-privileges", "no-core", "capabilities", "mdwe"}

// confinedVar tells the program that it executed itself. It holds the process's number, so that no child takes it for its own.
const confinedVar = "OCSPD_CONFINED"

// Confined reports whether this is the process after Confine.
func Confined() bool { return os.Getenv(confinedVar) == strconv.Itoa(os.Getpid()) }

// Confine gives up privileges, capabilities and what Landlock can close, and executes the program itself anew, with the same process number,
// arguments, environment and inherited files; it returns only on an error. That a kernel has no Landlock is no error: Seal reports it.
func Confine(p *Policy) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("hardening: %w", err)
	}
	runtime.LockOSThread() // for good: the thread is not what the others are
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("hardening: no new privileges: %w", err)
	}
	if err := dropCapabilities(p.Capabilities); err != nil {
		return err
	}
	if err := p.restrictSelf(self); err != nil {
		return err
	}
	env := slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, confinedVar+"=") })
	env = append(env, confinedVar+"="+strconv.Itoa(os.Getpid()))
	return fmt.Errorf("hardening: execute %s anew: %w", self, unix.Exec(self, os.Args, env))
}

// dropCapabilities takes from the thread all but those kept. The bounding set only root can change; without new privileges nobody draws from it.
func dropCapabilities(keep uint64) error {
	for c := 0; c < 64; c++ {
		held, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err == nil && held != 0 && keep&(1<<c) == 0 {
			unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // in halves of 32 bits
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("hardening: capabilities: %w", err)
	}
	held := sets
	for n := range sets {
		kept := uint32(keep>>(32*n)) & sets[n].Permitted
		sets[n] = unix.CapUserData{Effective: kept, Permitted: kept}
	}
	if sets == held {
		return nil // in a unit there is nothing to give up, and its filter refuses the call
	}
	if err := unix.Capset(&header, &sets[0]); err != nil { // what is not inheritable is not ambient, either
		return fmt.Errorf("hardening: capabilities: %w", err)
	}
	return nil
}

// NoDump sets the limit of core files to 0 for good, and makes the process undumpable (PR_SET_DUMPABLE in prctl(2)): no core,
// even by a handler that ignores the limit, no ptrace, and /proc/PID/mem for root alone. Both hold for all threads. A later
// execve undoes the second.
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

// Seal gives up the rest: core files, memory both written and executed, and all system calls but those of the role. It then reads back what
// holds, tries what must fail, and reports both. It fails when a required measure does not hold.
func Seal(p *Policy) ([]Measure, error) {
	before, err := Report()
	if err != nil {
		return nil, err
	}
	if err := NoDump(); err != nil {
		return nil, err
	}
	unix.Prctl(unix.PR_SET_MDWE, unix.PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) // since Linux 6.3; before, the filter alone refuses it
	abi := landlockABI()
	failed := p.filter()
	measures, err := p.measure(&before, abi, failed)
	if err != nil {
		return nil, err
	}
	var missing []error
	for _, m := range measures {
		if m.State != Holds && slices.Contains(p.Require, m.Name) {
			missing = append(missing, fmt.Errorf("hardening.require names %s, which does not hold: %s", m.Name, m.Detail))
		}
	}
	return measures, errors.Join(missing...)
}
