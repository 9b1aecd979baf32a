// A picture with a grid of buttons over it, one per word. One cell is in the tab order; the arrow keys move within.
import { el, image } from './pieces.js';

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const EDGES = { Home: (row) => [row, 0], End: (row, column, last) => [row, last] };

/**
 * A grid of side x side cells over the picture at `source`.
 * `onMove(from, to, event)` hears of every step by keyboard, before the focus moves.
 */
export function makeGrid(side, source, { label, onMove = () => {} }) {
  const picture = image(source, '');
  const cells = Array.from({ length: side * side }, (_, index) => makeCell(Math.floor(index / side), index % side));
  const layer = el('div', { class: 'cells', role: 'group', 'aria-label': label }, cells);
  layer.style.gridTemplateColumns = `repeat(${side}, 1fr)`;
  layer.classList.toggle('dense', side > 12);
  const element = el('div', { class: 'grid' }, picture, layer);
  const at = (row, column) => cells[row * side + column];

  function focus(row, column) {
    layer.querySelector('[tabindex="0"]')?.setAttribute('tabindex', '-1');
    at(row, column).setAttribute('tabindex', '0');
    at(row, column).focus();
  }

  layer.addEventListener('keydown', (event) => {
    const from = event.target.closest('.cell');
    const to = from && target(from, event.key, side);
    if (!to) return;
    event.preventDefault();
    onMove(from, at(...to), event);
    focus(...to);
  });
  layer.addEventListener('focusin', (event) => {
    // by mouse, too
    layer.querySelector('[tabindex="0"]')?.setAttribute('tabindex', '-1');
    event.target.setAttribute('tabindex', '0');
  });
  at(0, 0).setAttribute('tabindex', '0');
  return {
    element,
    layer,
    cells,
    at,
    focus,
    show: (next) => {
      picture.src = next;
    },
  };
}

const makeCell = (row, column) =>
  el('button', {
    type: 'button',
    class: 'cell',
    tabindex: '-1',
    'data-testid': 'cell',
    'data-row': row,
    'data-column': column,
    'aria-label': `Row ${row + 1}, column ${column + 1}`,
  });

/** [row, column] of a cell. */
export const placeOf = (cell) => [Number(cell.dataset.row), Number(cell.dataset.column)];

function target(cell, key, side) {
  const [row, column] = placeOf(cell);
  const to = EDGES[key]?.(row, column, side - 1) ?? (STEPS[key] && [row + STEPS[key][0], column + STEPS[key][1]]);
  return to && to.every((value) => value >= 0 && value < side) ? to : null;
}

/** Writes each word's number into its cell, where readers, scripts and screen readers find it. */
export function showWords(grid, words) {
  words.flat().forEach((word, index) => {
    const cell = grid.cells[index];
    const [row, column] = placeOf(cell);
    cell.dataset.word = word;
    cell.setAttribute('aria-label', `Row ${row + 1}, column ${column + 1}: word ${word}`);
    cell.replaceChildren(el('span', {}, String(word)));
  });
}
