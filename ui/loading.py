"""The pair opens behind the page: a thread that loads it, and words about how far it is."""

from __future__ import annotations

import threading
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ui.line import Line

if TYPE_CHECKING:
    from duogen.engine import Engine


@dataclass
class Loading:
    """An engine on its way.

    Attributes:
        pair: folder of the pair, `None` for the bundled one.
        words: what is going on, for the status line.
        line: the queue of all who want to use the engine.
        worn: the adapters that are on, by folder, and how strongly.
        engine: there once `finished` is set, unless `error` says why not in one sentence.
    """

    pair: str | None = None
    device: str = "auto"
    precision: str = "auto"
    words: str = "Starting ..."
    line: Line = field(default_factory=Line)
    worn: dict[Path, float] = field(default_factory=dict)
    engine: Engine | None = None
    error: str = ""
    finished: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._open, name="loading", daemon=True).start()

    def _open(self) -> None:
        try:
            # Imported here: torch and what comes with it would keep the page waiting.
            from duogen.engine import Engine

            self.engine = Engine.open(self.pair, self.device, self.precision, progress=self._say)
            self.put_on()
            self.words = f"Ready: {self.engine.about['title']}."
        except ValueError as error:
            self.words = self.error = str(error)
        except Exception as error:  # whatever it is, the page must say so instead of waiting for ever
            traceback.print_exc()
            self.words = self.error = f"The pair could not be opened ({type(error).__name__}: {error}); the terminal shows more."
        finally:
            self.finished.set()

    def put_on(self) -> None:
        """Make the engine wear what is on. Raises ValueError when an adapter does not fit; then none is on."""
        from duogen.adapters import Wanted

        if self.engine is not None and hasattr(self.engine, "wear"):
            self.engine.wear([Wanted(folder, weight) for folder, weight in self.worn.items()])

    def rest(self, words: str) -> None:
        """Give up the engine and its memory, so that something else can have the device; `start` brings it back."""
        from duogen.pipeline import free_memory

        self.finished.clear()
        self.engine, self.words = None, words
        free_memory()

    def _say(self, words: str) -> None:
        self.words = words
