"""The page: its layout and its event handlers."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from duogen.library.conversations import ConversationStore
from duogen.library.export import FOLLOW_SCRIPT
from duogen.library.picture_file import PictureInfo
from duogen.library.pictures import Gallery
from duogen.library.references import ReferenceStore
from duogen.options import Options
from ui import STATIC
from ui.chat.actions import ChatActions, make_packer
from ui.chat.answers import Jobs
from ui.chat.history import PAINTING
from ui.chat.motion import MotionFunctions
from ui.chat.panel import Chat, ChatParts, View
from ui.chat.references import ReferenceFunctions
from ui.chat.welcome import WAITING, WELCOME_PICTURES, make_examples, welcome_html
from ui.parts import controls
from ui.parts.disk_space import DiskSpace
from ui.parts.fault_answers import ReportingBlocks
from ui.parts.i18n import TABLES, mark_translatable
from ui.parts.loading import Loading
from ui.parts.pair_switch import PairSwitch
from ui.parts.pictures import UPLOAD_TYPES, PictureFolder
from ui.parts.presets import PresetPanel
from ui.parts.shared import QUICK, Shared, Updates, idle_line, status_line, tell_scripts
from ui.tabs.arena import Arena
from ui.tabs.data import Data
from ui.tabs.finetune import Finetune
from ui.tabs.library import Destinations, Library
from ui.tabs.models import Models
from ui.tabs.studio import Studio

KEPT_PICTURES, KEPT_PREVIEWS = 2000, 100
SHOW = "() => ({ __type__: 'update', visible: true })"
TOGGLE_DRAWER = "() => { document.querySelector('#options .toggle-button').click() }"
TOGGLE_SIDE = "() => { document.querySelector('#side .toggle-button').click() }"
TOGGLE_DARK = "() => { localStorage.look = document.body.classList.toggle('dark') ? 'dark' : 'light' }"
SIGN_OUT = "() => { location = new URL('logout', document.baseURI) }"
REMEMBERED = """() => {
    if (localStorage.look) document.body.classList.toggle('dark', localStorage.look == 'dark')
    document.body.classList.toggle('knows', localStorage.known == 'yes')
}"""
SHOW_ADDRESS = """id => {
    history.replaceState(null, '', (id ? '?c=' + id : location.pathname) + location.hash)
    document.dispatchEvent(new Event('address'))
}"""
EMPTY = "() => [{ text: '', files: [] }, '']"
SCRIPT_NAMES = (
    "event_stream", "drafts", "flipbook", "motion", "picture_roles", "actions", "references", "late_words", "waiting_list", "head",
    "connection",
)  # fmt: skip
OWN_SCRIPTS = [STATIC / f"{name}.js" for name in SCRIPT_NAMES]
ASK_NOW = "You can ask now."
LOST = "Connection to the server was lost. Attempting reconnection..."  # as Gradio says it
WORDS = f"const LOST = {json.dumps({'en': LOST} | {language: table[LOST] for language, table in TABLES.items()})};\n"
SCRIPTS = WORDS + "\n".join(file.read_text(encoding="utf-8") for file in (FOLLOW_SCRIPT, *OWN_SCRIPTS))


class Page:
    """One page for all browsers: lays out the components and connects their events."""

    def __init__(self, loading: Loading, store: ConversationStore, folder: Path, local: bool = True) -> None:
        """
        Args:
            folder: holds what the page shows and gives away, and nothing else, because browsers can fetch every file in it. The folders
                of the gallery are beside it.
            local: whether users of the page may name folders of this machine.
        """
        self.loading, self.store, self.local = loading, store, local
        self.pictures = PictureFolder(folder / "pictures", KEPT_PICTURES)
        self.previews = PictureFolder(folder / "previews", KEPT_PREVIEWS)
        self.exports = folder / "exports"
        self.gallery = Gallery(folder.parent)
        self.disk_space = DiskSpace(self.gallery, store, (self.pictures, self.previews), folder.parent / "uploads")
        served = [self.pictures.folder, self.previews.folder, self.gallery.pictures, self.gallery.thumbnails.folder, self.exports]
        gr.set_static_paths([*served, PAINTING, WELCOME_PICTURES])
        self.references = ReferenceStore(folder.parent / "references")
        self.references.remove_leftovers()
        self.jobs = Jobs(loading, store, self.pictures, self.previews, self.gallery, self.references)
        with ReportingBlocks(title="DuoGen", fill_height=True, analytics_enabled=False, delete_cache=(3600, 86400)) as self.blocks:
            self._lay_out()
            self._wire()
        mark_translatable(self.blocks)

    def _lay_out(self) -> None:
        self.view = gr.State(View())
        self.timer, self.opened = gr.Timer(0.5), gr.State("")  # `opened` changes whenever this browser learns of another open pair
        with gr.Sidebar(label="Conversations", position="left", open=False, width=300, elem_id="side"):
            self.search = gr.Textbox(
                placeholder="Search", label="Search the conversations", show_label=False, container=False, elem_id="search", max_lines=1
            )
            self.list = gr.HTML("", elem_id="chats", js_on_load=None)
            self.bring = gr.UploadButton("Import a zip", file_types=[".zip"], size="sm", elem_id="bring")
        with gr.Row(elem_id="head"):
            self.side = gr.Button("☰", size="sm", min_width=36, elem_id="open-side")
            gr.HTML('<h1><span class="mark" aria-hidden="true"></span>DuoGen</h1>', elem_id="brand")
            self.pair_switch = PairSwitch(self.loading, self.blocks, self.timer)
            self.new = gr.Button("New chat", size="sm", min_width=60, elem_id="new")
            self.drawer = gr.Button("Options", size="sm", min_width=60, elem_id="drawer")
            self.theme_button = gr.Button("◐", size="sm", min_width=36, elem_id="look")
        with gr.Tabs(elem_id="tabs") as self.tabs:
            with gr.Tab("Chat", id="chat", elem_id="chat"):
                self._lay_out_chat()
            names = ("Studio", "Library", "Models", "Data", "Fine-tune", "Arena")
            tabs = [gr.Tab(name, id=name.lower(), elem_id=f"tab-{name.lower()}") for name in names]
        self.options = gr.Sidebar(label="Options", position="right", open=False, width=330, elem_id="options")
        with self.options, gr.Column(visible=False, elem_id="settings") as self.settings:
            self.presets = PresetPanel(self.loading)
            self.controls = controls.build(Options, without=(controls.ASPECT[-1],))
            gr.Button("Sign out", size="sm", visible=not self.local, elem_id="sign-out").click(None, None, None, js=SIGN_OUT)
        self.controls[controls.ASPECT] = self.shapes
        self.place = gr.Textbox(visible="hidden", elem_id="place")
        self.roles = gr.Textbox(visible="hidden", elem_id="roles")
        self._lay_out_tabs(*tabs)
        packer = make_packer(self.store, self.exports, self.pictures)
        asked = ReferenceFunctions(self.references, self.gallery, self.store).functions()
        moving = MotionFunctions(self.store, self.loading).functions()
        self.commands = gr.HTML("", visible="hidden", js_on_load=SCRIPTS, server_functions=[packer, *asked, *moving])

    def _lay_out_tabs(self, studio: gr.Tab, library: gr.Tab, models: gr.Tab, data: gr.Tab, finetune: gr.Tab, arena: gr.Tab) -> None:
        self.shared = Shared(self.loading, self.gallery, self.disk_space, self.previews, self.controls)
        self.studio = Studio(studio, self.shared)
        around = (self.view, self.search, self.bring, self.list, self.chatbot, self.status)
        parts = ChatParts(*around, self.box, self.waiting, self.place, self.roles)
        self.chat = Chat(parts, self.shared, self.store, self.jobs)
        self.actions = ChatActions(self.chat, self._open_in_studio)
        drawn = [self.tabs, *self.chat.outputs, *self.controls.values(), *self.studio.outputs]
        ways = Destinations(drawn, self._open_in_studio, self._open_conversation, self._apply_settings)
        self.library = Library(library, self.shared, ways)
        self.models = Models(models, self.loading, self.timer)
        self.finetune = Finetune(finetune, self.shared, self.pictures, self.local)
        self.data = Data(data, self.shared, self.local)
        sent = self.data.send.click(self._send_to_finetune, [self.data.chosen], [self.tabs, *self.finetune.example_outputs], **QUICK)
        sent.success(**self.finetune.cost)
        self.arena = Arena(arena, self.shared, self.pictures)

    def _lay_out_chat(self) -> None:
        """The box is the first for the keyboard, though it is shown last."""
        self.box = gr.MultimodalTextbox(
            elem_id="box",
            show_label=False,
            container=False,
            placeholder="Ask, or bring a picture",
            file_types=UPLOAD_TYPES,
            file_count="multiple",
            max_plain_text_length=100_000,
            autofocus=True,
            max_lines=8,
        )
        self.waiting = gr.HTML("", elem_id="waiting-list", js_on_load=None)
        with gr.Row(elem_id="line"):
            self.shapes = controls.lay_out_shapes()
            self.size = gr.HTML("", elem_id="size")
            self.status = gr.HTML(status_line(f"{self.loading.words} {ASK_NOW}", "busy"), elem_id="status", js_on_load=None)
        self.chatbot = gr.Chatbot(
            elem_id="talk",
            show_label=False,
            container=False,
            scale=1,
            height=None,
            placeholder=welcome_html(WAITING),
            layout="bubble",
            buttons=[],
            latex_delimiters=[],
            allow_tags=False,
            feedback_options=None,
            group_consecutive_messages=False,
        )

    def _wire(self) -> None:
        inputs: set[Block] = {self.box, self.roles, self.view, self.search, *self.controls.values()}
        chat = self.chat
        outputs = chat.outputs
        quick: dict[str, Any] = {**QUICK, "trigger_mode": "multiple"}
        around = [self.box, self.list, self.status]
        drawn = [self.chatbot, self.status, self.waiting]
        shown: dict[str, Any] = {"fn": chat.follow, "inputs": {self.view, self.search}, "outputs": drawn, **quick}
        settled: dict[str, Any] = {"fn": chat.finish, "inputs": {self.view, self.search}, "outputs": around, **quick}
        self.box.submit(None, None, None, js=tell_scripts("sent"))
        self.box.submit(chat.submit, inputs, outputs, **quick).success(**shown).success(**settled)
        self.chatbot.example_select(chat.submit_example, inputs, outputs, **quick).success(**shown).success(**settled)
        acted = [*outputs, self.search, self.tabs, *self.studio.outputs]
        self.commands.click(self.actions.run, inputs, acted, **quick).success(**shown).success(**settled)
        self.commands.submit(lambda: None, None, None, **quick)  # the empty event of event_stream.js
        self.library.conversation_opened.success(**shown).success(**settled)
        self.new.click(None, None, [self.box, self.roles], js=EMPTY)  # at once: what is written after the click stays
        self.new.click(chat.start_over, {self.search}, outputs, queue=False, **quick).success(**shown)
        self.bring.upload(chat.import_zip, {self.bring, self.search}, outputs, **quick).success(**shown).success(**settled)
        self.search.change(chat.search_list, {self.view, self.search}, [self.list], **quick)
        self.box.stop(chat.stop, self.view, None, queue=False, **quick)
        after_loading = [self.status, self.chatbot, self.timer, self.opened, *self.controls.values()]
        self.pair_switch.wire(self.timer.tick(self.update_loading, None, after_loading, **quick))
        self.presets.wire(self.shared, [self.options.expand, self.opened.change])
        sized = [self.controls["image", "side"], self.shapes]
        for event in (self.opened.change, *(each.change for each in sized)):
            event(self.say_size, sized, [self.size], **QUICK)
        self.blocks.load(chat.open_page, {self.search}, outputs, **quick).success(**shown).success(**settled)
        self.blocks.load(None, None, None, js=REMEMBERED)
        self.blocks.load(self.translate, None, list(self.translate()), queue=False, **quick)
        self.place.change(None, self.place, None, js=SHOW_ADDRESS)
        self.roles.change(None, None, None, js=tell_scripts("roles"))
        self.theme_button.click(None, None, None, js=TOGGLE_DARK)
        self.drawer.click(None, None, None, js=TOGGLE_DRAWER)
        self.options.expand(None, None, self.settings, js=SHOW)  # its controls take a tenth of the processor time of an opening page
        self.side.click(None, None, None, js=TOGGLE_SIDE)
        self.blocks.unload(self.leave)

    def update_loading(self) -> Updates:
        """Show the loading status. After loading, show the pair's welcome, its examples and its best settings."""
        loading = self.loading
        if loading.is_busy:
            return {self.status: status_line(f"{loading.words} {ASK_NOW}", "busy")}
        over = {self.timer: gr.Timer(active=False)}
        if loading.engine is None:
            return over | {self.status: status_line(loading.words, "bad")}
        about = loading.engine.about
        best = controls.pair_updates(self.controls, about)
        welcome = gr.Chatbot(placeholder=welcome_html(about), examples=make_examples(about))
        return over | best | {self.status: idle_line(loading.words), self.chatbot: welcome, self.opened: str(id(loading.engine))}

    def leave(self, request: gr.Request) -> None:
        """Forget a browser that has gone. Answers under way go on."""
        self.chat.leave(request)
        self.models.leave(request)

    def translate(self) -> Updates:
        """Updates for the texts that the browser cannot translate by itself. None holds a value: that could undo what a user did first."""
        welcomed = gr.skip() if self.loading.finished.is_set() else gr.update(placeholder=welcome_html(WAITING))
        parts = (self.studio, self.library, self.models, self.data, self.finetune)
        return {self.chatbot: welcomed} | functools.reduce(dict.__or__, [each.translate() for each in parts])

    def say_size(self, side: float, aspect: str) -> str:
        return status_line(words) if (words := controls.say_size(self.loading.about, side, aspect)) else ""

    def _open_in_studio(self, id: str) -> Updates:
        return self.studio.show(id) | {self.tabs: gr.Tabs(selected="studio")}

    def _send_to_finetune(self, name: str) -> Iterator[Updates]:
        """Open a set of the Data tab in the Fine-tune tab: first the tab, then the contents of the set."""
        folder = str(self.data.folder(name))
        yield {self.tabs: gr.Tabs(selected="fine-tune"), self.finetune.folder: folder}
        yield from self.finetune.read_examples(folder)

    def _open_conversation(self, id: str, turn: str, request: gr.Request) -> Updates:
        return self.chat.open_at(id, turn, request) | {self.tabs: gr.Tabs(selected="chat")}

    def _apply_settings(self, about: PictureInfo) -> Updates:
        box = gr.MultimodalTextbox(value={"text": about.words, "files": []})
        return self.shared.restore_options(about) | {self.box: box, self.tabs: gr.Tabs(selected="chat")}
