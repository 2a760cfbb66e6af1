"""Conversations for training and evaluation: guides, single pictures, edits, questions and talk, made from a seed.

Every conversation is data (`Dialogue`): words and scenes in order. `turns` draws the scenes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL.Image import Image as Picture

from duogen.conversation import Image, Text, Turn
from duogen.sketchbook import words, world
from duogen.sketchbook.change import loose_parts, without_part
from duogen.sketchbook.draw import draw
from duogen.sketchbook.edits import Edit, Pool, random_edit
from duogen.sketchbook.phrases import background_wish, filled, phrases, placing_wish, shapes_wish, thing_wish, untidy
from duogen.sketchbook.questions import random_question
from duogen.sketchbook.scene import BACKGROUNDS, SIDES, Scene, Thing, fits
from duogen.sketchbook.world import (
    HELD_OUT_KINDS,
    expected_elsewhere,
    held_out_colour,
    holds_out,
    make_thing,
    random_colours,
    random_composition,
    random_scene,
    relation,
    things,
)

TRIES = 500


@dataclass(frozen=True)
class Line:
    """One turn: words and scenes in the order they are said. `role` is "user" or "assistant"."""

    role: str
    parts: tuple[str | Scene, ...]

    def scenes(self) -> list[Scene]:
        return [part for part in self.parts if isinstance(part, Scene)]


@dataclass(frozen=True)
class Dialogue:
    """A conversation as data."""

    task: str
    lines: tuple[Line, ...]

    def scenes(self) -> list[Scene]:
        """Every scene in order, the user's uploads among them."""
        return [scene for line in self.lines for scene in line.scenes()]


def sample(task: str, rng: random.Random, held: bool = False, kinds: Sequence[str] | None = None) -> Dialogue:
    """A random conversation of a task.

    Args:
        held: the conversation holds at least one held-out kind, coloured part or relation (talk has none); else never any.
        kinds: show only these kinds, and no unnamed shapes; by default all kinds of the training split.

    Raises:
        ValueError: there is no such task or kind, or the kinds and `held` contradict each other.
    """
    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}; choose one of {', '.join(TASKS)}.")
    unknown = [kind for kind in kinds or () if kind not in things()]
    if unknown:
        raise ValueError(f"The world has no {', '.join(unknown)}; choose from {', '.join(things())}.")
    if not held and any(kind in HELD_OUT_KINDS for kind in kinds or ()):
        raise ValueError(f"{', '.join(sorted(HELD_OUT_KINDS))} are held out of training; pass held=True to see them.")
    pool = Pool(tuple(kinds or world.kinds("train")), held, shapes=not held and kinds is None)
    for _ in range(TRIES):
        dialogue = Dialogue(task, tuple(TASKS[task](rng, pool)))
        if task == "talk" or any(map(holds_out, dialogue.scenes())) == held:
            return dialogue
    raise ValueError(f"No {task} conversation about {', '.join(pool.kinds)} has something held out; choose other kinds.")


def sample_any(rng: random.Random, weights: dict[str, float], held: bool = False) -> Dialogue:
    """A random conversation of a random task, chosen with `weights`."""
    return sample(rng.choices(list(weights), list(weights.values()))[0], rng, held)


def turns(dialogue: Dialogue, pen: Callable[[Scene], Picture] = draw) -> list[Turn]:
    """The conversation with its scenes drawn by `pen`; each turn's parent is the turn before it."""
    chain: list[Turn] = []
    for line in dialogue.lines:
        parts = tuple(Text(part) if isinstance(part, str) else Image(pen(part), alt=words.picture_sentence(part)) for part in line.parts)
        chain.append(Turn(line.role, parts, parent=chain[-1].id if chain else None))
    return chain


def _user(rng: random.Random, *parts: str | Scene) -> Line:
    return Line("user", tuple(untidy(part, rng) if isinstance(part, str) else part for part in parts))


def _assistant(*parts: str | Scene) -> Line:
    return Line("assistant", parts)


def _say(rng: random.Random, task: str, key: str, **fields: str) -> str:
    return filled(rng.choice(phrases(task)[key]), **fields)


# Guides


@dataclass(frozen=True)
class Request:
    """What a guide was asked for: a scene of one thing, which parts' colours the wish names, which parts it does without."""

    scene: Scene
    named: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()
    background: bool = False

    @property
    def thing(self) -> Thing:
        return self.scene.things[0]


def _request(rng: random.Random, pool: Pool) -> Request:
    """A thing to guide through, with none, some or all wishes; what is left open is chosen at random."""
    kind = rng.choice(pool.kinds)
    wishes = rng.random() < 0.65 or pool.held
    colours = random_colours(kind, rng, natural=0.4 if wishes else 0.85, held=pool.held)
    thing = make_thing(kind, colours)
    if rng.random() < 0.08:
        thing = replace(thing, side=rng.choice(SIDES))
        thing = thing if fits(thing) else replace(thing, side="middle")
    missing: tuple[str, ...] = ()
    if rng.random() < 0.08 and loose_parts(thing):
        index = rng.choice(loose_parts(thing))
        missing = (str(thing.parts[index].name),)
        thing = without_part(thing, index)
    named = _named(rng, thing, pool) if wishes else ()
    thing = expected_elsewhere(thing, named, rng) if wishes else thing
    scene = Scene(rng.choice(BACKGROUNDS), (thing,))
    return Request(scene, named, missing, background=rng.random() < 0.3 or thing.side != "middle")


def _named(rng: random.Random, thing: Thing, pool: Pool) -> tuple[int, ...]:
    """The parts whose colour the wish names; those with a held-out colour always, so that the words are put to the test."""
    free = [index for index in range(len(thing.parts)) if words.may_be_named(thing, index)]
    count = rng.choices((0, 1, 2, 3, len(free)), (0.12, 0.4, 0.26, 0.1, 0.12))[0]
    named = set(rng.sample(free, min(count, len(free))))
    if pool.held and thing.kind not in HELD_OUT_KINDS:
        parts = enumerate(thing.parts)
        named |= {index for index, part in parts if held_out_colour(str(thing.kind), str(part.name), part.colour)}
    return tuple(sorted(named))


def _guide(rng: random.Random, pool: Pool) -> list[Line]:
    if pool.shapes and rng.random() < 0.2:
        return _guide_shapes(rng, pool)
    request = _request(rng, pool)
    ask = _guide_ask(rng, request)
    total = len(request.thing.parts)
    roll = rng.random()
    if roll < 0.14 and total > 2:
        return _guide_in_pieces(rng, pool, request, ask)
    ends = list(range(1, total + 1))
    if roll < 0.3 and total > 2:
        count = rng.randint(2, total - 1)
        ends = sorted(rng.sample(range(1, total), count - 1)) + [total]
        ask = _say(rng, "guide", "steps", ask=ask, n=rng.choice(phrases("guide")["numbers"][str(count)]))
    opening = words.opening_sentence(request.thing, request.named, request.missing)
    parts = _steps(rng, request.scene, ends, opening)
    lines = [_user(rng, ask), _assistant(*parts, _closing(rng, request.thing))]
    return lines + _follow_ups(rng, pool, request.scene, 0.35)


def guide_to(rng: random.Random, scene: Scene, named: Sequence[int]) -> Line:
    """The answer that draws a scene's one thing part by part, to a wish that names the colours of the parts `named`."""
    thing = scene.things[0]
    steps = _steps(rng, scene, list(range(1, len(thing.parts) + 1)), words.opening_sentence(thing, named))
    return _assistant(*steps, _closing(rng, thing))


def _guide_ask(rng: random.Random, request: Request) -> str:
    """The user's wish for a guide."""
    thing, data = request.thing, phrases("guide")
    kind = str(thing.kind)
    entry, common = things()[kind], phrases("common")
    verb = rng.choice(common["verbs"].get(kind, common["verbs"][entry.family]))
    if not request.named and not request.missing and not request.background:
        if kind in data["german_things"] and rng.random() < 0.05:
            return _say(rng, "guide", "german", a=data["german_things"][kind])
        if rng.random() < 0.15:
            return _say(rng, "guide", "plural" if entry.article else "plain_many", things=entry.plural, verb=verb)
    wish = thing_wish(thing, request.named, request.missing, rng)
    if request.background:
        wish += f" {background_wish(request.scene, rng)}"
        wish += f", {placing_wish(thing, rng)}" if thing.side != "middle" else ""
    return _say(rng, "guide", "ask", a=wish, verb=verb)


def _steps(rng: random.Random, scene: Scene, ends: list[int], opening: str = "", start: int = 0, number: int = 1) -> list[str | Scene]:
    """Numbered steps, each with the picture after it; `ends` says after which parts a step ends."""
    parts: list[str | Scene] = []
    thing = scene.things[0]
    for count, end in enumerate(ends):
        sentences = [words.step_sentence(scene, 0, index, rng.choice(words.VERBS)) for index in range(start, end)]
        text = f"Step {number + count}. {' '.join(sentences)}"
        so_far = replace(scene, things=(replace(thing, parts=thing.parts[:end]),))
        parts += [f"{opening}\n\n{text}" if opening and not count else text, so_far]
        start = end
    return parts


def _closing(rng: random.Random, thing: Thing) -> str:
    if thing.kind is None:
        return _say(rng, "guide", "closings_shapes")
    return _say(rng, "guide", "closings_many" if words.is_many(thing) else "closings", the=f"the {thing.kind}")


def _guide_in_pieces(rng: random.Random, pool: Pool, request: Request, ask: str) -> list[Line]:
    """A guide that stops after its first steps and goes on when asked to."""
    total = len(request.thing.parts)
    given = 1 if rng.random() < 0.5 else rng.randint(2, total - 1)
    ask = _say(rng, "guide", "first" if given == 1 else "first_some", ask=ask, n=rng.choice(phrases("guide")["numbers"][str(given)]))
    opening = words.opening_sentence(request.thing, request.named, request.missing)
    first = _steps(rng, request.scene, list(range(1, given + 1)), opening)
    lines = [_user(rng, ask), _assistant(*first, _say(rng, "guide", "waits"))]
    while given < total:
        rest = rng.random() < 0.35
        end = total if rest else given + 1
        parts = _steps(rng, request.scene, list(range(given + 1, end + 1)), start=given, number=given + 1)
        last = _closing(rng, request.thing) if end == total else _say(rng, "guide", "waits")
        lines += [_user(rng, _say(rng, "guide", "go_on_all" if rest else "go_on")), _assistant(*parts, last)]
        given = end
        if given < total and rng.random() < 0.25:
            break
    return lines


def _guide_shapes(rng: random.Random, pool: Pool) -> list[Line]:
    scene = Scene(rng.choice(BACKGROUNDS), (random_composition(rng, most=5),))
    thing = scene.things[0]
    wish = shapes_wish(thing, rng)
    if rng.random() < 0.4:
        wish += f", {background_wish(scene, rng)}" if rng.random() < 0.5 else f", all {background_wish(scene, rng)}"
    ask = _say(rng, "guide", "shapes", shapes=wish)
    parts = _steps(rng, scene, list(range(1, len(thing.parts) + 1)), words.opening_sentence(thing))
    return [_user(rng, ask), _assistant(*parts, _closing(rng, thing))] + _follow_ups(rng, pool, scene, 0.15)


# Follow-ups that any conversation about a picture may have


def _follow_ups(rng: random.Random, pool: Pool, scene: Scene, chance: float) -> list[Line]:
    """Perhaps an edit or two, a question, another picture, a word about something else, or thanks."""
    lines: list[Line] = []
    while rng.random() < chance and len(lines) < 4:
        roll = rng.random()
        if roll < 0.15:
            lines += _questioned(rng, pool, scene)
        elif roll < 0.22:
            more, scene = _pictured(rng, pool)
            lines += more
        elif roll < 0.28:
            lines += _chat(rng)
        else:
            edit = random_edit(rng, pool, scene)
            lines += _edited(rng, edit)
            scene = edit.scene
    return lines + (_thanked(rng) if rng.random() < 0.06 else [])


def _edited(rng: random.Random, edit: Edit) -> list[Line]:
    return [_user(rng, _say(rng, "edit", "follow", ask=edit.ask)), _assistant(edit.answer, edit.scene)]


def _questioned(rng: random.Random, pool: Pool, scene: Scene) -> list[Line]:
    question = random_question(rng, pool, scene)
    return [_user(rng, _say(rng, "question", "follow", ask=question.ask)), _assistant(question.answer)]


def _thanked(rng: random.Random) -> list[Line]:
    thanks = phrases("common")["thanks"]
    return [_user(rng, rng.choice(thanks["ask"])), _assistant(rng.choice(thanks["answer"]))]


# Single pictures


def _picture(rng: random.Random, pool: Pool) -> list[Line]:
    lines, scene = _offered(rng) if pool.shapes and rng.random() < 0.04 else _pictured(rng, pool)
    return lines + _follow_ups(rng, pool, scene, 0.2)


def _offered(rng: random.Random) -> tuple[list[Line], Scene]:
    """A wish outside the world, something near offered, taken and painted."""
    lines, near = _outside(rng)
    scene = Scene(rng.choice(BACKGROUNDS), (make_thing(near, random_colours(near, rng, natural=0.7)),))
    yes = rng.choice(phrases("talk")["outside"]["yes"])
    return lines + [_user(rng, yes), _assistant(words.picture_sentence(scene), scene)], scene


def _pictured(rng: random.Random, pool: Pool) -> tuple[list[Line], Scene]:
    """A wish for one picture and the answer."""
    roll = rng.random()
    if pool.shapes and roll < 0.27:
        scene = Scene(rng.choice(BACKGROUNDS), (random_composition(rng, most=3),))
        wish = shapes_wish(scene.things[0], rng)
    elif roll < 0.4 and not pool.held:
        scene = _several(rng, pool)
        wish = _several_wish(rng, scene)
    else:
        scene = random_scene(rng, list(pool.kinds), pool.held)
        named = [_few(rng, pool, thing) for thing in scene.things]
        pairs = zip(scene.things, named, strict=True)
        scene = replace(scene, things=tuple(expected_elsewhere(thing, few, rng) for thing, few in pairs))
        wish = _scene_wish(rng, scene, named)
    if rng.random() < 0.5:
        wish += f" {background_wish(scene, rng)}"
    ask = _say(rng, "picture", "ask", a=wish)
    if not pool.held and rng.random() < 0.06:
        ask = _say(rng, "picture", "vague")
    return [_user(rng, ask), _assistant(words.picture_sentence(scene), scene)], scene


def _several(rng: random.Random, pool: Pool) -> Scene:
    """Two or three small things of one kind, mostly in the same colours."""
    kind = rng.choice(pool.kinds)
    level = "sky" if rng.random() < 0.25 else "ground"
    colours = random_colours(kind, rng)
    alike = rng.random() < 0.75
    chosen = rng.sample(SIDES, rng.choice((2, 3)))
    sides = [side for side in SIDES if side in chosen]
    each = [colours if alike else random_colours(kind, rng) for _ in sides]
    placed = [make_thing(kind, chosen, scale="small", side=side, level=level) for chosen, side in zip(each, sides, strict=True)]
    return Scene(rng.choice(BACKGROUNDS), tuple(placed))


def _several_wish(rng: random.Random, scene: Scene) -> str:
    """ "two trees", "three small red houses in the sky"."""
    thing, count = scene.things[0], str(len(scene.things))
    words_ = [rng.choice(phrases("picture")["counts"][count])]
    words_ += [rng.choice(("small", "little"))] if rng.random() < 0.35 else []
    main = words.main_part(thing)
    if all(other.parts == thing.parts for other in scene.things) and words.may_be_named(thing, main) and rng.random() < 0.5:
        words_.append(thing.parts[main].colour)
    words_.append(things()[str(thing.kind)].plural)
    if thing.level == "sky" or rng.random() < 0.1:
        words_.append("in the sky" if thing.level == "sky" else "on the ground")
    return " ".join(words_)


def _scene_wish(rng: random.Random, scene: Scene, named: Sequence[tuple[int, ...]]) -> str:
    """Things with the colours of their parts `named` and, where there are two, how they stand."""
    wishes = [thing_wish(thing, few, (), rng) for thing, few in zip(scene.things, named, strict=True)]
    if len(wishes) == 1:
        thing = scene.things[0]
        tell = (thing.side, thing.level) != ("middle", "ground") and rng.random() < 0.7
        return f"{wishes[0]} {placing_wish(thing, rng)}" if tell else wishes[0]
    data = phrases("picture")
    if len(wishes) == 2:
        key = relation(scene.things[1], scene.things[0])
        templates = data["relations"][key] if rng.random() < 0.65 else data["and"]
        return rng.choice(templates).format(first=wishes[0], other=wishes[1])
    if rng.random() < 0.5:
        wishes = [f"{wish} {placing_wish(thing, rng)}" for wish, thing in zip(wishes, scene.things, strict=True)]
    return words.listed(wishes)


def _few(rng: random.Random, pool: Pool, thing: Thing) -> tuple[int, ...]:
    """Mostly the main part's colour or nothing, as people ask for single pictures; held-out colours always."""
    main = words.main_part(thing)
    if pool.held or rng.random() < 0.4:
        return _named(rng, thing, pool)
    return (main,) if rng.random() < 0.5 and words.may_be_named(thing, main) else ()


# Edits and questions


def _uploaded_scene(rng: random.Random, pool: Pool) -> Scene:
    if pool.shapes and rng.random() < 0.22:
        return Scene(rng.choice(BACKGROUNDS), (random_composition(rng, most=4),))
    scene = random_scene(rng, list(pool.kinds), pool.held)
    thing = scene.things[0]
    if rng.random() < 0.12 and loose_parts(thing):
        scene = scene.with_thing(0, without_part(thing, rng.choice(loose_parts(thing))))
    return scene


def _with_upload(rng: random.Random, task: str, scene: Scene, ask: str) -> Line:
    text = _say(rng, task, "upload", ask=ask)
    return _user(rng, scene, text) if rng.random() < 0.75 else _user(rng, text, scene)


def _edit(rng: random.Random, pool: Pool) -> list[Line]:
    """One to four edits in a row of an uploaded picture, or of one painted before."""
    if rng.random() < 0.25:
        lines, scene = _pictured(rng, pool)
    else:
        lines, scene = [], _uploaded_scene(rng, pool)
    for count in range(rng.choices((1, 2, 3, 4), (0.4, 0.3, 0.18, 0.12))[0]):
        edit = random_edit(rng, pool, scene)
        if lines or count:
            lines += _edited(rng, edit)
        else:
            lines += [_with_upload(rng, "edit", scene, edit.ask), _assistant(edit.answer, edit.scene)]
        scene = edit.scene
    return lines + (_thanked(rng) if rng.random() < 0.05 else [])


def _question(rng: random.Random, pool: Pool) -> list[Line]:
    """One to three questions about an uploaded picture, or about one painted before."""
    if rng.random() < 0.2:
        lines, scene = _pictured(rng, pool)
    else:
        lines, scene = _asked_about_upload(rng, pool)
    more = rng.choices((0, 1, 2), (0.5, 0.3, 0.2))[0]
    for _ in range(max(more, 1) if lines[-1].scenes() else more):
        lines += _questioned(rng, pool, scene)
    return lines + (_thanked(rng) if rng.random() < 0.05 else [])


def _asked_about_upload(rng: random.Random, pool: Pool) -> tuple[list[Line], Scene]:
    scene = _uploaded_scene(rng, pool)
    question = random_question(rng, pool, scene)
    return [_with_upload(rng, "question", scene, question.ask), _assistant(question.answer)], scene


def _quiz(rng: random.Random, pool: Pool) -> list[Line]:
    """Many questions about one uploaded picture: of a picture that had to be read anyway, more is learnt."""
    lines, scene = _asked_about_upload(rng, pool)
    for _ in range(rng.randint(4, 7)):
        lines += _questioned(rng, pool, scene)
    return lines


def _described(rng: random.Random, pool: Pool) -> list[Line]:
    """An uploaded picture told in full, from left to right: every answer says all that there is to be seen."""
    scene = _uploaded_scene(rng, pool)
    ask = filled(rng.choice(phrases("question")["detail"]))
    ordered = sorted(scene.things, key=lambda thing: (SIDES.index(thing.side), thing.level))
    return [_with_upload(rng, "question", scene, ask), _assistant(words.picture_sentence(replace(scene, things=tuple(ordered))))]


# Talk


def _talk(rng: random.Random, pool: Pool) -> list[Line]:
    """Small talk, general questions and wishes outside the world, answered in words alone."""
    lines: list[Line] = []
    for _ in range(rng.choices((1, 2, 3), (0.6, 0.28, 0.12))[0]):
        lines += _outside(rng)[0] if rng.random() < 0.3 else _chat(rng)
    return lines


def _chat(rng: random.Random) -> list[Line]:
    data = phrases("talk")
    entry = rng.choice(data["chat"] if rng.random() < 0.45 else data["general"])
    return [_user(rng, rng.choice(entry["ask"])), _assistant(rng.choice(entry["answer"]))]


def _outside(rng: random.Random) -> tuple[list[Line], str]:
    """A wish that the world cannot grant: says so kindly and offers something near; that kind comes with it."""
    data = phrases("talk")["outside"]
    group = rng.choice(data["groups"])
    wish, near = rng.choice(group["wishes"]), rng.choice(group["near"])
    ask = rng.choice(data["asks"]).format(a=wish) if group["kind"] == "thing" else wish
    answer = rng.choice(data["sorry"][group["kind"]]).format(a=re.sub("^my ", "your ", wish), near=things()[near].named())
    return [_user(rng, ask), _assistant(answer)], near


TASKS: dict[str, Callable[[random.Random, Pool], list[Line]]] = {
    "guide": _guide,
    "picture": _picture,
    "edit": _edit,
    "question": _question,
    "quiz": _quiz,
    "described": _described,
    "talk": _talk,
}
