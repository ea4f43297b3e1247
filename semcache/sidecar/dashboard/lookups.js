// The recent lookups: searched, opened for why, and acted on.

import { Refused, get, post } from './api.js';
import { TIERS } from './panels.js';
import { $, armed, h, tell } from './dom.js';
import { clock, count, times, took } from './format.js';

const LIMIT = 50;
const OPEN = new Set();
const known = new Map();
let waiting = 0;

const fillOf = (one) => (one.kind === 'hit' ? (TIERS[one.tier] ?? 'f7') : one.failed ? 'fbad' : one.kind === 'bypass' ? 'f6' : 'f2');

const nameOf = (one) => {
  if (one.kind === 'hit') return one.tier === 'semantic' ? 'near match' : one.similarity === null ? one.tier : `near, ${one.tier}`;
  if (one.failed) return 'failed load';
  return { miss: 'loaded', bypass: 'went by', refresh: 'loaded behind' }[one.kind] ?? one.kind;
};

const whole = (one) => one.stages.reduce((sum, [, milliseconds]) => sum + milliseconds, 0);

const said = (place, text, tone = '') => {
  place.className = tone;
  tell(place, text);
};

// What was asked of the sidecar, and what it says: in words, as text.
const act = async (place, path, body, words) => {
  said(place, 'asking…');
  try {
    const answer = await post(path, body);
    said(place, '', '');
    place.append(...[words(answer)].flat());
  } catch (error) {
    said(place, error instanceof Refused ? error.told : 'the sidecar does not answer', 'bad');
  }
};

const blast = ({ rows }) => {
  if (!rows.length) return 'in seven days it was given to nobody else as a near match';
  const row = (one) => h('li', {}, h('q', {}, one.text), ` was given the answer of `, h('q', {}, one.stored_text), ` (cosine ${one.similarity.toFixed(4)}, ${new Date(one.at).toLocaleString('en-GB')}${one.tenant ? `, tenant ${one.tenant.slice(0, 8)}` : ''})`);
  return [`given as a near match ${times(rows.length, 'time')} in seven days:`, h('ul', {}, rows.slice(0, 50).map(row))];
};

const stands = ({ stands: found }) => {
  const life = (one) => (one.remaining === null ? 'no end' : `${Math.round(one.remaining)} s left`);
  if (!found.tiers.length) return 'nothing stands there now';
  return found.tiers.map((one) => `${one.tier}: ${count(one.bytes)} bytes, loaded ${Math.round(one.age)} s ago, ${life(one)}${one.is_pinned ? ', pinned' : ''}`).join('; ');
};

const actions = (one) => {
  const place = h('div', { role: 'status' });
  const entry = one.neighbour ?? one.key;
  const button = (label, question, path, body, words) => {
    const made = h('button', { type: 'button' });
    made.addEventListener('click', armed(made, label, question, () => act(place, path, body, words)).press);
    return made;
  };
  const plain = (label, path, body, words) => h('button', { type: 'button', onclick: () => act(place, path, body, words) }, label);
  if (!one.key) return h('p', { class: 'note' }, 'It went by: nothing is kept of it.');
  return h('div', {}, h('div', { class: 'buttons' },
    one.kind === 'hit' ? button('This was wrong', 'Wrong? Press again', 'wrong', { key: one.key }, (told) => told.told) : null,
    button('Invalidate', 'Drop it everywhere? Press again', 'invalidate', { key: entry }, (told) => `${times(told.entries, 'entry', 'entries')} dropped, everywhere`),
    plain('Blast radius', 'blast', { key: entry }, blast),
    plain('What stands now', 'explain', { key: entry }, stands)), place);
};

const details = (one) => {
  const pair = (name, value) => (value ? [h('dt', {}, name), h('dd', {}, value)] : []);
  return h('tr', { class: 'details', id: `lookup-${one.number}` }, h('td', { colspan: 6 },
    h('ul', { class: 'why' }, one.why.map((sentence) => h('li', {}, sentence))),
    h('dl', {}, pair('asked', one.text), pair('near to', one.neighbour_text), pair('tenant', one.tenant), pair('call', one.function === one.stage ? one.function : `${one.function} ${one.stage}`),
      pair('key', one.key && h('code', {}, one.key)), pair('entry', one.neighbour && h('code', {}, one.neighbour)),
      pair('stages', one.stages.map(([stage, milliseconds]) => `${stage} ${took(milliseconds)}`).join(' · '))),
    actions(one)));
};

const toggled = (one, row, button) => {
  const isOpen = !OPEN.has(one.number);
  button.setAttribute('aria-expanded', isOpen);
  if (isOpen) {
    OPEN.add(one.number);
    row.after(details(one));
    button.setAttribute('aria-controls', `lookup-${one.number}`);
  } else {
    OPEN.delete(one.number);
    $(`lookup-${one.number}`)?.remove();
    button.removeAttribute('aria-controls');
  }
};

const made = (one) => {
  const button = h('button', { type: 'button', class: 'open', 'aria-expanded': 'false' }, clock(one.at));
  const row = h('tr', { class: 'lookup' }, h('td', { class: 'left' }, button),
    h('td', { class: 'left' }, h('span', { class: `dot ${fillOf(one)}` }), h('span', { class: one.failed ? 'bad' : '' }, nameOf(one))),
    h('td', { class: 'left text' }, one.text || h('i', {}, one.function || '–')), h('td', { class: 'left model' }, one.model || '–'),
    h('td', { class: 'cosine' }, one.similarity === null ? '' : one.similarity.toFixed(3)), h('td', {}, took(whole(one))));
  button.addEventListener('click', () => toggled(one, row, button));
  row.addEventListener('click', (event) => {
    if (event.target !== button && !getSelection().toString()) button.click();
  });
  return row;
};

// Rows that are there stay as they are, and where the focus is; those that are open stay until they are closed.
const shown = (lookups) => {
  const place = $('rows');
  const wanted = new Set(lookups.map((one) => one.number));
  for (const [number, row] of known) {
    if (wanted.has(number) || (OPEN.has(number) && !$('search').value)) continue;
    OPEN.delete(number);
    $(`lookup-${number}`)?.remove();
    row.remove();
    known.delete(number);
  }
  let next = place.firstElementChild;
  for (const one of lookups) {
    const row = known.get(one.number);
    if (row) {
      next = row.nextElementSibling?.classList.contains('details') ? row.nextElementSibling.nextElementSibling : row.nextElementSibling;
    } else {
      known.set(one.number, made(one));
      place.insertBefore(known.get(one.number), next);
    }
  }
  const none = $('none');
  none.hidden = lookups.length > 0;
  tell(none, $('search').value || $('kind').value ? 'None of the latest lookups is like that.' : 'Nobody has asked yet.');
};

let latest = 0;

export const refresh = async ({ asked = false } = {}) => {
  if (!asked && (!$('follow').checked || OPEN.size)) {
    tell($('found'), OPEN.size && $('follow').checked ? 'stands still while one is open' : '');
    return;
  }
  const search = $('search').value.trim();
  const number = ++latest;
  const { lookups } = await get('lookups', { search, kind: $('kind').value, limit: LIMIT });
  if (number !== latest) return; // an earlier question, answered late
  shown(lookups);
  tell($('found'), search || $('kind').value ? times(lookups.length, 'lookup') : '');
};

export const begin = (failed) => {
  const soon = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => refresh({ asked: true }).catch(failed), 150);
  };
  $('search').addEventListener('input', soon);
  $('kind').addEventListener('change', soon);
  $('follow').addEventListener('change', soon);
};

export const forget = () => {
  known.clear();
  OPEN.clear();
  $('rows').replaceChildren();
};
