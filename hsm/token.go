// Package hsm signs with keys that stay in a PKCS#11 token.
//
// It guarantees: no function reads, wraps, copies or exports a private key; a Token gives its PIN to C_Login once at
// most, and never while an earlier refusal is on record; a session that saw an error is closed and not used again; a
// call that does not return holds up its own caller no longer than Config.Deadline; signing finds no object and reads
// no attribute. The attributes that it reports are the module's own word.
//
// A Token is open, then lost or closed, and never open again. How errors are met, by class (faultOf has the codes):
//
//	the call      bad mechanism, bad length: returned; the session is closed, and the next operation has a new one
//	the session   closed and tried once more in a new one (signing and reading only); three such operations in a row
//	              without a success between them count as a fault of the token. Vendors' own codes are of this class
//	the token     removed, reset, logged out: ErrTokenLost, for this and every later operation; start the process again
//	the PIN       ErrPIN, with Config.Marker written: a person must look. At the login everything is of this class that
//	              does not say that the PIN was not looked at; later, the codes that speak of the PIN
//	no answer     the session counts as stuck until the call returns; three at once, or all there are, make ErrTokenLost
//	              (of starting, the first). A module with a stuck call is used by no later Token of the process
//
// Before the login, faults of session and token are ErrTokenLost; a C_Initialize that fails, and a token that is not there,
// are neither: Open may be tried again in the same process. What ends a session (C_CloseSession, C_Finalize) may fail.
package hsm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// DefaultDeadline is how long one operation of the module may take. Starting (loading the module, C_Initialize, C_Login)
// may take startFactor times as long: a network HSM connects then.
const DefaultDeadline = 5 * time.Second

const (
	startFactor = 6

	maxStuck  = 3 // so many sessions stuck at once, or all of them, and the token is lost
	maxFaults = 3 // so many operations in a row that broke their sessions, and the token is lost
)

// Config says which token, and how to reach it.
type Config struct {
	Name        string                 // what people call the token, for messages: its name in the configuration
	URI         string                 // token= and/or serial=, and module-path=
	PIN         func() ([]byte, error) // called once, just before the login; what it returned is wiped
	InitArgs    string                 // reserved string of C_Initialize (NSS, YubiHSM), or ""
	MaxSessions int                    // signing sessions, at least 1; one more holds the login. The token's own limit binds too
	Deadline    time.Duration          // of one operation; 0 means DefaultDeadline. Generating a key has generateDeadline
	Log         *slog.Logger           // nil for none
	Marker      string                 // file that a refused PIN leaves; while it exists no login is tried. "" for none
}

func (c *Config) defaults() {
	if c.Deadline <= 0 {
		c.Deadline = DefaultDeadline
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.MaxSessions < 1 {
		c.MaxSessions = 1
	}
	if c.Name == "" {
		c.Name = c.URI
	}
}

// TokenInfo is what the module says of a token. It is the module's word: a library can say anything.
type TokenInfo struct {
	Label        string   `json:"label"`
	Serial       string   `json:"serial"`
	Manufacturer string   `json:"manufacturer"`
	Model        string   `json:"model"`
	Hardware     string   `json:"hardware_version"`
	Firmware     string   `json:"firmware_version"`
	Flags        []string `json:"flags"`        // CKF_ names, those that a person may have to act on
	MaxSessions  uint     `json:"max_sessions"` // 0: unlimited or not said
	Slot         string   `json:"slot"`         // description; the number changes and is not used
	HardwareSlot bool     `json:"hardware_slot"`
	Module       string   `json:"module"` // path
	Library      string   `json:"library"`
	Cryptoki     string   `json:"cryptoki_version"`

	slot  uint
	flags uint
}

var tokenFlags = []struct {
	bit  uint
	name string
}{
	{pkcs11.CKF_LOGIN_REQUIRED, "CKF_LOGIN_REQUIRED"}, {pkcs11.CKF_USER_PIN_INITIALIZED, "CKF_USER_PIN_INITIALIZED"},
	{pkcs11.CKF_WRITE_PROTECTED, "CKF_WRITE_PROTECTED"}, {pkcs11.CKF_USER_PIN_COUNT_LOW, "CKF_USER_PIN_COUNT_LOW"},
	{pkcs11.CKF_USER_PIN_FINAL_TRY, "CKF_USER_PIN_FINAL_TRY"}, {pkcs11.CKF_USER_PIN_LOCKED, "CKF_USER_PIN_LOCKED"},
	{pkcs11.CKF_USER_PIN_TO_BE_CHANGED, "CKF_USER_PIN_TO_BE_CHANGED"}, {pkcs11.CKF_ERROR_STATE, "CKF_ERROR_STATE"},
}

func newTokenInfo(module string, lib pkcs11.Info, id uint, slot pkcs11.SlotInfo, t pkcs11.TokenInfo) TokenInfo {
	version := func(v pkcs11.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }
	text := func(s string) string { return strings.ToValidUTF8(strings.TrimRight(s, " \x00"), "?") }
	i := TokenInfo{
		Label: text(t.Label), Serial: text(t.SerialNumber), Manufacturer: text(t.ManufacturerID), Model: text(t.Model),
		Hardware: version(t.HardwareVersion), Firmware: version(t.FirmwareVersion), Flags: []string{},
		Slot: text(slot.SlotDescription), HardwareSlot: slot.Flags&pkcs11.CKF_HW_SLOT != 0,
		Module: module, Library: text(lib.LibraryDescription) + " " + version(lib.LibraryVersion),
		Cryptoki: version(lib.CryptokiVersion), slot: id, flags: t.Flags,
	}
	if t.MaxSessionCount != pkcs11.CK_UNAVAILABLE_INFORMATION {
		i.MaxSessions = t.MaxSessionCount
	}
	for _, f := range tokenFlags {
		if t.Flags&f.bit != 0 {
			i.Flags = append(i.Flags, f.name)
		}
	}
	return i
}

func (i TokenInfo) String() string { return fmt.Sprintf("%q (serial %s)", i.Label, i.Serial) }

// List gives the initialized tokens that a module can see. It logs in to none.
func List(modulePath, initArgs string) ([]TokenInfo, error) {
	m, err := acquireModule(modulePath, initArgs, startFactor*DefaultDeadline)
	if err != nil {
		return nil, err
	}
	list, err := await(startFactor*DefaultDeadline, m.tokens, nil)
	m.release(errors.Is(err, errStuck), DefaultDeadline)
	if err != nil {
		return nil, fmt.Errorf("PKCS#11 module %s: %w", modulePath, err)
	}
	return list, nil
}

// Token is an open token. All methods may be called from any goroutine.
type Token struct {
	cfg     Config
	m       *module
	info    TokenInfo
	permits chan pkcs11.SessionHandle // one per session that may be in use; noSession is one not open yet
	faults  atomic.Int32              // operations in a row that broke their session

	mu       sync.Mutex
	capacity int // permits in being
	stuck    int // of those, calls that did not return
	cause    error
	lost     chan struct{} // closed when cause is set
	closing  sync.Once
}

var errClosed = errors.New("closed")

const noSession pkcs11.SessionHandle = 0 // PKCS#11: never a valid handle

// Open finds the token and logs in. Errors: ErrPIN, ErrTokenLost (the module hangs), others that say what is missing.
func Open(cfg Config) (*Token, error) { return open(cfg, true) }

// OpenPublic is Open without a login: no private key can be seen.
func OpenPublic(cfg Config) (*Token, error) { return open(cfg, false) }

func open(cfg Config, login bool) (*Token, error) {
	cfg.defaults()
	uri, err := ParseURI(cfg.URI)
	if err != nil {
		return nil, fmt.Errorf("token %s: %w", cfg.Name, err)
	}
	if uri.Token == "" && uri.Serial == "" {
		return nil, fmt.Errorf("token %s: the URI names no token; add token=LABEL or serial=SERIAL", cfg.Name)
	}
	if login {
		if err := checkMarker(cfg); err != nil {
			return nil, err
		}
	}
	m, err := acquireModule(uri.Module, cfg.InitArgs, startFactor*cfg.Deadline)
	if err != nil {
		return nil, fmt.Errorf("token %s: %w", cfg.Name, err)
	}
	t := &Token{cfg: cfg, m: m, lost: make(chan struct{})}
	if err := t.start(uri, login); err != nil {
		m.release(errors.Is(err, errStuck), cfg.Deadline)
		return nil, fmt.Errorf("token %s: %w", cfg.Name, err)
	}
	return t, nil
}

func (t *Token) start(uri URI, login bool) error {
	list, err := await(startFactor*t.cfg.Deadline, t.m.tokens, nil)
	if err != nil {
		return t.starting("listing tokens", err)
	}
	if t.info, err = selectToken(uri, list); err != nil {
		return err
	}
	if !t.m.claim(t.id()) {
		return fmt.Errorf("%s is open in this process already; two names in the configuration mean one token", t.info)
	}
	anchor, err := t.logIn(login)
	if err != nil {
		t.m.unclaim(t.id())
		return err
	}
	// A login lasts as long as the process has a session, so the one that logged in is kept aside, unused, where the
	// token has room for more than one.
	t.capacity = t.cfg.MaxSessions
	if limit := int(min(t.info.MaxSessions, 1<<20)); limit > 0 {
		t.capacity = max(1, min(t.capacity, limit-1))
	}
	t.permits = make(chan pkcs11.SessionHandle, t.capacity)
	if t.info.MaxSessions == 1 {
		t.permits <- anchor
		return nil
	}
	for range t.capacity {
		t.permits <- noSession
	}
	return nil
}

func (t *Token) id() string { return t.info.Serial + "\x00" + t.info.Label }

// starting turns an error from before the token was in use into what the caller must know.
func (t *Token) starting(operation string, err error) error {
	switch faultOf(err) {
	case faultCall:
		return fmt.Errorf("%s: %w", operation, err)
	case faultPIN:
		return t.refused(fmt.Errorf("%s: %w", operation, err))
	}
	return fmt.Errorf("%w: %s: %w", ErrTokenLost, operation, err)
}

// refused puts on record that the token will have no more of the PIN.
func (t *Token) refused(err error) error {
	err = fmt.Errorf("%w: %w; see that the PIN is right, then 'ocspd token retry %s'", ErrPIN, err, t.cfg.Name)
	if e := writeMarker(t.cfg.Marker, err); e != nil {
		err = fmt.Errorf("%w (and it could not be put on record, so the next start will try again: %w)", err, e)
	}
	return err
}

func selectToken(uri URI, list []TokenInfo) (TokenInfo, error) {
	var found []TokenInfo
	for _, i := range list {
		if uri.Matches(i) {
			found = append(found, i)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return TokenInfo{}, fmt.Errorf("%d tokens match: %s; add serial= to the URI", len(found), names(found))
	case len(list) == 0:
		return TokenInfo{}, errors.New("no such token: the module sees none at all; is it plugged in, and may this user reach it?")
	}
	return TokenInfo{}, fmt.Errorf("no such token; the module sees %s", names(list))
}

// names lists things in one line, the first ten of them.
func names[T fmt.Stringer](list []T) string {
	var s []string
	for _, v := range list {
		s = append(s, v.String())
	}
	slices.Sort(s) // a token gives its objects in any order
	if more := len(s) - 10; more > 0 {
		s = append(s[:10], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(s, ", ")
}

// logIn opens the first session and, where asked, gives the PIN to the token: once, whatever the answer.
func (t *Token) logIn(login bool) (pkcs11.SessionHandle, error) {
	flags := t.info.flags
	if login {
		switch {
		case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
			return 0, fmt.Errorf("%w: %s says that its PIN is locked; unlock it with the security officer's PIN", ErrPIN, t.info)
		case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
			return 0, fmt.Errorf("%w: %s says that one more wrong PIN locks it, so none is tried; log in once by hand "+
				"(pkcs11-tool --login), which resets its count", ErrPIN, t.info)
		case flags&pkcs11.CKF_USER_PIN_TO_BE_CHANGED != 0:
			return 0, fmt.Errorf("%w: %s says that its PIN must be changed before it does anything; change it with the tools of the token", ErrPIN, t.info)
		case flags&pkcs11.CKF_USER_PIN_INITIALIZED == 0 && flags&pkcs11.CKF_LOGIN_REQUIRED != 0:
			return 0, fmt.Errorf("%s has no user PIN yet; set one with the tools of the token", t.info)
		case flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0:
			t.cfg.Log.Warn("a wrong PIN was given to the token since the last login", "token", t.cfg.Name)
		}
	}
	session, err := await(startFactor*t.cfg.Deadline, func() (pkcs11.SessionHandle, error) {
		return t.m.ctx.OpenSession(t.info.slot, pkcs11.CKF_SERIAL_SESSION)
	}, nil)
	if err != nil {
		return 0, t.starting("C_OpenSession", err)
	}
	if !login {
		return session, nil
	}
	if flags&pkcs11.CKF_LOGIN_REQUIRED == 0 {
		t.cfg.Log.Warn("the token asks for no login: anyone who can load its module can sign", "token", t.cfg.Name)
		return session, nil
	}
	if t.cfg.PIN == nil {
		return 0, errors.New("it needs a PIN and none is configured")
	}
	pin, err := t.cfg.PIN()
	if err != nil {
		t.closeAll()
		return 0, err
	}
	if len(pin) == 0 {
		t.closeAll()
		return 0, errors.New("the PIN is empty")
	}
	_, err = await(startFactor*t.cfg.Deadline, func() (struct{}, error) {
		defer clear(pin)
		return struct{}{}, t.m.login(session, pin)
	}, nil)
	if err == nil {
		return session, nil
	}
	if pinRefused(err) {
		err = t.refused(fmt.Errorf("C_Login: %w", err))
	} else {
		err = t.starting("C_Login", err)
	}
	if !errors.Is(err, errStuck) {
		t.closeAll()
	}
	return 0, err
}

// closeAll ends every session of this process with the token, and with them the login.
func (t *Token) closeAll() error {
	_, err := await(t.cfg.Deadline, func() (struct{}, error) {
		return struct{}{}, t.m.ctx.CloseAllSessions(t.info.slot)
	}, nil)
	return err
}

func checkMarker(cfg Config) error {
	if cfg.Marker == "" {
		return nil
	}
	switch b, err := os.ReadFile(cfg.Marker); {
	case err == nil:
		return fmt.Errorf("token %s: %w earlier (%s), so it is not tried again; see that the PIN is right, then 'ocspd token retry %s'",
			cfg.Name, ErrPIN, strings.TrimSpace(string(b[:min(len(b), 200)])), cfg.Name)
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("token %s: cannot tell whether an earlier PIN was refused: %w", cfg.Name, err)
	}
	return nil
}

// writeMarker puts a refusal on record so that it is there after a power cut too.
func writeMarker(path string, refusal error) error {
	if path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	code := "PIN refused"
	var e pkcs11.Error
	if errors.As(refusal, &e) {
		code = e.Error()
	}
	_, err = fmt.Fprintf(f, "%s: %s\n", time.Now().UTC().Format(time.RFC3339), code)
	err = errors.Join(err, f.Sync(), f.Close())
	dir, e2 := os.Open(filepath.Dir(path))
	if e2 != nil {
		return errors.Join(err, e2)
	}
	return errors.Join(err, dir.Sync(), dir.Close())
}

// Info is what the module said of the token when it was opened.
func (t *Token) Info() TokenInfo { return t.info }

// Sessions is how many sessions may sign at the same time.
func (t *Token) Sessions() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.capacity
}

// Lost is closed when the token is lost, or closed.
func (t *Token) Lost() <-chan struct{} { return t.lost }

// Close ends the sessions and the login. It waits for calls under way, but not for stuck ones.
func (t *Token) Close() { t.closing.Do(t.close) }

func (t *Token) close() {
	t.lose("", errClosed)
	timer := time.NewTimer(t.cfg.Deadline)
	defer timer.Stop()
	t.mu.Lock()
	stuck, n := t.stuck > 0, t.capacity-t.stuck
	t.mu.Unlock()
	for ; n > 0; n-- {
		select {
		case <-t.permits:
		case <-timer.C:
			stuck, n = true, 0
		}
	}
	if !stuck {
		stuck = errors.Is(t.closeAll(), errStuck)
	}
	t.m.unclaim(t.id())
	t.m.release(stuck, t.cfg.Deadline)
}

// lose marks the token lost, or closed. The first cause stays, and is what every later operation returns.
func (t *Token) lose(operation string, err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cause != nil {
		return t.cause
	}
	if t.cause = err; err != errClosed {
		t.cause = fmt.Errorf("%w (%s: %w)", ErrTokenLost, operation, err)
		t.cfg.Log.Error("token lost", "token", t.cfg.Name, "operation", operation, "error", err)
	}
	close(t.lost)
	return t.cause
}

// use says how an operation uses its session.
type use struct {
	operation string
	write     bool          // a read-write session, closed afterwards; never tried a second time
	deadline  time.Duration // 0: that of the token
}

// with runs f in a session. It is the only way to the token once it is open, so that here alone is decided what an
// error does to the session and to the token.
func with[T any](ctx context.Context, t *Token, u use, f func(*pkcs11.Ctx, pkcs11.SessionHandle) (T, error)) (T, error) {
	failed := func(err error) (T, error) {
		var zero T
		return zero, fmt.Errorf("token %s: %s: %w", t.cfg.Name, u.operation, err)
	}
	session, err := t.acquire(ctx)
	if err != nil {
		return failed(err)
	}
	for again := !u.write; ; {
		var v T
		v, session, err = once(t, u, session, f)
		switch {
		case err == nil:
			t.permits <- session
			t.faults.Store(0)
			return v, nil
		case errors.Is(err, errStuck):
			t.stick(u.operation, err) // the permit comes back when the call does
		case isCode(err, pkcs11.CKR_SESSION_COUNT) && t.shrink():
			// Others hold the rest of the token's sessions: wait for one of ours.
			if session, err = t.acquire(ctx); err != nil {
				return failed(err)
			}
			continue
		case faultOf(err) == faultSession && again:
			t.cfg.Log.Warn("session discarded", "token", t.cfg.Name, "operation", u.operation, "error", err)
			again = false
			continue
		default:
			t.permits <- noSession
		}
		switch f := faultOf(err); {
		case f == faultPIN:
			err = t.lose(u.operation, t.refused(err))
		case f == faultToken, f == faultSession && t.faults.Add(1) >= maxFaults:
			err = t.lose(u.operation, err)
		}
		return failed(err)
	}
}

// once runs f in the session, or in a new one when there is none. It returns the session that may be used again:
// noSession after an error.
func once[T any](t *Token, u use, session pkcs11.SessionHandle, f func(*pkcs11.Ctx, pkcs11.SessionHandle) (T, error)) (T, pkcs11.SessionHandle, error) {
	type outcome struct {
		v       T
		session pkcs11.SessionHandle
	}
	c, deadline, flags := t.m.ctx, t.cfg.Deadline, uint(pkcs11.CKF_SERIAL_SESSION)
	if u.deadline > 0 {
		deadline = u.deadline
	}
	if u.write {
		flags |= pkcs11.CKF_RW_SESSION
	}
	o, err := await(deadline, func() (o outcome, err error) {
		if session != noSession && u.write {
			c.CloseSession(session) // whatever it says: the handle is not used again
			session = noSession
		}
		if session == noSession {
			if session, err = c.OpenSession(t.info.slot, flags); err != nil {
				return o, fmt.Errorf("C_OpenSession: %w", err)
			}
		}
		o.v, err = f(c, session)
		if err != nil || u.write {
			c.CloseSession(session)
			return o, err
		}
		o.session = session
		return o, nil
	}, func(o outcome, _ error) {
		if o.session != noSession {
			c.CloseSession(o.session)
		}
		t.unstick()
	})
	return o.v, o.session, err
}

// acquire waits for a permit: until the context ends, the token is lost, or the deadline is over.
func (t *Token) acquire(ctx context.Context) (pkcs11.SessionHandle, error) {
	select {
	case <-t.lost:
		return 0, t.lostCause()
	default:
	}
	select {
	case s := <-t.permits:
		return s, nil
	default:
	}
	timer := time.NewTimer(t.cfg.Deadline)
	defer timer.Stop()
	select {
	case s := <-t.permits:
		return s, nil
	case <-t.lost:
		return 0, t.lostCause()
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-timer.C:
		return 0, fmt.Errorf("no session became free in %s", t.cfg.Deadline)
	}
}

func (t *Token) lostCause() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.cause
}

// shrink gives up a permit, if it is not the last.
func (t *Token) shrink() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.capacity == 1 {
		return false
	}
	t.capacity--
	t.cfg.Log.Warn("the token has no room for more sessions", "token", t.cfg.Name, "sessions", t.capacity)
	return true
}

func (t *Token) stick(operation string, err error) {
	t.mu.Lock()
	t.stuck++
	stuck, limit := t.stuck, min(maxStuck, t.capacity)
	t.mu.Unlock()
	t.cfg.Log.Error("a call into the module is stuck", "token", t.cfg.Name, "operation", operation, "stuck", stuck)
	if stuck >= limit {
		t.lose(operation, err)
	}
}

// unstick is for a call that returned after all.
func (t *Token) unstick() {
	t.mu.Lock()
	t.stuck--
	t.mu.Unlock()
	t.permits <- noSession
}
