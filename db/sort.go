package db

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"ocspd/pki"
)

const (
	placeBits  = 18
	runRecords = 1 << placeBits // sorted in memory at a time: 10 MiB, and 2 for the order
	runBuffer  = 64 << 10       // for each run while they are merged
)

// sorter puts any number of records in order in the memory of one run; the others wait in a file that has no name
// and so is gone with the process.
type sorter struct {
	dir  string
	run  []pki.Packed
	file *os.File
	ends []int64 // of the runs in the file, in records
}

func (s *sorter) add(p pki.Packed) error {
	if s.run == nil {
		s.run = make([]pki.Packed, 0, runRecords)
	}
	if len(s.run) == runRecords {
		if err := s.spill(); err != nil {
			return err
		}
	}
	s.run = append(s.run, p)
	return nil
}

func (s *sorter) spill() error {
	if s.file == nil {
		f, err := os.CreateTemp(s.dir, ".sort-*")
		if err != nil {
			return fmt.Errorf("sort aside: %w", err)
		}
		s.file = f
		if err := os.Remove(f.Name()); err != nil {
			return fmt.Errorf("sort aside: %w", err)
		}
	}
	w := bufio.NewWriterSize(s.file, runBuffer)
	err := sortRun(s.run, func(p *pki.Packed) error {
		_, err := w.Write(p[:])
		return err
	})
	if err := cmp.Or(err, w.Flush()); err != nil {
		return fmt.Errorf("sort aside: %w", explain(err))
	}
	end := int64(len(s.run))
	if n := len(s.ends); n > 0 {
		end += s.ends[n-1]
	}
	s.ends = append(s.ends, end)
	s.run = s.run[:0]
	return nil
}

// sortRun yields a run in order. Sorted are not the records but numbers, of their first bits, which nearly always decide, and their place.
func sortRun(run []pki.Packed, yield func(*pki.Packed) error) error {
	const place = 1<<placeBits - 1
	keys := make([]uint64, len(run))
	for i := range run {
		keys[i] = binary.BigEndian.Uint64(run[i][:])&^place | uint64(i)
	}
	slices.Sort(keys)
	at := func(k uint64) *pki.Packed { return &run[k&place] }
	for len(keys) > 0 {
		n := 1
		for n < len(keys) && (keys[n]^keys[0])&^place == 0 {
			n++
		}
		slices.SortFunc(keys[:n], func(a, b uint64) int { return at(a).Compare(at(b)) })
		for _, k := range keys[:n] {
			if err := yield(at(k)); err != nil {
				return err
			}
		}
		keys = keys[n:]
	}
	return nil
}

func (s *sorter) close() {
	if s.file != nil {
		s.file.Close()
	}
}

// merge yields all records in order, equal serials next to each other in no order of their own.
func (s *sorter) merge(yield func(*pki.Packed) error) error {
	if s.file == nil {
		return sortRun(s.run, yield)
	}
	if err := s.spill(); err != nil {
		return err
	}
	s.run = nil // merging needs its memory
	var heap runHeap
	var start int64
	for _, end := range s.ends {
		part := io.NewSectionReader(s.file, start*pki.PackedSize, (end-start)*pki.PackedSize)
		start = end
		r := &runReader{r: bufio.NewReaderSize(part, runBuffer)}
		if ok, err := r.next(); err != nil {
			return err
		} else if ok {
			heap = append(heap, r)
		}
	}
	for i := len(heap)/2 - 1; i >= 0; i-- {
		heap.down(i)
	}
	for len(heap) > 0 {
		if err := yield(&heap[0].head); err != nil {
			return err
		}
		ok, err := heap[0].next()
		if err != nil {
			return err
		}
		if !ok {
			heap[0] = heap[len(heap)-1]
			heap = heap[:len(heap)-1]
		}
		heap.down(0)
	}
	return nil
}

type runReader struct {
	r    *bufio.Reader
	head pki.Packed
}

func (r *runReader) next() (bool, error) {
	_, err := io.ReadFull(r.r, r.head[:])
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("sort aside: %w", err)
	}
	return true, nil
}

// runHeap has the run with the least head first.
type runHeap []*runReader

func (h runHeap) down(i int) {
	for {
		least := 2*i + 1
		if least >= len(h) {
			return
		}
		if right := least + 1; right < len(h) && h[right].head.Compare(&h[least].head) < 0 {
			least = right
		}
		if h[i].head.Compare(&h[least].head) <= 0 {
			return
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}
