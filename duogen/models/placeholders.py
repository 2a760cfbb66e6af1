"""Placeholders: an MLLM that was never taught BOV writes `<picture>words</picture>` where it wants a picture. This module finds them.

The text comes in pieces that may end anywhere. What is markup, whole or broken, never reaches the user; what only speaks of it does:

- Nothing in code is a request: spans and fences as CommonMark has them, `<code>` and `<pre>`. Neither is a mark that stands alone in
  quotation marks or brackets, one behind a backslash, or one without an end that is called an element.
- `<img>` with an `alt` is a request, and so are `![words](file)`, `[picture: words]` and a call of a tool that draws. An `<img>` without
  words, and a `<picture>` with a `<source>`, are HTML that the answer is about.
- What stands between `<think>` and `</think>` is a thought.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from duogen.models.picture_marks import (
    CALLS,
    CODES,
    LABELS,
    PICTURES,
    THOUGHTS,
    TOKEN,
    Head,
    PictureRequest,
    may_be_tag,
    read_call,
    read_head,
    read_label,
    read_tag,
)
from duogen.models.text_reader import BLANKS, LONGEST_CODE, Paragraph, Reading, TextReader

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
    '<picture from="1">, or several: <picture from="1, 2">; in the description call them @1 and @2. Asked to do to one picture '
    "what was done from another to a third, first say what changed there, then describe that change. "
)
_BLIND = "The painter cannot see pictures, neither the user's nor its own: what it should know of them, describe between the marks. "
_RESTRAINT = "Answer without a picture when none is wanted."
SYSTEM = _TASK + _SOURCES + _RESTRAINT
BLIND_SYSTEM = _TASK + _BLIND + _RESTRAINT  # for a painter that takes no pictures
LONGEST_PROMPT = 4000  # characters; a prompt that goes on longer was never closed
QUOTES = {'"': '"', "'": "'", "“": "”", "„": "“", "‘": "’", "«": "»", "「": "」", "『": "』", "(": ")", "（": "）", "&quot;": "&quot;"}
OPENS, ENDS = ("<", "＜"), (">", "＞")
BRACKETS = {"[": "]", "［": "］", "【": "】", "(": ")"}
HALF_MARK = re.compile(r"[<＜][ \t]*(?:\\?[/／])?[ \t]*pic", re.I)
SPEAKS_OF_IT = re.compile(r"\s*(?:HTML\W+)?(?:element|tag|mark-?up|placeholder|attribute|元素|标签|标记)", re.I)


@dataclass(frozen=True)
class Opened:
    """An opening mark of a picture: marks of emphasis before it, itself, its name, what it says, and whether it has its ">"."""

    before: str
    written: str
    name: str
    head: Head
    ended: bool


class Placeholders(TextReader):
    """Splits what an MLLM says into words, thoughts and requests for pictures.

    Words are said at once, code and a request when they have ended.
    """

    def __init__(self, fence: str = "") -> None:
        """`fence`: as of `TextReader`."""
        super().__init__(fence)
        self._open = False
        self._readers |= {
            "!": self._read_image, "{": self._read_json, **dict.fromkeys("*_", self._read_emphasis),
            **dict.fromkeys(OPENS, self._read_mark), **dict.fromkeys("[［【", self._read_label),
        }  # fmt: skip

    def is_open(self) -> bool:
        """Whether a picture's words are being written."""
        return self._open

    def _ask_or_say(self, asked: PictureRequest | None, text: str) -> None:
        if asked:
            self._ask(asked.prompt, asked.sources)
        else:
            self._say(text)

    def _is_quoted(self) -> Reading[bool]:
        """Whether a mark stands alone in quotation marks: its words are about the mark. The closing one is not read."""
        ending = next((ending for opening, ending in QUOTES.items() if self._tail.endswith(opening)), "")
        quoted = yield from self._skip(ending)
        self._back(ending if quoted else "")
        return quoted

    def _read_tag(self, opening: str) -> Reading[str]:
        """The beginning of a tag or special token, up to its name; of anything else its first character."""
        text = opening
        while (ch := (yield)) and may_be_tag(text + ch):
            text += ch
        self._back(ch)
        if TOKEN.fullmatch(text) or (read_tag(text)[0] and not re.match(r"[\w.@-]", ch, re.A)) or not (ch or text == opening):
            return text
        self._back(text[1:])
        return text[0]

    def _read_end(self) -> Reading[str]:
        """The ">" of a tag with blanks before it; "" where it is missing."""
        text = ""
        while len(text) < 5 and (ch := (yield)):
            text += ch
            if ch in ENDS:
                return text
            if ch not in BLANKS:
                break
        self._back(text)
        return ""

    def _read_head(self) -> Reading[tuple[str, str]]:
        """What stands in an opening mark, and its ">", "" where that is missing."""
        head, quote, lines = "", "", Paragraph()
        while len(head) < LONGEST_PROMPT and (ch := (yield)):
            if quote and ch in (quote, "\n"):
                quote = ""
            elif ch in ENDS and not quote:
                return head, ch
            elif ch in OPENS and not quote:
                self._back(ch)
                break
            elif ch in "\"'" and head.rstrip()[-1:] in ("=", "＝"):
                quote = ch
            if lines.ends(ch):
                self._back(ch)
                break
            head += ch
        return head, ""

    def _read_to(self, names: tuple[str, ...], within_paragraph: bool) -> Reading[tuple[str, str]]:
        """Text to the closing tag of one of these names, and that tag; without one twice "", and nothing is read."""
        held, key, lines = "", names[0], Paragraph()
        while self._may_end(key) and len(held) < LONGEST_CODE and (ch := (yield)):
            text = (yield from self._read_tag(ch)) if ch in OPENS else ch
            name, closing = read_tag(text)
            if closing and name in names:
                return held, text + (yield from self._read_end())
            held += text[0]
            self._back(text[1:])
            if lines.ends(text[0]) and within_paragraph:
                break
        self._note_unclosed(key)
        self._back(held)
        return "", ""

    def _read_bracket(self, opening: str) -> Reading[str]:
        """Text to the end of its bracket; without one, to what cannot stand in it."""
        text, depth, ending = opening, 1, BRACKETS[opening]
        while depth and len(text) < LONGEST_PROMPT and (ch := (yield)):
            if ch in OPENS or ch in "`\n" or (ch == "[" and text.endswith("!")):
                self._back(ch)
                break
            if not text.endswith("\\"):
                depth += (ch == opening) - (ch == ending)
            text += ch
        return text

    def _read_emphasis(self, mark: str) -> Reading[None]:
        """Marks of emphasis: around a mark of a picture they belong to it."""
        run = yield from self._read_run(mark)
        ch = yield
        if ch in OPENS and len(run) <= 3:
            yield from self._read_mark(ch, run)
        else:
            self._say(run)
            self._back(ch)

    def _read_mark(self, opening: str, emphasis: str = "") -> Reading[None]:
        """A tag, a special token, or a mere "<"."""
        text = yield from self._read_tag(opening)
        name, closing = read_tag(text)
        if name in PICTURES and not closing:
            self._open = True
            yield from self._read_picture(text, emphasis)
            self._open = False
            return
        self._say(emphasis)
        if TOKEN.fullmatch(text) and (yield from self._skip(">")):
            self._raw = ""
        elif closing and name not in CODES:
            end = yield from self._read_end()
            self._say(text + end if (yield from self._is_quoted()) else "")
        elif name in THOUGHTS:
            yield from self._read_thought(text)
        elif name in CALLS + CODES:
            inside, ending = yield from self._read_to(CALLS if name in CALLS else (name,), False)
            self._ask_or_say(read_call(inside.lstrip(" >")) if name in CALLS else None, text + inside + ending)
        elif not (HALF_MARK.match(text) and (yield from self._is_over())):
            self._say(text[0])
            self._back(text[1:])

    def _read_thought(self, text: str) -> Reading[None]:
        """A thought: to its end, or, where it begins a line, to that of the text."""
        end = yield from self._read_end()
        if not end or (yield from self._is_quoted()):
            self._say(text + end)
        elif self._line.strip():
            inside, ending = yield from self._read_to(THOUGHTS, True)
            self._say(inside if ending else text + end, bool(ending))
        else:
            while ch := (yield):
                text = (yield from self._read_tag(ch)) if ch in OPENS else ch
                name, closing = read_tag(text)
                if closing and name in THOUGHTS:
                    yield from self._read_end()
                    return
                self._say(text[0], True)
                self._back(text[1:])

    def _read_picture(self, text: str, emphasis: str) -> Reading[None]:
        """An opening mark of a picture, and what it opens."""
        name, _ = read_tag(text)
        head, end = yield from self._read_head()
        said, written = read_head(head), text + head + end
        if end and not said.words and (yield from self._is_quoted()):
            self._say(emphasis + written)
            return
        before = "" if (yield from self._skip(emphasis)) else emphasis
        alone = end and (said.void or name == "img" or (name == "image" and said.links))
        if name != "picture" and not said.words and (said.links or (name == "img" and (said.void or not end))):
            self._say(before + (written if end or said.links else ""))  # half a mark is dropped
        elif alone and (said.words or said.void):
            self._say(before)
            self._ask(said.words, said.sources)
        else:
            opened = Opened(before, written, name, said, bool(end))
            yield from self._read_prompt(opened, "" if end else said.words + head[len(head.rstrip()) :])

    def _read_prompt(self, opened: Opened, words: str) -> Reading[None]:
        """The words of a picture, to its closing mark; `words` are those that stand in the opening one, where that has no end."""
        raw, lines = "", Paragraph(words)
        nests = not (opened.ended and opened.head.words) and opened.name != "img"
        while len(raw) < LONGEST_PROMPT and len(words) < LONGEST_PROMPT and (ch := (yield)):
            text = (yield from self._read_tag(ch)) if ch in OPENS else ch
            name, closing = read_tag(text)
            if name in PICTURES and closing:
                yield from self._read_end()
                yield from self._close_prompt(opened, words)
                return
            if name in PICTURES and nests:
                head, end = yield from self._read_head()
                inner = read_head(head)
                raw, words = raw + text + head + end, f"{words} {inner.words} "
                sources = opened.head.sources or inner.sources
                opened = replace(opened, head=replace(opened.head, sources=sources))
                continue
            if name == "source":
                inside, ending = yield from self._read_to(("picture",), True)
                self._say(opened.before + opened.written + raw + text + inside + ending)
                return
            if name in PICTURES:
                self._leave_prompt(opened, words, raw, text)
                return
            if text[0] in OPENS and (yield from self._is_over()):
                break
            raw, words = raw + text[0], words + text[0]
            self._back(text[1:])
            if lines.ends(text[0]) and words.strip():
                break
        self._leave_prompt(opened, words, raw)

    def _close_prompt(self, opened: Opened, words: str) -> Reading[None]:
        """Ask for a picture whose mark is closed."""
        head, words = opened.head, words.rstrip()
        run = words[len(words.rstrip("*_")) :]
        if words.count(run or "*") % 2 and (yield from self._skip(run)):
            words = words.removesuffix(run)
        if not (yield from self._skip(opened.before)):
            self._say(opened.before)
        bare = head.words if opened.ended and head.bare else ""
        self._ask(f"{bare} {words}" if words.strip() else head.words, head.sources)

    def _leave_prompt(self, opened: Opened, words: str, raw: str, after: str = "") -> None:
        """Ask for a picture whose mark is never closed, if it is one; what does not belong to it is put back.

        Args:
            raw: what stands behind the opening mark, and `after` that.
        """
        head = opened.head
        self._say(opened.before)
        if opened.ended and head.words:
            self._ask(head.words, head.sources)
            self._back(raw + after)
        elif opened.ended and (opened.name == "img" or SPEAKS_OF_IT.match(words)):
            self._say(opened.written)
            self._back(raw + after)
        else:
            self._ask(words or head.words, head.sources)
            self._back(words[len(words.rstrip()) :] + after)

    def _read_image(self, mark: str) -> Reading[None]:
        """A picture as Markdown has it: `![words](file)`."""
        if not (yield from self._skip("[")):
            self._say(mark)
            return
        words = yield from self._read_bracket("[")
        ch = yield
        if words[-1] != "]" or ch not in ("(", "["):
            self._say(mark + words)
            self._back(ch)
            return
        file = yield from self._read_bracket(ch)
        if file[-1] != BRACKETS[ch]:
            self._say(mark + words + file)
            return
        titled = re.search(r"""["']([^"']*)["']\s*\)$""", file)
        self._ask(words[1:-1].strip() or (titled[1] if titled else ""))

    def _read_label(self, bracket: str) -> Reading[None]:
        """`[picture: words]`"""
        word, text = "", bracket
        while len(text) < 20 and any(each.startswith(word) for each in LABELS) and (ch := (yield)):
            text += ch
            word = text[1:].lstrip(" ").lower()
            if word in LABELS:
                text += (yield from self._read_bracket(bracket))[1:]
                self._ask_or_say(read_label(text), text)
                return
        self._say(bracket)
        self._back(text[1:])

    def _read_json(self, brace: str) -> Reading[None]:
        """A call of a tool that begins a line."""
        held, depth, quoted, begun = brace, 1, False, False
        if self._line.strip() or not self._may_end(brace):
            self._say(brace)
            return
        while depth and len(held) < LONGEST_PROMPT and (ch := (yield)):
            held += ch
            if ch == '"' and held[-2] != "\\":
                quoted, begun = not quoted, True
            elif not quoted:
                depth += (ch == "{") - (ch == "}")
            if not begun and ch.strip():
                break
        if not depth and (asked := read_call(held)):
            self._ask(asked.prompt, asked.sources)
            return
        self._note_unclosed(brace)
        self._say(brace)
        self._back(held[1:])


def find_open_fence(text: str) -> str:
    """The marks of fenced code that is open at the end of a text, "" where none is."""
    parser = Placeholders()
    parser.feed(text)
    return parser.fence


def mark_picture(prompt: str) -> str:
    """A picture of an earlier answer as the MLLM would have asked for it."""
    return f"{OPENING}{prompt}{CLOSING}"
