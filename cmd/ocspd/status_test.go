package main

import (
	"net"
	"strings"
	"testing"
	"time"
)

// A keeper that was stopped, or whose disk hangs, takes connections and answers none. Whoever watches must hear of it, not wait with it.
func TestStatusOfAKeeperThatHangs(t *testing.T) {
	cfg := &config{Run: t.TempDir()}
	l, err := net.Listen("unix", cfg.keeperSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	defer func(d time.Duration) { statusPatience = d }(statusPatience)
	statusPatience = 200 * time.Millisecond
	s, err := askStatus(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if p := checkAll(s, time.Now()); s.Verdict != verdictNotServing || p.state() != pluginCritical ||
		!strings.Contains(p.text(), "keeper runs but has not answered for 200ms") {
		t.Errorf("verdict %q, plugin %s: %s", s.Verdict, p.state(), p.text())
	}
}
