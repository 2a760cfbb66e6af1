"""Disk space that can be had back: copies that are made again when they are needed, and what was deleted."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from duogen.library.conversations import Store
from duogen.library.pictures import Gallery
from ui.parts.pictures import PictureFolder

IN_USE_SECONDS = 3600


@dataclass(frozen=True)
class Freeable:
    """How many files and bytes there are of each kind."""

    copies: int
    copy_bytes: int
    pictures: int
    picture_bytes: int
    conversations: int
    conversation_bytes: int

    @property
    def bytes(self) -> int:
        return self.copy_bytes + self.picture_bytes + self.conversation_bytes


@dataclass(frozen=True)
class Space:
    """
    Attributes:
        shown: folders of pictures as the chat shows them.
        uploads: where what browsers send lies until it is in a conversation or the library.
    """

    gallery: Gallery
    store: Store
    shown: tuple[PictureFolder, ...]
    uploads: Path

    def freeable(self) -> Freeable:
        room, old = self.gallery.room(), [file.stat().st_size for file in self._old_uploads()]
        copies = room.thumbnails + sum(map(len, self.shown)) + len(old)
        copy_bytes = room.thumbnail_bytes + sum(folder.bytes for folder in self.shown) + sum(old)
        return Freeable(copies, copy_bytes, room.deleted, room.deleted_bytes, *self.store.laid_aside())

    def free(self) -> None:
        """Throw away what `freeable` counts."""
        self.gallery.free()
        self.store.forget_deleted()
        for folder in self.shown:
            folder.clear()
        for file in self._old_uploads():
            file.unlink(missing_ok=True)

    def _old_uploads(self) -> list[Path]:
        """A younger one may be in a box that nobody has sent yet."""
        found = [file for file in self.uploads.rglob("*") if file.is_file()] if self.uploads.is_dir() else []
        return [file for file in found if time.time() - file.stat().st_mtime > IN_USE_SECONDS]
