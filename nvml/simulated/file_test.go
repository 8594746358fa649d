// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package simulated

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

const exampleFile = "../../test/fixtures/scenarios/example.yaml"

func TestLoadExample(t *testing.T) {
	s, err := Load(exampleFile)
	require.NoError(t, err)
	require.Len(t, s.Nodes, 3)
	require.Equal(t, Node{
		Name:      "rack-a-1",
		Labels:    map[string]string{"topology.kubernetes.io/zone": "zone-1", "gpupack.example/rack": "a"},
		CPUMilli:  128000,
		MemoryMiB: 1 << 20,
		Mode:      v1alpha1.ModeManage,
		GPUs:      []GPUGroup{{Model: "A100-SXM4-80GB", Count: 8, MemoryMiB: 81920, ReservedMiB: 615}},
	}, s.Nodes[1])
	require.Equal(t, Node{
		Name:          "rack-b-0",
		Labels:        map[string]string{"gpupack.example/rack": "b"},
		Taints:        []corev1.Taint{{Key: "nvidia.com/gpu", Value: "present", Effect: corev1.TaintEffectNoSchedule}},
		CPUMilli:      64000,
		MemoryMiB:     512 << 10,
		MaxPods:       250,
		Mode:          v1alpha1.ModeObserve,
		DriverVersion: "550.54.15",
		GPUs: []GPUGroup{
			{Model: "A10", Count: 2, MemoryMiB: 24576},
			{Model: "T4", Count: 2, MemoryMiB: 15360, ReservedMiB: 448},
		},
		Processes: []Process{
			{GPU: 0, MemoryMiB: 20480, Utilization: 35, Until: 10 * time.Minute, Command: "jupyter", PID: 4711},
			{GPU: 2, MemoryMiB: 4096, From: time.Minute},
		},
		Events: []Event{
			{GPU: 3, Kind: EventXid, Code: 79},
			{GPU: 1, At: 2 * time.Minute, Kind: EventLost},
			{GPU: 1, At: 7 * time.Minute, Kind: EventRecover},
		},
	}, s.Nodes[2])
	require.Len(t, s.Workloads, 2)
	require.Equal(t, "app=leaky", s.Workloads[0].Selector.String())
	require.Equal(t, int64(256), s.Workloads[0].GrowthMiBPerMinute)
	require.Nil(t, s.Workloads[0].Utilization)
	require.Equal(t, ptr.To[int32](97), s.Workloads[1].Utilization)
}

func TestDocumentedExample(t *testing.T) {
	doc, err := os.ReadFile("../../docs/scenario.md")
	require.NoError(t, err)
	example, err := os.ReadFile(exampleFile)
	require.NoError(t, err)
	require.Contains(t, string(doc), "```yaml\n"+string(example)+"```\n", "docs/scenario.md shows another example than %s", exampleFile)
}

func TestWriteAndParse(t *testing.T) {
	s, err := Load(exampleFile)
	require.NoError(t, err)
	s.Nodes[0].CPUMilli = 500
	var first, second bytes.Buffer
	require.NoError(t, Write(&first, s))
	again, err := Parse("written", first.Bytes())
	require.NoError(t, err, first.String())
	require.Equal(t, s, again)
	require.NoError(t, Write(&second, again))
	require.Equal(t, first.String(), second.String())

	s.Nodes[1].Name = s.Nodes[0].Name
	second.Reset()
	require.ErrorContains(t, Write(&second, s), "another node has this name")
	require.Empty(t, second.String())
}

func TestLoadMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.yaml")
	_, err := Load(path)
	require.ErrorContains(t, err, path)
}

// node is a valid node, to which more fields can be added from line 6 on.
const node = `nodes:
- name: a
  cpu: 8
  memory: 64Gi
  gpus: [{model: A10, count: 2, memory: 24Gi, reserved: 1Gi}]
`

func TestParseErrors(t *testing.T) {
	tests := map[string]struct {
		file string
		want []string // lines
	}{
		"empty": {"", []string{"f:1: the scenario is empty: list at least one node under nodes"}},
		"no nodes": {"nodes: []\n", []string{
			"f:1: nodes: Required value: list at least one node"}},
		"not YAML": {"nodes:\n- name: [\n", []string{"f:2: not valid YAML: did not find expected node content"}},
		"two documents": {node + "---\nnodes: []\n", []string{
			"f: a scenario is one YAML document: remove what follows the line ---"}},
		"unknown field": {node + "  colour: red\n", []string{
			`f:6: unknown field "colour": correct its name or its indentation, or remove it`}},
		"unknown nested field": {node + "  events:\n  - gpu: 0\n    when: 5m\n    kind: lost\n", []string{
			`f:8: unknown field "when": correct its name or its indentation, or remove it`}},
		"field twice": {node + "  cpu: 9\n", []string{`f:6: field "cpu" is there already, at line 3: remove one of them`}},
		"wrong types": {node + "  maxPods: many\n  processes: 4\n  labels: [a]\n", []string{
			`f:6: expected a whole number, found "many"`,
			`f:7: expected a list, found "4"`,
			`f:8: expected fields, found a list`}},
		"bad scalars": {`nodes:
- name: a
  cpu: lots
  memory: -1Gi
  gpus:
  - model: A10
    memory: {a: b}
  processes:
  - gpu: 0
    memory: 1Gi
    from: soon
workloads:
- selector: a b c
`, []string{
			`f:3: "lots" is not a quantity of CPU, such as 96 or 500m`,
			`f:4: "-1Gi" is not a quantity of memory, such as 80Gi or 512Mi`,
			`f:7: "" is not a quantity of memory, such as 80Gi or 512Mi`,
			`f:11: "soon" is not a duration: write it like 90s or 5m`,
			`f:13: "a b c" is not a label selector: write it like app=web,tier!=test`}},
		"nothing given": {"nodes:\n- name: Bad_Name\n  gpus: []\n- gpus: [{}]\n", []string{
			"f:2: nodes[0].cpu: Required value: give the CPUs of the node, such as \"96\"",
			"f:2: nodes[0].memory: Required value: give the host memory of the node, such as 512Gi",
			"f:2: nodes[0].name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain must consist of",
			"f:3: nodes[0].gpus: Required value: list at least one group of GPUs: no agent runs on a node without any",
			"f:4: nodes[1].cpu: Required value: give the CPUs of the node, such as \"96\"",
			"f:4: nodes[1].memory: Required value: give the host memory of the node, such as 512Gi",
			"f:4: nodes[1].gpus[0].model: Required value: give the model, such as A100-SXM4-80GB",
			"f:4: nodes[1].gpus[0].memory: Required value: give the device memory of each GPU, such as 80Gi",
			"f:4: nodes[1].name: Required value: give a name, or namePrefix and count"}},
		"same name": {node + "- name: a\n  cpu: 1\n  memory: 1Gi\n  gpus: [{model: A10, memory: 1Gi}]\n", []string{
			`f:6: nodes[1].name: Duplicate value: "a": another node has this name: rename one of them`}},
		"prefix makes a name twice": {"nodes:\n- namePrefix: a-\n  count: 2\n  cpu: 1\n  memory: 1Gi\n  gpus: &g [{model: A10, memory: 1Gi}]\n" +
			"- name: a-1\n  cpu: 1\n  memory: 1Gi\n  gpus: *g\n", []string{
			`f:7: nodes[1].name: Duplicate value: "a-1": another node has this name: rename one of them`}},
		"prefix without count": {"nodes:\n- namePrefix: a-\n  cpu: 1\n  memory: 1Gi\n  gpus: [{model: A10, memory: 1Gi}]\n", []string{
			"f:2: nodes[0].count: Invalid value: 0: namePrefix needs a count, 1 to 100000"}},
		"name and count": {node + "  count: 3\n", []string{
			"f:6: nodes[0].count: Forbidden: goes with namePrefix: a name is that of one node"}},
		"memory twice": {"nodes:\n- name: a\n  cpu: 1\n  memory: 1Gi\n  gpus:\n  - {model: A10, memory: 1Gi,\n     memoryMiB: 5}\n", []string{
			"f:7: nodes[0].gpus[0].memoryMiB: Forbidden: give either memory or memoryMiB"}},
		"reserve above memory": {"nodes:\n- name: a\n  cpu: 1\n  memory: 1Gi\n  gpus:\n  - {model: A10, memory: 1Gi, reserved: 1Gi}\n", []string{
			"f:6: nodes[0].gpus[0].reserved: Invalid value: 1024: must be at least 0 MiB and less than the GPU's memory, 1024 MiB"}},
		"too many GPUs": {"nodes:\n- name: a\n  cpu: 1\n  memory: 1Gi\n  gpus:\n  - {model: A10, count: 20, memory: 1Gi}\n  - {model: T4, count: 20, memory: 1Gi}\n", []string{
			"f:5: nodes[0].gpus: Too many: 40: must have at most 32 items"}},
		"bad mode, labels and taint": {node + "  mode: enforce\n  labels:\n    a b: c\n  taints:\n  - key: k\n    effect: Never\n", []string{
			`f:6: nodes[0].mode: Invalid value: "enforce": must be one of manage, observe`,
			`f:7: nodes[0].labels: Invalid value: "a b": name part must consist of`,
			`f:11: nodes[0].taints[0].effect: Invalid value: "Never": must be one of NoSchedule, PreferNoSchedule, NoExecute`}},
		"more foreign memory than the GPU has": {node + `  processes:
  - {gpu: 0, memory: 20Gi, until: 5m}
  - {gpu: 0, memory: 20Gi, from: 5m}
  - {gpu: 1, memory: 3Gi}
  - {gpu: 0, memory: 4Gi, from: 6m}
`, []string{
			"f:10: nodes[0].processes[3].memory: Invalid value: 4096: at 6m0s the processes on GPU 0 would use 24576 MiB of 23552 MiB " +
				"(memory less the driver's reserve): lower one of them"}},
		"impossible process": {node + "  processes:\n  - gpu: 2\n    memory: 1Gi\n    utilization: 101\n    from: 2m\n    until: 1m\n", []string{
			"f:7: nodes[0].processes[0].gpu: Invalid value: 2: the node has 2 GPUs, whose indices start at 0",
			"f:9: nodes[0].processes[0].utilization: Invalid value: 101: must be 0 to 100 percent",
			`f:11: nodes[0].processes[0].until: Invalid value: "1m0s": must be after from (2m0s)`}},
		"impossible events": {node + "  events:\n  - {gpu: -1, kind: lost}\n  - {gpu: 0, kind: explode}\n  - {gpu: 0, kind: xid}\n  - {gpu: 0, kind: ecc, code: 3, at: -1s}\n", []string{
			"f:7: nodes[0].events[0].gpu: Invalid value: -1: the node has 2 GPUs, whose indices start at 0",
			`f:8: nodes[0].events[1].kind: Invalid value: "explode": must be one of xid, ecc, lost, recover`,
			"f:9: nodes[0].events[2].code: Invalid value: 0: an xid needs its number, 1 to 999",
			`f:10: nodes[0].events[3].at: Invalid value: "-1s": must not be negative`,
			"f:10: nodes[0].events[3].code: Invalid value: 3: only an xid has a code: remove it"}},
		"impossible workload": {node + "workloads:\n- memoryFraction: -1\n- memoryFraction: .nan\n- utilization: 200\n", []string{
			"f:7: workloads[0].memoryFraction: Invalid value: -1: must be 0 to 100; 1 is all that the pod asked for",
			"f:8: workloads[1].memoryFraction: Invalid value: NaN: must be 0 to 100; 1 is all that the pod asked for",
			"f:9: workloads[2].utilization: Invalid value: 200: must be 0 to 100 percent"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := Parse("f", []byte(tt.file))
			require.Error(t, err)
			require.Nil(t, s)
			lines := strings.Split(err.Error(), "\n")
			require.Len(t, lines, len(tt.want), err.Error())
			for i, want := range tt.want {
				require.True(t, strings.HasPrefix(lines[i], want), "line %d: got %q, want %q", i, lines[i], want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	example, err := os.ReadFile(exampleFile)
	require.NoError(f, err)
	f.Add(example)
	f.Add([]byte(node))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse("f", data)
		if err != nil {
			require.Contains(t, err.Error(), "f:")
			return
		}
		require.Empty(t, s.Validate())
		for i := range s.Nodes {
			NewDevices(&s.Nodes[i], s.Workloads).Read(time.Minute, nil)
		}
	})
}
