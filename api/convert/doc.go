// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package convert turns Kubernetes objects into the types of package pack. It is the one place where that is done, for the
// scheduler, the extender, the controller and the kubectl plugin alike.
package convert
