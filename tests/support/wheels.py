"""What wheels say of themselves: python -m tests.support.wheels FOLDER > tests/support/wheels.json

FOLDER holds wheels of torch and xformers for Linux, from `pip download --no-deps -d FOLDER torch==2.10.0` and so on. Nothing is installed
or run: versions and requirements come from their metadata, the CUDA version from torch's `version.py` and xformers' `cpp_lib.json`, and
what xformers' library needs from the library itself.
"""

from __future__ import annotations

import email.parser
import json
import re
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DYNAMIC, SYMBOLS = 6, 11  # kinds of sections in an ELF file
NEEDED = 1  # the tag of a library's name in the dynamic section
ABOUT_CUDA = re.compile(r"torch\b|numpy|nvidia-cuda-runtime|cuda-toolkit")
STABLE = re.compile(r"aoti_torch_|torch_")  # names of PyTorch's stable ABI; all else of it is C++ and mangled


class Elf:
    """The sections of a 64-bit little-endian ELF file."""

    def __init__(self, data: bytes) -> None:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("this is no 64-bit little-endian ELF file")
        self.data = data
        at, size, count = struct.unpack_from("<Q", data, 0x28)[0], *struct.unpack_from("<HH", data, 0x3A)
        self.sections = [struct.unpack_from("<IIQQQQIIQQ", data, at + index * size) for index in range(count)]

    def _entries(self, kind: int, layout: str) -> Iterator[tuple[tuple[int, ...], int]]:
        """The entries of the sections of one kind, each with the offset of the names that belong to it."""
        for section in self.sections:
            if section[1] == kind:
                offset, size, link = section[4], section[5], section[6]
                for entry in struct.iter_unpack(layout, self.data[offset : offset + size]):
                    yield entry, self.sections[link][4]

    def _name(self, at: int) -> str:
        return self.data[at : self.data.index(b"\0", at)].decode()

    def needed(self) -> list[str]:
        """The libraries that it cannot load without."""
        return [self._name(names + value) for (tag, value), names in self._entries(DYNAMIC, "<qQ") if tag == NEEDED]

    def undefined(self) -> list[str]:
        """The symbols that other libraries must have."""
        symbols = ((entry[0], entry[3], names) for entry, names in self._entries(SYMBOLS, "<IBBHQQ"))
        return [self._name(names + name) for name, section, names in symbols if name and not section]


def facts_of(file: Path) -> dict[str, Any]:
    """What one wheel says."""
    with zipfile.ZipFile(file) as wheel:
        inside = wheel.namelist()
        about = email.parser.Parser().parsestr(wheel.read(next(name for name in inside if name.endswith(".dist-info/METADATA"))).decode())
        requires = [each for each in about.get_all("Requires-Dist") or [] if ABOUT_CUDA.match(each)]
        found = {"file": file.name, "version": about["Version"], "requires": requires}
        if "torch/version.py" in inside:
            said: dict[str, Any] = {}
            exec(wheel.read("torch/version.py"), said)
            found |= {"cuda": said["cuda"]}
        if "xformers/cpp_lib.json" in inside:
            built, library = json.loads(wheel.read("xformers/cpp_lib.json")), Elf(wheel.read("xformers/_C.so"))
            torchs = [name for name in library.undefined() if re.search(r"torch|c10|at[0-9]*Tensor", name)]
            found |= {"built": built["version"], "architectures": built["env"]["TORCH_CUDA_ARCH_LIST"].split()}
            found |= {"needed": library.needed(), "outside_stable_abi": [name for name in torchs if not STABLE.match(name)]}
    return found


def main() -> None:
    files = sorted(Path(sys.argv[1]).glob("*.whl"))
    print(json.dumps({"-".join(file.name.split("-")[:2]): facts_of(file) for file in files}, indent=1))


if __name__ == "__main__":
    main()
