package main

import (
	"runtime"
	"testing"

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
