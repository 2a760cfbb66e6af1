"""List the pages in a folder and read each as a `Sample`.

`list_pages` opens no files but archives. `read_page` reads one page, in any process.
"""

from __future__ import annotations

import email
import email.policy
import hashlib
import os
import posixpath
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from lxml import etree  # ty: ignore[missing-module-member]: compiled, and without stubs

from duogen.data_engine.html import read_html
from duogen.data_engine.markdown import find_picture, read_markdown
from duogen.data_engine.sample import Block, Dropped, Sample, Source, Words
from duogen.data_engine.warc import Warc, list_warc_pages

KINDS = {
    ".md": "markdown", ".markdown": "markdown", ".mkd": "markdown", ".html": "html", ".htm": "html", ".xhtml": "html",
    ".mhtml": "mhtml", ".mht": "mhtml", ".warc": "warc", ".gz": "warc", ".epub": "epub",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """The place of a page: a file below the root and, for archives, the page in it."""

    kind: str
    file: str
    member: str = ""

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.file}#{self.member}".encode()).hexdigest()[:16]


def list_pages(root: Path) -> Iterator[Place]:
    """Yield every page below a folder (or in one file), always in the same order.

    Raises:
        ValueError: there is no such folder.
    """
    if not root.exists():
        raise ValueError(f"There is no {root}; name a folder of saved pages.")
    for file in [root] if root.is_file() else _list_files(root):
        kind = KINDS.get(file.suffix.lower())
        if kind is None or (file.suffix.lower() == ".gz" and not file.name.lower().endswith(".warc.gz")):
            continue
        name = str(file.relative_to(root)) if root.is_dir() else file.name
        if kind == "warc":
            yield from (Place(kind, name, str(offset)) for offset in list_warc_pages(file))
        elif kind == "epub":
            yield from (Place(kind, name, chapter) for chapter in _list_chapters(file))
        else:
            yield Place(kind, name)


def _list_files(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def read_page(place: Place, root: Path, licence: str = "") -> Sample | Dropped:
    """Read a page. An unreadable page is dropped with the reason."""
    base = root if root.is_dir() else root.parent
    try:
        source, blocks = READERS[place.kind](base / place.file, base, place.member)
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile, etree.LxmlError, UnicodeError) as error:
        return Dropped(f"cannot be read: {' '.join(str(error).split())[:120] or type(error).__name__}")
    if not source.licence and licence:
        source = replace(source, licence=licence)
    return Sample(place.id, source, tuple(blocks))


PageContent = tuple[Source, list[Block]]


def _read_markdown_file(file: Path, root: Path, member: str) -> PageContent:
    return read_markdown(file, root)


def _read_html_file(file: Path, root: Path, member: str) -> PageContent:
    return read_html(file.read_bytes(), str(file.relative_to(root)), lambda name: (_find_saved_picture(name, file, root), None))


def _find_saved_picture(name: str, file: Path, root: Path) -> Path | None:
    """Find the file of a picture that a browser saved with the page, by its address or its file name."""
    found = find_picture(name, file, root)
    base = posixpath.basename(unquote(urlsplit(name).path))
    if found is None and base:
        folders = [file.with_suffix("").name + ending for ending in ("_files", ".files", "-Dateien", "")]
        found = next((each for folder in folders if (each := file.parent / folder / base).is_file()), None)
    return found


def _read_mhtml(file: Path, root: Path, member: str) -> PageContent:
    """Read a page that a browser saved as one file (RFC 2557)."""
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


def _read_warc(file: Path, root: Path, member: str) -> PageContent:
    archive = Warc.open_cached(file)
    url, page = archive.read_page(int(member))
    return read_html(page, str(file.relative_to(root)), lambda name: (None, archive.read_picture(urljoin(url, name))), url)


OPF, DC = "{http://www.idpf.org/2007/opf}", "{http://purl.org/dc/elements/1.1/}"


def _read_package(book: zipfile.ZipFile) -> tuple[str, etree._Element]:
    """The folder of an EPUB's package file, and the package."""
    container = etree.fromstring(book.read("META-INF/container.xml"))
    path = container.find(".//{*}rootfile").get("full-path")
    return posixpath.dirname(path), etree.fromstring(book.read(path))


def _list_chapters(file: Path) -> list[str]:
    """The chapters of an EPUB in reading order. A damaged book gives one page, which then cannot be read."""
    try:
        with zipfile.ZipFile(file) as book:
            folder, package = _read_package(book)
        items = {item.get("id"): item.get("href") for item in package.iter(f"{OPF}item")}
        named = [items[ref.get("idref")] for ref in package.iter(f"{OPF}itemref") if ref.get("idref") in items]
        return [posixpath.normpath(posixpath.join(folder, unquote(name))) for name in named]
    except (OSError, KeyError, AttributeError, zipfile.BadZipFile, etree.LxmlError):
        return [""]


def _read_epub(file: Path, root: Path, member: str) -> PageContent:
    with zipfile.ZipFile(file) as book:
        _, package = _read_package(book)
        names = set(book.namelist())

        def load(name: str) -> tuple[None, bytes | None]:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(member), unquote(urlsplit(name).path)))
            return None, book.read(path) if path in names else None

        source, blocks = read_html(book.read(member), str(file.relative_to(root)), load)
    said = {name: "".join(package.find(f".//{DC}{name}").itertext()) if package.find(f".//{DC}{name}") is not None else ""
            for name in ("title", "creator", "rights", "date")}  # fmt: skip
    first = next((block.text for block in blocks if isinstance(block, Words) and block.kind == "heading"), "")
    whole = Source(source.file, member, first or source.title or said["title"], said["creator"], said["rights"], said["date"])
    return whole, blocks


READERS = {"markdown": _read_markdown_file, "html": _read_html_file, "mhtml": _read_mhtml, "warc": _read_warc, "epub": _read_epub}
