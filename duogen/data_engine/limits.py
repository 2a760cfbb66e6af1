"""Limits of time and size for what one page may cost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LARGEST_PAGE = 64 << 20  # bytes of one page or picture, unpacked
LARGEST_FILE = 256 << 20  # bytes of a file that holds one page with its pictures
MOST_TAGS = 2_000_000  # of a page; its tree takes some 300 bytes for each
SECONDS = 60.0  # for one page


@contextmanager
def limit_time(seconds: float = SECONDS) -> Iterator[None]:
    """End the block after so many seconds. Without effect outside the main thread, and on Windows, which has no such alarm.

    Raises:
        TimeoutError: it took longer.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    over = False

    def stop(*_: object) -> None:
        if not over:
            raise TimeoutError(f"it takes longer than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again each second, since a library may swallow the first error
    try:
        yield
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_size(data: bytes, most: int = LARGEST_PAGE) -> bytes:
    """The same bytes.

    Raises:
        ValueError: there are more than `most`.
    """
    if len(data) > most:
        raise ValueError(f"it has more than {most >> 20} MB")
    return data


def check_tags(page: str) -> str:
    """The same page.

    Raises:
        ValueError: it has too many tags.
    """
    if page.count("<") > MOST_TAGS:
        raise ValueError(f"it has more than {MOST_TAGS:,} tags")
    return page
