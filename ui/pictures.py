"""Pictures as files, which is how the chat shows them: a picture object in its history would be encoded anew at every word."""

from __future__ import annotations

import hashlib
import io
import threading
import weakref
from pathlib import Path

from PIL import Image as PILImage

from duogen.conversation import write_beside


class PictureFolder:
    """A folder of PNG files named by their content, in which the newest `limit` are kept. Any thread may ask."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True)
        found = [(file.stat().st_mtime, file) for file in folder.glob("*.png")]
        self._files = dict.fromkeys(file for _, file in sorted(found))
        self._known: dict[tuple[int, int], Path] = {}  # by the picture object, as long as it lives: hashing costs more than showing
        self._lock = threading.Lock()

    def keep(self, picture: PILImage.Image, most: int = 0) -> str:
        """The path of a file that holds `picture`, made smaller to `most` pixels a side if that is not 0."""
        key = (id(picture), most)
        with self._lock:
            file = self._known.get(key)
            if file is None:
                file = self._known[key] = self._write(picture, most)
                weakref.finalize(picture, self._known.pop, key, None)
            self._files.pop(file, None)
            self._files[file] = None  # a dict remembers the order: the last is the newest
            self._bound()
        return str(file)

    def _write(self, picture: PILImage.Image, most: int) -> Path:
        if most and max(picture.size) > most:
            picture = picture.copy()
            picture.thumbnail((most, most))
        size = f"{picture.width}x{picture.height}".encode()
        file = self.folder / (hashlib.sha256(size + picture.tobytes()).hexdigest()[:32] + ".png")
        if not file.exists():
            data = io.BytesIO()
            picture.save(data, "PNG", compress_level=1)
            write_beside(file, data.getvalue())
        return file

    def _bound(self) -> None:
        while len(self._files) > self.limit:
            oldest = next(iter(self._files))
            del self._files[oldest]
            for key in [key for key, file in self._known.items() if file == oldest]:
                del self._known[key]
            oldest.unlink(missing_ok=True)
