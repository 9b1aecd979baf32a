// Batch: a generation for each caption of a list, and for each value of one setting; the best candidate of each in a table.
import { candidateButton } from '../components/candidate_grid.js';
import { generateImages, showUnusedText } from '../components/generation.js';
import { openImageDialog } from '../components/image_dialog.js';
import { clearNotice, showError } from '../components/notice.js';
import { initRequestFields } from '../components/request_fields.js';
import { initSettings, requestOf } from '../components/sampling_settings.js';
import { currentVersion } from '../components/version_select.js';
import { ApiError } from '../lib/api.js';
import { announce, el, initStopButton, labelOf, onSubmit, parts, pluralize } from '../lib/dom.js';
import { t } from '../lib/language.js';

export function createBatchView(view) {
  const form = view.querySelector('form');
  const part = parts(view);
  const seed = initRequestFields(form, part.requestFields, 4);
  const { vary } = form.elements;
  let controller = null;
  let cells = []; // {request, place, note, isDone}, in the order of the table
  const onRunningChange = initStopButton(view, part.stop, () => controller?.abort());

  async function start() {
    try {
      clearNotice(part.notice, form);
      seed.next();
      const request = { ...requestOf(form), version: await currentVersion() };
      const captions = request.prompt.split('\n').map((line) => line.trim()).filter(Boolean);
      const values = vary.value ? valuesOf(form) : [null];
      cells = showTable(part.results, request, captions, vary.value, values);
      await proceed();
    } catch (error) {
      showError(part.notice, error, { form });
    }
  }

  /** Generate what is not done yet; after an error a retry goes on where it was. */
  async function proceed() {
    controller?.abort();
    const { signal } = (controller = new AbortController());
    onRunningChange(true);
    try {
      clearNotice(part.notice);
      for (const cell of cells.filter(({ isDone }) => !isDone)) {
        part.status.textContent = progressOf(cells);
        await fill(cell, signal);
      }
      part.status.textContent = t`${progressOf(cells)}, all of them in the gallery`;
      announce(part.status.textContent);
    } catch (error) {
      if (signal !== controller.signal) return; // a newer batch uses this place now
      part.status.textContent = signal.aborted ? t`Stopped after ${progressOf(cells)}` : progressOf(cells);
      if (error.field && error.field === vary.value) error.field = 'values';
      showError(part.notice, error, { retry: proceed, form });
    } finally {
      if (signal === controller.signal) onRunningChange(false);
    }
  }

  vary.addEventListener('change', () => {
    part.valuesField.hidden = !vary.value;
    form.elements.values.value = '';
  });
  onSubmit(form, start);
  const loadModel = () => initSettings(form).catch((error) => showError(part.notice, error, { retry: loadModel }));
  loadModel();
  return { enter() {} };
}

const progressOf = (cells) => t`${cells.filter(({ isDone }) => isDone).length} of ${pluralize(cells.length, 'generation')}`;

/** The numbers of the field: "0.5, 1" -> [0.5, 1]; throws ApiError. */
function valuesOf(form) {
  const values = form.elements.values.value.split(/[\s,;]+/).filter(Boolean).map(Number);
  if (values.length && !values.some(Number.isNaN)) return values;
  throw new ApiError(t`Enter numbers, separated by commas.`, { status: 422, field: 'values' });
}

/** An empty table, a row for each caption and a column for each value -> its cells. */
function showTable(place, request, captions, setting, values) {
  const cells = [];
  const rows = captions.map((prompt) => {
    const note = el('small', { 'data-testid': 'truncated', hidden: true });
    const columns = values.map((value) => {
      const cell = { request: { ...request, prompt, ...(setting && { [setting]: value }) }, note, isDone: false };
      cell.place = el('td', {}, el('div', { class: 'candidate pending', 'aria-hidden': 'true' }));
      cells.push(cell);
      return cell.place;
    });
    return el('tr', {}, el('th', { scope: 'row' }, prompt, note), columns);
  });
  const head = setting && el('tr', {}, el('td'), values.map((value) => el('th', { scope: 'col' }, `${labelOf(setting)} ${value}`)));
  place.replaceChildren(el('table', { class: 'batch' }, head && el('thead', {}, head), el('tbody', {}, rows)));
  return cells;
}

async function fill(cell, signal) {
  const { started, images } = await generateImages(cell.request, signal);
  cell.isDone = true;
  cell.place.replaceChildren(candidateButton(images[0], () => openImageDialog(images)));
  showUnusedText(cell.note, started);
}
