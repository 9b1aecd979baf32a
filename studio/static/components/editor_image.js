// The image that an editor works on: its tokens by the current model, and how well they reconstruct it.
import { ApiError, postBytes, withQuery } from '../lib/api.js';
import { bytesOf, pngSource, sourceOf } from '../lib/images.js';
import { currentVersion, describeModel, selectVersion } from './version_select.js';

/**
 * Any image -> {tokens, source, reconstruction, psnr, version, model, caption, image}.
 * A generated image has its tokens and selects its own model; any other image is encoded by the current model.
 */
export async function loadEditorImage(image) {
  return image.tokens ? fromTokens(image) : fromPixels(image, await currentVersion());
}

/** The same image, encoded by the current version: the tokens of one model mean nothing to another. */
export const reloadEditorImage = async ({ image }) => fromPixels(image, await currentVersion());

async function fromTokens(image) {
  const version = image.version ?? (await currentVersion());
  const model = await modelWithGrid(version);
  selectVersion(version);
  const source = sourceOf(image);
  const { tokens, caption = '' } = image;
  return { tokens, source, reconstruction: source, psnr: null, version, model, caption, image };
}

async function fromPixels(image, version) {
  const model = await modelWithGrid(version);
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

/** The model; throws ApiError if its tokens form several scales and not one grid. */
async function modelWithGrid(version) {
  const model = await describeModel(version);
  if (!model.side)
    throw new ApiError('The tokens of this model do not form one grid, so they cannot be edited. Choose another model.', {
      status: 422,
    });
  return model;
}
