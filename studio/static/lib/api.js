// Talks to the studio's server: JSON, bytes, and answers that come line by line. Every failure is an ApiError.

/** What went wrong as a sentence; `status` 0 when no answer came, `field` names the input at fault. */
export class ApiError extends Error {
  constructor(message, { status = 0, field = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, field, retryAfter });
  }
}

/** Fires 'trouble' when the server is gone or not ready, 'back' when it is ready again (health.js). */
export const connection = new EventTarget();

const GONE = 'The studio’s server does not answer. Is it still running?';

export const getJson = async (path, signal) => (await request(path, { signal })).json();
export const postJson = async (path, value, signal) => (await request(path, json(value, signal))).json();
export const remove = (path) => request(path, { method: 'DELETE' });

/** POSTs a file's bytes as they are -> JSON. */
export async function postBytes(path, blob, signal) {
  const headers = { 'Content-Type': blob.type || 'application/octet-stream' };
  return (await request(path, { method: 'POST', headers, body: blob, signal })).json();
}

/** The bytes at an address of this server, as a Blob. */
export const getBytes = async (path) => (await request(path, {})).blob();

/** POSTs JSON and gives each line of the answer as it comes; raises ApiError where the answer breaks off. */
export async function* postForEvents(path, value, signal) {
  const response = await request(path, json(value, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value: text } = await reader.read().catch((error) => {
        throw lost(error);
      });
      if (done) return;
      const lines = (rest + text).split('\n');
      rest = lines.pop();
      for (const line of lines) if (line.trim()) yield JSON.parse(line);
    }
  } finally {
    reader.cancel().catch(() => {}); // tells the server to stop; it may be gone already
  }
}

/** "/api/data" with those of the values that are set: {split: '', limit: 24} -> "?limit=24". */
export function withQuery(path, values) {
  const set = Object.entries(values).filter(([, value]) => value !== '' && value !== null && value !== undefined);
  return set.length ? `${path}?${new URLSearchParams(set)}` : path;
}

const json = (value, signal) => ({
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify(value),
  signal,
});

async function request(path, options) {
  const response = await fetch(path, options).catch((error) => {
    throw lost(error);
  });
  if (response.ok) return response;
  const error = await refusal(response);
  if (response.status === 503) trouble(error);
  throw error;
}

function lost(error) {
  if (error.name === 'AbortError') return error; // we ended it ourselves
  const gone = new ApiError(GONE);
  trouble(gone);
  return gone;
}

function trouble(error) {
  connection.dispatchEvent(new CustomEvent('trouble', { detail: error }));
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  const message =
    typeof body.error === 'string' ? body.error : `The server answered ${response.status} ${response.statusText}`.trim();
  const seconds = Number(response.headers.get('Retry-After'));
  return new ApiError(message, { status: response.status, field: body.field ?? null, retryAfter: seconds > 0 ? seconds : null });
}
