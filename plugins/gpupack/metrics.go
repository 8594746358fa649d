// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"sync"

	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
)

const subsystem = "gpupack_scheduler"

var (
	decisions = metrics.NewCounterVec(&metrics.CounterOpts{
		Subsystem: subsystem, Name: "decisions_total", StabilityLevel: metrics.ALPHA,
		Help: "Pods by the result of their scheduling: placed, unschedulable or invalid.",
	}, []string{"result"})
	nodeRejections = metrics.NewCounterVec(&metrics.CounterOpts{
		Subsystem: subsystem, Name: "node_rejections_total", StabilityLevel: metrics.ALPHA,
		Help: "Nodes that did not fit a pod that found no node, by reason.",
	}, []string{"reason"})
	gangPlans = metrics.NewCounterVec(&metrics.CounterOpts{
		Subsystem: subsystem, Name: "gang_plans_total", StabilityLevel: metrics.ALPHA,
		Help: "Plans of whole gangs by result: planned, failed, or dropped before they were released.",
	}, []string{"result"})
	gangPlanDuration = metrics.NewHistogram(&metrics.HistogramOpts{
		Subsystem: subsystem, Name: "gang_plan_duration_seconds", StabilityLevel: metrics.ALPHA,
		Help:    "Time to plan a whole gang.",
		Buckets: metrics.ExponentialBuckets(0.0001, 2, 16),
	})
	preemptionDuration = metrics.NewHistogram(&metrics.HistogramOpts{
		Subsystem: subsystem, Name: "preemption_plan_duration_seconds", StabilityLevel: metrics.ALPHA,
		Help:    "Time to decide what to evict for a gang or a pod.",
		Buckets: metrics.ExponentialBuckets(0.0001, 2, 16),
	})
	evictions = metrics.NewCounterVec(&metrics.CounterOpts{
		Subsystem: subsystem, Name: "evictions_total", StabilityLevel: metrics.ALPHA,
		Help: "Pods chosen as victims of preemption by result: evicted, or failed where the API server refused.",
	}, []string{"result"})
	ledgerEntries = metrics.NewGaugeVec(&metrics.GaugeOpts{
		Subsystem: subsystem, Name: "ledger_entries", StabilityLevel: metrics.ALPHA,
		Help: "Pods that GPUs are promised to, by phase: planned, assumed or bound.",
	}, []string{"phase"})
	reservationsMade = metrics.NewGaugeVec(&metrics.GaugeOpts{
		Subsystem: subsystem, Name: "reservations", StabilityLevel: metrics.ALPHA,
		Help: "Gangs and pods for which places are reserved, by scheduler profile.",
	}, []string{"profile"})
	reservationWait = metrics.NewGaugeVec(&metrics.GaugeOpts{
		Subsystem: subsystem, Name: "reservation_oldest_wait_seconds", StabilityLevel: metrics.ALPHA,
		Help: "Time that the oldest of those for which places are reserved has waited, as of half a minute ago at the most, by scheduler profile.",
	}, []string{"profile"})
	register sync.Once
)

func registerMetrics() {
	register.Do(func() {
		legacyregistry.MustRegister(decisions, nodeRejections, gangPlans, gangPlanDuration, preemptionDuration, evictions, ledgerEntries,
			reservationsMade, reservationWait)
	})
}
