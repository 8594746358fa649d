// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kubectlplugin is kubectl gpupack: what the GPUs of a cluster do, who uses them, why a pod is where it is or is still
// pending, and what would be if.
//
// A subcommand reads what it needs of the cluster into a snapshot (snapshot.go), turns that into the items of its answer
// (usage.go; these are also what -o json and yaml print), and prints them as a table (table.go). What a GPU has left, and
// why a pod does not fit, is asked of package pack, as the scheduler does, so that the two cannot disagree.
//
// A snapshot can be written to a file and read again (snapshot_save.go, snapshot_load.go). simulate changes one and places
// pods on it (whatif.go, candidates.go), or replays a trace by package pack/sim (replay.go, churn.go).
package kubectlplugin
