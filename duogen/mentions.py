"""Mentions of saved references in what a person types: "@boat", and the words that an MLLM reads in its place.

A name is letters, digits, "-" and "_", and holds a letter: "@1" is a number of a picture, not a name. Names that differ in their case
alone are the same. A mention ends where the name ends; between letters of a script without spaces it needs no space. What stands in code,
in a mail address or in a link is no mention.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, replace

import regex

from duogen.conversation import Image, Reference, Text, Turn

LONGEST_NAME = 40  # letters
NAME = regex.compile(r"[\p{L}\p{M}\p{N}_-]+")
CODE = re.compile(
    r"^ {0,3}(?P<fence>```+|~~~+).*?(?:^ {0,3}(?P=fence)|\Z)|(?<!`)(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)", re.DOTALL | re.MULTILINE
)
SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"  # scripts without spaces between words
BEFORE = regex.compile(rf"(?V1)[[\p{{L}}\p{{M}}\p{{N}}_.%+/@-]--[{SPACELESS}]]")  # what begins a mail address or a link
WITHOUT_SPACES = regex.compile(rf"[{SPACELESS}]")
STYLE_BEFORE = re.compile(r"\bin (?:the style of )?\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Mention:
    """Where a name stands in a text, with its "@", and the name as it is folded."""

    start: int
    end: int
    name: str


def fold_name(name: str) -> str:
    """A name as it is compared: "Boat" and "boat" are one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def check_name(name: str) -> str:
    """The name as it is saved, without an "@" before it. Raises ValueError: it cannot be a reference's."""
    name = unicodedata.normalize("NFC", name.strip().removeprefix("@"))
    ends = name[:1] + name[-1:]
    if not NAME.fullmatch(name) or not regex.search(r"\p{L}", name) or "-" in ends or "_" in ends:
        raise ValueError("A name is one word of letters, digits, - and _, with a letter in it, such as red-boat; choose another name.")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"A name has {LONGEST_NAME} letters at most; choose a shorter one.")
    return name


def find_mentions(text: str, known: Collection[str]) -> list[Mention]:
    """The mentions in a text, in order. `known` are the names that there are, folded."""
    if "@" not in text or not known:
        return []
    code = [found.span() for found in CODE.finditer(text)]
    mentions = []
    for at in (found.start() for found in re.finditer("@", text)):
        if (at and BEFORE.match(text[at - 1])) or any(start <= at < end for start, end in code):
            continue
        run = NAME.match(text, at + 1)
        name = _find_name(run[0], known) if run else ""
        if name:
            mentions.append(Mention(at, at + 1 + len(name), fold_name(name)))
    return mentions


def _find_name(run: str, known: Collection[str]) -> str:
    """The longest known name that a run of letters begins with, where a word ends behind it; "" for none."""
    for end in range(min(len(run), LONGEST_NAME), 0, -1):
        rest = run[end:].strip("-_")
        ends_word = not rest or WITHOUT_SPACES.match(rest) or WITHOUT_SPACES.match(run[end - 1])
        if ends_word and fold_name(run[:end]) in known:
            return run[:end]
    return ""


def spell_out(turn: Turn, wording: str = "picture {}") -> Turn:
    """The turn as an MLLM reads it: plain words for each mention of a reference whose pictures are in the turn.

    "@boat" is read as "boat (a red boat with a white sail, see picture 2)", and a style as "in the style of ink (black ink, see picture
    3)", also where "in" or "in the style of" stands before it. What is in brackets is said once.

    Args:
        wording: how a picture is named by its number in the turn.
    """
    abouts, places = {fold_name(about.name): about for about, _ in list_references(turn)}, _name_pictures(turn, wording)
    if not abouts:
        return turn
    said: set[str] = set()
    parts = tuple(Text(_spell_out_text(part.text, abouts, places, said)) if isinstance(part, Text) else part for part in turn.parts)
    return replace(turn, parts=parts)


def _name_pictures(turn: Turn, wording: str) -> dict[str, list[str]]:
    """The pictures of each reference, by its folded name, as the words name them."""
    places: dict[str, list[str]] = {}
    for number, image in enumerate(turn.images(), 1):
        if image.reference:
            places.setdefault(fold_name(image.reference.name), []).append(wording.format(number))
    return places


def _spell_out_text(text: str, abouts: dict[str, Reference], places: dict[str, list[str]], said: set[str]) -> str:
    """`said` are the names whose brackets were read already, and grows."""
    words, at = "", 0
    for mention in find_mentions(text, abouts):
        about = abouts[mention.name]
        before = text[at : mention.start]
        if about.kind == "style":
            before = f"{STYLE_BEFORE.sub('', before)}in the style of "
        words += before + about.name + ("" if mention.name in said else _describe(about, places[mention.name]))
        said.add(mention.name)
        at = mention.end
    return words + text[at:]


def _describe(about: Reference, pictures: list[str]) -> str:
    return f" ({', '.join(filter(None, [about.words, 'see ' + ' and '.join(pictures)]))})"


def list_references(turn: Turn) -> list[tuple[Reference, list[Image]]]:
    """The references whose pictures are in a turn, each with those."""
    found: dict[str, tuple[Reference, list[Image]]] = {}
    for image in turn.images():
        if image.reference:
            found.setdefault(fold_name(image.reference.name), (image.reference, []))[1].append(image)
    return list(found.values())
