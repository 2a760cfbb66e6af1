// The buttons of the list of pairs: each sends its key.
element.addEventListener('click', event => {
  const button = event.target.closest('button.pair');
  if (button) trigger('click', { pair: button.value });
});
