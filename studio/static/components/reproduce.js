// "Byte for byte": sends a picture of the studio back to the server, which draws it again from what the file says of itself.
import { postBytes } from './api.js';
import { announce, el, facts, image } from './pieces.js';

const SAME = 'The same picture came, byte for byte.';
const OTHER = 'Another picture came. The model, its settings or the machine differ from then.';
const NAMES = {
  candidate: 'Candidate',
  candidates: 'Candidates',
  seed: 'Seed',
  version: 'Model',
  score: 'Score',
  fingerprint: 'Fingerprint',
  caption: 'Caption',
};

/** Draws again -> {box: what came of it, for the page; answer: the server's}. `source` is the first picture's address. */
export async function redraw(blob, source, signal) {
  const answer = await postBytes('/api/redraw', new Blob([blob], { type: 'image/png' }), signal);
  announce(answer.same ? SAME : OTHER);
  return { box: verdict(answer, source), answer };
}

function verdict({ same, png }, source) {
  return el(
    'section',
    { class: `verdict ${same ? 'good' : 'bad'}`, 'data-testid': 'redraw-result', 'data-same': String(same) },
    el('p', {}, el('span', { class: 'mark', 'aria-hidden': 'true' }, same ? '✓' : '≠'), same ? SAME : OTHER),
    el('div', { class: 'then-now' }, figure(source, 'The file'), figure(`data:image/png;base64,${png}`, 'Drawn now')),
  );
}

const figure = (source, text) => el('figure', {}, image(source, text), el('figcaption', {}, text));

/** What a picture tells of its making: the settings too, but not all given words; long fingerprints are shortened. */
export function provenanceFacts({ settings, given, ...told }) {
  return facts(
    Object.entries({ ...told, kind: given ? 'completion' : null, ...settings })
      .filter(([, value]) => typeof value !== 'object')
      .map(([key, value]) => [NAMES[key] ?? sentence(key), /^[0-9a-f]{24,}$/.test(value) ? `${value.slice(0, 12)}…` : value]),
  );
}

export const sentence = (key) => (key[0].toUpperCase() + key.slice(1)).replaceAll('_', ' ');
