// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"fmt"
	"iter"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
	"github.com/gpupack/gpupack/plugins/config"
)

// clusters is a policy that remembers each cluster that it is told of.
type clusters struct {
	policy.BestFit
	told []map[pack.Shape]int
}

func (c *clusters) SetCluster(states iter.Seq2[*pack.Shape, int]) func(*pack.Shape) bool {
	cluster := map[pack.Shape]int{}
	for shape, nodes := range states {
		cluster[*shape] += nodes
	}
	c.told = append(c.told, cluster)
	return nil
}

// withNodes makes a plugin that knows of nodes with eight GPUs each.
func withNodes(t testing.TB, nodes int, chosen pack.Policy) (*Plugin, []fwk.NodeInfo) {
	p := &Plugin{
		args: &config.GPUPackArgs{StaleAfter: metav1.Duration{Duration: time.Hour}}, clock: clocktesting.NewFakeClock(time.Now()),
		chooser: pack.Chooser{Policy: chosen, Limits: pack.Limits{WholeForeignMiB: 512}}, ledger: newLedger(), telemetry: newTelemetry(chosen),
	}
	p.telemetry.byKey = map[types.NamespacedName]*v1alpha1.GPUNode{}
	var infos []fwk.NodeInfo
	for i := range nodes {
		name := fmt.Sprintf("node-%d", i)
		gn := reading(name, 1, "A100", "A100", "A100", "A100", "A100", "A100", "A100", "A100")
		now := metav1.NewMicroTime(p.clock.Now())
		gn.Status.ObservedTime, gn.Status.Mode = &now, v1alpha1.ModeManage
		p.telemetry.set(gn)
		resources := corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("64Gi"), v1alpha1.ResourceGPU: resource.MustParse("8"),
		}
		info := framework.NewNodeInfo()
		info.SetNode(&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Capacity: resources, Allocatable: resources},
		})
		infos = append(infos, info)
	}
	return p, infos
}

// place puts a pod with one whole GPU on a node, as the framework's assume does.
func place(t testing.TB, p *Plugin, info fwk.NodeInfo, uid string, gpu int) {
	name := info.Node().Name
	uuid := fmt.Sprintf("%s-%d", name, gpu)
	podInfo, err := framework.NewPodInfo(gpuPod(uid, name, ""))
	require.NoError(t, err)
	info.AddPodInfo(podInfo)
	p.ledger.put(&entry{uid: types.UID(uid), node: name, gpus: []string{uuid}, phase: assumed})
}

func TestClusterIsToldWhenEnoughHasChanged(t *testing.T) {
	var told clusters
	p, infos := withNodes(t, 200, &told)
	total := func() (nodes int, free int64) {
		for shape, n := range told.told[len(told.told)-1] {
			nodes += n
			free += int64(n) * shape.Free()
		}
		return nodes, free
	}
	p.tellCluster(p.update(infos))
	p.tellCluster(p.update(infos))
	require.Len(t, told.told, 1, "nothing has changed")
	nodes, free := total()
	assert.Equal(t, 200, nodes)
	assert.Equal(t, int64(1_600_000), free)
	assert.Len(t, told.told[0], 1, "all nodes are in one state")

	// A four-hundredth of 1600 GPUs.
	for i := range 3 {
		place(t, p, infos[i], fmt.Sprint(i), 0)
		p.tellCluster(p.update(infos))
	}
	require.Len(t, told.told, 1)
	place(t, p, infos[3], "3", 0)
	p.tellCluster(p.update(infos))
	require.Len(t, told.told, 2)
	_, free = total()
	assert.Equal(t, int64(1_596_000), free)
	assert.Len(t, told.told[1], 2)

	// Telemetry and nodes that come count as well.
	p.tellCluster(p.update(infos[:199]))
	require.Len(t, told.told, 3)
	sick := p.telemetry.get("node-9").DeepCopy()
	sick.ResourceVersion = "2"
	for i := range sick.Status.GPUs {
		sick.Status.GPUs[i].Healthy = false
	}
	p.telemetry.set(sick)
	p.tellCluster(p.update(infos[:199]))
	require.Len(t, told.told, 4)
	_, free = total()
	assert.Equal(t, int64(199*8-4-8)*1000, free)
}

// A policy that does not look at the cluster costs nothing.
func TestClusterIsNotToldToOthers(t *testing.T) {
	p, _ := withNodes(t, 1, policy.BestFit{})
	p.tellCluster(nil)
}

func BenchmarkTellCluster(b *testing.B) {
	p, infos := withNodes(b, 5000, &clusters{})
	p.tellCluster(p.update(infos))
	for b.Loop() {
		p.tellCluster(p.update(infos))
	}
}
