// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
	"k8s.io/utils/ptr"
)

// TestLabel is the label of nodes that Nodes creates; its value is another at each call.
const TestLabel = "gpupack.dev/test"

// shared returns the control plane of the test binary, and starts it when first called. RunMain sets it.
var shared func() (*ControlPlane, error)

// RunMain runs the tests of a package with a control plane that they share through Get, and returns the exit code for
// TestMain. The control plane starts when a test first asks for it, but its binaries are built here, where the time does not
// count against the timeout of the tests.
func RunMain(m interface{ Run() int }, opts Options) int {
	if opts.Progress == nil {
		opts.Progress = os.Stderr
	}
	ctx := context.Background()
	if _, err := Build(ctx, opts.Progress); err != nil {
		fmt.Fprintln(os.Stderr, "embedded control plane:", err)
		return 1
	}
	var started *ControlPlane
	shared = sync.OnceValues(func() (*ControlPlane, error) {
		cp, err := Start(ctx, opts)
		started = cp
		return cp, err
	})
	code := m.Run()
	if started != nil {
		started.Stop()
	}
	return code
}

// Get returns the control plane that the tests of the package share. TestMain must call RunMain.
func Get(t testing.TB) *ControlPlane {
	t.Helper()
	require.NotNil(t, shared, "TestMain must call embedded.RunMain")
	cp, err := shared()
	require.NoError(t, err)
	return cp
}

// Namespace creates a namespace for the test and returns its name when pods can be created in it. It is deleted after the
// test, without waiting for that.
func (cp *ControlPlane) Namespace(t testing.TB) string {
	t.Helper()
	ns, err := cp.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err := cp.client.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{})
		if err == nil {
			// Pods whose nodes are gone have nobody to end them.
			err = cp.client.CoreV1().Pods(ns.Name).DeleteCollection(ctx,
				metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}, metav1.ListOptions{})
		}
		if err != nil {
			t.Logf("delete namespace %s: %v", ns.Name, err)
		}
	})
	if cp.has(ControllerManager) {
		cp.await(t, func(ctx context.Context) (bool, error) {
			_, err := cp.client.CoreV1().ServiceAccounts(ns.Name).Get(ctx, "default", metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return false, nil
			}
			return err == nil, err
		})
	}
	return ns.Name
}

// Nodes creates n nodes that kwok runs, and returns them when they are ready and have no taint of a node that is not. They
// share a value of TestLabel that no other nodes have, and are deleted after the test. Each has 64 CPUs, 256 GiB of memory
// and room for 110 pods, which mutate, if not nil, can change, as it can the rest of a node before it is created.
func (cp *ControlPlane) Nodes(t testing.TB, n int, mutate func(i int, node *corev1.Node)) []*corev1.Node {
	t.Helper()
	require.True(t, cp.has(Kwok), "Nodes needs Options.Kwok")
	require.Positive(t, n)
	set := "t" + utilrand.String(8)
	selector := TestLabel + "=" + set
	client := cp.client.CoreV1().Nodes()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err := client.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			t.Logf("delete nodes %s: %v", selector, err)
		}
	})

	nodes := make([]*corev1.Node, n)
	creates, ctx := errgroup.WithContext(t.Context())
	creates.SetLimit(16)
	for i := range nodes {
		node := newNode(fmt.Sprintf("%s-%d", set, i), set)
		if mutate != nil {
			mutate(i, node)
		}
		creates.Go(func() (err error) {
			nodes[i], err = client.Create(ctx, node, metav1.CreateOptions{})
			return err
		})
	}
	require.NoError(t, creates.Wait())

	index := make(map[string]int, n)
	for i, node := range nodes {
		index[node.Name] = i
	}
	ready := make(map[string]bool, n)
	lw := cache.NewFilteredListWatchFromClient(cp.client.CoreV1().RESTClient(), "nodes", metav1.NamespaceAll,
		func(o *metav1.ListOptions) { o.LabelSelector = selector })
	// A thousand nodes take some 15 s on two cores.
	ctx, cancel := context.WithTimeout(t.Context(), readyTimeout+time.Duration(n)*50*time.Millisecond)
	defer cancel()
	_, err := watchtools.UntilWithSync(ctx, lw, &corev1.Node{}, nil, func(e watch.Event) (bool, error) {
		node, ok := e.Object.(*corev1.Node)
		if !ok {
			return false, fmt.Errorf("watch nodes: got %T", e.Object)
		}
		if nodeReady(node) {
			ready[node.Name] = true
			nodes[index[node.Name]] = node
		}
		return len(ready) == n, nil
	})
	require.NoError(t, cp.died())
	require.NoError(t, err, "%d of %d nodes became ready", len(ready), n)
	return nodes
}

func newNode(name, set string) *corev1.Node {
	resources := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("64"),
		corev1.ResourceMemory: resource.MustParse("256Gi"),
		corev1.ResourcePods:   resource.MustParse("110"),
	}
	now := metav1.Now()
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:        name,
			Annotations: map[string]string{KwokNodeAnnotation: KwokNodeValue},
			Labels: map[string]string{
				TestLabel:                 set,
				corev1.LabelHostname:      name,
				corev1.LabelOSStable:      "linux",
				corev1.LabelArchStable:    "amd64",
				"beta.kubernetes.io/os":   "linux",
				"beta.kubernetes.io/arch": "amd64",
			},
		},
		// Ready from the beginning, which spares a write for each of thousands of nodes.
		Status: corev1.NodeStatus{
			Capacity:    resources,
			Allocatable: resources.DeepCopy(),
			Conditions: []corev1.NodeCondition{{
				Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
				LastHeartbeatTime: now, LastTransitionTime: now,
			}},
			NodeInfo: corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "amd64", KubeletVersion: "kwok"},
		},
	}
}

// nodeReady reports whether the node is Ready and the controller manager has removed the taint that new nodes have.
func nodeReady(node *corev1.Node) bool {
	for _, taint := range node.Spec.Taints {
		if taint.Key == corev1.TaintNodeNotReady {
			return false
		}
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (cp *ControlPlane) has(name string) bool {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	_, err := cp.component(name)
	return err == nil
}

// await polls until the condition holds, and fails the test if it does not in time or a component has died.
func (cp *ControlPlane) await(t testing.TB, condition wait.ConditionWithContextFunc) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 20*time.Millisecond, readyTimeout, true,
		func(ctx context.Context) (bool, error) {
			if err := cp.died(); err != nil {
				return false, err
			}
			return condition(ctx)
		})
	require.NoError(t, err)
}
