package hardening

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The measures cannot be undone, so that the test binary takes them as its own child: this variable says which.
const childVar = "HARDENING_TEST_CHILD"

func TestMain(m *testing.M) {
	if measures := os.Getenv(childVar); measures != "" {
		child(strings.Split(measures, ","))
	}
	os.Exit(m.Run())
}

func child(measures []string) {
	// Threads from before the measures have to be reached too.
	var started sync.WaitGroup
	for range 20 {
		started.Add(1)
		go func() {
			runtime.LockOSThread()
			started.Done()
			select {}
		}()
	}
	started.Wait()
	for _, m := range measures {
		var err error
		switch m {
		case "confine":
			if !Confined() {
				err = Confine(childPolicy())
			}
		case "no-dump":
			err = NoDump()
		case "seal":
			p := childPolicy()
			p.Require = Measures
			_, err = Seal(p)
		case "one-thread": // what Report must not be content with
			runtime.LockOSThread()
			err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		case "wait":
			os.Stdout.WriteString("ready\n")
			io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}
		if err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
	}
	report()
	os.Exit(0)
}

func report() {
	s, err := Report()
	if err != nil {
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
	json.NewEncoder(os.Stdout).Encode(s)
}

func runChild(t *testing.T, measures string) State {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVar+"="+measures)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("child %s: %v", measures, err)
	}
	var s State
	if err := json.Unmarshal(out, &s); err != nil {
		t.Fatalf("child %s: %v: %s", measures, err, out)
	}
	return s
}

func TestNoDump(t *testing.T) {
	before, after := runChild(t, "none"), runChild(t, "no-dump")
	if !before.Dumpable {
		t.Error("a process that did nothing is undumpable: the test shows nothing")
	}
	if after.Dumpable || after.CoreLimit != 0 {
		t.Errorf("dumps are still allowed: %+v", after)
	}
}

// The kernel gives the files under /proc/PID, memory among them, to root when a process is not dumpable, so that other processes of
// its user cannot read them.
func TestNoDumpHidesMemory(t *testing.T) {
	uid := os.Getuid()
	var attr *syscall.SysProcAttr
	if uid == 0 {
		uid = 65534
		attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	for measures, want := range map[string]int{"none,wait": uid, "no-dump,wait": 0} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), childVar+"="+measures)
		cmd.SysProcAttr = attr
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
		if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
			t.Fatalf("child says %q, %v", line, err)
		}
		info, err := os.Stat(fmt.Sprintf("/proc/%d/mem", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if got := int(info.Sys().(*syscall.Stat_t).Uid); got != want {
			t.Errorf("%s: the memory belongs to user %d, want %d", measures, got, want)
		}
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
}

// childPolicy is one by which a test binary can live.
func childPolicy() *Policy {
	return &Policy{Role: Answers, Read: []string{os.TempDir()}}
}

func TestConfine(t *testing.T) {
	// Where all of us run without new privileges, there is nothing to gain, and one thread cannot be told from all.
	if s := runChild(t, "one-thread"); s.NoNewPrivileges && !runChild(t, "none").NoNewPrivileges {
		t.Error("one thread of many counts as all")
	}
	s := runChild(t, "confine,no-dump")
	if !s.NoNewPrivileges {
		t.Error("new privileges are possible in some thread")
	}
	if s.Capabilities != 0 {
		t.Errorf("capabilities %#x are left", s.Capabilities)
	}
	if os.Getuid() == 0 && s.Bounding != 0 {
		t.Errorf("capabilities %#x are left in the bounding set", s.Bounding)
	}
	if s.Dumpable || s.CoreLimit != 0 {
		t.Errorf("the other measure is gone: %+v", s)
	}
}

// A sealed process has what it reports, in the threads that were there before too, and what is required of it.
func TestSeal(t *testing.T) {
	s := runChild(t, "confine,seal")
	if s.Seccomp != "filter" || s.Filters == 0 || s.Threads < 20 {
		t.Errorf("no filter in some thread: %+v", s)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVar+"=seal") // unconfined
	if out, err := cmd.CombinedOutput(); err == nil || !bytes.Contains(out, []byte("hardening.require names landlock, which does not hold: Confine was not called")) {
		t.Errorf("a process that is not confined can be sealed with Landlock required: %v: %s", err, out)
	}
}

func TestReport(t *testing.T) {
	s := runChild(t, "none")
	if s.Seccomp != "off" && s.Seccomp != "filter" {
		t.Errorf("seccomp %q", s.Seccomp)
	}
	if os.Getuid() == 0 && s.Capabilities == 0 {
		t.Error("root has no capabilities: the test shows nothing")
	}
	if _, err := threadStatus("/proc/self/limits"); err == nil {
		t.Error("a file that says nothing is a report")
	}
}
