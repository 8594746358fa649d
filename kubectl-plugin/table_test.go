// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"
)

func TestShorten(t *testing.T) {
	for _, tt := range []struct {
		name  string
		width int
		want  string
	}{
		{"gpu-01", 6, "gpu-01"},
		{"chat-7d9c6b5f4-m4wzq", 12, "chat-…-m4wzq"},
		{"abcdefgh", 3, "a…h"},
		{"abcdefgh", 2, "abcdefgh"},
	} {
		assert.Equal(t, tt.want, shorten(tt.name, tt.width))
	}
}

func TestModelKeepsGenerationAndMemory(t *testing.T) {
	for width, want := range map[int]string{20: "A100-SXM4-80GB", 13: "A100…80GB", 9: "A100…80GB", 8: "A100", 4: "A100"} {
		assert.Equal(t, want, modelCell("NVIDIA-A100-SXM4-80GB").draw(width)[0].text)
	}
}

func TestFigures(t *testing.T) {
	for mib, want := range map[int64]string{0: "0Gi", 1: "0.1Gi", 512: "0.5Gi", 3716: "3.6Gi", 61440: "60Gi", 10188: "9.9Gi", 10230: "10Gi",
		1024 * 1024: "1Ti", 13 * 1024 * 1024: "13Ti"} {
		assert.Equal(t, want, gib(mib), mib)
	}
}

func TestIndices(t *testing.T) {
	for want, indices := range map[string][]int{"0": {0}, "0,1": {0, 1}, "0-3": {0, 1, 2, 3}, "0-2,5,7": {0, 1, 2, 5, 7}} {
		assert.Equal(t, want, joinIndices(indices))
	}
}

// A bar has exactly its length, and shows every part that is not nothing if it is long enough for all.
func TestBars(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		amounts := rapid.SliceOfN(rapid.Int64Range(0, 1<<24), 1, 5).Draw(t, "amounts")
		chars := rapid.IntRange(1, 60).Draw(t, "chars")
		glyphs := []string{"█", "▒", "×", "!", "░"}
		var parts []part
		shown, total := 0, int64(0)
		for i, a := range amounts {
			parts = append(parts, part{a, glyphs[i], plain})
			total += a
			if a > 0 {
				shown++
			}
		}
		bar := screenless(drawBar(parts, chars))
		if utf8.RuneCountInString(bar) != chars {
			t.Fatalf("%q has not %d characters", bar, chars)
		}
		for i, a := range amounts {
			n := strings.Count(bar, glyphs[i])
			if a == 0 && n > 0 {
				t.Fatalf("%q shows part %d, which is nothing", bar, i)
			}
			if a > 0 && chars >= shown && n == 0 {
				t.Fatalf("%q does not show part %d", bar, i)
			}
		}
	})
}

func screenless(spans []span) string {
	s := screen{}
	return s.render(spans)
}

// Rows of a table end up in order under titles whatever the width, and keep to it where all columns may shrink.
func TestLayoutKeepsToTheWidth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var out strings.Builder
		w := rapid.IntRange(40, 200).Draw(t, "width")
		table := table{columns: []column{
			{titles: []string{"NAME"}, min: 6, low: 10}, {titles: []string{"MEMORY"}}, {titles: []string{"PODS"}, min: 8, low: 12}}}
		for range rapid.IntRange(1, 5).Draw(t, "rows") {
			names := rapid.SliceOfN(rapid.StringMatching("[a-z-]{1,30}"), 0, 4).Draw(t, "pods")
			var list listCell
			for _, n := range names {
				list = append(list, span{n, plain})
			}
			table.rows = append(table.rows, []cell{
				text(rapid.StringMatching("[a-z-]{1,60}").Draw(t, "name")),
				barCell{label: "1/2/3Gi", kind: majorBar, parts: percentParts(rapid.IntRange(-5, 120).Draw(t, "percent"))},
				list,
			})
		}
		table.print(screen{Writer: &out, width: w}, false, false)
		for line := range strings.Lines(out.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > w {
				t.Fatalf("%d characters, not %d: %s", n, w, line)
			}
		}
	})
}
