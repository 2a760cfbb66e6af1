"""Placeholders: an MLLM that was never taught BOV writes `<picture>words</picture>` where it wants a picture. This module finds them.

The text comes in pieces that may end anywhere. What is markup, whole or broken, never reaches the user.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

OPENING, CLOSING = "<picture>", "</picture>"
_TASK = (
    "You are a helpful assistant who answers in words and pictures. You cannot draw yourself, but a painter draws for you: wherever a "
    f"picture belongs in your answer, write {OPENING}what it shows{CLOSING} and go on; the picture appears there and you will see it. "
    "Explain first, then place the picture that shows what you explained. In a guide every step has one picture. Between the marks write "
    "one full description in English of the whole picture: things, colours, places, style. The painter reads nothing else, so say again "
    "what must stay the same. "
)
_SOURCES = (
    "The pictures of the conversation are numbered 1, 2, 3 ... in order, the user's and yours; to change one or go on from it, name it: "
    '<picture from="1">. '
)
_BLIND = "The painter cannot see pictures, neither the user's nor its own: what it should know of them, describe between the marks. "
_RESTRAINT = "Answer without a picture when none is wanted."
SYSTEM = _TASK + _SOURCES + _RESTRAINT
BLIND_SYSTEM = _TASK + _BLIND + _RESTRAINT  # for a painter that takes no pictures
LONGEST_PROMPT = 2000  # characters; a prompt that goes on longer was never closed
LONGEST_HEAD = 300  # of `<picture ...>`
NAME = r"(?:picture|image|img)"
OPENED = re.compile(rf"<\s*{NAME}(?![\w-])", re.I)
CLOSED = re.compile(rf"<\s*/\s*{NAME}(?![\w-])\s*>?", re.I)
# What could still become one of the two when more text comes.
UNDECIDED = re.compile(r"<\s*/?\s*[a-z]{0,7}\s*$", re.I)
MARKS = tuple(slash + name for slash in ("", "/") for name in ("picture", "image", "img"))
WORDS_IN_HEAD = re.compile(r"""\b(?:prompt|alt|description|title)\s*=\s*(?:"([^"]*)"|'([^']*)')""", re.I)
SOURCES_IN_HEAD = re.compile(r"""\bfrom\s*=?\s*["']?([\d\s,;and]+)""", re.I)


@dataclass(frozen=True)
class PictureRequest:
    """A picture is wanted here. `prompt` is what it shows; `sources` the numbers, from 1, of the pictures it goes on from."""

    prompt: str
    sources: tuple[int, ...] = ()


Piece = str | PictureRequest


@dataclass
class Placeholders:
    """Splits a stream of text into words and requests for pictures.

    Attributes:
        held: text that might be the beginning of a mark.
        prompt: what stands since an opening mark, `None` outside one.
        head: what stands in the opening mark, while that is open.
    """

    held: str = ""
    prompt: str | None = None
    head: str | None = None
    sources: tuple[int, ...] = ()
    hint: str = ""
    pieces: list[Piece] = field(default_factory=list)

    def feed(self, text: str) -> list[Piece]:
        """What is certain now that `text` came."""
        self.held += text
        while self.held and self._step(False):
            pass
        return self._out()

    def close(self) -> list[Piece]:
        """The text is over: a mark that is open is taken as closed, half a mark is dropped."""
        while self.held and self._step(True):
            pass
        if self.head is not None:
            self._head_ends(self.head)
        if self.prompt is not None:
            self._ask()
        return self._out()

    def is_open(self) -> bool:
        """Whether a picture's words are being written."""
        return self.prompt is not None or self.head is not None

    def _out(self) -> list[Piece]:
        found, self.pieces = self.pieces, []
        return found

    def _step(self, last: bool) -> bool:
        """Take something off `held`; returns whether more can be done."""
        if self.head is not None:
            return self._in_head(self.head)
        at = self.held.find("<")
        if at != 0:
            plain, self.held = (self.held, "") if at < 0 else (self.held[:at], self.held[at:])
            self._plain(plain)
            return bool(self.held)
        if found := CLOSED.match(self.held):
            if not last and found.end() == len(self.held) and not found[0].endswith(">"):
                return False  # its ">" may come yet
            self.held = self.held[found.end() :]
            if self.prompt is not None:
                self._ask()
            return True
        if found := OPENED.match(self.held):
            if not last and found.end() == len(self.held):
                return False  # `<picture` may become `<pictures`
            self.held, self.head = self.held[found.end() :], ""
            return True
        if UNDECIDED.match(self.held) and self._may_become_mark():
            if last:
                self.held = self.held[:1] if len(self.held.strip()) == 1 else ""
                self._plain(self.held)
                self.held = ""
            return False
        self._plain(self.held[0])
        self.held = self.held[1:]
        return True

    def _may_become_mark(self) -> bool:
        begun = re.sub(r"\s", "", self.held[1:]).lower()
        return any(mark.startswith(begun) for mark in MARKS)

    def _in_head(self, head: str) -> bool:
        """Up to the ">" of an opening mark; a line's end, another "<" or too much text end it too."""
        whole = head + self.held
        found = re.search(r"[>\n<]", whole)
        if found is None and len(whole) <= LONGEST_HEAD:
            self.head, self.held = whole, ""
            return False
        end = found.start() if found else LONGEST_HEAD
        closed = found is not None and found[0] == ">"
        self.held = whole[end + closed :]
        self._head_ends(whole[:end], closed)
        return True

    def _head_ends(self, head: str, closed: bool = False) -> None:
        said = WORDS_IN_HEAD.search(head)
        numbers = SOURCES_IN_HEAD.search(head)
        words = next((each for each in said.groups() if each), "") if said else ""
        if not closed and not said:  # `<picture a red house` without its end: the rest are its words
            words = SOURCES_IN_HEAD.sub("", head).strip(" =:\"'")
        self.head = None
        inner = self.prompt is not None  # one mark in another: the inner one says no more
        if not inner:
            self.sources = tuple(int(each) for each in re.findall(r"\d+", numbers[1])) if numbers else ()
            self.hint, self.prompt = words, ""
            if not closed and words:
                self.hint, self.prompt = "", words + " "
        if closed and head.rstrip().endswith("/") and not inner:
            self._ask()

    def _plain(self, text: str) -> None:
        if self.prompt is None:
            self._say(text)
            return
        self.prompt += text
        end = re.search(r"\S\s*\n\s*\n", self.prompt)  # a prompt is one paragraph: it was never closed
        cut = end.start() + 1 if end else LONGEST_PROMPT
        if end or len(self.prompt) > LONGEST_PROMPT:
            self.prompt, rest = self.prompt[:cut], self.prompt[cut:]
            self._ask()
            self._say(rest)

    def _say(self, text: str) -> None:
        if text and self.pieces and isinstance(self.pieces[-1], str):
            self.pieces[-1] += text
        elif text:
            self.pieces.append(text)

    def _ask(self) -> None:
        prompt = " ".join((self.prompt or "").split()) or self.hint
        self.pieces.append(PictureRequest(prompt, self.sources))
        self.prompt, self.sources, self.hint = None, (), ""


def mark_picture(prompt: str) -> str:
    """A picture of an earlier answer as the MLLM would have asked for it."""
    return f"{OPENING}{prompt}{CLOSING}"
