"""Answers under way. Each has a thread of its own and belongs to no browser: one that closes, or comes back, changes nothing."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from duogen.conversation import Conversation, Image, Piece, Turn
from duogen.events import Done, Event, Failed, ImageDone, ImageStarted, Stats, TextDelta
from duogen.library.conversations import Store
from duogen.library.picture_file import About
from duogen.library.pictures import Gallery
from duogen.options import Options
from ui.chat.history import BROKEN_OFF, Answer, Message, note, waiting_message
from ui.parts.loading import Loading
from ui.parts.pictures import PictureFolder
from ui.parts.queue import waiting

if TYPE_CHECKING:
    from duogen.engine import Engine

SAVE_SECONDS = 2.0

Work = Callable[["Engine", threading.Event], Iterator[Event]]


@dataclass(frozen=True)
class Task:
    """What is to be made.

    Attributes:
        chat: the conversation's id.
        at: the turn that the answer follows.
        work: gives the events; each `Done` holds an answer as its head.
        options: for the note of the answer; the seed is drawn already.
        seeds: where several answers are made, the seed of each.
        back: where the conversation stands if nothing comes of it.
        parts: what of the answer is there before it begins.
        rest: what of it stands after the part that is made.
    """

    chat: str
    at: str | None
    work: Work
    options: Options
    back: str | None
    seeds: tuple[int, ...] = ()
    parts: tuple[Piece, ...] = ()
    rest: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Waiting:
    """A question that is asked when the answer before it is done.

    Attributes:
        files: the pictures as they came, for the box to have them back.
    """

    words: str
    files: tuple[str, ...]
    pictures: tuple[Image, ...]
    options: Options


@dataclass
class Job:
    """A task on its way; `changed` counts up whenever there is something new to show.

    Attributes:
        waiting: what is asked when it is done, however it ends.
        closed: whether it is too late for that.
    """

    task: Task
    answer: Answer
    stop: threading.Event = field(default_factory=threading.Event)
    status: str = "Waiting for its turn ..."
    changed: int = 0
    done: bool = False
    bad: bool = False
    kept: int = 0
    waiting: Waiting | None = None
    closed: bool = False
    partial: str = field(default_factory=lambda: uuid.uuid4().hex)
    saved_at: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, words: str) -> None:
        self.status = words
        self.changed += 1

    def options(self) -> Options:
        """Those of the answer that is being made now."""
        seeds = self.task.seeds
        return replace(self.task.options, seed=seeds[min(self.kept, len(seeds) - 1)]) if seeds else self.task.options

    def close(self) -> Waiting | None:
        """What is to be asked now; nothing can wait any more."""
        with self.lock:
            self.closed = True
            return self.waiting

    def messages(self) -> list[Message]:
        """The answer so far, and what waits for its end."""
        with self.lock:
            said, question = [self.answer.message()], self.waiting
        if question:
            said.append(waiting_message(question.words, question.pictures, self.answer.pictures))
        return said


class Jobs:
    """All answers under way, at most one for a conversation."""

    def __init__(self, loading: Loading, store: Store, pictures: PictureFolder, previews: PictureFolder, gallery: Gallery) -> None:
        self.loading, self.store, self.pictures, self.previews, self.gallery = loading, store, pictures, previews, gallery
        self._running: dict[str, Job] = {}
        self._lock = threading.Lock()

    def of(self, chat: str | None) -> Job | None:
        return self._running.get(chat) if chat else None

    def running(self) -> set[str]:
        return set(self._running)

    def start(self, task: Task) -> Job:
        """Raises: ValueError: an answer of this conversation is under way."""
        with self._lock:
            if task.chat in self._running:
                raise ValueError("The answer is still being made; wait for it, or press Stop first.")
            return self._enter(task)

    def put_off(self, job: Job, question: Waiting) -> bool:
        """Have a question asked after an answer, and on disk until then; false where it is too late for that, or another one waits."""
        with job.lock:
            if job.closed or job.waiting:
                return False
            self.store.put_off(job.task.chat, {"text": question.words, "files": list(question.files)})
            job.waiting = question
            job.changed += 1
            return True

    def recall(self, job: Job) -> Waiting | None:
        """Take back what waits."""
        with job.lock:
            question, job.waiting = job.waiting, None
            job.changed += 1
            self.store.put_off(job.task.chat, None)
            return question

    def _enter(self, task: Task) -> Job:
        job = self._running[task.chat] = Job(task, self._answer(task))
        threading.Thread(target=self._run, args=(job,), name="answer", daemon=True).start()
        return job

    def _answer(self, task: Task) -> Answer:
        return Answer(self.pictures, self.previews, task.parts, task.rest)

    def _run(self, job: Job) -> None:
        try:
            with self.loading.line.place(lambda before: job.say(waiting(before)), job.stop) as mine:
                while mine and not job.stop.is_set() and not self.loading.finished.wait(0.3):
                    job.say(f"{self.loading.words} The answer begins as soon as that is done.")
                if mine and not job.stop.is_set():
                    self._work(job)
            self._settle(job)
        except Exception as error:  # the chat must go on after whatever happened
            traceback.print_exc()
            job.bad, job.status = True, f"The answer failed ({type(error).__name__}: {error}); you can ask again."
            with contextlib.suppress(ValueError):  # the conversation is gone
                self._settle(job)
        finally:
            self._end(job)

    def _end(self, job: Job) -> None:
        """Ask what waited for the end of this answer, if anything did; nobody else's question comes between."""
        task = None
        with contextlib.suppress(ValueError, OSError):  # the conversation is gone, or the disk is full
            if question := job.close():
                asked = self.store.change(job.task.chat, lambda now: now.say("user", *question.pictures, question.words))
                task = asking(asked, question.options)
                self.store.put_off(job.task.chat, None)
        with self._lock:
            del self._running[job.task.chat]
            if task:
                self._enter(task)
        job.done = True
        job.changed += 1

    def _work(self, job: Job) -> None:
        engine = self.loading.engine
        if engine is None:
            job.bad, job.status = True, self.loading.error
            return
        job.say(job.answer.status)
        with contextlib.closing(job.task.work(engine, job.stop)) as events:
            for event in events:
                self._take(job, event)

    def _take(self, job: Job, event: Event) -> None:
        if isinstance(event, Done):
            turn = event.conversation.turns[event.conversation.head]
            if turn.parts:
                self._keep(job, turn, note(event.stats, job.options().seed))
            job.answer = self._answer(job.task)
            job.status = "Stopped." if event.stats.stopped == "user" else self.loading.words
        elif isinstance(event, Failed):
            head = event.conversation.head
            if head is not None and head != job.task.at:
                self._keep(job, event.conversation.turns[head], BROKEN_OFF)
            job.bad, job.status = True, event.message
        else:
            with job.lock:
                job.answer.take(event)
            self._save(job, event)
            job.say(job.answer.status)

    def _save(self, job: Job, event: Event) -> None:
        """Keep the finished parts: whatever ends this process, they are there when the next one starts."""
        due = isinstance(event, TextDelta) and time.monotonic() - job.saved_at > SAVE_SECONDS
        parts = job.answer.finished()
        if job.task.seeds or not parts or not (due or isinstance(event, ImageStarted | ImageDone)):
            return
        task, turn = job.task, Turn("assistant", parts, job.partial, job.task.at)
        if job.partial not in self.store.open(task.chat).turns:
            self._remember(job, job.partial, BROKEN_OFF)
        self.store.change(task.chat, lambda now: now.with_turn(turn))
        job.saved_at = time.monotonic()

    def _keep(self, job: Job, turn: Turn, line: str) -> None:
        self._remember(job, turn.id, line)
        kept = self.store.change(job.task.chat, lambda now: _without(now, job.partial).with_turn(turn))
        job.kept += 1
        asked = kept.turns[turn.parent].text() if turn.parent in kept.turns else ""
        options, model = job.options(), self.loading.engine.about["title"]
        for image in turn.images():
            about = About(asked, image.alt, True, options.seed, model, asdict(options), job.task.chat, turn.id)
            self.gallery.add(image.picture, about)

    def _remember(self, job: Job, turn: str, line: str) -> None:
        options = job.options()
        about = {"line": line, "seed": options.seed, "options": asdict(options)}
        self.store.note(job.task.chat, turn, about | ({"thoughts": job.answer.thoughts} if job.answer.thoughts else {}))

    def _settle(self, job: Job) -> None:
        """Where the conversation stands when it is over."""
        if job.stop.is_set() and not job.bad:
            job.status = "Stopped."
        elif not job.bad and not job.kept:
            job.status = self.loading.words
        if not job.kept and job.partial not in self.store.open(job.task.chat).turns:
            self.store.change(job.task.chat, lambda now: now.at(job.task.back if job.task.back in now.turns else job.task.at), quiet=True)


def _without(conversation: Conversation, turn: str) -> Conversation:
    return conversation.without(turn) if turn in conversation.turns else conversation


def asking(asked: Conversation, options: Options) -> Task:
    """Answer the question at the head of a conversation."""
    return Task(asked.id, asked.head, lambda engine, stop: engine.answer(asked, options, stop), options, asked.head)


def repainting(conversation: Conversation, turn: Turn, at: int, options: Options, seeds: tuple[int, ...]) -> Work:
    """The work that paints the picture at `at` of an answer anew, once for each seed; all else of it stays.

    `turn` is the answer, with the words that are to be painted.
    """
    before = Turn("assistant", turn.parts[:at], parent=turn.parent)

    def work(engine: Engine, stop: threading.Event) -> Iterator[Event]:
        for seed in seeds:
            began, image = time.monotonic(), None
            for event in engine.painting(conversation.with_turn(before), replace(options, seed=seed), stop):
                yield event
                if isinstance(event, ImageDone):
                    image = event.image
            if image is None:
                return
            new = Turn("assistant", (*turn.parts[:at], image, *turn.parts[at + 1 :]), parent=turn.parent)
            stats = Stats(0, 0, 0, 1, 0.0, time.monotonic() - began, "end")
            yield Done(conversation.with_turn(new), stats)

    return work
