package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ocspd/hardening"
	"ocspd/hsm"
)

func newTokenCmd(a *app) *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "The tokens of the configuration, and what else their modules see", Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error { return a.tokenList() },
	}
	info := &cobra.Command{
		Use: "info [NAME]", Short: "What the module says of a token; without a login", Args: args(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, names []string) error { return a.tokenInfo(only(names)) },
	}
	check := &cobra.Command{
		Use: "check [NAME]", Short: "Log in, sign with each key and verify; exit 1 when anything is wrong", Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, names []string) error { return a.tokenCheck(c.Context(), only(names)) },
	}
	var key string
	var seconds time.Duration
	bench := &cobra.Command{
		Use: "bench [NAME]", Short: "How fast the token signs, by number of sessions", Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			if seconds <= 0 || seconds > time.Hour {
				return usagef("token bench: --time %s; give 1s to 1h", seconds)
			}
			return a.tokenBench(c.Context(), only(names), key, seconds)
		},
	}
	bench.Flags().StringVar(&key, "key", "", "label of the key; needed where there are several")
	bench.Flags().DurationVar(&seconds, "time", 2*time.Second, "how long to sign with each number of sessions")
	retry := &cobra.Command{
		Use: "retry NAME", Short: "Forget that the token refused the PIN, so that the next start tries it once", Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, names []string) error { return a.tokenRetry(names[0]) },
	}
	return group("token", "PKCS#11 tokens", a.withOutput(list), a.withOutput(info), a.withOutput(check), a.withOutput(bench), a.withOutput(retry))
}

// only is the one optional argument, or "".
func only(args []string) string { return strings.Join(args, "") }

// loadTokens reads the part of the configuration that token and key verbs need.
func (a *app) loadTokens() (*config, error) {
	cfg, err := readTokens(a.configFile)
	if err != nil {
		return nil, err
	}
	if len(cfg.Tokens) == 0 {
		return nil, fmt.Errorf("%s: no [token.NAME] is configured; 'ocspd config example' shows one", cfg.File)
	}
	return cfg, nil
}

// tokenNamed is the token of that name, or the only one there is.
func tokenNamed(cfg *config, name string) (*tokenConfig, error) {
	var all []string
	for _, t := range cfg.Tokens {
		if t.Name == name || name == "" && len(cfg.Tokens) == 1 {
			return t, nil
		}
		all = append(all, t.Name)
	}
	if name == "" {
		return nil, usagef("there are several tokens; name one of %s", strings.Join(all, ", "))
	}
	return nil, fmt.Errorf("token %s is not in the configuration; there is %s", name, strings.Join(all, ", "))
}

// verbLog is for what goes on below a verb: only what a person should know.
func (a *app) verbLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// signerAccount is the user that the signer runs as, when that is another than us: we are root, the user exists, and the
// signer's folder is its own. nil means that we stay who we are, as under `ocspd serve`.
func signerAccount(cfg *config) (*syscall.Credential, *user.User, error) {
	if os.Geteuid() != 0 {
		return nil, nil, nil
	}
	u, err := user.Lookup(userSigner)
	var unknown user.UnknownUserError
	if errors.As(err, &unknown) {
		return nil, nil, nil
	} else if err != nil {
		return nil, nil, fmt.Errorf("user %s: %w", userSigner, err)
	}
	info, err := os.Stat(cfg.signerDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	} else if err != nil {
		return nil, nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, nil, err
	}
	if info.Sys().(*syscall.Stat_t).Uid != uint32(uid) {
		return nil, nil, nil
	}
	groups, err := u.GroupIds()
	if err != nil {
		return nil, nil, fmt.Errorf("groups of %s: %w", userSigner, err)
	}
	c := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	for _, g := range groups {
		n, err := strconv.ParseUint(g, 10, 32)
		if err != nil {
			return nil, nil, err
		}
		c.Groups = append(c.Groups, uint32(n))
	}
	return c, u, nil
}

// becomeSigner leaves root for the signer's user, for good, before a vendor's library is loaded: files that it makes in
// the token's folder must be the signer's, what works here must work there, and the library has no business being root.
// The user's further groups go along, since many tokens are reached by one. A sealed PIN of those tokens that are to be logged in to is unsealed
// before, since only root can.
func becomeSigner(cfg *config, login ...*tokenConfig) error {
	for _, t := range login {
		t.unseal()
	}
	c, u, err := signerAccount(cfg)
	if c == nil || err != nil {
		return err
	}
	groups := make([]int, len(c.Groups))
	for i, g := range c.Groups {
		groups[i] = int(g)
	}
	if err := errors.Join(syscall.Setgroups(groups), syscall.Setgid(int(c.Gid)), syscall.Setuid(int(c.Uid))); err != nil {
		return fmt.Errorf("become %s: %w", userSigner, err)
	}
	return os.Setenv("HOME", u.HomeDir)
}

// withToken logs in to a token for the length of f.
func (a *app) withToken(cfg *config, t *tokenConfig, f func(*hsm.Token) error) error {
	if err := hardening.NoDump(); err != nil { // before the PIN is in memory
		return err
	}
	if err := becomeSigner(cfg, t); err != nil {
		return err
	}
	token, err := openToken(cfg, t, a.verbLog())
	if err != nil {
		return err
	}
	defer token.Close()
	return f(token)
}

type tokenRow struct {
	Name  string `json:"name"` // in the configuration, or ""
	State string `json:"state"`
	*hsm.TokenInfo
}

func (a *app) tokenList() error {
	cfg, err := a.loadTokens()
	if err != nil {
		return err
	}
	if err := becomeSigner(cfg); err != nil {
		return err
	}
	type source struct{ module, initArgs string }
	var sources []source
	seen := map[source][]hsm.TokenInfo{}
	failed := map[source]error{}
	named := map[string]bool{} // by module, serial and label
	id := func(i hsm.TokenInfo) string { return i.Module + "\x00" + i.Serial + "\x00" + i.Label }
	var rows []tokenRow
	for _, t := range cfg.Tokens {
		u, err := hsm.ParseURI(t.URI)
		if err != nil {
			return fmt.Errorf("token %s: %w", t.Name, err)
		}
		s := source{u.Module, t.InitArgs}
		if _, ok := seen[s]; !ok {
			t.setEnvironment()
			seen[s], failed[s] = hsm.List(s.module, s.initArgs)
		}
		row := tokenRow{Name: t.Name, State: "not found"}
		if failed[s] != nil {
			row.State = failed[s].Error()
		}
		for _, i := range seen[s] {
			if !u.Matches(i) {
				continue
			}
			named[id(i)] = true
			if row.TokenInfo != nil {
				row.State = "ambiguous: more than one matches; add serial= to its uri"
				continue
			}
			row.State, row.TokenInfo = "ok", &i
		}
		if _, err := os.Stat(cfg.pinMarker(t.Name)); err == nil {
			row.State = "PIN refused; see that it is right, then 'ocspd token retry " + t.Name + "'"
		}
		sources = append(sources, s)
		rows = append(rows, row)
	}
	for _, s := range sources {
		for _, i := range seen[s] {
			if !named[id(i)] {
				named[id(i)] = true
				rows = append(rows, tokenRow{State: "not configured", TokenInfo: &i})
			}
		}
	}
	if a.json() {
		return a.printJSON(struct {
			V      int        `json:"v"`
			Tokens []tokenRow `json:"tokens"`
		}{1, rows})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tLABEL\tSERIAL\tMODEL\tSTATE")
	for _, r := range rows {
		name, i := r.Name, hsm.TokenInfo{Label: "-", Serial: "-", Model: "-"}
		if name == "" {
			name = "-"
		}
		if r.TokenInfo != nil {
			i = *r.TokenInfo
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", name, i.Label, i.Serial, i.Model, r.State)
	}
	return w.Flush()
}

func (a *app) tokenInfo(name string) error {
	cfg, err := a.loadTokens()
	if err != nil {
		return err
	}
	t, err := tokenNamed(cfg, name)
	if err != nil {
		return err
	}
	if err := becomeSigner(cfg); err != nil {
		return err
	}
	t.setEnvironment()
	token, err := hsm.OpenPublic(hsm.Config{Name: t.Name, URI: t.URI, InitArgs: t.InitArgs, MaxSessions: 1, Log: a.verbLog()})
	if err != nil {
		return err
	}
	defer token.Close()
	i := token.Info()
	if a.json() {
		return a.printJSON(struct {
			V    int    `json:"v"`
			Name string `json:"name"`
			hsm.TokenInfo
		}{1, t.Name, i})
	}
	sessions := "no limit said"
	if i.MaxSessions > 0 {
		sessions = fmt.Sprint(i.MaxSessions)
	}
	hardware := "no: the module does not claim a hardware slot"
	if i.HardwareSlot {
		hardware = "claimed by the module"
	}
	a.printFacts([][2]string{
		{"name", t.Name}, {"label", i.Label}, {"serial", i.Serial}, {"manufacturer", i.Manufacturer}, {"model", i.Model},
		{"hardware version", i.Hardware}, {"firmware version", i.Firmware}, {"hardware", hardware}, {"slot", i.Slot},
		{"flags", strings.Join(i.Flags, " ")}, {"most sessions", sessions},
		{"module", i.Module}, {"library", i.Library}, {"cryptoki", i.Cryptoki},
	})
	a.talk("all of this is the module's own word")
	return nil
}

// printFacts prints names and values in two columns.
func (a *app) printFacts(facts [][2]string) {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, f := range facts {
		fmt.Fprintf(w, "%s\t%s\n", f[0], f[1])
	}
	w.Flush()
}

type tokenVerdict struct {
	Name  string       `json:"name"`
	OK    bool         `json:"ok"`
	Error string       `json:"error,omitempty"`
	Keys  []keyVerdict `json:"keys"`
}

type keyVerdict struct {
	Key      string        `json:"key"` // as configured, or label and id
	Issuers  []string      `json:"issuers,omitempty"`
	OK       bool          `json:"ok"`
	Error    string        `json:"error,omitempty"`
	Findings []hsm.Finding `json:"findings"`
}

// tokenCheck uses each token as the signer would. Without a configuration that is whole it tries every key there is.
func (a *app) tokenCheck(ctx context.Context, name string) error {
	cfg, err := a.loadTokens()
	if err != nil {
		return err
	}
	tokens := cfg.Tokens
	if name != "" {
		t, err := tokenNamed(cfg, name)
		if err != nil {
			return err
		}
		tokens = []*tokenConfig{t}
	}
	whole, err := readConfig(a.configFile)
	if err != nil {
		a.talk("the configuration is not whole yet (see 'ocspd config check'), so every key on the token is tried")
	} else {
		cfg = whole
	}
	if err := becomeSigner(cfg, tokens...); err != nil { // once, for all of them
		return err
	}
	out := struct {
		V      int            `json:"v"`
		OK     bool           `json:"ok"`
		Tokens []tokenVerdict `json:"tokens"`
	}{V: 1, OK: true}
	for _, t := range tokens {
		v := tokenVerdict{Name: t.Name, OK: true, Keys: []keyVerdict{}}
		err := a.withToken(cfg, t, func(token *hsm.Token) error {
			keys, err := checkKeys(ctx, cfg, t, token)
			v.Keys = append(v.Keys, keys...)
			return err
		})
		if err != nil {
			v.OK, v.Error = false, err.Error()
		}
		for _, k := range v.Keys {
			v.OK = v.OK && k.OK
		}
		out.OK = out.OK && v.OK
		out.Tokens = append(out.Tokens, v)
	}
	if a.json() {
		if err := a.printJSON(out); err != nil {
			return err
		}
	} else {
		for _, v := range out.Tokens {
			a.printVerdict(v)
		}
	}
	if !out.OK {
		return &exitError{code: exitFailed}
	}
	return nil
}

func (a *app) printVerdict(v tokenVerdict) {
	if v.Error != "" {
		fmt.Fprintln(a.stdout, v.Error)
	}
	if v.Error == "" && len(v.Keys) == 0 {
		fmt.Fprintf(a.stdout, "token %s: ok: logged in; there is no key on it yet; make one with 'ocspd key generate'\n", v.Name)
	}
	for _, k := range v.Keys {
		what := fmt.Sprintf("token %s: key %s", v.Name, k.Key)
		if len(k.Issuers) > 0 {
			what += " of " + strings.Join(k.Issuers, ", ")
		}
		switch {
		case k.Error != "":
			fmt.Fprintf(a.stdout, "%s: %s\n", what, strings.TrimPrefix(k.Error, "token "+v.Name+": "))
		case k.OK:
			fmt.Fprintf(a.stdout, "%s: ok: signed and verified\n", what)
		default:
			fmt.Fprintf(a.stdout, "%s: signs, and must not be used as it is\n", what)
		}
		for _, f := range k.Findings {
			fmt.Fprintf(a.stdout, "%s: %s\n", what, f)
		}
	}
}

// checkKeys signs and verifies with every key that the configuration names in the token, or else with all there are.
func checkKeys(ctx context.Context, cfg *config, t *tokenConfig, token *hsm.Token) ([]keyVerdict, error) {
	var list []keyVerdict
	add := func(name string, k *hsm.Key, err error, issuers, accept []string) {
		v := keyVerdict{Key: name, Issuers: issuers, Findings: []hsm.Finding{}}
		if err == nil {
			err = k.Prove(ctx, k.Public())
		}
		if err == nil {
			v.OK = true
			var attributes hsm.Attributes
			attributes, err = k.Attributes()
			for _, f := range attributes.Findings(time.Now()) {
				f.Must = f.Must && !slices.Contains(accept, f.Name)
				v.OK = v.OK && !f.Must
				v.Findings = append(v.Findings, f)
			}
		}
		if err != nil {
			v.OK, v.Error = false, err.Error()
		}
		list = append(list, v)
	}
	named := map[string][]*issuerConfig{}
	var order []string
	for _, i := range cfg.Issuers {
		if i.Token == t.Name {
			if named[i.Key] == nil {
				order = append(order, i.Key)
			}
			named[i.Key] = append(named[i.Key], i)
		}
	}
	if len(order) == 0 {
		all, err := token.Keys()
		for _, k := range all {
			add(k.String(), k, k.Usable(), nil, nil)
		}
		return list, err
	}
	for _, uri := range order {
		var issuers, accept []string
		for n, i := range named[uri] {
			issuers = append(issuers, i.Name)
			if n == 0 {
				accept = slices.Clone(i.Accept)
			}
			accept = slices.DeleteFunc(accept, func(s string) bool { return !slices.Contains(i.Accept, s) }) // what all accept
		}
		k, err := token.Find(uri)
		add(uri, k, err, issuers, accept)
	}
	if cfg.AuditKey != "" && cfg.AuditToken == t.Name {
		k, err := token.Find(cfg.AuditKey)
		add(cfg.AuditKey, k, err, nil, cfg.AuditAccept)
	}
	return list, nil
}

func (a *app) tokenBench(ctx context.Context, name, label string, d time.Duration) error {
	cfg, err := a.loadTokens()
	if err != nil {
		return err
	}
	t, err := tokenNamed(cfg, name)
	if err != nil {
		return err
	}
	type rate struct {
		Sessions  int     `json:"sessions"`
		PerSecond float64 `json:"signatures_per_second"`
	}
	out := struct {
		V     int    `json:"v"`
		Token string `json:"token"`
		Key   string `json:"key"`
		Type  string `json:"type"`
		Rates []rate `json:"rates"`
	}{V: 1, Token: t.Name}
	ctx, stop := a.watch(ctx)
	defer stop()
	err = a.withToken(cfg, t, func(token *hsm.Token) error {
		k, err := benchKey(token, label)
		if err != nil {
			return err
		}
		out.Key, out.Type = k.Label, string(k.Algorithm())
		for n := 1; n <= token.Sessions(); n++ {
			progressOf(ctx).part(n-1, token.Sessions())
			progressOf(ctx).begin(fmt.Sprintf("%d sessions", n), 0)
			signed, took, err := k.Bench(ctx, n, d)
			if err != nil {
				return err
			}
			out.Rates = append(out.Rates, rate{n, float64(signed) / took.Seconds()})
		}
		progressOf(ctx).at("done", 1)
		return nil
	})
	stop()
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(out)
	}
	a.talk("token %s: raw C_SignInit and C_Sign with key %q (%s)", t.Name, out.Key, out.Type)
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "SESSIONS\tSIGNATURES/S\t")
	for _, r := range out.Rates {
		fmt.Fprintf(w, "%d\t%.0f\t\n", r.Sessions, r.PerSecond)
	}
	return w.Flush()
}

func benchKey(token *hsm.Token, label string) (*hsm.Key, error) {
	if label != "" {
		return token.Find(keyURI(label))
	}
	all, err := token.Keys()
	if err != nil {
		return nil, err
	}
	switch len(all) {
	case 0:
		return nil, errors.New("token bench: there is no key on the token; make one with 'ocspd key generate'")
	case 1:
		return all[0], all[0].Usable()
	}
	var labels []string
	for _, k := range all {
		labels = append(labels, k.Label)
	}
	return nil, usagef("token bench: there are several keys; name one with --key: %s", strings.Join(labels, ", "))
}

// tokenRetry removes the record of a refused PIN. It tries nothing itself: one attempt is all that it grants.
func (a *app) tokenRetry(name string) error {
	cfg, err := a.loadTokens()
	if err != nil {
		return err
	}
	t, err := tokenNamed(cfg, name)
	if err != nil {
		return err
	}
	marker := cfg.pinMarker(t.Name)
	if _, err := os.Stat(marker); errors.Is(err, fs.ErrNotExist) {
		a.printFact("unchanged", "token %s: unchanged: no refused PIN is on record", t.Name)
		return nil
	}
	r, err := a.newRecorder(cfg, "token.retry", t.Name)
	if err != nil {
		return err
	}
	if err = r.begin(); err == nil {
		if err = os.Remove(marker); err == nil {
			err = syncDir(filepath.Dir(marker))
		}
	}
	if err := r.end(err); err != nil {
		return fmt.Errorf("token retry %s: %w", t.Name, err)
	}
	a.printFact("cleared", "token %s: the next login tries the PIN again, once", t.Name)
	return nil
}
