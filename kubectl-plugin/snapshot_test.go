// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// secretive is a pod with everything in it that a snapshot must not tell.
func secretive(p *corev1.Pod) {
	p.Annotations["example.com/token"] = "hunter2"
	p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "hunter2", Operation: metav1.ManagedFieldsOperationUpdate, FieldsType: "FieldsV1",
		APIVersion: "v1", FieldsV1: &metav1.FieldsV1{Raw: []byte(`{}`)}}}
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "rs", UID: "u", Controller: ptr.To(true)}}
	c := &p.Spec.Containers[0]
	c.Image, c.Command, c.Args = "registry/hunter2", []string{"hunter2"}, []string{"--token=hunter2"}
	c.Env = []corev1.EnvVar{{Name: "TOKEN", Value: "hunter2"}}
	c.EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "hunter2"}}}}
	c.Ports = []corev1.ContainerPort{{ContainerPort: 80}, {ContainerPort: 81, HostPort: 81}}
	p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "hunter2", Env: c.Env,
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}}}}
	p.Spec.Volumes = []corev1.Volume{
		{Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "hunter2"}}},
		{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}},
	}
	p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "hunter2"}}
	p.Spec.ServiceAccountName = "hunter2"
	p.Spec.NodeSelector = map[string]string{"pool": "a"}
	p.Spec.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists}}
	p.Spec.Priority = ptr.To[int32](7)
	p.Status.Message, p.Status.PodIP = "hunter2", "10.0.0.1"
}

func saved(t *testing.T, objects []client.Object, args ...string) string {
	t.Helper()
	got := invoke(t, cluster(t, objects), append([]string{"snapshot"}, args...)...)
	require.Equal(t, exitOK, got.code, got.err)
	assert.Empty(t, got.err)
	return got.out
}

// written puts text in a file and returns its name.
func written(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func TestSnapshotRoundTrip(t *testing.T) {
	objects := append(fleet(), pending()...)
	objects = append(objects,
		pod("serving", "secretive", asks(v1alpha1.ResourceGPU, "1"), on("gpu-h100-01", decision, 2), secretive),
		pod("serving", "web", asks(corev1.ResourceCPU, "2"), func(p *corev1.Pod) {
			p.Spec.SchedulerName, p.Spec.NodeName, p.Status.Phase = "default-scheduler", "cpu-01", corev1.PodRunning
		}),
		&schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 1000, Description: "hunter2"},
	)
	asYAML, asJSON := saved(t, objects), saved(t, objects, "-o", "json")
	for _, text := range []string{asYAML, asJSON} {
		assert.NotContains(t, text, "hunter2")
		assert.NotContains(t, text, "managedFields")
		assert.NotContains(t, text, `default/done`, "a pod that has ended")
		assert.NotContains(t, text, `serving/stock`, "a pod that waits for another scheduler")
		assert.Contains(t, text, "claimName")
	}

	a, err := loadSnapshot(written(t, "a.yaml", asYAML))
	require.NoError(t, err)
	b, err := loadSnapshot(written(t, "b.json", asJSON))
	require.NoError(t, err)
	assert.Equal(t, a, b)

	assert.True(t, a.now.Equal(now), a.now)
	assert.Len(t, a.nodes, 7)
	assert.Len(t, a.gpuNodes, 6)
	assert.Len(t, a.podGroups, 3)
	assert.Equal(t, int32(1000), a.priorityClasses[0].Value)
	want := saved(t, objects)
	assert.Equal(t, want, string(must(printed(a))), "what is read and written again is the same")

	at := func(namespace, name string) *corev1.Pod {
		for i := range a.pods {
			if a.pods[i].Namespace == namespace && a.pods[i].Name == name {
				return &a.pods[i]
			}
		}
		require.Fail(t, "no such pod", name)
		return nil
	}
	p := at("serving", "secretive")
	assert.Equal(t, "gpu-h100-01", p.Spec.NodeName)
	assert.Equal(t, map[string]string{"pool": "a"}, p.Spec.NodeSelector)
	assert.Equal(t, int32(7), *p.Spec.Priority)
	assert.Equal(t, gpuUUID("gpu-h100-01", 2), p.Annotations[v1alpha1.AnnotationGPUs])
	assert.Equal(t, []corev1.ContainerPort{{ContainerPort: 81, HostPort: 81}}, p.Spec.Containers[0].Ports)
	assert.Equal(t, "2", p.Spec.InitContainers[0].Resources.Requests.Cpu().String())
	assert.Equal(t, "ReplicaSet", p.OwnerReferences[0].Kind)
	assert.Equal(t, types.UID("serving/secretive"), p.UID)
	at("serving", "web")
	at("serving", "gated")
}

func printed(s *snapshot) ([]byte, error) {
	p, err := (&output{format: "yaml"}).printer(nil)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	err = printObject(p, &b, s.save())
	return []byte(b.String()), err
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestSnapshotOfAClusterWithoutGpupack(t *testing.T) {
	got := invoke(t, cluster(t, []client.Object{node("a", 8)}, "GPUNode", "PodGroup"), "snapshot")
	require.Equal(t, exitOK, got.code)
	assert.Contains(t, got.out, "kind: Node\n")
	assert.Contains(t, got.err, "This cluster has no GPUNode resource")
}

func TestContainersKeepWhatTheyWereGiven(t *testing.T) {
	list := func(cpu string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
	}
	p := pod("a", "b", asks(corev1.ResourceCPU, "1"), on("n", ""))
	status := corev1.ContainerStatus{Name: "main", AllocatedResources: list("1"), Resources: &corev1.ResourceRequirements{Requests: list("1")}}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{status}
	assert.Empty(t, essentialPod(p).Status.ContainerStatuses)
	p.Status.ContainerStatuses[0].Resources.Requests = list("4")
	got := essentialPod(p)
	cpu := podRequests(got)[corev1.ResourceCPU]
	assert.Equal(t, "4", cpu.String(), "a pod that is made smaller holds what it had until it is")
}

// A list that kubectl get wrote is good enough. Its time is that of the newest telemetry.
func TestSnapshotFromKubectl(t *testing.T) {
	items := []any{}
	for _, o := range append(fleet(), pending()...) {
		kinds, _, err := must(newScheme()).ObjectKinds(o)
		require.NoError(t, err)
		o.GetObjectKind().SetGroupVersionKind(kinds[0])
		items = append(items, o)
	}
	items = append(items, map[string]any{"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"name": "x"}})
	data := must(json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": items}))
	s, err := loadSnapshot(written(t, "list.json", string(data)))
	require.NoError(t, err)
	assert.Len(t, s.nodes, 7)
	assert.True(t, s.now.Equal(now.Add(-12*time.Second)), s.now)
	for i := range s.pods {
		assert.NotContains(t, []string{"done", "stock"}, s.pods[i].Name)
	}
}

func TestBadSnapshots(t *testing.T) {
	const head = "apiVersion: cli.gpupack.dev/v1alpha1\nkind: Snapshot\n"
	for name, tt := range map[string]struct{ content, want string }{
		"empty":        {" \n", `the file is empty: take one with "kubectl gpupack snapshot"`},
		"another kind": {"apiVersion: v1\nkind: Pod\n", `not a snapshot: it is of kind "Pod" of "v1", want Snapshot of cli.gpupack.dev/v1alpha1; take one with`},
		"no YAML":      {"a: b\n\tc", "neither YAML nor JSON: line 2: found a tab character that violates indentation"},
		"a CSV file":   {"sn,gpu\na,1\n", "not a snapshot: "},
		"cut JSON":     {"{\n\"apiVersion\": \"v1\",\n\"items\": [", "no JSON: line 3: unexpected end of JSON input"},
		"no nodes":     {head + "items: []\n", "there are no nodes in it"},
		"wrong type":   {head + "items:\n- {apiVersion: v1, kind: Pod, metadata: {name: p, namespace: team}, spec: {priority: high}}\n", "item 1 of the list: Pod team/p: json: cannot unmarshal string"},
		"no name":      {head + "items:\n- {apiVersion: v1, kind: Node}\n", "item 1 of the list: a Node has no name"},
		"node twice":   {head + "items:\n- {apiVersion: v1, kind: Node, metadata: {name: a}}\n- {apiVersion: v1, kind: Node, metadata: {name: a}}\n", `node "a" is in it twice`},
		"bad time":     {head + "takenAt: yesterday\n", "not a snapshot: parsing time"},
	} {
		t.Run(name, func(t *testing.T) {
			path := written(t, "s.yaml", tt.content)
			got := invoke(t, nil, "simulate", "--snapshot", path)
			assert.Equal(t, exitError, got.code)
			assert.Empty(t, got.out)
			assert.Contains(t, got.err, "error: "+path+": "+tt.want)
			assert.Equal(t, 1, strings.Count(got.err, "\n"), got.err)
		})
	}
	got := invoke(t, nil, "simulate", "--snapshot", "no-such-file")
	assert.Equal(t, result{exitError, "", "error: open no-such-file: no such file or directory\n"}, got)
}
