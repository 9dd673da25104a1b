package main

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// The alarms that there are. An alarm is one log line when it is raised and one when it ends, one `ocspd_alarm` metric
// and one row of `status` while it lasts.
const (
	alarmTokenDown         = "token down"
	alarmSignerUnusable    = "signer unusable"             // an issuer's key or certificate cannot be used
	alarmSignerExpiring    = "signer certificate expiring" // or expired
	alarmSignatureFailed   = "signature failed"
	alarmKeyChanged        = "key changed" // the token no longer keeps it as it did
	alarmGenerationRefused = "generation refused"
	alarmClockBack         = "clock went back"
	alarmSourceStale       = "source stale"
	alarmSourceAging       = "source aging" // half of its time is over without a newer one
	alarmSourceRefused     = "source refused"
	alarmSourceWarning     = "source warning" // odd, but used
	alarmVanished          = "revocation vanished"
	alarmDisagree          = "sources disagree"
	alarmCoverage          = "coverage incomplete" // the CRLs in force speak of a part of what was issued
	alarmRoleDown          = "role down"
	alarmDatabase          = "database"
	alarmAuditLog          = "audit log"
	alarmLogHead           = "log head unsigned"     // the key in the token has not signed keeper's log for a minute, or refuses to
	alarmListen            = "listeners differ"      // systemd holds other sockets than [listen] names
	alarmDiskFull          = "disk full"             // the reserve was given up, or there is no room to make it
	alarmSignatures        = "signatures miscounted" // signer's log and highwater do not agree
)

var knownAlarms = []string{alarmTokenDown, alarmSignerUnusable, alarmSignerExpiring, alarmSignatureFailed, alarmKeyChanged, alarmGenerationRefused,
	alarmClockBack, alarmSourceStale, alarmSourceAging, alarmSourceRefused, alarmSourceWarning, alarmVanished, alarmDisagree, alarmCoverage, alarmRoleDown,
	alarmDatabase, alarmAuditLog, alarmLogHead, alarmListen, alarmDiskFull, alarmSignatures}

// grave alarms mean that some question gets no answer, or soon none; the others are to be looked at.
func grave(name string) bool {
	switch name {
	case alarmTokenDown, alarmSignerUnusable, alarmSignatureFailed, alarmGenerationRefused, alarmClockBack, alarmSourceStale, alarmCoverage, alarmRoleDown,
		alarmAuditLog:
		return true
	}
	return false
}

type alarm struct {
	Name   string    `json:"name"`
	Issuer string    `json:"issuer"` // or token, or role; "" where it concerns all
	Since  time.Time `json:"since"`
	Text   string    `json:"text"`
}

type alarmKey struct{ name, issuer string }

// alarmSet is the alarms that a role has raised. Safe for concurrent use.
type alarmSet struct {
	log *slog.Logger
	mu  sync.Mutex
	set map[alarmKey]alarm
}

func newAlarmSet(log *slog.Logger) *alarmSet {
	return &alarmSet{log: log, set: map[alarmKey]alarm{}}
}

// raise is idempotent: an alarm that stands keeps its beginning, takes the new text, and is not logged again.
func (s *alarmSet) raise(name, issuer, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := alarmKey{name, issuer}
	a, standing := s.set[k]
	if !standing {
		a = alarm{Name: name, Issuer: issuer, Since: time.Now().UTC().Truncate(time.Second)}
		s.log.Warn("alarm raised", "alarm", name, "issuer", issuer, "text", text)
	}
	a.Text = text
	s.set[k] = a
}

func (s *alarmSet) clear(name, issuer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := alarmKey{name, issuer}
	if _, standing := s.set[k]; standing {
		delete(s.set, k)
		s.log.Info("alarm ended", "alarm", name, "issuer", issuer)
	}
}

// when raises or clears.
func (s *alarmSet) when(condition bool, name, issuer, text string) {
	if condition {
		s.raise(name, issuer, text)
	} else {
		s.clear(name, issuer)
	}
}

func (s *alarmSet) list() []alarm {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := make([]alarm, 0, len(s.set))
	for _, a := range s.set {
		l = append(l, a)
	}
	sortAlarms(l)
	return l
}

func sortAlarms(l []alarm) {
	slices.SortFunc(l, func(a, b alarm) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Issuer, b.Issuer)) })
}
