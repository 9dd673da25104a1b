package hsm

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/pkcs11"
)

// liar compiles the module that lies about keys.
func liar(t *testing.T) string {
	t.Helper()
	module := filepath.Join(t.TempDir(), "liar.so")
	command(t, nil, "cc", "-shared", "-fPIC", "-o", module, "testdata/liar.c", "-ldl")
	t.Setenv("LIAR_MODULE", softHSM)
	return module
}

func outcomes(t *testing.T, k *Key) map[string]Probe {
	t.Helper()
	a, err := k.Attributes()
	if err != nil {
		t.Fatal(err)
	}
	list, err := k.Probes(a)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]Probe{}
	for _, p := range list {
		m[p.Call] = p
	}
	return m
}

// everything lists all that the token holds, so that a test sees whether anything was left or changed.
func everything(t *testing.T, token *Token) []Object {
	t.Helper()
	list, cut, err := token.Objects()
	if err != nil || cut {
		t.Fatal(cut, err)
	}
	slices.SortFunc(list, func(a, b Object) int { return strings.Compare(a.Class+a.Label+a.ID, b.Class+b.Label+b.ID) })
	return list
}

// OCSP-KEY-04, OCSP-KEY-05, OCSP-KEY-07: a key of ours is refused every other use, and says so by the right code.
func TestKEY04ProbesRefused(t *testing.T) {
	token := openToken(t)
	const not, prohibited = "CKR_KEY_FUNCTION_NOT_PERMITTED", "CKR_ACTION_PROHIBITED"
	for a, want := range map[Algorithm]map[string]string{
		"rsa2048": {"C_DecryptInit": not, "C_UnwrapKey": not, "C_DeriveKey": "", "C_SignRecoverInit": "CKR_FUNCTION_NOT_SUPPORTED"},
		"p256":    {"C_DecryptInit": "", "C_UnwrapKey": "", "C_DeriveKey": not, "C_SignRecoverInit": ""},
		Ed25519:   {"C_DecryptInit": "", "C_UnwrapKey": "", "C_DeriveKey": "", "C_SignRecoverInit": ""},
	} {
		k := generate(t, token, string(a), a)
		before := everything(t, token)
		got := outcomes(t, k)
		want["C_SetAttributeValue"], want["C_CopyObject"], want["C_SignInit"] = prohibited, prohibited, "CKR_MECHANISM_INVALID"
		for call, code := range want {
			outcome := Refused
			if code == "" {
				outcome = NotTried
			}
			if p := got[call]; p.Code != code || p.Outcome != outcome || p.Finding() != nil {
				t.Errorf("%s: %+v, want %s", a, p, code)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %v", a, got)
		}
		if d := cmp.Diff(before, everything(t, token), cmpopts.IgnoreUnexported(Object{})); d != "" {
			t.Errorf("%s: the probes left something: %s", a, d)
		}
		if err := k.Prove(context.Background(), k.Public()); err != nil {
			t.Error(err)
		}
	}
}

// OCSP-KEY-04, OCSP-KEY-10: what a key can do shows when it is tried, though the module says that it cannot. Nothing is left of it.
func TestKEY10ProbesFindTheLie(t *testing.T) {
	newTokens(t, "ocsp")
	token := reopen(t, config(t, liar(t)))
	set := pkcs11.NewAttribute
	for _, a := range []Algorithm{"rsa2048", "p256"} {
		raw(t, token, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) (struct{}, error) {
			public, private := templates(string(a), []byte(a), algorithms[a])
			private = omit(private, []uint{pkcs11.CKA_DECRYPT, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE, pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_MODIFIABLE, pkcs11.CKA_COPYABLE, pkcs11.CKA_ALLOWED_MECHANISMS})
			private = append(private, set(pkcs11.CKA_DECRYPT, true), set(pkcs11.CKA_UNWRAP, true), set(pkcs11.CKA_DERIVE, true), set(pkcs11.CKA_EXTRACTABLE, true))
			_, _, err := c.GenerateKeyPair(s, mechanism(algorithms[a].generate, nil), public, private)
			return struct{}{}, err
		})
		k, err := token.Find(KeyURI(string(a)))
		if err != nil {
			t.Fatal(err)
		}
		list, err := k.Attributes()
		if err != nil {
			t.Fatal(err)
		}
		if f := list.Findings(time.Now()); len(f) != 0 {
			t.Fatalf("the module does not lie well: %v", f)
		}
		before := everything(t, token)
		got := outcomes(t, k)
		want := []string{"C_DeriveKey"}
		if a == "rsa2048" {
			want = []string{"C_DecryptInit", "C_UnwrapKey"}
		}
		for _, call := range want {
			f := got[call].Finding()
			if f == nil || !f.Must || f.Rule != "OCSP-KEY-04" || !strings.Contains(f.Attribute, call) {
				t.Errorf("%s: %s: %+v, finding %v", a, call, got[call], f)
			}
		}
		if f := got["C_SignInit"].Finding(); a == "p256" && f != nil && f.Must {
			t.Errorf("%v", f)
		}
		if f := got["C_SetAttributeValue"].Finding(); f == nil || f.Must || f.Rule != "OCSP-KEY-07" {
			t.Errorf("%s: a key that can be changed: %+v", a, got["C_SetAttributeValue"])
		}
		// The copy that contradicts itself is refused for that, which shows nothing, and there is no copy.
		if p := got["C_CopyObject"]; p.Outcome != Unclear || p.Why == "" {
			t.Errorf("%s: %+v", a, p)
		}
		if d := cmp.Diff(before, everything(t, token), cmpopts.IgnoreUnexported(Object{})); d != "" {
			t.Errorf("%s: the probes left something: %s", a, d)
		}
	}
}

// OCSP-KEY-07: a key that says that it may be changed and copied is left alone.
func TestKEY07LooseKeyIsLeftAlone(t *testing.T) {
	s := newShim(t)
	token := reopen(t, config(t, s.module))
	raw(t, token, func(c *pkcs11.Ctx, session pkcs11.SessionHandle) (struct{}, error) {
		public, private := templates("loose", []byte("loose"), algorithms["p256"])
		private = omit(private, []uint{pkcs11.CKA_MODIFIABLE, pkcs11.CKA_COPYABLE})
		_, _, err := c.GenerateKeyPair(session, mechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil), public, private)
		return struct{}{}, err
	})
	k, err := token.Find("pkcs11:object=loose")
	if err != nil {
		t.Fatal(err)
	}
	s.forget()
	got := outcomes(t, k)
	for _, call := range []string{"C_SetAttributeValue", "C_CopyObject"} {
		if p := got[call]; p.Outcome != NotTried || !strings.Contains(p.Why, "true") {
			t.Errorf("%+v", p)
		}
	}
	if n := s.calls("C_SetAttributeValue", "C_CopyObject", "C_WrapKey", "C_Decrypt", "C_Sign", "C_SignRecover", "C_CreateObject"); n != 0 {
		t.Errorf("%d calls that must not be", n)
	}
}

// A token that is lost while it is probed is lost, and that is no refusal.
func TestProbesOfALostToken(t *testing.T) {
	s := newShim(t)
	token := reopen(t, config(t, s.module))
	k := generate(t, token, "key", "p256")
	a, err := k.Attributes()
	if err != nil {
		t.Fatal(err)
	}
	s.rules("C_DeriveKey 0x32") // CKR_DEVICE_REMOVED
	_, err = k.Probes(a)
	wantError(t, err, "token lost", "C_DeriveKey")
}

// OCSP-KEY-15, OCSP-KEY-08: every object is listed, with what tells it apart, and no value is asked for.
func TestKEY15Inventory(t *testing.T) {
	s := newShim(t)
	token := reopen(t, config(t, s.module))
	k := generate(t, token, "key", "p384")
	set := pkcs11.NewAttribute
	raw(t, token, func(c *pkcs11.Ctx, session pkcs11.SessionHandle) (struct{}, error) {
		_, err := c.GenerateKey(session, mechanism(pkcs11.CKM_AES_KEY_GEN, nil), []*pkcs11.Attribute{set(pkcs11.CKA_LABEL, "backup"), set(pkcs11.CKA_ID, []byte{7}),
			set(pkcs11.CKA_VALUE_LEN, 32), set(pkcs11.CKA_TOKEN, true), set(pkcs11.CKA_WRAP, true), set(pkcs11.CKA_SENSITIVE, true), set(pkcs11.CKA_EXTRACTABLE, false)})
		if err != nil {
			return struct{}{}, err
		}
		_, err = c.CreateObject(session, []*pkcs11.Attribute{set(pkcs11.CKA_CLASS, pkcs11.CKO_DATA), set(pkcs11.CKA_TOKEN, true), set(pkcs11.CKA_PRIVATE, true),
			set(pkcs11.CKA_LABEL, "note\nwith a line"), set(pkcs11.CKA_VALUE, []byte("private words"))})
		return struct{}{}, err
	})
	list := everything(t, token)
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Object{}
	for _, o := range list {
		got[o.Class+" "+o.Label] = o
		if k.Names(o) != (o.Class == ClassPrivate) {
			t.Errorf("names %+v: %v", o, k.Names(o))
		}
	}
	private, public := got["private key key"], got["public key key"]
	for _, o := range []Object{private, public} {
		if o.Type != "p384" || o.SPKI != opensslSHA256(t, der) || o.ID == "" || o.Problem != "" {
			t.Errorf("%+v", o)
		}
	}
	if !slices.Contains(private.True, "CKA_SENSITIVE") || slices.Contains(private.True, "CKA_EXTRACTABLE") || slices.Contains(public.True, "CKA_PRIVATE") {
		t.Errorf("%v, %v", private.True, public.True)
	}
	if o := got["secret key backup"]; o.Type != "AES 256 bits" || o.ID != "07" || !slices.Contains(o.True, "CKA_WRAP") {
		t.Errorf("%+v", o)
	}
	if o, ok := got["data note?with a line"]; !ok || strings.Contains(o.Detail, "private words") {
		t.Errorf("%+v of %v", o, list)
	}
	// Without a login: the public key alone (OCSP-KEY-06).
	token.Close()
	open, err := OpenPublic(config(t, s.module))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if list := everything(t, open); len(list) != 1 || list[0].Class != ClassPublic {
		t.Errorf("without a login: %v", list)
	}
}

// opensslSHA256 is the digest as openssl has it.
func opensslSHA256(t *testing.T, b []byte) string {
	t.Helper()
	return strings.Fields(command(t, b, "openssl", "dgst", "-sha256", "-r"))[0]
}

// A read attribute can be judged again, and what was expected of it cannot be talked away.
func TestAttributesAgain(t *testing.T) {
	token := openToken(t)
	k := generate(t, token, "key", "p256")
	list, err := k.Attributes()
	if err != nil {
		t.Fatal(err)
	}
	for i := range list {
		if list[i].Name == "CKA_DECRYPT" {
			list[i].Found = "true"
		}
	}
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	var again Attributes
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	if f := again.Findings(time.Now()); len(f) != 1 || f[0].Name != "key-can-decrypt" {
		t.Errorf("%v", f)
	}
	for _, change := range [][2]string{{`"found":"true","expected":"false","rule":"OCSP-KEY-04"`, `"found":"true","expected":"true","rule":"OCSP-KEY-04"`},
		{"CKA_DECRYPT", "CKA_NOTHING"}, {`"found"`, `"more":1,"found"`}} {
		changed := strings.Replace(string(text), change[0], change[1], 1)
		if changed == string(text) {
			t.Fatalf("%s is not there: %s", change[0], text)
		}
		if err := json.Unmarshal([]byte(changed), &again); err == nil {
			t.Errorf("%s is read", change[1])
		}
	}
}
