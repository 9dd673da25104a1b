package responder

import (
	"bytes"
	"encoding/base64"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// OCSP-REQ-19: mutated requests in well-formed HTTP. Each reply is an OCSP error or a correct status, with HTTP 200, and memory stays flat. OCSPD_FLOOD is the
// number of requests; without it a few are sent.
func TestREQ19Flood(t *testing.T) {
	total := 10_000
	if s := os.Getenv("OCSPD_FLOOD"); s != "" {
		total = must(strconv.Atoi(s))
	}
	k := newKit(t, private)
	server := k.server()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	defer client.CloseIdleConnections()
	all := seeds()
	var heapBefore uint64
	var sent, answered atomic.Int64
	run := func(n int) {
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(uint64(w), uint64(n)))
				for range n / 4 {
					der := mutate(random, all)
					reply := send1(t, client, server.URL, der, random.IntN(2) == 0)
					sent.Add(1)
					if len(reply) == 5 && bytes.Equal(reply[:4], []byte{0x30, 0x03, 0x0a, 0x01}) {
						continue
					}
					answered.Add(1)
					for _, s := range k.lint(reply).singles {
						serial := serialIn(s.certID)
						if want := expected(serial); s.state() != want {
							t.Errorf("request %x: %x is %s, not %s", der, serial, s.state(), want)
						}
					}
				}
			})
		}
		wg.Wait()
	}
	run(total / 10) // what is allocated once is, by then
	heapBefore = heapInUse()
	run(total - total/10)
	// What may grow are the caches, up to their bound.
	if heap := heapInUse(); heap > heapBefore+answerCacheBytes+unknownCacheBytes+32<<20 {
		t.Errorf("the heap grew from %d to %d octets", heapBefore, heap)
	}
	if answered.Load() == 0 || answered.Load() == sent.Load() {
		t.Errorf("%d of %d were answered: the mutations are of one kind", answered.Load(), sent.Load())
	}
	t.Logf("%d requests, %d with a status", sent.Load(), answered.Load())
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// expected is what the fixtures say of a serial of ca1 or ca1b, and of any other that a mutation made.
func expected(serial []byte) string {
	for s, r := range fixtures() {
		if bytes.Equal(s.Bytes(), serial) {
			return r.Status.State.String()
		}
	}
	return "unknown"
}

func serialIn(certID []byte) []byte {
	id, serial := cryptobyte.String(certID), cryptobyte.String(nil)
	id.ReadASN1(&id, asn1.SEQUENCE)
	for id.ReadASN1(&serial, asn1.SEQUENCE) || id.ReadASN1(&serial, asn1.OCTET_STRING) {
	}
	id.ReadASN1(&serial, asn1.INTEGER)
	return serial
}

// mutate flips bits, and cuts, repeats and joins what the seeds are made of; now and then it leaves one as it is.
func mutate(r *rand.Rand, seeds [][]byte) []byte {
	b := bytes.Clone(seeds[r.IntN(len(seeds))])
	for range r.IntN(4) {
		if len(b) == 0 {
			break
		}
		at := r.IntN(len(b))
		switch r.IntN(5) {
		case 0:
			b[at] ^= 1 << r.IntN(8)
		case 1:
			b[at] = byte(r.Uint32())
		case 2:
			b = b[:at]
		case 3:
			end := at + r.IntN(len(b)-at)
			b = append(b[:end:end], b[at:]...)
		case 4:
			other := seeds[r.IntN(len(seeds))]
			b = append(b[:at:at], other[len(other)/2:]...)
		}
	}
	return b
}

func send1(t *testing.T, client *http.Client, base string, der []byte, get bool) []byte {
	var resp *http.Response
	var err error
	if get && len(der) > 0 {
		resp, err = client.Get(base + "/" + url.PathEscape(base64.StdEncoding.EncodeToString(der)))
	} else {
		resp, err = client.Post(base, "application/ocsp-request", bytes.NewReader(der))
	}
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/ocsp-response" {
		t.Fatalf("HTTP %d %s, %v", resp.StatusCode, resp.Header.Get("Content-Type"), err)
	}
	return body
}
