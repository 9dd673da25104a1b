package hardening

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// State is what the kernel says of this process: of its threads, the weakest.
type State struct {
	NoNewPrivileges bool   // in all threads
	Dumpable        bool   // core files and ptrace are allowed
	CoreLimit       uint64 // octets, of the hard limit
	Seccomp         string // "off", "strict" or "filter"
	Filters         uint64 // seccomp filters in force
	Capabilities    uint64 // effective, permitted, inheritable or ambient in any thread, by capability number (capabilities(7))
	Bounding        uint64 // that an execve could still give
	Threads         int
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
		s.Capabilities |= t["CapEff"] | t["CapPrm"] | t["CapInh"] | t["CapAmb"]
		s.Bounding |= t["CapBnd"]
		if s.Threads == 0 || t["Seccomp_filters"] < s.Filters {
			s.Filters = t["Seccomp_filters"]
		}
		s.Threads++
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
	bases := map[string]int{"NoNewPrivs": 10, "Seccomp": 10, "Seccomp_filters": 10, "CapInh": 16, "CapEff": 16, "CapPrm": 16, "CapBnd": 16, "CapAmb": 16}
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
	for name := range bases {
		if _, ok := found[name]; !ok {
			return nil, fmt.Errorf("%s: does not say %s", file, name)
		}
	}
	return found, nil
}

// Try is an attempt that must fail. It does no harm where it succeeds.
type Try struct {
	Name string // the measure that it proves, such as "pin closed"
	Path string // is opened
	Flag int    // O_RDONLY, O_RDWR, …
}

func (t Try) run() Measure {
	fd, err := unix.Open(t.Path, t.Flag|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case err == nil:
		unix.Close(fd)
		return Measure{t.Name, Missing, fmt.Sprintf("%s can be opened by this process", t.Path)}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return Measure{t.Name, Holds, fmt.Sprintf("%s: tried: %v", t.Path, err)}
	case errors.Is(err, fs.ErrNotExist):
		return Measure{t.Name, Holds, fmt.Sprintf("%s: is not there", t.Path)}
	}
	return Measure{t.Name, Missing, fmt.Sprintf("%s: tried: %v", t.Path, err)}
}

// measure makes the report. before is the state without the filter, failed what loading it came to.
func (p *Policy) measure(before *State, abi int, failed error) ([]Measure, error) {
	s, err := Report()
	if err != nil {
		return nil, err
	}
	state := func(holds bool) string {
		if holds {
			return Holds
		}
		return Missing
	}
	in := fmt.Sprintf("read back for %d threads", s.Threads)
	list := []Measure{
		{"no-new-privileges", state(s.NoNewPrivileges), in},
		{"no-core", state(!s.Dumpable && s.CoreLimit == 0), fmt.Sprintf("core limit %d, dumpable %t", s.CoreLimit, s.Dumpable)},
		{"capabilities", state(s.Capabilities&^p.Capabilities == 0), fmt.Sprintf("%s: %#x held, %#x in the bounding set", in, s.Capabilities, s.Bounding)},
		p.measureLandlock(abi), p.measureSeccomp(before, &s, failed), measureMemory(),
	}
	list = append(list, p.measureSockets(abi)...)
	for _, t := range p.Tries {
		list = append(list, t.run())
	}
	return list, nil
}

// measureLandlock tries to list the root folder, which everybody may but for Landlock: /proc says nothing of it.
func (p *Policy) measureLandlock(abi int) Measure {
	const name = "landlock"
	m := Try{name, "/", unix.O_RDONLY | unix.O_DIRECTORY}.run()
	switch {
	case abi == 0:
		return Measure{name, Missing, "the kernel has no Landlock, or it was not named in lsm= when it started"}
	case !Confined():
		return Measure{name, Missing, "Confine was not called"}
	case m.State != Holds:
		return m
	}
	has := "files"
	if abi >= 4 {
		has += ", TCP ports"
	}
	if abi >= 6 {
		has += ", signals"
	}
	return Measure{name, Holds, fmt.Sprintf("%s (version %d of the kernel's interface); %s", has, abi, m.Detail)}
}

func (p *Policy) measureSeccomp(before, now *State, failed error) Measure {
	const name = "seccomp"
	detail := fmt.Sprintf("%s, %d in force in %d threads", now.Seccomp, now.Filters, now.Threads)
	switch {
	case failed != nil:
		return Measure{name, Missing, failed.Error()}
	case now.Seccomp != "filter" || now.Filters <= before.Filters:
		return Measure{name, Missing, detail}
	case p.LogOnly:
		return Measure{name, LogOnly, detail + "; what is forbidden is recorded and happens"}
	}
	return Measure{name, Holds, detail}
}

// measureMemory tries to have memory that can be written and executed.
func measureMemory() Measure {
	const name = "mdwe"
	by := "by the filter alone"
	if flags, err := unix.PrctlRetInt(unix.PR_GET_MDWE, 0, 0, 0, 0); err == nil && flags&unix.PR_MDWE_REFUSE_EXEC_GAIN != 0 {
		by = "by the kernel's own rule"
	}
	b, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err == nil {
		unix.Munmap(b)
		return Measure{name, Missing, "memory can be written and executed"}
	}
	return Measure{name, Holds, fmt.Sprintf("%s: tried: %v", by, err)}
}

// measureSockets tries to make a socket to the network, or to reach a port that nobody serves and no policy names.
func (p *Policy) measureSockets(abi int) []Measure {
	const closed, ports = "network closed", "ports closed"
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
	}
	switch {
	case p.Network && (p.AnyPort || err != nil):
		return nil // nothing was to be closed
	case !p.Network && err == nil:
		return []Measure{{closed, Missing, "a socket to the network can be made"}}
	case !p.Network:
		return []Measure{{closed, Holds, fmt.Sprintf("tried: %v", err)}}
	case abi < 4:
		return []Measure{{ports, Missing, fmt.Sprintf("Landlock knows ports since version 4 of its interface, and the kernel has %d", abi)}}
	}
	const tcpmux = 1
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: tcpmux, Addr: [4]byte{127, 0, 0, 1}})
	return []Measure{{ports, map[bool]string{true: Holds, false: Missing}[errors.Is(err, unix.EACCES)], fmt.Sprintf("TCP port %d: tried: %v", tcpmux, err)}}
}
