"""What happens while an answer is made. Page, command line, tests and benchmarks consume these and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image as PILImage

from duogen.conversation import Conversation, Image


@dataclass(frozen=True)
class TextDelta:
    """The next words of the answer."""

    text: str


@dataclass(frozen=True)
class Thought:
    """The next words of what is thought before the answer, which are no part of it."""

    text: str


@dataclass(frozen=True)
class ImageStarted:
    """A picture is about to be painted. `index` counts the pictures of this answer from 0; `seconds` is what it will take, 0 if unknown."""

    index: int
    seed: int
    steps: int
    seconds: float = 0.0


@dataclass(frozen=True)
class ImageStep:
    """A denoising step is done. `step` counts from 1; `preview` is what the picture would be now, if one was asked for."""

    index: int
    step: int
    steps: int
    preview: PILImage.Image | None = None


@dataclass(frozen=True)
class ImageDone:
    """The picture is final; `image` carries its seed and seconds."""

    index: int
    image: Image


@dataclass(frozen=True)
class Notice:
    """Something that the user should know, in one sentence; the answer goes on."""

    message: str


@dataclass(frozen=True)
class Stats:
    """What an answer cost.

    Attributes:
        prompt_tokens: tokens of the conversation before the answer, picture tokens included.
        encoded_tokens: tokens of it that had to be encoded, the others being in the cache.
        text_tokens: tokens said.
        images: pictures painted.
        first_text_seconds: until the first word.
        seconds: in all.
        stopped: why it ended: "end", "user", "max_tokens" or "max_images".
    """

    prompt_tokens: int
    encoded_tokens: int
    text_tokens: int
    images: int
    first_text_seconds: float
    seconds: float
    stopped: str


@dataclass(frozen=True)
class Done:
    """The answer is complete or was stopped; `conversation` holds it as its last turn."""

    conversation: Conversation
    stats: Stats


@dataclass(frozen=True)
class Failed:
    """Something went wrong; `message` is one sentence for the user, `conversation` is what was before the failed part."""

    message: str
    conversation: Conversation


Event = TextDelta | Thought | ImageStarted | ImageStep | ImageDone | Notice | Done | Failed
