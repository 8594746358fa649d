// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package nvml is the home of the readers of GPUs. What they read is api/v1alpha1.GPU, so that the agent publishes the
// figures of a simulated node as it does those of a true one.
package nvml
