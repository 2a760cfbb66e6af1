"""Votes between two answers, stored on disk, and the Elo table computed from them.

The file of votes only grows, one JSON object a line. The table is computed from it. The answers of the newest votes are kept beside it,
each pair as a conversation in `voted/`: its head is the request, and the two turns after it are the answers a and b.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from duogen.conversation import Conversation, Turn, save_conversation
from duogen.files import append_line, make_folder
from duogen.options import PRESETS
from duogen.paths import data_home

VOTES, VOTED = "votes.jsonl", "voted"
KEPT_ANSWERS = 400  # votes whose answers stay
FIRST_RATING, STEP, SCALE = 1000.0, 32.0, 400.0
POINTS = {"a": 1.0, "b": 0.0, "tie": 0.5, "bad": 0.5}  # of a against b; two bad answers are a tie


@dataclass(frozen=True)
class Contestant:
    """Who answers.

    Attributes:
        title: of the pair, for people.
        pair: id, repository or folder.
        mllm: the MLLM of a painter that cannot talk, "" where the pair has its own.
        adapters: folders of adapters and the weight of each.
        preset: one of `duogen.options.PRESETS`, on top of the pair's own best settings.
    """

    title: str
    pair: str
    mllm: str = ""
    adapters: tuple[tuple[str, float], ...] = ()
    preset: str = "balanced"

    def key(self) -> str:
        """A string that is equal for the same pair with the same adapters and settings."""
        return json.dumps([self.pair, self.mllm, self.adapters, self.preset], ensure_ascii=False)

    @staticmethod
    def from_json(raw: dict[str, Any]) -> Contestant:
        """From JSON. Raises KeyError, TypeError, ValueError."""
        named: dict[str, Any] = {"mllm" if name == "brain" else name: value for name, value in {**raw}.items()}  # older files say "brain"
        named["adapters"] = tuple((str(folder), float(weight)) for folder, weight in raw["adapters"])
        found = Contestant(**named)
        if found.preset not in PRESETS or not all(isinstance(each, str) for each in (found.title, found.pair, found.mllm)):
            raise ValueError("This is no contestant.")
        return found


@dataclass(frozen=True)
class Vote:
    """What a person said of two answers to one request.

    Attributes:
        vote: "a", "b", "tie" or "bad" (both are).
        at: seconds since 1970.
        answers: the folder in `voted/` with both answers, "" where they were not kept.
    """

    words: str
    seed: int
    a: Contestant
    b: Contestant
    vote: str
    at: float = field(default_factory=time.time)
    answers: str = ""

    @staticmethod
    def from_json(raw: dict[str, Any]) -> Vote:
        """From JSON. Raises KeyError, TypeError, ValueError."""
        if raw["vote"] not in POINTS or not isinstance(raw.get("answers", ""), str):
            raise ValueError("This is no vote.")
        named: dict[str, Any] = {**raw, "a": Contestant.from_json(raw["a"]), "b": Contestant.from_json(raw["b"])}
        return Vote(**named)


@dataclass(frozen=True)
class Standing:
    """A row of the table: a contestant and its results. `bad` counts the ties in which both answers were bad."""

    contestant: Contestant
    rating: float = FIRST_RATING
    votes: int = 0
    won: int = 0
    tied: int = 0
    lost: int = 0
    bad: int = 0

    def with_vote(self, points: float, expected: float, bad: bool) -> Standing:
        """The standing after one more vote, which gave it 1, 0.5 or 0 points."""
        rating = self.rating + STEP * (points - expected)
        won, tied, lost = points == 1, points == 0.5, points == 0
        return replace(
            self, rating=rating, votes=self.votes + 1, won=self.won + won, tied=self.tied + tied, lost=self.lost + lost, bad=self.bad + bad
        )


def add_vote(file: Path, vote: Vote) -> None:
    """Add a vote to the file."""
    make_folder(file.parent)
    append_line(file, asdict(vote))


def add_mark(file: Path, asked: list[Turn], better: Turn, worse: Turn, who: Contestant) -> None:
    """Add a vote between two versions of an answer of `who`. `asked` are the turns before it, the last one the request."""
    request = asked[-1]
    vote = Vote(request.text(), 0, who, who, "a", answers=uuid.uuid4().hex)
    add_vote(file, vote)
    both = Conversation({turn.id: turn for turn in (*asked, better, worse)}, request.id)
    save_conversation(both, file.parent / VOTED / vote.answers)
    delete_old_answers(file)


def delete_old_answers(file: Path) -> None:
    """Delete the answers of all but the newest votes."""
    kept = [vote.answers for vote in read_votes(file)[0] if vote.answers][-KEPT_ANSWERS:]
    for folder in (file.parent / VOTED).iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def arena_home() -> Path:
    """The folder of the votes and their answers."""
    return data_home() / "arena"


def read_votes(file: Path) -> tuple[list[Vote], list[int]]:
    """All votes in the file, oldest first, and the numbers (from 1) of the lines that cannot be read."""
    if not file.exists():
        return [], []
    found, broken = [], []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            found.append(Vote.from_json(json.loads(line)))
        except (KeyError, TypeError, ValueError):
            broken.append(number)
    return found, broken


def rating_table(cast_votes: Iterable[Vote]) -> list[Standing]:
    """Elo ratings over the votes in order, the best first. A pair is shown under the title of its last vote.

    A vote between two answers of one contestant, as a mark in the chat is, rates nobody.
    """
    rows: dict[str, Standing] = {}
    for each in cast_votes:
        if each.a.key() == each.b.key():
            continue
        a, b = (replace(rows.get(who.key(), Standing(who)), contestant=who) for who in (each.a, each.b))
        points, expected = POINTS[each.vote], 1 / (1 + 10 ** ((b.rating - a.rating) / SCALE))
        bad = each.vote == "bad"
        rows[each.a.key()], rows[each.b.key()] = a.with_vote(points, expected, bad), b.with_vote(1 - points, 1 - expected, bad)
    return sorted(rows.values(), key=lambda row: -row.rating)
