"""A picture of a stored conversation, read from its file when its pixels are needed. A long conversation does not fill the memory."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from pathlib import Path

from PIL import Image as PILImage

from duogen.paths import ASSETS
from duogen.picture_input import MAX_PIXELS, open_picture

KEPT_PIXELS = 8_000_000  # 32 MB, shared by all conversations
Version = tuple[Path, int, int]  # a file, when it was changed (ns), and its bytes
PLACEHOLDER = ASSETS / "damaged.png"  # stands in the place of a picture whose file is damaged


class StoredPicture:
    """A picture file. While somebody holds its pixels, `open` returns the same object.

    Args:
        picture: its pixels, where somebody has them already.
    """

    def __init__(self, file: Path, picture: PILImage.Image | None = None) -> None:
        self.file = file
        self._opened: weakref.ref[PILImage.Image] | None = weakref.ref(picture) if picture else None
        self._version: Version | None = None  # of the file whose pixels these are

    def open(self) -> PILImage.Image:
        """The pixels as RGB; for a damaged file, a grey picture that says so."""
        with RECENT.lock:
            picture = self._opened() if self._opened else None
            if picture is None or self._version is None:
                self._version = _read_version(self.file)
            picture = picture or RECENT.find(self._version)
            if picture is None:
                try:
                    picture = open_picture(self.file)
                except Exception:  # whatever a damaged file raises, it costs this picture alone
                    return open_picture(PLACEHOLDER)
            self._opened = weakref.ref(picture)
            RECENT.keep(self._version, picture)
            return picture


def open_pixels(source: PILImage.Image | StoredPicture) -> PILImage.Image:
    """The pixels of a picture, wherever they are."""
    return source.open() if isinstance(source, StoredPicture) else source


class RecentPictures:
    """The pixels that were used last, of all conversations together."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._kept: OrderedDict[Version, PILImage.Image] = OrderedDict()
        self._pixels = 0

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, version: Version) -> PILImage.Image | None:
        """The pixels of a file, where they are kept."""
        return self._kept.get(version)

    def keep(self, version: Version, picture: PILImage.Image) -> None:
        """Keep the pixels of a file once, and give up those that were used before them and are more than `KEPT_PIXELS`."""
        old = self._kept.pop(version, None)
        self._kept[version] = picture
        self._pixels += picture.width * picture.height - (old.width * old.height if old else 0)
        while self._pixels > KEPT_PIXELS and len(self._kept) > 1:
            _, gone = self._kept.popitem(last=False)
            self._pixels -= gone.width * gone.height


RECENT = RecentPictures()


def _read_version(file: Path) -> Version:
    """The file as it is now."""
    try:
        now = file.stat()
    except OSError:
        return file, 0, 0
    return file, now.st_mtime_ns, now.st_size


def read_header(file: Path) -> tuple[int, str]:
    """The number of pixels of a picture file and its mode, without decoding it; 0 for what is no picture or has too many pixels."""
    try:
        with PILImage.open(file) as picture:
            pixels = picture.width * picture.height
            return (pixels, picture.mode) if pixels <= MAX_PIXELS else (0, "")
    except Exception:  # whatever a damaged file raises
        return 0, ""
