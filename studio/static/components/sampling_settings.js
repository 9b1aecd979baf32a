// The fold "Settings" of a form, and what a form asks of a draw. An empty field is left out: then the packaged value holds.
import { ApiError } from './api.js';
import { el } from './pieces.js';
import { armVersionSelect, chosen, currentModel, entryOf } from './versions.js';

export const NUMBERS = ['temperature', 'top_k', 'top_p', 'guidance'];
const NAMES = {
  candidates: 'The number of candidates',
  seed: 'The seed',
  temperature: 'The temperature',
  top_k: 'Top-k',
  top_p: 'Top-p',
  guidance: 'The guidance',
};

/** Fills the <details> of `form`; raises ApiError where the server does not say what its models are. */
export async function armSettings(form) {
  const fold = form.querySelector('details.settings');
  if (!fold.childElementCount) {
    fold.append(document.getElementById('settings').content.cloneNode(true));
    chosen.addEventListener('change', () => showModel(form).catch(() => {})); // the view tells of it
  }
  const select = fold.querySelector('.version');
  if (!select.options.length) await armVersionSelect(select);
  await showModel(form);
}

async function showModel(form) {
  const model = await currentModel();
  for (const name of NUMBERS) form.elements[name].placeholder = model.settings[name] ?? 'all';
  form.elements.candidates.max = model.most_candidates;
  showGuidance(form, model.can_guide);
  form.querySelector('[data-part=version-note]').textContent = (await entryOf(model.version))?.note ?? '';
}

function showGuidance(form, canGuide) {
  form.elements.guidance.disabled = !canGuide;
  form.querySelector('[data-part=guidance-hint]').textContent = canGuide
    ? 'Above 1: closer to the caption.'
    : 'Not with this model: it was not trained with caption_dropout.';
}

/** What the form asks for, as POST /api/draw wants it; raises ApiError with the field that holds no fitting number. */
export function requestOf(form) {
  const request = { prompt: form.elements.prompt.value.trim() };
  if (!request.prompt) throw new ApiError('Say what shall be drawn.', { status: 422, field: 'prompt' });
  request.candidates = whole(form, 'candidates', 1, Number(form.elements.candidates.max));
  request.seed = whole(form, 'seed', 0, Number.MAX_SAFE_INTEGER);
  for (const name of NUMBERS) {
    const value = number(form.elements[name]);
    if (value !== null) request[name] = value;
  }
  return request;
}

/** The number in an input, null where it is empty, disabled or not there. */
function number(input) {
  if (!input || input.disabled) return null;
  if (input.validity.badInput) throw new ApiError(`${NAMES[input.name]} is no number.`, { status: 422, field: input.name });
  return input.value === '' ? null : Number(input.value);
}

export function whole(form, name, least, most) {
  const value = number(form.elements[name]);
  if (Number.isInteger(value) && value >= least && value <= most) return value;
  throw new ApiError(`${NAMES[name] ?? 'This'} is a whole number from ${least} to ${most}.`, { status: 422, field: name });
}

/** Example captions as buttons; `use(caption)` is called with the one that is chosen. */
export const exampleChips = (examples, use) =>
  examples.map((caption) =>
    el('button', { type: 'button', class: 'chip', 'data-testid': 'example', onclick: () => use(caption) }, caption),
  );
