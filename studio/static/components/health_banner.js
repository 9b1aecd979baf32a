// The banner at the top: the server does not answer, or its models are loading. It polls /health until all is well.
import { connection } from '../lib/api.js';
import { announce, button, el } from '../lib/dom.js';
import { t } from '../lib/language.js';

const POLL_INTERVAL = 2000; // milliseconds
let timer = null;

/** Check the server now, and again after every failed request. */
export function watchHealth() {
  connection.addEventListener('trouble', checkHealth);
  checkHealth();
}

async function checkHealth() {
  clearTimeout(timer);
  const health = await fetchHealth();
  if (health.status === 'ready') return hideBanner();
  showBanner(...messageOf(health));
  timer = setTimeout(checkHealth, POLL_INTERVAL);
}

async function fetchHealth() {
  try {
    return await (await fetch('/health', { cache: 'no-store' })).json();
  } catch {
    return { status: 'no-answer' };
  }
}

function messageOf({ status, error }) {
  if (status === 'loading') return ['loading', t`The models are loading`, t`This page continues as soon as they are ready.`];
  if (status === 'broken') return ['broken', t`The studio cannot generate images`, error ?? t`The server gives no reason.`];
  return ['no-answer', t`The studio’s server does not answer`, t`Is it still running? This page tries again every two seconds.`];
}

function showBanner(kind, title, text) {
  const banner = document.getElementById('banner');
  if (banner.dataset.kind === kind) return; // unchanged, so a screen reader does not repeat it every two seconds
  banner.dataset.kind = kind;
  banner.replaceChildren(
    el('div', {}, el('strong', {}, title), el('span', {}, text)),
    button(t`Check again`, 'banner-retry', checkHealth),
  );
  banner.hidden = false;
}

function hideBanner() {
  const banner = document.getElementById('banner');
  if (banner.hidden) return;
  banner.hidden = true;
  delete banner.dataset.kind;
  announce(t`The studio is ready.`);
  connection.dispatchEvent(new Event('back'));
}
