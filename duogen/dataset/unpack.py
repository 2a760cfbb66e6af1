"""Unpack a zip of training data, once. A file in it that cannot be unpacked is named; the others are there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import stat
import uuid
import zipfile
from pathlib import Path, PurePosixPath

from duogen.dataset.pictures import is_lfs_pointer
from duogen.files import make_folder, place_folder, write_beside
from duogen.paths import data_home
from duogen.text_decoding import clean_text

ZIP_FILES, ZIP_BYTES = 200_000, 20 * 1024**3
UNREADABLE = ".not-unpacked.json"  # in an unpacked folder: the files that could not be unpacked, and why
FORM = "2"  # of an unpacked folder; older ones are not read again
METHODS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 96: "JPEG", 97: "WavPack", 98: "PPMd"}
OTHER_ARCHIVES = {b"7z\xbc\xaf": "a 7z archive", b"Rar!": "a RAR archive", b"\x1f\x8b": "a gzip file", b"BZh": "a bzip2 file"}
LOCKED = "is locked with a password"
ENCRYPTED, DOS_FOLDER = 1, 0x10  # bits of a zip's entries


def unpack_zip(file: Path) -> Path:
    """Unpack a zip, once. Returns its folder, in which `UNREADABLE` names what could not be unpacked.

    Raises:
        ValueError: the file is no zip, holds too much, or nothing in it can be unpacked; one sentence that names it.
    """
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read: {error.strerror or error}.") from error
    target = unpacked_home() / f"{digest}-{FORM}"
    if target.is_dir():
        return target
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with _open_zip(file) as packed:
            entries = _list_entries(packed, file.name)
            make_folder(part)
            failed = _extract_all(packed, entries, part, file.name)
        if failed:
            write_beside(part / UNREADABLE, json.dumps(failed, ensure_ascii=False).encode())
        try:
            place_folder(part, target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    except OSError as error:
        raise ValueError(f"{file.name} cannot be unpacked into {target.parent}: {error.strerror or error}; make room there.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def unpacked_home() -> Path:
    """Where zips are unpacked, and the pictures of tables and data URLs."""
    return data_home() / "finetune" / "unpacked"


def _open_zip(file: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} says that its names are UTF-8, and one is not; pack it again.") from error
    except Exception as error:  # a damaged directory raises whatever its numbers lead to
        with file.open("rb") as stream:
            head = stream.read(8)
        if is_lfs_pointer(file):
            raise ValueError(f"{file.name} is a git-lfs pointer, not the zip itself; fetch it with: git lfs pull.") from error
        other = next((name for mark, name in OTHER_ARCHIVES.items() if head.startswith(mark)), "")
        if other:
            raise ValueError(f"{file.name} is {other}, no zip; unpack it and name the folder.") from error
        if not head.startswith(b"PK"):
            raise ValueError(f"{file.name} is no zip and no folder; name the folder that holds it, or a zip.") from error
        raise ValueError(f"{file.name} is no zip, or is damaged; pack it again.") from error


def _list_entries(packed: zipfile.ZipFile, zip_name: str) -> list[tuple[str, zipfile.ZipInfo]]:
    """The files of a zip, folders left out, each with the name that it gets.

    Raises:
        ValueError: it holds too much, or a file and a folder of one name.
    """
    listed = packed.infolist()
    if len(listed) > ZIP_FILES or sum(entry.file_size for entry in listed) > ZIP_BYTES:
        raise ValueError(f"{zip_name} holds too much; unpack it yourself and name the folder.")
    named = [(_choose_name(entry), entry) for entry in listed if not _is_folder(entry)]
    folders = {str(parent) for name, _ in named for parent in PurePosixPath(name).parents}
    clash = next((name for name, entry in named if name in folders and entry.file_size), "")
    if clash:
        raise ValueError(f"{zip_name} holds a file and a folder of one name ({clean_text(clash)}); pack it again.")
    return [(name, entry) for name, entry in named if name not in ("", UNREADABLE) and name not in folders]


def _is_folder(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.endswith(("/", "\\")) or (not entry.file_size and bool(entry.external_attr & DOS_FOLDER))


def _choose_name(entry: zipfile.ZipInfo) -> str:
    """The name of an entry below the folder, with slashes; nothing in it leads out of the folder."""
    name = entry.filename
    if not entry.flag_bits & 0x800 and not name.isascii():
        # It does not say in which letters its names are. UTF-8 is of a Mac or Linux; `Folder.find` finds others by guesses.
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    pieces = name.replace("\\", "/").split("/")
    return "/".join(piece for piece in pieces if piece not in ("", ".", "..") and not piece.endswith(":"))


def _extract_all(packed: zipfile.ZipFile, entries: list[tuple[str, zipfile.ZipInfo]], folder: Path, zip_name: str) -> dict[str, str]:
    """Extract the entries; returns those that cannot be, and why.

    Raises:
        ValueError: none can be extracted.
        OSError: the disk is full.
    """
    failed = []
    for name, entry in entries:
        try:
            _extract(packed, entry, folder / name)
        except Exception as error:  # zipfile raises whatever its decompressors raise
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            failed.append((clean_text(name), explain_zip_error(error, entry)))
    if failed and len(failed) == len(entries):
        name, why = failed[0]
        if why == LOCKED:
            raise ValueError(f"{zip_name} {LOCKED}; pack it again without one.")
        cure = "unpack it and name the folder" if "method" in why else "pack it again"
        raise ValueError(f"Nothing in {zip_name} can be unpacked ({name} {why}); {cure}.")
    return dict(failed)


def _extract(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, file: Path) -> None:
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise ValueError("is a link, and links in a zip are not followed")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with packed.open(entry) as source, file.open("xb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    except FileExistsError as error:
        raise ValueError("is in the zip twice; the first one is taken") from error
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def explain_zip_error(error: Exception, entry: zipfile.ZipInfo) -> str:
    """Why a file of a zip cannot be unpacked."""
    if entry.flag_bits & ENCRYPTED:
        return LOCKED
    if isinstance(error, NotImplementedError):
        method = entry.compress_type
        return f"is packed by the method {METHODS.get(method, 'number')} ({method}), which cannot be unpacked here"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "has a name that is too long for the disk"
    if isinstance(error, OSError) and error.errno:
        return f"cannot be written: {error.strerror}"
    if isinstance(error, ValueError) and str(error).startswith("is "):
        return str(error)
    return "is damaged"
