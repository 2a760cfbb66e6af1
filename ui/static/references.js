// Saved references: "@" in the message box offers their names, and pictures of the Library that fit to the words are offered above the box.
const NAME_LETTERS = '[\\p{L}\\p{M}\\p{N}_-]';
const SPACELESS = '\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}\\p{Script=Thai}'; // as in duogen/mentions.py
const TYPED_NAME = new RegExp(`(?:^|[^\\p{L}\\p{M}\\p{N}_.%+/@-]|[${SPACELESS}])@(${NAME_LETTERS}*)$`, 'u');
const KINDS = { character: 'A character', thing: 'A thing', style: 'A style' };
const PAUSE = 700; // milliseconds without a key, after which the Library is searched
const messageBox = () => document.querySelector('#box textarea');
const ask = async (name, about = {}) => {
  const found = await server[name](about).catch(() => ({ error: say('The server does not answer; try again.') }));
  return found ?? {};
};
const fold = words => words.normalize('NFC').toLowerCase();
const shownChat = () => new URLSearchParams(location.search).get('c') ?? '';

// What stands above the words of the box is inside it, and before it for the keyboard.
const placeAbove = part => {
  const box = document.getElementById('box');
  if (box && part.parentElement !== box) box.prepend(part);
};

// The names. The focus stays in the box, which names the marked one; a box of several lines can be no combobox.
const names = { list: make('ul', { id: 'names', hidden: true }), found: [], at: 0, start: 0, closed: '' };
names.list.setAttribute('role', 'listbox');
names.list.setAttribute('aria-label', say('Saved references'));
const closeNames = () => {
  names.list.hidden = true;
  for (const key of ['aria-activedescendant', 'aria-controls']) messageBox()?.removeAttribute(key);
};
const markName = at => {
  names.at = (at + names.found.length) % names.found.length;
  [...names.list.children].forEach((item, index) => item.setAttribute('aria-selected', String(index === names.at)));
  const chosen = names.list.children[names.at];
  messageBox().setAttribute('aria-activedescendant', chosen.id);
  chosen.scrollIntoView({ block: 'nearest' });
};
const nameItem = ({ name, kind, words, picture }, index) => {
  const about = make('span', { className: 'about', textContent: [say(KINDS[kind]), words].filter(Boolean).join(' · ') });
  const said = make('span', { className: 'said' }, make('b', { textContent: '@' + name }), about);
  const item = make('li', { id: `name-${index}` }, make('img', { src: picture, alt: '' }), said);
  item.setAttribute('role', 'option');
  item.onpointerdown = event => event.preventDefault(); // the focus stays in the box
  item.onclick = () => { markName(index); chooseName(); };
  return item;
};
const typedName = box => {
  const found = box.selectionStart === box.selectionEnd && box.value.slice(0, box.selectionStart).match(TYPED_NAME);
  return found && !/^\p{N}+$/u.test(found[1]) ? found[1] : null; // "@1" is a picture's number
};
const offerNames = async box => {
  const typed = typedName(box);
  if (typed === null) names.closed = '';
  if (typed === null || names.closed === box.value.slice(0, box.selectionStart - typed.length)) return closeNames();
  const { references = [] } = await ask('list_references');
  if (typedName(box) !== typed || document.activeElement !== box) return; // another key came meanwhile
  names.found = references.filter(each => fold(each.name).startsWith(fold(typed)));
  names.start = box.selectionStart - typed.length;
  names.list.replaceChildren(...names.found.map(nameItem));
  if (!names.found.length) return closeNames();
  placeAbove(names.list);
  names.list.hidden = false;
  for (const [key, value] of [['aria-autocomplete', 'list'], ['aria-haspopup', 'listbox'], ['aria-controls', 'names']]) box.setAttribute(key, value);
  markName(0);
  hideFitting();
};
const chooseName = () => {
  const box = messageBox(), { name } = names.found[names.at], rest = box.value.slice(box.selectionStart);
  closeNames();
  box.setRangeText(name + (/^\s/.test(rest) ? '' : ' '), names.start, box.selectionStart, 'end');
  box.dispatchEvent(new Event('input', { bubbles: true }));
  box.focus();
};
const pressInNames = event => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) markName(names.at + step);
  else if (event.key === 'Enter' || event.key === 'Tab') chooseName();
  else if (event.key === 'Escape') {
    names.closed = messageBox().value.slice(0, names.start);
    closeNames();
  } else return;
  event.preventDefault();
  event.stopPropagation(); // Enter would send the message
};

// The pictures of the Library that fit to the words.
const fitting = { row: make('div', { id: 'fitting', hidden: true }), due: 0, closed: false };
fitting.row.setAttribute('role', 'group');
fitting.row.setAttribute('aria-label', say('Pictures of your Library that fit'));
const hideFitting = () => { fitting.row.hidden = true; };
const fittingChip = ({ id, picture, asked: words }) => {
  const chip = make('button', { type: 'button', title: words }, make('img', { src: picture, alt: '' }), make('span', { textContent: words }));
  chip.setAttribute('aria-label', `${say('Bring this picture of your Library')}: ${words}`);
  chip.onclick = () => {
    chip.remove();
    if (!fitting.row.querySelector('button:not(.close)')) hideFitting();
    messageBox().focus();
    sendCommand('bring ' + id);
  };
  return chip;
};
const offerFitting = async box => {
  const words = box.value.trim();
  if (!words || !names.list.hidden || fitting.closed) return hideFitting();
  const { pictures = [] } = await ask('suggest_pictures', { words, chat: shownChat() });
  if (box.value.trim() !== words || fitting.closed) return;
  const close = make('button', { type: 'button', className: 'close', textContent: '×', title: say('Close') });
  close.setAttribute('aria-label', say('Close'));
  close.onclick = () => closeFitting();
  const told = make('span', { className: 'told', textContent: say('In your Library:') });
  fitting.row.replaceChildren(told, ...pictures.map(fittingChip), close);
  placeAbove(fitting.row);
  fitting.row.hidden = !pictures.length;
};
const searchSoon = box => {
  clearTimeout(fitting.due);
  fitting.due = setTimeout(() => offerFitting(box), PAUSE);
};
const closeFitting = () => {
  fitting.closed = true; // until the box is empty again
  hideFitting();
  messageBox()?.focus();
};

document.addEventListener('input', event => {
  const box = event.target;
  if (box !== messageBox() || event.isComposing) return;
  if (!box.value) { fitting.closed = false; names.closed = ''; }
  offerNames(box);
  hideFitting();
  searchSoon(box);
});
// The open conversation's own pictures are not offered, so another one may have others.
document.addEventListener('address', () => { if (messageBox()?.value) searchSoon(messageBox()); });
document.addEventListener('keydown', event => {
  if (event.isComposing) return;
  if (event.target === messageBox() && !names.list.hidden) pressInNames(event);
  else if (event.key === 'Escape' && !fitting.row.hidden && event.target.closest?.('#box')) closeFitting();
}, true);
document.addEventListener('focusout', event => { if (event.target === messageBox()) setTimeout(() => document.activeElement !== messageBox() && closeNames(), 150); });
// A message that was sent empties the box without a key.
new MutationObserver(() => {
  if (fitting.row.hidden && names.list.hidden || messageBox()?.value) return;
  hideFitting();
  closeNames();
}).observe(document.body, { childList: true, subtree: true });

// Dialogs: a form with what is to be filled in, and a place for what is wrong.
const openDialog = (title, opener, ...inside) => {
  document.querySelector('dialog.asking')?.close();
  const problem = make('p', { className: 'problem' }), heading = make('h2', { textContent: title });
  problem.setAttribute('role', 'alert');
  const dialog = make('dialog', { className: 'asking' }, heading, ...inside, problem);
  dialog.setAttribute('aria-label', title);
  dialog.addEventListener('close', () => {
    dialog.remove();
    if (opener?.isConnected) opener.focus();
  });
  dialog.addEventListener('click', event => { if (event.target === dialog) dialog.close(); });
  document.body.append(dialog);
  dialog.showModal();
  return { dialog, tell: words => { problem.textContent = words; } };
};
const field = (label, control) => make('label', {}, make('span', { textContent: label }), control);
const ends = (dialog, ...buttons) => {
  const cancel = make('button', { type: 'button', textContent: say('Cancel'), onclick: () => dialog().close() });
  return make('div', { className: 'ends' }, cancel, ...buttons);
};
const aboutFields = about => {
  const name = make('input', { name: 'name', value: about.name ?? '', maxLength: 41, required: true, autocomplete: 'off', spellcheck: false });
  const options = Object.entries(KINDS).map(([kind, words]) => make('option', { value: kind, textContent: say(words), selected: kind === about.kind }));
  const kind = make('select', { name: 'kind' }, ...options);
  const words = make('textarea', { name: 'words', rows: 2, maxLength: 400, value: about.words ?? '', placeholder: say('a red boat with a white sail') });
  const fields = [field(say('Name, to be typed as @name'), name), field(say('What it is'), kind), field(say('In words'), words)];
  return { fields, read: () => ({ name: name.value, kind: kind.value, words: words.value }) };
};
const askAbout = (title, about, opener, save, more = []) => {
  const { fields, read } = aboutFields(about);
  const submit = make('button', { type: 'submit', className: 'save', textContent: say('Save') });
  const form = make('form', { method: 'dialog' }, ...more, ...fields, ends(() => dialog, submit));
  const { dialog, tell } = openDialog(title, opener, form);
  form.oninput = () => tell('');
  form.onsubmit = async event => {
    event.preventDefault();
    const done = await save(read(), form);
    if (done.error) return tell(done.error);
    dialog.close();
    showReferences();
    sendCommand('kept ' + done.name);
  };
};

// "Save as a reference", of a picture of the chat or of the Library: a new one, or one more picture of a saved one.
const saveReference = async act => {
  const [, ...place] = act.value.split(' '), opener = act.closest('details')?.querySelector('summary') ?? act;
  const source = place[0] === 'library' ? place.join(' ') : [shownChat(), ...place].join(' ');
  const { references = [] } = await ask('list_references');
  const to = make('select', { name: 'to' }, make('option', { value: '', textContent: say('A new reference') }));
  to.append(...references.map(({ name }) => make('option', { value: name, textContent: '@' + name })));
  to.onchange = () => {
    for (const each of to.form.querySelectorAll('label:not(.to)')) each.hidden = Boolean(to.value);
    to.form.elements.name.required = !to.value;
  };
  const choice = field(say('Where it goes'), to);
  choice.className = 'to';
  const save = about => ask('save_reference', { ...about, source, to: to.value });
  askAbout(say('Save as a reference'), {}, opener, save, references.length ? [choice] : []);
};

// The list in the Library.
let deletedName = '';
const referenceItem = about => {
  const { name, kind, words, count, picture } = about;
  const facts = [say(KINDS[kind]), words, count > 1 && `${count} ${say('pictures')}`].filter(Boolean).join(' · ');
  const edit = make('button', { type: 'button', className: 'act worded', textContent: say('Edit') });
  edit.setAttribute('aria-label', `${say('Edit')} @${name}`);
  edit.onclick = () => askAbout('@' + name, about, edit, changed => ask('change_reference', { ...changed, of: name }));
  const remove = make('button', { type: 'button', className: 'act worded', textContent: say('Delete') });
  remove.setAttribute('aria-label', `${say('Delete')} @${name}`);
  remove.onclick = async () => {
    const done = await ask('delete_reference', { name });
    if (done.error) return sendCommand('say ' + done.error);
    deletedName = name;
    await showReferences();
    document.querySelector('#references .undo')?.focus();
  };
  const said = make('span', { className: 'said' }, make('b', { textContent: '@' + name }), make('span', { className: 'about', textContent: facts }));
  return make('li', {}, make('img', { src: picture, alt: '' }), said, edit, remove);
};
const showReferences = async () => {
  const place = document.getElementById('references');
  if (!place) return;
  const { references = [] } = await ask('list_references');
  const none = make('p', { textContent: say('None yet. Choose a picture and save it as a reference; then type its name with @ in a message.') });
  const parts = [references.length ? make('ul', {}, ...references.map(referenceItem)) : none];
  if (deletedName) {
    const undo = make('button', { type: 'button', className: 'act worded undo', textContent: say('Undo') });
    undo.onclick = async () => {
      const done = await ask('restore_reference', { name: deletedName });
      if (done.error) return sendCommand('say ' + done.error);
      deletedName = '';
      showReferences();
    };
    parts.push(make('p', { className: 'gone' }, `@${deletedName} ${say('is deleted.')} `, undo));
  }
  place.replaceChildren(...parts);
};
document.addEventListener('click', event => { if (event.target.closest?.('#tab-library-button')) showReferences(); });
new MutationObserver(() => { // the tab is laid out when it is first shown
  const place = document.querySelector('#references:empty');
  if (!place) return;
  place.append(make('p'));
  showReferences();
}).observe(document.body, { childList: true, subtree: true });

// "Paint all in another style": a saved style, or a picture of the Library.
const styleTile = (picture, name, words, choose) => {
  const tile = make('button', { type: 'button', className: 'tile', title: words, onclick: choose }, make('img', { src: picture, alt: '' }), make('span', { textContent: name }));
  return make('li', {}, tile);
};
const chooseStyle = async act => {
  const [, turn] = act.value.split(' ');
  const search = make('input', { type: 'search', placeholder: say('Search by words') }), found = make('ul', { className: 'tiles' });
  search.setAttribute('aria-label', say('Search the Library'));
  const { references = [] } = await ask('list_references');
  const choose = style => () => { dialog.close(); sendCommand(`restyle ${turn} ${style}`); };
  const styles = references.filter(each => each.kind === 'style');
  const saved = styles.map(({ name, picture, words }) => styleTile(picture, '@' + name, words, choose(`style ${name}`)));
  const none = make('p', { textContent: say('No style is saved yet. Take a picture of the Library, or save one as a style first.') });
  const { dialog, tell } = openDialog(
    say('Paint all in another style'), act.closest('details')?.querySelector('summary'),
    make('p', { textContent: say('The words stay, every picture is painted anew: a version beside this one.') }),
    saved.length ? make('ul', { className: 'tiles' }, ...saved) : none, make('h3', { textContent: say('Or as a picture of the Library') }),
    search, found, ends(() => dialog));
  const look = async () => {
    const words = search.value, { pictures = [], error } = await ask('find_pictures', { words });
    if (search.value !== words) return;
    tell(error ?? '');
    found.replaceChildren(...pictures.map(({ id, picture, words }) => styleTile(picture, words, words, choose(`library ${id}`))));
  };
  let due;
  search.oninput = () => { clearTimeout(due); due = setTimeout(look, 250); };
  look();
};
