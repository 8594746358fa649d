// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
)

// template is the spec of a pod that asks for a GPU by its limit alone, as most manifests do.
const template = `{schedulerName: gpupack, containers: [{name: a, image: a, resources: {limits: {nvidia.com/gpu: 1, cpu: 2}, requests: {cpu: 1}}}]}`

func TestManifest(t *testing.T) {
	workload := func(kind, group, spec string) string {
		return "apiVersion: " + group + "\nkind: " + kind + "\nmetadata: {name: w}\nspec: {" + spec + ", template: {metadata: {labels: {app: w}}, spec: " + template + "}}\n"
	}
	const selector = "selector: {matchLabels: {app: w}}"
	for name, tt := range map[string]struct {
		content string
		want    []string
	}{
		"pod":                    {"apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: other}\nspec: " + template, []string{"other/p"}},
		"generated name":         {"apiVersion: v1\nkind: Pod\nmetadata: {generateName: p-}\nspec: " + template, []string{"team/p-0"}},
		"job":                    {workload("Job", "batch/v1", "backoffLimit: 1"), []string{"team/w-0"}},
		"job of several":         {workload("Job", "batch/v1", "parallelism: 3"), []string{"team/w-0", "team/w-1", "team/w-2"}},
		"indexed job":            {workload("Job", "batch/v1", "parallelism: 3, completions: 2, completionMode: Indexed"), []string{"team/w-0", "team/w-1"}},
		"deployment":             {workload("Deployment", "apps/v1", selector), []string{"team/w-0"}},
		"replicas":               {workload("Deployment", "apps/v1", "replicas: 2, "+selector), []string{"team/w-0", "team/w-1"}},
		"replica set":            {workload("ReplicaSet", "apps/v1", "replicas: 2, "+selector), []string{"team/w-0", "team/w-1"}},
		"stateful set":           {workload("StatefulSet", "apps/v1", "serviceName: s, replicas: 2, "+selector), []string{"team/w-0", "team/w-1"}},
		"scaled to nothing":      {workload("Deployment", "apps/v1", "replicas: 0, "+selector) + "---\n" + workload("Job", "batch/v1", "backoffLimit: 1"), []string{"team/w-0"}},
		"documents":              {"---\n# nothing\n---\n" + workload("Job", "batch/v1", "backoffLimit: 1") + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: " + template + "\n---\n", []string{"team/w-0", "team/p"}},
		"JSON":                   {`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"a","image":"a","resources":{"limits":{"nvidia.com/gpu":"1"}}}]}}`, []string{"team/p"}},
		"list":                   {"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: p}, spec: " + template + "}\n- {apiVersion: v1, kind: Pod, metadata: {name: q}, spec: " + template + "}\n", []string{"team/p", "team/q"}},
		"a pod from the cluster": {"apiVersion: v1\nkind: Pod\nmetadata: {name: p, uid: x, annotations: {gpupack.dev/gpus: GPU-1}, deletionTimestamp: 2026-01-01T00:00:00Z}\nstatus: {phase: Running}\nspec: {nodeName: node-1, " + template[1:], []string{"team/p"}},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := readManifest([]string{written(t, "m.yaml", tt.content)}, "team")
			require.NoError(t, err)
			var got []string
			for _, p := range m.pods {
				got = append(got, p.Namespace+"/"+p.Name)
				r, err := convert.Request(p)
				require.NoError(t, err)
				assert.Equal(t, 1, r.GPUs, "a limit is a request")
				assert.Equal(t, corev1.PodPending, p.Status.Phase)
				assert.Empty(t, p.Spec.NodeName)
				assert.Nil(t, p.DeletionTimestamp)
				assert.NotContains(t, p.Annotations, v1alpha1.AnnotationGPUs)
				if name != "JSON" {
					assert.Equal(t, int64(1000), r.CPUMilli, "but does not replace one")
				} else {
					assert.Equal(t, corev1.DefaultSchedulerName, p.Spec.SchedulerName)
				}
			}
			assert.Equal(t, tt.want, got)
		})
	}
}

func TestManifestOfSeveralFiles(t *testing.T) {
	group := written(t, "group.yaml", "apiVersion: scheduling.x-k8s.io/v1alpha1\nkind: PodGroup\nmetadata: {name: g}\nspec: {minMember: 2}\n")
	rest := written(t, "rest.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: "+template)
	m, err := readManifest([]string{group, rest}, "team")
	require.NoError(t, err)
	assert.Len(t, m.pods, 1)
	assert.Equal(t, []string{"Service s"}, m.skipped)
	require.Len(t, m.groups, 1)
	assert.Equal(t, "team", m.groups[0].Namespace)
	assert.Equal(t, int32(2), m.groups[0].Spec.MinMember)
}

func TestBadManifests(t *testing.T) {
	const job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: w}\n"
	for name, tt := range map[string]struct{ content, want string }{
		"empty":          {"# nothing\n", "there are no pods in it"},
		"no pods":        {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n", "there are no pods in it"},
		"no YAML":        {"a: b\n\tc", "document 1: error converting YAML to JSON: yaml: line 2: "},
		"no object":      {"- a\n", "document 1: "},
		"no kind":        {"a: b\n", "document 1: "},
		"typing error":   {job + "spec: {parallelsim: 2, template: {spec: " + template + "}}\n", `document 1: Job w: strict decoding error: unknown field "spec.parallelsim"`},
		"wrong type":     {job + "spec: {parallelism: two}\n", "document 1: Job w: "},
		"unknown kind":   {"apiVersion: kubeflow.org/v1\nkind: PyTorchJob\nmetadata: {name: w}\n", "document 1: PyTorchJob w of kubeflow.org/v1 is not understood: write its pods as Pod, Job, Deployment"},
		"daemon set":     {"apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: w}\nspec: {selector: {}, template: {spec: " + template + "}}\n", "document 1: DaemonSet w: its kind is not understood: write its pods as"},
		"no name":        {"---\n---\napiVersion: v1\nkind: Pod\nspec: " + template, "document 2: Pod: has no metadata.name"},
		"no name of job": {"apiVersion: batch/v1\nkind: Job\nspec: {template: {spec: " + template + "}}\n", "document 1: Job: has no metadata.name"},
		"too many":       {job + "spec: {parallelism: 100001, template: {spec: " + template + "}}\n", "document 1: Job w: stands for 100001 pods, not in 0 to 100000"},
		"negative":       {job + "spec: {parallelism: -1, template: {spec: " + template + "}}\n", "document 1: Job w: stands for -1 pods, not in 0 to 100000"},
		"twice":          {strings.Repeat(job+"spec: {template: {spec: "+template+"}}\n---\n", 2), "document 2: Job w: pod team/w-0 is there twice"},
		"in a list":      {"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod}\n", "document 1: item 1 of the list: Pod: has no metadata.name"},
	} {
		t.Run(name, func(t *testing.T) {
			path := written(t, "m.yaml", tt.content)
			_, err := readManifest([]string{path}, "team")
			require.ErrorContains(t, err, path+": "+tt.want)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
	_, err := readManifest([]string{"no-such-file"}, "team")
	assert.EqualError(t, err, "open no-such-file: no such file or directory")
}
