package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ocspd/hsm"
)

// custodyMeasurement asks the tokens.
type custodyMeasurement struct {
	data   *custodyData
	cfg    *config
	log    *slog.Logger
	tokens []*hsm.Token
	keys   map[string]*hsm.Key // that can sign, by SPKI SHA-256
}

func (m *custodyMeasurement) close() {
	for _, t := range m.tokens {
		t.Close()
	}
}

func (m *custodyMeasurement) measure(ctx context.Context) error {
	for _, t := range m.cfg.Tokens {
		if err := m.token(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// token looks at a token first as anybody may, then logged in: the one login of this process.
func (m *custodyMeasurement) token(ctx context.Context, t *tokenConfig) error {
	t.setEnvironment()
	public, err := hsm.OpenPublic(hsm.Config{Name: t.Name, URI: t.URI, InitArgs: t.InitArgs, MaxSessions: 1, Log: m.log})
	if err != nil {
		return err
	}
	visible, _, err := public.Objects()
	public.Close()
	if err != nil {
		return err
	}
	token, err := openToken(m.cfg, t, m.log)
	if err != nil {
		return err
	}
	m.tokens = append(m.tokens, token)
	i := slices.IndexFunc(m.data.Tokens, func(c custodyToken) bool { return c.Name == t.Name })
	if i < 0 {
		return fmt.Errorf("token %s: the configuration changed meanwhile; begin again", t.Name)
	}
	c := &m.data.Tokens[i]
	c.Info, c.Visible = token.Info(), visible
	var used []*hsm.Key // as in m.data.Keys from first on
	first := len(m.data.Keys)
	for _, k := range custodyKeysOf(m.cfg, t) {
		key, err := token.Find(k.URI)
		if err == nil {
			err = m.key(ctx, &k, key)
		}
		if errors.Is(err, hsm.ErrTokenLost) {
			return err
		} else if err != nil {
			k.Problem = err.Error()
		}
		used = append(used, key)
		m.data.Keys = append(m.data.Keys, k)
	}
	objects, cut, err := token.Objects()
	if err != nil {
		return err
	}
	c.Objects, c.Cut = []custodyObject{}, cut
	for _, o := range objects {
		x := custodyObject{Object: o}
		for n, key := range used {
			k := &m.data.Keys[first+n]
			switch {
			case key != nil && key.Names(o):
				x.Purpose = k.Purpose
			case o.SPKI != "" && o.SPKI == k.SPKI && (o.Class == hsm.ClassPublic || o.Class == hsm.ClassCertificate):
				x.Purpose = "other half of the key that " + k.Purpose
			}
		}
		c.Objects = append(c.Objects, x)
	}
	slices.SortStableFunc(c.Objects, func(a, b custodyObject) int {
		return cmp.Or(cmp.Compare(a.Label, b.Label), cmp.Compare(a.Class, b.Class))
	})
	return nil
}

// custodyKeysOf are the keys that the configuration names in a token, each once.
func custodyKeysOf(cfg *config, t *tokenConfig) []custodyKey {
	var list []custodyKey
	for _, i := range cfg.Issuers {
		if i.Token != t.Name {
			continue
		}
		n := slices.IndexFunc(list, func(k custodyKey) bool { return k.URI == i.Key })
		if n < 0 {
			list = append(list, newCustodyKey(t, i.Key, "signs answers of "+i.Name, i.Accept))
			n = len(list) - 1
		} else {
			list[n].Purpose += ", " + i.Name
			list[n].Accept = slices.DeleteFunc(list[n].Accept, func(s string) bool { return !slices.Contains(i.Accept, s) })
		}
		list[n].Issuers = append(list[n].Issuers, i.Name)
	}
	if cfg.AuditKey != "" && cfg.AuditToken == t.Name {
		list = append(list, newCustodyKey(t, cfg.AuditKey, "signs heads of the audit log", cfg.AuditAccept))
	}
	return list
}

func newCustodyKey(t *tokenConfig, uri, purpose string, accept []string) custodyKey {
	return custodyKey{Token: t.Name, URI: uri, Purpose: purpose, Issuers: []string{}, Accept: filled(accept), Attributes: hsm.Attributes{}, Probes: []hsm.Probe{}}
}

// key fills in what the token says of a key and does with it. The proof here is against the public key that the token shows; that it is
// the one in the certificate is judged afterwards.
func (m *custodyMeasurement) key(ctx context.Context, k *custodyKey, key *hsm.Key) (err error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	k.Label, k.ID, k.Type, k.SPKI = key.Label, hex.EncodeToString(key.ID), string(key.Algorithm()), hexSHA256(der)
	k.Public = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	if k.Attributes, err = key.Attributes(); err != nil {
		return err
	}
	if k.Probes, err = key.Probes(k.Attributes); err != nil {
		return err
	}
	m.keys[k.SPKI] = key
	if len(k.Issuers) == 0 {
		return nil
	}
	return key.Prove(ctx, key.Public())
}

// modulePath is the module's file, as it is loaded.
func modulePath(t *tokenConfig) string {
	u, err := hsm.ParseURI(t.URI)
	if err != nil {
		return ""
	}
	if real, err := filepath.EvalSymlinks(u.Module); err == nil {
		return real
	}
	return u.Module
}

// tokenFolders are the folders of a token that lies in files, as far as its configuration tells: SoftHSM's tokens, a TPM's store, NSS's database.
func tokenFolders(t *tokenConfig) []string {
	var list []string
	softHSM := cmp.Or(os.Getenv("SOFTHSM2_CONF"), "/etc/softhsm/softhsm2.conf")
	for _, v := range t.Environment {
		switch name, value, _ := strings.Cut(v, "="); name {
		case "SOFTHSM2_CONF":
			softHSM = value
		case "TPM2_PKCS11_STORE":
			list = append(list, value)
		}
	}
	if strings.Contains(filepath.Base(modulePath(t)), "softhsm") {
		b, _ := os.ReadFile(softHSM)
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(name) == "directories.tokendir" {
				list = append(list, strings.TrimSpace(value))
			}
		}
	}
	if _, rest, ok := strings.Cut(t.InitArgs, "configdir='"); ok {
		dir, _, _ := strings.Cut(rest, "'")
		list = append(list, strings.TrimPrefix(dir, "sql:"))
	}
	return list
}
