// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build race

package controller

const raceSuffix = "-race"

var raceFlags = []string{"-race"}
