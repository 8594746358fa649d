// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gpupack/gpupack/test/embedded"
)

// bench measures.
type bench struct {
	*cluster
	programs programs
	limits   limits
	repeats  int
	// limit is how long a run may take until it is given up.
	limit time.Duration
	// profiles is a folder for CPU profiles of schedulers; empty for none.
	profiles string
	out      io.Writer
	results  results
}

// key is what was measured.
type key struct {
	part  string
	nodes int
	// size is how many pods there are, or how many requests a second in part limits.
	size int
	// how the pods come, and what else is special.
	how  string
	kind kind
}

// sample is one run. All times are in seconds.
type sample struct {
	// wanted pods, of which bound were bound.
	wanted, bound float64
	// fromLast is from the creation of the last pod to the last binding, and fromFirst from that of the first. Where pods were
	// held back until all of them existed, both are from when they were not any more.
	fromLast, fromFirst float64
	// creating is from the creation of the first pod to that of the last.
	creating float64
	// cpu is processor time of the scheduler, the API server, etcd and the controller manager.
	cpu, serverCPU, etcdCPU, managerCPU float64
	// calls are requests of the scheduler for each pod wanted: all, bindings, patches of pods, and events.
	calls, bindings, patches, events float64
	// memory is the most that the scheduler has had so far, MiB.
	memory float64
	// attempts are scheduling cycles, and cycles how long their algorithm took in all.
	attempts, cycles float64
	// binding is how long PreBind and Bind took in all; many are under way at once.
	binding float64
	// allocated GPUs, percent, and gangs that are whole or only in part bound.
	allocated, whole, half float64
	// written is how many GPUNodes were written a second.
	written float64
	// gaveUp is 1 where not all was done in time.
	gaveUp float64
}

// results are the samples of all runs.
type results map[key][]sample

func (r results) add(k key, s sample) { r[k] = append(r[k], s) }

// median of one figure; ok is false where nothing was measured.
func (r results) median(k key, of func(*sample) float64) (value float64, ok bool) {
	samples := r[k]
	if len(samples) == 0 {
		return 0, false
	}
	values := make([]float64, len(samples))
	for i := range samples {
		values[i] = of(&samples[i])
	}
	return median(values), true
}

// median returns the middle of values, or the mean of the two in the middle.
func median(values []float64) float64 {
	values = slices.Clone(values)
	slices.Sort(values)
	n := len(values)
	if n%2 == 1 {
		return values[n/2]
	}
	return (values[n/2-1] + values[n/2]) / 2
}

// order returns the schedulers in another order in each repeat.
func order(kinds []kind, repeat int) []kind {
	at := repeat % len(kinds)
	return append(slices.Clone(kinds[at:]), kinds[:at]...)
}

// with runs a scheduler that has bound a pod already, and ends it.
func (b *bench) with(ctx context.Context, k kind, l limits, permit permitSeconds, do func(s *scheduler) error) error {
	s, err := startScheduler(k, b.programs, b.cp.Dir(), b.cp.Kubeconfig(), l, permit)
	if err != nil {
		return err
	}
	defer s.stop()
	if err := s.waitReady(ctx); err != nil {
		return err
	}
	t, err := b.track(ctx, false)
	if err != nil {
		return err
	}
	defer t.stop()
	if err := b.createPods(ctx, singles(k, 1, 1).pods); err != nil {
		return err
	}
	warm, err := t.until(ctx, s, time.Minute, func(_, bound int) bool { return bound == 1 })
	if err != nil {
		return err
	}
	if !warm {
		return fmt.Errorf("%s does not bind the first pod within a minute; its log is %s", k, s.log)
	}
	if err := b.empty(ctx, s); err != nil {
		return err
	}
	return do(s)
}

// empty deletes all pods and returns when the scheduler knows.
func (b *bench) empty(ctx context.Context, s *scheduler) error {
	if err := b.clear(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, fmt.Errorf("%s does not forget deleted pods", s.kind))
	defer cancel()
	for {
		m, err := s.metrics(ctx)
		if err != nil {
			return err
		}
		if m.sum("scheduler_cache_size", `type="pods"`)+m.sum("scheduler_pending_pods") == 0 {
			return nil
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

func (s *scheduler) metrics(ctx context.Context) (metrics, error) {
	data, err := s.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	return parseMetrics(data, "scheduler_cache_size", "scheduler_pending_pods",
		"scheduler_scheduling_algorithm_duration_seconds_sum", "scheduler_scheduling_algorithm_duration_seconds_count",
		"scheduler_scheduling_attempt_duration_seconds_count",
		"scheduler_framework_extension_point_duration_seconds_sum"), nil
}

// usage is what was used until some moment.
type usage struct {
	cpu, server, etcd, manager float64
	requests, scheduler        metrics
}

func (b *bench) usage(ctx context.Context, s *scheduler) (*usage, error) {
	u := &usage{server: b.cpuOf(embedded.APIServer), etcd: b.cpuOf(embedded.Etcd), manager: b.cpuOf(embedded.ControllerManager)}
	var err error
	if s != nil {
		if u.cpu, err = cpuSeconds(s.cmd.Process.Pid); err != nil {
			return nil, err
		}
		if u.scheduler, err = s.metrics(ctx); err != nil {
			return nil, err
		}
	}
	u.requests, err = b.requests(ctx)
	return u, err
}

// settle is how long after the last binding a scheduler's work is counted, for it writes events later.
const settle = time.Second

// account fills in what was used since before.
func (b *bench) account(ctx context.Context, s *scheduler, before *usage, out *sample) error {
	if s != nil {
		// Read first, since to be asked for metrics costs processor time.
		cpu, err := cpuSeconds(s.cmd.Process.Pid)
		if err != nil {
			return err
		}
		out.cpu = cpu - before.cpu
		if out.memory, err = peakMiB(s.cmd.Process.Pid); err != nil {
			return err
		}
	}
	after, err := b.usage(ctx, s)
	if err != nil {
		return err
	}
	out.serverCPU, out.etcdCPU, out.managerCPU = after.server-before.server, after.etcd-before.etcd, after.manager-before.manager
	out.count(after.requests.since(before.requests), after.scheduler.since(before.scheduler))
	return nil
}

// count fills in what metrics tell.
func (s *sample) count(requests, scheduler metrics) {
	const name = "apiserver_request_total"
	of := func(labels ...string) float64 { return requests.sum(name, labels...) / s.wanted }
	s.bindings = of(`resource="pods"`, `subresource="binding"`)
	s.patches = of(`resource="pods"`, `verb="PATCH"`)
	s.events = of(`resource="events"`, `verb="POST"`) + of(`resource="events"`, `verb="PATCH"`)
	s.calls = s.bindings + s.patches + s.events + of(`resource="pods"`, `verb="GET"`) +
		of(`resource="podgroups"`, `verb="PATCH"`) + of(`resource="podgroups"`, `verb="PUT"`) + of(`resource="podgroups"`, `verb="GET"`)
	s.attempts = scheduler.sum("scheduler_scheduling_attempt_duration_seconds_count")
	s.cycles = scheduler.sum("scheduler_scheduling_algorithm_duration_seconds_sum")
	const point = "scheduler_framework_extension_point_duration_seconds_sum"
	s.binding = scheduler.sum(point, `extension_point="PreBind"`) + scheduler.sum(point, `extension_point="Bind"`)
}

// way is how pods come to a scheduler.
type way string

const (
	// created while the scheduler runs.
	created way = "created"
	// held back until all exist: the scheduler is stopped by a signal meanwhile.
	held way = "held"
)

// run measures one workload.
func (b *bench) run(ctx context.Context, s *scheduler, w *workload, how way) (sample, error) {
	out := sample{wanted: float64(len(w.pods))}
	t, err := b.track(ctx, false)
	if err != nil {
		return out, err
	}
	defer t.stop()
	if err := b.createGroups(ctx, w.groups); err != nil {
		return out, err
	}
	before, err := b.usage(ctx, s)
	if err != nil {
		return out, err
	}
	if how == held {
		if err := s.hold(); err != nil {
			return out, err
		}
		defer func() { _ = s.goOn() }()
	}
	first := time.Now()
	if err := b.createPods(ctx, w.pods); err != nil {
		return out, err
	}
	last := time.Now()
	out.creating = last.Sub(first).Seconds()
	if how == held {
		if err := s.goOn(); err != nil {
			return out, err
		}
		last = time.Now()
		first = last
	}
	b.profile(ctx, s, fmt.Sprintf("%s-%s-%d-%d", s.kind, how, b.nodes, len(w.pods)))
	all, err := t.until(ctx, s, b.limit, func(_, bound int) bool { return bound >= len(w.pods) })
	if err != nil {
		return out, err
	}
	out.finish(t, first, last, all, b.limit)
	if err := sleep(ctx, settle); err != nil {
		return out, err
	}
	if err := b.account(ctx, s, before, &out); err != nil {
		return out, err
	}
	return out, b.empty(ctx, s)
}

// alone measures what the API server takes to bind pods, with nobody who decides where.
func (b *bench) alone(ctx context.Context, n int) (sample, error) {
	out := sample{wanted: float64(n)}
	w := singles(nobody, n, 1)
	t, err := b.track(ctx, false)
	if err != nil {
		return out, err
	}
	defer t.stop()
	if err := b.createPods(ctx, w.pods); err != nil {
		return out, err
	}
	before, err := b.usage(ctx, nil)
	if err != nil {
		return out, err
	}
	start := time.Now()
	if err := b.bindPods(ctx, w.pods); err != nil {
		return out, err
	}
	all, err := t.until(ctx, nil, b.limit, func(_, bound int) bool { return bound >= n })
	if err != nil {
		return out, err
	}
	out.finish(t, start, start, all, b.limit)
	if err := b.account(ctx, nil, before, &out); err != nil {
		return out, err
	}
	return out, b.clear(ctx)
}

// finish fills in when pods were bound.
func (s *sample) finish(t *tracker, first, last time.Time, all bool, limit time.Duration) {
	_, bound, _, lastBound, _ := t.counts()
	s.bound = float64(bound)
	if !all {
		s.gaveUp, s.fromLast, s.fromFirst = 1, limit.Seconds(), limit.Seconds()
		return
	}
	// Where pods are bound while others are created, the last can be bound before we know that it was created.
	s.fromLast = max(0.001, lastBound.Sub(last).Seconds())
	s.fromFirst = max(0.001, lastBound.Sub(first).Seconds())
}

// profileSeconds is how long a CPU profile is.
const profileSeconds = 3

// profile writes a CPU profile of the scheduler from now on, if profiles are wanted.
func (b *bench) profile(ctx context.Context, s *scheduler, name string) {
	if b.profiles == "" {
		return
	}
	go func() {
		data, err := s.get(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%d", profileSeconds))
		if err == nil {
			err = os.WriteFile(filepath.Join(b.profiles, name+".pprof"), data, 0o644)
		}
		if err != nil {
			fmt.Fprintln(b.out, "profile:", err)
		}
	}()
}

// say tells of a run that is over.
func (b *bench) say(k key, s *sample) {
	fmt.Fprintf(b.out, "%s  %-10s %5d nodes  %4d  %-8s %-18s %.0f/%.0f bound, %.2f s from the last, %.2f s from the first, "+
		"CPU %.2f s (API server %.2f s), %.2f calls a pod (%.2f bindings, %.2f patches, %.2f events), %.0f attempts, cycles %.2f s, binding %.2f s\n",
		time.Now().Format(time.TimeOnly), k.part, k.nodes, k.size, k.how, k.kind, s.bound, s.wanted, s.fromLast, s.fromFirst, s.cpu, s.serverCPU, s.calls, s.bindings, s.patches, s.events, s.attempts, s.cycles, s.binding)
}

func (b *bench) record(k key, s sample) {
	b.say(k, &s)
	b.results.add(k, s)
}
