"""Write the index of a web archive: where its records are, and what of it is damaged."""

from __future__ import annotations

import gzip
import logging
import mmap
import os
import re
import shutil
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from warcio.archiveiterator import ArchiveIterator
from warcio.bufferedreaders import DecompressingBufferedReader
from warcio.exceptions import ArchiveLoadFailed

from duogen.data_engine.kinds import GZIP, HEAD, ZIP, kind_of_bytes, name_content, unpack_head
from duogen.data_engine.reasons import describe_error
from duogen.data_engine.web_addresses import address_key
from duogen.text_decoding import clean_text

PAGES = ("text/html", "application/xhtml+xml")
NO_KIND = ("", "unknown/unknown", "application/octet-stream", "no-type")  # says nothing of what it is
TYPES = ("response", "resource", "revisit")
LONGEST_LINE = 1 << 16  # bytes of a line in the head of a record
MOST_TRIES = 200  # beginnings of records that are tried in a row after damage
WARC_ENDINGS = (".warc", ".warc.gz", ".arc", ".arc.gz")
CHARSET = re.compile(r"""charset\s*=\s*["']?([^\s"';]+)""", re.I)
ARC = b"filedesc://"  # begins an archive of the older form
logging.getLogger("warcio").setLevel(logging.ERROR)  # it warns of every blank in an address
SCHEMA = """
CREATE TABLE parts (part INTEGER PRIMARY KEY, file TEXT, arc INTEGER);
CREATE TABLE damage (part INTEGER, reason TEXT);
CREATE TABLE records (part INTEGER, at INTEGER, what TEXT, status INTEGER, url TEXT, key TEXT, target TEXT, digest TEXT);
"""


class Record(NamedTuple):
    """A record of an archive.

    Attributes:
        what: "page", "file", "error" (a page that the server did not give), "redirect" or "revisit".
        target: the address that a redirect or a revisit names.
    """

    at: int
    what: str
    status: int
    url: str
    target: str
    digest: str


class Damage(NamedTuple):
    """Where an archive is damaged, and what is wrong there."""

    at: int
    why: str


class _Reader(DecompressingBufferedReader):
    """warcio's reader, but damage in packed data is an error; there it counts as the end of the data."""

    def _decompress(self, data: bytes) -> bytes:
        if self.decompressor and data and self.num_block_read:
            return self.decompressor.decompress(data)
        return super()._decompress(data)

    def readline(self, length: int | None = None) -> bytes:
        """A line, or its beginning; without an end to look for, the time grows with the square of the size."""
        return super().readline(length or LONGEST_LINE)


class Records(ArchiveIterator):
    """The records of an archive. `arc` reads the older form ARC too."""

    INC_RECORD = ""  # warcio prints it

    def __init__(self, stream: Any, arc: bool = False) -> None:
        super().__init__(stream, arc2warc=arc)
        self.reader = _Reader(self.fh, block_size=1 << 14)


def build_index(file: Path, name: Path) -> None:
    """Write the index of an archive and, beside it, those of its parts that must be unpacked first."""
    beside = name.with_suffix(f".{os.getpid()}.part")
    index = sqlite3.connect(beside)
    try:
        index.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF;" + SCHEMA)  # it is made again if it is lost
        with file.open("rb") as stream:
            head = stream.read(HEAD)
        if head.startswith(ZIP):
            _index_wacz(file, name, index)
        elif not head:
            raise ValueError("it is empty")
        else:
            _index_part(file, name, index, head)
            if kind_of_bytes(head) != "warc" and not index.execute("SELECT COUNT(*) FROM records").fetchone()[0]:
                raise ValueError(f"it is no web archive, it holds {name_content(head)}")
        index.executescript("CREATE INDEX by_key ON records (key); CREATE INDEX by_digest ON records (digest);")
        index.commit()
        index.close()
        beside.replace(name)
    finally:
        index.close()
        beside.unlink(missing_ok=True)


def _index_wacz(file: Path, name: Path, index: sqlite3.Connection) -> None:
    """Index the archives in a WACZ file, which is a ZIP of them."""
    with zipfile.ZipFile(file) as book:
        members = [each for each in book.infolist() if each.filename.lower().endswith(WARC_ENDINGS)]
        if not members:
            raise ValueError("it is a ZIP file without a web archive")
        for member in members:
            part = index.execute("SELECT COUNT(*) FROM parts").fetchone()[0]
            unpacked = name.with_name(f"{name.stem}-{part}.warc")
            try:
                with book.open(member) as packed:
                    _copy(packed, unpacked)
            except Exception as error:  # the other members may be sound
                _note_damage(index, part, f"{member.filename} in it is lost: {describe_error(error)}")
            if unpacked.exists():
                with unpacked.open("rb") as stream:
                    head = stream.read(HEAD)
                _index_part(unpacked, name, index, head, unpacked.name)


def _index_part(file: Path, name: Path, index: sqlite3.Connection, head: bytes, stored: str = "") -> None:
    """Index one archive. One that is packed as a whole is unpacked first, if that gives more of it.

    `stored` is its name in the folder of the index, "" for the file that the user gave.
    """
    packed = head.startswith(GZIP)
    arc = (unpack_head(head) if packed else head).startswith(ARC)
    part = index.execute("SELECT COUNT(*) FROM parts").fetchone()[0]
    index.execute("INSERT INTO parts VALUES (?, ?, ?)", (part, stored, arc))
    count, damage = _index_records(file, arc, part, index)
    if packed and damage:
        whole = name.with_name(f"{name.stem}-{part}-whole.warc")
        why = _unpack_file(file, whole)
        more, damage_of_whole = _index_records(whole, arc, part + 1, index)
        if more > count or (more == count and not damage_of_whole and not why):
            index.execute("DELETE FROM records WHERE part = ?", (part,))
            index.execute("INSERT INTO parts VALUES (?, ?, ?)", (part + 1, whole.name, arc))
            part, damage = part + 1, damage_of_whole or [f"it is damaged, and what follows is lost ({why})"] * bool(why)
        else:
            index.execute("DELETE FROM records WHERE part = ?", (part + 1,))
            whole.unlink()
    for each in damage:
        _note_damage(index, part, each)


def _note_damage(index: sqlite3.Connection, part: int, reason: str) -> None:
    index.execute("INSERT INTO damage VALUES (?, ?)", (part, reason))


def _unpack_file(file: Path, whole: Path) -> str:
    """Unpack a gzip file as far as it goes. Returns what ended that early, "" if nothing did."""
    try:
        with gzip.open(file) as stream:
            _copy(stream, whole)
    except Exception as error:  # what was unpacked before is of use
        return describe_error(error)
    return ""


def _copy(stream: Any, whole: Path) -> None:
    """Write a stream to a file.

    Raises:
        ValueError: it would fill more than half of the free space on the disk.
    """
    most = shutil.disk_usage(whole.parent).free // 2
    with whole.open("wb") as out:
        while block := stream.read1(1 << 20):  # not `read`, which loses what comes before damage
            if out.write(block) and out.tell() > most:
                raise ValueError("unpacked it would fill the disk")


def _index_records(file: Path, arc: bool, part: int, index: sqlite3.Connection) -> tuple[int, list[str]]:
    """Index the sound records of a file. Returns their number, and where and why others are lost."""
    count, tries, at, begins, why, damage = 0, 0, 0, None, "", []
    if not file.stat().st_size:
        return 0, []
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        mark = GZIP + b"\x08" if view[:2] == GZIP else b"WARC/1."
        while at >= 0:
            before = count
            end, failed = at, ""
            for record in _walk(stream, at, arc):
                if isinstance(record, Record):
                    _add_record(index, part, record)
                    count += 1
                else:
                    end, failed = record.at, record.why
            if count > before and begins is not None:
                damage.append(f"a part of it is damaged and lost (byte {begins:,} to {at:,}: {why})")
                begins, tries = None, 0
            if not failed:
                break
            if begins is None:
                begins, why = end, failed
            tries += 1
            at = view.find(mark, end + 1) if tries <= MOST_TRIES and not arc else -1
    if begins is not None:
        damage.append(f"it is damaged, and what follows is lost (from byte {begins:,} on: {why})")
    return count, damage


def _walk(stream: IO[bytes], at: int, arc: bool) -> Iterator[Record | Damage]:
    """Yield the records of use from a place on, and the place of the first one that is damaged."""
    stream.seek(at)
    records = Records(stream, arc)
    begins = at
    try:
        for record in records:
            described = _describe_record(record, begins)
            records.read_to_end()
            if record.length is None or not _is_whole(record):
                raise ValueError("a record is cut off, or says a wrong length")
            if described is not None:
                yield described
            begins = records.offset
    except Exception as error:  # whatever damage raises
        no_record = isinstance(error, ArchiveLoadFailed)  # its message repeats the bytes
        yield Damage(begins, "no record begins there" if no_record else describe_error(error))


def _is_whole(record: Any) -> bool:
    """Whether all of a record was there; `limit` is what its reader did not get."""
    stated = record.rec_headers.get_header("Content-Length") or ""
    return stated.strip().isdigit() and getattr(record.raw_stream, "limit", 0) == 0


def _add_record(index: sqlite3.Connection, part: int, record: Record) -> None:
    at, what, status, url, target, digest = record
    index.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (part, at, what, status, url, address_key(url), target, digest))


def _describe_record(record: Any, at: int) -> Record | None:
    """What a record is for this index, `None` if it is of no use."""
    if record.rec_type not in TYPES:
        return None
    headers, kind = record.http_headers, content_type(record)[0]
    status = int(found[0]) if headers and (found := re.match(r"\d{3}", headers.get_statuscode())) else 200
    target = ""
    if record.rec_type == "revisit":
        what, target = "revisit", record.rec_headers.get_header("WARC-Refers-To-Target-URI") or ""
    elif 300 <= status < 400:
        what, target = "redirect", headers.get_header("Location") or ""
    else:
        page = kind in PAGES or (kind in NO_KIND and kind_of_bytes(record.raw_stream.read(HEAD)) == "html")
        what = "error" if page and status >= 400 else "page" if page and status != 206 else "file"
        if status >= 400 and not page:
            return None
    said = (record_address(record), target.strip("<> "), record.rec_headers.get_header("WARC-Payload-Digest") or "")
    return Record(at, what, status, *(clean_text(each) for each in said))


def record_address(record: Any) -> str:
    return (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<>")


def content_type(record: Any) -> tuple[str, str]:
    """The kind of what a server sent, and the encoding that it named."""
    headers = record.http_headers or (record.rec_headers if record.rec_type == "resource" else None)
    kind, _, rest = ((headers.get_header("Content-Type") if headers else "") or "").partition(";")
    charset = CHARSET.search(rest)
    return kind.strip().lower(), charset[1] if charset else ""
