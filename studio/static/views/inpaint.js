// Inpaint: a part of an image is kept, the model generates the rest.
import { createEditorInput } from '../components/editor_image.js';
import { createGeneration } from '../components/generation.js';
import { createKeepMask } from '../components/keep_mask.js';
import { clearNotice, showError } from '../components/notice.js';
import { initRequestFields } from '../components/request_fields.js';
import { initSettings, requestOf } from '../components/sampling_settings.js';
import { currentVersion } from '../components/version_select.js';
import { ApiError } from '../lib/api.js';
import { button, el, img, initStopButton, onSubmit, parts } from '../lib/dom.js';
import { t } from '../lib/language.js';

const UNKNOWN = -1; // in the fixed tokens: a token to generate

export function createInpaintView(view) {
  const form = view.querySelector('form');
  const part = parts(view);
  const onRunningChange = initStopButton(view, part.stop, () => generation.stop());
  const generation = createGeneration(view.querySelector('.generation'), onRunningChange);
  const seed = initRequestFields(form, part.requestFields, 8);
  let editorImage = null;
  let keepMask = null;

  async function show(next) {
    await initSettings(form);
    editorImage = next;
    generation.stop();
    part.results.hidden = true;
    const { side } = editorImage.model;
    form.elements.rows.max = side - 1;
    keepMask = createKeepMask(side, editorImage.source, (count) => showKeepCount(part.keepCount, count, side));
    part.grid.replaceChildren(keepMask.element);
    part.presets.replaceChildren(...presetButtons(side, (rule) => keepMask.select(rule)));
    keepTopRows(Math.max(1, Math.floor(side / 2)));
    if (editorImage.caption) form.elements.prompt.value = editorImage.caption;
    form.hidden = false;
  }

  function keepTopRows(rows) {
    form.elements.rows.value = rows;
    part.rowsLabel.textContent = rows === 1 ? t`The top row` : t`The top ${rows} rows`;
    keepMask.select((row) => row < rows);
  }

  async function inpaint() {
    try {
      clearNotice(part.inputNotice, form);
      const mask = keepMask.mask();
      checkMask(mask);
      seed.next();
      const fixedTokens = fixedTokensOf(editorImage.tokens, mask);
      const request = { ...requestOf(form), version: await currentVersion(), fixed_tokens: fixedTokens };
      showKeptPart(part.keptPart, editorImage, mask);
      part.results.hidden = false;
      part.results.scrollIntoView({ block: 'nearest', behavior: 'instant' });
      await generation.start(request, form);
    } catch (error) {
      showError(part.inputNotice, error, { retry: inpaint, form });
    }
  }

  onSubmit(form, inpaint);
  form.elements.rows.addEventListener('input', () => keepTopRows(Number(form.elements.rows.value)));
  const hint = t`or drop one here; for a generated image, use its “Inpaint” button`;
  return createEditorInput(part.input, part.inputNotice, { needed: 'side', hint, show });
}

function presetButtons(side, select) {
  const preset = (testid, label, rule) => button(label, testid, () => select(rule), { class: 'chip' });
  return [
    preset('keep-top-half', t`Top half`, (row) => row < side / 2),
    preset('keep-left-half', t`Left half`, (row, column) => column < side / 2),
    preset('keep-invert', t`Invert`, (row, column, isKept) => !isKept),
    preset('keep-all', t`All`, () => true),
    preset('keep-none', t`None`, () => false),
  ];
}

function showKeepCount(place, count, side) {
  place.textContent = t`${count} of ${side * side} cells are kept, ${side * side - count} are generated.`;
}

function checkMask(mask) {
  if (!mask.includes(true))
    throw new ApiError(t`No cell is kept. Keep some cells, or use Generate for a whole image.`, { status: 422 });
  if (!mask.includes(false))
    throw new ApiError(t`All cells are kept, so there is nothing to generate. Leave some cells out.`, { status: 422 });
}

/**
 * The tokens where the mask is true, -1 elsewhere: [[5, 9], [2, 4]] and the top row -> [[5, 9], [-1, -1]].
 * Of several grids the mask is of the finest, the last tokens; those before it are all kept.
 */
function fixedTokensOf(tokens, mask) {
  let cell = mask.length - tokens.flat().length;
  return tokens.map((row) => row.map((token) => ((mask[cell++] ?? true) ? token : UNKNOWN)));
}

/** The image, faded where it is not kept. */
function showKeptPart(place, { source, model }, mask) {
  const cells = mask.map((isKept) => el('span', { class: isKept ? '' : 'faded' }));
  const overlay = el('div', { class: 'cells', 'aria-hidden': 'true' }, cells);
  overlay.style.gridTemplateColumns = `repeat(${model.side}, 1fr)`;
  place.replaceChildren(
    el('div', { class: 'token-grid' }, img(source, t`The image; parts that are not kept are faded`), overlay),
    el('figcaption', {}, t`Kept part`),
  );
}
