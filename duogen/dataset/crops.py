"""The part of a picture that a person chose to train: kept in a file beside the picture, `boat.png.crop` for `boat.png`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image as PILImage

from duogen.files import read_text, write_beside
from duogen.picture_input import THINNEST

CROP = ".crop"
LEAST_SIDE = 16  # pixels
LARGEST_CROP = 1 << 12  # bytes


class Crop(NamedTuple):
    """A part of a picture, in pixels of the upright picture."""

    left: int
    top: int
    width: int
    height: int

    def is_inside(self, size: tuple[int, int]) -> bool:
        """Whether it is a part of a picture of `size`, and neither too small nor too thin to train."""
        shorter, longer = sorted((self.width, self.height))
        fits = self.left + self.width <= size[0] and self.top + self.height <= size[1] and min(self.left, self.top) >= 0
        return fits and shorter >= min(LEAST_SIDE, *size) and longer <= THINNEST * shorter

    def cut(self, picture: PILImage.Image) -> PILImage.Image:
        """Cut the part out. Raises ValueError: it is no part of this picture."""
        if not self.is_inside(picture.size):
            raise ValueError("The picture has changed since its crop was chosen; choose it again.")
        return picture.crop((self.left, self.top, self.left + self.width, self.top + self.height))


def crop_file(picture: Path) -> Path:
    """The file that holds the crop of a picture, whether it is there or not."""
    return picture.with_name(picture.name + CROP)


def parse_crop(raw: Any, size: tuple[int, int]) -> Crop | None:
    """The crop in data that come from elsewhere; `None` where they hold none of a picture of `size`."""
    numbers = [raw.get(name) for name in Crop._fields] if isinstance(raw, dict) else []
    if not numbers or any(type(number) is not int for number in numbers):
        return None
    return crop if (crop := Crop(*numbers)).is_inside(size) else None


def read_crop(picture: Path, size: tuple[int, int]) -> Crop | None:
    """Read the crop of a picture of `size`, `None` where none was chosen.

    Raises:
        ValueError: the file of the crop holds none of this picture.
    """
    file = crop_file(picture)
    if not file.exists():
        return None
    try:
        crop = parse_crop(json.loads(read_text(file, LARGEST_CROP)), size)
    except (ValueError, RecursionError):
        crop = None
    if crop is None:
        raise ValueError(f"{file.name} holds no part of its picture; choose the part again, or delete the file.")
    return crop


def write_crop(picture: Path, crop: Crop | None) -> None:
    """Write the crop of a picture beside it; `None` takes it away. Raises OSError: there is no room, or it may not be written."""
    if crop is None:
        crop_file(picture).unlink(missing_ok=True)
    else:
        write_beside(crop_file(picture), json.dumps(crop._asdict()).encode())
