"""Where a thing is in a picture, as an MLLM of the Qwen-VL family says it: boxes in JSON."""

from __future__ import annotations

import math
import threading
from typing import Any

from PIL import Image as PILImage

from duogen.models.mllm import MLLM
from duogen.models.sequence import Tokens
from duogen.prompts import fill_prompt, parse_json
from duogen.vision_qa import MLLMVisionQA, shrink

ANSWER_TOKENS = 256
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def find_boxes(mllm: MLLM, picture: PILImage.Image, words: str, stop: threading.Event | None = None) -> list[Box]:
    """The boxes around what `words` name in a picture; none where the MLLM names none."""
    shown = shrink(picture)
    said = MLLMVisionQA(mllm, "grounding", "").ask(fill_prompt("find-place", words=words), [shown], ANSWER_TOKENS, stop)
    return read_boxes(said, _seen_size(mllm.tokens, shown.size), picture.size)


def _seen_size(tokens: Tokens, size: tuple[int, int]) -> tuple[int, int]:
    """The (width, height) in which the vision tower sees a picture; Qwen2.5-VL counts in its pixels."""
    rows, columns = tokens.grid_of_size(size)
    patch = tokens.image_processor.patch_size * tokens.image_processor.merge_size
    return columns * patch, rows * patch


def read_boxes(said: str, seen: tuple[int, int], size: tuple[int, int]) -> list[Box]:
    """The boxes in an answer, in pixels of a picture of `size` that the MLLM saw in the size `seen`.

    What is no box, is empty or lies outside the picture is left out.
    """
    found = parse_json(said)
    listed = found if isinstance(found, list) and not _is_box(found) else [found]
    boxes = []
    for each in listed:
        raw = (each.get("bbox_2d") or each.get("bbox")) if isinstance(each, dict) else each
        if not _is_box(raw):
            continue
        across, down = size[0] / seen[0], size[1] / seen[1]
        left, top, right, bottom = (round(value * scale) for value, scale in zip(raw, (across, down) * 2, strict=True))
        box = max(0, left), max(0, top), min(size[0], right), min(size[1], bottom)
        if box[0] < box[2] and box[1] < box[3]:
            boxes.append(box)
    return boxes


def _is_box(raw: Any) -> bool:
    return isinstance(raw, list) and len(raw) == 4 and all(type(each) in (int, float) and math.isfinite(each) for each in raw)
