// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package openb reads the CSV files of the openb trace, which test/fixtures/openb describes: nodes, and tasks that arrived at
// them. Columns are found by their names, so their order does not matter and further ones are ignored.
package openb

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Node is one machine.
type Node struct {
	Name      string
	CPUMilli  int64
	MemoryMiB int64
	// GPUs is how many it has, all of the same model.
	GPUs int
	// Model is empty where there is no GPU.
	Model string
}

// Task is one pod that arrived.
type Task struct {
	Name      string
	CPUMilli  int64
	MemoryMiB int64
	// GPUs is how many GPUs the task occupies; 0 for a task without.
	GPUs int
	// GPUMilli is what the task asks of each of them: 1000 is the whole, less is a share, which only a task of one GPU has.
	GPUMilli int64
	// Models are the accepted GPU models; empty accepts any.
	Models []string
}

// IsShare says whether the task asks for less than one GPU.
func (t *Task) IsShare() bool { return t.GPUs == 1 && t.GPUMilli < 1000 }

// Milli is the sum of what the task asks for of its GPUs, in milli-GPU.
func (t *Task) Milli() int64 { return int64(t.GPUs) * t.GPUMilli }

// ReadNodes reads the columns sn, cpu_milli, memory_mib, gpu and model of a file. An error has the form
// "FILE:LINE: COLUMN: reason".
func ReadNodes(path string) ([]Node, error) {
	return read(path, func(r *row) Node {
		n := Node{
			Name:      r.name("sn"),
			CPUMilli:  r.number("cpu_milli", 1<<40),
			MemoryMiB: r.number("memory_mib", 1<<40),
			GPUs:      int(r.number("gpu", 1024)),
			Model:     r.text("model"),
		}
		if n.GPUs > 0 && n.Model == "" {
			r.fail("model", "is empty, but the node has GPUs")
		}
		return n
	})
}

// ReadTasks reads the columns name, cpu_milli, memory_mib, num_gpu, gpu_milli and, if there is one, gpu_spec of a file. An
// error has the form "FILE:LINE: COLUMN: reason".
func ReadTasks(path string) ([]Task, error) {
	return read(path, func(r *row) Task {
		t := Task{
			Name:      r.name("name"),
			CPUMilli:  r.number("cpu_milli", 1<<40),
			MemoryMiB: r.number("memory_mib", 1<<40),
			GPUs:      int(r.number("num_gpu", 1024)),
			GPUMilli:  r.number("gpu_milli", 1000),
		}
		switch {
		case t.GPUs == 1 && t.GPUMilli == 0:
			r.fail("gpu_milli", "is 0, but the task asks for a GPU")
		case t.GPUs > 1:
			t.GPUMilli = 1000 // several GPUs are always whole
		case t.GPUs == 0:
			t.GPUMilli = 0
		}
		if spec := r.optional("gpu_spec"); spec != "" {
			models := strings.Split(spec, "|")
			if slices.Contains(models, "") {
				r.fail("gpu_spec", fmt.Sprintf("%q has an empty model", spec))
			}
			slices.Sort(models)
			t.Models = slices.Compact(models)
		}
		return t
	})
}

func read[T any](path string, parse func(*row) T) ([]T, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()

	in := csv.NewReader(f)
	in.ReuseRecord = true
	header, err := in.Read()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s:1: the file is empty: a row of column names is expected", path)
	}
	if err != nil {
		return nil, csvError(path, err)
	}
	r := row{columns: map[string]int{}, seen: map[string]int{}}
	for i, name := range header {
		name = strings.TrimPrefix(strings.TrimSpace(name), "\ufeff")
		if _, twice := r.columns[name]; twice {
			return nil, fmt.Errorf("%s:1: %s: the column is there twice", path, name)
		}
		r.columns[name] = i
	}
	var out []T
	for {
		r.fields, err = in.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, csvError(path, err)
		}
		r.line, _ = in.FieldPos(0)
		v := parse(&r)
		if r.err != nil {
			return nil, fmt.Errorf("%s:%w", path, r.err)
		}
		out = append(out, v)
	}
}

func csvError(path string, err error) error {
	var bad *csv.ParseError
	if errors.As(err, &bad) {
		return fmt.Errorf("%s:%d: %w", path, bad.Line, bad.Err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// row is the row that is being parsed. It keeps the first error.
type row struct {
	columns map[string]int
	seen    map[string]int // the line of each name
	fields  []string
	line    int
	err     error
}

func (r *row) fail(column, reason string) {
	if r.err == nil {
		r.err = fmt.Errorf("%d: %s: %s", r.line, column, reason)
	}
}

func (r *row) optional(column string) string {
	i, ok := r.columns[column]
	if !ok {
		return ""
	}
	return strings.TrimSpace(r.fields[i])
}

func (r *row) text(column string) string {
	if _, ok := r.columns[column]; !ok {
		r.fail(column, "the file has no such column")
	}
	return r.optional(column)
}

func (r *row) name(column string) string {
	name := r.text(column)
	if name == "" {
		r.fail(column, "is empty")
	}
	if line, twice := r.seen[name]; twice {
		r.fail(column, fmt.Sprintf("%q is also on line %d", name, line))
	}
	r.seen[name] = r.line
	return name
}

func (r *row) number(column string, most int64) int64 {
	text := r.text(column)
	if r.err != nil {
		return 0
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > most {
		r.fail(column, fmt.Sprintf("%q is not a whole number in 0 to %d", text, most))
		return 0
	}
	return n
}
