// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// column of a table.
type column struct {
	// titles from the longest; the first that fits is used.
	titles []string
	right  bool
	// min is the width to which the column shrinks if the screen is very narrow; 0 lets it keep its width.
	min int
	// low is the width to which it shrinks first; at least min.
	low int
	// wide columns are printed with -o wide alone.
	wide bool
	// optional columns are left out, the last first, where a screen is still too narrow.
	optional bool
}

// cell of a table.
type cell interface {
	// want is the width at which nothing is lost.
	want() int
	// most is the width that it can make use of.
	most() int
	// least is the width below which it must not be drawn.
	least() int
	draw(width int) []span
}

// textCell is text, which is shortened in the middle where its column must shrink.
type textCell []span

func text(s string) textCell { return textCell{{s, plain}} }

func styled(s string, st style) textCell { return textCell{{s, st}} }

func number(n int) textCell { return text(fmt.Sprint(n)) }

func (t textCell) want() int  { return width(t) }
func (t textCell) most() int  { return width(t) }
func (t textCell) least() int { return 0 }

func (t textCell) draw(w int) []span {
	if len(t) != 1 || width(t) <= w {
		return t
	}
	return []span{{shorten(t[0].text, w), t[0].style}}
}

// shorten cuts the middle out of a name. Its end, which tells apart the pods and nodes of one set, gets more of what remains.
func shorten(s string, w int) string {
	r := []rune(s)
	if len(r) <= w || w < 3 {
		return s
	}
	head := (w - 1) / 2
	return string(r[:head]) + "…" + string(r[len(r)-(w-1-head):])
}

// barCell is a figure and a bar beside it, which takes what width there is.
type barCell struct {
	label string
	parts []part
	kind  barKind
}

// barKind is how much room a bar deserves.
type barKind int

const (
	noBar barKind = iota
	// minorBar says nothing that its label does not say.
	minorBar
	majorBar
)

// usual is the length of a bar where there is room enough, most that beyond which it says no more.
func (k barKind) usual() int {
	if k == minorBar {
		return 10
	}
	return 20
}

func (k barKind) most() int { return 2 * k.usual() }

// Bars shorten to usefulBar before names do, and vanish where there is no room for shortestBar.
const (
	usefulBar   = 8
	shortestBar = 4
)

// longName is the length above which a name is shortened before bars are.
const longName = 32

func (b barCell) want() int  { return utf8.RuneCountInString(b.label) + 1 + b.kind.usual() }
func (b barCell) most() int  { return utf8.RuneCountInString(b.label) + 1 + b.kind.most() }
func (b barCell) least() int { return utf8.RuneCountInString(b.label) }

func (b barCell) draw(w int) []span {
	out := []span{{b.label, plain}}
	room := w - utf8.RuneCountInString(b.label) - 1
	if room < shortestBar || len(b.parts) == 0 {
		return out
	}
	return append(append(out, span{" ", plain}), drawBar(b.parts, min(room, b.kind.most()))...)
}

// alignLabels gives the labels of a column of bars the same width.
func alignLabels(rows [][]cell, col int) {
	longest := 0
	for _, row := range rows {
		if b, ok := row[col].(barCell); ok {
			longest = max(longest, utf8.RuneCountInString(b.label))
		}
	}
	for _, row := range rows {
		if b, ok := row[col].(barCell); ok {
			b.label = strings.Repeat(" ", longest-utf8.RuneCountInString(b.label)) + b.label
			row[col] = b
		}
	}
}

// listCell is several names or notes, of which as many are drawn as there is room for, and the number of the others.
type listCell []span

func (l listCell) want() int {
	n := max(0, 2*(len(l)-1))
	return n + width(l)
}

func (l listCell) most() int  { return l.want() }
func (l listCell) least() int { return 0 }

// shortName is the length to which a name in a list is shortened if that lets another one be seen.
const shortName = 14

func (l listCell) draw(w int) []span {
	if l.want() <= w {
		return l.first(len(l))
	}
	short := slices.Clone(l)
	for i := range short {
		short[i].text = shorten(short[i].text, shortName)
	}
	for n := len(l); n > 0; n-- {
		for _, names := range []listCell{l, short} {
			if out := names.first(n); width(out) <= w {
				return out
			}
		}
	}
	out := l.first(1)
	rest := width(out) - width(l[:1])
	out[0].text = shorten(out[0].text, max(3, w-rest))
	return out
}

// first returns n of the names and the number of the others.
func (l listCell) first(n int) []span {
	var out []span
	for i := range n {
		if i > 0 {
			out = append(out, span{", ", plain})
		}
		out = append(out, l[i])
	}
	if n < len(l) {
		out = append(out, span{fmt.Sprintf(" +%d", len(l)-n), plain})
	}
	return out
}

// tailedCell is a name and what must stay legible behind it.
type tailedCell struct{ name, tail string }

func (c tailedCell) want() int  { return utf8.RuneCountInString(c.name + c.tail) }
func (c tailedCell) most() int  { return c.want() }
func (c tailedCell) least() int { return 3 + utf8.RuneCountInString(c.tail) }

func (c tailedCell) draw(w int) []span {
	return []span{{shorten(c.name, w-utf8.RuneCountInString(c.tail)) + c.tail, plain}}
}

// modelCell is the model of a GPU, whose generation and memory must stay legible.
type modelCell string

func (m modelCell) name() string { return strings.TrimPrefix(orDash(string(m)), "NVIDIA-") }
func (m modelCell) want() int    { return utf8.RuneCountInString(m.name()) }
func (m modelCell) most() int    { return m.want() }
func (m modelCell) least() int   { return 0 }

func (m modelCell) draw(w int) []span {
	name := m.name()
	words := strings.Split(name, "-")
	if m.want() > w && len(words) > 2 {
		name = words[0] + "…" + words[len(words)-1]
	}
	if utf8.RuneCountInString(name) > w {
		name = words[0]
	}
	return []span{{shorten(name, w), plain}}
}

// table is rows under titles.
type table struct {
	columns []column
	rows    [][]cell
}

// print writes the table. Wide tables have more columns, and names in full.
func (t *table) print(s screen, wide, noHeaders bool) {
	columns, rows := t.visible(wide)
	for i := range columns {
		alignLabels(rows, i)
	}
	widths, excess := layout(columns, rows, s, wide)
	for excess > 0 && !wide && !s.exact {
		last := -1
		for i := range columns {
			if columns[i].optional {
				last = i
			}
		}
		if last < 0 {
			break
		}
		columns = slices.Delete(columns, last, last+1)
		for i := range rows {
			rows[i] = slices.Delete(rows[i], last, last+1)
		}
		widths, excess = layout(columns, rows, s, wide)
	}
	if !noHeaders {
		titles := make([][]span, len(columns))
		for i := range columns {
			titles[i] = []span{{columns[i].title(widths[i]), heading}}
		}
		printRow(s, columns, widths, titles)
	}
	for _, row := range rows {
		cells := make([][]span, len(row))
		for i := range row {
			cells[i] = row[i].draw(widths[i])
		}
		printRow(s, columns, widths, cells)
	}
}

// visible leaves out the columns that are for wide tables, and copies the rows.
func (t *table) visible(wide bool) ([]column, [][]cell) {
	var columns []column
	rows := make([][]cell, len(t.rows))
	for i, c := range t.columns {
		if c.wide && !wide {
			continue
		}
		columns = append(columns, c)
		for j := range t.rows {
			rows[j] = append(rows[j], t.rows[j][i])
		}
	}
	return columns, rows
}

func (c *column) title(w int) string {
	for _, title := range c.titles {
		if utf8.RuneCountInString(title) <= w {
			return title
		}
	}
	return c.titles[len(c.titles)-1]
}

const columnGap = 2

// layout gives each column its width. On a narrow screen, by turns and the longest first, bars get shorter, names lose their
// middle and lists their last entries. Figures are never cut: excess is by how much rows are then still too long.
func layout(columns []column, rows [][]cell, s screen, wide bool) (widths []int, excess int) {
	n := len(columns)
	widths = make([]int, n)
	most, least := make([]int, n), make([]int, n)
	kinds := make([]barKind, n)
	total := columnGap * (n - 1)
	for i := range columns {
		title := utf8.RuneCountInString(columns[i].titles[len(columns[i].titles)-1])
		widths[i], least[i] = title, title
		for _, row := range rows {
			widths[i] = max(widths[i], row[i].want())
			most[i] = max(most[i], row[i].most())
			least[i] = max(least[i], row[i].least())
			if b, ok := row[i].(barCell); ok {
				kinds[i] = b.kind
			}
		}
		if kinds[i] != noBar {
			// The title over the figure and its bar is longer than either where there is room.
			widths[i] = max(widths[i], utf8.RuneCountInString(columns[i].titles[0]))
		}
		total += widths[i]
	}
	excess = total - s.width
	if excess < 0 {
		grow(widths, most, kinds, -excess)
		return widths, 0
	}
	names := !wide && !s.exact
	bar := func(usual, minor int) func(i int) int {
		return func(i int) int {
			if kinds[i] == minorBar {
				return least[i] + minor
			}
			return least[i] + usual
		}
	}
	steps := []struct {
		bar  func(i int) int
		name func(c *column) int
	}{
		{bar(1+40, 1+20), func(*column) int { return longName }},
		{bar(1+usefulBar, 1+usefulBar/2), func(*column) int { return longName }},
		{bar(1+usefulBar, 1+usefulBar/2), func(c *column) int { return max(c.low, c.min) }},
		{bar(1+usefulBar, 1+usefulBar/2), func(c *column) int { return c.min }},
		{bar(1+usefulBar, 0), func(c *column) int { return c.min }},
		{bar(1+shortestBar, 0), func(c *column) int { return c.min }},
		{bar(0, 0), func(c *column) int { return c.min }},
	}
	if wide || s.exact {
		// Rows may get longer: bars need not vanish.
		steps = steps[:2]
	}
	for _, step := range steps {
		excess = shrink(widths, excess, func(i int) int {
			switch {
			case kinds[i] != noBar:
				return step.bar(i)
			case names && columns[i].min > 0:
				return max(least[i], step.name(&columns[i]))
			}
			return widths[i]
		})
	}
	// Lists and models do not use every width that they are given: bars can.
	room := -excess
	for i := range columns {
		if kinds[i] != noBar {
			continue
		}
		used := utf8.RuneCountInString(columns[i].title(widths[i]))
		for _, row := range rows {
			used = max(used, width(row[i].draw(widths[i])))
		}
		room += max(0, widths[i]-used)
		widths[i] = min(widths[i], used)
	}
	grow(widths, most, kinds, room)
	return widths, max(0, -room)
}

// shrink takes excess off the columns, always the widest that is above its floor, and returns what it could not take.
func shrink(widths []int, excess int, floor func(i int) int) int {
	for ; excess > 0; excess-- {
		widest := -1
		for i := range widths {
			if widths[i] > floor(i) && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	return excess
}

// grow gives the bars what room is left, by turns.
func grow(widths, most []int, kinds []barKind, room int) {
	for given := true; given && room > 0; {
		given = false
		for i := range widths {
			if kinds[i] != noBar && widths[i] < most[i] && room > 0 {
				widths[i]++
				room--
				given = true
			}
		}
	}
}

func printRow(s screen, columns []column, widths []int, cells [][]span) {
	var b strings.Builder
	pending := 0
	for i, c := range cells {
		pad := max(0, widths[i]-width(c))
		if columns[i].right {
			pending, pad = pending+pad, 0
		}
		if len(c) > 0 && width(c) > 0 {
			b.WriteString(strings.Repeat(" ", pending))
			b.WriteString(s.render(c))
			pending = 0
		}
		pending += pad + columnGap
	}
	fmt.Fprintln(s, b.String())
}

// sortKey is a column by which items can be sorted.
type sortKey[T any] struct {
	name    string
	compare func(a, b *T) int
}

// byName sorts ascending, byFigure descending, since the largest are what one looks for.
func byName[T any](name string, of func(*T) string) sortKey[T] {
	return sortKey[T]{name, func(a, b *T) int { return cmp.Compare(of(a), of(b)) }}
}

func byFigure[T any](name string, of func(*T) int64) sortKey[T] {
	return sortKey[T]{name, func(a, b *T) int { return cmp.Compare(of(b), of(a)) }}
}

func keyNames[T any](keys []sortKey[T]) []string {
	var names []string
	for _, k := range keys {
		names = append(names, k.name)
	}
	return names
}

// sortItems keeps the order of items that are equal in the column. by is valid: see output.validate.
func sortItems[T any](items []T, keys []sortKey[T], by string) {
	for _, k := range keys {
		if k.name == by {
			slices.SortStableFunc(items, func(a, b T) int { return k.compare(&a, &b) })
		}
	}
}

func printLine(w io.Writer, format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
