// Command ocspd is an OCSP responder (RFC 6960) whose keys stay in a PKCS#11 token. One binary plays three roles,
// each a process of its own: front talks to strangers, signer holds the token, keeper holds the revocation data.
// This package is the only place where the other packages meet: a file per role and per group of verbs.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// Exit codes of the contract.
const (
	exitFailed    = 1
	exitUsage     = 2
	exitTokenLost = 75 // a role: the token went away; start it again
	exitPIN       = 77 // a role: the token refused the PIN; starting it again could lock the token
)

// exitError is an error that asks for an exit code of its own. With no err, nothing more is printed.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// app is what every verb shares.
type app struct {
	configFile string
	output     string // "" for people, "json"
	stdout     io.Writer
	stderr     io.Writer
}

// load reads the configuration; its errors are ready to print.
func (a *app) load() (*config, error) { return readConfig(a.configFile) }

// json reports whether the verb's result is wanted as JSON.
func (a *app) json() bool { return a.output == "json" }

// printJSON writes a result; v must put "v": 1 first.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// fact is what a verb says that did, or found, one thing.
type fact struct {
	V      int    `json:"v"`
	Result string `json:"result"` // one word
	Text   string `json:"text"`
}

// printFact does not fail: what was done is done, whether or not somebody reads of it.
func (a *app) printFact(result, format string, args ...any) {
	f := fact{1, result, fmt.Sprintf(format, args...)}
	if a.json() {
		a.printJSON(f)
	} else {
		fmt.Fprintln(a.stdout, f.Text)
	}
}

// talk is for people who watch; results go to stdout.
func (a *app) talk(format string, args ...any) { fmt.Fprintf(a.stderr, format+"\n", args...) }

// withOutput gives a verb the flag -o json.
func (a *app) withOutput(c *cobra.Command) *cobra.Command {
	c.Flags().StringVarP(&a.output, "output", "o", "", "json prints the result as JSON")
	inner := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if a.output != "" && a.output != "json" {
			return usagef("-o %s: only json is known here", a.output)
		}
		return inner(cmd, args)
	}
	return c
}

// group is a verb that only leads to others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short}
	c.AddCommand(subs...)
	return leading(c)
}

// leading makes it a usage error to call c itself and none of those below it.
func leading(c *cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("%s: unknown verb %q; see '%s --help'", c.CommandPath(), args[0], c.CommandPath())
		}
		return usagef("%s: a verb is missing; see '%s --help'", c.CommandPath(), c.CommandPath())
	}
	return c
}

// args wraps a check of the number of arguments, so that a wrong one is a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, a []string) error {
		if err := check(c, a); err != nil {
			return usagef("%s: called with %d arguments; it is: %s", c.CommandPath(), len(a), c.UseLine())
		}
		return nil
	}
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(argv []string, stdout, stderr io.Writer) int {
	root := newRoot(&app{stdout: stdout, stderr: stderr})
	root.SetArgs(argv)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.Execute(); err != nil {
		return complain(stderr, err)
	}
	return 0
}

// complain prints an error and returns the exit code that goes with it.
func complain(w io.Writer, err error) int {
	code := exitFailed
	var e *exitError
	if errors.As(err, &e) {
		code = e.code
		if e.err == nil {
			return code
		}
	}
	var positioned *configError
	if errors.As(err, &positioned) {
		fmt.Fprintln(w, err) // already in the form file:line:col: error: …
		return code
	}
	text := err.Error()
	if !strings.HasPrefix(text, "ocspd") {
		text = "ocspd: " + text
	}
	fmt.Fprintln(w, text)
	return code
}

func newRoot(a *app) *cobra.Command {
	root := group("ocspd", "An OCSP responder whose keys stay in a PKCS#11 token")
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = false
	root.PersistentFlags().StringVarP(&a.configFile, "config", "c", defaultConfig, "configuration file")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%s: %v; see '%s --help'", c.CommandPath(), err, c.CommandPath())
	})
	root.AddCommand(
		newServeCmd(a),
		newRoleCmd(a, "front", "Run the role that speaks HTTP to clients", runFront),
		newRoleCmd(a, "signer", "Run the role that holds the token and signs", runSigner),
		newRoleCmd(a, "keeper", "Run the role that keeps the revocation data", runKeeper),
		newConfigCmd(a), newIssuerCmd(a), newTokenCmd(a), newKeyCmd(a),
		newCRLCmd(a), newIndexCmd(a), newRevokeCmd(a), newUnrevokeCmd(a), newLookupCmd(a),
		newStatusCmd(a), newQueryCmd(a), newCheckCmd(a), newAuditCmd(a), newCustodyCmd(a), newAcceptCmd(a), newDBCmd(a), newBackupCmd(a), newRestoreCmd(a), newReloadCmd(a), newVersionCmd(a), newManCmd(a), newDialCmd(),
	)
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" { // cobra's own shows its help and is content, whatever shell is named
			leading(c)
		}
	}
	return root
}
