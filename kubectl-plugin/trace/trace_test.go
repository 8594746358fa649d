// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/sim"
)

func TestSlice(t *testing.T) {
	nodes, err := ReadNodes("../../test/fixtures/openb/nodes.csv")
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

	tasks, err := ReadTasks("../../test/fixtures/openb/tasks.csv")
	require.NoError(t, err)
	require.Len(t, tasks, 300)
	require.Equal(t, Task{Name: "openb-pod-0051", CPUMilli: 4000, MemoryMiB: 15258, GPUs: 1, GPUMilli: 320, CreationTime: 9993395, DeletionTime: 9997068}, tasks[1])
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

func TestTimes(t *testing.T) {
	path := write(t, "name,cpu_milli,memory_mib,num_gpu,gpu_milli,creation_time,deletion_time\na,0,0,0,0,7,9\nb,0,0,0,0,7,7\nc,0,0,0,0,7,\nd,0,0,0,0,,\n")
	tasks, err := ReadTasks(path)
	require.NoError(t, err)
	require.Equal(t, []Task{{Name: "a", CreationTime: 7, DeletionTime: 9}, {Name: "b", CreationTime: 7, DeletionTime: 7}, {Name: "c"}, {Name: "d"}}, tasks)
	in := Input(nil, tasks)
	require.Equal(t, []sim.Task{{Name: "a", Arrival: 7, Duration: 2}, {Name: "b", Arrival: 7, Duration: 1}, {Name: "c"}, {Name: "d"}}, in.Tasks)

	const header = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,creation_time,deletion_time\n"
	for row, want := range map[string]string{
		"a,0,0,0,0,7,6\n":   ":2: deletion_time (column 7): 6 is before the creation_time 7",
		"a,0,0,0,0,7.5,9\n": `:2: creation_time (column 6): "7.5" is not a whole number in 0 to 1099511627776`,
	} {
		path := write(t, header+row)
		_, err := ReadTasks(path)
		require.EqualError(t, err, path+want)
	}
}

func TestBadRows(t *testing.T) {
	const header = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n"
	for name, tc := range map[string]struct{ content, want string }{
		"empty file":       {"", ":1: the file is empty: a row of column names is expected"},
		"no column":        {"name,cpu_milli,memory_mib,num_gpu\na,1,1,0\n", ":1: gpu_milli: the file has no such column; it needs name, cpu_milli, memory_mib, num_gpu, gpu_milli"},
		"no rows either":   {"name\n", ":1: cpu_milli: the file has no such column"},
		"column twice":     {"name,name\n", ":1: name (column 2): the column is there twice"},
		"too few fields":   {header + "a,1,1\n", ":2: num_gpu (column 4): the row has 3 fields, the header 6"},
		"too many fields":  {header + "a,1,1,0,0,,\n", ":2: column 7: the row has 7 fields, the header 6"},
		"no number":        {header + "a,1,1,0,0,\nb,1,x,1,1000,\n", `:3: memory_mib (column 3): "x" is not a whole number in 0 to 1099511627776`},
		"negative":         {header + "a,-1,1,0,0,\n", `:2: cpu_milli (column 2): "-1" is not a whole number in 0 to 1099511627776`},
		"overflow":         {header + "a,1,99999999999999999999,0,0,\n", `:2: memory_mib (column 3): "99999999999999999999" is not`},
		"the first of two": {header + "a,x,y,0,0,\n", `:2: cpu_milli (column 2): "x" is not`},
		"above one GPU":    {header + "a,1,1,1,1001,\n", `:2: gpu_milli (column 5): "1001" is not a whole number in 0 to 1000`},
		"nothing of a GPU": {header + "a,1,1,1,0,\n", ":2: gpu_milli (column 5): is 0, but the task asks for a GPU"},
		"name twice":       {header + "a,1,1,0,0,\n\na,1,1,0,0,\n", `:4: name (column 1): "a" is also on line 2`},
		"no name":          {header + ",1,1,0,0,\n", ":2: name (column 1): is empty"},
		"empty model":      {header + "a,1,1,1,1000,T4|\n", `:2: gpu_spec (column 6): "T4|" has an empty model`},
		"a quote":          {header + "a,1,\"1,0,0,\n", `:2: memory_mib (column 3): extraneous or missing " in quoted-field`},
		"a bare quote":     {header + "a,1,1,0\"0,0,\n", `:2: num_gpu (column 4): bare " in non-quoted-field`},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, tc.content)
			tasks, err := ReadTasks(path)
			require.ErrorContains(t, err, path+tc.want)
			require.Nil(t, tasks)
		})
	}
	for content, want := range map[string]string{
		"a,1,1,1,\n":    ":2: model (column 5): is empty, but the node has GPUs",
		"a,1,1,33,T4\n": `:2: gpu (column 4): "33" is not a whole number in 0 to 32`,
	} {
		path := write(t, "sn,cpu_milli,memory_mib,gpu,model\n"+content)
		_, err := ReadNodes(path)
		require.EqualError(t, err, path+want)
	}
	_, err := ReadNodes("no-such-file.csv")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestInput(t *testing.T) {
	in := Input(
		[]Node{{Name: "n", CPUMilli: 8000, MemoryMiB: 1024, GPUs: 2, Model: "T4"}},
		[]Task{
			{Name: "share", CPUMilli: 1, MemoryMiB: 2, GPUs: 1, GPUMilli: 250, Models: []string{"T4"}},
			{Name: "whole", GPUs: 1, GPUMilli: 1000},
			{Name: "none", CPUMilli: 4},
		})
	require.Equal(t, sim.Input{
		Nodes: []sim.Node{{Name: "n", CPUMilli: 8000, MemoryMiB: 1024, GPUs: 2, Model: "T4"}},
		Tasks: []sim.Task{
			{Name: "share", Request: pack.Request{CPUMilli: 1, MemoryMiB: 2, Milli: 250, Models: []string{"T4"}}},
			{Name: "whole", Request: pack.Request{GPUs: 1}},
			{Name: "none", Request: pack.Request{CPUMilli: 4}},
		},
	}, in)
}

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "in.csv")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}
