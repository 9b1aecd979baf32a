// One generation, from the request to the ranking: shows the progress, the candidates and errors.
import { ApiError, postForEvents } from '../lib/api.js';
import { announce, el, pluralize } from '../lib/dom.js';
import { t } from '../lib/language.js';
import { candidateButton, emptySlots, fillSlot, reorderSlots } from './candidate_grid.js';
import { openImageDialog } from './image_dialog.js';
import { clearNotice, showError } from './notice.js';

/** A generation in `root`: start(request, form) and stop(); `onChange(isRunning)` is called at both ends. */
export function createGeneration(root, onChange = () => {}) {
  const ui = {
    status: el('p', { class: 'status', 'data-testid': 'status' }),
    progress: el('progress', { class: 'progress', 'aria-label': t`Generated so far`, hidden: true }),
    note: el('p', { class: 'note', 'data-testid': 'truncated', hidden: true }),
    notices: el('div', { class: 'notices' }),
    list: el('ul', { class: 'image-grid' }),
  };
  root.replaceChildren(ui.status, ui.progress, ui.note, ui.notices, ui.list);
  let controller = null;

  async function start(request, form = null) {
    stop();
    const ownController = (controller = new AbortController());
    onChange(true);
    try {
      await readEvents(ui, request, ownController.signal, form);
    } catch (error) {
      if (controller !== ownController) return; // a newer generation uses this place now
      showEnd(ui, ownController.signal);
      showError(ui.notices, error, { retry: () => start(request, form), form });
    } finally {
      if (controller === ownController) {
        controller = null;
        onChange(false);
      }
    }
  }

  const stop = () => controller?.abort();

  return { start, stop };
}

async function readEvents(ui, request, signal, form) {
  const state = { request, images: [], slots: emptySlots(request.candidates) };
  showStart(ui, state, form);
  await followEvents(state, signal, (event) => EVENT_HANDLERS[event.event]?.(ui, state, event)); // ignore newer events
}

/** A whole generation without its own place on the page -> {started, images: best first}. */
export async function generateImages(request, signal) {
  const state = { request, images: [] };
  await followEvents(state, signal);
  return { started: state.started, images: inOrder(state) };
}

/** Read the events to the end, because the server takes a closed connection for a stop. Throws ApiError. */
async function followEvents(state, signal, onEvent = () => {}) {
  for await (const event of postForEvents('/api/generate', state.request, signal)) {
    if (event.event === 'error') throw new ApiError(event.error, { status: 500 });
    if (event.event === 'started') state.started = event;
    if (event.event === 'candidate') state.images[event.candidate] = imageOf(state, event);
    if (event.event === 'ranked') state.order = event.order;
    onEvent(event);
  }
  if (!state.order) throw new ApiError(t`The server’s answer is not complete. Generate again.`, { status: 500 });
}

function imageOf({ started, request }, { candidate, png, tokens, score }) {
  const { prompt: caption, seed, version, candidates } = started;
  return { candidate, png, tokens, score, caption, seed, version, candidates, fixedTokens: request.fixed_tokens ?? null };
}

function showStart(ui, state, form) {
  clearNotice(ui.notices, form);
  ui.list.replaceChildren(...state.slots);
  ui.note.hidden = true;
  ui.status.textContent = t`Waiting for the model …`;
  Object.assign(ui.progress, { hidden: false, max: state.slots.length, value: 0 });
  ui.progress.removeAttribute('value'); // without a value the bar shows "busy"
}

const EVENT_HANDLERS = {
  queued(ui, state, { ahead }) {
    ui.status.textContent = ahead ? t`${pluralize(ahead, 'request')} ahead of yours` : t`Your request is next`;
    announce(ui.status.textContent);
  },

  started(ui, state, event) {
    setSlotCount(ui, state, event.candidates);
    showProgress(ui, state);
    showUnusedText(ui.note, event);
  },

  candidate(ui, state, event) {
    const image = state.images[event.candidate];
    const open = () => openImageDialog(inOrder(state), inOrder(state).indexOf(image));
    fillSlot(state.slots[event.candidate], candidateButton(image, open));
    showProgress(ui, state);
  },

  ranked(ui, state, { order, seconds, id }) {
    reorderSlots(ui.list, order.map((candidate) => state.slots[candidate]));
    state.slots[order[0]].classList.add('best');
    ui.progress.hidden = true;
    const unsaved = id ? '' : t`; the gallery could not save them`;
    ui.status.textContent = t`${pluralize(order.length, 'candidate')} in ${seconds.toFixed(1)} s, best first${unsaved}`;
    announce(ui.status.textContent);
  },
};

/** The server may use another number of candidates than the request. */
function setSlotCount(ui, state, number) {
  if (number === state.slots.length) return;
  state.slots = emptySlots(number);
  ui.list.replaceChildren(...state.slots);
  ui.progress.max = number;
}

function showProgress(ui, state) {
  const done = state.images.filter(Boolean).length;
  ui.progress.value = done;
  ui.status.textContent = t`${done} of ${state.slots.length}`;
}

/** What the model cannot use of a caption, or has not seen in training. */
export function showUnusedText(note, { truncated, text_used: usedText, unseen_words: unseenWords = [], max_words: maxWords }) {
  note.replaceChildren();
  if (truncated) note.append(t`The caption is too long for the model. It reads only:`, ' ', el('q', {}, usedText), '. ');
  if (maxWords) note.append(t`The caption is longer than those of training, which have up to ${pluralize(maxWords, 'word')}.`, ' ');
  if (unseenWords.length) note.append(t`No training caption has: ${unseenWords.join(', ')}.`);
  note.hidden = !note.hasChildNodes();
}

/** Keep the finished candidates and remove the slots that stay empty. */
function showEnd(ui, signal) {
  ui.progress.hidden = true;
  for (const pending of ui.list.querySelectorAll('.pending')) pending.closest('li').remove();
  ui.status.textContent = signal.aborted ? t`Stopped after ${pluralize(ui.list.children.length, 'candidate')}` : '';
  if (signal.aborted) announce(ui.status.textContent);
}

const inOrder = (state) => (state.order ?? Object.keys(state.images)).map((candidate) => state.images[candidate]);
