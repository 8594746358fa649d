// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package scheme makes kube-scheduler understand GPUPackArgs in its configuration. Import it for that effect.
package scheme

import (
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	schedulerscheme "k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	schedulerv1 "k8s.io/kubernetes/pkg/scheduler/apis/config/v1"

	"github.com/gpupack/gpupack/plugins/config"
	configv1 "github.com/gpupack/gpupack/plugins/config/v1"
)

func init() {
	// kube-scheduler decodes its configuration with the first scheme, and converts plugins' arguments with the second.
	for _, s := range []*runtime.Scheme{schedulerscheme.Scheme, schedulerv1.GetPluginArgConversionScheme()} {
		utilruntime.Must(config.AddToScheme(s))
		utilruntime.Must(configv1.AddToScheme(s))
	}
}
