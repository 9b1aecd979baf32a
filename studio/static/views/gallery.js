// Gallery: past generations, newest first; one entry with all its candidates; stars; deletion and download of several.
import { candidateButton } from '../components/candidate_grid.js';
import { openImageDialog } from '../components/image_dialog.js';
import { clearNotice, showError } from '../components/notice.js';
import { currentVersion } from '../components/version_select.js';
import { deleteResource, getBytes, getJson, putResource, withQuery } from '../lib/api.js';
import { announce, button, confirmAction, el, formatDate, img, labelOf, metadataList } from '../lib/dom.js';
import { onSubmit, parts, pluralize } from '../lib/dom.js';
import { saveFile } from '../lib/images.js';
import { t } from '../lib/language.js';
import { openView } from '../lib/router.js';

const PAGE_SIZE = 24;
const NEUTRAL_SETTINGS = { temperature: 1, top_k: null, top_p: null, guidance: 1 };

export function createGalleryView(view) {
  const part = parts(view);
  let next = null;
  let query = ''; // the current search
  let shown = ''; // the search and filter whose results are on the page
  const selected = new Map(); // id -> entry
  let listScroll = 0; // scroll position of the list when an entry was opened

  const isListShown = () => part.list.parentNode === view;

  /** The request for a page of the newest entries, or for the results of a search. */
  const pageRequest = async (before) =>
    query
      ? { query, limit: PAGE_SIZE, version: await currentVersion() }
      : { before, limit: PAGE_SIZE, starred: isOnlyStarred() || null };

  const isOnlyStarred = () => part.onlyStarred.getAttribute('aria-pressed') === 'true';

  /** Load the newest page, or the one that follows the last page. */
  async function load(before = null) {
    try {
      clearNotice(part.notice);
      if (!part.entries.childElementCount) part.entries.replaceChildren(...Array.from({ length: 3 }, emptyCard));
      const { entries, next: nextPage } = await getJson(withQuery('/api/gallery', await pageRequest(before)));
      const isSame = !query && shown === filter() && entries[0]?.id === part.entries.firstElementChild?.dataset.id;
      if (!before && entries.length && isSame) return; // nothing new
      shown = filter();
      part.status.textContent = query ? t`Images nearest to “${query}”, best first` : '';
      next = nextPage;
      const cards = entries.map((entry) => card(entry, actions));
      if (before) part.entries.append(...cards);
      else {
        part.entries.replaceChildren(...(cards.length ? cards : [isOnlyStarred() ? noStars() : emptyGallery()]));
        clearSelection();
      }
      part.more.hidden = !next;
    } catch (error) {
      if (!before) part.entries.replaceChildren();
      showError(part.notice, error, { retry: () => load(before) });
    }
  }

  const filter = () => `${isOnlyStarred()} ${query}`;

  async function openEntry(id) {
    if (isListShown()) listScroll = scrollY;
    view.replaceChildren(part.entry);
    scrollTo(0, 0);
    part.entry.replaceChildren(el('p', { class: 'status busy' }, t`Loading …`));
    try {
      part.entry.replaceChildren(...entryPage(await getJson(addressInApi(id)), actions));
      part.entry.querySelector('h1').focus({ preventScroll: true });
    } catch (error) {
      showError(part.entry, error, { retry: () => openEntry(id) });
      part.entry.append(backLink());
    }
  }

  async function deleteEntries(entries) {
    const [{ candidates, prompt }] = entries;
    const ofOne = t`the ${pluralize(candidates, 'candidate')} of “${prompt}”`;
    const what = entries.length > 1 ? t`${entries.length} entries with all their images` : ofOne;
    const hint = t`This cannot be undone, but the same caption and seed generate them again.`;
    if (!(await confirmAction(t`Delete ${what}? ${hint}`, t`Delete`))) return;
    const left = [...entries];
    try {
      clearNotice(noticePlace());
      for (const { id } of entries) {
        await deleteResource(addressInApi(id)).catch((error) => {
          if (error.status !== 404) throw error; // another page deleted it
        });
        select({ id }, false);
        removeCard(id);
        left.shift();
      }
      announce(t`Deleted.`);
      if (!isListShown()) openView('gallery');
    } catch (error) {
      showError(noticePlace(), error, { retry: () => deleteEntries(left) });
    }
  }

  async function downloadZip(entries) {
    try {
      clearNotice(noticePlace());
      const names = new URLSearchParams(entries.map(({ id }) => ['name', id]));
      saveFile(await getBytes(`/api/gallery.zip?${names}`), 'thousandwords.zip');
    } catch (error) {
      showError(noticePlace(), error, { retry: () => downloadZip(entries) });
    }
  }

  async function toggleStar(entry, star) {
    try {
      clearNotice(noticePlace());
      await (entry.is_starred ? deleteResource : putResource)(`${addressInApi(entry.id)}/star`);
      entry.is_starred = !entry.is_starred;
      showStar(star, entry);
      shown = ''; // the list is loaded again when it is opened
    } catch (error) {
      showError(noticePlace(), error, { retry: () => toggleStar(entry, star) });
    }
  }

  /** Errors are shown beside the list or in the open entry. */
  const noticePlace = () => (isListShown() ? part.notice : part.entry.querySelector('.notices'));

  function select(entry, isSelected) {
    if (isSelected) selected.set(entry.id, entry);
    else selected.delete(entry.id);
    part.selection.hidden = !selected.size;
    part.count.textContent = t`${pluralize(selected.size, 'entry', 'entries')} selected`;
  }

  function clearSelection() {
    for (const box of part.entries.querySelectorAll('input:checked')) box.checked = false;
    for (const entry of [...selected.values()]) select(entry, false);
  }

  const actions = { deleteEntries, downloadZip, toggleStar, select };

  /** Remove a card and move the focus to its neighbor; an empty gallery shows a message. */
  function removeCard(id) {
    const removed = [...part.entries.children].find((entryCard) => entryCard.dataset.id === id);
    const neighbor = removed?.nextElementSibling ?? removed?.previousElementSibling;
    removed?.remove();
    neighbor?.querySelector('a')?.focus();
    if (!part.entries.childElementCount) load();
  }

  part.more.addEventListener('click', () => load(next));
  part.zip.addEventListener('click', () => downloadZip([...selected.values()]));
  part.delete.addEventListener('click', () => deleteEntries([...selected.values()]));
  part.clear.addEventListener('click', clearSelection);
  part.selectAll.addEventListener('click', () => {
    for (const box of part.entries.querySelectorAll('input:not(:checked)')) box.click();
  });
  part.onlyStarred.addEventListener('click', () => {
    part.onlyStarred.setAttribute('aria-pressed', String(!isOnlyStarred()));
    query = part.search.elements.query.value = '';
    load();
  });
  onSubmit(part.search, () => {
    query = part.search.elements.query.value.trim();
    part.onlyStarred.setAttribute('aria-pressed', 'false');
    load();
  });
  return {
    enter({ id }) {
      if (id) return openEntry(id);
      if (!isListShown()) {
        view.replaceChildren(part.list);
        scrollTo(0, listScroll);
      }
      return load();
    },
  };
}

const emptyCard = () => el('li', { class: 'card pending', 'aria-hidden': 'true' });

const emptyList = (text, ...more) =>
  el('li', { class: 'empty', 'data-testid': 'empty' }, el('p', { class: 'lead' }, text), ...more);
const noStars = () => emptyList(t`No entry has a star.`);
const emptyGallery = () =>
  emptyList(
    t`The gallery is empty.`,
    el('p', {}, t`All images that you generate are saved here, with the settings to generate them again.`),
    el('a', { class: 'button primary', href: '#/generate' }, t`Generate images`),
  );

const addressInApi = (id) => `/api/gallery/${encodeURIComponent(id)}`;
const backLink = () => el('a', { class: 'back', href: '#/gallery' }, t`‹ Gallery`);
const kindOf = ({ is_inpainted: isInpainted }) => (isInpainted ? t`inpainted` : null);
const versionName = ({ version }) => (/^\d+$/.test(version) ? t`version ${version}` : version);
const addressOf = ({ id }) => `#/gallery?${new URLSearchParams({ id })}`;

function card(entry, actions) {
  const summary = [
    formatDate(entry.when),
    pluralize(entry.candidates, 'candidate'),
    t`seed ${entry.seed}`,
    versionName(entry),
    kindOf(entry),
    ...Object.entries(NEUTRAL_SETTINGS).map(([name, neutral]) =>
      entry.settings[name] === neutral ? null : `${labelOf(name).toLowerCase()} ${entry.settings[name]}`,
    ),
  ];
  const selection = el('input', {
    type: 'checkbox',
    'data-testid': 'select-entry',
    'aria-label': t`Select “${entry.prompt}”`,
    onchange: (event) => actions.select(entry, event.target.checked),
  });
  const link = { class: 'best-four', href: addressOf(entry), 'aria-label': t`Open all candidates of “${entry.prompt}”` };
  return el('li', { class: 'card', 'data-testid': 'gallery-item', 'data-id': entry.id },
    el('label', { class: 'select-entry', title: t`Select` }, selection),
    el('a', link, entry.best.map(({ url }) => img(url, '', { loading: 'lazy' }))),
    el('div', { class: 'card-text' },
      el('h2', {}, el('a', { href: addressOf(entry) }, entry.prompt)),
      el('p', { class: 'muted' }, summary.filter((item) => item !== null).join(' · ')),
    ),
    el('div', { class: 'card-actions' },
      useAgainButton(entry),
      starButton(entry, actions),
      deleteButton(entry, actions, { 'aria-label': t`Delete “${entry.prompt}”` }),
    ),
  );
}

function useAgainButton({ prompt, seed, version, settings, candidates }) {
  const payload = { settings: { ...settings, candidates } };
  return button(t`Use again`, 'use-again', () => openView('generate', { caption: prompt, seed, version }, payload));
}

const deleteButton = (entry, { deleteEntries }, attributes = {}) =>
  button(t`Delete`, 'delete', () => deleteEntries([entry]), { class: 'muted', ...attributes });

function starButton(entry, { toggleStar }) {
  const attributes = { class: 'icon star', title: t`Star`, 'aria-label': t`Star “${entry.prompt}”` };
  const star = button('', 'star', () => toggleStar(entry, star), attributes);
  showStar(star, entry);
  return star;
}

function showStar(star, { is_starred: isStarred }) {
  star.setAttribute('aria-pressed', String(isStarred));
  star.textContent = isStarred ? '★' : '☆';
}

function entryPage(entry, actions) {
  const { prompt: caption, seed, candidates, version } = entry;
  const images = entry.images.map((image) => ({ ...image, caption, seed, candidates, version }));
  const slots = images.map((image, index) =>
    el('li', { class: `slot${index ? '' : ' best'}` }, candidateButton(image, () => openImageDialog(images, index))));
  return [
    backLink(),
    el('header', { class: 'intro' }, el('h1', { tabindex: '-1' }, caption)),
    metadataList([
      [t`Generated`, formatDate(entry.when)],
      [t`Seed`, seed],
      [t`Model`, version],
      [t`Kind`, kindOf(entry)],
      ...Object.entries(entry.settings)
        .filter(([, value]) => typeof value !== 'object')
        .map(([name, value]) => [labelOf(name), value]),
    ]),
    el('div', { class: 'controls' },
      useAgainButton(entry),
      button(t`Download ZIP`, 'zip', () => actions.downloadZip([entry])),
      starButton(entry, actions),
      deleteButton(entry, actions),
    ),
    el('div', { class: 'notices' }),
    el('ul', { class: 'image-grid' }, slots),
  ];
}
