// The model versions: which ones exist, which one is selected, and its description. One selection for all views but Compare.
import { getJson, withQuery } from '../lib/api.js';
import { el } from '../lib/dom.js';

/** Fires 'change' when another version is selected. */
export const versionChange = new EventTarget();

let selectedId = null; // set by the address or by the server's default
let listing = null; // a promise, so that several views share one request
const models = new Map();

/** {default, versions}; requested again after a failure. */
export function listVersions() {
  listing ??= getJson('/api/versions').catch((error) => {
    listing = null;
    throw error;
  });
  return listing;
}

/** The id of the selected version. */
export async function currentVersion() {
  selectedId ??= (await listVersions()).default;
  return selectedId;
}

/** The answer of /api/model for a version. */
export function describeModel(version) {
  if (!models.has(version)) {
    const description = getJson(withQuery('/api/model', { version })).catch((error) => {
      models.delete(version);
      throw error;
    });
    models.set(version, description);
  }
  return models.get(version);
}

/** The description of the selected model. */
export const currentModel = async () => describeModel(await currentVersion());

export function selectVersion(id) {
  if (!id || id === selectedId) return;
  selectedId = id;
  versionChange.dispatchEvent(new Event('change'));
}

/** Fill a <select> with all versions, and keep it equal to the selection of the page. */
export async function initVersionSelect(select) {
  await fillVersions(select, await currentVersion());
  select.addEventListener('change', () => selectVersion(select.value));
  versionChange.addEventListener('change', () => {
    select.value = selectedId;
  });
}

export async function fillVersions(select, value) {
  const { versions } = await listVersions();
  select.replaceChildren(...versions.map((version) => el('option', { value: version.id }, nameOf(version))));
  select.value = value;
}

/** "version 3 (champion)". */
export const nameOf = ({ label, aliases }) => (aliases.length ? `${label} (${aliases.join(', ')})` : label);

/** The listed version with this id, or undefined. */
export const versionOf = async (id) => (await listVersions()).versions.find((version) => version.id === id);
