package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"ocspd/audit"
	"ocspd/hsm"
	"ocspd/responder"
)

// How the heads of the logs come to be signed by a key in the token. Keeper has no token, and its records must be durable whether signer is there or not.
// So keeper writes on under a local head and asks signer, over the feed, for a signature whenever its log has grown. Signer signs nothing that keeper
// wrote: it builds the text itself, out of a size and a root, and only of a log that continues the one whose head it signed last.

// The names of the logs, in their heads and before their public keys.
const (
	keeperOrigin = "ocspd/keeper"
	signerOrigin = "ocspd/signer"
)

// openAuditKey finds the key that signs the heads of both logs; nil where none is configured. It is refused when it could have left the token, or when
// it has another use: whoever had an answer signed could otherwise come by a signature under a head (OCSP-AUD-04).
func openAuditKey(cfg *config, tokens map[string]*hsm.Token) (key *hsm.Key, warnings []string, err error) {
	if cfg.AuditKey == "" {
		return nil, nil, nil
	}
	if key, err = tokens[cfg.AuditToken].Find(cfg.AuditKey); err != nil {
		return nil, nil, fmt.Errorf("audit.key: %w; make it with 'ocspd key generate LABEL --type ed25519'", err)
	}
	for _, i := range cfg.Issuers {
		uses, err := usesKey(i, tokens[i.Token], key.Public())
		if err != nil {
			return nil, nil, err
		}
		if uses {
			return nil, nil, fmt.Errorf("audit.key: %s is the key of issuer %s, too; the key that signs the log must be used for nothing else (OCSP-AUD-04): "+
				"make another with 'ocspd key generate'", key, i.Name)
		}
	}
	if _, _, err := audit.NewSigner(signerOrigin, key); err != nil {
		return nil, nil, fmt.Errorf("audit.key: %s: %w", key, err)
	}
	found, err := keyFindings(&issuerConfig{Name: "audit.key", Accept: cfg.AuditAccept}, key, time.Now())
	if err != nil {
		return nil, nil, err
	}
	var refused []string
	for _, f := range found {
		text := fmt.Sprintf("%s (%s)", f.Text, f.Rule)
		if f.Error {
			refused = append(refused, text)
		} else {
			warnings = append(warnings, text)
		}
	}
	if len(refused) > 0 {
		return nil, warnings, fmt.Errorf("audit.key: %s", strings.Join(refused, "; "))
	}
	return key, warnings, nil
}

// useAuditKey makes ready to sign the heads of both logs. At the first start a key that must not be used ends signer, while whoever configured it is
// watching; started again, signer answers without it, and an alarm stands.
func (s *signerRole) useAuditKey(state *signerState, strict bool) error {
	key, warnings, err := openAuditKey(state.cfg, state.tokens)
	for _, w := range warnings {
		s.log.Warn("the key of the audit log has a finding", "finding", w)
	}
	if err != nil && !strict && !errors.Is(err, hsm.ErrTokenLost) {
		s.alarms.raise(alarmLogHead, "signer", err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	var heads *headSigner
	if key != nil {
		if heads, err = newHeadSigner(state.cfg.signerDir(), key, s.journal.note); err == nil {
			err = s.journal.signWith(key)
		}
		if err != nil {
			return err
		}
	}
	s.heads.Store(heads)
	s.alarms.clear(alarmLogHead, "signer")
	return nil
}

func (s *signerRole) signKeeperHead(r responder.HeadRequest) responder.HeadReply {
	heads := s.heads.Load()
	if heads == nil {
		return responder.HeadReply{Reason: "it has no key for heads of the log"}
	}
	return heads.sign(r)
}

// usesKey reports whether a public key is one that an issuer signs with, by what the token has and by what its certificates say.
func usesKey(i *issuerConfig, t *hsm.Token, public crypto.PublicKey) (bool, error) {
	want := fingerprint(public)
	issuer, err := loadIssuer(i)
	if err != nil {
		return false, err
	}
	if fingerprint(issuer.Certificate.PublicKey) == want {
		return true, nil
	}
	if i.Signer != "" {
		if c, err := loadSignerCertificate(i); err == nil && fingerprint(c.PublicKey) == want { // one that cannot be read is loadAuthority's to refuse
			return true, nil
		}
	}
	if t == nil {
		return false, nil
	}
	k, _ := t.Find(i.Key) // one that is not there is not this one
	return k != nil && k.Public() != nil && fingerprint(k.Public()) == want, nil
}

// headSigner signs the heads of keeper's log. The last one is durable in state/signer/keeper-head before its signature is handed out, so that no two
// histories can be signed, whatever becomes of keeper.
type headSigner struct {
	dir    string // state/signer
	key    note.Signer
	public string             // of key, in the form of key.pub
	told   func(audit.Record) // of refusals, and of a first head
}

// newHeadSigner makes the signer of keeper's heads; told is given records for the log of who signs.
func newHeadSigner(dir string, key crypto.Signer, told func(audit.Record)) (*headSigner, error) {
	s, public, err := audit.NewSigner(keeperOrigin, key)
	if err != nil {
		return nil, err
	}
	return &headSigner{dir, s, public, told}, nil
}

// eventHead is the event of records about the signing of keeper's heads.
const eventHead = "log.sign"

// sign answers one request; the feed makes them one after the other.
func (s *headSigner) sign(r responder.HeadRequest) responder.HeadReply {
	head := audit.Head{Origin: keeperOrigin, Size: r.Size, Root: r.Root}
	last, err := readKeeperHead(s.dir)
	first := errors.Is(err, os.ErrNotExist)
	if err != nil && !first {
		return s.refuse(head, err)
	}
	if !first {
		if last.Size > 0 && r.Size > last.Size && r.Earlier != last.Size {
			return responder.HeadReply{Earlier: last.Size}
		}
		if err := continues(head, last, r.Proof); err != nil {
			return s.refuse(head, err)
		}
	}
	if first || last.Size != head.Size {
		if err := writeDurably(filepath.Join(s.dir, keeperHead), head.Text(), 0o600); err != nil {
			return responder.HeadReply{Reason: fmt.Sprintf("the head cannot be written down before it is signed: %v", err)}
		}
	}
	if first {
		s.told(audit.Record{Event: eventHead, Subject: keeperOrigin, Outcome: outcomeOK, Details: append(headDetails(head),
			audit.Detail{Name: "note", Value: "no head of keeper's log had been signed here before"})})
	}
	signature, err := s.key.Sign(head.Text())
	if err != nil {
		return responder.HeadReply{Reason: err.Error()}
	}
	return responder.HeadReply{Signature: signature}
}

func (s *headSigner) refuse(h audit.Head, err error) responder.HeadReply {
	s.told(audit.Record{Event: eventHead, Subject: keeperOrigin, Outcome: outcomeRefused, Details: append(headDetails(h),
		audit.Detail{Name: "reason", Value: cut(err.Error(), 1000)})})
	return responder.HeadReply{Refused: true, Reason: err.Error()}
}

func headDetails(h audit.Head) []audit.Detail {
	return []audit.Detail{{Name: "size", Value: fmt.Sprint(h.Size)}, {Name: "root", Value: h.Root.String()}}
}

// continues checks that the log of a head begins with that of the last one.
func continues(head, last audit.Head, proof [][32]byte) error {
	const otherwise = "; if a backup of keeper's state was restored, that is to be expected, and 'ocspd accept log --note TEXT' lets the log go on; if not, keep its files as evidence"
	switch {
	case head.Size < last.Size:
		return fmt.Errorf("keeper's log has %d records, and had %d when its head was last signed: it was cut or replaced%s", head.Size, last.Size, otherwise)
	case last.Size == 0:
		return nil
	case head.Size == last.Size && head.Root == last.Root:
		return nil
	}
	p := make(tlog.TreeProof, len(proof))
	for i, h := range proof {
		p[i] = h
	}
	if head.Size == last.Size || head.Size > 1<<62 || tlog.CheckTree(p, int64(head.Size), head.Root, int64(last.Size), last.Root) != nil {
		return fmt.Errorf("keeper's log is not the one whose head of %d records was last signed: it was rewritten or replaced%s", last.Size, otherwise)
	}
	return nil
}

// keeperHead is the file in state/signer that holds the text of the last head that was signed for keeper.
const keeperHead = "keeper-head"

func readKeeperHead(dir string) (audit.Head, error) {
	path := filepath.Join(dir, keeperHead)
	text, err := os.ReadFile(path)
	if err != nil {
		return audit.Head{}, fmt.Errorf("last head of keeper's log: %w", err)
	}
	h, err := audit.ParseText(text)
	if err != nil || h.Origin != keeperOrigin {
		return audit.Head{}, fmt.Errorf("last head of keeper's log: %s is damaged, so that whether the log continues it cannot be told; see that the log is whole ('ocspd audit verify', "+
			"with a head kept elsewhere), then 'ocspd accept log --note TEXT'", path)
	}
	return h, nil
}

// forgetKeeperHead lets signer sign the next head of keeper's log whatever it continues: for an admin who has restored a backup. signerDir is state/signer. A signer
// that runs takes it at once.
func forgetKeeperHead(signerDir string) error {
	err := os.Remove(filepath.Join(signerDir, keeperHead))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(signerDir)
	}
	if err != nil {
		return fmt.Errorf("forget the last head of keeper's log: %w", err)
	}
	return nil
}

// openKeeperLog opens keeper's log: with a key in the token its heads wait for signer, otherwise a key file in keeper's folder signs them.
func openKeeperLog(k *keeper) (*audit.Log, error) {
	if k.cfg.AuditKey != "" {
		return audit.OpenLocal(k.cfg.keeperLog(), k.log)
	}
	signer, public, err := audit.LoadOrCreateKey(filepath.Join(k.cfg.keeperDir(), "audit.key"), keeperOrigin)
	if err != nil {
		return nil, err
	}
	return audit.Open(k.cfg.keeperLog(), signer, public, k.log)
}

const (
	headWait  = 500 * time.Millisecond // how long a verb waits for the signature under its record
	headLimit = 15 * time.Second       // for one signature; the token has deadlines of its own
	headAlarm = time.Minute            // without a signature
)

// errHeadRefused: signer does not sign the head of keeper's log.
var errHeadRefused = errors.New("signer refuses to sign it")

// signHeads has the head of keeper's log signed whenever it has grown, until ctx ends.
func (k *keeper) signHeads(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	whole := time.Now() // when every record was under a signed head for the last time
	refused := false
	for {
		err := k.signHead(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			whole, refused = time.Now(), false
			k.alarms.clear(alarmLogHead, "")
		} else if text := fmt.Sprintf("the head of keeper's log is not signed: %v", err); errors.Is(err, errHeadRefused) {
			k.alarms.raise(alarmLogHead, "", text)
			if !refused { // once: this record makes the log grow, too
				refused = k.record(ctx, audit.Record{Event: eventHead, Outcome: outcomeRefused, Details: []audit.Detail{{Name: "reason", Value: cut(err.Error(), 1000)}}}) == nil
			}
		} else if time.Since(whole) > headAlarm {
			k.alarms.raise(alarmLogHead, "", text)
		}
		select {
		case <-ctx.Done():
			return
		case <-k.audit.Grown():
		case <-tick.C:
		}
	}
}

// signHead has the head signed as it is now. It returns nil when nothing is left to sign.
func (k *keeper) signHead(ctx context.Context) error {
	public := k.auditKey()
	if public == "" {
		if k.audit.Signed().Size == k.audit.Head().Size {
			return nil
		}
		return errors.New("signer is not there, or has no key for it")
	}
	if err := k.audit.UseKey(ctx, public); err != nil {
		return err
	}
	head, earlier := k.audit.Head(), k.audit.Signed().Size
	if head.Size == earlier {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, headLimit)
	defer cancel()
	for range 3 { // signer may have signed a head whose signature we did not live to see
		reply, err := k.askHead(ctx, earlier, head)
		switch {
		case err != nil:
			return fmt.Errorf("signer %w", err)
		case reply.Refused:
			return fmt.Errorf("%w: %s", errHeadRefused, oneLine(reply.Reason, 1000))
		case reply.Signature != nil:
			if head, err = head.WithSignature(public, reply.Signature); err != nil {
				return err
			}
			return k.audit.Place(head, public)
		case reply.Earlier == 0:
			return fmt.Errorf("signer: %s", oneLine(reply.Reason, 1000))
		}
		earlier = reply.Earlier
	}
	return errors.New("signer keeps asking for another proof")
}

func (k *keeper) askHead(ctx context.Context, earlier uint64, head audit.Head) (responder.HeadReply, error) {
	proof, err := k.audit.Proof(earlier, head)
	if err != nil {
		return responder.HeadReply{}, err
	}
	r := responder.HeadRequest{Earlier: earlier, Size: head.Size, Root: head.Root}
	for _, h := range proof {
		r.Proof = append(r.Proof, h)
	}
	return k.feed.Sign(ctx, r)
}

// auditKey is the public key that signer says it signs keeper's heads with; "" while it is not there.
func (k *keeper) auditKey() string {
	h := k.reports.get(responder.RoleSigner)
	if h == nil || h.Signer == nil {
		return ""
	}
	if v, err := audit.ParsePublicKey(h.Signer.AuditKey); err != nil || v.Name() != keeperOrigin {
		return ""
	}
	return h.Signer.AuditKey
}

// signed waits a moment, after what f does, until its records are under a signed head, if signer is there: whoever copies the log when a verb has
// returned finds them proven.
func (k *keeper) signed(f func(*http.Request) (any, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		v, err := f(r)
		if k.auditKey() != "" {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), headWait)
			defer cancel()
			k.audit.AwaitSigned(ctx) // otherwise it will be later, and an alarm says if not
		}
		return v, err
	}
}
