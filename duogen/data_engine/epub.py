"""Read the chapters of an EPUB book, and its pictures."""

from __future__ import annotations

import posixpath
import re
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lxml import etree  # ty: ignore[missing-module-member]: compiled, and without stubs

from duogen.data_engine.limits import LARGEST_PAGE, check_size
from duogen.text_decoding import decode_page

CONTAINER, LOCKS = "META-INF/container.xml", "META-INF/encryption.xml"
LOCKED = re.compile(rb"""URI\s*=\s*["']([^"']+)""")
ABOUT = ("title", "creator", "rights", "date")


@dataclass(frozen=True)
class Book:
    """An open book. `folder` is the one of its package file; names of its files are compared without case."""

    archive: zipfile.ZipFile
    package: etree._Element
    folder: str
    names: dict[str, str]

    def read(self, name: str) -> bytes:
        """A file of the book.

        Raises:
            ValueError: it is not there or too large; zipfile and zlib raise errors of their own for locks and damage.
        """
        found = self.names.get(_plain(name))
        if found is None:
            raise ValueError(f"there is no {name} in it")
        with self.archive.open(found) as stream:
            return check_size(stream.read(LARGEST_PAGE + 1))

    def read_chapter(self, name: str) -> str:
        """The HTML of a chapter.

        Raises:
            ValueError: it is under copy protection, or no text; see also `read`.
        """
        if _plain(LOCKS) in self.names:
            locked = [unquote(each.decode("utf-8", "replace")) for each in LOCKED.findall(self.read(LOCKS))]
            if _plain(name) in map(_plain, locked):
                raise ValueError("it is under copy protection")
        return decode_page(self.read(name))

    def load(self, chapter: str, name: str) -> tuple[Path | None, bytes | None]:
        """The bytes of a picture of a chapter, none (`b""`) where they are damaged."""
        path = posixpath.join(posixpath.dirname(chapter), unquote(urlsplit(name).path))
        if _plain(path) not in self.names:
            return None, None
        try:
            return None, self.read(path)
        except Exception:  # whatever damage raises costs this picture
            return None, b""

    def list_chapters(self) -> list[str]:
        """The chapters in reading order, also those that are not there; every page of the book where it names no order."""
        items = {item.get("id"): item.get("href") for item in self.package.iter("{*}item") if item.get("href")}
        named = [items[ref.get("idref")] for ref in self.package.iter("{*}itemref") if ref.get("idref") in items]
        paths = [posixpath.normpath(posixpath.join(self.folder, unquote(urlsplit(name).path))) for name in dict.fromkeys(named)]
        return paths or sorted(name for name in self.names.values() if name.lower().endswith((".xhtml", ".html", ".htm")))

    def about(self) -> dict[str, str]:
        """What the package says of the book, by the names in `ABOUT`."""
        found = {name: self.package.find(f".//{{http://purl.org/dc/elements/1.1/}}{name}") for name in ABOUT}
        return {name: "" if each is None else "".join(each.itertext()).strip() for name, each in found.items()}


@contextmanager
def open_book(file: Path) -> Iterator[Book]:
    """Open a book.

    Raises:
        ValueError: it has no package; zipfile, zlib and lxml raise errors of their own for locks and damage.
    """
    with zipfile.ZipFile(file) as archive:
        names = {_plain(name): name for name in archive.namelist()}
        book = Book(archive, etree.Element("package"), "", names)
        roots = _parse(book.read(CONTAINER)).iter("{*}rootfile")
        path = next((each.get("full-path") for each in roots if each.get("full-path")), "")
        if not path:
            raise ValueError("its container names no package")
        yield Book(archive, _parse(book.read(path)), posixpath.dirname(path), names)


def _parse(raw: bytes) -> etree._Element:
    parsed = etree.fromstring(raw, etree.XMLParser(resolve_entities=False, no_network=True, recover=True))
    if parsed is None:
        raise ValueError("its package is damaged")
    return parsed


def _plain(path: str) -> str:
    """A path in one spelling: Windows writes backslashes, a Mac letters with their accents apart."""
    return unicodedata.normalize("NFC", posixpath.normpath(path.replace("\\", "/")).lstrip("/")).lower()
