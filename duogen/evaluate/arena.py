"""Votes between two answers whose authors were hidden, kept on disk, and the Elo table that follows from them.

The votes are a file that only grows, one JSON object a line; the table is computed from it, so that nothing else needs to be kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from duogen.conversation import append_line
from duogen.options import PRESETS

FIRST_RATING, STEP, SCALE = 1000.0, 32.0, 400.0
POINTS = {"a": 1.0, "b": 0.0, "tie": 0.5, "bad": 0.5}  # of a against b; two bad answers are a tie


@dataclass(frozen=True)
class Contestant:
    """Who answers.

    Attributes:
        title: of the pair, for people.
        pair: id, repository or folder.
        brain: the MLLM of a painter that cannot talk, "" where the pair has its own.
        adapters: folders that it wears, and how strongly.
        preset: one of `duogen.options.PRESETS`, on top of the pair's own best settings.
    """

    title: str
    pair: str
    brain: str = ""
    adapters: tuple[tuple[str, float], ...] = ()
    preset: str = "balanced"

    def key(self) -> str:
        """The same for the same pair with the same adapters and settings."""
        return json.dumps([self.pair, self.brain, self.adapters, self.preset], ensure_ascii=False)

    @staticmethod
    def of(raw: dict[str, Any]) -> Contestant:
        """From JSON. Raises KeyError, TypeError, ValueError."""
        found = Contestant(**{**raw, "adapters": tuple((str(folder), float(weight)) for folder, weight in raw["adapters"])})
        if found.preset not in PRESETS or not all(isinstance(each, str) for each in (found.title, found.pair, found.brain)):
            raise ValueError("This is no contestant.")
        return found


@dataclass(frozen=True)
class Vote:
    """What a person said of two answers to one request.

    Attributes:
        vote: "a", "b", "tie" or "bad" (both are).
        at: seconds since 1970.
    """

    words: str
    seed: int
    a: Contestant
    b: Contestant
    vote: str
    at: float = field(default_factory=time.time)

    @staticmethod
    def of(raw: dict[str, Any]) -> Vote:
        """From JSON. Raises KeyError, TypeError, ValueError."""
        if raw["vote"] not in POINTS:
            raise ValueError("This is no vote.")
        return Vote(**{**raw, "a": Contestant.of(raw["a"]), "b": Contestant.of(raw["b"])})


@dataclass(frozen=True)
class Row:
    """A contestant in the table; `bad` are those of its ties in which both answers were bad."""

    contestant: Contestant
    rating: float = FIRST_RATING
    votes: int = 0
    won: int = 0
    tied: int = 0
    lost: int = 0
    bad: int = 0

    def after(self, points: float, expected: float, bad: bool) -> Row:
        """With one more vote, of which it got 1, 0.5 or 0 points."""
        rating = self.rating + STEP * (points - expected)
        won, tied, lost = points == 1, points == 0.5, points == 0
        return replace(
            self, rating=rating, votes=self.votes + 1, won=self.won + won, tied=self.tied + tied, lost=self.lost + lost, bad=self.bad + bad
        )


def cast(file: Path, vote: Vote) -> None:
    """Add a vote to the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    append_line(file, asdict(vote))


def votes(file: Path) -> tuple[list[Vote], list[int]]:
    """All votes in the file, oldest first, and the numbers of its lines, from 1, that cannot be read."""
    if not file.exists():
        return [], []
    found, broken = [], []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            found.append(Vote.of(json.loads(line)))
        except (KeyError, TypeError, ValueError):
            broken.append(number)
    return found, broken


def table(cast_votes: Iterable[Vote]) -> list[Row]:
    """Elo over the votes in their order, the best first; the name of a pair is that of its last vote."""
    rows: dict[str, Row] = {}
    for each in cast_votes:
        a, b = (replace(rows.get(who.key(), Row(who)), contestant=who) for who in (each.a, each.b))
        points, expected = POINTS[each.vote], 1 / (1 + 10 ** ((b.rating - a.rating) / SCALE))
        bad = each.vote == "bad"
        rows[each.a.key()], rows[each.b.key()] = a.after(points, expected, bad), b.after(1 - points, 1 - expected, bad)
    return sorted(rows.values(), key=lambda row: -row.rating)
