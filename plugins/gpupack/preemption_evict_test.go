// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/events"
	fwk "k8s.io/kube-scheduler/framework"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/gpupack/gpupack/pack"
)

// fakeHandle is what evictions use of a scheduler.
type fakeHandle struct {
	fwk.Handle
	client   kubernetes.Interface
	recorder *events.FakeRecorder
}

func (h *fakeHandle) ClientSet() kubernetes.Interface           { return h.client }
func (h *fakeHandle) EventRecorder() events.EventRecorder       { return h.recorder }
func (h *fakeHandle) GetWaitingPod(types.UID) fwk.WaitingPod    { return nil }
func (h *fakeHandle) NominatedPodsForNode(string) []fwk.PodInfo { return nil }

func podNamed(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)}}
}

// evicting is a plugin that evicts pods a, b and c from one node for pod by.
func evicting(t *testing.T) (p *Plugin, client *fake.Clientset, recorder *events.FakeRecorder, evict func()) {
	t.Helper()
	registerMetrics()
	var objects []runtime.Object
	var victims []podOnNode
	for _, name := range []string{"a", "b", "c"} {
		pod := podNamed(name)
		pod.Spec.NodeName = "node"
		objects = append(objects, pod)
		victims = append(victims, podOnNode{pod, 0})
	}
	client, recorder = fake.NewClientset(objects...), events.NewFakeRecorder(10)
	by := podNamed("by")
	u := &unit{key: unitKey{pod: by.UID}, pods: []*corev1.Pod{by}, need: 1}
	p = &Plugin{
		handle: &fakeHandle{client: client, recorder: recorder},
		clock:  clocktesting.NewFakeClock(time.Now()),
		preemption: &preemption{
			ctx: context.Background(), backoff: wait.Backoff{Duration: time.Microsecond, Steps: 3},
			leaving: map[types.UID]time.Time{"a": {}, "b": {}, "c": {}}, rooms: map[unitKey]*room{u.key: {}}, retrying: map[unitKey]bool{},
		},
	}
	return p, client, recorder, func() { p.evict(u, by, victims) }
}

func podsLeft(t *testing.T, client kubernetes.Interface) []string {
	t.Helper()
	list, err := client.CoreV1().Pods("ns").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	var out []string
	for i := range list.Items {
		out = append(out, list.Items[i].Name)
	}
	return out
}

// failing makes calls of that verb about pod b fail, the first times or always.
func failing(client *fake.Clientset, verb string, times int, err error) {
	client.PrependReactor(verb, "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		named, ok := action.(interface{ GetName() string })
		if !ok || named.GetName() != "b" || times == 0 {
			return false, nil, nil
		}
		times--
		return true, nil, err
	})
}

func TestEvict(t *testing.T) {
	internal := apierrors.NewInternalError(errors.New("the database is away"))
	conflict := apierrors.NewConflict(corev1.Resource("pods"), "b", errors.New("the object has been modified"))
	gone := apierrors.NewNotFound(corev1.Resource("pods"), "b")
	slow := apierrors.NewGenericServerResponse(http.StatusTooManyRequests, "delete", corev1.Resource("pods"), "b", "wait", 0, false)
	forbidden := apierrors.NewForbidden(corev1.Resource("pods"), "b", errors.New("no right"))
	tests := []struct {
		name, verb string
		times      int
		err        error
		left       []string
		// event is part of what is said of a failure.
		event string
	}{
		{name: "all go"},
		{"marked at the second try", "patch", 1, internal, nil, ""},
		{"marked after a conflict", "patch", 1, conflict, nil, ""},
		{"deleted at the third try", "delete", 2, slow, nil, ""},
		{"gone before it was marked", "patch", -1, gone, []string{"b"}, ""},
		{"gone before it was deleted", "delete", -1, gone, []string{"b"}, ""},
		{"one cannot be marked, so none goes", "patch", -1, internal, []string{"a", "b", "c"},
			"1 of 3 pods could not be evicted to make room, so none was; it is tried again: pod ns/b: Internal error occurred: the database is away"},
		{"one must not be marked, so none goes", "patch", -1, forbidden, []string{"a", "b", "c"}, "so none was; it is tried again: pod ns/b: pods \"b\" is forbidden"},
		{"one cannot be deleted", "delete", -1, internal, []string{"b"}, "1 of 3 pods could not be evicted to make room, and the others were"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, client, recorder, evict := evicting(t)
			if tt.verb != "" {
				failing(client, tt.verb, tt.times, tt.err)
			}
			evict()
			assert.Equal(t, tt.left, podsLeft(t, client))
			var failure string
			close(recorder.Events)
			for e := range recorder.Events {
				if len(e) > 7 && e[:7] == "Warning" {
					failure = e
				} else {
					assert.Contains(t, e, "Preempted by pod by on node node")
				}
			}
			if tt.event == "" {
				assert.Empty(t, failure)
				assert.Len(t, p.preemption.rooms, 1)
				assert.Empty(t, p.preemption.retrying)
				return
			}
			assert.Contains(t, failure, tt.event)
			assert.Empty(t, p.preemption.rooms, "no longer waited for")
			assert.NotContains(t, p.preemption.leaving, types.UID("b"))
			assert.Len(t, p.preemption.retrying, 1)
		})
	}
}

// A pod of the same name that came later is another pod, and stays.
func TestEvictLeavesLaterPodAlone(t *testing.T) {
	_, client, _, evict := evicting(t)
	other := podNamed("b")
	other.UID = "other"
	require.NoError(t, client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("pods"), other, "ns"))
	failing(client, "patch", -1, apierrors.NewConflict(corev1.Resource("pods"), "b", errors.New("uid mismatch")))
	evict()
	assert.Equal(t, []string{"b"}, podsLeft(t, client))
}

func TestLoss(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	started := metav1.NewTime(now.Add(-time.Hour))
	tests := []struct {
		name       string
		started    *metav1.Time
		checkpoint string
		requests   corev1.ResourceList
		want       float64
		complains  bool
	}{
		{"not started", nil, "", requests("nvidia.com/gpu", "8"), 0, false},
		{"whole GPUs", &started, "", requests("nvidia.com/gpu", "8"), 8 * 3600, false},
		{"a share of compute", &started, "", requests("gpupack.dev/gpu-milli", "500"), 1800, false},
		{"a share of memory", &started, "", requests("gpupack.dev/gpu-memory", "20Gi"), 900, false},
		{"CPU", &started, "", requests("cpu", "10"), 36, false},
		{"checkpoint", &started, now.Add(-time.Minute).Format(time.RFC3339), requests("nvidia.com/gpu", "8"), 8 * 60, false},
		{"checkpoint of an earlier run", &started, now.Add(-2 * time.Hour).Format(time.RFC3339), requests("nvidia.com/gpu", "1"), 3600, false},
		{"checkpoint to come", &started, now.Add(time.Hour).Format(time.RFC3339), requests("nvidia.com/gpu", "1"), 0, false},
		{"malformed checkpoint", &started, "noon", requests("nvidia.com/gpu", "1"), 3600, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			recorder := events.NewFakeRecorder(10)
			p := &Plugin{handle: &fakeHandle{recorder: recorder}, preemption: &preemption{malformed: map[types.UID]string{}}}
			pod := podNamed("pod")
			pod.Status.StartTime = tt.started
			pod.Spec.Containers = []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: tt.requests}}}
			if tt.checkpoint != "" {
				pod.Annotations = map[string]string{"gpupack.dev/last-checkpoint": tt.checkpoint}
			}
			n := &pack.Node{GPUs: []pack.GPU{{TotalMiB: 80 << 10}}}
			for range 2 {
				assert.InDelta(t, tt.want, p.loss(pod, n, now), 1e-6)
			}
			if !tt.complains {
				assert.Empty(t, recorder.Events)
				return
			}
			require.Len(t, recorder.Events, 1, "it complains once")
			assert.Contains(t, <-recorder.Events, `annotation gpupack.dev/last-checkpoint is "noon": write a time such as 2026-01-31T09:30:00Z`)
		})
	}
}

func requests(name corev1.ResourceName, quantity string) corev1.ResourceList {
	return corev1.ResourceList{name: resource.MustParse(quantity)}
}
