"""The pair opens behind the page: a thread that loads it, and words about how far it is."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from duogen import silence_libraries
from duogen.hub.catalogue import bundled
from duogen.options import LoadOptions
from ui.parts.queue import Line

if TYPE_CHECKING:
    from duogen.engine import Engine
    from duogen.models.adapters import Wanted

IMPORTING = "Loading the model: importing PyTorch and its libraries ..."

Lend = Callable[[str, str, Mapping[Path, float]], "Engine"]  # pair, brain, adapters


@dataclass
class Loading:
    """An engine on its way.

    Attributes:
        pair: id, repository or folder of the pair, `None` for the bundled one.
        brain: the MLLM of a painter that cannot talk.
        load: how it is opened, where the two words before do not say all.
        words: what is going on, for the status line.
        tell: told all of that too, for the terminal.
        line: the queue of all who want to use the engine.
        ahead: how many switches to other pairs were asked for and are not over.
        worn: the adapters that are on, by folder, and how strongly.
        engine: there once `finished` is set, unless `error` says why not in one sentence.
    """

    pair: str | None = None
    device: str = "auto"
    precision: str = "auto"
    words: str = "Loading the model ..."
    line: Line = field(default_factory=Line)
    worn: dict[Path, float] = field(default_factory=dict)
    engine: Engine | None = None
    error: str = ""
    finished: threading.Event = field(default_factory=threading.Event)
    brain: str | None = None
    load: LoadOptions | None = None
    ahead: int = 0
    tell: Callable[[str], None] = lambda words: None

    @property
    def busy(self) -> bool:
        """Whether a pair is being opened, or waits for that."""
        return self.ahead > 0 or not self.finished.is_set()

    def wishes(self) -> LoadOptions:
        """How the pair is opened."""
        return self.load or LoadOptions(device=self.device, precision=self.precision)

    def switch(self, pair: str | None, brain: str | None, load: LoadOptions) -> None:
        """Open another pair once the answers before are done. The old one is let go of first: both might not fit.

        Adapters stay on when only the way of opening changes: those of one pair do not fit another.
        """
        self.words = "The other pair is opened when the answers before are done ..."
        self.ahead += 1

        def switched() -> None:
            try:
                self._switch(pair, brain, load)
            finally:
                self.ahead -= 1

        threading.Thread(target=switched, name="loading", daemon=True).start()

    def _switch(self, pair: str | None, brain: str | None, load: LoadOptions) -> None:
        self.finished.wait()  # the pair that is being opened is never left half open
        with self.line.place(lambda before: None, threading.Event()):
            self.finished.clear()
            before = self.pair, self.brain, self.load, self.worn
            worn = self.worn if (pair, brain) == (self.pair, self.brain) else {}
            self.engine, self.error = None, ""
            self.pair, self.brain, self.load, self.worn = pair, brain, load, worn
            from duogen.models.placement import free

            free()
            self._open()
            if self.engine is None and before != (pair, brain, load, worn):
                reason = self.error
                self.pair, self.brain, self.load, self.worn = before
                self.finished.clear()
                self._open()
                if self.engine is not None:
                    self.words = f"{reason} {self.engine.about['title']} is open again."

    def start(self) -> None:
        threading.Thread(target=self._open, name="loading", daemon=True).start()

    def _open(self) -> None:
        try:
            silence_libraries()
            if "duogen.engine" not in sys.modules:
                self._say(IMPORTING)
            # Imported here: torch and what comes with it would keep the page waiting.
            from duogen.engine import Engine

            self.error = ""
            self.engine = Engine.open(self.pair, progress=self._say, brain=self.brain, load=self.wishes())
            self.put_on()
        except ValueError as error:
            self.error = str(error)
            self._say(self.error)
        except Exception as error:  # whatever it is, the page must say so instead of waiting for ever
            traceback.print_exc()
            self.error = f"The pair could not be opened ({type(error).__name__}: {error}); the terminal shows more."
            self._say(self.error)
        finally:
            self.finished.set()

    def put_on(self, worn: Mapping[Path, float] | None = None) -> None:
        """Make the engine wear what is on, or `worn` for a while. Raises ValueError when an adapter does not fit; then none is on."""
        if self.engine is not None and hasattr(self.engine, "wear"):
            self.engine.wear(_wanted(self.worn if worn is None else worn))

    @contextmanager
    def lending(self, words: str) -> Iterator[Lend]:
        """For who holds the line: engines of any pair and adapters, one after the other; what was open before is open again in the end.

        Only one is in memory: whoever asks for the next one has let go of the one before. `words` say to all others why the pair is
        away. What is lent raises ValueError, one sentence, when a pair cannot be opened or an adapter does not fit it.
        """
        try:
            yield lambda pair, brain, worn: self._lend(pair, brain, worn, words)
        finally:
            self._come_back()
            try:
                self.put_on()
            except ValueError:  # thrown away meanwhile
                self.worn = {}

    def _lend(self, pair: str, brain: str, worn: Mapping[Path, float], words: str) -> Engine:
        from duogen.engine import Engine

        if (pair, brain) == (self.pair_id(), self.brain or ""):
            self._come_back()
            if self.engine is None:
                raise ValueError(self.error)
            self.put_on(worn)
            return self.engine
        self.rest(words)
        load = replace(self.wishes(), preset="")  # the few-step LoRA is of the pair that was open
        return Engine.open(pair, brain=brain or None, load=load, adapters=_wanted(worn))

    def _come_back(self) -> None:
        """After `rest`: open the pair again, here and now."""
        if not self.finished.is_set():
            from duogen.models.placement import free

            free()
            self._open()

    def pair_id(self) -> str:
        """The id, repository or folder of the pair, of the bundled one too."""
        return self.pair or bundled()

    def rest(self, words: str) -> None:
        """Give up the engine and its memory, so that something else can have the device; `start` brings it back."""
        from duogen.models.placement import free

        self.finished.clear()
        self.engine, self.words = None, words
        free()

    def _say(self, words: str) -> None:
        self.words = words
        self.tell(words)


def _wanted(worn: Mapping[Path, float]) -> list[Wanted]:
    from duogen.models.adapters import Wanted

    return [Wanted(folder, weight) for folder, weight in worn.items()]
