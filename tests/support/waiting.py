"""How tests wait: for a condition, never for a time."""

from __future__ import annotations

import asyncio
import contextvars
import os
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def patience() -> float:
    """Seconds to wait for what must come: a busy machine is slow, not wrong; at most ten minutes, so that CI ends."""
    return min(600, 200 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


def run_apart(work: Coroutine[Any, Any, Any]) -> Any:
    """As `asyncio.run`, in another thread: the browser's event loop runs in that of a worker whose tests have opened one."""
    with ThreadPoolExecutor() as apart:
        return apart.submit(contextvars.copy_context().run, asyncio.run, work).result()


def until(condition: Callable[[], object]) -> None:
    """Wait until it holds.

    Raises:
        AssertionError: it never does.
    """
    end = time.monotonic() + patience()
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)
