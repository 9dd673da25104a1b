package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"ocspd/responder"
)

// Users of the roles where each has its own; under `ocspd serve` all three are one user, whoever that is.
const (
	userFront  = "ocspd-front"
	userSigner = "ocspd-signer"
	userKeeper = "ocspd-keeper"
	groupAdmin = "ocspd-admin"
)

// peer is who sits at the other end of a unix socket, by the kernel's word.
type peer struct {
	pid      int
	uid, gid uint32
}

func peerOf(c net.Conn) (peer, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return peer{}, errors.New("not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return peer{}, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return peer{}, err
	}
	if credErr != nil {
		return peer{}, credErr
	}
	return peer{int(cred.Pid), cred.Uid, cred.Gid}, nil
}

// name is the peer's account for the audit log.
func (p peer) name() string {
	if u, err := user.LookupId(strconv.Itoa(int(p.uid))); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", p.uid)
}

// hiddenUser is how the kernel shows an account that has no place in our user namespace (user_namespaces(7)).
const hiddenUser = 65534

// usersHidden reports whether this process sees no accounts but root and its own: its unit has PrivateUsers=yes.
func usersHidden() bool {
	m, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(m)), " ") != "0 0 4294967295"
}

// allowUsers lets in root, our own user and the named ones. Where accounts are hidden, it lets in everyone hidden: then it is the socket's owner, group
// and mode, which the kernel applies to who they really are, that decide alone.
func allowUsers(names ...string) func(net.Conn) (int, error) {
	allowed := map[uint32]bool{0: true, uint32(os.Geteuid()): true, hiddenUser: usersHidden()}
	for _, n := range names {
		if u, err := user.Lookup(n); err == nil {
			if id, err := strconv.ParseUint(u.Uid, 10, 32); err == nil {
				allowed[uint32(id)] = true
			}
		}
	}
	return func(c net.Conn) (int, error) {
		p, err := peerOf(c)
		if err != nil {
			return 0, err
		}
		if !allowed[p.uid] {
			return 0, fmt.Errorf("user %s may not connect here", p.name())
		}
		return p.pid, nil
	}
}

// allowSubscribers lets nobody into the feed as signer but signer: what signer says of the key that signs the log is believed.
func allowSubscribers() func(net.Conn, responder.Role) (int, error) {
	front, signer := allowUsers(userFront), allowUsers(userSigner)
	return func(c net.Conn, role responder.Role) (int, error) {
		if role == responder.RoleSigner {
			return signer(c)
		}
		return front(c)
	}
}

// withSocketPath calls f with a path to the socket that fits into a sockaddr_un (107 octets), however deep the directory lies.
func withSocketPath[T any](path string, f func(string) (T, error)) (none T, err error) {
	const longest = 107
	if len(path) <= longest {
		return f(path)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return none, err
	}
	defer dir.Close()
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
}

// listenUnix takes over the socket that systemd holds for us under that name, whose owner and mode its unit decides, or else makes one.
func (r *role) listenUnix(name, path string) (net.Listener, error) {
	passed := r.passed[name]
	if len(passed) == 0 {
		return makeUnix(path)
	}
	if at := passed[0].Addr().String(); at != path || len(passed) > 1 {
		return nil, fmt.Errorf("socket %s: systemd holds %s for it, and run = %q; the other roles look for it there: change the unit ('systemctl edit ocspd-%s.socket') or the configuration",
			path, at, r.cfg.Run, name)
	}
	return passed[0], nil
}

// makeUnix makes a socket that only our user and root can open, in place of one that a dead process left. A live one stays.
func makeUnix(path string) (net.Listener, error) {
	if c, err := dialUnix(path)(context.Background()); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s: another process serves on it; stop that one first", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	old := syscall.Umask(0o177)
	l, err := withSocketPath(path, func(p string) (net.Listener, error) { return net.Listen("unix", p) })
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}

func dialUnix(path string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return withSocketPath(path, func(p string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", p)
		})
	}
}

// allowAdmins lets in root, our own user and members of the group ocspd-admin.
func allowAdmins() func(peer) bool {
	group, err := user.LookupGroup(groupAdmin)
	return func(p peer) bool {
		if p.uid == 0 || p.uid == uint32(os.Geteuid()) {
			return true
		}
		if err != nil {
			return false
		}
		u, err := user.LookupId(strconv.Itoa(int(p.uid)))
		if err != nil {
			return false
		}
		ids, err := u.GroupIds()
		return err == nil && slices.Contains(ids, group.Gid)
	}
}

// become leaves root for another user, for good. Every thread changes, in cgo's libraries too.
func become(uid, gid int) error {
	if uid == os.Geteuid() {
		return nil
	}
	if err := errors.Join(syscall.Setgroups([]int{gid}), syscall.Setgid(gid), syscall.Setuid(uid)); err != nil {
		return fmt.Errorf("become user %d: %w", uid, err)
	}
	return nil
}
