// Entry point: shows the view that the address names in <main>, marks its tab, and accepts files dropped anywhere.
import { watchHealth } from './components/health_banner.js';
import { openStudioImage } from './components/image_dialog.js';
import { acceptDrops } from './components/image_input.js';
import { initShortcuts } from './components/shortcuts.js';
import { translatePage } from './lib/language.js';
import { currentRoute, takePayload } from './lib/router.js';
import { createApiDocsView } from './views/api_docs.js';
import { createBatchView } from './views/batch.js';
import { createCompareView } from './views/compare.js';
import { createDatasetView } from './views/dataset.js';
import { createGalleryView } from './views/gallery.js';
import { createGenerateView } from './views/generate.js';
import { createInpaintView } from './views/inpaint.js';
import { createTokensView } from './views/tokens.js';
import { createTrainingView } from './views/training.js';

const VIEW_FACTORIES = {
  generate: createGenerateView,
  batch: createBatchView,
  inpaint: createInpaintView,
  tokens: createTokensView,
  gallery: createGalleryView,
  dataset: createDatasetView,
  compare: createCompareView,
  training: createTrainingView,
  api: createApiDocsView,
};
translatePage(document.getElementById('language'));
const views = new Map(); // created when first shown, then kept with their state
const main = document.getElementById('main');
let current = null;

/** Show the view of the address. The previous view leaves the document but keeps its state. */
function showView() {
  const { name, query } = currentRoute();
  const viewName = name in VIEW_FACTORIES ? name : 'generate';
  if (current) current.scroll = scrollY;
  const next = viewOf(viewName);
  if (next !== current) {
    main.replaceChildren(next.element);
    document.title = `${tabOf(viewName).textContent} · thousandwords studio`;
    markTab(viewName);
    scrollTo(0, next.scroll);
  }
  current = next;
  next.view.enter(query, takePayload());
}

function viewOf(name) {
  if (!views.has(name)) {
    const element = document.createElement('div');
    element.className = `view view-${name}`;
    element.append(document.getElementById(`view-${name}`).content.cloneNode(true));
    views.set(name, { element, view: VIEW_FACTORIES[name](element), scroll: 0 });
  }
  return views.get(name);
}

const tabs = [...document.querySelectorAll('.tabs a')];
const tabOf = (name) => tabs.find((tab) => tab.getAttribute('href') === `#/${name}`);

function markTab(name) {
  for (const tab of tabs) tab.removeAttribute('aria-current');
  tabOf(name).setAttribute('aria-current', 'page');
}

// a dropped file goes to the current view if it takes files; otherwise it opens as an image from the studio
acceptDrops(document, (file) => (current.view.acceptFile ?? openStudioImage)(file));
// the skip link would change the address, which names the view
document.querySelector('.skip-link').addEventListener('click', (event) => {
  event.preventDefault();
  main.focus();
});
window.addEventListener('hashchange', showView);
initShortcuts(main, tabs);
watchHealth();
showView();
