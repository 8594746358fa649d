// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	podgroupv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// mostPods bounds the pods of a manifest, against a slip in a number of replicas.
const mostPods = 100_000

// manifest is the pods that would run if files were applied to a cluster.
type manifest struct {
	// namespace is that of objects which name none.
	namespace string
	pods      []*corev1.Pod
	groups    []podgroupv1alpha1.PodGroup
	// skipped are objects that bring no pods, such as "Service web".
	skipped []string

	decoder runtime.Decoder
	known   map[types.NamespacedName]bool
}

// readManifest reads files of Pods, Jobs, Deployments, ReplicaSets, StatefulSets and PodGroups, in YAML or JSON, of several documents and of lists.
func readManifest(paths []string, namespace string) (*manifest, error) {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return nil, err
	}
	if err := podgroupv1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	m := &manifest{
		namespace: namespace,
		decoder:   serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer(),
		known:     map[types.NamespacedName]bool{},
	}
	for _, path := range paths {
		before := len(m.pods) + len(m.groups)
		if err := m.readFile(path); err != nil {
			return nil, err
		}
		if len(m.pods)+len(m.groups) == before {
			return nil, fmt.Errorf("%s: there are no pods in it", path)
		}
	}
	return m, nil
}

func (m *manifest) readFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	documents := yaml.NewYAMLOrJSONDecoder(f, 4096)
	for n := 1; ; n++ {
		var raw runtime.RawExtension
		err := documents.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = m.add(raw.Raw)
		}
		if err != nil {
			return fmt.Errorf("%s: document %d: %w", path, n, err)
		}
	}
}

// add takes the pods of one object.
func (m *manifest) add(data []byte) error {
	if len(data) == 0 || string(data) == "null" {
		return nil
	}
	var object unstructured.Unstructured
	if err := json.Unmarshal(data, &object.Object); err != nil {
		return err
	}
	what := strings.TrimSpace(object.GetKind() + " " + object.GetName())
	if object.GetKind() == "List" {
		var list metav1.List
		if err := json.Unmarshal(data, &list); err != nil {
			return err
		}
		for i := range list.Items {
			if err := m.add(list.Items[i].Raw); err != nil {
				return fmt.Errorf("item %d of the list: %w", i+1, err)
			}
		}
		return nil
	}
	typed, _, err := m.decoder.Decode(data, nil, nil)
	switch {
	case runtime.IsNotRegisteredError(err):
		return fmt.Errorf("%s of %s is not understood: write its pods as Pod, Job, Deployment, ReplicaSet or StatefulSet", what,
			object.GetAPIVersion())
	case err != nil && what == "":
		return err
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := m.expand(typed, what); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// expand takes the pods that an object stands for.
func (m *manifest) expand(object runtime.Object, what string) error {
	switch o := object.(type) {
	case *corev1.Pod:
		name := o.Name
		if name == "" && o.GenerateName != "" {
			name = fmt.Sprintf("%s%d", o.GenerateName, len(m.pods))
		}
		return m.addPod(name, o.Namespace, &corev1.PodTemplateSpec{ObjectMeta: o.ObjectMeta, Spec: o.Spec})
	case *batchv1.Job:
		n := ptr.Deref(o.Spec.Parallelism, 1)
		return m.addPods(&o.ObjectMeta, &o.Spec.Template, min(n, ptr.Deref(o.Spec.Completions, n)))
	case *appsv1.Deployment:
		return m.addPods(&o.ObjectMeta, &o.Spec.Template, ptr.Deref(o.Spec.Replicas, 1))
	case *appsv1.ReplicaSet:
		return m.addPods(&o.ObjectMeta, &o.Spec.Template, ptr.Deref(o.Spec.Replicas, 1))
	case *appsv1.StatefulSet:
		return m.addPods(&o.ObjectMeta, &o.Spec.Template, ptr.Deref(o.Spec.Replicas, 1))
	case *podgroupv1alpha1.PodGroup:
		if o.Name == "" {
			return errors.New("has no metadata.name")
		}
		o.Namespace = m.namespaceOr(o.Namespace)
		m.groups = append(m.groups, *o)
		return nil
	case *appsv1.DaemonSet, *batchv1.CronJob, *corev1.ReplicationController:
		return errors.New("its kind is not understood: write its pods as Pod, Job, Deployment, ReplicaSet or StatefulSet")
	}
	m.skipped = append(m.skipped, what)
	return nil
}

func (m *manifest) namespaceOr(namespace string) string {
	if namespace == "" {
		return m.namespace
	}
	return namespace
}

// addPods takes n pods of a template, numbered from 0.
func (m *manifest) addPods(owner *metav1.ObjectMeta, template *corev1.PodTemplateSpec, n int32) error {
	if owner.Name == "" {
		return errors.New("has no metadata.name")
	}
	if n < 0 || len(m.pods)+int(n) > mostPods {
		return fmt.Errorf("stands for %d pods, not in 0 to %d", n, mostPods)
	}
	for i := range n {
		if err := m.addPod(fmt.Sprintf("%s-%d", owner.Name, i), owner.Namespace, template); err != nil {
			return err
		}
	}
	return nil
}

// addPod takes a pod, with what the API server sets where the file does not.
func (m *manifest) addPod(name, namespace string, template *corev1.PodTemplateSpec) error {
	if name == "" {
		return errors.New("has no metadata.name")
	}
	pod := &corev1.Pod{ObjectMeta: *template.ObjectMeta.DeepCopy(), Spec: *template.Spec.DeepCopy()}
	pod.Name, pod.Namespace = name, m.namespaceOr(namespace)
	key := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	if m.known[key] {
		return fmt.Errorf("pod %s is there twice", key)
	}
	m.known[key] = true
	// Of a pod that was read from a cluster, its life there does not count.
	pod.UID, pod.CreationTimestamp, pod.DeletionTimestamp = types.UID("new/"+key.String()), metav1.Time{}, nil
	pod.Spec.NodeName = ""
	delete(pod.Annotations, v1alpha1.AnnotationGPUs)
	delete(pod.Annotations, v1alpha1.AnnotationDecision)
	if pod.Spec.SchedulerName == "" {
		pod.Spec.SchedulerName = corev1.DefaultSchedulerName
	}
	pod.Status.Phase = corev1.PodPending
	requestLimits(pod.Spec.InitContainers)
	requestLimits(pod.Spec.Containers)
	m.pods = append(m.pods, pod)
	return nil
}

// requestLimits lets containers request what they have as limits where they request nothing.
func requestLimits(containers []corev1.Container) {
	for i := range containers {
		r := &containers[i].Resources
		for name, limit := range r.Limits {
			if _, ok := r.Requests[name]; !ok {
				if r.Requests == nil {
					r.Requests = corev1.ResourceList{}
				}
				r.Requests[name] = limit.DeepCopy()
			}
		}
	}
}
