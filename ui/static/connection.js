// Gradio says in English alone that the connection is lost. `LOST` has it in the other languages of the page.
const lost = LOST[navigator.language.split('-')[0].toLowerCase()];
if (lost) new MutationObserver(() => {
  for (const line of document.querySelectorAll('.toast-text')) if (line.textContent.trim() === LOST.en) line.textContent = lost;
}).observe(document.body, { childList: true, subtree: true });
