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

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
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
	fingerprint := p.fingerprint(g, infos)
	if status := p.gangs.remembered(g.name, fingerprint); status != nil {
		return status
	}
	fw, ok := p.handle.(framework.Framework)
	if !ok {
		return fwk.AsStatus(fmt.Errorf("the scheduler's handle is a %T, which cannot run the filters that a gang needs", p.handle))
	}
	// An earlier attempt may have left members nominated. The filters would count those beside the places of this plan.
	for _, pod := range g.pending {
		p.handle.DeleteNominatedPodIfExists(pod)
	}
	start := p.clock.Now()
	constraints, err := newGangConstraints(ctx, fw, infos, g.pending)
	if err != nil {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, err.Error())
	}
	nodes := make([]*pack.Node, len(infos))
	for i := range infos {
		nodes[i] = p.node(infos[i])
	}
	placements, failure := p.chooser.PlanGang(nodes, constraints.requests, constraints.members, g.need(), constraints)
	gangPlanDuration.Observe(p.clock.Since(start).Seconds())
	if failure != nil {
		gangPlans.WithLabelValues("failed").Inc()
		message := fmt.Sprintf("PodGroup %s waits: %s", g.name.Name, failure.Error())
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
	gangPlans.WithLabelValues("planned").Inc()
	p.logger(ctx).V(2).Info("Planned a gang", "podGroup", g.name, "members", len(entries), "needed", g.need(),
		"duration", p.clock.Since(start).Round(time.Microsecond))
	p.activate(ctx, g.name)
	return nil
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
	return fmt.Sprintf("%d/%d/%d/%d/%s/%d/%x", newest, len(infos), p.telemetry.totalVersion(), p.ledger.totalVersion(),
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
	// interacts is true where the place of one member can change which other nodes suit another: pod affinity, spreading.
	interacts bool
}

// gangClass is a set of members that the scheduler cannot tell apart.
type gangClass struct {
	pod *corev1.Pod
	// pods that are still to be placed.
	rest  []*corev1.Pod
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
	pending = slices.Clone(pending)
	slices.SortFunc(pending, func(a, b *corev1.Pod) int { return compareMembers(a, b) })
	byKey := map[string]int{}
	for _, pod := range pending {
		r, err := convert.Request(pod)
		if err != nil {
			return nil, fmt.Errorf("member %s: %w", pod.Name, err)
		}
		key := classKey(pod, c.interacts)
		class, ok := byKey[key]
		if !ok {
			class = len(c.classes)
			byKey[key] = class
			c.classes = append(c.classes, c.newClass(pod))
			c.requests = append(c.requests, r)
		}
		c.classes[class].rest = append(c.classes[class].rest, pod)
		c.members = append(c.members, pack.Member{ID: string(pod.UID), Class: class})
		c.pods[string(pod.UID)] = pod
	}
	return c, nil
}

func (c *gangConstraints) newClass(pod *corev1.Pod) *gangClass {
	class := &gangClass{pod: pod, state: framework.NewCycleState()}
	class.state.Write(planningKey, planningMark{})
	only, status, _ := c.fw.RunPreFilterPlugins(c.ctx, class.state, pod)
	if !status.IsSuccess() {
		class.rejected = status.Message()
	}
	class.only = only
	return class
}

// Feasible implements pack.Constraints.
func (c *gangConstraints) Feasible(class, node int) (bool, string) {
	k := c.classes[class]
	if k.rejected != "" {
		return false, k.rejected
	}
	if !k.only.AllNodes() && !k.only.NodeNames.Has(c.infos[node].Node().Name) {
		return false, "ruled out before filtering"
	}
	status := c.fw.RunFilterPluginsWithNominatedPods(c.ctx, k.state, k.pod, c.infos[node])
	return status.IsSuccess(), status.Message()
}

// Placed implements pack.Constraints.
func (c *gangConstraints) Placed(class, node int) bool {
	if !c.copied[node] {
		c.infos[node], c.copied[node] = c.infos[node].Snapshot(), true
	}
	k := c.classes[class]
	pod := k.rest[0].DeepCopy()
	k.rest = k.rest[1:]
	pod.Spec.NodeName = c.infos[node].Node().Name
	podInfo, err := framework.NewPodInfo(pod)
	if err != nil {
		// The API server has validated affinity terms; a pod with broken ones never comes so far.
		return c.interacts
	}
	c.infos[node].AddPodInfo(podInfo)
	if c.interacts {
		for _, other := range c.classes {
			if other.rejected == "" {
				c.fw.RunPreFilterExtensionAddPod(c.ctx, other.state, other.pod, podInfo, c.infos[node])
			}
		}
	}
	return c.interacts
}

func interacts(pod *corev1.Pod) bool {
	a := pod.Spec.Affinity
	return len(pod.Spec.TopologySpreadConstraints) > 0 || a != nil && (a.PodAffinity != nil || a.PodAntiAffinity != nil)
}

// compareMembers orders members by priority, then by name, shorter names first so that worker-10 follows worker-9.
func compareMembers(a, b *corev1.Pod) int {
	return cmp.Or(cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
}

// classKey is equal for pods that the scheduler cannot tell apart.
func classKey(pod *corev1.Pod, withLabels bool) string {
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
	if withLabels {
		key.Labels = pod.Labels
	}
	text, err := json.Marshal(key)
	if err != nil {
		return string(pod.UID)
	}
	return string(text)
}
