// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package trace reads clusters and the tasks that arrived at them from CSV files with the columns of the openb trace, which
// test/fixtures/openb describes. Columns are found by their names, so their order does not matter and further ones are
// ignored.
package trace

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/sim"
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
	// CreationTime and DeletionTime are in seconds. Both are 0 where the file does not have both.
	CreationTime, DeletionTime int64
}

// IsShare says whether the task asks for less than one GPU.
func (t *Task) IsShare() bool { return t.GPUs == 1 && t.GPUMilli < 1000 }

// Milli is the sum of what the task asks for of its GPUs, in milli-GPU.
func (t *Task) Milli() int64 { return int64(t.GPUs) * t.GPUMilli }

// Input is a cluster of the nodes and the arrival of the tasks, for a simulation.
func Input(nodes []Node, tasks []Task) sim.Input {
	in := sim.Input{Nodes: make([]sim.Node, len(nodes)), Tasks: make([]sim.Task, len(tasks))}
	for i := range nodes {
		n := &nodes[i]
		in.Nodes[i] = sim.Node{Name: n.Name, CPUMilli: n.CPUMilli, MemoryMiB: n.MemoryMiB, GPUs: n.GPUs, Model: n.Model}
	}
	for i := range tasks {
		t := &tasks[i]
		r := pack.Request{CPUMilli: t.CPUMilli, MemoryMiB: t.MemoryMiB, Models: t.Models}
		if t.IsShare() {
			r.Milli = t.GPUMilli
		} else {
			r.GPUs = t.GPUs
		}
		in.Tasks[i] = sim.Task{Name: t.Name, Request: r}
		if t.DeletionTime > 0 {
			// One that left within the second in which it came was there nevertheless.
			in.Tasks[i].Arrival, in.Tasks[i].Duration = t.CreationTime, max(1, t.DeletionTime-t.CreationTime)
		}
	}
	return in
}

// ReadNodes reads the columns sn, cpu_milli, memory_mib, gpu and model of a file. An error in a row has the form
// "FILE:LINE: COLUMN (column NUMBER): reason".
func ReadNodes(path string) ([]Node, error) {
	return read(path, []string{"sn", "cpu_milli", "memory_mib", "gpu", "model"}, func(r *row) Node {
		n := Node{
			Name:      r.name("sn"),
			CPUMilli:  r.number("cpu_milli", 1<<40),
			MemoryMiB: r.number("memory_mib", 1<<40),
			GPUs:      int(r.number("gpu", pack.MaxGPUs)),
			Model:     r.text("model"),
		}
		if n.GPUs > 0 && n.Model == "" {
			r.fail("model", "is empty, but the node has GPUs")
		}
		return n
	})
}

// ReadTasks reads the columns name, cpu_milli, memory_mib, num_gpu, gpu_milli and, where there are such, gpu_spec,
// creation_time and deletion_time of a file. Errors are as those of ReadNodes.
func ReadTasks(path string) ([]Task, error) {
	return read(path, []string{"name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli"}, func(r *row) Task {
		t := Task{
			Name:      r.name("name"),
			CPUMilli:  r.number("cpu_milli", 1<<40),
			MemoryMiB: r.number("memory_mib", 1<<40),
			GPUs:      int(r.number("num_gpu", 1024)),
			GPUMilli:  r.number("gpu_milli", pack.WholeMilli),
		}
		switch {
		case t.GPUs == 1 && t.GPUMilli == 0:
			r.fail("gpu_milli", "is 0, but the task asks for a GPU")
		case t.GPUs > 1:
			t.GPUMilli = pack.WholeMilli // several GPUs are always whole
		case t.GPUs == 0:
			t.GPUMilli = 0
		}
		if spec := r.text("gpu_spec"); spec != "" {
			models := strings.Split(spec, "|")
			if slices.Contains(models, "") {
				r.fail("gpu_spec", fmt.Sprintf("%q has an empty model", spec))
			}
			slices.Sort(models)
			t.Models = slices.Compact(models)
		}
		if r.text("creation_time") != "" && r.text("deletion_time") != "" {
			t.CreationTime = r.number("creation_time", 1<<40)
			t.DeletionTime = r.number("deletion_time", 1<<40)
			if t.DeletionTime < t.CreationTime {
				r.fail("deletion_time", fmt.Sprintf("%d is before the creation_time %d", t.DeletionTime, t.CreationTime))
			}
		}
		return t
	})
}

// read parses each row of a file, which must have the required columns.
func read[T any](path string, required []string, parse func(*row) T) ([]T, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()

	in := csv.NewReader(f)
	in.ReuseRecord = true
	in.FieldsPerRecord = -1
	r := row{columns: map[string]int{}, seen: map[string]int{}}
	header, err := in.Read()
	switch {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%s:1: the file is empty: a row of column names is expected", path)
	case err != nil:
		return nil, r.malformed(path, header, err)
	}
	for i, name := range header {
		name = strings.TrimPrefix(strings.TrimSpace(name), "\ufeff")
		if _, twice := r.columns[name]; twice {
			return nil, fmt.Errorf("%s:1: %s (column %d): the column is there twice", path, name, i+1)
		}
		r.columns[name] = i
		r.header = append(r.header, name)
	}
	for _, name := range required {
		if _, ok := r.columns[name]; !ok {
			return nil, fmt.Errorf("%s:1: %s: the file has no such column; it needs %s", path, name, strings.Join(required, ", "))
		}
	}
	var out []T
	for {
		r.fields, err = in.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, r.malformed(path, r.fields, err)
		}
		r.line, _ = in.FieldPos(0)
		var v T
		if n := len(r.fields); n == len(r.header) {
			v = parse(&r)
		} else {
			r.err = fmt.Errorf("%d: %s: the row has %d fields, the header %d", r.line, r.column(min(n, len(r.header))), n, len(r.header))
		}
		if r.err != nil {
			return nil, fmt.Errorf("%s:%w", path, r.err)
		}
		out = append(out, v)
	}
}

// row is the row that is being parsed. It keeps the first error.
type row struct {
	header  []string
	columns map[string]int
	seen    map[string]int // the line of each name
	fields  []string
	line    int
	err     error
}

// malformed says where a row is no CSV. fields are those before the place.
func (r *row) malformed(path string, fields []string, err error) error {
	var bad *csv.ParseError
	if errors.As(err, &bad) {
		return fmt.Errorf("%s:%d: %s: %w", path, bad.Line, r.column(len(fields)), bad.Err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// column names the column at that position.
func (r *row) column(i int) string {
	if i < len(r.header) {
		return fmt.Sprintf("%s (column %d)", r.header[i], i+1)
	}
	return fmt.Sprintf("column %d", i+1)
}

func (r *row) fail(column, reason string) {
	if r.err == nil {
		r.err = fmt.Errorf("%d: %s: %s", r.line, r.column(r.columns[column]), reason)
	}
}

// text is what the row has in a column; empty where the file has no such column.
func (r *row) text(column string) string {
	i, ok := r.columns[column]
	if !ok {
		return ""
	}
	return strings.TrimSpace(r.fields[i])
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
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > most {
		r.fail(column, fmt.Sprintf("%q is not a whole number in 0 to %d", text, most))
		return 0
	}
	return n
}
