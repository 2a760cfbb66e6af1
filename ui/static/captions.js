// A caption is kept when its box is left, and a line below the tiles says so.
element.addEventListener('change', async event => {
  const box = event.target.closest('textarea[data-key]');
  if (!box) return;
  const kind = await server.keep_caption([box.dataset.key, box.value]);
  element.querySelector('.kept').textContent = box.closest('.tiles').dataset[kind];
});
