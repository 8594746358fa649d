// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseStat(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 250 50 13 14 20"
	for _, name := range []string{"gpupack", "a b", "(x) y)"} {
		got, err := parseStat([]byte("42 (" + name + ")" + rest))
		require.NoError(t, err, name)
		assert.InDelta(t, 3.0, got, 1e-9, name)
	}
	for _, bad := range []string{"", "42 (x) S 1", "42 (x) S 1 2 3 4 5 6 7 8 9 10 a b"} {
		_, err := parseStat([]byte(bad))
		assert.Error(t, err, bad)
	}
}
