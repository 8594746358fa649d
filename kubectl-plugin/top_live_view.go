// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// glyphReserved is what the driver keeps for itself in the bars of the live view.
const glyphReserved = "≡"

// The lines above and below the rows of the live view.
const (
	linesAbove = 4
	linesBelow = 2
	leastLines = linesAbove + linesBelow + 1
)

// rowSpace is how many rows the screen has room for.
func (m *liveModel) rowSpace() int {
	return max(1, m.height-linesAbove-linesBelow-len(m.messageLines()))
}

// messageLines are what is wrong, in lines of the screen's width.
func (m *liveModel) messageLines() []string {
	var lines []string
	for _, message := range m.messages {
		lines = append(lines, strings.Split(wrap(message, m.width), "\n")...)
	}
	// A person must still see rows.
	if most := max(0, m.height-leastLines-2); len(lines) > most {
		lines = lines[:most]
	}
	return lines
}

// render draws the screen. It depends on nothing but the model.
func (m *liveModel) render() string {
	if m.width <= 0 || m.height <= 0 {
		return ""
	}
	var lines []string
	switch m.page {
	case pageHelp:
		lines = m.textPage("Keys of kubectl gpupack top", liveHelp)
	case pageExplanation:
		lines = m.textPage(m.explained, m.explanation)
	default:
		lines = m.treePage()
	}
	if len(lines) > m.height {
		lines = lines[:m.height]
	}
	return strings.Join(lines, "\n")
}

// line renders spans in one line of the screen.
func (m *liveModel) line(spans ...span) string {
	sc := screen{color: m.color}
	return strings.TrimRight(sc.render(cut(spans, m.width)), " ")
}

// cut ends spans at that width.
func cut(spans []span, w int) []span {
	var out []span
	for _, s := range spans {
		n := utf8.RuneCountInString(s.text)
		if n > w {
			r := []rune(s.text)
			if w > 0 {
				out = append(out, span{string(r[:w-1]) + "…", s.style})
			}
			return out
		}
		out = append(out, s)
		w -= n
	}
	return out
}

func (m *liveModel) textPage(title, text string) []string {
	lines := []string{m.line(span{title, heading}), ""}
	body := strings.Split(strings.TrimRight(text, "\n"), "\n")
	room := max(1, m.height-3)
	m.scroll = max(0, min(m.scroll, len(body)-room))
	for _, l := range body[m.scroll:min(len(body), m.scroll+room)] {
		lines = append(lines, m.line(span{l, plain}))
	}
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	return append(lines, m.line(span{"↑↓ scroll  esc back  q quit", faint}))
}

func (m *liveModel) treePage() []string {
	t := &m.data.totals
	summary := fmt.Sprintf("%s, %s: %d healthy, %d sick; %d held by %s, %d free whole, %d stranded", plural(t.Nodes, "node"),
		plural(t.GPUs, "GPU"), t.GPUsHealthy, t.GPUsSick, t.GPUsHeld, plural(t.Pods, "pod"), t.GPUsFreeWhole, t.GPUsStranded)
	if m.loading != "" {
		summary = m.loading
	}
	lines := []string{m.line(span{summary, heading}), m.totalsLine(), m.stateLine()}
	for _, message := range m.messageLines() {
		lines = append(lines, m.line(span{message, warn}))
	}
	c := m.liveColumns()
	lines = append(lines, m.line(span{c.titles(), heading}))
	space := m.rowSpace()
	for i := m.top; i < min(len(m.rows), m.top+space); i++ {
		lines = append(lines, m.rowLine(&c, i))
	}
	if len(m.rows) == 0 && m.loading == "" {
		nothing := "  nothing to show"
		if m.filter != "" {
			nothing = "  nothing matches the filter: esc clears it"
		}
		lines = append(lines, m.line(span{nothing, faint}))
	}
	for len(lines) < m.height-linesBelow {
		lines = append(lines, "")
	}
	explain := append([]span{{glyphReserved, faint}, {" reserved  ", plain}}, legend()...)
	if m.width < width(explain) {
		for i := range explain {
			explain[i].text = strings.NewReplacer(" by pods", "", ", of no pod", "").Replace(explain[i].text)
		}
	}
	help := "↑↓ move  →← open, close  enter explain  / filter  s sort  r reverse  g group  ? keys  q quit"
	if m.width < 96 {
		help = "↑↓→← enter explain  / filter  s sort  r reverse  g group  ? keys  q quit"
	}
	return append(lines, m.line(explain...), m.line(span{help, faint}))
}

// totalsLine is the memory and utilisation of the cluster.
func (m *liveModel) totalsLine() string {
	t := &m.data.totals
	if t.TotalMiB == 0 {
		return ""
	}
	label := fmt.Sprintf("Memory %s used, %s requested of %s ", gib(t.UsedMiB), gib(t.RequestedMiB), gib(t.TotalMiB))
	chars := min(historySamples, max(0, m.width/8))
	tail := fmt.Sprintf("  Utilisation %3d%% %s", t.Utilization, m.data.history.draw(chars))
	bar := m.width - utf8.RuneCountInString(label) - utf8.RuneCountInString(tail)
	spans := []span{{label, plain}}
	if bar >= shortestBar {
		spans = append(spans, drawBar(wholeParts(&t.Memory), min(bar, 60))...)
	}
	return m.line(append(spans, span{tail, plain})...)
}

func (m *liveModel) stateLine() string {
	order := "ascending"
	if (m.order.sortBy == 0) == m.order.reverse {
		order = "descending"
	}
	text := fmt.Sprintf("by %s, sorted by %s %s", liveGroupings[m.order.grouping], liveKeys[m.order.sortBy].name, order)
	if len(m.rows) > m.rowSpace() {
		text += fmt.Sprintf(", row %d of %d", m.cursor+1, len(m.rows))
	}
	spans := []span{{text, faint}}
	switch {
	case m.filtering:
		spans = append(spans, span{"  filter: ", plain}, span{m.filter + "_", heading})
	case m.filter != "":
		spans = append(spans, span{"  filter: " + m.filter, heading})
	}
	return m.line(spans...)
}

// wholeParts are the stretches of a bar of all memory, with the driver's.
func wholeParts(m *Memory) []part {
	return append([]part{{m.ReservedMiB, glyphReserved, faint}}, m.parts()...)
}

// liveWidths are the widths of the columns.
type liveWidths struct{ name, gpus, figures, bar, util, history, notes int }

func (m *liveModel) liveColumns() liveWidths {
	w := liveWidths{gpus: 7, figures: 14, util: 4}
	left := max(0, m.width-1-w.gpus-w.figures-w.util-6)
	w.name = min(54, max(16, left*36/100))
	w.bar = min(40, left*24/100)
	w.history = min(historySamples, left*14/100)
	w.notes = max(0, left-w.name-w.bar-w.history)
	return w
}

func (w *liveWidths) titles() string {
	return fmt.Sprintf("  %-*s %*s %*s %-*s %*s %-*s %s", w.name-1, "NAME", w.gpus, "GPUS", w.figures, "USED/REQ/TOTAL",
		w.bar, "MEMORY", w.util, "UTIL", w.history, "HISTORY"[:min(7, w.history)], "NOTES")
}

// liveCells is what a row says.
type liveCells struct {
	name, gpus, figures string
	parts               []part
	util                string
	history             *history
	notes               []span
}

func (m *liveModel) rowLine(w *liveWidths, i int) string {
	r := &m.rows[i]
	c := m.cells(r)
	marker := "▸ "
	switch {
	case r.leaf():
		marker = "  "
	case i+1 < len(m.rows) && m.rows[i+1].depth > r.depth:
		marker = "▾ "
	}
	pointer := " "
	if i == m.cursor {
		pointer = ">"
	}
	name := strings.Repeat("  ", r.depth) + marker + c.name
	if r.depth > 0 || utf8.RuneCountInString(name) > w.name {
		room := w.name - 2*r.depth - 2
		name = strings.Repeat("  ", r.depth) + marker + shorten(c.name, max(3, room))
	}
	past := ""
	if c.history != nil {
		past = c.history.draw(w.history)
	}
	spans := []span{{pointer, heading}, {fmt.Sprintf("%-*s %*s %*s ", w.name, name, w.gpus, c.gpus, w.figures, c.figures), plain}}
	bar := drawBar(c.parts, w.bar)
	spans = append(spans, bar...)
	spans = append(spans, span{strings.Repeat(" ", w.bar-width(bar)), plain},
		span{fmt.Sprintf(" %*s %-*s ", w.util, c.util, w.history, past), plain})
	for j, n := range c.notes {
		if j > 0 {
			spans = append(spans, span{", ", plain})
		}
		spans = append(spans, n)
	}
	if i == m.cursor && m.color {
		var b strings.Builder
		for _, s := range cut(spans, m.width) {
			b.WriteString(s.text)
		}
		return "\x1b[7m" + b.String() + strings.Repeat(" ", max(0, m.width-utf8.RuneCountInString(b.String()))) + "\x1b[0m"
	}
	return m.line(spans...)
}

func (m *liveModel) cells(r *liveRow) liveCells {
	switch {
	case r.share != nil:
		return m.shareCells(r)
	case r.pod != nil:
		return podCells(r.pod)
	case r.gpu >= 0:
		return gpuCells(r.node, r.gpu)
	case r.node != nil:
		n := r.node
		c := liveCells{name: n.Node, gpus: fmt.Sprintf("%d/%d", n.GPUsHeld, n.GPUCount), figures: n.label(n.Telemetry), notes: n.notes, util: "-"}
		if len(n.GPUs) > 0 {
			c.parts, c.util, c.history = wholeParts(&n.Memory), fmt.Sprintf("%d%%", n.Utilization), &n.history
		}
		if n.Model != "" {
			c.notes = append(slices.Clone(n.notes), span{n.Model, faint})
		}
		return c
	}
	g := r.group
	s := &g.sums
	c := liveCells{name: g.name, gpus: fmt.Sprintf("%d/%d", s.held, s.count), util: fmt.Sprintf("%d%%", s.utilization),
		figures: s.memory.label(TelemetryFresh)}
	if g.nodes != nil {
		c.parts = wholeParts(&s.memory)
		c.notes = []span{{plural(len(g.nodes), "node"), plain}, {plural(s.pods, "pod"), plain}}
	} else {
		c.gpus = fmt.Sprint(s.held)
		c.figures, c.parts = podMemory(s.memory.UsedMiB, s.memory.RequestedMiB, 0)
		c.notes = []span{{plural(len(g.pods), "pod"), plain}}
	}
	if g.key == "pending" {
		c.util = "-"
		c.figures, c.parts = pendingFigures(s.memory.RequestedMiB), nil
	}
	return c
}

func pendingFigures(requested int64) string {
	if requested == 0 {
		return "-"
	}
	return "-/" + gib(requested)
}

// podMemory is the figure and the bar of used over requested memory.
func podMemory(used, requested, over int64) (string, []part) {
	scale := max(requested, used)
	u, _ := gibIn(used, scale)
	r, unit := gibIn(requested, scale)
	return u + "/" + r + unit, []part{
		{used - over, glyphUsed, good}, {over, glyphSick, bad}, {max(0, requested-used), glyphPromised, good},
	}
}

func gpuCells(n *liveNode, i int) liveCells {
	g := &n.GPUs[i]
	c := liveCells{name: fmt.Sprintf("GPU %d", g.Index), gpus: plural(len(g.Pods), "pod"), figures: g.label(g.telemetry),
		parts: wholeParts(&g.Memory), util: fmt.Sprintf("%d%%", g.Utilization), history: &n.gpuHistory[i]}
	if !g.Healthy {
		c.notes = append(c.notes, span{g.shortHealth(), bad})
	}
	if g.ForeignMiB > 0 {
		c.notes = append(c.notes, span{gib(g.ForeignMiB) + " foreign", warn})
	}
	if n.Model == "mixed" {
		c.notes = append(c.notes, span{g.Model, faint})
	}
	if g.TemperatureCelsius != 0 {
		c.notes = append(c.notes, span{fmt.Sprintf("%dC", g.TemperatureCelsius), faint})
	}
	if g.PowerMilliwatts > 0 {
		c.notes = append(c.notes, span{fmt.Sprintf("%dW", (g.PowerMilliwatts+500)/1000), faint})
	}
	return c
}

// shareCells is a pod under one of its GPUs.
func (m *liveModel) shareCells(r *liveRow) liveCells {
	s := r.share
	over := int64(0)
	if s.over() {
		over = s.UsedMiB - s.RequestedMiB
	}
	c := liveCells{name: s.Namespace + "/" + s.Name, util: fmt.Sprintf("%d%%", s.Utilization)}
	c.figures, c.parts = podMemory(s.UsedMiB, s.RequestedMiB, over)
	switch {
	case s.Gone:
		c.notes = append(c.notes, span{"has ended", faint})
	case over > 0:
		c.notes = append(c.notes, span{gib(over) + " over", bad})
	}
	if r.pod != nil && r.pod.Gang != "" {
		c.notes = append(c.notes, span{"gang " + r.pod.Gang, plain})
	}
	return c
}

func podCells(p *livePod) liveCells {
	c := liveCells{name: p.Namespace + "/" + p.Name, gpus: p.indices(), util: "-"}
	switch {
	case len(p.GPUs) > 0:
		c.util = fmt.Sprintf("%d%%", p.Utilization)
		c.figures, c.parts = podMemory(p.UsedMiB, p.RequestedMiB, p.OverMiB)
	default:
		c.figures = pendingFigures(p.RequestedMiB)
		if p.GPUCount > 0 {
			c.gpus = fmt.Sprint(p.GPUCount)
		}
	}
	if p.OverMiB > 0 {
		c.notes = append(c.notes, span{gib(p.OverMiB) + " over", bad})
	}
	if p.node != nil {
		c.notes = append(c.notes, span{p.node.Node, plain})
	} else {
		c.notes = append(c.notes, span{"pending", warn})
	}
	if p.Gang != "" {
		c.notes = append(c.notes, span{"gang " + p.Gang, plain})
	}
	return c
}

const liveHelp = `↑ ↓ or k j       move               pgup pgdn        a screen
home end         first, last        mouse wheel      scroll
→ or l, space    open               ← or h           close, or go to what it is in
e                open or close all  click            choose; again: open, close, explain
enter            explain the pod; open or close another row
/                filter as you type by node, model, pool, pod, namespace, gang, note; enter keeps it, esc clears it
s S              next, previous sort key
r                reverse the order
g G              next, previous grouping: node, pool, model, namespace, gang
q ctrl+c         quit

Bars are of a GPU's whole memory:
≡ reserved by the driver    █ used by pods     ▒ requested by pods, unused
× used by no pod (foreign)  ! sick GPU         ░ free
A pod's bar is of what it requested; ! is used beyond that.
HISTORY is the utilisation of the last two minutes, a sample each 5 seconds.
`
