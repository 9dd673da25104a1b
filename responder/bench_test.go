package responder

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// perOp is the time of one operation so far, in nanoseconds.
func perOp(b *testing.B) float64 { return float64(b.Elapsed().Nanoseconds()) / float64(b.N) }

// Reading a request as openssl writes it, against x/crypto/ocsp.
func BenchmarkDecode(b *testing.B) {
	der := requests(certIDWith(seq(hashOIDs[crypto.SHA1], null), crypto.SHA1, ca1, ca1, serials["L"]))
	var oracle float64
	b.Run("x-crypto", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ocsp.ParseRequest(der); err != nil {
				b.Fatal(err)
			}
		}
		oracle = perOp(b)
	})
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var r Request
			if err := r.Read(der, 100); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(oracle/perOp(b), "times-faster")
	})
	nonced := reqNonce("G", octets(16))
	b.Run("ours-nonce", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var r Request
			if err := r.Read(nonced, 100); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// The bytes-to-bytes function alone.
func BenchmarkRespondKept(b *testing.B) {
	k := newKit(b, private)
	der := req("G")
	k.respond(der)
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		k.front.Respond(ctx, der)
	}
}

// pipelined asks for the same again and again over kept-alive connections, 16 requests at a time, and looks at nothing but the length of the answers, so that
// what is measured is the server.
func pipelined(b *testing.B, h http.Handler, request []byte) {
	s := httptest.NewServer(h)
	defer s.Close()
	addr := s.Listener.Addr().String()
	const batch = 16
	length := func() int {
		c := must(net.Dial("tcp", addr))
		defer c.Close()
		c.Write(request)
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		answer, _ := io.ReadAll(c)
		if !bytes.HasPrefix(answer, []byte("HTTP/1.1 200")) {
			b.Fatalf("%s", answer)
		}
		return len(answer)
	}()
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		c := must(net.Dial("tcp", addr))
		defer c.Close()
		all := bytes.Repeat(request, batch)
		answers := make([]byte, batch*length)
		for more := true; more; {
			for i := range batch {
				if more = p.Next(); !more && i == 0 {
					return
				}
			}
			c.Write(all)
			if _, err := io.ReadFull(c, answers); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// Answers from the cache over TCP, against a bare net/http handler that writes the same constant bytes.
func BenchmarkCached(b *testing.B) {
	k := newKit(b, private)
	der := req("G")
	answer := k.respond(der)
	bare := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", mediaTypes[0])
		w.Write(answer)
	})
	for name, request := range map[string]string{
		"GET":  "GET /" + b64(der) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST": fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/ocsp-request\r\nContent-Length: %d\r\n\r\n%s", len(der), der),
	} {
		var base float64
		b.Run(name+"/bare", func(b *testing.B) {
			pipelined(b, bare, []byte(request))
			base = perOp(b)
		})
		b.Run(name+"/ours", func(b *testing.B) {
			pipelined(b, k.front.Handler(maxTestBody, maxTestPath), []byte(request))
			b.ReportMetric(base/perOp(b), "of-bare")
		})
	}
}

// Answers that are signed for each question, over the link's socket, against the bare signatures of the same key.
func BenchmarkSigned(b *testing.B) {
	k := newKit(b, private)
	path, dial := socket(b)
	stop := serve(b, path, func(ctx context.Context, l net.Listener) error {
		return ServeLink(ctx, l, 64, allowAll, k.signer.Answer)
	})
	defer stop()
	link := NewLink(dial, 8, 1000)
	front := NewFront(link.Ask, k.now, 100)
	if err := front.Use([]FrontIssuer{{Issuer: ca1.issuer}}); err != nil {
		b.Fatal(err)
	}
	var base float64
	b.Run("bare", func(b *testing.B) {
		digest := make([]byte, 32)
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, err := ca1.signerKey.Sign(rand.Reader, digest, crypto.SHA256); err != nil {
					b.Error(err)
				}
			}
		})
		base = perOp(b)
	})
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		request := reqNonce("G", octets(16))
		b.SetParallelism(4)
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if r := front.Respond(context.Background(), request); r.Status != Successful {
					b.Error(r.Status)
				}
			}
		})
		b.ReportMetric(base/perOp(b), "of-bare")
	})
	b.Run("link-alone", func(b *testing.B) {
		path, dial := socket(b)
		stop := serve(b, path, func(ctx context.Context, l net.Listener) error { return ServeLink(ctx, l, 64, allowAll, anyAnswer) })
		defer stop()
		link := NewLink(dial, 8, 1000)
		b.ReportAllocs()
		b.SetParallelism(4)
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, err := link.Ask(context.Background(), anyQuestion); err != nil {
					b.Error(err)
				}
			}
		})
	})
}
