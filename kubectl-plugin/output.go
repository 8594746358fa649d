// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"
	"k8s.io/kubectl/pkg/cmd/get"
)

// output is the flags that say how to print.
type output struct {
	format    string
	noHeaders bool
	sortBy    string
	// keys are the values that sortBy may have.
	keys []string
	// names is true where -o name makes sense.
	names bool
	// html is true where -o html does.
	html bool
}

const (
	formatTable = "table"
	formatWide  = "wide"
	formatName  = "name"
	formatHTML  = "html"
)

func (o *output) formats() []string {
	f := []string{formatTable, formatWide, "json", "yaml"}
	if o.names {
		f = append(f, formatName)
	}
	if o.html {
		f = append(f, formatHTML)
	}
	return append(f, "custom-columns=...", "jsonpath=...", "go-template=...")
}

func (o *output) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.format, "output", "o", formatTable, "Output format: "+strings.Join(o.formats(), ", "))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(o.formats(), cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().BoolVar(&o.noHeaders, "no-headers", false, "Leave out titles and totals")
	if len(o.keys) > 0 {
		cmd.Flags().StringVar(&o.sortBy, "sort-by", o.keys[0],
			"Sort by a column, names ascending and figures descending: "+strings.Join(o.keys, ", "))
		_ = cmd.RegisterFlagCompletionFunc("sort-by", cobra.FixedCompletions(o.keys, cobra.ShellCompDirectiveNoFileComp))
	}
}

// printer returns nil for what is not printed as an object: tables, names, pages.
func (o *output) printer(cmd *cobra.Command) (printers.ResourcePrinter, error) {
	if len(o.keys) > 0 {
		known := false
		for _, k := range o.keys {
			known = known || k == o.sortBy
		}
		if !known {
			return nil, usagef(cmd, "--sort-by=%s is not a column: use one of %s", o.sortBy, strings.Join(o.keys, ", "))
		}
	}
	switch {
	case o.format == formatTable, o.format == formatWide, o.format == formatName && o.names, o.format == formatHTML && o.html:
		return nil, nil
	case o.format == "json", o.format == "yaml":
		return (&genericclioptions.JSONYamlPrintFlags{}).ToPrinter(o.format)
	}
	columns := get.NewCustomColumnsPrintFlags()
	columns.NoHeaders = o.noHeaders
	for _, flags := range []interface {
		ToPrinter(string) (printers.ResourcePrinter, error)
	}{genericclioptions.NewKubeTemplatePrintFlags(), columns} {
		p, err := flags.ToPrinter(o.format)
		if err == nil {
			return p, nil
		}
		if !genericclioptions.IsNoCompatiblePrinterError(err) {
			return nil, usagef(cmd, "-o %s: %v", o.format, err)
		}
	}
	return nil, usagef(cmd, "-o %s is not an output format: use one of %s", o.format, strings.Join(o.formats(), ", "))
}

func (o *output) wide() bool { return o.format == formatWide }

// printObject prints an answer as an object. All printers of cli-runtime take unstructured objects, so that the answers need
// not be API types with generated code.
func printObject(p printers.ResourcePrinter, w io.Writer, answer any) error {
	data, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	var content map[string]any
	if err := json.Unmarshal(data, &content); err != nil {
		return err
	}
	object := &unstructured.Unstructured{Object: content}
	if _, ok := p.(*get.CustomColumnsPrinter); ok && object.IsList() {
		// It has a row for each item.
		list, err := object.ToList()
		if err != nil {
			return err
		}
		return p.PrintObj(list, w)
	}
	return p.PrintObj(object, w)
}

func typeMeta(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}
}

// selectorFlag is -l.
type selectorFlag struct{ text string }

func (f *selectorFlag) add(cmd *cobra.Command, of string) {
	cmd.Flags().StringVarP(&f.text, "selector", "l", "",
		"Label selector of "+of+", with '=', '==', '!=', 'in', 'notin' (such as -l key1=value1,key2!=value2)")
}

// parse returns nil where there is no selector.
func (f *selectorFlag) parse(cmd *cobra.Command) (labels.Selector, error) {
	if f.text == "" {
		return nil, nil
	}
	s, err := labels.Parse(f.text)
	if err != nil {
		return nil, usagef(cmd, "-l %s is not a label selector: %v", f.text, err)
	}
	return s, nil
}

// orEverything is the selector to list by.
func orEverything(s labels.Selector) *labels.Selector {
	if s == nil {
		return everything()
	}
	return &s
}

// plural writes "1 node", "2 nodes".
func plural(n int, what string) string {
	if n == 1 {
		return fmt.Sprintf("1 %s", what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}
