// Gradio gives the buttons of the list other requests when it changes. The focus follows its request, else stays in its place, else goes to the box.
let kept = null; // the focused button, what it was for, and the place of its request
const keepFocus = act => {
  const place = [...document.querySelectorAll('#waiting-list li')].indexOf(act?.closest('li'));
  kept = act && { act, value: act.value, command: act.value.split(' ')[0], place };
};
document.addEventListener('focusin', event => keepFocus(event.target.closest?.('#waiting-list button.act')));
document.addEventListener('pointerdown', event => { if (!event.target.closest('#waiting-list')) kept = null; });

new MutationObserver(() => {
  const at = document.activeElement;
  if (!kept || ![kept.act, document.body].includes(at) || at.value === kept.value) return;
  const items = [...document.querySelectorAll('#waiting-list li')];
  const same = [...document.querySelectorAll('#waiting-list button.act')].find(act => act.value === kept.value);
  const near = items[Math.min(kept.place, items.length - 1)]?.querySelector(`button[value^="${kept.command} "]`);
  const next = same ?? (kept.command === 'wait-edit' ? null : near) ?? document.querySelector('#box textarea');
  kept = null;
  next?.focus();
  if (next !== at) next?.scrollIntoView({ block: 'nearest' });
  if (next?.matches('.act')) keepFocus(next);
}).observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ['value'] });
