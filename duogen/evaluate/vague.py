"""Requests that leave everything open: does the pair draw something different every time, and paint what it says?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from duogen.conversation import Image, Text
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
WISHES = (  # of which ideas are asked for, of the six things that the shipped weights know best; "" for anything
    *("", "a house", "a tree", "a car", "a snowman", "a flower", "a rocket"),
    *("a red house", "a blue car", "a yellow flower", "a house by the sea", "a big tree"),
)
ALONE = 2  # pictures of each wish that are asked for by themselves


def evaluate(
    engine: Engine,
    n: int = len(REQUESTS),
    seed: int = 0,
    log: Callable[[str], None] = print,
    *,
    painting: Painting | None = None,
    ideas: int = 0,
) -> dict[str, Any]:
    """Ask the first `n` requests `SEEDS` times each.

    Args:
        painting: how the pictures are painted, where not as the pair does by itself.
        ideas: measure requests for so many ideas instead, as `evaluate_ideas` does.

    Returns:
        Figures ready for JSON as {"value", "low", "high", "n"}: `different` scenes of `SEEDS`, the share of answers whose last picture
        is `right` by its own words, and the share of requests with at least six different scenes; every reply under `asked`.

    Raises:
        ValueError: `n` < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}.")
    if ideas:
        return evaluate_ideas(engine, n, seed, ideas, log, painting)
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


def evaluate_ideas(
    engine: Engine, n: int, seed: int, ideas: int, log: Callable[[str], None], painting: Painting | None = None
) -> dict[str, Any]:
    """Ask for ideas for the first `n` wishes, and for single pictures of the same.

    Returns:
        As `evaluate`: the share of answers whose scenes are `all_different`, as many as asked for, the share of ideas whose picture is
        `right` by its own words, and that of single pictures (`right_alone`); every reply under `asked`.
    """
    image = default_image_options(engine, painting)
    asked, different, right, alone = [], [], [], []
    for at, wish in enumerate(WISHES[:n]):
        request = f"Give me {ideas} ideas for {wish}." if wish else f"Give me {ideas} ideas."
        parts = ask_pair(engine, request, Options(seed + at, image=image))
        pairs = [(line, each) for line, each in zip(parts, parts[1:], strict=False) if isinstance(line, Text) and isinstance(each, Image)]
        checked = [check_last_picture([Text(line.text.strip()), each]) for line, each in pairs]
        different.append(len({scene for scene, _ in checked if scene}) == ideas)
        right += [fits for _, fits in checked]
        for number in range(ALONE):
            single = ask_pair(engine, f"Draw {wish or 'something'}.", Options(1000 + seed + at * ALONE + number, image=image))
            alone.append(check_last_picture(single)[1])
        asked.append({"say": request, "right": [fits for _, fits in checked], "reply": reply_text(parts)})
        log(f"{'all' if different[-1] else 'not all'} different, {sum(asked[-1]['right'])} of {len(checked)} right: {request}")
    scores = {"all_different": share(different), "right": share(right), "right_alone": share(alone)}
    return {
        "n": len(different), "seed": seed, "ideas": ideas, **painting_fields(image), "scores": report_figures(scores, log), "asked": asked,
    }  # fmt: skip
