// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	podgroupv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

func failedScheduling(p *corev1.Pod, message string, at time.Duration) *corev1.Event {
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name + "." + at.String()},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		Reason:         "FailedScheduling", Message: message, EventTime: metav1.NewMicroTime(now.Add(-at)),
	}
}

func podGroup(namespace, name string, minMember int32) *podgroupv1alpha1.PodGroup {
	return &podgroupv1alpha1.PodGroup{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: podgroupv1alpha1.PodGroupSpec{MinMember: minMember}}
}

// pending are pods that wait, with what belongs to them.
func pending() []client.Object {
	big := pod("research", "big", asks(v1alpha1.ResourceGPU, "5"), asks(corev1.ResourceCPU, "16"),
		annotated(v1alpha1.AnnotationGPUModel, "H100-SXM5-80GB"))
	share := pod("serving", "share", asks(v1alpha1.ResourceGPUMemory, "70Gi"))
	cpu := pod("serving", "hungry", asks(v1alpha1.ResourceGPU, "1"), asks(corev1.ResourceCPU, "200"))
	objects := []client.Object{
		big, failedScheduling(big, "0/7 nodes are available: 1 too few GPUs are free as a whole, 6 others.", 2*time.Minute),
		failedScheduling(big, "0/6 nodes are available: an older word.", 20*time.Minute),
		share, cpu,
		pod("serving", "fits", asks(v1alpha1.ResourceGPUMemory, "8Gi")),
		pod("serving", "gated", asks(v1alpha1.ResourceGPUMemory, "8Gi"), func(p *corev1.Pod) {
			p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/quota"}}
		}),
		pod("serving", "stock", asks(v1alpha1.ResourceGPU, "1"), func(p *corev1.Pod) { p.Spec.SchedulerName = "default-scheduler" }),
		podGroup("research", "vla", 3), podGroup("research", "half", 4),
		pod("research", "half-0", asks(v1alpha1.ResourceGPU, "1"), inGang("half")),
		pod("research", "orphan-0", asks(v1alpha1.ResourceGPU, "1"), inGang("nobody")),
		pod("default", "web"),
		pod("default", "both", asks(v1alpha1.ResourceGPU, "1"), asks(v1alpha1.ResourceGPUMilli, "100")),
		pod("default", "done", asks(v1alpha1.ResourceGPU, "1"), on("gpu-h100-01", "", 2), func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodSucceeded
		}),
	}
	for _, name := range []string{"vla-0", "vla-1", "vla-2"} {
		objects = append(objects, pod("research", name, asks(v1alpha1.ResourceGPU, "4"), inGang("vla")))
	}
	return objects
}

func TestExplainGolden(t *testing.T) {
	for name, args := range map[string][]string{
		"pending-whole": {"-n", "research", "big"},
		"pending-share": {"-n", "serving", "pod/share"},
		"pending-cpu":   {"-n", "serving", "hungry"},
		"gang":          {"-n", "research", "vla-1"},
		"podgroup":      {"-n", "research", "podgroup/vla"},
		"podgroup-runs": {"-n", "research", "llama"},
		"running":       {"-n", "serving", "chat-7d9c6b5f4-m4wzq"},
		"running-gang":  {"-n", "research", "llama-worker-0"},
		"running-other": {"legacy"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("COLUMNS", "100")
			objects := append(fleet(), pending()...)
			if strings.HasPrefix(name, "podgroup") {
				objects = gangFleet()
			}
			got := invoke(t, cluster(t, objects), append([]string{"explain"}, args...)...)
			require.Equal(t, exitOK, got.code, got.err)
			assert.Empty(t, got.err)
			golden(t, "explain-"+name, got.out)
		})
	}
}

func TestExplainSaysItInOneSentence(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"no GPU":     {[]string{"web"}, "Pod default/web asks for no GPU, so gpupack has no say in where it goes.\n"},
		"both kinds": {[]string{"both"}, "Pod default/both has a request that gpupack cannot place: the pod asks for nvidia.com/gpu and for a share of a GPU (gpupack.dev/gpu-memory or gpupack.dev/gpu-milli): ask for one kind.\n"},
		"ended":      {[]string{"done"}, "Pod default/done has ended (Succeeded) and holds no GPU.\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("COLUMNS", "400")
			got := invoke(t, cluster(t, append(fleet(), pending()...)), append([]string{"explain"}, tt.args...)...)
			assert.Equal(t, result{exitOK, tt.want, ""}, got)
		})
	}
}

func TestExplainSummary(t *testing.T) {
	for name, tt := range map[string]struct {
		pod, want string
	}{
		"fits, never looked at": {"serving/fits", "1 of 7 nodes would fit, but no scheduler has looked at it yet: is gpupack-scheduler running?"},
		"gated":                 {"serving/gated", "It is held back by the scheduling gate example.com/quota."},
		"another scheduler":     {"serving/stock", `It is left to scheduler "default-scheduler": gpupack places pods with schedulerName: gpupack.`},
		"half a gang":           {"research/half-0", "Its gang half waits: 3 more members to be created (1 of 4 exist)."},
		"no PodGroup":           {"research/orphan-0", "Its gang nobody waits: PodGroup nobody does not exist in namespace research."},
		"no room for the gang":  {"research/vla-0", "Its gang vla waits: 1 of the 3 members needed fit at once; no node for another that asks for 4 GPUs: "},
	} {
		t.Run(name, func(t *testing.T) {
			namespace, name, _ := strings.Cut(tt.pod, "/")
			got := invoke(t, cluster(t, append(fleet(), pending()...)), "explain", "-n", namespace, name, "-o", "json")
			require.Equal(t, exitOK, got.code, got.err)
			var x Explanation
			require.NoError(t, json.Unmarshal([]byte(got.out), &x))
			assert.Contains(t, x.Summary, tt.want)
		})
	}
}

func TestExplainUnknownPod(t *testing.T) {
	for arg, want := range map[string]string{
		"nobody":          "there is neither a pod nor a PodGroup \"nobody\" in namespace \"research\"",
		"pod/nobody":      "pod \"nobody\" not found in namespace \"research\"",
		"podgroup/nobody": "PodGroup \"nobody\" not found in namespace \"research\"",
	} {
		got := invoke(t, cluster(t, fleet()), "explain", arg, "-n", "research")
		assert.Equal(t, result{exitError, "", "error: " + want + "\n"}, got)
	}
}
