package responder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
)

// A front that was taken over opens all connections that it can get. Signer, which comes later, hears of revocations all the same.
func TestFeedOneProcessCannotTakeAll(t *testing.T) {
	const at = "FEED_OF_ANOTHER_PROCESS"
	if path := os.Getenv(at); path != "" { // signer: ends when it was told of generation 7
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		told := false
		Subscribe(ctx, func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", path) }, Subscriber{Role: RoleSigner,
			Apply: func(c Change) error {
				told = c.Issuer == issuerA && c.To == 7
				cancel()
				return nil
			}, Report: func() []byte { return nil }})
		if !told {
			t.Error("signer is kept out")
		}
		return
	}
	k := newFeedKit(t)
	k.State(issuerA, 7)
	path := must(k.dial(t.Context())).RemoteAddr().String()
	stop := make(chan struct{})
	ended := make(chan struct{})
	defer func() { close(stop); <-ended }()
	full := make(chan struct{})
	go func() {
		defer close(ended)
		var held []net.Conn
		defer func() {
			for _, c := range held {
				c.Close()
			}
		}()
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if n == 100 {
				close(full)
			}
			c, err := k.dial(t.Context())
			if err != nil {
				continue
			}
			c.Write([]byte{0, 0, 0, 2, feedHello, byte(RoleFront)})
			held = append(held, c)
			if len(held) > 200 {
				held[0].Close()
				held = held[1:]
			}
		}
	}()
	<-full
	c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	c.Env = append(os.Environ(), at+"="+path)
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// What front cannot take, signer is never told of: both keep what they have. What signer refuses, front has only tried.
func TestFeedReloadRefused(t *testing.T) {
	k := newFeedKit(t)
	var refuses Role
	role := func(r Role) func(Change) error {
		return func(c Change) error {
			if c.Reload {
				k.note("%s tries=%v", r, c.Try)
			}
			if c.Reload && r == refuses {
				return errors.New("cannot be")
			}
			return nil
		}
	}
	k.subscribe(RoleFront, "front", role(RoleFront))
	k.subscribe(RoleSigner, "signer", role(RoleSigner))
	k.await(t, "front 42 reports front")
	k.await(t, "signer 42 reports signer")
	for n, row := range []struct {
		refuses Role
		want    Delivery
		told    []string
	}{
		{RoleFront, Delivery{ErrAbsent, ErrRefused}, []string{"front tries=true"}},
		{RoleSigner, Delivery{ErrRefused, ErrRefused}, []string{"front tries=true", "signer tries=false"}},
		{0, Delivery{}, []string{"front tries=true", "signer tries=false", "front tries=false"}},
	} {
		refuses = row.refuses
		before := len(k.all())
		k.want(fmt.Sprint(row.refuses), k.publish(Change{Reload: true, To: uint64(n + 1)}), row.want)
		var told []string
		for _, line := range k.all()[before:] {
			for _, l := range []string{"front tries=true", "front tries=false", "signer tries=true", "signer tries=false"} {
				if line == l {
					told = append(told, line)
				}
			}
		}
		if fmt.Sprint(told) != fmt.Sprint(row.told) {
			t.Errorf("when %s refuses: %v, want %v", row.refuses, told, row.told)
		}
	}
}
