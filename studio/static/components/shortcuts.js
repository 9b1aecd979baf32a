// Keyboard shortcuts of the whole page; index.html has the sheet that lists them. Components have further ones of their own.
const SEARCH_FIELDS = '[name=prompt], [name=query]';
const sheet = document.getElementById('shortcuts');

/** Listen for shortcuts: digits open the `tabs`, the others are for the view in `main`. */
export function initShortcuts(main, tabs) {
  document.getElementById('show-shortcuts').addEventListener('click', () => sheet.showModal());
  document.addEventListener('keydown', (event) => {
    if (document.querySelector('dialog[open]')) return;
    const { key, target } = event;
    if (key === 'Enter' && (event.ctrlKey || event.metaKey)) (target.closest('form') ?? visible(main, 'form'))?.requestSubmit();
    else if (event.ctrlKey || event.metaKey || event.altKey || isTyping(target)) return;
    else if (key === '?') sheet.showModal();
    else if (key === '/') visible(main, SEARCH_FIELDS)?.focus();
    else if (tabs[key - 1]) tabs[key - 1].click();
    else return;
    event.preventDefault();
  });
}

const visible = (main, selector) => [...main.querySelectorAll(selector)].find((element) => element.checkVisibility());

const isTyping = (target) => target.matches('textarea, select, input:not([type=checkbox], [type=range], [type=file])');
