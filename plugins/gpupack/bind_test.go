// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	fwk "k8s.io/kube-scheduler/framework"
	schedulerconfig "k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/framework"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// handleOf is a handle that has a client and nothing else.
type handleOf struct {
	fwk.Handle
	client kubernetes.Interface
}

func (h handleOf) ClientSet() kubernetes.Interface { return h.client }
func (h handleOf) APICacher() fwk.APICacher        { return nil }

// Which GPUs a pod has is in the call that binds it; a call that failed counts if the API has the pod bound as it said.
func TestBind(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	conflict := apierrors.NewConflict(schema.GroupResource{Resource: "pods/binding"}, "p", errors.New("already assigned"))
	for name, tc := range map[string]struct {
		fail error
		// node, uid and gpus are what the API has after the call.
		node, uid, gpus string
		want            fwk.Code
		asks            int
	}{
		"bound":                               {want: fwk.Success},
		"answer lost":                         {fail: errors.New("EOF"), node: "n", uid: "1", gpus: "a,b", want: fwk.Success, asks: 1},
		"second try of a call that succeeded": {fail: conflict, node: "n", uid: "1", gpus: "a,b", want: fwk.Success, asks: 1},
		"call lost":                           {fail: errors.New("EOF"), uid: "1", want: fwk.Error, asks: 1},
		"bound elsewhere":                     {fail: conflict, node: "m", uid: "1", gpus: "a,b", want: fwk.Error, asks: 1},
		"bound by a scheduler that names no GPUs": {fail: conflict, node: "n", uid: "1", want: fwk.Error, asks: 1},
		"another pod of that name":                {fail: conflict, node: "n", uid: "2", gpus: "a,b", want: fwk.Error, asks: 1},
		"gone":                                    {fail: apierrors.NewNotFound(pods, "p"), want: fwk.Error},
		"throttled":                               {fail: apierrors.NewTooManyRequests("later", 1), node: "n", uid: "1", gpus: "a,b", want: fwk.Error},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			var sent *corev1.Binding
			asked := 0
			client.PrependReactor("create", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
				require.Equal(t, "binding", action.GetSubresource())
				sent = action.(clienttesting.CreateAction).GetObject().(*corev1.Binding)
				return true, nil, tc.fail
			})
			client.PrependReactor("get", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
				asked++
				pod := gpuPod("p", "", "")
				pod.UID, pod.Spec.NodeName = "1", tc.node
				if tc.uid != "1" {
					pod.UID = "2"
				}
				pod.Annotations = map[string]string{v1alpha1.AnnotationGPUs: tc.gpus}
				return true, pod, nil
			})
			p := &Plugin{handle: handleOf{client: client}, bindings: make(chan struct{}, 1)}
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "1"}}
			state := framework.NewCycleState()
			state.Write(decisionKey, &decision{gpus: []string{"a", "b"}, record: v1alpha1.Decision{Policy: "fgd", Score: 7}})
			status := p.Bind(context.Background(), state, pod, "n")
			assert.Equal(t, tc.want, status.Code(), "%v", status)
			assert.Equal(t, tc.asks, asked)
			assert.Equal(t, "n", sent.Target.Name)
			assert.Equal(t, pod.UID, sent.UID)
			assert.Equal(t, "a,b", sent.Annotations[v1alpha1.AnnotationGPUs])
			assert.JSONEq(t, `{"policy":"fgd","score":7,"feasible":0}`, sent.Annotations[v1alpha1.AnnotationDecision])
		})
	}
}

func TestBindLeavesPodsWithoutGPUs(t *testing.T) {
	p := &Plugin{}
	state := framework.NewCycleState()
	assert.True(t, p.Bind(context.Background(), state, &corev1.Pod{}, "n").IsSkip())
	state.Write(decisionKey, &decision{})
	assert.True(t, p.Bind(context.Background(), state, &corev1.Pod{}, "n").IsSkip())
}

// frameworkOf is a profile with those bind plugins.
type frameworkOf struct {
	framework.Framework
	binders []string
}

func (f frameworkOf) ProfileName() string { return "gpupack" }
func (f frameworkOf) ListPlugins() *schedulerconfig.Plugins {
	plugins := &schedulerconfig.Plugins{}
	for _, name := range f.binders {
		plugins.Bind.Enabled = append(plugins.Bind.Enabled, schedulerconfig.Plugin{Name: name})
	}
	return plugins
}

// A profile in which pods would be bound without their GPUs is refused.
func TestProfileMustLetGPUPackBind(t *testing.T) {
	binds := func(names ...string) error { return (&Plugin{handle: frameworkOf{binders: names}}).binds() }
	assert.NoError(t, binds("GPUPack", "DefaultBinder"))
	assert.NoError(t, binds("Other", "GPUPack"))
	assert.ErrorContains(t, binds("DefaultBinder", "GPUPack"), "profile gpupack lets DefaultBinder bind pods")
	assert.ErrorContains(t, binds("DefaultBinder"), "enable GPUPack under bind")
}
