// Stitching: the left columns of the picture on the bench, the rest of a second one.
import { getJson } from './api.js';
import { clearNotice, showError } from './notice.js';
import { el, image } from './pieces.js';
import { readPiece } from './piece.js';
import { dropZone } from './source.js';

const SHOWN = 6; // draws of the gallery to choose from

/** Arms the section; `piece()` is the picture on the bench, `apply(change, done)` changes its words. */
export function makeStitch(part, { piece, apply }) {
  async function take(picture) {
    try {
      clearNotice(part.secondNotice);
      const second = await readPiece(picture);
      showSecond(part.second, second, piece().model.side, (columns) =>
        apply(
          { stitch: { words: second.words, columns } },
          `The left ${columns} columns of this picture, the rest of the second.`,
        ),
      );
    } catch (error) {
      showError(part.secondNotice, error, { retry: () => take(picture) });
    }
  }

  async function offerGallery() {
    const { draws } = await getJson(`/api/gallery?limit=${SHOWN}`);
    const fitting = draws.filter(({ version, best }) => version === piece().version && best.length);
    part.secondSource.querySelector('.picks')?.remove();
    if (fitting.length)
      part.secondSource.append(
        el(
          'div',
          { class: 'picks', role: 'group', 'aria-label': 'Or one of the gallery' },
          fitting.map((draw) => pick(draw, take)),
        ),
      );
  }

  part.secondSource.append(
    dropZone({
      label: 'Choose the second picture',
      hint: 'or drop it here',
      testid: 'upload-second',
      onFile: (file) => take({ file }),
    }),
  );
  return {
    start() {
      part.second.hidden = true;
      offerGallery().catch((error) => showError(part.secondNotice, error, { retry: () => this.start() }));
    },
  };
}

/** Pixels, not words, are taken: the list does not tell a draw's words, and the picture tells them again. */
function pick({ best: [{ url }], prompt }, take) {
  return el(
    'button',
    {
      type: 'button',
      class: 'pick',
      'data-testid': 'pick',
      'aria-label': prompt,
      title: prompt,
      onclick: () => take({ url, caption: prompt }),
    },
    image(url, ''),
  );
}

function showSecond(place, second, side, stitch) {
  const label = el('span', {});
  const slider = el('input', {
    type: 'range',
    min: 1,
    max: side - 1,
    step: 1,
    value: Math.floor(side / 2),
    'data-testid': 'columns',
  });
  const tell = () => {
    label.textContent = `The left ${slider.value} of ${side} columns stay`;
  };
  slider.addEventListener('input', tell);
  tell();
  place.replaceChildren(
    image(second.rebuilt, 'The second picture'),
    el(
      'div',
      {},
      el('label', { class: 'field slider' }, label, slider),
      el('button', { type: 'button', 'data-testid': 'stitch', onclick: () => stitch(Number(slider.value)) }, 'Stitch'),
    ),
  );
  place.hidden = false;
}
