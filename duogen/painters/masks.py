"""Pictures of any size in a painter's own size, their pixels, and masks: where a picture may change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from PIL import ImageChops, ImageFilter

CHANGED = 16  # of 255: from which difference of a colour on a place counts as changed
MOSTLY_CHANGED = 0.7  # share of changed places above which nothing is kept
FAINT, SPECK = 48, 12  # of 255: a trace of what has gone differs by less, or has no more pixels, in a picture whose longer side is `EDGE`
MOSTLY_GONE = 0.6  # share of the pixels of a thing that are painted over with the ground from which nothing of it remains
GAP = 2  # pixels: marks that are no further apart than twice as many are of one shape
EDGE = 256  # a picture has a soft edge of a pixel for so many pixels of its longer side


@dataclass(frozen=True)
class Motion:
    """Pixels of a picture that go elsewhere and stay as they are.

    Attributes:
        source: boolean [1, 1, H, W], which they are.
        scale: of their size afterwards, in times of that before.
        right: how far the middle of them goes to the right, in widths of the picture.
        down: how far down, in heights of it.
    """

    source: torch.Tensor
    scale: float
    right: float
    down: float


def check_mask(picture: PILImage.Image, mask: PILImage.Image) -> None:
    """Raises ValueError: the mask is of another size than its picture, or nothing of it is white."""
    if mask.size != picture.size:
        sizes = f"{mask.width} x {mask.height}", f"{picture.width} x {picture.height}"
        raise ValueError(f"The mask has {sizes[0]} pixels and its picture {sizes[1]}; mark the picture anew.")
    if mask.getbbox() is None:
        raise ValueError("Nothing of the picture is marked; paint over what should change.")


def composite_inside(painted: PILImage.Image, picture: PILImage.Image, mask: PILImage.Image) -> PILImage.Image:
    """`picture` in its own size with what was painted where `mask` is white."""
    left, top, width, height = inner_box(picture.size, painted.size)
    inner = painted.crop((left, top, left + width, top + height)).resize(picture.size, PILImage.Resampling.LANCZOS)
    return PILImage.composite(inner, picture, mask.point(lambda value: 255 if value else 0))


def keep_places(painted: PILImage.Image, before: PILImage.Image, stays: torch.Tensor) -> PILImage.Image:
    """`before` in its own size, with what was painted at the places that changed; everywhere else not a pixel changes.

    Args:
        stays: boolean [1, 1, h, w], the places or pixels of `painted` that are those of `before`.
    """
    return composite_inside(painted, before, _scale_mask(~stays, painted.size, before.size))


def _scale_mask(mask: torch.Tensor, painted: tuple[int, int], size: tuple[int, int]) -> PILImage.Image:
    """A mask [1, 1, h, w] of a picture of the size `painted`, for the picture of `size` that was scaled into it."""
    left, top, width, height = inner_box(size, painted)
    marks = PILImage.fromarray(mask[0, 0].cpu().numpy().astype(np.uint8) * 255).resize(painted, PILImage.Resampling.NEAREST)
    return marks.crop((left, top, left + width, top + height)).resize(size, PILImage.Resampling.NEAREST)


def find_shape(marks: torch.Tensor) -> torch.Tensor:
    """The one shape that marked pixels are of, boolean [1, 1, H, W]: their largest connected part, with its gaps and holes filled."""
    from scipy import ndimage

    closed = grow_shape(marks, GAP)[0, 0].cpu().numpy()
    parts, count = ndimage.label(closed)
    if count > 1:
        closed = parts == 1 + np.bincount(parts[parts > 0] - 1).argmax()
    filled = ndimage.binary_erosion(ndimage.binary_fill_holes(closed), iterations=GAP, border_value=1)
    return torch.from_numpy(filled).to(marks.device)[None, None]


def grow_shape(shape: torch.Tensor, pixels: int) -> torch.Tensor:
    """A boolean shape [1, 1, H, W] grown by so many pixels on every side."""
    return F.max_pool2d(shape.float(), 2 * pixels + 1, 1, pixels) > 0


def level_ground(picture: PILImage.Image, stays: torch.Tensor, painted: tuple[int, int]) -> PILImage.Image:
    """`picture` with the ground under what has gone as it is to the left and right of it, in every row in which both sides agree.

    The painter's ground has traces of the thing. Most pictures have level ground: sky, sea, meadow and paper.

    Args:
        stays: boolean [1, 1, h, w], the pixels of the painter's picture that are those of the picture before.
        painted: (width, height) of the painter's picture.
    """
    pixels, hole = np.asarray(picture).astype(np.float32), _find_hole(_scale_mask(~stays, painted, picture.size))
    level, known = _find_level(picture, hole)
    return PILImage.fromarray(np.where(known[..., None], level, pixels).round().astype(np.uint8))


def clear_gone(picture: PILImage.Image, before: PILImage.Image, stays: torch.Tensor, painted: tuple[int, int]) -> PILImage.Image:
    """`picture` with level ground where something was that is painted over with it, mostly: no trace of it remains.

    The arguments are those of `level_ground`, and the picture before.
    """
    from scipy import ndimage

    mask = _scale_mask(~stays, painted, picture.size)
    pixels, old, hole = np.asarray(picture).astype(np.float32), np.asarray(before).astype(np.float32), _find_hole(mask)
    level, known = _find_level(picture, hole)
    distance = np.abs(pixels - level).max(-1)
    near, was_ground = distance < CHANGED, np.abs(old - level).max(-1) < CHANGED
    marked, cleared = np.asarray(mask) > 0, known & ~_find_large(hole & (distance > FAINT), SPECK * (max(mask.size) / EDGE) ** 2)
    parts, _ = ndimage.label(hole)
    for number, box in enumerate(ndimage.find_objects(parts), 1):
        own = parts[box] == number
        inside = marked[box] & known[box] & own
        if not (inside.any() and near[box][inside].mean() > MOSTLY_GONE and was_ground[box][inside].mean() < 1 - MOSTLY_GONE):
            cleared[box] &= ~own
    return PILImage.fromarray(np.where(cleared[..., None], level, pixels).round().astype(np.uint8))


def _find_large(marks: np.ndarray, area: float) -> np.ndarray:
    """Boolean [H, W], the marked pixels whose connected part has more than `area` of them."""
    from scipy import ndimage

    parts, _ = ndimage.label(marks)
    return marks & (np.bincount(parts.ravel()) > area)[parts]


def _find_hole(mask: PILImage.Image) -> np.ndarray:
    """Boolean [H, W]: the white pixels of a mask, and those around them that an outline may reach."""
    return np.asarray(mask.filter(ImageFilter.MaxFilter(2 * round(max(mask.size) / EDGE) + 3))) > 0


def _find_level(picture: PILImage.Image, hole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(colours [H, W, 3], boolean [H, W]): those between the ground left and right of a hole, and where these two agree.

    The ground is the median of some pixels, two off the hole: a single speck beside it would become a streak across.
    """
    smooth = np.asarray(picture.filter(ImageFilter.MedianFilter(5))).astype(np.float32)
    column, last = np.arange(hole.shape[1]), hole.shape[1] - 1
    left = np.maximum.accumulate(np.where(hole, -1, column), 1)
    right = np.minimum.accumulate(np.where(hole, last + 1, column)[:, ::-1], 1)[:, ::-1]
    row = np.arange(len(hole))[:, None]
    one, other = smooth[row, (left - 2).clip(0)], smooth[row, (right + 2).clip(None, last)]
    known = hole & (left >= 0) & (right <= last) & (np.abs(one - other).max(-1) < CHANGED)
    return one + ((column - left) / np.maximum(right - left, 1))[..., None] * (other - one), known


def move_pixels(ground: PILImage.Image, before: PILImage.Image, motion: Motion, painted: tuple[int, int]) -> PILImage.Image:
    """`ground` with those pixels of `before` that move, at their new place and in their new size; both pictures have one size.

    Args:
        painted: (width, height) of the painter's picture, which `motion` speaks of.
    """
    mask = _scale_mask(motion.source, painted, before.size)
    box = mask.getbbox()
    if box is None:
        return ground
    marked = np.nonzero(np.asarray(mask))
    scaled = before.width / inner_box(before.size, painted)[2]
    middle = marked[1].mean() + 0.5, marked[0].mean() + 0.5
    goal = middle[0] + motion.right * painted[0] * scaled, middle[1] + motion.down * painted[1] * scaled
    size = max(1, round((box[2] - box[0]) * motion.scale)), max(1, round((box[3] - box[1]) * motion.scale))
    how = PILImage.Resampling.BOX if motion.scale < 1 else PILImage.Resampling.BICUBIC
    thing, alpha = before.crop(box).resize(size, how), mask.crop(box).resize(size, how)
    moved = ground.copy()
    moved.paste(thing, (round(goal[0] - (middle[0] - box[0]) * motion.scale), round(goal[1] - (middle[1] - box[1]) * motion.scale)), alpha)
    return moved


def keep_unchanged(painted: PILImage.Image, seen: PILImage.Image, before: PILImage.Image) -> PILImage.Image:
    """`before` in its own size, with what was painted at the places whose colour changed, with a soft edge; elsewhere no pixel changes.

    Args:
        painted: in the painter's size.
        seen: `before` as the painter saw it, in the size of `painted`.
    """
    edge = max(1, round(max(painted.size) / EDGE))
    blurred = ImageChops.difference(painted, seen).filter(ImageFilter.GaussianBlur(edge))  # single pixels are a codec's noise
    channels = blurred.split()
    distance = ImageChops.lighter(ImageChops.lighter(channels[0], channels[1]), channels[2])
    left, top, width, height = inner_box(before.size, painted.size)
    inner = (left, top, left + width, top + height)
    changed = distance.point(lambda value: 255 if value >= CHANGED else 0).crop(inner)
    whole = painted.crop(inner).resize(before.size, PILImage.Resampling.LANCZOS)
    if np.asarray(changed).mean() > 255 * MOSTLY_CHANGED:
        return whole
    grown = changed.filter(ImageFilter.MaxFilter(4 * edge + 1)).filter(ImageFilter.GaussianBlur(edge))
    return PILImage.composite(whole, before, grown.resize(before.size, PILImage.Resampling.BILINEAR))


def inner_box(size: tuple[int, int], within: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a picture of `size` scaled to fit into the middle of `within`, keeping its shape."""
    scale = min(within[0] / size[0], within[1] / size[1])
    width, height = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return (within[0] - width) // 2, (within[1] - height) // 2, width, height


def to_pixels(pictures: list[PILImage.Image]) -> torch.Tensor:
    """RGB pictures of one size -> [N, 3, H, W] in -1..1."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).float() / 127.5 - 1


def fit(picture: PILImage.Image, size: tuple[int, int]) -> PILImage.Image:
    """Scale a picture into `size` (width, height), keeping its shape, on a ground of its own edge colour."""
    if picture.size == size:
        return picture
    left, top, width, height = inner_box(picture.size, size)
    ground = PILImage.new("RGB", size, picture.getpixel((0, 0)))
    ground.paste(picture.resize((width, height), PILImage.Resampling.LANCZOS), (left, top))
    return ground
