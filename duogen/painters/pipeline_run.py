"""`PipelineRun`: a call of a diffusers pipeline, step by step for whoever consumes it."""

from __future__ import annotations

import inspect
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

Made = TypeVar("Made")


class PipelineRun(Generic[Made]):
    """A pipeline's call in a thread of its own.

    Args:
        pipe: the pipeline.
        given: the arguments of its call.
        denoiser: the model that it calls at every step; a pipeline that reports no steps is stopped there.
        pick: takes what is wanted, a picture or the frames of a video, out of what the call returns.
        stop: ends it after the step that is under way when somebody sets it; `steps` then raises `Stopped`.

    Attributes:
        picture: what was picked, once the steps have ended.
    """

    def __init__(
        self,
        pipe: Any,
        given: dict[str, Any],
        denoiser: Any,
        pick: Callable[[Any], Made],
        stop: threading.Event | None = None,
    ) -> None:
        self.pipe, self.given, self.denoiser, self.pick = pipe, given, denoiser, pick
        self.events: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self.picture: Made | None = None
        self.stopped, self.asked = threading.Event(), stop or threading.Event()
        self.thread = threading.Thread(target=self._work, name="pipeline", daemon=True)

    def _work(self) -> None:
        reports = "callback_on_step_end" in inspect.signature(type(self.pipe).__call__).parameters
        watch = None if reports else self.denoiser.register_forward_pre_hook(self._end_when_stopped)
        try:
            self.picture = self.pick(self.pipe(**self.given, **({"callback_on_step_end": self._step} if reports else {})))
            self.events.put(None)
        except BaseException as error:  # it belongs to whoever waits for the picture
            self.pipe.maybe_free_model_hooks()
            self.events.put(error)
        finally:
            if watch is not None:
                watch.remove()

    def _step(self, pipe: Any, step: int, timestep: Any, named: dict[str, Any]) -> dict[str, Any]:
        if self._is_over():
            pipe._interrupt = True  # diffusers passes over the remaining steps
            raise Stopped
        self.events.put(step + 1)
        return named

    def _end_when_stopped(self, *_: Any) -> None:
        if self._is_over():
            raise Stopped

    def _is_over(self) -> bool:
        return self.stopped.is_set() or self.asked.is_set()

    def steps(self) -> Iterator[int]:
        """Numbers of finished steps, none of a pipeline that does not report them; raises what the pipeline raised."""
        self.thread.start()
        while (event := self.events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    def stop(self) -> None:
        """End it after the step that is under way, and wait for that."""
        self.stopped.set()
        if self.thread.ident is not None:
            self.thread.join()


class Stopped(Exception):
    """The user has gone."""
