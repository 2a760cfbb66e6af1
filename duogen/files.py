"""Read and write files so that neither a damaged file nor a power cut costs anything."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from duogen.text_decoding import decode_text

LARGEST_TEXT = 256 << 20  # bytes


def write_beside(file: Path, data: bytes) -> None:
    """Write `data` beside `file`, flush it to the disk, then rename: after a crash or a power cut the file is whole or untouched."""
    beside = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(file)
        sync_folder(file.parent)
    finally:
        beside.unlink(missing_ok=True)


def sync_file(file: Path) -> None:
    """Flush a file that is written already to the disk."""
    with file.open("rb+") as out:
        os.fsync(out.fileno())


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
    with file.open("ab+") as out:
        if out.tell():
            out.seek(-1, os.SEEK_END)
            if out.read(1) != b"\n":
                out.write(b"\n")
        out.write(json.dumps(data, ensure_ascii=False).encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())


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
