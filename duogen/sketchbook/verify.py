"""Read a picture back as a scene, and judge whether it shows what the words say: analysis by synthesis.

Every question is put the same way. The scene as it is believed to be is redrawn, a rival with one thing changed is
redrawn too, and only where the two drawings differ the picture is asked which of them it is nearer to: its *lean* is 0 at
the drawing, 1 at the rival, and 1/2 halfway. A blurred, noisy or blotchy picture still leans clearly to one side.

Pictures are 256 x 256; arrays of them are float32 of shape (256, 256, 3) in 0..255. Regions are (left, top, right, bottom)
in whole pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations, product

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from duogen.sketchbook.change import with_part, without_part
from duogen.sketchbook.draw import OVER, backdrop, darker, draw, draw_part
from duogen.sketchbook.scene import (
    BACKGROUNDS,
    CANVAS,
    CENTRES,
    COLOURS,
    LEVELS,
    PLACES,
    SHAPE_SIZES,
    SIDES,
    STANDS,
    Box,
    Part,
    Scene,
    Thing,
    fits,
    part_boxes,
)
from duogen.sketchbook.world import Entry, things

SHIFT = 2  # pixels by which a whole picture may be off
NUDGE = 1  # pixels by which a part may be off beyond that
PAD = 6  # pixels around a box that an outline or the blur may reach
CLEARLY = 0.6  # the lean from which a rival counts as clearly better
LEAST_DIFFERENCE = 12_000  # summed squared difference below which two drawings cannot be told apart
LEAST_GAIN = 20_000  # summed squared error that a thing must explain to be read
BLURS = (0.0, 0.9, 1.8)  # Gaussian radii of which the one nearest to the picture's own is taken
STRANGE = (50.0, 75.0)  # RGB distance from which a pixel is not explained, in an even picture and in a blotchy one
STRANGE_AREA = 40  # unexplained pixels, lying together, from which something is there that should not be
FINALISTS = 14  # candidates of the small-size search that are redrawn at full size
BEAM = 2  # first things tried, of either scale

ATTRIBUTES = ("present", "colour", "shape", "size", "place")

Region = tuple[int, int, int, int]
Layer = tuple[Image.Image, tuple[int, int]]
Rival = tuple[str, Part, list[Box]]  # which attribute, the part with it changed, its boxes
_PALETTE = np.array(list(COLOURS.values()), np.float32)
_EDGES = np.array([darker(colour) for colour in COLOURS.values()], np.float32)
_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Reading:
    """A scene read from a picture. `confidence` is the share of what is drawn that the scene explains, 0..1."""

    scene: Scene
    confidence: float


@dataclass(frozen=True)
class PartCheck:
    """Which attributes of part `part` of thing `thing` the picture shows as meant; a part that is absent has none right."""

    thing: int
    part: int
    present: bool
    colour: bool
    shape: bool
    size: bool
    place: bool

    @property
    def right(self) -> bool:
        return self.present and self.colour and self.shape and self.size and self.place


@dataclass(frozen=True)
class Check:
    """A picture against the scene that it should show. `extra`: something is there that should not be."""

    background: bool
    parts: tuple[PartCheck, ...]
    extra: bool = False

    @property
    def right(self) -> bool:
        """Whether everything is as meant."""
        return self.background and not self.extra and all(part.right for part in self.parts)

    @property
    def attributes(self) -> tuple[int, int]:
        """(right, all): the background and five attributes of every part."""
        marks = [self.background]
        for part in self.parts:
            marks += [part.present, part.colour, part.shape, part.size, part.place]
        return sum(marks), len(marks)


def check_scene(picture: Image.Image, meant: Scene) -> Check:
    """Whether `picture` shows `meant`: every part's presence, colour, shape, size and place, and nothing besides.

    An attribute is wrong if a rival value explains the picture clearly better (`CLEARLY`) where the two differ.
    """
    found = _climb(picture, meant)
    parts = []
    for number, thing in enumerate(meant.things):
        for index in range(len(thing.parts)):
            wrong = found.wrong.get((number, index), {})
            absent = "present" in wrong
            parts.append(
                PartCheck(number, index, not absent, *(not absent and name not in wrong for name in ("colour", "shape", "size", "place")))
            )
    return Check(found.background == meant.background, tuple(parts), found.strange_area() >= STRANGE_AREA)


def read_scene(picture: Image.Image, hint: Scene | None = None) -> Reading:
    """The scene that redraws `picture` best.

    Args:
        hint: a scene like the one to be read (unnamed compositions need one); only single parts are changed from it.
            Without it, one to three things of known kinds are searched, each with its first parts or all.
    """
    if hint is None:
        target = _pixels(picture)
        scene = _search(target)
        shift = _best_shift(target, _array(_Sheet(scene).image()))
        if scene.things and shift != (0, 0):
            target = _shifted(target, shift)
            scene = _search(target)
        found = _climb(picture, scene, ("present", "colour"))
        for number in range(len(scene.things)):
            found.grow(number)
    else:
        found = _climb(picture, hint)
    scene = found.scene()
    return Reading(scene, _confidence(found.target, scene))


def psnr(one: Image.Image, other: Image.Image, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of one size; infinite if they are equal.

    Args:
        mask: bool, (height, width); only these pixels count.

    Raises:
        ValueError: the sizes differ, or the mask is empty.
    """
    if one.size != other.size:
        raise ValueError(f"Pictures of {one.size} and {other.size} cannot be compared; resize one of them.")
    difference = np.asarray(one.convert("RGB"), np.float32) - np.asarray(other.convert("RGB"), np.float32)
    if mask is not None:
        if not mask.any():
            raise ValueError("The mask leaves no pixels to compare; pass one with some.")
        difference = difference[mask]
    error = float(np.mean(np.square(difference, dtype=np.float64)))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def unchanged_mask(before: Scene, after: Scene, margin: int = 4) -> np.ndarray:
    """Pixels, bool (256, 256), that both clean drawings agree on, `margin` pixels away from where they do not."""
    differ = (np.asarray(draw(before)) != np.asarray(draw(after))).any(-1)
    grown = Image.fromarray(differ.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * margin + 1))
    return np.asarray(grown) == 0


def nearest_distance(picture: Image.Image, scene: Scene) -> float:
    """RMSE in 0..255 of the picture to the clean drawing of `scene`, at the best shift of up to 2 pixels."""
    target, clean = _pixels(picture), _array(draw(scene))
    return math.sqrt(min(_error_at(target, clean, shift) for shift in _shifts(SHIFT)))


# --- Redrawing a part of a scene quickly ---


@lru_cache(maxsize=6144)
def _stamp(part: Part, kind: str | None, box: Box, mirrored: bool) -> Image.Image:
    left, top, right, bottom = box
    size = (math.ceil(right) + PAD, math.ceil(bottom) + PAD)
    canvas = Image.new("RGBA", (size[0] * OVER, size[1] * OVER))
    try:
        draw_part(ImageDraw.Draw(canvas), part, box, kind, mirrored)
    except ValueError:  # a rival is so flat that the details of the part cannot be drawn in it
        draw_part(ImageDraw.Draw(canvas), part, box, None, mirrored)
    return canvas.reduce(OVER)


def _layers(part: Part, boxes: list[Box], kind: str | None) -> list[Layer]:
    """The part as stamps, each with its left top corner on the canvas."""
    plain = Part(part.shape, "", part.colour, part.name)
    layers = []
    for index, (left, top, right, bottom) in enumerate(boxes):
        x, y = math.floor(left) - PAD, math.floor(top) - PAD
        local = (left - x, top - y, right - x, bottom - y)
        layers.append((_stamp(plain, kind, local, len(boxes) == 2 and index == 0), (x, y)))
    return layers


@lru_cache(maxsize=8)
def _empty(background: str) -> Image.Image:
    return backdrop(background).reduce(OVER)


def _region(layers: list[Layer]) -> Region:
    """The part of the canvas that the stamps and the blur can reach; empty stamps give an empty region."""
    if not layers:
        return (0, 0, 0, 0)
    left, top = min(x for _, (x, _) in layers) - 2, min(y for _, (_, y) in layers) - 2
    right, bottom = max(x + image.width for image, (x, _) in layers) + 2, max(y + image.height for image, (_, y) in layers) + 2
    return (max(0, left), max(0, top), min(CANVAS, right), min(CANVAS, bottom))


class _Sheet:
    """A scene as layers that can be redrawn within a region, with some parts replaced."""

    def __init__(self, scene: Scene):
        self.background = scene.background
        self.boxes = {(number, index): boxes for number, thing in enumerate(scene.things) for index, boxes in enumerate(part_boxes(thing))}
        self.things = scene.things
        self.layers = {
            (number, index): _layers(scene.things[number].parts[index], boxes, scene.things[number].kind)
            for (number, index), boxes in self.boxes.items()
        }

    def image(self, region: Region = (0, 0, CANVAS, CANVAS), key: tuple[int, int] | None = None, rival: list[Layer] = ()) -> Image.Image:
        """The drawing within `region`, with the layers of part `key` replaced by `rival`."""
        x0, y0, x1, y1 = region
        canvas = _empty(self.background).crop(region)
        for own, layers in self.layers.items():
            for stamp, (x, y) in rival if own == key else layers:
                if x < x1 and y < y1 and x + stamp.width > x0 and y + stamp.height > y0:
                    canvas.paste(stamp, (x - x0, y - y0), stamp)
        return canvas


def _pixels(picture: Image.Image) -> np.ndarray:
    picture = picture.convert("RGB")
    return _array(picture if picture.size == (CANVAS, CANVAS) else picture.resize((CANVAS, CANVAS), Image.Resampling.LANCZOS))


def _array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.float32)


def _blurred(picture: Image.Image, radius: float) -> np.ndarray:
    return _array(picture.filter(ImageFilter.GaussianBlur(radius)) if radius else picture)


# --- Where the picture lies, and how blurred it is ---


def _shifts(reach: int) -> list[tuple[int, int]]:
    return sorted(product(range(-reach, reach + 1), repeat=2), key=lambda shift: abs(shift[0]) + abs(shift[1]))


def _error_at(target: np.ndarray, clean: np.ndarray, shift: tuple[int, int]) -> float:
    """Mean squared error of the picture moved back by `shift` (x, y)."""
    dx, dy = shift
    end = CANVAS - SHIFT
    moved = target[SHIFT + dy : end + dy, SHIFT + dx : end + dx]
    difference = (moved - clean[SHIFT:end, SHIFT:end]).ravel()
    return float(difference @ difference) / difference.size


def _best_shift(target: np.ndarray, clean: np.ndarray) -> tuple[int, int]:
    """The shift (x, y) of the picture against the drawing; none where no other is clearly better."""
    errors = {shift: _error_at(target, clean, shift) for shift in _shifts(SHIFT)}
    best = min(errors, key=errors.get)
    return best if errors[best] < 0.99 * errors[0, 0] else (0, 0)


def _shifted(target: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    dx, dy = shift
    padded = np.pad(target, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    return np.ascontiguousarray(padded[SHIFT + dy : SHIFT + dy + CANVAS, SHIFT + dx : SHIFT + dx + CANVAS])


def _best_background(target: np.ndarray, free: np.ndarray) -> str:
    """The background that agrees with most of the pixels `free`, bool (256, 256)."""
    chosen = free[::2, ::2]
    pixels = target[::2, ::2][chosen]
    agreeing = {name: int((np.abs(pixels - _array(_empty(name))[::2, ::2][chosen]) < 40).all(-1).sum()) for name in BACKGROUNDS}
    return max(agreeing, key=agreeing.get)


# --- Climbing from a hint to what the picture shows ---


class _Climb:
    """A sheet that is changed part by part while a rival explains the picture clearly better.

    `wrong` holds, by (thing, part), what had to be changed: attribute -> the part as the picture shows it.
    """

    def __init__(self, picture: Image.Image, hint: Scene):
        self.hint, self.sheet = hint, _Sheet(hint)
        self.wrong: dict[tuple[int, int], dict[str, Part]] = {}
        target = _pixels(picture)
        self.target = _shifted(target, _best_shift(target, _array(self.sheet.image())))
        covered = np.zeros((CANVAS, CANVAS), bool)
        for layers in self.sheet.layers.values():
            x0, y0, x1, y1 = _region(layers)
            covered[y0:y1, x0:x1] = True
        free = ~covered if covered.mean() < 0.9 else np.ones_like(covered)
        self.sheet.background = self.background = _best_background(self.target, free)
        clean = self.sheet.image()
        drawings = {radius: _blurred(clean, radius) for radius in BLURS}
        self.radius = min(BLURS, key=lambda radius: _error_at(self.target, drawings[radius], (0, 0)))
        self.drawn = drawings[self.radius]

    def redraw(self) -> None:
        self.drawn = _blurred(self.sheet.image(), self.radius)

    def nudge(self, key: tuple[int, int]) -> tuple[int, int]:
        """By how much the part lies beside its place."""
        x0, y0, x1, y1 = _region(self.sheet.layers[key])
        x0, y0, x1, y1 = max(NUDGE, x0), max(NUDGE, y0), min(CANVAS - NUDGE, x1), min(CANVAS - NUDGE, y1)
        errors = {}
        for dx, dy in _shifts(NUDGE):
            difference = self.target[y0 + dy : y1 + dy, x0 + dx : x1 + dx] - self.drawn[y0:y1, x0:x1]
            errors[dx, dy] = float(np.vdot(difference, difference))
        best = min(errors, key=errors.get)
        return best if errors[best] < 0.9 * errors[0, 0] else (0, 0)

    def lean(self, key: tuple[int, int], rival: list[Layer], nudge: tuple[int, int]) -> tuple[float, float]:
        """(lean, summed squared difference) of the picture between the sheet and the sheet with part `key` as `rival`."""
        own, other = self.sheet.layers[key], rival
        x0, y0, x1, y1 = region = _region(own + other)
        alternative = _blurred(self.sheet.image(region, key, rival), self.radius)
        # The blur does not see beyond the crop, so its margin is left out, except at the canvas's own border.
        inner = (slice(3 if y0 else 0, y1 - y0 - (3 if y1 < CANVAS else 0)), slice(3 if x0 else 0, x1 - x0 - (3 if x1 < CANVAS else 0)))
        step = (alternative - self.drawn[y0:y1, x0:x1])[inner]
        size = float(np.vdot(step, step))
        if size < LEAST_DIFFERENCE:
            return 0.0, size
        # The picture is read beside the part's place, but never beyond the canvas.
        dx, dy = max(-x0, min(CANVAS - x1, nudge[0])), max(-y0, min(CANVAS - y1, nudge[1]))
        rest = self.target[y0 + dy : y1 + dy, x0 + dx : x1 + dx][inner]
        return float(np.vdot(step, rest - self.drawn[y0:y1, x0:x1][inner])) / size, size

    def settle(self, key: tuple[int, int], attributes: tuple[str, ...]) -> None:
        """Change these attributes of part `key` as long as some rival explains the picture clearly better."""
        nudge = self.nudge(key)
        for _ in range(4):
            part = self.sheet.things[key[0]].parts[key[1]]
            done = self.wrong.get(key, {})
            open_ = [rival for rival in self.rivals(key, part) if rival[0] in attributes and rival[0] not in done]
            best = self.best(key, open_, nudge)
            if best is None:
                return
            name, other, boxes = best
            self.wrong.setdefault(key, {})[name] = other
            self.change(key, other, boxes)
            if name == "present":
                return

    def best(self, key: tuple[int, int], rivals: Iterable[Rival], nudge: tuple[int, int]) -> Rival | None:
        """The rival that explains most beyond the sheet, if any does clearly."""
        kind = self.sheet.things[key[0]].kind
        best, best_gain = None, 0.0
        for rival in rivals:
            lean, size = self.lean(key, _layers(rival[1], rival[2], kind), nudge)
            if lean > CLEARLY and (2 * lean - 1) * size > best_gain:
                best, best_gain = rival, (2 * lean - 1) * size
        return best

    def grow(self, number: int) -> None:
        """Add those parts of a thing's kind that it lacks and the picture shows."""
        for entry in things()[self.sheet.things[number].kind].parts:
            thing = self.sheet.things[number]
            names = [part.name for part in thing.parts]
            anchor = None if entry.of is None else things()[thing.kind].parts[entry.of].name
            if entry.name in names or anchor not in names:
                continue
            key = (number, len(names))
            grown = [with_part(thing, entry.name, colour) for colour in entry.colours]
            self.sheet.layers[key] = []
            found = self.best(key, [("present", one.parts[-1], part_boxes(one)[-1]) for one in grown], (0, 0))
            if found is None:
                del self.sheet.layers[key]
            else:
                self.change(key, found[1], found[2])

    def change(self, key: tuple[int, int], part: Part, boxes: list[Box]) -> None:
        """Put `part` in the place of part `key`, or after the last one; no boxes where it is absent."""
        number, index = key
        thing = self.sheet.things[number]
        thing = replace(thing, parts=thing.parts[:index] + (part,) + thing.parts[index + 1 :])
        self.sheet.things = self.sheet.things[:number] + (thing,) + self.sheet.things[number + 1 :]
        self.sheet.boxes[key], self.sheet.layers[key] = boxes, _layers(part, boxes, thing.kind)
        self.redraw()

    def rivals(self, key: tuple[int, int], part: Part) -> Iterator[Rival]:
        """(attribute, other part, its boxes) for every single change of the part; no boxes where it is absent."""
        boxes = self.sheet.boxes[key]
        yield "present", part, []
        for colour in COLOURS:
            if colour != part.colour:
                yield "colour", replace(part, colour=colour), boxes
        for shape, sizes in SHAPE_SIZES.items():
            if shape != part.shape and part.size in sizes:
                yield "shape", replace(part, shape=shape), boxes
        thing, index = self.sheet.things[key[0]], key[1]
        for size in SHAPE_SIZES[part.shape]:
            if size != part.size:
                yield "size", replace(part, size=size), _boxes_with(thing, index, replace(part, size=size))
        for other in _elsewhere(part):
            yield "place", other, _boxes_with(thing, index, other)
        if part.of is None:
            for side, level in product(SIDES, LEVELS):
                if (side, level) != (thing.side, thing.level):
                    yield "place", part, _boxes_with(replace(thing, side=side, level=level), index, part)

    def scene(self) -> Scene:
        """The scene as changed, without what is absent and nothing stands on."""
        kept = []
        for number, thing in enumerate(self.sheet.things):
            absent = {index for (own, index), wrong in self.wrong.items() if own == number and "present" in wrong}
            for index in sorted(absent, reverse=True):
                if not any(part.of == index for part in thing.parts):
                    thing = without_part(thing, index)
            if thing.parts:
                kept.append(thing)
        return Scene(self.background, tuple(kept))

    def strange_area(self) -> int:
        """Pixels, lying together, that the sheet does not explain even when moved by 2 pixels or drawn without details."""
        target, bound = _smooth(self.target), 0.0
        least = np.full((CANVAS, CANVAS), np.inf, np.float32)
        for drawn in self.drawings():
            for shift in product((0, -SHIFT, SHIFT), repeat=2):
                red, green, blue = np.moveaxis(target - _shifted(drawn, shift), -1, 0)
                np.minimum(least, red * red + green * green + blue * blue, out=least)
                bound = bound or min(STRANGE[1], max(STRANGE[0], 5 * math.sqrt(np.median(least[::4, ::4]))))
                strange = least > bound**2
                if np.count_nonzero(strange) < STRANGE_AREA:
                    return 0
        core = Image.fromarray(strange.astype(np.uint8) * 255).filter(ImageFilter.MinFilter(3)).filter(ImageFilter.MaxFilter(3))
        return int(np.count_nonzero(np.asarray(core)))

    def drawings(self) -> Iterator[np.ndarray]:
        """The sheet as it is, then without the details of its parts, which a picture may lack."""
        yield _smooth(self.drawn)
        plain = _Sheet(Scene(self.background))
        plain.layers = {
            key: layers and _layers(self.sheet.things[key[0]].parts[key[1]], self.sheet.boxes[key], None)
            for key, layers in self.sheet.layers.items()
        }
        yield _smooth(_blurred(plain.image(), self.radius))


def _climb(picture: Image.Image, hint: Scene, attributes: tuple[str, ...] = ATTRIBUTES) -> _Climb:
    found = _Climb(picture, hint)
    for key in list(found.sheet.layers):
        found.settle(key, attributes)
    return found


def _smooth(pixels: np.ndarray) -> np.ndarray:
    return (_shifted(pixels, (-1, 0)) + 2 * pixels + _shifted(pixels, (1, 0)) + _shifted(pixels, (0, -1)) + _shifted(pixels, (0, 1))) / 6


def _boxes_with(thing: Thing, index: int, part: Part) -> list[Box]:
    parts = thing.parts[:index] + (part,)
    return part_boxes(replace(thing, parts=parts))[index]


def _elsewhere(part: Part) -> list[Part]:
    if part.of is None:
        return [replace(part, stand=stand) for stand in STANDS if stand != (part.stand or "on the ground")]
    return [replace(part, place=place) for place in PLACES if place != part.place]


# --- Searching without a hint ---


@dataclass(frozen=True)
class _Candidate:
    """The first parts of a kind, in a slot that its `thing` names, and how much squared error it may explain there."""

    thing: Thing
    gain: float


@dataclass(frozen=True)
class _Bank:
    """Visible areas of the first 1..n parts of every kind, standing on the ground in the middle, at 1 / `step` of the size.

    `fills` and `edges` are (rows, pixels of `window`), a row per visible part; `starts` says where a candidate's rows begin,
    and `allowed`, (rows, colours), which colours its part may have.
    """

    step: int
    window: Region
    fills: np.ndarray
    edges: np.ndarray
    allowed: np.ndarray
    starts: np.ndarray
    entries: tuple[tuple[Entry, int], ...]


@lru_cache(maxsize=2)
def _bank(scale: str) -> _Bank:
    step = {"big": 4, "small": 2}[scale]
    fills, edges, allowed, starts, entries = [], [], [], [], []
    for entry in things().values():
        owners, outline = np.zeros((2, CANVAS // step, CANVAS // step), np.uint8)
        thing = _bare(entry, len(entry.parts), scale)
        for count, (part, boxes) in enumerate(zip(thing.parts, part_boxes(thing), strict=True), 1):
            for layer in _layers(replace(part, colour="red"), boxes, None):
                alpha, edge = _coverage(layer, step)
                owners[alpha], outline[alpha] = count, edge[alpha]
            starts.append(len(fills))
            entries.append((entry, count))
            fills += [(owners == number) & (outline == 0) for number in range(1, count + 1)]
            edges += [(owners == number) & (outline == 1) for number in range(1, count + 1)]
            allowed += [[name in own.colours for name in _NAMES] for own in entry.parts[:count]]
    areas = np.array([fills, edges])
    rows, columns = np.flatnonzero(areas.any((0, 1, 3))), np.flatnonzero(areas.any((0, 1, 2)))
    window = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    areas = areas[:, :, window[1] : window[3], window[0] : window[2]].reshape(2, len(fills), -1).astype(np.float32)
    return _Bank(step, window, areas[0], areas[1], np.array(allowed), np.array(starts), tuple(entries))


def _coverage(layer: Layer, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels of the small canvas a red stamp covers, and which of them are its darker outline; bool both."""
    stamp, corner = layer
    sheet = Image.new("RGBA", (CANVAS, CANVAS))
    sheet.paste(stamp, corner)
    pixels = np.asarray(sheet)[step // 2 :: step, step // 2 :: step]
    return pixels[..., 3] > 127, pixels[..., 0] < 190


def _bare(entry: Entry, count: int, scale: str, colours: tuple[str, ...] = (), **placing: str) -> Thing:
    """The first `count` parts of a kind, in `colours` or else in any."""
    parts = tuple(
        Part(part.shape, part.size, colours[index] if colours else part.colours[0], part.name, part.place, part.of, part.stand)
        for index, part in enumerate(entry.parts[:count])
    )
    return Thing(entry.kind, parts, scale, **placing)


def _candidates(target: np.ndarray, drawn: np.ndarray, scale: str, side: str, level: str) -> list[_Candidate]:
    """The best candidates of one slot, each in the colours that suit the picture best, by their gain over what is `drawn`.

    Both arrays are of the bank's size, (256 / step, 256 / step, 3).
    """
    bank = _bank(scale)
    right = (CENTRES[scale][side] - CENTRES[scale]["middle"]) // bank.step
    down = (LEVELS[level] - LEVELS["ground"]) // bank.step
    pixels = _window(target, bank.window, right, down)
    error = np.square(pixels - _window(drawn, bank.window, right, down)) @ np.ones(3, np.float32)
    if np.nansum(error) * bank.step**2 < LEAST_GAIN:
        return []
    features = np.column_stack([pixels, np.square(pixels) @ np.ones(3, np.float32), error, np.ones(len(pixels), np.float32)])
    features = np.where(np.isnan(features), 0, features)
    fills, edges = bank.fills @ features, bank.edges @ features
    costs = _costs(fills, _PALETTE) + _costs(edges, _EDGES)
    costs[~bank.allowed] = np.inf
    gains = np.add.reduceat(fills[:, 4] + edges[:, 4] - costs.min(1), bank.starts) * bank.step**2
    colours = costs.argmin(1)
    found = []
    for chosen in np.argsort(-gains, kind="stable")[:FINALISTS]:
        entry, count = bank.entries[chosen]
        names = tuple(_NAMES[colours[bank.starts[chosen] + index]] for index in range(count))
        thing = _bare(entry, count, scale, names, side=side, level=level)
        if gains[chosen] > LEAST_GAIN and fits(thing):
            found.append(_Candidate(thing, float(gains[chosen])))
    return found


def _costs(sums: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Squared errors, (rows, colours), of areas painted in each colour, from the areas' summed colours, squares and sizes."""
    return sums[:, 3:4] - 2 * sums[:, :3] @ palette.T + sums[:, 5:] * np.square(palette).sum(-1)


def _reduced(pixels: np.ndarray, step: int) -> np.ndarray:
    """The mean of every `step` x `step` pixels."""
    return sum(pixels[y::step, x::step] for y, x in product(range(step), repeat=2)) / step**2


def _window(pixels: np.ndarray, window: Region, right: int, down: int) -> np.ndarray:
    """(pixels, 3) of a window moved over the picture; not a number beyond its edge."""
    x0, y0, x1, y1 = window[0] + right, window[1] + down, window[2] + right, window[3] + down
    size = len(pixels)
    out = np.full((y1 - y0, x1 - x0, 3), np.nan, np.float32)
    left, top, end, low = max(0, x0), max(0, y0), min(size, x1), min(size, y1)
    out[top - y0 : low - y0, left - x0 : end - x0] = pixels[top:low, left:end]
    return out.reshape(-1, 3)


def _search(target: np.ndarray) -> Scene:
    """The scene of known kinds whose drawing has the least error: several first things, then the best further ones."""
    background = _best_background(target, np.ones((CANVAS, CANVAS), bool))
    scene = Scene(background)
    best, least = scene, _error_of(target, scene)
    for first in _finalists(target, scene, least):
        grown, error = first
        while len(grown.things) < 3:
            further = _finalists(target, grown, error)
            if not further:
                break
            grown, error = further[0]
        grown, error = _without_hidden(target, grown, error)
        if error < least:
            best, least = grown, error
    # Neighbours may overlap a little: which was drawn first?
    orders = [replace(best, things=order) for order in permutations(best.things)]
    return min(orders, key=lambda scene: _error_of(target, scene))


def _without_hidden(target: np.ndarray, scene: Scene, error: float) -> tuple[Scene, float]:
    """The scene without things that explain nothing, as later ones cover them."""
    for thing in scene.things if len(scene.things) > 1 else ():
        less = replace(scene, things=tuple(other for other in scene.things if other is not thing))
        remaining = _error_of(target, less)
        if remaining < error + LEAST_GAIN:
            scene, error = less, remaining
    return scene, error


def _finalists(target: np.ndarray, scene: Scene, error: float) -> list[tuple[Scene, float]]:
    """The scene with one more thing, and its error: the best few of either scale, best first."""
    drawn = _array(_Sheet(scene).image())
    taken = {(thing.scale, thing.side, thing.level) for thing in scene.things}
    found = []
    for scale in CENTRES:
        slots = [slot for slot in product(SIDES, LEVELS) if (scale, *slot) not in taken]
        small, base = (_reduced(pixels, _bank(scale).step) for pixels in (target, drawn))
        candidates = [one for slot in slots for one in _candidates(small, base, scale, *slot)]
        candidates.sort(key=lambda one: -one.gain)
        exact = [_with_thing(target, drawn, scene, error, one.thing) for one in candidates[:FINALISTS]]
        found += sorted((pair for pair in exact if pair[1] < error), key=lambda pair: pair[1])[:BEAM]
    return sorted(found, key=lambda pair: pair[1])


def _with_thing(target: np.ndarray, drawn: np.ndarray, scene: Scene, error: float, thing: Thing) -> tuple[Scene, float]:
    """The scene with one more thing, and its error; infinite where the picture does not clearly lean to it."""
    grown = replace(scene, things=scene.things + (thing,))
    sheet = _Sheet(grown)
    own = [layer for key, layers in sheet.layers.items() if key[0] == len(scene.things) for layer in layers]
    x0, y0, x1, y1 = region = _region(own)
    old, new, shown = drawn[y0:y1, x0:x1], _array(sheet.image(region)), target[y0:y1, x0:x1]
    gain = float(np.vdot(shown - old, shown - old) - np.vdot(shown - new, shown - new))
    clear = (2 * CLEARLY - 1) * float(np.vdot(new - old, new - old))  # the gain of a picture that leans just so
    return grown, error - gain if gain > max(LEAST_GAIN, clear) else math.inf


def _error_of(target: np.ndarray, scene: Scene) -> float:
    difference = (target - _array(_Sheet(scene).image())).ravel()
    return float(difference @ difference)


def _confidence(target: np.ndarray, scene: Scene) -> float:
    """The share of what the picture or the drawing has before the empty background on which both agree."""
    picture, drawn = _smooth(target), _smooth(_array(draw(scene)))
    empty = _smooth(_array(_empty(scene.background)))
    far = [np.abs(one - other).max(-1) > STRANGE[1] for one, other in ((picture, empty), (drawn, empty), (picture, drawn))]
    things_there = far[0] | far[1]
    return float(1 - np.count_nonzero(far[2]) / max(STRANGE_AREA, np.count_nonzero(things_there | far[2])))
