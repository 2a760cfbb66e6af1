"""Ask a pair for replies and report figures: helpers of the measures that have their own requests."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypedDict, TypeVar

from duogen.answerer import Answerer
from duogen.conversation import Conversation, Image, Piece, Text
from duogen.engine import Engine
from duogen.evaluate.figures import Figure
from duogen.evaluate.scores import resize_to_canvas
from duogen.events import AnswerBuilder
from duogen.options import ImageOptions, Options
from duogen.sketchbook import verify
from duogen.sketchbook.read import read_reply
from duogen.sketchbook.scene import Scene

T = TypeVar("T")


class Painting(TypedDict, total=False):
    """How pictures are painted, as far as it was chosen; what is absent is the pair's own. The names are those of `ImageOptions`."""

    steps: int
    guidance: float
    sampler: str
    check: int


def default_image_options(engine: Answerer, painting: Painting | None = None, **more: int) -> ImageOptions:
    """Image options without previews: what `painting` chooses, else the pair's own steps, guidance and sampler.

    Raises:
        ValueError: a value is not possible.
    """
    own = {"steps": engine.about["steps"], "guidance": engine.about["guidance"], "preview_every": 0}
    chosen: dict[str, Any] = {**own, **(painting or {}), **more}
    return ImageOptions(**chosen)


def painting_fields(image: ImageOptions) -> Painting:
    """What the results say of how the pictures were painted."""
    painted: Painting = {"steps": image.steps, "guidance": image.guidance, "sampler": image.sampler}
    return painted | {"check": image.check} if image.check else painted


def pick_evenly(every: list[T], n: int) -> list[T]:
    """Pick `n` items spread evenly over the list, or all items of a shorter list.

    Raises:
        ValueError: `n` < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}.")
    return [every[index * len(every) // n] for index in range(n)] if n < len(every) else every


def ask_pair(engine: Engine, words: str, options: Options) -> list[Piece]:
    """The parts of the pair's reply to one message; empty when it failed."""
    answer = AnswerBuilder.from_events(engine.answer(Conversation().say("user", words), options))
    return answer.parts if answer.stats else []


def read_last_scene(parts: list[Piece]) -> Scene | None:
    """The last scene that the words of a reply describe; `None` where they cannot be read."""
    try:
        return read_reply([part.text if isinstance(part, Text) else part for part in parts])[-1]
    except (ValueError, IndexError):
        return None


def check_last_picture(parts: list[Piece]) -> tuple[Scene | None, bool]:
    """The last scene of a reply with pictures (`None` where unreadable or without pictures), and whether the last picture shows it."""
    scene, pictures = read_last_scene(parts), [part.picture for part in parts if isinstance(part, Image)]
    if scene is None or not pictures:
        return None, False
    return scene, verify.check_scene(resize_to_canvas(pictures[-1]), scene).right


def reply_text(parts: list[Piece]) -> str:
    """The reply as one string, with "[picture]" for each picture."""
    return "".join(part.text if isinstance(part, Text) else "[picture]" for part in parts)


def report_figures(scores: dict[str, Figure], log: Callable[[str], None], not_shares: Collection[str] = ()) -> dict[str, dict]:
    """Log the figures, one a line, and return them as data.

    Args:
        not_shares: names of the figures that are no shares, so they are not logged in percent.
    """
    for name, figure in scores.items():
        log(f"{name:32} {figure.format(name not in not_shares)}")
    return {name: figure.as_dict() for name, figure in scores.items()}
