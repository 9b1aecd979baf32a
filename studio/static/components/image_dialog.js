// The dialog of one image: large, with its provenance and all actions on it.
import { postBytes, postJson, withQuery } from '../lib/api.js';
import { announce, button, captionedImage, el, img } from '../lib/dom.js';
import { altOf, bytesOf, download, pngSource, sourceOf } from '../lib/images.js';
import { t } from '../lib/language.js';
import { openView } from '../lib/router.js';
import { clearNotice, showError } from './notice.js';
import { provenanceList, reproduce } from './reproduce.js';
import { currentVersion } from './version_select.js';

const INDEXING_POLL_INTERVAL = 1500; // milliseconds, while the server encodes its dataset
let current = null; // {images, index, abort}

const dialog = document.getElementById('image-dialog');
dialog.addEventListener('close', () => {
  if (dialog.open) return; // it was opened again before this event: the running work belongs to the new image
  current?.abort.abort();
  dialog.replaceChildren(); // no hidden buttons in the document
});
dialog.addEventListener('click', (event) => {
  if (event.target === dialog) dialog.close(); // a click on the backdrop
});
dialog.addEventListener('keydown', (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && current.images[current.index + step]) openImageDialog(current.images, current.index + step);
});

/** Open images[index]; the arrow keys move to the others. */
export function openImageDialog(images, index = 0) {
  current?.abort.abort();
  current = { images, index, abort: new AbortController() };
  const step = document.activeElement?.dataset.step; // keep the focus on the previous or next button
  fillDialog(images[index], current.abort.signal);
  if (!dialog.open) dialog.showModal();
  (dialog.querySelector(`[data-step="${step}"]:enabled`) ?? document.getElementById('image-dialog-title')).focus();
}

/** Open a file that the studio made, and reproduce it at once. */
export function openStudioImage(file) {
  openImageDialog([{ file, caption: file.name }]);
  dialog.querySelector('[data-testid=reproduce]').click();
}

function fillDialog(image, signal) {
  const results = el('div', { class: 'results' });
  const title = el('h2', { id: 'image-dialog-title', tabindex: '-1' }, image.caption ?? t`An image`);
  const metadata = el('div', {}, provenanceList(metadataOf(image)));
  const addProvenance = ({ caption, fixed_tokens: fixedTokens, ...provenance }) => {
    title.textContent = caption ?? title.textContent;
    metadata.replaceChildren(provenanceList({ ...metadataOf(image), ...provenance, fixedTokens }));
  };
  dialog.replaceChildren(
    el('div', { class: 'dialog-header' },
      title,
      button('×', 'close', () => dialog.close(), { class: 'icon', 'aria-label': t`Close` }),
      stepper(),
    ),
    el('div', { class: 'dialog-body' },
      img(sourceOf(image), altOf(image), { 'data-testid': 'dialog-image' }),
      el('div', {}, metadata, actions(image, results, addProvenance, signal)),
    ),
    results,
  );
}

function stepper() {
  const { images, index } = current;
  if (images.length < 2) return null;
  const to = (step, testid, label, sign) => {
    const attributes = { class: 'icon', 'aria-label': label, 'data-step': step, disabled: !images[index + step] };
    return button(sign, testid, () => openImageDialog(images, index + step), attributes);
  };
  return el('div', { class: 'stepper' },
    to(-1, 'previous', t`Previous image`, '‹'),
    el('span', {}, t`${index + 1} of ${images.length}`),
    to(1, 'next', t`Next image`, '›'),
  );
}

const metadataOf = ({ seed, candidate, candidates, version, score, fixedTokens }) =>
  ({ seed, candidate, candidates, version, fixedTokens, score: score?.toFixed(3) });

function actions(image, results, addProvenance, signal) {
  const run = (action) => () => runAction(results, action);
  const sendTo = (view) => () => {
    dialog.close();
    openView(view, {}, { image });
  };
  return el('div', { class: 'actions' },
    button(t`Download`, 'download', run(() => download(image))),
    button(t`Reproduce, byte for byte`, 'reproduce', run(() => showReproduced(image, results, addProvenance, signal))),
    button(t`Inpaint`, 'to-inpaint', sendTo('inpaint')),
    button(t`Edit tokens`, 'to-tokens', sendTo('tokens')),
    button(t`Find nearest training images`, 'nearest', run(() => showNearest(image, results, signal))),
  );
}

async function runAction(results, action) {
  clearNotice(results);
  try {
    await action();
    results.scrollIntoView({ block: 'nearest' });
  } catch (error) {
    showError(results, error, { retry: () => runAction(results, action) });
  }
}

async function showReproduced(image, results, addProvenance, signal) {
  results.replaceChildren(el('p', { class: 'status busy' }, t`Generating it again …`));
  const { element, answer } = await reproduce(await bytesOf(image), sourceOf(image), signal);
  addProvenance(answer.provenance);
  if (image.file && answer.same) {
    // the file has the tokens of the new image exactly, so it need not be encoded from pixels
    const { tokens, version, provenance: { caption, seed, candidate } } = answer;
    Object.assign(image, { tokens, version, caption, seed, candidate });
  }
  results.replaceChildren(element);
}

async function showNearest(image, results, signal) {
  const version = image.version ?? (await currentVersion());
  const tokens = image.tokens ?? (await postBytes(withQuery('/api/images', { version }), await bytesOf(image), signal)).tokens;
  for (;;) {
    const answer = await postJson('/api/nearest', { tokens, version }, signal);
    results.replaceChildren(nearestOf(answer));
    if (answer.state !== 'indexing') return announce(t`The nearest training images are shown.`);
    await new Promise((resolve) => setTimeout(resolve, INDEXING_POLL_INTERVAL));
    signal.throwIfAborted();
  }
}

function nearestOf({ state, done, total, images }) {
  if (state === 'indexing')
    return el('p', { class: 'status busy', 'data-testid': 'indexing' }, t`Encoding the training images: ${done} of ${total}`);
  if (state === 'none') return el('p', { class: 'status' }, t`There are no training images here to compare with.`);
  const items = images.map(({ png, caption, key, score }) =>
    el('li', {}, captionedImage(pngSource(png), caption, `${key} · ${score.toFixed(3)}`)));
  return el('section', { 'data-testid': 'nearest-result' },
    el('h3', {}, t`Nearest training images`),
    el('ul', { class: 'image-grid small' }, items),
  );
}
