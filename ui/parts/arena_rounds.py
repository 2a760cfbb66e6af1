"""The rounds of the Arena: two contestants answer one request, one after the other. Their names stay hidden until the vote.

A round does not depend on a browser: closing or reloading the page does not change it. A round that waits for its vote is saved on disk and
survives a restart: a folder with what `save_conversation` writes, both answers as branches, and `round.json`. With the vote the folder
moves to the voted answers. Other rounds end with the server. Votes stay.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import threading
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from duogen.conversation import Conversation, Turn, load_conversation, save_conversation
from duogen.evaluate.arena import VOTED, Contestant, Vote, add_vote, delete_old_answers, read_votes
from duogen.events import Done, Event, Failed, ImageStarted, TextDelta
from duogen.faults import describe_fault
from duogen.files import explain_disk, make_folder, move, place_folder
from duogen.library.conversations import ID
from duogen.library.picture_file import PictureInfo
from duogen.library.pictures import Gallery
from duogen.options import ImageOptions, Options, TextOptions, preset_options
from ui.chat.history import Answer, stats_line
from ui.parts.loading import Lend, Loading
from ui.parts.pictures import PictureFolder
from ui.parts.queue import waiting_words

KEPT, KEPT_WAITING = 8, 32
AWAY = "The Arena lets other pairs answer; the chat goes on when its round is over."
WHICH = "Which answer is better?"
NOT_COUNTED = "Stopped; this round does not count."


@dataclass
class Side:
    """One answer. `turn`, `options` and `line` are set when it is complete."""

    contestant: Contestant
    answer: Answer
    turn: Turn | None = None
    options: Options | None = None
    line: str = ""

    def finished(self) -> tuple[Turn, Options]:
        """The answer and its options, when it is complete."""
        assert self.turn and self.options, "this answer is not complete"
        return self.turn, self.options


@dataclass
class Round:
    """`changed` grows with every change that the page shows; `phase` is "running", "ready" (for a vote), "voted" or "over"."""

    asked: Conversation
    seed: int
    sides: dict[str, Side]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    stop: threading.Event = field(default_factory=threading.Event)
    status: str = "Waiting for its turn ..."
    phase: str = "running"
    bad: bool = False
    vote: str = ""
    changed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def set_status(self, words: str) -> None:
        self.status = words
        self.changed += 1

    def request(self) -> Turn:
        return self.asked.path()[-1]


class ArenaRounds:
    """The newest rounds of this server, the rounds that wait for a vote, and the file of all votes."""

    def __init__(self, loading: Loading, gallery: Gallery, folders: tuple[PictureFolder, PictureFolder], file: Path) -> None:
        """`folders` are of pictures and of previews; votes go into `file`, and rounds that wait for a vote are saved beside it."""
        self.loading, self.gallery, self.folders, self.file = loading, gallery, folders, file
        self.waiting = file.parent / "waiting"
        self._known: dict[str, Round] = {}

    def find(self, id: str) -> Round | None:
        """A round of this server, or one from an earlier start that still waits for its vote; `None` if there is none."""
        if id not in self._known and ID.fullmatch(id) and (self.waiting / id).is_dir():
            with contextlib.suppress(ValueError, KeyError, TypeError, OSError):  # damaged: gone, and the next round is asked for
                self._known[id] = self._load(id)
        return self._known.get(id)

    def start(self, asked: Conversation, contestants: Sequence[Contestant]) -> Round:
        """Draw two of the contestants and let them answer. The head of `asked` is the request."""
        drawn = random.SystemRandom().sample(list(contestants), 2)
        sides = {name: Side(who, Answer(*self.folders)) for name, who in zip("ab", drawn, strict=True)}
        made = Round(asked, random.SystemRandom().randrange(1_000_000), sides)
        self._known[made.id] = made
        for old in [each for each in list(self._known.values()) if each.phase != "running"][:-KEPT]:
            del self._known[old.id]
        threading.Thread(target=self._run, args=(made,), name="arena", daemon=True).start()
        return made

    def vote(self, made: Round, vote: str) -> None:
        """Raises ValueError: there is nothing to vote on, or not any more."""
        with made.lock:
            if made.phase != "ready":
                raise ValueError("There are no two answers to vote on; ask something first.")
            a, b = (made.sides[name].contestant for name in "ab")
            add_vote(self.file, Vote(made.request().text(), made.seed, a, b, vote, answers=made.id))
            made.phase, made.vote = "voted", vote
        self._keep_voted(made)

    def _keep_voted(self, made: Round) -> None:
        """Put the pictures of a round whose vote is counted into the Library; then it does not wait any more."""
        made.set_status("Your vote is counted.")
        for side in made.sides.values():  # only now, because the library names the pair
            turn, options = side.finished()
            for image in turn.images():
                words, title, known = made.request().text(), side.contestant.title, asdict(options)
                about = PictureInfo(words, image.alt, True, made.seed, title, known, origin=image.origin or "")
                self.gallery.add(image.picture, about)
        with contextlib.suppress(OSError):  # it may not be on the disk
            make_folder(self.file.parent / VOTED)
            move(self.waiting / made.id, self.file.parent / VOTED / made.id)
            delete_old_answers(self.file)

    def _run(self, made: Round) -> None:
        failure = ""
        try:
            wait = lambda before: made.set_status(waiting_words(before))  # noqa: E731
            with self.loading.queue.wait_turn(wait, made.stop, alone=True) as mine:
                while mine and not made.stop.is_set() and not self.loading.finished.wait(0.3):
                    made.set_status(self.loading.words)
                if mine and not made.stop.is_set():
                    failure = self._answer_both(made)
                    made.bad = bool(failure) and not made.stop.is_set()
        except Exception as error:  # the page must say so instead of waiting for ever
            made.bad, failure = True, explain_disk(error) or f"The round failed ({describe_fault(error)}); ask again."
        if made.stop.is_set() or made.bad:
            made.phase = "over"
            made.set_status(failure if made.bad else NOT_COUNTED)
        else:
            with contextlib.suppress(OSError):  # a full disk: it can be voted on as long as the server runs
                self._save(made)
            made.phase = "ready"
            made.set_status(WHICH)

    def _save(self, made: Round) -> None:
        """Save a round on disk, completely or not at all, and delete the oldest rounds that nobody voted on."""
        part = self.waiting / f".{made.id}.{os.getpid()}.part"
        both, sides = made.asked, {}
        for name, side in made.sides.items():
            turn, options = side.finished()
            both = both.with_turn(turn)
            sides[name] = {"contestant": asdict(side.contestant), "turn": turn.id, "options": asdict(options), "line": side.line}
        try:
            save_conversation(both.at(made.asked.head), part)
            (part / "round.json").write_text(json.dumps({"seed": made.seed, "sides": sides}, ensure_ascii=False), encoding="utf-8")
            place_folder(part, self.waiting / made.id)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        for old in sorted(self.waiting.iterdir(), key=lambda each: -each.stat().st_mtime)[KEPT_WAITING:]:
            shutil.rmtree(old, ignore_errors=True)

    def _load(self, id: str) -> Round:
        """Raises: ValueError, KeyError, TypeError, OSError: the saved round is damaged."""
        asked, raw = load_conversation(self.waiting / id), json.loads((self.waiting / id / "round.json").read_text(encoding="utf-8"))
        sides = {}
        for name in "ab":
            said = raw["sides"][name]
            turn, options = asked.turns[said["turn"]], said["options"]
            chosen = Options(options["seed"], TextOptions(**options["text"]), ImageOptions(**options["image"]))
            sides[name] = Side(Contestant.from_json(said["contestant"]), Answer(*self.folders, turn.parts), turn, chosen, str(said["line"]))
        made = Round(asked, int(raw["seed"]), sides, id, status=WHICH, phase="ready")
        said = (made.seed, made.request().text())
        votes = [each.vote for each in read_votes(self.file)[0] if each.answers in ("", id) and (each.seed, each.words) == said]
        if votes:  # the server ended between the vote and the rest
            made.phase, made.vote = "voted", votes[-1]
            self._keep_voted(made)
        return made

    def _answer_both(self, made: Round) -> str:
        """Make both answers, one after the other. Returns why one of them failed, "" if none did."""
        with self.loading.lend_engines(AWAY) as lend:
            for name, side in made.sides.items():
                made.set_status(f"{name.upper()} is getting ready ...")
                if failure := self._answer(made, name, side, lend):
                    return f"{name.upper()} could not answer: {failure}"
                if made.stop.is_set():
                    break
        return ""

    def _answer(self, made: Round, name: str, side: Side, lend: Lend) -> str:
        """Make one answer; returns why it failed or "". An exception must not leave here: it would keep the engine alive."""
        who = side.contestant
        try:
            engine = lend(who.pair, who.mllm, {Path(folder): weight for folder, weight in who.adapters})
            options = preset_options(who.preset, engine.about, made.seed)
            side.options = replace(options, image=replace(options.image, preview_every=2))  # a preset could be recognised by it
            with contextlib.closing(engine.answer(made.asked, side.options, made.stop)) as events:
                for event in events:
                    if isinstance(event, Failed):
                        return event.message
                    self._handle_event(made, name, side, event)
        except ValueError as error:
            return str(error)
        except Exception as error:
            return explain_disk(error) or f"The answer failed ({describe_fault(error)}); you can ask again."
        return ""

    def _handle_event(self, made: Round, name: str, side: Side, event: Event) -> None:
        if isinstance(event, Done):
            side.turn = event.conversation.path()[-1]
            side.line = stats_line(event.stats, made.seed)
            return
        with made.lock:
            side.answer.take(event)
        if isinstance(event, TextDelta):
            made.set_status(f"{name.upper()} is writing ...")
        elif isinstance(event, ImageStarted):  # the number of steps would tell who it is
            made.set_status(f"{name.upper()} is painting picture {event.index + 1} ...")
        else:
            made.changed += 1
