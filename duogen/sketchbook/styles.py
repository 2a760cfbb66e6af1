"""Drawing styles: warp, recolour and redraw a clean drawing as if by crayons or a marker."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

STYLES = ("child", "marker")
WOBBLE = {"child": 3.5, "marker": 1.6}  # pixels by which an outline moves
MESH = 16  # pixels of a cell of the mesh that warps the picture


def apply_style(picture: Image.Image, style: str, seed: int) -> Image.Image:
    """Redraw `picture` in another style. The same seed warps and recolours every picture in the same way.

    Args:
        picture: a clean drawing.
        style: "child" (crayons: visible strokes, pale colours, loose outlines) or "marker" (thick dark outlines, strong colours).

    Raises:
        ValueError: there is no such style.
    """
    if style not in STYLES:
        raise ValueError(f"There is no style {style!r}; choose one of {', '.join(STYLES)}.")
    rng = np.random.default_rng(seed)
    if style == "marker":
        picture = picture.filter(ImageFilter.MinFilter(3))  # thickens the outlines, which are the darkest
    picture = _bend(picture, rng, WOBBLE[style])
    pixels = _shift_colours(np.asarray(picture, np.float32) / 255, rng, style)
    if style == "child":
        pixels = pixels * _make_strokes(picture.size, rng)[..., None]
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def _bend(picture: Image.Image, rng: np.random.Generator, wobble: float) -> Image.Image:
    """Move every point smoothly by up to about `wobble` pixels."""
    width, height = picture.size
    across, down = (np.linspace(0, 1, side // MESH + 1) for side in (width, height))
    waves = [(rng.uniform(1.5, 5, 2), rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.4, 1, 2) * wobble / 2) for _ in range(3)]

    def move(x: float, y: float) -> tuple[float, float]:
        dx = dy = 0.0
        for rate, phase, size in waves:
            at = 2 * np.pi * (rate[0] * x + rate[1] * y)
            dx, dy = dx + size[0] * np.sin(at + phase[0]), dy + size[1] * np.sin(at + phase[1])
        return (float(x * width + dx), float(y * height + dy))

    mesh = []
    for left, right in zip(across, across[1:], strict=False):
        for top, low in zip(down, down[1:], strict=False):
            box = tuple(round(value) for value in (left * width, top * height, right * width, low * height))
            mesh.append((box, (*move(left, top), *move(left, low), *move(right, low), *move(right, top))))
    # The border is repeated outside, else the warp would leave black edges.
    edge = 2 * MESH
    wide = Image.fromarray(np.pad(np.asarray(picture), ((edge, edge), (edge, edge), (0, 0)), mode="edge"))
    shifted = [(box, tuple(value + edge for value in quad)) for box, quad in mesh]
    return wide.transform(picture.size, Image.Transform.MESH, shifted, Image.Resampling.BILINEAR)


def _shift_colours(pixels: np.ndarray, rng: np.random.Generator, style: str) -> np.ndarray:
    """Shift the colours of [H, W, 3] in 0..1. Each colour keeps its name."""
    grey = pixels.mean(-1, keepdims=True)
    strength = rng.uniform(0.75, 0.95) if style == "child" else rng.uniform(1.05, 1.2)
    mixed = grey + (pixels - grey) * strength
    mixed = mixed @ (np.eye(3) + rng.uniform(-0.06, 0.06, (3, 3))).astype(np.float32)
    return mixed + (1 - mixed) * rng.uniform(0.05, 0.15) if style == "child" else mixed


def _make_strokes(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Slanted strokes of a crayon as factors around 1: [H, W]."""
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    angle = rng.uniform(0.5, 1.1)
    along = x * np.cos(angle) + y * np.sin(angle)
    fine = np.sin(along * rng.uniform(1.0, 1.6) + 2 * np.sin(y * rng.uniform(0.05, 0.12)))
    return (1 + 0.045 * fine + rng.normal(0, 0.015, (height, width))).astype(np.float32)
