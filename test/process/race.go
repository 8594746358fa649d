// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build race

package process

const raceSuffix = "-race"

var raceFlags = []string{"-race"}
