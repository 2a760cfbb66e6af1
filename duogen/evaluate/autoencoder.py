"""How well the painter's autoencoder gives drawings of the sketchbook world back: the most that any picture can be right by."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from duogen.engine import Engine
from duogen.evaluate.asking import told
from duogen.evaluate.figures import mean
from duogen.evaluate.scores import canvas, decibels
from duogen.sketchbook.draw import draw
from duogen.sketchbook.world import kinds, random_scene


def evaluate(engine: Engine, n: int = 100, seed: int = 0, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Encode and decode `n` drawings of held-out combinations.

    Returns:
        `scores` with `psnr` in dB as {"value", "low", "high", "n"}.

    Raises:
        ValueError: `n` < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}.")
    rng = random.Random(seed)
    drawings = [draw(random_scene(rng, kinds("train"), held=True)) for _ in range(n)]
    figure = mean(decibels(each, canvas(engine.painter.decode(engine.painter.encode(each)))) for each in drawings)
    return {"n": n, "seed": seed, "scores": told({"psnr": figure}, say, ("psnr",))}
