// The dashboard: asks each other second while somebody looks, and shows what it is told.

import { Refused, get, token } from './api.js';
import * as controls from './controls.js';
import { $, tell } from './dom.js';
import { clock, span } from './format.js';
import * as lookups from './lookups.js';
import { draw } from './panels.js';

const EVERY = 2000;
let timer = 0;
let turn = 0;
let live = null;
let since = 0; // when it answered last
let isOwn = false; // a tenant's token: its lookups alone

const gone = (why) => {
  $('gone').hidden = !why;
  if (why) tell($('gone'), why);
  document.body.classList.toggle('stale', Boolean(why));
};

const shown = (told) => {
  live = told;
  draw(told);
  controls.moded(told.mode);
  tell($('namespace'), told.namespace);
  tell($('about'), `semcache ${told.version}, up for ${span(told.uptime)}${told.texts ? '' : '; texts are not shown (dashboard_texts)'}`);
  document.title = told.namespace ? `${told.namespace} · semcache` : 'semcache';
};

const failed = (error) => {
  if (error instanceof Refused && error.status === 401) {
    gone('');
    controls.ask(token.get() ? error.message : '');
    return;
  }
  if (error instanceof Refused && error.status < 500) {
    gone(error.told);
    return;
  }
  const when = since ? ` since ${clock(since)}` : '';
  gone(`No answer from the sidecar${when}. What stands here is of then; it is asked again each other second.`);
  tell($('state'), 'gone');
  $('state').className = 'state bad';
};

const sums = async () => {
  if (isOwn) return;
  try {
    shown(await get('live'));
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 403) throw error;
    isOwn = true;
  }
};

const ask = async () => {
  clearTimeout(timer);
  const own = ++turn;
  try {
    await sums();
    await lookups.refresh();
    if (own !== turn) return;
    since = Date.now() / 1000;
    gone('');
    const state = isOwn ? 'live' : { ok: 'live', loading: 'loading the model', draining: 'draining' }[live.state];
    tell($('state'), state);
    $('state').className = `state ${state === 'live' ? 'good' : 'warn'}`;
  } catch (error) {
    if (own !== turn) return;
    failed(error);
  }
  $('sums').hidden = isOwn || live === null;
  $('own').hidden = !isOwn;
  $('mode').hidden = isOwn;
  $('forget').hidden = !token.get();
  if (!document.hidden && !$('token-dialog').open) timer = setTimeout(ask, EVERY);
};

// Who asks is another, or what holds is: nothing that was shown before is shown on.
const anew = () => {
  isOwn = false;
  live = null;
  lookups.forget();
  ask();
};

document.addEventListener('visibilitychange', () => {
  clearTimeout(timer);
  if (document.hidden) turn += 1;
  else ask();
});
new ResizeObserver(() => live && !isOwn && draw(live)).observe($('rate'));

controls.begin(({ isOther }) => (isOther ? anew() : ask()));
lookups.begin(failed);
$('sums').hidden = true;
$('token-dialog').addEventListener('cancel', (event) => event.preventDefault());
ask();
