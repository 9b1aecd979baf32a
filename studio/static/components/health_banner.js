// The banner above everything: the server is gone, or its models are being loaded. Asks /health until it is well again.
import { connection } from './api.js';
import { announce, el } from './pieces.js';

const PAUSE = 2000; // milliseconds between two looks at /health
let timer = null;

/** Watches for trouble from now on, and looks once at the start. */
export function watchHealth() {
  connection.addEventListener('trouble', look);
  look();
}

async function look() {
  clearTimeout(timer);
  const state = await health();
  if (state.status === 'ready') return recovered();
  show(...said(state));
  timer = setTimeout(look, PAUSE);
}

async function health() {
  try {
    return await (await fetch('/health', { cache: 'no-store' })).json();
  } catch {
    return { status: 'gone' }; // no answer, or none of ours
  }
}

function said({ status, error }) {
  if (status === 'loading')
    return ['loading', 'The models are being loaded', 'This page goes on by itself as soon as they are ready.'];
  if (status === 'broken') return ['broken', 'The studio cannot draw', error ?? 'The server says no more.'];
  return ['gone', 'The studio’s server does not answer', 'Is it still running? This page looks for it every two seconds.'];
}

function show(kind, title, text) {
  const banner = document.getElementById('banner');
  if (banner.dataset.kind === kind) return; // said already; a screen reader shall not hear it every two seconds
  banner.dataset.kind = kind;
  banner.replaceChildren(
    el('div', {}, el('strong', {}, title), el('span', {}, text)),
    el('button', { type: 'button', 'data-testid': 'banner-retry', onclick: look }, 'Look again'),
  );
  banner.hidden = false;
}

function recovered() {
  const banner = document.getElementById('banner');
  if (banner.hidden) return;
  banner.hidden = true;
  delete banner.dataset.kind;
  announce('The studio is ready.');
  connection.dispatchEvent(new Event('back'));
}
