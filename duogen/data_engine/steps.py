"""From a clean page to a dialogue, by rules; where an MLLM is given it captions, places, rewrites and words, and every one of its
results is checked and falls back to the rules where it breaks one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from duogen.data_engine.align import Scorer, align, by_words
from duogen.data_engine.dialogue import Turn, convert, kind_of, lead, numbers, render, thing_of, wrong
from duogen.data_engine.markdown import blocks_of
from duogen.data_engine.options import DataOptions
from duogen.data_engine.rewrite import clean
from duogen.data_engine.sample import Block, Dropped, Picture, Sample, Words
from duogen.prompts import fill, parsed

if TYPE_CHECKING:
    from duogen.vision_qa import Reader

PICTURE_KINDS = ("photo", "drawing", "screenshot", "document", "chart")
MARK = re.compile(r"!?\[?<image (\d+)>\]?")
LONGEST = 12_000  # letters of a page that an MLLM rewrites


@dataclass
class Steps:
    """How a page becomes a dialogue. `reader` is the MLLM, `None` for rules alone."""

    options: DataOptions
    reader: Reader | None = None
    fallbacks: dict[str, int] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return self.reader.name if self.reader else ""

    def dialogue(self, sample: Sample) -> tuple[Sample, list[Turn] | Dropped]:
        """The page as it went into the dialogue, and the dialogue; validated."""
        rng = random.Random(f"dialogue {sample.id}")
        if self.reader:
            sample = self._rewritten(self._captioned(sample))
        sample = lead(sample, rng)
        sample = align(sample, self._scorer(sample), self.options.gain)
        request = self._worded(sample) if self.reader else ""
        turns = convert(sample, rng, request)
        if isinstance(turns, Dropped):
            return sample, turns
        broken = wrong(sample, turns)
        return sample, Dropped(broken) if broken else turns

    def _fell_back(self, step: str) -> None:
        self.fallbacks[step] = self.fallbacks.get(step, 0) + 1

    def _captioned(self, sample: Sample) -> Sample:
        """Each picture described and typed by the MLLM."""
        parts: list[Block] = []
        for part in sample.parts:
            if isinstance(part, Picture):
                said = parsed(self.reader.ask(fill("data-caption", title=sample.source.title, alt=part.words()), [part.file]))
                caption, kind = (said.get("caption"), said.get("kind")) if isinstance(said, dict) else (None, None)
                if isinstance(caption, str) and 3 <= len(caption) <= 400 and kind in PICTURE_KINDS:
                    part = replace(part, caption=part.caption or " ".join(caption.split()), kind=kind)
                else:
                    self._fell_back("caption")
            parts.append(part)
        return replace(sample, parts=tuple(parts))

    def _rewritten(self, sample: Sample) -> Sample:
        """The whole page in cleaner words, if no picture and no number was touched."""
        text = _marked(sample.parts)
        if len(text) > LONGEST:
            return sample
        said = self.reader.ask(fill("data-rewrite", title=sample.source.title, text=text), [], most=4096)
        parts = _unmarked(said, sample.pictures())
        new = clean(replace(sample, parts=tuple(parts))) if parts else Dropped("")
        if isinstance(new, Dropped) or [p.name for p in new.pictures()] != [p.name for p in sample.pictures()]:
            self._fell_back("rewrite")
            return sample
        plain = [numbers("\n".join(part.text for part in each.parts if isinstance(part, Words))) for each in (sample, new)]
        if plain[0] != plain[1] or len(new.text()) < 0.5 * len(sample.text()):
            self._fell_back("rewrite")
            return sample
        return replace(new, notes=new.notes | {"worded": self.model})

    def _scorer(self, sample: Sample) -> Scorer:
        if self.reader is None:
            return by_words(sample.source.title)
        plain = by_words(sample.source.title)

        def score(picture: Picture, found: Sequence[str]) -> list[float]:
            listed = "\n".join(f"{number}. {text[:200]}" for number, text in enumerate(found, 1))
            said = parsed(self.reader.ask(fill("data-place", sentences=listed), [picture.file]))
            try:
                chosen = {int(each["sentence"]): float(each["fit"]) / 10 for each in said["best"]}
            except (TypeError, KeyError, ValueError):
                self._fell_back("place")
                return plain(picture, found)
            return [min(1.0, max(0.0, chosen.get(number, 0.0))) for number in range(1, len(found) + 1)]

        return score

    def _worded(self, sample: Sample) -> str:
        """What a person would ask to get this page as the answer."""
        text = _marked(sample.parts)[:4000]
        said = parsed(self.reader.ask(fill("data-request", thing=thing_of(sample), kind=kind_of(sample), text=text), []))
        request = said.get("request") if isinstance(said, dict) else None
        known = numbers(sample.source.title + "\n" + text)
        if isinstance(request, str) and 8 <= len(request.strip()) <= 300 and not MARK.search(request) and not numbers(request) - known:
            return " ".join(request.split())
        self._fell_back("request")
        return ""


def _marked(parts: Sequence[Block]) -> str:
    """A page as Markdown with numbered marks where pictures stand."""
    said, number = [], 0
    for part in render(parts):
        if isinstance(part, Picture):
            number += 1
            said.append(f"<image {number}>\n\n")
        else:
            said.append(part)
    return "".join(said).strip()


def _unmarked(text: str, pictures: Sequence[Picture]) -> list[Block]:
    """Markdown with marks as blocks; nothing where a picture is missing, used twice or invented."""
    found = [int(number) for number in MARK.findall(text)]
    if found != list(range(1, len(pictures) + 1)):
        return []
    parts: list[Block] = []
    for number, piece in enumerate(MARK.split(text)):
        parts += [pictures[int(piece) - 1]] if number % 2 else blocks_of(piece, lambda name: None)
    return parts
