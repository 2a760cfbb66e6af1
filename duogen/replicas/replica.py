"""What runs on the machines of the cluster: a replica with its engine, and the desk over which the page reaches the replicas.

Ray Serve sends each answer to a replica that is free. A stop must reach the replica that has the answer, so it goes over the desk: an
actor that belongs to the page, where the replica waits for it. When the page ends, however it ends, its desk ends, and the replicas leave
the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from duogen import silence_libraries
from duogen.events import Event
from duogen.faults import describe_fault
from duogen.hub.memory_plan import Plan
from duogen.models.sequence import Tokens
from duogen.options import LoadOptions
from duogen.replicas.wire import Call, Pictures, Refusal, Value, cut_new

BEGUN = b""  # what a replica sends first


@dataclass(frozen=True)
class Opening:
    """Which pair a replica opens, as of `Engine.open`."""

    pair: str | None
    mllm: str | None
    load: LoadOptions


@dataclass(frozen=True)
class Opened:
    """What a replica says of itself when its pair is open.

    Attributes:
        words: the last ones of `Engine.open`.
        process: the number of its process on its machine.
    """

    about: dict[str, Any]
    plan: Plan | None
    tokens: Tokens
    words: str
    process: int


class Desk:
    """Where the page leaves its stops and the replicas leave their reports. All its methods are quick, or wait without work."""

    def __init__(self) -> None:
        self._stops: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._over: deque[str] = deque(maxlen=1000)  # a call may overtake another one
        self._reports: asyncio.Queue[str | Refusal | Opened] = asyncio.Queue()

    async def stop(self, answer: str) -> None:
        self._stops[answer].set()

    async def wait_stop(self, answer: str) -> None:
        if answer not in self._over:
            await self._stops[answer].wait()

    async def forget(self, answer: str) -> None:
        """The answer is over. Whoever still waits for its stop, waits no longer."""
        self._over.append(answer)
        self._stops.pop(answer, asyncio.Event()).set()

    async def report(self, said: str | Refusal | Opened) -> None:
        await self._reports.put(said)

    async def read_report(self) -> str | Refusal | Opened:
        return await self._reports.get()

    async def wait_end(self) -> None:
        """Never returns: raises at the caller when the page ends."""
        await asyncio.Event().wait()


class Replica:
    """One engine. It makes one answer at a time."""

    def __init__(self, desk: Any, app: str, opening: Opening) -> None:
        """`app` is the name of the application that all replicas of a page belong to."""
        self.desk, self.app = desk, app
        threading.Thread(target=self._leave_with_page, name="page", daemon=True).start()
        self.pictures = Pictures(WeakValueDictionary())
        self.worker = ThreadPoolExecutor(1, "engine")
        silence_libraries()
        try:
            self._open(opening)
        except ValueError as error:
            desk.report.remote(Refusal(str(error)))
            raise
        except Exception as error:
            desk.report.remote(Refusal(f"The pair could not be opened on a machine of the cluster ({describe_fault(error)})."))
            raise

    def _open(self, opening: Opening) -> None:
        from duogen.engine import Engine  # imports torch

        said = [""]

        def follow(words: str) -> None:
            said.append(words)
            if not words.startswith("Ready"):  # that is for the page to say, when all are
                self.desk.report.remote(words)

        self.engine = Engine.open(opening.pair, progress=follow, mllm=opening.mllm, load=opening.load)
        self.desk.report.remote(Opened(self.engine.about, self.engine.plan, self.engine.tokens, said[-1], os.getpid()))

    def _leave_with_page(self) -> None:
        """Delete the application when the page is gone. Serve would keep it for ever."""
        import ray
        from ray import serve
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):
            ray.get(self.desk.wait_end.remote())
        serve.delete(self.app, _blocking=False)

    async def run(self, packed: bytes, answer: str) -> AsyncIterator[bytes]:
        """Call the engine. Yields `BEGUN`, then what the method yields or returns, packed.

        Args:
            packed: the `Call`.
            answer: the name under which the desk has its stop.
        """
        loop, items, stop = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()
        waiting = asyncio.create_task(self._wait_stop(answer, stop))
        sent: set[str] = set()

        def work() -> None:
            try:
                for item in self._results(self.pictures.unpack(packed), stop):
                    loop.call_soon_threadsafe(items.put_nowait, self.pictures.pack(item, sent))
            finally:
                loop.call_soon_threadsafe(items.put_nowait, None)

        yield BEGUN
        working = loop.run_in_executor(self.worker, work)
        try:
            while (item := await items.get()) is not None:
                yield item
            await working  # raises what it raised
        finally:
            stop.set()
            waiting.cancel()
            await asyncio.wait([working])  # the next answer finds the engine free

    async def _wait_stop(self, answer: str, stop: threading.Event) -> None:
        await self.desk.wait_stop.remote(answer)
        stop.set()

    def _results(self, call: Call, stop: threading.Event) -> Iterator[Event | Value | Refusal]:
        try:
            if call.adapters != self.engine.adapters:
                self.engine.set_adapters(call.adapters)
            method = getattr(self.engine, call.method)
            if not call.streams:
                yield Value(method(*call.arguments, **call.more))
                return
            with contextlib.closing(method(*call.arguments, stop, **call.more)) as events:
                for event in events:
                    yield cut_new(event, call.arguments[0])
        except ValueError as error:
            yield Refusal(str(error))
