// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"k8s.io/apimachinery/pkg/runtime"
	schedulerconfig "k8s.io/kubernetes/pkg/scheduler/apis/config"
)

// AddToScheme adds the internal types to kube-scheduler's configuration group.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(schedulerconfig.SchemeGroupVersion, &GPUPackArgs{})
	return nil
}
