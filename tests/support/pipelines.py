"""A diffusers pipeline that paints at once: what it is called with is noted, and its pictures are noise, another for each call."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from duogen.engine import Engine


def paint_noise(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let the pipeline of an engine paint noise; returns the arguments of its calls, which grow."""
    calls: list[dict[str, Any]] = []
    kind = type(engine.pair.pipe)

    @functools.wraps(kind.__call__)
    def call(self: Any, **given: Any) -> SimpleNamespace:
        calls.append(given)
        pixels = np.random.default_rng(len(calls)).integers(0, 255, (given["height"], given["width"], 3), dtype=np.uint8)
        return SimpleNamespace(images=[PILImage.fromarray(pixels)])

    monkeypatch.setattr(kind, "__call__", call)
    return calls


def sources_of(call: dict[str, Any]) -> list[PILImage.Image]:
    """The source pictures of a call."""
    given = call.get("image") or []
    return [given] if isinstance(given, PILImage.Image) else list(given)
