"""A page on its way through the data engine: words and pictures in reading order, where it came from, and what it lost."""

from __future__ import annotations

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
        kind: one of `KINDS`; a "sentence" goes on in the paragraph of the block before it.
        mark: what stands before it: "## " of a heading, "- " or "3. " of an item, indented as deep as its list.
    """

    text: str
    kind: str = "paragraph"
    mark: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture where it stands in the text.

    Attributes:
        name: what the source calls it: a path or an address.
        file: where its bytes lie, `None` when the source is an archive; then they are `data`.
        shape: (width, height), known once the bytes were looked at.
        look: a 64-bit perceptual hash.
        kind: "photo", "drawing", "screenshot", "document" or "chart".
    """

    name: str
    file: Path | None = None
    data: bytes | None = field(default=None, repr=False)
    alt: str = ""
    title: str = ""
    caption: str = ""
    shape: tuple[int, int] | None = None
    look: int | None = None
    kind: str = ""
    suffix: str = ""

    def words(self) -> str:
        """All that is said of it, its own words first; the name of its file where nothing is."""
        said = " ".join(part for part in dict.fromkeys((self.caption, self.alt, self.title)) if part)
        return said or re.sub(r"[-_.\d]+", " ", Path(self.name.split("?")[0]).stem).strip()

    def bytes(self) -> bytes:
        """Raises OSError when its file is gone."""
        if self.data is not None:
            return self.data
        if self.file is None:
            raise FileNotFoundError(self.name)
        return self.file.read_bytes()


Block = Words | Picture


@dataclass(frozen=True)
class Source:
    """Where a page came from, as far as it says so. `file` is relative to the folder that was read."""

    file: str
    url: str = ""
    title: str = ""
    author: str = ""
    licence: str = ""
    date: str = ""
    tags: tuple[str, ...] = ()

    def data(self) -> dict[str, Any]:
        raw = {name: value for name, value in vars(self).items() if value}
        return raw | ({"tags": list(self.tags)} if self.tags else {})


@dataclass(frozen=True)
class Lost:
    """A picture or a piece of text that a step took out, and why."""

    what: str
    step: str
    why: str


@dataclass(frozen=True)
class Sample:
    """A page.

    Attributes:
        id: the same for the same source, in every run.
        lost: what was taken out of it so far.
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

    def without(self, gone: dict[int, str], step: str) -> Sample:
        """The same page less the parts at these places, each with the reason why."""
        if not gone:
            return self
        named = {at: part.name if isinstance(part, Picture) else part.text[:80] for at, part in enumerate(self.parts)}
        kept = tuple(part for at, part in enumerate(self.parts) if at not in gone)
        lost = tuple(Lost(named[at], step, why) for at, why in gone.items())
        return replace(self, parts=kept, lost=self.lost + lost)


@dataclass(frozen=True)
class Dropped:
    """A page that did not get through, and why."""

    reason: str


Filter = Callable[[Sample], Sample | Dropped]


@lru_cache(maxsize=1)
def word_lists() -> dict[str, frozenset[str]]:
    """`common`: words that tell nothing about what is shown; `plain`: words of titles that are no names."""
    raw = json.loads((ASSETS / "words.json").read_text(encoding="utf-8"))
    return {name: frozenset(words.split()) for name, words in raw.items()}


def bare(text: str) -> set[str]:
    """The words of a text, lower case, without the commonest ones and without plural endings: what two texts can have in common."""
    common = word_lists()["common"]
    return {stem(word) for word in WORD.findall(text.lower()) if len(word) > 2 and word not in common}


def stem(word: str) -> str:
    """A word less its ending, roughly."""
    for ending in ("ing", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
