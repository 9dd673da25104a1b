package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// allowedImports are the rules of who may import whom, for our own packages. Where the packages meet, in cmd/ocspd, everything is allowed; what
// no rule names is an error, so that a new package has to be thought about here.
var allowedImports = map[string][]string{
	"ocspd/pki":        nil,
	"ocspd/ingest":     {"ocspd/pki"},
	"ocspd/db":         {"ocspd/pki"},
	"ocspd/generation": {"ocspd/pki"},
	"ocspd/responder":  {"ocspd/pki"},
	"ocspd/hsm":        nil,
	"ocspd/audit":      nil,
	"ocspd/hardening":  nil,
	"ocspd/systemd":    nil,
	"ocspd/cmd/ocspd": {"ocspd/pki", "ocspd/ingest", "ocspd/db", "ocspd/generation", "ocspd/responder", "ocspd/hsm", "ocspd/audit",
		"ocspd/hardening", "ocspd/systemd"},
}

// usesCgo are our packages that hold C, or are made of it: the module of a token, and SQLite.
var usesCgo = []string{"ocspd/db", "ocspd/hsm"}

// goPackage is what `go list -json` says of a package.
type goPackage struct {
	ImportPath string
	Standard   bool
	Imports    []string
	CgoFiles   []string
	Deps       []string
}

func goList(t *testing.T, argv ...string) map[string]goPackage {
	t.Helper()
	c := exec.Command("go", append([]string{"list", "-json=ImportPath,Standard,Imports,CgoFiles,Deps"}, argv...)...)
	c.Dir = "../.."
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("go list %v: %v\n%s", argv, err, stderr.String())
	}
	all := map[string]goPackage{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
	}
}

func ours(path string) bool { return path == "ocspd" || strings.HasPrefix(path, "ocspd/") }

func TestImportRules(t *testing.T) {
	own := goList(t, "./...")
	for path := range allowedImports {
		if _, ok := own[path]; !ok {
			t.Errorf("%s is named in the rules and does not exist", path)
		}
	}
	all := goList(t, "-deps", "./...")
	// holdsC reports whether a package needs C by itself or by way of another that is not ours; what net and os/user hold is of
	// no interest, since they do without.
	holdsC := func(p goPackage) bool {
		if len(p.CgoFiles) > 0 {
			return true
		}
		return slices.ContainsFunc(p.Deps, func(d string) bool {
			q := all[d]
			return !q.Standard && !ours(d) && len(q.CgoFiles) > 0
		})
	}
	for path, p := range own {
		if path == "ocspd/test" || strings.HasPrefix(path, "ocspd/test/") {
			continue // trials, which ship with nothing: no rule allows anybody to import them
		}
		allowed, ruled := allowedImports[path]
		if !ruled {
			t.Errorf("%s: no rule says what it may import", path)
			continue
		}
		for _, i := range p.Imports {
			if ours(i) && !slices.Contains(allowed, i) {
				t.Errorf("%s imports %s, and must not", path, i)
			}
			if path == "ocspd/pki" && !all[i].Standard {
				t.Errorf("%s imports %s, which is not of the standard library", path, i)
			}
		}
		if want := slices.Contains(usesCgo, path); path != "ocspd/cmd/ocspd" && holdsC(p) != want {
			t.Errorf("%s uses cgo: %v, want %v", path, holdsC(p), want)
		}
	}
	if len(all["ocspd/cmd/ocspd"].CgoFiles) > 0 {
		t.Error("cmd/ocspd holds C of its own")
	}
}

// What front is made of, and what parses strangers' octets, needs no C.
func TestBuildsWithoutCgo(t *testing.T) {
	c := exec.Command("go", "build", "./responder", "./pki", "./ingest", "./generation")
	c.Dir, c.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
