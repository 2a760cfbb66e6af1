"""The chat: what a browser sees of a conversation, and what is asked in it. `page.py` lays it out; its small buttons are in `acts.py`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from duogen.conversation import Conversation, Image, Text, Turn
from duogen.library.conversations import Store, title_of
from ui.chat.answers import Job, Jobs, Task, Waiting, asking, repainting
from ui.chat.correct import corrected
from ui.chat.history import Message, messages
from ui.chat.sidebar import chat_list
from ui.parts.shared import EMPTY_BOX, Refused, Shared, Updates, check_uploads, new_seed, refused, sentence, status_line

LOOK_SECONDS = 0.02  # between two looks at whether there is something new
REDRAW_SECONDS = 0.25  # between two drawings: each takes time from the models, in the server and, on one machine, in the browser


@dataclass(frozen=True)
class Edit:
    """What the box changes: a question, an answer, or the words before the picture at `at` of an answer."""

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


class Parts(NamedTuple):
    """What of the page the chat reads and draws; `view` holds a `View`."""

    view: gr.State
    search: gr.Textbox
    bring: gr.UploadButton
    list: gr.HTML
    talk: gr.Chatbot
    status: gr.HTML
    again: gr.Button
    box: gr.MultimodalTextbox
    place: gr.Textbox


def kindly(handler: Callable) -> Callable:
    """A refusal becomes a word to the user."""

    @functools.wraps(handler)
    def handled(chat: Any, *given: Any) -> Updates:
        try:
            return handler(chat, *given)
        except (Refused, ValueError) as reason:
            refused(reason)
            return {chat.status: gr.skip()}

    return handled


class Chat:
    """The chat of all browsers. What one of them looks at is its `View`; conversations and answers under way belong to none.

    By browser session, `places` holds the conversation that is looked at; `watching` a token of the one `follow` that may still draw
    there; `expected` the job it shall draw; `over` the sessions in which it has drawn one to its end.
    """

    def __init__(self, parts: Parts, shared: Shared, store: Store, jobs: Jobs) -> None:
        self.view, self.search, self.bring, self.list, self.talk, self.status, self.again, self.box, self.place = parts
        self.outputs = [self.view, self.list, self.talk, self.status, self.again, self.box, self.place]
        self.shared, self.store, self.jobs = shared, store, jobs
        self.loading, self.pictures = shared.loading, jobs.pictures
        self.places: dict[str, str | None] = {}
        self.watching: dict[str, object] = {}
        self.expected: dict[str, Job] = {}
        self.over: set[str] = set()

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
        return self.looking(values, request, view, None)

    def looking(self, values: dict, request: gr.Request, view: View, words: str | None, act: str = "") -> Updates:
        """The window for a view that it comes to; an answer under way is drawn to its end even if that comes before `follow` does."""
        self.watching.pop(request.session_hash, None)
        self.places[request.session_hash] = view.id
        shown = self.shown(values, view, words, act=act)
        if job := self.jobs.of(view.id):
            self.expected[request.session_hash] = job
        elif view.id and (unasked := self.store.about(view.id)["unasked"]) and (values.get(self.box) or EMPTY_BOX) == EMPTY_BOX:
            # The server was ended before it was asked: back into the box, until something is asked here.
            shown[self.box] = self.free_box({**unasked, "files": [file for file in unasked["files"] if Path(file).is_file()]})
        return shown

    def at(self, id: str, turn: str, request: gr.Request) -> Updates:
        """The window for a conversation, at the branch in which a turn is. Raises ValueError: it is gone."""
        conversation = self.store.open(id)
        if turn in conversation.turns and turn not in [each.id for each in conversation.path()]:
            self.store.change(id, lambda now: now.at(now.tip(turn)), quiet=True)
        return self.looking({}, request, View(id), self.loading.words)

    async def follow(self, values: dict, request: gr.Request) -> AsyncIterator[Updates]:
        """Draw the answer that is under way in what the browser looks at, until it is done or the browser looks elsewhere."""
        view, session = values[self.view], request.session_hash
        mine = self.watching[session] = object()
        job = self.expected.pop(session, None) or self.jobs.of(view.id)
        if job is None or job.task.chat != view.id:
            yield {self.status: gr.skip()}  # a generator that gives nothing would empty all outputs
            return
        async for update in self._drawn(view, session, job, mine):
            yield update
        # What was drawn last may reach the browser after the answer to a click that led it elsewhere: so that is drawn over it.
        drawn = view.id
        while session in self.places and self.places[session] != drawn:
            drawn = self.places[session]
            with contextlib.suppress(ValueError):  # deleted meanwhile
                shown = self.shown({}, View(drawn), self.loading.words)
                yield {each: shown[each] for each in (self.talk, self.status)}
            await asyncio.sleep(REDRAW_SECONDS)

    async def _drawn(self, view: View, session: str, job: Job, mine: object) -> AsyncIterator[Updates]:
        before, seen, drawn, bare = self._before(job), -1, 0.0, True
        while self.watching.get(session) is mine and self.places.get(session, view.id) == view.id:
            if job.done:
                if job.bad:
                    gr.Warning(sentence(job.status))
                if later := self.jobs.of(view.id):  # what waited for the end of this one
                    job, before, seen, bare = later, self._before(later), -1, True
                    continue
                self.over.add(session)
                said = status_line(job.status, "bad" if job.bad else "")
                with contextlib.suppress(ValueError):  # deleted in another window, as `settle` will say
                    yield {self.talk: self.messages(self.store.open(view.id)), self.status: said}
                return
            first = bare and bool(job.answer.parts)  # nobody waits for the first word longer than it takes
            if seen != job.changed and (first or time.monotonic() - drawn > REDRAW_SECONDS):
                seen, drawn, bare = job.changed, time.monotonic(), bare and not first
                yield {self.talk: [*before, *job.messages()], self.status: status_line(job.status, "busy")}
            await asyncio.sleep(LOOK_SECONDS)

    @kindly
    def settle(self, values: dict, request: gr.Request) -> Updates:
        """What stands around the chat when an answer is over. As outputs of `follow` these would cost more than all the rest of it."""
        if request.session_hash not in self.over:
            return {self.status: gr.skip()}
        self.over.discard(request.session_hash)
        shown = self.shown(values, values[self.view], None)
        return {each: shown[each] for each in (self.box, self.again, self.list)}

    def shown(self, values: dict, view: View, words: str | None, mood: str = "", act: str = "") -> Updates:
        """The whole window for a view; the status line says `words`, or stays for `None`."""
        conversation = self.store.open(view.id) if view.id else Conversation()
        job = self.jobs.of(view.id)
        talk = self.messages(conversation) if job is None else [*self._before(job), *job.messages()]
        return {
            self.view: view,
            self.talk: talk,
            self.status: gr.skip() if words is None else status_line(words, mood, act),
            self.box: gr.MultimodalTextbox(submit_btn=job is None, stop_btn=job is not None),
            self.again: gr.Button(visible=conversation.head is not None and job is None),
            self.list: self.listed(values, view),
            self.place: view.id or "",
        }

    def messages(self, conversation: Conversation) -> list[Message]:
        return messages(conversation, self.store.about(conversation.id)["notes"], self.pictures) if conversation.head else []

    def _before(self, job: Job) -> list[Message]:
        """What stands above an answer that is being made."""
        return self.messages(self.store.open(job.task.chat).at(job.task.at))

    def listed(self, values: dict, view: View) -> str:
        words = values.get(self.search) or ""
        return chat_list(self.store.entries(words), view.id, view.renaming, self.jobs.running(), bool(words.strip()))

    def look_for(self, values: dict) -> Updates:
        return {self.list: self.listed(values, values[self.view])}

    # Asking

    @kindly
    def say(self, values: dict, request: gr.Request) -> Updates:
        """Put the words and pictures of the box into the conversation."""
        given = values[self.box] or {}
        words, files = (given.get("text") or "").strip(), given.get("files") or []
        if editing := values[self.view].editing:
            if editing.at is not None:
                return self._say_words_of_picture(values, request, words)
            conversation, turn = self.turn(values, editing.turn)
            if turn.role == "assistant":
                return self._correct(values, conversation, turn, words)
        return self.begin(values, request, words, files)

    @kindly
    def say_example(self, values: dict, event: gr.SelectData, request: gr.Request) -> Updates:
        return self.begin(values, request, event.value["text"], [])

    def begin(self, values: dict, request: gr.Request, words: str, files: list[str]) -> Updates:
        self._check_open()
        if not words:
            raise Refused("Type what you would like to know or see.")
        check_uploads(files)
        options, view = self.shared.options(values), values[self.view]
        if view.editing:
            self.check_free(values)
        conversation = self.store.open(view.id) if view.id else Conversation(title=title_of(words))
        old = conversation.turns[view.editing.turn] if view.editing else None
        pictures = tuple(self._brought(Path(file), old) for file in files)
        if job := self.jobs.of(view.id):
            return self._wait(values, request, job, Waiting(words, tuple(files), pictures, options))
        before = conversation.at(old.parent) if old else conversation
        asked = self.store.save(before.say("user", *pictures, words))
        self.store.put_off(asked.id, None)
        return self.started(values, request, asking(asked, options)) | {self.box: self.busy_box(EMPTY_BOX)}

    def _wait(self, values: dict, request: gr.Request, job: Job, question: Waiting) -> Updates:
        """Asked when the answer before is done, whether a browser looks on or not."""
        if not self.jobs.put_off(job, question):
            raise Refused("One message waits already; take that back first, or wait for the answer.")
        return self.looking(values, request, values[self.view], None) | {self.box: self.busy_box(EMPTY_BOX)}

    def _brought(self, file: Path, old: Turn | None) -> Image:
        """A picture from the box; those of a question that is edited stay as they are."""
        for image in old.images() if old else []:
            if Path(self.pictures.keep(image.picture)).name == file.name:
                return image
        return self.shared.brought(file)

    @kindly
    def say_again(self, values: dict, request: gr.Request) -> Updates:
        """Answer the last question with a new seed; the answer that is there stays as a branch."""
        self.check_free(values)
        turns = self.store.open(values[self.view].id).path() if values[self.view].id else []
        if not turns:
            raise Refused("There is nothing to answer again yet.")
        return self.retry(values, request, turns[-1].id)

    def retry(self, values: dict, request: gr.Request, id: str) -> Updates:
        conversation, turn = self.turn(values, id)
        asked = conversation.at(id if turn.role == "user" else turn.parent)
        task = asking(asked, replace(self.shared.options(values), seed=new_seed()))
        return self.started(values, request, replace(task, back=conversation.head))

    def repaint(self, values: dict, request: gr.Request, conversation: Conversation, turn: Turn, at: int, count: int = 1) -> Updates:
        if turn.role != "assistant" or not isinstance(turn.parts[at], Image):
            raise Refused("Only a picture of an answer can be painted again.")
        options, seeds = self.shared.options(values), tuple(new_seed() for _ in range(count))
        work = repainting(conversation, turn, at, options, seeds)
        task = Task(conversation.id, turn.parent, work, options, conversation.head, seeds, turn.parts[:at], turn.parts[at + 1 :])
        return self.started(values, request, task)

    def _say_words_of_picture(self, values: dict, request: gr.Request, words: str) -> Updates:
        if not words:
            raise Refused("Type the words that the picture is painted from.")
        editing = values[self.view].editing
        conversation, turn = self.turn(values, editing.turn)
        at, before = editing.at, turn.parts[: editing.at]
        if before and isinstance(before[-1], Text):
            space = re.match(r"\s*", before[-1].text)[0]
            before = (*before[:-1], Text(space + words))
        else:
            at, before = at + 1, (*before, Text(words))
        told = replace(turn, parts=(*before, *turn.parts[editing.at :]))
        return self.repaint(values, request, conversation, told, at) | {self.box: self.busy_box(EMPTY_BOX)}

    def _correct(self, values: dict, conversation: Conversation, turn: Turn, words: str) -> Updates:
        """The answer as a person put it right, as a branch."""
        parts = corrected(turn, words)
        if parts != turn.parts:
            conversation = self.store.save(conversation.at(turn.parent).say(turn.role, *parts))
        return self.shown(values, View(conversation.id), self.loading.words) | {self.box: self.free_box(EMPTY_BOX)}

    def turn(self, values: dict, id: str) -> tuple[Conversation, Turn]:
        """Raises: KeyError, Refused."""
        self.check_free(values)
        conversation = self.store.open(values[self.view].id)
        return conversation, conversation.turns[id]

    def check_free(self, values: dict) -> None:
        if self.jobs.of(values[self.view].id):
            raise Refused("The answer is still being made; wait for it, or press Stop first.")

    def _check_open(self) -> None:
        if self.loading.error:
            raise Refused(self.loading.error)

    def started(self, values: dict, request: gr.Request, task: Task) -> Updates:
        self._check_open()
        self.expected[request.session_hash] = job = self.jobs.start(task)
        self.places[request.session_hash] = task.chat
        return self.shown(values, View(task.chat), job.status, "busy") | {self.box: self.busy_box()}

    def busy_box(self, value: dict | None = None) -> gr.MultimodalTextbox:
        look = {"submit_btn": False, "stop_btn": True}
        return gr.MultimodalTextbox(**look) if value is None else gr.MultimodalTextbox(value=value, **look)

    def free_box(self, value: dict) -> gr.MultimodalTextbox:
        return gr.MultimodalTextbox(value=value, submit_btn=True, stop_btn=False)

    def stop(self, view: View) -> None:
        if job := self.jobs.of(view.id):
            job.stop.set()

    def start_over(self, values: dict, request: gr.Request) -> Updates:
        return self.looking(values, request, View(), self.loading.words) | {self.box: self.free_box(EMPTY_BOX)}

    @kindly
    def bring_in(self, values: dict, request: gr.Request) -> Updates:
        conversation = self.store.unpack(Path(values[self.bring]))
        return self.looking(values, request, View(conversation.id), "The conversation is here.")

    def leave(self, request: gr.Request) -> None:
        for each in (self.places, self.watching, self.expected):
            each.pop(request.session_hash, None)
        self.over.discard(request.session_hash)
