// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package simulated

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// Pod is what the GPUs of a node know of a pod that has some of them.
type Pod struct {
	Namespace, Name string
	UID             types.UID
	Labels          map[string]string
	// GPUs are the UUIDs of the GPUs that the pod has. Those of another node are ignored.
	GPUs []string
	// Milli is the compute asked for of each of its GPUs, in milli-GPU; 1000 for whole GPUs.
	Milli int64
	// MiB is the device memory asked for of each of its GPUs. 0 means the same share of memory as of compute.
	MiB int64
	// Since is when the pod began to use its GPUs.
	Since time.Duration
	// Overrides replace what a workload says.
	Overrides Overrides
}

// Overrides say how one pod uses each of its GPUs; nil leaves that to its workload.
type Overrides struct {
	MemoryMiB   *int64
	Utilization *int32
}

// ParseOverrides reads the annotations AnnotationMemory and AnnotationUtilization of a pod. With an error it returns those
// that are well-formed.
func ParseOverrides(annotations map[string]string) (Overrides, error) {
	var o Overrides
	var err error
	if text, ok := annotations[AnnotationMemory]; ok {
		q, parseErr := resource.ParseQuantity(text)
		if parseErr != nil || q.Sign() < 0 {
			err = fmt.Errorf("annotation %s: %q is not a quantity of memory: write it like 12Gi", AnnotationMemory, text)
		} else {
			memory := int64(math.Ceil(q.AsApproximateFloat64() / (1 << 20)))
			o.MemoryMiB = &memory
		}
	}
	if text, ok := annotations[AnnotationUtilization]; ok {
		n, parseErr := strconv.ParseInt(text, 10, 32)
		if parseErr != nil || n < 0 || n > 100 {
			err = fmt.Errorf("annotation %s: %q is not a whole number from 0 to 100", AnnotationUtilization, text)
		} else {
			utilization := int32(n)
			o.Utilization = &utilization
		}
	}
	return o, err
}

// uuidSpace keeps the UUIDs of simulated GPUs apart from all others.
var uuidSpace = uuid.NewSHA1(uuid.NameSpaceDNS, []byte("simulated."+v1alpha1.GroupName))

// UUID is the UUID of the GPU with that index on that node: the same in every run.
func UUID(node string, index int) string {
	return "GPU-" + uuid.NewSHA1(uuidSpace, []byte(node+"/"+strconv.Itoa(index))).String()
}

// Devices are the GPUs of one node of a scenario.
type Devices struct {
	node      *Node
	workloads []Workload
	events    []Event // in the order of time
	gpus      []v1alpha1.GPU
	index     map[string]int // by UUID
	// changes are the times at which the scenario changes a reading, ascending.
	changes []time.Duration
}

// NewDevices returns the GPUs of a node of a valid scenario, which must not change afterwards.
func NewDevices(node *Node, workloads []Workload) *Devices {
	d := &Devices{node: node, workloads: workloads, index: map[string]int{}}
	for _, group := range node.GPUs {
		for range group.Count {
			i := len(d.gpus)
			gpu := v1alpha1.GPU{
				UUID: UUID(node.Name, i), Index: int32(i), Model: group.Model,
				MemoryTotalMiB: group.MemoryMiB, MemoryReservedMiB: group.ReservedMiB, Healthy: true,
			}
			d.index[gpu.UUID] = i
			d.gpus = append(d.gpus, gpu)
		}
	}
	d.events = slices.Clone(node.Events)
	slices.SortStableFunc(d.events, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
	times := map[time.Duration]bool{}
	for _, e := range d.events {
		times[e.At] = true
	}
	for _, p := range node.Processes {
		times[p.From] = true
		if p.Until > 0 {
			times[p.Until] = true
		}
	}
	d.changes = slices.Sorted(maps.Keys(times))
	return d
}

// Has says whether one of the GPUs has that UUID.
func (d *Devices) Has(uuid string) bool {
	_, ok := d.index[uuid]
	return ok
}

// NextChange is the first time after at when the scenario itself changes what the GPUs read.
func (d *Devices) NextChange(at time.Duration) (next time.Duration, ok bool) {
	i, found := slices.BinarySearch(d.changes, at)
	if found {
		i++
	}
	if i == len(d.changes) {
		return 0, false
	}
	return d.changes[i], true
}

// use is what one process or pod does on one GPU.
type use struct {
	pod         *Pod // nil for a process of no pod
	since       time.Duration
	memoryMiB   int64
	utilization int32
}

// Read returns what the GPUs read at that time, in the order of their indices. As on a true GPU, who comes first gets the
// memory it wants, and who comes later gets no more than is left.
func (d *Devices) Read(at time.Duration, pods []Pod) []v1alpha1.GPU {
	gpus := slices.Clone(d.gpus)
	for _, e := range d.events {
		if e.At <= at {
			e.happen(&gpus[e.GPU])
		}
	}
	uses := make([][]use, len(gpus))
	for i := range d.node.Processes {
		if p := &d.node.Processes[i]; p.runs(at) {
			uses[p.GPU] = append(uses[p.GPU], use{since: p.From, memoryMiB: p.MemoryMiB, utilization: p.Utilization})
		}
	}
	for i := range pods {
		for _, uuid := range slices.Compact(slices.Sorted(slices.Values(pods[i].GPUs))) {
			if g, ok := d.index[uuid]; ok {
				uses[g] = append(uses[g], d.podUse(&pods[i], &gpus[g], at))
			}
		}
	}
	for i := range gpus {
		account(&gpus[i], uses[i])
	}
	return gpus
}

// account adds up what is used of a GPU.
func account(gpu *v1alpha1.GPU, uses []use) {
	slices.SortStableFunc(uses, func(a, b use) int {
		return cmp.Or(cmp.Compare(a.since, b.since), cmp.Compare(a.uid(), b.uid()))
	})
	if gpu.UnhealthyReason == v1alpha1.ReasonLost {
		for i := range uses {
			uses[i].memoryMiB, uses[i].utilization = 0, 0
		}
	}
	var wanted int32
	for _, u := range uses {
		wanted += u.utilization
	}
	gpu.Utilization = min(100, wanted)
	left := gpu.MemoryTotalMiB - gpu.MemoryReservedMiB
	for _, u := range uses {
		memory := min(u.memoryMiB, left)
		left -= memory
		gpu.MemoryUsedMiB += memory
		if u.pod == nil {
			gpu.MemoryForeignMiB += memory
			continue
		}
		utilization := u.utilization
		if wanted > 100 {
			utilization = utilization * 100 / wanted
		}
		gpu.Pods = append(gpu.Pods, v1alpha1.GPUPod{
			Namespace: u.pod.Namespace, Name: u.pod.Name, UID: u.pod.UID, MemoryUsedMiB: memory, Utilization: utilization,
		})
	}
}

// uid orders processes before pods.
func (u *use) uid() types.UID {
	if u.pod == nil {
		return ""
	}
	return u.pod.UID
}

func (d *Devices) podUse(pod *Pod, gpu *v1alpha1.GPU, at time.Duration) use {
	usable := gpu.MemoryTotalMiB - gpu.MemoryReservedMiB
	asked := pod.MiB
	if asked == 0 {
		asked = pod.Milli * usable / 1000
	}
	workload := d.workload(pod)
	minutes := max(0, (at - pod.Since).Minutes())
	memory := float64(asked)*workload.MemoryFraction + float64(workload.GrowthMiBPerMinute)*minutes
	u := use{pod: pod, since: pod.Since, memoryMiB: int64(min(memory, float64(usable)))}
	if pod.Overrides.MemoryMiB != nil {
		u.memoryMiB = *pod.Overrides.MemoryMiB
	}
	switch {
	case pod.Overrides.Utilization != nil:
		u.utilization = *pod.Overrides.Utilization
	case workload.Utilization != nil:
		u.utilization = *workload.Utilization
	default:
		compute := cmp.Or(float64(pod.Milli)/1000, float64(asked)/float64(usable))
		u.utilization = int32(math.Round(min(1, compute) * DefaultUtilization * (1 + wobble(string(pod.UID)+gpu.UUID, at)/10)))
	}
	return u
}

func (d *Devices) workload(pod *Pod) Workload {
	for _, w := range d.workloads {
		if w.Selector == nil || w.Selector.Matches(labels.Set(pod.Labels)) {
			return w
		}
	}
	return Workload{MemoryFraction: DefaultMemoryFraction}
}

// wobblePeriod is the time between two of the values that wobble joins.
const wobblePeriod = time.Minute

// wobble is a value from -1 to 1 that moves slowly with time, in its own way for each seed.
func wobble(seed string, at time.Duration) float64 {
	at = max(0, at)
	period, rest := at/wobblePeriod, at%wobblePeriod
	value := func(period time.Duration) float64 {
		h := fnv.New32a()
		fmt.Fprintf(h, "%d/%s", period, seed)
		return float64(h.Sum32())/math.MaxUint32*2 - 1
	}
	from, to := value(period), value(period+1)
	return from + (to-from)*float64(rest)/float64(wobblePeriod)
}

func (p *Process) runs(at time.Duration) bool {
	return p.From <= at && (p.Until == 0 || at < p.Until)
}

// ApplicationXid says whether an Xid is the fault of an application. As NVIDIA's device plugin does by default, gpupack
// leaves a GPU in use after one.
func ApplicationXid(code int) bool {
	switch code {
	case 13, // graphics engine exception
		31,  // GPU memory page fault
		43,  // GPU stopped processing
		45,  // pre-emptive cleanup, after another error
		68,  // video processor exception
		109: // context switch timeout
		return true
	}
	return false
}

// xidNames are the meanings of the Xids that most often take a GPU out of use.
var xidNames = map[int]string{
	48:  "double bit ECC error",
	61:  "internal micro-controller breakpoint",
	62:  "internal micro-controller halt",
	64:  "row remapper failure",
	74:  "NVLink error",
	79:  "GPU has fallen off the bus",
	94:  "contained ECC error",
	95:  "uncontained ECC error",
	119: "GSP RPC timeout",
	120: "GSP error",
}

func (e *Event) happen(gpu *v1alpha1.GPU) {
	switch e.Kind {
	case EventXid:
		if ApplicationXid(e.Code) {
			return
		}
		gpu.Healthy, gpu.UnhealthyReason = false, v1alpha1.ReasonXid
		gpu.UnhealthyMessage = fmt.Sprintf("Xid %d", e.Code)
		if name, ok := xidNames[e.Code]; ok {
			gpu.UnhealthyMessage += ": " + name
		}
	case EventECC:
		gpu.Healthy, gpu.UnhealthyReason = false, v1alpha1.ReasonECC
		gpu.UnhealthyMessage = "uncorrectable memory error"
	case EventLost:
		gpu.Healthy, gpu.UnhealthyReason = false, v1alpha1.ReasonLost
		gpu.UnhealthyMessage = "GPU is lost"
	case EventRecover:
		gpu.Healthy, gpu.UnhealthyReason, gpu.UnhealthyMessage = true, "", ""
	}
}
