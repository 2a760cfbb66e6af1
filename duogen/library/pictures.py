"""All painted and uploaded pictures: PNG files below `DUOGEN_HOME/pictures`, animations as MP4, and an index that can be rebuilt from them.

The files hold everything. `pictures.sqlite` beside them searches and sorts; missing rows are read from the files again.
Thumbnails are made on demand, and the oldest are deleted when there are too many. Deleted pictures stay for a month.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from duogen.files import make_folder, move, write_beside
from duogen.library.conversations import find_subject
from duogen.library.deletions import remove_leftovers, remove_old
from duogen.library.motion_file import open_first_frame, read_motion, replace_motion_info
from duogen.library.picture_file import PictureInfo, clear_links, encode_png, from_json, read_header, read_upload, replace_info, to_json
from duogen.paths import ASSETS
from duogen.picture_input import open_picture
from duogen.text_decoding import clean_title, fold_text

VERSION = 2
THUMBNAIL_PIXELS = 320
THUMBNAIL_BYTES = 128 * 1024**2
# A time in the future, which a clock that was wrong has written, counts as the oldest.
SORTS = {
    "new": "made > :now, made DESC",
    "old": "made <= :now, made",
    "large": "width * height DESC, bytes DESC, made > :now, made DESC",
}
STILL, MOVING = ".png", ".mp4"
CJK = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff])")
WORD = re.compile(rf"{CJK.pattern}+|(?:(?!{CJK.pattern})[^\W_])+")
MOST_TERMS, RANKED = 40, 200  # words of a message that are looked for, and pictures of which the best are chosen
SHARE_OF_BEST = 0.5  # what fits less well than this beside the best picture does not fit
GONE = "This picture is no longer here; it may have been deleted."
COLUMNS = "id, width, height, bytes, about"
SCHEMA = f"""
CREATE TABLE pictures (number INTEGER PRIMARY KEY, id TEXT UNIQUE, made REAL, width INTEGER, height INTEGER, bytes INTEGER,
    stamp INTEGER, favourite INTEGER, root TEXT, about TEXT);
CREATE INDEX by_time ON pictures (made);
CREATE INDEX by_root ON pictures (root);
CREATE VIRTUAL TABLE words USING fts5 (said, tokenize = 'unicode61 remove_diacritics 2');
PRAGMA user_version = {VERSION};
"""


@dataclass(frozen=True)
class Entry:
    """A picture, or an animation, of the gallery. `width` and `height` are in pixels, `bytes` is the size of its file."""

    id: str
    file: Path
    width: int
    height: int
    bytes: int
    about: PictureInfo

    @property
    def moves(self) -> bool:
        """Whether it is an animation."""
        return self.file.suffix == MOVING


@dataclass(frozen=True)
class PictureQuery:
    """A search for all of `words`, each as the beginning of a word; `sort` is a key of `SORTS`."""

    words: str = ""
    favourites: bool = False
    sort: str = "new"


@dataclass(frozen=True)
class FreeablePictures:
    """What can be freed: thumbnails, which are made again when needed, and deleted pictures, which are then gone for good."""

    thumbnails: int
    thumbnail_bytes: int
    deleted: int
    deleted_bytes: int


class Gallery:
    """The pictures below a folder. Thread-safe; changes happen one after the other."""

    def __init__(self, home: Path) -> None:
        """Browsers may fetch only `pictures` and `thumbnails`."""
        self.pictures, self.deleted, self.index = home / "pictures", home / "deleted-pictures", home / "pictures.sqlite"
        for folder in (self.pictures, self.deleted):
            make_folder(folder)
        self.thumbnails = Thumbnails(home / "thumbnails")
        self._lock = threading.RLock()
        remove_old(self.deleted)
        remove_leftovers(self.pictures)
        try:
            self._open_index()
            self.sync()
        except sqlite3.OperationalError:  # locked, or the disk is full: the index itself is sound
            raise
        except sqlite3.DatabaseError:  # damaged: rebuild it from the files
            for suffix in ("", "-wal", "-shm"):
                self.index.with_name(self.index.name + suffix).unlink(missing_ok=True)
            self._open_index()
            self.sync()

    def _open_index(self) -> None:
        with self._transaction() as index:
            index.execute("PRAGMA journal_mode = WAL")
            if index.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                index.executescript("DROP TABLE IF EXISTS pictures; DROP TABLE IF EXISTS words;" + SCHEMA)

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.index, timeout=10)) as index:
            index.execute("PRAGMA synchronous = NORMAL")
            yield index

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._connect() as index, index:
            yield index

    def sync(self) -> None:
        """Update the index to the files: read new and changed ones, delete the rows of missing ones."""
        with self._lock:
            with os.scandir(self.pictures) as listed:
                shown = [file for file in listed if file.name.endswith((STILL, MOVING)) and file.name[0] != "."]
                here = {file.name[:-4]: file.stat().st_mtime_ns for file in shown}
            with self._transaction() as index:
                known = dict(index.execute("SELECT id, stamp FROM pictures"))
                for id in known.keys() - here.keys():
                    _delete_row(index, id)
                for id, stamp in here.items():
                    if known.get(id) != stamp:
                        self._index_file(index, id)

    def _index_file(self, index: sqlite3.Connection, id: str) -> None:
        """Add a file to the index, unless it is no picture."""
        file = self._file_of(id)
        with contextlib.suppress(ValueError):
            about, (width, height) = read_header(file) if file.suffix == STILL else _read_moving(file)
            found = file.stat()
            _delete_row(index, id)
            row = (id, about.made, width, height, found.st_size, found.st_mtime_ns, about.favourite, about.root or id, to_json(about))
            number = index.execute(
                "INSERT INTO pictures (id, made, width, height, bytes, stamp, favourite, root, about) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            ).lastrowid
            said = _space_cjk(fold_text(f"{about.words} {about.caption}"))
            index.execute("INSERT INTO words (rowid, said) VALUES (?, ?)", (number, said))

    def _file_of(self, id: str) -> Path:
        """Where a picture or an animation of this id lies, or would lie as a picture."""
        moving = self.pictures / f"{id}{MOVING}"
        return moving if moving.exists() else self.pictures / f"{id}{STILL}"

    def add_motion(self, data: bytes) -> Entry:
        """Save an animation, an MP4 file that holds its settings. The same file again gives the same entry.

        Raises:
            ValueError: it cannot be read as a video.
        """
        id = hashlib.sha256(data).hexdigest()[:32]
        file = self.pictures / f"{id}{MOVING}"
        with self._lock:
            if not file.exists():
                write_beside(file, data)
                with self._transaction() as index:
                    self._index_file(index, id)
        return self.entry(id)

    def add(self, picture: PILImage.Image, about: PictureInfo, signed: bool = True) -> Entry:
        """Save a picture with its info. The same pixels again give the same entry, as it was first added.

        `signed`: it is signed if it was painted; else it was brought, whatever its info says.
        """
        id = picture_id(picture)
        file = self.pictures / f"{id}.png"
        with self._lock:
            if not file.exists():
                write_beside(file, encode_png(picture.convert("RGB"), about, signed))
                self.thumbnails.make(id, picture)
                with self._transaction() as index:
                    self._index_file(index, id)
        return self.entry(id)

    def import_file(self, file: Path) -> tuple[Entry, bool]:
        """Save an uploaded picture. Also returns whether it carries settings.

        Raises:
            ValueError: it cannot be read; one sentence.
        """
        picture, about, origin = read_upload(file)
        return self.add(picture, replace(clear_links(about), origin=origin), signed=False), about is not None

    def entry(self, id: str) -> Entry:
        """Raises: ValueError: there is no such picture."""
        with self._connect() as index:
            rows = index.execute(f"SELECT {COLUMNS} FROM pictures WHERE id = ?", (id,)).fetchall()
        if not rows:
            raise ValueError(GONE)
        return self._make_entry(rows[0])

    def _make_entry(self, row: tuple) -> Entry:
        id, width, height, size, about = row
        return Entry(id, self._file_of(id), width, height, size, from_json(about))

    def find(self, wanted: PictureQuery, start: int = 0, count: int = 60) -> tuple[list[Entry], int]:
        """At most `count` pictures of a search from the `start`-th on, and the total number."""
        where = ["1"]
        given: dict[str, Any] = {"now": time.time(), "count": count, "start": max(0, start)}
        if terms := _search_terms(wanted.words):
            where.append("number IN (SELECT rowid FROM words WHERE words MATCH :terms)")
            given["terms"] = terms
        if wanted.favourites:
            where.append("favourite")
        chosen = f"FROM pictures WHERE {' AND '.join(where)}"
        with self._connect() as index:
            total = index.execute(f"SELECT count(*) {chosen}", given).fetchone()[0]
            listed = f"SELECT {COLUMNS} {chosen} ORDER BY {SORTS[wanted.sort]}, number DESC LIMIT :count OFFSET :start"
            return [self._make_entry(row) for row in index.execute(listed, given)], total

    def suggest(self, words: str, count: int = 3, apart_from: str = "") -> list[Entry]:
        """The pictures that fit best to what a message names, one of an answer; none where nothing fits.

        Args:
            apart_from: the id of a conversation whose pictures are left out.
        """
        terms = _message_terms(words)
        if not terms:
            return []
        found: dict[tuple[str, str], Entry] = {}
        with self._connect() as index:
            ranked = f"""SELECT {", ".join(f"pictures.{name}" for name in COLUMNS.split(", "))}, words.rank FROM words
                JOIN pictures ON pictures.number = words.rowid WHERE words MATCH ? ORDER BY words.rank, number DESC LIMIT {RANKED}"""
            rows = index.execute(ranked, (terms,)).fetchall()
        entries = [(entry, -row[-1]) for row in rows if not (entry := self._make_entry(row[:-1])).moves]
        for entry, fit in entries:
            about = entry.about
            if fit < entries[0][1] * SHARE_OF_BEST or len(found) == count:
                break
            if not apart_from or about.conversation != apart_from:
                found.setdefault((about.conversation, about.turn) if about.turn else ("", entry.id), entry)
        return list(found.values())

    def versions(self, id: str) -> list[Entry]:
        """All pictures made from the same first picture as this one, with that one, oldest first; parents before their children.

        Raises:
            ValueError: there is no such picture.
        """
        root = self.entry(id).about.root or id
        with self._connect() as index:
            rows = index.execute(
                "SELECT id, width, height, bytes, about FROM pictures WHERE root = ? ORDER BY id != ?, made, number", (root, root)
            )
            return [self._make_entry(row) for row in rows]

    def set_favourite(self, id: str, favourite: bool) -> Entry:
        """Raises: ValueError: there is no such picture."""
        with self._lock:
            entry = self.entry(id)
            write = replace_motion_info if entry.moves else replace_info
            write_beside(entry.file, write(entry.file.read_bytes(), replace(entry.about, favourite=favourite)))
            with self._transaction() as index:
                self._index_file(index, id)
        return self.entry(id)

    def delete(self, id: str) -> None:
        """Move a picture to the deleted ones, from where `restore` brings it back.

        Raises:
            ValueError: there is no such picture.
        """
        with self._lock:
            file = self.entry(id).file
            if file.exists():
                move(file, self.deleted / file.name)
            self.thumbnails.forget(id)
            with self._transaction() as index:
                _delete_row(index, id)

    def restore(self, id: str) -> Entry:
        """Raises: ValueError: it is gone for good."""
        with self._lock:
            aside = next((each for end in (STILL, MOVING) if (each := self.deleted / f"{Path(id).name}{end}").exists()), None)
            if aside is None:
                raise ValueError("This picture is gone for good.")
            move(aside, self.pictures / aside.name)
            with self._transaction() as index:
                self._index_file(index, aside.stem)
        return self.entry(id)

    def thumbnail(self, entry: Entry) -> Path:
        """A small JPEG of the picture, made now if it is missing."""
        file = self.thumbnails.find(entry.id)
        if file is None:
            try:
                picture = open_first_frame(entry.file) if entry.moves else open_picture(entry.file, letterbox=True)
            except ValueError:  # one damaged file must not keep the others from being shown
                picture = PILImage.new("RGB", (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), "grey")
            file = self.thumbnails.make(entry.id, picture)
        return file

    def freeable(self) -> FreeablePictures:
        sizes = [file.stat().st_size for file in self._list_deleted()]
        return FreeablePictures(len(self.thumbnails), self.thumbnails.bytes, len(sizes), sum(sizes))

    def delete_freeable(self) -> None:
        """Delete what `freeable` counts."""
        with self._lock:
            self.thumbnails.clear()
            for file in self._list_deleted():
                file.unlink(missing_ok=True)

    def _list_deleted(self) -> list[Path]:
        return [file for file in self.deleted.iterdir() if file.suffix in (STILL, MOVING)]


class Thumbnails:
    """A folder of small JPEGs, bounded in bytes: the least recently used are deleted first."""

    def __init__(self, folder: Path, limit: int = THUMBNAIL_BYTES) -> None:
        self.folder, self.limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted((file.stat().st_mtime, file.stem, file.stat().st_size) for file in folder.glob("*.jpg"))
        self._sizes = OrderedDict((id, size) for _, id, size in found)
        self.bytes = sum(self._sizes.values())
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sizes)

    def find(self, id: str) -> Path | None:
        """The file of a thumbnail, if there is one."""
        file = self.folder / f"{id}.jpg"
        with self._lock:
            if id not in self._sizes or not file.exists():
                return None
            self._sizes.move_to_end(id)
        return file

    def make(self, id: str, picture: PILImage.Image) -> Path:
        file = self.folder / f"{id}.jpg"
        small = picture.convert("RGB")
        small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), reducing_gap=2.0)
        data = io.BytesIO()
        small.save(data, "JPEG", quality=85)
        with self._lock:
            write_beside(file, data.getvalue())
            self.bytes += data.tell() - self._sizes.pop(id, 0)
            self._sizes[id] = data.tell()
            while self.bytes > self.limit and len(self._sizes) > 1:
                self._drop(next(iter(self._sizes)))
        return file

    def forget(self, id: str) -> None:
        with self._lock:
            self._drop(id)

    def clear(self) -> None:
        with self._lock:
            for id in list(self._sizes):
                self._drop(id)

    def _drop(self, id: str) -> None:
        self.bytes -= self._sizes.pop(id, 0)
        (self.folder / f"{id}.jpg").unlink(missing_ok=True)


def picture_id(picture: PILImage.Image) -> str:
    """The id of a picture: a hash of its content, so that equal pictures are kept once."""
    return hashlib.sha256(f"{picture.width}x{picture.height}".encode() + picture.convert("RGB").tobytes()).hexdigest()[:32]


def _read_moving(file: Path) -> tuple[PictureInfo, tuple[int, int]]:
    """As `read_header`, of an animation."""
    header = read_motion(file)
    return header.about, header.size


def _delete_row(index: sqlite3.Connection, id: str) -> None:
    index.execute("DELETE FROM words WHERE rowid IN (SELECT number FROM pictures WHERE id = ?)", (id,))
    index.execute("DELETE FROM pictures WHERE id = ?", (id,))


def _search_terms(words: str) -> str:
    """The words of a search for FTS5: quoted prefixes of words; "" if there are none."""
    parts = (_space_cjk(part).strip() for part in fold_text(words).replace('"', " ").replace("\0", " ").split())
    return " ".join(f'"{part}"*' for part in parts if re.search(r"\w", part))


@cache
def _empty_words() -> frozenset[str]:
    """Words that name nothing, in the languages of the page."""
    return frozenset((ASSETS / "data" / "empty-words.txt").read_text(encoding="utf-8").split())


def _message_terms(words: str) -> str:
    """What a message names as a search of FTS5 for any of it; "" for nothing. In scripts without spaces two letters count as a word."""
    line = clean_title(words)
    terms: dict[str, None] = {}
    for word in (found[0] for found in WORD.finditer(fold_text(find_subject(line) or line))):
        if CJK.match(word[0]):
            terms |= dict.fromkeys(" ".join(word[at : at + 2]) for at in range(len(word) - 1))
        elif word not in _empty_words() and len(word) > 1 and not word.isdecimal():
            terms[word] = None
    return " OR ".join(f'"{term}"' for term in list(terms)[:MOST_TERMS])


def _space_cjk(words: str) -> str:
    """Put spaces around CJK characters: in scripts without spaces every character is a word."""
    return CJK.sub(r" \1 ", words)
