// Which cells of a picture are kept and which are drawn: toggled, or painted by dragging or with Shift and the arrow keys.
import { makeGrid } from './grid.js';

/** A grid of toggles; `onChange(kept)` hears the number that is kept. All cells start as drawn. */
export function makeKeepGrid(side, source, onChange) {
  const grid = makeGrid(side, source, {
    label: 'Cells of the picture: pressed ones are kept, others are drawn',
    onMove: (from, to, event) => {
      if (event.shiftKey) paint(to, isKept(from));
    },
  });

  function paint(cell, kept) {
    if (isKept(cell) === kept) return;
    cell.setAttribute('aria-pressed', String(kept));
    onChange(grid.cells.filter(isKept).length);
  }

  /** Keeps the cells for which choose(row, column, isKept) is true. */
  function choose(rule) {
    grid.cells.forEach((cell, index) => {
      cell.setAttribute('aria-pressed', String(rule(Math.floor(index / side), index % side, isKept(cell))));
    });
    onChange(grid.cells.filter(isKept).length);
  }

  choose(() => false);
  armPainting(grid.layer, paint);
  return { ...grid, choose, kept: () => grid.cells.map(isKept) };
}

const isKept = (cell) => cell.getAttribute('aria-pressed') === 'true';

/** The cell under the pointer is toggled, and those it is dragged over become alike. */
function armPainting(layer, paint) {
  let brush = null; // what is painted while the pointer is down
  layer.addEventListener('pointerdown', (event) => {
    const cell = event.target.closest('.cell');
    if (!cell || event.button !== 0) return;
    brush = !isKept(cell);
    paint(cell, brush);
  });
  layer.addEventListener('pointermove', (event) => {
    if (brush === null) return;
    // a finger's moves all go to the cell it came down on, so ask which one is under it
    const cell = document.elementFromPoint(event.clientX, event.clientY)?.closest('.cell');
    if (cell && layer.contains(cell)) paint(cell, brush);
  });
  for (const end of ['pointerup', 'pointercancel'])
    window.addEventListener(end, () => {
      brush = null;
    });
  layer.addEventListener('click', (event) => {
    // no pointer: Space, Enter, or a screen reader
    const cell = event.target.closest('.cell');
    if (cell && event.detail === 0) paint(cell, !isKept(cell));
  });
}
