package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// This file is how long work gives way to answers, which are made in a fraction of a millisecond by threads that have slept. A thread with a long slice is
// put off the processor at once by one with a shorter slice that wakes up, and loses no share by it (Linux 6.12); before, a lower priority alone does that.

const (
	keeperNice = 5                      // an import of millions shall not take the processor from answers
	longSlice  = 100 * time.Millisecond // the longest that the kernel takes
)

// giveWay is for every thread of this process that there is; those that come later take after them.
func giveWay(nice int32) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("priority: %w", err)
	}
	for _, t := range tasks {
		id, err := strconv.Atoi(t.Name())
		if err == nil {
			_, err = setSlice(id, nice, longSlice)
		}
		if err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("priority: %w", err)
		}
	}
	return nil
}

// gently runs f on a thread that gives way, where the kernel lets it.
func gently(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if was, err := setSlice(0, 0, longSlice); err == nil {
		defer setSlice(0, 0, was)
	}
	f()
}

// setSlice sets the slice of a thread, and its nice value where that is lower, and gives the slice that it had.
func setSlice(id int, nice int32, slice time.Duration) (was time.Duration, err error) {
	a, err := unix.SchedGetAttr(id, 0)
	if err != nil {
		return 0, err
	}
	was = time.Duration(a.Runtime)
	a.Nice, a.Runtime = max(a.Nice, nice), uint64(slice)
	return was, unix.SchedSetAttr(id, a, 0)
}
