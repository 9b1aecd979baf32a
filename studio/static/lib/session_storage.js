// What is remembered while the tab is open. A browser may forbid storage; then nothing is remembered, and nothing breaks.

const PREFIX = 'thousandwords.';

export function remember(name, value) {
  try {
    sessionStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // no storage, or it is full
  }
}

/** What was remembered, or {}. */
export function recall(name) {
  try {
    return JSON.parse(sessionStorage.getItem(PREFIX + name)) ?? {};
  } catch {
    return {};
  }
}
