package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"ocspd/hsm"
	"ocspd/pki"
)

func newKeyCmd(a *app) *cobra.Command {
	var token, kind, id, subject, issuer, fingerprint string
	var dryRun bool
	withToken := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&token, "token", "", "token in the configuration; needed where there are several")
		return c
	}
	generate := &cobra.Command{
		Use: "generate LABEL --type TYPE", Short: "Make a key inside the token that can sign and do nothing else", Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, labels []string) error { return a.keyGenerate(token, labels[0], kind, id) },
	}
	generate.Flags().StringVar(&kind, "type", "", strings.Join(hsm.Algorithms(), ", "))
	generate.Flags().StringVar(&id, "id", "", "CKA_ID in hex; without it one is made at random")
	list := &cobra.Command{
		Use: "list", Short: "The private keys on the tokens", Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error { return a.keyList(token) },
	}
	show := &cobra.Command{
		Use: "show LABEL", Short: "How the token keeps a key, and what it should be", Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, labels []string) error { return a.keyShow(token, labels[0]) },
	}
	csr := &cobra.Command{
		Use: "csr LABEL", Short: "Print a certificate request for the CA", Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, labels []string) error { return a.keyCSR(c.Context(), token, labels[0], subject) },
	}
	csr.Flags().StringVar(&subject, "subject", "", "subject in openssl's form, /C=AT/O=Example/CN=…; /CN=LABEL without it")
	install := &cobra.Command{
		Use: "install CERT --issuer NAME", Short: "Check a signer's certificate, prove its key, put it where the configuration points",
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			return a.keyInstall(c.Context(), files[0], issuer, dryRun)
		},
	}
	install.Flags().StringVar(&issuer, "issuer", "", "issuer in the configuration")
	install.Flags().BoolVar(&dryRun, "dry-run", false, "make every check and write nothing")
	destroy := &cobra.Command{
		Use: "destroy LABEL --yes FINGERPRINT", Short: "Destroy a key for good", Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, labels []string) error { return a.keyDestroy(token, labels[0], fingerprint) },
	}
	destroy.Flags().StringVar(&fingerprint, "yes", "", "the key's SHA-256 fingerprint, as 'key show' prints it")
	return group("key", "Keys in the tokens", a.withOutput(withToken(generate)), a.withOutput(withToken(list)),
		a.withOutput(withToken(show)), withToken(csr), a.withOutput(install), a.withOutput(withToken(destroy)), keyRecordCmd(a))
}

// keyURI takes a label, or a pkcs11: URI where the label alone does not do.
func keyURI(label string) string {
	if strings.HasPrefix(label, "pkcs11:") {
		return label
	}
	return hsm.KeyURI(label)
}

// fingerprint is the SHA-256 of the SubjectPublicKeyInfo, which openssl and every other tool computes alike.
func fingerprint(public crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// keyFacts are what every verb says of a key.
type keyFacts struct {
	Token       string `json:"token"`
	Label       string `json:"label"`
	ID          string `json:"id"`
	Type        string `json:"type"` // "" for a key that cannot sign here
	Fingerprint string `json:"spki_sha256"`
	URI         string `json:"uri"`
	Unusable    string `json:"unusable,omitempty"` // why
}

func factsOf(t *tokenConfig, k *hsm.Key) keyFacts {
	f := keyFacts{Token: t.Name, Label: k.Label, ID: hex.EncodeToString(k.ID), Type: string(k.Algorithm()), URI: hsm.KeyURI(k.Label)}
	if k.Public() != nil {
		f.Fingerprint = fingerprint(k.Public())
	}
	if err := k.Usable(); err != nil {
		f.Unusable = err.Error()
	}
	return f
}

func (f keyFacts) pairs() [][2]string {
	p := [][2]string{{"token", f.Token}, {"label", f.Label}, {"id", f.ID}, {"type", f.Type}, {"SPKI SHA-256", f.Fingerprint}, {"uri", f.URI}}
	if f.Unusable != "" {
		p = append(p, [2]string{"unusable", f.Unusable})
	}
	return p
}

// shownKey is a key with its attributes, for -o json.
type shownKey struct {
	V int `json:"v"`
	keyFacts
	Attributes hsm.Attributes `json:"attributes"`
	Findings   []hsm.Finding  `json:"findings"`
}

// shown reads how the token keeps a key.
func shown(t *tokenConfig, k *hsm.Key) (*shownKey, error) {
	attributes, err := k.Attributes()
	if err != nil {
		return nil, err
	}
	return &shownKey{V: 1, keyFacts: factsOf(t, k), Attributes: attributes, Findings: append([]hsm.Finding{}, attributes.Findings(time.Now())...)}, nil
}

// withNamedToken is withToken for the token that --token names.
func (a *app) withNamedToken(name string, f func(*config, *tokenConfig, *hsm.Token) error) error {
	cfg, err := a.loadTokens()
	if err != nil {
		return err
	}
	t, err := tokenNamed(cfg, name)
	if err != nil {
		return err
	}
	return a.withToken(cfg, t, func(token *hsm.Token) error { return f(cfg, t, token) })
}

func (a *app) keyGenerate(token, label, kind, id string) error {
	if kind == "" {
		return usagef("key generate: --type is missing; one of %s", strings.Join(hsm.Algorithms(), ", "))
	}
	if !slices.Contains(hsm.Algorithms(), kind) {
		return usagef("key generate: --type %s; use one of %s", kind, strings.Join(hsm.Algorithms(), ", "))
	}
	if label == "" || len(label) > 64 || !utf8.ValidString(label) || strings.ContainsFunc(label, unicode.IsControl) {
		return usagef("key generate: label %q; give 1 to 64 octets of plain text", label)
	}
	ckaID, err := hex.DecodeString(id)
	if err != nil || len(ckaID) > 64 {
		return usagef("key generate: --id %s; give up to 64 octets in hex", id)
	}
	return a.withRecordedToken(token, "key.generate", label, func(r *recorder, t *tokenConfig, h *hsm.Token) error {
		r.know("type", kind)
		if err := r.begin(); err != nil {
			return err
		}
		k, err := h.Generate(label, ckaID, hsm.Algorithm(kind))
		if err != nil {
			return err
		}
		r.know("id", hex.EncodeToString(k.ID))
		r.know("spki_sha256", fingerprint(k.Public()))
		s, err := shown(t, k)
		if err != nil {
			return fmt.Errorf("the key %s was made; reading it back: %w", k, err)
		}
		for _, f := range s.Findings {
			a.talk("warning: %s", f)
		}
		if a.json() {
			return a.printJSON(s)
		}
		a.printFacts(s.pairs())
		a.talk("made in the token and proven by a signature; next: ocspd key csr %s", label)
		return nil
	})
}

func (a *app) keyList(token string) error {
	cfg, err := a.loadTokens()
	if err != nil {
		return err
	}
	tokens := cfg.Tokens
	if token != "" {
		t, err := tokenNamed(cfg, token)
		if err != nil {
			return err
		}
		tokens = []*tokenConfig{t}
	}
	if err := becomeSigner(cfg, tokens...); err != nil { // once, for all of them
		return err
	}
	type row struct {
		keyFacts
		Findings []hsm.Finding `json:"findings"`
	}
	rows := []row{}
	for _, t := range tokens {
		err := a.withToken(cfg, t, func(h *hsm.Token) error {
			keys, err := h.Keys()
			if err != nil {
				return err
			}
			for _, k := range keys {
				s, err := shown(t, k)
				if err != nil {
					return err
				}
				rows = append(rows, row{s.keyFacts, s.Findings})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if a.json() {
		return a.printJSON(struct {
			V    int   `json:"v"`
			Keys []row `json:"keys"`
		}{1, rows})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TOKEN\tLABEL\tID\tTYPE\tSPKI SHA-256\tFINDINGS")
	for _, r := range rows {
		var names []string
		for _, f := range r.Findings {
			names = append(names, f.Name)
		}
		if r.Unusable != "" {
			names = append(names, "cannot sign here")
		}
		if len(names) == 0 {
			names = []string{"none"}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Token, r.Label, r.ID, r.Type, r.Fingerprint, strings.Join(names, " "))
	}
	return w.Flush()
}

func (a *app) keyShow(token, label string) error {
	return a.withNamedToken(token, func(_ *config, t *tokenConfig, h *hsm.Token) error {
		k, err := h.Find(keyURI(label))
		if k == nil {
			return err
		}
		s, err := shown(t, k)
		if err != nil {
			return err
		}
		if a.json() {
			return a.printJSON(s)
		}
		a.printFacts(s.pairs())
		w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "\nATTRIBUTE\tFOUND\tEXPECTED\tRULE")
		for _, x := range s.Attributes {
			expected := x.Expected
			if expected == "" {
				expected = "-"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", x.Name, x.Found, expected, x.Rule)
		}
		w.Flush()
		fmt.Fprintln(a.stdout)
		if len(s.Findings) == 0 {
			fmt.Fprintln(a.stdout, "no findings")
		}
		for _, f := range s.Findings {
			word := "warning"
			if f.Must {
				word = "refused"
			}
			fmt.Fprintf(a.stdout, "%s: %s\n", word, f)
		}
		a.talk("attributes are self-reported by PKCS#11: the module's own word, no attestation (OCSP-KEY-10)")
		return nil
	})
}

// requested are the extensions that a delegated signer needs; a CA may copy them into the certificate.
var requested = []pkix.Extension{
	{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{3, 2, 7, 0x80}},             // keyUsage: digitalSignature
	{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: []byte{0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 9}}, // extendedKeyUsage: OCSPSigning
	{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: asn1.NullBytes},                   // id-pkix-ocsp-nocheck
}

func (a *app) keyCSR(ctx context.Context, token, label, subject string) error {
	return a.withNamedToken(token, func(_ *config, t *tokenConfig, h *hsm.Token) error {
		k, err := h.Find(keyURI(label))
		if err != nil {
			return err
		}
		if subject == "" {
			subject = "/CN=" + strings.NewReplacer(`\`, `\\`, "/", `\/`, "+", `\+`).Replace(k.Label)
		}
		name, err := parseSubject(subject)
		if err != nil {
			return usagef("key csr: --subject %s: %v", subject, err)
		}
		if err := k.Prove(ctx, k.Public()); err != nil {
			return err
		}
		s, err := shown(t, k)
		if err != nil {
			return err
		}
		for _, f := range s.Findings {
			a.talk("warning: %s", f)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: name, ExtraExtensions: requested}, k)
		if err != nil {
			return fmt.Errorf("key csr %s: %w", label, err)
		}
		request, err := x509.ParseCertificateRequest(der)
		if err == nil {
			err = request.CheckSignature()
		}
		if err != nil {
			return fmt.Errorf("key csr %s: the request that was made is not good: %w", label, err)
		}
		return pem.Encode(a.stdout, &pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	})
}

// subjectAttributes are the names that a subject may use, with the ASN.1 type of their value: 12 UTF8String,
// 19 PrintableString, 22 IA5String (RFC 5280 section 4.1.2.4 and appendix A).
var subjectAttributes = map[string]struct {
	oid asn1.ObjectIdentifier
	tag int
	max int // characters
}{
	"C": {asn1.ObjectIdentifier{2, 5, 4, 6}, asn1.TagPrintableString, 2}, "ST": {asn1.ObjectIdentifier{2, 5, 4, 8}, asn1.TagUTF8String, 128},
	"L": {asn1.ObjectIdentifier{2, 5, 4, 7}, asn1.TagUTF8String, 128}, "O": {asn1.ObjectIdentifier{2, 5, 4, 10}, asn1.TagUTF8String, 64},
	"OU": {asn1.ObjectIdentifier{2, 5, 4, 11}, asn1.TagUTF8String, 64}, "CN": {asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.TagUTF8String, 64},
	"serialNumber":           {asn1.ObjectIdentifier{2, 5, 4, 5}, asn1.TagPrintableString, 64},
	"street":                 {asn1.ObjectIdentifier{2, 5, 4, 9}, asn1.TagUTF8String, 128},
	"postalCode":             {asn1.ObjectIdentifier{2, 5, 4, 17}, asn1.TagUTF8String, 40},
	"organizationIdentifier": {asn1.ObjectIdentifier{2, 5, 4, 97}, asn1.TagUTF8String, 256},
	"DC":                     {asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25}, asn1.TagIA5String, 64},
	"emailAddress":           {asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, asn1.TagIA5String, 255},
}

// parseSubject reads /C=AT/O=Example/CN=…, openssl's form: in order, one attribute each, a backslash before a slash that
// belongs to a value. It returns the DER of the Name.
func parseSubject(s string) ([]byte, error) {
	rest, ok := strings.CutPrefix(s, "/")
	if !utf8.ValidString(s) {
		return nil, errors.New("it is not UTF-8")
	}
	if !ok {
		return nil, errors.New("it begins with a slash: /C=AT/O=Example/CN=name")
	}
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	type rdn = []attribute
	var name []asn1.RawValue
	for _, part := range splitSubject(rest) {
		key, value, ok := strings.Cut(part, "=")
		known, is := subjectAttributes[key]
		switch {
		case !ok:
			return nil, fmt.Errorf("%q has no =; a slash inside of a value is written \\/", part)
		case !is:
			return nil, fmt.Errorf("attribute %q is not known; known are C, ST, L, O, OU, CN, serialNumber, street, postalCode, organizationIdentifier, DC, emailAddress", key)
		case value == "" || utf8.RuneCountInString(value) > known.max || strings.ContainsFunc(value, unicode.IsControl):
			return nil, fmt.Errorf("%s=%q: 1 to %d characters of plain text are right", key, value, known.max)
		case key == "C" && (len(value) != 2 || strings.ToUpper(value) != value):
			return nil, fmt.Errorf("in the subject, C=%q: a country is two capital letters", value)
		case known.tag == asn1.TagPrintableString && strings.ContainsFunc(value, notPrintable),
			known.tag == asn1.TagIA5String && strings.ContainsFunc(value, func(r rune) bool { return r > unicode.MaxASCII }):
			return nil, fmt.Errorf("%s=%q: a character that this attribute cannot have", key, value)
		}
		der, err := asn1.MarshalWithParams(rdn{{known.oid, asn1.RawValue{Tag: known.tag, Bytes: []byte(value)}}}, "set")
		if err != nil {
			return nil, err
		}
		name = append(name, asn1.RawValue{FullBytes: der})
	}
	return asn1.Marshal(name)
}

func notPrintable(r rune) bool {
	return r > unicode.MaxASCII || !(unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune(" '()+,-./:=?", r))
}

// splitSubject cuts at slashes that no backslash precedes, and takes the backslashes away.
func splitSubject(s string) []string {
	var parts []string
	var part strings.Builder
	escaped := false
	for _, r := range s {
		switch {
		case escaped:
			part.WriteRune(r)
			escaped = false
		case r == '\\':
			escaped = true
		case r == '/':
			parts = append(parts, part.String())
			part.Reset()
		default:
			part.WriteRune(r)
		}
	}
	return append(parts, part.String())
}

// maxCertificate is the largest file that is looked at as a certificate, in octets.
const maxCertificate = 1 << 16

func readCertificate(path string) (*x509.Certificate, error) {
	var in io.Reader = os.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxCertificate+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(b) > maxCertificate {
		return nil, fmt.Errorf("%s: larger than %d octets; give the one certificate alone", path, maxCertificate)
	}
	cert, err := pki.ParseCertificate(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cert, nil
}

// keyInstall takes the certificate that the CA issued for a key: checked by every rule of delegated signers, proven to go
// with the key that the configuration names by a signature, and only then written where `signer` points.
func (a *app) keyInstall(ctx context.Context, path, name string, dryRun bool) error {
	if name == "" {
		return usagef("key install: --issuer is missing: the issuer that the certificate is to answer for")
	}
	cfg, err := a.load()
	if err != nil {
		return err
	}
	i := cfg.issuer(name)
	switch {
	case i == nil:
		return fmt.Errorf("key install: issuer %s is not in the configuration; add [issuer.%s] first", name, name)
	case i.Signer == "":
		return fmt.Errorf("key install: issuer %s has no `signer` in the configuration, so the CA's own key signs; add signer = \"FILE\", where the certificate is to be", name)
	}
	issuer, err := loadIssuer(i)
	if err != nil {
		return err
	}
	cert, err := readCertificate(path)
	if err != nil {
		return fmt.Errorf("key install: %w", err)
	}
	if dryRun {
		if err := a.checkInstall(ctx, cfg, i, issuer, cert, path, true); err != nil {
			return err
		}
		a.printFact("good", "issuer %s: the certificate is good and goes with the key; nothing was written", i.Name)
		return nil
	}
	r, err := a.newRecorder(cfg, "key.install", i.Name)
	if err != nil {
		return err
	}
	r.know("spki_sha256", fingerprint(cert.PublicKey))
	r.know("certificate_sha256", fmt.Sprintf("%x", sha256.Sum256(cert.Raw)))
	err = a.checkInstall(ctx, cfg, i, issuer, cert, path, false)
	if err == nil {
		err = r.begin()
	}
	if err == nil {
		err = a.putCertificate(i, cert)
	}
	return r.end(err)
}

// checkInstall judges the certificate and proves that it goes with the key.
func (a *app) checkInstall(ctx context.Context, cfg *config, i *issuerConfig, issuer *pki.Issuer, cert *x509.Certificate, path string, dryRun bool) error {
	credential, account, err := signerAccount(cfg)
	if err != nil {
		return err
	}
	findings := pki.CheckDelegate(cert, issuer, time.Now(), i.Profile == "webpki")
	if credential != nil && !dryRun {
		// The proof loads the vendor's library, which must not be root, and the file must be written as root: so the
		// proof is left to a process of the signer's user. The warnings are too.
		if err = refusal("key install "+path, findings); err == nil {
			err = a.proveAs(ctx, credential, account.HomeDir, cfg, i, cert)
		}
	} else if err = a.judge("key install "+path, findings); err == nil {
		err = a.prove(ctx, cfg, i, cert)
	}
	return err
}

// judge prints the warnings and returns the refusal.
func (a *app) judge(what string, findings []pki.Finding) error {
	for _, f := range findings {
		if !f.Error {
			a.talk("warning: %s", f)
		}
	}
	return refusal(what, findings)
}

// refusal makes one error of all that must not be.
func refusal(what string, findings []pki.Finding) error {
	var refused []string
	for _, f := range findings {
		if f.Error {
			refused = append(refused, f.String())
		}
	}
	if len(refused) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %s; nothing was changed", what, strings.Join(refused, "; "))
}

// prove is OCSP-DEL-08: by signature, whatever labels and ids say. The key must be fit to be used, too.
func (a *app) prove(ctx context.Context, cfg *config, i *issuerConfig, cert *x509.Certificate) error {
	t := cfg.token(i.Token)
	if t == nil {
		return fmt.Errorf("issuer %s: its key is in no token of the configuration", i.Name)
	}
	return a.withToken(cfg, t, func(token *hsm.Token) error {
		k, err := token.Find(i.Key)
		if err != nil {
			return err
		}
		err = k.Prove(ctx, cert.PublicKey)
		if errors.Is(err, hsm.ErrOtherKey) {
			return fmt.Errorf("key install: the certificate is for another key (%s) than issuer %s has in the configuration, %s (%s); name the right key there, or have the CA "+
				"certify this one with 'ocspd key csr' (OCSP-DEL-08): %w", fingerprint(cert.PublicKey), i.Name, i.Key, fingerprint(k.Public()), err)
		} else if err != nil {
			return err
		}
		findings, err := keyFindings(i, k, time.Now())
		if err != nil {
			return err
		}
		return a.judge("key install", findings)
	})
}

// proveAs runs the checks once more, as another user, with the certificate on standard input.
func (a *app) proveAs(ctx context.Context, credential *syscall.Credential, home string, cfg *config, i *issuerConfig, cert *x509.Certificate) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := exec.CommandContext(ctx, self, "--config", cfg.File, "key", "install", "--dry-run", "--issuer", i.Name, "-")
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(cert.Raw), io.Discard, a.stderr
	c.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	c.Env = append(os.Environ(), "HOME="+home)
	if err := passPINs(c, cfg.token(i.Token)); err != nil {
		return fmt.Errorf("key install: %w", err)
	}
	err = c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return &exitError{code: exit.ExitCode()} // it said why
	}
	return err
}

// putCertificate replaces the file in one step; whoever reads it sees the old certificate or the new one.
func (a *app) putCertificate(i *issuerConfig, cert *x509.Certificate) error {
	what := fmt.Sprintf("serial %x, valid until %s", cert.SerialNumber, cert.NotAfter.UTC().Format(time.RFC3339))
	current, err := os.ReadFile(i.Signer)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("key install: %w", err)
	default:
		old, err := pki.ParseCertificate(current)
		if err == nil && bytes.Equal(old.Raw, cert.Raw) {
			a.printFact("unchanged", "issuer %s: unchanged: %s holds this certificate already (%s)", i.Name, i.Signer, what)
			return nil
		}
		if err == nil && old.NotAfter.After(cert.NotAfter) {
			a.talk("warning: the certificate that was installed is valid longer, until %s", old.NotAfter.UTC().Format(time.RFC3339))
		}
		kept, err := keepOld(i.Signer, current, old)
		if err != nil {
			return fmt.Errorf("key install: the old certificate could not be kept, so nothing was changed: %w", err)
		}
		a.talk("the old certificate is kept as %s", kept)
	}
	if err := writeDurably(i.Signer, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o644); err != nil {
		return fmt.Errorf("key install: %w", err)
	}
	a.printFact("installed", "issuer %s: installed in %s (%s)", i.Name, i.Signer, what)
	a.talk("next: ocspd reload")
	return nil
}

// keepOld copies the old file beside itself, under the day on which its certificate ends. The same content is kept once.
func keepOld(path string, content []byte, old *x509.Certificate) (string, error) {
	day := "unreadable"
	if old != nil {
		day = old.NotAfter.UTC().Format(time.DateOnly)
	}
	for n := 1; ; n++ {
		kept := path + ".old-" + day
		if n > 1 {
			kept += "-" + strconv.Itoa(n)
		}
		there, err := os.ReadFile(kept)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return kept, writeDurably(kept, content, 0o644)
		case err != nil:
			return "", err
		case bytes.Equal(there, content):
			return kept, nil
		}
	}
}

// keyDestroy wants the fingerprint, so that no slip of a label destroys the wrong key. A key that an issuer signs with
// stays.
func (a *app) keyDestroy(token, label, confirmed string) error {
	whole, err := readConfig(a.configFile) // while we are root: the signer's user may not be able to
	if err != nil {
		whole = &config{}
		a.talk("warning: the configuration is not whole (see 'ocspd config check'), so whether an issuer signs with the key cannot be told")
	}
	return a.withRecordedToken(token, "key.destroy", label, func(r *recorder, t *tokenConfig, h *hsm.Token) error {
		k, err := h.Find(keyURI(label))
		if k == nil {
			return err
		}
		if k.Public() == nil {
			return fmt.Errorf("key destroy %s: it has no fingerprint to confirm it by: %w; destroy it with the tools of the token", label, k.Usable())
		}
		found := fingerprint(k.Public())
		r.know("key", k.String())
		r.know("spki_sha256", found)
		switch {
		case confirmed == "":
			return usagef("key destroy: there is no way back; to destroy %s of token %s give --yes %s", k, t.Name, found)
		case !strings.EqualFold(strings.ReplaceAll(confirmed, ":", ""), found):
			return usagef("key destroy: the fingerprint of %s of token %s is %s, not %s; nothing was destroyed", k, t.Name, found, confirmed)
		}
		is := func(uri string) bool {
			used, _ := h.Find(uri)
			return used != nil && used.Public() != nil && fingerprint(used.Public()) == found
		}
		if whole.AuditKey != "" && whole.AuditToken == t.Name && is(whole.AuditKey) {
			return fmt.Errorf("key destroy: the heads of the audit log are signed with %s; name another audit.key in the configuration and reload first", k)
		}
		for _, i := range whole.Issuers {
			if i.Token != t.Name {
				continue
			}
			if is(i.Key) {
				return fmt.Errorf("key destroy: issuer %s signs with %s; name another `key` in its configuration and reload first", i.Name, k)
			}
		}
		if err := r.begin(); err != nil {
			return err
		}
		if err := h.Destroy(k); err != nil {
			return err
		}
		r.know("evidence", "no private key of its label and id was found on the token afterwards")
		copies := cmp.Or(t.Copies, "not stated")
		r.know("copies", copies)
		a.printFact("destroyed", "token %s: key %s (SPKI SHA-256 %s) is destroyed, and no private key of its label and id is left", t.Name, k, found)
		a.talk("copies of this token's keys, by the configuration: %s; the key is gone for good when it is destroyed there too (OCSP-KEY-19)", copies)
		return nil
	})
}
