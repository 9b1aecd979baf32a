// Generate: enter a caption, get candidates, best first.
import { createGeneration } from '../components/generation.js';
import { openStudioImage } from '../components/image_dialog.js';
import { dropZone } from '../components/image_input.js';
import { clearNotice, showError } from '../components/notice.js';
import { initRequestFields } from '../components/request_fields.js';
import { initSettings, requestOf, SAMPLING_FIELDS } from '../components/sampling_settings.js';
import { currentModel, currentVersion, selectVersion, versionChange } from '../components/version_select.js';
import { button, initStopButton, onSubmit, parts } from '../lib/dom.js';
import { t } from '../lib/language.js';
import { updateAddress } from '../lib/router.js';
import { load, store } from '../lib/session_storage.js';

const STORED_FIELDS = ['prompt', 'candidates', ...SAMPLING_FIELDS];

export function createGenerateView(view) {
  const form = view.querySelector('form');
  const part = parts(view);
  const onRunningChange = initStopButton(view, part.stop, () => generation.stop());
  const generation = createGeneration(view.querySelector('.generation'), onRunningChange);
  const notices = view.querySelector('.notices');
  const seed = initRequestFields(form, part.requestFields, 16);
  const stored = load('generate');

  async function loadModel() {
    try {
      clearNotice(notices);
      await initSettings(form);
      fillForm(form, { ...stored, prompt: undefined, candidates: undefined }); // filled at the start
      await showExamples(part.examples, form);
    } catch (error) {
      showError(notices, error, { retry: loadModel });
    }
  }

  async function generate() {
    try {
      clearNotice(notices, form);
      seed.next();
      const request = { ...requestOf(form), version: await currentVersion() };
      part.empty.hidden = true;
      storeForm();
      await generation.start(request, form);
    } catch (error) {
      showError(notices, error, { retry: generate, form });
    }
  }

  function storeForm() {
    for (const name of STORED_FIELDS) if (form.elements[name]) stored[name] = form.elements[name].value;
    store('generate', stored);
    storeInAddress(form);
  }

  onSubmit(form, generate);
  form.addEventListener('input', storeForm);
  versionChange.addEventListener('change', () => {
    storeInAddress(form);
    showExamples(part.examples, form).catch((error) => showError(notices, error, { retry: loadModel }));
  });
  const texts = { label: t`Open an image from the studio`, hint: t`to generate it again from its provenance` };
  part.openFile.append(dropZone({ ...texts, testid: 'upload-studio', onFile: openStudioImage }));
  fillForm(form, stored);
  let modelLoaded = null;

  return {
    async enter(query, payload) {
      selectVersion(query.version);
      fillForm(form, { prompt: query.caption });
      if (payload || query.seed !== form.elements.seed.value) seed.fix(query.seed); // Back, with the seed of the last images, does not
      if (!payload && hasKeyboard()) form.elements.prompt.focus({ preventScroll: true });
      await (modelLoaded ??= loadModel());
      if (payload?.settings) fillForm(form, await fieldValuesOf(payload.settings));
      storeForm();
      if (payload?.generateNow) generate();
    },
  };
}

/** Settings as field values. An empty field means the package's value, so if that differs, "all tokens" needs a number. */
async function fieldValuesOf(settings) {
  const { settings: packageSettings, vocab_size: vocabSize } = await currentModel();
  const allTokens = { top_k: vocabSize, top_p: 1 };
  const valueOf = (name) => (settings[name] === packageSettings[name] ? '' : (settings[name] ?? allTokens[name]));
  return { ...settings, ...Object.fromEntries(SAMPLING_FIELDS.map((name) => [name, valueOf(name)])) };
}

/** On a phone, the focus would open a keyboard over half of the page. */
const hasKeyboard = () => matchMedia('(pointer: fine)').matches;

/** Set the fields that have a value. */
function fillForm(form, values) {
  for (const name of STORED_FIELDS)
    if (values[name] !== undefined && form.elements[name]) form.elements[name].value = values[name];
}

async function showExamples(place, form) {
  const { examples } = await currentModel();
  const { prompt } = form.elements;
  const use = (caption) => {
    prompt.value = caption;
    prompt.dispatchEvent(new Event('input', { bubbles: true }));
    prompt.focus();
  };
  place.replaceChildren(...examples.map((caption) => button(caption, 'example', () => use(caption), { class: 'chip' })));
}

async function storeInAddress(form) {
  const { prompt, seed } = form.elements;
  updateAddress('generate', { caption: prompt.value, seed: seed.value, version: await currentVersion().catch(() => null) });
}
