// The part of a picture that is trained: dragged on the picture, or set by sliders. All numbers are pixels of the picture.
const LEAST = 16;
let crop = null; // what the window shows: the button of the tile, the picture's width and height, the shape, and the part
const part = selector => element.querySelector(`dialog.crop ${selector}`);
const bounded = (value, low, high) => Math.max(Math.min(low, high), Math.min(high, Math.round(value)));

const widest = () => Math.min(crop.width, Math.floor(crop.height * crop.shape));
const fitWidth = wide => bounded(wide, Math.ceil(LEAST * Math.max(1, crop.shape)), widest());

const setPart = (wide, left, top) => {
  crop.wide = fitWidth(wide);
  crop.high = bounded(crop.wide / crop.shape, 1, crop.height);
  crop.left = bounded(left, 0, crop.width - crop.wide);
  crop.top = bounded(top, 0, crop.height - crop.high);
  const limits = { wide: [fitWidth(0), widest()], left: [0, crop.width - crop.wide], top: [0, crop.height - crop.high] };
  for (const [name, [low, high]] of Object.entries(limits)) {
    const slider = part(`[name=${name}]`);
    Object.assign(slider, { min: low, max: high, value: crop[name], disabled: low === high });
    slider.nextElementSibling.textContent = name === 'wide' ? `${crop.wide} × ${crop.high}` : crop[name];
  }
  const share = { left: crop.left / crop.width, top: crop.top / crop.height, width: crop.wide / crop.width, height: crop.high / crop.height };
  for (const [side, value] of Object.entries(share)) part('.part').style[side] = `${100 * value}%`;
};
// Another size keeps the middle of the part.
const resize = to => {
  const wide = fitWidth(to), high = wide / crop.shape;
  setPart(wide, crop.left + (crop.wide - wide) / 2, crop.top + (crop.high - high) / 2);
};

const openCrop = async button => {
  const found = await server.find_crop(button.dataset.crop);
  const dialog = part('.stage').parentElement;
  if (found.said) { sayCrop(found.said); return; }
  const { width, height } = found, at = found.crop ?? { left: 0, top: 0, width, height };
  const shape = found.crop ? at.width / at.height : found.shape;
  crop = { button, width, height, trained: found.shape, shape, left: at.left, top: at.top, wide: at.width, high: at.height };
  part('.stage img').src = found.picture;
  part('.stage').style.setProperty('--shape', width / height);
  part('.shapes').hidden = Math.abs(found.shape - 1) < .01;
  for (const radio of element.querySelectorAll('dialog.crop [name=shape]')) radio.checked = Math.abs(shapeOf(radio) - shape) < .01;
  if (found.crop) setPart(at.width, at.left, at.top);
  else resize(width);
  dialog.showModal();
};
const shapeOf = radio => (radio.value === 'trained' ? crop.trained : 1);
const sayCrop = kind => { element.querySelector('.kept').textContent = part('.stage').parentElement.dataset[kind]; };

const keepCrop = async chosen => {
  const { button } = crop, kept = await server.keep_crop([button.dataset.crop, chosen]);
  part('.stage').parentElement.close();
  sayCrop(kept.said);
  if (!kept.picture) return;
  button.querySelector('img').src = kept.picture;
  button.classList.toggle('chosen', Boolean(chosen));
};

element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button?.dataset.crop) openCrop(button);
  if (!button?.closest('dialog.crop')) return;
  if (button.matches('.leave')) button.closest('dialog').close();
  if (button.matches('.whole')) keepCrop(null);
  if (button.matches('.save')) keepCrop({ left: crop.left, top: crop.top, width: crop.wide, height: crop.high });
});
element.addEventListener('input', event => {
  const { name, value } = event.target;
  if (!event.target.closest('dialog.crop')) return;
  if (name === 'wide') resize(+value);
  if (name === 'left') setPart(crop.wide, +value, crop.top);
  if (name === 'top') setPart(crop.wide, crop.left, +value);
  if (name === 'shape') { crop.shape = shapeOf(event.target); resize(crop.wide); }
});
element.addEventListener('pointerdown', event => {
  const box = event.target.closest('dialog.crop .part');
  if (!box) return;
  event.preventDefault();
  const from = { ...crop }, scale = crop.width / part('.stage').getBoundingClientRect().width, sized = event.target.matches('.grip');
  const move = at => {
    const [right, low] = [(at.clientX - event.clientX) * scale, (at.clientY - event.clientY) * scale];
    if (sized) setPart(Math.min(from.wide + right, crop.width - from.left, (crop.height - from.top) * crop.shape), from.left, from.top);
    else setPart(from.wide, from.left + right, from.top + low);
  };
  box.setPointerCapture(event.pointerId);
  box.addEventListener('pointermove', move);
  for (const end of ['pointerup', 'pointercancel']) box.addEventListener(end, () => box.removeEventListener('pointermove', move), { once: true });
});
