// Which view is looked at, by the address: #/draw?caption=a+red+star&seed=7. Links can be shared; views keep their state.

const DEFAULT = 'draw';
let handOver = null; // what one view sends to another besides words: pictures do not fit into an address

/** "#/words?x=1" -> {name: "words", query: {x: "1"}}. */
export function currentRoute() {
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?');
  return { name: path || DEFAULT, query: Object.fromEntries(new URLSearchParams(query)) };
}

/** Goes to a view, with `query` in the address and `payload` in the hand. */
export function go(name, query = {}, payload = null) {
  handOver = payload;
  const next = address(name, query);
  if (location.hash === next) window.dispatchEvent(new HashChangeEvent('hashchange'));
  else location.hash = next;
}

/** What `go` sent along, once. */
export function takePayload() {
  const payload = handOver;
  handOver = null;
  return payload;
}

/** Writes a view's state into the address without a step in the history: Back leads to the view before, not to a keystroke. */
export function keepInAddress(name, query) {
  if (currentRoute().name === name) history.replaceState(null, '', address(name, query));
}

function address(name, query) {
  const set = Object.entries(query).filter(([, value]) => value !== '' && value !== null && value !== undefined);
  return `#/${name}${set.length ? `?${new URLSearchParams(set)}` : ''}`;
}
