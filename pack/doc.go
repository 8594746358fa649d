// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pack holds every packing decision of gpupack: whether a request fits on a node, why not, which GPUs it should
// get, how good that is, and how a whole gang is placed.
//
// It imports no Kubernetes package, so that the scheduler, the extender, the simulator and `explain` cannot disagree.
// Quantities are integers: memory in MiB, CPU in milli-CPU, and a GPU's compute in milli-GPU (1000 is one whole GPU).
package pack
