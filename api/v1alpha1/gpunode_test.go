// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"
)

// crd checks objects as the API server does.
type crd struct {
	structural *structuralschema.Structural
	schema     validation.SchemaValidator
	rules      *cel.Validator
}

func loadCRD(t *testing.T) *crd {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "manifests", "base", "crds", "gpupack.dev_gpunodes.yaml"))
	require.NoError(t, err)
	var external apiextensionsv1.CustomResourceDefinition
	require.NoError(t, yaml.UnmarshalStrict(data, &external))
	apiextensionsv1.SetDefaults_CustomResourceDefinition(&external)
	require.Len(t, external.Spec.Versions, 1)
	assert.Equal(t, SchemeGroupVersion.Version, external.Spec.Versions[0].Name)
	assert.Equal(t, GroupName, external.Spec.Group)
	assert.Equal(t, GPUNodeGVR.Resource, external.Spec.Names.Plural)
	assert.Equal(t, apiextensionsv1.ClusterScoped, external.Spec.Scope)

	var props apiextensions.JSONSchemaProps
	require.NoError(t, apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(
		external.Spec.Versions[0].Schema.OpenAPIV3Schema, &props, nil))
	structural, err := structuralschema.NewStructural(&props)
	require.NoError(t, err)
	schema, _, err := validation.NewSchemaValidator(&props)
	require.NoError(t, err)
	rules := cel.NewValidator(structural, true, celconfig.PerCallLimit)
	require.NotNil(t, rules)
	return &crd{structural, schema, rules}
}

func (c *crd) validate(t *testing.T, gn *GPUNode) field.ErrorList {
	t.Helper()
	obj, err := runtime.DefaultUnstructuredConverter.ToUnstructured(gn)
	require.NoError(t, err)
	defaulting.Default(obj, c.structural)
	errs := validation.ValidateCustomResource(nil, obj, c.schema)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, c.structural, obj)...)
	byRule, _ := c.rules.Validate(t.Context(), nil, c.structural, obj, nil, celconfig.RuntimeCELCostBudget)
	return append(errs, byRule...)
}

func reading() *GPUNode {
	at := metav1.NewMicroTime(time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC))
	return &GPUNode{
		ObjectMeta: metav1.ObjectMeta{Name: "node"},
		Status: GPUNodeStatus{
			ObservedTime: &at, Source: SourceHardware, Mode: ModeManage,
			GPUs: []GPU{
				{UUID: "GPU-a", Index: 0, MemoryTotalMiB: 81920, MemoryUsedMiB: 100, MemoryForeignMiB: 100, Healthy: true,
					Pods: []GPUPod{{Namespace: "ns", Name: "p", UID: "u", MemoryUsedMiB: 1}}},
				{UUID: "GPU-b", Index: 1, MemoryTotalMiB: 81920, Utilization: 100, UnhealthyReason: ReasonXid},
			},
		},
	}
}

func TestCRD(t *testing.T) {
	c := loadCRD(t)
	require.Empty(t, c.validate(t, reading()))
	require.Empty(t, c.validate(t, &GPUNode{ObjectMeta: metav1.ObjectMeta{Name: "node"}}), "before the first reading")

	tests := []struct {
		name   string
		change func(*GPUNodeStatus)
		err    string
	}{
		{"no uuid", func(s *GPUNodeStatus) { s.GPUs[0].UUID = "" }, "status.gpus[0].uuid"},
		{"a comma in the uuid, which would break the annotation", func(s *GPUNodeStatus) { s.GPUs[0].UUID = "GPU-a,GPU-b" }, "status.gpus[0].uuid"},
		{"uuid twice", func(s *GPUNodeStatus) { s.GPUs[1].UUID = "GPU-a" }, "Duplicate value"},
		{"index twice", func(s *GPUNodeStatus) { s.GPUs[1].Index = 0 }, "two GPUs have the same index"},
		{"negative index", func(s *GPUNodeStatus) { s.GPUs[0].Index = -1 }, "status.gpus[0].index"},
		{"no memory", func(s *GPUNodeStatus) { s.GPUs[1].MemoryTotalMiB = 0 }, "status.gpus[1].memoryTotalMiB"},
		{"negative use", func(s *GPUNodeStatus) { s.GPUs[1].MemoryUsedMiB = -1 }, "status.gpus[1].memoryUsedMiB"},
		{"use above total", func(s *GPUNodeStatus) { s.GPUs[0].MemoryUsedMiB = 81921 }, "memoryUsedMiB is above memoryTotalMiB"},
		{"reserve above total", func(s *GPUNodeStatus) { s.GPUs[0].MemoryReservedMiB = 81921 }, "memoryReservedMiB is above memoryTotalMiB"},
		{"foreign above use", func(s *GPUNodeStatus) { s.GPUs[0].MemoryForeignMiB = 101 }, "memoryForeignMiB is above memoryUsedMiB"},
		{"utilisation above 100", func(s *GPUNodeStatus) { s.GPUs[0].Utilization = 101 }, "status.gpus[0].utilization"},
		{"sick without a reason", func(s *GPUNodeStatus) { s.GPUs[1].UnhealthyReason = "" }, "an unhealthy GPU needs an unhealthyReason"},
		{"negative use of a pod", func(s *GPUNodeStatus) { s.GPUs[0].Pods[0].MemoryUsedMiB = -1 }, "status.gpus[0].pods[0].memoryUsedMiB"},
		{"a pod twice on a GPU", func(s *GPUNodeStatus) { s.GPUs[0].Pods = append(s.GPUs[0].Pods, s.GPUs[0].Pods[0]) }, "Duplicate value"},
		{"unknown mode", func(s *GPUNodeStatus) { s.Mode = "guess" }, "status.mode"},
		{"unknown source", func(s *GPUNodeStatus) { s.Source = "rumour" }, "status.source"},
		{"too many GPUs", func(s *GPUNodeStatus) {
			for i := range int32(32) {
				s.GPUs = append(s.GPUs, GPU{UUID: "GPU-" + strings.Repeat("c", int(i)+2), Index: 2 + i, MemoryTotalMiB: 1, Healthy: true})
			}
		}, "status.gpus"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			gn := reading()
			tt.change(&gn.Status)
			require.ErrorContains(t, c.validate(t, gn).ToAggregate(), tt.err)
		})
	}
}

func TestCRDOfCordons(t *testing.T) {
	c := loadCRD(t)
	since := metav1.NewTime(time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC))
	good := CordonedGPU{UUID: "GPU-a", Reason: "fan is loud", By: "ada", Since: &since}
	for name, tc := range map[string]struct {
		cordons []CordonedGPU
		err     string
	}{
		"whole":            {[]CordonedGPU{good}, ""},
		"a uuid is enough": {[]CordonedGPU{{UUID: "GPU-a"}, {UUID: "GPU-gone"}}, ""},
		"no uuid":          {[]CordonedGPU{{Reason: "x"}}, "spec.cordonedGPUs[0].uuid"},
		"no GPU's uuid":    {[]CordonedGPU{{UUID: "GPU a"}}, "spec.cordonedGPUs[0].uuid"},
		"twice":            {[]CordonedGPU{good, good}, "Duplicate value"},
		"long reason":      {[]CordonedGPU{{UUID: "GPU-a", Reason: strings.Repeat("x", 257)}}, "spec.cordonedGPUs[0].reason"},
		"too many":         {make([]CordonedGPU, 33), "spec.cordonedGPUs"},
	} {
		t.Run(name, func(t *testing.T) {
			gn := reading()
			gn.Spec.CordonedGPUs = tc.cordons
			err := c.validate(t, gn).ToAggregate()
			if tc.err == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tc.err)
		})
	}
	assert.Equal(t, "cordoned by ada: fan is loud", good.String())
	assert.Equal(t, "cordoned", (&CordonedGPU{UUID: "GPU-a"}).String())
}

// The spelling is a contract with users and their manifests.
func TestContract(t *testing.T) {
	for got, want := range map[string]string{
		SchedulerName:                "gpupack",
		string(ResourceGPU):          "nvidia.com/gpu",
		string(ResourceGPUMemory):    "gpupack.dev/gpu-memory",
		string(ResourceGPUMilli):     "gpupack.dev/gpu-milli",
		AnnotationGPUModel:           "gpupack.dev/gpu-model",
		AnnotationMaxLiveUtilization: "gpupack.dev/max-live-utilization",
		AnnotationGPUs:               "gpupack.dev/gpus",
		AnnotationDecision:           "gpupack.dev/decision",
		LabelPodGroup:                "scheduling.x-k8s.io/pod-group",
		SchemeGroupVersion.String():  "gpupack.dev/v1alpha1",
	} {
		assert.Equal(t, want, got)
	}
	data, err := json.Marshal(Decision{Policy: "fgd", Score: 90, Feasible: 2, RunnerUp: "b", RunnerUpScore: 80, Rejected: map[string]int{"Busy": 1}, Gang: "g"})
	require.NoError(t, err)
	assert.JSONEq(t, `{"policy":"fgd","score":90,"feasible":2,"runnerUp":"b","runnerUpScore":80,"rejected":{"Busy":1},"gang":"g"}`, string(data))
}

func TestScheme(t *testing.T) {
	s := runtime.NewScheme()
	require.NoError(t, AddToScheme(s))
	for _, kind := range []string{"GPUNode", "GPUNodeList"} {
		obj, err := s.New(SchemeGroupVersion.WithKind(kind))
		require.NoError(t, err)
		assert.NotNil(t, obj)
	}
}

func TestDeepCopySharesNothing(t *testing.T) {
	gn := reading()
	gn.Status.GPUs[0].NVLinkPeers = []string{"GPU-b"}
	gn.Status.GPUs[0].MIGDevices = []MIGDevice{{UUID: "MIG-a"}}
	c := gn.DeepCopy()
	require.Equal(t, gn, c)
	c.Status.GPUs[0].Pods[0].Name = "other"
	c.Status.GPUs[0].NVLinkPeers[0] = "other"
	c.Status.GPUs[0].MIGDevices[0].UUID = "other"
	c.Status.ObservedTime.Time = time.Time{}
	assert.Equal(t, "p", gn.Status.GPUs[0].Pods[0].Name)
	assert.Equal(t, []string{"GPU-b"}, gn.Status.GPUs[0].NVLinkPeers)
	assert.Equal(t, "MIG-a", gn.Status.GPUs[0].MIGDevices[0].UUID)
	assert.False(t, gn.Status.ObservedTime.IsZero())
}
