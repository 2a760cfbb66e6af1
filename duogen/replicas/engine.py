"""A pair on the machines of a Ray cluster, behind the methods of an engine."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
import uuid
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image as PILImage
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import RequestCancelledError

from duogen.conversation import Conversation
from duogen.engine import choose_seed
from duogen.events import Events, Failed, Restarted
from duogen.grounding import Box
from duogen.models.adapters import AdapterSpec
from duogen.models.pipeline import pick_device
from duogen.options import Options
from duogen.replicas.replica import BEGUN, Opened
from duogen.replicas.wire import Call, Pictures, Refusal, cut_branch, join_new

POLL_SECONDS = 0.02  # in which a stop sets off for the replica
TAKE_SECONDS = 900.0  # within which a replica must have taken an answer: as long as a large pair needs to open again
CANCELLED = (asyncio.CancelledError, concurrent.futures.CancelledError, RequestCancelledError, TaskCancelledError)
RESTARTED = "The machine that made this answer was lost, so another one has begun it again."
LOST = "The machine that made this answer was lost; ask again in a moment."
NO_ROOM = "No machine of the cluster took this answer; see with ray status what keeps them."


class Replicas:
    """An engine whose work replicas do: as many answers at a time as there are replicas. See `Engine` for the methods.

    An answer whose replica dies is begun once again on another one, with the same seed; `Restarted` comes between.
    """

    devices: list[str] = []  # none of this machine is theirs alone

    def __init__(self, handle: Any, desk: Any, opened: list[Opened]) -> None:
        """`handle` is that of the deployment."""
        self._handle, self._desk = handle.options(stream=True), desk
        self.opened = opened
        self.about, self.plan, self.tokens = opened[0].about, opened[0].plan, opened[0].tokens
        self.adapters: tuple[AdapterSpec, ...] = ()

    @property
    def device(self) -> str:
        return pick_device("auto")

    def answer(self, conversation: Conversation, options: Options, stop: threading.Event | None = None) -> Events:
        yield from self._stream("answer", conversation, conversation, options, stop)

    def continue_answer(self, conversation: Conversation, options: Options, stop: threading.Event | None = None) -> Events:
        yield from self._stream("continue_answer", conversation, _before_answer(conversation), options, stop)

    def stream_image(
        self, conversation: Conversation, options: Options, stop: threading.Event | None = None, drafts: tuple[str, ...] = ()
    ) -> Events:
        yield from self._stream("stream_image", conversation, _before_answer(conversation), options, stop, drafts=drafts)

    def keep_unchanged(self, painted: PILImage.Image, before: PILImage.Image) -> PILImage.Image:
        return self._value("keep_unchanged", painted, before)

    def find_boxes(self, picture: PILImage.Image, words: str) -> list[Box]:
        return self._value("find_boxes", picture, words)

    def describe_change(self, before: PILImage.Image, after: PILImage.Image) -> str:
        return self._value("describe_change", before, after)

    def set_adapters(self, adapters: Sequence[AdapterSpec]) -> None:
        """Try the adapters on one replica; every answer brings them to its own. The machines must see their files under the same path."""
        wanted, self.adapters = tuple(adapters), ()
        if wanted:
            self._value("set_adapters", wanted)
        self.adapters = wanted

    def _value(self, method: str, *arguments: Any) -> Any:
        """What a method returns that does not stream; called once more if the replica dies."""
        call = Call(method, arguments, self.adapters, streams=False)
        for last in (False, True):
            try:
                for item in self._run(call, threading.Event()):
                    return item.value
            except RayTaskError:
                raise
            except RayError as error:
                if last:
                    raise ValueError(LOST) from error
        raise ValueError(LOST)

    def _stream(
        self, method: str, conversation: Conversation, before: Conversation, options: Options, stop: threading.Event | None, **more: Any
    ) -> Events:
        """The events of a method that streams; `before` is what `Failed` brings when two replicas died."""
        stop = stop or threading.Event()
        sent = cut_branch(conversation)
        call = Call(method, (sent, replace(options, seed=choose_seed(options))), self.adapters, more=more)
        for last in (False, True):
            try:
                with contextlib.closing(self._run(call, stop)) as events:
                    for event in events:
                        yield join_new(event, conversation)
                return
            except RayTaskError:  # the replica is well, its code is not
                raise
            except RayError:
                if last or stop.is_set():
                    yield Failed(LOST, before)
                    return
                yield Restarted(RESTARTED)

    def _run(self, call: Call, stop: threading.Event) -> Generator[Any, None, None]:
        """What one replica makes of a call. Closing it stops the replica.

        Raises:
            ValueError: the method raised it, or no replica took the call.
            ray.exceptions.RayError: the replica died.
        """
        pictures, name = Pictures({}), uuid.uuid4().hex
        response = self._handle.run.remote(pictures.pack(call, set()), name)
        begun, over = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, args=(response, name, stop, begun, over), name="stop", daemon=True).start()
        whole = False
        try:
            for packed in response:
                if packed == BEGUN:
                    begun.set()
                    continue
                item = pictures.unpack(packed)
                if isinstance(item, Refusal):
                    raise ValueError(item.sentence)
                yield item
            whole = True
        except CANCELLED:
            if not stop.is_set():
                raise ValueError(NO_ROOM) from None
        finally:
            over.set()
            if not whole:
                response.cancel()
            self._desk.forget.remote(name)

    def _watch(self, response: Any, name: str, stop: threading.Event, begun: threading.Event, over: threading.Event) -> None:
        """Tell the replica when the answer is to stop; end a call that no replica has taken when it is stopped, or in the end."""
        end = time.monotonic() + TAKE_SECONDS
        while not over.wait(POLL_SECONDS):
            if stop.is_set() and begun.is_set():
                self._desk.stop.remote(name)
                return
            if not begun.is_set() and (stop.is_set() or time.monotonic() > end):
                response.cancel()
                return


def _before_answer(conversation: Conversation) -> Conversation:
    """The conversation at the question of the answer that it stands at."""
    path = conversation.path()
    return conversation.at(path[-1].parent) if path else conversation
