// Charts, drawn as SVG in the page's own colours and at the size of their place.

import { h, s, tell } from './dom.js';
import { clock, span } from './format.js';

const HEIGHT = 190;
const LEFT = 44;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 22;

const nice = (most) => {
  if (!(most > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 1.2, 1.6, 2, 3, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= most * 0.999);
};

// An area in steps between two rows of values.
const steps = (lower, upper, x, y) => {
  const there = upper.map((value, place) => `${place ? 'V' : ''}${y(value)}H${x(place + 1)}`).join('');
  const back = lower.map((value, place) => [place, value]).reverse().map(([place, value]) => `V${y(value)}H${x(place)}`).join('');
  return `M${x(0)} ${there}${back}Z`;
};

// Series on each other: {name, fill, values}; `lines` lie over them. `read` says what a place holds, in words.
export const stacked = (place, { until, step, series, lines = [], most, unit, read, label }) => {
  const width = Math.max(240, place.clientWidth);
  const number = Math.max(1, series[0]?.values.length ?? lines[0]?.values.length ?? 1);
  const sums = new Array(number).fill(0);
  for (const one of series) one.values.forEach((value, at) => { sums[at] += value; });
  const top = most ?? nice(Math.max(...sums, ...lines.flatMap((one) => one.values)));
  const round = (value) => Math.round(value * 10) / 10;
  const x = (at) => round(LEFT + ((width - LEFT - RIGHT) * at) / number);
  const y = (value) => round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(value, top) / top));
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    parts.push(s('line', { x1: LEFT, x2: width - RIGHT, y1: y(top * share), y2: y(top * share), class: 'grid' }));
    parts.push(s('text', { x: LEFT - 6, y: y(top * share) + 4, class: 'tick', 'text-anchor': 'end' }, unit(top * share)));
  }
  for (const [share, name, anchor] of [[0, `${span(number * step)} ago`, 'start'], [0.5, `${span((number * step) / 2)} ago`, 'middle'], [1, 'now', 'end']]) {
    parts.push(s('text', { x: LEFT + share * (width - LEFT - RIGHT), y: HEIGHT - 5, class: 'tick', 'text-anchor': anchor }, name));
  }
  let lower = new Array(number).fill(0);
  for (const one of series) {
    const upper = lower.map((value, at) => value + one.values[at]);
    parts.push(s('path', { d: steps(lower, upper, x, y), class: one.fill }));
    lower = upper;
  }
  for (const one of lines) {
    const d = one.values.map((value, at) => `${at ? 'L' : 'M'}${x(at + 0.5)} ${y(value)}`).join('');
    parts.push(s('path', { d, class: `line ${one.stroke}` }));
  }
  const kept = place.firstElementChild;
  const at = kept?.dataset.at ? Number(kept.dataset.at) : null;
  const drawing = s('svg', { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, 'aria-hidden': 'true' }, parts);
  const frame = kept ?? cursored(place);
  frame.setAttribute('aria-label', label);
  frame.querySelector('svg')?.remove();
  frame.prepend(drawing);
  frame.redraw = (chosen) => {
    drawing.querySelector('.cursor')?.remove();
    if (chosen === null) return;
    const kept_at = Math.min(number - 1, Math.max(0, chosen));
    frame.dataset.at = kept_at;
    drawing.append(s('rect', { x: x(kept_at), y: TOP, width: Math.max(1, x(1) - x(0)), height: HEIGHT - TOP - BOTTOM, class: 'cursor' }));
    tell(frame.lastElementChild, `${clock(until - (number - kept_at) * step)}: ${read(kept_at)}`);
  };
  frame.placeOf = (clientX) => {
    const box = drawing.getBoundingClientRect();
    return Math.floor((((clientX - box.left) * width) / box.width - LEFT) / (x(1) - x(0)));
  };
  frame.number = number;
  if (at !== null) frame.redraw(at);
};

// What a chart stands in: a place of it can be read by pointer and by arrow keys.
const cursored = (place) => {
  const frame = h('div', { class: 'frame', tabindex: '0', role: 'img' }, h('div', { class: 'readout note', 'aria-live': 'polite' }));
  const leave = () => {
    delete frame.dataset.at;
    frame.redraw(null);
    tell(frame.lastElementChild, '');
  };
  frame.addEventListener('pointermove', (event) => frame.redraw(frame.placeOf(event.clientX)));
  frame.addEventListener('pointerleave', leave);
  frame.addEventListener('blur', leave);
  frame.addEventListener('keydown', (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -12, PageDown: 12 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    frame.redraw(Number(frame.dataset.at ?? frame.number) + by);
  });
  place.append(frame);
  return frame;
};

// What colours stand for.
export const keys = (place, names) => {
  const told = names.map(([, name]) => name).join();
  if (place.dataset.told === told) return;
  place.dataset.told = told;
  place.replaceChildren(...names.map(([fill, name]) => h('span', {}, s('svg', { viewBox: '0 0 10 10', 'aria-hidden': 'true' }, s('rect', { width: 10, height: 10, rx: 2, class: fill })), name)));
};

// A row of a waterfall: where a stage begins, lasts at the median, and at the 99th percentile, as shares of the whole.
export const fall = (begin, median, late) =>
  s('svg', { class: 'fall', 'aria-hidden': 'true' },
    s('rect', { x: 0, y: 4, width: '100%', height: 8, rx: 2, class: 'track' }),
    s('rect', { x: `${100 * begin}%`, y: 6, width: `${100 * Math.max(0.002, late)}%`, height: 4, class: 'f3 faint' }),
    s('rect', { x: `${100 * begin}%`, y: 4, width: `${100 * Math.max(0.006, median)}%`, height: 8, rx: 2, class: 'f3' }));

// A share with its interval, and the budget beside it; all are shares, `most` is where the scale ends.
export const interval = ({ share, low, high, budget, most, served }) => {
  const at = (value) => `${Math.min(100, (100 * value) / most)}%`;
  const fill = !served ? 'f3' : budget !== null && share > budget ? 'fbad' : 'f5';
  return s('svg', { class: 'interval', 'aria-hidden': 'true' },
    s('rect', { x: 0, y: 12, width: '100%', height: 6, rx: 3, class: 'track' }),
    s('rect', { x: at(low), y: 12, width: `${Math.max(0.5, (100 * (Math.min(high, most) - low)) / most)}%`, height: 6, rx: 3, class: `${fill} faint` }),
    s('circle', { cx: at(share), cy: 15, r: 5, class: fill }),
    budget === null ? null : s('line', { x1: at(budget), x2: at(budget), y1: 4, y2: 26, class: 'budget' }));
};
