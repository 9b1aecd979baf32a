// Gallery: past generations, newest first; one entry with all its candidates; deletion.
import { candidateButton } from '../components/candidate_grid.js';
import { openImageDialog } from '../components/image_dialog.js';
import { clearNotice, showError } from '../components/notice.js';
import { currentVersion } from '../components/version_select.js';
import { deleteResource, getJson, withQuery } from '../lib/api.js';
import { announce, confirmAction, el, formatDate, img, labelOf, metadataList, parts, pluralize } from '../lib/dom.js';
import { openView } from '../lib/router.js';

const PAGE_SIZE = 24;

export function createGalleryView(view) {
  const part = parts(view);
  let next = null;
  let query = ''; // the current search
  let shownQuery = ''; // the search whose results are on the page
  let listScroll = 0; // scroll position of the list when an entry was opened

  const isListShown = () => part.list.parentNode === view;

  /** The request for a page of the newest entries, or for the results of a search. */
  const pageRequest = async (before) =>
    query ? { query, limit: PAGE_SIZE, version: await currentVersion() } : { before, limit: PAGE_SIZE };

  /** Load the newest page, or the one that follows the last page. */
  async function load(before = null) {
    try {
      clearNotice(part.notice);
      if (!part.entries.childElementCount)
        part.entries.replaceChildren(
          ...Array.from({ length: 3 }, () => el('li', { class: 'card pending', 'aria-hidden': 'true' })),
        );
      const { entries, next: nextPage } = await getJson(withQuery('/api/gallery', await pageRequest(before)));
      const isSame = !query && query === shownQuery && entries[0]?.id === part.entries.firstElementChild?.dataset.id;
      if (!before && entries.length && isSame) return; // nothing new
      shownQuery = query;
      part.status.textContent = query ? `Images nearest to “${query}”, best first` : '';
      next = nextPage;
      const cards = entries.map((entry) => card(entry, deleteEntry));
      if (before) part.entries.append(...cards);
      else part.entries.replaceChildren(...(cards.length ? cards : [emptyGallery()]));
      part.more.hidden = !next;
    } catch (error) {
      if (!before) part.entries.replaceChildren();
      showError(part.notice, error, { retry: () => load(before) });
    }
  }

  async function openEntry(id) {
    if (isListShown()) listScroll = scrollY;
    view.replaceChildren(part.entry);
    scrollTo(0, 0);
    part.entry.replaceChildren(el('p', { class: 'status busy' }, 'Loading …'));
    try {
      part.entry.replaceChildren(...entryPage(await getJson(`/api/gallery/${encodeURIComponent(id)}`), deleteEntry));
      part.entry.querySelector('h1').focus({ preventScroll: true });
    } catch (error) {
      showError(part.entry, error, { retry: () => openEntry(id) });
      part.entry.append(backLink());
    }
  }

  async function deleteEntry(entry) {
    if (
      !(await confirmAction(
        `Delete the ${pluralize(entry.candidates, 'candidate')} of “${entry.prompt}”? ` +
          'This cannot be undone, but the same caption and seed generate them again.',
        'Delete',
      ))
    )
      return;
    try {
      await deleteResource(`/api/gallery/${encodeURIComponent(entry.id)}`);
      announce('Deleted.');
      removeCard(entry.id);
      if (!isListShown()) openView('gallery');
    } catch (error) {
      showError(part.notice, error, { retry: () => deleteEntry(entry) });
    }
  }

  /** Remove a card and move the focus to its neighbor; an empty gallery shows a message. */
  function removeCard(id) {
    const removed = [...part.entries.children].find((entryCard) => entryCard.dataset.id === id);
    const neighbor = removed?.nextElementSibling ?? removed?.previousElementSibling;
    removed?.remove();
    neighbor?.querySelector('a').focus();
    if (!part.entries.childElementCount) load();
  }

  part.more.addEventListener('click', () => load(next));
  part.search.addEventListener('submit', (event) => {
    event.preventDefault();
    query = part.search.elements.query.value.trim();
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

function emptyGallery() {
  return el(
    'li',
    { class: 'empty', 'data-testid': 'empty' },
    el('p', { class: 'lead' }, 'The gallery is empty.'),
    el('p', {}, 'All images that you generate are saved here, with the settings to generate them again.'),
    el('a', { class: 'button primary', href: '#/generate' }, 'Generate images'),
  );
}

const backLink = () => el('a', { class: 'back', href: '#/gallery' }, '‹ Gallery');
const kindOf = ({ is_inpainted: isInpainted }) => (isInpainted ? 'inpainted' : null);
const versionName = ({ version }) => (/^\d+$/.test(version) ? `version ${version}` : version);
const addressOf = ({ id }) => `#/gallery?${new URLSearchParams({ id })}`;

function card(entry, deleteEntry) {
  const summary = [
    formatDate(entry.when),
    pluralize(entry.candidates, 'candidate'),
    `seed ${entry.seed}`,
    versionName(entry),
    kindOf(entry),
  ];
  return el(
    'li',
    { class: 'card', 'data-testid': 'gallery-item', 'data-id': entry.id },
    el(
      'a',
      { class: 'best-four', href: addressOf(entry), 'aria-label': `Open all candidates of “${entry.prompt}”` },
      entry.best.map(({ url }) => img(url, '', { loading: 'lazy' })),
    ),
    el(
      'div',
      { class: 'card-text' },
      el('h2', {}, el('a', { href: addressOf(entry) }, entry.prompt)),
      el('p', { class: 'muted' }, summary.filter((item) => item !== null).join(' · ')),
    ),
    el(
      'div',
      { class: 'card-actions' },
      useAgainButton(entry),
      deleteButton(entry, deleteEntry, { 'aria-label': `Delete “${entry.prompt}”` }),
    ),
  );
}

function useAgainButton({ prompt, seed, version, settings, candidates }) {
  const onclick = () =>
    openView('generate', { caption: prompt, seed, version }, { settings: settings && { ...settings, candidates } });
  return el('button', { type: 'button', 'data-testid': 'use-again', onclick }, 'Use this caption again');
}

const deleteButton = (entry, deleteEntry, attributes = {}) =>
  el(
    'button',
    { type: 'button', class: 'muted', 'data-testid': 'delete', ...attributes, onclick: () => deleteEntry(entry) },
    'Delete',
  );

function entryPage(entry, deleteEntry) {
  const { prompt: caption, seed, candidates, version } = entry;
  const images = entry.images.map((image) => ({ ...image, caption, seed, candidates, version }));
  return [
    backLink(),
    el('header', { class: 'intro' }, el('h1', { tabindex: '-1' }, caption)),
    metadataList([
      ['Generated', formatDate(entry.when)],
      ['Seed', seed],
      ['Model', version],
      ['Kind', kindOf(entry)],
      ...Object.entries(entry.settings ?? {})
        .filter(([, value]) => typeof value !== 'object')
        .map(([name, value]) => [labelOf(name), value]),
    ]),
    el('div', { class: 'controls' }, useAgainButton(entry), deleteButton(entry, deleteEntry)),
    el(
      'ul',
      { class: 'image-grid' },
      images.map((image, index) =>
        el(
          'li',
          { class: `slot${index ? '' : ' best'}` },
          candidateButton(image, () => openImageDialog(images, index)),
        ),
      ),
    ),
  ];
}
