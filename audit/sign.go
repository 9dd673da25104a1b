package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// How a head comes to be signed, and how a log goes on under another key.

func signHead(h Head, s note.Signer, public string) (Head, error) {
	h.Origin = s.Name()
	signature, err := s.Sign(h.Text())
	if err == nil {
		h, err = h.WithSignature(public, signature)
	}
	if err != nil {
		return Head{}, fmt.Errorf("sign the head: %w", err)
	}
	return h, nil
}

// Grown says, by a value to be received, that there are records that no signed head covers. Any number of records make one value.
func (l *Log) Grown() <-chan struct{} { return l.grown }

// Signed is the head in checkpoint; zero before the first.
func (l *Log) Signed() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.signed
}

// AwaitSigned returns when every record of now is under a signed head, or with the error of ctx.
func (l *Log) AwaitSigned(ctx context.Context) error {
	for size := l.Head().Size; ; {
		l.mu.Lock()
		done, settled := l.signed.Size >= size, l.settled
		l.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-settled:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// SignWith signs the head as it is now and puts it in place: for a log opened with OpenLocal whose key is at hand after all, for the time being. The key's
// public half is in the form of key.pub.
func (l *Log) SignWith(ctx context.Context, signer note.Signer, public string) error {
	if err := l.UseKey(ctx, public); err != nil {
		return err
	}
	h, err := signHead(l.Head(), signer, public)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return l.Place(h, public)
}

// Proof proves that the log of h continues the one of an earlier size: what golang.org/x/mod's tlog.CheckTree checks.
func (l *Log) Proof(earlier uint64, h Head) ([]tlog.Hash, error) {
	if earlier == 0 || earlier >= h.Size {
		return nil, nil
	}
	proof, err := tlog.ProveTree(int64(h.Size), int64(earlier), tlog.TileHashReader(h.tree(), tileReader{l.dir}))
	if err != nil {
		return nil, fmt.Errorf("audit log %s: prove that it continues its first %d records: %w", l.dir, earlier, err)
	}
	return proof, nil
}

// UseKey says whose signature the next signed head will have. Where that is another key than before, the change is recorded, and so is the last
// head under the old key.
func (l *Log) UseKey(ctx context.Context, public string) error {
	if _, err := ParsePublicKey(public); err != nil {
		return err
	}
	l.placing.Lock()
	defer l.placing.Unlock()
	if r := l.changeTo(public); r != nil {
		if _, err := l.Append(ctx, *r); err != nil {
			return err
		}
	}
	l.current = public
	return nil
}

// EventKey is the event of the record of a change of the key that signs the log's heads. Its details are old and new, the two public keys, and head, the
// last signed note under the old one, if there was any.
const EventKey = "log.key"

// changeTo is the record that another key signs from now on; nil where it does not, or none did before.
func (l *Log) changeTo(public string) *Record {
	if l.current == "" || l.current == public {
		return nil
	}
	l.log.Warn("audit log: another key signs from now on, which is recorded", "old", l.current, "new", public)
	v, err := ParsePublicKey(public)
	if err != nil {
		return nil // was checked
	}
	return &Record{Event: EventKey, Actor: path.Base(v.Name()), Outcome: "ok", Details: []Detail{
		{"old", l.current}, {"new", public}, {"head", string(l.Signed().Note)}}}
}

// currentKey is the one that the last recorded change names, or else the one in key.pub.
func (l *Log) currentKey() (string, error) {
	current := ""
	if len(l.keys) > 0 {
		current = l.keys[len(l.keys)-1]
	}
	for r, err := range Records(l.dir, l.signed.Size, l.head.Size) {
		if err != nil {
			return "", err
		}
		if r.Event == EventKey {
			current = r.Detail("new")
		}
	}
	return current, nil
}

// Place puts a head that was signed under the key of UseKey in place as checkpoint. The head must be one that the log had, and no shorter than
// the one that is there.
func (l *Log) Place(h Head, public string) error {
	l.placing.Lock()
	defer l.placing.Unlock()
	v, err := ParsePublicKey(public)
	if err != nil {
		return err
	}
	if h, err = ParseHead(h.Note, v); err != nil {
		return err
	}
	switch {
	case public != l.current:
		return fmt.Errorf("audit log %s: the head is signed by another key than is to sign it", l.dir)
	case h.Size < l.Signed().Size || h.Size > l.Head().Size:
		return fmt.Errorf("audit log %s: the signed head has %d records; it must have %d to %d", l.dir, h.Size, l.Signed().Size, l.Head().Size)
	}
	root, err := l.rootAt(h.Size)
	if err == nil && root != h.Root {
		err = errors.New("its root is another one")
	}
	if err != nil {
		return fmt.Errorf("audit log %s: the signed head of %d records: %w", l.dir, h.Size, err)
	}
	return l.place(h, public)
}

// place writes checkpoint, and before it, when the key is another one, key.pub and the old key's file. In between the old head is verified by the
// old key's file.
func (l *Log) place(h Head, public string) error {
	keys := l.keys
	if n := len(keys); n == 0 || keys[n-1] != public {
		if n > 0 {
			if err := l.put(filepath.Join(l.dir, fmt.Sprintf("key.pub.%d", n)), []byte(keys[n-1]+"\n"), 0o640); err != nil {
				return err
			}
		}
		if err := l.put(filepath.Join(l.dir, "key.pub"), []byte(public+"\n"), 0o640); err != nil {
			return err
		}
		keys = append(keys, public)
	}
	if err := l.put(filepath.Join(l.dir, "checkpoint"), h.Note, 0o640); err != nil {
		return err
	}
	l.keys = keys
	l.mu.Lock()
	l.signed = h
	close(l.settled)
	l.settled = make(chan struct{})
	l.mu.Unlock()
	l.dropPartial()
	return nil
}

// publicKeys reads the keys that have signed heads of a log, in order. A key that is there twice in a row was being put in place when a process ended.
func publicKeys(dir string) ([]string, error) {
	var list []string
	for n := 1; ; n++ {
		key, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("key.pub.%d", n)))
		if errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return nil, err
		}
		list = append(list, trimKey(key))
	}
	key, err := os.ReadFile(filepath.Join(dir, "key.pub"))
	if errors.Is(err, fs.ErrNotExist) && len(list) == 0 {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if last := trimKey(key); len(list) == 0 || list[len(list)-1] != last {
		list = append(list, last)
	}
	return list, nil
}

// ReadKeys reads the keys beside a log: those that signed earlier heads, and last the one in key.pub.
func ReadKeys(dir string) ([]note.Verifier, error) {
	texts, err := publicKeys(dir)
	if err == nil && len(texts) == 0 {
		err = &fs.PathError{Op: "open", Path: filepath.Join(dir, "key.pub"), Err: fs.ErrNotExist}
	}
	if err != nil {
		return nil, fmt.Errorf("public key of the audit log: %w", err)
	}
	var list []note.Verifier
	for _, text := range texts {
		v, err := ParsePublicKey(text)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}
