// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"context"
	"path/filepath"

	"github.com/gpupack/gpupack/test/embedded"
	"github.com/gpupack/gpupack/test/process"
)

// Install applies from manifests/base what the scheduler needs: CRDs, namespace and rights.
func Install(ctx context.Context, cp *embedded.ControlPlane) error {
	base := filepath.Join(process.Root, "manifests", "base")
	crds, err := filepath.Glob(filepath.Join(base, "crds", "*.yaml"))
	if err != nil {
		return err
	}
	if err := cp.InstallCRDs(ctx, crds...); err != nil {
		return err
	}
	return cp.Apply(ctx, filepath.Join(base, "namespace.yaml"), filepath.Join(base, "rbac.yaml"))
}
