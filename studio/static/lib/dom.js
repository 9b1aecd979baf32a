// Small things every view is made of: elements, words for numbers, announcements.

/** An element with attributes, listeners (onclick: f) and children. Text becomes text nodes: never parsed as HTML. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** The elements of a view by their data-part: parts(view).status. */
export function parts(root) {
  const found = {};
  for (const element of root.querySelectorAll('[data-part]')) found[camel(element.dataset.part)] = element;
  return found;
}

const camel = (name) => name.replace(/-(\w)/g, (_, letter) => letter.toUpperCase());

/** "1 candidate", "16 candidates". */
export const count = (number, noun) => `${number} ${noun}${number === 1 ? '' : 's'}`;

/** Tells those who cannot see the page what happened; for moments, not for every step of a bar. */
export function announce(text) {
  document.getElementById('announcer').textContent = text;
}

let lastId = 0;
export const freshId = (prefix) => `${prefix}-${++lastId}`;

/** A picture of few pixels is shown with its pixels; src is a data:, blob: or same-origin address. */
export const image = (src, alt, attributes = {}) => el('img', { src, alt, class: 'pixels', draggable: 'false', ...attributes });

const SHAPES = 'http://www.w3.org/2000/svg';

/** A die that shows five; drawn here because fonts differ in whether they have one. */
export function dice() {
  const svg = document.createElementNS(SHAPES, 'svg');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('aria-hidden', 'true');
  const frame = document.createElementNS(SHAPES, 'rect');
  for (const [name, value] of Object.entries({ x: 3.5, y: 3.5, width: 17, height: 17, rx: 4 })) frame.setAttribute(name, value);
  svg.append(
    frame,
    ...[
      [8, 8],
      [16, 8],
      [12, 12],
      [8, 16],
      [16, 16],
    ].map(dot),
  );
  return svg;
}

function dot([x, y]) {
  const circle = document.createElementNS(SHAPES, 'circle');
  for (const [name, value] of Object.entries({ cx: x, cy: y, r: 1.6 })) circle.setAttribute(name, value);
  return circle;
}

/** A seed short enough to be read to somebody; the server takes far larger ones. */
export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;

/** Puts the die onto its button and lets it fill the form's seed. */
export function armDice(button, form) {
  button.append(dice());
  button.addEventListener('click', () => {
    form.elements.seed.value = randomSeed();
    form.elements.seed.dispatchEvent(new Event('input', { bubbles: true }));
  });
}

/**
 * Lets the button and Escape stop what runs -> onChange(isRunning), which shows the button while there is something to stop.
 * Escape belongs to a dialog first, and to no view that is not looked at.
 */
export function armStop(view, button, stop) {
  button.addEventListener('click', stop);
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && view.isConnected && !document.querySelector('dialog[open]')) stop();
  });
  return (isRunning) => {
    // the button goes, the focus shall not
    if (!isRunning && document.activeElement === button) view.querySelector('[type=submit]').focus();
    button.hidden = !isRunning;
  };
}

/** "Mon 22 Nov, 12:00" in the reader's own language and time zone. */
export function when(iso) {
  const date = new Date(iso);
  const format = { weekday: 'short', day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit' };
  return Number.isNaN(date.getTime()) ? iso : date.toLocaleString(undefined, format);
}

/** A definition list of facts; those without a value are left out. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== undefined && value !== null && value !== '');
  return el(
    'dl',
    { class: 'facts' },
    known.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, String(value)))),
  );
}

/** Asks before something is lost -> true if it shall be done. */
export function confirmed(question, yes) {
  const dialog = document.getElementById('confirm');
  return new Promise((resolve) => {
    dialog.returnValue = '';
    dialog.replaceChildren(
      el(
        'form',
        { method: 'dialog' },
        el('p', {}, question),
        el(
          'div',
          { class: 'controls' },
          el('button', { value: '' }, 'Keep it'),
          el('button', { value: 'yes', class: 'primary', 'data-testid': 'confirm-yes' }, yes),
        ),
      ),
    );
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true });
    dialog.showModal();
  });
}
