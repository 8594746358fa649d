// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Files in the folder of a control plane.
const (
	etcdSocket = "etcd.sock"
	certFile   = "apiserver.crt"
	keyFile    = "apiserver.key"
	saKeyFile  = "serviceaccount.key"
	tokenFile  = "tokens.csv"
	kwokFile   = "kwok.yaml"
)

// configure writes the files that the components read, and sets the components.
func (cp *ControlPlane) configure(bins Binaries, opts Options, port int) error {
	certPEM, keyPEM, err := newServingCert()
	if err != nil {
		return err
	}
	_, saKeyPEM, err := newKey()
	if err != nil {
		return err
	}
	token := rand.Text()
	for name, data := range map[string][]byte{
		certFile:  certPEM,
		keyFile:   keyPEM,
		saKeyFile: saKeyPEM,
		tokenFile: fmt.Appendf(nil, "%s,admin,admin,system:masters\n", token),
		kwokFile:  kwokConfig,
	} {
		if err := os.WriteFile(cp.path(name), data, 0o600); err != nil {
			return err
		}
	}

	const name = "gpupack"
	cp.kubeconfig = clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{
			name: {Server: "https://127.0.0.1:" + strconv.Itoa(port), CertificateAuthorityData: certPEM},
		},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: {Token: token}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
		CurrentContext: name,
	}
	if err := clientcmd.WriteToFile(cp.kubeconfig, cp.Kubeconfig()); err != nil {
		return err
	}
	cp.config, err = clientcmd.NewDefaultClientConfig(cp.kubeconfig, nil).ClientConfig()
	if err != nil {
		return err
	}
	cp.config.QPS = -1
	cp.client, err = kubernetes.NewForConfig(cp.config)
	if err != nil {
		return err
	}

	cp.add(opts, Etcd, bins.Etcd, cp.etcdArgs()).ready = cp.etcdReady
	cp.add(opts, APIServer, bins.APIServer, cp.apiServerArgs(opts, port)).ready = cp.apiServerReady
	if opts.Kwok {
		// It is ready when nodes are, for which Nodes waits.
		cp.add(opts, Kwok, bins.Kwok, []string{"--config=" + cp.path(kwokFile), "--kubeconfig=" + cp.Kubeconfig()})
	}
	if opts.ControllerManager {
		kubeconfig, err := cp.KubeconfigFor("system:kube-controller-manager")
		if err != nil {
			return err
		}
		args := cp.controllerManagerArgs(opts, kubeconfig)
		cp.add(opts, ControllerManager, bins.ControllerManager, args).ready = cp.defaultServiceAccountExists
	}
	return nil
}

func (cp *ControlPlane) path(name string) string { return filepath.Join(cp.dir, name) }

func (cp *ControlPlane) add(opts Options, name, path string, args []string) *component {
	logDir := opts.LogDir
	if logDir == "" {
		logDir = cp.dir
	}
	c := &component{name: name, path: path, args: args, dir: cp.dir, log: filepath.Join(logDir, name+".log")}
	cp.components = append(cp.components, c)
	return c
}

// etcdArgs make etcd listen on a socket, which needs no free port and which only we can reach.
func (cp *ControlPlane) etcdArgs() []string {
	return []string{
		"--name=gpupack",
		"--data-dir=" + cp.path("etcd"),
		"--listen-client-urls=unix://" + cp.path(etcdSocket),
		// Must be HOST:PORT, but nobody uses it: there is one member, and the API server is told the socket.
		"--advertise-client-urls=http://127.0.0.1:0",
		"--listen-peer-urls=http://127.0.0.1:0",
		"--unsafe-no-fsync",
		"--quota-backend-bytes=" + strconv.Itoa(8<<30),
		"--log-level=warn",
	}
}

func (cp *ControlPlane) apiServerArgs(opts Options, port int) []string {
	args := []string{
		"--etcd-servers=unix://" + cp.path(etcdSocket),
		"--bind-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(port),
		"--permit-port-sharing", // with the socket of reservePort
		"--tls-cert-file=" + cp.path(certFile),
		"--tls-private-key-file=" + cp.path(keyFile),
		"--token-auth-file=" + cp.path(tokenFile),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + cp.path(saKeyFile),
		"--service-account-signing-key-file=" + cp.path(saKeyFile),
		"--service-cluster-ip-range=10.96.0.0/16",
		// There is no address to publish: endpoints must not be loopback addresses.
		"--endpoint-reconciler-type=none",
		"--delete-collection-workers=16",
		"--v=" + strconv.Itoa(opts.Verbosity),
	}
	if !opts.ControllerManager {
		args = append(args, "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition")
	}
	return append(args, opts.APIServerArgs...)
}

func (cp *ControlPlane) controllerManagerArgs(opts Options, kubeconfig string) []string {
	args := []string{
		"--kubeconfig=" + kubeconfig,
		"--use-service-account-credentials",
		"--service-account-private-key-file=" + cp.path(saKeyFile),
		"--root-ca-file=" + cp.path(certFile),
		"--leader-elect=false",
		"--secure-port=0",
		// Without this, its default of 20 requests a second is what tests with many pods wait for.
		"--kube-api-qps=1000",
		"--kube-api-burst=2000",
		"--node-monitor-grace-period=" + nodeMonitorGracePeriod.String(),
		"--v=" + strconv.Itoa(opts.Verbosity),
	}
	return append(args, opts.ControllerManagerArgs...)
}
