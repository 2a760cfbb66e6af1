"""Draw a scene: flat shapes with a thin darker outline, anti-aliased, 256 x 256."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from duogen.sketchbook.scene import CANVAS, COLOURS, Box, Part, Scene, part_boxes
from duogen.sketchbook.world import part_details

OVER = 2  # supersampling factor
OUTLINE = 2.0  # pixels

Colour = tuple[int, int, int]
_SKY = {"meadow": ((186, 226, 250), (226, 244, 255)), "night": ((22, 26, 72), (44, 52, 110)), "sea": ((200, 232, 250), (238, 248, 255))}
_GROUND = {"meadow": (132, 204, 106), "night": (38, 70, 74), "sea": (64, 140, 206)}
HORIZON = 184


def draw(scene: Scene) -> Image.Image:
    """Draw `scene`.

    Returns:
        An RGB picture of 256 x 256 pixels; the same scene always gives the same pixels.
    """
    canvas = backdrop(scene.background).copy()
    context = ImageDraw.Draw(canvas)
    for thing in scene.things:
        for part, boxes in zip(thing.parts, part_boxes(thing), strict=True):
            for index, box in enumerate(boxes):
                # The left one of two long parts at the sides (wings, fins) leans the other way.
                draw_part(context, part, box, thing.kind, mirrored=len(boxes) == 2 and index == 0)
    return canvas.reduce(OVER)


def visible_part_map(scene: Scene) -> np.ndarray:
    """The visible part at each point of the drawing at twice its size: [512, 512], 0 for the background, else the number of the part
    from 1, counted through all things.
    """
    canvas = Image.new("L", (CANVAS * OVER, CANVAS * OVER))
    context, number = ImageDraw.Draw(canvas), 0
    for thing in scene.things:
        for part, boxes in zip(thing.parts, part_boxes(thing), strict=True):
            number += 1
            for box in boxes:
                _draw_shape(context, part.shape, box, number, None)
    return np.asarray(canvas)


@lru_cache(maxsize=8)
def backdrop(background: str) -> Image.Image:
    """The empty background at twice the size of a drawing."""
    size = CANVAS * OVER
    if background == "paper":
        return Image.new("RGB", (size, size), (250, 246, 236))
    top, low = _SKY[background]
    canvas = Image.new("RGB", (1, size))
    for y in range(size):
        share = min(1.0, y / (HORIZON * OVER))
        canvas.putpixel((0, y), tuple(round(a + (b - a) * share) for a, b in zip(top, low, strict=True)))
    canvas = canvas.resize((size, size))
    context = ImageDraw.Draw(canvas)
    context.rectangle((0, HORIZON * OVER, size, size), fill=_GROUND[background])
    return canvas


def draw_part(context: ImageDraw.ImageDraw, part: Part, box: Box, kind: str | None, mirrored: bool) -> None:
    """Draw a part with its details into `box`; with `mirrored`, the details are mirrored."""
    colour = COLOURS[part.colour]
    _draw_shape(context, part.shape, box, colour, darken(colour))
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    for shape, (x0, y0, x1, y1), name in part_details(kind, part.name):
        x0, x1 = (1 - x1, 1 - x0) if mirrored else (x0, x1)
        inner = (left + x0 * width, top + y0 * height, left + x1 * width, top + y1 * height)
        # A detail must show on its part: white on white or black on black turns grey.
        fill = COLOURS["grey"] if name == part.colour else COLOURS[name]
        _draw_shape(context, shape, inner, fill, None)


def darken(colour: Colour) -> Colour:
    """The outline of a fill: the same hue at 68 % of its brightness (white gets a grey edge, black a lighter one)."""
    if max(colour) < 60:
        return (90, 90, 96)
    red, green, blue = (round(channel * 0.68) for channel in colour)
    return red, green, blue


def _draw_shape(context: ImageDraw.ImageDraw, shape: str, box: Box, fill: Colour | int, edge: Colour | None) -> None:
    x0, y0, x1, y1 = (value * OVER for value in box)
    line = round(OUTLINE * OVER) if edge else 0
    outline = edge or fill
    if shape in ("square", "rectangle", "bar"):
        context.rectangle((x0, y0, x1 - 1, y1 - 1), fill=fill, outline=outline, width=line)
    elif shape in ("circle", "oval"):
        context.ellipse((x0, y0, x1 - 1, y1 - 1), fill=fill, outline=outline, width=line)
    elif shape == "line":
        _draw_line(context, (x0, y0, x1, y1), fill, outline, line)
    elif shape == "arc":
        thick = max(3 * OVER, (y1 - y0) * 0.18)
        context.arc((x0, y0 - (y1 - y0) * 0.6, x1, y1 - thick / 2), 10, 170, fill=fill, width=round(thick))
    elif shape == "cloud":
        _draw_cloud(context, (x0, y0, x1, y1), fill, outline, line)
    else:
        points = [(x0 + u * (x1 - x0), y0 + v * (y1 - y0)) for u, v in outline_points(shape)]
        context.polygon(points, fill=fill)
        if line:
            context.line(points + points[:2], fill=outline, width=line, joint="curve")


def _draw_line(context: ImageDraw.ImageDraw, box: Box, fill: Colour | int, edge: Colour | int, line: int) -> None:
    x0, y0, x1, y1 = box
    if x1 - x0 < y1 - y0:
        x, half = (x0 + x1) / 2, (x1 - x0) * 0.22
        inner = (x - half, y0, x + half, y1)
    else:
        y, half = (y0 + y1) / 2, (y1 - y0) * 0.22
        inner = (x0, y - half, x1, y + half)
    context.rectangle(inner, fill=fill, outline=edge, width=line)


_PUFFS = ((0.0, 0.36, 0.44, 1.0), (0.56, 0.36, 1.0, 1.0), (0.14, 0.04, 0.6, 0.7), (0.44, 0.0, 0.88, 0.66), (0.28, 0.3, 0.74, 1.0))


def _draw_cloud(context: ImageDraw.ImageDraw, box: Box, fill: Colour | int, edge: Colour | int, line: int) -> None:
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    for inset, colour in ((0, edge), (line, fill)):
        for left, top, right, bottom in _PUFFS:
            puff = (x0 + left * width + inset, y0 + top * height + inset, x0 + right * width - inset, y0 + bottom * height - inset)
            if puff[0] <= puff[2] and puff[1] <= puff[3]:  # smaller than its outline: only the outline is drawn
                context.ellipse(puff, fill=colour)


@lru_cache(maxsize=32)
def outline_points(shape: str) -> tuple[tuple[float, float], ...]:
    """The outline of a shape that is neither a box nor an ellipse, in the unit square."""
    turn = 2 * math.pi
    if shape == "triangle":
        return ((0.5, 0.0), (1.0, 1.0), (0.0, 1.0))
    if shape == "diamond":
        return ((0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5))
    if shape == "half circle":
        return tuple((0.5 - 0.5 * math.cos(math.pi * i / 40), 1 - math.sin(math.pi * i / 40)) for i in range(41))
    if shape == "bowl":
        return tuple((0.5 - 0.5 * math.cos(math.pi * i / 40), math.sin(math.pi * i / 40)) for i in range(41))
    if shape == "star":
        radii = (0.5, 0.21)
        ring = [(radii[i % 2], turn * i / 10) for i in range(10)]
        return _stretch([(r * math.sin(a), -r * math.cos(a)) for r, a in ring])
    if shape == "sunburst":
        radii = (0.5, 0.34)
        return tuple((0.5 + radii[i % 2] * math.sin(turn * i / 24), 0.5 - radii[i % 2] * math.cos(turn * i / 24)) for i in range(24))
    if shape == "heart":
        angles = [turn * i / 60 for i in range(60)]
        curve = [(16 * math.sin(a) ** 3, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a))) for a in angles]
        return _stretch(curve)
    if shape == "drop":
        low = [(0.5 + 0.5 * math.cos(a), 0.62 + 0.38 * math.sin(a)) for a in (math.pi * i / 24 for i in range(25))]
        return tuple([(0.5, 0.0)] + low)
    raise ValueError(f"There is no shape called {shape!r}.")


def _stretch(points: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    xs, ys = zip(*points, strict=True)
    return tuple(((x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))) for x, y in points)
