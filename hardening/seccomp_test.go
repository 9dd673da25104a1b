package hardening

import (
	"encoding/binary"
	"os"
	"slices"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// judge runs the filter as the kernel would, and gives what it says of a system call.
type judge struct {
	t  *testing.T
	vm *bpf.VM
	id uint32
}

func newJudge(t *testing.T, p *Policy) *judge {
	t.Helper()
	native, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(p.program(native))
	if err != nil {
		t.Fatal(err)
	}
	return &judge{t, vm, uint32(native.ID)}
}

// of gives the action for a call (struct seccomp_data of seccomp(2); the machine of the package reads words in network order).
func (j *judge) of(id uint32, number int, args ...uint64) uint32 {
	j.t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data, uint32(number))
	binary.BigEndian.PutUint32(data[4:], id)
	for n, a := range args {
		binary.BigEndian.PutUint32(data[16+8*n:], uint32(a)) // the low half first, as on all that we run on
		binary.BigEndian.PutUint32(data[20+8*n:], uint32(a>>32))
	}
	verdict, err := j.vm.Run(data)
	if err != nil {
		j.t.Fatal(err)
	}
	return uint32(verdict)
}

func policies() map[string]*Policy {
	return map[string]*Policy{
		"answers":          {Role: Answers},
		"signs":            {Role: Signs},
		"signs, network":   {Role: Signs, Network: true, AnyPort: true, Netlink: true},
		"signs, a device":  {Role: Signs, Devices: []string{"/dev/null"}},
		"keeps":            {Role: Keeps, Network: true, Netlink: true},
		"answers, logging": {Role: Answers, LogOnly: true},
	}
}

// Every call that an architecture has is judged as the lists say, whatever is not on one is refused, and so are other architectures' calls.
func TestFilterIsTheLists(t *testing.T) {
	native, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range policies() {
		j := newJudge(t, p)
		whole, partly := p.Calls()
		otherwise, end := actRefuse, actKill
		if p.LogOnly {
			otherwise, end = uint32(actLog), uint32(actLog)
		}
		for number := range 1000 {
			call, want := native.SyscallNumbers[number], otherwise
			switch {
			case call == "clone3":
				want = actAbsent
			case slices.Contains(partly, call):
				continue // TestFilterArguments
			case slices.Contains(whole, call):
				want = actAllow
			case slices.Contains(deadly, call):
				want = end
			}
			// Arguments that are all ones, or none, change nothing.
			for _, a := range []uint64{0, 1<<64 - 1} {
				if got := j.of(j.id, number, a, a, a, a, a, a); got != want {
					t.Errorf("%s: %s (%d): %#x, want %#x", name, call, number, got, want)
				}
			}
			if got := j.of(j.id^1, number); got != otherwise {
				t.Errorf("%s: call %d of another architecture: %#x", name, number, got)
			}
			if got := j.of(j.id, number|0x40000000); got == actAllow {
				t.Errorf("%s: call %d of x32 is let through", name, number)
			}
		}
	}
}

func TestFilterArguments(t *testing.T) {
	native, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	const thread = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD
	self := uint64(os.Getpid())
	all := policies()
	for _, c := range []struct {
		policy, call string
		want         uint32
		args         []uint64
	}{
		{"answers", "mmap", actAllow, []uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE}},
		{"answers", "mmap", actAllow, []uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC}},
		{"answers", "mmap", actRefuse, []uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC}},
		{"answers", "mprotect", actAllow, []uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE}},
		{"answers", "mprotect", actAllow, []uint64{0, unix.PROT_EXEC, unix.PROT_READ}}, // a length that looks like it
		{"answers", "mprotect", actRefuse, []uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC}},
		{"answers", "clone", actAllow, []uint64{thread}},
		{"answers", "clone", actRefuse, []uint64{uint64(unix.SIGCHLD)}},
		{"answers", "clone", actRefuse, []uint64{thread | unix.CLONE_NEWUSER}},
		{"answers", "clone", actRefuse, []uint64{thread | unix.CLONE_NEWNET}},
		{"answers", "tgkill", actAllow, []uint64{self, 1, 2}},
		{"answers", "tgkill", actRefuse, []uint64{self + 1, 1, 2}},
		{"answers", "kill", actRefuse, []uint64{self + 1, 9}},
		{"answers", "kill", actRefuse, []uint64{1<<64 - 1, 9}},
		{"answers", "fcntl", actAllow, []uint64{3, unix.F_SETFL, unix.O_NONBLOCK}},
		{"signs", "fcntl", actAllow, []uint64{3, unix.F_SETLK, 8}},
		{"keeps", "fcntl", actRefuse, []uint64{3, unix.F_SETOWN, self + 1}},
		{"keeps", "fcntl", actRefuse, []uint64{3, unix.F_SETOWN_EX, 1}},
		{"keeps", "fcntl", actRefuse, []uint64{3, unix.F_SETSIG, 9}},
		{"answers", "sched_setattr", actRefuse, []uint64{0, 1, 0}},
		{"signs", "sched_setattr", actAllow, []uint64{0, 1, 0}},
		{"keeps", "sched_setattr", actRefuse, []uint64{self + 1, 1, 0}},
		{"answers", "prctl", actAllow, []uint64{unix.PR_SET_NAME}},
		{"answers", "prctl", actRefuse, []uint64{unix.PR_SET_DUMPABLE, 1}},
		{"answers", "prctl", actRefuse, []uint64{unix.PR_SET_SECCOMP}},
		{"answers", "prctl", actRefuse, []uint64{59}}, // an argument that is the number of execve
		{"answers", "prlimit64", actAllow, []uint64{0, unix.RLIMIT_NOFILE, 0, 1}},
		{"answers", "prlimit64", actRefuse, []uint64{0, unix.RLIMIT_NOFILE, 1, 0}},
		{"answers", "prlimit64", actRefuse, []uint64{1, unix.RLIMIT_NOFILE, 0, 1}},
		{"answers", "ioctl", actAllow, []uint64{1, unix.TCGETS}},
		{"answers", "ioctl", actRefuse, []uint64{1, unix.TIOCSTI}},
		{"signs, a device", "ioctl", actAllow, []uint64{1, unix.TIOCSTI}},
		{"answers", "openat", actAllow, []uint64{1<<32 - 100, 1, unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_DIRECTORY, 0o600}},
		{"answers", "openat", actRefuse, []uint64{1<<32 - 100, 1, unix.O_WRONLY}},
		{"answers", "openat", actRefuse, []uint64{1<<32 - 100, 1, unix.O_RDWR}},
		{"answers", "openat", actRefuse, []uint64{1<<32 - 100, 1, unix.O_RDONLY | unix.O_CREAT}},
		{"answers", "openat", actRefuse, []uint64{1<<32 - 100, 1, unix.O_RDONLY | unix.O_TRUNC}},
		{"signs", "openat", actAllow, []uint64{1<<32 - 100, 1, unix.O_RDWR | unix.O_CREAT}},
		{"answers", "socket", actAllow, []uint64{unix.AF_UNIX, unix.SOCK_STREAM}},
		{"answers", "socket", actRefuse, []uint64{unix.AF_INET, unix.SOCK_STREAM}},
		{"answers", "socket", actRefuse, []uint64{unix.AF_INET6, unix.SOCK_STREAM}},
		{"answers", "socket", actRefuse, []uint64{unix.AF_NETLINK, unix.SOCK_RAW}},
		{"answers", "socket", actRefuse, []uint64{unix.AF_PACKET, unix.SOCK_RAW}},
		{"signs", "socket", actRefuse, []uint64{unix.AF_INET, unix.SOCK_STREAM}},
		{"signs", "socket", actRefuse, []uint64{unix.AF_VSOCK, unix.SOCK_STREAM}},
		{"signs, network", "socket", actAllow, []uint64{unix.AF_INET, unix.SOCK_STREAM}},
		{"keeps", "socket", actAllow, []uint64{unix.AF_INET6, unix.SOCK_STREAM}},
		{"keeps", "socket", actAllow, []uint64{unix.AF_INET, unix.SOCK_DGRAM}},
		{"keeps", "socket", actAllow, []uint64{unix.AF_NETLINK, unix.SOCK_RAW}},
		{"keeps", "socket", actRefuse, []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}},
		{"keeps", "socket", actRefuse, []uint64{unix.AF_ALG, unix.SOCK_SEQPACKET}},
		{"keeps", "listen", actRefuse, []uint64{3, 128}},
		{"answers", "bind", actRefuse, []uint64{3}},
		{"signs", "bind", actRefuse, []uint64{3}},
		{"answers, logging", "socket", uint32(actLog), []uint64{unix.AF_INET}},
	} {
		number, ok := native.SyscallNames[c.call]
		if !ok {
			t.Fatalf("%s: no such call", c.call)
		}
		j := newJudge(t, all[c.policy])
		if got := j.of(j.id, number, c.args...); got != c.want {
			t.Errorf("%s: %s%x: %#x, want %#x", c.policy, c.call, c.args, got, c.want)
		}
	}
}

// A name that is spelled wrong would be passed over in silence.
func TestListsNameRealCalls(t *testing.T) {
	p := &Policy{Role: Signs, Network: true}
	_, partly := p.Calls()
	seen := map[string]bool{}
	for _, list := range [][]string{everyone, writing, modules, network, deadly, partly} {
		for _, name := range list {
			_, amd64 := arch.X86_64.SyscallNames[name]
			_, arm64 := arch.AARCH64.SyscallNames[name]
			if !amd64 && !arm64 {
				t.Errorf("%s is no system call", name)
			}
			if seen[name] {
				t.Errorf("%s stands in two lists", name)
			}
			seen[name] = true
		}
	}
	for _, a := range []*arch.Info{arch.X86_64, arch.AARCH64} {
		for _, name := range []string{"openat", "read", "write", "futex", "mmap", "clone", "epoll_pwait", "accept4", "exit_group"} { // without which nothing runs
			if _, ok := a.SyscallNames[name]; !ok {
				t.Errorf("%s: the table has no %s", a.Name, name)
			}
		}
	}
}

// The tables of names call some calls otherwise than the kernel does, one way on one architecture and one on another. So what nothing runs without is looked for by
// its number: asm-generic/unistd.h of the kernel, as arm64 has it.
func TestARM64HasWhatIsNeeded(t *testing.T) {
	for name, p := range policies() {
		whole, partly := p.Calls()
		for number, call := range map[int]string{
			20: "epoll_create1", 21: "epoll_ctl", 22: "epoll_pwait", 25: "fcntl", 29: "ioctl", 48: "faccessat", 56: "openat", 57: "close", 61: "getdents64", 62: "lseek",
			63: "read", 64: "write", 67: "pread64", 73: "ppoll", 78: "readlinkat", 79: "newfstatat", 80: "fstat", 94: "exit_group", 98: "futex", 113: "clock_gettime",
			115: "clock_nanosleep", 131: "tgkill", 134: "rt_sigaction", 135: "rt_sigprocmask", 139: "rt_sigreturn", 172: "getpid", 178: "gettid", 198: "socket",
			203: "connect", 206: "sendto", 207: "recvfrom", 208: "setsockopt", 209: "getsockopt", 211: "sendmsg", 212: "recvmsg", 214: "brk", 215: "munmap", 220: "clone",
			222: "mmap", 226: "mprotect", 233: "madvise", 242: "accept4", 261: "prlimit64", 278: "getrandom", 291: "statx", 293: "rseq",
		} {
			if n := arch.AARCH64.SyscallNumbers[number]; !slices.Contains(whole, n) && !slices.Contains(partly, n) {
				t.Errorf("%s: %s, which the table calls %q, is on no list", name, call, n)
			}
		}
	}
}
