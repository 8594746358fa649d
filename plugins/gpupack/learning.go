// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

const (
	// keepEvery is how often what was learned is written, or read where another scheduler leads.
	keepEvery = time.Minute
	// keepTimeout bounds one attempt.
	keepTimeout = 10 * time.Second
)

// learning teaches the distribution which pods come, and keeps it in a ConfigMap: what has run and ended cannot be seen in the
// cluster any more. Of several schedulers only the one that leads schedules, so only it has anything to write; the others
// read, to go on from there when it is their turn.
type learning struct {
	distribution *pack.Distribution
	client       kubernetes.Interface
	pods         corelisters.PodLister
	// namespace of the ConfigMap, and the key in it.
	namespace, key string

	mu sync.Mutex
	// counted are pods without a node that the distribution has learned of, and that may be tried again. Those that have been wait,
	// and count for as long as they do with what they ask for.
	counted map[types.UID]*pack.Request
	// leads is true once this scheduler has tried a pod.
	leads bool
	// unsaved is true where the ConfigMap lacks something.
	unsaved bool

	// keeping guards what follows.
	keeping sync.Mutex
	// loaded is false until what was learned before is known, or known not to exist. Until then nothing is written over it.
	loaded bool
	// read is what was read last.
	read string
	// complaint is the last one in the log, which does not get it twice in a row.
	complaint string
}

func newLearning(d *pack.Distribution, client kubernetes.Interface, pods corelisters.PodLister, namespace, profile string) *learning {
	return &learning{
		distribution: d, client: client, pods: pods, namespace: namespace, key: profile + ".json", counted: map[types.UID]*pack.Request{},
	}
}

// observe counts a pod when it is tried for the first time. That is before it has a place, since pods that find none say as much
// about what is to come. One that is tried again waits: it still is to come when its arrival has been forgotten.
func (l *learning) observe(pod *corev1.Pod, r *pack.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// A pod that is gone already would stay in the set.
	if _, err := l.pods.Pods(pod.Namespace).Get(pod.Name); err != nil {
		return
	}
	if waits, ok := l.counted[pod.UID]; ok {
		if waits == nil {
			request := *r
			l.counted[pod.UID] = &request
			l.distribution.Wait(&request)
		}
		return
	}
	l.counted[pod.UID] = nil
	l.distribution.Observe(r)
	l.leads, l.unsaved = true, true
}

// settled tells that a pod is bound or gone and will not be tried again.
func (l *learning) settled(uid types.UID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if waited := l.counted[uid]; waited != nil {
		l.distribution.Settle(waited)
	}
	delete(l.counted, uid)
}

// run keeps what is learned until the context ends.
func (l *learning) run(ctx context.Context, clock clock.WithTicker) {
	ticker := clock.NewTicker(keepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
			l.keep(ctx)
		}
	}
}

// keep reads or writes the ConfigMap, whichever is due.
func (l *learning) keep(ctx context.Context) {
	l.keeping.Lock()
	defer l.keeping.Unlock()
	ctx, cancel := context.WithTimeout(ctx, keepTimeout)
	defer cancel()
	l.mu.Lock()
	leads, unsaved := l.leads, l.unsaved
	l.mu.Unlock()
	var err error
	switch {
	case !l.loaded || !leads:
		err = l.load(ctx)
	case unsaved:
		err = l.save(ctx)
	}
	if err == nil {
		l.complaint = ""
	} else if l.complaint != err.Error() {
		l.complaint = err.Error()
		klog.FromContext(ctx).Error(err, "Failed to keep what is learned of workloads across restarts")
	}
}

func (l *learning) load(ctx context.Context) error {
	cm, err := l.client.CoreV1().ConfigMaps(l.namespace).Get(ctx, v1alpha1.WorkloadClassesConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		l.loaded = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading ConfigMap %s/%s: %w", l.namespace, v1alpha1.WorkloadClassesConfigMap, err)
	}
	l.loaded = true
	text, ok := cm.Data[l.key]
	if !ok || text == l.read {
		return nil
	}
	if err := json.Unmarshal([]byte(text), l.distribution); err != nil {
		return fmt.Errorf("ConfigMap %s/%s is ignored, since %s does not hold workload classes: %w",
			l.namespace, v1alpha1.WorkloadClassesConfigMap, l.key, err)
	}
	l.read = text
	klog.FromContext(ctx).V(2).Info("Read what was learned of workloads", "configMap", klog.KObj(cm), "key", l.key,
		"classes", len(l.distribution.Classes().List))
	return nil
}

func (l *learning) save(ctx context.Context) error {
	l.mu.Lock()
	l.unsaved = false
	l.mu.Unlock()
	text, err := json.Marshal(l.distribution)
	if err == nil {
		// Each profile has a key and a manager of its own, so none removes another's.
		_, err = l.client.CoreV1().ConfigMaps(l.namespace).Apply(ctx,
			applycorev1.ConfigMap(v1alpha1.WorkloadClassesConfigMap, l.namespace).WithData(map[string]string{l.key: string(text)}),
			metav1.ApplyOptions{FieldManager: "gpupack-scheduler/" + l.key, Force: true})
	}
	if err != nil {
		l.mu.Lock()
		l.unsaved = true
		l.mu.Unlock()
		return fmt.Errorf("writing ConfigMap %s/%s: %w", l.namespace, v1alpha1.WorkloadClassesConfigMap, err)
	}
	return nil
}

// ownNamespace is the scheduler's: that of its service account, or gpupack-system where it does not run in a pod.
func ownNamespace() string {
	text, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
	if name := strings.TrimSpace(string(text)); err == nil && name != "" {
		return name
	}
	return v1alpha1.SystemNamespace
}
