// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

// newest keeps the newest version of each object of one kind. Both the plugin's own watch and the scheduling queue's events
// feed it, so that a pod that an event wakes always meets that event's object.
type newest[T metav1.Object] struct {
	mu       sync.RWMutex
	byKey    map[types.NamespacedName]T
	version  uint64
	informer cache.SharedIndexInformer
	// synced says whether the objects that there were at the start are all here.
	synced cache.InformerSynced
	// changed, where set, is told of each change under the lock, with the zero value where there was or is no object.
	changed func(before, after T)
}

// set takes an object unless a newer version of it is known.
func (s *newest[T]) set(obj T) {
	key := types.NamespacedName{Namespace: obj.GetNamespace(), Name: obj.GetName()}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.byKey[key]
	if ok && old.GetUID() == obj.GetUID() && resourceVersion(old) >= resourceVersion(obj) {
		return
	}
	s.byKey[key] = obj
	s.version++
	if s.changed != nil {
		s.changed(old, obj)
	}
}

// remove forgets an object of that UID.
func (s *newest[T]) remove(obj metav1.Object) {
	key := types.NamespacedName{Namespace: obj.GetNamespace(), Name: obj.GetName()}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.byKey[key]
	if !ok || old.GetUID() != obj.GetUID() {
		return
	}
	delete(s.byKey, key)
	s.version++
	if s.changed != nil {
		var none T
		s.changed(old, none)
	}
}

func (s *newest[T]) find(key types.NamespacedName) (T, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	obj, ok := s.byKey[key]
	return obj, ok
}

func (s *newest[T]) totalVersion() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.version
}

// resourceVersion is comparable within one resource (KEP-5504).
func resourceVersion(obj metav1.Object) uint64 {
	v, _ := strconv.ParseUint(obj.GetResourceVersion(), 10, 64)
	return v
}

// telemetry is the newest GPUNode of each node.
type telemetry struct {
	newest[*v1alpha1.GPUNode]
	// dirty are the nodes whose telemetry changed.
	dirty changes
}

// newTelemetry returns a store that tells the policy of the cluster's GPUs, if it wants to know.
func newTelemetry(chosen pack.Policy) *telemetry {
	t := &telemetry{}
	var s *supply
	if aware, ok := chosen.(policy.SupplyAware); ok {
		s = newSupply(aware)
	}
	t.changed = func(before, after *v1alpha1.GPUNode) {
		if s != nil {
			s.changed(before, after)
		}
		if after == nil {
			after = before
		}
		t.dirty.mark(after.Name)
	}
	return t
}

func (t *telemetry) get(node string) *v1alpha1.GPUNode {
	gn, _ := t.find(types.NamespacedName{Name: node})
	return gn
}

// podGroups is the newest version of each PodGroup.
type podGroups struct {
	newest[*schedulingv1alpha1.PodGroup]
}

// watchCRDs starts to watch GPUNodes and PodGroups.
func (p *Plugin) watchCRDs(ctx context.Context) error {
	p.telemetry = newTelemetry(p.chooser.Policy)
	p.groups = &podGroups{}
	if err := watch(ctx, p.handle.KubeConfig(), v1alpha1.SchemeGroupVersion, "gpunodes", v1alpha1.AddToScheme,
		&v1alpha1.GPUNode{}, &p.telemetry.newest); err != nil {
		return err
	}
	if _, err := p.telemetry.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { p.complain(ctx, nil, obj.(*v1alpha1.GPUNode)) },
		UpdateFunc: func(old, obj any) { p.complain(ctx, old.(*v1alpha1.GPUNode), obj.(*v1alpha1.GPUNode)) },
	}); err != nil {
		return err
	}
	if err := watch(ctx, p.handle.KubeConfig(), schedulingv1alpha1.SchemeGroupVersion, "podgroups", schedulingv1alpha1.AddToScheme,
		&schedulingv1alpha1.PodGroup{}, &p.groups.newest); err != nil {
		return err
	}
	_, err := p.groups.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { p.groupChanged(ctx, nil, obj.(*schedulingv1alpha1.PodGroup)) },
		UpdateFunc: func(old, obj any) {
			p.groupChanged(ctx, old.(*schedulingv1alpha1.PodGroup), obj.(*schedulingv1alpha1.PodGroup))
		},
		DeleteFunc: func(obj any) {
			if group, ok := deleted[*schedulingv1alpha1.PodGroup](obj); ok {
				p.groupGone(ctx, group)
			}
		},
	})
	return err
}

// groupChanged wakes a gang whose PodGroup has come or asks for something else now. The queue has its own watch of PodGroups: where
// that was ahead of the plugin's, it had woken nobody when the gang's pods came, and they were turned away for want of what the
// plugin had not seen.
func (p *Plugin) groupChanged(ctx context.Context, old, group *schedulingv1alpha1.PodGroup) {
	p.groups.set(group)
	if !p.awaitQueue(ctx) {
		return
	}
	if old == nil || old.UID != group.UID || old.Generation != group.Generation || !maps.Equal(old.Annotations, group.Annotations) {
		p.gangs.groupChanged(ctx, types.NamespacedName{Namespace: group.Namespace, Name: group.Name}, "its PodGroup was edited")
	}
}

// awaitQueue waits until the scheduler has a queue, which the plugin's own watches may be ahead of. It says false at the end.
func (p *Plugin) awaitQueue(ctx context.Context) bool {
	return cache.WaitForCacheSync(ctx.Done(), p.handle.SharedInformerFactory().Core().V1().Pods().Informer().HasSynced)
}

func (p *Plugin) groupGone(ctx context.Context, group *schedulingv1alpha1.PodGroup) {
	p.groups.remove(group)
	name := types.NamespacedName{Namespace: group.Namespace, Name: group.Name}
	if !p.awaitQueue(ctx) {
		return
	}
	p.gangs.groupChanged(ctx, name, "its PodGroup was deleted")
	p.gangs.forget(name)
}

// deleted is the object of a deletion that an informer tells of. Of one that it missed, it has what it saw last.
func deleted[T any](obj any) (T, bool) {
	if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = last.Obj
	}
	gone, ok := obj.(T)
	return gone, ok
}

func watch[T interface {
	metav1.Object
	runtime.Object
}](ctx context.Context, kubeconfig *restclient.Config, gv schema.GroupVersion, resource string,
	addToScheme func(*runtime.Scheme) error, example T, store *newest[T],
) error {
	scheme := runtime.NewScheme()
	if err := addToScheme(scheme); err != nil {
		return err
	}
	config := restclient.CopyConfig(kubeconfig)
	config.GroupVersion = &gv
	config.APIPath = "/apis"
	config.ContentType = runtime.ContentTypeJSON
	config.AcceptContentTypes = runtime.ContentTypeJSON
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := restclient.RESTClientFor(config)
	if err != nil {
		return fmt.Errorf("client for %s: %w", resource, err)
	}
	// Without the CRD, every event handler of the scheduler would wait for ever and say nothing.
	if err := client.Get().Resource(resource).VersionedParams(&metav1.ListOptions{Limit: 1}, metav1.ParameterCodec).Do(ctx).Error(); apierrors.IsNotFound(err) {
		return fmt.Errorf("the API server does not serve %s of %s: install gpupack's CRDs first (kubectl apply -k manifests/base)", resource, gv)
	} else if err != nil {
		return fmt.Errorf("listing %s of %s: %w", resource, gv, err)
	}
	store.byKey = map[types.NamespacedName]T{}
	store.informer = cache.NewSharedIndexInformer(cache.NewListWatchFromClient(client, resource, "", fields.Everything()), example, 0, cache.Indexers{})
	registration, err := store.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { store.set(obj.(T)) },
		UpdateFunc: func(_, obj any) { store.set(obj.(T)) },
		DeleteFunc: func(obj any) {
			if gone, ok := deleted[T](obj); ok {
				store.remove(gone)
			}
		},
	})
	if err != nil {
		return err
	}
	store.synced = registration.HasSynced
	go store.informer.RunWithContext(ctx)
	return nil
}

// complain writes an event on a GPUNode that cannot be used, when it becomes so.
func (p *Plugin) complain(ctx context.Context, old, gn *v1alpha1.GPUNode) {
	// The recorder's own scheme does not know the type.
	about := &corev1.ObjectReference{
		APIVersion: v1alpha1.SchemeGroupVersion.String(), Kind: "GPUNode", Name: gn.Name, UID: gn.UID,
	}
	if err := convert.CheckTelemetry(gn); err != nil && (old == nil || convert.CheckTelemetry(old) == nil) {
		p.handle.EventRecorder().Eventf(about, nil, corev1.EventTypeWarning, "InvalidTelemetry", "Ignored",
			"%s: pods that need a GPU are not placed on the node until its agent reports possible figures", err.Error())
	}
	nodes := p.handle.SharedInformerFactory().Core().V1().Nodes()
	// The plugin's watch can be ahead of the framework's at the start.
	if old != nil || !cache.WaitForCacheSync(ctx.Done(), nodes.Informer().HasSynced) {
		return
	}
	if _, err := nodes.Lister().Get(gn.Name); apierrors.IsNotFound(err) {
		p.handle.EventRecorder().Eventf(about, nil, corev1.EventTypeWarning, "NodeNotFound", "Ignored",
			"there is no node %s: delete this GPUNode, or find out which agent writes it", gn.Name)
	}
}

// watchNodes forgets what is remembered of nodes that are gone.
func (p *Plugin) watchNodes() error {
	_, err := p.handle.SharedInformerFactory().Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		DeleteFunc: func(obj any) {
			if node, ok := deleted[*corev1.Node](obj); ok {
				p.nodes.byName.Delete(node.Name)
				p.ledger.forgetNode(node.Name)
			}
		},
	})
	return err
}

// byGang is the index of pods by their PodGroup.
const byGang = "gpupack.dev/gang"

// gangOfPod is the function of that index.
func gangOfPod(obj any) ([]string, error) {
	if pod, ok := obj.(*corev1.Pod); ok {
		if group := groupOf(pod); group.Name != "" {
			return []string{group.String()}, nil
		}
	}
	return nil, nil
}

// watchPods keeps the ledger true to the API and indexes pods by gang.
func (p *Plugin) watchPods(ctx context.Context) error {
	pods := p.handle.SharedInformerFactory().Core().V1().Pods()
	p.pods, p.podIndexer = pods.Lister(), pods.Informer().GetIndexer()
	if _, ok := p.podIndexer.GetIndexers()[byGang]; !ok {
		if err := pods.Informer().AddIndexers(cache.Indexers{byGang: gangOfPod}); err != nil {
			return err
		}
	}
	_, err := pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { p.podChanged(ctx, nil, obj.(*corev1.Pod)) },
		UpdateFunc: func(old, obj any) {
			before, pod := old.(*corev1.Pod), obj.(*corev1.Pod)
			if before.UID != pod.UID {
				p.podGone(ctx, before)
				before = nil
			}
			p.podChanged(ctx, before, pod)
		},
		DeleteFunc: func(obj any) {
			if pod, ok := deleted[*corev1.Pod](obj); ok {
				p.podGone(ctx, pod)
			}
		},
	})
	return err
}

func (p *Plugin) podChanged(ctx context.Context, old, pod *corev1.Pod) {
	p.ledger.observe(pod)
	if pod.Spec.NodeName != "" {
		p.learning.settled(pod.UID)
		p.blocked.unblock(pod.UID)
		// The scheduler may have had no answer to the binding that came to be.
		p.gangs.done(ctx, groupOf(pod), pod.UID)
	}
	if pod.Spec.NodeName != "" || pod.Spec.SchedulerName != p.handle.ProfileName() {
		return
	}
	if old == nil {
		p.gangCompleted(ctx, groupOf(pod))
		return
	}
	for _, name := range []string{v1alpha1.AnnotationGPUModel, v1alpha1.AnnotationMaxLiveUtilization} {
		if old.Annotations[name] != pod.Annotations[name] {
			// The queue does not count a change of annotations as one that could help.
			p.handle.Activate(p.logger(ctx), map[string]*corev1.Pod{pod.Namespace + "/" + pod.Name: pod})
			return
		}
	}
}

// gangCompleted wakes a gang's members when the last one needed has come. The queue tells nobody of new pods.
func (p *Plugin) gangCompleted(ctx context.Context, name types.NamespacedName) {
	if name.Name == "" || !p.ready() {
		return
	}
	if g, err := p.gang(name); err == nil && g.missing() == 0 {
		p.activate(ctx, name)
	}
}

func (p *Plugin) podGone(ctx context.Context, pod *corev1.Pod) {
	p.ledger.drop(pod.UID)
	p.blocked.unblock(pod.UID)
	p.learning.settled(pod.UID)
	p.preemption.podGone(pod)
	p.gangs.memberGone(ctx, pod)
}

// groupOf names the PodGroup of a pod; the zero value where it has none.
func groupOf(pod *corev1.Pod) types.NamespacedName {
	if name := pod.Labels[v1alpha1.LabelPodGroup]; name != "" {
		return types.NamespacedName{Namespace: pod.Namespace, Name: name}
	}
	return types.NamespacedName{}
}

// ready says whether the plugin's own watches have seen everything once. The framework does not wait for those.
func (p *Plugin) ready() bool {
	return p.telemetry.synced() && p.groups.synced()
}
