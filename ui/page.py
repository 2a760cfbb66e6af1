"""The page: its parts, and what happens when they are used."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from duogen.library.conversations import Store
from duogen.library.picture_file import About
from duogen.library.pictures import Gallery
from duogen.options import PRESETS, Options
from ui import STATIC
from ui.chat.actions import Acts, packing
from ui.chat.answers import Jobs
from ui.chat.history import PAINTING, button
from ui.chat.panel import Chat, Parts, View
from ui.parts import controls
from ui.parts.adapters import Worn
from ui.parts.disk_space import Space
from ui.parts.i18n import mark
from ui.parts.loading import Loading
from ui.parts.pictures import PictureFolder
from ui.parts.shared import QUICK, Shared, Updates, sentence, status_line
from ui.tabs.arena import Arena
from ui.tabs.data import Data
from ui.tabs.finetune import Finetune
from ui.tabs.library import Library, Ways
from ui.tabs.models import Models
from ui.tabs.studio import Studio

KEPT_PICTURES, KEPT_PREVIEWS = 2000, 100
WAITING = {"title": "DuoGen", "summary": "Ask how to draw something, and it explains in words and pictures."}
TOGGLE_DRAWER = "() => { document.querySelector('#options .toggle-button').click() }"
TOGGLE_SIDE = "() => { document.querySelector('#side .toggle-button').click() }"
TOGGLE_DARK = "() => { localStorage.look = document.body.classList.toggle('dark') ? 'dark' : 'light' }"
REMEMBERED = """() => {
    if (localStorage.look) document.body.classList.toggle('dark', localStorage.look == 'dark')
    document.body.classList.toggle('knows', localStorage.known == 'yes')
}"""
SHOW_ADDRESS = "id => { history.replaceState(null, '', id ? '?c=' + id : location.pathname) }"
ACTS = STATIC / "actions.js"


class Page:
    """One page for all browsers: lays its parts out and says what leads to what."""

    def __init__(self, loading: Loading, store: Store, folder: Path, local: bool = True) -> None:
        """Pictures are kept below `folder`, which must hold nothing else: what lies there can be fetched by a browser.
        `local` is whether whoever uses the page may name folders of this machine.

        Beside it are the folders of the gallery.
        """
        self.loading, self.store, self.local = loading, store, local
        self.pictures = PictureFolder(folder / "pictures", KEPT_PICTURES)
        self.previews = PictureFolder(folder / "previews", KEPT_PREVIEWS)
        self.gallery = Gallery(folder.parent)
        self.space = Space(self.gallery, store, (self.pictures, self.previews), folder.parent / "uploads")
        served = [self.pictures.folder, self.previews.folder, self.gallery.pictures, self.gallery.thumbnails.folder, PAINTING]
        gr.set_static_paths(served)
        self.jobs = Jobs(loading, store, self.pictures, self.previews, self.gallery)
        with gr.Blocks(title="DuoGen", fill_height=True, analytics_enabled=False, delete_cache=(3600, 86400)) as self.blocks:
            self._lay_out()
            self._wire()
        mark(self.blocks)

    def _lay_out(self) -> None:
        self.view = gr.State(View())
        self.timer = gr.Timer(0.5)
        with gr.Sidebar(label="Conversations", position="left", open=False, width=270, elem_id="side"):
            self.search = gr.Textbox(
                placeholder="Search", label="Search the conversations", show_label=False, container=False, elem_id="search", max_lines=1
            )
            self.list = gr.HTML("", elem_id="chats", js_on_load=None)
            self.bring = gr.UploadButton("Import a zip", file_types=[".zip"], size="sm", elem_id="bring")
        with gr.Row(elem_id="head"):
            self.side = gr.Button("☰", size="sm", min_width=36, elem_id="open-side")
            gr.HTML('<h1><span class="mark" aria-hidden="true"></span>DuoGen</h1>', elem_id="brand")
            self.new = gr.Button("New chat", size="sm", min_width=60, elem_id="new")
            self.drawer = gr.Button("Options", size="sm", min_width=60, elem_id="drawer")
            self.look = gr.Button("◐", size="sm", min_width=36, elem_id="look")
        with gr.Tabs(elem_id="tabs") as self.tabs:
            with gr.Tab("Chat", id="chat", elem_id="chat"):
                self._lay_out_talk()
            names = ("Studio", "Library", "Models", "Data", "Fine-tune", "Arena")
            tabs = [gr.Tab(name, id=name.lower(), elem_id=f"tab-{name.lower()}") for name in names]
        with gr.Sidebar(label="Options", position="right", open=False, width=330, elem_id="options"):
            with gr.Row(elem_id="presets"):
                self.presets = {name: gr.Button(name.capitalize(), size="sm", min_width=60) for name in PRESETS}
            self.controls = controls.build(Options)
            self.worn = Worn(self.loading, self.blocks)
        self.place = gr.Textbox(visible="hidden", elem_id="place")
        self._lay_out_tabs(*tabs)
        self.wishes = gr.HTML("", visible="hidden", js_on_load=ACTS.read_text(encoding="utf-8"), server_functions=[packing(self.store)])

    def _lay_out_tabs(self, studio: gr.Tab, library: gr.Tab, models: gr.Tab, data: gr.Tab, finetune: gr.Tab, arena: gr.Tab) -> None:
        self.shared = Shared(self.loading, self.gallery, self.space, self.previews, self.controls)
        self.studio = Studio(studio, self.shared)
        parts = Parts(self.view, self.search, self.bring, self.list, self.talk, self.status, self.again, self.box, self.place)
        self.chat = Chat(parts, self.shared, self.store, self.jobs)
        self.acts = Acts(self.chat, self._to_studio)
        drawn = [self.tabs, *self.chat.outputs, *self.controls.values(), *self.studio.outputs]
        ways = Ways(drawn, self._to_studio, self._to_conversation, self._to_settings)
        self.library = Library(library, self.shared, ways)
        self.models = Models(models, self.loading, self.timer)
        self.finetune = Finetune(finetune, self.shared, self.pictures, self.local)
        self.data = Data(data, self.shared, self.local)
        sent = self.data.send.click(self._to_finetune, [self.data.chosen], [self.tabs, *self.finetune.looked], **QUICK)
        sent.success(**self.finetune.cost)
        self.arena = Arena(arena, self.shared, self.pictures)

    def _lay_out_talk(self) -> None:
        self.talk = gr.Chatbot(
            elem_id="talk",
            show_label=False,
            container=False,
            scale=1,
            height=None,
            placeholder=welcome(WAITING),
            layout="bubble",
            buttons=[],
            latex_delimiters=[],
            allow_tags=False,
            feedback_options=None,
            group_consecutive_messages=False,
        )
        with gr.Row(elem_id="line"):
            self.status = gr.HTML(status_line(self.loading.words, "busy"), elem_id="status", js_on_load=None)
            self.again = gr.Button("↻ Retry", size="sm", min_width=60, visible=False, elem_id="retry")
        self.box = gr.MultimodalTextbox(
            elem_id="box",
            show_label=False,
            container=False,
            placeholder="Ask, or bring a picture",
            file_types=["image"],
            file_count="multiple",
            max_plain_text_length=100_000,
            autofocus=True,
            max_lines=8,
        )

    def _wire(self) -> None:
        inputs = {self.box, self.view, self.search, *self.controls.values()}
        chat = self.chat
        outputs = chat.outputs
        quick = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None, "trigger_mode": "multiple"}
        around = [self.box, self.again, self.list, self.status]
        shown = {"fn": chat.follow, "inputs": {self.view, self.search}, "outputs": [self.talk, self.status], **quick}
        settled = {"fn": chat.settle, "inputs": {self.view, self.search}, "outputs": around, **quick}
        self.box.submit(chat.say, inputs, outputs, **quick).success(**shown).success(**settled)
        self.talk.example_select(chat.say_example, inputs, outputs, **quick).success(**shown).success(**settled)
        self.again.click(chat.say_again, inputs, outputs, **quick).success(**shown).success(**settled)
        self.wishes.click(self.acts.act, inputs, [*outputs, self.tabs, *self.studio.outputs], **quick).success(**shown).success(**settled)
        self.library.opened.success(**shown).success(**settled)
        self.new.click(chat.start_over, {self.search}, outputs, queue=False, **quick)
        self.bring.upload(chat.bring_in, {self.bring, self.search}, outputs, **quick)
        self.search.change(chat.look_for, {self.view, self.search}, [self.list], **quick)
        self.box.stop(chat.stop, self.view, None, queue=False, **quick)
        self.timer.tick(self.look_up, None, [self.status, self.talk, self.timer, *self.controls.values()], **quick)
        for name, preset in self.presets.items():
            preset.click(functools.partial(self.set_preset, name), None, list(self.controls.values()), queue=False, **quick)
        self.blocks.load(chat.arrive, {self.search}, outputs, **quick).success(**shown).success(**settled)
        self.blocks.load(None, None, None, js=REMEMBERED)
        self.blocks.load(self.greet, None, list(self.greet()), queue=False, **quick)
        self.place.change(None, self.place, None, js=SHOW_ADDRESS)
        self.look.click(None, None, None, js=TOGGLE_DARK)
        self.drawer.click(None, None, None, js=TOGGLE_DRAWER)
        self.side.click(None, None, None, js=TOGGLE_SIDE)
        self.blocks.unload(self.leave)

    def look_up(self) -> Updates:
        """How far the loading is; once it is over, the welcome of the pair, its examples, and what it paints best with."""
        loading = self.loading
        if loading.busy:
            return {self.status: status_line(loading.words, "busy")}
        over = {self.timer: gr.Timer(active=False)}
        if loading.engine is None:
            return over | {self.status: status_line(loading.words, "bad")}
        about = loading.engine.about
        examples = [{"text": words} for words in about["examples"]]
        best = controls.of_pair(self.controls, about)
        return over | best | {self.status: status_line(loading.words), self.talk: gr.Chatbot(placeholder=welcome(about), examples=examples)}

    def leave(self, request: gr.Request) -> None:
        """A browser is gone; what is being made for it goes on."""
        self.chat.leave(request)
        self.models.leave(request)

    def greet(self) -> Updates:
        """What a browser cannot put into its language by itself."""
        welcomed = gr.skip() if self.loading.finished.is_set() else gr.update(placeholder=welcome(WAITING))
        parts = (self.studio, self.library, self.models, self.data, self.finetune, self.arena, self.worn)
        return {self.talk: welcomed} | functools.reduce(dict.__or__, [each.spoken() for each in parts])

    def set_preset(self, name: str) -> Updates:
        return controls.preset(name, self.controls, self.loading.engine.about if self.loading.engine else {})

    def _to_studio(self, id: str) -> Updates:
        return self.studio.showing(id) | {self.tabs: gr.Tabs(selected="studio")}

    def _to_finetune(self, name: str) -> Iterator[Updates]:
        """A set of the Data tab as what is learnt from: the tab shows at once, and what is in the set when that is read."""
        folder = str(self.data.folder(name))
        yield {self.tabs: gr.Tabs(selected="fine-tune"), self.finetune.folder: folder}
        yield from self.finetune.look(folder)

    def _to_conversation(self, id: str, turn: str, request: gr.Request) -> Updates:
        return self.chat.at(id, turn, request) | {self.tabs: gr.Tabs(selected="chat")}

    def _to_settings(self, about: About) -> Updates:
        box = gr.MultimodalTextbox(value={"text": about.words, "files": []})
        return self.shared.restored(about) | {self.box: box, self.tabs: gr.Tabs(selected="chat")}


def welcome(about: dict[str, Any]) -> str:
    """What the pair is, and what it cannot do, until a person has pressed the button below that."""
    hint = sentence(about.get("limits", ""))
    limits = f'<p class="limits">{hint} {button("known", "Do not show this again", words="Got it")}</p>' if hint else ""
    return f"<h2>{sentence(about['title'])}</h2><p>{sentence(about['summary'])}</p>{limits}"
