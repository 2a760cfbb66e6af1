"""What travels between the page and a replica: calls one way, events the other, as bytes. A picture travels once, as its pixels.

Whoever unpacks gets one object for the same pixels, since a model's memory knows pictures by identity (`Image.shows_same`).
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image as PILImage

from duogen.conversation import Conversation
from duogen.events import Done, Event, Failed
from duogen.models.adapters import AdapterSpec
from duogen.stored_picture import StoredPicture, open_pixels

Pixels = tuple[str, tuple[int, int], bytes]  # mode, (width, height), and what `tobytes` gives


@dataclass(frozen=True)
class Call:
    """A method of the engine to be called, with the adapters that must be on meanwhile.

    Attributes:
        streams: whether it yields events and takes an event that stops it.
    """

    method: str
    arguments: tuple[Any, ...]
    adapters: tuple[AdapterSpec, ...] = ()
    streams: bool = True
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Value:
    """What a method returned that does not stream."""

    value: Any


@dataclass(frozen=True)
class Refusal:
    """The sentence of the ValueError that a method raised."""

    sentence: str


class Pictures:
    """The pictures that one side holds, by the digest of their pixels.

    Args:
        known: holds them; one that forgets what nobody else holds lets the models' memory decide.
    """

    def __init__(self, known: MutableMapping[str, PILImage.Image]) -> None:
        self.known = known

    def pack(self, value: Any, sent: set[str]) -> bytes:
        """A value as bytes, with the pixels of its pictures that are not `sent` yet; they are then."""
        body = io.BytesIO()
        packer = _Packer(body, self.known, sent)
        packer.dump(value)
        return pickle.dumps((packer.new, body.getvalue()), pickle.HIGHEST_PROTOCOL)

    def unpack(self, packed: bytes) -> Any:
        """The value that was packed. The same pixels are the same object for as long as `known` holds it."""
        new, body = pickle.loads(packed)
        arrived = {digest: self.known.get(digest) or PILImage.frombytes(*pixels) for digest, pixels in new.items()}
        self.known.update(arrived)
        return _Unpacker(io.BytesIO(body), self.known).load()


class _Packer(pickle.Pickler):
    """Leaves a picture's digest in its place, and its pixels in `new`."""

    def __init__(self, body: io.BytesIO, known: MutableMapping[str, PILImage.Image], sent: set[str]) -> None:
        super().__init__(body, pickle.HIGHEST_PROTOCOL)
        self.known, self.sent = known, sent
        self.new: dict[str, Pixels] = {}

    def persistent_id(self, obj: Any) -> str | None:
        if not isinstance(obj, PILImage.Image | StoredPicture):
            return None
        picture = open_pixels(obj)
        pixels = picture.mode, picture.size, picture.tobytes()
        digest = hashlib.blake2b(repr(pixels[:2]).encode() + pixels[2], digest_size=20).hexdigest()
        self.known.setdefault(digest, picture)
        if digest not in self.sent:
            self.new[digest] = pixels
            self.sent.add(digest)
        return digest


class _Unpacker(pickle.Unpickler):
    def __init__(self, body: io.BytesIO, known: MutableMapping[str, PILImage.Image]) -> None:
        super().__init__(body)
        self.known = known

    def persistent_load(self, pid: str) -> PILImage.Image:
        return self.known[pid]


def cut_branch(conversation: Conversation) -> Conversation:
    """The branch that is shown; the others do not travel."""
    return replace(conversation, turns={turn.id: turn for turn in conversation.path()})


def cut_new(event: Event, asked: Conversation) -> Event:
    """The end of an answer with its new turns alone: whoever asked has the others."""
    if not isinstance(event, Done | Failed):
        return event
    new = {id: turn for id, turn in event.conversation.turns.items() if id not in asked.turns}
    return replace(event, conversation=replace(event.conversation, turns=new))


def join_new(event: Event, asked: Conversation) -> Event:
    """What `cut_new` made, with the turns of the conversation that was asked about."""
    if not isinstance(event, Done | Failed):
        return event
    return replace(event, conversation=replace(event.conversation, turns=asked.turns | event.conversation.turns))
