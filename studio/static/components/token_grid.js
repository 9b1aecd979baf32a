// An image with a grid of buttons over it, one per token. One cell is in the tab order; the arrow keys move inside the grid.
import { button, el, img } from '../lib/dom.js';
import { t } from '../lib/language.js';

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const EDGES = { Home: (row) => [row, 0], End: (row, column, last) => [row, last] };

/**
 * A grid of side x side cells over the image at `source`: {element, image, layer, cells, at(row, column), focus(row, column)}.
 * `onMove(from, to, event)` is called for each step by keyboard, before the focus moves.
 */
export function createTokenGrid(side, source, { label, onMove = () => {} }) {
  const image = img(source, '');
  const cells = Array.from({ length: side * side }, (_, index) => createCell(Math.floor(index / side), index % side));
  const layer = el('div', { class: 'cells', role: 'group', 'aria-label': label }, cells);
  layer.style.gridTemplateColumns = `repeat(${side}, 1fr)`;
  layer.classList.toggle('dense', side > 12);
  const element = el('div', { class: 'token-grid' }, image, layer);
  const at = (row, column) => cells[row * side + column];

  function setTabStop(cell) {
    layer.querySelector('[tabindex="0"]')?.setAttribute('tabindex', '-1');
    cell.setAttribute('tabindex', '0');
  }

  function focus(row, column) {
    setTabStop(at(row, column));
    at(row, column).focus();
  }

  layer.addEventListener('keydown', (event) => {
    const from = event.target.closest('.cell');
    const to = from && nextPosition(from, event.key, side);
    if (!to) return;
    event.preventDefault();
    onMove(from, at(...to), event);
    focus(...to);
  });
  layer.addEventListener('focusin', (event) => setTabStop(event.target)); // a mouse moves the focus, too
  setTabStop(at(0, 0));
  return { element, image, layer, cells, at, focus };
}

function createCell(row, column) {
  const label = t`Row ${row + 1}, column ${column + 1}`;
  return button(null, 'cell', null, { class: 'cell', tabindex: '-1', 'data-row': row, 'data-column': column, 'aria-label': label });
}

/** [row, column] of a cell. */
export const positionOf = (cell) => [Number(cell.dataset.row), Number(cell.dataset.column)];

function nextPosition(cell, key, side) {
  const [row, column] = positionOf(cell);
  const to = EDGES[key]?.(row, column, side - 1) ?? (STEPS[key] && [row + STEPS[key][0], column + STEPS[key][1]]);
  return to && to.every((value) => value >= 0 && value < side) ? to : null;
}

/** Write each token's number into its cell: as text, for scripts and for screen readers. */
export function showTokens(grid, tokens) {
  tokens.flat().forEach((token, index) => {
    const cell = grid.cells[index];
    const [row, column] = positionOf(cell);
    cell.dataset.token = token;
    cell.setAttribute('aria-label', t`Row ${row + 1}, column ${column + 1}: token ${token}`);
    cell.replaceChildren(el('span', {}, String(token)));
  });
}
