// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	resourcehelper "k8s.io/component-helpers/resource"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

// planningKey marks the cycle state of a class while a gang is planned. The plugin's own PreFilter and Filter stay out of
// it, since package pack does their work on the plan's own nodes. It also marks that of a single pod while nodes are tried for
// the shortlist; its Filter is asked then.
const planningKey fwk.StateKey = Name + "/planning"

type planningMark struct {
	// filter says that Filter is to be asked.
	filter bool
}

func (m planningMark) Clone() fwk.StateData { return m }

// planGang places the gang of which the pod is a member, whole, and puts it in the ledger. A nil status means success. A
// failed plan holds nothing.
func (p *Plugin) planGang(ctx context.Context, g *gang) *fwk.Status {
	infos, err := p.handle.SnapshotSharedLister().NodeInfos().List()
	if err != nil {
		return fwk.AsStatus(err)
	}
	spec, err := convert.Gang(g.group)
	if err != nil {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, err.Error())
	}
	fingerprint := p.fingerprint(g, infos)
	if status := p.gangs.remembered(g.name, fingerprint); status != nil {
		return status
	}
	fw, ok := p.handle.(framework.Framework)
	if !ok {
		return fwk.AsStatus(fmt.Errorf("the scheduler's handle is a %T, which cannot run the filters that a gang needs", p.handle))
	}
	// Of equal nodes the first is taken, and ranks walk through them as they stand here. The scheduler's list has them as they came.
	infos = sortedByName(infos)
	// An earlier attempt may have left members nominated. The filters would count those beside the places of this plan.
	for _, pod := range g.pending {
		p.handle.DeleteNominatedPodIfExists(pod)
	}
	start := p.clock.Now()
	holders, err := p.holders(g.name)
	if err != nil {
		return fwk.AsStatus(err)
	}
	domains, err := p.gangDomains(g, &spec, infos, holders)
	if err != nil {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, err.Error())
	}
	constraints, err := newGangConstraints(ctx, fw, infos, g.pending)
	if err != nil {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, err.Error())
	}
	nodes, back := make([]*pack.Node, len(infos)), p.heldBack(g.pending...)
	priority := corev1helpers.PodPriority(g.pending[0])
	for i := range infos {
		nodes[i] = p.withNominated(back.node(p, infos[i]), nil, priority, g.has)
	}
	plan := &pack.Gang{Classes: constraints.requests, Members: constraints.members, Need: g.need(), Domains: domains}
	placements, failure := p.chooser.PlanGangIn(nodes, plan, constraints)
	if failure != nil {
		placements, constraints, failure = p.planReserved(ctx, fw, infos, nodes, g, domains, constraints, failure)
	}
	gangPlanDuration.Observe(p.clock.Since(start).Seconds())
	var why error
	if failure != nil {
		why = failure
	} else {
		why = g.checkMinResources(constraints.podsOf(placements), holders, infos, nodes)
	}
	if why != nil {
		gangPlans.WithLabelValues("failed").Inc()
		message := fmt.Sprintf("PodGroup %s waits: %s", g.name.Name, why.Error())
		p.gangs.remember(g.name, fingerprint, message)
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, message)
	}

	entries := make([]*entry, len(placements))
	uids := make([]types.UID, len(placements))
	for i, placement := range placements {
		pod := constraints.pods[placement.Member.ID]
		entries[i] = &entry{
			uid:     pod.UID,
			name:    types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name},
			node:    nodes[placement.Node].Name,
			gpus:    uuids(nodes[placement.Node], placement.GPUs),
			phase:   planned,
			request: constraints.requests[placement.Member.Class],
			gang:    g.name,
		}
		uids[i] = pod.UID
	}
	p.gangs.begin(ctx, g.name, g.need(), uids, p.gangTimeout(g.group))
	p.ledger.put(entries...)
	p.gangs.recheck(ctx, g)
	gangPlans.WithLabelValues("planned").Inc()
	p.logger(ctx).V(2).Info("Planned a gang", "podGroup", g.name, "members", len(entries), "needed", g.need(),
		"duration", p.clock.Since(start).Round(time.Microsecond))
	p.activate(ctx, g.name)
	return nil
}

func sortedByName(infos []fwk.NodeInfo) []fwk.NodeInfo {
	return slices.SortedFunc(slices.Values(infos), func(a, b fwk.NodeInfo) int { return cmp.Compare(a.Node().Name, b.Node().Name) })
}

// forgetNominations drops nominations of a gang's members to a node, which the queue makes anew from their status. What they
// are to have there is in the ledger; counted twice, it could keep a member from the place that the plan holds for it.
func (p *Plugin) forgetNominations(gang types.NamespacedName, node string) {
	for _, info := range p.handle.NominatedPodsForNode(node) {
		if pod := info.GetPod(); groupOf(pod) == gang {
			p.handle.DeleteNominatedPodIfExists(pod)
		}
	}
}

// fingerprint names the state of the world from which a plan follows.
func (p *Plugin) fingerprint(g *gang, infos []fwk.NodeInfo) string {
	var newest int64
	for _, info := range infos {
		newest = max(newest, info.GetGeneration())
	}
	members := make([]string, len(g.pending))
	for i, pod := range g.pending {
		members[i] = string(pod.UID) + "@" + pod.ResourceVersion
	}
	slices.Sort(members)
	h := fnv.New64a()
	fmt.Fprint(h, members)
	return fmt.Sprintf("%d/%d/%d/%d/%d/%s/%d/%x", newest, len(infos), p.telemetry.totalVersion(), p.ledger.totalVersion(), p.reservations.version.Load(),
		g.group.ResourceVersion, g.held, h.Sum64())
}

// gangConstraints asks the framework's own filters about members, on copies of the nodes to which planned members are added.
type gangConstraints struct {
	ctx     context.Context
	fw      framework.Framework
	infos   []fwk.NodeInfo
	copied  []bool
	classes []*gangClass
	// requests by class.
	requests []pack.Request
	members  []pack.Member
	pods     map[string]*corev1.Pod
	// interacts is true where members' places decide by pod affinity or spreading which nodes suit others.
	interacts bool
	// elsewhere is true where those can be other nodes than the member's own.
	elsewhere bool
}

// gangClass is a set of members that the scheduler cannot tell apart.
type gangClass struct {
	pod *corev1.Pod
	// info is of pod, which stands for each planned member.
	info  fwk.PodInfo
	state fwk.CycleState
	// only lists the nodes that a PreFilter left; nil for all.
	only *fwk.PreFilterResult
	// rejected is why no node suits the class.
	rejected string
}

func newGangConstraints(ctx context.Context, fw framework.Framework, infos []fwk.NodeInfo, pending []*corev1.Pod) (*gangConstraints, error) {
	c := &gangConstraints{
		ctx: ctx, fw: fw,
		infos:  slices.Clone(infos),
		copied: make([]bool, len(infos)),
		pods:   make(map[string]*corev1.Pod, len(pending)),
	}
	c.interacts = slices.ContainsFunc(pending, interacts)
	c.elsewhere = slices.ContainsFunc(pending, reachesElsewhere) || c.interacts && !uniqueHostnames(infos)
	pending = slices.Clone(pending)
	slices.SortFunc(pending, compareRanks)
	selected := selectedLabels(pending)
	byKey := map[string]int{}
	for _, pod := range pending {
		r, err := convert.Request(pod)
		if err != nil {
			return nil, fmt.Errorf("member %s: %w", pod.Name, err)
		}
		key := classKey(pod, selected)
		class, ok := byKey[key]
		if !ok {
			k, err := c.newClass(pod)
			if err != nil {
				return nil, fmt.Errorf("member %s: %w", pod.Name, err)
			}
			class = len(c.classes)
			byKey[key] = class
			c.classes = append(c.classes, k)
			c.requests = append(c.requests, r)
		}
		c.members = append(c.members, pack.Member{ID: string(pod.UID), Class: class})
		c.pods[string(pod.UID)] = pod
	}
	return c, nil
}

// podsOf returns the members that a plan places.
func (c *gangConstraints) podsOf(placements []pack.Placement) []*corev1.Pod {
	out := make([]*corev1.Pod, len(placements))
	for i := range placements {
		out[i] = c.pods[placements[i].Member.ID]
	}
	return out
}

func (c *gangConstraints) newClass(pod *corev1.Pod) (*gangClass, error) {
	info, err := framework.NewPodInfo(pod)
	if err != nil {
		return nil, err
	}
	class := &gangClass{pod: pod, info: info, state: framework.NewCycleState()}
	class.state.Write(planningKey, planningMark{})
	only, status, _ := c.fw.RunPreFilterPlugins(c.ctx, class.state, pod)
	if !status.IsSuccess() {
		class.rejected = status.Message()
	}
	class.only = only
	return class, nil
}

// Feasible implements pack.Constraints.
func (c *gangConstraints) Feasible(class, node int) (bool, string) {
	status := c.filter(class, node)
	return status.IsSuccess(), status.Message()
}

// filter asks the filters about a member of the class on the node, after what was found out about the class alone.
func (c *gangConstraints) filter(class, node int) *fwk.Status {
	k := c.classes[class]
	if k.rejected != "" {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, k.rejected)
	}
	if !k.only.AllNodes() && !k.only.NodeNames.Has(c.infos[node].Node().Name) {
		return ruledOut()
	}
	return c.fw.RunFilterPluginsWithNominatedPods(c.ctx, k.state, k.pod, c.infos[node])
}

// ruledOut is the status of a node that no filter need be asked about.
func ruledOut() *fwk.Status {
	return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, "ruled out before filtering")
}

// Placed implements pack.Constraints.
func (c *gangConstraints) Placed(class, node int) bool {
	c.add(node, c.classes[class].info, c.interacts)
	return c.elsewhere
}

// Removed implements pack.Constraints.
func (c *gangConstraints) Removed(class, node int) {
	c.take(node, c.classes[class].info, c.interacts)
}

// own returns the node's copy.
func (c *gangConstraints) own(node int) fwk.NodeInfo {
	if !c.copied[node] {
		c.infos[node], c.copied[node] = c.infos[node].Snapshot(), true
	}
	return c.infos[node]
}

// add puts a pod on the node; tell says whether that can change what suits a class.
func (c *gangConstraints) add(node int, info fwk.PodInfo, tell bool) {
	n := c.own(node)
	n.AddPodInfo(info)
	for _, k := range c.classes {
		if tell && k.rejected == "" {
			c.fw.RunPreFilterExtensionAddPod(c.ctx, k.state, k.pod, info, n)
		}
	}
}

// take takes a pod off the node.
func (c *gangConstraints) take(node int, info fwk.PodInfo, tell bool) {
	n := c.own(node)
	logger := klog.FromContext(c.ctx)
	if err := n.RemovePod(logger, info.GetPod()); err != nil {
		logger.Error(err, "A pod to imagine away is not on its node", "pod", klog.KObj(info.GetPod()), "node", klog.KObj(n.Node()))
		return
	}
	for _, k := range c.classes {
		if tell && k.rejected == "" {
			c.fw.RunPreFilterExtensionRemovePod(c.ctx, k.state, k.pod, info, n)
		}
	}
}

// interacts says whether the pod's place can forbid places to others like it, or allow them.
func interacts(pod *corev1.Pod) bool {
	return reachesElsewhere(pod) || len(requiredAntiAffinity(pod)) > 0
}

// reachesElsewhere says whether that can be places on other nodes. Anti-affinity within one node cannot.
func reachesElsewhere(pod *corev1.Pod) bool {
	if a := pod.Spec.Affinity; a != nil && a.PodAffinity != nil && len(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution) > 0 {
		return true
	}
	return slices.ContainsFunc(pod.Spec.TopologySpreadConstraints, func(c corev1.TopologySpreadConstraint) bool {
		return c.WhenUnsatisfiable == corev1.DoNotSchedule
	}) || slices.ContainsFunc(requiredAntiAffinity(pod), func(t corev1.PodAffinityTerm) bool {
		return t.TopologyKey != corev1.LabelHostname
	})
}

func requiredAntiAffinity(pod *corev1.Pod) []corev1.PodAffinityTerm {
	if a := pod.Spec.Affinity; a != nil && a.PodAntiAffinity != nil {
		return a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	}
	return nil
}

// uniqueHostnames says whether no two nodes have the same label of their name.
func uniqueHostnames(infos []fwk.NodeInfo) bool {
	seen := make(sets.Set[string], len(infos))
	for _, info := range infos {
		name := info.Node().Labels[corev1.LabelHostname]
		if seen.Has(name) {
			return false
		}
		seen.Insert(name)
	}
	return true
}

// compareMembers orders members by priority, then by name, shorter names first so that worker-10 follows worker-9.
func compareMembers(a, b *corev1.Pod) int {
	return cmp.Or(cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
}

// labelsOfOne are labels by which controllers tell pods of one gang apart. They count only where members select by them.
var labelsOfOne = sets.New(
	batchv1.JobCompletionIndexAnnotation, batchv1.ControllerUidLabel, batchv1.JobNameLabel, "controller-uid", "job-name",
	appsv1.PodIndexLabel, appsv1.StatefulSetPodNameLabel,
	kubeflowReplicaIndex,
	jobSetJobIndex, "jobset.sigs.k8s.io/job-global-index", "jobset.sigs.k8s.io/job-group-index", "jobset.sigs.k8s.io/job-key",
)

// selectedLabels are the labels by which members select others.
func selectedLabels(pods []*corev1.Pod) sets.Set[string] {
	out := sets.New[string]()
	add := func(selector *metav1.LabelSelector, keys ...string) {
		out.Insert(keys...)
		if selector == nil {
			return
		}
		for key := range selector.MatchLabels {
			out.Insert(key)
		}
		for i := range selector.MatchExpressions {
			out.Insert(selector.MatchExpressions[i].Key)
		}
	}
	for _, pod := range pods {
		terms := requiredAntiAffinity(pod)
		if a := pod.Spec.Affinity; a != nil && a.PodAffinity != nil {
			terms = slices.Concat(terms, a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
		}
		for i := range terms {
			add(terms[i].LabelSelector, slices.Concat(terms[i].MatchLabelKeys, terms[i].MismatchLabelKeys)...)
		}
		for i := range pod.Spec.TopologySpreadConstraints {
			add(pod.Spec.TopologySpreadConstraints[i].LabelSelector, pod.Spec.TopologySpreadConstraints[i].MatchLabelKeys...)
		}
	}
	return out
}

// classKey is equal for pods that the scheduler cannot tell apart. selected are the labels by which members select others.
func classKey(pod *corev1.Pod, selected sets.Set[string]) string {
	type claim struct{ Name, Claim string }
	key := struct {
		Requests    corev1.ResourceList
		Selector    map[string]string
		Affinity    *corev1.Affinity
		Tolerations []corev1.Toleration
		Spread      []corev1.TopologySpreadConstraint
		Ports       []corev1.ContainerPort
		Claims      []claim
		Volumes     []corev1.VolumeSource
		Host        bool
		OS          *corev1.PodOS
		Runtime     *string
		Model, Busy string
		Priority    *int32
		Labels      map[string]string
	}{
		Requests:    resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{}),
		Selector:    pod.Spec.NodeSelector,
		Affinity:    pod.Spec.Affinity,
		Tolerations: pod.Spec.Tolerations,
		Spread:      pod.Spec.TopologySpreadConstraints,
		Host:        pod.Spec.HostNetwork,
		OS:          pod.Spec.OS,
		Runtime:     pod.Spec.RuntimeClassName,
		Model:       pod.Annotations[v1alpha1.AnnotationGPUModel],
		Busy:        pod.Annotations[v1alpha1.AnnotationMaxLiveUtilization],
		Priority:    pod.Spec.Priority,
		Labels:      map[string]string{},
	}
	for i := range pod.Spec.Containers {
		for _, port := range pod.Spec.Containers[i].Ports {
			if port.HostPort > 0 {
				key.Ports = append(key.Ports, port)
			}
		}
	}
	for i := range pod.Spec.Volumes {
		// Volumes that no scheduler looks at have names made up for each pod.
		switch v := &pod.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil, v.Ephemeral != nil, v.CSI != nil, v.GCEPersistentDisk != nil,
			v.AWSElasticBlockStore != nil, v.AzureDisk != nil, v.ISCSI != nil, v.RBD != nil:
			key.Volumes = append(key.Volumes, v.VolumeSource)
		}
	}
	for i := range pod.Spec.ResourceClaims {
		c := &pod.Spec.ResourceClaims[i]
		// A claim made from a template is the pod's own.
		key.Claims = append(key.Claims, claim{c.Name, pod.Name})
	}
	// Pods that are there may repel a member by its labels.
	for name, value := range pod.Labels {
		if selected.Has(name) || !labelsOfOne.Has(name) {
			key.Labels[name] = value
		}
	}
	text, err := json.Marshal(key)
	if err != nil {
		return string(pod.UID)
	}
	return string(text)
}
