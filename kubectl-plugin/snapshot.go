// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
	podgroupv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
)

// pageSize is how many objects one list request returns, as kubectl does it.
const pageSize = 500

// snapshot is what a subcommand read of the cluster.
type snapshot struct {
	now time.Time
	// nodes and gpuNodes are sorted by name.
	nodes    []corev1.Node
	gpuNodes []v1alpha1.GPUNode
	// notInstalled is true where the cluster does not know GPUNodes.
	notInstalled bool
	// notAllowed is true where the caller may not read GPUNodes and need not.
	notAllowed bool
	// pods are sorted by namespace and name.
	pods []corev1.Pod
	// podGroups is empty where the cluster does not know PodGroups.
	podGroups []podgroupv1alpha1.PodGroup
	// priorityClasses is empty where the caller may not read them.
	priorityClasses []schedulingv1.PriorityClass
	// workloadClasses is the ConfigMap with what the scheduler has learned; nil where there is none, or none to read.
	workloadClasses *corev1.ConfigMap
}

// scope is what to read. Lists that are nil are not read.
type scope struct {
	nodes    *labels.Selector
	gpuNodes bool
	// gpuNodesIfAllowed goes on without GPUNodes where the caller may not read them.
	gpuNodesIfAllowed bool
	pods              *podScope
	// podGroups of this namespace; empty for all.
	podGroups *string
	// priorityClasses and workloadClasses where the caller may read them.
	priorityClasses, workloadClasses bool
}

// podScope is which pods to read.
type podScope struct {
	// namespace is empty for all.
	namespace string
	selector  labels.Selector
	// node is the one whose pods to read; empty for all.
	node string
	// bound leaves out pods without a node, and pods that have ended.
	bound bool
	// live leaves out pods that have ended.
	live bool
	// keep says which pods to keep; nil keeps all.
	keep func(*corev1.Pod) bool
}

// newClient returns a client for the kinds that the plugin knows. It makes no discovery request: one that the cluster does not
// serve is found out by the list itself.
func newClient(config *genericclioptions.ConfigFlags) (client.Client, error) {
	rc, err := config.ToRESTConfig()
	if err != nil {
		return nil, err
	}
	// kubectl then tries a port of this machine, which is no help.
	if raw, err := config.ToRawKubeConfigLoader().RawConfig(); err == nil && len(raw.Clusters) == 0 && rc.Host == "http://localhost:8080" &&
		(config.APIServer == nil || *config.APIServer == "") {
		return nil, errors.New("no cluster is configured: name a kubeconfig by --kubeconfig or KUBECONFIG")
	}
	rc.QPS, rc.Burst = 50, 300
	rc.UserAgent = "kubectl-gpupack"
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, kind := range []string{"Pod", "Event", "ConfigMap"} {
		mapper.Add(corev1.SchemeGroupVersion.WithKind(kind), meta.RESTScopeNamespace)
	}
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Node"), meta.RESTScopeRoot)
	mapper.Add(v1alpha1.SchemeGroupVersion.WithKind("GPUNode"), meta.RESTScopeRoot)
	mapper.Add(podgroupv1alpha1.SchemeGroupVersion.WithKind("PodGroup"), meta.RESTScopeNamespace)
	mapper.Add(authenticationv1.SchemeGroupVersion.WithKind("SelfSubjectReview"), meta.RESTScopeRoot)
	mapper.Add(schedulingv1.SchemeGroupVersion.WithKind("PriorityClass"), meta.RESTScopeRoot)
	return client.NewWithWatch(rc, client.Options{Scheme: scheme, Mapper: mapper})
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, authenticationv1.AddToScheme, schedulingv1.AddToScheme, v1alpha1.AddToScheme, podgroupv1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	return scheme, nil
}

// read takes a snapshot. Its lists are read side by side and are thus not of one moment.
func read(ctx context.Context, r client.Reader, now time.Time, want scope) (*snapshot, error) {
	s := &snapshot{now: now}
	// One that fails does not cancel the others: client-go would write to stderr that they were cancelled.
	var lists errgroup.Group
	if want.nodes != nil {
		lists.Go(func() (err error) {
			s.nodes, err = listAll(ctx, r, &corev1.NodeList{}, func(l *corev1.NodeList) []corev1.Node { return l.Items },
				nil, client.MatchingLabelsSelector{Selector: *want.nodes})
			return describe(err, "nodes")
		})
	}
	if want.gpuNodes {
		lists.Go(func() (err error) {
			s.gpuNodes, err = listAll(ctx, r, &v1alpha1.GPUNodeList{},
				func(l *v1alpha1.GPUNodeList) []v1alpha1.GPUNode { return l.Items }, nil)
			if notServed(err) {
				s.notInstalled = true
				return nil
			}
			if apierrors.IsForbidden(err) && want.gpuNodesIfAllowed {
				s.notAllowed = true
				return nil
			}
			return describe(err, "gpunodes")
		})
	}
	if want.pods != nil {
		lists.Go(func() (err error) {
			s.pods, err = listPods(ctx, r, want.pods)
			return describe(err, "pods")
		})
	}
	if want.podGroups != nil {
		lists.Go(func() (err error) {
			s.podGroups, err = listAll(ctx, r, &podgroupv1alpha1.PodGroupList{},
				func(l *podgroupv1alpha1.PodGroupList) []podgroupv1alpha1.PodGroup { return l.Items }, nil,
				client.InNamespace(*want.podGroups))
			if notServed(err) {
				return nil
			}
			return describe(err, "podgroups")
		})
	}
	if want.priorityClasses {
		lists.Go(func() (err error) {
			s.priorityClasses, err = listAll(ctx, r, &schedulingv1.PriorityClassList{},
				func(l *schedulingv1.PriorityClassList) []schedulingv1.PriorityClass { return l.Items }, nil)
			if apierrors.IsForbidden(err) {
				return nil
			}
			return describe(err, "priorityclasses")
		})
	}
	if want.workloadClasses {
		lists.Go(func() error {
			cm := &corev1.ConfigMap{}
			key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.WorkloadClassesConfigMap}
			switch err := r.Get(ctx, key, cm); {
			case err == nil:
				s.workloadClasses = cm
			case !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err):
				return fmt.Errorf("get configmap %s: %w", key, err)
			}
			return nil
		})
	}
	if err := lists.Wait(); err != nil {
		return nil, err
	}
	s.sort()
	return s, nil
}

func (s *snapshot) sort() {
	slices.SortFunc(s.nodes, func(a, b corev1.Node) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.gpuNodes, func(a, b v1alpha1.GPUNode) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.pods, func(a, b corev1.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	slices.SortFunc(s.podGroups, func(a, b podgroupv1alpha1.PodGroup) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	slices.SortFunc(s.priorityClasses, func(a, b schedulingv1.PriorityClass) int { return cmp.Compare(a.Name, b.Name) })
}

func listPods(ctx context.Context, r client.Reader, want *podScope) ([]corev1.Pod, error) {
	opts := []client.ListOption{client.InNamespace(want.namespace)}
	if want.selector != nil {
		opts = append(opts, client.MatchingLabelsSelector{Selector: want.selector})
	}
	var terms []fields.Selector
	switch {
	case want.bound && want.node != "":
		terms = append(terms, fields.OneTermEqualSelector("spec.nodeName", want.node))
	case want.bound:
		terms = append(terms, fields.OneTermNotEqualSelector("spec.nodeName", ""))
	}
	if want.bound || want.live {
		terms = append(terms, fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
			fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)))
	}
	if len(terms) > 0 {
		opts = append(opts, client.MatchingFieldsSelector{Selector: fields.AndSelectors(terms...)})
	}
	return listAll(ctx, r, &corev1.PodList{}, func(l *corev1.PodList) []corev1.Pod { return l.Items }, want.keep, opts...)
}

// listAll reads a list page by page and keeps the items that keep accepts, all if it is nil.
func listAll[L client.ObjectList, T any](ctx context.Context, r client.Reader, list L, items func(L) []T, keep func(*T) bool,
	opts ...client.ListOption) ([]T, error) {
	var out []T
	next := ""
	for {
		page := list.DeepCopyObject().(L)
		err := r.List(ctx, page, append(slices.Clone(opts), client.Limit(pageSize), client.Continue(next))...)
		if apierrors.IsResourceExpired(err) && next != "" {
			// The list grew too old while its pages were read.
			out, next = nil, ""
			continue
		}
		if err != nil {
			return nil, err
		}
		got := items(page)
		for i := range got {
			if keep == nil || keep(&got[i]) {
				out = append(out, got[i])
			}
		}
		if next = page.GetContinue(); next == "" {
			return out, nil
		}
	}
}

// notServed says whether the cluster does not know the resource at all.
func notServed(err error) bool { return apierrors.IsNotFound(err) || meta.IsNoMatchError(err) }

func describe(err error, resource string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("list %s: %w", resource, err)
}

// gpuNode returns the telemetry of a node, or nil.
func (s *snapshot) gpuNode(name string) *v1alpha1.GPUNode {
	i, ok := slices.BinarySearchFunc(s.gpuNodes, name, func(g v1alpha1.GPUNode, n string) int { return cmp.Compare(g.Name, n) })
	if !ok {
		return nil
	}
	return &s.gpuNodes[i]
}

// podsByNode returns the pods that are on nodes and have not ended, with the GPUs that were recorded for them.
func (s *snapshot) podsByNode() map[string][]convert.Pod {
	out := make(map[string][]convert.Pod)
	for i := range s.pods {
		pod := &s.pods[i]
		if pod.Spec.NodeName != "" && !convert.IsTerminal(pod) {
			out[pod.Spec.NodeName] = append(out[pod.Spec.NodeName], convert.Pod{Pod: pod, GPUs: convert.GPUs(pod)})
		}
	}
	return out
}

// podGroup returns a PodGroup, or nil.
func (s *snapshot) podGroup(key types.NamespacedName) *podgroupv1alpha1.PodGroup {
	for i := range s.podGroups {
		if s.podGroups[i].Namespace == key.Namespace && s.podGroups[i].Name == key.Name {
			return &s.podGroups[i]
		}
	}
	return nil
}

// gangOf is the name of the PodGroup that a pod is a member of; empty if none.
func gangOf(pod *corev1.Pod) string { return strings.TrimSpace(pod.Labels[v1alpha1.LabelPodGroup]) }

// everything is the selector of a list without one.
func everything() *labels.Selector {
	s := labels.Everything()
	return &s
}

// nodeIsReady says whether the kubelet of the node reports it as ready.
func nodeIsReady(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// age is how long ago t was.
func (s *snapshot) age(t metav1.Time) time.Duration { return max(0, s.now.Sub(t.Time)) }
