"""Every picture moved behind the sentence that describes it; the order of pictures is kept (DuoGen, section 4)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from duogen.data_engine.sample import Block, Picture, Sample, Words, bare

Scorer = Callable[[Picture, Sequence[str]], list[float]]  # how well each sentence describes a picture, from 0 to 1
LIST_OF_THINGS = re.compile(r"\b(ingredients?|equipment|tools?|materials?|supplies|you (will )?need|shopping)\b", re.I)
FAR = 0.01  # what a block of distance costs: of two places that fit alike the nearer is taken


def by_words(title: str) -> Scorer:
    """Scores by the words that picture and sentence share; those of the title say nothing about where a picture belongs."""

    def score(picture: Picture, found: Sequence[str]) -> list[float]:
        wanted = bare(picture.words()) - bare(title)
        if not wanted:
            return [0.0] * len(found)
        return [len(wanted & bare(each)) / len(wanted) for each in found]

    return score


def align(sample: Sample, scorer: Scorer, gain: float) -> Sample:
    """Move pictures where a sentence fits better than the one they stand behind by at least `gain`.

    Returns:
        The page with its pictures moved; `notes["moved"]` says how many.
    """
    words = [part for part in sample.parts if isinstance(part, Words)]
    pictures = sample.pictures()
    if not words or not pictures:
        return sample
    ends, texts = _places(words)
    stands = _stands(sample.parts)
    rewards = []
    for picture, here in zip(pictures, stands, strict=True):
        scores = scorer(picture, texts)
        now = max((score for score, end in zip(scores, ends, strict=True) if end == here), default=0.0)
        best = [0.0 if at == _allowed(words, here) else float("-inf") for at in range(len(words) + 1)]
        announced = here > 0 and words[here - 1].text.endswith(":")
        for score, end in zip(scores, ends, strict=True):
            if score - now >= gain and end is not None and not announced:
                best[end] = max(best[end], score - now - FAR * abs(end - here))
        rewards.append(best)
    chosen = _in_order(rewards)
    moved = sum(a != b for a, b in zip(chosen, stands, strict=True))
    parts: list[Block] = []
    for at in range(len(words) + 1):
        parts += [picture for picture, place in zip(pictures, chosen, strict=True) if place == at]
        parts += words[at : at + 1]
    return replace(sample, parts=tuple(_whole(parts)), notes=sample.notes | {"moved": moved})


def _stands(parts: Sequence[Block]) -> list[int]:
    """Behind how many blocks of text each picture stands."""
    stands, count = [], 0
    for part in parts:
        if isinstance(part, Picture):
            stands.append(count)
        else:
            count += 1
    return stands


def _places(words: Sequence[Words]) -> tuple[list[int | None], list[str]]:
    """For each block of text, behind which block a picture of it goes (`None`: nowhere), and its words.

    A heading's picture goes to the end of its section, and no picture goes into a list of things needed, nor into a paragraph of code.
    """
    ends: list[int | None] = []
    for at, block in enumerate(words):
        if block.kind == "heading":
            after = next((then for then in range(at + 1, len(words)) if words[then].kind == "heading"), len(words))
            ends.append(after)
        elif block.kind == "code" or LIST_OF_THINGS.search(_section(words, at)):
            ends.append(None)
        else:
            ends.append(_allowed(words, at + 1))
    return ends, [block.text for block in words]


def _section(words: Sequence[Words], at: int) -> str:
    """The headings that a block stands under, all ranks."""
    found, rank = [], 99
    for block in reversed(words[:at]):
        if block.kind == "heading" and len(block.mark) < rank:
            rank = len(block.mark)
            found.append(block.text)
    return " / ".join(found)


def _allowed(words: Sequence[Words], place: int) -> int:
    """The nearest place from `place` on that cuts neither an item from the lines below it nor a list of things."""
    while 0 < place < len(words):
        before, after = words[place - 1], words[place]
        in_things = after.kind == "item" and before.kind == "item" and LIST_OF_THINGS.search(_section(words, place))
        below = after.kind == "item" and len(after.mark) - len(after.mark.lstrip()) > 0 and before.kind == "item"
        if not in_things and not below:
            return place
        place += 1
    return place


def _in_order(rewards: Sequence[Sequence[float]]) -> list[int]:
    """A place for each picture, none before that of the picture before it, with the largest sum (dynamic programming)."""
    count = len(rewards[0])
    total, came = [0.0] * count, []
    for row in rewards:
        best, at, step, new = float("-inf"), 0, [], []
        for place in range(count):
            if total[place] > best:
                best, at = total[place], place
            new.append(best + row[place])
            step.append(at)
        total = new
        came.append(step)
    place = max(range(count), key=total.__getitem__)
    chosen = []
    for row in reversed(came):
        chosen.append(place)
        place = row[place]
    return chosen[::-1]


def _whole(parts: list[Block]) -> list[Block]:
    """A sentence that now stands behind a picture begins a paragraph."""
    for at in range(1, len(parts)):
        part = parts[at]
        if isinstance(part, Words) and part.kind == "sentence" and isinstance(parts[at - 1], Picture):
            parts[at] = replace(part, kind="paragraph")
    return parts
