// Shows a guide one step at a time over the whole window. The page and the exported web pages use this script alike.
// A guide is a <section data-steps> of an exported web page. Each of its parts says in data-step to which step it belongs; 0 is before the first.

const FOLLOW_WORDS = {
  de: {
    'Follow step by step': 'Schritt für Schritt', 'Step {n} of {all}': 'Schritt {n} von {all}', 'Step {n}': 'Schritt {n}', 'Before you start': 'Bevor es losgeht',
    'Back': 'Zurück', 'Next': 'Weiter', 'Start': 'Los', 'Done': 'Fertig', 'Close': 'Schließen', 'Read aloud': 'Vorlesen', 'Stop reading': 'Nicht mehr vorlesen',
    'Start a timer: {time}': 'Wecker stellen: {time}', 'Stop the timer: {time}': 'Wecker ausschalten: {time}', 'Time is up: {time}': 'Die Zeit ist um: {time}',
    'Timers': 'Wecker',
  },
  zh: {
    'Follow step by step': '逐步跟做', 'Step {n} of {all}': '第 {n} 步，共 {all} 步', 'Step {n}': '第 {n} 步', 'Before you start': '开始之前',
    'Back': '上一步', 'Next': '下一步', 'Start': '开始', 'Done': '完成', 'Close': '关闭', 'Read aloud': '朗读', 'Stop reading': '停止朗读',
    'Start a timer: {time}': '开始计时：{time}', 'Stop the timer: {time}': '停止计时：{time}', 'Time is up: {time}': '时间到：{time}',
    'Timers': '计时器',
  },
};

// Times in the words of a step, in English, German and Chinese.

const TIME_UNITS = [
  [3600, '小时|小時|钟头|鐘頭|hours?|hrs?|stunden?|std|h(?![\\w-])'],
  [60, '分[钟鐘]|分(?=\\s*[\\d一二三四五六七八九十]+\\s*秒)|minutes?|minuten?|mins?'],
  [1, '秒[钟鐘]?|seconds?|sekunden?|secs?|sek|s(?![\\w-])'],
];
const TIME_NUMBERS = {
  'three quarters of an': 0.75, 'a quarter of an': 0.25, 'quarter of an': 0.25, 'half an': 0.5, 'half a': 0.5,
  'eine dreiviertel': 0.75, 'dreiviertel': 0.75, 'eine viertel': 0.25, 'einer viertel': 0.25, 'viertel': 0.25,
  'eine halbe': 0.5, 'einer halben': 0.5, 'halbe': 0.5, 'anderthalb': 1.5, 'eineinhalb': 1.5, 'zweieinhalb': 2.5,
  'one': 1, 'two': 2, 'three': 3, 'four': 4, 'five': 5, 'six': 6, 'seven': 7, 'eight': 8, 'nine': 9, 'ten': 10, 'twelve': 12, 'fifteen': 15,
  'twenty': 20, 'thirty': 30, 'forty-five': 45, 'forty': 40, 'fifty': 50, 'sixty': 60, 'ninety': 90, 'an': 1, 'a': 1,
  'einer': 1, 'einen': 1, 'eine': 1, 'zwei': 2, 'drei': 3, 'vier': 4, 'fünf': 5, 'sechs': 6, 'sieben': 7, 'acht': 8, 'neun': 9, 'zehn': 10,
  'zwölf': 12, 'fünfzehn': 15, 'zwanzig': 20, 'dreißig': 30, 'vierzig': 40, 'fünfzig': 50, 'sechzig': 60, '半': 0.5,
};
const TIME_FRACTIONS = { '½': 0.5, '¼': 0.25, '¾': 0.75 };
const TIME_NUMBER = `\\d+\\s+\\d/\\d|\\d+/\\d|\\d+(?:[.,]\\d+)?\\s?[½¼¾]?|[½¼¾]|${Object.keys(TIME_NUMBERS).join('|')}|[一二两兩三四五六七八九十]+`;
const TIME = new RegExp(
  `(?<![a-zà-ÿ\\d.,/:])(${TIME_NUMBER})(\\s+and\\s+a\\s+half)?(?:\\s*(?:-|–|—|to|or|bis|oder|到|至)\\s*(?:${TIME_NUMBER}))?` +
  `[\\s-]*[个個]?(半)?(?:${TIME_UNITS.map(([, names]) => `(${names})`).join('|')})(?![a-zà-ÿ])(\\s+and\\s+a\\s+half\\b)?`, 'giu');
const LONGEST_TIME = 24 * 3600;

const readNumber = said => {
  const words = said.trim().toLowerCase().replace(/\s+/g, ' ');
  if (words in TIME_NUMBERS) return TIME_NUMBERS[words];
  if (/^[一二两兩三四五六七八九十]+$/.test(words)) {
    const digit = letter => '一二三四五六七八九'.indexOf(letter.replace(/[两兩]/, '二')) + 1;
    const [tens, ones] = words.includes('十') ? words.split('十') : ['', words];
    return words.includes('十') ? 10 * (tens ? digit(tens) : 1) + (ones ? digit(ones) : 0) : digit(ones);
  }
  const added = Object.entries(TIME_FRACTIONS).reduce((sum, [sign, value]) => sum + (words.includes(sign) ? value : 0), 0);
  return words.replace(/[½¼¾]/, '').trim().replace(',', '.').split(' ').reduce((sum, part) => {
    const [over, under = 1] = part.split('/');
    return sum + Number(over) / Number(under);
  }, added);
};

// The times in some words: where they begin and end, and their seconds. Of "10 to 15 minutes" the shorter counts; "2 min 30 s" is one time.
const findTimes = words => {
  const found = [];
  for (const match of words.matchAll(TIME)) {
    const unit = [3, 4, 5].map(group => match[group + 1]).findIndex(Boolean);
    if (unit === 2 && /^(an?|eine[rn]?)$/i.test(match[1])) continue; // "a second layer" is no time
    const number = readNumber(match[1]) + (match[2] || match[3] || match[7] ? 0.5 : 0);
    const time = { at: match.index, end: match.index + match[0].length, seconds: Math.round(number * TIME_UNITS[unit][0]), unit };
    const last = found.at(-1);
    if (last && last.unit < unit && /^\.?\s*(,|and|und|&)?\s*$/.test(words.slice(last.end, time.at))) {
      Object.assign(last, { end: time.end, seconds: last.seconds + time.seconds, unit });
    } else {
      found.push(time);
    }
  }
  return found.filter(({ seconds }) => seconds > 0 && seconds <= LONGEST_TIME).map(({ at, end, seconds }) => ({ at, end, seconds }));
};

const sayClock = seconds => {
  const two = number => String(number).padStart(2, '0');
  const hours = Math.floor(seconds / 3600), minutes = Math.floor(seconds / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(seconds % 60)}` : `${minutes}:${two(seconds % 60)}`;
};

const makeElement = (name, given = {}, ...inside) => {
  const { aria = {}, ...properties } = given;
  const made = Object.assign(document.createElement(name), properties);
  for (const [key, value] of Object.entries(aria)) made.setAttribute(`aria-${key}`, value);
  made.append(...inside);
  return made;
};

// Three short notes. Browsers let a page sound only after a press, so a timer's start prepares it.
let followSound;
const prepareSound = () => {
  followSound ??= window.AudioContext && new AudioContext();
  followSound?.resume?.();
};
const ring = () => {
  prepareSound();
  for (let note = 0; followSound && note < 3; note++) {
    const tone = followSound.createOscillator(), volume = followSound.createGain(), from = followSound.currentTime + note * 0.3;
    tone.frequency.value = 880;
    volume.gain.setValueAtTime(0.3, from);
    volume.gain.exponentialRampToValueAtTime(0.001, from + 0.25);
    tone.connect(volume).connect(followSound.destination);
    tone.start(from);
    tone.stop(from + 0.25);
  }
};

const RING_EVERY = 4000, MOST_RINGS = 10;

// The timers of a guide. They go on while it is closed, and after a reload when it is open again.
class FollowTimers {
  constructor(key, changed, rung) {
    Object.assign(this, { key: `follow/${key}`, changed, rung });
    try { this.all = JSON.parse(sessionStorage[this.key] ?? '[]'); } catch { this.all = []; }
    setInterval(() => this.tick(), 250);
  }

  find(id) { return this.all.find(timer => timer.id === id); }
  left(timer) { return Math.max(0, Math.ceil((timer.ends - Date.now()) / 1000)); }

  start(id, step, words, seconds) {
    prepareSound();
    this.all.push({ id, step, words, ends: Date.now() + 1000 * seconds, rings: 0 });
    this.keep();
  }

  stop(id) {
    this.all = this.all.filter(timer => timer.id !== id);
    this.keep();
  }

  keep() {
    try { sessionStorage[this.key] = JSON.stringify(this.all); } catch { /* no room, or not allowed: they last until a reload */ }
    this.changed();
  }

  tick() {
    if (!this.all.length) return;
    for (const timer of this.all) {
      const due = Math.floor((Date.now() - timer.ends) / RING_EVERY) + 1;
      if (due <= timer.rings || timer.rings >= MOST_RINGS) continue;
      timer.rings = due;
      this.rung(timer);
      ring();
    }
    this.changed();
  }
}

class Follower {
  constructor(section, key) {
    Object.assign(this, { key, count: Number(section.dataset.steps), screens: [], at: -1, reading: false });
    const language = document.documentElement.lang.split('-')[0];
    this.say = (words, filled = {}) => (FOLLOW_WORDS[language]?.[words] ?? words).replace(/{(\w+)}/g, (_, name) => filled[name]);
    this.language = section.lang || document.documentElement.lang;
    this.direction = section.dir || 'ltr';
    this.title = section.querySelector('h1, h2')?.textContent.trim() || document.title;
    this.parts = [...section.querySelectorAll(':scope > [data-step]')];
    const needed = this.parts.some(part => part.dataset.step === '0' && part.querySelector('li'));
    this.first = needed ? 0 : 1;
    this.timers = new FollowTimers(key, () => this.showTimers(), timer => this.announce(timer));
    this.build();
  }

  build() {
    const button = (kind, name, press) => makeElement('button', { type: 'button', className: `follow-${kind}`, onclick: press }, name);
    this.progress = makeElement('p', { className: 'follow-progress' });
    this.bar = makeElement('span', { className: 'follow-bar', aria: { hidden: 'true' } }, makeElement('i'));
    this.reader = button('read', this.say('Read aloud'), () => this.read(!this.reading));
    this.reader.setAttribute('aria-pressed', 'false');
    this.reader.hidden = !('speechSynthesis' in window);
    const close = button('close', '×', () => this.dialog.close());
    close.title = this.say('Close');
    close.setAttribute('aria-label', close.title);
    this.back = button('back', this.say('Back'), () => this.show(this.at - 1));
    this.next = button('next', '', () => (this.at < this.count ? this.show(this.at + 1) : this.dialog.close()));
    this.place = makeElement('div', { className: 'follow-place' });
    this.tray = makeElement('div', { className: 'follow-tray', role: 'group', hidden: true, aria: { label: this.say('Timers') } });
    this.notice = makeElement('div', { className: 'follow-notices', role: 'alert' });
    this.spoken = makeElement('p', { className: 'follow-spoken', role: 'status', aria: { live: 'polite' } });
    this.dialog = makeElement(
      'dialog', { className: 'follow', aria: { label: this.title } },
      makeElement('header', {}, makeElement('div', {}, makeElement('p', { className: 'follow-title', dir: 'auto' }, this.title), this.progress), this.reader, close),
      this.bar, this.place, this.notice, this.tray, makeElement('div', { className: 'follow-buttons' }, this.back, this.next), this.spoken);
    this.dialog.addEventListener('keydown', event => this.press(event));
    this.dialog.addEventListener('close', () => this.leave());
    this.listenForSwipes();
    document.body.append(this.dialog);
  }

  open(step) {
    if (!this.dialog.open) {
      this.dialog.classList.toggle('dark', window.gradio_config ? document.body.classList.contains('dark') : matchMedia('(prefers-color-scheme: dark)').matches);
      if (!readAddress()) history.pushState(history.state, '', this.address(step));
      this.dialog.showModal();
      this.next.focus();
      this.keepAwake();
    }
    this.show(step);
    this.showTimers();
  }

  address(step) { return `${location.pathname}${location.search}#follow/${this.key}/${step}`; } // whole, since the page has a <base>

  show(step) {
    const to = Math.min(Math.max(step, this.first), this.count);
    if (readAddress()?.step !== to) history.replaceState(history.state, '', this.address(to));
    if (to === this.at) return;
    this.at = to;
    this.screens[to] ??= this.buildScreen(to);
    this.place.replaceChildren(this.screens[to].shown);
    this.place.scrollTop = 0;
    this.progress.textContent = to ? this.say('Step {n} of {all}', { n: to, all: this.count }) : this.say('Before you start');
    this.bar.firstChild.style.width = `${(100 * to) / this.count}%`;
    this.spoken.textContent = `${this.progress.textContent}. ${this.screens[to].words}`;
    this.back.disabled = to === this.first;
    this.next.textContent = this.say(to === 0 ? 'Start' : to < this.count ? 'Next' : 'Done');
    if (!this.dialog.contains(document.activeElement) || document.activeElement.disabled) this.next.focus();
    this.showTimers();
    if (this.reading) this.read(true);
  }

  // The words that come before the first step stand above it, where they list nothing that is needed.
  buildScreen(step) {
    const ours = this.parts.filter(part => Number(part.dataset.step) === step || (step === 1 && this.first === 1 && part.dataset.step === '0'));
    const said = makeElement('div', { className: 'follow-said', lang: this.language, dir: this.direction });
    const pictures = makeElement('div', { className: 'follow-pictures' });
    for (const part of ours) {
      const words = part.matches('.words') ? part : part.querySelector('figcaption > div');
      if (words) said.append(makeElement('div', { className: part.dataset.step === '0' && step ? 'before' : '' }, ...words.cloneNode(true).childNodes));
      for (const image of part.querySelectorAll('img')) {
        const picture = makeElement('img', { src: image.src, alt: image.alt });
        picture.style.setProperty('--shape', image.style.getPropertyValue('--shape'));
        pictures.append(picture);
      }
    }
    const words = said.textContent.replace(/\s+/g, ' ').trim();
    if (step) this.addTimers(said, step);
    else this.addBoxes(said);
    const label = step ? this.say('Step {n}', { n: step }) : this.say('Before you start');
    const shown = makeElement('div', { className: 'follow-screen', tabIndex: 0, role: 'group', aria: { label } });
    shown.append(...[pictures, said].filter(each => each.childElementCount));
    return { shown, words };
  }

  addBoxes(said) {
    for (const old of said.querySelectorAll('input')) old.remove();
    for (const item of said.querySelectorAll('li')) {
      const own = [...item.childNodes].filter(each => !/^[UO]L$/.test(each.nodeName));
      item.prepend(makeElement('label', {}, makeElement('input', { type: 'checkbox' }), makeElement('span', {}, ...own)));
    }
  }

  addTimers(said, step) {
    const texts = [], walk = document.createTreeWalker(said, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) if (!walk.currentNode.parentElement.closest('a, code, pre')) texts.push(walk.currentNode);
    let count = 0;
    for (const text of texts) {
      for (const { at, end, seconds } of findTimes(text.data).reverse()) {
        const words = text.data.slice(at, end), id = `${step}.${count++}`;
        const press = () => (this.timers.find(id) ? this.timers.stop(id) : this.timers.start(id, step, words, seconds));
        const timer = makeElement('button', { type: 'button', className: 'follow-timer', onclick: press });
        Object.assign(timer.dataset, { id, seconds, words });
        const rest = text.splitText(end);
        rest.before(' ', timer);
      }
    }
  }

  showTimers() {
    if (!this.dialog?.open) return;
    const put = (button, words) => { if (button.textContent !== words) button.textContent = words; };
    for (const button of this.place.querySelectorAll('.follow-timer')) {
      const { id, seconds, words } = button.dataset, timer = this.timers.find(id);
      put(button, sayClock(timer ? this.timers.left(timer) : Number(seconds)));
      button.classList.toggle('on', Boolean(timer));
      button.setAttribute('aria-label', `${button.textContent} ${this.say(timer ? 'Stop the timer: {time}' : 'Start a timer: {time}', { time: words })}`);
    }
    const running = this.timers.all.filter(timer => this.timers.left(timer)), names = running.map(timer => timer.id).join(' ');
    if (this.tray.dataset.names !== names) {
      this.tray.dataset.names = names;
      this.tray.hidden = !running.length;
      this.tray.replaceChildren(...running.map(timer => makeElement(
        'button', { type: 'button', onclick: () => this.show(timer.step) },
        makeElement('b'), makeElement('span', {}, `${this.say('Step {n}', { n: timer.step })} · ${timer.words}`))));
    }
    running.forEach((timer, index) => put(this.tray.children[index].firstChild, sayClock(this.timers.left(timer))));
    const over = this.timers.all.filter(timer => !this.timers.left(timer));
    for (const old of [...this.notice.children]) if (!over.some(timer => timer.id === old.dataset.id)) old.remove();
    for (const timer of over) if (![...this.notice.children].some(each => each.dataset.id === timer.id)) this.addNotice(timer);
  }

  addNotice(timer) {
    const known = makeElement('button', { type: 'button', onclick: () => { this.timers.stop(timer.id); this.next.focus(); } }, 'OK');
    const words = this.say('Time is up: {time}', { time: `${timer.words} (${this.say('Step {n}', { n: timer.step })})` });
    const notice = makeElement('div', {}, makeElement('p', {}, words), known);
    notice.dataset.id = timer.id;
    this.notice.append(notice);
  }

  announce(timer) { if (!this.dialog.open && !document.querySelector('dialog[open]')) this.open(this.at > 0 ? this.at : timer.step); }

  press(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === ' ' && event.target.closest('button, input, a')) return; // which it presses
    const right = this.direction === 'rtl' ? -1 : 1;
    const move = { ArrowRight: right, ArrowLeft: -right, PageDown: 1, PageUp: -1, ' ': event.shiftKey ? -1 : 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    this.show(this.at + move);
  }

  listenForSwipes() {
    let from;
    this.place.addEventListener('touchstart', event => { from = event.touches.length === 1 && event.touches[0]; }, { passive: true });
    this.place.addEventListener('touchend', event => {
      if (!from) return;
      const across = event.changedTouches[0].clientX - from.clientX, along = event.changedTouches[0].clientY - from.clientY;
      if (Math.abs(across) < 60 || Math.abs(across) < 2 * Math.abs(along)) return;
      this.show(this.at + ((across < 0) === (this.direction !== 'rtl') ? 1 : -1));
    });
  }

  read(aloud) {
    speechSynthesis.cancel();
    this.reading = aloud;
    this.reader.setAttribute('aria-pressed', String(aloud));
    if (!aloud) return;
    const words = new SpeechSynthesisUtterance(this.screens[this.at].words);
    words.lang = this.language;
    const voice = speechSynthesis.getVoices().find(each => each.lang.toLowerCase().startsWith(this.language.toLowerCase()));
    if (voice) words.voice = voice;
    speechSynthesis.speak(words);
  }

  // The lock ends when the window is hidden, so it is taken again when it is seen.
  async keepAwake() {
    if (!this.dialog.open || document.visibilityState !== 'visible') return;
    try {
      const lock = await navigator.wakeLock?.request('screen');
      if (this.dialog.open) this.lock = lock;
      else lock?.release();
    } catch { /* the battery is low, or the page has no https: the screen may go dark */ }
  }

  leave() {
    if (this.reading) this.read(false);
    this.lock?.release();
    if (readAddress()) history.replaceState(history.state, '', location.pathname + location.search);
  }
}

// Where the address says "#follow/GUIDE/STEP", that guide is open at that step.

const readAddress = () => {
  const found = decodeURI(location.hash).match(/^#follow\/(.+)\/(\d+)$/);
  return found && { key: found[1], step: Number(found[2]) };
};
const followers = new Map();

// The guide of a key, in an exported web page: the number of its section. The page of DuoGen asks the server instead.
let findGuide = async key => document.querySelectorAll('section[data-steps]')[Number(key) - 1];

const openGuide = async (key, step) => {
  if (!followers.has(key)) {
    const section = await findGuide(key);
    if (!section) return;
    if (!followers.has(key)) followers.set(key, new Follower(section, key));
  }
  const follower = followers.get(key);
  follower.open(step ?? follower.first);
};
const openFromAddress = () => {
  const found = readAddress();
  for (const each of followers.values()) if (each.dialog.open && each.key !== found?.key) each.dialog.close();
  if (found) openGuide(found.key, found.step);
};
addEventListener('popstate', openFromAddress);
document.addEventListener('visibilitychange', () => { for (const each of followers.values()) each.keepAwake(); });

document.querySelectorAll('section[data-steps]').forEach((section, index) => {
  const words = FOLLOW_WORDS[document.documentElement.lang.split('-')[0]]?.['Follow step by step'] ?? 'Follow step by step';
  const start = makeElement('button', { type: 'button', className: 'follow-start', onclick: () => openGuide(String(index + 1)) }, words);
  section.querySelector(':scope > [data-step]').before(start);
});
openFromAddress();
