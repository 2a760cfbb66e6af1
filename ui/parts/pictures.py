"""Pictures on their way in and out: a box for a brought picture, and pictures and animations as files for the chat.

A picture object in the chat's history would be encoded again at every word.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import weakref
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image as PILImage

from duogen.content_credentials import encode_signed, signer_id
from duogen.conversation import Image, Motion
from duogen.files import make_folder, write_beside
from duogen.library.motion_file import is_motion
from duogen.provenance import Origin
from duogen.stored_picture import StoredPicture, open_pixels

MOST_BYTES = 512 * 1024**2
# Some systems and browsers do not know that these are pictures.
UPLOAD_TYPES = ["image", ".heic", ".heif", ".avif", ".jfif", ".jp2"]


class PictureBox(gr.Image):
    """A box whose file comes in as it was brought, for `open_picture` to read.

    Gradio itself would drop its colour profile, lay its alpha on black, and call a damaged one by the words of a library.
    """

    def preprocess(self, payload: ImageData | None) -> Any:
        if payload is None or payload.path is None:
            return super().preprocess(payload)
        return payload.path

    @classmethod
    def get_block_name(cls) -> str:
        """The name of its code in the browser."""
        return "image"


class PictureFolder:
    """A folder of PNG and MP4 files named by their content. It keeps the last used, at most `limit` files and `most` bytes. Thread-safe."""

    def __init__(self, folder: Path, limit: int, most: int = MOST_BYTES) -> None:
        self.folder, self.limit, self.most = folder, limit, most
        make_folder(folder)
        kept = [file for file in folder.iterdir() if file.suffix in (".png", ".mp4") and not file.name.startswith(".")]
        found = sorted((file.stat().st_mtime, file, file.stat().st_size) for file in kept)
        self._files = {file: size for _, file, size in found}
        self.bytes = sum(self._files.values())
        self._known: dict[tuple[int, int, Origin | None, bool], Path] = {}  # by picture object, as hashing costs more than showing
        self._lock = threading.Lock()

    def keep_image(self, image: Image, most: int = 0) -> str:
        """As `keep`, with the image's origin, which every file must carry that a browser can save, signed where it was painted."""
        return self.keep(image.source, most, image.origin, image.is_painted)

    def keep(self, picture: PILImage.Image | StoredPicture, most: int = 0, origin: Origin | None = None, painted: bool = False) -> str:
        """The path of a file that holds `picture` and its origin, made smaller to `most` pixels a side if that is not 0.

        The pixels of a file are read once only.
        """
        key = (id(picture), most, origin, painted)
        with self._lock:
            file = self._known.get(key)
            if file is None:
                file = self._known[key] = self._write(open_pixels(picture), most, origin, painted)
                weakref.finalize(picture, self._known.pop, key, None)
            self._use(file)
        return str(file)

    def keep_motion(self, motion: Motion) -> str:
        """The path of a file that holds an animation, "" where the animation's own file is gone or is no video."""
        with self._lock, contextlib.suppress(OSError):
            data = motion.source if isinstance(motion.source, bytes) else None
            name = hashlib.sha256(data).hexdigest() if data else Path(str(motion.source)).stem
            file = self.folder / f"{name}.mp4"
            if not file.exists():
                data = data or Path(str(motion.source)).read_bytes()
                if not is_motion(data) or hashlib.sha256(data).hexdigest() != name:
                    return ""
                write_beside(file, data)
            self._use(file)
            return str(file)
        return ""

    def _use(self, file: Path) -> None:
        """Make a file the newest, and delete the oldest where there are too many."""
        size = self._files.pop(file, None)
        if size is None:
            size = file.stat().st_size
            self.bytes += size
        self._files[file] = size  # a dict remembers the order: the last is the newest
        while len(self._files) > self.limit or (self.bytes > self.most and len(self._files) > 1):
            self._drop(next(iter(self._files)))

    def _write(self, picture: PILImage.Image, most: int, origin: Origin | None, painted: bool) -> Path:
        if most and max(picture.size) > most:
            picture = picture.copy()
            picture.thumbnail((most, most))
        named = f"{picture.width}x{picture.height}{origin or ''}{signer_id() if painted else ''}".encode()
        file = self.folder / (hashlib.sha256(named + picture.tobytes()).hexdigest()[:32] + ".png")
        if not file.exists():
            write_beside(file, encode_signed(picture, "PNG", origin, painted, compress_level=1))
        return file

    def __len__(self) -> int:
        return len(self._files)

    def clear(self) -> None:
        """Delete all files. A picture that is needed again is written again."""
        with self._lock:
            for file in list(self._files):
                self._drop(file)

    def _drop(self, gone: Path) -> None:
        self.bytes -= self._files.pop(gone)
        for key in [key for key, file in self._known.items() if file == gone]:
            del self._known[key]
        gone.unlink(missing_ok=True)
