// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

func TestPlacementTree(t *testing.T) {
	goldenWidths(t, "placements-tree", cluster(t, fleet()), exitOK, "placements", "-A", "--tree")
	goldenWidths(t, "placements-tree-gang", cluster(t, fleet()), exitOK, "placements", "-A", "--by", "gang")
	got := invoke(t, cluster(t, fleet()), "placements", "-A", "--tree", "--by=rack")
	assert.Equal(t, exitUsage, got.code)
	assert.Contains(t, got.err, "error: --by=rack is not node or gang\n")
}

func TestPlacementsOfANode(t *testing.T) {
	got := invoke(t, cluster(t, fleet()), "placements", "-A", "--node", "gpu-h100-01", "-o", "name")
	assert.Equal(t, result{exitOK, "pod/notebook-ada\npod/chat-7d9c6b5f4-m4wzq\npod/chat-7d9c6b5f4-x8k2p\npod/embedder-5f4c9d8b7-qq2vt\n", ""}, got)
}

// denied is the cluster for who may not list those resources.
func denied(r client.Reader, lists ...client.ObjectList) client.Client {
	return interceptor.NewClient(r.(client.WithWatch), interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			for _, l := range lists {
				if typeName(l) == typeName(list) {
					return apierrors.NewForbidden(v1alpha1.SchemeGroupVersion.WithResource("things").GroupResource(), "",
						errors.New(`User "ada" cannot list resource "things"`))
				}
			}
			return c.List(ctx, list, opts...)
		},
	})
}

// Where the GPUs are on their nodes is not worth failing for.
func TestPlacementsWithoutGPUNodes(t *testing.T) {
	got := invoke(t, denied(cluster(t, fleet()), &v1alpha1.GPUNodeList{}), "placements", "notebook-ada", "--no-headers")
	assert.Equal(t, exitOK, got.code)
	assert.Contains(t, got.out, "GPU-gpu-h100")
	assert.Equal(t, "You may not list gpunodes, so that GPUs are shown by UUID: the ClusterRole gpupack-reader lets you.\n", got.err)
}
