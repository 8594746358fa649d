// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package embedded runs a true Kubernetes control plane as child processes: etcd, kube-apiserver with RBAC,
// kube-controller-manager, and kwok, whose nodes run pods that are nothing but their status. Tests and the demo use it.
//
// The programs are built from their Go modules, at the versions that go.mod requires, when they are first needed, and kept
// in .cache/embedded at the root of the checkout (GPUPACK_CACHE moves the cache). A control plane is then ready in seconds.
//
// A control plane keeps everything in one temporary folder. However this process ends, also when it is killed, its
// components end and the folder is removed: on Linux the kernel kills them with their parent, and everywhere a small shell,
// the reaper, waits for the end of a pipe to this process, kills what is left and removes the folder. Nobody else listens
// on its port, which is reserved before the API server starts, so any number of control planes run side by side.
//
// A package of tests starts one control plane, and its tests keep to their own namespaces and nodes:
//
//	func TestMain(m *testing.M) {
//		os.Exit(embedded.RunMain(m, embedded.Options{ControllerManager: true, Kwok: true}))
//	}
//
//	func TestSomething(t *testing.T) {
//		cp := embedded.Get(t)
//		namespace := cp.Namespace(t)
//		nodes := cp.Nodes(t, 3, nil)
//		// Pods select their test's nodes by the label embedded.TestLabel, whose value all the nodes share.
//	}
package embedded
