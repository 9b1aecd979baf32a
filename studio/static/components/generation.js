// One draw from the first word to the ranking: asks the server, and shows progress, candidates and what went wrong.
import { ApiError, postForEvents } from './api.js';
import { openDetail } from './detail.js';
import { clearNotice, showError } from './notice.js';
import { announce, count, el } from './pieces.js';
import { fill, placeholders, reorder, tile } from './tiles.js';

/** A board in `root`: draw(request, form) draws, stop() ends it; `onChange(isDrawing)` is told of both. */
export function makeBoard(root, onChange = () => {}) {
  const shown = {
    status: el('p', { class: 'status', 'data-testid': 'status' }),
    bar: el('progress', { class: 'bar', 'aria-label': 'Drawn so far', hidden: true }),
    note: el('p', { class: 'note', 'data-testid': 'truncated', hidden: true }),
    notices: el('div', { class: 'notices' }),
    list: el('ul', { class: 'tiles' }),
  };
  root.replaceChildren(shown.status, shown.bar, shown.note, shown.notices, shown.list);
  let controller = null;

  async function draw(request, form = null) {
    stop();
    const mine = (controller = new AbortController());
    onChange(true);
    try {
      await follow(shown, request, mine.signal, form);
    } catch (error) {
      if (controller !== mine) return; // another draw has begun here, and the board is its
      showEnd(shown, mine.signal);
      showError(shown.notices, error, { retry: () => draw(request, form), form });
    } finally {
      if (controller === mine) {
        controller = null;
        onChange(false);
      }
    }
  }

  function stop() {
    controller?.abort();
  }

  return { draw, stop, isDrawing: () => controller !== null };
}

async function follow(shown, request, signal, form) {
  const run = { request, drawn: [], places: placeholders(request.candidates), version: request.version };
  let isRanked = false;
  begin(shown, run, form);
  for await (const event of postForEvents('/api/draw', request, signal)) {
    const handle = HANDLERS[event.event];
    if (handle) handle(shown, run, event); // events that a later server adds are no concern of ours
    isRanked ||= event.event === 'ranked'; // read on to the end: hanging up early looks like a stop
  }
  if (!isRanked) throw new ApiError('The server stopped in the middle of its answer. Draw again.', { status: 500 });
}

function begin(shown, run, form) {
  clearNotice(shown.notices, form);
  shown.list.replaceChildren(...run.places);
  shown.note.hidden = true;
  shown.status.textContent = 'Asking the model …';
  Object.assign(shown.bar, { hidden: false, max: run.places.length, value: 0 });
  shown.bar.removeAttribute('value'); // no value: busy, nobody knows how far
}

const HANDLERS = {
  queued(shown, run, { ahead }) {
    shown.status.textContent = ahead ? `${ahead} ahead of you` : 'You are next';
    announce(shown.status.textContent);
  },

  started(shown, run, event) {
    Object.assign(run, { caption: event.prompt, seed: event.seed, version: event.version });
    fitPlaces(shown, run, event.candidates);
    showProgress(shown, run);
    if (event.truncated) showTruncated(shown.note, event.read);
  },

  candidate(shown, run, { candidate, png, words, score }) {
    const picture = {
      candidate,
      png,
      words,
      score,
      caption: run.caption,
      seed: run.seed,
      version: run.version,
      candidates: run.places.length,
      given: run.request.given ?? null,
    };
    run.drawn[candidate] = picture;
    fill(
      run.places[candidate],
      tile(picture, () => openDetail(inOrder(run), inOrder(run).indexOf(picture))),
    );
    showProgress(shown, run);
  },

  ranked(shown, run, { order, seconds, id }) {
    run.order = order;
    reorder(
      shown.list,
      order.map((candidate) => run.places[candidate]),
    );
    run.places[order[0]].classList.add('best');
    shown.bar.hidden = true;
    const loss = id ? '' : '; the gallery could not keep them';
    shown.status.textContent = `${count(order.length, 'candidate')} in ${seconds.toFixed(1)} s, best first${loss}`;
    announce(shown.status.textContent);
  },

  error(shown, run, { error }) {
    throw new ApiError(error, { status: 500 });
  },
};

/** The model may have a number of its own where none was asked for. */
function fitPlaces(shown, run, number) {
  if (number === run.places.length) return;
  run.places = placeholders(number);
  shown.list.replaceChildren(...run.places);
  shown.bar.max = number;
}

function showProgress(shown, run) {
  const done = run.drawn.filter(Boolean).length;
  shown.bar.value = done;
  shown.status.textContent = `${done} of ${run.places.length}`;
}

function showTruncated(note, read) {
  note.replaceChildren('The caption is longer than the model reads. It read: ', el('q', {}, read));
  note.hidden = false;
}

/** What was drawn stays; places that will not be filled go. */
function showEnd(shown, signal) {
  shown.bar.hidden = true;
  for (const place of shown.list.querySelectorAll('.pending')) place.closest('li').remove();
  shown.status.textContent = signal.aborted ? `Stopped after ${count(shown.list.children.length, 'candidate')}` : '';
  if (signal.aborted) announce(shown.status.textContent);
}

const inOrder = (run) => (run.order ?? Object.keys(run.drawn)).map((candidate) => run.drawn[candidate]);
