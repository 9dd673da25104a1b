package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// The man pages are made of the texts that the program shows anyway, so that they cannot say something else: ocspd(1) of the verbs' help, ocspd.toml(5) of
// `config example`. The package is built with what this hidden verb prints.

func newManCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "man ocspd|ocspd.toml", Short: "Print a man page", Hidden: true, Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, pages []string) error {
			switch pages[0] {
			case "ocspd":
				manOfVerbs(a.stdout, c.Root())
			case "ocspd.toml":
				manOfConfig(a.stdout, exampleConfig)
			default:
				return usagef("man: there is no page %q; there are ocspd and ocspd.toml", pages[0])
			}
			return nil
		},
	}
}

// roff keeps a text from being taken for roff's own.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`, `"`, `\(dq`).Replace(s)
	if strings.HasPrefix(s, ".") {
		s = `\&` + s
	}
	return s
}

func manHead(w io.Writer, name string, section int, what string) {
	fmt.Fprintf(w, ".TH %s %d \"\" \"ocspd %s\"\n.SH NAME\n%s \\- %s\n", strings.ToUpper(name), section, roff(version()), roff(name), roff(what))
}

func manOfVerbs(w io.Writer, root *cobra.Command) {
	manHead(w, "ocspd", 1, "an OCSP responder whose keys stay in a PKCS#11 token")
	fmt.Fprintf(w, ".SH SYNOPSIS\n.B ocspd\n.RB [ \\-c\n.IR FILE ]\n.I verb\n.RI [ argument \" ...]\"\n")
	fmt.Fprint(w, ".SH DESCRIPTION\n")
	manText(w, "ocspd answers, signed, whether certificates are still good (RFC 6960). Three roles, each a process of its own, do that: front speaks to clients and has no key, "+
		"no PIN and no data; signer holds the token and has no network; keeper reads what CAs publish. Under systemd they are ocspd-front.service, ocspd-signer.service and "+
		"ocspd-keeper.service, all together ocspd.target. The other verbs look after keys and data, and ask how things are. "+
		"Those that change data are done by keeper, where it runs; whoever calls them is root or a member of the group ocspd-admin.",
		"A serial is hex, with or without 0x and colons; digits alone are ambiguous and need 0x or dec: before them; the name of a file is a certificate's. "+
			"With -o json a verb prints its result as JSON, which begins with its version, \"v\": 1. Without, what takes longer than two seconds draws a progress bar "+
			"where standard error is a terminal.")
	fmt.Fprint(w, ".SH VERBS\n")
	manVerbs(w, root)
	fmt.Fprint(w, ".SH OPTIONS\n")
	manFlags(w, root.PersistentFlags().FlagUsages())
	fmt.Fprint(w, ".SH EXIT STATUS\n")
	manText(w, "0: done. 1: failed. 2: called the wrong way. A role also ends with 75, the token went away and a new process may find it again, or 77, the token refused the PIN and nothing "+
		"tries it again before 'ocspd token retry NAME'. check ends as a monitoring plugin does: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.")
	fmt.Fprint(w, ".SH FILES\n")
	for _, f := range [][2]string{
		{defaultConfig, "the configuration, see ocspd.toml(5); issuers.d/*.toml beside it hold more issuers"},
		{"/var/lib/ocspd/keeper", "database and log of keeper"},
		{"/var/lib/ocspd/gen", "generation files: the statuses in force, made by keeper and read by signer"},
		{"/var/lib/ocspd/signer", "highwater and log of signer; pin-refused.NAME after a refused PIN"},
		{"/run/ocspd", "sockets between the roles; keeper.sock is for the verbs"},
		{"/etc/credstore.encrypted/ocspd.pin", "the PIN for pin = \"credential:pin\", made by systemd-creds encrypt --name=pin"},
		{"/var/backups/ocspd", "nightly copies of the database, the newest 14"},
	} {
		fmt.Fprintf(w, ".TP\n.I %s\n%s\n", roff(f[0]), roff(f[1]))
	}
	fmt.Fprint(w, ".SH SEE ALSO\n.BR ocspd.toml (5),\n.BR systemd\\-creds (1),\n.BR openssl\\-ocsp (1),\n/usr/share/doc/ocspd/install.md\n")
}

// manVerbs lists the verbs below a command, each with its flags.
func manVerbs(w io.Writer, c *cobra.Command) {
	for _, sub := range c.Commands() {
		switch {
		case sub.Hidden || sub.Name() == "help":
		case sub.HasSubCommands():
			manVerbs(w, sub)
		default:
			path := strings.TrimSuffix(sub.CommandPath(), sub.Name())
			fmt.Fprintf(w, ".TP\n.B %s\n%s\n", roff(strings.TrimPrefix(path, "ocspd ")+sub.Use), roff(sub.Short))
			manFlags(w, sub.LocalNonPersistentFlags().FlagUsages())
		}
	}
}

// manFlags are printed as the help prints them.
func manFlags(w io.Writer, usages string) {
	if usages = strings.TrimRight(usages, "\n"); usages == "" {
		return
	}
	fmt.Fprint(w, ".RS\n.nf\n")
	for line := range strings.Lines(usages) {
		fmt.Fprintln(w, roff(strings.TrimRight(line, "\n")))
	}
	fmt.Fprint(w, ".fi\n.RE\n")
}

func manText(w io.Writer, paragraphs ...string) {
	for i, p := range paragraphs {
		if i > 0 {
			fmt.Fprintln(w, ".PP")
		}
		fmt.Fprintln(w, roff(p))
	}
}

// manOfConfig makes a page of the example: comments become text, tables headings, and keys entries with the value that they have there.
func manOfConfig(w io.Writer, example string) {
	manHead(w, "ocspd.toml", 5, "the configuration of ocspd")
	fmt.Fprint(w, ".SH DESCRIPTION\n")
	var text []string // of the comment above
	flush := func(paragraph string) {
		for i, line := range text {
			if strings.HasPrefix(line, "Attacker: ") && i > 0 {
				fmt.Fprintln(w, paragraph)
			}
			fmt.Fprintln(w, roff(line))
		}
		text = nil
	}
	for line := range strings.Lines(example) {
		line = strings.TrimSpace(line)
		comment, isComment := strings.CutPrefix(line, "#")
		switch {
		case isComment:
			text = append(text, strings.TrimSpace(comment))
		case line == "":
			flush(".PP")
		case strings.HasPrefix(line, "["):
			fmt.Fprintf(w, ".SH %s\n", roff(line))
			flush(".PP")
		default:
			fmt.Fprintf(w, ".TP\n.B %s\n", roff(line))
			flush(".IP")
		}
	}
	fmt.Fprint(w, ".SH SEE ALSO\n.BR ocspd (1)\n")
}
