// Errors, shown where they happened or beside the field with the wrong value, with a way to try again: now, or after the
// time that the server asks for.
import { connection } from '../lib/api.js';
import { announce, button, el, uniqueId } from '../lib/dom.js';
import { t } from '../lib/language.js';

const QUEUE_WAIT = 5; // seconds, if a full queue names no time

/** Show `error` in `place`; `retry` runs the action again. An aborted request is no error: the page stopped it itself. */
export function showError(place, error, { retry = null, form = null } = {}) {
  clearNotice(place);
  if (error.name === 'AbortError') return;
  if (!('status' in error)) throw error; // a bug of this page belongs in the console
  const field = form && error.field ? form.elements[error.field] : null;
  if (field instanceof HTMLElement) markField(field, error.message);
  else place.append(notice(error, place, retry));
  announce(error.message);
}

/** Remove what `showError` showed, and stop its countdown. */
export function clearNotice(place, form = null) {
  place.querySelector('.notice')?.dispatchEvent(new Event('removed'));
  place.replaceChildren();
  if (form) for (const field of form.querySelectorAll('[aria-invalid]')) unmarkField(field);
}

function notice(error, place, retry) {
  const text = el('p', {}, error.message);
  const box = el('div', { class: 'notice', role: 'alert', 'data-testid': 'notice', 'data-status': error.status }, text);
  if (!retry || !isRetryable(error.status)) return box;
  const tryAgain = () => {
    clearNotice(place);
    retry();
  };
  box.append(button(t`Try again`, 'retry', tryAgain));
  if (error.status === 429) startCountdown(box, text, error.retryAfter ?? QUEUE_WAIT, tryAgain, place);
  if (error.status === 0 || error.status === 503) retryWhenBack(box, tryAgain);
  return box;
}

/** Whether the same request may succeed later; not if the request itself is wrong. */
const isRetryable = (status) => status === 0 || status === 408 || status === 429 || status >= 500;

function startCountdown(box, text, seconds, tryAgain, place) {
  const countdown = el('p', { class: 'countdown', 'data-testid': 'countdown' });
  const show = () => {
    countdown.textContent = t`Trying again in ${seconds} s.`;
  };
  const timer = setInterval(() => {
    seconds -= 1;
    show();
    if (seconds <= 0) tryAgain();
  }, 1000);
  box.addEventListener('removed', () => clearInterval(timer));
  box.append(button(t`Cancel`, 'cancel-retry', () => clearNotice(place), { class: 'muted' }));
  text.after(countdown);
  show();
}

function retryWhenBack(box, tryAgain) {
  connection.addEventListener('back', tryAgain, { once: true });
  box.addEventListener('removed', () => connection.removeEventListener('back', tryAgain));
}

function markField(field, message) {
  unmarkField(field);
  field.closest('details')?.setAttribute('open', '');
  const text = el('span', { class: 'field-error', id: uniqueId('error'), 'data-testid': 'field-error' }, message);
  field.setAttribute('aria-invalid', 'true');
  field.setAttribute('aria-describedby', text.id);
  field.closest('label').append(text);
  field.addEventListener('input', () => unmarkField(field), { once: true });
  field.focus();
}

function unmarkField(field) {
  field.removeAttribute('aria-invalid');
  field.removeAttribute('aria-describedby');
  field.closest('label')?.querySelector('.field-error')?.remove();
}
