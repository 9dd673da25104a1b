package main

import (
	"os"
	"os/exec"
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

// Background work is in the idle class where that gets something of the processors, and only then. Its thread is nobody else's afterwards.
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
	var ours unix.CPUSet
	if err := unix.SchedGetaffinity(0, &ours); err != nil {
		t.Fatal(err)
	}
	for n := range 1024 {
		if !ours.IsSet(n) {
			continue
		}
		busy := exec.Command("sh", "-c", "while :; do :; done")
		if err := busy.Start(); err != nil {
			t.Fatal(err)
		}
		defer busy.Wait()
		defer busy.Process.Kill()
		var one unix.CPUSet // or two might share one, while others leave the other idle
		one.Set(n)
		if err := unix.SchedSetaffinity(busy.Process.Pid, &one); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(idleRoomHolds)
	idle := 0
	for range 5 {
		if tryIdle() {
			idle++
		}
	}
	if idle > 1 { // a moment may be free
		t.Errorf("room for the idle class %d times of 5, where nothing is left for it", idle)
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
