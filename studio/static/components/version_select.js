// Which models there are, which one is worked with, and what is known of it. One choice for all views but Compare.
import { getJson, withQuery } from './api.js';
import { el } from './pieces.js';

/** Fires 'change' when another version is chosen. */
export const chosen = new EventTarget();

let current = null; // an id, once known or asked for in the address
let listing = null; // a promise, so that views that ask at once ask the server once
const models = new Map();

/** {default, versions}; asked anew after a failure. */
export function listVersions() {
  listing ??= getJson('/api/versions').catch((error) => {
    listing = null;
    throw error;
  });
  return listing;
}

/** The id of the version that is worked with. */
export async function currentVersion() {
  current ??= (await listVersions()).default;
  return current;
}

/** What /api/model says of a version. */
export function describe(version) {
  if (!models.has(version)) {
    models.set(
      version,
      getJson(withQuery('/api/model', { version })).catch((error) => {
        models.delete(version);
        throw error;
      }),
    );
  }
  return models.get(version);
}

/** The model that is worked with. */
export const currentModel = async () => describe(await currentVersion());

export function chooseVersion(id) {
  if (!id || id === current) return;
  current = id;
  chosen.dispatchEvent(new Event('change'));
}

/** Fills a select with all versions, and keeps it and the choice alike. */
export async function armVersionSelect(select) {
  await fillVersions(select, await currentVersion());
  select.addEventListener('change', () => chooseVersion(select.value));
  chosen.addEventListener('change', () => {
    select.value = current;
  });
}

export async function fillVersions(select, value) {
  const { versions } = await listVersions();
  select.replaceChildren(...versions.map((version) => el('option', { value: version.id }, nameOf(version))));
  select.value = value;
}

/** "version 3 (champion)". */
export const nameOf = ({ label, aliases }) => (aliases.length ? `${label} (${aliases.join(', ')})` : label);

/** The listed version of that id, or nothing. */
export const entryOf = async (id) => (await listVersions()).versions.find((version) => version.id === id);
