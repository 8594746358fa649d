// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// The page is complete without this script, which only says what is under the pointer.
(() => {
  'use strict';

  const SVG = 'http://www.w3.org/2000/svg';
  const percent = v => v.toFixed(2);
  const data = JSON.parse(document.getElementById('data').textContent);
  for (const e of document.querySelectorAll('.scripted')) e.hidden = false;

  // The readout takes the place of the browser's own tooltip.
  for (const title of document.querySelectorAll('svg.cells > title')) {
    title.parentNode.setAttribute('aria-label', title.textContent);
    title.remove();
  }
  for (const title of document.querySelectorAll('svg.axes > title')) {
    const svg = title.parentNode;
    const desc = svg.querySelector('desc');
    svg.removeAttribute('aria-labelledby');
    svg.setAttribute('aria-label', title.textContent + '. ' + desc.textContent);
    title.remove();
  }

  const readout = document.createElement('div');
  readout.className = 'readout';
  readout.hidden = true;
  document.body.append(readout);

  // show puts lines of [left, right] beside the pointer. Text is never taken for markup.
  function show(event, lines) {
    readout.replaceChildren(...lines.map(([left, right, className]) => {
      const p = document.createElement('p');
      const a = document.createElement('span');
      const b = document.createElement('span');
      if (className) a.className = 'name ' + className;
      a.append(...(Array.isArray(left) ? left : [left]));
      b.textContent = right;
      p.append(a, b);
      return p;
    }));
    readout.hidden = false;
    const page = document.documentElement;
    const x = Math.min(event.clientX + 14, page.clientWidth - readout.offsetWidth - 8);
    let y = event.clientY + 16;
    if (y + readout.offsetHeight > page.clientHeight - 8) y = event.clientY - readout.offsetHeight - 12;
    readout.style.left = Math.max(8, x) + window.scrollX + 'px';
    readout.style.top = Math.max(8, y) + window.scrollY + 'px';
  }
  const hide = () => { readout.hidden = true; };

  // Curves: a line at the pointer, and every curve's height there.
  const curves = [...document.querySelectorAll('path.curve')].filter(p => p.id !== 'ideal').map((p, i) => ({
    id: p.id,
    show: document.getElementById('show-' + i),
    points: p.getAttribute('d').slice(1).split('L').map(s => s.split(',').map(Number)),
  }));
  function height(points, x) {
    let low = 0, high = points.length - 1;
    while (low < high) {
      const mid = (low + high) >> 1;
      if (points[mid][0] < x) low = mid + 1; else high = mid;
    }
    const b = points[low], a = points[Math.max(0, low - 1)];
    return -(b[0] === a[0] || x >= b[0] ? b[1] : a[1] + (b[1] - a[1]) * (x - a[0]) / (b[0] - a[0]));
  }
  for (const chart of document.querySelectorAll('.chart')) {
    const axes = chart.querySelector('.axes');
    const plot = axes.querySelector('.plot');
    const [x0, , width] = plot.getAttribute('viewBox').split(' ').map(Number);
    const cross = document.createElementNS(SVG, 'line');
    cross.setAttribute('class', 'cross');
    cross.setAttribute('y1', 0);
    cross.setAttribute('y2', 320);
    axes.addEventListener('pointermove', event => {
      const box = axes.getBoundingClientRect();
      const part = (event.clientX - box.left) / box.width;
      if (part < 0 || part > 1) return leave();
      const at = x0 + part * width;
      cross.setAttribute('x1', 100 * part + '%');
      cross.setAttribute('x2', 100 * part + '%');
      axes.append(cross);
      const lines = curves.filter(c => !c.show || c.show.checked).map(c => {
        const use = plot.querySelector('[href="#' + c.id + '"]');
        return { y: height(c.points, at), name: use.dataset.name, className: use.getAttribute('class') };
      }).sort((a, b) => b.y - a.y);
      const swatch = document.querySelector('.swatch');
      show(event, [
        ['arrived', percent(at) + ' %'], ['ideal', percent(Math.min(at, 100)) + ' %'],
        ...lines.map(l => [[swatch.cloneNode(true), l.name], percent(l.y) + ' %', l.className]),
      ]);
    });
    const leave = () => { cross.remove(); hide(); };
    axes.addEventListener('pointerleave', leave);
  }

  // Heat maps: whose the cell is.
  const cpus = milli => (milli / 1000).toFixed(1);
  const gib = mib => (mib / 1024).toFixed(1) + ' GiB';
  document.querySelectorAll('.map').forEach((map, number) => {
    const free = data.maps[number];
    let node = 0; // number of the group's first node
    for (const svg of map.querySelectorAll('.cells')) {
      const d = Object.fromEntries(Object.entries(svg.dataset).map(([k, v]) => [k, Number(v)]));
      const firstNode = node;
      node += d.nodes;
      const pointed = document.createElementNS(SVG, 'rect');
      pointed.setAttribute('class', 'pointed');
      const leave = () => { pointed.remove(); hide(); };
      svg.addEventListener('pointerleave', leave);
      svg.addEventListener('pointermove', event => {
        const box = svg.getBoundingClientRect();
        const scale = svg.viewBox.baseVal.width / box.width;
        const x = (event.clientX - box.left) * scale;
        const y = (event.clientY - box.top) * scale;
        const step = d.cells * d.pitch + d.gap;
        const column = Math.floor(x / step);
        const row = Math.floor(y / d.pitch);
        const gpu = Math.min(d.cells - 1, Math.floor((x - column * step) / d.pitch));
        const at = row * d.columns + column;
        if (x < 0 || y < 0 || column >= d.columns || at >= d.nodes) return leave();
        pointed.setAttribute('x', column * step + gpu * d.pitch - .5);
        pointed.setAttribute('y', row * d.pitch - .5);
        pointed.setAttribute('width', d.pitch);
        pointed.setAttribute('height', d.pitch);
        svg.append(pointed);
        const cell = d.first + at * d.cells + gpu;
        const n = firstNode + at;
        const allocated = (100 - free.free[cell] / 10).toFixed(1) + ' % allocated';
        const lines = [[data.names[n], ''], [data.merged ? 'all GPUs' : 'GPU ' + gpu, allocated]];
        if (free.cpu) {
          lines.push(['CPUs free', cpus(free.cpu[n]) + ' of ' + cpus(data.cpu[n])]);
          lines.push(['memory free', gib(free.memory[n]) + ' of ' + gib(data.memory[n])]);
        }
        show(event, lines);
      });
    }
  });
})();
