package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"strings"
	"text/tabwriter"
	"time"

	"ocspd/hsm"
)

// custodyPage needs no script, no font and no network; what it shows follows from the report alone.
//
//go:embed custody.html
var custodyPage string

var custodyTemplate = template.Must(template.New("custody").Funcs(template.FuncMap{
	"time": rfc3339, "day": func(t time.Time) string { return t.UTC().Format(time.DateOnly) }, "join": strings.Join, "clip": clip, "software": softwareToken,
	"days": func(from, to time.Time) int { return int(to.Sub(from) / (24 * time.Hour)) }, "inc": func(n int) int { return n + 1 }, "plural": plural,
}).Parse(custodyPage))

func rfc3339(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// clip shortens a text for the picture.
func clip(n int, s string) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// custodyNot is what no report can show.
const custodyNot = "It rests on what the PKCS#11 module says of itself. It is no attestation, and does not show that no copy of a key was made before."

// custodyLimits are what an auditor must learn in another way.
var custodyLimits = [][2]string{
	{"That the module tells the truth (OCSP-KEY-10)", "Attributes, token facts and the answers to what was tried come out of a library that ocspd loaded. A library can say anything. There is no " +
		"cryptographic attestation of the device in this report; ocspd does not import the attestations of makers yet (OCSP-KEY-11)."},
	{"That the key was never anywhere else", "A token that says that a key was generated in it, and was never extractable, says so of itself. Backups by the maker's own tools, HA groups and cloning domains are outside of PKCS#11: " +
		"what stands under “copies” is the operator's word (OCSP-KEY-12)."},
	{"How the keys were made", "Who was there and what was done is in the record of the ceremony, which this report only names (OCSP-KEY-13)."},
	{"Dual control", "ocspd does not ask a second person to agree (OCSP-KEY-14). Who holds the PIN or is root on the machine can use a key alone."},
	{"That nobody else signs", "The count of signatures is the signer's. Whoever else has the PIN can have the token sign, and only a count that the device itself keeps would show it (OCSP-KEY-17). What is counted are answers. Not counted are the proofs in this report, those of certificates that are installed, the signature by which the signer sees every 10 s that its token is well, and, by the audit key, the heads of the logs."},
	{"Rights beyond modes", "Owners, groups and modes of files were looked at. Access lists, capabilities, mandatory access control, hypervisors and hands on the machine were not."},
	{"Who the CA is", "The certificates of the CAs are those of the configuration. Compare their SHA-256 with copies of your own."},
}

// custodyView is what page and text are made from.
type custodyView struct {
	*custodyReport
	D        *custodyData
	Not      string
	Limits   [][2]string
	Document template.JS
}

func (r *custodyReport) view() custodyView {
	return custodyView{custodyReport: r, D: &r.Data, Not: custodyNot, Limits: custodyLimits}
}

func (r *custodyReport) html() ([]byte, error) {
	document, err := r.json()
	if err != nil {
		return nil, err
	}
	v := r.view()
	v.Document = template.JS(document) // JSON by encoding/json, in which no < is left
	var b bytes.Buffer
	if err := custodyTemplate.Execute(&b, v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Software are the tokens that are not hardware.
func (v custodyView) Software() []*custodyToken {
	var list []*custodyToken
	for i := range v.D.Tokens {
		if softwareToken(v.D.Tokens[i].Info) != "" {
			list = append(list, &v.D.Tokens[i])
		}
	}
	return list
}

// FindingsOf are those about one key.
func (v custodyView) FindingsOf(k custodyKey) []custodyFinding {
	var list []custodyFinding
	for _, f := range v.D.Findings {
		if f.Subject == k.name() {
			list = append(list, f)
		}
	}
	return list
}

// CertificateFindings are those about one issuer.
func (v custodyView) CertificateFindings(i custodyIssuer) []custodyFinding {
	var list []custodyFinding
	for _, f := range v.D.Findings {
		if f.Subject == "issuer "+i.Name {
			list = append(list, f)
		}
	}
	return list
}

// KeyOf is the card of an issuer's key, or nil.
func (v custodyView) KeyOf(i custodyIssuer) *custodyKey { return v.D.keyOf(&i) }

// Secret reports whether the object is one that nobody may have.
func (o custodyObject) Secret() bool {
	return o.Class == hsm.ClassPrivate || o.Class == hsm.ClassSecret
}

// Private counts the private and secret keys that need no login.
func (t custodyToken) Private() (n int) {
	for _, o := range t.Visible {
		if o.Class == hsm.ClassPrivate || o.Class == hsm.ClassSecret {
			n++
		}
	}
	return n
}

// Level is the word for what a finding means.
func (f custodyFinding) Level() string {
	switch {
	case f.grave():
		return "finding"
	case f.Must:
		return "accepted"
	}
	return "advice"
}

// Mark says how an attribute stands, in a word.
func (v custodyView) Mark(k custodyKey, a hsm.Attribute) string {
	for _, f := range v.FindingsOf(k) {
		if f.Attribute == a.Name {
			return f.Level()
		}
	}
	if a.Expected == "" {
		return "recorded"
	}
	if a.Found == hsm.NotSupported || a.Found == hsm.Withheld {
		return "not said"
	}
	return "as expected"
}

// Chained and Goes are the two arrows of the picture.
func (i custodyIssuer) Chained() bool { return i.chained() }

// Goes reports whether the key in the token is that of the certificate, and proved it.
func (v custodyView) Goes(i custodyIssuer) bool {
	k := v.D.keyOf(&i)
	return k != nil && k.Problem == "" && i.Problem == "" && k.SPKI == i.signs().SPKI
}

// Signs is the certificate whose key signs.
func (i custodyIssuer) Signs() *custodyCert { return i.signs() }

// State of a key, in the words of SP 800-57.
func (v custodyView) State(k custodyKey) string {
	var states []string
	for i := range v.D.Issuers {
		c := &v.D.Issuers[i]
		if v.D.keyOf(c) == nil || v.D.keyOf(c).URI != k.URI || v.D.keyOf(c).Token != k.Token {
			continue
		}
		switch {
		case c.Problem != "":
			states = append(states, c.Name+": pre-active, without a certificate that can be read")
		case v.D.Time.Before(c.signs().NotBefore):
			states = append(states, fmt.Sprintf("%s: pre-active, certificate from %s", c.Name, rfc3339(c.signs().NotBefore)))
		case v.D.Time.After(c.signs().NotAfter):
			states = append(states, fmt.Sprintf("%s: deactivated, certificate ended %s", c.Name, rfc3339(c.signs().NotAfter)))
		default:
			states = append(states, fmt.Sprintf("%s: active, certificate from %s until %s", c.Name, c.signs().NotBefore.Format(time.DateOnly), c.signs().NotAfter.Format(time.DateOnly)))
		}
	}
	switch {
	case k.Problem != "":
		return "it cannot be used"
	case len(states) == 0:
		return "active"
	}
	return strings.Join(states, "; ")
}

// ProofOf is the proof of a key, or nil.
func (v custodyView) ProofOf(spki string) *custodyProof {
	for i := range v.Proofs {
		if v.Proofs[i].Key == spki {
			return &v.Proofs[i]
		}
	}
	return nil
}

// text is the report for a terminal: the verdict, what it rests on, and where to find the rest.
func (r *custodyReport) text() ([]byte, error) {
	v := r.view()
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	table := func(title string, rows [][]string) {
		line("\n%s", title)
		if len(rows) == 0 {
			line("  none")
		}
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, row := range rows {
			for n := range row {
				row[n] = quoted(row[n], "")
			}
			fmt.Fprintln(w, "  "+strings.Join(row, "\t"))
		}
		w.Flush()
	}
	line("%s", v.D.Verdict.Text)
	line("%s", v.Not)
	for _, t := range v.Software() {
		line("SOFTWARE TOKEN: token %s: %s. Whoever can read its files and knows the PIN can copy the keys.", t.Name, softwareToken(t.Info))
	}
	line("report %s of %s, host %s (%s), run by %s, ocspd %s", v.D.ID, rfc3339(v.D.Time), quoted(v.D.Host, ""), v.D.System, v.D.RunBy, v.D.Version)
	var rows [][]string
	for _, f := range v.D.Findings {
		row := []string{f.Level(), f.Rule, f.Name, f.Subject, f.Attribute + ": " + f.Found}
		if f.Expected != "" {
			row[4] += ", expected " + f.Expected
		}
		rows = append(rows, row)
	}
	table("Findings", rows)
	rows = nil
	for _, g := range v.D.Gaps {
		rows = append(rows, []string{g.Rule, g.Subject, g.Text})
	}
	table("Missing", rows)
	rows = nil
	for _, t := range v.D.Tokens {
		rows = append(rows, []string{t.Name, t.Info.Label, "serial " + t.Info.Serial, t.Info.Manufacturer, t.Info.Model, "firmware " + t.Info.Firmware, t.Module.Path, "SHA-256 " + t.SHA256})
	}
	table("Tokens (self-reported by PKCS#11)", rows)
	rows = nil
	for _, k := range v.D.Keys {
		rows = append(rows, []string{k.name(), k.Type, "SPKI SHA-256 " + k.SPKI, k.Purpose, v.State(k)})
	}
	table("Keys", rows)
	for _, k := range v.D.Keys {
		rows = nil
		for _, a := range k.Attributes {
			rows = append(rows, []string{v.Mark(k, a), a.Name, a.Found, a.Rule})
		}
		for _, p := range k.Probes {
			rows = append(rows, []string{p.Outcome, p.Call, strings.TrimSpace(p.Tried + " " + p.Code + " " + p.Why), p.Rule})
		}
		table("Attributes of "+k.name()+", and what was tried (self-reported by PKCS#11)", rows)
	}
	rows = nil
	for _, t := range v.D.Tokens {
		for _, o := range t.Objects {
			rows = append(rows, []string{t.Name, o.Class, o.Label, o.ID, o.Type, o.Purpose})
		}
	}
	table("Objects", rows)
	rows = nil
	for _, i := range v.D.Issuers {
		if i.Problem != "" {
			rows = append(rows, []string{i.Name, i.Problem})
			continue
		}
		rows = append(rows, []string{i.Name, i.signs().Subject, "serial " + i.signs().Serial, "until " + rfc3339(i.signs().NotAfter), "CA SHA-256 " + i.CA.SHA256})
	}
	table("Certificates", rows)
	rows = nil
	for _, a := range v.D.Access {
		rows = append(rows, []string{a.What, a.Who, a.Detail})
	}
	table("Who may reach the keys", rows)
	rows = nil
	for _, f := range v.D.Files {
		rows = append(rows, []string{f.What, f.Path, f.Owner + ":" + f.Group + " " + f.Mode, "can be changed by " + strings.Join(f.Writers, ", "), f.Contents + f.Problem})
	}
	table("Files", rows)
	rows = nil
	for _, l := range v.D.Logs {
		for _, e := range l.Events {
			rows = append(rows, []string{l.Role, fmt.Sprint(e.Sequence), rfc3339(e.Time), e.Event, e.Outcome, e.Actor, e.Subject})
		}
	}
	table("History", rows)
	line("\ndata SHA-256 %s", v.Digest)
	line("The proofs of possession and the commands that repeat each check are in the other forms: ocspd custody report --out report.html")
	return b.Bytes(), nil
}
