"""Putting requests to a pair and telling what came of them: what the measures with requests of their own share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

from duogen.conversation import Conversation, Image, Piece, Text
from duogen.engine import Engine
from duogen.evaluate.figures import Figure
from duogen.evaluate.scores import canvas
from duogen.events import Done
from duogen.options import ImageOptions, Options
from duogen.sketchbook import verify
from duogen.sketchbook.read import read_reply
from duogen.sketchbook.scene import Scene

T = TypeVar("T")


def own_image(engine: Engine, **more: Any) -> ImageOptions:
    """The steps and the guidance that the pair asks for, and no previews."""
    return ImageOptions(steps=engine.about["steps"], guidance=engine.about["guidance"], preview_every=0, **more)


def spread(every: list[T], n: int) -> list[T]:
    """`n` of them, evenly over the list; all where it is no longer.

    Raises:
        ValueError: `n` < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}.")
    return [every[index * len(every) // n] for index in range(n)] if n < len(every) else every


def answer(engine: Engine, words: str, options: Options) -> list[Piece]:
    """What the pair replies; nothing when it failed."""
    *_, last = engine.answer(Conversation().say("user", words), options)
    return list(last.conversation.path()[-1].parts) if isinstance(last, Done) else []


def last_scene(parts: list[Piece]) -> Scene | None:
    """What the words say in the end; `None` where they cannot be read."""
    try:
        return read_reply([part.text if isinstance(part, Text) else part for part in parts])[-1]
    except (ValueError, IndexError):
        return None


def shown(parts: list[Piece]) -> tuple[Scene | None, bool]:
    """What a reply with pictures says in the end, `None` where it has none or cannot be read; and whether its last picture shows that."""
    scene, pictures = last_scene(parts), [part.picture for part in parts if isinstance(part, Image)]
    if scene is None or not pictures:
        return None, False
    return scene, verify.check_scene(canvas(pictures[-1]), scene).right


def plain(parts: list[Piece]) -> str:
    """The reply as one string, pictures as a mark."""
    return "".join(part.text if isinstance(part, Text) else "[picture]" for part in parts)


def told(scores: dict[str, Figure], say: Callable[[str], None], not_shares: Collection[str] = ()) -> dict[str, dict]:
    """Say the figures, a line each; returns them as data."""
    for name, figure in scores.items():
        say(f"{name:32} {figure.words(name not in not_shares)}")
    return {name: figure.data() for name, figure in scores.items()}
