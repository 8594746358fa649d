// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	podgroupv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

func createdBefore(d time.Duration) func(*podgroupv1alpha1.PodGroup) {
	return func(g *podgroupv1alpha1.PodGroup) { g.CreationTimestamp = before(d) }
}

func groupWith(namespace, name string, minMember int32, mutate ...func(*podgroupv1alpha1.PodGroup)) *podgroupv1alpha1.PodGroup {
	g := podGroup(namespace, name, minMember)
	for _, m := range mutate {
		m(g)
	}
	return g
}

func groupAnnotated(key, value string) func(*podgroupv1alpha1.PodGroup) {
	return func(g *podgroupv1alpha1.PodGroup) { g.Annotations = map[string]string{key: value} }
}

// gangFleet has a gang that runs, in the domains of its topology, and gangs that wait for one thing each.
func gangFleet() []client.Object {
	objects := fleet()
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Node:
			o.Labels["topology.kubernetes.io/rack"] = map[string]string{"gpu-a100-01": "r1", "gpu-a100-02": "r2"}[o.Name]
		case *podgroupv1alpha1.PodGroup:
			o.CreationTimestamp = before(27 * time.Minute)
			o.Annotations = map[string]string{v1alpha1.AnnotationTopology: "rack"}
		case *corev1.Pod:
			if gangOf(o) == "llama" {
				o.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue,
					LastTransitionTime: before(26*time.Minute - 12*time.Second)}}
			}
		}
	}
	objects = append(objects,
		groupWith("research", "vla", 3, createdBefore(14*time.Minute)),
		groupWith("research", "half", 4, createdBefore(3*time.Hour)),
		groupWith("research", "typo", 1, groupAnnotated(v1alpha1.AnnotationTopology, "rock"), createdBefore(time.Minute)),
		groupWith("research", "pray", 1, groupAnnotated(v1alpha1.AnnotationOnMemberLoss, "pray"), createdBefore(time.Minute)),
		groupWith("research", "gated", 1, createdBefore(time.Minute)),
		groupWith("research", "room", 1, createdBefore(2*time.Second)),
		groupWith("research", "gone", 2, createdBefore(26*time.Hour), func(g *podgroupv1alpha1.PodGroup) {
			g.Status.Phase = podgroupv1alpha1.PodGroupFinished
		}),
		pod("research", "half-0", asks(v1alpha1.ResourceGPU, "1"), inGang("half")),
		pod("research", "orphan-0", asks(v1alpha1.ResourceGPU, "1"), inGang("nobody")),
		pod("research", "typo-0", asks(v1alpha1.ResourceGPU, "1"), inGang("typo")),
		pod("research", "pray-0", asks(v1alpha1.ResourceGPU, "1"), inGang("pray")),
		pod("research", "room-0", asks(v1alpha1.ResourceGPU, "1"), inGang("room")),
		pod("research", "gated-0", asks(v1alpha1.ResourceGPU, "1"), inGang("gated"), func(p *corev1.Pod) {
			p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/quota"}}
		}),
	)
	for _, name := range []string{"vla-0", "vla-1", "vla-2"} {
		objects = append(objects, pod("research", name, asks(v1alpha1.ResourceGPU, "4"), inGang("vla")))
	}
	return objects
}

func TestGangsGolden(t *testing.T) {
	for _, width := range []string{"80", "100", "160"} {
		t.Run(width, func(t *testing.T) {
			t.Setenv("COLUMNS", width)
			got := invoke(t, cluster(t, gangFleet()), "gangs", "-A")
			require.Equal(t, exitOK, got.code, got.err)
			assert.Empty(t, got.err)
			golden(t, "gangs-"+width, got.out)
		})
	}
	t.Run("wide", func(t *testing.T) {
		got := invoke(t, cluster(t, gangFleet()), "gangs", "-n", "research", "-o", "wide")
		require.Equal(t, exitOK, got.code, got.err)
		golden(t, "gangs-wide", got.out)
	})
}

func gangItems(t *testing.T, r client.Reader, args ...string) map[string]GangState {
	t.Helper()
	got := invoke(t, r, append([]string{"gangs", "-o", "json"}, args...)...)
	require.Equal(t, exitOK, got.code, got.err)
	var answer Gangs
	require.NoError(t, json.Unmarshal([]byte(got.out), &answer))
	out := map[string]GangState{}
	for _, g := range answer.Items {
		out[g.Name] = g
	}
	return out
}

func TestGangsSayWhatTheyWaitFor(t *testing.T) {
	items := gangItems(t, cluster(t, gangFleet()), "-n", "research")
	for name, want := range map[string]string{
		"llama":  "",
		"gone":   "",
		"vla":    "1 of the 3 members needed fit at once; no node for another that asks for 4 GPUs",
		"half":   "3 more members to be created (1 of 4 exist)",
		"nobody": "PodGroup nobody does not exist in namespace research",
		"typo":   `its topology "rock" is none of the scheduler's topologyDomains`,
		"pray":   "annotation gpupack.dev/on-member-loss of \"pray\": write restart-gang, replace-member or ignore",
		"gated":  "member gated-0 is held back by the scheduling gate example.com/quota",
		"room":   "the scheduler, though there is room",
	} {
		if want == "" {
			assert.Empty(t, items[name].WaitsFor, name)
		} else {
			assert.Contains(t, items[name].WaitsFor, want, name)
		}
	}
	assert.Equal(t, []GangDomain{{"r1", 1}, {"r2", 1}}, items["llama"].Domains)
	assert.Equal(t, int64(72), items["llama"].WaitSeconds, "until its second member had a node")
	assert.Equal(t, podgroupv1alpha1.PodGroupRunning, items["llama"].Phase)
	assert.Equal(t, podgroupv1alpha1.PodGroupFinished, items["gone"].Phase)
	assert.Equal(t, int64(14*60), items["vla"].WaitSeconds)
}

// What is said to let a gang in does so.
func TestGangsFixes(t *testing.T) {
	r := cluster(t, gangFleet())
	vla := gangItems(t, r, "-n", "research", "vla")["vla"]
	require.NotEmpty(t, vla.Fixes)
	assert.Contains(t, vla.Fixes[0], "gke-production-europe-west4-a100-pool-7-1b2c3d4e-x9zk uncordoned")

	objects := gangFleet()
	for _, o := range objects {
		if n, ok := o.(*corev1.Node); ok {
			n.Spec.Unschedulable = false
		}
	}
	vla = gangItems(t, cluster(t, objects), "-n", "research", "vla")["vla"]
	assert.Contains(t, vla.WaitsFor, "the scheduler, though there is room")
	assert.Empty(t, vla.Fixes)

	// A gang larger than the cluster.
	objects = append(gangFleet(), groupWith("research", "vast", 9))
	for i := range 9 {
		objects = append(objects, pod("research", "vast-"+string(rune('0'+i)), asks(v1alpha1.ResourceGPU, "8"), inGang("vast")))
	}
	vast := gangItems(t, cluster(t, objects), "-n", "research", "vast")["vast"]
	assert.Equal(t, []string{"9 more nodes like gke-production-europe-west4-a100-pool-7-1b2c3d4e-x9zk (8 x A100-SXM4-80GB)"}, vast.Fixes)
}

func TestGangsNames(t *testing.T) {
	r := cluster(t, gangFleet())
	assert.Equal(t, result{exitOK, "podgroup.scheduling.x-k8s.io/llama\n", ""}, invoke(t, r, "gangs", "-n", "research", "llama", "-o", "name"))
	assert.Equal(t, result{exitError, "", "error: PodGroup \"nope\" not found\n"}, invoke(t, r, "gangs", "-n", "research", "nope"))
	none := invoke(t, r, "gangs", "-n", "serving")
	assert.Equal(t, exitOK, none.code)
	assert.Contains(t, none.err, "No gangs found in namespace serving: a gang is a PodGroup and the pods with its name in the label scheduling.x-k8s.io/pod-group.")
}

func TestGangsWithoutPodGroups(t *testing.T) {
	objects := []client.Object{node("n", 1), gpuNode("n", "T4", 1, 15360), pod("default", "a-0", asks(v1alpha1.ResourceGPU, "1"), inGang("a"))}
	items := gangItems(t, cluster(t, objects, "PodGroup"))
	assert.Equal(t, "PodGroup a does not exist in namespace default", items["a"].WaitsFor)
}

// A gang that must be in one domain waits for room in one, however much there is in all.
func TestGangsKeepToTheirDomain(t *testing.T) {
	in := func(key, domain string) func(*corev1.Node) { return func(n *corev1.Node) { n.Labels[key] = domain } }
	for label, args := range map[string][]string{
		"topology.kubernetes.io/rack": nil,
		"example.com/rack":            {"--topology-domains", "rack=example.com/rack"},
	} {
		objects := []client.Object{
			node("a", 8, in(label, "r1")), node("b", 8, in(label, "r2")),
			gpuNode("a", "H100", 8, 81920), gpuNode("b", "H100", 8, 81920),
			groupWith("default", "train", 2, groupAnnotated(v1alpha1.AnnotationTopologyRequired, "rack")),
			pod("default", "train-0", asks(v1alpha1.ResourceGPU, "8"), inGang("train")),
			pod("default", "train-1", asks(v1alpha1.ResourceGPU, "8"), inGang("train")),
		}
		train := gangItems(t, cluster(t, objects), args...)["train"]
		assert.Contains(t, train.WaitsFor, "rack r1 has room for 1 of the 2 members needed", label)
		assert.Contains(t, train.Fixes, "1 more node like a (8 x H100)", label)
	}
}
