// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

// wholeForeignMiB is how much foreign memory a GPU may have that is given away whole: the default of GPUPackArgs.
const wholeForeignMiB = 512

// tenant is a pod on a GPU.
type tenant struct {
	pod     *corev1.Pod
	request pack.Request
	usedMiB int64
}

type gpuState struct {
	v1alpha1.GPU
	node    string
	tenants []tenant
}

// poolState is what the API says of a pool. It is read here on its own, not by what gpupack decides with, so that it can
// tell when that is wrong.
type poolState struct {
	pods     []corev1.Pod
	requests map[types.UID]pack.Request
	gpus     []*gpuState
	// unseen are running pods with GPUs of which no GPUNode tells yet.
	unseen []string
}

func (d *demo) readPool(ctx context.Context, p *pool) (*poolState, error) {
	pods, err := d.client.CoreV1().Pods(p.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	s := &poolState{pods: pods.Items, requests: map[types.UID]pack.Request{}}
	byUID := map[types.UID]*corev1.Pod{}
	holders := map[string][]*corev1.Pod{} // by the UUID in the annotation of gpupack
	unseen := map[types.UID]bool{}
	for i := range s.pods {
		pod := &s.pods[i]
		request, err := convert.Request(pod)
		if err != nil {
			return nil, fmt.Errorf("pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		s.requests[pod.UID] = request
		if !convert.HoldsGPUs(pod) {
			continue
		}
		byUID[pod.UID] = pod
		unseen[pod.UID] = true
		for _, uuid := range convert.GPUs(pod) {
			holders[uuid] = append(holders[uuid], pod)
		}
	}

	list, err := d.dynamic.Resource(v1alpha1.GPUNodeGVR).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	inPool, err := d.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: p.selector()})
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for i := range inPool.Items {
		names[inPool.Items[i].Name] = true
	}
	for i := range list.Items {
		var gn v1alpha1.GPUNode
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(list.Items[i].Object, &gn); err != nil {
			return nil, err
		}
		if !names[gn.Name] {
			continue
		}
		for _, gpu := range gn.Status.GPUs {
			g := &gpuState{GPU: gpu, node: gn.Name}
			used := map[types.UID]int64{}
			for _, seen := range gpu.Pods {
				delete(unseen, seen.UID)
				used[seen.UID] = seen.MemoryUsedMiB
				// Of a pod that gpupack did not place, the agent alone knows which GPUs it has.
				if pod := byUID[seen.UID]; pod != nil && convert.GPUs(pod) == nil {
					g.tenants = append(g.tenants, tenant{pod, s.requests[pod.UID], seen.MemoryUsedMiB})
				}
			}
			for _, pod := range holders[gpu.UUID] {
				g.tenants = append(g.tenants, tenant{pod, s.requests[pod.UID], used[pod.UID]})
			}
			s.gpus = append(s.gpus, g)
		}
	}
	for uid := range unseen {
		s.unseen = append(s.unseen, byUID[uid].Name)
	}
	return s, nil
}

// app counts the running pods of an app, the GPUs that they are on, and those of these that nobody else is on.
func (s *poolState) app(name string) (running, gpus, alone int) {
	for i := range s.pods {
		if s.pods[i].Labels[appLabel] == name && s.pods[i].Status.Phase == corev1.PodRunning {
			running++
		}
	}
	for _, g := range s.gpus {
		here := 0
		for _, t := range g.tenants {
			if t.pod.Labels[appLabel] == name {
				here++
			}
		}
		if here > 0 {
			gpus++
			if here == len(g.tenants) {
				alone++
			}
		}
	}
	return running, gpus, alone
}

// allocatedMilli is what the tenants of a GPU were promised of it, in the resource of which that is most, compute or
// memory.
func (g *gpuState) allocatedMilli() int64 {
	var milli, mib int64
	usable := g.MemoryTotalMiB - g.MemoryReservedMiB
	for i := range g.tenants {
		r := &g.tenants[i].request
		mib += r.MiBOn(usable)
		if r.GPUs > 0 {
			milli += pack.WholeMilli
		} else {
			milli += r.Milli
		}
	}
	return max(milli, mib*pack.WholeMilli/usable)
}

// beyond returns the pods on a GPU that cannot have all memory that they were promised, since the driver, processes of no
// pod and the pods need more together than there is.
func (g *gpuState) beyond() []string {
	free := g.MemoryTotalMiB - g.MemoryReservedMiB - g.MemoryForeignMiB
	var names []string
	whole := false
	for i := range g.tenants {
		t := &g.tenants[i]
		names = append(names, t.pod.Name)
		whole = whole || t.request.GPUs > 0
		free -= max(t.request.MiBOn(g.MemoryTotalMiB-g.MemoryReservedMiB), t.usedMiB)
	}
	if free >= 0 || whole && len(g.tenants) == 1 && g.MemoryForeignMiB <= wholeForeignMiB {
		return nil
	}
	return names
}

// totals is a column of the comparison.
type totals struct {
	asked, running        int
	tasks, tasksRunning   int
	gang                  int
	gangNodes             map[string]bool
	finetune              int
	servedMilli           int64
	askedMilli            int64
	gpusUsed, wholeFree   int
	gpus                  int
	allocatedMilli        int64
	onSick, beyondMemory  []string
	sharedMore, unhealthy []string
}

func (s *poolState) totals(asked map[string]int64) *totals {
	t := &totals{gangNodes: map[string]bool{}, gpus: len(s.gpus)}
	for i := range s.pods {
		pod := &s.pods[i]
		running := pod.Status.Phase == corev1.PodRunning
		t.asked++
		t.askedMilli += asked[podKey(pod)]
		if running {
			t.running++
			t.servedMilli += asked[podKey(pod)]
		}
		switch pod.Labels[appLabel] {
		case "openb":
			t.tasks++
			if running {
				t.tasksRunning++
			}
		case gangName:
			if running {
				t.gang++
				t.gangNodes[pod.Spec.NodeName] = true
			}
		case finetuneName:
			if running {
				t.finetune++
			}
		}
	}
	for _, g := range s.gpus {
		if len(g.tenants) > 0 {
			t.gpusUsed++
		} else if g.Healthy && g.MemoryForeignMiB <= wholeForeignMiB {
			t.wholeFree++
		}
		allocated := g.allocatedMilli()
		t.allocatedMilli += min(allocated, pack.WholeMilli)
		if allocated > pack.WholeMilli {
			t.sharedMore = append(t.sharedMore, fmt.Sprintf("%s of %s", g.UUID, g.node))
		}
		if !g.Healthy {
			t.unhealthy = append(t.unhealthy, fmt.Sprintf("GPU %d of %s", g.Index, g.node))
			for _, tenant := range g.tenants {
				t.onSick = append(t.onSick, tenant.pod.Name)
			}
		}
		t.beyondMemory = append(t.beyondMemory, g.beyond()...)
	}
	return t
}

// podKey is the same for the same pod of each pool. Replicas of a Deployment are all alike.
func podKey(pod *corev1.Pod) string {
	if pod.Labels[appLabel] == chatName {
		return chatName
	}
	return pod.Name
}

func (d *demo) report(ctx context.Context) error {
	states := map[*pool]*poolState{}
	err := step("wait until the GPUs show their last pods", func() (string, error) {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		for {
			unseen := 0
			for _, p := range d.pools {
				s, err := d.readPool(ctx, p)
				if err != nil {
					return "", err
				}
				states[p] = s
				unseen += len(s.unseen)
			}
			if unseen == 0 {
				return "", nil
			}
			if err := sleep(ctx, 300*time.Millisecond); err != nil {
				return "", fmt.Errorf("%d pods that have GPUs are in no GPUNode: %w", unseen, err)
			}
		}
	})
	if err != nil {
		return err
	}

	env := []string{"KUBECONFIG=" + d.controlPlane.Kubeconfig()}
	if err := d.showCommand(ctx, env, "top", "--watch=false", "--selector", gpupackPool.selector()); err != nil {
		return err
	}
	if d.screenshot != "" {
		// All nodes would be too long a picture.
		some := gpupackPool.selector() + "," + modelLabel + " in (G2,G3)"
		if err := screenshot(ctx, env, d.screenshot, "top", "--watch=false", "--selector", some); err != nil {
			return err
		}
	}
	pending := ""
	for i := range states[gpupackPool].pods {
		pod := &states[gpupackPool].pods[i]
		if pod.Labels[appLabel] == finetuneName && pod.Spec.NodeName == "" {
			pending = pod.Name
		}
	}
	if pending == "" {
		return fmt.Errorf("broken promise: all pods %s run, although two of the four %s nodes have a GPU that they must not get",
			finetuneName, finetuneModel)
	}
	if err := d.showCommand(ctx, env, "explain", pending, "--namespace", gpupackPool.namespace); err != nil {
		return err
	}

	// What pods ask for is counted alike in both pools: by what they ask of gpupack.
	asked := map[string]int64{}
	state := states[gpupackPool]
	for i := range state.pods {
		r := state.requests[state.pods[i].UID]
		asked[podKey(&state.pods[i])] = demandMilli(&r)
	}
	columns := map[*pool]*totals{}
	for _, p := range d.pools {
		columns[p] = states[p].totals(asked)
	}
	d.printTable(states, columns)
	return promises(columns[gpupackPool])
}

// demandMilli is what a request asks for, in milli-GPU. A share of memory counts as that of a G2, the most common GPU, so
// that it is the same wherever the pod runs.
func demandMilli(r *pack.Request) int64 {
	if r.GPUs > 0 {
		return int64(r.GPUs) * pack.WholeMilli
	}
	if r.Milli > 0 {
		return r.Milli
	}
	memory := gpuMemory["G2"]
	return r.MilliOn(memory.total - memory.reserved)
}

func (d *demo) printTable(states map[*pool]*poolState, columns map[*pool]*totals) {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	row := func(name string, value func(*pool, *totals) string) {
		fmt.Fprint(out, name)
		for _, p := range d.pools {
			fmt.Fprint(out, "\t", value(p, columns[p]))
		}
		fmt.Fprintln(out)
	}
	gpus := func(milli int64) string { return fmt.Sprintf("%.1f", float64(milli)/pack.WholeMilli) }

	if len(d.pools) > 1 {
		fmt.Print("\nThe same pods in the same order on the same nodes, at the end:\n\n")
	} else {
		fmt.Print("\nAt the end:\n\n")
	}
	row("", func(p *pool, _ *totals) string { return strings.ToUpper(p.title) })
	row("GPU demand that runs, in GPUs", func(_ *pool, t *totals) string {
		return fmt.Sprintf("%s of %s", gpus(t.servedMilli), gpus(t.askedMilli))
	})
	row("pods running", func(_ *pool, t *totals) string { return fmt.Sprintf("%d of %d", t.running, t.asked) })
	row("  tasks of the trace", func(_ *pool, t *totals) string { return fmt.Sprintf("%d of %d", t.tasksRunning, t.tasks) })
	row(fmt.Sprintf("  members of the gang %s", gangName), func(_ *pool, t *totals) string {
		return fmt.Sprintf("%d of %d", t.gang, gangMembers)
	})
	row(fmt.Sprintf("  pods %s", finetuneName), func(_ *pool, t *totals) string {
		return fmt.Sprintf("%d of %d", t.finetune, finetunePods)
	})
	row(fmt.Sprintf("  replicas of %s", chatName), func(p *pool, _ *totals) string {
		running, _, _ := states[p].app(chatName)
		return fmt.Sprintf("%d of 4", running)
	})
	row(fmt.Sprintf("GPUs that %s had to itself, at 2, 12 and 4", chatName), func(p *pool, _ *totals) string {
		return fmt.Sprintf("%d, %d, %d", d.chatGPUs[p][2], d.chatGPUs[p][12], d.chatGPUs[p][4])
	})
	row("GPU share allocated", func(_ *pool, t *totals) string {
		return fmt.Sprintf("%.1f %%", float64(t.allocatedMilli)/pack.WholeMilli/float64(t.gpus)*100)
	})
	row("GPUs in use", func(_ *pool, t *totals) string { return fmt.Sprintf("%d of %d", t.gpusUsed, t.gpus) })
	row("whole GPUs left free", func(_ *pool, t *totals) string { return fmt.Sprint(t.wholeFree) })
	row("pods on the sick GPU", func(_ *pool, t *totals) string { return fmt.Sprint(len(t.onSick)) })
	row("pods beyond effective memory", func(_ *pool, t *totals) string { return fmt.Sprint(len(t.beyondMemory)) })
	out.Flush()
	if len(d.pools) == 1 {
		return
	}
	fmt.Print(`
What this does not compare: without gpupack, a pod that needs a share asks for a whole GPU, since there is no other way, so
its whole GPU counts as allocated; demand counts the share on both sides. Models are node affinity there. NVIDIA's device
plugin, which is simulated, takes a sick GPU out of the node's allocatable, so no pod gets it there either; of memory that
other processes hold it knows nothing. Coscheduling, MIG and time-slicing would change that side, and are not set up here.
`)
}

// promises returns an error for each promise that is broken.
func promises(t *totals) error {
	var errs []error
	broken := func(format string, args ...any) { errs = append(errs, fmt.Errorf("broken promise: "+format, args...)) }
	if t.gang != gangMembers || len(t.gangNodes) != gangMembers {
		broken("%d of %d members of the gang %s run, on %d nodes", t.gang, gangMembers, gangName, len(t.gangNodes))
	}
	if len(t.unhealthy) != 1 {
		broken("one GPU should be sick, not %d: %s", len(t.unhealthy), strings.Join(t.unhealthy, ", "))
	}
	if len(t.onSick) > 0 {
		broken("pods are on the sick GPU: %s", strings.Join(t.onSick, ", "))
	}
	if len(t.beyondMemory) > 0 {
		broken("pods do not get their memory: %s", strings.Join(t.beyondMemory, ", "))
	}
	if len(t.sharedMore) > 0 {
		broken("GPUs are promised more than once: %s", strings.Join(t.sharedMore, ", "))
	}
	if errs == nil {
		fmt.Printf("\nAs promised: the gang is whole on %d nodes, no pod is on the sick GPU, and none is beyond effective memory.\n",
			len(t.gangNodes))
	}
	return errors.Join(errs...)
}

// showCommand prints a command as a user would type it, and its output.
func (d *demo) showCommand(ctx context.Context, env []string, args ...string) error {
	fmt.Printf("\n$ %s\n", commandLine(args))
	return show(ctx, env, plugin, args...)
}

// commandLine is what a user types in a shell.
func commandLine(args []string) string {
	words := []string{"kubectl", "gpupack"}
	for _, arg := range args {
		if strings.ContainsAny(arg, " ()") {
			arg = "'" + arg + "'"
		}
		words = append(words, arg)
	}
	return strings.Join(words, " ")
}
