"""Fetching public weights into the hub's cache: a worker process that can be paused, resumed and killed, and what others see of it:
python -m duogen.hub.download ID
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen.files import write_beside
from duogen.hub.catalogue import entries, find_download, snapshot, video_models
from duogen.hub.fetching import Fetch, Paused, Progress, digest, explain_failure, home_of, repositories, things
from duogen.paths import ROOT, data_home

if TYPE_CHECKING:
    from filelock import FileLock

WATCH_SECONDS = 0.2
PROBE_SECONDS = 5  # how long `is_running`, which takes the lock for a moment, may keep a worker from it on a busy machine
CAN_BE_WOKEN = hasattr(signal, "pthread_kill")  # from waiting for bytes that do not come; not on Windows


def _status_file(id: str, ending: str) -> Path:
    return data_home() / "downloads" / (re.sub(r"[^\w.-]+", "--", id) + ending)


def _lock(id: str) -> FileLock:
    from filelock import FileLock

    _status_file(id, ".lock").parent.mkdir(parents=True, exist_ok=True)
    return FileLock(_status_file(id, ".lock"))


def is_running(id: str) -> bool:
    """Whether a worker fetches it now."""
    from filelock import Timeout

    try:
        with _lock(id).acquire(timeout=0):
            return False
    except Timeout:
        return True


def status(id: str) -> Progress | None:
    """Where a download stands, `None` when it was never begun. One whose worker was killed is paused."""
    try:
        raw: dict[str, Any] = json.loads(_status_file(id, ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    raw["files"] = {name: tuple(each) for name, each in raw["files"].items()}
    known = Progress(**raw)
    if known.state in ("listing", "running") and not is_running(id):
        return replace(known, state="paused", speed=0.0)
    return known


def start(id: str, preset: str = "") -> None:
    """Start a worker, or go on where the last one stopped; it outlives whoever calls this. Nothing happens when one runs.

    Raises:
        ValueError: there is no such pair or preset.
    """
    things(find_download(id), preset)
    if is_running(id):
        return
    _status_file(id, ".pause").unlink(missing_ok=True)
    _write(Progress(id))
    log = _status_file(id, ".log")
    command = [sys.executable, "-m", "duogen.hub.download", id, *([preset] if preset else [])]
    with log.open("wb") as out:
        detached: dict[str, Any] = {"creationflags": 0x00000208} if os.name == "nt" else {"start_new_session": True}
        worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT, **detached)
    for _ in range(1200):  # until it holds the lock, or has ended already
        if worker.poll() is not None or is_running(id):
            return
        time.sleep(0.05)


def pause(id: str) -> None:
    """Let the worker stop within a moment; what came is kept."""
    if is_running(id):
        _status_file(id, ".pause").touch()


def _write(progress: Progress) -> None:
    progress.changed = time.time()
    target = _status_file(progress.id, ".json")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_beside(target, json.dumps(asdict(progress)).encode())


def work(id: str, preset: str = "") -> int:
    """What the worker process does; returns its exit status."""
    from filelock import Timeout

    fetching = Fetch(find_download(id), preset, say=_write, rests=lambda: not CAN_BE_WOKEN and _status_file(id, ".pause").exists())

    def stop(*_: Any) -> None:
        raise Paused

    signal.signal(signal.SIGTERM, stop)
    try:
        with _lock(id).acquire(timeout=PROBE_SECONDS):
            try:
                with _listen_for_pause(id):
                    fetching.run()
                return 0
            except Paused:
                fetching.progress.state = "paused"
            except ValueError as error:
                fetching.progress.state, fetching.progress.message = "failed", str(error)
            except Exception as error:  # every one is a sentence
                fetching.progress.state, fetching.progress.message = "failed", explain_failure(error, fetching.pair)
            fetching.progress.speed = 0.0
            with contextlib.suppress(OSError):  # a full disk
                _write(fetching.progress)
            return 3 if fetching.progress.state == "paused" else 2
    except Timeout:
        return 0  # another one is at it
    finally:
        _status_file(id, ".pause").unlink(missing_ok=True)


@contextlib.contextmanager
def _listen_for_pause(id: str) -> Iterator[None]:
    """A request to pause reaches the worker while it waits for bytes too, on a line that has gone dead."""
    over, worker = threading.Event(), threading.get_ident()

    def listen() -> None:
        while not over.wait(WATCH_SECONDS):
            if _status_file(id, ".pause").exists():
                signal.pthread_kill(worker, signal.SIGTERM)
                return

    if CAN_BE_WOKEN:
        threading.Thread(target=listen, name="pause", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def watch_progress(id: str, seconds: float = 0.5) -> Iterator[Progress]:
    """The progress of a worker until it ends."""
    while True:
        alive = is_running(id)
        if (now := status(id)) is not None:
            yield now
        if not alive:
            return
        time.sleep(seconds)


def verify(id: str) -> list[str]:
    """Names of files that are not what the hub has; they are thrown away, so that the next download brings them anew.

    Raises:
        ValueError: nothing of it is here.
    """
    folders = [there for source in repositories(find_download(id)) if (there := snapshot(source)) is not None]
    if not folders:
        raise ValueError(f"Nothing of {id} is on this machine.")
    bad = []
    for folder in folders:
        for file in sorted(file for file in folder.rglob("*") if file.is_symlink()):
            etag = file.readlink().name
            if not file.exists() or digest(file, etag) != etag:
                bad.append(str(file.relative_to(folder)))
                file.resolve().unlink(missing_ok=True)
                file.unlink()
    return bad


def remove(id: str) -> int:
    """Throw a pair's files away, but for those that another pair on this machine needs; returns the bytes that became free.

    Raises:
        ValueError: there is no such pair, it is being fetched, or nothing of it is here.
    """
    pair = find_download(id)
    if not pair.sources:
        raise ValueError(f"{pair.title} comes with the program and cannot be removed.")
    if is_running(id):
        raise ValueError(f"{pair.title} is being fetched; pause that first.")
    known_ones = [*entries().values(), *video_models().values()]
    others = {source.repo for other in known_ones if other.id != id and status(other.id) for source in other.sources}
    freed = 0
    for home in [home_of(source) for source in repositories(pair) if source.repo not in others]:
        if home.is_dir():
            freed += sum(file.stat().st_size for file in home.rglob("*") if file.is_file() and not file.is_symlink())
            gone = home.with_name(home.name + ".gone")
            home.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
    known = status(id) is not None
    for ending in (".json", ".log", ".pause"):
        _status_file(id, ending).unlink(missing_ok=True)
    if not freed and not known:
        raise ValueError(f"Nothing of {pair.title} is on this machine.")
    return freed


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.exit(work(*sys.argv[1:3]))
