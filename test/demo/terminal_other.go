// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import (
	"context"
	"errors"
)

func inTerminal(context.Context, []string, string, ...string) ([]byte, error) {
	return nil, errors.New("a picture can be made on Linux only")
}
