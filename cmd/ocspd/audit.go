package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
		auditShowCmd(a), auditVerifyCmd(a), auditExportCmd(a), auditWitnessCmd(a))
}

// auditKey reads the public key that a log is checked with: from file or, if that is "", the one beside the log, which whoever
// can write the log can replace.
func auditKey(dir, file string) (note.Verifier, error) {
	if file == "" {
		file = filepath.Join(dir, "key.pub")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("public key of the audit log: %w", err)
	}
	return audit.ParsePublicKey(string(text))
}

// ownLog is the configured log with the key beside it.
func (a *app) ownLog() (string, note.Verifier, error) {
	c, err := a.load()
	if err != nil {
		return "", nil, err
	}
	v, err := auditKey(c.keeperLog(), "")
	if errors.Is(err, os.ErrNotExist) {
		return "", nil, fmt.Errorf("%w; keeper begins the log at its first start", err)
	}
	return c.keeperLog(), v, err
}

func auditShowCmd(a *app) *cobra.Command {
	var since uint64
	c := &cobra.Command{
		Use: "show", Short: "Print the records of keeper's log", Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			dir, v, err := a.ownLog()
			if err != nil {
				return err
			}
			head, err := audit.ReadHead(dir, v)
			if err != nil {
				return err
			}
			if a.json() {
				return a.showRecordsJSON(dir, since, head.Size)
			}
			w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ENTRY\tTIME\tEVENT\tOUTCOME\tACTOR\tSUBJECT\tDETAILS")
			for r, err := range audit.Records(dir, since, head.Size) {
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
		Use: "verify [DIR --key FILE]", Short: "Check a log against its signed head", Args: args(cobra.MaximumNArgs(1)),
		Long: "Check that every entry of a log is what its signed head says. Without DIR it is keeper's own log. Whoever can write a log can\n" +
			"also take it back to an earlier head, and replace the key beside it: give a key and a head (audit witness) kept elsewhere.",
		RunE: func(_ *cobra.Command, argv []string) error {
			dir := ""
			if len(argv) == 1 {
				if dir = argv[0]; key == "" {
					return usagef("audit verify %s: --key is missing: the public key as you keep it, not the one in the folder", dir)
				}
			} else {
				c, err := a.load()
				if err != nil {
					return err
				}
				dir = c.keeperLog()
			}
			return a.verifyLog(dir, key, witness)
		},
	}
	c.Flags().StringVar(&key, "key", "", "file of the log's public key")
	c.Flags().StringVar(&witness, "witness", "", "file of a head that was kept elsewhere")
	return a.withOutput(c)
}

func (a *app) verifyLog(dir, keyFile, witnessFile string) error {
	v, err := auditKey(dir, keyFile)
	if err != nil {
		return err
	}
	var witness []byte
	if witnessFile != "" {
		if witness, err = os.ReadFile(witnessFile); err != nil {
			return fmt.Errorf("audit verify: head kept elsewhere: %w", err)
		}
	}
	r, err := audit.Verify(dir, v, witness)
	if err != nil {
		return err
	}
	if a.json() {
		err = a.printJSON(reportJSON(r))
	} else {
		printReport(a.stdout, r)
	}
	if err == nil && !r.OK() {
		err = fmt.Errorf("audit verify %s: %d faults; keep a copy of the folder as evidence", dir, len(r.Faults)+r.Omitted)
	}
	if keyFile == "" || witness == nil {
		a.talk("what this cannot show: a log taken back to an earlier head (--witness) or replaced together with its key (--key)")
	}
	return err
}

func printReport(w io.Writer, r *audit.Report) {
	for _, f := range r.Faults {
		fmt.Fprintln(w, f)
	}
	if r.Omitted > 0 {
		fmt.Fprintf(w, "and %d faults more\n", r.Omitted)
	}
	if len(r.Head.Note) == 0 {
		return
	}
	fmt.Fprintf(w, "head: %s, %d entries, root %s\n", r.Head.Origin, r.Head.Size, r.Head.Root)
	var ranges []string
	for _, p := range r.Proven {
		if p.First == p.Last {
			ranges = append(ranges, fmt.Sprint(p.First))
		} else {
			ranges = append(ranges, fmt.Sprintf("%d to %d", p.First, p.Last))
		}
	}
	if len(ranges) == 0 {
		ranges = []string{"none"}
	}
	fmt.Fprintf(w, "proven entries: %s\n", strings.Join(ranges, ", "))
}

// reportJSON is a report in its stable form.
func reportJSON(r *audit.Report) any {
	type span struct {
		First uint64 `json:"first"`
		Last  uint64 `json:"last"`
	}
	type fault struct {
		Entries *span  `json:"entries"`
		Text    string `json:"text"`
	}
	out := struct {
		V       int     `json:"v"`
		OK      bool    `json:"ok"`
		Origin  string  `json:"origin"`
		Size    uint64  `json:"size"`
		Root    string  `json:"root"`
		Proven  []span  `json:"proven"`
		Faults  []fault `json:"faults"`
		Omitted int     `json:"omitted"`
	}{V: 1, OK: r.OK(), Origin: r.Head.Origin, Size: r.Head.Size, Proven: []span{}, Faults: []fault{}, Omitted: r.Omitted}
	if len(r.Head.Note) > 0 {
		out.Root = r.Head.Root.String()
	}
	for _, p := range r.Proven {
		out.Proven = append(out.Proven, span(p))
	}
	for _, f := range r.Faults {
		out.Faults = append(out.Faults, fault{(*span)(f.Entries), f.Text})
	}
	return out
}

func auditExportCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "export DIR", Short: "Copy keeper's log, as it stands now, into a new folder, and check the copy", Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, argv []string) error {
			dir, v, err := a.ownLog()
			if err != nil {
				return err
			}
			r, err := audit.Export(dir, argv[0], v)
			if err != nil {
				return err
			}
			printReport(a.stdout, r)
			if !r.OK() {
				return fmt.Errorf("audit export %s: the copy has faults; see 'ocspd audit verify'", argv[0])
			}
			return nil
		},
	}
}

func auditWitnessCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "witness", Short: "Print the signed head of keeper's log, to be kept elsewhere", Args: args(cobra.NoArgs),
		Long: "Print the signed head of keeper's log. Kept where an administrator of this machine cannot change it, it later shows, by\n" +
			"'audit verify --witness FILE', whether the log was cut or replaced since.",
		RunE: func(*cobra.Command, []string) error {
			dir, v, err := a.ownLog()
			if err != nil {
				return err
			}
			head, err := audit.ReadHead(dir, v)
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(head.Note)
			return err
		},
	}
}
