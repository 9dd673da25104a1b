package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// mountState puts a file system of its own under the state.
func (w *world) mountState(argv ...string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: it takes root to mount", errSkip)
	}
	if err := os.MkdirAll(w.state, 0o755); err != nil {
		return err
	}
	if _, err := w.run("mount", append(argv, w.state)...); err != nil {
		return fmt.Errorf("%w: %w", errSkip, err)
	}
	w.cleanup = append(w.cleanup, func() {
		until(10*time.Second, func() error { _, err := w.run("umount", w.state); return err })
	})
	return nil
}

// ext4Shutdown is EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32); without a flush of the log it is what a power cut leaves: what was not
// made durable is gone.
const (
	ext4Shutdown = 0x8004587d
	noLogFlush   = 2
)

func cutPower(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	how := uint32(noLogFlush)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, d.Fd(), ext4Shutdown, uintptr(unsafe.Pointer(&how))); errno != 0 {
		return errno
	}
	return nil
}

// powerTrial cuts the power n times under imports and revocations, on an ext4 of its own.
func powerTrial(w *world, n int) (string, error) {
	image := w.path("disk.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return "", err
	}
	if err := os.Truncate(image, 256<<20); err != nil {
		return "", err
	}
	if _, err := w.run("mkfs.ext4", "-q", image); err != nil {
		return "", fmt.Errorf("%w: %w", errSkip, err)
	}
	if err := w.mountState("-o", "loop", image); err != nil {
		return "", err
	}
	j := &journal{number: 1}
	for round := range n {
		if err := w.start(); err != nil {
			return "", fmt.Errorf("start %d: %w", round, err)
		}
		if err := w.holds(j); err != nil {
			return "", fmt.Errorf("after %d power cuts: %w", round, err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		var importing error
		wg.Go(func() { importing = w.importForever(ctx, j) })
		wg.Go(func() { w.revokeForever(ctx, j) })
		time.Sleep(1500 * time.Millisecond)
		if err := cutPower(w.state); err != nil {
			cancel()
			wg.Wait()
			return "", fmt.Errorf("%w: EXT4_IOC_SHUTDOWN: %w", errSkip, err)
		}
		cancel()
		w.serve.Process.Kill()
		<-w.ended
		w.serve = nil
		wg.Wait()
		if importing != nil {
			return "", importing
		}
		if err := until(20*time.Second, func() error { _, err := w.run("umount", w.state); return err }); err != nil {
			return "", err
		}
		if _, err := w.run("mount", "-o", "loop", image, w.state); err != nil {
			return "", err
		}
	}
	if err := w.start(); err != nil {
		return "", err
	}
	if err := w.holds(j); err != nil {
		return "", err
	}
	for _, verb := range [][]string{{"db", "check"}, {"audit", "verify"}} {
		if _, err := w.ocspd(verb...); err != nil {
			return "", err
		}
	}
	if len(j.revoked) == 0 || j.number < 2 {
		return "", errors.New("nothing was acknowledged, so nothing was tried")
	}
	return fmt.Sprintf("%d power cuts; %d revocations and %d CRLs acknowledged, all there", n, len(j.revoked), j.number), nil
}

func contains(text string, words ...string) bool {
	for _, w := range words {
		if strings.Contains(strings.ToLower(text), w) {
			return true
		}
	}
	return false
}

func short(err error) string {
	s := err.Error()
	if i := strings.Index(s, "exit status"); i >= 0 {
		s = s[i:]
	}
	return s[:min(len(s), 300)]
}
