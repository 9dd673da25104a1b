package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"

	"ocspd/audit"
	"ocspd/hsm"
	"ocspd/pki"
)

// custodyHost collects what the machine knows, as the caller: root sees the most. What cannot be read says so in its place.
func (a *app) custodyHost(cfg *config, name string) *custodyData {
	id := make([]byte, 16)
	rand.Read(id)
	host, _ := os.Hostname()
	d := &custodyData{Findings: []custodyFinding{}, Gaps: []custodyGap{}, ID: hex.EncodeToString(id), Time: time.Now().UTC().Truncate(time.Second), Version: version(), File: name,
		Host: host, System: systemName(), RunBy: userName(os.Geteuid()), Tokens: []custodyToken{}, Keys: []custodyKey{}, Issuers: []custodyIssuer{},
		Access: custodyAccounts(cfg), Files: custodyFiles(cfg), Logs: custodyLogs(cfg), Counter: readCounter(cfg)}
	for _, t := range cfg.Tokens {
		path := modulePath(t)
		c := custodyToken{Name: t.Name, URI: t.URI, Environment: filled(t.Environment), Module: lookAt("PKCS#11 module of "+t.Name, path),
			Package: packageOf(path), Stated: custodyStatement{t.Assurance, t.Firmware, t.Ceremony, t.Copies}, Visible: []hsm.Object{}, Objects: []custodyObject{}}
		if b, err := os.ReadFile(path); err == nil {
			c.SHA256 = hexSHA256(b)
		}
		d.Tokens = append(d.Tokens, c)
	}
	for _, i := range cfg.Issuers {
		d.Issuers = append(d.Issuers, custodyIssuerOf(i))
	}
	return d
}

// systemName is PRETTY_NAME of os-release(5).
func systemName() string {
	b, _ := os.ReadFile("/etc/os-release")
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return "unknown"
}

// packageOf is the Debian package that owns a file, with its version, or "".
func packageOf(path string) string {
	out, err := exec.Command("dpkg-query", "--search", path).Output()
	name, _, ok := strings.Cut(string(out), ": ")
	if err != nil || !ok || strings.Contains(name, ",") {
		return ""
	}
	out, err = exec.Command("dpkg-query", "--show", "--showformat=${Package} ${Version}", name).Output()
	if err != nil {
		return ""
	}
	return string(out)
}

func custodyIssuerOf(i *issuerConfig) custodyIssuer {
	c := custodyIssuer{Name: i.Name, Profile: i.Profile, Token: i.Token, Key: i.Key, Accept: filled(i.Accept), Rolled: []custodyCert{}}
	issuer, err := loadIssuer(i)
	if err != nil {
		c.Problem = err.Error()
		return c
	}
	c.CA = describeCert(issuer.Certificate)
	if i.Signer == "" {
		return c
	}
	signer, err := loadSignerCertificate(i)
	if err != nil {
		c.Problem = err.Error()
		return c
	}
	c.Signer = describeCert(signer)
	old, _ := filepath.Glob(i.Signer + ".old-*")
	for _, path := range old {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if cert, err := pki.ParseCertificate(b); err == nil {
			c.Rolled = append(c.Rolled, *describeCert(cert))
		}
	}
	return c
}

// custodyCert is a certificate; all but PEM follows from it.
type custodyCert struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	SHA256    string    `json:"sha256"`
	SPKI      string    `json:"spki_sha256"`
	PEM       string    `json:"pem"`
}

func describeCert(c *x509.Certificate) *custodyCert {
	return &custodyCert{c.Subject.String(), c.Issuer.String(), fmt.Sprintf("%x", c.SerialNumber), c.NotBefore.UTC(), c.NotAfter.UTC(), hexSHA256(c.Raw),
		hexSHA256(c.RawSubjectPublicKeyInfo), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))}
}

// custodyFiles are those through which the keys could be reached, or what is signed be changed.
func custodyFiles(cfg *config) []custodyFile {
	list := []custodyFile{lookAt("configuration, which chooses the module", cfg.File)}
	if b, err := os.ReadFile(cfg.File); err == nil {
		list[0].SHA256 = hexSHA256(b)
	}
	if dir := filepath.Join(filepath.Dir(cfg.File), "issuers.d"); exists(dir) {
		list = append(list, lookAt("more of the configuration", dir))
	}
	for _, t := range cfg.Tokens {
		if path, ok := strings.CutPrefix(t.PIN, "file:"); ok {
			f := lookAt("PIN of "+t.Name, path)
			f.Exposed = f.Problem == "" && f.Mode[len(f.Mode)-1] >= '4'
			list = append(list, f)
		}
		for _, dir := range tokenFolders(t) {
			f := lookAt("files of token "+t.Name, dir)
			f.Contents, f.Exposed = lookInto(dir)
			list = append(list, f)
		}
	}
	for _, f := range [][2]string{{"state", cfg.State}, {"state of the signer", cfg.signerDir()}, {"state of the keeper", cfg.keeperDir()}, {"statuses that are signed", cfg.generations()}, {"sockets", cfg.Run}} {
		if exists(f[1]) {
			list = append(list, lookAt(f[0], f[1]))
		}
	}
	return list
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// lookAt says who owns a file and who can change it: by its own mode, or by that of a folder above it, where another can be put in its place. Access lists
// and capabilities are not looked at.
func lookAt(what, path string) custodyFile {
	f := custodyFile{What: what, Path: path, Writers: []string{}}
	info, err := os.Stat(path)
	if err != nil {
		f.Problem = err.Error()
		return f
	}
	st := info.Sys().(*syscall.Stat_t)
	f.Owner, f.Group, f.Mode = userName(int(st.Uid)), groupName(st.Gid), fmt.Sprintf("%04o", info.Mode().Perm())
	writers := map[string]bool{}
	for at := path; ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if err != nil {
			f.Problem = err.Error()
			return f
		}
		st := info.Sys().(*syscall.Stat_t)
		writers[userName(int(st.Uid))] = true
		sticky := at != path && info.Mode()&fs.ModeSticky != 0 // there only owners can rename
		if info.Mode().Perm()&0o020 != 0 && !sticky {
			writers["group "+groupName(st.Gid)] = true
		}
		if info.Mode().Perm()&0o002 != 0 && !sticky {
			writers[everybody] = true
		}
		if at == "/" || at == "." {
			break
		}
	}
	for w := range writers {
		f.Writers = append(f.Writers, w)
	}
	slices.Sort(f.Writers)
	return f
}

const everybody = "everybody"

// lookInto counts the files in a folder by mode, and says whether everybody can read or change one of them.
func lookInto(dir string) (contents string, exposed bool) {
	const most = 10000
	count := map[string]int{}
	open := map[string]bool{filepath.Dir(dir): true} // folders that everybody can pass
	files := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		passed := open[filepath.Dir(path)]
		if e.IsDir() {
			open[path] = passed && info.Mode().Perm()&0o001 != 0
			return nil
		}
		if files++; files > most {
			return fs.SkipAll
		}
		count[fmt.Sprintf("%04o", info.Mode().Perm())]++
		exposed = exposed || passed && info.Mode().Perm()&0o006 != 0
		return nil
	})
	if err != nil {
		return err.Error(), exposed
	}
	var parts []string
	for mode, n := range count {
		parts = append(parts, fmt.Sprintf("%d of mode %s", n, mode))
	}
	slices.Sort(parts)
	if len(parts) == 0 {
		return "no files", false
	}
	return "files: " + strings.Join(parts, ", "), exposed
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", uid)
}

func groupName(gid uint32) string {
	if g, err := user.LookupGroupId(strconv.FormatUint(uint64(gid), 10)); err == nil {
		return g.Name
	}
	return fmt.Sprintf("gid %d", gid)
}

// custodyAccounts says whose processes may use the keys, where their PIN comes from, and who may give orders.
func custodyAccounts(cfg *config) []custodyAccess {
	list := []custodyAccess{}
	if u, err := user.Lookup(userSigner); err == nil {
		detail := "groups: " + groupsOf(u)
		if g, err := user.LookupGroupId(u.Gid); err == nil {
			detail += "; others in its group " + g.Name + ": " + membersOf(g.Name, u.Username)
		}
		list = append(list, custodyAccess{"account that signs", u.Username, detail})
	} else {
		list = append(list, custodyAccess{"account that signs", "whoever runs ocspd serve", "there is no user " + userSigner + " on this machine: the roles are not separated from each other"})
	}
	for _, t := range cfg.Tokens {
		a := custodyAccess{What: "PIN of " + t.Name}
		if name, ok := strings.CutPrefix(t.PIN, "credential:"); ok {
			a.Who, a.Detail = "credential "+name+" of systemd", credentialKind(name)
		} else {
			a.Who, a.Detail = "a file", "not encrypted; see the files below"
		}
		list = append(list, a)
	}
	if _, err := user.LookupGroup(groupAdmin); err == nil {
		list = append(list, custodyAccess{"may give orders (revoke, import)", "root, group " + groupAdmin, "members: " + membersOf(groupAdmin, "")})
	} else {
		list = append(list, custodyAccess{"may give orders (revoke, import)", "root, and the user of the keeper", "there is no group " + groupAdmin})
	}
	return append(list, custodyAccess{"may become root, which reaches everything", membersOf("sudo", ""), "members of the group sudo, where that is so configured"})
}

func groupsOf(u *user.User) string {
	ids, err := u.GroupIds()
	if err != nil {
		return err.Error()
	}
	var names []string
	for _, id := range ids {
		n, err := strconv.ParseUint(id, 10, 32)
		if err == nil {
			names = append(names, groupName(uint32(n)))
		}
	}
	return strings.Join(names, ", ")
}

// membersOf lists the members of a group but one, as the name service tells: those with the group as their primary one, too.
func membersOf(group, but string) string {
	line, err := exec.Command("getent", "group", group).Output()
	f := strings.Split(strings.TrimSpace(string(line)), ":")
	if err != nil || len(f) != 4 {
		return "no such group"
	}
	members := map[string]bool{}
	for _, m := range strings.Split(f[3], ",") {
		members[m] = true
	}
	all, _ := exec.Command("getent", "passwd").Output()
	for s := bufio.NewScanner(bytes.NewReader(all)); s.Scan(); {
		if p := strings.Split(s.Text(), ":"); len(p) > 3 && p[3] == f[2] {
			members[p[0]] = true
		}
	}
	delete(members, "")
	delete(members, but)
	var list []string
	for m := range members {
		list = append(list, m)
	}
	slices.Sort(list)
	if len(list) == 0 {
		return "nobody"
	}
	return strings.Join(list, ", ")
}

// credentialKind looks into the signer's unit for how systemd comes by a credential.
func credentialKind(name string) string {
	kind := "in no unit of the signer on this machine"
	for _, dir := range []string{"/usr/lib/systemd/system", "/etc/systemd/system", "/run/systemd/system"} {
		drops, _ := filepath.Glob(filepath.Join(dir, userSigner+".service.d", "*.conf"))
		for _, unit := range append([]string{filepath.Join(dir, userSigner+".service")}, drops...) {
			b, _ := os.ReadFile(unit)
			for line := range strings.Lines(string(b)) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
				id, source, _ := strings.Cut(value, ":")
				switch {
				case id != name:
				case key == "LoadCredentialEncrypted" || key == "SetCredentialEncrypted":
					kind = fmt.Sprintf("encrypted for this machine (%s in %s)", key, unit)
				case key == "LoadCredential" || key == "SetCredential":
					kind = fmt.Sprintf("not encrypted on disk (%s in %s, from %s)", key, unit, source)
					if f := lookAt("", source); f.Problem == "" && filepath.IsAbs(source) {
						kind += fmt.Sprintf(", which is %s:%s %s", f.Owner, f.Group, f.Mode)
					}
				}
			}
		}
	}
	return kind
}

const (
	custodyRecords = 100_000 // of a log are looked at: its last
	custodyEvents  = 100     // of them are shown
)

// custodyLogs reads the events of keys and tokens out of the logs, and the heads that close them.
func custodyLogs(cfg *config) []custodyLog {
	list := []custodyLog{}
	for _, l := range []custodyLog{{Role: "keeper", Folder: cfg.keeperLog()}, {Role: "signer", Folder: filepath.Join(cfg.signerDir(), "log")}} {
		l.Keys, l.Faults, l.Events = []string{}, []string{}, []custodyRecord{}
		if err := l.read(); err != nil {
			l.Problem = err.Error()
			if errors.Is(err, fs.ErrNotExist) {
				l.Problem = "there is no log yet"
			}
		}
		list = append(list, l)
	}
	return list
}

func (l *custodyLog) read() error {
	files, err := filepath.Glob(filepath.Join(l.Folder, "key.pub*"))
	if err == nil && len(files) == 0 {
		err = fs.ErrNotExist
	}
	for _, f := range files {
		b, e := os.ReadFile(f)
		err = errors.Join(err, e)
		l.Keys = append(l.Keys, strings.TrimSpace(string(b)))
	}
	if err != nil {
		return err
	}
	keys, err := l.verifiers()
	if err != nil {
		return err
	}
	head, err := audit.ReadHead(l.Folder, keys...)
	if err != nil {
		return err
	}
	l.Head, l.Size = string(head.Note), head.Size
	if l.Size <= custodyRecords {
		report, err := audit.Verify(l.Folder, nil, keys...)
		if err != nil {
			return err
		}
		l.Checked = true
		for _, f := range report.Faults[:min(len(report.Faults), 10)] {
			l.Faults = append(l.Faults, f.String())
		}
	}
	l.From = l.Size - min(l.Size, custodyRecords)
	for r, err := range audit.Records(l.Folder, l.From, l.Size) {
		if err != nil {
			return err
		}
		if !custodyEvent(r.Event) {
			continue
		}
		e := custodyRecord{r.Sequence, r.Time, r.Event, r.Outcome, r.Actor, r.Subject, detailText(r)}
		if l.Events = append(l.Events, e); len(l.Events) > custodyEvents {
			l.Events, l.Omitted = l.Events[1:], l.Omitted+1
		}
	}
	return nil
}

// verifiers are the keys that the log's head may be signed with.
func (l *custodyLog) verifiers() ([]note.Verifier, error) {
	var list []note.Verifier
	for _, k := range l.Keys {
		v, err := audit.ParsePublicKey(k)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// custodyEvent picks what happened to keys, tokens and those who hold them.
func custodyEvent(event string) bool {
	kind, _, _ := strings.Cut(event, ".")
	return slices.Contains([]string{"key", "token", "signer", "clock", "custody", "log", "signatures", "accept"}, kind)
}

// readCounter gives what the signer wrote down of its signatures.
func readCounter(cfg *config) *custodyCounter {
	var f struct {
		Signatures uint64    `json:"signatures"`
		ProducedAt time.Time `json:"produced_at"`
		Keys       map[string]uint64
	}
	b, err := os.ReadFile(filepath.Join(cfg.signerDir(), "highwater"))
	if err != nil || json.Unmarshal(b, &f) != nil || f.Signatures == 0 {
		return nil
	}
	if f.Keys == nil {
		f.Keys = map[string]uint64{}
	}
	return &custodyCounter{f.Signatures, f.ProducedAt.UTC(), f.Keys}
}
