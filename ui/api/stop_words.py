"""Ends an answer where the first of a request's stop words would begin."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from typing import Any

from duogen.events import AnswerBuilder, Done, Events, Failed, Notice, TextDelta, Thought
from ui.api.requests import RequestError

MOST_WORDS, LONGEST = 16, 256


def parse_stop(stop: Any) -> tuple[str, ...]:
    """The field `stop` of a request: a text or a list of them.

    Raises:
        RequestError: it is neither, or they are too many or too long.
    """
    words = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise RequestError("stop must be a text or a list of texts.", param="stop")
    if len(words) > MOST_WORDS or any(len(word) > LONGEST for word in words):
        raise RequestError(f"stop may hold {MOST_WORDS} texts of {LONGEST} letters each.", param="stop")
    return tuple(word for word in words if word)


class StopWatch:
    """Reads words as they come and holds back what may be the beginning of a stop word."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words, self.held, self.found = words, "", False

    def feed(self, text: str) -> str:
        """What is certain to stand before any stop word."""
        text, self.held = self.held + text, ""
        found = [(start + len(word), start) for word in self.words if (start := text.find(word)) >= 0]
        if found:
            self.found = True
            return text[: min(found)[1]]  # the one that is whole first, however the text was cut into pieces
        keep = max((length for word in self.words for length in range(1, len(word)) if text.endswith(word[:length])), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def release(self) -> str:
        """What was held back: nothing comes after it that could end a stop word."""
        text, self.held = self.held, ""
        return text


def stop_at(events: Events, words: tuple[str, ...], stop: threading.Event) -> Events:
    """The events of an answer up to the first of `words`, which sets `stop`; `Done` then holds the answer as far as it was shown."""
    with contextlib.closing(events):
        yield from _cut(events, StopWatch(words), stop) if words else events


def _cut(events: Events, watch: StopWatch, stop: threading.Event) -> Events:
    shown = AnswerBuilder()
    for event in events:
        if isinstance(event, TextDelta) and not watch.found:
            text = watch.feed(event.text)
            if text:
                shown.take(TextDelta(text))
                yield TextDelta(text)
            if watch.found:
                stop.set()
            continue
        if watch.found and not isinstance(event, Done | Failed | Notice):
            continue
        if not isinstance(event, Notice | Thought) and watch.held:
            rest = TextDelta(watch.release())
            shown.take(rest)
            yield rest
        if watch.found and isinstance(event, Done):
            turn = replace(event.conversation.path()[-1], parts=tuple(shown.parts))
            event = Done(event.conversation.with_turn(turn), replace(event.stats, stopped="end"))
        shown.take(event)
        yield event
