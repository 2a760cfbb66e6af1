"""The guardrail that a licence ties a pair's use to: it looks at the words of every picture, and at the picture."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

PACKAGE = "cosmos_guardrail"
# What it fetches by itself when it is first opened, and what it computes with: Qwen3Guard-Gen-0.6B reads words, a RetinaFace finds faces.
DOWNLOAD_BYTES = 1_350_000_000
PARAMETERS = 625_000_000


class Guardrail:
    """`cosmos_guardrail`'s checker, as diffusers' Cosmos pipelines use it."""

    def __init__(self, checker: Any, device: str) -> None:
        checker.to(device)  # which returns nothing
        self.checker = checker

    def read(self, words: str) -> None:
        """Raises ValueError: it refuses the words."""
        if not self.checker.check_text_safety(words):
            raise ValueError("The guardrail that this pair's licence asks for refuses this picture's words; ask for something else.")

    def look(self, picture: PILImage.Image) -> PILImage.Image:
        """The picture, faces blurred where it wants that. Raises ValueError: it refuses the picture."""
        seen = self.checker.check_video_safety(np.array(picture)[None])  # a copy: it blurs in place
        if seen is None:
            raise ValueError("The guardrail that this pair's licence asks for refuses this picture; ask for something else.")
        return PILImage.fromarray(seen[0])

    def look_at_frames(self, frames: list[PILImage.Image]) -> list[PILImage.Image]:
        """The frames of a video, faces blurred where it wants that. Raises ValueError: it refuses them."""
        seen = self.checker.check_video_safety(np.stack([np.array(each) for each in frames]))
        if seen is None:
            raise ValueError("The guardrail that this model's licence asks for refuses this video; ask for something else.")
        return [PILImage.fromarray(each) for each in seen]


class CheckedBefore:
    """What diffusers' Cosmos pipelines ask about words and pictures, where whoever calls them asks the guardrail before and after."""

    def to(self, device: Any) -> None:
        pass

    def check_text_safety(self, words: str) -> bool:
        return True

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray:
        return frames


def names_guardrail(folder: Path) -> bool:
    """Whether a folder's own index names the guardrail."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return PACKAGE in (index.get("safety_checker") or ())


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def open_guardrail(device: str) -> Guardrail | None:
    """`None` where its package is not installed.

    Raises:
        ValueError: it cannot be opened; the sentence says why.
    """
    if not is_installed():
        return None
    import torch

    try:
        from cosmos_guardrail import CosmosSafetyChecker  # ty: ignore[import-not-found]  # few have it

        return Guardrail(CosmosSafetyChecker(), device)
    except torch.OutOfMemoryError as error:
        raise ValueError("The guardrail that this pair's licence asks for does not fit beside it; use --offload model.") from error
    except Exception as error:  # a missing library, a download that failed, a damaged file: the pair must not open without it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        then = "it fetches its own files at first, so connect this machine to the network and open the pair again"
        raise ValueError(f"The guardrail that this pair's licence asks for cannot be opened ({reason}); {then}.") from error
