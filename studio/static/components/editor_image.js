// The image that an editor works on: its tokens by the current model, and how well they reconstruct it.
import { ApiError, postBytes, withQuery } from '../lib/api.js';
import { el } from '../lib/dom.js';
import { bytesOf, pngSource, sourceOf } from '../lib/images.js';
import { t } from '../lib/language.js';
import { dropZone } from './image_input.js';
import { clearNotice, showError } from './notice.js';
import { currentVersion, describeModel, selectVersion, versionChange } from './version_select.js';

const REFUSALS = {
  side: t`The tokens of this model form several grids, and its generator cannot keep a part of such an image. Choose another model.`,
  can_edit:
    t`The tokens of this model form several grids, and a coarse token covers many cells, so they cannot be edited one by one. Choose a model with one grid.`,
};

/**
 * Let an image be chosen in `place`, dropped, sent by another view, or encoded again when another model is selected ->
 * what a view returns: {enter, acceptFile}. `show(editorImage)` shows it; `needed` is as for loadEditorImage.
 */
export function createEditorInput(place, notice, { needed, hint, show }) {
  let current = null;
  const written = el('p', { class: 'muted', 'data-testid': 'written-caption', hidden: true });

  async function load(read) {
    const before = current;
    current = null; // an image selects its own model, which must not load the image before it again
    try {
      clearNotice(notice);
      place.classList.add('busy');
      const next = await read();
      await show(next);
      current = next;
      written.hidden = !next.isCaptionWritten;
      written.textContent = t`Caption written by the model: ${next.caption}`;
      place.classList.add('used');
    } catch (error) {
      current = before;
      showError(notice, error, { retry: () => load(read) });
    } finally {
      place.classList.remove('busy');
    }
  }

  const loadImage = (image) => load(() => loadEditorImage(image, needed));
  const acceptFile = (file) => loadImage({ file });
  place.append(dropZone({ label: t`Choose an image`, hint, onFile: acceptFile }), written);
  versionChange.addEventListener('change', async () => {
    const version = await currentVersion();
    if (!current || current.version === version) return;
    const { image } = current;
    load(() => fromPixels(image, version, needed)); // the tokens of one model mean nothing to another
  });
  return {
    enter(query, payload) {
      if (payload?.image) loadImage(payload.image);
    },
    acceptFile,
  };
}

/**
 * Any image -> {tokens, source, reconstruction, psnr, version, model, caption, isCaptionWritten, image}.
 * A generated image has its tokens and selects its own model; any other image is encoded by the current model, which also
 * writes a caption if it has a captioner and the image comes without one.
 * Throws ApiError if the model has not what the view needs: `side` to inpaint, `can_edit` to edit tokens.
 */
export async function loadEditorImage(image, needed) {
  return image.tokens ? fromTokens(image, needed) : fromPixels(image, await currentVersion(), needed);
}

async function fromTokens(image, needed) {
  const version = image.version ?? (await currentVersion());
  const model = await modelWith(needed, version);
  selectVersion(version);
  const source = sourceOf(image);
  const { tokens, caption = '' } = image;
  return { tokens, source, reconstruction: source, psnr: null, version, model, caption, image };
}

async function fromPixels(image, version, needed) {
  const model = await modelWith(needed, version);
  const answer = await postBytes(withQuery('/api/images', { version }), await bytesOf(image));
  const known = answer.provenance?.caption ?? (image.file ? '' : (image.caption ?? ''));
  return {
    tokens: answer.tokens,
    source: pngSource(answer.png),
    reconstruction: pngSource(answer.reconstruction),
    psnr: answer.psnr,
    version,
    model,
    caption: known || (answer.caption ?? ''),
    isCaptionWritten: !known && answer.caption !== null,
    image,
  };
}

async function modelWith(needed, version) {
  const model = await describeModel(version);
  if (!model[needed]) throw new ApiError(REFUSALS[needed], { status: 422 });
  return model;
}
