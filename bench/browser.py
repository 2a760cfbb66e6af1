"""How the page feels in a browser, headless Chromium: python -m bench.browser [--repeats N]

Seconds until a conversation of 200 messages is to be seen, from the first request for the page (a new browser, and one that has been
here before), beside those of an empty page; and the frames of a conversation with 12 pictures of 1024 px that is scrolled while an
answer streams, beside those while nothing happens. The server is the tests' stand-in for a pair, so that no model takes the processor.

`python -m bench.browser --answers N` measures instead what an answer of the bundled pair takes: N times in the browser, each followed by
the same answer (same seed and options) from the engine in this process, while the page has nothing to do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.machine import host
from bench.page import MESSAGES, PICTURES, told
from duogen.library.conversations import ConversationStore

ROOT = Path(__file__).parents[1]
FILE = Path(__file__).parent / "results" / "browser.json"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ANSWERS_FILE = FILE.with_name("answers.json")
QUESTION = "How do I draw a red house with a blue door?"
GOALS = {"open_seconds": 2.0, "first_word_to_engine": 1.15}
LAST_WORDS = "[...document.querySelectorAll('#talk .bot')].at(-1)?.innerText ?? ''"
FIRST_WORD = f"() => /[a-z]/i.test({LAST_WORDS}) ? performance.now() / 1000 : false"
LAST_FACTS = "[...document.querySelectorAll('#talk .bot .chat-actions .about')].at(-1)?.textContent ?? ''"
ANSWERED = f"() => {{ const found = /seed (\\d+)/.exec({LAST_FACTS}); return found ? [performance.now() / 1000, +found[1]] : false }}"
PICTURE_SECONDS, SCROLL_SECONDS = 2.0, 6.0
WINDOW = {"width": 1100, "height": 820}
SHOWN = """count => {
    const messages = document.querySelectorAll('#talk button.i-copy');
    if (messages.length < count) return false;
    const last = messages[messages.length - 1].getBoundingClientRect();
    return last.height > 0 && last.top < innerHeight ? performance.now() / 1000 : false;
}"""
READY = "() => document.querySelector('#talk .placeholder h2')?.checkVisibility() ? performance.now() / 1000 : false"
SCROLL = """seconds => new Promise(done => {
    const talk = document.querySelector('#talk .bubble-wrap'), frames = [], began = performance.now();
    let before = began, way = -40;
    const step = now => {
        frames.push(now - before);
        before = now;
        if (talk.scrollTop <= 0) way = 40;
        if (talk.scrollTop >= talk.scrollHeight - talk.clientHeight - 1) way = -40;
        talk.scrollTop += way;
        now - began < 1000 * seconds ? requestAnimationFrame(step) : done(frames.slice(2));
    };
    requestAnimationFrame(step);
})"""


def find_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def served(home: Path, *program: str) -> Iterator[str]:
    """The address of a page whose data folder is `home`; `program` is by default the stand-in."""
    port = find_port()
    program = program or ("tests/support/stand_in.py", "--seconds", str(PICTURE_SECONDS))
    command = [sys.executable, *program, "--port", str(port), "--no-browser"]
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "DUOGEN_HOME": str(home)}, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(3000):  # ten minutes: a busy machine is slow, not wrong
            if process.poll() is not None:
                raise ValueError(f"The server has ended: {(home / 'server.log').read_text()[-500:]}")
            try:
                urllib.request.urlopen(address, timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        else:
            raise ValueError(f"The page does not come up: {(home / 'server.log').read_text()[-500:]}")
        yield address
    finally:
        process.terminate()
        process.wait()


def seconds_to(page: Any, address: str, shown: str, count: int = 0) -> float:
    page.goto(address, wait_until="commit")
    return page.wait_for_function(shown, arg=count, polling="raf").json_value()


def opening(browser: Any, address: str, chat: str, repeats: int) -> dict[str, float]:
    """Medians, in seconds."""
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, where, shown in (("empty_page", address, READY), ("open", f"{address}?c={chat}", SHOWN)):
            context = browser.new_context(viewport=WINDOW)
            page = context.new_page()
            page.set_default_timeout(120_000)
            times.setdefault(f"{name}_first_visit_seconds", []).append(seconds_to(page, where, shown, MESSAGES))
            page.wait_for_timeout(1000)  # for what the page fetches after it is shown
            times.setdefault(f"{name}_seconds", []).append(seconds_to(page, where, shown, MESSAGES))
            context.close()
    return {name: round(statistics.median(each), 2) for name, each in times.items()}


def scrolling(browser: Any, address: str, chat: str) -> dict[str, float]:
    """Milliseconds from frame to frame; 16.7 is what a screen of 60 Hz shows."""
    context = browser.new_context(viewport=WINDOW)
    page = context.new_page()
    page.set_default_timeout(120_000)
    seconds_to(page, f"{address}?c={chat}", SHOWN, 2 * PICTURES)
    page.wait_for_function(f"[...document.querySelectorAll('#talk .bot img')].filter(each => each.naturalWidth).length >= {PICTURES}")
    page.evaluate(SCROLL, SCROLL_SECONDS)  # every picture is decoded once
    found = frames("idle", page.evaluate(SCROLL, SCROLL_SECONDS))
    page.fill("#box textarea", "How do I draw a boat?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#talk .pending")
    found |= frames("streaming", page.evaluate(SCROLL, SCROLL_SECONDS))
    if page.locator("#box .submit-button").is_visible():
        raise ValueError("The answer was over before the scrolling was; scroll for less long.")
    context.close()
    return found


def frames(name: str, times: list[float]) -> dict[str, float]:
    """`late` is the share of frames that took longer than two of a 60 Hz screen, in percent."""
    late = 100 * sum(each > 34 for each in times) / len(times)
    worst = {"median": statistics.median(times), "p95": statistics.quantiles(times, n=20)[-1], "worst": max(times)}
    return {f"{name}_frame_{kind}_ms": round(each, 1) for kind, each in worst.items()} | {f"{name}_frames_late_percent": round(late, 1)}


def measured(home: Path, repeats: int) -> tuple[dict[str, float], str]:
    """The figures, and which browser they are of."""
    from playwright.sync_api import sync_playwright

    store = ConversationStore(home / "conversations")
    long, pictured = store.save(told(MESSAGES, PICTURES)), store.save(told(2 * PICTURES, PICTURES))
    with served(home) as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        found = opening(browser, address, long.id, repeats) | scrolling(browser, address, pictured.id)
        name = f"Chromium {browser.version}, headless, without a graphics card"
        browser.close()
    return found, name


def answer_in_browser(browser: Any, address: str) -> tuple[float, float, int]:
    """Seconds from sending a question to the first word and to the end of its answer, as they are seen, and the answer's seed."""
    context = browser.new_context(viewport=WINDOW)
    page = context.new_page()
    page.set_default_timeout(300_000)
    page.goto(address)
    page.wait_for_selector("#talk .examples, #talk [class*=example]")  # they come with the pair
    page.fill("#box textarea", QUESTION)
    began = page.evaluate("performance.now() / 1000")
    page.keyboard.press("Enter")
    first = page.wait_for_function(FIRST_WORD, polling="raf").json_value()
    ended, seed = page.wait_for_function(ANSWERED, polling="raf").json_value()
    context.close()
    return first - began, ended - began, seed


def answer_from_engine(engine: Any, seed: int) -> tuple[float, float]:
    """The same of the engine alone, with what a user gets who changes nothing."""
    from bench.reply import answer
    from duogen.conversation import Conversation
    from duogen.engine import Memory
    from duogen.options import preset_options

    engine.memory = Memory()
    done, _ = answer(engine, Conversation().say("user", QUESTION), preset_options("balanced", engine.about, seed))
    return done.stats.first_text_seconds, done.stats.seconds


def measure_answers(home: Path, repeats: int) -> dict[str, float]:
    """Medians of an answer on the page and from the engine, one after the other, and of their ratios; one pair before them warms up."""
    from playwright.sync_api import sync_playwright

    from duogen.engine import Engine
    from duogen.paths import data_home

    if (pairs := data_home() / "pairs").is_dir():
        (home / "pairs").symlink_to(pairs)
    began = time.monotonic()
    with served(home, "app.py") as address, sync_playwright() as play:
        up = time.monotonic() - began
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        first_ever = answer_in_browser(browser, address)
        begun = time.monotonic() - began
        engine = Engine.open()
        answer_from_engine(engine, first_ever[2])
        rounds = []
        for _ in range(repeats):
            *page, seed = answer_in_browser(browser, address)
            rounds.append((*page, *answer_from_engine(engine, seed)))
            print("first word and whole, page then engine:", *(f"{each:.3f}" for each in rounds[-1]), flush=True)
        browser.close()
    first, whole, engine_first, engine_whole = zip(*rounds, strict=True)
    kinds = {"page_first_word": first, "page_answer": whole, "engine_first_word": engine_first, "engine_answer": engine_whole}
    found = {"page_is_up_seconds": up, "start_to_first_answer_seconds": begun}
    found |= {f"{name}_seconds": statistics.median(each) for name, each in kinds.items()}
    found["first_word_to_engine"] = statistics.median(one / other for one, other in zip(first, engine_first, strict=True))
    found["answer_to_engine"] = statistics.median(one / other for one, other in zip(whole, engine_whole, strict=True))
    return {name: round(each, 3) for name, each in found.items()}


def main() -> int:
    top = argparse.ArgumentParser(prog="python -m bench.browser", description=__doc__.splitlines()[0])
    top.add_argument("--repeats", type=int, default=5, help="visits, of which the median counts")
    top.add_argument("--beside", default="", metavar="WORDS", help="what else runs on this machine meanwhile, for the record")
    top.add_argument("--answers", type=int, default=0, metavar="N", help="measure N answers of the bundled pair instead")
    given = top.parse_args()
    about = host() | {"beside": given.beside, "repeats": given.repeats, "gradio": version("gradio")}
    try:
        with tempfile.TemporaryDirectory(prefix="duogen-browser-") as home:
            if given.answers:
                figures, file = measure_answers(Path(home), given.answers), ANSWERS_FILE
            else:
                (figures, about["browser"]), file = measured(Path(home), given.repeats), FILE
    except ValueError as error:
        print(f"bench.browser: {error}", file=sys.stderr)
        return 2
    for name, value in [*about.items(), *figures.items()]:
        print(f"{name:32} {value}" + (f"   goal < {GOALS[name]}" if name in GOALS else ""))
    file.write_text(json.dumps({"machine": about, "figures": figures, "goals": GOALS}, indent=1) + "\n", encoding="utf-8")
    print(f"Wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
