// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func sample() *Report {
	r := &Report{Intro: "Two traces.", Goals: []Goal{{"at most 1 s", "0.5 s", true}, {"at least 98 %", "97.1 %", false}}}
	t := Table{Title: "Final", Header: []string{"policy", "mean"}, LeftColumns: 1}
	t.Add("gpupack", "96.1")
	t.Add("fgd", "101.25")
	r.Tables = append(r.Tables, t)
	return r
}

func TestText(t *testing.T) {
	var b strings.Builder
	require.NoError(t, sample().Write(&b, "table"))
	assert.Equal(t, `Two traces.

Final
  policy     mean
  gpupack    96.1
  fgd      101.25

Goals
           Goal           Measured
  reached  at most 1 s    0.5 s
  missed   at least 98 %  97.1 %
`, b.String())
	assert.EqualError(t, sample().Write(&b, "yaml"), `unknown output format "yaml": use one of table, markdown`)
}

func TestErr(t *testing.T) {
	r := sample()
	assert.EqualError(t, r.Err(), "1 of 2 goals missed")
	r.Goals[1].Reached = true
	assert.NoError(t, r.Err())
	r.Goals = nil
	assert.EqualError(t, r.Err(), "no goal was measured")
}

func TestSplice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	require.NoError(t, os.WriteFile(path, []byte("# Head\n\n"+begin+"\nold\n"+end+"\n\nTail.\n"), 0o600))
	for range 2 {
		require.NoError(t, sample().Splice(path))
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, "# Head\n\n"+begin+`

Two traces.

### Final

| policy | mean |
| --- | ---: |
| gpupack | 96.1 |
| fgd | 101.25 |

### Goals

|  | Goal | Measured |
| --- | --- | --- |
| reached | at most 1 s | 0.5 s |
| missed | at least 98 % | 97.1 % |

`+end+"\n\nTail.\n", string(got))
	}
	require.NoError(t, os.WriteFile(path, []byte("# Head\n"), 0o600))
	assert.ErrorContains(t, sample().Splice(path), "has no lines")
}
