"""The Models tab: which pairs there are, what each costs, fetching one, and opening it."""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from duogen.hub import download
from duogen.hub.catalogue import REPOSITORY, Entry, entries, installed, lora_here, missing, places, snapshot, wanted
from duogen.options import LoadOptions
from ui.parts import controls
from ui.parts.i18n import say
from ui.parts.loading import Loading
from ui.parts.shared import QUICK, Updates, refused, sentence, status_line

OTHER = "other"
POLL_SECONDS = 1.0
FILES_SHOWN = 40


class Models:
    """The tab for all browsers. A download belongs to none of them: a worker process does it, and this looks at what it wrote down."""

    def __init__(self, tab: gr.Tab, loading: Loading, timer: gr.Timer) -> None:
        """`timer` is the page's, which looks up how far the loading of a pair is."""
        self.loading, self.timer = loading, timer
        self.latest: dict[str, tuple[Any, ...]] = {}  # what a browser chose last, by session
        with tab, gr.Row(elem_id="models"):
            self._lay_out()
        self._wire(tab)

    def _lay_out(self) -> None:
        self.poll = gr.Timer(POLL_SECONDS, active=False)
        with gr.Column(scale=2, min_width=260):
            self.choice = gr.Radio(choices(), value=next(iter(entries())), label="Pairs", show_label=False, elem_id="models-choice")
            with gr.Column(visible=False, elem_id="models-other") as self.other:
                self.name = gr.Textbox(
                    label="Painter", max_lines=1, elem_id="models-name",
                    info="A folder with a model_index.json, or a repository such as owner/name.",
                )  # fmt: skip
                self.brain = gr.Textbox(
                    label="Language model", max_lines=1, elem_id="models-brain",
                    info="Folder or repository of a Qwen2.5-VL or Qwen3-VL; empty where the painter brings one.",
                )  # fmt: skip
        with gr.Column(scale=3, min_width=320):
            self.card = gr.HTML(elem_id="models-card")
            self.plan = gr.HTML(elem_id="models-plan")
            with gr.Row(elem_classes="buttons"):
                self.pull = gr.Button("Download", size="sm", variant="primary", min_width=100, elem_id="models-pull")
                self.pause = gr.Button("Pause", size="sm", min_width=80, elem_id="models-pause", visible=False)
                self.use = gr.Button("Use this pair", size="sm", min_width=110, elem_id="models-use")
                self.verify = gr.Button("Verify", size="sm", min_width=80, elem_id="models-verify")
                self.remove = gr.Button("Remove", size="sm", min_width=80, elem_id="models-remove")
                self.sure = gr.Button("Yes, remove it", size="sm", variant="stop", min_width=110, elem_id="models-sure", visible=False)
            self.status = gr.HTML(elem_id="models-status")
            self.files = gr.HTML(elem_id="models-files")
            with gr.Accordion("How it is opened", open=False, elem_id="models-load"):
                self.load = controls.build(LoadOptions)

    def _wire(self, tab: gr.Tab) -> None:
        inputs = {self.choice, self.name, self.brain, *self.load.values()}
        buttons = [self.pull, self.pause, self.use, self.verify, self.remove, self.sure]
        outputs = [self.choice, self.other, self.card, self.plan, self.status, self.files, self.poll, self.timer, *buttons]
        quick = {"inputs": inputs, "outputs": outputs, **QUICK}
        chosen = [tab.select, self.choice.input, self.name.submit, self.brain.submit, self.name.blur, self.brain.blur]
        chosen += [each.input for each in self.load.values()]
        gr.on(chosen, self.show, trigger_mode="always_last", **quick)  # in order: two look-ups at once may end the other way round
        self.poll.tick(self.looked, **quick)
        for button, act in ((self.pull, self._pull), (self.pause, self._pause), (self.use, self._use), (self.sure, self._remove)):
            button.click(kindly(act, self.status), **quick)
        self.verify.click(self._verify, **quick)
        self.remove.click(self.ask, **quick)

    def _id(self, values: dict) -> str:
        """What is chosen: an id of the catalogue, or what was typed in."""
        return values[self.choice] if values[self.choice] != OTHER else (values[self.name] or "").strip()

    def _choices(self, values: dict) -> tuple[Any, ...]:
        """All that decides what is shown: the pair and how it is opened."""
        return self._id(values), self._brain(values), *(values[each] for each in self.load.values())

    def spoken(self) -> Updates:
        """What the browser cannot put into its language by itself."""
        return {self.choice: gr.update(choices=choices())}  # a new Radio would be laid out, where the page is being built

    def leave(self, request: gr.Request) -> None:
        """A browser is gone."""
        self.latest.pop(request.session_hash, None)

    def show(self, values: dict, request: gr.Request) -> Updates:
        """All of the tab for what is chosen; nothing where the browser has chosen something else meanwhile."""
        self.latest[request.session_hash] = self._choices(values)
        return self._unless_late(values, request, self._shown(values))

    def looked(self, values: dict, request: gr.Request) -> Updates:
        """What changes by itself."""
        return self._unless_late(values, request, self.look(values))

    def _unless_late(self, values: dict, request: gr.Request, updates: Updates) -> Updates:
        mine = self._choices(values)
        late = self.latest.get(request.session_hash, mine) != mine
        return {self.status: gr.skip()} if late else updates

    def _shown(self, values: dict) -> Updates:
        id, other = self._id(values), values[self.choice] == OTHER
        known = entries().get(id)
        shown = {
            self.other: gr.Column(visible=other),
            self.choice: gr.Radio(choices()),
            self.card: card(known) if known else own_card(id),
            self.plan: status_line(self._planned(values)),
            self.sure: gr.Button(visible=False),
        }
        return shown | self.look(values)

    def _fetchable(self, values: dict) -> list[tuple[str, str]]:
        """What of the choice comes from the hub: ids with the preset that is wanted of each."""
        id, preset = self._id(values), values[self.load["preset",]] or ""
        known = id in entries() and preset in {each.id for each in entries()[id].presets}
        found = [(id, preset if known else "")] if can_fetch(id) else []
        brain = self._brain(values)
        return [*found, (brain, "")] if brain and can_fetch(brain) else found

    def _brain(self, values: dict) -> str:
        return (values[self.brain] or "").strip() if values[self.choice] == OTHER else ""

    def look(self, values: dict) -> Updates:
        """How far the download is, and what can be done now."""
        id, wished = self._id(values), self._fetchable(values)
        lacking = [each for each, preset in wished if not is_here(each, preset)]
        known = {each: now for each, _ in wished if (now := download.status(each)) is not None}
        under_way = [each for each, now in known.items() if now.state in ("listing", "running")]
        busy, here = bool(under_way), not lacking and bool(wished or is_here(id))
        now = next((known[each] for each in [*under_way, *lacking, *known] if each in known), None)
        go = "Go on" if lacking and now and now.state in ("paused", "failed") else "Download"
        return {
            self.status: self._status(now),
            self.files: files(now),
            self.poll: gr.Timer(active=busy or self.loading.busy),
            self.pull: gr.Button(go, visible=bool(lacking) and not busy),
            self.pause: gr.Button(visible=busy),
            self.use: gr.Button(interactive=here and is_here(id)),
            self.verify: gr.Button(visible=can_fetch(id) and is_here(id), interactive=True),
            self.remove: gr.Button(visible=can_fetch(id) and not busy and (id in known or is_here(id))),
        }

    def _status(self, now: download.Progress | None) -> str:
        if self.loading.busy:
            return status_line(self.loading.words, "busy")
        if now is None or now.state == "done":
            return self._open_now()
        share = now.done / now.total if now.total else 0.0
        return status_line(now.line(), {"failed": "bad", "paused": ""}.get(now.state, "busy"), share=share)

    def _open_now(self) -> str:
        """Which pair answers, and with which kernel it paints; or why none does, or not the one that was wanted."""
        loading = self.loading
        plan = getattr(loading.engine, "plan", None)
        if loading.engine is None or loading.words != f"Ready: {loading.engine.about['title']}." or plan is None:
            return status_line(loading.words, "bad" if loading.error else "")
        said = [f"Open now: {loading.engine.about['title']}.", plan.kernel(), plan.unused_gpu]
        return status_line(" ".join(map(say, filter(None, said))))

    def _load(self, values: dict) -> LoadOptions:
        return controls.read(LoadOptions, self.load, values)

    def _planned(self, values: dict) -> str:
        """How it would be opened here, and what that costs."""
        from duogen.hub.catalogue import Found, find
        from duogen.hub.load import planned

        id = self._id(values)
        try:
            load = self._load(values)
            if id in entries() and entries()[id].sources and not installed(entries()[id]):
                found = Found(Path("."), None, entries()[id])
            elif id:
                found = find(id, self._brain(values) or None)
            else:
                return ""
            return " ".join([say("On this machine:"), *map(say, planned(found, load)[0].plan.sentences())])
        except ValueError as error:
            return str(error)

    def _pull(self, values: dict) -> Updates:
        id, load = self._id(values), self._load(values)
        for each, preset in self._fetchable(values):
            download.start(each, load.preset if each == id else preset)
        return self.look(values)

    def _pause(self, values: dict) -> Updates:
        for each, _ in self._fetchable(values):
            download.pause(each)
        return self.look(values)

    def _verify(self, values: dict, request: gr.Request) -> Iterator[Updates]:
        """Read all files anew, which takes minutes for a large pair."""
        yield {self.status: status_line("Reading all files ...", "busy"), self.verify: gr.Button(interactive=False)}
        try:
            bad = download.verify(self._id(values))
            said = f"{len(bad)} files were damaged and thrown away; press Download." if bad else "All files are what the hub has."
        except ValueError as error:
            bad, said = [], str(error)
        after = self._shown(values) | {self.status: status_line(said, "bad" if bad else "")}
        yield {self.verify: gr.Button(interactive=True)} | self._unless_late(values, request, after)

    def ask(self, values: dict) -> Updates:
        return {self.sure: gr.Button(visible=True), self.remove: gr.Button(visible=False)}

    def _remove(self, values: dict) -> Updates:
        id = self._id(values)
        if self.loading.pair == id:
            raise ValueError("This pair is open; open another one first.")
        freed = download.remove(id)
        return self._shown(values) | {self.status: status_line(f"{freed / 1e9:.2f} GB are free again.")}

    def _use(self, values: dict) -> Updates:
        """Open it instead of the pair that is open; conversations stay."""
        from duogen.hub.catalogue import find

        id, brain = self._id(values), self._brain(values)
        load = self._load(values)
        if id in entries() and not entries()[id].sources:
            id = None
        else:
            find(id, brain or None)
        self.loading.switch(id, brain or None, load)
        said = status_line("It is opened now; the answers before are finished first.", "busy")
        return self.look(values) | {self.timer: gr.Timer(active=True), self.poll: gr.Timer(active=True), self.status: said}


def kindly(act: Any, idle: Any) -> Any:
    """A refusal becomes a word to the user."""

    def handled(values: dict) -> Updates:
        try:
            return act(values)
        except ValueError as error:
            refused(error)
            return {idle: gr.skip()}

    return handled


def choices() -> list[tuple[str, str]]:
    """Titles with a word about where they are, and ids."""
    listed = []
    for each in entries().values():
        state = say("bundled" if not each.sources else "here" if installed(each) else f"{each.download_bytes / 1e9:.0f} GB")
        listed.append((f"{each.title} · {state}", each.id))
    return [*listed, (say("Another folder or repository ..."), OTHER)]


def can_fetch(id: str) -> bool:
    if id in entries():
        return bool(entries()[id].sources)
    return REPOSITORY.fullmatch(id.partition("@")[0]) is not None and not Path(id).exists()


def is_here(id: str, preset: str = "") -> bool:
    """Whether a pair of the catalogue, with this preset, or what was typed in is on this machine whole."""
    if id in entries():
        return installed(entries()[id]) and all(lora_here(each) for each in entries()[id].presets if each.id == preset)
    if not can_fetch(id):
        return bool(id) and Path(id).is_dir()
    folder = snapshot(wanted(id).sources[0])
    return folder is not None and not missing(folder)


def card(pair: Entry) -> str:
    """The model card of a pair."""
    from huggingface_hub import constants

    licence = pair.licence
    link = f'<a href="{html.escape(licence.url)}" target="_blank" rel="noreferrer">{sentence(licence.name)}</a>'
    asked = [licence.conditions, "You must agree to its conditions on the hub and be logged in." if licence.gated else ""]
    conditions = "".join(f"<br>{sentence(each)}" for each in asked if each)
    rows = [("Paints", sentence(pair.paints)), ("Weights", sentence(weighs(pair))), ("Licence", link + conditions)]
    if licence.guardrail:
        rows.append(("Guardrail", sentence(guarded(licence.guardrail))))
    for source in pair.sources:
        page = f"https://huggingface.co/{source.repo}"
        rows.append((source.role.capitalize(), f'<a href="{page}" target="_blank" rel="noreferrer">{source.repo}</a>, {source.revision}'))
    if pair.sources and installed(pair):
        rows.append(("On the disk", sentence(f"{size_of(pair) / 1e9:.2f} GB")))
    elif pair.sources:
        cache = Path(constants.HF_HUB_CACHE)
        there = next(folder for folder in (cache, *cache.parents) if folder.exists())
        left = shutil.disk_usage(there).free
        room = f"{pair.download_bytes / 1e9:.1f} GB; {left / 1e9:.0f} GB are free on the disk of {there}"
        rows.append(("To fetch", sentence(room)))
    rows += [("Preset", sentence(f"{preset.id}: {preset.title}, {preset.bytes / 1e9:.2f} GB more")) for preset in pair.presets]
    facts = "".join(f"<dt>{sentence(name)}</dt><dd>{value}</dd>" for name, value in rows)
    return f"<h2>{sentence(pair.title)}</h2><p>{sentence(pair.summary)}</p><dl class='facts'>{facts}</dl>"


def weighs(pair: Entry) -> str:
    """Memory that a pair's weights take, by precision."""
    from duogen.hub.memory_plan import in_every_precision

    return ", ".join(f"{size:.1f} GB in {precision}" for precision, size in in_every_precision(pair.parts).items())


def size_of(pair: Entry) -> int:
    """Bytes of a pair that is here."""
    return sum(file.stat().st_size for folder in places(pair).values() for file in folder.rglob("*") if file.is_file())


def guarded(package: str) -> str:
    from duogen.models.guardrail import installed as there

    if there():
        return f"{package} is installed and looks at the words of every picture, and at the picture."
    return f"{package} is not installed: pip install {package}. The licence asks for it."


def own_card(id: str) -> str:
    """For what was typed in."""
    if not id:
        words = "Any diffusers pipeline that takes words and pictures can paint, with a language model that sees."
        return f"<h2>{sentence('Another pair')}</h2><p>{sentence(words)}</p>"
    try:
        where = "A folder." if Path(id).is_dir() else f"A repository, revision {wanted(id).sources[0].revision}."
    except ValueError as error:
        return f"<h2>{sentence('Another pair')}</h2><p>{sentence(str(error))}</p>"
    safe = sentence("Only safetensors are opened; code that comes with it is never run.")
    return f"<h2>{sentence(id)}</h2><p>{sentence(where)} {safe}</p>"


def files(now: download.Progress | None) -> str:
    """Every file with its share: those under way, then those to come, the largest first."""
    if now is None or not now.files or now.state == "done":
        return ""
    waiting = sorted(now.files.items(), key=lambda each: (each[1][1] >= each[1][0], not each[1][1], -each[1][0]))[:FILES_SHOWN]
    bar = "<progress max='{}' value='{}' aria-label='{}'></progress>"
    rows = [
        f"<tr><td>{sentence(name)}</td><td>{bar.format(max(size, 1), have, sentence('Progress'))}</td><td>{size / 1e6:.1f} MB</td></tr>"
        for name, (size, have) in waiting
    ]
    return f"<div class='files'><table>{''.join(rows)}</table></div>"
