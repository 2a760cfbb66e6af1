"""Inspect pictures: whether they are valid and useful, their kind and their perceptual hash."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy
import pyvips
import zxingcpp
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from duogen.data_engine.options import DataOptions
from duogen.data_engine.sample import Picture
from duogen.picture_input import MAX_PIXELS

TRACKER = re.compile(r"pixel\.|/pixel|beacon|tracking|doubleclick|googlesyndication|analytics|1x1|spacer|blank\.gif", re.I)
FURNITURE = re.compile(
    r"(?:^|[\W_])(?:logos?|icons?|favicon|avatar|gravatar|badge|sprite|emoji|button|btn|banner|advert\w*|ads?|sponsor\w*|rss|share|social|"
    r"facebook|twitter|pinterest|instagram|youtube|paypal|patreon|donate|qr(?:-?code)?|captcha)(?:[\W_]|$)",
    re.I,
)
AD_SIZES = {(728, 90), (468, 60), (300, 250), (336, 280), (160, 600), (120, 600), (970, 250), (970, 90), (320, 50), (320, 100), (250, 250)}
FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "AVIF": ".avif"}
THINNEST = 3.2  # longer side / shorter side
THUMB = 256
KEPT = (".jpg", ".png", ".webp")  # what training reads as it is
FREQUENCIES = numpy.cos(numpy.pi / 32 * (numpy.arange(32) + 0.5) * numpy.arange(8)[:, None])  # [8, 32], DCT-II
FREQUENCIES[0] *= 0.5**0.5  # orthonormal but for one factor, which the median takes out
PER_PIXEL = 0.2  # bytes of a photograph as JPEG of quality 92: a file below that would not get smaller

pyvips.cache_set_max(0)  # no operation is repeated, so a cache only costs memory


def inspect_picture(picture: Picture, options: DataOptions) -> tuple[Picture, str]:
    """Return the picture with shape, hash and guessed kind, and why it is useless ("" if it is not)."""
    said = f"{picture.name} {picture.alt}"
    if TRACKER.search(picture.name):
        return picture, "a tracking pixel"
    if picture.name.lower().split("?")[0].endswith(".svg") or picture.name.startswith("data:image/svg"):
        return picture, "an icon"
    if FURNITURE.search(said) and len(picture.caption) < 20:
        return picture, "an icon, a logo or an ad by its name"
    try:
        data = picture.bytes()
        image = PILImage.open(io.BytesIO(data))
        why = _check_shape(image.size, options)
        if why:
            return replace(picture, shape=image.size), why
        shape, form = _upright_size(image), image.format
        small = scale_picture(data, THUMB)
    except FileNotFoundError:
        return picture, "its file is not there"
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, PILImage.DecompressionBombError, pyvips.Error):
        return picture, "broken"
    grey = small.convert("L")
    seen = replace(picture, shape=shape, phash=perceptual_hash(grey), kind=guess_kind(small), suffix=FORMATS.get(form or "", ""))
    return seen, _check_pixels(grey)


def _upright_size(image: PILImage.Image) -> tuple[int, int]:
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8) if image.format in ("JPEG", "WEBP", "TIFF", "PNG") else False
    return image.size[::-1] if turned else image.size


def scale_picture(data: bytes, most: int) -> PILImage.Image:
    """Decode a picture at no more than `most` pixels a side, upright, RGB on white. libvips decodes JPEG and WebP directly at that size.

    Raises:
        pyvips.Error: the picture is broken.
    """
    image = pyvips.Image.thumbnail_buffer(data, most, height=most, size="down", fail_on="truncated")
    if image.interpretation != "srgb":
        image = image.colourspace("srgb")
    if image.hasalpha():
        image = image.flatten(background=[255])
    if image.format != "uchar":
        image = image.cast("uchar")
    return PILImage.frombuffer("RGB", (image.width, image.height), image.write_to_memory())


def _check_shape(size: tuple[int, int], options: DataOptions) -> str:
    width, height = size
    if width * height > MAX_PIXELS:
        return "more than 50 megapixels"
    if max(size) <= 4:
        return "a tracking pixel"
    if size in AD_SIZES:
        return "an ad by its size"
    if min(size) < options.min_side:
        return "too small"
    return "a banner by its shape" if max(size) > THINNEST * min(size) else ""


def _check_pixels(grey: PILImage.Image) -> str:
    """Why a picture is useless by its pixels (one colour, a bar code), "" if it is not."""
    counts = numpy.array(grey.histogram())
    levels, pixels = numpy.arange(256), counts.sum()
    middle = (counts * levels).sum() / pixels
    if ((counts * (levels - middle) ** 2).sum() / pixels) ** 0.5 < 6:
        return "nearly one colour"
    # Codes are black and white; the histogram spares the search in nearly all photographs.
    if (counts[:64].sum() + counts[193:].sum()) / pixels > 0.8 and zxingcpp.read_barcodes(grey):
        return "a code for machines"
    return ""


def perceptual_hash(grey: PILImage.Image) -> int:
    """pHash (Zauner 2010): 64 bits of the low frequencies. Near-duplicates differ in few of them."""
    tiny = numpy.asarray(grey.resize((32, 32), PILImage.Resampling.LANCZOS), dtype=numpy.float32)
    low = (FREQUENCIES @ tiny @ FREQUENCIES.T).flatten()
    bits = low > numpy.median(low[1:])
    return int.from_bytes(numpy.packbits(bits).tobytes(), "big")


def guess_kind(small: PILImage.Image) -> str:
    """Guess the kind from the pixels: photographs have many colours and no flat areas; paper is white with little ink."""
    tiny = small.resize((64, 64), PILImage.Resampling.BOX)
    pixels = numpy.asarray(tiny, dtype=numpy.int16)
    flat_share = float((numpy.abs(numpy.diff(pixels, axis=1)).max(axis=2) <= 2).mean())
    white = float((pixels.min(axis=2) > 235).mean())
    colourful = float((pixels.max(axis=2) - pixels.min(axis=2)).mean())
    if white > 0.6 and colourful < 12:
        return "document"
    if flat_share > 0.75:
        return "chart" if white > 0.5 else "drawing" if colourful > 20 else "screenshot"
    return "photo"


def encode_picture(picture: Picture, most: int) -> tuple[bytes, str]:
    """The bytes to store and their suffix: unchanged, or scaled down and upright as JPEG (PNG for drawings).

    A large photograph that is well compressed stays unchanged, since coding it again would lose detail and take more bytes.

    Raises:
        OSError, pyvips.Error: the picture is gone or broken since it was inspected.
    """
    data = picture.bytes()
    if picture.suffix in KEPT and picture.shape:
        width, height = picture.shape
        scale = min(1.0, most / max(width, height))
        if scale == 1.0 or len(data) <= PER_PIXEL * width * height * scale**2:
            return data, picture.suffix
    image = scale_picture(data, most)
    out = io.BytesIO()
    drawn = picture.kind in ("drawing", "chart", "screenshot", "document")
    image.save(out, "PNG") if drawn else image.save(out, "JPEG", quality=92)
    return out.getvalue(), ".png" if drawn else ".jpg"
