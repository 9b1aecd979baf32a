// Stitch: the left columns of the edited image, and the other columns of a second image.
import { getJson } from '../lib/api.js';
import { button, el, img } from '../lib/dom.js';
import { t } from '../lib/language.js';
import { loadEditorImage } from './editor_image.js';
import { dropZone } from './image_input.js';
import { clearNotice, showError } from './notice.js';

const NUM_PICKS = 6; // gallery entries to choose from

/** Set up the section; `editorImage()` gives the edited image, `apply(change, message)` changes its tokens. */
export function createStitch(part, { editorImage, apply }) {
  async function load(image) {
    try {
      clearNotice(part.secondNotice);
      const second = await loadEditorImage(image, 'can_edit');
      showSecond(part.second, second, editorImage().model.side, (columns) => {
        const message = t`The left ${columns} columns are from this image, the others from the second.`;
        apply({ stitch: { tokens: second.tokens, columns } }, message);
      });
    } catch (error) {
      showError(part.secondNotice, error, { retry: () => load(image) });
    }
  }

  async function showGalleryPicks() {
    const { entries } = await getJson(`/api/gallery?limit=${NUM_PICKS}`);
    const usable = entries.filter(({ version, best }) => version === editorImage().version && best.length);
    part.secondInput.querySelector('.picks')?.remove();
    const attributes = { class: 'picks', role: 'group', 'aria-label': t`Or choose one from the gallery` };
    if (usable.length) part.secondInput.append(el('div', attributes, usable.map((entry) => pickButton(entry, load))));
  }

  const texts = { label: t`Choose the second image`, hint: t`or drop it here` };
  part.secondInput.append(dropZone({ ...texts, testid: 'upload-second', onFile: (file) => load({ file }) }));
  return {
    start() {
      part.second.hidden = true;
      showGalleryPicks().catch((error) => showError(part.secondNotice, error, { retry: () => this.start() }));
    },
  };
}

/** The gallery's list has no tokens, so the image is encoded from its pixels. */
function pickButton({ best: [{ url }], prompt }, load) {
  const attributes = { class: 'pick', 'aria-label': prompt, title: prompt };
  return button(img(url, ''), 'pick', () => load({ url, caption: prompt }), attributes);
}

function showSecond(place, second, side, stitch) {
  const label = el('span', {});
  const range = { min: 1, max: side - 1, step: 1, value: Math.floor(side / 2) };
  const slider = el('input', { type: 'range', 'data-testid': 'columns', ...range });
  const showColumns = () => {
    label.textContent = t`Keep the left ${slider.value} of ${side} columns`;
  };
  slider.addEventListener('input', showColumns);
  showColumns();
  place.replaceChildren(
    img(second.reconstruction, t`The second image`),
    el('div', {},
      el('label', { class: 'field slider' }, label, slider),
      button(t`Stitch`, 'stitch', () => stitch(Number(slider.value))),
    ),
  );
  place.hidden = false;
}
