package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"ocspd/hardening"
	"ocspd/hsm"
)

// The custody report is evidence of how keys are kept that its reader can check with tools of others. It has three layers, each made out of the one
// before: facts, which are collected once (custody_host.go, custody_token.go); the judgement of them, a pure function (custody_judge.go); and the
// page, text and commands, which are pure functions too (custody_render.go, custody_commands.go). `custody verify` goes the same
// way again from the facts in a file and compares. The facts and their judgement have a SHA-256, which a challenge names that
// every key signs, so that neither can be changed afterwards without the keys.

// custodyReport is the report as JSON.
type custodyReport struct {
	V        int              `json:"v"`
	Digest   string           `json:"digest"` // SHA-256, in hex, of the octets of data as they stand in the file
	Data     custodyData      `json:"data"`
	Proofs   []custodyProof   `json:"proofs"`
	Commands []custodyCommand `json:"commands"` // follow from the rest
}

// custodyData is what the report says. The first three follow from the others.
type custodyData struct {
	Verdict  custodyVerdict   `json:"verdict"`
	Findings []custodyFinding `json:"findings"`
	Gaps     []custodyGap     `json:"gaps"`
	ID       string           `json:"id"`
	Time     time.Time        `json:"time"`
	Version  string           `json:"version"` // of ocspd
	File     string           `json:"file"`    // name that the commands expect the report to have
	Host     string           `json:"host"`
	System   string           `json:"system"`
	RunBy    string           `json:"run_by"`
	Tokens   []custodyToken   `json:"tokens"`
	Keys     []custodyKey     `json:"keys"`
	Issuers  []custodyIssuer  `json:"issuers"`
	Access   []custodyAccess  `json:"access"`
	Files    []custodyFile    `json:"files"`
	Logs     []custodyLog     `json:"logs"`
	Counter  *custodyCounter  `json:"signatures"` // null where the signer has not signed yet
}

type custodyVerdict struct {
	Word string `json:"word"` // kept, incomplete, findings
	Text string `json:"text"`
}

// The words of a verdict.
const (
	custodyKept       = "kept"
	custodyIncomplete = "incomplete"
	custodyFindings   = "findings"
)

type custodyFinding struct {
	Rule      string   `json:"rule"`
	Name      string   `json:"name"`
	Subject   string   `json:"subject"`
	Attribute string   `json:"attribute"`
	Found     string   `json:"found"`
	Expected  string   `json:"expected"`
	Must      bool     `json:"must"`        // counts against the verdict, unless it is accepted
	Accepted  []string `json:"accepted_by"` // issuers, or "audit", whose `accept` names it
}

func (f custodyFinding) grave() bool { return f.Must && len(f.Accepted) == 0 }

// custodyGap is something that nobody told.
type custodyGap struct {
	Rule    string `json:"rule"`
	Subject string `json:"subject"`
	Text    string `json:"text"`
}

type custodyToken struct {
	Name        string           `json:"name"`
	URI         string           `json:"uri"`
	Environment []string         `json:"environment"`
	Module      custodyFile      `json:"module"`
	SHA256      string           `json:"module_sha256"`
	Package     string           `json:"module_package"` // "" where no package owns it
	Stated      custodyStatement `json:"stated"`
	Info        hsm.TokenInfo    `json:"info"`
	Visible     []hsm.Object     `json:"visible_without_login"`
	Objects     []custodyObject  `json:"objects"`
	Cut         bool             `json:"objects_cut"` // there are more
}

// custodyStatement is what the operator wrote into the configuration.
type custodyStatement struct {
	Assurance string `json:"assurance"`
	Firmware  string `json:"firmware"`
	Ceremony  string `json:"ceremony"`
	Copies    string `json:"copies"`
}

type custodyObject struct {
	hsm.Object
	Purpose string `json:"purpose"` // what the configuration uses it for, or ""
}

type custodyKey struct {
	Token      string         `json:"token"`
	URI        string         `json:"uri"`
	Purpose    string         `json:"purpose"`
	Issuers    []string       `json:"issuers"` // that sign with it
	Accept     []string       `json:"accept"`  // what all of them accept
	Label      string         `json:"label"`
	ID         string         `json:"id"`
	Type       string         `json:"type"`
	SPKI       string         `json:"spki_sha256"`
	Public     string         `json:"public_key"` // PEM
	Attributes hsm.Attributes `json:"attributes"`
	Probes     []hsm.Probe    `json:"probes"`
	Problem    string         `json:"problem,omitempty"` // why it cannot be used, or is not there
}

type custodyIssuer struct {
	Name    string        `json:"name"`
	Profile string        `json:"profile"`
	Token   string        `json:"token"`
	Key     string        `json:"key"` // URI
	Accept  []string      `json:"accept"`
	CA      *custodyCert  `json:"ca"`
	Signer  *custodyCert  `json:"signer"` // null where the CA's own key signs
	Rolled  []custodyCert `json:"rolled"` // earlier certificates, kept beside
	Problem string        `json:"problem,omitempty"`
}

type custodyAccess struct {
	What   string `json:"what"`
	Who    string `json:"who"`
	Detail string `json:"detail"`
}

type custodyFile struct {
	What     string   `json:"what"`
	Path     string   `json:"path"`
	Owner    string   `json:"owner"`
	Group    string   `json:"group"`
	Mode     string   `json:"mode"`
	SHA256   string   `json:"sha256,omitempty"`
	Writers  []string `json:"writers"` // who can change it or put another in its place, by the modes of it and of the folders above
	Exposed  bool     `json:"exposed"` // everybody on the machine may read what is secret in it
	Contents string   `json:"contents,omitempty"`
	Problem  string   `json:"problem,omitempty"`
}

type custodyLog struct {
	Role    string          `json:"role"`
	Folder  string          `json:"folder"`
	Keys    []string        `json:"keys"` // public keys that its heads are signed with
	Head    string          `json:"head"` // the signed note
	Size    uint64          `json:"size"`
	Checked bool            `json:"checked"` // every record against the head
	Faults  []string        `json:"faults"`
	From    uint64          `json:"from"` // first record that was looked at for events
	Events  []custodyRecord `json:"events"`
	Omitted int             `json:"omitted"` // earlier events
	Problem string          `json:"problem,omitempty"`
}

type custodyRecord struct {
	Sequence uint64    `json:"seq"`
	Time     time.Time `json:"time"`
	Event    string    `json:"event"`
	Outcome  string    `json:"outcome"`
	Actor    string    `json:"actor"`
	Subject  string    `json:"subject"`
	Details  string    `json:"details"`
}

type custodyCounter struct {
	Signatures uint64            `json:"signatures"`
	Last       time.Time         `json:"last"`
	Keys       map[string]uint64 `json:"keys"` // answers in the signer's log, by issuer and beginning of the SPKI SHA-256
}

// custodyProof is a proof of possession, bound to the data by its digest.
type custodyProof struct {
	Key       string `json:"key"` // SPKI SHA-256
	Challenge string `json:"challenge"`
	Signature string `json:"signature"` // base64
}

func newCustodyCmd(a *app) *cobra.Command {
	var output, out string
	var inner bool
	report := &cobra.Command{
		Use: "report", Short: "Evidence of how the keys are kept, for an auditor; exit 1 when something must not be", Args: args(cobra.NoArgs),
		Long: "Measure how the keys are kept and write a report that its reader can check without ocspd: one HTML page, the same as JSON, or a text.\n" +
			"It logs in to each token once, as the key verbs do, and works beside a running signer. Nothing in a token is changed.",
		RunE: func(c *cobra.Command, _ []string) error {
			if inner {
				return a.custodyInner(c.Context())
			}
			if output == "" {
				output = map[string]string{".html": "html", ".json": "json"}[filepath.Ext(out)]
			}
			if output == "" {
				output = "text"
			}
			if custodyForms[output] == nil {
				return usagef("custody report: -o %s; html, json or text are known here", output)
			}
			return a.custodyReport(c.Context(), output, out)
		},
	}
	report.Flags().StringVarP(&output, "output", "o", "", "html, json or text; without it, by the name of --out, else text")
	report.Flags().StringVar(&out, "out", "", "file to write, instead of standard output")
	report.Flags().BoolVar(&inner, "inner", false, "the signer's half: facts of the machine on standard input")
	report.Flags().MarkHidden("inner")
	verify := &cobra.Command{
		Use: "verify FILE", Short: "Check a report offline; exit 1 when it is not what was signed", Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, files []string) error { return a.custodyVerify(files[0]) },
	}
	return group("custody", "Evidence of how the keys are kept", report, a.withOutput(verify))
}

// custodyForms make the report into what is written.
var custodyForms = map[string]func(*custodyReport) ([]byte, error){
	"html": (*custodyReport).html, "json": (*custodyReport).json, "text": (*custodyReport).text,
}

func (a *app) custodyReport(ctx context.Context, form, out string) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	name := filepath.Base(out)
	if out == "" {
		name = cmp.Or(a.redirected(), "custody."+form)
	}
	data := a.custodyHost(cfg, name)
	credential, account, err := signerAccount(cfg)
	if err != nil {
		return err
	}
	record, err := a.newRecorder(cfg, "custody.report", data.ID)
	if err != nil {
		return err
	}
	var r *custodyReport
	if err = record.begin(); err == nil { // the keys are going to sign
		if credential != nil {
			r, err = a.custodyAs(ctx, credential, account.HomeDir, cfg, data)
		} else {
			r, err = a.custodyMeasured(ctx, cfg, data)
		}
	}
	if err == nil {
		record.know("sha256", r.Digest)
		record.know("verdict", r.Data.Verdict.Word)
	}
	if err = record.end(err); err != nil {
		return err
	}
	text, err := custodyForms[form](r)
	if err != nil {
		return fmt.Errorf("custody report: %w", err)
	}
	if out == "" {
		_, err = a.stdout.Write(text)
	} else if err = writeDurably(out, text, 0o640); err == nil {
		a.talk("%s: %s", out, r.Data.Verdict.Text)
	}
	if err != nil {
		return fmt.Errorf("custody report: %w", err)
	}
	if r.Data.Verdict.Word == custodyFindings {
		return &exitError{code: exitFailed}
	}
	return nil
}

// redirected is the name of the file that standard output goes to, or "": the commands in a report name it.
func (a *app) redirected() string {
	f, ok := a.stdout.(*os.File)
	if !ok {
		return ""
	}
	info, err := f.Stat()
	path, linkErr := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil || linkErr != nil || !info.Mode().IsRegular() {
		return ""
	}
	return filepath.Base(path)
}

// custodyAs leaves everything that loads a vendor's library to a process of the signer's user; what only root may see goes along.
func (a *app) custodyAs(ctx context.Context, credential *syscall.Credential, home string, cfg *config, data *custodyData) (*custodyReport, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	facts, err := json.Marshal(data)
	if err != nil {
		return nil, fmt.Errorf("custody report: %w", err)
	}
	var document bytes.Buffer
	c := exec.CommandContext(ctx, self, "--config", cfg.File, "custody", "report", "--inner")
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(facts), &document, a.stderr
	c.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	c.Env = append(os.Environ(), "HOME="+home)
	if err := passPINs(c, cfg.Tokens...); err != nil {
		return nil, fmt.Errorf("custody report: %w", err)
	}
	err = c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return nil, &exitError{code: exit.ExitCode()} // it said why
	}
	if err != nil {
		return nil, fmt.Errorf("custody report: %w", err)
	}
	r, err := parseCustody(document.Bytes())
	if err != nil {
		return nil, fmt.Errorf("custody report: what the signer's user measured cannot be read: %w", err)
	}
	return r, nil
}

// custodyInner is the other side of custodyAs.
func (a *app) custodyInner(ctx context.Context) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	facts, err := io.ReadAll(io.LimitReader(os.Stdin, maxCustody))
	if err != nil {
		return fmt.Errorf("custody report: %w", err)
	}
	var data custodyData
	if err := json.Unmarshal(facts, &data); err != nil {
		return fmt.Errorf("custody report: facts of the machine: %w", err)
	}
	r, err := a.custodyMeasured(ctx, cfg, &data)
	if err != nil {
		return err
	}
	document, err := r.json()
	if err != nil {
		return fmt.Errorf("custody report: %w", err)
	}
	_, err = a.stdout.Write(document)
	return err
}

// custodyMeasured adds what the tokens say, judges all of it, and has every key sign for it.
func (a *app) custodyMeasured(ctx context.Context, cfg *config, data *custodyData) (*custodyReport, error) {
	if err := hardening.NoDump(); err != nil { // before a PIN is in memory
		return nil, err
	}
	if err := becomeSigner(cfg, cfg.Tokens...); err != nil {
		return nil, err
	}
	m := &custodyMeasurement{data: data, cfg: cfg, log: a.verbLog(), keys: map[string]*hsm.Key{}}
	defer m.close()
	if err := m.measure(ctx); err != nil {
		return nil, fmt.Errorf("custody report: %w", err)
	}
	data.judge()
	r := &custodyReport{V: 1, Data: *data, Proofs: []custodyProof{}}
	line, err := custodyLine(data)
	if err != nil {
		return nil, fmt.Errorf("custody report: %w", err)
	}
	r.Digest = hexSHA256(line)
	for _, k := range data.Keys {
		key := m.keys[k.SPKI]
		if k.Problem != "" || len(k.Issuers) == 0 { // the key of the audit log signs heads and nothing else
			continue
		}
		p, err := custodyProve(ctx, key, data, r.Digest, k.SPKI)
		if err != nil {
			return nil, fmt.Errorf("custody report: %w", err)
		}
		r.Proofs = append(r.Proofs, p)
	}
	r.Commands = r.commands()
	return r, nil
}

func hexSHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// custodyLine is the data in the one spelling that has a digest: one line of JSON, which can stand inside of HTML as it is.
func custodyLine(d *custodyData) ([]byte, error) { return json.Marshal(d) }

// json is the report as it stands in a file. The data has a line of its own, so that other tools can take its digest.
func (r *custodyReport) json() ([]byte, error) {
	line, err := custodyLine(&r.Data)
	if err != nil {
		return nil, err
	}
	proofs, err := json.MarshalIndent(r.Proofs, "  ", "  ")
	if err != nil {
		return nil, err
	}
	commands, err := json.MarshalIndent(r.Commands, "  ", "  ")
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "{\n  \"v\": 1,\n  \"digest\": %q,\n  \"data\":\n%s\n  ,\n  \"proofs\": %s,\n  \"commands\": %s\n}\n", r.Digest, line, proofs, commands), nil
}

// custodyChallenge is what a key signs. It begins with a text, so that it can never be read as ResponseData, as a certificate or as the head of a log, and
// names what it is for.
func custodyChallenge(d *custodyData, digest, spki, nonce string) string {
	return fmt.Sprintf("This is a proof of possession for a custody report of ocspd, and nothing else.\nreport: %s\nmade: %s\ndata SHA-256: %s\nkey SHA-256: %s\nnonce: %s\n",
		d.ID, d.Time.Format(time.RFC3339), digest, spki, nonce)
}

func custodyProve(ctx context.Context, k *hsm.Key, d *custodyData, digest, spki string) (custodyProof, error) {
	nonce := make([]byte, 32)
	rand.Read(nonce)
	p := custodyProof{Key: spki, Challenge: custodyChallenge(d, digest, spki, hex.EncodeToString(nonce))}
	h := hsm.HashFor(k.Public())
	signature, err := k.SignContext(ctx, hashed(h, p.Challenge), h)
	p.Signature = base64.StdEncoding.EncodeToString(signature)
	return p, err
}

// hashed is what is signed of a text; Ed25519, whose hash is 0, signs the text itself.
func hashed(h crypto.Hash, text string) []byte {
	if h == 0 {
		return []byte(text)
	}
	w := h.New()
	io.WriteString(w, text)
	return w.Sum(nil)
}

// nonceOf is the last line of a challenge.
func nonceOf(challenge string) string {
	_, nonce, _ := strings.Cut(challenge, "\nnonce: ")
	return strings.TrimSuffix(nonce, "\n")
}
