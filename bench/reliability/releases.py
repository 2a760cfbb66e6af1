"""When each direct dependency was last released: python -m bench.reliability.releases

Asks the package index (PyPI's JSON) about the packages that the requirements name, once each. A package whose newest release is older than
two years counts as unmaintained.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

from bench.reliability.licences import read_requirements
from duogen.files import write_beside

FILE = Path(__file__).parents[1] / "results" / "releases.json"
INDEX = "https://pypi.org/pypi/{}/json"
LONGEST_DAYS = 2 * 365


def find_newest(package: str) -> dict[str, str]:
    """Version and day of a package's newest release. Raises OSError: the index does not answer, or has no such package."""
    with urllib.request.urlopen(INDEX.format(package), timeout=60) as answer:
        about = json.loads(answer.read())
    return {"version": about["info"]["version"], "day": max((each["upload_time"][:10] for each in about["urls"]), default="")}


def list_unmaintained(known: dict[str, Any], packages: list[str]) -> list[str]:
    """Those of `packages` without a release that is known, or without one in the two years before the list was made."""
    first = datetime.date.fromisoformat(known["seen"]) - datetime.timedelta(days=LONGEST_DAYS)
    return [each for each in packages if known["newest"].get(each, {}).get("day", "") < first.isoformat()]


def main() -> int:
    top = argparse.ArgumentParser(prog="python -m bench.reliability.releases", description=__doc__.splitlines()[0])
    top.add_argument("--out", type=Path, default=FILE)
    given = top.parse_args()
    packages = sorted(read_requirements())
    known = {"seen": datetime.date.today().isoformat(), "newest": {each: find_newest(each) for each in packages}}
    write_beside(given.out, (json.dumps(known, indent=1) + "\n").encode())
    old = list_unmaintained(known, packages)
    print(f"{len(packages)} packages, {len(old)} unmaintained: {', '.join(old) or 'none'}")
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main())
