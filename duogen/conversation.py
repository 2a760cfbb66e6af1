"""A conversation: turns of text and pictures, kept as a tree so that an edit makes a branch and loses nothing.

On disk a conversation is a folder: `conversation.json` and the pictures it names, `images/<sha256>.png`.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from PIL import Image as PILImage

from duogen.content_credentials import encode_signed
from duogen.files import fill_folder, make_folder, read_bytes, write_beside
from duogen.picture_input import open_picture
from duogen.provenance import Origin
from duogen.stored_picture import StoredPicture, open_pixels, read_header
from duogen.text_decoding import clean_text

FORMAT = 1
SOURCE, REFERENCE = "source", "reference"
MOTION_FILE = re.compile(r"[0-9a-f]{64}\.mp4")
ROLES = ("", SOURCE, REFERENCE)  # of pictures that a user brings
REFERENCE_KINDS = ("character", "thing", "style")


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Reference:
    """What is saved about a character, a thing or a style: its name, its kind, one of `REFERENCE_KINDS`, and its words."""

    name: str
    kind: str
    words: str = ""


@dataclass(frozen=True)
class Motion:
    """An animation that begins with a picture.

    Attributes:
        source: the MP4 file, or its bytes. It holds its settings.
        words: what happens in it.
    """

    source: Path | bytes = field(repr=False)
    words: str = ""


@dataclass(frozen=True)
class Image:
    """A picture of a turn.

    Attributes:
        source: RGB pixels, or the file that holds them.
        seed: the seed that painted it, `None` for an upload.
        seconds: how long painting took, `None` for an upload.
        alt: the words that describe it, as read by a screen reader.
        mask: "L", as large as the picture, white where the answer may paint; outside no pixel changes. `None` for the whole picture.
        drafts: the drafts that led to it, each with its words as `alt`, the last with the same pixels; none where it was painted at once.
        origin: how a model painted it, `None` for an upload without a mark of origin.
        reference: what it shows, where it came with a message because that mentions a saved reference; as it was at that time.
        role: what a picture of a question is for: `SOURCE` (its pixels are kept), `REFERENCE` (its looks are kept), "" where that is open.
        motion: what it became when it was animated, `None` where it was not.
    """

    source: PILImage.Image | StoredPicture = field(compare=False)
    seed: int | None = None
    seconds: float | None = None
    alt: str = ""
    mask: PILImage.Image | None = field(default=None, compare=False)
    drafts: tuple[Image, ...] = ()
    origin: Origin | None = field(default=None, compare=False)
    reference: Reference | None = None
    role: str = ""
    motion: Motion | None = field(default=None, compare=False)

    @property
    def picture(self) -> PILImage.Image:
        """The pixels. Those of a file are read now, and are the same object as long as somebody holds them."""
        return open_pixels(self.source)

    def shows_same(self, other: Image) -> bool:
        """Whether both are one picture, by identity: no pixels are compared, and none are read where both are of one file."""
        return self.source is other.source or self.picture is other.picture

    @property
    def is_painted(self) -> bool:
        """Whether DuoGen painted it; an upload may carry the mark of another program."""
        return self.seed is not None


Piece = Text | Image


P = TypeVar("P")


@dataclass(frozen=True)
class Message(Generic[P]):
    """A message as data, outside any chat: words, and in the place of each picture a `P`, such as a file or a scene.

    A `Turn` is the other form: a message of a conversation, with an identity and open pictures. `make_turn` leads from one to the other.

    Attributes:
        role: "user" or "assistant".
        parts: words and pictures, in order.
    """

    role: str
    parts: tuple[str | P, ...]

    def text(self, between: str = "") -> str:
        """The words, pictures left out."""
        return between.join(part for part in self.parts if isinstance(part, str))

    def pictures(self) -> list[P]:
        return [part for part in self.parts if not isinstance(part, str)]

    def make_turn(self, open_image: Callable[[P], Image], parent: str | None = None) -> Turn:
        """The message as a turn; `open_image` raises what it raises."""
        parts = tuple(Text(part) if isinstance(part, str) else open_image(part) for part in self.parts)
        return Turn(self.role, parts, parent=parent)


@dataclass(frozen=True)
class Turn:
    """One message. `role` is "user" or "assistant"; `parent` is the id of the turn before it, `None` for the first.

    `ideas`: the message is several ideas for one wish, a line and a picture each, which do not go on from each other.
    """

    role: str
    parts: tuple[Piece, ...]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    parent: str | None = None
    ideas: bool = False

    def text(self) -> str:
        """The words of the turn, pictures left out."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    def images(self) -> list[Image]:
        return [part for part in self.parts if isinstance(part, Image)]

    def with_image(self, at: int, image: Image) -> Turn:
        """The same message beside this one, with another picture at this place of the parts."""
        return Turn(self.role, (*self.parts[:at], image, *self.parts[at + 1 :]), parent=self.parent, ideas=self.ideas)

    def with_motion(self, at: int, motion: Motion | None) -> Turn:
        """The same message, with an animation of the picture at this place of the parts, or without one."""
        return replace(self, parts=(*self.parts[:at], replace(self.image_at(at), motion=motion), *self.parts[at + 1 :]))

    def before(self, at: int) -> tuple[Piece, ...]:
        """What the picture at this place was painted after: the parts before it, of an idea only its line."""
        start = at - 1 if self.ideas and at and isinstance(self.parts[at - 1], Text) else at if self.ideas else 0
        return self.parts[start:at]

    def image_at(self, at: int) -> Image:
        """Raises IndexError: there is no picture at this place of the parts."""
        part = self.parts[at]
        if not isinstance(part, Image):
            raise IndexError(f"Part {at} of this turn is no picture.")
        return part


@dataclass(frozen=True)
class Conversation:
    """A tree of turns and the turn it stands at. All changes return a new conversation.

    Attributes:
        turns: every turn ever said, by id.
        head: the last turn of the branch that is shown, `None` when nothing was said.
    """

    turns: dict[str, Turn] = field(default_factory=dict)
    head: str | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    title: str = ""

    def path(self) -> list[Turn]:
        """The turns of the branch that is shown, first to last."""
        chain: list[Turn] = []
        at = self.head
        while at is not None:
            chain.append(self.turns[at])
            at = self.turns[at].parent
        return chain[::-1]

    def say(self, role: str, *parts: Piece | str | PILImage.Image) -> Conversation:
        """Append a turn to the branch that is shown."""
        turn = Turn(role, tuple(map(_piece, parts)), parent=self.head)
        return Conversation({**self.turns, turn.id: turn}, turn.id, self.id, self.title)

    def at(self, turn_id: str | None) -> Conversation:
        """The same tree standing at another turn: what is said next starts a branch there.

        Raises:
            KeyError: no such turn.
        """
        if turn_id is not None and turn_id not in self.turns:
            raise KeyError(f"This conversation has no turn {turn_id}.")
        return Conversation(self.turns, turn_id, self.id, self.title)

    def branches(self, turn_id: str) -> list[str]:
        """Ids of the turns that stand at the same place as `turn_id`, itself included, oldest first."""
        parent = self.turns[turn_id].parent
        return [turn.id for turn in self.turns.values() if turn.parent == parent]

    def with_turn(self, turn: Turn) -> Conversation:
        """The tree with `turn` in it, whose parent it must hold, standing there."""
        return Conversation({**self.turns, turn.id: turn}, turn.id, self.id, self.title)

    def with_changed(self, turn: Turn) -> Conversation:
        """The tree with `turn` in the place of the turn of its id, standing where it stood. Raises KeyError: there is no such turn."""
        if turn.id not in self.turns:
            raise KeyError(f"This conversation has no turn {turn.id}.")
        return replace(self, turns={**self.turns, turn.id: turn})

    def tip(self, turn_id: str) -> str:
        """The end of the newest branch that goes through a turn."""
        at: str | None = turn_id
        while at is not None:
            turn_id = at
            at = next((turn.id for turn in reversed(self.turns.values()) if turn.parent == turn_id), None)
        return turn_id

    def without(self, turn_id: str) -> Conversation:
        """The tree less a turn and all that came after it. Where it was shown, the newest branch beside it is, else what was before it."""
        gone = {turn_id}
        for turn in self.turns.values():  # a turn always stands after its parent
            if turn.parent in gone:
                gone.add(turn.id)
        left = Conversation({id: turn for id, turn in self.turns.items() if id not in gone}, None, self.id, self.title)
        if self.head not in gone:
            return left.at(self.head)
        beside = [id for id in self.branches(turn_id) if id != turn_id]
        return left.at(left.tip(beside[-1]) if beside else self.turns[turn_id].parent)


def _piece(part: Piece | str | PILImage.Image) -> Piece:
    if isinstance(part, str):
        return Text(part)
    return Image(part.convert("RGB")) if isinstance(part, PILImage.Image) else part


def save_conversation(conversation: Conversation, folder: Path, changed: float | None = None) -> Conversation:
    """Write the whole tree into `folder`; an interrupted save leaves the earlier one as it was.

    Args:
        changed: when it was last changed, in seconds since 1970; stands in the file, since copying a file changes the file's own date.

    Returns:
        The same conversation with its pictures in the files, so that whoever keeps it does not keep their pixels.
    """
    if folder.exists():
        return _write_conversation(conversation, folder, folder, changed)
    with fill_folder(folder) as part:  # one that a kill left half filled would count as damaged
        return _write_conversation(conversation, part, folder, changed)


def _write_conversation(conversation: Conversation, written: Path, folder: Path, changed: float | None) -> Conversation:
    """Write into the folder `written`, which will be `folder`; returns what `save_conversation` returns."""
    images = written / "images"
    make_folder(images)
    turns = []
    stored: dict[str, Turn] = {}
    for turn in conversation.turns.values():
        parts = [_save_piece(part, images) for part in turn.parts]
        ideas = {"ideas": True} if turn.ideas else {}
        turns.append({"id": turn.id, "role": turn.role, "parent": turn.parent, **ideas, "parts": parts})
        stored[turn.id] = _link_turn(turn, parts, folder / "images")
    title = clean_text(conversation.title)
    payload: dict[str, Any] = {"format": FORMAT, "id": conversation.id, "title": title, "head": conversation.head, "turns": turns}
    if changed is not None:
        payload["changed"] = changed
    write_beside(written / "conversation.json", json.dumps(payload, ensure_ascii=False, indent=1).encode())
    return replace(conversation, turns=stored)


def load_conversation(folder: Path, lazily: bool = False) -> Conversation:
    """Read what `save_conversation` wrote.

    Args:
        lazily: read the pictures when they are needed; a damaged one is then a grey picture and costs nothing else.

    Raises:
        ValueError: no conversation lies there, or it is damaged.
    """
    payload = read_payload(folder)
    load_picture = partial(_find_picture if lazily else _load_picture, folder / "images", {})
    load_mask = partial(_find_mask if lazily else _load_mask, folder / "images", {})
    turns = {}
    for entry in payload["turns"]:
        parts = tuple(
            Text(part["text"]) if part["type"] == "text" else _load_moving(part, folder / "images", load_picture, load_mask)
            for part in entry["parts"]
        )
        turns[entry["id"]] = Turn(entry["role"], parts, entry["id"], entry["parent"], entry.get("ideas", False))
    return Conversation(turns, payload["head"], payload["id"], payload["title"])


def read_payload(folder: Path) -> dict[str, Any]:
    """The checked contents of `conversation.json`, with text that can be written again.

    Raises:
        ValueError: no conversation lies there, or it is damaged; the message names the folder and the reason.
    """
    file = folder / "conversation.json"
    if not file.exists():
        raise ValueError(f"There is no conversation in {folder}.")
    try:
        payload = json.loads(read_bytes(file).decode("utf-8-sig"))
        newer = isinstance(payload.get("format"), int) and payload["format"] > FORMAT
        if not newer:
            _check_types(payload)
            _check_tree(payload["turns"], payload["head"])
    except Exception as error:  # whatever it raises, this conversation is damaged and the others are not
        raise ValueError(f"The conversation in {folder} is damaged: {_explain_damage(error)}.") from error
    if newer:
        raise ValueError(f"The conversation in {folder} was written by a newer DuoGen; update this one to read it.")
    return payload


class _OtherType(TypeError):
    """A part of `conversation.json` is of another type than `save_conversation` writes."""


def _explain_damage(error: Exception) -> str:
    """Why `conversation.json` cannot be read, in words that end without a full stop."""
    match error:
        case json.JSONDecodeError():
            return f"it is cut short or no JSON (line {error.lineno})"
        case UnicodeDecodeError():
            return f"its text is no UTF-8 (byte {error.start:,})"
        case RecursionError():
            return "its lists are nested too deep"
        case KeyError():
            return f"{error} is missing or leads nowhere"
        case _OtherType():
            return str(error)
        case _:
            return "it is no conversation"


def _check_types(payload: dict[str, Any]) -> None:
    """Raises _OtherType: something is of another type than `save_conversation` writes. Cleans the texts."""
    _expect(payload["id"], str, "the id")
    payload["title"] = clean_text(_expect(payload["title"], str, "the title"))
    for turn in payload["turns"]:
        _expect(turn["id"], str, "the id of a turn")
        _expect(turn.get("ideas", False), bool, "the mark of ideas")
        for part in turn["parts"]:
            if part["type"] == "text":
                part["text"] = clean_text(_expect(part["text"], str, "a text"))
            else:
                _check_image(part)


def _check_image(part: dict[str, Any]) -> None:
    _expect(part["file"], str, "the name of a picture")
    _expect(part.get("mask", ""), str, "the name of a mask")
    _expect(part["seed"], int | None, "a seed")
    _expect(part["seconds"], int | float | None, "a time")
    part["alt"] = clean_text(_expect(part["alt"], str, "a description"))
    if part.get("origin") not in (None, *Origin):
        raise _OtherType("the origin of a picture is none of those that DuoGen writes")
    if part.get("role", "") not in ROLES:
        raise _OtherType("the role of a picture is none of those that DuoGen writes")
    if "reference" in part:
        _check_reference(_expect(part["reference"], dict, "a reference"))
    if "motion" in part:
        motion = _expect(part["motion"], dict, "an animation")
        _expect(motion["file"], str, "the name of an animation")
        motion["words"] = clean_text(_expect(motion["words"], str, "the words of an animation"))
    for draft in _expect(part.get("drafts", []), list, "the drafts of a picture"):
        _check_image(draft)


def _check_reference(reference: dict[str, Any]) -> None:
    for name in ("name", "words"):
        reference[name] = clean_text(_expect(reference[name], str, f"the {name} of a reference"))
    if reference["kind"] not in REFERENCE_KINDS:
        raise _OtherType("the kind of a reference is none of those that DuoGen writes")


def _expect(value: Any, kind: Any, name: str) -> Any:
    if not isinstance(value, kind):
        raise _OtherType(f"{name} is of the type {type(value).__name__}")
    return value


def _check_tree(turns: list[dict[str, Any]], head: str | None) -> None:
    """A turn stands after its parent: a circle would be walked for ever."""
    known: set[str | None] = {None}
    for turn in turns:
        if turn["parent"] not in known or turn["id"] in known or turn["role"] not in ("user", "assistant"):
            raise KeyError(turn["id"])
        known.add(turn["id"])
    if head not in known:
        raise KeyError(head)


def _save_piece(part: Piece, images: Path) -> dict:
    return {"type": "text", "text": clean_text(part.text)} if isinstance(part, Text) else _save_image(part, images)


def _save_image(part: Image, images: Path) -> dict:
    if isinstance(part.source, StoredPicture) and part.source.file.parent == images:
        file = part.source.file.name  # it is there already, damaged or not
    else:
        file = _save_picture(part.picture, images, part.origin, part.is_painted)
    entry = {"type": "image", "file": file, "seed": part.seed, "seconds": part.seconds, "alt": clean_text(part.alt)}
    if part.drafts:
        entry["drafts"] = [_save_image(each, images) for each in part.drafts]
    if part.origin:
        entry["origin"] = part.origin
    if part.role:
        entry["role"] = part.role
    if part.reference:
        entry["reference"] = {name: clean_text(value) for name, value in asdict(part.reference).items()}
    if part.motion:
        entry["motion"] = {"file": _save_motion(part.motion, images), "words": clean_text(part.motion.words)}
    return entry | ({"mask": _save_picture(part.mask, images)} if part.mask else {})


def _link_turn(turn: Turn, entries: list[dict], images: Path) -> Turn:
    """The turn with its pictures in the files that `_save_piece` wrote."""
    pairs = zip(turn.parts, entries, strict=True)
    linked = tuple(_link_image(part, entry, images) if isinstance(part, Image) else part for part, entry in pairs)
    return turn if all(new is old for new, old in zip(linked, turn.parts, strict=True)) else replace(turn, parts=linked)


def _link_image(image: Image, entry: dict, images: Path) -> Image:
    file = images / entry["file"]
    if image.motion and image.motion.source != images / entry["motion"]["file"]:
        image = replace(image, motion=replace(image.motion, source=images / entry["motion"]["file"]))
    if isinstance(image.source, StoredPicture) and image.source.file == file:
        return image
    drafts = [_link_image(draft, each, images) for draft, each in zip(image.drafts, entry.get("drafts", ()), strict=True)]
    return replace(image, source=StoredPicture(file, image.picture), drafts=tuple(drafts))


def _save_picture(picture: PILImage.Image, images: Path, origin: Origin | None = None, painted: bool = False) -> str:
    """The name of the file in `images` that holds it, by its content."""
    name = hashlib.sha256(picture.tobytes()).hexdigest() + ".png"
    if not (images / name).exists() or not (images / name).stat().st_size:
        write_beside(images / name, encode_signed(picture, "PNG", origin, painted))
    return name


def _save_motion(motion: Motion, images: Path) -> str:
    """The name of the file in `images` that holds it, by its content."""
    if isinstance(motion.source, Path) and motion.source.parent == images:
        return motion.source.name
    data = motion.source if isinstance(motion.source, bytes) else motion.source.read_bytes()
    name = hashlib.sha256(data).hexdigest() + ".mp4"
    if not (images / name).exists():
        write_beside(images / name, data)
    return name


def _find_motion(entry: dict, images: Path) -> Motion | None:
    """The animation that an image's entry names; `None` where its file is not there, or is none."""
    file = images / entry["motion"]["file"] if "motion" in entry else None
    known = file is not None and MOTION_FILE.fullmatch(entry["motion"]["file"]) and file.is_file()
    return Motion(file, entry["motion"]["words"]) if file is not None and known else None


def _load_moving(
    entry: dict,
    images: Path,
    load_picture: Callable[[str], PILImage.Image | StoredPicture],
    load_mask: Callable[[str], PILImage.Image | None],
) -> Image:
    """As `_load_image`, with its animation."""
    image = _load_image(entry, load_picture, load_mask)
    motion = _find_motion(entry, images)
    return replace(image, motion=motion) if motion else image


def _load_image(
    entry: dict, load_picture: Callable[[str], PILImage.Image | StoredPicture], load_mask: Callable[[str], PILImage.Image | None]
) -> Image:
    mask = load_mask(entry["mask"]) if "mask" in entry else None
    drafts = tuple(_load_image(each, load_picture, load_mask) for each in entry.get("drafts", ()))
    older = Origin.PAINTED if entry["seed"] is not None else None  # written before origins were
    origin = Origin(entry["origin"]) if entry.get("origin") else older
    about = entry.get("reference")
    reference = Reference(about["name"], about["kind"], about["words"]) if about else None
    picture, role = load_picture(entry["file"]), entry.get("role", "")
    image = Image(picture, entry["seed"], entry["seconds"], entry["alt"], mask, drafts, origin, reference, role)
    return image if mask is None or mask.size == image.picture.size else replace(image, mask=None)


def _load_picture(images: Path, read: dict[str, PILImage.Image], name: str) -> PILImage.Image:
    """A picture that several branches share is one object, as it was when it was made."""
    if name not in read:
        read[name] = open_picture(images / Path(name).name, letterbox=True)
    return read[name]


def _load_mask(images: Path, read: dict[str, PILImage.Image], name: str) -> PILImage.Image:
    return _load_picture(images, read, name).convert("L")


def _find_picture(images: Path, found: dict[str, StoredPicture], name: str) -> StoredPicture:
    return found.setdefault(name, StoredPicture(images / Path(name).name))


def _find_mask(images: Path, read: dict[str, PILImage.Image | None], name: str) -> PILImage.Image | None:
    """A mask; `None` for a damaged one. Another picture than `save_conversation` writes as a mask is never decoded."""
    if name not in read:
        file = images / Path(name).name
        try:
            read[name] = open_picture(file, letterbox=True).convert("L") if read_header(file)[1] == "L" else None
        except ValueError:
            read[name] = None
    return read[name]
