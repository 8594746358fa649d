// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package policy holds the packing policies, one a file.
package policy
