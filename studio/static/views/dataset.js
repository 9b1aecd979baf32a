// Dataset: the captioned images that the models were trained on, in dataset order or by how well they match a text.
import { clearNotice, showError } from '../components/notice.js';
import { currentVersion, initVersionSelect, versionChange } from '../components/version_select.js';
import { getJson, withQuery } from '../lib/api.js';
import { announce, button, captionedImage, el, onSubmit, parts } from '../lib/dom.js';
import { pngSource } from '../lib/images.js';
import { t } from '../lib/language.js';
import { openView, updateAddress } from '../lib/router.js';

const PAGE_SIZE = 24;
const INDEXING_POLL_INTERVAL = 1000; // milliseconds, while the server encodes its dataset

export function createDatasetView(view) {
  const form = view.querySelector('form');
  const part = parts(view);
  let next = null;
  let latest = null; // marks the newest request, because answers may arrive out of order
  let timer = null;
  let search = { query: '', split: '' }; // as submitted; the user may edit the form meanwhile

  /** Load the first page of the search, or the page at `offset`. A poll does not dim the page. */
  async function load(offset = 0, isPoll = false) {
    clearTimeout(timer);
    const ownRequest = (latest = {});
    try {
      clearNotice(part.notice);
      if (!isPoll) view.classList.add('busy');
      const version = await currentVersion();
      const page = await getJson(withQuery('/api/dataset', { ...search, limit: PAGE_SIZE, offset, version }));
      if (ownRequest === latest) showPage(page, offset);
    } catch (error) {
      if (ownRequest === latest) showError(part.notice, error, { retry: () => load(offset) });
    } finally {
      if (ownRequest === latest) view.classList.remove('busy');
    }
  }

  function showPage(page, offset) {
    fillSplits(form.elements.split, page.splits);
    const items = page.images.map(datasetItem);
    if (offset) part.images.append(...items);
    else part.images.replaceChildren(...items);
    next = page.next;
    part.more.hidden = next === null;
    part.status.replaceChildren(...statusOf(page, search.query, part.images.childElementCount));
    if (page.state === 'indexing')
      timer = setTimeout(() => {
        if (view.isConnected) load(0, true);
      }, INDEXING_POLL_INTERVAL);
    else announce(part.status.textContent);
  }

  function submitSearch() {
    search = { query: form.elements.query.value.trim(), split: form.elements.split.value };
    updateAddress('dataset', search);
    load();
  }

  onSubmit(form, submitSearch);
  form.elements.split.addEventListener('change', submitSearch);
  part.more.addEventListener('click', () => load(next));
  versionChange.addEventListener('change', () => {
    if (view.isConnected) load();
  });
  const versionsReady = initVersionSelect(part.versionField.querySelector('select')).catch(() => {}); // load() shows this error

  return {
    async enter({ query, split }) {
      await versionsReady;
      if (query !== undefined || split !== undefined) {
        form.elements.query.value = query ?? '';
        setSplit(form.elements.split, split ?? '');
        return submitSearch();
      }
      updateAddress('dataset', search);
      if (!part.images.childElementCount) load();
    },
  };
}

function fillSplits(select, splits) {
  const value = select.value;
  select.replaceChildren(el('option', { value: '' }, t`All`), ...splits.map((split) => el('option', { value: split }, split)));
  select.value = splits.includes(value) ? value : '';
}

/** Select a split from the address, which may not be listed yet. */
function setSplit(select, split) {
  if (![...select.options].some((option) => option.value === split)) select.append(el('option', { value: split }, split));
  select.value = split;
}

function statusOf({ state, done, total }, query, numShown) {
  if (state === 'none') return [t`There is no dataset here. Create one with:`, ' ', el('code', {}, 'make run')];
  if (state === 'indexing')
    return [
      el('span', { 'data-testid': 'indexing' }, t`Encoding the images: ${done} of ${total}`, ' '),
      el('progress', { class: 'progress inline', max: total, value: done, 'aria-label': t`Encoded so far` }),
    ];
  if (!numShown) return [query ? t`No image matches. Try another text, or all splits.` : t`This split is empty.`];
  return [query ? t`Images nearest to “${query}”, best first` : t`In dataset order`];
}

function datasetItem({ key, caption, split, score, png }) {
  const note = [key, split, score?.toFixed(3)].filter(Boolean).join(' · ');
  const generate = () => openView('generate', { caption }, { generateNow: true });
  const attributes = { class: 'chip', 'aria-label': t`Generate from this caption: ${caption}` };
  return el('li', { 'data-testid': 'dataset-item', 'data-key': key },
    captionedImage(pngSource(png), caption, note),
    button(t`Generate from this caption`, 'generate-caption', generate, attributes),
  );
}
