package responder

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"ocspd/pki"
)

// ErrSignature means that the token gave a signature that the certificate's key does not verify.
var ErrSignature = errors.New("the token's signature does not verify with the signer's certificate")

// Authority is what answering for one issuer takes.
type Authority struct {
	Issuer *pki.Issuer
	Signer *x509.Certificate // delegated (RFC 6960 section 4.2.2.2); nil where the CA's own key signs
	Key    crypto.Signer
	Policy Policy // its NotAfter is set from the certificates
	ByName bool   // ResponderID names the signer by its subject, for clients of old, instead of by its key
	CrlID  bool   // answers name the CRL that says revoked (RFC 6960 section 4.4.2)
	PSS    bool   // an RSA key signs with PSS instead of PKCS #1 v1.5

	written     *writtenIssuer
	alg         *signatureAlgorithm
	verify      *x509.Certificate // the certificate of Key
	responderID []byte
	view        atomic.Pointer[View]
}

// A Question is all that front can ask: it names no status and no time.
type Question struct {
	Issuer pki.IssuerID
	Nonce  []byte // nil, or 1 to MaxNonce octets to be echoed
	Items  []Item // 1 to MaxItems
}

// An Item is a CertID whose issuer is known.
type Item struct {
	Form   Form
	Serial pki.Serial
}

// MaxItems is the largest number of certificates in one question.
const MaxItems = 255

// An Answer is a finished OCSPResponse with what front needs to keep it. Times are in whole seconds, UTC.
type Answer struct {
	Status     ResponseStatus
	Unknown    bool   // some certificate was never issued, as far as is known: to be forgotten soon
	Generation uint64 // that decided
	ProducedAt time.Time
	ThisUpdate time.Time  // the earliest of all certificates
	NextUpdate time.Time  // the earliest of all certificates
	DER        []byte     // empty unless Successful
	By         *Authority // that signed DER, on the side of the signer
}

// Signer answers questions: it chooses the status, builds ResponseData and has it signed. It signs nothing else.
// All methods are safe for concurrent use.
type Signer struct {
	now     func() time.Time
	admit   func(producedAt time.Time) error
	failed  func(issuer string, err error)
	mu      sync.RWMutex
	current map[pki.IssuerID]*Authority
	signed  atomic.Uint64

	// deciding is held from the reading of the clock until admit has seen it, so that admit sees times in order as long as the
	// clock keeps to it.
	deciding sync.Mutex
}

// NewSigner makes a Signer without issuers. admit is asked before each signature, with its producedAt, and forbids it by an error; failed is
// told of every signature that did not come about.
func NewSigner(now func() time.Time, admit func(time.Time) error, failed func(issuer string, err error)) *Signer {
	return &Signer{now: now, admit: admit, failed: failed}
}

// Signed is the number of signatures made since the start.
func (s *Signer) Signed() uint64 { return s.signed.Load() }

// Prepare checks an Authority and completes it. It does not judge the certificate, but the key must be the certificate's: shown by
// signing with it, not by a label.
func (a *Authority) Prepare() error {
	a.verify = a.Signer
	if a.verify == nil {
		a.verify = a.Issuer.Certificate
	}
	fail := func(err error) error { return fmt.Errorf("issuer %s: %w", a.Issuer.Name, err) }
	var err error
	if a.alg, err = algorithmFor(a.verify.PublicKey, a.PSS); err != nil {
		return fail(err)
	}
	signer, err := pki.NewIssuer(a.Issuer.Name, a.verify)
	if err != nil {
		return fail(err)
	}
	if a.ByName && a.Signer != nil && bytes.Equal(a.Signer.RawSubject, a.Issuer.Certificate.RawSubject) {
		return fail(errors.New("the signer's certificate has the name of its CA, so clients would take answers by name for the CA's own and never look at it; leave responder_id at \"key\" (OCSP-RID-04)"))
	}
	a.responderID = responderID(signer, a.ByName)
	a.written = writeIssuer(a.Issuer)
	a.Policy.NotAfter = a.Issuer.Certificate.NotAfter
	if a.verify.NotAfter.Before(a.Policy.NotAfter) {
		a.Policy.NotAfter = a.verify.NotAfter
	}
	if _, err := sign([]byte("ocspd: is this the key of the certificate?"), a.Key, a.alg, a.verify, nil); err != nil {
		return fail(err)
	}
	return nil
}

// SetView puts the generation in force that decides from now on; nil means that there is none, so that every answer is TryLater.
func (a *Authority) SetView(v *View) { a.view.Store(v) }

// View is the generation in force, or nil.
func (a *Authority) View() *View { return a.view.Load() }

// Certificate is that of Key: the delegated one, or the CA's own. Nil before Prepare.
func (a *Authority) Certificate() *x509.Certificate { return a.verify }

// Use answers for these authorities, and no others, from now on. One that was not prepared is answered for with TryLater.
func (s *Signer) Use(authorities []*Authority) {
	m := make(map[pki.IssuerID]*Authority, len(authorities))
	for _, a := range authorities {
		m[a.Issuer.ID] = a
	}
	s.mu.Lock()
	s.current = m
	s.mu.Unlock()
}

// Answer decides and signs. All certificates of one question are judged by one generation at one moment.
func (s *Signer) Answer(q *Question) Answer {
	s.mu.RLock()
	a := s.current[q.Issuer]
	s.mu.RUnlock()
	if a == nil {
		return Answer{Status: Unauthorized}
	}
	answer, singles := s.decide(a, q)
	if answer.Status != Successful {
		return answer
	}
	tbs, err := responseData(a.written, a.responderID, answer.ProducedAt, singles, q.Nonce)
	status := InternalError
	if err == nil {
		if answer.DER, err = sign(tbs, a.Key, a.alg, a.verify, a.Signer); err != nil && !errors.Is(err, ErrSignature) {
			status = TryLater
		}
	}
	if err != nil {
		s.failed(a.Issuer.Name, err)
		return Answer{Status: status, Generation: answer.Generation}
	}
	s.signed.Add(1)
	answer.By = a
	return answer
}

// decide makes an Answer but for its bytes.
func (s *Signer) decide(a *Authority, q *Question) (Answer, []single) {
	s.deciding.Lock()
	defer s.deciding.Unlock()
	view := a.View()
	now := s.now().UTC().Truncate(time.Second)
	answer := Answer{ProducedAt: now}
	if view != nil {
		answer.Generation = view.Number
	}
	refuse := func(status ResponseStatus) (Answer, []single) {
		return Answer{Status: status, Generation: answer.Generation}, nil
	}
	if a.alg == nil || now.Before(a.verify.NotBefore) {
		return refuse(TryLater)
	}
	singles := make([]single, len(q.Items))
	for i, item := range q.Items {
		v := a.Policy.Decide(view, item.Serial, now)
		if v.Refusal != Successful {
			return refuse(v.Refusal)
		}
		singles[i] = single{form: item.Form, serial: item.Serial, Verdict: v}
		if a.CrlID && v.governing != nil && v.governing.Kind == pki.CRL {
			singles[i].crl = v.governing
		}
		answer.Unknown = answer.Unknown || v.Status.State == pki.Unknown || v.Extended
		if i == 0 || v.ThisUpdate.Before(answer.ThisUpdate) {
			answer.ThisUpdate = v.ThisUpdate
		}
		if i == 0 || v.NextUpdate.Before(answer.NextUpdate) {
			answer.NextUpdate = v.NextUpdate
		}
	}
	if err := s.admit(now); err != nil {
		s.failed(a.Issuer.Name, err)
		return refuse(TryLater)
	}
	return answer, singles
}
