// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

// apiVersion is that of what -o json and yaml print. Fields are added to it, but none is renamed or removed. No API server
// serves these kinds.
const apiVersion = "cli.gpupack.dev/v1alpha1"

// Telemetry says how much a node's figures are worth.
type Telemetry string

// Kinds of telemetry.
const (
	TelemetryFresh   Telemetry = "fresh"
	TelemetryStale   Telemetry = "stale"
	TelemetryInvalid Telemetry = "invalid"
	TelemetryNone    Telemetry = "none"
)

// Memory is device memory of a GPU, or of several, in MiB.
type Memory struct {
	TotalMiB int64 `json:"memoryTotalMiB"`
	// ReservedMiB is what the driver keeps for itself.
	ReservedMiB int64 `json:"memoryReservedMiB"`
	// RequestedMiB was promised to pods.
	RequestedMiB int64 `json:"memoryRequestedMiB"`
	// UsedMiB is what all processes use.
	UsedMiB int64 `json:"memoryUsedMiB"`
	// ForeignMiB is the part of UsedMiB that belongs to no pod.
	ForeignMiB int64 `json:"memoryForeignMiB"`
	// FreeMiB is what new pods can have: total - reserved - foreign - the larger of requested and used of each pod; 0 for a
	// sick or cordoned GPU.
	FreeMiB int64 `json:"memoryFreeMiB"`
	// sickMiB would be free if the GPU were neither.
	sickMiB int64
}

func (m *Memory) add(o *Memory) {
	m.TotalMiB += o.TotalMiB
	m.ReservedMiB += o.ReservedMiB
	m.RequestedMiB += o.RequestedMiB
	m.UsedMiB += o.UsedMiB
	m.ForeignMiB += o.ForeignMiB
	m.FreeMiB += o.FreeMiB
	m.sickMiB += o.sickMiB
}

// NodeUsage is an item of TopNodes.
type NodeUsage struct {
	Node string `json:"node"`
	// Exists is false where there is telemetry of a node that the API does not have.
	Exists   bool   `json:"exists"`
	Ready    bool   `json:"ready"`
	Cordoned bool   `json:"cordoned"`
	Model    string `json:"model"`
	// Telemetry says how much the figures are worth. With "none" or "invalid" they are those of the API alone: GPUCount is
	// what the node advertises, GPUsHeld counts whole GPUs.
	Telemetry    Telemetry         `json:"telemetry"`
	ObservedTime *metav1.MicroTime `json:"observedTime,omitempty"`
	Mode         v1alpha1.Mode     `json:"mode,omitempty"`
	Source       v1alpha1.Source   `json:"source,omitempty"`
	Driver       string            `json:"driverVersion,omitempty"`
	GPUCount     int               `json:"gpuCount"`
	GPUsHealthy  int               `json:"gpusHealthy"`
	// GPUsHeld counts the GPUs that pods hold, whole or a share.
	GPUsHeld int `json:"gpusHeld"`
	Memory   `json:",inline"`
	// Utilization is the mean of the node's GPUs, percent.
	Utilization int        `json:"utilization"`
	PodCount    int        `json:"podCount"`
	Notes       []string   `json:"notes"`
	GPUs        []GPUUsage `json:"gpus"`

	notes []span
}

// GPUUsage is an item of TopGPUs, and a GPU of a NodeUsage.
type GPUUsage struct {
	Node   string `json:"node"`
	Index  int    `json:"index"`
	UUID   string `json:"uuid"`
	Model  string `json:"model"`
	Memory `json:",inline"`
	// Utilization is percent, as are all of that name.
	Utilization        int    `json:"utilization"`
	PowerMilliwatts    int64  `json:"powerMilliwatts,omitempty"`
	TemperatureCelsius int32  `json:"temperatureCelsius,omitempty"`
	Healthy            bool   `json:"healthy"`
	UnhealthyReason    string `json:"unhealthyReason,omitempty"`
	UnhealthyMessage   string `json:"unhealthyMessage,omitempty"`
	// Cordoned is who wants no new pods on the GPU, and why; absent where nobody does.
	Cordoned *v1alpha1.CordonedGPU `json:"cordoned,omitempty"`
	Pods     []Share               `json:"pods"`

	freeMilli int64
	telemetry Telemetry
	observed  *metav1.MicroTime
	usable    bool
}

// Share is one pod's hold on one GPU.
type Share struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	// RequestedMilli is the compute promised, milli-GPU; 1000 for a whole GPU, 0 for a share that asks for memory alone.
	RequestedMilli int64 `json:"computeRequestedMilli"`
	RequestedMiB   int64 `json:"memoryRequestedMiB"`
	UsedMiB        int64 `json:"memoryUsedMiB"`
	Utilization    int   `json:"utilization"`
	// Gone is true for a pod that the API does not have or that has ended, while the agent still sees its processes.
	Gone bool `json:"gone,omitempty"`
}

// viewOptions are the figures by which the scheduler decides too.
type viewOptions struct {
	staleAfter time.Duration
	// wholeForeignMiB is how much memory of no pod a GPU may have and still be given whole.
	wholeForeignMiB int64
}

func (s *snapshot) convertOptions(o viewOptions) convert.Options {
	return convert.Options{StaleAfter: o.staleAfter, StalePolicy: convert.StaleTrustRequests, Now: s.now}
}

// nodeUsage is the state of each node that has GPUs, by name. With ofNodes, telemetry without a node that was read is left
// out.
func (s *snapshot) nodeUsage(o viewOptions, ofNodes bool) []NodeUsage {
	pods := s.podsByNode()
	var out []NodeUsage
	known := make(map[string]bool, len(s.nodes))
	for i := range s.nodes {
		node := &s.nodes[i]
		known[node.Name] = true
		gn := s.gpuNode(node.Name)
		if gn == nil && capacity(node) == 0 && len(pods[node.Name]) == 0 {
			continue
		}
		out = append(out, s.oneNode(node, gn, pods[node.Name], o))
	}
	if ofNodes {
		return out
	}
	for i := range s.gpuNodes {
		gn := &s.gpuNodes[i]
		if !known[gn.Name] {
			out = append(out, s.oneNode(nil, gn, pods[gn.Name], o))
		}
	}
	slices.SortFunc(out, func(a, b NodeUsage) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

// productLabel is where NVIDIA's GPU feature discovery writes the model of a node's GPUs.
const productLabel = "nvidia.com/gpu.product"

func capacity(node *corev1.Node) int64 {
	q := node.Status.Capacity[v1alpha1.ResourceGPU]
	return q.Value()
}

func (s *snapshot) oneNode(node *corev1.Node, gn *v1alpha1.GPUNode, pods []convert.Pod, o viewOptions) NodeUsage {
	u := NodeUsage{GPUs: []GPUUsage{}, Notes: []string{}, Telemetry: TelemetryNone, PodCount: len(pods)}
	if node == nil {
		node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: gn.Name}}
	} else {
		u.Exists, u.Ready, u.Cordoned = true, nodeIsReady(node), node.Spec.Unschedulable
	}
	u.Node = node.Name
	opts := s.convertOptions(o)
	state := convert.Node(node, gn, pods, opts)
	if gn != nil {
		u.Telemetry, u.ObservedTime, u.Mode = TelemetryFresh, gn.Status.ObservedTime, gn.Status.Mode
		u.Source, u.Driver = gn.Status.Source, gn.Status.DriverVersion
		if state.Problem == pack.ReasonInvalidTelemetry {
			u.Telemetry = TelemetryInvalid
		} else if convert.IsStale(gn, &opts) {
			u.Telemetry = TelemetryStale
		}
	}
	if len(state.GPUs) == 0 {
		u.fromAPI(node, pods)
	} else {
		u.fromTelemetry(s, state, gn, pods, o)
	}
	u.setNotes(s, gn)
	return u
}

// fromAPI fills in what is known without telemetry.
func (u *NodeUsage) fromAPI(node *corev1.Node, pods []convert.Pod) {
	u.GPUCount = int(capacity(node))
	u.GPUsHealthy = u.GPUCount
	u.Model = node.Labels[productLabel]
	for _, p := range pods {
		if r, err := convert.Request(p.Pod); err == nil {
			u.GPUsHeld += r.GPUs
			u.RequestedMiB += r.MiB
		}
	}
}

func (u *NodeUsage) fromTelemetry(s *snapshot, state *pack.Node, gn *v1alpha1.GPUNode, pods []convert.Pod, o viewOptions) {
	byUID := make(map[string]*corev1.Pod, len(pods))
	for _, p := range pods {
		byUID[string(p.Pod.UID)] = p.Pod
	}
	readings := make(map[string]*v1alpha1.GPU, len(gn.Status.GPUs))
	for i := range gn.Status.GPUs {
		readings[gn.Status.GPUs[i].UUID] = &gn.Status.GPUs[i]
	}
	busy := 0
	for i := range state.GPUs {
		g := oneGPU(&state.GPUs[i], readings[state.GPUs[i].UUID], byUID)
		g.Node, g.telemetry, g.observed = u.Node, u.Telemetry, u.ObservedTime
		if g.Cordoned = gn.Spec.Cordon(g.UUID); g.Cordoned != nil && g.Healthy {
			g.sickMiB, g.FreeMiB = g.FreeMiB, 0
		}
		g.usable = u.Exists && u.Ready && !u.Cordoned && u.Telemetry == TelemetryFresh &&
			convert.TakesPods(gn, readings[g.UUID]) && g.ForeignMiB <= o.wholeForeignMiB
		u.GPUCount++
		if g.Healthy {
			u.GPUsHealthy++
		}
		if len(g.Pods) > 0 {
			u.GPUsHeld++
		}
		busy += g.Utilization
		u.Memory.add(&g.Memory)
		switch u.Model {
		case "", g.Model:
			u.Model = g.Model
		default:
			u.Model = "mixed"
		}
		u.GPUs = append(u.GPUs, g)
	}
	u.Utilization = (busy + u.GPUCount/2) / u.GPUCount
}

// oneGPU joins the state by which the scheduler decides with the reading of the agent.
func oneGPU(g *pack.GPU, reading *v1alpha1.GPU, pods map[string]*corev1.Pod) GPUUsage {
	u := GPUUsage{
		Index: g.Index, UUID: g.UUID, Model: g.Model,
		Memory: Memory{
			TotalMiB: g.TotalMiB, ReservedMiB: g.ReservedMiB, RequestedMiB: g.RequestedMiB(),
			UsedMiB: reading.MemoryUsedMiB, ForeignMiB: g.ForeignMiB, FreeMiB: g.FreeMiB(),
		},
		Utilization:     g.Utilization,
		PowerMilliwatts: reading.PowerMilliwatts, TemperatureCelsius: reading.TemperatureCelsius,
		Healthy: reading.Healthy, UnhealthyReason: string(reading.UnhealthyReason), UnhealthyMessage: reading.UnhealthyMessage,
		Pods: make([]Share, 0, len(g.Tenants)), freeMilli: g.FreeMilli(),
	}
	if !u.Healthy {
		u.sickMiB, u.FreeMiB = u.FreeMiB, 0
	}
	for i := range g.Tenants {
		t := &g.Tenants[i]
		share := Share{UID: types.UID(t.ID), RequestedMilli: t.Milli, RequestedMiB: t.RequestedMiB, UsedMiB: t.UsedMiB}
		for j := range reading.Pods {
			if p := &reading.Pods[j]; p.UID == share.UID {
				share.Namespace, share.Name, share.Utilization = p.Namespace, p.Name, int(p.Utilization)
				share.UsedMiB = p.MemoryUsedMiB
			}
		}
		if pod := pods[t.ID]; pod != nil {
			share.Namespace, share.Name = pod.Namespace, pod.Name
		} else {
			share.Gone = true
		}
		u.Pods = append(u.Pods, share)
	}
	slices.SortFunc(u.Pods, func(a, b Share) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return u
}

// setNotes says what a person should know of the node, the worst first.
func (u *NodeUsage) setNotes(s *snapshot, gn *v1alpha1.GPUNode) {
	add := func(st style, format string, args ...any) {
		u.notes = append(u.notes, span{fmt.Sprintf(format, args...), st})
		u.Notes = append(u.Notes, u.notes[len(u.notes)-1].text)
	}
	switch {
	case !u.Exists:
		add(bad, "no Node")
	case !u.Ready:
		add(bad, "not ready")
	}
	if u.Cordoned {
		add(warn, "cordoned")
	}
	switch u.Telemetry {
	case TelemetryNone:
		add(warn, "no telemetry")
	case TelemetryInvalid:
		add(bad, "invalid telemetry")
	case TelemetryStale:
		if u.ObservedTime == nil {
			add(warn, "never read")
		} else {
			add(warn, "stale %s", duration.HumanDuration(s.age(metav1.Time{Time: u.ObservedTime.Time})))
		}
	}
	if gn != nil && u.Telemetry == TelemetryFresh && len(gn.Status.GPUs) == 0 {
		add(warn, "agent sees no GPU")
	}
	sick := map[string]int{}
	var order []string
	for i := range u.GPUs {
		if g := &u.GPUs[i]; !g.Healthy {
			why := g.shortHealth()
			if sick[why]++; sick[why] == 1 {
				order = append(order, why)
			}
		}
	}
	for _, why := range order {
		add(bad, "%d sick: %s", sick[why], why)
	}
	var cordoned []int
	for i := range u.GPUs {
		if g := &u.GPUs[i]; g.Cordoned != nil {
			cordoned = append(cordoned, g.Index)
		}
	}
	if len(cordoned) > 0 {
		add(warn, "GPU %s cordoned", joinIndices(cordoned))
	}
	if u.ForeignMiB >= foreignNoteMiB {
		add(warn, "%s foreign", gib(u.ForeignMiB))
	}
	over := 0
	for i := range u.GPUs {
		for _, p := range u.GPUs[i].Pods {
			if p.over() {
				over++
			}
		}
	}
	if over > 0 {
		add(warn, "%d over request", over)
	}
}

// foreignNoteMiB is the foreign memory from which it is worth a note: what costs a GPU its pods that want it whole.
const foreignNoteMiB = pack.DefaultWholeForeignMiB

// shortHealth is the reason for which a GPU is sick in one or two words, such as "Xid 79".
func (g *GPUUsage) shortHealth() string {
	if head, _, ok := strings.Cut(g.UnhealthyMessage, ":"); ok && len(head) <= 20 &&
		strings.HasPrefix(head, g.UnhealthyReason) {
		return head
	}
	return cmp.Or(g.UnhealthyReason, "unhealthy")
}

// over says whether the pod uses clearly more memory than it asked for: by more than 1 % and 64 MiB, which is what a
// driver's context makes a share exceed by chance.
func (p *Share) over() bool {
	return !p.Gone && p.RequestedMiB > 0 && p.UsedMiB-p.RequestedMiB > max(64, p.RequestedMiB/100)
}

// Totals are the sums of a TopNodes or TopGPUs.
type Totals struct {
	Nodes       int `json:"nodes"`
	GPUs        int `json:"gpus"`
	GPUsHealthy int `json:"gpusHealthy"`
	GPUsSick    int `json:"gpusSick"`
	GPUsHeld    int `json:"gpusHeld"`
	// GPUsFreeWhole counts the GPUs that no pod holds and that a pod could be given whole.
	GPUsFreeWhole int `json:"gpusFreeWhole"`
	// GPUsStranded counts the GPUs that no pod holds and that no pod could be given: sick, cordoned, taken by processes of no pod, or on
	// a node that is cordoned, not ready, or without fresh telemetry.
	GPUsStranded int `json:"gpusStranded"`
	Memory       `json:",inline"`
	// Utilization is the mean of all GPUs with telemetry, percent.
	Utilization int `json:"utilization"`
	Pods        int `json:"pods"`
}

func totals(nodes []NodeUsage) Totals {
	var t totalizer
	for i := range nodes {
		t.count(&nodes[i])
	}
	return t.totals()
}

// totalizer sums up nodes.
type totalizer struct {
	Totals
	// busy is the sum of the utilisation of that many GPUs that were read.
	busy, read int
}

func (t *totalizer) count(n *NodeUsage) {
	t.Nodes++
	t.GPUs += n.GPUCount
	t.GPUsHealthy += n.GPUsHealthy
	t.GPUsHeld += n.GPUsHeld
	t.Pods += n.PodCount
	t.Memory.add(&n.Memory)
	if len(n.GPUs) == 0 {
		t.GPUsStranded += max(0, n.GPUCount-n.GPUsHeld)
	}
	for j := range n.GPUs {
		g := &n.GPUs[j]
		t.busy += g.Utilization
		t.read++
		switch {
		case len(g.Pods) > 0:
		case g.usable:
			t.GPUsFreeWhole++
		default:
			t.GPUsStranded++
		}
	}
}

func (t *totalizer) totals() Totals {
	out := t.Totals
	out.GPUsSick = out.GPUs - out.GPUsHealthy
	if t.read > 0 {
		out.Utilization = (t.busy + t.read/2) / t.read
	}
	return out
}

// PodUsage is an item of TopPods.
type PodUsage struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	Node      string    `json:"node"`
	Phase     string    `json:"phase"`
	// Request is what the pod asks for, in words.
	Request string   `json:"request"`
	GPUs    []PodGPU `json:"gpus"`
	// GPUCount is the number of GPUs that it holds, also where it is not known which.
	GPUCount     int   `json:"gpuCount"`
	RequestedMiB int64 `json:"memoryRequestedMiB"`
	UsedMiB      int64 `json:"memoryUsedMiB"`
	// OverMiB is by how much it uses more than it requested; 0 if it does not.
	OverMiB int64 `json:"memoryOverMiB"`
	// Utilization is the mean over its GPUs of what it uses of each, percent.
	Utilization       int         `json:"utilization"`
	Gang              string      `json:"gang,omitempty"`
	CreationTimestamp metav1.Time `json:"creationTimestamp"`

	telemetry Telemetry
}

// PodGPU is a GPU that a pod holds, in whole or in part.
type PodGPU struct {
	UUID         string `json:"uuid"`
	Index        int    `json:"index"`
	RequestedMiB int64  `json:"memoryRequestedMiB"`
	UsedMiB      int64  `json:"memoryUsedMiB"`
	Utilization  int    `json:"utilization"`
}

// podUsage is what each pod that holds GPUs does with them. The pods of the snapshot need not be all of their nodes' pods.
func (s *snapshot) podUsage(o viewOptions) []PodUsage {
	var out []PodUsage
	usage := map[string]*NodeUsage{}
	pods := s.podsByNode()
	for i := range s.pods {
		pod := &s.pods[i]
		if !convert.HoldsGPUs(pod) {
			continue
		}
		name := pod.Spec.NodeName
		if usage[name] == nil {
			n := s.oneNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, s.gpuNode(name), pods[name], o)
			usage[name] = &n
		}
		out = append(out, usage[name].onePod(pod))
	}
	return out
}

func (u *NodeUsage) onePod(pod *corev1.Pod) PodUsage {
	p := PodUsage{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Node: pod.Spec.NodeName, Phase: string(pod.Status.Phase),
		GPUs: []PodGPU{}, Gang: gangOf(pod), CreationTimestamp: pod.CreationTimestamp, telemetry: u.Telemetry,
	}
	r, err := convert.Request(pod)
	if err != nil {
		p.Request = "invalid: " + err.Error()
	} else {
		p.Request, p.GPUCount, p.RequestedMiB = r.String(), r.Count(), r.MiB
	}
	busy, requested := 0, int64(0)
	for i := range u.GPUs {
		g := &u.GPUs[i]
		for j := range g.Pods {
			share := &g.Pods[j]
			if share.UID != pod.UID {
				continue
			}
			p.GPUs = append(p.GPUs, PodGPU{UUID: g.UUID, Index: g.Index,
				RequestedMiB: share.RequestedMiB, UsedMiB: share.UsedMiB, Utilization: share.Utilization})
			requested += share.RequestedMiB
			p.UsedMiB += share.UsedMiB
			busy += share.Utilization
			if share.over() {
				p.OverMiB += share.UsedMiB - share.RequestedMiB
			}
		}
	}
	if n := len(p.GPUs); n > 0 {
		p.GPUCount, p.RequestedMiB, p.Utilization = n, requested, (busy+n/2)/n
	}
	return p
}

// shortRequest is a request in as few characters as can be read: "8 GPUs", "16Gi", "250m+8Gi".
func shortRequest(r *pack.Request) string {
	var parts []string
	if r.GPUs > 0 {
		parts = append(parts, plural(r.GPUs, "GPU"))
	}
	if r.Milli > 0 {
		parts = append(parts, fmt.Sprintf("%dm", r.Milli))
	}
	if r.MiB > 0 {
		parts = append(parts, gib(r.MiB))
	}
	s := strings.Join(parts, "+")
	if len(r.Models) > 0 {
		s += " of " + strings.Join(r.Models, "|")
	}
	return s
}

// decisionOf reads the record that the scheduler left on a pod; nil where there is none.
func decisionOf(pod *corev1.Pod) (*v1alpha1.Decision, error) {
	text, ok := pod.Annotations[v1alpha1.AnnotationDecision]
	if !ok {
		return nil, nil
	}
	d := &v1alpha1.Decision{}
	if err := json.Unmarshal([]byte(text), d); err != nil {
		return nil, fmt.Errorf("annotation %s of pod %s/%s is not a decision: %w", v1alpha1.AnnotationDecision, pod.Namespace,
			pod.Name, err)
	}
	return d, nil
}
