// The router: the address names the view, #/generate?caption=a+red+star&seed=7. Addresses can be shared; views keep their state.
import { withQuery } from './api.js';

const DEFAULT_VIEW = 'generate';
let pendingPayload = null; // what one view sends to another besides text: images do not fit into an address

/** "#/tokens?x=1" -> {name: "tokens", query: {x: "1"}}. */
export function currentRoute() {
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?');
  return { name: path || DEFAULT_VIEW, query: Object.fromEntries(new URLSearchParams(query)) };
}

/** Open a view: `query` goes into the address, `payload` directly to the view. */
export function openView(name, query = {}, payload = null) {
  pendingPayload = payload;
  const address = withQuery(`#/${name}`, query);
  if (location.hash === address) window.dispatchEvent(new HashChangeEvent('hashchange'));
  else location.hash = address;
}

/** The payload of `openView`; a second call gives null. */
export function takePayload() {
  const payload = pendingPayload;
  pendingPayload = null;
  return payload;
}

/** Write a view's state into the address, without a history entry: Back leads to the previous view, not to a keystroke. */
export function updateAddress(name, query) {
  if (currentRoute().name === name) history.replaceState(null, '', withQuery(`#/${name}`, query));
}
