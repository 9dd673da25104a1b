package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"ocspd/pki"
)

// signatureReserve is how many signatures are written down ahead of being made: after a crash the counter is at most so
// much too high, never too low.
const signatureReserve = 1000

// highwater is what the signer must not fall behind, kept over restarts in state/signer/highwater: the number of signatures, the time of the
// last one and the generation of each issuer. Safe for concurrent use.
type highwater struct {
	path    string
	mu      sync.Mutex
	written highwaterFile
	current highwaterFile
}

type highwaterFile struct {
	V           int               `json:"v"`
	Signatures  uint64            `json:"signatures"`  // reserved
	ProducedAt  time.Time         `json:"produced_at"` // written once a second: a lower bound after a crash
	Generations map[string]uint64 `json:"generations"` // by IssuerID in hex
}

var (
	errClockBack     = errors.New("the clock stands before the last signature")
	errOldGeneration = errors.New("the generation is older than one that was answered by")
)

func openHighwater(path string) (*highwater, error) {
	h := &highwater{path: path, current: highwaterFile{V: 1, Generations: map[string]uint64{}}}
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("highwater: %w", err)
	default:
		if err := json.Unmarshal(b, &h.current); err != nil || h.current.V != 1 || h.current.Generations == nil {
			return nil, fmt.Errorf("highwater %s: cannot be read; if its disk was damaged, compare the generations with a backup, then move the file away", path)
		}
	}
	h.written.Signatures = h.current.Signatures
	return h, h.write()
}

// admit permits a signature at producedAt, after making sure that it is counted on disk.
func (h *highwater) admit(producedAt time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if producedAt.Before(h.current.ProducedAt) {
		return fmt.Errorf("%w: now %s, then %s; set the clock right", errClockBack,
			producedAt.Format(time.RFC3339), h.current.ProducedAt.Format(time.RFC3339))
	}
	if h.current.Signatures >= h.written.Signatures {
		if err := h.write(); err != nil {
			return err
		}
	}
	h.current.Signatures++
	h.current.ProducedAt = producedAt
	return nil
}

// clockRight reports whether a signature at now would be admitted.
func (h *highwater) clockRight(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !now.Truncate(time.Second).Before(h.current.ProducedAt)
}

// generation permits answering by a generation, and forbids those before it from now on.
func (h *highwater) generation(id pki.IssuerID, number uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := hex.EncodeToString(id[:])
	if seen := h.current.Generations[k]; number < seen {
		return fmt.Errorf("%w: generation %d after %d; was an old backup restored?", errOldGeneration, number, seen)
	} else if number == seen {
		return nil
	}
	h.current.Generations[k] = number
	return h.write()
}

// sync writes down the time of the last signature, if there was one since.
func (h *highwater) sync() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.current.ProducedAt.Equal(h.written.ProducedAt) {
		return nil
	}
	return h.write()
}

func (h *highwater) write() error {
	f := h.current
	f.Signatures = h.current.Signatures + signatureReserve
	b, err := json.Marshal(f)
	if err == nil {
		err = writeDurably(h.path, append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("highwater: %w", err)
	}
	h.written.Signatures, h.written.ProducedAt = f.Signatures, f.ProducedAt
	return nil
}

// writeDurably replaces a file as a whole: after it returns, the new content survives a power loss; before, the old one does.
func writeDurably(path string, b []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
