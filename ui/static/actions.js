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

const wordsOf = (row) => [...row.querySelectorAll('.message-content .prose')]
  .filter(part => !part.querySelector('.chat-actions, .card')).map(part => part.innerText.trim()).join('\n\n');

const download = async (command) => {
  const file = await server.pack(command);
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
  frame.srcdoc = new TextDecoder().decode(Uint8Array.from(atob(file.data), letter => letter.charCodeAt(0)));
  frame.onload = () => frame.contentWindow.print();
  document.body.append(frame);
};

document.addEventListener('click', async event => {
  for (const menu of document.querySelectorAll('#chats details[open]')) {
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
    await copyText(wordsOf(act.closest('.message-row')));
    act.classList.add('done');
    setTimeout(() => act.classList.remove('done'), 1200);
  } else if (['zip', 'pdf', 'html', 'markdown'].includes(command)) {
    download(act.value);
  } else if (command === 'print') {
    printGuide(act.value);
  } else {
    sendCommand(act.value);
    if (command === 'open' && window.innerWidth < 900) document.querySelector('#side.open .toggle-button')?.click();
  }
});

// A name is typed in the list itself: Enter keeps it, Escape does not.
document.addEventListener('keydown', event => {
  if (event.key === 'Escape') {
    const menu = event.target.closest?.('#chats details[open]');
    if (menu) { menu.open = false; menu.querySelector('summary').focus(); }
  }
  if (!event.target.matches?.('#chats input')) return;
  if (event.key === 'Enter') sendCommand('name ' + event.target.name, { words: event.target.value });
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
  const name = document.querySelector('#chats input:not(.seen)');
  if (name) { name.classList.add('seen'); name.focus(); name.select(); }
};
let due = false;
new MutationObserver(() => {
  if (due) return;
  due = true;
  requestAnimationFrame(() => { due = false; tidy(); });
}).observe(document.body, { childList: true, subtree: true });
