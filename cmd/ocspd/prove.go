package main

import (
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"ocspd/audit"
	"ocspd/pki"
	"ocspd/responder"
)

// maxResponse is the largest response that is read, in octets; ours have some thousands.
const maxResponse = 1 << 20

// signerRecords is where signer's log, its hashes and its keys are.
type signerRecords struct {
	log, answers string
	keys         []note.Verifier
}

func auditProveCmd(a *app) *cobra.Command {
	var key string
	c := &cobra.Command{
		Use: "prove RESPONSE.der [DIR --key FILE]", Short: "Prove that signer's log has an answer", Args: args(cobra.RangeArgs(1, 2)),
		Long: "Prove that signer signed an answer, an OCSPResponse in DER, and recorded it: from the answer's hash to the signed head of signer's log. Without DIR\n" +
			"that is our own log; DIR is what 'audit export' made, and FILE signer's public key as you keep it. With -o json comes the whole proof, which can be\n" +
			"checked with golang.org/x/mod/sumdb alone. Exit 1: it is not proven; the message says why.",
		RunE: func(_ *cobra.Command, argv []string) error {
			records, err := a.signerRecords(argv[1:], key)
			if err != nil {
				return err
			}
			return a.proveAnswer(argv[0], records)
		},
	}
	c.Flags().StringVar(&key, "key", "", "file of the public key of signer's log")
	return a.withOutput(c)
}

func (a *app) signerRecords(dirs []string, keyFile string) (*signerRecords, error) {
	if len(dirs) == 1 {
		if keyFile == "" {
			return nil, usagef("audit prove … %s: --key is missing: the public key of signer's log as you keep it, not the one in the folder", dirs[0])
		}
		dir := filepath.Join(dirs[0], "signer")
		v, err := auditKeys(dir, keyFile)
		return &signerRecords{dir, filepath.Join(dir, "answers"), v}, err
	}
	cfg, err := a.load()
	if err != nil {
		return nil, err
	}
	r := &signerRecords{log: cfg.signerLog(), answers: cfg.answersDir()}
	if keyFile != "" {
		v, err := auditKeys(r.log, keyFile)
		r.keys = v
		return r, err
	}
	if r.keys, err = audit.ReadKeys(r.log); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w; signer begins the log at its first start", err)
	}
	return r, err
}

func (a *app) proveAnswer(file string, records *signerRecords) error {
	der, err := readAtMost(file, maxResponse)
	if err != nil {
		return fmt.Errorf("audit prove: %w", err)
	}
	r := responder.ReadResponse(der)
	switch {
	case r == nil:
		return fmt.Errorf("audit prove %s: is no OCSPResponse in DER", file)
	case r.Status != 0:
		return fmt.Errorf("audit prove %s: is the error %s, which nobody signs", file, r.StatusText())
	}
	p, err := audit.ProveAnswer(records.log, records.answers, sha256.Sum256(der), records.keys...)
	if err != nil {
		return fmt.Errorf("audit prove %s: not proven: %w", file, records.why(err, r.ProducedAt, time.Now()))
	}
	if a.json() {
		return a.printJSON(newProof(p, r))
	}
	return a.printProof(p, r)
}

// why explains that there is no proof. An answer that was changed in one bit cannot be told from one made elsewhere.
func (s *signerRecords) why(err error, producedAt, now time.Time) error {
	const soon = 2 * time.Second
	if errors.Is(err, audit.ErrNotYet) {
		return fmt.Errorf("%w: try again in a second", err)
	}
	if !errors.Is(err, audit.ErrNotRecorded) {
		return err
	}
	if age := now.Sub(producedAt); age.Abs() < soon {
		return fmt.Errorf("%w, but it is younger than %v: try again in a second", err, soon)
	}
	head, headErr := audit.ReadHead(s.log, s.keys...)
	oldest, keptErr := audit.OldestKept(s.answers)
	if headErr != nil || keptErr != nil {
		return errors.Join(err, headErr, keptErr)
	}
	after, searchErr := audit.RecordedAfter(s.log, head, producedAt)
	if errors.Is(searchErr, audit.ErrNotRecorded) {
		return fmt.Errorf("%w, nor any since it was produced, %s: it was made elsewhere, or changed", err, producedAt.UTC().Format(time.RFC3339))
	}
	if searchErr != nil {
		return errors.Join(err, searchErr)
	}
	numbers, _ := after.Numbers()
	switch {
	case oldest == 0 || numbers.Last < oldest:
		return fmt.Errorf("%w: it may be older than what is kept (the hashes before answer %d were dropped to keep to audit.answers; one of its time, %s, would be among them)",
			err, max(oldest, 1), producedAt.UTC().Format(time.RFC3339))
	case after.Event == audit.EventGap:
		return fmt.Errorf("%w: it may be one of at most %d that a crash of signer left unrecorded at that time (entry %d)", err, numbers.Last-numbers.First+1, after.Sequence)
	}
	// Its batch was recorded within a second, unless the disk was full; whoever would deny an answer changes its hash.
	if damage := audit.CheckBatches(s.log, s.answers, head, numbers.First, producedAt.Add(recordTime)); damage != nil {
		return fmt.Errorf("%w, which proves nothing here: %w", err, damage)
	}
	return fmt.Errorf("%w: it was made elsewhere, or changed", err)
}

// recordTime is how long after its second an answer is in the log at the latest when all goes well.
const recordTime = 5 * time.Second

func readAtMost(file string, size int64) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > size {
		return nil, fmt.Errorf("%s is no file of %d octets at most", file, size)
	}
	return os.ReadFile(file)
}

// proof is the proof in its stable form. Whoever has the public key checks it so: the checkpoint is signed; record, at place entry, is in the tree
// of the checkpoint by entry_path; the tree of size last-first+1 with the root that record names has, at place number-first, the answer's SHA-256 as a record, by batch_path.
type proof struct {
	V          int           `json:"v"`
	SHA256     string        `json:"sha256"`
	ProducedAt time.Time     `json:"produced_at"`
	Responses  []provenState `json:"responses"`
	Issuer     string        `json:"issuer"`
	Key        string        `json:"key"`
	Generation uint64        `json:"generation"`
	RecordedAt time.Time     `json:"recorded_at"`
	Number     uint64        `json:"number"`
	First      uint64        `json:"first"`
	Last       uint64        `json:"last"`
	BatchPath  []tlog.Hash   `json:"batch_path"`
	Entry      uint64        `json:"entry"`
	Record     string        `json:"record"`
	EntryPath  []tlog.Hash   `json:"entry_path"`
	Checkpoint string        `json:"checkpoint"`
}

// provenState is a certificate that the answer is about.
type provenState struct {
	Serial     string    `json:"serial"`
	Status     string    `json:"status"`
	ThisUpdate time.Time `json:"this_update"`
	NextUpdate time.Time `json:"next_update"`
}

func newProof(p *audit.AnswerProof, r *responder.Response) *proof {
	return &proof{V: 1, SHA256: fmt.Sprintf("%x", p.Hash), ProducedAt: r.ProducedAt, Responses: provenStates(r), Issuer: p.Batch.Issuer, Key: p.Batch.Key,
		Generation: p.Batch.Generation, RecordedAt: p.Record.Time, Number: p.Number, First: p.Batch.First, Last: p.Batch.Last, BatchPath: append([]tlog.Hash{}, p.InBatch...),
		Entry: p.Record.Sequence, Record: string(p.Line), EntryPath: append([]tlog.Hash{}, p.InLog...), Checkpoint: string(p.Head.Note)}
}

func provenStates(r *responder.Response) []provenState {
	list := []provenState{}
	for _, s := range r.Singles {
		list = append(list, provenState{certIDSerial(s.CertID), s.State.String(), s.ThisUpdate, s.NextUpdate})
	}
	return list
}

// certIDSerial is the serial in a CertID; "" where it has none that can be read.
func certIDSerial(der []byte) string {
	var id struct {
		Algorithm         pkix.AlgorithmIdentifier
		NameHash, KeyHash []byte
		Serial            *big.Int
	}
	if _, err := asn1.Unmarshal(der, &id); err != nil {
		return ""
	}
	serial, err := pki.SerialFromBig(id.Serial)
	if err != nil {
		return ""
	}
	return serial.String()
}

func (a *app) printProof(p *audit.AnswerProof, r *responder.Response) error {
	fmt.Fprintln(a.stdout, "proven: signer signed this answer and recorded it")
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	row := func(name, format string, values ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, quoted(fmt.Sprintf(format, values...), "\t"))
	}
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	row("answer", "SHA-256 %x, produced %s", p.Hash, at(r.ProducedAt))
	for _, s := range provenStates(r) {
		row("status", "serial %s is %s, from %s to %s", s.Serial, s.Status, at(s.ThisUpdate), at(s.NextUpdate))
	}
	row("issuer", "%s, generation %d", p.Batch.Issuer, p.Batch.Generation)
	row("key", "%s (so begins the SHA-256 of its SubjectPublicKeyInfo; see key.activate in the log)", p.Batch.Key)
	row("number", "%d, among %d to %d", p.Number, p.Batch.First, p.Batch.Last)
	row("entry", "%d, of %s", p.Record.Sequence, at(p.Record.Time))
	row("head", "%s, %d entries, root %s, signed by %s", p.Head.Origin, p.Head.Size, p.Head.Root, p.Head.Key)
	return w.Flush()
}
