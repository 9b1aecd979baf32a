// Reproduce: the server generates an image again from the provenance in its file, and compares the bytes.
import { postBytes } from '../lib/api.js';
import { announce, el, img, labelOf, metadataList } from '../lib/dom.js';
import { pngSource } from '../lib/images.js';
import { t } from '../lib/language.js';

const SAME = t`The same image, byte for byte.`;
const DIFFERENT = t`A different image. The model, its settings or the machine are not the same as before.`;

/** Generate again -> {element: the result for the page; answer: the server's}. `source` is the src of the first image. */
export async function reproduce(blob, source, signal) {
  const answer = await postBytes('/api/reproduce', new Blob([blob], { type: 'image/png' }), signal);
  announce(answer.same ? SAME : DIFFERENT);
  return { element: resultOf(answer, source), answer };
}

function resultOf({ same, png }, source) {
  const attributes = { class: `reproduce-result ${same ? 'good' : 'bad'}`, 'data-same': String(same) };
  return el('section', { 'data-testid': 'reproduce-result', ...attributes },
    el('p', {}, el('span', { class: 'mark', 'aria-hidden': 'true' }, same ? '✓' : '≠'), same ? SAME : DIFFERENT),
    el('div', { class: 'before-after' }, figure(source, t`The file`), figure(pngSource(png), t`Generated now`)),
  );
}

const figure = (source, text) => el('figure', {}, img(source, text), el('figcaption', {}, text));

/** The provenance of an image as a list: with the settings, without the fixed tokens; long fingerprints are shortened. */
export function provenanceList({ settings, fixedTokens, ...provenance }) {
  const values = Object.entries({ ...provenance, kind: fixedTokens ? t`inpainted` : null, ...settings });
  const shorten = (value) => (/^[0-9a-f]{24,}$/.test(value) ? `${value.slice(0, 12)}…` : value);
  const shown = values.filter(([, value]) => typeof value !== 'object');
  return metadataList(shown.map(([key, value]) => [key === 'version' ? t`Model` : labelOf(key), shorten(value)]));
}
