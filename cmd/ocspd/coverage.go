package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"ocspd/db"
	"ocspd/ingest"
	"ocspd/pki"
)

// This file is about CRLs that speak of a part of what an issuer issued (issuingDistributionPoint, RFC 5280 section 5.2.5). A serial
// that any CRL in force revokes is revoked. That none of them names it proves something only where they cover everything together.

// acceptPartition is the admin's word that the distribution points of the configured sources are all that the CA has.
const acceptPartition = "crl-distribution-points"

// allReasons are the bits 1 to 8 of ReasonFlags (RFC 5280 section 4.2.1.13).
const allReasons = 0x1fe

// gap says of what certificates no CRL in force speaks, for people; "" when together they speak of all. A distribution point covers the
// certificates that name it, and whether others name another cannot be seen from here: that takes the admin's word.
func (i *keptIssuer) gap(lineages []db.Lineage) string {
	declared := slices.Contains(i.config.Accept, acceptPartition) && i.allPartsHere(lineages)
	var users, authorities uint16 // reasons covered
	parts, points := false, false
	for _, l := range lineages {
		if l.Kind != pki.CRL {
			continue
		}
		parts = true
		s, err := ingest.ParseScope(l.Scope)
		switch {
		case l.Key == db.CRLLineage:
			return ""
		case err != nil: // it covers nothing
			continue
		case s.DistributionPoint != nil && !declared:
			points = true
			continue
		}
		reasons := s.OnlySomeReasons
		if reasons == 0 {
			reasons = allReasons
		}
		if !s.OnlyCACerts {
			users |= reasons
		}
		if !s.OnlyUserCerts {
			authorities |= reasons
		}
	}
	var missing []string
	for _, c := range []struct {
		name    string
		reasons uint16
	}{{"certificates of users", users}, {"certificates of CAs", authorities}} {
		switch left := allReasons &^ c.reasons; {
		case !parts || left == 0:
		case left == allReasons:
			missing = append(missing, c.name)
		default:
			missing = append(missing, fmt.Sprintf("%s revoked for other reasons (ReasonFlags 0x%x)", c.name, left))
		}
	}
	text := strings.Join(missing, " and ")
	if text != "" && points {
		text += " of other distribution points than those loaded"
	}
	return text
}

// allPartsHere reports whether every configured CRL source has delivered a part of its own.
func (i *keptIssuer) allPartsHere(lineages []db.Lineage) bool {
	for _, s := range i.sources {
		if s.CRL != "" && !hasLineage(lineages, db.PartLineage(s.CRL)) {
			return false
		}
	}
	return true
}

func hasLineage(lineages []db.Lineage, key string) bool {
	return slices.ContainsFunc(lineages, func(l db.Lineage) bool { return l.Key == key })
}

// lineage is the key of what a configured source feeds.
func (s sourceConfig) lineage(lineages []db.Lineage) string {
	switch part := db.PartLineage(s.CRL); {
	case s.Index != "":
		return db.IndexLineage(s.Index)
	case hasLineage(lineages, part):
		return part
	}
	return db.CRLLineage
}

// unwanted says why a lineage is to go out of force, or "". An issuer without sources keeps what is handed in. A CRL that has run out, of a
// part or complete, goes when the others cover everything without it: the CA has divided its CRLs in another way.
func (i *keptIssuer) unwanted(lineages []db.Lineage, l *db.Lineage, now time.Time) string {
	if len(i.sources) == 0 {
		return ""
	}
	configured := l.Key == db.CRLLineage && i.hasCRL() || slices.ContainsFunc(i.sources, func(s *source) bool {
		return s.Index != "" && l.Key == db.IndexLineage(s.Index) || s.CRL != "" && l.Key == db.PartLineage(s.CRL)
	})
	if !configured {
		return "no longer configured"
	}
	if l.Kind != pki.CRL || now.Before(l.NextUpdate) {
		return ""
	}
	var others []db.Lineage
	crls := false
	for _, o := range lineages {
		if o.Key == l.Key || o.Kind == pki.CRL && !now.Before(o.NextUpdate) {
			continue
		}
		others = append(others, o)
		crls = crls || o.Kind == pki.CRL
	}
	if crls && i.gap(others) == "" {
		return "it has run out, and the other CRLs cover everything without it"
	}
	return ""
}

// partSource finds the configured source that a CRL of a part, handed in, stands for: the one that gave that part before, or whose
// location the CRL names, or the only one that has given nothing yet.
func (i *keptIssuer) partSource(snap *pki.Snapshot, lineages []db.Lineage) (string, error) {
	scope, err := ingest.ParseScope(snap.Scope)
	if err != nil {
		return "", err
	}
	var idle []string
	for _, s := range i.sources {
		if s.CRL == "" {
			continue
		}
		n := slices.IndexFunc(lineages, func(l db.Lineage) bool { return l.Key == db.PartLineage(s.CRL) })
		switch {
		case n >= 0 && lineages[n].Scope == snap.Scope, slices.Contains(scope.URLs, s.CRL):
			return s.CRL, nil
		case n < 0:
			idle = append(idle, s.CRL)
		}
	}
	if len(idle) == 1 {
		return idle[0], nil
	}
	return "", fmt.Errorf("the CRL covers a part of what the CA issued (%s), and no configured source is known to be its own; "+
		"add a [[issuer.%s.source]] with the crl = … of this part, or put the file where that points", scope, i.config.Name)
}
