// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

// Reason is why a request does not fit on a node or a GPU. Reasons are few and carry no figures, so that they can be
// counted over nodes; the figures are in Explain.
type Reason uint8

// Reasons, from the one that is hardest to mend to the easiest.
const (
	// ReasonFits means that there is none.
	ReasonFits Reason = iota
	ReasonNoTelemetry
	ReasonInvalidTelemetry
	ReasonTooFewGPUs
	ReasonModel
	ReasonObserveShare
	ReasonStaleReject
	ReasonStaleShare
	ReasonTooLarge
	ReasonUnhealthy
	ReasonCordoned
	ReasonForeign
	ReasonObserveForeign
	ReasonObserveCordoned
	ReasonBusy
	ReasonOccupied
	ReasonMemory
	ReasonCompute
	// ReasonCPU and ReasonHostMemory are kube-scheduler's business. Simulations, which have no kube-scheduler, use them.
	ReasonCPU
	ReasonHostMemory
	// ReasonReserved is for those that come later in line than the owner of a Reservation. Eviction makes no room for them.
	ReasonReserved
	numReasons
)

var reasonText = [numReasons]struct {
	short, long string
	// unresolvable is true where evicting pods from the node would not help.
	unresolvable bool
}{
	ReasonFits:             {"Fits", "fits", false},
	ReasonNoTelemetry:      {"NoTelemetry", "no GPUNode tells of the node's GPUs (is gpupack-agent running there?)", true},
	ReasonInvalidTelemetry: {"InvalidTelemetry", "the GPUNode of the node has impossible figures", true},
	ReasonTooFewGPUs:       {"TooFewGPUs", "the node has fewer GPUs than requested", true},
	ReasonModel:            {"Model", "too few GPUs of an accepted model", true},
	ReasonObserveShare:     {"ObserveMode", "the node is in observe mode, in which GPUs cannot be shared", true},
	ReasonStaleReject:      {"StaleTelemetry", "GPU telemetry is stale", true},
	ReasonStaleShare:       {"StaleTelemetry", "GPU telemetry is stale, so no new pod may share a GPU", true},
	ReasonTooLarge:         {"TooLarge", "the share is larger than the memory of the node's GPUs", true},
	ReasonUnhealthy:        {"Unhealthy", "too few healthy GPUs", true},
	ReasonCordoned:         {"GPUCordoned", "too few GPUs that are not cordoned", true},
	ReasonForeign:          {"ForeignMemory", "GPU memory is taken by processes outside any pod", true},
	ReasonObserveForeign:   {"ForeignMemory", "in observe mode, and a free GPU has memory taken by processes outside any pod", true},
	ReasonObserveCordoned:  {"GPUCordoned", "in observe mode, and a free GPU is cordoned, which the device plugin could hand out", true},
	ReasonBusy:             {"Busy", "the GPUs are busier than the pod accepts", false},
	ReasonOccupied:         {"Occupied", "too few GPUs are free as a whole", false},
	ReasonMemory:           {"GPUMemory", "no GPU has enough free memory", false},
	ReasonCompute:          {"GPUCompute", "no GPU has enough free compute", false},
	ReasonCPU:              {"CPU", "insufficient cpu", false},
	ReasonHostMemory:       {"Memory", "insufficient memory", false},
	ReasonReserved:         {"Reserved", "reserved for a pod or gang that has waited longer", true},
}

// String is one CamelCase word, fit for a metric's label.
func (r Reason) String() string { return reasonText[r].short }

// Message is one sentence's worth of text, fit for an event.
func (r Reason) Message() string { return reasonText[r].long }

// Unresolvable is true where evicting pods from the node would not help.
func (r Reason) Unresolvable() bool { return reasonText[r].unresolvable }

// DefaultWholeForeignMiB is what Limits.WholeForeignMiB is where the operator did not choose.
const DefaultWholeForeignMiB = 512

// Limits are the operator's choices that decide what fits.
type Limits struct {
	// WholeForeignMiB is how much memory processes of no pod may use on a GPU that is given away whole, in MiB. Display
	// servers and monitoring agents take some.
	WholeForeignMiB int64
}

// Closed is why the GPU gets no new pod whatever that asks for; ReasonFits where there is no such thing.
func (g *GPU) Closed() Reason {
	switch {
	case g.Cordoned:
		return ReasonCordoned
	case g.Unhealthy != "":
		return ReasonUnhealthy
	}
	return ReasonFits
}

// gpuReason says why the request cannot have the GPU, or a part of it.
func (l *Limits) gpuReason(g *GPU, r *Request) Reason {
	usable := g.UsableMiB()
	need := r.MiBOn(usable)
	switch {
	case !r.Accepts(g.Model):
		return ReasonModel
	case need > usable:
		return ReasonTooLarge
	case g.Closed() != ReasonFits:
		return g.Closed()
	case r.GPUs > 0 && g.ForeignMiB > l.WholeForeignMiB, r.GPUs == 0 && need > usable-g.ForeignMiB:
		return ReasonForeign
	case r.GPUs > 0 && len(g.Tenants) > 0:
		return g.unlessClaimed(ReasonOccupied)
	case r.GPUs > 0:
		return ReasonFits
	case r.MaxUtilization > 0 && g.Utilization > r.MaxUtilization:
		return ReasonBusy
	case need > g.FreeMiB():
		return g.unlessClaimed(ReasonMemory)
	case r.Milli > g.FreeMilli(), g.FreeMilli() == 0, r.Milli == WholeMilli && len(g.Tenants) > 0:
		return g.unlessClaimed(ReasonCompute)
	}
	return ReasonFits
}

// unlessClaimed is the reason, or ReasonReserved where only claims are in the way.
func (g *GPU) unlessClaimed(reason Reason) Reason {
	for i := range g.Tenants {
		if g.Tenants[i].ID != claimID {
			return reason
		}
	}
	return ReasonReserved
}

// Fit says whether the node's GPUs can take the request, and if not, why: the reason closest to fitting, over as many GPUs
// as the request needs. CPU and host memory are not looked at.
func (l *Limits) Fit(n *Node, r *Request) Reason {
	if !r.WantsGPU() {
		return ReasonFits
	}
	need := r.Count()
	switch {
	case n.Problem != ReasonFits:
		return n.Problem
	case n.Observe && r.IsShare():
		return ReasonObserveShare
	case len(n.GPUs) < need:
		return ReasonTooFewGPUs
	}
	var count [numReasons]int
	for i := range n.GPUs {
		count[l.gpuReason(&n.GPUs[i], r)]++
	}
	if n.Observe && count[ReasonFits] >= need && l.observeForeign(n) {
		return ReasonObserveForeign
	}
	if n.Observe && count[ReasonFits] >= need && observeCordoned(n) {
		return ReasonObserveCordoned
	}
	sum := count[ReasonFits]
	if sum >= need {
		if n.Stale && r.IsShare() {
			return ReasonStaleShare
		}
		return ReasonFits
	}
	for reason := numReasons - 1; reason > ReasonFits; reason-- {
		if sum += count[reason]; sum >= need {
			return reason
		}
	}
	return ReasonTooFewGPUs
}

// observeForeign says whether a device plugin that knows nothing of processes outside pods could hand out a GPU on which
// they hold memory.
func (l *Limits) observeForeign(n *Node) bool {
	for i := range n.GPUs {
		g := &n.GPUs[i]
		if g.Unhealthy == "" && len(g.Tenants) == 0 && g.ForeignMiB > l.WholeForeignMiB {
			return true
		}
	}
	return false
}

// observeCordoned says whether that device plugin could hand out a GPU that is cordoned.
func observeCordoned(n *Node) bool {
	for i := range n.GPUs {
		if n.GPUs[i].Cordoned && len(n.GPUs[i].Tenants) == 0 {
			return true
		}
	}
	return false
}

// FitHost is Fit with CPU and host memory, for callers that have no kube-scheduler to check those.
func (l *Limits) FitHost(n *Node, r *Request) Reason {
	switch {
	case r.CPUMilli > n.CPUMilli:
		return ReasonCPU
	case r.MemoryMiB > n.MemoryMiB:
		return ReasonHostMemory
	}
	return l.Fit(n, r)
}

// GPUVerdict is what one GPU says to a request.
type GPUVerdict struct {
	UUID   string
	Index  int
	Reason Reason
	// NeedMiB is the memory that the request would take of it, FreeMiB what it has.
	NeedMiB, FreeMiB int64
	// NeedMilli is the compute that the request would take of it, FreeMilli what it has.
	NeedMilli, FreeMilli int64
}

// Explain says of each GPU of the node why the request cannot have it. It is empty where the node has a Problem.
func (l *Limits) Explain(n *Node, r *Request) []GPUVerdict {
	if n.Problem != ReasonFits || !r.WantsGPU() {
		return nil
	}
	out := make([]GPUVerdict, len(n.GPUs))
	for i := range n.GPUs {
		g := &n.GPUs[i]
		milli := r.Milli
		if r.GPUs > 0 {
			milli = WholeMilli
		}
		out[i] = GPUVerdict{
			UUID: g.UUID, Index: g.Index, Reason: l.gpuReason(g, r),
			NeedMiB: r.MiBOn(g.UsableMiB()), FreeMiB: g.FreeMiB(),
			NeedMilli: milli, FreeMilli: g.FreeMilli(),
		}
	}
	return out
}
