// API: the operations of /openapi.json, each with an example for the command line.
import { getJson } from './api.js';
import { clearNotice, showError } from './notice.js';
import { el, parts } from './pieces.js';

// where a description has no example of its own; a grid has as many rows as the model
const EXAMPLES = {
  prompt: 'a small red star on sand',
  words: [
    [17, 3],
    [5, 0],
  ],
};
const METHODS = ['get', 'post', 'put', 'patch', 'delete'];

export function makeReference(view) {
  const part = parts(view);

  async function load() {
    try {
      clearNotice(part.notice);
      const description = await getJson('/openapi.json');
      part.operations.replaceChildren(...operationsOf(description).map((operation) => section(operation, description)));
    } catch (error) {
      showError(part.notice, error, { retry: load });
    }
  }

  return {
    enter() {
      if (!part.operations.childElementCount) load();
    },
  };
}

function operationsOf({ paths }) {
  return Object.entries(paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => ({
      ...item[method],
      path,
      method,
      parameters: [...(item.parameters ?? []), ...(item[method].parameters ?? [])],
    })),
  );
}

function section(operation, description) {
  const { method, path, summary, parameters } = operation;
  const text = operation.description;
  const body = bodyOf(operation, description);
  return el(
    'article',
    { class: 'operation', 'data-testid': 'operation' },
    el('h2', {}, el('span', { class: `method ${method}` }, method.toUpperCase()), el('code', {}, path)),
    el('p', {}, summary ?? ''),
    text && text !== summary ? el('p', { class: 'quiet' }, text) : null,
    parameters.length
      ? table(
          ['Parameter', 'In', 'Kind', 'Meaning'],
          parameters.map((parameter) => parameterRow(parameter, description)),
        )
      : null,
    body?.fields?.length ? table(['Field', 'Kind', 'Meaning'], body.fields) : null,
    el('pre', { tabindex: '0', 'aria-label': 'Example' }, el('code', {}, curl(operation, body))),
  );
}

function parameterRow({ name, in: place, schema, required, description }, whole) {
  return [`${name}${required ? ' *' : ''}`, place, kindOf(schema, whole), description ?? ''];
}

function table(head, rows) {
  if (rows.every((row) => !row.at(-1)))
    return table(
      head.slice(0, -1),
      rows.map((row) => row.slice(0, -1)),
    ); // nothing is said there
  return el(
    'div',
    { class: 'table', tabindex: '0' },
    el(
      'table',
      {},
      el(
        'thead',
        {},
        el(
          'tr',
          {},
          head.map((text) => el('th', { scope: 'col' }, text)),
        ),
      ),
      el(
        'tbody',
        {},
        rows.map((row) =>
          el(
            'tr',
            {},
            row.map((text, index) => (index ? el('td', {}, text) : el('td', {}, el('code', {}, text)))),
          ),
        ),
      ),
    ),
  );
}

/** What a request carries: {type, example, fields} or nothing. */
function bodyOf({ requestBody }, whole) {
  const [type, media] = Object.entries(requestBody?.content ?? {})[0] ?? [];
  if (!type) return null;
  const schema = resolve(media.schema ?? {}, whole);
  const example = media.example ?? Object.values(media.examples ?? {})[0]?.value ?? exampleOf(schema, whole);
  const required = new Set(schema.required ?? []);
  const fields = Object.entries(schema.properties ?? {}).map(([name, inner]) => [
    `${name}${required.has(name) ? ' *' : ''}`,
    kindOf(inner, whole),
    resolve(inner, whole).description ?? '',
  ]);
  return { type: type.replace('image/*', 'image/png'), example, fields };
}

/** Follows a $ref within the description. */
function resolve(schema, whole) {
  if (!schema?.$ref) return schema ?? {};
  return (
    schema.$ref
      .replace(/^#\//, '')
      .split('/')
      .reduce((place, key) => place?.[key], whole) ?? {}
  );
}

function kindOf(schema, whole) {
  const known = resolve(schema, whole);
  const options = known.anyOf ?? known.oneOf;
  if (options) return options.map((option) => kindOf(option, whole)).join(' or ');
  if (known.enum) return known.enum.join(', ');
  if (known.type === 'array') return `list of ${kindOf(known.items, whole)}`;
  return known.type ?? known.title ?? 'any';
}

/** A value that fits a schema; only fields that are required, so that the example stays short. */
function exampleOf(schema, whole) {
  const known = resolve(schema, whole);
  if (known.example !== undefined) return known.example;
  if (known.examples?.length) return known.examples[0];
  if (known.default !== undefined) return known.default;
  if (known.anyOf) return exampleOf(known.anyOf[0], whole);
  if (known.type === 'object' || known.properties) {
    return Object.fromEntries(
      (known.required ?? []).map((name) => [name, EXAMPLES[name] ?? exampleOf(known.properties[name], whole)]),
    );
  }
  return { array: [], integer: known.minimum ?? 0, number: known.minimum ?? 0, boolean: false, string: '…' }[known.type] ?? null;
}

function curl({ method, path, parameters }, body) {
  const needed = parameters.filter(({ in: place, required }) => place === 'query' && required).map(({ name }) => `${name}=…`);
  const query = needed.length ? `?${needed.join('&')}` : '';
  const lines = [`curl ${method === 'get' ? '' : `-X ${method.toUpperCase()} `}'${location.origin}${path}${query}'`];
  if (body)
    lines.push(
      `-H 'Content-Type: ${body.type}'`,
      body.type.includes('json') ? `-d ${quoted(JSON.stringify(body.example))}` : '--data-binary @picture.png',
    );
  return lines.join(' \\\n  ');
}

/** For a POSIX shell: ' ends the quotes, so it is written as '\''. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
