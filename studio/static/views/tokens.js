// Words: a picture as a grid of numbers. Set one, flip, stitch with another picture, ask what surprises the model.
import { postJson } from './api.js';
import { makeGrid, placeOf, showWords } from './grid.js';
import { makeHistory } from './history.js';
import { clearNotice, showError } from './notice.js';
import { announce, el, image, parts } from './pieces.js';
import { download } from './pictures.js';
import { pngSource, readPiece, rereadPiece } from './piece.js';
import { go } from './router.js';
import { whole } from './settings.js';
import { dropZone } from './source.js';
import { makeStitch } from './stitch.js';
import { makeSurprise } from './surprise.js';
import { armVersionSelect, chosen, currentVersion } from './versions.js';

const READABLE = 12; // words a side, up to which numbers fit into their cells

export function makeWords(view) {
  const part = parts(view);
  let edits = Promise.resolve();
  const bench = { part, piece: null, grid: null, history: null, cell: null };
  const surprise = makeSurprise(part, {
    state: () => stateOf(bench),
    jump: (row, column) => {
      choose(bench, row, column);
      bench.grid.focus(row, column);
    },
  });
  const stitch = makeStitch(part, { piece: () => bench.piece, apply: (change, done) => edit(change, done) });

  const take = (picture) => place(() => readPiece(picture));

  async function place(read) {
    try {
      clearNotice(part.notice);
      part.source.classList.add('busy');
      bench.piece = await read();
      await startBench(bench);
      surprise.start(bench.piece.caption);
      stitch.start();
    } catch (error) {
      showError(part.notice, error, { retry: () => place(read) });
    } finally {
      part.source.classList.remove('busy');
    }
  }

  /** One change after the other: each starts from the words that the one before left. */
  function edit(change, done) {
    edits = edits.then(() => editNow(change, done));
  }

  /** Changes the words by POST /api/words, and remembers them as they were. */
  async function editNow(change, done) {
    try {
      clearNotice(part.notice, part.editor);
      const { words, version } = stateOf(bench);
      const answer = await postJson('/api/words', { words, version, ...change });
      bench.history.push({ words: answer.words, source: pngSource(answer.png), png: answer.png });
      showState(bench, done);
      surprise.forget();
    } catch (error) {
      showError(part.notice, error, { retry: () => edit(change, done) });
    }
  }

  function travel(step) {
    bench.history[step]();
    showState(bench, step === 'undo' ? 'Undone.' : 'Done again.');
    surprise.forget();
  }

  function setWord() {
    const form = part.editor;
    try {
      clearNotice(part.notice, form);
      const word = whole(form, 'word', 0, bench.piece.model.vocab_size - 1);
      const [row, column] = placeOf(bench.cell);
      bench.grid.focus(row, column); // back to where one came from, to go on by keyboard
      edit({ set: [{ row, column, word }] }, `Row ${row + 1}, column ${column + 1} is word ${word} now.`);
    } catch (error) {
      showError(part.notice, error, { form });
    }
  }

  armSource(part, take);
  part.undo.addEventListener('click', () => travel('undo'));
  part.redo.addEventListener('click', () => travel('redo'));
  part.flip.addEventListener('click', () => edit({ flip: true }, 'Flipped, left for right.'));
  part.numbers.addEventListener('click', () => showNumbers(bench, part.numbers.getAttribute('aria-pressed') !== 'true'));
  part.download.addEventListener('click', () => download(asPicture(bench)));
  part.complete.addEventListener('click', () => go('complete', {}, { picture: asPicture(bench) }));
  part.editor.addEventListener('submit', (event) => {
    event.preventDefault();
    setWord();
  });
  part.editor.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') bench.grid.focus(...placeOf(bench.cell));
  });
  view.addEventListener('keydown', (event) => undoByKeyboard(event, bench, travel));
  chosen.addEventListener('change', async () => {
    if (bench.piece && bench.piece.version !== (await currentVersion())) place(() => rereadPiece(bench.piece));
  });

  return {
    enter(query, payload) {
      if (payload?.picture) take(payload.picture);
    },
    takeFile: (file) => take({ file }),
  };
}

function armSource(part, take) {
  const select = el('select', { class: 'version', 'data-testid': 'version' });
  part.source.append(
    dropZone({
      label: 'Choose a picture',
      hint: 'or drop one here; drawn ones come by “Look at its words”',
      onFile: (file) => take({ file }),
    }),
    el('label', { class: 'field' }, el('span', {}, 'Model'), select),
  );
  const fill = () => armVersionSelect(select).catch((error) => showError(part.notice, error, { retry: fill }));
  fill();
}

/** The words as they are now, and whose they are. */
const stateOf = ({ history, piece }) => ({ ...history.now(), version: piece.version });

/** For other views: what is to be seen now, as a picture with its words. */
function asPicture({ history, piece }) {
  const { words, png, source } = history.now();
  const made = png ?? (source.startsWith('data:') ? source.split(',')[1] : undefined);
  return { words, png: made, url: made ? undefined : source, version: piece.version, caption: piece.caption || undefined };
}

async function startBench(bench) {
  const { part, piece } = bench;
  bench.history = makeHistory({ words: piece.words, source: piece.rebuilt });
  bench.cell = null;
  bench.grid = makeGrid(piece.model.side, piece.rebuilt, { label: 'Words of the picture. Press Enter to change one' });
  bench.grid.layer.addEventListener('click', (event) => {
    const cell = event.target.closest('.cell');
    if (cell) openEditor(bench, ...placeOf(cell));
  });
  part.original.replaceChildren(image(piece.source, piece.caption || 'The picture as the model sees it'));
  part.grid.replaceChildren(bench.grid.element);
  part.editor.hidden = true;
  part.bench.hidden = false;
  part.source.classList.add('used');
  showNumbers(bench, piece.model.side <= READABLE);
  showState(bench, '');
}

function showState(bench, done) {
  const { part, history, piece } = bench;
  const { words, source } = history.now();
  bench.grid.show(source);
  showWords(bench.grid, words);
  if (bench.cell) choose(bench, ...placeOf(bench.cell));
  part.undo.disabled = !history.canUndo();
  part.redo.disabled = !history.canRedo();
  part.rebuilt.textContent = history.canUndo() ? 'Drawn from the changed words' : rebuiltText(piece);
  part.status.textContent = done;
  if (done) announce(done);
}

const rebuiltText = ({ psnr }) =>
  psnr === null ? 'Its words: they were drawn, so nothing is lost' : `Drawn from its words (PSNR ${psnr.toFixed(1)} dB)`;

function showNumbers(bench, isShown) {
  bench.part.numbers.setAttribute('aria-pressed', String(isShown));
  bench.grid?.element.classList.toggle('numbered', isShown);
}

/** Marks a cell as the one that is spoken of, and shows the form for it. */
function choose(bench, row, column) {
  const { part, grid, piece } = bench;
  bench.cell?.classList.remove('chosen');
  bench.cell = grid.at(row, column);
  bench.cell.classList.add('chosen');
  part.chosen.textContent = `Row ${row + 1}, column ${column + 1} holds word ${bench.cell.dataset.word}.`;
  part.editor.elements.word.max = piece.model.vocab_size - 1;
  part.editor.hidden = false;
}

function openEditor(bench, row, column) {
  choose(bench, row, column);
  const { word } = bench.part.editor.elements;
  word.value = bench.cell.dataset.word;
  word.focus();
  word.select();
}

/** Ctrl+Z and Ctrl+Shift+Z; in a text field they belong to the text. */
function undoByKeyboard(event, { history }, travel) {
  if (!history || event.key.toLowerCase() !== 'z' || !(event.ctrlKey || event.metaKey) || event.target.matches('input')) return;
  event.preventDefault();
  if (event.shiftKey ? history.canRedo() : history.canUndo()) travel(event.shiftKey ? 'redo' : 'undo');
}
