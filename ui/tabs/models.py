"""The Models tab: lists the pairs with their costs, downloads them and opens them."""

from __future__ import annotations

import html
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from duogen.hub import download
from duogen.hub.catalogue import (
    REPOSITORY,
    Entry,
    entries,
    find_download,
    find_folders,
    find_lora,
    is_installed,
    list_missing,
    snapshot,
    video_models,
)
from duogen.hub.model_files import ModelFile, find_model_files, keep_models_folder, models_folder
from duogen.options import LoadOptions
from ui.parts import controls
from ui.parts.i18n import translate
from ui.parts.loading import Loading
from ui.parts.shared import QUICK, REFUSALS, Updates, session_of, show_warning, status_line, translate_html

OTHER = "other"
POLL_SECONDS = 1.0
FILES_SHOWN = 40
FOUND_SHOWN = 200
OWN = "The pair's own"


class Models:
    """The tab for all browsers. A worker process downloads; this tab reads the progress that it writes."""

    def __init__(self, tab: gr.Tab, loading: Loading, timer: gr.Timer) -> None:
        """`timer` is the timer of the page that polls the loading of a pair."""
        self.loading, self.timer = loading, timer
        self.latest: dict[str, tuple[Any, ...]] = {}  # the last choice of a browser, by session
        self.found: list[ModelFile] = []  # in the folder of ComfyUI or Forge, as it was last looked at
        with tab, gr.Row(elem_id="models"):
            self._lay_out()
        self._wire(tab)

    def _lay_out(self) -> None:
        self.poll = gr.Timer(POLL_SECONDS, active=False)
        with gr.Column(scale=2, min_width=260):
            self.choice = gr.Radio(list_choices(), value=next(iter(entries())), label="Pairs", show_label=False, elem_id="models-choice")
            with gr.Column(visible=False, elem_id="models-other") as self.other:
                self.name = gr.Textbox(
                    label="Painter", max_lines=1, elem_id="models-name",
                    info="A folder with a model_index.json, or a repository such as owner/name.",
                )  # fmt: skip
                self.mllm = gr.Textbox(
                    label="MLLM", max_lines=1, elem_id="models-mllm",
                    info="Folder or repository of a Qwen2.5-VL or Qwen3-VL; empty where the painter brings one.",
                )  # fmt: skip
        with gr.Column(scale=3, min_width=320):
            self.description = gr.HTML(elem_id="models-card")
            form = "#models-load, #models-transformer"
            self.plan = gr.HTML(elem_id="models-plan", js_on_load=controls.FORM_SCRIPT, form=form)
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
                self.load = controls.build(LoadOptions, without=("transformer",))
            with gr.Accordion("Files of ComfyUI and Forge", open=False, elem_id="models-own"):
                self.load["transformer",] = self._lay_out_files()

    def _lay_out_files(self) -> gr.Dropdown:
        """What other programs have on this machine; returns the choice of a transformer among it."""
        about = next(each.metadata["help"] for each in fields(LoadOptions) if each.name == "transformer")
        with gr.Row():
            self.folder = gr.Textbox(
                label="Models folder", max_lines=1, scale=3, elem_id="models-own-folder",
                info="The models folder of ComfyUI or Forge, named once for all later starts.",
            )  # fmt: skip
            self.look = gr.Button("Look for new ones", size="sm", min_width=100, elem_id="models-look")
        transformer = gr.Dropdown(
            [(OWN, "")], value="", label="Transformer", info=about, allow_custom_value=True, interactive=True, elem_id="models-transformer"
        )
        self.listed = gr.HTML(elem_id="models-own-files")
        return transformer

    def _wire(self, tab: gr.Tab) -> None:
        inputs: set[Block] = {self.choice, self.name, self.mllm, *self.load.values()}
        buttons = [self.pull, self.pause, self.use, self.verify, self.remove, self.sure]
        shown = [self.choice, self.other, self.name, self.description, self.plan, self.status, self.files]
        outputs = [*shown, self.poll, self.timer, *buttons]
        quick: dict[str, Any] = {"inputs": inputs, "outputs": outputs, **QUICK}
        chosen = [tab.select, self.choice.input, self.name.submit, self.mllm.submit, self.name.blur, self.mllm.blur, self.plan.input]
        gr.on(chosen, self.show, trigger_mode="always_last", **quick)  # in order: two requests at once may end in the other order
        self.poll.tick(self.follow, **quick)
        for button, act in ((self.pull, self._pull), (self.pause, self._pause), (self.use, self._use), (self.sure, self._remove)):
            button.click(catch_value_error(act, self.status), **quick)
        self.verify.click(self._verify, **quick)
        self.remove.click(self.ask_to_remove, **quick)
        files: dict[str, Any] = {"outputs": [self.folder, self.load["transformer",], self.listed, self.choice, self.other], **QUICK}
        gr.on([tab.select, self.look.click], self.list_files, **files)
        gr.on([self.folder.submit, self.folder.blur], self.name_folder, inputs=[self.folder], **files)

    def _id(self, values: dict) -> str:
        """The chosen id of the catalogue, or the typed name."""
        return values[self.choice] if values[self.choice] != OTHER else (values[self.name] or "").strip()

    def _choices(self, values: dict) -> tuple[Any, ...]:
        """Everything that decides what is shown: the pair and its load options."""
        return self._id(values), self._mllm(values), *(values[each] for each in self.load.values())

    def list_files(self) -> Updates:
        """Updates with what is in the folder of ComfyUI or Forge now."""
        self.found = find_model_files()
        own = [(each.title(), str(each.path)) for each in self.found if each.kind == "transformer"]
        return {
            self.folder: str(models_folder() or ""),
            self.load["transformer",]: gr.update(choices=[(translate(OWN), ""), *own]),
            self.listed: found_html(self.found) if models_folder() else "",
            self.choice: gr.update(choices=list_choices(self.found)),
        }

    def name_folder(self, name: str) -> Updates:
        """Keep the name of the folder, and list what is in it."""
        if (name or "").strip() == str(models_folder() or ""):
            return {self.listed: gr.skip()}
        try:
            keep_models_folder(name or "")
        except ValueError as error:
            show_warning(error)
            return {self.listed: gr.skip()}
        return self.list_files()

    def translate(self) -> Updates:
        """Updates for the texts that the browser cannot translate by itself."""
        return {self.choice: gr.update(choices=list_choices(self.found))}  # a new Radio would be laid out, where the page is being built

    def leave(self, request: gr.Request) -> None:
        """Forget a browser that has gone."""
        self.latest.pop(session_of(request), None)

    def show(self, values: dict, request: gr.Request) -> Updates:
        """Updates of the whole tab for the choice; none if the browser has chosen something else meanwhile."""
        self.latest[session_of(request)] = self._choices(values)
        return self._drop_if_late(values, request, self._render(values))

    def follow(self, values: dict, request: gr.Request) -> Updates:
        """Updates of what changes by itself."""
        return self._drop_if_late(values, request, self.render_progress(values))

    def _drop_if_late(self, values: dict, request: gr.Request, updates: Updates) -> Updates:
        mine = self._choices(values)
        late = self.latest.get(session_of(request), mine) != mine
        return {self.status: gr.skip()} if late else updates

    def _render(self, values: dict) -> Updates:
        id, other = self._id(values), values[self.choice] not in known_models()
        known = known_models().get(id)
        shown = {
            self.other: gr.Column(visible=other),
            self.name: gr.Textbox(visible=values[self.choice] == OTHER),
            self.choice: gr.Radio(list_choices(self.found)),
            self.description: card_html(known) if known else own_card_html(id),
            self.plan: status_line(self._plan_words(values)),
            self.sure: gr.Button(visible=False),
        }
        return shown | self.render_progress(values)

    def _list_downloads(self, values: dict) -> list[tuple[str, str]]:
        """The parts of the choice that come from the hub: ids with the chosen preset of each."""
        id, preset = self._id(values), values[self.load["preset",]] or ""
        known = id in entries() and preset in {each.id for each in entries()[id].presets}
        found = [(id, preset if known else "")] if is_fetchable(id) else []
        mllm = self._mllm(values)
        return [*found, (mllm, "")] if mllm and is_fetchable(mllm) else found

    def _mllm(self, values: dict) -> str:
        return (values[self.mllm] or "").strip() if values[self.choice] not in known_models() else ""

    def render_progress(self, values: dict) -> Updates:
        """Updates with the progress of the download, and the buttons that can be used now."""
        id, downloads = self._id(values), self._list_downloads(values)
        lacking = [each for each, preset in downloads if not is_here(each, preset)]
        known = {each: now for each, _ in downloads if (now := download.status(each)) is not None}
        under_way = [each for each, now in known.items() if now.state in ("listing", "running")]
        busy, here = bool(under_way), not lacking and bool(downloads or is_here(id))
        now = next((known[each] for each in [*under_way, *lacking, *known] if each in known), None)
        go = "Go on" if lacking and now and now.state in ("paused", "failed") else "Download"
        return {
            self.status: self._status(now),
            self.files: files_html(now),
            self.poll: gr.Timer(active=busy or self.loading.is_busy),
            self.pull: gr.Button(go, visible=bool(lacking) and not busy),
            self.pause: gr.Button(visible=busy),
            self.use: gr.Button(interactive=here and is_here(id) and id not in video_models()),
            self.verify: gr.Button(visible=is_fetchable(id) and is_here(id), interactive=True),
            self.remove: gr.Button(visible=is_fetchable(id) and not busy and (id in known or is_here(id))),
        }

    def _status(self, now: download.Progress | None) -> str:
        if self.loading.is_busy:
            return status_line(self.loading.words, "busy")
        if now is None or now.state == "done":
            return self._open_now()
        share = now.done / now.total if now.total else 0.0
        return status_line(now.line(), {"failed": "bad", "paused": ""}.get(now.state, "busy"), share=share)

    def _open_now(self) -> str:
        """The open pair and its attention kernel; or why no pair, or not the chosen one, is open."""
        loading = self.loading
        plan = getattr(loading.engine, "plan", None)
        if loading.engine is None or loading.words != f"Ready: {loading.engine.about['title']}." or plan is None:
            return status_line(loading.words, "bad" if loading.error else "")
        said = [f"Open now: {loading.engine.about['title']}.", plan.kernel(), plan.unused_gpu]
        return status_line(" ".join(map(translate, filter(None, said))))

    def _read_load_options(self, values: dict) -> LoadOptions:
        own = self.load["transformer",]
        return controls.read(LoadOptions, self.load, values | {own: values[own] or ""})

    def _plan_words(self, values: dict) -> str:
        """How the pair would be opened here, and its costs."""
        from duogen.hub.catalogue import Found, find
        from duogen.hub.load import plan_pair

        id = self._id(values)
        try:
            load = self._read_load_options(values)
            if id in video_models():
                return " ".join([translate("On this machine:"), *map(translate, plan_video(id, load))])
            if id in entries() and entries()[id].sources and not is_installed(entries()[id]):
                found = Found(Path("."), None, entries()[id])
            elif id:
                found = find(id, self._mllm(values) or None)
            else:
                return ""
            return " ".join([translate("On this machine:"), *map(translate, plan_pair(found, load)[0].plan.sentences())])
        except ValueError as error:
            return str(error)

    def _pull(self, values: dict) -> Updates:
        id, load = self._id(values), self._read_load_options(values)
        for each, preset in self._list_downloads(values):
            download.start(each, load.preset if each == id else preset)
        return self.render_progress(values)

    def _pause(self, values: dict) -> Updates:
        for each, _ in self._list_downloads(values):
            download.pause(each)
        return self.render_progress(values)

    def _verify(self, values: dict, request: gr.Request) -> Iterator[Updates]:
        """Read all files again, which takes minutes for a large pair."""
        yield {self.status: status_line("Reading all files ...", "busy"), self.verify: gr.Button(interactive=False)}
        try:
            bad = download.verify(self._id(values))
            said = f"{len(bad)} files were damaged and thrown away; press Download." if bad else "All files are what the hub has."
        except ValueError as error:
            bad, said = [], str(error)
        after = self._render(values) | {self.status: status_line(said, "bad" if bad else "")}
        yield {self.verify: gr.Button(interactive=True)} | self._drop_if_late(values, request, after)

    def ask_to_remove(self, values: dict) -> Updates:
        return {self.sure: gr.Button(visible=True), self.remove: gr.Button(visible=False)}

    def _remove(self, values: dict) -> Updates:
        id = self._id(values)
        if self.loading.pair == id:
            raise ValueError("This pair is open; open another one first.")
        freed = download.remove(id)
        return self._render(values) | {self.status: status_line(f"{freed / 1e9:.2f} GB are free again.")}

    def _use(self, values: dict) -> Updates:
        """Open the chosen pair instead of the open one. Conversations stay."""
        from duogen.hub.catalogue import find

        id, mllm = self._id(values), self._mllm(values)
        load = self._read_load_options(values)
        if id in entries() and not entries()[id].sources:
            id = None
        else:
            find(id, mllm or None)
        self.loading.switch(id, mllm or None, load)
        said = status_line("The pair opens as soon as the earlier answers are done.", "busy")
        return self.render_progress(values) | {self.timer: gr.Timer(active=True), self.poll: gr.Timer(active=True), self.status: said}


def catch_value_error(act: Callable[[dict], Updates], idle: Component) -> Callable[[dict], Updates]:
    """Wrap a handler: a ValueError becomes a warning for the user. `idle` is any output."""

    def wrapper(values: dict) -> Updates:
        try:
            return act(values)
        except REFUSALS as error:
            show_warning(error)
            return {idle: gr.skip()}

    return wrapper


def list_choices(found: Sequence[ModelFile] = ()) -> list[tuple[str, str]]:
    """Titles with the state of each pair (bundled, here or its size), and ids; `found` may hold more pairs, whose ids are their folders."""
    listed = []
    for each in entries().values():
        state = translate("bundled" if not each.sources else "here" if is_installed(each) else f"{each.download_bytes / 1e9:.0f} GB")
        listed.append((f"{each.title} · {state}", each.id))
    for each in video_models().values():
        state = translate("here" if is_installed(each) else f"{each.download_bytes / 1e9:.0f} GB")
        listed.append((f"{each.title} · {translate('animates pictures')} · {state}", each.id))
    listed += [(each.title(), str(each.path)) for each in found if each.kind == "pair"]
    return [*listed, (translate("Another folder or repository ..."), OTHER)]


def known_models() -> dict[str, Entry]:
    """The pairs and the video models of the catalogue, by id."""
    return entries() | video_models()


def plan_video(id: str, load: LoadOptions) -> list[str]:
    """What an animation of a video model of the catalogue would cost on this machine, in sentences."""
    from duogen.hub.memory_plan import Machine
    from duogen.hub.motion import plan_motion

    here = is_installed(video_models()[id])
    return plan_motion(id, load, machine=None if here else Machine.here(load.device)).sentences()


def is_fetchable(id: str) -> bool:
    if id in known_models():
        return bool(known_models()[id].sources)
    return REPOSITORY.fullmatch(id.partition("@")[0]) is not None and not Path(id).exists()


def is_here(id: str, preset: str = "") -> bool:
    """Whether a pair of the catalogue with this preset, or a typed folder or repository, is complete on this machine."""
    if known := known_models().get(id):
        return is_installed(known) and all(find_lora(each) for each in known.presets if each.id == preset)
    if not is_fetchable(id):
        return bool(id) and Path(id).is_dir()
    folder = snapshot(find_download(id).sources[0])
    return folder is not None and not list_missing(folder)


def card_html(pair: Entry) -> str:
    """The model card of a pair."""
    from huggingface_hub import constants

    licence = pair.licence
    link = f'<a href="{html.escape(licence.url)}" target="_blank" rel="noreferrer">{translate_html(licence.name)}</a>'
    asked = [licence.conditions, "You must agree to its conditions on the hub and be logged in." if licence.gated else ""]
    conditions = "".join(f"<br>{translate_html(each)}" for each in asked if each)
    verb = "Animates" if pair.id in video_models() else "Paints"
    rows = [(verb, translate_html(pair.paints)), ("Weights", translate_html(weights_words(pair))), ("Licence", link + conditions)]
    if licence.guardrail:
        rows.append(("Guardrail", translate_html(guardrail_words(licence.guardrail))))
    for source in pair.sources:
        page = f"https://huggingface.co/{source.repo}"
        rows.append((source.role.capitalize(), f'<a href="{page}" target="_blank" rel="noreferrer">{source.repo}</a>, {source.revision}'))
    if pair.sources and is_installed(pair):
        rows.append(("On the disk", translate_html(f"{disk_bytes(pair) / 1e9:.2f} GB")))
    elif pair.sources:
        cache = Path(constants.HF_HUB_CACHE)
        there = next(folder for folder in (cache, *cache.parents) if folder.exists())
        left = shutil.disk_usage(there).free
        room = f"{pair.download_bytes / 1e9:.1f} GB; {left / 1e9:.0f} GB are free on the disk of {there}"
        rows.append(("To fetch", translate_html(room)))
    rows += [("Preset", translate_html(f"{preset.id}: {preset.title}, {preset.bytes / 1e9:.2f} GB more")) for preset in pair.presets]
    facts = "".join(f"<dt>{translate_html(name)}</dt><dd>{value}</dd>" for name, value in rows)
    return f"<h2>{translate_html(pair.title)}</h2><p>{translate_html(pair.summary)}</p><dl class='facts'>{facts}</dl>"


def weights_words(pair: Entry) -> str:
    """The memory of a pair's weights, by precision."""
    from duogen.hub.memory_plan import weigh_precisions

    return ", ".join(f"{size:.1f} GB in {precision}" for precision, size in weigh_precisions(pair.parts).items())


def disk_bytes(pair: Entry) -> int:
    """The bytes of an installed pair on the disk."""
    return sum(file.stat().st_size for folder in find_folders(pair).values() for file in folder.rglob("*") if file.is_file())


def guardrail_words(package: str) -> str:
    from duogen.models.guardrail import is_installed as there

    if there():
        return f"{package} is installed and looks at the words of every picture, and at the picture."
    return f"{package} is not installed: pip install {package}. The licence asks for it."


def own_card_html(id: str) -> str:
    """The card of a typed folder or repository."""
    if not id:
        words = "Any diffusers pipeline that takes words and pictures can paint, with an MLLM that sees."
        return f"<h2>{translate_html('Another pair')}</h2><p>{translate_html(words)}</p>"
    try:
        where = "A folder." if Path(id).is_dir() else f"A repository, revision {find_download(id).sources[0].revision}."
    except ValueError as error:
        return f"<h2>{translate_html('Another pair')}</h2><p>{translate_html(str(error))}</p>"
    safe = translate_html("Only safetensors are opened; code that comes with it is never run.")
    return f"<h2>{translate_html(id)}</h2><p>{translate_html(where)} {safe}</p>"


def found_html(found: Sequence[ModelFile]) -> str:
    """What was found in the folder of ComfyUI or Forge, and how it is used."""
    if not found:
        return f"<p>{translate_html('Nothing that can be opened is in this folder.')}</p>"
    names = {"transformer": "Transformer", "LoRA": "LoRA", "pair": "Pair", "upscaler": "Upscaler"}
    kinds = {kind: translate_html(name) for kind, name in names.items()}
    rows = [f"<tr><td>{html.escape(each.title())} · {kinds[each.kind]}</td></tr>" for each in found[:FOUND_SHOWN]]
    how = translate_html(
        "Transformers are chosen above, pairs in the list of pairs, LoRAs in the head under the pair's name, upscalers in the Studio."
    )
    return f"<p>{how}</p><div class='files'><table>{''.join(rows)}</table></div>"


def files_html(now: download.Progress | None) -> str:
    """Every file with its progress: first running downloads, then the rest, the largest first."""
    if now is None or not now.files or now.state == "done":
        return ""
    waiting = sorted(now.files.items(), key=lambda each: (each[1][1] >= each[1][0], not each[1][1], -each[1][0]))[:FILES_SHOWN]
    bar, label = "<progress max='{}' value='{}' aria-label='{}'></progress>", translate_html("Progress")
    rows = [
        f"<tr><td>{translate_html(name)}</td><td>{bar.format(max(size, 1), have, label)}</td><td>{size / 1e6:.1f} MB</td></tr>"
        for name, (size, have) in waiting
    ]
    return f"<div class='files'><table>{''.join(rows)}</table></div>"
