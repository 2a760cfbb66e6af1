"""A text that comes in pieces, read character by character, so that how it is cut changes nothing.

`TextReader` knows Markdown's code: spans and fences as CommonMark has them. Whoever derives from it says what else has a meaning.
"""

from __future__ import annotations

import re
import string
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import TypeVar

from duogen.events import Thought
from duogen.models.picture_marks import PictureRequest

LONGEST_CODE = 10_000  # of a span of code
LONGEST_LINE = 300  # of what follows the marks of a fence
BLANKS = " \t\r"
# A line so far in which a fence may begin: after the marks of quotations and lists.
BEGINS_LINE = re.compile(r"(?:[ \t>]|[-*+][ \t]|\d{1,9}[.)][ \t])*")
BEGINS_BLOCK = re.compile(r"[ \t]*(?:[-*+]|\d{1,3}[.)]|#{1,6})[ \t]")  # a list or a heading, before which a paragraph ends
BEGINS_FENCE = re.compile(r"[ \t>]*(?:```|~~~)")
ENDS_FENCE = re.compile(r"[ \t>]*(`{3,}|~{3,})[ \t\r]*")
EMPHASISED = re.compile(r"(\*{1,3}|_{1,3})(.+)\1", re.S)

Piece = str | PictureRequest | Thought
Result = TypeVar("Result")
Reading = Generator[None, str, Result]  # is sent the text's characters one by one, and "" at its end


class Paragraph:
    """Says where a paragraph of Markdown ends, character by character."""

    def __init__(self, text: str = "") -> None:
        self.line, self.blank, self.lines = "", True, 0
        for ch in text:
            self.ends(ch)

    def ends(self, ch: str) -> bool:
        """Whether a blank line is complete with this character."""
        if ch != "\n":
            self.line += ch if len(self.line) < 20 else ""
            self.blank = self.blank and ch in BLANKS
            return False
        ended = self.blank and self.lines > 0
        self.line, self.blank, self.lines = "", True, self.lines + 1
        return ended

    def begins_block(self, fences: bool) -> bool:
        """Whether the latest line begins a list or a heading, or, where `fences` count, fenced code."""
        begun = BEGINS_BLOCK.fullmatch(self.line) or (fences and BEGINS_FENCE.fullmatch(self.line))
        return self.lines > 0 and bool(begun)


class TextReader:
    """Splits a text into words, thoughts and requests for pictures.

    A reader of a beginning is a generator, which is sent what follows. Where a beginning turns out to be none, what was read too far is put
    back. How far that can be is bounded, so the time grows with the length of the text.

    Attributes:
        fence: the marks that opened the fenced code it is in, "" outside of one.
    """

    def __init__(self, fence: str = "") -> None:
        """`fence`: the text goes on in fenced code that these marks opened."""
        self.fence = ""
        self._queue: deque[str] = deque()
        self._at, self._raw = 0, ""  # how many characters are read, and those of them that are not decided
        self._found: list[Piece] = []
        self._run: list[str] = []  # words or a thought that go on
        self._thinks = False
        self._line = self._tail = ""  # the line's beginning, and the latest words
        self._unclosed: dict[str, int] = {}  # what has no end before this character
        self._readers: dict[str, Callable[[str], Reading[None]]] = {
            "\\": self._read_escape, "`": self._read_ticks, "~": self._read_tildes,
        }  # fmt: skip
        self._reading = self._read_words(fence)
        next(self._reading)

    @property
    def held(self) -> str:
        """What may be the beginning of a mark."""
        return self._raw

    def feed(self, text: str) -> list[Piece]:
        """What is certain now that `text` came."""
        self._queue.extend(text)
        while self._queue:
            self._advance()
        return self._take()

    def close(self) -> list[Piece]:
        """The text is over: a mark that is open is taken as closed, half a mark is dropped."""
        with suppress(StopIteration):
            while True:
                self._advance()
        return self._take()

    def _advance(self) -> None:
        ch = self._queue.popleft() if self._queue else ""
        self._at, self._raw = self._at + len(ch), self._raw + ch
        self._reading.send(ch)

    def _back(self, text: str) -> None:
        """Put text back that was read too far."""
        self._queue.extendleft(reversed(text))
        self._at, self._raw = self._at - len(text), self._raw[: max(0, len(self._raw) - len(text))]

    def _take(self) -> list[Piece]:
        self._flush()
        found, self._found = self._found, []
        return found

    def _flush(self) -> None:
        if text := "".join(self._run):
            self._found.append(Thought(text) if self._thinks else text)
        self._run = []

    def _say(self, text: str, thinks: bool = False) -> None:
        if self._thinks != thinks:
            self._flush()
        self._thinks, self._raw = thinks, ""
        self._run.append(text)
        if not thinks:
            _, newline, last = text.rpartition("\n")
            self._line = last[:80] if newline else (self._line + text)[:80]
            self._tail = (self._tail + text)[-6:]

    def _ask(self, prompt: str, sources: tuple[int, ...] = ()) -> None:
        self._flush()
        words = " ".join(prompt.split())
        found = EMPHASISED.fullmatch(words)
        self._found.append(PictureRequest(found[2].strip() if found else words, sources))
        self._line = self._tail = self._raw = ""

    def _may_end(self, opening: str) -> bool:
        """Whether nobody has looked for the end of this in vain, from before here."""
        return self._unclosed.get(opening, 0) <= self._at

    def _note_unclosed(self, opening: str) -> None:
        """Remember that this has no end in what is read, so that nobody reads it again to find one."""
        self._unclosed[opening] = max(self._at, self._unclosed.get(opening, 0))

    def _read_words(self, fence: str) -> Reading[None]:
        if fence:
            yield from self._read_fence(fence)
        while ch := (yield):
            if reader := self._readers.get(ch):
                yield from reader(ch)
            else:
                self._say(ch)

    def _read_run(self, mark: str) -> Reading[str]:
        """The same character, as often as it comes."""
        run = mark
        while (ch := (yield)) == mark:
            run += ch
        self._back(ch)
        return run

    def _skip(self, text: str) -> Reading[bool]:
        """Whether this text comes next; then it is read."""
        read = ""
        while read != text and text.startswith(read) and (ch := (yield)):
            read += ch
        if read == text:
            return bool(text)
        self._back(read)
        return False

    def _is_over(self) -> Reading[bool]:
        """Whether the text ends here."""
        ch = yield
        self._back(ch)
        return not ch

    def _read_escape(self, backslash: str) -> Reading[None]:
        ch = yield
        if ch in string.punctuation:
            self._say(backslash + ch)
        else:
            self._say(backslash)
            self._back(ch)

    def _read_ticks(self, mark: str) -> Reading[None]:
        """Fenced code where backticks begin a line, else a span of code."""
        run = yield from self._read_run(mark)
        if len(run) >= 3 and BEGINS_LINE.fullmatch(self._line):
            line = yield from self._read_line()
            if "`" not in line:
                self._say(run + line)
                yield from self._read_fence(run)
                return
            self._back(line)
        yield from self._read_code(run)

    def _read_tildes(self, mark: str) -> Reading[None]:
        run = yield from self._read_run(mark)
        fenced = len(run) >= 3 and BEGINS_LINE.fullmatch(self._line)
        self._say(run)
        if fenced:
            self._say((yield from self._read_line()))
            yield from self._read_fence(run)

    def _read_line(self) -> Reading[str]:
        """What the line goes on with, its end included."""
        line = ""
        while len(line) < LONGEST_LINE and not line.endswith("\n") and (ch := (yield)):
            line += ch
        return line

    def _read_fence(self, run: str) -> Reading[None]:
        """Fenced code, to its end or that of the text."""
        self.fence, line = run, ""
        while ch := (yield):
            self._say(ch)
            if ch != "\n":
                line += ch if len(line) < LONGEST_LINE else ""
                continue
            ended, line = ENDS_FENCE.fullmatch(line), ""
            if ended and ended[1].startswith(run):
                break
        self.fence = ""

    def _read_code(self, run: str) -> Reading[None]:
        """A span of code; without its end the backticks are words."""
        held, streak, lines = "", 0, Paragraph()
        while self._may_end(run) and (ch := (yield)):
            if ch != "`" and streak == len(run):
                self._back(ch)
                break
            held, streak = held + ch, streak + 1 if ch == "`" else 0
            if lines.ends(ch) or lines.begins_block(len(run) < 3) or len(held) > LONGEST_CODE:
                break
        if streak == len(run):
            self._say(run + held)
            return
        self._note_unclosed(run)
        self._say(run)
        self._back(held)
