"""Read and write files so that neither a damaged file nor a power cut costs anything."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from duogen.text_decoding import decode_text

LARGEST_TEXT = 256 << 20  # bytes
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_beside(file: Path, data: bytes, *, private: bool = False) -> None:
    """Write `data` beside `file`, flush it to the disk, then rename: after a crash or a power cut the file is whole or untouched.

    Args:
        private: only its owner may read the file, from its first byte on.
    """
    beside = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb", opener=_open_private if private else None) as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(file)
        sync_folder(file.parent)
    finally:
        beside.unlink(missing_ok=True)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, and flush their names to the disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def move(old: Path, new: Path) -> None:
    """Rename a file or a folder, for good. After a power cut it is under its old name or its new one, with what was flushed of it."""
    old.replace(new)
    sync_folder(new.parent)
    if old.parent != new.parent:
        sync_folder(old.parent)


def place_folder(part: Path, folder: Path) -> None:
    """Flush a folder that was filled beside its place, with all that is in it, then rename it: it is whole or not there."""
    for each in part.rglob("*"):
        if each.is_dir():
            sync_folder(each)
        elif each.is_file():
            sync_file(each)
    sync_folder(part)
    move(part, folder)


@contextlib.contextmanager
def fill_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, to be filled: it takes that place after the block, for good, or goes where the block raises.

    What stands in the place must be gone, or empty, by the end of the block.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        make_folder(part)
        yield part
        place_folder(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sync_file(file: Path) -> None:
    """Flush a file that is written already to the disk."""
    handle = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # elsewhere a file that cannot be written can be flushed
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can do so; Windows cannot open a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def append_line(file: Path, data: dict) -> None:
    """Add a line of JSON to a file, for good; a line that an earlier end cut off is closed first."""
    new = not file.exists()
    with file.open("ab+") as out:
        if out.tell():
            out.seek(-1, os.SEEK_END)
            if out.read(1) != b"\n":
                out.write(b"\n")
        out.write(json.dumps(data, ensure_ascii=False).encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())
    if new:
        sync_folder(file.parent)


def explain_disk(error: BaseException) -> str:
    """What a user can do about an error of the disk, in one sentence; "" for any other error."""
    code = error.errno if isinstance(error, OSError) else None
    words = str(error) if isinstance(error, sqlite3.OperationalError) else ""
    if code in DISK_FULL or "disk is full" in words:
        return "The disk is full; make room on it, and try again."
    if code == errno.EROFS or "readonly" in words or "disk I/O" in words:
        return "The disk takes no changes any more; see that it has room and can be written, and try again."
    return ""


def read_record(file: Path) -> dict[str, Any]:
    """The JSON object in a file that may be lost; empty where the file is not there, damaged or something else."""
    try:
        known = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def read_bytes(file: Path, most: int = LARGEST_TEXT) -> bytes:
    """The bytes of a regular file; a pipe or a device is refused, since reading it may wait for ever.

    Raises:
        ValueError: it is not there, no regular file, larger than `most` bytes, or cannot be read; one sentence that names the file.
    """
    try:
        about = file.stat()  # follows a link; a loop raises OSError
        if not stat.S_ISREG(about.st_mode):
            raise ValueError(f"{file.name} is {'a folder' if stat.S_ISDIR(about.st_mode) else 'no regular file'}.")
        if about.st_size > most:
            raise ValueError(f"{file.name} has {about.st_size >> 20} MB; at most {most >> 20} MB are read.")
        return file.read_bytes()
    except FileNotFoundError as error:
        broken = file.is_symlink()
        raise ValueError(f"{file.name} is a link to a file that is not there." if broken else f"There is no file {file}.") from error
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read: {error.strerror or error}.") from error


def read_text(file: Path, most: int = LARGEST_TEXT) -> str:
    """The text of a file that a person brought, in whatever encoding it is; see `decode_text`.

    Raises:
        ValueError: the file cannot be read, or is no text; one sentence that names the file and says what to do.
    """
    raw = read_bytes(file, most)
    try:
        return decode_text(raw)
    except ValueError as error:
        raise ValueError(f"{file.name} {error}") from error
