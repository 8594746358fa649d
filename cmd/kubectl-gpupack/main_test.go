// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	podgroupv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/gpupack/gpupack/api/v1alpha1"
	kubectlplugin "github.com/gpupack/gpupack/kubectl-plugin"
	"github.com/gpupack/gpupack/test/embedded"
)

func TestMain(m *testing.M) {
	os.Exit(embedded.RunMain(m, embedded.Options{}))
}

// plugin is the program, as kubectl would run it.
type plugin struct {
	path, kubeconfig string
}

func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubectl-gpupack")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return path
}

func (p *plugin) run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	code, stdout, stderr = p.output(args)
	require.GreaterOrEqual(t, code, 0, stderr)
	return code, stdout, stderr
}

// output is what the program answers; the code is -1 where it did not run.
func (p *plugin) output(args []string) (code int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	cmd := exec.Command(p.path, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+p.kubeconfig, "COLUMNS=100")
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		return -1, "", err.Error()
	}
	return code, out.String(), errOut.String()
}

// installRoles creates ClusterRoles of the manifests.
func installRoles(t *testing.T, c client.Client, names ...string) {
	t.Helper()
	data, err := os.ReadFile("../../manifests/base/rbac.yaml")
	require.NoError(t, err)
	found := 0
	for _, document := range strings.Split(string(data), "\n---\n") {
		role := &rbacv1.ClusterRole{}
		require.NoError(t, yaml.Unmarshal([]byte(document), role))
		if role.Kind == "ClusterRole" && slices.Contains(names, role.Name) {
			require.NoError(t, c.Create(t.Context(), role))
			found++
		}
	}
	require.Len(t, names, found)
}

// One test, since the CRDs come to the cluster in its middle.
func TestPluginOnACluster(t *testing.T) {
	cp := embedded.Get(t)
	ctx := t.Context()
	p := &plugin{build(t), cp.Kubeconfig()}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, podgroupv1alpha1.AddToScheme} {
		require.NoError(t, add(scheme))
	}
	c, err := client.New(cp.Config(), client.Options{Scheme: scheme})
	require.NoError(t, err)

	code, out, errOut := p.run(t, "top")
	assert.Equal(t, []any{0, ""}, []any{code, out}, errOut)
	assert.Contains(t, errOut, "no GPUNode resource: install gpupack")

	resources := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("32Gi"),
		corev1.ResourcePods: resource.MustParse("110"), v1alpha1.ResourceGPU: resource.MustParse("2"),
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "gpu-01"}}
	require.NoError(t, c.Create(ctx, node))
	node.Status = corev1.NodeStatus{Capacity: resources, Allocatable: resources, Conditions: []corev1.NodeCondition{
		{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}
	require.NoError(t, c.Status().Update(ctx, node))
	ns := cp.Namespace(t)
	uuid := "GPU-6a2f0c1e-0000"
	running := newPod(ns, "running", "8Gi", func(p *corev1.Pod) {
		p.Spec.NodeName = "gpu-01"
		p.Annotations = map[string]string{v1alpha1.AnnotationGPUs: uuid,
			v1alpha1.AnnotationDecision: `{"policy":"fgd","score":71,"feasible":1}`}
	})
	require.NoError(t, c.Create(ctx, running))
	require.NoError(t, c.Create(ctx, newPod(ns, "waits", "12Gi", nil)))

	// Without the CRDs what the API knows is shown.
	code, out, errOut = p.run(t, "top", "pods", "-n", ns, "--no-headers")
	assert.Equal(t, 0, code, errOut)
	assert.Contains(t, out, "running")
	assert.Contains(t, errOut, "install gpupack")
	code, out, errOut = p.run(t, "explain", "waits", "-n", ns)
	assert.Equal(t, 0, code, errOut)
	assert.Contains(t, out, "no GPUNode tells of the node's GPUs")

	require.NoError(t, cp.InstallCRDs(ctx, "../../manifests/base/crds/gpupack.dev_gpunodes.yaml",
		"../../manifests/base/crds/scheduling.x-k8s.io_podgroups.yaml"))
	observed := metav1.NowMicro()
	gn := &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: "gpu-01"}}
	// Discovery learns of new CRDs a moment after they are served.
	require.EventuallyWithT(t, func(t *assert.CollectT) { require.NoError(t, c.Create(ctx, gn)) }, 30*time.Second, 50*time.Millisecond)
	gn.Status = v1alpha1.GPUNodeStatus{
		ObservedTime: &observed, Source: v1alpha1.SourceSimulated, Mode: v1alpha1.ModeManage,
		GPUs: []v1alpha1.GPU{
			{UUID: uuid, Index: 0, Model: "T4", MemoryTotalMiB: 15360, MemoryReservedMiB: 300, MemoryUsedMiB: 9000, Healthy: true,
				Utilization: 40, Pods: []v1alpha1.GPUPod{{Namespace: ns, Name: "running", UID: running.UID, MemoryUsedMiB: 9000, Utilization: 40}}},
			{UUID: "GPU-6a2f0c1e-0001", Index: 1, Model: "T4", MemoryTotalMiB: 15360, MemoryReservedMiB: 300, MemoryUsedMiB: 6000,
				MemoryForeignMiB: 6000, Healthy: true},
		},
	}
	require.NoError(t, c.Status().Update(ctx, gn))

	code, out, errOut = p.run(t, "top", "-o", "json")
	require.Equal(t, 0, code, errOut)
	assert.Empty(t, errOut)
	var top kubectlplugin.TopNodes
	require.NoError(t, json.Unmarshal([]byte(out), &top))
	require.Len(t, top.Items, 1)
	require.Len(t, top.Items[0].GPUs, 2)
	g := top.Items[0].GPUs[0]
	assert.Equal(t, []any{"gpu-01", uuid, "T4", int64(15360), int64(9000), int64(8192), int64(0), int64(6060), 40},
		[]any{g.Node, g.UUID, g.Model, g.TotalMiB, g.UsedMiB, g.RequestedMiB, g.ForeignMiB, g.FreeMiB, g.Utilization})
	assert.Equal(t, []kubectlplugin.Share{{Namespace: ns, Name: "running", UID: running.UID, RequestedMiB: 8192, UsedMiB: 9000,
		Utilization: 40}}, g.Pods)

	for _, args := range [][]string{{"top"}, {"top", "gpus"}, {"top", "pods", "-A"}, {"placements", "-n", ns}} {
		code, out, errOut = p.run(t, args...)
		assert.Equal(t, 0, code, errOut)
		assert.Contains(t, out, "gpu-01")
		assert.Empty(t, errOut)
	}

	code, out, errOut = p.run(t, "explain", "waits", "-n", ns)
	assert.Equal(t, 0, code, errOut)
	assert.Contains(t, out, "GPU 1: 9060 MiB free of 15060, needs 12288; 5.9Gi is used outside any pod\n")
	code, _, errOut = p.run(t, "explain", "nobody", "-n", ns)
	assert.Equal(t, []any{1, "error: there is neither a pod nor a PodGroup \"nobody\" in namespace \"" + ns + "\"\n"}, []any{code, errOut})

	// What is written down is enough to answer for the cluster without it.
	snapshot := filepath.Join(t.TempDir(), "cluster.yaml")
	code, out, errOut = p.run(t, "snapshot")
	require.Equal(t, 0, code, errOut)
	assert.Empty(t, errOut)
	assert.NotContains(t, out, "managedFields")
	assert.NotContains(t, out, "image")
	require.NoError(t, os.WriteFile(snapshot, []byte(out), 0o600))
	offline := &plugin{p.path, "/dev/null"}
	code, out, errOut = offline.run(t, "simulate", "--snapshot", snapshot)
	assert.Equal(t, 0, code, errOut)
	assert.Contains(t, out, "waits: none of 1 node fits\n     1  no GPU has enough free memory: gpu-01\n")
	code, out, errOut = offline.run(t, "simulate", "--snapshot", snapshot, "--add-nodes", "1xT4", "-o", "json")
	require.Equal(t, 0, code, errOut)
	var whatIf kubectlplugin.WhatIf
	require.NoError(t, json.Unmarshal([]byte(out), &whatIf))
	require.Len(t, whatIf.Pods, 1)
	assert.Equal(t, []any{"waits", "T4-new-1", "GPU-T4-new-1-0"}, []any{whatIf.Pods[0].Name, whatIf.Pods[0].Node, whatIf.Pods[0].GPUs[0].UUID})
	code, out, errOut = offline.run(t, "simulate", "--snapshot", snapshot, "--drain", "gpu-01", "-o", "json")
	require.Equal(t, 0, code, errOut)
	require.NoError(t, json.Unmarshal([]byte(out), &whatIf))
	assert.Len(t, whatIf.Pods, 2)
	assert.Zero(t, whatIf.Placed)

	// Who has the role of readers alone runs all that reads, and nothing that writes.
	installRoles(t, c, "gpupack-reader", "gpupack-cordon")
	require.NoError(t, c.Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "viewer"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "gpupack-reader"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "viewer"}},
	}))
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		for _, args := range [][]string{{"top"}, {"top", "gpus"}, {"top", "pods", "-A"}, {"placements", "-A"}, {"placements", "-A", "--tree"},
			{"explain", "-n", ns, "waits"}, {"explain", "-n", ns, "running"}, {"gangs", "-A"}, {"snapshot"}} {
			code, _, errOut := p.output(append(args, "--as", "viewer"))
			assert.Equal(t, 0, code, "%v: %s", args, errOut)
			assert.NotContains(t, errOut, "may not", "%v", args)
		}
	}, 30*time.Second, 100*time.Millisecond)
	code, _, errOut = p.run(t, "cordon-gpu", "gpu-01", "1", "--as", "viewer")
	assert.Equal(t, 1, code)
	assert.Regexp(t, `^error: patch gpunode gpu-01: .* is forbidden: User "viewer" cannot patch resource .*\n$`, errOut)
	code, out, errOut = p.run(t, "cordon-gpu", "gpu-01", "1", "--reason", "fan is loud")
	assert.Equal(t, []any{0, "GPU 1 (GPU-6a2f0c1e-0001) of node/gpu-01 cordoned\n"}, []any{code, out}, errOut)
	require.NoError(t, c.Get(ctx, client.ObjectKeyFromObject(gn), gn))
	require.Len(t, gn.Spec.CordonedGPUs, 1)
	assert.NotEmpty(t, gn.Spec.CordonedGPUs[0].By)
	require.Len(t, gn.Status.GPUs, 2, "the status is the agents'")

	code, _, errOut = p.run(t, "top", "--as", "nobody")
	assert.Equal(t, 1, code)
	assert.Regexp(t, `^error: list (nodes|gpunodes|pods): .* is forbidden: User "nobody" cannot list resource .*\n$`, errOut)
	code, _, _ = p.run(t, "tpo")
	assert.Equal(t, 2, code)
}

func newPod(namespace, name, memory string, mutate func(*corev1.Pod)) *corev1.Pod {
	quantity := corev1.ResourceList{v1alpha1.ResourceGPUMemory: resource.MustParse(memory)}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PodSpec{SchedulerName: v1alpha1.SchedulerName, Containers: []corev1.Container{{Name: "main", Image: "none",
			Resources: corev1.ResourceRequirements{Requests: quantity, Limits: quantity}}}},
	}
	if mutate != nil {
		mutate(p)
	}
	return p
}
