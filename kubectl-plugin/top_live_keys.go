// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"bytes"
	"strings"

	tea "charm.land/bubbletea/v2"
)

// livePage is what the live view shows.
type livePage int

const (
	pageTree livePage = iota
	pageHelp
	pageExplanation
)

// liveModel is the state of the live view, of which render makes the screen.
type liveModel struct {
	data          *liveData
	width, height int
	color         bool

	order     liveOrder
	filter    string
	filtering bool
	open      map[string]bool
	// allOpen turns the meaning of open around.
	allOpen bool
	rows    []liveRow
	// cursor is the chosen row, top the first on the screen.
	cursor, top int

	page        livePage
	explained   string
	explanation string
	scroll      int

	// loading is what is said until the cluster was read.
	loading string
	// messages are sentences on what is wrong.
	messages []string

	// feed brings news of the cluster; nil in tests of the screen alone.
	feed *liveFeed
}

func newLiveModel(data *liveData) *liveModel {
	return &liveModel{data: data, open: map[string]bool{}}
}

// arrange makes the rows anew and keeps the cursor on its row.
func (m *liveModel) arrange() {
	key := ""
	if m.cursor < len(m.rows) && m.cursor > 0 {
		key = m.rows[m.cursor].key()
	}
	m.order.words = strings.Fields(strings.ToLower(m.filter))
	m.rows = m.data.rows(&m.order, func(key string) bool { return m.open[key] != m.allOpen })
	if key != "" {
		for i := range m.rows {
			if m.rows[i].key() == key {
				m.top += i - m.cursor
				m.cursor = i
				break
			}
		}
	}
	m.show()
}

// show moves the screen to where the cursor is.
func (m *liveModel) show() {
	m.cursor = max(0, min(m.cursor, len(m.rows)-1))
	space := m.rowSpace()
	m.top = max(m.cursor-space+1, min(m.top, m.cursor))
	m.top = max(0, min(m.top, len(m.rows)-space))
}

func (m *liveModel) move(by int) {
	m.cursor += by
	m.show()
}

// scrollBy moves the screen, and the cursor no more than it must to stay on it.
func (m *liveModel) scrollBy(by int) {
	space := m.rowSpace()
	m.top = max(0, min(m.top+by, len(m.rows)-space))
	m.cursor = max(m.top, min(m.cursor, m.top+space-1, len(m.rows)-1))
	m.show()
}

// Update takes a key, a size, a movement of the mouse, or news of the cluster.
func (m *liveModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.show()
	case tea.KeyPressMsg:
		return m, m.press(msg)
	case tea.PasteMsg:
		if m.filtering {
			m.setFilter(m.filter + strings.Join(strings.Fields(msg.Content), " "))
		}
	case tea.MouseWheelMsg:
		by := 3
		if msg.Button == tea.MouseWheelUp {
			by = -3
		}
		if m.page == pageTree {
			m.scrollBy(by)
		} else {
			m.scroll += by
		}
	case tea.MouseClickMsg:
		if m.page == pageTree && msg.Button == tea.MouseLeft {
			return m, m.click(msg.Y)
		}
	case explanationMsg:
		if m.page == pageExplanation && m.explained == msg.title {
			m.explanation = msg.text
		}
	default:
		if m.feed != nil {
			return m, m.feed.update(m, msg)
		}
	}
	return m, nil
}

func (m *liveModel) press(key tea.KeyPressMsg) tea.Cmd {
	name := key.String()
	switch {
	case name == "ctrl+c":
		return tea.Quit
	case m.filtering:
		m.typed(key)
		return nil
	case name == "q":
		return tea.Quit
	case m.page != pageTree:
		m.pressInText(name)
		return nil
	}
	switch name {
	case "up", "k":
		m.move(-1)
	case "down", "j":
		m.move(1)
	case "pgup", "ctrl+b":
		m.move(-m.rowSpace())
	case "pgdown", "ctrl+f":
		m.move(m.rowSpace())
	case "home":
		m.move(-len(m.rows))
	case "end":
		m.move(len(m.rows))
	case "right", "l", "space":
		m.setOpen(true)
	case "left", "h":
		m.setOpen(false)
	case "enter":
		return m.enter()
	case "e":
		m.allOpen = !m.allOpen
		clear(m.open)
		m.arrange()
	case "s":
		m.sortNext(1)
	case "S":
		m.sortNext(-1)
	case "r":
		m.order.reverse = !m.order.reverse
		m.arrange()
	case "g":
		m.groupNext(1)
	case "G":
		m.groupNext(-1)
	case "/":
		m.filtering = true
	case "esc":
		m.setFilter("")
	case "?":
		m.page, m.scroll = pageHelp, 0
	}
	return nil
}

// typed takes a key while the filter is typed.
func (m *liveModel) typed(key tea.KeyPressMsg) {
	switch name := key.String(); {
	case name == "enter":
		m.filtering = false
	case name == "esc":
		m.filtering = false
		m.setFilter("")
	case name == "backspace":
		if r := []rune(m.filter); len(r) > 0 {
			m.setFilter(string(r[:len(r)-1]))
		}
	case name == "ctrl+u":
		m.setFilter("")
	case name == "up":
		m.move(-1)
	case name == "down":
		m.move(1)
	case key.Text != "":
		m.setFilter(m.filter + key.Text)
	}
}

func (m *liveModel) pressInText(name string) {
	switch name {
	case "up", "k":
		m.scroll--
	case "down", "j":
		m.scroll++
	case "pgup":
		m.scroll -= m.height - 3
	case "pgdown", "space":
		m.scroll += m.height - 3
	case "esc", "left", "h", "?", "enter", "backspace":
		m.page = pageTree
	}
	m.scroll = max(0, m.scroll)
}

func (m *liveModel) setFilter(filter string) {
	m.filter = filter
	m.arrange()
}

func (m *liveModel) sortNext(by int) {
	m.order.sortBy = (m.order.sortBy + by + len(liveKeys)) % len(liveKeys)
	m.arrange()
}

func (m *liveModel) groupNext(by int) {
	m.order.grouping = (m.order.grouping + by + len(liveGroupings)) % len(liveGroupings)
	m.cursor, m.top = 0, 0
	m.arrange()
}

// isOpen says whether what is under a row can be seen.
func (m *liveModel) isOpen(i int) bool {
	return i+1 < len(m.rows) && m.rows[i+1].depth > m.rows[i].depth
}

// setOpen opens or closes the chosen row. One that has nothing to close leaves to the row that it is in.
func (m *liveModel) setOpen(open bool) {
	if m.cursor >= len(m.rows) {
		return
	}
	r := &m.rows[m.cursor]
	if !open && !m.isOpen(m.cursor) {
		for i := m.cursor - 1; i >= 0; i-- {
			if m.rows[i].depth < r.depth {
				m.cursor = i
				break
			}
		}
		m.show()
		return
	}
	if !r.leaf() {
		if open == m.allOpen {
			delete(m.open, r.key())
		} else {
			m.open[r.key()] = true
		}
		m.arrange()
	}
}

// enter explains a pod, and opens or closes any other row.
func (m *liveModel) enter() tea.Cmd {
	if m.cursor >= len(m.rows) {
		return nil
	}
	r := &m.rows[m.cursor]
	namespace, name := "", ""
	switch {
	case r.share != nil:
		namespace, name = r.share.Namespace, r.share.Name
	case r.pod != nil:
		namespace, name = r.pod.Namespace, r.pod.Name
	default:
		m.setOpen(!m.isOpen(m.cursor))
		return nil
	}
	m.page, m.scroll = pageExplanation, 0
	m.explained, m.explanation = namespace+"/"+name, "Reading ..."
	if m.feed == nil {
		return nil
	}
	return m.feed.explain(namespace, name, m.width)
}

// click chooses a row, and does with the chosen one what enter does.
func (m *liveModel) click(y int) tea.Cmd {
	i := m.top + y - linesAbove - len(m.messageLines())
	switch {
	case i < m.top || i >= min(len(m.rows), m.top+m.rowSpace()):
		return nil
	case i == m.cursor:
		return m.enter()
	}
	m.cursor = i
	m.show()
	return nil
}

// View is the screen.
func (m *liveModel) View() tea.View {
	v := tea.NewView(m.render())
	v.AltScreen = true
	v.MouseMode = tea.MouseModeCellMotion
	v.WindowTitle = "kubectl gpupack top"
	return v
}

// explanationMsg is the explanation of a pod, or why there is none.
type explanationMsg struct{ title, text string }

// explanationText is what explain prints.
func explanationText(s *snapshot, x *Explanation, width int) string {
	var b bytes.Buffer
	printExplanation(screen{Writer: &b, width: max(20, width)}, s, x)
	return b.String()
}
