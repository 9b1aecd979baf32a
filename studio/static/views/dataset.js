// Data: the captioned pictures the models learned from, in their order or by how well they fit a text.
import { getJson, withQuery } from './api.js';
import { clearNotice, showError } from './notice.js';
import { announce, el, image, parts } from './pieces.js';
import { pngSource } from './piece.js';
import { go, keepInAddress } from './router.js';
import { armVersionSelect, chosen, currentVersion } from './versions.js';

const PAGE = 24;
const READING_PAUSE = 1000; // milliseconds until a server that reads its data is asked again

export function makeData(view) {
  const form = view.querySelector('form');
  const part = parts(view);
  let next = null;
  let latest = null; // the search whose answer is wanted; an earlier one may answer later
  let timer = null;
  let search = { query: '', split: '' }; // as it was asked; the form may be typed in meanwhile

  /** The first page of the search in the form, or the one at `offset`; asked again by itself, it changes nothing on the way. */
  async function load(offset = 0, isAskedAgain = false) {
    clearTimeout(timer);
    const mine = (latest = {});
    try {
      clearNotice(part.notice);
      if (!isAskedAgain) view.classList.add('busy');
      const version = await currentVersion();
      const page = await getJson(withQuery('/api/data', { ...search, limit: PAGE, offset, version }));
      if (mine === latest) showPage(page, offset);
    } catch (error) {
      if (mine === latest) showError(part.notice, error, { retry: () => load(offset) });
    } finally {
      if (mine === latest) view.classList.remove('busy');
    }
  }

  function showPage(page, offset) {
    fillSplits(form.elements.split, page.splits);
    const things = page.pictures.map(thing);
    if (offset) part.pictures.append(...things);
    else part.pictures.replaceChildren(...things);
    next = page.next;
    part.more.hidden = next === null || next === undefined;
    part.status.replaceChildren(...stateOf(page, search.query, part.pictures.childElementCount));
    if (page.state === 'reading')
      timer = setTimeout(() => {
        if (view.isConnected) load(0, true);
      }, READING_PAUSE);
    else announce(part.status.textContent);
  }

  function ask() {
    search = { query: form.elements.query.value.trim(), split: form.elements.split.value };
    keepInAddress('data', search);
    load();
  }

  form.addEventListener('submit', (event) => {
    event.preventDefault();
    ask();
  });
  form.elements.split.addEventListener('change', ask);
  part.more.addEventListener('click', () => load(next));
  chosen.addEventListener('change', () => {
    if (view.isConnected) load();
  });
  const armed = armVersionSelect(part.versionField.querySelector('select')).catch(() => {}); // load() tells of it

  return {
    async enter({ query, split }) {
      await armed;
      if (query !== undefined || split !== undefined) {
        form.elements.query.value = query ?? '';
        setSplit(form.elements.split, split ?? '');
        return ask();
      }
      keepInAddress('data', search);
      if (!part.pictures.childElementCount) load();
    },
  };
}

function fillSplits(select, splits) {
  const value = select.value;
  select.replaceChildren(el('option', { value: '' }, 'All'), ...splits.map((split) => el('option', { value: split }, split)));
  select.value = splits.includes(value) ? value : '';
}

/** A split of the address may not be listed yet. */
function setSplit(select, split) {
  if (![...select.options].some((option) => option.value === split)) select.append(el('option', { value: split }, split));
  select.value = split;
}

function stateOf({ state, done, total }, query, shown) {
  if (state === 'none') return ['There are no data here. ', el('span', {}, 'They are made by '), el('code', {}, 'make run'), '.'];
  if (state === 'reading')
    return [
      el('span', { 'data-testid': 'reading' }, `Reading the pictures: ${done} of ${total} `),
      el('progress', { class: 'bar inline', max: total, value: done, 'aria-label': 'Read so far' }),
    ];
  if (!shown) return [query ? 'Nothing fits. Try other words, or all splits.' : 'This split is empty.'];
  return [query ? `The pictures nearest to “${query}”, best first` : 'In the order of the data'];
}

function thing({ key, caption, split, score, png }) {
  const draw = () => go('draw', { caption }, { drawNow: true });
  return el(
    'li',
    { 'data-testid': 'data-item', 'data-key': key },
    el(
      'figure',
      { class: 'thing' },
      image(pngSource(png), caption),
      el(
        'figcaption',
        {},
        caption,
        el('small', {}, [key, split, typeof score === 'number' ? score.toFixed(3) : null].filter(Boolean).join(' · ')),
      ),
    ),
    el(
      'button',
      {
        type: 'button',
        class: 'chip',
        'data-testid': 'draw-caption',
        'aria-label': `Draw this caption: ${caption}`,
        onclick: draw,
      },
      'Draw this caption',
    ),
  );
}
