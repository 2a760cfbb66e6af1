"""Answers under way. Each has its own thread and does not depend on a browser: closing or reloading the page does not change it."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from duogen.conversation import Conversation, Piece, Turn
from duogen.events import Done, Event, Events, Failed, ImageDone, ImageStarted, Stats, TextDelta
from duogen.faults import describe_fault
from duogen.files import explain_disk
from duogen.library.conversations import ConversationStore
from duogen.library.picture_file import PictureInfo
from duogen.library.pictures import Gallery
from duogen.library.references import ReferenceStore
from duogen.options import Options, fit_defaults
from ui.chat.history import BROKEN_OFF, Answer, Message, stats_line
from ui.chat.motion import SAID, MotionTask, animate_turn, describe_source, keep_motion
from ui.chat.waiting_list import Request, WaitingLists
from ui.parts.loading import Loading
from ui.parts.pictures import PictureFolder
from ui.parts.queue import waiting_words
from ui.parts.shared import Refusal, open_upload

if TYPE_CHECKING:
    from duogen.answerer import Answerer

SAVE_SECONDS = 2.0

Work = Callable[["Answerer", threading.Event], Events]


@dataclass(frozen=True)
class Task:
    """An answer to be made.

    Attributes:
        chat: the conversation's id.
        at: the turn that the answer follows.
        work: yields the events; the head of each `Done` is an answer.
        options: for the note of the answer, with a fixed seed.
        seeds: the seed of each answer, where several are made.
        back: the head of the conversation if no answer comes.
        parts: the parts of the answer that exist already.
        rest: the parts after the part that is made.
        places: the places of the pictures that are painted again one after the other, each in the answer that the one before it gave.
        whole: whether an answer takes the place of the one before it, so that only the last one stays.
        ideas: whether the answer that exists in part is ideas.
        motion: an animation of a picture that is there, instead of an answer; `at` is then the end of the branch.
    """

    chat: str
    at: str | None
    work: Work
    options: Options
    back: str | None
    seeds: tuple[int, ...] = ()
    parts: tuple[Piece, ...] = ()
    rest: tuple[Piece, ...] = ()
    places: tuple[int, ...] = ()
    whole: bool = False
    ideas: bool = False
    motion: MotionTask | None = None


@dataclass
class Job:
    """A running task; `changed` grows with every change that the page shows.

    Attributes:
        held: whether the list of waiting requests does not go on when the job ends.
    """

    task: Task
    answer: Answer
    stop: threading.Event = field(default_factory=threading.Event)
    status: str = "Waiting for its turn ..."
    changed: int = 0
    done: bool = False
    bad: bool = False
    kept: int = 0
    held: bool = False
    notice: str = ""  # what is said at the end of an animation
    partial: str = field(default_factory=lambda: uuid.uuid4().hex)
    replaced: str = ""  # the answer that the next one takes the place of
    saved_at: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def set_status(self, words: str) -> None:
        self.status = words
        self.changed += 1

    def options(self) -> Options:
        """The options of the current answer."""
        seeds = self.task.seeds
        return replace(self.task.options, seed=seeds[min(self.kept, len(seeds) - 1)]) if seeds else self.task.options

    def messages(self) -> list[Message]:
        """The answer so far; none where a picture is animated."""
        with self.lock:
            return [] if self.task.motion else [self.answer.message()]


class Jobs:
    """All answers under way, at most one for a conversation."""

    def __init__(
        self,
        loading: Loading,
        store: ConversationStore,
        pictures: PictureFolder,
        previews: PictureFolder,
        gallery: Gallery,
        references: ReferenceStore,
    ) -> None:
        self.loading, self.store, self.pictures, self.previews, self.gallery = loading, store, pictures, previews, gallery
        self.references = references
        self.waiting = WaitingLists(store)
        self._running: dict[str, Job] = {}
        self._lock = threading.Lock()

    def find(self, chat: str | None) -> Job | None:
        return self._running.get(chat) if chat else None

    def running_chats(self) -> set[str]:
        return set(self._running)

    def start(self, task: Task) -> Job:
        """Start a task. A list that waits goes on waiting after it. Raises ValueError: an answer of this conversation is under way."""
        with self._lock:
            if task.chat in self._running:
                raise ValueError("The answer is still being made; wait for it, or press Stop first.")
            return self._start_job(task, held=bool(self.waiting.read(task.chat)))

    def enqueue(self, chat: str | None, request: Request) -> bool:
        """Put a request on the list, to be sent after the answer; `False` if no answer is under way. Raises Refusal: the list is full."""
        with self._lock:
            job = self.find(chat)
            if job is None:
                return False
            self.waiting.add(job.task.chat, request)
            job.changed += 1
            return True

    def go_on(self, chat: str) -> None:
        """Send the waiting requests one after the other, the first at once if no answer is under way.

        Raises:
            ValueError: it cannot be sent.
        """
        with self._lock:
            if job := self.find(chat):
                job.held = False
                job.changed += 1
            elif task := self._take_request(chat):
                self._start_job(task)
            elif self.waiting.read(chat):
                raise ValueError("The next request cannot be sent; edit it, or take it off the list.")

    def _start_job(self, task: Task, held: bool = False) -> Job:
        job = self._running[task.chat] = Job(task, self._new_answer(task), held=held)
        threading.Thread(target=self._run, args=(job,), name="answer", daemon=True).start()
        return job

    def _new_answer(self, task: Task) -> Answer:
        return Answer(self.pictures, self.previews, task.parts, task.rest, task.ideas)

    def _next_answer(self, job: Job, made: Turn) -> Answer:
        """The answer that is made after `made`."""
        if not job.task.places:
            return self._new_answer(job.task)
        at = job.task.places[job.kept] if job.kept < len(job.task.places) else len(made.parts)
        return Answer(self.pictures, self.previews, made.parts[:at], made.parts[at + 1 :], made.ideas)

    def _run(self, job: Job) -> None:
        early = not self.loading.finished.is_set()
        try:
            alone = job.task.motion is not None  # the pair may leave the memory for it
            with self.loading.queue.wait_turn(lambda before: job.set_status(waiting_words(before)), job.stop, alone=alone) as mine:
                while mine and not job.stop.is_set() and not self.loading.finished.wait(0.3):
                    job.set_status(f"{self.loading.words} The answer begins as soon as that is done.")
                if mine and not job.stop.is_set():
                    job.task = self._fit_task(job.task) if early else job.task
                    self._animate(job, job.task.motion) if job.task.motion else self._work(job)
            self._finish(job)
        except Exception as error:  # the chat must go on after whatever happened
            job.bad, job.status = True, explain_disk(error) or f"The answer failed ({describe_fault(error)}); you can ask again."
            with contextlib.suppress(ValueError, OSError):  # the conversation is gone, or the disk is full
                self._finish(job)
        finally:
            self._end(job)

    def _fit_task(self, task: Task) -> Task:
        """A task that was given before the pair was open, with the pair's own settings where none were chosen."""
        if task.seeds or task.parts or task.motion:  # it paints again what is there, with the settings of the drawer
            return task
        asked = self.store.open(task.chat).at(task.at)
        return replace(answer_task(asked, fit_defaults(task.options, self.loading.about)), back=task.back)

    def _end(self, job: Job) -> None:
        """Send the next waiting request, before anybody can ask anything else. After Stop or an error the list waits.

        Its job takes the place of this one at once: whoever looks without the lock always finds one of them.
        """
        with self._lock:
            task = None
            try:
                task = None if job.held or job.bad or job.stop.is_set() else self._take_request(job.task.chat)
            finally:
                if task is None:
                    del self._running[job.task.chat]
            if task:
                self._start_job(task)
        job.done = True
        job.changed += 1

    def _take_request(self, chat: str) -> Task | None:
        """Say the next waiting request and take it off the list; `None` if there is none, or it cannot be said: then it stays."""
        with self.waiting.lock, contextlib.suppress(ValueError, OSError, Refusal):  # a picture is damaged, or the disk is full
            request = next(iter(self.waiting.read(chat)), None)
            if request is None:
                return None
            brought = (replace(open_upload(Path(file)), role=request.roles.get(file, "")) for file in request.files)
            said = [*brought, request.words]
            asked = self.store.change(chat, lambda now: self.references.attach(now.say("user", *said)))
            self.waiting.remove(chat, request.id)
            return answer_task(asked, fit_defaults(request.options, self.loading.about) if request.early else request.options)
        return None

    def _work(self, job: Job) -> None:
        engine = self.loading.engine
        if engine is None:
            job.bad, job.status = True, self.loading.error
            return
        job.set_status(job.answer.status)
        with contextlib.closing(job.task.work(engine, job.stop)) as events:
            for event in events:
                self._handle_event(job, event)

    def _animate(self, job: Job, task: MotionTask) -> None:
        """Make an animation; a stop or an error leaves everything as it was."""
        from duogen.motion import MotionDone, MotionNotice, MotionStep

        job.set_status("Loading the video model ...")
        turn = self.store.open(job.task.chat).turns[task.turn]
        about, told = describe_source(job.task.chat, turn, task), ""
        try:
            with contextlib.closing(animate_turn(self.loading, task, turn, about, job.stop)) as events:
                for event in events:
                    if isinstance(event, MotionStep):
                        job.set_status(f"Animating the picture, step {event.step} of {event.steps} ...")
                    elif isinstance(event, MotionNotice):
                        told = event.message
                    elif isinstance(event, MotionDone) and not job.stop.is_set():
                        keep_motion(self.store, self.gallery, job.task.chat, task, event.data)
                        job.kept, job.notice = 1, told or SAID
        except ValueError as error:
            job.bad, job.status = True, str(error)

    def _handle_event(self, job: Job, event: Event) -> None:
        if isinstance(event, Done):
            turn = event.conversation.path()[-1]
            if turn.parts:
                self._keep(job, turn, stats_line(event.stats, job.options().seed, job.answer.notices), event.versions)
            job.answer = self._next_answer(job, turn)
            over = job.kept >= len(job.task.seeds)
            job.set_status("Stopped." if event.stats.stopped == "user" else self.loading.words if over else job.answer.status)
        elif isinstance(event, Failed):
            head = event.conversation.head
            if head is not None and head != job.task.at:
                self._keep(job, event.conversation.turns[head], BROKEN_OFF)
            job.bad, job.status = True, event.message
        else:
            with job.lock:
                job.answer.take(event)
            self._save(job, event)
            job.set_status(job.answer.status)

    def _save(self, job: Job, event: Event) -> None:
        """Save the finished parts, so that they survive the end of this process."""
        due = isinstance(event, TextDelta) and time.monotonic() - job.saved_at > SAVE_SECONDS
        parts = job.answer.finished_parts()
        if job.task.seeds or not parts or not (due or isinstance(event, ImageStarted | ImageDone)):
            return
        task, turn = job.task, Turn("assistant", parts, job.partial, job.task.at, job.answer.ideas)
        if job.partial not in self.store.open(task.chat).turns:
            self._remember(job, job.partial, BROKEN_OFF)
        self.store.change(task.chat, lambda now: now.with_turn(turn))
        job.saved_at = time.monotonic()

    def _keep(self, job: Job, turn: Turn, line: str, versions: tuple[Turn, ...] = ()) -> None:
        """Save an answer. `versions` are the same answer with another picture, and become branches beside it."""
        turns = (*versions, turn)
        for each in turns:
            self._remember(job, each.id, line, rejected=each is not turn)
        dropped = (job.partial, job.replaced)
        kept = self.store.change(
            job.task.chat, lambda now: functools.reduce(Conversation.with_turn, turns, functools.reduce(_drop_turn, dropped, now))
        )
        job.kept += 1
        job.replaced = turn.id if job.task.whole else ""
        asked = kept.turns[turn.parent].text() if turn.parent in kept.turns else ""
        options, model = job.options(), self.loading.about["title"]
        for image in {id(image): image for each in turns for image in each.images()}.values():
            known = asdict(options)
            about = PictureInfo(asked, image.alt, True, options.seed, model, known, job.task.chat, turn.id, origin=image.origin or "")
            self.gallery.add(image.picture, about)

    def _remember(self, job: Job, turn: str, line: str, rejected: bool = False) -> None:
        options = job.options()
        about = {"line": line, "seed": options.seed, "options": asdict(options), **({"rejected": True} if rejected else {})}
        self.store.save_note(job.task.chat, turn, about | ({"thoughts": job.answer.thoughts} if job.answer.thoughts else {}))

    def _finish(self, job: Job) -> None:
        """Set the last status, and the head of the conversation if no answer came."""
        if job.task.motion:
            job.status = job.status if job.bad else job.notice or "Stopped."
            return
        if job.stop.is_set() and not job.bad:
            job.status = "Stopped."
        elif not job.bad and not job.kept:
            job.status = self.loading.words
        if not job.kept and job.partial not in self.store.open(job.task.chat).turns:
            self.store.change(job.task.chat, lambda now: now.at(job.task.back if job.task.back in now.turns else job.task.at), quiet=True)


def _drop_turn(conversation: Conversation, turn: str) -> Conversation:
    return conversation.without(turn) if turn in conversation.turns else conversation


def answer_task(asked: Conversation, options: Options) -> Task:
    """The task of answering the question at the head of a conversation."""
    return Task(asked.id, asked.head, lambda engine, stop: engine.answer(asked, options, stop), options, asked.head)


def motion_task(conversation: Conversation, motion: MotionTask, options: Options) -> Task:
    """The task of animating a picture of the branch that is shown."""
    return Task(conversation.id, conversation.head, _say_nothing, options, conversation.head, motion=motion)


def _say_nothing(engine: Answerer, stop: threading.Event) -> Events:
    """The work of an answer that is not made."""
    yield from ()


def repaint_work(conversation: Conversation, turn: Turn, at: int, options: Options, seeds: tuple[int, ...]) -> Work:
    """The work that repaints the picture at `at` of an answer, once for each seed. The rest of the answer stays.

    `turn` is the answer, with the words to paint.
    """
    before = Turn("assistant", turn.before(at), parent=turn.parent, ideas=turn.ideas)
    old = conversation.turns.get(turn.id)
    same = old is not None and old.before(at) == turn.before(at)  # other words want other drafts
    drafts = tuple(each.alt for each in turn.image_at(at).drafts) if same else ()

    def work(engine: Answerer, stop: threading.Event) -> Events:
        for seed in seeds:
            began, image, others = time.monotonic(), None, ()
            for event in engine.stream_image(conversation.with_turn(before), replace(options, seed=seed), stop, drafts=drafts):
                yield event
                if isinstance(event, ImageDone):
                    image, others = event.image, event.others
            if image is None:
                return
            *versions, new = (turn.with_image(at, each) for each in (*others, image))
            stats = Stats(0, 0, 0, 1, 0.0, time.monotonic() - began, "end")
            yield Done(functools.reduce(Conversation.with_turn, (*versions, new), conversation), stats, tuple(versions))

    return work


def repaint_rest_work(conversation: Conversation, turn: Turn, places: tuple[int, ...], options: Options, seeds: tuple[int, ...]) -> Work:
    """The work that repaints the pictures at `places` of an answer, in order, each after the new ones. Every one gives a version.

    A stop or a failure leaves the versions before it.
    """

    def work(engine: Answerer, stop: threading.Event) -> Events:
        said, at = conversation, turn
        for place, seed in zip(places, seeds, strict=True):
            done = None
            for event in repaint_work(said, at, place, options, (seed,))(engine, stop):
                yield event
                done = event if isinstance(event, Done) else None
            if done is None:
                return
            said = done.conversation
            at = said.path()[-1]

    return work
