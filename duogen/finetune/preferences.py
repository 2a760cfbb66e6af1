"""Pairs of answers of which a person preferred one: the votes of the Arena and the marks of the chat as examples.

A folder of votes is laid out as `duogen.evaluate.arena` writes it: `votes.jsonl`, and the answers in `voted/`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from duogen.conversation import Message, Text, Turn, load_conversation
from duogen.dataset.checks import check_example, explain_error
from duogen.dataset.format import Data, Example, Picture, Problem
from duogen.dataset.readers import read_dataset
from duogen.evaluate.arena import VOTED, VOTES, Vote, read_votes
from duogen.files import fill_folder
from duogen.finetune.config import STAGES
from duogen.library.conversations import ID
from duogen.stored_picture import StoredPicture

KIND = "votes"  # of the data
LEAST_PAIRS = 8  # fewer teach a chance
DIFFERS = {"mllm": "in words", "dit": "in pictures", "both": "in words or pictures"}


@dataclass(frozen=True)
class Preference(Example):
    """The better of two answers to one request, as an example, and the worse one."""

    worse: Example = field(kw_only=True)

    def pictures(self, role: str | None = None) -> list[Picture]:
        """The pictures of both."""
        return [*super().pictures(role), *self.worse.pictures(role)]

    def with_trigger(self, word: str) -> Preference:
        return replace(self, lines=super().with_trigger(word).lines, worse=self.worse.with_trigger(word))

    def can_teach(self, stage: str) -> bool:
        """Whether the answers differ in what a stage ("mllm" or "dit") learns."""
        better, worse = self.lines[-1], self.worse.lines[-1]
        if stage == "dit":
            return any(one.file.name != other.file.name for one, other in zip(better.pictures(), worse.pictures(), strict=False))
        return _hide_pictures(better) != _hide_pictures(worse)


def _hide_pictures(line: Message[Picture]) -> list[str | None]:
    return [part if isinstance(part, str) else None for part in line.parts]


def read_examples(source: Path, votes: bool) -> Data:
    """Read what a run learns from: a folder of votes, or training data in any known layout.

    Raises:
        ValueError: there is nothing to read; one sentence.
    """
    return read_preferences(source) if votes else read_dataset(source)


def read_preferences(home: Path) -> Data:
    """The votes for one of two answers that are still kept. Of several votes between the same two answers the last one counts."""
    data, found = Data(KIND, home), dict[frozenset[str], Preference]()
    for vote in _list_usable(home):
        try:
            better, worse = _load_answers(home, vote)
            found[frozenset((better[-1].id, worse[-1].id))] = _compare(better, worse, data.problems)
        except Exception as error:  # whatever one vote raises leaves the others alone
            data.problems.append(Problem(f"{VOTED}/{vote.answers}", explain_error(error)))
    data.examples = list(found.values())
    return data


def count_votes(home: Path) -> int:
    """How many votes there are whose answers are kept."""
    return len(_list_usable(home))


def _list_usable(home: Path) -> list[Vote]:
    votes, _ = read_votes(home / VOTES)
    return [vote for vote in votes if vote.vote in ("a", "b") and ID.fullmatch(vote.answers) and (home / VOTED / vote.answers).is_dir()]


def _load_answers(home: Path, vote: Vote) -> tuple[list[Turn], list[Turn]]:
    """The conversation up to the better answer, and up to the worse one. Raises ValueError: it is damaged."""
    asked = load_conversation(home / VOTED / vote.answers, lazily=True)
    a, b = (turn for turn in asked.turns.values() if turn.parent == asked.head)
    better, worse = (a, b) if vote.vote == "a" else (b, a)
    return [*asked.path(), better], [*asked.path(), worse]


def _compare(better: list[Turn], worse: list[Turn], problems: list[Problem]) -> Preference:
    """Raises ValueError: one of the answers cannot be learnt from."""
    both = []
    for turns in (better, worse):
        example, found = check_example(Example(" ".join(turns[-2].text().split())[:60], tuple(map(_make_line, turns))))
        if example is None:
            raise ValueError(found[0].what)
        problems += found
        both.append(example)
    return Preference(both[0].where, both[0].lines, worse=both[1])


def _make_line(turn: Turn) -> Message[Picture]:
    parts: list[str | Picture] = []
    for part in turn.parts:
        if isinstance(part, Text):
            parts.append(part.text)
        elif isinstance(part.source, StoredPicture):
            parts.append(Picture(part.source.file, part.alt))
    return Message(turn.role, tuple(parts))


def select_pairs(examples: Sequence[Example], stage: str) -> list[Preference]:
    """The votes among the examples that can teach a stage."""
    return [each for each in examples if isinstance(each, Preference) and each.can_teach(stage)]


def choose_stages(stage: str, examples: Sequence[Example]) -> str:
    """The stage, or of "both" the one that the votes are enough for.

    Raises:
        ValueError: there are too few votes; one sentence.
    """
    counts = {name: len(select_pairs(examples, name)) for name in STAGES[stage]}
    enough = [name for name, count in counts.items() if count >= LEAST_PAIRS]
    if not enough:
        raise ValueError(
            f"Learning needs {LEAST_PAIRS} votes between answers that differ {DIFFERS[stage]}, and has {max(counts.values())}; "
            "vote in the Arena, or mark versions in the chat."
        )
    return stage if len(enough) == len(counts) else enough[0]


def copy_votes(home: Path, target: Path) -> None:
    """Copy the votes and their answers, so that a run that is resumed learns from the same ones."""
    with fill_folder(target) as part:
        for vote in _list_usable(home):
            shutil.copytree(home / VOTED / vote.answers, part / VOTED / vote.answers, dirs_exist_ok=True)
        shutil.copyfile(home / VOTES, part / VOTES)
        shutil.rmtree(target, ignore_errors=True)
