"""Answers a minute of one and of two replicas: python -m bench.replicas [--pair DIR] [--rounds N] [--answers N]

Both are measured in turn, in one run, on a cluster of this machine whose replicas have a core each. One replica is a cluster that gets one
request at a time, two are one that gets two. What the way over the cluster costs is measured beside an engine in this process, with one
thread too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own is 15, and the engine in this process has 0
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; what Ray gives a replica of one core

from bench.machine import host, report
from duogen.answerer import Answerer
from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.events import AnswerBuilder, ImageStep, TextDelta
from duogen.options import LoadOptions, preset_options
from duogen.replicas.cluster import RayCluster

RESULTS = Path(__file__).parent / "results"
QUESTION = "How do I draw a red house with a blue door?"
REPLICAS = 2


def answer(engine: Answerer, seed: int) -> AnswerBuilder:
    """An answer with what a user gets who changes nothing. Raises ValueError: it failed."""
    made = AnswerBuilder.from_events(engine.answer(Conversation().say("user", QUESTION), preset_options("balanced", engine.about, seed)))
    if made.stats is None:
        raise ValueError(made.error)
    return made


def time_answers(engine: Answerer, seeds: range, at_once: int) -> float:
    """Seconds for an answer to each seed."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda seed: answer(engine, seed), seeds))
    return time.perf_counter() - begun


def time_stop(engine: Answerer, seed: int) -> float:
    """Seconds from a stop in the middle of a picture to the end of the answer."""
    stop, set_at = threading.Event(), 0.0
    asked = Conversation().say("user", QUESTION)
    for event in engine.answer(asked, preset_options("balanced", engine.about, seed), stop):
        if isinstance(event, ImageStep) and not set_at:
            set_at = time.perf_counter()
            stop.set()
    return time.perf_counter() - set_at


def time_first_word(engine: Answerer, seed: int) -> float:
    """Seconds to the first words."""
    begun = time.perf_counter()
    events = engine.answer(Conversation().say("user", QUESTION), preset_options("balanced", engine.about, seed))
    try:
        next(event for event in events if isinstance(event, TextDelta))
        return time.perf_counter() - begun
    finally:
        events.close()


def measure(replicas: Answerer, here: Engine, given: argparse.Namespace, log: Callable[[str], None]) -> dict[str, Any]:
    """The figures, medians over the rounds."""
    rounds: dict[str, list[float]] = {name: [] for name in ("one", "two", "here", "stop", "first_word", "first_word_here")}
    for warm in range(REPLICAS):
        time_answers(replicas, range(warm * REPLICAS, (warm + 1) * REPLICAS), REPLICAS)
    answer(here, 0)
    for number in range(given.rounds):
        seeds = range(number * given.answers, (number + 1) * given.answers)
        rounds["one"].append(time_answers(replicas, seeds, 1))
        rounds["two"].append(time_answers(replicas, seeds, REPLICAS))
        rounds["here"].append(time_answers(here, seeds, 1))
        rounds["stop"].append(time_stop(replicas, number))
        rounds["first_word"].append(time_first_word(replicas, number))
        rounds["first_word_here"].append(time_first_word(here, number))
        log(" ".join(f"{name} {times[-1]:.3f}" for name, times in rounds.items()))
    ratios = [one / two for one, two in zip(rounds["one"], rounds["two"], strict=True)]
    return {
        "rounds": given.rounds,
        "answers_each": given.answers,
        "answers_a_minute": {name: 60 * given.answers / statistics.median(rounds[name]) for name in ("one", "two", "here")},
        "two_to_one": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "stop_seconds": statistics.median(rounds["stop"]),
        "first_word_seconds": statistics.median(rounds["first_word"]),
        "first_word_here_seconds": statistics.median(rounds["first_word_here"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", help="a pair's id, repository or folder (default: the bundled one)")
    parser.add_argument("--rounds", type=int, default=5, help="how often all is measured in turn")
    parser.add_argument("--answers", type=int, default=4, help="answers in a round")
    parser.add_argument("--out", type=Path, default=RESULTS / "replicas-cpu.json")
    given = parser.parse_args()
    machine = host()
    cluster = RayCluster.connect("local", REPLICAS, "cpu", given.pair)
    try:
        load = LoadOptions(device="cpu")
        replicas = cluster.open(given.pair, progress=lambda words: print(words, flush=True), load=load)
        here = Engine.open(given.pair, load=load)
        figures = measure(replicas, here, given, lambda words: print(words, flush=True))
    finally:
        cluster.close()
    import ray

    report({"pair": here.about["title"], "ray": ray.__version__, **figures}, machine, given.out)


if __name__ == "__main__":
    main()
