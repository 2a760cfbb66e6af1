"""Requests that leave everything open: does the pair think of something else every time, and paint what it says?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from duogen.engine import Engine
from duogen.evaluate.asking import answer, own_image, plain, shown, told
from duogen.evaluate.figures import mean, share
from duogen.options import Options

REQUESTS = (
    "Draw something.",
    "surprise me",
    "make me a nice picture, whatever you like",
    "idk, just paint smth",
    "draw me whatever comes to your mind",
)
SEEDS = 8  # answers to each request


def evaluate(engine: Engine, n: int = len(REQUESTS), seed: int = 0, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Ask the first `n` requests `SEEDS` times each.

    Returns:
        Figures ready for JSON as {"value", "low", "high", "n"}: `different` scenes of `SEEDS`, the share of answers whose last picture
        is `right` by its own words, and the share of requests with at least six different scenes; every reply under `asked`.

    Raises:
        ValueError: `n` < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}.")
    asked, different = [], []
    for request in REQUESTS[:n]:
        scenes = set()
        for number in range(SEEDS):
            parts = answer(engine, request, Options(seed + number, image=own_image(engine)))
            scene, right = shown(parts)
            scenes |= {scene} if scene else set()
            asked.append({"say": request, "right": right, "reply": plain(parts)})
        different.append(len(scenes))
        say(f"{len(scenes)} different of {SEEDS}: {request}")
    scores = {
        "different": mean(map(float, different)),
        "six_different": share(count >= 6 for count in different),
        "right": share(each["right"] for each in asked),
    }
    return {"n": len(different), "seed": seed, "scores": told(scores, say, ("different",)), "asked": asked}
