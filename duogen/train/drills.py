"""What the painter practises on: drills, in which every word matters, and whole dialogues of the sketchbook's tasks."""

from __future__ import annotations

import random
from typing import Any

from duogen.conversation import Image, Text, Turn
from duogen.sketchbook.draw import draw
from duogen.sketchbook.hands import HANDS, by_hand
from duogen.sketchbook.scene import BACKGROUNDS, Scene, Thing
from duogen.sketchbook.tasks import TASKS, sample
from duogen.sketchbook.tasks import turns as drawn
from duogen.sketchbook.words import picture_sentence, step_sentence
from duogen.sketchbook.world import kinds, random_composition, random_scene, random_thing, things


def dialogue(rng: random.Random, shares: dict[str, float], frames: int, settings: dict[str, Any]) -> list[Turn]:
    """A conversation with at least `frames` pictures, of a kind drawn from `shares`.

    Raises:
        ValueError: a name in `shares` is neither a drill nor a task.
    """
    for _ in range(200):
        name = rng.choices(list(shares), list(shares.values()))[0]
        if name not in DRILLS and name not in TASKS:
            raise ValueError(f"There is no drill or task called {name!r}; known are {', '.join([*DRILLS, *TASKS])}.")
        turns = DRILLS[name](rng, frames, settings) if name in DRILLS else practised(name, rng, settings)
        if sum(len(turn.images()) for turn in turns) >= frames:
            return turns
    raise ValueError(f"None of {', '.join(shares)} makes conversations with {frames} pictures.")


def practised(task: str, rng: random.Random, settings: dict[str, Any]) -> list[Turn]:
    """A dialogue of a task; with `hands`, that share of the pictures that people bring is drawn by another hand."""
    told = sample(task, rng, kinds=core_only(rng, settings))
    share = settings.get("hands", 0.0)
    if not share or not told.lines[0].scenes() or rng.random() >= share:
        return drawn(told)
    hand, seed = rng.choice(HANDS), rng.randrange(2**31)
    return drawn(told, lambda scene: by_hand(draw(scene), hand, seed))


def core_only(rng: random.Random, settings: dict[str, Any]) -> list[str] | None:
    """The few kinds that a recipe wants good first (`core_kinds`), for `core_share` of the dialogues; `None` for all kinds."""
    chosen = _kinds(rng, settings)
    return chosen if chosen == settings.get("core_kinds") else None


def _say(*parts: str | Scene) -> list[Turn]:
    pieces = tuple(Text(part) if isinstance(part, str) else Image(draw(part)) for part in parts)
    return [Turn("user", (Text("Draw."),)), Turn("assistant", pieces)]


def _shapes(rng: random.Random, frames: int, settings: dict[str, Any]) -> list[Turn]:
    """One picture of plain shapes, mostly few."""
    scene = Scene(rng.choice(BACKGROUNDS), (random_composition(rng, rng.choice((1, 1, 2, 3))),))
    return _say(picture_sentence(scene) + "\n", scene)


def _scene(rng: random.Random, frames: int, settings: dict[str, Any]) -> list[Turn]:
    scene = random_scene(rng, _kinds(rng, settings))
    return _say(picture_sentence(scene) + "\n", scene)


def _shape_steps(rng: random.Random, frames: int, settings: dict[str, Any]) -> list[Turn]:
    scene = Scene(rng.choice(BACKGROUNDS), (random_composition(rng, 5),))
    while len(scene.things[0].parts) < frames:
        scene = Scene(rng.choice(BACKGROUNDS), (random_composition(rng, max(5, frames)),))
    return _steps(scene)


def _first_step(rng: random.Random, frames: int, settings: dict[str, Any]) -> list[Turn]:
    """The first step of a guide: the bottleneck of the whole."""
    return _steps(_thing_scene(rng, 1, settings))


def _thing_steps(rng: random.Random, frames: int, settings: dict[str, Any]) -> list[Turn]:
    return _steps(_thing_scene(rng, frames, settings))


def _thing_scene(rng: random.Random, parts: int, settings: dict[str, Any]) -> Scene:
    names = [kind for kind in _kinds(rng, settings) if len(things()[kind].parts) >= parts]
    names = names or [kind for kind in kinds("train") if len(things()[kind].parts) >= parts]
    return Scene(rng.choice(BACKGROUNDS), (random_thing(rng, names),))


def _kinds(rng: random.Random, settings: dict[str, Any]) -> list[str]:
    """All kinds, or with `core_share` the few that are to be good first."""
    core = settings.get("core_kinds", [])
    return core if core and rng.random() < settings.get("core_share", 0.5) else kinds("train")


def _steps(scene: Scene) -> list[Turn]:
    thing = scene.things[0]
    parts: list[str | Scene] = []
    for index in range(len(thing.parts)):
        parts.append(f"Step {index + 1}. {step_sentence(scene, 0, index)}\n")
        parts.append(Scene(scene.background, (Thing(thing.kind, thing.parts[: index + 1], thing.scale, thing.side, thing.level),)))
    return _say(*parts)


DRILLS = {"shapes": _shapes, "scene": _scene, "shape_steps": _shape_steps, "first_step": _first_step, "thing_steps": _thing_steps}
