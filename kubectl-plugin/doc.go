// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kubectlplugin is kubectl gpupack: what the GPUs of a cluster do, who uses them, and why a pod is where it is or
// is still pending.
//
// A subcommand reads what it needs of the cluster into a snapshot (snapshot.go), turns that into the items of its answer
// (usage.go; these are also what -o json and yaml print), and prints them as a table (table.go). What a GPU has left, and
// why a pod does not fit, is asked of package pack, as the scheduler does, so that the two cannot disagree.
package kubectlplugin
