// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package simulated

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// The types below are the scenario as a file spells it.

type fileScenario struct {
	Nodes     []fileNode     `yaml:"nodes"`
	Workloads []fileWorkload `yaml:"workloads,omitempty"`
}

type fileNode struct {
	Name          string            `yaml:"name,omitempty"`
	NamePrefix    string            `yaml:"namePrefix,omitempty"`
	Count         *int              `yaml:"count,omitempty"`
	Labels        map[string]string `yaml:"labels,omitempty"`
	Taints        []fileTaint       `yaml:"taints,omitempty"`
	CPU           milli             `yaml:"cpu,omitempty"`
	Memory        mib               `yaml:"memory,omitempty"`
	MaxPods       int64             `yaml:"maxPods,omitempty"`
	Mode          v1alpha1.Mode     `yaml:"mode,omitempty"`
	DriverVersion string            `yaml:"driverVersion,omitempty"`
	GPUs          []fileGPUs        `yaml:"gpus"`
	Processes     []fileProcess     `yaml:"processes,omitempty"`
	Events        []fileEvent       `yaml:"events,omitempty"`
}

type fileTaint struct {
	Key    string             `yaml:"key"`
	Value  string             `yaml:"value,omitempty"`
	Effect corev1.TaintEffect `yaml:"effect"`
}

type fileGPUs struct {
	Model       string `yaml:"model"`
	Count       *int   `yaml:"count,omitempty"`
	Memory      mib    `yaml:"memory,omitempty"`
	MemoryMiB   int64  `yaml:"memoryMiB,omitempty"`
	Reserved    mib    `yaml:"reserved,omitempty"`
	ReservedMiB int64  `yaml:"reservedMiB,omitempty"`
}

type fileProcess struct {
	GPU         int      `yaml:"gpu"`
	Memory      mib      `yaml:"memory"`
	Utilization int32    `yaml:"utilization,omitempty"`
	From        duration `yaml:"from,omitempty"`
	Until       duration `yaml:"until,omitempty"`
	Command     string   `yaml:"command,omitempty"`
	PID         int      `yaml:"pid,omitempty"`
}

type fileEvent struct {
	GPU  int       `yaml:"gpu"`
	At   duration  `yaml:"at,omitempty"`
	Kind EventKind `yaml:"kind"`
	Code int       `yaml:"code,omitempty"`
}

type fileWorkload struct {
	Selector        selector `yaml:"selector,omitempty"`
	MemoryFraction  *float64 `yaml:"memoryFraction,omitempty"`
	Utilization     *int32   `yaml:"utilization,omitempty"`
	GrowthPerMinute mib      `yaml:"growthPerMinute,omitempty"`
}

// mib is a quantity of memory such as 80Gi, in MiB, rounded up.
type mib int64

func (m *mib) UnmarshalYAML(node *yaml.Node) error {
	q, err := quantity(node, "memory, such as 80Gi or 512Mi")
	if err != nil {
		return err
	}
	bytes := q.Value()
	*m = mib(bytes >> 20)
	if bytes&(1<<20-1) != 0 {
		*m++
	}
	return nil
}

func (m mib) MarshalYAML() (any, error) {
	return resource.NewQuantity(int64(m)<<20, resource.BinarySI).String(), nil
}

// milli is a quantity of CPU such as 96 or 500m, in milli-CPU.
type milli int64

func (m *milli) UnmarshalYAML(node *yaml.Node) error {
	q, err := quantity(node, "CPU, such as 96 or 500m")
	if err != nil {
		return err
	}
	*m = milli(q.MilliValue())
	return nil
}

func (m milli) MarshalYAML() (any, error) {
	// A number rather than a string where it is one.
	if m%1000 == 0 {
		return int64(m / 1000), nil
	}
	return resource.NewMilliQuantity(int64(m), resource.DecimalSI).String(), nil
}

func quantity(node *yaml.Node, want string) (resource.Quantity, error) {
	q, err := resource.ParseQuantity(node.Value)
	if err != nil || node.Kind != yaml.ScalarNode || q.Sign() < 0 {
		return q, atLine(node, "%q is not a quantity of %s", node.Value, want)
	}
	return q, nil
}

// duration is a time.Duration as Go writes it, such as 90s or 5m.
type duration time.Duration

func (d *duration) UnmarshalYAML(node *yaml.Node) error {
	parsed, err := time.ParseDuration(node.Value)
	if err != nil {
		return atLine(node, "%q is not a duration: write it like 90s or 5m", node.Value)
	}
	*d = duration(parsed)
	return nil
}

func (d duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// selector is a label selector as kubectl's -l takes it.
type selector struct{ labels.Selector }

func (s *selector) UnmarshalYAML(node *yaml.Node) error {
	parsed, err := labels.Parse(node.Value)
	if err != nil || node.Kind != yaml.ScalarNode {
		return atLine(node, "%q is not a label selector: write it like app=web,tier!=test", node.Value)
	}
	s.Selector = parsed
	return nil
}

func (s selector) MarshalYAML() (any, error) { return s.String(), nil }

func (s selector) IsZero() bool { return s.Selector == nil || s.Empty() }

// atLine returns an error that the YAML decoder collects, as it does its own.
func atLine(node *yaml.Node, format string, args ...any) error {
	return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %s", node.Line, fmt.Sprintf(format, args...))}}
}

// Load reads a scenario file. Its errors are those of Parse, or say why the file cannot be read.
func Load(path string) (*Scenario, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the scenario: %w", err)
	}
	return Parse(path, data)
}

// Parse reads a scenario in YAML. An error has a line for each thing that is wrong: "name:line: what, and what to do".
func Parse(name string, data []byte) (*Scenario, error) {
	var file fileScenario
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	err := decoder.Decode(&file)
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s:1: the scenario is empty: list at least one node under nodes", name)
	}
	if err != nil {
		return nil, decodeError(name, err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: a scenario is one YAML document: remove what follows the line ---", name)
	}
	scenario, errs := file.scenario()
	if len(errs) > 0 {
		return nil, positioned(name, data, errs)
	}
	return scenario, nil
}

// Write writes the scenario as a file that Load reads. It refuses an invalid one.
func Write(w io.Writer, s *Scenario) error {
	if errs := s.Validate(); len(errs) > 0 {
		return fmt.Errorf("write the scenario: %w", errs.ToAggregate())
	}
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	if err := encoder.Encode(toFile(s)); err != nil {
		return fmt.Errorf("write the scenario: %w", err)
	}
	return encoder.Close()
}

// scenario checks a file and returns what it says, with every node on its own.
func (f *fileScenario) scenario() (*Scenario, field.ErrorList) {
	var errs field.ErrorList
	s := &Scenario{}
	seen := map[string]bool{}
	add := func(n Node, path *field.Path) {
		if seen[n.Name] {
			errs = append(errs, duplicateName(n.Name, path))
		}
		seen[n.Name] = true
		s.Nodes = append(s.Nodes, n)
	}
	nodes := field.NewPath("nodes")
	if len(f.Nodes) == 0 {
		errs = append(errs, field.Required(nodes, "list at least one node"))
	}
	for i := range f.Nodes {
		fn, path := &f.Nodes[i], nodes.Index(i)
		n, nodeErrs := fn.node(path)
		errs = append(errs, nodeErrs...)
		errs = append(errs, n.validate(path)...)
		if fn.NamePrefix == "" {
			if fn.Count != nil {
				errs = append(errs, field.Forbidden(path.Child("count"), "goes with namePrefix: a name is that of one node"))
			}
			errs = append(errs, validateName(fn.Name, path.Child("name"))...)
			add(n, path.Child("name"))
			continue
		}
		if fn.Name != "" {
			errs = append(errs, field.Forbidden(path.Child("namePrefix"), "give either name or namePrefix"))
			continue
		}
		count := ptr.Deref(fn.Count, 0)
		if count < 1 || count > maxNodes {
			errs = append(errs, field.Invalid(path.Child("count"), count, fmt.Sprintf("namePrefix needs a count, 1 to %d", maxNodes)))
			continue
		}
		errs = append(errs, validateName(fn.NamePrefix+strconv.Itoa(count-1), path.Child("namePrefix"))...)
		for j := range count {
			n.Name = fn.NamePrefix + strconv.Itoa(j)
			add(n, path.Child("namePrefix"))
		}
	}
	for _, w := range f.Workloads {
		s.Workloads = append(s.Workloads, Workload{
			Selector:           w.Selector.Selector,
			MemoryFraction:     ptr.Deref(w.MemoryFraction, DefaultMemoryFraction),
			Utilization:        w.Utilization,
			GrowthMiBPerMinute: int64(w.GrowthPerMinute),
		})
	}
	return s, append(errs, validateWorkloads(s.Workloads)...)
}

func (f *fileNode) node(path *field.Path) (Node, field.ErrorList) {
	var errs field.ErrorList
	n := Node{
		Name: f.Name, Labels: f.Labels, CPUMilli: int64(f.CPU), MemoryMiB: int64(f.Memory), MaxPods: f.MaxPods,
		Mode: cmp.Or(f.Mode, v1alpha1.ModeManage), DriverVersion: f.DriverVersion,
	}
	for _, t := range f.Taints {
		n.Taints = append(n.Taints, corev1.Taint{Key: t.Key, Value: t.Value, Effect: t.Effect})
	}
	for i, g := range f.GPUs {
		at := path.Child("gpus").Index(i)
		if g.Memory != 0 && g.MemoryMiB != 0 {
			errs = append(errs, field.Forbidden(at.Child("memoryMiB"), "give either memory or memoryMiB"))
		}
		if g.Reserved != 0 && g.ReservedMiB != 0 {
			errs = append(errs, field.Forbidden(at.Child("reservedMiB"), "give either reserved or reservedMiB"))
		}
		n.GPUs = append(n.GPUs, GPUGroup{
			Model: g.Model, Count: ptr.Deref(g.Count, 1),
			MemoryMiB: cmp.Or(int64(g.Memory), g.MemoryMiB), ReservedMiB: cmp.Or(int64(g.Reserved), g.ReservedMiB),
		})
	}
	for _, p := range f.Processes {
		n.Processes = append(n.Processes, Process{
			GPU: p.GPU, MemoryMiB: int64(p.Memory), Utilization: p.Utilization,
			From: time.Duration(p.From), Until: time.Duration(p.Until), Command: p.Command, PID: p.PID,
		})
	}
	for _, e := range f.Events {
		n.Events = append(n.Events, Event{GPU: e.GPU, At: time.Duration(e.At), Kind: e.Kind, Code: e.Code})
	}
	return n, errs
}

func toFile(s *Scenario) *fileScenario {
	f := &fileScenario{}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		fn := fileNode{
			Name: n.Name, Labels: maps.Clone(n.Labels), CPU: milli(n.CPUMilli), Memory: mib(n.MemoryMiB), MaxPods: n.MaxPods,
			Mode: n.Mode, DriverVersion: n.DriverVersion,
		}
		for _, t := range n.Taints {
			fn.Taints = append(fn.Taints, fileTaint{Key: t.Key, Value: t.Value, Effect: t.Effect})
		}
		for _, g := range n.GPUs {
			fn.GPUs = append(fn.GPUs, fileGPUs{Model: g.Model, Count: &g.Count, Memory: mib(g.MemoryMiB), Reserved: mib(g.ReservedMiB)})
		}
		for _, p := range n.Processes {
			fn.Processes = append(fn.Processes, fileProcess{
				GPU: p.GPU, Memory: mib(p.MemoryMiB), Utilization: p.Utilization,
				From: duration(p.From), Until: duration(p.Until), Command: p.Command, PID: p.PID,
			})
		}
		for _, e := range n.Events {
			fn.Events = append(fn.Events, fileEvent{GPU: e.GPU, At: duration(e.At), Kind: e.Kind, Code: e.Code})
		}
		f.Nodes = append(f.Nodes, fn)
	}
	for _, w := range s.Workloads {
		f.Workloads = append(f.Workloads, fileWorkload{
			Selector: selector{w.Selector}, MemoryFraction: &w.MemoryFraction, Utilization: w.Utilization,
			GrowthPerMinute: mib(w.GrowthMiBPerMinute),
		})
	}
	return f
}

var (
	lineError    = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)
	unknownField = regexp.MustCompile(`^field (.+) not found in type `)
	wrongType    = regexp.MustCompile("^cannot unmarshal !!(\\w+)(?: `(.*)`)? into (.*)$")
	duplicateKey = regexp.MustCompile(`^mapping key "(.+)" already defined at line (\d+)$`)
)

// decodeError says what the decoder found, in the words of the file rather than of its Go types.
func decodeError(name string, err error) error {
	messages := []string{err.Error()}
	if typeErr := new(yaml.TypeError); errors.As(err, &typeErr) {
		messages = typeErr.Errors
	}
	for i, msg := range messages {
		m := lineError.FindStringSubmatch(msg)
		if m == nil {
			messages[i] = name + ": not valid YAML: " + strings.TrimPrefix(msg, "yaml: ")
			continue
		}
		line, what := m[1], m[2]
		if m := unknownField.FindStringSubmatch(what); m != nil {
			what = fmt.Sprintf("unknown field %q: correct its name or its indentation, or remove it", m[1])
		} else if m := duplicateKey.FindStringSubmatch(what); m != nil {
			what = fmt.Sprintf("field %q is there already, at line %s: remove one of them", m[1], m[2])
		} else if m := wrongType.FindStringSubmatch(what); m != nil {
			what = fmt.Sprintf("expected %s, found %s", friendlyType(m[3]), cmp.Or(strconv.Quote(m[2]), m[1]))
			if m[2] == "" {
				what = fmt.Sprintf("expected %s, found %s", friendlyType(m[3]), friendlyTag[m[1]])
			}
		} else if strings.HasPrefix(msg, "yaml: ") {
			what = "not valid YAML: " + what
		}
		messages[i] = fmt.Sprintf("%s:%s: %s", name, line, what)
	}
	return errors.New(strings.Join(messages, "\n"))
}

var friendlyTag = map[string]string{"seq": "a list", "map": "fields", "str": "text", "null": "nothing"}

func friendlyType(goType string) string {
	switch {
	case strings.HasPrefix(goType, "[]"):
		return "a list"
	case strings.HasPrefix(goType, "int"):
		return "a whole number"
	case strings.HasPrefix(goType, "float"):
		return "a number"
	case strings.HasPrefix(goType, "map["), strings.HasPrefix(goType, "simulated.file"):
		return "fields"
	default:
		return "text"
	}
}

// positioned puts the line of each field before what is wrong with it.
func positioned(name string, data []byte, errs field.ErrorList) error {
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil || len(root.Content) == 0 {
		return fmt.Errorf("%s: %w", name, errs.ToAggregate())
	}
	type message struct {
		line int
		text string
	}
	var messages []message
	for _, err := range errs {
		line := lineOf(root.Content[0], err.Field)
		messages = append(messages, message{line, fmt.Sprintf("%s:%d: %s", name, line, err)})
	}
	slices.SortStableFunc(messages, func(a, b message) int { return cmp.Compare(a.line, b.line) })
	var lines []string
	for _, m := range messages {
		lines = append(lines, m.text)
	}
	return errors.New(strings.Join(slices.Compact(lines), "\n"))
}

var pathElement = regexp.MustCompile(`[^.\[\]]+`)

// lineOf returns the line of a field such as "nodes[2].gpus[0].count", or of the nearest thing around it that is there.
func lineOf(node *yaml.Node, path string) int {
	line := node.Line
	for _, element := range pathElement.FindAllString(path, -1) {
		if node.Kind == yaml.AliasNode {
			node = node.Alias
		}
		var next *yaml.Node
		switch node.Kind {
		case yaml.SequenceNode:
			if i, err := strconv.Atoi(element); err == nil && i >= 0 && i < len(node.Content) {
				next = node.Content[i]
				line = next.Line
			}
		case yaml.MappingNode:
			for i := 0; i+1 < len(node.Content); i += 2 {
				if node.Content[i].Value == element {
					next = node.Content[i+1]
					line = node.Content[i].Line
				}
			}
		}
		if next == nil {
			break
		}
		node = next
	}
	return line
}
