"""A fair queue for the one thing that only one can use at a time: the models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Line:
    """Who came first is served first."""

    def __init__(self) -> None:
        self._waiting: list[object] = []
        self._moved = threading.Condition()

    @contextmanager
    def place(self, say: Callable[[int], None], stop: threading.Event) -> Iterator[bool]:
        """Wait, then hold the models until the block ends.

        Args:
            say: told, while waiting, how many are before.
            stop: set it to give the place up.

        Yields:
            Whether it is one's turn; `False` when `stop` came first.
        """
        me = object()
        with self._moved:
            self._waiting.append(me)
        try:
            yield self._wait(me, say, stop)
        finally:
            with self._moved:
                self._waiting.remove(me)
                self._moved.notify_all()

    def _wait(self, me: object, say: Callable[[int], None], stop: threading.Event) -> bool:
        while not stop.is_set():
            with self._moved:
                before = self._waiting.index(me)
                if before == 0:
                    return True
            say(before)
            with self._moved:
                if self._waiting.index(me) == before:
                    self._moved.wait(0.3)  # `stop` does not wake it
        return False


def waiting(before: int) -> str:
    """What someone in the line reads."""
    return f"Waiting: {before} {'answer is' if before == 1 else 'answers are'} before yours ..."
