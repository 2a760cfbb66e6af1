"""The licence of every package that DuoGen needs, directly or through another: python -m bench.reliability.licences

The packages are those of the requirements as they are installed here; nothing is fetched.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from duogen.files import write_beside

ROOT = Path(__file__).parents[2]
FILE = ROOT / "bench" / "results" / "licences.json"
REQUIREMENTS = ("requirements-common.txt", "requirements-torch.txt")
NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
# What may be used beside code under the Apache licence, as metadata and classifiers write it.
KNOWN = re.compile(
    r"apache|\bmit\b|\bbsd\b|isc\b|psf|python software foundation|\bmpl\b|mozilla|unlicense|public domain|\b0bsd\b|zlib|hpnd|cnri|"
    r"lesser general|\blgpl|ofl|open font|boost",
    re.IGNORECASE,
)


def read_requirements() -> list[str]:
    """The names that the requirements state."""
    lines = [line for name in REQUIREMENTS for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    return [found[1] for line in lines if not line.startswith(("#", "-")) and (found := NAME.match(line))]


def find_licence(package: str) -> str:
    """The licence that a package's metadata states, "" where it states none. Raises PackageNotFoundError."""
    about = distribution(package).metadata
    classifiers = [each.rpartition("::")[2].strip() for each in about.get_all("Classifier") or [] if each.startswith("License ::")]
    said = (about.get("License-Expression") or "").strip() or ", ".join(classifiers)
    return said or " ".join((about.get("License") or "").split())[:80]


def list_needed(packages: list[str]) -> Iterator[str]:
    """The packages and what they need, each once; extras and packages of other systems are left out."""
    waiting, seen = list(packages), set[str]()
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        yield name
        waiting += [found[1] for each in needed if "extra ==" not in each and (found := NAME.match(each))]


def list_licences() -> dict[str, dict[str, str]]:
    """Version and licence by package."""
    return {
        name: {"version": distribution(name).version, "licence": find_licence(name)} for name in sorted(list_needed(read_requirements()))
    }


def main() -> int:
    top = argparse.ArgumentParser(prog="python -m bench.reliability.licences", description=__doc__.splitlines()[0])
    top.add_argument("--out", type=Path, default=FILE)
    given = top.parse_args()
    found = list_licences()
    strange = {name: each["licence"] for name, each in found.items() if not KNOWN.search(each["licence"])}
    print(json.dumps({"packages": len(found), "of an unknown licence": strange}, indent=1))
    write_beside(given.out, (json.dumps({"packages": found, "strange": strange}, indent=1) + "\n").encode())
    return 1 if strange else 0


if __name__ == "__main__":
    sys.exit(main())
