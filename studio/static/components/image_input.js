// Image input: a file that the user chooses or drops.
import { el } from '../lib/dom.js';

const IMAGE_TYPES = 'image/png,image/jpeg,image/webp,image/gif,image/bmp,image/tiff';

/** A zone to choose a file in or drop one on; `onFile` gets the file. The input stays reachable by keyboard. */
export function dropZone({ label, hint, testid = 'upload', onFile }) {
  const input = el('input', { type: 'file', accept: IMAGE_TYPES, 'data-testid': testid });
  const zone = el('label', { class: 'drop-zone' }, input, el('strong', {}, label), el('span', {}, hint));
  input.addEventListener('change', () => {
    const [file] = input.files;
    if (file) onFile(file);
    input.value = ''; // so that the same file can be chosen again
  });
  acceptDrops(zone, onFile);
  return zone;
}

/** Accept files dropped on an element; an inner zone comes before an outer one. */
export function acceptDrops(target, onFile) {
  target.addEventListener('dragover', (event) => {
    if (!hasFiles(event) || event.defaultPrevented) return;
    event.preventDefault();
    target.classList?.add('drag-over');
  });
  target.addEventListener('dragleave', () => target.classList?.remove('drag-over'));
  target.addEventListener('drop', (event) => {
    target.classList?.remove('drag-over');
    if (!hasFiles(event) || event.defaultPrevented) return;
    event.preventDefault();
    onFile(event.dataTransfer.files[0]);
  });
}

const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes('Files');
