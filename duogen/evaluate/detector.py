"""Finding objects in pictures: the detectors that score a benchmark of the kind "detected"."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image as PILImage

LEAST = 0.3  # the score of an object from which it is found
DETECTOR = "facebook/mask2former-swin-small-coco-instance"


@dataclass(frozen=True)
class Detection:
    """A detected object: `box` is (left, top, right, bottom) in pixels, `mask` is bool [H, W]."""

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray


class Detector(Protocol):
    """Finds objects of the COCO classes."""

    @property
    def name(self) -> str:
        """Its name in the results."""
        ...

    @property
    def known_classes(self) -> frozenset[str] | None:
        """The names of the objects that it can find, `None` for all of them."""
        ...

    def find(self, picture: PILImage.Image) -> list[Detection]:
        """All objects with a score of at least `LEAST`."""
        ...


class Mask2Former:
    """An instance segmenter of transformers' Mask2Former class, from a folder or the hub."""

    known_classes = None

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

    def find(self, picture: PILImage.Image) -> list[Detection]:
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
                seen.append(Detection(name, info["score"], bounding_box(where), where))
        return seen


def bounding_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
