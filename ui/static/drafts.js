// Drafts that are unfolded are played once in the place of their picture.
const DRAFT_MILLISECONDS = 900;

const playDrafts = async drafts => {
  const picture = drafts.closest('figure.card')?.querySelector('img.picture');
  const frames = [...drafts.querySelectorAll('figure')];
  if (!picture || drafts.classList.contains('playing') || matchMedia('(prefers-reduced-motion: reduce)').matches) return;
  const last = picture.src;
  drafts.classList.add('playing');
  for (const frame of frames) {
    if (!drafts.open) break;
    frame.classList.add('now');
    picture.src = frame.querySelector('img').src;
    await new Promise(done => setTimeout(done, DRAFT_MILLISECONDS));
    frame.classList.remove('now');
  }
  picture.src = last;
  drafts.classList.remove('playing');
};

document.addEventListener('toggle', event => {
  if (event.target.matches?.('#talk .drafts') && event.target.open) playDrafts(event.target);
}, true);
