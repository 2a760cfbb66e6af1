"""A conversation as a zip, out and in. The limits are one table for both ways: what is packed here can be unpacked here."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from duogen.picture_input import MAX_PIXELS
from duogen.stored_picture import read_header

ZIP_FILES, ZIP_BYTES, ZIP_TEXT_BYTES = 20_000, 512 * 1024**2, 32 * 1024**2
ZIP_PIXELS, ZIP_MASK_PIXELS = 80 * MAX_PIXELS, 8 * MAX_PIXELS  # masks are all in memory when a conversation is open
LARGEST_ZIP = ZIP_BYTES + 1024 * ZIP_FILES
CONVERSATION, ABOUT = "conversation.json", "about.json"
ZIP_NAMES = re.compile(r"conversation\.json|about\.json|images/[0-9a-f]{64}\.(?:png|mp4)")
LITTER = re.compile(r"(.*/)?(__MACOSX/.*|\._[^/]*|\.DS_Store|Thumbs\.db|desktop\.ini)", re.IGNORECASE | re.DOTALL)
NOT_OURS = 'This zip is no conversation that was exported here; bring a file that "Save to bring back" has made.'


def pack_folder(folder: Path, out: BinaryIO) -> None:
    """Write the files of a conversation, damaged or not, as a zip.

    Raises:
        ValueError: they are more than `extract_zip` takes.
    """
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    files = {name: file for name, file in files.items() if ZIP_NAMES.fullmatch(name)}
    excess = find_excess({name: file.stat().st_size for name, file in files.items()}) or find_excess_pixels(files.values())
    if excess:
        raise ValueError(f"This conversation has {excess}, and that is more than a zip to bring back may hold; save it as a web page.")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, strict_timestamps=False) as packed:  # PNG does not get smaller
        for name, file in files.items():
            packed.write(file, name)


def extract_zip(file: Path, folder: Path) -> None:
    """Unpack what `pack_folder` wrote into a new folder, also where a person has unpacked it and packed it again.

    Raises:
        ValueError: the zip holds other files, is damaged, has a password, or holds too much; one sentence.
    """
    try:
        with zipfile.ZipFile(file) as packed:
            members = _find_members(packed.infolist(), file.name)
            (folder / "images").mkdir(parents=True)
            for name, member in members.items():
                with packed.open(member) as source, (folder / name).open("wb") as out:
                    shutil.copyfileobj(source, out)
    except ValueError:
        raise
    except NotImplementedError as error:
        raise ValueError(f"{file.name} is packed in a way that cannot be read here; pack it again as a plain zip.") from error
    except Exception as error:  # each way of packing has its own errors, and OSError without a number is one of them
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(f"{file.name} cannot be unpacked: {error.strerror}.") from error
        if not zipfile.is_zipfile(file):
            raise ValueError(NOT_OURS) from error
        raise ValueError(f"{file.name} is damaged; export the conversation again.") from error
    excess = find_excess_pixels((folder / "images").iterdir())
    if excess:
        raise ValueError(f"{file.name} holds too much: {excess}.")


def _find_members(infos: list[zipfile.ZipInfo], called: str) -> dict[str, zipfile.ZipInfo]:
    """The files of the conversation by their name in its folder. The zip may hold that folder inside others, and litter of systems.

    Raises:
        ValueError: it holds anything else, or too much.
    """
    if len(infos) > ZIP_FILES:
        raise ValueError(f"{called} holds too much: {len(infos)} files.")
    named = list(_list_names(infos))
    tops = {name.removesuffix(CONVERSATION) for name, _ in named if PurePosixPath(name).name == CONVERSATION}
    if len(tops) != 1:
        raise ValueError(NOT_OURS)
    (top,) = tops
    members = {name.removeprefix(top): info for name, info in named if name.startswith(top)}
    if len(members) != len(named) or not all(ZIP_NAMES.fullmatch(name) for name in members):
        raise ValueError(NOT_OURS)
    if any(info.flag_bits & 1 for info in members.values()):
        raise ValueError(f"{called} has a password; pack it again without one.")
    if excess := find_excess({name: info.file_size for name, info in members.items()}):
        raise ValueError(f"{called} holds too much: {excess}.")
    return members


def _list_names(infos: list[zipfile.ZipInfo]) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    for info in infos:
        name = info.filename.replace("\\", "/")
        if not name.endswith("/") and not LITTER.fullmatch(name):
            yield name.removeprefix("./"), info


def find_excess(sizes: dict[str, int]) -> str:
    """What of a conversation is too much for a zip, by the bytes of its files; "" if nothing is."""
    if len(sizes) > ZIP_FILES:
        return f"{len(sizes)} files of at most {ZIP_FILES}"
    text = max((size for name, size in sizes.items() if name.endswith(".json")), default=0)
    if text > ZIP_TEXT_BYTES:
        return f"{text >> 20} MB of words of at most {ZIP_TEXT_BYTES >> 20} MB"
    if sum(sizes.values()) > ZIP_BYTES:
        return f"{sum(sizes.values()) >> 20} MB of at most {ZIP_BYTES >> 20} MB"
    return ""


def find_excess_pixels(files: Iterable[Path]) -> str:
    """What of a conversation is too much for a zip, by the pixels of its pictures; "" if nothing is."""
    pixels = {"L": 0, "RGB": 0}
    for file in files:
        if file.suffix == ".png":
            count, mode = read_header(file)
            pixels["L" if mode == "L" else "RGB"] += count
    if pixels["RGB"] > ZIP_PIXELS:
        return f"pictures of {pixels['RGB'] // 10**6} megapixels of at most {ZIP_PIXELS // 10**6}"
    if pixels["L"] > ZIP_MASK_PIXELS:
        return f"masks of {pixels['L'] // 10**6} megapixels of at most {ZIP_MASK_PIXELS // 10**6}"
    return ""
