"""The page: its parts, and what happens when they are used."""

from __future__ import annotations

import contextlib
import functools
import html
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr

from duogen.conversation import Conversation, open_picture
from duogen.events import Done, Failed, TextDelta
from duogen.options import Options
from ui import controls
from ui.history import PAINTING, Answer, Message, messages, note
from ui.loading import Loading
from ui.pictures import PictureFolder

UPLOAD_PIXELS = 1536
UPLOADS = 8
KEPT_PICTURES, KEPT_PREVIEWS = 2000, 100
REDRAW_SECONDS = 0.08
WELCOME = "<h2>DuoGen</h2><p>Ask how to draw something, and it explains in words and pictures.</p>"
TOGGLE_DRAWER = "() => { document.querySelector('.sidebar .toggle-button').click() }"
TOGGLE_DARK = "() => { localStorage.look = document.body.classList.toggle('dark') ? 'dark' : 'light' }"
REMEMBERED_LOOK = "() => { if (localStorage.look) document.body.classList.toggle('dark', localStorage.look == 'dark') }"

Updates = dict[Any, Any]


@dataclass(frozen=True)
class Chat:
    """What a browser session keeps: the conversation, and the line under each answer by its turn."""

    conversation: Conversation = field(default_factory=Conversation)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A question that waits for its answer, and what to go back to if there is none."""

    options: Options
    before: Chat


def new_seed() -> int:
    return secrets.randbelow(1_000_000)


def sentence(message: str) -> str:
    return html.escape(message, quote=False)


def status_line(words: str, mood: str = "") -> str:
    """`mood` is "busy", "bad" or nothing."""
    return f'<div role="status" class="status {mood}">{sentence(words)}</div>'


class Refused(Exception):
    """What was asked for is not to be had now; the message is one sentence for the user, and nothing changes."""


def kindly(handler: Callable) -> Callable:
    """A refusal becomes a word to the user. Gradio's own errors would be laid over the whole chat."""

    @functools.wraps(handler)
    def handled(page: Page, *given: Any) -> Updates:
        try:
            return handler(page, *given)
        except Refused as refused:
            gr.Warning(sentence(str(refused)), title="One moment")
            return {page.status: gr.skip()}

    return handled


class Page:
    """One page for all browsers.

    What belongs to one of them is in its `Chat`; from its question to the end of the answer it has a flag in `stops`, and
    until the answer begins an entry in `asked`. Both go by the browser's session.
    """

    def __init__(self, loading: Loading, folder: Path) -> None:
        """Pictures are kept below `folder`, which must hold nothing else: what lies there can be fetched by a browser."""
        self.loading = loading
        self.pictures = PictureFolder(folder / "pictures", KEPT_PICTURES)
        self.previews = PictureFolder(folder / "previews", KEPT_PREVIEWS)
        gr.set_static_paths([self.pictures.folder, self.previews.folder, PAINTING])
        self.stops: dict[str, threading.Event] = {}
        self.asked: dict[str, Asked] = {}
        with gr.Blocks(title="DuoGen", fill_height=True, analytics_enabled=False, delete_cache=(3600, 86400)) as self.blocks:
            self._lay_out()
            self._wire()

    def _lay_out(self) -> None:
        self.chat = gr.State(Chat())
        self.timer = gr.Timer(0.5)
        with gr.Row(elem_id="head"):
            gr.HTML('<h1><span class="mark" aria-hidden="true"></span>DuoGen</h1>', elem_id="brand")
            self.new = gr.Button("New chat", size="sm", min_width=60, elem_id="new")
            self.drawer = gr.Button("Options", size="sm", min_width=60, elem_id="drawer")
            self.look = gr.Button("◐", size="sm", min_width=36, elem_id="look")
        self.talk = gr.Chatbot(
            elem_id="talk",
            show_label=False,
            container=False,
            scale=1,
            height=None,
            placeholder=WELCOME,
            layout="bubble",
            buttons=[],
            latex_delimiters=[],
            allow_tags=False,
            feedback_options=None,
        )
        with gr.Row(elem_id="line"):
            self.status = gr.HTML(status_line(self.loading.words, "busy"), elem_id="status")
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
        with gr.Sidebar(label="Options", position="right", open=False, width=330, elem_id="options"):
            self.controls = controls.build(Options)

    def _wire(self) -> None:
        inputs = {self.box, self.chat, *self.controls.values()}
        outputs = [self.box, self.chat, self.talk, self.status, self.again]
        quick = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        slow = {"show_progress": "hidden", "api_visibility": "private", "concurrency_id": "painting", "concurrency_limit": 1}
        self.box.submit(self.say, inputs, outputs, **quick).success(self.answer, inputs, outputs, **slow)
        self.talk.example_select(self.say_example, inputs, outputs, **quick).success(self.answer, inputs, outputs, **slow)
        self.again.click(self.say_again, inputs, outputs, **quick).success(self.answer, inputs, outputs, **slow)
        self.new.click(self.start_over, None, outputs, queue=False, **quick)
        self.box.stop(self.stop, None, None, queue=False, **quick)
        self.timer.tick(self.look_up, None, [self.status, self.talk, self.timer, *self.controls.values()], **quick)
        self.blocks.load(None, None, None, js=REMEMBERED_LOOK)
        self.look.click(None, None, None, js=TOGGLE_DARK)
        self.drawer.click(None, None, None, js=TOGGLE_DRAWER)
        self.blocks.unload(self.leave)

    def look_up(self) -> Updates:
        """How far the loading is; once it is over, the welcome of the pair, its examples, and what it paints best with."""
        loading = self.loading
        if not loading.finished.is_set():
            return {self.status: status_line(loading.words, "busy")}
        over = {self.timer: gr.Timer(active=False)}
        if loading.engine is None:
            return over | {self.status: status_line(loading.words, "bad")}
        about = loading.engine.about
        welcome = f"<h2>{sentence(about['title'])}</h2><p>{sentence(about['summary'])}</p>"
        examples = [{"text": words} for words in about["examples"]]
        best = {control: gr.update(value=about[path[-1]]) for path, control in self.controls.items() if path[-1] in about}
        return over | best | {self.status: status_line(loading.words), self.talk: gr.Chatbot(placeholder=welcome, examples=examples)}

    @kindly
    def say(self, values: dict, request: gr.Request) -> Updates:
        """Put the words and pictures of the box into the conversation."""
        given = values[self.box] or {}
        return self._begin(values, request, (given.get("text") or "").strip(), given.get("files") or [])

    @kindly
    def say_example(self, values: dict, event: gr.SelectData, request: gr.Request) -> Updates:
        return self._begin(values, request, event.value["text"], [])

    def _begin(self, values: dict, request: gr.Request, words: str, files: list[str]) -> Updates:
        self._check_free(request)
        if not words:
            raise Refused("Type what you would like to know or see.")
        if len(files) > UPLOADS:
            raise Refused(f"Bring at most {UPLOADS} pictures with a message; these are {len(files)}.")
        try:
            pictures = [open_picture(Path(file)) for file in files]
        except ValueError as error:
            raise Refused(str(error)) from error
        for picture in pictures:
            picture.thumbnail((UPLOAD_PIXELS, UPLOAD_PIXELS))  # a phone's photo takes 150 MB of memory, and no pair sees more
        chat = values[self.chat]
        asked = replace(chat, conversation=chat.conversation.say("user", *pictures, words))
        return self._started(request, asked, Asked(self._options(values), chat))

    @kindly
    def say_again(self, values: dict, request: gr.Request) -> Updates:
        """Go back to before the last answer, which stays in the conversation as a branch; the next one gets a new seed."""
        self._check_free(request)
        chat = values[self.chat]
        turns = [turn for turn in chat.conversation.path() if turn.role == "user"]
        if not turns:
            raise Refused("There is nothing to answer again yet.")
        options = replace(self._options(values), seed=new_seed())
        return self._started(request, replace(chat, conversation=chat.conversation.at(turns[-1].id)), Asked(options, chat))

    def _options(self, values: dict) -> Options:
        """What the drawer says. An empty seed is drawn here, for the line under the answer to name it."""
        try:
            options = controls.read(Options, self.controls, values)
            return options if options.seed is not None else replace(options, seed=new_seed())
        except ValueError as error:
            raise Refused(str(error)) from error

    def _check_free(self, request: gr.Request) -> None:
        if request.session_hash in self.stops:
            raise Refused("The answer is still being made; wait for it, or press Stop first.")
        if self.loading.error:
            raise Refused(self.loading.error)

    def _started(self, request: gr.Request, chat: Chat, asked: Asked) -> Updates:
        self.stops[request.session_hash] = threading.Event()
        self.asked[request.session_hash] = asked
        return {
            self.chat: chat,
            self.talk: self._messages(chat),
            self.box: gr.MultimodalTextbox(value={"text": "", "files": []}, submit_btn=False, stop_btn=True),
            self.status: status_line("Waiting for its turn ...", "busy"),
            self.again: gr.Button(visible=False),
        }

    def _messages(self, chat: Chat) -> list[Message]:
        return messages(chat.conversation, chat.notes, self.pictures)

    def answer(self, values: dict, request: gr.Request) -> Iterator[Updates]:
        yield from self._answer(values[self.chat], request.session_hash)

    def _answer(self, chat: Chat, session: str) -> Iterator[Updates]:
        asked = self.asked.pop(session, None)
        if asked is None:  # the question was refused, or the browser has left it
            yield {self.status: gr.skip()}  # a generator that gives nothing would empty all outputs
            return
        stop = self.stops[session]
        try:
            yield from self._wait(stop)
            if self.loading.engine is None or stop.is_set():
                yield self._given_back(chat, asked.before, self.loading.error)
            else:
                yield from self._stream(chat, asked, stop)
        except Exception as error:  # the chat must go on after whatever happened
            traceback.print_exc()
            yield self._given_back(chat, asked.before, f"The answer failed ({type(error).__name__}: {error}); you can send it again.")
        finally:
            if self.stops.get(session) is stop:
                del self.stops[session]

    def _wait(self, stop: threading.Event) -> Iterator[Updates]:
        while not stop.is_set() and not self.loading.finished.wait(0.3):
            yield {self.status: status_line(f"{self.loading.words} The answer begins as soon as that is done.", "busy")}

    def _stream(self, chat: Chat, asked: Asked, stop: threading.Event) -> Iterator[Updates]:
        before, answer, drawn_at = self._messages(chat), Answer(self.pictures, self.previews), 0.0
        yield {self.talk: [*before, answer.message()], self.status: status_line(answer.status, "busy")}
        with contextlib.closing(self.loading.engine.answer(chat.conversation, asked.options, stop)) as events:
            for event in events:
                if stop not in self.stops.values():
                    return
                if isinstance(event, Done):
                    yield self._finished(chat, asked.options.seed, event)
                elif isinstance(event, Failed):
                    yield self._failed(chat, asked.before, event)
                else:
                    answer.take(event)
                    if isinstance(event, TextDelta) and time.monotonic() - drawn_at < REDRAW_SECONDS:
                        continue
                    drawn_at = time.monotonic()
                    yield {self.talk: [*before, answer.message()], self.status: status_line(answer.status, "busy")}

    def _finished(self, chat: Chat, seed: int, event: Done) -> Updates:
        words = "Stopped." if event.stats.stopped == "user" else self.loading.words
        return self._rest(Chat(event.conversation, {**chat.notes, event.conversation.head: note(event.stats, seed)}), words)

    def _failed(self, chat: Chat, before: Chat, event: Failed) -> Updates:
        """Show what had been made before it failed; if that is nothing, the question goes back into the box."""
        head = event.conversation.head
        if head is None or event.conversation.turns[head].role == "user":
            return self._given_back(chat, before, event.message)
        gr.Warning(sentence(event.message))
        return self._rest(Chat(event.conversation, chat.notes), event.message)

    def _given_back(self, chat: Chat, before: Chat, message: str) -> Updates:
        """All as it was before the question, which goes back into the box; after a retry it stands in the chat already."""
        if message:
            gr.Warning(sentence(message))
        rest = self._rest(before, message or "Stopped.")
        turn = chat.conversation.turns[chat.conversation.head]
        if turn.id in before.conversation.turns:
            return rest
        files = [self.pictures.keep(image.picture) for image in turn.images()]
        return rest | {self.box: gr.MultimodalTextbox(value={"text": turn.text(), "files": files}, submit_btn=True, stop_btn=False)}

    def _rest(self, chat: Chat, words: str) -> Updates:
        return {
            self.chat: chat,
            self.talk: self._messages(chat),
            self.status: status_line(words),
            self.box: gr.MultimodalTextbox(submit_btn=True, stop_btn=False),
            self.again: gr.Button(visible=chat.conversation.head is not None),
        }

    def stop(self, request: gr.Request) -> None:
        if request.session_hash in self.stops:
            self.stops[request.session_hash].set()

    def start_over(self, request: gr.Request) -> Updates:
        self.leave(request)
        empty = gr.MultimodalTextbox(value={"text": "", "files": []}, submit_btn=True, stop_btn=False)
        return self._rest(Chat(), self.loading.words) | {self.box: empty}

    def leave(self, request: gr.Request) -> None:
        """Stop what is being made for a browser that no longer wants it."""
        self.asked.pop(request.session_hash, None)
        if stop := self.stops.pop(request.session_hash, None):
            stop.set()
