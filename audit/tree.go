package audit

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// edge is the right end of the tree: the part of it that further records change.
type edge struct {
	hashes  [][]tlog.Hash // by level of tiles, the hashes of the last tile, fewer than 256
	entries []byte        // the entries of the last tile, fewer than 256, each with its length before it
	size    uint64
}

// readEdge reads the last tiles of a tree and checks them against its root, the entries too.
func readEdge(dir string, tree tlog.Tree) (edge, error) {
	e := edge{size: uint64(tree.N)}
	for level, n := 0, tree.N; n > 0; level, n = level+1, n/tileWidth {
		e.hashes = append(e.hashes, nil)
		t := tlog.Tile{H: tileHeight, L: level, N: n / tileWidth, W: int(n % tileWidth)}
		if t.W == 0 {
			continue
		}
		b, err := readTile(dir, t)
		if err != nil {
			return edge{}, fmt.Errorf("%s: %w", tilePath(t), err)
		}
		for len(b) > 0 {
			e.hashes[level] = append(e.hashes[level], tlog.Hash(b[:tlog.HashSize]))
			b = b[tlog.HashSize:]
		}
	}
	if root, err := e.root(); err != nil || root != tree.Hash {
		return edge{}, errors.New("the last hash tiles are not those of the signed head")
	}
	if w := int(tree.N % tileWidth); w > 0 {
		t := tlog.Tile{H: tileHeight, L: entryLevel, N: tree.N / tileWidth, W: w}
		b, err := readTile(dir, t)
		if err != nil {
			return edge{}, fmt.Errorf("%s: %w", tilePath(t), err)
		}
		e.entries = b
		for i, entry := range splitEntries(b) {
			if tlog.RecordHash(entry) != e.hashes[0][i] {
				return edge{}, fmt.Errorf("entry %d is not what was recorded", t.N*tileWidth+int64(i))
			}
		}
	}
	return e, nil
}

func (e edge) clone() edge {
	c := edge{entries: append([]byte(nil), e.entries...), size: e.size}
	for _, h := range e.hashes {
		c.hashes = append(c.hashes, append([]tlog.Hash(nil), h...))
	}
	return c
}

// add adds an entry, and writes every tile that it fills.
func (e *edge) add(entry []byte, putTile func(tlog.Tile, []byte) error) error {
	e.entries = binary.BigEndian.AppendUint16(e.entries, uint16(len(entry)))
	e.entries = append(e.entries, entry...)
	e.size++
	if e.size%tileWidth == 0 {
		t := tlog.Tile{H: tileHeight, L: entryLevel, N: int64(e.size)/tileWidth - 1, W: tileWidth}
		if err := putTile(t, e.entries); err != nil {
			return err
		}
		e.entries = nil
	}
	h := tlog.RecordHash(entry)
	for level, n := 0, int64(e.size); ; level++ {
		if level == len(e.hashes) {
			e.hashes = append(e.hashes, nil)
		}
		e.hashes[level] = append(e.hashes[level], h)
		if n%tileWidth != 0 {
			return nil
		}
		n /= tileWidth
		t := tlog.Tile{H: tileHeight, L: level, N: n - 1, W: tileWidth}
		if err := putTile(t, joinHashes(e.hashes[level])); err != nil {
			return err
		}
		h = subtree(e.hashes[level])
		e.hashes[level] = nil
	}
}

// partial writes the last tiles as far as they are filled, but for those that are as they were when the tree had size before.
func (e *edge) partial(before uint64, putTile func(tlog.Tile, []byte) error) error {
	if w := int(e.size % tileWidth); w > 0 && e.size > before {
		if err := putTile(tlog.Tile{H: tileHeight, L: entryLevel, N: int64(e.size) / tileWidth, W: w}, e.entries); err != nil {
			return err
		}
	}
	for level, hashes := range e.hashes {
		n := e.size >> (level * tileHeight) // complete hashes at this level
		if len(hashes) == 0 || n == before>>(level*tileHeight) {
			continue
		}
		t := tlog.Tile{H: tileHeight, L: level, N: int64(n) / tileWidth, W: len(hashes)}
		if err := putTile(t, joinHashes(hashes)); err != nil {
			return err
		}
	}
	return nil
}

// root is the root of the tree: all that it takes is in the last tiles.
func (e *edge) root() (tlog.Hash, error) {
	return tlog.TreeHash(int64(e.size), tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, i := range indexes {
			t := tlog.TileForIndex(tileHeight, i)
			if t.L >= len(e.hashes) {
				return nil, errShort
			}
			t.W = len(e.hashes[t.L])
			h, err := tlog.HashFromTile(t, joinHashes(e.hashes[t.L]), i)
			if err != nil {
				return nil, err
			}
			out = append(out, h)
		}
		return out, nil
	}))
}

func joinHashes(hashes []tlog.Hash) []byte {
	b := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		b = append(b, h[:]...)
	}
	return b
}

// subtree is the root over the hashes of a full tile.
func subtree(hashes []tlog.Hash) tlog.Hash {
	for len(hashes) > 1 {
		var above []tlog.Hash
		for i := 0; i < len(hashes); i += 2 {
			above = append(above, tlog.NodeHash(hashes[i], hashes[i+1]))
		}
		hashes = above
	}
	return hashes[0]
}
