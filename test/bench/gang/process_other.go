// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import "syscall"

func endWithParent(*syscall.SysProcAttr) {}

// Neither is measured elsewhere than on Linux.
func cpuSeconds(int) (float64, error) { return 0, nil }

func peakMiB(int) (float64, error) { return 0, nil }
