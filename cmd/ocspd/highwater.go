package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"ocspd/pki"
)

// signatureReserve is how far the number of signatures on disk runs ahead of those in the log. It is the most that a crash can leave unrecorded.
const signatureReserve = 1000

// highwater is what the signer must not fall behind, kept over restarts in state/signer/highwater: the number of signatures, in all and by key, the time of the
// last one, and the generation of each issuer. Safe for concurrent use.
type highwater struct {
	path    string
	mu      sync.Mutex
	written highwaterFile
	current highwaterFile
}

type highwaterFile struct {
	V           int                 `json:"v"`
	Signatures  uint64              `json:"signatures"`  // that may have been made, signatureReserve ahead of Recorded at most; exact after an orderly stop
	ProducedAt  time.Time           `json:"produced_at"` // written once a second: a lower bound after a crash
	Generations map[string]uint64   `json:"generations"` // by IssuerID in hex
	Recorded    uint64              `json:"recorded"`    // the last number that signer's log settles: a lower bound after a crash
	Keys        map[string]uint64   `json:"keys"`        // answers in the log by issuer and key (keyAccount): lower bounds after a crash
	Epochs      map[string]keyEpoch `json:"epochs"`      // by the issuer's name: the key that signs for it
}

// keyEpoch is one key of an issuer with its certificate, from activation to retirement.
type keyEpoch struct {
	Key         string `json:"key"`         // SHA-256 of the SubjectPublicKeyInfo, hexadecimal
	Certificate string `json:"certificate"` // SHA-256, hexadecimal
	Label       string `json:"label"`
	Token       string `json:"token"` // its serial number
}

var (
	errClockBack     = errors.New("the clock stands before the last signature")
	errOldGeneration = errors.New("the generation is older than one that was answered by")
)

func openHighwater(path string) (*highwater, error) {
	h := &highwater{path: path, current: highwaterFile{V: 1}}
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
	for _, m := range []*map[string]uint64{&h.current.Generations, &h.current.Keys} {
		if *m == nil {
			*m = map[string]uint64{}
		}
	}
	if h.current.Epochs == nil {
		h.current.Epochs = map[string]keyEpoch{}
	}
	h.written = h.current // its maps are not looked at
	return h, nil
}

// admit permits a signature at producedAt.
func (h *highwater) admit(producedAt time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if producedAt.Before(h.current.ProducedAt) {
		return fmt.Errorf("%w: now %s, then %s; set the clock right, or, if it is right now, 'ocspd accept clock'", errClockBack,
			producedAt.Format(time.RFC3339), h.current.ProducedAt.Format(time.RFC3339))
	}
	h.current.ProducedAt = producedAt
	return nil
}

// clockRight reports whether a signature at now would be admitted.
func (h *highwater) clockRight(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !now.Truncate(time.Second).Before(h.current.ProducedAt)
}

// acceptClock lets signatures be made at now, though the last one is later, and says when that was.
func (h *highwater) acceptClock(now time.Time) (was time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was = h.current.ProducedAt
	if !now.Before(was) {
		return was, fmt.Errorf("the clock, %s, does not stand before the last signature, %s", now.UTC().Format(time.RFC3339), was.Format(time.RFC3339))
	}
	h.current.ProducedAt = now.UTC().Truncate(time.Second)
	if err = h.write(); err != nil {
		h.current.ProducedAt = was
	}
	return was, err
}

// generation permits answering by a generation, and forbids those before it from now on.
func (h *highwater) generation(id pki.IssuerID, number uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := hex.EncodeToString(id[:])
	if seen := h.current.Generations[k]; number < seen {
		return fmt.Errorf("%w: generation %d after %d; was an old backup restored? If it is right, 'ocspd accept generation'", errOldGeneration, number, seen)
	} else if number == seen {
		return nil
	}
	return h.setGeneration(k, number)
}

func (h *highwater) setGeneration(issuer string, number uint64) error {
	was := h.current.Generations[issuer]
	h.current.Generations[issuer] = number
	err := h.write()
	if err != nil {
		h.current.Generations[issuer] = was
	}
	return err
}

// acceptGeneration lets an older generation be answered by, and says which was the newest.
func (h *highwater) acceptGeneration(id pki.IssuerID, number uint64) (was uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := hex.EncodeToString(id[:])
	if was = h.current.Generations[k]; number >= was {
		return was, fmt.Errorf("generation %d is in force, and none after %d was answered by", number, was)
	}
	return was, h.setGeneration(k, number)
}

// signatures is how many may have been made so far, how many of them were in the log when the file was last written, and those by each key.
func (h *highwater) signatures() (reserved, recorded uint64, keys map[string]uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.written.Signatures, h.written.Recorded, maps.Clone(h.current.Keys)
}

// record takes over what the log says now: the numbers up to last are settled, and so many answers are by each key. It returns the last number that
// may be signed under, which is on disk.
func (h *highwater) record(last uint64, keys map[string]uint64) (limit uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.current.Recorded, h.current.Keys = last, maps.Clone(keys)
	if h.written.Signatures < last+signatureReserve/2 {
		err = h.write()
	}
	return h.written.Signatures, err
}

// settle is for an orderly stop: every signature is in the log, and no more is made.
func (h *highwater) settle() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.current.Signatures = h.current.Recorded
	return h.put()
}

// epochs are the keys that sign, by issuer, as far as is written down.
func (h *highwater) epochs() map[string]keyEpoch {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.current.Epochs)
}

// setEpochs writes down the keys that sign from now on.
func (h *highwater) setEpochs(epochs map[string]keyEpoch) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if maps.Equal(epochs, h.current.Epochs) {
		return nil
	}
	h.current.Epochs = maps.Clone(epochs)
	return h.write()
}

// sync writes down the time of the last signature, if there was one since.
func (h *highwater) sync() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.current.ProducedAt.Equal(h.written.ProducedAt) && h.current.Recorded == h.written.Recorded {
		return nil
	}
	return h.write()
}

// write reserves signatures ahead.
func (h *highwater) write() error {
	h.current.Signatures = max(h.written.Signatures, h.current.Recorded+signatureReserve)
	return h.put()
}

func (h *highwater) put() error {
	b, err := json.Marshal(h.current)
	if err == nil {
		err = writeDurably(h.path, append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("highwater: %w", err)
	}
	h.written = h.current
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
