// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package trim cuts objects down to what is read of them, for caches that hold many.
package trim

import corev1 "k8s.io/api/core/v1"

// Containers keeps of containers what they ask for.
func Containers(containers []corev1.Container) []corev1.Container {
	var trimmed []corev1.Container
	for _, c := range containers {
		trimmed = append(trimmed, corev1.Container{Name: c.Name, RestartPolicy: c.RestartPolicy, Resources: c.Resources})
	}
	return trimmed
}
