// Gallery: what was drawn here, newest first; one draw with all its candidates; deleting.
import { getJson, remove, withQuery } from './api.js';
import { openDetail } from './detail.js';
import { clearNotice, showError } from './notice.js';
import { announce, confirmed, count, el, facts, image, parts, when } from './pieces.js';
import { sentence } from './redraw.js';
import { go } from './router.js';
import { tile } from './tiles.js';
import { currentVersion } from './versions.js';

const PAGE = 24;

export function makeGallery(view) {
  const part = parts(view);
  let next = null;
  let query = ''; // what is searched for
  let shownQuery = ''; // what the cards on the page were found by
  let listScroll = 0; // where one was when a draw was opened

  const isListShown = () => part.list.parentNode === view;

  /** A page of the newest draws, or the best fits of a search. */
  const askedFor = async (before) =>
    query ? { query, limit: PAGE, version: await currentVersion() } : { before, limit: PAGE };

  /** Reads the newest page, or the one after what is shown. */
  async function load(before = null) {
    try {
      clearNotice(part.notice);
      if (!part.draws.childElementCount)
        part.draws.replaceChildren(
          ...Array.from({ length: 3 }, () => el('li', { class: 'card pending', 'aria-hidden': 'true' })),
        );
      const page = await getJson(withQuery('/api/gallery', await askedFor(before)));
      const isSame = !query && query === shownQuery && page.draws[0]?.id === part.draws.firstElementChild?.dataset.id;
      if (!before && page.draws.length && isSame) return; // nothing new
      shownQuery = query;
      part.status.textContent = query ? `The draws nearest to “${query}”, best first` : '';
      next = page.next;
      const cards = page.draws.map((draw) => card(draw, discard));
      if (before) part.draws.append(...cards);
      else part.draws.replaceChildren(...(cards.length ? cards : [nothing()]));
      part.more.hidden = !next;
    } catch (error) {
      if (!before) part.draws.replaceChildren();
      showError(part.notice, error, { retry: () => load(before) });
    }
  }

  async function open(id) {
    if (isListShown()) listScroll = scrollY;
    view.replaceChildren(part.one);
    scrollTo(0, 0);
    part.one.replaceChildren(el('p', { class: 'status busy' }, 'Looking it up …'));
    try {
      part.one.replaceChildren(...wholeDraw(await getJson(`/api/gallery/${encodeURIComponent(id)}`), discard));
      part.one.querySelector('h1').focus({ preventScroll: true });
    } catch (error) {
      showError(part.one, error, { retry: () => open(id) });
      part.one.append(back());
    }
  }

  async function discard(draw) {
    if (
      !(await confirmed(
        `Delete the ${count(draw.candidates, 'candidate')} of “${draw.prompt}”? ` +
          'They cannot be brought back, but the same caption and seed draw them again.',
        'Delete',
      ))
    )
      return;
    try {
      await remove(`/api/gallery/${encodeURIComponent(draw.id)}`);
      announce('Deleted.');
      takeCard(draw.id);
      if (!isListShown()) go('gallery');
    } catch (error) {
      showError(part.notice, error, { retry: () => discard(draw) });
    }
  }

  /** Takes a card away; the focus goes to its neighbour, and an empty gallery says so. */
  function takeCard(id) {
    const gone = [...part.draws.children].find((one) => one.dataset.id === id);
    const neighbour = gone?.nextElementSibling ?? gone?.previousElementSibling;
    gone?.remove();
    neighbour?.querySelector('a').focus();
    if (!part.draws.childElementCount) load();
  }

  part.more.addEventListener('click', () => load(next));
  part.search.addEventListener('submit', (event) => {
    event.preventDefault();
    query = part.search.elements.query.value.trim();
    load();
  });
  return {
    enter({ id }) {
      if (id) return open(id);
      if (!isListShown()) {
        view.replaceChildren(part.list);
        scrollTo(0, listScroll);
      }
      return load();
    },
  };
}

function nothing() {
  return el(
    'li',
    { class: 'empty', 'data-testid': 'empty' },
    el('p', { class: 'lead' }, 'Nothing was drawn yet.'),
    el('p', {}, 'Whatever you draw will be here, with all that is needed to draw it again.'),
    el('a', { class: 'button primary', href: '#/draw' }, 'Draw something'),
  );
}

const back = () => el('a', { class: 'back', href: '#/gallery' }, '‹ All draws');
const kindOf = ({ is_completion: isCompletion }) => (isCompletion ? ['completion'] : []);
const versionName = ({ version }) => (/^\d+$/.test(version) ? `version ${version}` : version);
const addressOf = ({ id }) => `#/gallery?${new URLSearchParams({ id })}`;

function card(draw, discard) {
  return el(
    'li',
    { class: 'card', 'data-testid': 'gallery-item', 'data-id': draw.id },
    el(
      'a',
      { class: 'best-four', href: addressOf(draw), 'aria-label': `Open all candidates of “${draw.prompt}”` },
      draw.best.map(({ url }) => image(url, '', { loading: 'lazy' })),
    ),
    el(
      'div',
      { class: 'card-text' },
      el('h2', {}, el('a', { href: addressOf(draw) }, draw.prompt)),
      el(
        'p',
        { class: 'quiet' },
        [when(draw.when), count(draw.candidates, 'candidate'), `seed ${draw.seed}`, versionName(draw), ...kindOf(draw)].join(
          ' · ',
        ),
      ),
    ),
    el(
      'div',
      { class: 'card-actions' },
      again(draw),
      el(
        'button',
        {
          type: 'button',
          class: 'quiet',
          'data-testid': 'delete',
          'aria-label': `Delete “${draw.prompt}”`,
          onclick: () => discard(draw),
        },
        'Delete',
      ),
    ),
  );
}

function again(draw) {
  const use = () =>
    go(
      'draw',
      { caption: draw.prompt, seed: draw.seed, version: draw.version },
      { settings: draw.settings && { ...draw.settings, candidates: draw.candidates } },
    );
  return el('button', { type: 'button', 'data-testid': 'use-again', onclick: use }, 'Use this caption again');
}

function wholeDraw(draw, discard) {
  const pictures = draw.pictures.map((picture) => ({
    ...picture,
    caption: draw.prompt,
    seed: draw.seed,
    candidates: draw.candidates,
    version: draw.version,
  }));
  return [
    back(),
    el('header', { class: 'intro' }, el('h1', { tabindex: '-1' }, draw.prompt)),
    facts([
      ['Drawn', when(draw.when)],
      ['Seed', draw.seed],
      ['Model', draw.version],
      ['Kind', draw.is_completion ? 'completion' : null],
      ...Object.entries(draw.settings ?? {})
        .filter(([, value]) => typeof value !== 'object')
        .map(([name, value]) => [sentence(name), value]),
    ]),
    el(
      'div',
      { class: 'controls' },
      again(draw),
      el('button', { type: 'button', class: 'quiet', 'data-testid': 'delete', onclick: () => discard(draw) }, 'Delete'),
    ),
    el(
      'ul',
      { class: 'tiles' },
      pictures.map((picture, index) =>
        el(
          'li',
          { class: `tile-place${index ? '' : ' best'}` },
          tile(picture, () => openDetail(pictures, index)),
        ),
      ),
    ),
  ];
}
