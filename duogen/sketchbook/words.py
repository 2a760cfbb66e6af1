"""The assistant's words for scenes: one sentence for each step, picture or edit.

Users write freely. The assistant writes this small regular language, so the words determine the picture and can be read back
(`read.py`).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from duogen.sketchbook.scene import PAIRED, PLACES, SIZES, Part, Scene, Thing
from duogen.sketchbook.world import entry_of, things

BACKGROUND_WORDS = {"meadow": "on a sunny meadow", "night": "at night", "paper": "on plain paper", "sea": "by the sea"}
SIDE_WORDS = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
LEVEL_WORDS = {"ground": "on the ground", "sky": "up in the sky"}
SCALE_WORDS = {"small": "half as big", "big": "twice as big"}
PLACING_WORDS = {"side": SIDE_WORDS, "level": LEVEL_WORDS, "scale": SCALE_WORDS}  # of a `Thing`, by the name of the field
MASS = frozenset({"basil", "butter", "cheese", "dough", "ham", "ice cream", "juice", "lettuce", "salami", "sauce", "smoke"})
VERBS = ("Add", "Now add", "Put", "Draw", "Then draw")


def shape_words(part: Part) -> str:
    """ "a big red circle", "two tiny white hearts"."""
    words = f"{part.size} {part.colour} {part.shape}"
    return f"two {words}s" if part.place in PAIRED else f"a {words}"


def anchor_words(thing: Thing, index: int) -> str:
    """The name of part `index` in later words: its name, or its colour and shape when it has none."""
    part = thing.parts[index]
    if part.name:
        return f"the {part.name}"
    plural = "s" if part.place in PAIRED else ""
    return f"the {part.colour} {part.shape}{plural}"


def place_words(thing: Thing, index: int) -> str:
    """The place of part `index`: "on top of the walls", "on the ground"."""
    part = thing.parts[index]
    return f"{part.place} {anchor_words(thing, part.of)}" if part.of is not None else part.stand or "on the ground"


def placing_words(thing: Thing) -> str:
    """The place of a thing on the canvas and its size; "" for a big one in the middle."""
    words = []
    if thing.side != "middle" or thing.scale == "small" or thing.level == "sky":
        words.append(SIDE_WORDS[thing.side])
    if thing.level == "sky":
        words.append(LEVEL_WORDS["sky"])
    if thing.scale == "small":
        words.append(SCALE_WORDS["small"])
    return ", ".join(words)


def step_sentence(scene: Scene, number: int, index: int, verb: str = "Add", *, background: bool = True) -> str:
    """The words of the step that draws part `index` of thing `number`.

    The part is named before its colour, with no other part between, so a model that writes or paints the colour has already read the
    part. The first step of a thing names its placing, and of the first thing the background: "On plain paper, draw the body: a big white
    circle on the ground."

    Args:
        background: whether the first step of the first thing names the background.
    """
    thing = scene.things[number]
    part = thing.parts[index]
    lead = step_lead(thing.kind, part.name)
    verb = verb if index else "Draw"
    what = f"{shape_words(part)} {place_words(thing, index)}"
    start = f"{lead or f'{verb} the {part.name}'}: {what}." if part.name else f"{verb} {what}."
    if index:
        return start
    ground = BACKGROUND_WORDS[scene.background] if background and not number else ""
    where = [words for words in (ground, placing_words(thing)) if words]
    return capitalise(", ".join([*where, start[0].lower() + start[1:]]))


def step_lead(kind: str | None, name: str | None) -> str | None:
    """The instruction of a step for things to make: "Put the patty on the bottom bun"; `None` for other things."""
    return next((part.lead for part in things()[kind].parts if part.name == name), None) if kind else None


def capitalise(words: str) -> str:
    """The words with a capital first letter, the rest as it is."""
    return words[:1].upper() + words[1:]


def thing_words(thing: Thing) -> str:
    """A whole thing in one phrase: "a house with walls in red and a door in blue", or its shapes if it has no name."""
    if thing.kind is None:
        return ", ".join(f"{shape_words(part)} {place_words(thing, index)}" for index, part in enumerate(thing.parts))
    return f"{things()[thing.kind].name_with_article()} with {join_list([part_words(part) for part in thing.parts])}"


def join_list(words: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def is_plural(name: str) -> bool:
    """Whether a part's name is a plural: "windows", but not "glass"."""
    return name.endswith("s") and not name.endswith("ss")


def add_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def name_with_article(name: str) -> str:
    """A part's name as something to have or not: "a door", "windows", "cheese"."""
    return name if is_plural(name) or name in MASS else add_article(name)


def coloured_words(part: Part) -> str:
    """A named part with its colour: "a blue door", "red walls"."""
    words = f"{part.colour} {part.name}"
    return words if _plural_part(part) or part.name in MASS else add_article(words)


def part_words(part: Part) -> str:
    """A named part and then its colour, so a model knows the part when it writes the colour: "a door in blue"."""
    return f"{part.name if _plural_part(part) else name_with_article(str(part.name))} in {part.colour}"


def _plural_part(part: Part) -> bool:
    return part.place in PAIRED or is_plural(part.name or "")


def main_part(thing: Thing) -> int:
    """The part that gives the whole thing its colour: the largest one ("a green tree" has green leaves)."""
    areas = [math.prod(SIZES[part.size]) * PLACES.get(part.place or "", 1) for part in thing.parts]
    return areas.index(max(areas))


def can_be_named(thing: Thing, index: int) -> bool:
    """Whether a request may name the colour of part `index`: it has a choice, and the part is no whole dish ("a brown burger")."""
    entry = entry_of(thing)
    colours = next(part.colours for part in entry.parts if part.name == thing.parts[index].name)
    return len(colours) > 1 and (entry.family == "draw" or index != main_part(thing))


def request_words(thing: Thing, named: Collection[int], missing: Collection[str] = ()) -> str:
    """A thing with the parts `named` only: "a red house with a blue door, without windows".

    The colour of the main part stands before the kind, as the colour of the whole thing.
    """
    main = main_part(thing)
    kind = f"{thing.parts[main].colour} {thing.kind}" if main in named else str(thing.kind)
    words = add_article(kind) if entry_of(thing).article else kind
    rest = [coloured_words(thing.parts[index]) for index in sorted(named) if index != main]
    words += f" with {join_list(rest)}" if rest else ""
    bare = [name_with_article(name) for name in missing]
    return words + (f"{',' if rest else ''} without {join_list(bare)}" if bare else "")


def opening_sentence(thing: Thing, named: Collection[int] = (), missing: Collection[str] = ()) -> str:
    """The first sentence of a guide, which says what kind of thing it is: "Let's draw a red house with a blue door." """
    if thing.kind is None:
        return "Let's draw it step by step."
    return f"Let's {things()[thing.kind].family} {request_words(thing, named, missing)}."


def picture_sentence(scene: Scene) -> str:
    """A whole picture in one sentence: "At night: on the left, half as big, a tree with a trunk in brown ...; on the right ..."."""
    phrases = []
    for thing in scene.things:
        placing = placing_words(thing)
        phrases.append(f"{placing}, {thing_words(thing)}" if placing else thing_words(thing))
    return capitalise(f"{BACKGROUND_WORDS[scene.background]}: " + "; ".join(phrases) + ".")


def recolour_sentence(before: Thing, index: int, colour: str) -> str:
    """Say that part `index` got a new colour: "Now the house has a door in blue.", "Now the red circle is blue." """
    if before.kind is None:
        return f"Now {anchor_words(before, index)} {'are' if before.parts[index].place in PAIRED else 'is'} {colour}."
    return part_sentence(replace(before, parts=(replace(before.parts[index], colour=colour),)), 0)


def part_sentence(after: Thing, index: int) -> str:
    """Say that part `index` was recoloured or added: "Now the house has a door in blue." """
    verb = "have" if is_many(after) else "has"
    return f"Now the {after.kind} {verb} {part_words(after.parts[index])}."


def background_sentence(scene: Scene) -> str:
    """ "Now the scene is set at night." """
    return f"Now the scene is set {BACKGROUND_WORDS[scene.background]}."


def move_sentence(before: Thing, after: Thing) -> str:
    """Say what changed of a thing's placing, and that alone: "Now the tree is on the left.", "Now the tree is half as big."

    What stays is seen in the picture before, so it need not be read off it and said again.
    """
    changed = [said[getattr(after, name)] for name, said in PLACING_WORDS.items() if getattr(before, name) != getattr(after, name)]
    return f"Now {name_words(after)} {_copula(after)} {', '.join(changed)}."


def addition_sentence(thing: Thing) -> str:
    """Say that a thing was added: "Now there is a sun with rays in yellow ..., on the left, up in the sky, half as big." """
    placing = placing_words(thing)
    return f"Now there {_copula(thing)} {thing_words(thing)}{', ' + placing if placing else ''}."


def removal_sentence(thing: Thing, index: int | None = None) -> str:
    """Say that a thing, or its part `index`, was removed."""
    if index is None:
        return f"Now {name_words(thing)} {_copula(thing)} gone."
    part = thing.parts[index]
    verb = "are" if _plural_part(part) else "is"
    if thing.kind is None:
        return f"Now {anchor_words(thing, index)} {verb} gone."
    return f"Now the {part.name} of {name_words(thing)} {verb} gone."


def name_words(thing: Thing) -> str:
    """The name of a whole thing: "the house", or of its first shape: "the red circle"."""
    return f"the {thing.kind}" if thing.kind else anchor_words(thing, 0)


def is_many(thing: Thing) -> bool:
    """Whether the thing's name is a plural: pancakes."""
    return thing.kind is not None and not things()[thing.kind].article


def _copula(thing: Thing) -> str:
    return "are" if is_many(thing) else "is"
