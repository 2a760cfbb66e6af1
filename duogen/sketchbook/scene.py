"""Scenes as data, and the geometry that words determine.

A scene is a background and up to three things; a thing is a tuple of parts; a part is a shape with a size, a colour and
a place relative to an earlier part. Every fact in the sentence of a step is a field here, and nothing else moves the boxes, so the
words determine the picture.

Units: the canvas is 256 x 256 pixels; a *cell* is 16 px in a big thing and 8 px in a small one. Boxes are
(left, top, right, bottom) in pixels, y pointing down.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

CANVAS = 256
CELL = {"big": 16, "small": 8}

COLOURS = {
    "red": (222, 48, 44),
    "orange": (246, 140, 32),
    "yellow": (252, 208, 48),
    "green": (58, 160, 70),
    "blue": (44, 96, 214),
    "purple": (140, 66, 188),
    "pink": (246, 148, 192),
    "brown": (138, 86, 48),
    "white": (252, 252, 252),
    "black": (40, 40, 44),
    "grey": (146, 150, 156),
}
PART_COLOURS = tuple(COLOURS)[:8]
BACKGROUNDS = ("meadow", "night", "paper", "sea")
SHAPES = (
    "circle", "square", "rectangle", "triangle", "oval", "star", "heart", "diamond", "half circle", "bowl", "cloud",
    "sunburst", "arc", "line", "drop",
)  # fmt: skip
# Size words are far apart, so that no picture is between two of them: (width, height) in cells.
SIZES = {
    "tiny": (1, 1),
    "small": (2, 2),
    "medium": (4, 4),
    "big": (6, 6),
    "broad": (8, 5),
    "wide": (10, 3),
    "flat": (4, 2),
    "long": (8, 1),
    "tall": (2, 4),
    "thin": (1, 4),
}
SQUARE_SIZES = ("tiny", "small", "medium", "big")
STRETCHED_SIZES = ("broad", "wide", "flat", "long", "tall", "thin")
SHAPE_SIZES = {
    "circle": SQUARE_SIZES,
    "square": SQUARE_SIZES,
    "rectangle": STRETCHED_SIZES,
    "triangle": ("tiny", "small", "medium", "big", "wide", "flat"),
    "oval": ("broad", "wide", "flat", "long"),
    "star": ("small", "medium", "big"),
    "heart": ("small", "medium", "big"),
    "diamond": SQUARE_SIZES,
    "half circle": ("medium", "broad", "wide", "flat"),
    "bowl": ("medium", "broad", "wide", "flat"),
    "cloud": ("small", "medium", "big", "broad"),
    "sunburst": ("small", "medium", "big"),
    "arc": ("small", "medium", "flat"),
    "line": ("long", "thin"),
    "drop": ("tiny", "small", "medium", "tall"),
}
STANDS = {"on the ground": 0, "just above the ground": 2, "high up": 4}  # cells between the first part and the ground
# place -> number of boxes it draws
PLACES = {
    "on top of": 1,
    "below": 1,
    "to the left of": 1,
    "to the right of": 1,
    "in the middle of": 1,
    "at the top of": 1,
    "at the bottom of": 1,
    "side by side in": 2,
    "on both sides of": 2,
    "under both ends of": 2,
    "on top of both ends of": 2,
}
PAIRED = frozenset(place for place, count in PLACES.items() if count == 2)
SIDES = ("left", "middle", "right")
LEVELS = {"ground": 224, "sky": 112}  # baseline y in pixels
CENTRES = {"big": {"left": 88, "middle": 128, "right": 168}, "small": {"left": 48, "middle": 128, "right": 208}}

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Part:
    """One part of a thing. `of` is the index of its anchor part in the thing; the first part has a `stand` instead."""

    shape: str
    size: str
    colour: str
    name: str | None = None
    place: str | None = None
    of: int | None = None
    stand: str | None = None


@dataclass(frozen=True)
class Thing:
    """A kind from `assets/sketchbook/things.json`, or `None` for an unnamed composition of shapes."""

    kind: str | None
    parts: tuple[Part, ...]
    scale: str = "big"
    side: str = "middle"
    level: str = "ground"


@dataclass(frozen=True)
class Scene:
    """A background with up to three things."""

    background: str
    things: tuple[Thing, ...] = ()

    def with_thing(self, index: int, thing: Thing) -> Scene:
        """The scene with thing number `index` replaced."""
        return replace(self, things=self.things[:index] + (thing,) + self.things[index + 1 :])


def part_boxes(thing: Thing) -> list[list[Box]]:
    """Boxes of every part: a list per part, with two boxes for paired places.

    Raises:
        ValueError: a part names an anchor that is not before it, or a place that does not exist.
    """
    cell = CELL[thing.scale]
    boxes: list[list[Box]] = []
    for index, part in enumerate(thing.parts):
        width, height = (side * cell for side in SIZES[part.size])
        if part.of is None:
            base = LEVELS[thing.level] - STANDS[part.stand or "on the ground"] * cell
            centre = CENTRES[thing.scale][thing.side]
            boxes.append([_box(centre, base - height / 2, width, height)])
        elif 0 <= part.of < index:
            boxes.append(_place_boxes(part, _hull(boxes[part.of]), cell))
        else:
            raise ValueError(f"Part {index} stands on part {part.of}, which is not before it.")
    return boxes


def extent(thing: Thing) -> Box:
    """The bounding box of the whole thing in pixels."""
    return _hull([box for boxes in part_boxes(thing) for box in boxes])


def fits_canvas(thing: Thing) -> bool:
    """Whether the thing lies on the canvas and, when small, within its third of it."""
    left, top, right, bottom = extent(thing)
    centre = CENTRES[thing.scale][thing.side]
    reach = 48 if thing.scale == "small" else 128
    floor = LEVELS[thing.level] + 24
    return top >= 0 and left >= max(0, centre - reach) and right <= min(CANVAS, centre + reach) and bottom <= floor


def _box(centre_x: float, centre_y: float, width: float, height: float) -> Box:
    return (centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)


def _hull(boxes: list[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return (min(lefts), min(tops), max(rights), max(bottoms))


def _place_boxes(part: Part, anchor: Box, cell: int) -> list[Box]:
    width, height = (side * cell for side in SIZES[part.size])
    left, top, right, bottom = anchor
    x, y, a_width, a_height = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    above, under = top - height / 2, bottom + height / 2
    # A rectangle (a door) stands on the anchor's floor; other shapes (a mouth) keep half a cell from its edge.
    inset = 0.0 if part.shape == "rectangle" else min(cell / 2, max(0.0, (a_height - height) / 2))
    spread = max(width / 2, round(a_width * 0.25 / (cell / 2)) * cell / 2)
    centres = {
        "on top of": [(x, above)],
        "below": [(x, under)],
        "to the left of": [(left - width / 2, y)],
        "to the right of": [(right + width / 2, y)],
        "in the middle of": [(x, y)],
        "at the top of": [(x, top + inset + height / 2)],
        "at the bottom of": [(x, bottom - inset - height / 2)],
        "side by side in": [(x - spread, y - a_height * 0.1), (x + spread, y - a_height * 0.1)],
        "on both sides of": [(left - width / 2, y), (right + width / 2, y)],
        "under both ends of": [(x - spread, bottom), (x + spread, bottom)],
        "on top of both ends of": [(x - spread, above + height / 4), (x + spread, above + height / 4)],
    }
    if part.place not in centres:
        raise ValueError(f"There is no place called {part.place!r}; known are {', '.join(PLACES)}.")
    return [_box(cx, cy, width, height) for cx, cy in centres[part.place]]
