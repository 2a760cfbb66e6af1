"""Files that browsers may change without knowing where they are: each is known by a key that nobody can guess."""

from __future__ import annotations

import secrets
from pathlib import Path

MOST_OFFERED = 5000


class OfferedFiles:
    """The files by their keys; the oldest are forgotten."""

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}

    def offer(self, file: Path) -> str:
        """A key for a file."""
        while len(self._files) >= MOST_OFFERED:
            self._files.pop(next(iter(self._files)))
        key = secrets.token_urlsafe(12)
        self._files[key] = file
        return key

    def find(self, key: str) -> Path | None:
        """The file of a key; `None` where no such key was given, or its folder is gone."""
        file = self._files.get(key)
        return file if file is not None and file.parent.is_dir() else None
