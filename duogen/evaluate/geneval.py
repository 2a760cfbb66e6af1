"""GenEval (Ghosh et al. 2023): objects found by a detector, counted, placed and coloured by rules.

The thresholds are the paper's; colours come from the pixels of an object's mask by rules, where the paper asks CLIP.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image as PILImage

LEAST, LEAST_TO_COUNT = 0.3, 0.9
MOST = 16  # objects of one class
APART = 0.1
DETECTOR = "facebook/mask2former-swin-small-coco-instance"
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SAME = {"tv": "tv", "couch": "couch", "computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}


@dataclass(frozen=True)
class Seen:
    """An object in a picture: `box` is (left, top, right, bottom) in pixels, `mask` [H, W] where its pixels are."""

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray


class Detector(Protocol):
    """Whoever finds objects of the COCO classes; `name` goes into the results.

    Attributes:
        knows: names of the objects that it can find, `None` for all of them.
    """

    name: str
    knows: frozenset[str] | None

    def find(self, picture: PILImage.Image) -> list[Seen]:
        """All objects with a score of at least `LEAST`."""


class Mask2Former:
    """An instance segmenter of transformers' Mask2Former class, from a folder or the hub."""

    knows = None

    def __init__(self, name: str = DETECTOR, device: str = "cpu") -> None:
        """Raises ValueError when it cannot be opened."""
        from transformers import Mask2FormerForUniversalSegmentation

        try:
            from transformers import Mask2FormerImageProcessorPil as Processor
        except ImportError:
            from transformers import Mask2FormerImageProcessor as Processor
        try:
            self.model = Mask2FormerForUniversalSegmentation.from_pretrained(name).to(device).eval()
            self.processor = Processor.from_pretrained(name)
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"The detector {name} cannot be opened ({first}); name a folder with --detector.") from error
        self.name, self.device = Path(name).name, device

    def find(self, picture: PILImage.Image) -> list[Seen]:
        import torch

        with torch.no_grad():
            out = self.model(**self.processor(images=picture, return_tensors="pt").to(self.device))
        size = [picture.size[::-1]]
        found = self.processor.post_process_instance_segmentation(out, threshold=LEAST, target_sizes=size, return_binary_maps=True)[0]
        masks = found["segmentation"]
        seen = []
        for info, mask in zip(found["segments_info"], masks if masks is not None else [], strict=False):
            where = np.asarray(mask) > 0.5
            if where.any():
                name = self.model.config.id2label[info["label_id"]]
                seen.append(Seen(name, info["score"], box_of(where), where))
        return seen


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def right(about: dict[str, Any], tag: str, picture: PILImage.Image, detector: Detector) -> tuple[bool, str]:
    """Whether a picture shows what its prompt asks for, and what is wrong in words.

    Args:
        about: "include" and "exclude" of the prompt's line.
    """
    if unknown := sorted({each["class"] for each in about["include"]} - detector.knows) if detector.knows is not None else []:
        return False, f"the detector does not know: {', '.join(unknown)}"
    least = LEAST_TO_COUNT if tag == "counting" else LEAST
    objects: dict[str, list[Seen]] = {}
    for each in sorted(detector.find(picture), key=lambda each: -each.score):
        group = objects.setdefault(SAME.get(each.name, each.name), [])
        if each.score >= least and len(group) < MOST:
            group.append(each)
    groups: list[list[Seen]] = []
    for wanted in about["include"]:
        name = SAME.get(wanted["class"], wanted["class"])
        found = objects.get(name, [])[: wanted["count"]]
        wrong = _missing(wanted, found, groups, picture)
        if wrong:
            return False, wrong
        groups.append(found)
    for unwanted in about.get("exclude", []):
        count = len(objects.get(SAME.get(unwanted["class"], unwanted["class"]), []))
        if count >= unwanted["count"]:
            return False, f"{count} {unwanted['class']}, fewer than {unwanted['count']} expected"
    return True, ""


def _missing(wanted: dict[str, Any], found: list[Seen], groups: list[list[Seen]], picture: PILImage.Image) -> str:
    if len(found) < wanted["count"]:
        return f"{len(found)} {wanted['class']}, {wanted['count']} expected"
    if "color" in wanted:
        colours = [colour_of(picture, each.mask) for each in found]
        if colours.count(wanted["color"]) < wanted["count"]:
            return f"{wanted['class']} is {', '.join(colours)}, {wanted['color']} expected"
    if "position" in wanted:
        relation, target = wanted["position"]
        for each in found:
            for other in groups[target]:
                seen = relations(each, other)
                if relation not in seen:
                    return f"{wanted['class']} is {' and '.join(sorted(seen)) or 'nowhere clear'}, {relation} expected"
    return ""


def relations(one: Seen, other: Seen) -> set[str]:
    """Where `one` is, seen from `other`: by the offset of their middles, less a tenth of both sizes."""
    sides = []
    for low, high in ((0, 2), (1, 3)):
        offset = (one.box[low] + one.box[high] - other.box[low] - other.box[high]) / 2
        sizes = one.box[high] - one.box[low] + other.box[high] - other.box[low]
        sides.append(np.sign(offset) * max(abs(offset) - APART * sizes, 0.0))
    length = float(np.hypot(*sides))
    if length < 1e-3:
        return set()
    right_of, below = sides[0] / length, sides[1] / length
    said = {"left of": right_of < -0.5, "right of": right_of > 0.5, "above": below < -0.5, "below": below > 0.5}
    return {name for name, holds in said.items() if holds}


def colour_of(picture: PILImage.Image, mask: np.ndarray) -> str:
    """The commonest of the ten colours among an object's pixels.

    By hue, saturation and value: dark is black; pale is white; orange that is dark is brown; red that is pale is pink.
    """
    pixels = np.asarray(picture.convert("HSV"), dtype=np.float32)[mask]
    hue, saturation, value = pixels[:, 0] * 360 / 255, pixels[:, 1] / 255, pixels[:, 2] / 255
    named = np.full(len(pixels), "red", dtype="<U8")
    for name, low, high in (("orange", 18, 45), ("yellow", 45, 70), ("green", 70, 165), ("blue", 165, 262), ("purple", 262, 305)):
        named[(hue >= low) & (hue < high)] = name
    named[(hue >= 305) & (hue < 345)] = "pink"
    reddish = (hue < 18) | (hue >= 345)
    named[reddish & (saturation < 0.6) & (value > 0.75)] = "pink"
    named[(hue >= 8) & (hue < 45) & (value < 0.68)] = "brown"
    named[(saturation < 0.15) & (value >= 0.5)] = "white"
    named[(value < 0.22) | ((saturation < 0.15) & (value < 0.5))] = "black"
    names, counts = np.unique(named, return_counts=True)
    return str(names[counts.argmax()])
