package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// This file is how long work gives way to answers, which are made in a fraction of a millisecond by threads that have slept. A thread with a long slice is
// put off the processor soon by one with a shorter slice that wakes up, and loses no share by it (Linux 6.12); before, a lower priority alone does that.
// A thread of the idle class gives way to every other at once, on every kernel, and has next to nothing where the processors are never idle.

const (
	keeperNice = 5                      // an import of millions shall not take the processor from answers
	longSlice  = 100 * time.Millisecond // the longest that the kernel takes

	idleWork     = 10 * time.Millisecond // that a thread of the idle class must get done: more than a new one gets for a start
	idlePatience = 2 * idleWork          // in so much time, or there is no room for that class

	idleRoomHolds = time.Second
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

// background runs f on a thread of the idle class, where that gets the processor at all. A thread cannot leave the class again without a privilege, so it ends
// with f. Whoever else may wait for f's work to go on, such as a writer of the database, must not be in f.
func background(f func()) {
	if !idleRoom() {
		f()
		return
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		becomeIdle() // where that fails, f runs as everything else does
		f()
	}()
	<-ended
}

// room is what idleRoom found last, which is good for as long as idleRoomHolds.
var room struct {
	sync.Mutex
	found time.Time
	is    bool
}

// idleRoom tells whether a thread of the idle class has something of the processors now.
func idleRoom() bool {
	room.Lock()
	defer room.Unlock()
	if time.Since(room.found) > idleRoomHolds {
		room.is, room.found = tryIdle(), time.Now()
	}
	return room.is
}

func tryIdle() bool {
	worked := make(chan struct{})
	go func() { // ends after idleWork of processor time, which may take it long
		becomeIdle()
		var used unix.Timespec
		for used.Nano() < int64(idleWork) && unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &used) == nil {
		}
		close(worked)
	}()
	select {
	case <-worked:
		return true
	case <-time.After(idlePatience):
		return false
	}
}

// becomeIdle puts the calling goroutine on a thread of the idle class, which ends with it.
func becomeIdle() error {
	runtime.LockOSThread()
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return err
	}
	a.Policy, a.Runtime = unix.SCHED_IDLE, 0 // with a long slice it would keep the processor for that long, once it has it
	return unix.SchedSetAttr(0, a, 0)
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
