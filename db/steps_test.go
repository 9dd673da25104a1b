package db

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ocspd/pki"
)

// TestSteps: what takes long tells its steps in order, and counts every record in force, a block at a time.
func TestSteps(t *testing.T) {
	h := newHouse(t)
	var entries []pki.Entry
	for n := range uint64(3 * blockRecords) {
		entries = append(entries, revoked(n, pki.Unspecified, day0))
	}
	h.must(crl(1, entries[:10]...)) // superseded
	h.must(crl(2, entries...))
	h.must(index(good(7), good(1_000_000)))
	inForce := int64(len(entries) + 2)

	var steps []string
	var counted, calls int64
	ctx := WithSteps(t.Context(), func(step string, records int64) func(int) {
		steps = append(steps, step)
		if step == "checking records" && records != inForce {
			t.Errorf("%d records were announced, not %d", records, inForce)
		}
		return func(n int) { counted += int64(n); calls++ }
	})
	done := func(what string, want ...string) {
		t.Helper()
		if d := cmp.Diff(want, steps); d != "" {
			t.Errorf("%s: %s", what, d)
		}
		if checked := int64(len(slices.DeleteFunc(steps, func(s string) bool { return s != "checking records" }))); counted != checked*inForce || calls > 10*checked {
			t.Errorf("%s: %d records were counted in %d calls, not %d", what, counted, calls, checked*inForce)
		}
		steps, counted, calls = nil, 0, 0
	}
	if problems, err := h.Check(ctx); err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	done("Check", "checking pages", "checking records")
	backup := filepath.Join(t.TempDir(), "backup.db")
	if err := h.Backup(ctx, backup); err != nil {
		t.Fatal(err)
	}
	done("Backup", "copying", "checking pages", "checking records")
	h.Close()
	if err := Restore(ctx, backup, h.path); err != nil {
		t.Fatal(err)
	}
	done("Restore", "checking pages", "checking records", "copying", "checking pages", "checking records")
}
