// What is asked of the sidecar. A token stays in this tab, and goes as a header alone.

const NAME = 'semcache-token';
const PATIENCE = 10_000;

export class Refused extends Error {
  constructor(status, told) {
    super(told.message ?? `the sidecar answered ${status}`);
    this.status = status;
    this.mend = told.mend ?? '';
  }

  get told() {
    return this.mend ? `${this.message}: ${this.mend}` : this.message;
  }
}

export const token = {
  get: () => sessionStorage.getItem(NAME) ?? '',
  set: (value) => sessionStorage.setItem(NAME, value),
  forget: () => sessionStorage.removeItem(NAME),
};

const asked = async (path, options) => {
  const headers = { accept: 'application/json', ...options.headers };
  if (token.get()) headers['x-semcache-token'] = token.get();
  const response = await fetch(path, { ...options, headers, cache: 'no-store', credentials: 'omit', signal: AbortSignal.timeout(PATIENCE) });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, body.error ?? {});
  return body;
};

export const get = (path, query = {}) => {
  const told = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== '')).toString();
  return asked(`semcache/v1/${path}${told && `?${told}`}`, {});
};

export const post = (path, body) =>
  asked(`semcache/v1/${path}`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
