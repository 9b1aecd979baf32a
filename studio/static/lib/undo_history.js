// What was done, to be undone: states in a row, and where one stands.

/** A history that starts at `first`. push() forgets what had been undone; undo() and redo() give the state one comes to. */
export function makeHistory(first) {
  let states = [first];
  let index = 0;
  return {
    now: () => states[index],
    push(state) {
      states = [...states.slice(0, index + 1), state];
      index += 1;
    },
    canUndo: () => index > 0,
    canRedo: () => index < states.length - 1,
    undo() {
      index = Math.max(0, index - 1);
      return states[index];
    },
    redo() {
      index = Math.min(states.length - 1, index + 1);
      return states[index];
    },
  };
}
