"""Make random edits of a scene with the user's request and the answer: recolour, add, remove, move, resize, background."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from duogen.sketchbook import words
from duogen.sketchbook.change import add_part, add_thing, loose_parts, place_thing, recolour_part, remove_part, remove_thing
from duogen.sketchbook.phrases import background_phrase, fill_template, phrases, placing_phrase, shape_name, shapes_phrase, thing_phrase
from duogen.sketchbook.scene import BACKGROUNDS, COLOURS, LEVELS, SIDES, Part, Scene, Thing, extent, fits_canvas
from duogen.sketchbook.world import HELD_OUT_KINDS, entry_of, is_held_out_colour, make_thing, random_colours, random_composition, things

OVERLAP = 0.1  # the share of a thing that another may cover
PRONOUN = 0.35  # of the requests about the only thing of a picture: it is called "it"


@dataclass(frozen=True)
class Pool:
    """The things that a conversation may show.

    Attributes:
        kinds: kinds of things.
        held: whether held-out combinations are used; else they are avoided.
        shapes: whether unnamed compositions may appear.
    """

    kinds: tuple[str, ...]
    held: bool = False
    shapes: bool = True


@dataclass(frozen=True)
class Edit:
    """An edit: the user's request, the assistant's sentence and the new scene."""

    ask: str
    answer: str
    scene: Scene


def random_edit(rng: random.Random, pool: Pool, scene: Scene, only: tuple[str, ...] = ()) -> Edit:
    """Make one edit that fits `scene`, by one of the operations `only` if given and possible."""
    operations = list(only or OPERATIONS)
    while operations:
        chosen = rng.choices(operations, [WEIGHTS[name] for name in operations])[0]
        edit = OPERATIONS[chosen](rng, pool, scene)
        if edit is not None:
            return edit
        operations.remove(chosen)
    return _set_background(rng, pool, scene)


def pick_phrase(rng: random.Random, key: str) -> str:
    """Pick a phrasing of an edit."""
    return rng.choice(phrases("edit")[key])


def is_unique(scene: Scene, number: int) -> bool:
    """Whether the name of thing `number` ("the house", "the red circle") is unambiguous."""
    thing = scene.things[number]
    if thing.kind is not None:
        return sum(other.kind == thing.kind for other in scene.things) == 1
    shapes = [(part.shape, part.colour) for other in scene.things if other.kind is None for part in other.parts]
    return len(set(shapes)) == len(shapes)


def part_phrase(scene: Scene, number: int, index: int, rng: random.Random) -> str:
    """The user's words for a part, without an article: "door", "door of the house", "red star"."""
    thing = scene.things[number]
    if thing.kind is None:
        return shape_name(replace(thing, parts=unnamed_parts(scene, first=number)), index, rng)[4:]
    name = thing.parts[index].name
    shared = sum(part.name == name for other in scene.things for part in other.parts) > 1
    if shared or rng.random() < 0.1:
        return rng.choice(("{name} of the {kind}", "{kind}'s {name}")).format(name=name, kind=thing.kind)
    return str(name)


def unnamed_parts(scene: Scene, first: int) -> tuple[Part, ...]:
    """The parts of all unnamed things, those of thing number `first` before the others."""
    others = [thing for number, thing in enumerate(scene.things) if thing.kind is None and number != first]
    return scene.things[first].parts + tuple(part for thing in others for part in thing.parts)


def thing_name(scene: Scene, number: int, rng: random.Random) -> str:
    """The user's words for a whole thing: "the tree", "the red circle"."""
    thing = scene.things[number]
    return f"the {thing.kind}" if thing.kind else f"the {part_phrase(scene, number, 0, rng)}"


def refer_to_thing(scene: Scene, number: int, rng: random.Random) -> str:
    """The user's words for a whole thing, or for the only one now and then "it"."""
    if len(scene.things) == 1 and not words.is_many(scene.things[0]) and rng.random() < PRONOUN:
        return "it"
    return thing_name(scene, number, rng)


def is_clear_of_others(scene: Scene, thing: Thing, ignore: int | None = None) -> bool:
    """Whether `thing` fits the canvas and covers at most `OVERLAP` of the other things of the scene."""
    others = [other for number, other in enumerate(scene.things) if number != ignore]
    return fits_canvas(thing) and all(_covered_share(thing, other) <= OVERLAP for other in others)


def find_spot(rng: random.Random, scene: Scene, thing: Thing | None) -> Thing | None:
    """The thing at a free place of the scene; `None` where it has none, or there is no thing."""
    levels = ["sky", "ground"] if thing is not None and rng.random() < (0.9 if thing.kind == "sun" else 0.3) else ["ground", "sky"]
    spots = [{"side": side, "level": level} for level in levels for side in rng.sample(SIDES, 3)]
    return next((found for spot in spots if thing is not None and is_clear_of_others(scene, found := replace(thing, **spot))), None)


def _covered_share(one: Thing, other: Thing) -> float:
    a, b = extent(one), extent(other)
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0.0, width) * max(0.0, height) / smaller


def _pick_editable(rng: random.Random, scene: Scene, test: Callable[[Thing], bool] = lambda thing: True) -> int | None:
    numbers = [number for number, thing in enumerate(scene.things) if is_unique(scene, number) and test(thing)]
    return rng.choice(numbers) if numbers else None


def _is_one(thing: Thing) -> bool:
    """Whether the thing has one name: it is of a kind or a single shape."""
    return thing.kind is not None or len(thing.parts) == 1


def _recolour(rng: random.Random, pool: Pool, scene: Scene) -> Edit | None:
    number = _pick_editable(rng, scene)
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
    fields = {"part": part_phrase(scene, number, index, rng), "colour": colour, "the": refer_to_thing(scene, number, rng)}
    key = "recolour"
    if thing.kind:
        fields |= {"coloured": words.coloured_words(part), "plain": thing.kind}
        one_eighth = rng.random() < 0.12
        as_whole = index == main and things()[thing.kind].family == "draw" and rng.random() < 0.5
        key = "recolour_thing" if as_whole and not words.is_many(thing) else "recolour_named" if one_eighth else key
    after = recolour_part(scene, number, index, colour)
    return Edit(fill_template(pick_phrase(rng, key), **fields), words.recolour_sentence(thing, index, colour), after)


def _other_colours(pool: Pool, scene: Scene, number: int, index: int) -> list[str]:
    thing = scene.things[number]
    part = thing.parts[index]
    near = {part.colour}
    if part.of is not None:
        near.add(thing.parts[part.of].colour)
    near |= {other.colour for other in thing.parts if other.of == index}
    if thing.kind is None:
        alike = {other.colour for other in unnamed_parts(scene, number) if other.shape == part.shape}
        return [colour for colour in COLOURS if colour not in near | alike]
    entry = next(entry for entry in things()[thing.kind].parts if entry.name == part.name)
    free = pool.held or thing.kind in HELD_OUT_KINDS
    allowed = [colour for colour in entry.colours if free or not is_held_out_colour(thing.kind, entry.name, colour)]
    return [colour for colour in allowed if colour not in near]


def _add(rng: random.Random, pool: Pool, scene: Scene) -> Edit | None:
    if len(scene.things) >= 3:
        return None
    thing = _make_new_thing(rng, pool, scene)
    thing = find_spot(rng, scene, thing)
    if thing is None:
        return None
    if thing.kind:
        named = [index for index in range(len(thing.parts)) if rng.random() < 0.12 and words.can_be_named(thing, index)]
        fields = {"a": thing_phrase(thing, named, (), rng)}
    else:
        fields = {"a": shapes_phrase(thing, rng)}
    if rng.random() < 0.55:
        ask = fill_template(pick_phrase(rng, "add_at"), where=placing_phrase(thing, rng), **fields)
    else:
        ask = fill_template(pick_phrase(rng, "add"), **fields)
    return Edit(ask, words.addition_sentence(thing), add_thing(scene, thing))


def _make_new_thing(rng: random.Random, pool: Pool, scene: Scene) -> Thing | None:
    """Make a small thing whose name differs from those in the scene."""
    present = {thing.kind for thing in scene.things}
    if pool.shapes and (None in present or rng.random() < 0.15):
        thing = random_composition(rng, most=1, scale="small")
        trial = add_thing(scene, thing)
        if is_unique(trial, len(trial.things) - 1):
            return thing
    kinds = [kind for kind in pool.kinds if kind not in present]
    if not kinds:
        return None
    kind = "sun" if "sun" in kinds and rng.random() < 0.15 else rng.choice(kinds)
    return make_thing(kind, random_colours(kind, rng, held=pool.held), scale="small")


def _add_part(rng: random.Random, pool: Pool, scene: Scene) -> Edit | None:
    number = _pick_editable(rng, scene, lambda thing: thing.kind is not None and bool(_missing_parts(thing)))
    if number is None:
        return None
    thing = scene.things[number]
    name = rng.choice(_missing_parts(thing))
    colour = random_colours(str(thing.kind), rng, held=pool.held)[name]
    after = add_part(thing, name, colour)
    coloured = rng.random() < 0.6
    fields = {"part": words.coloured_words(after.parts[-1]) if coloured else words.name_with_article(name), "the": f"the {thing.kind}"}
    ask = fill_template(pick_phrase(rng, "part"), **fields)
    return Edit(ask, words.part_sentence(after, len(after.parts) - 1), scene.with_thing(number, after))


def _missing_parts(thing: Thing) -> list[str]:
    """The parts of its kind that the thing lacks and that have a part to stand on."""
    entry = entry_of(thing)
    present = {part.name for part in thing.parts}
    return [p.name for p in entry.parts if p.name not in present and p.of is not None and entry.parts[p.of].name in present]


def _remove(rng: random.Random, pool: Pool, scene: Scene) -> Edit | None:
    whole = len(scene.things) > 1 and rng.random() < 0.6
    number = _pick_editable(rng, scene, _is_one if whole else lambda thing: bool(loose_parts(thing)))
    if number is None:
        return None
    thing = scene.things[number]
    if whole:
        name = thing_name(scene, number, rng)
        ask = fill_template(pick_phrase(rng, "remove"), the=name, plain=name[4:])
        return Edit(ask, words.removal_sentence(thing), remove_thing(scene, number))
    index = rng.choice(loose_parts(thing))
    name = part_phrase(scene, number, index, rng)
    ask = fill_template(pick_phrase(rng, "remove"), the=f"the {name}", plain=name)
    return Edit(ask, words.removal_sentence(thing, index), scene.with_thing(number, remove_part(thing, index)))


def _move(rng: random.Random, pool: Pool, scene: Scene) -> Edit | None:
    number = _pick_editable(rng, scene, _is_one)
    if number is None:
        return None
    thing = scene.things[number]
    spots = [(side, {"side": side}) for side in SIDES if side != thing.side]
    spots += [(level, {"level": level}) for level in LEVELS if level != thing.level]
    spots = [(to, spot) for to, spot in spots if is_clear_of_others(scene, replace(thing, **spot), ignore=number)]
    if not spots:
        return None
    to, spot = rng.choice(spots)
    ask = fill_template(pick_phrase(rng, "move"), the=refer_to_thing(scene, number, rng), to=rng.choice(phrases("edit")["to"][to]))
    after = place_thing(scene, number, **spot)
    return Edit(ask, words.move_sentence(thing, after.things[number]), after)


def _resize(rng: random.Random, pool: Pool, scene: Scene) -> Edit | None:
    number = _pick_editable(rng, scene, _is_one)
    if number is None:
        return None
    thing = scene.things[number]
    scale = "small" if thing.scale == "big" else "big"
    resized = replace(thing, scale=scale)
    if not is_clear_of_others(scene, resized, ignore=number):
        return None
    plain = thing_name(scene, number, rng)[4:]
    ask = fill_template(pick_phrase(rng, "smaller" if scale == "small" else "bigger"), the=refer_to_thing(scene, number, rng), plain=plain)
    if words.is_many(thing):
        ask = ask.replace("a smaller", "smaller").replace("a bigger", "bigger").replace(" is too", " are too")
    return Edit(ask, words.move_sentence(thing, resized), scene.with_thing(number, resized))


def _set_background(rng: random.Random, pool: Pool, scene: Scene) -> Edit:
    after = replace(scene, background=rng.choice([name for name in BACKGROUNDS if name != scene.background]))
    if rng.random() < 0.45:
        ask = rng.choice(phrases("edit")["background_direct"][after.background])
    else:
        ask = fill_template(pick_phrase(rng, "background"), bg=background_phrase(after, rng))
    return Edit(ask, words.background_sentence(after), after)


OPERATIONS = {
    "recolour": _recolour, "add": _add, "part": _add_part, "remove": _remove, "move": _move, "resize": _resize,
    "background": _set_background,
}  # fmt: skip
WEIGHTS = {"recolour": 0.32, "add": 0.2, "part": 0.06, "remove": 0.14, "move": 0.1, "resize": 0.09, "background": 0.14}
