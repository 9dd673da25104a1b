package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"ocspd/audit"
	"ocspd/db"
	"ocspd/generation"
	"ocspd/pki"
	"ocspd/responder"
)

// This file is what keeper does against a disk that fills up, or rots.

// ballast is a file that keeps some of the disk back. A full disk takes neither a revocation nor the deletion of what filled it; when that
// happens, the file goes, and is made again once there is room.
type ballast struct {
	mu    sync.Mutex
	given bool
	tried time.Time
}

const (
	ballastSize  = 8 << 20 // octets: some hundred revocations by hand
	ballastTimes = 3       // it is made only where so many times its size are free
	ballastRetry = 10 * time.Second
)

func (k *keeper) ballastFile() string { return filepath.Join(k.cfg.keeperDir(), "ballast") }

// isFull reports whether a change failed for want of room.
func isFull(err error) bool {
	return errors.Is(err, db.ErrFull) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// giveReserve makes room after something failed for want of it, and reports whether it is worth another try.
func (k *keeper) giveReserve(why error) bool {
	k.ballast.mu.Lock()
	defer k.ballast.mu.Unlock()
	k.alarms.raise(alarmDiskFull, "", fmt.Sprintf("%v; free some space below %s", why, k.cfg.State))
	if k.ballast.given || os.Remove(k.ballastFile()) != nil {
		return false
	}
	k.ballast.given = true
	k.log.Warn("the disk is full; the reserve is given up, which leaves room for the most urgent", "file", k.ballastFile(), "octets", ballastSize)
	return true
}

// keepReserve makes the file where it is missing and there is room for it, and reports whether it looked and all is well.
func (k *keeper) keepReserve() bool {
	k.ballast.mu.Lock()
	defer k.ballast.mu.Unlock()
	if time.Since(k.ballast.tried) < ballastRetry {
		return false
	}
	k.ballast.tried = time.Now()
	var err error
	if info, missing := os.Stat(k.ballastFile()); missing != nil || info.Size() != ballastSize {
		err = makeBallast(k.ballastFile(), ballastSize)
	}
	k.ballast.given = err != nil
	k.alarms.when(err != nil, alarmDiskFull, "", fmt.Sprintf("%v; free some space below %s", err, k.cfg.State))
	return err == nil
}

// resumeAudit ends the alarm of an audit log that could not be written, by writing to it.
func (k *keeper) resumeAudit(ctx context.Context) {
	for _, a := range k.alarms.list() {
		if a.Name == alarmAuditLog {
			k.record(ctx, audit.Record{Event: "audit.resume", Outcome: outcomeOK, Details: []audit.Detail{{Name: "since", Value: a.Since.Format(time.RFC3339)}}})
		}
	}
}

func makeBallast(file string, size int64) error {
	var disk syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(file), &disk); err != nil {
		return err
	}
	if free := int64(disk.Bavail) * disk.Bsize; free < ballastTimes*size {
		return fmt.Errorf("%d MiB are free, too little for a reserve of %d", free>>20, size>>20)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	err = syscall.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		_, err = f.Write(make([]byte, size))
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		os.Remove(file)
		return fmt.Errorf("reserve %s: %w", file, err)
	}
	return nil
}

const (
	recheckEvery = time.Hour   // the generation files are read again
	recheckSoon  = time.Minute // after signer refused one
)

// recheck reads the generation files on a schedule, and at once where signer refuses one: a disk rots where nobody looks.
func (k *keeper) recheck(ctx context.Context) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	last := time.Now() // at the start signer reads them
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.litter:
			k.deleteLitter(ctx)
			continue
		case <-tick.C:
		}
		since := time.Since(last)
		if since < recheckEvery && (since < recheckSoon || !k.signerRefuses()) {
			continue
		}
		last = time.Now()
		for _, i := range k.issuers() {
			if i.inForce() > 0 && !i.isPending() {
				k.mend(ctx, i)
			}
		}
	}
}

// collect deletes what is out of force, in the background where keeper runs.
func (k *keeper) collect(ctx context.Context) {
	if k.litter == nil {
		k.deleteLitter(ctx)
		return
	}
	select {
	case k.litter <- struct{}{}:
	default: // it is to be done anyway
	}
}

func (k *keeper) deleteLitter(ctx context.Context) {
	if err := k.store.Collect(ctx); err != nil && ctx.Err() == nil {
		k.log.Warn("what is out of force cannot be deleted; it is tried again after the next import", "error", err)
	}
}

func (k *keeper) signerRefuses() bool {
	r := k.reports.get(responder.RoleSigner)
	if r == nil {
		return false
	}
	for _, a := range r.Alarms {
		if a.Name == alarmGenerationRefused {
			return true
		}
	}
	return false
}

// checkFiles reads what is in force as signer would.
func (k *keeper) checkFiles(i *keptIssuer) error {
	i.mu.Lock() // no other generation comes into force, and none is removed
	defer i.mu.Unlock()
	return generation.Check(k.cfg.generations(), i.config.Name, i.issuer.ID)
}

// mend writes a generation whose files are damaged anew, from the database, whose records have digests of their own.
func (k *keeper) mend(ctx context.Context, i *keptIssuer) {
	rows := i.config.Name + ", rows in force"
	err := k.store.CheckInForce(ctx, i.issuer.ID)
	if err == nil {
		k.alarms.clear(alarmDatabase, rows)
	} else if ctx.Err() == nil {
		k.alarms.raise(alarmDatabase, rows, err.Error())
	}
	err = k.checkFiles(i)
	if err == nil {
		k.alarms.clear(alarmGenerationRefused, i.config.Name)
		return
	}
	k.alarms.raise(alarmGenerationRefused, i.config.Name, err.Error()+"; keeper writes it anew")
	event := audit.Record{Event: "generation.renew", Subject: i.config.Name, Details: []audit.Detail{{Name: "reason", Value: cut(err.Error(), 1000)}}}
	now := time.Now()
	_, _, err = k.putInForce(ctx, i, event, pki.File{}, responder.Change{All: true}, func(publish db.Publish) (db.View, error) {
		return k.store.Renew(ctx, i.issuer.ID, now, publish)
	})
	if err != nil {
		k.alarms.raise(alarmGenerationRefused, i.config.Name, fmt.Sprintf("damaged, and it cannot be written anew: %v", err))
		return
	}
	k.alarms.clear(alarmGenerationRefused, i.config.Name)
}
