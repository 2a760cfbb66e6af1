"""Measure what the painter's autoencoder loses of sketchbook drawings. No painted picture can be better than this."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image as Picture

from duogen.engine import Engine
from duogen.evaluate.figures import Figure, mean, share
from duogen.evaluate.replies import report_figures
from duogen.evaluate.scores import capped_psnr, resize_to_canvas
from duogen.sketchbook.draw import draw
from duogen.sketchbook.edits import Pool, random_edit
from duogen.sketchbook.scene import Scene
from duogen.sketchbook.styles import STYLES, apply_style
from duogen.sketchbook.verify import Check, check_scene
from duogen.sketchbook.world import kinds, random_scene

GROUPS = ("scenes", "scenes", "edits", "styles")  # half of them scenes, a quarter scenes after an edit, a quarter in another style


@dataclass(frozen=True)
class Case:
    """A drawing of `scene`; `group` is one of `GROUPS`."""

    group: str
    scene: Scene
    picture: Picture


@dataclass(frozen=True)
class Loss:
    """The loss of one drawing: whether the check still sees all that it saw before, and the PSNR in dB."""

    group: str
    right: bool
    decibels: float | None


def evaluate(engine: Engine, n: int = 400, seed: int = 0, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Encode and decode `n` drawings with the pair's autoencoder. Returns the figures of `measure_loss`.

    Raises:
        ValueError: `n` < 1.
    """
    return measure_loss(lambda picture: engine.painter.decode(engine.painter.encode(picture)), n, seed, log)


def measure_loss(restore: Callable[[Picture], Picture], n: int, seed: int = 0, log: Callable[[str], None] = print) -> dict[str, Any]:
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
    losses = [compute_loss(case, resize_to_canvas(restore(case.picture))) for case in make_cases(n, seed)]
    scores: dict[str, Figure] = {}
    for group in ("", *dict.fromkeys(GROUPS)):
        own = [loss for loss in losses if group in ("", loss.group)]
        ending = f"_{group}" if group else ""
        scores[f"right{ending}"] = share(loss.right for loss in own)
        scores[f"psnr{ending}"] = mean(loss.decibels for loss in own)
    return {"n": n, "seed": seed, "scores": report_figures(scores, log, [name for name in scores if name.startswith("psnr")])}


def make_cases(n: int, seed: int) -> Iterator[Case]:
    """Make `n` drawings, one group after the other in turn. The same seed gives the same drawings."""
    rng = random.Random(seed)
    every = kinds("all")
    for number in range(n):
        group = GROUPS[number % len(GROUPS)]
        scene = random_scene(rng, every, held=True)
        if group == "edits":
            scene = random_edit(rng, Pool(tuple(every), held=True), scene).scene
        picture = draw(scene)
        if group == "styles":
            picture = apply_style(picture, rng.choice(STYLES), rng.randrange(2**31))
        yield Case(group, scene, picture)


def compute_loss(case: Case, restored: Picture) -> Loss:
    """Compare the restored drawing with the original."""
    before, after = (check_scene(picture, case.scene) for picture in (case.picture, restored))
    return Loss(case.group, is_kept(before, after), capped_psnr(case.picture, restored))


def is_kept(before: Check, after: Check) -> bool:
    """Whether all that is right in `before` is right in `after`. A drawing in another style is often wrong in parts already."""
    return all(now or not then for then, now in zip(_list_marks(before), _list_marks(after), strict=True))


def _list_marks(check: Check) -> list[bool]:
    marks = [check.background, not check.extra]
    for part in check.parts:
        marks += [part.present, part.colour, part.shape, part.size, part.place]
    return marks
