"""A disk that fills up: python -m bench.reliability.full_disk [--rounds N] [--seed N]

The home lies on a small file system in memory (Linux, root). Before each act of a person (`bench.reliability.person`) it is filled but for
some bytes. The act must work, or fail in a sentence; then nothing may be lost and no file be half written, and once there is room again
the same act works. At the end the home is made read-only, and a server must not start but say why.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.browser import find_port
from bench.machine import host, report
from bench.reliability.person import ACTS, Ledger, Person, find_leftovers, find_lost, read_home
from duogen.files import explain_disk
from duogen.paths import ROOT

FILE = Path(__file__).parents[1] / "results" / "full-disk.json"
DISK_MB = 60
LEFT = (0, 4096, 3 * 4096, 8 * 4096, 20 * 4096, 60 * 4096)  # bytes that are free


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int = DISK_MB) -> Iterator[Path]:
    """A file system of its own. Raises OSError: this user or machine cannot have one."""
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place], capture_output=True, text=True, check=False)
    if made.returncode:
        raise OSError(f"No file system can be mounted here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=False)


def fill(disk: Path, left: int) -> Path:
    """Fill a file system but for so many bytes; returns the file that fills it."""
    filler, free = disk / "filler", os.statvfs(disk)
    with filler.open("wb", buffering=0) as out:
        os.posix_fallocate(out.fileno(), 0, max(1, free.f_bavail * free.f_frsize - left))
    return filler


class FullDisk:
    """Acts in a home whose disk fills up again and again."""

    def __init__(self, disk: Path, seed: int) -> None:
        self.disk, self.home, self.rng = disk, disk / "home", random.Random(seed)
        self.ledger, self.faults = Ledger({}), list[str]()
        self.acts, self.sentences = Counter[str](), Counter[str]()
        self.home.mkdir()
        os.environ["DUOGEN_HOME"] = str(self.home)
        self.person = Person(self.home, seed, lambda told: self.ledger.take(json.loads(json.dumps(told))))
        for act in ("answer", "upload", "answer"):
            self.person.do(act)

    def try_act(self, act: str) -> None:
        filler = fill(self.disk, self.rng.choice(LEFT))
        self.acts[act] += 1
        try:
            self.person.do(act)
        except Exception as error:  # the page says what `explain_disk` makes of it
            words = str(error) if isinstance(error, ValueError) else explain_disk(error)
            self.sentences[words] += 1
            self.faults += [] if words.endswith((".", "again.")) and "\n" not in words else [f"{act}: {error!r} is no sentence"]
        filler.unlink()
        left = find_leftovers(self.home)
        found, damaged = read_home(self.home)
        lost = find_lost(self.ledger.claims, self.ledger.touched, found)
        self.faults += [f"{act}: {each}" for each in (*damaged, *lost, *(f"{file} is left over" for file in left))]
        self.ledger = Ledger(found)
        try:
            self.person.do(act)
        except Exception as error:
            self.faults.append(f"{act} does not go on when there is room: {error!r}")


def start_server(home: Path, *before: str) -> tuple[int, str]:
    """Start a server that is expected to refuse; its exit status and what it says."""
    command = [*before, sys.executable, str(ROOT / "app.py"), "--no-browser", "--port", str(find_port())]
    environment = {**os.environ, "DUOGEN_HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    return done.returncode, done.stderr.strip()


def refuse_starts(disk: Path) -> list[str]:
    """What a server says of a full disk and of a read-only one; raises AssertionError where it starts, or says more than a sentence."""
    home, said = disk / "home", []
    filler = fill(disk, 0)
    said.append(start_server(home))
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    said.append(start_server(home))
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    for code, words in said:
        assert code == 2 and words.count("\n") == 0 and str(home) in words, words
    return [words for _, words in said]


def fill_often(place: Path, rounds: int, seed: int, megabytes: int = DISK_MB) -> dict[str, Any]:
    """The figures of so many rounds of all acts."""
    before = os.environ.get("DUOGEN_HOME")
    with small_disk(place, megabytes) as disk:
        full = FullDisk(disk, seed)
        for _ in range(rounds):
            for act in ACTS:
                full.try_act(act)
        starts = refuse_starts(disk)
    os.environ.pop("DUOGEN_HOME") if before is None else os.environ.update(DUOGEN_HOME=before)
    refused = full.sentences.total()
    return {
        "acts_on_a_full_disk": full.acts.total(),
        "refused": refused,
        "sentences": [words.replace(str(place), "DISK") for words in (*full.sentences, *starts)],
        "faults": [words.replace(str(place), "DISK") for words in full.faults],
    }


def main() -> int:
    top = argparse.ArgumentParser(prog="python -m bench.reliability.full_disk", description=__doc__.splitlines()[0])
    top.add_argument("--rounds", type=int, default=20)
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--out", type=Path, default=FILE)
    given = top.parse_args()
    machine, began = host(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="duogen-full-") as folder:
        figures = fill_often(Path(folder) / "disk", given.rounds, given.seed)
    figures |= {"disk_mb": DISK_MB, "seed": given.seed, "minutes": round((time.monotonic() - began) / 60, 1)}
    report(figures, machine, given.out)
    return 1 if figures["faults"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
