"""Visual drafts: a picture of many parts is painted part by part, through pictures that the user does not see.

All new words of a step belong to one part, so no colour can end up on another part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from duogen.models.thinking import CLOSING, DRAFTING
from duogen.sketchbook.change import remove_thing
from duogen.sketchbook.scene import Scene
from duogen.sketchbook.tasks import Line
from duogen.sketchbook.words import BACKGROUND_WORDS, removal_sentence, step_sentence


def draft_steps(scene: Scene, first: int = 0) -> list[tuple[str, Scene]]:
    """The steps that draw the things of `scene` from thing number `first` on, one part each: (words, scene after them)."""
    steps: list[tuple[str, Scene]] = []
    for number in range(first, len(scene.things)):
        thing = scene.things[number]
        for index in range(len(thing.parts)):
            so_far = (*scene.things[:number], replace(thing, parts=thing.parts[: index + 1]))
            words = f"Step {len(steps) + 1}. {step_sentence(scene, number, index)}"
            steps.append((words, replace(scene, things=so_far)))
    return steps


def move_steps(scene: Scene, number: int) -> list[tuple[str, Scene]]:
    """The steps that bring thing `number` to its place and size in `scene`: it goes, and is drawn anew. The background stays, unnamed."""
    thing = scene.things[number]
    steps = [(removal_sentence(thing), remove_thing(scene, number))]
    for index in range(len(thing.parts)):
        words = f"Step {index + 1}. {step_sentence(scene, number, index, background=False)}"
        steps.append((words, scene.with_thing(number, replace(thing, parts=thing.parts[: index + 1]))))
    return steps


def draft_answer(words: str, scene: Scene) -> list[tuple[str, Scene]]:
    """The steps to the picture that an answer's `words` announce; none where one step is enough, as for a change of one part.

    Args:
        scene: what the picture shows.
    """
    if words.startswith("Now there "):
        return draft_steps(scene, first=len(scene.things) - words.count("Now there "))
    if words.lower().startswith(tuple(f"{each}:" for each in BACKGROUND_WORDS.values())):
        return draft_steps(scene)
    return []


def draft_line(line: Line) -> Line | None:
    """The answer of one picture with its drafts as thoughts before its words. The last draft is the picture.

    Returns:
        `None` where no drafts are of use.
    """
    if line.role != "assistant" or len(line.parts) != 2:
        return None
    words, scene = line.parts
    steps = draft_answer(words, scene) if isinstance(words, str) and isinstance(scene, Scene) else []
    if not steps:
        return None
    drafts = [part for said, so_far in steps for part in (f"{said}\n", so_far)]
    return replace(line, parts=(f"{DRAFTING}{drafts[0]}", *drafts[1:], f"{CLOSING}{words}"))


def find_drafted(lines: Sequence[Line]) -> dict[int, Line]:
    """The answers of a dialogue that can be drawn in drafts, drawn so, by their index."""
    return {index: made for index, line in enumerate(lines) if (made := draft_line(line))}
