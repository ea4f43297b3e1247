// Numbers as people read them.

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });

export const count = (value) => (Math.abs(value) < 100_000 ? whole.format(value) : short.format(value));

export const percent = (share, digits = 1) => `${(100 * share).toFixed(share > 0 && share < 0.01 && digits < 2 ? 2 : digits)}%`;

export const times = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

export const took = (milliseconds) => {
  if (milliseconds === null || milliseconds === undefined) return '';
  if (milliseconds < 0.0995) return `${Math.max(1, Math.round(milliseconds * 1000))} µs`;
  if (milliseconds < 10) return `${milliseconds.toFixed(milliseconds < 0.995 ? 2 : 1)} ms`;
  if (milliseconds < 999.5) return `${Math.round(milliseconds)} ms`;
  return `${(milliseconds / 1000).toFixed(milliseconds < 9950 ? 2 : 1)} s`;
};

export const span = (seconds) => {
  const size = Math.abs(seconds);
  if (size < 1) return `${Math.round(seconds * 1000)} ms`;
  if (size < 100) return `${Math.round(seconds)} s`;
  if (size < 7200) return `${Math.round(seconds / 60)} min`;
  if (size < 172_800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86_400).toFixed(1)} days`;
};

export const bytes = (value) => {
  if (value === undefined) return '';
  for (const [name, size] of [['GB', 1e9], ['MB', 1e6], ['kB', 1e3]]) {
    if (value >= size) return `${(value / size).toFixed(value < 10 * size ? 1 : 0)} ${name}`;
  }
  return `${value} B`;
};

export const money = (value, currency) => {
  try {
    const digits = value !== 0 && Math.abs(value) < 1 ? 4 : 2;
    return new Intl.NumberFormat('en', { style: 'currency', currency, minimumFractionDigits: 2, maximumFractionDigits: digits }).format(value);
  } catch {
    return value.toFixed(2);
  }
};

export const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString('en-GB');
