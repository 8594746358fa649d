// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// goldenWidths compares what a command prints at each width that matters with golden files.
func goldenWidths(t *testing.T, name string, r client.Reader, code int, args ...string) {
	t.Helper()
	for _, columns := range []int{80, 100, 160} {
		name := name + "-" + strconv.Itoa(columns)
		t.Run(name, func(t *testing.T) {
			t.Setenv("COLUMNS", strconv.Itoa(columns))
			got := invoke(t, r, args...)
			require.Equal(t, code, got.code, got.err)
			for line := range strings.Lines(got.out) {
				line = strings.TrimSuffix(line, "\n")
				assert.LessOrEqual(t, utf8.RuneCountInString(line), columns, line)
				assert.Equal(t, strings.TrimRight(line, " "), line, "a line ends with spaces")
			}
			golden(t, name, got.out)
		})
	}
}
