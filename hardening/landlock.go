package hardening

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Landlock (Documentation/userspace-api/landlock.rst of the kernel) by its three system calls. The library for it in Go reaches other threads by
// interrupting them from C; a thread that restricts itself and executes the program anew needs neither.

// What each version of the interface can close, as far as it was tried. Later ones add sockets of a path and UDP, which a name server and systemd's socket
// may need.
const (
	fsV1     = unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1
	netV4    = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	scopedV6 = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
)

// What a rule may permit.
const (
	readAccess   = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	changeAccess = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	writeAccess  = readAccess | changeAccess | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_DIR |
		unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR
	socketAccess = unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE
	deviceAccess = readAccess | changeAccess | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	fileAccess   = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | changeAccess | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV // what a file, not a folder, can have
)

// systemRead is what every program of this kind reads while it starts: libraries, time zone, limits of its control group.
var systemRead = []string{
	"/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/ld.so.preload",
	"/etc/localtime", "/usr/share/zoneinfo", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group",
	"/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage", "/sys/devices/system/cpu", "/dev/urandom", "/dev/random",
}

// landlockABI is the version of the kernel's interface; 0 where there is none.
func landlockABI() int {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(version)
}

func handled(abi int) unix.LandlockRulesetAttr {
	a := unix.LandlockRulesetAttr{Handled_access_fs: fsV1}
	if abi >= 2 {
		a.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		a.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 4 {
		a.Handled_access_net = netV4
	}
	if abi >= 5 {
		a.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if abi >= 6 {
		a.Scoped = scopedV6
	}
	return a
}

// ruleset is a Landlock ruleset that is being made.
type ruleset struct {
	fd      int
	handled unix.LandlockRulesetAttr
}

// restrictSelf closes for this thread, and all that it becomes, what the policy does not name. self is the program, which alone may still be executed.
func (p *Policy) restrictSelf(self string) error {
	abi := landlockABI()
	if abi == 0 {
		return nil
	}
	r := ruleset{handled: handled(abi)}
	if p.AnyPort {
		r.handled.Handled_access_net &^= unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&r.handled)), unsafe.Sizeof(r.handled), 0)
	if errno != 0 {
		return fmt.Errorf("hardening: landlock: %w", errno)
	}
	r.fd = int(fd)
	defer unix.Close(r.fd)
	loaders, err := filepath.Glob("/lib*/ld-*.so*") // without which a program that has libraries cannot be executed
	if err != nil {
		return fmt.Errorf("hardening: landlock: %w", err)
	}
	for _, rule := range []struct {
		paths  []string
		access uint64
	}{
		{append(loaders, self), unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE},
		{systemRead, readAccess}, {[]string{"/dev/null"}, readAccess | changeAccess},
		{p.Read, readAccess}, {p.Write, writeAccess}, {p.Sockets, socketAccess}, {p.Devices, deviceAccess},
	} {
		for _, path := range rule.paths {
			if err := r.allow(path, rule.access); err != nil {
				return err
			}
		}
	}
	if err := r.allowOwnProc(); err != nil {
		return err
	}
	if err := r.allowPorts(p.Connect, unix.LANDLOCK_ACCESS_NET_CONNECT_TCP); err != nil {
		return err
	}
	if err := r.allowPorts(p.Listen, unix.LANDLOCK_ACCESS_NET_BIND_TCP); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(r.fd), 0, 0); errno != 0 {
		return fmt.Errorf("hardening: landlock: restrict: %w", errno)
	}
	return nil
}

func (r *ruleset) allow(path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EACCES) {
		return nil // it stays closed
	}
	if err != nil {
		return fmt.Errorf("hardening: landlock: %s: %w", path, err)
	}
	defer unix.Close(fd)
	return r.allowFD(fd, path, access)
}

func (r *ruleset) allowFD(fd int, path string, access uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("hardening: landlock: %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		access &= fileAccess
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access & r.handled.Handled_access_fs, Parent_fd: int32(fd)}
	const pathBeneath = 1
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(r.fd), pathBeneath, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("hardening: landlock: rule for %s: %w", path, errno)
	}
	return nil
}

// allowOwnProc permits the process to look at itself. The kernel forgets a rule with the last use of its folder, and those of /proc are made when they are
// looked at: so the folder stays open, through the execution too.
func (r *ruleset) allowOwnProc() error {
	path := fmt.Sprintf("/proc/%d", os.Getpid())
	fd, err := unix.Open(path, unix.O_PATH, 0)
	if err != nil {
		return fmt.Errorf("hardening: landlock: %s: %w", path, err)
	}
	return r.allowFD(fd, path, readAccess)
}

func (r *ruleset) allowPorts(ports []uint16, access uint64) error {
	if access &= r.handled.Handled_access_net; access == 0 {
		return nil
	}
	for _, port := range ports {
		rule := struct{ access, port uint64 }{access, uint64(port)}
		const netPort = 2
		if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(r.fd), netPort, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
			return fmt.Errorf("hardening: landlock: rule for TCP port %d: %w", port, errno)
		}
	}
	return nil
}
