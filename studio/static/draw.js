// Draw: a caption in, candidates out, best first.
import { makeBoard } from './board.js';
import { openStudioPicture } from './detail.js';
import { clearNotice, showError } from './notice.js';
import { armDice, armStop, parts } from './pieces.js';
import { keepInAddress } from './router.js';
import { armSettings, exampleChips, requestOf } from './settings.js';
import { dropZone } from './source.js';
import { recall, remember } from './store.js';
import { chooseVersion, chosen, currentModel, currentVersion } from './versions.js';

const KEPT = ['prompt', 'candidates', 'seed', 'temperature', 'top_k', 'top_p', 'guidance'];

export function makeDraw(view) {
  const form = view.querySelector('form');
  const part = parts(view);
  const board = makeBoard(view.querySelector('.board'), armStop(view, part.stop, () => board.stop()));
  const notices = view.querySelector('.notices');

  async function load() {
    try {
      clearNotice(notices);
      await armSettings(form);
      await showExamples(part.examples, form);
    } catch (error) {
      showError(notices, error, { retry: load });
    }
  }

  async function draw() {
    try {
      clearNotice(notices, form);
      const request = { ...requestOf(form), version: await currentVersion() };
      part.empty.hidden = true;
      keep();
      await board.draw(request, form);
    } catch (error) {
      showError(notices, error, { retry: draw, form });
    }
  }

  function keep() {
    remember('draw', Object.fromEntries(KEPT.map((name) => [name, form.elements[name]?.value ?? ''])));
    keepAddress(form);
  }

  form.addEventListener('submit', (event) => { event.preventDefault(); draw(); });
  form.addEventListener('input', keep);
  chosen.addEventListener('change', () => { keepAddress(form); showExamples(part.examples, form).catch((error) => showError(notices, error, { retry: load })); });
  part.opener.append(dropZone({ label: 'Open a picture of the studio', hint: 'it tells how it was drawn, and is drawn again', testid: 'upload-studio', onFile: openStudioPicture }));
  armDice(part.dice, form);
  const ready = load().then(() => fill(form, recall('draw')));

  return {
    async enter(query, payload) {
      await ready;
      if (query.version) chooseVersion(query.version);
      fill(form, { prompt: query.caption, seed: query.seed });
      if (payload?.settings) fill(form, payload.settings);
      keep();
      if (payload?.drawNow) draw();
      else if (hasKeyboard()) form.elements.prompt.focus({ preventScroll: true });
    },
  };
}

/** On a phone the focus would raise a keyboard over half of the page. */
const hasKeyboard = () => matchMedia('(pointer: fine)').matches;

/** Writes those values that are there; a form that is new has the packaged numbers. */
function fill(form, values) {
  const start = { candidates: form.elements.candidates.value || 16, seed: form.elements.seed.value || 0 };
  for (const name of KEPT) {
    const value = values[name] ?? start[name];
    if (value !== undefined && form.elements[name]) form.elements[name].value = value;
  }
}

async function showExamples(place, form) {
  const { examples } = await currentModel();
  place.replaceChildren(...exampleChips(examples, (caption) => {
    form.elements.prompt.value = caption;
    form.elements.prompt.dispatchEvent(new Event('input', { bubbles: true }));
    form.elements.prompt.focus();
  }));
}

async function keepAddress(form) {
  const { prompt, seed } = form.elements;
  keepInAddress('draw', { caption: prompt.value, seed: seed.value, version: await currentVersion().catch(() => null) });
}
