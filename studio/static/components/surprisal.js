// "What surprises the model?": how many bits each word of a picture costs, given a caption.
import { postJson } from './api.js';
import { clearNotice, showError } from './notice.js';
import { announce, el, facts, image } from './pieces.js';
import { pngSource } from './piece.js';

/** Arms the form; `state()` gives {words, version}, `jump(row, column)` shows a cell. */
export function makeSurprise(part, { state, jump }) {
  const form = part.surprise;

  async function ask() {
    try {
      clearNotice(part.surpriseNotice, form);
      form.classList.add('busy');
      const { words, version } = state();
      const answer = await postJson('/api/likelihood', { prompt: form.elements.prompt.value, words, version });
      showAnswer(part.answer, answer, jump);
    } catch (error) {
      showError(part.surpriseNotice, error, { retry: ask, form });
    } finally {
      form.classList.remove('busy');
    }
  }

  form.addEventListener('submit', (event) => {
    event.preventDefault();
    ask();
  });
  return {
    start(caption) {
      form.elements.prompt.value = caption;
      this.forget();
    },
    forget() {
      part.answer.hidden = true;
    }, // the words have changed, so it is no longer true
  };
}

function showAnswer(place, answer, jump) {
  const worst = answer.worst.map(({ row, column, word, bits }) =>
    el(
      'li',
      {},
      el(
        'button',
        {
          type: 'button',
          class: 'chip',
          'data-testid': 'worst',
          onclick: () => jump(row, column),
        },
        el('span', {}, `Row ${row + 1}, column ${column + 1}`),
        el('span', { class: 'quiet' }, `word ${word}`),
        el('b', {}, `${bits.toFixed(1)} bits`),
      ),
    ),
  );
  place.replaceChildren(
    image(pngSource(answer.png), 'Heat map: light where a word surprises', { class: '', 'data-testid': 'heat' }),
    el(
      'div',
      { 'data-testid': 'bits' },
      facts([
        ['The picture', `${answer.picture_bits.toFixed(1)} bits`],
        ['The caption', `${answer.caption_bits.toFixed(1)} bits`],
        ['A word', `${answer.bits_per_word.toFixed(2)} bits`],
        ['A blind guess', `${answer.blind_bits_per_word.toFixed(2)} bits`],
      ]),
    ),
    el('h3', {}, 'Least expected'),
    el('ul', { class: 'worst' }, worst),
  );
  place.hidden = false;
  announce(`The picture holds ${answer.picture_bits.toFixed(0)} bits.`);
}
