// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/sim"
)

const (
	// firstRows are shown at once, moreRows when asked for, and the rest is only counted.
	firstRows = 10
	moreRows  = 150
)

// unplaced is the classes of tasks that found no place under one policy.
type unplaced struct {
	Policy string
	Colour int
	// Summary is one sentence.
	Summary string
	// Reasons are the columns: why nodes could not take a task.
	Reasons []string
	Rows    []unplacedRow
	More    []unplacedRow
	// Rest says what neither Rows nor More have; empty for nothing.
	Rest string
}

type unplacedRow struct {
	Asks, CPU, Memory, Models string
	Count                     int
	// Nodes are counts, by column of reasons.
	Nodes []reasonCount
}

type reasonCount struct {
	Count int
	// Most is true for the most frequent reason of the row.
	Most bool
}

// overload says how much more arrived than there is room for, whatever the policy.
func overload(r *Report) string {
	var arrived int64
	for _, a := range r.Policies[0].detail().Placements {
		arrived += milli(&r.Input.Tasks[a.Task].Request)
	}
	room := int64(clusterGPUs(&r.Input)) * pack.WholeMilli
	s := fmt.Sprintf("The arrivals asked for %s GPUs", gpus(arrived))
	if over := arrived - room; over > 0 {
		return s + fmt.Sprintf(", %s more than there are: that much finds no place under any policy.", gpus(over))
	}
	return s + fmt.Sprintf(" of %s.", gpus(room))
}

func unplacedTasks(r *Report) []unplaced {
	out := make([]unplaced, 0, len(r.Policies))
	for i := range r.Policies {
		classes := r.Policies[i].detail().Unplaced
		u := unplaced{Policy: r.Policies[i].Name, Colour: i % colours, Reasons: reasons(classes)}
		tasks, sum := 0, int64(0)
		for j := range classes {
			tasks += classes[j].Count
			sum += int64(classes[j].Count) * milli(&classes[j].Request)
		}
		u.Summary = fmt.Sprintf("%s of %s, which asked for %s GPUs", plural(tasks, "task"), classCount(len(classes)), gpus(sum))
		rows := make([]unplacedRow, 0, min(len(classes), firstRows+moreRows))
		for j := range classes[:cap(rows)] {
			rows = append(rows, unplacedClass(&classes[j], u.Reasons))
		}
		u.Rows = rows[:min(len(rows), firstRows)]
		u.More = rows[len(u.Rows):]
		if rest := classes[len(rows):]; len(rest) > 0 {
			n := 0
			for j := range rest {
				n += rest[j].Count
			}
			u.Rest = fmt.Sprintf("%s more, with %s", classCount(len(rest)), plural(n, "task"))
		}
		out = append(out, u)
	}
	return out
}

func classCount(n int) string {
	if n == 1 {
		return "1 class"
	}
	return count(n) + " classes"
}

// reasons returns what hindered the most nodes first, over all classes.
func reasons(classes []sim.Unplaced) []string {
	sum := map[string]int{}
	for i := range classes {
		for reason, n := range classes[i].Reasons {
			sum[reason] += n * classes[i].Count
		}
	}
	out := make([]string, 0, len(sum))
	for reason := range sum {
		out = append(out, reason)
	}
	slices.SortFunc(out, func(a, b string) int { return cmp.Or(cmp.Compare(sum[b], sum[a]), strings.Compare(a, b)) })
	return out
}

func unplacedClass(u *sim.Unplaced, reasons []string) unplacedRow {
	q := &u.Request
	row := unplacedRow{Asks: asks(q), CPU: cores(q.CPUMilli), Memory: memory(q.MemoryMiB), Models: "any", Count: u.Count}
	if len(q.Models) > 0 {
		row.Models = strings.Join(q.Models, ", ")
	}
	most := 0
	for _, reason := range reasons {
		most = max(most, u.Reasons[reason])
	}
	for _, reason := range reasons {
		n := u.Reasons[reason]
		row.Nodes = append(row.Nodes, reasonCount{n, n == most && n > 0})
	}
	return row
}

// moves is what defragmentation did under one policy.
type moves struct {
	Policy  string
	Colour  int
	Summary string
	Rows    []moveRow
	More    []moveRow
	// Rest is how many moves neither Rows nor More have.
	Rest int
}

type moveRow struct{ Task, Asks, From, To string }

// movedTasks is empty where nothing was moved.
func movedTasks(r *Report) []moves {
	var out []moves
	for i := range r.Policies {
		d := r.Policies[i].detail()
		if len(d.Moves) == 0 {
			continue
		}
		m := moves{Policy: r.Policies[i].Name, Colour: i % colours}
		m.Summary = fmt.Sprintf("%s, %s %% of %s", plural(len(d.Moves), "move"),
			percent(share(float64(len(d.Moves)), float64(len(d.Placements)))), plural(len(d.Placements), "arrival"))
		rows := make([]moveRow, 0, min(len(d.Moves), firstRows+moreRows))
		for _, move := range d.Moves[:cap(rows)] {
			t := &r.Input.Tasks[d.Placements[move.Arrival].Task]
			rows = append(rows, moveRow{t.Name, asks(&t.Request), move.From, move.To})
		}
		m.Rows = rows[:min(len(rows), firstRows)]
		m.More = rows[len(m.Rows):]
		m.Rest = len(d.Moves) - len(rows)
		out = append(out, m)
	}
	return out
}
