"""What happens while an answer is made. Page, command line, tests and benchmarks consume these and nothing else."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Self

from PIL import Image as PILImage

from duogen.conversation import Conversation, Image, Piece, Text, Turn


@dataclass(frozen=True)
class TextDelta:
    """The next words of the answer."""

    text: str


@dataclass(frozen=True)
class Thought:
    """The next words of what is thought before the answer, which are no part of it."""

    text: str


@dataclass(frozen=True)
class Ideas:
    """The answer is ideas, a line and a picture each, which do not go on from each other."""


@dataclass(frozen=True)
class Draft:
    """A picture on the way to the next one, for readers who want to see the work. `number` counts from 1; the words are the `alt`."""

    number: int
    image: Image


@dataclass(frozen=True)
class ImageStarted:
    """A picture is about to be painted. `index` counts the pictures of this answer from 0; `seconds` is what it will take, 0 if unknown.

    `words` are those that it is painted from.
    """

    index: int
    seed: int
    steps: int
    seconds: float = 0.0
    words: str = ""


@dataclass(frozen=True)
class ImageStep:
    """A denoising step is done. `step` counts from 1; `preview` is what the picture would be now, if one was asked for."""

    index: int
    step: int
    steps: int
    preview: PILImage.Image | None = None


@dataclass(frozen=True)
class ImageDone:
    """The picture is final; `image` carries its seed and seconds. `others` are the tries that the MLLM did not choose."""

    index: int
    image: Image
    others: tuple[Image, ...] = ()


@dataclass(frozen=True)
class Notice:
    """Something that the user should know, in one sentence; the answer goes on."""

    message: str


@dataclass(frozen=True)
class Restarted:
    """The answer is begun again: what came of it so far is void. `message` tells the user why, in one sentence."""

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
        stopped: why it ended: "end", "user", "max_tokens", "max_images", or "max_context" where the pair can read no more.
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
    """The answer is complete or was stopped; `conversation` holds it as its last turn.

    `versions` are the same answer with another try of one of its pictures, branches of `conversation` too.
    """

    conversation: Conversation
    stats: Stats
    versions: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Failed:
    """Something went wrong; `message` is one sentence for the user, `conversation` is what was before the failed part."""

    message: str
    conversation: Conversation


Event = TextDelta | Thought | Ideas | Draft | ImageStarted | ImageStep | ImageDone | Notice | Restarted | Done | Failed
Events = Generator[Event, None, None]  # of one answer; closing it ends the work


@dataclass
class PendingPicture:
    """A picture that is being painted.

    Attributes:
        usual: seconds that the last picture of the answer took, else the expected seconds; 0 if neither is known.
        preview: the latest one.
        drafts: how many drafts of it are done.
        began: when it was begun, by `time.monotonic`.
    """

    index: int
    steps: int
    usual: float
    step: int = 0
    preview: PILImage.Image | None = None
    drafts: int = 0
    began: float = field(default_factory=time.monotonic)

    def seconds_left(self) -> float | None:
        """`None` while it is unknown."""
        gone = time.monotonic() - self.began
        if self.step:
            return gone / self.step * (self.steps - self.step)
        return self.usual - gone if self.usual else None


@dataclass
class AnswerBuilder:
    """An answer as far as its events have come.

    Attributes:
        parts: what is finished, adjacent words as one part; after `Done`, the parts of the answer in its conversation.
        pending: the picture that is being painted.
        thoughts: what was thought before the answer.
        ideas: whether its pictures are ideas, side by side.
        notices: what the user was told meanwhile, each once.
        conversation: what `Done` or `Failed` brought.
        stats: of a complete or stopped answer; `None` before its end and after a failure.
        error: why it failed, in one sentence.
    """

    parts: list[Piece] = field(default_factory=list)
    pending: PendingPicture | None = None
    thoughts: str = ""
    ideas: bool = False
    notices: list[str] = field(default_factory=list)
    conversation: Conversation = field(default_factory=Conversation)
    stats: Stats | None = None
    error: str = ""

    def __post_init__(self) -> None:
        self._begun = tuple(self.parts), self.ideas

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> Self:
        """The answer at the end of its events."""
        answer = cls()
        for event in events:
            answer.take(event)
        return answer

    def take(self, event: Event) -> None:
        match event:
            case TextDelta(text):
                last = self.parts[-1] if self.parts else None
                if isinstance(last, Text):
                    self.parts[-1] = Text(last.text + text)
                else:
                    self.parts.append(Text(text))
            case Thought(text):
                self.thoughts += text
            case Ideas():
                self.ideas = True
            case Draft(number, image):
                self.pending = PendingPicture(len(self.images()), 0, 0.0, drafts=number, preview=image.picture)
            case ImageStarted(index, _, steps, seconds):
                usual = next((image.seconds for image in reversed(self.images()) if image.seconds), seconds)
                self.pending = PendingPicture(index, steps, usual)
            case ImageStep(_, step, _, preview):
                if self.pending:
                    self.pending.step, self.pending.preview = step, preview or self.pending.preview
            case ImageDone(_, image):
                self.parts.append(image)
                self.pending = None
            case Notice(message):
                self.notices += [message] if message not in self.notices else []
            case Restarted(message):
                (parts, self.ideas), self.pending, self.thoughts = self._begun, None, ""
                self.parts, self.notices = list(parts), [message]
            case Done(conversation, stats):
                self.conversation, self.stats, self.pending = conversation, stats, None
                self.parts = list(conversation.path()[-1].parts)
            case Failed(message, conversation):
                self.conversation, self.error, self.pending = conversation, message, None

    @property
    def notice(self) -> str:
        """The latest one, "" without any."""
        return self.notices[-1] if self.notices else ""

    def all_parts(self) -> list[Piece | PendingPicture]:
        """The finished parts, and after them the picture that is being painted."""
        return [*self.parts, self.pending] if self.pending else [*self.parts]

    def text(self) -> str:
        """The words, pictures left out."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    def images(self) -> list[Image]:
        """The finished pictures."""
        return [part for part in self.parts if isinstance(part, Image)]
