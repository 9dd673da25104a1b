package ingest

import (
	"bytes"
	"encoding/pem"
	"testing"
)

// TestWatch: who watches a spool learns of each octet that is read, in few pieces: the signature's hash and the entries, and each replay.
func TestWatch(t *testing.T) {
	ca := ed25519CA(t)
	d := ca.newDraft()
	d.entries = tlv(0x30, bytes.Repeat(entry([]byte{0x17}, revokedOn), 100_000))
	der := ca.sign(d.tbs())
	for name, file := range map[string][]byte{"DER": der, "PEM": pem.EncodeToMemory(&pem.Block{Type: pemLabel, Bytes: der})} {
		s := spool(t, file)
		var octets, calls int
		s.Watch(func(n int) { octets += n; calls++ })
		about := func(what string, want int) {
			t.Helper()
			if octets < want || octets > want+want/10 || calls > want/(windowSize/4)+10 {
				t.Errorf("%s: %s read %d octets in %d calls, want about %d", name, what, octets, calls, want)
			}
			octets, calls = 0, 0
		}
		snap, err := ReadCRL(s, ca.issuer, judged)
		if err != nil {
			t.Fatal(err)
		}
		want := 2 * len(der)
		if name == "PEM" {
			want += len(file)
		}
		about("ReadCRL", want*99/100)
		entriesOf(t, snap)
		about("a replay", len(der)*99/100)
	}
}
