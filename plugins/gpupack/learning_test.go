// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	corelisters "k8s.io/client-go/listers/core/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

const learningKey = "gpupack.json"

// learns is a learning of its own on a cluster, with pods of which it can learn.
type learns struct {
	*learning
	indexer cache.Indexer
	ctx     context.Context
	log     ktesting.Buffer
}

func newLearns(t *testing.T, client *fake.Clientset) *learns {
	indexer := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true), ktesting.Verbosity(2)))
	return &learns{
		learning: newLearning(pack.NewDistribution(pack.DefaultClasses()), client, corelisters.NewPodLister(indexer), "home", "gpupack"),
		indexer:  indexer,
		ctx:      klog.NewContext(t.Context(), logger),
		log:      logger.GetSink().(ktesting.Underlier).GetBuffer(),
	}
}

// learn makes pods come of which each asks for that many GPUs.
func (l *learns) learn(t *testing.T, names []string, gpus int) {
	for _, name := range names {
		pod := gpuPod(name, "", "")
		require.NoError(t, l.indexer.Add(pod))
		l.observe(pod, &pack.Request{GPUs: gpus})
	}
}

// knows says how many pods that ask for so many GPUs the distribution has counted.
func (l *learns) knows(t *testing.T, gpus int) float64 {
	text, err := json.Marshal(l.distribution)
	require.NoError(t, err)
	return weightOf(t, text, gpus)
}

func weightOf(t *testing.T, text []byte, gpus int) float64 {
	var saved struct {
		Classes []struct {
			GPUs   int
			Weight float64
		}
	}
	require.NoError(t, json.Unmarshal(text, &saved))
	for _, c := range saved.Classes {
		if c.GPUs == gpus {
			return c.Weight
		}
	}
	return 0
}

func configMap(data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "home", Name: v1alpha1.WorkloadClassesConfigMap, ResourceVersion: "1"}, Data: data}
}

func stored(t *testing.T, client *fake.Clientset) map[string]string {
	cm, err := client.CoreV1().ConfigMaps("home").Get(t.Context(), v1alpha1.WorkloadClassesConfigMap, metav1.GetOptions{})
	require.NoError(t, err)
	return cm.Data
}

func writes(client *fake.Clientset) int {
	n := 0
	for _, action := range client.Actions() {
		if action.GetVerb() != "get" {
			n++
		}
	}
	return n
}

func TestEachPodIsLearnedOfOnce(t *testing.T) {
	l := newLearns(t, fake.NewClientset())
	l.learn(t, []string{"a", "b", "a", "a"}, 3)
	assert.InDelta(t, 2, l.knows(t, 3), 0.01)

	gone := gpuPod("gone", "", "")
	l.observe(gone, &pack.Request{GPUs: 3})
	assert.InDelta(t, 2, l.knows(t, 3), 0.01, "a pod that is no longer there")

	l.settled("a")
	l.settled("b")
	assert.Empty(t, l.counted, "what has a node is not remembered")
}

// A pod that waits still counts when its arrival has been forgotten, and no more once it has a node.
func TestWhatWaitsCounts(t *testing.T) {
	l := newLearns(t, fake.NewClientset())
	share := func(gpus int) float64 {
		for i := range 64 << 4 {
			l.distribution.Observe(&pack.Request{GPUs: 1, CPUMilli: int64(i % 2)})
		}
		for _, c := range l.distribution.Classes().List {
			if c.Request.GPUs == gpus {
				return c.Weight
			}
		}
		return 0
	}
	l.learn(t, []string{"once"}, 3)
	l.learn(t, []string{"waits", "waits", "waits"}, 5)
	for range 30 {
		share(3)
	}
	assert.Zero(t, share(3))
	assert.Positive(t, share(5))
	l.settled("waits")
	assert.Zero(t, share(5))
}

func TestWhatWasLearnedSurvives(t *testing.T) {
	client := fake.NewClientset()
	first := newLearns(t, client)
	first.keep(first.ctx)
	first.keep(first.ctx)
	assert.Zero(t, writes(client), "nothing was learned")
	first.learn(t, []string{"a", "b"}, 3)
	first.keep(first.ctx)
	assert.InDelta(t, 2, weightOf(t, []byte(stored(t, client)[learningKey]), 3), 0.01)
	first.keep(first.ctx)
	assert.Equal(t, 1, writes(client), "nothing new was learned")

	// One that waits for its turn reads and never writes.
	second := newLearns(t, client)
	second.keep(second.ctx)
	assert.InDelta(t, 2, second.knows(t, 3), 0.01)
	first.learn(t, []string{"c"}, 3)
	first.keep(first.ctx)
	second.keep(second.ctx)
	assert.InDelta(t, 3, second.knows(t, 3), 0.01)
	assert.Equal(t, 2, writes(client))

	// Its turn comes.
	second.learn(t, []string{"d"}, 3)
	second.keep(second.ctx)
	assert.InDelta(t, 4, weightOf(t, []byte(stored(t, client)[learningKey]), 3), 0.02)
	assert.Equal(t, 3, writes(client))
	assert.Contains(t, second.log.String(), "Read what was learned of workloads")
}

func TestOtherKeysAreLeftAlone(t *testing.T) {
	client := fake.NewClientset(configMap(map[string]string{"other.json": "other"}))
	l := newLearns(t, client)
	l.keep(l.ctx)
	l.learn(t, []string{"a"}, 3)
	l.keep(l.ctx)
	data := stored(t, client)
	assert.Equal(t, "other", data["other.json"])
	assert.NotEmpty(t, data[learningKey])
	assert.NotContains(t, l.log.String(), "ignored", "another profile's key is no fault")
}

func TestBrokenContentIsIgnoredAndReplaced(t *testing.T) {
	client := fake.NewClientset(configMap(map[string]string{learningKey: `{"kind":"Pod"}`}))
	l := newLearns(t, client)
	before := l.distribution.Classes()
	l.keep(l.ctx)
	l.keep(l.ctx)
	assert.Same(t, before, l.distribution.Classes())
	assert.Equal(t, 1, len(l.log.Data()), "one line, however often it is read: %s", l.log.String())
	assert.Contains(t, l.log.String(),
		"ConfigMap home/gpupack-workload-classes is ignored, since gpupack.json does not hold workload classes: it has no classes")
	l.learn(t, []string{"a"}, 3)
	l.keep(l.ctx)
	assert.InDelta(t, 1, weightOf(t, []byte(stored(t, client)[learningKey]), 3), 0.01)
}

// Where the API server fails at the start, what it has is not written over.
func TestUnreadContentIsNotWrittenOver(t *testing.T) {
	client := fake.NewClientset(configMap(map[string]string{learningKey: `{"classes":[{"gpus":7,"weight":100}]}`}))
	down := true
	client.PrependReactor("get", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		return down, nil, errors.New("try later")
	})
	l := newLearns(t, client)
	l.keep(l.ctx)
	l.learn(t, []string{"a"}, 3)
	l.keep(l.ctx)
	assert.Zero(t, writes(client))
	assert.Equal(t, 1, len(l.log.Data()), "%s", l.log.String())
	assert.Contains(t, l.log.String(), "reading ConfigMap home/gpupack-workload-classes: try later")

	down = false
	l.keep(l.ctx)
	assert.InDelta(t, 100, l.knows(t, 7), 0.1)
	l.learn(t, []string{"b"}, 3)
	l.keep(l.ctx)
	assert.InDelta(t, 100, weightOf(t, []byte(stored(t, client)[learningKey]), 7), 0.1)
}

func TestWriteIsTriedAgain(t *testing.T) {
	client := fake.NewClientset()
	l := newLearns(t, client)
	l.keep(l.ctx)
	l.learn(t, []string{"a"}, 3)
	down := true
	client.PrependReactor("patch", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		return down, nil, errors.New("try later")
	})
	l.keep(l.ctx)
	assert.Contains(t, l.log.String(), "writing ConfigMap home/gpupack-workload-classes: try later")
	down = false
	l.keep(l.ctx)
	assert.NotEmpty(t, stored(t, client)[learningKey])
}

func TestKeptOnceAMinute(t *testing.T) {
	client := fake.NewClientset()
	l := newLearns(t, client)
	l.keep(l.ctx)
	clock := clocktesting.NewFakeClock(time.Now())
	ctx, cancel := context.WithCancel(l.ctx)
	ended := make(chan struct{})
	go func() {
		l.run(ctx, clock)
		close(ended)
	}()
	require.Eventually(t, clock.HasWaiters, time.Minute, time.Millisecond)
	l.learn(t, []string{"a"}, 3)
	clock.Step(keepEvery - time.Second)
	assert.Zero(t, writes(client))
	clock.Step(time.Second)
	require.Eventually(t, func() bool { return writes(client) == 1 }, time.Minute, time.Millisecond)
	cancel()
	<-ended
}
