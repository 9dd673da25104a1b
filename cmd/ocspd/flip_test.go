package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"ocspd/generation"
	"ocspd/pki"
)

// TestFlips damages the database and the generation files at random, a bit or a page at a time, and asks for every serial after each: what signer
// would answer from, what lookup says, and both again after the next CRL and a revocation by hand. An answer may be right, or tryLater, or
// an error, and is never wrong. OCSPD_FLIPS says how many; OCSPD_FLIPS_SEED repeats a run.
func TestFlips(t *testing.T) {
	n := 20
	if s := os.Getenv("OCSPD_FLIPS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	seed := mathrand.Uint64()
	if s := os.Getenv("OCSPD_FLIPS_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	r := mathrand.New(mathrand.NewPCG(seed, 1))
	w, truth := flipWorld(t)
	pristine := filepath.Join(t.TempDir(), "pristine")
	copyTree(t, filepath.Join(w.dir, "state"), pristine)
	next := w.makeCRL("one", nextOf(truth))
	var right, refused, opened int
	for range n {
		if err := os.RemoveAll(filepath.Join(w.dir, "state")); err != nil {
			t.Fatal(err)
		}
		copyTree(t, pristine, filepath.Join(w.dir, "state"))
		where := damage(t, r, filepath.Join(w.dir, "state"))
		a, b := w.judgeFlip(where, truth, next)
		right, refused = right+a, refused+b
		if w.k != nil {
			opened++
		}
	}
	if !t.Failed() {
		fmt.Printf("%d flips, keeper started after %d of them: %d answers right, %d refused, none wrong\n", n, opened, right, refused)
	}
	if right == 0 || opened == 0 {
		t.Error("nothing was answered, so nothing was tried")
	}
	w.k = nil
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// What every serial is: revoked, or good.
const flipSerials = 300

func flipWorld(t *testing.T) (*kept, map[int64]bool) {
	w := newKept(t, "", `crl = "DIR/NAME.crl"`)
	truth := map[int64]bool{}
	listed := crlSpec{number: 5, revoked: map[int64]pki.Reason{}}
	for n := int64(1000); n < 1000+flipSerials; n++ {
		truth[n] = n%2 == 0
		if truth[n] && n%10 != 0 {
			listed.revoked[n] = keyCompromise
		}
	}
	w.crl("one.crl", "one", crlSpec{number: 4, revoked: map[int64]pki.Reason{1000: keyCompromise}})
	w.fetch()
	w.crl("one.crl", "one", listed)
	w.fetch() // 1000 is no longer listed, and stays
	for n := int64(1010); n < 1000+flipSerials; n += 10 {
		if err := w.byHand(n); err != nil {
			t.Fatal(err)
		}
	}
	w.k.close()
	return w, truth
}

// nextOf is a CRL that lists all but every third of what is revoked, which must stay so.
func nextOf(truth map[int64]bool) crlSpec {
	c := crlSpec{number: 6, revoked: map[int64]pki.Reason{2000: keyCompromise}}
	for n, revoked := range truth {
		if revoked && n%3 != 0 {
			c.revoked[n] = keyCompromise
		}
	}
	return c
}

func (w *kept) byHand(n int64) error {
	var out changeResult
	return w.c.call(context.Background(), "POST", "/revoke", map[string][]string{"issuer": {"one"}, "serial": {fmt.Sprintf("%04x", n)}, "reason": {"keyCompromise"}}, nil, &out)
}

// damage flips a bit, or blanks a page, of one file of the database or of the generations, and says where.
func damage(t *testing.T, r *mathrand.Rand, state string) string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(state, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if strings.Contains(d.Name(), ".db") || strings.Contains(path, "/gen/") {
			files = append(files, path)
		}
		return nil
	})
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	path := files[r.IntN(len(files))]
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) == 0 {
		return path + ": empty"
	}
	at := r.IntN(len(b))
	how := fmt.Sprintf("%s: bit at %d", filepath.Base(path), at)
	switch r.IntN(4) {
	default:
		b[at] ^= 1 << r.IntN(8)
	case 1:
		page := b[at/4096*4096 : min(at/4096*4096+4096, len(b))]
		rand.Read(page)
		how = fmt.Sprintf("%s: page at %d is noise", filepath.Base(path), at/4096)
	case 2:
		clear(b[at/4096*4096 : min(at/4096*4096+4096, len(b))])
		how = fmt.Sprintf("%s: page at %d is blank", filepath.Base(path), at/4096)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return how
}

// judgeFlip asks in every way, before and after changes. What is refused is counted, what is wrong is an error.
func (w *kept) judgeFlip(where string, truth map[int64]bool, next []byte) (right, refused int) {
	w.t.Helper()
	wrong := func(how string, n int64, got any) {
		w.t.Errorf("%s: %s says of serial %d: %v, revoked is %v", where, how, n, got, truth[n])
	}
	cfg, err := readConfig(filepath.Join(w.dir, "ocspd.toml"))
	if err != nil {
		w.t.Fatal(err)
	}
	asSigner := func(how string) {
		i, err := newKeptIssuer(cfg.issuer("one"))
		if err != nil {
			w.t.Fatal(err)
		}
		g, err := generation.Load(cfg.generations(), "one", i.issuer.ID, nil)
		if err != nil {
			refused += len(truth)
			return
		}
		for n, revoked := range truth {
			serial, _ := pki.SerialFromDER([]byte{byte(n >> 8), byte(n)})
			record, found := g.Lookup(serial)
			if got := found && record.Status.State == pki.Revoked; g.Meta().Complete && got != revoked {
				wrong(how, n, record.Status)
				return
			}
			right++
		}
	}
	asSigner("the file")
	w.k = nil
	k, err := openKeeper(context.Background(), cfg, w.log(), lockPatience)
	if err != nil {
		refused++
		return
	}
	w.use(k)
	defer k.close()
	asSigner("the file after keeper's start")
	ask := func(how string) {
		for n, revoked := range truth {
			if n%7 != 0 { // each reads the whole file
				continue
			}
			var l lookupResult
			err := w.c.call(context.Background(), "GET", "/lookup", map[string][]string{"issuer": {"one"}, "serial": {fmt.Sprintf("%04x", n)}}, nil, &l)
			switch {
			case err != nil, l.Answer == "tryLater", l.Answer == "internalError":
				refused++
			case l.Answer != "successful" || (l.Status == "revoked") != revoked:
				wrong(how, n, l.Status+" "+l.Answer)
				return
			default:
				right++
			}
		}
	}
	ask("lookup")
	w.byHand(1010) // as it is, or an error
	if w.byHand(1300) == nil {
		truth[1300] = true
		defer delete(truth, 1300)
	}
	asSigner("the file after a revocation")
	w.imported(next, "")
	asSigner("the file after the next CRL")
	ask("lookup after the next CRL")
	return right, refused
}
