// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package gpupack is the kube-scheduler plugin that places GPU pods by live telemetry. It has one file for each extension
// point; the decisions themselves are in package pack.
package gpupack

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/utils/clock"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
	"github.com/gpupack/gpupack/plugins/config"
)

// Name of the plugin in a KubeSchedulerConfiguration.
const Name = "GPUPack"

// Plugin places GPU pods.
type Plugin struct {
	handle  fwk.Handle
	args    *config.GPUPackArgs
	clock   clock.WithTickerAndDelayedExecution
	chooser pack.Chooser
	// learning is of what the policy expects to come.
	learning *learning
	// bindings has an element for each binding that is on its way.
	bindings chan struct{}
	// profile is what is wrong with the profile, worked out once.
	profile func() error

	pods       corelisters.PodLister
	podIndexer cache.Indexer
	telemetry  *telemetry
	groups     *podGroups
	ledger     *ledger
	gangs      *gangs
	blocked    blocked
	preemption *preemption
	nodes      nodeStates
	index      index
	// reservations are of those that wait for places.
	reservations *reservations
	gains        gains
	// told is what the policy knows of the cluster.
	told policy.Told
}

var (
	_ fwk.QueueSortPlugin   = &Plugin{}
	_ fwk.PreEnqueuePlugin  = &Plugin{}
	_ fwk.PreFilterPlugin   = &Plugin{}
	_ fwk.FilterPlugin      = &Plugin{}
	_ fwk.PostFilterPlugin  = &Plugin{}
	_ fwk.PreScorePlugin    = &Plugin{}
	_ fwk.ScorePlugin       = &Plugin{}
	_ fwk.ReservePlugin     = &Plugin{}
	_ fwk.PermitPlugin      = &Plugin{}
	_ fwk.BindPlugin        = &Plugin{}
	_ fwk.PostBindPlugin    = &Plugin{}
	_ fwk.EnqueueExtensions = &Plugin{}
	_ fwk.SignPlugin        = &Plugin{}
	_ io.Closer             = &Plugin{}
)

// New makes the plugin. It fails where the arguments are wrong or the API server does not serve gpupack's CRDs.
func New(ctx context.Context, obj runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
	args, ok := obj.(*config.GPUPackArgs)
	if !ok {
		return nil, fmt.Errorf("the arguments of plugin %s are of type %T, want GPUPackArgs of kubescheduler.config.k8s.io/v1", Name, obj)
	}
	if err := args.Validate(field.NewPath("pluginConfig", Name, "args")).ToAggregate(); err != nil {
		return nil, err
	}
	distribution := pack.NewDistribution(pack.DefaultClasses())
	chosen, err := policy.New(args.Policy, distribution)
	if err != nil {
		return nil, err
	}
	registerMetrics()
	p := &Plugin{
		handle: handle,
		args:   args,
		clock:  clock.RealClock{},
		chooser: pack.Chooser{
			Policy:     chosen,
			Limits:     pack.Limits{WholeForeignMiB: args.WholeGPUForeignMiB},
			LoadWeight: float64(args.LoadWeight) / 100,
		},
		ledger: newLedger(),
	}
	p.gangs = newGangs(p)
	p.bindings = make(chan struct{}, mostBindings)
	p.profile = sync.OnceValue(p.binds)
	p.reservations = newReservations(p)
	p.preemption = newPreemption(ctx, handle)
	p.learning = newLearning(distribution, handle.ClientSet(), handle.SharedInformerFactory().Core().V1().Pods().Lister(),
		ownNamespace(), handle.ProfileName())
	p.learning.keep(ctx)
	if err := p.watchPods(ctx); err != nil {
		return nil, err
	}
	if err := p.reservations.watch(ctx); err != nil {
		return nil, err
	}
	if err := p.watchNodes(); err != nil {
		return nil, err
	}
	if err := p.watchCRDs(ctx); err != nil {
		return nil, err
	}
	go p.learning.run(ctx, p.clock)
	return p, nil
}

// Close implements io.Closer, which kube-scheduler calls when it has been told to end. It does not wait for it where leader
// election is on, so that what was learned in the last minute may be lost.
func (p *Plugin) Close() error {
	p.learning.keep(context.Background())
	return nil
}

// Name implements fwk.Plugin.
func (p *Plugin) Name() string { return Name }

// SignPod declines batching: an answer for one pod does not hold for the next, since each changes which GPUs are left
// and telemetry moves between.
func (p *Plugin) SignPod(context.Context, *corev1.Pod) ([]fwk.SignFragment, *fwk.Status) {
	return nil, fwk.NewStatus(fwk.Unschedulable, "placements on GPUs depend on live telemetry")
}

// cycleKey is where the plugin keeps its state of one scheduling cycle.
const cycleKey fwk.StateKey = Name

// cycle is the plugin's state of one scheduling cycle.
type cycle struct {
	request pack.Request
	// planned is the ledger entry of a gang member that has its place already.
	planned *entry
	// back is what keeps the pod from places that are reserved for others.
	back *heldBack
	// rejected counts the nodes that Filter rejected, by reason.
	rejected *rejections
	// choices by node name, of type pack.Choice.
	choices *sync.Map
	ranking *ranking
	// short is set where the cycle looks at a few nodes only.
	short *shortlist
}

type rejections [32]atomic.Int32

func (r *rejections) counts() map[string]int {
	out := map[string]int{}
	for reason := range r {
		if n := r[reason].Load(); n > 0 {
			out[pack.Reason(reason).String()] += int(n)
		}
	}
	return out
}

// Clone implements fwk.StateData. Preemption evaluates nodes on a clone; what it finds there is not the cycle's result.
func (c *cycle) Clone() fwk.StateData {
	clone := *c
	clone.rejected, clone.choices = &rejections{}, &sync.Map{}
	return &clone
}

// cycleOf returns the plugin's state, or nil where PreFilter skipped the pod.
func cycleOf(state fwk.CycleState) *cycle {
	data, err := state.Read(cycleKey)
	if err != nil {
		return nil
	}
	c, _ := data.(*cycle)
	return c
}

// convertOptions are how telemetry is read now.
func (p *Plugin) convertOptions(now time.Time) convert.Options {
	return convert.Options{
		StaleAfter:  p.args.StaleAfter.Duration,
		StalePolicy: p.args.StalePolicy,
		Now:         now,
		Exists:      p.ledger.has,
	}
}

// latest returns the pod as the informer has it, which can be newer than the queue's copy.
func (p *Plugin) latest(pod *corev1.Pod) *corev1.Pod {
	if newest, err := p.pods.Pods(pod.Namespace).Get(pod.Name); err == nil && newest.UID == pod.UID {
		return newest
	}
	return pod
}

func (p *Plugin) logger(ctx context.Context) klog.Logger {
	return klog.FromContext(ctx).WithValues("plugin", Name)
}
