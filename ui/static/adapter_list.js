// The switches and weights of the adapters. The list shows what the server has set, once all changes are sent and answered.
const weights = new Map(); // by key: what the user has chosen, also for an adapter that is off
let waits = 0;
const showSet = () => {
  if (waits) return;
  for (const row of element.querySelectorAll('.adapter')) {
    const [on, weight] = row.querySelectorAll('input');
    on.checked = on.defaultChecked;
    weight.value = on.checked ? weight.defaultValue : weights.get(row.dataset.key) ?? weight.defaultValue;
    row.querySelector('output').textContent = weight.value;
  }
};
element.addEventListener('input', event => {
  if (event.target.type === 'range') event.target.parentElement.querySelector('output').textContent = event.target.value;
});
element.addEventListener('change', event => {
  const row = event.target.closest('.adapter'), [on, weight] = row.querySelectorAll('input');
  weights.set(row.dataset.key, weight.value);
  if (event.target === weight && !on.checked) return; // it counts when the adapter is switched on
  waits += 1;
  trigger('input', { adapter: row.dataset.key, weight: on.checked ? Number(weight.value) : 0 });
});
document.addEventListener('adapters', () => {
  waits = Math.max(0, waits - 1);
  showSet();
});
watch('value', showSet);
