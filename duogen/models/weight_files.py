"""Weight files before they are opened: whether they are whole, and what their headers say.

The libraries name no file when one is damaged, and fill in what is missing with random numbers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST_HEADER = 100 << 20  # bytes; the library takes no more
LFS_POINTER = b"version https://git-lfs"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SMALL = 1 << 20  # bytes of a JSON file that is parsed; of a larger one, such as a vocabulary, the ends tell whether it is whole
EDGE = 64  # bytes that are read of either end of a file


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself: the shapes and types of its tensors by name, and the words that its maker left."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    types: dict[str, str]

    def count(self, name: str) -> int:
        """The numbers in a tensor."""
        return math.prod(self.shapes[name])


def read_header(file: Path) -> Header:
    """Read the header of a safetensors file.

    Raises:
        ValueError: the file is not there, empty, cut short, damaged, or the pointer of git-lfs; one sentence that names it.
    """
    check_file(file)
    broken = f"{file} cannot be opened: it is cut short or damaged; get it again."
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(LARGEST_HEADER, size - 8):
                raise ValueError(broken)
            raw: dict[str, Any] = json.loads(stream.read(length))
        metadata = {str(name): str(value) for name, value in raw.pop("__metadata__", {}).items()}
        shapes = {name: tuple(int(each) for each in about["shape"]) for name, about in raw.items()}
        types = {name: str(about["dtype"]) for name, about in raw.items()}
        end = max((about["data_offsets"][1] for about in raw.values()), default=0)
    except Exception as error:  # whatever stands there instead of a header
        raise ValueError(broken) from error
    if 8 + length + end != size:
        raise ValueError(broken)
    return Header(shapes, metadata, types)


def check_file(file: Path) -> None:
    """Raises ValueError, one sentence that names the file, when it is not there, empty, the pointer of git-lfs, or no whole JSON."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(EDGE)
            stream.seek(max(0, size - EDGE))
            tail = stream.read(EDGE)
    except OSError as error:
        raise ValueError(f"{file} cannot be opened: {error.strerror or 'it cannot be read'}; get it again.") from error
    if not size:
        raise ValueError(f"{file} cannot be opened: it is empty; get it again.")
    if head.startswith(LFS_POINTER):
        raise ValueError(f"{file} cannot be opened: git-lfs left a pointer in its place; in its folder, run: git lfs pull")
    if file.suffix == ".json" and not (_is_json(file) if size <= SMALL else head.lstrip()[:1] in b"{[" and tail.rstrip()[-1:] in b"}]"):
        raise ValueError(f"{file} cannot be opened: it is cut short or damaged; get it again.")


def _is_json(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_bytes()), dict | list)
    except Exception:  # whatever stands there
        return False


def check_folder(folder: Path) -> None:
    """Check the configurations and weights of a pair, a pipeline or a single model, with those of its parts.

    Raises:
        ValueError: one of them cannot be opened; one sentence that names the file.
    """
    for there in [folder, *sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))]:
        for file in sorted(there.iterdir()):
            if file.suffix == ".safetensors":
                read_header(file)
            elif file.suffix in (".json", ".model", *PICKLES) and file.is_file():
                check_file(file)


def describe_missing(folder: Path, missing: list[str]) -> str:
    """One sentence about files that a model's folder lacks, relative to it."""
    first = folder / missing[0]
    others = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
    pickles = sorted(file.name for file in first.parent.glob("*") if file.suffix in PICKLES)
    if first.name.startswith("*") and pickles:
        return f"{first.parent} has its weights as {pickles[0]}, which can run code; get them as safetensors."
    return f"The pair in {folder} lacks {missing[0]}{others}; get the pair again."
