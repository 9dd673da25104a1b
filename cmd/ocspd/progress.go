package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ocspd/db"
	"ocspd/ingest"
	"ocspd/pki"
)

// This file is the bar that a person sees who waits for a verb. Whoever does the work says at which step it is, and counts. A keeper that runs tells the verb on the
// connection that the order came over, by informational answers (102, RFC 2518 section 10.1), so that nobody sees how far another's order is.

var (
	barPatience   = 2 * time.Second // what is done sooner has no bar
	progressEvery = 200 * time.Millisecond
)

// shareOf is what a step takes of the time that is left when it begins, about, where there are millions of entries. Others have no share.
var shareOf = map[string]float64{"reading": 0.1, "checking": 0.3, "sorting": 0.3, "recording": 0.8, "copying": 0.3, "checking pages": 0.15, "checking records": 0.5}

const (
	progressHeader = "Ocspd-Progress" // of a request: it is wanted; of an answer: the share, and the step
	countedRecords = 4096             // records that are counted at once
)

// progress is how far a piece of work is, of which the share that is done never shrinks. nil takes everything and says nothing.
type progress struct {
	mu         sync.Mutex
	lo, hi     float64 // of the whole: the part that the steps are in
	step       string
	from, to   float64 // of the whole: where the step begins and ends
	done, size int64   // of the step, in a unit of its own
}

func newProgress() *progress { return &progress{hi: 1} }

type progressKey struct{}

// progressOf is that of the work that ctx is for; nil if nobody watches.
func progressOf(ctx context.Context) *progress {
	p, _ := ctx.Value(progressKey{}).(*progress)
	return p
}

func withProgress(ctx context.Context, p *progress) context.Context {
	ctx = db.WithSteps(ctx, func(step string, records int64) func(int) {
		p.begin(step, records)
		return p.add
	})
	return context.WithValue(ctx, progressKey{}, p)
}

// part says that the steps to come are those of part n, from 0, of so many that are alike.
func (p *progress) part(n, of int) {
	if p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.lo, p.hi = float64(n)/float64(of), float64(n+1)/float64(of)
	}
}

// begin begins a step: what came before is done. It is done when so much of it is counted; of a size of 0 or less nothing is seen before the next begins.
func (p *progress) begin(step string, size int64) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step, p.done, p.size = step, 0, size
	p.from = max(p.to, p.lo)
	p.to = p.from + shareOf[step]*max(0, p.hi-p.from)
}

// add counts what is done of the step.
func (p *progress) add(n int) {
	if p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.done += int64(n)
	}
}

// at is for what somebody else counts.
func (p *progress) at(step string, share float64) {
	if p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.step, p.size = step, 0
		p.from = max(p.from, p.lo+share*(p.hi-p.lo))
		p.to = p.from
	}
}

// now is the step, and the share of the whole that is done.
func (p *progress) now() (step string, share float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if share = p.from; p.size > 0 {
		share += (p.to - p.from) * min(1, float64(p.done)/float64(p.size))
	}
	return p.step, share
}

// arriving makes a step of what comes in, of size octets; less than 0 is not known.
func (p *progress) arriving(r io.Reader, size int64) io.Reader {
	p.begin("reading", size)
	return &countedReader{r, p}
}

type countedReader struct {
	io.Reader
	p *progress
}

func (r *countedReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.p.add(n)
	return n, err
}

// checking makes a step of what is read of a spool: once, and of a CRL once more for its signature.
func (p *progress) checking(spool *ingest.Spool, index bool) {
	size := spool.Size()
	if !index {
		size *= 2
	}
	spool.Watch(p.add)
	p.begin("checking", size)
}

// recording makes a step of a walk over about so many records.
func (p *progress) recording(records int64, walk func(func(*pki.Packed) error) error) func(func(*pki.Packed) error) error {
	if p == nil {
		return walk
	}
	return func(yield func(*pki.Packed) error) error {
		p.begin("recording", records)
		n := 0
		return walk(func(r *pki.Packed) error {
			if n++; n == countedRecords {
				p.add(n)
				n = 0
			}
			return yield(r)
		})
	}
}

// reported does what a request asks for, and tells whoever wants to know how far it is. Only after it may w be used.
func reported(w http.ResponseWriter, r *http.Request, do func(*http.Request)) {
	if r.Header.Get(progressHeader) == "" || progressOf(r.Context()) != nil { // who asks is in this process
		do(r)
		return
	}
	p := newProgress()
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer w.Header().Del(progressHeader)
		for last := ""; ; {
			select {
			case <-end:
				return
			case <-time.After(progressEvery):
			}
			step, share := p.now()
			if now := fmt.Sprintf("%.3f %s", share, step); now != last {
				w.Header().Set(progressHeader, now)
				w.WriteHeader(http.StatusProcessing)
				last = now
			}
		}
	}()
	defer func() { close(end); <-ended }()
	do(r.WithContext(withProgress(r.Context(), p)))
}

// heard has a request ask for what reported tells.
func (p *progress) heard(r *http.Request) *http.Request {
	r.Header.Set(progressHeader, "1")
	return r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			var share float64
			if text, step, _ := strings.Cut(h.Get(progressHeader), " "); step != "" {
				if _, err := fmt.Sscan(text, &share); err == nil && share >= 0 && share <= 1 {
					p.at(oneLine(step, 30), share)
				}
			}
			return nil
		},
	}))
}

// A bar draws a progress in the last line of a terminal. What is written through it comes above.
type bar struct {
	progress *progress
	out      *os.File
	begun    time.Time
	mu       sync.Mutex
	shown    bool
}

// watch draws a bar on standard error, if that is a terminal, for what takes long, until stop is called; it is gone then. For a program that
// reads the result, and on a terminal that cannot take a line back, there is none.
func (a *app) watch(ctx context.Context) (watched context.Context, stop func()) {
	f, ok := a.stderr.(*os.File)
	if term := os.Getenv("TERM"); !ok || a.json() || term == "" || term == "dumb" {
		return ctx, func() {}
	}
	if _, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err != nil {
		return ctx, func() {}
	}
	b := &bar{progress: newProgress(), out: f, begun: time.Now()}
	a.stderr = b
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		b.run(end)
	}()
	return withProgress(ctx, b.progress), sync.OnceFunc(func() {
		close(end)
		<-ended
		a.stderr = f
	})
}

func (b *bar) run(end <-chan struct{}) {
	select {
	case <-end:
		return
	case <-time.After(barPatience):
	}
	defer b.clear()
	interrupted := make(chan os.Signal, 1)
	if !signal.Ignored(os.Interrupt) {
		signal.Notify(interrupted, os.Interrupt)
		defer signal.Stop(interrupted)
	}
	for {
		b.draw()
		select {
		case <-end:
			b.draw()
			return
		case <-interrupted: // the verb ends by it, as it would have
			b.clear()
			signal.Reset(os.Interrupt)
			syscall.Kill(os.Getpid(), syscall.SIGINT)
			return
		case <-time.After(progressEvery):
		}
	}
}

// draw puts the bar over the one before. One that a shell has put in the background leaves the terminal alone.
func (b *bar) draw() {
	size, err := unix.IoctlGetWinsize(int(b.out.Fd()), unix.TIOCGWINSZ)
	front, notOurs := unix.IoctlGetInt(int(b.out.Fd()), unix.TIOCGPGRP)
	if err != nil || notOurs == nil && front != unix.Getpgrp() {
		return
	}
	step, share := b.progress.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	fmt.Fprintf(b.out, "\r%s\x1b[K", barLine(step, share, time.Since(b.begun), int(size.Col)))
	b.shown = true
}

func (b *bar) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shown {
		io.WriteString(b.out, "\r\x1b[K")
		b.shown = false
	}
}

func (b *bar) Write(p []byte) (int, error) {
	b.clear()
	return b.out.Write(p)
}

// barLine is a bar for so many columns, of which the last stays free; 0 columns are not known.
func barLine(step string, share float64, since time.Duration, columns int) string {
	if columns == 0 {
		columns = 80
	}
	percent := int(100 * share)
	left, right := fmt.Sprintf("%-17s[", step), fmt.Sprintf("] %3d %% %s", percent, since.Truncate(time.Second))
	room := min(columns-1-len(left)-len(right), 40)
	if room < 5 {
		return fmt.Sprintf("%.*s", columns-1, fmt.Sprintf("%d %%", percent))
	}
	full := percent * room / 100
	return left + strings.Repeat("#", full) + strings.Repeat(".", room-full) + right
}
