// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

// StalePolicy is what to do with a node whose telemetry is too old.
type StalePolicy string

// Stale policies.
const (
	// StaleTrustRequests goes by what pods requested, keeps the last known health and foreign memory of each GPU, and
	// adds no pod that shares a GPU.
	StaleTrustRequests StalePolicy = "TrustRequests"
	// StaleReject adds no GPU pod at all.
	StaleReject StalePolicy = "Reject"
	// StaleTrustTelemetry goes on as if the last reading were true.
	StaleTrustTelemetry StalePolicy = "TrustTelemetry"
)

// DefaultStaleAfter is what Options.StaleAfter is where the operator did not choose: three heartbeats of an agent.
const DefaultStaleAfter = 3 * time.Minute

// Options say how telemetry is read.
type Options struct {
	// StaleAfter is the age from which a reading is stale.
	StaleAfter  time.Duration
	StalePolicy StalePolicy
	// Now is the time of the decision.
	Now time.Time
	// Exists says whether the API still has the pod with that UID as one that runs. A pod that telemetry sees on a GPU but
	// that does not exist has processes that have not ended yet, and their memory counts. nil means that only the pods
	// given to Node exist.
	Exists func(uid string) bool
	// Request is what to ask instead of the function of that name, by callers that remember its answers; nil for that function.
	Request func(*corev1.Pod) (pack.Request, error)
}

// Pod is a pod on a node and the GPUs that it was given there.
type Pod struct {
	Pod *corev1.Pod
	// GPUs are UUIDs. nil where nobody recorded them: a pod that another scheduler placed, or one that is only tried on the
	// node. Node then goes by the agent's reading, and else puts the pod where it fits.
	GPUs []string
}

// IsStale says whether the reading is too old to be trusted.
func IsStale(gn *v1alpha1.GPUNode, o *Options) bool {
	return gn.Status.ObservedTime == nil || o.Now.Sub(gn.Status.ObservedTime.Time) > o.StaleAfter
}

// Node merges a node, its telemetry and the pods on it. gn is nil where the node has none. It leaves CPUMilli and
// MemoryMiB as what node.Status.Allocatable has beyond the requests of pods.
func Node(node *corev1.Node, gn *v1alpha1.GPUNode, pods []Pod, o Options) *pack.Node {
	n := &pack.Node{
		Name:      node.Name,
		CPUMilli:  node.Status.Allocatable.Cpu().MilliValue(),
		MemoryMiB: node.Status.Allocatable.Memory().Value() / mib,
	}
	if gn != nil && hasReading(gn) {
		readTelemetry(n, gn, &o)
	} else if value(node.Status.Capacity, v1alpha1.ResourceGPU) > 0 {
		n.Problem = pack.ReasonNoTelemetry
	} else {
		n.Problem = pack.ReasonTooFewGPUs
	}
	n.Total = pack.Total{CPUMilli: n.CPUMilli, MemoryMiB: n.MemoryMiB, GPUs: len(n.GPUs)}
	addPods(n, gn, pods, &o)
	return n
}

// hasReading is false for a GPUNode whose agent has read nothing yet.
func hasReading(gn *v1alpha1.GPUNode) bool {
	return gn.Status.ObservedTime != nil || len(gn.Status.GPUs) > 0
}

func readTelemetry(n *pack.Node, gn *v1alpha1.GPUNode, o *Options) {
	if err := CheckTelemetry(gn); err != nil {
		n.Problem = pack.ReasonInvalidTelemetry
		return
	}
	n.Observe = gn.Status.Mode != v1alpha1.ModeManage
	if IsStale(gn, o) && o.StalePolicy != StaleTrustTelemetry {
		n.Stale = true
		if o.StalePolicy == StaleReject {
			n.Problem = pack.ReasonStaleReject
		}
	}
	n.GPUs = make([]pack.GPU, len(gn.Status.GPUs))
	for i := range gn.Status.GPUs {
		g := &gn.Status.GPUs[i]
		n.GPUs[i] = pack.GPU{
			UUID:        g.UUID,
			Index:       int(g.Index),
			Model:       g.Model,
			TotalMiB:    g.MemoryTotalMiB,
			ReservedMiB: g.MemoryReservedMiB,
			ForeignMiB:  foreignMiB(g),
			Utilization: int(g.Utilization),
		}
		if !g.Healthy {
			n.GPUs[i].Unhealthy = cmp.Or(g.UnhealthyMessage, string(g.UnhealthyReason), "unhealthy")
		} else if c := gn.Spec.Cordon(g.UUID); c != nil {
			n.GPUs[i].Unhealthy, n.GPUs[i].Cordoned = c.String(), true
		}
	}
	slices.SortFunc(n.GPUs, func(a, b pack.GPU) int { return cmp.Compare(a.Index, b.Index) })
}

// foreignMiB counts memory that the agent could attribute to nobody as foreign too: no pod can have it.
func foreignMiB(g *v1alpha1.GPU) int64 {
	unattributed := g.MemoryUsedMiB
	for i := range g.Pods {
		unattributed -= g.Pods[i].MemoryUsedMiB
	}
	return max(g.MemoryForeignMiB, unattributed)
}

// addPods takes what the pods hold off the node: first those whose GPUs are known, then the others.
func addPods(n *pack.Node, gn *v1alpha1.GPUNode, pods []Pod, o *Options) {
	read := newReading(n, gn)
	ask := o.Request
	if ask == nil {
		ask = Request
	}
	var homeless []pack.Request
	var homelessID []string
	for i := range pods {
		pod := pods[i].Pod
		// Of a malformed request, which no scheduler of ours placed, there is left what it holds all the same.
		r, _ := ask(pod)
		id := string(pod.UID)
		if !r.WantsGPU() {
			n.CPUMilli -= r.CPUMilli
			n.MemoryMiB -= r.MemoryMiB
			// Its processes can use GPU memory nevertheless, where the container runtime lets them see the GPUs.
			read.addUse(id)
			continue
		}
		gpus := read.positions(id, pods[i].GPUs)
		if len(gpus) == 0 {
			homeless, homelessID = append(homeless, r), append(homelessID, id)
			continue
		}
		n.Place(&r, id, gpus)
		read.setUsed(id)
	}
	for i := range homeless {
		n.Place(&homeless[i], homelessID[i], pack.Squeeze(n, &homeless[i]))
	}
	read.addDeparted(o.Exists)
}

// reading is what the agent reported of the pods on a node.
type reading struct {
	n *pack.Node
	// position of each GPU in n.GPUs by its UUID.
	position map[string]int
	// used is the memory by pod UID and position, in MiB.
	used map[string]map[int]int64
}

func newReading(n *pack.Node, gn *v1alpha1.GPUNode) *reading {
	rd := &reading{n: n, position: make(map[string]int, len(n.GPUs)), used: map[string]map[int]int64{}}
	for i := range n.GPUs {
		rd.position[n.GPUs[i].UUID] = i
	}
	if gn == nil {
		return rd
	}
	for i := range gn.Status.GPUs {
		g := &gn.Status.GPUs[i]
		at, ok := rd.position[g.UUID]
		if !ok {
			continue
		}
		for j := range g.Pods {
			uid := string(g.Pods[j].UID)
			if rd.used[uid] == nil {
				rd.used[uid] = map[int]int64{}
			}
			rd.used[uid][at] = g.Pods[j].MemoryUsedMiB
		}
	}
	return rd
}

// positions says which GPUs the pod has. On an observe node the device plugin decided, so the agent's reading is the
// truth and the record only what was hoped for; elsewhere the record is the truth.
func (rd *reading) positions(id string, recorded []string) []int {
	var out []int
	if len(recorded) == 0 || rd.n.Observe {
		for at := range rd.used[id] {
			out = append(out, at)
		}
	}
	if len(out) == 0 {
		for _, uuid := range recorded {
			if at, ok := rd.position[uuid]; ok {
				out = append(out, at)
			}
		}
	}
	if len(out) == 0 {
		// None of the GPUs on record is there any more.
		for at := range rd.used[id] {
			out = append(out, at)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// setUsed adds the pod's real use to its holds. A stale reading's use is not looked at.
func (rd *reading) setUsed(id string) {
	if rd.n.Stale {
		return
	}
	for at, used := range rd.used[id] {
		g := &rd.n.GPUs[at]
		i := slices.IndexFunc(g.Tenants, func(t pack.Tenant) bool { return t.ID == id })
		if i < 0 {
			g.Tenants = append(g.Tenants, pack.Tenant{ID: id, UsedMiB: used})
			continue
		}
		g.Tenants[i].UsedMiB = used
	}
	delete(rd.used, id)
}

// addDeparted counts memory of pods that the agent still sees but that are on the node no more: their processes have not
// ended yet.
func (rd *reading) addDeparted(exists func(uid string) bool) {
	for _, id := range slices.Sorted(maps.Keys(rd.used)) {
		if exists == nil || !exists(id) {
			rd.addUse(id)
		}
	}
}

// addUse counts memory that the agent sees a pod use of GPUs of which it holds nothing.
func (rd *reading) addUse(id string) {
	if rd.n.Stale {
		return
	}
	for at, used := range rd.used[id] {
		g := &rd.n.GPUs[at]
		if used > 0 && !slices.ContainsFunc(g.Tenants, func(t pack.Tenant) bool { return t.ID == id }) {
			g.Tenants = append(g.Tenants, pack.Tenant{ID: id, UsedMiB: used})
		}
	}
	delete(rd.used, id)
}

// HealthyGPUs counts the GPUs that pods could be placed on by model; there are none where gn is nil or impossible.
func HealthyGPUs(gn *v1alpha1.GPUNode) map[string]int {
	gpus := map[string]int{}
	if gn == nil || CheckTelemetry(gn) != nil {
		return gpus
	}
	for i := range gn.Status.GPUs {
		if g := &gn.Status.GPUs[i]; TakesPods(gn, g) {
			gpus[g.Model]++
		}
	}
	return gpus
}

// TakesPods says whether the GPU may get new pods: it is healthy, and nobody cordoned it.
func TakesPods(gn *v1alpha1.GPUNode, g *v1alpha1.GPU) bool {
	return g.Healthy && gn.Spec.Cordon(g.UUID) == nil
}

// maxMemoryMiB is the largest device memory that the CRD allows.
const maxMemoryMiB = 1 << 24

// CheckTelemetry says in one sentence what is impossible about a GPUNode's figures, or nil. The CRD refuses the same, but
// an object can be older than the CRD.
func CheckTelemetry(gn *v1alpha1.GPUNode) error {
	if len(gn.Status.GPUs) > pack.MaxGPUs {
		return fmt.Errorf("GPUNode %s has %d GPUs, above %d", gn.Name, len(gn.Status.GPUs), pack.MaxGPUs)
	}
	seen := map[string]bool{}
	indices := map[int32]string{}
	for i := range gn.Status.GPUs {
		g := &gn.Status.GPUs[i]
		where := fmt.Sprintf("GPUNode %s: GPU %q", gn.Name, g.UUID)
		switch {
		case g.UUID == "":
			return fmt.Errorf("GPUNode %s: GPU %d has no uuid", gn.Name, g.Index)
		case seen[g.UUID]:
			return fmt.Errorf("%s is listed twice", where)
		case g.Index < 0:
			return fmt.Errorf("%s has index %d, below 0", where, g.Index)
		case indices[g.Index] != "":
			return fmt.Errorf("%s has index %d, as has GPU %q", where, g.Index, indices[g.Index])
		case g.MemoryTotalMiB <= 0:
			return fmt.Errorf("%s has memoryTotalMiB %d, not above 0", where, g.MemoryTotalMiB)
		case g.MemoryTotalMiB > maxMemoryMiB:
			return fmt.Errorf("%s has memoryTotalMiB %d, above %d", where, g.MemoryTotalMiB, maxMemoryMiB)
		case g.MemoryReservedMiB < 0 || g.MemoryUsedMiB < 0 || g.MemoryForeignMiB < 0:
			return fmt.Errorf("%s has negative memory", where)
		case g.MemoryReservedMiB > g.MemoryTotalMiB:
			return fmt.Errorf("%s has memoryReservedMiB %d above memoryTotalMiB %d", where, g.MemoryReservedMiB, g.MemoryTotalMiB)
		case g.MemoryUsedMiB > g.MemoryTotalMiB:
			return fmt.Errorf("%s has memoryUsedMiB %d above memoryTotalMiB %d", where, g.MemoryUsedMiB, g.MemoryTotalMiB)
		case g.MemoryForeignMiB > g.MemoryUsedMiB:
			return fmt.Errorf("%s has memoryForeignMiB %d above memoryUsedMiB %d", where, g.MemoryForeignMiB, g.MemoryUsedMiB)
		case g.Utilization < 0 || g.Utilization > 100:
			return fmt.Errorf("%s has utilization %d, not in 0 to 100", where, g.Utilization)
		}
		for j := range g.Pods {
			p := &g.Pods[j]
			if p.MemoryUsedMiB < 0 || p.MemoryUsedMiB > maxMemoryMiB {
				return fmt.Errorf("%s has pod %s/%s with memoryUsedMiB %d, not in 0 to %d", where, p.Namespace, p.Name,
					p.MemoryUsedMiB, maxMemoryMiB)
			}
		}
		seen[g.UUID], indices[g.Index] = true, g.UUID
	}
	return nil
}
