// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// everything is what most users of the package want.
var everything = Options{ControllerManager: true, Kwok: true}

const (
	eventually = time.Minute
	tick       = 50 * time.Millisecond
)

func TestMain(m *testing.M) {
	if how := os.Getenv(childEnv); how != "" {
		child(how)
	}
	os.Exit(RunMain(m, everything))
}

// childEnv makes the test binary run child instead of the tests.
const childEnv = "GPUPACK_EMBEDDED_TEST_CHILD"

// child starts a control plane, says so, and then ends in the given way without stopping it.
func child(how string) {
	cp, err := Start(context.Background(), everything)
	if err != nil {
		panic(err)
	}
	fmt.Println(cp.Dir())
	switch how {
	case "panic":
		panic("the child panics")
	case "exit":
		os.Exit(3)
	default:
		select {} // until it is killed
	}
}

func clientFor(t *testing.T, config *rest.Config) kubernetes.Interface {
	client, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	return client
}

// shortTempDir returns an empty folder whose path leaves room for the names of sockets, and makes it TMPDIR.
func shortTempDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "embedded")
	require.NoError(t, err)
	t.Cleanup(func() { os.Remove(dir) })
	t.Setenv("TMPDIR", dir)
	return dir
}

func TestStartAndStop(t *testing.T) {
	tmp := shortTempDir(t)
	start := time.Now()
	cp, err := Start(t.Context(), everything)
	require.NoError(t, err)
	defer cp.Stop()
	t.Logf("ready after %v", time.Since(start).Round(time.Millisecond))

	config, err := clientcmd.BuildConfigFromFlags("", cp.Kubeconfig())
	require.NoError(t, err)
	client := clientFor(t, config)
	_, err = client.CoreV1().ServiceAccounts("default").Get(t.Context(), "default", metav1.GetOptions{})
	require.NoError(t, err)
	kubeconfig, err := clientcmd.LoadFromFile(cp.Kubeconfig())
	require.NoError(t, err)
	require.Equal(t, "gpupack", kubeconfig.CurrentContext)

	start = time.Now()
	cp.Stop()
	t.Logf("stopped after %v", time.Since(start).Round(time.Millisecond))
	cp.Stop()
	requireEmpty(t, tmp)
	require.Error(t, cp.StartComponent(t.Context(), APIServer))
}

func requireEmpty(t *testing.T, dir string) {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestStartFails(t *testing.T) {
	tests := map[string]struct {
		opts Options
		want []string
	}{
		"a flag is unknown": {
			opts: Options{APIServerArgs: []string{"--no-such-flag"}},
			want: []string{"kube-apiserver has ended", "unknown flag: --no-such-flag"},
		},
		"logs cannot be written": {
			opts: Options{LogDir: "no-such-folder"},
			want: []string{"open the log of etcd", "no-such-folder"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tmp := shortTempDir(t)
			_, err := Start(t.Context(), tt.opts)
			for _, want := range tt.want {
				require.ErrorContains(t, err, want)
			}
			requireEmpty(t, tmp)
		})
	}
}

func TestSideBySide(t *testing.T) {
	var cps [2]*ControlPlane
	var group errgroup.Group
	for i := range cps {
		group.Go(func() (err error) {
			cps[i], err = Start(t.Context(), Options{})
			return err
		})
	}
	err := group.Wait()
	for _, cp := range cps {
		if cp != nil {
			t.Cleanup(cp.Stop)
		}
	}
	require.NoError(t, err)

	require.NotEqual(t, cps[0].Config().Host, cps[1].Config().Host)
	namespace := cps[0].Namespace(t)
	_, err = cps[1].client.CoreV1().Namespaces().Get(t.Context(), namespace, metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err), "got %v", err)

	// Without a controller manager, pods can be created all the same.
	_, err = cps[0].client.CoreV1().Pods(namespace).Create(t.Context(), newPod("pod", ""), metav1.CreateOptions{})
	require.NoError(t, err)
}

func TestRBAC(t *testing.T) {
	cp := Get(t)
	namespace := cp.Namespace(t)
	alice := clientFor(t, cp.ConfigFor("alice", "team"))
	_, err := alice.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
	require.True(t, apierrors.IsForbidden(err), "got %v", err)

	_, err = cp.client.RbacV1().RoleBindings(namespace).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "team"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "team"}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, err := alice.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
		assert.NoError(c, err)
	}, eventually, tick)
	_, err = alice.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
	require.True(t, apierrors.IsForbidden(err), "got %v", err)
}

func TestUsers(t *testing.T) {
	cp := Get(t)
	fromFile := func(path string, err error) *rest.Config {
		require.NoError(t, err)
		config, err := clientcmd.BuildConfigFromFlags("", path)
		require.NoError(t, err)
		return config
	}
	const account = "system:serviceaccount:default:default"
	tests := map[string]struct {
		config     *rest.Config
		wantUser   string
		wantGroups []string
	}{
		"admin":                     {cp.Config(), "admin", []string{"system:masters"}},
		"admin's kubeconfig":        {fromFile(cp.Kubeconfig(), nil), "admin", []string{"system:masters"}},
		"user":                      {cp.ConfigFor("alice"), "alice", nil},
		"user's kubeconfig":         {fromFile(cp.KubeconfigFor("bob", "team")), "bob", []string{"team"}},
		"service account":           {cp.ConfigFor(account), account, []string{"system:serviceaccounts:default"}},
		"component with kubeconfig": {fromFile(cp.KubeconfigFor("system:kube-scheduler")), "system:kube-scheduler", nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			review, err := clientFor(t, tt.config).AuthenticationV1().SelfSubjectReviews().Create(t.Context(),
				&authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
			require.NoError(t, err)
			require.Equal(t, tt.wantUser, review.Status.UserInfo.Username)
			require.Subset(t, review.Status.UserInfo.Groups, append(tt.wantGroups, "system:authenticated"))
		})
	}
}

func TestRestartKeepsData(t *testing.T) {
	cp := Get(t)
	_, err := cp.client.CoreV1().ConfigMaps("default").Create(t.Context(),
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	requireKept := func() {
		t.Helper()
		_, err := cp.client.CoreV1().ConfigMaps("default").Get(t.Context(), "kept", metav1.GetOptions{})
		require.NoError(t, err)
	}

	require.NoError(t, cp.RestartAPIServer(t.Context()))
	requireKept()

	require.NoError(t, cp.StopComponent(APIServer))
	_, err = cp.client.CoreV1().ConfigMaps("default").Get(t.Context(), "kept", metav1.GetOptions{})
	require.Error(t, err)
	require.NoError(t, cp.StopComponent(Etcd))
	require.NoError(t, cp.StopComponent(Etcd), "to stop it twice is no error")
	require.NoError(t, cp.StartComponent(t.Context(), Etcd))
	require.NoError(t, cp.StartComponent(t.Context(), APIServer))
	requireKept()

	require.ErrorContains(t, cp.StartComponent(t.Context(), APIServer), "started already")
	require.ErrorContains(t, cp.StopComponent("kubelet"), `no component "kubelet"`)
}

const crdYAML = `# A comment before the first document.
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: things.test.gpupack.dev
spec:
  group: test.gpupack.dev
  scope: Cluster
  names: {kind: Thing, listKind: ThingList, plural: things, singular: thing, shortNames: [%s]}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object}}
`

func TestInstallCRDs(t *testing.T) {
	cp := Get(t)
	path := filepath.Join(t.TempDir(), "crd.yaml")
	write := func(yaml string) { require.NoError(t, os.WriteFile(path, []byte(yaml), 0o644)) }
	crds, err := dynamic.NewForConfig(cp.Config())
	require.NoError(t, err)
	shortNames := func() any {
		crd, err := crds.Resource(schema.GroupVersionResource{
			Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
		}).Get(t.Context(), "things.test.gpupack.dev", metav1.GetOptions{})
		require.NoError(t, err)
		return crd.Object["spec"].(map[string]any)["names"].(map[string]any)["shortNames"]
	}

	write(fmt.Sprintf(crdYAML, "th"))
	require.NoError(t, cp.InstallCRDs(t.Context(), path))
	_, err = crds.Resource(schema.GroupVersionResource{Group: "test.gpupack.dev", Version: "v1", Resource: "things"}).
		List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.NoError(t, cp.InstallCRDs(t.Context(), path), "a second time")
	require.Equal(t, []any{"th"}, shortNames())

	write(fmt.Sprintf(crdYAML, "thg"))
	require.NoError(t, cp.InstallCRDs(t.Context(), path))
	require.Equal(t, []any{"thg"}, shortNames())

	write("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n")
	require.ErrorContains(t, cp.InstallCRDs(t.Context(), path), `ConfigMap "c" is not a CustomResourceDefinition`)
	require.ErrorIs(t, cp.InstallCRDs(t.Context(), path+".missing"), os.ErrNotExist)
}
