package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/mattn/go-sqlite3"
	"github.com/spf13/cobra"

	"ocspd/audit"
	"ocspd/db"
	"ocspd/ingest"
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

// newDBCmd also leads to backup and restore, which are verbs of their own: whoever looks for them by their subject finds them.
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
			return fmt.Errorf("db check: %d problems; 'ocspd restore' puts a backup in place", len(out.Problems))
		},
	}
	return group("db", "The database of revocation data", a.withOutput(check), newBackupCmd(a), newRestoreCmd(a))
}

func newBackupCmd(a *app) *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use: "backup FILE", Short: "Write a checked copy of the database while work goes on", Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			file, err := filepath.Abs(files[0])
			if err != nil {
				return err
			}
			cfg, err := a.load()
			if err == nil {
				ctx, stop := a.watch(c.Context())
				err = a.backup(ctx, cfg, file)
				stop()
			}
			if err != nil {
				return err
			}
			return a.printDB(&dbResult{V: 1, Text: "written and checked: " + file})
		},
	})
}

// backup writes the copy itself: a keeper that runs can write to no folder but its own, and sends it. It takes its name only when it was checked.
func (a *app) backup(ctx context.Context, cfg *config, file string) error {
	if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("backup %s: exists already; name another file", file)
	}
	c, err := a.control(ctx, cfg)
	if err != nil {
		return err
	}
	defer c.close()
	aside, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if err != nil {
		return fmt.Errorf("backup %s: %w", file, err)
	}
	defer os.Remove(aside.Name())
	defer aside.Close()
	progress := progressOf(ctx)
	progress.part(0, 2)
	resp, err := c.do(ctx, http.MethodPost, "/db/backup", nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	progress.part(1, 2)
	_, err = io.Copy(aside, progress.arriving(resp.Body, resp.ContentLength))
	if err == nil {
		err = aside.Sync()
	}
	if err == nil {
		err = db.CheckFile(ctx, aside.Name())
	}
	if err == nil {
		err = os.Rename(aside.Name(), file)
	}
	if err == nil {
		err = syncDir(filepath.Dir(file))
	}
	if err != nil {
		return fmt.Errorf("backup %s: %w", file, err)
	}
	progress.at("done", 1)
	return nil
}

func newRestoreCmd(a *app) *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use: "restore FILE", Short: "Put a backup in place of the database; keeper must not run", Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			file, err := filepath.Abs(files[0])
			if err != nil {
				return err
			}
			ctx, stop := a.watch(c.Context())
			lost, err := restoreDatabase(ctx, cfg, file, newLogger(a.stderr, "restore"))
			stop()
			if err != nil {
				return err
			}
			return a.printDB(&dbResult{V: 1, Text: "restored from " + file + "; what came into force after that backup has to be brought in again: 'ocspd crl fetch' reads the sources, revocations by hand are yours to repeat",
				Problems: lost})
		},
	})
}

// restoreDatabase puts a backup in place and makes generations of it. It names the revocations by hand that were in force and are not in the backup, as
// far as the database that stood there can be read.
func restoreDatabase(ctx context.Context, cfg *config, file string, log *slog.Logger) (lost []string, err error) {
	if c, err := reachKeeper(ctx, cfg); err == nil {
		c.close()
		return nil, errors.New("restore: keeper runs; stop ocspd first")
	}
	actor := ownName()
	if err := becomeOwner(cfg.keeperDir(), cfg.State); err != nil {
		return nil, err
	}
	unlock, err := lockState(ctx, cfg.keeperDir(), lockPatience)
	if err != nil {
		return nil, err
	}
	before, unread := handMadeIn(ctx, cfg.database(), log)
	err = db.Restore(ctx, file, cfg.database())
	unlock()
	if err != nil {
		return nil, err
	}
	progressOf(ctx).begin("putting in force", 0)
	k, err := openKeeper(ctx, cfg, log, lockPatience)
	if err != nil {
		return nil, err
	}
	defer k.close()
	progressOf(ctx).at("done", 1)
	after, err := handMade(ctx, k.store)
	if err != nil {
		return nil, err
	}
	if unread != nil {
		lost = append(lost, fmt.Sprintf("which revocations by hand the backup lacks cannot be told: %v; 'ocspd audit show' lists them", unread))
	}
	for _, command := range slices.Sorted(maps.Keys(before)) {
		if !after[command] {
			lost = append(lost, "no longer in force; repeat it if it still holds: "+command)
		}
	}
	return lost, k.record(ctx, audit.Record{Event: "db.restore", Actor: actor, Outcome: outcomeOK, Details: []audit.Detail{
		{Name: "file", Value: file}, {Name: "revocations by hand that it lacks", Value: fmt.Sprint(len(lost))}}})
}

func handMadeIn(ctx context.Context, path string, log *slog.Logger) (map[string]bool, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	store, err := db.Open(ctx, path, log)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	return handMade(ctx, store)
}

// handMade are the revocations by hand of all issuers, each as the command that makes it.
func handMade(ctx context.Context, store *db.Store) (map[string]bool, error) {
	issuers, err := store.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	made := map[string]bool{}
	for _, i := range issuers {
		entries, err := store.Hand(ctx, i.ID)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			command := fmt.Sprintf("ocspd revoke %s 0x%s --reason %s --date %s", i.Name, e.Serial, e.Reason, e.RevokedAt.UTC().Format(time.RFC3339))
			if !e.Invalidity.IsZero() {
				command += " --invalidity " + e.Invalidity.UTC().Format(time.RFC3339)
			}
			made[command] = true
		}
	}
	return made, nil
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
	progressOf(r.Context()).begin("checking files", 0)
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

// handleBackup makes a checked copy in keeper's folder and sends it.
func (k *keeper) handleBackup(w http.ResponseWriter, r *http.Request) {
	file := filepath.Join(k.cfg.keeperDir(), "spool", fmt.Sprintf("%sbackup-%d", ingest.SpoolPrefix, time.Now().UnixNano())) // what is left there, the next start removes
	var err error
	reported(w, r, func(r *http.Request) { err = k.store.Backup(r.Context(), file) })
	if err != nil {
		writeControlError(w, err)
		return
	}
	defer os.Remove(file)
	f, err := os.Open(file)
	if err != nil {
		writeControlError(w, fmt.Errorf("backup: %w", err))
		return
	}
	defer f.Close()
	http.ServeContent(w, r, "", time.Time{}, f)
}
