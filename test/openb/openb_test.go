// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package openb

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSlice(t *testing.T) {
	nodes, err := ReadNodes("../fixtures/openb/nodes.csv")
	require.NoError(t, err)
	require.Len(t, nodes, 64)
	require.Equal(t, Node{Name: "openb-node-0000", CPUMilli: 64000, MemoryMiB: 262144, GPUs: 2, Model: "P100"}, nodes[0])
	gpus := 0
	models := map[string]bool{}
	for _, n := range nodes {
		gpus += n.GPUs
		models[n.Model] = true
	}
	require.Equal(t, 291, gpus)
	require.Len(t, models, 7)

	tasks, err := ReadTasks("../fixtures/openb/tasks.csv")
	require.NoError(t, err)
	require.Len(t, tasks, 300)
	require.Equal(t, Task{Name: "openb-pod-0051", CPUMilli: 4000, MemoryMiB: 15258, GPUs: 1, GPUMilli: 320}, tasks[1])
	require.True(t, tasks[1].IsShare())
	var milli int64
	for _, task := range tasks {
		milli += task.Milli()
	}
	require.EqualValues(t, 222_090, milli)
}

func TestColumnsByName(t *testing.T) {
	path := write(t, "gpu_spec,other,gpu_milli,num_gpu,memory_mib,cpu_milli,name\nV|T4|V,x,500,2,3,4,a\n,,0,0,1,2,b\n")
	tasks, err := ReadTasks(path)
	require.NoError(t, err)
	require.Equal(t, []Task{
		{Name: "a", CPUMilli: 4, MemoryMiB: 3, GPUs: 2, GPUMilli: 1000, Models: []string{"T4", "V"}},
		{Name: "b", CPUMilli: 2, MemoryMiB: 1},
	}, tasks)
}

func TestBadRows(t *testing.T) {
	const header = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n"
	for name, tc := range map[string]struct{ content, want string }{
		"empty file":       {"", ":1: the file is empty: a row of column names is expected"},
		"no column":        {"name,cpu_milli,memory_mib,num_gpu\na,1,1,0\n", ":2: gpu_milli: the file has no such column"},
		"column twice":     {"name,name\n", ":1: name: the column is there twice"},
		"too few fields":   {header + "a,1,1\n", ":2: wrong number of fields"},
		"no number":        {header + "a,1,1,0,0,\nb,1,x,1,1000,\n", `:3: memory_mib: "x" is not a whole number in 0 to 1099511627776`},
		"negative":         {header + "a,-1,1,0,0,\n", `:2: cpu_milli: "-1" is not a whole number in 0 to 1099511627776`},
		"overflow":         {header + "a,1,99999999999999999999,0,0,\n", `:2: memory_mib: "99999999999999999999" is not`},
		"above one GPU":    {header + "a,1,1,1,1001,\n", `:2: gpu_milli: "1001" is not a whole number in 0 to 1000`},
		"nothing of a GPU": {header + "a,1,1,1,0,\n", ":2: gpu_milli: is 0, but the task asks for a GPU"},
		"name twice":       {header + "a,1,1,0,0,\n\na,1,1,0,0,\n", `:4: name: "a" is also on line 2`},
		"no name":          {header + ",1,1,0,0,\n", ":2: name: is empty"},
		"empty model":      {header + "a,1,1,1,1000,T4|\n", `:2: gpu_spec: "T4|" has an empty model`},
		"a quote":          {header + "a,1,\"1,0,0,\n", ":2: "},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, tc.content)
			tasks, err := ReadTasks(path)
			require.ErrorContains(t, err, path+tc.want)
			require.Nil(t, tasks)
		})
	}
	path := write(t, "sn,cpu_milli,memory_mib,gpu,model\na,1,1,1,\n")
	_, err := ReadNodes(path)
	require.EqualError(t, err, path+":2: model: is empty, but the node has GPUs")

	_, err = ReadNodes("no-such-file.csv")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "in.csv")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}
