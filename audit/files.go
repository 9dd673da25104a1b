package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// Tiles are 256 hashes high and wide, and hold 256 entries, as C2SP tlog-tiles has it.
const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	entryLevel = -1 // the level that tlog gives to tiles of entries
)

// tilePath is the name of a tile below the log's folder. C2SP leaves the height out, and calls "entries" what tlog calls "data".
func tilePath(t tlog.Tile) string {
	p := strings.TrimPrefix(t.Path(), fmt.Sprintf("tile/%d/", tileHeight))
	if rest, ok := strings.CutPrefix(p, "data/"); ok {
		p = "entries/" + rest
	}
	return "tile/" + p
}

// parseTilePath undoes tilePath.
func parseTilePath(p string) (tlog.Tile, error) {
	p = strings.TrimPrefix(p, "tile/")
	if rest, ok := strings.CutPrefix(p, "entries/"); ok {
		p = "data/" + rest
	}
	return tlog.ParseTilePath(fmt.Sprintf("tile/%d/%s", tileHeight, p))
}

// readTile reads the first t.W hashes or entries of a tile: from the very file, or from a wider one that came later.
func readTile(dir string, t tlog.Tile) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(dir, tilePath(t)))
	for w := t; errors.Is(err, fs.ErrNotExist) && w.W < tileWidth; {
		w.W++
		if b, err := os.ReadFile(filepath.Join(dir, tilePath(w))); err == nil {
			return narrow(t, b)
		}
	}
	if err != nil {
		return nil, err
	}
	return narrow(t, b)
}

// narrow cuts the content of a tile to the width of t.
func narrow(t tlog.Tile, b []byte) ([]byte, error) {
	n := t.W * tlog.HashSize
	if t.L == entryLevel {
		n = 0
		for range t.W {
			if len(b)-n < 2 {
				return nil, errShort
			}
			n += 2 + int(binary.BigEndian.Uint16(b[n:]))
		}
	}
	if len(b) < n {
		return nil, errShort
	}
	return b[:n], nil
}

var errShort = errors.New("is shorter than it must be")

// splitEntries undoes the length prefixes of a tile that narrow has checked.
func splitEntries(b []byte) [][]byte {
	var list [][]byte
	for len(b) > 0 {
		n := 2 + int(binary.BigEndian.Uint16(b))
		list = append(list, b[2:n])
		b = b[n:]
	}
	return list
}

// tileReader gives the tiles in a folder to tlog, which checks them.
type tileReader struct{ dir string }

func (tileReader) Height() int { return tileHeight }

func (r tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var data [][]byte
	for _, t := range tiles {
		b, err := readTile(r.dir, t)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", tilePath(t), err)
		}
		data = append(data, b)
	}
	return data, nil
}

func (tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

// put makes a file durable: at every moment, and after a power loss, path is what it was or holds all of data.
func put(path string, data []byte, mode fs.FileMode) error {
	return putBy(path, mode, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

// putBy is put for what write writes.
func putBy(path string, mode fs.FileMode, write func(*os.File) error) (err error) {
	dir := filepath.Dir(path)
	if err := makeFolder(dir); err != nil {
		return err
	}
	aside := path + ".new"
	f, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(aside)
		}
	}()
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(aside, path); err != nil {
		return err
	}
	return syncFolder(dir)
}

// makeFolder makes a folder and those above it, durably.
func makeFolder(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	above := filepath.Dir(dir)
	if err := makeFolder(above); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncFolder(above)
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
