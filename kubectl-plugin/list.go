// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/cli-runtime/pkg/printers"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// call is how a command was called.
type call struct {
	client.Reader
	// printer is nil for what is not printed as an object.
	printer printers.ResourcePrinter
	// namespace is empty for all.
	namespace string
	// selector is nil where there is none.
	selector labels.Selector
}

// begin reads the flags of a command, before it asks the cluster anything. Flags that the command does not have are nil.
func (e *env) begin(cmd *cobra.Command, out *output, namespaces *namespaceFlags, selector *selectorFlag) (*call, error) {
	c := &call{}
	var err error
	if c.printer, err = out.printer(cmd); err != nil {
		return nil, err
	}
	if selector != nil {
		if c.selector, err = selector.parse(cmd); err != nil {
			return nil, err
		}
	}
	if namespaces != nil {
		if c.namespace, err = namespaces.resolve(e); err != nil {
			return nil, err
		}
	}
	c.Reader, err = e.reader()
	return c, err
}

// listing is a list that a command prints.
type listing[T any] struct {
	// items in the order of sort-by.
	items []T
	// answer is what is printed as an object, with a list that is not nil.
	answer func(items []T) any
	// name is what -o name prints of an item, as kind/name.
	name func(*T) string
	// none is told where there are no items.
	none string
	// table prints the items for people.
	table func(screen)
}

// printList prints a list as the flags say.
func printList[T any](e *env, c *call, out *output, l *listing[T]) error {
	switch {
	case c.printer != nil:
		return printObject(c.printer, e.Out, l.answer(append([]T{}, l.items...)))
	case out.format == formatName:
		for i := range l.items {
			printLine(e.Out, "%s", l.name(&l.items[i]))
		}
	case len(l.items) == 0:
		printLine(e.ErrOut, "%s", l.none)
	default:
		l.table(newScreen(e.Out))
	}
	return nil
}
