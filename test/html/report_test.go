// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package html opens what kubectl gpupack simulate -o html writes in headless Chromium, as a user does. It is a module of its
// own, so that nobody who builds gpupack needs what drives a browser.
package html

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"image"
	"image/png"
	"math"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The slice of the openb trace, and how many GPUs its cluster has.
const (
	nodesFile = "../fixtures/openb/nodes.csv"
	tasksFile = "../fixtures/openb/tasks.csv"
	gpus      = 291
)

var (
	pictures = flag.String("pictures", "", "folder for pictures of the pages")

	// browser and plugin are the paths of Chromium and kubectl-gpupack.
	browser, plugin string
)

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	var err error
	if browser, err = findBrowser(); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "gpupack-html")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	plugin = filepath.Join(dir, "kubectl-gpupack")
	build := exec.Command("go", "build", "-trimpath", "-o", plugin, "./cmd/kubectl-gpupack")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("building kubectl-gpupack: %w\n%s", err, out)
	}
	return m.Run(), nil
}

func findBrowser() (string, error) {
	if path := os.Getenv("CHROMIUM"); path != "" {
		if path, err := exec.LookPath(path); err == nil {
			return path, nil
		}
		return "", fmt.Errorf("CHROMIUM is %q, which is no program: give the path of Chromium", path)
	}
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("there is no Chromium here: install Debian's package chromium, or set CHROMIUM to the path of the browser")
}

// replays is what simulate -o json prints.
type replays struct {
	Policies []struct {
		Policy string
		Runs   []struct {
			Seed                      uint64
			A95, A100, Final          float64
			Tasks, Unscheduled, Moved int
		}
		Mean struct{ A95, A100, Final float64 }
	}
}

// simulate runs the same simulation twice, and returns the path of the page and the figures.
func simulate(t *testing.T, args ...string) (string, replays) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.html")
	command := func(args ...string) []byte {
		cmd := exec.Command(plugin, append([]string{"simulate"}, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		require.NoError(t, err, stderr.String())
		return out
	}
	command(append(args, "-o", "html", "--out", path)...)
	var r replays
	require.NoError(t, json.Unmarshal(command(append(args, "-o", "json")...), &r))
	return path, r
}

// tab is a page in the browser, and all that it complained of or asked for.
type tab struct {
	*testing.T
	ctx context.Context
	url string

	mu         sync.Mutex
	complaints []string
	requests   []string
}

// open opens a file. Whatever the page does that it should not fails the test at its end.
func open(t *testing.T, path string, script bool) *tab {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(browser),
		// No name resolves, and a proxy that is none would be asked for the rest.
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND"),
		chromedp.ProxyServer("127.0.0.1:9"),
	)
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // which Chromium demands of root
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	p := &tab{T: t, url: (&url.URL{Scheme: "file", Path: path}).String()}
	p.ctx, cancel = chromedp.NewContext(ctx, chromedp.WithListener(p.listen))
	t.Cleanup(cancel)

	call(p, log.Enable, cdp.Empty{})
	call(p, network.Enable, network.EnableParams{})
	call(p, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !script})
	p.size(1600)
	p.scheme("light")
	p.do(chromedp.Navigate(p.url))
	t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		assert.Empty(t, p.complaints, "the console is silent")
		assert.Equal(t, []string{p.url}, p.requests, "the page asks for nothing but itself")
	})
	return p
}

func (p *tab) listen(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *log.EventEntryAdded:
		p.complaints = append(p.complaints, e.Entry.Text)
	case *runtime.EventConsoleAPICalled:
		p.complaints = append(p.complaints, fmt.Sprintf("console.%s", e.Type))
	case *runtime.EventExceptionThrown:
		p.complaints = append(p.complaints, fmt.Sprintf("exception: %s", e.ExceptionDetails.Text))
	case *page.EventJavascriptDialogOpening:
		p.complaints = append(p.complaints, "dialog: "+e.Message)
	case *network.EventRequestWillBeSent:
		if !strings.HasPrefix(e.Request.URL, "data:") {
			p.requests = append(p.requests, e.Request.URL)
		}
	}
}

func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.Helper()
	require.NoError(p, chromedp.Do(p.ctx, steps...))
}

func call[P, R any](p *tab, command cdp.Command[P, R], params P) {
	p.Helper()
	_, err := chromedp.Call(p.ctx, command, params)
	require.NoError(p, err)
}

func eval[T any](p *tab, expression string, args ...any) T {
	p.Helper()
	v, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](fmt.Sprintf(expression, args...)))
	require.NoError(p, err)
	return v
}

func (p *tab) size(width int64) { p.Helper(); p.do(chromedp.EmulateViewport(width, 1000)) }

func (p *tab) scheme(name string) { p.Helper(); p.media("", name) }

func (p *tab) media(media, scheme string) {
	p.Helper()
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Media: media, Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
}

// point moves the mouse to the middle of what an expression returns, which is an element or a rectangle in the window, and
// returns what the page says then.
func (p *tab) point(expression string) string {
	p.Helper()
	at := eval[[]float64](p, `(() => {
		const what = %s;
		const r = what instanceof Element ? what.getBoundingClientRect() : what;
		return [r.x + r.width / 2, r.y + r.height / 2];
	})()`, expression)
	p.do(chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, at[0], at[1]))
	return eval[string](p, `(r => r && !r.hidden ? r.innerText.replace(/\s+/g, ' ').trim() : '')(document.querySelector('.readout'))`)
}

// picture is one of an element, and is kept if asked for.
func (p *tab) picture(selector, name string) image.Image {
	p.Helper()
	data, err := chromedp.Run(p.ctx, chromedp.Screenshot(chromedp.CSS(selector)))
	require.NoError(p, err)
	if *pictures != "" {
		require.NoError(p, os.MkdirAll(*pictures, 0o755))
		require.NoError(p, os.WriteFile(filepath.Join(*pictures, name+".png"), data, 0o644))
	}
	img, err := png.Decode(bytes.NewReader(data))
	require.NoError(p, err)
	return img
}

// rgb are red, green and blue of a colour as CSS computes it.
func rgb(t *testing.T, css string) (out [3]int) {
	t.Helper()
	_, err := fmt.Sscanf(css, "rgb(%d, %d, %d)", &out[0], &out[1], &out[2])
	require.NoError(t, err, css)
	return out
}

func (p *tab) background() float64 {
	p.Helper()
	c := rgb(p.T, eval[string](p, `getComputedStyle(document.body).backgroundColor`))
	return float64(c[0]+c[1]+c[2]) / (3 * 255)
}

// checkFigures compares the table of policies with what simulate prints as JSON.
func (p *tab) checkFigures(want replays) {
	p.Helper()
	rows := eval[[][]string](p, `[...document.querySelectorAll('.policies tbody tr')].map(row =>
		[...row.cells].filter(c => !c.matches('.dots')).map(c => c.innerText.split('\n')[0].trim().replaceAll(',', '')))`)
	require.Len(p, rows, len(want.Policies))
	for i, policy := range want.Policies {
		n := float64(len(policy.Runs))
		unscheduled, moved := 0.0, 0.0
		for _, run := range policy.Runs {
			unscheduled += float64(run.Unscheduled) / n
			moved += float64(run.Moved) / n
		}
		require.GreaterOrEqual(p, len(rows[i]), 8)
		assert.Equal(p, policy.Policy, rows[i][0])
		for j, v := range []float64{policy.Mean.A95, policy.Mean.A100, policy.Mean.Final, (100 - policy.Mean.Final) / 100 * gpus, unscheduled, moved} {
			got, err := strconv.ParseFloat(rows[i][j+1], 64)
			require.NoError(p, err)
			rounding := 0.0051
			if j > 2 {
				rounding = 0.051
			}
			assert.InDelta(p, v, got, rounding, "%s, column %d", policy.Policy, j+1)
		}
	}
}

// checkMaps counts the cells of the heat maps in the document and, by their colours, on the screen.
func (p *tab) checkMaps(maps int) {
	p.Helper()
	type drawn struct {
		ID      string
		Cells   int
		Key     []int
		Colours []string
		Covered float64
	}
	all := eval[[]drawn](p, `[...document.querySelectorAll('.map')].map(map => ({
		ID: map.id,
		Cells: [...map.querySelectorAll('.cells path')].reduce((n, path) => n + [...path.getAttribute('d').matchAll(/h(\d+)/g)]
			.reduce((n, m) => n + (Number(m[1]) + 1) / path.parentNode.dataset.pitch, 0), 0),
		Key: [...map.querySelectorAll('.key td')].map(td => Number(td.innerText.replaceAll(',', ''))),
		Colours: [...map.querySelectorAll('.key .shade rect')].map(r => getComputedStyle(r).fill),
		Covered: (svg => (svg.getBoundingClientRect().width / svg.viewBox.baseVal.width * svg.dataset.pitch) ** 2)(map.querySelector('.cells')),
	}))`)
	require.Len(p, all, maps)
	for _, m := range all {
		assert.Equal(p, gpus, m.Cells, m.ID)
		sum := 0
		for _, n := range m.Key {
			sum += n
		}
		assert.Equal(p, gpus, sum, m.ID)
		img := p.picture("#"+m.ID, strings.ReplaceAll(p.Name(), "/", "-")+"-"+m.ID)
		for shade, css := range m.Colours {
			// Gaps, and edges that are between pixels, take a part of each cell.
			assert.Greater(p, float64(pixels(img, rgb(p.T, css))), 0.4*m.Covered*float64(m.Key[shade])-1, "%s: %d cells of shade %d are seen", m.ID, m.Key[shade], shade)
		}
	}
}

func pixels(img image.Image, want [3]int) int {
	n := 0
	for y := img.Bounds().Min.Y; y < img.Bounds().Max.Y; y++ {
		for x := img.Bounds().Min.X; x < img.Bounds().Max.X; x++ {
			r, g, b, _ := img.At(x, y).RGBA()
			if near(r, want[0]) && near(g, want[1]) && near(b, want[2]) {
				n++
			}
		}
	}
	return n
}

func near(got uint32, want int) bool { return math.Abs(float64(got>>8)-float64(want)) <= 2 }

// contrast returns what is hard to read: text below 4.5 to 1, lines that tell policies apart below 3 to 1, as WCAG 2.2 demands.
//
//go:embed contrast.js
var contrast string

// TestReport looks at a page as its readers do: light and dark, on a telephone and on a large screen, with the mouse, and on
// paper.
func TestReport(t *testing.T) {
	path, want := simulate(t, "--nodes", nodesFile, "--pods", tasksFile, "--policy", "gpupack,fgd,best-fit", "--seeds", "42-43")
	p := open(t, path, true)

	assert.Equal(t, "tasks", eval[string](p, `document.title`))
	p.checkFigures(want)
	p.checkMaps(4)

	light := p.background()
	assert.Greater(t, light, 0.9)
	assert.Empty(t, eval[[]string](p, "%s", contrast))
	p.scheme("dark")
	assert.Less(t, p.background(), 0.2)
	assert.Empty(t, eval[[]string](p, "%s", contrast))
	p.checkMaps(4)
	p.do(chromedp.Click(chromedp.CSS(`label:has(#theme-light)`)))
	assert.InDelta(t, light, p.background(), 0, "what is chosen counts more than what the system prefers")
	p.scheme("light")
	p.do(chromedp.Click(chromedp.CSS(`label:has(#theme-dark)`)))
	assert.Less(t, p.background(), 0.2)
	p.media("print", "dark")
	assert.Greater(t, p.background(), 0.9, "paper is white")
	assert.True(t, eval[bool](p, `[...document.querySelectorAll('.classes')].filter(e => !e.closest('.more')).every(e => e.checkVisibility())`),
		"and shows what was folded")
	p.scheme("light")
	p.do(chromedp.Click(chromedp.CSS(`label:has(#theme-system)`)))

	for _, width := range []int64{360, 400, 768, 1200, 1600, 2560} {
		p.size(width)
		assert.LessOrEqual(t, eval[int64](p, `document.documentElement.scrollWidth`), width, "nothing sticks out")
		assert.Positive(t, eval[float64](p, `Math.min(...[...document.querySelectorAll('.chart .plot')].map(e => e.getBoundingClientRect().width)) - 250`))
		assert.GreaterOrEqual(t, eval[float64](p, `Math.min(...[...document.querySelectorAll('.chart text:not(.label)')].map(e => e.getBoundingClientRect().height))`), 12.0,
			"charts shrink, their text does not")
		p.picture("body", fmt.Sprintf("report-%d", width))
	}
	p.size(1600)

	// The mouse.
	eval[any](p, `document.querySelector('#chart-whole').scrollIntoView({block: 'center'})`)
	said := p.point(`document.querySelector('#chart-whole .plot')`)
	assert.Regexp(t, `^arrived 6\d\.\d\d % ideal 6\d\.\d\d % \S+ 6\d\.\d\d % \S+ 6\d\.\d\d % \S+ 6\d\.\d\d %$`, said)
	for _, policy := range want.Policies {
		assert.Contains(t, said, policy.Policy)
	}
	p.do(chromedp.Click(chromedp.CSS(`#show-1`)))
	assert.Equal(t, []bool{true, false, true}, eval[[]bool](p,
		`[...document.querySelectorAll('#chart-whole .plot use:not(.ideal)')].map(u => getComputedStyle(u).display !== 'none')`))
	assert.NotContains(t, p.point(`document.querySelector('#chart-whole .plot')`), "fgd")
	p.do(chromedp.Click(chromedp.CSS(`#show-1`)))

	eval[any](p, `document.querySelector('#after-0 .cells').scrollIntoView({block: 'center'})`)
	first := `(svg => { const r = svg.getBoundingClientRect(), step = r.width / svg.viewBox.baseVal.width * svg.dataset.pitch;
		return {x: r.x + %d * step, y: r.y, width: step, height: step}; })(document.querySelector('%s .cells'))`
	assert.Regexp(t, `^openb-node-0026 GPU 3 \d+\.\d % allocated CPUs free \d+\.\d of 96\.0 memory free \d+\.\d GiB of 384\.0 GiB$`, p.point(fmt.Sprintf(first, 3, "#after-0")))
	assert.Regexp(t, `^openb-node-0026 GPU 0 0\.0 % allocated CPUs free 96\.0 of 96\.0 memory free 384\.0 GiB of 384\.0 GiB$`, p.point(fmt.Sprintf(first, 0, "#before")))
	assert.Empty(t, p.point(`document.querySelector('#h-cluster')`), "the readout goes with the mouse")
}

// TestWithoutScript reads a page in a browser that runs no scripts.
func TestWithoutScript(t *testing.T) {
	path, want := simulate(t, "--nodes", nodesFile, "--pods", tasksFile, "--policy", "gpupack,random", "--seeds", "7")
	p := open(t, path, false)
	assert.True(t, eval[bool](p, `document.querySelector('.scripted').hidden`), "no script has run")
	p.checkFigures(want)
	p.checkMaps(3)
	assert.Equal(t, []string{"gpupack", "random"}, eval[[]string](p, `[...document.querySelectorAll('#chart-whole .label')].map(e => e.textContent)`))
	assert.Equal(t, 3, eval[int](p, `[...document.querySelectorAll('#chart-whole .plot use')].filter(u => u.getBoundingClientRect().height > 100).length`))
	p.do(chromedp.Click(chromedp.CSS(`#show-0`)), chromedp.Click(chromedp.CSS(`label:has(#theme-dark)`)))
	assert.Equal(t, 2, eval[int](p, `[...document.querySelectorAll('#chart-whole .plot use')].filter(u => getComputedStyle(u).display !== 'none').length`))
	assert.Less(t, p.background(), 0.2)
}

// TestNamesAreText opens a page of a cluster whose nodes and models have names that would be markup, were they not escaped.
func TestNamesAreText(t *testing.T) {
	const (
		node  = `<script>document.title="run"</script>`
		other = `</script><img src="x" onerror="alert(1)">`
		model = `"><svg onload=alert(2)>`
		task  = `</title></script><script>alert(3)</script>`
	)
	dir := t.TempDir()
	table := func(name string, rows ...[]string) string {
		path := filepath.Join(dir, name)
		f, err := os.Create(path)
		require.NoError(t, err)
		defer f.Close()
		require.NoError(t, csv.NewWriter(f).WriteAll(rows))
		return path
	}
	nodes := table("nodes.csv", []string{"sn", "cpu_milli", "memory_mib", "gpu", "model"},
		[]string{node, "8000", "65536", "2", model}, []string{other, "8000", "65536", "2", model})
	tasks := table("<b>'tasks'.csv", []string{"name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec"},
		[]string{task, "1000", "1024", "1", "1000", model}, []string{"share", "1000", "1024", "1", "400", ""})
	path, _ := simulate(t, "--nodes", nodes, "--pods", tasks, "--policy", "fgd", "--seeds", "1")
	p := open(t, path, true)
	assert.Equal(t, "<b>'tasks'", eval[string](p, `document.title`))
	assert.Equal(t, "<b>'tasks'", eval[string](p, `document.querySelector('h1').innerText`))
	assert.Zero(t, eval[int](p, `document.querySelectorAll('img, b:not(dd > b), [onload], [onerror], body script ~ script ~ script').length`))
	assert.Contains(t, eval[[]string](p, `[...document.querySelectorAll('.classes td')].map(e => e.innerText)`), model)
	eval[any](p, `document.querySelector('#after-0').scrollIntoView({block: 'center'})`)
	said := p.point(`(r => ({x: r.x, y: r.y, width: 8, height: 8}))(document.querySelector('#after-0 .cells').getBoundingClientRect())`)
	assert.True(t, strings.HasPrefix(said, other+" GPU 0 "), said)
	p.size(400)
	assert.LessOrEqual(t, eval[int](p, `document.documentElement.scrollWidth`), 400)
}

func TestNoBrowser(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("CHROMIUM", "")
	_, err := findBrowser()
	assert.EqualError(t, err, "there is no Chromium here: install Debian's package chromium, or set CHROMIUM to the path of the browser")
	t.Setenv("CHROMIUM", "/nowhere/chromium")
	_, err = findBrowser()
	assert.EqualError(t, err, `CHROMIUM is "/nowhere/chromium", which is no program: give the path of Chromium`)
}
