// The chip on each picture in the message box: its number and its role. A tap gives it the next role. The hidden box "roles" goes with the message.
const ROLE_NAMES = {
  '': ['', 'No role'],
  source: ['Source', 'Source: its pixels are kept'],
  reference: ['Reference', 'Reference: its looks are kept'],
};
const rolesBox = () => document.querySelector('#roles textarea');
const readRoles = () => JSON.parse(rolesBox()?.value || '{}');
const fileOf = tile => decodeURIComponent(tile.querySelector('img')?.src ?? '').split('/').slice(-2).join('/');

const giveNextRole = tile => {
  const all = readRoles(), file = fileOf(tile), names = Object.keys(ROLE_NAMES);
  all[file] = names[(names.indexOf(all[file] ?? '') + 1) % names.length];
  rolesBox().value = JSON.stringify(all);
  rolesBox().dispatchEvent(new Event('input', { bubbles: true }));
  drawRoles();
};
const drawRoles = () => {
  const all = readRoles();
  document.querySelectorAll('#box .thumbnail-item').forEach((tile, at) => {
    const role = all[fileOf(tile)] ?? '', [short, long] = ROLE_NAMES[role];
    let chip = tile.querySelector('.role');
    if (!chip) {
      chip = Object.assign(document.createElement('button'), { type: 'button', className: 'role' });
      chip.addEventListener('click', event => { event.stopPropagation(); giveNextRole(tile); });
      tile.append(chip);
    }
    const words = [at + 1, say(short)].join(' ').trim(), title = `@${at + 1}: ${say(long)}`;
    if (chip.textContent === words && chip.title === title) return; // a change would be seen as one of the page
    chip.textContent = words;
    chip.title = title;
    chip.setAttribute('aria-label', title);
    chip.dataset.role = role;
  });
};
document.addEventListener('roles', drawRoles); // the page has set them
