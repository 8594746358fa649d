// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	_ "embed"
	"time"
)

const (
	// KwokNodeAnnotation is the annotation of nodes that kwok runs; its value is KwokNodeValue.
	KwokNodeAnnotation = "kwok.x-k8s.io/node"
	KwokNodeValue      = "fake"

	// KwokNotReadyLabel, set to "true" on a node that kwok runs, makes the node not ready until the label is removed.
	KwokNotReadyLabel = "node-not-ready.stage.kwok.x-k8s.io"

	// KwokReadyDelayAnnotation is how long a pod takes from being bound to running, e.g. "5s". Without it: no time.
	KwokReadyDelayAnnotation = "pod-ready.stage.kwok.x-k8s.io/delay"
	// KwokCompleteDelayAnnotation is how long a pod runs until it succeeds, e.g. "30s". Without it a pod runs until it is
	// deleted, also that of a Job.
	KwokCompleteDelayAnnotation = "pod-complete.stage.kwok.x-k8s.io/delay"
)

// nodeMonitorGracePeriod is how long the controller manager lets a node be silent. It is longer than the period in which
// kwok's nodes report, which is long so that thousands of them cost little: see the stage node-heartbeat.
const nodeMonitorGracePeriod = 15 * time.Minute

//go:embed kwok.yaml
var kwokConfig []byte
