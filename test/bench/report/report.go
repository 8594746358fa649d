// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package report prints what the benchmarks measured: tables, and which goals are reached.
package report

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// Table is a table with a title. All cells but those of the first LeftColumns are aligned to the right.
type Table struct {
	Title       string
	Header      []string
	Rows        [][]string
	LeftColumns int
}

// Add adds a row.
func (t *Table) Add(cells ...string) { t.Rows = append(t.Rows, cells) }

// Goal is one thing that a benchmark must show.
type Goal struct {
	// What must hold, and the Figure that says whether it does.
	What, Figure string
	Reached      bool
}

// Report is all that a benchmark has to say, in order.
type Report struct {
	// Intro is a paragraph.
	Intro  string
	Tables []Table
	Goals  []Goal
}

// Err says how many goals are missed; nil if none is.
func (r *Report) Err() error {
	missed := 0
	for i := range r.Goals {
		if !r.Goals[i].Reached {
			missed++
		}
	}
	switch {
	case len(r.Goals) == 0:
		return errors.New("no goal was measured")
	case missed > 0:
		return fmt.Errorf("%d of %d goals missed", missed, len(r.Goals))
	}
	return nil
}

// Formats are what Write knows.
func Formats() []string { return []string{"table", "markdown"} }

// CheckFormat returns an error unless the format is one of Formats.
func CheckFormat(format string) error {
	if !slices.Contains(Formats(), format) {
		return fmt.Errorf("unknown output format %q: use one of %s", format, strings.Join(Formats(), ", "))
	}
	return nil
}

// Print writes the report to stdout in one of Formats, splices it into a document unless that is empty, and returns Err.
func (r *Report) Print(format, into string) error {
	if err := r.Write(os.Stdout, format); err != nil {
		return err
	}
	if into != "" {
		if err := r.Splice(into); err != nil {
			return err
		}
	}
	return r.Err()
}

// Write prints the report in one of Formats.
func (r *Report) Write(w io.Writer, format string) error {
	if err := CheckFormat(format); err != nil {
		return err
	}
	tables := slices.Clone(r.Tables)
	if len(r.Goals) > 0 {
		goals := Table{Title: "Goals", Header: []string{"", "Goal", "Measured"}, LeftColumns: 3}
		for _, g := range r.Goals {
			verdict := "missed"
			if g.Reached {
				verdict = "reached"
			}
			goals.Add(verdict, g.What, g.Figure)
		}
		tables = append(tables, goals)
	}
	var b strings.Builder
	b.WriteString(r.Intro + "\n")
	for i := range tables {
		b.WriteString("\n")
		if format == "markdown" {
			tables[i].markdown(&b)
		} else {
			tables[i].text(&b)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// widths are those of the columns, in characters.
func (t *Table) widths() []int {
	widths := make([]int, len(t.Header))
	for _, row := range append([][]string{t.Header}, t.Rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	return widths
}

// pad fills a cell up.
func (t *Table) pad(column int, cell string, width int) string {
	fill := strings.Repeat(" ", max(0, width-utf8.RuneCountInString(cell)))
	if column < t.LeftColumns {
		return cell + fill
	}
	return fill + cell
}

func (t *Table) text(b *strings.Builder) {
	if t.Title != "" {
		b.WriteString(t.Title + "\n")
	}
	widths := t.widths()
	for _, row := range append([][]string{t.Header}, t.Rows...) {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(t.pad(i, cell, widths[i]) + "  ")
		}
		b.WriteString("  " + strings.TrimRight(line.String(), " ") + "\n")
	}
}

func (t *Table) markdown(b *strings.Builder) {
	if t.Title != "" {
		b.WriteString("### " + t.Title + "\n\n")
	}
	line := func(cells []string) {
		b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
	}
	line(t.Header)
	rule := make([]string, len(t.Header))
	for i := range rule {
		rule[i] = "---:"
		if i < t.LeftColumns {
			rule[i] = "---"
		}
	}
	line(rule)
	for _, row := range t.Rows {
		line(row)
	}
}

// The lines between which Splice puts a report.
const (
	begin = "<!-- Printed by the benchmark, from here. -->"
	end   = "<!-- To here. -->"
)

// Splice replaces what a document has between two comments with the report as Markdown.
func (r *Report) Splice(path string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(old), begin+"\n")
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q, between which the report goes", path, begin, end)
	}
	var b strings.Builder
	b.WriteString(head + begin + "\n\n")
	if err := r.Write(&b, "markdown"); err != nil {
		return err
	}
	b.WriteString("\n" + end + tail)
	// Beside the document first, so that it is never half-written.
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(b.String())
	if err := errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
