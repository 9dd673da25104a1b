package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// pace asks one question at a steady rate over one connection until ctx ends, and gives how long each answer took. An answer other than good
// is an error.
func (w *world) pace(ctx context.Context, ca string, serial []byte, perSecond int) ([]time.Duration, error) {
	question := w.question(ca, false, serial)
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	var took []time.Duration
	var known []byte // an answer that was judged; the cache gives the same octets
	for {
		select {
		case <-ctx.Done():
			return took, nil
		case <-tick.C:
		}
		began := time.Now()
		b, err := w.post(question)
		if err != nil {
			return took, err
		}
		took = append(took, time.Since(began))
		if bytes.Equal(b, known) {
			continue
		}
		if got, err := w.judge(ca, b); err != nil || len(got) != 1 || got[0] != "good" {
			return took, fmt.Errorf("a cached answer became %v, %w", got, err)
		}
		known = b
	}
}

func p99(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)*99/100]
}

// cost is what something took: time on the clock, and of processors.
type cost struct{ took, cpu time.Duration }

func (c cost) plus(d cost) cost { return cost{c.took + d.took, c.cpu + d.cpu} }

// sqliteImport is the yardstick: the sqlite3 shell reads the same rows, sorted, from CSV, and makes them durable.
func (w *world) sqliteImport(n int) (cost, error) {
	file := w.path("rows.csv")
	f, err := os.Create(file)
	if err != nil {
		return cost{}, err
	}
	defer os.Remove(file)
	defer f.Close()
	out := &buffered{w: f}
	for i := range n {
		l := bulk(i)
		out.write(fmt.Appendf(nil, "%x,%d,%d\n", l.serial, l.reason, revokedLongAgo.Unix()))
	}
	if err := out.flush(); err != nil {
		return cost{}, err
	}
	database := w.path("yardstick.db")
	defer os.Remove(database)
	syscall.Sync() // what came before is not to be written now
	c := exec.Command("sqlite3", database, "CREATE TABLE t (serial TEXT PRIMARY KEY, reason INTEGER, at INTEGER) WITHOUT ROWID;", ".mode csv", ".import "+file+" t")
	began := time.Now()
	if text, err := c.CombinedOutput(); err != nil {
		return cost{}, fmt.Errorf("sqlite3: %w: %s", err, text)
	}
	return cost{time.Since(began), c.ProcessState.UserTime() + c.ProcessState.SystemTime()}, nil
}

const idleTime = 5 * time.Second

// importTrial: a CRL of n entries through `ocspd crl import`, against the yardstick; keeper's memory; the answers and a revocation meanwhile.
func importTrial(w *world, n int) (string, error) {
	if err := w.publishMany("class1", "big.crl", 2, n, bulk); err != nil {
		return "", err
	}
	if err := w.start(); err != nil {
		return "", err
	}
	idle, cancel := context.WithTimeout(context.Background(), idleTime)
	before := w.load(idle)
	<-idle.Done()
	cancel()
	calm := before()
	if calm.err != nil {
		return "", calm.err
	}
	// The yardstick before and after, since neither of the two machines that a machine can be at different times is the right one.
	yardstick, err := w.sqliteImport(n)
	if err != nil {
		return "", err
	}
	alone, peak, err := w.timedImport("big.crl")
	if err != nil {
		return "", err
	}
	again, err := w.sqliteImport(n)
	if err != nil {
		return "", err
	}
	yardstick = yardstick.plus(again)
	yardstick.took, yardstick.cpu = yardstick.took/2, yardstick.cpu/2
	// Once more, of other content, under the same load as before.
	if err := w.publishMany("class1", "bigger.crl", 3, n, func(i int) listed { l := bulk(i); l.reason = 1; return l }); err != nil {
		return "", err
	}
	busy, cancel := context.WithCancel(context.Background())
	during := w.load(busy)
	_, peak2, err := w.timedImport("bigger.crl")
	cancel()
	meanwhile := during()
	for _, e := range []error{err, meanwhile.err} {
		if e != nil {
			return "", e
		}
	}
	if got, err := w.ask("class1", true, bulk(n/2).serial); err != nil || got[0] != "revoked" {
		return "", fmt.Errorf("an imported serial is answered %v, %w", got, err)
	}
	peak = max(peak, peak2)
	ratio, slower := alone.took.Seconds()/yardstick.took.Seconds(), float64(meanwhile.p99)/float64(calm.p99)
	text := fmt.Sprintf("%d entries in %.2f s, %.2f of sqlite3 (limit 1.25), of processors %.2f s in keeper, %.2f s in sqlite3; keeper's peak %.0f MiB (limit 120); "+
		"p99 of cached answers %v idle, %v meanwhile, %.2f times (limit 2); slowest revoke %v (limit 1s), %v idle",
		n, alone.took.Seconds(), ratio, alone.cpu.Seconds(), yardstick.cpu.Seconds(), peak,
		calm.p99.Round(time.Microsecond), meanwhile.p99.Round(time.Microsecond), slower, meanwhile.revoke.Round(time.Millisecond), calm.revoke.Round(time.Millisecond))
	if ratio > 1.25 || peak > 120 || slower > 2 || meanwhile.revoke > time.Second {
		return text, fmt.Errorf("a limit is passed")
	}
	return text, nil
}

// loaded is how cached answers and revocations of class3 went.
type loaded struct {
	p99, revoke time.Duration
	err         error
}

// load asks and revokes until ctx ends; then the function that it returns tells how that went.
func (w *world) load(ctx context.Context) func() loaded {
	var wg sync.WaitGroup
	var took []time.Duration
	var l loaded
	var asked, revoking error
	wg.Go(func() { took, asked = w.pace(ctx, "class3", small(900), 400) })
	wg.Go(func() { l.revoke, revoking = w.revokeAllTheTime(ctx, "class3") })
	return func() loaded {
		wg.Wait()
		l.p99, l.err = p99(took), errors.Join(asked, revoking)
		return l
	}
}

// askers is how many ask one after the other without a pause, which leaves no processor idle.
const askers = 8

// crowdTrial: a CRL of n entries through `ocspd crl import` on processors that are never idle. It takes longer, but ends; and a revocation does not wait for it.
func crowdTrial(w *world, n int) (string, error) {
	if err := w.publishMany("class1", "big.crl", 2, n, bulk); err != nil {
		return "", err
	}
	if err := w.start(); err != nil {
		return "", err
	}
	alone, _, err := w.timedImport("big.crl")
	if err != nil {
		return "", err
	}
	if err := w.publishMany("class1", "bigger.crl", 3, n, func(i int) listed { l := bulk(i); l.reason = 1; return l }); err != nil {
		return "", err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	question := w.question("class3", false, small(900))
	var wg sync.WaitGroup
	failed := make(chan error, askers)
	for range askers {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := w.post(question); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	revoking, stop := context.WithTimeout(ctx, idleTime)
	before, err := w.revokeAllTheTime(revoking, "class3")
	stop()
	if err != nil {
		return "", err
	}
	revoking, stop = context.WithCancel(ctx)
	var meanwhile time.Duration
	var revoked error
	wg.Go(func() { meanwhile, revoked = w.revokeAllTheTime(revoking, "class3") })
	crowded, _, err := w.timedImport("bigger.crl")
	stop()
	cancel()
	wg.Wait()
	close(failed)
	if err := errors.Join(err, revoked, <-failed); err != nil {
		return "", err
	}
	text := fmt.Sprintf("%d entries in %.2f s alone, %.2f s while %d clients ask without a pause (limit 30); slowest revoke %v before, %v meanwhile (limit 2s)",
		n, alone.took.Seconds(), crowded.took.Seconds(), askers, before.Round(time.Millisecond), meanwhile.Round(time.Millisecond))
	if crowded.took > 30*time.Second || meanwhile > 2*time.Second {
		return text, fmt.Errorf("a limit is passed")
	}
	return text, nil
}

func (w *world) timedImport(file string) (c cost, peak float64, err error) {
	keeper, err := w.role("keeper")
	if err != nil {
		return c, 0, err
	}
	if err := resetPeak(keeper); err != nil {
		return c, 0, err
	}
	syscall.Sync()
	busy, err := processorTime(keeper)
	if err != nil {
		return c, 0, err
	}
	began := time.Now()
	if _, err := w.ocspd("crl", "import", w.path(file)); err != nil {
		return c, 0, err
	}
	c.took = time.Since(began)
	if c.cpu, err = processorTime(keeper); err != nil {
		return c, 0, err
	}
	c.cpu -= busy
	peak, err = memory(keeper, "VmHWM")
	return c, peak, err
}

// revokeAllTheTime gives the longest that a revocation took.
func (w *world) revokeAllTheTime(ctx context.Context, ca string) (worst time.Duration, err error) {
	for ; ctx.Err() == nil; w.revocations++ {
		began := time.Now()
		if _, err := w.ocspd("revoke", ca, fmt.Sprintf("0x%x", 10_000+w.revocations)); err != nil {
			return worst, err
		}
		worst = max(worst, time.Since(began))
		time.Sleep(500 * time.Millisecond)
	}
	return worst, nil
}

// statusesTrial: n statuses in signer, a change of all of them, and a start.
func statusesTrial(w *world, n int) (string, error) {
	if err := w.publishMany("class1", "class1.crl", 2, n, bulk); err != nil {
		return "", err
	}
	if _, err := w.ocspd("crl", "import", w.path("class1.crl")); err != nil {
		return "", err
	}
	began := time.Now()
	if err := w.start(); err != nil {
		return "", err
	}
	if got, err := w.ask("class1", true, bulk(n-1).serial); err != nil || got[0] != "revoked" {
		return "", fmt.Errorf("the last serial is answered %v, %w", got, err)
	}
	ready := time.Since(began)
	if err := w.publishMany("class1", "next.crl", 3, n, func(i int) listed { l := bulk(i); l.reason = 1; return l }); err != nil {
		return "", err
	}
	began = time.Now()
	if _, err := w.ocspd("crl", "import", w.path("next.crl")); err != nil {
		return "", err
	}
	took := time.Since(began)
	signer, err := w.role("signer")
	if err != nil {
		return "", err
	}
	peak, err := memory(signer, "VmHWM")
	if err != nil {
		return "", err
	}
	keeper, err := w.role("keeper")
	if err != nil {
		return "", err
	}
	kept, err := memory(keeper, "VmHWM")
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("%d statuses: signer's peak %.0f MiB, a flip included (limit 1024); ready %.2f s after the start (limit 5); import %.1f s, keeper's peak %.0f MiB; database %d MiB",
		n, peak, ready.Seconds(), took.Seconds(), kept, size(filepath.Join(w.state, "keeper"))>>20)
	if peak > 1024 || ready > 5*time.Second {
		return text, fmt.Errorf("a limit is passed")
	}
	return text, nil
}

func size(dir string) (n int64) {
	files, _ := filepath.Glob(dir + "/*")
	for _, f := range files {
		if info, err := os.Stat(f); err == nil {
			n += info.Size()
		}
	}
	return n
}
