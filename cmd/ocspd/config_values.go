package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"
	pkcs11uri "github.com/stefanberger/go-pkcs11uri"
)

// table reads typed values out of a table. A value that is missing, of another type or out of range gives the default
// or the zero value, and what is wrong goes to d: no method fails, so that all of a file is judged in one pass.
type table struct {
	d     *diagnostics
	node  *node
	name  string // as in "issuer.class1"; "" of the whole file
	dir   string // absolute; relative paths start here
	asked []string
}

// at is the full name of a key.
func (t *table) at(key string) string {
	if t.name == "" {
		return key
	}
	return t.name + "." + key
}

// given reports whether the file has the key.
func (t *table) given(key string) bool { return t.node.find(key) != nil }

// place is where a key's value stands or, when there is none, where its table begins.
func (t *table) place(key string) place {
	if e := t.node.find(key); e != nil {
		return e.value.at
	}
	return t.node.at
}

func (t *table) errorf(key, format string, args ...any) {
	t.d.errorf(t.place(key), "%s: %s", t.at(key), fmt.Sprintf(format, args...))
}

// get gives the value of a key, or nil when it is absent or of another kind.
func (t *table) get(key string, kind unstable.Kind, want string) *node {
	t.asked = append(t.asked, key)
	e := t.node.find(key)
	if e == nil {
		return nil
	}
	if e.value.kind != kind {
		t.errorf(key, "wants %s", want)
		return nil
	}
	return e.value
}

// require complains when a key is missing or empty.
func (t *table) require(key, what string) {
	if e := t.node.find(key); e == nil {
		t.d.errorf(t.node.at, "%s is missing: %s", t.at(key), what)
	} else if e.value.kind == unstable.String && e.value.text == "" {
		t.errorf(key, "is empty: %s", what)
	}
}

// done complains about every key that was never asked for.
func (t *table) done() { t.doneBecause("") }

func (t *table) doneBecause(why string) {
	for _, e := range t.node.entries {
		if slices.Contains(t.asked, e.name) {
			continue
		}
		hint := why
		if near := nearest(e.name, t.asked); near != "" && why == "" {
			hint = fmt.Sprintf("; did you mean %s?", near)
		}
		t.d.errorf(e.at, "unknown key %s%s", t.at(e.name), hint)
	}
}

// nearest is the candidate that differs from s in the fewest places, if these are few.
func nearest(s string, candidates []string) string {
	best, limit := "", 1+len(s)/3
	for _, c := range candidates {
		if d := distance(s, c); d < limit || d == limit && best == "" {
			best, limit = c, d
		}
	}
	return best
}

// distance is Levenshtein's: the insertions, deletions and replacements between two words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// table gives a table below; one that is not in the file is empty, so that its defaults apply.
func (t *table) table(key string) *table {
	n := t.get(key, unstable.Table, fmt.Sprintf("a table: [%s]", t.at(key)))
	if n == nil {
		n = &node{at: t.place(key), kind: unstable.Table}
	}
	return &table{d: t.d, node: n, name: t.at(key), dir: t.dir}
}

// children gives the tables in [key.NAME], in the order of the file.
func (t *table) children(key string) []*table {
	parent := t.table(key)
	var list []*table
	for _, e := range parent.node.entries {
		if n := parent.get(e.name, unstable.Table, fmt.Sprintf("a table: [%s.NAME]", parent.name)); n != nil {
			list = append(list, &table{d: t.d, node: n, name: parent.at(e.name), dir: t.dir})
		}
	}
	return list
}

// tables gives the tables in [[key]], or those in line.
func (t *table) tables(key string) []*table {
	t.asked = append(t.asked, key)
	e := t.node.find(key)
	if e == nil {
		return nil
	}
	noTable := func(n *node) bool { return n.kind != unstable.Table }
	if k := e.value.kind; k != unstable.ArrayTable && k != unstable.Array || slices.ContainsFunc(e.value.items, noTable) {
		t.errorf(key, "wants a list of tables: [[%s]]", t.at(key))
		return nil
	}
	var list []*table
	for _, item := range e.value.items {
		list = append(list, &table{d: t.d, node: item, name: t.at(key), dir: t.dir})
	}
	return list
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// checkedName is the last part of the table's name. It becomes part of file names.
func (t *table) checkedName() string {
	_, name, _ := strings.Cut(t.name, ".")
	if !nameForm.MatchString(name) || strings.Contains(name, "..") {
		t.d.errorf(t.node.at, "%s: a name has 1 to 64 of a-z, 0-9, dot, hyphen and underscore, begins with a letter or digit, and holds no \"..\"", t.name)
	}
	return name
}

// text reads a string. Control characters are refused here, for all: they could forge lines of a log.
func (t *table) text(key, otherwise string) string {
	n := t.get(key, unstable.String, "a string")
	if n == nil || !t.clean(key, n) {
		return otherwise
	}
	return n.text
}

func (t *table) clean(key string, n *node) bool {
	if strings.ContainsFunc(n.text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		t.d.errorf(n.at, "%s: holds a control character", t.at(key))
		return false
	}
	return true
}

// strings reads a list of strings, each with its place.
func (t *table) strings(key string, otherwise []string) []*node {
	n := t.get(key, unstable.Array, `a list of strings: ["…"]`)
	var list []*node
	if n == nil {
		for _, s := range otherwise {
			list = append(list, &node{at: t.place(key), kind: unstable.String, text: s})
		}
		return list
	}
	for _, item := range n.items {
		if item.kind != unstable.String {
			t.d.errorf(item.at, `%s: wants a list of strings: ["…"]`, t.at(key))
		} else if t.clean(key, item) {
			list = append(list, item)
		}
	}
	return list
}

// words reads a list of words out of those allowed, none of them twice.
func (t *table) words(key string, allowed []string) []*node {
	var list []*node
	for _, n := range t.strings(key, nil) {
		switch {
		case !slices.Contains(allowed, n.text):
			t.unknownWord(key, n, allowed)
		case slices.ContainsFunc(list, func(m *node) bool { return m.text == n.text }):
			t.d.errorf(n.at, "%s: %q stands there twice", t.at(key), n.text)
		default:
			list = append(list, n)
		}
	}
	return list
}

// word reads one of the words allowed.
func (t *table) word(key, otherwise string, allowed ...string) string {
	s := t.text(key, otherwise)
	if !slices.Contains(allowed, s) {
		t.unknownWord(key, t.node.find(key).value, allowed)
		return otherwise
	}
	return s
}

func (t *table) unknownWord(key string, n *node, allowed []string) {
	hint := ""
	if near := nearest(n.text, allowed); near != "" {
		hint = fmt.Sprintf("did you mean %s? ", near)
	}
	t.d.errorf(n.at, "%s: unknown %q; %sknown: %s", t.at(key), n.text, hint, strings.Join(allowed, ", "))
}

func (t *table) number(key string, otherwise, low, high int) int {
	n := t.get(key, unstable.Integer, "a whole number")
	if n == nil {
		return otherwise
	}
	i, err := strconv.ParseInt(n.text, 0, 64)
	if err != nil || i < int64(low) || i > int64(high) {
		t.errorf(key, "%s is not in %d to %d", n.text, low, high)
		return otherwise
	}
	return int(i)
}

func (t *table) duration(key string, otherwise, low, high time.Duration) time.Duration {
	n := t.get(key, unstable.String, `a duration in quotes, such as "15m", "24h" or "7d"`)
	if n == nil {
		return otherwise
	}
	d, err := parseDuration(n.text)
	switch {
	case err != nil:
		t.errorf(key, `%q is no duration; write "90s", "15m", "24h" or "7d"`, n.text)
	case d < low || d > high:
		t.errorf(key, "%s is not in %s to %s", n.text, formatDuration(low), formatDuration(high))
	case d%time.Second != 0:
		t.errorf(key, "%s is not a whole number of seconds", n.text)
	default:
		return d
	}
	return otherwise
}

// parseDuration reads Go's form with days before it: 7d, 1d12h. A day has 24 hours.
func parseDuration(s string) (time.Duration, error) {
	days, rest, ok := strings.Cut(s, "d")
	if !ok {
		return time.ParseDuration(s)
	}
	n, err := strconv.ParseUint(days, 10, 16) // 179 years: the sum below can pass int64 but not come round to a positive number
	if err != nil {
		return 0, err
	}
	d := time.Duration(n) * day
	if rest != "" {
		more, err := time.ParseDuration(rest)
		if err != nil || more < 0 {
			return 0, fmt.Errorf("%q after the days", rest)
		}
		d += more
	}
	return d, nil
}

// formatDuration is Go's form without its zeros, and days where it is a whole number of them from 2 on.
func formatDuration(d time.Duration) string {
	if d%day == 0 && d >= 2*day {
		return fmt.Sprintf("%dd", d/day)
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

var units = []struct {
	name   string
	octets int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

var sizeForm = regexp.MustCompile(`^([0-9]{1,9})(B|KiB|MiB|GiB)$`)

// size reads a number of octets with its unit.
func (t *table) size(key string, otherwise, low, high int64) int64 {
	n := t.get(key, unstable.String, `a size in quotes, such as "64KiB", "64MiB" or "1GiB"`)
	if n == nil {
		return otherwise
	}
	m := sizeForm.FindStringSubmatch(n.text)
	if m == nil {
		t.errorf(key, `%q is no size; write "64KiB", "64MiB" or "1GiB"`, n.text)
		return otherwise
	}
	size, _ := strconv.ParseInt(m[1], 10, 64)
	for _, u := range units {
		if u.name == m[2] {
			size *= u.octets
		}
	}
	if size < low || size > high {
		t.errorf(key, "%s is not in %s to %s", n.text, formatSize(low), formatSize(high))
		return otherwise
	}
	return size
}

func formatSize(n int64) string {
	for _, u := range units {
		if n%u.octets == 0 {
			return fmt.Sprintf("%d%s", n/u.octets, u.name)
		}
	}
	return ""
}

// path reads the name of a file or directory and makes it absolute. An empty one means that there is none.
func (t *table) path(key, otherwise string) string {
	s := t.text(key, otherwise)
	if s == "" {
		return ""
	}
	return t.absolute(s)
}

// paths reads a list of names of files and directories and makes them absolute.
func (t *table) paths(key string) []string {
	var list []string
	for _, n := range t.strings(key, nil) {
		if n.text == "" {
			t.d.errorf(n.at, "%s: an empty name", t.at(key))
			continue
		}
		list = append(list, t.absolute(n.text))
	}
	return list
}

func (t *table) absolute(p string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(t.dir, p)
}

// location reads a URL or a path.
func (t *table) location(key string) string {
	s := t.text(key, "")
	if !strings.Contains(s, "://") {
		return t.path(key, "")
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		t.errorf(key, "is no URL")
	case u.Scheme != "http" && u.Scheme != "https":
		t.errorf(key, "%s: only http and https are fetched; a file is written as its path alone", u.Scheme)
	case u.Host == "":
		t.errorf(key, "names no host")
	case u.User != nil:
		t.errorf(key, "holds a user name or password, which every status would show; a CRL is public")
	case u.Fragment != "":
		t.errorf(key, "holds a fragment (#…), which no server ever sees")
	default:
		return s
	}
	return ""
}

// listener is an address that is taken, and by which key.
type listener struct {
	address netip.AddrPort
	key     string
}

// collides reports whether the kernel would refuse to listen on both.
func (l listener) collides(a netip.AddrPort) bool {
	b := l.address
	return a.Port() != 0 && a.Port() == b.Port() && a.Addr().Is4() == b.Addr().Is4() &&
		(a.Addr() == b.Addr() || a.Addr().IsUnspecified() || b.Addr().IsUnspecified())
}

func (t *table) addresses(key string, otherwise []string, taken *[]listener) []string {
	var list []string
	for _, n := range t.strings(key, otherwise) {
		if _, ok := t.address(key, n.at, n.text, taken); ok {
			list = append(list, n.text)
		}
	}
	return list
}

// address wants an IP address, since its family decides the kind of socket.
func (t *table) address(key string, at place, s string, taken *[]listener) (netip.Addr, bool) {
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Addr().Is4In6() {
		t.d.errorf(at, `%s: %q is not ADDRESS:PORT with an IP address, such as "0.0.0.0:2560" or "[::]:2560"`, t.at(key), s)
		return netip.Addr{}, false
	}
	for _, l := range *taken {
		if l.collides(a) {
			t.d.errorf(at, "%s: %s is taken already, by %s of %s", t.at(key), s, l.address, l.key)
			return netip.Addr{}, false
		}
	}
	*taken = append(*taken, listener{a, t.at(key)})
	return a.Addr(), true
}

var credentialName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}$`)

// pin reads where the PIN is. What stands there is not printed: it could be the PIN.
func (t *table) pin(key string) string {
	s := t.text(key, "")
	if p, ok := strings.CutPrefix(s, "file:"); ok && p != "" {
		return "file:" + t.absolute(p)
	}
	if n, ok := strings.CutPrefix(s, "credential:"); ok && credentialName.MatchString(n) {
		return s
	}
	if s != "" {
		t.errorf(key, `says where the PIN is, never the PIN itself: "file:PATH", or "credential:NAME" for a systemd credential`)
	}
	return ""
}

// keyURI reads the URI of a private key.
func (t *table) keyURI(key string) (string, map[string]string) {
	uri, attrs := t.uri(key, []string{"object", "id", "token", "serial", "type"}, nil)
	if attrs == nil {
		return "", nil
	}
	if attrs["object"] == "" && attrs["id"] == "" {
		t.errorf(key, `needs object, the key's label, or id: "pkcs11:object=class1-ocsp"`)
	}
	if kind := attrs["type"]; kind != "" && kind != "private" {
		t.errorf(key, "type=%s: a private key is wanted; leave type out", kind)
	}
	return uri, attrs
}

// uri reads a PKCS#11 URI (RFC 7512) that may hold the attributes given and no others. With nil attributes there is no
// good one. No message repeats a value: it could be a PIN.
func (t *table) uri(key string, path, query []string) (string, map[string]string) {
	s := t.text(key, "")
	rest, ok := strings.CutPrefix(s, "pkcs11:")
	if !ok {
		if s != "" {
			t.errorf(key, "is no PKCS#11 URI (RFC 7512); it begins with pkcs11:")
		}
		return "", nil
	}
	if strings.Contains(rest, "pin-value") || strings.Contains(rest, "pin-source") {
		t.errorf(key, "holds a PIN or its place, and a URI is shown in statuses and reports; use pin of [token.NAME] for that")
		return "", nil
	}
	before := len(t.d.errors)
	inPath, inQuery, _ := strings.Cut(rest, "?")
	t.knownAttributes(key, inPath, ";", path)
	t.knownAttributes(key, inQuery, "&", query)
	if len(t.d.errors) > before {
		return "", nil
	}
	attrs, err := uriAttributes(s)
	if err != nil {
		t.errorf(key, "%v", err)
		return "", nil
	}
	for name, value := range attrs {
		if value == "" {
			t.errorf(key, "%s is empty", name)
		}
	}
	if len(t.d.errors) > before {
		return "", nil
	}
	return s, attrs
}

func (t *table) knownAttributes(key, attributes, separator string, known []string) {
	if attributes == "" {
		return
	}
	for _, a := range strings.Split(attributes, separator) {
		name, value, _ := strings.Cut(a, "=")
		switch {
		case name == "slot-id":
			t.errorf(key, "slot-id: slot numbers change when tokens come and go; select by token and serial")
		case !slices.Contains(known, name):
			t.errorf(key, "attribute %q does not belong here; known: %s", name, cmp.Or(strings.Join(known, ", "), "none"))
		case name == "module-path" && !strings.HasPrefix(value, "/"):
			t.errorf(key, "module-path must be absolute: the module is code, which must not depend on a directory")
		}
	}
}

// uriAttributes gives the decoded attributes of a PKCS#11 URI, as far as we know any.
func uriAttributes(s string) (map[string]string, error) {
	u := pkcs11uri.New()
	if err := u.Parse(s); err != nil {
		return nil, err
	}
	attrs := map[string]string{}
	for _, name := range []string{"token", "serial", "object", "id", "type"} {
		if v, ok := u.GetPathAttribute(name, false); ok {
			attrs[name] = v
		}
	}
	if v, ok := u.GetQueryAttribute("module-path", false); ok {
		attrs["module-path"] = v
	}
	return attrs, nil
}
