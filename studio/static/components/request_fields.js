// The number of candidates and the seed of a form: a new random seed for each request, or a fixed one. The die switches between
// them; a seed that is typed or comes from an address is fixed.
import { svgElement } from '../lib/dom.js';
import { t } from '../lib/language.js';

/** Put the fields in place of `place` -> {fix(value), next()} of the seed; call next() before each request. */
export function initRequestFields(form, place, candidates) {
  place.replaceWith(document.getElementById('request-fields').content.cloneNode(true));
  form.elements.candidates.value = candidates;
  const { seed } = form.elements;
  const die = form.querySelector('[data-testid=random-seed]');
  const label = seed.closest('label').querySelector('span');
  const isRandom = () => die.getAttribute('aria-pressed') === 'true';

  function setRandom(random) {
    die.setAttribute('aria-pressed', String(random));
    label.textContent = random ? t`Seed (random)` : t`Seed (fixed)`;
  }

  die.append(dieIcon());
  die.addEventListener('click', () => {
    setRandom(!isRandom());
    if (isRandom()) seed.value = '';
  });
  seed.addEventListener('input', () => setRandom(seed.value === ''));
  seed.placeholder = t`random`;
  setRandom(true);
  return {
    fix(value) {
      if (value === undefined || value === '') return;
      seed.value = value;
      setRandom(false);
    },
    next() {
      if (isRandom()) seed.value = randomSeed();
    },
  };
}

/** A short seed, easy to read aloud; the server accepts far larger ones. */
const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;

/** The icon of a die that shows five; SVG, because some fonts lack the character. */
function dieIcon() {
  const centers = [[8, 8], [16, 8], [12, 12], [8, 16], [16, 16]];
  const dots = centers.map(([cx, cy]) => svgElement('circle', { cx, cy, r: 1.6 }));
  const frame = svgElement('rect', { x: 3.5, y: 3.5, width: 17, height: 17, rx: 4 });
  return svgElement('svg', { viewBox: '0 0 24 24', 'aria-hidden': 'true' }, frame, ...dots);
}
