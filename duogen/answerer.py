"""The protocol of what answers: an `Engine` in this process, or `replicas.engine.Replicas` on the machines of a cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from PIL import Image as PILImage

from duogen.conversation import Conversation
from duogen.events import Events
from duogen.grounding import Box
from duogen.hub.memory_plan import Plan
from duogen.models.adapters import AdapterSpec
from duogen.models.sequence import Tokens
from duogen.options import LoadOptions, Options


class Answerer(Protocol):
    """A pair that is open. The methods do and raise what those of `Engine` do.

    Attributes:
        about: what the pair says of itself.
        plan: how it was opened, `None` where nobody planned it.
        tokens: its tokenizer and the grids of its pictures.
    """

    about: dict[str, Any]
    plan: Plan | None
    tokens: Tokens

    @property
    def device(self) -> str:
        """Where this process computes."""
        ...

    @property
    def devices(self) -> list[str]:
        """The devices of this machine that the pair is on."""
        ...

    def answer(self, conversation: Conversation, options: Options, stop: threading.Event | None = None) -> Events: ...

    def continue_answer(self, conversation: Conversation, options: Options, stop: threading.Event | None = None) -> Events: ...

    def stream_image(
        self, conversation: Conversation, options: Options, stop: threading.Event | None = None, drafts: tuple[str, ...] = ()
    ) -> Events: ...

    def keep_unchanged(self, painted: PILImage.Image, before: PILImage.Image) -> PILImage.Image: ...

    def find_boxes(self, picture: PILImage.Image, words: str) -> list[Box]: ...

    def describe_change(self, before: PILImage.Image, after: PILImage.Image) -> str: ...

    def set_adapters(self, adapters: Sequence[AdapterSpec]) -> None: ...


class OpenPair(Protocol):
    """Opens a pair: `Engine.open`, or `replicas.cluster.RayCluster.open`. Raises ValueError: one sentence for the user."""

    def __call__(
        self,
        pair: str | None,
        *,
        progress: Callable[[str], None] | None = None,
        mllm: str | None = None,
        load: LoadOptions | None = None,
        adapters: Sequence[AdapterSpec] = (),
    ) -> Answerer: ...
