// Elements made of names, attributes and children. Text goes in as text: nothing here reads markup.

const SVG = 'http://www.w3.org/2000/svg';

const filled = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
};

export const $ = (id) => document.getElementById(id);
export const h = (name, attributes = {}, ...children) => filled(document.createElement(name), attributes, children);
export const s = (name, attributes = {}, ...children) => filled(document.createElementNS(SVG, name), attributes, children);

// Sets a text where it has changed, so that what is read aloud is read once.
export const tell = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

export const cell = (text, attributes = {}) => h('td', attributes, text);

// A button that does something only when it is pressed twice; in between it says so.
export const armed = (button, label, question, act) => {
  let timer = 0;
  const rest = () => {
    clearTimeout(timer);
    timer = 0;
    button.classList.remove('armed');
    button.textContent = typeof label === 'function' ? label() : label;
  };
  const press = (event) => {
    event?.preventDefault();
    if (!timer) {
      button.classList.add('armed');
      button.textContent = typeof question === 'function' ? question() : question;
      timer = setTimeout(rest, 5000);
      return;
    }
    rest();
    act();
  };
  rest();
  return { press, rest };
};
