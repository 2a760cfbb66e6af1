"""One card for chat and training: the job asks, the pair leaves the card, and comes back when the job is over.

The pair's place on a card is a lock in the data folder. A job waits for it; this thread sees the job wait, lets the answers under way
end, gives up the pair and the lock, and takes both again when the job has let go, however that ended.
"""

from __future__ import annotations

import threading
import time

from filelock import FileLock, Timeout

from duogen.finetune.jobs import jobs, serving_lock
from ui.parts.loading import Loading

LOOK_SECONDS = 1.0
WORDS = "A training has the card; the chat goes on when it is over or paused."


class Card:
    """Watches over the card that the pair is on."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading

    def start(self) -> None:
        threading.Thread(target=self._watch, name="card", daemon=True).start()

    def _watch(self) -> None:
        self.loading.finished.wait()
        where = self._device()
        if where is None or where == "cpu":
            return
        lock = serving_lock(where)
        try:
            lock.acquire(timeout=0)
        except Timeout:  # a job was there first
            self._rest()
            self._come_back(lock)
        while True:
            time.sleep(LOOK_SECONDS)
            if self._wanted(where):
                self._rest()
                lock.release()
                while self._wanted(where):  # until the job has taken it, or is gone
                    time.sleep(LOOK_SECONDS)
                self._come_back(lock)

    def _device(self) -> str | None:
        device = getattr(self.loading.engine, "device", None)
        return f"{device}:0" if device == "cuda" else device

    def _wanted(self, where: str) -> bool:
        found = [job.progress() for job in jobs()]
        return any(known["phase"] == "waiting" and known.get("device") == where and known.get("wants_card") for known in found)

    def _rest(self) -> None:
        with self.loading.line.place(lambda before: None, threading.Event()):
            self.loading.rest(WORDS)

    def _come_back(self, lock: FileLock) -> None:
        """As soon as no job is on the card."""
        lock.acquire()
        self.loading.start()
        self.loading.finished.wait()
