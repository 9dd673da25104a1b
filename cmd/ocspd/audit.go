package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"ocspd/audit"
)

func newAuditCmd(a *app) *cobra.Command {
	return group("audit", "Show, check and copy the tamper-evident log",
		auditShowCmd(a), auditVerifyCmd(a), auditExportCmd(a), auditProveCmd(a), auditWitnessCmd(a))
}

// auditKeys reads the public keys that a log is checked with: from file, one a line, or, if that is "", those beside the log, which whoever can write the
// log can replace.
func auditKeys(dir, file string) ([]note.Verifier, error) {
	if file == "" {
		return audit.ReadKeys(dir)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("public key of the audit log: %w", err)
	}
	var keys []note.Verifier
	for _, line := range strings.Fields(string(text)) {
		v, err := audit.ParsePublicKey(line)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		keys = append(keys, v)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s: holds no public key; a key.pub beside a log is one", file)
	}
	return keys, nil
}

// A judgedLog is a log that `verify` looks at.
type judgedLog struct {
	Name    string // keeper or signer, or "" for the folder that was named
	Folder  string
	Answers string // folder of the hashes of answers; "" for none
	Copy    bool   // and so without what stands beside a log in use
}

// ownLogs are the configured logs; signer's only where there is one.
func (a *app) ownLogs() ([]judgedLog, error) {
	c, err := a.load()
	if err != nil {
		return nil, err
	}
	logs := []judgedLog{{Name: "keeper", Folder: c.keeperLog()}, {Name: "signer", Folder: c.signerLog(), Answers: c.answersDir()}}
	if missing(logs[1].Folder) {
		logs = logs[:1]
	}
	return logs, nil
}

// ownLog is one of the configured logs by name.
func (a *app) ownLog(name string) (judgedLog, error) {
	logs, err := a.ownLogs()
	if err != nil {
		return judgedLog{}, err
	}
	for _, l := range logs {
		if l.Name == name {
			return l, nil
		}
	}
	if name == "signer" {
		return judgedLog{}, errors.New("signer has no log yet; it begins one at its first start")
	}
	return judgedLog{}, usagef("--log %s; there are keeper and signer", name)
}

// readable explains why a log cannot be read.
func (l judgedLog) readable(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; run this as root, or as a user who may read %s", err, l.Folder)
	case errors.Is(err, fs.ErrNotExist) && l.Name != "":
		if _, local := audit.ReadLocal(l.Folder); local == nil {
			return fmt.Errorf("%w; no head was signed yet: signer, which has the key, must run", err)
		}
		return fmt.Errorf("%w; %s begins the log at its first start", err, l.Name)
	}
	return err
}

// head is the signed head of one of our own logs.
func (l judgedLog) head() (audit.Head, []note.Verifier, error) {
	keys, err := audit.ReadKeys(l.Folder)
	if err != nil {
		return audit.Head{}, nil, l.readable(err)
	}
	h, err := audit.ReadHead(l.Folder, keys...)
	return h, keys, l.readable(err)
}

// size is how many records one of our own logs has, under a signed head or not yet.
func (l judgedLog) size() (uint64, error) {
	if h, err := audit.ReadLocal(l.Folder); !errors.Is(err, fs.ErrNotExist) {
		return h.Size, l.readable(err)
	}
	h, _, err := l.head()
	return h.Size, err
}

func auditShowCmd(a *app) *cobra.Command {
	var since uint64
	var name string
	c := &cobra.Command{
		Use: "show", Short: "Print the records of keeper's log, or of signer's", Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			l, err := a.ownLog(name)
			if err != nil {
				return err
			}
			size, err := l.size()
			if err != nil {
				return err
			}
			if a.json() {
				return a.showRecordsJSON(l.Folder, since, size)
			}
			w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ENTRY\tTIME\tEVENT\tOUTCOME\tACTOR\tSUBJECT\tDETAILS")
			for r, err := range audit.Records(l.Folder, since, size) {
				if err != nil {
					return errors.Join(w.Flush(), err)
				}
				fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Sequence, r.Time.Format(time.RFC3339), r.Event, r.Outcome,
					quoted(r.Actor, ""), quoted(r.Subject, ""), detailText(r))
			}
			return w.Flush()
		},
	}
	c.Flags().Uint64Var(&since, "since", 0, "first entry to print")
	c.Flags().StringVar(&name, "log", "keeper", "keeper or signer")
	return a.withOutput(c)
}

// showRecordsJSON writes one record at a time, since a log can be longer than memory.
func (a *app) showRecordsJSON(dir string, since, size uint64) error {
	fmt.Fprintf(a.stdout, "{\"v\":1,\"size\":%d,\"records\":[", size)
	separator := "\n"
	for r, err := range audit.Records(dir, since, size) {
		if err != nil {
			return err
		}
		line, err := r.MarshalJSON()
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(a.stdout, "%s%s", separator, line); err != nil {
			return err
		}
		separator = ",\n"
	}
	_, err := io.WriteString(a.stdout, "\n]}\n")
	return err
}

func detailText(r audit.Record) string {
	var list []string
	for _, d := range r.Details {
		list = append(list, quoted(d.Name, " =")+"="+quoted(d.Value, " "))
	}
	return strings.Join(list, " ")
}

// quoted quotes what could deceive the reader of a table: control characters, and those that the caller names.
func quoted(s, also string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || strings.ContainsRune(also, r) }) {
		return strconv.Quote(s)
	}
	return s
}

func auditVerifyCmd(a *app) *cobra.Command {
	var key, witness string
	c := &cobra.Command{
		Use: "verify [DIR --key FILE]", Short: "Check the logs against their signed heads", Args: args(cobra.MaximumNArgs(1)),
		Long: "Check that every entry of a log is what its signed head says. Without DIR that is done to our own logs, keeper's and signer's. DIR is what 'audit export'\n" +
			"made, or the copy of a log; FILE has the public keys, one a line, and of an export signer's log is judged when its key is among them. Whoever can write\n" +
			"a log can also take it back to an earlier head, and replace the key beside it: give keys and heads (audit witness) kept elsewhere.",
		RunE: func(_ *cobra.Command, argv []string) error {
			if len(argv) == 0 {
				logs, err := a.ownLogs()
				if err != nil {
					return err
				}
				return a.verifyLogs(logs, key, witness)
			}
			if key == "" {
				return usagef("audit verify %s: --key is missing: the public key as you keep it, not the one in the folder", argv[0])
			}
			return a.verifyLogs(copiedLogs(argv[0]), key, witness)
		},
	}
	c.Flags().StringVar(&key, "key", "", "file of the public keys, one a line")
	c.Flags().StringVar(&witness, "witness", "", "file of heads that were kept elsewhere, as 'audit witness' prints them")
	return a.withOutput(c)
}

// copiedLogs are the log in a folder, and signer's below it as `export` puts it there.
func copiedLogs(dir string) []judgedLog {
	logs := []judgedLog{{"", dir, answersBelow(dir), true}}
	if below := filepath.Join(dir, "signer"); !missing(below) {
		logs = append(logs, judgedLog{"signer", below, answersBelow(below), true})
	}
	return logs
}

// missing reports that there is no such file; one that cannot be looked at is not missing.
func missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func answersBelow(dir string) string {
	if answers := filepath.Join(dir, "answers"); !missing(answers) {
		return answers
	}
	return ""
}

// A logVerdict is what came of a judgedLog.
type logVerdict struct {
	judgedLog
	report   *audit.Report // nil: it was not judged
	unjudged string        // why not
	accounts *audit.Accounts
}

func (a *app) verifyLogs(logs []judgedLog, keyFile, witnessFile string) error {
	var witness []byte
	if witnessFile != "" {
		var err error
		if witness, err = os.ReadFile(witnessFile); err != nil {
			return fmt.Errorf("audit verify: heads kept elsewhere: %w", err)
		}
	}
	ctx, stop := a.watch(context.Background())
	defer stop()
	var verdicts []logVerdict
	faults, matched := 0, false
	for n, l := range logs {
		progressOf(ctx).part(n, len(logs))
		progressOf(ctx).begin("verifying", 0)
		v, err := l.verify(keyFile, witness, n > 0)
		if err != nil {
			return err
		}
		if v.report != nil {
			for _, other := range verdicts {
				if other.report != nil && v.report.Head.Origin != "" && other.report.Head.Origin == v.report.Head.Origin {
					v.report.Faults = append(v.report.Faults, audit.Fault{Text: "is the log " + v.report.Head.Origin + ", too: one stands in the place of the other"})
				}
			}
			faults += len(v.report.Faults) + v.report.Omitted
			matched = matched || v.report.Witness
		}
		verdicts = append(verdicts, v)
	}
	progressOf(ctx).at("done", 1)
	stop()
	var err error
	if a.json() {
		err = a.printJSON(verdictsJSON(verdicts))
	} else {
		for _, v := range verdicts {
			v.print(a.stdout)
		}
	}
	for _, v := range verdicts {
		switch {
		case v.unjudged != "":
			a.talk("%s: not judged: %s", v.Folder, v.unjudged)
		case witness != nil && matched && !v.report.Witness:
			a.talk("%s: no head of this log was kept in %s: whether it was cut cannot be told", v.Folder, witnessFile)
		}
	}
	switch {
	case err != nil:
	case faults > 0:
		err = fmt.Errorf("audit verify %s: %d faults; keep a copy of the folder as evidence", logs[0].Folder, faults)
	case witness != nil && !matched:
		err = fmt.Errorf("audit verify %s: %s has no head of this log; 'audit witness' prints them", logs[0].Folder, witnessFile)
	}
	if keyFile == "" || witness == nil {
		a.talk("what this cannot show: a log taken back to an earlier head (--witness) or replaced together with its key (--key)")
	}
	return err
}

// verify judges a log. A further one is judged only if there is a key of another log than the first one's among the keys given: its own.
func (l judgedLog) verify(keyFile string, witness []byte, further bool) (logVerdict, error) {
	v := logVerdict{judgedLog: l}
	keys, err := auditKeys(l.Folder, keyFile)
	if keyFile == "" && errors.Is(err, fs.ErrNotExist) {
		err = l.readable(err)
	}
	if err != nil {
		return v, l.readable(err)
	}
	if keyFile != "" && further {
		if keys = slices.DeleteFunc(keys, func(k note.Verifier) bool { return k.Name() == keeperOrigin }); len(keys) == 0 {
			v.unjudged = "the key of this log is not in " + keyFile
			return v, nil
		}
	}
	if v.report, err = audit.Verify(l.Folder, witness, keys...); err != nil {
		return v, l.readable(err)
	}
	if !l.Copy {
		text, err := audit.Unaccounted(l.Folder, v.report.Head)
		if err != nil {
			return v, l.readable(err)
		}
		if text != "" {
			v.report.Faults = append(v.report.Faults, audit.Fault{Text: text})
		}
	}
	if l.Answers == "" || !v.report.OK() || missing(l.Answers) {
		return v, nil
	}
	accounts, faults, err := audit.VerifyAnswers(l.Folder, l.Answers, v.report.Head)
	v.accounts, v.report.Faults = &accounts, append(v.report.Faults, faults...)
	return v, l.readable(err)
}

func (v logVerdict) print(w io.Writer) {
	if v.report == nil {
		return
	}
	r := v.report
	for _, f := range r.Faults {
		fmt.Fprintln(w, f)
	}
	if r.Omitted > 0 {
		fmt.Fprintf(w, "and %d faults more\n", r.Omitted)
	}
	if len(r.Head.Note) > 0 {
		fmt.Fprintf(w, "head: %s, %d entries, root %s\n", r.Head.Origin, r.Head.Size, r.Head.Root)
		fmt.Fprintf(w, "proven entries: %s\n", ranges(r.Proven))
		for _, k := range r.Keys {
			fmt.Fprintf(w, "signed by %s: entries %s\n", k.Key, ranges([]audit.Range{k.Entries}))
		}
	}
	if r.Unsigned != nil {
		fmt.Fprintf(w, "not signed yet: entries %s, beyond the signed head\n", ranges([]audit.Range{*r.Unsigned}))
	}
	if v.accounts != nil {
		fmt.Fprintf(w, "answers: %d numbers, %d of them perhaps signed and not recorded; hashes kept: %s\n", v.accounts.Last, v.accounts.Missing, ranges(keptAnswers(v.accounts)))
		for _, k := range v.accounts.Keys {
			fmt.Fprintf(w, "answers of issuer %s by key %s: %d\n", k.Issuer, k.Key, k.Answers)
		}
	}
}

func keptAnswers(a *audit.Accounts) []audit.Range {
	if a.Kept.First == 0 {
		return nil
	}
	return []audit.Range{a.Kept}
}

func ranges(list []audit.Range) string {
	var texts []string
	for _, p := range list {
		if p.First == p.Last {
			texts = append(texts, fmt.Sprint(p.First))
		} else {
			texts = append(texts, fmt.Sprintf("%d to %d", p.First, p.Last))
		}
	}
	if len(texts) == 0 {
		return "none"
	}
	return strings.Join(texts, ", ")
}

// verdictsJSON is what verify found in its stable form.
func verdictsJSON(verdicts []logVerdict) any {
	type span struct {
		First uint64 `json:"first"`
		Last  uint64 `json:"last"`
	}
	type fault struct {
		Entries *span  `json:"entries"`
		Text    string `json:"text"`
	}
	type signed struct {
		Key     string `json:"key"`
		Entries span   `json:"entries"`
	}
	type account struct {
		Issuer  string `json:"issuer"`
		Key     string `json:"key"`
		Answers uint64 `json:"answers"`
	}
	type answers struct {
		Last    uint64    `json:"last"`
		Missing uint64    `json:"missing"`
		Kept    []span    `json:"kept"`
		Keys    []account `json:"keys"`
	}
	type log struct {
		Log      string   `json:"log"`
		Folder   string   `json:"folder"`
		Judged   bool     `json:"judged"`
		OK       bool     `json:"ok"`
		Origin   string   `json:"origin"`
		Size     uint64   `json:"size"`
		Root     string   `json:"root"`
		Witness  bool     `json:"witness"` // a head kept elsewhere was compared
		Proven   []span   `json:"proven"`
		Unsigned *span    `json:"unsigned"`
		Keys     []signed `json:"keys"`
		Answers  *answers `json:"answers"`
		Faults   []fault  `json:"faults"`
		Omitted  int      `json:"omitted"`
	}
	out := struct {
		V    int   `json:"v"`
		OK   bool  `json:"ok"`
		Logs []log `json:"logs"`
	}{V: 1, OK: true}
	spans := func(list []audit.Range) []span {
		l := []span{}
		for _, r := range list {
			l = append(l, span(r))
		}
		return l
	}
	for _, v := range verdicts {
		l := log{Log: v.Name, Folder: v.Folder, Proven: []span{}, Keys: []signed{}, Faults: []fault{}}
		if r := v.report; r != nil {
			l.Judged, l.OK, l.Origin, l.Size, l.Witness, l.Omitted = true, r.OK(), r.Head.Origin, r.Head.Size, r.Witness, r.Omitted
			l.Proven, l.Unsigned = spans(r.Proven), (*span)(r.Unsigned)
			if len(r.Head.Note) > 0 {
				l.Root = r.Head.Root.String()
			}
			for _, k := range r.Keys {
				l.Keys = append(l.Keys, signed{k.Key, span(k.Entries)})
			}
			for _, f := range r.Faults {
				l.Faults = append(l.Faults, fault{(*span)(f.Entries), f.Text})
			}
			out.OK = out.OK && l.OK
		}
		if a := v.accounts; a != nil {
			l.Answers = &answers{a.Last, a.Missing, spans(keptAnswers(a)), []account{}}
			for _, k := range a.Keys {
				l.Answers.Keys = append(l.Answers.Keys, account(k))
			}
		}
		out.Logs = append(out.Logs, l)
	}
	return out
}

func auditExportCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "export DIR", Short: "Copy the logs, as their signed heads have them now, into a new folder, and check the copy", Args: args(cobra.ExactArgs(1)),
		Long: "Copy keeper's log into the new folder DIR, and signer's, with the hashes of answers that are kept, into DIR/signer, as their signed heads have them now, and\n" +
			"check the copies. 'audit verify DIR --key FILE' checks them elsewhere.",
		RunE: func(_ *cobra.Command, argv []string) error {
			logs, err := a.ownLogs()
			if err != nil {
				return err
			}
			for n, to := range copiedNames(argv[0], len(logs)) {
				if err := a.exportLog(logs[n], to); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func copiedNames(dir string, logs int) []string {
	return []string{dir, filepath.Join(dir, "signer")}[:logs]
}

func (a *app) exportLog(l judgedLog, to string) error {
	_, keys, err := l.head()
	if err != nil {
		return err
	}
	v := logVerdict{judgedLog: judgedLog{l.Name, to, "", true}}
	if v.report, err = audit.Export(l.Folder, to, keys...); errors.Is(err, fs.ErrNotExist) {
		return err // of the folder for the copy: the log's head was read just now
	} else if err != nil {
		return l.readable(err)
	}
	if l.Answers != "" && !missing(l.Answers) {
		v.Answers = filepath.Join(to, "answers")
		if err := os.CopyFS(v.Answers, os.DirFS(l.Answers)); err != nil {
			return l.readable(fmt.Errorf("audit export: hashes of answers: %w", err))
		}
		accounts, faults, err := audit.VerifyAnswers(to, v.Answers, v.report.Head)
		if err != nil {
			return fmt.Errorf("audit export: hashes of answers: %w", err)
		}
		v.accounts, v.report.Faults = &accounts, append(v.report.Faults, faults...)
	}
	v.print(a.stdout)
	if !v.report.OK() {
		return fmt.Errorf("audit export %s: the copy has faults; see 'ocspd audit verify'", to)
	}
	return nil
}

func auditWitnessCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "witness", Short: "Print the signed heads of the logs, to be kept elsewhere", Args: args(cobra.NoArgs),
		Long: "Print the signed heads of keeper's log and of signer's. Kept where an administrator of this machine cannot change them, they later show, by\n" +
			"'audit verify --witness FILE', whether a log was cut or replaced since.",
		RunE: func(*cobra.Command, []string) error {
			logs, err := a.ownLogs()
			if err != nil {
				return err
			}
			for n, l := range logs {
				head, _, err := l.head()
				if err != nil {
					return err
				}
				if n > 0 {
					fmt.Fprintln(a.stdout)
				}
				if _, err := a.stdout.Write(head.Note); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
