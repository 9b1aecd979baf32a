// Complete: a part of a picture is kept, the model draws the rest.
import { ApiError } from './api.js';
import { makeBoard } from './board.js';
import { makeKeepGrid } from './keep.js';
import { clearNotice, showError } from './notice.js';
import { armDice, armStop, el, image, parts } from './pieces.js';
import { readPiece, rereadPiece } from './piece.js';
import { armSettings, requestOf } from './settings.js';
import { dropZone } from './source.js';
import { chosen, currentVersion } from './versions.js';

const DRAWN = -1; // in `given`: a word to be drawn

export function makeComplete(view) {
  const form = view.querySelector('form');
  const part = parts(view);
  const board = makeBoard(
    view.querySelector('.board'),
    armStop(view, part.stop, () => board.stop()),
  );
  let piece = null;
  let grid = null;

  const take = (picture) => place(() => readPiece(picture));

  /** Puts the piece that `read` gives onto the bench. */
  async function place(read) {
    try {
      clearNotice(part.sourceNotice);
      part.source.classList.add('busy');
      const next = await read();
      await armSettings(form);
      piece = next;
      board.stop();
      part.results.hidden = true;
      showPiece();
    } catch (error) {
      showError(part.sourceNotice, error, { retry: () => place(read) });
    } finally {
      part.source.classList.remove('busy');
    }
  }

  function showPiece() {
    const { side } = piece.model;
    form.elements.rows.max = side - 1;
    grid = makeKeepGrid(side, piece.source, (kept) => tellKept(part, kept, side));
    part.grid.replaceChildren(grid.element);
    part.quick.replaceChildren(...quickButtons(side, (rule) => grid.choose(rule)));
    keepTop(Math.max(1, Math.floor(side / 2)));
    if (piece.caption) form.elements.prompt.value = piece.caption;
    form.hidden = false;
    part.source.classList.add('used');
  }

  function keepTop(rows) {
    form.elements.rows.value = rows;
    part.rowsLabel.textContent = rows === 1 ? 'The top row' : `The top ${rows} rows`;
    grid.choose((row) => row < rows);
  }

  async function draw() {
    try {
      clearNotice(part.sourceNotice, form);
      const kept = grid.kept();
      checkKept(kept);
      const request = { ...requestOf(form), version: await currentVersion(), given: givenOf(piece.words, kept) };
      showGiven(part, piece, kept);
      part.results.scrollIntoView({ block: 'nearest', behavior: 'instant' });
      await board.draw(request, form);
    } catch (error) {
      showError(part.sourceNotice, error, { retry: draw, form });
    }
  }

  form.elements.candidates.value = 8;
  form.elements.seed.value = 0;
  armDice(part.dice, form);
  part.source.append(
    dropZone({
      label: 'Choose a picture',
      hint: 'or drop one here; drawn ones come by “Complete from here”',
      onFile: (file) => take({ file }),
    }),
  );
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    draw();
  });
  form.elements.rows.addEventListener('input', () => keepTop(Number(form.elements.rows.value)));
  chosen.addEventListener('change', async () => {
    if (piece && piece.version !== (await currentVersion())) place(() => rereadPiece(piece));
  });

  return {
    enter(query, payload) {
      if (payload?.picture) take(payload.picture);
    },
    takeFile: (file) => take({ file }),
  };
}

function quickButtons(side, choose) {
  const button = (name, rule) =>
    el(
      'button',
      {
        type: 'button',
        class: 'chip',
        'data-testid': `keep-${name.toLowerCase().replace(' ', '-')}`,
        onclick: () => choose(rule),
      },
      name,
    );
  return [
    button('Top half', (row) => row < side / 2),
    button('Left half', (row, column) => column < side / 2),
    button('Invert', (row, column, kept) => !kept),
    button('All', () => true),
    button('None', () => false),
  ];
}

function tellKept(part, kept, side) {
  part.kept.textContent = `${kept} of ${side * side} words are kept, ${side * side - kept} are drawn.`;
}

function checkKept(kept) {
  if (!kept.includes(true))
    throw new ApiError('Nothing is kept. Keep some cells, or draw a whole picture in Draw.', { status: 422 });
  if (!kept.includes(false))
    throw new ApiError('All is kept, so nothing is left to draw. Leave some cells out.', { status: 422 });
}

/** The words where they are kept, -1 elsewhere: [[5, 9], [2, 4]] and the top row -> [[5, 9], [-1, -1]]. */
export const givenOf = (words, kept) => words.map((row, y) => row.map((word, x) => (kept[y * row.length + x] ? word : DRAWN)));

/** The original, faded where it is not kept. */
function showGiven(part, piece, kept) {
  const veil = el(
    'div',
    { class: 'cells veils', 'aria-hidden': 'true' },
    kept.map((isKept) => el('span', { class: isKept ? '' : 'veil' })),
  );
  veil.style.gridTemplateColumns = `repeat(${piece.model.side}, 1fr)`;
  part.given.replaceChildren(
    el('div', { class: 'grid' }, image(piece.source, 'The picture; what is not kept is faded'), veil),
    el('figcaption', {}, 'What is kept'),
  );
  part.results.hidden = false;
}
