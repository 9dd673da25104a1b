package ingest

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	maxNames  = 10_000 // entries of a directory that are looked at
	maxNewest = 64     // files of it that may be read
)

// Newest are the files in a directory that CAs publish into which may be CRLs, named *.crl, *.der or *.pem and not hidden: the 64 that were
// changed last, newest first. Nothing of them was read. Links are followed; what vanishes meanwhile is left out.
func Newest(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, bare(err))
	}
	defer d.Close()
	names, err := d.Readdirnames(maxNames + 1)
	if err != nil && len(names) > 0 {
		return nil, fmt.Errorf("read %s: %w", dir, bare(err))
	}
	if len(names) > maxNames {
		return nil, fmt.Errorf("read %s: more than %d files; move old CRLs away", dir, maxNames)
	}
	type found struct {
		path    string
		changed int64 // nanoseconds
	}
	var all []found
	for _, name := range names {
		switch strings.ToLower(filepath.Ext(name)) {
		case ".crl", ".der", ".pem":
		default:
			continue
		}
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && name[0] != '.' {
			all = append(all, found{path, info.ModTime().UnixNano()})
		}
	}
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(-cmp.Compare(a.changed, b.changed), -strings.Compare(a.path, b.path))
	})
	var paths []string
	for _, f := range all[:min(len(all), maxNewest)] {
		paths = append(paths, f.path)
	}
	return paths, nil
}
