"""GenEval (Ghosh et al. 2023): objects found by a detector, counted, placed and coloured by rules.

The thresholds are the paper's; colours come from the pixels of an object's mask by rules, where the paper asks CLIP.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from duogen.evaluate.detector import LEAST, Detection, Detector
from duogen.evaluate.tasks import Benchmark, Task, read_json_lines

LEAST_TO_COUNT = 0.9
MOST = 16  # objects of one class
APART = 0.1
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SAME = {"tv": "tv", "couch": "couch", "computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}


def read(folder: Path) -> Iterator[Task]:
    for number, raw in enumerate(read_json_lines(folder / "evaluation_metadata.jsonl")):
        yield Task(f"{number:05}", (raw["prompt"],), raw["tag"], {"include": raw["include"], "exclude": raw.get("exclude", [])})


def check_answer(task: Task, picture: PILImage.Image, detector: Detector) -> tuple[bool, str]:
    return check_picture(task.about, task.group, picture, detector)


def check_picture(about: dict[str, Any], tag: str, picture: PILImage.Image, detector: Detector) -> tuple[bool, str]:
    """Return whether a picture shows what its prompt asks for, and what is wrong in words.

    Args:
        about: "include" and "exclude" of the prompt's line.
    """
    known = detector.known_classes
    if unknown := sorted({each["class"] for each in about["include"]} - known) if known is not None else []:
        return False, f"the detector does not know: {', '.join(unknown)}"
    least = LEAST_TO_COUNT if tag == "counting" else LEAST
    objects: dict[str, list[Detection]] = {}
    for each in sorted(detector.find(picture), key=lambda each: -each.score):
        group = objects.setdefault(SAME.get(each.name, each.name), [])
        if each.score >= least and len(group) < MOST:
            group.append(each)
    groups: list[list[Detection]] = []
    for wanted in about["include"]:
        name = SAME.get(wanted["class"], wanted["class"])
        found = objects.get(name, [])[: wanted["count"]]
        wrong = _find_mismatch(wanted, found, groups, picture)
        if wrong:
            return False, wrong
        groups.append(found)
    for unwanted in about.get("exclude", []):
        count = len(objects.get(SAME.get(unwanted["class"], unwanted["class"]), []))
        if count >= unwanted["count"]:
            return False, f"{count} {unwanted['class']}, fewer than {unwanted['count']} expected"
    return True, ""


def _find_mismatch(wanted: dict[str, Any], found: list[Detection], groups: list[list[Detection]], picture: PILImage.Image) -> str:
    """What is wrong with the objects found for one entry of the prompt, in words; "" when nothing is."""
    if len(found) < wanted["count"]:
        return f"{len(found)} {wanted['class']}, {wanted['count']} expected"
    if "color" in wanted:
        colours = [dominant_colour(picture, each.mask) for each in found]
        if colours.count(wanted["color"]) < wanted["count"]:
            return f"{wanted['class']} is {', '.join(colours)}, {wanted['color']} expected"
    if "position" in wanted:
        relation, target = wanted["position"]
        for each in found:
            for other in groups[target]:
                seen = spatial_relations(each, other)
                if relation not in seen:
                    return f"{wanted['class']} is {' and '.join(sorted(seen)) or 'nowhere clear'}, {relation} expected"
    return ""


def spatial_relations(one: Detection, other: Detection) -> set[str]:
    """Where `one` is relative to `other`, by the offset of their centres less a tenth of both sizes."""
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


def dominant_colour(picture: PILImage.Image, mask: np.ndarray) -> str:
    """The commonest of the ten colours among the pixels of an object.

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


BENCHMARK = Benchmark("geneval", "detected", read, check=check_answer, hub="github.com/djghosh13/geneval", ships=True)
