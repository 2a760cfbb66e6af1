"""Long work that outlives whoever started it: a process of its own with a folder, which any other process finds and reads.

A job's folder holds `run/`: `order.json` (what was asked for), `progress.json` (how far it is), `wishes/` (what it should do next),
`log.txt` (what it said), `.lock` (held while it lives) and its samples. Written beside and renamed, so that a reader never sees a half.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from duogen.conversation import write_beside
from duogen.paths import ROOT, data_home

RUNNING = ("starting", "waiting", "checking", "caching", "training", "sampling", "saving")
ENDED = ("done", "paused", "stopped", "failed", "killed")
WISHES = ("sample", "save", "pause", "stop")
GOES_ON = "It was ended from outside (killed, or the machine went down); Resume goes on from the last saved step."
START_SECONDS = 60.0
LOCK_SECONDS = 5.0  # a reader holds a job's lock for a moment


class Job:
    """The folder of one job."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"

    @property
    def name(self) -> str:
        return self.folder.name

    def order(self) -> dict[str, Any]:
        """What was asked for; empty when there is no such job."""
        return _read(self.run / "order.json")

    def write_order(self, order: dict[str, Any]) -> None:
        self.run.mkdir(parents=True, exist_ok=True)
        write_beside(self.run / "order.json", json.dumps(order, ensure_ascii=False, indent=1).encode())

    def tell(self, **news: Any) -> None:
        """Add to what is known of the job; called by the job itself."""
        known = {**_read(self.run / "progress.json"), **news, "pid": os.getpid(), "told": time.time()}
        write_beside(self.run / "progress.json", json.dumps(known, ensure_ascii=False).encode())

    def progress(self) -> dict[str, Any]:
        """How far it is: `phase` is one of `RUNNING` or `ENDED`, `words` says it to a person.

        A job that says it runs while nobody holds its lock was killed.
        """
        known = {"phase": "starting", "words": "Starting ...", **_read(self.run / "progress.json")}
        if known["phase"] in RUNNING and not self.alive():
            again = _read(self.run / "progress.json")  # it may have ended in between
            known |= again
            young = known["phase"] == "starting" and time.time() - known.get("told", 0) < START_SECONDS
            if known["phase"] in RUNNING and not young:
                known |= {"phase": "killed", "words": GOES_ON}
        return known

    def alive(self) -> bool:
        lock = FileLock(self.run / ".lock")
        if not self.run.is_dir():
            return False
        try:
            with lock.acquire(timeout=0):
                return False
        except Timeout:
            return True
        except OSError:
            return False

    @contextlib.contextmanager
    def living(self) -> Iterator[None]:
        """Held by the job while it works.

        Raises:
            ValueError: another process works on it.
        """
        self.run.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.run / ".lock")
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout as error:
            raise ValueError(f"{self.folder} is being trained already; pause it first.") from error
        try:
            self.asked()
            yield
        finally:
            lock.release()

    def ask(self, wish: str) -> None:
        """Leave a wish for the job; it looks after every step. Raises ValueError when there is no such wish."""
        if wish not in WISHES:
            raise ValueError(f"A job cannot be asked to {wish}; it knows {', '.join(WISHES)}.")
        wishes = self.run / "wishes"
        wishes.mkdir(parents=True, exist_ok=True)
        (wishes / f"{time.time_ns():020d}.{wish}").touch()  # there at once or not at all: none is lost to a job that looks just now

    def asked(self) -> list[str]:
        """The wishes since the last call, in their order."""
        try:
            files = sorted((self.run / "wishes").iterdir())
        except FileNotFoundError:
            return []
        for file in files:
            file.unlink(missing_ok=True)
        return [file.suffix.removeprefix(".") for file in files]

    def start(self, *arguments: str) -> None:
        """Begin the work as `python -m duogen ARGUMENTS`, in a process that stays when this one ends."""
        self.run.mkdir(parents=True, exist_ok=True)
        self.tell(phase="starting", words="Starting ...")
        apart: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS}
        with (self.run / "log.txt").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "duogen", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, **apart,
            )  # fmt: skip

    def log(self, lines: int = 40) -> str:
        """The last lines that it said."""
        try:
            return "\n".join((self.run / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def figures(self, stage: str) -> list[dict[str, float]]:
        """What was measured, by step; a step that was done again after a kill counts once."""
        found: dict[int, dict[str, float]] = {}
        for name in ("log.jsonl", "validation.jsonl"):
            try:
                lines = (self.run / stage / name).read_text(encoding="utf-8").splitlines()
            except OSError:
                continue
            for line in lines:
                with contextlib.suppress(ValueError):  # cut short by a kill
                    entry = json.loads(line)
                    found.setdefault(entry["step"], {}).update(entry)
        return [found[step] for step in sorted(found)]

    def samples(self) -> list[dict[str, Any]]:
        """What was sampled on the way, oldest first: `stage`, `step` and `shown`, each with `prompt`, `text` and perhaps `picture`."""
        found = [_read(file) for file in sorted((self.run / "samples").glob("*.json"))]
        return sorted((each for each in found if each), key=lambda each: (each["stage"] == "paint", each["step"]))


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def home() -> Path:
    """Where jobs that the page starts are kept, and adapters are found."""
    return data_home() / "finetune"


def jobs() -> list[Job]:
    """All jobs there, the newest first."""
    found = [file.parents[1] for file in home().glob("*/run/order.json")]
    return [Job(folder) for folder in sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)]


def device_lock(device: str) -> FileLock:
    """Held by the one job that computes on a device ("cpu", "cuda:0"); the others wait for it."""
    home().mkdir(parents=True, exist_ok=True)
    return FileLock(home() / f".{device.replace(':', '-')}.lock")


def serving_lock(device: str) -> FileLock:
    """Held on a card by the chat's pair while it is there, and by a job while it computes there."""
    home().mkdir(parents=True, exist_ok=True)
    return FileLock(home() / f".serving-{device.replace(':', '-')}.lock")
