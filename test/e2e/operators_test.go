// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/util/cert"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/controller"
	"github.com/gpupack/gpupack/test/embedded"
	"github.com/gpupack/gpupack/test/process"
	"github.com/gpupack/gpupack/test/scheduler"
)

// operators are built by TestMain.
var operators = sync.OnceValues(func() (embedded.Operators, error) {
	return embedded.BuildOperators(context.Background(), os.Stderr)
})

// startJobSet runs the controller of JobSet with its webhooks of JobSets.
func startJobSet(t *testing.T, k *cluster) {
	t.Helper()
	o, err := operators()
	require.NoError(t, err)
	components := filepath.Join(o.JobSetDir, "config", "components")
	require.NoError(t, k.cp.InstallCRDs(t.Context(), filepath.Join(components, "crd", "bases", "jobset.x-k8s.io_jobsets.yaml")))

	dir := t.TempDir()
	certPEM, keyPEM, err := cert.GenerateSelfSignedCertKey("127.0.0.1", []net.IP{net.IPv4(127, 0, 0, 1)}, nil)
	require.NoError(t, err)
	webhooks, probes := process.FreeAddress(t), process.FreeAddress(t)
	_, port, err := net.SplitHostPort(webhooks)
	require.NoError(t, err)
	for name, data := range map[string]string{
		"tls.crt": string(certPEM),
		"tls.key": string(keyPEM),
		"config.yaml": fmt.Sprintf(`
apiVersion: config.jobset.x-k8s.io/v1alpha1
kind: Configuration
webhook: {host: 127.0.0.1, port: %s, certDir: %s}
internalCertManagement: {enable: false}
leaderElection: {leaderElect: false}
metrics: {bindAddress: "0"}
health: {healthProbeBindAddress: %s}
`, port, dir, probes),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600))
	}
	p := process.New()
	require.NoError(t, p.Start(t, o.JobSet, []string{"KUBECONFIG=" + k.cp.Kubeconfig()}, "--config="+filepath.Join(dir, "config.yaml")))
	p.AwaitReady(t, "http://"+probes)

	// at points a webhook at the process, and says whether it is one of JobSets rather than of pods.
	at := func(c *admissionregistrationv1.WebhookClientConfig) bool {
		path := ptr.Deref(c.Service.Path, "")
		c.URL, c.CABundle, c.Service = ptr.To("https://"+webhooks+path), certPEM, nil
		return strings.Contains(path, "jobset")
	}
	data, err := os.ReadFile(filepath.Join(components, "webhook", "manifests.yaml"))
	require.NoError(t, err)
	for _, doc := range strings.Split(string(data), "\n---\n") {
		var object client.Object
		if strings.Contains(doc, "kind: Mutating") {
			c := &admissionregistrationv1.MutatingWebhookConfiguration{}
			require.NoError(t, yaml.Unmarshal([]byte(doc), c))
			var kept []admissionregistrationv1.MutatingWebhook
			for _, w := range c.Webhooks {
				if at(&w.ClientConfig) {
					kept = append(kept, w)
				}
			}
			c.Webhooks, object = kept, c
		} else {
			c := &admissionregistrationv1.ValidatingWebhookConfiguration{}
			require.NoError(t, yaml.Unmarshal([]byte(doc), c))
			var kept []admissionregistrationv1.ValidatingWebhook
			for _, w := range c.Webhooks {
				if at(&w.ClientConfig) {
					kept = append(kept, w)
				}
			}
			c.Webhooks, object = kept, c
		}
		k.createForTest(t, object)
	}
}

// createForTest creates an object that no namespace takes with it.
func (k *cluster) createForTest(t *testing.T, object client.Object) {
	t.Helper()
	require.NoError(t, k.Create(t.Context(), object))
	t.Cleanup(func() { _ = k.Delete(context.Background(), object) })
}

// startTrainingOperator runs the training operator, which is told that gpupack places gangs. Its webhook, which only
// validates, is not called.
func startTrainingOperator(t *testing.T, k *cluster) {
	t.Helper()
	o, err := operators()
	require.NoError(t, err)
	crds, err := filepath.Glob(filepath.Join(o.TrainingOperatorDir, "manifests", "base", "crds", "kubeflow.org_*.yaml"))
	require.NoError(t, err)
	require.NoError(t, k.cp.InstallCRDs(t.Context(), crds...))
	k.createForTest(t, &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "validator.training-operator.kubeflow.org"}})
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: k.namespace, Name: "training-operator-webhook-cert"}}
	require.NoError(t, k.Create(t.Context(), secret))
	probes := process.FreeAddress(t)
	_, port, err := net.SplitHostPort(process.FreeAddress(t))
	require.NoError(t, err)
	p := process.New()
	require.NoError(t, p.Start(t, o.TrainingOperator, []string{"KUBECONFIG=" + k.cp.Kubeconfig(), "MY_POD_NAMESPACE=" + k.namespace},
		"--gang-scheduler-name="+v1alpha1.SchedulerName, "--enable-scheme=pytorchjob", "--namespace="+k.namespace,
		"--metrics-bind-address=0", "--health-probe-bind-address="+probes, "--webhook-server-port="+port, "--controller-threads=4",
		"--kube-api-qps=200", "--kube-api-burst=200"))
	// It makes its certificate itself, and looks for it where a kubelet would put the secret. That path is in its code.
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, k.Get(t.Context(), client.ObjectKeyFromObject(secret), secret))
		require.NotEmpty(c, secret.Data["tls.crt"])
	}, eventually, tick)
	const dir = "/tmp/k8s-webhook-server/serving-certs"
	require.NoError(t, os.MkdirAll(dir, 0o755))
	for _, name := range []string{"tls.crt", "tls.key"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), secret.Data[name], 0o600))
	}
	p.AwaitReady(t, "http://"+probes)
}

// object reads YAML, in which each %s is replaced.
func (k *cluster) object(t *testing.T, text string, args ...any) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	require.NoError(t, yaml.Unmarshal(fmt.Appendf(nil, text, args...), &u.Object))
	u.SetNamespace(k.namespace)
	return u
}

// operatorRepair leaves operators the time to do what they would do by themselves.
var operatorRepair = []string{"--node-not-ready-after=1s", "--repair-backoff=3s", "--repair-backoff-max=6s"}

func TestJobSet(t *testing.T) {
	k := newCluster(t, 6, func(int) []v1alpha1.GPU { return a100s(4) })
	startJobSet(t, k)
	scheduler.Start(t, k.cp, scheduler.Options{})
	controller.Start(t, k.cp, operatorRepair...)
	k.group(t, "train", 4)
	set := k.object(t, `
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata: {name: train}
spec:
  failurePolicy: {maxRestarts: 3}
  replicatedJobs:
  - name: workers
    replicas: 2
    template:
      spec:
        parallelism: 2
        completions: 2
        backoffLimit: 0
        template:
          metadata:
            labels: {scheduling.x-k8s.io/pod-group: train}
          spec:
            schedulerName: gpupack
            nodeSelector: {%s: %s}
            containers:
            - name: main
              image: none
              resources: {limits: {nvidia.com/gpu: 4}}
`, embedded.TestLabel, k.label)
	require.NoError(t, k.Create(t.Context(), set))
	restarts := func() int64 {
		require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(set), set))
		n, _, err := unstructured.NestedInt64(set.Object, "status", "restarts")
		require.NoError(t, err)
		return n
	}
	old := k.runs(t, "train", 4)
	k.phase(t, "train", schedulingv1alpha1.PodGroupRunning)

	// A node is lost: gpupack restarts the gang, of which JobSet has nothing to do.
	k.deleteNode(t, old[anyOf(old)].Spec.NodeName)
	old = k.restarted(t, "train", old)
	require.Equal(t, "1", k.podGroup(t, "train").Annotations[v1alpha1.AnnotationRestarts])
	require.Zero(t, restarts())

	// A pod fails: JobSet restarts all its jobs, and gpupack does not do it once more.
	k.fail(t, anyOf(old))
	old = k.restarted(t, "train", old)
	require.EqualValues(t, 1, restarts())
	require.Never(t, func() bool {
		return k.podGroup(t, "train").Annotations[v1alpha1.AnnotationRestarts] != "1" || anyOf(k.members(t, "train")) != anyOf(old)
	}, 8*time.Second, 10*tick)
	k.requireNoDoubleBooking(t)
}

// anyOf is the first name.
func anyOf(pods map[string]*corev1.Pod) string {
	return slices.Min(append(slices.Collect(maps.Keys(pods)), "~"))
}

func TestPyTorchJob(t *testing.T) {
	k := newCluster(t, 5, func(int) []v1alpha1.GPU { return a100s(4) })
	startTrainingOperator(t, k)
	scheduler.Start(t, k.cp, scheduler.Options{})
	controller.Start(t, k.cp, operatorRepair...)
	replicas := func(n int) string {
		return fmt.Sprintf(`{replicas: %d, restartPolicy: OnFailure, template: {spec: {nodeSelector: {%s: %s}, containers: [
  {name: pytorch, image: none, resources: {limits: {nvidia.com/gpu: 4}}}]}}}`, n, embedded.TestLabel, k.label)
	}
	job := k.object(t, `
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata: {name: train}
spec:
  pytorchReplicaSpecs:
    Master: %s
    Worker: %s
`, replicas(1), replicas(2))
	require.NoError(t, k.Create(t.Context(), job))
	old := k.runs(t, "train", 3)
	require.EqualValues(t, 3, k.phase(t, "train", schedulingv1alpha1.PodGroupRunning).Spec.MinMember, "the operator has made the PodGroup")

	k.deleteNode(t, old["train-worker-1"].Spec.NodeName)
	old = k.restarted(t, "train", old)
	require.Equal(t, "1", k.podGroup(t, "train").Annotations[v1alpha1.AnnotationRestarts])

	// The operator deletes a failed pod and makes another at once. The others have lost it all the same.
	k.fail(t, "train-worker-0")
	k.restarted(t, "train", old)
	require.Equal(t, "2", k.podGroup(t, "train").Annotations[v1alpha1.AnnotationRestarts])
	k.requireNoDoubleBooking(t)
}
