// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gpupack/gpupack/test/embedded"
)

// plan is what to measure.
type plan struct {
	// parts by name; nodes are the numbers of nodes for gangs, smallest first.
	parts []string
	nodes []int
	// sizes are members of gangs.
	sizes []int
	// singles are how many single pods there are, and their nodes.
	singles, singleNodes int
	// kaiMembers and kaiJobs are KAI-Scheduler's shapes; it and contention run on the smallest number of nodes.
	kaiMembers, kaiJobs int
}

const (
	partGangs      = "gangs"
	partSingles    = "singles"
	partContention = "contention"
	partKAI        = "kai"
	partLimits     = "limits"
)

func allParts() []string {
	return []string{partGangs, partLimits, partContention, partKAI, partSingles}
}

// gangs measures single gangs, one after another in an empty cluster.
func (b *bench) gangs(ctx context.Context, sizes []int) error {
	for repeat := range b.repeats {
		for _, size := range sizes {
			out, err := b.alone(ctx, size)
			if err != nil {
				return err
			}
			b.record(key{partGangs, b.nodes, size, string(held), nobody}, out)
		}
		for _, k := range order([]kind{ours, coscheduling, stock}, repeat) {
			err := b.with(ctx, k, b.limits, permitDefault, func(s *scheduler) error {
				for _, size := range sizes {
					for _, how := range []way{created, held} {
						out, err := b.run(ctx, s, gangOf(k, size), how)
						if err != nil {
							return err
						}
						b.record(key{partGangs, b.nodes, size, string(how), k}, out)
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// stockLimits are kube-scheduler's defaults, and shippedLimits those of gpupack's configuration.
var (
	stockLimits   = limits{50, 100}
	shippedLimits = limits{200, 400}
)

// clientLimits shows what the limits of clients do.
func (b *bench) clientLimits(ctx context.Context, size int) error {
	for repeat := range b.repeats {
		for _, l := range []limits{stockLimits, shippedLimits} {
			for _, k := range order([]kind{ours, coscheduling, stock}, repeat) {
				err := b.with(ctx, k, l, permitDefault, func(s *scheduler) error {
					// What the first pod left of the burst grows back.
					if err := sleep(ctx, time.Second); err != nil {
						return err
					}
					out, err := b.run(ctx, s, gangOf(k, size), held)
					if err != nil {
						return err
					}
					b.record(key{partLimits, b.nodes, l.qps, fmt.Sprint(size), k}, out)
					return nil
				})
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// How singles run.
const (
	calm   = "calm"
	churnt = "changing"
)

// churnPart is the part of the nodes whose telemetry changes in a second.
const churnPart = 0.1

// whole and share are how many GPUs single pods want.
const (
	wantWhole = 1
	wantShare = 0
)

func singleHow(what int64, telemetry string, how way) string {
	name := "whole"
	if what == wantShare {
		name = "share"
	}
	return name + " " + telemetry + " " + string(how)
}

func (b *bench) singles(ctx context.Context, n int) error {
	for repeat := range b.repeats {
		for _, k := range order([]kind{ours, stock}, repeat) {
			wants := []int64{wantWhole, wantShare}
			if k == stock {
				wants = wants[:1] // the same pods for both
			}
			err := b.with(ctx, k, b.limits, permitDefault, func(s *scheduler) error {
				for _, want := range wants {
					for _, how := range []way{held, created} {
						out, err := b.run(ctx, s, singles(k, n, want), how)
						if err != nil {
							return err
						}
						b.record(key{partSingles, b.nodes, n, singleHow(want, calm, how), k}, out)
					}
					w := b.churn(ctx, int(churnPart*float64(b.nodes)))
					out, err := b.run(ctx, s, singles(k, n, want), created)
					written, writeErr := w.stop()
					if err == nil {
						err = writeErr
					}
					if err != nil {
						return err
					}
					out.written = written
					b.record(key{partSingles, b.nodes, n, singleHow(want, churnt, created), k}, out)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// quietTime is how long nothing may be bound until it is said that no more can be placed. It is longer than coscheduling holds
// members that wait, and than the longest back-off.
const quietTime = 20 * time.Second

// contentionLoad is how much of the cluster gangs ask for.
const contentionLoad = 1.5

func (b *bench) contention(ctx context.Context) error {
	gpus := b.nodes * gpusPerNode
	for repeat := range b.repeats {
		for _, k := range order([]kind{ours, coscheduling, stock}, repeat) {
			err := b.with(ctx, k, b.limits, permitShipped, func(s *scheduler) error {
				w := contended(k, int(contentionLoad*float64(gpus)))
				out := sample{wanted: float64(len(w.pods))}
				t, err := b.track(ctx, false)
				if err != nil {
					return err
				}
				defer t.stop()
				if err := b.createGroups(ctx, w.groups); err != nil {
					return err
				}
				before, err := b.usage(ctx, s)
				if err != nil {
					return err
				}
				first := time.Now()
				if err := b.createPods(ctx, w.pods); err != nil {
					return err
				}
				last := time.Now()
				out.creating = last.Sub(first).Seconds()
				calm, err := t.quiet(ctx, s, quietTime, b.limit)
				if err != nil {
					return err
				}
				out.finish(t, first, last, calm, b.limit)
				half, whole := t.halves(w.groups)
				out.half, out.whole, out.allocated = float64(half), float64(whole), 100*float64(t.gpus)/float64(gpus)
				if err := b.account(ctx, s, before, &out); err != nil {
					return err
				}
				b.record(key{partContention, b.nodes, len(w.groups), "", k}, out)
				return b.clear(ctx)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// How KAI-Scheduler's shapes run.
const (
	kaiGang    = "one Job"
	kaiRunning = "many Jobs, running"
	kaiAfter   = "many Jobs, started after"
)

// kai runs the shapes that KAI-Scheduler publishes. The default profile runs them once, to show what is not the scheduler.
func (b *bench) kai(ctx context.Context, members, jobs int) error {
	if err := b.cp.StartComponent(ctx, embedded.ControllerManager); err != nil {
		return err
	}
	defer func() { _ = b.cp.StopComponent(embedded.ControllerManager) }()
	for repeat := range b.repeats {
		kinds := []kind{ours}
		if repeat == 0 {
			kinds = append(kinds, stock)
		}
		for _, k := range kinds {
			err := b.with(ctx, k, b.limits, permitDefault, func(s *scheduler) error {
				group := ""
				groups := map[string]int{}
				if k.gangs() {
					group, groups["job"] = "job", members
				}
				out, err := b.runJobs(ctx, s, groups, members, func() error {
					_, err := b.client.BatchV1().Jobs(namespace).Create(ctx, job(k, "job", members, group), metav1.CreateOptions{})
					return err
				})
				if err != nil {
					return err
				}
				b.record(key{partKAI, b.nodes, members, kaiGang, k}, out)
				out, err = b.runJobs(ctx, s, nil, jobs, func() error { return b.createJobs(ctx, k, jobs) })
				if err != nil {
					return err
				}
				b.record(key{partKAI, b.nodes, jobs, kaiRunning, k}, out)
				return nil
			})
			if err != nil {
				return err
			}
			out, err := b.jobsFirst(ctx, k, jobs)
			if err != nil {
				return err
			}
			b.record(key{partKAI, b.nodes, jobs, kaiAfter, k}, out)
		}
	}
	return nil
}

// runJobs measures from the creation of the first Job to the binding of the last pod. What creating says is how long the
// Job controller took to create all pods.
func (b *bench) runJobs(ctx context.Context, s *scheduler, groups map[string]int, pods int, create func() error) (sample, error) {
	out := sample{wanted: float64(pods)}
	t, err := b.track(ctx, true)
	if err != nil {
		return out, err
	}
	defer t.stop()
	if err := b.createGroups(ctx, groups); err != nil {
		return out, err
	}
	before, err := b.usage(ctx, s)
	if err != nil {
		return out, err
	}
	first := time.Now()
	if err := create(); err != nil {
		return out, err
	}
	b.profile(ctx, s, fmt.Sprintf("%s-jobs-%d-%d", s.kind, b.nodes, pods))
	all, err := t.until(ctx, s, b.limit, func(_, bound int) bool { return bound >= pods })
	if err != nil {
		return out, err
	}
	_, _, lastSeen, _, _ := t.counts()
	out.finish(t, first, lastSeen, all, b.limit)
	out.creating = lastSeen.Sub(first).Seconds()
	if err := sleep(ctx, settle); err != nil {
		return out, err
	}
	if err := b.account(ctx, s, before, &out); err != nil {
		return out, err
	}
	return out, b.empty(ctx, s)
}

// jobsFirst measures from the start of the scheduler, when all pods exist, to the binding of the last.
func (b *bench) jobsFirst(ctx context.Context, k kind, jobs int) (sample, error) {
	out := sample{wanted: float64(jobs)}
	t, err := b.track(ctx, true)
	if err != nil {
		return out, err
	}
	defer t.stop()
	submitted := time.Now()
	if err := b.createJobs(ctx, k, jobs); err != nil {
		return out, err
	}
	all, err := t.until(ctx, nil, b.limit, func(seen, _ int) bool { return seen >= jobs })
	if err != nil {
		return out, err
	}
	if !all {
		return out, fmt.Errorf("the Job controller did not create %d pods within %v", jobs, b.limit)
	}
	_, _, lastSeen, _, _ := t.counts()
	out.creating = lastSeen.Sub(submitted).Seconds()
	// It goes on to write the status of Jobs for a moment.
	if err := sleep(ctx, settle); err != nil {
		return out, err
	}
	before, err := b.usage(ctx, nil)
	if err != nil {
		return out, err
	}
	s, err := startScheduler(k, b.programs, b.cp.Dir(), b.cp.Kubeconfig(), b.limits, permitDefault)
	if err != nil {
		return out, err
	}
	defer s.stop()
	all, err = t.until(ctx, s, b.limit, func(_, bound int) bool { return bound >= jobs })
	if err != nil {
		return out, err
	}
	out.finish(t, s.started, s.started, all, b.limit)
	if err := sleep(ctx, settle); err != nil {
		return out, err
	}
	if err := b.account(ctx, s, before, &out); err != nil {
		return out, err
	}
	return out, b.clear(ctx)
}
