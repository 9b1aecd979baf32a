// The frame: puts the view that the address names into <main>, marks its tab, and takes files dropped anywhere.
import { makeCompare } from './compare.js';
import { makeComplete } from './complete.js';
import { makeData } from './data.js';
import { openStudioPicture } from './detail.js';
import { makeDraw } from './draw.js';
import { makeGallery } from './gallery.js';
import { watchHealth } from './health.js';
import { makeReference } from './reference.js';
import { currentRoute, takePayload } from './router.js';
import { takeDrops } from './source.js';
import { makeWords } from './words.js';

const MAKERS = {
  draw: makeDraw,
  complete: makeComplete,
  words: makeWords,
  gallery: makeGallery,
  data: makeData,
  compare: makeCompare,
  api: makeReference,
};
const views = new Map(); // made when first looked at, and kept: a view remembers what was done in it
const main = document.getElementById('main');
let current = null;

/** Shows the view of the address. Others leave the document, but not the memory. */
function show() {
  const { name, query } = currentRoute();
  const known = name in MAKERS ? name : 'draw';
  if (current) current.scroll = scrollY;
  const next = viewOf(known);
  if (next !== current) {
    main.replaceChildren(next.element);
    document.title = `${tabOf(known).textContent} · thousandwords studio`;
    markTab(known);
    scrollTo(0, next.scroll);
  }
  current = next;
  next.view.enter?.(query, takePayload());
}

function viewOf(name) {
  if (!views.has(name)) {
    const element = document.createElement('div');
    element.className = `view view-${name}`;
    element.append(document.getElementById(`view-${name}`).content.cloneNode(true));
    views.set(name, { element, view: MAKERS[name](element), scroll: 0 });
  }
  return views.get(name);
}

const tabs = [...document.querySelectorAll('.tabs a')];
const tabOf = (name) => tabs.find((tab) => tab.getAttribute('href') === `#/${name}`);

function markTab(name) {
  for (const tab of tabs) tab.removeAttribute('aria-current');
  tabOf(name).setAttribute('aria-current', 'page');
}

/** A file dropped on the page goes to the view if it wants one, else it is a picture of the studio. */
takeDrops(document, (file) => (current.view.takeFile ?? openStudioPicture)(file));
// the skip link is an address too, but no view's
document.querySelector('.skip').addEventListener('click', (event) => {
  event.preventDefault();
  main.focus();
});
window.addEventListener('hashchange', show);
watchHealth();
show();
