// One listener for all small buttons, in the chat, the list and the status line: the value of a button says what it wants.
const sendCommand = (words, more = {}) => trigger('click', { command: words, ...more });

const copyText = (text) => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = Object.assign(document.createElement('textarea'), { value: text }); // without https there is no clipboard
  document.body.append(area);
  area.select();
  document.execCommand('copy');
  area.remove();
};

const download = async (command, menu) => {
  menu?.classList.add('packing'); // a video takes seconds
  const file = await server.pack(command);
  menu?.classList.remove('packing');
  if (file.error) return sendCommand('say ' + file.error);
  const link = Object.assign(document.createElement('a'), { href: file.address, download: file.name });
  if (file.data) link.href = URL.createObjectURL(new Blob([Uint8Array.from(atob(file.data), letter => letter.charCodeAt(0))]));
  link.click();
  if (file.data) URL.revokeObjectURL(link.href);
};

// The guide as its web page looks on paper, in a frame that nobody sees.
const printGuide = async (command) => {
  const file = await server.pack(command.replace('print', 'html'));
  if (file.error) return sendCommand('say ' + file.error);
  document.getElementById('printed')?.remove();
  const frame = Object.assign(document.createElement('iframe'), { id: 'printed', title: file.name });
  frame.sandbox = 'allow-same-origin allow-modals'; // no scripts, whatever an answer says
  frame.srcdoc = decodePage(file.data);
  frame.onload = () => frame.contentWindow.print();
  document.body.append(frame);
};

const decodePage = data => new TextDecoder().decode(Uint8Array.from(atob(data), letter => letter.charCodeAt(0)));

// The guide of an answer is its exported web page. The address names it by its conversation and its turn.
findGuide = async key => {
  const file = await server.pack('html ' + key.replace('/', ' '));
  if (file.error) return sendCommand('say ' + file.error);
  return new DOMParser().parseFromString(decodePage(file.data), 'text/html').querySelector('section[data-steps]');
};
openFromAddress();

// The words of an answer in boxes, in its place and beside their pictures, until they are saved or left.
const make = (kind, about, ...inside) => {
  const made = Object.assign(document.createElement(kind), about);
  made.append(...inside);
  return made;
};
const closeWords = (form, focus = true) => {
  const message = form.parentElement;
  message.classList.remove('reworded');
  form.remove();
  if (focus) message.querySelector('.chat-actions summary')?.focus();
};
const wordCards = parts => {
  const cards = [], last = () => cards[cards.length - 1];
  let pictures = 0;
  for (const part of parts) {
    if (part.picture) {
      const picture = make('figure', { className: 'card' }, make('img', { className: 'picture', src: part.picture, alt: part.alt }));
      pictures += 1;
      last()?.querySelector('textarea')?.setAttribute('aria-label', `${say('The words before picture')} ${pictures}`);
      if (last()?.childElementCount === 1 && last().querySelector('textarea')) last().append(picture);
      else cards.push(make('div', { className: 'step' }, picture));
    } else if (part.words) {
      const box = make('textarea', { value: part.words, defaultValue: part.words, dir: 'auto', rows: 2 });
      box.setAttribute('aria-label', say('The last words'));
      cards.push(make('div', { className: 'step' }, make('div', { className: 'said' }, box)));
    }
  }
  return cards;
};
const editWords = async act => {
  const [, conversation, turn] = act.value.split(' '), message = act.closest('.message');
  const found = await server.pack(`parts ${conversation} ${turn}`);
  if (found.error) return sendCommand('say ' + found.error);
  for (const other of document.querySelectorAll('form.words')) closeWords(other, false);
  const cancel = make('button', { type: 'button', textContent: say('Cancel') });
  const save = make('button', { type: 'submit', className: 'save', textContent: say('Save words') });
  const form = make('form', { className: 'words' }, ...wordCards(found.parts), make('div', { className: 'ends' }, cancel, save));
  const boxes = [...form.querySelectorAll('textarea')];
  form.dataset.turn = turn;
  cancel.onclick = () => closeWords(form);
  form.onkeydown = event => {
    if (event.key === 'Escape') closeWords(form);
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  };
  form.onsubmit = event => {
    event.preventDefault();
    if (boxes.every(box => box.value === box.defaultValue)) closeWords(form);
    else sendCommand('reword ' + turn, { words: boxes.map(box => box.value) });
  };
  message.classList.add('reworded');
  message.append(form);
  boxes[0]?.focus({ preventScroll: true });
  form.scrollIntoView({ block: 'nearest' });
};
// A saved answer stands where the form stood.
const closeSavedWords = () => {
  for (const form of document.querySelectorAll('form.words')) {
    if (!form.parentElement.querySelector(`button[value^="reword "][value$="${form.dataset.turn}"]`)) closeWords(form);
  }
};

document.addEventListener('click', async event => {
  for (const menu of document.querySelectorAll('details.more[open]')) {
    if (!menu.contains(event.target) || event.target.closest('button')) menu.open = false;
  }
  const act = event.target.closest('button.act');
  if (!act) return;
  const [command] = act.value.split(' ');
  if (command === 'known') {
    localStorage.known = 'yes';
    document.body.classList.add('knows');
    return;
  }
  if (command === 'copy') {
    const said = await server.pack(act.value);
    if (said.error) return sendCommand('say ' + said.error);
    await copyText(said.words);
    act.classList.add('done');
    setTimeout(() => act.classList.remove('done'), 1200);
  } else if (['zip', 'pdf', 'html', 'markdown', 'webp', 'gif', 'mp4'].includes(command)) {
    download(act.value, act.closest('details'));
  } else if (command === 'follow') {
    openGuide(act.value.split(' ').slice(1).join('/'));
  } else if (command === 'play') {
    playFlipbook(act);
  } else if (command === 'print') {
    printGuide(act.value);
  } else if (command === 'reword') {
    editWords(act);
  } else if (command === 'reference') {
    saveReference(act);
  } else if (command === 'restyle') {
    chooseStyle(act);
  } else if (command === 'animate' || command === 'animate-on') {
    animateStep(act);
  } else {
    sendCommand(act.value);
    if (command === 'open' && window.innerWidth < 900) document.querySelector('#side.open .toggle-button')?.click();
  }
});

// A name or tags are typed in the list itself: Enter keeps them, Escape does not. Then the focus is on that conversation.
let edited = '';
const leaveBox = () => {
  const open = edited && !document.querySelector('#chats input') && document.querySelector(`#chats button[value="open ${edited}"]`);
  if (!open) return;
  edited = '';
  if (document.activeElement === document.body) open.focus();
};
document.addEventListener('keydown', event => {
  if (event.key === 'Escape') {
    const menu = event.target.closest?.('details.more[open]');
    if (menu) { menu.open = false; menu.querySelector('summary').focus(); }
  }
  if (!event.target.matches?.('#chats input') || event.isComposing) return;
  if (event.key === 'Enter' || event.key === 'Escape') edited = event.target.name.split(' ')[1];
  if (event.key === 'Enter') sendCommand(event.target.name, { words: event.target.value });
  if (event.key === 'Escape') sendCommand('cancel');
});

// The language of the browser, as the server and Gradio choose it, and our own words in it.
const language = navigator.language.toLowerCase().split('-')[0];
const known = window.gradio_config?.i18n_translations?.[language];
const say = words => known?.[words] ?? words;
document.documentElement.lang = known ? language : 'en';

// What a screen reader says: names for buttons that show a sign, and not the HTML of a message, which Gradio would read out.
for (const [id, name] of [['open-side', 'Conversations'], ['look', 'Light or dark']]) {
  const sign = document.getElementById(id);
  if (sign) { sign.title = say(name); sign.setAttribute('aria-label', say(name)); }
}
const UNSPOKEN = '#talk [data-testid="user"][aria-label], #talk [data-testid="bot"][aria-label]';
document.querySelector('#box textarea')?.setAttribute('aria-label', say('Your message'));

// Gradio's own notices speak English, whatever the page speaks, and say less than what to do.
const TITLES = { Warning: 'One moment', Error: 'That did not work' };
const NOTICES = [
  [/^Invalid file types?: (.+)\. Only .* allowed\.$/, 'Only pictures can be brought; this is none:'],
  [/^File\(s\) exceed the maximum allowed size of [^:]+: (.+)$/, 'This is too large; make it smaller than 500 MB:'],
];
const translateNotices = () => {
  for (const title of document.querySelectorAll('.toast-title')) {
    const words = TITLES[title.firstChild?.data?.trim()];
    if (words) title.firstChild.data = say(words) + ' ';
  }
  for (const text of document.querySelectorAll('.toast-message-text')) {
    for (const [pattern, words] of NOTICES) {
      const found = text.textContent.trim().match(pattern);
      if (found) text.textContent = `${say(words)} ${found[1]}`;
    }
  }
};

const tidy = () => {
  translateNotices();
  drawRoles();
  closeSavedWords();
  for (const message of document.querySelectorAll(UNSPOKEN)) message.removeAttribute('aria-label');
  for (const list of document.querySelectorAll('#talk .examples[role=list]')) list.setAttribute('role', 'group');
  for (const tile of document.querySelectorAll('button.thumbnail-item:not(.named)')) { // "Thumbnail 3 of 60" says little
    const picture = tile.querySelector('img');
    if (!picture) continue;
    tile.classList.add('named');
    tile.setAttribute('aria-label', picture.alt || say('A picture'));
    picture.alt = '';
  }
  for (const large of document.querySelectorAll('.image-container > button:not([aria-label])')) large.setAttribute('aria-label', say('A picture'));
  for (const day of document.querySelectorAll('#chats time')) {
    day.textContent = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: 'medium' }).format(new Date(day.dateTime + 'T12:00'));
  }
  for (const picture of document.querySelectorAll('#talk .example img')) picture.alt = ''; // the words beside it say what it is
  setTabStops();
  const name = document.querySelector('#chats input:not(.seen)');
  if (name) {
    name.classList.add('seen');
    name.focus();
    if (name.name.startsWith('name ')) name.select();
    else name.setSelectionRange(name.value.length, name.value.length);
  }
  leaveBox();
};
// The keyboard in the chat: Tab goes from the newest card or message to older ones, arrows go through what one holds.
const CONTROLS = 'a[href], button:not(form.words button), summary';
const GROUPS = '.card, .chat-actions';
const groups = () => [...document.querySelectorAll(`#talk .message-wrap :is(${GROUPS}, ${CONTROLS})`)]
  .filter(each => each.matches(GROUPS) || !each.closest(GROUPS)).reverse();
const controls = stop => (stop.matches(CONTROLS) ? [stop] : [...stop.querySelectorAll(CONTROLS)]).filter(each => each.checkVisibility());
const stops = () => groups().filter(each => controls(each).length);
const stopOf = at => at.closest(GROUPS) ?? at;

const setTabStops = () => {
  const at = document.activeElement, newest = groups().find(each => controls(each).length);
  const current = at.matches(`#talk .message-wrap :is(${CONTROLS})`) ? at : newest && controls(newest)[0];
  for (const each of document.querySelectorAll(`#talk .message-wrap :is(${CONTROLS}):not([tabindex="-1"])`)) if (each !== current) each.tabIndex = -1;
  if (current && current.tabIndex) current.tabIndex = 0;
};
const moveTo = (event, at) => {
  if (!at) return;
  event.preventDefault();
  at.focus();
  setTabStops();
};
document.addEventListener('keydown', event => {
  const at = event.target;
  if (!at.matches?.(`#talk .message-wrap :is(${CONTROLS})`) || event.ctrlKey || event.altKey || event.metaKey) return;
  const all = stops(), stop = stopOf(at), within = controls(stop), place = within.indexOf(at);
  const older = all[all.indexOf(stop) + 1], newer = all[all.indexOf(stop) - 1];
  if (event.key === 'Tab') moveTo(event, (event.shiftKey ? newer : older) && controls(event.shiftKey ? newer : older)[0]);
  if (event.key === 'ArrowRight' || (event.key === 'ArrowDown' && at.closest('details[open]'))) moveTo(event, within[place + 1]);
  else if (event.key === 'ArrowLeft' || (event.key === 'ArrowUp' && at.closest('details[open]'))) moveTo(event, within[place - 1]);
  else if (event.key === 'ArrowUp') moveTo(event, older && controls(older)[0]);
  else if (event.key === 'ArrowDown') moveTo(event, newer && controls(newer)[0]);
});
document.addEventListener('focusout', event => { if (event.target.closest?.('#talk')) setTimeout(setTabStops); });

const skip = Object.assign(document.createElement('a'), { className: 'skip', href: '#box', textContent: say('Skip to the message box') });
skip.addEventListener('click', event => {
  event.preventDefault();
  document.getElementById('chat-button')?.click();
  const focusBox = (tries = 60) => {
    const box = document.querySelector('#box textarea');
    if (box?.checkVisibility()) box.focus();
    else if (tries) requestAnimationFrame(() => focusBox(tries - 1)); // its tab is being shown
  };
  focusBox();
});
document.body.prepend(skip);

// On a touch screen a long press, or a tap on the words, shows what can be done.
const want = at => {
  for (const each of document.querySelectorAll('#talk .wanted')) each.classList.remove('wanted');
  at?.classList.add('wanted');
};
let press, pressed = false;
document.addEventListener('pointerdown', event => {
  pressed = false;
  const at = event.pointerType === 'touch' && event.target.closest('#talk .card, #talk .message-row');
  if (at) press = setTimeout(() => { pressed = true; want(at); }, 450);
});
for (const name of ['pointerup', 'pointercancel', 'pointermove']) {
  document.addEventListener(name, event => { if (name !== 'pointermove' || Math.hypot(event.movementX, event.movementY) > 3) clearTimeout(press); });
}
document.addEventListener('contextmenu', event => { if (pressed) event.preventDefault(); });
document.addEventListener('click', event => {
  if (pressed && event.target.closest('#talk .card > a')) event.preventDefault();
  if (event.pointerType !== 'touch' || event.target.closest('#talk .bar, #talk a, #talk button')) return;
  want(event.target.closest('#talk .message-row'));
}, true);

let due = false;
new MutationObserver(() => {
  if (due) return;
  due = true;
  requestAnimationFrame(() => { due = false; tidy(); });
}).observe(document.body, { childList: true, subtree: true });
