"""A change of a picture as a question to the pair: its mask, its canvas, its words; and what comes of the answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from PIL import Image as PILImage

from duogen.conversation import Conversation, Image
from duogen.events import Event, Failed, ImageDone, ImageStarted, TextDelta
from duogen.library.pictures import Entry
from duogen.options import Options

MAX_SIDE = 4096
MARKED_ALPHA = 16
SOURCE, REFERENCE = "source", "reference"
PLACES = {
    "top left": (0, 0), "top": (0.5, 0), "top right": (1, 0), "left": (0, 0.5), "middle": (0.5, 0.5), "right": (1, 0.5),
    "bottom left": (0, 1), "bottom": (0.5, 1), "bottom right": (1, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What is to be made: a conversation whose last turn asks for a change of `entry`."""

    entry: Entry
    words: str
    asked: Conversation
    options: Options


@dataclass
class Outcome:
    """What came of one answer."""

    words: str = ""
    image: Image | None = None
    failure: str = ""
    began: float = field(default_factory=time.monotonic)

    def take(self, event: Event) -> None:
        match event:
            case TextDelta(text):
                self.words += text
            case ImageStarted():
                self.began = time.monotonic()
            case ImageDone(_, image):
                self.image = image
            case Failed(message):
                self.failure = message

    def seconds_left(self, step: int, steps: int) -> float:
        return (time.monotonic() - self.began) / step * (steps - step)


def mask_of(layers: list[PILImage.Image], size: tuple[int, int]) -> PILImage.Image | None:
    """What the brush covered, as "L" of `size`, white where it did; `None` if it covered nothing."""
    mask = PILImage.new("L", size)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A")
        if alpha.size != size:
            alpha = alpha.resize(size, PILImage.Resampling.BOX)
        mask.paste(255, mask=alpha.point(lambda value: 255 if value >= MARKED_ALPHA else 0))
    return mask if mask.getbbox() else None


def grown(size: tuple[int, int], width: float, height: float) -> tuple[int, int]:
    """A canvas of so many percent of a picture's size."""
    return round(size[0] * width / 100), round(size[1] * height / 100)


def extended(
    picture: PILImage.Image, mask: PILImage.Image | None, size: tuple[int, int], place: str
) -> tuple[PILImage.Image, PILImage.Image | None]:
    """A larger canvas with the picture at one of `PLACES`, and what may be painted: the new border and what was marked.

    The border is filled with the colours of the edge, for the pair to have something to go on.

    Raises:
        ValueError: the canvas is smaller than the picture or too large.
    """
    if size == picture.size:
        return picture, mask
    if size[0] < picture.width or size[1] < picture.height or max(size) > MAX_SIDE:
        raise ValueError(f"The canvas must be at least {picture.width} x {picture.height} and at most {MAX_SIDE} pixels a side.")
    left, top = (round(share * (new - old)) for share, new, old in zip(PLACES[place], size, picture.size, strict=True))
    sides = ((top, size[1] - picture.height - top), (left, size[0] - picture.width - left), (0, 0))
    whole = PILImage.fromarray(np.pad(np.asarray(picture), sides, mode="edge"))
    free = PILImage.new("L", size, 255)
    free.paste(mask or 0, (left, top, left + picture.width, top + picture.height))
    return whole, free


def request(words: str, kinds: list[str]) -> str:
    """The words of a change, with what each picture is for; the first, which is changed, is always a source."""
    if not kinds:
        return words
    about = {SOURCE: "is a source: keep its pixels.", REFERENCE: "is a reference: keep its looks only."}
    listed = [f"Picture {number} {about[kind]}" for number, kind in enumerate([SOURCE, *kinds], 1)]
    return " ".join([*listed, words])
