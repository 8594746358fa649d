// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package simulated

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

func TestUUID(t *testing.T) {
	// These are in the annotations of pods, so they must not change between versions.
	require.Equal(t, "GPU-57e271a9-c924-5dc3-90d1-ba5070cd061c", UUID("rack-a-0", 0))
	require.NotEqual(t, UUID("rack-a-0", 0), UUID("rack-a-0", 1))
	require.NotEqual(t, UUID("a-1", 1), UUID("a-11", 1))
}

// testNode has a GPU of 10000 MiB and one of 1000 MiB, of which pods can have 9000 and 1000.
func testNode() *Node {
	return &Node{
		Name: "n", CPUMilli: 1000, MemoryMiB: 1000,
		GPUs: []GPUGroup{{Model: "big", Count: 1, MemoryMiB: 10000, ReservedMiB: 1000}, {Model: "small", Count: 1, MemoryMiB: 1000}},
	}
}

func pod(name string, gpus ...int) Pod {
	p := Pod{Namespace: "ns", Name: name, UID: types.UID("uid-" + name), Milli: 1000, Labels: map[string]string{"app": name}}
	for _, i := range gpus {
		p.GPUs = append(p.GPUs, UUID("n", i))
	}
	return p
}

func gpuPod(p Pod, memoryMiB int64, utilization int32) v1alpha1.GPUPod {
	return v1alpha1.GPUPod{Namespace: p.Namespace, Name: p.Name, UID: p.UID, MemoryUsedMiB: memoryMiB, Utilization: utilization}
}

func TestReadPods(t *testing.T) {
	workloads := []Workload{
		{Selector: labels.SelectorFromSet(labels.Set{"app": "greedy"}), MemoryFraction: 1.5, Utilization: ptr.To[int32](70)},
		{Selector: labels.SelectorFromSet(labels.Set{"app": "leaky"}), MemoryFraction: 1, Utilization: ptr.To[int32](60), GrowthMiBPerMinute: 100},
		{MemoryFraction: 0.9, Utilization: ptr.To[int32](50)},
	}
	share := func(p Pod, milli, mib int64) Pod {
		p.Milli, p.MiB = milli, mib
		return p
	}
	since := func(p Pod, at time.Duration) Pod {
		p.Since = at
		return p
	}
	override := func(p Pod, memory int64, utilization int32) Pod {
		p.Overrides = Overrides{MemoryMiB: &memory, Utilization: &utilization}
		return p
	}
	tests := map[string]struct {
		pods     []Pod
		at       time.Duration
		wantUsed [2]int64
		wantUtil [2]int32
		want     [2][]v1alpha1.GPUPod
	}{
		"nobody": {},
		"whole GPUs": {
			pods:     []Pod{pod("a", 0, 1)},
			wantUsed: [2]int64{8100, 900}, wantUtil: [2]int32{50, 50},
			want: [2][]v1alpha1.GPUPod{{gpuPod(pod("a"), 8100, 50)}, {gpuPod(pod("a"), 900, 50)}},
		},
		"share by memory": {
			pods:     []Pod{share(pod("a", 0), 0, 2000)},
			wantUsed: [2]int64{1800}, wantUtil: [2]int32{50},
			want: [2][]v1alpha1.GPUPod{{gpuPod(pod("a"), 1800, 50)}},
		},
		"share by compute implies memory": {
			pods:     []Pod{share(pod("a", 0), 500, 0)},
			wantUsed: [2]int64{4050}, wantUtil: [2]int32{50},
			want: [2][]v1alpha1.GPUPod{{gpuPod(pod("a"), 4050, 50)}},
		},
		"uses more than it asked for": {
			pods:     []Pod{share(pod("greedy", 0), 0, 2000)},
			wantUsed: [2]int64{3000}, wantUtil: [2]int32{70},
			want: [2][]v1alpha1.GPUPod{{gpuPod(pod("greedy"), 3000, 70)}},
		},
		"grows": {
			pods:     []Pod{since(share(pod("leaky", 0), 0, 2000), time.Minute)},
			at:       5*time.Minute + 30*time.Second,
			wantUsed: [2]int64{2450}, wantUtil: [2]int32{60},
			want: [2][]v1alpha1.GPUPod{{gpuPod(pod("leaky"), 2450, 60)}},
		},
		"grows no larger than the GPU": {
			pods:     []Pod{share(pod("leaky", 0), 0, 2000)},
			at:       1000 * time.Hour,
			wantUsed: [2]int64{9000}, wantUtil: [2]int32{60},
			want: [2][]v1alpha1.GPUPod{{gpuPod(pod("leaky"), 9000, 60)}},
		},
		"the first gets what it wants, the last what is left, and utilisation is divided": {
			pods: []Pod{since(share(pod("late", 0), 0, 2000), 2), since(share(pod("greedy", 0), 0, 2000), 1),
				override(share(pod("first", 0), 0, 1), 5000, 80)},
			at:       2,
			wantUsed: [2]int64{9000}, wantUtil: [2]int32{100},
			want: [2][]v1alpha1.GPUPod{{gpuPod(pod("first"), 5000, 40), gpuPod(pod("greedy"), 3000, 35), gpuPod(pod("late"), 1000, 25)}},
		},
		"a GPU of another node, and one twice": {
			pods:     []Pod{{Namespace: "ns", Name: "a", UID: "uid-a", GPUs: []string{"GPU-x", UUID("n", 0), UUID("n", 0)}, MiB: 1000}},
			wantUsed: [2]int64{900}, wantUtil: [2]int32{50},
			want: [2][]v1alpha1.GPUPod{{gpuPod(pod("a"), 900, 50)}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			gpus := NewDevices(testNode(), workloads).Read(tt.at, tt.pods)
			require.Len(t, gpus, 2)
			for i, g := range gpus {
				require.Equal(t, tt.wantUsed[i], g.MemoryUsedMiB)
				require.Equal(t, tt.wantUtil[i], g.Utilization)
				require.Equal(t, tt.want[i], g.Pods)
				require.Zero(t, g.MemoryForeignMiB)
				require.True(t, g.Healthy)
			}
		})
	}
}

func TestDefaultUse(t *testing.T) {
	d := NewDevices(testNode(), nil)
	whole, half := pod("whole", 0), pod("half", 1)
	half.Milli, half.MiB = 0, 500
	for at := time.Duration(0); at < 10*time.Minute; at += time.Second {
		gpus := d.Read(at, []Pod{whole, half})
		require.Equal(t, int64(8100), gpus[0].MemoryUsedMiB)
		require.Equal(t, int64(450), gpus[1].MemoryUsedMiB)
		require.InDelta(t, 80, gpus[0].Utilization, 8)
		require.InDelta(t, 40, gpus[1].Utilization, 4)
		next := d.Read(at+time.Second, []Pod{whole, half})
		require.InDelta(t, gpus[0].Utilization, next[0].Utilization, 1, "it moves slowly")
	}
}

func TestReadProcesses(t *testing.T) {
	n := testNode()
	n.Processes = []Process{
		{GPU: 0, MemoryMiB: 4000, Utilization: 30, Until: 10 * time.Second},
		{GPU: 0, MemoryMiB: 9000, From: 20 * time.Second},
	}
	d := NewDevices(n, []Workload{{MemoryFraction: 1, Utilization: ptr.To[int32](50)}})
	p := pod("a", 0)
	p.MiB, p.Since = 3000, 5*time.Second
	tests := []struct {
		at                     time.Duration
		pods                   []Pod
		foreign, used, podUsed int64
		utilization            int32
	}{
		{0, nil, 4000, 4000, 0, 30},
		{9 * time.Second, []Pod{p}, 4000, 7000, 3000, 80},
		{10 * time.Second, []Pod{p}, 0, 3000, 3000, 50},
		{20 * time.Second, []Pod{p}, 6000, 9000, 3000, 50},
		{20 * time.Second, nil, 9000, 9000, 0, 0},
	}
	for _, tt := range tests {
		gpu := d.Read(tt.at, tt.pods)[0]
		require.Equal(t, tt.foreign, gpu.MemoryForeignMiB, tt.at)
		require.Equal(t, tt.used, gpu.MemoryUsedMiB, tt.at)
		require.Equal(t, tt.utilization, gpu.Utilization, tt.at)
		if tt.pods != nil {
			require.Equal(t, tt.podUsed, gpu.Pods[0].MemoryUsedMiB, tt.at)
		}
	}
}

func TestReadEvents(t *testing.T) {
	n := testNode()
	n.Events = []Event{ // not in the order of time
		{GPU: 0, At: 60 * time.Second, Kind: EventLost},
		{GPU: 0, At: 10 * time.Second, Kind: EventXid, Code: 31},
		{GPU: 0, At: 20 * time.Second, Kind: EventXid, Code: 79},
		{GPU: 0, At: 30 * time.Second, Kind: EventRecover},
		{GPU: 0, At: 40 * time.Second, Kind: EventECC},
		{GPU: 0, At: 50 * time.Second, Kind: EventXid, Code: 140},
	}
	d := NewDevices(n, nil)
	tests := []struct {
		at      time.Duration
		reason  v1alpha1.UnhealthyReason
		message string
		used    int64
	}{
		{0, "", "", 8100},
		{10 * time.Second, "", "", 8100}, // an application's fault
		{20 * time.Second, v1alpha1.ReasonXid, "Xid 79: GPU has fallen off the bus", 8100},
		{30 * time.Second, "", "", 8100},
		{40 * time.Second, v1alpha1.ReasonECC, "uncorrectable memory error", 8100},
		{50 * time.Second, v1alpha1.ReasonXid, "Xid 140", 8100},
		{60 * time.Second, v1alpha1.ReasonLost, "GPU is lost", 0},
	}
	for _, tt := range tests {
		gpus := d.Read(tt.at, []Pod{pod("a", 0)})
		require.Equal(t, tt.reason == "", gpus[0].Healthy, tt.at)
		require.Equal(t, tt.reason, gpus[0].UnhealthyReason, tt.at)
		require.Equal(t, tt.message, gpus[0].UnhealthyMessage, tt.at)
		require.Equal(t, tt.used, gpus[0].MemoryUsedMiB, tt.at)
		require.Len(t, gpus[0].Pods, 1, "the pod still has the GPU")
		require.True(t, gpus[1].Healthy, tt.at)
	}

	var changes []time.Duration
	for at, ok := d.NextChange(-1); ok; at, ok = d.NextChange(at) {
		changes = append(changes, at/time.Second)
	}
	require.Equal(t, []time.Duration{10, 20, 30, 40, 50, 60}, changes)
}

func TestParseOverrides(t *testing.T) {
	tests := map[string]struct {
		annotations map[string]string
		want        Overrides
		wantErr     string
	}{
		"none": {},
		"both": {
			annotations: map[string]string{AnnotationMemory: "12Gi", AnnotationUtilization: "70"},
			want:        Overrides{MemoryMiB: ptr.To[int64](12288), Utilization: ptr.To[int32](70)},
		},
		"bad memory": {
			annotations: map[string]string{AnnotationMemory: "much", AnnotationUtilization: "0"},
			want:        Overrides{Utilization: ptr.To[int32](0)},
			wantErr:     `annotation simulated.gpupack.dev/memory: "much" is not a quantity of memory: write it like 12Gi`,
		},
		"bad utilization": {
			annotations: map[string]string{AnnotationMemory: "1", AnnotationUtilization: "70%"},
			want:        Overrides{MemoryMiB: ptr.To[int64](1)},
			wantErr:     `annotation simulated.gpupack.dev/utilization: "70%" is not a whole number from 0 to 100`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseOverrides(tt.annotations)
			if tt.wantErr == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, tt.wantErr)
			}
			require.Equal(t, tt.want, got)
		})
	}
}

// TestReadingsArePossible reads random scenarios with random pods.
func TestReadingsArePossible(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seconds := func(name string) time.Duration {
			return time.Duration(rapid.IntRange(0, 600).Draw(t, name)) * time.Second
		}
		n := &Node{Name: "n", CPUMilli: 1, MemoryMiB: 1}
		for range rapid.IntRange(1, 3).Draw(t, "groups") {
			memory := rapid.Int64Range(2, 100_000).Draw(t, "memory")
			n.GPUs = append(n.GPUs, GPUGroup{
				Model: "m", Count: rapid.IntRange(1, 4).Draw(t, "count"),
				MemoryMiB: memory, ReservedMiB: rapid.Int64Range(0, memory-1).Draw(t, "reserved"),
			})
		}
		gpu := rapid.IntRange(0, n.GPUCount()-1)
		for range rapid.IntRange(0, 5).Draw(t, "processes") {
			p := Process{GPU: gpu.Draw(t, "gpu"), Utilization: rapid.Int32Range(0, 100).Draw(t, "utilization"), From: seconds("from")}
			group := n.group(p.GPU)
			p.MemoryMiB = rapid.Int64Range(0, (group.MemoryMiB-group.ReservedMiB)/5).Draw(t, "foreign")
			if rapid.Bool().Draw(t, "ends") {
				p.Until = p.From + time.Second + seconds("until")
			}
			n.Processes = append(n.Processes, p)
		}
		for range rapid.IntRange(0, 5).Draw(t, "events") {
			e := Event{GPU: gpu.Draw(t, "gpu"), At: seconds("at"),
				Kind: rapid.SampledFrom([]EventKind{EventXid, EventECC, EventLost, EventRecover}).Draw(t, "kind")}
			if e.Kind == EventXid {
				e.Code = rapid.IntRange(1, 150).Draw(t, "code")
			}
			n.Events = append(n.Events, e)
		}
		workload := Workload{
			MemoryFraction:     rapid.Float64Range(0, 3).Draw(t, "fraction"),
			GrowthMiBPerMinute: rapid.Int64Range(0, 10_000).Draw(t, "growth"),
		}
		if rapid.Bool().Draw(t, "utilization set") {
			workload.Utilization = ptr.To(rapid.Int32Range(0, 100).Draw(t, "utilization"))
		}
		s := &Scenario{Nodes: []Node{*n}, Workloads: []Workload{workload}}
		require.Empty(t, s.Validate())

		var pods []Pod
		for i := range rapid.IntRange(0, 6).Draw(t, "pods") {
			p := pod(fmt.Sprint(i), rapid.SliceOfN(gpu, 0, 4).Draw(t, "gpus")...)
			p.Milli, p.MiB = rapid.Int64Range(0, 1000).Draw(t, "milli"), rapid.Int64Range(0, 100_000).Draw(t, "mib")
			p.Since = seconds("since")
			if rapid.Bool().Draw(t, "override") {
				p.Overrides = Overrides{MemoryMiB: ptr.To(rapid.Int64Range(0, 1<<50).Draw(t, "memory"))}
			}
			pods = append(pods, p)
		}
		at := seconds("at")
		gpus := NewDevices(n, s.Workloads).Read(at, pods)
		require.Len(t, gpus, n.GPUCount())
		for i, g := range gpus {
			require.Equal(t, int32(i), g.Index)
			require.Equal(t, UUID("n", i), g.UUID)
			require.LessOrEqual(t, g.MemoryUsedMiB+g.MemoryReservedMiB, g.MemoryTotalMiB)
			require.GreaterOrEqual(t, g.MemoryForeignMiB, int64(0))
			require.LessOrEqual(t, g.MemoryForeignMiB, g.MemoryUsedMiB)
			require.True(t, g.Utilization >= 0 && g.Utilization <= 100, g.Utilization)
			require.Equal(t, g.Healthy, g.UnhealthyReason == "")
			used, utilization := g.MemoryForeignMiB, int32(0)
			for _, p := range g.Pods {
				require.GreaterOrEqual(t, p.MemoryUsedMiB, int64(0))
				used += p.MemoryUsedMiB
				utilization += p.Utilization
			}
			require.Equal(t, g.MemoryUsedMiB, used)
			require.LessOrEqual(t, utilization, g.Utilization)
		}

		// The order in which pods are given makes no difference, nor does an earlier reading.
		d := NewDevices(n, s.Workloads)
		d.Read(0, nil)
		require.Equal(t, gpus, d.Read(at, rapid.Permutation(pods).Draw(t, "order")))
	})
}
