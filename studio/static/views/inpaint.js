// Inpaint: a part of an image is kept, the model generates the rest.
import { loadEditorImage, reloadEditorImage } from '../components/editor_image.js';
import { createGeneration } from '../components/generation.js';
import { dropZone } from '../components/image_input.js';
import { createKeepMask } from '../components/keep_mask.js';
import { clearNotice, showError } from '../components/notice.js';
import { initSettings, requestOf } from '../components/sampling_settings.js';
import { initSeed } from '../components/seed.js';
import { currentVersion, versionChange } from '../components/version_select.js';
import { ApiError } from '../lib/api.js';
import { el, img, initStopButton, parts } from '../lib/dom.js';
import { t } from '../lib/language.js';

const UNKNOWN = -1; // in the fixed tokens: a token to generate

export function createInpaintView(view) {
  const form = view.querySelector('form');
  const part = parts(view);
  const generation = createGeneration(
    view.querySelector('.generation'),
    initStopButton(view, part.stop, () => generation.stop()),
  );
  const seed = initSeed(form, part.randomSeed);
  let editorImage = null;
  let keepMask = null;

  const loadImage = (image) => loadFrom(() => loadEditorImage(image, 'side'));

  /** Show the editor image that `read` gives. */
  async function loadFrom(read) {
    try {
      clearNotice(part.inputNotice);
      part.input.classList.add('busy');
      const next = await read();
      await initSettings(form);
      editorImage = next;
      generation.stop();
      part.results.hidden = true;
      showEditorImage();
    } catch (error) {
      showError(part.inputNotice, error, { retry: () => loadFrom(read) });
    } finally {
      part.input.classList.remove('busy');
    }
  }

  function showEditorImage() {
    const { side } = editorImage.model;
    form.elements.rows.max = side - 1;
    keepMask = createKeepMask(side, editorImage.source, (count) => showKeepCount(part.keepCount, count, side));
    part.grid.replaceChildren(keepMask.element);
    part.presets.replaceChildren(...presetButtons(side, (rule) => keepMask.select(rule)));
    keepTopRows(Math.max(1, Math.floor(side / 2)));
    if (editorImage.caption) form.elements.prompt.value = editorImage.caption;
    form.hidden = false;
    part.input.classList.add('used');
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

  form.elements.candidates.value = 8;
  part.input.append(
    dropZone({
      label: t`Choose an image`,
      hint: t`or drop one here; for a generated image, use its “Inpaint” button`,
      onFile: (file) => loadImage({ file }),
    }),
  );
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    inpaint();
  });
  form.elements.rows.addEventListener('input', () => keepTopRows(Number(form.elements.rows.value)));
  versionChange.addEventListener('change', async () => {
    if (editorImage && editorImage.version !== (await currentVersion())) loadFrom(() => reloadEditorImage(editorImage, 'side'));
  });

  return {
    enter(query, payload) {
      if (payload?.image) loadImage(payload.image);
    },
    acceptFile: (file) => loadImage({ file }),
  };
}

function presetButtons(side, select) {
  const button = (testid, label, rule) =>
    el(
      'button',
      {
        type: 'button',
        class: 'chip',
        'data-testid': testid,
        onclick: () => select(rule),
      },
      label,
    );
  return [
    button('keep-top-half', t`Top half`, (row) => row < side / 2),
    button('keep-left-half', t`Left half`, (row, column) => column < side / 2),
    button('keep-invert', t`Invert`, (row, column, isKept) => !isKept),
    button('keep-all', t`All`, () => true),
    button('keep-none', t`None`, () => false),
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
  const overlay = el(
    'div',
    { class: 'cells', 'aria-hidden': 'true' },
    mask.map((isKept) => el('span', { class: isKept ? '' : 'faded' })),
  );
  overlay.style.gridTemplateColumns = `repeat(${model.side}, 1fr)`;
  place.replaceChildren(
    el('div', { class: 'token-grid' }, img(source, t`The image; parts that are not kept are faded`), overlay),
    el('figcaption', {}, t`Kept part`),
  );
}
