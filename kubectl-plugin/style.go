// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// style is a colour. Nothing is said by colour alone.
type style int

const (
	plain style = iota
	heading
	faint
	good
	warn
	bad
)

var sgr = map[style]string{heading: "1", faint: "2", good: "36", warn: "33", bad: "31"}

// span is text in one style.
type span struct {
	text  string
	style style
}

func width(spans []span) int {
	n := 0
	for _, s := range spans {
		n += utf8.RuneCountInString(s.text)
	}
	return n
}

// screen is where a table goes.
type screen struct {
	io.Writer
	// width in characters. Tables keep to it as far as they can.
	width int
	// exact is true where nobody watches at that width, so that names are printed in full although rows get longer.
	exact bool
	color bool
}

// defaultWidth is the width of what is not a terminal.
const defaultWidth = 100

// newScreen finds out where the output goes. COLUMNS overrides the terminal's width.
func newScreen(w io.Writer) screen {
	s := screen{Writer: w, width: defaultWidth, exact: true}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		if columns, _, err := term.GetSize(int(f.Fd())); err == nil && columns > 0 {
			s.width, s.exact = columns, false
		}
	}
	if columns, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && columns > 0 {
		s.width, s.exact = columns, false
	}
	return s
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// render returns spans as text, in colour if the screen has it.
func (s *screen) render(spans []span) string {
	var b strings.Builder
	for _, sp := range spans {
		if code := sgr[sp.style]; s.color && code != "" && sp.text != "" {
			fmt.Fprintf(&b, "\x1b[%sm%s\x1b[0m", code, sp.text)
		} else {
			b.WriteString(sp.text)
		}
	}
	return b.String()
}

// The glyphs of bars can be told apart without colour.
const (
	glyphUsed     = "█"
	glyphPromised = "▒"
	glyphForeign  = "×"
	glyphSick     = "!"
	glyphFree     = "░"
)

// part is a stretch of a bar.
type part struct {
	amount int64
	glyph  string
	style  style
}

// memoryParts are the stretches of a memory bar; together they are the memory that pods could have.
func (m *Memory) parts() []part {
	used := max(0, m.UsedMiB-m.ForeignMiB)
	free := m.FreeMiB + m.sickMiB
	promised := max(0, m.TotalMiB-m.ReservedMiB-m.ForeignMiB-free-used)
	return []part{
		{used, glyphUsed, good},
		{promised, glyphPromised, good},
		{m.ForeignMiB, glyphForeign, warn},
		{m.sickMiB, glyphSick, bad},
		{m.FreeMiB, glyphFree, faint},
	}
}

func percentParts(percent int) []part {
	p := int64(min(100, max(0, percent)))
	return []part{{p, glyphUsed, good}, {100 - p, glyphFree, faint}}
}

// drawBar draws a bar of that many characters. Every part that is not nothing gets a character, as far as there are enough:
// 60 GiB of foreign memory must be seen on a node of 640 GiB.
func drawBar(parts []part, chars int) []span {
	if chars <= 0 {
		return nil
	}
	var sum int64
	for _, p := range parts {
		sum += p.amount
	}
	if sum == 0 {
		return []span{{strings.Repeat(" ", chars), plain}}
	}
	counts := make([]int, len(parts))
	left := chars
	for i, p := range parts {
		counts[i] = int(p.amount * int64(chars) / sum)
		if p.amount > 0 && counts[i] == 0 {
			counts[i] = 1
		}
		left -= counts[i]
	}
	// Rounding leaves a few characters, which go to the parts that miss most, or takes a few, which the longest can spare.
	for ; left > 0; left-- {
		best := 0
		for i := range parts {
			if missing(parts[i].amount, counts[i], chars, sum) > missing(parts[best].amount, counts[best], chars, sum) {
				best = i
			}
		}
		counts[best]++
	}
	for ; left < 0; left++ {
		longest := 0
		for i := range counts {
			if counts[i] > counts[longest] {
				longest = i
			}
		}
		counts[longest]--
	}
	var spans []span
	for i, p := range parts {
		if counts[i] > 0 {
			spans = append(spans, span{strings.Repeat(p.glyph, counts[i]), p.style})
		}
	}
	return spans
}

// missing is how many characters a part should have beyond those it has.
func missing(amount int64, count, chars int, sum int64) float64 {
	return float64(amount)*float64(chars)/float64(sum) - float64(count)
}

// legend explains memory bars.
func legend() []span {
	return []span{
		{glyphUsed, good}, {" used by pods  ", plain}, {glyphPromised, good}, {" requested, unused  ", plain},
		{glyphForeign, warn}, {" foreign, of no pod  ", plain}, {glyphSick, bad}, {" sick  ", plain},
		{glyphFree, faint}, {" free", plain},
	}
}

const (
	mibPerGiB = 1024
	mibPerTiB = 1024 * mibPerGiB
)

// gib writes MiB as a person would, such as "3.6Gi", "60Gi" or "1.2Ti".
func gib(mib int64) string {
	if mib >= mibPerTiB {
		return figure(float64(mib)/mibPerTiB) + "Ti"
	}
	return figure(float64(mib)/mibPerGiB) + "Gi"
}

// gibIn writes MiB without its unit, in the unit that suits scale.
func gibIn(mib, scale int64) (number, unit string) {
	if scale >= 10*mibPerTiB {
		return figure(float64(mib) / mibPerTiB), "Ti"
	}
	return figure(float64(mib) / mibPerGiB), "Gi"
}

// figure writes two significant digits or all before the point.
func figure(value float64) string {
	if value >= 9.95 {
		return strconv.FormatFloat(value, 'f', 0, 64)
	}
	s := strings.TrimSuffix(strconv.FormatFloat(value, 'f', 1, 64), ".0")
	if s == "0" && value > 0 {
		return "0.1"
	}
	return s
}

// wrap breaks a text into lines of that width, with later lines indented.
func wrap(text string, width int) string {
	var b strings.Builder
	length := 0
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case length+1+utf8.RuneCountInString(word) > width:
			b.WriteString("\n  ")
			length = 2
		default:
			b.WriteString(" ")
			length++
		}
		b.WriteString(word)
		length += utf8.RuneCountInString(word)
	}
	return b.String()
}
