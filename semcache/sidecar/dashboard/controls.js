// The kill switch, the theme, and the question for a token.

import { Refused, post, token } from './api.js';
import { $, armed, tell } from './dom.js';

const THEME = 'semcache-theme';
const THEMES = ['system', 'light', 'dark'];

const themed = (name) => {
  if (name === 'system') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  tell($('theme'), `Theme: ${name}`);
};

const theme = () => {
  let name = localStorage.getItem(THEME) ?? 'system';
  themed(THEMES.includes(name) ? name : 'system');
  $('theme').addEventListener('click', () => {
    name = THEMES[(THEMES.indexOf(name) + 1) % THEMES.length];
    localStorage.setItem(THEME, name);
    themed(name);
  });
};

let mode = 'live';

export const moded = (now) => {
  mode = now;
  tell($('mode-now'), `mode ${now}`);
  $('mode-now').classList.toggle('strict', now !== 'live');
};

const chosen = () => new FormData($('mode-form')).get('mode');

const killSwitch = (changed) => {
  const dialog = $('mode-dialog');
  const told = $('mode-told');
  const set = async () => {
    told.className = '';
    tell(told, 'switching…');
    try {
      const answer = await post('mode', { mode: chosen() });
      moded(answer.mode);
      dialog.close();
      changed({ isOther: false });
    } catch (error) {
      told.className = 'bad';
      tell(told, error instanceof Refused ? error.told : 'the sidecar does not answer');
    }
  };
  const { press, rest } = armed($('mode-switch'), () => `Switch to ${chosen() ?? 'off'}`, () => `Press again: all replicas to ${chosen()}`, set);
  $('mode').addEventListener('click', () => {
    for (const radio of $('mode-form').elements.mode) radio.checked = radio.value === (mode === 'live' ? 'off' : 'live');
    told.className = '';
    tell(told, `Now it is ${mode}.`);
    rest();
    dialog.showModal();
  });
  $('mode-form').addEventListener('change', rest);
  $('mode-form').addEventListener('submit', press);
  $('mode-cancel').addEventListener('click', () => dialog.close());
  dialog.addEventListener('close', rest);
};

export const ask = (why = '') => {
  tell($('token-wrong'), why);
  if (!$('token-dialog').open) $('token-dialog').showModal();
};

const tokens = (changed) => {
  const dialog = $('token-dialog');
  $('token-form').addEventListener('submit', (event) => {
    event.preventDefault();
    token.set($('token').value.trim());
    $('token').value = '';
    dialog.close();
  });
  // However it was closed: without a token that is known it opens again.
  dialog.addEventListener('close', () => changed({ isOther: true }));
  $('forget').addEventListener('click', () => {
    token.forget();
    changed({ isOther: true });
  });
};

export const begin = (changed) => {
  theme();
  tokens(changed);
  killSwitch(changed);
};
