"""Turn a clean page into a dialogue by rules or with an MLLM.

The MLLM captions and places pictures, rewrites the text and words the request. Every result is checked; where it breaks a rule, the
result of the rules is used.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from duogen.conversation import Message
from duogen.data_engine.align import Scorer, align_pictures, word_overlap_scorer
from duogen.data_engine.dialogue import add_lead, count_numbers, find_violation, make_turns, page_kind, page_topic, render_blocks
from duogen.data_engine.markdown import parse_blocks
from duogen.data_engine.options import DataOptions
from duogen.data_engine.rewrite import clean_page
from duogen.data_engine.sample import Block, Dropped, Picture, Sample, Words
from duogen.prompts import fill_prompt, parse_json

if TYPE_CHECKING:
    from duogen.vision_qa import VisionQA

PICTURE_KINDS = ("photo", "drawing", "screenshot", "document", "chart")
MARK = re.compile(r"!?\[?<image (\d+)>\]?")
LONGEST = 12_000  # letters of a page that an MLLM rewrites


@dataclass
class Steps:
    """The steps from page to dialogue. `vision_qa` is the MLLM, `None` for rules alone."""

    options: DataOptions
    vision_qa: VisionQA | None = None
    fallbacks: dict[str, int] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return self.vision_qa.name if self.vision_qa else ""

    def make_dialogue(self, sample: Sample) -> tuple[Sample, list[Message[Picture]] | Dropped]:
        """Make the dialogue of a page and validate it. Returns the page as used, and the turns or the reason to drop it."""
        rng = random.Random(f"dialogue {sample.id}")
        if self.vision_qa is not None:
            sample = self._rewrite_page(self._caption_pictures(sample, self.vision_qa), self.vision_qa)
        sample = add_lead(sample, rng)
        sample = align_pictures(sample, self._make_scorer(sample), self.options.gain)
        request = self._word_request(sample, self.vision_qa) if self.vision_qa is not None else ""
        turns = make_turns(sample, rng, request)
        if isinstance(turns, Dropped):
            return sample, turns
        broken = find_violation(sample, turns)
        return sample, Dropped(broken) if broken else turns

    def _count_fallback(self, step: str) -> None:
        self.fallbacks[step] = self.fallbacks.get(step, 0) + 1

    def _caption_pictures(self, sample: Sample, vision_qa: VisionQA) -> Sample:
        """Let the MLLM caption each picture and name its kind."""
        parts: list[Block] = []
        for part in sample.parts:
            if isinstance(part, Picture):
                question = fill_prompt("data-caption", title=sample.source.title, alt=part.words())
                said = parse_json(vision_qa.ask(question, [_picture_file(part)]))
                caption, kind = (said.get("caption"), said.get("kind")) if isinstance(said, dict) else (None, None)
                if isinstance(caption, str) and 3 <= len(caption) <= 400 and kind in PICTURE_KINDS:
                    part = replace(part, caption=part.caption or " ".join(caption.split()), kind=kind)
                else:
                    self._count_fallback("caption")
            parts.append(part)
        return replace(sample, parts=tuple(parts))

    def _rewrite_page(self, sample: Sample, vision_qa: VisionQA) -> Sample:
        """Let the MLLM rewrite the page. The result is used if it keeps every picture and number."""
        text = _render_with_marks(sample.parts)
        if len(text) > LONGEST:
            return sample
        said = vision_qa.ask(fill_prompt("data-rewrite", title=sample.source.title, text=text), [], most=4096)
        parts = _parse_marked(said, sample.pictures())
        new = clean_page(replace(sample, parts=tuple(parts))) if parts else Dropped("")
        if isinstance(new, Dropped) or [p.name for p in new.pictures()] != [p.name for p in sample.pictures()]:
            self._count_fallback("rewrite")
            return sample
        plain = [count_numbers("\n".join(part.text for part in each.parts if isinstance(part, Words))) for each in (sample, new)]
        if plain[0] != plain[1] or len(new.text()) < 0.5 * len(sample.text()):
            self._count_fallback("rewrite")
            return sample
        return replace(new, notes=new.notes | {"worded": self.model})

    def _make_scorer(self, sample: Sample) -> Scorer:
        plain, vision_qa = word_overlap_scorer(sample.source.title), self.vision_qa
        if vision_qa is None:
            return plain

        def score(picture: Picture, found: Sequence[str]) -> list[float]:
            listed = "\n".join(f"{number}. {text[:200]}" for number, text in enumerate(found, 1))
            said = parse_json(vision_qa.ask(fill_prompt("data-place", sentences=listed), [_picture_file(picture)]))
            try:
                chosen = {int(each["sentence"]): float(each["fit"]) / 10 for each in said["best"]}
            except (TypeError, KeyError, ValueError):
                self._count_fallback("place")
                return plain(picture, found)
            return [min(1.0, max(0.0, chosen.get(number, 0.0))) for number in range(1, len(found) + 1)]

        return score

    def _word_request(self, sample: Sample, vision_qa: VisionQA) -> str:
        """Let the MLLM word the request that this page answers; "" if its result is unusable."""
        text = _render_with_marks(sample.parts)[:4000]
        question = fill_prompt("data-request", thing=page_topic(sample), kind=page_kind(sample), text=text)
        said = parse_json(vision_qa.ask(question, []))
        request = said.get("request") if isinstance(said, dict) else None
        known = count_numbers(sample.source.title + "\n" + text)
        if isinstance(request, str) and _is_usable_request(request, known):
            return " ".join(request.split())
        self._count_fallback("request")
        return ""


def _is_usable_request(request: str, known: Counter[str]) -> bool:
    """Whether a request is of a fit length, names no picture's mark and no number but the `known` ones."""
    return 8 <= len(request.strip()) <= 300 and not MARK.search(request) and not count_numbers(request) - known


def _picture_file(picture: Picture) -> Path:
    """The file of a picture, which the set holds by now.

    Raises:
        FileNotFoundError: it was not written.
    """
    if picture.file is None:
        raise FileNotFoundError(picture.name)
    return picture.file


def _render_with_marks(parts: Sequence[Block]) -> str:
    """The page as Markdown with a numbered mark for each picture."""
    said, number = [], 0
    for part in render_blocks(parts):
        if isinstance(part, Picture):
            number += 1
            said.append(f"<image {number}>\n\n")
        else:
            said.append(part)
    return "".join(said).strip()


def _parse_marked(text: str, pictures: Sequence[Picture]) -> list[Block]:
    """Parse Markdown with marks into blocks; empty where a picture is missing, repeated or invented."""
    found = [int(number) for number in MARK.findall(text)]
    if found != list(range(1, len(pictures) + 1)):
        return []
    parts: list[Block] = []
    for number, piece in enumerate(MARK.split(text)):
        parts += [pictures[int(piece) - 1]] if number % 2 else parse_blocks(piece, lambda name: None)
    return parts
