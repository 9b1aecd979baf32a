// The foldable "Settings" of a form, and the request that a form describes. An empty field means the package's own value.
import { ApiError } from '../lib/api.js';
import { t } from '../lib/language.js';
import { currentModel, initVersionSelect, versionChange, versionOf } from './version_select.js';

export const SAMPLING_FIELDS = ['temperature', 'top_k', 'top_p', 'guidance'];
const LABELS = {
  candidates: t`The number of candidates`,
  seed: t`The seed`,
  token: t`The token`,
  temperature: t`The temperature`,
  top_k: t`Top-k`,
  top_p: t`Top-p`,
  guidance: t`The guidance`,
};

/** Fill the <details> of `form`; throws ApiError if the server does not describe its models. */
export async function initSettings(form) {
  const details = form.querySelector('details.settings');
  if (!details.childElementCount) {
    details.append(document.getElementById('settings').content.cloneNode(true));
    versionChange.addEventListener('change', () => showModel(form).catch(() => {})); // the view shows this error
  }
  const select = details.querySelector('.version');
  if (!select.options.length) await initVersionSelect(select);
  await showModel(form);
}

async function showModel(form) {
  const model = await currentModel();
  for (const name of SAMPLING_FIELDS) form.elements[name].placeholder = model.settings[name] ?? t`all`;
  form.elements.candidates.max = model.max_candidates;
  form.elements.guidance.disabled = !model.can_guide;
  form.querySelector('[data-part=guidance-hint]').textContent = model.can_guide
    ? t`Above 1: closer to the caption.`
    : t`Not available: this model was not trained with caption_dropout.`;
  form.querySelector('[data-part=version-note]').textContent = (await versionOf(model.version))?.note ?? '';
}

/** The form's values as a request for POST /api/generate; throws ApiError with the name of a field whose value is wrong. */
export function requestOf(form) {
  const request = { prompt: form.elements.prompt.value.trim() };
  if (!request.prompt) throw new ApiError(t`Enter a caption.`, { status: 422, field: 'prompt' });
  request.candidates = integerOf(form, 'candidates', 1, Number(form.elements.candidates.max));
  request.seed = integerOf(form, 'seed', 0, Number.MAX_SAFE_INTEGER);
  for (const name of SAMPLING_FIELDS) {
    const value = numberOf(form.elements[name]);
    if (value !== null) request[name] = value;
  }
  return request;
}

/** The number in an input; null if the input is empty, disabled or missing. */
function numberOf(input) {
  if (!input || input.disabled) return null;
  if (input.validity.badInput) throw new ApiError(t`${LABELS[input.name]} is not a number.`, { status: 422, field: input.name });
  return input.value === '' ? null : Number(input.value);
}

export function integerOf(form, name, min, max) {
  const value = numberOf(form.elements[name]);
  if (Number.isInteger(value) && value >= min && value <= max) return value;
  throw new ApiError(t`${LABELS[name]} must be a whole number from ${min} to ${max}.`, { status: 422, field: name });
}
