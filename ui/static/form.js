// Asks once more what the values of a form come to, a moment after the user has touched one of them.
// One event for the whole form: when the page opens, Gradio looks through the events of all controls for each of its components.
let due;
const askAgain = event => {
  if (!element.isConnected || !event.target.closest?.(props.form)) return;
  clearTimeout(due);
  due = setTimeout(() => trigger('input'), 200); // a list writes its choice after the press or the key that makes it
};
for (const kind of ['input', 'change', 'click', 'mousedown', 'keydown']) document.addEventListener(kind, askAgain, true);
