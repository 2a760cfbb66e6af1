"""The readers: which pages lie in a folder, and each of them as a `Sample`.

`places` walks and looks into nothing but archives; `read` opens one page, in whichever process it is wanted.
"""

from __future__ import annotations

import email
import email.policy
import hashlib
import os
import posixpath
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from lxml import etree

from duogen.data_engine.html import read_html
from duogen.data_engine.markdown import find_picture, read_markdown
from duogen.data_engine.sample import Block, Dropped, Sample, Source
from duogen.data_engine.warc import Warc, warc_pages

KINDS = {
    ".md": "markdown", ".markdown": "markdown", ".mkd": "markdown", ".html": "html", ".htm": "html", ".xhtml": "html",
    ".mhtml": "mhtml", ".mht": "mhtml", ".warc": "warc", ".gz": "warc", ".epub": "epub",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a page lies: a file below the root, and which page of it, for archives."""

    kind: str
    file: str
    member: str = ""

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.file}#{self.member}".encode()).hexdigest()[:16]


def places(root: Path) -> Iterator[Place]:
    """Every page below a folder (or in one file), always in the same order, as a stream.

    Raises:
        ValueError: there is no such folder.
    """
    if not root.exists():
        raise ValueError(f"There is no {root}; name a folder of saved pages.")
    for file in [root] if root.is_file() else _walk(root):
        kind = KINDS.get(file.suffix.lower())
        if kind is None or (file.suffix.lower() == ".gz" and not file.name.lower().endswith(".warc.gz")):
            continue
        name = str(file.relative_to(root)) if root.is_dir() else file.name
        if kind == "warc":
            yield from (Place(kind, name, str(offset)) for offset in warc_pages(file))
        elif kind == "epub":
            yield from (Place(kind, name, chapter) for chapter in _chapters(file))
        else:
            yield Place(kind, name)


def _walk(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def read(place: Place, root: Path, licence: str = "") -> Sample | Dropped:
    """Open a page; what cannot be read is dropped with the reason."""
    base = root if root.is_dir() else root.parent
    try:
        source, blocks = READERS[place.kind](base / place.file, base, place.member)
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile, etree.LxmlError, UnicodeError) as error:
        return Dropped(f"cannot be read: {' '.join(str(error).split())[:120] or type(error).__name__}")
    if not source.licence and licence:
        source = Source(**(vars(source) | {"licence": licence}))
    return Sample(place.id, source, tuple(blocks))


Read = tuple[Source, list[Block]]


def _markdown(file: Path, root: Path, member: str) -> Read:
    return read_markdown(file, root)


def _html(file: Path, root: Path, member: str) -> Read:
    return read_html(file.read_bytes(), str(file.relative_to(root)), lambda name: (_saved(name, file, root), None))


def _saved(name: str, file: Path, root: Path) -> Path | None:
    """Browsers save pictures under a folder beside the page, and write its name into the page; else the last part of the address tells."""
    found = find_picture(name, file, root)
    base = posixpath.basename(unquote(urlsplit(name).path))
    if found is None and base:
        folders = [file.with_suffix("").name + ending for ending in ("_files", ".files", "-Dateien", "")]
        found = next((each for folder in folders if (each := file.parent / folder / base).is_file()), None)
    return found


def _mhtml(file: Path, root: Path, member: str) -> Read:
    """A page that a browser saved as one file (RFC 2557)."""
    message = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
    pages, pictures = [], {}
    for part in message.walk():
        where = part.get("Content-Location", "")
        if part.get_content_type() == "text/html":
            pages.append((where, part))
        elif part.get_content_maintype() == "image":
            data = part.get_payload(decode=True)
            pictures[where] = data
            if part.get("Content-ID"):
                pictures["cid:" + part["Content-ID"].strip("<>")] = data
    if not pages:
        raise ValueError("it holds no page")
    url, part = pages[0]
    url = message.get("Snapshot-Content-Location", "") or url
    text = part.get_content()
    return read_html(text, str(file.relative_to(root)), lambda name: (None, pictures.get(name) or pictures.get(urljoin(url, name))), url)


def _warc(file: Path, root: Path, member: str) -> Read:
    archive = Warc.of(file)
    url, page = archive.page(int(member))
    return read_html(page, str(file.relative_to(root)), lambda name: (None, archive.picture(urljoin(url, name))), url)


OPF, DC = "{http://www.idpf.org/2007/opf}", "{http://purl.org/dc/elements/1.1/}"


def _package(book: zipfile.ZipFile) -> tuple[str, etree._Element]:
    """The package file of an EPUB and the folder that it stands in."""
    container = etree.fromstring(book.read("META-INF/container.xml"))
    path = container.find(".//{*}rootfile").get("full-path")
    return posixpath.dirname(path), etree.fromstring(book.read(path))


def _chapters(file: Path) -> list[str]:
    """The chapters of an EPUB in reading order; a damaged book is one page, which then cannot be read."""
    try:
        with zipfile.ZipFile(file) as book:
            folder, package = _package(book)
        items = {item.get("id"): item.get("href") for item in package.iter(f"{OPF}item")}
        named = [items[ref.get("idref")] for ref in package.iter(f"{OPF}itemref") if ref.get("idref") in items]
        return [posixpath.normpath(posixpath.join(folder, unquote(name))) for name in named]
    except (OSError, KeyError, AttributeError, zipfile.BadZipFile, etree.LxmlError):
        return [""]


def _epub(file: Path, root: Path, member: str) -> Read:
    with zipfile.ZipFile(file) as book:
        _, package = _package(book)
        names = set(book.namelist())

        def load(name: str) -> tuple[None, bytes | None]:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(member), unquote(urlsplit(name).path)))
            return None, book.read(path) if path in names else None

        source, blocks = read_html(book.read(member), str(file.relative_to(root)), load)
    said = {name: "".join(package.find(f".//{DC}{name}").itertext()) if package.find(f".//{DC}{name}") is not None else ""
            for name in ("title", "creator", "rights", "date")}  # fmt: skip
    first = next((block.text for block in blocks if getattr(block, "kind", "") == "heading"), "")
    whole = Source(source.file, member, first or source.title or said["title"], said["creator"], said["rights"], said["date"])
    return whole, blocks


READERS = {"markdown": _markdown, "html": _html, "mhtml": _mhtml, "warc": _warc, "epub": _epub}
