"""Read a picture back as a scene, and check whether it shows a given scene, by analysis by synthesis.

Every decision is made in the same way. The assumed scene is drawn, and so is a rival scene with one change. Only where the two drawings
differ, the picture is compared with both: its *lean* is 0 at the drawing, 1 at the rival, and 1/2 halfway. A blurred, noisy or blotchy
picture still leans clearly to one side.

Pictures are 256 x 256; arrays of them are float32 of shape (256, 256, 3) in 0..255. Regions are (left, top, right, bottom)
in whole pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from itertools import permutations, product

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from duogen.sketchbook.change import add_part, remove_part
from duogen.sketchbook.draw import OVER, backdrop, darken, draw, draw_part
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
    fits_canvas,
    part_boxes,
)
from duogen.sketchbook.world import Entry, entry_of, things

SHIFT = 2  # pixels by which a whole picture may be shifted
NUDGE = 1  # pixels by which a part may be shifted beyond that
PAD = 6  # pixels around a box that an outline or the blur may reach
CLEARLY = 0.6  # the lean from which a rival counts as clearly better
LEAST_DIFFERENCE = 12_000  # summed squared difference below which two drawings cannot be told apart
LEAST_GAIN = 20_000  # summed squared error that a thing must explain to be read
BLURS = (0.0, 0.9, 1.8)  # Gaussian radii; the one that fits the picture best is used
UNEXPLAINED = (50.0, 75.0)  # RGB distance from which a pixel is not explained, in an even picture and in a blotchy one
UNEXPLAINED_AREA = 40  # connected unexplained pixels from which the picture counts as having something extra
FINALISTS = 14  # candidates of the small-size search that are redrawn at full size
BEAM = 2  # first things tried, of either scale

ATTRIBUTES = ("present", "colour", "shape", "size", "place")

Region = tuple[int, int, int, int]
Layer = tuple[Image.Image, tuple[int, int]]
Rival = tuple[str, Part, list[Box]]  # which attribute, the part with it changed, its boxes
_PALETTE = np.array(list(COLOURS.values()), np.float32)
_EDGES = np.array([darken(colour) for colour in COLOURS.values()], np.float32)
_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Reading:
    """A scene read from a picture. `confidence`, 0..1, is the share of the drawn pixels that the scene explains."""

    scene: Scene
    confidence: float


@dataclass(frozen=True)
class PartCheck:
    """The attributes of part `part` of thing `thing` that the picture shows right. An absent part has none right."""

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
    """The check of a picture against the scene that it should show. `extra`: it shows something else besides."""

    background: bool
    parts: tuple[PartCheck, ...]
    extra: bool = False

    @property
    def right(self) -> bool:
        """Whether everything is right."""
        return self.background and not self.extra and all(part.right for part in self.parts)

    @property
    def attributes(self) -> tuple[int, int]:
        """(right, all): numbers of attributes, the background and five for every part."""
        marks = [self.background]
        for part in self.parts:
            marks += [part.present, part.colour, part.shape, part.size, part.place]
        return sum(marks), len(marks)


def check_scene(picture: Image.Image, meant: Scene) -> Check:
    """Check whether `picture` shows `meant`: presence, colour, shape, size and place of every part, and nothing besides.

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
    return Check(found.background == meant.background, tuple(parts), found.unexplained_area() >= UNEXPLAINED_AREA)


def read_scene(picture: Image.Image, hint: Scene | None = None) -> Reading:
    """Find the scene whose drawing is nearest to `picture`.

    Args:
        hint: a scene near the right one, of which only single parts are changed; unnamed compositions need it. Without a hint, one to
            three things of known kinds are searched, each with its first parts or all.
    """
    if hint is None:
        target = _load_pixels(picture)
        scene = _search(target)
        shift = _best_shift(target, _to_array(_LayeredScene(scene).render()))
        if scene.things and shift != (0, 0):
            target = _shift_back(target, shift)
            scene = _search(target)
        found = _climb(picture, scene, ("present", "colour"))
        for number in range(len(scene.things)):
            found.add_missing_parts(number)
    else:
        found = _climb(picture, hint)
    scene = found.build_scene()
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
    """The pixels, bool (256, 256), at which both clean drawings agree, at least `margin` pixels from any difference."""
    differ = (np.asarray(draw(before)) != np.asarray(draw(after))).any(-1)
    grown = Image.fromarray(differ.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * margin + 1))
    return np.asarray(grown) == 0


def nearest_distance(picture: Image.Image, scene: Scene) -> float:
    """RMSE in 0..255 of the picture to the clean drawing of `scene`, at the best shift of up to 2 pixels."""
    target, clean = _load_pixels(picture), _to_array(draw(scene))
    return math.sqrt(min(_error_at(target, clean, shift) for shift in _list_shifts(SHIFT)))


# --- Redrawing a part of a scene quickly ---


@lru_cache(maxsize=6144)
def _draw_stamp(part: Part, kind: str | None, box: Box, mirrored: bool) -> Image.Image:
    left, top, right, bottom = box
    size = (math.ceil(right) + PAD, math.ceil(bottom) + PAD)
    canvas = Image.new("RGBA", (size[0] * OVER, size[1] * OVER))
    try:
        draw_part(ImageDraw.Draw(canvas), part, box, kind, mirrored)
    except ValueError:  # the rival is too flat for the details of the part
        draw_part(ImageDraw.Draw(canvas), part, box, None, mirrored)
    return canvas.reduce(OVER)


def _part_layers(part: Part, boxes: list[Box], kind: str | None) -> list[Layer]:
    """The part as stamps, each with its left top corner on the canvas."""
    plain = Part(part.shape, "", part.colour, part.name)
    layers = []
    for index, (left, top, right, bottom) in enumerate(boxes):
        x, y = math.floor(left) - PAD, math.floor(top) - PAD
        local = (left - x, top - y, right - x, bottom - y)
        layers.append((_draw_stamp(plain, kind, local, len(boxes) == 2 and index == 0), (x, y)))
    return layers


@lru_cache(maxsize=8)
def _empty_background(background: str) -> Image.Image:
    return backdrop(background).reduce(OVER)


def _covering_region(layers: list[Layer]) -> Region:
    """The region of the canvas that the stamps and the blur can reach; empty for no stamps."""
    if not layers:
        return (0, 0, 0, 0)
    left, top = min(x for _, (x, _) in layers) - 2, min(y for _, (_, y) in layers) - 2
    right, bottom = max(x + image.width for image, (x, _) in layers) + 2, max(y + image.height for image, (_, y) in layers) + 2
    return (max(0, left), max(0, top), min(CANVAS, right), min(CANVAS, bottom))


class _LayeredScene:
    """A scene as layers that can be redrawn within a region, with some parts replaced."""

    def __init__(self, scene: Scene):
        self.background = scene.background
        self.boxes = {(number, index): boxes for number, thing in enumerate(scene.things) for index, boxes in enumerate(part_boxes(thing))}
        self.things = scene.things
        self.layers = {
            (number, index): _part_layers(scene.things[number].parts[index], boxes, scene.things[number].kind)
            for (number, index), boxes in self.boxes.items()
        }

    def render(
        self, region: Region = (0, 0, CANVAS, CANVAS), key: tuple[int, int] | None = None, rival: Sequence[Layer] = ()
    ) -> Image.Image:
        """The drawing within `region`, with the layers of part `key` replaced by `rival`."""
        x0, y0, x1, y1 = region
        canvas = _empty_background(self.background).crop(region)
        for own, layers in self.layers.items():
            for stamp, (x, y) in rival if own == key else layers:
                if x < x1 and y < y1 and x + stamp.width > x0 and y + stamp.height > y0:
                    canvas.paste(stamp, (x - x0, y - y0), stamp)
        return canvas


def _load_pixels(picture: Image.Image) -> np.ndarray:
    picture = picture.convert("RGB")
    return _to_array(picture if picture.size == (CANVAS, CANVAS) else picture.resize((CANVAS, CANVAS), Image.Resampling.LANCZOS))


def _to_array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.float32)


def _blur(picture: Image.Image, radius: float) -> np.ndarray:
    return _to_array(picture.filter(ImageFilter.GaussianBlur(radius)) if radius else picture)


# --- Shift and blur of the picture ---


def _list_shifts(reach: int) -> list[tuple[int, int]]:
    return sorted(product(range(-reach, reach + 1), range(-reach, reach + 1)), key=lambda shift: abs(shift[0]) + abs(shift[1]))


def _error_at(target: np.ndarray, clean: np.ndarray, shift: tuple[int, int]) -> float:
    """The mean squared error of the picture after moving it back by `shift` (x, y)."""
    dx, dy = shift
    end = CANVAS - SHIFT
    moved = target[SHIFT + dy : end + dy, SHIFT + dx : end + dx]
    difference = (moved - clean[SHIFT:end, SHIFT:end]).ravel()
    return float(difference @ difference) / difference.size


def _best_shift(target: np.ndarray, clean: np.ndarray) -> tuple[int, int]:
    """The shift (x, y) of the picture against the drawing; (0, 0) where no other is clearly better."""
    errors = {shift: _error_at(target, clean, shift) for shift in _list_shifts(SHIFT)}
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] < 0.99 * errors[0, 0] else (0, 0)


def _shift_back(target: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    dx, dy = shift
    padded = np.pad(target, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    return np.ascontiguousarray(padded[SHIFT + dy : SHIFT + dy + CANVAS, SHIFT + dx : SHIFT + dx + CANVAS])


def _best_background(target: np.ndarray, free: np.ndarray) -> str:
    """The background that agrees with most of the pixels `free`, bool (256, 256)."""
    chosen = free[::2, ::2]
    pixels = target[::2, ::2][chosen]
    drawings = {name: _to_array(_empty_background(name))[::2, ::2][chosen] for name in BACKGROUNDS}
    agreeing = {name: int((np.abs(pixels - drawn) < 40).all(-1).sum()) for name, drawn in drawings.items()}
    return max(agreeing, key=agreeing.__getitem__)


# --- Hill climbing from a hint to the scene of the picture ---


class _HillClimb:
    """A layered scene that is changed part by part while a rival explains the picture clearly better.

    `wrong` maps (thing, part) to the changes: attribute -> the part as the picture shows it.
    """

    def __init__(self, picture: Image.Image, hint: Scene):
        self.hint, self.sheet = hint, _LayeredScene(hint)
        self.wrong: dict[tuple[int, int], dict[str, Part]] = {}
        target = _load_pixels(picture)
        self.target = _shift_back(target, _best_shift(target, _to_array(self.sheet.render())))
        covered = np.zeros((CANVAS, CANVAS), bool)
        for layers in self.sheet.layers.values():
            x0, y0, x1, y1 = _covering_region(layers)
            covered[y0:y1, x0:x1] = True
        free = ~covered if covered.mean() < 0.9 else np.ones_like(covered)
        self.sheet.background = self.background = _best_background(self.target, free)
        clean = self.sheet.render()
        drawings = {radius: _blur(clean, radius) for radius in BLURS}
        self.radius = min(BLURS, key=lambda radius: _error_at(self.target, drawings[radius], (0, 0)))
        self.drawn = drawings[self.radius]

    def redraw(self) -> None:
        self.drawn = _blur(self.sheet.render(), self.radius)

    def find_nudge(self, key: tuple[int, int]) -> tuple[int, int]:
        """The offset (x, y) of the part from its place in the picture."""
        x0, y0, x1, y1 = _covering_region(self.sheet.layers[key])
        x0, y0, x1, y1 = max(NUDGE, x0), max(NUDGE, y0), min(CANVAS - NUDGE, x1), min(CANVAS - NUDGE, y1)
        errors = {}
        for dx, dy in _list_shifts(NUDGE):
            difference = self.target[y0 + dy : y1 + dy, x0 + dx : x1 + dx] - self.drawn[y0:y1, x0:x1]
            errors[dx, dy] = float(np.vdot(difference, difference))
        best = min(errors, key=errors.__getitem__)
        return best if errors[best] < 0.9 * errors[0, 0] else (0, 0)

    def measure_lean(self, key: tuple[int, int], rival: list[Layer], nudge: tuple[int, int]) -> tuple[float, float]:
        """(lean of the picture, summed squared difference) between the sheet and the sheet with part `key` as `rival`."""
        own, other = self.sheet.layers[key], rival
        x0, y0, x1, y1 = region = _covering_region(own + other)
        alternative = _blur(self.sheet.render(region, key, rival), self.radius)
        # The blur ends at the crop, so a margin is left out, except at the border of the canvas.
        inner = (slice(3 if y0 else 0, y1 - y0 - (3 if y1 < CANVAS else 0)), slice(3 if x0 else 0, x1 - x0 - (3 if x1 < CANVAS else 0)))
        step = (alternative - self.drawn[y0:y1, x0:x1])[inner]
        size = float(np.vdot(step, step))
        if size < LEAST_DIFFERENCE:
            return 0.0, size
        # The picture is read at the nudged place, but never beyond the canvas.
        dx, dy = max(-x0, min(CANVAS - x1, nudge[0])), max(-y0, min(CANVAS - y1, nudge[1]))
        rest = self.target[y0 + dy : y1 + dy, x0 + dx : x1 + dx][inner]
        return float(np.vdot(step, rest - self.drawn[y0:y1, x0:x1][inner])) / size, size

    def fit_part(self, key: tuple[int, int], attributes: tuple[str, ...]) -> None:
        """Change these attributes of part `key` as long as some rival explains the picture clearly better."""
        nudge = self.find_nudge(key)
        for _ in range(4):
            part = self.sheet.things[key[0]].parts[key[1]]
            done = self.wrong.get(key, {})
            open_ = [rival for rival in self.list_rivals(key, part) if rival[0] in attributes and rival[0] not in done]
            best = self.find_best(key, open_, nudge)
            if best is None:
                return
            name, other, boxes = best
            self.wrong.setdefault(key, {})[name] = other
            self.replace_part(key, other, boxes)
            if name == "present":
                return

    def find_best(self, key: tuple[int, int], rivals: Iterable[Rival], nudge: tuple[int, int]) -> Rival | None:
        """The rival that explains the picture best, if any is clearly better than the sheet."""
        kind = self.sheet.things[key[0]].kind
        best, best_gain = None, 0.0
        for rival in rivals:
            lean, size = self.measure_lean(key, _part_layers(rival[1], rival[2], kind), nudge)
            if lean > CLEARLY and (2 * lean - 1) * size > best_gain:
                best, best_gain = rival, (2 * lean - 1) * size
        return best

    def add_missing_parts(self, number: int) -> None:
        """Add the parts of its kind that a thing lacks and the picture shows."""
        kind = entry_of(self.sheet.things[number])
        for entry in kind.parts:
            thing = self.sheet.things[number]
            names = [part.name for part in thing.parts]
            anchor = None if entry.of is None else kind.parts[entry.of].name
            if entry.name in names or anchor not in names:
                continue
            key = (number, len(names))
            grown = [add_part(thing, entry.name, colour) for colour in entry.colours]
            self.sheet.layers[key] = []
            found = self.find_best(key, [("present", one.parts[-1], part_boxes(one)[-1]) for one in grown], (0, 0))
            if found is None:
                del self.sheet.layers[key]
            else:
                self.replace_part(key, found[1], found[2])

    def replace_part(self, key: tuple[int, int], part: Part, boxes: list[Box]) -> None:
        """Replace part `key` by `part`, or append it. No boxes mean that the part is absent."""
        number, index = key
        thing = self.sheet.things[number]
        thing = replace(thing, parts=thing.parts[:index] + (part,) + thing.parts[index + 1 :])
        self.sheet.things = self.sheet.things[:number] + (thing,) + self.sheet.things[number + 1 :]
        self.sheet.boxes[key], self.sheet.layers[key] = boxes, _part_layers(part, boxes, thing.kind)
        self.redraw()

    def list_rivals(self, key: tuple[int, int], part: Part) -> Iterator[Rival]:
        """Yield (attribute, changed part, its boxes) for every single change of the part. No boxes mean that it is absent."""
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
        for other in _list_other_places(part):
            yield "place", other, _boxes_with(thing, index, other)
        if part.of is None:
            for side, level in product(SIDES, LEVELS):
                if (side, level) != (thing.side, thing.level):
                    yield "place", part, _boxes_with(replace(thing, side=side, level=level), index, part)

    def build_scene(self) -> Scene:
        """The changed scene without absent parts, unless another part stands on them."""
        kept = []
        for number, thing in enumerate(self.sheet.things):
            absent = {index for (own, index), wrong in self.wrong.items() if own == number and "present" in wrong}
            for index in sorted(absent, reverse=True):
                if not any(part.of == index for part in thing.parts):
                    thing = remove_part(thing, index)
            if thing.parts:
                kept.append(thing)
        return Scene(self.background, tuple(kept))

    def unexplained_area(self) -> int:
        """The number of connected pixels that the sheet does not explain, even if moved by 2 pixels or drawn without details."""
        target, bound = _smooth(self.target), 0.0
        least = np.full((CANVAS, CANVAS), np.inf, np.float32)
        for drawn in self.make_drawings():
            for shift in product((0, -SHIFT, SHIFT), (0, -SHIFT, SHIFT)):
                red, green, blue = np.moveaxis(target - _shift_back(drawn, shift), -1, 0)
                np.minimum(least, red * red + green * green + blue * blue, out=least)
                bound = bound or min(UNEXPLAINED[1], max(UNEXPLAINED[0], 5 * math.sqrt(np.median(least[::4, ::4]))))
                strange = least > bound**2
                if np.count_nonzero(strange) < UNEXPLAINED_AREA:
                    return 0
        core = Image.fromarray(strange.astype(np.uint8) * 255).filter(ImageFilter.MinFilter(3)).filter(ImageFilter.MaxFilter(3))
        return int(np.count_nonzero(np.asarray(core)))

    def make_drawings(self) -> Iterator[np.ndarray]:
        """Draw the sheet with and without the details of its parts, which a picture may lack."""
        yield _smooth(self.drawn)
        plain = _LayeredScene(Scene(self.background))
        plain.layers = {
            key: layers and _part_layers(self.sheet.things[key[0]].parts[key[1]], self.sheet.boxes[key], None)
            for key, layers in self.sheet.layers.items()
        }
        yield _smooth(_blur(plain.render(), self.radius))


def _climb(picture: Image.Image, hint: Scene, attributes: tuple[str, ...] = ATTRIBUTES) -> _HillClimb:
    found = _HillClimb(picture, hint)
    for key in list(found.sheet.layers):
        found.fit_part(key, attributes)
    return found


def _smooth(pixels: np.ndarray) -> np.ndarray:
    left, right, up, down = (_shift_back(pixels, shift) for shift in ((-1, 0), (1, 0), (0, -1), (0, 1)))
    return (left + 2 * pixels + right + up + down) / 6


def _boxes_with(thing: Thing, index: int, part: Part) -> list[Box]:
    parts = thing.parts[:index] + (part,)
    return part_boxes(replace(thing, parts=parts))[index]


def _list_other_places(part: Part) -> list[Part]:
    if part.of is None:
        return [replace(part, stand=stand) for stand in STANDS if stand != (part.stand or "on the ground")]
    return [replace(part, place=place) for place in PLACES if place != part.place]


# --- Searching without a hint ---


@dataclass(frozen=True)
class _Candidate:
    """The first parts of a kind in one slot, and the squared error that they may explain there."""

    thing: Thing
    gain: float


@dataclass(frozen=True)
class _Bank:
    """The visible areas of the first 1..n parts of every kind, on the ground in the middle, at 1 / `step` of the size.

    `fills` and `edges` are (rows, pixels of `window`), a row for each visible part. `starts` are the first rows of the candidates, and
    `allowed`, (rows, colours), are the colours that each part may have.
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
        thing = _make_partial_thing(entry, len(entry.parts), scale)
        for count, (part, boxes) in enumerate(zip(thing.parts, part_boxes(thing), strict=True), 1):
            for layer in _part_layers(replace(part, colour="red"), boxes, None):
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
    """The pixels of the small canvas that a red stamp covers, and those in its darker outline; both bool."""
    stamp, corner = layer
    sheet = Image.new("RGBA", (CANVAS, CANVAS))
    sheet.paste(stamp, corner)
    pixels = np.asarray(sheet)[step // 2 :: step, step // 2 :: step]
    return pixels[..., 3] > 127, pixels[..., 0] < 190


def _make_partial_thing(entry: Entry, count: int, scale: str, colours: tuple[str, ...] = (), **placing: str) -> Thing:
    """Make a thing of the first `count` parts of a kind, in `colours` or the first possible colours."""
    parts = tuple(
        Part(part.shape, part.size, colours[index] if colours else part.colours[0], part.name, part.place, part.of, part.stand)
        for index, part in enumerate(entry.parts[:count])
    )
    return Thing(entry.kind, parts, scale, **placing)


def _find_candidates(target: np.ndarray, drawn: np.ndarray, scale: str, side: str, level: str) -> list[_Candidate]:
    """The best candidates of one slot, each in its best colours, sorted by their gain over `drawn`.

    Both arrays are of the bank's size, (256 / step, 256 / step, 3).
    """
    bank = _bank(scale)
    right = (CENTRES[scale][side] - CENTRES[scale]["middle"]) // bank.step
    down = (LEVELS[level] - LEVELS["ground"]) // bank.step
    pixels = _cut_window(target, bank.window, right, down)
    error = np.square(pixels - _cut_window(drawn, bank.window, right, down)) @ np.ones(3, np.float32)
    if np.nansum(error) * bank.step**2 < LEAST_GAIN:
        return []
    features = np.column_stack([pixels, np.square(pixels) @ np.ones(3, np.float32), error, np.ones(len(pixels), np.float32)])
    features = np.where(np.isnan(features), 0, features)
    fills, edges = bank.fills @ features, bank.edges @ features
    costs = _colour_costs(fills, _PALETTE) + _colour_costs(edges, _EDGES)
    costs[~bank.allowed] = np.inf
    gains = np.add.reduceat(fills[:, 4] + edges[:, 4] - costs.min(1), bank.starts) * bank.step**2
    colours = costs.argmin(1)
    found = []
    for chosen in np.argsort(-gains, kind="stable")[:FINALISTS]:
        entry, count = bank.entries[chosen]
        names = tuple(_NAMES[colours[bank.starts[chosen] + index]] for index in range(count))
        thing = _make_partial_thing(entry, count, scale, names, side=side, level=level)
        if gains[chosen] > LEAST_GAIN and fits_canvas(thing):
            found.append(_Candidate(thing, float(gains[chosen])))
    return found


def _colour_costs(sums: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Squared errors, (rows, colours), of areas painted in each colour, from the areas' summed colours, squares and sizes."""
    return sums[:, 3:4] - 2 * sums[:, :3] @ palette.T + sums[:, 5:] * np.square(palette).sum(-1)


def _reduce(pixels: np.ndarray, step: int) -> np.ndarray:
    """The mean of every `step` x `step` pixels."""
    return reduce(np.add, (pixels[y::step, x::step] for y, x in product(range(step), repeat=2))) / step**2


def _cut_window(pixels: np.ndarray, window: Region, right: int, down: int) -> np.ndarray:
    """The pixels of a window moved over the picture: (pixels, 3), NaN beyond its edge."""
    x0, y0, x1, y1 = window[0] + right, window[1] + down, window[2] + right, window[3] + down
    size = len(pixels)
    out = np.full((y1 - y0, x1 - x0, 3), np.nan, np.float32)
    left, top, end, low = max(0, x0), max(0, y0), min(size, x1), min(size, y1)
    out[top - y0 : low - y0, left - x0 : end - x0] = pixels[top:low, left:end]
    return out.reshape(-1, 3)


def _search(target: np.ndarray) -> Scene:
    """Find the scene of known kinds with the least error: try several first things, then the best further ones."""
    background = _best_background(target, np.ones((CANVAS, CANVAS), bool))
    scene = Scene(background)
    best, least = scene, _redraw_error(target, scene)
    for first in _find_finalists(target, scene, least):
        grown, error = first
        while len(grown.things) < 3:
            further = _find_finalists(target, grown, error)
            if not further:
                break
            grown, error = further[0]
        grown, error = _remove_hidden(target, grown, error)
        if error < least:
            best, least = grown, error
    # Neighbours may overlap a little, so the order of drawing matters.
    orders = [replace(best, things=order) for order in permutations(best.things)]
    return min(orders, key=lambda scene: _redraw_error(target, scene))


def _remove_hidden(target: np.ndarray, scene: Scene, error: float) -> tuple[Scene, float]:
    """Remove the things that explain nothing because later ones cover them."""
    for thing in scene.things if len(scene.things) > 1 else ():
        less = replace(scene, things=tuple(other for other in scene.things if other is not thing))
        remaining = _redraw_error(target, less)
        if remaining < error + LEAST_GAIN:
            scene, error = less, remaining
    return scene, error


def _find_finalists(target: np.ndarray, scene: Scene, error: float) -> list[tuple[Scene, float]]:
    """The best scenes with one more thing and their errors: a few of either scale, best first."""
    drawn = _to_array(_LayeredScene(scene).render())
    taken = {(thing.scale, thing.side, thing.level) for thing in scene.things}
    found = []
    for scale in CENTRES:
        slots = [slot for slot in product(SIDES, LEVELS) if (scale, *slot) not in taken]
        small, base = (_reduce(pixels, _bank(scale).step) for pixels in (target, drawn))
        candidates = [one for slot in slots for one in _find_candidates(small, base, scale, *slot)]
        candidates.sort(key=lambda one: -one.gain)
        exact = [_try_thing(target, drawn, scene, error, one.thing) for one in candidates[:FINALISTS]]
        found += sorted((pair for pair in exact if pair[1] < error), key=lambda pair: pair[1])[:BEAM]
    return sorted(found, key=lambda pair: pair[1])


def _try_thing(target: np.ndarray, drawn: np.ndarray, scene: Scene, error: float, thing: Thing) -> tuple[Scene, float]:
    """The scene with one more thing and its error, which is infinite where the picture does not clearly lean to it."""
    grown = replace(scene, things=scene.things + (thing,))
    sheet = _LayeredScene(grown)
    own = [layer for key, layers in sheet.layers.items() if key[0] == len(scene.things) for layer in layers]
    x0, y0, x1, y1 = region = _covering_region(own)
    old, new, shown = drawn[y0:y1, x0:x1], _to_array(sheet.render(region)), target[y0:y1, x0:x1]
    gain = float(np.vdot(shown - old, shown - old) - np.vdot(shown - new, shown - new))
    clear = (2 * CLEARLY - 1) * float(np.vdot(new - old, new - old))  # the gain of a picture that leans just so
    return grown, error - gain if gain > max(LEAST_GAIN, clear) else math.inf


def _redraw_error(target: np.ndarray, scene: Scene) -> float:
    difference = (target - _to_array(_LayeredScene(scene).render())).ravel()
    return float(difference @ difference)


def _confidence(target: np.ndarray, scene: Scene) -> float:
    """The share of the pixels that differ from the empty background on which picture and drawing agree."""
    picture, drawn = _smooth(target), _smooth(_to_array(draw(scene)))
    empty = _smooth(_to_array(_empty_background(scene.background)))
    far = [np.abs(one - other).max(-1) > UNEXPLAINED[1] for one, other in ((picture, empty), (drawn, empty), (picture, drawn))]
    things_there = far[0] | far[1]
    return float(1 - np.count_nonzero(far[2]) / max(UNEXPLAINED_AREA, np.count_nonzero(things_there | far[2])))
