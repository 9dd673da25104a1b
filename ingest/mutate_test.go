package ingest

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// node is a DER element whose form can be spoilt: its content is its parts, or octets.
type node struct {
	tag    byte
	parts  []*node
	octets []byte
	form   int
}

// How the length is written.
const (
	minimal = iota
	oneMore // an octet more than it takes
	indefinite
	claimsMore
	claimsLess
	forms
)

// parseNode reads what is DER; what is not becomes octets of the element around it.
func parseNode(b []byte) (n *node, rest []byte, ok bool) {
	octets, length := lengthOf(b)
	if octets == 0 || int(length) > len(b)-octets {
		return nil, nil, false
	}
	content := b[octets : octets+int(length)]
	n = &node{tag: b[0], octets: content}
	for in := content; b[0]&0x20 != 0 && len(in) > 0; {
		var part *node
		if part, in, ok = parseNode(in); !ok {
			n.parts = nil
			break
		}
		n.parts = append(n.parts, part)
	}
	return n, b[octets+int(length):], true
}

func (n *node) der() []byte {
	content := n.octets
	if n.parts != nil {
		content = nil
		for _, p := range n.parts {
			content = append(content, p.der()...)
		}
	}
	b := tlv(n.tag, content)
	head := b[1 : len(b)-len(content)]
	switch n.form {
	case oneMore:
		if len(head) == 1 {
			head = []byte{0x81, head[0]}
		} else {
			head = append([]byte{head[0] + 1, 0}, head[1:]...)
		}
	case indefinite:
		return slices.Concat([]byte{n.tag, 0x80}, content, []byte{0, 0})
	case claimsMore:
		head = slices.Clone(head)
		head[len(head)-1]++
	case claimsLess:
		head = slices.Clone(head)
		head[len(head)-1]--
	}
	return slices.Concat([]byte{n.tag}, head, content)
}

// all are the elements of a tree, each with the one that it is in.
func (n *node) all(in *node, yield func(n, in *node)) {
	yield(n, in)
	for _, p := range n.parts {
		p.all(n, yield)
	}
}

var oddTimes = []string{"991231235959Z", "500101000000Z", "491231235959Z", "260230000000Z", "2601010000Z", "260101000000+0100", "260101000060Z", "261301000000Z",
	"20260101000000Z", "20500101000000Z", "19491231235959Z", "20260101000000.5Z", "20260101000000", "99991231235959Z", "00000101000000Z", "20240229000000Z", "20250229000000Z", ""}

// mutate changes one thing or a few in a tree, as a broken CA or an enemy with its key might.
func mutate(r *rand.Rand, root *node) {
	for range 1 + r.IntN(3) {
		var nodes, parents []*node
		root.all(nil, func(n, in *node) { nodes, parents = append(nodes, n), append(parents, in) })
		k := r.IntN(len(nodes))
		n, in := nodes[k], parents[k]
		at := func() int { return slices.Index(in.parts, n) }
		switch op := r.IntN(14); {
		case op == 0 && in != nil:
			in.parts = slices.Delete(in.parts, at(), at()+1)
		case op == 1 && in != nil: // twice: an extension, an entry, a time
			in.parts = slices.Insert(in.parts, at(), n)
		case op == 2 && in != nil: // in another place
			j := r.IntN(len(in.parts))
			i := at()
			in.parts[i], in.parts[j] = in.parts[j], in.parts[i]
		case op == 3:
			n.form = r.IntN(forms)
		case op == 4:
			n.tag = []byte{1, 2, 3, 4, 5, 6, 0x0a, 0x17, 0x18, 0x30, 0x31, 0x80, 0xa0, 0xa1, n.tag ^ 0x20, byte(r.IntN(256))}[r.IntN(16)]
		case op == 5 && n.parts == nil && len(n.octets) > 0:
			n.octets = slices.Clone(n.octets)
			n.octets[r.IntN(len(n.octets))] ^= 1 << r.IntN(8)
		case op == 6 && n.parts == nil: // a huge number, or a long text
			n.octets = bytes.Repeat([]byte{byte(r.IntN(256))}, []int{0, 1, 2, 19, 20, 21, 22, 127, 128, 300}[r.IntN(10)])
		case op == 7 && n.parts == nil: // cut off, or with something after it
			if r.IntN(2) == 0 && len(n.octets) > 0 {
				n.octets = n.octets[:len(n.octets)-1]
			} else {
				n.octets = append(slices.Clone(n.octets), byte(r.IntN(256)))
			}
		case op <= 9 && (n.tag == 0x17 || n.tag == 0x18):
			n.octets = []byte(oddTimes[r.IntN(len(oddTimes))])
			if r.IntN(3) == 0 {
				n.tag ^= 0x17 ^ 0x18
			}
		case op <= 11 && n.tag == 0x02: // another serial number or number, minimal or not, negative
			n.octets = [][]byte{{1}, {0, 1}, {0x80}, {0, 0x80}, {0xff}, {0xff, 0x80}, {0}, {0x7f, 0xff}, {0x17}, {0, 0x80, 0}}[r.IntN(10)]
		case op == 12 && n.tag == 0x0a:
			n.octets = []byte{byte(r.IntN(12))}
		case op == 13 && in != nil && n.tag == 0x30: // an entry or an extension more
			in.parts = slices.Insert(in.parts, at(), []*node{
				{tag: 0x30, octets: slices.Concat(integer(byte(1+r.IntN(100))), revokedOn)},
				{tag: 0x30, octets: unknownExt(r.IntN(2) == 0)[2:]}, {tag: 0x30, octets: reason(byte(r.IntN(12)))[2:]},
				{tag: 0x30, octets: number(11)[2:]}, {tag: 0x30}}[r.IntN(5)])
		}
	}
}

// drafts are sound CRLs that between them have all that a CRL can have.
func (ca *testCA) drafts() (all [][]byte) {
	for _, change := range []func(*draft){
		func(*draft) {},
		func(d *draft) { d.version, d.exts, d.entries = nil, nil, tlv(0x30, entry([]byte{1}, revokedOn)) },
		func(d *draft) { d.entries = nil },
		func(d *draft) { d.next = general(time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC)) },
		func(d *draft) {
			d.exts = ca.extensions(number(12), ext(27, true, integer(10)))
			d.entries = tlv(0x30, entry([]byte{1}, revokedOn, reason(8)), entry([]byte{2}, revokedOn, reason(6)))
		},
		func(d *draft) {
			point := tlv(0xa0, tlv(0xa0, tlv(0x86, []byte("http://crl.example.org/1"))))
			d.exts = ca.extensions(number(12), ext(28, true, tlv(0x30, point, tlv(0x83, []byte{6, 0x40}))), ext(46, false, tlv(0x30, tlv(0x30, point))))
		},
		func(d *draft) {
			d.entries = tlv(0x30, entry([]byte{1}, general(now), reason(8), unknownExt(false)), entry([]byte{2}, revokedOn, ext(24, false, general(now))))
		},
		func(d *draft) {
			var list [][]byte
			for i := range byte(20) {
				list = append(list, entry([]byte{i + 1}, revokedOn, reason([]byte{1, 2, 3, 4, 5, 6, 9, 10}[i%8])))
			}
			d.entries = tlv(0x30, list...)
		},
	} {
		d := ca.newDraft()
		change(&d)
		all = append(all, d.tbs())
	}
	return all
}

// Thousands of CRLs that are wrong somewhere, signed by the CA as they are, so that all that stands behind the signature is reached: each is refused, or what is
// read of it is what x509 reads. And the same without its signature: not one is taken. OCSP-CRL-01, OCSP-CRL-06, OCSP-CRL-16 to OCSP-CRL-18.
func TestMutatedCRLs(t *testing.T) {
	ca := ed25519CA(t)
	drafts := ca.drafts()
	taken, refused := 0, map[string]int{}
	r := rand.New(rand.NewPCG(18, 4))
	for n := range 6000 {
		root, _, ok := parseNode(drafts[n%len(drafts)])
		if !ok {
			t.Fatal("a draft is not DER")
		}
		mutate(r, root)
		tbs := root.der()
		if t.Failed() {
			break
		}
		if why := likeX509(t, ca, tbs); why == "" {
			taken++
		} else {
			refused[strings.FieldsFunc(why, func(c rune) bool { return c == ';' || c == ':' })[0]]++
		}
		if n%3 == 0 { // the signature is another CRL's, or spoilt
			crl := ca.sign(drafts[n%len(drafts)])
			outer, _, _ := parseNode(crl)
			mutate(r, outer)
			crl = outer.der()
			if r.IntN(2) == 0 && len(crl) > 0 {
				crl = crl[:r.IntN(len(crl))]
			}
			onlyGenuine(t, ca, crl)
		}
	}
	if taken < 600 || len(refused) < 20 {
		t.Errorf("%d of the mutated CRLs were taken, and there were %d reasons to refuse one: they do not reach what they should", taken, len(refused))
	}
}

// onlyGenuine gives a file to ReadCRL that is taken only if the CA signed the very octets.
func onlyGenuine(t *testing.T, ca *testCA, crl []byte) {
	t.Helper()
	snap, err := ReadCRL(spool(t, crl), ca.issuer, judged)
	if err != nil {
		return
	}
	for _, d := range ca.drafts() {
		if sha256.Sum256(ca.sign(d)) == snap.Digest { // Ed25519 signs the same octets alike
			return
		}
	}
	t.Errorf("taken, and the CA never signed it: %x", crl)
}

// Rows that are wrong somewhere refuse the whole index and are named; what is taken is what a naive reading of the same rows gives. OCSP-IDX-01, OCSP-IDX-05.
func TestMutatedIndexes(t *testing.T) {
	r := rand.New(rand.NewPCG(19, 5))
	taken, refused := 0, 0
	for range 6000 {
		rows := strings.Split(strings.TrimSuffix(realIndex, "\n"), "\n")
		k := r.IntN(len(rows))
		fields := strings.Split(rows[k], "\t")
		f := r.IntN(len(fields))
		switch r.IntN(8) {
		case 0:
			fields = slices.Delete(fields, f, f+1)
		case 1:
			fields = slices.Insert(fields, f, fields[f])
		case 2:
			fields[f] = []string{"", " ", "X", "V", "R", "E", "r", "-", "0x10", "zz", "10\r", "\x00", "123456789012345678901234567890123456789012"}[r.IntN(13)]
		case 3:
			fields[f] += []string{" ", ",keyCompromise", ",", ",keyTime", ",keyTime,20260101000000Z", ",holdInstruction,1.2", ",nonsense", "\\", "\t"}[r.IntN(9)]
		case 4:
			fields[f] = oddTimes[r.IntN(len(oddTimes))]
		case 5:
			i := r.IntN(len(fields))
			fields[i], fields[f] = fields[f], fields[i]
		case 6:
			if len(fields[f]) > 0 {
				b := []byte(fields[f])
				b[r.IntN(len(b))] ^= 1 << r.IntN(7)
				fields[f] = string(b)
			}
		case 7:
			fields[f] = fields[f][:r.IntN(len(fields[f])+1)]
		}
		rows[k] = strings.Join(fields, "\t")
		if likeRows(t, []byte(strings.Join(rows, "\n")+"\n")) {
			taken++
		} else {
			refused++
		}
		if t.Failed() {
			return
		}
	}
	if taken < 300 || refused < 1000 {
		t.Errorf("%d taken, %d refused: the mutations do not reach what they should", taken, refused)
	}
}
