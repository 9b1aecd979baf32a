// Undo and redo: a list of states and the index of the current one.

/** A history that starts with `first`. push() drops the undone states; undo() and redo() return the new current state. */
export function createUndoHistory(first) {
  let states = [first];
  let index = 0;
  return {
    current: () => states[index],
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
