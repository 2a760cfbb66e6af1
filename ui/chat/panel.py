"""The chat: shows a conversation and asks questions in it. `page.py` lays it out; its small buttons are in `actions.py`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from duogen.conversation import Conversation, Image, Piece, Text, Turn
from duogen.library.conversations import ConversationStore, Entry, list_tags, make_title
from duogen.picture_input import open_picture
from duogen.text_decoding import clean_message
from ui.chat.answers import Job, Jobs, Task, answer_task, repaint_rest_work, repaint_work
from ui.chat.correct import apply_correction
from ui.chat.history import Message, messages
from ui.chat.picture_roles import read_roles
from ui.chat.references import ask_in_style
from ui.chat.sidebar import chat_list, tag_row
from ui.chat.waiting_list import Request, list_html
from ui.parts.i18n import translate
from ui.parts.shared import (
    EMPTY_BOX,
    REFUSALS,
    UPLOADS,
    Refusal,
    Shared,
    Updates,
    check_uploads,
    draw_seed,
    idle_line,
    session_of,
    show_warning,
    status_line,
    translate_html,
)

POLL_SECONDS = 0.02  # between two checks for changes
LATE_SECONDS = 5.0  # until which the last update of an answer has certainly reached the browser
REDRAW_SECONDS = 0.25  # between two updates: each takes time from the models, in the server and, on one machine, in the browser

NEW_THUMBNAILS = 24  # that are made while the list is drawn


@dataclass(frozen=True)
class Edit:
    """What the box edits: a question, an answer, or the words before the picture at `at` of an answer."""

    turn: str
    at: int | None = None


@dataclass(frozen=True)
class View:
    """What one browser window shows.

    Attributes:
        id: the conversation, `None` before the first question of a new one.
        editing: what the next message replaces.
        renaming: the conversation that is being renamed.
        tagging: the conversation whose tags are being typed.
        undo: what Undo restores: the id of a deleted conversation, an earlier state of a conversation, or of an answer in it.
    """

    id: str | None = None
    editing: Edit | None = None
    renaming: str | None = None
    tagging: str | None = None
    undo: str | Conversation | Turn | None = None


@dataclass(eq=False)
class Follower:
    """A call of `follow` that draws an answer.

    Attributes:
        stopped: the browser shows another conversation, or asks a newer call to draw.
        ended: when it gave its last update, by the monotonic clock.
    """

    stopped: bool = False
    ended: float | None = None

    def is_over(self) -> bool:
        """Whether none of its updates can reach the browser any more."""
        return self.ended is not None and time.monotonic() - self.ended > LATE_SECONDS


class ChatParts(NamedTuple):
    """The components of the page that the chat uses; `view` holds a `View`."""

    view: gr.State
    search: gr.Textbox
    bring: gr.UploadButton
    list: gr.HTML
    chatbot: gr.Chatbot
    status: gr.HTML
    box: gr.MultimodalTextbox
    waiting: gr.HTML
    place: gr.Textbox
    roles: gr.Textbox


def _look_of_box(busy: bool) -> dict[str, Any]:
    """Stop and the words of the empty box. A `busy` one takes requests for the list, and its style shows Send once it holds something."""
    words = translate("Ask more: it waits in a list" if busy else "Ask, or bring a picture")
    return {"stop_btn": busy, "placeholder": words}


def catch_refusal(handler: Callable) -> Callable:
    """Decorate an event handler: a refusal becomes a warning for the user."""

    @functools.wraps(handler)
    def wrapper(chat: Any, *given: Any) -> Updates:
        try:
            return handler(chat, *given)
        except REFUSALS as reason:
            show_warning(reason)
            return {chat.status: gr.skip()}

    return wrapper


class Chat:
    """The chat of all browsers. The state of one browser is its `View`; conversations and running answers belong to no browser.

    By browser session, `places` holds the conversation that is shown, `followers` the last call of `follow` that drew, and
    `expected_jobs` the job that the next one shall draw. `finished` are the sessions in which `follow` has drawn an answer to its end.
    """

    def __init__(self, parts: ChatParts, shared: Shared, store: ConversationStore, jobs: Jobs) -> None:
        self.view, self.search, self.bring, self.list, self.chatbot, self.status, self.box, self.waiting, self.place, self.roles = parts
        self.outputs = [self.view, self.list, self.chatbot, self.status, self.box, self.waiting, self.place, self.roles]
        self.shared, self.store, self.jobs = shared, store, jobs
        self.loading, self.pictures, self.references = shared.loading, jobs.pictures, jobs.references
        self.places: dict[str, str | None] = {}
        self.followers: dict[str, Follower] = {}
        self.expected_jobs: dict[str, Job] = {}
        self.finished: set[str] = set()

    # What is shown

    def open_page(self, values: dict, request: gr.Request) -> Updates:
        """Show a browser that opens the page the conversation in its address."""
        session = session_of(request)
        if session in self.expected_jobs or session in self.followers:
            return {self.status: gr.skip()}  # a question was asked before the page was loaded
        id = request.query_params.get("c")
        try:
            view = View(self.store.open(id).id if id else None)
        except ValueError as error:
            gr.Warning(translate_html(str(error)))
            view = View()
        return self.enter_view(values, request, view, None)

    def enter_view(self, values: dict, request: gr.Request, view: View, words: str | None, act: str = "") -> Updates:
        """Updates for a new view. A running answer is drawn to its end, even if it ends before `follow` starts."""
        session = session_of(request)
        if session in self.followers:
            self.followers[session].stopped = True
        self.places[session] = view.id
        job = self.jobs.find(view.id)  # first: one that ends while it is drawn would leave the box busy for good
        shown = self.render(values, view, words, act=act)
        if job := job or self.jobs.find(view.id):
            self.expected_jobs[session] = job
        return shown

    def open_at(self, id: str, turn: str, request: gr.Request) -> Updates:
        """Updates for a conversation, at the branch of a turn. Raises ValueError: it is gone."""
        conversation = self.store.open(id)
        if turn in conversation.turns and turn not in [each.id for each in conversation.path()]:
            self.store.change(id, lambda now: now.at(now.tip(turn)), quiet=True)
        return self.enter_view({}, request, View(id), self.loading.words)

    async def follow(self, values: dict, request: gr.Request) -> AsyncIterator[Updates]:
        """Draw the running answer of the shown conversation, until it is done or the browser shows another one.

        It follows every click. The updates of an earlier call may reach the browser after what the click has changed: then this one draws
        the conversation once more.
        """
        view, session = values[self.view], session_of(request)
        job = self.expected_jobs.pop(session, None) or self.jobs.find(view.id)
        earlier, mine = self.followers.get(session), Follower()
        if job is not None and job.task.chat == view.id:
            updates = self._stream_job(session, job, mine)
        elif earlier is not None and not earlier.is_over():
            updates = self._draw_again(session, earlier, view)
        else:
            yield {self.status: gr.skip()}  # a generator that gives nothing would empty all outputs
            return
        if earlier is not None:
            earlier.stopped = True
        self.followers[session] = mine
        try:
            async for update in updates:
                yield update
        finally:
            mine.ended = time.monotonic()

    async def _draw_again(self, session: str, earlier: Follower, view: View) -> AsyncIterator[Updates]:
        """Draw a conversation in which nothing runs, once the earlier call has given its last update."""
        outputs, asked = [self.chatbot, self.waiting], time.monotonic()
        if earlier.ended is None:
            outputs.append(self.status)  # it may say that an answer is being made
        while earlier.ended is None and time.monotonic() - asked < LATE_SECONDS:
            await asyncio.sleep(POLL_SECONDS)
        self.finished.add(session)
        try:
            shown = self.render({}, view, self.loading.words)
            yield {each: shown[each] for each in outputs}
        except ValueError:  # deleted meanwhile
            yield {self.status: gr.skip()}

    async def _stream_job(self, session: str, job: Job, mine: Follower) -> AsyncIterator[Updates]:
        chat, before, seen, drawn, bare, listed = job.task.chat, self._messages_before(job), -1, 0.0, True, None
        while not mine.stopped and self.places.get(session, chat) == chat:
            if job.done:
                if job.bad:
                    gr.Warning(translate_html(job.status))
                if later := self.jobs.find(chat):  # the question that waited for this answer
                    job, before, seen, bare = later, self._messages_before(later), -1, True
                    continue
                self.finished.add(session)
                said = self.status_html(job.status, "bad" if job.bad else "")
                with contextlib.suppress(ValueError):  # deleted in another window, as `finish` will say
                    shown = self.messages(self.store.open(chat), idle=True)
                    yield {self.chatbot: shown, self.status: said, self.waiting: self.render_waiting(chat)}
                return
            first = bare and bool(job.answer.all_parts())  # show the first word at once
            if seen != job.changed and (first or time.monotonic() - drawn > REDRAW_SECONDS):
                seen, drawn, bare = job.changed, time.monotonic(), bare and not first
                waiting = self.render_waiting(chat)
                changed, listed = {self.waiting: waiting} if waiting != listed else {}, waiting
                yield {self.chatbot: [*before, *job.messages()], self.status: status_line(job.status, "busy")} | changed
            await asyncio.sleep(POLL_SECONDS)

    @catch_refusal
    def finish(self, values: dict, request: gr.Request) -> Updates:
        """Update what is around the chat when an answer is over. As outputs of `follow` these would cost more than the rest."""
        session = session_of(request)
        if session not in self.finished:
            return {self.status: gr.skip()}
        self.finished.discard(session)
        shown = self.render(values, values[self.view], None)
        return {each: shown[each] for each in (self.box, self.list)}

    def render(self, values: dict, view: View, words: str | None, mood: str = "", act: str = "") -> Updates:
        """Updates of the whole window for a view. The status line says `words`; `None` keeps it."""
        conversation = self.store.open(view.id) if view.id else Conversation()
        job = self.jobs.find(view.id)
        chatbot = self.messages(conversation, idle=True) if job is None else [*self._messages_before(job), *job.messages()]
        return {
            self.view: view,
            self.chatbot: chatbot,
            self.status: gr.skip() if words is None else self.status_html(words, mood, act),
            self.box: gr.MultimodalTextbox(**_look_of_box(job is not None)),
            self.waiting: self.render_waiting(view.id),
            self.list: self.render_list(values, view),
            self.place: view.id or "",
        }

    def status_html(self, words: str, mood: str = "", act: str = "") -> str:
        """The status line. What the open pair says of itself is a detail."""
        idle = not (mood or act) and words == self.loading.words and self.loading.engine is not None
        return idle_line(words) if idle else status_line(words, mood, act)

    def messages(self, conversation: Conversation, idle: bool = False) -> list[Message]:
        if not conversation.head:
            return []
        about = self.store.read_about(conversation.id)
        return messages(conversation, about["notes"], self.pictures, idle)

    def _messages_before(self, job: Job) -> list[Message]:
        """The messages above a running answer."""
        return self.messages(self.store.open(job.task.chat).at(job.task.at))

    def render_list(self, values: dict, view: View) -> str:
        words = values.get(self.search) or ""
        entries, running = self.store.list_entries(words), self.jobs.running_chats()
        searched, edited = bool(words.strip()), {view.renaming: "name", view.tagging: "tags"}
        tags = list_tags(self.store.list_entries() if searched else entries)
        return tag_row(tags, words) + chat_list(entries, view.id, edited, running, searched, self._make_thumbnails(entries))

    def _make_thumbnails(self, entries: list[Entry]) -> Callable[[Entry], Path | None]:
        """Small pictures of conversations; of those that are not there yet a few are made now."""
        thumbnails, places = self.shared.gallery.thumbnails, iter(range(NEW_THUMBNAILS))

        def find(entry: Entry) -> Path | None:
            if entry.picture is None:
                return None
            file = thumbnails.find(entry.picture.stem)
            if file is None and next(places, None) is not None:
                with contextlib.suppress(ValueError):
                    file = thumbnails.make(entry.picture.stem, open_picture(entry.picture, letterbox=True))
            return file

        return find

    def render_waiting(self, id: str | None) -> str:
        """The requests that wait. With no answer under way they are held, as after a restart of the server."""
        job = self.jobs.find(id)
        return list_html(self.jobs.waiting.read(id), job is None or job.held, self.shared.gallery)

    def search_list(self, values: dict) -> Updates:
        return {self.list: self.render_list(values, values[self.view])}

    # Asking

    @catch_refusal
    def submit(self, values: dict, request: gr.Request) -> Updates:
        """Send the words and pictures of the box."""
        given = values[self.box] or {}
        words, files = clean_message(given.get("text") or ""), given.get("files") or []
        if editing := values[self.view].editing:
            if editing.at is not None:
                return self._repaint_with_words(values, request, words)
            conversation, turn = self.find_turn(values, editing.turn)
            if turn.role == "assistant":
                return self._apply_correction(values, conversation, turn, words)
        return self.ask(values, request, words, files)

    @catch_refusal
    def submit_example(self, values: dict, event: gr.SelectData, request: gr.Request) -> Updates:
        return self.ask(values, request, clean_message(event.value["text"]), [])

    def ask(self, values: dict, request: gr.Request, words: str, files: list[str]) -> Updates:
        self._check_open()
        if not words:
            raise Refusal("Type what you would like to know or see.")
        check_uploads(files)
        self.references.check_room(words, len(files), UPLOADS)
        options, view = self.shared.options(values), values[self.view]
        if view.editing:
            self.check_free(values)
        conversation = self.store.open(view.id) if view.id else Conversation(title=make_title(words))
        old = conversation.turns[view.editing.turn] if view.editing else None
        roles, emptied = read_roles(values.get(self.roles), files), {self.box: self.busy_box(EMPTY_BOX), self.roles: ""}
        if self.jobs.find(view.id):
            kept = tuple(str(self.shared.keep_upload(Path(file))) for file in files)
            early, known = not self.loading.finished.is_set(), dict(zip(kept, roles, strict=True))
            if self.jobs.enqueue(view.id, Request(words, kept, options, early, known)):
                return self.enter_view(values, request, view, None) | emptied
        pictures = tuple(replace(self._open_upload(Path(file), old), role=role) for file, role in zip(files, roles, strict=True))
        before = conversation.at(old.parent) if old else conversation
        asked = self.store.save(self.references.attach(before.say("user", *pictures, words)))
        return self.start_task(values, request, answer_task(asked, options)) | emptied

    def _open_upload(self, file: Path, old: Turn | None) -> Image:
        """A picture from the box. Pictures of an edited question stay as they are."""
        for image in old.images() if old else []:
            if image.reference is None and Path(self.pictures.keep_image(image)).name == file.name:
                return image
        return self.shared.add_upload(file)

    def retry(self, values: dict, request: gr.Request, id: str) -> Updates:
        conversation, turn = self.find_turn(values, id)
        asked = conversation.at(id if turn.role == "user" else turn.parent)
        task = answer_task(asked, replace(self.shared.options(values), seed=draw_seed()))
        return self.start_task(values, request, replace(task, back=conversation.head))

    def repaint(self, values: dict, request: gr.Request, conversation: Conversation, turn: Turn, at: int, count: int = 1) -> Updates:
        if turn.role != "assistant" or not isinstance(turn.parts[at], Image):
            raise Refusal("Only a picture of an answer can be painted again.")
        options, seeds = self.shared.options(values), tuple(draw_seed() for _ in range(count))
        work = repaint_work(conversation, turn, at, options, seeds)
        before, after = turn.parts[:at], turn.parts[at + 1 :]
        task = Task(conversation.id, turn.parent, work, options, conversation.head, seeds, before, after, ideas=turn.ideas)
        return self.start_task(values, request, task)

    def repaint_rest(self, values: dict, request: gr.Request, conversation: Conversation, turn: Turn, at: int) -> Updates:
        """Repaint the picture at `at` of an answer and those after it, as one job."""
        places = tuple(place for place, part in enumerate(turn.parts) if place >= at and isinstance(part, Image))
        if turn.role != "assistant" or at not in places:
            raise Refusal("Only a picture of an answer can be painted again.")
        return self._repaint_places(values, request, conversation, turn, places)

    def restyle(self, values: dict, request: gr.Request, conversation: Conversation, turn: Turn, style: list[Image]) -> Updates:
        """Repaint all pictures of an answer in the style of some pictures, as one version. Its words stay."""
        places = tuple(place for place, part in enumerate(turn.parts) if isinstance(part, Image))
        if turn.role != "assistant" or turn.parent is None or not places:
            raise Refusal("Only a picture of an answer can be painted again.")
        asked = conversation.with_turn(ask_in_style(conversation.turns[turn.parent], style)).at(conversation.head)
        return self._repaint_places(values, request, asked, turn, places, whole=True)

    def _repaint_places(
        self, values: dict, request: gr.Request, conversation: Conversation, turn: Turn, places: tuple[int, ...], whole: bool = False
    ) -> Updates:
        """Start to repaint the pictures at `places` of an answer, as one job; `whole`, so that they make one version."""
        options, seeds = self.shared.options(values), tuple(draw_seed() for _ in places)
        work = repaint_rest_work(conversation, turn, places, options, seeds)
        parts, rest = turn.parts[: places[0]], turn.parts[places[0] + 1 :]
        task = Task(conversation.id, turn.parent, work, options, conversation.head, seeds, parts, rest, places, whole, turn.ideas)
        return self.start_task(values, request, task)

    def _repaint_with_words(self, values: dict, request: gr.Request, words: str) -> Updates:
        if not words:
            raise Refusal("Type the words that the picture is painted from.")
        editing = values[self.view].editing
        conversation, turn = self.find_turn(values, editing.turn)
        at, before = editing.at, turn.parts[: editing.at]
        if before and isinstance(before[-1], Text):
            said = before[-1].text
            before = (*before[:-1], Text(said[: len(said) - len(said.lstrip())] + words))
        else:
            at, before = at + 1, (*before, Text(words))
        edited = replace(turn, parts=(*before, *turn.parts[editing.at :]))
        return self.repaint(values, request, conversation, edited, at) | {self.box: self.busy_box(EMPTY_BOX)}

    def _apply_correction(self, values: dict, conversation: Conversation, turn: Turn, words: str) -> Updates:
        """Save the corrected answer as a branch."""
        self.save_answer(conversation, turn, apply_correction(turn, words))
        return self.render(values, View(conversation.id), self.loading.words) | {self.box: self.free_box(EMPTY_BOX)}

    def save_answer(self, conversation: Conversation, turn: Turn, parts: tuple[Piece, ...]) -> Conversation:
        """Save an answer with other parts beside the old one; the same parts change nothing."""
        if parts == turn.parts:
            return conversation
        return self.store.save(conversation.with_turn(Turn(turn.role, parts, parent=turn.parent, ideas=turn.ideas)))

    def find_turn(self, values: dict, id: str) -> tuple[Conversation, Turn]:
        """Raises: KeyError, Refusal."""
        self.check_free(values)
        conversation = self.store.open(values[self.view].id)
        return conversation, conversation.turns[id]

    def check_free(self, values: dict) -> None:
        if self.jobs.find(values[self.view].id):
            raise Refusal("The answer is still being made; wait for it, or press Stop first.")

    def _check_open(self) -> None:
        if self.loading.error:
            raise Refusal(self.loading.error)

    def start_task(self, values: dict, request: gr.Request, task: Task) -> Updates:
        self._check_open()
        session = session_of(request)
        self.expected_jobs[session] = job = self.jobs.start(task)
        self.places[session] = task.chat
        return self.render(values, View(task.chat), job.status, "busy") | {self.box: self.busy_box()}

    def busy_box(self, value: dict | None = None) -> gr.MultimodalTextbox:
        look = _look_of_box(True)
        return gr.MultimodalTextbox(**look) if value is None else gr.MultimodalTextbox(value=value, **look)

    def free_box(self, value: dict) -> gr.MultimodalTextbox:
        return gr.MultimodalTextbox(value=value, **_look_of_box(False))

    def go_on(self, id: str) -> None:
        """Go on with the list of waiting requests. Raises Refusal, ValueError: the next one cannot be sent."""
        self._check_open()
        self.jobs.go_on(id)

    def stop(self, view: View) -> None:
        if job := self.jobs.find(view.id):
            job.stop.set()

    def start_over(self, values: dict, request: gr.Request) -> Updates:
        return self.enter_view(values, request, View(), self.loading.words)  # the browser has emptied the box

    @catch_refusal
    def import_zip(self, values: dict, request: gr.Request) -> Updates:
        conversation = self.store.unpack(Path(values[self.bring]))
        return self.enter_view(values, request, View(conversation.id), "The conversation is here.")

    def leave(self, request: gr.Request) -> None:
        for each in (self.places, self.followers, self.expected_jobs):
            each.pop(session_of(request), None)
        self.finished.discard(session_of(request))
