// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"
	pgv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/kubectl-plugin/trace"
)

const (
	gangName    = "pretrain"
	gangMembers = 4
	gangGPUs    = 8 // of each member

	chatName = "chat"
	chatMiB  = 8 << 10 // of each replica

	// Three pods that want all GPUs of a node of a model of which there are four nodes, two of them not whole. At least one
	// stays pending.
	finetuneName  = "finetune"
	finetunePods  = 3
	finetuneGPUs  = 8
	finetuneModel = "G3"

	appLabel = "app"
)

// gpuNeed is what a pod wants of GPUs.
type gpuNeed struct {
	whole  int
	milli  int64
	mib    int64
	models []string
}

// podTemplate says in the words of the pool's scheduler what a pod needs.
func (p *pool) podTemplate(app string, cpuMilli, memoryMiB int64, need gpuNeed) corev1.PodTemplateSpec {
	resources := corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewMilliQuantity(cpuMilli, resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(memoryMiB<<20, resource.BinarySI),
	}
	count := func(name corev1.ResourceName, n int64) {
		resources[name] = *resource.NewQuantity(n, resource.DecimalSI)
	}
	template := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{appLabel: app}},
		Spec: corev1.PodSpec{
			SchedulerName: p.scheduler,
			NodeSelector:  map[string]string{poolLabel: p.name},
			RestartPolicy: corev1.RestartPolicyAlways,
		},
	}
	share := need.milli > 0 || need.mib > 0
	switch {
	case p == gpupackPool:
		if need.whole > 0 {
			count(v1alpha1.ResourceGPU, int64(need.whole))
		}
		if need.milli > 0 {
			count(v1alpha1.ResourceGPUMilli, need.milli)
		}
		if need.mib > 0 {
			resources[v1alpha1.ResourceGPUMemory] = *resource.NewQuantity(need.mib<<20, resource.BinarySI)
		}
		if len(need.models) > 0 {
			template.Annotations = map[string]string{v1alpha1.AnnotationGPUModel: strings.Join(need.models, ",")}
		}
	case share:
		count(v1alpha1.ResourceGPU, 1) // there is no way to ask for less
	case need.whole > 0:
		count(v1alpha1.ResourceGPU, int64(need.whole))
	}
	if p != gpupackPool && len(need.models) > 0 {
		template.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
					{Key: modelLabel, Operator: corev1.NodeSelectorOpIn, Values: need.models},
				}}},
			},
		}}
	}
	template.Spec.Containers = []corev1.Container{{
		Name: "main", Image: "demo", Resources: corev1.ResourceRequirements{Limits: resources, Requests: resources},
	}}
	return template
}

func (p *pool) pod(name, app string, cpuMilli, memoryMiB int64, need gpuNeed) *corev1.Pod {
	template := p.podTemplate(app, cpuMilli, memoryMiB, need)
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name, pod.Namespace = name, p.namespace
	return pod
}

// taskPods are the pods of the trace, whose GPU shares are shares of compute and imply the same share of memory.
func (p *pool) taskPods(tasks []trace.Task) []*corev1.Pod {
	var pods []*corev1.Pod
	for i := range tasks {
		t := &tasks[i]
		need := gpuNeed{whole: t.GPUs, models: t.Models}
		if t.IsShare() {
			need.whole, need.milli = 0, t.GPUMilli
		}
		pods = append(pods, p.pod(t.Name, "openb", t.CPUMilli, t.MemoryMiB, need))
	}
	return pods
}

func memberName(i int) string { return fmt.Sprintf("%s-%d", gangName, i) }

func (p *pool) gangPods() []*corev1.Pod {
	var pods []*corev1.Pod
	for i := range gangMembers {
		pod := p.pod(memberName(i), gangName, 32_000, 128<<10, gpuNeed{whole: gangGPUs})
		pod.Labels[v1alpha1.LabelPodGroup] = gangName
		pods = append(pods, pod)
	}
	return pods
}

func (p *pool) finetunePods() []*corev1.Pod {
	var pods []*corev1.Pod
	for i := range finetunePods {
		pods = append(pods, p.pod(fmt.Sprintf("%s-%d", finetuneName, i), finetuneName, 16_000, 64<<10,
			gpuNeed{whole: finetuneGPUs, models: []string{finetuneModel}}))
	}
	return pods
}

// createPods creates pods in their order, which is the order in which schedulers then take them.
func createPods(ctx context.Context, client kubernetes.Interface, pools []*pool, pods func(*pool) []*corev1.Pod) error {
	each, ctx := errgroup.WithContext(ctx)
	for _, p := range pools {
		each.Go(func() error {
			for _, pod := range pods(p) {
				if _, err := client.CoreV1().Pods(p.namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return each.Wait()
}

// createGang creates the PodGroup of the gang. The default profile pays no heed to it.
func createGang(ctx context.Context, client dynamic.Interface, namespace string) error {
	group := &pgv1alpha1.PodGroup{
		TypeMeta:   metav1.TypeMeta{APIVersion: pgv1alpha1.SchemeGroupVersion.String(), Kind: "PodGroup"},
		ObjectMeta: metav1.ObjectMeta{Name: gangName, Namespace: namespace},
		Spec:       pgv1alpha1.PodGroupSpec{MinMember: gangMembers},
	}
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(group)
	if err != nil {
		return err
	}
	_, err = client.Resource(pgv1alpha1.SchemeGroupVersion.WithResource("podgroups")).Namespace(namespace).
		Create(ctx, &unstructured.Unstructured{Object: object}, metav1.CreateOptions{})
	return err
}

func (p *pool) createChat(ctx context.Context, client kubernetes.Interface, replicas int32) error {
	_, err := client.AppsV1().Deployments(p.namespace).Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: chatName},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{appLabel: chatName}},
			Template: p.podTemplate(chatName, 2_000, 8<<10, gpuNeed{mib: chatMiB}),
		},
	}, metav1.CreateOptions{})
	return err
}

func (p *pool) scaleChat(ctx context.Context, client kubernetes.Interface, replicas int32) error {
	_, err := client.AppsV1().Deployments(p.namespace).Patch(ctx, chatName, types.MergePatchType,
		fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas), metav1.PatchOptions{})
	return err
}

// settleTime is how long nothing may change until it is said that nothing changes any more.
const settleTime = 1500 * time.Millisecond

// settle waits until each pod of the pools runs or has been told that it cannot, the Deployments have their pods, and this
// does not change for a while.
func (d *demo) settle(ctx context.Context) (outcome string, err error) {
	deadline := time.Now().Add(2 * time.Minute)
	var last string
	var since time.Time
	for {
		if err := d.died(); err != nil {
			return "", err
		}
		settled := true
		var now []string
		for _, p := range d.pools {
			running, waiting, open, err := d.count(ctx, p)
			if err != nil {
				return "", err
			}
			settled = settled && open == 0
			text := fmt.Sprintf("%d pods run", running)
			if waiting+open > 0 {
				text += fmt.Sprintf(", %d wait", waiting+open)
			}
			if len(d.pools) > 1 {
				text = p.title + ": " + text
			}
			now = append(now, text)
		}
		if text := strings.Join(now, "; "); text != last || !settled {
			last, since = text, time.Now()
		}
		if time.Since(since) >= settleTime {
			return last, nil
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("the pods do not settle: %s", last)
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return "", err
		}
	}
}

// count returns how many pods run, how many wait for a place, and how many have yet to do the one or the other.
func (d *demo) count(ctx context.Context, p *pool) (running, waiting, open int, err error) {
	pods, err := d.client.CoreV1().Pods(p.namespace).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return 0, 0, 0, err
	}
	chat := 0
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Labels[appLabel] == chatName {
			chat++
		}
		switch {
		case pod.DeletionTimestamp != nil:
			open++
		case pod.Status.Phase == corev1.PodRunning:
			running++
		case pod.Spec.NodeName == "" && unschedulable(pod):
			waiting++
		default:
			open++
		}
	}
	deployment, err := d.client.AppsV1().Deployments(p.namespace).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return 0, 0, 0, err
	}
	for i := range deployment.Items {
		if int(ptr.Deref(deployment.Items[i].Spec.Replicas, 0)) != chat {
			open++
		}
	}
	return running, waiting, open, nil
}

func unschedulable(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			return c.Status == corev1.ConditionFalse
		}
	}
	return false
}
