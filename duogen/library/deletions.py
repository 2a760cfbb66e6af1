"""What was deleted waits in a folder for a month. A clock that was wrong once costs nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from duogen.files import read_record, write_beside

KEPT_SECONDS = 30 * 24 * 3600
SURE_SECONDS = 24 * 3600
LEDGER = ".times.json"
LEFTOVER = re.compile(r"\..*\.part|\.coming-.*")  # as `write_beside`, `save_conversation` and an import name them
ABANDONED_SECONDS = 24 * 3600  # what is of this age has no process any more


def remove_old(folder: Path) -> None:
    """Delete for good what was deleted a month ago, once two starts at least a day apart have found it that old.

    `LEDGER` holds when each entry was deleted and when it was first found too old. The dates of the files alone would begin anew in a
    copied folder, and a clock that is a month ahead would delete everything at once.
    """
    now, known, times = time.time(), read_record(folder / LEDGER), {}
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        found = path.stat()
        entry = _update_entry(known.get(path.name), found.st_ctime_ns, now)
        if entry["due"] is not None and now - entry["due"] >= SURE_SECONDS:
            _remove(path)
        else:
            times[path.name] = entry
    if times != known:
        write_beside(folder / LEDGER, json.dumps(times).encode())


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left below a folder beside its place: files and folders that were not whole yet."""
    now = time.time()
    for place, folders, files in os.walk(folder):
        for name in (name for name in (*folders, *files) if LEFTOVER.fullmatch(name)):
            with contextlib.suppress(OSError):  # its process lives, and has just renamed it
                if now - (Path(place) / name).stat().st_mtime > ABANDONED_SECONDS:
                    _remove(Path(place) / name)


def _update_entry(known: Any, ctime_ns: int, now: float) -> dict[str, Any]:
    """The entry of the ledger as it should be now; a new one where the file was deleted again since."""
    entry = known if isinstance(known, dict) and known.get("ctime_ns") == ctime_ns else {"ctime_ns": ctime_ns, "deleted": ctime_ns / 1e9}
    deleted = _read_time(entry.get("deleted"), now)
    old = now - (now if deleted is None else deleted) > KEPT_SECONDS
    due = _read_time(entry.get("due"), now)
    return {"ctime_ns": ctime_ns, "deleted": now if deleted is None else deleted, "due": (now if due is None else due) if old else None}


def _read_time(value: Any, now: float) -> float | None:
    """A time of the ledger; `None` for what is no time or lies in the future, which a clock that was ahead has written."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= now else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
