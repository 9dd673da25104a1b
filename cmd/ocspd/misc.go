package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/mattn/go-sqlite3"
	"github.com/spf13/cobra"

	"ocspd/audit"
	"ocspd/db"
)

// release is set when a package is built; a build from a checkout has none.
var release = ""

func version() string {
	if release != "" {
		return release
	}
	return "0.1.0-dev"
}

type versionResult struct {
	V       int      `json:"v"`
	Version string   `json:"version"`
	Go      string   `json:"go"`
	SQLite  string   `json:"sqlite"`
	Modules []module `json:"modules"`
}

type module struct {
	Path    string `json:"path"`
	Version string `json:"version"`
	Sum     string `json:"sum"`
}

func newVersionCmd(a *app) *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use: "version", Short: "Version of ocspd, of Go, of SQLite and of every module in the binary", Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			sqlite, _, _ := sqlite3.Version()
			v := versionResult{V: 1, Version: version(), Go: runtime.Version(), SQLite: sqlite, Modules: []module{}}
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, d := range info.Deps {
					v.Modules = append(v.Modules, module{d.Path, d.Version, d.Sum})
				}
			}
			if a.json() {
				return a.printJSON(v)
			}
			fmt.Fprintf(a.stdout, "ocspd %s, %s, SQLite %s, %d modules\n", v.Version, v.Go, v.SQLite, len(v.Modules))
			return nil
		},
	})
}

// dbResult is what the verbs on the database say.
type dbResult struct {
	V        int      `json:"v"`
	Text     string   `json:"text"`
	Problems []string `json:"problems,omitempty"`
}

func newDBCmd(a *app) *cobra.Command {
	check := &cobra.Command{
		Use: "check", Short: "Read the whole database and the generation files and say what is wrong", Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			var out dbResult
			if err := a.controlled(c.Context(), http.MethodGet, "/db/check", nil, nil, &out); err != nil {
				return err
			}
			if err := a.printDB(&out); err != nil || len(out.Problems) == 0 {
				return err
			}
			return fmt.Errorf("db check: %d problems; 'ocspd db restore' puts a backup in place", len(out.Problems))
		},
	}
	backup := &cobra.Command{
		Use: "backup FILE", Short: "Write a checked copy of the database while work goes on", Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			file, err := filepath.Abs(files[0])
			if err != nil {
				return err
			}
			var out dbResult
			if err := a.controlled(c.Context(), http.MethodPost, "/db/backup", url.Values{"file": {file}}, nil, &out); err != nil {
				return err
			}
			return a.printDB(&out)
		},
	}
	restore := &cobra.Command{
		Use: "restore FILE", Short: "Put a backup in place of the database; keeper must not run", Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			file, err := filepath.Abs(files[0])
			if err == nil {
				err = restoreDatabase(c.Context(), cfg, file, newLogger(a.stderr, "restore"))
			}
			if err != nil {
				return fmt.Errorf("db %w", err)
			}
			return a.printDB(&dbResult{V: 1, Text: "restored from " + file + "; what came into force after that backup has to be brought in again: 'ocspd crl fetch' reads the sources, revocations by hand are yours to repeat"})
		},
	}
	return group("db", "The database of revocation data", a.withOutput(check), a.withOutput(backup), a.withOutput(restore))
}

// restoreDatabase puts a backup in place and makes generations of it with numbers above all that were ever in force, since signer refuses to go back.
func restoreDatabase(ctx context.Context, cfg *config, file string, log *slog.Logger) error {
	if c, err := reachKeeper(ctx, cfg); err == nil {
		c.close()
		return errors.New("restore: keeper runs; stop ocspd first")
	}
	if err := becomeOwner(cfg.State); err != nil {
		return err
	}
	unlock, err := lockState(ctx, cfg.keeperDir(), lockPatience)
	if err != nil {
		return err
	}
	err = restoreLocked(ctx, cfg, file, log)
	unlock()
	if err != nil {
		return err
	}
	k, err := openKeeper(ctx, cfg, log, lockPatience)
	if err != nil {
		return err
	}
	defer k.close()
	return k.record(ctx, audit.Record{Event: "db.restore", Actor: ownName(), Outcome: outcomeOK, Details: []audit.Detail{{Name: "file", Value: file}}})
}

func restoreLocked(ctx context.Context, cfg *config, file string, log *slog.Logger) error {
	if err := db.Restore(ctx, file, cfg.database()); err != nil {
		return err
	}
	store, err := db.Open(ctx, cfg.database(), log)
	if err != nil {
		return err
	}
	defer store.Close()
	issuers, err := store.Issuers(ctx)
	if err != nil {
		return err
	}
	for _, i := range issuers {
		if err := store.Raise(ctx, i.ID, highestGeneration(cfg.generations(), i.Name)); err != nil {
			return err
		}
	}
	return nil
}

// highestGeneration is the greatest number of an issuer's generation files.
func highestGeneration(dir, name string) (highest uint64) {
	files, _ := filepath.Glob(filepath.Join(dir, name+".*.gen"))
	for _, f := range files {
		middle := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), name+"."), ".gen")
		if n, err := strconv.ParseUint(middle, 10, 64); err == nil {
			highest = max(highest, n)
		}
	}
	return highest
}

func (a *app) printDB(r *dbResult) error {
	if a.json() {
		return a.printJSON(r)
	}
	fmt.Fprintln(a.stdout, r.Text)
	for _, p := range r.Problems {
		fmt.Fprintf(a.stdout, "  %s\n", p)
	}
	return nil
}

func (k *keeper) handleCheck(r *http.Request) (any, error) {
	problems, err := k.store.Check(r.Context())
	if err != nil {
		return nil, fmt.Errorf("db check: %w", err)
	}
	for _, i := range k.issuers() {
		if i.inForce() == 0 {
			continue
		}
		if err := k.checkFiles(i); err != nil {
			problems = append(problems, err.Error())
		}
	}
	out := dbResult{V: 1, Text: "the database is whole, and so are the generation files", Problems: problems}
	if len(problems) > 0 {
		out.Text = "database or generation files are damaged"
	}
	return out, nil
}

func (k *keeper) handleBackup(r *http.Request) (any, error) {
	file := r.URL.Query().Get("file")
	if err := k.store.Backup(r.Context(), file); err != nil {
		return nil, fmt.Errorf("db backup %s: %w", file, err)
	}
	return dbResult{V: 1, Text: "written and checked: " + file}, nil
}
