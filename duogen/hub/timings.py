"""How long pictures and training took on this machine, by pair and by how it was done: what was measured beats every estimate."""

from __future__ import annotations

import json
import statistics
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from duogen.files import read_record, write_beside
from duogen.paths import data_home

FILE = "timings.json"
KEPT, PAIRS = 5, 50
_writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="timings")  # a slow disk must not hold up the next picture
_written: list[Future[None]] = []  # the last one that was asked for


def note(pair: str, how: str, seconds: float) -> None:
    """Write down what something took, such as a denoising step of a picture, decoding included; a full disk is no reason to fail.

    Args:
        pair: id or folder. `how`: what it was, and all that makes it faster or slower (as `duogen.hub.memory_plan.Plan.how`).
    """
    _written[:] = [_writer.submit(_add, data_home() / FILE, pair, how, seconds)]


def _add(file: Path, pair: str, how: str, seconds: float) -> None:
    last_seconds = read_record(file)
    ways = last_seconds.pop(pair, {})
    ways[how] = [*ways.get(how, []), round(seconds, 4)][-KEPT:]
    latest = list(last_seconds.items())[1 - PAIRS :]  # the one that was used last comes last
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_beside(file, json.dumps({**dict(latest), pair: ways}).encode())
    except OSError:
        return


def last_seconds(pair: str, how: str) -> float:
    """Seconds as they were last, 0 where nothing was done so."""
    for writing in _written:
        writing.result()
    seconds = read_record(data_home() / FILE).get(pair, {}).get(how)
    return statistics.median(seconds) if seconds else 0.0


def say_seconds(seconds: float) -> str:
    """Seconds in words a person would use."""
    if seconds < 90:
        return f"{max(0.1, seconds):.1f} seconds" if seconds < 9.95 else f"{round(seconds)} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
