// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package deletioncost

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

var updates = prometheus.NewCounter(prometheus.CounterOpts{
	Subsystem: "gpupack_controller",
	Name:      "deletion_cost_updates_total",
	Help:      "Pods whose deletion cost was changed, so that scale-down sets whole GPUs free.",
})

func init() { metrics.Registry.MustRegister(updates) }
