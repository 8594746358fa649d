// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 holds gpupack's API: the GPUNode object that an agent publishes for each node, and the names of the
// resources, labels and annotations by which pods and gangs say what they need.
//
// +kubebuilder:object:generate=true
// +groupName=gpupack.dev
package v1alpha1
