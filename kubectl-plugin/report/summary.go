// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/sim"
)

// colours is how many policies page.css can tell apart. Further ones look like the first again.
const colours = 9

// spread is one figure over all runs of a policy.
type spread struct {
	Mean, Min, Max float64
	// Best is true where no policy's mean is better, and another's worse.
	Best  bool
	write func(float64) string
}

func spreadOf(runs []sim.Result, write func(float64) string, figure func(*sim.Result) float64) spread {
	s := spread{Min: math.Inf(1), Max: math.Inf(-1), write: write}
	for i := range runs {
		v := figure(&runs[i])
		s.Mean += v / float64(len(runs))
		s.Min, s.Max = min(s.Min, v), max(s.Max, v)
	}
	return s
}

// Text is the mean as printed.
func (s spread) Text() string { return s.write(s.Mean) }

// Range is the least and the most, and empty where these are the same.
func (s spread) Range() string {
	if s.Min == s.Max {
		return ""
	}
	return s.write(s.Min) + " to " + s.write(s.Max)
}

// summary is the table of policies.
type summary struct {
	Rows []summaryRow
	// Several is true where there is more than one run a policy, so that a range says something.
	Several bool
	// Dots is true where there is anything to compare on an axis.
	Dots bool
	// Low and High are the ends of the axis on which the runs are dots, percent.
	Low, High int
}

type summaryRow struct {
	Name             string
	Colour           int
	A95, A100, Final spread
	// Left is what is unallocated at the end, in GPUs.
	Left, Unscheduled, Moved, Seconds spread
	// Dots are the runs on the axis, and Mean their mean, in percent of its length.
	Dots []string
	Mean string
}

func summarise(r *Report) summary {
	total := float64(clusterGPUs(&r.Input))
	s := summary{Low: 100, Dots: len(r.Policies) > 1}
	for i := range r.Policies {
		p := &r.Policies[i]
		of := func(write func(float64) string, figure func(*sim.Result) float64) spread {
			return spreadOf(p.Runs, write, figure)
		}
		row := summaryRow{
			Name: p.Name, Colour: i % colours,
			A95:         of(percent, func(r *sim.Result) float64 { return r.A95 }),
			A100:        of(percent, func(r *sim.Result) float64 { return r.A100 }),
			Final:       of(percent, func(r *sim.Result) float64 { return r.Final }),
			Left:        of(tenth, func(r *sim.Result) float64 { return (100 - r.Final) / 100 * total }),
			Unscheduled: of(average, func(r *sim.Result) float64 { return float64(r.Unscheduled) }),
			Moved:       of(average, func(r *sim.Result) float64 { return float64(r.Moved) }),
			Seconds:     of(percent, func(r *sim.Result) float64 { return r.Seconds }),
		}
		s.Several = s.Several || len(p.Runs) > 1
		s.Low = min(s.Low, int(math.Floor(row.Final.Min)))
		s.High = max(s.High, int(math.Ceil(row.Final.Max)))
		s.Rows = append(s.Rows, row)
	}
	s.Dots = s.Dots || s.Several
	if s.Low == s.High {
		s.Low = max(0, s.Low-1)
		s.High = s.Low + 1
	}
	at := func(v float64) string { return position(v, float64(s.Low), float64(s.High)) }
	for i := range s.Rows {
		for j := range r.Policies[i].Runs {
			s.Rows[i].Dots = append(s.Rows[i].Dots, at(r.Policies[i].Runs[j].Final))
		}
		s.Rows[i].Mean = at(s.Rows[i].Final.Mean)
	}
	s.mark(func(r *summaryRow) *spread { return &r.A95 }, true)
	s.mark(func(r *summaryRow) *spread { return &r.A100 }, true)
	s.mark(func(r *summaryRow) *spread { return &r.Final }, true)
	s.mark(func(r *summaryRow) *spread { return &r.Left }, false)
	s.mark(func(r *summaryRow) *spread { return &r.Unscheduled }, false)
	return s
}

// mark sets Best where a figure is, as printed, better than another.
func (s *summary) mark(figure func(*summaryRow) *spread, most bool) {
	rounded := func(i int) float64 {
		v := math.Round(figure(&s.Rows[i]).Mean * 100)
		if most {
			return -v
		}
		return v
	}
	best, worst := math.Inf(1), math.Inf(-1)
	for i := range s.Rows {
		best, worst = min(best, rounded(i)), max(worst, rounded(i))
	}
	for i := range s.Rows {
		figure(&s.Rows[i]).Best = rounded(i) == best && best < worst
	}
}

// position is where v is between low and high, as a percentage for SVG.
func position(v, low, high float64) string {
	return strconv.FormatFloat(100*(v-low)/(high-low), 'f', 2, 64) + "%"
}

// lead says in sentences what came out.
func lead(r *Report, s *summary) []string {
	order := make([]*summaryRow, len(s.Rows))
	for i := range s.Rows {
		order[i] = &s.Rows[i]
	}
	slices.SortStableFunc(order, func(a, b *summaryRow) int { return cmp.Compare(b.Final.Mean, a.Final.Mean) })
	best := order[0]
	over := ""
	if s.Several {
		over = ", in the mean of " + plural(len(r.Policies[0].Runs), "order") + " of arrival"
	}
	first := fmt.Sprintf("%s allocates %s %% of %s%s.", best.Name, percent(best.Final.Mean), plural(clusterGPUs(&r.Input), "GPU"), over)
	if len(order) == 1 {
		return []string{first}
	}
	next := order[1]
	gap := next.Left.Mean - best.Left.Mean
	if gap < 0.05 {
		return []string{first, fmt.Sprintf("%s allocates as much.", next.Name)}
	}
	return []string{first, fmt.Sprintf("That is %s GPUs more than %s, the next best, whose %s %% leave %s GPUs idle where %s leaves %s.",
		tenth(gap), next.Name, percent(next.Final.Mean), tenth(next.Left.Mean), best.Name, tenth(best.Left.Mean))}
}

// fact is one thing about the input.
type fact struct{ Name, Value, Note string }

func facts(r *Report) []fact {
	in := &r.Input
	var cpu, mib int64
	without := 0
	for i := range in.Nodes {
		cpu, mib = cpu+in.Nodes[i].CPUMilli, mib+in.Nodes[i].MemoryMiB
		if in.Nodes[i].GPUs == 0 {
			without++
		}
	}
	nodes := cores(cpu) + " CPUs, " + memory(mib)
	if without > 0 {
		nodes += "; " + count(without) + " without a GPU"
	}
	wants, shares := 0, 0
	for i := range in.Tasks {
		if q := &in.Tasks[i].Request; q.WantsGPU() {
			wants++
			if q.IsShare() {
				shares++
			}
		}
	}
	detail := r.Policies[0].detail()
	budget := fact{"Defragmentation", "off", "nothing is moved once placed"}
	if r.DefragBudget > 0 {
		budget.Value = "≤ " + trimmed(100*r.DefragBudget) + " %"
		budget.Note = "of the arrivals may be moved"
	}
	distribution := fact{"Classes of tasks", "known", "policies know the trace's mix from the start"}
	if r.Distribution == sim.DistributionOnline {
		distribution = fact{"Classes of tasks", "learned", "policies learn the mix from the arrivals"}
	}
	seeds := fact{"Seeds", seedRanges(r.Seeds), "each shuffles the arrivals anew"}
	return []fact{
		{"Nodes", count(len(in.Nodes)), nodes},
		{"GPUs", count(clusterGPUs(in)), plural(len(models(in)), "kind") + " of nodes with GPUs"},
		{"Tasks in the trace", count(len(in.Tasks)), count(wants) + " want GPUs, " + count(shares) + " of them a share of one"},
		{"Load", trimmed(r.Load) + " ×", "the cluster's GPUs; " + plural(len(detail.Placements), "arrival")},
		seeds, distribution, budget,
	}
}

// seedRanges writes seeds as "42-51, 60".
func seedRanges(seeds []uint64) string {
	var parts []string
	for i := 0; i < len(seeds); {
		j := i
		for j+1 < len(seeds) && seeds[j+1] == seeds[j]+1 {
			j++
		}
		part := strconv.FormatUint(seeds[i], 10)
		if j > i {
			part += "-" + strconv.FormatUint(seeds[j], 10)
		}
		parts = append(parts, part)
		i = j + 1
	}
	return strings.Join(parts, ", ")
}

func clusterGPUs(in *sim.Input) int {
	n := 0
	for i := range in.Nodes {
		n += in.Nodes[i].GPUs
	}
	return n
}

// modelRow is the nodes of one model and number of GPUs.
type modelRow struct {
	Model       string
	GPUs, Nodes int
	CPU, Memory string
}

func (m modelRow) Total() int { return m.GPUs * m.Nodes }

// models lists the kinds of nodes that have GPUs, most GPUs first.
func models(in *sim.Input) []modelRow {
	type key struct {
		model string
		gpus  int
	}
	type sum struct {
		nodes    int
		cpu, mib [2]int64 // least and most
	}
	known := map[key]*sum{}
	for i := range in.Nodes {
		n := &in.Nodes[i]
		if n.GPUs == 0 {
			continue
		}
		k := key{n.Model, n.GPUs}
		s := known[k]
		if s == nil {
			s = &sum{cpu: [2]int64{n.CPUMilli, n.CPUMilli}, mib: [2]int64{n.MemoryMiB, n.MemoryMiB}}
			known[k] = s
		}
		s.nodes++
		s.cpu = [2]int64{min(s.cpu[0], n.CPUMilli), max(s.cpu[1], n.CPUMilli)}
		s.mib = [2]int64{min(s.mib[0], n.MemoryMiB), max(s.mib[1], n.MemoryMiB)}
	}
	var out []modelRow
	for k, s := range known {
		out = append(out, modelRow{k.model, k.gpus, s.nodes, between(s.cpu, cores), between(s.mib, memory)})
	}
	slices.SortFunc(out, func(a, b modelRow) int {
		return cmp.Or(cmp.Compare(b.Total(), a.Total()), strings.Compare(a.Model, b.Model), cmp.Compare(b.GPUs, a.GPUs))
	})
	return out
}

func between(ends [2]int64, write func(int64) string) string {
	low, high := write(ends[0]), write(ends[1])
	if low == high {
		return low
	}
	return low + " to " + high
}

// runRow is one run.
type runRow struct {
	Name   string
	Colour int
	sim.Result
}

func runs(r *Report) []runRow {
	var out []runRow
	for i := range r.Policies {
		for j := range r.Policies[i].Runs {
			out = append(out, runRow{r.Policies[i].Name, i % colours, r.Policies[i].Runs[j]})
		}
	}
	return out
}

// sizeRow is how many of the tasks of one size found no place, a policy.
type sizeRow struct {
	Size     string
	Arrived  int
	Policies []sizeCell
}

type sizeCell struct {
	Count int
	// Percent of those that arrived.
	Percent float64
	// Best is true where no policy has fewer, and another more.
	Best bool
}

// bySize counts arrivals without a place by how many GPUs they ask for.
func bySize(r *Report) []sizeRow {
	// Twice the number of GPUs, so that a share has a number between none and one.
	const shares = 1
	size := func(task int) int {
		q := &r.Input.Tasks[task].Request
		if q.IsShare() {
			return shares
		}
		return 2 * q.GPUs
	}
	arrived := map[int]int{}
	for _, a := range r.Policies[0].detail().Placements {
		arrived[size(a.Task)]++
	}
	missed := make([]map[int]int, len(r.Policies))
	for i := range r.Policies {
		missed[i] = map[int]int{}
		for _, a := range r.Policies[i].detail().Placements {
			if a.Node == "" {
				missed[i][size(a.Task)]++
			}
		}
	}
	sizes := make([]int, 0, len(arrived))
	for s := range arrived {
		sizes = append(sizes, s)
	}
	slices.SortFunc(sizes, cmp.Compare)
	out := make([]sizeRow, 0, len(sizes))
	for _, s := range sizes {
		row := sizeRow{Arrived: arrived[s]}
		if s == shares {
			row.Size = "a share of a GPU"
		} else {
			row.Size = asks(&pack.Request{GPUs: s / 2})
		}
		best, worst := math.MaxInt, 0
		for i := range missed {
			best, worst = min(best, missed[i][s]), max(worst, missed[i][s])
		}
		for i := range missed {
			n := missed[i][s]
			row.Policies = append(row.Policies, sizeCell{n, share(float64(n), float64(arrived[s])), n == best && best < worst})
		}
		out = append(out, row)
	}
	return out
}
