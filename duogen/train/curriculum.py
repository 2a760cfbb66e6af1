"""The training curriculum: short tasks for the painter, in which every word matters, and whole dialogues of the sketchbook's tasks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from duogen.conversation import Image, Text, Turn
from duogen.sketchbook.drafts import draft_answer, draft_steps, find_drafted, move_steps
from duogen.sketchbook.draw import draw
from duogen.sketchbook.edits import Pool, random_edit
from duogen.sketchbook.scene import BACKGROUNDS, Scene
from duogen.sketchbook.styles import STYLES, apply_style
from duogen.sketchbook.tasks import TASKS, Dialogue, Line, draw_turns, sample
from duogen.sketchbook.words import picture_sentence
from duogen.sketchbook.world import kinds, random_composition, random_scene, random_thing, things
from duogen.train.settings import CurriculumSettings


def sample_dialogue(rng: random.Random, shares: dict[str, float], frames: int, settings: CurriculumSettings) -> list[Turn]:
    """Sample a conversation with at least `frames` pictures, of a task drawn from `shares`.

    Raises:
        ValueError: a name in `shares` is no task.
    """
    for _ in range(200):
        name = rng.choices(list(shares), list(shares.values()))[0]
        if name not in PAINTER_TASKS and name not in TASKS:
            raise ValueError(f"There is no task called {name!r}; known are {', '.join([*PAINTER_TASKS, *TASKS])}.")
        turns = PAINTER_TASKS[name](rng, frames, settings) if name in PAINTER_TASKS else sample_task(name, rng, settings)
        if sum(len(turn.images()) for turn in turns) >= frames:
            return turns
    raise ValueError(f"None of {', '.join(shares)} makes conversations with {frames} pictures.")


def sample_task(task: str, rng: random.Random, settings: CurriculumSettings) -> list[Turn]:
    """Sample a dialogue of a task."""
    return _draw_in_styles(sample(task, rng, kinds=choose_core_kinds(rng, settings)), rng, settings)


@dataclass(frozen=True)
class DraftedTurns:
    """A dialogue in which an answer may be drawn in drafts.

    Attributes:
        turns: the dialogue; one that is drawn in drafts ends with that answer.
        first: index of the first turn whose words are learned. The turns before an answer in drafts are its context alone.
        undecided: indices of the answers that could begin with drafts as well: their first token is not learned.
    """

    turns: list[Turn]
    first: int = 0
    undecided: frozenset[int] = frozenset()


def sample_with_drafts(task: str, rng: random.Random, settings: CurriculumSettings, drafts: float) -> DraftedTurns:
    """Sample a dialogue of a task; where an answer could be drawn in drafts, one of them is for a share `drafts` of the dialogues."""
    dialogue = sample(task, rng, kinds=choose_core_kinds(rng, settings))
    drafted = find_drafted(dialogue.lines)
    if not drafted or rng.random() >= drafts:
        return DraftedTurns(_draw_in_styles(dialogue, rng, settings), undecided=frozenset(drafted))
    at = rng.choice(list(drafted))
    dialogue = Dialogue(task, (*dialogue.lines[:at], drafted[at]))
    return DraftedTurns(_draw_in_styles(dialogue, rng, settings), first=at)


def _draw_in_styles(dialogue: Dialogue, rng: random.Random, settings: CurriculumSettings) -> list[Turn]:
    if not settings.styles or not dialogue.lines[0].scenes() or rng.random() >= settings.styles:
        return draw_turns(dialogue)
    style, seed = rng.choice(STYLES), rng.randrange(2**31)
    return draw_turns(dialogue, lambda scene: apply_style(draw(scene), style, seed))


def choose_core_kinds(rng: random.Random, settings: CurriculumSettings) -> list[str] | None:
    """Choose the kinds of a dialogue: for a share `core_share` of them the recipe's `core_kinds`, for the others `None`, for all kinds."""
    chosen = _choose_kinds(rng, settings)
    return chosen if chosen == list(settings.core_kinds) else None


def _make_turns(*parts: str | Scene) -> list[Turn]:
    pieces = tuple(Text(part) if isinstance(part, str) else Image(draw(part)) for part in parts)
    return [Turn("user", (Text("Draw."),)), Turn("assistant", pieces)]


def _sample_shapes(rng: random.Random, frames: int, settings: CurriculumSettings) -> list[Turn]:
    """One picture of plain shapes, mostly of one."""
    scene = Scene(rng.choice(BACKGROUNDS), (random_composition(rng, rng.choice((1, 1, 2, 3))),))
    return _make_turns(picture_sentence(scene) + "\n", scene)


def _sample_scene(rng: random.Random, frames: int, settings: CurriculumSettings) -> list[Turn]:
    scene = random_scene(rng, _choose_kinds(rng, settings))
    return _make_turns(picture_sentence(scene) + "\n", scene)


def _sample_shape_steps(rng: random.Random, frames: int, settings: CurriculumSettings) -> list[Turn]:
    scene = Scene(rng.choice(BACKGROUNDS), (random_composition(rng, 5),))
    while len(scene.things[0].parts) < frames:
        scene = Scene(rng.choice(BACKGROUNDS), (random_composition(rng, max(5, frames)),))
    return _make_steps(scene)


def _sample_first_step(rng: random.Random, frames: int, settings: CurriculumSettings) -> list[Turn]:
    """The first step of a guide, on which all other steps depend."""
    return _make_steps(_sample_thing_scene(rng, 1, settings))


def _sample_thing_steps(rng: random.Random, frames: int, settings: CurriculumSettings) -> list[Turn]:
    return _make_steps(_sample_thing_scene(rng, frames, settings))


def _sample_thing_scene(rng: random.Random, parts: int, settings: CurriculumSettings) -> Scene:
    names = [kind for kind in _choose_kinds(rng, settings) if len(things()[kind].parts) >= parts]
    names = names or [kind for kind in kinds("train") if len(things()[kind].parts) >= parts]
    return Scene(rng.choice(BACKGROUNDS), (random_thing(rng, names),))


def _choose_kinds(rng: random.Random, settings: CurriculumSettings) -> list[str]:
    """The recipe's `core_kinds` for a share `core_share` of the calls, else all kinds."""
    core = list(settings.core_kinds)
    return core if core and rng.random() < settings.core_share else kinds("train")


def _make_steps(scene: Scene) -> list[Turn]:
    return _make_turns(*(part for words, so_far in draft_steps(scene) for part in (f"{words}\n", so_far)))


def _sample_drafts(rng: random.Random, frames: int, settings: CurriculumSettings) -> list[Turn]:
    return _draw_in_styles(sample_drafts(rng, frames, settings), rng, settings)


def sample_drafts(rng: random.Random, frames: int, settings: CurriculumSettings, held: Sequence[str] | None = None) -> Dialogue:
    """A picture, or an edit that adds a thing, drawn part by part; half of the longer ones begin with a later picture.

    `held`: kinds to show with something held out of training, `None` for what training shows.
    """
    task = rng.choice(("picture", "picture", "edit"))
    return _begin_later(rng, draft_dialogue(sample(task, rng, held is not None, held or choose_core_kinds(rng, settings))), frames)


def _begin_later(rng: random.Random, dialogue: Dialogue, frames: int) -> Dialogue:
    """Half of the dialogues with more pictures than `frames` begin with a later one."""
    spare = len(dialogue.scenes()) - frames
    return cut_dialogue(dialogue, rng.randint(1, spare)) if frames > 1 and spare > 0 and rng.random() < 0.5 else dialogue


def _sample_moves(rng: random.Random, frames: int, settings: CurriculumSettings) -> list[Turn]:
    """A brought picture in which a thing moves or changes its size, in drafts: the thing goes, and comes again part by part."""
    brought, answer = sample_move(rng, settings).lines
    (before, _), (_, after) = brought.parts, answer.parts
    assert isinstance(before, Scene) and isinstance(after, Scene)
    number = next(number for number, (one, other) in enumerate(zip(before.things, after.things, strict=True)) if one != other)
    steps = tuple(part for step in move_steps(after, number) for part in step)
    return _draw_in_styles(_begin_later(rng, Dialogue("edit", (brought, replace(answer, parts=steps))), frames), rng, settings)


def _sample_moves_at_once(rng: random.Random, frames: int, settings: CurriculumSettings) -> list[Turn]:
    return _draw_in_styles(sample_move(rng, settings), rng, settings)


def sample_move(rng: random.Random, settings: CurriculumSettings, operations: tuple[str, ...] = ("move", "resize")) -> Dialogue:
    """A brought picture in which a thing moves or changes its size, or to which another one of the `operations` is done."""
    pool = Pool(tuple(choose_core_kinds(rng, settings) or kinds()))
    while True:
        scene = random_scene(rng, list(pool.kinds))
        edit = random_edit(rng, pool, scene, only=operations)
        if edit.scene.background == scene.background:  # else nothing of it had room elsewhere
            return Dialogue("edit", (Line("user", (scene, edit.ask)), Line("assistant", (edit.answer, edit.scene))))


def draft_dialogue(dialogue: Dialogue) -> Dialogue:
    """Replace each of the assistant's pictures of many parts, and its sentence, by the drafts that lead to it and their sentences."""
    lines = []
    for line in dialogue.lines:
        parts: list[str | Scene] = []
        for part in line.parts:
            words = parts[-1] if parts and isinstance(parts[-1], str) else ""
            steps = draft_answer(words, part) if isinstance(part, Scene) and line.role == "assistant" else []
            if steps:
                parts[-1:] = [each for step in steps for each in step]
            else:
                parts.append(part)
        lines.append(Line(line.role, tuple(parts)))
    return Dialogue(dialogue.task, tuple(lines))


def cut_dialogue(dialogue: Dialogue, number: int) -> Dialogue:
    """The dialogue after picture number `number` (from 1), which the user now brings, with the last request before it."""
    seen, lines = 0, list(dialogue.lines)
    while seen + len(lines[0].scenes()) < number:
        seen += len(lines.pop(0).scenes())
    scenes = [index for index, part in enumerate(lines[0].parts) if isinstance(part, Scene)]
    last = scenes[number - seen - 1]
    brought, rest = lines[0].parts[last], lines[0].parts[last + 1 :]
    if lines[0].role == "user":
        return Dialogue(dialogue.task, (Line("user", lines[0].parts[last:]), *lines[1:]))
    if not any(isinstance(part, Scene) for part in rest):
        return Dialogue(dialogue.task, (Line("user", (brought, *lines[1].parts)), *lines[2:]))
    asks = [part for line in dialogue.lines[: -len(lines)] for part in line.parts if line.role == "user" and isinstance(part, str)]
    return Dialogue(dialogue.task, (Line("user", (brought, asks[-1])), Line("assistant", rest), *lines[1:]))


PAINTER_TASKS = {
    "shapes": _sample_shapes,
    "scene": _sample_scene,
    "shape_steps": _sample_shape_steps,
    "first_step": _sample_first_step,
    "thing_steps": _sample_thing_steps,
    "drafts": _sample_drafts,
    "moves": _sample_moves,
    "moves_at_once": _sample_moves_at_once,
}
