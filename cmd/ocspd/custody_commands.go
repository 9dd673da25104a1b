package main

import (
	"cmp"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"

	"ocspd/hsm"
)

// custodyCommand repeats a check without ocspd. Pasted into a shell it works as it stands, in the order of the list, in a folder that holds the
// report; pkcs11-tool asks for the PIN.
type custodyCommand struct {
	Title   string `json:"title"`
	Rule    string `json:"rule"`
	Command string `json:"command"`
	Shows   string `json:"shows"` // words to look for in what it prints
}

type custodyScript struct {
	r    *custodyReport
	list []custodyCommand
}

func (s *custodyScript) add(rule, title, shows, format string, args ...any) {
	s.list = append(s.list, custodyCommand{title, rule, fmt.Sprintf(format, args...), shows})
}

// commands follow from the rest of the report.
func (r *custodyReport) commands() []custodyCommand {
	s := &custodyScript{r: r}
	for i := range r.Data.Tokens {
		s.token(&r.Data.Tokens[i])
	}
	named := map[string]bool{}
	for i := range r.Data.Keys {
		if k := &r.Data.Keys[i]; k.SPKI != "" && !named[k.Token+k.SPKI] {
			named[k.Token+k.SPKI] = true
			s.key(k)
		}
	}
	for i := range r.Data.Issuers {
		if issuer := &r.Data.Issuers[i]; issuer.Problem == "" {
			s.issuer(issuer)
		}
	}
	for i, p := range r.Proofs {
		s.proof(i+1, p)
	}
	s.add("", "The data of this report has the digest that the challenges name", r.Digest,
		`sed -n '/^{"verdict":/p' %s | tr -d '\n' | openssl dgst -sha256 -r`, quoteShell(r.Data.File))
	return s.list
}

// quoteShell makes one word for sh of any text.
func quoteShell(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+=:,@%", r))
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// tool is pkcs11-tool on a token.
func (t *custodyToken) tool() string {
	var b strings.Builder
	for _, v := range t.Environment {
		name, value, _ := strings.Cut(v, "=")
		b.WriteString(name + "=" + quoteShell(value) + " ")
	}
	return b.String() + "pkcs11-tool --module " + quoteShell(t.Module.Path) + " --token-label " + quoteShell(t.Info.Label)
}

func (s *custodyScript) token(t *custodyToken) {
	s.add("OCSP-KEY-10", "The module is the file that this report speaks of", t.SHA256, "openssl dgst -sha256 -r %s", quoteShell(t.Module.Path))
	s.add("OCSP-KEY-18", "Who owns it", t.Module.Owner+":"+t.Module.Group+" "+strings.TrimPrefix(t.Module.Mode, "0"), "stat --format='%%U:%%G %%a' %s", quoteShell(t.Module.Path))
	if name, _, ok := strings.Cut(t.Package, " "); ok {
		s.add("OCSP-KEY-10", "Which package it came with", name, "dpkg-query --search %s", quoteShell(t.Module.Path))
	}
	s.add("OCSP-KEY-01", "What token "+t.Name+" says of itself", t.Info.Serial, "%s --list-token-slots", t.tool())
	visible := 0
	for _, o := range t.Visible {
		if o.Class == hsm.ClassPrivate {
			visible++
		}
	}
	s.add("OCSP-KEY-06", "Private keys that it shows without a login", fmt.Sprintf("%d private keys", visible),
		`%s --list-objects --type privkey | awk '/^Private Key Object/ { n++ } END { print n+0, "private keys" }'`, t.tool())
	s.add("OCSP-KEY-15", "Everything that it shows after a login", "Private Key Object", "%s --login --list-objects", t.tool())
}

func (d *custodyData) token(name string) *custodyToken {
	for i := range d.Tokens {
		if d.Tokens[i].Name == name {
			return &d.Tokens[i]
		}
	}
	return &custodyToken{}
}

// selector names the key to pkcs11-tool.
func (k *custodyKey) selector() string {
	if k.ID != "" {
		return "--id " + k.ID
	}
	return "--label " + quoteShell(k.Label)
}

// point is the public key of a curve, in hex, as CKA_EC_POINT has it.
func (k *custodyKey) point() string {
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if block, _ := pem.Decode([]byte(k.Public)); block != nil {
		asn1.Unmarshal(block.Bytes, &spki) // what cannot be read has no point
	}
	return hex.EncodeToString(spki.Key.Bytes)
}

// file is the name that files of a key have; names of issuers are plain words.
func (k *custodyKey) file() string {
	if len(k.Issuers) > 0 {
		return k.Issuers[0]
	}
	return "audit-key"
}

func (k *custodyKey) is(attribute string) bool {
	for _, a := range k.Attributes {
		if a.Name == attribute {
			return a.Found == "true"
		}
	}
	return false
}

// access is how pkcs11-tool words the attributes of OCSP-KEY-02 and OCSP-KEY-03.
func (k *custodyKey) access() string {
	var words []string
	for _, a := range [][2]string{{"CKA_SENSITIVE", "sensitive"}, {"CKA_ALWAYS_SENSITIVE", "always sensitive"}, {"CKA_EXTRACTABLE", "extractable"},
		{"CKA_NEVER_EXTRACTABLE", "never extractable"}, {"CKA_LOCAL", "local"}} {
		if k.is(a[0]) {
			words = append(words, a[1])
		}
	}
	return strings.Join(words, ", ")
}

var curveNames = map[string]string{"p256": "prime256v1", "p384": "secp384r1", "p521": "secp521r1"}

func (s *custodyScript) key(k *custodyKey) {
	t := s.r.Data.token(k.Token)
	tool, key, file := t.tool(), k.selector(), k.file()
	s.add("OCSP-KEY-03", "How "+k.name()+" is kept and what it may do", k.access(), "%s --login --list-objects --type privkey %s", tool, key)
	switch k.Type {
	case string(hsm.Ed25519), "p384": // OpenSC 0.23 cannot read them out
		s.add("OCSP-DEL-08", "The point of the public key beside it", k.point(), "%s --list-objects --type pubkey %s", tool, key)
	default:
		s.add("OCSP-DEL-08", "The public key beside it", k.SPKI, "%s --read-object --type pubkey %s | openssl dgst -sha256 -r", tool, key)
	}
	for _, p := range k.Probes {
		if p.Outcome != hsm.Refused {
			continue
		}
		switch p.Call {
		case "C_DecryptInit":
			s.add(p.Rule, "It refuses to decrypt", p.Code, "openssl rand -out %[3]s.noise 256\n%[1]s --login --decrypt --mechanism RSA-PKCS %[2]s --input-file %[3]s.noise", tool, key, file)
		case "C_DeriveKey":
			s.add(p.Rule, "It refuses to derive a secret", p.Code, "openssl ecparam -name %[4]s -genkey -noout | openssl ec -pubout -outform DER -out %[3]s.peer\n"+
				"%[1]s --login --derive --mechanism ECDH1-DERIVE %[2]s --input-file %[3]s.peer", tool, key, file, curveNames[k.Type])
		}
	}
	s.add("", "The public key, as this report has it", "", "cat >%s.pub <<'END'\n%sEND", file, k.Public)
	if len(k.Issuers) == 0 {
		return
	}
	s.possession(k, tool, key, file)
}

// digestInfoSHA256 is what stands before a SHA-256 in PKCS #1 v1.5 (RFC 8017 section 9.2), for printf.
const digestInfoSHA256 = `\060\061\060\015\006\011\140\206\110\001\145\003\004\002\001\005\000\004\040`

var curveHashes = map[string]string{"p256": "sha256", "p384": "sha384", "p521": "sha512"}

// possession has the token sign something that the reader made up, without a program of ours.
func (s *custodyScript) possession(k *custodyKey, tool, key, file string) {
	title := "The token signs a challenge of your own with it, without ocspd"
	switch {
	case curveHashes[k.Type] != "":
		s.add("OCSP-DEL-08", title, "Signature Verified Successfully", "openssl rand -hex -out %[3]s.own 32\nopenssl dgst -%[4]s -binary -out %[3]s.hash %[3]s.own\n"+
			"%[1]s --login --sign --mechanism ECDSA --signature-format openssl %[2]s --input-file %[3]s.hash --output-file %[3]s.ownsig\n"+
			"openssl pkeyutl -verify -pubin -inkey %[3]s.pub -in %[3]s.hash -sigfile %[3]s.ownsig", tool, key, file, curveHashes[k.Type])
	case strings.HasPrefix(k.Type, "rsa"):
		s.add("OCSP-DEL-08", title, "Verified OK", "openssl rand -hex -out %[3]s.own 32\n{ printf '%[4]s'; openssl dgst -sha256 -binary %[3]s.own; } >%[3]s.hash\n"+
			"%[1]s --login --sign --mechanism RSA-PKCS %[2]s --input-file %[3]s.hash --output-file %[3]s.ownsig\n"+
			"openssl dgst -sha256 -verify %[3]s.pub -signature %[3]s.ownsig %[3]s.own", tool, key, file, digestInfoSHA256)
	case k.Type == string(hsm.Ed25519):
		s.add("OCSP-DEL-08", title, "Signature Verified Successfully", "openssl rand -hex -out %[3]s.own 32\n"+
			"%[1]s --login --sign --mechanism EDDSA %[2]s --input-file %[3]s.own --output-file %[3]s.ownsig\n"+
			"openssl pkeyutl -verify -pubin -inkey %[3]s.pub -rawin -in %[3]s.own -sigfile %[3]s.ownsig", tool, key, file)
	}
}

func (s *custodyScript) issuer(i *custodyIssuer) {
	s.add("", "The certificate of the CA "+i.Name+", which you should have from elsewhere too", "", "cat >%s-ca.pem <<'END'\n%sEND", i.Name, i.CA.PEM)
	file := i.Name + "-ca.pem"
	if i.Signer != nil {
		file = i.Name + "-signer.pem"
		s.add("", "The certificate of its signer", "", "cat >%s <<'END'\n%sEND", file, i.Signer.PEM)
		s.add("OCSP-DEL-02", "The CA issued it, for signing OCSP answers", file+": OK",
			"openssl verify -partial_chain -attime %d -purpose ocsphelper -CAfile %s-ca.pem %s", s.r.Data.Time.Unix(), i.Name, file)
		s.add("OCSP-DEL-03", "Its purpose, dates and extensions", "OCSP Signing", "openssl x509 -in %s -noout -serial -dates -ext extendedKeyUsage,keyUsage,noCheck", file)
	}
	s.add("OCSP-DEL-08", "The key in it, by its SHA-256", i.signs().SPKI, "openssl x509 -in %s -noout -pubkey | openssl pkey -pubin -outform DER | openssl dgst -sha256 -r", file)
}

// proof verifies what the key signed for this report.
func (s *custodyScript) proof(n int, p custodyProof) {
	k := s.r.Data.keyNamed(p.Key)
	if k == nil {
		return
	}
	file := fmt.Sprintf("proof%d", n)
	verify := fmt.Sprintf("openssl dgst -%[3]s -verify %[1]s.pub -signature %[2]s.sig %[2]s.txt", k.file(), file, cmp.Or(curveHashes[k.Type], "sha256"))
	shows := "Verified OK"
	if k.Type == string(hsm.Ed25519) {
		verify = fmt.Sprintf("openssl pkeyutl -verify -pubin -inkey %[1]s.pub -rawin -in %[2]s.txt -sigfile %[2]s.sig", k.file(), file)
		shows = "Signature Verified Successfully"
	}
	s.add("OCSP-DEL-08", "The challenge of this report was signed with "+k.name(), shows,
		"cat >%[1]s.txt <<'END'\n%[2]sEND\nprintf %%s %[3]s | openssl base64 -d -A >%[1]s.sig\n%[4]s", file, p.Challenge, p.Signature, verify)
}

// keyNamed is the card of a key by the SHA-256 of its SubjectPublicKeyInfo, or nil.
func (d *custodyData) keyNamed(spki string) *custodyKey {
	for i := range d.Keys {
		if d.Keys[i].SPKI == spki && len(d.Keys[i].Issuers) > 0 {
			return &d.Keys[i]
		}
	}
	return nil
}

func decodeBase64(s string) []byte {
	b, _ := base64.StdEncoding.DecodeString(s)
	return b
}
