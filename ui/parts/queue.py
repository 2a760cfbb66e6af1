"""A fair queue for the models, which one request can use at a time, or as many as there are replicas."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class FairQueue:
    """First come, first served.

    Args:
        places: how many requests may have the models at a time.
    """

    def __init__(self, places: int = 1) -> None:
        self.places = places
        self._waiting: list[object] = []
        self._alone: set[object] = set()
        self._moved = threading.Condition()

    @contextmanager
    def wait_turn(self, on_wait: Callable[[int], None], stop: threading.Event, alone: bool = False) -> Iterator[bool]:
        """Wait, then hold the models until the block ends.

        Args:
            on_wait: called while waiting, with the number of requests before this one.
            stop: set it to leave the queue.
            alone: for a change of the models themselves: no other request has them meanwhile.

        Yields:
            `True` when it is this caller's turn; `False` when `stop` was set first.
        """
        me = object()
        with self._moved:
            self._waiting.append(me)
            if alone:
                self._alone.add(me)
        try:
            yield self._wait(me, on_wait, stop)
        finally:
            with self._moved:
                self._waiting.remove(me)
                self._alone.discard(me)
                self._moved.notify_all()

    def _wait(self, me: object, on_wait: Callable[[int], None], stop: threading.Event) -> bool:
        while not stop.is_set():
            with self._moved:
                before = self._count_before(me)
                if before == 0:
                    return True
            on_wait(before)
            with self._moved:
                if self._count_before(me) == before:
                    self._moved.wait(0.3)  # `stop` does not wake it
        return False

    def _count_before(self, me: object) -> int:
        """How many requests must end before this one has its turn."""
        at = self._waiting.index(me)
        last_alone = max((index + 1 for index, each in enumerate(self._waiting[:at]) if each in self._alone), default=0)
        return at if me in self._alone else max(last_alone, at - self.places + 1)


def waiting_words(before: int) -> str:
    """The status line for a request in the queue."""
    return f"Waiting: {before} {'answer is' if before == 1 else 'answers are'} before yours ..."
