// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

func TestTables(t *testing.T) {
	for name, args := range map[string][]string{
		"top-nodes":  {"top"},
		"top-gpus":   {"top", "gpus"},
		"top-pods":   {"top", "pods", "-A"},
		"placements": {"placements", "-A"},
	} {
		for _, columns := range []int{80, 100, 160} {
			name := name + "-" + strconv.Itoa(columns)
			t.Run(name, func(t *testing.T) {
				t.Setenv("COLUMNS", strconv.Itoa(columns))
				got := invoke(t, cluster(t, fleet()), args...)
				require.Equal(t, exitOK, got.code, got.err)
				assert.Empty(t, got.err)
				assert.NotContains(t, got.out, "\x1b", "colour without a terminal")
				for line := range strings.Lines(got.out) {
					line = strings.TrimSuffix(line, "\n")
					assert.LessOrEqual(t, utf8.RuneCountInString(line), columns, line)
					assert.Equal(t, strings.TrimRight(line, " "), line, "a line ends with spaces")
				}
				golden(t, name, got.out)
			})
		}
		t.Run(name+"-wide", func(t *testing.T) {
			t.Setenv("COLUMNS", "100")
			got := invoke(t, cluster(t, fleet()), append(args, "-o", "wide")...)
			require.Equal(t, exitOK, got.code, got.err)
			assert.NotContains(t, got.out, "…", "wide output shortens nothing")
			golden(t, name+"-wide", got.out)
		})
	}
}

func TestNamesAreNotShortenedInAPipe(t *testing.T) {
	t.Setenv("COLUMNS", "")
	got := invoke(t, cluster(t, fleet()), "top", "pods", "-A", "--no-headers")
	require.Equal(t, exitOK, got.code, got.err)
	assert.Contains(t, got.out, "embedder-5f4c9d8b7-qq2vt")
	assert.Len(t, strings.Split(strings.TrimSpace(got.out), "\n"), 8, "rows alone")
}

func TestTopPodsKeepsToTheNamespace(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		want []string
	}{
		"current":  {nil, []string{"pod/legacy", "pod/notebook-ada", "pod/vision"}},
		"given":    {[]string{"-n", "research"}, []string{"pod/llama-worker-0", "pod/llama-worker-1"}},
		"selector": {[]string{"-A", "-l", v1alpha1.LabelPodGroup + "=llama"}, []string{"pod/llama-worker-0", "pod/llama-worker-1"}},
		"name":     {[]string{"vision"}, []string{"pod/vision"}},
		"sorted": {[]string{"-A", "--sort-by=over"}, []string{"pod/chat-7d9c6b5f4-m4wzq", "pod/legacy", "pod/notebook-ada", "pod/vision",
			"pod/llama-worker-0", "pod/llama-worker-1", "pod/chat-7d9c6b5f4-x8k2p", "pod/embedder-5f4c9d8b7-qq2vt"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := invoke(t, cluster(t, fleet()), append([]string{"top", "pods", "-o", "name"}, tt.args...)...)
			require.Equal(t, exitOK, got.code, got.err)
			assert.Equal(t, tt.want, strings.Fields(got.out))
		})
	}
}

func TestTopNodesSelects(t *testing.T) {
	got := invoke(t, cluster(t, fleet()), "top", "-o", "name", "-l", corev1.LabelHostname+" in (gpu-t4-01, gpu-h100-01)", "-A")
	assert.Equal(t, result{exitOK, "node/gpu-h100-01\nnode/gpu-t4-01\n", ""}, got)
	got = invoke(t, cluster(t, fleet()), "top", "nodes", "-o", "name", "--sort-by=used")
	assert.Equal(t, []string{"node/gpu-a100-01", "node/gpu-a100-02", "node/gpu-h100-01", "node/gpu-t4-01"}, strings.Fields(got.out)[:4])
	got = invoke(t, cluster(t, fleet()), "top", "nodes", "gone")
	assert.Equal(t, result{exitError, "", "error: node with GPUs \"gone\" not found\n"}, got)
}

// The JSON of top is an interface: these are the paths that scripts use.
func TestTopJSON(t *testing.T) {
	got := invoke(t, cluster(t, fleet()), "top", "-o", "json")
	require.Equal(t, exitOK, got.code, got.err)
	var answer map[string]any
	require.NoError(t, json.Unmarshal([]byte(got.out), &answer))
	assert.Equal(t, "cli.gpupack.dev/v1alpha1", answer["apiVersion"])
	assert.Equal(t, "TopNodes", answer["kind"])

	h100 := find(t, answer["items"], "node", "gpu-h100-01")
	shared := find(t, h100["gpus"], "index", 0.)
	pods := shared["pods"]
	delete(shared, "pods")
	assert.Equal(t, map[string]any{
		"node": "gpu-h100-01", "index": 0., "uuid": "GPU-gpu-h100-01-0", "model": "H100-SXM5-80GB", "healthy": true,
		"memoryTotalMiB": 81559., "memoryReservedMiB": 637., "memoryRequestedMiB": 40960., "memoryUsedMiB": 38048.,
		"memoryForeignMiB": 0., "memoryFreeMiB": 36246., "utilization": 55., "powerMilliwatts": 226400., "temperatureCelsius": 49.,
	}, shared)
	assert.Equal(t, map[string]any{
		"namespace": "serving", "name": "chat-7d9c6b5f4-m4wzq", "uid": "serving/chat-7d9c6b5f4-m4wzq",
		"computeRequestedMilli": 0., "memoryRequestedMiB": 16384., "memoryUsedMiB": 20100., "utilization": 30.,
	}, find(t, pods, "name", "chat-7d9c6b5f4-m4wzq"))

	sick := find(t, h100["gpus"], "index", 5.)
	assert.Equal(t, []any{false, "Xid", 0.}, []any{sick["healthy"], sick["unhealthyReason"], sick["memoryFreeMiB"]})
	foreign := find(t, h100["gpus"], "index", 7.)
	assert.Equal(t, []any{61440., 61440., 19482.}, []any{foreign["memoryForeignMiB"], foreign["memoryUsedMiB"], foreign["memoryFreeMiB"]})
	assert.Equal(t, []any{}, foreign["pods"], "an empty list, not null")

	totals := answer["totals"].(map[string]any)
	assert.Equal(t, []any{7., 48., 47., 1., 20., 4., 24.}, []any{totals["nodes"], totals["gpus"], totals["gpusHealthy"], totals["gpusSick"],
		totals["gpusHeld"], totals["gpusFreeWhole"], totals["gpusStranded"]})

	stale := find(t, answer["items"], "node", "gpu-t4-01")
	assert.Equal(t, []any{"stale", []any{"stale 5m"}}, []any{stale["telemetry"], stale["notes"]})
	none := find(t, answer["items"], "node", "gpu-new-01")
	assert.Equal(t, []any{"none", 4., 1., []any{}}, []any{none["telemetry"], none["gpuCount"], none["gpusHeld"], none["gpus"]})
}

func TestYAMLAndJSONPath(t *testing.T) {
	got := invoke(t, cluster(t, fleet()), "top", "gpus", "-o", "yaml")
	require.Equal(t, exitOK, got.code, got.err)
	var answer TopGPUs
	require.NoError(t, yaml.UnmarshalStrict([]byte(got.out), &answer))
	assert.Equal(t, "TopGPUs", answer.Kind)
	assert.Len(t, answer.Items, 44)
	got = invoke(t, cluster(t, fleet()), "top", "-o", "jsonpath={.items[*].gpus[?(@.healthy==false)].uuid}")
	assert.Equal(t, result{exitOK, "GPU-gpu-h100-01-5", ""}, got)
}

func find(t *testing.T, list any, key string, value any) map[string]any {
	t.Helper()
	for _, item := range list.([]any) {
		if m := item.(map[string]any); m[key] == value {
			return m
		}
	}
	require.Fail(t, "not found", "%s=%v", key, value)
	return nil
}

func TestPlacementsJSONHasTheWholeDecision(t *testing.T) {
	objects := append(fleet(), pod("serving", "odd", asks(v1alpha1.ResourceGPU, "1"), on("gpu-h100-01", "{", 2)))
	got := invoke(t, cluster(t, objects), "placements", "-n", "serving", "-o", "json")
	require.Equal(t, exitOK, got.code, got.err)
	var answer Placements
	require.NoError(t, json.Unmarshal([]byte(got.out), &answer))
	require.Len(t, answer.Items, 4)
	p := answer.Items[0]
	assert.Equal(t, []PlacedGPU{{UUID: "GPU-gpu-h100-01-0", Index: 0}}, p.GPUs)
	assert.Equal(t, &v1alpha1.Decision{Policy: "gpupack", Score: 87, RunnerUp: "gpu-a100-02", RunnerUpScore: 64, Feasible: 3,
		Rejected: map[string]int{"Occupied": 2, "Unhealthy": 1}}, p.Decision)
	assert.Nil(t, answer.Items[3].Decision)
	assert.Equal(t, "annotation gpupack.dev/decision of pod serving/odd is not a decision: unexpected end of JSON input",
		answer.Items[3].DecisionError)
}

func TestNothingThere(t *testing.T) {
	bare := []client.Object{node("cpu-01", 0)}
	gpus := []client.Object{node("gpu-01", 4), pod("default", "train", asks(v1alpha1.ResourceGPU, "2"), func(p *corev1.Pod) {
		p.Spec.NodeName, p.Status.Phase = "gpu-01", corev1.PodRunning
	})}
	for name, tt := range map[string]struct {
		objects  []client.Object
		missing  []string
		args     []string
		out, err string
	}{
		"no GPU, no CRD": {bare, []string{"GPUNode"}, []string{"top"}, "",
			"This cluster has no GPUNode resource: install gpupack as https://github.com/gpupack/gpupack#install says.\n"},
		"no GPU, no agent": {bare, nil, []string{"top"}, "",
			"No gpupack-agent has reported GPUs yet: check that the agent runs on the GPU nodes, or install gpupack as https://github.com/gpupack/gpupack#install says.\n"},
		"GPUs, no CRD": {gpus, []string{"GPUNode", "PodGroup"}, []string{"top", "--no-headers"},
			"gpu-01  -  2/4  -  -  1  no telemetry\n",
			"This cluster has no GPUNode resource: install gpupack as https://github.com/gpupack/gpupack#install says; what is shown are the requests that the API knows.\n"},
		"pods, no CRD": {gpus, []string{"GPUNode"}, []string{"top", "pods", "--no-headers"},
			"train  gpu-01  2 GPUs  -  -  -  26m  no telemetry\n",
			"This cluster has no GPUNode resource: install gpupack as https://github.com/gpupack/gpupack#install says; what is shown are the requests that the API knows.\n"},
		"no pods":       {fleet(), nil, []string{"top", "pods", "-n", "empty"}, "", "No pods that hold GPUs found in namespace empty.\n"},
		"no placements": {gpus, nil, []string{"placements", "-A"}, "", "No pods placed by gpupack found: a pod is with schedulerName: gpupack.\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("COLUMNS", "100")
			got := invoke(t, cluster(t, tt.objects, tt.missing...), tt.args...)
			got.out = strings.Join(strings.Fields(got.out), " ")
			assert.Equal(t, result{exitOK, strings.Join(strings.Fields(tt.out), " "), tt.err}, got)
		})
	}
	got := invoke(t, cluster(t, bare, "GPUNode"), "top", "-o", "json")
	require.Equal(t, exitOK, got.code, got.err)
	assert.Contains(t, got.out, `"items": []`, "JSON is JSON also where there is nothing")
}

func TestInvalidTelemetryIsSaid(t *testing.T) {
	objects := []client.Object{node("gpu-01", 2), gpuNode("gpu-01", "T4", 2, 15360, func(gn *v1alpha1.GPUNode) {
		gn.Status.GPUs[0].MemoryUsedMiB = 20000
	})}
	got := invoke(t, cluster(t, objects), "top", "--no-headers")
	require.Equal(t, exitOK, got.code, got.err)
	assert.Contains(t, got.out, "invalid telemetry")
	got = invoke(t, cluster(t, objects), "top", "gpus")
	assert.Equal(t, exitOK, got.code, got.err)
}

func TestGoneAndUnknownPods(t *testing.T) {
	gone := pod("default", "gone", asks(v1alpha1.ResourceGPU, "1"))
	objects := []client.Object{node("gpu-01", 1), gpuNode("gpu-01", "T4", 1, 15360, func(gn *v1alpha1.GPUNode) { uses(gn, 0, gone, 4096, 3) })}
	t.Setenv("COLUMNS", "100")
	got := invoke(t, cluster(t, objects), "top", "gpus")
	require.Equal(t, exitOK, got.code, got.err)
	assert.Contains(t, got.out, "gone?\n")
	assert.Contains(t, got.out, "pod? has ended, but its processes still use memory")
}
