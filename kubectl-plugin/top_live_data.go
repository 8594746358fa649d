// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/kubectl-plugin/livecache"
)

// poolLabels are where node pools have their name, the first that a node has.
var poolLabels = []string{
	"cloud.google.com/gke-nodepool", "eks.amazonaws.com/nodegroup", "kubernetes.azure.com/agentpool", "karpenter.sh/nodepool",
	"node.kubernetes.io/instance-type",
}

// historySamples is how many readings a history has, one each historyEvery.
const (
	historySamples = 24
	historyEvery   = 5 * time.Second
)

// history is the utilisation of late, in percent.
type history struct {
	samples [historySamples]uint8
	// count is how many samples there are, the latest last.
	count uint8
}

func (h *history) add(percent int) {
	if h.count == historySamples {
		copy(h.samples[:], h.samples[1:])
		h.count--
	}
	h.samples[h.count] = uint8(min(100, max(0, percent)))
	h.count++
}

// steps are the glyphs of a history, from idle to busy.
var steps = []rune("▁▂▃▄▅▆▇█")

// draw returns the latest samples in that many characters, right-aligned.
func (h *history) draw(chars int) string {
	out := make([]rune, 0, chars)
	shown := min(chars, int(h.count))
	for range chars - shown {
		out = append(out, ' ')
	}
	for _, s := range h.samples[int(h.count)-shown : h.count] {
		out = append(out, steps[(int(s)*(len(steps)-1)+50)/100])
	}
	return string(out)
}

// liveNode is a node of the live view.
type liveNode struct {
	NodeUsage
	key, pool string
	pods      []livePod
	history   history
	// gpuHistory is that of each of the GPUs, in their order.
	gpuHistory []history
}

// livePod is a pod of the live view. Its node is nil while it waits for one.
type livePod struct {
	PodUsage
	node *liveNode
}

// liveData is what the live view knows of the cluster.
type liveData struct {
	view     viewOptions
	selected bool // only nodes that a selector chose
	nodes    map[string]*liveNode
	pending  []livePod
	totals   Totals
	history  history
	// measured are the GPUs that Prometheus tells of, as telemetry of nodes without an agent.
	measured map[string]*v1alpha1.GPUNode
}

func newLiveData(view viewOptions, selected bool) *liveData {
	return &liveData{view: view, selected: selected, nodes: map[string]*liveNode{}}
}

// set takes over what is known of a node; of the pods without one, where the name is empty.
func (d *liveData) set(now time.Time, name string, node *corev1.Node, gn *v1alpha1.GPUNode, pods []*livecache.Pod) {
	objects := make([]convert.Pod, len(pods))
	for i, p := range pods {
		objects[i] = convert.Pod{Pod: p.Object(), GPUs: p.GPUs}
	}
	if name == "" {
		d.pending = d.pending[:0]
		for _, o := range objects {
			d.pending = append(d.pending, livePod{PodUsage: (&NodeUsage{}).onePod(o.Pod)})
		}
		return
	}
	if gn == nil || len(gn.Status.GPUs) == 0 {
		if measured := d.measured[name]; measured != nil {
			gn = attribute(measured, objects)
		}
	}
	if node == nil && (gn == nil || d.selected) || gn == nil && capacity(node) == 0 && len(pods) == 0 {
		delete(d.nodes, name)
		return
	}
	n := d.nodes[name]
	if n == nil {
		n = &liveNode{key: "n/" + name}
		d.nodes[name] = n
	}
	n.NodeUsage = (&snapshot{now: now}).oneNode(node, gn, objects, d.view)
	n.pool = ""
	if node != nil {
		for _, label := range poolLabels {
			if n.pool = node.Labels[label]; n.pool != "" {
				break
			}
		}
	}
	if len(n.gpuHistory) != len(n.GPUs) {
		n.gpuHistory = make([]history, len(n.GPUs))
		for i := range n.GPUs {
			n.gpuHistory[i].add(n.GPUs[i].Utilization)
		}
		n.history = history{}
		n.history.add(n.Utilization)
	}
	n.pods = n.pods[:0]
	for _, o := range objects {
		n.pods = append(n.pods, livePod{PodUsage: n.onePod(o.Pod), node: n})
	}
}

// sum counts all nodes anew.
func (d *liveData) sum() {
	var t totalizer
	for _, n := range d.nodes {
		t.count(&n.NodeUsage)
	}
	d.totals = t.totals()
}

// sample adds what is now to the histories.
func (d *liveData) sample() {
	for _, n := range d.nodes {
		if len(n.GPUs) == 0 {
			continue
		}
		n.history.add(n.Utilization)
		for i := range n.GPUs {
			n.gpuHistory[i].add(n.GPUs[i].Utilization)
		}
	}
	d.history.add(d.totals.Utilization)
}

// aged returns the nodes whose telemetry has become stale since they were set.
func (d *liveData) aged(now time.Time) []string {
	var names []string
	for name, n := range d.nodes {
		if n.Telemetry == TelemetryFresh && n.ObservedTime != nil && now.Sub(n.ObservedTime.Time) > d.view.staleAfter {
			names = append(names, name)
		}
	}
	return names
}
