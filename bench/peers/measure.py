"""Seconds, tokens encoded, forwards of the DiT and peak memory of one family, the two ways in turn: A B A B ..."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench.gpu import small_sources
from bench.peers.families import Family, Peers, Size
from bench.peers.naive import Script
from bench.peers.script import Exchange
from duogen.conversation import Conversation
from duogen.engine import Memory
from duogen.events import Done, Failed
from duogen.models.placeholders import BLIND_SYSTEM, SYSTEM
from duogen.options import ImageOptions, Options, TextOptions

SEED = 1
MB = 2**20
WAYS = ("naive", "duogen")


@dataclass
class Counts:
    """What the models had to do.

    Attributes:
        tokens: read by the language models, prompts' padding included.
        forwards: of the DiT. `painted`: tokens of pictures that went through it.
    """

    tokens: int = 0
    forwards: int = 0
    painted: int = 0


@contextmanager
def count_work(peers: Peers) -> Iterator[Counts]:
    """Count while the block runs."""
    found = Counts()

    def read(module: torch.nn.Module, given: tuple, named: dict[str, Any]) -> None:
        each = named.get("inputs_embeds") if named.get("inputs_embeds") is not None else named.get("input_ids", *given[:1])
        found.tokens += each.shape[0] * each.shape[1]

    def paint(module: torch.nn.Module, given: tuple) -> None:
        found.forwards += 1
        found.painted += given[0].shape[0] * given[0].shape[1]

    readers = [next((part for part in model.modules() if hasattr(part, "embed_tokens")), model) for model in peers.readers]
    hooks = [reader.register_forward_pre_hook(read, with_kwargs=True) for reader in readers]
    # The engine walks through the DiT's parts; its last one is called once for each forward by whoever drives it.
    hooks.append(peers.last.register_forward_pre_hook(paint))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def run_naive(peers: Peers, exchanges: tuple[Exchange, ...]) -> Script:
    """The conversation by the libraries alone."""
    system = SYSTEM if peers.engine.painter.takes_pictures(ImageOptions()) else BLIND_SYSTEM
    script = Script(peers.engine.mllm.model, peers.engine.tokens, peers.naive, system)
    script.run(exchanges, SEED)
    return script


def run_duogen(peers: Peers, exchanges: tuple[Exchange, ...]) -> Conversation:
    """The conversation by DuoGen's engine, from an empty memory.

    Raises:
        ValueError: the pair failed.
    """
    engine = peers.engine
    engine.memory = Memory()
    asked = Options(SEED, TextOptions(temperature=0.0), ImageOptions(engine.about["steps"], 1.0, preview_every=0))
    conversation = Conversation()
    for exchange in exchanges:
        said = iter([token for segment in exchange.answer for token in segment.ids(engine.tokens)])
        with mock.patch("duogen.models.mllm.choose", lambda logits, options, generator, said=said: next(said)):
            *_, last = engine.answer(conversation.say("user", exchange.question), asked)
        if isinstance(last, Failed):
            raise ValueError(last.message)
        assert isinstance(last, Done)
        conversation = last.conversation
    return conversation


RUNS = dict(zip(WAYS, (run_naive, run_duogen), strict=True))


@contextmanager
def measure_peak() -> Iterator[list[float]]:
    """MB that this process grows by at most while the block runs, appended when it ends; NaN where the system does not tell.

    Linux keeps the high-water mark of a process and lets it be set back. Freed memory is given back first, so that it does not hide growth.
    """
    found: list[float] = []
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except OSError:
        yield found
        found.append(float("nan"))
        return
    yield found
    found.append((_status("VmHWM") - before) / 1024)


def _status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return float(line.split()[1])


def measure(family: Family, size: Size, thin: Size, repeats: int) -> dict[str, Any]:
    """All figures of a family. `thin` is the same number of layers and calls with hardly any arithmetic: what Python and dispatch cost."""
    found: dict[str, Any] = {"title": family.title, "peer": family.peer, "goal": family.goal}
    thinly = run_thin(family, thin)  # first, since it warms up the libraries too
    with small_sources(size.side):
        peers = family.build(size)
        for way in WAYS:
            with count_work(peers) as counts, measure_peak() as peak:
                RUNS[way](peers, family.script)
            found[way] = {**vars(counts), "peak_mb": peak[0], "overhead_seconds": thinly[way]}
        rounds = in_turn(peers, family, repeats)
    for way in WAYS:
        found[way] |= spread(rounds[way])
    return found | ratios(rounds)


def run_thin(family: Family, thin: Size) -> dict[str, float]:
    """Seconds of each way where there is hardly any arithmetic."""
    with small_sources(thin.side):
        peers = family.build(thin)
        return {way: min(each.wall for each in rounds) for way, rounds in in_turn(peers, family, 2).items()}


@dataclass(frozen=True)
class Round:
    """Seconds of one round: on the clock, and of all cores at work for this process, which others on the machine disturb less."""

    wall: float
    cpu: float


def in_turn(peers: Peers, family: Family, repeats: int) -> dict[str, list[Round]]:
    """Rounds of each way, one after the other, `repeats` times."""
    rounds: dict[str, list[Round]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            gc.collect()
            begun = time.perf_counter(), time.process_time()
            RUNS[way](peers, family.script)
            rounds[way].append(Round(time.perf_counter() - begun[0], time.process_time() - begun[1]))
    return rounds


def spread(rounds: list[Round]) -> dict[str, Any]:
    """The best round, the median and the slowest."""
    wall = [each.wall for each in rounds]
    return {"seconds": min(wall), "median": statistics.median(wall), "most": max(wall), "cpu_seconds": min(each.cpu for each in rounds)}


def ratios(rounds: dict[str, list[Round]]) -> dict[str, float]:
    """How many times as fast: the best rounds of both ways, which other programs disturb least, and the extremes of neighbours."""
    naive, duogen = rounds.values()
    found = [one.wall / other.wall for one, other in zip(naive, duogen, strict=True)]
    best = min(each.wall for each in naive) / min(each.wall for each in duogen)
    cpu = min(each.cpu for each in naive) / min(each.cpu for each in duogen)
    return {"ratio": best, "ratio_least": min(found), "ratio_most": max(found), "cpu_ratio": cpu}
