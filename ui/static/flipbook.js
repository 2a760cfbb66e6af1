// Plays an answer as a flipbook in a dialog: its pictures one after the other, each with its words, for as long as they take to read.
class Flipbook {
  constructor({ language, direction, frames }, opener) {
    Object.assign(this, { frames, direction, opener, at: 0 });
    const button = (name, sign, press) => (
      makeElement('button', { type: 'button', title: name, onclick: press, aria: { label: name } }, sign));
    this.count = makeElement('p', { className: 'count' });
    const close = button(say('Close'), '×', () => this.dialog.close());
    this.picture = makeElement('img', { className: 'shown' });
    this.picture.style.aspectRatio = Math.min(...frames.map(each => each.shape));
    const about = { lang: language, dir: direction, aria: { label: say('Words of the picture') } };
    this.words = makeElement('div', { className: 'words', tabIndex: 0, role: 'group', ...about });
    this.back = button(say('The picture before'), '‹', () => this.turn(this.at - 1));
    this.toggle = makeElement('button', { type: 'button', className: 'toggle', onclick: () => this.play(!this.timer) });
    this.next = button(say('The next picture'), '›', () => this.turn(this.at + 1));
    this.dialog = makeElement(
      'dialog', { className: 'flipbook', aria: { label: say('Flipbook') } },
      makeElement('div', { className: 'row' }, this.count, close), this.picture, this.words,
      makeElement('div', { className: 'row' }, this.back, this.toggle, this.next));
    this.dialog.addEventListener('keydown', event => this.press(event));
    this.dialog.addEventListener('close', () => this.leave());
    document.body.append(this.dialog);
    for (const { picture } of frames) makeElement('img', { src: picture }); // so that the next one is there in time
    this.dialog.showModal();
    this.toggle.focus();
    this.show(0);
    this.play(!matchMedia('(prefers-reduced-motion: reduce)').matches);
  }

  show(at) {
    this.at = at;
    const { picture, alt, words } = this.frames[at];
    Object.assign(this.picture, { src: picture, alt });
    this.words.innerHTML = words; // from render_html, which lets no HTML of an answer through
    for (const link of this.words.querySelectorAll('a')) link.target = '_blank';
    this.words.scrollTop = 0;
    this.count.textContent = `${at + 1} / ${this.frames.length}`;
    this.back.disabled = at === 0;
    this.next.disabled = at === this.frames.length - 1;
    if (document.activeElement === document.body || document.activeElement.disabled) this.toggle.focus();
  }

  // A person who turns the pages wants to look, so it pauses.
  turn(at) {
    this.play(false);
    if (this.frames[at]) this.show(at);
  }

  // A screen reader reads the words of a turned page; while it plays they would pile up.
  play(on) {
    clearTimeout(this.timer);
    this.timer = undefined;
    if (on && this.at === this.frames.length - 1) this.show(0);
    if (on) this.timer = setTimeout(() => this.goOn(), this.frames[this.at].milliseconds);
    this.words.setAttribute('aria-live', on ? 'off' : 'polite');
    this.toggle.textContent = on ? say('Pause') : say('Play');
  }

  goOn() {
    this.show(this.at + 1);
    this.play(this.at < this.frames.length - 1);
  }

  press(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const [on, back] = [this.at + 1, this.at - 1], [right, left] = this.direction === 'rtl' ? [back, on] : [on, back];
    const to = { ArrowRight: right, ArrowLeft: left, PageDown: on, PageUp: back, Home: 0, End: this.frames.length - 1 }[event.key];
    const space = event.key === ' ' && !event.target.closest('button, a');
    if (to === undefined && !space) return;
    event.preventDefault();
    event.stopPropagation(); // the arrows of the chat
    if (space) this.play(!this.timer);
    else this.turn(to);
  }

  leave() {
    clearTimeout(this.timer);
    this.dialog.remove();
    if (this.opener?.isConnected) this.opener.focus();
  }
}

const playFlipbook = async act => {
  const found = await server.pack(act.value);
  if (found.error) return sendCommand('say ' + found.error);
  document.querySelector('dialog.flipbook')?.close();
  new Flipbook(found, act.closest('details')?.querySelector('summary'));
};
