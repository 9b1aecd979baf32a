// Training: the run in this folder, in whichever terminal it was started: its stages, progress, curves and newest images.
import { clearNotice, showError } from '../components/notice.js';
import { getJson } from '../lib/api.js';
import { button, el, labelOf, parts, svgElement } from '../lib/dom.js';
import { t, translate } from '../lib/language.js';

const POLL_INTERVAL = 2000; // milliseconds, while the view is shown
const HELD_OUT = 'validation/';
const MAX_CHOICES = 12; // steps whose images can be selected
const WIDTH = 320;
const HEIGHT = 120;
const TITLES = {
  recaption: [t`Captioner`, ''],
  train_image_tokenizer: [t`Image tokenizer`, t`Held-out images above their reconstructions`],
  train_decoder: [t`Decoder`, t`Held-out images above their reconstructions by the tokenizer, and by the decoder`],
  train_generator: [t`Generator`, t`One sample for each of eight held-out captions, always with the same seeds`],
  train_scorer: [t`Scorer`, ''],
};

export function createTrainingView(view) {
  const part = parts(view);
  const cards = new Map(); // stage -> its card
  let timer = null;

  async function poll() {
    clearTimeout(timer);
    try {
      show(await getJson('/api/training'));
      clearNotice(part.notice);
    } catch (error) {
      showError(part.notice, error);
    }
    clearTimeout(timer);
    if (view.isConnected) timer = setTimeout(() => view.isConnected && poll(), POLL_INTERVAL);
  }

  function show({ running, trainings }) {
    part.status.replaceChildren(...statusOf(running, trainings));
    for (const training of trainings) {
      if (!cards.has(training.stage)) cards.set(training.stage, createCard());
      cards.get(training.stage).update(training);
    }
    const elements = trainings.map(({ stage }) => cards.get(stage).element);
    const isShown = elements.length === part.trainings.children.length && elements.every((card, i) => card === part.trainings.children[i]);
    if (!isShown) part.trainings.replaceChildren(...elements); // only then: it would take the keyboard focus
  }

  return { enter: poll };
}

function statusOf(running, trainings) {
  if (running.length) return [t`Running now:`, ' ', ...running.flatMap((name, i) => [i ? ', ' : '', el('code', {}, name)])];
  const start = [el('code', {}, 'make run'), ' ', t`in another terminal starts one; it appears here.`];
  return trainings.length ? [t`Nothing runs in this folder now.`, ' ', ...start] : [t`No training has run in this folder yet.`, ' ', ...start];
}

/** One training -> {element, update(training)}. */
function createCard() {
  let training = null;
  let chosenStep = null; // null: the newest
  const heading = el('h2');
  const status = el('p', { class: 'status', 'data-testid': 'training-status' });
  const bar = el('progress', { class: 'progress', 'aria-label': t`Steps done` });
  const curves = el('div', { class: 'curves' });
  const image = el('img', { class: 'pixels', 'data-testid': 'training-image', alt: '' });
  const caption = el('figcaption');
  const figure = el('figure', { class: 'training-image' }, image, caption);
  const choices = el('div', { class: 'chips', role: 'group', 'aria-label': t`Images of the step` });
  const element = el('article', { class: 'panel training', 'data-testid': 'training' }, heading, status, bar, figure, choices, curves);

  function update(news) {
    training = news;
    const { stage, state, step, steps } = news;
    element.dataset.stage = stage;
    heading.textContent = TITLES[stage]?.[0] ?? labelOf(stage);
    status.textContent = statusText(news);
    Object.assign(bar, { max: steps, value: step });
    bar.hidden = state !== 'running';
    curves.replaceChildren(...plotNames(news.curves).map((name) => plot(name, news.curves, steps)));
    showImages();
  }

  function showImages() {
    const { images, stage } = training;
    const shown = images.find(({ step }) => step === chosenStep) ?? images.at(-1);
    figure.hidden = choices.hidden = !shown;
    if (!shown) return;
    if (image.getAttribute('src') !== shown.url) image.src = shown.url;
    const what = TITLES[stage]?.[1] ?? '';
    image.alt = t`${what}, at step ${shown.step}`;
    caption.textContent = t`Step ${shown.step}. ${what}`;
    const offered = evenly(images, MAX_CHOICES);
    const steps = offered.map(({ step }) => String(step));
    if (steps.join() !== [...choices.children].map((choice) => choice.textContent).join())
      choices.replaceChildren(...offered.map(({ step }) => choiceButton(step)));
    for (const choice of choices.children) choice.setAttribute('aria-pressed', choice.textContent === String(shown.step));
  }

  function choiceButton(step) {
    const choose = () => {
      chosenStep = step === training.images.at(-1).step ? null : step;
      showImages();
    };
    return button(String(step), 'training-step', choose, { class: 'chip' });
  }

  return { element, update };
}

function statusText({ state, step, steps, seconds_left: seconds, curves }) {
  const loss = curves.loss?.at(-1)?.[1];
  const time = seconds < 60 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
  const words = { running: seconds === null ? t`running` : t`about ${time} left`, finished: t`finished`, stopped: t`stopped` };
  return [t`Step ${step} of ${steps}`, words[state], typeof loss === 'number' ? t`loss ${loss.toFixed(3)}` : null].filter(Boolean).join(' · ');
}

/** `count` of the items, evenly, with the first and the last one. */
function evenly(items, count) {
  if (items.length <= count) return items;
  return Array.from({ length: count }, (_, i) => items[Math.round((i * (items.length - 1)) / (count - 1))]);
}

/** The loss, and whatever is measured on held-out pairs. */
function plotNames(curves) {
  const heldOut = Object.keys(curves).filter((name) => name.startsWith(HELD_OUT));
  return [...new Set(['loss', ...heldOut.map((name) => name.slice(HELD_OUT.length))])].filter((name) => curves[name] ?? curves[HELD_OUT + name]);
}

/** A small plot of a value in training and, if it is measured, on held-out pairs. */
function plot(name, curves, steps) {
  const lines = { training: finite(curves[name]), 'held out': finite(curves[HELD_OUT + name]) };
  const values = Object.values(lines).flatMap((points) => points.map(([, value]) => value));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const x = (step) => (WIDTH * step) / steps;
  const y = (value) => HEIGHT - 6 - ((HEIGHT - 12) * (value - low)) / (high - low || 1);
  const given = Object.entries(lines).filter(([, points]) => points.length);
  const newest = given.map(([label, points]) => `${translate(label)} ${short(points.at(-1)[1])}`).join(', ');
  const shapes = given.flatMap(([label, points]) => {
    const css = label === 'training' ? 'line' : 'line held-out';
    const [lastStep, lastValue] = points.at(-1);
    return [
      svgElement('polyline', { class: css, points: points.map(([step, value]) => `${x(step)},${y(value)}`).join(' ') }),
      svgElement('circle', { class: css, cx: x(lastStep), cy: y(lastValue), r: 3 }),
    ];
  });
  return el('figure', { class: 'curve', 'data-testid': 'training-curve' },
    el('figcaption', {}, el('strong', {}, labelOf(name)), el('span', {}, newest)),
    svgElement('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': `${labelOf(name)}: ${newest}` }, ...shapes),
    el('small', {}, values.length ? t`${short(low)} to ${short(high)}, steps 0 to ${steps}` : t`no finite value`),
  );
}

const finite = (points = []) => points.filter(([, value]) => value !== null);
const short = (value) => String(Number(value.toPrecision(3)));
