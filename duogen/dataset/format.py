"""The format of training data, with checks, safe fixes, the split and near-duplicates.

A folder (or zip) with `conversations.jsonl` and the pictures it names; each line is a conversation:

    {"id": "boat-1", "turns": [
      {"role": "user", "parts": [{"type": "text", "text": "How do I draw a boat?"}]},
      {"role": "assistant", "parts": [{"type": "text", "text": "Step 1. The hull."}, {"type": "image", "file": "images/hull.png"}]}]}

Parts are named as in an exported conversation. `"text"` may replace `"parts"`, and OpenAI's `messages` with `role` and `content` are
read as well. The model learns to paint the pictures of the assistant; it only sees those of the user.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from duogen.conversation import Image, Message, Turn
from duogen.files import write_beside
from duogen.picture_input import open_picture

CONVERSATIONS = "conversations.jsonl"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
DUPLICATE_BITS = 6  # of 256: pictures whose difference hashes are at most so far apart look the same
ENOUGH_TO_SPLIT = 5


@dataclass(frozen=True)
class Picture:
    """A picture by its file."""

    file: Path
    alt: str = ""


@dataclass(frozen=True)
class Example:
    """One conversation to learn from. `where` names its file and line."""

    where: str
    lines: tuple[Message[Picture], ...]

    def pictures(self, role: str | None = None) -> list[Picture]:
        return [picture for line in self.lines if role in (None, line.role) for picture in line.pictures()]

    def turns(self) -> list[Turn]:
        """The turns with opened pictures.

        Raises:
            ValueError: a picture is gone or can no longer be read.
        """
        return [line.make_turn(lambda picture: Image(open_picture(picture.file), alt=picture.alt)) for line in self.lines]

    def key(self) -> str:
        """A digest of the words and picture files, wherever the files are."""
        digest = hashlib.sha256()
        for line in self.lines:
            for part in line.parts:
                said = part.encode() if isinstance(part, str) else hashlib.sha256(part.file.read_bytes()).digest()
                digest.update(f"{line.role} {type(part).__name__} {len(said)} ".encode() + said)
        return digest.hexdigest()


@dataclass(frozen=True)
class Problem:
    """A problem of an example. `fix` says how it was fixed; without a fix the example is left out."""

    where: str
    what: str
    fix: str = ""


@dataclass
class Data:
    """The data that was read. `kind` names its layout; `loose` are pictures without a description."""

    kind: str
    folder: Path
    examples: list[Example] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    loose: list[Path] = field(default_factory=list)

    def count_left_out(self) -> int:
        return sum(not problem.fix for problem in self.problems)


def parse_example(raw: object, where: str, folder: Path) -> Example:
    """Parse a decoded line of `conversations.jsonl`.

    Raises:
        ValueError: it is no conversation; the message is plain words.
    """
    if not isinstance(raw, dict):
        raise ValueError("it is no JSON object")
    turns = raw.get("turns", raw.get("messages"))
    if not isinstance(turns, list) or not turns:
        raise ValueError('it has no "turns"')
    return Example(where, tuple(line for turn in turns if (line := _parse_line(turn, folder)) is not None))


def _parse_line(turn: object, folder: Path) -> Message[Picture] | None:
    """Parse a turn; `None` for a system turn, which a pair does not read."""
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        raise ValueError('a turn has no "role"')
    if turn["role"] == "system":
        return None
    if turn["role"] not in ROLES:
        raise ValueError(f'a turn\'s "role" is {turn["role"]!r}; it must be "user" or "assistant"')
    given = turn.get("parts", turn.get("content", turn.get("text")))
    if not isinstance(given, str | list):
        raise ValueError('a turn has no "parts"')
    parts = tuple(_parse_part(part, folder) for part in ([given] if isinstance(given, str) else given))
    return Message(ROLES[turn["role"]], parts)


def _parse_part(part: object, folder: Path) -> str | Picture:
    if isinstance(part, str):
        return part
    raw: dict[str, Any] = part if isinstance(part, dict) else {}
    if isinstance(raw.get("text"), str):
        return raw["text"]
    file = raw.get("file", raw.get("image", raw.get("path")))
    if not isinstance(file, str) or not file:
        raise ValueError("a part is neither words nor a picture's file")
    return Picture(resolve_file(folder, file), str(raw.get("alt") or ""))


def resolve_file(folder: Path, name: str) -> Path:
    """The path of a file of the data.

    Raises:
        ValueError: the name leads out of the folder.
    """
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name} lies outside the folder of the data")
    return file


def check_example(example: Example) -> tuple[Example | None, list[Problem]]:
    """Check and fix an example. Returns it, `None` when it is unusable, and its problems."""
    problems: list[Problem] = []

    def note_fix(what: str, how: str) -> None:
        problems.append(Problem(example.where, what, how))

    lines = []
    for line in example.lines:
        parts = tuple(part for part in line.parts if part != "")
        if not parts:
            note_fix(f"an empty turn of the {line.role}", "left the turn out")
        elif lines and lines[-1].role == line.role:
            note_fix(f"two turns of the {line.role} in a row", "joined them")
            lines[-1] = Message(line.role, (*lines[-1].parts, *(("\n",) if isinstance(parts[0], str) else ()), *parts))
        else:
            lines.append(Message(line.role, parts))
    while lines and lines[-1].role == "user":
        lines.pop()
        if lines:
            note_fix("the last question has no answer", "left the question out")
    if not lines:
        return None, [*problems, Problem(example.where, "it has no answer to learn from")]
    if lines[0].role != "user":
        return None, [*problems, Problem(example.where, "it begins with an answer; put the question before it")]
    found = []
    for line in lines:
        parts = []
        for part in line.parts:
            if isinstance(part, Picture):
                file, what = _find_picture(part.file)
                if file is None:
                    return None, [*problems, Problem(example.where, what)]
                if what:
                    note_fix(what, f"took {file.name}")
                part = replace(part, file=file)
            parts.append(part)
        found.append(Message(line.role, tuple(parts)))
    return Example(example.where, tuple(found)), problems


def _find_picture(file: Path) -> tuple[Path | None, str]:
    """Find a picture, or the only similarly named one. Returns its file, `None` when unusable, and the problem."""
    if not file.is_file():
        beside = list(file.parent.iterdir()) if file.parent.is_dir() else []
        alike = [each for each in beside if each.stem.lower() == file.stem.lower() and each.suffix.lower() in PICTURES]
        if len(alike) != 1:
            return None, f"the picture {file.name} is missing"
        return alike[0], f"there is no {file.name}"
    try:
        open_picture(file)
    except ValueError as error:
        return None, str(error).rstrip(".")
    return file, ""


def truncate_example(
    example: Example, length: Callable[[tuple[Message[Picture], ...]], int], most: int
) -> tuple[Example | None, list[Problem]]:
    """Cut an example that is too long after the last answer that fits.

    Args:
        length: counts the tokens of lines.
        most: the allowed number of tokens.
    """
    whole = length(example.lines)
    if whole <= most:
        return example, []
    ends = [end for end in range(2, len(example.lines), 2) if length(example.lines[:end]) <= most]
    what = f"it has {whole:,} tokens, and {most:,} are allowed"
    if not ends:
        return None, [Problem(example.where, what)]
    return replace(example, lines=example.lines[: ends[-1]]), [Problem(example.where, what, f"kept its first {ends[-1] // 2} answers")]


def split_examples(examples: list[Example], share: float = 0.1, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Split whole conversations into training and validation, always in the same way. No picture is on both sides."""
    if len(examples) < ENOUGH_TO_SPLIT or share <= 0:
        return examples, []
    order = list(range(len(examples)))
    random.Random(f"split/{seed}").shuffle(order)
    held = set(order[: max(1, round(len(examples) * share))])
    seen = {picture.file for index in held for picture in examples[index].pictures("assistant")}
    train = [each for index, each in enumerate(examples) if index not in held and not seen & {p.file for p in each.pictures("assistant")}]
    if not train:
        return examples, []
    return train, [examples[index] for index in sorted(held)]


def find_duplicates(examples: Iterable[Example]) -> list[tuple[str, str]]:
    """Find pairs of examples with near-duplicate pictures. Near-duplicates within one example do not count."""
    hashes: list[np.ndarray] = []
    owners: list[str] = []
    pairs: dict[tuple[str, str], None] = {}
    for example in examples:
        own = [difference_hash(picture.file) for picture in example.pictures("assistant")]
        if own and hashes:
            apart = (np.stack(own)[:, None] != np.stack(hashes)[None]).sum(-1).min(0)
            pairs |= {(owners[index], example.where): None for index in np.flatnonzero(apart <= DUPLICATE_BITS)}
        hashes += own
        owners += [example.where] * len(own)
    return list(pairs)


def difference_hash(file: Path) -> np.ndarray:
    """256 bits: in a 17 x 16 miniature, whether each pixel is darker than the one to its right (after N. Krawetz's dHash)."""
    small = np.asarray(open_picture(file).convert("L").resize((17, 16), PILImage.Resampling.BOX), np.int16)
    return (small[:, :-1] + 4 < small[:, 1:]).flatten()


def write_examples(examples: list[Example], folder: Path) -> None:
    """Write examples in the one format, their pictures beside them, named by content."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for example in examples:
        turns = [{"role": line.role, "parts": [_write_part(part, images) for part in line.parts]} for line in example.lines]
        rows.append(json.dumps({"id": example.where, "turns": turns}, ensure_ascii=False))
    write_beside(folder / CONVERSATIONS, ("\n".join(rows) + "\n").encode())


def _write_part(part: str | Picture, images: Path) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    data = part.file.read_bytes()
    name = hashlib.sha256(data).hexdigest()[:24] + part.file.suffix.lower()
    if not (images / name).exists():
        write_beside(images / name, data)
    return {"type": "image", "file": f"images/{name}", "alt": part.alt}
