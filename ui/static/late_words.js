// The server empties the message box once it has taken a message. What was written since it was sent comes back then.
const late = { sent: null, more: '' };
const LATE_MS = 20000; // a server that takes longer is lost, or has refused the message
const forgetLate = () => { late.sent = null; late.more = ''; };
const writeInBox = words => {
  const box = messageBox();
  box.value = words;
  box.dispatchEvent(new Event('input', { bubbles: true }));
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
document.addEventListener('input', event => {
  const box = event.target;
  if (late.sent === null || box !== messageBox()) return;
  if (box.value.startsWith(late.sent)) { late.more = box.value.slice(late.sent.length).trimStart(); return; }
  const more = late.more, first = event.inputType === 'insertText' && box.value === event.data;
  forgetLate(); // the user has changed what was sent, or the box was emptied and a letter came first
  if (first && more) writeInBox(more + box.value);
}, true);
