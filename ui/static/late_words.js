// Gradio reads the message box some time after Enter, and the server empties it once it has taken the message. What is written in between
// belongs to the next message: letters are held until the message leaves, and come back after the box was emptied.
const late = { sent: null, more: '', held: null };
const LATE_MS = 20000; // a server that takes longer is lost, or has refused the message
const HELD_MS = 3000; // a message that has not left by then was not sent
const forgetLate = () => { late.sent = null; late.more = ''; };
const writeInBox = words => {
  const box = messageBox();
  box.value = words;
  box.dispatchEvent(new Event('input', { bubbles: true }));
};
const holdLetters = () => {
  const letters = late.held = { words: '' };
  setTimeout(() => { if (late.held === letters) releaseLetters(); }, HELD_MS);
};
const releaseLetters = () => {
  const words = late.held?.words;
  late.held = null;
  if (words) writeInBox(messageBox().value ? messageBox().value + words : words.trimStart());
};
const watchBox = () => {
  if (late.sent === null) return;
  if (performance.now() > late.end) return forgetLate();
  if (messageBox()?.value) return requestAnimationFrame(watchBox);
  const more = late.more;
  forgetLate();
  if (more) writeInBox(more);
};
document.addEventListener('sent', () => {
  if (!messageBox()?.value) return;
  Object.assign(late, { sent: messageBox().value, more: '', end: performance.now() + LATE_MS });
  requestAnimationFrame(watchBox);
});
document.addEventListener('joining', event => {
  if (late.held && late.sent !== null && event.detail.includes(JSON.stringify(late.sent))) releaseLetters();
});
document.addEventListener('keydown', event => {
  const box = messageBox();
  if (event.target !== box || event.key !== 'Enter' || event.shiftKey || event.isComposing || event.defaultPrevented) return;
  if (box.value.trim() && !late.held) holdLetters();
}, true);
document.addEventListener('beforeinput', event => {
  if (!late.held || event.target !== messageBox()) return;
  if (event.inputType === 'insertText' && event.data) late.held.words += event.data;
  else if (event.inputType === 'deleteContentBackward' && late.held.words) late.held.words = late.held.words.slice(0, -1);
  else return;
  event.preventDefault();
}, true);
document.addEventListener('input', event => {
  const box = event.target;
  if (late.sent === null || box !== messageBox()) return;
  if (box.value.startsWith(late.sent)) { late.more = box.value.slice(late.sent.length).trimStart(); return; }
  const more = late.more, first = event.inputType === 'insertText' && box.value === event.data;
  forgetLate(); // the user has changed what was sent, or the box was emptied and a letter came first
  if (first && more) writeInBox(more + box.value);
}, true);
