// Shows an error where it happened, beside the field at fault, with a way on: try again, now or
// after the time the server asks for.
import { connection } from './api.js';
import { announce, el, freshId } from './pieces.js';

const QUEUE_WAIT = 5; // seconds, where a full queue names no time

/** Shows `error` in `place`; `retry` is what to do again. An abort is no error: we ended it ourselves. */
export function showError(place, error, { retry = null, form = null } = {}) {
  clearNotice(place);
  if (error.name === 'AbortError') return;
  if (!('status' in error)) throw error; // a mistake of this page belongs in the console
  const field = form && error.field ? form.elements[error.field] : null;
  if (field instanceof HTMLElement) markField(field, error.message);
  else place.append(notice(error, place, retry));
  announce(error.message);
}

/** Takes away what `showError` showed, its countdown too. */
export function clearNotice(place, form = null) {
  place.querySelector('.notice')?.dispatchEvent(new Event('gone'));
  place.replaceChildren();
  if (form) for (const field of form.querySelectorAll('[aria-invalid]')) unmarkField(field);
}

function notice(error, place, retry) {
  const words = el('p', {}, error.message);
  const box = el('div', { class: 'notice', role: 'alert', 'data-testid': 'notice', 'data-status': error.status }, words);
  if (!retry || !mayPass(error.status)) return box;
  const again = () => {
    clearNotice(place);
    retry();
  };
  box.append(el('button', { type: 'button', 'data-testid': 'retry', onclick: again }, 'Try again'));
  if (error.status === 429) countDown(box, words, error.retryAfter ?? QUEUE_WAIT, again, place);
  if (error.status === 0 || error.status === 503) retryWhenBack(box, again);
  return box;
}

/** Whether the same request may go well later: not, where the request itself was refused. */
const mayPass = (status) => status === 0 || status === 408 || status === 429 || status >= 500;

function countDown(box, words, seconds, again, place) {
  const left = el('p', { class: 'countdown', 'data-testid': 'countdown' });
  const show = () => {
    left.textContent = `Asking again in ${seconds} s.`;
  };
  const timer = setInterval(() => {
    seconds -= 1;
    show();
    if (seconds <= 0) again();
  }, 1000);
  box.addEventListener('gone', () => clearInterval(timer));
  box.append(el('button', { type: 'button', class: 'quiet', onclick: () => clearNotice(place) }, 'Give up'));
  words.after(left);
  show();
}

function retryWhenBack(box, again) {
  connection.addEventListener('back', again, { once: true });
  box.addEventListener('gone', () => connection.removeEventListener('back', again));
}

function markField(field, message) {
  unmarkField(field);
  field.closest('details')?.setAttribute('open', '');
  const words = el('span', { class: 'field-error', id: freshId('error'), 'data-testid': 'field-error' }, message);
  field.setAttribute('aria-invalid', 'true');
  field.setAttribute('aria-describedby', words.id);
  field.closest('label').append(words);
  field.addEventListener('input', () => unmarkField(field), { once: true });
  field.focus();
}

function unmarkField(field) {
  field.removeAttribute('aria-invalid');
  field.removeAttribute('aria-describedby');
  field.closest('label')?.querySelector('.field-error')?.remove();
}
