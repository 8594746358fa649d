// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"html"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gpupack/gpupack/kubectl-plugin/trace"
	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/sim"
)

// fixture is the report of a true replay of the slice of the openb trace.
func fixture(t *testing.T, policies ...string) *Report {
	t.Helper()
	nodes, err := trace.ReadNodes("../../test/fixtures/openb/nodes.csv")
	require.NoError(t, err)
	tasks, err := trace.ReadTasks("../../test/fixtures/openb/tasks.csv")
	require.NoError(t, err)
	r := &Report{Title: "A slice of openb", Input: trace.Input(nodes, tasks), Load: 1.3, Seeds: []uint64{42, 43}}
	for _, name := range policies {
		p := Policy{Name: name}
		for i, seed := range r.Seeds {
			res, err := sim.Run(context.Background(), r.Input, sim.Options{Policy: name, Seed: seed, Load: r.Load, Detail: i == 0})
			require.NoError(t, err)
			p.Runs = append(p.Runs, res)
		}
		r.Policies = append(r.Policies, p)
	}
	return r
}

// byHand is a report of two nodes, three arrivals and one move, with the name wherever a name can be.
func byHand(name string) *Report {
	node := func(n string, cpu int64, milli ...int) sim.NodeUse {
		return sim.NodeUse{Name: n, Model: name, CPUMilli: 8000, FreeCPUMilli: cpu, MemoryMiB: 2048, FreeMemoryMiB: 1024, Milli: milli}
	}
	run := sim.Result{
		Seed: 7, A95: 61.25, A100: 62.5, Final: 65, Tasks: 3, Unscheduled: 1, Moved: 1, Seconds: 0.25,
		Detail: &sim.Detail{
			Curve:      []sim.Point{{Arrived: 50, Allocated: 50}, {Arrived: 100, Allocated: 62.5}, {Arrived: 130, Allocated: 65}},
			Placements: []sim.Placement{{Task: 0, Node: name, GPUs: []int{0, 1}}, {Task: 1, Node: "b", GPUs: []int{0}}, {Task: 0}},
			Before:     []sim.NodeUse{node(name, 8000, 1000, 1000), node("b", 8000, 1000, 1000)},
			After:      []sim.NodeUse{node(name, 1000, 0, 0), node("b", 6000, 400, 1000)},
			Unplaced: []sim.Unplaced{{
				Request: pack.Request{GPUs: 2, CPUMilli: 2500, MemoryMiB: 1536, Models: []string{name}}, Count: 1,
				Reasons: map[string]int{name: 1, "insufficient cpu": 2},
			}},
			Moves: []sim.Move{{Arrival: 1, From: name, To: "b"}},
		},
	}
	return &Report{
		Title: name, Command: name, Load: 1.3, Seeds: []uint64{7}, Distribution: sim.DistributionOnline, DefragBudget: 0.01,
		Input: sim.Input{
			Nodes: []sim.Node{{Name: name, Model: name, GPUs: 2, CPUMilli: 8000, MemoryMiB: 2048}, {Name: "b", Model: name, GPUs: 2, CPUMilli: 8000, MemoryMiB: 2048}},
			Tasks: []sim.Task{
				{Name: "two", Request: pack.Request{GPUs: 2, CPUMilli: 2500, MemoryMiB: 1536, Models: []string{name}}},
				{Name: name, Request: pack.Request{Milli: 600, CPUMilli: 2000, MemoryMiB: 512}},
			},
		},
		Policies: []Policy{{Name: name, Runs: []sim.Result{run}}},
	}
}

func write(t *testing.T, r *Report) string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, HTML(&b, r))
	return b.String()
}

var (
	script = regexp.MustCompile(`(?s)<script[^>]*>(.*?)</script>`)
	style  = regexp.MustCompile(`(?s)<style[^>]*>(.*?)</style>`)
	spaces = regexp.MustCompile(`\s+`)
)

// markup is a page without the content of its scripts and style, which is not HTML.
func markup(page string) string {
	return style.ReplaceAllString(script.ReplaceAllString(page, "<script></script>"), "<style></style>")
}

// text is what a reader sees of a page, with one space between words.
func text(page string) string {
	page = regexp.MustCompile(`<[^>]*>`).ReplaceAllString(markup(page), " ")
	return spaces.ReplaceAllString(html.UnescapeString(page), " ")
}

// Every element is closed where it should be, and no id is there twice or missing.
func TestWellFormed(t *testing.T) {
	for name, r := range map[string]*Report{"replay": fixture(t, "gpupack", "fgd", "random"), "one policy": fixture(t, "fgd"), "by hand": byHand("x")} {
		t.Run(name, func(t *testing.T) {
			page := write(t, r)
			d := xml.NewDecoder(strings.NewReader(strings.Replace(markup(page), "<!doctype html>", "", 1)))
			d.Strict = false // attributes without a value
			d.AutoClose = xml.HTMLAutoClose
			d.Entity = xml.HTMLEntity
			ids := map[string]bool{}
			var references []string
			var open []string
			for {
				token, err := d.Token()
				if errors.Is(err, io.EOF) {
					break
				}
				require.NoError(t, err)
				switch e := token.(type) {
				case xml.StartElement:
					open = append(open, e.Name.Local)
					for _, a := range e.Attr {
						switch {
						case a.Name.Local == "id":
							assert.False(t, ids[a.Value], "id %s is there twice", a.Value)
							ids[a.Value] = true
						case a.Name.Local == "href" && strings.HasPrefix(a.Value, "#"):
							references = append(references, a.Value[1:])
						case a.Name.Local == "aria-labelledby":
							references = append(references, strings.Fields(a.Value)...)
						case a.Name.Local == "style" || strings.HasPrefix(a.Name.Local, "on"):
							t.Errorf("the policy forbids %s of %s", a.Name.Local, e.Name.Local)
						}
					}
				case xml.EndElement:
					require.Equal(t, open[len(open)-1], e.Name.Local)
					open = open[:len(open)-1]
				}
			}
			assert.Empty(t, open)
			for _, id := range references {
				assert.True(t, ids[id], "nothing has the id %s", id)
			}
		})
	}
}

// The page asks for nothing, and may not: the policy allows its own style and script by their hashes.
func TestSelfContained(t *testing.T) {
	page := write(t, fixture(t, "gpupack", "fgd"))
	for _, m := range regexp.MustCompile(`(?i)(src|href|action|data|srcset|poster)\s*=\s*"([^"]*)"`).FindAllStringSubmatch(markup(page), -1) {
		assert.Regexp(t, `^(#|data:)`, m[2])
	}
	assert.NotRegexp(t, `(?i)url\(|@import|@font-face`, pageCSS)
	assert.NotRegexp(t, `fetch\(|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import\(|eval\(|innerHTML|new Function`, pageJS)
	for _, url := range regexp.MustCompile(`\w+://[\w./]*`).FindAllString(page, -1) {
		assert.Equal(t, "http://www.w3.org/2000/svg", url, "the name of SVG, which nobody asks the network for")
	}

	hash := func(s string) string {
		sum := sha256.Sum256([]byte(s))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	policy := html.UnescapeString(regexp.MustCompile(`http-equiv="Content-Security-Policy" content="([^"]*)"`).FindStringSubmatch(page)[1])
	scripts := script.FindAllStringSubmatch(page, -1)
	require.Len(t, scripts, 2)
	assert.Equal(t, "default-src 'none'; style-src "+hash(style.FindStringSubmatch(page)[1])+"; script-src "+hash(scripts[1][1])+
		"; img-src data:; base-uri 'none'; form-action 'none'", policy)
}

// Names come from users' files.
func TestEscapes(t *testing.T) {
	for _, name := range []string{
		`<script>alert(1)</script>`,
		`</script><script>alert(1)</script>`,
		`"><img src=x onerror=alert(1)>`,
		`' onmouseover='alert(1)`,
		`</title><svg onload=alert(1)>`,
		`--><!--<script>`,
		`{{.Title}} ${alert(1)} &lt;b&gt; \u003cb>`,
		"javascript:alert(1)",
		"a\u2028b\u202ec",
	} {
		t.Run(name, func(t *testing.T) {
			page := write(t, byHand(name))
			plain := write(t, byHand("plain"))
			tags := regexp.MustCompile(`<[a-zA-Z/!][^\s>]*`)
			assert.Equal(t, tags.FindAllString(plain, -1), tags.FindAllString(page, -1), "the same elements as with any other name")
			attributes := regexp.MustCompile(`\s[\w-]+=`)
			assert.Equal(t, attributes.FindAllString(markupTags(plain), -1), attributes.FindAllString(markupTags(page), -1), "and the same attributes")
			assert.Contains(t, text(page), spaces.ReplaceAllString(name, " "), "and yet it can be read")
			assert.NotContains(t, page, "ZgotmplZ")

			var data cells
			require.NoError(t, json.Unmarshal([]byte(script.FindAllStringSubmatch(page, -1)[0][1]), &data))
			assert.Equal(t, []string{name, "b"}, data.Names)
		})
	}
}

// markupTags is all tags of a page with values of attributes emptied.
func markupTags(page string) string {
	tags := regexp.MustCompile(`<[a-zA-Z][^<>]*>`).FindAllString(markup(page), -1)
	return regexp.MustCompile(`="[^"]*"`).ReplaceAllString(strings.Join(tags, "\n"), "=")
}

// Every figure of every run is on the page.
func TestFigures(t *testing.T) {
	r := fixture(t, "gpupack", "fgd", "best-fit")
	page := text(write(t, r))
	for _, p := range r.Policies {
		for _, run := range p.Runs {
			assert.Contains(t, page, fmt.Sprintf(" %s %d %.2f %.2f %.2f %d %d 0 %.2f ", p.Name, run.Seed, run.A95, run.A100, run.Final, run.Tasks, run.Unscheduled, run.Seconds))
		}
		mean := func(f func(*sim.Result) float64) float64 { return (f(&p.Runs[0]) + f(&p.Runs[1])) / 2 }
		assert.Regexp(t, fmt.Sprintf(` %s %.2f .*?%.2f .*?%.2f .*?%.1f `, p.Name,
			mean(func(r *sim.Result) float64 { return r.A95 }), mean(func(r *sim.Result) float64 { return r.A100 }),
			mean(func(r *sim.Result) float64 { return r.Final }), mean(func(r *sim.Result) float64 { return (100 - r.Final) / 100 * 291 })), page)
		for _, u := range p.Runs[0].Detail.Unplaced[:10] {
			assert.Regexp(t, fmt.Sprintf(` %s %s .*? %d `, asks(&u.Request), cores(u.Request.CPUMilli), u.Count), page)
			for reason := range u.Reasons {
				assert.Contains(t, page, reason)
			}
		}
	}
	for _, want := range []string{
		"A slice of openb", "Nodes 64 ", "GPUs 291 ", "Tasks in the trace 300 ", "Load 1.3 × ", "Seeds 42-43 ", "Classes of tasks known ", "Defragmentation off ",
		" G2 8 16 128 96 384 GiB ",
	} {
		assert.Contains(t, page, want)
	}
	assert.NotContains(t, page, "What defragmentation moved")
}

func TestFiguresByHand(t *testing.T) {
	page := text(write(t, byHand("x1")))
	for _, want := range []string{
		" x1 allocates 65.00 % of 4 GPUs. ",
		" x1 61.25 62.50 65.00 1.4 1 1 0.25 ", // the table of policies
		" 100.00 100.00 62.50 ",               // the curve's figures
		" Before 0.00 % 4 whole GPUs free ",   // the maps
		" x1 , after 65.00 % 1.4 free: 1 whole, 0.4 in rests of 1 GPU ",
		" The arrivals asked for 4.6 GPUs, 0.6 more than there are: that much finds no place under any policy. ",
		" a share of a GPU 1 0 0.00 % 2 GPUs 2 1 50.00 % ",
		" 2 GPUs 2.5 1.5 GiB x1 1 2 1 ",
		" x1 : 1 move, 33.33 % of 3 arrivals ", " x1 0.6 GPU x1 b ",
		" Classes of tasks learned ", " Defragmentation ≤ 1 % ",
		"Before is just before defragmentation",
	} {
		assert.Contains(t, page, want)
	}
}

// A map has a cell for each GPU, and its key counts them.
func TestMaps(t *testing.T) {
	r := fixture(t, "gpupack", "fgd")
	maps, data, _ := drawMaps(r)
	require.Len(t, maps, 3, "what is the same before is there once")
	assert.True(t, maps[0].Common)
	for i, m := range maps {
		counted := 0
		for _, b := range m.Buckets {
			counted += b.Count
		}
		assert.Equal(t, 291, counted)
		drawn := 0
		for _, g := range m.Groups {
			for _, p := range g.Paths {
				drawn += dashes(t, p, g.Pitch)
			}
		}
		assert.Equal(t, 291, drawn)
		free := 0
		for _, f := range data.Maps[i].Free {
			free += f
		}
		assert.InDelta(t, m.Allocated, 100-float64(free)/2910, 1e-9)
		assert.Len(t, data.Maps[i].CPU, 64)
	}
	assert.Zero(t, maps[0].Allocated)
	for i, p := range r.Policies {
		assert.InDelta(t, p.Runs[0].Final, maps[i+1].Allocated, 1e-9)
	}
	assert.Len(t, data.Names, 64)
}

// dashes is how many cells a path draws.
func dashes(t *testing.T, p mapPath, pitch int) int {
	n := 0
	for _, m := range regexp.MustCompile(`M\d+ [\d.]+h(\d+)`).FindAllStringSubmatch(p.D, -1) {
		length, err := strconv.Atoi(m[1])
		require.NoError(t, err)
		require.Zero(t, (length+1)%pitch)
		n += (length + 1) / pitch
	}
	return n
}

// Where the cluster is too large, cells are nodes or several nodes, and nothing is lost.
func TestMapsMerge(t *testing.T) {
	nodes := make([]sim.NodeUse, 100)
	for i := range nodes {
		nodes[i] = sim.NodeUse{Name: fmt.Sprint("n", i), Model: "T4", Milli: []int{1000, 500, 0, 0}}
	}
	nodes = append(nodes, sim.NodeUse{Name: "cpu"})
	for most, want := range map[int]struct {
		cells, merged int
		first         string
	}{
		400: {400, 0, "n0"},
		399: {100, 1, "n0"},
		100: {100, 1, "n0"},
		40:  {34, 3, "n0 to n2"},
	} {
		l := newLayout(nodes, most)
		assert.Equal(t, want.merged, l.merged)
		assert.Equal(t, want.first, l.names(nodes)[0])
		m, under := l.draw(nodes)
		assert.Len(t, under.Free, want.cells)
		require.Len(t, m.Groups, 1)
		drawn := 0
		for _, p := range m.Groups[0].Paths {
			drawn += dashes(t, p, m.Groups[0].Pitch)
		}
		assert.Equal(t, want.cells, drawn)
		assert.InDelta(t, 62.5, m.Allocated, 1e-9)
		assert.Equal(t, "150.0 free: 100 whole, 50.0 in rests of 100 GPUs", m.Left)
	}
}

// Cells neither overlap nor leave the map, whatever the nodes have.
func TestMapsInside(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := make([]sim.NodeUse, rapid.IntRange(1, 60).Draw(t, "nodes"))
		for i := range nodes {
			nodes[i].Model = rapid.SampledFrom([]string{"A", "B"}).Draw(t, "model")
			nodes[i].Milli = rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, 250, 999, 1000}), 0, pack.MaxGPUs).Draw(t, "free")
		}
		l := newLayout(nodes, rapid.SampledFrom([]int{10, 200, mostCells}).Draw(t, "most"))
		m, under := l.draw(nodes)
		cells := 0
		for _, g := range m.Groups {
			taken := map[string]bool{}
			for _, p := range g.Paths {
				for _, s := range regexp.MustCompile(`M(\d+) ([\d.]+)h(\d+)`).FindAllStringSubmatch(p.D, -1) {
					x, _ := strconv.Atoi(s[1])
					y, _ := strconv.ParseFloat(s[2], 64)
					length, _ := strconv.Atoi(s[3])
					require.LessOrEqual(t, x+length, mapWidth)
					require.LessOrEqual(t, y+float64(p.Width)/2, float64(g.Height))
					for at := x; at < x+length; at += g.Pitch {
						key := fmt.Sprint(at, s[2])
						require.False(t, taken[key])
						taken[key] = true
						cells++
					}
				}
			}
		}
		require.Len(t, under.Free, cells)
	})
}

func TestBucketOf(t *testing.T) {
	for free, want := range map[int]int{1000: 0, 999: 1, 750: 1, 749: 2, 500: 2, 499: 3, 250: 3, 249: 4, 1: 4, 0: 5} {
		assert.Equal(t, want, bucketOf(free, 1000), "%d free", free)
	}
	assert.Equal(t, 1, bucketOf(31_999, 32_000))
	assert.Equal(t, 4, bucketOf(1, 32_000))
}

// A page of the whole openb cluster stays small even if no two neighbours are alike.
func TestSize(t *testing.T) {
	r := &Report{Title: "large", Load: 1.3, Seeds: []uint64{42}}
	d := sim.Detail{Curve: make([]sim.Point, 400)}
	for i := range d.Curve {
		d.Curve[i] = sim.Point{Arrived: float64(i) * 0.3251, Allocated: float64(i) * 0.2487}
	}
	for i := range 777 {
		n := sim.NodeUse{Name: fmt.Sprintf("a-rather-long-name-of-a-node-%04d", i), Model: "A100", CPUMilli: 128_000, FreeCPUMilli: 65_321, MemoryMiB: 1 << 20, FreeMemoryMiB: 654_321, Milli: make([]int, 8)}
		r.Input.Nodes = append(r.Input.Nodes, sim.Node{Name: n.Name, Model: n.Model, GPUs: 8})
		d.Before = append(d.Before, n)
		n.Milli = []int{0, 100, 450, 1000, 0, 220, 1, 650}
		d.After = append(d.After, n)
	}
	for i := range 500 {
		d.Unplaced = append(d.Unplaced, sim.Unplaced{Request: pack.Request{Milli: int64(i + 1)}, Count: 1, Reasons: map[string]int{"no GPU has enough free compute": 777}})
	}
	for i := range 4 {
		r.Policies = append(r.Policies, Policy{Name: fmt.Sprint("policy-", i), Runs: []sim.Result{{Seed: 42, Final: 95, Detail: &d}}})
	}
	page := write(t, r)
	assert.Less(t, len(page), 1_500_000)
	assert.Contains(t, text(page), "340 classes more, with 340 tasks")
}

func TestRefuses(t *testing.T) {
	for want, change := range map[string]func(*Report){
		"a report needs the runs of at least one policy":                          func(r *Report) { r.Policies = nil },
		`policy "x" has no details of a first run: replay it with Options.Detail`: func(r *Report) { r.Policies[0].Runs[0].Detail = nil },
		`policy "y" has no details of a first run: replay it with Options.Detail`: func(r *Report) { r.Policies = append(r.Policies, Policy{Name: "y"}) },
		`policy "x" was replayed on other nodes than "x": replay all policies on the same cluster`: func(r *Report) {
			d := r.Policies[0].Runs[0].Detail
			d.After = d.After[:1]
		},
		`policy "x" has placed task 5 of 2: give the report the input of the replay`: func(r *Report) { r.Policies[0].Runs[0].Detail.Placements[1].Task = 5 },
		`policy "x" has moved arrival 9 of 3`:                                        func(r *Report) { r.Policies[0].Runs[0].Detail.Moves[0].Arrival = 9 },
	} {
		r := byHand("x")
		change(r)
		var b bytes.Buffer
		assert.EqualError(t, HTML(&b, r), want)
		assert.Zero(t, b.Len())
	}
	broken := errors.New("broken pipe")
	assert.ErrorIs(t, HTML(failing{broken}, byHand("x")), broken)
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestLead(t *testing.T) {
	row := func(name string, final float64) Policy {
		p := byHand(name).Policies[0]
		p.Runs[0].Final = final
		return p
	}
	r := byHand("x")
	r.Policies = []Policy{row("a", 50), row("b", 75), row("c", 50)}
	s := summarise(r)
	assert.Equal(t, []string{
		"b allocates 75.00 % of 4 GPUs.",
		"That is 1.0 GPUs more than a, the next best, whose 50.00 % leave 2.0 GPUs idle where b leaves 1.0.",
	}, lead(r, &s))
	assert.Equal(t, []bool{false, true, false}, []bool{s.Rows[0].Final.Best, s.Rows[1].Final.Best, s.Rows[2].Final.Best})
	assert.False(t, s.Rows[0].A95.Best, "nobody is best where all are the same")

	r.Policies = []Policy{row("a", 75), row("b", 75)}
	r.Policies[0].Runs = append(r.Policies[0].Runs, r.Policies[0].Runs[0])
	r.Policies[1].Runs = append(r.Policies[1].Runs, r.Policies[1].Runs[0])
	s = summarise(r)
	assert.Equal(t, []string{"a allocates 75.00 % of 4 GPUs, in the mean of 2 orders of arrival.", "b allocates as much."}, lead(r, &s))
}

func TestAllocatedAt(t *testing.T) {
	curve := []sim.Point{{}, {Arrived: 10, Allocated: 10}, {Arrived: 10, Allocated: 10}, {Arrived: 20, Allocated: 15}}
	for at, want := range map[float64]float64{0: 0, 5: 5, 10: 10, 15: 12.5, 20: 15, 30: 15} {
		assert.InDelta(t, want, allocatedAt(curve, at), 1e-9, "at %g", at)
	}
}

// The second chart begins where it has something to show.
func TestPart(t *testing.T) {
	curve := func(full float64) []sim.Point {
		return []sim.Point{{}, {Arrived: full, Allocated: full}, {Arrived: full + 2, Allocated: full}, {Arrived: 130, Allocated: full + 0.4}}
	}
	from, low := part([][]sim.Point{curve(96), curve(92)}, 130)
	assert.InDelta(t, 90, from, 0)
	assert.InDelta(t, 85, low, 0)
	from, low = part([][]sim.Point{curve(96), curve(15)}, 130)
	assert.InDelta(t, 75, from, 0, "not from where the first parts, which is most of the run")
	assert.InDelta(t, 10, low, 0)
	from, _ = part([][]sim.Point{{{}, {Arrived: 60, Allocated: 60}}}, 60)
	assert.Zero(t, from, "nor where they never do")
}

func TestSpreadLabels(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		labels := make([]curveLabel, rapid.IntRange(1, chartHeight/labelHeight).Draw(t, "labels"))
		for i := range labels {
			labels[i].Y = rapid.IntRange(0, chartHeight).Draw(t, "y")
		}
		spreadLabels(labels)
		for i := range labels {
			require.GreaterOrEqual(t, labels[i].Y, 0)
			require.LessOrEqual(t, labels[i].Y, chartHeight)
			for j := range i {
				require.GreaterOrEqual(t, max(labels[i].Y-labels[j].Y, labels[j].Y-labels[i].Y), labelHeight)
			}
		}
	})
}

func TestTicks(t *testing.T) {
	at := func(float64) string { return "" }
	texts := func(low, high float64) (out []string) {
		for _, tick := range ticks(low, high, at) {
			out = append(out, tick.Text)
		}
		return out
	}
	assert.Equal(t, []string{"0", "20", "40", "60", "80", "100", "120"}, texts(0, 130))
	assert.Equal(t, []string{"90", "92", "94", "96", "98", "100"}, texts(90, 100))
	assert.Equal(t, []string{"0", "2000", "4000", "6000", "8000", "10000"}, texts(0, 10_000))
}

func TestFormat(t *testing.T) {
	for want, got := range map[string]string{
		"0": count(0), "999": count(999), "1,000": count(1000), "-1,234,567": count(-1_234_567),
		"0.00": percent(0), "-0.50": percent(-0.5), "12,345.68": percent(12345.678),
		"7": average(7), "7.5": average(7.5), "1.3": trimmed(1.3), "130": trimmed(130),
		"512 MiB": memory(512), "1.5 GiB": memory(1536), "2 TiB": memory(2 << 20),
		"11.91": cores(11_908), "8 GPUs": asks(&pack.Request{GPUs: 8}), "1 GPU": asks(&pack.Request{GPUs: 1}),
		"0.46 GPU": asks(&pack.Request{Milli: 460}), "no GPU": asks(&pack.Request{}), "2 GiB of a GPU": asks(&pack.Request{MiB: 2048}),
		"42-44, 7, 9": seedRanges([]uint64{42, 43, 44, 7, 9}), "a, b and c": list([]string{"a", "b", "c"}), "a": list([]string{"a"}),
	} {
		assert.Equal(t, want, got)
	}
}
