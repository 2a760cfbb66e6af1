"""What a pair could do before, practised again while it learns something new, so that it does not forget.

The bundled pair's dialogues are made anew from the recipe that its `duogen.json` names; for other pairs a user may bring a folder.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from duogen.conversation import Image, Text, Turn
from duogen.dataset.format import CONVERSATIONS, Example, Line, Picture, write
from duogen.dataset.readers import read
from duogen.finetune.config import RECIPES, REHEARSED
from duogen.models.pipeline import About
from duogen.train.curriculum import dialogue, practised


def rehearsals(source: Path | None, about: About, stage: str, seed: int, folder: Path) -> list[Example]:
    """Examples of what the pair practised for a stage ("talk" or "paint"); none where nobody knows what that was.

    Args:
        source: a user's folder or zip of examples, instead of what `about` names.
        folder: where examples that are made anew are kept, so that a run that goes on finds the same.

    Raises:
        ValueError: nothing is in `source`.
    """
    if source is None:
        recipe = RECIPES / f"{Path(about.practised).name}.json"
        if not about.practised or not recipe.is_file():
            return []
        source = folder
        if not (folder / CONVERSATIONS).exists():
            settings = json.loads(recipe.read_text(encoding="utf-8"))["mllm" if stage == "talk" else "dit"]["settings"]
            made = _talked(settings, seed) if stage == "talk" else _painted(settings, seed)
            write_turns(made, folder)
    return [each for each in read(source).examples if stage == "talk" or each.pictures("assistant")]


def _talked(settings: dict[str, Any], seed: int) -> Iterator[list[Turn]]:
    rng, shares = random.Random(seed), settings["tasks"]
    for _ in range(REHEARSED["talk"]):
        task = rng.choices(list(shares), list(shares.values()))[0]
        yield practised(task, rng, settings)


def _painted(settings: dict[str, Any], seed: int) -> Iterator[list[Turn]]:
    rng = random.Random(seed)
    for number in range(REHEARSED["paint"]):
        group = settings["groups"][number % len(settings["groups"])]
        frames = rng.choice(group["frames"])
        yield _until_picture(dialogue(rng, group["tasks"], frames, settings), frames)


def _until_picture(dialogue: list[Turn], count: int) -> list[Turn]:
    """The conversation up to its picture number `count`, from 1."""
    kept: list[Turn] = []
    for turn in dialogue:
        places = [place for place, part in enumerate(turn.parts) if isinstance(part, Image)]
        if len(places) >= count:
            return [*kept, replace(turn, parts=turn.parts[: places[count - 1] + 1])]
        kept.append(turn)
        count -= len(places)
    return kept


def write_turns(dialogues: Iterable[list[Turn]], folder: Path) -> None:
    """A folder of examples, as fine-tuning reads them, from conversations whose pictures are in memory."""
    with tempfile.TemporaryDirectory() as drawn:
        examples = [Example(str(number), tuple(_line(turn, Path(drawn)) for turn in each)) for number, each in enumerate(dialogues)]
        write(examples, folder)


def _line(turn: Turn, drawn: Path) -> Line:
    parts: list[str | Picture] = []
    for place, part in enumerate(turn.parts):
        if isinstance(part, Text):
            parts.append(part.text)
        elif isinstance(part, Image):
            file = drawn / f"{turn.id}-{place}.png"
            part.picture.save(file)
            parts.append(Picture(file, part.alt))
    return Line(turn.role, tuple(parts))
