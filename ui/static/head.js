// The open pair in the head is a button that unfolds a panel: it says so, and Escape or a click beside it closes the panel.
const findPairButton = () => document.querySelector('#pair > button.label-wrap');
const describePair = () => {
  const button = findPairButton();
  if (!button) return;
  const open = String(button.classList.contains('open'));
  const name = `${say('Pair and adapters')}: ${button.firstElementChild.textContent.trim()}`;
  if (button.getAttribute('aria-expanded') !== open) button.setAttribute('aria-expanded', open);
  if (button.getAttribute('aria-label') !== name) { button.title = name; button.setAttribute('aria-label', name); }
};
const closePair = () => {
  if (findPairButton()?.classList.contains('open')) findPairButton().click();
};
document.addEventListener('click', event => {
  const path = event.composedPath();
  if (path.some(each => each.id === 'pair' || each.classList?.contains('toast-wrap'))) {
    if (event.target.closest('button.pair')) findPairButton().focus(); // the list of pairs goes away
  } else if (event.isTrusted) closePair();
});
document.addEventListener('keydown', event => {
  if (event.key !== 'Escape' || !event.target.closest?.('#pair')) return;
  closePair();
  findPairButton().focus();
});

// Gradio gives every choice a name of its own; with one name the arrow keys go from shape to shape, as in any group of choices.
const groupShapes = () => {
  for (const choice of document.querySelectorAll('#shapes input[type=radio]:not([name=shape])')) choice.name = 'shape';
  const group = document.querySelector('#shapes .wrap:has(input):not([role])');
  if (group) { group.setAttribute('role', 'radiogroup'); group.setAttribute('aria-label', say('Picture shape')); }
};
let headDue = false;
new MutationObserver(() => {
  groupShapes(); // at once: Gradio renames all choices with every choice, and the next key may come before the next frame
  if (headDue) return;
  headDue = true;
  requestAnimationFrame(() => { headDue = false; describePair(); });
}).observe(document.body, { childList: true, subtree: true, attributeFilter: ['class'] });
describePair();
groupShapes();
