// The keep mask of inpainting: which cells are kept and which are generated. A cell is toggled by a click, or painted by
// dragging or with Shift and the arrow keys.
import { t } from '../lib/language.js';
import { createTokenGrid } from './token_grid.js';

/** A grid of toggle buttons, none kept at first; `onChange(count)` gets the number of kept cells. */
export function createKeepMask(side, source, onChange) {
  const grid = createTokenGrid(side, source, {
    label: t`Cells of the image: pressed cells are kept, the others are generated`,
    onMove: (from, to, event) => {
      if (event.shiftKey) paint(to, isKept(from));
    },
  });
  const reportCount = () => onChange(grid.cells.filter(isKept).length);

  function paint(cell, keep) {
    if (isKept(cell) === keep) return;
    setKept(cell, keep);
    reportCount();
  }

  /** Keep the cells for which rule(row, column, isKept) is true. */
  function select(rule) {
    grid.cells.forEach((cell, index) => setKept(cell, rule(Math.floor(index / side), index % side, isKept(cell))));
    reportCount();
  }

  select(() => false);
  initPainting(grid.layer, paint);
  return { element: grid.element, select, mask: () => grid.cells.map(isKept) };
}

const isKept = (cell) => cell.getAttribute('aria-pressed') === 'true';
const setKept = (cell, keep) => cell.setAttribute('aria-pressed', String(keep));

/** A press toggles the cell under the pointer; dragging gives other cells the same state. */
function initPainting(layer, paint) {
  let brush = null; // the state to paint while the pointer is down
  layer.addEventListener('pointerdown', (event) => {
    const cell = event.target.closest('.cell');
    if (!cell || event.button !== 0) return;
    brush = !isKept(cell);
    paint(cell, brush);
  });
  layer.addEventListener('pointermove', (event) => {
    if (brush === null) return;
    // touch events all go to the first cell, so find the cell under the finger
    const cell = document.elementFromPoint(event.clientX, event.clientY)?.closest('.cell');
    if (cell && layer.contains(cell)) paint(cell, brush);
  });
  for (const end of ['pointerup', 'pointercancel'])
    window.addEventListener(end, () => {
      brush = null;
    });
  layer.addEventListener('click', (event) => {
    // without a pointer: Space, Enter, or a screen reader
    const cell = event.target.closest('.cell');
    if (cell && event.detail === 0) paint(cell, !isKept(cell));
  });
}
