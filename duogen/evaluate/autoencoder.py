"""What the painter's autoencoder loses of drawings of the sketchbook world: the most that any picture can be right by."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image as Picture

from duogen.engine import Engine
from duogen.evaluate.asking import told
from duogen.evaluate.figures import Figure, mean, share
from duogen.evaluate.scores import canvas, decibels
from duogen.sketchbook.draw import draw
from duogen.sketchbook.edits import Pool, random_edit
from duogen.sketchbook.hands import HANDS, by_hand
from duogen.sketchbook.scene import Scene
from duogen.sketchbook.verify import Check, check_scene
from duogen.sketchbook.world import kinds, random_scene

GROUPS = ("scenes", "scenes", "edits", "hands")  # half of the drawings are scenes, a quarter each scenes after an edit and other hands'


@dataclass(frozen=True)
class Case:
    """A drawing of `scene`; `group` is one of `GROUPS`."""

    group: str
    scene: Scene
    picture: Picture


@dataclass(frozen=True)
class Loss:
    """What became of a drawing: whether the check sees all in it that it saw before, and its PSNR in dB."""

    group: str
    right: bool
    decibels: float | None


def evaluate(engine: Engine, n: int = 400, seed: int = 0, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Encode and decode `n` drawings with the pair's autoencoder; figures as `measure` gives them.

    Raises:
        ValueError: `n` < 1.
    """
    return measure(lambda picture: engine.painter.decode(engine.painter.encode(picture)), n, seed, say)


def measure(restore: Callable[[Picture], Picture], n: int, seed: int = 0, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Restore `n` drawings of held-out combinations of all things, and read them back.

    Args:
        restore: a picture, encoded and decoded.

    Returns:
        `scores` with `right`, the share of drawings in which the check sees all that it saw before, and `psnr` in dB, over all and by
        group, each as {"value", "low", "high", "n"}.

    Raises:
        ValueError: `n` < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}.")
    losses = [loss_of(case, canvas(restore(case.picture))) for case in cases(n, seed)]
    scores: dict[str, Figure] = {}
    for group in ("", *dict.fromkeys(GROUPS)):
        own = [loss for loss in losses if group in ("", loss.group)]
        ending = f"_{group}" if group else ""
        scores[f"right{ending}"] = share(loss.right for loss in own)
        scores[f"psnr{ending}"] = mean(loss.decibels for loss in own)
    return {"n": n, "seed": seed, "scores": told(scores, say, [name for name in scores if name.startswith("psnr")])}


def cases(n: int, seed: int) -> Iterator[Case]:
    """`n` drawings, each group in turn; the same seed gives the same."""
    rng = random.Random(seed)
    every = kinds("all")
    for number in range(n):
        group = GROUPS[number % len(GROUPS)]
        scene = random_scene(rng, every, held=True)
        if group == "edits":
            scene = random_edit(rng, Pool(tuple(every), held=True), scene).scene
        picture = draw(scene)
        if group == "hands":
            picture = by_hand(picture, rng.choice(HANDS), rng.randrange(2**31))
        yield Case(group, scene, picture)


def loss_of(case: Case, restored: Picture) -> Loss:
    """What `restored` has lost of the drawing."""
    before, after = (check_scene(picture, case.scene) for picture in (case.picture, restored))
    return Loss(case.group, keeps(before, after), decibels(case.picture, restored))


def keeps(before: Check, after: Check) -> bool:
    """Whether all that is right in `before` is right in `after`; a clean drawing is all right, another hand's often is not."""
    return all(now or not then for then, now in zip(_marks(before), _marks(after), strict=True))


def _marks(check: Check) -> list[bool]:
    marks = [check.background, not check.extra]
    for part in check.parts:
        marks += [part.present, part.colour, part.shape, part.size, part.place]
    return marks
