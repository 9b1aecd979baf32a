// Draw: a caption in, candidates out, best first.
import { makeBoard } from './board.js';
import { openStudioPicture } from './detail.js';
import { clearNotice, showError } from './notice.js';
import { armDice, armStop, parts } from './pieces.js';
import { keepInAddress } from './router.js';
import { armSettings, exampleChips, NUMBERS, requestOf } from './settings.js';
import { dropZone } from './source.js';
import { recall, remember } from './store.js';
import { chooseVersion, chosen, currentModel, currentVersion } from './versions.js';

const KEPT = ['prompt', 'candidates', 'seed', ...NUMBERS];

export function makeDraw(view) {
  const form = view.querySelector('form');
  const part = parts(view);
  const board = makeBoard(
    view.querySelector('.board'),
    armStop(view, part.stop, () => board.stop()),
  );
  const notices = view.querySelector('.notices');
  const kept = recall('draw');

  async function load() {
    try {
      clearNotice(notices);
      await armSettings(form);
      fill(form, { ...kept, prompt: undefined, candidates: undefined, seed: undefined }); // those are there from the start
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
    for (const name of KEPT) if (form.elements[name]) kept[name] = form.elements[name].value;
    remember('draw', kept);
    keepAddress(form);
  }

  form.addEventListener('submit', (event) => {
    event.preventDefault();
    draw();
  });
  form.addEventListener('input', keep);
  chosen.addEventListener('change', () => {
    keepAddress(form);
    showExamples(part.examples, form).catch((error) => showError(notices, error, { retry: load }));
  });
  part.opener.append(
    dropZone({
      label: 'Open a picture of the studio',
      hint: 'it tells how it was drawn, and is drawn again',
      testid: 'upload-studio',
      onFile: openStudioPicture,
    }),
  );
  armDice(part.dice, form);
  fill(form, kept);
  let ready = null;

  return {
    async enter(query, payload) {
      chooseVersion(query.version);
      fill(form, { prompt: query.caption, seed: query.seed });
      if (!payload && hasKeyboard()) form.elements.prompt.focus({ preventScroll: true });
      await (ready ??= load());
      if (payload?.settings) fill(form, await asTyped(payload.settings));
      keep();
      if (payload?.drawNow) draw();
    },
  };
}

/** Settings as a form says them: an empty field is the packaged value, so where that is another, "all words" needs a number. */
async function asTyped(settings) {
  const { settings: packaged, vocab_size: words } = await currentModel();
  const all = { top_k: words, top_p: 1 };
  const typed = NUMBERS.map((name) => [name, settings[name] === packaged[name] ? '' : (settings[name] ?? all[name])]);
  return { ...settings, ...Object.fromEntries(typed) };
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
  place.replaceChildren(
    ...exampleChips(examples, (caption) => {
      form.elements.prompt.value = caption;
      form.elements.prompt.dispatchEvent(new Event('input', { bubbles: true }));
      form.elements.prompt.focus();
    }),
  );
}

async function keepAddress(form) {
  const { prompt, seed } = form.elements;
  keepInAddress('draw', { caption: prompt.value, seed: seed.value, version: await currentVersion().catch(() => null) });
}
