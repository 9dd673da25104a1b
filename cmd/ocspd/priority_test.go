package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Long work has a long slice while it lasts, and only then. A kernel that knows no slices of one's own says 0.
func TestGently(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, err := setSlice(0, 0, 0); err != nil { // other tests of this process may have changed it
		t.Fatal(err)
	}
	slice := func() uint64 {
		a, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		return a.Runtime
	}
	before := slice()
	var within uint64
	gently(func() { within = slice() })
	if within != uint64(longSlice) && within != 0 {
		t.Errorf("a slice of %d ns within, want %v", within, longSlice)
	}
	if after := slice(); after != before {
		t.Errorf("a slice of %d ns afterwards, %d before", after, before)
	}
}

// Background work is in the idle class where that was found to get something of the processors, and only then. Its thread is nobody else's afterwards. What an
// import does on processors that are never idle is for bench/crowd.sh: what a kernel gives in 20 ms is not the same twice.
func TestBackground(t *testing.T) {
	within := func() (policy uint32) {
		background(func() {
			a, err := unix.SchedGetAttr(0, 0)
			if err != nil {
				t.Error(err)
				return
			}
			policy = a.Policy
		})
		return policy
	}
	for tries := 0; within() != unix.SCHED_IDLE; tries++ { // others may keep this machine busy
		if tries == 100 {
			t.Fatal("never in the idle class")
		}
		time.Sleep(100 * time.Millisecond)
	}
	for end := time.Now().Add(10 * time.Second); idleThreads(t) > 0; time.Sleep(10 * time.Millisecond) { // ending takes them a moment of the processor
		if time.Now().After(end) {
			t.Fatal("a thread stays in the idle class")
		}
	}
	room.Lock()
	room.found, room.is = time.Now(), false
	room.Unlock()
	if within() == unix.SCHED_IDLE {
		t.Error("in the idle class, where there is no room for it")
	}
}

// idleThreads counts those but the first, which cannot end: the runtime lays it by for good.
func idleThreads(t *testing.T) (n int) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*")
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, task := range tasks {
		id, err := strconv.Atoi(filepath.Base(task))
		if err != nil {
			t.Fatal(err)
		}
		if a, err := unix.SchedGetAttr(id, 0); err == nil && a.Policy == unix.SCHED_IDLE && id != os.Getpid() {
			n++
		}
	}
	return n
}
