"""Requests about several pictures: a thing of one put into another, the colours of one for another, a change seen in two done to a third.

And one about a single picture: a thing of it stays, and the rest is another scene.

The pictures stand as a trained pair reads them (`duogen.picture_roles`): references first, last the source, which is changed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from duogen.sketchbook import words
from duogen.sketchbook.change import add_part, add_thing, loose_parts, place_thing, recolour_part, remove_part, remove_thing
from duogen.sketchbook.edits import OPERATIONS, Pool, find_spot, is_clear_of_others, is_unique, random_edit
from duogen.sketchbook.phrases import fill_template, phrases, placing_phrase
from duogen.sketchbook.scene import BACKGROUNDS, Scene, Thing
from duogen.sketchbook.world import make_thing, random_colours, random_scene

TRIES = 200


@dataclass(frozen=True)
class Composition:
    """A request about the pictures of `scenes`, the last of which is changed into `scene`."""

    scenes: tuple[Scene, ...]
    ask: str
    answer: str
    scene: Scene


def put_thing(rng: random.Random, pool: Pool) -> Composition:
    """A thing of picture 1 is put into picture 2."""
    return _put_things(rng, pool, 1)


def give_colours(rng: random.Random, pool: Pool) -> Composition:
    """A thing of picture 2 gets the colours that the same kind of thing has in picture 1."""
    for _ in range(TRIES):
        source = random_scene(rng, list(pool.kinds), pool.held)
        number = rng.randrange(len(source.things))
        thing = source.things[number]
        other = make_thing(str(thing.kind), random_colours(str(thing.kind), rng, held=pool.held))
        changed = [index for index, part in enumerate(thing.parts) if part.colour != _colours(other)[str(part.name)]]
        if not changed or not is_unique(source, number):
            continue
        after = source
        for index in changed:
            after = recolour_part(after, number, index, _colours(other)[str(thing.parts[index].name)])
        answer = " ".join(words.part_sentence(after.things[number], index) for index in changed)
        ask = _phrase(rng, "colours", the=f"the {thing.kind}", first="1", last="2")
        return Composition((Scene(rng.choice(BACKGROUNDS), (other,)), source), ask, answer, after)
    raise ValueError("No thing of these kinds can have other colours; choose other kinds.")


def compose_three(rng: random.Random, pool: Pool) -> Composition:
    """The things of pictures 1 and 2 are put into picture 3, or the thing of picture 1 in the colours of picture 2."""
    return _put_things(rng, pool, 2) if rng.random() < 0.5 else _put_coloured(rng, pool)


def follow_example(rng: random.Random, pool: Pool) -> Composition:
    """What was done from picture 1 to picture 2 is done to picture 3; no words say what."""
    for _ in range(TRIES):
        before = random_scene(rng, list(pool.kinds), pool.held)
        edit = random_edit(rng, pool, before, (rng.choice(list(OPERATIONS)),))
        other = random_scene(rng, list(pool.kinds), pool.held)
        number, kind = rng.randrange(len(other.things)), str(rng.choice(before.things).kind)
        old = other.things[number]
        alike = make_thing(kind, random_colours(kind, rng, held=pool.held), scale=old.scale, side=old.side, level=old.level)
        other = other.with_thing(number, alike)
        done = _repeat_change(before, edit.scene, other) if is_clear_of_others(other, alike, ignore=number) else None
        if done:
            return Composition((before, edit.scene, other), _phrase(rng, "example"), *done)
    raise ValueError("No change of these kinds can be done to two scenes; choose other kinds.")


def keep_thing(rng: random.Random, pool: Pool) -> Composition:
    """One thing of a picture stays where it is; everything else becomes another scene."""
    for _ in range(TRIES):
        before = random_scene(rng, list(pool.kinds), pool.held)
        number = rng.randrange(len(before.things))
        kept, present = before.things[number], {thing.kind for thing in before.things}
        others = [kind for kind in pool.kinds if kind not in present]
        count = min(rng.choices((0, 1, 2), (0.3, 0.45, 0.25))[0], len(others))
        new = [make_thing(kind, random_colours(kind, rng, held=pool.held)) for kind in rng.sample(others, count)]
        background = rng.choice([each for each in BACKGROUNDS if each != before.background])
        placed = _place_things(rng, Scene(background, (kept,)), new)
        if not is_unique(before, number) or len(placed) < count:
            continue
        after = Scene(background, (kept, *placed))
        return Composition((before,), _phrase(rng, "approved", the=f"the {kept.kind}"), words.picture_sentence(after), after)
    raise ValueError("No thing of these kinds can stay while the rest changes; choose other kinds.")


def _put_things(rng: random.Random, pool: Pool, count: int) -> Composition:
    """One thing of each of the first `count` pictures is put into the last."""
    for _ in range(TRIES):
        source = random_scene(rng, list(pool.kinds), pool.held)
        present = {thing.kind for thing in source.things}
        kinds = [kind for kind in pool.kinds if kind not in present]
        chosen = rng.sample(kinds, count) if len(kinds) >= count else []
        donors = [make_thing(kind, random_colours(kind, rng, held=pool.held)) for kind in chosen]
        placed = _place_things(rng, source, donors)
        if not placed:
            continue
        last = str(count + 1)
        named = words.join_list([f"the {thing.kind} of picture {number}" for number, thing in enumerate(placed, 1)])
        where = {"where": placing_phrase(placed[0], rng)} if count == 1 and rng.random() < 0.4 else {}
        ask = _phrase(rng, "put_at" if where else "put", things=named, last=last, **where)
        scenes = [Scene(rng.choice(BACKGROUNDS), (thing,)) for thing in donors]
        return _addition((*scenes, source), ask, placed)
    raise ValueError("No things of these kinds fit beside each other; choose other kinds.")


def _put_coloured(rng: random.Random, pool: Pool) -> Composition:
    """The thing of picture 1 is put into picture 3 in the colours of picture 2."""
    for _ in range(TRIES):
        source, kind = random_scene(rng, list(pool.kinds), pool.held), rng.choice(pool.kinds)
        plain, coloured = (make_thing(kind, random_colours(kind, rng, held=pool.held)) for _ in range(2))
        placed = _place_things(rng, source, [coloured])
        if plain == coloured or not placed:
            continue
        ask = _phrase(rng, "coloured", the=f"the {kind}", first="1", other="2", last="3")
        scenes = [Scene(rng.choice(BACKGROUNDS), (thing,)) for thing in (plain, coloured)]
        return _addition((*scenes, source), ask, placed)
    raise ValueError("No things of these kinds fit beside each other; choose other kinds.")


def _place_things(rng: random.Random, scene: Scene, things: Sequence[Thing]) -> list[Thing]:
    """The things, small, at free places of a scene, one after the other; empty where one of them has none."""
    placed: list[Thing] = []
    for thing in things:
        free = find_spot(rng, replace(scene, things=(*scene.things, *placed)), replace(thing, scale="small"))
        if free is None or len(scene.things) + len(placed) >= 3:
            return []
        placed.append(free)
    return placed


def _addition(scenes: tuple[Scene, ...], ask: str, placed: Sequence[Thing]) -> Composition:
    answer = " ".join(map(words.addition_sentence, placed))
    return Composition(scenes, ask, answer, replace(scenes[-1], things=(*scenes[-1].things, *placed)))


def _repeat_change(before: Scene, after: Scene, other: Scene) -> tuple[str, Scene] | None:
    """The answer and the scene that the change from `before` to `after` makes of `other`; `None` where it cannot be done to it."""
    if before.background != after.background:
        done = replace(other, background=after.background)
        return (words.background_sentence(done), done) if done != other else None
    if len(after.things) > len(before.things):
        thing = after.things[-1]
        known = thing.kind is None or thing.kind in [each.kind for each in other.things]
        free = len(other.things) < 3 and not known and is_clear_of_others(other, thing)
        return (words.addition_sentence(thing), add_thing(other, thing)) if free else None
    at = next((at for at, (one, two) in enumerate(zip(before.things, after.things, strict=False)) if one != two), len(before.things) - 1)
    number = next((number for number, each in enumerate(other.things) if each.kind == before.things[at].kind), None)
    if number is None or before.things[at].kind is None or not is_unique(other, number):
        return None
    if len(after.things) < len(before.things):
        thing = other.things[number]
        return (words.removal_sentence(thing), remove_thing(other, number)) if len(other.things) > 1 else None
    return _repeat_for_thing(before.things[at], after.things[at], other, number)


def _repeat_for_thing(before: Thing, after: Thing, other: Scene, number: int) -> tuple[str, Scene] | None:
    """As `_repeat_change`, for a change of one thing, which is done to thing `number` of `other`."""
    thing, old, new = other.things[number], _colours(before), _colours(after)
    if old == new:
        spot = {name: getattr(after, name) for name in ("scale", "side", "level") if getattr(after, name) != getattr(before, name)}
        moved = place_thing(other, number, **spot)
        if moved == other or not is_clear_of_others(other, moved.things[number], ignore=number):
            return None
        return words.move_sentence(thing, moved.things[number]), moved
    names = [str(part.name) for part in thing.parts]
    name = next(name for name in (*new, *old) if new.get(name) != old.get(name))
    if name not in new:
        index = names.index(name) if name in names else -1
        if index not in loose_parts(thing):
            return None
        return words.removal_sentence(thing, index), other.with_thing(number, remove_part(thing, index))
    if name in old and name in names:
        index = names.index(name)
        done = recolour_part(other, number, index, new[name])
        return (words.recolour_sentence(thing, index, new[name]), done) if done != other else None
    return None if name in names else _repeat_part(other, number, name, new[name])


def _repeat_part(other: Scene, number: int, name: str, colour: str) -> tuple[str, Scene] | None:
    try:
        thing = add_part(other.things[number], name, colour)
    except ValueError:
        return None
    return words.part_sentence(thing, len(thing.parts) - 1), other.with_thing(number, thing)


def _colours(thing: Thing) -> dict[str, str]:
    """The colours of a thing by part."""
    return {str(part.name): part.colour for part in thing.parts}


def _phrase(rng: random.Random, key: str, **fields: str) -> str:
    return fill_template(rng.choice(phrases("compose")[key]), **fields)
