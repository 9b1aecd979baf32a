// API: the operations of /openapi.json, each with an example for the command line.
import { clearNotice, showError } from '../components/notice.js';
import { getJson } from '../lib/api.js';
import { el, parts } from '../lib/dom.js';
import { t } from '../lib/language.js';

// of the required fields; a real grid has as many rows as the model
const EXAMPLES = { prompt: 'a small red star on sand', tokens: [[17, 3], [5, 0]] };

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

const operationsOf = ({ paths }) =>
  Object.entries(paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => ({ parameters: [], ...operation, path, method })));

function section(operation, description) {
  const { method, path, summary, description: text, parameters } = operation;
  const body = bodyOf(operation, description);
  const rows = parameters.map(({ name, in: place, schema, required, description: meaning }) =>
    [nameOf(name, required), place, typeOf(schema, description), meaning]);
  return el('article', { class: 'operation', 'data-testid': 'operation' },
    el('h2', {}, el('span', { class: `method ${method}` }, method.toUpperCase()), el('code', {}, path)),
    el('p', {}, summary),
    text && el('p', { class: 'muted' }, text),
    rows.length > 0 && table([t`Parameter`, t`In`, t`Type`, t`Description`], rows),
    body?.fields.length > 0 && table([t`Field`, t`Type`, t`Description`], body.fields),
    el('pre', { tabindex: '0', 'aria-label': t`Example` }, el('code', {}, curlCommand(operation, body))),
  );
}

const nameOf = (name, isRequired) => `${name}${isRequired ? ' *' : ''}`;

/** A table; the last column is left out if it is empty in all rows. */
function table(head, rows) {
  const numColumns = head.length - !rows.some((row) => row.at(-1));
  const headCells = head.slice(0, numColumns).map((text) => el('th', { scope: 'col' }, text));
  const bodyRow = ([name, ...texts]) =>
    el('tr', {}, el('td', {}, el('code', {}, name)), texts.slice(0, numColumns - 1).map((text) => el('td', {}, text)));
  return el('div', { class: 'table', tabindex: '0' },
    el('table', {}, el('thead', {}, el('tr', {}, headCells)), el('tbody', {}, rows.map(bodyRow))),
  );
}

/** The body of a request: {type, example, fields}, or null. */
function bodyOf({ requestBody }, root) {
  if (!requestBody) return null;
  const [[type, media]] = Object.entries(requestBody.content);
  const { required = [], properties = {} } = resolve(media.schema, root);
  const example = Object.fromEntries(required.map((name) => [name, EXAMPLES[name]]));
  const fields = Object.entries(properties).map(([name, property]) =>
    [nameOf(name, required.includes(name)), typeOf(property, root), resolve(property, root).description]);
  return { type: type.replace('image/*', 'image/png'), example, fields };
}

/** Follow a $ref inside the description, "#/components/schemas/Stitch". */
const resolve = (schema, root) => (schema.$ref ? root.components.schemas[schema.$ref.split('/').at(-1)] : schema);

function typeOf(schema, root) {
  const { anyOf, type, items, enum: values } = resolve(schema, root);
  if (anyOf) return anyOf.map((option) => typeOf(option, root)).join(' or ');
  if (values) return values.join(', ');
  return type === 'array' ? `list of ${typeOf(items, root)}` : type;
}

function curlCommand({ method, path, parameters }, body) {
  const required = parameters.filter(({ in: place, required }) => place === 'query' && required).map(({ name }) => `${name}=…`);
  const query = required.length ? `?${required.join('&')}` : '';
  const lines = [`curl ${method === 'get' ? '' : `-X ${method.toUpperCase()} `}'${location.origin}${path}${query}'`];
  if (body) {
    lines.push(`-H 'Content-Type: ${body.type}'`);
    lines.push(body.type.includes('json') ? `-d '${JSON.stringify(body.example)}'` : '--data-binary @image.png');
  }
  return lines.join(' \\\n  ');
}
