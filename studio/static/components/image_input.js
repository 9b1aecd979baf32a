// Where a picture comes in: a file chosen or dropped.
import { el } from './pieces.js';

export const PICTURES = 'image/png,image/jpeg,image/webp,image/gif,image/bmp,image/tiff';

/** A zone to choose a file in or drop one on; `onFile` gets it. The input stays in the keyboard's reach. */
export function dropZone({ label, hint, testid = 'upload', onFile }) {
  const input = el('input', { type: 'file', accept: PICTURES, 'data-testid': testid });
  const zone = el('label', { class: 'drop' }, input, el('strong', {}, label), el('span', {}, hint));
  input.addEventListener('change', () => {
    const [file] = input.files;
    if (file) onFile(file);
    input.value = ''; // the same file may be chosen again
  });
  takeDrops(zone, onFile);
  return zone;
}

/** Lets files be dropped on an element; an inner zone takes them from an outer one. */
export function takeDrops(target, onFile) {
  target.addEventListener('dragover', (event) => {
    if (!hasFiles(event) || event.defaultPrevented) return;
    event.preventDefault();
    target.classList?.add('over');
  });
  target.addEventListener('dragleave', () => target.classList?.remove('over'));
  target.addEventListener('drop', (event) => {
    target.classList?.remove('over');
    if (!hasFiles(event) || event.defaultPrevented) return;
    event.preventDefault();
    onFile(event.dataTransfer.files[0]);
  });
}

const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes('Files');
