package main

import (
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// place is where something stands in a file; line and column count from 1, columns in octets.
type place struct {
	file      string
	line, col int
}

func (p place) String() string { return fmt.Sprintf("%s:%d:%d", p.file, p.line, p.col) }

type diagnostic struct {
	at   place
	text string
}

// diagnostics collects what is wrong, so that all of it can be told at once.
type diagnostics struct {
	errors, warnings []diagnostic
}

func (d *diagnostics) errorf(at place, format string, args ...any) {
	d.errors = append(d.errors, diagnostic{at, fmt.Sprintf(format, args...)})
}

func (d *diagnostics) warnf(at place, format string, args ...any) {
	d.warnings = append(d.warnings, diagnostic{at, fmt.Sprintf(format, args...)})
}

// err is nil when nothing is wrong.
func (d *diagnostics) err() error {
	if len(d.errors) == 0 {
		return nil
	}
	return &configError{lines("error", d.errors)}
}

// lines puts diagnostics into the form that compilers use, in the order of the files.
func lines(kind string, list []diagnostic) []string {
	sort.Slice(list, func(i, j int) bool {
		a, b := list[i].at, list[j].at
		if a.file != b.file {
			return a.file < b.file
		}
		if a.line != b.line {
			return a.line < b.line
		}
		if a.col != b.col {
			return a.col < b.col
		}
		return list[i].text < list[j].text
	})
	var out []string
	for _, x := range list {
		out = append(out, fmt.Sprintf("%v: %s: %s", x.at, kind, x.text))
	}
	return out
}

// configError is everything that is wrong with a configuration.
type configError struct {
	lines []string // each "file:line:col: error: …"
}

func (e *configError) Error() string { return strings.Join(e.lines, "\n") }

// node is a TOML value that knows where it stands.
type node struct {
	at      place
	kind    unstable.Kind // a table of any spelling is a Table, an array of tables an ArrayTable
	text    string        // of a String its value, of another scalar what was written
	items   []*node       // of an Array or ArrayTable
	entries []*entry      // of a Table, in the order of the file
	header  bool          // of a Table: it has had its [header], or is inline
}

type entry struct {
	name  string
	at    place // of the key
	value *node
}

func (n *node) find(name string) *entry {
	for _, e := range n.entries {
		if e.name == name {
			return e
		}
	}
	return nil
}

func (n *node) add(name string, at place, value *node) *node {
	n.entries = append(n.entries, &entry{name, at, value})
	return value
}

// tomlFile makes the tree of one file.
type tomlFile struct {
	parser unstable.Parser
	name   string
	starts []int // offset of every line
	d      *diagnostics
}

// parseTOML reads a whole file. A key or table given twice is reported and its first value kept. A syntax error ends the
// reading: it is reported, and there is no tree.
func parseTOML(name string, data []byte, d *diagnostics) *node {
	f := &tomlFile{name: name, starts: []int{0}, d: d}
	for i, c := range data {
		if c == '\n' {
			f.starts = append(f.starts, i+1)
		}
	}
	before := len(d.errors)
	root := &node{at: place{name, 1, 1}, kind: unstable.Table, header: true}
	current := root
	f.parser.Reset(data)
	for f.parser.NextExpression() {
		switch e := f.parser.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			current = f.open(root, e)
		case unstable.KeyValue:
			f.assign(current, e)
		}
	}
	var syntax *unstable.ParserError
	if errors.As(f.parser.Error(), &syntax) {
		d.errorf(f.at(f.parser.Range(syntax.Highlight)), "%s", syntax.Message)
		return nil
	}
	if len(d.errors) == before {
		// The parser looks at one expression at a time; whatever else makes a file invalid TOML, the decoder knows.
		var whole *toml.DecodeError
		if errors.As(toml.Unmarshal(data, new(map[string]any)), &whole) {
			line, col := whole.Position()
			d.errorf(place{name, line, col}, "%s", strings.TrimPrefix(whole.Error(), "toml: "))
		}
	}
	return root
}

func (f *tomlFile) at(r unstable.Range) place {
	line := sort.SearchInts(f.starts, int(r.Offset)+1)
	return place{f.name, line, int(r.Offset) - f.starts[line-1] + 1}
}

// open goes to the table that a [header] or [[header]] names. What follows a refused header lands in a table of its
// own that nobody reads.
func (f *tomlFile) open(root *node, e *unstable.Node) *node {
	parent, name, at := f.descend(root, e.Key())
	table := &node{at: at, kind: unstable.Table, header: true}
	if parent == nil {
		return table
	}
	old := parent.find(name)
	switch {
	case e.Kind == unstable.ArrayTable && old == nil:
		parent.add(name, at, &node{at: at, kind: unstable.ArrayTable, items: []*node{table}})
	case e.Kind == unstable.ArrayTable && old.value.kind == unstable.ArrayTable:
		old.value.items = append(old.value.items, table)
	case old == nil:
		parent.add(name, at, table)
	case e.Kind == unstable.Table && old.value.kind == unstable.Table && !old.value.header:
		old.value.header, old.value.at = true, at
		return old.value
	default:
		f.d.errorf(at, "%s is already defined, at %v", name, old.at)
	}
	return table
}

// assign puts a key and its value into a table.
func (f *tomlFile) assign(table *node, e *unstable.Node) {
	parent, name, at := f.descend(table, e.Key())
	if parent == nil {
		return
	}
	if old := parent.find(name); old != nil {
		f.d.errorf(at, "%s is already defined, at %v", name, old.at)
		return
	}
	parent.add(name, at, f.value(e.Value(), at))
}

// descend follows a dotted key as far as its last part, and makes the tables on the way. It returns a nil table where
// something that is no table stands in the way.
func (f *tomlFile) descend(table *node, key unstable.Iterator) (parent *node, last string, at place) {
	for key.Next() {
		last, at = string(key.Node().Data), f.at(key.Node().Raw)
		if key.IsLast() {
			break
		}
		next := table.find(last)
		switch {
		case next == nil:
			table = table.add(last, at, &node{at: at, kind: unstable.Table})
		case next.value.kind == unstable.Table:
			table = next.value
		case next.value.kind == unstable.ArrayTable:
			table = next.value.items[len(next.value.items)-1]
		default:
			f.d.errorf(at, "%s is already defined, at %v, and is no table", last, next.at)
			return nil, last, at
		}
	}
	return table, last, at
}

// value copies a value out of the parser. Arrays do not know their position there: they take that of their key.
func (f *tomlFile) value(v *unstable.Node, key place) *node {
	n := &node{at: key, kind: v.Kind, text: string(v.Data)}
	if v.Raw.Length > 0 {
		n.at = f.at(v.Raw)
	}
	children := v.Children()
	switch v.Kind {
	case unstable.Array:
		for children.Next() {
			n.items = append(n.items, f.value(children.Node(), key))
		}
	case unstable.InlineTable:
		n.kind, n.header = unstable.Table, true
		for children.Next() {
			f.assign(n, children.Node())
		}
	}
	return n
}
