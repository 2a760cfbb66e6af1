"""Conversations in JSON, in the forms that people have: our own, OpenAI's messages, LLaVA's, LLaMA-Factory's, ShareGPT's.

A row is an object with a list of turns (`turns`, `messages`, `conversations`), or a question and its answer (`instruction` and `output`,
`prompt` and `response` ...). A turn has a role (`role`, `from`) and words or parts (`parts`, `content`, `value`, `text`). Pictures stand in
the parts, or in `images` of the row; then `<image>` in the words marks the place of each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duogen.conversation import Message
from duogen.dataset.folder import Folder, shorten
from duogen.dataset.format import Example, Picture, Problem
from duogen.dataset.pictures import PictureStore

TURNS = ("turns", "messages", "conversations", "conversation", "dialogue")
QUESTIONS = (
    ("instruction", "output"), ("instruction", "response"), ("prompt", "completion"), ("prompt", "response"), ("question", "answer"),
    ("query", "response"), ("input", "output"),
)  # fmt: skip
IMAGES = (
    *("images", "image", "image_path", "image_paths", "image_file", "image_files", "img", "picture", "pictures", "file_name"),
    *("file_names", "image_url", "image_urls"),
)
OTHER_MEDIA = ("videos", "video", "audios", "audio")
USER, ASSISTANT = ("user", "human"), ("assistant", "gpt", "bot", "model", "chatgpt")
ROLES = dict.fromkeys(USER, "user") | dict.fromkeys(ASSISTANT, "assistant")
SYSTEM = ("system", "developer")
TOOLS = ("tool", "function", "function_call", "function_response", "observation", "tool_call", "tool_response", "ipython", "environment")
MARK = re.compile(r"<image>|<\|image\|>|<image_placeholder>|<img>(.*?)</img>")
WORDS = ("parts", "content", "value", "text")


def is_chat(raw: object) -> bool:
    """Whether a row of a JSON file looks like a conversation."""
    if not isinstance(raw, Mapping):
        return False
    return any(name in raw for name in TURNS) or any(one in raw and other in raw for one, other in QUESTIONS)


@dataclass
class RowParser:
    """Parses the rows of one file.

    Attributes:
        near: the folder of the file, below which pictures are looked for first.
        systems: number of the rows with a system text, which a pair does not read.
    """

    folder: Folder
    near: Path
    store: PictureStore
    systems: int = 0
    _notes: list[tuple[str, str]] = field(default_factory=list)

    def parse(self, raw: object, where: str, files: tuple[Path, ...]) -> Example:
        """Parse a decoded row of `files`.

        Raises:
            ValueError: it is no conversation; the message is plain words.
        """
        if not isinstance(raw, Mapping):
            raise ValueError("it is no JSON object")
        self._notes = []
        turns = _list_turns(raw)
        media = next((name for name in OTHER_MEDIA if raw.get(name)), "")
        if media:
            raise ValueError(f'it has "{media}", which a pair does not read')
        given = self._list_images(raw)
        images = iter(given)
        own = all(isinstance(turn, Mapping) and isinstance(turn.get("parts"), list) for turn in turns)
        lines: list[Message[Picture]] = []
        with_system = bool(raw.get("system"))
        for turn in turns:
            line = self._parse_turn(turn, images, bool(given), own)
            with_system |= line is None
            lines += [line] if line else []
        left = list(images)
        self.systems += with_system
        if left and len(left) < len(given):
            raise ValueError(f"it has {len(given)} pictures and marks the places of {len(given) - len(left)} with <image>")
        placed = _put_first(left, lines)
        if not own and not any(line.pictures() for line in placed) and any(MARK.search(line.text()) for line in placed):
            raise ValueError("it marks the place of a picture with <image>, and has no picture")
        notes = tuple(Problem(where, what, how) for what, how in self._notes)
        return Example(where, placed, files, notes)

    def _parse_turn(self, turn: object, images: Iterator[Picture], beside: bool, own: bool) -> Message[Picture] | None:
        """Parse a turn; `None` for a system turn, which a pair does not read.

        Args:
            beside: pictures stand beside the turns, so that marks in the words are their places.
            own: the row is in our own form, whose words are as they are.
        """
        raw: Mapping = turn if isinstance(turn, Mapping) else {}
        role = raw.get("role", raw.get("from"))
        if not isinstance(role, str):
            raise ValueError('a turn has no "role"')
        if role in SYSTEM:
            return None
        if role in TOOLS:
            raise ValueError(f"a turn's role is {role}, which a pair does not read")
        if role not in ROLES:
            raise ValueError(f'a turn\'s "role" is {shorten(repr(role))}; it must be "user" or "assistant"')
        if raw.get("tool_calls") or raw.get("function_call"):
            raise ValueError("a turn calls a tool, which a pair does not do")
        name = next((name for name in WORDS if raw.get(name) is not None), "")
        given = raw.get(name)
        if isinstance(given, str):
            parts = self._split_marks(given, images) if beside or not own else [given]
            if "from" in raw and ROLES[role] == "user":
                parts = [part.strip("\n") if isinstance(part, str) else part for part in parts]
        elif isinstance(given, list):
            parts = [each for part in given for each in self._parse_part(part, images, beside)]
        else:
            what = f"the words of a turn are no text, but {shorten(repr(given))}"
            raise ValueError(what if name else f"a turn of the {role} has no words")
        return Message(ROLES[role], tuple(part for part in parts if part != "") or ("",))

    def _parse_part(self, part: object, images: Iterator[Picture], beside: bool) -> list[str | Picture]:
        if isinstance(part, str):
            return self._split_marks(part, images) if beside else [part]
        raw: Mapping = part if isinstance(part, Mapping) else {}
        kind = str(raw.get("type") or "")
        if isinstance(raw.get("text"), str) and not kind.startswith(("image", "input_image")):
            return self._split_marks(raw["text"], images) if beside else [raw["text"]]
        if any(word in kind for word in ("video", "audio", "tool", "file")) and kind != "file":
            raise ValueError(f"a part is of the type {shorten(kind)}, which a pair does not read")
        reference = next((raw[name] for name in ("file", "path", "url", "source", *IMAGES) if raw.get(name)), None)
        if isinstance(raw.get("base64"), str):
            reference = {"data": raw["base64"]}
        if reference is None and kind.startswith("image"):
            return [_take(images)]
        if reference is None:
            raise ValueError("a part is neither words nor a picture's file")
        return [self.open(reference, str(raw.get("alt") or ""))]

    def _split_marks(self, words: str, images: Iterator[Picture]) -> list[str | Picture]:
        parts: list[str | Picture] = []
        at = 0
        for mark in MARK.finditer(words):
            parts += [words[at : mark.start()], self.open(mark[1]) if mark[1] else _take(images)]
            at = mark.end()
        return [part for part in [*parts, words[at:]] if part != ""]

    def _list_images(self, raw: Mapping) -> list[Picture]:
        """The pictures that stand beside the turns."""
        found = next((raw[name] for name in IMAGES if raw.get(name)), None)
        if found is None:
            found = [value for value in raw.values() if isinstance(value, Mapping) and value.keys() and value.keys() <= {"bytes", "path"}]
        if isinstance(found, Mapping) and not found.keys() & {"bytes", "path", "url"}:
            raise ValueError("its pictures have names of their own instead of <image>")
        listed = found if isinstance(found, list | tuple) else [found]
        return [self.open(each) for each in listed if each]

    def open(self, reference: Any, alt: str = "") -> Picture:
        """The picture that a name, a data URL, or an object with one of these means.

        Raises:
            ValueError: there is none.
        """
        if isinstance(reference, bytes):
            return Picture(self.store.save(reference), alt)
        if isinstance(reference, Mapping):
            if isinstance(reference.get("data"), str):
                return self.open(f"data:image;base64,{reference['data']}", alt)
            inside = next((reference[name] for name in ("bytes", "url", "path", "file") if reference.get(name)), None)
            return self.open(inside, alt)
        if not isinstance(reference, str) or not reference.strip():
            raise ValueError("a picture has no file")
        if reference[:5].lower() == "data:":
            return Picture(self.store.save_data_url(reference), alt)
        if re.match(r"(https?|ftp|s3|gs)://", reference, re.I):
            raise ValueError(f"the picture is at {shorten(reference)}, and nothing is fetched; save it and name its file")
        file, what = self.folder.find(reference, self.near)
        if what:
            self._notes.append((what, f"took {self.folder.show(file)}"))
        return Picture(file, alt)


def _list_turns(raw: Mapping) -> list:
    """The turns of a row, or its question and answer as turns.

    Raises:
        ValueError: it has neither.
    """
    found = next((raw[name] for name in TURNS if raw.get(name) is not None), None)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError as error:
            raise ValueError("its turns are text that is not JSON") from error
    if isinstance(found, list | tuple) and found:
        pairs = [each for each in found if isinstance(each, Mapping) and "output" in each and "input" in each]
        if len(pairs) < len(found):
            return list(found)
        return [turn for each in pairs for turn in (_turn("user", each["input"]), _turn("assistant", each["output"]))]
    if found is None:
        for asked, answered in QUESTIONS:
            if raw.get(asked) and raw.get(answered):
                return _list_answer(raw, asked, answered)
            if asked in raw and answered in raw:
                raise ValueError(f'its "{answered if raw[asked] else asked}" is empty')
    raise ValueError('it has no "turns", "messages" or "conversations"')


def _list_answer(raw: Mapping, asked: str, answered: str) -> list[dict[str, Any]]:
    more = raw.get("input") if asked == "instruction" else None
    question = f"{raw[asked]}\n{more}" if isinstance(more, str) and more.strip() else raw[asked]
    history = [each for each in raw.get("history") or [] if isinstance(each, list | tuple) and len(each) == 2]
    before = [turn for one, other in history for turn in (_turn("user", one), _turn("assistant", other))]
    return [*before, _turn("user", question), _turn("assistant", raw[answered])]


def _turn(role: str, words: object) -> dict[str, Any]:
    return {"role": role, "content": words}


def _take(images: Iterator[Picture]) -> Picture:
    picture = next(images, None)
    if picture is None:
        raise ValueError("it names more pictures than it has")
    return picture


def _put_first(pictures: list[Picture], lines: list[Message[Picture]]) -> tuple[Message[Picture], ...]:
    """The lines with pictures that no mark places before the first question, as other programs show them."""
    if not pictures:
        return tuple(lines)
    place = next((index for index, line in enumerate(lines) if line.role == "user"), None)
    if place is None:
        raise ValueError("it has pictures and no question")
    lines[place] = Message("user", (*pictures, *lines[place].parts))
    return tuple(lines)
