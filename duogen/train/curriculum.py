"""What the painter practises on: drills, in which every word matters, and whole dialogues of the sketchbook's tasks."""

from __future__ import annotations

import random
from typing import Any

from duogen.conversation import Image, Text, Turn
from duogen.sketchbook.drafts import draft_answer
from duogen.sketchbook.draw import draw
from duogen.sketchbook.hands import HANDS, by_hand
from duogen.sketchbook.scene import BACKGROUNDS, Scene, Thing
from duogen.sketchbook.tasks import TASKS, Dialogue, Line, sample
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
    return _by_hands(sample(task, rng, kinds=core_only(rng, settings)), rng, settings)


def _by_hands(told: Dialogue, rng: random.Random, settings: dict[str, Any]) -> list[Turn]:
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


def _drafts(rng: random.Random, frames: int, settings: dict[str, Any]) -> list[Turn]:
    """Single pictures, and things that come new to a picture, part by part; half of the longer ones begin somewhere in between."""
    task = rng.choice(("picture", "picture", "edit"))
    told = draft_dialogue(sample(task, rng, kinds=core_only(rng, settings)))
    spare = len(told.scenes()) - frames
    if frames > 1 and spare > 0 and rng.random() < 0.5:
        told = cut_dialogue(told, rng.randint(1, spare))
    return _by_hands(told, rng, settings)


def draft_dialogue(told: Dialogue) -> Dialogue:
    """The dialogue as the painter reads it where pictures of many parts come from drafts: their steps stand for their sentence."""
    lines = []
    for line in told.lines:
        parts: list[str | Scene] = []
        for part in line.parts:
            words = parts[-1] if parts and isinstance(parts[-1], str) else ""
            steps = draft_answer(words, part) if isinstance(part, Scene) and line.role == "assistant" else []
            if steps:
                parts[-1:] = [each for step in steps for each in step]
            else:
                parts.append(part)
        lines.append(Line(line.role, tuple(parts)))
    return Dialogue(told.task, tuple(lines))


def cut_dialogue(told: Dialogue, number: int) -> Dialogue:
    """What follows picture number `number` (from 1), which the user now brings with the last wish."""
    seen, lines = 0, list(told.lines)
    while seen + len(lines[0].scenes()) < number:
        seen += len(lines.pop(0).scenes())
    scenes = [index for index, part in enumerate(lines[0].parts) if isinstance(part, Scene)]
    last = scenes[number - seen - 1]
    brought, rest = lines[0].parts[last], lines[0].parts[last + 1 :]
    if lines[0].role == "user":
        return Dialogue(told.task, (Line("user", lines[0].parts[last:]), *lines[1:]))
    if not any(isinstance(part, Scene) for part in rest):
        return Dialogue(told.task, (Line("user", (brought, *lines[1].parts)), *lines[2:]))
    asks = [part for line in told.lines[: -len(lines)] for part in line.parts if line.role == "user" and isinstance(part, str)]
    return Dialogue(told.task, (Line("user", (brought, asks[-1])), Line("assistant", rest), *lines[1:]))


DRILLS = {
    "shapes": _shapes, "scene": _scene, "shape_steps": _shape_steps, "first_step": _first_step, "thing_steps": _thing_steps,
    "drafts": _drafts,
}  # fmt: skip
