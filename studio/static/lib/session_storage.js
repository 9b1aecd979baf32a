// Values stored while the tab is open. A browser may forbid storage; then nothing is stored, and the page still works.

const PREFIX = 'thousandwords.';

export function store(name, value) {
  try {
    sessionStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // no storage, or it is full
  }
}

/** The stored value, or {}. */
export function load(name) {
  try {
    return JSON.parse(sessionStorage.getItem(PREFIX + name)) ?? {};
  } catch {
    return {};
  }
}
