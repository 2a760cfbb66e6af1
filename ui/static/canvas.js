// The new canvas, drawn small: pull an edge or a corner, and it grows there. The sliders beside it do the same with the keyboard.
const MOST = 300, STEP = 5;
const bounded = share => Math.min(MOST, Math.max(100, Math.round(share / STEP) * STEP));

const drawn = (frame, wide, high, across, down) => {
  const [width, height] = [frame.dataset.width * wide / 100, frame.dataset.height * high / 100];
  frame.style.aspectRatio = `${width} / ${height}`;
  const picture = frame.querySelector('img').style;
  picture.left = `${across * (100 - 10000 / wide)}%`;
  picture.top = `${down * (100 - 10000 / high)}%`;
  picture.width = `${10000 / wide}%`;
  frame.nextElementSibling.textContent = frame.nextElementSibling.textContent.replace(/\d+ × \d+/, `${Math.round(width)} × ${Math.round(height)}`);
};

element.addEventListener('pointerdown', event => {
  const grip = event.target.closest('.grip');
  if (!grip) return;
  event.preventDefault();
  const frame = grip.closest('.frame'), start = frame.getBoundingClientRect(), side = grip.dataset.side;
  const from = { wide: +frame.dataset.wide, high: +frame.dataset.high, across: +frame.dataset.across, down: +frame.dataset.down };
  const now = { ...from };
  if (/[ew]/.test(side)) now.across = side.includes('e') ? 0 : 1;
  if (/[ns]/.test(side)) now.down = side.includes('s') ? 0 : 1;
  grip.setPointerCapture(event.pointerId);
  const pulled = move => {
    const right = (move.clientX - event.clientX) * (side.includes('w') ? -1 : 1);
    const low = (move.clientY - event.clientY) * (side.includes('n') ? -1 : 1);
    if (/[ew]/.test(side)) now.wide = bounded(from.wide * (start.width + right) / start.width);
    if (/[ns]/.test(side)) now.high = bounded(from.high * (start.height + low) / start.height);
    drawn(frame, now.wide, now.high, now.across, now.down);
  };
  const left = () => {
    grip.removeEventListener('pointermove', pulled);
    trigger('click', now);
  };
  grip.addEventListener('pointermove', pulled);
  grip.addEventListener('pointerup', left, { once: true });
  grip.addEventListener('pointercancel', left, { once: true });
});
