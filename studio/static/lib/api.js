// HTTP client of the studio's server: JSON, bytes, and answers that arrive line by line. Every failure is an ApiError.
import { t } from './language.js';

/** An error message; `status` is 0 when there was no answer, `field` names the form input with the wrong value. */
export class ApiError extends Error {
  constructor(message, { status = 0, field = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, field, retryAfter });
  }
}

/** Fires 'trouble' when the server does not answer or is not ready, 'back' when it is ready again (health_banner.js). */
export const connection = new EventTarget();

const NO_ANSWER = t`The studio’s server does not answer. Is it still running?`;

export const getJson = async (path) => (await request(path)).json();
export const postJson = async (path, value, signal) => (await request(path, jsonPost(value, signal))).json();
export const putResource = (path) => request(path, { method: 'PUT' });
export const deleteResource = (path) => request(path, { method: 'DELETE' });

/** POST the bytes of a file -> JSON. */
export async function postBytes(path, blob, signal) {
  const headers = { 'Content-Type': blob.type || 'application/octet-stream' };
  return (await request(path, { method: 'POST', headers, body: blob, signal })).json();
}

/** The bytes at a path of this server, as a Blob. */
export const getBytes = async (path) => (await request(path)).blob();

/** POST JSON and yield each line of the answer as it arrives; throws ApiError if the connection breaks. */
export async function* postForEvents(path, value, signal) {
  const response = await request(path, jsonPost(value, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value: text } = await reader.read().catch((error) => {
        throw connectionError(error);
      });
      if (done) return;
      const lines = (rest + text).split('\n');
      rest = lines.pop();
      for (const line of lines) if (line.trim()) yield JSON.parse(line);
    }
  } finally {
    reader.cancel().catch(() => {}); // stops the work on the server; the connection may be closed already
  }
}

/** Add the values that are set as a query: ('/api/dataset', {split: '', limit: 24}) -> '/api/dataset?limit=24'. */
export function withQuery(path, values) {
  const entries = Object.entries(values).filter(([, value]) => value !== '' && value !== null && value !== undefined);
  return entries.length ? `${path}?${new URLSearchParams(entries)}` : path;
}

const jsonPost = (value, signal) => ({
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify(value),
  signal,
});

async function request(path, options = {}) {
  const response = await fetch(path, options).catch((error) => {
    throw connectionError(error);
  });
  if (response.ok) return response;
  const error = await errorOf(response);
  if (response.status === 503) reportTrouble();
  throw error;
}

function connectionError(error) {
  if (error.name === 'AbortError') return error; // the page stopped the request itself
  reportTrouble();
  return new ApiError(NO_ANSWER);
}

const reportTrouble = () => connection.dispatchEvent(new Event('trouble'));

async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  const message =
    typeof body.error === 'string' ? body.error : t`The server answered ${response.status} ${response.statusText}`.trim();
  const seconds = Number(response.headers.get('Retry-After'));
  return new ApiError(message, { status: response.status, field: body.field ?? null, retryAfter: seconds > 0 ? seconds : null });
}
