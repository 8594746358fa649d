// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Returns what of the page is hard to read, a line each.
(() => {
  const folded = [...document.querySelectorAll('details:not([open])')];
  folded.forEach(d => { d.open = true; });

  const parse = css => css.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ratio = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + .05) / (low + .05);
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };

  const bad = new Set();
  const check = (e, css, least) => {
    const r = ratio(parse(css), behind(e));
    if (!(r >= least)) bad.add(`${e.tagName} ${e.getAttribute('class') ?? ''} "${e.textContent.trim().slice(0, 30)}": ${css} at ${r.toFixed(2)}`);
  };
  for (const e of document.body.querySelectorAll('*')) {
    if (e.matches('script') || !e.checkVisibility()) continue;
    const style = getComputedStyle(e);
    if ([...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim())) {
      if (!e.matches('title, desc')) check(e, e instanceof SVGElement ? style.fill : style.color, 4.5);
    }
    if (e.matches('.swatch line, .plot use')) check(e, style.stroke, 3);
  }

  folded.forEach(d => { d.open = false; });
  return [...bad];
})()
