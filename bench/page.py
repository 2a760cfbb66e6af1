"""What the chat costs while an answer streams, and when a long conversation is opened: python -m bench.page

Everything that Python does for one update is measured, Gradio's own part included, up to what is sent to the browser; medians, in
milliseconds of processor time (goals are of these) and by the clock, which says more of the machine the busier it is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from gradio.state_holder import SessionState
from PIL import Image as PILImage

from duogen.conversation import Conversation, Image
from duogen.events import TextDelta
from duogen.library.conversations import ConversationStore
from duogen.options import Options
from ui.chat.answers import Job, Task
from ui.chat.panel import View
from ui.page import Page
from ui.parts.loading import Loading

SIDE, PICTURES, MESSAGES, YIELDS = 1024, 12, 200, 60
GOALS = {"yield": 8.0, "open": 2000.0, "open_after_restart": 2000.0}
REQUEST = SimpleNamespace(session_hash="bench", query_params={}, username=None)


def told(messages: int, pictures: int) -> Conversation:
    """A conversation whose last turns have one picture each."""
    conversation, rng = Conversation(title="Bench"), random.Random(0)
    for turn in range(messages // 2):
        conversation = conversation.say("user", f"How do I draw number {turn}?")
        parts: list[Any] = [f"Step {turn}. " + "Draw a red house with a **blue** door beside it. " * 3]
        if turn >= messages // 2 - pictures:
            picture = PILImage.effect_noise((SIDE, SIDE), 40).convert("RGB")
            parts.append(Image(picture, rng.randrange(99), 1.0, "A house"))
        conversation = conversation.say("assistant", *parts)
    return conversation


async def milliseconds(work: Callable[[], Awaitable[Any]], repeats: int) -> dict[str, float]:
    times = []
    for _ in range(repeats):
        started = time.process_time(), time.perf_counter()
        await work()
        times.append((time.process_time() - started[0], time.perf_counter() - started[1]))
    processor, clock = (round(1000 * statistics.median(kind), 2) for kind in zip(*times, strict=True))
    return {"processor": processor, "clock": clock}


def opened(home: Path) -> Page:
    loading = Loading(words="Ready")
    loading.finished.set()
    return Page(loading, ConversationStore(home / "conversations"), home / "shown")


async def streaming(page: Page, conversation: Conversation) -> dict[str, float]:
    """One update of an answer that grows by some words, from the event to the message for the browser."""
    asked = page.store.save(conversation.say("user", "And another one?"))
    task = Task(asked.id, asked.head, lambda engine, stop: iter(()), Options(seed=1), asked.head)
    job = page.jobs._running[asked.id] = Job(task, page.jobs._new_answer(task))
    follow = next(each for each in page.blocks.fns.values() if each.fn == page.chat.follow)
    state = SessionState(page.blocks)
    state[page.view._id] = View(asked.id)
    iterator = None

    async def grow() -> None:
        nonlocal iterator
        job.answer.take(TextDelta("a few more words "))
        job.set_status("Writing ...")
        made = await page.blocks.process_api(
            follow, [None] * len(follow.inputs), state, REQUEST, iterator, session_hash="bench", event_id="bench"
        )
        page.blocks.handle_streaming_diffs(follow, made["data"], "bench", "bench", False)
        json.dumps(made["data"])
        iterator = made["iterator"]

    await grow()
    numbers = await milliseconds(grow, YIELDS)
    del page.jobs._running[asked.id]
    return numbers


async def opening(page: Page, chat: str) -> None:
    arrive = next(each for each in page.blocks.fns.values() if each.fn == page.chat.open_page)
    request = SimpleNamespace(session_hash="bench", query_params={"c": chat}, username=None)
    await page.blocks.process_api(arrive, [""] * len(arrive.inputs), SessionState(page.blocks), request)


async def measured(home: Path) -> dict[str, dict[str, float]]:
    page = opened(home)
    numbers = {"yield": await streaming(page, told(2 * PICTURES, PICTURES))}
    long = page.store.save(told(MESSAGES, PICTURES))
    await opening(page, long.id)
    numbers["open"] = await milliseconds(lambda: opening(page, long.id), 5)
    numbers["open_after_restart"] = await milliseconds(lambda: opening(opened(home), long.id), 3)
    return numbers


def main() -> None:
    argparse.ArgumentParser(description="Times of the chat.").parse_args()
    with tempfile.TemporaryDirectory(prefix="duogen-page-") as home:
        numbers = asyncio.run(measured(Path(home)))
    missed = {name: goal for name, goal in GOALS.items() if numbers[name]["processor"] > goal}
    print(json.dumps({"pictures": PICTURES, "messages": MESSAGES, **numbers, "goals_missed": missed}, indent=1))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
