"""A change of a picture as a request to the pair: mask, canvas and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as PILImage
from PIL import ImageFilter

from duogen.conversation import Conversation
from duogen.library.pictures import Entry
from duogen.options import Options

MAX_SIDE = 4096
MARKED_ALPHA = 16
BRUSH = (139, 92, 246, 140)  # the colour of what is marked
CANVAS_COLOUR = (208, 208, 214)  # of what a picture before did not have
MOST_ALIKE = 0.3  # share of equal pixels from which one picture counts as the middle of another
SOURCE, REFERENCE = "source", "reference"
PLACES = {
    "top left": (0, 0), "top": (0.5, 0), "top right": (1, 0), "left": (0, 0.5), "middle": (0.5, 0.5), "right": (1, 0.5),
    "bottom left": (0, 1), "bottom": (0.5, 1), "bottom right": (1, 1),
}  # fmt: skip


@dataclass(frozen=True)
class PictureChange:
    """A requested change: a conversation whose last turn asks for a change of `entry`.

    Attributes:
        words: what is to change; "" where only an example shows it.
        before: the picture of which the result keeps the size and what did not change; `None` where a mask or a chosen size rules.
        by_example: an example shows the change.
    """

    entry: Entry
    words: str
    asked: Conversation
    options: Options
    before: PILImage.Image | None = None
    by_example: bool = False


def brush_mask(layers: list[PILImage.Image], size: tuple[int, int]) -> PILImage.Image | None:
    """The area that the brush covered as an "L" picture of `size`, white where covered; `None` if it covered nothing."""
    mask = PILImage.new("L", size)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A")
        if alpha.size != size:
            alpha = alpha.resize(size, PILImage.Resampling.BOX)
        mask.paste(255, mask=alpha.point(lambda value: 255 if value >= MARKED_ALPHA else 0))
    return mask if mask.getbbox() else None


def paint_layer(mask: PILImage.Image) -> PILImage.Image:
    """A mask as the layer that the brush would have left."""
    layer = PILImage.new("RGBA", mask.size)
    layer.paste(BRUSH, mask=mask)
    return layer


def box_mask(size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]]) -> PILImage.Image:
    """A mask of `size`, white inside the boxes."""
    mask = PILImage.new("L", size)
    for box in boxes:
        mask.paste(255, box)
    return mask


def find_region(picture: PILImage.Image, point: tuple[int, int], tolerance: int) -> PILImage.Image:
    """The region around a point, as a mask: all places of its colour that hang together.

    Args:
        tolerance: by how much each colour channel may differ from that of the point, of 255.
    """
    from scipy import ndimage  # of use only where somebody taps

    pixels = np.asarray(picture).astype(np.int16)
    alike = (np.abs(pixels - pixels[point[1], point[0]]) <= tolerance).all(-1)
    labels, _ = ndimage.label(alike)
    region = PILImage.fromarray((labels == labels[point[1], point[0]]).astype(np.uint8) * 255)
    return region.filter(ImageFilter.MaxFilter(3))  # with its soft edge


def lay_on_canvas(before: PILImage.Image, after: PILImage.Image) -> PILImage.Image | None:
    """`before` where it lies in `after`, a larger canvas that was painted around it; `None` where it is not in there."""
    if before.width > after.width or before.height > after.height:
        return None
    gaps = after.width - before.width, after.height - before.height
    old, alike = np.asarray(before), {}
    for shares in PLACES.values():
        left, top = (round(share * gap) for share, gap in zip(shares, gaps, strict=True))
        inner = np.asarray(after.crop((left, top, left + before.width, top + before.height)))
        alike[left, top] = float((inner == old).all(-1).mean())
    place = max(alike, key=alike.__getitem__)
    if alike[place] < MOST_ALIKE:
        return None
    canvas = PILImage.new("RGB", after.size, CANVAS_COLOUR)
    canvas.paste(before, place)
    return canvas


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
