// Image objects that views exchange: {png | url | file, tokens, version, caption, seed, candidate, candidates, score, fixedTokens}.
// png is base64, url is a path of this server, file is a Blob from the user.
import { getBytes } from './api.js';
import { t } from './language.js';

export const pngSource = (png) => `data:image/png;base64,${png}`;

/** The src for an <img>. */
export function sourceOf(image) {
  if (image.png) return pngSource(image.png);
  return image.url ?? (image.objectUrl ??= URL.createObjectURL(image.file));
}

/** The bytes of the file, with its provenance. */
export async function bytesOf(image) {
  if (image.file) return image.file;
  if (image.url) return getBytes(image.url);
  const bytes = Uint8Array.from(atob(image.png), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: 'image/png' });
}

/** The alternative text. */
export const altOf = (image) =>
  image.candidate === undefined ? (image.caption ?? t`The image`) : t`Candidate ${image.candidate} of “${image.caption}”`;

/** "a red star", seed 7, candidate 3 -> "a-red-star-seed-7-candidate-3.png". */
function fileName({ caption, seed, candidate }) {
  const slug = (caption ?? '')
    .toLowerCase()
    .replace(/[^\p{Letter}\p{Number}]+/gu, '-')
    .replace(/^-+|-+$/g, '')
    .slice(0, 60);
  const nameParts = [slug || 'image'];
  if (seed !== undefined) nameParts.push(`seed-${seed}`);
  if (candidate !== undefined) nameParts.push(`candidate-${candidate}`);
  return `${nameParts.join('-')}.png`;
}

/** Save an image on the user's disk. */
export const download = async (image) => saveFile(await bytesOf(image), fileName(image));

/** Save bytes on the user's disk. */
export function saveFile(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = document.createElement('a');
  Object.assign(link, { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000); // some browsers read the file after the click
}
