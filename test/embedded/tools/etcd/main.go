// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Command etcd is the etcd server, built from its Go module at the version that the embedded control plane pins.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
