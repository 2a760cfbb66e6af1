"""Read web archives (WARC, ARC, WACZ): pages by place, and pictures by address through an index on disk.

An archive is read as far as it is sound. What is damaged is named in `Warc.damage`, and reading goes on at the next sound record.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from duogen.data_engine.http_body import unpack_body
from duogen.data_engine.limits import LARGEST_PAGE, check_size
from duogen.data_engine.warc_index import Records, build_index, content_type, record_address
from duogen.data_engine.web_addresses import address_key, join_address

HOPS = 6  # redirects and revisits on the way to a picture
# A page that the server did not give ("error") is listed and then refused, so that the report counts it.
LISTED = "SELECT part, at FROM records WHERE what IN ('page', 'error') ORDER BY part, at"
FOUND = """SELECT part, at, what, target, digest FROM records
           WHERE key = ? AND what != 'error' ORDER BY what IN ('redirect', 'revisit'), url != ?, at LIMIT 8"""
SAME = "SELECT part, at FROM records WHERE digest = ? AND what IN ('file', 'page') LIMIT 1"


class Response(NamedTuple):
    """What a server answered. `charset` is the encoding that it named, "" if none."""

    url: str
    body: bytes
    charset: str = ""


def list_warc_pages(file: Path, scratch: Path | None = None) -> Iterator[str]:
    """The pages of an archive in order, and a name for each damage of it, which cannot be read.

    Raises:
        Exception: there is no archive in the file; whatever the file system or a library raises.
    """
    archive = Warc.open_cached(file, scratch)
    yield from (f"{at}" if not part else f"{part}:{at}" for part, at in archive.index.execute(LISTED))
    yield from (f"damage {number}" for number in range(len(archive.damage)))


@lru_cache(maxsize=1)
def _own_scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="duogen-warc-")


class Warc:
    """One archive with an index of its records. All processes share the index in the folder `scratch`."""

    def __init__(self, file: Path, scratch: Path | None = None) -> None:
        """Open the index, and build it first where it is missing."""
        stat = file.stat()
        key = hashlib.sha256(os.fsencode(file.resolve()) + f" {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:24]
        folder = scratch or Path(_own_scratch().name)
        folder.mkdir(parents=True, exist_ok=True)
        name = folder / f"{key}.sqlite"
        if not name.exists():
            build_index(file, name)
        self.index = sqlite3.connect(name, check_same_thread=False)
        found = self.index.execute("SELECT file, arc FROM parts ORDER BY part")
        self.parts = [(folder / path if path else file, bool(arc)) for path, arc in found]
        self.damage = [reason for (reason,) in self.index.execute("SELECT reason FROM damage ORDER BY part, rowid")]

    @staticmethod
    @lru_cache(maxsize=8)
    def open_cached(file: Path, scratch: Path | None = None) -> Warc:
        return Warc(file, scratch)

    def read_page(self, member: str) -> Response:
        """A page by its name from `list_warc_pages`.

        Raises:
            ValueError: the name stands for damage, for an error of the server, or for a page that cannot be unpacked.
        """
        if member.startswith("damage "):
            raise ValueError(self.damage[int(member.removeprefix("damage "))])
        part, _, at = member.rpartition(":")
        found = self.index.execute("SELECT status, what FROM records WHERE part = ? AND at = ?", (int(part or 0), int(at))).fetchone()
        if found[1] == "error":
            raise ValueError(f"the server answered {found[0]}, so it is no page")
        return self._read(int(part or 0), int(at))

    def read_picture(self, url: str) -> bytes | None:
        """The bytes that the crawl fetched from an address, also by way of redirects; `None` if there are none.

        A record that cannot be unpacked gives no bytes (`b""`).
        """
        found = self._find_record(url, HOPS)
        if found is None:
            return None
        try:
            return self._read(*found).body
        except Exception:  # whatever damage raises costs this picture
            return b""

    def _find_record(self, url: str, hops: int) -> tuple[int, int] | None:
        """The place of what an address leads to."""
        if not hops:
            return None
        url = url.partition("#")[0]
        for part, at, what, target, digest in self.index.execute(FOUND, (address_key(url), url)).fetchall():
            if what not in ("redirect", "revisit"):
                return part, at
            found = self._find_record(join_address(url, target), hops - 1) if target and target != url else None
            if found is None and what == "revisit" and digest:
                found = self.index.execute(SAME, (digest,)).fetchone()
            if found is not None:
                return found
        return None

    def _read(self, part: int, at: int) -> Response:
        file, arc = self.parts[part]
        with file.open("rb") as stream:
            stream.seek(at)
            record = next(iter(Records(stream, arc)))
            return Response(record_address(record), _read_body(record), content_type(record)[1])


def _read_body(record: Any) -> bytes:
    """What a server sent, without the packing of its transfer."""
    body = check_size(record.raw_stream.read(LARGEST_PAGE + 1))
    headers = record.http_headers
    if headers is None:
        return body
    return unpack_body(body, headers.get_header("Transfer-Encoding") or "", headers.get_header("Content-Encoding") or "")
