// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	podgroupv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

// schedulerPolicy is the packing policy of a scheduler whose operator did not choose.
const schedulerPolicy = "gpupack"

// newChooser chooses as gpupack-scheduler would on the cluster of the snapshot. The distribution is what the policy expects to come.
func newChooser(name string, s *snapshot, o viewOptions) (pack.Chooser, *pack.Distribution, error) {
	d, err := s.expected()
	if err != nil {
		return pack.Chooser{}, nil, err
	}
	p, err := policy.New(name, d)
	if err != nil {
		return pack.Chooser{}, nil, err
	}
	if aware, ok := p.(policy.SupplyAware); ok {
		aware.SetSupply(s.supply())
	}
	return pack.Chooser{
		Policy:     p,
		Limits:     pack.Limits{WholeForeignMiB: o.wholeForeignMiB},
		LoadWeight: float64(pack.DefaultLoadWeight) / 100,
	}, d, nil
}

// workloadClassesKey is where the scheduler keeps what it has learned, in the ConfigMap.
const workloadClassesKey = v1alpha1.SchedulerName + ".json"

// expected is the mix of pods to come: what the scheduler has learned or, where that is not known, the mix of the pods there are.
func (s *snapshot) expected() (*pack.Distribution, error) {
	d := pack.NewDistribution(pack.DefaultClasses())
	if s.workloadClasses != nil {
		if text, ok := s.workloadClasses.Data[workloadClassesKey]; ok {
			if err := json.Unmarshal([]byte(text), d); err != nil {
				return nil, fmt.Errorf("%s of ConfigMap %s/%s: %w", workloadClassesKey, s.workloadClasses.Namespace, s.workloadClasses.Name, err)
			}
			return d, nil
		}
	}
	learned := make([]*corev1.Pod, 0, len(s.pods))
	for i := range s.pods {
		if convert.HoldsGPUs(&s.pods[i]) {
			learned = append(learned, &s.pods[i])
		}
	}
	slices.SortStableFunc(learned, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	for _, pod := range learned {
		if r, err := convert.Request(pod); err == nil {
			d.Observe(&r)
		}
	}
	return d, nil
}

// supply counts the healthy GPUs by model.
func (s *snapshot) supply() policy.Supply {
	out := policy.Supply{}
	for i := range s.gpuNodes {
		for model, n := range convert.HealthyGPUs(&s.gpuNodes[i]) {
			out[model] += n
		}
	}
	return out
}

// candidates are the nodes on which pods can be tried.
type candidates struct {
	nodes   []corev1.Node
	chooser pack.Chooser
	// taken is what pods request of each node.
	taken requests
	// states are those of nodes.
	states []*pack.Node
	// told is what the policy knows of them.
	told policy.Told
}

// newCandidates are the nodes of the snapshot with its pods on them. taken can have pods that the snapshot lacks.
func newCandidates(s *snapshot, taken requests, chooser pack.Chooser, o viewOptions) *candidates {
	c := &candidates{nodes: s.nodes, chooser: chooser, taken: taken, states: make([]*pack.Node, len(s.nodes))}
	pods, opts := s.podsByNode(), s.convertOptions(o)
	for i := range s.nodes {
		node := &s.nodes[i]
		c.states[i] = convert.Node(node, s.gpuNode(node.Name), pods[node.Name], opts)
	}
	c.tell()
	return c
}

// tell lets the policy know what is free in the cluster, as the scheduler does before it places a pod.
func (c *candidates) tell() {
	aware, ok := c.chooser.Policy.(policy.ClusterAware)
	if !ok {
		return
	}
	var free, total policy.Capacity
	for _, n := range c.states {
		shape := c.chooser.Shape(n)
		free.Add(&shape)
		total.AddTotal(n)
	}
	c.told.Tell(aware, free, total, c.chooser.Shapes(slices.Values(c.states)))
}

// verdict is what is in the way of a pod on one node.
type verdict struct {
	// at is the position of the node.
	at        int
	obstacles []obstacle
	effort    int
	// fitting is how many of the node's GPUs fit, free their largest free memory.
	fitting int
	free    int64
}

// verdicts are those of all nodes on a pod.
type verdicts struct {
	// fitting nodes have nothing in the way.
	fitting int
	// reasons count each other node once, by what is hardest to mend about it; the most frequent first.
	reasons []ReasonCount
	byNode  []verdict
}

// judge tries the pod on each node.
func (c *candidates) judge(pod *corev1.Pod, request *pack.Request) *verdicts {
	out := &verdicts{}
	r := rulesOf(pod)
	counts := map[string]*ReasonCount{}
	for i := range c.nodes {
		node := &c.nodes[i]
		v := verdict{at: i, obstacles: checkNode(&c.chooser.Limits, &r, request, node, c.states[i], c.taken[node.Name])}
		for _, o := range v.obstacles {
			v.effort = max(v.effort, 1+o.effort)
		}
		for _, g := range c.chooser.Limits.Explain(c.states[i], request) {
			if g.Reason == pack.ReasonFits {
				v.fitting++
			}
			v.free = max(v.free, g.FreeMiB)
		}
		out.byNode = append(out.byNode, v)
		if len(v.obstacles) == 0 {
			out.fitting++
			continue
		}
		first := v.obstacles[0]
		if counts[first.message] == nil {
			counts[first.message] = &ReasonCount{Reason: first.reason, Message: first.message, Example: node.Name}
		}
		counts[first.message].Nodes++
	}
	for _, count := range counts {
		out.reasons = append(out.reasons, *count)
	}
	slices.SortFunc(out.reasons, func(a, b ReasonCount) int {
		return cmp.Or(cmp.Compare(b.Nodes, a.Nodes), cmp.Compare(a.Message, b.Message))
	})
	return out
}

// nearest returns at most n nodes on which least is in the way.
func (v *verdicts) nearest(n int) []verdict {
	out := slices.Clone(v.byNode)
	slices.SortStableFunc(out, func(a, b verdict) int {
		return cmp.Or(cmp.Compare(a.effort, b.effort), cmp.Compare(len(a.obstacles), len(b.obstacles)),
			cmp.Compare(b.fitting, a.fitting), cmp.Compare(b.free, a.free))
	})
	for i := range out {
		if i == n || out[i].effort > effortNoGPU {
			return out[:i]
		}
	}
	return out
}

// invalidMember is a member of a gang that asks for what cannot be.
type invalidMember struct {
	name string
	err  error
}

func (e *invalidMember) Error() string { return fmt.Sprintf("member %s is wrong: %v", e.name, e.err) }

// placed is where a pod would go.
type placed struct {
	pod     *corev1.Pod
	request pack.Request
	// node is a position in candidates.nodes; gpus are positions on that node.
	node int
	gpus []int
}

// planGang asks pack where the waiting members of a gang would go together, beside those that are held on nodes already, as the
// scheduler does. labels has the node label of each kind of domain. It changes nothing: see commit. The error is why the gang
// cannot be placed wherever there is room: an *invalidMember, or what is wrong with its domains.
func (c *candidates) planGang(group *podgroupv1alpha1.PodGroup, held, waiting []*corev1.Pod, labels map[string]string) ([]placed,
	*pack.GangFailure, error) {
	domains, err := c.domains(group, held, labels)
	if err != nil {
		return nil, nil, err
	}
	return c.plan(waiting, max(1, int(group.Spec.MinMember)-len(held)), domains)
}

// domains are those in which a gang should stay. Kinds that the operator has added are not known here, so that such gangs are
// planned without.
func (c *candidates) domains(group *podgroupv1alpha1.PodGroup, held []*corev1.Pod, labels map[string]string) (*pack.Domains, error) {
	spec, err := convert.Gang(group)
	if err != nil {
		return nil, err
	}
	if _, ok := labels[spec.Topology]; !ok {
		return nil, nil
	}
	nodes := make([]*corev1.Node, len(c.nodes))
	for i := range c.nodes {
		nodes[i] = &c.nodes[i]
	}
	places := make([]convert.HeldMember, len(held))
	for i, pod := range held {
		places[i] = convert.HeldMember{Name: pod.Name, Node: pod.Spec.NodeName}
	}
	return convert.GangDomains(group.Name, &spec, labels, nodes, places)
}

// plan asks pack where pods would go, of which need must have a place at once, and which should stay in domains if those are not nil.
// With a need of 0 it places each pod for itself. It changes nothing: see commit. The error is an *invalidMember.
func (c *candidates) plan(pods []*corev1.Pod, need int, domains *pack.Domains) ([]placed, *pack.GangFailure, error) {
	room := &gangRoom{c: c, added: make([]corev1.ResourceList, len(c.nodes))}
	var classes []pack.Request
	members := make([]pack.Member, len(pods))
	known := map[string]int{}
	for i, pod := range pods {
		request, err := convert.Request(pod)
		if err != nil {
			return nil, nil, &invalidMember{pod.Name, err}
		}
		key := classKey(pod, &request)
		class, ok := known[key]
		if !ok {
			class = len(classes)
			known[key] = class
			classes = append(classes, request)
			room.rules, room.wanted = append(room.rules, rulesOf(pod)), append(room.wanted, podRequests(pod))
		}
		members[i] = pack.Member{ID: fmt.Sprint(i), Class: class}
	}
	placements, failure := c.chooser.PlanGangIn(c.states, &pack.Gang{Classes: classes, Members: members, Need: need, Domains: domains}, room)
	if failure != nil {
		return nil, failure, nil
	}
	at := make(map[string]int, len(members))
	for i := range members {
		at[members[i].ID] = i
	}
	out := make([]placed, len(placements))
	for i := range placements {
		p := &placements[i]
		out[i] = placed{pods[at[p.Member.ID]], classes[p.Member.Class], p.Node, p.GPUs}
	}
	return out, nil, nil
}

// commit puts pods where a plan has them.
func (c *candidates) commit(plan []placed) {
	for i := range plan {
		p := &plan[i]
		c.states[p.node].Place(&p.request, string(p.pod.UID), p.gpus)
		c.taken.addTo(c.nodes[p.node].Name, p.pod)
	}
	c.tell()
}

// classKey is equal for pods that go to the same nodes, by all that is checked here.
func classKey(pod *corev1.Pod, request *pack.Request) string {
	key, err := json.Marshal(struct {
		Request     *pack.Request
		Resources   corev1.ResourceList
		Selector    map[string]string
		Affinity    *corev1.Affinity
		Tolerations []corev1.Toleration
	}{request, podRequests(pod), pod.Spec.NodeSelector, pod.Spec.Affinity, pod.Spec.Tolerations})
	if err != nil {
		return string(pod.UID)
	}
	return string(key)
}

// gangRoom tells pack which nodes a member may go to by all but GPUs.
type gangRoom struct {
	c *candidates
	// rules and wanted are by class.
	rules  []rules
	wanted []corev1.ResourceList
	// added is what members planned so far take of each node.
	added []corev1.ResourceList
}

// Feasible implements pack.Constraints.
func (g *gangRoom) Feasible(class, at int) (bool, string) {
	node := &g.c.nodes[at]
	if o := g.rules[class].check(node); len(o) > 0 {
		return false, o[0].message
	}
	if hasRoom(node, g.wanted[class], g.c.taken[node.Name], g.added[at]) {
		return true, ""
	}
	return false, shortages(node, sum(g.c.taken[node.Name], g.added[at]), g.wanted[class])[0].message
}

// Placed implements pack.Constraints.
func (g *gangRoom) Placed(class, at int) bool {
	g.added[at] = sum(g.added[at], g.wanted[class])
	return false
}

// Removed implements pack.Constraints.
func (g *gangRoom) Removed(class, at int) {
	g.added[at] = difference(g.added[at], g.wanted[class])
}

func sum(a, b corev1.ResourceList) corev1.ResourceList {
	out := a.DeepCopy()
	if out == nil {
		out = corev1.ResourceList{}
	}
	for name, q := range b {
		total := out[name]
		total.Add(q)
		out[name] = total
	}
	return out
}

func difference(a, b corev1.ResourceList) corev1.ResourceList {
	out := a.DeepCopy()
	for name, q := range b {
		total := out[name]
		total.Sub(q)
		out[name] = total
	}
	return out
}
