"""Hand-written requests as different people type them: does the MLLM choose the right kind of reply and follow the request?

They are in `assets/benchmarks/phrasings.json`. No template of the training made them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from duogen.conversation import Image, Piece, Text
from duogen.engine import Engine
from duogen.evaluate.figures import share
from duogen.evaluate.replies import (
    Painting,
    ask_pair,
    default_image_options,
    painting_fields,
    pick_evenly,
    read_last_scene,
    reply_text,
    report_figures,
)
from duogen.options import Options
from duogen.paths import ASSETS
from duogen.sketchbook.scene import Scene

PHRASINGS = ASSETS / "benchmarks" / "phrasings.json"


@dataclass(frozen=True)
class Phrasing:
    """One request.

    Attributes:
        reply: the right kind of reply: "guide" (several pictures), "picture" (one) or "words" (none).
        kind: the thing that the pictures show.
        parts: the requested colours, by part.
        background: the requested background.
        outside: the world has no such thing. The right reply declines and offers something that it has.
    """

    say: str
    reply: str
    kind: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    background: str = ""
    outside: bool = False


def evaluate(
    engine: Engine, n: int = 200, seed: int = 0, log: Callable[[str], None] = print, *, painting: Painting | None = None
) -> dict[str, Any]:
    """Ask `n` of the requests, spread evenly over the file, and measure the words of the replies.

    Pictures are painted in one step, because only the words are measured.

    Args:
        painting: how the pictures are painted, where not in one step without guidance.

    Returns:
        Figures ready for JSON as {"value", "low", "high", "n"}, and every request with its reply under `asked`.

    Raises:
        ValueError: `n` < 1.
    """
    every = [Phrasing(**entry) for entry in json.loads(PHRASINGS.read_text(encoding="utf-8"))["asked"]]
    one_step: Painting = {"steps": 1, "guidance": 1.0, **(painting or {})}
    options = Options(seed, image=default_image_options(engine, one_step))
    asked: list[dict[str, Any]] = []
    for phrasing in pick_evenly(every, n):
        parts = ask_pair(engine, phrasing.say, options)
        asked.append({"say": phrasing.say, "outside": phrasing.outside, **score_reply(phrasing, parts), "reply": reply_text(parts)})
    scores = {
        "right_reply_and_wishes": share(each["right"] for each in asked),
        "right_kind_of_reply": share(each["draws"] for each in asked),
        "guides_and_pictures": share(each["right"] for each in asked if each["meant"] != "words"),
        "talk": share(each["right"] for each in asked if each["meant"] == "words" and not each["outside"]),
        "outside_declined_with_an_offer": share(each["right"] for each in asked if each["outside"]),
    }
    return {"n": len(asked), "seed": seed, **painting_fields(options.image), "scores": report_figures(scores, log), "asked": asked}


def score_reply(phrasing: Phrasing, parts: list[Piece]) -> dict[str, Any]:
    """Whether a reply draws as it should, and whether its words are right too."""
    images = sum(isinstance(part, Image) for part in parts)
    draws = {"guide": images > 1, "picture": images == 1, "words": images == 0}[phrasing.reply]
    text = "".join(part.text for part in parts if isinstance(part, Text)).strip()
    if phrasing.reply == "words":
        right = draws and bool(text) and (not phrasing.outside or offers_alternative(text))
    else:
        right = draws and matches_request(phrasing, read_last_scene(parts))
    return {"meant": phrasing.reply, "draws": draws, "right": right}


def offers_alternative(text: str) -> bool:
    """Whether the text names something that could be drawn instead ("but I can draw a cat")."""
    words = text.lower()
    return "draw" in words and any(word in words for word in ("can", "could", "would you like", "shall i", "how about", "try"))


def matches_request(phrasing: Phrasing, scene: Scene | None) -> bool:
    """Whether the last scene of the words shows the thing in the requested colours on the requested background."""
    if scene is None or len(scene.things) != 1 or scene.things[0].kind != phrasing.kind:
        return False
    colours = {part.name: part.colour for part in scene.things[0].parts}
    background = phrasing.background or scene.background
    return scene.background == background and all(colours.get(part) == colour for part, colour in phrasing.parts.items())
