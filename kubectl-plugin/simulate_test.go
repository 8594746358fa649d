// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/yaml"

	"github.com/gpupack/gpupack/kubectl-plugin/trace"
	"github.com/gpupack/gpupack/pack/sim"
)

const (
	nodesCSV = "../test/fixtures/openb/nodes.csv"
	tasksCSV = "../test/fixtures/openb/tasks.csv"
)

// simulate replays the slice of the trace.
func simulate(t *testing.T, args ...string) result {
	t.Helper()
	return invoke(t, nil, append([]string{"simulate", "--nodes", nodesCSV, "--pods", tasksCSV}, args...)...)
}

func TestSimulateUsage(t *testing.T) {
	replay := []string{"--nodes", nodesCSV, "--pods", tasksCSV}
	whatIf := []string{"--snapshot", "no-such-file"}
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"nothing":                {nil, "no cluster: give --nodes and --pods, or --snapshot"},
		"two clusters":           {[]string{"--nodes", "a", "--pods", "b", "--snapshot", "c"}, "--nodes and --snapshot both tell the cluster: give one of them"},
		"no tasks":               {[]string{"--nodes", "a"}, "no tasks: give --pods beside --nodes"},
		"an argument":            {append(replay, "x"), "expected no arguments, got 1 arguments"},
		"policy":                 {append(replay, "--policy", "fgd,tetris"), `--policy: there is no policy "tetris": use some of best-fit, `},
		"no policy":              {append(replay, "--policy", ""), `--policy: there is no policy "": use some of `},
		"policy twice":           {append(replay, "--policy", "fgd,fgd"), "--policy: fgd is named twice"},
		"load":                   {append(replay, "--load", "0"), "--load 0 is not above 0 and at most 100"},
		"load that is no number": {append(replay, "--load", "NaN"), "--load NaN is not above 0 and at most 100"},
		"distribution":           {append(replay, "--distribution", "x"), "--distribution x is not known: use trace or online"},
		"budget":                 {append(replay, "--defrag-budget", "1.5"), "--defrag-budget 1.5 is not in 0 to 1"},
		"negative budget":        {append(replay, "--defrag-budget", "-1"), "--defrag-budget -1 is not in 0 to 1"},
		"seeds":                  {append(replay, "--seeds", "x"), `--seeds: "x" is neither a seed, such as 42, nor a range, such as 42-51`},
		"format":                 {append(replay, "-o", "xml"), "-o xml is not an output format of such a replay: use one of table, wide, json, yaml, html"},
		"page of departures":     {append(replay, "--churn", "-o", "html"), "-o html is not an output format of such a replay: use one of table, wide, json, yaml\n"},
		"time scale alone":       {append(replay, "--time-scale", "2"), "--time-scale is for tasks that leave: give --churn"},
		"time scale":             {append(replay, "--churn", "--time-scale", "0"), "--time-scale 0 is not above 0 and at most 1000"},
		"reserving alone":        {append(replay, "--reserve-after", "1h"), "--reserve-after is for tasks that leave: give --churn"},
		"passes alone":           {append(replay, "--passes", "10"), "--passes is for tasks that leave: give --churn"},
		"passes":                 {append(replay, "--churn", "--passes", "0"), "--passes 0 is not above 0 and at most 1000"},
		"reserving before":       {append(replay, "--churn", "--reserve-after", "-1h"), "--reserve-after -1h0m0s is below 0"},
		"budget of departures":   {append(replay, "--churn", "--defrag-budget", "0.1"), "--defrag-budget is for tasks that never leave: leave out --churn"},
		"what-if flag":           {append(replay, "--drain", "a"), "--drain changes a snapshot, where no trace is replayed: leave out --pods"},
		"replay flag":            {append(whatIf, "--seeds", "42"), "--seeds is for the replay of a trace: give --pods"},
		"page of a what-if":      {append(whatIf, "-o", "html"), "-o html is for the replay of a trace: give --pods"},
		"format of a what-if":    {append(whatIf, "-o", "xml"), "-o xml is not an output format: use one of table, wide, json, yaml, html, custom-columns=..., jsonpath=..., go-template=..."},
		"policies of a what-if":  {append(whatIf, "--policy", "gpupack,fgd"), "--policy names 2 policies: on a snapshot give one"},
		"nodes to add":           {append(whatIf, "--add-nodes", "A100"), `--add-nodes: "A100" is not a number of nodes and a GPU model, such as 4xA100`},
		"no nodes to add":        {append(whatIf, "--add-nodes", "0xA100"), "--add-nodes: 0 nodes are not in 1 to 10000"},
		"many nodes to add":      {append(whatIf, "--add-nodes", "1xT4,99999xA100"), "--add-nodes: 99999 nodes are not in 1 to 10000"},
	} {
		t.Run(name, func(t *testing.T) {
			got := invoke(t, nil, append([]string{"simulate"}, tt.args...)...)
			assert.Equal(t, exitUsage, got.code)
			assert.Empty(t, got.out)
			assert.Contains(t, got.err, "error: "+tt.want)
			assert.True(t, strings.HasSuffix(got.err, "\nSee 'kubectl gpupack simulate --help'.\n"), got.err)
		})
	}
}

func TestParseSeeds(t *testing.T) {
	for text, want := range map[string][]uint64{
		"42": {42}, "42-44": {42, 43, 44}, "42,45": {42, 45}, "7, 1-2": {7, 1, 2}, "0": {0},
		"18446744073709551615-18446744073709551615": {1<<64 - 1},
	} {
		got, err := parseSeeds(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got)
	}
	for text, want := range map[string]string{
		"":                       `"" is neither a seed`,
		"-1":                     `"-1" is neither a seed`,
		"1-":                     `"1-" is neither a seed`,
		"1-2-3":                  `"1-2-3" is neither a seed`,
		"4.5":                    `"4.5" is neither a seed`,
		"51-42":                  "the range 51-42 ends before it begins",
		"42-44,43":               "seed 43 is there twice",
		"0-10000":                "more than 10000 seeds",
		"0-18446744073709551615": "more than 10000 seeds",
		"0-9998,20000-20001":     "more than 10000 seeds",
		"18446744073709551616":   `"18446744073709551616" is neither a seed`,
	} {
		_, err := parseSeeds(text)
		assert.ErrorContains(t, err, want, text)
	}
}

// The JSON has the fields that the documentation promises, no others, and the figures of the simulator.
func TestSimulateJSON(t *testing.T) {
	got := simulate(t, "--policy", "gpu-packing,best-fit", "--seeds", "42-44", "--load", "1.2", "-o", "json")
	require.Equal(t, exitOK, got.code, got.err)
	assert.Empty(t, got.err)
	type run struct {
		Seed                      *uint64
		A95, A100, Final          *float64
		Tasks, Unscheduled, Moved *int
		Seconds                   *float64
	}
	var answer struct {
		Policies []struct {
			Policy string
			Runs   []run
			Mean   struct{ A95, A100, Final *float64 }
		}
	}
	decoder := json.NewDecoder(strings.NewReader(got.out))
	decoder.DisallowUnknownFields()
	require.NoError(t, decoder.Decode(&answer))
	require.Len(t, answer.Policies, 2)
	in := trace.Input(must(trace.ReadNodes(nodesCSV)), must(trace.ReadTasks(tasksCSV)))
	for i, policy := range []string{"gpu-packing", "best-fit"} {
		p := answer.Policies[i]
		assert.Equal(t, policy, p.Policy)
		require.Len(t, p.Runs, 3)
		var sum float64
		for j := range p.Runs {
			want, err := sim.Run(t.Context(), in, sim.Options{Policy: policy, Seed: uint64(42 + j), Load: 1.2})
			require.NoError(t, err)
			r := p.Runs[j]
			assert.Equal(t, []any{want.Seed, want.A95, want.A100, want.Final, want.Tasks, want.Unscheduled, 0},
				[]any{*r.Seed, *r.A95, *r.A100, *r.Final, *r.Tasks, *r.Unscheduled, *r.Moved})
			assert.Positive(t, *r.Seconds)
			sum += want.Final
		}
		assert.InDelta(t, sum/3, *p.Mean.Final, 1e-9)
		assert.Positive(t, *p.Mean.A95)
		assert.Positive(t, *p.Mean.A100)
	}
	for _, key := range []string{`"policies"`, `"policy"`, `"runs"`, `"seed"`, `"a95"`, `"a100"`, `"final"`, `"tasks"`, `"unscheduled"`,
		`"moved"`, `"seconds"`, `"mean"`} {
		assert.Contains(t, got.out, key)
	}
	asYAML := simulate(t, "--policy", "gpu-packing,best-fit", "--seeds", "42-44", "--load", "1.2", "-o", "yaml")
	assert.JSONEq(t, withoutSeconds(got.out), withoutSeconds(string(must(yaml.YAMLToJSON([]byte(asYAML.out))))))
}

// withoutSeconds takes the only figure out that differs from run to run.
func withoutSeconds(out string) string {
	return regexp.MustCompile(`"seconds": ?[0-9.e-]+`).ReplaceAllString(out, `"seconds":0`)
}

func TestSimulateDoesNotDependOnParallelism(t *testing.T) {
	args := []string{"--policy", "random,best-fit", "--seeds", "42-49", "-o", "json"}
	want := withoutSeconds(simulate(t, args...).out)
	before := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(before)
	assert.Equal(t, want, withoutSeconds(simulate(t, args...).out))
	runtime.GOMAXPROCS(5)
	assert.Equal(t, want, withoutSeconds(simulate(t, args...).out))
}

func TestSimulateTable(t *testing.T) {
	t.Setenv("COLUMNS", "100")
	for name, args := range map[string][]string{
		"simulate":     {"--policy", "gpupack,fgd,best-fit", "--seeds", "42-43"},
		"simulate-one": {"--policy", "best-fit", "--seeds", "7", "--distribution", "online"},
	} {
		got := simulate(t, args...)
		require.Equal(t, exitOK, got.code, got.err)
		assert.Empty(t, got.err)
		golden(t, name, withoutSecondsColumn(got.out))
	}
	got := simulate(t, "--policy", "best-fit", "--no-headers")
	assert.Equal(t, 1, strings.Count(got.out, "\n"), got.out)
}

// withoutSecondsColumn is a table without the figures that differ from run to run.
func withoutSecondsColumn(table string) string {
	return regexp.MustCompile(`(?m) {2,}[0-9]+\.[0-9]{2}$`).ReplaceAllString(table, "  -")
}

func TestSimulateBadInput(t *testing.T) {
	const nodes, tasks = "sn,cpu_milli,memory_mib,gpu,model\n", "name,cpu_milli,memory_mib,num_gpu,gpu_milli\n"
	for name, tt := range map[string]struct{ nodes, tasks, want string }{
		"row of nodes": {nodes + "a,1,1,x,T4\n", tasks + "a,1,1,1,1000\n", `NODES:2: gpu (column 4): "x" is not a whole number in 0 to 32`},
		"row of tasks": {nodes + "a,1,1,1,T4\n", tasks + "a,1,1,1,1000\nb,1,1\n", "TASKS:3: num_gpu (column 4): the row has 3 fields, the header 5"},
		"no GPU":       {nodes + "a,1,1,0,\n", tasks + "a,1,1,1,1000\n", "NODES, TASKS: the cluster has no GPUs: give at least one node with a GPU"},
		"no GPU task":  {nodes + "a,1,1,1,T4\n", tasks + "a,1,1,0,0\n", "NODES, TASKS: no task asks for a GPU: give at least one that does"},
	} {
		t.Run(name, func(t *testing.T) {
			nodes, tasks := written(t, "nodes.csv", tt.nodes), written(t, "tasks.csv", tt.tasks)
			got := invoke(t, nil, "simulate", "--nodes", nodes, "--pods", tasks)
			want := strings.NewReplacer("NODES", nodes, "TASKS", tasks).Replace(tt.want)
			assert.Equal(t, result{exitError, "", "error: " + want + "\n"}, got)
		})
	}
	got := invoke(t, nil, "simulate", "--nodes", "no-such-file", "--pods", tasksCSV)
	assert.Equal(t, result{exitError, "", "error: open no-such-file: no such file or directory\n"}, got)
}

func TestSimulateOut(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out.json")
	got := simulate(t, "--policy", "best-fit", "--seeds", "42", "-o", "json", "--out", path)
	assert.Equal(t, result{exitOK, "", ""}, got)
	first, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.True(t, json.Valid(first))

	// What fails leaves the file as it was, and nothing beside it.
	got = invoke(t, nil, "simulate", "--nodes", nodesCSV, "--pods", written(t, "tasks.csv", "name,cpu_milli,memory_mib,num_gpu,gpu_milli\na,1,1,0,0\n"),
		"--out", path)
	assert.Equal(t, exitError, got.code)
	second, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, first, second)
	require.Len(t, must(os.ReadDir(dir)), 1)

	// A link stays one, and permissions stay.
	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink(path, link))
	require.NoError(t, os.Chmod(path, 0o600))
	got = simulate(t, "--policy", "random", "--seeds", "42", "-o", "json", "--out", link)
	require.Equal(t, exitOK, got.code, got.err)
	info, err := os.Lstat(link)
	require.NoError(t, err)
	assert.NotZero(t, info.Mode()&os.ModeSymlink)
	assert.Equal(t, os.FileMode(0o600), must(os.Stat(path)).Mode().Perm())
	assert.Contains(t, string(must(os.ReadFile(path))), `"random"`)

	assert.Equal(t, exitOK, simulate(t, "--policy", "random", "--seeds", "42", "--out", os.DevNull).code)
	assert.NotZero(t, must(os.Stat(os.DevNull)).Mode()&os.ModeDevice)

	absent := filepath.Join(dir, "absent", "out")
	got = simulate(t, "--out", absent)
	assert.Equal(t, result{exitError, "", "error: open " + absent + ": no such file or directory\n"}, got)
}

func TestSimulatePage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page.html")
	got := simulate(t, "--policy", "gpupack,best-fit", "--seeds", "42-43", "-o", "html", "--out", path)
	require.Equal(t, result{exitOK, "", ""}, got)
	page := string(must(os.ReadFile(path)))
	assert.True(t, strings.HasPrefix(strings.ToLower(page), "<!doctype html>"))
	assert.Contains(t, page, "best-fit")
	assert.Contains(t, page, "kubectl gpupack simulate --nodes "+nodesCSV+" --pods "+tasksCSV+" --policy gpupack,best-fit --seeds 42-43")
}

func TestShellWord(t *testing.T) {
	for word, want := range map[string]string{"a/b-1.csv": "a/b-1.csv", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$x": "'$x'"} {
		assert.Equal(t, want, shellWord(word))
	}
}

func TestSimulateIsInterrupted(t *testing.T) {
	streams, _, out, errOut := genericiooptions.NewTestIOStreams()
	e := &env{IOStreams: streams, config: genericclioptions.NewConfigFlags(true), now: time.Now}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code := run(ctx, e.command(), streams, []string{"simulate", "--nodes", nodesCSV, "--pods", tasksCSV})
	assert.Equal(t, exitError, code)
	assert.Empty(t, out.String())
	assert.Equal(t, "error: interrupted\n", errOut.String())
}

func TestProgress(t *testing.T) {
	var b bytes.Buffer
	p := newProgress(&b, 4, 0)
	p.of(0)(1, 1)
	p.of(1)(1, 2)
	p.of(2)(0, 0)
	assert.Equal(t, "███████████░░░░░░░░░░░░░░░░░░░  37 %  1 of 4 runs, 10 s left", p.line(6*time.Second))
	p.of(3)(2, 2)
	p.stop()
	assert.Empty(t, b.String(), "nobody watches")
	idle := newProgress(&b, 1, 0)
	assert.Contains(t, idle.line(time.Second), "  0 %  ? left")
	idle.stop()
}

// The hardware of a snapshot serves as the cluster of a trace.
func TestSimulateATraceOnASnapshot(t *testing.T) {
	got := invoke(t, nil, "simulate", "--snapshot", waitingFleet(t), "--pods", tasksCSV, "--policy", "best-fit", "--seeds", "42")
	require.Equal(t, exitOK, got.code, got.err)
	assert.Contains(t, got.out, "7 nodes, 40 GPUs; 300 tasks in the trace")
	s, err := loadSnapshot(waitingFleet(t))
	require.NoError(t, err)
	nodes := s.hardware()
	at := slices.IndexFunc(nodes, func(n trace.Node) bool { return n.Name == "gpu-h100-01" })
	assert.Equal(t, trace.Node{Name: "gpu-h100-01", CPUMilli: 64_000, MemoryMiB: 512 << 10, GPUs: 8, Model: "H100-SXM5-80GB"}, nodes[at])
	at = slices.IndexFunc(nodes, func(n trace.Node) bool { return n.Name == "gpu-new-01" })
	assert.Equal(t, 4, nodes[at].GPUs, "what the node advertises, where there is no telemetry")
}

func TestSimulateChurn(t *testing.T) {
	t.Setenv("COLUMNS", "110")
	nodes := written(t, "nodes.csv", "sn,cpu_milli,memory_mib,gpu,model\na,64000,262144,8,T4\nb,64000,262144,4,T4\n")
	rows := "name,cpu_milli,memory_mib,num_gpu,gpu_milli,creation_time,deletion_time\n"
	for i := range 40 {
		rows += fmt.Sprintf("t%d,1000,1024,%d,%d,%d,%d\n", i, 1+i%2*3, 500+i%2*500, i*60, i*60+1800)
	}
	tasks := written(t, "tasks.csv", rows)
	args := []string{"simulate", "--nodes", nodes, "--pods", tasks, "--churn", "--policy", "best-fit,random", "--seeds", "1-2"}
	got := invoke(t, nil, args...)
	require.Equal(t, exitOK, got.code, got.err)
	golden(t, "simulate-churn", withoutSecondsColumn(got.out))

	got = invoke(t, nil, append(args, "-o", "json", "--load", "0.9", "--time-scale", "2", "--reserve-after", "30m", "--passes", "20")...)
	require.Equal(t, exitOK, got.code, got.err)
	decoder := json.NewDecoder(strings.NewReader(got.out))
	decoder.DisallowUnknownFields()
	var answer Churns
	require.NoError(t, decoder.Decode(&answer))
	in := trace.Input(must(trace.ReadNodes(nodes)), must(trace.ReadTasks(tasks)))
	want, err := sim.Churn(t.Context(), in, sim.ChurnOptions{Policy: "random", Seed: 2, Load: 0.9, TimeScale: 2, ReserveAfter: 1800, Passes: 20})
	require.NoError(t, err)
	run := answer.Policies[1].Runs[1]
	assert.Equal(t, []any{want.Seed, want.Hours, want.Offered, want.Allocated, want.Fragmented, want.Fragmentation, want.All.P99, want.Large.Max},
		[]any{run.Seed, run.Hours, run.Offered, run.Allocated, run.Fragmented, run.Fragmentation, run.All.P99, run.Large.Max})
	assert.InDelta(t, (answer.Policies[1].Runs[0].All.Tasks+run.All.Tasks)/2, answer.Policies[1].Mean.All.Tasks, 1e-9)

	got = invoke(t, nil, "simulate", "--nodes", nodes, "--churn", "--pods",
		written(t, "tasks.csv", "name,cpu_milli,memory_mib,num_gpu,gpu_milli\na,1,1,1,1000\n"))
	assert.Equal(t, exitError, got.code)
	assert.Contains(t, got.err, "does not say when it comes and how long it runs")
}
