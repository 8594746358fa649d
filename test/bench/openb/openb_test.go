// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package openb

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	for _, folder := range []string{"", dir, filepath.Join(dir, "none")} {
		_, err := Read(folder, "default")
		assert.ErrorContains(t, err, "set TRACES to a folder with the CSV files of the openb traces")
	}
	for from, to := range map[string]string{"nodes.csv": nodesFile, "tasks.csv": "openb_pod_list_default.csv"} {
		data, err := os.ReadFile(filepath.Join("../../fixtures/openb", from))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, to), data, 0o600))
	}
	in, err := Read(dir, "default")
	require.NoError(t, err)
	assert.Len(t, in.Nodes, 64)
	assert.Len(t, in.Tasks, 300)
	_, err = Read(dir, "cpu050")
	assert.ErrorIs(t, err, os.ErrNotExist)
}
