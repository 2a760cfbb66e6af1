"""Disk space that can be freed: copies that are made again when needed, and deleted items."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from duogen.library.conversations import ConversationStore
from duogen.library.pictures import Gallery
from ui.parts.pictures import PictureFolder

IN_USE_SECONDS = 3600


@dataclass(frozen=True)
class FreeableSpace:
    """The number of files and bytes of each kind."""

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
class DiskSpace:
    """
    Attributes:
        shown: folders of pictures as the chat shows them.
        uploads: holds the files that browsers send, until they are in a conversation or the library.
    """

    gallery: Gallery
    store: ConversationStore
    shown: tuple[PictureFolder, ...]
    uploads: Path

    def freeable(self) -> FreeableSpace:
        room, old = self.gallery.freeable(), [file.stat().st_size for file in self._old_uploads()]
        copies = room.thumbnails + sum(map(len, self.shown)) + len(old)
        copy_bytes = room.thumbnail_bytes + sum(folder.bytes for folder in self.shown) + sum(old)
        return FreeableSpace(copies, copy_bytes, room.deleted, room.deleted_bytes, *self.store.measure_deleted())

    def delete_freeable(self) -> None:
        """Delete what `freeable` counts."""
        self.gallery.delete_freeable()
        self.store.purge_deleted()
        for folder in self.shown:
            folder.clear()
        for file in self._old_uploads():
            file.unlink(missing_ok=True)

    def _old_uploads(self) -> list[Path]:
        """Newer uploads may be in a message that is not sent yet."""
        found = [file for file in self.uploads.rglob("*") if file.is_file()] if self.uploads.is_dir() else []
        return [file for file in found if time.time() - file.stat().st_mtime > IN_USE_SECONDS]
