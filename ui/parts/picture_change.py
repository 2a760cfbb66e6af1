"""A change of a picture as a request to the pair: mask, canvas and words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image as PILImage

from duogen.conversation import Conversation
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
class PictureChange:
    """A requested change: a conversation whose last turn asks for a change of `entry`."""

    entry: Entry
    words: str
    asked: Conversation
    options: Options


def brush_mask(layers: list[PILImage.Image], size: tuple[int, int]) -> PILImage.Image | None:
    """The area that the brush covered as an "L" picture of `size`, white where covered; `None` if it covered nothing."""
    mask = PILImage.new("L", size)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A")
        if alpha.size != size:
            alpha = alpha.resize(size, PILImage.Resampling.BOX)
        mask.paste(255, mask=alpha.point(lambda value: 255 if value >= MARKED_ALPHA else 0))
    return mask if mask.getbbox() else None


def scale_size(size: tuple[int, int], width: float, height: float) -> tuple[int, int]:
    """The size of a canvas that is `width` and `height` percent of a picture's size."""
    return round(size[0] * width / 100), round(size[1] * height / 100)


def extend_canvas(
    picture: PILImage.Image, mask: PILImage.Image | None, size: tuple[int, int], place: str
) -> tuple[PILImage.Image, PILImage.Image | None]:
    """A larger canvas with the picture at one of `PLACES`, and the mask of what may be painted: the new border and the marked area.

    The border is filled with the colours of the edge as a start for the pair.

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


def change_request(words: str, kinds: list[str]) -> str:
    """The words of a change, with the use of each picture. The first picture, which is changed, is always a source."""
    if not kinds:
        return words
    about = {SOURCE: "is a source: keep its pixels.", REFERENCE: "is a reference: keep its looks only."}
    listed = [f"Picture {number} {about[kind]}" for number, kind in enumerate([SOURCE, *kinds], 1)]
    return " ".join([*listed, words])
