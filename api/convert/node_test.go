// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func defaultOptions() Options {
	return Options{StaleAfter: 3 * time.Minute, StalePolicy: StaleTrustRequests, Now: now}
}

func kubeNode() *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "node"},
		Status: corev1.NodeStatus{
			Capacity:    corev1.ResourceList{gpu: resource.MustParse("2")},
			Allocatable: corev1.ResourceList{"cpu": resource.MustParse("32"), "memory": resource.MustParse("100Gi")},
		},
	}
}

// gpuNode makes a reading of n healthy GPUs, GPU-0 and so on, on a node that gpupack manages.
func gpuNode(n int, changes ...func(*v1alpha1.GPUNodeStatus)) *v1alpha1.GPUNode {
	read := metav1.NewMicroTime(now)
	gn := &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: "node"}}
	gn.Status = v1alpha1.GPUNodeStatus{ObservedTime: &read, Mode: v1alpha1.ModeManage}
	for i := range n {
		gn.Status.GPUs = append(gn.Status.GPUs, v1alpha1.GPU{
			UUID: fmt.Sprintf("GPU-%d", i), Index: int32(i), Model: "A100", MemoryTotalMiB: 81920, MemoryReservedMiB: 920, Healthy: true,
		})
	}
	for _, change := range changes {
		change(&gn.Status)
	}
	return gn
}

func observe(s *v1alpha1.GPUNodeStatus) { s.Mode = v1alpha1.ModeObserve }

func stale(s *v1alpha1.GPUNodeStatus) {
	read := metav1.NewMicroTime(now.Add(-3*time.Minute - time.Microsecond))
	s.ObservedTime = &read
}

// uses makes the agent see a pod use memory of a GPU.
func uses(uid string, gpu int, mib int64) func(*v1alpha1.GPUNodeStatus) {
	return func(s *v1alpha1.GPUNodeStatus) {
		g := &s.GPUs[gpu]
		g.MemoryUsedMiB += mib
		g.Pods = append(g.Pods, v1alpha1.GPUPod{Name: uid, UID: types.UID(uid), MemoryUsedMiB: mib})
	}
}

func TestNodeReadsTelemetry(t *testing.T) {
	gn := gpuNode(3, func(s *v1alpha1.GPUNodeStatus) {
		s.GPUs[0].Index, s.GPUs[2].Index = 2, 0
		s.GPUs[1].Utilization = 40
		s.GPUs[1].MemoryUsedMiB, s.GPUs[1].MemoryForeignMiB = 700, 500
		s.GPUs[2].Healthy, s.GPUs[2].UnhealthyReason, s.GPUs[2].UnhealthyMessage = false, v1alpha1.ReasonXid, "Xid 79: GPU has fallen off the bus"
	}, uses("stranger", 1, 100))
	o := defaultOptions()
	o.Exists = func(string) bool { return true }
	got := Node(kubeNode(), gn, nil, o)
	assert.Equal(t, &pack.Node{
		Name: "node", CPUMilli: 32000, MemoryMiB: 100 << 10, Total: pack.Total{CPUMilli: 32000, MemoryMiB: 100 << 10, GPUs: 3},
		GPUs: []pack.GPU{
			{UUID: "GPU-2", Index: 0, Model: "A100", TotalMiB: 81920, ReservedMiB: 920, Unhealthy: "Xid 79: GPU has fallen off the bus"},
			// 800 MiB are used, of which 100 by a pod: 700 are nobody's, though the agent knows of 500 only.
			{UUID: "GPU-1", Index: 1, Model: "A100", TotalMiB: 81920, ReservedMiB: 920, ForeignMiB: 700, Utilization: 40},
			{UUID: "GPU-0", Index: 2, Model: "A100", TotalMiB: 81920, ReservedMiB: 920},
		},
	}, got)
}

func TestNodeReadsCordons(t *testing.T) {
	gn := gpuNode(3, uses("pod", 0, 100), func(s *v1alpha1.GPUNodeStatus) {
		s.GPUs[1].Healthy, s.GPUs[1].UnhealthyReason = false, v1alpha1.ReasonECC
	})
	gn.Spec.CordonedGPUs = []v1alpha1.CordonedGPU{{UUID: "GPU-0", Reason: "fan is loud", By: "ada"}, {UUID: "GPU-1"}, {UUID: "GPU-gone"}}
	got := Node(kubeNode(), gn, nil, defaultOptions())
	assert.Equal(t, []string{"cordoned by ada: fan is loud", "ECC", ""}, []string{got.GPUs[0].Unhealthy, got.GPUs[1].Unhealthy, got.GPUs[2].Unhealthy})
	assert.Equal(t, []bool{true, false, false}, []bool{got.GPUs[0].Cordoned, got.GPUs[1].Cordoned, got.GPUs[2].Cordoned},
		"of a sick GPU it is told that it is sick")
	assert.Len(t, got.GPUs[0].Tenants, 1, "its pods stay")
	assert.Equal(t, map[string]int{"A100": 1}, HealthyGPUs(gn))

	gn = gpuNode(1)
	gn.Spec.CordonedGPUs = []v1alpha1.CordonedGPU{{UUID: "GPU-0"}}
	limits := pack.Limits{}
	assert.Equal(t, pack.ReasonCordoned, limits.Fit(Node(kubeNode(), gn, nil, defaultOptions()), &pack.Request{Milli: 1}))
}

func TestNodeProblems(t *testing.T) {
	noGPUs := kubeNode()
	noGPUs.Status.Capacity = nil
	unread := &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: "node"}}
	whole, share := pack.Request{GPUs: 1}, pack.Request{Milli: 100}
	tests := []struct {
		name         string
		node         *corev1.Node
		gn           *v1alpha1.GPUNode
		policy       StalePolicy
		whole, share pack.Reason
	}{
		{"fresh", kubeNode(), gpuNode(1), StaleTrustRequests, pack.ReasonFits, pack.ReasonFits},
		{"no GPUNode", kubeNode(), nil, StaleTrustRequests, pack.ReasonNoTelemetry, pack.ReasonNoTelemetry},
		{"no GPUNode and no GPUs", noGPUs, nil, StaleTrustRequests, pack.ReasonTooFewGPUs, pack.ReasonTooFewGPUs},
		{"no reading yet", kubeNode(), unread, StaleTrustRequests, pack.ReasonNoTelemetry, pack.ReasonNoTelemetry},
		{"no GPUs read", kubeNode(), gpuNode(0), StaleTrustRequests, pack.ReasonTooFewGPUs, pack.ReasonTooFewGPUs},
		{"impossible", kubeNode(), gpuNode(1, func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].MemoryUsedMiB = 90000 }), StaleTrustTelemetry,
			pack.ReasonInvalidTelemetry, pack.ReasonInvalidTelemetry},
		{"observe", kubeNode(), gpuNode(1, observe), StaleTrustRequests, pack.ReasonFits, pack.ReasonObserveShare},
		{"no mode is observe", kubeNode(), gpuNode(1, func(s *v1alpha1.GPUNodeStatus) { s.Mode = "" }), StaleTrustRequests,
			pack.ReasonFits, pack.ReasonObserveShare},
		{"stale, trust requests", kubeNode(), gpuNode(1, stale), StaleTrustRequests, pack.ReasonFits, pack.ReasonStaleShare},
		{"stale, reject", kubeNode(), gpuNode(1, stale), StaleReject, pack.ReasonStaleReject, pack.ReasonStaleReject},
		{"stale, trust telemetry", kubeNode(), gpuNode(1, stale), StaleTrustTelemetry, pack.ReasonFits, pack.ReasonFits},
		{"never read is stale", kubeNode(), gpuNode(1, func(s *v1alpha1.GPUNodeStatus) { s.ObservedTime = nil }), StaleTrustRequests,
			pack.ReasonFits, pack.ReasonStaleShare},
		{"stale, but the GPU was sick", kubeNode(), gpuNode(1, stale, func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].Healthy = false }), StaleTrustRequests,
			pack.ReasonUnhealthy, pack.ReasonUnhealthy},
		{"stale, but there was foreign memory", kubeNode(), gpuNode(1, stale, func(s *v1alpha1.GPUNodeStatus) {
			s.GPUs[0].MemoryUsedMiB, s.GPUs[0].MemoryForeignMiB = 80000, 80000
		}), StaleTrustRequests, pack.ReasonForeign, pack.ReasonForeign},
		{"memory that is nobody's is foreign", kubeNode(), gpuNode(1, func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].MemoryUsedMiB = 80000 }), StaleTrustRequests,
			pack.ReasonForeign, pack.ReasonForeign},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := defaultOptions()
			o.StalePolicy = tt.policy
			n := Node(tt.node, tt.gn, nil, o)
			var l pack.Limits
			got := l.Fit(n, &whole)
			assert.Equal(t, tt.whole, got, "whole: %s", got)
			got = l.Fit(n, &share)
			assert.Equal(t, tt.share, got, "share: %s", got)
		})
	}
}

func TestIsStale(t *testing.T) {
	o := defaultOptions()
	assert.False(t, IsStale(gpuNode(0), &o))
	assert.True(t, IsStale(gpuNode(0, stale), &o))
	exactly := metav1.NewMicroTime(now.Add(-o.StaleAfter))
	assert.False(t, IsStale(&v1alpha1.GPUNode{Status: v1alpha1.GPUNodeStatus{ObservedTime: &exactly}}, &o))
	assert.True(t, IsStale(&v1alpha1.GPUNode{}, &o))
}

func TestNodeCountsPods(t *testing.T) {
	const usable = 81000
	shared, one := pack.KindOf(&pack.Request{Milli: 1}), pack.KindOf(&pack.Request{GPUs: 1})
	whole := func(uid string) *corev1.Pod { return podOf(uid, asks{gpu: "1", "cpu": "4", "memory": "1Gi"}) }
	share := func(uid string) *corev1.Pod { return podOf(uid, asks{gpuMilli: "250", gpuMemory: "8Gi"}) }
	known := func(uids ...string) func(string) bool {
		return func(uid string) bool { return strings.Contains(strings.Join(uids, " "), uid) }
	}
	tests := []struct {
		name   string
		gn     *v1alpha1.GPUNode
		pods   []Pod
		exists func(string) bool
		// tenants of each GPU.
		want [][]pack.Tenant
		cpu  int64
	}{
		{
			name: "where the record says",
			gn:   gpuNode(2),
			pods: []Pod{{whole("a"), []string{"GPU-1"}}, {share("b"), []string{"GPU-0"}}},
			want: [][]pack.Tenant{{{ID: "b", Milli: 250, RequestedMiB: 8192, Kind: shared}}, {{ID: "a", Milli: 1000, RequestedMiB: usable, Kind: one}}},
			cpu:  28000,
		},
		{
			name: "with what they really use",
			gn:   gpuNode(1, uses("a", 0, 9000), uses("b", 0, 100)),
			pods: []Pod{{share("a"), []string{"GPU-0"}}, {share("b"), []string{"GPU-0"}}},
			want: [][]pack.Tenant{{{ID: "a", Milli: 250, RequestedMiB: 8192, UsedMiB: 9000, Kind: shared}, {ID: "b", Milli: 250, RequestedMiB: 8192, UsedMiB: 100, Kind: shared}}},
			cpu:  32000,
		},
		{
			name: "stale: by requests alone",
			gn:   gpuNode(1, stale, uses("a", 0, 9000), uses("gone", 0, 100)),
			pods: []Pod{{share("a"), []string{"GPU-0"}}},
			want: [][]pack.Tenant{{{ID: "a", Milli: 250, RequestedMiB: 8192, Kind: shared}}},
			cpu:  32000,
		},
		{
			name: "manage: the record wins over the reading, whose use counts too",
			gn:   gpuNode(2, uses("a", 1, 300)),
			pods: []Pod{{share("a"), []string{"GPU-0"}}},
			want: [][]pack.Tenant{{{ID: "a", Milli: 250, RequestedMiB: 8192, Kind: shared}}, {{ID: "a", UsedMiB: 300}}},
			cpu:  32000,
		},
		{
			name: "observe: the reading wins over the record",
			gn:   gpuNode(2, observe, uses("a", 1, 300)),
			pods: []Pod{{whole("a"), []string{"GPU-0"}}},
			want: [][]pack.Tenant{nil, {{ID: "a", Milli: 1000, RequestedMiB: usable, UsedMiB: 300, Kind: one}}},
			cpu:  28000,
		},
		{
			name: "observe: the record, until there is a reading",
			gn:   gpuNode(2, observe),
			pods: []Pod{{whole("a"), []string{"GPU-1"}}},
			want: [][]pack.Tenant{nil, {{ID: "a", Milli: 1000, RequestedMiB: usable, Kind: one}}},
			cpu:  28000,
		},
		{
			name: "no record: the reading",
			gn:   gpuNode(2, uses("a", 1, 0)),
			pods: []Pod{{whole("a"), nil}},
			want: [][]pack.Tenant{nil, {{ID: "a", Milli: 1000, RequestedMiB: usable, Kind: one}}},
			cpu:  28000,
		},
		{
			name: "no record, no reading: where there is room beside those that are known",
			gn:   gpuNode(2),
			pods: []Pod{{whole("a"), nil}, {share("b"), []string{"GPU-0"}}, {share("c"), nil}},
			want: [][]pack.Tenant{
				{{ID: "b", Milli: 250, RequestedMiB: 8192, Kind: shared}, {ID: "c", Milli: 250, RequestedMiB: 8192, Kind: shared}},
				{{ID: "a", Milli: 1000, RequestedMiB: usable, Kind: one}},
			},
			cpu: 28000,
		},
		{
			name: "a record of GPUs that are no longer there",
			gn:   gpuNode(2, uses("a", 1, 300)),
			pods: []Pod{{whole("a"), []string{"GPU-9"}}, {whole("b"), []string{"GPU-8"}}},
			want: [][]pack.Tenant{{{ID: "b", Milli: 1000, RequestedMiB: usable, Kind: one}}, {{ID: "a", Milli: 1000, RequestedMiB: usable, UsedMiB: 300, Kind: one}}},
			cpu:  24000,
		},
		{
			name: "a record that names a GPU twice",
			gn:   gpuNode(1),
			pods: []Pod{{share("a"), []string{"GPU-0", "GPU-0"}}},
			want: [][]pack.Tenant{{{ID: "a", Milli: 250, RequestedMiB: 8192, Kind: shared}}},
			cpu:  32000,
		},
		{
			name: "a departed pod's processes",
			gn:   gpuNode(2, uses("gone", 0, 500), uses("idle", 1, 0)),
			want: [][]pack.Tenant{{{ID: "gone", UsedMiB: 500}}, nil},
			cpu:  32000,
		},
		{
			name:   "a pod that exists but is imagined away leaves nothing",
			gn:     gpuNode(1, uses("victim", 0, 500), uses("gone", 0, 300)),
			exists: known("victim"),
			want:   [][]pack.Tenant{{{ID: "gone", UsedMiB: 300}}},
			cpu:    32000,
		},
		{
			name:   "a pod that asked for no GPU and uses one all the same",
			gn:     gpuNode(2, uses("sneaky", 0, 500), uses("sneaky", 1, 0)),
			pods:   []Pod{{podOf("sneaky", asks{"cpu": "2"}), nil}},
			exists: known("sneaky"),
			want:   [][]pack.Tenant{{{ID: "sneaky", UsedMiB: 500}}, nil},
			cpu:    30000,
		},
		{
			name: "a malformed annotation frees no whole GPU that another scheduler gave",
			gn:   gpuNode(1),
			pods: []Pod{{annotated(whole("a"), v1alpha1.AnnotationMaxLiveUtilization, "low"), nil}},
			want: [][]pack.Tenant{{{ID: "a", Milli: 1000, RequestedMiB: usable, Kind: one}}},
			cpu:  28000,
		},
		{
			name: "a malformed share holds CPU",
			gn:   gpuNode(1),
			pods: []Pod{{podOf("a", asks{gpuMilli: "2000", "cpu": "3"}), []string{"GPU-0"}}},
			want: [][]pack.Tenant{nil},
			cpu:  29000,
		},
		{
			name: "without telemetry there is nowhere to count",
			pods: []Pod{{whole("a"), []string{"GPU-0"}}, {share("b"), nil}},
			cpu:  28000,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := defaultOptions()
			o.Exists = tt.exists
			n := Node(kubeNode(), tt.gn, tt.pods, o)
			var got [][]pack.Tenant
			for i := range n.GPUs {
				got = append(got, n.GPUs[i].Tenants)
			}
			assert.Equal(t, tt.want, got)
			assert.Equal(t, tt.cpu, n.CPUMilli)
			assert.Equal(t, pack.Total{CPUMilli: 32000, MemoryMiB: 100 << 10, GPUs: len(n.GPUs)}, n.Total)
		})
	}
}

// Used memory is counted once: as a pod's, or as foreign.
func TestNodeCountsMemoryOnce(t *testing.T) {
	gn := gpuNode(1, uses("a", 0, 9000), uses("gone", 0, 1000), func(s *v1alpha1.GPUNodeStatus) {
		s.GPUs[0].MemoryUsedMiB += 3000
		s.GPUs[0].MemoryForeignMiB = 2000
	})
	n := Node(kubeNode(), gn, []Pod{{podOf("a", asks{gpuMemory: "8Gi"}), []string{"GPU-0"}}}, defaultOptions())
	require.Len(t, n.GPUs, 1)
	assert.Equal(t, int64(81000-9000-1000-3000), n.GPUs[0].FreeMiB())
}

// impossible are readings that no node can have, and what is said of each.
var impossible = []struct {
	name   string
	change func(*v1alpha1.GPUNodeStatus)
	err    string
}{
	{"no uuid", func(s *v1alpha1.GPUNodeStatus) { s.GPUs[1].UUID = "" }, "GPUNode node: GPU 1 has no uuid"},
	{"uuid twice", func(s *v1alpha1.GPUNodeStatus) { s.GPUs[1].UUID = "GPU-0" }, `GPUNode node: GPU "GPU-0" is listed twice`},
	{"index twice", func(s *v1alpha1.GPUNodeStatus) { s.GPUs[1].Index = 0 }, `GPUNode node: GPU "GPU-1" has index 0, as has GPU "GPU-0"`},
	{"negative index", func(s *v1alpha1.GPUNodeStatus) { s.GPUs[1].Index = -1 }, "has index -1, below 0"},
	{"no memory", func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].MemoryTotalMiB = 0 }, `GPU "GPU-0" has memoryTotalMiB 0, not above 0`},
	{"absurd memory", func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].MemoryTotalMiB = 1<<24 + 1 }, "has memoryTotalMiB 16777217, above 16777216"},
	{"negative reserve", func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].MemoryReservedMiB = -1 }, "has negative memory"},
	{"negative use", func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].MemoryUsedMiB = -1 }, "has negative memory"},
	{"negative foreign", func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].MemoryForeignMiB = -1 }, "has negative memory"},
	{"reserve above total", func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].MemoryReservedMiB = 81921 }, "has memoryReservedMiB 81921 above memoryTotalMiB 81920"},
	{"use above total", func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].MemoryUsedMiB = 81921 }, "has memoryUsedMiB 81921 above memoryTotalMiB 81920"},
	{"foreign above use", func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].MemoryForeignMiB = 1 }, "has memoryForeignMiB 1 above memoryUsedMiB 0"},
	{"utilisation below 0", func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].Utilization = -1 }, "has utilization -1, not in 0 to 100"},
	{"utilisation above 100", func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].Utilization = 101 }, "has utilization 101, not in 0 to 100"},
	{"negative use of a pod", func(s *v1alpha1.GPUNodeStatus) {
		s.GPUs[0].Pods = []v1alpha1.GPUPod{{Namespace: "ns", Name: "p", UID: "u", MemoryUsedMiB: -1}}
	}, `GPU "GPU-0" has pod ns/p with memoryUsedMiB -1, not in 0 to 16777216`},
	{"too many GPUs", func(s *v1alpha1.GPUNodeStatus) { s.GPUs = gpuNode(33).Status.GPUs }, "GPUNode node has 33 GPUs, above 32"},
}

func TestCheckTelemetry(t *testing.T) {
	require.NoError(t, CheckTelemetry(gpuNode(0)))
	require.NoError(t, CheckTelemetry(gpuNode(32)))
	require.NoError(t, CheckTelemetry(gpuNode(1, uses("a", 0, 81920), func(s *v1alpha1.GPUNodeStatus) {
		s.GPUs[0].Utilization, s.GPUs[0].MemoryForeignMiB, s.GPUs[0].MemoryReservedMiB = 100, 81920, 81920
	})), "the extremes are possible")
	for _, tt := range impossible {
		t.Run(tt.name, func(t *testing.T) {
			gn := gpuNode(2, tt.change)
			require.ErrorContains(t, CheckTelemetry(gn), tt.err)

			n := Node(kubeNode(), gn, []Pod{{podOf("a", asks{gpu: "1"}), []string{"GPU-0"}}}, defaultOptions())
			assert.Equal(t, pack.ReasonInvalidTelemetry, n.Problem)
			assert.Empty(t, n.GPUs)
		})
	}
}

// Whatever the objects say, nothing panics, and what comes out makes sense.
func TestArbitraryObjects(t *testing.T) {
	quantities := rapid.OneOf(
		rapid.Map(rapid.Int64(), func(v int64) resource.Quantity { return *resource.NewQuantity(v, resource.BinarySI) }),
		rapid.Map(rapid.Int64Range(-3, 3000), func(v int64) resource.Quantity { return *resource.NewQuantity(v, resource.DecimalSI) }),
		rapid.Map(rapid.Int64(), func(v int64) resource.Quantity { return *resource.NewMilliQuantity(v, resource.DecimalSI) }),
	)
	names := rapid.SampledFrom([]corev1.ResourceName{"cpu", "memory", gpu, gpuMemory, gpuMilli})
	lists := rapid.MapOfN(names, quantities, 0, 5)
	uids := rapid.SampledFrom([]string{"", "a", "b", "c"})
	uuids := rapid.SampledFrom([]string{"", "GPU-0", "GPU-1", "GPU-2", " "})
	figures := rapid.OneOf(rapid.Int64(), rapid.Int64Range(-1, 100000), rapid.Int64Range(0, 80000))
	small := rapid.OneOf(rapid.Int32(), rapid.Int32Range(-1, 101), rapid.Int32Range(0, 8))
	policies := rapid.SampledFrom([]StalePolicy{StaleTrustRequests, StaleReject, StaleTrustTelemetry, "", "Nonsense"})

	drawPod := func(t *rapid.T) *corev1.Pod {
		pod := podOf(uids.Draw(t, "uid"))
		for range rapid.IntRange(0, 2).Draw(t, "containers") {
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{
				Resources: corev1.ResourceRequirements{Requests: lists.Draw(t, "requests")},
			})
		}
		for range rapid.IntRange(0, 1).Draw(t, "initContainers") {
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{
				Resources:     corev1.ResourceRequirements{Requests: lists.Draw(t, "requests")},
				RestartPolicy: rapid.Ptr(rapid.Just(corev1.ContainerRestartPolicyAlways), true).Draw(t, "sidecar"),
			})
		}
		for _, key := range []string{v1alpha1.AnnotationGPUModel, v1alpha1.AnnotationMaxLiveUtilization, v1alpha1.AnnotationGPUs} {
			if rapid.Bool().Draw(t, key) {
				pod.Annotations[key] = rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"50", "A100", "GPU-0,GPU-1", ","})).Draw(t, key)
			}
		}
		return pod
	}
	rapid.Check(t, func(t *rapid.T) {
		var pods []Pod
		for range rapid.IntRange(0, 4).Draw(t, "pods") {
			pod := drawPod(t)
			r, err := Request(pod)
			if err == nil {
				require.NoError(t, r.Validate())
			} else {
				require.NotEmpty(t, err.Error())
				require.False(t, r.IsShare(), "no share comes out of a malformed request")
			}
			pods = append(pods, Pod{pod, rapid.OneOf(rapid.Just(GPUs(pod)), rapid.SliceOfN(uuids, 0, 3)).Draw(t, "recorded")})
		}
		var gn *v1alpha1.GPUNode
		if rapid.Bool().Draw(t, "telemetry") {
			gn = &v1alpha1.GPUNode{}
			gn.Status.Mode = rapid.SampledFrom([]v1alpha1.Mode{"", v1alpha1.ModeManage, v1alpha1.ModeObserve}).Draw(t, "mode")
			if rapid.Bool().Draw(t, "read") {
				at := metav1.NewMicroTime(now.Add(time.Duration(rapid.Int64().Draw(t, "age"))))
				gn.Status.ObservedTime = &at
			}
			sane := rapid.Bool().Draw(t, "sane")
			for i := range rapid.IntRange(0, 3).Draw(t, "gpus") {
				g := v1alpha1.GPU{UUID: fmt.Sprintf("GPU-%d", i), Index: int32(i), MemoryTotalMiB: 81920, Healthy: rapid.Bool().Draw(t, "healthy")}
				if !sane {
					g = v1alpha1.GPU{
						UUID: uuids.Draw(t, "uuid"), Index: small.Draw(t, "index"), MemoryTotalMiB: figures.Draw(t, "total"),
						MemoryReservedMiB: figures.Draw(t, "reserved"), MemoryUsedMiB: figures.Draw(t, "used"),
						MemoryForeignMiB: figures.Draw(t, "foreign"), Utilization: small.Draw(t, "utilization"),
					}
				}
				for range rapid.IntRange(0, 2).Draw(t, "gpuPods") {
					g.Pods = append(g.Pods, v1alpha1.GPUPod{UID: types.UID(uids.Draw(t, "uid")), MemoryUsedMiB: figures.Draw(t, "podUsed")})
				}
				gn.Status.GPUs = append(gn.Status.GPUs, g)
			}
		}
		node := &corev1.Node{Status: corev1.NodeStatus{Capacity: lists.Draw(t, "capacity"), Allocatable: lists.Draw(t, "allocatable")}}
		o := Options{StaleAfter: time.Minute, StalePolicy: policies.Draw(t, "policy"), Now: now}
		if rapid.Bool().Draw(t, "exists") {
			o.Exists = func(uid string) bool { return uid == "a" }
		}

		n := Node(node, gn, pods, o)
		if gn != nil && CheckTelemetry(gn) != nil {
			require.NotEqual(t, pack.ReasonFits, n.Problem)
		}
		for i := range n.GPUs {
			g := &n.GPUs[i]
			require.GreaterOrEqual(t, g.FreeMiB(), int64(0))
			require.LessOrEqual(t, g.FreeMiB(), g.UsableMiB())
			require.GreaterOrEqual(t, g.FreeMilli(), int64(0))
		}
		s := n.Shape()
		for _, m := range s.Milli {
			require.GreaterOrEqual(t, m, int16(0))
			require.LessOrEqual(t, m, int16(pack.WholeMilli))
		}
		for _, p := range pods {
			if r, err := Request(p.Pod); err == nil {
				var l pack.Limits
				l.Fit(n, &r)
				l.Explain(n, &r)
			}
		}
	})
}

func TestHealthyGPUs(t *testing.T) {
	mixed := gpuNode(4, func(s *v1alpha1.GPUNodeStatus) {
		s.GPUs[1].Model, s.GPUs[2].Model = "T4", "T4"
		s.GPUs[3].Healthy = false
	})
	assert.Equal(t, map[string]int{"A100": 1, "T4": 2}, HealthyGPUs(mixed))
	mixed.Status.GPUs[0].MemoryTotalMiB = 0
	assert.Empty(t, HealthyGPUs(mixed), "impossible figures")
	assert.Empty(t, HealthyGPUs(gpuNode(0)))
	assert.Empty(t, HealthyGPUs(nil))
}
