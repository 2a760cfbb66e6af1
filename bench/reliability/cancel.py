"""Answers that are stopped at random moments: python -m bench.reliability.cancel [--stops N]

Half of them are stopped as the page and the API do it, half are left alone by whoever read them, as a closed generator. What the bundled
pair still computes is counted in tokens and denoising steps, not in seconds, and its memory is read before and after.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

from bench.machine import host
from bench.reliability.soak import read_memory
from duogen.conversation import Conversation
from duogen.engine import Engine, Memory
from duogen.events import Done, ImageStep, TextDelta
from duogen.options import Options

FILE = Path(__file__).parents[1] / "results" / "cancel.json"
QUESTION = "How do I draw a red house with a blue door?"
GOALS = {"most_work_after_stop": 1, "memory_growth_percent": 5.0}


def time_answer(engine: Engine, seed: int) -> float:
    """Seconds of an answer that nobody stops."""
    engine.memory = Memory()
    began = time.monotonic()
    for _ in engine.answer(Conversation().say("user", QUESTION), Options(seed=seed)):
        pass
    return time.monotonic() - began


def stop_answer(engine: Engine, seed: int, after: float) -> tuple[int, bool]:
    """The tokens and steps that come after a stop, and whether the answer ended as one that was stopped, or before the stop."""
    engine.memory = Memory()
    stop, work, ended_well = threading.Event(), 0, False
    timer = threading.Timer(after, stop.set)
    timer.start()
    for event in engine.answer(Conversation().say("user", QUESTION), Options(seed=seed), stop):
        work += stop.is_set() and isinstance(event, TextDelta | ImageStep)
        if isinstance(event, Done):
            ended_well = not stop.is_set() or event.stats.stopped in ("user", "end")
    timer.cancel()
    return work, ended_well


def leave_answer(engine: Engine, seed: int, after: float) -> bool:
    """Close an answer at the first event after a moment, as a dead client does. Whether the next question is then answered whole."""
    engine.memory = Memory()
    until = time.monotonic() + after
    asked = Conversation().say("user", QUESTION)
    events = engine.answer(asked, Options(seed=seed))
    for _ in events:
        if time.monotonic() > until:
            break
    events.close()
    return any(isinstance(event, TextDelta) for event in engine.answer(asked, Options(seed=seed), _StopAfterWords()))


class _StopAfterWords(threading.Event):
    """A stop after a few tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 8

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def cancel(engine: Engine, stops: int, seed: int) -> dict[str, Any]:
    """Figures of so many stops."""
    rng, process = random.Random(seed), os.getpid()
    usual = max(time_answer(engine, seed) for seed in range(2))
    gc.collect()
    before = read_memory(process)
    works, well = [], []
    for at in range(stops):
        after = rng.uniform(0, usual)
        if at % 2:
            well.append(leave_answer(engine, at, after))
        else:
            work, ended = stop_answer(engine, at, after)
            works.append(work)
            well.append(ended)
    engine.memory = Memory()
    gc.collect()
    growth = 100 * (read_memory(process) / before - 1)
    return {
        "stops": stops,
        "seconds_of_an_answer": round(usual, 2),
        "most_work_after_stop": max(works),
        "ended_well": sum(well),
        "memory_mib": round(before, 1),
        "memory_growth_percent": round(growth, 2),
    }


def main() -> int:
    top = argparse.ArgumentParser(prog="python -m bench.reliability.cancel", description=__doc__.splitlines()[0])
    top.add_argument("--stops", type=int, default=100)
    top.add_argument("--seed", type=int, default=0)
    given = top.parse_args()
    about = host()
    figures = cancel(Engine.open(), given.stops, given.seed)
    for name, value in figures.items():
        print(f"{name:24} {value}" + (f"   goal <= {GOALS[name]}" if name in GOALS else ""))
    FILE.write_text(json.dumps({"machine": about, "figures": figures, "goals": GOALS}, indent=1) + "\n", encoding="utf-8")
    good = figures["ended_well"] == given.stops and all(figures[name] <= goal for name, goal in GOALS.items())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
