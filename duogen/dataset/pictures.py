"""The pictures of training data: looked at once, and those that come inside tables and data URLs written to files."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from duogen.dataset.crops import Crop
from duogen.files import write_beside
from duogen.picture_input import open_picture

COLOUR_PARTS = 8  # of each side
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
DATA_URL = re.compile(r"data:[^,]{0,200}?;base64,", re.I)


@dataclass(frozen=True)
class PictureFacts:
    """What is known of a picture.

    Attributes:
        size: (width, height), upright.
        digest: of its pixels; equal for the same picture in two files.
        hash: its difference hash, 256 bits.
        colours: the mean colours of 8 x 8 parts, three bytes each.
    """

    size: tuple[int, int]
    digest: bytes
    hash: bytes
    colours: bytes


def inspect_picture(file: Path, crop: Crop | None = None) -> PictureFacts:
    """Read a picture whole, and tell of it or of a part of it; a file that has not changed is read once.

    Raises:
        ValueError: it cannot be read; the message names the file and says why.
    """
    try:
        about = file.stat()
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read: {error.strerror or error}.") from error
    if not stat.S_ISREG(about.st_mode):  # reading a pipe may wait for ever
        raise ValueError(f"{file.name} is {'a folder' if stat.S_ISDIR(about.st_mode) else 'no file'}, not a picture.")
    found = _inspect(file, crop, about.st_mtime_ns, about.st_size)
    if isinstance(found, str):
        raise ValueError(found)
    return found


@lru_cache(maxsize=1_000_000)
def _inspect(file: Path, crop: Crop | None, changed: int, size: int) -> PictureFacts | str:
    """The facts, or why there are none."""
    try:
        picture = open_picture(file)
        picture = crop.cut(picture) if crop else picture
    except ValueError as error:
        return str(error)
    except Exception:  # a damaged file raises whatever its decoder raises
        return f"{file.name} cannot be read as a picture; bring a PNG, JPEG, WebP, AVIF or HEIC file."
    digest = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).digest()
    colours = picture.convert("RGB").resize((COLOUR_PARTS, COLOUR_PARTS), PILImage.Resampling.BOX).tobytes()
    return PictureFacts(picture.size, digest, np.packbits(_difference_bits(picture)).tobytes(), colours)


def _difference_bits(picture: PILImage.Image) -> np.ndarray:
    """256 bits: in a 17 x 16 miniature, whether each pixel is darker than the one to its right (after N. Krawetz's dHash)."""
    small = np.asarray(picture.convert("L").resize((17, 16), PILImage.Resampling.BOX), np.int16)
    return (small[:, :-1] + 4 < small[:, 1:]).flatten()


def is_lfs_pointer(file: Path) -> bool:
    """Whether git-lfs left a pointer in place of the file."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


class PictureStore:
    """A folder for the pictures of a data set that have no file of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, data: bytes) -> Path:
        """Write a picture to a file that is named by its content. Returns the file."""
        file = self.folder / f"{hashlib.sha256(data).hexdigest()[:24]}.png"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_beside(file, data)
        return file

    def save_data_url(self, url: str) -> Path:
        """The same for a picture in a data URL.

        Raises:
            ValueError: it is no data URL in Base64.
        """
        begin = DATA_URL.match(url)
        if begin is None:
            raise ValueError("a data URL is not in Base64")
        try:
            file = self.save(base64.b64decode(url[begin.end() :], validate=False))
            inspect_picture(file)
        except (binascii.Error, ValueError) as error:
            raise ValueError("the picture in a data URL cannot be read") from error
        return file
