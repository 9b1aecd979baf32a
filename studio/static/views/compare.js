// Compare: two models side by side, with the same caption and seed.
import { makeBoard } from './board.js';
import { clearNotice, showError } from './notice.js';
import { armDice, armStop, parts } from './pieces.js';
import { keepInAddress } from './router.js';
import { requestOf } from './settings.js';
import { describe, entryOf, fillVersions, listVersions, nameOf } from './versions.js';

export function makeCompare(view) {
  const part = parts(view);
  const { form } = part;
  const running = new Set();
  const stop = () => boards.forEach((board) => board.stop());
  const showRunning = armStop(view, part.stop, stop);
  const boards = [...part.boards.querySelectorAll('.board')].map((root, index) =>
    makeBoard(root, (isDrawing) => {
      running[isDrawing ? 'add' : 'delete'](index);
      showRunning(running.size > 0);
    }),
  );

  async function load(query) {
    try {
      clearNotice(part.notice);
      const { versions, default: first } = await listVersions();
      part.single.hidden = versions.length > 1;
      form.hidden = versions.length < 2;
      const second = (
        versions.find(({ aliases, id }) => aliases.includes('champion') && id !== first) ??
        versions.find(({ id }) => id !== first)
      )?.id;
      await fillVersions(form.elements.left, query.left ?? first);
      await fillVersions(form.elements.right, query.right ?? second);
      fill(form, { prompt: query.caption, seed: query.seed });
      await showExample(form);
    } catch (error) {
      showError(part.notice, error, { retry: () => load(query) });
    }
  }

  async function draw() {
    try {
      clearNotice(part.notice, form);
      const request = requestOf(form);
      const sides = [form.elements.left.value, form.elements.right.value];
      await name(part, sides);
      part.boards.hidden = false;
      keep();
      await Promise.all(sides.map((version, index) => boards[index].draw({ ...request, version })));
    } catch (error) {
      showError(part.notice, error, { retry: draw, form });
    }
  }

  function keep() {
    const { prompt, seed, left, right } = form.elements;
    keepInAddress('compare', { caption: prompt.value, seed: seed.value, left: left.value, right: right.value });
  }

  armDice(part.dice, form);
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    draw();
  });
  let isLoaded = false;

  return {
    enter(query) {
      if (isLoaded && !Object.keys(query).length) return keep();
      isLoaded = true;
      return load(query);
    },
  };
}

function fill(form, values) {
  for (const [name, value] of Object.entries(values)) if (value !== undefined) form.elements[name].value = value;
}

/** A caption of the model's own, as a suggestion. */
async function showExample(form) {
  const { examples, most_candidates: most } = await describe(form.elements.left.value);
  form.elements.prompt.placeholder = examples[0] ?? '';
  form.elements.candidates.max = most;
}

async function name(part, [left, right]) {
  for (const [place, id] of [
    [part.leftName, left],
    [part.rightName, right],
  ]) {
    const entry = await entryOf(id);
    place.textContent = entry ? nameOf(entry) : id;
  }
}
