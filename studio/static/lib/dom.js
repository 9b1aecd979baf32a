// Helpers that all views use: elements, formatted values, announcements to screen readers, the confirm dialog.
import { language, t, translate } from './language.js';

/** An element with attributes, listeners (onclick: f) and children. Strings become text nodes and are never parsed as HTML. */
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

/** A button; `testid` names it for tests, a click calls `onclick`. */
export const button = (content, testid, onclick, attributes = {}) =>
  el('button', { type: 'button', 'data-testid': testid, onclick, ...attributes }, content);

/** Call `action` in place of the browser's own request when a form is submitted. */
export function onSubmit(form, action) {
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    action();
  });
}

/** The elements of a view by their data-part, in camel case: parts(view).leftName. */
export function parts(root) {
  const camelCase = (name) => name.replace(/-(\w)/g, (_, letter) => letter.toUpperCase());
  const elements = [...root.querySelectorAll('[data-part]')];
  return Object.fromEntries(elements.map((element) => [camelCase(element.dataset.part), element]));
}

/** "1 candidate", "16 candidates". */
export const pluralize = (number, noun, plural = `${noun}s`) => translate(`{0} ${number === 1 ? noun : plural}`, number);

/** "top_k" -> "Top k". */
export const labelOf = (key) => translate((key[0].toUpperCase() + key.slice(1)).replaceAll('_', ' '));

/** Announce an event to screen readers; not for every step of a progress bar. */
export function announce(text) {
  document.getElementById('announcer').textContent = text;
}

let lastId = 0;
export const uniqueId = (prefix) => `${prefix}-${++lastId}`;

/** An <img> with sharp pixels, because the images are small; src is a data:, blob: or same-origin address. */
export const img = (src, alt, attributes = {}) => el('img', { src, alt, class: 'pixels', draggable: 'false', ...attributes });

const SVG_NAMESPACE = 'http://www.w3.org/2000/svg';

/** An SVG element with attributes and children. */
export function svgElement(tag, attributes, ...children) {
  const element = document.createElementNS(SVG_NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/**
 * Let the button and Escape call `stop` -> onChange(isRunning), which shows the button only while something runs.
 * Escape closes an open dialog first, and does nothing for a view that is not shown.
 */
export function initStopButton(view, button, stop) {
  button.addEventListener('click', stop);
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && view.isConnected && !document.querySelector('dialog[open]')) stop();
  });
  return (isRunning) => {
    // a hidden button would lose the keyboard focus
    if (!isRunning && document.activeElement === button) view.querySelector('[type=submit]').focus();
    button.hidden = !isRunning;
  };
}

/** "Mon 22 Nov, 12:00" in the user's language and time zone. */
export function formatDate(iso) {
  const date = new Date(iso);
  const format = { weekday: 'short', day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit' };
  return Number.isNaN(date.getTime()) ? iso : date.toLocaleString(language === 'en' ? undefined : language, format);
}

/** An image with its caption, and a note in small letters. */
export const captionedImage = (source, caption, note) =>
  el('figure', { class: 'captioned-image' }, img(source, caption), el('figcaption', {}, caption, el('small', {}, note)));

/** A definition list of [name, value] pairs; pairs without a value are left out. */
export function metadataList(pairs) {
  const withValue = pairs.filter(([, value]) => value !== undefined && value !== null && value !== '');
  const rows = withValue.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, String(value))));
  return el('dl', { class: 'metadata' }, rows);
}

/** Ask before something is deleted -> true if the user confirms. */
export function confirmAction(question, confirmLabel) {
  const dialog = document.getElementById('confirm');
  return new Promise((resolve) => {
    dialog.returnValue = '';
    dialog.replaceChildren(
      el('form', { method: 'dialog' },
        el('p', {}, question),
        el('div', { class: 'controls' },
          el('button', { value: '' }, t`Cancel`),
          el('button', { value: 'yes', class: 'primary', 'data-testid': 'confirm-yes' }, confirmLabel),
        ),
      ),
    );
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true });
    dialog.showModal();
  });
}
