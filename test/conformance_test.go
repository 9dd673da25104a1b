// Package test holds what is tested about the project as a whole.
package test

import (
	"cmp"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write doc/conformance.md anew")

var (
	ruleID   = regexp.MustCompile(`OCSP-[A-Z]{2,3}-\d\d`)
	ruleName = regexp.MustCompile(`^(?:Test|Fuzz)([A-Z]{3})(\d\d)`)
)

// TestConformanceDocument holds doc/conformance.md to the tests: each rule in doc/conformance.tsv has a test that names it or a reason why not, and no
// test names a rule that is not there.
func TestConformanceDocument(t *testing.T) {
	rules := readRules(t)
	proofs := map[string][]string{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "demo" || d.Name() == ".git") {
			return filepath.SkipDir
		}
		for id, where := range proofsIn(t, path) {
			proofs[id] = append(proofs[id], where...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var doc strings.Builder
	doc.WriteString("# Rules, and the tests that prove them\n\nMade from doc/conformance.tsv and the tests by `go test ./test -run Conformance -update`; `./test.sh` fails when it is out of date.\n")
	section := ""
	known := map[string]bool{}
	for _, r := range rules {
		known[r.id] = true
		where := slices.Compact(slices.Sorted(slices.Values(proofs[r.id])))
		if len(where) == 0 && r.reason == "" {
			t.Errorf("%s (%s) has neither a test nor a reason", r.id, r.text)
		}
		if len(where) > 0 && strings.HasPrefix(r.reason, "later") {
			t.Errorf("%s is said to come later, and %v proves it", r.id, where)
		}
		if s := r.id[:8]; s != section {
			section = s
			doc.WriteString("\n| ID | level | rule | test, or why there is none |\n|---|---|---|---|\n")
		}
		proof := strings.Join(where, ", ")
		if proof == "" {
			proof = "*" + r.reason + "*"
		}
		fmt.Fprintf(&doc, "| %s | %s | %s | %s |\n", r.id, r.level, r.text, proof)
	}
	for id, where := range proofs {
		if section := id[:8]; !known[id] && slices.ContainsFunc(rules, func(r rule) bool { return r.id[:8] == section }) {
			t.Errorf("%s is named by %v, and doc/conformance.tsv does not know it", id, where)
		}
	}
	const file = "../doc/conformance.md"
	if *update {
		if err := os.WriteFile(file, []byte(doc.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != doc.String() {
		t.Errorf("doc/conformance.md is out of date (%v): go test ./test -run Conformance -update", err)
	}
}

type rule struct{ id, level, text, reason string }

func readRules(t *testing.T) (rules []rule) {
	b, err := os.ReadFile("../doc/conformance.tsv")
	if err != nil {
		t.Fatal(err)
	}
	for n, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		f := append(strings.Split(line, "\t"), "")
		if len(f) < 4 || len(f) > 5 || !ruleID.MatchString(f[0]) {
			t.Fatalf("doc/conformance.tsv:%d: wants ID, level, rule and, where there is no test, a reason", n+1)
		}
		rules = append(rules, rule{f[0], f[1], f[2], f[3]})
	}
	if !slices.IsSortedFunc(rules, func(a, b rule) int {
		if a.id[:8] != b.id[:8] {
			return 0
		}
		return cmp.Compare(a.id, b.id)
	}) {
		t.Error("doc/conformance.tsv: the rules of a section are not in order")
	}
	return rules
}

// proofsIn gives the rules that a file's tests name, by function where the file is Go.
func proofsIn(t *testing.T, path string) map[string][]string {
	name := filepath.ToSlash(strings.TrimPrefix(path, "../"))
	script := strings.HasSuffix(name, ".txtar") || strings.HasSuffix(name, ".sh") && strings.HasPrefix(name, "test/")
	if name == "test/conformance_test.go" || !script && !strings.HasSuffix(name, "_test.go") {
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	if script {
		for _, id := range ruleID.FindAllString(string(b), -1) {
			found[id] = append(found[id], name)
		}
		return found
	}
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, path, b, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		start, where := d.Pos(), name
		if g, ok := d.(*ast.GenDecl); ok && g.Doc != nil {
			start = g.Doc.Pos()
		}
		if fn, ok := d.(*ast.FuncDecl); ok {
			if fn.Doc != nil {
				start = fn.Doc.Pos()
			}
			where += " " + fn.Name.Name
			if m := ruleName.FindStringSubmatch(fn.Name.Name); m != nil {
				id := "OCSP-" + m[1] + "-" + m[2]
				found[id] = append(found[id], where)
			}
		}
		text := b[set.Position(start).Offset:set.Position(d.End()).Offset]
		for _, id := range ruleID.FindAllString(string(text), -1) {
			found[id] = append(found[id], where)
		}
	}
	return found
}
