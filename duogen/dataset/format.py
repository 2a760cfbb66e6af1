"""The format of training data, with the split and near-duplicates.

A folder (or zip) with `conversations.jsonl` and the pictures it names; each line is a conversation:

    {"id": "boat-1", "turns": [
      {"role": "user", "parts": [{"type": "text", "text": "How do I draw a boat?"}]},
      {"role": "assistant", "parts": [{"type": "text", "text": "Step 1. The hull."}, {"type": "image", "file": "images/hull.png"}]}]}

Parts are named as in an exported conversation. `"text"` may replace `"parts"`, and other programs' forms are read as well
(`duogen/dataset/rows.py`). The model learns to paint the pictures of the assistant; it only sees those of the user.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from duogen.conversation import Image, Message, Turn
from duogen.dataset.crops import Crop, crop_file, read_crop
from duogen.dataset.pictures import PictureFacts, inspect_picture
from duogen.files import write_beside
from duogen.picture_input import open_picture
from duogen.provenance import encode_picture

CONVERSATIONS = "conversations.jsonl"
PICTURES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif"),
    *(".jp2", ".ppm"),
)
HASH_WORDS = 4  # of 64 bits, in a difference hash
DUPLICATE_BITS = 6  # of 256: pictures whose difference hashes are at most so far apart look the same, if their colours do
DUPLICATE_COLOURS = 24  # of 255: how far apart the mean colours of one place may be
ENOUGH_TO_SPLIT = 5
MOST_HELD = 0.25  # of the examples, where a picture is in more of them than should be kept back


@dataclass(frozen=True)
class Picture:
    """A picture by its file, or the part of it that `crop` names."""

    file: Path
    alt: str = ""
    crop: Crop | None = None

    def with_crop(self) -> Picture:
        """The same picture with the crop that was chosen of it. Raises ValueError: the crop or the picture is damaged."""
        return replace(self, crop=read_crop(self.file, inspect_picture(self.file).size))

    def inspect(self) -> PictureFacts:
        """What is known of the part that is trained. Raises ValueError: it cannot be read."""
        return inspect_picture(self.file, self.crop)

    def open(self) -> PILImage.Image:
        """The pixels that are trained. Raises ValueError: the picture is gone, or can no longer be read."""
        picture = open_picture(self.file)
        return self.crop.cut(picture) if self.crop else picture


@dataclass(frozen=True)
class Problem:
    """A problem of an example or a file. `fix` says how it was fixed; without a fix it is left out.

    Attributes:
        files: the files that are named by it, beside those that `where` names.
    """

    where: str
    what: str
    fix: str = ""
    files: tuple[Path, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Example:
    """One conversation to learn from. `where` names its file and line.

    Attributes:
        files: the files that its words come from.
        notes: what was fixed in it when it was read.
    """

    where: str
    lines: tuple[Message[Picture], ...]
    files: tuple[Path, ...] = field(default=(), compare=False)
    notes: tuple[Problem, ...] = field(default=(), compare=False)

    def pictures(self, role: str | None = None) -> list[Picture]:
        return [picture for line in self.lines if role in (None, line.role) for picture in line.pictures()]

    def turns(self) -> list[Turn]:
        """The turns with opened pictures.

        Raises:
            ValueError: a picture is gone or can no longer be read.
        """
        return [line.make_turn(lambda picture: Image(picture.open(), alt=picture.alt)) for line in self.lines]

    def with_trigger(self, word: str) -> Example:
        """The same example whose first request begins with a word, unless that is empty or in it already."""
        asked = next((line for line in self.lines if line.role == "user"), None)
        if not word or asked is None or word.casefold() in asked.text().casefold():
            return self
        at = next((place for place, part in enumerate(asked.parts) if isinstance(part, str)), 0)
        said = [f"{word}, {asked.parts[at]}"] if isinstance(asked.parts[at], str) else [word, asked.parts[at]]
        called = replace(asked, parts=(*asked.parts[:at], *said, *asked.parts[at + 1 :]))
        return replace(self, lines=tuple(called if line is asked else line for line in self.lines))

    def key(self) -> str:
        """A digest of the words, picture files and crops, wherever the files are."""
        digest = hashlib.sha256()
        for line in self.lines:
            for part in line.parts:
                said = part.encode() if isinstance(part, str) else hashlib.sha256(part.file.read_bytes()).digest()
                digest.update(f"{line.role} {type(part).__name__} {len(said)} ".encode() + said)
                if isinstance(part, Picture) and part.crop:
                    digest.update(f"crop {part.crop} ".encode())
        return digest.hexdigest()


@dataclass
class Data:
    """The data that was read. Every file is in an example, or a problem, `loose` or `unread` names it, or `passed` counts it.

    Attributes:
        kind: the name of its layout.
        loose: pictures without a description.
        unread: files that no example uses, and why.
        found: the files of the folder.
        strange, passed: numbers of what is no readable file, and of what is hidden, of the system, or about the set.
    """

    kind: str
    folder: Path
    examples: list[Example] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    loose: list[Path] = field(default_factory=list)
    unread: list[Problem] = field(default_factory=list)
    found: frozenset[Path] = frozenset()
    strange: int = 0
    passed: int = 0

    def count_left_out(self) -> int:
        return sum(not problem.fix for problem in self.problems)

    def count_files(self) -> tuple[int, int, int, int]:
        """The numbers of files: found, learnt from, named with a reason, and passed over; the last three add up to the first."""
        used = {file for example in self.examples for file in example.files}
        for picture in [picture for example in self.examples for picture in example.pictures()]:
            used |= {picture.file, crop_file(picture.file)} if picture.crop else {picture.file}
        learnt = len(self.found & used)
        return len(self.found) + self.strange + self.passed, learnt, len(self.found) - learnt + self.strange, self.passed


def split_examples(examples: list[Example], share: float = 0.1, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Split whole conversations into training and validation, always in the same way. No picture is on both sides, in whatever file."""
    if len(examples) < ENOUGH_TO_SPLIT or share <= 0:
        return examples, []
    order = list(range(len(examples)))
    random.Random(f"split/{seed}").shuffle(order)
    wanted, held = max(1, round(len(examples) * share)), set[int]()
    groups = _group_by_pictures(examples)
    for index in order:
        if index not in held and len(held) + len(groups[index]) <= wanted:
            held.update(groups[index])
    smallest = min(groups, key=len)
    if not held and len(smallest) <= len(examples) * MOST_HELD:
        held.update(smallest)
    return [each for index, each in enumerate(examples) if index not in held], [examples[index] for index in sorted(held)]


def _group_by_pictures(examples: list[Example]) -> list[list[int]]:
    """For each example, the examples that share a picture with it, directly or through others, itself included."""
    groups = [[index] for index in range(len(examples))]
    owners: dict[bytes, int] = {}
    for index, example in enumerate(examples):
        for picture in example.pictures():
            other = owners.setdefault(inspect_picture(picture.file).digest, index)
            small, large = sorted((groups[index], groups[other]), key=len)
            if small is not large:
                large += small
                for each in small:
                    groups[each] = large
    return groups


def find_duplicates(examples: Iterable[Example]) -> list[tuple[str, str]]:
    """Find pairs of examples with near-duplicate pictures, in colour. Near-duplicates within one example do not count."""
    shown = [(example.where, [picture.inspect() for picture in example.pictures("assistant")]) for example in examples]
    owners = [where for where, facts in shown for _ in facts]
    every = np.frombuffer(b"".join(each.hash for _, facts in shown for each in facts), np.uint64).reshape(-1, HASH_WORDS)
    colours = np.array([list(each.colours) for _, facts in shown for each in facts], np.int16)
    pairs: dict[tuple[str, str], None] = {}
    done = 0
    for where, facts in shown:
        if facts and done:
            apart = np.bitwise_count(every[done : done + len(facts), None] ^ every[None, :done]).sum(-1)
            own, other = np.nonzero(apart <= DUPLICATE_BITS)
            alike = np.abs(colours[done + own] - colours[other]).max(-1) <= DUPLICATE_COLOURS
            pairs |= {(owners[index], where): None for index in sorted(set(other[alike].tolist()))}
        done += len(facts)
    return list(pairs)


def write_examples(examples: list[Example], folder: Path) -> None:
    """Write examples in the one format, their pictures beside them as they are trained, named by content."""
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
    data, ending = (encode_picture(part.open(), "PNG", None), ".png") if part.crop else (part.file.read_bytes(), part.file.suffix.lower())
    name = hashlib.sha256(data).hexdigest()[:24] + ending
    if not (images / name).exists():
        write_beside(images / name, data)
    return {"type": "image", "file": f"images/{name}", "alt": part.alt}
