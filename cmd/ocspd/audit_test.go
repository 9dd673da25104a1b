package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ocspd/audit"
)

// auditFixture is a configuration whose keeper has a log of three records.
func auditFixture(t *testing.T) (configFile, dir, public string) {
	t.Helper()
	root := t.TempDir()
	dir = filepath.Join(root, "state", "keeper", "log")
	signer, public, err := audit.LoadOrCreateKey(filepath.Join(root, "audit.key"), "example.org/keeper")
	if err != nil {
		t.Fatal(err)
	}
	l, err := audit.Open(dir, signer, public, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range 3 {
		_, err := l.Append(context.Background(), audit.Record{
			Time: time.Date(2026, 3, 1, 12, 0, i, 0, time.UTC), Event: "crl.import", Actor: "uid 0", Subject: "class1", Outcome: "ok",
			Details: []audit.Detail{{Name: "number", Value: fmt.Sprint(i)}, {Name: "note", Value: "two words\x1b[2J"}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	configFile = filepath.Join(root, "ocspd.toml")
	if err := os.WriteFile(configFile, []byte("state = \"state\"\nrun = \"run\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return configFile, dir, public
}

// runAudit runs an audit verb and gives its exit code, its result and its talk.
func runAudit(argv ...string) (int, string, string) {
	var stdout, stderr bytes.Buffer
	code := run(append([]string{"audit"}, argv...), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func TestAuditShow(t *testing.T) {
	config, dir, _ := auditFixture(t)
	code, out, _ := runAudit("show", "-c", config, "--since", "1")
	want := `ENTRY  TIME                  EVENT       OUTCOME  ACTOR  SUBJECT  DETAILS
1      2026-03-01T12:00:01Z  crl.import  ok       uid 0  class1   number=1 note="two words\x1b[2J"
2      2026-03-01T12:00:02Z  crl.import  ok       uid 0  class1   number=2 note="two words\x1b[2J"
`
	if code != 0 || out != want {
		t.Errorf("exit %d\n%s", code, out)
	}
	code, out, _ = runAudit("show", "-c", config, "-o", "json")
	var shown struct {
		V, Size int
		Records []struct {
			Seq     int
			Event   string
			Details map[string]string
		}
	}
	if err := json.Unmarshal([]byte(out), &shown); err != nil || code != 0 || !strings.HasPrefix(out, `{"v":1,`) {
		t.Fatalf("exit %d, %v\n%s", code, err, out)
	}
	if shown.Size != 3 || len(shown.Records) != 3 || shown.Records[2].Seq != 2 || shown.Records[2].Details["number"] != "2" {
		t.Errorf("%+v", shown)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if code, _, talk := runAudit("show", "-c", config); code != 1 || !strings.Contains(talk, "keeper begins the log at its first start") {
		t.Errorf("without a log: exit %d, %s", code, talk)
	}
}

// An export is proven with a key kept elsewhere; an edit, and a log that was cut after a head was taken, are found.
func TestAuditVerify(t *testing.T) {
	config, dir, public := auditFixture(t)
	work := t.TempDir()
	key, head, copied := filepath.Join(work, "key.pub"), filepath.Join(work, "head"), filepath.Join(work, "copy")
	if err := os.WriteFile(key, []byte(public), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, _ := runAudit("witness", "-c", config)
	if code != 0 || !strings.HasPrefix(out, "example.org/keeper\n3\n") {
		t.Fatalf("witness: exit %d\n%s", code, out)
	}
	if err := os.WriteFile(head, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, talk := runAudit("export", "-c", config, copied); code != 0 || !strings.Contains(out, "proven entries: 0 to 2\n") {
		t.Fatalf("export: exit %d\n%s%s", code, out, talk)
	}
	if code, _, talk := runAudit("export", "-c", config, copied); code != 1 || !strings.Contains(talk, "file exists") {
		t.Errorf("export over another: exit %d, %s", code, talk)
	}
	if code, _, talk := runAudit("verify", "-c", config); code != 0 || !strings.Contains(talk, "what this cannot show") {
		t.Errorf("verify the own log: exit %d, %s", code, talk)
	}
	if code, _, talk := runAudit("verify", copied, "--key", key, "--witness", head); code != 0 || talk != "" {
		t.Errorf("verify the copy: exit %d, %s", code, talk)
	}
	if code, _, talk := runAudit("verify", copied); code != exitUsage || !strings.Contains(talk, "--key is missing") {
		t.Errorf("verify a folder without a key: exit %d, %s", code, talk)
	}

	tile := filepath.Join(copied, "tile", "entries", "000.p", "3")
	b, err := os.ReadFile(tile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tile, bytes.Replace(b, []byte("12:00:01"), []byte("12:00:09"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, talk := runAudit("verify", copied, "--key", key, "--witness", head)
	if code != 1 || !strings.Contains(out, "entry 1: is not what was recorded") || !strings.Contains(out, "proven entries: 0, 2\n") {
		t.Errorf("verify an edited copy: exit %d\n%s%s", code, out, talk)
	}
	code, out, _ = runAudit("verify", copied, "--key", key, "-o", "json")
	var report struct {
		V    int
		OK   bool
		Logs []struct {
			Judged, OK bool
			Proven     []struct{ First, Last int }
			Faults     []struct {
				Entries *struct{ First, Last int }
				Text    string
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatal(err)
	}
	if code != 1 || report.V != 1 || report.OK || len(report.Logs) != 1 {
		t.Fatalf("exit %d, %+v", code, report)
	}
	if l := report.Logs[0]; !l.Judged || l.OK || len(l.Proven) != 2 || len(l.Faults) != 1 || l.Faults[0].Entries.First != 1 {
		t.Errorf("%+v", l)
	}

	// Truncation shows against the head kept elsewhere alone: the log begins anew with its own key.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	signer, public, err := audit.LoadOrCreateKey(filepath.Join(filepath.Dir(config), "audit.key"), "example.org/keeper")
	if err != nil {
		t.Fatal(err)
	}
	l, err := audit.Open(dir, signer, public, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if code, out, _ := runAudit("verify", "-c", config, "--witness", head); code != 1 || !strings.Contains(out, "the log was cut: it has 0 entries, and had 3") {
		t.Errorf("verify a log begun anew: exit %d\n%s", code, out)
	}
}
