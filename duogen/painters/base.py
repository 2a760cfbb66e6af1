"""What every painter is: `Painter`, and the small types that travel between the engine and a painter.

C latent channels, h w latent size, S words, D channels of the condition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image as PILImage

from duogen.models.pipeline import About
from duogen.nn.attention import FrameCache
from duogen.nn.frames import WordCache
from duogen.options import ImageOptions
from duogen.painters.masks import Transform


@dataclass(frozen=True)
class WordRange:
    """What a frame reads: the first `words` words of the conversation, of which those from index `segment` on are new."""

    words: int
    segment: int


@dataclass(frozen=True)
class SceneStart:
    """Where a scene begins: with the picture of index `frame`, whose words begin with index `word`."""

    frame: int = 0
    word: int = 0


@dataclass
class Frames:
    """The pictures of a conversation as the painter knows them.

    Attributes:
        past: their latents, as `Painter.encode` returns them.
        cache: keys and values of the first of them.
        word_ranges: of the others, whose keys and values are computed when a picture comes after them; the last picture needs none.
        words: keys and values of the words.
        scenes: where the scene of each of them begins, by a painter that sees no scene but the last.
        first_word: the words before it, but the very first, are not read.
    """

    past: list[Any] = field(default_factory=list)
    cache: FrameCache = field(default_factory=FrameCache)
    word_ranges: list[WordRange] = field(default_factory=list)
    words: WordCache = field(default_factory=WordCache)
    scenes: list[SceneStart] = field(default_factory=list)
    first_word: int = 0

    @staticmethod
    def empty() -> Frames:
        return Frames()

    def since(self, start: SceneStart) -> Frames:
        """The pictures of the scene that begins at `start`, whose caches are full. They share memory with these."""
        past, cache = self.past[start.frame :], self.cache.since(start.frame)
        return Frames(past, cache, words=self.words, scenes=self.scenes[start.frame :], first_word=start.word)

    def keep(self, count: int, words: int) -> None:
        """Forget all but the first `count` pictures and the first `words` words."""
        del self.past[count:], self.scenes[count:]
        del self.word_ranges[max(0, count - self.cache.frames) :]
        self.cache.keep(count)
        self.words.keep(words)


@dataclass(frozen=True)
class PaintStep:
    """One denoising step is done.

    Attributes:
        latents: the picture as predicted now; after the last step the picture itself.
        stays: after the last step boolean, what was copied from the picture before: [1, 1, h, w] the places of the latents, or [1, 1, H, W]
            its pixels; `None` where nothing is known.
        picture: after the last step the picture, where the painter made more of it than its latents say; else `decode` makes it.
        transform: after the last step, what happens to pixels of the picture before that need not be painted; `None` for nothing.
    """

    step: int
    latents: Any
    stays: torch.Tensor | None = None
    picture: PILImage.Image | None = None
    transform: Transform | None = None


@dataclass(frozen=True)
class PaintRequest:
    """A picture to be painted.

    Attributes:
        condition: what the painter reads: hidden states [1, S, D] of all words before the picture's BOV, or where `Painter.reads_words` a
            `PictureRequest`.
        segment: index of the first word of the last text segment, which the negative guidance branch does not read.
        seed: fixes the noise.
        inpaint: what `Painter.prepare_inpaint` returned, `None` for a whole picture.
        size: (width, height) of the picture, `None` for the pair's own at `options.side`.
        negative: hidden states [1, S, D] that the branch without guidance reads, as an untuned painter was trained; `None` where it reads
            the words before `segment`.
        role: of the picture before: a `SOURCE` is gone on from and nothing of a `REFERENCE` is copied, whether or not a scene begins
            here; "" where the painter decides.
        before: the picture before as it is shown, whose pixels are exacter than its latents; `None` where only the latents are there.
        is_step: it is a step of an answer that has a picture already, and nothing was requested since that one.
    """

    condition: Any
    segment: int
    options: ImageOptions
    seed: int
    inpaint: Any = None
    size: tuple[int, int] | None = None
    negative: torch.Tensor | None = None
    role: str = ""
    is_step: bool = False
    before: PILImage.Image | None = None


@runtime_checkable
class Painter(Protocol):
    """Paints the next picture of a conversation from its words and earlier pictures. The engine knows painters by this alone.

    What `encode` returns is a picture as the painter keeps it, its "latents"; only the painter looks into it.

    Attributes:
        reads_words: a request's condition is words (a `PictureRequest`), not hidden states.
        about: what the pair says of itself.
    """

    reads_words: bool
    about: About

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def most_frames(self) -> int | None:
        """The most pictures of a conversation that it can follow, its own included; `None` for any number."""

    def takes_pictures(self, options: ImageOptions) -> bool:
        """Whether it sees the pictures before the one that it paints."""

    def find_sources(self, frames: Frames, condition: Any) -> list[int]:
        """The places of the earlier pictures that the next one goes on from, the main one first, where it takes pictures at all."""

    def source_shape(self, frames: Frames, condition: Any) -> tuple[int, int] | None:
        """(width, height) of the picture that the next one goes on from; `None` where it goes on from none."""

    def encode(self, picture: PILImage.Image, size: tuple[int, int] | None = None) -> Any:
        """A picture as latents, scaled to `size` (width, height), by default the pair's picture size."""

    def decode(self, latents: Any) -> PILImage.Image:
        """Latents as a picture."""

    def prepare_inpaint(self, picture: PILImage.Image, mask: PILImage.Image, size: tuple[int, int] | None = None) -> Any:
        """What a request of this `size` needs to change `picture` only where `mask` ("L", as large) is white.

        Raises:
            ValueError: the mask does not fit.
        """

    def composite(self, painted: PILImage.Image, picture: PILImage.Image, mask: PILImage.Image) -> PILImage.Image:
        """`picture` in its own size with what was painted where `mask` is white; outside not a pixel changes."""

    def remember(self, frames: Frames, latents: Any, condition: Any, segment: int, goes_on: bool = False) -> None:
        """Add a final picture to `frames`. `condition` and `segment` are those of its `PaintRequest`.

        `goes_on`: it is of the scene of the picture before, whatever the words say.
        """

    def fill_cache(self, frames: Frames) -> None:
        """Compute what is still due of earlier pictures."""

    def paint(self, frames: Frames, request: PaintRequest) -> Iterator[PaintStep]:
        """Paint the next picture after those in `frames`; one `PaintStep` after every denoising step.

        Raises:
            ValueError: one sentence for the user.
        """
