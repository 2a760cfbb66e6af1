"""Requests that leave everything open: does the pair think of something else every time, and paint what it says?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from duogen.conversation import Image
from duogen.engine import Engine
from duogen.evaluate.figures import mean, share
from duogen.evaluate.phrasings import answer, last_scene, plain
from duogen.evaluate.scores import canvas
from duogen.options import ImageOptions, Options
from duogen.sketchbook import verify

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
    image = ImageOptions(steps=engine.about["steps"], guidance=engine.about["guidance"], preview_every=0)
    asked, different = [], []
    for request in REQUESTS[:n]:
        scenes = set()
        for number in range(SEEDS):
            parts = answer(engine, request, Options(seed + number, image=image))
            scene = last_scene(parts)
            pictures = [part.picture for part in parts if isinstance(part, Image)]
            right = bool(pictures) and scene is not None and verify.check_scene(canvas(pictures[-1]), scene).right
            scenes |= {scene} - {None} if pictures else set()
            asked.append({"say": request, "right": right, "reply": plain(parts)})
        different.append(len(scenes))
        say(f"{len(scenes)} different of {SEEDS}: {request}")
    scores = {
        "different": mean(map(float, different)),
        "six_different": share(count >= 6 for count in different),
        "right": share(each["right"] for each in asked),
    }
    for name, figure in scores.items():
        say(f"{name:32} {figure.words(name != 'different')}")
    return {"n": len(different), "seed": seed, "scores": {name: figure.data() for name, figure in scores.items()}, "asked": asked}
