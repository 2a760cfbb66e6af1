"""Read WARC archives: pages by offset, and pictures by address through an index on disk."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from warcio.archiveiterator import ArchiveIterator

PAGES = ("text/html", "application/xhtml+xml")


def list_warc_pages(file: Path) -> Iterator[int]:
    """The offsets of the pages of an archive, in order. A damaged archive gives those before the damage."""
    yield from (at for (at,) in Warc.open_cached(file).index.execute("SELECT at FROM records WHERE page ORDER BY at"))


class Warc:
    """One archive with an index of its records. All processes share the index in the temporary folder."""

    def __init__(self, file: Path) -> None:
        self.file = file
        stat = file.stat()
        key = hashlib.sha256(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:24]
        name = Path(tempfile.gettempdir(), f"duogen-warc-{os.getuid() if hasattr(os, 'getuid') else 0}-{key}.sqlite")
        if not name.exists():
            self._build_index(name)
        self.index = sqlite3.connect(name, check_same_thread=False)

    @staticmethod
    @lru_cache(maxsize=8)
    def open_cached(file: Path) -> Warc:
        return Warc(file)

    def _build_index(self, name: Path) -> None:
        part = name.with_suffix(f".{os.getpid()}.part")
        index = sqlite3.connect(part)
        index.execute("CREATE TABLE records (url TEXT, at INTEGER, page INTEGER)")
        with self.file.open("rb") as stream:
            records = ArchiveIterator(stream)
            for record in records:
                kind = _content_type(record)
                if record.rec_type == "response" and (kind in PAGES or kind.startswith("image/")):
                    url = record.rec_headers.get_header("WARC-Target-URI") or ""
                    index.execute("INSERT INTO records VALUES (?, ?, ?)", (url.strip("<>"), records.get_record_offset(), kind in PAGES))
        index.execute("CREATE INDEX by_url ON records (url)")
        index.commit()
        index.close()
        part.replace(name)

    def _read(self, at: int) -> tuple[str, bytes]:
        with self.file.open("rb") as stream:
            stream.seek(at)
            record = next(iter(ArchiveIterator(stream)))
            return (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<>"), record.content_stream().read()

    def read_page(self, at: int) -> tuple[str, bytes]:
        """Address and HTML of the page that begins at an offset."""
        return self._read(at)

    def read_picture(self, url: str) -> bytes | None:
        """The bytes that the crawl fetched from an address, `None` if there are none."""
        found = self.index.execute("SELECT at FROM records WHERE url = ? AND NOT page LIMIT 1", (url.split("#")[0],)).fetchone()
        return self._read(found[0])[1] if found else None


def _content_type(record: Any) -> str:
    said = record.http_headers.get_header("Content-Type") if record.http_headers else ""
    return (said or "").partition(";")[0].strip().lower()
