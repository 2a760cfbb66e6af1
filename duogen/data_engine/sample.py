"""A page in the data engine: words and pictures in reading order, its source, and what was removed from it."""

from __future__ import annotations

import builtins  # for `bytes`, which a picture has a method of the name of
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from duogen import paths

ASSETS = paths.ASSETS / "data"
KINDS = ("heading", "paragraph", "sentence", "item", "quote", "code", "table")
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Words:
    """A block of Markdown text.

    Attributes:
        kind: one of `KINDS`; a "sentence" continues the paragraph of the block before it.
        mark: the Markdown before it: "## " of a heading, "- " or "3. " of an item, indented as deep as its list.
    """

    text: str
    kind: str = "paragraph"
    mark: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture where it stands in the text.

    Attributes:
        name: its path or address in the source.
        file: the file of its bytes; `None` when the source is an archive, then they are `data`.
        shape: (width, height); `None` until the bytes are decoded.
        phash: a 64-bit perceptual hash.
        kind: "photo", "drawing", "screenshot", "document" or "chart".
        unread: why its address is not known, where it stands for something that is not understood (a template, a background).
    """

    name: str
    file: Path | None = None
    data: builtins.bytes | None = field(default=None, repr=False)
    alt: str = ""
    title: str = ""
    caption: str = ""
    shape: tuple[int, int] | None = None
    phash: int | None = None
    kind: str = ""
    suffix: str = ""
    unread: str = ""

    def words(self) -> str:
        """Its caption, alternative text and title as one string; words from its file name where it has none."""
        said = " ".join(part for part in dict.fromkeys((self.caption, self.alt, self.title)) if part)
        if self.name.startswith("data:"):
            return said
        return said or re.sub(r"[-_.\d]+", " ", Path(self.name.split("?")[0]).stem).strip()

    def bytes(self) -> builtins.bytes:
        """Its bytes.

        Raises:
            OSError: its file is gone.
        """
        if self.data is not None:
            return self.data
        if self.file is None:
            raise FileNotFoundError(self.name)
        return self.file.read_bytes()


Block = Words | Picture


@dataclass(frozen=True)
class Source:
    """The source of a page, as far as the page states it. `file` is relative to the input folder."""

    file: str
    url: str = ""
    title: str = ""
    author: str = ""
    licence: str = ""
    date: str = ""
    tags: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        raw = {name: value for name, value in vars(self).items() if value}
        return raw | ({"tags": list(self.tags)} if self.tags else {})


@dataclass(frozen=True)
class Lost:
    """A picture or piece of text that a step removed, and why."""

    what: str
    step: str
    why: str


@dataclass(frozen=True)
class Sample:
    """A page.

    Attributes:
        id: the same for the same source, in every run.
        lost: what was removed from it so far.
        notes: small facts for the report, such as how far a picture was moved.
    """

    id: str
    source: Source
    parts: tuple[Block, ...]
    lost: tuple[Lost, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)

    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if isinstance(part, Picture)]

    def text(self) -> str:
        return "\n".join(part.text for part in self.parts if isinstance(part, Words))

    def drop_parts(self, gone: dict[int, str], step: str) -> Sample:
        """The page without the parts at these indices. `gone` maps each index to the reason."""
        if not gone:
            return self
        named = {at: part.name if isinstance(part, Picture) else part.text[:80] for at, part in enumerate(self.parts)}
        kept = tuple(part for at, part in enumerate(self.parts) if at not in gone)
        lost = tuple(Lost(named[at], step, why) for at, why in gone.items())
        return replace(self, parts=kept, lost=self.lost + lost)


@dataclass(frozen=True)
class Dropped:
    """The reason why a page was dropped."""

    reason: str


Filter = Callable[[Sample], Sample | Dropped]


@lru_cache(maxsize=1)
def load_word_lists() -> dict[str, frozenset[str]]:
    """Word lists: `common` has words that say nothing about a picture, `plain` has words of titles that are no names."""
    raw = json.loads((ASSETS / "words.json").read_text(encoding="utf-8"))
    return {name: frozenset(words.split()) for name, words in raw.items()}


def content_words(text: str) -> set[str]:
    """The stems of the words of a text, in lower case and without common words."""
    common = load_word_lists()["common"]
    return {stem_word(word) for word in WORD.findall(text.lower()) if len(word) > 2 and word not in common}


def stem_word(word: str) -> str:
    """A rough stem of a word: its common endings removed."""
    for ending in ("ing", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
