// API: the operations of /openapi.json, each with an example for the command line.
import { clearNotice, showError } from '../components/notice.js';
import { getJson } from '../lib/api.js';
import { el, parts } from '../lib/dom.js';
import { t } from '../lib/language.js';

// used if the description has no example; a real grid has as many rows as the model
const EXAMPLES = {
  prompt: 'a small red star on sand',
  tokens: [
    [17, 3],
    [5, 0],
  ],
};
const METHODS = ['get', 'post', 'put', 'patch', 'delete'];

export function createApiDocsView(view) {
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
    text && text !== summary ? el('p', { class: 'muted' }, text) : null,
    parameters.length
      ? table(
          [t`Parameter`, t`In`, t`Type`, t`Description`],
          parameters.map((parameter) => parameterRow(parameter, description)),
        )
      : null,
    body?.fields?.length ? table([t`Field`, t`Type`, t`Description`], body.fields) : null,
    el('pre', { tabindex: '0', 'aria-label': t`Example` }, el('code', {}, curlCommand(operation, body))),
  );
}

const parameterRow = ({ name, in: place, schema, required, description }, root) => [
  `${name}${required ? ' *' : ''}`,
  place,
  typeOf(schema, root),
  description ?? '',
];

/** A table; the last column is left out if it is empty in all rows. */
function table(head, rows) {
  if (rows.every((row) => !row.at(-1)))
    return table(
      head.slice(0, -1),
      rows.map((row) => row.slice(0, -1)),
    );
  const headCells = head.map((text) => el('th', { scope: 'col' }, text));
  const bodyRow = ([name, ...texts]) =>
    el(
      'tr',
      {},
      el('td', {}, el('code', {}, name)),
      texts.map((text) => el('td', {}, text)),
    );
  return el(
    'div',
    { class: 'table', tabindex: '0' },
    el('table', {}, el('thead', {}, el('tr', {}, headCells)), el('tbody', {}, rows.map(bodyRow))),
  );
}

/** The body of a request: {type, example, fields}, or null. */
function bodyOf({ requestBody }, root) {
  const [type, media] = Object.entries(requestBody?.content ?? {})[0] ?? [];
  if (!type) return null;
  const schema = resolve(media.schema ?? {}, root);
  const example = media.example ?? Object.values(media.examples ?? {})[0]?.value ?? exampleOf(schema, root);
  const required = new Set(schema.required ?? []);
  const fields = Object.entries(schema.properties ?? {}).map(([name, property]) => [
    `${name}${required.has(name) ? ' *' : ''}`,
    typeOf(property, root),
    resolve(property, root).description ?? '',
  ]);
  return { type: type.replace('image/*', 'image/png'), example, fields };
}

/** Follow a $ref inside the description. */
function resolve(schema, root) {
  if (!schema?.$ref) return schema ?? {};
  return (
    schema.$ref
      .replace(/^#\//, '')
      .split('/')
      .reduce((node, key) => node?.[key], root) ?? {}
  );
}

function typeOf(schema, root) {
  const resolved = resolve(schema, root);
  const options = resolved.anyOf ?? resolved.oneOf;
  if (options) return options.map((option) => typeOf(option, root)).join(' or ');
  if (resolved.enum) return resolved.enum.join(', ');
  if (resolved.type === 'array') return `list of ${typeOf(resolved.items, root)}`;
  return resolved.type ?? resolved.title ?? 'any';
}

/** A value that matches a schema, with the required fields only, so that the example stays short. */
function exampleOf(schema, root) {
  const resolved = resolve(schema, root);
  if (resolved.example !== undefined) return resolved.example;
  if (resolved.examples?.length) return resolved.examples[0];
  if (resolved.default !== undefined) return resolved.default;
  if (resolved.anyOf) return exampleOf(resolved.anyOf[0], root);
  if (resolved.type === 'object' || resolved.properties) {
    return Object.fromEntries(
      (resolved.required ?? []).map((name) => [name, EXAMPLES[name] ?? exampleOf(resolved.properties[name], root)]),
    );
  }
  const minimum = resolved.minimum ?? 0;
  return { array: [], integer: minimum, number: minimum, boolean: false, string: '…' }[resolved.type] ?? null;
}

function curlCommand({ method, path, parameters }, body) {
  const required = parameters.filter(({ in: place, required }) => place === 'query' && required).map(({ name }) => `${name}=…`);
  const query = required.length ? `?${required.join('&')}` : '';
  const lines = [`curl ${method === 'get' ? '' : `-X ${method.toUpperCase()} `}'${location.origin}${path}${query}'`];
  if (body)
    lines.push(
      `-H 'Content-Type: ${body.type}'`,
      body.type.includes('json') ? `-d ${shellQuote(JSON.stringify(body.example))}` : '--data-binary @image.png',
    );
  return lines.join(' \\\n  ');
}

/** For a POSIX shell: a quote inside quotes is written as '\''. */
const shellQuote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
