// A grid of candidates: empty slots first, images as they arrive, then an animated move into the order of their scores.
import { button, el, img } from '../lib/dom.js';
import { altOf, sourceOf } from '../lib/images.js';
import { t } from '../lib/language.js';

const MOVE = { duration: 520, easing: 'cubic-bezier(.2, .7, .2, 1)' };
const APPEAR = { duration: 240, easing: 'ease-out' };

/** `number` empty slots. */
export function emptySlots(number) {
  return Array.from({ length: number }, () =>
    el('li', { class: 'slot' }, el('div', { class: 'candidate pending', 'aria-hidden': 'true' })),
  );
}

/** A candidate as a button; a click calls `open`. */
export function candidateButton(image, open) {
  const score = image.score.toFixed(3);
  return button([img(sourceOf(image), ''), el('span', { class: 'score' }, score)], 'candidate', open, {
    class: 'candidate',
    'data-candidate': image.candidate,
    'data-score': image.score,
    'aria-label': altOf(image) + t`, score ${score}`,
  });
}

export function fillSlot(slot, candidate) {
  slot.replaceChildren(candidate);
  const steps = [{ opacity: 0, transform: 'scale(.96)' }, { opacity: 1, transform: 'none' }];
  if (isMotionAllowed()) candidate.animate(steps, APPEAR);
}

/** Reorder the slots and animate each one from its old to its new position (FLIP: first, last, invert, play). */
export function reorderSlots(list, slots) {
  const before = slots.map((slot) => slot.getBoundingClientRect());
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  list.append(...slots);
  focused?.focus({ preventScroll: true }); // an element that is moved in the document loses the focus
  if (isMotionAllowed()) slots.forEach((slot, index) => animateFrom(slot, before[index]));
}

function animateFrom(slot, before) {
  const after = slot.getBoundingClientRect();
  const [x, y] = [before.left - after.left, before.top - after.top];
  if (x || y) slot.animate([{ transform: `translate(${x}px, ${y}px)` }, { transform: 'none' }], MOVE);
}

const isMotionAllowed = () => !matchMedia('(prefers-reduced-motion: reduce)').matches;
