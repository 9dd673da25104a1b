package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"ocspd/hsm"
	"ocspd/pki"
)

// judge draws findings, gaps and the verdict from the facts, and from nothing else, so that whoever has the facts can draw them again.
func (d *custodyData) judge() {
	j := &custodyJudge{d: d, findings: []custodyFinding{}, gaps: []custodyGap{}}
	for i := range d.Tokens {
		j.token(&d.Tokens[i])
	}
	for i := range d.Keys {
		j.key(&d.Keys[i])
	}
	for i := range d.Issuers {
		j.issuer(&d.Issuers[i])
	}
	for _, f := range d.Files {
		j.file(f)
	}
	for _, l := range d.Logs {
		j.log(l)
	}
	if len(d.Keys) == 0 {
		j.gap("OCSP-KEY-15", "configuration", "no key is configured, so there is none to report on")
	}
	slices.SortStableFunc(j.findings, func(a, b custodyFinding) int { return cmp.Compare(a.weight(), b.weight()) })
	d.Findings, d.Gaps = j.findings, j.gaps
	d.Verdict = j.verdict()
}

// weight puts what counts first, then what is accepted, then what should be better.
func (f custodyFinding) weight() int {
	switch {
	case f.grave():
		return 0
	case f.Must:
		return 1
	}
	return 2
}

type custodyJudge struct {
	d        *custodyData
	findings []custodyFinding
	gaps     []custodyGap
}

func (j *custodyJudge) verdict() custodyVerdict {
	grave, accepted := 0, 0
	for _, f := range j.findings {
		if f.grave() {
			grave++
		} else if f.Must {
			accepted++
		}
	}
	missing := fmt.Sprintf("%d %s that an auditor needs %s missing", len(j.gaps), plural("fact", len(j.gaps)), isAre(len(j.gaps)))
	switch {
	case grave > 0 && len(j.gaps) > 0:
		return custodyVerdict{custodyFindings, fmt.Sprintf("%d %s: not every key is kept as it must be, and %s.", grave, plural("finding", grave), missing)}
	case grave > 0:
		return custodyVerdict{custodyFindings, fmt.Sprintf("%d %s: not every key is kept as it must be.", grave, plural("finding", grave))}
	case len(j.gaps) > 0:
		return custodyVerdict{custodyIncomplete, "Incomplete: nothing was found that must not be, and " + missing + "."}
	case accepted > 0:
		return custodyVerdict{custodyKept, fmt.Sprintf("Every key is kept as it must be, but for %d %s that the configuration accepts by name.", accepted, plural("finding", accepted))}
	}
	return custodyVerdict{custodyKept, "Every key is kept as it must be."}
}

func plural(word string, n int) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

func (j *custodyJudge) gap(rule, subject, format string, args ...any) {
	j.gaps = append(j.gaps, custodyGap{rule, subject, fmt.Sprintf(format, args...)})
}

func (j *custodyJudge) finding(must bool, rule, name, subject, attribute, found, expected string, accepted ...string) {
	j.findings = append(j.findings, custodyFinding{rule, name, subject, attribute, found, expected, must, filled(accepted)})
}

// softwareToken says why a token is taken for one of software, or "".
func softwareToken(i hsm.TokenInfo) string {
	for _, said := range []string{i.Model, i.Manufacturer, i.Slot, i.Library} {
		for _, known := range []string{"SoftHSM", "Mozilla", "NSS", "SW   TPM", "SoftToken", "Software"} {
			if strings.Contains(said, known) {
				return fmt.Sprintf("it calls itself %q", said)
			}
		}
	}
	if !i.HardwareSlot {
		return "its module does not claim that its slot is hardware"
	}
	return ""
}

func (j *custodyJudge) token(t *custodyToken) {
	subject := "token " + t.Name
	public := slices.ContainsFunc(j.d.Issuers, func(i custodyIssuer) bool { return i.Profile == "webpki" && i.Token == t.Name })
	switch why := softwareToken(t.Info); {
	case why != "" && public:
		j.finding(true, "OCSP-KEY-01", "software-token", subject, "hardware", "software: "+why, "a certified module, with profile webpki")
	case why != "":
		j.gap("OCSP-KEY-01", subject, "it is a software token (%s), and no certificate can vouch for that", why)
	}
	for _, s := range []struct{ rule, value, text string }{
		{"OCSP-KEY-01", t.Stated.Assurance, "which certificate the device has is not stated (assurance)"},
		{"OCSP-KEY-01", t.Stated.Firmware, "which firmware the certificate is for is not stated (firmware)"},
		{"OCSP-KEY-13", t.Stated.Ceremony, "where the record of how the keys were made is kept is not stated (ceremony)"},
		{"OCSP-KEY-12", t.Stated.Copies, "whether there are copies of the keys, and where, is not stated (copies)"},
	} {
		if s.value == "" {
			j.gap(s.rule, subject, "%s", s.text)
		}
	}
	if t.Stated.Firmware != "" && t.Stated.Firmware != t.Info.Firmware {
		j.finding(true, "OCSP-KEY-01", "firmware-differs", subject, "firmware", t.Info.Firmware, t.Stated.Firmware)
	}
	if t.Cut {
		j.gap("OCSP-KEY-15", subject, "it has more objects than are listed")
	}
	for _, o := range t.Visible {
		if o.Class == hsm.ClassPrivate || o.Class == hsm.ClassSecret {
			j.finding(true, "OCSP-KEY-06", "visible-without-login", objectName(t, o), "C_FindObjects without a login", "shown", "not shown")
		}
	}
	j.objects(t)
}

func objectName(t *custodyToken, o hsm.Object) string {
	return fmt.Sprintf("%s %q (id %s) in token %s", o.Class, o.Label, cmp.Or(o.ID, "none"), t.Name)
}

// objects judges what else is in a token (OCSP-KEY-15, OCSP-KEY-08).
func (j *custodyJudge) objects(t *custodyToken) {
	owner := map[string]string{} // SPKI of configured keys, by id
	for _, k := range j.d.Keys {
		if k.Token == t.Name && k.ID != "" {
			owner[k.ID] = k.SPKI
		}
	}
	for n, o := range t.Objects {
		if o.Secret() && o.Purpose == "" {
			j.finding(true, "OCSP-KEY-15", "unknown-key", objectName(t, o.Object), "purpose", "none in the configuration", "every key is one that the configuration names")
		}
		for _, flag := range []string{"CKA_TRUSTED", "CKA_WRAP", "CKA_UNWRAP"} {
			if slices.Contains(o.True, flag) && !(o.Class == hsm.ClassPrivate && o.Purpose != "") { // those are judged by their attributes
				j.finding(false, "OCSP-KEY-08", "wrapping-key", objectName(t, o.Object), flag, "true", "no object that wraps keys, or that the token trusts to")
			}
		}
		if spki := owner[o.ID]; o.Class == hsm.ClassPublic && o.ID != "" && spki != "" && o.SPKI != spki {
			j.finding(true, "OCSP-DEL-08", "public-key-of-another", objectName(t, o.Object), "SPKI SHA-256", cmp.Or(o.SPKI, "unreadable"), spki)
		}
		for _, other := range t.Objects[:n] {
			if !o.Secret() || other.Class != o.Class {
				continue
			}
			if o.Label == other.Label && o.Label != "" {
				j.finding(true, "OCSP-KEY-15", "duplicate-label", objectName(t, o.Object), "CKA_LABEL", "that of another "+o.Class, "unique")
			}
			if o.ID == other.ID && o.ID != "" {
				j.finding(true, "OCSP-KEY-15", "duplicate-id", objectName(t, o.Object), "CKA_ID", "that of another "+o.Class, "unique")
			}
			if o.SPKI == other.SPKI && o.SPKI != "" {
				j.finding(true, "OCSP-KEY-15", "duplicate-key", objectName(t, o.Object), "SPKI SHA-256", "that of another "+o.Class, "one copy")
			}
		}
	}
}

func (k *custodyKey) name() string {
	return fmt.Sprintf("key %s in token %s", cmp.Or(k.Label, k.URI), k.Token)
}

func (j *custodyJudge) key(k *custodyKey) {
	if k.Problem != "" {
		j.finding(true, "OCSP-KEY-15", "key-unusable", k.name(), "use", k.Problem, "a key that signs")
	}
	if len(k.Issuers) == 0 && slices.ContainsFunc(j.d.Keys, func(o custodyKey) bool { return len(o.Issuers) > 0 && o.SPKI == k.SPKI && k.SPKI != "" }) {
		j.finding(true, "OCSP-AUD-04", "audit-key-signs-answers", k.name(), "purpose", "signs heads of the log, and answers too", "a key for heads alone")
	}
	for _, f := range k.Attributes.Findings(j.d.Time) {
		var accepted []string
		if slices.Contains(k.Accept, f.Name) {
			if accepted = k.Issuers; len(accepted) == 0 {
				accepted = []string{"audit"}
			}
		}
		j.finding(f.Must, f.Rule, f.Name, k.name(), f.Attribute, f.Found, f.Expected, accepted...)
	}
	for _, p := range k.Probes {
		if f := p.Finding(); f != nil {
			j.finding(f.Must, f.Rule, f.Name, k.name(), f.Attribute, f.Found, f.Expected)
		}
	}
}

// keyOf is the card of the key that an issuer signs with, or nil.
func (d *custodyData) keyOf(i *custodyIssuer) *custodyKey {
	for n := range d.Keys {
		if d.Keys[n].Token == i.Token && d.Keys[n].URI == i.Key {
			return &d.Keys[n]
		}
	}
	return nil
}

// signs is the certificate whose key signs.
func (i *custodyIssuer) signs() *custodyCert {
	if i.Signer != nil {
		return i.Signer
	}
	return i.CA
}

func (j *custodyJudge) issuer(i *custodyIssuer) {
	subject := "issuer " + i.Name
	if i.Problem != "" {
		j.finding(true, "OCSP-DEL-07", "certificate-unreadable", subject, "certificate", i.Problem, "the certificates of issuer and signer")
		return
	}
	findings, err := i.certificateFindings(j.d)
	if err != nil {
		j.finding(true, "OCSP-DEL-07", "certificate-unreadable", subject, "certificate", err.Error(), "the certificates of issuer and signer")
		return
	}
	for _, f := range findings {
		var accepted []string
		if slices.Contains(i.Accept, f.Name) {
			accepted = []string{i.Name}
		}
		j.finding(f.Error, f.Rule, f.Name, subject, "certificate", f.Text, "", accepted...)
	}
	if k := j.d.keyOf(i); k != nil && k.SPKI != "" && k.SPKI != i.signs().SPKI {
		j.finding(true, "OCSP-DEL-08", "certificate-of-another-key", subject, "SPKI SHA-256", i.signs().SPKI, k.SPKI+", which is "+k.name())
	}
}

// certificateFindings judges the certificates as of the report.
func (i *custodyIssuer) certificateFindings(d *custodyData) ([]pki.Finding, error) {
	ca, err := pki.ParseCertificate([]byte(i.CA.PEM))
	if err != nil {
		return nil, err
	}
	issuer, err := pki.NewIssuer(i.Name, ca)
	if err != nil {
		return nil, err
	}
	if i.Signer == nil {
		return pki.CheckDirect(issuer, d.Time), nil
	}
	signer, err := pki.ParseCertificate([]byte(i.Signer.PEM))
	if err != nil {
		return nil, err
	}
	return pki.CheckDelegate(signer, issuer, d.Time, i.Profile == "webpki"), nil
}

// file judges modes (OCSP-KEY-18).
func (j *custodyJudge) file(f custodyFile) {
	if slices.Contains(f.Writers, everybody) {
		j.finding(true, "OCSP-KEY-18", "writable-by-everybody", f.What, f.Path, "everybody on the machine can change it", "root and the role's own user")
	}
	if f.Exposed {
		j.finding(true, "OCSP-KEY-18", "readable-by-everybody", f.What, f.Path, "everybody on the machine can read it", "root and the signer's user")
	}
}

func (j *custodyJudge) log(l custodyLog) {
	for _, fault := range l.Faults {
		j.finding(true, "OCSP-AUD-03", "log-damaged", "log of the "+l.Role, l.Folder, fault, "every record as its head has it")
	}
	if l.Problem != "" {
		j.gap("OCSP-AUD-03", "log of the "+l.Role, "%s", l.Problem)
	}
}
