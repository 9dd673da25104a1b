package systemd

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The test binary is its own child: with this variable set it takes the listeners passed to it and answers on each one.
const childVar = "SYSTEMD_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVar) != "" {
		child()
	}
	os.Exit(m.Run())
}

func child() {
	listeners, err := Listeners()
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(0)
	}
	for name, list := range listeners {
		for i, l := range list {
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%s %d\n", name, i)
				c.Close()
			}()
		}
	}
	again, err := Listeners()
	fmt.Println(len(listeners), len(again), err, os.Getenv("LISTEN_FDS"))
	io.Copy(io.Discard, os.Stdin) // until the parent is done
	os.Exit(0)
}

// start runs the child and gives its first line.
func start(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func TestListenersReachTheChild(t *testing.T) {
	listen := func(network, address string) net.Listener {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	ocsp := []net.Listener{listen("tcp4", "127.0.0.1:0"), listen("tcp4", "127.0.0.1:0")}
	admin := []net.Listener{listen("unix", filepath.Join(t.TempDir(), "s"))}
	t.Setenv("LISTEN_PID", "1") // what our own parent passed us is not for the child
	t.Setenv("LISTEN_FDS", "9")
	// Twice: a child that is started again finds the same listeners.
	for range 2 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childVar+"=1", Supervised+"=first")
		closeFiles, err := PassListeners(cmd, map[string][]net.Listener{"ocsp": ocsp, "admin": admin})
		if err != nil {
			t.Fatal(err)
		}
		line := start(t, cmd)
		closeFiles()
		if line != "2 0 <nil>" {
			t.Fatalf("the child says %q", line)
		}
		for want, l := range map[string]net.Listener{"ocsp 0": ocsp[0], "ocsp 1": ocsp[1], "admin 0": admin[0]} {
			c, err := net.DialTimeout(l.Addr().Network(), l.Addr().String(), 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if got, _ := io.ReadAll(c); strings.TrimSpace(string(got)) != want {
				t.Errorf("%s answers %q", want, got)
			}
			c.Close()
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// Variables that are not meant for this process are not believed.
func TestListenersOfOthers(t *testing.T) {
	for name, env := range map[string][]string{
		"nothing":        nil,
		"another's":      {"LISTEN_PID=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=ocsp"},
		"no supervisor":  {"LISTEN_FDS=1", "LISTEN_FDNAMES=ocsp"},
		"no descriptors": {Supervised + "=first"},
	} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(env, childVar+"=1")
		if line := start(t, cmd); !strings.HasPrefix(line, "0 0 <nil>") {
			t.Errorf("%s: the child says %q", name, line)
		}
	}
	cmd := exec.Command(os.Args[0])
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd.ExtraFiles = []*os.File{file}
	cmd.Env = []string{childVar + "=1", Supervised + "=first", "LISTEN_FDS=1", "LISTEN_FDNAMES=ocsp"}
	if line := start(t, cmd); !strings.HasPrefix(line, "error: socket ocsp that was passed to us is not one to listen on") {
		t.Errorf("a file instead of a socket: the child says %q", line)
	}
	if _, err := PassListeners(cmd, nil); err == nil {
		t.Error("listeners are passed after other files")
	}
}

func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify("READY=1"); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := Notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("systemd hears %q, %v", b[:n], err)
	}
	t.Setenv("NOTIFY_SOCKET", path+"-gone")
	if err := Notify("READY=1"); err == nil {
		t.Error("a notification that nobody hears is no error")
	}
}

func TestWatchdog(t *testing.T) {
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0}, {"30000000", "", 30 * time.Second}, {"30000000", fmt.Sprint(os.Getpid()), 30 * time.Second}, {"30000000", "1", 0},
	} {
		t.Setenv("WATCHDOG_USEC", c.usec)
		t.Setenv("WATCHDOG_PID", c.pid)
		if got, err := Watchdog(); got != c.want || err != nil {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
	t.Setenv("WATCHDOG_USEC", "soon")
	if _, err := Watchdog(); err == nil {
		t.Error("a WATCHDOG_USEC that is no number is no error")
	}
}
