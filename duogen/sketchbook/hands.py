"""Drawings as other hands make them: a picture is wobbled, recoloured and given other lines, as by a child's crayons or a marker pen."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

HANDS = ("child", "marker")
WOBBLE = {"child": 3.5, "marker": 1.6}  # pixels by which an outline strays
MESH = 16  # pixels to a piece of the mesh that bends the picture


def by_hand(picture: Image.Image, hand: str, seed: int) -> Image.Image:
    """`picture` as another hand would have drawn it; the same seed bends and colours every picture alike.

    Args:
        picture: a clean drawing.
        hand: "child" (crayons: strokes that show, paler colours, outlines that stray far) or "marker" (thick dark outlines, strong
            colours).

    Raises:
        ValueError: there is no such hand.
    """
    if hand not in HANDS:
        raise ValueError(f"There is no hand {hand!r}; choose one of {', '.join(HANDS)}.")
    rng = np.random.default_rng(seed)
    if hand == "marker":
        picture = picture.filter(ImageFilter.MinFilter(3))  # outlines are what is darkest
    picture = _bent(picture, rng, WOBBLE[hand])
    pixels = _recoloured(np.asarray(picture, np.float32) / 255, rng, hand)
    if hand == "child":
        pixels = pixels * _strokes(picture.size, rng)[..., None]
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def _bent(picture: Image.Image, rng: np.random.Generator, wobble: float) -> Image.Image:
    """Every point moved by up to about `wobble` pixels, neighbours alike."""
    width, height = picture.size
    across, down = (np.linspace(0, 1, side // MESH + 1) for side in (width, height))
    waves = [(rng.uniform(1.5, 5, 2), rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.4, 1, 2) * wobble / 2) for _ in range(3)]

    def moved(x: float, y: float) -> tuple[float, float]:
        dx = dy = 0.0
        for rate, phase, size in waves:
            at = 2 * np.pi * (rate[0] * x + rate[1] * y)
            dx, dy = dx + size[0] * np.sin(at + phase[0]), dy + size[1] * np.sin(at + phase[1])
        return (float(x * width + dx), float(y * height + dy))

    mesh = []
    for left, right in zip(across, across[1:], strict=False):
        for top, low in zip(down, down[1:], strict=False):
            box = tuple(round(value) for value in (left * width, top * height, right * width, low * height))
            mesh.append((box, (*moved(left, top), *moved(left, low), *moved(right, low), *moved(right, top))))
    # The border is repeated outside, else what bends inwards would leave black edges.
    edge = 2 * MESH
    wide = Image.fromarray(np.pad(np.asarray(picture), ((edge, edge), (edge, edge), (0, 0)), mode="edge"))
    shifted = [(box, tuple(value + edge for value in quad)) for box, quad in mesh]
    return wide.transform(picture.size, Image.Transform.MESH, shifted, Image.Resampling.BILINEAR)


def _recoloured(pixels: np.ndarray, rng: np.random.Generator, hand: str) -> np.ndarray:
    """[H, W, 3] in 0..1 in the colours of another box of pens: each still what people call it."""
    grey = pixels.mean(-1, keepdims=True)
    strength = rng.uniform(0.75, 0.95) if hand == "child" else rng.uniform(1.05, 1.2)
    mixed = grey + (pixels - grey) * strength
    mixed = mixed @ (np.eye(3) + rng.uniform(-0.06, 0.06, (3, 3))).astype(np.float32)
    return mixed + (1 - mixed) * rng.uniform(0.05, 0.15) if hand == "child" else mixed


def _strokes(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """[H, W] around 1: slanted strokes of a crayon."""
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    angle = rng.uniform(0.5, 1.1)
    along = x * np.cos(angle) + y * np.sin(angle)
    fine = np.sin(along * rng.uniform(1.0, 1.6) + 2 * np.sin(y * rng.uniform(0.05, 0.12)))
    return (1 + 0.045 * fine + rng.normal(0, 0.015, (height, width))).astype(np.float32)
