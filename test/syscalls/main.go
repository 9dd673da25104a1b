// Command syscalls compares what roles call with the lists of package hardening. It reads a folder of traces, as `strace -ff -ttt -o DIR/t` leaves them of
// the tests that run the binary, a file for each thread. A call that a sealed role makes and that is on no list of its own is an error, and so is a role killed by its
// filter; what is on a list and was never seen is printed.
package main

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"ocspd/hardening"
)

var policies = map[string]*hardening.Policy{
	"front":  {Role: hardening.Answers},
	"signer": {Role: hardening.Signs},
	"keeper": {Role: hardening.Keeps, Network: true, Netlink: true},
}

var (
	line   = regexp.MustCompile(`^(\d+\.\d+) ([a-z0-9_]+)\(`)
	child  = regexp.MustCompile(`(?:clone3?|v?fork)(?:\(| resumed).* = (\d+)$`)
	roleOf = regexp.MustCompile(`execve\("[^"]*", \["[^"]*/ocspd", "(front|signer|keeper)"`)
	seal   = regexp.MustCompile(`seccomp\(SECCOMP_SET_MODE_FILTER, .* = 0$`)
)

// thread is what was traced of one.
type thread struct {
	parent int
	role   string  // that it was executed as
	sealed float64 // when it put the filter in force
	calls  []event
	killed bool
}

type event struct {
	at   float64
	name string
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: syscalls DIR")
		os.Exit(2)
	}
	if err := compare(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func compare(dir string) error {
	threads, err := read(dir)
	if err != nil {
		return err
	}
	// process is the thread, itself or an ancestor, that was executed.
	process := func(id int) *thread {
		for hops := 0; threads[id] != nil && hops < 10000; hops++ {
			if threads[id].role != "" {
				return threads[id]
			}
			id = threads[id].parent
		}
		return nil
	}
	for id, t := range threads {
		if p := process(id); p != nil && t.sealed > 0 {
			p.sealed = t.sealed
		}
	}
	seen, processes, wrong := map[string]map[string]bool{"front": {}, "signer": {}, "keeper": {}}, map[*thread]bool{}, 0
	for id, t := range threads {
		p := process(id)
		if p == nil || p.sealed == 0 {
			continue
		}
		processes[p] = true
		if t.killed {
			fmt.Printf("%s: thread %d was killed by the filter\n", p.role, id)
			wrong++
		}
		for _, e := range t.calls {
			if e.at > p.sealed {
				seen[p.role][e.name] = true
			}
		}
	}
	for _, role := range slices.Sorted(maps.Keys(policies)) {
		whole, partly := policies[role].Calls()
		listed := append(slices.Concat(whole, partly), "clone3") // tried first, and absent
		for _, name := range slices.Sorted(maps.Keys(seen[role])) {
			if !slices.Contains(listed, name) {
				fmt.Printf("%s: %s was called and is on no list\n", role, name)
				wrong++
			}
		}
		listed = slices.DeleteFunc(listed, func(n string) bool { return seen[role][n] })
		fmt.Printf("%s: %d calls seen; listed and never seen: %s\n", role, len(seen[role]), strings.Join(listed, " "))
		if len(seen[role]) < 10 {
			fmt.Printf("%s: that is too few to be a trace of it\n", role)
			wrong++
		}
	}
	fmt.Printf("%d sealed processes\n", len(processes))
	if wrong > 0 {
		return fmt.Errorf("%d faults", wrong)
	}
	return nil
}

func read(dir string) (map[int]*thread, error) {
	files, err := filepath.Glob(filepath.Join(dir, "t.*"))
	if err != nil {
		return nil, err
	}
	threads := map[int]*thread{}
	get := func(id int) *thread {
		if threads[id] == nil {
			threads[id] = &thread{}
		}
		return threads[id]
	}
	for _, file := range files {
		id, err := strconv.Atoi(strings.TrimPrefix(filepath.Ext(file), "."))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if err := get(id).read(file, func(c int) { get(c).parent = id }); err != nil {
			return nil, err
		}
	}
	return threads, nil
}

func (t *thread) read(file string, born func(int)) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		s := lines.Text()
		if m := child.FindStringSubmatch(s); m != nil {
			n, _ := strconv.Atoi(m[1])
			born(n)
		}
		if m := roleOf.FindStringSubmatch(s); m != nil && t.role == "" {
			t.role = m[1]
		} else if strings.Contains(s, " execve(") && t.role == "" {
			t.role = "other"
		}
		t.killed = t.killed || strings.Contains(s, "killed by SIGSYS")
		m := line.FindStringSubmatch(s)
		if m == nil || strings.HasSuffix(s, "<detached ...>") { // what a thread that dies leaves in its registers is no call
			continue
		}
		at, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if seal.MatchString(s) {
			t.sealed = at
		}
		t.calls = append(t.calls, event{at, m[2]})
	}
	return lines.Err()
}
