"""Compositions of plain shapes as a person would ask for them: are the words what was wished, and does the picture show them?

`assets/benchmarks/shapes.json`, written by hand; no template of the training made them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from duogen.conversation import Piece
from duogen.engine import Engine
from duogen.evaluate.asking import answer, own_image, plain, shown, spread, told
from duogen.evaluate.figures import share
from duogen.options import Options
from duogen.paths import ASSETS
from duogen.sketchbook.scene import Part, Scene

SHAPES = ASSETS / "benchmarks" / "shapes.json"
INVERSE = {"on top of": "below", "below": "on top of", "to the left of": "to the right of", "to the right of": "to the left of"}


@dataclass(frozen=True)
class Composition:
    """One request. `parts` are what was wished, each with `shape` and, where the request fixes them, `colour`, `size`, `place`, `of`."""

    say: str
    parts: list[dict[str, Any]]
    background: str = ""


def evaluate(engine: Engine, n: int = 100, seed: int = 0, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Ask `n` of the requests, spread evenly over the file, and measure words and last pictures.

    Returns:
        Figures ready for JSON as {"value", "low", "high", "n"}, and every request with its reply under `asked`.

    Raises:
        ValueError: `n` < 1.
    """
    every = [Composition(**entry) for entry in json.loads(SHAPES.read_text(encoding="utf-8"))["asked"]]
    options = Options(seed, image=own_image(engine))
    asked = []
    for wish in spread(every, n):
        parts = answer(engine, wish.say, options)
        asked.append({"say": wish.say, **marks(wish, parts), "reply": plain(parts)})
        say(f"{len(asked)} {'right' if asked[-1]['right'] else 'wrong'}: {wish.say}")
    scores = {name: share(each[key] for each in asked) for name, key in (("right", "right"), ("words", "words"), ("pictures", "picture"))}
    return {"n": len(asked), "seed": seed, "scores": told(scores, say), "asked": asked}


def marks(wish: Composition, parts: list[Piece]) -> dict[str, bool]:
    """Whether the last picture's words are what was wished, whether it shows its words, and both."""
    scene, picture = shown(parts)
    words = scene is not None and as_wished(wish, scene)
    return {"words": words, "picture": picture, "right": words and picture}


def as_wished(wish: Composition, scene: Scene) -> bool:
    """Whether the scene is these shapes and no others, in whatever order they are said."""
    if wish.background not in ("", scene.background) or len(scene.things) != 1 or scene.things[0].kind is not None:
        return False
    said = scene.things[0].parts
    return len(said) == len(wish.parts) and any(_fit(wish.parts, said, order) for order in permutations(range(len(said))))


def _fit(wished: list[dict[str, Any]], said: tuple[Part, ...], order: tuple[int, ...]) -> bool:
    """Whether wish number i is part `order[i]` for every i."""
    for part, index in zip(wished, order, strict=True):
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
