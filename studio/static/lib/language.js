// The language of the page. The code and index.html are in English; a translation is one file in ../languages, which maps each
// English string to its own, with {0}, {1} … for values. What it has not, and the server's messages, stay English.

const LANGUAGES = { en: 'English', zh: '中文' };
const STORED = 'thousandwords.language';
const TRANSLATED_ATTRIBUTES = ['aria-label', 'title', 'placeholder'];

export const language = chosenLanguage();
const strings = language === 'en' ? {} : await (await fetch(`/static/languages/${language}.json`)).json();

function chosenLanguage() {
  let stored = null;
  try {
    stored = localStorage.getItem(STORED);
  } catch {
    // no storage
  }
  const [ofBrowser] = navigator.language.split('-');
  return [stored, ofBrowser].find((name) => name in LANGUAGES) ?? 'en';
}

/** translate('{0} of {1}', 3, 8) -> "3 of 8", or as the language says it. */
export const translate = (key, ...values) => (strings[key] ?? key).replace(/\{(\d)\}/g, (_, place) => values[place]);

/** The same as a tag: t`${done} of ${total}`. */
export const t = (texts, ...values) => translate(texts.reduce((key, text, place) => `${key}{${place - 1}}${text}`), ...values);

/** Translate index.html, its templates included, and fill the <select> of languages. */
export function translatePage(select) {
  document.documentElement.lang = language;
  document.documentElement.style.setProperty('--best', JSON.stringify(`${t`Best`} `)); // of the style sheet
  if (language !== 'en') translateTree(document.documentElement);
  select.append(...Object.entries(LANGUAGES).map(([name, label]) => new Option(label, name, false, name === language)));
  select.addEventListener('change', () => {
    localStorage.setItem(STORED, select.value);
    location.reload();
  });
}

function translateTree(root) {
  const nodes = document.createTreeWalker(root, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
  while (nodes.nextNode()) {
    const node = nodes.currentNode;
    if (node.nodeType === Node.TEXT_NODE) node.data = translateText(node.data);
    else {
      for (const name of TRANSLATED_ATTRIBUTES)
        if (node.hasAttribute(name)) node.setAttribute(name, translateText(node.getAttribute(name)));
      if (node instanceof HTMLTemplateElement) translateTree(node.content);
    }
  }
}

/** The translation of a text; the white space around it stays. */
function translateText(text) {
  const [, before, body, after] = text.match(/^(\s*)(.*?)(\s*)$/s);
  const key = body.replace(/\s+/g, ' ');
  return key in strings ? before + strings[key] + after : text;
}
