// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package report writes the outcome of a simulation as one HTML page that needs nothing but itself: no network, no other
// file, and no script to be read. Charts are drawn here as SVG; the script only adds what is under the pointer.
//
// HTML turns the results into what the template prints (summary.go, curves.go, heatmap.go, leftover.go), so that the
// template (page.html) has no arithmetic. Whatever comes from users' files, such as names of nodes, is escaped by
// html/template.
package report

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"io"
	"slices"

	"github.com/gpupack/gpupack/pack/sim"
)

// Report is what a page tells.
type Report struct {
	// Title of the page, such as the name of the trace.
	Title string
	// Command repeats the simulation; empty leaves it out.
	Command string
	// Input is what all policies were replayed on.
	Input sim.Input
	// Load is the sum of GPUs that the arrivals asked for, as a multiple of the cluster's.
	Load float64
	// Seeds of the runs, in their order.
	Seeds []uint64
	// Distribution is sim.DistributionTrace (also if empty) or sim.DistributionOnline.
	Distribution string
	// DefragBudget is the largest share of all arrivals that might be moved, 0 to 1.
	DefragBudget float64
	// Policies in the order in which the page shows them.
	Policies []Policy
}

// Policy is what became of the runs under one policy.
type Policy struct {
	Name string
	// Runs has one result a seed. The first has its Detail, of which curves, heat maps and tables of tasks are made.
	Runs []sim.Result
}

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string

	pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
		"count":   count,
		"percent": percent,
	}).Parse(pageHTML))
)

// page is what the template prints.
type page struct {
	*Report
	CSP    string
	CSS    template.CSS
	Script template.JS

	Lead     []string
	Facts    []fact
	Models   []modelRow
	Summary  summary
	Runs     []runRow
	Curves   curves
	Maps     []heatmap
	MapNote  string
	Cells    *cells
	Overload string
	Sizes    []sizeRow
	Unplaced []unplaced
	Moves    []moves
}

// HTML writes the page. Where it returns an error that is not w's own, it has written nothing.
func HTML(w io.Writer, r *Report) error {
	if err := r.validate(); err != nil {
		return err
	}
	p := page{Report: r, CSP: contentSecurityPolicy(), CSS: template.CSS(pageCSS), Script: template.JS(pageJS)}
	p.Summary = summarise(r)
	p.Lead = lead(r, &p.Summary)
	p.Facts, p.Models = facts(r), models(&r.Input)
	p.Runs = runs(r)
	p.Curves = drawCurves(r)
	p.Maps, p.Cells, p.MapNote = drawMaps(r)
	p.Overload, p.Sizes, p.Unplaced, p.Moves = overload(r), bySize(r), unplacedTasks(r), movedTasks(r)

	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, &p); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	_, err := b.WriteTo(w)
	return err
}

// contentSecurityPolicy forbids everything but the page's own style and script.
func contentSecurityPolicy() string {
	hash := func(s string) string {
		sum := sha256.Sum256([]byte(s))
		return base64.StdEncoding.EncodeToString(sum[:])
	}
	return fmt.Sprintf("default-src 'none'; style-src 'sha256-%s'; script-src 'sha256-%s'; img-src data:; base-uri 'none'; form-action 'none'",
		hash(pageCSS), hash(pageJS))
}

func (r *Report) validate() error {
	if len(r.Policies) == 0 {
		return errors.New("a report needs the runs of at least one policy")
	}
	for i := range r.Policies {
		p := &r.Policies[i]
		if len(p.Runs) == 0 || p.Runs[0].Detail == nil {
			return fmt.Errorf("policy %q has no details of a first run: replay it with Options.Detail", p.Name)
		}
		d := p.Runs[0].Detail
		if !sameNodes(d.Before, d.After) || !sameNodes(d.After, r.Policies[0].Runs[0].Detail.After) {
			return fmt.Errorf("policy %q was replayed on other nodes than %q: replay all policies on the same cluster", p.Name, r.Policies[0].Name)
		}
		for _, a := range d.Placements {
			if a.Task < 0 || a.Task >= len(r.Input.Tasks) {
				return fmt.Errorf("policy %q has placed task %d of %d: give the report the input of the replay", p.Name, a.Task, len(r.Input.Tasks))
			}
		}
		for _, m := range d.Moves {
			if m.Arrival < 0 || m.Arrival >= len(d.Placements) {
				return fmt.Errorf("policy %q has moved arrival %d of %d", p.Name, m.Arrival, len(d.Placements))
			}
		}
	}
	return nil
}

func sameNodes(a, b []sim.NodeUse) bool {
	return slices.EqualFunc(a, b, func(a, b sim.NodeUse) bool {
		return a.Name == b.Name && a.Model == b.Model && len(a.Milli) == len(b.Milli)
	})
}

// detail is that of the first run.
func (p *Policy) detail() *sim.Detail { return p.Runs[0].Detail }
