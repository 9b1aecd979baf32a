// Surprisal: how many bits each token of an image costs, given a caption.
import { postJson } from '../lib/api.js';
import { announce, button, el, img, metadataList, onSubmit } from '../lib/dom.js';
import { pngSource } from '../lib/images.js';
import { t } from '../lib/language.js';
import { clearNotice, showError } from './notice.js';

/** Set up the form; `currentTokens()` gives {tokens, version}, `showCell(row, column)` selects a cell of the grid. */
export function createSurprisal(part, { currentTokens, showCell }) {
  const form = part.surprisal;

  async function measure() {
    try {
      clearNotice(part.surprisalNotice, form);
      form.classList.add('busy');
      const { tokens, version } = currentTokens();
      const answer = await postJson('/api/likelihood', { prompt: form.elements.prompt.value, tokens, version });
      showResult(part.surprisalResult, answer, showCell);
    } catch (error) {
      showError(part.surprisalNotice, error, { retry: measure, form });
    } finally {
      form.classList.remove('busy');
    }
  }

  onSubmit(form, measure);
  return {
    start(caption) {
      form.elements.prompt.value = caption;
      this.clear();
    },
    /** Hide the result, because the tokens have changed. */
    clear() {
      part.surprisalResult.hidden = true;
    },
  };
}

function showResult(place, answer, showCell) {
  const leastLikely = answer.least_likely.map(({ row, column, token, bits }) => {
    const content = [
      el('span', {}, t`Row ${row + 1}, column ${column + 1}`),
      el('span', { class: 'muted' }, t`token ${token}`),
      el('b', {}, t`${bits.toFixed(1)} bits`),
    ];
    return el('li', {}, button(content, 'least-likely', () => showCell(row, column), { class: 'chip' }));
  });
  place.replaceChildren(
    img(pngSource(answer.png), t`Heat map: bright cells have a high surprisal`, { class: '', 'data-testid': 'heat-map' }),
    metadataList([
      [t`Image`, t`${answer.image_bits.toFixed(1)} bits`],
      [t`Caption`, answer.caption_bits === null ? null : t`${answer.caption_bits.toFixed(1)} bits`],
      [t`Per token`, t`${answer.bits_per_token.toFixed(2)} bits`],
      [t`Random guess`, t`${answer.uniform_bits_per_token.toFixed(2)} bits`],
    ]),
    el('h3', {}, t`Least likely tokens`),
    el('ul', { class: 'least-likely' }, leastLikely),
  );
  place.hidden = false;
  announce(t`The image costs ${answer.image_bits.toFixed(0)} bits.`);
}
