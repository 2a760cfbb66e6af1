"""Hundreds of turns in one server: python -m bench.reliability.soak [--turns N] [--stand-in] [--no-training]

Two browsers ask in turn, each for a picture, and begin a new conversation every 20 turns. A fine-tuning job of the bundled pair runs beside
them. The figures are the memory of the server after the first 50 turns and at the end, and the seconds from a question to its whole answer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.browser import CHROMIUM, ROOT, WINDOW, served
from bench.machine import host

FILE = Path(__file__).parents[1] / "results" / "soak.json"
A_CONVERSATION = 20  # turns
WARM_UP = 50  # turns after which nothing should grow
GOALS = {"memory_growth_percent": 5.0, "late_to_early_seconds": 1.2}
ANSWERS = "document.querySelectorAll('#talk .bot .chat-actions')"
ANSWERED = f"count => {ANSWERS}.length >= count && !!document.querySelector('#box .submit-button')"
THINGS = ("house", "tree", "snowman", "car", "flower", "rocket")
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")


def find_server(home: Path) -> int:
    """The process of the server whose data folder is `home`."""
    for each in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (each / "cmdline").read_bytes(), (each / "environ").read_bytes()
        except OSError:
            continue
        if b"--port" in words and f"DUOGEN_HOME={home}".encode() in environment.split(b"\0"):
            return int(each.name)
    raise ValueError("The server is gone.")


def read_memory(process: int) -> float:
    """MiB that a process holds of its own: what it maps from files and shares does not count."""
    line = next(each for each in Path(f"/proc/{process}/status").read_text().splitlines() if each.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


@contextmanager
def train_beside(home: Path) -> Iterator[None]:
    """A fine-tuning job that begins again when it ends, in a session of its own as the page starts one."""
    from bench.finetune_examples import lighthouse_world, write_lighthouses

    with lighthouse_world():
        data = write_lighthouses(home / "lighthouses")
    code = "import itertools, subprocess, sys\nfor n in itertools.count(): subprocess.run([*sys.argv[2:], '--out', f'{sys.argv[1]}-{n}'])"
    job = [sys.executable, "-m", "duogen", "finetune", "--device", "cpu", "--stage", "dit", "--recipe", "cpu", "--data", str(data)]
    with (home / "training.log").open("w") as log:
        command, environment = [sys.executable, "-c", code, str(home / "adapter"), *job], {**os.environ, "DUOGEN_HOME": str(home)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def ask(page: Any, words: str, count: int) -> float:
    """Seconds until the answer number `count` of a conversation is whole."""
    began = time.monotonic()
    page.fill("#box textarea", words)
    page.keyboard.press("Enter")
    page.wait_for_function(ANSWERED, arg=count)
    return time.monotonic() - began


def soak(home: Path, address: str, turns: int) -> Iterator[dict[str, float]]:
    """One entry for each turn: its seconds, and the server's memory after it."""
    from playwright.sync_api import sync_playwright

    rng, server = random.Random(0), find_server(home)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        pages = [browser.new_page(viewport=WINDOW) for _ in range(2)]
        for page in pages:
            page.set_default_timeout(600_000)
            page.goto(address)
            page.wait_for_selector("#talk .example")
        for turn in range(turns):
            page, place = pages[turn % 2], turn // 2 % A_CONVERSATION
            if turn > 1 and place == 0:
                page.click("#new")
                page.wait_for_selector("#talk .example")
            seconds = ask(page, f"Draw a {rng.choice(COLOURS)} {rng.choice(THINGS)}.", place + 1)
            yield {"turn": turn + 1, "seconds": round(seconds, 3), "memory_mib": round(read_memory(server), 1)}
        browser.close()


def describe(entries: list[dict[str, float]], pictures: int) -> dict[str, float]:
    """The figures of a run. Windows of 40 turns hold every place of a conversation once for each browser."""
    window = 2 * A_CONVERSATION
    early, late = entries[WARM_UP : WARM_UP + window], entries[-window:]
    memory = [statistics.median(each["memory_mib"] for each in part) for part in (early, late)]
    seconds = [statistics.median(each["seconds"] for each in part) for part in (early, late)]
    figures = {
        "turns": len(entries),
        "pictures": pictures,
        "early_memory_mib": memory[0],
        "late_memory_mib": memory[1],
        "memory_growth_percent": 100 * (memory[1] / memory[0] - 1),
        "early_seconds": seconds[0],
        "late_seconds": seconds[1],
        "late_to_early_seconds": seconds[1] / seconds[0],
    }
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> int:
    top = argparse.ArgumentParser(prog="python -m bench.reliability.soak", description=__doc__.splitlines()[0])
    top.add_argument("--turns", type=int, default=500, help=f"at least {WARM_UP + 4 * A_CONVERSATION}")
    top.add_argument("--stand-in", action="store_true", help="the tests' stand-in for a pair: only the page and what it keeps")
    top.add_argument("--no-training", action="store_true", help="no fine-tuning job beside it")
    top.add_argument("--out", type=Path, default=FILE)
    given = top.parse_args()
    program = ("tests/support/stand_in.py", "--seconds", "0.05") if given.stand_in else ("app.py",)
    about = host() | {"pair": "stand-in" if given.stand_in else "bundled", "training_beside": not given.no_training}
    with tempfile.TemporaryDirectory(prefix="duogen-soak-") as folder, ExitStack() as stack:
        home = Path(folder)
        address = stack.enter_context(served(home, *program))
        if not given.no_training:
            stack.enter_context(train_beside(home))
        entries: list[dict[str, float]] = []
        for entry in soak(home, address, given.turns):
            entries.append(entry)
            if entry["turn"] % 10 == 0:
                print(*entry.values(), flush=True)
        pictures = len(list((home / "pictures").glob("*.png")))
    figures = describe(entries, pictures)
    for name, value in figures.items():
        print(f"{name:24} {value}" + (f"   goal < {GOALS[name]}" if name in GOALS else ""))
    given.out.write_text(json.dumps({"machine": about, "figures": figures, "goals": GOALS}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
