// What is drawn of each answer of /live: figures, charts and tables. Nothing in them can be pressed but the outcomes.

import { fall, interval, keys, stacked } from './charts.js';
import { $, cell, h, tell } from './dom.js';
import { bytes, count, money, percent, span, times, took } from './format.js';

// Each tier has one colour, everywhere.
export const TIERS = { memory: 'f3', disk: 'f4', redis: 'f4', memcached: 'f7', semantic: 'f5', flight: 'f6', sidecar: 'f4' };
const OTHERS = ['miss', 'bypass', 'refresh'];
const STAGES = ['key', 'memory', 'wait', 'pool', 'store', 'embed', 'search', 'decide', 'load', 'put'];
const OUTCOMES = { miss: 'loaded', bypass: 'went by', refresh: 'loaded behind' };
const FILLS = { miss: 'f2', refresh: 'f2', bypass: 'f6' };
const LEAST_ASKED = 3;
// So many seconds are drawn at least, however young the sidecar is.
const SHORTEST = 120;
const YOUNG = 2;

const sum = (values) => values.reduce((one, other) => one + other, 0);
const isTier = (name) => name && !OTHERS.includes(name) && name !== 'error' && !name.startsWith('fault ');
// Of a function's name what says most: "openai.chat.completions" is chat.completions.
const plain = (name) => name.replace(/^(openai|anthropic)\./, '');
const nameOf = (outcome) => OUTCOMES[outcome] ?? (outcome === 'semantic' ? 'near match' : outcome);

const tile = (label, figure, notes, tone = '') =>
  h('div', { class: 'tile' }, h('h2', {}, label), h('b', { class: tone }, figure), notes.map((note) => h('span', {}, note)));

const wrongTile = ({ kind, wrong, budget, cut }) => {
  const bound = budget === undefined || budget === null ? 'no budget is set' : `budget ${percent(budget)}`;
  if (kind === 'threshold') return tile('wrong near hits', 'not known', [`a fixed cut of ${cut}`, 'nothing bounds what it gets wrong']);
  if (kind === 'tuned') return tile('wrong near hits', `≤ ${percent(budget)}`, ['as it was tuned; not measured here']);
  if (!wrong?.wrong_labels) return tile('wrong near hits', 'not known', ['no label yet', bound]);
  const tone = !wrong.served || budget === null ? '' : wrong.share > budget ? 'bad' : 'good';
  const whose = wrong.served ? 'of what is served' : 'of all near ones; none is served';
  return tile('wrong near hits', percent(wrong.share), [`95% interval ${percent(wrong.low).slice(0, -1)}–${percent(wrong.high)}, ${times(wrong.wrong_labels, 'label')}`, `${bound}; ${whose}`], tone);
};

const tiles = (live, currency) => {
  const hits = sum(Object.entries(live.minute).filter(([name]) => isTier(name)).map(([, number]) => number));
  const asked = hits + (live.minute.miss ?? 0);
  const { sums, since } = live.saved;
  const tokens = sums.saved_prompt_tokens + sums.saved_completion_tokens;
  const [half, late] = live.whole.hits;
  const [all, allLate] = live.whole.lookups;
  $('tiles').replaceChildren(
    tile('answered from the cache', asked ? percent(hits / asked) : '–', [`${count(hits)} of ${times(asked, 'lookup')} in the last minute`, `${percent(live.hit_rate)} since it began`]),
    tile('money saved', money(sums.saved_money, currency), [`${times(tokens, 'token')}, ${span(Math.abs(sums.saved_seconds))} of waiting${sums.saved_seconds < 0 ? ' added' : ''}`, since === 'start' ? 'since it began' : 'in 30 days, all replicas']),
    wrongTile(live.policy),
    tile('a hit takes', asked && hits ? took(half) : '–', [hits ? `99 of 100 at most ${took(late)}` : 'no hit in the last minute', all ? `with loads ${took(all)}, and ${took(allLate)}` : '']),
  );
};

const charts = ({ series, uptime }) => {
  const { step, until, elapsed } = series;
  const number = Math.min(600, Math.max(SHORTEST, uptime)) / step;
  const by = Object.fromEntries(Object.entries(series.by).map(([name, values]) => [name, values.slice(-Math.ceil(number))]));
  const tiers = Object.keys(by).filter(isTier).sort((one, other) => Object.keys(TIERS).indexOf(one) - Object.keys(TIERS).indexOf(other));
  const zeros = () => new Array(Math.ceil(number)).fill(0);
  // The last step has just begun: while it is young it is drawn together with the one before.
  const young = elapsed < YOUNG;
  const of = (name) => by[name] ?? zeros();
  const drawn = (name, at) => of(name)[at] + (young && at === zeros().length - 1 ? of(name)[at - 1] : 0);
  const asked = zeros().map((_, at) => sum([...tiers, 'miss'].map((name) => drawn(name, at))));
  const seconds = (at) => (at === asked.length - 1 ? elapsed + (young ? step : 0) : step);
  const rates = tiers.map((name) => ({ name, fill: TIERS[name] ?? 'f7', values: asked.map((all, at) => (all ? drawn(name, at) / all : 0)) }));
  const all = sum([...tiers, 'miss'].map((name) => sum(of(name))));
  const told = tiers.map((name) => `${nameOf(name)} ${percent(sum(of(name)) / all)}`).join(', ');
  keys($('rate-keys'), tiers.map((name) => [TIERS[name] ?? 'f7', nameOf(name)]));
  stacked($('rate'), {
    until, step, series: rates, most: 1, unit: (value) => percent(value, 0), label: `Hit rate by tier: ${told || 'no hit'}`,
    read: (at) => (asked[at] ? `${times(asked[at], 'lookup')}; ${rates.map(({ name, values }) => `${nameOf(name)} ${percent(values[at])}`).join(', ') || 'no hit'}` : 'no lookup'),
  });
  tell($('rate-told'), all ? `Of ${times(all, 'lookup')} in ten minutes: ${told || 'no hit'}.` : 'No lookup in ten minutes.');
  const flows = [['hits', 'f5', tiers], ['loaded', 'f2', ['miss', 'refresh']], ['went by', 'f6', ['bypass']]].map(([name, fill, names]) => ({
    name, fill, values: zeros().map((_, at) => sum(names.map((one) => drawn(one, at))) / seconds(at)),
  }));
  const errors = zeros().map((_, at) => drawn('error', at) / seconds(at));
  keys($('flow-keys'), [...flows.map(({ fill, name }) => [fill, name]), ['fbad', 'errors']]);
  stacked($('flow'), {
    until, step, series: flows, lines: sum(errors) ? [{ values: errors, stroke: 'sbad' }] : [], unit: (value) => (value < 10 ? Number(value.toFixed(1)) : count(value)),
    label: `Lookups and errors a second: ${times(sum(of('error')), 'error')}`,
    read: (at) => `${[...flows, { name: 'errors', values: errors }].map(({ name, values }) => `${name} ${values[at].toFixed(1)}`).join(', ')} a second`,
  });
  const faults = Object.entries(by).filter(([name]) => name.startsWith('fault ')).map(([name, values]) => `${name.slice(6)} ${count(sum(values))}`);
  tell($('flow-told'), `A second. ${times(sum(of('error')), 'error')} of loads in ten minutes${faults.length ? `; tiers passed over: ${faults.join(', ')}` : ''}.`);
};

let chosen = '';

const waterfall = (live) => {
  const order = [...Object.keys(TIERS), ...OTHERS];
  const found = live.latencies.filter(({ outcome }) => outcome).sort((one, other) => order.indexOf(one.outcome) - order.indexOf(other.outcome));
  const shown = found.find(({ outcome }) => outcome === chosen) ?? found.toSorted((one, other) => Object.keys(other.stages).length - Object.keys(one.stages).length)[0];
  const place = $('outcomes');
  const names = found.map(({ outcome }) => outcome);
  if (place.dataset.told !== names.join()) {
    place.dataset.told = names.join();
    const held = place.contains(document.activeElement) ? document.activeElement.dataset.name : '';
    place.replaceChildren(...names.map((name) => h('button', { type: 'button', 'data-name': name, onclick: () => { chosen = name; waterfall(live); } }, nameOf(name))));
    if (held) place.querySelector(`[data-name="${held}"]`)?.focus();
  }
  for (const button of place.children) button.setAttribute('aria-pressed', button.dataset.name === shown?.outcome);
  if (!shown) {
    $('waterfall').replaceChildren();
    $('by-outcome').replaceChildren();
    tell($('waterfall-told'), 'No lookup in the last minute.');
    return;
  }
  const own = STAGES.filter((stage) => shown.stages[stage] && stage !== 'load');
  const whole = sum(own.map((stage) => shown.stages[stage][1])) || 1;
  const scale = 1.2 * whole; // what is later than that is cut off
  let begin = 0;
  const rows = own.map((stage) => {
    const [number, median, late] = shown.stages[stage];
    const drawn = fall(begin / scale, median / scale, Math.min(late, scale - begin) / scale);
    begin += median;
    return h('div', { class: 'stage' }, h('span', {}, stage), drawn, h('span', { class: 'figures', title: times(number, 'time') }, `${took(median)} · ${took(late)}`));
  });
  $('waterfall').replaceChildren(...rows);
  $('by-outcome').replaceChildren(...found.map((one) => h('tr', {}, h('td', {}, h('span', { class: `dot ${TIERS[one.outcome] ?? FILLS[one.outcome] ?? 'f7'}` }), nameOf(one.outcome)), cell(count(one.count)), cell(took(one.whole[0])), cell(took(one.whole[1])))));
  const load = shown.stages.load;
  const loads = load ? ` The load itself: ${took(load[1])} · ${took(load[2])}.` : '';
  tell($('waterfall-told'), `The median, and the 99th percentile, of lookups that were so in the last minute.${loads}`);
};

const word = (family) => {
  if (family.state === 'alarm') return h('span', { class: 'bad' }, 'alarm');
  return h('span', { class: family.served ? 'good' : '' }, family.served ? `open from ${Number(family.cut.toFixed(4))}` : 'closed');
};

const needed = (family) => {
  if (family.served || family.needed === null) return '';
  if (family.needed === undefined) return '';
  return ` of ${count(family.needed)}`;
};

const policy = (told) => {
  const budget = told.budget ?? null;
  const parts = [h('p', { class: 'lead' }, told.told)];
  for (const obstacle of told.obstacles ?? []) parts.push(h('p', { class: 'warn' }, obstacle));
  if (told.kind === 'threshold') parts.push(h('p', {}, `A fixed cut: near matches from ${told.cut} on are served, and nothing bounds how many are wrong. A budget would (budget:0.01).`));
  if (told.alarms) parts.push(h('p', { class: 'bad' }, `${times(told.alarms, 'alarm')}: what had opened was closed, until new labels open it anew.`));
  if (told.wrong?.wrong_labels) {
    const most = Math.min(1, Math.max(told.wrong.high, 2 * (budget ?? 0)) * 1.05 || 1);
    parts.push(h('div', { class: 'estimate' }, h('p', {}, `${told.wrong.served ? 'Of what is served' : 'Of all near matches that were compared'}, ${percent(told.wrong.share)} were wrong (${percent(told.wrong.low)} to ${percent(told.wrong.high)})${budget === null ? '' : `; the budget is ${percent(budget)}`}.`),
      interval({ ...told.wrong, budget, most }), h('div', { class: 'ends note' }, h('span', {}, '0%'), h('span', {}, percent(most)))));
  }
  const asked = (told.families ?? []).filter(({ wrong_labels: labels, near }) => labels || near);
  if (asked.length) {
    parts.push(h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Families' }, h('table', {},
      h('thead', {}, h('tr', {}, ['family', 'state', 'labels', 'wrong'].map((name) => h('th', { scope: 'col' }, name)))),
      h('tbody', {}, asked.slice(0, 6).map((family) => h('tr', {}, h('td', { class: 'wrap', title: family.name }, plain(family.name), h('small', {}, ` ${family.id ?? ''}`)), h('td', {}, word(family)),
        cell(`${count(family.labels)}${needed(family)}`), cell(family.share === null ? '' : percent(family.share))))))));
  }
  const offers = (told.families ?? [])[0]?.offers ?? [];
  if (told.kind === 'shadow' && offers.length) {
    parts.push(h('ul', { class: 'plain note' }, offers.map((offer) => h('li', {}, offer.cut === null
      ? `a budget of ${percent(offer.budget)}: ${offer.needed === null ? 'no number of labels is enough' : `${times(offer.needed, 'label')} missing`}`
      : `a budget of ${percent(offer.budget)} would serve ${percent(offer.served)} of what misses, from ${offer.cut} on`))));
  }
  const refused = Object.entries(told.not_served).sort((one, other) => other[1] - one[1]).slice(0, 5);
  if (refused.length) parts.push(h('p', { class: 'note' }, `Not served: ${refused.map(([why, number]) => `${why} ${count(number)}`).join(', ')}.`));
  return parts;
};

// A table that a keyboard may stand in is drawn anew only where it says something new.
const drawn = (place, told, make) => {
  const now = JSON.stringify(told);
  if (place.dataset.drawn === now) return;
  place.dataset.drawn = now;
  place.replaceChildren(...make());
};

const saved = ({ rows, since, sums }, namespace, currency) => {
  tell($('saved-since'), `${since === 'start' ? 'since it began' : 'in 30 days'}${namespace ? `, ${namespace}` : ''}`);
  const row = (one, name, attributes = {}) => h('tr', attributes, h('td', { class: 'wrap' }, plain(name), one.model ? h('small', {}, ` ${one.model}`) : null), cell(one.hits === undefined ? '' : count(one.hits + one.near_hits)),
    cell(count(one.saved_prompt_tokens + one.saved_completion_tokens)), cell(span(one.saved_seconds)), cell(money(one.saved_money, currency)));
  $('saved').replaceChildren(...(rows.length ? [...rows.slice(0, 8).map((one) => row(one, one.stage || '–')), row(sums, 'all', { class: 'this' })]
    : [h('tr', {}, h('td', { colspan: 5 }, 'Nothing yet.'))]));
};

const tiers = (live) => {
  const faults = {};
  for (const [told, number] of Object.entries(live.faults)) faults[told.split(': ')[0]] = (faults[told.split(': ')[0]] ?? 0) + number;
  $('tiers').replaceChildren(...live.tiers.map(({ name, figures, is_open: open }) => h('tr', {}, h('td', {}, h('span', { class: `dot ${TIERS[name] ?? 'f7'}` }), name),
    cell(figures.entries === undefined ? (figures.rows === undefined ? '' : count(figures.rows)) : count(figures.entries)), cell(bytes(figures.bytes)), cell(figures.evictions === undefined ? (figures.evicted === undefined ? '' : count(figures.evicted)) : count(figures.evictions)),
    h('td', { class: open ? 'bad' : '' }, open === null ? '' : open ? 'open' : 'closed'), cell(faults[name] ? count(faults[name]) : '0', { class: faults[name] ? 'warn' : '' }))));
  $('faults').replaceChildren(...Object.entries(live.faults).slice(0, 6).map(([told, number]) => h('li', {}, `${told}: ${times(number, 'time')}`)));
};

const never = ({ callers }) => {
  const asked = callers.filter((one) => one.hits + one.misses + one.bypasses >= LEAST_ASKED).slice(0, 12);
  $('never').replaceChildren(...(asked.length ? asked.map((one) => {
    const all = one.hits + one.misses + one.bypasses;
    const why = one.reasons.map(([reason, number]) => `${reason} ${count(number)}`).join(', ');
    return h('tr', {}, h('td', { title: one.function }, plain(one.function) || '–', one.stage && one.stage !== one.function ? h('small', {}, ` ${one.stage}`) : null, h('small', {}, ` ${one.model}`)), h('td', { class: 'clip left', title: one.tenant }, one.tenant || '–'),
      cell(count(all)), h('td', {}, one.hits ? percent(one.hits / all) : h('b', { class: 'bad' }, 'never')), h('td', { class: 'left' }, why));
  }) : [h('tr', {}, h('td', { colspan: 5 }, 'Nobody has asked three times yet.'))]));
};

export const draw = (live) => {
  const currency = live.prices.split(' ')[0] || 'USD';
  tiles(live, currency);
  charts(live);
  waterfall(live);
  const told = { ...live.policy, not_served: live.not_served };
  drawn($('policy'), told, () => policy(told));
  saved(live.saved, live.namespace, currency);
  tiers(live);
  never(live);
};
