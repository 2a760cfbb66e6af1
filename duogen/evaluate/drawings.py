"""A detector for pictures of the sketchbook world. It reads the picture back as a scene."""

from __future__ import annotations

import numpy as np
from PIL import Image as PILImage

from duogen.evaluate.detector import Detection, bounding_box
from duogen.sketchbook.draw import draw
from duogen.sketchbook.scene import CANVAS, Scene, Thing
from duogen.sketchbook.verify import read_scene

NAMES = {each: each for each in ("boat", "car", "cake", "bus", "umbrella", "cat", "truck", "pizza", "sandwich")} | {"plant": "potted plant"}
ALL = 80  # objects that GenEval asks for


class DrawingDetector:
    """Finds the GenEval objects that the sketchbook world has, at most three a picture, each with score 1."""

    name = f"sketchbook reader, {len(NAMES)} of {ALL} objects"
    known_classes = frozenset(NAMES.values())

    def find(self, picture: PILImage.Image) -> list[Detection]:
        scene = read_scene(picture.convert("RGB").resize((CANVAS, CANVAS), PILImage.Resampling.LANCZOS)).scene
        masks = [(NAMES[thing.kind], _thing_mask(scene, thing, picture.size)) for thing in scene.things if thing.kind in NAMES]
        return [Detection(name, 1.0, bounding_box(mask), mask) for name, mask in masks if mask.any()]


def _thing_mask(scene: Scene, thing: Thing, size: tuple[int, int]) -> np.ndarray:
    """Where a thing is drawn: bool [H, W] of a picture of `size` (width, height)."""
    alone, empty = (np.asarray(draw(Scene(scene.background, things))) for things in ((thing,), ()))
    mask = PILImage.fromarray((alone != empty).any(-1))
    return np.asarray(mask.resize(size, PILImage.Resampling.NEAREST))
