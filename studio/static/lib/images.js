// A picture as views hand it about: {png | url | file, words, version, caption, seed, candidate, candidates, score, given}.
// png is base64, url an address of this server, file a Blob of the reader's.
import { getBytes } from './api.js';

/** An address for <img>. */
export function sourceOf(picture) {
  if (picture.png) return `data:image/png;base64,${picture.png}`;
  return picture.url ?? (picture.shown ??= URL.createObjectURL(picture.file));
}

/** Its bytes as they are, provenance included. */
export async function bytesOf(picture) {
  if (picture.file) return picture.file;
  if (picture.url) return getBytes(picture.url);
  const bytes = Uint8Array.from(atob(picture.png), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: 'image/png' });
}

/** For those who cannot see it. */
export const altOf = (picture) =>
  picture.candidate === undefined ? (picture.caption ?? 'The picture') : `Candidate ${picture.candidate} of “${picture.caption}”`;

/** "a red star", seed 7, candidate 3 -> "a-red-star-seed-7-candidate-3.png". */
export function fileName({ caption, seed, candidate }) {
  const slug = (caption ?? '')
    .toLowerCase()
    .replace(/[^\p{Letter}\p{Number}]+/gu, '-')
    .replace(/^-+|-+$/g, '')
    .slice(0, 60);
  const parts = [slug || 'picture'];
  if (seed !== undefined) parts.push(`seed-${seed}`);
  if (candidate !== undefined) parts.push(`candidate-${candidate}`);
  return `${parts.join('-')}.png`;
}

/** Saves a picture to the reader's disk. */
export async function download(picture) {
  const address = URL.createObjectURL(await bytesOf(picture));
  const link = document.createElement('a');
  Object.assign(link, { href: address, download: fileName(picture) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000); // not at once: some browsers read it after the click
}
