"""The heaps of the C library: glibc has several for the threads of a program, and shrinks none by itself."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

M_ARENA_MAX = -8  # as in glibc's malloc.h
HEAPS = 2  # one for the page's thread, one for all others: what an answer frees then serves the next one


def limit_heaps() -> None:
    """Let the process have few heaps. Called before it starts threads.

    A server answers every question in a new thread. With a heap for each, a long conversation leaves its peak behind in several of them.
    """
    _call_glibc(lambda library: library.mallopt(M_ARENA_MAX, HEAPS))


def trim_heaps() -> None:
    """Give freed memory back to the system."""
    _call_glibc(lambda library: library.malloc_trim(0))


@contextmanager
def return_memory() -> Iterator[None]:
    """Give back to the system what the work inside has freed."""
    try:
        yield
    finally:
        trim_heaps()


def _call_glibc(call: Callable[[ctypes.CDLL], object]) -> None:
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library than glibc
            call(ctypes.CDLL(None))
