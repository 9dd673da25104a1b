package hardening

import (
	"fmt"
	"os"
	"slices"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Role is a list of the system calls that stay. Each was found by watching the role at all that the tests make it do (test/syscalls.sh), and has beside that
// the like of what was seen, where a kernel, a C library or a vendor's module of another version may well use that instead.
type Role int

// The lists.
const (
	Answers Role = iota // takes connections and reads files
	Signs               // that, and writes files, and what modules of tokens are known to do
	Keeps               // that, without a module, and with sockets to the network where the policy has them
)

// everyone needs these: the runtimes of Go and C, reading, what is open. Names that an architecture does not have are passed over there.
var everyone = []string{
	// memory
	"brk", "munmap", "mremap", "madvise", "membarrier", "mincore",
	// threads
	"futex", "futex_waitv", "set_robust_list", "rseq", "set_tid_address", "sched_yield", "sched_getaffinity", "sched_getattr", "getcpu", "gettid", "getpid", "getppid", "exit", "exit_group",
	// signals
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigtimedwait", "sigaltstack", "restart_syscall",
	// time
	"nanosleep", "clock_nanosleep", "clock_gettime", "clock_getres", "gettimeofday", "time",
	// waiting
	"epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "eventfd2", "pipe2", "poll", "ppoll", "select", "pselect6",
	// reading, and writing to what is open
	"close", "close_range", "read", "readv", "pread64", "preadv", "lseek", "write", "writev", "getdents64", "readlink", "readlinkat", "getcwd",
	"stat", "fstat", "lstat", "newfstatat", "fstatat", "statx", "statfs", "fstatfs", "access", "faccessat", "faccessat2", "dup", "dup3", "fadvise64",
	// sockets
	"accept", "accept4", "connect", "getsockname", "getpeername", "getsockopt", "setsockopt", "sendto", "recvfrom", "sendmsg", "recvmsg", "shutdown",
	// who and where we are
	"getuid", "geteuid", "getgid", "getegid", "getgroups", "getrandom", "uname", "sysinfo", "getrlimit", "getrusage", "times",
}

var writing = []string{
	"open", "openat", "fsync", "fdatasync", "ftruncate", "fallocate", "pwrite64", "pwritev", "rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir",
	"chmod", "fchmod", "fchmodat", "fchown", "flock", "umask", "sendfile", "splice", "copy_file_range", "sync_file_range",
}

var modules = []string{"mlock", "mlock2", "munlock", "getpriority", "sched_getparam", "sched_getscheduler", "utimensat"}

var network = []string{"bind", "sendmmsg", "recvmmsg"} // what resolvers of names use; none can listen

// deadly calls end the process: no fault leads to them, only an attack. The rest that is not listed is refused with EPERM, which a library can live with.
var deadly = []string{
	"execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "pidfd_send_signal", "kcmp",
	"mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
	"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "keyctl", "add_key", "request_key", "unshare", "setns",
	"init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff", "acct", "quotactl", "open_by_handle_at",
	"setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups", "capset", "iopl", "ioperm", "modify_ldt",
	"settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname", "syslog", "mknod", "mknodat", "vmsplice",
}

// Calls are the names of the system calls that stay as they are, and of those that stay with some arguments only.
func (p *Policy) Calls() (whole, partly []string) {
	whole = slices.Clone(everyone)
	if p.Role != Answers {
		whole = append(whole, writing...)
	}
	if p.Role == Signs {
		whole = append(whole, modules...)
	}
	if p.Network {
		whole = append(whole, network...)
	} else if p.Netlink {
		whole = append(whole, "bind")
	}
	if len(p.Devices) > 0 {
		whole = append(whole, "ioctl")
	}
	for _, c := range p.partials() {
		if !slices.Contains(partly, c.name) {
			partly = append(partly, c.name)
		}
	}
	return whole, partly
}

// condition is a comparison of an argument of a system call.
type condition struct {
	argument int
	test     bpf.JumpTest // JumpEqual, JumpNotEqual, JumpBitsSet (any of them) or JumpBitsNotSet (none of them)
	value    uint32       // the high half must be 0
}

// partial is a system call that stays when its arguments meet all of the conditions. Several of one name are alternatives.
type partial struct {
	name string
	when []condition
}

func (p *Policy) partials() []partial {
	var list []partial
	when := func(name string, c ...condition) { list = append(list, partial{name, c}) }
	is := func(argument int, value uint32) condition { return condition{argument, bpf.JumpEqual, value} }
	none := func(argument int, bits uint32) condition { return condition{argument, bpf.JumpBitsNotSet, bits} }
	// Memory is written or executed, never both, and never becomes executable.
	when("mmap", none(2, unix.PROT_EXEC))
	when("mmap", none(2, unix.PROT_WRITE))
	when("mprotect", none(2, unix.PROT_EXEC))
	// A new thread, never a process, in no namespace of its own.
	const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
	when("clone", condition{0, bpf.JumpBitsSet, unix.CLONE_THREAD}, none(0, namespaces))
	// Signals to ourselves.
	self := uint32(os.Getpid())
	when("tgkill", is(0, self))
	when("kill", is(0, self))
	// Nobody else is sent signals on account of a file, or put to the back of the processors' queue.
	when("fcntl", condition{1, bpf.JumpNotEqual, unix.F_SETOWN}, condition{1, bpf.JumpNotEqual, unix.F_SETOWN_EX}, condition{1, bpf.JumpNotEqual, unix.F_SETSIG})
	if p.Role != Answers {
		when("sched_setattr", is(0, 0))
	}
	// Names for threads and memory, and what reads a setting.
	for _, option := range []uint32{unix.PR_SET_NAME, unix.PR_SET_VMA, unix.PR_GET_NAME, unix.PR_GET_DUMPABLE, unix.PR_GET_NO_NEW_PRIVS, unix.PR_GET_SECCOMP,
		unix.PR_GET_MDWE, unix.PR_CAPBSET_READ} {
		when("prctl", is(0, option))
	}
	when("prlimit64", is(0, 0), is(2, 0)) // our own limits, and none set
	if len(p.Devices) == 0 {
		when("ioctl", is(1, unix.TCGETS)) // whether something is a terminal
	}
	if p.Role == Answers { // files are opened for reading, and none is made
		const change = unix.O_ACCMODE | unix.O_CREAT | unix.O_TRUNC
		when("open", none(1, change))
		when("openat", none(2, change))
	}
	when("socket", is(0, unix.AF_UNIX))
	if p.Network { // Landlock knows nothing of MPTCP
		for _, family := range []uint32{unix.AF_INET, unix.AF_INET6} {
			when("socket", is(0, family), condition{2, bpf.JumpNotEqual, unix.IPPROTO_MPTCP})
		}
	}
	if p.Netlink {
		when("socket", is(0, unix.AF_NETLINK))
	}
	return list
}

// What the filter can say.
const (
	actAllow  = unix.SECCOMP_RET_ALLOW
	actLog    = unix.SECCOMP_RET_LOG
	actRefuse = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	actAbsent = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	actKill   = uint32(unix.SECCOMP_RET_KILL_PROCESS)
)

// program is the filter for an architecture: what is let through as it is first, since the kernel remembers the answer where no argument was looked at. The
// library that has the tables of names can assemble filters, too, but goes on comparing the number of a call after arguments took its place.
func (p *Policy) program(a *arch.Info) []bpf.Instruction {
	refuse, end := actRefuse, actKill
	if p.LogOnly {
		refuse, end = actLog, actLog
	}
	const number, architecture, x32 = 0, 4, 0x40000000 // offsets in struct seccomp_data (seccomp(2)); the bit that marks a call of x32
	ret := func(action uint32) bpf.Instruction { return bpf.RetConstant{Val: action} }
	code := []bpf.Instruction{
		bpf.LoadAbsolute{Off: architecture, Size: 4}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(a.ID), SkipTrue: 1}, ret(refuse),
		bpf.LoadAbsolute{Off: number, Size: 4}, bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32, SkipTrue: 1}, ret(refuse),
	}
	each := func(names []string, action uint32) {
		for _, name := range names {
			if n, ok := a.SyscallNames[name]; ok {
				code = append(code, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(n), SkipTrue: 1}, ret(action))
			}
		}
	}
	whole, partly := p.Calls()
	each(whole, actAllow)
	for _, name := range partly {
		n, ok := a.SyscallNames[name]
		if !ok {
			continue
		}
		var block []bpf.Instruction
		for _, c := range p.partials() {
			if c.name == name {
				block = append(block, c.instructions()...)
			}
		}
		block = append(block, ret(refuse)) // the number is gone
		code = append(append(code, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(n), SkipTrue: uint8(len(block))}), block...)
	}
	each([]string{"clone3"}, actAbsent) // its arguments are in memory, where no filter can look; without it, clone is tried
	each(deadly, end)
	return append(code, ret(refuse))
}

// instructions let the call through when all conditions are met, and go on behind themselves otherwise.
func (c *partial) instructions() []bpf.Instruction {
	const arguments = 16 // offset in struct seccomp_data; each has 8 octets, the low half first on all that Go runs on but s390x
	var code []bpf.Instruction
	left := 4 * len(c.when)
	for _, w := range c.when {
		low := uint32(arguments + 8*w.argument)
		left -= 4
		out := uint8(left + 1) // from the last instruction of this condition: over the others, and over the return
		code = append(code,
			bpf.LoadAbsolute{Off: low + 4, Size: 4}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: out + 2},
			bpf.LoadAbsolute{Off: low, Size: 4}, bpf.JumpIf{Cond: w.test, Val: w.value, SkipFalse: out})
	}
	return append(code, bpf.RetConstant{Val: actAllow})
}

// filter puts the filter in force for all threads. What is refused goes to the kernel's audit log, too.
func (p *Policy) filter() error {
	a, err := arch.GetInfo("")
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	raw, err := bpf.Assemble(p.program(a))
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for n, i := range raw {
		code[n] = unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K}
	}
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	const setModeFilter = 1
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_LOG, uintptr(unsafe.Pointer(&program)))
	switch {
	case errno != 0:
		return fmt.Errorf("seccomp: %w", errno)
	case thread != 0:
		return fmt.Errorf("seccomp: thread %d has a filter of its own, so that none came into force", thread)
	}
	return nil
}
