"""Pictures as files, which is how the chat shows them: a picture object in its history would be encoded anew at every word."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image as PILImage

from duogen.conversation import write_beside


class PictureFolder:
    """A folder of PNG files named by their content, in which the newest `limit` are kept."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True)
        found = [(file.stat().st_mtime, file) for file in folder.glob("*.png")]
        self._files = dict.fromkeys(file for _, file in sorted(found))

    def keep(self, picture: PILImage.Image) -> str:
        """The path of a file that holds `picture`."""
        size = f"{picture.width}x{picture.height}".encode()
        file = self.folder / (hashlib.sha256(size + picture.tobytes()).hexdigest()[:32] + ".png")
        self._files.pop(file, None)
        self._files[file] = None  # a dict remembers the order: the last is the newest
        if not file.exists():
            data = io.BytesIO()
            picture.save(data, "PNG", compress_level=1)
            write_beside(file, data.getvalue())
        while len(self._files) > self.limit:
            oldest = next(iter(self._files))
            del self._files[oldest]
            oldest.unlink(missing_ok=True)
        return str(file)
