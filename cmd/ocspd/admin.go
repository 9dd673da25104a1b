package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ocspd/responder"
)

// The admin listener: a status page, the same as JSON, metrics and a health check. It shows no serial and changes nothing.

//go:embed status.html
var statusPageSource string

var statusPage = template.Must(template.New("status").Funcs(template.FuncMap{
	"time": func(t any) string {
		switch t := t.(type) {
		case time.Time:
			return t.UTC().Format(time.RFC3339)
		case *time.Time:
			if t != nil {
				return t.UTC().Format(time.RFC3339)
			}
		}
		return "–"
	},
	"left":  timeLeft,
	"grave": grave,
}).Parse(statusPageSource))

// timeLeft draws how much of a source's time is over: a share from 0 to 100.
func timeLeft(s sourceStatus) int {
	if s.ThisUpdate == nil || s.NextUpdate == nil {
		return 100
	}
	share := 100 * float64(time.Since(*s.ThisUpdate)) / float64(s.NextUpdate.Sub(*s.ThisUpdate))
	return int(max(0, min(100, share)))
}

func (k *keeper) adminHandler() http.Handler {
	m := http.NewServeMux()
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{k})
	m.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	m.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		s, err := k.status(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		statusPage.Execute(w, struct {
			*statusResult
			Now     time.Time
			Version string
			Front   *heardReport
			Signer  *heardReport
		}{s, time.Now(), version(), k.reports.get(responder.RoleFront), k.reports.get(responder.RoleSigner)})
	})
	m.HandleFunc("GET /status.json", func(w http.ResponseWriter, r *http.Request) {
		s, err := k.status(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(s)
	})
	m.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		faults := k.faults(r)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if len(faults) > 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, strings.Join(faults, "\n"))
			return
		}
		fmt.Fprintln(w, "ALLOK")
	})
	return m
}

// faults are the grave alarms, one line each.
func (k *keeper) faults(r *http.Request) []string {
	s, err := k.status(r.Context())
	if err != nil {
		return []string{err.Error()}
	}
	var l []string
	for _, a := range s.Alarms {
		if grave(a.Name) {
			l = append(l, fmt.Sprintf("%s: %s: %s", a.Name, a.Issuer, a.Text))
		}
	}
	if len(l) == 0 && s.Verdict != verdictServing {
		l = append(l, s.Verdict)
	}
	return l
}

// collector gives the metrics as they stand when they are asked for.
type collector struct{ k *keeper }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("ocspd_"+name, help, labels, nil)
}

var (
	metricAlarm       = describe("alarm", "1 for each alarm that stands", "name", "issuer")
	metricUp          = describe("role_up", "Whether a role is connected to keeper", "role")
	metricGeneration  = describe("generation", "Number of the generation in force", "issuer")
	metricSigned      = describe("signed_generation", "Number of the generation that signer answers by; 0 for none", "issuer")
	metricNotAfter    = describe("signer_not_after_seconds", "End of the signer's certificate, or of the CA's", "issuer")
	metricThisUpdate  = describe("source_this_update_seconds", "thisUpdate of what is in force", "issuer", "source")
	metricNextUpdate  = describe("source_next_update_seconds", "When what is in force ends", "issuer", "source")
	metricEntries     = describe("source_entries", "Entries of what is in force", "issuer", "source")
	metricSuccess     = describe("source_last_success_seconds", "When a source was last read without an error", "issuer", "source")
	metricResponses   = describe("responses_total", "OCSP responses by status, since front started", "status")
	metricHits        = describe("cache_hits_total", "Answers given from the cache")
	metricAsked       = describe("signer_questions_total", "Questions that front put to signer")
	metricBusy        = describe("busy_total", "Questions turned away since too many waited for a signature")
	metricUnreachable = describe("signer_unreachable_total", "Questions that signer did not answer in time")
	metricHash        = describe("certid_hash_total", "CertIDs by hash algorithm", "alg")
	metricNonce       = describe("nonce_total", "Requests with a nonce that was echoed")
	metricDefect      = describe("client_defects_total", "GET requests in a form that only leniency reads")
	metricKept        = describe("cached_answers", "Answers in the cache, about")
	metricRefused     = describe("connections_refused_total", "Connections answered 503 since there were too many")
	metricUnissued    = describe("unissued_total", "Answers for a serial that no source names")
	metricPanics      = describe("panics_total", "Requests that ended in a panic and were answered internalError: report them")
	metricSignatures  = describe("signatures_total", "Answers signed since signer started; not the health checks of keys, nor the heads of logs")
)

// Describe sends nothing: which metrics there are depends on the configuration.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := c.k.status(ctx)
	if err != nil {
		gauge(metricAlarm, 1, alarmDatabase, "")
		return
	}
	seen := map[alarmKey]bool{}
	for _, a := range s.Alarms {
		if key := (alarmKey{a.Name, a.Issuer}); !seen[key] {
			seen[key] = true
			gauge(metricAlarm, 1, a.Name, a.Issuer)
		}
	}
	for _, i := range s.Issuers {
		gauge(metricGeneration, float64(i.Generation), i.Name)
		gauge(metricSigned, float64(i.Signed), i.Name)
		if i.NotAfter != nil {
			gauge(metricNotAfter, float64(i.NotAfter.Unix()), i.Name)
		}
		for _, src := range i.Sources {
			if src.NextUpdate != nil {
				gauge(metricThisUpdate, float64(src.ThisUpdate.Unix()), i.Name, src.Source)
				gauge(metricNextUpdate, float64(src.NextUpdate.Unix()), i.Name, src.Source)
				gauge(metricEntries, float64(src.Entries), i.Name, src.Source)
			}
			if src.Success != nil {
				gauge(metricSuccess, float64(src.Success.Unix()), i.Name, src.Source)
			}
		}
	}
	front, signer := c.k.reports.get(responder.RoleFront), c.k.reports.get(responder.RoleSigner)
	up := func(there bool, role string) {
		v := 0.0
		if there {
			v = 1
		}
		gauge(metricUp, v, role)
	}
	up(front != nil, "front")
	up(signer != nil, "signer")
	up(true, "keeper")
	if signer != nil && signer.Signer != nil {
		count(metricSignatures, signer.Signer.Signatures)
	}
	if front == nil || front.Front == nil {
		return
	}
	f := front.Front
	for _, status := range responseStatuses {
		count(metricResponses, f.Responses[status.String()], status.String())
	}
	for _, alg := range hashNames {
		count(metricHash, f.Hashes[alg], alg)
	}
	count(metricHits, f.Hits)
	count(metricAsked, f.Asked)
	count(metricBusy, f.Busy)
	count(metricUnreachable, f.Unreachable)
	count(metricNonce, f.Nonces)
	count(metricDefect, f.Defects)
	count(metricRefused, f.Refused)
	count(metricUnissued, f.Unissued)
	count(metricPanics, f.Panics)
	gauge(metricKept, float64(f.Kept))
}
