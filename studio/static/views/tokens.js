// Tokens: an image as a grid of token ids. Set one, flip the image, stitch it with another, measure the surprisal.
import { createEditorInput } from '../components/editor_image.js';
import { clearNotice, showError } from '../components/notice.js';
import { integerOf } from '../components/sampling_settings.js';
import { createStitch } from '../components/stitch.js';
import { createSurprisal } from '../components/surprisal.js';
import { createTokenGrid, positionOf, showTokens } from '../components/token_grid.js';
import { initVersionSelect } from '../components/version_select.js';
import { postJson } from '../lib/api.js';
import { announce, el, img, onSubmit, parts } from '../lib/dom.js';
import { download, pngSource } from '../lib/images.js';
import { t } from '../lib/language.js';
import { openView } from '../lib/router.js';
import { createUndoHistory } from '../lib/undo_history.js';

const MAX_NUMBERED_SIDE = 12; // tokens per side; in a larger grid the numbers do not fit into the cells

export function createTokensView(view) {
  const part = parts(view);
  let edits = Promise.resolve();
  const editor = { part, image: null, grid: null, history: null, cell: null };
  const surprisal = createSurprisal(part, {
    currentTokens: () => currentTokens(editor),
    showCell: (row, column) => {
      selectCell(editor, row, column);
      editor.grid.focus(row, column);
    },
  });
  const stitch = createStitch(part, { editorImage: () => editor.image, apply: edit });

  function show(image) {
    editor.image = image;
    startEditor(editor);
    surprisal.start(image.caption);
    stitch.start();
  }

  /** One change after the other: each change starts from the tokens of the previous one. */
  function edit(change, message) {
    edits = edits.then(() => editNow(change, message));
  }

  /** Change the tokens by POST /api/tokens, and add the result to the history. */
  async function editNow(change, message) {
    try {
      clearNotice(part.notice, part.tokenForm);
      const { tokens, version } = currentTokens(editor);
      const answer = await postJson('/api/tokens', { tokens, version, ...change });
      editor.history.push({ tokens: answer.tokens, source: pngSource(answer.png), png: answer.png });
      showState(editor, message);
      surprisal.clear();
    } catch (error) {
      showError(part.notice, error, { retry: () => edit(change, message) });
    }
  }

  function undoOrRedo(step) {
    editor.history[step]();
    showState(editor, step === 'undo' ? t`Undone.` : t`Redone.`);
    surprisal.clear();
  }

  function setToken() {
    const form = part.tokenForm;
    try {
      clearNotice(part.notice, form);
      const token = integerOf(form, 'token', 0, editor.image.model.vocab_size - 1);
      const [row, column] = positionOf(editor.cell);
      editor.grid.focus(row, column); // so that the arrow keys work again
      edit({ set: [{ row, column, token }] }, t`Row ${row + 1}, column ${column + 1} is now token ${token}.`);
    } catch (error) {
      showError(part.notice, error, { form });
    }
  }

  part.undo.addEventListener('click', () => undoOrRedo('undo'));
  part.redo.addEventListener('click', () => undoOrRedo('redo'));
  part.flip.addEventListener('click', () => edit({ flip: true }, t`Flipped left to right.`));
  part.numbers.addEventListener('click', () => showNumbers(editor, part.numbers.getAttribute('aria-pressed') !== 'true'));
  part.download.addEventListener('click', () => download(editedImage(editor)));
  part.inpaint.addEventListener('click', () => openView('inpaint', {}, { image: editedImage(editor) }));
  onSubmit(part.tokenForm, setToken);
  part.tokenForm.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') editor.grid.focus(...positionOf(editor.cell));
  });
  view.addEventListener('keydown', (event) => undoByKeyboard(event, editor, undoOrRedo));
  const hint = t`or drop one here; for a generated image, use its “Edit tokens” button`;
  const input = createEditorInput(part.input, part.notice, { needed: 'can_edit', hint, show });
  appendVersionSelect(part);
  return input;
}

function appendVersionSelect(part) {
  const select = el('select', { class: 'version', 'data-testid': 'version' });
  part.input.append(el('label', { class: 'field' }, el('span', {}, t`Model`), select));
  const fill = () => initVersionSelect(select).catch((error) => showError(part.notice, error, { retry: fill }));
  fill();
}

/** The current tokens, and the version whose vocabulary they are from. */
const currentTokens = ({ history, image }) => ({ ...history.current(), version: image.version });

/** The current state as an image object for other views. */
function editedImage({ history, image }) {
  const { tokens, png, source } = history.current();
  const currentPng = png ?? (source.startsWith('data:') ? source.split(',')[1] : undefined);
  const url = currentPng ? undefined : source;
  return { tokens, png: currentPng, url, version: image.version, caption: image.caption || undefined };
}

function startEditor(editor) {
  const { part, image } = editor;
  editor.history = createUndoHistory({ tokens: image.tokens, source: image.reconstruction });
  editor.cell = null;
  const label = t`Tokens of the image. Press Enter to change one`;
  editor.grid = createTokenGrid(image.model.side, image.reconstruction, { label });
  editor.grid.layer.addEventListener('click', (event) => {
    const cell = event.target.closest('.cell');
    if (cell) openTokenForm(editor, ...positionOf(cell));
  });
  part.original.replaceChildren(img(image.source, image.caption || t`The image as the model sees it`));
  part.grid.replaceChildren(editor.grid.element);
  part.tokenForm.hidden = true;
  part.editor.hidden = false;
  showNumbers(editor, image.model.side <= MAX_NUMBERED_SIDE);
  showState(editor, '');
}

function showState(editor, message) {
  const { part, history, image } = editor;
  const { tokens, source } = history.current();
  editor.grid.image.src = source;
  showTokens(editor.grid, tokens);
  if (editor.cell) selectCell(editor, ...positionOf(editor.cell));
  part.undo.disabled = !history.canUndo();
  part.redo.disabled = !history.canRedo();
  part.reconstruction.textContent = history.canUndo() ? t`Decoded from the changed tokens` : reconstructionText(image);
  part.status.textContent = message;
  if (message) announce(message);
}

const reconstructionText = ({ psnr }) =>
  psnr === null ? t`Its tokens: the model generated them, so nothing is lost` : t`Reconstruction (PSNR ${psnr.toFixed(1)} dB)`;

function showNumbers(editor, isShown) {
  editor.part.numbers.setAttribute('aria-pressed', String(isShown));
  editor.grid?.element.classList.toggle('numbered', isShown);
}

/** Select a cell and show the form for its token. */
function selectCell(editor, row, column) {
  const { part, grid, image } = editor;
  editor.cell?.classList.remove('selected');
  editor.cell = grid.at(row, column);
  editor.cell.classList.add('selected');
  part.selectedCell.textContent = t`Row ${row + 1}, column ${column + 1} is token ${editor.cell.dataset.token}.`;
  part.tokenForm.elements.token.max = image.model.vocab_size - 1;
  part.tokenForm.hidden = false;
}

function openTokenForm(editor, row, column) {
  selectCell(editor, row, column);
  const { token } = editor.part.tokenForm.elements;
  token.value = editor.cell.dataset.token;
  token.focus();
  token.select();
}

/** Ctrl+Z and Ctrl+Shift+Z, except in a text field, which has its own undo. */
function undoByKeyboard(event, { history }, undoOrRedo) {
  if (!history || event.key.toLowerCase() !== 'z' || !(event.ctrlKey || event.metaKey) || event.target.matches('input')) return;
  event.preventDefault();
  if (event.shiftKey ? history.canRedo() : history.canUndo()) undoOrRedo(event.shiftKey ? 'redo' : 'undo');
}
