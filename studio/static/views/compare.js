// Compare: two models side by side, with the same caption and seed.
import { createGeneration } from '../components/generation.js';
import { clearNotice, showError } from '../components/notice.js';
import { initRequestFields } from '../components/request_fields.js';
import { requestOf } from '../components/sampling_settings.js';
import { describeModel, fillVersions, listVersions, nameOf, versionOf } from '../components/version_select.js';
import { initStopButton, onSubmit, parts } from '../lib/dom.js';
import { updateAddress } from '../lib/router.js';

export function createCompareView(view) {
  const part = parts(view);
  const { form } = part;
  const seed = initRequestFields(form, part.requestFields, 8);
  const running = new Set();
  const stop = () => generations.forEach((generation) => generation.stop());
  const onRunningChange = initStopButton(view, part.stop, stop);
  const generations = [...part.results.querySelectorAll('.generation')].map((root, index) =>
    createGeneration(root, (isRunning) => {
      running[isRunning ? 'add' : 'delete'](index);
      onRunningChange(running.size > 0);
    }),
  );

  async function load(query) {
    try {
      clearNotice(part.notice);
      const { versions, default: defaultId } = await listVersions();
      part.oneModel.hidden = versions.length > 1;
      form.hidden = versions.length < 2;
      const otherVersions = versions.filter(({ id }) => id !== defaultId);
      const second = otherVersions.find(({ aliases }) => aliases.includes('champion')) ?? otherVersions[0];
      await fillVersions(form.elements.left, query.left ?? defaultId);
      await fillVersions(form.elements.right, query.right ?? second?.id);
      form.elements.prompt.value = query.caption ?? form.elements.prompt.value;
      if (query.seed !== form.elements.seed.value) seed.fix(query.seed); // Back, with the seed of the last images, does not
      await showExample(form);
    } catch (error) {
      showError(part.notice, error, { retry: () => load(query) });
    }
  }

  async function generateBoth() {
    try {
      clearNotice(part.notice, form);
      seed.next();
      const request = requestOf(form);
      const versions = [form.elements.left.value, form.elements.right.value];
      await showName(part.leftName, versions[0]);
      await showName(part.rightName, versions[1]);
      part.results.hidden = false;
      storeInAddress();
      await Promise.all(versions.map((version, index) => generations[index].start({ ...request, version })));
    } catch (error) {
      showError(part.notice, error, { retry: generateBoth, form });
    }
  }

  function storeInAddress() {
    const { elements } = form;
    const [left, right] = [elements.left.value, elements.right.value];
    updateAddress('compare', { caption: elements.prompt.value, seed: elements.seed.value, left, right });
  }

  onSubmit(form, generateBoth);
  let isLoaded = false;

  return {
    enter(query) {
      if (isLoaded && !Object.keys(query).length) return storeInAddress();
      isLoaded = true;
      return load(query);
    },
  };
}

/** Show one of the model's example captions as the placeholder. */
async function showExample(form) {
  const { examples, max_candidates: maxCandidates } = await describeModel(form.elements.left.value);
  form.elements.prompt.placeholder = examples[0] ?? '';
  form.elements.candidates.max = maxCandidates;
}

async function showName(place, id) {
  const version = await versionOf(id);
  place.textContent = version ? nameOf(version) : id;
}
