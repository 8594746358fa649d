// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

const subsystem = "gpupack_controller"

var (
	repairs = prometheus.NewCounterVec(prometheus.CounterOpts{
		Subsystem: subsystem,
		Name:      "gang_repairs_total",
		Help:      "Repairs of gangs, by the policy followed and the cause of the loss.",
	}, []string{"policy", "cause"})
	duration = prometheus.NewHistogram(prometheus.HistogramOpts{
		Subsystem: subsystem,
		Name:      "gang_repair_duration_seconds",
		Help:      "Time from when the loss of a member was seen until the gang ran whole again.",
		Buckets:   prometheus.ExponentialBuckets(1, 2, 14),
	})
	limitReached = prometheus.NewCounter(prometheus.CounterOpts{
		Subsystem: subsystem,
		Name:      "gang_restart_limits_reached_total",
		Help:      "Gangs given up after too many repairs.",
	})
)

func init() {
	metrics.Registry.MustRegister(repairs, duration, limitReached)
}
