"""Edits of a scene as a person wishes them and as the assistant answers: recolour, add, remove, move, resize, background."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from duogen.sketchbook import words
from duogen.sketchbook.change import added, loose_parts, placed, recoloured, with_part, without_part, without_thing
from duogen.sketchbook.phrases import background_wish, filled, phrases, placing_wish, shape_name, shapes_wish, thing_wish
from duogen.sketchbook.scene import BACKGROUNDS, COLOURS, LEVELS, SIDES, Part, Scene, Thing, extent, fits
from duogen.sketchbook.world import HELD_OUT_KINDS, held_out_colour, make_thing, random_colours, random_composition, things

OVERLAP = 0.1  # the share of a thing that another may cover


@dataclass(frozen=True)
class Pool:
    """What a conversation may draw from.

    Attributes:
        kinds: kinds of things it may show.
        held: whether held-out combinations are wanted; else they are kept out.
        shapes: whether unnamed compositions may appear.
    """

    kinds: tuple[str, ...]
    held: bool = False
    shapes: bool = True


@dataclass(frozen=True)
class Edit:
    """A wish in the user's words, the assistant's sentence and the scene it leads to."""

    ask: str
    answer: str
    scene: Scene


def random_edit(rng: random.Random, pool: Pool, scene: Scene, only: tuple[str, ...] = ()) -> Edit:
    """One edit that makes sense for `scene`; of the operations `only`, if given and possible."""
    operations = list(only or OPERATIONS)
    while operations:
        chosen = rng.choices(operations, [WEIGHTS[name] for name in operations])[0]
        edit = OPERATIONS[chosen](rng, pool, scene)
        if edit is not None:
            return edit
        operations.remove(chosen)
    return _background(rng, pool, scene)


def pick(rng: random.Random, key: str) -> str:
    return rng.choice(phrases("edit")[key])


def one_of_a_kind(scene: Scene, number: int) -> bool:
    """Whether "the house" or "the red circle" can only mean thing `number`."""
    thing = scene.things[number]
    if thing.kind is not None:
        return sum(other.kind == thing.kind for other in scene.things) == 1
    shapes = [(part.shape, part.colour) for other in scene.things if other.kind is None for part in other.parts]
    return len(set(shapes)) == len(shapes)


def part_wish(scene: Scene, number: int, index: int, rng: random.Random) -> str:
    """How a person names a part, without its article: "door", "door of the house", "red star"."""
    thing = scene.things[number]
    if thing.kind is None:
        return shape_name(replace(thing, parts=shapes_of(scene, first=number)), index, rng)[4:]
    name = thing.parts[index].name
    shared = sum(part.name == name for other in scene.things for part in other.parts) > 1
    if shared or rng.random() < 0.1:
        return rng.choice(("{name} of the {kind}", "{kind}'s {name}")).format(name=name, kind=thing.kind)
    return str(name)


def shapes_of(scene: Scene, first: int) -> tuple[Part, ...]:
    """The parts of all unnamed things, those of thing number `first` before the others."""
    others = [thing for number, thing in enumerate(scene.things) if thing.kind is None and number != first]
    return scene.things[first].parts + tuple(part for thing in others for part in thing.parts)


def whole_name(scene: Scene, number: int, rng: random.Random) -> str:
    """What a person calls a whole thing: "the tree", "the red circle"."""
    thing = scene.things[number]
    return f"the {thing.kind}" if thing.kind else f"the {part_wish(scene, number, 0, rng)}"


def apart(scene: Scene, thing: Thing, ignore: int | None = None) -> bool:
    """Whether `thing` fits the canvas and hardly covers the other things of the scene."""
    others = [other for number, other in enumerate(scene.things) if number != ignore]
    return fits(thing) and all(_covered(thing, other) <= OVERLAP for other in others)


def _covered(one: Thing, other: Thing) -> float:
    a, b = extent(one), extent(other)
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0.0, width) * max(0.0, height) / smaller


def _editable(rng: random.Random, scene: Scene, test: Callable[[Thing], bool] = lambda thing: True) -> int | None:
    numbers = [number for number, thing in enumerate(scene.things) if one_of_a_kind(scene, number) and test(thing)]
    return rng.choice(numbers) if numbers else None


def _whole(thing: Thing) -> bool:
    """Whether a person can speak of the thing as one: a kind, or a single shape."""
    return thing.kind is not None or len(thing.parts) == 1


def _recolour(rng: random.Random, pool: Pool, scene: Scene) -> Edit | None:
    number = _editable(rng, scene)
    if number is None:
        return None
    thing = scene.things[number]
    main = words.main_part(thing)
    index = main if rng.random() < 0.25 else rng.randrange(len(thing.parts))
    colours = _other_colours(pool, scene, number, index)
    if not colours:
        return None
    colour = rng.choice(colours)
    part = replace(thing.parts[index], colour=colour)
    fields = {"part": part_wish(scene, number, index, rng), "colour": colour, "the": whole_name(scene, number, rng)}
    key = "recolour"
    if thing.kind:
        fields |= {"coloured": words.coloured_words(part), "plain": thing.kind}
        one_eighth = rng.random() < 0.12
        as_whole = index == main and things()[thing.kind].family == "draw" and rng.random() < 0.5
        key = "recolour_thing" if as_whole and not words.is_many(thing) else "recolour_named" if one_eighth else key
    after = recoloured(scene, number, index, colour)
    return Edit(filled(pick(rng, key), **fields), words.recolour_sentence(thing, index, colour), after)


def _other_colours(pool: Pool, scene: Scene, number: int, index: int) -> list[str]:
    thing = scene.things[number]
    part = thing.parts[index]
    near = {part.colour}
    if part.of is not None:
        near.add(thing.parts[part.of].colour)
    near |= {other.colour for other in thing.parts if other.of == index}
    if thing.kind is None:
        alike = {other.colour for other in shapes_of(scene, number) if other.shape == part.shape}
        return [colour for colour in COLOURS if colour not in near | alike]
    entry = next(entry for entry in things()[thing.kind].parts if entry.name == part.name)
    free = pool.held or thing.kind in HELD_OUT_KINDS
    allowed = [colour for colour in entry.colours if free or not held_out_colour(thing.kind, entry.name, colour)]
    return [colour for colour in allowed if colour not in near]


def _add(rng: random.Random, pool: Pool, scene: Scene) -> Edit | None:
    if len(scene.things) >= 3:
        return None
    thing = _new_thing(rng, pool, scene)
    levels = ["sky", "ground"] if thing is not None and rng.random() < (0.9 if thing.kind == "sun" else 0.3) else ["ground", "sky"]
    spots = [{"side": side, "level": level} for level in levels for side in rng.sample(SIDES, 3)]
    free = next((found for spot in spots if thing is not None and apart(scene, found := replace(thing, **spot))), None)
    if free is None:
        return None
    thing = free
    if thing.kind:
        named = [index for index in range(len(thing.parts)) if rng.random() < 0.12 and words.may_be_named(thing, index)]
        fields = {"a": thing_wish(thing, named, (), rng)}
    else:
        fields = {"a": shapes_wish(thing, rng)}
    if rng.random() < 0.55:
        ask = filled(pick(rng, "add_at"), where=placing_wish(thing, rng), **fields)
    else:
        ask = filled(pick(rng, "add"), **fields)
    return Edit(ask, words.added_sentence(thing), added(scene, thing))


def _new_thing(rng: random.Random, pool: Pool, scene: Scene) -> Thing | None:
    """A small thing that cannot be confused with those that are there."""
    present = {thing.kind for thing in scene.things}
    if pool.shapes and (None in present or rng.random() < 0.15):
        thing = random_composition(rng, most=1, scale="small")
        trial = added(scene, thing)
        if one_of_a_kind(trial, len(trial.things) - 1):
            return thing
    kinds = [kind for kind in pool.kinds if kind not in present]
    if not kinds:
        return None
    kind = "sun" if "sun" in kinds and rng.random() < 0.15 else rng.choice(kinds)
    return make_thing(kind, random_colours(kind, rng, held=pool.held), scale="small")


def _add_part(rng: random.Random, pool: Pool, scene: Scene) -> Edit | None:
    number = _editable(rng, scene, lambda thing: thing.kind is not None and bool(_missing(thing)))
    if number is None:
        return None
    thing = scene.things[number]
    name = rng.choice(_missing(thing))
    colour = random_colours(str(thing.kind), rng, held=pool.held)[name]
    after = with_part(thing, name, colour)
    coloured = rng.random() < 0.6
    fields = {"part": words.coloured_words(after.parts[-1]) if coloured else words.name_with_article(name), "the": f"the {thing.kind}"}
    return Edit(filled(pick(rng, "part"), **fields), words.part_sentence(after, len(after.parts) - 1), scene.with_thing(number, after))


def _missing(thing: Thing) -> list[str]:
    """Parts of the kind that the thing lacks and that have something to stand on."""
    entry = things()[thing.kind]
    present = {part.name for part in thing.parts}
    return [p.name for p in entry.parts if p.name not in present and p.of is not None and entry.parts[p.of].name in present]


def _remove(rng: random.Random, pool: Pool, scene: Scene) -> Edit | None:
    whole = len(scene.things) > 1 and rng.random() < 0.6
    number = _editable(rng, scene, _whole if whole else lambda thing: bool(loose_parts(thing)))
    if number is None:
        return None
    thing = scene.things[number]
    if whole:
        name = whole_name(scene, number, rng)
        ask = filled(pick(rng, "remove"), the=name, plain=name[4:])
        return Edit(ask, words.removed_sentence(thing), without_thing(scene, number))
    index = rng.choice(loose_parts(thing))
    name = part_wish(scene, number, index, rng)
    ask = filled(pick(rng, "remove"), the=f"the {name}", plain=name)
    return Edit(ask, words.removed_sentence(thing, index), scene.with_thing(number, without_part(thing, index)))


def _move(rng: random.Random, pool: Pool, scene: Scene) -> Edit | None:
    number = _editable(rng, scene, _whole)
    if number is None:
        return None
    thing = scene.things[number]
    spots = [(side, {"side": side}) for side in SIDES if side != thing.side]
    spots += [(level, {"level": level}) for level in LEVELS if level != thing.level]
    spots = [(to, spot) for to, spot in spots if apart(scene, replace(thing, **spot), ignore=number)]
    if not spots:
        return None
    to, spot = rng.choice(spots)
    ask = filled(pick(rng, "move"), the=whole_name(scene, number, rng), to=rng.choice(phrases("edit")["to"][to]))
    after = placed(scene, number, **spot)
    return Edit(ask, words.moved_sentence(after.things[number]), after)


def _resize(rng: random.Random, pool: Pool, scene: Scene) -> Edit | None:
    number = _editable(rng, scene, _whole)
    if number is None:
        return None
    thing = scene.things[number]
    scale = "small" if thing.scale == "big" else "big"
    resized = replace(thing, scale=scale)
    if not apart(scene, resized, ignore=number):
        return None
    name = whole_name(scene, number, rng)
    ask = filled(pick(rng, "smaller" if scale == "small" else "bigger"), the=name, plain=name[4:])
    if words.is_many(thing):
        ask = ask.replace("a smaller", "smaller").replace("a bigger", "bigger").replace(" is too", " are too")
    return Edit(ask, words.moved_sentence(resized), scene.with_thing(number, resized))


def _background(rng: random.Random, pool: Pool, scene: Scene) -> Edit:
    after = replace(scene, background=rng.choice([name for name in BACKGROUNDS if name != scene.background]))
    if rng.random() < 0.45:
        ask = rng.choice(phrases("edit")["background_direct"][after.background])
    else:
        ask = filled(pick(rng, "background"), bg=background_wish(after, rng))
    return Edit(ask, words.background_sentence(after), after)


OPERATIONS = {
    "recolour": _recolour, "add": _add, "part": _add_part, "remove": _remove, "move": _move, "resize": _resize,
    "background": _background,
}  # fmt: skip
WEIGHTS = {"recolour": 0.32, "add": 0.2, "part": 0.06, "remove": 0.14, "move": 0.1, "resize": 0.09, "background": 0.14}
