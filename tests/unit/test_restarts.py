"""An answer that is begun again on another machine, as the page and the API show it; and the queue with several places."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator

import pytest

from duogen.conversation import Conversation, Text
from duogen.events import AnswerBuilder, Done, Event, Ideas, Notice, Restarted, Stats, TextDelta, Thought
from tests.support.waiting import run_apart, until
from ui.api.chat import CHANGED, Completion
from ui.api.stop_words import stop_at
from ui.parts.queue import FairQueue

STATS = Stats(1, 1, 1, 0, 0.0, 1.0, "end")
LOST = Restarted("It was lost.")


def whole(text: str) -> Done:
    return Done(Conversation().say("user", "?").say("assistant", text), STATS)


def test_what_came_before_is_void_and_what_was_there_stays() -> None:
    answer = AnswerBuilder([Text("There before.")], ideas=False)
    for event in (TextDelta(" One"), Thought("hm"), Ideas(), Notice("Said."), LOST):
        answer.take(event)
    assert answer.parts == [Text("There before.")] and not answer.ideas and not answer.thoughts and answer.notices == ["It was lost."]
    answer.take(TextDelta(" Two"))
    assert answer.text() == "There before. Two"


def stream(*events: Event) -> list[dict]:
    """What a program gets."""

    async def come() -> AsyncIterator[Event]:
        for event in events:
            yield event

    async def read() -> list[str]:
        return [line async for line in Completion("pair", []).stream(come(), False)]

    lines = run_apart(read())
    return [json.loads(line.removeprefix("data: ")) for line in lines if not line.startswith("data: [DONE]")]


def join_words(chunks: list[dict]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if "choices" in chunk)


@pytest.mark.parametrize("again", [["Step 1. A", " boat."], ["Step", " 1. A boat", "."], ["Step 1. A boat."]])
def test_a_stream_goes_on_where_it_was(again: list[str]) -> None:
    events = [TextDelta("Step 1."), TextDelta(" A b"), LOST, *map(TextDelta, again), whole("Step 1. A boat.")]
    found = stream(*events)
    assert join_words(found) == "Step 1. A boat." and found[-1]["choices"][0]["finish_reason"] == "stop"
    assert [chunk["notices"] for chunk in found if chunk.get("notices")] == [["It was lost."]]


def test_a_stream_that_would_differ_ends_with_an_error() -> None:
    found = stream(TextDelta("Step 1."), LOST, TextDelta("First"), whole("First, a boat."))
    assert join_words(found) == "Step 1." and found[-1]["error"]["message"] == CHANGED


def test_stop_words_hold_after_a_restart() -> None:
    events = iter([TextDelta("One EN"), LOST, TextDelta("One END two"), whole("One END two")])

    def come():
        yield from events

    answer = AnswerBuilder.from_events(stop_at(come(), ("END",), threading.Event()))
    assert answer.text() == "One "


def test_a_queue_of_two_places_and_who_must_be_alone() -> None:
    queue, go, have, waits = FairQueue(2), {name: threading.Event() for name in "abcde"}, [], {}

    def take(name: str, alone: bool) -> None:
        with queue.wait_turn(lambda before: waits.update({name: before}), threading.Event(), alone) as mine:
            assert mine
            have.append(name)
            go[name].wait()
            have.remove(name)

    threads = {}
    for name, alone in (("a", False), ("b", False), ("c", True), ("d", False), ("e", False)):
        threads[name] = threading.Thread(target=take, args=(name, alone), daemon=True)
        threads[name].start()
        until(lambda name=name: name in have or name in waits)
    assert have == ["a", "b"] and waits == {"c": 2, "d": 3, "e": 3}
    go["b"].set()
    until(lambda: waits["c"] == 1)
    assert have == ["a"], "the one that must be alone keeps the others back"
    go["a"].set()
    until(lambda: have == ["c"])
    go["c"].set()
    until(lambda: sorted(have) == ["d", "e"])
    for name in "de":
        go[name].set()
        threads[name].join()
    assert have == []
