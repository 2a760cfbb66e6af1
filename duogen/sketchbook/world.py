"""The contents of the world: its things, its held-out combinations, and random scenes of both.

All things are defined in `things.json`. A new entry there adds a thing.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from duogen.paths import ASSETS
from duogen.sketchbook.scene import (
    BACKGROUNDS,
    COLOURS,
    PART_COLOURS,
    PLACES,
    SHAPE_SIZES,
    SHAPES,
    STANDS,
    Part,
    Scene,
    Thing,
    extent,
    fits_canvas,
)

THINGS_FILE = ASSETS / "sketchbook" / "things.json"
HELD_OUT_KINDS = frozenset({"mushroom", "truck", "owl", "sandwich"})
HELD_OUT_SHARE = 0.1
RELATIONS = ("to the left of", "to the right of", "above", "below")

Detail = tuple[str, tuple[float, float, float, float], str]


@dataclass(frozen=True)
class PartEntry:
    """A part in `things.json`: its shape is fixed, its colour is one of `colours`."""

    name: str
    shape: str
    size: str
    colours: tuple[str, ...]
    natural: tuple[str, ...]
    place: str | None = None
    of: int | None = None
    stand: str | None = None
    lead: str | None = None
    details: tuple[Detail, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A kind of thing: `family` is "draw" or "make"."""

    kind: str
    plural: str
    family: str
    article: str
    parts: tuple[PartEntry, ...]

    def name_with_article(self) -> str:
        """The kind with its article: "a house", "an umbrella", "pancakes"."""
        return f"{self.article} {self.kind}".strip()


@lru_cache(maxsize=1)
def things() -> dict[str, Entry]:
    """All entries of `things.json` by kind, in the file's order."""
    raw = json.loads(THINGS_FILE.read_text(encoding="utf-8"), object_pairs_hook=_refuse_double_names)
    return {kind: parse_entry(kind, fields) for kind, fields in raw.items()}


def _refuse_double_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError: a name stands in it twice, where JSON would keep the last one and say nothing."""
    names = [name for name, _ in pairs]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"things.json names {double!r} twice.")
    return dict(pairs)


def parse_entry(kind: str, fields: dict) -> Entry:
    """Parse one entry of `things.json`.

    Raises:
        ValueError: a part stands on a part that the thing lacks.
    """
    names = [part["name"] for part in fields["parts"]]
    for part in fields["parts"]:
        if "of" in part and part["of"] not in names:
            raise ValueError(f"The {part['name']} of the {kind} stands on {part['of']!r}, which the {kind} lacks.")
    parts = []
    for part in fields["parts"]:
        colours = tuple(part.get("colors", PART_COLOURS)) + tuple(part.get("extra", ()))
        parts.append(
            PartEntry(
                name=part["name"],
                shape=part["shape"],
                size=part["size"],
                colours=colours,
                natural=tuple(part.get("natural", ())),
                place=part.get("place"),
                of=names.index(part["of"]) if "of" in part else None,
                stand=part.get("stand"),
                lead=part.get("lead"),
                details=tuple((shape, tuple(box), colour) for shape, box, colour in part.get("details", ())),
            )
        )
    return Entry(kind, fields["plural"], fields["family"], fields.get("article", "a"), tuple(parts))


def entry_of(thing: Thing) -> Entry:
    """The entry of a thing's kind.

    Raises:
        ValueError: it has no kind.
    """
    if thing.kind is None:
        raise ValueError("Shapes without a name are of no kind.")
    return things()[thing.kind]


@lru_cache(maxsize=256)
def part_details(kind: str | None, part: str | None) -> tuple[Detail, ...]:
    """The small fixed details on a part; none for unnamed shapes."""
    if kind is None or part is None:
        return ()
    return next((entry.details for entry in things()[kind].parts if entry.name == part), ())


@lru_cache(maxsize=4096)
def is_held_out(*key: str) -> bool:
    """Whether a combination, (kind, part, colour) or (kind, kind, relation), belongs to the held-out split.

    The hash is the same on all machines and versions, so the split never changes.
    """
    digest = hashlib.sha256("/".join(key).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def is_held_out_colour(kind: str, part: str, colour: str) -> bool:
    """Whether training never shows this colour on this part. Parts of fewer than five colours have no held-out ones."""
    entry = next(entry for entry in things()[kind].parts if entry.name == part)
    return len(entry.colours) >= 5 and is_held_out(kind, part, colour)


def has_held_out(scene: Scene) -> bool:
    """Whether anything in the scene is held out: a kind, a coloured part, or a relation between two kinds."""
    for thing in scene.things:
        if thing.kind in HELD_OUT_KINDS:
            return True
        if thing.kind and any(part.name and is_held_out_colour(thing.kind, part.name, part.colour) for part in thing.parts):
            return True
    return any(is_held_out(*key) for key in scene_relations(scene))


def scene_relations(scene: Scene) -> list[tuple[str, str, str]]:
    """(kind, first kind, relation) of each thing to the first one, as a request would name it."""
    named = [(thing, thing.kind) for thing in scene.things if thing.kind is not None]
    if not 2 <= len(scene.things) == len(named):
        return []
    first, kind = named[0]
    return [(other_kind, kind, relation(other, first)) for other, other_kind in named[1:]]


def relation(one: Thing, other: Thing) -> str:
    """The place of `one` relative to `other`."""
    if one.level != other.level:
        return "above" if one.level == "sky" else "below"
    order = ("left", "middle", "right")
    return "to the left of" if order.index(one.side) < order.index(other.side) else "to the right of"


def make_thing(kind: str, colours: dict[str, str], **placing: str) -> Thing:
    """Make a thing of a known kind with the given part colours (every part must have one)."""
    parts = tuple(
        Part(part.shape, part.size, colours[part.name], part.name, part.place, part.of, part.stand) for part in things()[kind].parts
    )
    return Thing(kind, parts, **placing)


def random_colours(kind: str, rng: random.Random, natural: float = 0.4, held: bool = False) -> dict[str, str]:
    """A random colour for every part; with probability `natural` an expected one. Touching parts get different colours.

    Args:
        held: choose at least one held-out combination where the kind has any; else none.
    """
    entry = things()[kind]
    for attempt in range(40):
        colours: dict[str, str] = {}
        for part in entry.parts:
            allowed = [c for c in part.colours if held or kind in HELD_OUT_KINDS or not is_held_out_colour(kind, part.name, c)]
            if part.of is not None:
                below = colours[entry.parts[part.of].name]
                allowed = [c for c in allowed if c != below] or allowed
            expected = [c for c in part.natural if c in allowed]
            colours[part.name] = rng.choice(expected if expected and rng.random() < natural else allowed)
        if not held or any(is_held_out_colour(kind, name, colour) for name, colour in colours.items()) or attempt == 39:
            return colours
    raise AssertionError("unreachable")


def use_expected_colours(thing: Thing, named: Collection[int], rng: random.Random) -> Thing:
    """Recolour all parts but those in `named`, mostly in expected colours, so the colours that a request names stand out."""
    kind = str(thing.kind)
    expected = random_colours(kind, rng, natural=0.9)
    entries = {part.name: part for part in things()[kind].parts}
    parts: list[Part] = []
    for index, part in enumerate(thing.parts):
        if index not in named:
            name, below = str(part.name), parts[part.of].colour if part.of is not None else None
            known = [colour for colour in entries[name].colours if not is_held_out_colour(kind, name, colour)]
            free = [colour for colour in (expected[name], part.colour, *known) if colour != below]
            part = replace(part, colour=(free or [part.colour])[0])
        parts.append(part)
    return replace(thing, parts=tuple(parts))


def random_thing(rng: random.Random, kinds: list[str], held: bool = False, **placing: str) -> Thing:
    """A thing of one of `kinds` with random colours."""
    kind = rng.choice(kinds)
    return make_thing(kind, random_colours(kind, rng, held=held), **placing)


def kinds(split: str = "train", family: str | None = None) -> list[str]:
    """Kinds of a split ("train", "held-out-kinds" or "all"), of one family if given."""
    chosen = {
        "train": lambda kind: kind not in HELD_OUT_KINDS,
        "held-out-kinds": lambda kind: kind in HELD_OUT_KINDS,
        "all": lambda kind: True,
    }[split]
    return [entry.kind for entry in things().values() if chosen(entry.kind) and family in (None, entry.family)]


def random_composition(rng: random.Random, most: int = 4, **placing: str) -> Thing:
    """An unnamed composition of 1 to `most` plain shapes that fits the canvas; no two parts are alike in words."""
    while True:
        parts: list[Part] = []
        for index in range(rng.randint(1, most)):
            part = _random_part(rng, parts, index)
            if part is not None:
                parts.append(part)
        thing = Thing(None, tuple(parts), **placing)
        if fits_canvas(thing):
            return thing


def _random_part(rng: random.Random, earlier: list[Part], index: int) -> Part | None:
    shape = rng.choice(SHAPES)
    size, colour = rng.choice(SHAPE_SIZES[shape]), rng.choice(list(COLOURS))
    if index == 0:
        return Part(shape, size, colour, stand=rng.choice(list(STANDS)))
    anchor = rng.randrange(len(earlier))
    if any((part.shape, part.colour) == (shape, colour) for part in earlier) or colour == earlier[anchor].colour:
        return None  # "the red circle" must name one part, and a part must show on its anchor
    part = Part(shape, size, colour, place=rng.choice(list(PLACES)), of=anchor)
    return part if _is_sensible(part, earlier[anchor]) else None


def _is_sensible(part: Part, anchor: Part) -> bool:
    """Whether the part fits its place. A part inside its anchor must be smaller, so no step hides an earlier one."""
    box = extent(Thing(None, (replace(anchor, of=None, place=None, stand="on the ground"),)))
    own = extent(Thing(None, (replace(part, of=None, place=None, stand="on the ground"),)))
    width, height = (box[2] - box[0]) / 16, (box[3] - box[1]) / 16
    own_width, own_height = (own[2] - own[0]) / 16, (own[3] - own[1]) / 16
    if part.place in ("in the middle of", "at the top of", "at the bottom of"):
        return own_width < width and own_height < height or own_width <= width / 2 or own_height <= height / 2
    if part.place == "side by side in":
        return own_width * 2 <= width and own_height <= height
    if part.place in ("under both ends of", "on top of both ends of"):
        return own_width * 2 <= width
    return True


def random_scene(rng: random.Random, kind_names: list[str], held: bool = False) -> Scene:
    """A random scene of one to three things of named kinds, apart from each other."""
    background = rng.choice(BACKGROUNDS)
    count = rng.choices((1, 2, 3), (0.5, 0.35, 0.15))[0]
    for _ in range(60):
        scene = Scene(background, tuple(random_thing(rng, kind_names, held, **place) for place in _pick_placings(rng, count)))
        if all(fits_canvas(thing) for thing in scene.things) and (held or not has_held_out(scene)):
            return scene
    return Scene(background, (random_thing(rng, kind_names, held),))


def _pick_placings(rng: random.Random, count: int) -> list[dict[str, str]]:
    if count == 1:
        if rng.random() < 0.6:
            return [{"scale": "big"}]
        return [{"scale": "small", "side": rng.choice(("left", "middle", "right"))}]
    if count == 3:
        return [{"scale": "small", "side": side} for side in rng.sample(("left", "middle", "right"), 3)]
    roll = rng.random()
    if roll < 0.35:  # a big one beside a small one
        big, small = rng.choice((("left", "right"), ("right", "left")))
        return [{"scale": "big", "side": big}, {"scale": "small", "side": small}]
    if roll < 0.7:
        return [{"scale": "small", "side": side} for side in rng.sample(("left", "middle", "right"), 2)]
    side = rng.choice(("left", "middle", "right"))
    one, other = rng.sample(("ground", "sky"), 2)
    return [{"scale": "small", "side": side, "level": one}, {"scale": "small", "side": side, "level": other}]
