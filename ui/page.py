"""The page: its parts, and what happens when they are used."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from duogen.conversation import Conversation, Image, Text, Turn
from duogen.export import as_html, as_pdf, as_zip
from duogen.gallery import Gallery
from duogen.options import PRESETS, Options
from duogen.picture_file import About
from duogen.store import Store, title_of
from ui import controls
from ui.arena import Arena
from ui.data import Data
from ui.finetune import Finetune, keep_example
from ui.history import PAINTING, Message, button, messages
from ui.jobs import Job, Jobs, Task, Waiting, asking, repainting
from ui.library import Library, Ways
from ui.loading import Loading
from ui.models import Models
from ui.pictures import PictureFolder
from ui.shared import EMPTY_BOX, QUICK, UPLOADS, Refused, Shared, Updates, check_uploads, sentence, status_line
from ui.sidebar import chat_list
from ui.space import Space
from ui.speech import mark, say
from ui.studio import Studio
from ui.worn import Worn

VARIANTS = 4
KEPT_PICTURES, KEPT_PREVIEWS = 2000, 100
REDRAW_SECONDS = 0.08
WAITING = {"title": "DuoGen", "summary": "Ask how to draw something, and it explains in words and pictures."}
TOGGLE_DRAWER = "() => { document.querySelector('#options .toggle-button').click() }"
TOGGLE_SIDE = "() => { document.querySelector('#side .toggle-button').click() }"
TOGGLE_DARK = "() => { localStorage.look = document.body.classList.toggle('dark') ? 'dark' : 'light' }"
REMEMBERED = """() => {
    if (localStorage.look) document.body.classList.toggle('dark', localStorage.look == 'dark')
    document.body.classList.toggle('knows', localStorage.known == 'yes')
}"""
SHOW_ADDRESS = "id => { history.replaceState(null, '', id ? '?c=' + id : location.pathname) }"
ACTS = Path(__file__).with_name("acts.js")


@dataclass(frozen=True)
class Edit:
    """What the box changes: a question, or the words before the picture at `at` of an answer."""

    turn: str
    at: int | None = None


@dataclass(frozen=True)
class View:
    """What one browser window looks at.

    Attributes:
        id: the conversation, `None` before the first question of a new one.
        editing: what the next words from the box replace.
        renaming: the conversation whose name is being typed.
        undo: what Undo brings back: the id of a deleted conversation, or a conversation as it was.
    """

    id: str | None = None
    editing: Edit | None = None
    renaming: str | None = None
    undo: str | Conversation | None = None


def new_seed() -> int:
    return secrets.randbelow(1_000_000)


def kindly(handler: Callable) -> Callable:
    """A refusal becomes a word to the user. Gradio's own errors would be laid over the whole chat."""

    @functools.wraps(handler)
    def handled(page: Page, *given: Any) -> Updates:
        try:
            return handler(page, *given)
        except (Refused, ValueError) as refused:
            gr.Warning(sentence(str(refused)), title=say("One moment"))
            return {page.status: gr.skip()}

    return handled


class Page:
    """One page for all browsers. What one of them looks at is its `View`; conversations and answers under way belong to none.

    `watching` holds, by browser session, a token of the one `follow` that may still draw there; `expected` the job it shall draw;
    `over` the sessions in which it has drawn one to its end.
    """

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
        self.watching: dict[str, object] = {}
        self.expected: dict[str, Job] = {}
        self.over: set[str] = set()
        self.acts: dict[str, Callable[..., Updates]] = {
            "open": self._open, "rename": self._rename, "name": self._name, "pin": self._pin, "unpin": self._unpin, "delete": self._delete,
            "branch": self._branch, "edit": self._edit, "retry": self._retry, "drop": self._drop, "again": self._again, "vary": self._vary,
            "on": self._on, "words": self._words, "use": self._use, "studio": self._studio, "undo": self._undo, "cancel": self._cancel,
            "recall": self._recall, "say": self._refuse, "teach": self._teach,
        }  # fmt: skip
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
        self.wishes = gr.HTML("", visible="hidden", js_on_load=ACTS.read_text(encoding="utf-8"), server_functions=[self._packed()])

    def _lay_out_tabs(self, studio: gr.Tab, library: gr.Tab, models: gr.Tab, data: gr.Tab, finetune: gr.Tab, arena: gr.Tab) -> None:
        self.shared = Shared(self.loading, self.gallery, self.space, self.previews, self.controls)
        self.studio = Studio(studio, self.shared)
        chat = [self.box, self.view, self.talk, self.status, self.again, self.list, self.place]
        ways = Ways(
            [self.tabs, *chat, *self.controls.values(), *self.studio.outputs], self._to_studio, self._to_conversation, self._to_settings
        )
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
        outputs = [self.box, self.view, self.talk, self.status, self.again, self.list, self.place]
        quick = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None, "trigger_mode": "multiple"}
        around = [self.box, self.again, self.list, self.status]
        shown = {"fn": self.follow, "inputs": {self.view, self.search}, "outputs": [self.talk, self.status], **quick}
        settled = {"fn": self.settle, "inputs": {self.view, self.search}, "outputs": around, **quick}
        self.box.submit(self.say, inputs, outputs, **quick).success(**shown).success(**settled)
        self.talk.example_select(self.say_example, inputs, outputs, **quick).success(**shown).success(**settled)
        self.again.click(self.say_again, inputs, outputs, **quick).success(**shown).success(**settled)
        self.wishes.click(self.act, inputs, [*outputs, self.tabs, *self.studio.outputs], **quick).success(**shown).success(**settled)
        self.library.opened.success(**shown).success(**settled)
        self.new.click(self.start_over, {self.search}, outputs, queue=False, **quick)
        self.bring.upload(self.bring_in, {self.bring, self.search}, outputs, **quick)
        self.search.change(self.look_for, {self.view, self.search}, [self.list], **quick)
        self.box.stop(self.stop, self.view, None, queue=False, **quick)
        self.timer.tick(self.look_up, None, [self.status, self.talk, self.timer, *self.controls.values()], **quick)
        for name, preset in self.presets.items():
            preset.click(functools.partial(self.set_preset, name), None, list(self.controls.values()), queue=False, **quick)
        self.blocks.load(self.arrive, {self.search}, outputs, **quick).success(**shown).success(**settled)
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

    def greet(self) -> Updates:
        """What a browser cannot put into its language by itself."""
        welcomed = gr.skip() if self.loading.finished.is_set() else gr.update(placeholder=welcome(WAITING))
        parts = (self.studio, self.library, self.models, self.data, self.finetune, self.arena, self.worn)
        return {self.talk: welcomed} | functools.reduce(dict.__or__, [each.spoken() for each in parts])

    def set_preset(self, name: str) -> Updates:
        return controls.preset(name, self.controls, self.loading.engine.about if self.loading.engine else {})

    # What is shown

    def arrive(self, values: dict, request: gr.Request) -> Updates:
        """A browser comes, or comes back: its address names the conversation."""
        if request.session_hash in self.expected or request.session_hash in self.watching:
            return {self.status: gr.skip()}  # somebody was quicker than the page and has asked already
        id = request.query_params.get("c")
        try:
            view = View(self.store.open(id).id if id else None)
        except ValueError as error:
            gr.Warning(sentence(str(error)))
            view = View()
        return self._looking(values, request, view, None)

    def _looking(self, values: dict, request: gr.Request, view: View, words: str | None) -> Updates:
        """The window for a view that it comes to; an answer under way is drawn to its end even if that comes before `follow` does."""
        self.watching.pop(request.session_hash, None)
        if job := self.jobs.of(view.id):
            self.expected[request.session_hash] = job
        return self._shown(values, view, words)

    async def follow(self, values: dict, request: gr.Request) -> AsyncIterator[Updates]:
        """Draw the answer that is under way in what the browser looks at, until it is done or the browser looks elsewhere."""
        view, session = values[self.view], request.session_hash
        mine = self.watching[session] = object()
        job = self.expected.pop(session, None) or self.jobs.of(view.id)
        if job is None or job.task.chat != view.id:
            yield {self.status: gr.skip()}  # a generator that gives nothing would empty all outputs
            return
        before, seen = self._before(job), -1
        while self.watching.get(session) is mine:
            if job.done:
                if job.bad:
                    gr.Warning(sentence(job.status))
                if later := self.jobs.of(view.id):  # what waited for the end of this one
                    job, before, seen = later, self._before(later), -1
                    continue
                self.over.add(session)
                said = status_line(job.status, "bad" if job.bad else "")
                with contextlib.suppress(ValueError):  # deleted in another window, as `settle` will say
                    yield {self.talk: self._messages(self.store.open(view.id)), self.status: said}
                return
            if seen != job.changed:
                seen = job.changed
                yield {self.talk: [*before, *job.messages()], self.status: status_line(job.status, "busy")}
            await asyncio.sleep(REDRAW_SECONDS)

    @kindly
    def settle(self, values: dict, request: gr.Request) -> Updates:
        """What stands around the chat when an answer is over. As outputs of `follow` these would cost more than all the rest of it."""
        if request.session_hash not in self.over:
            return {self.status: gr.skip()}
        self.over.discard(request.session_hash)
        shown = self._shown(values, values[self.view], None)
        return {each: shown[each] for each in (self.box, self.again, self.list)}

    def _shown(self, values: dict, view: View, words: str | None, mood: str = "", act: str = "") -> Updates:
        """The whole window for a view; the status line says `words`, or stays for `None`."""
        conversation = self.store.open(view.id) if view.id else Conversation()
        job = self.jobs.of(view.id)
        talk = self._messages(conversation) if job is None else [*self._before(job), *job.messages()]
        return {
            self.view: view,
            self.talk: talk,
            self.status: gr.skip() if words is None else status_line(words, mood, act),
            self.box: gr.MultimodalTextbox(submit_btn=job is None, stop_btn=job is not None),
            self.again: gr.Button(visible=conversation.head is not None and job is None),
            self.list: self._listed(values, view),
            self.place: view.id or "",
        }

    def _messages(self, conversation: Conversation) -> list[Message]:
        return messages(conversation, self.store.about(conversation.id)["notes"], self.pictures) if conversation.head else []

    def _before(self, job: Job) -> list[Message]:
        """What stands above an answer that is being made."""
        return self._messages(self.store.open(job.task.chat).at(job.task.at))

    def _listed(self, values: dict, view: View) -> str:
        words = values.get(self.search) or ""
        return chat_list(self.store.entries(words), view.id, view.renaming, self.jobs.running(), bool(words.strip()))

    def look_for(self, values: dict) -> Updates:
        return {self.list: self._listed(values, values[self.view])}

    # Asking

    @kindly
    def say(self, values: dict, request: gr.Request) -> Updates:
        """Put the words and pictures of the box into the conversation."""
        given = values[self.box] or {}
        words, files = (given.get("text") or "").strip(), given.get("files") or []
        editing = values[self.view].editing
        if editing and editing.at is not None:
            return self._say_words_of_picture(values, request, words)
        return self._begin(values, request, words, files)

    @kindly
    def say_example(self, values: dict, event: gr.SelectData, request: gr.Request) -> Updates:
        return self._begin(values, request, event.value["text"], [])

    def _begin(self, values: dict, request: gr.Request, words: str, files: list[str]) -> Updates:
        self._check_open()
        if not words:
            raise Refused("Type what you would like to know or see.")
        check_uploads(files)
        options, view = self._options(values), values[self.view]
        if view.editing:
            self._check_free(values)
        conversation = self.store.open(view.id) if view.id else Conversation(title=title_of(words))
        old = conversation.turns[view.editing.turn] if view.editing else None
        pictures = tuple(self._brought(Path(file), old) for file in files)
        if job := self.jobs.of(view.id):
            return self._wait(values, request, job, Waiting(words, tuple(files), pictures, options))
        before = conversation.at(old.parent) if old else conversation
        asked = self.store.save(before.say("user", *pictures, words))
        return self._started(values, request, asking(asked, options)) | {self.box: self._busy_box(EMPTY_BOX)}

    def _wait(self, values: dict, request: gr.Request, job: Job, question: Waiting) -> Updates:
        """Asked when the answer before is done, whether a browser looks on or not."""
        if not job.wait(question):
            raise Refused("One message waits already; take that back first, or wait for the answer.")
        return self._looking(values, request, values[self.view], None) | {self.box: self._busy_box(EMPTY_BOX)}

    def _recall(self, values: dict, request: gr.Request) -> Updates:
        """What waits goes back into the box, before what has been typed since."""
        job = self.jobs.of(values[self.view].id)
        question = job.recall() if job else None
        if question is None:
            raise Refused("It is asked already.")
        given = values[self.box] or EMPTY_BOX
        words = "\n".join(filter(None, [question.words, given.get("text")]))
        box = self._busy_box({"text": words, "files": [*question.files, *given.get("files", [])]})
        return self._looking(values, request, values[self.view], None) | {self.box: box}

    def _brought(self, file: Path, old: Turn | None) -> Image:
        """A picture from the box; those of a question that is edited stay as they are."""
        for image in old.images() if old else []:
            if Path(self.pictures.keep(image.picture)).name == file.name:
                return image
        return self.shared.brought(file)

    @kindly
    def say_again(self, values: dict, request: gr.Request) -> Updates:
        """Answer the last question with a new seed; the answer that is there stays as a branch."""
        self._check_free(values)
        turns = self.store.open(values[self.view].id).path() if values[self.view].id else []
        if not turns:
            raise Refused("There is nothing to answer again yet.")
        return self._retry(values, request, turns[-1].id)

    def _options(self, values: dict) -> Options:
        """What the drawer says. An empty seed is drawn here, for the line under the answer to name it."""
        options = controls.read(Options, self.controls, values)
        return options if options.seed is not None else replace(options, seed=new_seed())

    def _check_free(self, values: dict) -> None:
        if self.jobs.of(values[self.view].id):
            raise Refused("The answer is still being made; wait for it, or press Stop first.")

    def _check_open(self) -> None:
        if self.loading.error:
            raise Refused(self.loading.error)

    def _started(self, values: dict, request: gr.Request, task: Task) -> Updates:
        self._check_open()
        self.expected[request.session_hash] = job = self.jobs.start(task)
        return self._shown(values, View(task.chat), job.status, "busy") | {self.box: self._busy_box()}

    def _busy_box(self, value: dict | None = None) -> gr.MultimodalTextbox:
        look = {"submit_btn": False, "stop_btn": True}
        return gr.MultimodalTextbox(**look) if value is None else gr.MultimodalTextbox(value=value, **look)

    def stop(self, view: View) -> None:
        if job := self.jobs.of(view.id):
            job.stop.set()

    def start_over(self, values: dict, request: gr.Request) -> Updates:
        self.watching.pop(request.session_hash, None)
        box = gr.MultimodalTextbox(value=EMPTY_BOX, submit_btn=True, stop_btn=False)
        return self._shown(values, View(), self.loading.words) | {self.box: box}

    def leave(self, request: gr.Request) -> None:
        """A browser is gone; what is being made for it goes on."""
        self.watching.pop(request.session_hash, None)
        self.expected.pop(request.session_hash, None)
        self.over.discard(request.session_hash)
        self.models.leave(request)

    # The small buttons

    @kindly
    def act(self, values: dict, event: gr.EventData, request: gr.Request) -> Updates:
        """A click on one of the small buttons: "wish argument argument", and what was typed with it."""
        wish, *arguments = str(event._data.get("wish", "")).split(" ")
        try:
            if wish == "name":
                arguments.append(str(event._data.get("words", "")))
            return self.acts[wish](values, request, *arguments)
        except (KeyError, TypeError, IndexError) as error:
            raise Refused("That is no longer there; open the page anew.") from error

    def _refuse(self, values: dict, request: gr.Request, *words: str) -> Updates:
        raise Refused(" ".join(words))

    def _open(self, values: dict, request: gr.Request, id: str) -> Updates:
        self.store.open(id)
        box = {} if values[self.view].editing is None else {self.box: self._box(EMPTY_BOX)}
        return self._looking(values, request, View(id), self.loading.words) | box

    def _rename(self, values: dict, request: gr.Request, id: str) -> Updates:
        return self._kept(values, renaming=id)

    def _name(self, values: dict, request: gr.Request, id: str, words: str) -> Updates:
        self.store.rename(id, words)
        return self._kept(values, renaming=None)

    def _pin(self, values: dict, request: gr.Request, id: str) -> Updates:
        self.store.pin(id, True)
        return self._kept(values)

    def _unpin(self, values: dict, request: gr.Request, id: str) -> Updates:
        self.store.pin(id, False)
        return self._kept(values)

    def _kept(self, values: dict, **changes: Any) -> Updates:
        """The list anew; all else stays."""
        view = replace(values[self.view], **changes)
        return {self.view: view, self.list: self._listed(values, view)}

    def _delete(self, values: dict, request: gr.Request, id: str) -> Updates:
        if job := self.jobs.of(id):
            job.stop.set()
        title = self.store.open(id).title
        self.store.delete(id)
        self.watching.pop(request.session_hash, None)
        shown = values[self.view].id
        return self._shown(values, View(None if shown == id else shown, undo=id), f'"{title}" is deleted.', act=_undo())

    def _undo(self, values: dict, request: gr.Request) -> Updates:
        view = values[self.view]
        if isinstance(view.undo, str):
            self.store.restore(view.undo)
            return self._shown(values, View(view.undo), "It is back.")
        if view.undo is None:
            raise Refused("There is nothing to undo any more.")
        self._check_free(values)
        old = view.undo
        self.store.change(old.id, lambda now: replace(now, turns={**old.turns, **now.turns}, head=old.head))
        return self._shown(values, View(old.id), "It is back.")

    def _cancel(self, values: dict, request: gr.Request) -> Updates:
        view = values[self.view]
        return self._shown(values, View(view.id), self.loading.words) | ({self.box: self._box(EMPTY_BOX)} if view.editing else {})

    def _box(self, value: dict) -> gr.MultimodalTextbox:
        return gr.MultimodalTextbox(value=value, submit_btn=True, stop_btn=False)

    def _turn(self, values: dict, id: str) -> tuple[Conversation, Turn]:
        """Raises: KeyError, Refused."""
        self._check_free(values)
        conversation = self.store.open(values[self.view].id)
        return conversation, conversation.turns[id]

    def _branch(self, values: dict, request: gr.Request, id: str) -> Updates:
        conversation, turn = self._turn(values, id)
        self.store.change(conversation.id, lambda now: now.at(now.tip(turn.id)), quiet=True)
        return self._shown(values, View(conversation.id), self.loading.words)

    def _edit(self, values: dict, request: gr.Request, id: str) -> Updates:
        conversation, turn = self._turn(values, id)
        if turn.role != "user":
            raise Refused("Only a question can be edited.")
        box = {"text": turn.text(), "files": [self.pictures.keep(image.picture) for image in turn.images()]}
        said = "Sending it makes a branch; the old one stays."
        view = View(conversation.id, Edit(id))
        return self._shown(values, view, said, act=_give_up()) | {self.box: self._box(box)}

    def _retry(self, values: dict, request: gr.Request, id: str) -> Updates:
        conversation, turn = self._turn(values, id)
        asked = conversation.at(id if turn.role == "user" else turn.parent)
        task = asking(asked, replace(self._options(values), seed=new_seed()))
        return self._started(values, request, replace(task, back=conversation.head))

    def _on(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        """What comes after a part of an answer is made anew, or at all; the answer that is there stays as a branch."""
        conversation, turn = self._turn(values, id)
        if turn.role != "assistant":
            raise Refused("Only an answer can go on.")
        begun = Turn("assistant", turn.parts[: int(at) + 1], parent=turn.parent)
        asked, options = conversation.with_turn(begun), replace(self._options(values), seed=new_seed())
        work = lambda engine, stop: engine.going_on(asked, options, stop)  # noqa: E731
        return self._started(values, request, Task(asked.id, turn.parent, work, options, conversation.head, parts=begun.parts))

    def _drop(self, values: dict, request: gr.Request, id: str) -> Updates:
        conversation, _ = self._turn(values, id)
        self.store.change(conversation.id, lambda now: now.without(id))
        return self._shown(values, View(conversation.id, undo=conversation), "Deleted, with all that came after it.", act=_undo())

    def _again(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self._turn(values, id)
        return self._repaint(values, request, conversation, turn, int(at))

    def _vary(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self._turn(values, id)
        return self._repaint(values, request, conversation, turn, int(at), VARIANTS)

    def _repaint(self, values: dict, request: gr.Request, conversation: Conversation, turn: Turn, at: int, count: int = 1) -> Updates:
        if turn.role != "assistant" or not isinstance(turn.parts[at], Image):
            raise Refused("Only a picture of an answer can be painted again.")
        options, seeds = self._options(values), tuple(new_seed() for _ in range(count))
        work = repainting(conversation, turn, at, options, seeds)
        task = Task(conversation.id, turn.parent, work, options, conversation.head, seeds, turn.parts[:at], turn.parts[at + 1 :])
        return self._started(values, request, task)

    def _words(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self._turn(values, id)
        place = int(at)
        said = turn.parts[place - 1] if place and isinstance(turn.parts[place - 1], Text) else Text("")
        view = View(conversation.id, Edit(id, place))
        words = "Change the words of this picture and send them: a branch."
        box = {self.box: self._box({"text": said.text.strip(), "files": []})}
        return self._shown(values, view, words, act=_give_up()) | box

    def _say_words_of_picture(self, values: dict, request: gr.Request, words: str) -> Updates:
        if not words:
            raise Refused("Type the words that the picture is painted from.")
        editing = values[self.view].editing
        conversation, turn = self._turn(values, editing.turn)
        at, before = editing.at, turn.parts[: editing.at]
        if before and isinstance(before[-1], Text):
            space = re.match(r"\s*", before[-1].text)[0]
            before = (*before[:-1], Text(space + words))
        else:
            at, before = at + 1, (*before, Text(words))
        told = replace(turn, parts=(*before, *turn.parts[editing.at :]))
        return self._repaint(values, request, conversation, told, at) | {self.box: self._busy_box(EMPTY_BOX)}

    def _use(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self._turn(values, id)
        given = values[self.box] or EMPTY_BOX
        files = [*given.get("files", []), self.pictures.keep(turn.parts[int(at)].picture)]
        if len(files) > UPLOADS:
            raise Refused(f"Bring at most {UPLOADS} pictures with a message.")
        box = {"text": given.get("text") or "", "files": files}
        return self._shown(values, View(conversation.id), "The picture is in the box: say what to do with it.") | {self.box: self._box(box)}

    # The other tabs

    def _teach(self, values: dict, request: gr.Request, id: str) -> Updates:
        """Keep a conversation up to an answer as an example to learn from."""
        conversation, _ = self._turn(values, id)
        keep_example(conversation.at(id))
        return self._shown(values, values[self.view], "It is an example now; the Fine-tune tab has it.")

    def _studio(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self._turn(values, id)
        about = About(turn.parts[int(at)].alt, conversation=conversation.id, turn=id)
        return self._to_studio(self.gallery.add(turn.parts[int(at)].picture, about).id)

    def _to_studio(self, id: str) -> Updates:
        return self.studio.showing(id) | {self.tabs: gr.Tabs(selected="studio")}

    def _to_finetune(self, name: str) -> Iterator[Updates]:
        """A set of the Data tab as what is learnt from: the tab shows at once, and what is in the set when that is read."""
        folder = str(self.data.folder(name))
        yield {self.tabs: gr.Tabs(selected="fine-tune"), self.finetune.folder: folder}
        yield from self.finetune.look(folder)

    def _to_conversation(self, id: str, turn: str, request: gr.Request) -> Updates:
        """The conversation of a picture, at the branch in which the picture is."""
        conversation = self.store.open(id)
        if turn in conversation.turns and turn not in [each.id for each in conversation.path()]:
            self.store.change(id, lambda now: now.at(now.tip(turn)), quiet=True)
        return self._looking({}, request, View(id), self.loading.words) | {self.tabs: gr.Tabs(selected="chat")}

    def _to_settings(self, about: About) -> Updates:
        box = gr.MultimodalTextbox(value={"text": about.words, "files": []})
        return self.shared.restored(about) | {self.box: box, self.tabs: gr.Tabs(selected="chat")}

    # Zip files

    @kindly
    def bring_in(self, values: dict, request: gr.Request) -> Updates:
        conversation = self.store.unpack(Path(values[self.bring]))
        self.watching.pop(request.session_hash, None)
        return self._shown(values, View(conversation.id), "The conversation is here.")

    def _packed(self) -> Callable[[str], dict]:
        writers = {"pdf": (".pdf", as_pdf), "html": (".html", as_page), "markdown": (".zip", as_zip)}

        def pack(wish: str) -> dict:
            """What a browser saves, for "KIND CONVERSATION" or "KIND CONVERSATION ANSWER"."""
            kind, id, *answer = str(wish).split(" ")
            try:
                conversation = self.store.open(id)
                ending, write = writers.get(kind, (".zip", None))
                data = write(conversation, *answer) if write else self.store.pack(id)
                title = re.sub(r"[^\w-]+", "-", conversation.title).strip("-")[:40] or "conversation"
                return {"name": title + ending, "data": base64.b64encode(data).decode()}
            except (ValueError, TypeError) as error:
                return {"error": str(error)}

        return pack


def welcome(about: dict[str, Any]) -> str:
    """What the pair is, and what it cannot do, until a person has pressed the button below that."""
    hint = sentence(about.get("limits", ""))
    limits = f'<p class="limits">{hint} {button("known", "Do not show this again", words="Got it")}</p>' if hint else ""
    return f"<h2>{sentence(about['title'])}</h2><p>{sentence(about['summary'])}</p>{limits}"


def as_page(conversation: Conversation, answer: str | None = None) -> bytes:
    return as_html(conversation, answer).encode()


def _undo() -> str:
    return button("undo", "Bring it back", words="Undo")


def _give_up() -> str:
    return button("cancel", "Leave it as it is", words="Cancel")
