// A picture on the workbench: its words by the model that is worked with, and how well they tell it.
import { ApiError, postBytes, withQuery } from './api.js';
import { bytesOf, sourceOf } from './pictures.js';
import { chooseVersion, currentVersion, describe } from './versions.js';

/**
 * {words, source, rebuilt, psnr, version, model, caption, origin} of a picture of any kind.
 * One that a model drew has its words with it, and brings its model along; any other is read by the current one.
 */
export async function readPiece(picture) {
  return picture.words ? pieceOfWords(picture) : pieceOfPixels(picture, await currentVersion());
}

/** The same picture as the version that is now worked with sees it: numbers of one model mean nothing to another. */
export const rereadPiece = async ({ origin }) => pieceOfPixels(origin, await currentVersion());

async function pieceOfWords(picture) {
  const version = picture.version ?? (await currentVersion());
  const model = await gridModel(version);
  chooseVersion(version);
  const source = sourceOf(picture);
  return {
    words: picture.words,
    source,
    rebuilt: source,
    psnr: null,
    version,
    model,
    caption: picture.caption ?? '',
    origin: picture,
  };
}

async function pieceOfPixels(picture, version) {
  const model = await gridModel(version);
  const read = await postBytes(withQuery('/api/pictures', { version }), await bytesOf(picture));
  return {
    words: read.words,
    source: pngSource(read.png),
    rebuilt: pngSource(read.rebuilt),
    psnr: read.psnr,
    version,
    model,
    caption: read.provenance?.caption ?? (picture.file ? '' : (picture.caption ?? '')),
    origin: picture,
  };
}

/** The model, if its words form one grid; those of several scales do not. */
async function gridModel(version) {
  const model = await describe(version);
  if (!model.side)
    throw new ApiError(
      'The words of this model form no single grid, so they cannot be looked at one by one. Choose another model.',
      { status: 422 },
    );
  return model;
}

export const pngSource = (png) => `data:image/png;base64,${png}`;
