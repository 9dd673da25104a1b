package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// journal is what was acknowledged, kept by whoever gave the orders.
type journal struct {
	mu      sync.Mutex
	revoked [][]byte // by hand, of class3
	number  int      // of the newest CRL of class1 that was imported
	failed  int
}

// The two serials of class1 of which every CRL revokes exactly one: the even ones the first, the odd ones the other.
var tick, tock = small(0x7001), small(0x7002)

// numbered is a serial that stays revoked from the CRL of this number on.
func numbered(n int) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint64(b, 0x5000_0000_0000_0000+uint64(n))
	return b
}

// crlOf lists a few thousand serials, so that an import takes a while, and those of all numbers up to its own.
func (w *world) crlOf(number int) error {
	all := []listed{{tick, 6}}
	if number%2 == 1 {
		all[0].serial = tock
	}
	for n := 2; n <= number; n++ {
		all = append(all, listed{numbered(n), 1})
	}
	for i := range 3000 {
		all = append(all, bulk(i))
	}
	return w.publish("class1", "next.crl", number, all)
}

func (w *world) importForever(ctx context.Context, j *journal) error {
	for number := j.number + 1; ctx.Err() == nil; number++ {
		if err := w.crlOf(number); err != nil {
			return err
		}
		if _, err := w.ocspd("crl", "import", w.path("next.crl")); err != nil {
			j.mu.Lock()
			j.failed++
			j.mu.Unlock()
			time.Sleep(50 * time.Millisecond)
			continue // the next number; this one may be in force or not
		}
		j.mu.Lock()
		j.number = number
		j.mu.Unlock()
	}
	return nil
}

func (w *world) revokeForever(ctx context.Context, j *journal) {
	for n := 0x100000 + len(j.revoked)*16; ctx.Err() == nil; n++ {
		if _, err := w.ocspd("revoke", "class3", fmt.Sprintf("0x%x", n), "--reason", "keyCompromise"); err != nil {
			j.mu.Lock()
			j.failed++
			j.mu.Unlock()
			time.Sleep(50 * time.Millisecond)
			continue
		}
		j.mu.Lock()
		j.revoked = append(j.revoked, small(n))
		j.mu.Unlock()
	}
}

// watchPair asks for both at once, all the time: exactly one of them is revoked in every generation.
func (w *world) watchPair(ctx context.Context) (answers int, err error) {
	for ctx.Err() == nil {
		got, err := w.ask("class1", true, tick, tock)
		switch {
		case err != nil:
			return answers, err
		case len(got) == 1 && (got[0] == "tryLater" || got[0] == "internalError"):
		case len(got) != 2 || (got[0] == "revoked") == (got[1] == "revoked"):
			return answers, fmt.Errorf("an answer is of no one generation: %v", got)
		default:
			answers++
		}
		time.Sleep(10 * time.Millisecond)
	}
	return answers, nil
}

// holds judges everything acknowledged so far.
func (w *world) holds(j *journal) error {
	j.mu.Lock()
	hand, number := append([][]byte(nil), j.revoked...), j.number
	j.mu.Unlock()
	var fromCRL [][]byte
	for n := 2; n <= number; n++ {
		fromCRL = append(fromCRL, numbered(n))
	}
	for ca, serials := range map[string][][]byte{"class3": hand, "class1": fromCRL} {
		for len(serials) > 0 {
			n := min(len(serials), 8)
			err := until(20*time.Second, func() error {
				got, err := w.ask(ca, true, serials[:n]...)
				if err == nil && len(got) != n {
					err = errors.New(got[0])
				}
				if err != nil {
					return err
				}
				for i, s := range got {
					if s != "revoked" {
						return final{fmt.Errorf("LOST: %s serial %x was acknowledged and is %s", ca, serials[i], s)}
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			serials = serials[n:]
		}
	}
	return nil
}

// killTrial kills keeper with SIGKILL at n random moments of imports and revocations.
func killTrial(w *world, n int) (string, error) {
	j := &journal{number: 1}
	if err := w.start(); err != nil {
		return "", err
	}
	if err := w.crlOf(2); err != nil {
		return "", err
	}
	if _, err := w.ocspd("crl", "import", w.path("next.crl")); err != nil {
		return "", err
	}
	j.number = 2
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	var importing, watching error
	var answers int
	wg.Go(func() { importing = w.importForever(ctx, j) })
	wg.Go(func() { w.revokeForever(ctx, j) })
	wg.Go(func() { answers, watching = w.watchPair(ctx) })
	var failure error
	for range n {
		time.Sleep(time.Duration(rand.IntN(900)) * time.Millisecond)
		var keeper int
		if failure = until(30*time.Second, func() (err error) { keeper, err = w.role("keeper"); return err }); failure != nil {
			break
		}
		syscall.Kill(keeper, syscall.SIGKILL)
		if failure = until(30*time.Second, func() error { return w.anotherKeeper(keeper) }); failure != nil {
			break
		}
	}
	cancel()
	wg.Wait()
	for _, err := range []error{failure, importing, watching} {
		if err != nil {
			return "", err
		}
	}
	err := w.holds(j)
	text := fmt.Sprintf("%d kills; %d revocations and %d CRLs acknowledged, %d orders failed; %d answers of one generation each", n, len(j.revoked), j.number, j.failed, answers)
	if err != nil {
		return text, err
	}
	for _, verb := range [][]string{{"db", "check"}, {"audit", "verify"}} {
		if _, err := w.ocspd(verb...); err != nil {
			return text, err
		}
	}
	return text, nil
}

func (w *world) anotherKeeper(old int) error {
	pid, err := w.role("keeper")
	if err == nil && pid == old {
		err = errors.New("keeper is still the one that was killed")
	}
	return err
}

// fullTrial fills the disk below a keeper at work.
func fullTrial(w *world, _ int) (string, error) {
	if err := w.mountState("-t", "tmpfs", "-o", "size=48m,mode=0755", "none"); err != nil {
		return "", err
	}
	if err := w.start(); err != nil {
		return "", err
	}
	cached := small(901)
	ask := func(nonce bool, ca string, serial []byte, allowed ...string) error {
		got, err := w.ask(ca, nonce, serial)
		if err != nil {
			return err
		}
		for _, a := range allowed {
			if got[0] == a {
				return nil
			}
		}
		return fmt.Errorf("%s %x is answered %v, want one of %v", ca, serial, got, allowed)
	}
	if err := ask(false, "class1", cached, "good"); err != nil {
		return "", err
	}
	filler := filepath.Join(w.state, "filler")
	fill := func() error {
		f, err := os.OpenFile(filler, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		for chunk := make([]byte, 1<<16); len(chunk) > 0; {
			if _, err := f.Write(chunk); err != nil {
				chunk = chunk[:len(chunk)/2]
			}
		}
		return nil
	}
	if err := fill(); err != nil {
		return "", err
	}
	var acknowledged [][]byte
	var refused error
	for n := 0x2000; refused == nil; n++ { // the reserve takes some, and is filled up, too
		if _, refused = w.ocspd("revoke", "class3", fmt.Sprintf("0x%x", n), "--reason", "keyCompromise"); refused == nil {
			acknowledged = append(acknowledged, small(n))
		}
		if err := fill(); err != nil {
			return "", err
		}
		if n > 0x2100 {
			return "", errors.New("256 revocations on a full disk, and none failed")
		}
	}
	if !contains(refused.Error(), "full", "no space") {
		return "", fmt.Errorf("the refusal does not say why: %w", refused)
	}
	for range 20 {
		if err := ask(false, "class1", cached, "good"); err != nil {
			return "", fmt.Errorf("cached answers: %w", err)
		}
		if err := ask(true, "class1", small(902), "good", "tryLater"); err != nil {
			return "", fmt.Errorf("new answers: %w", err)
		}
		for _, s := range acknowledged {
			if err := ask(true, "class3", s, "revoked", "tryLater"); err != nil {
				return "", fmt.Errorf("acknowledged: %w", err)
			}
		}
	}
	if err := os.Remove(filler); err != nil {
		return "", err
	}
	began := time.Now()
	err := until(time.Minute, func() error {
		s, err := w.status()
		if err == nil && (s.Verdict != "serving" || len(s.Alarms) > 0) {
			err = fmt.Errorf("%s: %v", s.Verdict, s.Alarms)
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("after space was freed: %w", err)
	}
	healed := time.Since(began)
	if _, err := w.ocspd("revoke", "class3", "0x3fff", "--reason", "keyCompromise"); err != nil {
		return "", err
	}
	for _, s := range append(acknowledged, small(0x3fff)) {
		if err := ask(true, "class3", s, "revoked"); err != nil {
			return "", err
		}
	}
	if _, err := w.ocspd("db", "check"); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d revocations out of the reserve, then: %v; well again %v after space was freed", len(acknowledged), short(refused), healed.Round(time.Millisecond)), nil
}
