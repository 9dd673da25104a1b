// Command trial drives the ocspd binary from outside through what a test of seconds cannot show: millions of entries, kills, a full disk,
// a power cut. It imports nothing of ours: what it checks is what users see. Each trial ends in one line that says PASS or FAIL, with the
// figures; the exit code is 0 or 1.
//
// Scripts in bench/ and test/ build it and run it; -bin names the ocspd binary, -dir a directory to work in, which is made and removed.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

var trials = map[string]func(w *world, n int) (string, error){
	"import": importTrial, "crowd": crowdTrial, "statuses": statusesTrial, "kill": killTrial, "full": fullTrial, "power": powerTrial,
}

func main() {
	bin := flag.String("bin", "", "the ocspd binary")
	dir := flag.String("dir", "", "an empty directory to work in")
	n := flag.Int("n", 0, "entries, or rounds")
	flag.Parse()
	trial := trials[flag.Arg(0)]
	if trial == nil || *bin == "" || *dir == "" || flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: trial -bin OCSPD -dir DIR -n N import|crowd|statuses|kill|full|power")
		os.Exit(2)
	}
	text, err := conduct(trial, flag.Arg(0), *bin, *dir, *n)
	switch {
	case errors.Is(err, errSkip):
		fmt.Printf("skip %s: %v\n", flag.Arg(0), err)
		os.Exit(3)
	case err != nil:
		fmt.Printf("FAIL %s: %v; %s\n", flag.Arg(0), err, text)
		os.Exit(1)
	}
	fmt.Printf("PASS %s: %s\n", flag.Arg(0), text)
}

// errSkip: this machine lacks what the trial needs.
var errSkip = errors.New("cannot be tried here")

func conduct(trial func(*world, int) (string, error), name, bin, dir string, n int) (string, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return "", err
	}
	w, err := newWorld(bin, dir)
	if err != nil {
		return "", fmt.Errorf("setting up: %w", err)
	}
	defer w.end()
	return trial(w, n)
}
