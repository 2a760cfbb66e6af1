// "Animate this step" and "Animate to the next step": what happens, how long, with which video model, and what that would need here.
const OTHER_MODEL = 'another';
const animateStep = async act => {
  const [command, turn, at] = act.value.split(' '), on = command === 'animate-on';
  const about = { chat: shownChat(), turn, at, on };
  const known = localStorage.videoModel ?? '';
  const found = await ask('describe_motion', about);
  if (found.error) return sendCommand('say ' + found.error);
  const here = found.models.some(each => each.id === known);
  const options = found.models.map(({ id, title }) => make('option', { value: id, textContent: title, selected: id === known }));
  const typed = Boolean(known && !here) || !found.models.length;
  options.push(make('option', { value: OTHER_MODEL, textContent: say('Another folder or repository ...'), selected: typed }));
  const model = make('select', { name: 'model' }, ...options);
  const other = make('input', { name: 'other', value: here ? '' : known, autocomplete: 'off', spellcheck: false });
  const place = field(say('Folder or repository'), other);
  const words = make('textarea', { name: 'words', rows: 3, maxLength: 1000, required: true, value: found.words, dir: 'auto' });
  const seconds = make('input', { name: 'seconds', type: 'number', min: 0.2, max: 20, step: 'any', placeholder: say('as trained') });
  const steps = make('input', { name: 'steps', type: 'number', min: 1, max: 100, step: 1, placeholder: say('as trained') });
  const hint = make('p', { className: 'hint', textContent: found.hint, hidden: !found.hint });
  const plan = make('p', { className: 'plan' });
  plan.setAttribute('role', 'status');
  const submit = make('button', { type: 'submit', className: 'save', textContent: say('Animate') });
  const numbers = make('div', { className: 'numbers' }, field(say('Seconds'), seconds), field(say('Steps'), steps));
  const form = make(
    'form', { method: 'dialog' }, hint, field(say('What happens'), words), field(say('Video model'), model), place, numbers, plan,
    ends(() => dialog, submit));
  const title = say(on ? 'Animate to the next step' : 'Animate this step');
  const { dialog } = openDialog(title, act.closest('details')?.querySelector('summary'), form);
  dialog.classList.add('motion-dialog');
  const chosen = () => (model.value === OTHER_MODEL ? other.value.trim() : model.value);
  const read = () => ({ model: chosen(), words: words.value, seconds: seconds.value, steps: steps.value });
  const look = async () => {
    place.hidden = model.value !== OTHER_MODEL;
    submit.disabled = !chosen();
    const asked = read(), key = JSON.stringify(asked);
    const planned = asked.model ? await ask('describe_motion', { ...about, ...asked }) : { plan: '' };
    if (key === JSON.stringify(read())) plan.textContent = planned.error ?? planned.plan;
  };
  let due;
  form.oninput = event => {
    if (event.target === words) return;
    submit.disabled = !chosen();
    place.hidden = model.value !== OTHER_MODEL;
    clearTimeout(due);
    due = setTimeout(look, 250);
  };
  form.onsubmit = event => {
    event.preventDefault();
    localStorage.videoModel = chosen();
    sendCommand(act.value, { motion: read() });
    dialog.close();
  };
  look();
};
