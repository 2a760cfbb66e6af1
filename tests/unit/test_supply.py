"""The packages that DuoGen needs: locked as the requirements say, each with its hashes, and none of them unmaintained."""

from __future__ import annotations

import json
import re
from pathlib import Path

from packaging.requirements import Requirement

from bench.reliability.licences import REQUIREMENTS, read_requirements
from bench.reliability.releases import FILE, list_unmaintained

ROOT = Path(__file__).parents[2]
LOCKED = re.compile(r"^([a-z0-9-]+)==(\S+)((?: ; .+)?) \\\n((?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


def test_the_lock_is_what_the_requirements_say() -> None:
    """A failure means: make it anew with the command in its head."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = {found[1]: found[2] for found in LOCKED.finditer(text)}
    assert len(locked) == len(re.findall(r"^[^\s#]", text, re.MULTILINE)) > len(read_requirements()), "a package without a hash"
    lines = [line for name in REQUIREMENTS for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    wanted = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    assert [str(each) for each in wanted if not each.specifier.contains(locked.get(each.name, "0"))] == []


def test_no_package_is_unmaintained() -> None:
    """A failure names what to replace, or what `python -m bench.reliability.releases` has not looked up yet."""
    known = json.loads(FILE.read_text(encoding="utf-8"))
    assert list_unmaintained(known, read_requirements()) == []


def test_an_unmaintained_package_is_named() -> None:
    known = {"seen": "2026-11-29", "newest": {"kept": {"day": "2024-11-30"}, "left": {"day": "2024-11-28"}, "empty": {"day": ""}}}
    assert list_unmaintained(known, ["kept", "left", "empty", "unknown"]) == ["left", "empty", "unknown"]
