"""Loads the pair in a thread behind the page, and reports its progress."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen.faults import describe_fault
from duogen.hub.catalogue import bundled_id
from duogen.options import LoadOptions
from ui.parts.queue import FairQueue

if TYPE_CHECKING:
    from duogen.answerer import Answerer, OpenPair
    from duogen.models.adapters import AdapterSpec

IMPORTING = "Loading the model: importing PyTorch and its libraries ..."

Lend = Callable[[str, str, Mapping[Path, float]], "Answerer"]  # pair, mllm, adapters


@dataclass
class Loading:
    """The engine of the page, loaded in a thread.

    Attributes:
        pair: id, repository or folder of the pair, `None` for the bundled one.
        mllm: the MLLM of a painter that cannot talk.
        load: how the pair is opened; replaces `device` and `precision`.
        words: the current step, for the status line.
        log: called with every step too, for the terminal.
        queue: the queue of all requests that use the engine.
        pending_switches: the number of switches to other pairs that are not over.
        adapters: the weights of the adapters that are on, by folder.
        open_pair: what opens a pair, by default `Engine.open`.
        opened: the titles of all pairs that were open since the start, by `pair_id` and MLLM.
        engine: set when `finished` is set, unless `error` says in one sentence why not.
    """

    pair: str | None = None
    device: str = "auto"
    precision: str = "auto"
    words: str = "Loading the model ..."
    queue: FairQueue = field(default_factory=FairQueue)
    adapters: dict[Path, float] = field(default_factory=dict)
    engine: Answerer | None = None
    error: str = ""
    finished: threading.Event = field(default_factory=threading.Event)
    mllm: str | None = None
    load: LoadOptions | None = None
    pending_switches: int = 0
    log: Callable[[str], None] = lambda words: None
    open_pair: OpenPair | None = None
    opened: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def is_busy(self) -> bool:
        """Whether a pair is being opened or waits to be opened."""
        return self.pending_switches > 0 or not self.finished.is_set()

    @property
    def about(self) -> dict[str, Any]:
        """What the open pair says of itself; empty while none is open."""
        engine = self.engine
        return engine.about if engine else {}

    def load_options(self) -> LoadOptions:
        """The options with which the pair is opened."""
        return self.load or LoadOptions(device=self.device, precision=self.precision)

    def load_for_others(self) -> LoadOptions:
        """The options with which another pair is opened: a few-step LoRA and a transformer are of the open one."""
        return replace(self.load_options(), preset="", transformer="")

    def switch(self, pair: str | None, mllm: str | None, load: LoadOptions) -> None:
        """Open another pair when the earlier answers are done. The old pair is unloaded first, because both might not fit.

        Adapters stay on when only the load options change: adapters of one pair do not fit another.
        """
        self.words = "The other pair opens when the earlier answers are done ..."
        self.pending_switches += 1

        def run() -> None:
            try:
                self._switch(pair, mllm, load)
            finally:
                self.pending_switches -= 1

        threading.Thread(target=run, name="loading", daemon=True).start()

    def _switch(self, pair: str | None, mllm: str | None, load: LoadOptions) -> None:
        self.finished.wait()  # the pair that is being opened is never left half open
        with self.queue.wait_turn(lambda before: None, threading.Event(), alone=True):
            self.finished.clear()
            before = self.pair, self.mllm, self.load, self.adapters
            adapters = self.adapters if (pair, mllm) == (self.pair, self.mllm) else {}
            self.engine, self.error = None, ""
            self.pair, self.mllm, self.load, self.adapters = pair, mllm, load, adapters
            from duogen.models.placement import free

            free()
            self._open()
            if self.engine is None and before != (pair, mllm, load, adapters):
                reason = self.error
                self.pair, self.mllm, self.load, self.adapters = before
                self.finished.clear()
                self._open()
                if self.engine is not None:
                    self.words = f"{reason} {self.engine.about['title']} is open again."

    def start(self) -> None:
        threading.Thread(target=self._open, name="loading", daemon=True).start()

    def _open(self) -> None:
        try:
            if "duogen.engine" not in sys.modules:
                self._report(IMPORTING)
            self.error = ""
            self.engine = self._open_pair(self.pair, progress=self._report, mllm=self.mllm, load=self.load_options())
            self.opened[self.pair_id(), self.mllm or ""] = self.engine.about["title"]
            self.set_adapters()
        except ValueError as error:
            self.error = str(error)
            self._report(self.error)
        except Exception as error:  # whatever it is, the page must say so instead of waiting for ever
            self.error = f"The pair could not be opened ({describe_fault(error)}); the terminal shows more."
            self._report(self.error)
        finally:
            self.finished.set()

    @property
    def _open_pair(self) -> OpenPair:
        # Imported here: torch and what comes with it would keep the page waiting.
        from duogen.engine import Engine

        return self.open_pair or Engine.open

    def set_adapters(self, adapters: Mapping[Path, float] | None = None) -> None:
        """Set the adapters of the engine to those that are on, or to `adapters`. Raises ValueError if one does not fit; then none is on."""
        if self.engine is not None and hasattr(self.engine, "set_adapters"):
            self.engine.set_adapters(_adapter_specs(self.adapters if adapters is None else adapters))

    @contextmanager
    def lend_engines(self, words: str) -> Iterator[Lend]:
        """Lend engines of any pair and adapters, one after the other, to a caller that holds the queue. At the end the old pair is back.

        Only one engine is in memory: the caller must drop an engine before it asks for the next. `words` is the status line for others
        meanwhile. The yielded function raises ValueError, one sentence, when a pair cannot be opened or an adapter does not fit it.
        """
        try:
            yield lambda pair, mllm, adapters: self._lend(pair, mllm, adapters, words)
        finally:
            self._reopen()
            try:
                self.set_adapters()
            except ValueError:  # thrown away meanwhile
                self.adapters = {}

    def _lend(self, pair: str, mllm: str, adapters: Mapping[Path, float], words: str) -> Answerer:
        if (pair, mllm) == (self.pair_id(), self.mllm or ""):
            self._reopen()
            if self.engine is None:
                raise ValueError(self.error)
            self.set_adapters(adapters)
            return self.engine
        self.unload(words)
        return self._open_pair(pair, mllm=mllm or None, load=self.load_for_others(), adapters=_adapter_specs(adapters))

    def _reopen(self) -> None:
        """After `unload`: open the pair again in this thread."""
        if not self.finished.is_set():
            from duogen.models.placement import free

            free()
            self._open()

    def pair_id(self) -> str:
        """The id, repository or folder of the pair, also of the bundled one."""
        return self.pair or bundled_id()

    def unload(self, words: str) -> None:
        """Drop the engine and free its memory for something else; `start` loads it again."""
        from duogen.models.placement import free

        self.finished.clear()
        self.engine, self.words = None, words
        free()

    def _report(self, words: str) -> None:
        self.words = words
        self.log(words)


def _adapter_specs(adapters: Mapping[Path, float]) -> list[AdapterSpec]:
    from duogen.models.adapters import AdapterSpec

    return [AdapterSpec(folder, weight) for folder, weight in adapters.items()]
