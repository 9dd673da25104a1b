package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ocspd/audit"
	"ocspd/hardening"
	"ocspd/hsm"
	"ocspd/responder"
)

// walls are what a role may reach, from its start to its end.
type walls struct {
	role    string
	policy  *hardening.Policy
	places  map[string]os.FileInfo // the policy's paths as they were at the start: Landlock goes by the folder, not by its name
	modules []string               // PKCS#11 modules, which load more than a sealed process may
}

// confine closes what a role does not need for its start. It executes the program anew, so that it returns only there, with what stays open.
func confine(cfg *config, name string) (*walls, error) {
	dirs := map[string][]string{"front": {cfg.Run}, "signer": {cfg.Run, cfg.signerDir(), cfg.generations()}, "keeper": {cfg.Run, cfg.keeperDir(), cfg.generations()}}[name]
	for _, dir := range dirs { // a folder that is not there cannot be opened later
		mode := os.FileMode(0o755)
		if dir == cfg.signerDir() {
			mode = 0o700
		}
		if err := os.MkdirAll(dir, mode); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	w := newWalls(cfg, name)
	if !hardening.Confined() {
		return nil, hardening.Confine(w.policy)
	}
	return w, hardening.NoDump() // before the PIN is in memory
}

func newWalls(cfg *config, name string) *walls {
	w := &walls{role: name, policy: policyOf(cfg, name), places: map[string]os.FileInfo{}}
	for _, path := range slices.Concat(w.policy.Read, w.policy.Write) {
		if info, err := os.Stat(path); err == nil {
			w.places[path] = info
		}
	}
	if name == "signer" {
		w.modules = modulesOf(cfg)
	}
	return w
}

// seal gives up the rest, and says what came of it. A role calls it when it has all that it needs, and before it hears strangers.
func (r *role) seal() error {
	measures, err := hardening.Seal(r.walls.policy)
	if err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	r.measures = measures
	var held []any
	for _, m := range measures {
		if m.State != hardening.Holds {
			r.log.Warn("a wall is missing", "wall", m.Name, "state", m.State, "reason", m.Detail)
		}
		held = append(held, m.Name, m.State)
	}
	r.log.Info("hardened", held...)
	return nil
}

// policyOf is what a role keeps of files, ports and system calls.
func policyOf(cfg *config, name string) *hardening.Policy {
	p := &hardening.Policy{LogOnly: cfg.Hardening.Seccomp == "log", Require: cfg.Hardening.Require}
	read := []string{cfg.File}
	for _, i := range cfg.Issuers {
		read = append(read, i.Certificate)
		if name != "front" && i.Signer != "" {
			read = append(read, i.Signer)
		}
	}
	// A file without a name, which is gone when it is closed.
	keepers := hardening.Try{Name: "keeper's folder closed", Path: cfg.keeperDir(), Flag: unix.O_TMPFILE | os.O_RDWR}
	signers := hardening.Try{Name: "signer's folder closed", Path: cfg.signerDir(), Flag: unix.O_TMPFILE | os.O_RDWR}
	switch name {
	case "front":
		p.Role = hardening.Answers
		p.Listen = listenPorts(p, slices.Concat(cfg.Listen.OCSP, cfg.Listen.HTTP), listenerOCSP, listenerHTTP)
		p.Read = append(p.Read, cfg.Run) // a socket with a long name is reached by way of its folder
		p.Tries = append(secrets(cfg), keepers, signers)
	case "signer":
		p.Role = hardening.Signs
		p.Write = []string{cfg.signerDir()}
		p.Sockets = []string{cfg.Run}
		p.Tries = []hardening.Try{keepers}
		for _, t := range cfg.Tokens {
			if pin, ok := strings.CutPrefix(t.PIN, "file:"); ok {
				read = append(read, pin)
			}
			keepForToken(p, t)
		}
		p.Read = append(p.Read, cfg.generations())
		if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
			p.Read = append(p.Read, dir)
		}
		keepForModules(p, cfg.Hardening.Module)
	case "keeper":
		p.Role = hardening.Keeps
		p.Write = []string{cfg.keeperDir(), cfg.generations()}
		p.Sockets = []string{cfg.Run}
		p.Listen = listenPorts(p, []string{cfg.Listen.Admin}, listenerAdmin)
		if !exists(cfg.dialerSocket()) { // else another process connects for it
			p.Network, p.Netlink = true, true
			p.Connect = sourcePorts(cfg)
		}
		// Names of servers and of accounts, and the roots of TLS: files that are replaced rather than changed, so that the folder is named.
		p.Read = append(p.Read, "/etc", "/run/systemd/resolve", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates")
		for _, v := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR"} {
			p.Read = append(p.Read, filepath.SplitList(os.Getenv(v))...)
		}
		for _, i := range cfg.Issuers {
			for _, s := range i.Sources {
				for _, place := range []string{s.CRL, s.Delta, s.Index} {
					if info, err := os.Stat(place); err == nil && info.IsDir() {
						p.Read = append(p.Read, place)
					} else if filepath.IsAbs(place) {
						read = append(read, place)
					}
				}
			}
		}
		p.Tries = append(secrets(cfg), signers)
	}
	p.Read = append(p.Read, foldersOf(read)...)
	for _, list := range []*[]string{&p.Read, &p.Write, &p.Sockets, &p.Devices} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return p
}

// foldersOf are the folders of files: of their names, and of what symbolic links lead to. It is folders that are named, since a file that is
// replaced, by an editor or by `key install`, is another file.
func foldersOf(files []string) (l []string) {
	for _, f := range files {
		l = append(l, filepath.Dir(f))
		if real, err := filepath.EvalSymlinks(f); err == nil {
			l = append(l, filepath.Dir(real))
		}
	}
	return l
}

// listenPorts are those of the addresses that a role has to listen on itself, when nobody passed listeners of these names. It keeps what it takes
// to have a port below 1024, which is of no use after seal.
func listenPorts(p *hardening.Policy, addresses []string, names ...string) (l []uint16) {
	passed := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	if supervised() || slices.ContainsFunc(names, func(n string) bool { return slices.Contains(passed, n) }) {
		return nil
	}
	for _, a := range addresses {
		port, ok := portOf(a)
		if !ok {
			continue
		}
		l = append(l, port)
		if port > 0 && port < 1024 {
			p.Capabilities |= 1 << unix.CAP_NET_BIND_SERVICE
		}
	}
	return l
}

func portOf(address string) (uint16, bool) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return uint16(n), err == nil
}

// sourcePorts are the TCP ports that keeper may have to connect to: those of its URLs, of a proxy, of name servers, and the usual two, to which a server
// may redirect and a CRL may send for its deltas.
func sourcePorts(cfg *config) []uint16 {
	ports := []uint16{53, 80, 443}
	var urls []string
	for _, i := range cfg.Issuers {
		for _, s := range i.Sources {
			urls = append(urls, s.CRL, s.Delta)
		}
	}
	for _, v := range []string{"HTTP_PROXY", "HTTPS_PROXY"} {
		for _, proxy := range []string{os.Getenv(v), os.Getenv(strings.ToLower(v))} {
			if proxy != "" && !strings.Contains(proxy, "://") {
				proxy = "http://" + proxy
			}
			if strings.HasPrefix(proxy, "socks5") {
				ports = append(ports, 1080)
			}
			urls = append(urls, proxy)
		}
	}
	for _, s := range urls {
		if u, err := url.Parse(s); err == nil && u.Port() != "" {
			if port, ok := portOf(u.Host); ok {
				ports = append(ports, port)
			}
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// secrets are what front and keeper must not be able to open: PINs, and the folders of tokens.
func secrets(cfg *config) (l []hardening.Try) {
	for _, t := range cfg.Tokens {
		if pin, ok := strings.CutPrefix(t.PIN, "file:"); ok {
			l = append(l, hardening.Try{Name: "pin closed", Path: pin, Flag: os.O_RDONLY})
		}
		store := &hardening.Policy{}
		keepForToken(store, t)
		for _, dir := range store.Write {
			l = append(l, hardening.Try{Name: "token closed", Path: dir, Flag: os.O_RDONLY})
		}
	}
	return l
}

// moduleRead is where PKCS#11 modules and the libraries below them look for settings: SoftHSM, p11-kit, OpenSC, tpm2-pkcs11, OpenSSL.
var moduleRead = []string{"/etc/softhsm", "/etc/pkcs11", "/usr/share/p11-kit", "/etc/opensc", "/usr/share/opensc", "/etc/tpm2-tss", "/etc/ssl", "/etc/gnutls"}

// keepForToken adds what a token's module opens: its own folder, what its environment names, its paths of the configuration, SoftHSM's tokens.
func keepForToken(p *hardening.Policy, t *tokenConfig) {
	p.Read = append(p.Read, moduleRead...)
	if u, err := hsm.ParseURI(t.URI); err == nil {
		p.Read = append(p.Read, foldersOf([]string{u.Module})...)
		if strings.Contains(filepath.Base(u.Module), "tpm2") {
			p.Write = append(p.Write, "/etc/tpm2_pkcs11")
			p.Devices = append(p.Devices, "/dev/tpmrm0")
		}
	}
	for _, kv := range t.Environment {
		name, value, _ := strings.Cut(kv, "=")
		switch {
		case !filepath.IsAbs(value):
		case strings.Contains(name, "OUTPUT") || strings.Contains(name, "LOG"): // of pkcs11-spy, for one
			p.Write = append(p.Write, value)
			if dir := filepath.Dir(value); dir != "/" {
				p.Write = append(p.Write, dir) // where it is made
			}
		default:
			keepForModule(p, value)
		}
	}
	for _, path := range t.Paths {
		keepForModule(p, path)
	}
	if dir := softhsmTokens(t); dir != "" {
		p.Write = append(p.Write, dir)
	}
}

// keepForModule adds a path by what it is: a folder may be written, a device controlled, a file read. What is not there stays closed.
func keepForModule(p *hardening.Policy, path string) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
	case info.IsDir():
		p.Write = append(p.Write, path)
	case info.Mode()&os.ModeDevice != 0:
		p.Devices = append(p.Devices, path)
	default:
		p.Read = append(p.Read, path)
	}
}

// softhsmTokens is where SoftHSM keeps its tokens by its settings, or "".
func softhsmTokens(t *tokenConfig) string {
	file := os.Getenv("SOFTHSM2_CONF")
	for _, kv := range t.Environment {
		if value, ok := strings.CutPrefix(kv, "SOFTHSM2_CONF="); ok {
			file = value
		}
	}
	for _, f := range []string{file, filepath.Join(os.Getenv("HOME"), ".config/softhsm2/softhsm2.conf"), "/etc/softhsm/softhsm2.conf"} {
		settings, err := os.Open(f)
		if err != nil {
			continue
		}
		defer settings.Close()
		for lines := bufio.NewScanner(settings); lines.Scan(); {
			if name, value, ok := strings.Cut(lines.Text(), "="); ok && strings.TrimSpace(name) == "directories.tokendir" {
				return filepath.Clean(strings.TrimSpace(value))
			}
		}
		return ""
	}
	return ""
}

// profiles are what `hardening.module` may name: what a token's module needs beyond files and unix sockets.
var profiles = []string{"network", "usb", "pcscd"}

func keepForModules(p *hardening.Policy, names []string) {
	for _, n := range names {
		switch n {
		case "network":
			p.Network, p.AnyPort, p.Netlink = true, true, true
			p.Read = append(p.Read, "/etc", "/run/systemd/resolve")
		case "usb":
			p.Netlink = true
			p.Devices = append(p.Devices, "/dev/bus/usb")
			p.Read = append(p.Read, "/sys/bus", "/sys/class", "/sys/devices", "/run/udev")
		case "pcscd":
			p.Read = append(p.Read, "/run/pcscd")
		}
	}
}

// modulesOf are the PKCS#11 modules by which the keys of issuers and of the audit log are reached.
func modulesOf(cfg *config) (l []string) {
	for _, t := range cfg.Tokens {
		if u, err := hsm.ParseURI(t.URI); err == nil && (t.Name == cfg.AuditToken || slices.ContainsFunc(cfg.Issuers, func(i *issuerConfig) bool { return i.Token == t.Name })) {
			l = append(l, u.Module)
		}
	}
	return l
}

// admit says whether a configuration can be taken without a restart: what the process gave up at its start stays closed. (That [hardening] itself
// changed is for the next start.)
func (w *walls) admit(cfg *config) error {
	if w == nil {
		return nil // a verb, which has no walls
	}
	now := newWalls(cfg, w.role)
	for _, list := range []struct{ wanted, open []string }{
		{now.policy.Write, w.policy.Write}, {now.policy.Read, slices.Concat(w.policy.Read, w.policy.Write, w.policy.Devices)},
	} {
		for _, path := range list.wanted {
			if _, there := now.places[path]; !there {
				continue
			}
			if err := w.reaches(path, list.open); err != nil {
				return err
			}
		}
	}
	for _, port := range now.policy.Connect {
		if !slices.Contains(w.policy.Connect, port) {
			return fmt.Errorf("%s may not connect to TCP port %d, which no source had when it started; restart it to take this configuration", w.role, port)
		}
	}
	for _, m := range now.modules {
		if !slices.Contains(w.modules, m) {
			return fmt.Errorf("%s cannot load the PKCS#11 module %s any more; restart it to take this configuration", w.role, m)
		}
	}
	return nil
}

// reaches says whether a path lies in one of those that were open at the start, and is there still.
func (w *walls) reaches(path string, open []string) error {
	err := fmt.Errorf("%s lies outside of what %s may open since its start; restart it to take this configuration", path, w.role)
	for _, o := range open {
		if path != o && !strings.HasPrefix(path, strings.TrimSuffix(o, "/")+"/") {
			continue
		}
		was, there := w.places[o]
		if !there {
			continue
		}
		if is, e := os.Stat(o); e == nil && os.SameFile(is, was) {
			return nil
		}
		err = fmt.Errorf("%s was replaced since %s started, which may open the old one only; restart it to take this configuration", o, w.role)
	}
	return err
}

// oneRole keeps a process that has been front from coming as signer, and the other way round, also where both are one user: neither can make another
// process, and the kernel says which one it is.
func (k *keeper) oneRole(allow func(net.Conn, responder.Role) (int, error)) func(net.Conn, responder.Role) (int, error) {
	return func(c net.Conn, role responder.Role) (int, error) {
		pid, err := allow(c, role)
		if err == nil && k.reports.isOther(role, pid) {
			err = fmt.Errorf("process %d cannot be %s, too", pid, role)
		}
		return pid, err
	}
}

// isRole reports whether a process is the front or the signer that we know. Neither gives orders.
func (r *reports) isRole(pid int) bool { return r.isOther(0, pid) }

// isOther reports whether a process is known in another role than this.
func (r *reports) isOther(role responder.Role, pid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, h := range r.all {
		if other != role && h.pid == pid && pid != 0 {
			return true
		}
	}
	return false
}

// recordWalls puts into the audit log what the processes of front and signer gave up, by their own word, once for each process.
func (k *keeper) recordWalls(ctx context.Context) {
	for _, role := range []responder.Role{responder.RoleFront, responder.RoleSigner} {
		if h := k.reports.get(role); h != nil && len(h.Hardening) > 0 && h.pid != k.walled[role] {
			k.walled[role] = h.pid
			k.record(ctx, hardeningRecord(role.String(), h.Hardening))
		}
	}
}

// hardeningRecord is what a role gave up, for keeper's log.
func hardeningRecord(role string, measures []hardening.Measure) audit.Record {
	r := audit.Record{Event: "hardening.report", Actor: role, Subject: role, Outcome: outcomeOK, Details: hardeningDetails(measures)}
	if slices.ContainsFunc(measures, func(m hardening.Measure) bool { return m.State != hardening.Holds }) {
		r.Outcome = "incomplete"
	}
	return r
}

// hardeningDetails are measures as details of a record, which have a name each: of several tokens several PINs are closed.
func hardeningDetails(measures []hardening.Measure) (l []audit.Detail) {
	for n, m := range measures[:min(len(measures), 30)] {
		name := m.Name
		if slices.ContainsFunc(measures[:n], func(o hardening.Measure) bool { return o.Name == m.Name }) || name == "" {
			name = fmt.Sprintf("%s %d", name, n)
		}
		l = append(l, audit.Detail{Name: name, Value: cut(m.State+": "+m.Detail, 300)})
	}
	return l
}
