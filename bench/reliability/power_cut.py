"""What a power cut leaves: python -m bench.reliability.power_cut [--rounds N] [--seed N]

`Disk` follows a folder like a disk that forgets: a file has the bytes of its last `fsync`, a folder the names of its last `fsync`. Before
every rename, removal and `fsync`, and after every act, the states that a power cut could leave there are written out and opened:

- "synced": only what was flushed is there; names that were not flushed are the old ones.
- "empty": all names are there, bytes that were not flushed are missing, as journalling file systems do it.
- "nuls": the same, with NULs in the place of the bytes.

SQLite flushes its own files, and no state has them: the index of pictures is built again. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from bench.machine import host, report
from bench.reliability.person import ACTS, Ledger, Person, find_lost, read_home

FILE = Path(__file__).parents[1] / "results" / "power-cut.json"
STATES = ("synced", "empty", "nuls")
WATCHED = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir")
LEFT_OUT = (".sqlite", ".sqlite-wal", ".sqlite-shm", ".lock")


class Disk:
    """The bytes and names below a folder that were flushed. Files are known by their inodes, which stay open so that none is used again."""

    def __init__(self, root: Path, on_change: Callable[[], None] = lambda: None) -> None:
        self.root, self.on_change, self.asleep = root, on_change, False
        self.names: dict[int, dict[str, int]] = {}
        self.data: dict[int, bytes] = {}
        self._folders: set[int] = set()
        self._held: dict[int, int] = {}
        self._lock = threading.RLock()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if soft < hard else soft, hard))
        for folder, _, files in os.walk(root):
            for name in files:
                self._flush(Path(folder, name))
            self._flush(Path(folder))

    def _flush(self, path: Path) -> None:
        found = path.stat()
        if found.st_ino not in self._held:
            self._held[found.st_ino] = os.open(path, os.O_RDONLY)
        if path.is_dir():
            self._folders.add(found.st_ino)
            self.names[found.st_ino] = list_names(path)
        else:
            self.data[found.st_ino] = path.read_bytes()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Follow what this process does to files below the folder."""
        with mock.patch.multiple(os, **{name: self._wrap(name, getattr(os, name)) for name in WATCHED}):
            try:
                yield
            finally:
                for handle in self._held.values():
                    os.close(handle)

    def _wrap(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def follow(*given: Any, **named: Any) -> Any:
            if self.asleep:
                return act(*given, **named)
            with self._lock:
                self.change()
                done = act(*given, **named)
                if name == "fsync":
                    path = Path(os.readlink(f"/proc/self/fd/{given[0]}"))
                    if path.is_relative_to(self.root) and path.exists():
                        self._flush(path)
            return done

        return follow

    def change(self) -> None:
        """Look at what a power cut at this moment would leave."""
        with self._lock:
            self.asleep = True
            try:
                self.on_change()
            finally:
                self.asleep = False

    def write_state(self, state: str, into: Path) -> None:
        """Write what a power cut leaves now, as one of `STATES`."""
        here: dict[int, Path] = {}
        for folder, folders, files in os.walk(self.root):
            here |= {Path(folder, name).stat().st_ino: Path(folder, name) for name in (*folders, *files)}
        self._write_folder(state, self.root.stat().st_ino, into, here | {self.root.stat().st_ino: self.root})

    def _write_folder(self, state: str, inode: int, into: Path, here: dict[int, Path]) -> None:
        into.mkdir()
        names = self.names.get(inode, {}) if state == "synced" else list_names(here[inode])
        for name, child in names.items():
            if name.endswith(LEFT_OUT):
                continue
            if child in self._folders or (child in here and here[child].is_dir()):
                self._write_folder(state, child, into / name, here)
                continue
            flushed = self.data.get(child, b"")
            size = here[child].stat().st_size if child in here else len(flushed)
            (into / name).write_bytes(flushed + bytes(max(0, size - len(flushed)) if state == "nuls" else 0))


def list_names(folder: Path) -> dict[str, int]:
    return {each.name: each.inode() for each in os.scandir(folder)}


def find_empty(home: Path) -> list[str]:
    """Files that a power cut left without their bytes. Those beside their places have not been anything yet, and of lines at the end of a
    file only those count that were acknowledged."""
    found = []
    for file in (each for each in home.rglob("*") if each.is_file()):
        hidden = any(part[0] == "." for part in file.relative_to(home).parts)
        if not hidden and file.suffix != ".jsonl" and not file.read_bytes().strip(b"\0"):
            found.append(f"{file.relative_to(home)} is empty")
    return found


class Cuts:
    """Looks at every state of a home, with what was acknowledged until then."""

    def __init__(self, home: Path, every: int = 1) -> None:
        self.home, self.every, self.ledger = home, every, Ledger({})
        self.states, self.moments, self.faults = 0, 0, Counter[str]()

    def tell(self, told: Any) -> None:
        self.ledger.take(json.loads(json.dumps(told)))

    def look(self) -> None:
        """Write and open the states of this moment, at every `every`-th one."""
        self.moments += 1
        if self.moments % self.every:
            return
        for state in STATES:
            with tempfile.TemporaryDirectory(prefix="duogen-cut-") as folder:
                left = Path(folder) / "home"
                self.disk.write_state(state, left)
                wrong = find_empty(left)
                found, damaged = read_home(left)
                lost = find_lost(self.ledger.claims, self.ledger.touched, found)
                self.states += 1
                for each in (*wrong, *damaged, *lost):
                    self.faults[f"{state}, {self.ledger.act or 'between two acts'}: {each}"] += 1

    def run(self, acts: list[str], seed: int) -> None:
        self.home.mkdir()
        os.environ["DUOGEN_HOME"] = str(self.home)
        self.disk = Disk(self.home, self.look)
        with self.disk.watch():
            person = Person(self.home, seed, self.tell)
            for act in acts:
                person.do(act)
                self.disk.change()


def cut(home: Path, rounds: int, seed: int, every: int = 1) -> dict[str, Any]:
    """The figures of so many rounds of all acts, each in a home of its own below `home`."""
    faults, states, moments = Counter[str](), 0, 0
    before = os.environ.get("DUOGEN_HOME")
    for number in range(rounds):
        cuts = Cuts(home / f"home-{number}", every)
        acts = [*ACTS]
        random.Random(seed + number).shuffle(acts)
        cuts.run(acts, seed + number)
        faults, states, moments = faults + cuts.faults, states + cuts.states, moments + cuts.moments
        shutil.rmtree(cuts.home)
    os.environ.pop("DUOGEN_HOME") if before is None else os.environ.update(DUOGEN_HOME=before)
    return {"rounds": rounds, "moments": moments, "states_opened": states, "faults": dict(faults)}


def main() -> int:
    top = argparse.ArgumentParser(prog="python -m bench.reliability.power_cut", description=__doc__.splitlines()[0])
    top.add_argument("--rounds", type=int, default=4)
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--out", type=Path, default=FILE)
    given = top.parse_args()
    machine, began = host(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="duogen-power-") as folder:
        figures = cut(Path(folder).resolve(), given.rounds, given.seed)
    figures |= {"seed": given.seed, "minutes": round((time.monotonic() - began) / 60, 1)}
    report(figures, machine, given.out)
    return 1 if figures["faults"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
