"""Jobs: long work in a process of its own, which goes on when the process that started it ends.

Other processes find a job by its folder. In it, `run/` holds `request.json` (what the job should make), `progress.json` (how far it is),
`commands/` (what it should do next), `log.txt` (what it printed), `.lock` (held while it runs), a folder for each stage, and its samples.
JSON files are written beside and renamed, so that a reader never sees half of one.

Older versions wrote `order.json` for `request.json`, and other names of stages and keys (`duogen.finetune.config.OLD_KEYS`). Both stay
readable.
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

from duogen.files import read_record, write_beside
from duogen.finetune.config import OLD_NAMES, STAGE_ALIASES, rename_old_keys
from duogen.paths import ROOT, data_home

RUNNING = ("starting", "waiting", "checking", "caching", "training", "sampling", "saving")
ENDED = ("done", "paused", "stopped", "failed", "killed")
COMMANDS = ("sample", "save", "pause", "stop")
GOES_ON = "It was ended from outside (killed, or the machine went down); Resume goes on from the last saved step."
START_SECONDS = 60.0
LOCK_SECONDS = 5.0  # a reader holds a job's lock for a moment
REQUEST, OLD_REQUEST = "request.json", "order.json"
OLD_FIELDS = {"told": "updated", "wants_card": "wants_gpu"}  # of `progress.json`


class Job:
    """One job, by its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"

    @property
    def name(self) -> str:
        return self.folder.name

    def read_request(self) -> dict[str, Any]:
        """What the job should make, with today's names; empty when there is no such job."""
        request = rename_old_keys(read_record(self.run / REQUEST) or read_record(self.run / OLD_REQUEST))
        return request | {"stage": STAGE_ALIASES.get(request["stage"], request["stage"])} if "stage" in request else request

    def write_request(self, request: dict[str, Any]) -> None:
        self.run.mkdir(parents=True, exist_ok=True)
        write_beside(self.run / REQUEST, json.dumps(request, indent=1).encode())

    def stage_folder(self, stage: str) -> Path:
        """Where a stage's states and logs are. A run that began under the stage's old name goes on there."""
        return _choose_folder(self.run, stage)

    def replay_folder(self, stage: str) -> Path:
        """Where the examples are that a stage replays."""
        old = _choose_folder(self.run / "rehearsal", stage)
        return old if old.is_dir() else self.run / "replay" / stage

    def votes_folder(self) -> Path:
        """Where the votes are that the job learns from."""
        return self.run / "votes"

    def has_sample(self, stage: str, step: int) -> bool:
        """Whether samples of a step were made, under the stage's name or its old one."""
        names = [stage, *(old for old, new in OLD_NAMES.items() if new == stage)]
        return any((self.run / "samples" / f"{name}-{step:07d}.json").exists() for name in names)

    def report(self, **news: Any) -> None:
        """Add to the job's progress. The job itself calls this."""
        known = {**self._read_progress(), **news, "pid": os.getpid(), "updated": time.time()}
        write_beside(self.run / "progress.json", json.dumps(known).encode())

    def _read_progress(self) -> dict[str, Any]:
        known = {OLD_FIELDS.get(key, key): value for key, value in read_record(self.run / "progress.json").items()}
        return _rename_stage(known)

    def progress(self) -> dict[str, Any]:
        """How far the job is: `phase` is one of `RUNNING` or `ENDED`, `words` is a sentence for a person.

        A job whose phase is one of `RUNNING` while no process holds its lock was killed.
        """
        known: dict[str, Any] = {"phase": "starting", "words": "Starting ...", **self._read_progress()}
        if known["phase"] in RUNNING and not self.is_alive():
            again = self._read_progress()  # it may have ended in between
            known |= again
            young = known["phase"] == "starting" and time.time() - known.get("updated", 0) < START_SECONDS
            if known["phase"] in RUNNING and not young:
                known |= {"phase": "killed", "words": GOES_ON}
        return known

    def is_alive(self) -> bool:
        """Whether a process works on the job."""
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
    def hold_lock(self) -> Iterator[None]:
        """Hold the job's lock while the job works.

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
            if self._read_progress().get("phase") != "starting":  # commands for a run that was killed; `start` keeps those for this one
                self.take_commands()
            yield
        finally:
            lock.release()

    def send_command(self, command: str) -> None:
        """Leave a command for the job, which reads it between two batches. Raises ValueError when there is no such command."""
        if command not in COMMANDS:
            raise ValueError(f"A job has no command {command}; it has {', '.join(COMMANDS)}.")
        folder = self.run / "commands"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{time.time_ns():020d}.{command}").touch()  # atomic: a job that reads at this moment loses no command

    def take_commands(self) -> list[str]:
        """Remove and return the commands that came since the last call, in their order."""
        try:
            files = sorted((self.run / "commands").iterdir())
        except FileNotFoundError:
            return []
        for file in files:
            file.unlink(missing_ok=True)
        return [file.suffix.removeprefix(".") for file in files]

    def start(self, *arguments: str) -> None:
        """Start the job as `python -m duogen ARGUMENTS`, in a process that goes on when this one ends."""
        self.run.mkdir(parents=True, exist_ok=True)
        self.take_commands()
        self.report(phase="starting", words="Starting ...")
        detached: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            detached = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS}
        with (self.run / "log.txt").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "duogen", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, **detached,
            )  # fmt: skip

    def log(self, lines: int = 40) -> str:
        """The last lines that the job printed."""
        try:
            return "\n".join((self.run / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def figures(self, stage: str) -> list[dict[str, float]]:
        """The figures of a stage, by step. A step that was repeated after a kill appears once."""
        found: dict[int, dict[str, float]] = {}
        folder = self.stage_folder(stage)
        for name in ("log.jsonl", "validation.jsonl"):
            try:
                lines = (folder / name).read_text(encoding="utf-8").splitlines()
            except OSError:
                continue
            for line in lines:
                with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # cut short by a kill, or damaged
                    entry = json.loads(line)
                    found.setdefault(entry["step"], {}).update(entry)
        return [found[step] for step in sorted(found)]

    def samples(self) -> list[dict[str, Any]]:
        """The samples of all steps, oldest first: `stage`, `step` and `shown`, each with `prompt`, `text` and perhaps `picture`."""
        found = [_rename_stage(read_record(file)) for file in sorted((self.run / "samples").glob("*.json"))]
        whole = [each for each in found if {"stage", "step", "shown"} <= each.keys()]
        return sorted(whole, key=lambda each: (each["stage"] == "dit", each["step"]))


def _rename_stage(known: dict[str, Any]) -> dict[str, Any]:
    return known | {"stage": OLD_NAMES.get(known["stage"], known["stage"])} if "stage" in known else known


def _choose_folder(folder: Path, stage: str) -> Path:
    """The folder of a stage in `folder`: under its old name where there is only that."""
    olds = [folder / old for old, new in OLD_NAMES.items() if new == stage and (folder / old).is_dir()]
    return olds[0] if olds and not (folder / stage).is_dir() else folder / stage


def finetune_home() -> Path:
    """The folder of the jobs that the page starts, and of adapters."""
    return data_home() / "finetune"


def list_jobs() -> list[Job]:
    """All jobs in `finetune_home`, the newest first."""
    found = {file.parents[1] for name in (REQUEST, OLD_REQUEST) for file in finetune_home().glob(f"*/run/{name}")}
    return [Job(folder) for folder in sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)]


def device_lock(device: str) -> FileLock:
    """The lock that the one job holds that computes on a device ("cpu", "cuda:0"); other jobs wait for it."""
    finetune_home().mkdir(parents=True, exist_ok=True)
    return FileLock(finetune_home() / f".{device.replace(':', '-')}.lock")


def serving_lock(device: str) -> FileLock:
    """The lock of a GPU: the chat's pair holds it while it is there, and a job while it computes there."""
    finetune_home().mkdir(parents=True, exist_ok=True)
    return FileLock(finetune_home() / f".serving-{device.replace(':', '-')}.lock")
