"""A fair queue for the models, which only one request can use at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class FairQueue:
    """First come, first served."""

    def __init__(self) -> None:
        self._waiting: list[object] = []
        self._moved = threading.Condition()

    @contextmanager
    def wait_turn(self, on_wait: Callable[[int], None], stop: threading.Event) -> Iterator[bool]:
        """Wait, then hold the models until the block ends.

        Args:
            on_wait: called while waiting, with the number of requests before this one.
            stop: set it to leave the queue.

        Yields:
            `True` when it is this caller's turn; `False` when `stop` was set first.
        """
        me = object()
        with self._moved:
            self._waiting.append(me)
        try:
            yield self._wait(me, on_wait, stop)
        finally:
            with self._moved:
                self._waiting.remove(me)
                self._moved.notify_all()

    def _wait(self, me: object, on_wait: Callable[[int], None], stop: threading.Event) -> bool:
        while not stop.is_set():
            with self._moved:
                before = self._waiting.index(me)
                if before == 0:
                    return True
            on_wait(before)
            with self._moved:
                if self._waiting.index(me) == before:
                    self._moved.wait(0.3)  # `stop` does not wake it
        return False


def waiting_words(before: int) -> str:
    """The status line for a request in the queue."""
    return f"Waiting: {before} {'answer is' if before == 1 else 'answers are'} before yours ..."
