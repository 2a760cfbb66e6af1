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
SPECK = 12  # pixels: marks of so many or fewer are no shape
FAINT, BRIGHTEST = 48, 1.25  # a shade of a colour: how far it is off its hue, of 255, and how bright it is at most
ALIKE = 0.02  # square of the sine of the angle between two colours from which they are told apart by hue
SHADE, AT_EDGE = 10, 2  # of 255: neighbouring pixels that differ by less are of one region; pixels: how wide its edge is
GROUND = 6  # of 255: a pixel that differs by no more from the ground is of it
GAP = 2  # pixels: marks that are no further apart than twice as many are of one shape
BESIDE = 8  # pixels around what is transformed that are looked at, in a picture whose longer side is `EDGE`
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


@dataclass(frozen=True)
class Removal:
    """Pixels of a picture, `source` as of `Motion`, that give way to the ground."""

    source: torch.Tensor


@dataclass(frozen=True)
class ColourChange:
    """Pixels of a picture, `source` as of `Motion`, that get another colour, three of 0..255, and keep their shape and their outline."""

    source: torch.Tensor
    colour: tuple[float, float, float]


Transform = Motion | Removal | ColourChange


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


def mark_regions(marks: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """Mark whole regions of one colour: those of which the marked pixels are the most. Boolean [1, 1, H, W].

    A thing of a drawing has flat colours, and what is marked pixel by pixel has gaps, and reaches beyond it. A pixel that is of no region,
    as at an edge, goes with one that is marked.

    Args:
        marks: how surely each pixel is marked, [1, 1, H, W] in 0..1.
        picture: [1, 3, H, W] in -1..1.
    """
    from scipy import ndimage, sparse

    pixels, height, width = (picture[0] * 127.5).cpu().numpy(), *picture.shape[2:]
    number = np.arange(height * width).reshape(height, width)
    alike = [np.abs(np.diff(pixels, axis=axis)).max(0) < SHADE for axis in (1, 2)]
    ends = [(number[:-1][alike[0]], number[1:][alike[0]]), (number[:, :-1][alike[1]], number[:, 1:][alike[1]])]
    start, end = (np.concatenate(each) for each in zip(*ends, strict=True))
    graph = sparse.coo_array((np.ones(len(start), bool), (start, end)), shape=(number.size, number.size))
    _, region = sparse.csgraph.connected_components(graph, directed=False)
    sure, size = (np.bincount(region, each) for each in (marks[0, 0].float().cpu().numpy().ravel(), None))
    is_region, found = (each[region].reshape(height, width) for each in (size >= SPECK, (size >= SPECK) & (sure / size > 0.5)))
    if not is_region.any():
        return marks > 0.5
    found |= ndimage.binary_dilation(found, iterations=AT_EDGE) & ~is_region
    return torch.from_numpy(found).to(marks.device)[None, None]


def find_shape(marks: torch.Tensor) -> torch.Tensor:
    """The one shape that marked pixels are of, boolean [1, 1, H, W]: their largest connected part, with its gaps and holes filled."""
    from scipy import ndimage

    closed = fill_shapes(marks)[0, 0].cpu().numpy()
    parts, count = ndimage.label(closed)
    if count > 1:
        closed = parts == 1 + np.bincount(parts[parts > 0] - 1).argmax()
    return torch.from_numpy(closed).to(marks.device)[None, None]


def fill_shapes(marks: torch.Tensor) -> torch.Tensor:
    """Marked pixels, boolean [1, 1, H, W], with the gaps and holes between them, without specks."""
    from scipy import ndimage

    grown = ndimage.binary_fill_holes(grow_shape(marks, GAP)[0, 0].cpu().numpy())
    filled = _find_large(ndimage.binary_erosion(grown, iterations=GAP, border_value=1), SPECK)
    return torch.from_numpy(filled).to(marks.device)[None, None]


def grow_shape(shape: torch.Tensor, pixels: int) -> torch.Tensor:
    """A boolean shape [1, 1, H, W] grown by so many pixels on every side."""
    return F.max_pool2d(shape.float(), 2 * pixels + 1, 1, pixels) > 0


def level_ground(picture: PILImage.Image, stays: torch.Tensor, painted: tuple[int, int]) -> PILImage.Image:
    """`picture` with the ground under what has gone as it is to the left and right of it, in every row in which both sides agree.

    The painter's ground has traces of the thing. Most pictures have level ground: sky, sea, meadow, paper, and the wall around a door.

    Args:
        stays: boolean [1, 1, h, w], the pixels of the painter's picture that are those of the picture before.
        painted: (width, height) of the painter's picture.
    """
    mask = _scale_mask(~stays, painted, picture.size)
    box, made = _find_box(mask), picture.copy()
    if box is None:
        return made
    pixels = np.asarray(picture.crop(box)).astype(np.float32)
    level, known = _find_level(pixels, _find_hole(mask)[box[1] : box[3], box[0] : box[2]])
    made.paste(PILImage.fromarray(np.where(known[..., None], level, pixels).round().astype(np.uint8)), box[:2])
    return made


def _find_box(mask: PILImage.Image) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of the white pixels of a mask and of what lies beside them; `None` where there are none."""
    box, beside = mask.getbbox(), BESIDE * max(1, round(max(mask.size) / EDGE))
    if box is None:
        return None
    left, top, right, bottom = box
    return max(0, left - beside), max(0, top - beside), min(mask.width, right + beside), min(mask.height, bottom + beside)


def _find_large(marks: np.ndarray, area: float) -> np.ndarray:
    """Boolean [H, W], the marked pixels whose connected part has more than `area` of them."""
    from scipy import ndimage

    parts, _ = ndimage.label(marks)
    return marks & (np.bincount(parts.ravel()) > area)[parts]


def _find_hole(mask: PILImage.Image) -> np.ndarray:
    """Boolean [H, W]: the white pixels of a mask, and in a picture that is larger than its painter's those at their edge."""
    wider = round(max(mask.size) / EDGE) - 1
    return np.asarray(mask.filter(ImageFilter.MaxFilter(2 * wider + 1)) if wider > 0 else mask) > 0


def _find_level(pixels: np.ndarray, hole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(colours [H, W, 3], boolean [H, W]): those between the ground left and right of a hole, and where these two agree.

    The ground is the median of some pixels, two off the hole: an edge that was not marked, or a speck, would become a streak across.
    Where the painter painted what lies nearer to the hole instead, as the strip of wall beside a door, it is that.
    """
    from scipy import ndimage

    smooth = ndimage.median_filter(pixels, (5, 5, 1))
    (level, known), (near, near_known) = (_fill_rows(*each, hole) for each in ((smooth, 2), (pixels, 1)))
    is_near = near_known & (np.abs(pixels - near).max(-1) < FAINT) & ~(known & (np.abs(pixels - level).max(-1) < FAINT))
    return np.where(is_near[..., None], near, level), known | is_near


def _fill_rows(pixels: np.ndarray, off: int, hole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_find_level`, from the pixels that lie `off` a hole on both sides of it."""
    column, last = np.arange(hole.shape[1]), hole.shape[1] - 1
    left = np.maximum.accumulate(np.where(hole, -1, column), 1)
    right = np.minimum.accumulate(np.where(hole, last + 1, column)[:, ::-1], 1)[:, ::-1]
    row = np.arange(len(hole))[:, None]
    one, other = pixels[row, (left - off).clip(0)], pixels[row, (right + off).clip(None, last)]
    known = hole & (left >= 0) & (right <= last) & (np.abs(one - other).max(-1) < CHANGED)
    return one + ((column - left) / np.maximum(right - left, 1))[..., None] * (other - one), known


def apply_transform(painted: PILImage.Image, before: PILImage.Image, stays: torch.Tensor, transform: Transform) -> PILImage.Image:
    """The picture after a transform of `before`, in its size. What was painted is the ground where there is no other.

    Args:
        stays: boolean [1, 1, h, w], the pixels of `painted` that are those of `before`.
    """
    if isinstance(transform, ColourChange):
        return recolour_pixels(before, transform, painted.size)
    ground = level_ground(keep_places(painted, before, stays), stays, painted.size)
    return move_pixels(ground, before, transform, painted.size) if isinstance(transform, Motion) else ground


def move_pixels(ground: PILImage.Image, before: PILImage.Image, motion: Motion, painted: tuple[int, int]) -> PILImage.Image:
    """`ground` with those pixels of `before` that move, at their new place and in their new size; both pictures have one size.

    Args:
        painted: (width, height) of the painter's picture, which `motion` speaks of.
    """
    mask = _scale_mask(motion.source, painted, before.size).filter(ImageFilter.MaxFilter(3))  # of the ground more is no harm
    box = mask.getbbox()
    if box is None:
        return ground
    marked = np.nonzero(np.asarray(mask))
    scaled = before.width / inner_box(before.size, painted)[2]
    middle = marked[1].mean() + 0.5, marked[0].mean() + 0.5
    goal = middle[0] + motion.right * painted[0] * scaled, middle[1] + motion.down * painted[1] * scaled
    size = max(1, round((box[2] - box[0]) * motion.scale)), max(1, round((box[3] - box[1]) * motion.scale))
    how = PILImage.Resampling.BOX if motion.scale < 1 else PILImage.Resampling.BICUBIC
    thing, alpha = (each.resize(size, how) for each in _cut_out(before, mask, box))
    moved = ground.copy()
    moved.paste(thing, (round(goal[0] - (middle[0] - box[0]) * motion.scale), round(goal[1] - (middle[1] - box[1]) * motion.scale)), alpha)
    return moved


def _cut_out(picture: PILImage.Image, mask: PILImage.Image, box: tuple[int, int, int, int]) -> tuple[PILImage.Image, PILImage.Image]:
    """(colours, alpha) in the `box` of the white pixels of a mask. What of them is ground stays behind, also at their edge."""
    from scipy import ndimage

    left, top, right, bottom = _find_box(mask) or box
    inside = box[0] - left, box[1] - top, box[2] - left, box[3] - top
    picture, mask = (each.crop((left, top, right, bottom)) for each in (picture, mask))
    pixels, marks = np.asarray(picture).astype(np.float32), np.asarray(mask) > 0
    inner = ndimage.binary_erosion(marks, iterations=2)
    if not inner.any():
        return picture.crop(inside), mask.crop(inside)
    level, known = _find_level(pixels, _find_hole(mask))
    beyond = np.where(known[..., None], level, _spread(pixels, ~marks))
    own = _spread(pixels, inner & (np.abs(pixels - beyond).max(-1) > FAINT))
    span = own - beyond
    share = (((pixels - beyond) * span).sum(-1) / np.maximum((span * span).sum(-1), 1)).clip(0, 1)
    is_mixture = ~inner & (np.abs(beyond + share[..., None] * span - pixels).max(-1) < FAINT / 2)
    alpha = np.where(is_mixture, share, 1) * (marks & (np.abs(pixels - beyond).max(-1) > GROUND))
    colours = np.where(is_mixture[..., None], own, pixels)
    made = PILImage.fromarray(colours.round().astype(np.uint8)), PILImage.fromarray((alpha * 255).round().astype(np.uint8))
    return made[0].crop(inside), made[1].crop(inside)


def _spread(pixels: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """`pixels` [H, W, 3] with the nearest of the marked ones at each place, if there are any."""
    from scipy import ndimage

    if not marks.any():
        return pixels
    return pixels[tuple(ndimage.distance_transform_edt(~marks, return_distances=False, return_indices=True))]


def recolour_pixels(before: PILImage.Image, change: ColourChange, painted: tuple[int, int]) -> PILImage.Image:
    """`before` with the pixels of a part in another colour. Its shades and its outline keep their brightness, of that of the colour.

    Every pixel is taken for a mixture of the old colour and, near the edge, of the colour beyond it; in both the old one is replaced.

    Args:
        painted: (width, height) of the painter's picture, which `change` speaks of.
    """
    from scipy import ndimage

    whole = _scale_mask(change.source, painted, before.size)
    box, changed = _find_box(whole), before.copy()
    if box is None:
        return changed
    mask, pixels = np.asarray(whole.crop(box)) > 0, np.asarray(before.crop(box)).astype(np.float32)
    depth = ndimage.distance_transform_edt(mask)
    old = np.median(pixels[depth >= np.quantile(depth[mask], 0.7)], 0)  # the outline lies at the edge
    share = _find_share(pixels, mask, old, 2 * max(1, round(max(before.size) / EDGE)))
    made = pixels + share[..., None] * (np.array(change.colour, np.float32) - old)
    changed.paste(PILImage.fromarray(made.clip(0, 255).round().astype(np.uint8)), box[:2])
    return changed


def _find_share(pixels: np.ndarray, mask: np.ndarray, old: np.ndarray, edge: int) -> np.ndarray:
    """[H, W]: how much of the colour `old` is in each of the `pixels` [H, W, 3] in a mask and up to `edge` pixels around it."""
    from scipy import ndimage

    region = ndimage.binary_dilation(mask, iterations=edge)
    depth, beyond = ndimage.distance_transform_edt(region), _spread(pixels, ~region)
    alone = np.where(mask, (pixels @ old / (old @ old)).clip(0, BRIGHTEST), 0)
    # Least squares for two colours. Where they are nearly alike in hue, the mask alone says whose a pixel is.
    cross, square = beyond @ old, (beyond * beyond).sum(-1)
    spread = (old @ old) * square - cross * cross
    mixed = (square * (pixels @ old) - cross * (beyond * pixels).sum(-1)) / np.maximum(spread, 1)
    at_edge = region & (depth <= 2 * edge) & (spread > ALIKE * (old @ old) * square)
    rest = np.abs(pixels - alone[..., None] * old).max(-1)
    return np.where(at_edge, mixed.clip(0, BRIGHTEST), np.where(mask & (rest < FAINT), alone, 0))  # a detail on the part keeps its colour


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
