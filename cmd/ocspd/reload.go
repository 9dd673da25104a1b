package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ocspd/audit"
	"ocspd/responder"
)

// reloadTime is how long signer and front may take to build what a configuration names.
const reloadTime = 60 * time.Second

type reloadResult struct {
	V        int      `json:"v"`
	Text     string   `json:"text"`
	Warnings []string `json:"warnings,omitempty"`
}

func newReloadCmd(a *app) *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use: "reload", Short: "Take the configuration as it is now, or refuse it and keep the old one", Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := a.load()
			if err != nil {
				a.talk("%v", err)
				return errors.New("reload: the configuration is refused; what runs keeps the one that it has")
			}
			client, err := reachKeeper(c.Context(), cfg)
			if errors.Is(err, errNoKeeper) {
				return fmt.Errorf("reload: %w; a configuration is read at every start, so start ocspd", err)
			}
			if err != nil {
				return fmt.Errorf("reload: %w", err)
			}
			defer client.close()
			var out reloadResult
			if err := client.call(c.Context(), http.MethodPost, "/reload", nil, nil, &out); err != nil {
				return err
			}
			for _, w := range out.Warnings {
				a.talk("warning: %s", w)
			}
			if a.json() {
				return a.printJSON(out)
			}
			fmt.Fprintln(a.stdout, out.Text)
			return nil
		},
	})
}

// rereadConfig reads a configuration again for a role that runs by it. The places that a process holds open cannot move under it, and what it closed at its
// start stays closed.
func (r *role) rereadConfig(old *config) (*config, error) {
	cfg, err := readConfig(old.File)
	if err != nil {
		return nil, err
	}
	if cfg.State != old.State || cfg.Run != old.Run {
		return nil, errors.New("state and run cannot change while ocspd runs; stop it, move the directories, and start it")
	}
	if (cfg.AuditKey == "") != (old.AuditKey == "") {
		return nil, errors.New("whether a key in a token signs the audit log (audit.key) cannot change while ocspd runs, which key does can; restart ocspd")
	}
	return cfg, r.walls.admit(cfg)
}

// needsRestart names what a reload leaves as it was at the start.
func needsRestart(old, now *config) (l []string) {
	for name, changed := range map[string]bool{
		"listen": !reflect.DeepEqual(old.Listen, now.Listen), "limits": old.Limits != now.Limits,
		"hardening": !reflect.DeepEqual(old.Hardening, now.Hardening), "audit": old.AuditAnswers != now.AuditAnswers,
	} {
		if changed {
			l = append(l, "["+name+"] has changed and takes effect at the next start")
		}
	}
	return l
}

// handleReload takes a new configuration in all three roles. Keeper builds what it comes to, front says whether it could take it, signer takes it, which can
// refuse it for the sake of a key, then front, then keeper itself. A refusal leaves everything as it was.
func (k *keeper) handleReload(r *http.Request) (any, error) {
	k.reloading.Lock()
	defer k.reloading.Unlock()
	ctx := context.WithoutCancel(r.Context())
	out, state, err := k.buildState()
	if err == nil {
		err = k.tellReload(ctx, out)
	}
	configured := configDetails(k.cfg.File)
	event := audit.Record{Event: "config.reload", Subject: k.cfg.File, Outcome: outcomeOK, Details: changes(k.configured, configured)}
	if err != nil {
		event.Outcome = outcomeRefused
		event.Details = append(event.Details, audit.Detail{Name: "reason", Value: cut(err.Error(), 1000)})
		k.record(ctx, event)
		return nil, fmt.Errorf("reload: refused, and the old configuration stays: %w", err)
	}
	if err := k.useState(ctx, state); err != nil {
		return nil, fmt.Errorf("reload: signer and front have the new configuration, but keeper: %w; restart ocspd", err)
	}
	k.configured = configured
	out.Text = fmt.Sprintf("reloaded: %d issuers", len(state.issuers))
	return out, k.record(ctx, event)
}

// configDetails say which configuration it was: the SHA-256 of the file and, where there are any, of what sha256sum prints for the *.toml of issuers.d when
// called there.
func configDetails(file string) []audit.Detail {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	details := []audit.Detail{{Name: "sha256", Value: fmt.Sprintf("%x", sha256.Sum256(b))}}
	issuers, err := issuerFiles(file)
	if err != nil || len(issuers) == 0 {
		return details
	}
	all := sha256.New()
	for _, f := range issuers {
		if b, err = os.ReadFile(f); err != nil {
			return details
		}
		fmt.Fprintf(all, "%x  %s\n", sha256.Sum256(b), filepath.Base(f))
	}
	return append(details, audit.Detail{Name: "issuers.d", Value: hex.EncodeToString(all.Sum(nil))})
}

func (k *keeper) buildState() (*reloadResult, *keeperState, error) {
	old := k.state.Load()
	cfg, err := k.rereadConfig(old.cfg)
	if err != nil {
		return nil, nil, err
	}
	state := &keeperState{cfg: cfg}
	for _, c := range cfg.Issuers {
		i, err := newKeptIssuer(c)
		if err != nil {
			return nil, nil, err
		}
		for _, before := range old.issuers {
			if before.issuer.ID == i.issuer.ID && before.config.Name == c.Name {
				i.standing = before.standing
			}
		}
		state.issuers = append(state.issuers, i)
	}
	return &reloadResult{V: 1, Warnings: needsRestart(k.cfg, cfg)}, state, nil
}

// tellReload waits for signer and front. One that is not there reads the configuration when it starts.
func (k *keeper) tellReload(ctx context.Context, out *reloadResult) error {
	k.reloads++
	ctx, cancel := context.WithTimeout(ctx, reloadTime)
	defer cancel()
	d := k.feed.Publish(ctx, responder.Change{Reload: true, To: k.reloads})
	for _, told := range []struct {
		role string
		err  error
	}{{"signer", d.Signer}, {"front", d.Front}} {
		switch {
		case errors.Is(told.err, responder.ErrRefused):
			return fmt.Errorf("%s: %s", told.role, strings.TrimPrefix(told.err.Error(), responder.ErrRefused.Error()+": "))
		case told.err != nil:
			out.Warnings = append(out.Warnings, fmt.Sprintf("%s %v: it reads the configuration when it starts", told.role, told.err))
		}
	}
	return nil
}

// useState follows the new sources, and makes what is in force fit. Alarms of issuers and sources end, and are raised again where they still hold.
func (k *keeper) useState(ctx context.Context, state *keeperState) error {
	old := k.state.Load()
	for n, i := range state.issuers {
		known := false
		for _, before := range old.issuers {
			known = known || before.standing == i.standing
		}
		if known {
			continue
		}
		opened, err := k.openIssuer(ctx, i.config)
		if err != nil {
			return err
		}
		state.issuers[n] = opened
	}
	for _, a := range k.alarms.list() {
		if a.Name != alarmRoleDown && a.Name != alarmAuditLog {
			k.alarms.clear(a.Name, a.Issuer)
		}
	}
	k.state.Store(state)
	if k.restart != nil {
		k.restart(state)
	}
	for _, i := range state.issuers {
		if err := k.settle(ctx, i); err != nil {
			return err
		}
	}
	return nil
}
