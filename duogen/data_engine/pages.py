"""List the pages in a folder and read each as a `Sample`.

Every file is read as a page or counted in a `FileTally`. `list_pages` opens archives, and files whose ending says nothing.
`read_page` reads one page, in any process.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from duogen.data_engine.epub import open_book
from duogen.data_engine.html import read_html
from duogen.data_engine.kinds import GZIP, HEAD, OTHER, kind_of_bytes, kind_of_name, name_content
from duogen.data_engine.limits import LARGEST_FILE, check_size, check_tags
from duogen.data_engine.markdown import read_markdown
from duogen.data_engine.mhtml import read_mhtml
from duogen.data_engine.reasons import describe_error
from duogen.data_engine.sample import Block, Dropped, Picture, Sample, Source, Words
from duogen.data_engine.site_files import find_picture
from duogen.data_engine.warc import Warc, list_warc_pages
from duogen.data_engine.web_addresses import join_address
from duogen.files import read_bytes
from duogen.text_decoding import RUBBISH, SURROGATES, decode_page, decode_text, find_rubbish

MOST_NAMED = 10_000  # files that a tally names; others are counted
ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
FOLDERS = ("_files", ".files", "-Dateien", "_fichiers", "_archivos", "_file", "")  # where browsers put the pictures of a page
PageContent = tuple[Source, list[Block]]


@dataclass(frozen=True)
class Place:
    """The place of a page: a file below the root and, for archives, the page in it.

    `file` is printable: bytes of a name that are no UTF-8 are written as `\\xe4`.
    """

    kind: str
    file: str
    member: str = ""

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.file}#{self.member}".encode()).hexdigest()[:16]

    def find_file(self, root: Path) -> Path:
        """The file in its root."""
        plain = root / self.file
        if "\\x" in self.file and not plain.exists():
            return root / os.fsdecode(ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), self.file.encode()))
        return plain


@dataclass
class FileTally:
    """What became of the files of a folder. Each file counts once: as one with pages, a picture, an asset or one passed over.

    Attributes:
        reasons: why files were passed over, by name; at most `MOST_NAMED` of them.
    """

    pages: int = 0
    pictures: int = 0
    assets: int = 0
    passed: int = 0
    reasons: dict[str, str] = field(default_factory=dict)

    def pass_over(self, name: str, reason: str) -> None:
        self.passed += 1
        if len(self.reasons) < MOST_NAMED:
            self.reasons[name] = reason


def list_pages(root: Path, tally: FileTally | None = None, scratch: Path | None = None) -> Iterator[Place]:
    """Yield every page below a folder (or in one file), always in the same order.

    Args:
        tally: counts the files, those without a page too.
        scratch: the folder for the indices of archives; by default a temporary one.

    Raises:
        ValueError: there is no such folder.
    """
    tally = FileTally() if tally is None else tally
    if not root.exists():
        raise ValueError(f"There is no {root}; name a folder of saved pages.")
    for file in _list_files(root, tally) if root.is_dir() else [root]:
        name = printable_name(file.relative_to(root) if root.is_dir() else Path(file.name))
        try:
            kind = _find_kind(file)
        except (OSError, ValueError) as error:
            tally.pass_over(name, describe_error(error))
            continue
        if kind == "picture":
            tally.pictures += 1
        elif kind == "asset":
            tally.assets += 1
        else:
            tally.pages += 1
            yield from (Place(kind, name, member) for member in _list_members(kind, file, scratch))


def printable_name(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _list_files(root: Path, tally: FileTally) -> Iterator[Path]:
    """All files that are not hidden, in order; links to folders are not followed."""

    def pass_over(error: OSError) -> None:
        name = printable_name(Path(os.path.relpath(error.filename or root, root)))
        tally.pass_over(name, f"the folder cannot be opened ({error.strerror})")

    for folder, below, names in os.walk(root, onerror=pass_over):
        for name in [name for name in below if Path(folder, name).is_symlink()]:
            tally.pass_over(printable_name(Path(folder, name).relative_to(root)), "it is a link to a folder; name that folder itself")
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _find_kind(file: Path) -> str:
    """The kind of page in a file, "picture" or "asset".

    Raises:
        OSError, ValueError: it is passed over; the message says why.
    """
    if file.is_symlink() and not file.exists():
        raise ValueError("it is a link to a file that is not there")
    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError("it is a pipe or a device, no file")
    kind = kind_of_name(file.name)
    if kind:
        return kind
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    kind = kind_of_bytes(head)
    if not kind:
        raise ValueError(f"it is no page, it holds {name_content(head)}")
    return kind


def _list_members(kind: str, file: Path, scratch: Path | None) -> Iterator[str]:
    """The pages in a file. An archive that cannot be opened, or holds none, counts as one page, which then cannot be read."""
    members: Iterator[str] = iter([""])
    try:
        if kind == "warc":
            members = list_warc_pages(file, scratch)
        elif kind == "epub":
            with open_book(file) as book:
                members = iter(book.list_chapters())
        first = next(members, "")
    except Exception:  # whatever damage raises; `read_page` meets it again, and says it
        first, members = "", iter(())
    yield first
    yield from members


def read_page(place: Place, root: Path, licence: str = "", scratch: Path | None = None) -> Sample | Dropped:
    """Read a page. An unreadable page is dropped with the reason."""
    base = root if root.is_dir() else root.parent
    try:
        file = place.find_file(base)
        source, blocks = READERS[place.kind](file, base, place.member) if place.kind != "warc" else _read_warc(file, place.member, scratch)
    except Exception as error:  # whatever a file makes a library raise, this file alone cannot be read
        return Dropped(f"cannot be read: {describe_error(error)}")
    title = decode_text(os.fsencode(source.title)) if SURROGATES.search(source.title) else source.title  # from the name of the file
    source = replace(source, file=place.file, title=title, licence=source.licence or licence)
    return _check_letters(Sample(place.id, source, tuple(blocks)))


def _check_letters(sample: Sample) -> Sample | Dropped:
    """Drop a page with words that no person wrote: lost letters and controls."""
    words = [part.text if isinstance(part, Words) else f"{part.alt}{part.title}{part.caption}" for part in sample.parts]
    found = find_rubbish("\n".join([sample.source.title, *words]))
    if found:
        return Dropped(f"cannot be read: it has letters that were lost (U+{ord(found):04X})")
    return _clean_names(sample)


def _clean_names(sample: Sample) -> Sample:
    """Take what no person wrote out of the names of a page and its pictures."""
    said, plain = sample.source, partial(RUBBISH.sub, "")
    tags = tuple(map(plain, said.tags))
    source = replace(said, url=plain(said.url), author=plain(said.author), licence=plain(said.licence), date=plain(said.date), tags=tags)
    parts = (replace(part, name=plain(part.name)) if isinstance(part, Picture) else part for part in sample.parts)
    return replace(sample, source=source, parts=tuple(parts))


def _read_markdown_file(file: Path, root: Path, member: str) -> PageContent:
    return read_markdown(file, root)


def _read_html_file(file: Path, root: Path, member: str) -> PageContent:
    """Read an HTML or MHTML page, whatever its ending says.

    Raises:
        ValueError: it is neither; the message says what it is.
    """
    raw = read_bytes(file, LARGEST_FILE)
    if raw.startswith(GZIP):
        with gzip.open(io.BytesIO(raw)) as stream:
            raw = stream.read(LARGEST_FILE + 1)
    kind, content = kind_of_bytes(raw[:HEAD]), name_content(raw[:HEAD])
    if kind == "mhtml" or (kind != "html" and file.suffix.lower().startswith(".mht")):
        saved = read_mhtml(check_size(raw, LARGEST_FILE))
        return read_html(check_tags(saved.text), file.name, saved.load, saved.url)
    if kind != "html" and content != OTHER:
        raise ValueError(f"it is no HTML, it holds {content}")
    return read_html(check_tags(decode_page(check_size(raw))), file.name, lambda name: (_find_saved_picture(name, file, root), None))


def _find_saved_picture(name: str, file: Path, root: Path) -> Path | None:
    """Find the file of a picture that a browser saved with the page, by its address or its file name."""
    found = find_picture(name, file, root)
    try:
        base = posixpath.basename(unquote(urlsplit(name).path))
        if found is None and base:
            folders = [file.with_suffix("").name + ending for ending in FOLDERS]
            found = next((each for folder in folders if (each := file.parent / folder / base).is_file()), None)
    except (OSError, ValueError):  # an address that no file can have
        return None
    return found


def _read_warc(file: Path, member: str, scratch: Path | None) -> PageContent:
    archive = Warc.open_cached(file, scratch)
    if not member:
        raise ValueError("it holds no page")
    page = archive.read_page(member)
    text = check_tags(decode_page(page.body, page.charset))
    return read_html(text, file.name, lambda name: (None, archive.read_picture(join_address(page.url, name))), page.url)


def _read_epub(file: Path, root: Path, member: str) -> PageContent:
    with open_book(file) as book:
        if not member:
            raise ValueError("it holds no chapter")
        source, blocks = read_html(check_tags(book.read_chapter(member)), file.name, partial(book.load, member))
        said = book.about()
    first = next((block.text for block in blocks if isinstance(block, Words) and block.kind == "heading"), "")
    whole = Source(source.file, member, first or source.title or said["title"], said["creator"], said["rights"], said["date"])
    return whole, blocks


Reader = Callable[[Path, Path, str], PageContent]
READERS: dict[str, Reader] = {"markdown": _read_markdown_file, "html": _read_html_file, "mhtml": _read_html_file, "epub": _read_epub}
