// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"html"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"
)

// columns is the width of the terminal in a picture.
const columns = 100

// screenshot runs a command of kubectl gpupack in a terminal and draws what it printed.
func screenshot(ctx context.Context, env []string, path string, args ...string) error {
	out, err := inTerminal(ctx, append(env, fmt.Sprintf("COLUMNS=%d", columns)), plugin, args...)
	if err != nil {
		return err
	}
	var svg bytes.Buffer
	drawSVG(&svg, "$ "+commandLine(args)+"\n"+string(out))
	if err := os.WriteFile(path, svg.Bytes(), 0o644); err != nil {
		return err
	}
	fmt.Printf("\nwrote %s\n", path)
	return nil
}

// The size of a character and the margin around the text, in pixels.
const (
	charWidth  = 8.4
	lineHeight = 18.0
	margin     = 16.0
)

// style of the picture: what a terminal shows for the SGR codes that kubectl gpupack uses, on a light and a dark page.
const style = `
text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1f2328 }
rect { fill: #f6f8fa; stroke: #d1d9e0 }
.s1 { font-weight: bold } .s2 { fill: #818b98 } .s31 { fill: #cf222e } .s32 { fill: #1a7f37 } .s33 { fill: #9a6700 }
.s34 { fill: #0969da } .s35 { fill: #8250df } .s36 { fill: #1b7c83 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } rect { fill: #0d1117; stroke: #3d444d }
  .s2 { fill: #6e7681 } .s31 { fill: #ff7b72 } .s32 { fill: #3fb950 } .s33 { fill: #d29922 }
  .s34 { fill: #58a6ff } .s35 { fill: #bc8cff } .s36 { fill: #39c5cf }
}
`

var (
	sgr = regexp.MustCompile("\x1b\\[([0-9;]*)m")
	// words are what one space at most joins.
	words = regexp.MustCompile(`\S+( \S+)*`)
)

// drawSVG draws text with SGR codes. Each word is fitted to its cells, so that columns stay in line whatever
// font there is.
func drawSVG(out *bytes.Buffer, text string) {
	lines := strings.Split(strings.TrimRight(strings.ReplaceAll(text, "\r", ""), "\n"), "\n")
	width := columns
	for _, line := range lines {
		width = max(width, utf8.RuneCountInString(sgr.ReplaceAllString(line, "")))
	}
	w, h := float64(width)*charWidth+2*margin, float64(len(lines))*lineHeight+2*margin
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f">`, w, h, w, h)
	fmt.Fprintf(out, "\n<style>%s</style>\n", style)
	fmt.Fprintf(out, `<rect x="0.5" y="0.5" width="%.0f" height="%.0f" rx="8"/>`+"\n", w-1, h-1)
	classes := ""
	for i, line := range lines {
		column := 0
		fmt.Fprintf(out, `<text y="%.0f">`, margin+lineHeight*(float64(i)+0.75))
		run := func(s string) {
			// Not all viewers keep spaces, so each word has a place of its own.
			for _, at := range words.FindAllStringIndex(s, -1) {
				word := s[at[0]:at[1]]
				class := ""
				if classes != "" {
					class = fmt.Sprintf(` class="%s"`, classes)
				}
				fmt.Fprintf(out, `<tspan x="%.1f" textLength="%.1f" lengthAdjust="spacingAndGlyphs"%s>%s</tspan>`,
					margin+charWidth*float64(column+utf8.RuneCountInString(s[:at[0]])),
					charWidth*float64(utf8.RuneCountInString(word)), class, html.EscapeString(word))
			}
			column += utf8.RuneCountInString(s)
		}
		rest := line
		for {
			at := sgr.FindStringSubmatchIndex(rest)
			if at == nil {
				run(rest)
				break
			}
			run(rest[:at[0]])
			classes = sgrClasses(classes, rest[at[2]:at[3]])
			rest = rest[at[1]:]
		}
		fmt.Fprintln(out, "</text>")
	}
	fmt.Fprint(out, "</svg>\n")
}

// sgrClasses are the classes after the codes of an escape sequence.
func sgrClasses(before, codes string) string {
	classes := strings.Fields(before)
	for code := range strings.SplitSeq(codes, ";") {
		if code == "" || code == "0" {
			classes = nil
			continue
		}
		classes = append(classes, "s"+code)
	}
	return strings.Join(classes, " ")
}
