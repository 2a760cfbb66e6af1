"""A detector for pictures of the sketchbook world, where no detector for photographs is at hand: the picture is read back as a scene."""

from __future__ import annotations

import numpy as np
from PIL import Image as PILImage

from duogen.evaluate.geneval import Seen, box_of
from duogen.sketchbook.draw import draw
from duogen.sketchbook.scene import CANVAS, Scene, Thing
from duogen.sketchbook.verify import read_scene

NAMES = {each: each for each in ("boat", "car", "cake", "bus", "umbrella", "cat", "truck", "pizza", "sandwich")} | {"plant": "potted plant"}
ALL = 80  # objects that GenEval asks for


class Drawings:
    """Knows the objects of GenEval that the sketchbook world has too, and sees at most three of them; what is found is certain."""

    name = f"sketchbook reader, {len(NAMES)} of {ALL} objects"
    knows = frozenset(NAMES.values())

    def find(self, picture: PILImage.Image) -> list[Seen]:
        scene = read_scene(picture.convert("RGB").resize((CANVAS, CANVAS), PILImage.Resampling.LANCZOS)).scene
        masks = [(NAMES[thing.kind], _mask(scene, thing, picture.size)) for thing in scene.things if thing.kind in NAMES]
        return [Seen(name, 1.0, box_of(mask), mask) for name, mask in masks if mask.any()]


def _mask(scene: Scene, thing: Thing, size: tuple[int, int]) -> np.ndarray:
    """Where a thing is drawn, [H, W] of a picture of `size` (width, height)."""
    alone, empty = (np.asarray(draw(Scene(scene.background, things))) for things in ((thing,), ()))
    mask = PILImage.fromarray((alone != empty).any(-1))
    return np.asarray(mask.resize(size, PILImage.Resampling.NEAREST))
