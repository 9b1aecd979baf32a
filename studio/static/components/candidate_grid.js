// A list of candidates: empty places at once, pictures as they come, then a smooth change into the order of their scores.
import { el, image } from './pieces.js';
import { altOf, sourceOf } from './pictures.js';

const MOVE = { duration: 520, easing: 'cubic-bezier(.2, .7, .2, 1)' };
const APPEAR = { duration: 240, easing: 'ease-out' };

/** `number` empty places. */
export function placeholders(number) {
  return Array.from({ length: number }, () =>
    el('li', { class: 'tile-place' }, el('div', { class: 'tile pending', 'aria-hidden': 'true' })),
  );
}

/** A candidate as a button that opens it. */
export function tile(picture, open) {
  const score = typeof picture.score === 'number' ? picture.score.toFixed(3) : null;
  return el(
    'button',
    {
      type: 'button',
      class: 'tile',
      'data-testid': 'tile',
      'data-candidate': picture.candidate,
      'data-score': picture.score,
      'aria-label': `${altOf(picture)}${score ? `, score ${score}` : ''}`,
      onclick: open,
    },
    image(sourceOf(picture), ''),
    el('span', { class: 'score' }, score ?? ' '),
  );
}

/** Puts the tile into its place. */
export function fill(place, filled) {
  place.replaceChildren(filled);
  if (moves())
    filled.animate(
      [
        { opacity: 0, transform: 'scale(.96)' },
        { opacity: 1, transform: 'none' },
      ],
      APPEAR,
    );
}

/** Re-orders the places: each is seen to move from where it was to where it belongs (FLIP: first, last, invert, play). */
export function reorder(list, places) {
  const before = places.map((place) => place.getBoundingClientRect());
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  list.append(...places);
  focused?.focus({ preventScroll: true }); // an element that is moved loses the focus
  if (moves()) places.forEach((place, index) => moveFrom(place, before[index]));
}

function moveFrom(place, before) {
  const after = place.getBoundingClientRect();
  const [x, y] = [before.left - after.left, before.top - after.top];
  if (x || y) place.animate([{ transform: `translate(${x}px, ${y}px)` }, { transform: 'none' }], MOVE);
}

const moves = () => !matchMedia('(prefers-reduced-motion: reduce)').matches;
