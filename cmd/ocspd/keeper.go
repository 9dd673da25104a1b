package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ocspd/audit"
	"ocspd/db"
	"ocspd/generation"
	"ocspd/ingest"
	"ocspd/pki"
	"ocspd/responder"
)

// keeper holds the revocation data: it reads what CAs publish, records it, and puts generations in force. It has no key of an issuer, no
// PIN, and no port but the admin page on loopback.
type keeper struct {
	*role
	store   *db.Store
	audit   *audit.Log
	feed    *responder.Feed
	fetcher *ingest.Fetcher
	state   atomic.Pointer[keeperState]
	reports reports
	ballast ballast
	litter  chan struct{} // something out of force is to be deleted; nil where no role runs
	unlock  func()
	walled  map[responder.Role]int // processes whose walls are in the log

	refused refusals

	reloading  sync.Mutex // guards the rest
	reloads    uint64
	configured []audit.Detail     // what is in use, as configDetails has it
	restart    func(*keeperState) // begins to follow the sources of a state, in place of those before; nil where no role runs
}

// keeperState is what a configuration comes to; reload replaces it as a whole.
type keeperState struct {
	cfg     *config
	issuers []*keptIssuer
}

// issuers are those of the configuration in use.
func (k *keeper) issuers() []*keptIssuer { return k.state.Load().issuers }

// keptIssuer is an issuer with what its sources gave.
type keptIssuer struct {
	config  *issuerConfig
	issuer  *pki.Issuer
	sources []*source
	*standing
}

// standing is where an issuer stands, whatever its configuration.
type standing struct {
	// mu puts changes in force one after the other, so that pointer and feed follow the database in order.
	mu      sync.Mutex
	number  atomic.Uint64 // of the generation in force
	pending atomic.Pointer[pending]
}

// source is a configured place to read from.
type source struct {
	sourceConfig
	mu       sync.Mutex // one read at a time
	read     bool       // whole, by this process
	spared   bool       // its last reading was refused without an alarm, since the file had just been written
	freshest []string   // where its last complete CRL says that delta CRLs are
}

// lockPatience is how long keeper and verbs wait for each other's hold on the state.
const lockPatience = 8 * time.Second

// errStateLocked: another process has the state.
var errStateLocked = errors.New("the state is in use")

// openKeeper takes the state, for which it waits as long as patience, and brings database, audit log and generation files into step. It serves `ocspd keeper`, and verbs
// while no keeper runs.
func openKeeper(ctx context.Context, cfg *config, log *slog.Logger, patience time.Duration) (*keeper, error) {
	for _, dir := range []string{cfg.State, cfg.keeperDir(), cfg.generations()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("state: %w", err)
		}
	}
	k := &keeper{role: &role{name: "keeper", cfg: cfg, log: log, alarms: newAlarmSet(log), since: time.Now().UTC().Truncate(time.Second)}}
	var err error
	if k.unlock, err = lockState(ctx, cfg.keeperDir(), patience); err != nil {
		return nil, err
	}
	if err := k.open(ctx); err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

func (k *keeper) open(ctx context.Context) (err error) {
	if k.store, err = db.Open(ctx, k.cfg.database(), k.log); err != nil {
		return err
	}
	k.store.Background = background
	if k.audit, err = openKeeperLog(k); err != nil {
		return err
	}
	k.feed = responder.NewFeed(k.reports.take)
	k.keepReserve()
	spool := filepath.Join(k.cfg.keeperDir(), "spool")
	if err := cleanSpool(spool); err != nil {
		return err
	}
	k.fetcher = ingest.NewFetcher(spool)
	k.fetcher.DialBy(dialFor(k.cfg))
	state := &keeperState{cfg: k.cfg}
	for _, c := range k.cfg.Issuers {
		i, err := k.openIssuer(ctx, c)
		if err != nil {
			return err
		}
		state.issuers = append(state.issuers, i)
	}
	k.state.Store(state)
	return k.closeAborted(ctx)
}

func lockState(ctx context.Context, dir string, patience time.Duration) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if unlock, err = db.Lock(dir); err == nil {
			return unlock, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", errStateLocked, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func cleanSpool(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	left, err := filepath.Glob(filepath.Join(dir, ingest.SpoolPrefix+"*"))
	for _, f := range left {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}

func (k *keeper) close() {
	if k.audit != nil {
		k.audit.Close()
	}
	if k.store != nil {
		k.store.Close()
	}
	k.unlock()
}

// openIssuer makes the pointer file say what the database says: a crash may have come between the two. Sources that are no longer
// configured go out of force.
func (k *keeper) openIssuer(ctx context.Context, c *issuerConfig) (*keptIssuer, error) {
	i, err := newKeptIssuer(c)
	if err != nil {
		return nil, err
	}
	issuer := i.issuer
	if err := k.store.Register(ctx, issuer.ID, c.Name); err != nil {
		return nil, err
	}
	known, err := k.store.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range known {
		if d.ID != issuer.ID || d.Number == 0 {
			continue
		}
		i.number.Store(d.Number)
		if d.Gen.Name == "" {
			if err := k.raise(ctx, i); err != nil {
				return nil, err
			}
			continue
		}
		if at, err := generation.Pointed(k.cfg.generations(), c.Name); err != nil || at != d.Gen {
			if err := generation.Point(k.cfg.generations(), c.Name, d.Gen); err != nil {
				return nil, fmt.Errorf("issuer %s: %w", c.Name, err)
			}
		}
	}
	if _, err := generation.Head(k.cfg.generations(), c.Name, issuer.ID); err == nil && i.inForce() == 0 {
		return nil, fmt.Errorf("issuer %s: a generation is in force that the database knows nothing of, so revocations by hand would be lost; restore a backup of the database, "+
			"or, to begin without them, remove %s", c.Name, filepath.Join(k.cfg.generations(), c.Name+".*"))
	}
	k.feed.State(issuer.ID, i.inForce())
	if err := generation.Clean(k.cfg.generations(), c.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.log.Warn("generation files cannot be tidied up", "issuer", c.Name, "error", err) // damaged: settle writes them anew
	}
	return i, k.settle(ctx, i)
}

// raise is for a database that was restored from a backup: its generations have numbers above all whose files are there, since signer refuses to
// go back. That no file has the number now makes settle write one.
func (k *keeper) raise(ctx context.Context, i *keptIssuer) error {
	above := highestGeneration(k.cfg.generations(), i.config.Name) + 1
	if above <= i.inForce() {
		return nil
	}
	i.number.Store(above)
	return k.store.Raise(ctx, i.issuer.ID, above)
}

// highestGeneration is the greatest number of an issuer's generation files.
func highestGeneration(dir, name string) (highest uint64) {
	files, _ := filepath.Glob(filepath.Join(dir, name+".*.gen"))
	for _, f := range files {
		middle := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), name+"."), ".gen")
		if n, err := strconv.ParseUint(middle, 10, 64); err == nil {
			highest = max(highest, n)
		}
	}
	return highest
}

func newKeptIssuer(c *issuerConfig) (*keptIssuer, error) {
	issuer, err := loadIssuer(c)
	if err != nil {
		return nil, err
	}
	i := &keptIssuer{config: c, issuer: issuer, standing: &standing{}}
	for _, s := range c.Sources {
		i.sources = append(i.sources, &source{sourceConfig: s})
	}
	return i, nil
}

// settle makes what is in force fit the configuration.
func (k *keeper) settle(ctx context.Context, i *keptIssuer) error {
	if err := k.dropUnconfigured(ctx, i); err != nil {
		return err
	}
	return k.renewHead(ctx, i)
}

// renewHead makes a generation of the same statuses where the one in force no longer says what is so: sources were added to the configuration, a
// backup was restored, or its file is damaged.
func (k *keeper) renewHead(ctx context.Context, i *keptIssuer) error {
	lineages, err := k.store.Lineages(ctx, i.issuer.ID)
	if err != nil || len(lineages) == 0 {
		return err
	}
	meta, err := generation.Head(k.cfg.generations(), i.config.Name, i.issuer.ID)
	if err == nil && meta.Complete == i.complete(lineages) && meta.Gap == i.gap(lineages) && meta.Number == i.inForce() {
		return nil
	}
	why := "sources or the database changed"
	if err != nil {
		why = err.Error()
	}
	k.log.Warn("generation is written anew", "issuer", i.config.Name, "reason", why)
	now := time.Now()
	_, _, err = k.putInForce(ctx, i, audit.Record{}, pki.File{}, responder.Change{All: true}, func(publish db.Publish) (db.View, error) {
		return k.store.Touch(ctx, i.issuer.ID, "", now, time.Time{}, time.Time{}, publish)
	})
	return err
}

// dropUnconfigured takes what no configured source gives out of force, and makes a generation where its files have to be written anew.
func (k *keeper) dropUnconfigured(ctx context.Context, i *keptIssuer) error {
	lineages, err := k.store.Lineages(ctx, i.issuer.ID)
	if err != nil {
		return err
	}
	for _, l := range lineages {
		why := i.unwanted(lineages, &l, time.Now())
		if why == "" {
			continue
		}
		k.log.Warn("source goes out of force", "issuer", i.config.Name, "source", l.Location, "reason", why)
		staged, err := k.store.StageRemoval(ctx, i.issuer.ID, l.Key)
		if err != nil {
			return err
		}
		lost, err := k.lostWith(ctx, i, staged)
		var base pki.File
		if err == nil {
			base, err = k.writeBase(ctx, i, staged.Number, staged)
		}
		if err != nil {
			k.store.Abort(staged)
			return err
		}
		event := audit.Record{Event: "source.remove", Subject: i.config.Name, Details: []audit.Detail{
			{Name: "source", Value: l.Location}, {Name: "reason", Value: why}, {Name: "permanent revocations", Value: strconv.FormatInt(lost, 10)}}}
		if _, err := k.flip(ctx, i, staged, base, event); err != nil {
			return err
		}
		k.alarms.when(lost > 0, alarmVanished, alarmPlace(i.config.Name, l.Location), fmt.Sprintf("%d permanent revocations went out of force with this source (%s); "+
			"configure it again, or see that another source has them, or enter them with 'ocspd revoke'", lost, why))
		lineages = slices.DeleteFunc(slices.Clone(lineages), func(o db.Lineage) bool { return o.Key == l.Key })
	}
	return nil
}

// lostWith counts the permanent revocations that nothing says any more once a source is removed.
func (k *keeper) lostWith(ctx context.Context, i *keptIssuer, removal *db.Staged) (lost int64, err error) {
	for sign, st := range map[int64]*db.Staged{1: nil, -1: removal} {
		if _, err := k.store.Merged(ctx, i.issuer.ID, st, func(p *pki.Packed) error {
			if p.Status().Permanent() {
				lost += sign
			}
			return nil
		}); err != nil {
			return 0, err
		}
	}
	return lost, nil
}

func (i *keptIssuer) hasCRL() bool {
	for _, s := range i.sources {
		if s.CRL != "" {
			return true
		}
	}
	return false
}

// complete reports whether every source that the issuer needs is among the lineages.
func (i *keptIssuer) complete(lineages []db.Lineage) bool {
	crl := slices.ContainsFunc(lineages, func(l db.Lineage) bool { return l.Kind == pki.CRL })
	for _, s := range i.sources {
		if s.CRL != "" && !crl || s.Index != "" && !hasLineage(lineages, db.IndexLineage(s.Index)) {
			return false
		}
	}
	return len(lineages) > 0
}

func (k *keeper) issuer(name string) (*keptIssuer, error) {
	for _, i := range k.issuers() {
		if i.config.Name == name {
			return i, nil
		}
	}
	return nil, noSuchIssuer(k.state.Load().cfg, name)
}

// closeAborted records that an import or revocation which the log announces never came into force: the process ended before.
func (k *keeper) closeAborted(ctx context.Context) error {
	size := k.audit.Head().Size
	const tail = 2000 // records; a crash concerns the last few
	from := uint64(0)
	if size > tail {
		from = size - tail
	}
	inForce := map[string]int64{}
	known, err := k.store.Issuers(ctx)
	if err != nil {
		return err
	}
	for _, d := range known {
		inForce[d.Name] = d.Leaf
	}
	open := map[string]audit.Record{} // by issuer: the last announcement
	for r, err := range k.audit.Records(from) {
		if err != nil {
			return err
		}
		switch {
		case r.Outcome == outcomeAccepted:
			open[r.Subject] = r
		case r.Outcome == outcomeAborted:
			delete(open, r.Subject)
		}
	}
	for name, r := range open {
		if leaf, known := inForce[name]; known && leaf < int64(r.Sequence) {
			if err := k.record(ctx, aborted(r, "the process ended before it came into force")); err != nil {
				return err
			}
		}
	}
	return nil
}

// Outcomes of records. An accepted change is in force unless an aborted one follows.
const (
	outcomeAccepted = "accepted"
	outcomeAborted  = "aborted"
	outcomeRefused  = "refused"
	outcomeOK       = "ok"
)

func aborted(r audit.Record, why string) audit.Record {
	return audit.Record{Event: r.Event, Actor: "keeper", Subject: r.Subject, Outcome: outcomeAborted, Details: []audit.Detail{
		{Name: "record", Value: fmt.Sprint(r.Sequence)}, {Name: "reason", Value: why}}}
}

// record appends to the audit log; where it cannot, an alarm stands until it can.
func (k *keeper) record(ctx context.Context, r audit.Record) error {
	if r.Actor == "" {
		r.Actor = actorOf(ctx)
	}
	_, err := k.audit.Append(ctx, r)
	k.alarms.when(err != nil, alarmAuditLog, "", fmt.Sprintf("%v", err))
	return err
}

func runKeeper(ctx context.Context, r *role) error {
	k, err := openKeeper(ctx, r.cfg, r.log, lockPatience)
	if err != nil {
		return err
	}
	defer k.close()
	for _, a := range k.alarms.list() { // what came up when the state was opened
		r.alarms.raise(a.Name, a.Issuer, a.Text)
	}
	k.role = r
	if err := giveWay(keeperNice); err != nil {
		k.log.Warn("an import may slow down answers", "error", err)
	}
	if err := k.recordStart(ctx); err != nil {
		return err
	}
	control, err := r.listenUnix(socketKeeper, k.cfg.keeperSocket())
	if err != nil {
		return err
	}
	defer control.Close()
	feed, err := r.listenUnix(socketFeed, k.cfg.feedSocket())
	if err != nil {
		return err
	}
	defer feed.Close()
	admin, err := r.adminListeners()
	if err != nil {
		return err
	}
	if err := r.seal(); err != nil {
		return err
	}
	k.walled = map[responder.Role]int{}
	k.record(ctx, hardeningRecord("keeper", k.measures))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	failed := make(chan error, 3+len(admin))
	run := func(f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				failed <- err
			}
		})
	}
	run(func() error { return k.serveControl(ctx, control) })
	run(func() error { return k.feed.Serve(ctx, feed, k.oneRole(allowSubscribers())) })
	for _, l := range admin {
		run(func() error {
			return serveUntil(ctx, newHTTPServer(k.adminHandler(), k.log), l)
		})
	}
	k.followAll(ctx, &wg)
	wg.Go(func() { k.watch(ctx) })
	if k.cfg.AuditKey != "" {
		wg.Go(func() { k.signHeads(ctx) })
	}
	k.litter = make(chan struct{}, 1)
	wg.Go(func() { k.recheck(ctx) })
	k.ready()
	wg.Go(func() { k.watchdog(ctx, k.readsDatabase) })
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	wg.Wait()
	ending := context.WithoutCancel(ctx)
	return errors.Join(err, k.record(ending, audit.Record{Event: "keeper.stop", Outcome: outcomeOK}))
}

// followAll reads the sources of the state in use until ctx ends, and makes restart do the same for another state.
func (k *keeper) followAll(ctx context.Context, wg *sync.WaitGroup) {
	k.reloading.Lock()
	defer k.reloading.Unlock()
	stop := func() {}
	k.restart = func(state *keeperState) {
		stop()
		following, cancel := context.WithCancel(ctx)
		var readers sync.WaitGroup
		for _, i := range state.issuers {
			for _, s := range i.sources {
				readers.Go(func() { k.follow(following, i, s) })
			}
		}
		stop = func() { cancel(); readers.Wait() }
	}
	k.restart(k.state.Load())
	wg.Go(func() {
		<-ctx.Done()
		k.reloading.Lock()
		defer k.reloading.Unlock()
		stop()
	})
}

// adminListeners takes over what systemd or the supervisor holds, or else listens itself.
func (r *role) adminListeners() ([]net.Listener, error) {
	address := r.cfg.Listen.Admin
	passed := r.passed[listenerAdmin]
	switch {
	case address == "" && len(passed) > 0:
		r.log.Warn("the status page is off, but its socket unit still takes connections; turn that off, too", "next", "systemctl mask --now ocspd-admin.socket")
		fallthrough
	case address == "":
		return nil, nil
	case len(passed) > 0:
		r.compareListeners([]string{address}, listenerAdmin)
		return passed, nil
	}
	l, err := listenTCP(address)
	if err != nil {
		return nil, err
	}
	return []net.Listener{l}, nil
}

// watch raises and ends the alarms that depend on time alone.
func (k *keeper) watch(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	told := map[alarmKey]bool{}
	for {
		for _, i := range k.issuers() {
			k.announcePending(ctx, i)
		}
		k.checkSources(ctx, time.Now())
		k.checkRoles(time.Now())
		k.recordWalls(ctx)
		k.recordAlarms(ctx, told)
		if k.keepReserve() {
			k.resumeAudit(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (i *keptIssuer) isPending() bool { return i.pending.Load() != nil }

func (k *keeper) checkSources(ctx context.Context, now time.Time) {
	for _, i := range k.issuers() {
		name := i.config.Name
		lineages, err := k.store.Lineages(ctx, i.issuer.ID)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			k.alarms.raise(alarmDatabase, name, err.Error())
			continue
		}
		if !i.isPending() {
			k.alarms.clear(alarmDatabase, name)
		}
		var stale, aging []string
		if !i.complete(lineages) && now.Sub(k.since) > roleGrace {
			stale = append(stale, "not every source has delivered yet")
		}
		for _, l := range lineages {
			ends := l.NextUpdate.UTC().Format(time.RFC3339)
			age := float64(now.Sub(l.ThisUpdate)) / float64(l.NextUpdate.Sub(l.ThisUpdate))
			switch {
			case age >= 1:
				stale = append(stale, fmt.Sprintf("%s ended %s; every answer of this issuer is tryLater until a newer one is there", l.Location, ends))
			case age >= 0.8:
				aging = append(aging, fmt.Sprintf("%s: 80 %% of its time is over; it ends %s", l.Location, ends))
			case age >= 0.5:
				aging = append(aging, fmt.Sprintf("%s: half of its time is over; it ends %s", l.Location, ends))
			}
		}
		k.alarms.when(len(stale) > 0, alarmSourceStale, name, strings.Join(stale, "; "))
		gap := i.gap(lineages)
		k.alarms.when(gap != "", alarmCoverage, name, "no CRL in force speaks of "+gap+"; what none of them revokes is answered tryLater")
		k.alarms.when(len(aging) > 0, alarmSourceAging, name, strings.Join(aging, "; "))
	}
}

const roleGrace = 3 * time.Second // a role that starts again is not missed for so long, nor are sources at the start

func (k *keeper) checkRoles(now time.Time) {
	for _, role := range []responder.Role{responder.RoleFront, responder.RoleSigner} {
		missing := now.Sub(k.reports.seen(role, k.since)) > roleGrace
		k.alarms.when(missing, alarmRoleDown, role.String(), role.String()+" is not connected to keeper")
	}
}

// reports are what front and signer last told of themselves.
type reports struct {
	mu  sync.Mutex
	all map[responder.Role]*heardReport
}

type heardReport struct {
	*roleReport
	pid  int
	at   time.Time
	gone bool
}

func (r *reports) take(role responder.Role, pid int, body []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = map[responder.Role]*heardReport{}
	}
	if body == nil {
		if h := r.all[role]; h != nil && h.pid == pid {
			h.gone = true
		}
		return
	}
	report, err := readReport(body)
	if err != nil {
		return // whoever writes reports that are none is not heard
	}
	r.all[role] = &heardReport{report, pid, time.Now(), false}
}

// seen is when a role was last there, or fallback if it never was.
func (r *reports) seen(role responder.Role, fallback time.Time) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.all[role]; h != nil {
		return h.at
	}
	return fallback
}

// get is the last report of a role that is there, or nil.
func (r *reports) get(role responder.Role) *heardReport {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.all[role]; h != nil && !h.gone {
		return h
	}
	return nil
}

// controlHandler is what verbs call.
func (k *keeper) controlHandler() http.Handler {
	m := http.NewServeMux()
	m.Handle("POST /crl/import", handle(k.signed(k.handleCRLImport)))
	m.Handle("POST /index/import", handle(k.signed(k.handleIndexImport)))
	m.Handle("POST /crl/fetch", handle(k.signed(k.handleFetch)))
	m.Handle("GET /crl/status", handle(k.handleSources))
	m.Handle("POST /revoke", handle(k.signed(k.handleRevoke)))
	m.Handle("POST /unrevoke", handle(k.signed(k.handleUnrevoke)))
	m.Handle("GET /lookup", handle(k.handleLookup))
	m.Handle("GET /status", handle(k.handleStatus))
	m.Handle("POST /reload", handle(k.signed(k.handleReload)))
	m.Handle("POST /record", handle(k.signed(k.handleRecord)))
	m.Handle("GET /db/check", handle(k.handleCheck))
	m.HandleFunc("POST /db/backup", k.handleBackup)
	return m
}
