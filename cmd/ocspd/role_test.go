package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A role that systemd started and that fails at once is not started again at once; the reason is told before it waits.
func TestFailedRoleWaits(t *testing.T) {
	config := filepath.Join(t.TempDir(), "ocspd.toml")
	for systemd, atLeast := range map[string]time.Duration{"": 0, "/nonexistent/notify": failedPause} {
		t.Setenv("NOTIFY_SOCKET", systemd)
		var stderr told
		begun := time.Now()
		code := run([]string{"front", "--config", config}, &bytes.Buffer{}, &stderr)
		took := time.Since(begun)
		if code != exitFailed || !strings.Contains(stderr.String(), config+": does not exist") {
			t.Errorf("exit %d: %s", code, &stderr)
		}
		if took < atLeast || took > atLeast+time.Second || stderr.at.Sub(begun) > time.Second {
			t.Errorf("NOTIFY_SOCKET=%q: took %s, the reason was told after %s", systemd, took, stderr.at.Sub(begun))
		}
		if n := strings.Count(stderr.String(), "\n"); n != 1 {
			t.Errorf("%d lines: %s", n, &stderr)
		}
	}
}

// told is what was written, and when first.
type told struct {
	bytes.Buffer
	at time.Time
}

func (w *told) Write(b []byte) (int, error) {
	if w.at.IsZero() {
		w.at = time.Now()
	}
	return w.Buffer.Write(b)
}
