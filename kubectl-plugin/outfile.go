// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// write lets the function print to the file of that name or, if that is empty, to the output. A file is replaced as a whole, once
// the function has returned without an error; that it can be is found out before.
func (e *env) write(path string, print func(io.Writer) error) error {
	if path == "" {
		return print(e.Out)
	}
	// A link stays one.
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	into, mode := fmt.Sprintf("%s.%d.tmp", path, os.Getpid()), fs.FileMode(0o666)
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
		if !info.Mode().IsRegular() {
			// A device or a pipe cannot be replaced.
			into, flags = path, os.O_WRONLY
		}
	}
	out, err := os.OpenFile(into, flags, mode)
	if err != nil {
		var at *fs.PathError
		if errors.As(err, &at) {
			at.Path = path
		}
		return err
	}
	err = print(out)
	if closed := out.Close(); err == nil {
		err = closed
	}
	if into == path {
		return err
	}
	if err == nil {
		err = os.Rename(into, path)
	}
	if err != nil {
		os.Remove(into)
	}
	return err
}
