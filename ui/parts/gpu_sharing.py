"""One GPU for chat and training: a job asks for the GPU, the pair leaves it, and returns when the job is over.

A lock in the data folder stands for the pair's place on a GPU. A job waits for the lock. A thread here sees that the job waits, lets the
running answers end, unloads the pair and releases the lock. When the job has released it, the thread takes the lock and loads the pair.
A pair on two GPUs has two locks, and leaves both.
"""

from __future__ import annotations

import threading
import time

from filelock import FileLock, Timeout

from duogen.finetune.jobs import list_jobs, serving_lock
from ui.parts.loading import Loading

POLL_SECONDS = 1.0
WORDS = "A training run has the GPU; the chat goes on when the run ends or pauses."


class GPUSharing:
    """Watches the GPU that the pair is on."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading

    def start(self) -> None:
        threading.Thread(target=self._watch, name="gpu", daemon=True).start()

    def _watch(self) -> None:
        self.loading.finished.wait()
        where = self._gpus()
        if not where:
            return
        locks = [serving_lock(each) for each in where]
        try:
            for lock in locks:
                lock.acquire(timeout=0)
        except Timeout:  # a job was there first
            self._release(locks)
            self._reclaim(locks)
        while True:
            time.sleep(POLL_SECONDS)
            if self._is_wanted(where):
                self._release(locks)
                while self._is_wanted(where):  # until the job has taken it, or is gone
                    time.sleep(POLL_SECONDS)
                self._reclaim(locks)

    def _gpus(self) -> list[str]:
        """The GPUs that the pair is on, in an order that all processes take their locks in."""
        devices = getattr(self.loading.engine, "devices", [])
        return sorted({f"{each}:0" if each == "cuda" else each for each in devices} - {"cpu"})

    def _is_wanted(self, where: list[str]) -> bool:
        found = [job.progress() for job in list_jobs()]
        return any(known["phase"] == "waiting" and known.get("device") in where and known.get("wants_gpu") for known in found)

    def _release(self, locks: list[FileLock]) -> None:
        with self.loading.queue.wait_turn(lambda before: None, threading.Event(), alone=True):
            self.loading.unload(WORDS)
        for lock in locks:
            lock.release()

    def _reclaim(self, locks: list[FileLock]) -> None:
        """Load the pair again as soon as no job is on its GPUs."""
        for lock in locks:
            lock.acquire()
        self.loading.start()
        self.loading.finished.wait()
