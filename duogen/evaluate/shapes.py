"""Hand-written requests for compositions of plain shapes: do the words match the request, and does the picture show them?

They are in `assets/benchmarks/shapes.json`. No template of the training made them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from duogen.conversation import Piece
from duogen.engine import Engine
from duogen.evaluate.figures import share
from duogen.evaluate.replies import (
    Painting,
    ask_pair,
    check_last_picture,
    default_image_options,
    painting_fields,
    pick_evenly,
    reply_text,
    report_figures,
)
from duogen.options import Options
from duogen.paths import ASSETS
from duogen.sketchbook.scene import Part, Scene

SHAPES = ASSETS / "benchmarks" / "shapes.json"
INVERSE = {"on top of": "below", "below": "on top of", "to the left of": "to the right of", "to the right of": "to the left of"}


@dataclass(frozen=True)
class Composition:
    """One request. Each of `parts` has `shape` and, where the request fixes them, `colour`, `size`, `place`, `of`."""

    say: str
    parts: list[dict[str, Any]]
    background: str = ""


def evaluate(
    engine: Engine, n: int = 100, seed: int = 0, log: Callable[[str], None] = print, *, painting: Painting | None = None
) -> dict[str, Any]:
    """Ask `n` of the requests, spread evenly over the file, and measure words and last pictures.

    Args:
        painting: how the pictures are painted, where not as the pair does by itself.

    Returns:
        Figures ready for JSON as {"value", "low", "high", "n"}, and every request with its reply under `asked`.

    Raises:
        ValueError: `n` < 1.
    """
    every = [Composition(**entry) for entry in json.loads(SHAPES.read_text(encoding="utf-8"))["asked"]]
    options = Options(seed, image=default_image_options(engine, painting))
    asked: list[dict[str, Any]] = []
    for request in pick_evenly(every, n):
        parts = ask_pair(engine, request.say, options)
        asked.append({"say": request.say, **score_reply(request, parts), "reply": reply_text(parts)})
        log(f"{len(asked)} {'right' if asked[-1]['right'] else 'wrong'}: {request.say}")
    scores = {name: share(each[key] for each in asked) for name, key in (("right", "right"), ("words", "words"), ("pictures", "picture"))}
    return {"n": len(asked), "seed": seed, **painting_fields(options.image), "scores": report_figures(scores, log), "asked": asked}


def score_reply(request: Composition, parts: list[Piece]) -> dict[str, bool]:
    """Whether the words match the request, whether the last picture shows the words, and both."""
    scene, picture = check_last_picture(parts)
    words = scene is not None and matches_request(request, scene)
    return {"words": words, "picture": picture, "right": words and picture}


def matches_request(request: Composition, scene: Scene) -> bool:
    """Whether the scene has exactly the requested shapes, in any order."""
    if request.background not in ("", scene.background) or len(scene.things) != 1 or scene.things[0].kind is not None:
        return False
    said = scene.things[0].parts
    return len(said) == len(request.parts) and any(_matches_order(request.parts, said, order) for order in permutations(range(len(said))))


def _matches_order(requested: list[dict[str, Any]], said: tuple[Part, ...], order: tuple[int, ...]) -> bool:
    """Whether requested part i matches part `order[i]` of the scene, for every i."""
    for part, index in zip(requested, order, strict=True):
        mine = said[index]
        if part["shape"] != mine.shape or part.get("colour", mine.colour) != mine.colour or mine.size not in part.get("size", [mine.size]):
            return False
        if "place" in part:
            anchor = order[part["of"]]
            there = (mine.place, mine.of) == (part["place"], anchor)
            other_way = (said[anchor].place, said[anchor].of) == (INVERSE.get(part["place"]), index)
            if not (there or other_way):
                return False
    return True
