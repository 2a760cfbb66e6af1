"""Requests that leave everything open: does the pair draw something different every time, and paint what it says?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from duogen.engine import Engine
from duogen.evaluate.figures import mean, share
from duogen.evaluate.replies import (
    Painting,
    ask_pair,
    check_last_picture,
    default_image_options,
    painting_fields,
    reply_text,
    report_figures,
)
from duogen.options import Options

REQUESTS = (
    "Draw something.",
    "surprise me",
    "make me a nice picture, whatever you like",
    "idk, just paint smth",
    "draw me whatever comes to your mind",
)
SEEDS = 8  # answers to each request


def evaluate(
    engine: Engine, n: int = len(REQUESTS), seed: int = 0, log: Callable[[str], None] = print, *, painting: Painting | None = None
) -> dict[str, Any]:
    """Ask the first `n` requests `SEEDS` times each.

    Args:
        painting: how the pictures are painted, where not as the pair does by itself.

    Returns:
        Figures ready for JSON as {"value", "low", "high", "n"}: `different` scenes of `SEEDS`, the share of answers whose last picture
        is `right` by its own words, and the share of requests with at least six different scenes; every reply under `asked`.

    Raises:
        ValueError: `n` < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}.")
    image = default_image_options(engine, painting)
    asked, different = [], []
    for request in REQUESTS[:n]:
        scenes = set()
        for number in range(SEEDS):
            parts = ask_pair(engine, request, Options(seed + number, image=image))
            scene, right = check_last_picture(parts)
            scenes |= {scene} if scene else set()
            asked.append({"say": request, "right": right, "reply": reply_text(parts)})
        different.append(len(scenes))
        log(f"{len(scenes)} different of {SEEDS}: {request}")
    scores = {
        "different": mean(map(float, different)),
        "six_different": share(count >= 6 for count in different),
        "right": share(each["right"] for each in asked),
    }
    return {
        "n": len(different),
        "seed": seed,
        **painting_fields(image),
        "scores": report_figures(scores, log, ("different",)),
        "asked": asked,
    }
