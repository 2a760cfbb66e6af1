"""Move every picture behind the sentence that describes it and keep the order of pictures (DuoGen, section 4)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from duogen.data_engine.sample import Block, Picture, Sample, Words, content_words

Scorer = Callable[[Picture, Sequence[str]], list[float]]  # how well each sentence describes a picture, from 0 to 1
LIST_OF_THINGS = re.compile(r"\b(ingredients?|equipment|tools?|materials?|supplies|you (will )?need|shopping)\b", re.I)
FAR = 0.01  # the cost of one block of distance: of two places that fit equally well, the nearer wins


def word_overlap_scorer(title: str) -> Scorer:
    """A scorer by the words that picture and sentence share. Words of the title do not count, since they fit everywhere."""

    def score(picture: Picture, found: Sequence[str]) -> list[float]:
        wanted = content_words(picture.words()) - content_words(title)
        if not wanted:
            return [0.0] * len(found)
        return [len(wanted & content_words(each)) / len(wanted) for each in found]

    return score


def align_pictures(sample: Sample, scorer: Scorer, gain: float) -> Sample:
    """Move a picture where another sentence fits it better than its present one by at least `gain`.

    Returns:
        The page with its pictures moved; `notes["moved"]` says how many.
    """
    words = [part for part in sample.parts if isinstance(part, Words)]
    pictures = sample.pictures()
    if not words or not pictures:
        return sample
    ends, texts = _target_places(words)
    stands = _picture_places(sample.parts)
    rewards = []
    for picture, here in zip(pictures, stands, strict=True):
        scores = scorer(picture, texts)
        now = max((score for score, end in zip(scores, ends, strict=True) if end == here), default=0.0)
        stays = here if _find_allowed_place(words, here, below=False) == here else _find_allowed_place(words, here)
        best = [0.0 if at == stays else float("-inf") for at in range(len(words) + 1)]
        announced = here > 0 and words[here - 1].text.endswith(":")
        for score, end in zip(scores, ends, strict=True):
            if score - now >= gain and end is not None and not announced:
                best[end] = max(best[end], score - now - FAR * abs(end - here))
        rewards.append(best)
    chosen = _assign_in_order(rewards)
    moved = sum(a != b for a, b in zip(chosen, stands, strict=True))
    parts: list[Block] = []
    for at in range(len(words) + 1):
        parts += [picture for picture, place in zip(pictures, chosen, strict=True) if place == at]
        parts += words[at : at + 1]
    return replace(sample, parts=tuple(_start_paragraphs(parts)), notes=sample.notes | {"moved": moved})


def _picture_places(parts: Sequence[Block]) -> list[int]:
    """The place of each picture: the number of text blocks before it."""
    stands, count = [], 0
    for part in parts:
        if isinstance(part, Picture):
            stands.append(count)
        else:
            count += 1
    return stands


def _target_places(words: Sequence[Words]) -> tuple[list[int | None], list[str]]:
    """For each block of text, the place for a picture of it (`None`: no place), and its words.

    A picture of a heading goes to the end of its section. No picture goes into a list of needed things or into code.
    """
    ends: list[int | None] = []
    for at, block in enumerate(words):
        if block.kind == "heading":
            after = next((then for then in range(at + 1, len(words)) if words[then].kind == "heading"), len(words))
            ends.append(after)
        elif block.kind == "code" or LIST_OF_THINGS.search(_find_headings(words, at)):
            ends.append(None)
        else:
            ends.append(_find_allowed_place(words, at + 1))
    return ends, [block.text for block in words]


def _find_headings(words: Sequence[Words], at: int) -> str:
    """The headings above a block, of all ranks, as one string."""
    found, rank = [], 99
    for block in reversed(words[:at]):
        if block.kind == "heading" and len(block.mark) < rank:
            rank = len(block.mark)
            found.append(block.text)
    return " / ".join(found)


def _find_allowed_place(words: Sequence[Words], place: int, below: bool = True) -> int:
    """The first place from `place` on that splits no list of needed things and, with `below`, no item from what stands below it."""
    while 0 < place < len(words):
        before, after = words[place - 1], words[place]
        in_things = after.kind == "item" and before.kind == "item" and LIST_OF_THINGS.search(_find_headings(words, place))
        indented = after.kind == "item" and len(after.mark) - len(after.mark.lstrip()) > 0 and before.kind == "item"
        if not in_things and not (indented and below):
            return place
        place += 1
    return place


def _assign_in_order(rewards: Sequence[Sequence[float]]) -> list[int]:
    """Choose a place for each picture, in the order of the pictures, with the largest sum of rewards (dynamic programming)."""
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


def _start_paragraphs(parts: list[Block]) -> list[Block]:
    """Turn a sentence behind a picture into the start of a paragraph."""
    for at in range(1, len(parts)):
        part = parts[at]
        if isinstance(part, Words) and part.kind == "sentence" and isinstance(parts[at - 1], Picture):
            parts[at] = replace(part, kind="paragraph")
    return parts
