// The image that an editor works on: its tokens by the current model, and how well they reconstruct it.
import { ApiError, postBytes, withQuery } from '../lib/api.js';
import { bytesOf, pngSource, sourceOf } from '../lib/images.js';
import { t } from '../lib/language.js';
import { currentVersion, describeModel, selectVersion } from './version_select.js';

const REFUSALS = {
  side: t`The tokens of this model form several grids, and its generator cannot keep a part of such an image. Choose another model.`,
  can_edit:
    t`The tokens of this model form several grids, and a coarse token covers many cells, so they cannot be edited one by one. Choose a model with one grid.`,
};

/**
 * Any image -> {tokens, source, reconstruction, psnr, version, model, caption, image}.
 * A generated image has its tokens and selects its own model; any other image is encoded by the current model.
 * Throws ApiError if the model has not what the view needs: `side` to inpaint, `can_edit` to edit tokens.
 */
export async function loadEditorImage(image, needed) {
  return image.tokens ? fromTokens(image, needed) : fromPixels(image, await currentVersion(), needed);
}

/** The same image, encoded by the current version: the tokens of one model mean nothing to another. */
export const reloadEditorImage = async ({ image }, needed) => fromPixels(image, await currentVersion(), needed);

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
  return {
    tokens: answer.tokens,
    source: pngSource(answer.png),
    reconstruction: pngSource(answer.reconstruction),
    psnr: answer.psnr,
    version,
    model,
    caption: answer.provenance?.caption ?? (image.file ? '' : (image.caption ?? '')),
    image,
  };
}

async function modelWith(needed, version) {
  const model = await describeModel(version);
  if (!model[needed]) throw new ApiError(REFUSALS[needed], { status: 422 });
  return model;
}
