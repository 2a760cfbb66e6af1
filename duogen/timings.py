"""How long pictures and training took on this machine, by pair and by how it was done: what was measured beats every estimate."""

from __future__ import annotations

import json
import statistics
import threading

from duogen.conversation import write_beside
from duogen.store import data_home

KEPT, PAIRS = 5, 50
_writing = threading.Lock()


def _all() -> dict[str, dict[str, list[float]]]:
    try:
        known = json.loads((data_home() / "timings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def note(pair: str, how: str, seconds: float) -> None:
    """Write down what something took, such as a denoising step of a picture, decoding included; a full disk is no reason to fail.

    Args:
        pair: id or folder. `how`: what it was, and all that makes it faster or slower (as `duogen.memory.Plan.how`).
    """
    with _writing:
        known = _all()
        ways = known.pop(pair, {})
        ways[how] = [*ways.get(how, []), round(seconds, 4)][-KEPT:]
        latest = list(known.items())[1 - PAIRS :]  # the one that was used last comes last
        try:
            data_home().mkdir(parents=True, exist_ok=True)
            write_beside(data_home() / "timings.json", json.dumps({**dict(latest), pair: ways}).encode())
        except OSError:
            return


def known(pair: str, how: str) -> float:
    """Seconds as they were last, 0 where nothing was done so."""
    seconds = _all().get(pair, {}).get(how)
    return statistics.median(seconds) if seconds else 0.0


def spoken(seconds: float) -> str:
    """Seconds in words a person would use."""
    if seconds < 90:
        return f"{max(0.1, seconds):.1f} seconds" if seconds < 9.95 else f"{round(seconds)} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
