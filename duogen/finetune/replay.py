"""Replay: examples of what a pair was trained on before, mixed into fine-tuning so that the pair does not forget.

The bundled pair's dialogues are made again from the recipe that its `duogen.json` names. For another pair a user may bring a folder.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from duogen.conversation import Image, Message, Text, Turn
from duogen.dataset.format import CONVERSATIONS, Example, Picture, write_examples
from duogen.dataset.readers import read_dataset
from duogen.finetune.config import RECIPES, REPLAY_EXAMPLES
from duogen.models.pipeline import About
from duogen.train.curriculum import sample_dialogue, sample_task
from duogen.train.settings import DiTSettings, MLLMSettings
from duogen.train.trainer import Recipe


def load_replay_examples(source: Path | None, about: About, stage: str, seed: int, folder: Path) -> list[Example]:
    """Examples of what the pair was trained on before, for a stage ("mllm" or "dit"); none where `about` does not name a recipe.

    Args:
        source: a user's folder or zip of examples, used instead of the recipe that `about` names.
        folder: where examples that are made here are kept, so that a resumed run finds the same.

    Raises:
        ValueError: nothing is in `source`.
    """
    if source is None:
        recipe = RECIPES / f"{Path(about.practised).name}.json"
        if not about.practised or not recipe.is_file():
            return []
        source = folder
        if not (folder / CONVERSATIONS).exists():
            settings = Recipe.load(recipe, stage).settings
            if stage == "mllm":
                made = _sample_mllm_dialogues(MLLMSettings.from_json(settings), seed)
            else:
                made = _sample_dit_dialogues(DiTSettings.from_json(settings), seed)
            write_turns(made, folder)
    return [each for each in read_dataset(source).examples if stage == "mllm" or each.pictures("assistant")]


def _sample_mllm_dialogues(settings: MLLMSettings, seed: int) -> Iterator[list[Turn]]:
    rng, shares = random.Random(seed), settings.tasks
    for _ in range(REPLAY_EXAMPLES["mllm"]):
        task = rng.choices(list(shares), list(shares.values()))[0]
        yield sample_task(task, rng, settings)


def _sample_dit_dialogues(settings: DiTSettings, seed: int) -> Iterator[list[Turn]]:
    rng = random.Random(seed)
    for number in range(REPLAY_EXAMPLES["dit"]):
        group = settings.groups[number % len(settings.groups)]
        frames = rng.choice(group.frames)
        yield _cut_after_picture(sample_dialogue(rng, group.tasks, frames, settings), frames)


def _cut_after_picture(dialogue: list[Turn], count: int) -> list[Turn]:
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
    """Write conversations, whose pictures are in memory, as a folder of examples for fine-tuning."""
    with tempfile.TemporaryDirectory() as drawn:
        examples = [Example(str(number), tuple(_line(turn, Path(drawn)) for turn in each)) for number, each in enumerate(dialogues)]
        write_examples(examples, folder)


def _line(turn: Turn, drawn: Path) -> Message:
    parts: list[str | Picture] = []
    for place, part in enumerate(turn.parts):
        if isinstance(part, Text):
            parts.append(part.text)
        elif isinstance(part, Image):
            file = drawn / f"{turn.id}-{place}.png"
            part.picture.save(file)
            parts.append(Picture(file, part.alt))
    return Message(turn.role, tuple(parts))
