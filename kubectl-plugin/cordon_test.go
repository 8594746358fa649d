// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// asUser is the cluster as a user meets it who is called ada.
func asUser(r client.Reader) client.Client {
	return interceptor.NewClient(r.(client.WithWatch), interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			if review, ok := obj.(*authenticationv1.SelfSubjectReview); ok {
				review.Status.UserInfo.Username = "ada"
				return nil
			}
			return c.Create(ctx, obj, opts...)
		},
	})
}

func gpuNodeOf(t *testing.T, r client.Reader, name string) *v1alpha1.GPUNode {
	t.Helper()
	gn := &v1alpha1.GPUNode{}
	require.NoError(t, r.Get(t.Context(), client.ObjectKey{Name: name}, gn))
	return gn
}

func TestCordonGPU(t *testing.T) {
	c := asUser(cluster(t, fleet()))
	before := gpuNodeOf(t, c, "gpu-h100-01")
	require.Equal(t, result{exitOK, "GPU 3 (GPU-gpu-h100-01-3) of node/gpu-h100-01 cordoned\n", ""},
		invoke(t, c, "cordon-gpu", "gpu-h100-01", "3", "--reason", "fan is loud"))
	require.Equal(t, result{exitOK, "GPU 0 (GPU-gpu-h100-01-0) of node/gpu-h100-01 cordoned\n", ""},
		invoke(t, c, "cordon-gpu", "node/gpu-h100-01", "GPU-gpu-h100-01-0"))
	require.Equal(t, result{exitOK, "GPU 3 (GPU-gpu-h100-01-3) of node/gpu-h100-01 already cordoned\n", ""},
		invoke(t, c, "cordon-gpu", "gpu-h100-01", "3"))
	gn := gpuNodeOf(t, c, "gpu-h100-01")
	at := metav1.NewTime(now).Rfc3339Copy()
	for i := range gn.Spec.CordonedGPUs {
		assert.True(t, gn.Spec.CordonedGPUs[i].Since.Time.Equal(at.Time))
		gn.Spec.CordonedGPUs[i].Since = nil
	}
	assert.Equal(t, []v1alpha1.CordonedGPU{{UUID: "GPU-gpu-h100-01-3", Reason: "fan is loud", By: "ada"}, {UUID: "GPU-gpu-h100-01-0", By: "ada"}},
		gn.Spec.CordonedGPUs)
	assert.Equal(t, before.Status, gn.Status)

	// It is seen wherever one would look.
	got := invoke(t, c, "top", "nodes", "gpu-h100-01", "-o", "json")
	require.Equal(t, exitOK, got.code, got.err)
	var top TopNodes
	require.NoError(t, json.Unmarshal([]byte(got.out), &top))
	assert.Contains(t, top.Items[0].Notes, "GPU 0,3 cordoned")
	assert.Equal(t, "fan is loud", top.Items[0].GPUs[3].Cordoned.Reason)
	assert.Zero(t, top.Items[0].GPUs[3].FreeMiB)
	assert.Equal(t, 3, top.Totals.GPUsFreeWhole, "2, 4 and 6")
	assert.Regexp(t, `gpu-h100-01 +3 .* cordoned\n`, invoke(t, c, "top", "gpus", "gpu-h100-01").out)
	objects := append(fleet(), pending()...)
	for _, o := range objects {
		if o, ok := o.(*v1alpha1.GPUNode); ok && o.Name == gn.Name {
			o.Spec = gn.Spec
		}
	}
	assert.Contains(t, invoke(t, cluster(t, objects), "explain", "-n", "research", "big").out, "GPU 3: is cordoned by ada: fan is loud\n")
	assert.Contains(t, invoke(t, c, "snapshot").out, "reason: fan is loud")
	assert.Equal(t, "gpu-h100-01\n:4\n", invoke(t, c, "__complete", "uncordon-gpu", "").out)
	assert.Equal(t, "0\tH100-SXM5-80GB GPU-gpu-h100-01-0\n3\tH100-SXM5-80GB GPU-gpu-h100-01-3\n:4\n",
		invoke(t, c, "__complete", "uncordon-gpu", "gpu-h100-01", "").out)

	for _, gpu := range []string{"3", "0"} {
		assert.Contains(t, invoke(t, c, "uncordon-gpu", "gpu-h100-01", gpu).out, " of node/gpu-h100-01 uncordoned\n")
	}
	require.Equal(t, result{exitOK, "GPU 3 (GPU-gpu-h100-01-3) of node/gpu-h100-01 already uncordoned\n", ""},
		invoke(t, c, "uncordon-gpu", "gpu-h100-01", "3"))
	assert.Empty(t, gpuNodeOf(t, c, "gpu-h100-01").Spec.CordonedGPUs)
}

// A GPU that was pulled out can be given back all the same.
func TestUncordonAGPUThatIsGone(t *testing.T) {
	gn := gpuNode("n", "T4", 1, 15360)
	gn.Spec.CordonedGPUs = []v1alpha1.CordonedGPU{{UUID: "GPU-old"}}
	c := asUser(cluster(t, []client.Object{gn}))
	assert.Equal(t, result{exitOK, "GPU GPU-old of node/n uncordoned\n", ""}, invoke(t, c, "uncordon-gpu", "n", "GPU-old"))
}

func TestCordonErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		code int
		want string
	}{
		"one argument":  {[]string{"gpu-t4-01"}, exitUsage, "error: expected the name of a node, and the index or UUID of a GPU, got 1 argument"},
		"long reason":   {[]string{"gpu-t4-01", "0", "--reason", strings.Repeat("x", 257)}, exitUsage, "error: --reason has 257 characters, above 256"},
		"unknown node":  {[]string{"gpu-t4-02", "0"}, exitError, "error: no agent has reported GPUs of node \"gpu-t4-02\": did you mean \"gpu-t4-01\"?\n"},
		"unknown index": {[]string{"gpu-t4-01", "4"}, exitError, "error: node gpu-t4-01 has no GPU \"4\": it has 0 (GPU-gpu-t4-01-0), 1 (GPU-gpu-t4-01-1), 2 (GPU-gpu-t4-01-2), 3 (GPU-gpu-t4-01-3)\n"},
		"ambiguous":     {[]string{"gpu-t4-01", "GPU-"}, exitError, "error: node gpu-t4-01 has several GPUs of which the UUID begins with \"GPU-\": "},
	} {
		t.Run(name, func(t *testing.T) {
			got := invoke(t, cluster(t, fleet()), append([]string{"cordon-gpu"}, tt.args...)...)
			assert.Equal(t, tt.code, got.code)
			assert.Contains(t, got.err, tt.want)
			assert.Empty(t, got.out)
		})
	}
}

// What others do meanwhile stays.
func TestCordonBesideOthers(t *testing.T) {
	fake := cluster(t, fleet()).(client.WithWatch)
	others := 0
	c := interceptor.NewClient(fake, interceptor.Funcs{
		Patch: func(ctx context.Context, inner client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
			if others++; others == 1 {
				gn := gpuNodeOf(t, inner, obj.GetName())
				gn.Spec.CordonedGPUs = []v1alpha1.CordonedGPU{{UUID: "GPU-gpu-t4-01-2"}}
				require.NoError(t, inner.Update(ctx, gn))
			}
			return inner.Patch(ctx, obj, patch, opts...)
		},
	})
	require.Equal(t, exitOK, invoke(t, c, "cordon-gpu", "gpu-t4-01", "1").code)
	assert.Equal(t, 2, others, "the first try conflicts")
	gn := gpuNodeOf(t, fake, "gpu-t4-01")
	assert.NotNil(t, gn.Spec.Cordon("GPU-gpu-t4-01-1"))
	assert.NotNil(t, gn.Spec.Cordon("GPU-gpu-t4-01-2"))
}

// A CRD of before prunes what it does not know.
func TestCordonWithAnOldCRD(t *testing.T) {
	c := interceptor.NewClient(cluster(t, fleet()).(client.WithWatch), interceptor.Funcs{
		Patch: func(_ context.Context, _ client.WithWatch, obj client.Object, _ client.Patch, _ ...client.PatchOption) error {
			obj.(*v1alpha1.GPUNode).Spec = v1alpha1.GPUNodeSpec{}
			return nil
		},
	})
	got := invoke(t, c, "cordon-gpu", "gpu-t4-01", "1")
	assert.Equal(t, []any{exitError, ""}, []any{got.code, got.out})
	assert.Contains(t, got.err, "the cluster's CRD of GPUNodes is of an older gpupack")
}

func TestCordonWithoutRights(t *testing.T) {
	c := interceptor.NewClient(cluster(t, fleet()).(client.WithWatch), interceptor.Funcs{
		Patch: func(context.Context, client.WithWatch, client.Object, client.Patch, ...client.PatchOption) error {
			return apierrors.NewForbidden(v1alpha1.SchemeGroupVersion.WithResource("gpunodes").GroupResource(), "gpu-t4-01", nil)
		},
	})
	got := invoke(t, c, "cordon-gpu", "gpu-t4-01", "1")
	assert.Equal(t, exitError, got.code)
	assert.Regexp(t, `^error: patch gpunode gpu-t4-01: .* is forbidden.*\n$`, got.err)
}
