// The dialog of one picture: large, its facts, and everything that can be done with it.
import { postBytes, postJson, withQuery } from './api.js';
import { provenanceFacts, redraw } from './redraw.js';
import { clearNotice, showError } from './notice.js';
import { announce, el, image } from './pieces.js';
import { altOf, bytesOf, download, sourceOf } from './pictures.js';
import { go } from './router.js';
import { currentVersion } from './versions.js';

const READING_PAUSE = 1500; // milliseconds until a server that reads its data is asked again
let shown = null; // {pictures, index, abort}

const dialog = document.getElementById('detail');
dialog.addEventListener('close', () => {
  if (dialog.open) return; // opened again before this was heard: what runs belongs to the new picture
  shown?.abort.abort();
  dialog.replaceChildren(); // its buttons shall not be found while it is not there
});
dialog.addEventListener('click', (event) => {
  if (event.target === dialog) dialog.close();
}); // outside of the sheet
dialog.addEventListener('keydown', (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && shown.pictures[shown.index + step]) openDetail(shown.pictures, shown.index + step);
});

/** Opens pictures[index]; the arrow keys step through the others. */
export function openDetail(pictures, index = 0) {
  shown?.abort.abort();
  shown = { pictures, index, abort: new AbortController() };
  const step = document.activeElement?.dataset.step; // one who steps on by a button wants to do so again
  fillDialog(pictures[index], shown.abort.signal);
  if (!dialog.open) dialog.showModal();
  (dialog.querySelector(`[data-step="${step}"]:enabled`) ?? document.getElementById('detail-title')).focus();
}

/** Opens a file that the studio made, and draws it again at once: that is what one opens it for. */
export function openStudioPicture(file) {
  openDetail([{ file, caption: file.name }]);
  dialog.querySelector('[data-testid=redraw]').click();
}

function fillDialog(picture, signal) {
  const results = el('div', { class: 'results' });
  const title = el('h2', { id: 'detail-title', tabindex: '-1' }, picture.caption ?? 'A picture');
  const knowledge = el('div', {}, provenanceFacts(knownOf(picture)));
  const learn = ({ caption, ...rest }) => {
    title.textContent = caption ?? title.textContent;
    knowledge.replaceChildren(provenanceFacts({ ...knownOf(picture), ...rest }));
  };
  dialog.replaceChildren(
    el(
      'div',
      { class: 'detail-head' },
      title,
      el(
        'button',
        { type: 'button', class: 'icon', 'aria-label': 'Close', 'data-testid': 'close', onclick: () => dialog.close() },
        '×',
      ),
      stepper(),
    ),
    el(
      'div',
      { class: 'detail-body' },
      image(sourceOf(picture), altOf(picture), { 'data-testid': 'detail-picture' }),
      el('div', {}, knowledge, actions(picture, results, learn, signal)),
    ),
    results,
  );
}

function stepper() {
  const { pictures, index } = shown;
  if (pictures.length < 2) return null;
  const step = (by, name, sign) =>
    el(
      'button',
      {
        type: 'button',
        class: 'icon',
        'aria-label': name,
        'data-step': by,
        disabled: !pictures[index + by],
        onclick: () => openDetail(pictures, index + by),
      },
      sign,
    );
  return el(
    'div',
    { class: 'stepper' },
    step(-1, 'The one before', '‹'),
    el('span', {}, `${index + 1} of ${pictures.length}`),
    step(1, 'The next', '›'),
  );
}

const knownOf = ({ seed, candidate, candidates, version, score, given }) => ({
  seed,
  candidate,
  candidates,
  version,
  given,
  score: score?.toFixed(3),
});

function actions(picture, results, learn, signal) {
  const button = (name, testid, onclick) => el('button', { type: 'button', 'data-testid': testid, onclick }, name);
  const send = (view) => () => {
    dialog.close();
    go(view, {}, { picture });
  };
  return el(
    'div',
    { class: 'actions' },
    button('Download', 'download', () => attempt(results, () => download(picture))),
    button('Draw again, byte for byte', 'redraw', () => attempt(results, () => showRedrawn(picture, results, learn, signal))),
    button('Complete from here', 'to-complete', send('complete')),
    button('Look at its words', 'to-words', send('words')),
    button('Nearest training pictures', 'nearest', () => attempt(results, () => showNearest(picture, results, signal))),
  );
}

async function attempt(results, action) {
  clearNotice(results);
  try {
    await action();
    results.scrollIntoView({ block: 'nearest' });
  } catch (error) {
    showError(results, error, { retry: () => attempt(results, action) });
  }
}

async function showRedrawn(picture, results, learn, signal) {
  results.replaceChildren(el('p', { class: 'status busy' }, 'Drawing it again …'));
  const { box, answer } = await redraw(await bytesOf(picture), sourceOf(picture), signal);
  learn(answer.provenance);
  if (picture.file && answer.same) knowAgain(picture, answer);
  results.replaceChildren(box);
}

/** A file that came again is the picture that was drawn: its words are known exactly, and need not be read from its pixels. */
function knowAgain(picture, { words, version, provenance: { caption, seed, candidate } }) {
  Object.assign(picture, { words, version, caption, seed, candidate });
}

async function showNearest(picture, results, signal) {
  const version = picture.version ?? (await currentVersion());
  const { words } = picture.words
    ? picture
    : await postBytes(withQuery('/api/pictures', { version }), await bytesOf(picture), signal);
  for (;;) {
    const answer = await postJson('/api/nearest', { words, version }, signal);
    results.replaceChildren(nearestOf(answer));
    if (answer.state !== 'reading') return announce('The nearest training pictures are here.');
    await new Promise((resolve) => setTimeout(resolve, READING_PAUSE));
    signal.throwIfAborted();
  }
}

function nearestOf({ state, done, total, pictures }) {
  if (state === 'reading')
    return el('p', { class: 'status busy', 'data-testid': 'reading' }, `Reading the training pictures: ${done} of ${total}`);
  if (state === 'none') return el('p', { class: 'status' }, 'There are no training pictures here to compare with.');
  return el(
    'section',
    { 'data-testid': 'nearest-result' },
    el('h3', {}, 'Nearest training pictures'),
    el(
      'ul',
      { class: 'tiles small' },
      pictures.map((near) =>
        el(
          'li',
          {},
          el(
            'figure',
            { class: 'thing' },
            image(`data:image/png;base64,${near.png}`, near.caption),
            el('figcaption', {}, near.caption, el('small', {}, `${near.key} · ${near.score.toFixed(3)}`)),
          ),
        ),
      ),
    ),
  );
}
