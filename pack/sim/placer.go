// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package sim

// Placer places tasks as Run does, in an order that the caller chooses.
type Placer struct {
	replay *replay
	tasks  []Task
	// names of the nodes by rank.
	names []string
}

// NewPlacer returns a Placer for the input's nodes, with nothing on them. Of the options, Policy, Seed, TiesByName and
// Distribution count.
func NewPlacer(in Input, o Options) (*Placer, error) {
	o = Options{Policy: o.Policy, Seed: o.Seed, TiesByName: o.TiesByName, Distribution: o.Distribution, Load: 1}
	if err := validate(&in, &o); err != nil {
		return nil, err
	}
	in.Nodes = ranked(in.Nodes, o.TiesByName, o.Seed)
	re, err := newReplay(&in, o.Policy, o.Distribution, o.Seed)
	if err != nil {
		return nil, err
	}
	p := &Placer{replay: re, tasks: in.Tasks, names: make([]string, len(in.Nodes))}
	for rank := range in.Nodes {
		p.names[rank] = in.Nodes[rank].Name
	}
	return p, nil
}

// Place puts one more task, a position in Input.Tasks, where the policy likes it best, and returns the node, or false where
// it fits nowhere.
func (p *Placer) Place(task int) (node string, ok bool) {
	p.replay.dist.Observe(&p.tasks[task].Request)
	spot, ok := p.replay.cluster.place(p.replay.kinds[task])
	if !ok {
		return "", false
	}
	return p.names[spot.rank], true
}
