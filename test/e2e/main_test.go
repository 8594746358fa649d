// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e tests gpupack-scheduler as users meet it: a process against a real API server.
package e2e

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpupack/gpupack/test/controller"
	"github.com/gpupack/gpupack/test/embedded"
	"github.com/gpupack/gpupack/test/scheduler"
)

func TestMain(m *testing.M) {
	buildOperators := func() error {
		_, err := operators()
		return err
	}
	for _, build := range []func() error{scheduler.Build, controller.Build, buildOperators} {
		if err := build(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(embedded.RunMain(m, embedded.Options{ControllerManager: true, Kwok: true}))
}

var install sync.Once

// controlPlane returns the shared control plane with gpupack's CRDs and rights in it.
func controlPlane(t *testing.T) *embedded.ControlPlane {
	t.Helper()
	cp := embedded.Get(t)
	install.Do(func() {
		require.NoError(t, scheduler.Install(t.Context(), cp))
		require.NoError(t, controller.Install(t.Context(), cp))
	})
	return cp
}
